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

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

mod devices;
mod entry;
mod error;
mod file;
mod limits;
pub mod metrics;
mod oom;
mod own;
mod place;
mod stat;
mod systemd;
mod v1;
mod v2;

pub use entry::{Entry, enter};
pub use error::Error;
use error::collect;
pub use metrics::Metrics;
pub use oom::{OomEvent, OomWatch};
pub use place::Unit;
pub use stat::{Stats, Tree};

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
    /// One that systemd makes and removes, and the folders it then has.
    Systemd {
        /// The unit.
        unit: Unit,
        /// Its folders.
        cgroup: Box<Cgroup>,
    },
    /// None that may be written to: processes stay where they are started, and no limit can be set. Worth a warning.
    Unlimited {
        /// What stands in the way.
        why: String,
    },
}

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Write {
    /// The file.
    pub file: PathBuf,
    /// What it gets.
    pub value: String,
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

    /// The cgroup of the OCI container `id` by `linux.cgroupsPath`: absolute, relative to where the caller is, absent, or
    /// `slice:prefix:name` when `systemd` is asked for. Nothing is made. Where nothing may be written it is [`Cgroup::Unlimited`].
    pub fn for_container(
        cgroups_path: Option<&Path>,
        systemd: bool,
        id: &str,
    ) -> Result<Cgroup, Error> {
        place::for_container(cgroups_path, systemd, id)
    }

    /// The folders, whoever makes them.
    #[must_use]
    pub fn plain(&self) -> &Cgroup {
        match self {
            Cgroup::Systemd { cgroup, .. } => cgroup.plain(),
            other => other,
        }
    }

    /// The child `name` (one or more path components); pure. A name with `..` gives a cgroup that every
    /// operation refuses; a leading slash does not count.
    #[must_use]
    pub fn child(&self, name: &str) -> Cgroup {
        self.map(|path| join(path, name))
    }

    /// The same cgroup with every folder mapped.
    fn map(&self, f: impl Fn(&Path) -> PathBuf) -> Cgroup {
        match self.plain() {
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
            other => other.clone(),
        }
    }

    /// The part that a process is cloned into, the v2 folder, and the part that it enters by itself, the v1 hierarchies. Whoever
    /// needs both at once has no use for this.
    #[must_use]
    pub fn parts(&self) -> (Option<Cgroup>, Option<Cgroup>) {
        match self {
            Cgroup::V1 {
                controllers,
                unified,
            } => (
                unified.clone().map(Cgroup::V2),
                Some(Cgroup::V1 {
                    controllers: controllers.clone(),
                    unified: None,
                }),
            ),
            other => (Some(other.clone()), None),
        }
    }

    /// Every folder once, the unified one last; none of [`Cgroup::Unlimited`].
    #[must_use]
    pub fn folders(&self) -> Vec<&Path> {
        let mut folders: Vec<&Path> = Vec::new();
        match self.plain() {
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
            Cgroup::Systemd { .. } | Cgroup::Unlimited { .. } => {}
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

    /// The folders; refuses what could leave the hierarchy or name it as a whole.
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
        Ok(self.plain())
    }

    /// Makes the folders; on v2 switches on every available controller from the top down, as far as
    /// the kernel lets us: what is missing in the end is reported by [`Cgroup::apply`] if a limit needs
    /// it. If this process alone stands in the way (cgroup-v2.rst, "No Internal Process Constraint"),
    /// it moves itself into the leaf `sampan-self`. An existing cgroup is success. The folders of a unit are made with it, by
    /// [`Cgroup::begin`].
    pub fn create(&self) -> Result<(), Error> {
        match self {
            Cgroup::Systemd { .. } => Ok(()),
            _ => self.make().map(|_| ()),
        }
    }

    /// On v2, moves the calling process into the leaf `sampan-self` when it is alone in this cgroup, so that those below can have
    /// controllers; those that it starts from then on are in the leaf, too. `false`: others are in the way.
    pub fn make_room(&self) -> Result<bool, Error> {
        match self.checked()? {
            Cgroup::V2(path) => v2::make_room(path),
            _ => Ok(true),
        }
    }

    /// Undoes [`Cgroup::make_room`] when nothing else is left below.
    pub fn step_back(&self) -> Result<(), Error> {
        match self.checked()? {
            Cgroup::V2(path) => v2::step_back(path),
            _ => Ok(()),
        }
    }

    /// Removes the leaf beside this cgroup that its maker stepped into, when nobody is in it any more.
    pub fn remove_room(&self) {
        if let Cgroup::V2(path) = self
            && let Some(parent) = path.parent()
        {
            file::remove_leaf(&parent.join(own::SELF));
        }
    }

    /// Makes the folders; whether all are new, so that nobody else can be in them.
    fn make(&self) -> Result<bool, Error> {
        match self.checked()? {
            Cgroup::V2(path) => v2::create(path),
            Cgroup::V1 {
                controllers,
                unified,
            } => v1::create(controllers, unified.as_deref()),
            Cgroup::Systemd { .. } | Cgroup::Unlimited { .. } => Ok(true),
        }
    }

    /// [`Cgroup::create`] for a new container: refuses one with processes ([`Error::InUse`]), with whom it would share limits and end,
    /// and a frozen one ([`Error::Frozen`]), where it would not run. After an error nothing is left of what this call made.
    pub fn prepare(&self) -> Result<(), Error> {
        if let Cgroup::Systemd { .. } = self {
            return self.refuse_used();
        }
        let mut new = false;
        let made = self.make().and_then(|fresh| {
            new = fresh;
            if !fresh {
                self.refuse_used()?;
            }
            if self.is_frozen()? {
                return Err(Error::Frozen { path: self.name() });
            }
            Ok(())
        });
        made.map_err(|error| match error {
            Error::InUse { .. } => error,
            Error::Frozen { .. } if !new => error,
            error if new => both(error, self.remove()),
            // part of it is somebody's, perhaps: only what nobody is in is taken away
            error => {
                for path in self.folders() {
                    file::remove_leaf(path);
                }
                error
            }
        })
    }

    fn refuse_used(&self) -> Result<(), Error> {
        match self.processes()?.len() {
            0 => Ok(()),
            count => Err(Error::InUse {
                path: self.name(),
                count,
            }),
        }
    }

    /// Puts the first process of a new container into its unit, with `resources`; `annotations` named `org.systemd.property.*` are
    /// properties of the unit. The process must not go on before. Nothing to do where [`Cgroup::prepare`] did it all.
    pub fn begin(
        &self,
        pid: i32,
        resources: &LinuxResources,
        annotations: &HashMap<String, String>,
    ) -> Result<(), Error> {
        let Cgroup::Systemd { unit, cgroup } = self else {
            return Ok(());
        };
        systemd::begin(unit, cgroup, pid, resources, annotations)?;
        // what systemd has no hierarchy or no property for
        let rest = cgroup
            .create()
            .and_then(|()| cgroup.apply(resources))
            .and_then(|()| cgroup.attach(pid));
        rest.map_err(|error| both(error, systemd::end(unit)))
    }

    /// Opens the way in for a new process of this program.
    pub fn entry(&self) -> Result<Entry, Error> {
        Entry::open(self.checked()?)
    }

    /// Whether the kernel accounts swap, so that a limit on it can be set: neither without CONFIG_SWAP nor with `swapaccount=0`.
    pub fn accounts_swap(&self) -> bool {
        let (start, limit, swap) = match self.plain() {
            Cgroup::V2(path) => (path, "memory.max", "memory.swap.max"),
            Cgroup::V1 { controllers, .. } => match controllers.get("memory") {
                Some(path) => (path, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
                None => return false,
            },
            Cgroup::Systemd { .. } | Cgroup::Unlimited { .. } => return false,
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
    /// Fields that are absent leave what is there. See [`Cgroup::update`] for a container that runs.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), Error> {
        match self.checked()? {
            Cgroup::V2(path) => v2::apply(path, resources),
            Cgroup::V1 {
                controllers,
                unified,
            } => v1::apply(controllers, unified.as_deref(), resources),
            Cgroup::Systemd { .. } => Ok(()),
            Cgroup::Unlimited { why } => limits::refuse(resources, why),
        }
    }

    /// What [`Cgroup::apply`] writes into a fresh cgroup, without writing it. Rules of devices on version 2 are a program of the kernel's
    /// and no file: they stand under the folder.
    pub fn writes(&self, resources: &LinuxResources) -> Result<Vec<Write>, Error> {
        match self.plain() {
            Cgroup::V2(path) => v2::writes(path, resources),
            Cgroup::V1 {
                controllers,
                unified,
            } => v1::writes(controllers, unified.as_deref(), resources),
            _ => Ok(Vec::new()),
        }
    }

    /// Changes limits of a container that runs, and tells systemd, which would set its own again.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        if let Cgroup::Systemd { unit, cgroup } = self {
            cgroup.check_before_update(resources)?;
            systemd::update(unit, cgroup, resources)?;
        }
        self.apply(resources)
    }

    /// Gives it to the host's user `uid`, for a container with a cgroup namespace and a writable mount of it: the folder and what
    /// the kernel says is for delegation (config-linux.md, "Cgroup ownership"). Version 2 only; on v1 that is not safe.
    pub fn give_to(&self, uid: u32) -> Result<(), Error> {
        match self.checked()? {
            Cgroup::V2(path) => v2::give_to(path, uid),
            _ => Ok(()),
        }
    }

    /// Moves a process in, with all its threads. A new process of our own enters more cheaply by [`Cgroup::entry`].
    pub fn attach(&self, pid: i32) -> Result<(), Error> {
        if pid <= 0 {
            return Err(Error::Path {
                path: pid.to_string(),
                why: "not a process id",
            });
        }
        self.checked()?;
        for path in self.folders() {
            file::write(&path.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// For `CLONE_INTO_CGROUP`; `None` on v1.
    pub fn open(&self) -> Result<Option<OwnedFd>, Error> {
        match self.checked()? {
            Cgroup::V2(path) => entry::folder(path).map(Some),
            _ => Ok(None),
        }
    }

    /// Members of this cgroup and of all below, ascending. A member outside the caller's pid namespace
    /// is 0; a missing cgroup has none.
    pub fn processes(&self) -> Result<Vec<i32>, Error> {
        self.checked()?;
        let mut pids = std::collections::BTreeSet::new();
        for path in self.folders() {
            file::processes(path, &mut pids)?;
        }
        Ok(pids.into_iter().collect())
    }

    /// SIGKILL for every member, here and below, until none is left (bounded); a frozen one is thawed.
    pub fn kill(&self) -> Result<(), Error> {
        self.refuse_own("kill")?;
        self.refuse_root()?;
        match self.plain() {
            Cgroup::V2(path) => v2::kill(self, path),
            Cgroup::V1 {
                controllers,
                unified,
            } => v1::kill(self, controllers, unified.as_deref()),
            Cgroup::Systemd { .. } | Cgroup::Unlimited { .. } => Ok(()),
        }
    }

    /// Freezes or thaws, and waits until it is so (bounded). As it is already: success.
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
            Cgroup::Systemd { .. } => Ok(()),
            Cgroup::Unlimited { why } => Err(Error::Controller {
                controller: "freezer".to_owned(),
                what: if frozen { "frozen" } else { "thawed" }.to_owned(),
                why: why.clone(),
            }),
        }
    }

    /// Whether its members are stopped, by this cgroup's freezer or by one above; a missing cgroup is not frozen.
    pub fn is_frozen(&self) -> Result<bool, Error> {
        match self.checked()? {
            Cgroup::V2(path) => v2::is_frozen(path),
            Cgroup::V1 {
                controllers,
                unified,
            } => v1::is_frozen(controllers, unified.as_deref()),
            Cgroup::Systemd { .. } | Cgroup::Unlimited { .. } => Ok(false),
        }
    }

    /// A hierarchy as a whole is not ours: its root has no cgroup above it.
    fn refuse_root(&self) -> Result<(), Error> {
        self.checked()?;
        for path in self.folders() {
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
        self.checked()?;
        let unit = match self {
            Cgroup::Systemd { unit, .. } => systemd::end(unit),
            _ => Ok(()),
        };
        let busy: Vec<&Path> = self
            .folders()
            .into_iter()
            // the usual case: nobody is in it, nothing below
            .filter(|path| !file::remove_leaf(path))
            .collect();
        if busy.is_empty() {
            return unit;
        }
        self.refuse_root()?;
        let folders = busy.into_iter().map(file::remove);
        collect(folders.chain([unit]))
    }

    /// Removes folders that nobody is in and nothing is below of, as soon as members that are just exiting are gone. Others are somebody's.
    pub fn remove_unused(&self) {
        let mut left = self.folders();
        // in vain only when there is somebody
        let _ = file::wait(file::REMOVE_WAIT, || {
            left.retain(|path| !file::remove_leaf(path));
            Ok(left.is_empty())
        });
    }

    /// The cgroup below that has the process `pid` as a member, which this one may not have any more: on v2 whoever manages its own
    /// cgroups has to leave its root (cgroup-v2.rst, "No Internal Process Constraint").
    #[must_use]
    pub fn around(&self, pid: i32) -> Option<Cgroup> {
        let own = match self.plain() {
            Cgroup::V2(path) => path,
            Cgroup::V1 { unified, .. } => unified.as_ref()?,
            _ => return None,
        };
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let names: Vec<&str> = path.split('/').collect();
        // how much of it is above depends on the caller's cgroup namespace and on the mount
        let below = (0..names.len()).rev().find_map(|start| {
            let tail: PathBuf = names[start..].iter().collect();
            let folder = own.join(&tail);
            let members = file::read(&folder.join("cgroup.procs")).ok()?;
            let plain = tail
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            let there = members.lines().any(|line| line == pid.to_string());
            (plain && there).then_some(folder)
        })?;
        Some(match self.plain() {
            Cgroup::V1 { controllers, .. } => Cgroup::V1 {
                controllers: controllers.clone(),
                unified: Some(below),
            },
            _ => Cgroup::V2(below),
        })
    }

    /// Ends whoever is left in it and removes it: [`Cgroup::kill`] and [`Cgroup::remove`], one call for each folder when nobody is.
    pub fn destroy(&self) -> Result<(), Error> {
        self.checked()?;
        let plain = !matches!(self, Cgroup::Systemd { .. });
        // not all: what is busy in one hierarchy shall not lose the others
        if plain && self.folders().iter().all(|path| file::remove_leaf(path)) {
            return Ok(());
        }
        collect([self.kill(), self.remove()])
    }

    /// Reads what the kernel counted.
    pub fn stats(&self) -> Result<Stats, Error> {
        stat::stats(self.checked()?)
    }

    /// Everything the kernel counted, as `events --stats` prints it.
    pub fn metrics(&self) -> Result<Metrics, Error> {
        metrics::metrics(self.checked()?)
    }

    /// Begins to watch for the out-of-memory killer.
    pub fn watch_oom(&self) -> Result<OomWatch, Error> {
        OomWatch::open(self.checked()?)
    }

    /// What of `resources` is left out, and worth a warning: no kernel limits its own memory for a container any more
    /// (config-linux.md, "Memory": NOT RECOMMENDED), and without a cgroup there is nothing that holds.
    pub fn warnings(&self, resources: Option<&LinuxResources>) -> Vec<String> {
        let mut found = Vec::new();
        if let Cgroup::Unlimited { why } = self {
            found.push(format!(
                "the container is without a cgroup of its own: {why}"
            ));
        }
        let memory = resources.and_then(|resources| resources.memory().as_ref());
        if memory.is_some_and(limits::is_kernel_memory) {
            found.push("linux.resources.memory: kernel and kernelTCP are ignored".to_owned());
        }
        found
    }

    /// The cgroup with all below: limits and use of each, for people.
    pub fn tree(&self) -> Result<Tree, Error> {
        stat::tree(self.checked()?)
    }

    /// `checkBeforeUpdate`, before anything was changed.
    fn check_before_update(&self, resources: &LinuxResources) -> Result<(), Error> {
        let current = match self.plain() {
            Cgroup::V2(path) => path.join("memory.current"),
            // the kernel itself refuses
            _ => return Ok(()),
        };
        v2::check_before_update(resources, &current)
    }
}

/// An error, and what its undo had to say.
fn both(error: Error, undo: Result<(), Error>) -> Error {
    collect([Err(error), undo])
        .err()
        .unwrap_or(Error::Several(Vec::new()))
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
