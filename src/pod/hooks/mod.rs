//! Hooks of a pod: programs of the host at points of its life, one after the other.
//!
//! ```text
//! up ─► before-launch            in `up`: what they print is merged over the project            launch
//! supervisor ─► schedule         what is due, from the statuses of the services alone           schedule
//!   └─ sampan internal hook      one hook, once: runs it, records that it ran                   run
//! down, gc ─► pay                the same where no supervisor is left                           run
//! ```
//!
//! *Invariants:* that a life began is on disk before its first service starts, so whoever takes the pod apart knows what is
//! owed; that a hook ran is on disk before the next one begins. So each hook of a point runs at least once: again only when it was
//! killed with the process that ran it. No two hooks of a pod run at the same time. No service is asked to stop with the whole pod
//! before the `before-kill` hooks have ended.
//!
//! A service's own `post_start` and `pre_stop` are [`super::supervisor`]'s.

mod document;
mod launch;
mod run;
mod schedule;

pub use launch::before_launch;
pub use run::{pay, step};
pub use schedule::{Chain, Ledger, Stage, View};

use std::path::PathBuf;

use super::record::Pod;
use crate::compose::project::{Hook, HookPoint};

/// Folder of hooks that every pod has before its own.
pub const FOLDER: &str = "/etc/sampan/hooks.d";

/// [`FOLDER`], which need not be there, or what `SAMPAN_HOOKS_DIR` names instead.
pub fn usual_folder() -> Option<PathBuf> {
    match std::env::var_os("SAMPAN_HOOKS_DIR") {
        Some(named) => Some(named.into()),
        None => Some(PathBuf::from(FOLDER)).filter(|folder| folder.exists()),
    }
}

/// The pod's hooks at a point, in order.
pub fn at(pod: &Pod, point: HookPoint) -> impl Iterator<Item = &Hook> {
    let hooks = pod.project.pod.hooks.iter();
    hooks.filter(move |hook| hook.at == point)
}

/// The pod has hooks beside those that `up` runs.
pub fn any(pod: &Pod) -> bool {
    let mut hooks = pod.project.pod.hooks.iter();
    hooks.any(|hook| hook.at != HookPoint::BeforeLaunch)
}
