//! What the executor does next: a pure function of what the agent and the pods tell. No I/O, no clock.
//!
//! *Invariants:* a task gets STARTING with the event that brings it, and never another state after a terminal one; an update keeps its uuid,
//! and is sent again, unchanged, until it is acknowledged; updates of a task are sent in order; a pod is removed before the executor ends,
//! unless the agent's patience ends first. What changed is told ([`Machine::take_changed`]) before what follows from it
//! ([`Machine::take_actions`]): the one is written down before the other is done.
//!
//! Leaves to others: when connections are made ([`super::session`]), what a task is as a pod ([`super::task`]).

mod end;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::ledger::{Kill, Launch, Phase, Planned, Task, Update, Why};
use super::message;
use super::proto::framework_info::capability;
use super::proto::task_status::{Reason, Source};
use super::proto::{
    Event, ExecutorId, FrameworkInfo, KillPolicy, NetworkInfo, TaskId, TaskInfo, TaskState,
    TaskStatus, event,
};
use super::task::pod_name;
use crate::pod::control::Request;
use crate::pod::record::{self, Status, Verdict};

/// How long an executor without a task waits for the last acknowledgement of an agent that is there.
const LAST_WORDS: Duration = Duration::from_secs(60);
/// Ids of ended tasks that are remembered, so that a repeated LAUNCH does nothing.
const REMEMBERED: usize = 4096;

/// The two clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Now {
    /// Since boot: the same for every process.
    pub boot: Duration,
    /// Seconds since 1970.
    pub unix: f64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// An event of the agent.
    Agent(Box<Event>),
    /// The connection is lost; another one is on its way.
    Lost,
    /// There will be no other connection: complete text.
    Abandoned(String),
    /// The agent takes calls and says nothing more: no acknowledgement comes from here on.
    Deaf,
    /// Such an agent has taken this update.
    Taken(Vec<u8>),
    /// The agent will not take this update, whatever is done: complete text.
    Refused {
        /// Which one.
        uuid: Vec<u8>,
        /// Why.
        why: String,
    },
    /// We were asked to end by a signal.
    Terminate,
    /// Earlier processes of this executor died one after the other, and there will be none after this one: complete text.
    GivenUp(String),
    /// It is known what the tasks of a launch are as a pod.
    Planned(u64, Vec<Planned>),
    /// The pod of a launch is there, and watched from now on.
    Started(u64),
    /// Its networks, in order of attachment.
    Networks(u64, Vec<NetworkInfo>),
    /// There is no pod of a launch, and nothing of it is left.
    NotStarted(u64, NotStarted),
    /// A service's status.
    Service {
        /// The launch.
        launch: u64,
        /// The service.
        name: String,
        /// Its status.
        status: Box<Status>,
        /// The last line that it printed, once it has failed.
        last_line: Option<String>,
    },
    /// The pod came to rest.
    Verdict(u64, Verdict),
    /// The pod went, and not by us: complete text.
    Gone(u64, String),
    /// The pod was removed.
    Removed(u64),
    /// Something for the operator alone.
    Note(String),
    /// Time has passed.
    Tick,
}

/// Why a launch has no pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NotStarted {
    /// The task that is the reason; `None`: all of them.
    pub task: Option<String>,
    /// What it becomes: TASK_FAILED, TASK_ERROR.
    pub state: TaskState,
    /// Why.
    pub reason: Option<Reason>,
    /// For people.
    pub message: String,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Keep what the agent told of itself.
    KeepSubscribed(Box<event::Subscribed>),
    /// Keep the tasks of a new launch; before everything else.
    KeepTasks(u64, Vec<TaskInfo>),
    /// Make the pod of a launch; of one that an earlier process of this executor made already, only tell what its tasks are.
    Start(u64),
    /// Go on with a pod that was up; one that is there no more was removed.
    Watch(u64),
    /// Stop making the pod; `NotStarted` follows.
    Cancel(u64),
    /// As `Cancel`, without patience.
    Abort(u64),
    /// Stop services of a pod.
    Stop {
        /// The launch.
        launch: u64,
        /// Which.
        services: Vec<String>,
        /// Time until SIGKILL; `None`: each service's own.
        grace: Option<Duration>,
    },
    /// Remove the pod of a launch.
    Remove(u64),
    /// Forget a launch.
    Forget(u64),
    /// Send an update.
    Send(Box<TaskStatus>),
    /// Have services do what the framework asks for, and tell it.
    Ask {
        /// The launch.
        launch: u64,
        /// What.
        request: Request,
        /// For the answer.
        id: serde_json::Value,
    },
    /// Send a message to the framework.
    Tell(Vec<u8>),
    /// Tell the operator.
    Log(String),
    /// End the process with this code.
    Exit(u8),
}

/// What is known of a pod at the moment.
#[derive(Debug, Default)]
struct Live {
    services: BTreeMap<String, Service>,
    verdict: Option<Verdict>,
}

/// A service of a pod.
#[derive(Debug, Clone, PartialEq)]
struct Service {
    status: Status,
    last_line: Option<String>,
}

/// The end of the executor.
#[derive(Debug, Clone, PartialEq)]
struct Ending {
    /// When the agent's patience is over (time since boot).
    until: Duration,
    /// Somebody listens to updates.
    reports: bool,
    code: u8,
}

/// The executor.
pub struct Machine {
    framework: String,
    executor: String,
    /// How long the agent waits after SHUTDOWN.
    shutdown_grace: Duration,
    /// How long an executor without a task waits for another one.
    linger: Duration,
    may_say_killing: bool,
    knows_partitions: bool,
    subscribed: bool,
    launches: BTreeMap<u64, Launch>,
    live: BTreeMap<u64, Live>,
    /// Number of the last launch.
    last: u64,
    /// Order of the last update.
    order: u64,
    /// Updates up to this one have been sent over the present connection.
    told: u64,
    ended: VecDeque<u64>,
    ending: Option<Ending>,
    /// Since when nothing but acknowledgements is missing.
    waiting: Option<Duration>,
    /// Since when there is nothing to do.
    idle: Option<Duration>,
    random: fastrand::Rng,
    changed: BTreeSet<u64>,
    actions: Vec<Action>,
}

/// A task never leaves it.
pub fn is_terminal(state: TaskState) -> bool {
    use TaskState as S;
    match state {
        S::Finished | S::Failed | S::Killed | S::Lost | S::Error => true,
        S::Dropped | S::Gone | S::GoneByOperator => true,
        S::Starting | S::Running | S::Staging | S::Killing | S::Unreachable | S::Unknown => false,
    }
}

impl Machine {
    /// An executor with the launches that its ledger has.
    pub fn new(
        framework: &str,
        executor: &str,
        shutdown_grace: Duration,
        linger: Duration,
        launches: BTreeMap<u64, Launch>,
        random: fastrand::Rng,
    ) -> Machine {
        let updates = launches.values().flat_map(|launch| &launch.tasks);
        let order = updates.flat_map(|task| &task.updates).map(|u| u.order);
        let mut machine = Machine {
            framework: framework.to_string(),
            executor: executor.to_string(),
            shutdown_grace,
            linger,
            may_say_killing: false,
            knows_partitions: false,
            subscribed: false,
            last: launches.keys().copied().max().unwrap_or(0),
            order: order.max().unwrap_or(0),
            told: 0,
            ended: VecDeque::new(),
            ending: None,
            waiting: None,
            idle: None,
            random,
            changed: BTreeSet::new(),
            actions: Vec::new(),
            live: BTreeMap::new(),
            launches,
        };
        machine.resume();
        machine
    }

    /// Takes up what an earlier process was at.
    fn resume(&mut self) {
        for launch in self.launches.values() {
            let killed = launch.tasks.iter().any(|task| task.kill.is_some());
            let action = match launch.phase {
                Phase::Starting if killed => Action::Cancel(launch.number),
                Phase::Starting => Action::Start(launch.number),
                Phase::Up => Action::Watch(launch.number),
                Phase::Removing => Action::Remove(launch.number),
                Phase::Removed => continue,
            };
            self.actions.push(action);
        }
    }

    /// What the agent told an earlier process.
    pub fn know(&mut self, framework: &FrameworkInfo) {
        let has = |wanted| {
            let mut all = framework.capabilities.iter();
            all.any(|capability| capability.r#type() == wanted)
        };
        self.may_say_killing = has(capability::Type::TaskKillingState);
        self.knows_partitions = has(capability::Type::PartitionAware);
    }

    /// A launch by number.
    pub fn launch(&self, number: u64) -> Option<&Launch> {
        self.launches.get(&number)
    }

    /// For SUBSCRIBE: tasks of which nothing was acknowledged, as launch and id, and updates that were not, oldest first. All of them count
    /// as sent.
    pub fn unacknowledged(&mut self) -> (Vec<(u64, String)>, Vec<TaskStatus>) {
        let mut updates = BTreeMap::new();
        let mut tasks = Vec::new();
        for launch in self.launches.values() {
            for task in &launch.tasks {
                if !task.known {
                    tasks.push((launch.number, task.id.clone()));
                }
                updates.extend(task.updates.iter().map(|u| (u.order, &u.status)));
            }
        }
        self.told = self.order;
        (tasks, updates.into_values().cloned().collect())
    }

    /// Launches to write down before the actions are carried out.
    pub fn take_changed(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.changed)
    }

    /// What to do now.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Something happened.
    pub fn input(&mut self, now: Now, input: Input) {
        match input {
            Input::Agent(event) => self.agent(now, *event),
            Input::Lost => self.subscribed = false,
            Input::Abandoned(why) => {
                self.subscribed = false;
                self.end(now, Why::Shutdown(why), false);
            }
            Input::Deaf => {
                self.subscribed = true;
                // what it was told by SUBSCRIBE it has not read
                self.told = 0;
                self.send_untold();
            }
            Input::Taken(uuid) => self.acknowledge(&uuid, None),
            Input::Refused { uuid, why } => {
                self.log(why);
                self.acknowledge(&uuid, None);
            }
            Input::Terminate => {
                let why = Why::Shutdown("the executor was asked to end".into());
                self.end(now, why, true);
            }
            Input::GivenUp(why) => self.end(now, Why::Failed(why), true),
            Input::Planned(number, plans) => self.planned(number, plans),
            Input::Started(number) => self.started(now, number),
            Input::Networks(number, networks) => {
                if let Some(launch) = self.launches.get_mut(&number) {
                    for task in &mut launch.tasks {
                        task.networks.clone_from(&networks);
                    }
                    self.changed.insert(number);
                }
            }
            Input::NotStarted(number, failure) => self.not_started(now, number, failure),
            Input::Service {
                launch,
                name,
                status,
                last_line,
            } => {
                if let Some(live) = self.live.get_mut(&launch) {
                    let status = *status;
                    live.services.insert(name, Service { status, last_line });
                    self.evaluate(now, launch);
                }
            }
            Input::Verdict(number, verdict) => {
                if let Some(live) = self.live.get_mut(&number) {
                    live.verdict = Some(verdict);
                    self.evaluate(now, number);
                }
            }
            Input::Gone(number, why) => self.gone(now, number, None, &why),
            Input::Removed(number) => self.removed(number),
            Input::Note(text) => self.log(text),
            Input::Tick => {}
        }
        self.tick(now);
        self.settle(now);
    }

    fn agent(&mut self, now: Now, event: Event) {
        use event::Type;
        match (event.r#type(), event) {
            (Type::Subscribed, event) => {
                if let Some(subscribed) = event.subscribed {
                    self.subscribed(subscribed);
                }
            }
            (Type::Launch, event) => {
                let tasks = event.launch.map(|launch| vec![launch.task]);
                self.launch_tasks(now, tasks.unwrap_or_default(), false);
            }
            (Type::LaunchGroup, event) => {
                let tasks = event.launch_group.map(|launch| launch.task_group.tasks);
                self.launch_tasks(now, tasks.unwrap_or_default(), true);
            }
            (Type::Kill, event) => {
                if let Some(kill) = event.kill {
                    self.kill(now, &kill.task_id.value, kill.kill_policy.as_ref());
                }
            }
            (Type::Acknowledged, event) => {
                if let Some(acknowledged) = event.acknowledged {
                    let task = acknowledged.task_id.value;
                    self.acknowledge(&acknowledged.uuid, Some(&task));
                }
            }
            (Type::Message, event) => {
                let data = event.message.map(|message| message.data);
                self.message(&data.unwrap_or_default());
            }
            (Type::Shutdown, _) => {
                let why = Why::Shutdown("the agent shut the executor down".into());
                self.end(now, why, true);
            }
            (Type::Error, event) => {
                let message = event.error.map(|error| error.message).unwrap_or_default();
                let why = Why::Shutdown(format!("the agent gave up: {message}"));
                self.end(now, why, false);
            }
            (Type::Heartbeat, _) => {}
            (Type::Unknown, _) => self.log("an event of an unknown type is passed over".into()),
        }
    }

    /// MESSAGE.
    fn message(&mut self, data: &[u8]) {
        let ask = match message::read(data) {
            None => {
                let length = data.len();
                return self.log(format!(
                    "a message of {length} bytes from the framework is not for the executor"
                ));
            }
            Some(Err(answer)) => return self.actions.push(Action::Tell(answer)),
            Some(Ok(ask)) => ask,
        };
        let action = match self.asked(&ask) {
            Ok((launch, services)) => Action::Ask {
                launch,
                request: ask.request(services),
                id: ask.id,
            },
            Err(why) => Action::Tell(message::failed(&ask.id, &why)),
        };
        self.actions.push(action);
    }

    /// The services that the framework asks something of, and their launch.
    fn asked(&self, ask: &message::Ask) -> Result<(u64, Vec<String>), String> {
        let id = &ask.task;
        let found = self.find(id).and_then(|(number, at)| {
            let launch = self.launches.get(&number)?;
            Some((launch, launch.tasks.get(at)?))
        });
        let running = |(launch, task): &(&Launch, &Task)| {
            launch.phase == Phase::Up && task.kill.is_none() && !task.is_over()
        };
        let Some((launch, task)) = found.filter(running) else {
            return Err(format!("task {id} does not run here"));
        };
        let all = task.plan.as_ref().map_or(&[][..], |plan| &plan.services);
        match &ask.service {
            None => Ok((launch.number, all.to_vec())),
            Some(name) if all.contains(name) => Ok((launch.number, vec![name.clone()])),
            Some(name) => Err(format!(
                "task {id} has no service {name}, but {}",
                all.join(", ")
            )),
        }
    }

    fn subscribed(&mut self, subscribed: event::Subscribed) {
        self.know(&subscribed.framework_info);
        self.subscribed = true;
        let keep = Action::KeepSubscribed(Box::new(subscribed));
        self.actions.push(keep);
        // what came up while the agent read our SUBSCRIBE
        self.send_untold();
    }

    /// Sends the updates that this connection has not seen, oldest first.
    fn send_untold(&mut self) {
        let tasks = self.launches.values().flat_map(|launch| &launch.tasks);
        let late = tasks.flat_map(|task| &task.updates);
        let late: BTreeMap<u64, &TaskStatus> = late
            .filter(|update| update.order > self.told)
            .map(|update| (update.order, &update.status))
            .collect();
        let sends = late.into_values().cloned().map(Box::new).map(Action::Send);
        self.actions.extend(sends);
        self.told = self.order;
    }

    fn log(&mut self, text: String) {
        self.actions.push(Action::Log(text));
    }

    fn launch_tasks(&mut self, now: Now, tasks: Vec<TaskInfo>, group: bool) {
        if tasks.is_empty() {
            return self.log("a launch without tasks is passed over".into());
        }
        let mut ids = BTreeSet::new();
        let (tasks, old): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|task| {
            let id = &task.task_id.value;
            ids.insert(id.clone()) && self.find(id).is_none() && !self.ended.contains(&hash(id))
        });
        let repeated = old.first().map(|task| {
            let id = &task.task_id.value;
            format!("task {id} was launched already")
        });
        if let Some(text) = &repeated {
            self.log(format!("{text}; the repetition is passed over"));
        }
        if tasks.is_empty() {
            return;
        }
        self.last += 1;
        let number = self.last;
        let new = |info: &TaskInfo| Task {
            id: info.task_id.value.clone(),
            check: info.check.as_ref().and_then(state::check_type),
            memory: state::memory(info),
            ..Task::default()
        };
        let launch = Launch {
            version: record::VERSION,
            number,
            pod: pod_name(&tasks, &self.framework, &self.executor),
            group,
            phase: Phase::Starting,
            tasks: tasks.iter().map(new).collect(),
        };
        self.launches.insert(number, launch);
        self.live.insert(number, Live::default());
        self.waiting = None;
        self.actions.push(Action::KeepTasks(number, tasks));
        let refused = match (&self.ending, repeated) {
            (Some(_), _) => {
                Some(state::Change::to(TaskState::Dropped).because("the executor is ending"))
            }
            // all of a group or none
            (None, Some(text)) => Some(
                state::Change::to(TaskState::Error)
                    .reason(Reason::TaskGroupInvalid)
                    .because(&text),
            ),
            (None, None) => None,
        };
        if let Some(change) = refused {
            self.change_all(number, |machine, at| {
                machine.update(now, number, at, change.clone())
            });
            if let Some(launch) = self.launches.get_mut(&number) {
                launch.phase = Phase::Removed;
            }
            if self.ending.as_ref().is_some_and(|ending| !ending.reports) {
                self.log("a launch came while the executor ends".into());
            }
            return;
        }
        self.change_all(number, |machine, at| {
            let change = state::Change::to(TaskState::Starting);
            machine.update(now, number, at, change);
        });
        self.actions.push(Action::Start(number));
    }

    /// Does something for each task of a launch, by its place there.
    fn change_all(&mut self, number: u64, change: impl Fn(&mut Machine, usize)) {
        let count = self.launches.get(&number).map_or(0, |l| l.tasks.len());
        for at in 0..count {
            change(self, at);
        }
    }

    /// Launch and place of a task.
    fn find(&self, id: &str) -> Option<(u64, usize)> {
        self.launches.values().find_map(|launch| {
            let at = launch.tasks.iter().position(|task| task.id == id)?;
            Some((launch.number, at))
        })
    }

    fn task(&mut self, number: u64, at: usize) -> Option<&mut Task> {
        self.launches.get_mut(&number)?.tasks.get_mut(at)
    }

    /// Writes a new status of a task, and sends it.
    fn update(&mut self, now: Now, number: u64, at: usize, change: state::Change) {
        let mut uuid = self.random.u128(..).to_be_bytes();
        // RFC 9562 section 5.4: version and variant; the agent refuses versions above 5
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let (executor, old) = (self.executor.clone(), !self.knows_partitions);
        let order = self.order + 1;
        let Some(task) = self.task(number, at).filter(|task| !task.is_over()) else {
            return;
        };
        let last = task.status.take().unwrap_or_default();
        let state = match change.state {
            TaskState::Dropped if old => TaskState::Lost,
            state => state,
        };
        let status = TaskStatus {
            task_id: TaskId {
                value: task.id.clone(),
            },
            state: state.into(),
            executor_id: Some(ExecutorId { value: executor }),
            source: Some(Source::Executor.into()),
            uuid: Some(uuid.to_vec()),
            timestamp: Some(now.unix),
            message: change.message,
            reason: change.reason.map(Into::into),
            healthy: change.healthy.or(last.healthy),
            check_status: change
                .check_status
                .or(last.check_status)
                .or_else(|| task.check.map(state::no_result)),
            limitation: change.limitation,
            container_status: state::container(&task.networks),
            ..TaskStatus::default()
        };
        task.status = Some(status.clone());
        task.updates.push_back(Update {
            order,
            status: status.clone(),
        });
        if state == TaskState::Running && task.deadline.is_none() {
            let most = task.plan.as_ref().and_then(|plan| plan.max_completion);
            task.deadline = most.map(|most| now.boot + most);
        }
        if is_terminal(state) {
            let id = hash(&task.id);
            self.ended.push_back(id);
            if self.ended.len() > REMEMBERED {
                self.ended.pop_front();
            }
        }
        self.order = order;
        self.changed.insert(number);
        if self.subscribed {
            self.told = order;
            self.actions.push(Action::Send(Box::new(status)));
        }
    }

    fn acknowledge(&mut self, uuid: &[u8], id: Option<&str>) {
        for launch in self.launches.values_mut() {
            for task in &mut launch.tasks {
                let is = |update: &Update| update.status.uuid.as_deref() == Some(uuid);
                let Some(at) = task.updates.iter().position(is) else {
                    continue;
                };
                task.updates.remove(at);
                task.known = true;
                self.changed.insert(launch.number);
                return;
            }
        }
        // late or twice: harmless
        if let Some(id) = id {
            self.log(format!(
                "an acknowledgement for task {id} is of no update that waits for one"
            ));
        }
    }
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
