//! The supervisor: turns what happens to a pod's services into what is done about it, one event at a time.
//!
//! Single-threaded; it never clones: containers are made by short processes of our own. *Invariants:* a status is on
//! disk before anybody is told of it and before anything is done that follows from it; what cannot be written is tried again;
//! a supervisor that starts finds in the pod's folder all it needs to go on where the last one was killed.

mod clients;
mod hooks;
mod live;
pub mod machine;
mod owner;
pub mod probe;
mod pump;
mod sinks;
mod terminal;
mod work;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::clients::{Client, Clients};
use self::hooks::Hooks;
use self::machine::{Action, Facts, Input, Machine};
use self::probe::Probes;
use self::pump::{Pumps, Readers};
use self::sinks::Sinks;
use super::control::{Answer, Request};
use super::hooks::View;
use super::layout::PodDir;
use super::ports::{self, Reservation};
use super::record::{
    self, Cause, Failure, Goal, Phase, Pod, ProcessId, PublishedPort, Sandbox, Status, Verdict,
};
use super::stores::{Store, Stores};
use super::{Error, Result, checks, gc, lock, plan, resolver, sandbox, teardown, volumes};
use crate::container;

/// Pause before what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What reaches the loop.
enum Event {
    Service(String, Input),
    Note(String, String),
    Client(Request, Client),
    /// The process of a hook ended.
    Hook(Result<()>),
    /// What could not be written is due again.
    Again,
}

/// What tasks need; shared. Of the record nothing changes; what the kernel has of networks and ports does.
struct Context {
    dir: PodDir,
    pod: Pod,
    sandbox: Rc<RefCell<Sandbox>>,
    /// Sockets that hold published ports.
    ports: RefCell<Reservation>,
    /// One change of networks at a time.
    changing: tokio::sync::Mutex<()>,
    events: mpsc::UnboundedSender<Event>,
    pumps: BTreeMap<String, Pumps>,
    sinks: Rc<Sinks>,
    stores: Stores,
    probes: Probes,
}

impl Context {
    fn send(&self, service: &str, input: Input) {
        // the loop is gone only when the process ends
        let _ = self.events.send(Event::Service(service.to_string(), input));
    }

    fn note(&self, service: &str, text: String) {
        let _ = self.events.send(Event::Note(service.to_string(), text));
    }
}

/// Runs the supervisor of a pod to its end.
pub fn run(dir: &Path, stores: Stores) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("start in", dir))?;
    tokio::task::LocalSet::new().block_on(&runtime, supervise(dir, stores))
}

async fn supervise(dir: &Path, stores: Stores) -> Result<()> {
    // the keeper blocks signals and a child inherits that: SIGTERM must reach us, plugins expect nothing blocked
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .map_err(|errno| Error::io("unblock signals in", dir)(errno.into()))?;
    let pod: Pod = record::read(&dir.join("pod.json"))?
        .ok_or_else(|| Error::Other(format!("no pod in {}", dir.display())))?;
    let dir = PodDir::open(dir, &pod.root);
    // one whose keeper was killed may still be at it
    let _only = lock::acquire(&dir.supervisor_lock())?;
    record::put(&dir.supervisor(), &ProcessId::own()?)?;
    let (events, mut inbox) = mpsc::unbounded_channel();
    // what has to be there is opened before anybody is told that we are
    let notes = events.clone();
    let sinks = Rc::new(Sinks::start(&dir, &pod, move |text| {
        let _ = notes.send(Event::Note(String::new(), text));
    })?);
    let pumps = open_pumps(&dir, &pod, &sinks, &events)?;
    clients::listen(&dir.socket(), events.clone())?;

    let (sandbox, reservation, failure) = match set_up(&dir, &pod).await {
        Ok((sandbox, reservation)) => (sandbox, reservation, None),
        Err(error) => {
            let failure = Failure {
                code: 125,
                message: error.to_string(),
            };
            (Sandbox::default(), Reservation::default(), Some(failure))
        }
    };
    let context = Rc::new(Context {
        dir,
        pod,
        sandbox: Rc::new(RefCell::new(sandbox)),
        ports: RefCell::new(reservation),
        changing: tokio::sync::Mutex::new(()),
        events,
        pumps,
        sinks,
        stores,
        probes: Probes::default(),
    });
    if failure.is_none() {
        live::resume(&context).await;
        let notes = context.clone();
        resolver::start(
            &context.pod,
            &context.sandbox,
            context.dir.netns(),
            move |text| notes.note("", text),
        );
    }
    let mut supervisor = Supervisor::new(context, failure)?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(Error::io("watch", dir_of(&supervisor)))?;
    let mut quitting = false;
    let owner = supervisor.context.pod.owner.clone();
    let mut orphaned = std::pin::pin!(owner::ended(owner));
    let mut end = owner::End::default();
    supervisor.settle();
    loop {
        tokio::select! {
            event = inbox.recv() => match event {
                Some(Event::Client(Request::Quit, client)) => {
                    client.send(&Answer::Done { exit_codes: Vec::new() });
                    client.finish().await;
                    supervisor.clients.farewell().await;
                    return Ok(());
                }
                Some(event) => supervisor.handle(event),
                None => return Ok(()),
            },
            () = &mut orphaned, if !end.begun() => supervisor.end_with_owner(&mut end),
            () = end.next() => supervisor.end_with_owner(&mut end),
            // the machine goes down: in order, then leave
            _ = terminate.recv() => {
                supervisor.stop_all();
                quitting = true;
            }
        }
        supervisor.settle();
        if end.begun() && supervisor.at_rest() && !end.over() {
            supervisor.remove(&mut end);
        }
        if quitting && supervisor.at_rest() {
            return Ok(());
        }
    }
}

fn dir_of(supervisor: &Supervisor) -> &Path {
    &supervisor.context.dir.dir
}

/// Ports, volumes, network and cgroup: each only when an earlier supervisor has not done it.
async fn set_up(dir: &PodDir, pod: &Pod) -> Result<(Sandbox, Reservation)> {
    let reservation = match record::read::<Vec<PublishedPort>>(&dir.ports())? {
        Some(ports) => ports::hold(&ports),
        None => {
            let (ports, reservation) = ports::reserve(&pod.project)?;
            record::put(&dir.ports(), &ports)?;
            reservation
        }
    };
    if let Some(sandbox) = record::read(&dir.sandbox())? {
        return Ok((sandbox, reservation));
    }
    let error_file = dir.dir.join("error.json");
    if volumes::any(pod) {
        work::step(&["volumes-up".as_ref(), dir.dir.as_os_str()], &error_file).await?;
    }
    if pod.project.on_host() {
        // there is no namespace to enter, nor anything to wait for
        sandbox::up(&dir.dir)?;
    } else {
        work::step(&["sandbox-up".as_ref(), dir.dir.as_os_str()], &error_file).await?;
    }
    let sandbox = record::read(&dir.sandbox())?
        .ok_or_else(|| Error::Other(format!("no sandbox in {}", dir.dir.display())))?;
    Ok((sandbox, reservation))
}

fn open_pumps(
    dir: &PodDir,
    pod: &Pod,
    sinks: &Rc<Sinks>,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<BTreeMap<String, Pumps>> {
    let mut pumps = BTreeMap::new();
    for (name, service) in &pod.project.services {
        let logging = service.logging.unwrap_or_else(|| pod.logging());
        let readers = sinks.has(name).then(|| Readers {
            service: name.clone(),
            sinks: sinks.clone(),
        });
        let (events, service) = (events.clone(), name.clone());
        let failed = move |text: String| {
            let _ = events.send(Event::Note(service.clone(), text));
        };
        pumps.insert(
            name.clone(),
            Pumps::start(&dir.service(name), logging, readers, failed)?,
        );
    }
    Ok(pumps)
}

struct Supervisor {
    context: Rc<Context>,
    machine: Machine,
    /// What is on disk.
    saved: BTreeMap<String, Status>,
    /// Decided, by service and generation, and not done before what it follows from is on disk, unless it may be done twice.
    waiting: Vec<(String, u64, Action)>,
    /// What could not be written the last time and why, by service.
    unwritten: BTreeSet<(String, String)>,
    /// [`Event::Again`] is on its way.
    again: bool,
    /// As on disk.
    verdict: Option<Verdict>,
    clients: Clients,
    hooks: Hooks,
    /// Set-up failed: nothing can be started.
    failure: Option<Failure>,
}

impl Supervisor {
    /// Reads the statuses, adopts what runs, and begins with what is wanted.
    fn new(context: Rc<Context>, failure: Option<Failure>) -> Result<Supervisor> {
        let mut services = BTreeMap::new();
        let mut saved = BTreeMap::new();
        let mut fresh = Vec::new();
        for (name, service) in &context.pod.project.services {
            let image = context.pod.images.get(name).cloned().unwrap_or_default();
            let facts = Facts {
                depends_on: service.depends_on.clone(),
                restart: service.restart,
                checks: checks::of(service, &image.config),
                stop_signal: plan::stop_signal(service, &image.config).map_err(Error::Other)?,
                grace: service.stop_grace_period,
                post_start: !service.post_start.is_empty(),
                pre_stop: !service.pre_stop.is_empty(),
            };
            let path = context.dir.service(name).status();
            let status = record::read::<Status>(&path)?;
            if let Some(status) = &status {
                saved.insert(name.clone(), status.clone());
            } else {
                fresh.push(name.clone());
            }
            services.insert(name.clone(), (facts, status.unwrap_or_default()));
        }
        let mut supervisor = Supervisor {
            machine: Machine::new(services, context.pod.policy),
            verdict: record::read(&context.dir.verdict())?,
            hooks: Hooks::load(&context)?,
            context,
            saved,
            waiting: Vec::new(),
            unwritten: BTreeSet::new(),
            again: false,
            clients: Clients::default(),
            failure,
        };
        if supervisor.failure.is_none() {
            supervisor.machine.resume(jiff::Timestamp::now());
            supervisor.adopt();
            let start = supervisor.context.pod.start.clone();
            supervisor.machine.begin(&start, &fresh);
        }
        Ok(supervisor)
    }

    /// After a kill: every service is where the kernel says it is, not where the record says.
    fn adopt(&mut self) {
        let names: Vec<String> = self.context.pod.project.services.keys().cloned().collect();
        for name in names {
            let Some(status) = self.machine.status(&name).cloned() else {
                continue;
            };
            match status.phase {
                Phase::Running | Phase::Starting => {
                    work::adopt(&self.context, &name, &status);
                }
                _ => {}
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Service(name, input) => self.machine.input(&name, input),
            Event::Note(name, text) => self.note(&name, &text),
            Event::Client(request, client) => self.request(request, client),
            Event::Hook(done) => match self.hooks.ended(&self.context, done) {
                // it is in the events already
                Ok(text) => text.iter().for_each(|text| self.clients.progress("", text)),
                Err(error) => self.note("", &error.to_string()),
            },
            Event::Again => self.again = false,
        }
    }

    /// Carries out what the machine decided, saves what changed, then answers who waits.
    fn settle(&mut self) {
        // what a hook's end sets free is done at once
        while self.step() {}
        // where nothing can run, nothing has to be known of it
        if self.unwritten.is_empty() || self.failure.is_some() {
            let hooks = (self.hooks.busy(), self.hooks.failure());
            self.clients
                .answer(&self.machine, self.failure.as_ref(), hooks);
        }
    }

    /// Gives whether there may be more to do.
    fn step(&mut self) -> bool {
        if self.hooks.failure().is_some() {
            self.stop_for(Cause::Hook);
        }
        self.machine.hold(self.hooks.holds());
        for (name, action) in self.machine.take_actions() {
            if let Action::Note(text) = &action {
                self.note(&name, text);
            }
            let generation = self.machine.generation(&name);
            self.waiting.push((name, generation, action));
        }
        let mut unwritten = self.write();
        let whole = unwritten.is_empty();
        for (name, generation, action) in std::mem::take(&mut self.waiting) {
            // the run that it was meant for may have ended meanwhile
            if generation != self.machine.generation(&name) {
                continue;
            }
            if whole || action.is_repeatable() {
                work::perform(&self.context, &name, generation, action);
            } else {
                self.waiting.push((name, generation, action));
            }
        }
        if whole {
            unwritten.extend(self.judge().err().map(|e| (String::new(), e.to_string())));
        }
        self.try_again(unwritten);
        if !self.unwritten.is_empty() {
            return false;
        }
        let view = View {
            broken: self.failure.is_some(),
            ..View::of(self.machine.statuses().map(|(_, status)| status))
        };
        self.hooks
            .advance(&self.context, view)
            .unwrap_or_else(|error| {
                self.note("", &error.to_string());
                false
            })
    }

    /// Puts on disk what there is to know before anything is done; gives what could not be.
    fn write(&mut self) -> BTreeSet<(String, String)> {
        let starts = |(_, _, action): &(_, _, Action)| *action == Action::Start;
        if self.waiting.iter().any(starts)
            && let Err(error) = self.hooks.begin(&self.context)
        {
            // nor is it known that they are to start: a successor would go on with that
            return BTreeSet::from([(String::new(), error.to_string())]);
        }
        let mut unwritten = BTreeSet::new();
        let names: Vec<String> = self.context.pod.project.services.keys().cloned().collect();
        for name in names {
            if let Err(error) = self.save(&name) {
                unwritten.insert((name, error.to_string()));
            }
        }
        unwritten
    }

    /// Tells what could not be written, once, and has it tried again.
    fn try_again(&mut self, unwritten: BTreeSet<(String, String)>) {
        for (name, why) in unwritten.difference(&self.unwritten) {
            self.note(name, &format!("{why}; trying again"));
        }
        self.unwritten = unwritten;
        if !self.unwritten.is_empty() && !self.again {
            self.again = true;
            let events = self.context.events.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(AGAIN).await;
                let _ = events.send(Event::Again);
            });
        }
    }

    fn save(&mut self, name: &str) -> Result<()> {
        let Some(status) = self.machine.status(name) else {
            return Ok(());
        };
        if self.saved.get(name) != Some(status) {
            record::put(&self.context.dir.service(name).status(), status)?;
            self.saved.insert(name.to_string(), status.clone());
            self.clients.status(name, status);
        }
        Ok(())
    }

    /// Writes the verdict of a pod that has come to rest, then tells it; takes back that of one which goes on.
    fn judge(&mut self) -> Result<()> {
        let verdict = match &self.failure {
            Some(failure) => Some(no_sandbox(failure)),
            None => self
                .machine
                .verdict()
                .map(|verdict| match self.hooks.failure() {
                    Some(text) => Verdict {
                        service: None,
                        cause: Cause::Hook,
                        exit_code: None,
                        signal: None,
                        message: text.to_string(),
                        ..verdict
                    },
                    None => verdict,
                }),
        };
        if verdict == self.verdict {
            return Ok(());
        }
        let path = self.context.dir.verdict();
        match &verdict {
            Some(verdict) => record::put(&path, verdict)?,
            None => remove_stale(&path)?,
        }
        if let Some(verdict) = &verdict {
            self.note("", &verdict.message);
            self.clients.verdict(verdict);
        }
        self.verdict = verdict;
        Ok(())
    }

    /// One line in the pod's events and to every client that waits.
    fn note(&self, service: &str, text: &str) {
        self.clients.progress(service, text);
        // an event that cannot be written is still told to the clients
        let _ = record::event(&self.context.dir.events(), service, text);
    }

    fn request(&mut self, request: Request, client: Client) {
        let all = |services: Vec<String>| {
            if services.is_empty() {
                self.context.pod.project.services.keys().cloned().collect()
            } else {
                services
            }
        };
        let seconds = |timeout: Option<u64>| timeout.map(Duration::from_secs);
        if let Some(unknown) = request
            .services()
            .iter()
            .find(|s| self.machine.status(s).is_none())
        {
            let pod = &self.context.pod.project.name;
            client.send(&Answer::failed(format!(
                "pod {pod} has no service {unknown}"
            )));
            return;
        }
        if let Some(failure) = &self.failure
            && !matches!(
                request,
                Request::Up { .. }
                    | Request::Ping
                    | Request::Stop { .. }
                    | Request::Kill { .. }
                    | Request::Wait { .. }
                    | Request::Watch
            )
        {
            // there is nothing to do it in
            let Failure { code, message } = failure.clone();
            client.send(&Answer::Failed {
                code,
                message,
                service: None,
            });
            return;
        }
        match request {
            Request::Up { healthy } => self.clients.until_up(client, healthy),
            Request::Start { services, healthy } => {
                self.machine.start(&all(services));
                self.clients.until_up(client, healthy);
            }
            Request::Stop { services, timeout } => {
                if services.is_empty() {
                    self.clients.refuse_up("stopped by another command");
                }
                let services = all(services);
                self.machine
                    .stop(&services, seconds(timeout), Cause::Stopped);
                self.clients.until_stopped(client, services);
            }
            Request::Restart { services, timeout } => {
                self.machine.restart(&all(services), seconds(timeout));
                self.clients.until_up(client, false);
            }
            Request::Kill { services, signal } => {
                if let Some(name) = services.iter().find(|s| !self.runs(s)) {
                    let text = format!("service {name} is not running");
                    client.send(&Answer::failed(text));
                    return;
                }
                let running: Vec<String> =
                    all(services).into_iter().filter(|s| self.runs(s)).collect();
                if signal == libc::SIGKILL {
                    self.machine.killed(&running);
                }
                let answer = self.send_signal(&running, signal);
                client.send(&answer);
            }
            Request::Snooze { services, seconds } => {
                let length = Duration::from_secs(seconds);
                let until = jiff::Timestamp::now()
                    .checked_add(length)
                    .unwrap_or(jiff::Timestamp::MAX);
                self.machine
                    .snooze(&all(services), length, &until.to_string());
                client.send(&Answer::Done {
                    exit_codes: Vec::new(),
                });
            }
            Request::Wait { services } => self.clients.until_idle(client, all(services)),
            Request::Attach { .. }
            | Request::Detach { .. }
            | Request::Publish { .. }
            | Request::Unpublish { .. } => live::perform(&self.context, request, client),
            Request::Input { service } => match self.input(&service) {
                Ok(fd) => client.send_with(
                    &Answer::Done {
                        exit_codes: Vec::new(),
                    },
                    fd,
                ),
                Err(message) => client.send(&Answer::failed(message)),
            },
            Request::EndInput { service } => client.send(&self.end_input(&service)),
            Request::Ping => client.send(&Answer::Done {
                exit_codes: Vec::new(),
            }),
            Request::Watch => self
                .clients
                .watch(client, &self.saved, self.verdict.as_ref()),
            Request::Quit => {}
        }
    }

    /// Sends a signal to all of them, whatever becomes of one.
    fn send_signal(&mut self, services: &[String], signal: i32) -> Answer {
        let mut failures = Vec::new();
        for name in services {
            let dir = self.context.dir.service(name).dir;
            let done = match self.save(name) {
                Ok(()) => container::kill(&dir, signal, false).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = done
                && !has_ended(&dir)
            {
                failures.push(format!("kill {name}: {error}"));
            }
        }
        if !failures.is_empty() {
            return Answer::failed(failures.join("; "));
        }
        Answer::Done {
            exit_codes: Vec::new(),
        }
    }

    /// What a service's standard input is written to.
    fn input(&self, service: &str) -> std::result::Result<OwnedFd, String> {
        let Some(store) = self.context.stores.get(service) else {
            return Err(format!(
                "service {service} has neither a terminal nor an open standard input; `tty: true` or `stdin_open: true` gives it one"
            ));
        };
        if !self.runs(service) {
            return Err(format!("service {service} is not running"));
        }
        match store.look() {
            Ok(Some(fd)) => Ok(fd),
            Ok(None) => Err(format!("the standard input of service {service} has ended")),
            Err(error) => Err(format!("find the input of service {service}: {error}")),
        }
    }

    fn end_input(&self, service: &str) -> Answer {
        let services = &self.context.pod.project.services;
        if services.get(service).is_some_and(|service| service.tty) {
            return Answer::failed(format!(
                "service {service} has a terminal, whose input ends with the character EOT"
            ));
        }
        let cleared = self.context.stores.get(service).map(Store::clear);
        match cleared {
            Some(Err(error)) => {
                Answer::failed(format!("end the input of service {service}: {error}"))
            }
            _ => Answer::Done {
                exit_codes: Vec::new(),
            },
        }
    }

    /// There is a process to send signals to.
    fn runs(&self, service: &str) -> bool {
        let phase = self.machine.status(service).map(|status| status.phase);
        matches!(phase, Some(Phase::Running | Phase::Stopping))
    }

    fn stop_all(&mut self) {
        self.stop_for(Cause::Stopped);
    }

    /// Wants every service stopped that is not to stop already.
    fn stop_for(&mut self, why: Cause) {
        let wanted = |status: &Status| status.goal != Goal::Stop;
        let all = self.machine.statuses().filter(|(_, s)| wanted(s));
        let all: Vec<String> = all.map(|(name, _)| name.to_string()).collect();
        self.machine.stop(&all, None, why);
    }

    /// One step on the way: asked to end, killed, removed.
    fn end_with_owner(&mut self, end: &mut owner::End) {
        let all: Vec<String> = self.context.pod.project.services.keys().cloned().collect();
        match end.step() {
            owner::Step::Stop => {
                self.note("", "the pod's owner ended: it is stopped and removed");
                if let Err(error) = gc::mark(&self.context.dir) {
                    self.note("", &error.to_string());
                }
                self.clients.refuse_up("the pod's owner ended");
                self.machine.stop(&all, None, Cause::Owner);
            }
            owner::Step::Kill => self.machine.stop(&all, Some(Duration::ZERO), Cause::Owner),
            owner::Step::Remove => self.remove(end),
        }
    }

    /// Has the pod removed, and this process with it.
    fn remove(&mut self, end: &mut owner::End) {
        end.done();
        if let Err(error) = teardown::hand_over(&self.context.dir) {
            // `sampan gc` goes on from here
            self.note("", &error.to_string());
        }
    }

    fn at_rest(&self) -> bool {
        self.hooks.at_rest()
            && self
                .machine
                .statuses()
                .all(|(_, status)| status.goal == Goal::Stop && !status.phase.active())
    }
}

/// There is no first process any more: that it ended is about to be known.
fn has_ended(dir: &Path) -> bool {
    match container::load(dir) {
        Ok(Some(state)) => container::status(&state) == container::Status::Stopped,
        Ok(None) => true,
        Err(_) => false,
    }
}

/// The verdict on a pod that has nothing to run in.
fn no_sandbox(failure: &Failure) -> Verdict {
    Verdict {
        version: record::VERSION,
        service: None,
        cause: Cause::NotStarted,
        exit_code: None,
        signal: None,
        message: failure.message.clone(),
        finished: String::new(),
    }
}

/// The socket of a supervisor that was killed is in the way of the next one.
fn remove_stale(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
