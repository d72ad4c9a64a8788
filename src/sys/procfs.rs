//! Files of `/proc` that are written to with privileges.
//!
//! *Invariants:* what is opened is on procfs, below its root, under exactly that name: neither a link nor a mount on the way led to a
//! file of no effect or to another one of the kernel's (CVE-2019-16884, CVE-2025-52881).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// `PROC_SUPER_MAGIC` of `linux/magic.h`.
pub const MAGIC: u64 = 0x9fa0;
/// Inode of procfs's own root (`PROC_ROOT_INO` of `linux/proc_fs.h`).
const ROOT: u64 = 1;

/// Writes `text` in one call, as the kernel wants it, to the file `path` below `/proc`; a process is named by its number there.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    write_to(&open(&top()?, path)?, text)
}

/// As [`write()`], to a file of the calling process.
pub fn write_own(path: &str, text: &str) -> io::Result<()> {
    write_to(&open_own(path)?, text)
}

/// Opens a file of the calling process, for [`write_to`].
pub fn open_own(path: &str) -> io::Result<File> {
    let top = top()?;
    // its number in the pid namespace that this procfs shows
    let own = rustix::fs::readlinkat(&top, "self", Vec::new())?;
    open(
        &top,
        &Path::new(OsStr::from_bytes(own.as_bytes())).join(path),
    )
}

/// One write, as the kernel wants it.
pub fn write_to(mut file: &File, text: &str) -> io::Result<()> {
    let written = file.write(text.as_bytes())?;
    if written == text.len() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the kernel took {written} of {} bytes",
        text.len()
    )))
}

/// The caller's `/proc`.
fn top() -> io::Result<OwnedFd> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", folder, Mode::empty())?;
    let is_root = rustix::fs::fstat(&proc)?.st_ino == ROOT;
    if !is_root || rustix::fs::fstatfs(&proc)?.f_type as u64 != MAGIC {
        return Err(io::Error::other("/proc is not procfs"));
    }
    Ok(proc)
}

fn open(proc: &OwnedFd, path: &Path) -> io::Result<File> {
    let straight = ResolveFlags::BENEATH
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat2(proc, path, flags, Mode::empty(), straight) {
        Err(Errno::XDEV) => Err(io::Error::other("something is mounted on the way")),
        Err(Errno::LOOP) => Err(io::Error::other("a link is on the way")),
        other => Ok(File::from(other?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_no_way_round() {
        let own = std::process::id();
        let comm = format!("{own}/comm");
        write(Path::new(&comm), "boat").unwrap();
        assert_eq!(
            std::fs::read_to_string("/proc/self/comm").unwrap(),
            "boat\n"
        );
        write_own("comm", "ship").unwrap();
        assert_eq!(
            std::fs::read_to_string("/proc/self/comm").unwrap(),
            "ship\n"
        );
        for (path, want) in [
            ("self/comm".to_owned(), "a link is on the way"),
            (
                format!("{own}/root/proc/{own}/comm"),
                "a link is on the way",
            ),
            (format!("../proc/{comm}"), "something is mounted on the way"),
        ] {
            let error = write(Path::new(&path), "x").unwrap_err();
            assert_eq!(error.to_string(), want, "{path}");
        }
    }
}
