//! `LinuxInfo`, rlimits, terminal and host name of a `ContainerInfo` → keys of a service.
//!
//! *Invariants:* capabilities that are given are the task's whatever its user is, as with Mesos; where none are given those of a
//! service count. Nothing that is set is left out.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Invalid;
use crate::executor::mesos::proto::{
    CapabilityInfo, ContainerInfo, LinuxInfo, Named, TaskInfo, capability_info, linux_info,
    r_limit_info,
};

/// The keys; `profiles` is the folder of seccomp profiles.
///
/// # Errors
/// For what is not known, contradicts itself, or cannot be had.
pub fn settings(
    task: &TaskInfo,
    container: &ContainerInfo,
    profiles: Option<&Path>,
) -> Result<Map<String, Value>, Invalid> {
    let mut out = Map::new();
    let at = |why: String| Invalid::of(task, format_args!("container.{why}"));
    if let Some(linux) = &container.linux_info {
        capabilities(linux, &mut out).map_err(at)?;
        seccomp(linux, profiles, &mut out).map_err(at)?;
        sharing(linux, &mut out).map_err(at)?;
    }
    let rlimits = container.rlimit_info.iter().flat_map(|info| &info.rlimits);
    let mut ulimits = Map::new();
    for (index, rlimit) in rlimits.enumerate() {
        let field = format!("rlimit_info.rlimits[{index}]");
        let (name, bounds) = ulimit(rlimit).map_err(|why| at(format!("{field}: {why}")))?;
        if ulimits.insert(name, bounds).is_some() {
            return Err(at(format!("{field}: the same limit is there already")));
        }
    }
    if !ulimits.is_empty() {
        out.insert("ulimits".to_owned(), Value::Object(ulimits));
    }
    if container.tty_info.is_some() {
        out.insert("tty".to_owned(), json!(true));
        out.insert("stdin_open".to_owned(), json!(true));
    }
    Ok(out)
}

fn capabilities(linux: &LinuxInfo, out: &mut Map<String, Value>) -> Result<(), String> {
    let names = |field: &str, info: &Option<CapabilityInfo>| -> Result<_, String> {
        let Some(info) = info else { return Ok(None) };
        let names = info.capabilities.iter().map(|number| {
            match capability_info::Capability::try_from(*number) {
                Ok(capability_info::Capability::Unknown) | Err(_) => Err(format!(
                    "linux_info.{field}: capability {number} is not known"
                )),
                Ok(capability) => Ok(capability.name()),
            }
        });
        names.collect::<Result<Vec<_>, _>>().map(Some)
    };
    let old = names("capability_info", &linux.capability_info)?;
    let new = names("effective_capabilities", &linux.effective_capabilities)?;
    if old.is_some() && new.is_some() {
        return Err(
            "linux_info: capability_info is the old name of effective_capabilities; use one"
                .to_owned(),
        );
    }
    let effective = new.or(old);
    let bounding = names("bounding_capabilities", &linux.bounding_capabilities)?;
    if let (Some(effective), Some(bounding)) = (&effective, &bounding)
        && let Some(more) = effective.iter().find(|name| !bounding.contains(name))
    {
        return Err(format!(
            "linux_info.effective_capabilities: {more} is not among the bounding_capabilities"
        ));
    }
    // no program gets more than it begins with (no_new_privs), so a larger bounding set has nothing to give
    let Some(all) = effective.as_ref().or(bounding.as_ref()) else {
        return Ok(());
    };
    out.insert("cap_drop".to_owned(), json!(["ALL"]));
    out.insert("cap_add".to_owned(), json!(all));
    if let Some(effective) = &effective {
        out.insert("x-sampan".to_owned(), json!({"ambient": effective}));
    }
    Ok(())
}

fn seccomp(
    linux: &LinuxInfo,
    profiles: Option<&Path>,
    out: &mut Map<String, Value>,
) -> Result<(), String> {
    let Some(seccomp) = &linux.seccomp else {
        return Ok(());
    };
    let option = match (&seccomp.profile_name, seccomp.unconfined()) {
        (Some(_), true) => {
            return Err(
                "linux_info.seccomp: has a profile_name and is unconfined; use one".to_owned(),
            );
        }
        (None, false) => return Ok(()),
        (None, true) => "seccomp=unconfined".to_owned(),
        (Some(name), false) => {
            let at = |why: &str| Err(format!("linux_info.seccomp.profile_name: {name:?}: {why}"));
            if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
                return at("is not the name of a file");
            }
            match profiles {
                Some(folder) => format!("seccomp={}", folder.join(name).display()),
                None => {
                    return at(
                        "the executor has no folder of profiles; give it one with --seccomp-profiles",
                    );
                }
            }
        }
    };
    out.insert("security_opt".to_owned(), json!([option]));
    Ok(())
}

fn sharing(linux: &LinuxInfo, out: &mut Map<String, Value>) -> Result<(), String> {
    if linux.share_pid_namespace() {
        out.insert("pid".to_owned(), json!("host"));
    }
    let mode = linux.ipc_mode.map(linux_info::IpcMode::try_from);
    let megabytes = linux.shm_size.map(u64::from);
    match (mode, megabytes) {
        (Some(Ok(linux_info::IpcMode::ShareParent)), Some(_)) => {
            return Err("linux_info.shm_size: goes with ipc_mode PRIVATE only".to_owned());
        }
        (Some(Ok(linux_info::IpcMode::ShareParent)), None) => {
            out.insert("ipc".to_owned(), json!("host"));
        }
        (Some(Err(_)), _) => return Err("linux_info.ipc_mode: is not known".to_owned()),
        (_, Some(megabytes)) => {
            out.insert("shm_size".to_owned(), json!(megabytes << 20));
        }
        _ => {}
    }
    Ok(())
}

/// Name and bounds of one limit.
fn ulimit(rlimit: &r_limit_info::RLimit) -> Result<(String, Value), String> {
    let kind = rlimit.r#type.map(r_limit_info::r_limit::Type::try_from);
    let name = match kind {
        Some(Ok(kind)) if kind != r_limit_info::r_limit::Type::Unknown => {
            kind.name().trim_start_matches("RLMT_").to_lowercase()
        }
        _ => return Err("type: is not known".to_owned()),
    };
    let bound = |value: u64| i64::try_from(value).map_err(|_| format!("{value} is too large"));
    match (rlimit.soft, rlimit.hard) {
        (None, None) => Ok((name, json!({"soft": -1, "hard": -1}))),
        (Some(soft), Some(hard)) if soft <= hard => {
            Ok((name, json!({"soft": bound(soft)?, "hard": bound(hard)?})))
        }
        (Some(soft), Some(hard)) => Err(format!("soft {soft} is above hard {hard}")),
        _ => Err("needs both soft and hard, or none of them for no limit".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mesos::task::tests::task;

    fn found(container: Value) -> Result<Value, String> {
        let mut whole = json!({"type": "MESOS"});
        for (key, value) in container.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let container: ContainerInfo = serde_json::from_value(whole).unwrap();
        let profiles = Some(Path::new("/etc/profiles"));
        settings(&task(json!({})), &container, profiles)
            .map(Value::Object)
            .map_err(|e| e.message)
    }

    #[test]
    fn settings_of_linux() {
        let caps = |list: &[&str]| json!({"capabilities": list});
        let table = [
            (json!({}), json!({})),
            (
                json!({"linux_info": {"bounding_capabilities": caps(&["NET_RAW"])}}),
                json!({"cap_drop": ["ALL"], "cap_add": ["NET_RAW"]}),
            ),
            (
                json!({"linux_info": {"effective_capabilities": caps(&[]), "bounding_capabilities": caps(&["NET_RAW"])}}),
                json!({"cap_drop": ["ALL"], "cap_add": [], "x-sampan": {"ambient": []}}),
            ),
            (
                json!({"linux_info": {"capability_info": caps(&["SYS_TIME", "BPF"])}}),
                json!({"cap_drop": ["ALL"], "cap_add": ["SYS_TIME", "BPF"], "x-sampan": {"ambient": ["SYS_TIME", "BPF"]}}),
            ),
            (
                json!({"linux_info": {"seccomp": {"profile_name": "web.json"}, "share_pid_namespace": true, "ipc_mode": "SHARE_PARENT"}}),
                json!({"security_opt": ["seccomp=/etc/profiles/web.json"], "pid": "host", "ipc": "host"}),
            ),
            (
                json!({"linux_info": {"seccomp": {"unconfined": true}, "ipc_mode": "PRIVATE", "shm_size": 128}}),
                json!({"security_opt": ["seccomp=unconfined"], "shm_size": 128 << 20}),
            ),
            (
                json!({"rlimit_info": {"rlimits": [{"type": "RLMT_NOFILE", "soft": 10, "hard": 20}, {"type": "RLMT_CORE"}]}, "tty_info": {}}),
                json!({"ulimits": {"nofile": {"soft": 10, "hard": 20}, "core": {"soft": -1, "hard": -1}}, "tty": true, "stdin_open": true}),
            ),
        ];
        for (given, expected) in table {
            assert_eq!(found(given.clone()), Ok(expected), "{given}");
        }
    }

    #[test]
    fn what_is_refused() {
        let table = [
            (
                json!({"linux_info": {"effective_capabilities": {"capabilities": ["NET_RAW"]}, "bounding_capabilities": {"capabilities": []}}}),
                "linux_info.effective_capabilities: NET_RAW is not among the bounding_capabilities",
            ),
            (
                json!({"linux_info": {"seccomp": {"profile_name": "../x"}}}),
                "linux_info.seccomp.profile_name: \"../x\": is not the name of a file",
            ),
            (
                json!({"linux_info": {"ipc_mode": "SHARE_PARENT", "shm_size": 1}}),
                "linux_info.shm_size: goes with ipc_mode PRIVATE only",
            ),
            (
                json!({"rlimit_info": {"rlimits": [{"type": "RLMT_AS", "soft": 1}]}}),
                "rlimit_info.rlimits[0]: needs both soft and hard, or none of them for no limit",
            ),
            (
                json!({"rlimit_info": {"rlimits": [{"soft": 1, "hard": 2}]}}),
                "rlimit_info.rlimits[0]: type: is not known",
            ),
        ];
        for (given, expected) in table {
            let expected = Err(format!("task t: container.{expected}"));
            assert_eq!(found(given.clone()), expected, "{given}");
        }
    }
}
