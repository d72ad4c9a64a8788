//! What a pod does next: a pure function of its services' states and of what happens. No I/O, no clock.
//!
//! *Invariants:* a service is started only when every dependency satisfies its condition, and asked to stop only
//! when nothing that depends on it and is to stop too still runs; a timer that is no longer meant is ignored; why a
//! service ends is in its status before anything is done about it, so a successor decides the same.

mod checks;
mod dependency;
mod unit;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;

use self::checks::Checks;
pub use self::checks::Tested;
use self::dependency::{Satisfied, satisfied};
use self::unit::{RESTART_DELAY, Unit};
use super::super::hooks::View;
use super::super::record::{
    Cause, CheckResult, CheckState, Failure, Goal, Health, Phase, Policy, ProcessId, Status,
    Verdict,
};
use crate::compose::project::{Check, CheckKind, Dependency, Restart};

/// What does not change about a service.
#[derive(Debug, Clone)]
pub struct Facts {
    /// `depends_on`.
    pub depends_on: BTreeMap<String, Dependency>,
    /// `restart`.
    pub restart: Restart,
    /// Checks with their defaults.
    pub checks: Vec<Check>,
    /// Signal that asks it to end.
    pub stop_signal: i32,
    /// Time until SIGKILL.
    pub grace: Duration,
    /// It has `post_start` hooks.
    pub post_start: bool,
    /// It has `pre_stop` hooks.
    pub pre_stop: bool,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// Its program runs.
    Started {
        /// The first process.
        process: ProcessId,
        /// RFC 3339.
        at: String,
    },
    /// `create` or `start` failed.
    StartFailed(Failure),
    /// Its first process ended; `None`: nobody saw how.
    Exited {
        /// Exit code, 128 + signal.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
        /// The out-of-memory killer was there.
        oom: bool,
        /// How long it ran.
        ran: Duration,
        /// RFC 3339.
        at: String,
    },
    /// A check ended.
    Tested {
        /// Which one.
        check: usize,
        /// What it came to.
        tested: Tested,
        /// How long the service had run when it began.
        age: Duration,
        /// RFC 3339.
        at: String,
        /// The unit's generation when it began.
        generation: u64,
    },
    /// Its `post_start` hooks have ended; why the first failed that did.
    PostStarted {
        /// Text.
        failure: Option<String>,
        /// The unit's generation when they began.
        generation: u64,
    },
    /// Its `pre_stop` hooks have ended; why those failed that did.
    PreStopped {
        /// Text.
        failure: Option<String>,
        /// The unit's generation when they began.
        generation: u64,
    },
    /// A timer ran out.
    Timer(Timer),
}

/// A timer with the generation it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    /// What for.
    pub kind: TimerKind,
    /// The unit's generation when it was set.
    pub generation: u64,
}

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerKind {
    /// The next run of a check.
    Check(usize),
    /// The end of a pause of checking; which one of the run.
    Snooze(u64),
    /// The end of the grace period.
    Grace,
    /// The end of the restart delay.
    Restart,
}

/// Something to do, by service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Run `create` and `start`.
    Start,
    /// Run the `post_start` hooks.
    PostStart,
    /// Run the `pre_stop` hooks.
    PreStop,
    /// Send a signal to the first process.
    Signal(i32),
    /// SIGKILL for all of its cgroup.
    Kill,
    /// Run a check once.
    Check(usize, Rc<Check>),
    /// Give [`Input::Timer`] back later.
    Timer(Timer, Duration),
    /// A line for the pod's events.
    Note(String),
}

impl Action {
    /// A successor that does not know of it may do it again: a full disk keeps nothing from being stopped.
    pub fn is_repeatable(&self) -> bool {
        !matches!(self, Action::Start | Action::PostStart | Action::PreStop)
    }
}

/// All services of a pod.
pub struct Machine {
    units: BTreeMap<String, Unit>,
    policy: Policy,
    /// See [`Machine::hold`].
    held: bool,
    actions: Vec<(String, Action)>,
}

impl Machine {
    /// A machine over services in known states.
    pub fn new(services: BTreeMap<String, (Facts, Status)>, policy: Policy) -> Machine {
        let units = services
            .into_iter()
            .map(|(name, (mut facts, status))| {
                let unit = Unit {
                    checks: Checks::new(std::mem::take(&mut facts.checks)),
                    facts,
                    status,
                    generation: 0,
                    streak: 0,
                    snoozes: 0,
                    grace: None,
                };
                (name, unit)
            })
            .collect();
        Machine {
            units,
            policy,
            held: false,
            actions: Vec::new(),
        }
    }

    /// A service's status.
    pub fn status(&self, service: &str) -> Option<&Status> {
        self.units.get(service).map(|unit| &unit.status)
    }

    /// Every service with its status.
    pub fn statuses(&self) -> impl Iterator<Item = (&str, &Status)> {
        self.units.iter().map(|(n, u)| (n.as_str(), &u.status))
    }

    /// Generation of a service's present run.
    pub fn generation(&self, service: &str) -> u64 {
        self.units.get(service).map_or(0, |unit| unit.generation)
    }

    /// What to do now.
    pub fn take_actions(&mut self) -> Vec<(String, Action)> {
        self.advance();
        std::mem::take(&mut self.actions)
    }

    /// Wants services and what they depend on to run; those that run already go on.
    pub fn start(&mut self, services: &[String]) {
        for name in self.with_dependencies(services) {
            let Some(unit) = self.units.get_mut(&name) else {
                continue;
            };
            let done = unit.status.phase == Phase::Exited
                && unit.status.exit_code == Some(0)
                && !services.contains(&name);
            if done {
                continue;
            }
            unit.status.goal = match unit.status.phase {
                Phase::Stopping => Goal::Restart,
                _ => Goal::Run,
            };
            if matches!(
                unit.status.phase,
                Phase::Exited | Phase::Failed | Phase::Restarting
            ) {
                unit.status.phase = Phase::Waiting;
                unit.status.error = None;
                unit.status.cause = None;
            }
        }
    }

    /// The first start: of `services` and what they depend on, those that are still `fresh`.
    pub fn begin(&mut self, services: &[String], fresh: &[String]) {
        for name in self.with_dependencies(services) {
            if let Some(unit) = self.units.get_mut(&name)
                && fresh.contains(&name)
            {
                unit.status.goal = Goal::Run;
            }
        }
    }

    /// Wants services stopped, and says why. `grace` replaces their own this time; those that are stopping already get it from
    /// now on.
    pub fn stop(&mut self, services: &[String], grace: Option<Duration>, why: Cause) {
        self.end(services, Goal::Stop, grace);
        for name in services {
            if let Some(unit) = self.units.get_mut(name) {
                unit.ends_for(why);
            }
        }
    }

    /// Whether services must not be asked to stop yet when all that runs is to, but for those that get no time for it.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// How the pod ended, while it is at rest.
    pub fn verdict(&self) -> Option<Verdict> {
        verdict::verdict(self.policy, self.statuses())
    }

    /// Wants services stopped and run again.
    pub fn restart(&mut self, services: &[String], grace: Option<Duration>) {
        let all: Vec<String> = self.with_followers(services).into_iter().collect();
        self.end(&all, Goal::Restart, grace);
    }

    /// With every running service whose `depends_on` asks to be restarted after one of them (`restart: true`).
    fn with_followers(&self, services: &[String]) -> BTreeSet<String> {
        let mut all: BTreeSet<String> = services.iter().cloned().collect();
        loop {
            let follows = |unit: &Unit| {
                unit.status.phase.active()
                    && unit
                        .facts
                        .depends_on
                        .iter()
                        .any(|(on, how)| how.restart && all.contains(on))
            };
            let next: Vec<String> = self
                .units
                .iter()
                .filter(|(name, unit)| !all.contains(*name) && follows(unit))
                .map(|(name, _)| name.clone())
                .collect();
            if next.is_empty() {
                return all;
            }
            all.extend(next);
        }
    }

    fn end(&mut self, services: &[String], goal: Goal, grace: Option<Duration>) {
        for name in services {
            if let Some(unit) = self.units.get_mut(name) {
                unit.status.goal = goal;
                unit.grace = grace;
                if let Some(grace) = grace
                    && unit.status.phase == Phase::Stopping
                {
                    let timer = unit.timer_action(TimerKind::Grace, grace);
                    self.actions.push((name.clone(), timer));
                }
            }
        }
    }

    /// Goes on from statuses that an earlier supervisor left: sets the timers that ended with it, and decides what it
    /// may have been killed before.
    pub fn resume(&mut self, now: Timestamp) {
        let mut ended = false;
        for (name, unit) in &mut self.units {
            // asking again is harmless, forgetting is not
            if unit.status.phase == Phase::Stopping {
                unit.status.phase = Phase::Running;
            }
            unit.generation += 1;
            let mut out = Vec::new();
            match unit.status.phase {
                Phase::Running => {
                    unit.resume_checks(now, &mut out);
                    out.extend(unit.status.post_start.then_some(Action::PostStart));
                }
                Phase::Restarting => {
                    out.push(unit.timer_action(TimerKind::Restart, RESTART_DELAY));
                }
                _ => {}
            }
            self.actions
                .extend(out.into_iter().map(|a| (name.clone(), a)));
            ended |= unit.status.phase == Phase::Exited;
        }
        if ended && self.policy == Policy::AbortOnExit {
            let all: Vec<String> = self.units.keys().cloned().collect();
            self.stop(&all, None, Cause::Pod);
        }
    }

    /// SIGKILL was sent on request: the restart policy of services does not apply. One that it does not end is killed as any that stops.
    pub fn killed(&mut self, services: &[String]) {
        for name in services {
            if let Some(unit) = self.units.get_mut(name)
                && unit.status.phase == Phase::Running
            {
                unit.status.goal = Goal::Stop;
                unit.status.ready = false;
                unit.ends_for(Cause::Stopped);
                unit.status.phase = Phase::Stopping;
                let timer = unit.grace_timer();
                self.actions.push((name.clone(), timer));
            }
        }
    }

    /// Pauses the checking of services that run; `until` is what is told of the end. Again: from now on. Zero ends the pause.
    pub fn snooze(&mut self, services: &[String], length: Duration, until: &str) {
        for name in services {
            let Some(unit) = self.units.get_mut(name) else {
                continue;
            };
            if unit.status.phase != Phase::Running {
                continue;
            }
            unit.snoozes += 1;
            let ends = length.is_zero();
            unit.status.snoozed = (!ends).then(|| until.to_string());
            let text = match ends {
                true => "is checked again".to_string(),
                false => format!("is not checked until {until}"),
            };
            self.actions.push((name.clone(), Action::Note(text)));
            if !ends {
                let timer = unit.timer_action(TimerKind::Snooze(unit.snoozes), length);
                self.actions.push((name.clone(), timer));
            }
        }
    }

    /// Something happened to a service.
    pub fn input(&mut self, service: &str, input: Input) {
        let policy = self.policy;
        let Some(unit) = self.units.get_mut(service) else {
            return;
        };
        let mut out = Vec::new();
        let mut ended = false;
        match input {
            Input::Started { process, at } => {
                unit.status.started = at;
                unit.started(process, &mut out);
            }
            Input::StartFailed(failure) => {
                unit.generation += 1;
                unit.status.phase = Phase::Failed;
                unit.status.exit_code = Some(failure.code.into());
                unit.status.process = None;
                unit.ends_for(Cause::NotStarted);
                out.push(Action::Note(format!(
                    "could not be started: {}",
                    failure.message
                )));
                unit.status.error = Some(failure.message);
            }
            Input::Exited {
                code,
                signal,
                oom,
                ran,
                at,
            } => {
                unit.status.finished = at;
                unit.status.signal = signal;
                unit.exited(code, oom, ran, &mut out);
                ended = !matches!(unit.status.phase, Phase::Restarting | Phase::Waiting);
            }
            Input::Tested {
                check,
                tested,
                age,
                at,
                generation,
            } => {
                if generation == unit.generation && unit.status.phase == Phase::Running {
                    let next = unit
                        .checks
                        .tested(check, tested, age, &at, &mut unit.status);
                    unit.follow(next, &mut out);
                }
            }
            Input::PostStarted {
                failure,
                generation,
            } if generation == unit.generation => unit.post_started(failure, &mut out),
            Input::PreStopped {
                failure,
                generation,
            } if generation == unit.generation => unit.pre_stopped(failure, &mut out),
            Input::PostStarted { .. } | Input::PreStopped { .. } => {}
            Input::Timer(timer) => unit.timer(timer, &mut out),
        }
        self.actions
            .extend(out.into_iter().map(|a| (service.to_string(), a)));
        if ended && policy == Policy::AbortOnExit {
            let all: Vec<String> = self.units.keys().cloned().collect();
            self.stop(&all, None, Cause::Pod);
        }
    }

    /// By [`Policy::FailPod`]: a service that failed ends those that are not over yet.
    fn enforce(&mut self) {
        let fails = |unit: &Unit| {
            let success =
                unit.status.cause == Some(Cause::Exited) && unit.status.exit_code == Some(0);
            match unit.status.phase {
                Phase::Running | Phase::Stopping => {
                    unit.status.cause == Some(Cause::Unhealthy)
                        || unit.status.goal == Goal::Run && unit.status.health == Health::Unhealthy
                }
                Phase::Exited => unit.status.cause.is_some_and(verdict::is_failure) && !success,
                Phase::Failed => true,
                Phase::Waiting | Phase::Starting | Phase::Restarting => false,
            }
        };
        if self.policy != Policy::FailPod || !self.units.values().any(fails) {
            return;
        }
        for (name, unit) in &mut self.units {
            let over = matches!(unit.status.phase, Phase::Exited | Phase::Failed);
            if over || unit.status.goal == Goal::Stop {
                continue;
            }
            let unhealthy = unit.status.health == Health::Unhealthy;
            let why = if unhealthy {
                Cause::Unhealthy
            } else {
                Cause::Pod
            };
            unit.status.goal = Goal::Stop;
            unit.ends_for(why);
            let text = match why {
                Cause::Unhealthy => "is stopped, and the pod with it",
                _ => "is stopped: another service ended the pod",
            };
            let note = Action::Note(text.to_string());
            self.actions.push((name.clone(), note));
        }
    }

    /// Every service is where it is wanted to be for now: nothing waits, starts or stops.
    pub fn settled(&self) -> bool {
        self.units.values().all(|unit| match unit.status.goal {
            // its start is not over, or has failed
            Goal::Run
                if unit.status.phase == Phase::Running
                    && (unit.status.post_start || unit.status.error.is_some()) =>
            {
                false
            }
            Goal::Run => !matches!(
                unit.status.phase,
                Phase::Waiting | Phase::Starting | Phase::Stopping
            ),
            Goal::Stop => !unit.status.phase.active(),
            Goal::Restart => false,
        })
    }

    /// The health or readiness checks of a running service have not come to anything yet.
    pub fn undecided(&self) -> bool {
        self.units.values().any(|unit| {
            let starting =
                |r: &CheckResult| r.kind != CheckKind::Check && r.state == CheckState::Starting;
            unit.status.phase == Phase::Running && unit.status.checks.values().any(starting)
        })
    }

    /// The service does not run and will not.
    pub fn idle(&self, service: &str) -> bool {
        self.units.get(service).is_none_or(|unit| {
            let again = matches!(unit.status.phase, Phase::Waiting | Phase::Restarting);
            !unit.status.phase.active() && (unit.status.goal == Goal::Stop || !again)
        })
    }

    fn with_dependencies(&self, services: &[String]) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let mut open: Vec<String> = services.to_vec();
        while let Some(name) = open.pop() {
            if let Some(unit) = self.units.get(&name)
                && all.insert(name)
            {
                open.extend(unit.facts.depends_on.keys().cloned());
            }
        }
        all
    }

    /// Moves every service as far as it can go; ends because each step leaves a phase for good.
    fn advance(&mut self) {
        loop {
            self.enforce();
            let next = self
                .units
                .iter()
                .find_map(|(name, unit)| Some((name.clone(), self.next(name, unit)?)));
            let Some((name, step)) = next else { return };
            let Some(unit) = self.units.get_mut(&name) else {
                return;
            };
            let mut out = Vec::new();
            match step {
                Step::Start => {
                    unit.generation += 1;
                    unit.status.phase = Phase::Starting;
                    out.push(Action::Start);
                }
                Step::Fail(message) => {
                    unit.status.phase = Phase::Failed;
                    unit.ends_for(Cause::NotStarted);
                    out.push(Action::Note(message.clone()));
                    unit.status.error = Some(message);
                }
                Step::Stop => unit.ask_to_stop(&mut out),
                Step::Ended => unit.status.phase = Phase::Exited,
                Step::Again => {
                    unit.status.phase = Phase::Waiting;
                    unit.status.goal = Goal::Run;
                    unit.status.error = None;
                    unit.status.cause = None;
                }
            }
            self.actions
                .extend(out.into_iter().map(|a| (name.clone(), a)));
        }
    }

    fn next(&self, name: &str, unit: &Unit) -> Option<Step> {
        match (unit.status.goal, unit.status.phase) {
            (Goal::Run, Phase::Waiting) => self.may_start(unit),
            (Goal::Stop | Goal::Restart, Phase::Running) if !self.is_needed(name) => {
                // nobody waits for a hook who has no time left
                let held = self.held
                    && unit.grace != Some(Duration::ZERO)
                    && View::of(self.units.values().map(|u| &u.status)).ending;
                (!held).then_some(Step::Stop)
            }
            // its start failed
            (Goal::Run, Phase::Running) if unit.status.error.is_some() => Some(Step::Stop),
            (Goal::Stop | Goal::Restart, Phase::Restarting) => Some(Step::Ended),
            (Goal::Restart, Phase::Exited | Phase::Failed | Phase::Waiting) => Some(Step::Again),
            _ => None,
        }
    }

    fn may_start(&self, unit: &Unit) -> Option<Step> {
        for (name, dependency) in &unit.facts.depends_on {
            let verdict = self
                .units
                .get(name)
                .map_or(Satisfied::Never("is not there"), |on| {
                    satisfied(
                        dependency.condition,
                        &on.status,
                        on.checks.any(CheckKind::Health),
                    )
                });
            match verdict {
                Satisfied::Yes => {}
                Satisfied::NotYet => return None,
                Satisfied::Never(_) if !dependency.required => {}
                Satisfied::Never(why) => {
                    return Some(Step::Fail(format!("dependency {name} {why}")));
                }
            }
        }
        Some(Step::Start)
    }

    /// Something that depends on `name` and is to stop as well still runs.
    fn is_needed(&self, name: &str) -> bool {
        self.units.values().any(|other| {
            other.facts.depends_on.contains_key(name)
                && other.status.goal != Goal::Run
                && other.status.phase.active()
        })
    }
}

enum Step {
    Start,
    Fail(String),
    Stop,
    Ended,
    Again,
}

impl Phase {
    /// There is, or is about to be, a process.
    pub fn active(self) -> bool {
        matches!(self, Phase::Starting | Phase::Running | Phase::Stopping)
    }
}

#[cfg(test)]
mod tests;
