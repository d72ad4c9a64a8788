//! `exec`: a further process in a running container.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType as Ns, Process};

use super::create::set_oom_score;
use super::plan::process::{self, Surroundings};
use super::spawn::{Join, spawn};
use super::{Error, Exec, State, chain, life};
use crate::cgroup::Cgroup;
use crate::init::plan::Step;

/// Runs `process` in the container. Must be called in a single-threaded process; without terminal the caller's standard streams are
/// used. Capabilities and `noNewPrivileges` that `process` leaves out are the container's; the filter is always the container's.
pub fn exec(dir: &Path, process: &Process) -> Result<Exec, Error> {
    exec_with(dir, process, ExecOptions::default())
}

/// How a process is started, beside what it is.
#[derive(Debug, Default)]
pub struct ExecOptions {
    /// Connected socket that receives the terminal's master, instead of the caller.
    pub console: Option<OwnedFd>,
    /// In a paused container it waits to be resumed.
    pub ignore_paused: bool,
    /// So many descriptors from 3 on are the program's.
    pub preserve_fds: u32,
    /// An existing cgroup instead of the container's.
    pub cgroup: Option<Cgroup>,
}

/// [`exec`] with options.
pub fn exec_with(dir: &Path, process: &Process, options: ExecOptions) -> Result<Exec, Error> {
    let state = life::known(dir)?;
    let at = |error: Error| match error {
        Error::Other(text) => Error::Other(format!("exec in container {}: {text}", state.id)),
        other => other,
    };
    run(&state, process, options).map_err(at)
}

fn run(state: &State, process: &Process, options: ExecOptions) -> Result<Exec, Error> {
    let first =
        life::open_process(state)?.ok_or_else(|| Error::Other("it is not running".to_owned()))?;
    if !options.ignore_paused && life::status(state) == super::Status::Paused {
        return Err(Error::Other("it is paused; resume it first".to_owned()));
    }
    let namespaces = other_namespaces(state.pid)?;
    let user_namespace = namespaces & Ns::User as u64 != 0;
    let steps = plan(state, process, user_namespace, options.preserve_fds).map_err(Error::Other)?;
    let place = options.cgroup.as_ref().unwrap_or(&state.cgroup);
    let entry = place
        .entry()
        .map_err(|error| Error::step("open the cgroup", chain(&error)))?;
    let join = Join::Process(first, namespaces);
    let child = spawn(&steps, 0, Some(&join), &entry, options.console, None)?;
    let done = || {
        if let Some(score) = process.oom_score_adj() {
            set_oom_score(child.pid, score)?;
        }
        let console = child.set_up()?;
        if let Some(master) = &console {
            exact_output(master)?;
        }
        child.release()?;
        child.let_go()?;
        Ok(Exec {
            pid: child.pid,
            console,
        })
    };
    done().inspect_err(|_| {
        child.undo();
    })
}

/// What a program prints on the terminal `master` reaches a file or a pipe as it is, without carriage returns, when that is where our
/// standard output goes; a terminal there sees what a terminal sends. To be called before the program runs.
pub fn exact_output(master: &OwnedFd) -> Result<(), Error> {
    use rustix::termios::{OptionalActions, OutputModes, isatty, tcgetattr, tcsetattr};
    if isatty(std::io::stdout()) {
        return Ok(());
    }
    tcgetattr(master)
        .and_then(|mut modes| {
            modes.output_modes.remove(OutputModes::ONLCR);
            tcsetattr(master, OptionalActions::Now, &modes)
        })
        .map_err(|error| Error::step("set up the terminal", error))
}

/// `CLONE_NEW*` bits of the namespaces that the process does not share with us: joining one's own user namespace is an error
/// (setns(2) EINVAL), joining others is for nothing.
fn other_namespaces(pid: i32) -> Result<u64, Error> {
    let mut bits = 0;
    for (name, typ) in [
        ("mnt", Ns::Mount),
        ("uts", Ns::Uts),
        ("ipc", Ns::Ipc),
        ("user", Ns::User),
        ("pid", Ns::Pid),
        ("net", Ns::Network),
        ("cgroup", Ns::Cgroup),
        ("time", Ns::Time),
    ] {
        let link = |whose: &str| fs::read_link(format!("/proc/{whose}/ns/{name}"));
        let theirs = match link(&pid.to_string()) {
            // a kernel without this kind
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && link("self").is_err() => {
                continue;
            }
            other => other.map_err(|error| {
                Error::step(format!("read the {name} namespace of process {pid}"), error)
            })?,
        };
        if link("self").ok() != Some(theirs) {
            bits |= typ as u64;
        }
    }
    Ok(bits)
}

/// The steps of the process.
fn plan(
    state: &State,
    wanted: &Process,
    user_namespace: bool,
    preserved: u32,
) -> Result<Vec<Step>, String> {
    let spec = life::spec(state).map_err(|error| error.to_string())?;
    let own = spec.process().as_ref();
    for (key, present) in [
        (
            "apparmorProfile",
            wanted
                .apparmor_profile()
                .as_deref()
                .is_some_and(|text| !text.is_empty()),
        ),
        (
            "selinuxLabel",
            wanted
                .selinux_label()
                .as_deref()
                .is_some_and(|text| !text.is_empty()),
        ),
        ("scheduler", wanted.scheduler().is_some()),
        ("ioPriority", wanted.io_priority().is_some()),
        ("execCPUAffinity", wanted.exec_cpu_affinity().is_some()),
    ] {
        if present {
            return Err(format!("process.{key}: is not supported"));
        }
    }
    let sets = wanted
        .capabilities()
        .as_ref()
        .or(own.and_then(|own| own.capabilities().as_ref()));
    let inherited = own.and_then(Process::no_new_privileges);
    let linux = spec.linux().as_ref();
    let around = Surroundings {
        capabilities: process::capabilities(sets)?,
        seccomp: process::filter(linux.and_then(|linux| linux.seccomp().as_ref()))?,
        no_new_privileges: wanted.no_new_privileges().or(inherited) == Some(true),
        personality: None,
        preserved,
    };
    let mut steps = process::begin(preserved);
    steps.push(Step::NewSession);
    if !state.keep_keyring {
        steps.push(Step::NewKeyring);
    }
    if user_namespace {
        steps.push(Step::BecomeRoot);
    }
    steps.extend(process::terminal(wanted, false)?);
    steps.extend(process::finish(wanted, around, false)?);
    Ok(steps)
}
