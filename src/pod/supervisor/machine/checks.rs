//! The checks of one service in one of its runs: when each is next, and what its results come to. Pure.
//!
//! *Invariants:* of each check one is under way or one timer is set, never two; nothing is concluded from what is seen
//! while checking is paused, because the service is to stop or a person asked for it; a result that says nothing new
//! changes nothing.

use std::rc::Rc;
use std::time::Duration;

use super::super::super::record::{CheckResult, CheckState, Goal, Health, Measured, Phase, Status};
use crate::compose::project::{Check, CheckKind};

/// First pause of a check that has not passed yet, doubled until its interval is reached.
const EARLY: Duration = Duration::from_millis(100);
/// Shortest pause, whatever is asked for.
const LEAST: Duration = Duration::from_millis(10);

/// What one check came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    /// It could be run; otherwise nothing is known about the service.
    pub ran: bool,
    /// It passed.
    pub passed: bool,
    /// Exit code, status, connection.
    pub measured: Measured,
    /// What it printed or why it failed (bounded).
    pub message: String,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// [`Checks::due`] after so long.
    Later(usize, Duration),
    /// Run it; [`Checks::tested`] with what it comes to.
    Run(usize, Rc<Check>),
    /// A line for the pod's events.
    Note(String),
}

/// All checks of a service.
#[derive(Debug, Default)]
pub struct Checks(Vec<Run>);

#[derive(Debug)]
struct Run {
    check: Rc<Check>,
    /// Failures before it first passed in this run.
    early: u32,
    /// The last one could not be run: may be a passing trouble of ours.
    trouble: bool,
}

impl Checks {
    /// Of these.
    pub fn new(checks: Vec<Check>) -> Checks {
        let run = |check| Run {
            check: Rc::new(check),
            early: 0,
            trouble: false,
        };
        Checks(checks.into_iter().map(run).collect())
    }

    /// There is one of a kind.
    pub fn any(&self, kind: CheckKind) -> bool {
        self.0.iter().any(|run| run.check.kind == kind)
    }

    /// The service runs: nothing is known of it, and the first ones are due after their delays.
    pub fn begin(&mut self, status: &mut Status) -> Vec<Next> {
        status.checks.clear();
        self.resume(status, Duration::ZERO)
    }

    /// Goes on with what an earlier supervisor knew of a service that has run for `age`.
    pub fn resume(&mut self, status: &mut Status, age: Duration) -> Vec<Next> {
        status
            .checks
            .retain(|name, _| self.0.iter().any(|run| run.check.name == *name));
        let mut next = Vec::new();
        for (index, run) in self.0.iter_mut().enumerate() {
            run.early = 0;
            run.trouble = false;
            let check = &run.check;
            let fresh = !status.checks.contains_key(&check.name);
            let result = status
                .checks
                .entry(check.name.clone())
                .or_insert_with(|| CheckResult::new(check.kind, Measured::nothing(&check.test)));
            let pause = match check.delay {
                Some(delay) if fresh => delay.saturating_sub(age),
                _ => run.pause(result, age),
            };
            next.push(Next::Later(index, pause));
        }
        self.judge(status);
        next
    }

    /// The run is over.
    pub fn end(&self, status: &mut Status) {
        status.snoozed = None;
        self.judge(status);
        if status.health != Health::None {
            status.health = Health::Starting;
        }
    }

    /// A check's time has come.
    pub fn due(&self, index: usize, status: &Status) -> Option<Next> {
        let run = self.0.get(index)?;
        Some(match paused(status) {
            true => Next::Later(index, run.check.interval.max(LEAST)),
            false => Next::Run(index, run.check.clone()),
        })
    }

    /// A check that began when the service had run for `age` came to an end.
    pub fn tested(
        &mut self,
        index: usize,
        tested: Tested,
        age: Duration,
        at: &str,
        status: &mut Status,
    ) -> Vec<Next> {
        let paused = paused(status);
        let Some(run) = self.0.get_mut(index) else {
            return Vec::new();
        };
        let check = run.check.clone();
        let Some(result) = status.checks.get_mut(&check.name) else {
            return Vec::new();
        };
        let hiccup = !tested.ran && !run.trouble;
        run.trouble = !tested.ran;
        let mut next = Vec::new();
        if !paused && !hiccup {
            let before = (result.state, result.measured.clone());
            run.conclude(result, tested, age, at);
            if check.kind == CheckKind::Check && before != (result.state, result.measured.clone()) {
                next.push(Next::Note(format!(
                    "check {}: {}",
                    check.name,
                    result.told()
                )));
            }
        }
        let pause = run.pause(result, age);
        next.extend(self.judge_aloud(status));
        next.push(Next::Later(index, pause));
        next
    }

    /// As [`Checks::judge`]; says what changed.
    fn judge_aloud(&self, status: &mut Status) -> Vec<Next> {
        let before = (status.health, status.ready);
        self.judge(status);
        let mut next = Vec::new();
        if before.0 != status.health {
            next.extend(match status.health {
                Health::Healthy => Some("is healthy".to_string()),
                Health::Unhealthy => Some(format!(
                    "is unhealthy: {}",
                    status.failing(CheckKind::Health)
                )),
                Health::None | Health::Starting => None,
            });
        }
        if before.1 != status.ready && self.any(CheckKind::Readiness) {
            next.push(match status.ready {
                true => "is ready".to_string(),
                false => format!("is not ready: {}", status.failing(CheckKind::Readiness)),
            });
        }
        next.into_iter().map(Next::Note).collect()
    }

    /// What all results together say.
    fn judge(&self, status: &mut Status) {
        let all = |kind: CheckKind, state: CheckState| {
            let mut results = status.checks.values().filter(|r| r.kind == kind);
            results.all(|r| r.state == state)
        };
        let failing = status
            .checks
            .values()
            .any(|r| r.kind == CheckKind::Health && r.state == CheckState::Failing);
        let health = if !self.any(CheckKind::Health) {
            Health::None
        } else if failing {
            Health::Unhealthy
        } else if all(CheckKind::Health, CheckState::Passing) {
            Health::Healthy
        } else {
            Health::Starting
        };
        let ready = match self.any(CheckKind::Readiness) {
            true => all(CheckKind::Readiness, CheckState::Passing),
            false => matches!(health, Health::None | Health::Healthy),
        };
        status.health = health;
        status.ready = ready && status.phase == Phase::Running;
    }
}

/// What is seen now is not the service's fault, or not of interest.
fn paused(status: &Status) -> bool {
    status.goal != Goal::Run || status.snoozed.is_some()
}

impl Run {
    /// From the end of one to the start of the next.
    fn pause(&self, result: &CheckResult, age: Duration) -> Duration {
        let check = &self.check;
        let interval = match result.state {
            CheckState::Starting if age < check.grace_period => check
                .start_interval
                .unwrap_or(check.interval)
                .min(check.interval),
            CheckState::Passing => check.snooze.unwrap_or(check.interval),
            _ => check.interval,
        };
        let early = match (result.state, check.delay) {
            (CheckState::Starting, None) => EARLY.saturating_mul(1 << self.early.min(16)),
            _ => interval,
        };
        early.min(interval).max(LEAST)
    }

    fn conclude(&mut self, result: &mut CheckResult, tested: Tested, age: Duration, at: &str) {
        let check = self.check.clone();
        let before = (result.state, result.measured.clone());
        let starting = result.state == CheckState::Starting;
        // the grace period; where the first come early, the time before one would be due otherwise
        let grace = match check.delay {
            None => check.grace_period.max(check.interval),
            Some(_) => check.grace_period,
        };
        let known = result.failures == 0 && tested.passed;
        if check.kind == CheckKind::Check {
            result.state = match tested.passed {
                true => CheckState::Passing,
                false => CheckState::Failing,
            };
        } else if tested.passed {
            result.failures = 0;
            result.successes = result
                .successes
                .saturating_add(1)
                .min(check.success_threshold);
            if result.successes >= check.success_threshold {
                result.state = CheckState::Passing;
            }
        } else {
            result.successes = 0;
            self.early = self.early.saturating_add(1);
            if !starting || age >= grace {
                result.failures = result.failures.saturating_add(1);
            }
            if result.failures >= check.consecutive_failures {
                result.state = CheckState::Failing;
            }
        }
        result.measured = tested.measured;
        let same = before == (result.state, result.measured.clone());
        if !same {
            result.since = at.to_string();
        }
        // the words of a result that goes on are not news
        if !(same && (known || check.kind == CheckKind::Check)) {
            result.message = tested.message;
        }
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
