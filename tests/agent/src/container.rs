//! The process of an executor and what it is locked up in.
//!
//! Owns cgroups of version 1 (or 2) below those of this process and the end of everything in them. *Invariant*:
//! [`Container::destroy`] leaves no process and no cgroup. Without cgroups a process belongs to the container by descent,
//! by session, or by the sandbox in its environment, which also finds one that has left its parent and its session.
//! Leaves when to destroy to the agent.

use std::collections::{BTreeMap, BTreeSet};
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
    /// What only its processes have in their environment.
    mark: String,
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
    let container = Container {
        pid,
        cgroups,
        mark: format!("MESOS_DIRECTORY={}", sandbox.display()),
    };
    (container, child)
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
    /// Every process of the container that lives.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut all = Vec::new();
        if self.cgroups.is_empty() {
            all = tree(self.pid, &self.mark);
        }
        for cgroup in &self.cgroups {
            below(cgroup, &mut |folder| {
                let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                all.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            });
        }
        all.sort_unstable();
        all.dedup();
        all.retain(|pid| !is(*pid, &DEAD));
        all
    }

    /// SIGKILL to all of it, until nothing is left of it. Once a group of version 1 is empty it goes.
    pub(crate) fn destroy(&self) {
        for _ in 0..3000 {
            let all = self.freeze();
            for pid in &all {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            wait(&all, &DEAD);
            if all.is_empty() {
                for cgroup in &self.cgroups {
                    below(cgroup, &mut |folder| drop(fs::remove_dir(folder)));
                }
                if self.cgroups.iter().all(|cgroup| !cgroup.exists()) {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
        }
        panic!("a container does not end: {:?}", self.processes());
    }

    /// Stops everything, so that nothing can leave its parent behind while it is killed: all that was found.
    fn freeze(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        loop {
            let all = self.processes().into_iter();
            let new: BTreeSet<i32> = all.filter(|pid| !found.contains(pid)).collect();
            if new.is_empty() {
                return found;
            }
            for pid in &new {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
            }
            wait(&new, &STOPPED);
            found.extend(new);
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

/// Gone, or nobody's but its parent's.
const DEAD: [char; 2] = ['Z', 'X'];
/// It makes no other process; nor does one that waits in the kernel, for the child of its vfork(2).
const STOPPED: [char; 5] = ['T', 't', 'D', 'Z', 'X'];
/// Between two looks at a process.
const PAUSE: Duration = Duration::from_millis(2);

/// Whether a process is in one of these states, or there is none.
fn is(pid: i32, states: &[char]) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with(states))
}

/// Waits until all are in one of these states.
fn wait(all: &BTreeSet<i32>, states: &[char]) {
    for _ in 0..30_000 {
        if all.iter().all(|pid| is(*pid, states)) {
            return;
        }
        std::thread::sleep(PAUSE);
    }
    panic!("of the processes {all:?} one is none of {states:?}");
}

/// A process, all below it, all of its session, and all with this mark in their environment.
fn tree(first: i32, mark: &str) -> Vec<i32> {
    let all = all();
    let marked = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        variables.any(|variable| variable == mark.as_bytes())
    };
    let roots = all
        .iter()
        .filter(|(pid, (_, session, _))| **pid == first || *session == first || marked(**pid));
    let mut found: Vec<i32> = roots.map(|(pid, _)| *pid).collect();
    loop {
        let more = all
            .iter()
            .find(|(pid, (parent, ..))| !found.contains(pid) && found.contains(parent));
        match more {
            Some((pid, _)) => found.push(*pid),
            None => return found,
        }
    }
}
