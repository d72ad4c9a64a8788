//! Acknowledgements late and lost, breaks with and without checkpointing, restarts.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
        "the executor died 31 times in a row without a connection to the agent, the last time by SIGKILL"
    );
}
