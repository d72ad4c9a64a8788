//! Removing a pod, whatever state it is in, from what its folder says.
//!
//! Goes on after errors and reports them all; each step takes missing for done, so it can be repeated.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use super::control::{self, Request};
use super::layout::{Folders, PodDir};
use super::record::{self, Pod, ProcessId};
use super::{Error, Result, adopt, sandbox};
use crate::container;
use crate::image::Store;
use crate::sys::pidfd;

/// How long keeper and supervisor may take to end when asked.
const QUIT: Duration = Duration::from_secs(5);

/// Removes a pod whose services have been stopped, or are to be killed. The caller holds its lock.
pub fn remove(folders: &Folders, dir: &PodDir) -> Result<()> {
    // first: without it nothing could be removed, and its keeper is the last one that knows the pod
    let pod = adopt::load(dir)?;
    let mut failed = Vec::new();
    if let Err(error) = end_processes(dir) {
        failed.push(error);
    }
    if let Some(pod) = &pod {
        remove_containers(dir, pod, &mut failed);
        if let Err(error) = sandbox::down(dir, pod) {
            failed.push(error);
        }
        let released = Store::open(&folders.root).and_then(|store| store.release(&dir.name));
        failed.extend(released.err().map(Error::from));
    }
    // the record goes last: without it nobody could try again
    if failed.is_empty() {
        for path in [&dir.data, &dir.dir] {
            failed.extend(remove_tree(path).err());
        }
    }
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0)),
        _ => Err(Error::Several(failed)),
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn remove_containers(dir: &PodDir, pod: &Pod, failed: &mut Vec<Error>) {
    for name in pod.project.services.keys() {
        if let Err(error) = container::delete(&dir.service(name).dir) {
            failed.push(Error::Other(format!("remove {name}: {error}")));
        }
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
