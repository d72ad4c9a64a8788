//! Nested cgroups on v2, v1 and hybrid hosts: find, create, limit, watch, freeze, kill, remove.
//!
//! *Invariants:* a [`Cgroup`] is a plain value of absolute folders, never of open files, so it can be
//! written to a state file. No limit is skipped: one that does not hold is an error that names the
//! controller or the file. Nothing here touches a cgroup above the ones it was given, except to switch
//! controllers on for the way down (cgroup-v2.rst, "Top-down Constraint"). The cgroup a caller lives in
//! is never killed or frozen by that caller. Undo (`remove`, `kill`) takes a missing cgroup for done.
//!
//! Left to others: which cgroup a pod or container gets, who is attached when, and what its limits are.
//!
//! ```text
//! own.rs      /proc/self/mountinfo + /proc/self/cgroup -> Cgroup      (pure core)
//! limits/     LinuxResources -> (controller, file, value)              (pure)
//! devices.rs  device rules -> v1 lines or an eBPF program              (pure)
//! v2.rs v1.rs the operations that differ · stat.rs counters · file.rs one read, one write
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

mod devices;
mod file;
mod limits;
mod own;
mod stat;
mod v1;
mod v2;

pub use stat::{Stats, Tree};

/// Why a cgroup operation failed; names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused a value.
    #[error("write {value:?} to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A folder could not be made.
    #[error("create cgroup {} (a parent that may be written to can be chosen with --cgroup-parent)", path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A folder could not be removed.
    #[error("remove cgroup {}", path.display())]
    Remove {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A limit needs a controller that is not there.
    #[error("set {what}: controller {controller} is not available: {why}")]
    Controller {
        /// The controller, as in `cgroup.controllers` or /proc/cgroups.
        controller: String,
        /// The file or action it was wanted for.
        what: String,
        /// What stands in the way, and the remedy.
        why: String,
    },
    /// A value makes no sense, or no sense on this kind of hierarchy.
    #[error("linux.resources.{field}: {why}")]
    Invalid {
        /// The place in the OCI specification.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// A path that is no cgroup path.
    #[error("cgroup path {path:?}: {why}")]
    Path {
        /// As given.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No hierarchy was found.
    #[error("no usable cgroup hierarchy: {0}")]
    Hierarchy(String),
    /// Processes outlived SIGKILL.
    #[error("cgroup {}: processes {pids:?} are still there after SIGKILL (uninterruptible sleep?)", path.display())]
    Survivors {
        /// The cgroup.
        path: PathBuf,
        /// Who is left.
        pids: Vec<i32>,
    },
    /// The freezer did not get there.
    #[error("cgroup {}: still not {wanted} after {seconds} s", path.display())]
    Freeze {
        /// The cgroup.
        path: PathBuf,
        /// `frozen` or `thawed`.
        wanted: &'static str,
        /// How long we waited.
        seconds: u64,
    },
    /// The caller asked to kill or freeze itself.
    #[error("refuse to {action} cgroup {}: this process is in it", path.display())]
    Own {
        /// `kill` or `freeze`.
        action: &'static str,
        /// The cgroup.
        path: PathBuf,
    },
    /// The device filter could not be installed.
    #[error("device rules of cgroup {}: {call}", path.display())]
    Devices {
        /// The cgroup.
        path: PathBuf,
        /// The failed call.
        call: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Several things failed; all are told.
    #[error("{}", several(.0))]
    Several(Vec<Error>),
}

fn several(errors: &[Error]) -> String {
    let chain = |error: &Error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        text
    };
    errors.iter().map(chain).collect::<Vec<_>>().join("; ")
}

/// All errors as one result.
fn collect(mut errors: Vec<Error>) -> Result<(), Error> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Several(errors)),
    }
}

/// One cgroup: absolute folders. A plain value; nothing exists before [`Cgroup::create`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cgroup {
    /// The unified hierarchy.
    V2(PathBuf),
    /// Version 1, by controller (`memory`, `cpu`, `name=systemd` …); `unified` is the v2 mount of a hybrid host.
    V1 {
        /// Folder by controller; controllers mounted together have the same one.
        controllers: BTreeMap<String, PathBuf>,
        /// Folder below the v2 mount of a hybrid host.
        unified: Option<PathBuf>,
    },
}

impl Cgroup {
    /// The cgroup the calling process is in. On v1 each controller has its own path; hierarchies that
    /// may not be written to are left out. A process that [`Cgroup::create`] moved into the leaf
    /// `sampan-self` is reported where it was before.
    pub fn own() -> Result<Cgroup, Error> {
        own::own()
    }

    /// A cgroup by path as runtime-spec's `cgroupsPath` (config-linux.md, "Cgroups Path"): absolute
    /// from the mount point, relative below the caller's.
    pub fn at(path: &str) -> Result<Cgroup, Error> {
        own::at(path)
    }

    /// The child `name` (one or more path components); pure. A name with `..` gives a cgroup that every
    /// operation refuses; a leading slash does not count.
    #[must_use]
    pub fn child(&self, name: &str) -> Cgroup {
        self.map(|path| join(path, name))
    }

    /// The same cgroup with every folder mapped.
    fn map(&self, f: impl Fn(&Path) -> PathBuf) -> Cgroup {
        match self {
            Cgroup::V2(path) => Cgroup::V2(f(path)),
            Cgroup::V1 {
                controllers,
                unified,
            } => Cgroup::V1 {
                controllers: controllers
                    .iter()
                    .map(|(name, path)| (name.clone(), f(path)))
                    .collect(),
                unified: unified.as_deref().map(&f),
            },
        }
    }

    /// Every folder once, the unified one last.
    fn folders(&self) -> Vec<&Path> {
        let mut folders: Vec<&Path> = Vec::new();
        match self {
            Cgroup::V2(path) => folders.push(path),
            Cgroup::V1 {
                controllers,
                unified,
            } => {
                for path in controllers.values().chain(unified) {
                    if !folders.contains(&path.as_path()) {
                        folders.push(path);
                    }
                }
            }
        }
        folders
    }

    /// Its folder for messages.
    fn name(&self) -> PathBuf {
        self.folders()
            .first()
            .map(|path| path.to_path_buf())
            .unwrap_or_default()
    }

    /// Refuses what could leave the hierarchy or name it as a whole.
    fn checked(&self) -> Result<&Cgroup, Error> {
        for path in self.folders() {
            let bad = |why| Error::Path {
                path: path.display().to_string(),
                why,
            };
            if !path.is_absolute() {
                return Err(bad("not absolute"));
            }
            if path.components().any(|part| part == Component::ParentDir) {
                return Err(bad("`..` would leave the parent cgroup"));
            }
        }
        Ok(self)
    }

    /// Makes the folders; on v2 switches on every available controller from the top down, as far as
    /// the kernel lets us: what is missing in the end is reported by [`Cgroup::apply`] if a limit needs
    /// it. If this process alone stands in the way (cgroup-v2.rst, "No Internal Process Constraint"),
    /// it moves itself into the leaf `sampan-self`. An existing cgroup is success.
    pub fn create(&self) -> Result<(), Error> {
        match self.checked()? {
            Cgroup::V2(path) => v2::create(path),
            Cgroup::V1 {
                controllers,
                unified,
            } => v1::create(controllers, unified.as_deref()),
        }
    }

    /// Whether the kernel accounts swap, so that a limit on it can be set: neither without CONFIG_SWAP nor with `swapaccount=0`.
    pub fn accounts_swap(&self) -> bool {
        let (start, limit, swap) = match self {
            Cgroup::V2(path) => (path, "memory.max", "memory.swap.max"),
            Cgroup::V1 { controllers, .. } => match controllers.get("memory") {
                Some(path) => (path, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
                None => return false,
            },
        };
        // on v2 the files are there only where the parent gives the controller: the nearest that has them tells
        start
            .ancestors()
            .find(|dir| dir.join(limit).exists())
            .map_or_else(
                || Path::new("/proc/swaps").exists(),
                |dir| dir.join(swap).exists(),
            )
    }

    /// Writes limits; one that cannot be set is an error that names it, its value and the file.
    /// Fields that are absent leave what is there, so this is also `update`.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), Error> {
        match self.checked()? {
            Cgroup::V2(path) => v2::apply(path, resources),
            Cgroup::V1 {
                controllers,
                unified,
            } => v1::apply(controllers, unified.as_deref(), resources),
        }
    }

    /// Moves a process in, with all its threads.
    pub fn attach(&self, pid: i32) -> Result<(), Error> {
        if pid <= 0 {
            return Err(Error::Path {
                path: pid.to_string(),
                why: "not a process id",
            });
        }
        for path in self.checked()?.folders() {
            file::write(&path.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// For `CLONE_INTO_CGROUP`; `None` on v1.
    pub fn open(&self) -> Result<Option<OwnedFd>, Error> {
        match self.checked()? {
            Cgroup::V2(path) => match File::open(path) {
                Ok(folder) => Ok(Some(folder.into())),
                Err(source) => Err(Error::Read {
                    path: path.clone(),
                    source,
                }),
            },
            Cgroup::V1 { .. } => Ok(None),
        }
    }

    /// Members of this cgroup and of all below, ascending. A member outside the caller's pid namespace
    /// is 0; a missing cgroup has none.
    pub fn processes(&self) -> Result<Vec<i32>, Error> {
        let mut pids = std::collections::BTreeSet::new();
        for path in self.checked()?.folders() {
            file::processes(path, &mut pids)?;
        }
        Ok(pids.into_iter().collect())
    }

    /// SIGKILL for every member, here and below, until none is left (bounded); a frozen one is thawed.
    pub fn kill(&self) -> Result<(), Error> {
        self.refuse_own("kill")?;
        self.refuse_root()?;
        match self {
            Cgroup::V2(path) => v2::kill(self, path),
            Cgroup::V1 {
                controllers,
                unified,
            } => v1::kill(self, controllers, unified.as_deref()),
        }
    }

    /// Freezes or thaws, and waits until it is so (bounded).
    pub fn freeze(&self, frozen: bool) -> Result<(), Error> {
        if frozen {
            self.refuse_own("freeze")?;
        }
        match self.checked()? {
            Cgroup::V2(path) => v2::freeze(path, frozen),
            Cgroup::V1 {
                controllers,
                unified,
            } => v1::freeze(controllers, unified.as_deref(), frozen),
        }
    }

    /// A hierarchy as a whole is not ours: its root has no cgroup above it.
    fn refuse_root(&self) -> Result<(), Error> {
        for path in self.checked()?.folders() {
            let above = path.parent().map(|parent| parent.join("cgroup.procs"));
            if path.exists() && !above.is_some_and(|file| file.exists()) {
                return Err(Error::Path {
                    path: path.display().to_string(),
                    why: "is the root of its hierarchy; name a cgroup below it",
                });
            }
        }
        Ok(())
    }

    /// `kill` and `freeze` would hit the caller half-way through.
    fn refuse_own(&self, action: &'static str) -> Result<(), Error> {
        let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
        if self.processes()?.contains(&own) {
            return Err(Error::Own {
                action,
                path: self.name(),
            });
        }
        Ok(())
    }

    /// Removes it with everything below; missing is success. Goes on after errors and tells them all.
    pub fn remove(&self) -> Result<(), Error> {
        self.refuse_root()?;
        let mut errors = Vec::new();
        for path in self.folders() {
            if let Err(error) = file::remove(path) {
                errors.push(error);
            }
        }
        collect(errors)
    }

    /// Reads what the kernel counted.
    pub fn stats(&self) -> Result<Stats, Error> {
        stat::stats(self.checked()?)
    }

    /// The cgroup with all below: limits and use of each, for people.
    pub fn tree(&self) -> Result<Tree, Error> {
        stat::tree(self.checked()?)
    }
}

/// `path` with the components of `name` behind it; `..` stays, to be refused later.
fn join(path: &Path, name: &str) -> PathBuf {
    let mut joined = path.to_path_buf();
    for part in Path::new(name).components() {
        if let Component::Normal(_) | Component::ParentDir = part {
            joined.push(part);
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_stays_below() {
        let parent = Cgroup::V2("/sys/fs/cgroup/pod".into());
        for (name, path) in [
            ("web", "/sys/fs/cgroup/pod/web"),
            ("a/b", "/sys/fs/cgroup/pod/a/b"),
            ("/abs", "/sys/fs/cgroup/pod/abs"),
            ("./x//y/", "/sys/fs/cgroup/pod/x/y"),
        ] {
            assert_eq!(parent.child(name), Cgroup::V2(path.into()), "{name}");
        }
        let outside = parent.child("../other");
        assert!(matches!(outside.create(), Err(Error::Path { .. })));
        assert!(matches!(outside.remove(), Err(Error::Path { .. })));
        assert!(matches!(outside.kill(), Err(Error::Path { .. })));
    }

    #[test]
    fn folders_once() {
        let cgroup = Cgroup::V1 {
            controllers: [
                ("cpu", "/c/cpu,cpuacct/x"),
                ("cpuacct", "/c/cpu,cpuacct/x"),
                ("memory", "/c/memory/y"),
            ]
            .map(|(name, path)| (name.into(), path.into()))
            .into(),
            unified: Some("/c/unified/x".into()),
        };
        assert_eq!(
            cgroup.folders(),
            ["/c/cpu,cpuacct/x", "/c/memory/y", "/c/unified/x"].map(Path::new)
        );
        let text = serde_json::to_string(&cgroup).unwrap();
        assert_eq!(serde_json::from_str::<Cgroup>(&text).unwrap(), cgroup);
    }
}
