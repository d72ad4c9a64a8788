//! Plans of small specifications.

use super::*;
use oci_spec::runtime::LinuxDeviceCgroup;
use serde_json::{Value, json};

const HOST: Host = Host {
    user_namespace: false,
};

fn plan(linux: Value, host: Host) -> Result<Plan, String> {
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/"},
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [{"destination": "/c", "type": "cgroup", "options": ["ro"]}, {"destination": "/r", "type": "ext4", "options": ["ro"]}],
        "linux": linux,
    });
    let request = CreateRequest {
        id: "web".into(),
        bundle: "/b".into(),
        dir: "/d".into(),
        rootfs: Rootfs::Bundle,
        cgroup: Cgroup::V2("/sys/fs/cgroup/web".into()),
        console_socket: None,
        init: false,
    };
    container(&serde_json::from_value(spec).unwrap(), &request, host)
}

#[test]
fn plans_namespaces() {
    let namespaces = json!([{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/n"}, {"type": "cgroup"}]);
    let made = plan(json!({"namespaces": namespaces}), HOST).unwrap();
    assert_eq!(made.new, (libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64);
    assert_eq!(
        made.joins,
        [(libc::CLONE_NEWNET as u64, PathBuf::from("/n"))]
    );
    assert!(made.init.cgroup_namespace && !made.init.loopback && !made.init.rootfs.bind_devices);
    let namespaces = json!([{"type": "mount"}]);
    let nested = plan(
        json!({"namespaces": namespaces}),
        Host {
            user_namespace: true,
        },
    )
    .unwrap();
    assert!(nested.init.rootfs.bind_devices && !nested.init.process.user_namespace);
    for (linux, want) in [
        (
            json!({"namespaces": [{"type": "mount"}, {"type": "mount"}]}),
            "mnt is there twice",
        ),
        (
            json!({"namespaces": [{"type": "mount", "path": "/x"}]}),
            "joining a mount namespace",
        ),
        (
            json!({"namespaces": [{"type": "mount"}, {"type": "user"}]}),
            "linux.uidMappings: is empty",
        ),
        (
            json!({"namespaces": namespaces, "sysctl": {"net.x": "1"}}),
            "net.x needs a network namespace",
        ),
        (
            json!({"namespaces": namespaces, "sysctl": {"net...x": "1"}}),
            "net...x is not a name",
        ),
        (
            json!({"namespaces": namespaces, "rootfsPropagation": "odd"}),
            "odd is unknown",
        ),
    ] {
        let error = plan(linux, HOST).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn plans_mounts_and_devices() {
    let linux = json!({
        "namespaces": [{"type": "mount"}],
        "devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}],
        "resources": {"devices": [{"allow": false, "access": "rwm"}]},
    });
    let made = plan(linux, HOST).unwrap();
    let rootfs = made.init.rootfs;
    assert_eq!(rootfs.path, Path::new("/b/rootfs"));
    assert_eq!(
        rootfs.mounts[0].source,
        Source::Bind {
            path: "/sys/fs/cgroup/web".into(),
            recursive: false
        }
    );
    let ext4 = Source::Filesystem {
        fstype: "ext4".into(),
        source: None,
        options: vec!["ro".into()],
    };
    assert_eq!(rootfs.mounts[1].source, ext4);
    assert_eq!(rootfs.devices.len(), 6);
    assert_eq!(
        rootfs
            .devices
            .iter()
            .find(|device| device.path == Path::new("/dev/null"))
            .unwrap()
            .mode,
        0o600
    );
    let rules = made.resources.unwrap().devices().clone().unwrap();
    assert!(
        !rules[0].allow()
            && rules[1..]
                .iter()
                .all(|rule: &LinuxDeviceCgroup| rule.allow())
            && rules.len() == 12
    );
}
