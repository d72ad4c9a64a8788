//! Network namespaces pinned by a bind mount.
//!
//! *Invariants:* the calling thread is in its own namespace again when a function returns; a namespace is made
//! completely, loopback up, or nothing of it stays.
//! Who is in a namespace, and when it goes, is the pod's business.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::Error;
use super::error::doing;
use crate::sys::netlink::Socket;

/// The calling thread's own: `/proc/self` would be the main thread's.
const OWN: &str = "/proc/thread-self/ns/net";
/// statfs(2) type of files that stand for namespaces (linux/magic.h `NSFS_MAGIC`).
const NSFS: rustix::fs::FsWord = 0x6e73_6673;
/// The first interface of every namespace.
const LOOPBACK: u32 = 1;

/// First port that takes no privilege (ip-sysctl.rst). Nobody but the pod has ports in its namespace, and images whose programs run as an
/// ordinary user count on port 80, which Docker gives them.
const LOW_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Makes a network namespace, loopback up, every port open to every user, and pins it at `path`, whose folder is made when missing. A namespace that
/// is already pinned there is an error; a plain file, left by a machine that stopped, is used.
pub fn create(path: &Path) -> Result<(), Error> {
    if exists(path) {
        return Err(Error::invalid(
            path.display().to_string(),
            "a namespace is pinned there already",
        ));
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::io(doing("create folder", dir)))?;
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(Error::io(doing("create", path)))?;
    let made = excursion(
        || unshare(CloneFlags::CLONE_NEWNET).map_err(Error::io("unshare(CLONE_NEWNET)")),
        || {
            Socket::open()
                .and_then(|mut socket| socket.set_up(LOOPBACK))
                .map_err(Error::io("set loopback up"))?;
            fs::write(LOW_PORTS, "0").map_err(Error::io(doing("write", Path::new(LOW_PORTS))))?;
            mount(
                Some(OWN),
                path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .map_err(Error::io(format!("mount({OWN}, {}, bind)", path.display())))
        },
    );
    made.map_err(|e| match remove(path) {
        Ok(()) => e,
        Err(undo) => e.with_undo(vec![undo]),
    })
}

/// Unpins the namespace at `path` and removes the file; it vanishes with its last process. Missing is success.
pub fn remove(path: &Path) -> Result<(), Error> {
    // a second mount may lie on the first after a crash
    while exists(path) {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(e) => return Err(Error::io(doing("umount", path))(e)),
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(doing("remove", path))(e)),
        _ => Ok(()),
    }
}

/// A namespace is pinned at `path`: there is more than a plain file.
pub fn exists(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type == NSFS)
}

/// Runs `work` with the calling thread in the namespace at `path`.
pub(super) fn inside<T>(path: &Path, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let target = File::open(path).map_err(Error::io(doing("open namespace", path)))?;
    excursion(
        || setns(&target, CloneFlags::CLONE_NEWNET).map_err(Error::io(doing("setns", path))),
        work,
    )
}

/// As `inside`, for callers whose work has errors of its own.
pub fn with<T>(path: &Path, work: impl FnOnce() -> T) -> Result<T, Error> {
    inside(path, || Ok(work()))
}

/// Leaves the thread's namespace by `enter`, works, and comes back.
fn excursion<T>(
    enter: impl FnOnce() -> Result<(), Error>,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let own = File::open(OWN).map_err(Error::io(format!("open {OWN}")))?;
    enter()?;
    let done = work();
    // nothing may go on in the wrong namespace
    setns(&own, CloneFlags::CLONE_NEWNET)
        .map_err(Error::io("setns back to the own network namespace"))?;
    done
}
