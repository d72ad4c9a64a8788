//! Pods when something around them does not work: ends that are not recorded yet, records that cannot be written. Needs root and the
//! Debian packages iproute2 and nftables.

mod pod_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
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

/// Makes a record one that is read and cannot be replaced, which is refused for what something is mounted on.
fn pin(record: &Path) {
    let none = None::<&str>;
    mount(Some(record), record, none, MsFlags::MS_BIND, none).unwrap();
}

fn unpin(record: &Path) {
    umount2(record, MntFlags::MNT_DETACH).unwrap();
}

/// How often the pod's events say that a record cannot be written.
fn refusals(host: &Host, record: &Path) -> usize {
    let text = fs::read_to_string(host.pod().join("events.log")).unwrap();
    let refusal = format!("{}: Device or resource busy", record.display());
    text.matches(&refusal).count()
}

fn await_refusals(host: &Host, record: &Path, count: usize) {
    until(&format!("{} is refused", record.display()), || {
        (refusals(host, record) == count).then_some(())
    });
}

/// A service that ends with a code once there is a file `go` in the project's folder.
fn on_go(code: i32) -> String {
    format!(
        "    image: {BUSYBOX}
    network_mode: none
    command: [sh, -c, 'until [ -e /project/go ]; do usleep 10000; done; exit {code}']
    volumes: ['./:/project:ro']
    stop_grace_period: 0s
"
    )
}

#[test]
fn a_state_that_could_not_be_written_is_written_later_and_told_then() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!("services:\n  seven:\n{}", on_go(7)));
    host.sampan(&["up", "-d"]).ok();
    let status = host.pod().join("services/seven/status.json");
    let verdict = host.pod().join("verdict.json");
    let waits = host.start(&["wait", "seven"]);
    pin(&status);
    host.write("go", "");
    await_refusals(&host, &status, 1);
    assert_eq!(json(&status)["phase"], "running");
    assert!(!verdict.exists());
    // nothing else happens to the pod
    unpin(&status);
    let waited = waits.wait();
    assert_eq!(waited.out(), "seven 7\n");
    assert_eq!(json(&status)["phase"], "exited");
    until("a verdict", || verdict.exists().then_some(()));
    assert_eq!(refusals(&host, &status), 1);
    host.down(&before);
}

#[test]
fn what_is_not_known_to_be_started_is_not_started() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:
  first:
{}  second:
    image: {BUSYBOX}
    network_mode: none
    command: [sh, -c, 'echo run >> /project/runs; sleep 1000']
    volumes: ['./:/project']
    stop_grace_period: 0s
    depends_on: {{first: {{condition: service_completed_successfully}}}}
",
        on_go(0)
    ));
    let up = host.start(&["up", "-d"]);
    until("the first runs", || {
        let events = fs::read_to_string(host.pod().join("events.log")).unwrap_or_default();
        events.contains("first started").then_some(())
    });
    let status = host.pod().join("services/second/status.json");
    pin(&status);
    host.write("go", "");
    await_refusals(&host, &status, 1);
    // nor by another supervisor, for which it is the first time
    send(recorded(&host, "supervisor"), Signal::SIGKILL);
    await_refusals(&host, &status, 2);
    let runs = host.project.join("runs");
    assert!(!runs.exists());
    unpin(&status);
    host.await_row("second", "status", "running");
    until("it ran", || runs.exists().then_some(()));
    assert_eq!(fs::read_to_string(&runs).unwrap(), "run\n");
    drop(up);
    host.down(&before);
}

#[test]
fn nothing_starts_before_what_is_owed_to_hooks_is_recorded() {
    let host = Host::new();
    let before = host.snapshot();
    let trace = host.project.join("trace");
    let hook = host.write(
        "hook",
        format!("#!/bin/sh\necho $SAMPAN_HOOK >> {}\n", trace.display()),
    );
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    host.compose(&format!(
        "services:
  web: {{image: {BUSYBOX}, network_mode: none, command: [sleep, '1000'], stop_grace_period: 0s}}
x-sampan:
  hooks:
  - {{name: all, at: [after-start, after-stop], command: {}}}
",
        hook.display()
    ));
    host.sampan(&["up", "-d"]).ok();
    host.sampan(&["stop"]).ok();
    let hooks = host.pod().join("hooks.json");
    pin(&hooks);
    let start = host.start(&["start"]);
    await_refusals(&host, &hooks, 1);
    assert_eq!(host.row("web")["status"], "exited");
    unpin(&hooks);
    assert_eq!(start.wait().code, 0);
    host.sampan(&["stop"]).ok();
    let points = "after-start\nafter-stop\n";
    assert_eq!(fs::read_to_string(&trace).unwrap(), points.repeat(2));
    host.down(&before);
}
