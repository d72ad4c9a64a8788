//! Lives of tasks: what happens, and line by line what comes of it.

use super::*;
use crate::compose::project::CheckKind;
use crate::executor::mesos::proto::{
    CheckInfo, DurationInfo, TaskGroupInfo, check_info, framework_info,
};
use crate::pod::record::{Cause, CheckResult, CheckState, Goal, Measured, Phase as At};

const SECOND: Duration = Duration::from_secs(1);

/// An executor with a clock.
struct Life {
    machine: Machine,
    now: Duration,
    sent: Vec<TaskStatus>,
}

impl Life {
    fn new() -> Life {
        Life::of(BTreeMap::new())
    }

    fn of(launches: BTreeMap<u64, Launch>) -> Life {
        Life::lingering(Duration::ZERO, launches)
    }

    /// Waits so long for another task.
    fn lingering(linger: Duration, launches: BTreeMap<u64, Launch>) -> Life {
        let random = fastrand::Rng::with_seed(1);
        Life {
            machine: Machine::new("0000", "exec-1", 10 * SECOND, linger, launches, random),
            now: 1000 * SECOND,
            sent: Vec::new(),
        }
    }

    /// Subscribed by an agent of a framework with these capabilities.
    fn subscribed(capabilities: &[capability::Type]) -> Life {
        let mut life = Life::new();
        life.subscribe(capabilities);
        life
    }

    fn subscribe(&mut self, capabilities: &[capability::Type]) -> Vec<String> {
        let capabilities = capabilities.iter().map(|kind| framework_info::Capability {
            r#type: Some((*kind).into()),
        });
        let subscribed = event::Subscribed {
            framework_info: FrameworkInfo {
                capabilities: capabilities.collect(),
                ..FrameworkInfo::default()
            },
            ..event::Subscribed::default()
        };
        self.agent(
            event::Type::Subscribed,
            Event {
                subscribed: Some(subscribed),
                ..Event::default()
            },
        )
    }

    fn agent(&mut self, kind: event::Type, event: Event) -> Vec<String> {
        self.input(Input::Agent(Box::new(Event {
            r#type: Some(kind.into()),
            ..event
        })))
    }

    /// What comes of an input, line by line.
    fn input(&mut self, input: Input) -> Vec<String> {
        let now = Now {
            boot: self.now,
            unix: 1.7e9 + self.now.as_secs_f64(),
        };
        self.machine.input(now, input);
        let actions = self.machine.take_actions();
        for action in &actions {
            if let Action::Send(status) = action {
                self.sent.push(status.as_ref().clone());
            }
        }
        actions.iter().map(line).collect()
    }

    fn after(&mut self, pause: Duration) -> Vec<String> {
        self.now += pause;
        self.input(Input::Tick)
    }

    fn launch(&mut self, tasks: &[&str]) -> Vec<String> {
        let tasks = tasks.iter().map(|id| task(id)).collect();
        self.launch_tasks(tasks)
    }

    fn launch_tasks(&mut self, mut tasks: Vec<TaskInfo>) -> Vec<String> {
        let launch_group = event::LaunchGroup {
            task_group: TaskGroupInfo {
                tasks: tasks.clone(),
            },
        };
        let launch = event::Launch {
            task: tasks.remove(0),
        };
        match tasks.is_empty() {
            true => self.agent(
                event::Type::Launch,
                Event {
                    launch: Some(launch),
                    ..Event::default()
                },
            ),
            false => self.agent(
                event::Type::LaunchGroup,
                Event {
                    launch_group: Some(launch_group),
                    ..Event::default()
                },
            ),
        }
    }

    fn kill(&mut self, id: &str, grace: Option<f64>) -> Vec<String> {
        let nanoseconds = |grace: f64| (grace * 1e9) as i64;
        let kill = event::Kill {
            task_id: TaskId { value: id.into() },
            kill_policy: grace.map(|grace| KillPolicy {
                grace_period: Some(DurationInfo {
                    nanoseconds: nanoseconds(grace),
                }),
            }),
        };
        self.agent(
            event::Type::Kill,
            Event {
                kill: Some(kill),
                ..Event::default()
            },
        )
    }

    /// Acknowledges everything that was sent, oldest first.
    fn acknowledge(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for status in std::mem::take(&mut self.sent) {
            let acknowledged = event::Acknowledged {
                task_id: status.task_id,
                uuid: status.uuid.unwrap_or_default(),
            };
            lines.extend(self.agent(
                event::Type::Acknowledged,
                Event {
                    acknowledged: Some(acknowledged),
                    ..Event::default()
                },
            ));
        }
        lines
    }

    /// The pod of a launch comes up: each task has one service with its own name.
    fn up(&mut self, number: u64) -> Vec<String> {
        self.up_as(number, |_| {})
    }

    fn up_as(&mut self, number: u64, change: impl Fn(&mut Planned)) -> Vec<String> {
        let tasks = &self.machine.launch(number).unwrap().tasks;
        let plan = |task: &Task| {
            let mut plan = Planned {
                id: task.id.clone(),
                services: vec![task.id.clone()],
                grace: Some(3 * SECOND),
                ..Planned::default()
            };
            change(&mut plan);
            plan
        };
        let plans = tasks.iter().map(plan).collect();
        let mut lines = self.input(Input::Planned(number, plans));
        lines.extend(self.input(Input::Started(number)));
        lines
    }

    fn service(&mut self, launch: u64, name: &str, status: Status) -> Vec<String> {
        self.input(Input::Service {
            launch,
            name: name.into(),
            status: Box::new(status),
            last_line: None,
        })
    }

    fn runs(&mut self, launch: u64, name: &str) -> Vec<String> {
        self.service(launch, name, running())
    }
}

fn task(id: &str) -> TaskInfo {
    TaskInfo {
        task_id: TaskId { value: id.into() },
        ..TaskInfo::default()
    }
}

fn running() -> Status {
    Status {
        goal: Goal::Run,
        phase: At::Running,
        started: "2026-01-01T00:00:00Z".into(),
        ..Status::default()
    }
}

fn ended(code: i32, cause: Cause) -> Status {
    Status {
        phase: At::Exited,
        exit_code: Some(code),
        cause: Some(cause),
        finished: "2026-01-01T00:00:01Z".into(),
        ..running()
    }
}

/// Results of the task's health check: none yet, failed three times, passed.
fn checks(healthy: Option<bool>) -> BTreeMap<String, CheckResult> {
    let tcp = Measured::Tcp { succeeded: healthy };
    let mut result = CheckResult::new(CheckKind::Health, tcp);
    if let Some(healthy) = healthy {
        (result.state, result.failures, result.message) = match healthy {
            true => (CheckState::Passing, 0, String::new()),
            false => (CheckState::Failing, 3, "refused".into()),
        };
    }
    BTreeMap::from([("mesos-health".into(), result)])
}

fn line(action: &Action) -> String {
    match action {
        Action::KeepSubscribed(_) => "keep subscribed".into(),
        Action::KeepTasks(number, tasks) => format!("keep {number}: {} tasks", tasks.len()),
        Action::Start(number) => format!("start {number}"),
        Action::Watch(number) => format!("watch {number}"),
        Action::Cancel(number) => format!("cancel {number}"),
        Action::Abort(number) => format!("abort {number}"),
        Action::Stop {
            launch,
            services,
            grace,
        } => format!("stop {launch} {} {grace:?}", services.join(" ")),
        Action::Remove(number) => format!("remove {number}"),
        Action::Forget(number) => format!("forget {number}"),
        Action::Ask {
            launch,
            request,
            id,
        } => format!("ask {launch} {request:?} {id}"),
        Action::Tell(data) => format!("tell {}", String::from_utf8_lossy(data)),
        Action::Send(status) => {
            let mut text = format!("{} {}", status.task_id.value, status.state());
            if status.reason.is_some() {
                text += &format!(" {}", status.reason());
            }
            if let Some(healthy) = status.healthy {
                text += &format!(" healthy={healthy}");
            }
            if let Some(message) = &status.message {
                text += &format!(": {message}");
            }
            text
        }
        Action::Log(text) => format!("log {text}"),
        Action::Exit(code) => format!("exit {code}"),
    }
}

#[test]
fn a_task_from_start_to_end() {
    let mut life = Life::subscribed(&[]);
    assert_eq!(
        life.launch(&["shop.1_a"]),
        ["keep 1: 1 tasks", "shop.1_a TASK_STARTING", "start 1"]
    );
    let launch = life.machine.launch(1).unwrap();
    assert!(launch.pod.starts_with("shop-1-a-") && !launch.group);
    assert_eq!(life.machine.take_changed(), BTreeSet::from([1]));
    assert!(life.up(1).is_empty());
    assert_eq!(life.runs(1, "shop.1_a"), ["shop.1_a TASK_RUNNING"]);
    assert!(life.runs(1, "shop.1_a").is_empty());
    let status = ended(0, Cause::Exited);
    assert_eq!(
        life.service(1, "shop.1_a", status),
        ["shop.1_a TASK_FINISHED", "remove 1"]
    );
    let uuids: BTreeSet<_> = life.sent.iter().map(|s| s.uuid.clone().unwrap()).collect();
    assert_eq!(uuids.len(), 3);
    for uuid in &uuids {
        assert_eq!((uuid.len(), uuid[6] >> 4, uuid[8] >> 6), (16, 4, 2));
    }
    for status in &life.sent {
        assert_eq!(status.source(), Source::Executor);
        assert_eq!(status.executor_id.as_ref().unwrap().value, "exec-1");
        assert_eq!(status.timestamp, Some(1_700_001_000.0));
    }
    assert!(life.acknowledge().is_empty());
    assert_eq!(life.input(Input::Removed(1)), ["exit 0"]);
}

/// It ran, and whoever counts RUNNING counts it.
#[test]
fn a_task_that_ended_before_anybody_looked() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["quick"]);
    life.up(1);
    assert_eq!(
        life.service(1, "quick", ended(0, Cause::Exited)),
        ["quick TASK_RUNNING", "quick TASK_FINISHED", "remove 1"]
    );
    // one that could not be started did not
    life.launch(&["bad"]);
    life.up(2);
    let status = Status {
        started: String::new(),
        ..ended(125, Cause::NotStarted)
    };
    let told = life.service(2, "bad", status);
    assert!(told[0].starts_with("bad TASK_FAILED"), "{told:?}");
}

#[test]
fn ends() {
    let with = |cause, change: &dyn Fn(&mut Status)| {
        let mut status = ended(1, cause);
        change(&mut status);
        status
    };
    for (status, expected) in [
        (
            with(Cause::Exited, &|_| {}),
            "t TASK_FAILED: service t exited with code 1",
        ),
        (
            with(Cause::Exited, &|s| {
                (s.signal, s.exit_code) = (Some(9), Some(137))
            }),
            "t TASK_FAILED: service t was ended by signal 9",
        ),
        (
            with(Cause::Exited, &|s| s.exit_code = None),
            "t TASK_FAILED: service t ended, its exit code was not seen",
        ),
        (
            with(Cause::OutOfMemory, &|s| s.signal = Some(9)),
            "t TASK_FAILED REASON_CONTAINER_LIMITATION_MEMORY: service t ran out of memory and was ended by signal 9",
        ),
        (
            with(Cause::NotStarted, &|s| {
                (s.phase, s.error) = (At::Failed, Some("no /bin/x".into()))
            }),
            "t TASK_FAILED REASON_CONTAINER_LAUNCH_FAILED: service t could not be started: no /bin/x",
        ),
        (
            with(Cause::Unhealthy, &|s| s.checks = checks(Some(false))),
            "t TASK_KILLED healthy=false: service t is unhealthy: mesos-health failed 3 times: not connected: refused",
        ),
        (
            with(Cause::Hook, &|_| {}),
            "t TASK_FAILED: service t was stopped, for a hook of the pod failed",
        ),
        (
            with(Cause::Stopped, &|s| s.goal = Goal::Stop),
            "t TASK_KILLED: it was stopped by a command on the agent's machine",
        ),
        (
            with(Cause::Exited, &|s| s.exit_code = Some(0)),
            "t TASK_FINISHED",
        ),
        // what was asked to end has not finished, whatever its exit code
        (
            with(Cause::Stopped, &|s| {
                (s.goal, s.exit_code) = (Goal::Stop, Some(0))
            }),
            "t TASK_KILLED: it was stopped by a command on the agent's machine",
        ),
        (
            with(Cause::Unhealthy, &|s| {
                (s.exit_code, s.checks) = (Some(0), checks(Some(false)))
            }),
            "t TASK_KILLED healthy=false: service t is unhealthy: mesos-health failed 3 times: not connected: refused",
        ),
    ] {
        let mut life = Life::subscribed(&[]);
        life.launch(&["t"]);
        life.up(1);
        life.runs(1, "t");
        assert_eq!(life.service(1, "t", status), [expected, "remove 1"]);
    }
}

#[test]
fn memory_that_was_too_little_is_named() {
    let mut life = Life::subscribed(&[]);
    let mut info = task("t");
    for value in [32.0, 16.0] {
        info.resources
            .push(crate::executor::mesos::proto::Resource {
                name: "mem".into(),
                scalar: Some(crate::executor::mesos::proto::value::Scalar { value }),
                ..Default::default()
            });
    }
    life.launch_tasks(vec![info]);
    life.up(1);
    life.service(1, "t", ended(137, Cause::OutOfMemory));
    let status = life.sent.last().unwrap();
    let limit = &status.limitation.as_ref().unwrap().resources;
    assert_eq!((limit.len(), limit[0].name.as_str()), (1, "mem"));
    assert_eq!(limit[0].scalar.as_ref().unwrap().value, 48.0);
}

#[test]
fn kills() {
    use capability::Type::TaskKillingState;
    let mut life = Life::subscribed(&[TaskKillingState]);
    life.launch(&["t"]);
    life.up(1);
    life.runs(1, "t");
    assert_eq!(
        life.kill("t", Some(20.0)),
        ["t TASK_KILLING: asked to end", "stop 1 t Some(20s)"]
    );
    life.now += 5 * SECOND;
    // a longer one changes nothing, a shorter one counts from the first
    assert!(life.kill("t", Some(60.0)).is_empty());
    assert!(life.kill("t", None).is_empty());
    assert_eq!(life.kill("t", Some(8.0)), ["stop 1 t Some(3s)"]);
    assert_eq!(life.machine.next_tick(), Some(1008 * SECOND));
    assert!(life.after(2 * SECOND).is_empty());
    assert_eq!(life.after(SECOND), ["stop 1 t Some(0ns)"]);
    assert_eq!(life.machine.next_tick(), None);
    // whatever the exit code
    let status = ended(0, Cause::Exited);
    assert_eq!(
        life.service(1, "t", status),
        ["t TASK_KILLED: killed on request", "remove 1"]
    );
    assert_eq!(life.kill("t", None), Vec::<String>::new(),);
    assert_eq!(
        life.kill("x", None),
        ["log a kill of task x, which is not here, is passed over"]
    );
}

#[test]
fn a_kill_before_there_is_a_pod() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["t"]);
    assert_eq!(life.kill("t", None), ["cancel 1"]);
    assert_eq!(life.after(3 * SECOND), ["abort 1"]);
    assert_eq!(
        life.input(Input::NotStarted(1, NotStarted::default())),
        ["t TASK_KILLED REASON_TASK_KILLED_DURING_LAUNCH: killed on request"]
    );
    assert_eq!(life.acknowledge(), ["exit 0"]);
    // another kill does not postpone it, nor does a shutdown that ends before
    let mut life = Life::subscribed(&[]);
    life.launch(&["t"]);
    assert_eq!(life.kill("t", Some(60.0)), ["cancel 1"]);
    life.now += 2 * SECOND;
    assert_eq!(life.kill("t", Some(1.0)), ["cancel 1"]);
    assert!(life.after(SECOND - Duration::from_millis(1)).is_empty());
    assert_eq!(life.after(Duration::from_millis(1)), ["abort 1"]);
    let mut life = Life::subscribed(&[]);
    life.machine.shutdown_grace = 2 * SECOND;
    life.launch(&["t"]);
    let told = life.agent(event::Type::Shutdown, Event::default());
    assert!(told.contains(&"cancel 1".into()), "{told:?}");
    assert_eq!(life.after(Duration::from_millis(1499)), [""; 0]);
    assert_eq!(life.after(Duration::from_millis(1))[0], "abort 1");
    // it came up before it could be stopped
    let mut life = Life::subscribed(&[]);
    life.launch(&["t"]);
    life.kill("t", None);
    assert_eq!(life.up(1), ["stop 1 t Some(3s)"]);
}

#[test]
fn a_group_ends_together_unless_a_task_has_finished() {
    let mut life = Life::subscribed(&[]);
    assert_eq!(
        life.launch(&["a", "b", "c"]),
        [
            "keep 1: 3 tasks",
            "a TASK_STARTING",
            "b TASK_STARTING",
            "c TASK_STARTING",
            "start 1"
        ]
    );
    life.up(1);
    // nothing is known of the others yet
    assert_eq!(life.runs(1, "a"), ["a TASK_RUNNING"]);
    assert_eq!(life.runs(1, "b"), ["b TASK_RUNNING"]);
    assert_eq!(life.runs(1, "c"), ["c TASK_RUNNING"]);
    assert_eq!(
        life.service(1, "a", ended(0, Cause::Exited)),
        ["a TASK_FINISHED"]
    );
    assert_eq!(
        life.service(1, "b", ended(3, Cause::Exited)),
        [
            "b TASK_FAILED: service b exited with code 3",
            "stop 1 c Some(3s)"
        ]
    );
    assert_eq!(
        life.service(1, "c", ended(143, Cause::Pod)),
        [
            "c TASK_KILLED: task b of the group ended: service b exited with code 3",
            "remove 1"
        ]
    );
}

/// A service that its supervisor ends because of its health, with those of the other tasks: each of them exits with 0.
#[test]
fn a_kill_by_health_checks() {
    let mut life = Life::subscribed(&[capability::Type::TaskKillingState]);
    life.launch(&["a", "b"]);
    life.up(1);
    life.runs(1, "a");
    life.runs(1, "b");
    let stopping = |cause| Status {
        goal: Goal::Stop,
        phase: At::Stopping,
        cause: Some(cause),
        ..running()
    };
    assert!(life.service(1, "a", stopping(Cause::Pod)).is_empty());
    let ill = Status {
        checks: checks(Some(false)),
        ..stopping(Cause::Unhealthy)
    };
    let why = "service b is unhealthy: mesos-health failed 3 times: not connected: refused";
    assert_eq!(
        life.service(1, "b", ill),
        [
            "b TASK_RUNNING REASON_TASK_HEALTH_CHECK_STATUS_UPDATED healthy=false: \
             service b: mesos-health: not connected: refused",
            &format!("b TASK_KILLING healthy=false: {why}"),
            "stop 1 b Some(3s)",
            &format!("a TASK_KILLING: task b of the group ended: {why}"),
            "stop 1 a Some(3s)",
        ]
    );
    assert_eq!(
        life.service(1, "a", ended(0, Cause::Pod)),
        [format!("a TASK_KILLED: task b of the group ended: {why}")]
    );
    assert_eq!(
        life.service(1, "b", ended(0, Cause::Unhealthy)),
        [
            format!("b TASK_KILLED healthy=false: {why}"),
            "remove 1".into()
        ]
    );
}

/// A successor is told the statuses in the order of the services' names.
#[test]
fn a_group_whose_end_nobody_saw() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a", "b"]);
    life.up(1);
    // why may be in the status of the other one
    assert!(life.service(1, "a", ended(0, Cause::Pod)).is_empty());
    assert_eq!(
        life.service(1, "b", ended(3, Cause::Exited)),
        [
            "b TASK_RUNNING",
            "b TASK_FAILED: service b exited with code 3",
            "stop 1 a Some(3s)",
            "a TASK_KILLED: task b of the group ended: service b exited with code 3",
            "remove 1"
        ]
    );
}

/// By `abort-on-exit` the first success ends what is there to serve it.
#[test]
fn a_success_that_ended_the_others() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["t"]);
    life.up_as(1, |plan| plan.services = vec!["job".into(), "log".into()]);
    life.runs(1, "job");
    assert_eq!(life.runs(1, "log"), ["t TASK_RUNNING"]);
    assert!(life.service(1, "job", ended(0, Cause::Exited)).is_empty());
    assert_eq!(
        life.service(1, "log", ended(143, Cause::Pod)),
        ["t TASK_FINISHED", "remove 1"]
    );
}

#[test]
fn a_group_that_cannot_start() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a", "b"]);
    let failure = NotStarted {
        task: Some("b".into()),
        state: TaskState::Error,
        reason: Some(Reason::TaskInvalid),
        message: "container.volumes[0]: no path".into(),
    };
    assert_eq!(
        life.input(Input::NotStarted(1, failure)),
        [
            "a TASK_KILLED: the group could not be started: container.volumes[0]: no path",
            "b TASK_ERROR REASON_TASK_INVALID: container.volumes[0]: no path"
        ]
    );
}

#[test]
fn repetitions_do_nothing() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["t"]);
    let text = "log task t was launched already; the repetition is passed over";
    assert_eq!(life.launch(&["t"]), [text]);
    // all of a group or none, and each task has an answer
    assert_eq!(
        life.launch(&["u", "t"]),
        [
            text,
            "keep 2: 1 tasks",
            "u TASK_ERROR REASON_TASK_GROUP_INVALID: task t was launched already"
        ]
    );
    assert_eq!(
        life.launch(&["v", "v"])[2],
        "v TASK_ERROR REASON_TASK_GROUP_INVALID: task v was launched already"
    );
    life.launch(&["w"]);
    life.up(1);
    life.service(1, "t", ended(0, Cause::Exited));
    life.input(Input::Removed(1));
    assert!(life.acknowledge().contains(&"forget 1".into()));
    assert_eq!(life.launch(&["t"]), [text]);
    let uuid = vec![1; 16];
    let acknowledged = event::Acknowledged {
        task_id: TaskId { value: "t".into() },
        uuid,
    };
    let event = Event {
        acknowledged: Some(acknowledged),
        ..Event::default()
    };
    assert_eq!(
        life.agent(event::Type::Acknowledged, event),
        ["log an acknowledgement for task t is of no update that waits for one"]
    );
}

#[test]
fn what_is_not_acknowledged_is_in_the_next_subscribe() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a"]);
    life.acknowledge();
    life.launch(&["b"]);
    life.up(1);
    life.runs(1, "a");
    life.input(Input::Lost);
    life.up(2);
    assert!(life.runs(2, "b").is_empty());
    let (tasks, updates) = life.machine.unacknowledged();
    assert_eq!(tasks, [(2, "b".to_string())]);
    let said = |status: &TaskStatus| line(&Action::Send(Box::new(status.clone())));
    let said: Vec<_> = updates.iter().map(said).collect();
    assert_eq!(
        said,
        ["b TASK_STARTING", "a TASK_RUNNING", "b TASK_RUNNING"]
    );
    // while the agent reads it
    life.service(1, "a", ended(0, Cause::Exited));
    assert_eq!(life.subscribe(&[]), ["keep subscribed", "a TASK_FINISHED"]);
    // a successor says the same, uuids and all
    let launches = life.machine.launches.clone();
    let mut next = Life::of(launches);
    let lines: Vec<_> = next.machine.take_actions().iter().map(line).collect();
    assert_eq!(lines, ["remove 1", "watch 2"]);
    assert_eq!(next.machine.unacknowledged(), life.machine.unacknowledged());
}

#[test]
fn shutdown() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a"]);
    life.launch(&["b"]);
    life.up(1);
    life.runs(1, "a");
    let why = "the agent shut the executor down";
    assert_eq!(
        life.agent(event::Type::Shutdown, Event::default()),
        [
            &format!("log {why}: tasks are stopped"),
            "stop 1 a Some(3s)",
            "cancel 2"
        ]
    );
    assert_eq!(
        life.input(Input::NotStarted(2, NotStarted::default())),
        [format!(
            "b TASK_KILLED REASON_TASK_KILLED_DURING_LAUNCH: {why}"
        )]
    );
    assert_eq!(
        life.launch(&["c"]),
        ["keep 3: 1 tasks", "c TASK_LOST: the executor is ending"]
    );
    assert_eq!(life.after(3 * SECOND), ["stop 1 a Some(0ns)"]);
    let lines = life.service(1, "a", ended(137, Cause::Stopped));
    assert_eq!(lines, [&format!("a TASK_KILLED: {why}"), "remove 1"]);
    assert_eq!(life.acknowledge(), ["forget 2", "forget 3"]);
    // the removal takes too long
    assert!(life.after(6 * SECOND).is_empty());
    assert_eq!(
        life.after(SECOND),
        [
            "log the agent's patience is over before everything was acknowledged",
            "exit 0"
        ]
    );
}

#[test]
fn shutdown_as_the_first_event() {
    let mut life = Life::new();
    assert_eq!(
        life.agent(event::Type::Shutdown, Event::default()),
        [
            "log the agent shut the executor down: tasks are stopped",
            "exit 0"
        ]
    );
}

#[test]
fn another_task_is_waited_for() {
    let mut life = Life::lingering(5 * SECOND, BTreeMap::new());
    life.subscribe(&[]);
    assert_eq!(life.machine.next_tick(), None);
    for (number, id) in [(1, "a"), (2, "b")] {
        life.launch(&[id]);
        life.up(number);
        life.service(number, id, ended(0, Cause::Exited));
        life.input(Input::Removed(number));
        assert!(
            life.acknowledge()
                .iter()
                .all(|line| line.starts_with("forget"))
        );
        assert_eq!(life.machine.next_tick(), Some(life.now + 5 * SECOND));
        assert!(life.after(4 * SECOND).is_empty());
    }
    // a successor waits anew
    let mut next = Life::lingering(5 * SECOND, life.machine.launches.clone());
    assert!(next.input(Input::Tick).is_empty());
    assert_eq!(next.after(5 * SECOND), ["exit 0"]);
    assert_eq!(life.after(SECOND), ["exit 0"]);
    // there is nobody left to wait for
    let mut life = Life::lingering(Duration::MAX, BTreeMap::new());
    life.subscribe(&[]);
    life.launch(&["a"]);
    life.up(1);
    life.service(1, "a", ended(0, Cause::Exited));
    life.input(Input::Removed(1));
    life.acknowledge();
    assert_eq!(life.machine.next_tick(), None);
    life.input(Input::Lost);
    assert_eq!(
        life.input(Input::Abandoned("gone".into())),
        ["log gone: tasks are stopped", "exit 0"]
    );
}

#[test]
fn an_agent_that_only_takes() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a"]);
    life.acknowledge();
    life.up(1);
    life.input(Input::Lost);
    life.runs(1, "a");
    life.machine.unacknowledged();
    life.agent(event::Type::Shutdown, Event::default());
    // what SUBSCRIBE said was not read
    assert_eq!(life.input(Input::Deaf), ["a TASK_RUNNING"]);
    assert_eq!(
        life.service(1, "a", ended(143, Cause::Stopped)),
        [
            "a TASK_KILLED: the agent shut the executor down",
            "remove 1"
        ]
    );
    life.input(Input::Removed(1));
    let uuid = |status: &TaskStatus| status.uuid.clone().unwrap();
    let sent: Vec<_> = life.sent.iter().map(uuid).collect();
    assert!(life.input(Input::Taken(sent[0].clone())).is_empty());
    assert_eq!(life.input(Input::Taken(sent[1].clone())), ["exit 0"]);
}

#[test]
fn an_executor_that_cannot_go_on() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a"]);
    life.launch(&["b"]);
    life.up(1);
    life.runs(1, "a");
    let mut last = Life::of(life.machine.launches.clone());
    last.machine.take_actions();
    let why = "it died 31 times";
    assert_eq!(
        last.input(Input::GivenUp(why.into())),
        [
            &format!("log {why}: tasks are stopped"),
            "stop 1 a Some(3s)",
            "cancel 2"
        ]
    );
    last.input(Input::Started(1));
    last.service(1, "a", ended(143, Cause::Stopped));
    last.input(Input::NotStarted(2, NotStarted::default()));
    last.input(Input::Removed(1));
    assert_eq!(
        last.subscribe(&[]),
        [
            "keep subscribed",
            "a TASK_STARTING",
            "b TASK_STARTING",
            "a TASK_RUNNING",
            &format!("a TASK_FAILED: {why}"),
            &format!("b TASK_FAILED: {why}"),
        ]
    );
    assert_eq!(last.acknowledge().last().unwrap(), "exit 1");
}

#[test]
fn nobody_listens_any_more() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a"]);
    life.up(1);
    life.runs(1, "a");
    life.input(Input::Lost);
    assert_eq!(
        life.input(Input::Abandoned("gone for 15 minutes".into())),
        [
            "log gone for 15 minutes: tasks are stopped",
            "stop 1 a Some(3s)"
        ]
    );
    assert_eq!(
        life.service(1, "a", ended(143, Cause::Stopped)),
        ["remove 1"]
    );
    assert_eq!(life.input(Input::Removed(1)), ["exit 1"]);
}

#[test]
fn the_last_words_are_waited_for() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a"]);
    life.up(1);
    life.service(1, "a", ended(0, Cause::Exited));
    assert!(life.input(Input::Removed(1)).is_empty());
    assert_eq!(life.machine.next_tick(), Some(1060 * SECOND));
    assert!(life.after(59 * SECOND).is_empty());
    assert_eq!(
        life.after(SECOND),
        [
            "log the last updates were not acknowledged for 60 s; the executor ends",
            "exit 0"
        ]
    );
}

/// The agent may be away for as long as its recovery timeout says: the time begins when it is back.
#[test]
fn the_last_words_are_kept_for_an_agent_that_is_away() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a"]);
    life.up(1);
    life.input(Input::Lost);
    life.service(1, "a", ended(3, Cause::Exited));
    assert!(life.input(Input::Removed(1)).is_empty());
    assert_eq!(life.machine.next_tick(), None);
    assert!(life.after(600 * SECOND).is_empty());
    assert_eq!(life.machine.unacknowledged().1.len(), 3);
    assert_eq!(life.subscribe(&[]), ["keep subscribed"]);
    assert_eq!(life.machine.next_tick(), Some(life.now + 60 * SECOND));
    // a successor that has not reached the agent yet waits as well
    let mut next = Life::of(life.machine.launches.clone());
    assert!(next.input(Input::Tick).is_empty());
    assert!(next.after(600 * SECOND).is_empty());
}

#[test]
fn what_takes_too_long() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a"]);
    life.up_as(1, |plan| plan.max_completion = Some(5 * SECOND));
    life.now += 100 * SECOND;
    assert_eq!(life.runs(1, "a"), ["a TASK_RUNNING"]);
    assert_eq!(life.machine.next_tick(), Some(1105 * SECOND));
    assert_eq!(life.after(5 * SECOND), ["stop 1 a Some(0ns)"]);
    assert_eq!(
        life.service(1, "a", ended(137, Cause::Stopped)),
        [
            "a TASK_FAILED REASON_MAX_COMPLETION_TIME_REACHED: it took longer than its max_completion_time",
            "remove 1"
        ]
    );
}

#[test]
fn health_is_told_when_it_changes() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a"]);
    life.up_as(1, |plan| plan.ready = true);
    let health = |healthy| Status {
        checks: checks(healthy),
        ready: healthy == Some(true),
        ..running()
    };
    assert!(life.service(1, "a", health(None)).is_empty());
    let worse = "a TASK_RUNNING REASON_TASK_HEALTH_CHECK_STATUS_UPDATED healthy=false: \
                 service a: mesos-health: not connected: refused";
    let better = "a TASK_RUNNING REASON_TASK_HEALTH_CHECK_STATUS_UPDATED healthy=true";
    for (healthy, expected) in [
        (true, &["a TASK_RUNNING healthy=true"][..]),
        (true, &[]),
        (false, &[worse]),
        (false, &[]),
        (true, &[better]),
    ] {
        assert_eq!(life.service(1, "a", health(Some(healthy))), expected);
    }
    assert_eq!(life.kill("a", None), ["stop 1 a Some(3s)"]);
    assert!(life.service(1, "a", health(Some(false))).is_empty());
}

#[test]
fn a_check_is_in_every_status() {
    let mut life = Life::subscribed(&[]);
    let mut info = task("a");
    info.check = Some(CheckInfo {
        r#type: Some(check_info::Type::Command.into()),
        ..CheckInfo::default()
    });
    life.launch_tasks(vec![info]);
    life.up(1);
    let result = |exit_code| Status {
        checks: BTreeMap::from([(
            "mesos-check".into(),
            CheckResult::new(CheckKind::Check, Measured::Command { exit_code }),
        )]),
        ..running()
    };
    let changed = "a TASK_RUNNING REASON_TASK_CHECK_STATUS_UPDATED";
    for (code, expected) in [
        (None, &["a TASK_RUNNING"][..]),
        (None, &[]),
        (Some(0), &[changed]),
        (Some(0), &[]),
        (Some(7), &[changed]),
    ] {
        assert_eq!(life.service(1, "a", result(code)), expected, "{code:?}");
    }
    life.kill("a", None);
    life.service(1, "a", ended(143, Cause::Stopped));
    let told: Vec<_> = life
        .sent
        .iter()
        .map(|s| s.check_status.clone().unwrap())
        .collect();
    let codes: Vec<_> = told
        .iter()
        .map(|told| told.command.as_ref().unwrap().exit_code)
        .collect();
    assert_eq!(codes, [None, None, Some(0), Some(7), None]);
}

/// What had not come up is made, and what had is not made again.
#[test]
fn a_successor_goes_on() {
    let mut life = Life::subscribed(&[]);
    for (number, id) in [(1, "starting"), (2, "up"), (3, "killed"), (4, "over")] {
        life.launch(&[id]);
        if number % 2 == 0 {
            life.up(number);
        }
    }
    life.kill("killed", None);
    life.service(4, "over", ended(0, Cause::Exited));
    let mut next = Life::of(life.machine.launches.clone());
    let lines: Vec<_> = next.machine.take_actions().iter().map(line).collect();
    assert_eq!(lines, ["start 1", "watch 2", "cancel 3", "remove 4"]);
    next.subscribe(&[]);
    next.input(Input::Started(2));
    assert_eq!(
        next.input(Input::Gone(2, "pod x was removed".into())),
        ["up TASK_FAILED: pod x was removed", "remove 2"]
    );
}

#[test]
fn a_pod_that_somebody_removes() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a"]);
    life.up(1);
    life.runs(1, "a");
    assert_eq!(
        life.input(Input::Gone(1, "pod x was removed".into())),
        ["a TASK_FAILED: pod x was removed", "remove 1"]
    );
}

#[test]
fn a_pod_without_its_network() {
    let mut life = Life::subscribed(&[]);
    life.launch(&["a", "b"]);
    life.up(1);
    for name in ["a", "b"] {
        assert!(life.service(1, name, Status::default()).is_empty());
    }
    let verdict = Verdict {
        version: record::VERSION,
        service: None,
        cause: Cause::NotStarted,
        exit_code: None,
        signal: None,
        message: "network front: no such network".into(),
        finished: String::new(),
    };
    let end = "TASK_FAILED REASON_CONTAINER_LAUNCH_FAILED: network front: no such network";
    assert_eq!(
        life.input(Input::Verdict(1, verdict)),
        [&format!("a {end}"), &format!("b {end}"), "remove 1"]
    );
}

#[test]
fn messages_of_the_framework() {
    let mut life = Life::subscribed(&[]);
    let says = |life: &mut Life, text: &str| {
        let message = event::Message {
            data: text.as_bytes().to_vec(),
        };
        let event = Event {
            message: Some(message),
            ..Event::default()
        };
        life.agent(event::Type::Message, event)
    };
    life.launch(&["a"]);
    let ask = r#"{"sampan": "restart", "task": "a", "id": 5}"#;
    let away = r#"tell {"id":5,"message":"task a does not run here","sampan":"failed"}"#;
    assert_eq!(says(&mut life, ask), [away]);
    life.up_as(1, |plan| plan.services = vec!["db".into(), "web".into()]);
    assert_eq!(
        says(&mut life, ask),
        [r#"ask 1 Restart { services: ["db", "web"], timeout: None } 5"#]
    );
    let one = r#"{"sampan": "signal", "task": "a", "service": "SERVICE", "signal": "USR1"}"#;
    assert_eq!(
        says(&mut life, &one.replace("SERVICE", "web")),
        [r#"ask 1 Kill { services: ["web"], signal: 10 } null"#]
    );
    assert_eq!(
        says(&mut life, &one.replace("SERVICE", "x")),
        [r#"tell {"id":null,"message":"task a has no service x, but db, web","sampan":"failed"}"#]
    );
    life.kill("a", None);
    assert_eq!(says(&mut life, ask), [away]);
}

#[test]
fn other_events() {
    for (kind, event, expected) in [
        (event::Type::Heartbeat, Event::default(), &[][..]),
        (
            event::Type::Unknown,
            Event::default(),
            &["log an event of an unknown type is passed over"],
        ),
        (
            event::Type::Message,
            Event {
                message: Some(event::Message { data: vec![1, 2] }),
                ..Event::default()
            },
            &["log a message of 2 bytes from the framework is not for the executor"],
        ),
        (
            event::Type::Launch,
            Event::default(),
            &["log a launch without tasks is passed over"],
        ),
        (
            event::Type::Error,
            Event {
                error: Some(event::Error {
                    message: "no".into(),
                }),
                ..Event::default()
            },
            &["log the agent gave up: no: tasks are stopped", "exit 1"],
        ),
    ] {
        assert_eq!(Life::subscribed(&[]).agent(kind, event), expected, "{kind}");
    }
}
