//! What the kernel counted, in one form for both kinds of hierarchy.
//!
//! *Invariants:* an absent file is `None`, an unreadable or malformed one an error; nothing is guessed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Cgroup, Error, file};

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

/// A cgroup with its children, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// Last component of its path.
    pub name: String,
    /// Limits and use.
    pub stats: Stats,
    /// Processor time allowed in each period, both in microseconds; `None` unlimited.
    pub cpu_quota: Option<(u64, u64)>,
    /// Share of the processor under contention: `cpu.weight` (v2, default 100) or `cpu.shares` (v1, default 1024).
    pub cpu_weight: Option<u64>,
    /// Processes in it, without those below.
    pub processes: usize,
    /// Cgroups below, ascending by name.
    pub children: Vec<Tree>,
}

/// v1 prints "unlimited" as the largest multiple of the page size that fits a long.
const V1_UNLIMITED: u64 = i64::MAX as u64 - 65_535;

fn malformed(path: &Path) -> Error {
    Error::Read {
        path: path.to_path_buf(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, "not a number"),
    }
}

/// A file with one number; `max` and absence are `None`.
fn number(folder: Option<&Path>, name: &str) -> Result<Option<u64>, Error> {
    let Some(folder) = folder else {
        return Ok(None);
    };
    let path = folder.join(name);
    match file::read_optional(&path)?.as_deref() {
        None | Some("max") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| malformed(&path)),
    }
}

/// One entry of a flat-keyed file.
fn keyed(folder: Option<&Path>, name: &str, key: &str) -> Result<Option<u64>, Error> {
    let Some(folder) = folder else {
        return Ok(None);
    };
    let path = folder.join(name);
    let Some(text) = file::read_optional(&path)? else {
        return Ok(None);
    };
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value
        .map(|value| value.parse().map_err(|_| malformed(&path)))
        .transpose()
}

pub(super) fn stats(cgroup: &Cgroup) -> Result<Stats, Error> {
    match cgroup {
        Cgroup::V2(path) => v2(path),
        Cgroup::V1 { controllers, .. } => v1(|name| controllers.get(name).map(PathBuf::as_path)),
        Cgroup::Systemd { .. } | Cgroup::Unlimited { .. } => Ok(Stats::default()),
    }
}

fn v2(path: &Path) -> Result<Stats, Error> {
    let folder = Some(path);
    Ok(Stats {
        memory_current: number(folder, "memory.current")?,
        memory_limit: number(folder, "memory.max")?,
        memory_peak: number(folder, "memory.peak")?,
        oom_kills: keyed(folder, "memory.events", "oom_kill")?,
        cpu_usage_usec: keyed(folder, "cpu.stat", "usage_usec")?,
        pids_current: number(folder, "pids.current")?,
        pids_limit: number(folder, "pids.max")?,
    })
}

fn v1<'a>(folder: impl Fn(&str) -> Option<&'a Path>) -> Result<Stats, Error> {
    let memory = folder("memory");
    let pids = folder("pids");
    Ok(Stats {
        memory_current: number(memory, "memory.usage_in_bytes")?,
        memory_limit: number(memory, "memory.limit_in_bytes")?
            .filter(|limit| *limit < V1_UNLIMITED),
        memory_peak: number(memory, "memory.max_usage_in_bytes")?,
        oom_kills: v1_oom_kills(memory)?,
        cpu_usage_usec: number(folder("cpuacct"), "cpuacct.usage")?.map(|nanos| nanos / 1000),
        pids_current: number(pids, "pids.current")?,
        pids_limit: number(pids, "pids.max")?,
    })
}

/// Unlike v2's memory.events, v1 counts where the victim was and not in the cgroups above.
fn v1_oom_kills(memory: Option<&Path>) -> Result<Option<u64>, Error> {
    let Some(memory) = memory else {
        return Ok(None);
    };
    let mut sum = None;
    for folder in file::walk(memory)? {
        if let Some(kills) = keyed(Some(&folder), "memory.oom_control", "oom_kill")? {
            sum = Some(sum.unwrap_or(0) + kills);
        }
    }
    Ok(sum)
}

pub(super) fn tree(cgroup: &Cgroup) -> Result<Tree, Error> {
    let mut names = BTreeSet::new();
    let mut members = BTreeSet::new();
    for folder in cgroup.folders() {
        for child in file::children(folder)? {
            if let Some(name) = child.file_name() {
                names.insert(name.to_string_lossy().into_owned());
            }
        }
        let text = file::read_optional(&folder.join("cgroup.procs"))?.unwrap_or_default();
        members.extend(text.lines().map(str::to_owned));
    }
    let (cpu_quota, cpu_weight) = cpu(cgroup)?;
    let name = cgroup.name();
    Ok(Tree {
        name: name
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        stats: stats(cgroup)?,
        cpu_quota,
        cpu_weight,
        processes: members.len(),
        children: names
            .iter()
            .map(|name| tree(&cgroup.child(name)))
            .collect::<Result<_, _>>()?,
    })
}

/// Quota with period, and weight, as in [`Tree`].
type Cpu = (Option<(u64, u64)>, Option<u64>);

fn cpu(cgroup: &Cgroup) -> Result<Cpu, Error> {
    match cgroup {
        Cgroup::V2(path) => {
            let text = file::read_optional(&path.join("cpu.max"))?.unwrap_or_default();
            let mut parts = text.split(' ').map(|part| part.parse().ok());
            let quota = parts.next().flatten().zip(parts.next().flatten());
            Ok((quota, number(Some(path), "cpu.weight")?))
        }
        Cgroup::V1 { controllers, .. } => {
            let folder = controllers.get("cpu").map(PathBuf::as_path);
            let text = match folder {
                Some(folder) => file::read_optional(&folder.join("cpu.cfs_quota_us"))?,
                None => None,
            };
            // −1 is no quota
            let quota = text.and_then(|text| text.parse::<u64>().ok());
            let period = number(folder, "cpu.cfs_period_us")?;
            Ok((quota.zip(period), number(folder, "cpu.shares")?))
        }
        Cgroup::Systemd { .. } | Cgroup::Unlimited { .. } => Ok((None, None)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    #[test]
    fn v2_values() {
        let folder = folder(&[
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            (
                "memory.events",
                "low 0\noom 7\noom_kill 3\noom_group_kill 1\n",
            ),
            ("cpu.stat", "usage_usec 12\nuser_usec 5\n"),
            ("pids.current", "2\n"),
            ("pids.max", "9\n"),
            ("cpu.max", "5000 10000\n"),
            ("cpu.weight", "100\n"),
        ]);
        let cgroup = Cgroup::V2(folder.path().into());
        let expected = Stats {
            memory_current: Some(4096),
            oom_kills: Some(3),
            cpu_usage_usec: Some(12),
            pids_current: Some(2),
            pids_limit: Some(9),
            ..Stats::default()
        };
        assert_eq!(stats(&cgroup).unwrap(), expected);
        let tree = tree(&cgroup).unwrap();
        assert_eq!(
            (tree.cpu_quota, tree.cpu_weight),
            (Some((5000, 10_000)), Some(100))
        );
    }

    #[test]
    fn v1_values() {
        let folder = folder(&[
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.max_usage_in_bytes", "8192\n"),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            ),
            ("cpuacct.usage", "12345678\n"),
        ]);
        fs::create_dir(folder.path().join("child")).unwrap();
        fs::write(
            folder.path().join("child/memory.oom_control"),
            "oom_kill 2\n",
        )
        .unwrap();
        let found = v1(|name| (name != "pids").then(|| folder.path())).unwrap();
        let expected = Stats {
            memory_current: Some(4096),
            memory_peak: Some(8192),
            oom_kills: Some(3),
            cpu_usage_usec: Some(12_345),
            ..Stats::default()
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn nonsense_is_an_error() {
        let folder = folder(&[("memory.current", "many\n")]);
        assert!(matches!(
            stats(&Cgroup::V2(folder.path().into())),
            Err(Error::Read { .. })
        ));
    }
}
