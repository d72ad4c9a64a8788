//! Mounts of a container without a mount namespace: they are in the caller's, and outlive its processes.
//!
//! *Invariants:* what was mounted on the root's folder before is on disk before anything is mounted there, so the container's mounts can
//! be told apart and unmounted whenever it was killed. The container's whole tree hangs on its root.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use super::Error;
use crate::sys::file;

/// `mounts.json` in the container's folder.
#[derive(Serialize, Deserialize)]
struct Noted {
    /// Where the root is mounted.
    root: PathBuf,
    /// The mount that was there before (statx(2) `stx_mnt_id`).
    below: u64,
}

fn path(dir: &Path) -> PathBuf {
    dir.join("mounts.json")
}

/// The mount that a folder is seen on.
fn mount_of(folder: &Path) -> std::io::Result<u64> {
    Ok(rustix::fs::statx(CWD, folder, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// Notes what is mounted on `root` now.
pub fn note(dir: &Path, root: &Path) -> Result<(), Error> {
    let failed = |error: std::io::Error| {
        Error::step(format!("note what is mounted on {}", root.display()), error)
    };
    let root = root.canonicalize().map_err(failed)?;
    let noted = Noted {
        below: mount_of(&root).map_err(failed)?,
        root,
    };
    let text = serde_json::to_vec(&noted).map_err(|error| failed(error.into()))?;
    file::write_private(&path(dir), &text).map_err(failed)
}

/// Unmounts what came later; missing is success.
pub fn remove(dir: &Path) -> Result<(), String> {
    let path = path(dir);
    let failed = |what: &str, error: std::io::Error| format!("{what} {}: {error}", path.display());
    let text = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| failed("read", error))?,
    };
    // cut off: it was killed before anything was mounted
    if let Ok(noted) = serde_json::from_slice::<Noted>(&text) {
        let root = noted.root.display();
        // the folder may be gone, and with it what was mounted there
        while mount_of(&noted.root).is_ok_and(|now| now != noted.below) {
            match unmount(&noted.root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                // somebody unmounted what was below as well
                Err(Errno::INVAL) => break,
                Err(error) => return Err(format!("unmount {root}: {error}")),
            }
        }
    }
    fs::remove_file(&path).map_err(|error| failed("remove", error))
}
