//! `exec`: a further process in a running container.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType as Ns, Process};

use super::create::set_oom_score;
use super::listener::Listener;
use super::plan::kernel;
use super::plan::process::{self, Surroundings, Way};
use super::spawn::{Child, Join, Place, spawn};
use super::{Error, Exec, State, chain, life};
use crate::cgroup::Cgroup;
use crate::init::plan::Step;
use crate::sys::sched;

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
    let plan = plan(state, process, user_namespace, options.preserve_fds).map_err(Error::Other)?;
    let join = Join::Process(first, namespaces);
    let spawn_in = |cgroup: &Cgroup, console| {
        let entry = cgroup
            .entry()
            .map_err(|error| Error::step("open the cgroup", chain(&error)))?;
        let place = Place {
            new: 0,
            join: Some(&join),
            time_offsets: None,
            entry: &entry,
        };
        spawn_on(&plan, &place, console)
    };
    let child = match &options.cgroup {
        Some(cgroup) => spawn_in(cgroup, options.console),
        None => {
            let again = options.console.as_ref().map(OwnedFd::try_clone).transpose();
            let again = again.map_err(|error| Error::step("copy a descriptor", error))?;
            match spawn_in(&state.cgroup, options.console) {
                // it manages cgroups of its own: beside its first process, then
                Err(Error::CgroupBusy(text)) => match state.cgroup.around(state.pid) {
                    Some(inner) => spawn_in(&inner, again),
                    None => Err(Error::CgroupBusy(text)),
                },
                other => other,
            }
        }
    }?;
    let done = || {
        if let Some(score) = process.oom_score_adj() {
            set_oom_score(child.pid, score)?;
        }
        if let Some(listener) = &plan.listener {
            listener.send(child.pid, state.pid, &child.load_filter()?)?;
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
    done().map_err(|error| {
        let error = child.last_words().unwrap_or(error);
        match (error, child.undo()) {
            // how it ended is all that there is to tell
            (Error::Died, ended) => {
                Error::Other(format!("the process ended while it was set up: {ended}"))
            }
            (error, _) => error,
        }
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

/// What a further process takes.
struct Plan {
    steps: Vec<Step>,
    /// Processors of whoever makes it, as a mask.
    initial: Option<Vec<u64>>,
    /// Who listens to its filter.
    listener: Option<Listener>,
}

/// The plan of the process; what it leaves out is as in the container's first one.
fn plan(
    state: &State,
    wanted: &Process,
    user_namespace: bool,
    preserved: u32,
) -> Result<Plan, String> {
    let spec = life::spec(state).map_err(|error| error.to_string())?;
    let own = spec.process().as_ref();
    let sets = wanted
        .capabilities()
        .as_ref()
        .or(own.and_then(|own| own.capabilities().as_ref()));
    let inherited = own.and_then(Process::no_new_privileges);
    let linux = spec.linux().as_ref().ok_or("linux: is missing")?;
    let umask = wanted.user().umask();
    let [initial, last] = kernel::affinity(wanted, own)?;
    let filter = process::filter(linux.seccomp().as_ref())?;
    let listener = Listener::of(filter.as_ref(), linux.seccomp().as_ref(), || {
        state.oci("running")
    });
    let around = Surroundings {
        capabilities: process::capabilities(sets)?,
        seccomp: filter,
        no_new_privileges: wanted.no_new_privileges().or(inherited) == Some(true),
        settings: kernel::settings(wanted, own, linux)?,
        umask: umask.or(own.and_then(|own| own.user().umask())),
        preserved,
        start: None,
        dies_with_parent: false,
    };
    let mut steps = process::begin(preserved, 0, false);
    // config.md "execCPUAffinity": without `final` what `initial` says stays
    steps.extend(match (initial.is_some(), last) {
        (_, Some(mask)) => Some(Step::Processors { mask, must: true }),
        (true, None) => None,
        (false, None) => Some(kernel::all_processors()),
    });
    steps.push(Step::NewSession);
    if !state.keep_keyring {
        steps.push(Step::NewKeyring);
    }
    if user_namespace {
        steps.push(Step::BecomeRoot);
    }
    if super::plan::shares_mounts(linux) {
        steps.push(Step::Root(state.rootfs.clone()));
    }
    steps.extend(process::terminal(wanted, false)?);
    steps.extend(kernel::labels(wanted, own));
    steps.extend(process::finish(wanted, around, Way::Told)?);
    Ok(Plan {
        steps,
        initial,
        listener,
    })
}

/// Makes the process, bound to the processors it is to begin on.
fn spawn_on(plan: &Plan, place: &Place<'_>, console: Option<OwnedFd>) -> Result<Child, Error> {
    let Some(initial) = &plan.initial else {
        return spawn(&plan.steps, place, console, None);
    };
    let at = |error| Error::step("process.execCPUAffinity.initial", error);
    let before = sched::affinity().map_err(at)?;
    sched::set_affinity(initial).map_err(at)?;
    let child = spawn(&plan.steps, place, console, None);
    sched::set_affinity(&before).map_err(at)?;
    child
}
