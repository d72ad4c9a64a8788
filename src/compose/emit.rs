//! [`Project`] → canonical compose file, for `sampan config`.
//!
//! *Invariants.* What is written loads to the same project (places and file names aside) in the same folder with the
//! same profiles. Texts that a reader could take for something else are quoted; `$` is doubled.

use std::collections::BTreeMap;

mod extras;

use extras::{check, hook, lifecycle_hook, log_sink, logging};

use super::network::ENDPOINT_SYSCTLS;
use super::project::{
    Blkio, Condition, HealthTest, Limits, Mount, MountSource, Network, NetworkExtra, Project,
    PullPolicy, Restart, Service, ServiceNetwork,
};
use super::units::{self, Plain};

/// Writes a project as a compose file.
pub fn to_yaml(project: &Project) -> String {
    let mut top = Dict::default();
    top.text("name", &project.name);
    top.dict(
        "services",
        project
            .services
            .iter()
            .map(|(name, s)| (name.clone(), Out::Dict(service(s)))),
    );
    top.dict(
        "networks",
        project
            .networks
            .iter()
            .map(|n| (n.key.clone(), Out::Dict(network(n)))),
    );
    let volumes = project.volumes.iter().map(|(key, v)| {
        let mut out = Dict::default();
        out.text("name", &v.name);
        out.flag("external", v.external);
        out.texts_by_key("labels", &v.labels);
        (key.clone(), Out::Dict(out))
    });
    top.dict("volumes", volumes);
    let files = project.services.values().flat_map(files);
    top.dict(
        "configs",
        files.map(|(name, content, _)| {
            let mut entry = Dict::default();
            entry.text("content", &String::from_utf8_lossy(content));
            (name, Out::Dict(entry))
        }),
    );
    let mut pod = Dict::default();
    pod.dict("limits", pod_limits(&project.pod.limits).0.into_iter());
    let hooks = project.pod.hooks.iter();
    pod.list("hooks", hooks.map(|h| Out::Dict(hook(h))));
    pod.list(
        "logs",
        project.pod.logs.iter().map(|s| Out::Dict(log_sink(s))),
    );
    top.dict("x-sampan", pod.0.into_iter());
    let mut text = String::new();
    write_dict(&top, 0, &mut text);
    text
}

/// What is written; empty collections are left out by the methods of [`Dict`].
enum Out {
    Text(String),
    /// Numbers and booleans.
    Bare(String),
    List(Vec<Out>),
    Dict(Dict),
}

#[derive(Default)]
struct Dict(Vec<(String, Out)>);

impl Dict {
    fn put(&mut self, key: &str, value: Out) {
        self.0.push((key.to_owned(), value));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.put(key, Out::Text(value.to_owned()));
    }

    fn maybe_text(&mut self, key: &str, value: Option<&str>) {
        value.into_iter().for_each(|v| self.text(key, v));
    }

    fn bare(&mut self, key: &str, value: Option<impl ToString>) {
        value
            .into_iter()
            .for_each(|v| self.put(key, Out::Bare(v.to_string())));
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.bare(key, value.then_some(true));
    }

    fn list(&mut self, key: &str, items: impl Iterator<Item = Out>) {
        let items: Vec<Out> = items.collect();
        if !items.is_empty() {
            self.put(key, Out::List(items));
        }
    }

    fn texts(&mut self, key: &str, items: &[String]) {
        self.list(key, items.iter().cloned().map(Out::Text));
    }

    fn dict(&mut self, key: &str, entries: impl Iterator<Item = (String, Out)>) {
        let entries: Vec<_> = entries.collect();
        if !entries.is_empty() {
            self.put(key, Out::Dict(Dict(entries)));
        }
    }

    fn texts_by_key(&mut self, key: &str, entries: &BTreeMap<String, String>) {
        self.dict(
            key,
            entries
                .iter()
                .map(|(k, v)| (k.clone(), Out::Text(v.clone()))),
        );
    }
}

fn service(s: &Service) -> Dict {
    let mut out = Dict::default();
    if s.rootfs.is_none() {
        out.text("image", &s.image);
    }
    match s.pull_policy {
        PullPolicy::Missing => {}
        PullPolicy::Always => out.text("pull_policy", "always"),
        PullPolicy::Never => out.text("pull_policy", "never"),
    }
    // an empty list is not the same as none
    for (key, words) in [("entrypoint", &s.entrypoint), ("command", &s.command)] {
        if let Some(words) = words {
            out.put(
                key,
                Out::List(words.iter().cloned().map(Out::Text).collect()),
            );
        }
    }
    out.texts_by_key("environment", &s.environment);
    out.maybe_text("working_dir", s.working_dir.as_deref());
    out.maybe_text("user", s.user.as_deref());
    out.texts("group_add", &s.group_add);
    out.maybe_text("hostname", s.hostname.as_deref());
    out.maybe_text("domainname", s.domainname.as_deref());
    out.maybe_text("container_name", s.container_name.as_deref());
    dependencies(s, &mut out);
    healthcheck(s, &mut out);
    ports(s, &mut out);
    out.texts("expose", &s.expose);
    networks(s, &mut out);
    out.list(
        "extra_hosts",
        s.extra_hosts
            .iter()
            .map(|(name, address)| Out::Text(format!("{name}={address}"))),
    );
    out.texts("dns", &s.dns);
    out.texts("dns_search", &s.dns_search);
    out.texts("dns_opt", &s.dns_opt);
    mounts(&s.volumes, &mut out);
    volumes_from(s, &mut out);
    out.list("configs", files(s).map(|(_, _, wanted)| Out::Dict(wanted)));
    restart(s.restart, &mut out);
    out.maybe_text("stop_signal", s.stop_signal.as_deref());
    out.text(
        "stop_grace_period",
        &units::duration_text(s.stop_grace_period),
    );
    out.texts("cap_add", &s.cap_add);
    out.texts("cap_drop", &s.cap_drop);
    out.texts("security_opt", &s.security_opt);
    out.maybe_text("pid", s.host_pid.then_some("host"));
    out.maybe_text("ipc", s.host_ipc.then_some("host"));
    let flags = [
        ("privileged", s.privileged),
        ("read_only", s.read_only),
        ("init", s.init),
        ("tty", s.tty),
        ("stdin_open", s.stdin_open),
    ];
    flags
        .into_iter()
        .for_each(|(key, value)| out.flag(key, value));
    let ulimits = s.ulimits.iter().map(|(name, (soft, hard))| {
        let mut both = Dict::default();
        both.bare("soft", Some(soft));
        both.bare("hard", Some(hard));
        (name.clone(), Out::Dict(both))
    });
    out.dict("ulimits", ulimits);
    out.texts_by_key("sysctls", &s.sysctls);
    out.texts_by_key("labels", &s.labels);
    let devices = s.devices.iter();
    out.list(
        "devices",
        devices.map(|(source, target, permissions)| {
            let mut device = Dict::default();
            device.text("source", &source.to_string_lossy());
            device.text("target", &target.to_string_lossy());
            device.text("permissions", permissions);
            Out::Dict(device)
        }),
    );
    out.bare("shm_size", s.shm_size);
    out.bare("oom_score_adj", s.oom_score_adj);
    limits(&s.limits, &mut out);
    if let Some(kept) = s.logging {
        out.put("logging", Out::Dict(logging(kept)));
    }
    out.texts("profiles", &s.profiles);
    for (key, hooks) in [("post_start", &s.post_start), ("pre_stop", &s.pre_stop)] {
        out.list(key, hooks.iter().map(|h| Out::Dict(lifecycle_hook(h))));
    }
    let mut extra = Dict::default();
    let folder = s.rootfs.as_ref().map(|path| path.to_string_lossy());
    extra.maybe_text("rootfs", folder.as_deref());
    extra.texts("ambient", &s.ambient);
    extra.maybe_text("address_variable", s.address_variable.as_deref());
    if let Some(words) = &s.arguments {
        let words = words.iter().cloned().map(Out::Text);
        extra.put("arguments", Out::List(words.collect()));
    }
    extra.maybe_text("default_working_dir", s.default_working_dir.as_deref());
    extra.list("checks", s.checks.iter().map(|c| Out::Dict(check(c))));
    extra.list("logs", s.logs.iter().map(|s| Out::Dict(log_sink(s))));
    out.dict("x-sampan", extra.0.into_iter());
    out
}

/// The files that a service brings along: a name for each, its content, and what the service says of it.
fn files(s: &Service) -> impl Iterator<Item = (String, &[u8], Dict)> {
    let files = s.volumes.iter().enumerate();
    files.filter_map(|(i, m)| {
        let MountSource::File {
            content,
            uid,
            gid,
            mode,
        } = &m.source
        else {
            return None;
        };
        let name = format!("{}.{i}", s.name);
        let mut wanted = Dict::default();
        wanted.text("source", &name);
        wanted.text("target", &m.target);
        wanted.bare("uid", *uid);
        wanted.bare("gid", *gid);
        wanted.bare("mode", Some(format!("0o{mode:o}")));
        Some((name, content.as_slice(), wanted))
    })
}

fn dependencies(s: &Service, out: &mut Dict) {
    let entries = s.depends_on.iter().map(|(name, dependency)| {
        let mut entry = Dict::default();
        entry.text(
            "condition",
            match dependency.condition {
                Condition::ServiceStarted => "service_started",
                Condition::ServiceHealthy => "service_healthy",
                Condition::ServiceReady => "service_ready",
                Condition::ServiceCompletedSuccessfully => "service_completed_successfully",
            },
        );
        entry.bare("required", Some(dependency.required));
        entry.flag("restart", dependency.restart);
        (name.clone(), Out::Dict(entry))
    });
    out.dict("depends_on", entries);
}

fn healthcheck(s: &Service, out: &mut Dict) {
    let Some(check) = &s.healthcheck else { return };
    let mut entry = Dict::default();
    entry.flag("disable", check.disabled);
    match &check.test {
        None => {}
        Some(HealthTest::Shell(text)) => {
            entry.texts("test", &["CMD-SHELL".to_owned(), text.clone()])
        }
        Some(HealthTest::Exec(words)) => {
            entry.list(
                "test",
                std::iter::once("CMD".to_owned())
                    .chain(words.iter().cloned())
                    .map(Out::Text),
            );
        }
    }
    let times = [
        ("interval", check.interval),
        ("timeout", check.timeout),
        ("start_period", check.start_period),
        ("start_interval", check.start_interval),
    ];
    for (key, value) in times {
        entry.maybe_text(key, value.map(units::duration_text).as_deref());
    }
    entry.bare("retries", check.retries);
    out.put("healthcheck", Out::Dict(entry));
}

fn ports(s: &Service, out: &mut Dict) {
    let ports = s.ports.iter().map(|port| {
        let mut entry = Dict::default();
        entry.maybe_text("host_ip", port.host_ip.map(|ip| ip.to_string()).as_deref());
        entry.maybe_text(
            "published",
            port.published
                .map(|first| match port.published_end {
                    Some(last) => format!("{first}-{last}"),
                    None => first.to_string(),
                })
                .as_deref(),
        );
        entry.bare("target", Some(port.target));
        entry.text("protocol", &port.protocol);
        let network = port.network.clone();
        let extra = network.map(|key| ("network".to_owned(), Out::Text(key)));
        entry.dict("x-sampan", extra.into_iter());
        Out::Dict(entry)
    });
    out.list("ports", ports);
}

fn networks(s: &Service, out: &mut Dict) {
    if s.networks.is_empty() {
        // only `network_mode: service:NAME` leads to none; which one is in `depends_on` does not matter in a pod
        let with = s.depends_on.keys().next();
        out.maybe_text(
            "network_mode",
            with.map(|name| format!("service:{name}")).as_deref(),
        );
    }
    out.dict(
        "networks",
        s.networks
            .iter()
            .map(|(key, n)| (key.clone(), Out::Dict(service_network(n)))),
    );
}

fn service_network(n: &ServiceNetwork) -> Dict {
    let mut out = Dict::default();
    out.texts("aliases", &n.aliases);
    out.maybe_text(
        "ipv4_address",
        n.ipv4_address.map(|ip| ip.to_string()).as_deref(),
    );
    out.maybe_text(
        "ipv6_address",
        n.ipv6_address.map(|ip| ip.to_string()).as_deref(),
    );
    out.maybe_text("mac_address", n.mac_address.as_deref());
    out.maybe_text("interface_name", n.interface_name.as_deref());
    out.bare("gw_priority", n.gw_priority);
    let ips: Vec<_> = n.link_local_ips.iter().map(ToString::to_string).collect();
    out.texts("link_local_ips", &ips);
    if !n.sysctls.is_empty() {
        let pairs: Vec<_> = n.sysctls.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let options = BTreeMap::from([(ENDPOINT_SYSCTLS.to_owned(), pairs.join(","))]);
        out.texts_by_key("driver_opts", &options);
    }
    out
}

fn volumes_from(s: &Service, out: &mut Dict) {
    let entries = s.volumes_from.iter().map(|from| match from.read_only {
        true => format!("{}:ro", from.service),
        false => from.service.clone(),
    });
    out.texts("volumes_from", &entries.collect::<Vec<_>>());
}

/// `tmpfs:` is used for what the long form cannot say, and for all tmpfs after it: so the order stays.
fn mounts(mounts: &[Mount], out: &mut Dict) {
    let short =
        |m: &Mount| matches!(&m.source, MountSource::Tmpfs { options, .. } if !options.is_empty());
    let split = mounts.iter().position(short).unwrap_or(mounts.len());
    let (long, short) = mounts.split_at(split);
    let listed = long
        .iter()
        .filter(|m| !matches!(m.source, MountSource::File { .. }));
    out.list("volumes", listed.map(|m| Out::Dict(mount(m))));
    let listed = short
        .iter()
        .filter(|m| !matches!(m.source, MountSource::File { .. }));
    out.list("tmpfs", listed.map(|m| Out::Text(short_tmpfs(m))));
}

fn short_tmpfs(m: &Mount) -> String {
    let MountSource::Tmpfs {
        size,
        mode,
        options,
    } = &m.source
    else {
        return m.target.clone();
    };
    let mut all: Vec<String> = Vec::new();
    all.extend(size.map(|size| format!("size={size}")));
    all.extend(mode.map(|mode| format!("mode={mode:o}")));
    all.extend(options.iter().cloned());
    all.extend(m.read_only.then(|| "ro".to_owned()));
    format!("{}:{}", m.target, all.join(","))
}

fn mount(m: &Mount) -> Dict {
    let mut out = Dict::default();
    let mut inner = Dict::default();
    let kind = match &m.source {
        MountSource::Bind {
            path,
            create,
            propagation,
            recursive,
        } => {
            out.text("source", &path.to_string_lossy());
            inner.bare("create_host_path", (!create).then_some(false));
            inner.maybe_text("propagation", propagation.as_deref());
            inner.maybe_text("recursive", (!recursive).then_some("disabled"));
            "bind"
        }
        MountSource::Volume {
            key,
            nocopy,
            subpath,
        } => {
            out.text("source", key);
            inner.flag("nocopy", *nocopy);
            inner.maybe_text("subpath", subpath.as_deref());
            "volume"
        }
        MountSource::Anonymous => "volume",
        // among the configs
        MountSource::File { .. } => "bind",
        MountSource::Tmpfs { size, mode, .. } => {
            inner.bare("size", *size);
            inner.bare("mode", mode.map(|mode| format!("0o{mode:o}")));
            "tmpfs"
        }
    };
    out.0
        .insert(0, ("type".to_owned(), Out::Text(kind.to_owned())));
    out.text("target", &m.target);
    out.flag("read_only", m.read_only);
    if !inner.0.is_empty() {
        out.put(kind, Out::Dict(inner));
    }
    out
}

fn restart(policy: Restart, out: &mut Dict) {
    let text = match policy {
        Restart::No => return,
        Restart::Always => "always".to_owned(),
        Restart::UnlessStopped => "unless-stopped".to_owned(),
        Restart::OnFailure { max: None } => "on-failure".to_owned(),
        Restart::OnFailure { max: Some(max) } => format!("on-failure:{max}"),
    };
    out.text("restart", &text);
}

fn limits(l: &Limits, out: &mut Dict) {
    out.bare("cpus", l.cpus);
    out.bare("cpu_shares", l.cpu_shares);
    out.maybe_text("cpuset", l.cpuset.as_deref());
    out.bare("mem_limit", l.memory);
    out.bare("mem_reservation", l.memory_reservation);
    out.bare("memswap_limit", l.memory_swap);
    out.bare("pids_limit", l.pids);
    if let Some(blkio_config) = &l.blkio {
        out.put("blkio_config", Out::Dict(blkio(blkio_config)));
    }
}

fn pod_limits(l: &Limits) -> Dict {
    let mut out = Dict::default();
    out.bare("cpus", l.cpus);
    out.bare("cpu_shares", l.cpu_shares);
    out.maybe_text("cpuset", l.cpuset.as_deref());
    out.bare("memory", l.memory);
    out.bare("memory_reservation", l.memory_reservation);
    out.bare("memory_swap", l.memory_swap);
    out.bare("pids", l.pids);
    out
}

fn blkio(b: &Blkio) -> Dict {
    let mut out = Dict::default();
    out.bare("weight", b.weight);
    let rates = [
        ("device_read_bps", &b.read_bps),
        ("device_write_bps", &b.write_bps),
        ("device_read_iops", &b.read_iops),
        ("device_write_iops", &b.write_iops),
    ];
    for (key, rates) in rates {
        let items = rates.iter().map(|(path, rate)| {
            let mut entry = Dict::default();
            entry.text("path", &path.to_string_lossy());
            entry.bare("rate", Some(rate));
            Out::Dict(entry)
        });
        out.list(key, items);
    }
    out
}

fn network(n: &Network) -> Dict {
    let mut out = Dict::default();
    out.text("name", &n.name);
    out.flag("external", n.external);
    let extra = network_extra(&n.extra);
    if n.external {
        out.dict("x-sampan", extra.into_iter());
        return out;
    }
    out.text("driver", &n.driver);
    out.texts_by_key("driver_opts", &n.driver_opts);
    out.flag("internal", n.internal);
    if !n.enable_ipv4 {
        out.bare("enable_ipv4", Some(false));
    }
    out.flag("enable_ipv6", n.enable_ipv6);
    let mut ipam = Dict::default();
    ipam.maybe_text("driver", n.ipam_driver.as_deref());
    ipam.texts_by_key("options", &n.ipam_options);
    let pools = n.ipam.iter().map(|pool| {
        let mut entry = Dict::default();
        entry.text("subnet", &pool.subnet.to_string());
        entry.maybe_text("ip_range", pool.ip_range.map(|r| r.to_string()).as_deref());
        entry.maybe_text("gateway", pool.gateway.map(|g| g.to_string()).as_deref());
        let others = pool.aux_addresses.iter();
        let others = others.map(|(name, ip)| (name.clone(), ip.to_string()));
        entry.texts_by_key("aux_addresses", &others.collect());
        Out::Dict(entry)
    });
    ipam.list("config", pools);
    if !ipam.0.is_empty() {
        out.put("ipam", Out::Dict(ipam));
    }
    out.texts_by_key("labels", &n.labels);
    out.dict("x-sampan", extra.into_iter());
    out
}

fn network_extra(extra: &NetworkExtra) -> Vec<(String, Out)> {
    let mut out = Dict::default();
    out.flag("default", extra.default);
    let routes = extra.routes.iter().map(|route| {
        let mut entry = Dict::default();
        entry.text("dst", &route.dst.to_string());
        entry.maybe_text("gw", route.gw.map(|gw| gw.to_string()).as_deref());
        Out::Dict(entry)
    });
    out.list("routes", routes);
    let config = extra.config.iter();
    out.dict(
        "config",
        config.map(|(key, value)| (key.clone(), json(value))),
    );
    out.list("plugins", extra.plugins.iter().map(json));
    out.texts("groups", &extra.groups);
    out.texts_by_key("labels", &extra.labels);
    out.texts_by_key("cni_args", &extra.cni_args);
    let capabilities = extra.capabilities.iter();
    out.dict(
        "capabilities",
        capabilities.map(|(key, value)| (key.clone(), json(value))),
    );
    out.0
}

fn json(value: &serde_json::Value) -> Out {
    use serde_json::Value;
    match value {
        Value::String(text) => Out::Text(text.clone()),
        Value::Array(items) => Out::List(items.iter().map(json).collect()),
        Value::Object(map) => Out::Dict(Dict(
            map.iter().map(|(k, v)| (k.clone(), json(v))).collect(),
        )),
        plain => Out::Bare(plain.to_string()),
    }
}

fn write_dict(dict: &Dict, indent: usize, out: &mut String) {
    for (i, (key, value)) in dict.0.iter().enumerate() {
        if i > 0 || indent == 0 {
            out.push_str(&" ".repeat(indent));
        }
        let key = quoted(key, false);
        // YAML 1.2.2, 7.4: a key on the line of its value has at most 1024 characters
        match key.len() < 1000 {
            true => out.extend([&key, ":"]),
            false => out.extend(["? ", &key, "\n", &" ".repeat(indent), ":"]),
        }
        write_value(value, indent, out);
    }
}

/// Writes a value after its key, up to the end of the line or the block.
fn write_value(value: &Out, indent: usize, out: &mut String) {
    match value {
        Out::Text(text) => out.extend([" ", &quoted(text, true), "\n"]),
        Out::Bare(text) => out.extend([" ", text, "\n"]),
        Out::List(items) if items.is_empty() => out.push_str(" []\n"),
        Out::Dict(dict) if dict.0.is_empty() => out.push_str(" {}\n"),
        Out::List(items) => {
            out.push('\n');
            for item in items {
                out.push_str(&" ".repeat(indent + 2));
                out.push('-');
                match item {
                    Out::Dict(dict) if !dict.0.is_empty() => {
                        out.push(' ');
                        write_dict(dict, indent + 4, out);
                    }
                    other => write_value(other, indent + 2, out),
                }
            }
        }
        Out::Dict(dict) => {
            out.push('\n');
            out.push_str(&" ".repeat(indent + 2));
            write_dict(dict, indent + 2, out);
        }
    }
}

/// A text as YAML. Only what no reader, old or new, takes for anything else goes without quotes.
fn quoted(text: &str, value: bool) -> String {
    let text = if value {
        text.replace('$', "$$")
    } else {
        text.to_owned()
    };
    let start = text.starts_with(|c: char| c.is_ascii_alphabetic() || "_/".contains(c));
    let plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    if start && plain && units::plain(&text) == Plain::Str && units::boolean(&text).is_none() {
        return text;
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)))
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
