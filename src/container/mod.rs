//! The life of one OCI container: the parent's stage.
//!
//! ```text
//! DIR/config.json is the bundle's; in the container's own folder are
//!   state.json   written before the first process is released      gate, result   the start gate, see [`crate::init::gate`]
//!   spec.json    config.json as it was at create: exec does not depend on what became of the bundle
//! ```
//!
//! *Invariants:*
//! * `state.json` is there before the container's process can go on without us; before that it dies with us. It is not synced: what it
//!   tells of ends with the machine.
//! * What fails leaves nothing: cgroup, processes, gate and state are undone, and the undo goes on after errors.
//! * A pid is used only with its start time, through a pidfd.
//! * What a specification asks for and we do not do is an error, never ignored ([`plan`]).
//!
//! The child's stage is [`crate::init`]; who waits for the first process is the caller's business (a subreaper).

mod config;
mod create;
mod exec;
mod host_mounts;
mod idmap;
mod life;
mod listener;
mod net_devices;
pub mod plan;
mod spawn;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::init::channel::{Failure, FailureKind};
use crate::init::hooks::{Hooks, OciState, Point};

pub use config::{parse_process, parse_spec};
pub use create::{Config, connect, create, create_from};
pub use exec::{ExecOptions, exact_output, exec, exec_with};
pub use life::{
    delete, kill, load, open_process, pause, processes, resume, spec, start, started, status,
    undo_half_made, update,
};
pub use plan::{LaterHooks, REAPER};

/// Why a container operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program to run is not in the container (exit code 127).
    #[error("{0}")]
    CommandNotFound(String),
    /// The program to run cannot be run (exit code 126).
    #[error("{0}")]
    CommandNotRunnable(String),
    /// The child ended without a word while it was set up.
    #[error("the container's first process died while it was set up")]
    Died,
    /// The container's cgroup has processes that are not ours; it was left alone (exit code 125).
    #[error("{0}")]
    InUse(String),
    /// The cgroup takes no process because it has some below with controllers (exit code 125).
    #[error("{0}")]
    CgroupBusy(String),
    /// Anything else (exit code 125).
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// A step that failed, with its object.
    fn step(step: impl std::fmt::Display, error: impl std::fmt::Display) -> Error {
        Error::Other(format!("{step}: {error}"))
    }
}

/// An error with its causes, joined by `: `.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure.kind {
            FailureKind::NotFound => Error::CommandNotFound(failure.message),
            FailureKind::NotRunnable => Error::CommandNotRunnable(failure.message),
            FailureKind::Other => Error::Other(failure.message),
        }
    }
}

/// What the root file system is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// `root.path` of the bundle as it is.
    Bundle,
    /// A folder that is shown as it is, read-only with all mounts below it from before anything is mounted in it: nothing of it
    /// is changed, so a mount needs a place that is there.
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// An overlay, mounted in the container's own mount namespace over the folder `root.path`.
    Overlay {
        /// Read-only layers, lowest first.
        lower: Vec<PathBuf>,
        /// Changes.
        upper: PathBuf,
        /// Overlay's work folder, on the file system of `upper`.
        work: PathBuf,
    },
}

/// Everything `create` needs beside `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRequest {
    /// Container id.
    pub id: String,
    /// Folder with `config.json`.
    pub bundle: PathBuf,
    /// Folder (mode 0700) that holds `state.json` and the start gate; must exist.
    pub dir: PathBuf,
    /// Root file system.
    pub rootfs: Rootfs,
    /// The container's own cgroup; its parent exists.
    pub cgroup: Cgroup,
    /// Socket that receives the master of the terminal when `process.terminal` is set.
    pub console_socket: Option<PathBuf>,
    /// So many descriptors from 3 on are the program's.
    #[serde(default)]
    pub preserve_fds: u32,
    /// The caller's session keyring stays.
    #[serde(default)]
    pub keep_keyring: bool,
    /// There is no gate and no `start`: the program runs when `create` is done.
    #[serde(default)]
    pub at_once: bool,
    /// The first process is killed when the one that makes it ends: who waits for a container in the foreground may be killed,
    /// and nobody would know of it (Slurm kills a step so, and then waits for whoever has its pipes).
    #[serde(default)]
    pub dies_with_parent: bool,
    /// The root is changed without pivot_root(2), which a root file system in RAM does not allow.
    #[serde(default)]
    pub no_pivot: bool,
}

/// runtime.md "Lifecycle".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Waits at the gate.
    Created,
    /// Runs.
    Running,
    /// Frozen.
    Paused,
    /// Its first process is gone.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of this file's form.
    pub version: u32,
    /// Container id.
    pub id: String,
    /// Process id of the container's first process in the caller's namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: tells a reused pid apart.
    pub start_time: u64,
    /// Folder with `config.json`.
    pub bundle: PathBuf,
    /// Its folder, with this file.
    pub dir: PathBuf,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// RFC 3339.
    pub created: String,
    /// `ociVersion` of `config.json`.
    #[serde(default)]
    pub oci_version: String,
    /// Root file system, `root.path` made absolute.
    #[serde(default)]
    pub rootfs: PathBuf,
    /// User id of who made it.
    #[serde(default)]
    pub owner: u32,
    /// `annotations` of `config.json`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// It has a pid namespace of its own, whose processes end with the first one.
    #[serde(default)]
    pub own_pids: bool,
    /// Its processes have the session keyring of whoever starts them.
    #[serde(default)]
    pub keep_keyring: bool,
    /// Hooks that are still to run.
    #[serde(default)]
    pub hooks: LaterHooks,
    /// What `create` has to say beside that it worked; not in the file.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

impl State {
    /// The hooks of one of the later points.
    fn hooks(&self, point: Point) -> Hooks {
        let (list, status) = match point {
            Point::Poststart => (&self.hooks.poststart, "running"),
            _ => (&self.hooks.poststop, "stopped"),
        };
        Hooks {
            point,
            list: list.clone(),
            env: Vec::new(),
            cwd: Some(self.bundle.clone()),
            state: self.oci(status),
        }
    }

    /// As hooks and listeners of filters read it, but for the pid.
    fn oci(&self, status: &str) -> OciState {
        OciState {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            status: status.to_owned(),
            pid: None,
            bundle: self.bundle.clone(),
            annotations: self.annotations.clone(),
        }
    }
}

/// A process started in a running container; a child of the caller.
#[derive(Debug)]
pub struct Exec {
    /// Its pid in the caller's namespace; the caller waits for it.
    pub pid: i32,
    /// Terminal master when `process.terminal` is set.
    pub console: Option<OwnedFd>,
}
