//! Where the files are: the search for compose files, `.env`, paths made absolute.
//!
//! *Invariants.* All reading goes through [`Read`]; [`from_disk`] is the only place that touches the file system, and
//! reads a bounded amount.

use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use super::Error;
use super::node::Result;
use super::parse::MAX_BYTES;

/// Reads a whole file; `-` is standard input.
pub(super) type Read<'a> = &'a dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// What is looked for, the first one wins; its `.override` sibling is merged over it (compose-spec 03-compose-file.md).
const NAMES: [(&str, [&str; 2]); 4] = [
    (
        "compose.yaml",
        ["compose.override.yaml", "compose.override.yml"],
    ),
    (
        "compose.yml",
        ["compose.override.yml", "compose.override.yaml"],
    ),
    (
        "docker-compose.yaml",
        [
            "docker-compose.override.yaml",
            "docker-compose.override.yml",
        ],
    ),
    (
        "docker-compose.yml",
        [
            "docker-compose.override.yml",
            "docker-compose.override.yaml",
        ],
    ),
];

/// A file and its bytes.
pub(super) struct Found {
    /// As messages call it.
    pub name: String,
    /// Absolute.
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

/// The reader of the real thing.
pub(super) fn from_disk(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    match path == Path::new("-") {
        true => io::stdin().lock().take(limit).read_to_end(&mut bytes)?,
        false => std::fs::File::open(path)?
            .take(limit)
            .read_to_end(&mut bytes)?,
    };
    match bytes.len() > MAX_BYTES {
        true => Err(io::Error::other(format!(
            "larger than {} MiB",
            MAX_BYTES >> 20
        ))),
        false => Ok(bytes),
    }
}

/// Reads the files that were named.
pub(super) fn named(working_dir: &Path, files: &[PathBuf], read: Read<'_>) -> Result<Vec<Found>> {
    files
        .iter()
        .map(|file| {
            let stdin = file == Path::new("-");
            let path = if stdin {
                file.clone()
            } else {
                absolute(working_dir, file)
            };
            let bytes = read(&path).map_err(|e| Error {
                message: format!("cannot read {}: {e}", path.display()),
            })?;
            let name = if stdin {
                "stdin".to_owned()
            } else {
                file.display().to_string()
            };
            Ok(Found { name, path, bytes })
        })
        .collect()
}

/// Looks in a folder and upwards.
pub(super) fn search(working_dir: &Path, read: Read<'_>) -> Result<Vec<Found>> {
    for folder in working_dir.ancestors() {
        let shown = |name: &str| match folder == working_dir {
            true => name.to_owned(),
            false => folder.join(name).display().to_string(),
        };
        for (name, overrides) in NAMES {
            let Some(bytes) = optional(&folder.join(name), read)? else {
                continue;
            };
            let mut found = vec![Found {
                name: shown(name),
                path: folder.join(name),
                bytes,
            }];
            for name in overrides {
                if let Some(bytes) = optional(&folder.join(name), read)? {
                    found.push(Found {
                        name: shown(name),
                        path: folder.join(name),
                        bytes,
                    });
                    break;
                }
            }
            return Ok(found);
        }
    }
    let names = NAMES.map(|(name, _)| name).join(", ");
    let message = format!(
        "no compose file in {} or above ({names}); name one with -f",
        working_dir.display()
    );
    Err(Error { message })
}

/// A file that need not be there.
pub(super) fn optional(path: &Path, read: Read<'_>) -> Result<Option<Vec<u8>>> {
    match read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(Error {
            message: format!("cannot read {}: {e}", path.display()),
        }),
    }
}

/// `path` seen from `folder`, without `.` and `..` (lexically, as compose does).
pub(super) fn absolute(folder: &Path, path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in folder.join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(out.pop()),
            other => out.push(other),
        }
    }
    out
}
