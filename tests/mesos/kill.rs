//! KILL and SHUTDOWN in every state.

use std::io::Read;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use serde_json::json;

use crate::pod_support::until;
use crate::support::*;

/// Ignores SIGTERM.
const STUBBORN: &str = "trap '' TERM; echo ready; while :; do sleep 0.1; done";

/// Waits until so many have said that they ignore SIGTERM.
fn are_stubborn(mesos: &Mesos, count: usize) {
    let output = mesos.agent.sandbox().join("stdout");
    let said = || std::fs::read_to_string(&output).unwrap_or_default();
    while said().matches("ready\n").count() < count {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A registry that takes connections and says nothing.
fn silent_registry() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/slow:1", listener.local_addr().unwrap());
    (name, listener)
}

#[test]
fn during_the_pull() {
    let mesos = Mesos::new();
    let (image, registry) = silent_registry();
    mesos.agent.launch(labelled(
        "a",
        &[("sampan.image", &image), ("sampan.command", "true")],
    ));
    mesos.start();
    let (mut connection, _) = registry.accept().unwrap();
    let mut byte = [0; 1];
    connection.read_exact(&mut byte).unwrap();
    mesos.agent.kill("a", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING KILLED");
    assert_eq!(
        mesos.last("a")["reason"],
        "REASON_TASK_KILLED_DURING_LAUNCH"
    );
}

#[test]
fn at_once() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("keep", "sleep 1000"));
    mesos.start();
    mesos.wait("keep", "RUNNING");
    for number in 0..8 {
        let name = format!("t{number}");
        mesos.agent.launch(script(&name, "sleep 1000"));
        // from before the pod is made until it is up
        std::thread::sleep(Duration::from_millis(number * 30));
        mesos.agent.kill(&name, None);
    }
    for number in 0..8 {
        mesos.wait(&format!("t{number}"), "KILLED");
    }
    mesos.agent.kill("keep", None);
    mesos.ends(0);
    for number in 0..8 {
        let states = mesos.states(&format!("t{number}"));
        assert!(
            states == "STARTING KILLED" || states == "STARTING RUNNING KILLED",
            "{states}"
        );
    }
}

#[test]
fn killing_is_told_where_the_framework_knows_it() {
    let capabilities = vec![
        "TASK_KILLING_STATE".to_owned(),
        "PARTITION_AWARE".to_owned(),
    ];
    let mesos = Mesos::with(Settings {
        capabilities,
        ..Settings::default()
    });
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    mesos.agent.kill("a", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLING KILLED");
}

/// Whatever the exit code is, a task that was to be killed is killed.
#[test]
fn exit_code_zero_is_killed_too() {
    let mesos = Mesos::new();
    mesos.agent.launch(script(
        "a",
        "trap 'exit 0' TERM; while :; do sleep 0.1; done",
    ));
    mesos.start();
    mesos.wait("a", "RUNNING");
    mesos.agent.kill("a", Some(Duration::from_secs(60)));
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
}

#[test]
fn a_second_kill_may_shorten_the_grace_and_not_lengthen_it() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("short", STUBBORN));
    mesos.agent.launch(script("long", STUBBORN));
    mesos.start();
    are_stubborn(&mesos, 2);
    let start = Instant::now();
    mesos.agent.kill("short", Some(Duration::from_secs(1000)));
    mesos.agent.kill("long", Some(Duration::from_secs(2)));
    mesos.agent.kill("long", Some(Duration::from_secs(1000)));
    mesos.wait("long", "KILLED");
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "the grace is given"
    );
    assert_eq!(mesos.states("short"), "STARTING RUNNING");
    mesos.agent.kill("short", Some(Duration::from_secs(1)));
    mesos.ends(0);
    assert_eq!(mesos.states("short"), "STARTING RUNNING KILLED");
}

#[test]
fn the_tasks_own_policy_counts() {
    let mesos = Mesos::new();
    let policy = json!({"kill_policy": {"grace_period": seconds(0.3)}});
    mesos.agent.launch(with(script("a", STUBBORN), policy));
    mesos.agent.launch(script("b", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    are_stubborn(&mesos, 1);
    mesos.agent.kill("a", None);
    mesos.wait("a", "KILLED");
    // after the end it is passed over
    mesos.agent.kill("a", None);
    mesos.agent.kill("b", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
}

#[test]
fn shutdown_ends_stubborn_tasks_within_the_grace() {
    let shutdown_grace = Duration::from_secs(8);
    let mesos = Mesos::with(Settings {
        shutdown_grace,
        ..Settings::default()
    });
    for name in ["a", "b"] {
        mesos.agent.launch(script(name, STUBBORN));
    }
    mesos
        .agent
        .launch_group(vec![member("g1", STUBBORN), member("g2", "sleep 1000")]);
    mesos.start();
    for name in ["a", "b", "g1", "g2"] {
        mesos.wait(name, "RUNNING");
    }
    mesos.agent.shutdown();
    mesos.ends(0);
    for name in ["a", "b", "g1", "g2"] {
        assert_eq!(mesos.states(name), "STARTING RUNNING KILLED", "{name}");
    }
}

#[test]
fn shutdown_during_the_pull() {
    let mesos = Mesos::new();
    let (image, registry) = silent_registry();
    mesos.agent.launch(labelled(
        "a",
        &[("sampan.image", &image), ("sampan.command", "true")],
    ));
    mesos.start();
    let _connection = registry.accept().unwrap();
    mesos.agent.shutdown();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING KILLED");
}

/// The agent does not know a way back for an executor that it shut down while the two were apart: it says SHUTDOWN, and closes.
#[test]
fn shutdown_while_nobody_is_connected() {
    for capabilities in [vec![], vec!["TASK_KILLING_STATE".to_owned()]] {
        let killing = !capabilities.is_empty();
        let mesos = Mesos::with(Settings {
            capabilities,
            ..Settings::default()
        });
        mesos.agent.launch(script("a", "sleep 1000"));
        mesos
            .agent
            .launch_group(vec![member("g1", "sleep 1000"), member("g2", "sleep 1000")]);
        mesos.start();
        for name in ["a", "g1", "g2"] {
            mesos.wait(name, "RUNNING");
        }
        mesos.agent.stop();
        mesos.agent.shutdown();
        mesos.agent.start(Phase::Running);
        mesos.ends(0);
        let states = match killing {
            true => "STARTING RUNNING KILLING KILLED",
            false => "STARTING RUNNING KILLED",
        };
        for name in ["a", "g1", "g2"] {
            assert_eq!(mesos.states(name), states, "{name}");
            assert_eq!(mesos.last(name)["source"], "SOURCE_EXECUTOR");
        }
        // once, and not again and again
        assert_eq!(mesos.agent.subscriptions(), 2);
    }
}

/// As above, and the end of the stream comes after SHUTDOWN was read in good order.
#[test]
fn shutdown_and_the_stream_ends() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", STUBBORN));
    mesos.start();
    mesos.wait("a", "RUNNING");
    mesos.agent.shutdown();
    mesos.agent.end_stream();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
    assert_eq!(mesos.agent.subscriptions(), 1);
}

/// What stands in the way of a removal keeps the executor at it, until it is gone.
#[test]
fn a_removal_that_fails_is_tried_again() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    let pods = std::fs::read_dir(mesos.host.root.join("pods")).unwrap();
    let pod = pods.map(|entry| entry.unwrap().path()).next().unwrap();
    // only this test and its children see it
    let busy = pod.join("busy");
    std::fs::create_dir(&busy).unwrap();
    let tmpfs = Some("tmpfs");
    mount(tmpfs, &busy, tmpfs, MsFlags::empty(), None::<&str>).unwrap();
    mesos.agent.kill("a", None);
    let said = mesos.agent.sandbox().join("stderr");
    until("the removal failed", || {
        let said = std::fs::read_to_string(&said).unwrap();
        let lines = said.lines();
        let told = lines.filter(|line| line.ends_with("it is tried again"));
        (told.count() == 1).then_some(())
    });
    assert!(mesos.agent.exit().is_none());
    umount(&busy).unwrap();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
}

/// As many pods are made as may be at once, and their registry never answers.
#[test]
fn a_removal_does_not_wait_for_pulls() {
    let mesos = Mesos::new();
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/never", registry.local_addr().unwrap());
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    let pods = std::fs::read_dir(mesos.host.root.join("pods")).unwrap();
    let pod = pods.map(|entry| entry.unwrap().file_name()).next().unwrap();
    let pulls: Vec<String> = (0..8).map(|number| format!("pull-{number}")).collect();
    for pull in &pulls {
        let labels = [("sampan.image", &*image), ("sampan.command", "true")];
        mesos.agent.launch(labelled(pull, &labels));
    }
    until("all of them pull", || {
        let making = mesos.processes("internal mesos-launch");
        (making.len() == 8).then_some(())
    });
    mesos.agent.kill("a", None);
    mesos.wait("a", "KILLED");
    let pod = mesos.host.state.join("pods").join(pod);
    until("the pod is removed", || (!pod.exists()).then_some(()));
    for pull in &pulls {
        mesos.agent.kill(pull, None);
    }
    mesos.ends(0);
    for pull in &pulls {
        assert_eq!(mesos.states(pull), "STARTING KILLED");
    }
}
