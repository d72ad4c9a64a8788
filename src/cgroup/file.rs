//! One read, one write, one walk over cgroup folders.
//!
//! *Invariants:* a value is one `write(2)` (the kernel parses each write on its own), a file is never
//! made (cgroupfs answers a create with a misleading EACCES), every error names the file, and what is
//! read is bounded. A folder that vanishes during a walk is skipped: removal is always concurrent.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;

use super::Error;

/// No cgroup file that we read comes near (cgroup.procs of a pid space of 4 million: 32 MB).
const READ_LIMIT: usize = 64 << 20;
/// Deeper nesting than this is not ours; the kernel's own default `cgroup.max.depth` is unlimited.
const DEPTH_LIMIT: usize = 64;
/// A dying process holds its cgroup for a moment after it has left `cgroup.procs`.
pub(super) const REMOVE_WAIT: Duration = Duration::from_secs(3);

/// Reads a whole file, without its line end.
pub(super) fn read(path: &Path) -> Result<String, Error> {
    read_io(path).map_err(|source| Error::Read {
        path: path.to_path_buf(),
        source,
    })
}

pub(super) fn read_io(path: &Path) -> io::Result<String> {
    // not `read_to_string`, which asks for the size first: cgroup files have none
    let mut file = fs::File::open(path)?;
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    loop {
        let free = bytes.get_mut(length..).unwrap_or_default();
        let count = match file.read(free) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        length += count;
        if count == 0 || length > READ_LIMIT {
            break;
        }
        if length == bytes.len() {
            bytes.resize(bytes.len() * 4, 0);
        }
    }
    bytes.truncate(length);
    let mut text = String::from_utf8(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// Reads a file that may be absent, because its controller or the kernel does not have it.
pub(super) fn read_optional(path: &Path) -> Result<Option<String>, Error> {
    match read_io(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if gone(&error) || error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// Words of a file such as `cgroup.controllers`; none if it is missing.
pub(super) fn words(path: &Path) -> Result<Vec<String>, Error> {
    let text = read_optional(path)?.unwrap_or_default();
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Writes a value in one call.
pub(super) fn write(path: &Path, value: &str) -> Result<(), Error> {
    write_io(path, value).map_err(|source| Error::Write {
        path: path.to_path_buf(),
        value: value.to_owned(),
        source,
    })
}

pub(super) fn write_io(path: &Path, value: &str) -> io::Result<()> {
    to_write(path)?.write_all(value.as_bytes())
}

/// Opens a file for one write per value.
pub(super) fn to_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

/// The object is not there (any more).
pub(super) fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Folders directly below; none if `path` is missing.
pub(super) fn children(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut found = Vec::new();
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(found),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        match entry.and_then(|entry| Ok((entry.file_type()?, entry.path()))) {
            Ok((kind, path)) if kind.is_dir() => found.push(path),
            Ok(_) => {}
            Err(error) if gone(&error) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    found.sort();
    Ok(found)
}

/// `path` and all folders below, parents first.
pub(super) fn walk(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut open = vec![(path.to_path_buf(), 0)];
    while let Some((folder, depth)) = open.pop() {
        if depth > DEPTH_LIMIT {
            return Err(Error::Path {
                path: folder.display().to_string(),
                why: "nested too deep",
            });
        }
        // a folder of cgroupfs has two links and one for each below
        let leaf = match fs::symlink_metadata(&folder) {
            Ok(about) => about.nlink() == 2,
            Err(error) => gone(&error),
        };
        if !leaf {
            for child in children(&folder)? {
                open.push((child, depth + 1));
            }
        }
        found.push(folder);
    }
    Ok(found)
}

/// Adds the members of `path` and of all below.
pub(super) fn processes(path: &Path, pids: &mut BTreeSet<i32>) -> Result<(), Error> {
    for folder in walk(path)? {
        // EOPNOTSUPP: a threaded cgroup; its processes are listed by the domain above
        let text = read_optional(&folder.join("cgroup.procs"))?.unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    Ok(())
}

/// Removes `path` if nobody is in it and nothing below it; true when it is gone.
pub(super) fn remove_leaf(path: &Path) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => gone(&error),
    }
}

/// Removes `path` and all below, bottom up; waits a little for members that are just exiting.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + REMOVE_WAIT;
    let mut pause = Duration::from_micros(100);
    loop {
        let Err(error) = remove_once(path) else {
            return Ok(());
        };
        let busy = matches!(&error, Error::Remove { source, .. }
            if matches!(source.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)));
        if !busy || Instant::now() >= deadline {
            return Err(error);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Tries every folder, deepest first, and returns the first error.
fn remove_once(path: &Path) -> Result<(), Error> {
    let mut first = Ok(());
    for folder in walk(path)?.into_iter().rev() {
        match fs::remove_dir(&folder) {
            Ok(()) => {}
            Err(error) if gone(&error) => {}
            Err(source) => {
                first = first.and(Err(Error::Remove {
                    path: folder,
                    source,
                }))
            }
        }
    }
    first
}

/// Calls `done` with growing pauses until it says true or `limit` has passed; what it said last.
pub(super) fn wait(
    limit: Duration,
    mut done: impl FnMut() -> Result<bool, Error>,
) -> Result<bool, Error> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_is_empty() {
        let missing = Path::new("/nonexistent/cgroup");
        assert_eq!(children(missing).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(read_optional(missing).unwrap(), None);
        remove(missing).unwrap();
        let mut pids = BTreeSet::new();
        processes(missing, &mut pids).unwrap();
        assert!(pids.is_empty());
        assert!(write(missing, "1").is_err());
        assert!(!missing.exists());
    }

    #[test]
    fn walk_has_parents_first_and_remove_takes_all() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("pod");
        for name in ["a/x", "a/y", "b"] {
            fs::create_dir_all(top.join(name)).unwrap();
        }
        let found = walk(&top).unwrap();
        assert_eq!(found.len(), 5);
        for (index, path) in found.iter().enumerate() {
            let parent = path.parent().unwrap();
            if *path != top {
                assert!(found[..index].iter().any(|earlier| earlier == parent));
            }
        }
        remove(&top).unwrap();
        assert!(!top.exists());
    }
}
