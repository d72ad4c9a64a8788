//! How a new process gets into a cgroup.
//!
//! Writing a pid to `cgroup.procs` takes a lock that every fork and exec of the machine holds for reading; the first write after a
//! pause waits for a grace period of RCU, half a millisecond to many. So nobody is moved: on v2 the process is cloned into its cgroup
//! (CLONE_INTO_CGROUP); on v1 it moves itself, as its only thread, by writing `0` to `tasks`, which the kernel does without that lock
//! (cgroup_procs_write_start()). Files are opened by the parent: the kernel asks for the rights of who opened, and the process may
//! be in a user namespace already.
//!
//! *Invariants:* descriptors are close-on-exec.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::{Cgroup, Error};

/// An open way into a cgroup; empty for one that is entered otherwise, or not at all.
#[derive(Debug, Default)]
pub struct Entry {
    folder: Option<OwnedFd>,
    tasks: Vec<File>,
}

/// Opens the folder of a v2 cgroup.
pub(super) fn folder(path: &Path) -> Result<OwnedFd, Error> {
    match File::open(path) {
        Ok(folder) => Ok(folder.into()),
        Err(source) => Err(Error::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

impl Entry {
    pub(super) fn open(cgroup: &Cgroup) -> Result<Entry, Error> {
        let mut entry = Entry::default();
        let unified = match cgroup {
            Cgroup::V2(path) => Some(path),
            Cgroup::V1 { unified, .. } => unified.as_ref(),
            Cgroup::Systemd { .. } | Cgroup::Unlimited { .. } => None,
        };
        entry.folder = unified.map(|path| folder(path)).transpose()?;
        for path in cgroup.folders() {
            if unified.is_some_and(|unified| unified == path) {
                continue;
            }
            let path = path.join("tasks");
            match OpenOptions::new().write(true).open(&path) {
                Ok(file) => entry.tasks.push(file),
                Err(source) => return Err(Error::Read { path, source }),
            }
        }
        Ok(entry)
    }

    /// The v2 folder, for `CLONE_INTO_CGROUP`.
    pub fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.folder.as_ref().map(AsFd::as_fd)
    }

    /// The v1 hierarchies' files, for a process that is to [`enter`] them.
    pub fn tasks(&self) -> Vec<BorrowedFd<'_>> {
        self.tasks.iter().map(AsFd::as_fd).collect()
    }
}

/// Moves the calling process, which has one thread, into v1 hierarchies by their open `tasks`.
pub fn enter<'a>(tasks: impl IntoIterator<Item = BorrowedFd<'a>>) -> Result<(), Error> {
    for file in tasks {
        rustix::io::write(file, b"0").map_err(|error| {
            let link = format!("/proc/self/fd/{}", file.as_raw_fd());
            Error::Write {
                path: std::fs::read_link(link).unwrap_or_else(|_| PathBuf::from("tasks")),
                value: "0".to_owned(),
                source: error.into(),
            }
        })?;
    }
    Ok(())
}
