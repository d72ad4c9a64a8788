//! Network namespaces: opening one, visiting it, and the lock that belongs to one.
//!
//! *Invariants*: a visit ends where it began, whatever the closure returned. Callers have one thread: only the calling
//! thread moves.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};

use crate::error::{CniError, INVALID_ENVIRONMENT, OPERATION_FAILED, Result};
use crate::skel::Invocation;

/// magic(7), not in libc for every target.
const NSFS_MAGIC: u64 = 0x6e73_6673;
const OWN: &str = "/proc/thread-self/ns/net";
/// Locks of namespaces: `<device>-<inode>.lock`, there while they are held.
const LOCKS: &str = "/run/cni/sampan";

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

/// Held while shared objects of a namespace (bridge, nftables tables, routing tables) are looked at and changed.
#[derive(Debug)]
pub struct HostLock {
    path: PathBuf,
    #[expect(dead_code, reason = "held, never read")]
    file: Flock<File>,
}

impl HostLock {
    /// Waits for the lock of the calling thread's namespace. It is a file of root's, named after the namespace: the
    /// namespace itself can be opened, and locked for ever, by everybody who is in it.
    pub fn take() -> Result<Self> {
        let namespace = open_own()?
            .metadata()
            .map_err(|cause| CniError::io("stat", Path::new(OWN), &cause))?;
        let path = Path::new(LOCKS).join(format!("{}-{}.lock", namespace.dev(), namespace.ino()));
        lock(path).map_err(|(path, cause)| CniError::io("lock", &path, &cause))
    }
}

fn lock(path: PathBuf) -> std::result::Result<HostLock, (PathBuf, io::Error)> {
    loop {
        let attempt = || -> io::Result<Option<Flock<File>>> {
            let mut file = open_private(&path)?;
            let file = loop {
                match Flock::lock(file, FlockArg::LockExclusive) {
                    Ok(held) => break held,
                    Err((back, nix::errno::Errno::EINTR)) => file = back,
                    Err((_, cause)) => return Err(cause.into()),
                }
            };
            // who had it before has removed it: the next ones wait for another file
            let is_there = match fs::metadata(&path) {
                Ok(there) => there.ino() == file.metadata()?.ino(),
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => false,
                Err(cause) => return Err(cause),
            };
            Ok(is_there.then_some(file))
        };
        match attempt() {
            Ok(Some(file)) => return Ok(HostLock { path, file }),
            Ok(None) => {}
            Err(cause) => return Err((path, cause)),
        }
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    let folder = Path::new(LOCKS);
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(cause),
        _ => {}
    }
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

impl Drop for HostLock {
    fn drop(&mut self) {
        // the lock goes after its name; a file that stays is the next one's
        let _ = fs::remove_file(&self.path);
    }
}
