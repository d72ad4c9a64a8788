//! Lives of checks: what comes in, what follows, what is known then.

use super::*;
use crate::compose::project::{CheckTest, TcpTest, loopback};

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// After 15 s, every 10 s, 10 s of grace, three failures, as Mesos has it.
fn mesos(name: &str, kind: CheckKind) -> Check {
    Check {
        name: name.to_string(),
        kind,
        test: CheckTest::Tcp(TcpTest {
            host: loopback(false),
            port: 1,
        }),
        delay: Some(ms(15_000)),
        interval: ms(10_000),
        start_interval: None,
        timeout: ms(20_000),
        grace_period: ms(10_000),
        consecutive_failures: 3,
        success_threshold: 1,
        snooze: None,
    }
}

/// Early ones, every second, two failures.
fn early(name: &str) -> Check {
    Check {
        delay: None,
        interval: ms(1000),
        start_interval: Some(ms(5000)),
        grace_period: ms(0),
        consecutive_failures: 2,
        ..mesos(name, CheckKind::Health)
    }
}

const PASS: Option<bool> = Some(true);
const FAIL: Option<bool> = Some(false);
/// It could not be run.
const BROKEN: Option<bool> = None;

fn tested(passed: Option<bool>, message: &str) -> Tested {
    Tested {
        ran: passed.is_some(),
        passed: passed == Some(true),
        measured: Measured::Tcp { succeeded: passed },
        message: message.to_string(),
    }
}

fn running() -> Status {
    Status {
        goal: Goal::Run,
        phase: Phase::Running,
        ..Status::default()
    }
}

/// A step: the service's age, the result; then: pause until the next, state, failures that count, what is noted.
type Step = (u64, Option<bool>, u64, CheckState, u32, &'static str);

#[track_caller]
fn live(check: Check, first: u64, steps: &[Step]) {
    let mut checks = Checks::new(vec![check.clone()]);
    let mut status = running();
    let begun = checks.begin(&mut status);
    assert_eq!(begun, [Next::Later(0, ms(first))]);
    for (row, (age, result, pause, state, failures, note)) in steps.iter().enumerate() {
        let due = checks.due(0, &status);
        assert_eq!(due, Some(Next::Run(0, Rc::new(check.clone()))), "{row}");
        let mut next = checks.tested(0, tested(*result, "m"), ms(*age), "now", &mut status);
        assert_eq!(next.pop(), Some(Next::Later(0, ms(*pause))), "{row}");
        let notes: Vec<String> = next
            .into_iter()
            .map(|next| match next {
                Next::Note(text) => text,
                other => panic!("{row}: {other:?}"),
            })
            .collect();
        assert_eq!(notes.join("|"), *note, "{row}");
        let found = &status.checks[&check.name];
        assert_eq!((found.state, found.failures), (*state, *failures), "{row}");
    }
}

use CheckState::{Failing, Passing, Starting};

#[test]
fn health_as_mesos_has_it() {
    let check = mesos("h", CheckKind::Health);
    let unhealthy = "is unhealthy: h failed 3 times: not connected: m";
    live(
        check.clone(),
        15_000,
        &[
            (15_000, FAIL, 10_000, Starting, 1, ""),
            (25_000, FAIL, 10_000, Starting, 2, ""),
            (35_000, FAIL, 10_000, Failing, 3, unhealthy),
            (45_000, FAIL, 10_000, Failing, 4, ""),
            (55_000, PASS, 10_000, Passing, 0, "is healthy"),
            (65_000, FAIL, 10_000, Passing, 1, ""),
            (75_000, FAIL, 10_000, Passing, 2, ""),
            (85_000, PASS, 10_000, Passing, 0, ""),
            (95_000, FAIL, 10_000, Passing, 1, ""),
        ],
    );
    // grace includes the delay, and ends with the first success
    let check = Check {
        delay: Some(ms(0)),
        interval: ms(3000),
        consecutive_failures: 1,
        ..check
    };
    live(
        check.clone(),
        0,
        &[
            (10, FAIL, 3000, Starting, 0, ""),
            (3000, FAIL, 3000, Starting, 0, ""),
            (9999, FAIL, 3000, Starting, 0, ""),
            (
                10_000,
                FAIL,
                3000,
                Failing,
                1,
                "is unhealthy: h failed: not connected: m",
            ),
        ],
    );
    live(
        check,
        0,
        &[
            (10, FAIL, 3000, Starting, 0, ""),
            (3000, PASS, 3000, Passing, 0, "is healthy"),
            (
                6000,
                FAIL,
                3000,
                Failing,
                1,
                "is unhealthy: h failed: not connected: m",
            ),
        ],
    );
}

#[test]
fn early_ones_come_soon_and_do_not_count() {
    live(
        early("h"),
        100,
        &[
            (100, FAIL, 200, Starting, 0, ""),
            (300, FAIL, 400, Starting, 0, ""),
            (700, FAIL, 800, Starting, 0, ""),
            (1500, FAIL, 1000, Starting, 1, ""),
            (
                2500,
                FAIL,
                1000,
                Failing,
                2,
                "is unhealthy: h failed 2 times: not connected: m",
            ),
        ],
    );
    let patient = Check {
        grace_period: ms(60_000),
        start_interval: Some(ms(300)),
        ..early("h")
    };
    live(
        patient,
        100,
        &[
            (100, FAIL, 200, Starting, 0, ""),
            (300, FAIL, 300, Starting, 0, ""),
            (59_999, FAIL, 300, Starting, 0, ""),
            (60_000, FAIL, 1000, Starting, 1, ""),
            (61_000, PASS, 1000, Passing, 0, "is healthy"),
        ],
    );
}

#[test]
fn thresholds_and_a_slower_pace() {
    let check = Check {
        delay: Some(ms(1000)),
        success_threshold: 2,
        consecutive_failures: 2,
        snooze: Some(ms(60_000)),
        ..mesos("r", CheckKind::Readiness)
    };
    live(
        check,
        1000,
        &[
            (1000, PASS, 10_000, Starting, 0, ""),
            (11_000, FAIL, 10_000, Starting, 1, ""),
            (21_000, PASS, 10_000, Starting, 0, ""),
            (31_000, PASS, 60_000, Passing, 0, "is ready"),
            (91_000, FAIL, 60_000, Passing, 1, ""),
            (
                151_000,
                FAIL,
                10_000,
                Failing,
                2,
                "is not ready: r failed 2 times: not connected: m",
            ),
            (161_000, PASS, 10_000, Failing, 0, ""),
            (171_000, PASS, 60_000, Passing, 0, "is ready"),
        ],
    );
}

#[test]
fn a_check_reports_changes_alone() {
    let check = Check {
        delay: Some(ms(0)),
        ..mesos("c", CheckKind::Check)
    };
    live(
        check,
        0,
        &[
            (10, FAIL, 10_000, Failing, 0, "check c: not connected: m"),
            (10_010, FAIL, 10_000, Failing, 0, ""),
            (20_000, PASS, 10_000, Passing, 0, "check c: connected: m"),
            // a passing trouble of ours is none of the service's, a lasting one is no result
            (30_000, BROKEN, 10_000, Passing, 0, ""),
            (40_000, PASS, 10_000, Passing, 0, ""),
            (50_000, BROKEN, 10_000, Passing, 0, ""),
            (60_000, BROKEN, 10_000, Failing, 0, "check c: no result: m"),
            (70_000, BROKEN, 10_000, Failing, 0, ""),
            (80_000, PASS, 10_000, Passing, 0, "check c: connected: m"),
        ],
    );
}

#[test]
fn what_cannot_be_run_counts_the_second_time() {
    let note = "is unhealthy: h failed 3 times: no result: m";
    live(
        mesos("h", CheckKind::Health),
        15_000,
        &[
            (15_000, BROKEN, 10_000, Starting, 0, ""),
            (25_000, BROKEN, 10_000, Starting, 1, ""),
            (35_000, BROKEN, 10_000, Starting, 2, ""),
            (45_000, BROKEN, 10_000, Failing, 3, note),
        ],
    );
}

#[test]
fn nothing_is_concluded_while_checking_is_paused() {
    let check = early("h");
    for pause in [
        |status: &mut Status| status.goal = Goal::Stop,
        |status: &mut Status| status.goal = Goal::Restart,
        |status: &mut Status| status.snoozed = Some("later".into()),
    ] {
        let mut checks = Checks::new(vec![check.clone()]);
        let mut status = running();
        checks.begin(&mut status);
        checks.tested(0, tested(PASS, "m"), ms(100), "now", &mut status);
        pause(&mut status);
        let before = status.clone();
        assert_eq!(checks.due(0, &status), Some(Next::Later(0, ms(1000))));
        // one that was under way
        let next = checks.tested(0, tested(FAIL, "m"), ms(2000), "now", &mut status);
        assert_eq!(next, [Next::Later(0, ms(1000))]);
        assert_eq!(status, before);
    }
}

#[test]
fn a_result_that_says_nothing_new_changes_nothing() {
    for (kind, results) in [
        (CheckKind::Health, &[PASS][..]),
        (CheckKind::Readiness, &[PASS]),
        (CheckKind::Check, &[PASS, FAIL]),
    ] {
        for result in results {
            let mut checks = Checks::new(vec![mesos("c", kind)]);
            let mut status = running();
            checks.begin(&mut status);
            checks.tested(0, tested(*result, "first"), ms(20_000), "t1", &mut status);
            let before = status.clone();
            checks.tested(0, tested(*result, "second"), ms(30_000), "t2", &mut status);
            assert_eq!(status, before);
            assert_eq!(status.checks["c"].since, "t1");
        }
    }
    // every failure that counts is news, its time is not
    let mut checks = Checks::new(vec![mesos("c", CheckKind::Health)]);
    let mut status = running();
    checks.begin(&mut status);
    for (count, at) in [(1, "t1"), (2, "t2")] {
        checks.tested(0, tested(FAIL, at), ms(20_000), at, &mut status);
        let result = &status.checks["c"];
        assert_eq!(
            (
                result.failures,
                result.since.as_str(),
                result.message.as_str()
            ),
            (count, "t1", at)
        );
    }
}

#[test]
fn a_successor_goes_on() {
    let list = vec![
        mesos("h", CheckKind::Health),
        early("e"),
        mesos("r", CheckKind::Readiness),
    ];
    let mut checks = Checks::new(list.clone());
    let mut status = running();
    checks.begin(&mut status);
    checks.tested(0, tested(FAIL, "m"), ms(15_000), "t1", &mut status);
    checks.tested(0, tested(FAIL, "m"), ms(25_000), "t2", &mut status);
    checks.tested(2, tested(PASS, "m"), ms(15_000), "t1", &mut status);
    let mut known = status.clone();
    let mut checks = Checks::new(list.clone());
    let pauses: Vec<Next> = [10_000, 100, 10_000]
        .into_iter()
        .enumerate()
        .map(|(index, pause)| Next::Later(index, ms(pause)))
        .collect();
    assert_eq!(checks.resume(&mut known, ms(26_000)), pauses);
    assert_eq!(known, status);
    checks.tested(0, tested(FAIL, "m"), ms(36_000), "t3", &mut known);
    assert_eq!((known.health, known.ready), (Health::Unhealthy, true));
    // one that was made by an older program knew of none
    let mut known = running();
    let mut checks = Checks::new(list);
    let first = checks.resume(&mut known, ms(5000));
    assert_eq!(first[0], Next::Later(0, ms(10_000)));
    assert_eq!(known.checks.len(), 3);
}

#[test]
fn all_together() {
    let (h, r) = (CheckKind::Health, CheckKind::Readiness);
    // kinds, results of each; health, ready
    for (kinds, results, health, ready) in [
        (&[][..], &[][..], Health::None, true),
        (&[CheckKind::Check], &[FAIL], Health::None, true),
        (&[h], &[], Health::Starting, false),
        (&[h], &[PASS], Health::Healthy, true),
        (&[h], &[FAIL], Health::Unhealthy, false),
        (&[h, h], &[PASS], Health::Starting, false),
        (&[h, h], &[PASS, PASS], Health::Healthy, true),
        (&[h, h], &[PASS, FAIL], Health::Unhealthy, false),
        (&[h, r], &[PASS], Health::Healthy, false),
        (&[h, r], &[PASS, PASS], Health::Healthy, true),
        (&[r, r], &[PASS, FAIL], Health::None, false),
        (&[r, h], &[PASS, FAIL], Health::Unhealthy, true),
    ] {
        let list = kinds.iter().enumerate().map(|(i, kind)| Check {
            consecutive_failures: 1,
            ..mesos(&i.to_string(), *kind)
        });
        let mut checks = Checks::new(list.collect());
        let mut status = running();
        checks.begin(&mut status);
        for (index, result) in results.iter().enumerate() {
            checks.tested(index, tested(*result, "m"), ms(20_000), "now", &mut status);
        }
        assert_eq!(
            (status.health, status.ready),
            (health, ready),
            "{kinds:?} {results:?}"
        );
        status.phase = Phase::Exited;
        checks.end(&mut status);
        let over = match health {
            Health::None => Health::None,
            _ => Health::Starting,
        };
        assert_eq!((status.health, status.ready), (over, false));
    }
}

#[test]
fn what_frameworks_are_told() {
    let result = |state, failures| CheckResult {
        state,
        failures,
        ..CheckResult::new(CheckKind::Health, Measured::Tcp { succeeded: None })
    };
    for (state, failures, healthy) in [
        (Starting, 0, None),
        (Starting, 1, Some(false)),
        (Failing, 3, Some(false)),
        (Failing, 0, Some(false)),
        (Passing, 0, Some(true)),
        (Passing, 1, Some(false)),
    ] {
        assert_eq!(result(state, failures).healthy(), healthy);
    }
}
