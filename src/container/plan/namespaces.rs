//! Namespaces, id maps and what belongs to namespaces. Pure.

use std::collections::BTreeSet;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxIdMapping, Process};
use serde::Serialize;

use super::IdMap;

/// Namespaces as `CLONE_NEW*` bits.
#[derive(Debug, Clone, Default)]
pub struct Namespaces {
    /// To make.
    pub new: u64,
    /// To join.
    pub joins: Vec<Join>,
    /// Joined, but the caller's own: [`super::Host::shared`].
    pub shared: u64,
}

/// A namespace to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Join {
    /// `CLONE_NEW*` bit.
    #[serde(serialize_with = "super::namespace_names")]
    pub kind: u64,
    /// Its file.
    pub path: PathBuf,
}

impl Namespaces {
    /// Those that clone is to make: the kernel makes some for children only, and the parent needs the network's before it moves devices.
    /// All else the child makes by itself, on another processor while the parent makes the cgroup.
    pub fn of_clone(&self, linux: &Linux) -> u64 {
        let mut bits = libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWTIME;
        let devices = linux.net_devices().as_ref();
        if devices.is_some_and(|devices| !devices.is_empty()) {
            bits |= libc::CLONE_NEWNET;
        }
        self.new & bits as u64
    }

    /// Whether a cgroup namespace is joined.
    pub fn joins_cgroup(&self) -> bool {
        let bit = libc::CLONE_NEWCGROUP as u64;
        self.joins.iter().any(|join| join.kind & bit != 0)
    }

    /// Whether the container does not share those of `bits` with the caller.
    pub fn own(&self, bits: i32) -> bool {
        let bits = bits as u64;
        self.new & bits != 0 || self.joins.iter().any(|join| join.kind & bits != 0)
    }

    /// As [`Self::own`], where joining is not enough: what is changed there may not be the caller's.
    pub fn apart(&self, bits: i32) -> bool {
        self.own(bits & !(self.shared as i32))
    }
}

/// `CLONE_NEW*` bits to make, and what to join.
pub fn namespaces(linux: &Linux) -> Result<Namespaces, String> {
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
                joins.push(Join {
                    kind: flag,
                    path: path.clone(),
                });
            }
            _ => new |= flag,
        }
    }
    let namespaces = Namespaces {
        new,
        joins,
        shared: 0,
    };
    if !namespaces.own(libc::CLONE_NEWNS) {
        shares_mounts(linux, &namespaces)?;
    }
    Ok(namespaces)
}

/// What a container in the caller's mount namespace cannot have.
fn shares_mounts(linux: &Linux, namespaces: &Namespaces) -> Result<(), String> {
    let without = |what: &str| {
        Err(format!(
            "{what}: needs a mount namespace in linux.namespaces"
        ))
    };
    // mount_namespaces(7): it has no privilege there
    if namespaces.own(libc::CLONE_NEWUSER) {
        return without("linux.namespaces: user");
    }
    match linux.rootfs_propagation().as_deref() {
        None | Some("" | "private" | "rprivate") => Ok(()),
        Some(_) => without("linux.rootfsPropagation"),
    }
}

/// What the new time namespace gets (time_namespaces(7) `timens_offsets`).
pub fn time_offsets(linux: &Linux, namespaces: &Namespaces) -> Result<Option<String>, String> {
    let Some(offsets) = linux.time_offsets().as_ref().filter(|all| !all.is_empty()) else {
        return Ok(None);
    };
    if namespaces.new & libc::CLONE_NEWTIME as u64 == 0 {
        return Err(
            "linux.timeOffsets: needs a time namespace without path in linux.namespaces".to_owned(),
        );
    }
    let mut lines = Vec::new();
    for (clock, offset) in offsets {
        if !["monotonic", "boottime"].contains(&clock.as_str()) {
            return Err(format!(
                "linux.timeOffsets: {clock} is not monotonic or boottime"
            ));
        }
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        if nanoseconds > 999_999_999 {
            return Err(format!(
                "linux.timeOffsets.{clock}.nanosecs: {nanoseconds} is above 999999999"
            ));
        }
        lines.push(format!("{clock} {seconds} {nanoseconds}\n"));
    }
    lines.sort();
    Ok(Some(lines.concat()))
}

/// A device of the host and its name in the container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NetDevice {
    /// Outside.
    pub host: String,
    /// Inside; one with `%d` gets a number.
    pub name: String,
}

/// The devices to move, by name.
pub fn net_devices(linux: &Linux, namespaces: &Namespaces) -> Result<Vec<NetDevice>, String> {
    let wanted = linux.net_devices().iter().flatten();
    let mut devices: Vec<NetDevice> = wanted
        .map(|(host, device)| NetDevice {
            host: host.clone(),
            name: device
                .name()
                .clone()
                .filter(|name| !name.is_empty())
                .unwrap_or(host.clone()),
        })
        .collect();
    devices.sort();
    if !devices.is_empty() && !namespaces.own(libc::CLONE_NEWNET) {
        return Err("linux.netDevices: needs a network namespace in linux.namespaces".to_owned());
    }
    // dev_valid_name() of the kernel; one % at most, before a d
    let valid = |name: &str| {
        (1..16).contains(&name.len())
            && ![".", ".."].contains(&name)
            && !name
                .contains(|c: char| c == '/' || c == ':' || c.is_ascii_whitespace() || c == '\0')
    };
    let mut seen = BTreeSet::new();
    for NetDevice { host, name } in &devices {
        if !valid(host) || host.contains('%') {
            return Err(format!("linux.netDevices: {host:?} is not a device name"));
        }
        if !valid(name) || name.replacen("%d", "", 1).contains('%') {
            return Err(format!(
                "linux.netDevices.{host}.name: {name:?} is not a device name"
            ));
        }
        if !name.contains('%') && !seen.insert(name) {
            return Err(format!(
                "linux.netDevices.{host}.name: {name} is there twice"
            ));
        }
    }
    Ok(devices)
}

/// The two id maps, in the order user, group.
pub fn id_maps(linux: &Linux, namespaces: &Namespaces) -> Result<(Vec<IdMap>, Vec<IdMap>), String> {
    let maps = |key: &str, maps: &Option<Vec<LinuxIdMapping>>| match maps.as_deref() {
        None | Some([]) if namespaces.new & libc::CLONE_NEWUSER as u64 != 0 => Err(format!(
            "linux.{key}: is empty, a new user namespace needs it"
        )),
        Some([_, ..]) if !namespaces.own(libc::CLONE_NEWUSER) => Err(format!(
            "linux.{key}: needs a user namespace in linux.namespaces"
        )),
        maps => Ok(maps.unwrap_or_default().iter().map(id_map).collect()),
    };
    Ok((
        maps("uidMappings", linux.uid_mappings())?,
        maps("gidMappings", linux.gid_mappings())?,
    ))
}

/// What a new user namespace has to map: its root, who sets the container up, and whom the process becomes. The kernel would answer
/// a bare EINVAL.
pub fn check_mapped(process: &Process, uids: &[IdMap], gids: &[IdMap]) -> Result<(), String> {
    let has = |maps: &[IdMap], id: u32| {
        let offset = |map: &IdMap| id.checked_sub(map.inside);
        maps.iter()
            .any(|map| offset(map).is_some_and(|offset| offset < map.size))
    };
    for (key, maps) in [("uidMappings", uids), ("gidMappings", gids)] {
        if !has(maps, 0) {
            return Err(format!(
                "linux.{key}: id 0 is not mapped, with which the container is set up"
            ));
        }
    }
    let user = process.user();
    if !has(uids, user.uid()) {
        return Err(format!(
            "process.user.uid: {} is not in linux.uidMappings",
            user.uid()
        ));
    }
    let groups = user.additional_gids().iter().flatten();
    let groups = groups.map(|gid| ("additionalGids", *gid));
    for (key, gid) in [("gid", user.gid())].into_iter().chain(groups) {
        if !has(gids, gid) {
            return Err(format!(
                "process.user.{key}: {gid} is not in linux.gidMappings"
            ));
        }
    }
    Ok(())
}

fn id_map(map: &LinuxIdMapping) -> IdMap {
    IdMap {
        inside: map.container_id(),
        outside: map.host_id(),
        size: map.size(),
    }
}

/// Sysctls that belong to one of the container's own namespaces; anything else would change the host.
pub fn sysctls(linux: &Linux, namespaces: &Namespaces) -> Result<Vec<(PathBuf, String)>, String> {
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
        if !namespaces.apart(flag) {
            return Err(format!(
                "linux.sysctl: {key} needs a {name} namespace in linux.namespaces other than the caller's"
            ));
        }
        out.push((path.into(), value.clone()));
    }
    out.sort();
    Ok(out)
}
