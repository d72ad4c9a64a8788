//! `config.json` → what to do, as plain data. Pure: what it has to know of the machine comes in as [`Host`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxIdMapping,
    LinuxNamespaceType, LinuxResources, Spec,
};

use super::process::{capabilities, filter, process};
use super::{CreateRequest, Rootfs};
use crate::cgroup::Cgroup;
use crate::init::plan::InitPlan;
use crate::rootfs::devices::{self, Device, NodeKind};
use crate::rootfs::overlay::Layers;
use crate::rootfs::{self, Mount, Source, options, resolve};

/// What the plan depends on beside the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// We are in a user namespace ourselves: no mknod, overlay with `userxattr`.
    pub user_namespace: bool,
}

/// One line of an id map: `size` ids from `inside` on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// First id in the container.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

/// Everything `create` does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The child's part.
    pub init: InitPlan,
    /// `CLONE_NEW*` bits.
    pub new: u64,
    /// Namespaces to join: `CLONE_NEW*` bit and path.
    pub joins: Vec<(u64, PathBuf)>,
    /// Of a new user namespace.
    pub uid_map: Vec<IdMap>,
    /// Of a new user namespace.
    pub gid_map: Vec<IdMap>,
    /// For the first process.
    pub oom_score_adj: Option<i32>,
    /// For the cgroup.
    pub resources: Option<LinuxResources>,
}

const USER: u64 = libc::CLONE_NEWUSER as u64;
const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;

/// Makes the plan of a container. The error names the property of the specification.
pub fn container(spec: &Spec, request: &CreateRequest, host: Host) -> Result<Plan, String> {
    refuse_unsupported(spec)?;
    let linux = spec.linux().as_ref().ok_or("linux: is missing")?;
    let spec_process = spec.process().as_ref().ok_or("process: is missing")?;
    let (mut new, joins) = namespaces(linux)?;
    let joined = joins.iter().fold(0, |all, (flag, _)| all | flag);
    let own = new | joined;
    let user_namespace = own & USER != 0;
    let mut init_process = process(spec_process)?;
    init_process.user_namespace = user_namespace;
    init_process.capabilities = capabilities(spec_process.capabilities().as_ref())?;
    init_process.seccomp = filter(linux.seccomp().as_ref())?;
    init_process.personality = personality(linux)?;
    init_process.reaper = request.init;
    let uts = |key: &str, value: &Option<String>| match value {
        Some(_) if own & libc::CLONE_NEWUTS as u64 == 0 => {
            Err(format!("{key}: needs a uts namespace in linux.namespaces"))
        }
        value => Ok(value.clone().filter(|name| !name.is_empty())),
    };
    let maps = |key: &str, maps: &Option<Vec<LinuxIdMapping>>| match maps.as_deref() {
        None | Some([]) if new & USER != 0 => Err(format!(
            "linux.{key}: is empty, a new user namespace needs it"
        )),
        Some([_, ..]) if !user_namespace => Err(format!(
            "linux.{key}: needs a user namespace in linux.namespaces"
        )),
        maps => Ok(maps.unwrap_or_default().iter().map(id_map).collect()),
    };
    let (uid_map, gid_map) = (
        maps("uidMappings", linux.uid_mappings())?,
        maps("gidMappings", linux.gid_mappings())?,
    );
    // made by the child once it is in its cgroup: clone takes the parent's cgroup as the root (cgroup_namespaces(7))
    let cgroup_namespace = new & CGROUP != 0;
    new &= !CGROUP;
    let no_mknod = user_namespace || host.user_namespace;
    Ok(Plan {
        init: InitPlan {
            rootfs: root(spec, linux, request, no_mknod)?,
            hostname: uts("hostname", spec.hostname())?,
            domainname: uts("domainname", spec.domainname())?,
            sysctls: sysctls(linux, own)?,
            loopback: new & libc::CLONE_NEWNET as u64 != 0,
            cgroup_namespace,
            process: init_process,
        },
        new,
        joins,
        uid_map,
        gid_map,
        oom_score_adj: spec_process.oom_score_adj(),
        resources: linux.resources().as_ref().map(with_default_devices),
    })
}

fn id_map(map: &LinuxIdMapping) -> IdMap {
    IdMap {
        inside: map.container_id(),
        outside: map.host_id(),
        size: map.size(),
    }
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
    let id_mapped = spec.mounts().iter().flatten().find(|mount| {
        mount
            .uid_mappings()
            .as_ref()
            .is_some_and(|maps| !maps.is_empty())
            || mount
                .gid_mappings()
                .as_ref()
                .is_some_and(|maps| !maps.is_empty())
    });
    if let Some(mount) = id_mapped {
        return Err(format!(
            "mounts: {}: id-mapped mounts are not supported",
            mount.destination().display()
        ));
    }
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
            "linux.mountLabel",
            text(linux.map(|linux| linux.mount_label())),
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

/// `CLONE_NEW*` bits to make, and what to join.
fn namespaces(linux: &Linux) -> Result<(u64, Vec<(u64, PathBuf)>), String> {
    let (mut new, mut joins) = (0, Vec::new());
    let mut seen = BTreeSet::new();
    for namespace in linux.namespaces().iter().flatten() {
        let typ = namespace.typ();
        // oci-spec gives the kernel's own numbers
        let flag = typ as u64;
        if !seen.insert(flag) {
            return Err(format!("linux.namespaces: {typ} is there twice"));
        }
        match namespace.path() {
            Some(path) if !path.as_os_str().is_empty() => {
                if typ == LinuxNamespaceType::Mount {
                    return Err(
                        "linux.namespaces: joining a mount namespace by path is not supported"
                            .to_owned(),
                    );
                }
                joins.push((flag, path.clone()));
            }
            _ => new |= flag,
        }
    }
    if new & libc::CLONE_NEWNS as u64 == 0 {
        return Err("linux.namespaces: a mount namespace is needed".to_owned());
    }
    Ok((new, joins))
}

/// Sysctls that belong to one of the container's own namespaces; anything else would change the host.
fn sysctls(linux: &Linux, own: u64) -> Result<Vec<(PathBuf, String)>, String> {
    const IPC: [&str; 8] = [
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
    ];
    let mut out = Vec::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        let path = key.replace('.', "/");
        let parts: Vec<&str> = path.split('/').collect();
        if parts.iter().any(|part| part.is_empty() || *part == "..") {
            return Err(format!("linux.sysctl: {key} is not a name"));
        }
        let (flag, name) = match parts.as_slice() {
            ["net", ..] => (libc::CLONE_NEWNET, "network"),
            ["kernel", last] if IPC.contains(last) => (libc::CLONE_NEWIPC, "ipc"),
            ["fs", "mqueue", _] => (libc::CLONE_NEWIPC, "ipc"),
            ["kernel", "domainname"] => (libc::CLONE_NEWUTS, "uts"),
            ["kernel", "hostname"] => {
                return Err("linux.sysctl: kernel.hostname: use hostname instead".to_owned());
            }
            _ => {
                return Err(format!(
                    "linux.sysctl: {key} is not separate for a container"
                ));
            }
        };
        if own & flag as u64 == 0 {
            return Err(format!(
                "linux.sysctl: {key} needs a {name} namespace in linux.namespaces"
            ));
        }
        out.push((path.into(), value.clone()));
    }
    out.sort();
    Ok(out)
}

fn root(
    spec: &Spec,
    linux: &Linux,
    request: &CreateRequest,
    no_mknod: bool,
) -> Result<rootfs::Plan, String> {
    let root = spec.root().as_ref().ok_or("root: is missing")?;
    let mounts = spec.mounts().iter().flatten();
    let mounts = mounts
        .map(|entry| mount(entry, request))
        .collect::<Result<Vec<_>, _>>()?;
    let host_dev = mounts.iter().any(|mount| {
        resolve::clean(&mount.destination) == Path::new("/dev")
            && matches!(mount.source, Source::Bind { .. })
    });
    let propagation = match linux.rootfs_propagation().as_deref() {
        None | Some("") => None,
        Some(word) => Some(
            options::propagation(word)
                .ok_or(format!("linux.rootfsPropagation: {word} is unknown"))?,
        ),
    };
    let outward =
        propagation.is_some_and(|(kind, _)| kind == libc::MS_SLAVE || kind == libc::MS_SHARED);
    let paths = |list: &Option<Vec<String>>| list.iter().flatten().map(PathBuf::from).collect();
    let process = spec.process().as_ref();
    Ok(rootfs::Plan {
        path: request.bundle.join(root.path()),
        root: match &request.rootfs {
            Rootfs::Bundle => rootfs::Root::Folder,
            Rootfs::Overlay { lower, upper, work } => rootfs::Root::Overlay(Layers {
                lower: lower.clone(),
                upper: upper.clone(),
                work: work.clone(),
                userxattr: no_mknod,
            }),
        },
        follow_host: outward || mounts.iter().any(options::follows_host),
        mounts,
        devices: if host_dev {
            Vec::new()
        } else {
            device_nodes(linux)?
        },
        dev_links: !host_dev,
        bind_devices: no_mknod,
        cwd: process
            .map(|process| process.cwd().clone())
            .unwrap_or_default(),
        masked: paths(linux.masked_paths()),
        readonly: paths(linux.readonly_paths()),
        readonly_root: root.readonly() == Some(true),
        propagation,
    })
}

fn mount(entry: &oci_spec::runtime::Mount, request: &CreateRequest) -> Result<Mount, String> {
    // their super block is shared with the host or takes no flag of its own: read-only belongs to the mount
    const KERNEL: [&str; 8] = [
        "proc",
        "sysfs",
        "tmpfs",
        "devpts",
        "mqueue",
        "devtmpfs",
        "securityfs",
        "debugfs",
    ];
    let destination = entry.destination().clone();
    let at = format!("mounts: {}", destination.display());
    let words = entry.options().clone().unwrap_or_default();
    let parsed = options::parse(&words)
        .map_err(|option| format!("{at}: option {option} is not supported"))?;
    let fstype = entry.typ().clone().unwrap_or_default();
    let source = if parsed.bind.is_some() || fstype == "bind" {
        if let Some(option) = parsed.data.first() {
            return Err(format!("{at}: option {option} is unknown for a bind mount"));
        }
        let path = entry
            .source()
            .as_ref()
            .ok_or(format!("{at}: a bind mount needs a source"))?;
        Source::Bind {
            path: request.bundle.join(path),
            recursive: parsed.bind == Some(true),
        }
    } else {
        match (fstype.as_str(), &request.cgroup) {
            ("", _) => return Err(format!("{at}: type is missing")),
            ("cgroup" | "cgroup2", Cgroup::V2(path)) => Source::Bind {
                path: path.clone(),
                recursive: false,
            },
            (
                "cgroup" | "cgroup2",
                Cgroup::V1 {
                    controllers,
                    unified,
                },
            ) => {
                let named = controllers.iter().map(|(name, path)| {
                    (
                        name.strip_prefix("name=").unwrap_or(name).to_owned(),
                        path.clone(),
                    )
                });
                Source::CgroupV1(
                    named
                        .chain(
                            unified
                                .iter()
                                .map(|path| ("unified".to_owned(), path.clone())),
                        )
                        .collect(),
                )
            }
            _ => {
                let mut data = parsed.data;
                if parsed.attributes.set & libc::MOUNT_ATTR_RDONLY != 0
                    && !KERNEL.contains(&fstype.as_str())
                {
                    data.push("ro".to_owned());
                }
                Source::Filesystem {
                    source: entry
                        .source()
                        .as_ref()
                        .map(|path| path.to_string_lossy().into_owned()),
                    fstype,
                    options: data,
                }
            }
        }
    };
    Ok(Mount {
        destination,
        source,
        attributes: parsed.attributes,
        recursive: parsed.recursive,
    })
}

/// The default devices and the specification's, which replace defaults of the same path.
fn device_nodes(linux: &Linux) -> Result<Vec<Device>, String> {
    let mut nodes = devices::defaults();
    for device in linux.devices().iter().flatten() {
        let node = device_node(device)?;
        nodes.retain(|other| other.path != node.path);
        nodes.push(node);
    }
    Ok(nodes)
}

fn device_node(device: &LinuxDevice) -> Result<Device, String> {
    let at = format!("linux.devices: {}", device.path().display());
    let number = |value: i64| {
        u32::try_from(value).map_err(|_| format!("{at}: {value} is not a device number"))
    };
    let kind = match device.typ() {
        LinuxDeviceType::B => NodeKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => NodeKind::Character,
        LinuxDeviceType::P => NodeKind::Fifo,
        LinuxDeviceType::A => return Err(format!("{at}: type a is not a node")),
    };
    Ok(Device {
        path: device.path().clone(),
        kind,
        major: if kind == NodeKind::Fifo {
            0
        } else {
            number(device.major())?
        },
        minor: if kind == NodeKind::Fifo {
            0
        } else {
            number(device.minor())?
        },
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
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
