//! The steps on the file system. Pure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Spec};

use super::super::Rootfs;
use super::mounts::{self, Around};
use crate::rootfs::devices::{self, Device, NodeKind};
use crate::rootfs::overlay::Layers;
use crate::rootfs::{Step, options, resolve};

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

/// The steps of the root file system.
pub fn rootfs(spec: &Spec, around: Around<'_>) -> Result<Stages, String> {
    let root = spec.root().as_ref().ok_or("root: is missing")?;
    let (linux, request) = (around.linux, around.request);
    let label = linux.mount_label().as_deref().unwrap_or_default();
    if !label.is_empty() && !around.host.selinux {
        return Err("linux.mountLabel: SELinux is not active on this machine".to_owned());
    }
    let mut stages = Stages::default();
    let mut sources = 0;
    let entries = spec.mounts().iter().flatten().enumerate();
    let entries = entries
        .map(|(index, mount)| mounts::entry(mount, index, around, &mut sources))
        .collect::<Result<Vec<_>, _>>()?;
    let propagation = propagation(linux)?;
    begin(&mut stages, around, propagation);
    let mut late = false;
    let isolated = stages
        .outside
        .iter()
        .position(|step| matches!(step, Step::Isolate | Step::CutOff));
    for entry in entries {
        late |= entry.inside.iter().any(is_late);
        // what is tied to the host's mounts is opened before the two are separated
        let before = isolated.unwrap_or_default();
        stages.outside.splice(before..before, entry.early);
        stages.outside.extend(entry.outside);
        stages.inside.extend(entry.inside);
    }
    if !spec.mounts().iter().flatten().any(mounts::is_host_dev) {
        devices(&mut stages, around, &mut sources)?;
    }
    if let Some(process) = spec.process() {
        stages.inside.push(Step::Folder(process.cwd().clone()));
    }
    if late {
        // after the terminal, which stands in /dev
        stages.last.push(Step::LateReadonly);
    }
    cover(&mut stages, linux);
    stages.last.push(match request.no_pivot {
        _ if !around.namespaces.own(libc::CLONE_NEWNS) => Step::ChangeRoot,
        true => Step::MoveRoot,
        false => Step::Pivot,
    });
    // private it is already, and a follower when it was opened as one: saying so again would also change the mounts below
    if let Some((kind, recursive)) = propagation
        && (kind == libc::MS_SHARED || kind == libc::MS_UNBINDABLE)
    {
        stages.last.push(Step::RootPropagation { kind, recursive });
    }
    if root.readonly() == Some(true) {
        stages.last.push(Step::RootReadonly);
    }
    Ok(stages)
}

fn is_late(step: &Step) -> bool {
    matches!(step, Step::Mount(mount) if mount.late_readonly)
}

/// The root, and the separation from the host's mounts.
fn begin(stages: &mut Stages, around: Around<'_>, propagation: Option<(u64, bool)>) {
    let path = around.root.to_owned();
    let follow_host = propagation.is_some_and(|(kind, _)| kind == libc::MS_SLAVE);
    let open = Step::OpenRoot {
        path: path.clone(),
        follow_host,
    };
    match &around.request.rootfs {
        Rootfs::Bundle if !around.namespaces.own(libc::CLONE_NEWNS) => {
            stages.outside.extend([Step::CutOff, open]);
            // what it was attached to may have made it shared again
            let private = Step::RootPropagation {
                kind: libc::MS_PRIVATE,
                recursive: true,
            };
            stages.inside.extend([Step::MountRoot, private]);
        }
        Rootfs::Bundle => {
            stages.outside.extend(if follow_host {
                [open, Step::Isolate]
            } else {
                [Step::Isolate, open]
            });
            stages.inside.push(Step::MountRoot);
        }
        Rootfs::Folder { path } => {
            let open = Step::OpenRoot {
                path: path.clone(),
                follow_host: false,
            };
            stages.outside.extend([Step::Isolate, open]);
            stages.inside.extend([Step::MountRoot, Step::SealRoot]);
        }
        Rootfs::Overlay { lower, upper, work } => {
            stages.outside.push(Step::Isolate);
            let layers = Layers {
                lower: lower.clone(),
                upper: upper.clone(),
                work: work.clone(),
                userxattr: around.in_user_namespace(),
            };
            if layers.userxattr {
                stages.outside.push(Step::OpenLayers(layers.clone()));
            }
            stages.inside.push(Step::MountOverlay { path, layers });
        }
    }
}

/// Device nodes; in a user namespace the host's own are bound, but for pipes, which anybody may make.
fn devices(stages: &mut Stages, around: Around<'_>, sources: &mut usize) -> Result<(), String> {
    for device in device_nodes(around.linux)? {
        if !around.in_user_namespace() || device.kind == NodeKind::Fifo {
            stages.inside.push(Step::Device(device));
            continue;
        }
        stages.outside.push(Step::OpenSource {
            source: *sources,
            path: device.path.clone(),
            destination: device.path.clone(),
            recursive: false,
            beneath: None,
        });
        stages.inside.push(Step::BindDevice {
            device,
            source: *sources,
        });
        *sources += 1;
    }
    stages.inside.push(Step::DeviceLinks);
    Ok(())
}

/// Read-only and masked paths, each once.
fn cover(stages: &mut Stages, linux: &Linux) {
    let paths = |list: &Option<Vec<String>>| {
        let mut seen = BTreeSet::new();
        let paths = list.iter().flatten().map(PathBuf::from);
        paths
            .filter(|path| seen.insert(resolve::clean(path)))
            .collect::<Vec<_>>()
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
    let path = resolve::clean(device.path());
    if path == Path::new("/") {
        return Err(format!("{at}: is no place for a device"));
    }
    Ok(Device {
        path,
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
