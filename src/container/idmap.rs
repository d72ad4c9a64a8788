//! The id maps of a new user namespace (user_namespaces(7) "Defining user and group ID mappings").

use std::path::Path;
use std::process::Command;

use super::Error;
use super::plan::IdMap;
use crate::sys::procfs;

/// Writes both maps of process `pid`: directly as root, otherwise through `newuidmap` and `newgidmap`, which check `/etc/subuid`. One
/// line that maps the caller's own id needs neither.
pub fn write(pid: i32, uids: &[IdMap], gids: &[IdMap]) -> Result<(), Error> {
    if uids.is_empty() && gids.is_empty() {
        return Ok(());
    }
    let own = rustix::process::geteuid().as_raw();
    if own == 0 {
        return put(pid, "uid_map", &lines(uids)).and_then(|()| put(pid, "gid_map", &lines(gids)));
    }
    let alone =
        |maps: &[IdMap], id: u32| matches!(maps, [map] if map.size == 1 && map.outside == id);
    if alone(uids, own) && alone(gids, rustix::process::getegid().as_raw()) {
        put(pid, "setgroups", "deny")?;
        return put(pid, "uid_map", &lines(uids)).and_then(|()| put(pid, "gid_map", &lines(gids)));
    }
    helper("newuidmap", pid, uids).and_then(|()| helper("newgidmap", pid, gids))
}

fn lines(maps: &[IdMap]) -> String {
    let line = |map: &IdMap| format!("{} {} {}\n", map.inside, map.outside, map.size);
    maps.iter().map(line).collect()
}

fn put(pid: i32, file: &str, text: &str) -> Result<(), Error> {
    let path = format!("{pid}/{file}");
    procfs::write(Path::new(&path), text)
        .map_err(|error| Error::step(format!("write {text:?} to /proc/{path}"), error))
}

fn helper(program: &str, pid: i32, maps: &[IdMap]) -> Result<(), Error> {
    let numbers = maps
        .iter()
        .flat_map(|map| [map.inside, map.outside, map.size]);
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .output()
        .map_err(|error| Error::step(format!("run {program} (package uidmap)"), error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::step(
        program,
        format!("{} ({})", said.trim(), output.status),
    ))
}
