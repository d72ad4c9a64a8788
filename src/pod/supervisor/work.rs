//! Carrying out: the short processes of our own, the watch over a container, checks and timers.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::process::Command;

use super::super::bundle::Prepared;
use super::super::record::{self, Ended, Exit, Failure, Phase, ProcessId, Status};
use super::super::{Error, Result, lock};
use super::machine::{Action, Input, Timer, TimerKind};
use super::{Context, probe, terminal};
use crate::compose::project::Check;
use crate::container;
use crate::sys::pidfd;
use crate::sys::watch::watch_process;

/// How long an exit record may take after the exit.
const EXIT_RECORD: Duration = Duration::from_secs(2);
/// Pause before what must be done in the end is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a container is tried to be removed.
const CLEAN_TRIES: u32 = 5;
/// Pause after a removal that failed.
const CLEAN_PAUSE: Duration = Duration::from_millis(20);
/// Pause between two looks at a lock.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Runs `sampan internal ARGS`; a failure comes back from the file it writes.
pub async fn step(args: &[&OsStr], error_file: &Path) -> Result<()> {
    run(command(args), error_file).await
}

fn command(args: &[&OsStr]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("internal").args(args).stdin(Stdio::null());
    command
}

/// A step on a container, which is not done any more once this process is gone.
fn turn(step: &str, dir: &Path) -> Command {
    let mut command = command(&[step.as_ref(), dir.as_os_str()]);
    command.arg(std::process::id().to_string());
    command
}

async fn run(mut command: Command, error_file: &Path) -> Result<()> {
    // one that is killed leaves none: an earlier one's would be taken for its
    super::remove_stale(error_file)?;
    let status = command
        .status()
        .await
        .map_err(Error::io("run", Path::new("/proc/self/exe")))?;
    if status.success() {
        return Ok(());
    }
    let failure = record::read::<Failure>(error_file)?.unwrap_or(Failure {
        code: 125,
        message: format!("a process of ours ended with {status}"),
    });
    Err(Error::Start {
        code: failure.code,
        message: failure.message,
        service: None,
    })
}

/// Carries out one action; its outcome comes back as an input.
pub fn perform(context: &Rc<Context>, service: &str, generation: u64, action: Action) {
    let context = context.clone();
    let service = service.to_string();
    let dir = context.dir.service(&service).dir;
    let told = |done: std::result::Result<(), container::Error>| {
        if let Err(error) = done {
            context.note(&service, error.to_string());
        }
    };
    match action {
        Action::Start => {
            tokio::task::spawn_local(start(context, service));
        }
        Action::PostStart | Action::PreStop => {
            tokio::task::spawn_local(hooks(context, service, generation, action));
        }
        Action::Signal(signal) => told(container::kill(&dir, signal, false)),
        Action::Kill => {
            tokio::task::spawn_local(kill(context, service, generation));
        }
        Action::Check(which, it) => {
            tokio::task::spawn_local(check(context, service, generation, which, it));
        }
        Action::Timer(timer, after) => {
            tokio::task::spawn_local(async move {
                tokio::time::sleep(after).await;
                context.send(&service, Input::Timer(timer));
            });
        }
        Action::Note(_) => {}
    }
}

/// Kills all of a container, which waits until it is empty: seconds, when somebody is in a call that cannot be interrupted. What cannot be
/// killed is tried again as long as this run of the service lasts.
async fn kill(context: Rc<Context>, service: String, generation: u64) {
    let dir = context.dir.service(&service).dir;
    let killed = tokio::task::spawn_blocking(move || container::kill(&dir, libc::SIGKILL, true));
    let failure = match killed.await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    context.note(&service, failure);
    tokio::time::sleep(AGAIN).await;
    let kind = TimerKind::Grace;
    context.send(&service, Input::Timer(Timer { kind, generation }));
}

/// Runs a service's own hooks: of `post_start` up to the first that fails, of `pre_stop` all.
async fn hooks(context: Rc<Context>, service: String, generation: u64, action: Action) {
    let Some(facts) = context.pod.project.services.get(&service) else {
        return;
    };
    let before = action == Action::PreStop;
    let (key, hooks) = match before {
        true => ("pre_stop", &facts.pre_stop),
        false => ("post_start", &facts.post_start),
    };
    let mut failed = Vec::new();
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(why) = probe::hook(&context, &service, hook).await {
            failed.push(format!("{key}[{index}] failed: {why}"));
            if !before {
                break;
            }
        }
    }
    let failure = (!failed.is_empty()).then(|| failed.join("; "));
    let input = match before {
        true => Input::PreStopped {
            failure,
            generation,
        },
        false => Input::PostStarted {
            failure,
            generation,
        },
    };
    context.send(&service, input);
}

async fn start(context: Rc<Context>, service: String) {
    let started = launch(&context, &service).await;
    follow(context, service, started).await;
}

/// Opens the gate of a container that was created, and follows it to its end.
async fn go_on(context: Rc<Context>, service: String, process: ProcessId) {
    let dir = context.dir.service(&service);
    let opened = run(turn("start", &dir.dir), &dir.error()).await;
    follow(context, service, opened.map(|()| process)).await;
}

/// Follows a program that runs, or has run, to its end.
async fn follow(context: Rc<Context>, service: String, started: Result<ProcessId>) {
    match started {
        Ok(process) => {
            let at = record::now();
            context.note(&service, "started".to_string());
            context.send(
                &service,
                Input::Started {
                    process,
                    at: at.clone(),
                },
            );
            watch(context, service, process, at).await;
        }
        Err(error) => {
            clean(&context, &service).await;
            let failure = match error {
                Error::Start { code, message, .. } => Failure { code, message },
                other => Failure {
                    code: 125,
                    message: other.to_string(),
                },
            };
            context.send(&service, Input::StartFailed(failure));
        }
    }
}

/// Makes the container and starts its program.
async fn launch(context: &Context, service: &str) -> Result<ProcessId> {
    let dir = context.dir.service(service);
    // what a killed supervisor left half made, or an earlier run
    if dir.request().exists() {
        clean(context, service).await;
    }
    let prepared = Prepared::new(&context.pod, &context.dir, service)?;
    prepared.write(&context.sandbox.borrow(), &context.dir.netns())?;
    let mut launch = turn("launch", &dir.dir);
    // a reaper keeps the memory of this process: our environment is none of the container's business
    launch.env_clear();
    if let Some(input) = input(context, service)? {
        launch.stdin(input);
    }
    launch.stdout(pipe(&dir.pipe("stdout"))?);
    launch.stderr(pipe(&dir.pipe("stderr"))?);
    run(launch, &dir.error()).await?;
    container::load(&dir.dir)
        .map_err(|error| Error::Other(error.to_string()))?
        .map(|state| process_of(&state))
        .ok_or_else(|| Error::Other(format!("launch left no state in {}", dir.dir.display())))
}

fn process_of(state: &container::State) -> ProcessId {
    ProcessId {
        pid: state.pid,
        start_time: state.start_time,
    }
}

/// What `create` has as standard input: the way for the terminal's master, or the read end of a pipe that is held open.
fn input(context: &Context, service: &str) -> Result<Option<OwnedFd>> {
    let Some(store) = context.stores.get(service) else {
        return Ok(None);
    };
    let terminal = context.pod.project.services.get(service);
    let made = match terminal.is_some_and(|service| service.tty) {
        true => store.clear().and_then(|()| store.sender()),
        false => rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(std::io::Error::from)
            .and_then(|(read, write)| store.set(&write).map(|()| read)),
    };
    let dir = context.dir.service(service).dir;
    made.map(Some).map_err(Error::io("make the input of", &dir))
}

/// Read and write, so that a write never fails for want of a reader while the supervisor is away.
fn pipe(path: &Path) -> Result<std::fs::File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(Error::io("open", path))
}

/// Kills what is left of a container and removes it; again when that fails, for nothing can start in its place.
async fn clean(context: &Context, service: &str) {
    let dir = context.dir.service(service);
    let mut told = None;
    for _ in 0..CLEAN_TRIES {
        let Err(error) = run(turn("delete", &dir.dir), &dir.error()).await else {
            return;
        };
        let why = error.to_string();
        if told.as_ref() != Some(&why) {
            context.note(service, why.clone());
        }
        told = Some(why);
        tokio::time::sleep(CLEAN_PAUSE).await;
    }
}

/// Waits for the end of a container, and tells it.
async fn watch(context: Rc<Context>, service: String, process: ProcessId, started: String) {
    let mut told = false;
    let pidfd = loop {
        match watch_process(process.pid, process.start_time) {
            Ok(found) => break found,
            Err(error) => {
                if !told {
                    let again = "it is tried again every second";
                    context.note(&service, format!("cannot be watched: {error}; {again}"));
                }
                told = true;
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    if let Some(pidfd) = &pidfd {
        let following = terminal::follow(&context, &service);
        let _ = pidfd.readable().await;
        drop(following);
    }
    let pidfd = pidfd.as_ref().map(AsyncFd::get_ref);
    ended(&context, &service, process, pidfd, &started).await;
}

/// Exit code: the keeper's record, else the kernel's own (Linux 6.15), else unknown.
async fn exit_of(context: &Context, process: ProcessId, pidfd: &OwnedFd) -> Option<Exit> {
    let path = context.dir.exits().join(record::exit_name(process));
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_millis(1);
    while waited < EXIT_RECORD {
        if let Ok(Some(exit)) = record::read::<Exit>(&path) {
            return Some(exit);
        }
        if let Some(status) = pidfd::exit_status(pidfd)
            && !path.exists()
        {
            return Some(Exit {
                code: exit_code(status),
                signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
                time: jiff::Timestamp::now().as_nanosecond() as i64,
            });
        }
        tokio::time::sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    None
}

/// A wait status as a shell shows it.
fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    }
}

/// Removes what ended and tells it. `pidfd`: none when the process is not there any more.
async fn ended(
    context: &Context,
    service: &str,
    process: ProcessId,
    pidfd: Option<&OwnedFd>,
    started: &str,
) {
    let Ended { exit, oom, .. } = end_of(context, service, process, pidfd).await;
    clean(context, service).await;
    terminal::finish(context, service).await;
    if let Some(pumps) = context.pumps.get(service) {
        while pumps.drain() {
            tokio::task::yield_now().await;
        }
    }
    context.sinks.finish(service).await;
    let at = exit
        .and_then(|e| jiff::Timestamp::from_nanosecond(e.time.into()).ok())
        .unwrap_or_else(jiff::Timestamp::now);
    let ran = started
        .parse::<jiff::Timestamp>()
        .map(|s| Duration::try_from(at.duration_since(s)).unwrap_or_default())
        .unwrap_or_default();
    context.send(
        service,
        Input::Exited {
            code: exit.map(|e| e.code),
            signal: exit.and_then(|e| e.signal),
            oom,
            ran,
            at: at.to_string(),
        },
    );
}

/// How a run ended: from its record when an earlier supervisor got that far, else found out and recorded before
/// anything that tells it is removed.
async fn end_of(
    context: &Context,
    service: &str,
    process: ProcessId,
    pidfd: Option<&OwnedFd>,
) -> Ended {
    let path = context.dir.service(service).ended();
    let exit_record = context.dir.exits().join(record::exit_name(process));
    let known = record::read::<Ended>(&path).ok().flatten();
    if let Some(ended) = known.filter(|ended| ended.process == process) {
        let _ = std::fs::remove_file(exit_record);
        return ended;
    }
    let exit = match pidfd {
        Some(pidfd) => exit_of(context, process, pidfd).await,
        None => record::read(&exit_record).ok().flatten(),
    };
    let stats = context.pod.cgroup.child(service).stats();
    let ended = Ended {
        process,
        exit,
        oom: stats.is_ok_and(|stats| stats.oom_kills.unwrap_or(0) > 0),
    };
    match record::put(&path, &ended) {
        Ok(()) => {
            // one that stays is removed with the pod
            let _ = std::fs::remove_file(exit_record);
        }
        Err(error) => context.note(service, error.to_string()),
    }
    ended
}

/// A service that ran, or was being started, when the last supervisor was killed.
pub fn adopt(context: &Rc<Context>, service: &str, status: &Status) {
    let context = context.clone();
    let service = service.to_string();
    let status = status.clone();
    tokio::task::spawn_local(async move {
        let dir = context.dir.service(&service);
        if let Err(error) = unlocked(&dir.lock()).await {
            context.note(&service, error.to_string());
        }
        let found = match container::load(&dir.dir) {
            Ok(found) => found,
            Err(error) => {
                context.note(&service, error.to_string());
                None
            }
        };
        let process = match (status.phase, status.process, found) {
            (Phase::Running, Some(process), _) => process,
            (_, _, None) => return start(context, service).await,
            (_, _, Some(state)) => {
                let process = process_of(&state);
                match container::status(&state) {
                    container::Status::Created => {
                        return go_on(context, service, process).await;
                    }
                    // it ended at its gate, which `start` removes once the program runs
                    container::Status::Stopped if dir.gate().exists() => {
                        return start(context, service).await;
                    }
                    _ => process,
                }
            }
        };
        let at = match status.phase {
            Phase::Running => status.started.clone(),
            _ => record::now(),
        };
        if status.phase != Phase::Running {
            context.send(
                &service,
                Input::Started {
                    process,
                    at: at.clone(),
                },
            );
        }
        watch(context, service, process, at).await;
    });
}

/// Waits for the `create`, `start` or `delete` of a supervisor that was killed.
async fn unlocked(path: &Path) -> Result<()> {
    while lock::attempt(path)?.is_none() {
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    Ok(())
}

async fn check(
    context: Rc<Context>,
    service: String,
    generation: u64,
    which: usize,
    check: Rc<Check>,
) {
    let began = jiff::Timestamp::now();
    let tested = probe::run(&context, &service, &check).await;
    let started = record::read::<Status>(&context.dir.service(&service).status());
    let started = started.ok().flatten();
    let started = started.and_then(|s| s.started.parse::<jiff::Timestamp>().ok());
    let age = began.duration_since(started.unwrap_or(began));
    context.send(
        &service,
        Input::Tested {
            check: which,
            tested,
            age: Duration::try_from(age).unwrap_or_default(),
            at: record::now(),
            generation,
        },
    );
}
