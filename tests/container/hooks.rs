//! Hooks: when they run, what they see, and what follows from their failures.

use std::fs;

use sampan::container::{self, Status};
use serde_json::{Value, json};

use crate::Test;
use crate::common::Case;

pub const TESTS: &[Test] = &[
    ("hooks::run_in_order", run_in_order),
    ("hooks::failures", failures),
    ("hooks::poststart_failure_kills", poststart_failure_kills),
    ("hooks::poststop_failure_warns", poststop_failure_warns),
    ("hooks::start_hooks_are_filtered", start_hooks_are_filtered),
    ("hooks::wrong_ones", wrong_ones),
];

const POINTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

fn shell(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]})
}

/// A container with a folder `/log` that the host sees.
fn logging(args: &[&str]) -> (Case, std::path::PathBuf) {
    let mut case = Case::new(args);
    let log = case.temp.path().join("log");
    fs::create_dir(&log).unwrap();
    let mount =
        json!({"destination": "/log", "type": "bind", "source": log, "options": ["bind", "rw"]});
    case.spec["mounts"].as_array_mut().unwrap().push(mount);
    (case, log)
}

fn run_in_order() {
    let (mut case, log) = logging(&["append", "/log/order", "program"]);
    let order = log.join("order");
    case.spec["annotations"] = json!({"a": "b"});
    let mut hooks = json!({});
    for point in POINTS {
        let note = format!(
            "readlink /proc/self/ns/mnt > {0}/{point}.mnt; pwd > {0}/{point}.pwd; cat > {0}/{point}.state; echo {point} >> {0}/order",
            log.display()
        );
        hooks[point] = match point {
            "startContainer" => {
                let echo = json!({"path": "/testinit", "args": ["testinit", "append", "/log/order", point]});
                // the state comes back as the failure of a later one
                json!([echo])
            }
            _ => json!([shell(&note)]),
        };
    }
    case.spec["hooks"] = hooks;
    let state = case.create().unwrap();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let seen = || lines(&fs::read_to_string(&order).unwrap());
    assert_eq!(seen(), POINTS[..3]);
    let theirs = fs::read_link(format!("/proc/{}/ns/mnt", state.pid)).unwrap();
    case.start().unwrap();
    case.wait(&state);
    assert_eq!(container::delete(&case.request.dir).unwrap(), None);
    let mut seen = seen();
    // the program and what follows its execution run side by side
    let program = seen.iter().position(|line| line == "program").unwrap();
    assert!(program == 4 || program == 5, "{seen:?}");
    seen.remove(program);
    assert_eq!(seen, POINTS);
    let host = fs::read_link("/proc/self/ns/mnt").unwrap();
    let bundle = case.request.bundle.display().to_string();
    for (point, status, pid, namespace, cwd) in [
        ("prestart", "creating", Some(state.pid), &host, &bundle),
        ("createRuntime", "creating", Some(state.pid), &host, &bundle),
        (
            "createContainer",
            "creating",
            Some(1),
            &theirs,
            &case.root().display().to_string(),
        ),
        ("poststart", "running", Some(state.pid), &host, &bundle),
        ("poststop", "stopped", None, &host, &bundle),
    ] {
        let read = |what: &str| fs::read_to_string(log.join(format!("{point}.{what}"))).unwrap();
        let mut want = json!({"ociVersion": "1.2.0", "id": case.request.id, "status": status, "bundle": bundle, "annotations": {"a": "b"}});
        if let Some(pid) = pid {
            want["pid"] = json!(pid);
        }
        let got: Value = serde_json::from_str(&read("state")).unwrap();
        assert_eq!(got, want, "{point}");
        assert_eq!(
            read("mnt").trim(),
            namespace.display().to_string(),
            "{point}"
        );
        assert_eq!(read("pwd").trim(), cwd, "{point}");
    }
    case.assert_gone();
}

fn failures() {
    for point in &POINTS[..3] {
        let (mut case, log) = logging(&["true"]);
        let gone = shell(&format!("cat > {}/gone", log.display()));
        case.spec["hooks"] = json!({"poststop": [gone]});
        case.spec["hooks"][point] = json!([{"path": "/bin/true"}, shell("echo why >&2; exit 4")]);
        let (code, text) = case.create().unwrap_err();
        assert_eq!(
            (code, text),
            (
                125,
                format!(
                    "error running {point} hook #1: /bin/sh: exit status 4, stdout: , stderr: why"
                )
            )
        );
        let state: Value = serde_json::from_slice(&fs::read(log.join("gone")).unwrap()).unwrap();
        assert_eq!(state["status"], "stopped");
        case.assert_gone();
    }
    let mut case = Case::new(&["echo", "never"]);
    case.spec["annotations"] = json!({"a": "b"});
    case.spec["process"]["env"] = json!(["FOO=bar"]);
    let show = json!({"path": "/testinit", "args": ["testinit", "cat", "--", "env", "--", "fds", "--", "umask", "--", "exit", "5"]});
    case.spec["hooks"] = json!({"startContainer": [show]});
    let state = case.create().unwrap();
    let (_, text) = case.start().unwrap_err();
    let want = "error running startContainer hook #0: /testinit: exit status 5, stdout: {\"ociVersion\":\"1.2.0\",";
    assert!(text.starts_with(want), "{text}");
    for want in [
        "\"status\":\"created\",\"pid\":1,",
        "}FOO=bar\nHOME=/\n",
        "\n0022, stderr:",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
    // standard streams and nothing else
    assert_eq!(text.lines().count(), 6, "{text}");
    assert_eq!(case.wait(&state), 1);
    assert_eq!(container::status(&state), Status::Stopped);
    assert_eq!(case.output(), "");
    container::delete(&case.request.dir).unwrap();
    case.assert_gone();
}

fn poststart_failure_kills() {
    let mut case = Case::new(&["sleep"]);
    case.spec["hooks"] = json!({"poststart": [shell("exit 6")]});
    let state = case.create().unwrap();
    let (_, text) = case.start().unwrap_err();
    let want = "error running poststart hook #0: /bin/sh: exit status 6, stdout: , stderr:";
    assert!(text.ends_with(want), "{text}");
    assert_eq!(case.wait(&state), 128 + libc::SIGKILL);
    container::delete(&case.request.dir).unwrap();
    case.assert_gone();
}

fn poststop_failure_warns() {
    let (mut case, log) = logging(&["true"]);
    let noted = shell(&format!("touch {}/second", log.display()));
    case.spec["hooks"] = json!({"poststop": [shell("exit 7"), noted]});
    let state = case.create().unwrap();
    case.start().unwrap();
    case.wait(&state);
    let warning = container::delete(&case.request.dir).unwrap().unwrap();
    assert_eq!(
        warning,
        "error running poststop hook #0: /bin/sh: exit status 7, stdout: , stderr: "
    );
    assert!(log.join("second").exists());
    // its record is gone, so the hooks run once
    assert_eq!(container::delete(&case.request.dir).unwrap(), None);
    case.assert_gone();
}

fn start_hooks_are_filtered() {
    for no_new_privileges in [false, true] {
        let mut case = Case::new(&["true"]);
        case.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        case.spec["hooks"] = json!({"startContainer": [{"path": "/testinit", "args": ["testinit", "mkdir", "/dev/shm/x"]}]});
        let rules = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}]);
        case.spec["linux"]["seccomp"] =
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
        let state = case.create().unwrap();
        let (_, text) = case.start().unwrap_err();
        assert!(text.contains("signal 31 (bad system call"), "{text}");
        case.wait(&state);
    }
}

fn wrong_ones() {
    for (hook, want) in [
        (
            json!({"path": "bin/true"}),
            "path: bin/true is not absolute",
        ),
        (
            json!({"path": "/x", "timeout": 0}),
            "timeout: 0 is not above zero",
        ),
        (
            json!({"path": "/x", "timeout": -1}),
            "timeout: -1 is not above zero",
        ),
        (
            json!({"path": "/x", "env": ["=x"]}),
            "env: \"=x\" is not of the form KEY=value",
        ),
        (
            json!({"path": "/x", "args": ["a\0"]}),
            "args: \"a\\0\" holds a zero byte",
        ),
    ] {
        for point in POINTS {
            let mut case = Case::new(&["true"]);
            case.spec["hooks"] = json!({point: [{"path": "/bin/true"}, hook.clone()]});
            let (code, text) = case.create().unwrap_err();
            let config = case.request.bundle.join("config.json");
            let want = format!("{}: hooks.{point}[1].{want}", config.display());
            assert_eq!((code, text), (125, want));
            case.assert_gone();
        }
    }
}
