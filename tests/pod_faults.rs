//! Pods when something around them does not work: ends that are not recorded yet, records that cannot be written. Needs root and the
//! Debian packages iproute2 and nftables.

mod pod_support;

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pod_support::{BUSYBOX, Host, until};
use serde_json::Value;

fn recorded(host: &Host, name: &str) -> i32 {
    json(&host.pod().join(format!("{name}.json")))["pid"]
        .as_i64()
        .unwrap() as i32
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn is_there(pid: i32) -> bool {
    // a zombie has ended
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|text| !text.rsplit(')').next().unwrap().starts_with(" Z"))
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn a_kill_reaches_every_service_beside_one_that_has_just_ended() {
    let host = Host::new();
    let before = host.snapshot();
    let service = format!("{{image: {BUSYBOX}, network_mode: none, command: [sleep, '1000']}}");
    host.compose(&format!("services:\n  a: {service}\n  b: {service}\n"));
    host.sampan(&["up", "-d"]).ok();
    let (keeper, first) = (recorded(&host, "keeper"), host.row("a")["pid"].clone());
    let first = first.as_i64().unwrap() as i32;
    // the end of the first is not known before the keeper has recorded it
    send(keeper, Signal::SIGSTOP);
    send(first, Signal::SIGKILL);
    until("it ended", || (!is_there(first)).then_some(()));
    let killed = host.sampan(&["kill"]);
    send(keeper, Signal::SIGCONT);
    killed.ok();
    host.await_row("b", "exit_code", 137);
    host.await_row("a", "status", "exited");
    host.down(&before);
}
