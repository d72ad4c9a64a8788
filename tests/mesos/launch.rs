//! LAUNCH and LAUNCH_GROUP: one, several, again, and what cannot start.

use serde_json::{Value, json};

use crate::pod_support::until;
use crate::support::*;

#[test]
fn several_launches_in_one_executor() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos
        .agent
        .launch_group(vec![member("g1", "sleep 1000"), member("g2", "sleep 1000")]);
    mesos.start();
    mesos.wait("a", "RUNNING");
    mesos.agent.launch(script("b", "exit 3"));
    mesos
        .agent
        .launch_group(vec![member("h1", "true"), member("h2", "sleep 0.3; true")]);
    mesos.wait("b", "FAILED");
    mesos.wait("h2", "FINISHED");
    mesos.wait("g2", "RUNNING");
    mesos.agent.kill("a", None);
    mesos.agent.kill("g1", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
    assert_eq!(mesos.states("b"), "STARTING RUNNING FAILED");
    for task in ["h1", "h2"] {
        assert_eq!(mesos.states(task), "STARTING RUNNING FINISHED");
    }
    // one of a group that is killed takes the others with it
    for task in ["g1", "g2"] {
        assert_eq!(mesos.states(task), "STARTING RUNNING KILLED");
    }
    let message = mesos.last("b")["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("exit code 3") || message.contains("code 3"),
        "{message}"
    );
}

#[test]
fn the_same_task_again_is_no_second_task() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    let again = mesos.agent.task_info("a");
    mesos
        .agent
        .event(json!({"type": "LAUNCH", "launch": {"task": again}}));
    mesos.agent.launch(script("b", "true"));
    mesos.wait("b", "FINISHED");
    mesos
        .agent
        .event(json!({"type": "LAUNCH", "launch": {"task": mesos.agent.task_info("b")}}));
    mesos.agent.kill("a", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
    assert_eq!(mesos.states("b"), "STARTING RUNNING FINISHED");
}

#[test]
fn a_group_starts_whole_or_not_at_all() {
    let mesos = Mesos::new();
    let missing = json!({"container": {"type": "MESOS", "mesos": {"image": {"type": "DOCKER",
        "docker": {"name": "127.0.0.1:1/nothing:1"}}}}});
    mesos.agent.launch_group(vec![
        member("good", "sleep 1000"),
        with(member("bad", "true"), missing),
    ]);
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("bad"), "STARTING FAILED");
    assert_eq!(mesos.states("good"), "STARTING KILLED");
    let bad = mesos.last("bad");
    assert_eq!(bad["reason"], "REASON_CONTAINER_LAUNCH_FAILED");
    let message = bad["message"].as_str().unwrap();
    let why = "the task: services.bad.image: registry 127.0.0.1:1 can't be reached: ";
    assert!(message.starts_with(why), "{bad}");
}

/// The task whose file is not there is the one that failed, and its address has no password in what everybody reads.
#[test]
fn a_file_that_cannot_be_fetched_fails_its_task() {
    let mesos = Mesos::new();
    let mut bad = member("bad", "true");
    bad["command"]["uris"] = json!([{"value": "http://me:pass@127.0.0.1:1/f?signature=c0ffee"}]);
    mesos
        .agent
        .launch_group(vec![member("good", "sleep 1000"), bad]);
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("bad"), "STARTING FAILED");
    assert_eq!(mesos.states("good"), "STARTING KILLED");
    let bad = mesos.last("bad");
    assert_eq!(bad["reason"], "REASON_CONTAINER_LAUNCH_FAILED");
    let message = bad["message"].as_str().unwrap();
    let why = "task bad: command.uris: http://127.0.0.1:1/f: ";
    assert!(message.starts_with(why), "{message}");
    for secret in ["pass", "c0ffee"] {
        assert!(!message.contains(secret), "{message}");
    }
}

#[test]
fn one_failure_ends_the_group() {
    let mesos = Mesos::new();
    mesos.agent.launch_group(vec![
        member("done", "true"),
        member("stays", "sleep 1000"),
        member("fails", "sleep 0.5; exit 7"),
    ]);
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("done"), "STARTING RUNNING FINISHED");
    assert_eq!(mesos.states("stays"), "STARTING RUNNING KILLED");
    assert_eq!(mesos.states("fails"), "STARTING RUNNING FAILED");
}

#[test]
fn a_task_that_is_wrong_is_told() {
    let mesos = Mesos::new();
    mesos
        .agent
        .launch(compose("wrong", "services: {web: {imgae: x}}"));
    mesos.agent.launch(script("good", "true"));
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("wrong"), "STARTING ERROR");
    let wrong = mesos.last("wrong");
    assert_eq!(wrong["reason"], "REASON_TASK_INVALID");
    assert!(
        wrong["message"].as_str().unwrap().contains("imgae"),
        "{wrong}"
    );
    assert_eq!(mesos.states("good"), "STARTING RUNNING FINISHED");
}

#[test]
fn a_compose_file_is_one_task() {
    let mesos = Mesos::new();
    let text = "services:\n  one: {image: localhost/busybox, command: [sleep, '1000'], init: true}\n  \
                two: {image: localhost/busybox, command: [sh, -c, 'exit 0']}\n";
    mesos.agent.launch(compose("pod", text));
    mesos.start();
    mesos.wait("pod", "RUNNING");
    mesos.agent.kill("pod", None);
    mesos.ends(0);
    assert_eq!(mesos.states("pod"), "STARTING RUNNING KILLED");
}

/// Reserved and not reserved, ports in two ranges, limits without a bound; in both encodings.
#[test]
fn resources_are_added_up() {
    for json in [false, true] {
        let mut mesos = Mesos::new();
        if json {
            mesos = mesos.option("--json");
        }
        let scalar = |name: &str, role: &str, value: f64| json!({"name": name, "type": "SCALAR", "scalar": {"value": value}, "allocation_info": {"role": role}});
        let range = |begin: u32, end: u32| json!({"begin": begin, "end": end});
        let resources = json!([
            scalar("cpus", "*", 0.1), scalar("cpus", "shop", 0.2), scalar("mem", "*", 32.0), scalar("mem", "shop", 16.0),
            {"name": "ports", "type": "RANGES", "ranges": {"range": [range(31005, 31005)]}},
            {"name": "ports", "type": "RANGES", "ranges": {"range": [range(31001, 31002)]}},
        ]);
        let more = json!({"resources": resources, "limits": {"cpus": {"value": "Infinity"}, "mem": {"value": "Infinity"}}});
        let say = "echo ports $PORT0 $PORT1 $PORT2; sleep 1000";
        mesos.agent.launch(with(script("a", say), more));
        mesos.start();
        mesos.wait("a", "RUNNING");
        mesos.agent.kill("a", None);
        mesos.ends(0);
        assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
    }
}

#[test]
fn too_long_is_a_failure() {
    let mesos = Mesos::new();
    let most = json!({"max_completion_time": seconds(0.5)});
    mesos.agent.launch(with(script("a", "sleep 1000"), most));
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING FAILED");
    assert_eq!(
        mesos.last("a")["reason"],
        "REASON_MAX_COMPLETION_TIME_REACHED"
    );
}

/// What is past its memory limit says so.
#[test]
fn too_much_memory_is_told() {
    let mesos = Mesos::new();
    let eat = "x=x; while :; do x=$x$x; done";
    mesos.agent.launch(script("a", eat));
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING FAILED");
    let last = mesos.last("a");
    assert_eq!(
        last["reason"], "REASON_CONTAINER_LIMITATION_MEMORY",
        "{last}"
    );
    assert_eq!(
        last["limitation"]["resources"][0]["name"],
        Value::from("mem")
    );
}

/// A scheduler that gives its executor one task after another, each when it hears of the end of the one before.
#[test]
fn an_executor_waits_for_the_next_task() {
    let mesos = Mesos::new().option("--linger").option("forever");
    mesos.start();
    for name in ["a", "b", "c"] {
        mesos.agent.launch(script(name, "true"));
        mesos.wait(name, "FINISHED");
    }
    mesos.agent.shutdown();
    mesos.ends(0);
    for name in ["a", "b", "c"] {
        assert_eq!(mesos.states(name), "STARTING RUNNING FINISHED");
    }
    assert_eq!(mesos.agent.subscriptions(), 1);
}

/// What comes after SHUTDOWN is refused, and told.
#[test]
fn a_launch_after_shutdown_is_dropped() {
    for (capability, state) in [("MULTI_ROLE", "LOST"), ("PARTITION_AWARE", "DROPPED")] {
        let mesos = Mesos::with(Settings {
            capabilities: vec![capability.to_owned()],
            ..Settings::default()
        });
        mesos.agent.launch(script(
            "a",
            "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.1; done",
        ));
        mesos.start();
        mesos.wait("a", "RUNNING");
        mesos.agent.event(json!({"type": "SHUTDOWN"}));
        mesos.agent.launch(script("late", "true"));
        mesos.ends(0);
        assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
        assert_eq!(mesos.states("late"), state);
        assert_eq!(mesos.last("late")["source"], "SOURCE_EXECUTOR");
    }
}

/// What a framework asks by message is done, and answered.
#[test]
fn messages_are_answered() {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let mesos = Mesos::new();
    let work = "trap 'exit 0' USR1; echo >> $MESOS_SANDBOX/lives; while :; do sleep 0.1; done";
    mesos.agent.launch(script("a", work));
    mesos.start();
    mesos.wait("a", "RUNNING");
    let lives = mesos.agent.sandbox().join("lives");
    let lived = |times: usize| {
        until("its work", || {
            let text = std::fs::read_to_string(&lives).unwrap_or_default();
            (text.lines().count() == times).then_some(())
        })
    };
    lived(1);
    let ask = |question: Value| {
        mesos.agent.message(&STANDARD.encode(question.to_string()));
        let answer = STANDARD.decode(mesos.agent.wait_message()).unwrap();
        serde_json::from_slice::<Value>(&answer).unwrap()
    };
    assert_eq!(
        ask(json!({"sampan": "restart", "task": "a", "id": 1})),
        json!({"sampan": "done", "id": 1})
    );
    lived(2);
    assert_eq!(
        ask(json!({"sampan": "stop", "task": "a", "id": 2})),
        json!({"sampan": "failed", "id": 2, "message": "sampan: \"stop\" is not signal, restart or snooze"})
    );
    assert_eq!(
        ask(json!({"sampan": "snooze", "task": "b", "seconds": 1})),
        json!({"sampan": "failed", "id": null, "message": "task b does not run here"})
    );
    assert_eq!(
        ask(json!({"sampan": "signal", "task": "a", "service": "a", "signal": "USR1", "id": [3]})),
        json!({"sampan": "done", "id": [3]})
    );
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING FINISHED");
}
