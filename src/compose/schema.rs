//! Phase 3: is every key known, and has its value a possible shape?
//!
//! The tables below are the whole of what Sampan reads. A key that compose knows and Sampan does not do yet is
//! refused with its place, never skipped: a service that runs without what its file asks for is worse than one that
//! does not start. An unknown key is refused with the nearest known one. `x-*` is free everywhere.
//!
//! *Invariants.* Values marked `!reset` are not looked at. Every finding of a file is reported, at most
//! [`MAX_FINDINGS`]. What a text means (a size, a port) is judged by the phases after this one.

use super::Error;
use super::node::{At, Node, Result, Tag, Value, join};
use super::units::nearest;

/// Most findings that one message lists.
const MAX_FINDINGS: usize = 20;

/// The shape of a value. Empty (null) passes everywhere but where something is needed to go on.
enum Kind {
    /// Any single value.
    Scalar,
    List(&'static Kind),
    /// Fixed keys.
    Map(&'static [(&'static str, Rule)]),
    /// Free keys.
    Dict(&'static Kind),
    /// Free keys that are names of services, networks or volumes; no value may be missing when `true`.
    Named(&'static Kind, bool),
    /// One of several shapes: at most one of each of single value, list, mapping.
    Either(&'static [Kind]),
    Anything,
}

/// What happens to a key.
enum Rule {
    Is(Kind),
    /// Valid compose, not done here; the text says what to do instead.
    Refused(&'static str),
    /// Has no meaning on one machine; a warning says so.
    Ignored(&'static str),
}

use Kind::{Anything, Dict, Either, List, Map, Named, Scalar};
use Rule::{Ignored, Is, Refused};

const LATER: &str = "remove it for now";
const SWARM: &str = "it has a meaning in a cluster of docker engines only";

const LIST: Kind = List(&Scalar);
const ONE_OR_LIST: Kind = Either(&[Scalar, LIST]);
const LIST_OR_DICT: Kind = Either(&[LIST, Dict(&Scalar)]);

const TOP: &[(&str, Rule)] = &[
    ("name", Is(Scalar)),
    ("version", Ignored("it is obsolete")),
    ("services", Is(Named(&Map(SERVICE), true))),
    ("networks", Is(Named(&Map(NETWORK), false))),
    ("volumes", Is(Named(&Map(VOLUME), false))),
    ("configs", Is(Named(&Map(CONTENT), true))),
    ("secrets", Is(Named(&Map(CONTENT), true))),
    ("include", Refused("name the files with several -f")),
    ("models", Refused(LATER)),
    ("x-sampan", Is(Map(POD))),
];

const POD: &[(&str, Rule)] = &[
    ("limits", Is(Map(POD_LIMITS))),
    ("hooks", Is(List(&Map(HOOK)))),
    ("logs", Is(List(&Map(LOG_SINK)))),
];

const LOG_SINK: &[(&str, Rule)] = &[
    ("beneath", Is(Scalar)),
    ("file", Is(Scalar)),
    ("stdout", Is(Scalar)),
    ("stderr", Is(Scalar)),
    ("format", Is(Scalar)),
    ("labels", Is(LIST)),
    ("max_size", Is(Scalar)),
    ("max_file", Is(Scalar)),
];

const HOOK: &[(&str, Rule)] = &[
    ("name", Is(Scalar)),
    ("at", Is(ONE_OR_LIST)),
    ("command", Is(ONE_OR_LIST)),
    ("timeout", Is(Scalar)),
    ("on_failure", Is(Scalar)),
    ("env", Is(LIST_OR_DICT)),
];

const POD_LIMITS: &[(&str, Rule)] = &[
    ("cpus", Is(Scalar)),
    ("cpu_shares", Is(Scalar)),
    ("cpuset", Is(Scalar)),
    ("memory", Is(Scalar)),
    ("memory_reservation", Is(Scalar)),
    ("memory_swap", Is(Scalar)),
    ("pids", Is(Scalar)),
];

const SERVICE: &[(&str, Rule)] = &[
    ("annotations", Refused("use labels")),
    ("attach", Refused(LATER)),
    ("blkio_config", Is(Map(BLKIO))),
    (
        "build",
        Refused("build the image first and name it with image"),
    ),
    ("cap_add", Is(LIST)),
    ("cap_drop", Is(LIST)),
    ("cgroup", Refused(LATER)),
    (
        "cgroup_parent",
        Refused("the pod's cgroup is chosen on the command line"),
    ),
    ("command", Is(ONE_OR_LIST)),
    ("configs", Is(CONTENTS)),
    ("container_name", Is(Scalar)),
    ("cpu_count", Refused("use cpus")),
    ("cpu_percent", Refused("use cpus")),
    ("cpu_period", Is(Scalar)),
    ("cpu_quota", Is(Scalar)),
    ("cpu_rt_period", Refused(LATER)),
    ("cpu_rt_runtime", Refused(LATER)),
    ("cpu_shares", Is(Scalar)),
    ("cpus", Is(Scalar)),
    ("cpuset", Is(Scalar)),
    ("credential_spec", Refused(LATER)),
    ("depends_on", Is(Either(&[LIST, Dict(&Map(DEPENDENCY))]))),
    ("deploy", Is(Map(DEPLOY))),
    ("develop", Refused(LATER)),
    (
        "device_cgroup_rules",
        Refused("name the devices below devices"),
    ),
    ("devices", Is(List(&Either(&[Scalar, Map(DEVICE)])))),
    ("dns", Is(ONE_OR_LIST)),
    ("dns_opt", Is(LIST)),
    ("dns_search", Is(ONE_OR_LIST)),
    ("domainname", Is(Scalar)),
    ("entrypoint", Is(ONE_OR_LIST)),
    (
        "env_file",
        Is(Either(&[Scalar, List(&Either(&[Scalar, Map(ENV_FILE)]))])),
    ),
    ("environment", Is(LIST_OR_DICT)),
    ("expose", Is(LIST)),
    (
        "extends",
        Is(Either(&[
            Scalar,
            Map(&[("file", Is(Scalar)), ("service", Is(Scalar))]),
        ])),
    ),
    ("external_links", Refused(LATER)),
    ("extra_hosts", Is(Either(&[LIST, Dict(&ONE_OR_LIST)]))),
    ("gpus", Refused(LATER)),
    ("group_add", Is(LIST)),
    ("healthcheck", Is(Map(HEALTHCHECK))),
    ("hostname", Is(Scalar)),
    ("image", Is(Scalar)),
    ("init", Is(Scalar)),
    (
        "interface_name",
        Refused("it belongs below a network of the service"),
    ),
    ("ipc", Is(Scalar)),
    ("isolation", Refused(LATER)),
    ("label_file", Refused("use labels")),
    ("labels", Is(LIST_OR_DICT)),
    ("links", Is(LIST)),
    ("logging", Is(Map(LOGGING))),
    (
        "mac_address",
        Refused("write it below a network of the service"),
    ),
    ("mem_limit", Is(Scalar)),
    ("mem_reservation", Is(Scalar)),
    ("mem_swappiness", Refused(LATER)),
    ("memswap_limit", Is(Scalar)),
    ("models", Refused(LATER)),
    ("network_mode", Is(Scalar)),
    ("networks", Is(Either(&[LIST, Dict(&Map(SERVICE_NETWORK))]))),
    ("oom_kill_disable", Refused(LATER)),
    ("oom_score_adj", Is(Scalar)),
    ("pid", Is(Scalar)),
    ("pids_limit", Is(Scalar)),
    ("platform", Is(Scalar)),
    ("ports", Is(List(&Either(&[Scalar, Map(PORT)])))),
    ("post_start", Is(List(&Map(LIFECYCLE_HOOK)))),
    ("pre_start", Refused(LATER)),
    ("pre_stop", Is(List(&Map(LIFECYCLE_HOOK)))),
    ("privileged", Is(Scalar)),
    ("profiles", Is(LIST)),
    ("provider", Refused(LATER)),
    ("pull_policy", Is(Scalar)),
    ("read_only", Is(Scalar)),
    ("restart", Is(Scalar)),
    ("runtime", Refused(LATER)),
    ("scale", Is(Scalar)),
    ("secrets", Is(CONTENTS)),
    ("security_opt", Is(LIST)),
    ("shm_size", Is(Scalar)),
    ("stdin_open", Is(Scalar)),
    ("stop_grace_period", Is(Scalar)),
    ("stop_signal", Is(Scalar)),
    ("storage_opt", Refused(LATER)),
    ("sysctls", Is(LIST_OR_DICT)),
    ("tmpfs", Is(ONE_OR_LIST)),
    ("tty", Is(Scalar)),
    ("ulimits", Is(Dict(&Either(&[Scalar, Map(ULIMIT)])))),
    ("use_api_socket", Refused("there is no engine to talk to")),
    ("user", Is(Scalar)),
    ("userns_mode", Refused(LATER)),
    ("uts", Refused(LATER)),
    ("volumes", Is(List(&Either(&[Scalar, Map(MOUNT)])))),
    ("volumes_from", Is(LIST)),
    ("working_dir", Is(Scalar)),
    ("x-sampan", Is(Map(SERVICE_EXTRA))),
];

const SERVICE_EXTRA: &[(&str, Rule)] = &[
    ("address_variable", Is(Scalar)),
    ("ambient", Is(LIST)),
    ("arguments", Is(LIST)),
    (
        "checks",
        Is(Either(&[List(&Map(CHECK)), Named(&Map(CHECK), true)])),
    ),
    ("default_working_dir", Is(Scalar)),
    ("logs", Is(List(&Map(LOG_SINK)))),
    ("rootfs", Is(Scalar)),
];

const CHECK: &[(&str, Rule)] = &[
    ("name", Is(Scalar)),
    ("kind", Is(Scalar)),
    ("command", Is(ONE_OR_LIST)),
    ("http", Is(Map(CHECK_HTTP))),
    ("tcp", Is(Map(CHECK_TCP))),
    ("delay", Is(Scalar)),
    ("interval", Is(Scalar)),
    ("start_interval", Is(Scalar)),
    ("timeout", Is(Scalar)),
    ("grace_period", Is(Scalar)),
    ("consecutive_failures", Is(Scalar)),
    ("success_threshold", Is(Scalar)),
    ("snooze", Is(Scalar)),
];

const CHECK_HTTP: &[(&str, Rule)] = &[
    ("port", Is(Scalar)),
    ("path", Is(Scalar)),
    ("scheme", Is(Scalar)),
    ("protocol", Is(Scalar)),
    ("host", Is(Scalar)),
    ("statuses", Is(LIST)),
    ("headers", Is(LIST_OR_DICT)),
];

const CHECK_TCP: &[(&str, Rule)] = &[
    ("port", Is(Scalar)),
    ("protocol", Is(Scalar)),
    ("host", Is(Scalar)),
];

/// What a service takes of `configs` or `secrets`.
const CONTENTS: Kind = List(&Either(&[Scalar, Map(CONTENT_OF_SERVICE)]));

const CONTENT_OF_SERVICE: &[(&str, Rule)] = &[
    ("gid", Is(Scalar)),
    ("mode", Is(Scalar)),
    ("source", Is(Scalar)),
    ("target", Is(Scalar)),
    ("uid", Is(Scalar)),
];

/// An entry of `configs` or `secrets`.
const CONTENT: &[(&str, Rule)] = &[
    ("content", Is(Scalar)),
    (
        "driver",
        Refused("there is no store of secrets; name a file"),
    ),
    (
        "driver_opts",
        Refused("there is no store of secrets; name a file"),
    ),
    ("environment", Is(Scalar)),
    (
        "external",
        Refused("there is no store of them; name a file"),
    ),
    ("file", Is(Scalar)),
    ("labels", Ignored("nothing shows them")),
    (
        "name",
        Ignored("only those that are kept somewhere have a name"),
    ),
    ("template_driver", Refused("write the content out")),
];

const LOGGING: &[(&str, Rule)] = &[("driver", Is(Scalar)), ("options", Is(Dict(&Scalar)))];

const LIFECYCLE_HOOK: &[(&str, Rule)] = &[
    ("command", Is(ONE_OR_LIST)),
    ("environment", Is(LIST_OR_DICT)),
    ("privileged", Is(Scalar)),
    ("user", Is(Scalar)),
    ("working_dir", Is(Scalar)),
];

const BLKIO: &[(&str, Rule)] = &[
    ("weight", Is(Scalar)),
    ("weight_device", Refused(LATER)),
    ("device_read_bps", Is(List(&Map(RATE)))),
    ("device_write_bps", Is(List(&Map(RATE)))),
    ("device_read_iops", Is(List(&Map(RATE)))),
    ("device_write_iops", Is(List(&Map(RATE)))),
];

const RATE: &[(&str, Rule)] = &[("path", Is(Scalar)), ("rate", Is(Scalar))];

const DEPENDENCY: &[(&str, Rule)] = &[
    ("condition", Is(Scalar)),
    ("required", Is(Scalar)),
    ("restart", Is(Scalar)),
];

const DEPLOY: &[(&str, Rule)] = &[
    ("mode", Is(Scalar)),
    ("replicas", Is(Scalar)),
    ("resources", Is(Map(RESOURCES))),
    ("restart_policy", Is(Map(RESTART_POLICY))),
    ("endpoint_mode", Ignored(SWARM)),
    ("labels", Ignored(SWARM)),
    ("placement", Ignored(SWARM)),
    ("rollback_config", Ignored(SWARM)),
    ("update_config", Ignored(SWARM)),
];

const RESOURCES: &[(&str, Rule)] = &[
    ("limits", Is(Map(DEPLOY_LIMITS))),
    ("reservations", Is(Map(RESERVATIONS))),
];

const DEPLOY_LIMITS: &[(&str, Rule)] = &[
    ("cpus", Is(Scalar)),
    ("memory", Is(Scalar)),
    ("pids", Is(Scalar)),
];

const RESERVATIONS: &[(&str, Rule)] = &[
    ("cpus", Ignored("no cpu time is set aside; use cpu_shares")),
    ("memory", Is(Scalar)),
    ("devices", Refused("use devices of the service")),
    ("generic_resources", Ignored(SWARM)),
];

const RESTART_POLICY: &[(&str, Rule)] = &[
    ("condition", Is(Scalar)),
    ("max_attempts", Is(Scalar)),
    (
        "delay",
        Ignored("the time between restarts grows by itself"),
    ),
    (
        "window",
        Ignored("the time between restarts grows by itself"),
    ),
];

const DEVICE: &[(&str, Rule)] = &[
    ("source", Is(Scalar)),
    ("target", Is(Scalar)),
    ("permissions", Is(Scalar)),
];

const ENV_FILE: &[(&str, Rule)] = &[
    ("path", Is(Scalar)),
    ("required", Is(Scalar)),
    ("format", Is(Scalar)),
];

const HEALTHCHECK: &[(&str, Rule)] = &[
    ("disable", Is(Scalar)),
    ("interval", Is(Scalar)),
    ("retries", Is(Scalar)),
    ("start_interval", Is(Scalar)),
    ("start_period", Is(Scalar)),
    ("test", Is(ONE_OR_LIST)),
    ("timeout", Is(Scalar)),
];

const SERVICE_NETWORK: &[(&str, Rule)] = &[
    ("aliases", Is(LIST)),
    ("driver_opts", Is(Map(ENDPOINT_OPTS))),
    ("gw_priority", Is(Scalar)),
    ("interface_name", Is(Scalar)),
    ("ipv4_address", Is(Scalar)),
    ("ipv6_address", Is(Scalar)),
    ("link_local_ips", Is(LIST)),
    ("mac_address", Is(Scalar)),
    (
        "priority",
        Ignored("networks are attached in the order of the file"),
    ),
];

const ENDPOINT_OPTS: &[(&str, Rule)] = &[("com.docker.network.endpoint.sysctls", Is(Scalar))];

const PORT: &[(&str, Rule)] = &[
    ("app_protocol", Is(Scalar)),
    ("host_ip", Is(Scalar)),
    ("mode", Is(Scalar)),
    ("name", Is(Scalar)),
    ("protocol", Is(Scalar)),
    ("published", Is(Scalar)),
    ("target", Is(Scalar)),
    ("x-sampan", Is(Map(PORT_EXTRA))),
];

const PORT_EXTRA: &[(&str, Rule)] = &[("network", Is(Scalar))];

const ULIMIT: &[(&str, Rule)] = &[("soft", Is(Scalar)), ("hard", Is(Scalar))];

const MOUNT: &[(&str, Rule)] = &[
    ("bind", Is(Map(BIND))),
    ("consistency", Is(Scalar)),
    ("image", Refused(LATER)),
    ("read_only", Is(Scalar)),
    ("source", Is(Scalar)),
    ("target", Is(Scalar)),
    ("tmpfs", Is(Map(TMPFS))),
    ("type", Is(Scalar)),
    ("volume", Is(Map(MOUNT_VOLUME))),
];

const BIND: &[(&str, Rule)] = &[
    ("create_host_path", Is(Scalar)),
    ("propagation", Is(Scalar)),
    ("recursive", Is(Scalar)),
    ("selinux", Is(Scalar)),
];

const TMPFS: &[(&str, Rule)] = &[("mode", Is(Scalar)), ("size", Is(Scalar))];

const MOUNT_VOLUME: &[(&str, Rule)] = &[
    ("labels", Refused("write them below the volume")),
    ("nocopy", Is(Scalar)),
    ("subpath", Is(Scalar)),
];

const EXTERNAL: Kind = Either(&[Scalar, Map(&[("name", Is(Scalar))])]);

const NETWORK: &[(&str, Rule)] = &[
    (
        "attachable",
        Ignored("containers outside the pod cannot join"),
    ),
    ("driver", Is(Scalar)),
    ("driver_opts", Is(Dict(&Scalar))),
    ("enable_ipv4", Is(Scalar)),
    ("enable_ipv6", Is(Scalar)),
    ("external", Is(EXTERNAL)),
    ("internal", Is(Scalar)),
    ("ipam", Is(Map(IPAM))),
    ("labels", Is(LIST_OR_DICT)),
    ("name", Is(Scalar)),
    ("x-sampan", Is(Map(NETWORK_EXTRA))),
];

const NETWORK_EXTRA: &[(&str, Rule)] = &[
    ("capabilities", Is(Dict(&Anything))),
    ("cni_args", Is(Dict(&Scalar))),
    ("config", Is(Dict(&Anything))),
    ("default", Is(Scalar)),
    ("groups", Is(LIST)),
    ("labels", Is(Dict(&Scalar))),
    ("plugins", Is(List(&Dict(&Anything)))),
    ("routes", Is(List(&Map(ROUTE)))),
];

const ROUTE: &[(&str, Rule)] = &[("dst", Is(Scalar)), ("gw", Is(Scalar))];

const IPAM: &[(&str, Rule)] = &[
    ("config", Is(List(&Map(POOL)))),
    ("driver", Is(Scalar)),
    ("options", Is(Dict(&Scalar))),
];

const POOL: &[(&str, Rule)] = &[
    ("aux_addresses", Is(Dict(&Scalar))),
    ("gateway", Is(Scalar)),
    ("ip_range", Is(Scalar)),
    ("subnet", Is(Scalar)),
];

const VOLUME: &[(&str, Rule)] = &[
    ("driver", Is(Scalar)),
    ("driver_opts", Is(Dict(&Anything))),
    ("external", Is(EXTERNAL)),
    ("labels", Is(LIST_OR_DICT)),
    ("name", Is(Scalar)),
];

/// Checks one document; warnings are added to `warnings`.
pub(super) fn validate(node: &Node, warnings: &mut Vec<String>) -> Result<()> {
    whole(node, &Map(TOP), "a compose file", warnings)
}

/// Checks a file of a folder of hooks.
pub(super) fn validate_hook(node: &Node) -> Result<()> {
    // nothing in a hook is ignored
    whole(node, &Map(HOOK), "a hook", &mut Vec::new())
}

fn whole(node: &Node, kind: &Kind, what: &str, warnings: &mut Vec<String>) -> Result<()> {
    let mut check = Check {
        findings: Vec::new(),
        warnings,
    };
    match &node.value {
        Value::Map(_) => check.node(node, kind, ""),
        _ => check.find(node.pos.error(
            "",
            format_args!("{what} must be a mapping, not {}", node.shape()),
        )),
    }
    match check.findings.is_empty() {
        true => Ok(()),
        false => Err(Error {
            message: check.findings.join("\n"),
        }),
    }
}

struct Check<'a> {
    findings: Vec<String>,
    warnings: &'a mut Vec<String>,
}

impl Check<'_> {
    fn find(&mut self, error: Error) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(error.message);
        }
    }

    fn node(&mut self, node: &Node, kind: &Kind, path: &str) {
        if node.tag == Tag::Reset || self.findings.len() >= MAX_FINDINGS {
            return;
        }
        match (kind, &node.value) {
            (Anything, _) => {}
            (Scalar, Value::Scalar { .. }) => {}
            (List(kind), Value::Seq(items)) => {
                for (i, item) in items.iter().enumerate() {
                    self.item(item, kind, &format!("{path}[{i}]"));
                }
            }
            (Map(table), Value::Map(_)) => self.fields(node, table, path),
            (Dict(kind), Value::Map(entries)) => {
                entries
                    .iter()
                    .for_each(|e| self.node(&e.value, kind, &join(path, &e.key)));
            }
            (Named(kind, needed), Value::Map(_)) => self.named(node, kind, *needed, path),
            (Either(kinds), _) => match kinds.iter().find(|k| fits(k, &node.value)) {
                Some(kind) => self.node(node, kind, path),
                None if node.is_null() => {}
                None => self.mismatch(node, kind, path),
            },
            _ if node.is_null() => {}
            _ => self.mismatch(node, kind, path),
        }
    }

    /// An item of a list cannot be left empty.
    fn item(&mut self, node: &Node, kind: &Kind, path: &str) {
        match node.is_null() && node.tag != Tag::Reset {
            true => self.find(
                node.pos
                    .error(path, "an item is empty; remove it or put it in quotes"),
            ),
            false => self.node(node, kind, path),
        }
    }

    fn mismatch(&mut self, node: &Node, kind: &Kind, path: &str) {
        self.find(node.pos.error(
            path,
            format_args!("must be {}, not {}", name(kind), node.shape()),
        ));
    }

    fn fields(&mut self, node: &Node, table: &[(&str, Rule)], path: &str) {
        let Value::Map(entries) = &node.value else {
            return;
        };
        for entry in entries {
            let below = join(path, &entry.key);
            match table
                .iter()
                .find(|(key, _)| *key == entry.key)
                .map(|(_, rule)| rule)
            {
                Some(Is(kind)) => self.node(&entry.value, kind, &below),
                Some(Refused(_) | Ignored(_)) if entry.value.tag == Tag::Reset => {}
                Some(Refused(remedy)) => {
                    self.find(
                        entry
                            .pos
                            .error(&below, format_args!("not supported yet; {remedy}")),
                    );
                }
                Some(Ignored(why)) => {
                    self.warnings.push(
                        entry
                            .pos
                            .error(&below, format_args!("ignored: {why}"))
                            .message,
                    );
                }
                None if entry.key.starts_with("x-") => {}
                None => self.find(entry.pos.error(&below, unknown(&entry.key, table))),
            }
        }
    }

    fn named(&mut self, node: &Node, kind: &Kind, needed: bool, path: &str) {
        let Value::Map(entries) = &node.value else {
            return;
        };
        for entry in entries {
            let below = join(path, &entry.key);
            if !is_name(&entry.key) {
                let what =
                    "not a name; use letters, digits, '.', '_' and '-', a letter or digit first";
                self.find(entry.pos.error(&below, what));
            } else if needed && entry.value.is_null() && entry.value.tag != Tag::Reset {
                self.find(entry.pos.error(&below, "must be a mapping, not empty"));
            } else {
                self.node(&entry.value, kind, &below);
            }
        }
    }
}

fn fits(kind: &Kind, value: &Value) -> bool {
    matches!(
        (kind, value),
        (Scalar, Value::Scalar { .. })
            | (List(_), Value::Seq(_))
            | (Map(_) | Dict(_) | Named(..), Value::Map(_))
            | (Anything, _)
    )
}

fn name(kind: &Kind) -> String {
    match kind {
        Scalar => "a single value".to_owned(),
        List(_) => "a list".to_owned(),
        Map(_) | Dict(_) | Named(..) => "a mapping".to_owned(),
        Either(kinds) => kinds.iter().map(name).collect::<Vec<_>>().join(" or "),
        Anything => "anything".to_owned(),
    }
}

/// So many keys are listed.
const FEW: usize = 12;

fn unknown(key: &str, table: &[(&str, Rule)]) -> String {
    match nearest(key, table.iter().map(|(key, _)| *key)) {
        Some(near) => format!("unknown key; did you mean {near}?"),
        None if table.len() <= FEW => {
            let known: Vec<&str> = table.iter().map(|(key, _)| *key).collect();
            format!("unknown key; there are {}", known.join(", "))
        }
        None => {
            "unknown key; remove it, or begin it with x- when another program reads it".to_owned()
        }
    }
}

/// What services, networks, volumes and containers may be called.
pub fn is_name(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// A name that a value holds.
pub(super) fn name_at(at: &At<'_>) -> Result<String> {
    let name = at.string()?;
    match is_name(&name) {
        true => Ok(name),
        false => Err(at.error(format_args!(
            "{name:?} is not a name; use letters, digits, '.', '_' and '-'"
        ))),
    }
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
