//! The real executor: one loop that carries out what the machine decides.
//!
//! *Invariants:* it has one thread and dies with the shim; a launch is written down before anything follows from it; at most
//! `LAUNCHES` pods are made at once, the others wait in the agent's order; none that is to be removed waits for one that is made.
//!
//! Leaves to others: every decision ([`super::machine`], [`super::session`]).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::connection::Agent;
use super::environment::Environment;
use super::launch::{self, Line};
use super::ledger::{self, Executor, Ledger};
use super::machine::{Action, Input, Machine, NotStarted, Now};
use super::proto::{Call, Encoding, ExecutorId, FrameworkId, TaskState, call};
use super::session::{self, Patience};
use super::task::output::Bound;
use super::{message, pods, shim};
use crate::executor::remote::{Doors, Listen};
use crate::pod::control::{Answer, Request};
use crate::pod::layout::{Folders, PodDir};
use crate::pod::record::{self, Cause, ProcessId};
use crate::pod::watch::{self, Watch};
use crate::pod::{Error, Result};
use crate::sys::process::end_with_parent;
use crate::sys::stderr;

/// Pods that are made at once.
const LAUNCHES: usize = 8;
/// Pods that are removed at once.
const REMOVALS: usize = 8;
/// Longest pause between two attempts to connect where the agent says none.
const BACKOFF: Duration = Duration::from_secs(2);
/// Pause before something is tried again that could not be done.
const PAUSE: Duration = Duration::from_secs(1);
/// Inputs that wait; the agent's events wait in the connection then.
const INBOX: usize = 64;

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// `<root>` and `<state>`, absolute.
    pub folders: Folders,
    /// Folders of CNI configuration.
    pub cni_conf: Vec<PathBuf>,
    /// Folders of CNI plugins.
    pub cni_path: Vec<PathBuf>,
    /// Cgroup of the pods; `None`: the executor's own.
    pub cgroup_parent: Option<String>,
    /// What is spoken with the agent.
    pub encoding: Encoding,
    /// Log in JSON.
    pub log_json: bool,
    /// Plain http to registries that are not on this machine.
    pub plain_http: bool,
    /// Where its API is served beside the socket in its folder.
    pub listen: Option<Listen>,
    /// Variables of all tasks.
    pub variables: BTreeMap<String, String>,
    /// Folder of seccomp profiles that tasks may name.
    pub seccomp_profiles: Option<PathBuf>,
    /// How much of a task's output the sandbox holds.
    pub output: Bound,
    /// How long an executor without a task waits for another one.
    pub linger: Duration,
    /// Why no other process follows this one, which only brings everything to an end: complete text.
    pub last: Option<String>,
    /// An earlier process of this executor was asked to end by a signal.
    pub terminated: bool,
}

/// Runs the real executor to its end; the exit code.
pub fn run(options: &Options) -> Result<u8> {
    let shim = attach_to_shim()?;
    let token = shim::take_token();
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let other = |error: &dyn std::fmt::Display| Error::Other(error.to_string());
    let environment =
        Environment::read(&variables.collect(), token).map_err(|error| other(&error))?;
    let agent = Agent::new(&environment, options.encoding).map_err(|error| other(&error))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Other(format!("start the executor: {error}")))?;
    let local = tokio::task::LocalSet::new();
    let code = local.block_on(&runtime, serve(options, &environment, &agent, shim))?;
    Ok(match code {
        0 => 0,
        _ => shim::OVER,
    })
}

/// The process above us, whose end is ours.
fn attach_to_shim() -> Result<ProcessId> {
    let failed = |error| Error::Other(format!("watch the process that the agent started: {error}"));
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed)?;
    let pid = nix::unistd::getppid().as_raw();
    let start_time = crate::sys::process::start_time(pid)
        .map_err(|error| Error::Other(format!("read /proc/{pid}/stat: {error}")))?;
    let shim = ProcessId { pid, start_time };
    // it may have ended before we asked to be told
    if nix::unistd::getppid().as_raw() != pid {
        return Err(Error::Other(
            "the process that the agent started is gone".into(),
        ));
    }
    Ok(shim)
}

/// What tasks of the loop share.
struct Context {
    executor: Executor,
    ledger: Ledger,
    folders: Folders,
    log_json: bool,
    machine: RefCell<Machine>,
    inputs: mpsc::Sender<Input>,
    calls: mpsc::UnboundedSender<Call>,
    launches: Semaphore,
    removals: Semaphore,
    launching: RefCell<BTreeMap<u64, Rc<Launching>>>,
    watching: RefCell<BTreeMap<u64, JoinHandle<()>>>,
}

/// A pod that is being made.
#[derive(Default)]
struct Launching {
    /// Its process.
    child: RefCell<Option<std::os::fd::OwnedFd>>,
    /// The signal to end it by.
    cancelled: std::cell::Cell<Option<i32>>,
    /// Tells one that waits for its turn.
    told: Notify,
}

impl Launching {
    fn cancel(&self, signal: i32) {
        self.cancelled.set(Some(signal));
        self.told.notify_one();
        if let Some(child) = &*self.child.borrow() {
            // one that has ended needs no signal
            let _ = crate::sys::pidfd::send_signal(child, signal);
        }
    }
}

async fn serve(
    options: &Options,
    environment: &Environment,
    agent: &Agent,
    shim: ProcessId,
) -> Result<u8> {
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| Error::Other(format!("watch signals: {error}")))?;
    let (inputs, mut inbox) = mpsc::channel(INBOX);
    let (calls, outbox) = mpsc::unbounded_channel();
    let (context, ever) = open(options, environment, shim, inputs.clone(), calls)?;
    let doors = Doors::open(
        context.ledger.path(),
        &options.folders,
        shim,
        options.listen.clone(),
    )?;
    let log = context.clone();
    if let Some(address) = doors.address() {
        log.log(&format!(
            "exec, attach, logs and ps are answered on https://{address}"
        ));
    }
    tokio::task::spawn_local(async move {
        if let Err(error) = doors.attend(|text| log.log(text)).await {
            log.log(&error.to_string());
        }
    });
    tokio::task::spawn_local(sweep(context.clone()));
    let patience = Patience {
        recovery: environment.recovery.map(|recovery| recovery.timeout),
        backoff: environment
            .recovery
            .map_or(BACKOFF, |recovery| recovery.backoff_max),
        ever,
    };
    let link = session::Link {
        subscription: &|| context.subscribe(),
        heartbeat: context.call(call::Type::Heartbeat),
    };
    let session = session::run(agent, patience, link, outbox, inputs);
    tokio::pin!(session);
    let mut connected = true;
    let mut input = match &options.last {
        Some(why) => Input::GivenUp(why.clone()),
        None if options.terminated => Input::Terminate,
        None => Input::Tick,
    };
    loop {
        context.machine.borrow_mut().input(now(), input);
        if let Some(code) = context.carry_out() {
            // a launch that has been read is not lost
            if let Ok(next) = inbox.try_recv() {
                input = next;
                continue;
            }
            return Ok(code);
        }
        let due = context.machine.borrow().next_tick();
        let pause = due.map_or(Duration::MAX, |due| due.saturating_sub(now().boot));
        input = tokio::select! {
            Some(input) = inbox.recv() => input,
            () = &mut session, if connected => {
                connected = false;
                Input::Tick
            }
            () = tokio::time::sleep(pause), if due.is_some() => Input::Tick,
            _ = terminate.recv() => Input::Terminate,
        };
    }
}

/// A service of the pod runs, or ran.
fn is_started(answer: &Answer) -> bool {
    matches!(answer, Answer::Status { status, .. } if !status.started.is_empty())
}

fn now() -> Now {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Now {
        boot: Duration::new(boot.tv_sec as u64, boot.tv_nsec as u32),
        unix: jiff::Timestamp::now().as_nanosecond() as f64 / 1e9,
    }
}

/// Takes up what an earlier process left, or begins; whether there was one that had a connection.
fn open(
    options: &Options,
    environment: &Environment,
    shim: ProcessId,
    inputs: mpsc::Sender<Input>,
    calls: mpsc::UnboundedSender<Call>,
) -> Result<(Rc<Context>, bool)> {
    let ledger = Ledger::at(&options.folders.state, shim);
    let executor = Executor {
        version: record::VERSION,
        process: shim,
        framework: environment.framework_id.clone(),
        executor: environment.executor_id.clone(),
        agent: environment.agent_id.clone(),
        sandbox: environment.sandbox.clone(),
        root: options.folders.root.clone(),
        state: options.folders.state.clone(),
        cni_conf: options.cni_conf.clone(),
        cni_path: options.cni_path.clone(),
        cgroup_parent: options.cgroup_parent.clone(),
        plain_http: options.plain_http,
        variables: options.variables.clone(),
        seccomp_profiles: options.seccomp_profiles.clone(),
        address: environment.endpoint.host.parse().ok(),
        output: options.output,
    };
    ledger.begin(&executor)?;
    let subscribed = ledger.subscribed()?;
    let mut machine = Machine::new(
        &environment.framework_id,
        &environment.executor_id,
        environment.shutdown_grace,
        options.linger,
        ledger.load()?,
        fastrand::Rng::new(),
    );
    if let Some(subscribed) = &subscribed {
        machine.know(&subscribed.framework_info);
    }
    let context = Context {
        executor,
        ledger,
        folders: options.folders.clone(),
        log_json: options.log_json,
        machine: RefCell::new(machine),
        inputs,
        calls,
        launches: Semaphore::new(LAUNCHES),
        removals: Semaphore::new(REMOVALS),
        launching: RefCell::default(),
        watching: RefCell::default(),
    };
    Ok((Rc::new(context), subscribed.is_some()))
}

/// What executors left that were killed as a whole, with their pods.
async fn sweep(context: Rc<Context>) {
    let swept = ledger::sweep(&context.folders.state);
    for done in [swept, pods::collect_garbage(&context.executor).await] {
        if let Err(error) = done {
            context.tell(Input::Note(error.to_string())).await;
        }
    }
}

impl Context {
    fn log(&self, text: &str) {
        if self.log_json {
            let line = serde_json::json!({
                "time": record::now(), "executor": self.executor.executor, "message": text
            });
            stderr::line(line);
        } else {
            stderr::line(format_args!("sampan executor: {text}"));
        }
    }

    /// An input of a task; the loop is gone only when the process ends.
    async fn tell(&self, input: Input) {
        let _ = self.inputs.send(input).await;
    }

    fn pod(&self, number: u64) -> Option<PodDir> {
        let machine = self.machine.borrow();
        let launch = machine.launch(number)?;
        Some(self.folders.pod(&launch.pod))
    }

    fn call(&self, kind: call::Type) -> Call {
        Call {
            executor_id: ExecutorId {
                value: self.executor.executor.clone(),
            },
            framework_id: FrameworkId {
                value: self.executor.framework.clone(),
            },
            r#type: Some(kind.into()),
            ..Call::default()
        }
    }

    /// SUBSCRIBE, as it has to be now.
    fn subscribe(&self) -> Call {
        let (ids, updates) = self.machine.borrow_mut().unacknowledged();
        let mut tasks = Vec::new();
        for (number, id) in ids {
            match self.ledger.tasks(number) {
                Ok(all) => tasks.extend(all.into_iter().filter(|task| task.task_id.value == id)),
                Err(error) => self.log(&error.to_string()),
            }
        }
        let updates = updates.into_iter().map(|status| call::Update { status });
        Call {
            subscribe: Some(call::Subscribe {
                unacknowledged_tasks: tasks,
                unacknowledged_updates: updates.collect(),
            }),
            ..self.call(call::Type::Subscribe)
        }
    }

    /// Writes down what changed, then does what is to do; the code to end with.
    fn carry_out(self: &Rc<Self>) -> Option<u8> {
        let mut machine = self.machine.borrow_mut();
        let (changed, actions) = (machine.take_changed(), machine.take_actions());
        // tasks that cannot be written down run all the same: only a crash of ours would lose them
        let told = |done: Result<()>| {
            if let Err(error) = done {
                self.log(&error.to_string());
            }
        };
        let mut later = Vec::new();
        for action in actions {
            match action {
                Action::KeepSubscribed(subscribed) => {
                    told(self.ledger.keep_subscribed(&subscribed))
                }
                Action::KeepTasks(number, tasks) => told(self.ledger.keep_tasks(number, tasks)),
                other => later.push(other),
            }
        }
        for launch in changed.iter().filter_map(|number| machine.launch(*number)) {
            told(self.ledger.save(launch));
        }
        drop(machine);
        later.into_iter().find_map(|action| self.perform(action))
    }

    fn perform(self: &Rc<Self>, action: Action) -> Option<u8> {
        match action {
            Action::KeepSubscribed(_) | Action::KeepTasks(..) => {}
            Action::Start(number) => self.begin(number, true),
            Action::Watch(number) => self.begin(number, false),
            Action::Cancel(number) => self.cancel(number, libc::SIGTERM),
            Action::Abort(number) => self.cancel(number, libc::SIGKILL),
            Action::Stop {
                launch,
                services,
                grace,
            } => self.stop(launch, services, grace),
            Action::Remove(number) => self.remove(number),
            Action::Forget(number) => {
                if let Err(error) = self.ledger.forget(number) {
                    self.log(&error.to_string());
                }
            }
            Action::Send(status) => {
                let update = Some(call::Update { status: *status });
                let call = self.call(call::Type::Update);
                // the session is gone only when nobody listens any more
                let _ = self.calls.send(Call { update, ..call });
            }
            Action::Ask {
                launch,
                request,
                id,
            } => self.ask(launch, request, id),
            Action::Tell(data) => self.say(data),
            Action::Log(text) => self.log(&text),
            Action::Exit(code) => return Some(code),
        }
        None
    }

    /// Makes a pod, or takes it for made, and watches it.
    fn begin(self: &Rc<Self>, number: u64, make: bool) {
        let launching = Rc::new(Launching::default());
        self.launching
            .borrow_mut()
            .insert(number, launching.clone());
        let context = self.clone();
        let task = tokio::task::spawn_local(async move {
            let Some(dir) = context.pod(number) else {
                return;
            };
            let made = match make {
                true => context.make(number, &launching).await,
                false => Ok(()),
            };
            context.launching.borrow_mut().remove(&number);
            match made {
                Ok(()) => context.watch(number, &dir).await,
                Err(failure) => context.not_started(number, failure).await,
            }
        });
        self.watching.borrow_mut().insert(number, task);
    }

    fn cancel(self: &Rc<Self>, number: u64, signal: i32) {
        let launching = self.launching.borrow().get(&number).cloned();
        match launching {
            Some(launching) => launching.cancel(signal),
            None if self.watching.borrow().contains_key(&number) => {}
            // an earlier process of the executor was at it
            None => {
                let context = self.clone();
                let task = tokio::task::spawn_local(async move {
                    context.not_started(number, NotStarted::default()).await;
                });
                self.watching.borrow_mut().insert(number, task);
            }
        }
    }

    /// Whatever was made goes before anybody is told that there is nothing.
    async fn not_started(&self, number: u64, failure: NotStarted) {
        if let Some(dir) = self.pod(number) {
            self.insist(async || match dir.dir.exists() {
                true => pods::remove(&self.executor, &dir.name).await,
                false => Ok(()),
            })
            .await;
        }
        self.tell(Input::NotStarted(number, failure)).await;
    }

    /// Tries until it is done; each new reason why not is told.
    async fn insist(&self, mut attempt: impl AsyncFnMut() -> Result<()>) {
        let mut told = String::new();
        while let Err(error) = attempt().await {
            let text = error.to_string();
            if text != told {
                self.tell(Input::Note(format!("{text}; it is tried again")))
                    .await;
                told = text;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Runs `sampan internal mesos-launch`.
    async fn make(
        &self,
        number: u64,
        launching: &Launching,
    ) -> std::result::Result<(), NotStarted> {
        let failed = |message: String| NotStarted {
            state: TaskState::Failed,
            message,
            ..NotStarted::default()
        };
        let _turn = tokio::select! {
            turn = self.launches.acquire() => turn,
            () = launching.told.notified() => return Err(failed("killed before it began".into())),
        };
        let program = "/proc/self/exe";
        let mut command = Command::new(program);
        command
            .args(["internal", launch::STEP])
            .arg(self.ledger.path())
            .arg(number.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // a successor begins anew
        end_with_parent(command.as_std_mut());
        let mut child = command
            .spawn()
            .map_err(|error| failed(format!("run {program}: {error}")))?;
        if let Some(pid) = child.id() {
            let opened = crate::sys::pidfd::open(pid as i32);
            *launching.child.borrow_mut() = opened.ok();
        }
        // a kill that came between
        if let Some(signal) = launching.cancelled.get() {
            launching.cancel(signal);
        }
        let failure = self.follow(number, &mut child).await;
        let status = child.wait().await;
        launching.child.borrow_mut().take();
        match (failure, status) {
            (Some(failure), _) => Err(failure),
            (None, Ok(status)) if status.success() => Ok(()),
            (None, Ok(status)) => Err(failed(format!(
                "the process that makes the pod ended with {status}"
            ))),
            (None, Err(error)) => Err(failed(format!(
                "wait for the process that makes the pod: {error}"
            ))),
        }
    }

    /// Reads what the step tells, to its end.
    async fn follow(&self, number: u64, child: &mut Child) -> Option<NotStarted> {
        let stdout = child.stdout.take()?;
        let mut lines = BufReader::new(stdout.take(launch::OUTPUT)).lines();
        let mut failure = None;
        while let Ok(Some(line)) = lines.next_line().await {
            match serde_json::from_str(&line) {
                Ok(Line::Planned { tasks }) => self.tell(Input::Planned(number, tasks)).await,
                Ok(Line::Failed {
                    task,
                    state,
                    reason,
                    message,
                }) => {
                    failure = Some(NotStarted {
                        task,
                        state: TaskState::try_from(state).unwrap_or(TaskState::Failed),
                        reason: reason.and_then(|reason| reason.try_into().ok()),
                        message,
                    });
                }
                Err(error) => {
                    let text = format!("a line of the process that makes a pod: {error}");
                    self.tell(Input::Note(text)).await;
                }
            }
        }
        failure
    }

    /// Tells the machine what becomes of a pod, until it is gone.
    async fn watch(&self, number: u64, dir: &PodDir) {
        self.tell(Input::Started(number)).await;
        let mut connected = false;
        let mut watch = Watch::new(dir.clone());
        loop {
            match watch.next().await {
                Ok(Some(answer)) => {
                    // they are made before the first service starts
                    if !connected && is_started(&answer) {
                        let found = pods::networks(dir).unwrap_or_else(|error| {
                            self.log(&error.to_string());
                            Vec::new()
                        });
                        connected = true;
                        self.tell(Input::Networks(number, found)).await;
                    }
                    self.hear(number, dir, answer).await;
                }
                Ok(None) => {
                    let text = format!(
                        "pod {} was removed by a command on the agent's machine",
                        dir.name
                    );
                    return self.tell(Input::Gone(number, text)).await;
                }
                Err(error) => {
                    self.tell(Input::Note(error.to_string())).await;
                    tokio::time::sleep(PAUSE).await;
                    watch = Watch::new(dir.clone());
                }
            }
        }
    }

    async fn hear(&self, number: u64, dir: &PodDir, answer: Answer) {
        let input = match answer {
            Answer::Status { service, status } => {
                let failed = status.cause.is_some_and(|cause| {
                    matches!(cause, Cause::Exited | Cause::OutOfMemory)
                        && status.exit_code != Some(0)
                });
                let last_line = if failed {
                    pods::last_line(dir, &service)
                } else {
                    None
                };
                Input::Service {
                    launch: number,
                    name: service,
                    status,
                    last_line,
                }
            }
            Answer::Verdict { verdict } => Input::Verdict(number, verdict),
            Answer::Failed { .. } | Answer::Progress { .. } | Answer::Done { .. } => return,
        };
        self.tell(input).await;
    }

    /// A message to the framework. It may get lost, like all of them.
    fn say(&self, data: Vec<u8>) {
        let message = Some(call::Message { data });
        let call = self.call(call::Type::Message);
        // the session is gone only when nobody listens any more
        let _ = self.calls.send(Call { message, ..call });
    }

    fn ask(self: &Rc<Self>, number: u64, request: Request, id: serde_json::Value) {
        let context = self.clone();
        tokio::task::spawn_local(async move {
            let Some(dir) = context.pod(number) else {
                return;
            };
            context.say(match watch::ask(&dir, &request).await {
                Ok(Some(_)) => message::done(&id),
                Ok(None) => message::failed(&id, "the pod is gone"),
                Err(error) => message::failed(&id, &error.to_string()),
            });
        });
    }

    fn stop(self: &Rc<Self>, number: u64, services: Vec<String>, grace: Option<Duration>) {
        let context = self.clone();
        tokio::task::spawn_local(async move {
            let Some(dir) = context.pod(number) else {
                return;
            };
            let since = now().boot;
            context
                .insist(async || {
                    // what was promised does not grow with each attempt
                    let left = grace.map(|grace| (since + grace).saturating_sub(now().boot));
                    let stopped = pods::stop(&dir, &services, left).await;
                    stopped.map_err(|error| Error::Other(format!("stop pod {}: {error}", dir.name)))
                })
                .await;
        });
    }

    fn remove(self: &Rc<Self>, number: u64) {
        if let Some(watch) = self.watching.borrow_mut().remove(&number) {
            watch.abort();
        }
        let context = self.clone();
        tokio::task::spawn_local(async move {
            let Some(dir) = context.pod(number) else {
                return;
            };
            context
                .insist(async || {
                    let _turn = context.removals.acquire().await;
                    pods::remove(&context.executor, &dir.name).await
                })
                .await;
            context.tell(Input::Removed(number)).await;
        });
    }
}
