//! The agent as tests see it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::container::{self, Container, Exit};
use crate::model::{self, Acks, Answer, Calls, Phase, Recorded, Run, State};
use crate::rules::text;
use crate::serve::{self, Shared};
use crate::settings::{Settings, Transport};
use crate::stream::Out;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `TaskInfo` with the fields that every task has, and these.
pub fn task(id: &str, fields: Value) -> Value {
    let mut task = json!({
        "name": id, "task_id": {"value": id}, "agent_id": {"value": ""},
        "resources": [
            {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}, "allocation_info": {"role": "*"}},
            {"name": "mem", "type": "SCALAR", "scalar": {"value": 32.0}, "allocation_info": {"role": "*"}},
        ],
    });
    model::merge(&mut task, &fields);
    task
}

/// An agent of one framework and one executor. Dropping it destroys the executor.
pub struct Agent {
    shared: Arc<Shared>,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    tls: Option<TlsAcceptor>,
    folder: PathBuf,
    own_folder: bool,
    listeners: Mutex<Vec<AbortHandle>>,
    container: Mutex<Option<Container>>,
}

impl Agent {
    /// A running agent. It stays in the namespaces of the thread that calls this.
    pub fn new(settings: Settings) -> Agent {
        let folder = settings.folder.clone().unwrap_or_else(|| {
            std::env::temp_dir().join(format!("mesos-agent-{}", crate::ids::uuid()))
        });
        fs::create_dir_all(&folder).expect("agent's folder");
        let own_folder = settings.folder.is_none();
        let tls = (settings.transport == Transport::Tls).then(|| serve::tls(&folder));
        let (send, receive) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("agent".into());
        let body = move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("runtime");
            let _ = send.send(runtime.handle().clone());
            let _ = runtime.block_on(stopped);
        };
        thread.spawn(body).expect("thread");
        let agent = Agent {
            shared: Shared::new(State::new(settings, 0)),
            runtime: receive.recv().expect("runtime"),
            stop: Some(stop),
            tls,
            folder,
            own_folder,
            listeners: Mutex::default(),
            container: Mutex::default(),
        };
        agent.start(Phase::Running);
        agent
    }

    // ---- the agent's own life

    /// Starts the agent anew, on the same address; `phase` is how far it is.
    pub fn start(&self, phase: Phase) {
        let port = self.shared.change(|state| {
            state.phase = phase;
            state.record("note", json!(format!("agent starts: {phase:?}")));
            state.port
        });
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("agent's address");
        listener.set_nonblocking(true).expect("listener");
        let port = listener.local_addr().expect("listener").port();
        let socket = self.socket();
        let socket = self.shared.change(|state| {
            state.port = port;
            (state.settings.transport == Transport::DomainSocket).then_some(socket)
        });
        let mut listeners = self.listeners.lock().expect("listeners");
        let task = serve::tcp(self.shared.clone(), listener, self.tls.clone());
        listeners.push(self.runtime.spawn(task).abort_handle());
        if let Some(socket) = socket {
            let _ = fs::remove_file(&socket);
            let listener = UnixListener::bind(&socket).expect("domain socket");
            listener.set_nonblocking(true).expect("listener");
            let task = serve::unix(self.shared.clone(), listener);
            listeners.push(self.runtime.spawn(task).abort_handle());
        }
    }

    /// Ends the agent's process: all connections break, the address refuses. Tasks and updates are kept, as on disk.
    pub fn stop(&self) {
        let mut ended = Vec::new();
        for listener in self.listeners.lock().expect("listeners").drain(..) {
            listener.abort();
            ended.push(listener);
        }
        self.shared.change(|state| {
            state.record("note", json!("agent stops"));
            state.stream = None;
            for (connection, _) in state.connections.drain(..) {
                connection.abort();
                ended.push(connection);
            }
        });
        until("the agent's end", || {
            ended.iter().all(AbortHandle::is_finished).then_some(())
        });
    }

    /// Sets how far the agent is.
    pub fn phase(&self, phase: Phase) {
        self.shared.change(|state| state.phase = phase);
    }

    /// Sets what becomes of acknowledgements.
    pub fn acks(&self, acks: Acks) {
        self.shared.change(|state| state.acks = acks);
    }

    /// Gives the acknowledgements that were held, and from now on all.
    pub fn release(&self) {
        self.shared.change(|state| {
            state.acks = Acks::Given;
            state.release();
        });
    }

    /// Acknowledges any uuid (base64).
    pub fn acknowledge(&self, task: &str, uuid: &str) {
        self.shared.change(|state| state.acknowledge(task, uuid));
    }

    /// Arranges the answer to the next call of a kind; several are used in turn.
    pub fn answer(&self, calls: Calls, answer: Answer) {
        self.shared
            .change(|state| state.answers.push_back((calls, answer)));
    }

    /// `http://127.0.0.1:PORT` (`https` with TLS).
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.endpoint())
    }

    /// `127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.shared.lock().port)
    }

    /// The domain socket's path.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// The agent's work folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The sandbox of the executor's present run.
    pub fn sandbox(&self) -> PathBuf {
        let ids = self.shared.lock().ids.clone();
        let path = format!(
            "slaves/{}/frameworks/{}/executors/{}/runs/{}",
            ids.agent, ids.framework, ids.executor, ids.container
        );
        self.folder.join(path)
    }

    // ---- the stream

    /// Sends any event; one that is not in the schema panics.
    pub fn event(&self, event: Value) {
        self.shared.change(|state| state.event(&event));
    }

    /// Sends an event of a type that nobody knows.
    pub fn unknown_event(&self) {
        self.shared.change(|state| {
            let json = state.stream.as_ref().map(|stream| stream.encoding)
                == Some(crate::codec::Encoding::Json);
            let record = match json {
                true => br#"{"type":"OF_A_LATER_VERSION","later":{}}"#.to_vec(),
                // field 1, the type, is 99
                false => vec![0x08, 99],
            };
            state.out(Out::Record(record));
        });
    }

    /// Sends bytes that are no record.
    pub fn garbage(&self, bytes: &[u8]) {
        self.shared
            .change(|state| state.out(Out::Raw(bytes.to_vec())));
    }

    /// Forgets the executor: calls are answered as those of an unknown one. Its container stays.
    pub fn forget_executor(&self) {
        self.shared.change(|state| state.run = Run::Terminated);
    }

    /// Ends the stream in good order.
    pub fn end_stream(&self) {
        self.shared.change(|state| {
            state.out(Out::End);
            state.stream = None;
        });
    }

    /// Breaks the stream's connection.
    pub fn break_stream(&self) {
        self.shared.change(|state| {
            state.out(Out::Cut);
            state.stream = None;
        });
    }

    /// Breaks the stream's connection, if there is one now.
    pub fn break_stream_if_any(&self) {
        self.shared.change(|state| {
            if state.stream.is_some() {
                state.out(Out::Cut);
                state.stream = None;
            }
        });
    }

    /// Sends nothing more on the stream's connection, and leaves it open.
    pub fn half_close(&self) {
        self.shared.change(|state| {
            state.out(Out::HalfClose);
            state.stream = None;
        });
    }

    /// Breaks all connections but that of the stream.
    pub fn break_calls(&self) {
        self.shared.change(|state| {
            state.record("note", json!("connections of calls break"));
            for (connection, stream) in &state.connections {
                if !stream {
                    connection.abort();
                }
            }
        });
    }

    // ---- the scheduler

    /// LAUNCH of one task, now or when the executor subscribes. As with a master, it has no command of its own.
    pub fn launch(&self, task: Value) {
        assert!(
            task.get("command").is_none(),
            "a task has either a command or an executor"
        );
        self.shared.change(|state| state.launch(vec![task], false));
    }

    /// LAUNCH_GROUP, now or when the executor subscribes.
    pub fn launch_group(&self, tasks: Vec<Value>) {
        self.shared.change(|state| state.launch(tasks, true));
    }

    /// KILL, with a grace period if one is given.
    pub fn kill(&self, task: &str, grace: Option<Duration>) {
        let nanoseconds = |grace: Duration| i64::try_from(grace.as_nanos()).unwrap_or(i64::MAX);
        let policy =
            grace.map(|grace| json!({"grace_period": {"nanoseconds": nanoseconds(grace)}}));
        self.shared.change(|state| state.kill(task, policy));
    }

    /// KILL again and again, as a scheduler does, until the task is over.
    #[track_caller]
    pub fn kill_until_over(&self, task: &str) {
        let end = Instant::now() + PATIENCE;
        while !self
            .shared
            .lock()
            .tasks
            .get(task)
            .is_some_and(model::Task::over)
        {
            assert!(Instant::now() < end, "no end of {task}\n{}", self.story());
            self.kill(task, None);
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// MESSAGE with these bytes in base64.
    pub fn message(&self, data: &str) {
        self.event(json!({"type": "MESSAGE", "message": {"data": data}}));
    }

    /// SHUTDOWN; after the grace period the container is destroyed.
    pub fn shutdown(&self) {
        let grace = self.shared.change(|state| {
            state.event(&json!({"type": "SHUTDOWN"}));
            state.run = Run::Terminating;
            state.settings.shutdown_grace
        });
        let container = self.container.lock().expect("container").clone();
        let shared = self.shared.clone();
        std::thread::spawn(move || {
            let end = Instant::now() + grace;
            let mut state = shared.lock();
            while state.exit.is_none() && Instant::now() < end {
                let left = end.saturating_duration_since(Instant::now());
                let wait = shared.changed.wait_timeout(state, left);
                state = wait.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
            }
            let alive = state.exit.is_none() && state.run == Run::Terminating;
            if alive {
                state.destroyed = true;
                state.record(
                    "note",
                    json!("shutdown grace is over: destroys the container"),
                );
            }
            drop(state);
            if let Some(container) = container.filter(|_| alive) {
                container.destroy();
            }
        });
    }

    // ---- the executor

    /// Starts an executor in a sandbox and a container of its own; an earlier one has to be gone.
    pub fn start_executor(&self, command: &[&str]) {
        let mut state = self.shared.lock();
        if state.run != Run::Registering {
            assert_eq!(state.run, Run::Terminated, "the executor runs already");
            state.ids.container = crate::ids::uuid();
            state.next_run();
        }
        let launcher = state.settings.launcher.clone();
        let id = state.ids.container.clone();
        drop(state);
        let sandbox = self.sandbox();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let environment = self.environment();
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        self.shared.change(|state| {
            state.record(
                "note",
                json!(format!("starts {command:?} in {}", text(&sandbox))),
            )
        });
        let (container, mut child) =
            container::start(&command, &environment, &sandbox, &launcher, &id);
        *self.container.lock().expect("container") = Some(container.clone());
        let shared = self.shared.clone();
        let destroyed = shared.clone();
        std::thread::spawn(move || {
            let first = Id::Pid(Pid::from_raw(container.pid));
            let unreaped = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            waitid(first, unreaped).expect("wait");
            // what the launcher does when the first process ends; until it is reaped nobody else has its number
            container.destroy();
            let status = child.wait().expect("wait");
            let destroyed = destroyed.lock().destroyed;
            shared.change(|state| state.exited(Exit { status, destroyed }));
        });
    }

    /// The environment an executor is started with.
    pub fn environment(&self) -> Vec<(String, String)> {
        let sandbox = self.sandbox().to_string_lossy().into_owned();
        let socket = self.socket().to_string_lossy().into_owned();
        let authority = self.folder.join("ca.pem").to_string_lossy().into_owned();
        self.shared
            .lock()
            .environment(&sandbox, &socket, &authority)
    }

    /// The process that was started.
    pub fn pid(&self) -> i32 {
        let container = self.container.lock().expect("container");
        container.as_ref().expect("an executor").pid
    }

    /// All processes of the executor's container that live.
    pub fn processes(&self) -> Vec<i32> {
        let container = self.container.lock().expect("container");
        container
            .as_ref()
            .map(Container::processes)
            .unwrap_or_default()
    }

    /// Destroys the executor's container: SIGKILL to all in it. One that has ended is left alone.
    pub fn destroy(&self) {
        let container = self.container.lock().expect("container").clone();
        let Some(container) = container else { return };
        let alive = self.shared.change(|state| {
            let alive = state.exit.is_none();
            if alive {
                state.destroyed = true;
                state.record("note", json!("destroys the container"));
            }
            alive
        });
        if alive {
            container.destroy();
        }
    }

    // ---- what happened

    /// Waits until something is so; panics with the record of everything after a minute.
    #[track_caller]
    fn wait<T>(&self, what: &str, mut found: impl FnMut(&mut State) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = found(&mut state) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                panic!("no {what}\n{}", self.story());
            }
            let wait = self.shared.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    /// Waits for a task's first status of this state.
    #[track_caller]
    pub fn wait_for(&self, task: &str, state: &str) -> Value {
        self.wait_status(&format!("{task} {state}"), task, |status| {
            text(status, &["state"]) == state
        })
    }

    /// Waits for a task's first status that is as wanted.
    #[track_caller]
    pub fn wait_status(
        &self,
        what: &str,
        task: &str,
        mut found: impl FnMut(&Value) -> bool,
    ) -> Value {
        self.wait(what, |state| {
            let statuses = &state.tasks.get(task)?.statuses;
            statuses.iter().find(|status| found(status)).cloned()
        })
    }

    /// Waits, without an end, until all of these tasks are over.
    pub fn await_over(&self, tasks: &[String]) {
        let over =
            |state: &State, name: &String| state.tasks.get(name).is_some_and(model::Task::over);
        let mut state = self.shared.lock();
        while !tasks.iter().all(|name| over(&state, name)) {
            let wait = self.shared.changed.wait(state);
            state = wait.unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Waits, without an end of its own, for the executor's end.
    pub fn await_end(&self) -> Exit {
        let mut state = self.shared.lock();
        loop {
            if let Some(exit) = state.exit {
                return exit;
            }
            let wait = self.shared.changed.wait(state);
            state = wait.unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// How the executor ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.shared.lock().exit
    }

    /// Waits for the executor's end.
    #[track_caller]
    pub fn wait_exit(&self) -> Exit {
        self.wait("end of the executor", |state| state.exit)
    }

    /// Waits until the executor has subscribed `times` in all.
    #[track_caller]
    pub fn wait_subscriptions(&self, times: u64) {
        self.wait("subscription", |state| {
            (state.subscriptions >= times).then_some(())
        });
    }

    /// Waits until the executor is subscribed now.
    #[track_caller]
    pub fn wait_stream(&self) {
        self.wait("stream", |state| state.stream.as_ref().map(|_| ()));
    }

    /// Waits for the next MESSAGE of the executor: its bytes in base64.
    #[track_caller]
    pub fn wait_message(&self) -> String {
        self.wait("message", |state| state.messages.pop_front())
    }

    /// Waits until this many calls were refused or turned away.
    #[track_caller]
    pub fn wait_refusals(&self, count: usize) -> Vec<(u16, String)> {
        self.wait("refusal", |state| {
            (state.refusals.len() >= count).then(|| state.refusals.clone())
        })
    }

    /// Every status of a task, the agent's own included.
    pub fn statuses(&self, task: &str) -> Vec<Value> {
        let state = self.shared.lock();
        state
            .tasks
            .get(task)
            .map(|task| task.statuses.clone())
            .unwrap_or_default()
    }

    /// States of a task in turn.
    pub fn states(&self, task: &str) -> Vec<String> {
        let statuses = self.statuses(task);
        statuses
            .iter()
            .map(|status| text(status, &["state"]).to_owned())
            .collect()
    }

    /// The `TaskInfo` that was delivered.
    #[track_caller]
    pub fn task_info(&self, task: &str) -> Value {
        self.shared.lock().tasks[task].info.clone()
    }

    /// How often an executor has subscribed.
    pub fn subscriptions(&self) -> u64 {
        self.shared.lock().subscriptions
    }

    /// Codes and texts of all calls that were not taken in.
    pub fn refusals(&self) -> Vec<(u16, String)> {
        self.shared.lock().refusals.clone()
    }

    /// What the executor did against the rules, and forgets it.
    pub fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().violations)
    }

    /// Nothing was against the rules.
    #[track_caller]
    pub fn assert_clean(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{violations:#?}\n{}", self.story());
    }

    /// The record of everything so far.
    pub fn log(&self) -> Vec<Recorded> {
        self.shared.lock().log.clone()
    }

    /// Calls this for every line of the record from now on, in the thread of whatever causes it.
    pub fn follow(&self, print: fn(&Recorded)) {
        self.shared.lock().print = Some(print);
    }

    /// The record as text, with the end of what the executor printed.
    pub fn story(&self) -> String {
        let lines = self.log().into_iter().map(|line| {
            let mut text = line.value.to_string();
            if let Some((at, _)) = text.char_indices().nth(600) {
                text.replace_range(at.., "…");
            }
            format!("{:9.3} {:<9} {text}\n", line.at, line.what)
        });
        let mut story: String = lines.collect();
        for name in ["stdout", "stderr"] {
            let text = fs::read(self.sandbox().join(name)).unwrap_or_default();
            let text = &text[text.len().saturating_sub(4000)..];
            story += &format!(
                "--- {name} of the executor\n{}",
                String::from_utf8_lossy(text)
            );
        }
        story
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the agent's record\n{}", self.story());
        }
        self.destroy();
        self.stop();
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if self.own_folder {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Waits for something without news.
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
