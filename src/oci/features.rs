//! `features`: what is implemented (runtime-spec features.md, features-linux.md).
//!
//! *Invariant:* nothing is claimed by hand. The words here are the specification's; each is shown to the code that reads `config.json`,
//! and what that takes is printed. No answer depends on the machine.

use oci_spec::runtime::{LinuxSeccomp, Spec};
use serde_json::{Value, json};

use super::args::Invocation;
use super::{Error, help, show, spec};
use crate::cgroup::Cgroup;
use crate::container::plan::{self, Host};
use crate::container::{CreateRequest, Rootfs};
use crate::{rootfs, seccomp};

/// Oldest version of the runtime-spec that is understood.
const OLDEST: &str = "1.0.0";

const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

const NAMESPACES: [&str; 8] = [
    "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
];

const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// `features`.
pub fn features(_: &Invocation) -> Result<u8, Error> {
    show::json(&all())
}

fn all() -> Value {
    json!({
        "ociVersionMin": OLDEST,
        "ociVersionMax": help::SPEC,
        "hooks": kept(&HOOKS, |hook| takes("/hooks", json!({hook: [{"path": "/hook"}]}))),
        "mountOptions": rootfs::options::known(),
        "linux": {
            "namespaces": kept(&NAMESPACES, namespace),
            "capabilities": capabilities(),
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": rdma()},
            "seccomp": {
                "enabled": true,
                "actions": kept(&ACTIONS, |action| rule(json!({"names": ["getpid"], "action": action}), json!([]))),
                "operators": kept(&OPERATORS, operator),
                "archs": seccomp::architectures(),
                "knownFlags": kept(&FLAGS, flag),
                "supportedFlags": kept(&FLAGS, flag),
            },
            "apparmor": {"enabled": takes("/process/apparmorProfile", json!("p"))},
            "selinux": {"enabled": takes("/process/selinuxLabel", json!("l"))},
            "intelRdt": {"enabled": takes("/linux/intelRdt", json!({"closID": "c"}))},
            "mountExtensions": {"idmap": {"enabled": id_mapped()}},
            "netDevices": {"enabled": takes("/linux/netDevices", json!({"eth9": {}}))},
        },
        "annotations": {"io.github.sampan.version": env!("CARGO_PKG_VERSION")},
        "potentiallyUnsafeConfigAnnotations": [plan::REAPER],
    })
}

fn kept<'a>(words: &[&'a str], is_taken: impl Fn(&str) -> bool) -> Vec<&'a str> {
    words
        .iter()
        .copied()
        .filter(|word| is_taken(word))
        .collect()
}

/// Whether a specification with `value` at `pointer` can be planned.
fn takes(pointer: &str, value: Value) -> bool {
    let mut all = spec::template();
    all["process"]["terminal"] = json!(false);
    let (above, key) = pointer.rsplit_once('/').unwrap_or_default();
    match all.pointer_mut(above) {
        Some(place) => place[key] = value,
        None => return false,
    }
    plannable(all)
}

fn plannable(spec: Value) -> bool {
    let Ok(spec) = serde_json::from_value::<Spec>(spec) else {
        return false;
    };
    let request = CreateRequest {
        id: "features".to_owned(),
        bundle: "/bundle".into(),
        dir: "/dir".into(),
        rootfs: Rootfs::Bundle,
        cgroup: Cgroup::V2("/sys/fs/cgroup/features".into()),
        console_socket: None,
        preserve_fds: 0,
        keep_keyring: false,
        no_pivot: false,
        at_once: false,
        dies_with_parent: false,
    };
    let host = Host {
        user_namespace: false,
        selinux: true,
        shared: 0,
    };
    plan::container(&spec, &request, host).is_ok()
}

fn namespace(kind: &str) -> bool {
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let mut linux = match kind {
        "mount" => json!({"namespaces": [{"type": kind}]}),
        _ => json!({"namespaces": [{"type": "mount"}, {"type": kind}]}),
    };
    if kind == "user" {
        linux["uidMappings"] = maps.clone();
        linux["gidMappings"] = maps;
    }
    let mut all = spec::template();
    all["process"]["terminal"] = json!(false);
    // it has a name, which needs a namespace
    if let Some(all) = all.as_object_mut() {
        all.remove("hostname");
    }
    all["linux"] = linux;
    plannable(all)
}

fn capabilities() -> Vec<String> {
    let mut all: Vec<caps::Capability> = caps::all().into_iter().collect();
    all.sort_by_key(caps::Capability::index);
    let named = all.iter().map(ToString::to_string);
    named
        .filter(|name| takes("/process/capabilities", json!({"bounding": [name]})))
        .collect()
}

fn rdma() -> bool {
    takes(
        "/linux/resources",
        json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}),
    )
}

fn id_mapped() -> bool {
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    takes(
        "/mounts",
        json!([{"destination": "/m", "source": "/m", "type": "bind", "options": ["bind"],
                "uidMappings": maps, "gidMappings": maps}]),
    )
}

/// Whether a filter with this rule and these flags can be compiled.
fn rule(rule: Value, flags: Value) -> bool {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "listenerPath": "/listener",
        "flags": flags,
        "syscalls": [rule],
    });
    serde_json::from_value::<LinuxSeccomp>(profile)
        .is_ok_and(|profile| seccomp::compile(&profile).is_ok())
}

fn operator(word: &str) -> bool {
    let arg = json!({"index": 0, "value": 1, "valueTwo": 1, "op": word});
    rule(
        json!({"names": ["getpid"], "action": "SCMP_ACT_ALLOW", "args": [arg]}),
        json!([]),
    )
}

fn flag(word: &str) -> bool {
    rule(
        json!({"names": ["getpid"], "action": "SCMP_ACT_ALLOW"}),
        json!([word]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_told() {
        let all = all();
        let has = |pointer: &str, word: &str| {
            all.pointer(pointer)
                .unwrap()
                .as_array()
                .unwrap()
                .contains(&json!(word))
        };
        for (pointer, word, want) in [
            ("/mountOptions", "ro", true),
            ("/mountOptions", "rro", true),
            ("/mountOptions", "rbind", true),
            ("/mountOptions", "rprivate", true),
            ("/mountOptions", "size", false),
            ("/mountOptions", "rsize", false),
            ("/linux/namespaces", "mount", true),
            ("/linux/namespaces", "user", true),
            ("/linux/namespaces", "pid", true),
            ("/linux/namespaces", "uts", true),
            ("/linux/capabilities", "CAP_CHECKPOINT_RESTORE", true),
            ("/linux/seccomp/actions", "SCMP_ACT_LOG", true),
            ("/linux/seccomp/operators", "SCMP_CMP_MASKED_EQ", true),
            ("/linux/seccomp/archs", "SCMP_ARCH_X86_64", true),
            ("/linux/seccomp/archs", "SCMP_ARCH_MIPS", false),
            ("/linux/seccomp/knownFlags", "SECCOMP_FILTER_FLAG_LOG", true),
        ] {
            assert_eq!(has(pointer, word), want, "{pointer} {word}");
        }
        assert_eq!(all["linux"]["intelRdt"]["enabled"], false);
    }
}
