//! Phase 6, one service: canonical tree → [`Service`].
//!
//! *Invariants.* Reads nothing but `env_file`s, through the context's reader; every value is checked for its meaning
//! here or in `mount`, `port`, `limits`, `network`. What concerns two services at once is left to `resolve`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::{Read, absolute};
use super::node::{At, Result};
use super::project::{
    Condition, Dependency, HealthTest, Healthcheck, PullPolicy, Restart, Service,
};
use super::{check, contents, dotenv, files, hooks, limits, logging, mount, network, port, schema};

/// Most ports of a project, ranges expanded.
const MAX_PORTS: usize = 65_536;

/// What the services of one load share.
pub(super) struct Context<'a> {
    pub working_dir: &'a Path,
    pub environment: &'a BTreeMap<String, String>,
    pub read: Read<'a>,
    pub warnings: Vec<String>,
    /// Ports read so far.
    pub ports: usize,
    /// Who holds them.
    pub taken: port::Taken,
    /// `configs` and `secrets` at the top.
    pub contents: contents::Contents,
}

impl<'a> Context<'a> {
    /// For a file that is no compose file: paths are below its folder, nothing comes from the surroundings.
    pub fn of_folder(folder: &'a Path) -> Context<'a> {
        static NOTHING: BTreeMap<String, String> = BTreeMap::new();
        Context {
            working_dir: folder,
            environment: &NOTHING,
            read: &files::from_disk,
            warnings: Vec::new(),
            ports: 0,
            taken: port::Taken::default(),
            contents: contents::Contents::default(),
        }
    }

    /// An absolute path of the host for one that a file names; `~` is the caller's home.
    pub fn host_path(&self, at: &At<'_>, text: &str) -> Result<PathBuf> {
        let path = match text.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => match self
                .environment
                .get("HOME")
            {
                Some(home) => Path::new(home).join(rest.trim_start_matches('/')),
                None => return Err(at.error(format_args!("{text:?} needs HOME, which is not set"))),
            },
            Some(_) => {
                return Err(at.error(format_args!(
                    "{text:?} names another user's home; write the path out"
                )));
            }
            None => PathBuf::from(text),
        };
        match text.is_empty() || text.contains('\0') {
            true => Err(at.error("a path is empty or holds a NUL byte")),
            false => Ok(absolute(self.working_dir, &path)),
        }
    }

    pub fn count_port(&mut self, at: &At<'_>) -> Result<()> {
        self.ports += 1;
        match self.ports > MAX_PORTS {
            true => Err(at.error(format_args!(
                "more than {MAX_PORTS} ports in one project; use smaller ranges"
            ))),
            false => Ok(()),
        }
    }
}

/// Reads one enabled service.
pub(super) fn service(name: &str, at: &At<'_>, context: &mut Context<'_>) -> Result<Service> {
    let (image, rootfs) = match (at.get("image"), at.find(&["x-sampan", "rootfs"])) {
        (Some(image), None) => (nonempty(&image)?, None),
        (None, Some(folder)) => (String::new(), Some(mount::container_path(&folder)?.into())),
        (Some(_), Some(folder)) => {
            return Err(folder.error("does not go together with image; remove one"));
        }
        (None, None) => {
            return Err(at
                .key_pos
                .error(&at.path, "has no image; name one with image:"));
        }
    };
    one_instance(at)?;
    platform(at)?;
    let (ports, expose) = port::ports(name, at, context)?;
    Ok(Service {
        name: name.to_owned(),
        origin: at.key_pos.origin(),
        image,
        rootfs,
        pull_policy: pull_policy(at)?,
        entrypoint: words(at, "entrypoint")?,
        command: words(at, "command")?,
        arguments: match at.get("x-sampan") {
            Some(extra) => words(&extra, "arguments")?,
            None => None,
        },
        environment: environment(at, context)?,
        working_dir: working_dir(at, "working_dir")?,
        default_working_dir: match at.get("x-sampan") {
            Some(extra) => working_dir(&extra, "default_working_dir")?,
            None => None,
        },
        user: optional(at, "user")?,
        group_add: at.strings_of("group_add")?,
        hostname: host_name(at, "hostname")?,
        domainname: host_name(at, "domainname")?,
        container_name: at
            .filled("container_name")
            .map(|at| schema::name_at(&at))
            .transpose()?,
        depends_on: dependencies(at)?,
        healthcheck: at
            .get("healthcheck")
            .map(|at| healthcheck(&at))
            .transpose()?,
        checks: check::of_service(at)?,
        ports,
        expose,
        networks: network::of_service(at)?,
        extra_hosts: extra_hosts(at)?,
        dns: dns(at)?,
        dns_search: at.strings_of("dns_search")?,
        dns_opt: at.strings_of("dns_opt")?,
        volumes: mount::mounts(at, context)?,
        volumes_from: mount::volumes_from(at)?,
        restart: restart(at)?,
        stop_signal: at
            .filled("stop_signal")
            .map(|at| stop_signal(&at))
            .transpose()?,
        stop_grace_period: duration(at, "stop_grace_period")?.unwrap_or(Duration::from_secs(10)),
        cap_add: capabilities(at, "cap_add")?,
        cap_drop: capabilities(at, "cap_drop")?,
        ambient: at
            .get("x-sampan")
            .map_or(Ok(Vec::new()), |at| capabilities(&at, "ambient"))?,
        host_pid: shares_host(at, "pid", &["host"])?,
        host_ipc: shares_host(at, "ipc", &["host", "private"])?,
        address_variable: address_variable(at)?,
        privileged: flag(at, "privileged")?,
        security_opt: security_opt(at, context)?,
        read_only: flag(at, "read_only")?,
        init: flag(at, "init")?,
        tty: flag(at, "tty")?,
        stdin_open: flag(at, "stdin_open")?,
        ulimits: limits::ulimits(at)?,
        sysctls: text_map(at, "sysctls")?,
        labels: text_map(at, "labels")?,
        devices: mount::devices(at)?,
        shm_size: at.get("shm_size").map(|at| at.bytes()).transpose()?,
        oom_score_adj: at
            .get("oom_score_adj")
            .map(|at| at.int_in(-1000, 1000))
            .transpose()?
            .map(|v| v as i32),
        limits: limits::of_service(at)?,
        logging: logging::of_service(at)?,
        logs: logging::sinks(at, context)?,
        profiles: at.strings_of("profiles")?,
        post_start: hooks::of_service(at, "post_start", context)?,
        pre_stop: hooks::of_service(at, "pre_stop", context)?,
    })
}

pub(super) fn optional(at: &At<'_>, key: &str) -> Result<Option<String>> {
    at.filled(key).map(|at| nonempty(&at)).transpose()
}

pub(super) fn nonempty(at: &At<'_>) -> Result<String> {
    let text = at.string()?;
    match text.is_empty() || text.contains('\0') {
        true => Err(at.error("must not be empty")),
        false => Ok(text),
    }
}

pub(super) fn flag(at: &At<'_>, key: &str) -> Result<bool> {
    at.get(key).map_or(Ok(false), |at| at.bool())
}

fn duration(at: &At<'_>, key: &str) -> Result<Option<Duration>> {
    at.get(key).map(|at| at.duration()).transpose()
}

pub(super) fn words(at: &At<'_>, key: &str) -> Result<Option<Vec<String>>> {
    let Some(at) = at.get(key) else {
        return Ok(None);
    };
    let words: Vec<String> = at.items()?.iter().map(At::string).collect::<Result<_>>()?;
    match words.iter().any(|w| w.contains('\0')) {
        true => Err(at.error("a word holds a NUL byte")),
        false => Ok(Some(words)),
    }
}

/// A mapping of texts; a key without value has an empty one.
pub(super) fn text_map(at: &At<'_>, key: &str) -> Result<BTreeMap<String, String>> {
    let entries = at.entries_of(key)?.into_iter();
    entries
        .map(|(k, v)| {
            Ok((
                k.to_owned(),
                if v.node.is_null() {
                    String::new()
                } else {
                    v.text()?
                },
            ))
        })
        .collect()
}

/// `deploy.mode`, `deploy.replicas` and `scale` may say one, which is what a pod has of each service.
fn one_instance(at: &At<'_>) -> Result<()> {
    for count in [at.find(&["deploy", "replicas"]), at.get("scale")]
        .into_iter()
        .flatten()
    {
        if count.int()? != 1 {
            return Err(count.error("only 1 is supported: a pod has one instance of each service"));
        }
    }
    match at.find(&["deploy", "mode"]) {
        Some(mode) if mode.raw()? != "replicated" => Err(mode.error(format_args!(
            "{:?} is not supported; only replicated is",
            mode.raw()?
        ))),
        _ => Ok(()),
    }
}

/// The platform of this machine in the words of the image specification.
fn host_platform() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "x86" => ("386", ""),
        "aarch64" => ("arm64", "v8"),
        "arm" => ("arm", "v7"),
        "powerpc64" => ("ppc64le", ""),
        other => (other, ""),
    }
}

fn platform(at: &At<'_>) -> Result<()> {
    let Some(at) = at.filled("platform") else {
        return Ok(());
    };
    let text = at.string()?;
    let (arch, variant) = host_platform();
    let same = match text.split('/').collect::<Vec<_>>()[..] {
        ["linux"] => true,
        ["linux", a] => a == arch,
        ["linux", a, v] => a == arch && v == variant,
        _ => false,
    };
    match same {
        true => Ok(()),
        false => Err(at.error(format_args!(
            "{text} is not this machine's platform, linux/{arch}; remove it"
        ))),
    }
}

fn pull_policy(at: &At<'_>) -> Result<PullPolicy> {
    let Some(at) = at.filled("pull_policy") else {
        return Ok(PullPolicy::default());
    };
    match at.string()?.as_str() {
        "missing" | "if_not_present" => Ok(PullPolicy::Missing),
        "always" => Ok(PullPolicy::Always),
        "never" => Ok(PullPolicy::Never),
        other => Err(at.error(format_args!(
            "{other:?} is not supported; use always, missing or never"
        ))),
    }
}

fn environment(at: &At<'_>, context: &mut Context<'_>) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for file in at.items_of("env_file")? {
        env_file(&file, context, &mut out)?;
    }
    variables(at, "environment", context, &mut out)?;
    Ok(out)
}

/// A mapping of variables over those that `out` has; one without value is the surroundings'.
pub(super) fn variables(
    at: &At<'_>,
    key: &str,
    context: &Context<'_>,
    out: &mut BTreeMap<String, String>,
) -> Result<()> {
    for (key, value) in at.entries_of(key)? {
        let text = match value.node.is_null() {
            true => context.environment.get(key).cloned(),
            false => Some(value.text()?),
        };
        match text {
            Some(text) if text.contains('\0') || key.contains(['=', '\0']) => {
                return Err(value.error("not a variable: a NUL byte, or = in its name"));
            }
            Some(text) => out.insert(key.to_owned(), text),
            // the surroundings lack it: it is unset, whatever an env_file said
            None => out.remove(key),
        };
    }
    Ok(())
}

fn env_file(
    at: &At<'_>,
    context: &mut Context<'_>,
    out: &mut BTreeMap<String, String>,
) -> Result<()> {
    let Some(path_at) = at.get("path") else {
        return Err(at.error("has no path"));
    };
    let text = path_at.string()?;
    let path = context.host_path(&path_at, &text)?;
    let bytes = match (context.read)(&path) {
        Ok(bytes) => bytes,
        Err(e)
            if e.kind() == std::io::ErrorKind::NotFound
                && !at.get("required").map_or(Ok(true), |r| r.bool())? =>
        {
            return Ok(());
        }
        Err(e) => return Err(path_at.error(format_args!("cannot read {}: {e}", path.display()))),
    };
    let surroundings = context.environment;
    // earlier files may be referred to, as compose does
    let lookup = |name: &str| surroundings.get(name).or_else(|| out.get(name)).cloned();
    let format = at.get("format");
    let values = match format.as_ref().map(At::raw).transpose()? {
        None => dotenv::parse(&path.to_string_lossy(), &bytes, &lookup)?,
        Some("raw") => dotenv::parse_raw(&path.to_string_lossy(), &bytes, &lookup)?,
        Some(other) => {
            return Err(at.error(format_args!("format {other:?} is not known; only raw is")));
        }
    };
    out.extend(
        values
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    Ok(())
}

fn working_dir(at: &At<'_>, key: &str) -> Result<Option<String>> {
    let Some(at) = at.filled(key) else {
        return Ok(None);
    };
    mount::container_path(&at).map(Some)
}

/// `pid`, `ipc`: the first of `known` is the host's.
fn shares_host(at: &At<'_>, key: &str, known: &[&str]) -> Result<bool> {
    let Some(at) = at.filled(key) else {
        return Ok(false);
    };
    let text = at.raw()?;
    match known.contains(&text) {
        true => Ok(text == "host"),
        false => Err(at.error(format_args!(
            "{text:?} is not supported yet; only {} is",
            known.join(" or ")
        ))),
    }
}

fn address_variable(at: &At<'_>) -> Result<Option<String>> {
    let Some(at) = at.find(&["x-sampan", "address_variable"]) else {
        return Ok(None);
    };
    let name = nonempty(&at)?;
    match name.contains('=') {
        true => Err(at.error(format_args!("{name:?} is not the name of a variable"))),
        false => Ok(Some(name)),
    }
}

fn host_name(at: &At<'_>, key: &str) -> Result<Option<String>> {
    let Some(at) = at.filled(key) else {
        return Ok(None);
    };
    let name = at.string()?;
    // sethostname(2): 64 bytes; RFC 1123 letters, plus the underscore that docker takes
    let good = !name.is_empty()
        && name.len() <= 64
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    match good {
        true => Ok(Some(name)),
        false => Err(at.error(format_args!(
            "{name:?} is not a host name; use at most 64 letters, digits, '-' and '.'"
        ))),
    }
}

fn dependencies(at: &At<'_>) -> Result<BTreeMap<String, Dependency>> {
    let mut out = BTreeMap::new();
    for (name, entry) in at.entries_of("depends_on")? {
        let condition = match entry.get("condition") {
            None => return Err(entry.error("has no condition; the usual one is service_started")),
            Some(c) => match c.raw()? {
                "service_started" => Condition::ServiceStarted,
                "service_healthy" => Condition::ServiceHealthy,
                "service_ready" => Condition::ServiceReady,
                "service_completed_successfully" => Condition::ServiceCompletedSuccessfully,
                other => {
                    let known = "service_started, service_healthy, service_ready or service_completed_successfully";
                    return Err(c.error(format_args!("{other:?} is not a condition; use {known}")));
                }
            },
        };
        let required = entry.get("required").map_or(Ok(true), |at| at.bool())?;
        let restart = flag(&entry, "restart")?;
        out.insert(
            name.to_owned(),
            Dependency {
                condition,
                required,
                restart,
            },
        );
    }
    let started = Dependency {
        condition: Condition::ServiceStarted,
        required: true,
        restart: false,
    };
    for link in at.items_of("links")? {
        let text = link.string()?;
        let name = text.split(':').next().unwrap_or_default();
        out.entry(name.to_owned()).or_insert(started);
    }
    for from in mount::volumes_from(at)? {
        out.entry(from.service).or_insert(started);
    }
    if let Some(name) = network_service(at)? {
        out.entry(name).or_insert(started);
    }
    Ok(out)
}

/// The service of `network_mode: service:NAME`, which is what a pod gives every service anyway.
fn network_service(at: &At<'_>) -> Result<Option<String>> {
    let Some(mode) = at.get("network_mode") else {
        return Ok(None);
    };
    Ok(mode.raw()?.strip_prefix("service:").map(str::to_owned))
}

/// `extra_hosts`, and the other names that `links` gives: in a pod they all are this host.
fn extra_hosts(at: &At<'_>) -> Result<Vec<(String, String)>> {
    let mut out = Vec::new();
    for host in at.items_of("extra_hosts")? {
        let text = host.string()?;
        let (name, address) = text.split_once('=').unwrap_or((&text, ""));
        let good = address == "host-gateway" || address.parse::<std::net::IpAddr>().is_ok();
        if !good
            || name.is_empty()
            || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#')
        {
            return Err(host.error(format_args!("{text:?} is not host=address")));
        }
        out.push((name.to_owned(), address.to_owned()));
    }
    for link in at.items_of("links")? {
        if let Some((_, alias)) = link.string()?.split_once(':') {
            if !schema::is_name(alias) {
                return Err(link.error(format_args!("{alias:?} is not a host name")));
            }
            out.push((alias.to_owned(), "127.0.0.1".to_owned()));
        }
    }
    Ok(out)
}

fn dns(at: &At<'_>) -> Result<Vec<String>> {
    let servers = at.items_of("dns")?;
    servers
        .iter()
        .map(|server| {
            let text = server.string()?;
            match text.parse::<std::net::IpAddr>() {
                Ok(address) => Ok(address.to_string()),
                Err(_) => Err(server.error(format_args!("{text:?} is not an IP address"))),
            }
        })
        .collect()
}

fn healthcheck(at: &At<'_>) -> Result<Healthcheck> {
    let words = at.strings_of("test")?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (none, test) = match (&words[..], at.get("test")) {
        (_, None) => (false, None),
        (["NONE"], _) => (true, None),
        (["CMD", command @ ..], _) if !command.is_empty() => (
            false,
            Some(HealthTest::Exec(
                command.iter().map(|w| (*w).to_owned()).collect(),
            )),
        ),
        (["CMD-SHELL", text], _) => (false, Some(HealthTest::Shell((*text).to_owned()))),
        (_, Some(test)) => {
            return Err(
                test.error("must be a string, or a list that begins with CMD, CMD-SHELL or NONE")
            );
        }
    };
    Ok(Healthcheck {
        disabled: none || flag(at, "disable")?,
        test,
        interval: duration(at, "interval")?,
        timeout: duration(at, "timeout")?,
        start_period: duration(at, "start_period")?,
        start_interval: duration(at, "start_interval")?,
        retries: at
            .get("retries")
            .map(|at| at.int_in(0, i64::from(u32::MAX)))
            .transpose()?
            .map(|v| v as u32),
    })
}

fn restart(at: &At<'_>) -> Result<Restart> {
    let own = at.get("restart");
    let policy = at.find(&["deploy", "restart_policy"]);
    match (own, policy) {
        (None, None) => Ok(Restart::No),
        (Some(own), None) => restart_word(&own),
        (None, Some(policy)) => restart_policy(&policy),
        (Some(own), Some(policy)) => {
            let (a, b) = (restart_word(&own)?, restart_policy(&policy)?);
            match a == b {
                true => Ok(a),
                false => Err(policy.error(format_args!(
                    "contradicts restart at {}; remove one",
                    own.node.pos
                ))),
            }
        }
    }
}

fn restart_word(at: &At<'_>) -> Result<Restart> {
    let text = at.raw()?;
    let max = text.strip_prefix("on-failure:").map(|n| n.parse::<u32>());
    match (text, max) {
        // `no` without quotes is a string in YAML 1.2; some tools write the boolean
        ("no" | "false" | "", _) => Ok(Restart::No),
        ("always", _) => Ok(Restart::Always),
        ("unless-stopped", _) => Ok(Restart::UnlessStopped),
        ("on-failure", _) => Ok(Restart::OnFailure { max: None }),
        (_, Some(Ok(max))) => Ok(Restart::OnFailure {
            max: (max > 0).then_some(max),
        }),
        _ => Err(at.error(format_args!(
            "{text:?} is not a policy; use no, always, unless-stopped or on-failure[:count]"
        ))),
    }
}

fn restart_policy(at: &At<'_>) -> Result<Restart> {
    let condition = at.get("condition");
    let max = at
        .get("max_attempts")
        .map(|at| at.int_in(0, i64::from(u32::MAX)))
        .transpose()?;
    match condition.as_ref().map(At::raw).transpose()? {
        Some("none") => Ok(Restart::No),
        Some("on-failure") => Ok(Restart::OnFailure {
            max: max.filter(|m| *m > 0).map(|m| m as u32),
        }),
        None | Some("any") => Ok(Restart::Always),
        Some(other) => Err(at.error(format_args!(
            "condition {other:?} is not known; use none, on-failure or any"
        ))),
    }
}

fn stop_signal(at: &At<'_>) -> Result<String> {
    let text = at.string()?;
    let number = text.parse::<u32>().is_ok_and(|n| (1..=64).contains(&n));
    let name = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.len() <= 16
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-".contains(c));
    match number || name {
        true => Ok(text),
        false => Err(at.error(format_args!(
            "{text:?} is not a signal; write something like SIGTERM"
        ))),
    }
}

fn capabilities(at: &At<'_>, key: &str) -> Result<Vec<String>> {
    let items = at.items_of(key)?;
    items
        .iter()
        .map(|item| {
            let name = item.string()?;
            match !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                true => Ok(name),
                false => Err(item.error(format_args!(
                    "{name:?} is not a capability; write something like NET_ADMIN"
                ))),
            }
        })
        .collect()
}

fn security_opt(at: &At<'_>, context: &Context<'_>) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for item in at.items_of("security_opt")? {
        let text = item.string()?;
        let (name, value) = text.split_once(['=', ':']).unwrap_or((&text, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => out.push("no-new-privileges:true".to_owned()),
            ("no-new-privileges", "false") => out.push("no-new-privileges:false".to_owned()),
            ("seccomp", "unconfined") => out.push("seccomp=unconfined".to_owned()),
            ("seccomp", file) if !file.is_empty() => {
                out.push(format!(
                    "seccomp={}",
                    context.host_path(&item, file)?.display()
                ));
            }
            // nothing is confined by these here, so there is nothing to switch off
            ("apparmor", "unconfined") | ("label", "disable") => {}
            _ => {
                return Err(item.error(format_args!(
                    "{text:?} is not supported yet; remove it for now"
                )));
            }
        }
    }
    Ok(out)
}
