//! Which hook is due: a pure function of what is recorded and of the services' statuses.
//!
//! A *life* of a pod is from its first service's start to the end of its last; `sampan stop` and `start` begin another one.

use serde::{Deserialize, Serialize};

use crate::compose::project::HookPoint;
use crate::pod::record::{self, Cause, Goal, Phase, Status};

/// `hooks.json`: what ran, and what is owed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// [`record::VERSION`].
    pub version: u32,
    /// How far this life has come.
    pub stage: Stage,
    /// The hooks of one point, at work.
    pub chain: Option<Chain>,
    /// The hooks for a failure ran in this life.
    pub told: bool,
    /// A hook failed the pod.
    pub failure: Option<String>,
    /// What the last hook that ended came to.
    pub last: String,
}

/// How far a life has come: each stage is the end of the hooks of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// There is none: nothing is owed.
    Down,
    /// A service may have started.
    Begun,
    /// After `after-start`.
    Started,
    /// After `after-ready`.
    Ready,
    /// After `before-kill`.
    Left,
}

/// The hooks of one point, at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The point.
    pub at: HookPoint,
    /// How many of its hooks have ended.
    pub next: usize,
    /// The next one may run already.
    pub begun: bool,
}

/// What the services' statuses come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct View {
    /// Every wanted service runs, or is done.
    pub up: bool,
    /// And all of them are ready.
    pub ready: bool,
    /// Something runs, and all that does is to stop.
    pub ending: bool,
    /// Nothing runs or is going to.
    pub over: bool,
    /// A service failed for good.
    pub failed: bool,
    /// Nothing can be started: network, volumes or cgroup could not be made.
    pub broken: bool,
}

impl View {
    /// Of a pod with these services.
    pub fn of<'a>(statuses: impl Iterator<Item = &'a Status>) -> View {
        let (mut runs, mut all_up, mut all_ready) = (false, true, true);
        let (mut active, mut goes_on, mut failed) = (false, false, false);
        for status in statuses {
            let wanted = status.goal == Goal::Run;
            let running = status.phase == Phase::Running && !status.post_start;
            let done = status.phase == Phase::Exited && status.exit_code == Some(0);
            runs |= wanted && running;
            all_up &= match status.goal {
                Goal::Run => running || done,
                Goal::Stop => true,
                Goal::Restart => false,
            };
            all_ready &= status.phase != Phase::Running || status.ready;
            active |= status.phase.active();
            goes_on |= match status.phase {
                Phase::Starting | Phase::Running | Phase::Stopping => wanted,
                Phase::Waiting | Phase::Restarting => wanted,
                Phase::Exited | Phase::Failed => status.goal == Goal::Restart,
            };
            failed |= match status.cause {
                Some(Cause::Exited) => status.phase == Phase::Exited && !done,
                Some(Cause::OutOfMemory | Cause::Unhealthy | Cause::NotStarted) => true,
                Some(Cause::Stopped | Cause::Pod | Cause::Owner | Cause::Hook) | None => false,
            };
        }
        let up = runs && all_up;
        View {
            up,
            ready: up && all_ready,
            ending: active && !goes_on,
            over: !active && !goes_on,
            failed,
            broken: false,
        }
    }
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            version: record::VERSION,
            stage: Stage::Down,
            chain: None,
            told: false,
            failure: None,
            last: String::new(),
        }
    }
}

impl Ledger {
    /// A service is about to start.
    pub fn begin(&mut self) {
        if self.stage == Stage::Down {
            *self = Ledger {
                stage: Stage::Begun,
                ..Ledger::default()
            };
        }
    }

    /// Services must not be asked to stop yet when the pod is ending.
    pub fn holds(&self) -> bool {
        !matches!(self.stage, Stage::Left | Stage::Down)
    }

    /// Goes on as far as no hook has to run; `count` tells how many a point has. What is to run is in [`Ledger::chain`].
    pub fn advance(&mut self, view: View, count: impl Fn(HookPoint) -> usize) {
        loop {
            if let Some(chain) = self.chain {
                let early = matches!(chain.at, HookPoint::AfterStart | HookPoint::AfterReady);
                let overtaken = view.ending || view.over || self.failure.is_some();
                if chain.next < count(chain.at) && !(early && overtaken) {
                    return;
                }
                self.complete(chain.at);
                // a service started while the last hooks of a life ran
                if self.stage == Stage::Down && !view.over {
                    self.begin();
                }
            }
            let Some(at) = self.due(view) else { return };
            self.chain = Some(Chain {
                at,
                next: 0,
                begun: false,
            });
        }
    }

    /// The hook that was to run has ended.
    pub fn ran(&mut self, failure: Option<String>) {
        if let Some(chain) = &mut self.chain {
            chain.next += 1;
            chain.begun = false;
        }
        if self.failure.is_none() {
            self.failure = failure;
        }
    }

    fn complete(&mut self, at: HookPoint) {
        self.chain = None;
        match at {
            HookPoint::BeforeLaunch => {}
            HookPoint::AfterStart => self.stage = Stage::Started,
            HookPoint::AfterReady => self.stage = Stage::Ready,
            HookPoint::BeforeKill => self.stage = Stage::Left,
            HookPoint::AfterStop => self.stage = Stage::Down,
            HookPoint::OnFailure => self.told = true,
        }
    }

    fn due(&self, view: View) -> Option<HookPoint> {
        let failed = view.failed || self.failure.is_some();
        let goes_on = self.failure.is_none();
        match self.stage {
            Stage::Down => (view.broken && !self.told).then_some(HookPoint::OnFailure),
            stage if stage != Stage::Left && (view.ending || view.over) => {
                Some(HookPoint::BeforeKill)
            }
            _ if failed && !self.told => Some(HookPoint::OnFailure),
            Stage::Left if view.over => Some(HookPoint::AfterStop),
            // left, and up again without having been down: a restart
            Stage::Begun | Stage::Left if view.up && goes_on => Some(HookPoint::AfterStart),
            Stage::Started if view.ready && goes_on => Some(HookPoint::AfterReady),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HookPoint::{AfterReady, AfterStart, AfterStop, BeforeKill, OnFailure};

    const UP: View = View {
        up: true,
        ready: false,
        ending: false,
        over: false,
        failed: false,
        broken: false,
    };
    const NONE: View = View { up: false, ..UP };
    const READY: View = View { ready: true, ..UP };
    const ENDING: View = View {
        ending: true,
        ..NONE
    };
    const OVER: View = View { over: true, ..NONE };

    /// Runs hooks as they become due, two at each point; gives the points of those that ran.
    fn live(ledger: &mut Ledger, views: &[View]) -> Vec<HookPoint> {
        let mut ran = Vec::new();
        for view in views {
            loop {
                ledger.advance(*view, |_| 2);
                let Some(chain) = ledger.chain else { break };
                if chain.next == 0 {
                    ran.push(chain.at);
                }
                ledger.ran(None);
            }
        }
        ran
    }

    #[test]
    fn lives() {
        let failed = |view: View| View {
            failed: true,
            ..view
        };
        let broken = View {
            broken: true,
            ..OVER
        };
        for (views, expected, stage) in [
            (
                &[NONE, UP, READY][..],
                &[AfterStart, AfterReady][..],
                Stage::Ready,
            ),
            (&[READY], &[AfterStart, AfterReady], Stage::Ready),
            (&[READY, UP, READY], &[AfterStart, AfterReady], Stage::Ready),
            (
                &[READY, ENDING, OVER],
                &[AfterStart, AfterReady, BeforeKill, AfterStop],
                Stage::Down,
            ),
            // nobody asked: it ended by itself
            (
                &[UP, OVER],
                &[AfterStart, BeforeKill, AfterStop],
                Stage::Down,
            ),
            // it never came up
            (
                &[NONE, failed(NONE), failed(OVER)],
                &[OnFailure, BeforeKill, AfterStop],
                Stage::Down,
            ),
            (
                &[READY, failed(ENDING), failed(OVER)],
                &[AfterStart, AfterReady, BeforeKill, OnFailure, AfterStop],
                Stage::Down,
            ),
            (
                &[failed(READY), failed(READY)],
                &[OnFailure, AfterStart, AfterReady],
                Stage::Ready,
            ),
            // a restart, of services that do not wait for each other
            (
                &[READY, ENDING, NONE, READY],
                &[AfterStart, AfterReady, BeforeKill, AfterStart, AfterReady],
                Stage::Ready,
            ),
        ] {
            let mut ledger = Ledger::default();
            ledger.begin();
            assert_eq!(live(&mut ledger, views), expected, "{views:?}");
            assert_eq!(ledger.stage, stage, "{views:?}");
        }
        let mut ledger = Ledger::default();
        assert_eq!(live(&mut ledger, &[OVER, broken, broken]), [OnFailure]);
    }

    #[test]
    fn another_life_runs_them_again() {
        let mut ledger = Ledger::default();
        for _ in 0..2 {
            ledger.begin();
            let failing = View {
                failed: true,
                ..OVER
            };
            assert_eq!(
                live(&mut ledger, &[READY, failing, OVER]),
                [AfterStart, AfterReady, BeforeKill, OnFailure, AfterStop]
            );
        }
    }

    #[test]
    fn the_end_of_the_pod_overtakes_its_beginning() {
        let mut ledger = Ledger::default();
        ledger.begin();
        ledger.advance(READY, |_| 2);
        assert_eq!(ledger.chain.map(|c| (c.at, c.next)), Some((AfterStart, 0)));
        ledger.ran(None);
        ledger.advance(ENDING, |_| 2);
        assert_eq!(ledger.chain.map(|c| (c.at, c.next)), Some((BeforeKill, 0)));
        assert!(ledger.holds());
        ledger.ran(None);
        // once begun it is finished, although somebody changed his mind
        ledger.advance(READY, |_| 2);
        assert_eq!(ledger.chain.map(|c| (c.at, c.next)), Some((BeforeKill, 1)));
        ledger.ran(None);
        ledger.advance(READY, |_| 2);
        assert_eq!(ledger.chain.map(|c| (c.at, c.next)), Some((AfterStart, 0)));
        assert!(!ledger.holds());
    }

    #[test]
    fn a_service_that_starts_while_the_last_hooks_run_begins_another_life() {
        let mut ledger = Ledger::default();
        ledger.begin();
        assert_eq!(
            live(&mut ledger, &[READY, ENDING]),
            [AfterStart, AfterReady, BeforeKill]
        );
        ledger.advance(OVER, |_| 1);
        ledger.ran(None);
        ledger.advance(NONE, |_| 1);
        assert_eq!((ledger.stage, ledger.chain), (Stage::Begun, None));
        assert!(ledger.holds());
        assert_eq!(
            live(&mut ledger, &[READY, OVER]),
            [AfterStart, AfterReady, BeforeKill, AfterStop]
        );
    }

    #[test]
    fn a_hook_that_fails_the_pod_is_the_last_of_its_beginning() {
        let mut ledger = Ledger::default();
        ledger.begin();
        ledger.advance(READY, |_| 2);
        ledger.ran(Some("no".to_owned()));
        ledger.advance(READY, |_| 2);
        assert_eq!(ledger.chain.map(|c| (c.at, c.next)), Some((OnFailure, 0)));
        assert_eq!(
            live(&mut ledger, &[READY, ENDING, OVER]),
            [OnFailure, BeforeKill, AfterStop]
        );
        ledger.begin();
        assert_eq!(ledger.failure, None);
    }

    #[test]
    fn points_without_hooks_are_passed() {
        let mut ledger = Ledger::default();
        ledger.begin();
        for (view, stage) in [
            (UP, Stage::Started),
            (READY, Stage::Ready),
            (ENDING, Stage::Left),
            (OVER, Stage::Down),
        ] {
            ledger.advance(view, |_| 0);
            assert_eq!((ledger.stage, ledger.chain), (stage, None));
        }
    }

    #[test]
    fn views() {
        let status = |goal, phase, code| Status {
            goal,
            phase,
            exit_code: code,
            ready: phase == Phase::Running,
            ..Status::default()
        };
        let because = |cause, status| Status {
            cause: Some(cause),
            ..status
        };
        use Goal::{Restart, Run, Stop};
        use Phase::{Exited, Failed, Restarting, Running, Starting, Stopping, Waiting};
        let idle = status(Stop, Waiting, None);
        for (services, expected) in [
            (vec![idle.clone()], OVER),
            (vec![status(Run, Starting, None), idle.clone()], NONE),
            (vec![status(Run, Running, None), idle.clone()], READY),
            (
                vec![Status {
                    ready: false,
                    ..status(Run, Running, None)
                }],
                UP,
            ),
            (
                vec![status(Run, Running, None), status(Run, Exited, Some(0))],
                READY,
            ),
            (
                vec![status(Run, Running, None), status(Run, Waiting, None)],
                NONE,
            ),
            (
                vec![status(Run, Running, None), status(Stop, Running, None)],
                READY,
            ),
            (
                vec![status(Stop, Running, None), status(Stop, Exited, Some(143))],
                ENDING,
            ),
            (vec![status(Restart, Running, None)], ENDING),
            (vec![status(Stop, Stopping, None)], ENDING),
            (
                vec![status(Restart, Running, None), status(Run, Waiting, None)],
                NONE,
            ),
            (vec![status(Run, Restarting, Some(1))], NONE),
            (vec![status(Run, Exited, Some(0))], OVER),
            (
                vec![because(Cause::Exited, status(Run, Exited, Some(1)))],
                View {
                    failed: true,
                    ..OVER
                },
            ),
            (
                vec![
                    because(Cause::NotStarted, status(Run, Failed, Some(125))),
                    status(Run, Running, None),
                ],
                View {
                    failed: true,
                    ..NONE
                },
            ),
            (
                vec![because(Cause::Unhealthy, status(Stop, Running, None))],
                View {
                    failed: true,
                    ..ENDING
                },
            ),
            (
                vec![because(Cause::Stopped, status(Stop, Exited, Some(143)))],
                OVER,
            ),
        ] {
            assert_eq!(View::of(services.iter()), expected, "{services:#?}");
        }
    }
}
