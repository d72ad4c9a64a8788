//! Many containers: one after another and at once, and what they leave behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::Result;
use crate::measure;
use crate::place::Place;
use crate::runtime::{Runtime, Step};

/// One after another.
const SERIES: usize = 1000;
/// At once.
const CROWD: usize = 200;
const CGROUPS: &str = "/sys/fs/cgroup";

/// What a leak would add to.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    mounts: usize,
    cgroups: usize,
    states: usize,
    processes: usize,
}

impl Traces {
    fn now(place: &Place, runtime: &Runtime) -> Traces {
        let count = |path: &Path| fs::read_dir(path).map_or(0, Iterator::count);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        Traces {
            mounts: mounts.lines().count(),
            cgroups: cgroups(Path::new(CGROUPS), 0).len(),
            states: count(&place.at("state").join(runtime.name)),
            // ours only: others come and go
            processes: processes
                .filter(|entry| {
                    fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|text| {
                        text.contains("sampan-bench") || text.contains("bin/true")
                    })
                })
                .count(),
        }
    }
}

/// Folders named for containers of ours, in all hierarchies; those below a folder come first.
fn cgroups(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let name = entry.file_name();
        // hidden, see `Place::make`
        if depth == 0 && name == "unified" {
            continue;
        }
        if depth < 4 {
            found.extend(cgroups(&entry.path(), depth + 1));
        }
        if name.to_string_lossy().starts_with("bench") {
            found.push(entry.path());
        }
    }
    found
}

/// Removes what a runtime left: its containers as it does it itself, then cgroups that it no longer knows of; `others` were there
/// before. What stays would be there for as long as the machine runs.
fn sweep(place: &Place, runtime: &Runtime, others: &[PathBuf]) -> Result<()> {
    let states = fs::read_dir(place.at("state").join(runtime.name));
    for state in states.into_iter().flatten().flatten() {
        let id = state.file_name().to_string_lossy().into_owned();
        let mut command = runtime.command(place, Step::Delete, "plain", &id);
        // what it cannot do is seen below
        let _ = command.stdin(Stdio::null()).output();
    }
    let left = || {
        let all = cgroups(Path::new(CGROUPS), 0).into_iter();
        all.filter(|folder| !others.contains(folder))
            .collect::<Vec<_>>()
    };
    for folder in left() {
        // one that is in use: also seen below
        let _ = fs::remove_dir(&folder);
    }
    let left = left();
    if left.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}: these cgroups cannot be removed: {left:?}",
        runtime.name
    ))
}

/// Open files of the whole system (proc_sys_fs(5) `file-nr`).
fn open_files() -> i64 {
    let text = fs::read_to_string("/proc/sys/fs/file-nr").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// Runs both and tells what they took and left.
pub fn run(place: &Place, runtime: &Runtime) -> Result<String> {
    let before = (Traces::now(place, runtime), open_files());
    let others = cgroups(Path::new(CGROUPS), 0);
    let mut times = Vec::with_capacity(SERIES);
    for number in 0..SERIES {
        let id = format!("bench-{number}");
        let command = runtime.command(place, Step::Run, "plain", &id);
        times.push(measure::time(command, place)?.wall);
    }
    let crowd = crowd(place, runtime);
    let after = (Traces::now(place, runtime), open_files());
    // what it left is told below, and nobody else's any more: that of a crowd that failed, too
    let swept = sweep(place, runtime, &others);
    let crowd = crowd?;
    swept?;
    let zombies = measure::zombies();
    let mean = |times: &[Duration]| {
        times.iter().sum::<Duration>().as_secs_f64() * 1e3 / times.len().max(1) as f64
    };
    let (first, last) = (&times[..SERIES / 10], &times[SERIES - SERIES / 10..]);
    let left = if before.0 == after.0 && zombies == 0 {
        "nothing left".to_owned()
    } else {
        format!(
            "LEFT: {:?} before, {:?} after, {zombies} zombies",
            before.0, after.0
        )
    };
    Ok(format!(
        "{}: {SERIES} one after another: first hundred {:.2} ms each, last hundred {:.2} ms; {CROWD} at once: {:.2} ms each; {left}; \
         open files of the system {:+}",
        runtime.name,
        mean(first),
        mean(last),
        crowd.as_secs_f64() * 1e3 / CROWD as f64,
        after.1 - before.1,
    ))
}

fn crowd(place: &Place, runtime: &Runtime) -> Result<Duration> {
    let began = Instant::now();
    let mut all = Vec::with_capacity(CROWD);
    for number in 0..CROWD {
        let id = format!("bench-crowd-{number}");
        let mut command = runtime.command(place, Step::Run, "plain", &id);
        let log = place.log()?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        all.push((command, child));
    }
    let mut failed = None;
    for (command, mut child) in all {
        let status = child
            .wait()
            .map_err(|error| format!("wait for {command:?}: {error}"))?;
        if !status.success() {
            failed = Some(format!("{command:?}: {status}: {}", place.said()));
        }
    }
    failed.map_or(Ok(began.elapsed()), Err)
}
