//! Whiteouts: from the names of a layer archive (image-spec layer.md, "Whiteouts") to the form of
//! overlayfs (kernel overlayfs.rst, "whiteouts and opaque directories").
//!
//! *Invariant:* in overlay form a whiteout hides only what lies in layers below; entries of its own
//! layer are real and stay, wherever the whiteout stands in the archive.

use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode, Stat, XattrFlags};
use rustix::io::Errno;

const PREFIX: &[u8] = b".wh.";
/// aufs' own names: `.wh..wh.plnk`, `.wh..wh.aufs`, `.wh..wh.orph`.
const META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a name in an archive means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name<'a> {
    /// A name like any other.
    Plain,
    /// Hides this name of the layers below.
    Whiteout(&'a [u8]),
    /// Hides what the layers below have in its folder.
    Opaque,
    /// Bookkeeping of aufs, to be passed over.
    Bookkeeping,
    /// Hides nothing that can exist.
    Nonsense,
}

/// Tells what `name`, one component of a path, means.
pub(super) fn classify(name: &[u8]) -> Name<'_> {
    if name == OPAQUE {
        return Name::Opaque;
    }
    if name.starts_with(META_PREFIX) {
        return Name::Bookkeeping;
    }
    match name.strip_prefix(PREFIX) {
        None => Name::Plain,
        Some(b"" | b"." | b"..") => Name::Nonsense,
        Some(hidden) => Name::Whiteout(hidden),
    }
}

/// Whether a file is an overlayfs whiteout.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Makes the whiteout `name` in `folder`.
pub(super) fn make(folder: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::mknodat(folder, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Makes the folder at `fd` opaque.
///
/// `trusted.` attributes need CAP_SYS_ADMIN in the first user namespace; within another one
/// overlayfs is mounted with `userxattr` and reads `user.` ones.
pub(super) fn set_opaque(fd: impl AsFd) -> rustix::io::Result<()> {
    let set = |name: &str| rustix::fs::fsetxattr(fd.as_fd(), name, b"y", XattrFlags::empty());
    match set("trusted.overlay.opaque") {
        Err(Errno::PERM) => set("user.overlay.opaque"),
        result => result,
    }
}

/// Whether the folder at `fd` is opaque.
pub(super) fn is_opaque(fd: impl AsFd) -> bool {
    let mut value = [0u8; 1];
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| {
            rustix::fs::fgetxattr(fd.as_fd(), *name, &mut value[..]) == Ok(1) && value == *b"y"
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            ("foo", Name::Plain),
            ("wh.foo", Name::Plain),
            (".whfoo", Name::Plain),
            (".wh.foo", Name::Whiteout(b"foo")),
            (".wh..foo", Name::Whiteout(b".foo")),
            (".wh..wh..opq", Name::Opaque),
            (".wh..wh.plnk", Name::Bookkeeping),
            (".wh..wh.aufs", Name::Bookkeeping),
            (".wh.", Name::Nonsense),
            (".wh..", Name::Nonsense),
            (".wh...", Name::Nonsense),
        ] {
            assert_eq!(classify(name.as_bytes()), expected, "{name}");
        }
    }
}
