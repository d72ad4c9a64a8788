//! `create`: from a bundle to a process that waits at the gate.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::plan::{self, Host, Plan, Step};
use super::spawn::{Child, Join, Place, spawn};
use super::{CreateRequest, Error, State, chain, config, host_mounts, idmap, life, net_devices};
use crate::cgroup::{self, Cgroup, Entry};
use crate::init::{self, gate};
use crate::sys::{process, procfs, sched, socket};

/// Room for most `config.json`, in bytes.
const CONFIG_USUAL: usize = 16 << 10;
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
    let spec = &config.spec;
    let at = |error: String| Error::step(request.bundle.join("config.json").display(), error);
    let plan = plan::container(spec, request, Host::here(spec)).map_err(at)?;
    let process = spec.process().as_ref();
    let terminal = process.and_then(|process| process.terminal()) == Some(true);
    let refused = |text: &str| Err(Error::Other(text.to_owned()));
    match (&console, terminal) {
        (None, true) => return refused("process.terminal needs a console socket"),
        (Some(_), false) => return refused("a console socket needs process.terminal"),
        _ => {}
    }
    let mut creation = Creation {
        request,
        config,
        plan: &plan,
        console,
        made: Vec::new(),
        entry: Entry::default(),
        gate: None,
        child: None,
        draft: None,
        state: None,
    };
    let made = plan
        .parent
        .iter()
        .try_for_each(|step| creation.take(step, &plan.child));
    creation.end(made)
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
        // one read(2) for most, instead of one per doubling from 32 bytes on
        let mut text = Vec::with_capacity(CONFIG_USUAL);
        let file = File::open(path).map_err(|error| failed(&error))?;
        let size = file
            .take(CONFIG_MAX)
            .read_to_end(&mut text)
            .map_err(|error| failed(&error))?;
        if size as u64 == CONFIG_MAX {
            return Err(failed(&"it is longer than 16 MiB"));
        }
        let spec = config::parse_spec(&text).map_err(|error| failed(&error))?;
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

/// What the steps leave to later ones.
struct Creation<'a> {
    request: &'a CreateRequest,
    config: &'a Config,
    plan: &'a Plan,
    console: Option<OwnedFd>,
    /// Parts of the cgroup that are ours now: nobody else was in them.
    made: Vec<&'a Cgroup>,
    /// The way into the part that was made last.
    entry: Entry,
    gate: Option<gate::Child>,
    child: Option<Child>,
    draft: Option<life::Draft>,
    /// Once the record is there.
    state: Option<State>,
}

impl<'a> Creation<'a> {
    fn take(&mut self, step: &'a Step, child_steps: &[init::plan::Step]) -> Result<(), Error> {
        let request = self.request;
        let in_dir = |what: &str, error: &dyn std::fmt::Display| {
            Error::step(format!("{what} in {}", request.dir.display()), error)
        };
        match step {
            Step::Cgroup(cgroup) => {
                make_cgroup(cgroup)?;
                self.made.push(cgroup);
                self.entry = match cgroup {
                    Cgroup::Systemd { .. } => Entry::default(),
                    _ => cgroup
                        .entry()
                        .map_err(|error| Error::step("open the cgroup", chain(&error)))?,
                };
                Ok(())
            }
            Step::NoteMounts(root) => host_mounts::note(&request.dir, root),
            Step::Begin => self.child()?.begin(&self.entry),
            Step::KeepSpec => life::keep_spec(&request.dir, &self.config.text),
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
                let join = join_files(join)?;
                let (console, gate) = (self.console.take(), self.gate.take());
                let place = Place {
                    new: *new,
                    join: join.as_ref(),
                    time_offsets: time_offsets.as_deref(),
                    entry: &std::mem::take(&mut self.entry),
                };
                let child = spawn(child_steps, &place, console, gate)?;
                // it makes its namespaces while we make its cgroup
                sched::part_from(child.pid);
                self.child = Some(child);
                Ok(())
            }
            Step::CgroupOwner(uid) => request
                .cgroup
                .give_to(*uid)
                .map_err(|error| Error::step("give the cgroup away", chain(&error))),
            Step::Unit {
                limits,
                annotations,
            } => request
                .cgroup
                .begin(self.child()?.pid, limits, annotations)
                .map_err(|error| Error::step("make a unit", chain(&error))),
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
            Step::Draft => {
                self.draft = Some(life::Draft::new(self.describe()?)?);
                Ok(())
            }
            Step::Record => {
                let draft = self.draft.take();
                let draft =
                    draft.ok_or_else(|| Error::Other("the plan has no draft".to_owned()))?;
                self.state = Some(draft.publish()?);
                Ok(())
            }
            Step::Release => self.child()?.release(),
            // it no longer dies with us once it closed the channel, on its way to the gate or by executing the program; before, our end
            // would be its end
            Step::LetGo => self.child()?.let_go(),
        }
    }

    fn describe(&self) -> Result<State, Error> {
        let (request, spec) = (self.request, &self.config.spec);
        let pid = self.child()?.pid;
        let start_time = process::start_time(pid)
            .map_err(|error| Error::step(format!("read the start time of process {pid}"), error))?;
        let root = spec.root().as_ref();
        Ok(State {
            version: life::STATE_VERSION,
            id: request.id.clone(),
            pid,
            start_time,
            bundle: request.bundle.clone(),
            dir: request.dir.clone(),
            cgroup: request.cgroup.clone(),
            created: jiff::Timestamp::now().to_string(),
            oci_version: spec.version().clone(),
            rootfs: root.map_or_else(PathBuf::new, |root| request.bundle.join(root.path())),
            owner: rustix::process::geteuid().as_raw(),
            annotations: spec.annotations().iter().flatten().map(pair).collect(),
            own_pids: plan::has_own_pids(spec),
            keep_keyring: request.keep_keyring,
            hooks: self.plan.later.clone(),
            warnings: self.plan.warnings.clone(),
        })
    }

    fn child(&self) -> Result<&Child, Error> {
        match &self.child {
            Some(child) => Ok(child),
            None => Err(Error::Other("the plan has no child yet".to_owned())),
        }
    }

    /// The record, or nothing left of what was made.
    fn end(self, made: Result<(), Error>) -> Result<State, Error> {
        let error = match (made, self.state) {
            (Ok(()), Some(state)) => return Ok(state),
            (Ok(()), None) => Error::Other("the plan makes no record".to_owned()),
            (Err(error), _) => error,
        };
        // once there was a container, its end has hooks as well (runtime.md "Lifecycle", 14)
        let later = self.plan.later.clone();
        let poststop =
            (self.child.is_some()).then(|| plan::poststop(&self.config.spec, self.request, later));
        let said = self.child.as_ref().and_then(Child::last_words);
        let ended = self.child.map(|child| child.undo());
        let error = match (said.unwrap_or(error), ended) {
            // how it ended is all that there is to tell
            (Error::Died, Some(ended)) => Error::Other(format!("{} ({ended})", Error::Died)),
            (error, _) => error,
        };
        let error = match life::remove_traces(&self.request.dir, &self.made) {
            Ok(()) => error,
            Err(left) => and_then(error, &format!("cleaning up: {left}")),
        };
        if matches!(error, Error::InUse(_)) {
            return Err(error);
        }
        Err(match poststop.and_then(|hooks| hooks.run_all()) {
            Some(failed) => and_then(error, &failed),
            None => error,
        })
    }
}

/// Makes the cgroup. One with processes is somebody else's and left alone.
fn make_cgroup(cgroup: &Cgroup) -> Result<(), Error> {
    cgroup.prepare().map_err(|error| match error {
        cgroup::Error::InUse { .. } | cgroup::Error::Frozen { .. } => {
            Error::InUse(error.to_string())
        }
        error => Error::step("make the cgroup", chain(&error)),
    })
}

/// proc_pid_oom_score_adj(5).
pub fn set_oom_score(pid: i32, score: i32) -> Result<(), Error> {
    let path = format!("{pid}/oom_score_adj");
    procfs::write(Path::new(&path), &score.to_string())
        .map_err(|error| Error::step(format!("write {score} to /proc/{path}"), error))
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

fn pair((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

/// Adds what went wrong afterwards.
fn and_then(error: Error, text: &str) -> Error {
    match error {
        Error::Other(first) => Error::Other(format!("{first}; {text}")),
        // the class of the error is what the caller acts on
        error => error,
    }
}
