//! What the child does, as plain data: made by [`crate::container`] from `config.json`, carried over by the clone itself.

use std::ffi::CString;
use std::path::PathBuf;

use caps::CapsHashSet;

use crate::{rootfs, seccomp};

/// The first process of a container.
#[derive(Debug, Clone)]
pub struct InitPlan {
    /// Mounts and all that.
    pub rootfs: rootfs::Plan,
    /// Name of a new UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name of a new UTS namespace.
    pub domainname: Option<String>,
    /// Files below `/proc/sys` and what to write there.
    pub sysctls: Vec<(PathBuf, String)>,
    /// The network namespace is new: its loopback is set up.
    pub loopback: bool,
    /// A cgroup namespace is made once the process is in its cgroup.
    pub cgroup_namespace: bool,
    /// The process.
    pub process: ProcessPlan,
}

/// A process of a container, the first one or a later one.
#[derive(Debug, Clone)]
pub struct ProcessPlan {
    /// Arguments; the first names the program.
    pub argv: Vec<CString>,
    /// Environment, `KEY=value`.
    pub env: Vec<CString>,
    /// Folder to run in.
    pub cwd: PathBuf,
    /// It is in a user namespace that is not the caller's: becomes root there first.
    pub user_namespace: bool,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Additional groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// Set no_new_privs.
    pub no_new_privileges: bool,
    /// Capabilities.
    pub capabilities: Capabilities,
    /// (`RLIMIT_*`, soft, hard).
    pub rlimits: Vec<(i32, u64, u64)>,
    /// Filter, loaded last.
    pub seccomp: Option<seccomp::Program>,
    /// `personality(2)` domain.
    pub personality: Option<u64>,
    /// A reaper stays as the container's first process, and the program is its child.
    pub reaper: bool,
    /// Gets a terminal of its own: (rows, columns), 0 for unset.
    pub terminal: Option<(u16, u16)>,
}

/// The five sets of capabilities(7).
#[derive(Debug, Clone, Default)]
pub struct Capabilities {
    /// What execve may give.
    pub bounding: CapsHashSet,
    /// In force.
    pub effective: CapsHashSet,
    /// May be made effective.
    pub permitted: CapsHashSet,
    /// Kept over execve by files that allow it.
    pub inheritable: CapsHashSet,
    /// Kept over execve.
    pub ambient: CapsHashSet,
}
