//! Owner, mode, extended attributes and times of unpacked entries, in the order that keeps them:
//! a change of owner clears setuid and file capabilities, anything changes times.
//!
//! *Invariant:* no attribute that steers overlayfs comes out of an archive (`trusted.overlay.*`,
//! `user.overlay.*`: a redirect or metacopy would show files of elsewhere).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::archive::{Entry, Kind, shown};
use super::unpack::timestamps;

/// Why metadata could not be applied.
pub(super) enum Failure {
    /// The entry is not acceptable.
    Refused(String),
    /// A step failed.
    Io(&'static str, io::Error),
}

fn at<T>(step: &'static str, result: rustix::io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure::Io(step, error.into()))
}

/// Applies everything to an open file or folder.
pub(super) fn apply_fd(fd: impl AsFd, entry: &Entry) -> Result<(), Failure> {
    let fd = fd.as_fd();
    let (uid, gid) = owner(entry)?;
    at("set owner", rustix::fs::fchown(fd, Some(uid), Some(gid)))?;
    at(
        "set mode",
        rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)),
    )?;
    for (name, value) in wanted(entry)? {
        let set = rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty());
        tolerate(name, set)?;
    }
    at("set times", rustix::fs::futimens(fd, &times(entry)))
}

/// Applies everything to `name` in `folder`, a link, device or fifo, which is not followed.
pub(super) fn apply_at(folder: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), Failure> {
    let (uid, gid) = owner(entry)?;
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let chown = rustix::fs::chownat(folder, name, Some(uid), Some(gid), nofollow);
    at("set owner", chown)?;
    if !matches!(entry.kind, Kind::Symlink(_)) {
        let mode = Mode::from_raw_mode(entry.mode);
        // chmod(2) follows links, and somebody else may be at work in the folder; what is open stays what it is (EOPNOTSUPP for a link)
        let open = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = at(
            "open",
            rustix::fs::openat(folder, name, open, Mode::empty()),
        )?;
        let path = Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
        at("set mode", rustix::fs::chmod(path, mode))?;
    }
    let attributes = wanted(entry)?;
    if !attributes.is_empty() {
        let path = proc_path(folder, name);
        for (name, value) in attributes {
            tolerate(
                name,
                rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty()),
            )?;
        }
    }
    at(
        "set times",
        rustix::fs::utimensat(folder, name, &times(entry), nofollow),
    )
}

/// A path to `name` in the folder behind a descriptor, for calls that take only paths.
pub(super) fn proc_path(folder: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(OsStr::from_bytes(name))
}

fn times(entry: &Entry) -> rustix::fs::Timestamps {
    timestamps(entry.accessed.unwrap_or(entry.modified), entry.modified)
}

/// The all-ones id means "leave it" to chown(2) and is nobody's.
fn owner(entry: &Entry) -> Result<(Uid, Gid), Failure> {
    let id = |id: u64, what: &str| match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Failure::Refused(format!("{what} {id} is out of range"))),
    };
    Ok((
        Uid::from_raw(id(entry.uid, "uid")?),
        Gid::from_raw(id(entry.gid, "gid")?),
    ))
}

/// Name and value of an extended attribute.
type Attribute<'e> = (&'e [u8], &'e [u8]);

/// Attributes that are part of an image; others (labels of the builder's host) are passed over.
fn wanted(entry: &Entry) -> Result<Vec<Attribute<'_>>, Failure> {
    let mut wanted = Vec::new();
    for (name, value) in &entry.xattrs {
        if name.len() > 255 || value.len() > 64 << 10 || name.contains(&0) {
            return Err(Failure::Refused(format!(
                "extended attribute {} is too long",
                shown(name)
            )));
        }
        if is_image_attribute(name) {
            wanted.push((name.as_slice(), value.as_slice()));
        }
    }
    Ok(wanted)
}

/// The extended attribute is part of an image; others steer overlayfs, or are labels of the builder's host.
pub(crate) fn is_image_attribute(name: &[u8]) -> bool {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return false;
    }
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        other => [&b"user."[..], b"trusted."]
            .iter()
            .any(|prefix| other.starts_with(prefix) && other.len() > prefix.len()),
    }
}

/// A file capability that gets lost breaks the program; other attributes are worth what the file
/// system gives (user.* only exists on files and folders, xattr(7)).
fn tolerate(name: &[u8], result: rustix::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(Errno::NOTSUP | Errno::PERM) if name != b"security.capability" => Ok(()),
        result => at("set extended attribute", result),
    }
}

#[cfg(test)]
mod tests {
    use super::is_image_attribute;

    #[test]
    fn attributes() {
        for (name, expected) in [
            ("user.a", true),
            ("security.capability", true),
            ("system.posix_acl_access", true),
            ("trusted.a", true),
            ("trusted.overlay.opaque", false),
            ("trusted.overlay.redirect", false),
            ("user.overlay.metacopy", false),
            ("security.selinux", false),
            ("security.ima", false),
            ("system.nfs4_acl", false),
            ("user.", false),
            ("capability", false),
            ("", false),
        ] {
            assert_eq!(is_image_attribute(name.as_bytes()), expected, "{name}");
        }
    }
}
