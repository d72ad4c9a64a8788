//! Stop, start, restart, kill, wait, restart policies, and `up` in the foreground.

use nix::sys::signal::Signal;
use serde_json::json;

use super::pod_support::{BUSYBOX, Host, until};

/// A service that ends by itself when asked, with a word about it.
const POLITE: &str = "trap 'echo asked; exit 7' TERM; trap 'echo told; exit 8' USR1; echo ready; while :; do usleep 10000; done";

fn service(name: &str, script: &str, more: &str) -> String {
    let script = serde_json::to_string(&script.replace('$', "$$")).unwrap();
    format!("  {name}:\n    image: {BUSYBOX}\n    command: [sh, -c, {script}]\n    {more}\n")
}

#[test]
fn stop_start_restart_kill_wait() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n{}{}",
        service("one", POLITE, "restart: always"),
        service("two", POLITE, "stop_signal: SIGUSR1")
    ));
    host.sampan(&["up", "-d"]).ok();
    for name in ["one", "two"] {
        host.await_log(name, "ready\n");
    }
    host.sampan(&["stop", "one"]).ok();
    let one = host.row("one");
    assert_eq!(
        (&one["status"], &one["exit_code"]),
        (&json!("exited"), &json!(7))
    );
    assert_eq!(one["pid"], json!(null));
    assert_eq!(host.row("two")["status"], "running");

    host.sampan(&["start", "one"]).ok();
    assert_eq!(host.row("one")["status"], "running");
    until("ready again", || {
        (host.log("one", "stdout") == b"ready\nasked\nready\n").then_some(())
    });
    let pid = host.row("two")["pid"].clone();
    host.sampan(&["restart", "two"]).ok();
    assert_ne!(host.row("two")["pid"], pid);
    until("ready again", || {
        (host.log("two", "stdout") == b"ready\ntold\nready\n").then_some(())
    });

    host.sampan(&["kill", "-s", "USR1", "two"]).ok();
    let ended = host.sampan(&["wait", "two"]);
    assert_eq!((ended.code, ended.out().as_str()), (8, "two 8\n"));
    // SIGKILL on request is an order: `restart: always` does not apply
    host.sampan(&["kill", "one"]).ok();
    let ended = host.sampan(&["wait", "one"]);
    assert_eq!((ended.code, ended.out().as_str()), (137, "one 137\n"));
    assert_eq!(host.row("one")["status"], "exited");

    for (arguments, message) in [
        (
            &["stop", "three"][..],
            format!("sampan: pod {} has no service three\n", host.name),
        ),
        (
            &["kill", "-s", "FOO", "two"],
            "sampan: signal \"FOO\" is not known\n".into(),
        ),
    ] {
        assert_eq!(host.sampan(arguments).fails(1), message);
    }
    host.down(&before);
    let ended = host.sampan(&["stop"]);
    let name = &host.name;
    assert_eq!(
        ended.fails(1),
        format!("sampan: no pod {name} here; `sampan up` makes it, `sampan ps -A` lists all\n")
    );
    let ended = host.sampan(&["down"]);
    ended.ok();
    assert_eq!(
        ended.stderr,
        format!("sampan: warning: no pod {name} here\n")
    );
    host.assert_clean(&before);
}

#[test]
fn restart_policies() {
    let host = Host::new();
    let before = host.snapshot();
    let counted = |code: u8| format!("echo x >> /runs; exit {code}");
    host.compose(&format!(
        "services:\n{}{}{}{}{}",
        service("never", &counted(1), "restart: 'no'"),
        service("twice", &counted(5), "restart: on-failure:2"),
        service("good", &counted(0), "restart: on-failure"),
        service("always", &counted(0), "restart: always"),
        service("unless", &counted(3), "restart: unless-stopped"),
    ));
    host.sampan(&["up", "-d"]).ok();
    for (name, code, restarts) in [("never", 1, 0), ("twice", 5, 2), ("good", 0, 0)] {
        let ended = host.sampan(&["wait", name]);
        assert_eq!(
            (ended.code, ended.out()),
            (code, format!("{name} {code}\n"))
        );
        assert_eq!(host.row(name)["restarts"], restarts, "{name}");
        assert_eq!(host.row(name)["status"], "exited", "{name}");
    }
    for name in ["always", "unless"] {
        until(&format!("{name} is restarted"), || {
            (host.row(name)["restarts"].as_u64() >= Some(2)).then_some(())
        });
        host.sampan(&["stop", name]).ok();
        let row = host.row(name);
        assert_eq!(row["status"], "exited", "{row:#}");
        // what a container wrote is there when it runs again
        let upper = host
            .root
            .join("pods")
            .join(&host.name)
            .join(name)
            .join("upper/runs");
        let runs = std::fs::read_to_string(upper).unwrap().lines().count();
        assert_eq!(json!(runs - 1), row["restarts"]);
    }
    host.down(&before);
}

#[test]
fn who_does_not_listen_is_killed() {
    let host = Host::new();
    let before = host.snapshot();
    let deaf = "trap '' TERM; echo ready; while :; do usleep 10000; done";
    host.compose(&format!(
        "services:\n{}{}",
        service("deaf", deaf, "stop_grace_period: 100ms"),
        service("patient", deaf, "stop_grace_period: 1h"),
    ));
    host.sampan(&["up", "-d"]).ok();
    host.await_log("deaf", "ready");
    host.await_log("patient", "ready");
    host.sampan(&["stop", "deaf"]).ok();
    assert_eq!(host.row("deaf")["exit_code"], 137);
    host.sampan(&["stop", "-t", "0", "patient"]).ok();
    assert_eq!(host.row("patient")["exit_code"], 137);
    // the timeout was for that one stop
    host.sampan(&["start", "patient"]).ok();
    until("ready again", || {
        (host.log("patient", "stdout") == b"ready\nready\n").then_some(())
    });
    let down = host.start(&["stop", "patient"]);
    host.await_row("patient", "status", "stopping");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(host.row("patient")["status"], "stopping");
    host.sampan(&["kill", "patient"]).ok();
    assert_eq!(down.wait().code, 0);
    host.sampan(&["start", "patient"]).ok();
    host.sampan(&["down", "-t", "0"]).ok();
    host.assert_clean(&before);
}

#[test]
fn abort_on_container_exit_gives_its_code() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n{}{}",
        service("short", "echo done; exit 42", ""),
        service(
            "long",
            "trap 'exit 3' TERM; while :; do usleep 10000; done",
            "depends_on: [short]"
        ),
    ));
    let ended = host.sampan(&["up", "--abort-on-container-exit"]);
    assert_eq!(ended.code, 42, "{ended:#?}");
    assert!(ended.out().contains("short | done\n"), "{ended:#?}");
    assert_eq!(host.row("long")["status"], "exited");
    host.down(&before);
}

#[test]
fn up_in_the_foreground_is_interrupted() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n{}",
        service("web", POLITE.replace("TERM", "INT TERM").as_str(), "")
    ));
    let up = host.start(&["up"]);
    up.await_out("web | ready\n");
    up.signal(Signal::SIGINT);
    let ended = up.wait();
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert_eq!(ended.out(), "web | ready\nweb | asked\n");
    let row = host.row("web");
    assert_eq!(
        (&row["status"], &row["exit_code"]),
        (&json!("exited"), &json!(7))
    );

    // the second time does not wait
    host.sampan(&["down"]).ok();
    host.compose(&format!(
        "services:\n{}",
        service(
            "web",
            "trap '' TERM; echo ready; while :; do usleep 10000; done",
            "stop_grace_period: 1h"
        )
    ));
    let up = host.start(&["up"]);
    up.await_out("web | ready\n");
    up.signal(Signal::SIGINT);
    host.await_row("web", "status", "stopping");
    up.signal(Signal::SIGINT);
    assert_eq!(up.wait().code, 0);
    assert_eq!(host.row("web")["exit_code"], 137);
    host.down(&before);
}
