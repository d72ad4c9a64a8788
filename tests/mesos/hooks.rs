//! Hooks that labels of a task bring.

use serde_json::json;

use crate::support::*;

/// A program of the sandbox, which has to be there before the executor starts.
fn program(mesos: &Mesos, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = mesos.agent.sandbox().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn hooked(id: &str, line: &str, hooks: &[(&str, &str)]) -> serde_json::Value {
    let own = [
        ("sampan.image", "localhost/busybox"),
        ("sampan.command", line),
    ];
    labelled(id, &[&own[..], hooks].concat())
}

/// A hook changes the environment before anything is made, others are told of the life; each knows whose the pod is.
#[test]
fn hooks_change_and_follow_a_task() {
    let mesos = Mesos::new();
    program(
        &mesos,
        "region",
        "cat > /dev/null; echo 'services: {web: {environment: {REGION: north $1}}}'",
    );
    let trace = mesos.agent.sandbox().join("trace");
    let list = format!(
        "- {{name: trace, at: [after-start, before-kill, after-stop], command: [sh, -c, 'echo $SAMPAN_HOOK >> {}']}}",
        trace.display()
    );
    let mut task = hooked(
        "a",
        "test \"$REGION\" = 'north $1' || exit 9; sleep 1000",
        &[
            ("sampan.hooks", &list),
            ("sampan.hooks.before-launch", "./region"),
        ],
    );
    task["name"] = json!("web");
    mesos.agent.launch(task);
    mesos.start();
    mesos.wait("a", "RUNNING");
    mesos.agent.kill("a", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
    assert_eq!(
        std::fs::read_to_string(trace).unwrap(),
        "after-start\nbefore-kill\nafter-stop\n"
    );
}

/// What a hook removes is no part of the task any more, and what it adds is one: a kill finds both so.
#[test]
fn hooks_change_the_services_of_a_task() {
    let mesos = Mesos::new();
    program(
        &mesos,
        "change",
        "cat > /dev/null; echo 'services: {db: !reset null, more: {image: localhost/busybox, command: [sleep, \"1000\"]}}'",
    );
    let text = "services:\n  web: {image: localhost/busybox, command: [sleep, '1000']}\n  db: {image: localhost/busybox, command: [sleep, '1000']}\n";
    mesos.agent.launch(labelled(
        "a",
        &[
            ("sampan.compose", text),
            ("sampan.hooks.before-launch", "./change"),
        ],
    ));
    mesos.start();
    mesos.wait("a", "RUNNING");
    let row = mesos.host.sampan(&["ps", "a", "--format", "json"]).ok();
    assert!(row.contains("more") && !row.contains("\"db\""), "{row}");
    mesos.agent.kill("a", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
}

#[test]
fn hooks_leave_the_tasks_of_a_group_alone() {
    for (change, task, why) in [
        (
            "b: !reset null",
            "b",
            "a hook at before-launch removed service b, which is this task; a task of a group has to stay",
        ),
        (
            "c: {image: localhost/busybox, network_mode: host}",
            "a",
            "a hook at before-launch added service c, which belongs to no task of the group; launch it as a task",
        ),
    ] {
        let mesos = Mesos::new();
        let text = format!("cat > /dev/null; echo 'services: {{{change}}}'");
        program(&mesos, "tasks/a/change", &text);
        let hook = json!({"labels": {"labels": [{"key": "sampan.hooks.before-launch", "value": "./change"}]}});
        let group = vec![with(member("a", "sleep 1000"), hook), member("b", "true")];
        mesos.agent.launch_group(group);
        mesos.start();
        mesos.ends(0);
        assert_eq!(mesos.states(task), "STARTING FAILED");
        let last = mesos.last(task);
        assert_eq!(last["reason"], "REASON_CONTAINER_LAUNCH_FAILED", "{last}");
        assert_eq!(last["message"], why);
    }
}

#[test]
fn a_hook_that_fails_before_the_launch() {
    let mesos = Mesos::new();
    program(&mesos, "no", "echo the licence server says no >&2; exit 3");
    mesos.agent.launch(hooked(
        "a",
        "sleep 1000",
        &[("sampan.hooks.before-launch", "./no")],
    ));
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING FAILED");
    let last = mesos.last("a");
    assert_eq!(last["reason"], "REASON_CONTAINER_LAUNCH_FAILED", "{last}");
    let message = last["message"].as_str().unwrap();
    assert!(message.contains("the licence server says no"), "{message}");
}

/// By its policy a hook fails the task, or is noted.
#[test]
fn a_hook_that_fails_after_the_start() {
    let list = |policy: &str| {
        format!(
            "- {{name: check, at: after-start, command: [sh, -c, 'exit 4'], on_failure: {policy}}}"
        )
    };
    let mesos = Mesos::new();
    let (fail, note) = (list("fail"), list("note"));
    mesos
        .agent
        .launch(hooked("noted", "sleep 1000", &[("sampan.hooks", &note)]));
    mesos
        .agent
        .launch(hooked("failed", "sleep 1000", &[("sampan.hooks", &fail)]));
    mesos.start();
    mesos.wait("failed", "FAILED");
    mesos.wait("noted", "RUNNING");
    mesos.agent.kill("noted", None);
    mesos.ends(0);
    assert_eq!(mesos.states("noted"), "STARTING RUNNING KILLED");
    assert_eq!(mesos.states("failed"), "STARTING RUNNING FAILED");
    assert_eq!(
        mesos.last("failed")["message"],
        "service failed was stopped, for a hook of the pod failed"
    );
}
