//! Network namespaces: opening one, visiting it, and the lock that belongs to one.
//!
//! *Invariants*: a visit ends where it began, whatever the closure returned. Callers have one thread: only the calling
//! thread moves.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};

use crate::error::{CniError, INVALID_ENVIRONMENT, OPERATION_FAILED, Result};
use crate::skel::Invocation;

/// magic(7), not in libc for every target.
const NSFS_MAGIC: u64 = 0x6e73_6673;
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

/// The calling thread's namespace.
pub fn open_own() -> Result<File> {
    File::open(OWN).map_err(|cause| CniError::io("open", Path::new(OWN), &cause))
}

fn same(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

impl Netns {
    /// Opens `path`, which must be a namespace other than the caller's: an ADD or DEL there would work on the host.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_if_present(path)?.ok_or_else(|| {
            CniError::new(
                INVALID_ENVIRONMENT,
                format!("CNI_NETNS {} is not a network namespace", path.display()),
            )
        })
    }

    /// As [`Netns::open`]; `None` when nothing is there, or a file from which the namespace was unmounted.
    pub fn open_if_present(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(CniError::io("open", path, &cause)),
        };
        let kind = fstatfs(&file)
            .map_err(|cause| CniError::io("fstatfs", path, &cause.into()))?
            .filesystem_type();
        if !is_nsfs(kind) {
            return Ok(None);
        }
        let io = |cause: io::Error| CniError::io("stat", path, &cause);
        if same(&file, &open_own()?).map_err(io)? {
            return Err(CniError::new(
                INVALID_ENVIRONMENT,
                format!(
                    "CNI_NETNS {} is the plugin's own network namespace",
                    path.display()
                ),
            ));
        }
        Ok(Some(Self {
            file,
            path: path.to_owned(),
        }))
    }

    /// The container's of a DEL; `None` when it is gone.
    pub fn of_del(invocation: &Invocation) -> Result<Option<Self>> {
        match &invocation.netns {
            Some(path) => Self::open_if_present(path),
            None => Ok(None),
        }
    }

    /// Runs `visit` inside.
    pub fn run<T>(&self, visit: impl FnOnce() -> Result<T>) -> Result<T> {
        let home = open_own()?;
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|cause| {
            CniError::operation(format!("cannot enter {}", self.path.display()), cause)
        })?;
        let value = visit();
        setns(&home, CloneFlags::CLONE_NEWNET).map_err(|cause| {
            CniError::new(
                OPERATION_FAILED,
                "cannot return to the host's network namespace",
            )
            .because(cause)
        })?;
        value
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn is_nsfs(kind: FsType) -> bool {
    // f_type's width and sign differ between targets
    kind.0 as u64 == NSFS_MAGIC
}

/// Held while shared objects of the host's namespace (bridge, nftables tables) are looked at and changed.
#[derive(Debug)]
pub struct HostLock(#[expect(dead_code, reason = "held, never read")] Flock<File>);

impl HostLock {
    /// Waits for the lock. It is an flock(2) on the namespace itself: exactly as wide as what it protects, and nothing
    /// is left on disk.
    pub fn take() -> Result<Self> {
        let mut file = open_own()?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(Self(lock)),
                Err((back, nix::errno::Errno::EINTR)) => file = back,
                Err((_, cause)) => {
                    return Err(CniError::operation(format!("cannot lock {OWN}"), cause));
                }
            }
        }
    }
}
