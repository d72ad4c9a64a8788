//! What the executor and everything below it takes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// Pause between two looks at the memory.
const PAUSE: Duration = Duration::from_millis(20);

/// Processor time of all processes below this one that have ended and were waited for.
pub fn children_cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN);
    let time = |value: TimeVal| {
        Duration::from_micros(value.tv_sec() as u64 * 1_000_000 + value.tv_usec() as u64)
    };
    usage.map_or(Duration::ZERO, |usage| {
        time(usage.user_time()) + time(usage.system_time())
    })
}

/// Looks at the anonymous memory of a cgroup until told to end.
pub struct Memory {
    over: Arc<AtomicBool>,
    watcher: JoinHandle<u64>,
}

impl Memory {
    /// Of the cgroup that the process is in, and those below.
    pub fn watch(pid: i32) -> Memory {
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let stat = memory_stat(pid);
        let watcher = std::thread::spawn(move || {
            let mut peak = 0;
            while !told.load(Ordering::Relaxed) {
                peak = peak.max(stat.as_ref().map_or(0, anonymous));
                std::thread::sleep(PAUSE);
            }
            peak
        });
        Memory { over, watcher }
    }

    /// The most there was, in bytes.
    pub fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.watcher.join().unwrap_or(0)
    }
}

/// `memory.stat` of a process's cgroup, version 1 or 2.
fn memory_stat(pid: i32) -> Option<PathBuf> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let root = match names {
            "memory" => "/sys/fs/cgroup/memory",
            "" => "/sys/fs/cgroup",
            _ => return None,
        };
        Some(PathBuf::from(root).join(path).join("memory.stat")).filter(|path| path.exists())
    })
}

/// memory.rst `total_rss`, cgroup-v2.rst `anon`.
fn anonymous(stat: &PathBuf) -> u64 {
    let text = fs::read_to_string(stat).unwrap_or_default();
    let value = |line: &str| {
        line.strip_prefix("total_rss ")
            .or(line.strip_prefix("anon "))?
            .parse()
            .ok()
    };
    text.lines().find_map(value).unwrap_or(0)
}

/// Memory of all processes while tasks run, by what they are.
#[derive(Debug)]
pub struct Held {
    /// Number, resident and proportional KiB.
    pub by_kind: BTreeMap<&'static str, [u64; 3]>,
    /// How long SHUTDOWN took.
    pub end: Duration,
}

impl Held {
    /// Looks at processes.
    pub fn look(pids: &[i32]) -> Held {
        let mut by_kind = BTreeMap::new();
        for pid in pids {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // a supervisor has the arguments of the keeper that it was forked from, and a name of its own
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let line = name + &String::from_utf8_lossy(&line).replace('\0', " ");
            // the executor's arguments are those of the shim, behind its own
            let kinds = [
                ("internal mesos-executor", "executor"),
                ("executor mesos", "shim"),
                ("supervisor\n", "supervisor"),
                ("keeper\n", "keeper"),
                ("sleep", "task"),
            ];
            let kind = kinds.iter().find(|(words, _)| line.contains(words));
            let entry = by_kind
                .entry(kind.map_or("other", |(_, kind)| kind))
                .or_insert([0; 3]);
            let rollup =
                fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let value = |key: &str| {
                let line = rollup.lines().find_map(|line| line.strip_prefix(key));
                line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
                    .unwrap_or(0)
            };
            entry[0] += 1;
            entry[1] += value("Rss:");
            entry[2] += value("Pss:");
        }
        Held {
            by_kind,
            end: Duration::ZERO,
        }
    }

    /// With the time that the end took.
    pub fn ended_in(self, end: Duration) -> Held {
        Held { end, ..self }
    }
}
