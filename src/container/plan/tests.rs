//! Plans of small specifications.

use super::*;
use crate::container::Rootfs;
use oci_spec::runtime::LinuxDeviceCgroup;
use serde_json::{Value, json};

const HOST: Host = Host {
    user_namespace: false,
    selinux: false,
    shared: 0,
};

fn plan(linux: Value, host: Host) -> Result<Plan, String> {
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/"},
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [{"destination": "/c", "type": "cgroup", "options": ["ro"]}, {"destination": "/r", "type": "ext4", "options": ["ro"]}],
        "linux": linux,
    });
    container(&serde_json::from_value(spec).unwrap(), &request(), host)
}

pub(super) fn request() -> CreateRequest {
    CreateRequest {
        id: "web".into(),
        bundle: "/b".into(),
        dir: "/d".into(),
        rootfs: Rootfs::Bundle,
        cgroup: Cgroup::V2("/sys/fs/cgroup/web".into()),
        console_socket: None,
        preserve_fds: 0,
        keep_keyring: false,
        no_pivot: false,
        at_once: false,
        dies_with_parent: false,
    }
}

#[test]
fn plans_namespaces() {
    let namespaces = json!([{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/n"}, {"type": "cgroup"}]);
    let made = plan(json!({"namespaces": namespaces}), HOST).unwrap();
    let made = serde_json::to_value(made).unwrap();
    assert_eq!(
        made["parent"],
        json!([
            {"cgroup": {"v2": "/sys/fs/cgroup/web"}},
            "gate",
            {"clone": {"new": ["pid"], "join": [{"kind": ["network"], "path": "/n"}]}},
            "begin",
            "keepSpec",
            "draft",
            "setUp",
            "record",
            "release",
            "letGo",
        ])
    );
    let namespaces = json!([{"type": "mount"}]);
    let user_namespace = Host {
        user_namespace: true,
        ..HOST
    };
    let nested = plan(json!({"namespaces": namespaces}), user_namespace).unwrap();
    let nested = serde_json::to_string(&nested).unwrap();
    assert!(
        nested.contains(r#"{"bindDevice":{"device":{"path":"/dev/null""#)
            && !nested.contains("becomeRoot")
    );
    for (linux, want) in [
        (
            json!({"namespaces": [{"type": "mount"}, {"type": "mount"}]}),
            "mnt is there twice",
        ),
        (
            json!({"namespaces": [{"type": "user"}]}),
            "linux.namespaces: user: needs a mount namespace",
        ),
        (
            json!({"namespaces": [{"type": "pid"}], "rootfsPropagation": "slave"}),
            "linux.rootfsPropagation: needs a mount namespace",
        ),
        (
            json!({"namespaces": namespaces, "timeOffsets": {"monotonic": {"secs": 1}}}),
            "linux.timeOffsets: needs a time namespace without path",
        ),
        (
            json!({"namespaces": [{"type": "mount"}, {"type": "time"}], "timeOffsets": {"realtime": {}}}),
            "linux.timeOffsets: realtime is not monotonic or boottime",
        ),
        (
            json!({"namespaces": [{"type": "mount"}, {"type": "time"}], "timeOffsets": {"boottime": {"nanosecs": 1000000000}}}),
            "linux.timeOffsets.boottime.nanosecs: 1000000000 is above",
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
fn one_that_dies_with_its_parent() {
    let spec = json!({
        "ociVersion": "1.3.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "mount"}]},
    });
    let spec = serde_json::from_value(spec).unwrap();
    for dies_with_parent in [false, true] {
        let request = CreateRequest {
            dies_with_parent,
            ..request()
        };
        let made = serde_json::to_value(container(&spec, &request, HOST).unwrap()).unwrap();
        let outlives = made["child"]
            .as_array()
            .unwrap()
            .contains(&json!("outliveParent"));
        assert_eq!(outlives, !dies_with_parent);
    }
}

#[test]
fn plans_mounts_and_devices() {
    let linux = json!({
        "namespaces": [{"type": "mount"}],
        "devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
                    {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}],
        "resources": {"devices": [{"allow": false, "access": "rwm"}]},
    });
    let made = plan(linux, HOST).unwrap();
    let limits = made.parent.iter().find_map(|step| match step {
        Step::Limits(limits) => Some(limits),
        _ => None,
    });
    let Some(limits) = limits else {
        panic!("{:?}", made.parent);
    };
    let rules = limits.devices().clone().unwrap();
    assert!(
        !rules[0].allow()
            && rules[1..]
                .iter()
                .all(|rule: &LinuxDeviceCgroup| rule.allow())
            && rules.len() == 12
    );
    let device = |name: &str, minor: u32| {
        json!({"rootfs": {"device": {"path": format!("/dev/{name}"), "kind": "character", "major": if name == "tty" { 5 } else { 1 },
            "minor": minor, "mode": if name == "null" { 0o600 } else { 0o666 }, "uid": 0, "gid": 0}}})
    };
    let none: [&str; 0] = [];
    let capabilities =
        json!({"effective": none, "permitted": none, "inheritable": none, "ambient": none});
    assert_eq!(
        serde_json::to_value(&made.child).unwrap(),
        json!([
            {"closeDescriptors": {"preserved": 0}},
            "dieWithParent",
            {"umask": 0},
            {"namespaces": ["mount"]},
            "awaitParent",
            "undumpable",
            {"processors": {"mask": "all", "must": false}},
            "newSession",
            "newKeyring",
            {"rootfs": "isolate"},
            {"rootfs": {"openRoot": {"path": "/b/rootfs", "follow_host": false}}},
            {"rootfs": {"openSource": {"source": 0, "path": "/sys/fs/cgroup", "destination": "/c", "recursive": false, "beneath": null}}},
            {"rootfs": "mountRoot"},
            {"rootfs": {"mount": {"destination": "/c", "source": {"bind": {"source": 0}}, "attributes": ["ro"], "clearOthers": true,
                "recursive": none, "lateReadonly": false}}},
            {"rootfs": {"mount": {"destination": "/r", "source": {"filesystem": {"fstype": "ext4", "source": null, "options": ["ro"],
                "keep": "nothing"}}, "attributes": ["ro"], "clearOthers": false, "recursive": none, "lateReadonly": false}}},
            device("zero", 5),
            device("full", 7),
            device("random", 8),
            device("urandom", 9),
            device("tty", 0),
            device("null", 3),
            {"rootfs": "deviceLinks"},
            {"rootfs": {"folder": "/"}},
            {"rootfs": "pivot"},
            {"rootfs": "rootReadonly"},
            {"giveStreams": {"uid": 0}},
            {"tryCwd": "/"},
            {"findHome": {"uid": 0}},
            {"bounding": none},
            {"groups": none},
            {"user": {"uid": 0, "gid": 0}},
            {"capabilities": capabilities},
            {"cwd": "/"},
            {"umask": 0o022},
            "dieWithParent",
            {"findProgram": {"name": "x", "search": ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]}},
            "ready",
            "awaitRelease",
            "outliveParent",
            "resetSignals",
            {"gate": {"preserved": 0}},
            {"execute": {"argv": ["x"], "env": none}},
        ])
    );
}

/// Without a cgroup namespace `cgroup` shows the whole hierarchy, of which the caller may own more than the container (CVE-2023-25809).
#[test]
fn plans_cgroups_that_nobody_may_write() {
    let maps = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    for (namespaces, writable) in [
        (json!([{"type": "mount"}]), true),
        (json!([{"type": "mount"}, {"type": "user"}]), false),
        (
            json!([{"type": "mount"}, {"type": "user"}, {"type": "cgroup"}]),
            true,
        ),
    ] {
        let user = namespaces.to_string().contains("user");
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/c", "type": "cgroup"}],
            "linux": {"namespaces": namespaces, "uidMappings": if user { maps.clone() } else { json!([]) },
                      "gidMappings": if user { maps.clone() } else { json!([]) }},
        });
        for cgroup in [
            Cgroup::V2("/sys/fs/cgroup/web".into()),
            Cgroup::Unlimited { why: "x".into() },
        ] {
            let unlimited = matches!(cgroup, Cgroup::Unlimited { .. });
            let request = CreateRequest {
                id: "web".into(),
                bundle: "/b".into(),
                dir: "/d".into(),
                rootfs: Rootfs::Bundle,
                cgroup,
                console_socket: None,
                preserve_fds: 0,
                keep_keyring: false,
                no_pivot: false,
                at_once: false,
                dies_with_parent: false,
            };
            let spec = serde_json::from_value(spec.clone()).unwrap();
            let plan = container(&spec, &request, HOST).unwrap();
            let found = plan.child.iter().find_map(|step| match step {
                init::plan::Step::Rootfs(crate::rootfs::Step::Mount(mount))
                    if mount.destination == std::path::Path::new("/c") =>
                {
                    Some(mount.attributes.set & libc::MOUNT_ATTR_RDONLY == 0)
                }
                _ => None,
            });
            assert_eq!(found, Some(writable && !unlimited), "{namespaces}");
        }
    }
}

/// Each kind of cgroup is there before what enters it: v2 before the clone, v1 while the child makes its namespaces, all before somebody
/// joins a cgroup namespace. Without a gate the child goes on to the program.
#[test]
fn cgroups_come_before_those_who_enter() {
    let v1 = json!({"v1": {"controllers": {"pids": "/sys/fs/cgroup/pids/web"}, "unified": null}});
    let v2 = json!({"v2": "/sys/fs/cgroup/unified/web"});
    let mut both = v1.clone();
    both["v1"]["unified"] = v2["v2"].clone();
    let alone = json!([{"type": "mount"}, {"type": "network"}]);
    let devices = json!([{"type": "mount"}, {"type": "network"}]);
    let joined = json!([{"type": "mount"}, {"type": "cgroup", "path": "/c"}]);
    for (cgroup, namespaces, parent, clone, child) in [
        (
            &v2,
            &alone,
            vec![&v2, &Value::Null],
            json!([]),
            json!(["mount", "network"]),
        ),
        (
            &v1,
            &alone,
            vec![&Value::Null, &v1],
            json!([]),
            json!(["mount", "network"]),
        ),
        (
            &both,
            &alone,
            vec![&v2, &Value::Null, &v1],
            json!([]),
            json!(["mount", "network"]),
        ),
        (
            &both,
            &devices,
            vec![&v2, &Value::Null, &v1],
            json!(["network"]),
            json!(["mount"]),
        ),
        (
            &both,
            &joined,
            vec![&both, &Value::Null],
            json!([]),
            json!(["mount"]),
        ),
    ] {
        let mut linux = json!({"namespaces": namespaces});
        if std::ptr::eq(namespaces, &devices) {
            linux["netDevices"] = json!({"eth7": {}});
        }
        let spec = json!({
            "ociVersion": "1.3.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": linux,
        });
        let request = CreateRequest {
            cgroup: serde_json::from_value(cgroup.clone()).unwrap(),
            at_once: true,
            ..request()
        };
        let made = container(&serde_json::from_value(spec).unwrap(), &request, HOST).unwrap();
        let made = serde_json::to_value(&made).unwrap();
        let steps = made["parent"].as_array().unwrap();
        let order: Vec<&Value> = steps
            .iter()
            .filter(|step| step.get("cgroup").is_some() || step.get("clone").is_some())
            .map(|step| step.get("cgroup").unwrap_or(&Value::Null))
            .collect();
        assert_eq!(order, parent, "{cgroup} {namespaces}");
        let cloned = steps.iter().find_map(|step| step.get("clone")).unwrap();
        assert_eq!(cloned["new"], clone, "{cgroup} {namespaces}");
        assert_eq!(
            made["child"][3]["namespaces"], child,
            "{cgroup} {namespaces}"
        );
        let text = made.to_string();
        assert!(!text.contains("gate") && text.contains("closeOnExec"));
        // told to go on before it can be ready, and recorded when it is set up
        let last: Vec<&Value> = steps.iter().rev().take(3).rev().collect();
        assert_eq!(last, ["release", "letGo", "record"]);
    }
}

/// Hooks of the child alone run in a cgroup with its limits, too, which the parent sets meanwhile.
#[test]
fn limits_come_before_hooks() {
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "mount"}], "resources": {"pids": {"limit": 5}}},
    });
    let words = |spec: &Value| {
        let spec = serde_json::from_value(spec.clone()).unwrap();
        let made = container(&spec, &request(), HOST).unwrap();
        let parent = serde_json::to_value(&made.parent).unwrap();
        let name = |step: &Value| match step {
            Value::Object(all) => all.keys().next().unwrap().clone(),
            name => name.as_str().unwrap().to_owned(),
        };
        let parent: Vec<String> = parent.as_array().unwrap().iter().map(name).collect();
        let child = serde_json::to_string(&made.child).unwrap();
        (parent.join(" "), child.contains("awaitHooks"))
    };
    let plain = "cgroup gate clone begin limits keepSpec draft setUp record release letGo";
    assert_eq!(words(&spec), (plain.to_owned(), false));
    spec["hooks"] = json!({"createContainer": [{"path": "/bin/true"}]});
    let hooked = "cgroup gate clone begin limits keepSpec draft mount setUp record release letGo";
    assert_eq!(words(&spec), (hooked.to_owned(), true));
    spec["hooks"] = json!({"startContainer": [{"path": "/bin/true"}]});
    assert_eq!(words(&spec), (plain.to_owned(), false));
}

/// What the child needs comes before it begins, what forbids what it still does after it is set up, and the rest meanwhile.
#[test]
fn limits_come_when_they_matter() {
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {
            "namespaces": [{"type": "mount"}],
            "resources": {
                "pids": {"limit": 5}, "cpu": {"cpus": "0"}, "devices": [{"allow": false, "access": "rwm"}],
            },
        },
    });
    let limits = |cgroup: &Value, change: &Value| -> Vec<String> {
        let request = CreateRequest {
            cgroup: serde_json::from_value(cgroup.clone()).unwrap(),
            at_once: true,
            ..request()
        };
        let mut spec = spec.clone();
        for (key, value) in change.as_object().unwrap() {
            spec[key.as_str()] = match key.as_str() {
                "process" => {
                    let mut process = spec["process"].clone();
                    process["scheduler"] = value["scheduler"].clone();
                    process
                }
                _ => value.clone(),
            };
        }
        let made = container(&serde_json::from_value(spec).unwrap(), &request, HOST).unwrap();
        let steps = serde_json::to_value(&made.parent).unwrap();
        let words = steps
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|step| match step {
                Value::String(word) if ["begin", "setUp", "release"].contains(&word.as_str()) => {
                    Some(word.clone())
                }
                step => {
                    let set = step.get("limits")?.as_object()?.iter();
                    let set = set.filter(|(_, value)| !value.is_null());
                    Some(
                        set.map(|(key, _)| key.as_str())
                            .collect::<Vec<_>>()
                            .join("+"),
                    )
                }
            });
        words.collect()
    };
    let v1 = json!({"v1": {"controllers": {"devices": "/d", "pids": "/p"}, "unified": "/u"}});
    let v2 = json!({"v2": "/c"});
    let nothing = json!({});
    // version 1 takes device rules one by one, the first of which forbids everything
    assert_eq!(
        limits(&v1, &nothing),
        ["devices", "begin", "cpu+pids", "release"]
    );
    assert_eq!(
        limits(&v2, &nothing),
        ["begin", "cpu+devices+pids", "release"]
    );
    // real time needs its budget
    let real_time = json!({"process": {"scheduler": {"policy": "SCHED_FIFO", "priority": 1}}});
    assert_eq!(
        limits(&v1, &real_time),
        ["cpu+devices", "begin", "pids", "release"]
    );
    assert_eq!(
        limits(&v2, &real_time),
        ["cpu", "begin", "devices+pids", "release"]
    );
    // a file system's device is opened to mount it
    let disk = json!({"mounts": [{"destination": "/d", "type": "ext4", "source": "/dev/sda"}]});
    for cgroup in [&v1, &v2] {
        let order = ["begin", "cpu+pids", "setUp", "devices", "release"];
        assert_eq!(limits(cgroup, &disk), order);
    }
    let bind = json!({"mounts": [{"destination": "/d", "type": "ext4", "source": "/s", "options": ["rbind"]}]});
    assert_eq!(limits(&v2, &bind), ["begin", "cpu+devices+pids", "release"]);
}

/// Files of a new network namespace in /proc and /sys belong to its root, when that is mapped by then.
#[test]
fn namespaces_are_made_when_ids_are_mapped() {
    let words = |namespaces: Value| -> Vec<String> {
        let ids = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": namespaces, "uidMappings": ids, "gidMappings": ids},
        });
        let spec = serde_json::from_value(spec).unwrap();
        let made = container(&spec, &request(), HOST).unwrap();
        let child = serde_json::to_value(&made.child).unwrap();
        let words = child
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|step| match step {
                Value::String(word) if word == "awaitParent" => Some(word.clone()),
                step => step.get("namespaces").map(|_| "namespaces".to_owned()),
            });
        words.collect()
    };
    let own = json!([{"type": "mount"}, {"type": "network"}, {"type": "user"}]);
    assert_eq!(words(own), ["awaitParent", "namespaces"]);
}

/// A namespace by path that turns out to be the caller's: what is set there would be set for the host.
#[test]
fn sysctls_of_the_caller() {
    let linux = json!({
        "namespaces": [{"type": "mount"}, {"type": "network", "path": "/proc/1/ns/net"}], "sysctl": {"net.x": "1"},
    });
    plan(linux.clone(), HOST).unwrap();
    let shared = Host {
        shared: libc::CLONE_NEWNET as u64,
        ..HOST
    };
    let error = plan(linux, shared).unwrap_err();
    assert!(error.contains("other than the caller's"), "{error}");
    let mut spec = Spec::default();
    let linux = |path: &str| json!({"namespaces": [{"type": "network", "path": path}], "sysctl": {"net.x": "1"}});
    for (path, bits) in [
        ("/proc/self/ns/net", libc::CLONE_NEWNET),
        ("/proc/self/ns/ipc", 0),
        ("/none", 0),
    ] {
        spec.set_linux(serde_json::from_value(linux(path)).unwrap());
        assert_eq!(Host::here(&spec).shared, bits as u64, "{path}");
    }
}
