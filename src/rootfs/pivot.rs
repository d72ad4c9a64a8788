//! The step into the root, and what the root gets last.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, unmount};

use super::{Context, Error};
use crate::sys::mount::{self, Attributes};

/// Makes `root` the root of the process and of its mount namespace; the host's tree is detached.
pub fn pivot(root: &OwnedFd) -> Result<(), Error> {
    rustix::process::fchdir(root).context(|| "enter the root".to_owned())?;
    // pivot_root(2) NOTES: with "." twice the old root ends up on top of the new one and needs no folder
    rustix::process::pivot_root(".", ".").context(|| "pivot_root to the root".to_owned())?;
    unmount(".", UnmountFlags::DETACH).context(|| "detach the host's root".to_owned())?;
    rustix::process::chdir("/").context(|| "enter /".to_owned())
}

/// Moves `root` over the root of the mount namespace and changes to it. What is left below must not show a whole procfs or sysfs, or
/// a user namespace inside could mount an unmasked one (mount_namespaces(7) "Restrictions on mount namespaces").
pub fn move_root(root: &OwnedFd) -> Result<(), Error> {
    let link = format!("/proc/self/fd/{}", root.as_raw_fd());
    let path = std::fs::read_link(&link).context(|| "find the root".to_owned())?;
    let table = "/proc/self/mountinfo";
    let mounts = std::fs::read_to_string(table).context(|| format!("read {table}"))?;
    let outside = mounts.lines().filter_map(revealing);
    // the last one mounted is the topmost
    for point in outside
        .filter(|point| !point.starts_with(&path))
        .collect::<Vec<_>>()
        .iter()
        .rev()
    {
        hide(point)?;
    }
    rustix::process::fchdir(root).context(|| "enter the root".to_owned())?;
    rustix::mount::mount_move(".", "/").context(|| "move the root to /".to_owned())?;
    change_root(root)
}

/// The mount point of a line of mountinfo (proc_pid_mountinfo(5)) that is a procfs or sysfs.
fn revealing(line: &str) -> Option<PathBuf> {
    let (before, after) = line.split_once(" - ")?;
    let kind = after.split(' ').next()?;
    let point = before.split(' ').nth(4)?;
    let plain = |text: &str, (code, byte): (&str, &str)| text.replace(code, byte);
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let point = escapes
        .into_iter()
        .fold(point.to_owned(), |text, pair| plain(&text, pair));
    matches!(kind, "proc" | "sysfs").then(|| point.into())
}

/// Unmounts, or covers what a user namespace has locked.
fn hide(point: &Path) -> Result<(), Error> {
    match unmount(point, UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::PERM) => {
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            rustix::mount::mount("tmpfs", point, "tmpfs", flags, c"size=0,mode=000")
                .context(|| format!("cover {}", point.display()))
        }
        Err(error) => Err(error).context(|| format!("unmount {}", point.display())),
    }
}

/// Makes `root` the root of the process.
pub fn change_root(root: &OwnedFd) -> Result<(), Error> {
    rustix::process::fchdir(root).context(|| "enter the root".to_owned())?;
    rustix::process::chroot(".").context(|| "change the root".to_owned())?;
    rustix::process::chdir("/").context(|| "enter /".to_owned())
}

/// Takes the kernel's file systems out of a root that is the host's, and makes the rest read-only.
pub fn seal(root: &OwnedFd) -> Result<(), Error> {
    for name in ["proc", "sys", "dev"] {
        let link = format!("/proc/self/fd/{}/{name}", root.as_raw_fd());
        loop {
            match unmount(&link, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // there may be several on top of each other
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOENT) => break,
                Err(error) => return Err(error).context(|| format!("unmount /{name}")),
            }
        }
    }
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Attributes::default()
    };
    mount::set_attributes(root, true, attributes).context(|| "make the root read-only".to_owned())
}

/// `rootfsPropagation`.
pub fn propagation(root: &OwnedFd, kind: u64, recursive: bool) -> Result<(), Error> {
    let attributes = Attributes {
        propagation: kind,
        ..Attributes::default()
    };
    mount::set_attributes(root, recursive, attributes)
        .context(|| "set the root's propagation".to_owned())
}
