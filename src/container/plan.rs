//! `config.json` → what to do, as two lists of steps: the parent's and the child's. Pure: what it has to know of the machine comes in
//! as [`Host`]. The order of a container's set-up is here and nowhere else; [`super::create`] and [`crate::init`] take the steps.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxNamespaceType, LinuxResources, Spec,
};
use serde::{Serialize, Serializer};

use super::CreateRequest;
use super::listener::Listener;
use crate::cgroup::Cgroup;
use crate::init;
use crate::init::hooks::Hooks;
use crate::seccomp;
use crate::sys::{clone, process as process_calls};

mod hooks;
pub mod kernel;
mod mounts;
mod namespaces;
pub mod process;
mod rootfs;

pub use hooks::{LaterHooks, hooks, poststop};
pub use namespaces::{Join, NetDevice};
use process::Way;

/// What the plan depends on beside the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// We are in a user namespace ourselves: no mknod, overlay with `userxattr`.
    pub user_namespace: bool,
    /// SELinux is active; asked only where it matters.
    pub selinux: bool,
    /// `CLONE_NEW*` bits of namespaces that are to be joined and are the caller's own; asked only where it matters.
    pub shared: u64,
}

impl Host {
    /// The machine and the user namespace that we are in, as far as `spec` asks: the first one maps everything onto itself.
    pub fn here(spec: &Spec) -> Host {
        let linux = spec.linux().as_ref();
        let label = linux.and_then(|linux| linux.mount_label().as_deref());
        Host {
            // without procfs nothing would work
            user_namespace: process_calls::in_user_namespace().unwrap_or(true),
            selinux: label.is_some_and(|label| !label.is_empty())
                && std::path::Path::new("/sys/fs/selinux/enforce").exists(),
            shared: linux.map_or(0, shared_namespaces),
        }
    }
}

/// Those by path whose sysctls or cgroups would be the caller's.
fn shared_namespaces(linux: &Linux) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| {
        let found = std::fs::metadata(path).ok();
        found.map(|found| (found.dev(), found.ino()))
    };
    let sysctls = linux.sysctl().as_ref().is_some_and(|all| !all.is_empty());
    let mut bits = 0;
    for namespace in linux.namespaces().iter().flatten() {
        let own = match namespace.typ() {
            LinuxNamespaceType::Cgroup => "/proc/self/ns/cgroup",
            LinuxNamespaceType::Network if sysctls => "/proc/self/ns/net",
            LinuxNamespaceType::Ipc if sysctls => "/proc/self/ns/ipc",
            LinuxNamespaceType::Uts if sysctls => "/proc/self/ns/uts",
            _ => continue,
        };
        let path = namespace.path().as_deref();
        // one that is not there is told when it is to be joined
        if let Some(joined) = path.and_then(id)
            && Some(joined) == id(Path::new(own))
        {
            bits |= namespace.typ() as u64;
        }
    }
    bits
}

/// One line of an id map: `size` ids from `inside` on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IdMap {
    /// First id in the container.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

/// Everything `create` does.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The parent's part.
    pub parent: Vec<Step>,
    /// The child's part, and how it ends.
    pub child: Vec<init::plan::Step>,
    /// Hooks of the container's later life.
    pub later: LaterHooks,
    /// What was asked for and is not done, where the specification wants no error.
    pub warnings: Vec<String>,
}

/// One step of the parent.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Make the cgroup, or what of it the child can be cloned into, and later the rest of it; it must have no members, and must not be
    /// frozen.
    Cgroup(Cgroup),
    /// Note what is mounted on the root's folder: what is mounted there later, in the caller's own mount namespace, is the container's
    /// and unmounted with it.
    NoteMounts(PathBuf),
    /// Let the child enter what it was not cloned into and begin to set itself up, which it does while the next steps are taken.
    Begin,
    /// Set limits of the cgroup, before anything of the container runs in it.
    Limits(Box<LinuxResources>),
    /// Keep a copy of the specification.
    KeepSpec,
    /// Make the start gate.
    Gate,
    /// Clone the child, into its cgroup where that is there already.
    Clone {
        /// `CLONE_NEW*` bits to make.
        #[serde(serialize_with = "namespace_names")]
        new: u64,
        /// Joined before.
        join: Vec<Join>,
        /// Of the new time namespace: a clock, seconds and nanoseconds, a line each.
        #[serde(skip_serializing_if = "Option::is_none")]
        time_offsets: Option<String>,
    },
    /// Give the cgroup to the host's user that the program runs as.
    CgroupOwner(u32),
    /// Have systemd make a unit of the child, with these limits and annotations.
    Unit {
        /// Its limits.
        limits: Box<LinuxResources>,
        /// The container's; `org.systemd.property.*` are properties of the unit.
        annotations: HashMap<String, String>,
    },
    /// Write the id maps of the new user namespace.
    MapIds {
        /// Users.
        uids: Vec<IdMap>,
        /// Groups.
        gids: Vec<IdMap>,
    },
    /// Move devices of the host into the network namespace.
    NetDevices(Vec<NetDevice>),
    /// Write `oom_score_adj` of the child.
    OomScore(i32),
    /// Let the child mount, and wait until it has; only for hooks, of the child too: they run in a cgroup with its limits.
    Mount,
    /// Run hooks in the namespaces of the caller.
    Hooks(Hooks),
    /// Let the child load its filter, and hand the listener of that to whoever listens.
    Listen(Listener),
    /// Let the child set itself up, and wait until it is ready.
    SetUp,
    /// Write the record under another name, while there is nothing else to do.
    Draft,
    /// Give the record its name: from now on there is a container.
    Record,
    /// Let the child go to the gate or to the program as soon as it is ready; from there on it outlives the parent.
    Release,
    /// Wait until it has gone.
    LetGo,
}

/// Annotation that asks for a first process that reaps, for which the specification has no word.
pub const REAPER: &str = "io.sampan.init";

/// Makes the plan of a container. The error names the property of the specification.
pub fn container(spec: &Spec, request: &CreateRequest, host: Host) -> Result<Plan, String> {
    refuse_unsupported(spec)?;
    let linux = spec.linux().as_ref().ok_or("linux: is missing")?;
    let spec_process = spec.process().as_ref().ok_or("process: is missing")?;
    let mut namespaces = namespaces::namespaces(linux)?;
    namespaces.shared = host.shared;
    let (uids, gids) = namespaces::id_maps(linux, &namespaces)?;
    let devices = namespaces::net_devices(linux, &namespaces)?;
    let new = namespaces.of_clone(linux);
    // whoever joins a cgroup namespace must be in the cgroup before; all others enter v1 hierarchies, of which there are many, when these
    // are made, and make namespaces meanwhile
    let (entered_before, rest) = match namespaces.joins_cgroup() {
        true => (Some(request.cgroup.clone()), None),
        false => request.cgroup.parts(),
    };
    let mut parent: Vec<Step> = entered_before.map(Step::Cgroup).into_iter().collect();
    let resources = linux.resources().as_ref().map(with_default_devices);
    let by_systemd = matches!(request.cgroup, Cgroup::Systemd { .. });
    let (now, later) = if by_systemd {
        (None, resources)
    } else {
        (resources, None)
    };
    if !request.at_once {
        parent.push(Step::Gate);
    }
    if !namespaces.own(libc::CLONE_NEWNS) {
        let root = spec.root().as_ref().ok_or("root: is missing")?;
        parent.push(Step::NoteMounts(request.bundle.join(root.path())));
    }
    parent.push(Step::Clone {
        new,
        join: namespaces.joins.clone(),
        time_offsets: namespaces::time_offsets(linux, &namespaces)?,
    });
    parent.extend(rest.map(Step::Cgroup));
    if by_systemd {
        parent.push(Step::Unit {
            limits: Box::new(later.unwrap_or_default()),
            annotations: spec.annotations().clone().unwrap_or_default(),
        });
    }
    let in_cgroup = namespaces.new & libc::CLONE_NEWCGROUP as u64 != 0;
    if in_cgroup && has_writable_cgroups(spec) {
        let uid = spec_process.user().uid();
        parent.extend(outside(&uids, uid).map(Step::CgroupOwner));
    }
    // those of a joined one are written
    if new & libc::CLONE_NEWUSER as u64 != 0 {
        namespaces::check_mapped(spec_process, &uids, &gids)?;
        parent.push(Step::MapIds { uids, gids });
    }
    if !devices.is_empty() {
        parent.push(Step::NetDevices(devices));
    }
    parent.extend(spec_process.oom_score_adj().map(Step::OomScore));
    let limits = now.map(|resources| Limits::new(resources, spec, &request.cgroup));
    let limits = limits.unwrap_or_default();
    let step = |resources| Step::Limits(Box::new(resources));
    parent.extend(limits.before.map(step));
    parent.push(Step::Begin);
    parent.extend(limits.meanwhile.map(step));
    parent.extend([Step::KeepSpec, Step::Draft]);
    let hooks = hooks::hooks(spec, request)?;
    if hooks.before_start() {
        parent.push(Step::Mount);
        parent.extend(hooks.parent.iter().cloned().map(Step::Hooks));
    }
    let capabilities = process::capabilities(spec_process.capabilities().as_ref())?;
    let filter = process::filter(linux.seccomp().as_ref())?;
    let state = || self::hooks::state(spec, request, "creating");
    let listener = Listener::of(filter.as_ref(), linux.seccomp().as_ref(), state);
    parent.extend(listener.map(Step::Listen));
    let warnings = capabilities.warnings.clone();
    let (child, way) = child(
        spec,
        request,
        host,
        &namespaces,
        &hooks,
        filter,
        capabilities,
    )?;
    // nobody may find a container that is not set up, and join its namespaces
    match way {
        Way::Gate | Way::Told => {
            parent.push(Step::SetUp);
            parent.extend(limits.after.map(step));
            parent.extend([Step::Record, Step::Release, Step::LetGo]);
        }
        Way::AtOnce => parent.extend([Step::Release, Step::LetGo, Step::Record]),
    }
    Ok(Plan {
        parent,
        child,
        later: hooks.later,
        warnings,
    })
}

/// When which limits are set. Most can be while the child sets itself up, which takes as long.
#[derive(Debug, Default)]
struct Limits {
    /// What it sets itself up by: else it would be luck whether it may.
    before: Option<LinuxResources>,
    /// What makes no difference to it.
    meanwhile: Option<LinuxResources>,
    /// What it must not be held to yet.
    after: Option<LinuxResources>,
}

impl Limits {
    fn new(mut rest: LinuxResources, spec: &Spec, cgroup: &Cgroup) -> Limits {
        let nothing = || {
            let mut nothing = LinuxResources::default();
            nothing.set_devices(None);
            nothing
        };
        let (mut before, mut after) = (nothing(), nothing());
        let rules = rest.devices().clone().filter(|rules| !rules.is_empty());
        if rules.is_some() {
            // version 1 takes them one by one, the first of which forbids everything (devices.rst): whoever makes device nodes or opens a
            // terminal meanwhile would be refused
            let one_by_one = matches!(cgroup.plain(), Cgroup::V1 { .. });
            if mounts_devices(spec) {
                rest.set_devices(None);
                after.set_devices(rules);
            } else if one_by_one {
                rest.set_devices(None);
                before.set_devices(rules);
            }
        }
        // real time needs a budget on version 1, a deadline all processors; memory is bound to nodes that must be allowed
        // (sched-rt-group.rst, sched-deadline.rst, set_mempolicy(2))
        let process = spec.process().as_ref();
        let memory = spec
            .linux()
            .as_ref()
            .is_some_and(|linux| linux.memory_policy().is_some());
        if memory || process.is_some_and(|process| process.scheduler().is_some()) {
            before.set_cpu(rest.cpu().clone());
            rest.set_cpu(None);
        }
        let some = |resources: LinuxResources| (resources != nothing()).then_some(resources);
        Limits {
            before: some(before),
            meanwhile: some(rest),
            after: some(after),
        }
    }
}

/// A file system on a device is mounted, for which that has to be opened: whoever mounts is not held to the rules of who runs later.
fn mounts_devices(spec: &Spec) -> bool {
    spec.mounts().iter().flatten().any(|mount| {
        let of_kernel = [
            "bind", "none", "overlay", "tmpfs", "proc", "sysfs", "cgroup", "cgroup2",
        ];
        let typ = mount.typ().as_deref().unwrap_or("none");
        let bind = mount
            .options()
            .iter()
            .flatten()
            .any(|o| o == "bind" || o == "rbind");
        let source = mount.source().as_deref();
        !bind && !of_kernel.contains(&typ) && source.is_some_and(std::path::Path::is_absolute)
    })
}

/// config-linux.md, "Cgroup ownership".
fn has_writable_cgroups(spec: &Spec) -> bool {
    spec.mounts().iter().flatten().any(|mount| {
        let ro = |options: &Vec<String>| options.iter().any(|option| option == "ro");
        mount.destination() == std::path::Path::new("/sys/fs/cgroup")
            && mount.source().as_deref() == Some(std::path::Path::new("cgroup"))
            && !mount.options().as_ref().is_some_and(ro)
    })
}

/// The host's id of a container's; `None` for one that is not mapped.
fn outside(map: &[IdMap], inside: u32) -> Option<u32> {
    if map.is_empty() {
        return Some(inside);
    }
    map.iter().find_map(|line| {
        let offset = inside.checked_sub(line.inside)?;
        (offset < line.size).then(|| line.outside.checked_add(offset))?
    })
}

/// The child's part.
fn child(
    spec: &Spec,
    request: &CreateRequest,
    host: Host,
    namespaces: &namespaces::Namespaces,
    hooks: &hooks::All,
    filter: Option<seccomp::Program>,
    capabilities: process::Sets,
) -> Result<(Vec<init::plan::Step>, Way), String> {
    use init::plan::Step;
    let linux = spec.linux().as_ref().ok_or("linux: is missing")?;
    let process = spec.process().as_ref().ok_or("process: is missing")?;
    let user_namespace = namespaces.own(libc::CLONE_NEWUSER);
    let preserved = request.preserve_fds;
    let around = process::Surroundings {
        capabilities,
        seccomp: filter,
        no_new_privileges: process.no_new_privileges() == Some(true),
        settings: kernel::settings(process, None, linux)?,
        umask: process.user().umask(),
        preserved,
        start: hooks.start.clone(),
        dies_with_parent: request.dies_with_parent,
    };
    let uts = |key: &str, value: &Option<String>| match value {
        Some(_) if !namespaces.own(libc::CLONE_NEWUTS) => {
            Err(format!("{key}: needs a uts namespace in linux.namespaces"))
        }
        value => Ok(value.clone().filter(|name| !name.is_empty())),
    };
    let annotations = spec.annotations().as_ref();
    let reaper =
        annotations.is_some_and(|all| all.get(REAPER).is_some_and(|value| value == "true"));
    let root = spec.root().as_ref().ok_or("root: is missing")?;
    let around_mounts = mounts::Around {
        linux,
        request,
        namespaces,
        host,
        root: &request.bundle.join(root.path()),
    };
    let rootfs = rootfs::rootfs(spec, around_mounts)?;
    let on_rootfs = |steps: Vec<crate::rootfs::Step>| steps.into_iter().map(Step::Rootfs);

    let cgroup_namespace = libc::CLONE_NEWCGROUP as u64;
    let mut steps = process::begin(
        preserved,
        namespaces.new & !namespaces.of_clone(linux) & !cgroup_namespace,
        user_namespace,
    );
    steps.push(kernel::all_processors());
    if reaper {
        // while the host's /proc is still in sight; what it shows is sealed
        steps.push(Step::OpenReaper);
    }
    steps.push(Step::NewSession);
    if !request.keep_keyring {
        steps.push(Step::NewKeyring);
    }
    if namespaces.new & libc::CLONE_NEWNET as u64 != 0 {
        steps.push(Step::Loopback);
    }
    steps.extend(uts("hostname", spec.hostname())?.map(Step::Hostname));
    steps.extend(uts("domainname", spec.domainname())?.map(Step::Domainname));
    let sysctls = namespaces::sysctls(linux, namespaces)?.into_iter();
    steps.extend(sysctls.map(|(path, value)| Step::Sysctl { path, value }));
    steps.extend(on_rootfs(rootfs.outside));
    if user_namespace {
        steps.push(Step::BecomeRoot);
    }
    // clone would take the parent's cgroup as the root (cgroup_namespaces(7))
    if namespaces.new & cgroup_namespace != 0 {
        steps.push(Step::CgroupNamespace);
    }
    steps.extend(on_rootfs(rootfs.inside));
    if hooks.before_start() {
        steps.push(Step::AwaitHooks);
    }
    steps.extend(hooks.create.clone().map(Step::Hooks));
    steps.extend(process::terminal(process, true)?);
    // after the hooks that are the runtime's, and as long as /proc is the host's
    steps.extend(kernel::labels(process, None));
    steps.extend(on_rootfs(rootfs.last));
    // a parent that has to answer on the way listens until all is set up
    let asks = |step: &Step| {
        use crate::rootfs::Step::MapSource;
        matches!(step, Step::AwaitHooks | Step::Rootfs(MapSource { .. }))
    };
    let asks = steps.iter().any(asks) || around.listens() || mounts_devices(spec);
    let way = match (request.at_once, asks) {
        (false, _) => Way::Gate,
        (true, true) => Way::Told,
        (true, false) => Way::AtOnce,
    };
    steps.extend(process::finish(process, around, way)?);
    Ok((steps, way))
}

/// Whether a pid namespace is made: its processes end with the first one.
pub fn has_own_pids(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| namespaces::namespaces(linux).ok());
    namespaces.is_some_and(|all| all.new & libc::CLONE_NEWPID as u64 != 0)
}

/// Whether a container has no mount namespace of its own.
pub fn shares_mounts(linux: &Linux) -> bool {
    namespaces::namespaces(linux).is_ok_and(|all| !all.own(libc::CLONE_NEWNS))
}

fn namespace_names<S: Serializer>(bits: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(clone::namespace_words(*bits))
}

/// Properties that change what a container is and that we do not do: never ignored.
fn refuse_unsupported(spec: &Spec) -> Result<(), String> {
    if spec.version().is_empty() {
        return Err("ociVersion: is missing".to_owned());
    }
    // it would be the bundle itself
    let root = spec.root().as_ref();
    if root.is_some_and(|root| root.path().as_os_str().is_empty()) {
        return Err("root.path: is missing".to_owned());
    }
    if !spec.version().starts_with("1.") {
        return Err(format!(
            "ociVersion: {} is not supported, only 1.x is",
            spec.version()
        ));
    }
    let linux = spec.linux().as_ref();
    if linux.is_some_and(|linux| linux.intel_rdt().is_some()) {
        return Err("linux.intelRdt: is not supported".to_owned());
    }
    Ok(())
}

/// The default devices must work (config-linux.md "Default Devices"), so rules that allow them follow the specification's; making any
/// node is allowed, opening it is not.
fn with_default_devices(resources: &LinuxResources) -> LinuxResources {
    let mut resources = resources.clone();
    let Some(rules) = resources
        .devices_mut()
        .as_mut()
        .filter(|rules| !rules.is_empty())
    else {
        return resources;
    };
    let any = |typ, access: &str, major: Option<i64>, minor: Option<i64>| {
        let mut rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(typ)
            .access(access);
        if let Some(major) = major {
            rule = rule.major(major);
        }
        if let Some(minor) = minor {
            rule = rule.minor(minor);
        }
        rule.build().ok()
    };
    let c = LinuxDeviceType::C;
    let allowed = [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
    ];
    rules.extend(any(c, "m", None, None));
    rules.extend(any(LinuxDeviceType::B, "m", None, None));
    rules.extend(
        allowed
            .iter()
            .filter_map(|(major, minor)| any(c, "rwm", Some(*major), Some(*minor))),
    );
    rules.extend(any(c, "rwm", Some(136), None)); // /dev/pts
    resources
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
