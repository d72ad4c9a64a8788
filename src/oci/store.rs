//! The folder of a container: `ROOT/ID`, mode 0700.
//!
//! ```text
//! create.json            what create was asked for, from before it makes anything until delete
//! lock                   held by whoever changes the folder
//! state.json, spec.json, gate, result      of `crate::container`
//! ```
//!
//! *Invariants:*
//! * An id is one path component; the folder is made by one `create` only (mkdir(2)).
//! * Who got the lock has looked whether the file is still there: the folder may be gone, or be another container's by now.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::args::Values;
use super::{Error, log};
use crate::container::{self, CreateRequest, State};
use crate::pod::lock::{self, Held};

/// How long another command may hold a container's lock before `delete --force` ends it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Folder of all containers.
pub fn root(global: &Values) -> Result<PathBuf, Error> {
    let path = match global.path("root") {
        Some(path) => path,
        None => match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) if !dir.is_empty() && !owns_run() => Path::new(&dir).join("sampan/oci"),
            _ => PathBuf::from("/run/sampan/oci"),
        },
    };
    // the record names it, and `start` may be called elsewhere
    std::path::absolute(&path)
        .map_err(|error| Error::step(format!("--root {}", path.display()), error))
}

/// Whether `/run` is the caller's: not an ordinary user's, nor that of one who is root in a user namespace of their own only.
fn owns_run() -> bool {
    rustix::process::geteuid().is_root()
        && rustix::fs::access("/run", rustix::fs::Access::WRITE_OK).is_ok()
}

/// Folder of one container, whether it exists or not. The error names what is wrong with the id.
pub fn dir(global: &Values, id: &str) -> Result<PathBuf, Error> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id == "." || id == ".." || !id.chars().all(good) {
        return Err(Error::new(format!(
            "container id {id:?} is invalid: letters, digits and _ + - . are allowed"
        )));
    }
    Ok(root(global)?.join(id))
}

/// What callers look for.
pub fn missing(id: &str) -> Error {
    Error::new(format!("container {id:?} does not exist"))
}

/// A container by its id.
pub fn find(global: &Values, id: &str) -> Result<State, Error> {
    let dir = dir(global, id)?;
    container::load(&dir)?.ok_or_else(|| missing(id))
}

/// Makes the folder of a new container.
pub fn make(global: &Values, id: &str) -> Result<(PathBuf, Held), Error> {
    let path = dir(global, id)?;
    let failed = |path: &Path, error: io::Error| match error.kind() {
        ErrorKind::PermissionDenied => Error::new(format!(
            "make {}: {error}; set XDG_RUNTIME_DIR or give --root",
            path.display()
        )),
        _ => Error::step(format!("make {}", path.display()), error),
    };
    let folder = || DirBuilder::new().mode(0o700).create(&path);
    let made = match folder() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let root = path.parent().unwrap_or(Path::new("/"));
            make_root(root).map_err(|error| failed(root, error))?;
            folder()
        }
        other => other,
    };
    match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Error::new(format!(
                "container with id {id} exists in {}",
                path.display()
            )));
        }
        other => other.map_err(|error| failed(&path, error))?,
    }
    let held = hold(&path)?
        .ok_or_else(|| Error::new(format!("container {id} was deleted while it was made")))?;
    Ok((path, held))
}

/// `ROOT`, and what is missing above it.
fn make_root(root: &Path) -> io::Result<()> {
    if let Some(above) = root.parent() {
        fs::create_dir_all(above)?;
    }
    match DirBuilder::new().mode(0o700).create(root) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Waits for the lock; `None` when the folder is gone.
pub fn hold(dir: &Path) -> Result<Option<Held>, Error> {
    settle(dir, lock::acquire(&dir.join("lock")))
}

/// Takes the lock to delete the container. With `force` another holder is given some time, then it is ended.
pub fn hold_to_delete(dir: &Path, force: bool) -> Result<Option<Held>, Error> {
    let path = dir.join("lock");
    let end = Instant::now() + PATIENCE;
    loop {
        match lock::attempt(&path) {
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) if force => return settle(dir, lock::evict(&path)),
            Ok(None) => {
                return Err(Error::new(format!(
                    "{} is in use by another command; `delete --force` ends it",
                    dir.display()
                )));
            }
            Ok(Some(held)) => return settle(dir, Ok(held)),
            Err(error) => return settle(dir, Err(error)),
        }
    }
}

/// A lock in a folder that was removed in the meantime holds nothing.
fn settle(dir: &Path, held: Result<Held, crate::pod::Error>) -> Result<Option<Held>, Error> {
    match held {
        Ok(held) if held.is_at(&dir.join("lock")) => Ok(Some(held)),
        Err(error) if dir.exists() => Err(Error::new(error.to_string())),
        _ => Ok(None),
    }
}

/// Notes what is about to be made, so that it can be removed should we be killed half-way.
pub fn note(request: &CreateRequest) -> Result<(), Error> {
    let path = request.dir.join("create.json");
    let text = serde_json::to_vec(request).map_err(|error| Error::step("create.json", error))?;
    // nothing survives the machine's end anyway: not synced
    crate::sys::file::write_private(&path, &text)
        .map_err(|error| Error::step(format!("write {}", path.display()), error))
}

/// Removes what a `create` left that was killed before it wrote the state; what hooks that follow came to is to be warned of.
pub fn undo_half_made(dir: &Path) -> Result<Option<String>, Error> {
    let path = dir.join("create.json");
    match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::step(format!("read {}", path.display()), error)),
        // cut off: it was killed before it made anything
        Ok(text) => match serde_json::from_slice::<CreateRequest>(&text) {
            Ok(request) => Ok(container::undo_half_made(&request)?),
            Err(_) => Ok(None),
        },
    }
}

/// Removes the folder, by the holder of its lock.
pub fn remove(dir: &Path) -> Result<(), Error> {
    // what is mostly left
    for name in ["create.json", "lock"] {
        // what cannot be removed is met again below
        let _ = fs::remove_file(dir.join(name));
    }
    if fs::remove_dir(dir).is_ok() {
        return Ok(());
    }
    loop {
        match fs::remove_dir_all(dir) {
            // somebody who wanted the lock made it again
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::step(format!("remove {}", dir.display()), error));
            }
            _ => return Ok(()),
        }
    }
}

/// All containers, by id. One that goes away while we look is left out.
pub fn all(global: &Values) -> Result<Vec<State>, Error> {
    let root = root(global)?;
    let failed = |error: io::Error| Error::step(format!("read {}", root.display()), error);
    let entries = match fs::read_dir(&root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut states = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // one that cannot be read hides no others
            match container::load(&entry.path()) {
                Ok(state) => states.extend(state),
                Err(error) => log::warning(global, &error.to_string())?,
            }
        }
    }
    states.sort_by(|one, two| one.id.cmp(&two.id));
    Ok(states)
}
