//! `tmpcopyup`: what a folder holds, copied to the tmpfs that will cover it.
//!
//! *Invariants:* the folder is the image's, so nothing is followed and every entry is used through a descriptor; how deep it may be is
//! bounded, how much it may hold is bounded by the size of the tmpfs.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};

/// Folders in each other; each level holds two descriptors and a piece of the stack.
const DEPTH_MAX: usize = 128;

/// Copies the content of the folder `from` into the folder `to`, with owners, permissions and times.
pub fn copy(from: &impl AsFd, to: &impl AsFd) -> io::Result<()> {
    level(from, to, 0)
}

fn level(from: &impl AsFd, to: &impl AsFd, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other(format!(
            "folders are nested deeper than {DEPTH_MAX}"
        )));
    }
    // the one given may be for reference only
    let from = open(from, c".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            one(&from, to, name, depth).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", name.to_string_lossy()))
            })?;
        }
    }
    Ok(())
}

fn one(from: &OwnedFd, to: &impl AsFd, name: &CStr, depth: usize) -> io::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::Directory => {
            let inner = open(from, name, OFlags::PATH | OFlags::DIRECTORY)?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let copy = open(to, name, OFlags::PATH | OFlags::DIRECTORY)?;
            level(&inner, &copy, depth + 1)?;
        }
        FileType::RegularFile => copy_file(from, to, name)?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&target, to, name)?;
        }
        _ => rustix::fs::mknodat(to, name, kind, Mode::RUSR, stat.st_rdev)?,
    }
    adopt(to, name, kind, &stat)
}

fn copy_file(from: &OwnedFd, to: &impl AsFd, name: &CStr) -> io::Result<()> {
    // something else may be there by now, which must not hold us up
    let source = open(from, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut source = File::from(source);
    if !source.metadata()?.is_file() {
        return Err(io::Error::other("it changed while it was copied"));
    }
    io::copy(&mut source, &mut File::from(copy))?;
    Ok(())
}

/// Owner first: changing it takes set-user-id bits away.
fn adopt(to: &impl AsFd, name: &CStr, kind: FileType, stat: &Stat) -> io::Result<()> {
    let link = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), link)?;
    if kind != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
    }
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds as i64,
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::utimensat(to, name, &times, link)?;
    Ok(())
}

fn open(folder: &impl AsFd, name: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn copies_everything_and_follows_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a/b/file"), "text").unwrap();
        fs::set_permissions(from.join("a/b/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("/etc/shadow", from.join("link")).unwrap();
        nix::unistd::mkfifo(&from.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let fd = |path: &std::path::Path| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).unwrap()
        };
        copy(&fd(&from), &fd(&to)).unwrap();
        for name in ["a", "a/b", "a/b/file", "link", "pipe"] {
            let (old, new) = (from.join(name), to.join(name));
            let facts = |path| {
                let meta = fs::symlink_metadata(path).unwrap();
                (meta.mode(), meta.mtime_nsec(), meta.uid(), meta.size())
            };
            let (old, new) = (facts(old), facts(new));
            assert_eq!((old.0, old.1, old.2), (new.0, new.1, new.2), "{name}");
        }
        assert_eq!(fs::read_to_string(to.join("a/b/file")).unwrap(), "text");
        assert_eq!(
            fs::read_link(to.join("link")).unwrap().to_str(),
            Some("/etc/shadow")
        );
        let mut deep = from.clone();
        for _ in 0..=DEPTH_MAX {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let other = temp.path().join("other");
        fs::create_dir(&other).unwrap();
        let error = copy(&fd(&from), &fd(&other)).unwrap_err();
        assert!(
            error.to_string().contains("nested deeper than 128"),
            "{error}"
        );
    }
}
