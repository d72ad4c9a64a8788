//! The keeper: parent of a pod's containers. It waits, writes exit records and keeps a supervisor running.
//!
//! *Invariants:* an exit record is on disk before the process is reaped, so an exit is never lost; the keeper holds
//! every output pipe open, and every terminal and input, so a supervisor that is away loses no byte; it ends only after its supervisor ended with 0.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use super::layout::PodDir;
use super::record::{self, Exit, ProcessId};
use super::stores::Stores;
use super::{Error, Result, lock};
use crate::sys::stderr;
use crate::sys::wait::{self, Ended};

/// Delay before a supervisor that died at once is started again; doubled each time, up to [`RESTART_DELAY_MOST`].
const RESTART_DELAY: Duration = Duration::from_millis(20);
/// Longest delay.
const RESTART_DELAY_MOST: Duration = Duration::from_secs(1);
/// A supervisor that ran this long did not die at once.
const RESTART_RESET: Duration = Duration::from_millis(500);

/// Runs the keeper of a pod to its end.
pub fn run(dir: &Path) -> Result<()> {
    // a terminal that closes, or a signal meant for the command that started us, is not for the pod
    let failed = |what: &str, error: nix::Error| Error::Other(format!("keeper: {what}: {error}"));
    let mut ignored = SigSet::empty();
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGPIPE,
    ] {
        ignored.add(signal);
    }
    ignored
        .thread_block()
        .map_err(|e| failed("block signals", e))?;
    nix::unistd::setsid().map_err(|e| failed("setsid", e))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| failed("become subreaper", e))?;

    called(c"keeper")?;
    let pod: record::Pod = record::read(&dir.join("pod.json"))?
        .ok_or_else(|| Error::Other(format!("no pod in {}", dir.display())))?;
    let pod_dir = PodDir::open(dir, &pod.root);
    // two commands at once may each have started one
    let Some(_only) = lock::attempt(&pod_dir.keeper_lock())? else {
        return Ok(());
    };
    record::put(&pod_dir.keeper(), &ProcessId::own()?)?;
    let pipes = hold_pipes(&pod_dir, &pod)?;

    let stores = Stores::make(&pod.project).map_err(Error::io("make the inputs in", dir))?;
    let Some(pid) = fork()? else {
        return supervise(pod_dir, pod, pipes, stores);
    };
    let mut supervisor = Supervisor::new(pid);
    loop {
        // WNOWAIT leaves a zombie whose start time can still be read
        let ended = wait::await_any()
            .map_err(|error| Error::Other(format!("keeper: wait: {error}")))?
            .ok_or_else(|| Error::Other("keeper: there is no supervisor".to_owned()))?;
        if ended.pid == supervisor.pid.as_raw() {
            let _ = wait::reap_one(ended.pid);
            // without its record the pod was removed
            if ended.code == 0 || !pod_dir.record().exists() {
                return Ok(());
            }
            if !supervisor.again()? {
                return supervise(pod_dir, pod, pipes, stores);
            }
        } else {
            write_exit(&pod_dir, ended);
            let _ = wait::reap_one(ended.pid);
        }
    }
}

/// A record that cannot be written must not stop the reaping; the supervisor then asks the kernel.
fn write_exit(dir: &PodDir, ended: Ended) {
    let Ended { pid, code, signal } = ended;
    let Ok(start_time) = crate::sys::process::start_time(pid) else {
        return;
    };
    let process = ProcessId { pid, start_time };
    let time = jiff::Timestamp::now().as_nanosecond() as i64;
    let path = dir.exits().join(record::exit_name(process));
    let exit = Exit { code, signal, time };
    if let Err(error) = record::put(&path, &exit) {
        stderr::line(error);
    }
}

fn hold_pipes(dir: &PodDir, pod: &record::Pod) -> Result<Vec<File>> {
    let mut pipes = Vec::new();
    for service in pod.project.services.keys() {
        for stream in ["stdout", "stderr"] {
            let path = dir.service(service).pipe(stream);
            // both ends: opening one of them alone would wait for the other
            let file = OpenOptions::new().read(true).write(true).open(&path);
            pipes.push(file.map_err(Error::io("open", &path))?);
        }
    }
    Ok(pipes)
}

struct Supervisor {
    pid: Pid,
    started: Instant,
    delay: Duration,
}

impl Supervisor {
    fn new(pid: Pid) -> Self {
        Supervisor {
            pid,
            started: Instant::now(),
            delay: Duration::ZERO,
        }
    }

    /// Starts it again; `false` in the new one.
    fn again(&mut self) -> Result<bool> {
        if self.started.elapsed() >= RESTART_RESET {
            self.delay = Duration::ZERO;
        }
        std::thread::sleep(self.delay);
        self.delay = (self.delay * 2).clamp(RESTART_DELAY, RESTART_DELAY_MOST);
        let Some(pid) = fork()? else {
            return Ok(false);
        };
        self.pid = pid;
        self.started = Instant::now();
        Ok(true)
    }
}

/// `None` in the child. Without execve: what the two have in common is in memory once, and a start costs a tenth.
fn fork() -> Result<Option<Pid>> {
    let pid = crate::sys::process::fork()
        .map_err(|error| Error::Other(format!("keeper: start the supervisor: {error}")))?;
    Ok((pid != 0).then(|| Pid::from_raw(pid)))
}

/// What `ps` tells the two by, who have the same command line.
fn called(name: &CStr) -> Result<()> {
    nix::sys::prctl::set_name(name).map_err(|e| Error::Other(format!("keeper: set name: {e}")))
}

/// The rest of the life of a supervisor, which has nothing of the keeper's but the inputs.
fn supervise(dir: PodDir, pod: record::Pod, pipes: Vec<File>, stores: Stores) -> Result<()> {
    drop((pod, pipes));
    called(c"supervisor")?;
    super::supervisor::run(&dir.dir, stores)
}
