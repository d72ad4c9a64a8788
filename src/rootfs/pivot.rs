//! The step into the root, and what the root gets last.

use std::os::fd::OwnedFd;

use rustix::mount::{UnmountFlags, unmount};

use super::{Context, Error};
use crate::sys::mount::{self, Attributes};

/// Makes `root` the root of the process and of its mount namespace; the host's tree is detached.
pub fn pivot(root: &OwnedFd) -> Result<(), Error> {
    rustix::process::fchdir(root).context(|| "enter the root".to_owned())?;
    // pivot_root(2) NOTES: with "." twice the old root ends up on top of the new one and needs no folder
    rustix::process::pivot_root(".", ".").context(|| "pivot_root to the root".to_owned())?;
    unmount(".", UnmountFlags::DETACH).context(|| "detach the host's root".to_owned())?;
    rustix::process::chdir("/").context(|| "enter /".to_owned())
}

/// `rootfsPropagation`.
pub fn propagation(root: &OwnedFd, kind: u64, recursive: bool) -> Result<(), Error> {
    let attributes = Attributes {
        propagation: kind,
        ..Attributes::default()
    };
    mount::set_attributes(root, recursive, attributes)
        .context(|| "set the root's propagation".to_owned())
}
