//! Paths of the finished root that are hidden or cannot be written to.
//!
//! *Invariants:* each path is opened once and covered through that descriptor, so what it is and what is covered are the same; what
//! hides a file is the host's null device, checked (CVE-2025-31133). A path that is not there is fine.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::FileType;

use super::{Context, Error, read_only, resolve};
use crate::sys::mount;

/// Binds a path onto itself, read-only with all below. It is named `rest` beneath `from`.
pub fn make_readonly(from: &OwnedFd, rest: &Path, path: &Path) -> Result<(), Error> {
    let Some(target) = resolve::existing(from, rest)? else {
        return Ok(());
    };
    let tree = mount::clone_tree_at(&target, true)
        .context(|| format!("bind {} onto itself", path.display()))?;
    mount::set_attributes(&tree, true, read_only())
        .and_then(|()| mount::attach(&tree, &target))
        .context(|| format!("make {} read-only", path.display()))
}

/// Hides a file under the null device and a folder under an empty tmpfs, which comes back when it was made: all folders share one.
pub fn mask(
    from: &OwnedFd,
    rest: &Path,
    path: &Path,
    null: &OwnedFd,
    empty: Option<&OwnedFd>,
) -> Result<Option<OwnedFd>, Error> {
    let what = || format!("mask {}", path.display());
    let Some(target) = resolve::existing(from, rest)? else {
        return Ok(None);
    };
    let stat = rustix::fs::fstat(&target).context(|| format!("look at {}", path.display()))?;
    let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let tree = match (is_folder, empty) {
        (false, _) => mount::clone_tree_at(null, false),
        (true, Some(empty)) => mount::clone_tree_at(empty, false),
        (true, None) => {
            let options = ["size=0", "nr_inodes=1", "mode=755"].map(str::to_owned);
            mount::new_filesystem("tmpfs", Some("tmpfs"), &options, libc::MOUNT_ATTR_RDONLY)
        }
    };
    let tree = tree.context(what)?;
    mount::attach(&tree, &target).context(what)?;
    Ok((is_folder && empty.is_none()).then_some(tree))
}
