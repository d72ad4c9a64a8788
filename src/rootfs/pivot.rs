//! The step into the root.

use std::os::fd::OwnedFd;

use rustix::mount::{UnmountFlags, unmount};

use super::{Context, Error, Plan, read_only};
use crate::sys::mount::{self, Attributes};

/// Makes `root` the root of the process and of its mount namespace; the host's tree is detached. Then the root's own flags.
pub fn enter(plan: &Plan, root: &OwnedFd) -> Result<(), Error> {
    let path = plan.path.display();
    rustix::process::fchdir(root).context(|| format!("enter the root {path}"))?;
    // pivot_root(2) NOTES: with "." twice the old root ends up on top of the new one and needs no folder
    rustix::process::pivot_root(".", ".").context(|| format!("pivot_root to {path}"))?;
    unmount(".", UnmountFlags::DETACH).context(|| "detach the host's root".to_owned())?;
    rustix::process::chdir("/").context(|| "enter /".to_owned())?;
    if let Some((propagation, recursive)) = plan.propagation {
        let attributes = Attributes {
            propagation,
            ..Attributes::default()
        };
        mount::set_attributes(root, recursive, attributes)
            .context(|| "set the root's propagation".to_owned())?;
    }
    if plan.readonly_root {
        mount::set_attributes(root, false, read_only())
            .context(|| "make the root read-only".to_owned())?;
    }
    Ok(())
}
