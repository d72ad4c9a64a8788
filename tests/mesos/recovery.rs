//! Acknowledgements late and lost, breaks with and without checkpointing, restarts.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::pod_support::until;
use crate::support::*;

#[test]
fn a_break_before_the_first_acknowledgement_loses_nothing() {
    let mesos = Mesos::new();
    mesos.agent.acks(Acks::Held);
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    // SUBSCRIBE has to bring task and both updates: the agent tells if not
    mesos.agent.break_stream();
    mesos.agent.wait_subscriptions(2);
    mesos.agent.break_calls();
    mesos.agent.wait_subscriptions(3);
    mesos.agent.release();
    mesos.agent.kill("a", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
}

#[test]
fn acknowledgements_may_come_twice() {
    let mesos = Mesos::new();
    mesos.agent.acks(Acks::Twice);
    mesos.agent.launch(script("a", "true"));
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING FINISHED");
}

#[test]
fn acknowledgements_may_be_late() {
    let mesos = Mesos::new();
    mesos.agent.acks(Acks::Held);
    mesos.agent.launch(script("a", "true"));
    mesos.start();
    mesos.wait("a", "FINISHED");
    std::thread::sleep(Duration::from_secs(1));
    assert!(
        mesos.agent.exit().is_none(),
        "it waits for the last acknowledgement"
    );
    mesos.agent.release();
    mesos.ends(0);
}

/// A minute of patience, then it ends.
#[test]
fn the_last_acknowledgement_may_never_come() {
    let mesos = Mesos::new();
    mesos.agent.acks(Acks::Lost);
    mesos.agent.launch(script("a", "true"));
    mesos.start();
    mesos.wait("a", "FINISHED");
    std::thread::sleep(Duration::from_secs(30));
    assert!(mesos.agent.exit().is_none());
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING FINISHED");
}

#[test]
fn without_checkpointing_a_break_is_the_end() {
    let mesos = Mesos::with(Settings {
        checkpoint: false,
        ..Settings::default()
    });
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    mesos.agent.break_stream();
    mesos.ends(1);
    assert_eq!(mesos.agent.subscriptions(), 1);
}

#[test]
fn a_restart_of_the_agent_loses_nothing() {
    for transport in [Transport::Tcp, Transport::DomainSocket] {
        let mesos = Mesos::with(Settings {
            transport,
            ..Settings::default()
        });
        mesos.agent.launch(script("stays", "sleep 1000"));
        mesos.agent.launch(script("ends", "sleep 1"));
        mesos.start();
        mesos.wait("ends", "RUNNING");
        mesos.wait("stays", "RUNNING");
        mesos.agent.stop();
        // one ends while nobody listens
        std::thread::sleep(Duration::from_secs(2));
        mesos.agent.start(Phase::NoRoutes);
        std::thread::sleep(Duration::from_millis(300));
        mesos.agent.phase(Phase::Recovering);
        std::thread::sleep(Duration::from_millis(300));
        mesos.agent.phase(Phase::Reconnecting);
        mesos.agent.wait_subscriptions(2);
        mesos.agent.phase(Phase::Running);
        mesos.wait("ends", "FINISHED");
        mesos.agent.kill("stays", None);
        mesos.ends(0);
        assert_eq!(mesos.states("ends"), "STARTING RUNNING FINISHED");
        assert_eq!(mesos.states("stays"), "STARTING RUNNING KILLED");
    }
}

#[test]
fn the_recovery_timeout_ends_it() {
    let recovery_timeout = Duration::from_secs(3);
    let mesos = Mesos::with(Settings {
        recovery_timeout,
        ..Settings::default()
    });
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    // in the last moment
    mesos.agent.stop();
    std::thread::sleep(Duration::from_secs(2));
    mesos.agent.start(Phase::Running);
    mesos.agent.wait_subscriptions(2);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(mesos.states("a"), "STARTING RUNNING");
    // and for good
    mesos.agent.stop();
    mesos.ends(1);
}

/// Where the real executor's program is.
fn program(mesos: &Mesos) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/{}/exe", mesos.real_executor())).unwrap()
}

/// SIGHUP, with a new program in the place of the old one: it takes over, or where it is none the old one goes on.
#[test]
fn an_upgrade() {
    use std::os::unix::fs::PermissionsExt;
    let mesos = Mesos::new();
    let installed = mesos.host.path().join("sampan");
    let install = |fill: &dyn Fn(&std::path::Path), mode: u32| {
        let new = installed.with_extension("new");
        fill(&new);
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::rename(&new, &installed).unwrap();
    };
    let good = |path: &std::path::Path| {
        std::fs::copy(env!("CARGO_BIN_EXE_sampan"), path).unwrap();
    };
    install(&good, 0o755);
    mesos.agent.launch(script("a", "sleep 1000"));
    let command = [installed.to_str().unwrap(), "executor", "mesos"];
    mesos.agent.start_executor(&command);
    mesos.wait("a", "RUNNING");
    let first = Pid::from_raw(mesos.agent.pid());
    let upgrade = |subscriptions| {
        let before = mesos.real_executor();
        kill(first, Signal::SIGHUP).unwrap();
        mesos.agent.wait_subscriptions(subscriptions);
        assert_ne!(mesos.real_executor(), before);
        program(&mesos)
    };
    install(&good, 0o755);
    assert_eq!(upgrade(2), installed);
    let script =
        |text: &'static str| move |path: &std::path::Path| std::fs::write(path, text).unwrap();
    let old = format!("{} (deleted)", installed.display());
    let mut subscriptions = 2;
    for (text, mode) in [
        ("#!/bin/sh\nexit 1\n", 0o755),
        ("#!/bin/sh\nkill -SEGV $$\n", 0o755),
        ("no program\n", 0o644),
    ] {
        install(&script(text), mode);
        subscriptions += 1;
        assert_eq!(upgrade(subscriptions).to_str(), Some(&*old), "{text}");
    }
    install(&good, 0o755);
    assert_eq!(upgrade(subscriptions + 1), installed);
    mesos.agent.kill("a", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
}

/// The log of the executor cannot be written: nothing but the log is lost, not even when there is something to tell.
#[test]
fn a_log_that_nobody_takes() {
    for stderr in ["2>/dev/full", "2> >(:); wait $!"] {
        let to = format!("exec {stderr}; exec \"$@\"");
        let launcher = Launcher {
            wrapper: ["/bin/bash", "-c", &to, "bash"].map(String::from).to_vec(),
            ..Launcher::default()
        };
        let mesos = Mesos::with(Settings {
            launcher,
            ..Settings::default()
        });
        mesos.agent.launch(script("a", "sleep 1000"));
        mesos.start();
        mesos.wait("a", "RUNNING");
        // the real executor tells that it passes over this, before it answers
        let real = mesos.real_executor();
        mesos.agent.unknown_event();
        mesos.agent.launch(script("b", "true"));
        mesos.wait("b", "FINISHED");
        assert_eq!(mesos.real_executor(), real, "{stderr}");
        // the first process tells of this
        kill(Pid::from_raw(real), Signal::SIGKILL).unwrap();
        mesos.agent.wait_subscriptions(2);
        mesos.agent.kill("a", None);
        mesos.ends(0);
        assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED", "{stderr}");
    }
}

/// The real executor is killed, or asked to change to another program: its tasks stay.
#[test]
fn another_executor_process_goes_on() {
    for signal in [Signal::SIGKILL, Signal::SIGABRT] {
        let mesos = Mesos::new();
        mesos.agent.launch(script("a", "sleep 1000"));
        mesos.agent.launch(script("ends", "sleep 2"));
        mesos.start();
        mesos.wait("a", "RUNNING");
        mesos.wait("ends", "RUNNING");
        kill(Pid::from_raw(mesos.real_executor()), signal).unwrap();
        mesos.agent.wait_subscriptions(2);
        mesos.wait("ends", "FINISHED");
        mesos.agent.kill("a", None);
        mesos.ends(0);
        assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
        assert_eq!(mesos.states("ends"), "STARTING RUNNING FINISHED");
    }
}

/// What others remove in another pid namespace is not the folder of an executor that lives, whose next process needs it.
#[test]
fn gc_in_another_pid_namespace_leaves_it_alone() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    let mut gc = std::process::Command::new("unshare");
    gc.args(["--pid", "--fork", "--mount-proc"])
        .args([env!("CARGO_BIN_EXE_sampan"), "gc"]);
    mesos.host.surround(&mut gc);
    assert!(gc.status().unwrap().success());
    kill(Pid::from_raw(mesos.real_executor()), Signal::SIGKILL).unwrap();
    mesos.agent.wait_subscriptions(2);
    mesos.agent.kill("a", None);
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
}

/// Up to its very end a successor would find everything.
#[test]
fn its_folder_is_there_until_it_has_ended() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    let folders = || {
        let all = std::fs::read_dir(mesos.host.state.join("executors")).unwrap();
        all.count()
    };
    let (first, real) = (Pid::from_raw(mesos.agent.pid()), mesos.real_executor());
    kill(first, Signal::SIGSTOP).unwrap();
    mesos.agent.kill("a", None);
    until("the real executor has ended", || {
        (!mesos.processes("internal mesos-executor").contains(&real)).then_some(())
    });
    assert_eq!(folders(), 1);
    kill(first, Signal::SIGCONT).unwrap();
    mesos.ends(0);
    assert_eq!(folders(), 0);
}

/// SIGTERM reaches a real executor that has just died: the next one does what it says.
#[test]
fn a_signal_to_end_outlives_the_real_executor() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    let first = Pid::from_raw(mesos.agent.pid());
    kill(first, Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(mesos.real_executor()), Signal::SIGKILL).unwrap();
    kill(first, Signal::SIGTERM).unwrap();
    kill(first, Signal::SIGCONT).unwrap();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
    let why = mesos.last("a")["message"].clone();
    assert_eq!(why, "the executor was asked to end");
}

/// A pod that is removed while no real executor runs is not made again: its job may be done.
#[test]
fn a_pod_that_goes_unseen_is_not_made_again() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    let first = Pid::from_raw(mesos.agent.pid());
    kill(first, Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(mesos.real_executor()), Signal::SIGKILL).unwrap();
    let pods = std::fs::read_dir(mesos.host.root.join("pods")).unwrap();
    let pod = pods.map(|entry| entry.unwrap().file_name()).next().unwrap();
    let down = ["-p", pod.to_str().unwrap(), "down", "--timeout", "0"];
    mesos.host.sampan(&down).ok();
    kill(first, Signal::SIGCONT).unwrap();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING FAILED");
    let pod = pod.to_str().unwrap();
    let why = format!("pod {pod} was removed by a command on the agent's machine");
    assert_eq!(mesos.last("a")["message"], why);
}

/// A task that writes a line once `server` has answered.
fn waiting(server: &TcpListener) -> serde_json::Value {
    let mut task = member("a", "echo run >> \"$MESOS_SANDBOX/runs\"");
    let uri = format!("http://{}/file", server.local_addr().unwrap());
    task["command"]["uris"] = json!([{"value": uri}]);
    task
}

/// A request that has not been answered yet.
fn asked(server: &TcpListener) -> TcpStream {
    let (mut stream, _) = server.accept().unwrap();
    assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
    stream
}

fn answer(mut stream: TcpStream) {
    let text = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    stream.write_all(text).unwrap();
}

/// The real executor is killed after the pod was made, and before it noted what its task is: the next one learns that, and nothing runs
/// twice.
#[test]
fn a_pod_that_was_made_unseen_is_taken_up() {
    let mesos = Mesos::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    mesos.agent.launch_group(vec![waiting(&server)]);
    mesos.start();
    let request = asked(&server);
    let real = mesos.real_executor();
    kill(Pid::from_raw(real), Signal::SIGSTOP).unwrap();
    until("the real executor stands still", || {
        let stat = std::fs::read_to_string(format!("/proc/{real}/stat")).unwrap();
        stat.contains(") T ").then_some(())
    });
    answer(request);
    let runs = mesos.agent.sandbox().join("tasks/a/runs");
    until("the task runs", || runs.exists().then_some(()));
    until("the pod is made", || {
        let makes = mesos.processes("internal mesos-launch");
        makes.is_empty().then_some(())
    });
    kill(Pid::from_raw(real), Signal::SIGKILL).unwrap();
    mesos.wait("a", "FINISHED");
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), "run\n");
    mesos.ends(0);
}

#[test]
fn what_makes_a_pod_ends_with_the_real_executor() {
    let mesos = Mesos::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    mesos.agent.launch_group(vec![waiting(&server)]);
    mesos.start();
    let mut request = asked(&server);
    kill(Pid::from_raw(mesos.real_executor()), Signal::SIGKILL).unwrap();
    let end = request.read(&mut [0; 16]);
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    answer(asked(&server));
    mesos.ends(0);
    assert_eq!(mesos.last("a")["state"], "TASK_FINISHED");
}

/// All of the container is killed at once: the next gc leaves nothing.
#[test]
fn a_destroyed_container_leaves_nothing() {
    for cgroup in [true, false] {
        let launcher = Launcher {
            cgroup,
            ..Launcher::default()
        };
        let mesos = Mesos::with(Settings {
            launcher,
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
        mesos.agent.destroy();
        mesos.agent.wait_exit();
        mesos.nothing_left_after_gc();
        for name in ["a", "g1", "g2"] {
            assert_eq!(mesos.states(name), "STARTING RUNNING FAILED");
        }
    }
}

/// Its real executors die before they reach the agent: a last one ends the tasks, and tells so.
#[test]
fn an_executor_that_dies_again_and_again_is_given_up() {
    let mesos = Mesos::new();
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    mesos.agent.stop();
    let mut dead = 0;
    // the first one had a connection
    for _ in 0..32 {
        let mut real = mesos.real_executor();
        while real == dead {
            std::thread::sleep(Duration::from_millis(5));
            real = mesos.real_executor();
        }
        dead = real;
        kill(Pid::from_raw(real), Signal::SIGKILL).unwrap();
    }
    mesos.agent.start(Phase::Running);
    mesos.ends(1);
    assert_eq!(mesos.states("a"), "STARTING RUNNING FAILED");
    let last = mesos.last("a");
    assert_eq!(last["source"], "SOURCE_EXECUTOR", "{last}");
    assert_eq!(
        last["message"],
        "the executor died 31 times in a row without a connection to the agent, the last time it was ended by SIGKILL"
    );
}
