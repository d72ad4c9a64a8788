//! `create` and `run`.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{BoxBuilder, Process, Spec};

use super::args::{Invocation, Values};
use super::{Error, log, store};
use crate::cgroup::Cgroup;
use crate::cli::{console, terminal};
use crate::container::{self, Config, CreateRequest, Exec, Rootfs, State};
use crate::sys::{file, pidfd, seal, socket};

/// How long a socket that wants a descriptor may keep us waiting, in seconds.
const SOCKET_WAIT: u64 = 10;

/// `create ID`.
pub fn create(call: &Invocation) -> Result<u8, Error> {
    protect()?;
    let making = Making::begin(call, true)?;
    let console = making.console(call)?;
    making.make(call, console, false).map(|_| 0)
}

/// `run ID`.
pub fn run(call: &Invocation) -> Result<u8, Error> {
    protect()?;
    let detach = call.values.has("detach");
    let making = Making::begin(call, detach)?;
    if detach {
        let console = making.console(call)?;
        let state = making.make(call, console, false)?;
        return started(call, &state).map(|()| 0);
    }
    if !call.values.has("no-subreaper") {
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
            .map_err(|error| Error::step("become a subreaper", error))?;
    }
    let signals = console::Signals::take().map_err(shown)?;
    let (near, console) = if making.terminal() {
        let (near, far) =
            socket::pair().map_err(|error| Error::step("make a console socket", error))?;
        (Some(near), Some(far))
    } else {
        (None, None)
    };
    // whoever is told of the process, or has its terminal set up, is so before the program runs
    let told = ["pid-file", "pidfd-socket"]
        .iter()
        .any(|name| call.values.get(name).is_some());
    let at_once = !told && near.is_none();
    let state = making.make(call, console, at_once)?;
    let console = near.as_ref().map(receive).transpose();
    let console = console.map_err(|error| undone(call, &state, error))?;
    if at_once {
        container::started(&state).map_err(|error| undone(call, &state, error.into()))?;
    } else {
        started(call, &state)?;
    }
    let running = Exec {
        pid: state.pid,
        console,
    };
    let ended = console::wait(running, signals).map_err(shown);
    if call.values.has("keep") {
        return ended;
    }
    match (ended, remove(call, &state)) {
        (Err(one), Err(two)) => Err(Error::new(format!("{one}; {two}"))),
        (Ok(_), Err(error)) | (Err(error), Ok(())) => Err(error),
        (Ok(code), Ok(())) => Ok(code),
    }
}

/// The descriptors that are passed on: those of `$LISTEN_FDS`, when they are meant for us (sd_listen_fds(3)), then `--preserve-fds`.
pub struct Passed {
    /// So many from 3 on.
    pub count: u32,
    /// What the program has to know.
    pub env: Vec<String>,
}

impl Passed {
    /// Looks at what there is; one that is not open is an error.
    pub fn new(values: &Values) -> Result<Passed, Error> {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let meant = number("LISTEN_PID") == Some(std::process::id());
        let listen = number("LISTEN_FDS").filter(|_| meant).unwrap_or(0);
        let wanted: u32 = values.number("preserve-fds")?.unwrap_or(0);
        let many = || Error::new(format!("--preserve-fds: {wanted} are too many"));
        let count = listen.checked_add(wanted).ok_or_else(many)?;
        let last = i32::try_from(count)
            .ok()
            .and_then(|count| count.checked_add(3));
        for fd in 3..last.ok_or_else(many)? {
            if !crate::sys::fd::is_open(fd) {
                return Err(Error::new(format!(
                    "--preserve-fds, $LISTEN_FDS: {count} from 3 on are to be passed, but {fd} is not open"
                )));
            }
        }
        let env = match listen {
            0 => Vec::new(),
            count => vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()],
        };
        Ok(Passed { count, env })
    }

    /// Adds what a process has to know.
    pub fn tell(&self, process: &mut Process) {
        if !self.env.is_empty() {
            let mut env = process.env().clone().unwrap_or_default();
            env.extend_from_slice(&self.env);
            process.set_env(Some(env));
        }
    }
}

/// Gives a terminal the size of ours.
pub fn fit(process: &mut Process) {
    if process.terminal() != Some(true) {
        return;
    }
    if let Some((height, width)) = terminal::size() {
        let size = BoxBuilder::default().height(height).width(width).build();
        process.set_console_size(size.ok());
    }
}

/// Runs from a copy that no container can write (CVE-2019-5736).
pub fn protect() -> Result<(), Error> {
    seal::ensure().map_err(|error| Error::step("protect the own program", error))
}

/// Opens the gate; a container whose program does not run is removed.
fn started(call: &Invocation, state: &State) -> Result<(), Error> {
    container::start(&state.dir).map_err(|error| undone(call, state, error.into()))
}

/// An error, after which there is no container any more.
fn undone(call: &Invocation, state: &State, error: Error) -> Error {
    match remove(call, state) {
        Ok(()) => error,
        Err(left) => Error::new(format!("{error}; {left}")),
    }
}

/// Deletes a container of ours.
fn remove(call: &Invocation, state: &State) -> Result<(), Error> {
    let Some(_only) = store::hold(&state.dir)? else {
        return Ok(());
    };
    let warning = container::delete(&state.dir)?;
    store::remove(&state.dir)?;
    match warning {
        Some(text) => log::warning(&call.global, &text),
        None => Ok(()),
    }
}

/// What is to be made.
struct Making {
    id: String,
    bundle: PathBuf,
    config: Config,
    cgroup: Cgroup,
    preserve_fds: u32,
    /// The caller waits for it.
    waited_for: bool,
}

impl Making {
    /// Reads the bundle. `detach`: whoever gets a terminal is the caller.
    fn begin(call: &Invocation, detach: bool) -> Result<Making, Error> {
        let id = call.word(0)?.to_owned();
        // what is wrong with it is said first
        store::dir(&call.global, &id)?;
        let bundle = call.values.path("bundle").unwrap_or_else(|| ".".into());
        let bundle = std::path::absolute(&bundle)
            .map_err(|error| Error::step(format!("--bundle {}", bundle.display()), error))?;
        let mut config = Config::read(&bundle)?;
        let passed = Passed::new(&call.values)?;
        if let Some(process) = config.spec.process_mut() {
            passed.tell(process);
            if !detach {
                fit(process);
            }
        }
        let cgroup = cgroup(&call.global, &config.spec, &id)?;
        let making = Making {
            id,
            bundle,
            config,
            cgroup,
            preserve_fds: passed.count,
            waited_for: !detach,
        };
        check_console(making.terminal(), detach, &call.values)?;
        Ok(making)
    }

    fn terminal(&self) -> bool {
        let process = self.config.spec.process().as_ref();
        process.is_some_and(|process| process.terminal() == Some(true))
    }

    fn console(&self, call: &Invocation) -> Result<Option<OwnedFd>, Error> {
        let path = call.values.path("console-socket");
        Ok(path.as_deref().map(container::connect).transpose()?)
    }

    /// Makes the container and tells whoever wants to know its process. `at_once`: its program runs.
    fn make(
        self,
        call: &Invocation,
        console: Option<OwnedFd>,
        at_once: bool,
    ) -> Result<State, Error> {
        let watcher = Watcher::new(&call.values)?;
        let (dir, _only) = store::make(&call.global, &self.id)?;
        let request = CreateRequest {
            id: self.id,
            bundle: self.bundle,
            dir,
            rootfs: Rootfs::Bundle,
            cgroup: self.cgroup,
            console_socket: None,
            preserve_fds: self.preserve_fds,
            keep_keyring: call.values.has("no-new-keyring"),
            no_pivot: call.values.has("no-pivot"),
            at_once,
            dies_with_parent: self.waited_for,
        };
        let made = store::note(&request)
            .and_then(|()| Ok(container::create_from(&request, &self.config, console)?));
        let told = made.and_then(|state| match watcher.tell(state.pid) {
            Ok(()) => Ok(state),
            Err(error) => Err(also(error, container::delete(&state.dir).err())),
        });
        let state = told.map_err(|error| also(error, store::remove(&request.dir).err()))?;
        for warning in &state.warnings {
            // it is there by now, and may run: no reason to call it a failure
            let _ = log::warning(&call.global, warning);
        }
        Ok(state)
    }
}

/// An error, and what went wrong while its traces were removed.
fn also(error: Error, left: Option<impl std::fmt::Display>) -> Error {
    match left {
        None => error,
        Some(left) => Error::new(format!("{error}; {left}")),
    }
}

/// The container's cgroup. Where an ordinary user may write none, the caller is told, or refused with `--rootless false`.
fn cgroup(global: &Values, spec: &Spec, id: &str) -> Result<Cgroup, Error> {
    let linux = spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let found = Cgroup::for_container(path, global.has("systemd-cgroup"), id)
        .map_err(|error| Error::step("linux.cgroupsPath", error))?;
    if matches!(found, Cgroup::Unlimited { .. })
        && global
            .get("rootless")
            .is_some_and(|rootless| rootless == "false")
    {
        let text = found.warnings(None).join("; ");
        return Err(Error::new(text));
    }
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    for text in found.warnings(resources) {
        log::warning(global, &text)?;
    }
    Ok(found)
}

/// A terminal needs somebody who reads it, a socket for one a terminal.
pub fn check_console(terminal: bool, detach: bool, values: &Values) -> Result<(), Error> {
    let socket = values.path("console-socket").is_some();
    if terminal && detach && !socket {
        return Err(Error::new(
            "process.terminal without waiting for the process needs --console-socket",
        ));
    }
    if socket && !(terminal && detach) {
        return Err(Error::new(
            "--console-socket is for process.terminal without waiting for the process (--detach)",
        ));
    }
    Ok(())
}

/// Who wants to know the process: `--pid-file`, `--pidfd-socket`.
pub struct Watcher {
    file: Option<PathBuf>,
    socket: Option<(PathBuf, OwnedFd)>,
}

impl Watcher {
    /// Connects, before anything is made.
    pub fn new(values: &Values) -> Result<Watcher, Error> {
        let connected = |path: PathBuf| match socket::connect(&path, SOCKET_WAIT) {
            Ok(socket) => Ok((path, socket)),
            Err(error) => Err(Error::step(
                format!("connect to pidfd socket {}", path.display()),
                error,
            )),
        };
        Ok(Watcher {
            file: values.path("pid-file"),
            socket: values.path("pidfd-socket").map(connected).transpose()?,
        })
    }

    /// Tells it.
    pub fn tell(&self, pid: i32) -> Result<(), Error> {
        if let Some((path, connected)) = &self.socket {
            let sent =
                pidfd::open(pid).and_then(|pidfd| socket::send(connected, b"pidfd", Some(&pidfd)));
            sent.map_err(|error| {
                Error::step(format!("send to pidfd socket {}", path.display()), error)
            })?;
        }
        match &self.file {
            Some(path) => write_pid(path, pid),
            None => Ok(()),
        }
    }
}

/// Whoever waits for the file finds it whole.
fn write_pid(path: &Path, pid: i32) -> Result<(), Error> {
    let failed = |error| Error::step(format!("write --pid-file {}", path.display()), error);
    let path = std::path::absolute(path).map_err(failed)?;
    file::replace(&path, pid.to_string().as_bytes(), 0o644).map_err(failed)
}

/// The terminal's master, from the container's first process.
fn receive(socket: &OwnedFd) -> Result<OwnedFd, Error> {
    let (_, master) =
        socket::receive(socket).map_err(|error| Error::step("receive the terminal", error))?;
    let master = master.ok_or_else(|| Error::new("receive the terminal: there is none"))?;
    container::exact_output(&master)?;
    Ok(master)
}

/// What is not ours, with its causes.
pub fn shown(error: anyhow::Error) -> Error {
    Error::new(format!("{error:#}"))
}

/// Reads a whole file, or standard input for `-`, of less than `max` bytes.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let failed =
        |error: &dyn std::fmt::Display| Error::step(format!("read {}", path.display()), error);
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(max).read_to_end(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(max).read_to_end(&mut text))
    };
    match read {
        Ok(size) if size as u64 == max => Err(failed(&format!("it is longer than {max} bytes"))),
        Ok(_) => Ok(text),
        Err(error) => Err(failed(&error)),
    }
}
