//! `create`: from a bundle to a process that waits at the gate.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::Spec;

use super::plan::{self, Host, Plan};
use super::spawn::{Child, Join, Work, spawn};
use super::{CreateRequest, Error, State, chain, idmap, life};
use crate::init::gate;
use crate::sys::{process, socket};

/// Longest `config.json`, in bytes.
const CONFIG_MAX: u64 = 16 << 20;

/// Makes a container up to the start gate. Must run in a single-threaded process. Standard streams of the caller become the
/// container's. On failure nothing is left: no cgroup, no mount, no process.
pub fn create(request: &CreateRequest) -> Result<State, Error> {
    let config = Config::read(&request.bundle)?;
    let console = request.console_socket.as_deref().map(connect).transpose()?;
    create_from(request, &config, console)
}

/// [`create`] with what was read from the bundle, and with the connected console socket instead of its path.
pub fn create_from(
    request: &CreateRequest,
    config: &Config,
    console: Option<OwnedFd>,
) -> Result<State, Error> {
    if !process::is_single_threaded().map_err(|error| Error::step("count own threads", error))? {
        return Err(Error::Other(
            "create needs a process with a single thread".to_owned(),
        ));
    }
    if life::load(&request.dir)?.is_some() {
        return Err(Error::Other(format!(
            "container {} exists in {}",
            request.id,
            request.dir.display()
        )));
    }
    let at = |error: String| Error::step(request.bundle.join("config.json").display(), error);
    let plan = plan::container(&config.spec, request, host()).map_err(at)?;
    match (&console, plan.init.process.terminal.is_some()) {
        (None, true) => {
            return Err(Error::Other(
                "process.terminal needs a console socket".to_owned(),
            ));
        }
        (Some(_), false) => {
            return Err(Error::Other(
                "a console socket needs process.terminal".to_owned(),
            ));
        }
        _ => {}
    }
    prepare_cgroup(request, &plan)?;
    let made = run(request, config, &plan, console);
    made.map_err(|error| undo(request, error))
}

/// Whether we are in a user namespace ourselves: the first one maps everything onto itself.
fn host() -> Host {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let numbers: Vec<&str> = map.split_whitespace().collect();
    Host {
        user_namespace: numbers != ["0", "0", "4294967295"],
    }
}

/// A `config.json`.
#[derive(Debug)]
pub struct Config {
    /// What it says.
    pub spec: Spec,
    /// Its bytes.
    pub text: Vec<u8>,
}

impl Config {
    /// Reads and parses the bundle's.
    pub fn read(bundle: &Path) -> Result<Config, Error> {
        Config::at(&bundle.join("config.json"))
    }

    /// Reads and parses the file `path`.
    pub(super) fn at(path: &Path) -> Result<Config, Error> {
        let failed =
            |error: &dyn std::fmt::Display| Error::step(format!("read {}", path.display()), error);
        let mut text = Vec::new();
        let file = File::open(path).map_err(|error| failed(&error))?;
        let size = file
            .take(CONFIG_MAX)
            .read_to_end(&mut text)
            .map_err(|error| failed(&error))?;
        if size as u64 == CONFIG_MAX {
            return Err(failed(&"it is longer than 16 MiB"));
        }
        let spec = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        Ok(Config { spec, text })
    }
}

/// How long a console socket may keep us waiting, in seconds.
const CONSOLE_WAIT: u64 = 10;

/// Connects to a console socket. One whose backlog is full, because nobody reads it, is an error after some seconds.
pub fn connect(path: &Path) -> Result<OwnedFd, Error> {
    socket::connect(path, CONSOLE_WAIT).map_err(|error| {
        Error::step(
            format!("connect to console socket {}", path.display()),
            error,
        )
    })
}

/// Makes the cgroup with its limits. One with processes is somebody else's and left alone.
fn prepare_cgroup(request: &CreateRequest, plan: &Plan) -> Result<(), Error> {
    let cgroup = &request.cgroup;
    cgroup
        .create()
        .map_err(|error| undo(request, Error::step("make the cgroup", chain(&error))))?;
    match cgroup.processes() {
        Ok(members) if members.is_empty() => {}
        Ok(members) => {
            return Err(Error::Other(format!(
                "cgroup {cgroup:?} is in use by {} processes",
                members.len()
            )));
        }
        Err(error) => {
            return Err(undo(
                request,
                Error::step("look into the cgroup", chain(&error)),
            ));
        }
    }
    let Some(resources) = &plan.resources else {
        return Ok(());
    };
    cgroup
        .apply(resources)
        .map_err(|error| undo(request, Error::step("set the limits", chain(&error))))
}

/// Clones, sets up, writes the state, releases.
fn run(
    request: &CreateRequest,
    config: &Config,
    plan: &Plan,
    console: Option<OwnedFd>,
) -> Result<State, Error> {
    let in_dir = |what: &str, error: &dyn std::fmt::Display| {
        Error::step(format!("{what} in {}", request.dir.display()), error)
    };
    let cgroup = request
        .cgroup
        .open()
        .map_err(|error| Error::step("open the cgroup", chain(&error)))?;
    let join = join_files(&plan.joins)?;
    let gate = gate::make(&request.dir).map_err(|error| in_dir("make the start gate", &error))?;
    let child = spawn(
        Work::Init(&plan.init),
        plan.new,
        join.as_ref(),
        cgroup.as_ref(),
        console,
        Some(gate),
    )?;
    let made = || {
        if cgroup.is_none() {
            request
                .cgroup
                .attach(child.pid)
                .map_err(|error| Error::step("enter the cgroup", chain(&error)))?;
        }
        idmap::write(child.pid, &plan.uid_map, &plan.gid_map)?;
        if let Some(score) = plan.oom_score_adj {
            let path = format!("/proc/{}/oom_score_adj", child.pid);
            fs::write(&path, score.to_string())
                .map_err(|error| Error::step(format!("write {score} to {path}"), error))?;
        }
        child.set_up()?;
        life::keep_spec(&request.dir, &config.text)?;
        let state = describe(request, &config.spec, plan, &child)?;
        life::store(&request.dir, &state)?;
        child.release()?;
        // it no longer dies with us once it closed the channel; before, our end would be its end
        child.let_go()?;
        Ok(state)
    };
    made().map_err(|error| match error {
        // how it ended is all that there is to tell
        Error::Died => Error::Other(format!("{error} ({})", child.undo())),
        other => {
            child.undo();
            other
        }
    })
}

/// Opens the namespaces to be joined.
fn join_files(joins: &[(u64, std::path::PathBuf)]) -> Result<Option<Join>, Error> {
    if joins.is_empty() {
        return Ok(None);
    }
    let files = joins.iter().map(|(flag, path)| {
        let name = path.display().to_string();
        let file = File::open(path)
            .map_err(|error| Error::step(format!("open namespace {name}"), error))?;
        Ok((*flag, name, file.into()))
    });
    Ok(Some(Join::Files(files.collect::<Result<_, Error>>()?)))
}

fn describe(
    request: &CreateRequest,
    spec: &Spec,
    plan: &Plan,
    child: &Child,
) -> Result<State, Error> {
    let start_time = process::start_time(child.pid).map_err(|error| {
        Error::step(
            format!("read the start time of process {}", child.pid),
            error,
        )
    })?;
    Ok(State {
        version: life::STATE_VERSION,
        id: request.id.clone(),
        pid: child.pid,
        start_time,
        bundle: request.bundle.clone(),
        dir: request.dir.clone(),
        cgroup: request.cgroup.clone(),
        created: jiff::Timestamp::now().to_string(),
        oci_version: spec.version().clone(),
        rootfs: plan.init.rootfs.path.clone(),
        owner: rustix::process::geteuid().as_raw(),
        annotations: spec.annotations().iter().flatten().map(pair).collect(),
        own_pids: plan.new & libc::CLONE_NEWPID as u64 != 0,
    })
}

fn pair((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

/// Removes what a failed create left; what could not be removed is added to the error.
fn undo(request: &CreateRequest, error: Error) -> Error {
    match (life::remove_traces(&request.dir, &request.cgroup), error) {
        (Ok(()), error) => error,
        (Err(left), Error::Other(text)) => Error::Other(format!("{text}; cleaning up: {left}")),
        // the class of the error is what the caller acts on
        (Err(_), error) => error,
    }
}
