//! Lives of pods as inputs and the actions they lead to.

use super::*;
use crate::compose::project::{CheckTest, Condition, HEALTHCHECK, HealthTest};
use crate::pod::record::Measured;

fn facts(depends_on: &[(&str, Condition)]) -> Facts {
    Facts {
        depends_on: depends_on
            .iter()
            .map(|(name, condition)| {
                let dependency = Dependency {
                    condition: *condition,
                    required: true,
                    restart: false,
                };
                (name.to_string(), dependency)
            })
            .collect(),
        restart: Restart::No,
        checks: Vec::new(),
        stop_signal: 15,
        grace: Duration::from_secs(10),
        post_start: false,
        pre_stop: false,
    }
}

fn with_check(mut facts: Facts) -> Facts {
    facts.checks.push(Check {
        name: HEALTHCHECK.to_string(),
        kind: CheckKind::Health,
        test: CheckTest::Command(HealthTest::Shell("true".into())),
        delay: None,
        interval: Duration::from_secs(1),
        start_interval: None,
        timeout: Duration::from_secs(1),
        grace_period: Duration::ZERO,
        consecutive_failures: 2,
        success_threshold: 1,
        snooze: None,
    });
    facts
}

fn tested(passed: bool, age: u64) -> Input {
    let exit_code = Some(i32::from(!passed));
    Input::Tested {
        check: 0,
        tested: Tested {
            ran: true,
            passed,
            measured: Measured::Command { exit_code },
            message: "no".into(),
        },
        age: Duration::from_millis(age),
        at: String::new(),
        generation: 1,
    }
}

fn machine(units: Vec<(&str, Facts)>) -> Machine {
    let services = units
        .into_iter()
        .map(|(name, facts)| (name.to_string(), (facts, Status::default())))
        .collect();
    Machine::new(services, Policy::Compose)
}

fn run(pid: i32) -> Input {
    Input::Started {
        process: ProcessId { pid, start_time: 1 },
        at: String::new(),
    }
}

fn exit(code: i32) -> Input {
    Input::Exited {
        code: Some(code),
        signal: (code > 128).then(|| code - 128),
        oom: false,
        ran: Duration::ZERO,
        at: String::new(),
    }
}

fn names(actions: &[(String, Action)], wanted: &Action) -> Vec<String> {
    actions
        .iter()
        .filter(|(_, action)| action == wanted)
        .map(|(name, _)| name.clone())
        .collect()
}

fn all() -> Vec<String> {
    ["app", "init", "redis", "web"].map(String::from).to_vec()
}

fn pod() -> Machine {
    machine(vec![
        ("redis", with_check(facts(&[]))),
        ("init", facts(&[("redis", Condition::ServiceHealthy)])),
        (
            "app",
            facts(&[
                ("init", Condition::ServiceCompletedSuccessfully),
                ("redis", Condition::ServiceHealthy),
            ]),
        ),
        ("web", facts(&[("app", Condition::ServiceStarted)])),
    ])
}

/// While hooks have to run first; a stop without any time does not wait for them.
#[test]
fn a_stop_that_is_held() {
    let mut pod = machine(vec![("a", facts(&[])), ("b", facts(&[]))]);
    let both = ["a", "b"].map(String::from);
    pod.start(&both);
    pod.take_actions();
    pod.input("a", run(2));
    pod.input("b", run(3));
    pod.hold(true);
    pod.stop(&both, Some(Duration::from_secs(3)), Cause::Stopped);
    assert_eq!(pod.take_actions(), []);
    pod.stop(&both[..1], Some(Duration::ZERO), Cause::Stopped);
    let at_once = Timer {
        kind: TimerKind::Grace,
        generation: pod.generation("a"),
    };
    assert_eq!(
        pod.take_actions(),
        [Action::Signal(15), Action::Timer(at_once, Duration::ZERO)]
            .map(|action| ("a".to_string(), action))
    );
    pod.hold(false);
    assert_eq!(names(&pod.take_actions(), &Action::Signal(15)), ["b"]);
}

#[test]
fn services_start_when_their_dependencies_are_as_asked() {
    let mut pod = pod();
    pod.start(&all());
    assert_eq!(names(&pod.take_actions(), &Action::Start), ["redis"]);
    pod.input("redis", run(2));
    assert_eq!(names(&pod.take_actions(), &Action::Start), [""; 0]);
    pod.input("redis", tested(false, 100));
    assert_eq!(names(&pod.take_actions(), &Action::Start), [""; 0]);
    pod.input("redis", tested(true, 100));
    assert_eq!(names(&pod.take_actions(), &Action::Start), ["init"]);
    pod.input("init", run(3));
    assert_eq!(names(&pod.take_actions(), &Action::Start), [""; 0]);
    pod.input("init", exit(0));
    assert_eq!(names(&pod.take_actions(), &Action::Start), ["app"]);
    pod.input("app", run(4));
    assert_eq!(names(&pod.take_actions(), &Action::Start), ["web"]);
    assert!(!pod.settled());
    pod.input("web", run(5));
    pod.take_actions();
    assert!(pod.settled());
}

#[test]
fn services_stop_in_reverse_order() {
    let mut pod = pod();
    pod.start(&all());
    pod.take_actions();
    for (name, pid) in [("redis", 2), ("app", 4), ("web", 5)] {
        pod.input(name, run(pid));
    }
    pod.input("init", exit(0));
    pod.take_actions();
    pod.stop(&all(), None, Cause::Stopped);
    assert_eq!(names(&pod.take_actions(), &Action::Signal(15)), ["web"]);
    pod.input("web", exit(0));
    assert_eq!(names(&pod.take_actions(), &Action::Signal(15)), ["app"]);
    pod.input("app", exit(143));
    assert_eq!(names(&pod.take_actions(), &Action::Signal(15)), ["redis"]);
    let generation = pod.generation("redis");
    let kind = TimerKind::Grace;
    pod.input("redis", Input::Timer(Timer { kind, generation }));
    assert_eq!(names(&pod.take_actions(), &Action::Kill), ["redis"]);
    pod.input("redis", exit(137));
    pod.take_actions();
    assert!(pod.settled() && all().iter().all(|name| pod.idle(name)));
}

#[test]
fn what_a_kill_on_request_does_not_end_is_killed() {
    let mut pod = machine(vec![("web", facts(&[]))]);
    let web = ["web".to_string()];
    pod.start(&web);
    pod.take_actions();
    pod.input("web", run(2));
    pod.killed(&web);
    let kind = TimerKind::Grace;
    let generation = pod.generation("web");
    let timer = Timer { kind, generation };
    let wanted = Action::Timer(timer, Duration::from_secs(10));
    assert_eq!(pod.take_actions(), [("web".to_string(), wanted)]);
    pod.input("web", Input::Timer(timer));
    assert_eq!(pod.take_actions(), [("web".to_string(), Action::Kill)]);
}

#[test]
fn a_failed_dependency_fails_its_dependents() {
    let mut pod = pod();
    pod.start(&all());
    pod.take_actions();
    pod.input("redis", run(2));
    for _ in 0..2 {
        pod.input("redis", tested(false, 2000));
    }
    pod.take_actions();
    assert_eq!(pod.status("redis").unwrap().health, Health::Unhealthy);
    let error = |name| pod.status(name).unwrap().error.clone().unwrap();
    assert_eq!(error("init"), "dependency redis is unhealthy");
    assert_eq!(error("app"), "dependency init failed to start");
    assert!(pod.settled());
}

#[test]
fn restart_delays_double_and_end_with_the_policy() {
    let mut web = facts(&[]);
    web.restart = Restart::OnFailure { max: Some(2) };
    let mut pod = machine(vec![("web", web)]);
    pod.start(&["web".to_string()]);
    pod.take_actions();
    for delay in [100, 200] {
        pod.input("web", run(2));
        pod.input("web", exit(1));
        let generation = pod.generation("web");
        let kind = TimerKind::Restart;
        let timer = Timer { kind, generation };
        let wanted = Action::Timer(timer, Duration::from_millis(delay));
        assert_eq!(names(&pod.take_actions(), &wanted), ["web"]);
        pod.input("web", Input::Timer(timer));
        assert_eq!(names(&pod.take_actions(), &Action::Start), ["web"]);
    }
    pod.input("web", run(2));
    pod.input("web", exit(1));
    pod.take_actions();
    assert_eq!(pod.status("web").unwrap().phase, Phase::Exited);
    assert_eq!(pod.status("web").unwrap().restarts, 2);
}

#[test]
fn restart_on_request_stops_and_starts_once() {
    let mut pod = machine(vec![("web", facts(&[]))]);
    let web = ["web".to_string()];
    pod.start(&web);
    pod.take_actions();
    pod.input("web", run(2));
    pod.restart(&web, Some(Duration::ZERO));
    assert_eq!(names(&pod.take_actions(), &Action::Signal(15)), ["web"]);
    pod.input("web", exit(0));
    assert_eq!(names(&pod.take_actions(), &Action::Start), ["web"]);
    pod.input("web", run(3));
    pod.take_actions();
    assert!(pod.settled());
}

#[test]
fn a_supervisor_that_comes_back_decides_what_the_last_one_would_have() {
    let status = |goal, phase| Status {
        goal,
        phase,
        exit_code: Some(1),
        ..Status::default()
    };
    let timer = |kind, milliseconds| {
        let generation = 1;
        let delay = Duration::from_millis(milliseconds);
        Action::Timer(Timer { kind, generation }, delay)
    };
    let cases = [
        (
            Goal::Run,
            Phase::Running,
            vec![timer(TimerKind::Check(0), 100)],
        ),
        (
            Goal::Run,
            Phase::Restarting,
            vec![timer(TimerKind::Restart, 100)],
        ),
        (
            Goal::Stop,
            Phase::Stopping,
            vec![
                timer(TimerKind::Check(0), 100),
                Action::Signal(15),
                timer(TimerKind::Grace, 10_000),
            ],
        ),
        (Goal::Run, Phase::Exited, vec![]),
        (Goal::Stop, Phase::Exited, vec![]),
    ];
    for (goal, phase, wanted) in cases {
        // a stopped dependency stays so
        let services = [
            ("db", facts(&[]), status(Goal::Stop, Phase::Exited)),
            (
                "web",
                with_check(facts(&[("db", Condition::ServiceStarted)])),
                status(goal, phase),
            ),
        ];
        let units = |policy| {
            let map = services.iter().cloned();
            let map = map.map(|(n, f, s)| (n.to_string(), (f, s))).collect();
            let mut pod = Machine::new(map, policy);
            pod.resume(Timestamp::UNIX_EPOCH);
            pod
        };
        let mut pod = units(Policy::Compose);
        let actions: Vec<Action> = pod.take_actions().into_iter().map(|(_, a)| a).collect();
        assert_eq!(actions, wanted, "{goal:?} {phase:?}");
        assert_eq!(pod.status("db"), Some(&services[0].2));
        let mut pod = units(Policy::AbortOnExit);
        pod.take_actions();
        assert!(pod.statuses().all(|(_, s)| s.goal == Goal::Stop));
    }
}

#[test]
fn a_restart_takes_along_who_asked_for_it() {
    let mut app = facts(&[("db", Condition::ServiceStarted)]);
    app.depends_on.get_mut("db").unwrap().restart = true;
    let web = facts(&[("app", Condition::ServiceStarted)]);
    let mut pod = machine(vec![("db", facts(&[])), ("app", app), ("web", web)]);
    pod.start(&["web".to_string()]);
    for (name, pid) in [("db", 2), ("app", 3), ("web", 4)] {
        pod.take_actions();
        pod.input(name, run(pid));
    }
    pod.restart(&["db".to_string()], None);
    assert_eq!(names(&pod.take_actions(), &Action::Signal(15)), ["app"]);
    pod.input("app", exit(0));
    assert_eq!(names(&pod.take_actions(), &Action::Signal(15)), ["db"]);
    pod.input("db", exit(0));
    assert_eq!(names(&pod.take_actions(), &Action::Start), ["db"]);
    pod.input("db", run(5));
    assert_eq!(names(&pod.take_actions(), &Action::Start), ["app"]);
}

#[test]
fn a_timer_of_an_earlier_run_is_ignored() {
    let mut pod = machine(vec![("web", with_check(facts(&[])))]);
    pod.start(&["web".to_string()]);
    pod.take_actions();
    pod.input("web", run(2));
    let generation = pod.generation("web");
    pod.input("web", exit(0));
    pod.take_actions();
    let kind = TimerKind::Check(0);
    pod.input("web", Input::Timer(Timer { kind, generation }));
    assert_eq!(pod.take_actions(), []);
}

#[test]
fn a_service_may_wait_until_another_is_ready() {
    let ready = |mut facts: Facts| {
        facts = with_check(facts);
        facts.checks[0].kind = CheckKind::Readiness;
        facts
    };
    // kind of check, result; what becomes of who waits
    for (facts, passed, started, error) in [
        (ready(facts(&[])), true, true, None),
        (
            ready(facts(&[])),
            false,
            false,
            Some("dependency db is not ready"),
        ),
        (with_check(facts(&[])), true, true, None),
        (
            with_check(facts(&[])),
            false,
            false,
            Some("dependency db is unhealthy"),
        ),
    ] {
        let web = self::facts(&[("db", Condition::ServiceReady)]);
        let mut pod = machine(vec![("db", facts), ("web", web)]);
        pod.start(&["web".to_string()]);
        pod.take_actions();
        pod.input("db", run(2));
        assert!(pod.undecided());
        assert_eq!(names(&pod.take_actions(), &Action::Start), [""; 0]);
        for _ in 0..2 {
            pod.input("db", tested(passed, 2000));
        }
        let actions = pod.take_actions();
        assert_eq!(!names(&actions, &Action::Start).is_empty(), started);
        assert_eq!(pod.status("web").unwrap().error.as_deref(), error);
        assert!(!pod.undecided());
    }
    // one without checks is ready when it runs
    let web = facts(&[("db", Condition::ServiceReady)]);
    let mut pod = machine(vec![("db", facts(&[])), ("web", web)]);
    pod.start(&["web".to_string()]);
    pod.take_actions();
    pod.input("db", run(2));
    assert_eq!(names(&pod.take_actions(), &Action::Start), ["web"]);
}

#[test]
fn checking_is_paused_on_request() {
    let mut pod = machine(vec![("web", with_check(facts(&[])))]);
    let web = ["web".to_string()];
    pod.snooze(&web, Duration::from_secs(5), "then");
    assert_eq!(pod.take_actions(), []);
    pod.start(&web);
    pod.take_actions();
    pod.input("web", run(2));
    pod.take_actions();
    let due = |pod: &mut Machine| {
        let (kind, generation) = (TimerKind::Check(0), 1);
        pod.input("web", Input::Timer(Timer { kind, generation }));
        pod.take_actions()
            .into_iter()
            .any(|(_, a)| matches!(a, Action::Check(..)))
    };
    let wake = |pod: &mut Machine, which| {
        let (kind, generation) = (TimerKind::Snooze(which), 1);
        pod.input("web", Input::Timer(Timer { kind, generation }));
    };
    assert!(due(&mut pod));
    pod.snooze(&web, Duration::from_secs(5), "then");
    pod.snooze(&web, Duration::from_secs(9), "later");
    assert_eq!(pod.status("web").unwrap().snoozed.as_deref(), Some("later"));
    // the first pause is over, the second is not
    wake(&mut pod, 1);
    assert!(!due(&mut pod));
    wake(&mut pod, 2);
    assert!(due(&mut pod));
    pod.snooze(&web, Duration::from_secs(9), "later");
    pod.snooze(&web, Duration::ZERO, "");
    assert!(due(&mut pod));
    // a successor knows how long it is still to be
    pod.snooze(&web, Duration::from_secs(9), "1970-01-01T00:00:07Z");
    let status = pod.status("web").unwrap().clone();
    for (now, left) in [(5, Some(2)), (7, None), (8, None)] {
        let units = BTreeMap::from([("web".to_string(), (with_check(facts(&[])), status.clone()))]);
        let mut pod = Machine::new(units, Policy::Compose);
        pod.resume(Timestamp::from_second(now).unwrap());
        let timers = pod.take_actions();
        let timer = |kind, seconds| {
            let generation = 1;
            Action::Timer(Timer { kind, generation }, Duration::from_secs(seconds))
        };
        let wanted = left.map(|left| timer(TimerKind::Snooze(0), left));
        assert_eq!(timers.get(1).map(|(_, a)| a.clone()), wanted);
        assert_eq!(pod.status("web").unwrap().snoozed.is_some(), left.is_some());
    }
    pod.input("web", exit(1));
    assert_eq!(pod.status("web").unwrap().snoozed, None);
}

/// A pod of two services that run, `b` after `a`.
fn two(policy: Policy, restart: Restart) -> Machine {
    let mut a = with_check(facts(&[]));
    a.restart = restart;
    let services = [("a", a), ("b", facts(&[("a", Condition::ServiceStarted)]))];
    let services = services.map(|(n, f)| (n.to_string(), (f, Status::default())));
    let mut pod = Machine::new(services.into(), policy);
    pod.start(&["b".to_string()]);
    for (name, pid) in [("a", 2), ("b", 3)] {
        pod.take_actions();
        pod.input(name, run(pid));
    }
    pod.take_actions();
    assert_eq!(pod.verdict(), None);
    pod
}

fn ended(code: i32, oom: bool, at: &str) -> Input {
    Input::Exited {
        code: Some(code),
        signal: (code > 128).then(|| code - 128),
        oom,
        ran: Duration::ZERO,
        at: format!("2026-01-02T03:04:{at}Z"),
    }
}

#[test]
fn one_that_fails_ends_the_pod_and_is_why() {
    let unhealthy = || tested(false, 2000);
    let cases = [
        (
            vec![("b", ended(3, false, "05"))],
            ("b", Cause::Exited, Some(3), None),
            "service b exited with code 3",
        ),
        (
            vec![("b", ended(139, false, "05"))],
            ("b", Cause::Exited, Some(139), Some(11)),
            "service b was ended by signal 11",
        ),
        (
            vec![("b", ended(137, true, "05"))],
            ("b", Cause::OutOfMemory, Some(137), Some(9)),
            "service b ran out of memory and was ended by signal 9",
        ),
        (
            vec![("a", unhealthy()), ("a", unhealthy())],
            ("a", Cause::Unhealthy, Some(143), Some(15)),
            "service a was unhealthy: healthcheck failed 2 times: exit code 1: no",
        ),
        // the first of two
        (
            vec![("b", ended(4, false, "05.5")), ("a", ended(3, false, "05"))],
            ("a", Cause::Exited, Some(3), None),
            "service a exited with code 3",
        ),
    ];
    for (inputs, expected, message) in cases {
        let mut pod = two(Policy::FailPod, Restart::No);
        for (name, input) in inputs {
            pod.input(name, input);
        }
        // two rounds, for `a` is asked when `b` has ended
        for _ in 0..2 {
            let asked = names(&pod.take_actions(), &Action::Signal(15));
            for name in asked {
                assert_eq!(pod.verdict(), None, "{message}");
                pod.input(&name, ended(143, false, "09"));
            }
        }
        let more = pod.take_actions();
        assert!(more.iter().all(|(_, a)| matches!(a, Action::Note(_))));
        let verdict = pod.verdict().unwrap();
        let service = verdict.service.as_deref().unwrap();
        let found = (service, verdict.cause, verdict.exit_code, verdict.signal);
        assert_eq!(found, expected);
        assert_eq!(verdict.message, message);
        assert!(!verdict.is_success());
        let others = pod.statuses().filter(|(name, _)| *name != service);
        for (name, status) in others {
            let own = [Some(Cause::Pod), Some(Cause::Exited)];
            assert!(own.contains(&status.cause), "{name}: {message}");
        }
        // a successor comes to the same
        let again = pod.statuses().map(|(name, status)| {
            let facts = facts(&[]);
            (name.to_string(), (facts, status.clone()))
        });
        let mut again = Machine::new(again.collect(), Policy::FailPod);
        again.resume(Timestamp::UNIX_EPOCH);
        assert_eq!(again.take_actions(), []);
        assert_eq!(again.verdict(), Some(verdict));
    }
}

#[test]
fn one_that_could_not_be_started_ends_the_pod_and_its_restart_does_not() {
    let mut pod = two(Policy::FailPod, Restart::OnFailure { max: Some(1) });
    pod.input("a", exit(1));
    pod.take_actions();
    assert_eq!(pod.status("b").unwrap().goal, Goal::Run);
    let generation = pod.generation("a");
    let kind = TimerKind::Restart;
    pod.input("a", Input::Timer(Timer { kind, generation }));
    assert_eq!(names(&pod.take_actions(), &Action::Start), ["a"]);
    let message = "no such file".to_string();
    pod.input("a", Input::StartFailed(Failure { code: 127, message }));
    assert_eq!(names(&pod.take_actions(), &Action::Signal(15)), ["b"]);
    pod.input("b", ended(0, false, "05"));
    pod.take_actions();
    let verdict = pod.verdict().unwrap();
    assert_eq!(verdict.cause, Cause::NotStarted);
    assert_eq!(
        verdict.message,
        "service a could not be started: no such file"
    );
}

#[test]
fn how_pods_end_without_a_failure_that_counts() {
    let stop = |pod: &mut Machine| pod.stop(&["a".into(), "b".into()], None, Cause::Stopped);
    let done = |pod: &mut Machine, at: [&str; 2], codes: [i32; 2]| {
        pod.take_actions();
        pod.input("b", ended(codes[1], false, at[1]));
        pod.take_actions();
        pod.input("a", ended(codes[0], false, at[0]));
        pod.take_actions();
    };
    // the one that was the last to be done
    let mut pod = two(Policy::FailPod, Restart::No);
    done(&mut pod, ["07", "06"], [0, 0]);
    let verdict = pod.verdict().unwrap();
    assert!(verdict.is_success());
    assert_eq!(verdict.service.as_deref(), Some("a"));
    assert_eq!(verdict.finished, "2026-01-02T03:04:07Z");
    // started again it is taken back
    pod.start(&["a".to_string()]);
    pod.take_actions();
    assert_eq!(pod.verdict(), None);
    // what was asked for, however it ends
    for (policy, codes) in [(Policy::FailPod, [1, 143]), (Policy::Compose, [0, 0])] {
        let mut pod = two(policy, Restart::No);
        stop(&mut pod);
        done(&mut pod, ["07", "06"], codes);
        assert_eq!(pod.verdict().unwrap().cause, Cause::Stopped);
    }
    // each for itself: an old failure is not why it was stopped, unless nothing else is
    for (asked, cause) in [(true, Cause::Stopped), (false, Cause::Exited)] {
        let mut pod = two(Policy::Compose, Restart::No);
        pod.input("b", ended(3, false, "05"));
        pod.take_actions();
        if asked {
            stop(&mut pod);
        }
        done(&mut pod, ["07", "05"], [0, 3]);
        let verdict = pod.verdict().unwrap();
        assert_eq!((verdict.cause, verdict.is_success()), (cause, false));
    }
}
