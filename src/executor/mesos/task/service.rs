//! A task as one service of a compose file.
//!
//! *Invariants:* the file that is made here is loaded like any other, so whatever is wrong with it is an error of the task; texts of the
//! task are not interpolated.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::networks::{Networks, key as network_key};
use super::source::Source;
use super::{Draft, GRACE, Invalid, Surroundings, command, docker, extend, linux, volumes};
use crate::compose::project::{Mount, MountSource, Origin};
use crate::compose::{LoadRequest, Loaded, load_texts};
use crate::executor::mesos::proto::{TaskInfo, container_info};

/// Name of the file that is made, for messages.
const FILE: &str = "the task";
/// Name of the text of the label, for messages.
const OVERRIDE: &str = "sampan.override";
/// Mode of a file with a secret.
const SECRET_MODE: u32 = 0o400;

/// Name of a task's service: the task's own where it can be one, and is not taken.
pub fn name(task: &TaskInfo, taken: &BTreeSet<String>) -> String {
    /// As a host name may be long (RFC 1035), with room for a number.
    const LONGEST: usize = 56;
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    let start = |c: char| !c.is_ascii_alphanumeric();
    let name: String = task
        .name
        .trim_start_matches(start)
        .chars()
        .map(plain)
        .take(LONGEST)
        .collect();
    let name = if name.is_empty() {
        "task".to_owned()
    } else {
        name
    };
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let mut all = std::iter::once(name.clone()).chain(numbered);
    all.find(|name| !taken.contains(name)).unwrap_or(name)
}

/// Writes tasks as a compose file, and loads it.
///
/// # Errors
/// For what is wrong with a task.
pub fn load(
    drafts: &[Draft<'_>],
    names: &[String],
    pod: &str,
    networks: &Networks,
    around: &Surroundings,
) -> Result<Loaded, Invalid> {
    let mut services = Map::new();
    let mut secrets = Vec::new();
    for (draft, name) in drafts.iter().zip(names) {
        let (service, files) = service(draft, networks, around)?;
        services.insert(name.clone(), Value::Object(service));
        secrets.push(files);
    }
    let mut file = Map::new();
    file.insert("services".to_owned(), Value::Object(services));
    file.insert("networks".to_owned(), Value::Object(networks.at_top()));
    let text = escaped(Value::Object(file)).to_string();
    let overs = drafts.iter().filter_map(|draft| draft.options.over.clone());
    let overs = overs
        .enumerate()
        .map(|(i, text)| (format!("{OVERRIDE} {i}"), text));
    let texts: Vec<(String, String)> = std::iter::once((FILE.to_owned(), text))
        .chain(overs)
        .collect();
    let request = LoadRequest {
        files: texts.iter().map(|(name, _)| PathBuf::from(name)).collect(),
        working_dir: around.sandbox.clone(),
        project_name: Some(pod.to_owned()),
        environment: drafts
            .iter()
            .flat_map(|draft| super::interpolation(draft, around))
            .collect(),
        // a file of that name in the sandbox is no business of ours
        env_files: vec![PathBuf::from("/dev/null")],
        profiles: Vec::new(),
    };
    let error = |error: crate::compose::Error| match drafts.first() {
        Some(draft) => Invalid::of(draft.task, without_place(&error.message)),
        None => Invalid::group("the group has no task"),
    };
    let mut loaded = load_texts(&texts, &request).map_err(error)?;
    loaded.project.files.clear();
    for (name, files) in names.iter().zip(secrets) {
        let Some(service) = loaded.project.services.get_mut(name) else {
            continue;
        };
        let mounts = files.into_iter().map(|(target, content)| Mount {
            origin: service.origin.clone(),
            target,
            source: MountSource::File {
                content,
                uid: None,
                gid: None,
                mode: SECRET_MODE,
            },
            read_only: true,
        });
        service.volumes.extend(mounts.collect::<Vec<_>>());
    }
    for service in loaded.project.services.values_mut() {
        service.origin = Origin {
            file: FILE.to_owned(),
            line: 0,
        };
    }
    Ok(loaded)
}

/// A message without the place in a file that nobody has.
fn without_place(message: &str) -> String {
    let lines = message.lines().map(|line| {
        let rest = line
            .strip_prefix(FILE)
            .and_then(|rest| rest.strip_prefix(':'));
        rest.and_then(|rest| rest.split_once(": "))
            .map_or(line, |(_, rest)| rest)
    });
    lines.collect::<Vec<_>>().join("; ")
}

/// `$` is written twice where nothing is to be replaced.
fn escaped(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace('$', "$$")),
        Value::Array(items) => items.into_iter().map(escaped).collect(),
        Value::Object(map) => map.into_iter().map(|(k, v)| (k, escaped(v))).collect(),
        other => other,
    }
}

/// Files by path in the container.
type Secrets = Vec<(String, Vec<u8>)>;

/// The keys of a service, and the files with its secrets.
fn service(
    draft: &Draft<'_>,
    networks: &Networks,
    around: &Surroundings,
) -> Result<(Map<String, Value>, Secrets), Invalid> {
    let task = draft.task;
    let container = task.container.as_ref();
    let mut out = Map::new();
    let mut put = |more: Value| {
        if let Value::Object(more) = more {
            extend(&mut out, more);
        }
    };
    let (inside, line) = match &draft.source {
        Source::Image { image, kind, fresh } => {
            put(json!({"image": image, "x-sampan": {"default_working_dir": draft.sandbox.inside}}));
            if *fresh {
                put(json!({"pull_policy": "always"}));
            }
            // as there, something else is the first process: a program without handlers ends on SIGTERM
            if *kind == container_info::Type::Mesos {
                put(json!({"init": true}));
            }
            (command::In::Image(*kind), draft.options.command.as_deref())
        }
        _ => {
            // what the program finds there is the host's; what it may change is its sandbox and what goes with it
            put(json!({
                "working_dir": draft.sandbox.inside, "tmpfs": ["/tmp", "/var/tmp"], "init": true,
                "x-sampan": {"rootfs": "/"},
            }));
            (command::In::Host, draft.options.command.as_deref())
        }
    };
    put(Value::Object(command::program(
        task,
        task.command.as_ref(),
        line,
        inside,
    )?));
    if let Some(container) = container {
        let profiles = around.seccomp_profiles.as_deref();
        put(Value::Object(linux::settings(task, container, profiles)?));
        let docker = container.docker.as_ref().filter(|_| {
            container_info::Type::try_from(container.r#type) == Ok(container_info::Type::Docker)
        });
        if let Some(docker) = docker {
            put(Value::Object(docker::options(task, docker)?));
        }
        if let Some(hostname) = &container.hostname {
            if networks.on_host() {
                return Err(Invalid::of(
                    task,
                    "container.hostname: needs a network of the task's own; on the host's it has the host's name",
                ));
            }
            put(json!({"hostname": hostname}));
        }
    }
    if let Some(user) = user(draft, around) {
        put(json!({"user": user}));
    }
    let found = volumes::volumes(task, container, &draft.sandbox)?;
    let (key, joined) = networks.of_service();
    let ports = draft.mappings.iter().map(|mapping| {
        let mut port = json!({"target": mapping.container, "protocol": mapping.protocol});
        if mapping.host != 0 {
            port["published"] = json!(mapping.host.to_string());
        }
        if let Some(network) = mapping.network {
            port["x-sampan"] = json!({"network": network_key(network)});
        }
        port
    });
    let grace = task
        .kill_policy
        .as_ref()
        .and_then(|p| p.grace_period.as_ref());
    let grace = grace.map_or(GRACE.as_nanos() as i64, |d| d.nanoseconds.max(0));
    put(json!({
        key: joined, "ports": ports.collect::<Vec<_>>(), "volumes": found.mounts,
        "stop_grace_period": format!("{grace}ns"),
    }));
    Ok((out, found.files))
}

/// The task's user. The framework's is taken for a task without one, but where that is root the image's own user stays: nobody gets
/// more than the image means to have.
fn user(draft: &Draft<'_>, around: &Surroundings) -> Option<String> {
    let own = draft.task.command.as_ref().and_then(|c| c.user.clone());
    let framework = &around.framework.user;
    let theirs = || match (&draft.source, framework.as_str()) {
        (_, "") => None,
        (Source::Image { .. }, "root") => None,
        _ => Some(framework.clone()),
    };
    own.filter(|user| !user.is_empty()).or_else(theirs)
}
