//! Agents that are not ready, streams that break, events that are none.

use std::time::Duration;

use serde_json::json;

use crate::support::*;

#[test]
fn an_agent_that_starts_is_waited_for() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "true"));
    mesos.agent.phase(Phase::NoRoutes);
    mesos.start();
    std::thread::sleep(Duration::from_millis(500));
    mesos.agent.phase(Phase::Recovering);
    std::thread::sleep(Duration::from_millis(500));
    mesos.agent.answer(Calls::Subscribe, Answer::Status(500));
    mesos.agent.answer(Calls::Subscribe, Answer::Close);
    mesos.agent.phase(Phase::Running);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING FINISHED");
}

#[test]
fn an_agent_that_refuses_connections_is_waited_for() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "true"));
    mesos.agent.stop();
    mesos.start();
    std::thread::sleep(Duration::from_secs(1));
    mesos.agent.start(Phase::Running);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING FINISHED");
}

#[test]
fn a_redirect_is_followed() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "true"));
    let to = format!("{}/slave(1)/api/v1/executor", mesos.agent.url());
    mesos.agent.answer(Calls::Subscribe, Answer::Redirect(to));
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING FINISHED");
}

/// However the stream breaks, the executor comes back with everything, and its task runs on.
#[test]
fn a_stream_that_breaks_is_opened_again() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    let breaks: [&dyn Fn(&Agent); 6] = [
        &Agent::break_stream,
        &Agent::end_stream,
        &Agent::half_close,
        &Agent::break_calls,
        &|agent| agent.garbage(b"garbage\n"),
        &|agent| agent.garbage(b"99999999999999999999\n{}"),
    ];
    for (number, cause) in breaks.iter().enumerate() {
        cause(&mesos.agent);
        mesos.agent.wait_subscriptions(number as u64 + 2);
    }
    mesos.agent.kill("a", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
}

#[test]
fn events_that_are_not_known_are_passed_over() {
    for json in [false, true] {
        let mut mesos = Mesos::new();
        if json {
            mesos = mesos.option("--json");
        }
        mesos.agent.launch(script("a", "sleep 1000"));
        mesos.start();
        mesos.wait("a", "RUNNING");
        mesos.agent.unknown_event();
        mesos.agent.event(json!({"type": "UNKNOWN"}));
        mesos.agent.event(json!({"type": "HEARTBEAT"}));
        mesos.agent.message("AAEC");
        mesos.agent.acknowledge("a", "AUBAQEBAQEBAQEBAQEBAQA==");
        mesos
            .agent
            .acknowledge("nobody", "AUBAQEBAQEBAQEBAQEBAQA==");
        mesos.agent.kill("nobody", None);
        mesos.agent.kill("a", None);
        mesos.ends(0);
        assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
        assert_eq!(mesos.agent.subscriptions(), 1);
    }
}

#[test]
fn shutdown_may_be_the_first_event() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "true"));
    mesos.agent.kill("a", None);
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "KILLED");
    assert_eq!(mesos.last("a")["source"], "SOURCE_AGENT");
}

#[test]
fn an_agent_that_cleans_up_ends_it() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    mesos.agent.stop();
    mesos.agent.start(Phase::Cleanup);
    mesos.ends(0);
    // such an agent takes no updates
    assert_eq!(mesos.states("a"), "STARTING RUNNING FAILED");
    assert_eq!(mesos.last("a")["reason"], "REASON_EXECUTOR_TERMINATED");
}

#[test]
fn error_ends_it() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    mesos
        .agent
        .event(json!({"type": "ERROR", "error": {"message": "given up"}}));
    mesos.ends(1);
}

/// Somebody else's executor, or one that the agent has forgotten.
#[test]
fn an_unknown_executor_ends_with_its_tasks() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    mesos.agent.forget_executor();
    mesos.agent.break_stream();
    mesos.ends(1);
    assert_eq!(
        mesos.agent.refusals().pop().unwrap(),
        (400, "Executor cannot be found".into())
    );
}
