//! `config.json` → what to do, as two lists of steps: the parent's and the child's. Pure: what it has to know of the machine comes in
//! as [`Host`]. The order of a container's set-up is here and nowhere else; [`super::create`] and [`crate::init`] take the steps.

use std::collections::HashMap;

use oci_spec::runtime::{Linux, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxResources, Spec};
use serde::{Serialize, Serializer};

use super::CreateRequest;
use crate::cgroup::Cgroup;
use crate::init;

mod mounts;
mod namespaces;
pub mod process;
mod rootfs;

pub use namespaces::Join;

/// What the plan depends on beside the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// We are in a user namespace ourselves: no mknod, overlay with `userxattr`.
    pub user_namespace: bool,
    /// SELinux is active; asked only where it matters.
    pub selinux: bool,
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
    /// The child's part.
    pub child: Vec<init::plan::Step>,
}

/// One step of the parent.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Make the cgroup; it must have no members, and must not be frozen.
    Cgroup(Cgroup),
    /// Set the limits of the cgroup.
    Limits(Box<LinuxResources>),
    /// Make the start gate.
    Gate,
    /// Clone the child, into its cgroup where that is there already.
    Clone {
        /// `CLONE_NEW*` bits to make.
        #[serde(serialize_with = "namespace_names")]
        new: u64,
        /// Joined before.
        join: Vec<Join>,
    },
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
    /// Write `oom_score_adj` of the child.
    OomScore(i32),
    /// Let the child set itself up, and wait until it is ready.
    SetUp,
    /// Write the record.
    Record,
    /// Let the child go to the gate; from here on it outlives the parent.
    Release,
}

/// Annotation that asks for a first process that reaps, for which the specification has no word.
pub const REAPER: &str = "io.sampan.init";

/// Makes the plan of a container. The error names the property of the specification.
pub fn container(spec: &Spec, request: &CreateRequest, host: Host) -> Result<Plan, String> {
    refuse_unsupported(spec)?;
    let linux = spec.linux().as_ref().ok_or("linux: is missing")?;
    let spec_process = spec.process().as_ref().ok_or("process: is missing")?;
    let namespaces = namespaces::namespaces(linux)?;
    let (uids, gids) = namespaces::id_maps(linux, &namespaces)?;
    // made by the child once it is in its cgroup: clone takes the parent's cgroup as the root (cgroup_namespaces(7))
    let new = namespaces.new & !(libc::CLONE_NEWCGROUP as u64);
    let mut parent = vec![Step::Cgroup(request.cgroup.clone())];
    let resources = linux.resources().as_ref().map(with_default_devices);
    let by_systemd = matches!(request.cgroup, Cgroup::Systemd { .. });
    let (now, later) = if by_systemd {
        (None, resources)
    } else {
        (resources, None)
    };
    parent.extend(now.map(|resources| Step::Limits(Box::new(resources))));
    parent.push(Step::Gate);
    parent.push(Step::Clone {
        new,
        join: namespaces.joins.clone(),
    });
    if by_systemd {
        parent.push(Step::Unit {
            limits: Box::new(later.unwrap_or_default()),
            annotations: spec.annotations().clone().unwrap_or_default(),
        });
    }
    if !uids.is_empty() || !gids.is_empty() {
        parent.push(Step::MapIds { uids, gids });
    }
    parent.extend(spec_process.oom_score_adj().map(Step::OomScore));
    parent.extend([Step::SetUp, Step::Record, Step::Release]);
    Ok(Plan {
        parent,
        child: child(spec, request, host, &namespaces)?,
    })
}

/// The child's part.
fn child(
    spec: &Spec,
    request: &CreateRequest,
    host: Host,
    namespaces: &namespaces::Namespaces,
) -> Result<Vec<init::plan::Step>, String> {
    use init::plan::Step;
    let linux = spec.linux().as_ref().ok_or("linux: is missing")?;
    let process = spec.process().as_ref().ok_or("process: is missing")?;
    let user_namespace = namespaces.own(libc::CLONE_NEWUSER);
    let preserved = request.preserve_fds;
    let around = process::Surroundings {
        capabilities: process::capabilities(process.capabilities().as_ref())?,
        seccomp: process::filter(linux.seccomp().as_ref())?,
        no_new_privileges: process.no_new_privileges() == Some(true),
        personality: personality(linux)?,
        preserved,
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

    let mut steps = process::begin(preserved);
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
    if namespaces.new & libc::CLONE_NEWCGROUP as u64 != 0 {
        steps.push(Step::CgroupNamespace);
    }
    steps.extend(on_rootfs(rootfs.inside));
    steps.extend(process::terminal(process, true)?);
    steps.extend(on_rootfs(rootfs.last));
    steps.extend(process::finish(process, around, true)?);
    Ok(steps)
}

/// Whether a pid namespace is made: its processes end with the first one.
pub fn has_own_pids(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| namespaces::namespaces(linux).ok());
    namespaces.is_some_and(|all| all.new & libc::CLONE_NEWPID as u64 != 0)
}

/// `CLONE_NEW*` bits in words.
pub fn namespace_words(bits: u64) -> Vec<&'static str> {
    [
        (libc::CLONE_NEWNS, "mount"),
        (libc::CLONE_NEWUTS, "uts"),
        (libc::CLONE_NEWIPC, "ipc"),
        (libc::CLONE_NEWUSER, "user"),
        (libc::CLONE_NEWPID, "pid"),
        (libc::CLONE_NEWNET, "network"),
        (libc::CLONE_NEWCGROUP, "cgroup"),
        (libc::CLONE_NEWTIME, "time"),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & *bit as u64 != 0)
    .map(|(_, name)| name)
    .collect()
}

fn namespace_names<S: Serializer>(bits: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(namespace_words(*bits))
}

/// Properties that change what a container is and that we do not do: never ignored.
fn refuse_unsupported(spec: &Spec) -> Result<(), String> {
    if !spec.version().starts_with("1.") {
        return Err(format!(
            "ociVersion: {} is not supported, only 1.x is",
            spec.version()
        ));
    }
    let linux = spec.linux().as_ref();
    let process = spec.process().as_ref();
    let text = |value: Option<&Option<String>>| {
        value
            .and_then(Option::as_ref)
            .is_some_and(|text| !text.is_empty())
    };
    let hooks = spec.hooks().as_ref().is_some_and(|hooks| {
        [
            #[allow(deprecated)]
            hooks.prestart(),
            hooks.create_runtime(),
            hooks.create_container(),
            hooks.start_container(),
            hooks.poststart(),
            hooks.poststop(),
        ]
        .iter()
        .any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
    });
    let unsupported = [
        ("hooks", hooks),
        (
            "process.apparmorProfile",
            text(process.map(|process| process.apparmor_profile())),
        ),
        (
            "process.selinuxLabel",
            text(process.map(|process| process.selinux_label())),
        ),
        (
            "process.scheduler",
            process.is_some_and(|process| process.scheduler().is_some()),
        ),
        (
            "process.ioPriority",
            process.is_some_and(|process| process.io_priority().is_some()),
        ),
        (
            "process.execCPUAffinity",
            process.is_some_and(|process| process.exec_cpu_affinity().is_some()),
        ),
        (
            "linux.intelRdt",
            linux.is_some_and(|linux| linux.intel_rdt().is_some()),
        ),
        (
            "linux.memoryPolicy",
            linux.is_some_and(|linux| linux.memory_policy().is_some()),
        ),
        (
            "linux.netDevices",
            linux.is_some_and(|linux| {
                linux
                    .net_devices()
                    .as_ref()
                    .is_some_and(|map| !map.is_empty())
            }),
        ),
        (
            "linux.timeOffsets",
            linux.is_some_and(|linux| {
                linux
                    .time_offsets()
                    .as_ref()
                    .is_some_and(|map| !map.is_empty())
            }),
        ),
    ];
    match unsupported.iter().find(|(_, present)| *present) {
        Some((key, _)) => Err(format!("{key}: is not supported")),
        None => Ok(()),
    }
}

fn personality(linux: &Linux) -> Result<Option<u64>, String> {
    use oci_spec::runtime::LinuxPersonalityDomain;
    let Some(personality) = linux.personality() else {
        return Ok(None);
    };
    if personality
        .flags()
        .as_ref()
        .is_some_and(|flags| !flags.is_empty())
    {
        return Err("linux.personality.flags: are not supported".to_owned());
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
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
mod tests;
