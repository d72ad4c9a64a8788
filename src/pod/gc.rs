//! Pods that nobody is going to end any more: their owner is gone, they were killed as a whole (a framework destroyed the
//! cgroup that keeper, supervisor and containers were in), their making or removal was cut short.
//!
//! *Invariants:* a pod whose keeper or supervisor lives is left to them, unless they have had their time; one of which a
//! process runs and no owner is known to be gone is never touched; a pod that another command is at work on is left to it.
//! Can be called at any time, by any number at once, from any pid namespace.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::layout::{Folders, PodDir};
use super::record::{self, Pod, Status};
use super::{Error, Result, adopt, lock, teardown};

/// How long the services of a pod whose owner ended may take, all together; then they are killed.
pub const OWNER_GRACE: Duration = Duration::from_secs(30);
/// How long its supervisor may take for everything before it is taken for stuck.
const ORPHAN_MOST: Duration = Duration::from_secs(60);

/// Why a pod is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Its owner ended.
    OwnerEnded,
    /// Its processes were all killed.
    Killed,
    /// The cgroup that it was in was removed.
    CgroupGone,
    /// The command that made it was killed.
    HalfMade,
    /// The command that removed it was killed, or could not finish.
    HalfRemoved,
    /// The machine was started anew.
    Forgotten,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing is left of it.
    Removed,
    /// Its supervisor is at it.
    Ending,
    /// It would be removed.
    Found,
    /// It could not be removed.
    Failed,
}

/// A pod that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Its name.
    pub pod: String,
    /// Why it goes.
    pub why: Why,
    /// What became of it.
    pub outcome: Outcome,
    /// What stands in the way.
    pub error: Option<String>,
    /// How the hooks went that it still owed.
    pub hooks: Vec<String>,
}

/// What is known of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    /// It has its record.
    record: bool,
    /// Its removal has begun.
    removing: bool,
    /// Its owner lives; `None`: it has none, or one that cannot be seen from here.
    owner: Option<bool>,
    /// Its keeper or supervisor lives.
    tended: bool,
    /// Since when its owner is known to be gone.
    orphan: Option<Duration>,
    /// A process of it runs.
    runs: bool,
    /// A service of it is recorded as running.
    ran: bool,
    /// The cgroup it was made in is there.
    parent: bool,
}

/// `None`: it is left alone.
fn decide(facts: Facts) -> Option<(Why, Outcome)> {
    let Facts {
        tended, runs, ran, ..
    } = facts;
    let removed = |why| Some((why, Outcome::Removed));
    match facts.owner {
        _ if !facts.record => removed(Why::HalfMade),
        _ if facts.removing => removed(Why::HalfRemoved),
        Some(true) => None,
        Some(false) if tended && facts.orphan.is_none_or(|since| since < ORPHAN_MOST) => {
            Some((Why::OwnerEnded, Outcome::Ending))
        }
        Some(false) => removed(Why::OwnerEnded),
        None if tended || runs => None,
        None if !facts.parent => removed(Why::CgroupGone),
        None if ran => removed(Why::Killed),
        None => None,
    }
}

/// Removes every such pod, or with `dry` only tells. A failure is in the list and keeps nothing else from being removed.
pub fn collect(folders: &Folders, dry: bool) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for name in adopt::names(folders)? {
        let dir = folders.pod(&name);
        let found = one(folders, &dir, dry, |dir| {
            let known = dir.dir.exists().then(|| facts(dir)).transpose()?;
            Ok(known.and_then(decide))
        });
        all.extend(found);
    }
    for name in forgotten(folders)? {
        let dir = folders.pod(&name);
        let found = one(folders, &dir, dry, |dir| {
            let gone = is_forgotten(folders, dir)?;
            Ok(gone.then_some((Why::Forgotten, Outcome::Removed)))
        });
        all.extend(found);
    }
    if !dry {
        adopt::sweep_locks(folders)?;
    }
    Ok(all)
}

fn one(
    folders: &Folders,
    dir: &PodDir,
    dry: bool,
    look: impl FnOnce(&PodDir) -> Result<Option<(Why, Outcome)>>,
) -> Option<Found> {
    let failed = |why, error: Error| Found {
        pod: dir.name.clone(),
        why,
        outcome: Outcome::Failed,
        error: Some(error.to_string()),
        hooks: Vec::new(),
    };
    // somebody is at work on it
    let _lock = match adopt::try_lock(folders, &dir.name) {
        Ok(lock) => lock?,
        Err(error) => return Some(failed(Why::HalfMade, error)),
    };
    let (why, mut outcome) = match look(dir) {
        Ok(found) => found?,
        Err(error) => return Some(failed(Why::HalfMade, error)),
    };
    // the pod's events go with it
    let mut hooks = Vec::new();
    let done = match outcome {
        Outcome::Ending if !dry => mark(dir),
        Outcome::Removed if !dry => {
            teardown::finish(folders, dir, &mut |_, text| hooks.push(text.to_string()))
        }
        Outcome::Removed => {
            outcome = Outcome::Found;
            Ok(())
        }
        _ => Ok(()),
    };
    let found = match done {
        Err(error) => failed(why, error),
        Ok(()) => Found {
            pod: dir.name.clone(),
            why,
            outcome,
            error: None,
            hooks: Vec::new(),
        },
    };
    Some(Found { hooks, ..found })
}

/// Notes since when a pod's owner is known to be gone.
pub fn mark(dir: &PodDir) -> Result<()> {
    match fs::File::create_new(dir.orphan()) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(Error::io("write", &dir.orphan())(error))
        }
        _ => Ok(()),
    }
}

fn facts(dir: &PodDir) -> Result<Facts> {
    let pod = adopt::load(dir)?;
    let mut facts = Facts {
        record: pod.is_some(),
        removing: dir.removing().exists(),
        owner: None,
        tended: lock::is_held(&dir.keeper_lock())? || lock::is_held(&dir.supervisor_lock())?,
        orphan: None,
        runs: false,
        ran: false,
        parent: true,
    };
    let Some(pod) = pod else { return Ok(facts) };
    // numbers of processes mean something in their own namespace alone
    if pod.pid_namespace == record::pid_namespace()? {
        facts.owner = pod.owner.as_ref().map(|owner| owner.process.alive());
    }
    let since = fs::metadata(dir.orphan()).and_then(|meta| meta.modified());
    facts.orphan = since.ok().and_then(|time| time.elapsed().ok());
    facts.runs = !pod.cgroup.processes()?.is_empty();
    let unlimited = pod.cgroup.folders().is_empty();
    for name in pod.project.services.keys() {
        let status = record::read::<Status>(&dir.service(name).status())?.unwrap_or_default();
        facts.ran |= status.phase.active();
        facts.runs |= unlimited && status.process.is_some_and(|process| process.alive());
    }
    facts.parent = has_parent(&pod);
    Ok(facts)
}

/// In one hierarchy at least.
fn has_parent(pod: &Pod) -> bool {
    let folders = pod.cgroup.folders();
    let there = |path: &&Path| path.parent().is_some_and(Path::exists);
    folders.is_empty() || folders.iter().any(there)
}

/// Names of pods of this state folder that have data and may be gone.
fn forgotten(folders: &Folders) -> Result<Vec<String>> {
    let dir = folders.root.join("pods");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", &dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("read", &dir))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if is_forgotten(folders, &folders.pod(&name))? {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// There is no such pod, but data of it; volumes without a name are left to the next one, or to `down`.
fn is_forgotten(folders: &Folders, dir: &PodDir) -> Result<bool> {
    let gone = !dir.dir.exists() && is_ours(&dir.data, &dir.dir);
    Ok(gone && !teardown::is_stripped(folders, dir)?)
}

/// The data are of a pod of this state folder: others may share the root.
fn is_ours(data: &Path, state: &Path) -> bool {
    fs::read_link(data.join(super::layout::OF)).is_ok_and(|of| of == state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_and_what_stays() {
        let alive = Facts {
            record: true,
            removing: false,
            owner: None,
            tended: true,
            orphan: None,
            runs: true,
            ran: true,
            parent: true,
        };
        let dead = Facts {
            tended: false,
            runs: false,
            ..alive
        };
        let owned = |facts, lives| Facts {
            owner: Some(lives),
            ..facts
        };
        let since = |facts, seconds| Facts {
            orphan: Some(Duration::from_secs(seconds)),
            ..facts
        };
        let gone = |why| Some((why, Outcome::Removed));
        let ending = Some((Why::OwnerEnded, Outcome::Ending));
        #[rustfmt::skip]
        let cases = [
            (alive, None),
            (Facts { record: false, ..dead }, gone(Why::HalfMade)),
            (Facts { removing: true, ..owned(alive, true) }, gone(Why::HalfRemoved)),
            // an owner that lives sees to it, whatever happened
            (owned(alive, true), None),
            (owned(dead, true), None),
            (owned(alive, false), ending),
            (since(owned(alive, false), 59), ending),
            (since(owned(alive, false), 60), gone(Why::OwnerEnded)),
            (owned(dead, false), gone(Why::OwnerEnded)),
            (Facts { runs: true, ..owned(dead, false) }, gone(Why::OwnerEnded)),
            // nobody's
            (dead, gone(Why::Killed)),
            (Facts { tended: true, ..dead }, None),
            (Facts { runs: true, ..dead }, None),
            // its services had ended before, or had never been started
            (Facts { ran: false, ..dead }, None),
            (Facts { ran: false, parent: false, ..dead }, gone(Why::CgroupGone)),
            (Facts { parent: false, ..alive }, None),
        ];
        for (facts, expected) in cases {
            assert_eq!(decide(facts), expected, "{facts:?}");
        }
    }
}
