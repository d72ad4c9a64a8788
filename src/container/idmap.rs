//! The id maps of a new user namespace (user_namespaces(7) "Defining user and group ID mappings") and of mounts, which take them from
//! a user namespace.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, WaitOptions};

use super::Error;
use super::plan::IdMap;
use crate::rootfs::SourceMap;
use crate::sys::clone::{Cloned, clone3};
use crate::sys::{mount, process, procfs};

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
    let said = said.trim();
    let ranges = if program == "newuidmap" {
        "/etc/subuid"
    } else {
        "/etc/subgid"
    };
    Err(Error::step(
        program,
        format!(
            "{} ({}); the caller may map its own id and its ranges in {ranges}",
            said.strip_prefix(&format!("{program}: ")).unwrap_or(said),
            output.status
        ),
    ))
}

/// Gives a detached mount its id map; one without lines is that of process `child`.
pub fn map_source(child: i32, tree: &OwnedFd, map: &SourceMap) -> Result<(), Error> {
    let namespace = if map.uids.is_empty() {
        open_namespace(child)?
    } else {
        let lines = |maps: &[[u32; 3]]| maps.iter().map(|map| line(*map)).collect::<Vec<_>>();
        make_namespace(&lines(&map.uids), &lines(&map.gids))?
    };
    mount::set_id_map(tree, map.recursive, &namespace).map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(libc::EINVAL) => ": its file system cannot do that",
            _ => "",
        };
        Error::step("map the ids of a mount", format!("{error}{hint}"))
    })
}

fn line([inside, outside, size]: [u32; 3]) -> IdMap {
    IdMap {
        inside,
        outside,
        size,
    }
}

fn open_namespace(pid: i32) -> Result<OwnedFd, Error> {
    let path = format!("/proc/{pid}/ns/user");
    let file = File::open(&path).map_err(|error| Error::step(format!("open {path}"), error))?;
    Ok(file.into())
}

/// A user namespace with these maps. The process that it takes to make one ends when our end of a pipe is closed.
fn make_namespace(uids: &[IdMap], gids: &[IdMap]) -> Result<OwnedFd, Error> {
    let failed =
        |error: io::Error| Error::step("make a user namespace for the ids of a mount", error);
    let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| failed(error.into()))?;
    let pid = match clone3(libc::CLONE_NEWUSER as u64, None).map_err(failed)? {
        Cloned::Child => {
            drop(ours);
            // the end of the file, or an error: nothing is to be done about either
            let _ = rustix::io::read(&theirs, &mut [0u8; 1]);
            process::exit_now(0)
        }
        Cloned::Parent(pid, _) => pid,
    };
    let made = write(pid, uids, gids).and_then(|()| open_namespace(pid));
    drop(ours);
    let reaped = rustix::io::retry_on_intr(|| {
        rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty())
    });
    let namespace = made?;
    reaped.map_err(|error| failed(error.into()))?;
    Ok(namespace)
}
