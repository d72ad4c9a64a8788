//! The records in a pod's folder: JSON, versioned, written whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Error, Result};
use crate::cgroup::Cgroup;
use crate::compose::Project;
use crate::compose::project::{CheckKind, CheckTest, Logging, Network};
use crate::network::{Attached, Cni, Offer, PortMapping};
use crate::sys::file::{bound, replace, write_atomic};

/// Version of every record's form.
pub const VERSION: u32 = 1;

/// What is kept of the output of a framework's tasks.
const FRAMEWORK_LOGGING: Logging = Logging::Kept {
    max_size: Some(10 << 20),
    max_file: 3,
};

/// Writes a record of what outlives the machine's end, durably.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|source| Error::Record {
        path: path.to_path_buf(),
        source,
    })?;
    write_atomic(path, &text, 0o600).map_err(Error::io("write", path))
}

/// Writes a record of what ends with the machine: whole or not at all, and known to every process at once.
pub fn put<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|source| Error::Record {
        path: path.to_path_buf(),
        source,
    })?;
    replace(path, &text, 0o600).map_err(Error::io("write", path))
}

/// Reads a record; `None` when there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| Error::Record {
            path: path.to_path_buf(),
            source,
        })
}

/// `events.log` and `keeper.log` have so many bytes each, and what was before that is `events.log.1` and `keeper.log.1`: they are in memory.
pub const LOG_MOST: u64 = 1 << 20;

/// Adds a line to `events.log`.
pub fn event(path: &Path, service: &str, text: &str) -> Result<()> {
    let line = format!("{} {service} {}\n", now(), text.replace('\n', "\\n"));
    let file = fs::OpenOptions::new().append(true).create(true).open(path);
    file.and_then(|mut file| {
        bound(&file, path, LOG_MOST)?;
        file.write_all(line.as_bytes())
    })
    .map_err(Error::io("write to", path))
}

/// `pod.json`: everything the supervisor needs, decided by `up`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    /// [`VERSION`].
    pub version: u32,
    /// RFC 3339.
    pub created: String,
    /// The project.
    pub project: Project,
    /// What each service's image says.
    pub images: BTreeMap<String, ImageFacts>,
    /// `<root>`.
    pub root: PathBuf,
    /// `<state>`.
    pub state: PathBuf,
    /// The pod's cgroup.
    pub cgroup: Cgroup,
    /// CNI folders.
    pub cni: Cni,
    /// What becomes of the pod when a service ends.
    pub policy: Policy,
    /// What each service becomes before the first start: empty for `up`'s own choice of all.
    pub start: Vec<String>,
    /// Inode of the pid namespace that its processes are in, all but containers' own.
    #[serde(default)]
    pub pid_namespace: u64,
    /// Whose it is: it goes with its owner. `None`: the machine's, until `down`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

impl Pod {
    /// What is kept of the output of a service that does not say: all of it; of a framework's, which nobody looks after, the end.
    pub fn logging(&self) -> Logging {
        let bounded = self.owner.as_ref().is_some_and(|o| !o.tasks.is_empty());
        match bounded {
            true => FRAMEWORK_LOGGING,
            false => Logging::Kept {
                max_size: None,
                max_file: 1,
            },
        }
    }
}

/// The process that a pod belongs to, and what it is called there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// When it ends, however, the pod is stopped and removed.
    pub process: ProcessId,
    /// What it is: `mesos`; `up`, a command in the foreground, of which the ids are empty.
    pub kind: String,
    /// `FrameworkID`.
    pub framework: String,
    /// `ExecutorID`.
    pub executor: String,
    /// `AgentID`.
    pub agent: String,
    /// Services by the id of the task that they are of: names of the pod for every command.
    pub tasks: BTreeMap<String, Vec<String>>,
    /// The owner's folder, absolute.
    pub sandbox: PathBuf,
}

/// Failure policy of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Each service for itself, by its `restart`.
    #[default]
    Compose,
    /// The pod stops when any container ends (`--abort-on-container-exit`).
    AbortOnExit,
    /// The pod stops when a service fails: cannot be started, ends with another code than 0 and is not restarted, or is
    /// unhealthy. One that ended with 0 is done.
    FailPod,
}

/// Why a service ended, or is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// By itself: its exit code or signal tells how; neither, when nobody saw it.
    Exited,
    /// The kernel's out-of-memory killer.
    OutOfMemory,
    /// The pod's policy does not suffer an unhealthy service.
    Unhealthy,
    /// It could not be started.
    NotStarted,
    /// It was asked for.
    Stopped,
    /// Another service ended the pod.
    Pod,
    /// The pod's owner ended.
    Owner,
    /// A hook of the pod failed.
    Hook,
}

/// `verdict.json`: how the pod ended. There while none of its services runs or is going to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// [`VERSION`].
    pub version: u32,
    /// The service that decided it; `None`: the pod's network, volumes or cgroup could not be made, or a hook of the pod failed.
    pub service: Option<String>,
    /// Why that one ended.
    pub cause: Cause,
    /// Its exit code, 128 + signal number when a signal ended it; `None`: it had none, or nobody saw it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// For people: one line, with the service's name.
    pub message: String,
    /// When the last service ended (RFC 3339); empty when none ran.
    pub finished: String,
}

impl Verdict {
    /// What a command that followed the pod ends with: 0 when nothing failed.
    pub fn code(&self) -> u8 {
        match self.cause {
            Cause::Stopped | Cause::Pod | Cause::Owner => 0,
            // it may well have ended with 0 when it was stopped
            Cause::Unhealthy | Cause::Hook => 1,
            Cause::Exited | Cause::OutOfMemory | Cause::NotStarted => self
                .exit_code
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(1),
        }
    }

    /// Every service did what it was there for.
    pub fn is_success(&self) -> bool {
        self.cause == Cause::Exited && self.exit_code == Some(0)
    }
}

/// The parts of an image that a service inherits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Image id (digest of the configuration).
    pub id: String,
    /// Layer folders, lowest first.
    pub layers: Vec<PathBuf>,
    /// `config` of the image.
    pub config: ImageConfig,
}

/// `config` of an image configuration, with Docker's `Healthcheck`, which image-spec leaves out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `User`.
    pub user: Option<String>,
    /// `Env`.
    pub env: Option<Vec<String>>,
    /// `Entrypoint`.
    pub entrypoint: Option<Vec<String>>,
    /// `Cmd`.
    pub cmd: Option<Vec<String>>,
    /// `WorkingDir`.
    pub working_dir: Option<String>,
    /// `Volumes`: a set.
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    /// `ExposedPorts`: a set.
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    /// `StopSignal`.
    pub stop_signal: Option<String>,
    /// `Labels`.
    pub labels: Option<BTreeMap<String, String>>,
    /// `Healthcheck`.
    pub healthcheck: Option<ImageHealthcheck>,
}

/// `Healthcheck` of an image; times in nanoseconds, 0 is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageHealthcheck {
    /// `["NONE"]`, `["CMD", …]`, `["CMD-SHELL", text]`.
    pub test: Option<Vec<String>>,
    /// Nanoseconds.
    pub interval: u64,
    /// Nanoseconds.
    pub timeout: u64,
    /// Nanoseconds.
    pub start_period: u64,
    /// Nanoseconds.
    pub start_interval: u64,
    /// Failures in a row.
    pub retries: u32,
}

/// A process told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

impl ProcessId {
    /// The calling process.
    pub fn own() -> Result<ProcessId> {
        let pid = std::process::id() as i32;
        let start_time = crate::sys::process::start_time(pid)
            .map_err(Error::io("read", Path::new("/proc/self/stat")))?;
        Ok(ProcessId { pid, start_time })
    }

    /// The process still runs. One that cannot be looked at, for want of descriptors say, is taken to: what follows from its end cannot be
    /// taken back.
    pub fn alive(&self) -> bool {
        use crate::sys::process::{is_running, start_time};
        let unknown = |error: std::io::Error| error.kind() != ErrorKind::NotFound;
        start_time(self.pid).map_or_else(unknown, |time| time == self.start_time)
            && is_running(self.pid).unwrap_or_else(unknown)
    }
}

/// `exits/PID-STARTTIME.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Unix time in nanoseconds.
    pub time: i64,
}

/// `ended.json` of a service: what was found out about the end of a run before its container was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The container's first process.
    pub process: ProcessId,
    /// `None`: nobody saw how.
    pub exit: Option<Exit>,
    /// The out-of-memory killer was there.
    pub oom: bool,
}

/// File name of an exit record.
pub fn exit_name(process: ProcessId) -> String {
    format!("{}-{}.json", process.pid, process.start_time)
}

/// `sandbox.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    /// [`VERSION`].
    pub version: u32,
    /// Interfaces in order of attachment.
    pub interfaces: Vec<Interface>,
    /// What the plugins answered, in the same order.
    pub attached: Vec<Attached>,
}

/// One interface of a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Network name.
    pub network: String,
    /// The network is a generated one, not a list of that name in a file.
    pub generated: bool,
    /// `internal`.
    pub internal: bool,
    /// Name in the pod.
    pub name: String,
    /// Addresses with prefix length.
    pub addresses: Vec<ipnet::IpNet>,
    /// Gateways offered.
    pub gateways: Vec<IpAddr>,
    /// Default routes that it could have.
    pub offers: Vec<Offer>,
    /// It has the default route of IPv4.
    pub default_ipv4: bool,
    /// It has the default route of IPv6.
    pub default_ipv6: bool,
    /// Why it has them or not.
    pub default_reason: String,
    /// What other pods on the network find it by.
    pub names: Vec<String>,
    /// A plugin of the network publishes ports.
    pub publishes: bool,
    /// Ports that are published on it; `None` while that is being changed, and after a change that failed.
    pub ports: Option<Vec<PortMapping>>,
    /// Its file below `network/`.
    pub cache: String,
}

impl Interface {
    /// It has the default route of a family.
    pub fn has_default(&self) -> bool {
        self.default_ipv4 || self.default_ipv6
    }
}

/// `changes.json`: what was asked of the networks of a running pod. Written before any of it is done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// [`VERSION`].
    pub version: u32,
    /// Networks that were attached, each with the name of its interface.
    pub attached: Vec<Network>,
    /// Interfaces of the project's own networks that were taken away.
    pub detached: BTreeSet<String>,
    /// Not carried out to the end.
    pub pending: bool,
}

/// `ports.json`: a published port with its service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Service.
    pub service: String,
    /// The mapping; the host's port is chosen.
    pub mapping: PortMapping,
    /// Key of the network that publishes it; `None`: the best one that can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// `sinks/NUMBER.json`: how far a file of `x-sampan.logs` is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkState {
    /// [`VERSION`].
    pub version: u32,
    /// The file.
    pub path: PathBuf,
    /// Whose output it gets.
    pub services: BTreeSet<String>,
    /// `SERVICE/STREAM`: up to where it has everything.
    pub offsets: BTreeMap<String, u64>,
    /// What was about to be appended then, and the offsets behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<(Intent, BTreeMap<String, u64>)>,
    /// Why it cannot be written at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What is about to be appended to a file, so that a successor can tell whether it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The file.
    pub inode: u64,
    /// Its length before.
    pub start: u64,
    /// How much.
    pub length: u64,
    /// Of the bytes.
    pub hash: u64,
}

/// `status.json` of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// What it is wanted to do.
    pub goal: Goal,
    /// Where it is in its life.
    pub phase: Phase,
    /// The container's first process while there is one.
    pub process: Option<ProcessId>,
    /// Exit code of the last run; `None` while it runs, or when nobody could see it.
    pub exit_code: Option<i32>,
    /// The signal that ended the last run.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Why it is over, or is being stopped; none of one that restarts by itself.
    #[serde(default)]
    pub cause: Option<Cause>,
    /// The kernel's out-of-memory killer ended a process of it.
    pub oom_killed: bool,
    /// It runs, and its `post_start` hooks have not ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub post_start: bool,
    /// What the health checks say together.
    pub health: Health,
    /// It runs and its readiness checks pass; where it has none, it is not unhealthy nor still to become healthy.
    #[serde(default)]
    pub ready: bool,
    /// Results of its checks in this run, or the last.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<String, CheckResult>,
    /// Checking is paused until then (RFC 3339), as somebody asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snoozed: Option<String>,
    /// Starts after the first.
    pub restarts: u32,
    /// RFC 3339; empty before.
    pub started: String,
    /// RFC 3339; empty before.
    pub finished: String,
    /// Why it could not be started.
    pub error: Option<String>,
}

impl Default for Status {
    fn default() -> Self {
        Status {
            version: VERSION,
            goal: Goal::Stop,
            phase: Phase::Waiting,
            process: None,
            exit_code: None,
            signal: None,
            cause: None,
            oom_killed: false,
            post_start: false,
            health: Health::None,
            ready: false,
            checks: BTreeMap::new(),
            snoozed: None,
            restarts: 0,
            started: String::new(),
            finished: String::new(),
            error: None,
        }
    }
}

impl Status {
    /// A readiness check fails.
    pub fn unready(&self) -> bool {
        let mut all = self.checks.values();
        all.any(|r| r.kind == CheckKind::Readiness && r.state == CheckState::Failing)
    }

    /// The checks of a kind that fail, in words; of those that are not passing yet where none fails.
    pub fn failing(&self, kind: CheckKind) -> String {
        let of = |state: CheckState| {
            let all = self.checks.iter();
            let all = all.filter(move |(_, r)| r.kind == kind && r.state == state);
            all.map(|(name, r)| match r.failures {
                0 => format!("{name}: {}", r.told()),
                1 => format!("{name} failed: {}", r.told()),
                count => format!("{name} failed {count} times: {}", r.told()),
            })
            .collect::<Vec<_>>()
        };
        let mut texts = of(CheckState::Failing);
        if texts.is_empty() {
            texts = of(CheckState::Starting);
        }
        texts.join("; ")
    }
}

/// What a check of a service came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// What it decides.
    pub kind: CheckKind,
    /// What its results come to.
    pub state: CheckState,
    /// What the last one that says something measured.
    pub measured: Measured,
    /// What that one printed, or why it failed (bounded); the words of one after which nothing changed are not kept.
    pub message: String,
    /// Since when `state` and `measured` are so (RFC 3339); empty before the first.
    pub since: String,
    /// Failures in a row that count; always 0 for [`CheckKind::Check`].
    pub failures: u32,
    /// Successes in a row, at most as many as are needed; always 0 for [`CheckKind::Check`].
    pub successes: u32,
}

impl CheckResult {
    /// Before the first.
    pub fn new(kind: CheckKind, measured: Measured) -> CheckResult {
        CheckResult {
            kind,
            state: CheckState::Starting,
            measured,
            message: String::new(),
            since: String::new(),
            failures: 0,
            successes: 0,
        }
    }

    /// The last result that counts, for those who want each one and no thresholds: `false` after every failure that counts.
    pub fn healthy(&self) -> Option<bool> {
        match (self.state, self.failures) {
            (CheckState::Starting, 0) => None,
            (state, failures) => Some(failures == 0 && state == CheckState::Passing),
        }
    }

    /// The result in words.
    pub fn told(&self) -> String {
        let what = match &self.measured {
            Measured::Command {
                exit_code: Some(code),
            } => format!("exit code {code}"),
            Measured::Http {
                status_code: Some(code),
            } => format!("status {code}"),
            Measured::Tcp {
                succeeded: Some(true),
            } => "connected".to_string(),
            Measured::Tcp {
                succeeded: Some(false),
            } => "not connected".to_string(),
            _ => "no result".to_string(),
        };
        match self.message.trim() {
            "" => what,
            message => format!("{what}: {message}"),
        }
    }
}

/// What the results of a check come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    /// Nothing yet that counts.
    Starting,
    /// So many passed in a row as `success_threshold` says.
    Passing,
    /// So many failed in a row as `consecutive_failures` says.
    Failing,
}

/// What a check measured; without a value: nothing yet, no answer in time, or it could not be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Measured {
    /// Of a program.
    Command {
        /// 128 + signal number when a signal ended it.
        exit_code: Option<i32>,
    },
    /// Of a request.
    Http {
        /// Status of the answer.
        status_code: Option<u16>,
    },
    /// Of a connection.
    Tcp {
        /// It was made.
        succeeded: Option<bool>,
    },
}

impl Measured {
    /// Before there is anything.
    pub fn nothing(test: &CheckTest) -> Measured {
        match test {
            CheckTest::Command(_) => Measured::Command { exit_code: None },
            CheckTest::Http(_) => Measured::Http { status_code: None },
            CheckTest::Tcp(_) => Measured::Tcp { succeeded: None },
        }
    }
}

/// What a service is wanted to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Run, by its restart policy.
    Run,
    /// Be stopped; its restart policy does not apply.
    Stop,
    /// Stop, then run again.
    Restart,
}

/// Where a service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// For its dependencies, or for `start`.
    Waiting,
    /// `create` and `start` are under way.
    Starting,
    /// Its process runs.
    Running,
    /// Asked to end.
    Stopping,
    /// Ended; starts again after a delay.
    Restarting,
    /// Ended.
    Exited,
    /// Could not be started.
    Failed,
}

/// What the health checks say together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// There is none.
    #[default]
    None,
    /// Not known yet.
    Starting,
    /// All pass.
    Healthy,
    /// One fails.
    Unhealthy,
}

/// Why a short process of ours failed (`error.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// 125, 126 or 127.
    pub code: u8,
    /// Complete text.
    pub message: String,
}

/// Inode of our pid namespace.
pub fn pid_namespace() -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let path = Path::new("/proc/self/ns/pid");
    let meta = fs::metadata(path).map_err(Error::io("look at", path))?;
    Ok(meta.ino())
}

/// The time now as the records have it.
pub fn now() -> String {
    jiff::Timestamp::now().to_string()
}
