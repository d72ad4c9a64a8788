//! What an executor must not forget: tasks, and the updates that no acknowledgement came for.
//!
//! ```text
//! <state>/executors/PID-STARTTIME/   named by the process that the agent started (see [`super::shim`])
//!   lock                             held by that process as long as it lives
//!   executor.json                    whose it is, and with which options it works
//!   subscribed                       the last SUBSCRIBED event (protobuf)
//!   launches/NUMBER/                 one LAUNCH or LAUNCH_GROUP, which is one pod
//!     tasks                          its tasks as they came (protobuf TaskGroupInfo)
//!     launch.json                    how far it is: written whole before anything of it takes effect
//! ```
//!
//! *Invariants:* a launch exists when its `launch.json` does, which is written after `tasks`; one process writes. The folder is in memory
//! (`/run`) and goes with the machine, as the tasks do.
//!
//! Leaves to others: what is written, which is decided in [`super::machine`].

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::proto::{NetworkInfo, TaskGroupInfo, TaskInfo, TaskStatus, event};
use super::task::output::Bound;
use crate::pod::layout::Folders;
use crate::pod::record::{self, ProcessId};
use crate::pod::{Error, Result, lock};
use crate::sys::file::replace;

/// Name of the lock in an executor's folder.
const LOCK: &str = "lock";

/// One LAUNCH or LAUNCH_GROUP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// [`record::VERSION`].
    pub version: u32,
    /// Counted from 1 by each executor.
    pub number: u64,
    /// Name of its pod.
    pub pod: String,
    /// A LAUNCH_GROUP.
    pub group: bool,
    /// How far it is.
    pub phase: Phase,
    /// Its tasks in the agent's order.
    pub tasks: Vec<Task>,
}

/// How far a launch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Fetching, pulling, making.
    Starting,
    /// Its pod is there, and watched.
    Up,
    /// Its tasks are over; the pod is being removed.
    Removing,
    /// There is no pod.
    Removed,
}

/// One task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// `TaskID`.
    pub id: String,
    /// Type of its `check`, which each status tells.
    pub check: Option<i32>,
    /// Memory that it may use (MB), for the limitation that an end by memory names.
    pub memory: Option<f64>,
    /// What it became; `None` before.
    pub plan: Option<Planned>,
    /// Addresses of its pod, in order of attachment.
    pub networks: Vec<NetworkInfo>,
    /// The last status.
    pub status: Option<TaskStatus>,
    /// The agent has acknowledged an update: it knows the task.
    pub known: bool,
    /// Unacknowledged updates, oldest first.
    pub updates: VecDeque<Update>,
    /// It is to end, by us.
    pub kill: Option<Kill>,
    /// When it has taken as long as it may (time since boot).
    pub deadline: Option<Duration>,
}

/// An update with its place among all updates of the executor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Counted over all tasks.
    pub order: u64,
    /// As it is sent.
    #[serde(with = "exact")]
    pub status: TaskStatus,
}

/// An update as its very bytes: numbers with fractions do not survive text to the last digit, and another update must not have the same
/// uuid.
mod exact {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error;

    use super::{Deserialize, Message, TaskStatus};

    pub fn serialize<S: serde::Serializer>(status: &TaskStatus, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(status.encode_to_vec()))
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<TaskStatus, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        TaskStatus::decode(bytes.as_slice()).map_err(D::Error::custom)
    }
}

/// What the executor needs of a task's plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// `TaskID`.
    pub id: String,
    /// Its services of the pod.
    pub services: Vec<String>,
    /// Time between the stop signal and SIGKILL; `None`: each service's own.
    pub grace: Option<Duration>,
    /// It runs when it is ready, not when it is started.
    pub ready: bool,
    /// How long it may take from its first RUNNING.
    pub max_completion: Option<Duration>,
}

/// An end that we make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kill {
    /// When it was asked for (time since boot).
    pub since: Duration,
    /// When patience ends (time since boot); `None`: each service has its own.
    pub until: Option<Duration>,
    /// Patience has ended, and the rest was killed.
    pub enforced: bool,
    /// Who wants it.
    pub why: Why,
}

/// Why a task is ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// KILL.
    Asked,
    /// SHUTDOWN, or the end of the connection: complete text.
    Shutdown(String),
    /// The executor cannot go on: complete text.
    Failed(String),
    /// Another task of its group ended so that all do: complete text.
    Group(String),
    /// `max_completion_time` is over.
    TooLong,
    /// Its health checks failed: complete text.
    Unhealthy(String),
}

impl Launch {
    /// Every task is over.
    pub fn is_over(&self) -> bool {
        self.tasks.iter().all(Task::is_over)
    }

    /// Every update was acknowledged.
    pub fn is_acknowledged(&self) -> bool {
        self.tasks.iter().all(|task| task.updates.is_empty())
    }
}

impl Task {
    /// Its last status is a terminal one.
    pub fn is_over(&self) -> bool {
        let state = self.status.as_ref().map(TaskStatus::state);
        state.is_some_and(super::machine::is_terminal)
    }
}

/// `executor.json`: what a process that works for the executor needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Executor {
    /// [`record::VERSION`].
    pub version: u32,
    /// The process that the agent started.
    pub process: ProcessId,
    /// `FrameworkID`.
    pub framework: String,
    /// `ExecutorID`.
    pub executor: String,
    /// `AgentID`.
    pub agent: String,
    /// The executor's sandbox, as the host sees it.
    pub sandbox: PathBuf,
    /// `<root>`.
    pub root: PathBuf,
    /// `<state>`.
    pub state: PathBuf,
    /// Folders of CNI configuration.
    pub cni_conf: Vec<PathBuf>,
    /// Folders of CNI plugins.
    pub cni_path: Vec<PathBuf>,
    /// Cgroup of the pods; `None`: the executor's own.
    pub cgroup_parent: Option<String>,
    /// Plain http to registries that are not on this machine.
    pub plain_http: bool,
    /// Variables of all tasks.
    pub variables: BTreeMap<String, String>,
    /// Folder of seccomp profiles that tasks may name.
    pub seccomp_profiles: Option<PathBuf>,
    /// The machine's address.
    pub address: Option<IpAddr>,
    /// How much of a task's output the sandbox holds.
    #[serde(default)]
    pub output: Bound,
}

impl Executor {
    /// Its two folders.
    pub fn folders(&self) -> Folders {
        Folders {
            root: self.root.clone(),
            state: self.state.clone(),
        }
    }
}

/// The folder of one executor.
#[derive(Debug, Clone)]
pub struct Ledger(PathBuf);

impl Ledger {
    /// The folder of the executor that `shim` is the first process of.
    pub fn at(state: &Path, shim: ProcessId) -> Ledger {
        let name = format!("{}-{}", shim.pid, shim.start_time);
        Ledger(state.join("executors").join(name))
    }

    /// An executor's folder by path.
    pub fn open(dir: &Path) -> Ledger {
        Ledger(dir.to_path_buf())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder, which is ours until what this gives is dropped.
    pub fn hold(&self) -> Result<lock::Held> {
        use std::os::unix::fs::DirBuilderExt;
        let path = self.0.join(LOCK);
        loop {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.0)
                .map_err(Error::io("make", &self.0))?;
            match lock::acquire(&path) {
                Ok(held) if held.is_at(&path) => return Ok(held),
                // swept between the two
                Err(_) if !self.0.exists() => {}
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes down whose the folder is.
    pub fn begin(&self, executor: &Executor) -> Result<()> {
        let launches = self.0.join("launches");
        fs::create_dir_all(&launches).map_err(Error::io("make", &launches))?;
        record::write(&self.0.join("executor.json"), executor)
    }

    /// Whose it is.
    pub fn executor(&self) -> Result<Executor> {
        let path = self.0.join("executor.json");
        record::read(&path)?.ok_or_else(|| Error::Other(format!("no {}", path.display())))
    }

    /// Keeps the SUBSCRIBED event: what the agent told of itself, of the framework and of the executor.
    pub fn keep_subscribed(&self, subscribed: &event::Subscribed) -> Result<()> {
        let path = self.subscription();
        replace(&path, &subscribed.encode_to_vec(), 0o600).map_err(Error::io("write", &path))
    }

    /// The file of the last SUBSCRIBED event, another one with each.
    pub fn subscription(&self) -> PathBuf {
        self.0.join("subscribed")
    }

    /// The last SUBSCRIBED event.
    pub fn subscribed(&self) -> Result<Option<event::Subscribed>> {
        decode(&self.subscription())
    }

    fn folder(&self, number: u64) -> PathBuf {
        self.0.join("launches").join(number.to_string())
    }

    /// Keeps the tasks of a new launch.
    pub fn keep_tasks(&self, number: u64, tasks: Vec<TaskInfo>) -> Result<()> {
        let dir = self.folder(number);
        fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        let path = dir.join("tasks");
        let group = TaskGroupInfo { tasks };
        replace(&path, &group.encode_to_vec(), 0o600).map_err(Error::io("write", &path))
    }

    /// The tasks of a launch.
    pub fn tasks(&self, number: u64) -> Result<Vec<TaskInfo>> {
        let path = self.folder(number).join("tasks");
        let group: Option<TaskGroupInfo> = decode(&path)?;
        let group = group.ok_or_else(|| Error::Other(format!("no {}", path.display())))?;
        Ok(group.tasks)
    }

    /// A launch.
    pub fn launch(&self, number: u64) -> Result<Launch> {
        let path = self.folder(number).join("launch.json");
        record::read(&path)?.ok_or_else(|| Error::Other(format!("no {}", path.display())))
    }

    /// Writes down how far a launch is.
    pub fn save(&self, launch: &Launch) -> Result<()> {
        let path = self.folder(launch.number).join("launch.json");
        let text = serde_json::to_vec(launch).map_err(|source| Error::Record {
            path: path.clone(),
            source,
        })?;
        replace(&path, &text, 0o600).map_err(Error::io("write", &path))
    }

    /// Forgets a launch; one that is not there is success.
    pub fn forget(&self, number: u64) -> Result<()> {
        remove(&self.folder(number))
    }

    /// Every launch that an earlier process of this executor wrote down.
    pub fn load(&self) -> Result<BTreeMap<u64, Launch>> {
        let dir = self.0.join("launches");
        let mut launches = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(Error::io("read", &dir))? {
            let path = entry.map_err(Error::io("read", &dir))?.path();
            match record::read::<Launch>(&path.join("launch.json"))? {
                Some(launch) if launch.version == record::VERSION => {
                    launches.insert(launch.number, launch);
                }
                Some(launch) => {
                    return Err(Error::Other(format!(
                        "{} has version {}, this program knows version {}; use the program that wrote it",
                        path.display(),
                        launch.version,
                        record::VERSION
                    )));
                }
                // killed before it counted: the agent declares the tasks dropped
                None => remove(&path)?,
            }
        }
        Ok(launches)
    }

    /// Removes the folder.
    pub fn remove(&self) -> Result<()> {
        remove(&self.0)
    }
}

/// Removes the folders of executors that are gone: all of theirs is removed by then. Which pid namespace the caller is in does not matter;
/// the process that holds a folder does not call this.
pub fn sweep(state: &Path) -> Result<()> {
    let dir = state.join("executors");
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::io("read", &dir))?,
    };
    let mut failed = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", &dir))?.path();
        match lock::attempt(&path.join(LOCK)) {
            Ok(Some(_held)) => failed.extend(remove(&path).err()),
            Ok(None) => {}
            // it has just ended
            Err(_) if !path.exists() => {}
            Err(error) => failed.push(error),
        }
    }
    Error::all(failed)
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

fn decode<T: Message + Default>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io("read", path))?,
    };
    T::decode(bytes.as_slice())
        .map(Some)
        .map_err(|error| Error::Other(format!("read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let process = ProcessId {
            pid: 1,
            start_time: 2,
        };
        let ledger = Ledger::at(dir.path(), process);
        let executor = Executor {
            version: record::VERSION,
            process,
            framework: "0000".into(),
            executor: "exec-1".into(),
            agent: "S0".into(),
            sandbox: "/sandbox".into(),
            root: "/root".into(),
            state: dir.path().into(),
            cni_conf: Vec::new(),
            cni_path: Vec::new(),
            cgroup_parent: None,
            plain_http: false,
            variables: BTreeMap::new(),
            seccomp_profiles: None,
            address: None,
            output: Bound::default(),
        };
        ledger.begin(&executor).unwrap();
        assert_eq!(ledger.executor().unwrap(), executor);
        (dir, ledger)
    }

    fn launch(number: u64, timestamp: f64) -> Launch {
        let status = TaskStatus {
            timestamp: Some(timestamp),
            uuid: Some(vec![7; 16]),
            ..TaskStatus::default()
        };
        Launch {
            version: record::VERSION,
            number,
            pod: "web".into(),
            group: false,
            phase: Phase::Up,
            tasks: vec![Task {
                id: "t".into(),
                updates: VecDeque::from([Update { order: 3, status }]),
                ..Task::default()
            }],
        }
    }

    #[test]
    fn a_successor_finds_what_was_written() {
        let (_dir, ledger) = ledger();
        let info = TaskInfo {
            name: "web".into(),
            ..TaskInfo::default()
        };
        ledger.keep_tasks(1, vec![info.clone()]).unwrap();
        // killed in between: it never was
        assert!(ledger.load().unwrap().is_empty());
        ledger.keep_tasks(1, vec![info.clone()]).unwrap();
        // to the last digit, which text loses
        let saved = launch(1, 1_795_270_157.819_646_1);
        ledger.save(&saved).unwrap();
        assert_eq!(ledger.tasks(1).unwrap(), [info]);
        assert_eq!(ledger.load().unwrap(), BTreeMap::from([(1, saved)]));
        ledger.forget(1).unwrap();
        ledger.forget(1).unwrap();
        assert!(ledger.load().unwrap().is_empty());
    }

    /// The name of the one that stays is of no process here, as that of an executor in another pid namespace.
    #[test]
    fn only_folders_of_the_gone_are_swept() {
        let (dir, gone) = ledger();
        let other = Ledger::at(
            dir.path(),
            ProcessId {
                pid: 1,
                start_time: 3,
            },
        );
        drop(other.hold().unwrap());
        let mut holder = lock::tests::hold(&other.path().join(LOCK));
        sweep(dir.path()).unwrap();
        assert!(other.path().exists());
        assert!(!gone.path().exists());
        holder.kill().unwrap();
        holder.wait().unwrap();
        sweep(dir.path()).unwrap();
        assert!(!other.path().exists());
        sweep(Path::new("/nowhere")).unwrap();
    }
}
