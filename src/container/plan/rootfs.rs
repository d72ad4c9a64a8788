//! The steps on the file system. Pure.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Spec};

use super::super::{CreateRequest, Rootfs};
use crate::cgroup::Cgroup;
use crate::rootfs::devices::{self, Device, NodeKind};
use crate::rootfs::overlay::Layers;
use crate::rootfs::{Mount, Source, Step, options, resolve};

/// What is done with the caller's ids, with those of the container's root, and, after the terminal, at the end.
#[derive(Debug, Default)]
pub struct Stages {
    /// Opens everything outside.
    pub outside: Vec<Step>,
    /// Mounts.
    pub inside: Vec<Step>,
    /// Enters.
    pub last: Vec<Step>,
}

/// The steps of the root file system. `no_mknod` says that a user namespace stands in the way of device nodes.
pub fn rootfs(
    spec: &Spec,
    linux: &Linux,
    request: &CreateRequest,
    no_mknod: bool,
) -> Result<Stages, String> {
    let root = spec.root().as_ref().ok_or("root: is missing")?;
    let path = request.bundle.join(root.path());
    let mut stages = Stages::default();
    let propagation = propagation(linux)?;
    let entries = spec.mounts().iter().flatten();
    let entries = entries
        .map(|entry| mount(entry, request))
        .collect::<Result<Vec<_>, _>>()?;
    let follows = |kind| kind == libc::MS_SLAVE || kind == libc::MS_SHARED;
    stages.outside.push(Step::Isolate {
        follow_host: propagation.is_some_and(|(kind, _)| follows(kind))
            || entries
                .iter()
                .any(|entry| options::follows_host(&entry.mount)),
    });
    match &request.rootfs {
        Rootfs::Bundle => {
            stages.outside.push(Step::OpenRoot(path.clone()));
            stages.inside.push(Step::MountRoot(path));
        }
        Rootfs::Overlay { lower, upper, work } => {
            let layers = Layers {
                lower: lower.clone(),
                upper: upper.clone(),
                work: work.clone(),
                userxattr: no_mknod,
            };
            if no_mknod {
                stages.outside.push(Step::OpenLayers(layers.clone()));
            }
            stages.inside.push(Step::MountOverlay { path, layers });
        }
    }
    let host_dev = entries.iter().any(|Entry { mount, .. }| {
        resolve::clean(&mount.destination) == Path::new("/dev")
            && matches!(mount.source, Source::Bind)
    });
    let late = entries.iter().any(|entry| entry.mount.late_readonly);
    for Entry { sources, mount } in entries {
        stages.outside.extend(sources);
        stages.inside.push(Step::Mount(mount));
    }
    if !host_dev {
        for device in device_nodes(linux)? {
            stages.inside.push(if no_mknod {
                stages.outside.push(Step::OpenSource {
                    path: device.path.clone(),
                    recursive: false,
                    beneath: None,
                });
                Step::BindDevice(device.path)
            } else {
                Step::Device(device)
            });
        }
        stages.inside.push(Step::DeviceLinks);
    }
    if let Some(process) = spec.process() {
        stages.inside.push(Step::Folder(process.cwd().clone()));
    }
    if late {
        stages.inside.push(Step::LateReadonly);
    }
    let paths = |list: &Option<Vec<String>>| -> Vec<PathBuf> {
        list.iter().flatten().map(PathBuf::from).collect()
    };
    let readonly = paths(linux.readonly_paths());
    stages
        .inside
        .extend(readonly.into_iter().map(Step::Readonly));
    let masked = paths(linux.masked_paths());
    if !masked.is_empty() {
        stages.outside.push(Step::OpenNull);
    }
    stages.inside.extend(masked.into_iter().map(Step::Mask));
    stages.last.push(if request.no_pivot {
        Step::MoveRoot
    } else {
        Step::Pivot
    });
    if let Some((kind, recursive)) = propagation {
        stages.last.push(Step::RootPropagation { kind, recursive });
    }
    if root.readonly() == Some(true) {
        stages.last.push(Step::RootReadonly);
    }
    Ok(stages)
}

fn propagation(linux: &Linux) -> Result<Option<(u64, bool)>, String> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(None),
        Some(word) => match options::propagation(word) {
            None => Err(format!("linux.rootfsPropagation: {word} is unknown")),
            known => Ok(known),
        },
    }
}

/// One of `mounts` with what has to be opened for it.
struct Entry {
    sources: Vec<Step>,
    mount: Mount,
}

fn mount(entry: &oci_spec::runtime::Mount, request: &CreateRequest) -> Result<Entry, String> {
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
    let open = |path: PathBuf, recursive, beneath| Step::OpenSource {
        path,
        recursive,
        beneath,
    };
    let mut sources = Vec::new();
    let mut attributes = parsed.attributes;
    let mut late_readonly = false;
    let source = if parsed.bind.is_some() || fstype == "bind" {
        if let Some(option) = parsed.data.first() {
            return Err(format!("{at}: option {option} is unknown for a bind mount"));
        }
        let path = entry
            .source()
            .as_ref()
            .ok_or(format!("{at}: a bind mount needs a source"))?;
        sources.push(open(
            request.bundle.join(path),
            parsed.bind == Some(true),
            parsed.subpath.map(PathBuf::from),
        ));
        Source::Bind
    } else {
        match (fstype.as_str(), request.cgroup.plain()) {
            ("", _) => return Err(format!("{at}: type is missing")),
            ("cgroup" | "cgroup2", Cgroup::V2(path)) => {
                sources.push(open(path.clone(), false, None));
                Source::Bind
            }
            (
                "cgroup" | "cgroup2",
                Cgroup::V1 {
                    controllers,
                    unified,
                },
            ) => {
                let named = controllers
                    .iter()
                    .map(|(name, path)| (name.strip_prefix("name=").unwrap_or(name), path));
                let unified = unified.iter().map(|path| ("unified", path));
                let mut names = Vec::new();
                for (name, path) in named.chain(unified) {
                    sources.push(open(path.clone(), false, None));
                    names.push(name.to_owned());
                }
                Source::CgroupV1(names)
            }
            _ => {
                let mut data = parsed.data;
                if fstype == "tmpfs" {
                    late_readonly = attributes.set & libc::MOUNT_ATTR_RDONLY != 0;
                    attributes.set &= !libc::MOUNT_ATTR_RDONLY;
                }
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
    Ok(Entry {
        sources,
        mount: Mount {
            destination,
            source,
            attributes,
            recursive: parsed.recursive,
            late_readonly,
        },
    })
}

/// The default devices and the specification's, which replace defaults of the same path. `/dev/ptmx`, which callers list when they
/// give all devices of the host, stays the link to the container's own devpts (config-linux.md "Default Devices").
fn device_nodes(linux: &Linux) -> Result<Vec<Device>, String> {
    let mut nodes = devices::defaults();
    for device in linux.devices().iter().flatten() {
        let node = device_node(device)?;
        if node.path == Path::new("/dev/ptmx") {
            continue;
        }
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
