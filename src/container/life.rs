//! A container after `create`: its record, start, status, kill, delete.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Spec};

use super::create::Config;
use super::{CreateRequest, Error, State, Status, chain, host_mounts, plan};
use crate::cgroup::Cgroup;
use crate::init::gate::{self, Outcome};
use crate::init::hooks::Point;
use crate::sys::{file, pidfd, process};

/// Version of `state.json` that this program writes and reads.
pub const STATE_VERSION: u32 = 1;
/// Room for most `state.json`, in bytes.
const STATE_USUAL: usize = 2 << 10;
/// Longest `state.json`, in bytes.
const STATE_MAX: u64 = 1 << 20;
/// How long a killed process may take to end, in milliseconds.
const KILL_WAIT: u64 = 10_000;

fn state_path(dir: &Path) -> PathBuf {
    dir.join("state.json")
}

/// A `state.json` that is not there yet. Not synced: no container outlives the machine's end.
#[derive(Debug)]
pub struct Draft {
    file: file::Draft,
    state: State,
}

impl Draft {
    /// Writes it.
    pub fn new(state: State) -> Result<Draft, Error> {
        let path = state_path(&state.dir);
        let text = serde_json::to_vec_pretty(&state);
        let file = text
            .map_err(io::Error::from)
            .and_then(|text| file::Draft::new(&path, &text, 0o600));
        match file {
            Ok(file) => Ok(Draft { file, state }),
            Err(error) => Err(unwritten(&path, &error)),
        }
    }

    /// From now on there is a container.
    pub fn publish(self) -> Result<State, Error> {
        let done = self.file.publish();
        done.map_err(|error| unwritten(&state_path(&self.state.dir), &error))?;
        Ok(self.state)
    }
}

fn unwritten(path: &Path, error: &io::Error) -> Error {
    Error::step(format!("write {}", path.display()), error)
}

fn spec_path(dir: &Path) -> PathBuf {
    dir.join("spec.json")
}

/// Keeps the bytes of `config.json`. Without a sync: after the machine's end there is no container either.
pub fn keep_spec(dir: &Path, text: &[u8]) -> Result<(), Error> {
    let path = spec_path(dir);
    file::write_private(&path, text)
        .map_err(|error| Error::step(format!("write {}", path.display()), error))
}

/// The specification that the container was made from.
pub fn spec(state: &State) -> Result<Spec, Error> {
    Ok(Config::at(&spec_path(&state.dir))?.spec)
}

/// Reads `state.json`; `None` when there is no container.
pub fn load(dir: &Path) -> Result<Option<State>, Error> {
    let path = state_path(dir);
    let failed =
        |error: &dyn std::fmt::Display| Error::step(format!("read {}", path.display()), error);
    let file = match File::open(&path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        other => other.map_err(|error| failed(&error))?,
    };
    // one read(2) for most
    let mut text = Vec::with_capacity(STATE_USUAL);
    file.take(STATE_MAX)
        .read_to_end(&mut text)
        .map_err(|error| failed(&error))?;
    let state: State = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
    if state.version != STATE_VERSION {
        return Err(failed(&format!(
            "version {} is not supported, only {STATE_VERSION} is",
            state.version
        )));
    }
    Ok(Some(state))
}

/// [`load`], where there has to be a container.
pub fn known(dir: &Path) -> Result<State, Error> {
    load(dir)?.ok_or_else(|| Error::Other(format!("no container in {}", dir.display())))
}

/// Opens the first process; `None` when it has ended.
pub fn open_process(state: &State) -> Result<Option<OwnedFd>, Error> {
    let pidfd = match pidfd::open(state.pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        other => {
            other.map_err(|error| Error::step(format!("open process {}", state.pid), error))?
        }
    };
    // after opening: the number may be another process's by now, the descriptor cannot change any more
    Ok(
        (process::start_time(state.pid).ok() == Some(state.start_time) && pidfd::is_alive(&pidfd))
            .then_some(pidfd),
    )
}

/// The container's status now, from the kernel.
pub fn status(state: &State) -> Status {
    let same = process::start_time(state.pid).ok() == Some(state.start_time);
    if !same || !process::is_running(state.pid).unwrap_or(false) {
        return Status::Stopped;
    }
    if state.cgroup.is_frozen().unwrap_or(false) {
        return Status::Paused;
    }
    // without the folder nobody can open the gate any more
    if gate::is_waiting(&state.dir).unwrap_or(false) {
        return Status::Created;
    }
    Status::Running
}

/// Opens the gate, waits until the program was executed or failed to be, and goes on as [`started`].
pub fn start(dir: &Path) -> Result<(), Error> {
    let state = known(dir)?;
    let at =
        |error: &dyn std::fmt::Display| Error::step(format!("start container {}", state.id), error);
    // it could not answer
    if state.cgroup.is_frozen().unwrap_or(false) {
        return Err(refused("start", &state, Status::Paused));
    }
    match gate::open(dir).map_err(|error| at(&error))? {
        Outcome::Executed => {
            gate::remove(dir).map_err(|error| at(&error))?;
            started(&state)
        }
        Outcome::Failed(failure) => Err(failure.into()),
        Outcome::Died => Err(at(
            &"its first process died before it could execute the program",
        )),
        Outcome::NotWaiting => Err(at(&format!("it is {}, not created", status(&state)))),
    }
}

/// Runs the hooks of a container whose program runs. When one fails the container is killed (runtime.md "Lifecycle", 9).
pub fn started(state: &State) -> Result<(), Error> {
    if state.hooks.poststart.is_empty() {
        return Ok(());
    }
    let run = state.hooks(Point::Poststart).run(Some(state.pid));
    run.map_err(|failure| {
        let text = match kill_first(state) {
            Ok(()) => failure.message,
            Err(error) => format!("{}; {error}", failure.message),
        };
        Error::step(format!("start container {}", state.id), text)
    })
}

/// Sends a signal to the first process (or all members of the cgroup).
pub fn kill(dir: &Path, signal: i32, all: bool) -> Result<(), Error> {
    let state = known(dir)?;
    let at = |error: &dyn std::fmt::Display| {
        Error::step(
            format!("send signal {signal} to container {}", state.id),
            error,
        )
    };
    let first = open_process(&state)?;
    // without a pid namespace of its own the others would live on without the first one
    if signal == libc::SIGKILL && (all || !state.own_pids) {
        let gone = first.is_none() && !all;
        let members = || state.cgroup.processes().map_err(|error| at(&chain(&error)));
        if gone && members()?.is_empty() {
            return Err(at(&NOT_RUNNING));
        }
        state.cgroup.kill().map_err(|error| at(&chain(&error)))?;
        return match first {
            // where there is no cgroup, it is all that we know of
            Some(first) => match pidfd::send_signal(&first, signal) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(at(&error)),
                _ => Ok(()),
            },
            None => Ok(()),
        };
    }
    if all {
        return kill_members(&state, signal).map_err(|error| at(&error));
    }
    let first = first.ok_or_else(|| at(&NOT_RUNNING))?;
    pidfd::send_signal(&first, signal).map_err(|error| at(&error))?;
    // on v1 it would stay where it is (freezer-subsystem.rst)
    let stays = matches!(state.cgroup.plain(), Cgroup::V1 { .. });
    if signal == libc::SIGKILL && stays && state.cgroup.is_frozen().unwrap_or(false) {
        state
            .cgroup
            .freeze(false)
            .map_err(|error| at(&chain(&error)))?;
    }
    Ok(())
}

/// What callers look for.
const NOT_RUNNING: &str = "container not running";

/// Processes of a container: the members of its cgroup, and where it has none those of its pid namespace, or the first one alone
/// when that is the caller's.
pub fn processes(state: &State) -> Result<Vec<i32>, Error> {
    let at = |error: &dyn std::fmt::Display| {
        Error::step(
            format!("find the processes of container {}", state.id),
            error,
        )
    };
    if !matches!(state.cgroup, Cgroup::Unlimited { .. }) {
        return state.cgroup.processes().map_err(|error| at(&chain(&error)));
    }
    if open_process(state)?.is_none() {
        return Ok(Vec::new());
    }
    let space = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid"));
    let own = match space(state.pid) {
        Ok(own) if state.own_pids => own,
        _ => return Ok(vec![state.pid]),
    };
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").map_err(|error| at(&error))? {
        let name = entry.map_err(|error| at(&error))?.file_name();
        // what cannot be looked at is another user's, or ended
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok())
            && space(pid).is_ok_and(|found| found == own)
        {
            pids.push(pid);
        }
    }
    pids.sort_unstable();
    Ok(pids)
}

fn kill_members(state: &State, signal: i32) -> Result<(), String> {
    for pid in processes(state).map_err(|error| error.to_string())? {
        match pidfd::open(pid).and_then(|pidfd| pidfd::send_signal(&pidfd, signal)) {
            // it ended in between
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other.map_err(|error| format!("process {pid}: {error}"))?,
        }
    }
    Ok(())
}

/// Sets other limits; those that are absent stay.
pub fn update(state: &State, resources: &LinuxResources) -> Result<(), Error> {
    state
        .cgroup
        .update(resources)
        .map_err(|error| Error::step(format!("update container {}", state.id), chain(&error)))
}

/// Freezes all processes, and waits until they are.
pub fn pause(dir: &Path) -> Result<(), Error> {
    let state = known(dir)?;
    match status(&state) {
        Status::Running | Status::Created => freeze(&state, true),
        other => Err(refused("pause", &state, other)),
    }
}

/// Lets frozen processes go on.
pub fn resume(dir: &Path) -> Result<(), Error> {
    let state = known(dir)?;
    match status(&state) {
        Status::Paused => freeze(&state, false),
        other => Err(refused("resume", &state, other)),
    }
}

fn freeze(state: &State, frozen: bool) -> Result<(), Error> {
    let what = if frozen { "pause" } else { "resume" };
    state
        .cgroup
        .freeze(frozen)
        .map_err(|error| Error::step(format!("{what} container {}", state.id), chain(&error)))
}

fn refused(what: &str, state: &State, status: Status) -> Error {
    Error::Other(format!("{what} container {}: it is {status}", state.id))
}

/// Kills what is left and removes cgroup, gate and `state.json`; missing is success. Hooks that follow and fail are no error
/// (runtime.md "Lifecycle", 14): what to warn of comes back.
pub fn delete(dir: &Path) -> Result<Option<String>, Error> {
    let Some(state) = load(dir)? else {
        // a create that died before it wrote the state
        return gate::remove(dir)
            .map(|()| None)
            .map_err(|error| Error::step(format!("remove the gate in {}", dir.display()), error));
    };
    let at = |error: &dyn std::fmt::Display| {
        Error::step(format!("delete container {}", state.id), error)
    };
    let ended = kill_first(&state);
    if let (Err(error), Cgroup::Unlimited { .. }) = (&ended, &state.cgroup) {
        // nothing else would end it: as long as it runs there is a container
        return Err(at(error));
    }
    match (ended, remove_traces(dir, &[&state.cgroup])) {
        // a first process that took its time has ended with its cgroup
        (ended, Ok(())) => {
            let warning = state.hooks(Point::Poststop).run_all();
            match (ended, open_process(&state)?) {
                (Err(error), Some(_)) => Err(at(&error)),
                _ => Ok(warning),
            }
        }
        (Err(one), Err(two)) => Err(at(&format!("{one}; {two}"))),
        (Ok(()), Err(error)) => Err(at(&error)),
    }
}

/// Ends the first process, which takes its pid namespace with it, wherever it is by now. A frozen one ends when its cgroup is killed.
fn kill_first(state: &State) -> Result<(), Error> {
    let Some(first) = open_process(state)? else {
        return Ok(());
    };
    let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ESRCH);
    if let Err(error) = pidfd::send_signal(&first, libc::SIGKILL)
        && !gone(&error)
    {
        return Err(Error::step(format!("kill process {}", state.pid), error));
    }
    let thawed = state.cgroup.kill();
    match pidfd::wait(&first, Some(KILL_WAIT)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Other(format!(
            "process {} does not end after SIGKILL{}",
            state.pid,
            thawed
                .err()
                .map(|error| format!(" ({error})"))
                .unwrap_or_default()
        ))),
        Err(error) => Err(Error::step(
            format!("wait for process {}", state.pid),
            error,
        )),
    }
}

/// Removes what a `create` left that was killed before it wrote the state, as far as it is the container's: members of a cgroup are when it
/// had been found to be free, which it was before the specification was kept. What hooks that ran may have made is for those that follow
/// (runtime.md "Lifecycle", 14); what they come to is to be warned of.
pub fn undo_half_made(request: &CreateRequest) -> Result<Option<String>, Error> {
    let dir = &request.dir;
    let kept = spec_path(dir);
    if !kept.exists() {
        // the child, which waited for its parent, ends by itself
        request.cgroup.remove_unused();
        return remove_traces(dir, &[]).map(|()| None);
    }
    // cut off: no hook ran
    let spec = Config::at(&kept).ok().map(|config| config.spec);
    remove_traces(dir, &[&request.cgroup])?;
    let Some(spec) = spec else { return Ok(None) };
    let hooks = plan::hooks(&spec, request).map_err(Error::Other)?;
    Ok(plan::poststop(&spec, request, hooks.later).run_all())
}

/// Removes members, cgroups, gate, mounts and state, in this order, going on after errors.
pub(super) fn remove_traces(dir: &Path, cgroups: &[&Cgroup]) -> Result<(), Error> {
    let gone = |path: PathBuf| match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    };
    let destroyed: Vec<String> = cgroups
        .iter()
        .filter_map(|cgroup| cgroup.destroy().err())
        .map(|error| chain(&error))
        .collect();
    let members = match destroyed.is_empty() {
        true => Ok(()),
        false => Err(destroyed.join("; ")),
    };
    let gate = gate::remove(dir).map_err(|error| format!("remove the start gate: {error}"));
    let mounts = host_mounts::remove(dir);
    // the record goes last: as long as something is left there is a container to delete
    let record = if members.is_ok() && gate.is_ok() && mounts.is_ok() {
        gone(spec_path(dir)).and_then(|()| gone(state_path(dir)))
    } else {
        Ok(())
    };
    let errors: Vec<String> = [members, gate, mounts, record]
        .into_iter()
        .filter_map(Result::err)
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    Err(Error::Other(errors.join("; ")))
}
