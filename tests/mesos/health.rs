//! Checks and health checks: what is told, and when nothing is.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::*;

fn health(command: &str, more: Value) -> Value {
    let mut check = json!({"type": "COMMAND", "command": {"value": command}, "delay_seconds": 0.0,
        "interval_seconds": 0.2, "timeout_seconds": 5.0, "grace_period_seconds": 0.0, "consecutive_failures": 2});
    for (key, value) in more.as_object().into_iter().flatten() {
        check[key] = value.clone();
    }
    json!({ "health_check": check })
}

/// `healthy` of each RUNNING.
fn healthy(mesos: &Mesos, task: &str) -> Vec<Option<bool>> {
    let running = mesos.agent.statuses(task).into_iter();
    let running = running.filter(|status| status["state"] == "TASK_RUNNING");
    running.map(|status| status["healthy"].as_bool()).collect()
}

fn is_healthy(healthy: bool) -> impl FnMut(&Value) -> bool {
    move |status| status["healthy"] == healthy
}

#[test]
fn only_changes_are_told() {
    let mesos = Mesos::new();
    let check = health("test ! -e /tmp/ill", json!({"consecutive_failures": 100}));
    // well from the first look on, however soon that is
    let work = "mkdir -p /tmp; sleep 1; touch /tmp/ill; sleep 1; rm /tmp/ill; sleep 1000";
    mesos
        .agent
        .launch_group(vec![with(member("a", work), check)]);
    mesos.start();
    mesos.agent.wait_status("healthy", "a", is_healthy(true));
    mesos.agent.wait_status("unhealthy", "a", is_healthy(false));
    while healthy(&mesos, "a").last() != Some(&Some(true)) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(1));
    mesos.agent.kill("a", None);
    mesos.ends(0);
    let told = healthy(&mesos, "a");
    assert_eq!(told.first(), Some(&None));
    // each failure outside the grace is told; successes only when they are the first
    let changes: Vec<_> = told[1..]
        .chunk_by(|a, b| a == b)
        .map(|same| same[0])
        .collect();
    assert_eq!(changes, [Some(true), Some(false), Some(true)]);
    let reason = |status: &Value| status["reason"] == "REASON_TASK_HEALTH_CHECK_STATUS_UPDATED";
    let statuses = mesos.agent.statuses("a");
    assert!(
        statuses
            .iter()
            .filter(|status| !status["healthy"].is_null() && status["state"] == "TASK_RUNNING")
            .all(reason)
    );
}

#[test]
fn too_many_failures_kill() {
    let mesos = Mesos::new();
    mesos.agent.launch_group(vec![with(
        member("a", "sleep 1000"),
        health("false", json!({})),
    )]);
    mesos.start();
    mesos.ends(0);
    let states = mesos.states("a");
    assert!(
        states.starts_with("STARTING RUNNING") && states.ends_with("KILLED"),
        "{states}"
    );
    assert_eq!(mesos.last("a")["healthy"], false);
}

/// Both end with 0 when they are asked to: the one is ill, the other of its group.
#[test]
fn what_ends_well_when_it_is_killed_has_not_finished() {
    let capabilities = vec!["TASK_KILLING_STATE".into()];
    let mesos = Mesos::with(Settings {
        capabilities,
        ..Settings::default()
    });
    let polite = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let ill = with(member("ill", polite), health("false", json!({})));
    mesos.agent.launch_group(vec![ill, member("well", polite)]);
    mesos.start();
    mesos.ends(0);
    let states = mesos.states("ill");
    assert!(states.ends_with("RUNNING KILLING KILLED"), "{states}");
    assert_eq!(mesos.states("well"), "STARTING RUNNING KILLING KILLED");
    let (ill, well) = (mesos.last("ill"), mesos.last("well"));
    assert_eq!(ill["healthy"], false);
    let why = ill["message"].as_str().unwrap();
    assert!(why.starts_with("service ill is unhealthy: "), "{why}");
    let of_group = format!("task ill of the group ended: {why}");
    assert_eq!(well["message"], of_group);
}

#[test]
fn failures_within_the_grace_do_not_count() {
    let mesos = Mesos::new();
    let check = health(
        "test -e /tmp/well",
        json!({"grace_period_seconds": 60.0, "consecutive_failures": 1}),
    );
    let work = "mkdir -p /tmp; sleep 1; touch /tmp/well; sleep 1000";
    mesos
        .agent
        .launch_group(vec![with(member("a", work), check)]);
    mesos.start();
    mesos.agent.wait_status("healthy", "a", is_healthy(true));
    mesos.agent.kill("a", None);
    mesos.ends(0);
    assert_eq!(healthy(&mesos, "a"), [None, Some(true)]);
    assert_eq!(mesos.states("a"), "STARTING RUNNING RUNNING KILLED");
}

/// The result stands in every status of the task, and a status is sent when it changes.
#[test]
fn results_of_a_check() {
    let mesos = Mesos::new();
    let check = json!({"check": {"type": "COMMAND", "command": {"command": {"value": "test -e /tmp/there"}},
        "delay_seconds": 0.0, "interval_seconds": 0.2, "timeout_seconds": 5.0}});
    let work = "mkdir -p /tmp; sleep 1; touch /tmp/there; sleep 1000";
    mesos
        .agent
        .launch_group(vec![with(member("a", work), check)]);
    mesos.start();
    let code =
        |code: i64| move |status: &Value| status["check_status"]["command"]["exit_code"] == code;
    mesos.agent.wait_status("exit code 1", "a", code(1));
    mesos.agent.wait_status("exit code 0", "a", code(0));
    std::thread::sleep(Duration::from_secs(1));
    mesos.agent.kill("a", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING RUNNING RUNNING KILLED");
    let codes = mesos.agent.statuses("a").into_iter().map(|status| {
        assert_eq!(status["check_status"]["type"], "COMMAND", "{status}");
        status["check_status"]["command"]["exit_code"].as_i64()
    });
    assert_eq!(
        codes.collect::<Vec<_>>(),
        [None, None, Some(1), Some(0), Some(0)]
    );
}
