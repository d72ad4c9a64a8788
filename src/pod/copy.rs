//! Copies what an image has in a folder: content with its holes, hard links as such, owners, modes, extended attributes,
//! times, fifos and devices.
//!
//! *Invariants:* images are hostile, so what is written is counted: bytes of data, not lengths, and each hard link once.
//! While this runs the source does not change and nobody else reaches the target, so paths serve; the caller sees to both.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown,
};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::{Error, Result};
use crate::image::is_image_attribute;

/// Entries of all volumes of a service, as many as a layer may have.
const MAX_ENTRIES: u64 = 4_000_000;
/// Bytes of all volumes of a service.
const MAX_BYTES: u64 = 64 << 30;
/// XATTR_SIZE_MAX and XATTR_LIST_MAX.
const XATTR_MAX: usize = 64 << 10;
const CHUNK: u64 = 128 << 10;

/// What may still be written: an image can name folders inside each other as volumes, and so the same content many times.
#[derive(Debug)]
pub struct Budget {
    bytes: u64,
    entries: u64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            bytes: MAX_BYTES,
            entries: MAX_ENTRIES,
        }
    }
}

impl Budget {
    fn entry(&mut self) -> Result<()> {
        self.entries = self
            .entries
            .checked_sub(1)
            .ok_or_else(|| too_much(&format!("{MAX_ENTRIES} files")))?;
        Ok(())
    }

    fn data(&mut self, bytes: u64) -> Result<()> {
        self.bytes = self
            .bytes
            .checked_sub(bytes)
            .ok_or_else(|| too_much(&format!("{} GiB", MAX_BYTES >> 30)))?;
        Ok(())
    }
}

fn too_much(limit: &str) -> Error {
    Error::Other(format!(
        "the image has more than {limit} for the volumes of one service; mount a volume with `nocopy: true` there"
    ))
}

/// Copies what is in `source` into the existing folder `target`.
pub fn content(source: &Path, target: &Path, budget: &mut Budget) -> Result<()> {
    let mut copy = Copy {
        budget,
        links: BTreeMap::new(),
    };
    copy.folder(source, target)
}

/// Owner first: chown(2) clears setuid bits and file capabilities; times last.
pub fn attributes(source: &Path, target: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(source).map_err(Error::io("read", source))?;
    lchown(target, Some(meta.uid()), Some(meta.gid())).map_err(Error::io("chown", target))?;
    if !meta.is_symlink() {
        fs::set_permissions(target, fs::Permissions::from_mode(meta.mode() & 0o7777))
            .map_err(Error::io("chmod", target))?;
    }
    extended(source, target)?;
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| Error::io("set times of", target)(errno.into()))
}

struct Copy<'a> {
    budget: &'a mut Budget,
    /// Where a file with several names was copied to first.
    links: BTreeMap<(u64, u64), PathBuf>,
}

impl Copy<'_> {
    fn folder(&mut self, source: &Path, target: &Path) -> Result<()> {
        for entry in fs::read_dir(source).map_err(Error::io("read", source))? {
            let entry = entry.map_err(Error::io("read", source))?;
            self.entry(&entry.path(), &target.join(entry.file_name()))?;
        }
        Ok(())
    }

    fn entry(&mut self, source: &Path, target: &Path) -> Result<()> {
        self.budget.entry()?;
        let meta = fs::symlink_metadata(source).map_err(Error::io("read", source))?;
        let kind = meta.file_type();
        if !kind.is_dir() && meta.nlink() > 1 {
            let id = (meta.dev(), meta.ino());
            if let Some(first) = self.links.get(&id) {
                return fs::hard_link(first, target).map_err(Error::io("link", target));
            }
            self.links.insert(id, target.to_path_buf());
        }
        if kind.is_dir() {
            fs::create_dir(target).map_err(Error::io("make", target))?;
            self.folder(source, target)?;
        } else if kind.is_symlink() {
            let link = fs::read_link(source).map_err(Error::io("read", source))?;
            std::os::unix::fs::symlink(link, target).map_err(Error::io("make", target))?;
        } else if kind.is_file() {
            self.file(source, target, meta.len())?;
        } else {
            let device: Dev = match kind.is_char_device() || kind.is_block_device() {
                true => meta.rdev(),
                false => 0,
            };
            let kind = FileType::from_raw_mode(meta.mode());
            rustix::fs::mknodat(CWD, target, kind, Mode::RUSR, device)
                .map_err(|errno| Error::io("make", target)(errno.into()))?;
        }
        attributes(source, target)
    }

    /// Where the source has a hole the copy has one.
    fn file(&mut self, source: &Path, target: &Path, length: u64) -> Result<()> {
        let from = File::open(source).map_err(Error::io("open", source))?;
        let to = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(target)
            .map_err(Error::io("make", target))?;
        let seek = |place| match rustix::fs::seek(&from, place) {
            Ok(at) => Ok(Some(at.min(length))),
            // nothing but a hole from there on
            Err(Errno::NXIO) => Ok(None),
            Err(errno) => Err(Error::io("read", source)(errno.into())),
        };
        let mut buffer = vec![0; CHUNK.min(length) as usize];
        let mut end = 0;
        while let Some(mut at) = seek(SeekFrom::Data(end))?
            && at < length
        {
            end = seek(SeekFrom::Hole(at))?.unwrap_or(length);
            self.budget.data(end - at)?;
            while at < end {
                let most = (end - at).min(CHUNK) as usize;
                let count = from
                    .read_at(&mut buffer[..most], at)
                    .map_err(Error::io("read", source))?;
                if count == 0 {
                    return Err(Error::Other(format!("{} was cut short", source.display())));
                }
                to.write_all_at(&buffer[..count], at)
                    .map_err(Error::io("write", target))?;
                at += count as u64;
            }
        }
        to.set_len(length).map_err(Error::io("write", target))
    }
}

/// A file capability that got lost would break the program; others are worth what the file system gives.
fn extended(source: &Path, target: &Path) -> Result<()> {
    let failed =
        |path: &Path, errno: Errno| Error::io("copy extended attributes of", path)(errno.into());
    let mut names = vec![0u8; XATTR_MAX];
    let length = match rustix::fs::llistxattr(source, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(errno) => return Err(failed(source, errno)),
    };
    let names = names[..length].split(|&byte| byte == 0);
    for name in names.filter(|name| is_image_attribute(name)) {
        let mut value = vec![0u8; XATTR_MAX];
        let length = rustix::fs::lgetxattr(source, name, value.as_mut_slice())
            .map_err(|errno| failed(source, errno))?;
        match rustix::fs::lsetxattr(target, name, &value[..length], XattrFlags::empty()) {
            Err(Errno::NOTSUP | Errno::PERM) if name != b"security.capability" => {}
            result => result.map_err(|errno| failed(target, errno))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(budget: Budget) -> String {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        for path in [&source, &target] {
            fs::create_dir(path).unwrap();
        }
        fs::write(source.join("a"), [1; 4096]).unwrap();
        fs::hard_link(source.join("a"), source.join("b")).unwrap();
        let mut budget = budget;
        match content(&source, &target, &mut budget) {
            Err(error) => error.to_string(),
            Ok(()) => format!("{budget:?}"),
        }
    }

    #[test]
    fn what_is_written_is_bounded() {
        let budget = |bytes, entries| Budget { bytes, entries };
        let text = |limit: &str| {
            format!(
                "the image has more than {limit} for the volumes of one service; mount a volume with `nocopy: true` there"
            )
        };
        // a hard link is data once
        let all = "Budget { bytes: 0, entries: 0 }";
        assert_eq!(refused(budget(4096, 2)), all);
        assert_eq!(refused(budget(4095, 2)), text("64 GiB"));
        assert_eq!(refused(budget(4096, 1)), text("4000000 files"));
    }
}
