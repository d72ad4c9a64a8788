//! `DockerInfo.parameters`: options of `docker run` → keys of a service.
//!
//! *Invariants:* an option that is not in the table is refused by its name; none is left out. Where an option takes several values in
//! one word it is taken as `docker run` takes it.

use serde_json::{Map, Value, json};

use super::{Invalid, extend};
use crate::executor::mesos::proto::{TaskInfo, container_info};

/// What an option becomes.
enum Kind {
    /// A key with one value.
    One(&'static str),
    /// A key with a list.
    Many(&'static str),
    /// A key with a switch; no value is `true`.
    Switch(&'static str),
    /// `name=value` below a key.
    Pair(&'static str),
    /// Nothing: it is so anyway.
    Anyway,
}

use Kind::{Anyway, Many, One, Pair, Switch};

/// Every option that is understood.
const OPTIONS: &[(&str, Kind)] = &[
    ("add-host", Many("extra_hosts")),
    ("cap-add", Many("cap_add")),
    ("cap-drop", Many("cap_drop")),
    ("cpu-shares", One("cpu_shares")),
    ("cpus", One("cpus")),
    ("cpuset-cpus", One("cpuset")),
    ("device", Many("devices")),
    ("dns", Many("dns")),
    ("dns-opt", Many("dns_opt")),
    ("dns-option", Many("dns_opt")),
    ("dns-search", Many("dns_search")),
    ("domainname", One("domainname")),
    ("entrypoint", Many("entrypoint")),
    ("env", Pair("environment")),
    ("group-add", Many("group_add")),
    ("hostname", One("hostname")),
    ("init", Switch("init")),
    ("ipc", One("ipc")),
    ("label", Pair("labels")),
    ("memory", One("mem_limit")),
    ("memory-reservation", One("mem_reservation")),
    ("memory-swap", One("memswap_limit")),
    ("oom-score-adj", One("oom_score_adj")),
    ("pid", One("pid")),
    ("pids-limit", One("pids_limit")),
    ("privileged", Switch("privileged")),
    ("read-only", Switch("read_only")),
    ("rm", Anyway),
    ("security-opt", Many("security_opt")),
    ("shm-size", One("shm_size")),
    ("stop-signal", One("stop_signal")),
    ("sysctl", Pair("sysctls")),
    ("tmpfs", Many("tmpfs")),
    ("user", One("user")),
    ("volume", Many("volumes")),
    ("workdir", One("working_dir")),
];

/// Short forms.
const SHORT: [(&str, &str); 7] = [
    ("c", "cpu-shares"),
    ("e", "env"),
    ("h", "hostname"),
    ("l", "label"),
    ("u", "user"),
    ("v", "volume"),
    ("w", "workdir"),
];

/// The keys.
///
/// # Errors
/// For an option that is not known, or a value that it cannot have.
pub fn options(
    task: &TaskInfo,
    docker: &container_info::DockerInfo,
) -> Result<Map<String, Value>, Invalid> {
    let mut out = Map::new();
    for (index, parameter) in docker.parameters.iter().enumerate() {
        let (name, value) = (&parameter.key, &parameter.value);
        let at = |why: &str| {
            let field = format!("container.docker.parameters[{index}]");
            Invalid::of(task, format_args!("{field}: {name}: {why}"))
        };
        let plain = name.trim_start_matches('-');
        let short = SHORT.iter().find(|(short, _)| *short == plain);
        let plain = short.map_or(plain, |(_, long)| long);
        let Some((_, kind)) = OPTIONS.iter().find(|(option, _)| *option == plain) else {
            return Err(at(
                "this option of docker run is not supported; see the documentation of the executor for those that are",
            ));
        };
        let more = match kind {
            Anyway => continue,
            One(key) if out.contains_key(*key) => return Err(at("is there twice; remove one")),
            One(key) => json!({*key: value}),
            Many(key) => json!({*key: [value]}),
            Switch(key) => match value.as_str() {
                "" | "true" => json!({*key: true}),
                "false" => json!({*key: false}),
                _ => return Err(at("is a switch: its value is true or false")),
            },
            Pair(key) => match value.split_once('=') {
                Some((name, value)) if !name.is_empty() => json!({*key: {name: value}}),
                _ => return Err(at("its value is not NAME=VALUE")),
            },
        };
        if let Value::Object(more) = more {
            extend(&mut out, more);
        }
    }
    if docker.privileged() {
        out.insert("privileged".to_owned(), json!(true));
    }
    if docker.volume_driver.is_some() {
        return Err(Invalid::of(
            task,
            "container.docker.volume_driver: drivers of volumes are not supported; mount a host path",
        ));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mesos::task::tests::task;

    #[test]
    fn options_of_docker_run() {
        let found = |given: &[(&str, &str)]| {
            let given: Vec<_> = given
                .iter()
                .map(|(key, value)| json!({"key": key, "value": value}))
                .collect();
            let docker = json!({"image": "i", "parameters": given});
            let docker = serde_json::from_value(docker).unwrap();
            options(&task(json!({})), &docker)
                .map(Value::Object)
                .map_err(|e| e.message)
        };
        let table = [
            (&[][..], Ok(json!({}))),
            (
                &[
                    ("env", "A=b=c"),
                    ("-e", "D="),
                    ("--cap-add", "NET_ADMIN"),
                    ("cap-add", "SYS_TIME"),
                    ("init", ""),
                    ("rm", "true"),
                    ("hostname", "h"),
                    ("sysctl", "net.core.somaxconn=1"),
                ],
                Ok(json!({
                    "environment": {"A": "b=c", "D": ""}, "cap_add": ["NET_ADMIN", "SYS_TIME"], "init": true, "hostname": "h",
                    "sysctls": {"net.core.somaxconn": "1"},
                })),
            ),
            (
                &[("log-driver", "syslog")],
                Err(
                    "[0]: log-driver: this option of docker run is not supported; see the documentation of the executor for those that are",
                ),
            ),
            (
                &[("env", "A=b"), ("env", "A")],
                Err("[1]: env: its value is not NAME=VALUE"),
            ),
            (
                &[("w", "/a"), ("workdir", "/b")],
                Err("[1]: workdir: is there twice; remove one"),
            ),
        ];
        for (given, expected) in table {
            let expected =
                expected.map_err(|why| format!("task t: container.docker.parameters{why}"));
            assert_eq!(found(given), expected, "{given:?}");
        }
    }
}
