//! Starts, ends and everything with a deadline.

use super::*;
use crate::executor::mesos::machine::state::Change;
use crate::pod::record::Cause;

/// Until the rest of a task is killed when its pod was not even there.
const CANCEL: Duration = Duration::from_secs(3);
/// What of the agent's patience is kept for the last updates: so much, or half of it.
const SLACK: Duration = Duration::from_secs(2);

impl Machine {
    pub(super) fn planned(&mut self, number: u64, plans: Vec<Planned>) {
        for plan in plans {
            let Some(launch) = self.launches.get_mut(&number) else {
                return;
            };
            if let Some(task) = launch.tasks.iter_mut().find(|task| task.id == plan.id) {
                task.plan = Some(plan);
                self.changed.insert(number);
            }
        }
    }

    pub(super) fn started(&mut self, now: Now, number: u64) {
        let Some(launch) = self.launches.get_mut(&number) else {
            return;
        };
        self.live.entry(number).or_default();
        if launch.phase == Phase::Starting {
            launch.phase = Phase::Up;
            self.changed.insert(number);
        }
        // killed meanwhile, or by an earlier process of the executor
        self.change_all(number, |machine, at| machine.stop(now, number, at));
        self.evaluate(now, number);
    }

    pub(super) fn not_started(&mut self, now: Now, number: u64, failure: NotStarted) {
        self.change_all(number, |machine, at| {
            let Some(task) = machine.task(number, at) else {
                return;
            };
            let blamed = failure.task.as_ref().is_none_or(|id| *id == task.id);
            let change = match &task.kill {
                Some(kill) => Change {
                    reason: matches!(kill.why, Why::Asked | Why::Shutdown(_))
                        .then_some(Reason::TaskKilledDuringLaunch),
                    ..state::killed(&kill.why)
                },
                None if blamed => Change {
                    reason: failure.reason,
                    ..Change::to(failure.state).because(&failure.message)
                },
                None => {
                    let text = format!("the group could not be started: {}", failure.message);
                    Change::to(TaskState::Killed).because(&text)
                }
            };
            machine.update(now, number, at, change);
        });
        self.removed(number);
    }

    pub(super) fn gone(&mut self, now: Now, number: u64, reason: Option<Reason>, why: &str) {
        self.change_all(number, |machine, at| {
            let Some(task) = machine.task(number, at) else {
                return;
            };
            let change = match &task.kill {
                Some(kill) => state::killed(&kill.why),
                None => Change {
                    reason,
                    ..Change::to(TaskState::Failed).because(why)
                },
            };
            machine.update(now, number, at, change);
        });
        self.remove_when_over(number);
    }

    pub(super) fn removed(&mut self, number: u64) {
        let Some(launch) = self.launches.get_mut(&number) else {
            return;
        };
        launch.phase = Phase::Removed;
        self.changed.insert(number);
        self.live.remove(&number);
    }

    /// Looks at every task of a launch again.
    pub(super) fn evaluate(&mut self, now: Now, number: u64) {
        let Some(launch) = self.launches.get(&number) else {
            return;
        };
        if launch.phase != Phase::Up {
            return;
        }
        if let Some(verdict) = self
            .live
            .get(&number)
            .and_then(|live| live.verdict.as_ref())
            && verdict.service.is_none()
            && verdict.cause == Cause::NotStarted
        {
            // its network, volumes or cgroup: no service has anything to say
            let why = verdict.message.clone();
            return self.gone(now, number, Some(Reason::ContainerLaunchFailed), &why);
        }
        let Some(live) = self.live.get(&number) else {
            return;
        };
        let known =
            live.verdict.is_some() || launch.tasks.iter().all(|task| state::is_known(task, live));
        // what failed is why the others end
        let mut order: Vec<usize> = (0..launch.tasks.len()).collect();
        let failed = |at: &usize| {
            let task = launch.tasks.get(*at);
            task.is_some_and(|task| state::has_failed(task, live))
        };
        order.sort_by_key(|at| !failed(at));
        for at in order {
            self.evaluate_task(now, number, at, known);
        }
        self.remove_when_over(number);
    }

    /// `known`: each service of the pod has told its status.
    fn evaluate_task(&mut self, now: Now, number: u64, at: usize, known: bool) {
        let task = self.launches.get(&number).and_then(|l| l.tasks.get(at));
        let (Some(task), Some(live)) = (task, self.live.get(&number)) else {
            return;
        };
        if task.is_over() {
            return;
        }
        let change = state::derive(task, live, known);
        let before = change
            .as_ref()
            .and_then(|change| state::ran(task, live, change));
        let unhealthy = match task.kill {
            None => state::unhealthy(task, live),
            Some(_) => None,
        };
        let id = task.id.clone();
        let ends = |change: &Change| matches!(change.state, TaskState::Failed | TaskState::Killed);
        let ended = change.as_ref().filter(|change| ends(change));
        let mut why = ended.map(|change| change.message.clone().unwrap_or_default());
        for change in before.into_iter().chain(change) {
            self.update(now, number, at, change);
        }
        if why.is_none() && unhealthy.is_some() {
            why.clone_from(&unhealthy);
            let unhealthy = Why::Unhealthy(unhealthy.unwrap_or_default());
            self.begin_kill(now, number, at, &unhealthy, None);
        }
        if let Some(why) = why {
            let why = Why::Group(format!("task {id} of the group ended: {why}"));
            self.change_all(number, |machine, at| {
                machine.begin_kill(now, number, at, &why, None)
            });
        }
    }

    fn remove_when_over(&mut self, number: u64) {
        if let Some(launch) = self.launches.get_mut(&number)
            && launch.phase == Phase::Up
            && launch.is_over()
        {
            launch.phase = Phase::Removing;
            self.changed.insert(number);
            self.actions.push(Action::Remove(number));
        }
    }

    /// KILL.
    pub(super) fn kill(&mut self, now: Now, id: &str, policy: Option<&KillPolicy>) {
        let Some((number, at)) = self.find(id) else {
            return self.log(format!(
                "a kill of task {id}, which is not here, is passed over"
            ));
        };
        let grace = policy.and_then(|policy| policy.grace_period.as_ref());
        let grace = grace.map(|grace| Duration::from_nanos(grace.nanoseconds.max(0) as u64));
        self.begin_kill(now, number, at, &Why::Asked, grace);
    }

    /// Ends a task, within `grace` or what its plan says. One that is ending already may only be hurried.
    fn begin_kill(&mut self, now: Now, number: u64, at: usize, why: &Why, grace: Option<Duration>) {
        let may_say_killing = self.may_say_killing;
        let Some(task) = self.task(number, at).filter(|task| !task.is_over()) else {
            return;
        };
        let planned = task.plan.as_ref().and_then(|plan| plan.grace);
        if let Some(kill) = &mut task.kill {
            let sooner = grace.map(|grace| (kill.since + grace).max(now.boot));
            match sooner {
                Some(sooner) if kill.until.is_none_or(|until| sooner < until) => {
                    kill.until = Some(sooner);
                }
                _ => return,
            }
        } else {
            task.kill = Some(Kill {
                since: now.boot,
                until: grace.or(planned).map(|grace| now.boot + grace),
                enforced: false,
                why: why.clone(),
            });
            if may_say_killing {
                let end = state::killed(why);
                let text = match end.message {
                    Some(text) if *why != Why::Asked => text,
                    _ => "asked to end".to_string(),
                };
                let change = Change {
                    healthy: end.healthy,
                    ..Change::to(TaskState::Killing).because(&text)
                };
                self.update(now, number, at, change);
            }
        }
        self.changed.insert(number);
        self.stop(now, number, at);
        if self
            .launch(number)
            .is_some_and(|l| l.phase == Phase::Starting)
        {
            // there is only the whole
            let why = Why::Group("another task of the group was killed while it started".into());
            self.change_all(number, |machine, other| {
                let spared = machine
                    .task(number, other)
                    .is_some_and(|t| t.kill.is_none());
                if spared {
                    machine.begin_kill(now, number, other, &why, grace);
                }
            });
        }
    }

    /// Does what the kill of a task asks for now, if there is one.
    fn stop(&mut self, now: Now, number: u64, at: usize) {
        let patience = self.ending.as_ref().map(|ending| ending.until);
        let Some(launch) = self.launches.get_mut(&number) else {
            return;
        };
        let phase = launch.phase;
        let Some(task) = launch.tasks.get_mut(at).filter(|task| !task.is_over()) else {
            return;
        };
        let Some(kill) = &mut task.kill else { return };
        let action = match phase {
            Phase::Starting => {
                // what is not there yet needs no grace, only its undoing
                let most = kill.since + CANCEL;
                let until = kill.until.map_or(most, |until| until.max(most));
                kill.until = Some(patience.map_or(until, |patience| until.min(patience)));
                Action::Cancel(number)
            }
            Phase::Up => Action::Stop {
                launch: number,
                services: task
                    .plan
                    .as_ref()
                    .map_or(Vec::new(), |plan| plan.services.clone()),
                grace: kill.until.map(|until| until.saturating_sub(now.boot)),
            },
            Phase::Removing | Phase::Removed => return,
        };
        self.actions.push(action);
    }

    /// SHUTDOWN, or as good as it: every task ends, then the executor.
    pub(super) fn end(&mut self, now: Now, why: Why, reports: bool) {
        if let Why::Shutdown(text) | Why::Failed(text) = &why {
            self.log(format!("{text}: tasks are stopped"));
        }
        let patience = self.shutdown_grace;
        let grace = patience.saturating_sub(SLACK).max(patience / 2);
        let until = match why {
            // nobody counts but we
            Why::Failed(_) => grace + LAST_WORDS,
            _ => patience.saturating_sub(SLACK / 4).max(patience * 3 / 4),
        };
        let good = matches!(why, Why::Shutdown(_)) && (reports || self.idle.is_some());
        match &mut self.ending {
            Some(ending) => ending.reports &= reports,
            None => {
                self.ending = Some(Ending {
                    until: now.boot + until,
                    reports,
                    code: if good { 0 } else { 1 },
                });
            }
        }
        for number in self.launches.keys().copied().collect::<Vec<_>>() {
            self.change_all(number, |machine, at| {
                let planned = machine
                    .task(number, at)
                    .and_then(|t| t.plan.as_ref()?.grace);
                let grace = planned.map_or(grace, |planned| planned.min(grace));
                machine.begin_kill(now, number, at, &why, Some(grace));
            });
        }
    }

    /// What is due.
    pub(super) fn tick(&mut self, now: Now) {
        let mut due = Vec::new();
        for launch in self.launches.values() {
            for (at, task) in launch.tasks.iter().enumerate() {
                if !task.is_over() && due_at(task).is_some_and(|when| when <= now.boot) {
                    due.push((launch.number, at, launch.phase));
                }
            }
        }
        for (number, at, phase) in due {
            let Some(task) = self.task(number, at) else {
                continue;
            };
            let Some(kill) = &mut task.kill else {
                self.begin_kill(now, number, at, &Why::TooLong, Some(Duration::ZERO));
                continue;
            };
            kill.enforced = true;
            self.changed.insert(number);
            match phase {
                Phase::Starting => self.actions.push(Action::Abort(number)),
                _ => self.stop(now, number, at),
            }
        }
    }

    /// When [`Input::Tick`] is due (time since boot).
    pub fn next_tick(&self) -> Option<Duration> {
        let tasks = self.launches.values().flat_map(|launch| &launch.tasks);
        let tasks = tasks.filter(|task| !task.is_over()).filter_map(due_at);
        let ending = self.ending.as_ref().map(|ending| ending.until);
        let waiting = self.waiting.map(|since| since + LAST_WORDS);
        let idle = self.idle.and_then(|since| since.checked_add(self.linger));
        tasks.chain(ending).chain(waiting).chain(idle).min()
    }

    /// Forgets what is over, and ends when nothing is left.
    pub(super) fn settle(&mut self, now: Now) {
        let reports = self.ending.as_ref().is_none_or(|ending| ending.reports);
        let is_done = |launch: &Launch| {
            launch.phase == Phase::Removed && (launch.is_acknowledged() || !reports)
        };
        let done = self.launches.values().filter(|launch| is_done(launch));
        let done: Vec<u64> = done.map(|launch| launch.number).collect();
        let code = self.ending.as_ref().map_or(0, |ending| ending.code);
        if done.len() == self.launches.len() {
            // the last ones stay written down: a successor comes to the same end
            self.waiting = None;
            if self.last > 0 || self.ending.is_some() {
                let since = *self.idle.get_or_insert(now.boot);
                if self.ending.is_some() || since.saturating_add(self.linger) <= now.boot {
                    self.actions.push(Action::Exit(code));
                }
            }
            return;
        }
        self.idle = None;
        for number in done {
            self.launches.remove(&number);
            self.changed.remove(&number);
            self.actions.push(Action::Forget(number));
        }
        if let Some(ending) = &self.ending
            && ending.until <= now.boot
        {
            self.log("the agent's patience is over before everything was acknowledged".into());
            return self.actions.push(Action::Exit(code));
        }
        let only_words = self.launches.values().all(|l| l.phase == Phase::Removed);
        // an agent that is away may come back, and who gives it up says so
        let heard = self.subscribed || self.ending.is_some();
        self.waiting = (only_words && heard).then(|| self.waiting.unwrap_or(now.boot));
        if let Some(since) = self.waiting
            && since + LAST_WORDS <= now.boot
        {
            self.log("the last updates were not acknowledged for 60 s; the executor ends".into());
            self.actions.push(Action::Exit(code));
        }
    }
}

/// When something has to be done about a task.
fn due_at(task: &Task) -> Option<Duration> {
    match &task.kill {
        Some(kill) if kill.enforced => None,
        Some(kill) => kill.until,
        None => task.deadline,
    }
}
