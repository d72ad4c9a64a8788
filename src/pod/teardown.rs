//! Removing a pod, whatever state it is in, from what its folder says.
//!
//! Goes on after errors and reports them all; each step takes missing for done, so it can be repeated.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::control::{self, QUIT, Request};
use super::layout::{Folders, PodDir};
use super::lock::{self, Held};
use super::record::{self, ProcessId};
use super::{Error, Result, adopt, sandbox};
use crate::container::{self, CreateRequest};
use crate::image::Store;
use crate::sys::file::write_atomic;
use crate::sys::pidfd;

/// Removes a pod whose services have been stopped, or are to be killed. The caller holds its lock.
pub fn remove(folders: &Folders, dir: &PodDir) -> Result<()> {
    // first: without it nothing could be removed, and its keeper is the last one that knows the pod
    let pod = adopt::load(dir)?;
    let mut failed = Vec::new();
    if let Err(error) = end_processes(dir) {
        failed.push(error);
    }
    let services = services(dir)?;
    // a process that nobody waits for any more must not make again what is removed here
    let _held = match alone(dir, &services) {
        Ok(held) => held,
        Err(error) => {
            failed.push(error);
            Vec::new()
        }
    };
    if let Some(pod) = &pod {
        // whoever finds only a part of the pod must know why
        if let Err(error) = write_atomic(&dir.removing(), b"", 0o600) {
            failed.push(Error::io("write", &dir.removing())(error));
        }
        for service in &services {
            failed.extend(remove_container(service).err());
        }
        if let Err(error) = sandbox::down(dir, pod) {
            failed.push(error);
        }
    }
    // taken before there is a record
    let released = Store::open(&folders.root).and_then(|store| store.release(&dir.name));
    failed.extend(released.err().map(Error::from));
    // the record stays as long as anything does that needs it
    if failed.is_empty() {
        let removed = remove_tree(&dir.data)
            .and_then(|()| remove_file(&dir.record()))
            .and_then(|()| remove_tree(&dir.dir));
        failed.extend(removed.err());
    }
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0)),
        _ => Err(Error::Several(failed)),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Folders of the services that there are.
fn services(dir: &PodDir) -> Result<Vec<PathBuf>> {
    let path = dir.dir.join("services");
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("read", &path))?,
    };
    entries
        .map(|entry| Ok(entry.map_err(Error::io("read", &path))?.path()))
        .collect()
}

/// Ends every process of ours that is at work on the pod, and keeps others from beginning.
fn alone(dir: &PodDir, services: &[PathBuf]) -> Result<Vec<Held>> {
    if !dir.dir.exists() {
        return Ok(Vec::new());
    }
    let mut paths = vec![dir.keeper_lock(), dir.supervisor_lock(), dir.sandbox_lock()];
    paths.extend(services.iter().map(|service| service.join("lock")));
    paths.iter().map(|path| lock::evict(path)).collect()
}

/// Removes a service's container, and what a `create` left that was killed before it wrote what it makes. The caller
/// holds the service's lock.
pub fn remove_container(dir: &Path) -> Result<()> {
    let failed =
        |error: container::Error| Error::Other(format!("remove {}: {error}", dir.display()));
    let known = container::load(dir).map_err(failed)?.is_some();
    container::delete(dir).map_err(failed)?;
    match record::read::<CreateRequest>(&dir.join("create.json"))? {
        Some(request) if !known => {
            request.cgroup.kill()?;
            Ok(request.cgroup.remove()?)
        }
        _ => Ok(()),
    }
}

/// Keeper first, so that it does not start the supervisor again; asked politely, then killed.
fn end_processes(dir: &PodDir) -> Result<()> {
    let asked = adopt::alive(&dir.supervisor())
        && control::ask(&dir.socket(), &Request::Quit, |_, _| {}).is_ok();
    for path in [dir.keeper(), dir.supervisor()] {
        let Some(process) = record::read::<ProcessId>(&path)? else {
            continue;
        };
        let Ok(descriptor) = pidfd::open(process.pid) else {
            continue;
        };
        // after the open: what has this start time now is what the descriptor means
        if !process.alive() {
            continue;
        }
        let milliseconds = Some(QUIT.as_millis() as u64);
        if asked && pidfd::wait(&descriptor, milliseconds).unwrap_or(false) {
            continue;
        }
        let killed = pidfd::send_signal(&descriptor, libc::SIGKILL)
            .and_then(|()| pidfd::wait(&descriptor, milliseconds));
        match killed {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(Error::io("end process of", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
