//! Paths inside a root that nobody trusts.
//!
//! *Invariants:* nothing outside the root's descriptor is reached, whatever links the root holds; folders made on the way are made
//! beneath a descriptor, one at a time, and never through a link.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Context, Error, Mount, Source, refuse};
use crate::sys::procfs;

/// What to make where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An empty file.
    File,
    /// A folder.
    Folder,
}

/// Links followed by hand before giving up, as the kernel's own limit (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Files below `/proc` that may be bound over: what tools such as lxcfs replace. Everything else there would let a container fool its
/// runtime (CVE-2019-16884, CVE-2019-19921).
const PROC_FILES: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Opens a path in the root for reference; `None` when it is not there.
pub fn existing(root: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>, Error> {
    match open(root, path, OFlags::PATH, ResolveFlags::IN_ROOT) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error).context(|| format!("open {} in the root", path.display())),
    }
}

/// openat2(2) with `flags`, close-on-exec, never through a link of the kind in `/proc/PID/fd`.
pub fn open(
    root: &OwnedFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // a rename somewhere in the system raced with a ".." (openat2(2) EAGAIN)
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens the place of a mount, made when missing.
pub fn mount_point(
    root: &OwnedFd,
    mount: &Mount,
    bound: Option<&OwnedFd>,
) -> Result<OwnedFd, Error> {
    let at = &mount.destination;
    let what = || format!("mount on {}", at.display());
    let clean = clean(at);
    if clean == Path::new("/") {
        return refuse(what(), "the root itself cannot be mounted over");
    }
    let kind = match bound {
        Some(tree) => kind_of(tree).context(what)?,
        None => Kind::Folder,
    };
    let fstype = match &mount.source {
        Source::Filesystem { fstype, .. } => fstype.as_str(),
        _ => "",
    };
    let target = if mount.source.is_kernel_tree() || clean == Path::new("/proc") {
        make_straight(root, at, kind).map_err(|error| Error {
            context: format!("must be mounted on ordinary directory: {}", error.context),
            ..error
        })?
    } else {
        make(root, at, kind)?
    };
    let in_proc =
        |fd: &OwnedFd| rustix::fs::fstatfs(fd).map(|fs| fs.f_type as u64 == procfs::MAGIC);
    if in_proc(&target).context(what)? && !PROC_FILES.iter().any(|path| clean == Path::new(path)) {
        return refuse(what(), "the place is inside proc");
    }
    // CVE-2019-19921: whoever reads and writes process attributes later must find the kernel's
    if clean == Path::new("/proc") {
        let is_proc = match bound {
            Some(tree) => in_proc(tree).context(what)?,
            None => fstype == "proc",
        };
        if !is_proc {
            return refuse(what(), "only proc may be there");
        }
    }
    Ok(target)
}

fn kind_of(fd: &OwnedFd) -> Result<Kind, Errno> {
    let mode = rustix::fs::fstat(fd)?.st_mode;
    Ok(match FileType::from_raw_mode(mode) {
        FileType::Directory => Kind::Folder,
        _ => Kind::File,
    })
}

/// Lexically absolute and without `.` and `..`.
pub fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// As [`make`], but a symbolic link on the path is an error: what stands there leads the runtime, or the container's own settings, to
/// where it says (CVE-2019-19921, CVE-2023-27561, CVE-2025-52565). The descriptor is of what was checked, whatever has the name by now.
pub fn make_straight(root: &OwnedFd, path: &Path, kind: Kind) -> Result<OwnedFd, Error> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let clean = clean(path);
    let mut found = open(root, &clean, OFlags::PATH, resolve);
    if matches!(found, Err(Errno::NOENT)) {
        make(root, path, kind)?;
        found = open(root, &clean, OFlags::PATH, resolve);
    }
    match found {
        Err(Errno::LOOP) => refuse(
            format!("mount on {}", path.display()),
            "a symbolic link is on the path, which could lead the runtime astray",
        ),
        other => other.context(|| format!("open {} in the root", path.display())),
    }
}

/// Opens a path in the root for reference; what is missing on the way is made (mode 0755, the last part as `kind` says, a file 0644).
/// Links are followed inside the root, dangling ones too.
pub fn make(root: &OwnedFd, path: &Path, kind: Kind) -> Result<OwnedFd, Error> {
    let what = || format!("make {} in the root", path.display());
    let clean = clean(path);
    // mostly it is there
    let folder = match open(root, &clean, OFlags::PATH, ResolveFlags::IN_ROOT) {
        // and mostly the last part alone is not
        Err(Errno::NOENT) => match make_last(root, &clean, kind).context(what)? {
            Some(made) => return Ok(made),
            None => make_missing(root, path, &clean, kind)?,
        },
        other => other.context(what)?,
    };
    let found = kind_of(&folder).context(what)?;
    if found == kind {
        return Ok(folder);
    }
    refuse(
        what(),
        match kind {
            Kind::Folder => "a file is in the place of a folder",
            Kind::File => "a folder is in the place of a file",
        },
    )
}

/// Makes the last part; `None` when what is before it is missing too, or a dangling link has its name.
fn make_last(root: &OwnedFd, clean: &Path, kind: Kind) -> Result<Option<OwnedFd>, Errno> {
    let (Some(parent), Some(name)) = (clean.parent(), clean.file_name()) else {
        return Ok(None);
    };
    let made = open(root, parent, OFlags::PATH, ResolveFlags::IN_ROOT)
        .and_then(|folder| make_one(&folder, name, kind));
    match made {
        Err(Errno::NOENT | Errno::EXIST) => Ok(None),
        other => other.map(Some),
    }
}

/// Part by part.
fn make_missing(root: &OwnedFd, path: &Path, clean: &Path, kind: Kind) -> Result<OwnedFd, Error> {
    let what = || format!("make {} in the root", path.display());
    let mut ahead: VecDeque<OsString> = parts(clean);
    let mut here = PathBuf::from("/");
    let mut folder = open(root, &here, OFlags::PATH, ResolveFlags::IN_ROOT).context(what)?;
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        here.push(&name);
        folder = match open(root, &here, OFlags::PATH, ResolveFlags::IN_ROOT) {
            Ok(next) => next,
            Err(Errno::NOENT) => match dangling(&folder, &name).context(what)? {
                Some(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP).context(what);
                    }
                    here.pop();
                    if target.is_absolute() {
                        here = PathBuf::from("/");
                        folder =
                            open(root, &here, OFlags::PATH, ResolveFlags::IN_ROOT).context(what)?;
                    }
                    for part in parts(&target).into_iter().rev() {
                        ahead.push_front(part);
                    }
                    continue;
                }
                None => {
                    let last = ahead.is_empty();
                    make_one(&folder, &name, if last { kind } else { Kind::Folder })
                        .context(what)?
                }
            },
            Err(error) => return Err(error).context(what),
        };
    }
    Ok(folder)
}

/// Names and `..` of a path, in order; `..` is left to the kernel, which stops at the root.
fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// Where the link `name` points to; `None` when there is nothing of that name.
fn dangling(folder: &OwnedFd, name: &OsStr) -> Result<Option<PathBuf>, Errno> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
            let target = rustix::fs::readlinkat(folder, name, Vec::new())?;
            Ok(Some(OsString::from_vec(target.into_bytes()).into()))
        }
        // it appeared in between
        Ok(_) => Err(Errno::AGAIN),
    }
}

/// Makes one file or folder and opens it; never through a link.
fn make_one(folder: &OwnedFd, name: &OsStr, kind: Kind) -> Result<OwnedFd, Errno> {
    match kind {
        Kind::Folder => {
            rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o755))?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(folder, name, flags, Mode::empty())
        }
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o644))?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(folder, name, flags, Mode::empty())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root_of(path: &Path) -> OwnedFd {
        rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn cleans_paths() {
        for (path, want) in [
            ("", "/"),
            ("/", "/"),
            ("a", "/a"),
            ("/a/./b/", "/a/b"),
            ("/../../etc", "/etc"),
            ("/a/../../b", "/b"),
        ] {
            assert_eq!(clean(Path::new(path)), Path::new(want), "{path}");
        }
    }

    #[test]
    fn stays_inside() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("root");
        fs::create_dir(&dir).unwrap();
        symlink("../../../..", dir.join("up")).unwrap();
        symlink("/new/deep", dir.join("absolute")).unwrap();
        symlink("absolute", dir.join("twice")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        let root = root_of(&dir);
        for (path, kind, made) in [
            ("/a/b/c", Kind::Folder, "a/b/c"),
            ("/a/file", Kind::File, "a/file"),
            ("/up/x", Kind::Folder, "x"),
            ("/twice/y", Kind::File, "new/deep/y"),
            ("../../z", Kind::Folder, "z"),
        ] {
            make(&root, Path::new(path), kind).unwrap();
            let meta = fs::symlink_metadata(dir.join(made)).unwrap();
            assert_eq!(meta.is_dir(), kind == Kind::Folder, "{path}");
        }
        let inside: Vec<_> = fs::read_dir(outer.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(inside, ["root"]);
        assert!(make(&root, Path::new("/loop/x"), Kind::Folder).is_err());
        assert!(make(&root, Path::new("/a/file/x"), Kind::Folder).is_err());
        assert!(make(&root, Path::new("/a/file"), Kind::Folder).is_err());
        assert!(make(&root, Path::new("/a/b"), Kind::File).is_err());
        assert!(existing(&root, Path::new("/nothing")).unwrap().is_none());
        make_straight(&root, Path::new("/a"), Kind::Folder).unwrap();
        make_straight(&root, Path::new("/a/new"), Kind::Folder).unwrap();
        for path in ["/twice", "/up/a", "/a/../twice/y"] {
            let error = make_straight(&root, Path::new(path), Kind::Folder).unwrap_err();
            assert_eq!(error.context, format!("mount on {path}"));
        }
    }
}
