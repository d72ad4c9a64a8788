//! The life of one OCI container: the parent's stage.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;

/// Why a container operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program to run is not in the container (exit code 127).
    #[error("{0}")]
    CommandNotFound(String),
    /// The program to run cannot be run (exit code 126).
    #[error("{0}")]
    CommandNotRunnable(String),
    /// Anything else (exit code 125).
    #[error("{0}")]
    Other(String),
}

/// What the root file system is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// `root.path` of the bundle as it is.
    Bundle,
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
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// RFC 3339.
    pub created: String,
}

/// Makes a container up to the start gate. Must run in a single-threaded process. Standard streams of the caller become the
/// container's. On failure nothing is left: no cgroup, no mount, no process.
pub fn create(_request: &CreateRequest) -> Result<State, Error> {
    todo!()
}

/// Opens the gate and waits until the program was executed or failed to be.
pub fn start(_dir: &Path) -> Result<(), Error> {
    todo!()
}

/// Reads `state.json`; `None` when there is no container.
pub fn load(_dir: &Path) -> Result<Option<State>, Error> {
    todo!()
}

/// The container's status now, from the kernel.
pub fn status(_state: &State) -> Status {
    todo!()
}

/// Sends a signal to the first process (or all members of the cgroup).
pub fn kill(_dir: &Path, _signal: i32, _all: bool) -> Result<(), Error> {
    todo!()
}

/// Kills what is left and removes cgroup, gate and `state.json`; missing is success.
pub fn delete(_dir: &Path) -> Result<(), Error> {
    todo!()
}

/// A process started in a running container; a child of the caller.
#[derive(Debug)]
pub struct Exec {
    /// Its pid in the caller's namespace; the caller waits for it.
    pub pid: i32,
    /// Terminal master when `process.terminal` is set.
    pub console: Option<OwnedFd>,
}

/// Runs `process` in the container. Must be called in a single-threaded process; without terminal the caller's standard streams are used.
pub fn exec(_dir: &Path, _process: &Process) -> Result<Exec, Error> {
    todo!()
}
