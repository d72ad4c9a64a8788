//! `create`: from a bundle to a process that waits at the gate.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::Spec;

use super::plan::{self, Host, LaterHooks, Step};
use super::spawn::{Child, Join, Place, spawn};
use super::{CreateRequest, Error, State, chain, config, idmap, life, net_devices};
use crate::cgroup::Cgroup;
use crate::init::hooks::Point;
use crate::init::{self, gate};
use crate::sys::{process, socket};

/// Longest `config.json`, in bytes.
const CONFIG_MAX: u64 = 16 << 20;

/// Makes a container up to the start gate. Must run in a single-threaded process. Standard streams of the caller become the
/// container's. On failure nothing is left: no cgroup, no mount, no process.
pub fn create(request: &CreateRequest) -> Result<State, Error> {
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
    let spec = load_spec(&request.bundle)?;
    let at = |error: String| Error::step(request.bundle.join("config.json").display(), error);
    let plan = plan::container(&spec, request, host()).map_err(at)?;
    let terminal = spec
        .process()
        .as_ref()
        .and_then(|process| process.terminal())
        == Some(true);
    let console = connect_console(request.console_socket.as_deref(), terminal)?;
    let mut creation = Creation {
        request,
        spec: &spec,
        later: &plan.later,
        console,
        gate: None,
        child: None,
    };
    let made = plan
        .parent
        .iter()
        .try_for_each(|step| creation.take(step, &plan.child));
    creation.end(made)
}

/// The socket that the terminal's master goes to.
fn connect_console(path: Option<&Path>, terminal: bool) -> Result<Option<OwnedFd>, Error> {
    let refused = |text: &str| Err(Error::Other(text.to_owned()));
    match (path, terminal) {
        (None, true) => refused("process.terminal needs a console socket"),
        (Some(_), false) => refused("a console socket needs process.terminal"),
        (None, false) => Ok(None),
        (Some(path), true) => {
            let connected = socket::connect(path);
            Ok(Some(connected.map_err(|error| {
                Error::step(
                    format!("connect to console socket {}", path.display()),
                    error,
                )
            })?))
        }
    }
}

/// Whether we are in a user namespace ourselves: the first one maps everything onto itself.
fn host() -> Host {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let numbers: Vec<&str> = map.split_whitespace().collect();
    Host {
        user_namespace: numbers != ["0", "0", "4294967295"],
    }
}

/// Reads and parses `config.json`.
pub fn load_spec(bundle: &Path) -> Result<Spec, Error> {
    let path = bundle.join("config.json");
    let failed =
        |error: &dyn std::fmt::Display| Error::step(format!("read {}", path.display()), error);
    let mut text = Vec::new();
    let file = File::open(&path).map_err(|error| failed(&error))?;
    let size = file
        .take(CONFIG_MAX)
        .read_to_end(&mut text)
        .map_err(|error| failed(&error))?;
    if size as u64 == CONFIG_MAX {
        return Err(failed(&"it is longer than 16 MiB"));
    }
    config::parse_spec(&text).map_err(|error| failed(&error))
}

/// What the steps leave to later ones.
struct Creation<'a> {
    request: &'a CreateRequest,
    spec: &'a Spec,
    later: &'a LaterHooks,
    console: Option<OwnedFd>,
    gate: Option<gate::Child>,
    child: Option<Made>,
}

/// The child, and its record once that is written.
struct Made {
    child: Child,
    state: Option<State>,
}

impl Creation<'_> {
    fn take(&mut self, step: &Step, child_steps: &[init::plan::Step]) -> Result<(), Error> {
        let request = self.request;
        let in_dir = |what: &str, error: &dyn std::fmt::Display| {
            Error::step(format!("{what} in {}", request.dir.display()), error)
        };
        match step {
            Step::Cgroup(cgroup) => make_cgroup(cgroup),
            Step::Limits(resources) => request
                .cgroup
                .apply(resources)
                .map_err(|error| Error::step("set the limits", chain(&error))),
            Step::Gate => {
                let made = gate::make(&request.dir);
                self.gate = Some(made.map_err(|error| in_dir("make the start gate", &error))?);
                Ok(())
            }
            Step::Clone {
                new,
                join,
                time_offsets,
            } => {
                let cgroup = request
                    .cgroup
                    .open()
                    .map_err(|error| Error::step("open the cgroup", chain(&error)))?;
                let join = join_files(join)?;
                let (console, gate) = (self.console.take(), self.gate.take());
                let place = Place {
                    new: *new,
                    join: join.as_ref(),
                    time_offsets: time_offsets.as_deref(),
                    cgroup: cgroup.as_ref(),
                };
                let child = spawn(child_steps, &place, console, gate)?;
                self.child = Some(Made { child, state: None });
                Ok(())
            }
            Step::EnterCgroup => request
                .cgroup
                .attach(self.child()?.pid)
                .map_err(|error| Error::step("enter the cgroup", chain(&error))),
            Step::MapIds { uids, gids } => idmap::write(self.child()?.pid, uids, gids),
            Step::NetDevices(devices) => net_devices::move_all(devices, self.child()?.pid),
            Step::OomScore(score) => set_oom_score(self.child()?.pid, *score),
            Step::Mount => self.child()?.mount(),
            Step::Hooks(hooks) => Ok(hooks.run(Some(self.child()?.pid))?),
            Step::Listen(listener) => {
                let child = self.child()?;
                listener.send(child.pid, child.pid, &child.load_filter()?)
            }
            Step::SetUp => self.child()?.set_up().map(drop),
            Step::Record => {
                let child = self.child()?;
                let state = self.describe(child.pid, start_time(child)?);
                life::store(&request.dir, &state)?;
                if let Some(made) = &mut self.child {
                    made.state = Some(state);
                }
                Ok(())
            }
            Step::Release => {
                let child = self.child()?;
                child.release()?;
                // it no longer dies with us once it closed the channel; before, our end would be its end
                child.let_go()
            }
        }
    }

    fn child(&self) -> Result<&Child, Error> {
        match &self.child {
            Some(made) => Ok(&made.child),
            None => Err(Error::Other("the plan has no child yet".to_owned())),
        }
    }

    /// The record, or nothing left of what was made.
    fn end(mut self, made: Result<(), Error>) -> Result<State, Error> {
        let child = self.child.take();
        // once there was a container, its end has hooks as well (runtime.md "Lifecycle", 14)
        let poststop = (child.is_some() && !self.later.poststop.is_empty())
            .then(|| self.describe(0, 0).hooks(Point::Poststop));
        let error = match (made, child) {
            (
                Ok(()),
                Some(Made {
                    state: Some(state), ..
                }),
            ) => return Ok(state),
            (Ok(()), _) => Error::Other("the plan makes no record".to_owned()),
            // how it ended is all that there is to tell
            (Err(Error::Died), Some(made)) => {
                Error::Other(format!("{} ({})", Error::Died, made.child.undo()))
            }
            (Err(error), made) => {
                if let Some(made) = made {
                    made.child.undo();
                }
                error
            }
        };
        // a cgroup with members is somebody else's
        if matches!(error, Error::InUse(_)) {
            return Err(error);
        }
        let error = undo(self.request, error);
        Err(match poststop.and_then(|hooks| hooks.run_all()) {
            Some(failed) => and_then(error, &failed),
            None => error,
        })
    }

    fn describe(&self, pid: i32, start_time: u64) -> State {
        let request = self.request;
        let annotations = self.spec.annotations().clone().unwrap_or_default();
        State {
            version: life::STATE_VERSION,
            id: request.id.clone(),
            pid,
            start_time,
            bundle: request.bundle.clone(),
            dir: request.dir.clone(),
            cgroup: request.cgroup.clone(),
            created: jiff::Timestamp::now().to_string(),
            oci_version: self.spec.version().clone(),
            annotations: annotations.into_iter().collect(),
            hooks: self.later.clone(),
        }
    }
}

/// Makes the cgroup. One with processes is somebody else's and left alone.
fn make_cgroup(cgroup: &Cgroup) -> Result<(), Error> {
    cgroup
        .create()
        .map_err(|error| Error::step("make the cgroup", chain(&error)))?;
    let members = cgroup
        .processes()
        .map_err(|error| Error::step("look into the cgroup", chain(&error)))?;
    if members.is_empty() {
        return Ok(());
    }
    Err(Error::InUse(format!(
        "cgroup {cgroup:?} is in use by {} processes",
        members.len()
    )))
}

/// proc_pid_oom_score_adj(5).
pub fn set_oom_score(pid: i32, score: i32) -> Result<(), Error> {
    let path = format!("/proc/{pid}/oom_score_adj");
    fs::write(&path, score.to_string())
        .map_err(|error| Error::step(format!("write {score} to {path}"), error))
}

/// Opens the namespaces to be joined.
fn join_files(joins: &[plan::Join]) -> Result<Option<Join>, Error> {
    if joins.is_empty() {
        return Ok(None);
    }
    let files = joins.iter().map(|join| {
        let name = join.path.display().to_string();
        let file = File::open(&join.path)
            .map_err(|error| Error::step(format!("open namespace {name}"), error))?;
        Ok((join.kind, name, file.into()))
    });
    Ok(Some(Join::Files(files.collect::<Result<_, Error>>()?)))
}

fn start_time(child: &Child) -> Result<u64, Error> {
    process::start_time(child.pid).map_err(|error| {
        Error::step(
            format!("read the start time of process {}", child.pid),
            error,
        )
    })
}

/// Removes what a failed create left; what could not be removed is added to the error.
fn undo(request: &CreateRequest, error: Error) -> Error {
    match life::remove_traces(&request.dir, &request.cgroup) {
        Ok(()) => error,
        Err(left) => and_then(error, &format!("cleaning up: {left}")),
    }
}

/// Adds what went wrong afterwards.
fn and_then(error: Error, text: &str) -> Error {
    match error {
        Error::Other(first) => Error::Other(format!("{first}; {text}")),
        // the class of the error is what the caller acts on
        error => error,
    }
}
