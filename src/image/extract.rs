//! Archives that are no layers → files in a folder that others use, too (a task's sandbox).
//!
//! *Invariants:* archives are hostile, and so may be those who use the folder: every path is resolved beneath its descriptor, as for layers
//! and with the same limits. All that is made belongs to one owner, has no setuid bit, no attribute and is no device. A file of the same
//! name is replaced.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;

use super::archive::{Archive, Entry};
use super::error::{Context, Error};
use super::unpack::{Form, Tree};
use super::{stream, zip};

/// Whose the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Permission bits that an entry may have.
const MODE: u32 = 0o777;

impl Owner {
    /// An entry as it is made for the owner.
    pub(super) fn plain(self, entry: &Entry) -> Entry {
        Entry {
            mode: entry.mode & MODE,
            uid: self.uid.into(),
            gid: self.gid.into(),
            xattrs: Vec::new(),
            ..entry.clone()
        }
    }
}

/// Names that an archive which can be unpacked ends with.
const NAMES: [&str; 6] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".zip"];
/// Names of archives that cannot.
const UNKNOWN: [&str; 9] = [
    ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".gz", ".bz2", ".xz", ".7z", ".rar",
];

/// Whether a file of that name is an archive.
///
/// # Errors
/// With the end of its name, for one that cannot be unpacked.
pub fn is_archive(name: &str) -> Result<bool, &'static str> {
    let name = name.to_ascii_lowercase();
    let ends = |end: &&&str| name.ends_with(**end);
    match (
        NAMES.iter().any(|end| name.ends_with(end)),
        UNKNOWN.iter().find(ends),
    ) {
        (true, _) => Ok(true),
        (false, Some(end)) => Err(end),
        (false, None) => Ok(false),
    }
}

/// Unpacks a tar archive, compressed with gzip, zstd or not, or a zip archive into a folder. `what` is its name for messages.
///
/// # Errors
/// For what is no such archive, or holds what may not be made. What was made by then stays.
pub fn extract(mut file: File, what: &str, folder: OwnedFd, owner: Owner) -> Result<(), Error> {
    let reading = || format!("read {what}");
    let meta = file.metadata().doing(reading)?;
    if !meta.is_file() {
        return Err(Error::invalid(what, "is not a file"));
    }
    let mut tree = Tree::new(folder, what, Form::Files(owner));
    if zip::is_zip(&mut file).doing(reading)? {
        zip::extract(&file, meta.len(), &mut tree, what)?;
        return tree.leave_parent();
    }
    file.seek(SeekFrom::Start(0)).doing(reading)?;
    let mut stream = stream::Layer::open(&file, meta.len()).doing(reading)?;
    let mut entries = Archive::new(&mut stream);
    while let Some(entry) = entries.next().doing(reading)? {
        tree.apply(&entry, &mut entries.content())?;
    }
    drop(entries);
    // a broken end is an error, too
    io::copy(&mut stream, &mut io::sink()).doing(reading)?;
    tree.leave_parent()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;
    use std::process::Command;

    const OWNER: Owner = Owner { uid: 12, gid: 34 };

    fn extract(archive: &Path, to: &Path) -> Result<(), Error> {
        let (file, to) = (File::open(archive).unwrap(), File::open(to).unwrap());
        super::extract(file, "x", to.into(), OWNER)
    }

    fn root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn a_tar_archive_as_files() {
        if !root() {
            eprintln!("skipped: needs root to give files an owner");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("a/b/file"), "new").unwrap();
        std::fs::write(from.join("a/.wh.x"), "kept").unwrap();
        std::fs::set_permissions(from.join("a/b/file"), PermissionsExt::from_mode(0o4755)).unwrap();
        std::os::unix::fs::symlink("b/file", from.join("a/link")).unwrap();
        std::fs::create_dir_all(to.join("a/b")).unwrap();
        std::fs::write(to.join("a/b/file"), "old").unwrap();
        std::fs::write(to.join("a/other"), "stays").unwrap();
        for (options, name) in [("-cf", "x.tar"), ("-czf", "x.tgz")] {
            let archive = dir.path().join(name);
            let status = Command::new("tar")
                .arg(options)
                .arg(&archive)
                .args(["-C"])
                .arg(&from)
                .arg("a/b/file")
                .arg("a/.wh.x")
                .arg("a/link")
                .status();
            assert!(status.unwrap().success());
            extract(&archive, &to).unwrap();
            let read = |name: &str| std::fs::read_to_string(to.join(name)).unwrap();
            assert_eq!(
                (read("a/link"), read("a/other"), read("a/.wh.x")),
                ("new".into(), "stays".into(), "kept".into())
            );
            let meta = std::fs::metadata(to.join("a/b/file")).unwrap();
            assert_eq!(
                (meta.uid(), meta.gid(), meta.mode() & 0o7777),
                (12, 34, 0o755)
            );
        }
    }

    #[test]
    fn nothing_leads_out() {
        if !root() {
            eprintln!("skipped: needs root to give files an owner");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for folder in [&from, &to] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::create_dir(from.join("l")).unwrap();
        std::fs::write(from.join("l/x"), "x").unwrap();
        let archive = dir.path().join("x.tar");
        let status = Command::new("tar")
            .arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(&from)
            .arg("l/x")
            .status();
        assert!(status.unwrap().success());
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, to.join("l")).unwrap();
        assert!(extract(&archive, &to).is_err());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn which_names_are_archives() {
        for (name, expected) in [
            ("a.tar", Ok(true)),
            ("A.TGZ", Ok(true)),
            ("a.tar.gz", Ok(true)),
            ("a.zip", Ok(true)),
            ("a", Ok(false)),
            ("a.jar", Ok(false)),
            ("a.tar.xz", Err(".tar.xz")),
            ("a.gz", Err(".gz")),
        ] {
            assert_eq!(is_archive(name), expected, "{name}");
        }
    }
}
