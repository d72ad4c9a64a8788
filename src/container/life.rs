//! A container after `create`: its record, start, status, kill, delete.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{Error, State, Status, chain};
use crate::cgroup::Cgroup;
use crate::init::gate::{self, Outcome};
use crate::init::hooks::Point;
use crate::sys::{file, pidfd, process};

/// Version of `state.json` that this program writes and reads.
pub const STATE_VERSION: u32 = 1;
/// Longest `state.json`, in bytes.
const STATE_MAX: u64 = 1 << 20;
/// How long a killed process may take to end, in milliseconds.
const KILL_WAIT: u64 = 10_000;

fn state_path(dir: &Path) -> PathBuf {
    dir.join("state.json")
}

/// Writes `state.json`.
pub fn store(dir: &Path, state: &State) -> Result<(), Error> {
    let path = state_path(dir);
    let failed =
        |error: &dyn std::fmt::Display| Error::step(format!("write {}", path.display()), error);
    let text = serde_json::to_vec_pretty(state).map_err(|error| failed(&error))?;
    file::write_atomic(&path, &text, 0o600).map_err(|error| failed(&error))
}

/// Reads `state.json`; `None` when there is no container.
pub fn load(dir: &Path) -> Result<Option<State>, Error> {
    let path = state_path(dir);
    let failed =
        |error: &dyn std::fmt::Display| Error::step(format!("read {}", path.display()), error);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| failed(&error))?,
    };
    let mut text = Vec::new();
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
    if is_frozen(&state.cgroup) {
        return Status::Paused;
    }
    // without the folder nobody can open the gate any more
    if gate::is_waiting(&state.dir).unwrap_or(false) {
        return Status::Created;
    }
    Status::Running
}

/// cgroup-v2.rst `cgroup.events`, freezer-subsystem.rst `freezer.state`.
fn is_frozen(cgroup: &Cgroup) -> bool {
    let (path, word) = match cgroup {
        Cgroup::V2(path) => (path.join("cgroup.events"), "frozen 1"),
        Cgroup::V1 { controllers, .. } => match controllers.get("freezer") {
            Some(path) => (path.join("freezer.state"), "FROZEN"),
            None => return false,
        },
    };
    fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line == word))
}

/// Opens the gate, waits until the program was executed or failed to be, and runs the hooks that follow. When one of these fails the
/// container is killed (runtime.md "Lifecycle", 9).
pub fn start(dir: &Path) -> Result<(), Error> {
    let state = known(dir)?;
    let at =
        |error: &dyn std::fmt::Display| Error::step(format!("start container {}", state.id), error);
    match gate::open(dir).map_err(|error| at(&error))? {
        Outcome::Executed => {
            gate::remove(dir).map_err(|error| at(&error))?;
            if state.hooks.poststart.is_empty() {
                return Ok(());
            }
            let run = state.hooks(Point::Poststart).run(Some(state.pid));
            run.map_err(|failure| match kill_first(&state) {
                Ok(()) => at(&failure.message),
                Err(error) => at(&format!("{}; {error}", failure.message)),
            })
        }
        Outcome::Failed(failure) => Err(failure.into()),
        Outcome::Died => Err(at(
            &"its first process died before it could execute the program",
        )),
        Outcome::NotWaiting => Err(at(
            &format!("it is {:?}, not created", status(&state)).to_lowercase()
        )),
    }
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
    if all {
        if signal == libc::SIGKILL {
            return state.cgroup.kill().map_err(|error| at(&chain(&error)));
        }
        for pid in state
            .cgroup
            .processes()
            .map_err(|error| at(&chain(&error)))?
        {
            match pidfd::open(pid).and_then(|pidfd| pidfd::send_signal(&pidfd, signal)) {
                // it ended in between
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other.map_err(|error| at(&error))?,
            }
        }
        return Ok(());
    }
    let process = open_process(&state)?.ok_or_else(|| at(&"it is not running"))?;
    pidfd::send_signal(&process, signal).map_err(|error| at(&error))
}

/// Kills what is left and removes cgroup, gate and `state.json`; missing is success. Hooks that follow and fail are no error
/// (runtime.md "Lifecycle", 14): what to warn of comes back.
pub fn delete(dir: &Path) -> Result<Option<String>, Error> {
    let Some(state) = load(dir)? else {
        // a create that died before it wrote the state
        let gone = gate::remove(dir);
        return gone
            .map(|()| None)
            .map_err(|error| Error::step(format!("remove the gate in {}", dir.display()), error));
    };
    let at = |error: &dyn std::fmt::Display| {
        Error::step(format!("delete container {}", state.id), error)
    };
    let ended = kill_first(&state);
    let removed = remove_traces(dir, &state.cgroup);
    match (ended, removed) {
        (Ok(()), Ok(())) => Ok(state.hooks(Point::Poststop).run_all()),
        (Err(one), Err(two)) => Err(at(&format!("{one}; {two}"))),
        (Err(error), Ok(())) => Err(at(&error)),
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

/// Removes members, cgroup, gate and state, in this order, going on after errors.
pub fn remove_traces(dir: &Path, cgroup: &Cgroup) -> Result<(), Error> {
    let state = || match fs::remove_file(state_path(dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    };
    let members = cgroup
        .kill()
        .and_then(|()| cgroup.remove())
        .map_err(|error| chain(&error));
    let gate = gate::remove(dir).map_err(|error| format!("remove the start gate: {error}"));
    // the record goes last: as long as something is left there is a container to delete
    let record = if members.is_ok() && gate.is_ok() {
        state()
    } else {
        Ok(())
    };
    let errors: Vec<String> = [members, gate, record]
        .into_iter()
        .filter_map(Result::err)
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    Err(Error::Other(errors.join("; ")))
}
