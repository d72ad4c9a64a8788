//! One service of a pod in one of its runs: what its start, end, timers and hooks change in its status, and what is to be done then. Pure.
//!
//! *Invariants:* the first reason why a service ends is the one that stays; a run's end counts [`Unit::generation`] on, so what was set or
//! asked in it is ignored from there on.

use std::time::Duration;

use jiff::Timestamp;

use super::super::super::plan;
use super::super::super::record::{Cause, Goal, Phase, ProcessId, Status};
use super::checks::{Checks, Next};
use super::{Action, Facts, Timer, TimerKind};

/// A service with what a run of it is about.
pub struct Unit {
    pub facts: Facts,
    pub checks: Checks,
    pub status: Status,
    /// Counts runs: timers and probes of an earlier one mean nothing.
    pub generation: u64,
    /// Restarts since it last ran for long.
    pub streak: u32,
    /// Pauses of checking so far.
    pub snoozes: u64,
    /// Grace period of the next stop instead of its own.
    pub grace: Option<Duration>,
}

/// First delay of a restart, doubled each time.
pub const RESTART_DELAY: Duration = Duration::from_millis(100);
/// Longest delay of a restart.
pub const RESTART_DELAY_MOST: Duration = Duration::from_secs(60);
/// A service that ran this long starts over with [`RESTART_DELAY`].
const RESTART_RESET: Duration = Duration::from_secs(10);

impl Unit {
    /// The first reason is the reason; one that is over keeps its own.
    pub fn ends_for(&mut self, why: Cause) {
        self.status.cause.get_or_insert(why);
    }

    pub fn timer_action(&self, kind: TimerKind, after: Duration) -> Action {
        let generation = self.generation;
        Action::Timer(Timer { kind, generation }, after)
    }

    pub fn started(&mut self, process: ProcessId, out: &mut Vec<Action>) {
        self.status.phase = Phase::Running;
        self.status.process = Some(process);
        self.status.exit_code = None;
        self.status.signal = None;
        // one that was asked to stop while it started goes on being asked
        if self.status.goal == Goal::Run {
            self.status.cause = None;
        }
        self.status.oom_killed = false;
        self.status.error = None;
        let next = self.checks.begin(&mut self.status);
        self.follow(next, out);
        self.status.post_start = self.facts.post_start;
        out.extend(self.facts.post_start.then_some(Action::PostStart));
    }

    /// What its checks want done.
    pub fn follow(&self, next: impl IntoIterator<Item = Next>, out: &mut Vec<Action>) {
        out.extend(next.into_iter().map(|next| match next {
            Next::Later(check, after) => self.timer_action(TimerKind::Check(check), after),
            Next::Run(index, check) => Action::Check(index, check),
            Next::Note(text) => Action::Note(text),
        }));
    }

    pub fn resume_checks(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let age = between(&self.status.started, now).unwrap_or_default();
        let next = self.checks.resume(&mut self.status, age);
        self.follow(next, out);
        if let Some(until) = self.status.snoozed.take()
            && let Ok(end) = until.parse::<Timestamp>()
            && let Some(left) = between(&now.to_string(), end)
        {
            self.status.snoozed = Some(until);
            out.push(self.timer_action(TimerKind::Snooze(self.snoozes), left));
        }
    }

    pub fn exited(&mut self, code: Option<i32>, oom: bool, ran: Duration, out: &mut Vec<Action>) {
        self.generation += 1;
        self.status.process = None;
        self.status.exit_code = code;
        self.status.oom_killed = oom;
        let killed = oom && code != Some(0);
        self.ends_for(if killed {
            Cause::OutOfMemory
        } else {
            Cause::Exited
        });
        if ran >= RESTART_RESET {
            self.streak = 0;
        }
        let ended = match code {
            Some(code) => format!("exited with code {code}"),
            None => "exited, its code was not seen".to_string(),
        };
        let why = if oom { ": out of memory" } else { "" };
        out.push(Action::Note(format!("{ended}{why}")));
        let stopped = self.status.goal != Goal::Run;
        self.status.post_start = false;
        if self.status.error.is_some() {
            self.status.phase = Phase::Failed;
            self.status.exit_code = Some(125);
        } else if plan::restarts(self.facts.restart, code, self.status.restarts, stopped) {
            let delay = RESTART_DELAY
                .saturating_mul(1 << self.streak.min(16))
                .min(RESTART_DELAY_MOST);
            self.streak += 1;
            self.status.phase = Phase::Restarting;
            // it is not over
            self.status.cause = None;
            out.push(self.timer_action(TimerKind::Restart, delay));
        } else {
            self.status.phase = Phase::Exited;
        }
        self.checks.end(&mut self.status);
    }

    pub fn timer(&mut self, timer: Timer, out: &mut Vec<Action>) {
        if timer.generation != self.generation {
            return;
        }
        match (timer.kind, self.status.phase) {
            (TimerKind::Check(check), Phase::Running) => {
                self.follow(self.checks.due(check, &self.status), out);
            }
            (TimerKind::Snooze(which), Phase::Running) if which == self.snoozes => {
                self.status.snoozed = None;
                out.push(Action::Note("is checked again".to_string()));
            }
            (TimerKind::Grace, Phase::Stopping) => out.push(Action::Kill),
            (TimerKind::Restart, Phase::Restarting) => {
                self.status.restarts += 1;
                self.status.phase = Phase::Waiting;
            }
            _ => {}
        }
    }

    pub fn post_started(&mut self, failure: Option<String>, out: &mut Vec<Action>) {
        self.status.post_start = false;
        let Some(failure) = failure else { return };
        out.push(Action::Note(failure.clone()));
        // one that is asked to stop is not failed by that
        if self.status.goal == Goal::Run && self.status.phase == Phase::Running {
            self.ends_for(Cause::NotStarted);
            self.status.error = Some(failure);
        }
    }

    pub fn pre_stopped(&mut self, failure: Option<String>, out: &mut Vec<Action>) {
        out.extend(failure.map(Action::Note));
        if self.status.phase == Phase::Stopping {
            out.push(Action::Signal(self.facts.stop_signal));
        }
    }

    /// The time until SIGKILL is also that of the hooks.
    pub fn ask_to_stop(&mut self, out: &mut Vec<Action>) {
        self.status.phase = Phase::Stopping;
        self.status.ready = false;
        out.push(match self.facts.pre_stop {
            true => Action::PreStop,
            false => Action::Signal(self.facts.stop_signal),
        });
        out.push(self.grace_timer());
    }

    /// Until all of it is killed.
    pub fn grace_timer(&mut self) -> Action {
        let grace = self.grace.take().unwrap_or(self.facts.grace);
        self.timer_action(TimerKind::Grace, grace)
    }
}

/// From one time to a later one; `None`: it is not later, or no time.
fn between(from: &str, to: Timestamp) -> Option<Duration> {
    let from = from.parse::<Timestamp>().ok()?;
    Duration::try_from(to.duration_since(from))
        .ok()
        .filter(|time| !time.is_zero())
}
