//! Files of procfs that are what their name says.
//!
//! *Invariants:* a file comes from the top of a procfs and nothing is mounted over it or over a folder on the way to it
//! (CVE-2019-16884, CVE-2019-19921, CVE-2025-52881: a label or a sysctl that was written to another file); no link is followed but
//! `/proc/self`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// Magic number of procfs, `linux/magic.h`.
const PROC_MAGIC: u64 = 0x9fa0;
/// Its top folder, `PROC_ROOT_INO` of the kernel.
const PROC_ROOT: u64 = 1;

/// Opens `path` of `/proc` for writing. Where the machine has mounted over parts of its own `/proc`, as some container managers do, it
/// comes from a procfs that nobody else sees.
pub fn open_write(path: &Path) -> io::Result<File> {
    let top = top()?;
    let file = match beneath(&top, path) {
        Err(Errno::XDEV) => beneath(&private()?, path),
        other => other,
    };
    file.map(File::from).map_err(|error| match error {
        Errno::XDEV | Errno::LOOP => io::Error::new(
            io::Error::from(error).kind(),
            format!("{error}: something else is in its place"),
        ),
        error => error.into(),
    })
}

/// The caller's `/proc`.
fn top() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open("/proc", flags, Mode::empty())?;
    let is_procfs = rustix::fs::fstatfs(&top)?.f_type as u64 == PROC_MAGIC
        && rustix::fs::fstat(&top)?.st_ino == PROC_ROOT;
    if !is_procfs {
        return Err(io::Error::other("/proc is not procfs"));
    }
    Ok(top)
}

fn beneath(top: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        top,
        path,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS,
    )
}

/// A procfs of the caller's pid namespace, mounted nowhere.
fn private() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn opens_only_what_is_there() {
        open_write(Path::new("self/oom_score_adj"))
            .unwrap()
            .write_all(b"1")
            .unwrap();
        assert_eq!(
            std::fs::read_to_string("/proc/self/oom_score_adj").unwrap(),
            "1\n"
        );
        for (path, want) in [
            ("self/nothing", "No such file or directory (os error 2)"),
            // a magic link, a way out
            (
                "self/exe",
                "Too many levels of symbolic links (os error 40): something else is in its place",
            ),
            (
                "../etc/passwd",
                "Invalid cross-device link (os error 18): something else is in its place",
            ),
        ] {
            assert_eq!(
                open_write(Path::new(path)).unwrap_err().to_string(),
                want,
                "{path}"
            );
        }
    }
}
