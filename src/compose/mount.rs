//! Phase 6, `volumes`, `tmpfs` and `devices` of a service.
//!
//! *Invariants.* Targets are absolute, clean and mounted once per service; sources on the host are absolute. Whether a
//! named volume is declared is judged by `resolve`.

use std::collections::HashMap;
use std::path::PathBuf;

use super::canonical::PROPAGATIONS;
use super::node::{At, Pos, Result};
use super::project::{Mount, MountSource, VolumesFrom};
use super::service::Context;
use super::units;
use super::{contents, schema};

/// An absolute path in the container, without `.`, `..` and double slashes.
pub(super) fn container_path(at: &At<'_>) -> Result<String> {
    let text = at.string()?;
    if !text.starts_with('/') || text.contains('\0') {
        return Err(at.error(format_args!(
            "{text:?} is not an absolute path in the container"
        )));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// All mounts: `volumes` in their order, files of the host among `configs` and `secrets`, `tmpfs`, the other files.
pub(super) fn mounts(at: &At<'_>, context: &Context<'_>) -> Result<Vec<Mount>> {
    let mut out = Vec::new();
    let mut seen: HashMap<String, Pos> = HashMap::new();
    let mut add = |item: &At<'_>, mount: Mount| {
        let target = &mount.target;
        if let Some(first) = seen.insert(target.clone(), item.node.pos.clone()) {
            return Err(item.error(format_args!(
                "{target} is mounted already, at {first}; remove one"
            )));
        }
        out.push(mount);
        Ok(())
    };
    let entry = |item: &At<'_>, (source, read_only): (MountSource, bool)| -> Result<Mount> {
        Ok(Mount {
            origin: item.node.pos.origin(),
            target: target(item)?,
            source,
            read_only,
        })
    };
    for item in at.items_of("volumes")? {
        let read_only = item.get("read_only").map_or(Ok(false), |at| at.bool())?;
        let mount = entry(&item, (source(&item, context)?, read_only))?;
        add(&item, mount)?;
    }
    let (files, binds): (Vec<_>, Vec<_>) = contents::of_service(at, context)?
        .into_iter()
        .partition(|(_, mount)| matches!(mount.source, MountSource::File { .. }));
    for (item, mount) in binds {
        add(&item, mount)?;
    }
    for item in at.items_of("tmpfs")? {
        let mount = entry(&item, short_tmpfs(&item)?)?;
        add(&item, mount)?;
    }
    for (item, mount) in files {
        add(&item, mount)?;
    }
    Ok(out)
}

fn target(item: &At<'_>) -> Result<String> {
    let Some(at) = item.get("target") else {
        return Err(item.error("has no target, the path in the container"));
    };
    let target = container_path(&at)?;
    match target.as_str() {
        "/" => Err(at.error("the root of the container cannot be mounted over")),
        _ => Ok(target),
    }
}

fn source(item: &At<'_>, context: &Context<'_>) -> Result<MountSource> {
    let Some(kind) = item.get("type") else {
        return Err(item.error("has no type; use bind, volume or tmpfs"));
    };
    let kind_text = kind.string()?;
    for key in ["bind", "volume", "tmpfs"]
        .into_iter()
        .filter(|key| *key != kind_text)
    {
        if let Some(other) = item.get(key) {
            return Err(other.error(format_args!("does not go with type {kind_text}; remove it")));
        }
    }
    match kind_text.as_str() {
        "bind" => bind(item, context),
        "volume" => volume(item),
        "tmpfs" => tmpfs(item),
        other => Err(kind.error(format_args!(
            "{other:?} is not supported; use bind, volume or tmpfs"
        ))),
    }
}

fn bind(item: &At<'_>, context: &Context<'_>) -> Result<MountSource> {
    let Some(source) = item.get("source") else {
        return Err(item.error("has no source, the path on the host"));
    };
    let text = source.string()?;
    let option = |key: &str| item.find(&["bind", key]);
    let propagation = option("propagation");
    if let Some(at) = &propagation
        && !PROPAGATIONS.contains(&at.raw()?)
    {
        return Err(at.error(format_args!(
            "{:?} is not one of {}",
            at.raw()?,
            PROPAGATIONS.join(", ")
        )));
    }
    let recursive = match option("recursive") {
        None => true,
        Some(at) => match at.raw()? {
            "enabled" => true,
            "disabled" => false,
            other => {
                return Err(at.error(format_args!(
                    "{other:?} is not supported; use enabled or disabled"
                )));
            }
        },
    };
    Ok(MountSource::Bind {
        path: context.host_path(&source, &text)?,
        create: option("create_host_path").map_or(Ok(true), |at| at.bool())?,
        propagation: propagation.map(|at| at.string()).transpose()?,
        recursive,
    })
}

fn volume(item: &At<'_>) -> Result<MountSource> {
    let option = |key: &str| item.find(&["volume", key]);
    let Some(source) = item.get("source") else {
        return match option("subpath") {
            Some(at) => Err(at.error("needs a source, the volume's name")),
            None => Ok(MountSource::Anonymous),
        };
    };
    let text = source.string()?;
    if !schema::is_name(&text) {
        return Err(source.error(format_args!(
            "{text:?} is not the name of a volume; a path begins with / or ./"
        )));
    }
    let subpath = option("subpath").map(|at| subpath(&at)).transpose()?;
    Ok(MountSource::Volume {
        key: text,
        nocopy: option("nocopy").map_or(Ok(false), |at| at.bool())?,
        subpath,
    })
}

fn subpath(at: &At<'_>) -> Result<String> {
    let text = at.string()?;
    match text.starts_with('/') || text.split('/').any(|part| part == "..") || text.contains('\0') {
        true => Err(at.error(format_args!("{text:?} must stay inside the volume"))),
        false => Ok(text),
    }
}

fn tmpfs(item: &At<'_>) -> Result<MountSource> {
    if let Some(source) = item.get("source") {
        return Err(source.error("a tmpfs has no source; remove it"));
    }
    let size = item
        .find(&["tmpfs", "size"])
        .map(|at| at.bytes())
        .transpose()?
        .filter(|size| *size > 0);
    let mode = item
        .find(&["tmpfs", "mode"])
        .map(|at| at.int_in(0, 0o7777))
        .transpose()?
        .map(|mode| mode as u32);
    Ok(MountSource::Tmpfs {
        size,
        mode,
        options: Vec::new(),
    })
}

/// Options of tmpfs(5) and mount(8) that may be given to a `tmpfs:` entry besides `size` and `mode`.
const TMPFS_OPTIONS: [&str; 8] = [
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "noatime",
    "nodiratime",
];
const TMPFS_NUMBERS: [&str; 4] = ["uid", "gid", "nr_inodes", "nr_blocks"];

fn short_tmpfs(item: &At<'_>) -> Result<(MountSource, bool)> {
    let (mut size, mut mode, mut options, mut read_only) = (None, None, Vec::new(), false);
    let text = item
        .get("options")
        .map(|at| at.string())
        .transpose()?
        .unwrap_or_default();
    for option in text.split(',').filter(|o| !o.is_empty()) {
        let known = match option.split_once('=') {
            Some(("size", value)) => {
                size = units::bytes(value).filter(|size| *size > 0);
                size.is_some()
            }
            Some(("mode", value)) => {
                mode = u32::from_str_radix(value, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777);
                mode.is_some()
            }
            Some((key, value)) => TMPFS_NUMBERS.contains(&key) && value.parse::<u32>().is_ok(),
            None if matches!(option, "ro" | "rw") => {
                read_only = option == "ro";
                true
            }
            None => TMPFS_OPTIONS.contains(&option),
        };
        if !known {
            return Err(item.error(format_args!("unknown or wrong tmpfs option {option:?}")));
        }
        if !matches!(option, "ro" | "rw")
            && !option.starts_with("size=")
            && !option.starts_with("mode=")
        {
            options.push(option.to_owned());
        }
    }
    Ok((
        MountSource::Tmpfs {
            size,
            mode,
            options,
        },
        read_only,
    ))
}

/// `volumes_from`: `SERVICE`, `SERVICE:ro`, `SERVICE:rw`.
pub(super) fn volumes_from(at: &At<'_>) -> Result<Vec<VolumesFrom>> {
    at.items_of("volumes_from")?.iter().map(lender).collect()
}

fn lender(item: &At<'_>) -> Result<VolumesFrom> {
    let text = item.string()?;
    let (service, mode) = text.split_once(':').unwrap_or((&text, "rw"));
    if service == "container" {
        return Err(
            item.error("names a container, and there are none but the pod's own; name a service")
        );
    }
    match mode {
        "ro" | "rw" if !service.is_empty() => Ok(VolumesFrom {
            service: service.to_owned(),
            read_only: mode == "ro",
        }),
        _ => Err(item.error(format_args!(
            "{text:?} is not SERVICE, SERVICE:ro or SERVICE:rw"
        ))),
    }
}

/// `devices`: path on the host, path in the container, permissions of the device cgroup.
pub(super) fn devices(at: &At<'_>) -> Result<Vec<(PathBuf, PathBuf, String)>> {
    at.items_of("devices")?.iter().map(device).collect()
}

fn device(item: &At<'_>) -> Result<(PathBuf, PathBuf, String)> {
    let Some(source_at) = item.get("source") else {
        return Err(item.error("has no source, the device on the host"));
    };
    let text = source_at.string()?;
    if !text.starts_with('/') {
        return Err(source_at.error(format_args!(
            "{text:?} is not the path of a device; CDI names are not supported yet"
        )));
    }
    let source = container_path(&source_at)?;
    let target = item
        .get("target")
        .map_or(Ok(source.clone()), |at| container_path(&at))?;
    let permissions = item
        .get("permissions")
        .map_or(Ok("rwm".to_owned()), |at| at.string())?;
    match !permissions.is_empty() && permissions.chars().all(|c| "rwm".contains(c)) {
        true => Ok((source.into(), target.into(), permissions)),
        false => Err(item.error(format_args!(
            "{permissions:?} are not permissions; use letters of rwm"
        ))),
    }
}
