//! Service + image → `config.json` of the runtime-spec. Pure.
//!
//! What the service says wins over what the image says, as in Docker: an entrypoint of the service
//! also clears the image's command.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::record::{ImageConfig, ImageFacts};
use super::users::User;
use crate::compose::project::{Limits, MountSource, Restart, Service};
use crate::rootfs::options::SUBPATH;
use crate::rootfs::resolve::clean;

/// Where the pod's own files and volumes are, for the mounts of one service.
#[derive(Debug, Clone, Default)]
pub struct Places<'a> {
    /// The pinned network namespace; `None`: the host's own.
    pub netns: Option<&'a str>,
    /// Generated `hosts`, `resolv.conf`, `hostname`.
    pub service_dir: &'a str,
    /// Host folder of each mount of the service, in its order; unused for tmpfs.
    pub sources: Vec<String>,
    /// The kernel accounts swap.
    pub swap: bool,
    /// Image volumes that nothing covers: path in the container, host folder.
    pub image_volumes: Vec<(String, String)>,
}

/// Docker's fourteen: what a service has that says nothing.
pub const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The program to run: entrypoint and command.
pub fn arguments(service: &Service, image: &ImageConfig) -> Result<Vec<String>, String> {
    if let Some(arguments) = &service.arguments {
        return with_arguments(service, image, arguments);
    }
    let entrypoint = match &service.entrypoint {
        Some(own) => own.clone(),
        None => image.entrypoint.clone().unwrap_or_default(),
    };
    let command = match (&service.command, &service.entrypoint) {
        (Some(own), _) => own.clone(),
        (None, Some(_)) => Vec::new(),
        (None, None) => image.cmd.clone().unwrap_or_default(),
    };
    let arguments: Vec<String> = entrypoint.into_iter().chain(command).collect();
    if arguments.is_empty() {
        return Err(format!(
            "image {} names no program to run; give the service a command",
            service.image
        ));
    }
    Ok(arguments)
}

/// Mesos' rule for arguments without a program: the entrypoint gets them, or else the first word of the command.
fn with_arguments(
    service: &Service,
    image: &ImageConfig,
    arguments: &[String],
) -> Result<Vec<String>, String> {
    let filled = |words: &Option<Vec<String>>| words.clone().filter(|w| !w.is_empty());
    let mut program = match (filled(&image.entrypoint), filled(&image.cmd)) {
        (Some(entrypoint), _) => entrypoint,
        (None, Some(command)) => command.into_iter().take(1).collect(),
        (None, None) => {
            return Err(format!(
                "x-sampan.arguments: image {} names no program that they could be given to",
                service.image
            ));
        }
    };
    program.extend(arguments.iter().cloned());
    Ok(program)
}

/// The environment, sorted by name: a path, the image's, the service's, and what is derived.
pub fn environment(
    service: &Service,
    image: &ImageConfig,
    user: &User,
    hostname: &str,
) -> Vec<String> {
    let mut all = BTreeMap::from([
        (
            "PATH".to_string(),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_string(),
        ),
        ("HOME".to_string(), user.home.clone()),
        ("HOSTNAME".to_string(), hostname.to_string()),
    ]);
    if service.tty {
        all.insert("TERM".to_string(), "xterm".to_string());
    }
    for entry in image.env.iter().flatten() {
        if let Some((name, value)) = entry.split_once('=') {
            all.insert(name.to_string(), value.to_string());
        }
    }
    all.extend(service.environment.clone());
    all.into_iter().map(|(n, v)| format!("{n}={v}")).collect()
}

/// For `ALL`, as in Docker: every capability that there is to give. Inside of something that holds some back, a container
/// gets the rest.
pub fn all_capabilities() -> Result<Vec<String>, String> {
    let held = caps::read(None, caps::CapSet::Permitted)
        .map_err(|error| format!("read the capabilities there are: {error}"))?;
    let mut all: Vec<String> = caps::all()
        .intersection(&held)
        .map(ToString::to_string)
        .collect();
    all.sort_unstable();
    Ok(all)
}

fn capability(name: &str) -> Result<String, String> {
    let full = name.to_uppercase();
    let full = if full.starts_with("CAP_") {
        full
    } else {
        format!("CAP_{full}")
    };
    if full.parse::<caps::Capability>().is_err() {
        return Err(format!("capability {name:?} is not known"));
    }
    Ok(full)
}

/// Bounding set of a service: Docker's rules for `ALL`, add and drop.
pub fn capabilities(service: &Service) -> Result<Vec<String>, String> {
    if service.privileged {
        return all_capabilities();
    }
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let mut set: Vec<String> = if service.cap_add.iter().any(is_all) {
        all_capabilities()?
    } else if service.cap_drop.iter().any(is_all) {
        Vec::new()
    } else {
        CAPABILITIES.iter().map(ToString::to_string).collect()
    };
    for name in service.cap_drop.iter().filter(|n| !is_all(n)) {
        let name = capability(name)?;
        set.retain(|kept| *kept != name);
    }
    for name in service.cap_add.iter().filter(|n| !is_all(n)) {
        let name = capability(name)?;
        if !set.contains(&name) {
            set.push(name);
        }
    }
    set.sort_unstable();
    Ok(set)
}

/// `x-sampan.ambient`; capabilities(7): what is ambient is inheritable and permitted, too.
fn ambient(service: &Service, bounding: &[String]) -> Result<Vec<String>, String> {
    let names = service.ambient.iter().map(|name| capability(name));
    let mut names = names.collect::<Result<Vec<_>, _>>()?;
    names.sort_unstable();
    names.dedup();
    match names.iter().find(|name| !bounding.contains(name)) {
        Some(name) => Err(format!(
            "x-sampan.ambient: {name} is not among the service's capabilities; add it to cap_add"
        )),
        None => Ok(names),
    }
}

fn device_rules(service: &Service) -> Result<(Vec<Value>, Vec<Value>), String> {
    if service.privileged {
        let all = vec![json!({"allow": true, "access": "rwm"})];
        return Ok((all, host_devices(Path::new("/dev"), 0)));
    }
    // the default devices are let through by `create`
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    let mut devices = Vec::new();
    for (host, inside, access) in &service.devices {
        let meta = std::fs::metadata(host)
            .map_err(|error| format!("device {}: {error}", host.display()))?;
        let node = device_node(&meta, inside)
            .ok_or_else(|| format!("device {}: not a device", host.display()))?;
        let mut rule = json!({"allow": true, "access": access});
        for key in ["type", "major", "minor"] {
            rule[key] = node[key].clone();
        }
        rules.push(rule);
        devices.push(node);
    }
    Ok((rules, devices))
}

/// `linux.devices` entry; `None` for what is no device.
fn device_node(meta: &std::fs::Metadata, inside: &Path) -> Option<Value> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let kind = match meta.file_type() {
        t if t.is_char_device() => "c",
        t if t.is_block_device() => "b",
        _ => return None,
    };
    let (major, minor) = (
        rustix::fs::major(meta.rdev()),
        rustix::fs::minor(meta.rdev()),
    );
    Some(json!({
        "path": inside, "type": kind, "major": major, "minor": minor,
        "fileMode": meta.mode() & 0o777, "uid": meta.uid(), "gid": meta.gid(),
    }))
}

/// The host's devices for a privileged service, as Docker gives them: without terminals and what is mounted below `/dev`. One that
/// goes away meanwhile is left out.
fn host_devices(dir: &Path, depth: usize) -> Vec<Value> {
    const LEFT_OUT: [&str; 7] = ["pts", "shm", "fd", "mqueue", "console", "lxc", ".udev"];
    const DEPTH: usize = 8;
    let mut nodes = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(meta) = entry.metadata() else { continue };
        if LEFT_OUT.iter().any(|left| name == *left) {
            continue;
        }
        if meta.is_dir() && depth < DEPTH {
            nodes.extend(host_devices(&path, depth + 1));
        } else {
            nodes.extend(device_node(&meta, &path));
        }
    }
    nodes.sort_by_key(|node| node["path"].as_str().map(str::to_string));
    nodes
}

/// Limits → runtime-spec `linux.resources`, without devices. A limit on swap that nobody asked for is left out where the kernel does
/// not account `swap`.
pub fn resources(limits: &Limits, swap: bool) -> Result<Value, String> {
    let mut out = json!({});
    let memory = json!({
        "limit": limits.memory,
        "reservation": limits.memory_reservation,
        // Docker's default: as much swap as memory
        "swap": limits.memory_swap.or_else(|| {
            let memory = limits.memory.filter(|_| swap)?;
            Some(i64::try_from(memory).unwrap_or(i64::MAX).saturating_mul(2))
        }),
    });
    if limits.memory.is_some()
        || limits.memory_reservation.is_some()
        || limits.memory_swap.is_some()
    {
        out["memory"] = without_nulls(memory);
    }
    let period = 100_000u64;
    let quota = limits
        .cpus
        .map(|cpus| (cpus * period as f64).round() as i64);
    if quota.is_some() || limits.cpu_shares.is_some() || limits.cpuset.is_some() {
        out["cpu"] = without_nulls(json!({
            "quota": quota,
            "period": quota.map(|_| period),
            "shares": limits.cpu_shares,
            "cpus": limits.cpuset,
        }));
    }
    if let Some(pids) = limits.pids {
        out["pids"] = json!({"limit": if pids <= 0 { -1 } else { pids }});
    }
    if let Some(blkio) = &limits.blkio {
        let mut io = json!({});
        if let Some(weight) = blkio.weight {
            io["weight"] = json!(weight);
        }
        for (key, list) in [
            ("throttleReadBpsDevice", &blkio.read_bps),
            ("throttleWriteBpsDevice", &blkio.write_bps),
            ("throttleReadIOPSDevice", &blkio.read_iops),
            ("throttleWriteIOPSDevice", &blkio.write_iops),
        ] {
            if !list.is_empty() {
                let devices: Result<Vec<Value>, String> = list
                    .iter()
                    .map(|(path, rate)| throttle(path, *rate))
                    .collect();
                io[key] = Value::Array(devices?);
            }
        }
        out["blockIO"] = io;
    }
    Ok(out)
}

fn throttle(path: &Path, rate: u64) -> Result<Value, String> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path)
        .map_err(|error| format!("blkio_config: {}: {error}", path.display()))?;
    Ok(json!({
        "major": rustix::fs::major(meta.rdev()),
        "minor": rustix::fs::minor(meta.rdev()),
        "rate": rate,
    }))
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
    value
}

fn rlimits(service: &Service) -> Vec<Value> {
    let bound = |value: i64| if value < 0 { u64::MAX } else { value as u64 };
    service
        .ulimits
        .iter()
        .map(|(name, (soft, hard))| {
            json!({
                "type": format!("RLIMIT_{}", name.to_uppercase()),
                "soft": bound(*soft),
                "hard": bound(*hard),
            })
        })
        .collect()
}

fn mounts(service: &Service, places: &Places<'_>) -> Result<Vec<Value>, String> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let shm = format!("size={}", service.shm_size.unwrap_or(64 << 20));
    let sys = if service.privileged { "rw" } else { "ro" };
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", sys],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", sys],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm],
        ),
    ];
    if service.host_ipc {
        let shm = mount("/dev/shm", "bind", "/dev/shm", &["rbind", "rprivate"]);
        list.retain(|m| m["destination"] != "/dev/shm");
        list.push(shm);
    }
    // what the service mounts itself, or anything above it, takes the place of ours
    let own: Vec<_> = service
        .volumes
        .iter()
        .map(|m| clean(Path::new(&m.target)))
        .collect();
    list.retain(|m| {
        let at = Path::new(m["destination"].as_str().unwrap_or_default());
        !own.iter().any(|above| at.starts_with(above))
    });
    let ours = list.len();
    // a folder of the host shows the host's own, as it may have none to put ours in place of
    let names: &[&str] = match service.rootfs {
        Some(_) => &[],
        None => &["hosts", "resolv.conf", "hostname"],
    };
    for name in names {
        let source = format!("{}/{name}", places.service_dir);
        list.push(mount(
            &format!("/etc/{name}"),
            "bind",
            &source,
            &["rbind", "rprivate"],
        ));
    }
    for (target, source) in &places.image_volumes {
        list.push(mount(target, "bind", source, &["rbind", "rprivate"]));
    }
    for (entry, source) in service.volumes.iter().zip(&places.sources) {
        list.push(service_mount(entry, source));
    }
    // a mount below another one comes after it; the sort is stable, so later ones still win
    let depth = |m: &Value| {
        m["destination"]
            .as_str()
            .map_or(0, |d| d.split('/').filter(|c| !c.is_empty()).count())
    };
    list[ours..].sort_by_key(depth);
    Ok(list)
}

fn service_mount(mount: &crate::compose::project::Mount, source: &str) -> Value {
    let (kind, source, mut options) = match &mount.source {
        MountSource::Bind {
            propagation,
            recursive,
            ..
        } => {
            let bind = if *recursive { "rbind" } else { "bind" };
            let propagation = propagation.as_deref().unwrap_or("rprivate");
            (
                "bind",
                source,
                vec![bind.to_string(), propagation.to_string()],
            )
        }
        MountSource::Volume { .. } | MountSource::Anonymous | MountSource::File { .. } => (
            "bind",
            source,
            vec!["rbind".to_string(), "rprivate".to_string()],
        ),
        MountSource::Tmpfs {
            size,
            mode,
            options,
        } => {
            let mut all = vec!["nosuid".to_string(), "nodev".to_string()];
            if !options.iter().any(|o| o == "exec") {
                all.push("noexec".to_string());
            }
            all.extend(options.iter().filter(|o| *o != "exec").cloned());
            all.extend(size.map(|bytes| format!("size={bytes}")));
            all.push(format!("mode={:o}", mode.unwrap_or(0o1777)));
            ("tmpfs", "tmpfs", all)
        }
    };
    match (mount.read_only, kind) {
        // nothing: "rw" would make a mount writable that is read-only on the host
        (false, "bind") => {}
        (false, _) => options.push("rw".to_string()),
        // with everything below it, as Docker does: a mount inside must not stay writable
        (true, "bind") => options.push("rro".to_string()),
        (true, _) => options.push("ro".to_string()),
    }
    if let MountSource::Volume {
        subpath: Some(sub), ..
    } = &mount.source
    {
        options.push(format!("{SUBPATH}{sub}"));
    }
    json!({"destination": mount.target, "type": kind, "source": source, "options": options})
}

/// The process of a container: its first one, and the base of every `exec`.
pub fn process(
    service: &Service,
    image: &ImageFacts,
    user: &User,
    hostname: &str,
) -> Result<Value, String> {
    let bounding = capabilities(service)?;
    let ambient = ambient(service, &bounding)?;
    // no ambient set of our own: a user other than root keeps only what the file gives (CVE-2022-24769)
    let held = if user.uid == 0 {
        bounding.clone()
    } else {
        ambient.clone()
    };
    let cwd = service
        .working_dir
        .clone()
        .or_else(|| image.config.working_dir.clone().filter(|d| !d.is_empty()))
        .or_else(|| service.default_working_dir.clone())
        .unwrap_or_else(|| "/".to_string());
    Ok(without_nulls(json!({
        "terminal": service.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": arguments(service, &image.config)?,
        "env": environment(service, &image.config, user, hostname),
        "cwd": cwd,
        "capabilities": {"bounding": bounding, "effective": held, "permitted": held, "inheritable": ambient, "ambient": ambient},
        "rlimits": rlimits(service),
        "noNewPrivileges": no_new_privileges(service),
        "oomScoreAdj": service.oom_score_adj,
    })))
}

/// On unless the service says otherwise: setuid programs gain nothing.
fn no_new_privileges(service: &Service) -> bool {
    let says = |values: [&str; 2]| {
        service
            .security_opt
            .iter()
            .any(|o| values.contains(&o.as_str()))
    };
    !(service.privileged || says(["no-new-privileges:false", "no-new-privileges=false"]))
}

/// The filter: what `security_opt` names, else the default one; a privileged service has none unless it names one.
fn seccomp(service: &Service) -> Result<Option<oci_spec::runtime::LinuxSeccomp>, String> {
    let named = service
        .security_opt
        .iter()
        .rev()
        .find_map(|option| option.strip_prefix("seccomp="));
    let bounding = capabilities(service)?;
    match named {
        Some("unconfined") => Ok(None),
        Some(file) => super::profile::read(Path::new(file), &bounding).map(Some),
        None if service.privileged => Ok(None),
        None => Ok(Some(crate::seccomp::default_profile(&bounding))),
    }
}

fn namespaces(service: &Service, places: &Places<'_>) -> Vec<Value> {
    let shared =
        |kind: &&str| *kind == "pid" && service.host_pid || *kind == "ipc" && service.host_ipc;
    let kinds = ["pid", "ipc", "uts", "mount", "cgroup"];
    let own = kinds.iter().filter(|kind| !shared(kind));
    let mut list: Vec<Value> = own.map(|kind| json!({"type": kind})).collect();
    list.extend(
        places
            .netns
            .map(|path| json!({"type": "network", "path": path})),
    );
    list
}

/// The whole `config.json`.
pub fn spec(
    service: &Service,
    image: &ImageFacts,
    user: &User,
    hostname: &str,
    places: &Places<'_>,
) -> Result<Value, String> {
    let (rules, devices) = device_rules(service)?;
    let mut limits = resources(&service.limits, places.swap)?;
    limits["devices"] = Value::Array(rules);
    let process = process(service, image, user, hostname)?;
    let mut linux = json!({
        "namespaces": namespaces(service, places),
        "resources": limits,
        "devices": devices,
        "sysctl": service.sysctls,
        "rootfsPropagation": "rprivate",
    });
    if !service.privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    if let Some(profile) = seccomp(service)? {
        linux["seccomp"] =
            serde_json::to_value(profile).map_err(|error| format!("seccomp profile: {error}"))?;
    }
    let mut annotations = service.labels.clone();
    if service.init {
        annotations.insert(crate::container::REAPER.to_string(), "true".to_string());
    }
    Ok(without_nulls(json!({
        "ociVersion": "1.2.1",
        "process": process,
        "root": {"path": "rootfs", "readonly": service.read_only || service.rootfs.is_some()},
        "hostname": hostname,
        "domainname": service.domainname,
        "mounts": mounts(service, places)?,
        "linux": linux,
        "annotations": annotations,
    })))
}

/// Signal that asks a service to end.
pub fn stop_signal(service: &Service, image: &ImageConfig) -> Result<i32, String> {
    let name = service
        .stop_signal
        .clone()
        .or_else(|| image.stop_signal.clone().filter(|s| !s.is_empty()))
        .unwrap_or_else(|| "SIGTERM".to_string());
    signal_number(&name)
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` → number.
pub fn signal_number(name: &str) -> Result<i32, String> {
    let unknown = || format!("signal {name:?} is not known");
    let upper = name.trim().to_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=64)
            .contains(&number)
            .then_some(number)
            .ok_or_else(unknown);
    }
    let full = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    // signal(7): the C library keeps the first two real-time signals for itself
    for (base, sign, start) in [("SIGRTMIN", 1, 34), ("SIGRTMAX", -1, 64)] {
        if let Some(rest) = full.strip_prefix(base) {
            let offset = match rest.strip_prefix(['+', '-']) {
                None if rest.is_empty() => 0,
                Some(digits) => digits.parse::<i32>().map_err(|_| unknown())?,
                None => return Err(unknown()),
            };
            let number = start + sign * offset;
            return (34..=64)
                .contains(&number)
                .then_some(number)
                .ok_or_else(unknown);
        }
    }
    full.parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| unknown())
}

/// Whether a service that ended starts again.
pub fn restarts(policy: Restart, exit_code: Option<i32>, restarts: u32, stopped: bool) -> bool {
    if stopped {
        return false;
    }
    match policy {
        Restart::No => false,
        Restart::Always | Restart::UnlessStopped => true,
        Restart::OnFailure { max } => exit_code != Some(0) && max.is_none_or(|max| restarts < max),
    }
}

/// Host name of a service.
pub fn hostname(pod: &str, service: &Service) -> String {
    let name = service
        .hostname
        .clone()
        .unwrap_or_else(|| service.name.clone());
    // sethostname(2) takes 64 bytes
    if name.is_empty() {
        return pod.chars().take(64).collect();
    }
    name.chars().take(64).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(super) mod tests;
