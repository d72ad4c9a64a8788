//! The process of an executor and what it is locked up in.
//!
//! Owns cgroups of version 1 (or 2) below those of this process and the end of everything in them. *Invariant*:
//! [`Container::destroy`] leaves no process and no cgroup. Leaves when to destroy to the agent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::settings::Launcher;

/// How an executor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// What wait(2) told.
    pub status: ExitStatus,
    /// The agent killed it.
    pub destroyed: bool,
}

/// A running executor.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) pid: i32,
    cgroups: Vec<PathBuf>,
}

/// Starts `command` in `sandbox`.
pub(crate) fn start(
    command: &[String],
    environment: &[(String, String)],
    sandbox: &Path,
    launcher: &Launcher,
    id: &str,
) -> (Container, Child) {
    fs::create_dir_all(sandbox).expect("sandbox");
    let cgroups = if launcher.cgroup {
        make(id)
    } else {
        Vec::new()
    };
    let quoted = |words: &[String]| {
        let words = words
            .iter()
            .map(|word| format!("'{}'", word.replace('\'', r"'\''")));
        words.collect::<Vec<_>>().join(" ")
    };
    // the containerizer's own steps, with the agent's environment, before the executor's
    let mut script = String::new();
    for cgroup in &cgroups {
        script += &format!(
            "echo 0 > '{}/cgroup.procs' || exit 99; ",
            leaf(cgroup).display()
        );
    }
    let inner = match launcher.shell {
        true => vec!["/bin/sh".into(), "-c".into(), quoted(command)],
        false => command.to_vec(),
    };
    let all: Vec<String> = launcher.wrapper.iter().cloned().chain(inner).collect();
    script += &format!("exec {}", quoted(&all));
    let stream = |name: &str| {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(sandbox.join(name));
        file.expect("file in the sandbox")
    };
    let mut process = Command::new("/usr/bin/setsid");
    process
        .args(["/bin/sh", "-c", &script])
        .current_dir(sandbox);
    process.env_clear().envs(environment.iter().cloned());
    process
        .stdin(Stdio::null())
        .stdout(stream("stdout"))
        .stderr(stream("stderr"));
    let child = process.spawn().expect("executor");
    let pid = child.id() as i32;
    (Container { pid, cgroups }, child)
}

/// Where processes of a container are: version 2 allows none in a group that has others below.
fn leaf(cgroup: &Path) -> PathBuf {
    let leaf = cgroup.join("leaf");
    if leaf.is_dir() {
        leaf
    } else {
        cgroup.to_owned()
    }
}

/// One cgroup for the container in each hierarchy that the agent's isolators use.
fn make(id: &str) -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").expect("cgroups");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let mut made: Vec<PathBuf> = Vec::new();
    for controller in ["freezer", "memory", "cpu", "cpuacct", "pids", "devices"] {
        let path = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (names, path) = (parts.next()?, parts.next()?);
            names
                .split(',')
                .any(|name| name == controller)
                .then_some(path)
        });
        let root = mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let options = right.strip_prefix("cgroup ")?.split(' ').nth(1)?;
            let found = options.split(',').any(|option| option == controller);
            found.then(|| left.split(' ').nth(4))?
        });
        if let (Some(root), Some(path)) = (root, path) {
            let folder = Path::new(root).join(path.trim_start_matches('/')).join(id);
            if !made.contains(&folder) {
                fs::create_dir_all(&folder).expect("cgroup");
                made.push(folder);
            }
        }
    }
    if made.is_empty() {
        let path = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let folder = Path::new("/sys/fs/cgroup")
            .join(path.expect("a cgroup"))
            .join(id);
        fs::create_dir_all(folder.join("leaf")).expect("cgroup");
        made.push(folder);
    }
    made
}

impl Container {
    /// Every process of the container: of its cgroups, else all that descends from its first, or shares its session.
    pub(crate) fn processes(&self) -> Vec<i32> {
        if self.cgroups.is_empty() {
            return tree(self.pid);
        }
        let mut all = Vec::new();
        for cgroup in &self.cgroups {
            below(cgroup, &mut |folder| {
                let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                all.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            });
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// SIGKILL to all of it, until nothing is left of it. Once a group of version 1 is empty it goes.
    pub(crate) fn destroy(&self) {
        for round in 0..3000 {
            let all: Vec<i32> = self
                .processes()
                .into_iter()
                .filter(|pid| !dead(*pid))
                .collect();
            for pid in &all {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if all.is_empty() {
                for cgroup in &self.cgroups {
                    below(cgroup, &mut |folder| drop(fs::remove_dir(folder)));
                }
                if self.cgroups.iter().all(|cgroup| !cgroup.exists()) {
                    return;
                }
            }
            assert!(
                round < 2999,
                "processes {all:?} of a container cannot be killed"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Calls back for all folders of a tree, the innermost first.
fn below(folder: &Path, call: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            below(&entry.path(), call);
        }
    }
    call(folder);
}

/// `(parent, session, state)` of every process.
fn all() -> BTreeMap<i32, (i32, i32, char)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let text = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mut rest = text
            .rsplit_once(") ")
            .map(|(_, rest)| rest.split(' '))
            .into_iter()
            .flatten();
        let state = rest.next().and_then(|state| state.chars().next());
        let mut number = || rest.next().and_then(|word| word.parse().ok());
        if let (Some(pid), Some(state), Some(parent), Some(_), Some(session)) =
            (pid, state, number(), number(), number())
        {
            found.insert(pid, (parent, session, state));
        }
    }
    found
}

fn dead(pid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// A process, all below it, and all of its session.
fn tree(first: i32) -> Vec<i32> {
    let all = all();
    let mut found = vec![first];
    loop {
        let more = all.iter().find(|(pid, (parent, session, _))| {
            !found.contains(pid) && (found.contains(parent) || *session == first)
        });
        match more {
            Some((pid, _)) => found.push(*pid),
            None => return found,
        }
    }
}
