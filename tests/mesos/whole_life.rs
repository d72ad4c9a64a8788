//! Kill -9 at any moment under load: no orphan, no lost terminal state, nothing left.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::*;

/// Numbers from a seed: xorshift.
struct Dice(u64);

impl Dice {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// The executor is killed at 50 moments while tasks come, end, fail and are killed. Each task gets exactly the end it
/// should have. A LAUNCH that the executor had no time to read is lost to it; the agent sees that, and says so.
#[test]
fn fifty_kills_of_the_executor_under_load() {
    let mesos = Mesos::new();
    let mut dice = Dice(0x5eed_1e55);
    let mut expected = BTreeMap::new();
    mesos.agent.launch(script("keep", "sleep 100000"));
    mesos.start();
    mesos.wait("keep", "RUNNING");
    for round in 0..50 {
        let name = format!("t{round}");
        let (line, end) = match dice.below(4) {
            0 => ("true", "FINISHED"),
            1 => ("exit 5", "FAILED"),
            2 => ("sleep 0.3", "FINISHED"),
            _ => ("sleep 100000", "KILLED"),
        };
        match dice.below(3) {
            0 => mesos.agent.launch_group(vec![member(&name, line)]),
            _ => mesos.agent.launch(script(&name, line)),
        }
        expected.insert(name.clone(), end);
        std::thread::sleep(Duration::from_millis(dice.below(700)));
        if dice.below(2) == 0 && end == "KILLED" {
            mesos.agent.kill(&name, None);
        }
        if dice.below(3) == 0 {
            mesos.agent.break_stream_if_any();
        }
        // there may be none for a moment: what it does until it is killed must not count as what the next one does
        let executor = Pid::from_raw(mesos.real_executor());
        let subscribed = mesos.agent.subscriptions();
        kill(executor, Signal::SIGKILL).unwrap();
        // what is sent before the agent sees the end of the stream is lost
        mesos.agent.wait_subscriptions(subscribed + 1);
    }
    let mut unread = 0;
    for (name, end) in &expected {
        if *end == "KILLED" {
            mesos.agent.kill_until_over(name);
        } else {
            mesos.agent.await_over(std::slice::from_ref(name));
        }
        let states = mesos.states(name);
        if states == "LOST" {
            unread += 1;
            continue;
        }
        let fits =
            states == format!("STARTING RUNNING {end}") || states == format!("STARTING {end}");
        assert!(fits, "{name}: {states}, not {end}\n{}", mesos.agent.story());
        assert_eq!(mesos.last(name)["source"], "SOURCE_EXECUTOR", "{name}");
    }
    assert!(
        unread < 25,
        "{unread} launches were not read\n{}",
        mesos.agent.story()
    );
    mesos.agent.kill("keep", None);
    mesos.agent.wait_exit();
    let told = mesos.agent.violations();
    let is_unread = |told: &String| {
        let name = told.strip_prefix("SUBSCRIBE without the unacknowledged task ");
        name.is_some_and(|name| mesos.states(name) == "LOST")
    };
    assert!(
        told.iter().all(is_unread),
        "{told:#?}\n{}",
        mesos.agent.story()
    );
    mesos.ends(0);
}

/// The container is destroyed at any moment: whatever was being made is gone after gc.
#[test]
fn containers_destroyed_at_any_moment_leave_nothing() {
    let mesos = Mesos::new();
    let mut dice = Dice(0xdead_5eed);
    for round in 0..10 {
        for number in 0..3 {
            mesos
                .agent
                .launch(script(&format!("r{round}t{number}"), "sleep 100000"));
        }
        mesos.start();
        std::thread::sleep(Duration::from_millis(dice.below(700)));
        mesos.agent.destroy();
        mesos.agent.wait_exit();
    }
    mesos.nothing_left_after_gc();
}
