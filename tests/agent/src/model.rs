//! What the agent knows: executor, tasks, updates; and the events it sends.
//!
//! Owns the state behind [`crate::Agent`]. *Invariants*: an update is kept once by its uuid and acknowledged however
//! often it comes; a task in a terminal state stays there; what an executor does against the rules is written to
//! `violations` and answered as the real agent answers it. Leaves calls to [`crate::calls`], bytes and connections to
//! [`crate::serve`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;

use crate::codec::{self, Encoding};
use crate::container::Exit;
use crate::ids;
use crate::rules::{self, Refusal, text};
use crate::settings::{Settings, Transport};
use crate::stream::Out;

/// How far an agent is with its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The process is up, its routes are not: 404.
    NoRoutes,
    /// Recovering: 503 to everything.
    Recovering,
    /// Executors may subscribe, everything else gets 503.
    Reconnecting,
    /// `--recover=cleanup`: who subscribes gets SHUTDOWN.
    Cleanup,
    /// As usual.
    Running,
}

/// What becomes of acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    /// Given at once.
    Given,
    /// Given twice.
    Twice,
    /// Kept until [`crate::Agent::release`].
    Held,
    /// Never given.
    Lost,
}

/// Which calls an arranged answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// SUBSCRIBE.
    Subscribe,
    /// All others.
    Others,
}

/// An answer that is arranged in advance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// This status code.
    Status(u16),
    /// 307 to this place.
    Redirect(String),
    /// The call is taken in, but the connection ends before the answer.
    Close,
    /// No answer ever, and the call is not taken in.
    Hang,
}

/// One line of the record of everything.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Seconds since the agent's start.
    pub at: f64,
    /// `call`, `answer`, `event`, `status`, `stream`, `exit`, `note`.
    pub what: &'static str,
    /// Its content.
    pub value: Value,
}

/// Where the executor's run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// Started, or about to be.
    Registering,
    /// Has subscribed.
    Subscribed,
    /// Was told to shut down.
    Terminating,
    /// Is gone.
    Terminated,
}

/// A task.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) info: Value,
    /// Number of its launch: tasks of a group share it.
    launch: usize,
    pub(crate) delivered: bool,
    /// An update of it was acknowledged.
    acknowledged: bool,
    /// Every status, in the order in which they came.
    pub(crate) statuses: Vec<Value>,
}

impl Task {
    pub(crate) fn over(&self) -> bool {
        self.statuses
            .last()
            .is_some_and(|status| rules::terminal(text(status, &["state"])))
    }
}

/// A stream to the executor.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) number: u64,
    pub(crate) out: UnboundedSender<Out>,
    pub(crate) encoding: Encoding,
}

/// What happens with a request.
#[derive(Debug)]
pub(crate) enum Reply {
    /// An answer that ends.
    Answer(Refusal),
    /// This SUBSCRIBE opens a stream.
    Stream(Encoding, Value),
    /// The connection ends.
    Close,
    /// Nothing, for ever.
    Hang,
}

/// Ids of the four.
#[derive(Debug, Clone)]
pub(crate) struct Ids {
    pub(crate) framework: String,
    pub(crate) executor: String,
    pub(crate) agent: String,
    pub(crate) container: String,
}

/// Everything behind the lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) ids: Ids,
    pub(crate) port: u16,
    pub(crate) phase: Phase,
    pub(crate) acks: Acks,
    pub(crate) answers: VecDeque<(Calls, Answer)>,
    pub(crate) run: Run,
    pub(crate) stream: Option<Stream>,
    pub(crate) subscriptions: u64,
    pub(crate) tasks: BTreeMap<String, Task>,
    pub(crate) queue: VecDeque<Vec<String>>,
    launches: usize,
    /// By uuid: the update, and whether an acknowledgement went out.
    pub(crate) updates: BTreeMap<String, (Value, bool)>,
    /// Uuids in the order of their updates.
    pub(crate) order: Vec<String>,
    pub(crate) held: Vec<(String, String)>,
    pub(crate) messages: VecDeque<String>,
    pub(crate) violations: Vec<String>,
    pub(crate) refusals: Vec<(u16, String)>,
    pub(crate) log: Vec<Recorded>,
    pub(crate) exit: Option<Exit>,
    /// The agent has killed the present run.
    pub(crate) destroyed: bool,
    pub(crate) connections: Vec<(AbortHandle, bool)>,
    start: Instant,
    /// Every line of the record goes here too.
    pub(crate) print: Option<fn(&Recorded)>,
}

impl State {
    pub(crate) fn new(settings: Settings, port: u16) -> State {
        let [framework, executor, agent, container] = settings.ids.clone();
        let master = ids::uuid();
        let or = |id: String, made: String| if id.is_empty() { made } else { id };
        let ids = Ids {
            framework: or(framework, format!("{master}-0000")),
            executor: or(executor, "executor.1".into()),
            agent: or(agent, format!("{master}-S0")),
            container: or(container, ids::uuid()),
        };
        State {
            settings,
            ids,
            port,
            phase: Phase::Running,
            acks: Acks::Given,
            answers: VecDeque::new(),
            run: Run::Registering,
            stream: None,
            subscriptions: 0,
            tasks: BTreeMap::new(),
            queue: VecDeque::new(),
            launches: 0,
            updates: BTreeMap::new(),
            order: Vec::new(),
            held: Vec::new(),
            messages: VecDeque::new(),
            violations: Vec::new(),
            refusals: Vec::new(),
            log: Vec::new(),
            exit: None,
            destroyed: false,
            connections: Vec::new(),
            start: Instant::now(),
            print: None,
        }
    }

    pub(crate) fn record(&mut self, what: &'static str, value: Value) {
        let at = self.start.elapsed().as_secs_f64();
        let line = Recorded { at, what, value };
        if let Some(print) = self.print {
            print(&line);
        }
        self.log.push(line);
    }

    pub(crate) fn violation(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.record("violation", json!(text));
        self.violations.push(text);
    }

    // ---- messages of the agent

    /// `id` as a message of its own.
    fn id(value: &str) -> Value {
        json!({ "value": value })
    }

    /// `ExecutorInfo` as the framework gave it.
    pub(crate) fn executor_info(&self) -> Value {
        let mut info = json!({
            "type": "CUSTOM",
            "executor_id": State::id(&self.ids.executor),
            "framework_id": State::id(&self.ids.framework),
            "command": {"shell": true, "value": "executor"},
            "resources": [
                {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}, "allocation_info": {"role": "*"}},
                {"name": "mem", "type": "SCALAR", "scalar": {"value": 64.0}, "allocation_info": {"role": "*"}},
                {"name": "disk", "type": "SCALAR", "scalar": {"value": 16.0}, "allocation_info": {"role": "*"}},
            ],
        });
        merge(&mut info, &self.settings.executor);
        info
    }

    pub(crate) fn subscribed(&self) -> Value {
        let capabilities = self.settings.capabilities.iter();
        let capabilities: Vec<Value> = capabilities.map(|name| json!({ "type": name })).collect();
        let mut framework = json!({
            "user": "root", "name": "test", "id": State::id(&self.ids.framework),
            "checkpoint": self.settings.checkpoint, "capabilities": capabilities,
        });
        merge(&mut framework, &self.settings.framework);
        let mut agent = json!({
            "hostname": "localhost", "port": self.port, "id": State::id(&self.ids.agent),
        });
        merge(&mut agent, &self.settings.agent);
        json!({"type": "SUBSCRIBED", "subscribed": {
            "executor_info": self.executor_info(),
            "framework_info": framework,
            "agent_info": agent,
            "container_id": State::id(&self.ids.container),
        }})
    }

    // ---- events

    /// Sends an event, if there is a stream.
    pub(crate) fn event(&mut self, event: &Value) {
        self.record("event", event.clone());
        let Some(stream) = &self.stream else { return };
        let encoded = codec::encode(stream.encoding, "Event", event);
        let mut bytes = encoded.unwrap_or_else(|error| panic!("event of the test: {error}"));
        if self.settings.strange {
            bytes = strange(stream.encoding, bytes);
        }
        let _ = stream.out.send(Out::Record(bytes));
    }

    /// Sends something that is no event, for which there has to be a stream.
    pub(crate) fn out(&mut self, out: Out) {
        self.record("stream", json!(format!("{out:?}")));
        let stream = self.stream.as_ref().expect("a stream");
        let _ = stream.out.send(out);
    }

    /// Queues tasks of one launch, and delivers them if the executor has subscribed.
    pub(crate) fn launch(&mut self, mut tasks: Vec<Value>, group: bool) {
        self.launches += 1;
        let mut names = Vec::new();
        for task in &mut tasks {
            task["agent_id"] = State::id(&self.ids.agent);
            if group || task.get("command").is_none() {
                task["executor"] = self.executor_info();
            }
            let name = text(task, &["task_id", "value"]).to_owned();
            let known = Task {
                info: task.clone(),
                launch: if group { self.launches } else { 0 },
                delivered: false,
                acknowledged: false,
                statuses: Vec::new(),
            };
            self.tasks.entry(name.clone()).or_insert(known);
            names.push(name);
        }
        self.queue.push_back(names);
        if self.run == Run::Subscribed {
            self.deliver();
        }
    }

    pub(crate) fn deliver(&mut self) {
        while let Some(names) = self.queue.pop_front() {
            let mut infos = Vec::new();
            let mut group = false;
            for name in names {
                let Some(task) = self.tasks.get_mut(&name).filter(|task| !task.over()) else {
                    continue;
                };
                task.delivered = true;
                group = task.launch > 0;
                infos.push(task.info.clone());
            }
            match (group, infos.as_slice()) {
                (_, []) => {}
                (false, [info]) => self.event(&json!({"type": "LAUNCH", "launch": {"task": info}})),
                _ => self.event(&json!({"type": "LAUNCH_GROUP", "launch_group": {"task_group": {"tasks": infos}}})),
            }
        }
    }

    /// Asks for the end of a task; one that was never delivered ends here, and its group with it.
    pub(crate) fn kill(&mut self, name: &str, policy: Option<Value>) {
        let waiting = self
            .queue
            .iter()
            .position(|names| names.iter().any(|n| n == name));
        if let Some(names) = waiting.and_then(|at| self.queue.remove(at)) {
            for name in names {
                let message = "Killed before delivery to the executor";
                self.agents_status(
                    &name,
                    "TASK_KILLED",
                    "REASON_TASK_KILLED_DURING_LAUNCH",
                    message,
                );
            }
            return;
        }
        let mut kill = json!({"task_id": State::id(name)});
        if let Some(policy) = policy {
            kill["kill_policy"] = policy;
        }
        self.event(&json!({"type": "KILL", "kill": kill}));
    }

    /// A status that the agent makes itself.
    pub(crate) fn agents_status(&mut self, name: &str, state: &str, reason: &str, message: &str) {
        let status = json!({"task_id": State::id(name), "state": state, "reason": reason, "message": message,
            "source": "SOURCE_AGENT", "agent_id": State::id(&self.ids.agent), "timestamp": ids::now().as_secs_f64()});
        self.record("status", status.clone());
        if let Some(task) = self.tasks.get_mut(name).filter(|task| !task.over()) {
            task.statuses.push(status);
        }
    }

    /// The executor's container is gone.
    pub(crate) fn exited(&mut self, exit: Exit) {
        self.record("exit", json!(format!("{exit:?}")));
        self.run = Run::Terminated;
        self.exit = Some(exit);
        self.stream = None;
        let names: Vec<String> = self.tasks.keys().cloned().collect();
        for name in names {
            if !self.tasks[&name].over() {
                self.agents_status(
                    &name,
                    "TASK_FAILED",
                    "REASON_EXECUTOR_TERMINATED",
                    "Executor terminated",
                );
            }
        }
    }

    /// Another executor takes the place of one that is gone.
    pub(crate) fn next_run(&mut self) {
        self.run = Run::Registering;
        self.exit = None;
        self.destroyed = false;
        self.held.clear();
        self.updates.clear();
        self.order.clear();
    }

    /// Gives the acknowledgements that were kept.
    pub(crate) fn release(&mut self) {
        for (name, uuid) in std::mem::take(&mut self.held) {
            self.acknowledge(&name, &uuid);
        }
    }

    /// Sends an acknowledgement.
    pub(crate) fn acknowledge(&mut self, name: &str, uuid: &str) {
        if let Some(task) = self.tasks.get_mut(name) {
            task.acknowledged = true;
        }
        if let Some((_, acknowledged)) = self.updates.get_mut(uuid) {
            *acknowledged = true;
        }
        let acknowledged = json!({"task_id": State::id(name), "uuid": uuid});
        self.event(&json!({"type": "ACKNOWLEDGED", "acknowledged": acknowledged}));
    }

    /// The environment of an executor: these variables and no others.
    pub(crate) fn environment(
        &self,
        sandbox: &str,
        socket: &str,
        authority: &str,
    ) -> Vec<(String, String)> {
        let settings = &self.settings;
        let duration = crate::settings::duration;
        let mut all = vec![
            ("MESOS_FRAMEWORK_ID", self.ids.framework.clone()),
            ("MESOS_EXECUTOR_ID", self.ids.executor.clone()),
            ("MESOS_SLAVE_ID", self.ids.agent.clone()),
            (
                "MESOS_SLAVE_PID",
                format!("slave(1)@127.0.0.1:{}", self.port),
            ),
            ("MESOS_AGENT_ENDPOINT", format!("127.0.0.1:{}", self.port)),
            ("MESOS_SANDBOX", sandbox.to_owned()),
            ("MESOS_DIRECTORY", sandbox.to_owned()),
            (
                "MESOS_CHECKPOINT",
                u8::from(settings.checkpoint).to_string(),
            ),
            (
                "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD",
                duration(settings.shutdown_grace),
            ),
            ("MESOS_HTTP_COMMAND_EXECUTOR", "0".into()),
            ("LIBPROCESS_IP", "127.0.0.1".into()),
            ("LIBPROCESS_PORT", "0".into()),
            (
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
            ),
        ];
        if settings.checkpoint {
            all.push((
                "MESOS_RECOVERY_TIMEOUT",
                duration(settings.recovery_timeout),
            ));
            all.push((
                "MESOS_SUBSCRIPTION_BACKOFF_MAX",
                duration(settings.backoff_max),
            ));
        }
        if settings.token {
            let ids = &self.ids;
            let claims = json!({"fid": ids.framework, "eid": ids.executor, "cid": ids.container});
            all.push(("MESOS_EXECUTOR_AUTHENTICATION_TOKEN", ids::token(&claims)));
        }
        match settings.transport {
            Transport::Tcp => {}
            Transport::DomainSocket => all.push(("MESOS_DOMAIN_SOCKET", socket.to_owned())),
            Transport::Tls => {
                all.push(("LIBPROCESS_SSL_ENABLED", "1".into()));
                all.push(("LIBPROCESS_SSL_CA_FILE", authority.to_owned()));
            }
        }
        let all = all
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        all.chain(settings.environment.iter().cloned()).collect()
    }
}

/// Fields of `more` over those of `into`.
pub(crate) fn merge(into: &mut Value, more: &Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

/// An event as an agent of a later version might send it.
fn strange(encoding: Encoding, mut bytes: Vec<u8>) -> Vec<u8> {
    match encoding {
        // field 1000 as a varint, 1001 as bytes
        Encoding::Protobuf => bytes.extend(b"\xc0\x3e\x01\xca\x3e\x03new"),
        Encoding::Json => {
            bytes.pop();
            bytes.extend(br#","of_a_later_version":{"a":[1,null,"x"]}}"#);
        }
    }
    bytes
}
