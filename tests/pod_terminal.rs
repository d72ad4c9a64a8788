//! Terminals and standard inputs of services, with a person at a terminal. Needs root and the Debian packages iproute2, nftables and
//! util-linux.

mod pod_support;
mod pty;

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pod_support::{BUSYBOX, Host, until};
use pty::{Pty, SLEEP, until_size};
use serde_json::Value;

const SIZE: (u16, u16) = (30, 100);

/// A pod with a shell on a terminal, and one that copies lines from its input.
fn up() -> (Host, Vec<String>) {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "
x-image: &image {{image: {BUSYBOX}, stop_signal: KILL, network_mode: none}}
services:
  shell:
    <<: *image
    tty: true
    stdin_open: true
    environment: {{PS1: '> '}}
  copy:
    <<: *image
    stdin_open: true
    command: [sh, -c, 'trap \"exit 130\" INT; while read line; do echo got $$line; done; echo end; exit 7']
  still:
    <<: *image
    command: [sh, -c, 'while sleep 0.1; do echo tick; done']
"
    ));
    host.sampan(&["up", "-d"]).ok();
    (host, before)
}

fn attach(host: &Host, arguments: &[&str]) -> Pty {
    Pty::start(&host.command(arguments), SIZE)
}

fn supervisor(host: &Host) -> i32 {
    let text = fs::read(host.pod().join("supervisor.json")).unwrap();
    let record: Value = serde_json::from_slice(&text).unwrap();
    record["pid"].as_i64().unwrap() as i32
}

fn kill_supervisor(host: &Host) {
    let old = supervisor(host);
    kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    until("another supervisor", || {
        (supervisor(host) != old).then_some(())
    });
}

#[test]
fn a_shell_has_a_terminal_its_size_its_keys_and_is_left_and_found_again() {
    let (host, before) = up();
    let mut first = attach(&host, &["attach", "shell"]);
    until("raw", || first.is_raw().then_some(()));
    first.keys("echo $((6*7)); tty\r");
    first.await_text("42\r\n");
    first.await_text("/dev/");
    first.keys("stty size\r");
    first.await_text("30 100\r\n");
    first.resize(41, 133);
    first.keys(until_size("41 133"));
    first.await_text("sized 42\r\n");
    // ctrl-c is the program's
    first.keys(SLEEP);
    first.await_text("asleep 42\r\n");
    first.keys("\x03");
    first.await_text("> ");
    first.keys("echo code $?\r");
    first.await_text("code 130\r\n");

    // a second writer is refused, any number may look
    let refused = host.sampan(&["attach", "shell"]);
    assert!(
        refused
            .fails(1)
            .contains("somebody else has the standard input"),
        "{refused:?}"
    );
    let mut looker = attach(&host, &["attach", "--no-stdin", "shell"]);
    until("it looks", || looker.is_shown().then_some(()));
    first.keys("echo for $((1+1))\r");
    looker.await_text("for 2\r\n");

    // a supervisor that is killed is not noticed
    kill_supervisor(&host);
    first.keys("echo still $((1+2))\r");
    first.await_text("still 3\r\n");
    looker.await_text("still 3\r\n");

    first.keys("\x10\x11");
    assert_eq!(first.wait(), 0);
    first.await_text("left service shell, which runs on");
    assert!(!first.is_raw());
    kill_supervisor(&host);
    let mut second = attach(&host, &["attach", "shell"]);
    until("raw", || second.is_raw().then_some(()));
    second.keys("stty size; exit 9\r");
    second.await_text("30 100\r\n");
    assert_eq!(second.wait(), 9);
    assert_eq!(looker.wait(), 9);
    host.down(&before);
}

#[test]
fn all_output_of_a_terminal_is_in_the_log_once_while_supervisors_are_killed() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "
services:
  count:
    image: {BUSYBOX}
    network_mode: none
    tty: true
    command: [sh, -c, 'for i in $$(seq 1 20000); do echo line $$i; done; printf last']
"
    ));
    host.sampan(&["up", "-d"]).ok();
    while host.row("count")["status"] == "running" {
        kill_supervisor(&host);
    }
    host.await_row("count", "status", "exited");
    let mut expected: String = (1..=20000).map(|i| format!("line {i}\r\n")).collect();
    expected.push_str("last");
    let log = String::from_utf8(host.log("count", "stdout")).unwrap();
    let differs = log.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(log == expected, "{} bytes, {differs:?}", log.len());
    host.down(&before);
}

#[test]
fn an_input_without_a_terminal_is_written_to_left_and_ended() {
    let (host, before) = up();
    // a pipe that ends, ends the input; 128 + signal and codes are the program's
    let ended = host.sampan_with(&["attach", "copy"], b"one\ntwo\n");
    assert_eq!(ended.code, 7, "{ended:?}");
    assert_eq!(ended.out(), "got one\ngot two\nend\n");
    let over = host.sampan(&["attach", "copy"]);
    assert!(over.fails(125).contains("exited with code 7"), "{over:?}");

    // no input at all: to look is all there is
    let looker = host.start(&["attach", "still"]);
    looker.await_out("tick\n");
    host.sampan(&["kill", "-s", "TERM", "still"]).ok();
    host.sampan(&["kill", "-s", "KILL", "still"]).ok();
    assert_eq!(looker.wait().code, 137);

    host.sampan(&["start", "copy"]).ok();
    kill_supervisor(&host);
    let mut pty = attach(&host, &["attach", "copy"]);
    pty.keys("typed\r");
    pty.await_text("got typed");
    assert!(!pty.is_raw());
    // ctrl-c goes to the program, as a signal
    pty.keys("\x03");
    assert_eq!(pty.wait(), 130);
    host.down(&before);
}

#[test]
fn run_is_interactive() {
    let host = Host::new();
    let before = host.snapshot();
    fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["run", "--rm"], more].concat()
    }
    let ended = host.sampan_with(&with(&["-i", BUSYBOX, "sh", "-c", "cat; exit 3"]), b"a\nb");
    assert_eq!((ended.code, ended.out().as_str()), (3, "a\nb"), "{ended:?}");
    host.assert_clean(&before);

    let mut pty = attach(&host, &with(&["-it", "-e", "PS1=> ", BUSYBOX, "sh"]));
    pty.await_text("> ");
    until("raw", || pty.is_raw().then_some(()));
    pty.keys("stty size; exit 5\r");
    pty.await_text("30 100\r\n");
    assert_eq!(pty.wait(), 5);
    host.assert_clean(&before);

    // -t alone: a terminal that nobody types on
    let mut pty = attach(
        &host,
        &with(&[
            "-t",
            BUSYBOX,
            "sh",
            "-c",
            &format!("tty; {}", until_size("30 100").trim_end()),
        ]),
    );
    pty.await_text("/dev/");
    pty.await_text("sized 42\r\n");
    assert_eq!(pty.wait(), 0);
    host.assert_clean(&before);
}

#[test]
fn a_terminal_goes_with_its_run_and_the_next_run_has_one() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "
services:
  again:
    image: {BUSYBOX}
    network_mode: none
    tty: true
    stop_signal: KILL
    restart: always
    command: [sh, -c, 'tty; read line; echo had $$line; exit 4']
"
    ));
    host.sampan(&["up", "-d"]).ok();
    for line in ["one", "two"] {
        let mut pty = attach(&host, &["attach", "again"]);
        until("raw", || pty.is_raw().then_some(()));
        pty.keys(format!("{line}\r"));
        pty.await_text(&format!("had {line}\r\n"));
        assert_eq!(pty.wait(), 4);
        until("the next run", || {
            (host.row("again")["status"] == "running").then_some(())
        });
    }
    // the terminals of the pod are those of the runs there are
    let keeper: Value =
        serde_json::from_slice(&fs::read(host.pod().join("keeper.json")).unwrap()).unwrap();
    let open = |pid: i64| {
        let text = Command::new("ls")
            .args(["-l", &format!("/proc/{pid}/fd")])
            .output()
            .unwrap();
        String::from_utf8_lossy(&text.stdout)
            .matches("ptmx")
            .count()
    };
    assert_eq!(open(keeper["pid"].as_i64().unwrap()), 0);
    until("one terminal", || {
        (open(i64::from(supervisor(&host))) <= 1).then_some(())
    });
    host.down(&before);
}

/// `exec -t copy sh -c SCRIPT` with pipes for our streams.
fn piped(host: &Host, script: &str) -> Child {
    let mut command = host.command(&["exec", "-t", "copy", "sh", "-c", script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn much_goes_both_ways_at_once() {
    let (host, before) = up();
    let mut child = piped(&host, "stty raw -echo; echo ready; exec head -c 1048576");
    let mut out = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    out.read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
    let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    let (mut input, typed) = (child.stdin.take().unwrap(), bytes.clone());
    let typing = std::thread::spawn(move || input.write_all(&typed));
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = out.read_to_end(&mut all);
        let _ = sender.send(all);
    });
    let printed = receiver.recv_timeout(Duration::from_secs(60));
    assert!(printed.expect("it goes on") == bytes);
    typing.join().unwrap().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    host.down(&before);
}

#[test]
fn a_terminal_that_nobody_has_open_is_waited_for() {
    let (host, before) = up();
    let wait = |name: &str| format!("until [ -e /tmp/{name} ]; do sleep 0.1; done");
    let script = format!(
        "exec </dev/null >/dev/null 2>&1; touch /tmp/closed; {}; echo again >/dev/tty; {}; exit 5",
        wait("go"),
        wait("end")
    );
    let mut child = piped(&host, &script);
    let inside = |command: &str| host.sampan(&["exec", "copy", "sh", "-c", command]).ok();
    inside(&wait("closed"));
    // who waits reads nothing: no more calls of read(2) between two looks
    let reads = || {
        let text = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with("syscr:"));
        line.unwrap().to_string()
    };
    until("it waits", || {
        let first = reads();
        inside("true");
        (first == reads()).then_some(())
    });
    inside("touch /tmp/go");
    let mut again = [0; 6];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut again).unwrap();
    assert_eq!(&again, b"again\n");
    inside("touch /tmp/end");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    host.down(&before);
}
