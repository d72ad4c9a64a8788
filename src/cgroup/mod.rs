//! Nested cgroups on v2, v1 and hybrid hosts.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

/// Why a cgroup operation failed; names the file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// One cgroup: absolute folders. A plain value; nothing exists before [`Cgroup::create`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cgroup {
    /// The unified hierarchy.
    V2(PathBuf),
    /// Version 1, by controller (`memory`, `cpu`, `name=systemd` …); `unified` is the v2 mount of a hybrid host.
    V1 {
        /// Folder by controller.
        controllers: BTreeMap<String, PathBuf>,
        /// Folder below the v2 mount of a hybrid host.
        unified: Option<PathBuf>,
    },
}

impl Cgroup {
    /// The cgroup the calling process is in.
    pub fn own() -> Result<Cgroup, Error> {
        todo!()
    }

    /// A cgroup by path as runtime-spec's `cgroupsPath`: absolute from the mount point, relative below the caller's.
    pub fn at(_path: &str) -> Result<Cgroup, Error> {
        todo!()
    }

    /// The child `name` (one or more path components); pure.
    pub fn child(&self, _name: &str) -> Cgroup {
        todo!()
    }

    /// Makes the folders; on v2 enables the controllers from the top down. `true` below a cgroup made earlier.
    pub fn create(&self) -> Result<(), Error> {
        todo!()
    }

    /// Writes limits; one that cannot be set is an error that names it, its value and the file.
    pub fn apply(&self, _resources: &LinuxResources) -> Result<(), Error> {
        todo!()
    }

    /// Moves a process in.
    pub fn attach(&self, _pid: i32) -> Result<(), Error> {
        todo!()
    }

    /// For `CLONE_INTO_CGROUP`; `None` on v1.
    pub fn open(&self) -> Result<Option<OwnedFd>, Error> {
        todo!()
    }

    /// Members of this cgroup and of all below.
    pub fn processes(&self) -> Result<Vec<i32>, Error> {
        todo!()
    }

    /// SIGKILL for every member, here and below, until none is left (bounded); a frozen one is thawed.
    pub fn kill(&self) -> Result<(), Error> {
        todo!()
    }

    /// Freezes or thaws, and waits until it is so.
    pub fn freeze(&self, _frozen: bool) -> Result<(), Error> {
        todo!()
    }

    /// Removes it with everything below; missing is success.
    pub fn remove(&self) -> Result<(), Error> {
        todo!()
    }

    /// Reads what the kernel counted.
    pub fn stats(&self) -> Result<Stats, Error> {
        todo!()
    }
}

/// Counters of a cgroup; `None` where the controller is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Bytes now.
    pub memory_current: Option<u64>,
    /// Bytes allowed; `None` unlimited.
    pub memory_limit: Option<u64>,
    /// Bytes at most so far.
    pub memory_peak: Option<u64>,
    /// Processes killed by the OOM killer, here and below.
    pub oom_kills: Option<u64>,
    /// Microseconds of processor time.
    pub cpu_usage_usec: Option<u64>,
    /// Tasks now.
    pub pids_current: Option<u64>,
    /// Tasks allowed; `None` unlimited.
    pub pids_limit: Option<u64>,
}
