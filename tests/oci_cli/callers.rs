//! What the programs that call a runtime really send.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use super::support::{Case, until};

const SLEEP: &str = "trap 'exit 5' TERM; while :; do sleep 0.1; done";

/// podman and conmon.
#[test]
fn conmon() {
    let case = Case::new(SLEEP);
    let (bundle, pid) = (case.bundle(), case.temp.path().join("pid"));
    let (bundle, pid_file) = (bundle.to_str().unwrap(), pid.to_str().unwrap());
    case.create(&["--bundle", bundle, "--pid-file", pid_file])
        .good();
    assert_eq!(
        fs::read_to_string(&pid).unwrap(),
        case.state()["pid"].to_string()
    );
    case.oci(&["start", &case.id]).good();
    let process = case.temp.path().join("process.json");
    fs::write(
        &process,
        json!({"args": ["/bin/sleep", "100"], "cwd": "/", "user": {"uid": 0, "gid": 0}})
            .to_string(),
    )
    .unwrap();
    let exec_pid = case.temp.path().join("exec-pid");
    let told = case
        .command(&[
            "exec",
            "--pid-file",
            exec_pid.to_str().unwrap(),
            "--process",
            process.to_str().unwrap(),
            "--detach",
            &case.id,
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(told.success());
    let pids: Vec<i32> =
        serde_json::from_str(&case.oci(&["ps", "--format", "json", &case.id]).good()).unwrap();
    let exec_pid: i32 = fs::read_to_string(&exec_pid).unwrap().parse().unwrap();
    assert!(pids.contains(&exec_pid), "{pids:?} {exec_pid}");
    case.oci(&["pause", &case.id]).good();
    assert_eq!(case.status(), "paused");
    case.oci(&["resume", &case.id]).good();
    assert_eq!(case.status(), "running");
    case.oci(&["kill", &case.id, "9"]).good();
    case.wait_for("stopped");
    case.oci(&["delete", "--force", &case.id]).good();
    case.oci(&["delete", "--force", &case.id]).good();
    case.assert_gone();
}

/// containerd's shim and Docker.
#[test]
fn containerd() {
    let case = Case::new(SLEEP);
    let log = case.temp.path().join("log.json");
    let global = ["--log", log.to_str().unwrap(), "--log-format", "json"];
    let with = |words: &[&str]| case.oci(&[&global[..], words].concat());
    let (bundle, pid) = (case.bundle(), case.temp.path().join("pid"));
    let words = [
        "create",
        "--bundle",
        bundle.to_str().unwrap(),
        "--pid-file",
        pid.to_str().unwrap(),
        &case.id,
    ];
    let made = case
        .command(&[&global[..], &words].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
    with(&["start", &case.id]).good();
    let pids: Value =
        serde_json::from_str(&with(&["ps", "--format", "json", &case.id]).good()).unwrap();
    assert!(
        pids.as_array().unwrap().contains(&case.state()["pid"]),
        "{pids}"
    );
    let mut update = case
        .command(&[&global[..], &["update", "--resources", "-", &case.id]].concat())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let limits = json!({"pids": {"limit": 77}, "memory": {"limit": 64 << 20}, "cpu": {"shares": 0}, "devices": [{"allow": false}]});
    update
        .stdin
        .take()
        .unwrap()
        .write_all(limits.to_string().as_bytes())
        .unwrap();
    assert!(update.wait().unwrap().success());
    let stats: Value =
        serde_json::from_str(&with(&["events", "--stats", &case.id]).good()).unwrap();
    assert_eq!(
        (&stats["type"], &stats["id"]),
        (&json!("stats"), &json!(case.id))
    );
    assert_eq!(stats["data"]["pids"]["limit"], 77);
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 64 << 20);
    with(&["kill", "--all", &case.id, "9"]).good();
    case.wait_for("stopped");
    with(&["delete", &case.id]).good();
    assert!(!log.exists(), "{}", fs::read_to_string(&log).unwrap());
    with(&["delete", "--force", &case.id]).good();
    assert!(!log.exists(), "{}", fs::read_to_string(&log).unwrap());
    let said = with(&["delete", &case.id]).failed(1);
    let line: Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(
        line["msg"],
        format!("container {:?} does not exist", case.id)
    );
    assert_eq!(line["msg"], said.as_str());
    let time = line["time"].as_str().unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    assert_eq!(line.as_object().unwrap().len(), 3);
    case.assert_gone();
}

/// Slurm: options behind the id, and the output of `run` is the program's alone.
#[test]
fn slurm() {
    let case = Case::new("echo out; echo err >&2; exit 3");
    let told = case.oci(&["run", &case.id, "-b", case.bundle().to_str().unwrap()]);
    assert_eq!((told.code, &*told.out, &*told.err), (3, "out\n", "err\n"));
    case.assert_gone();
    let told = case.oci(&["state", &case.id]).failed(1);
    assert_eq!(told, format!("container {:?} does not exist", case.id));
    let again = Case::new("trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done");
    again.up();
    // a first process without a handler does not hear of it
    until("the trap", || again.output() == "up\n");
    again.oci(&["kill", "-a", &again.id]).good();
    again.wait_for("stopped");
    again.oci(&["kill", "-a", &again.id]).good();
    again.oci(&["delete", "--force", &again.id]).good();
    again.assert_gone();
}

/// The name in argv[0], as a path, and the command of `sampan`.
#[test]
fn names_of_the_program() {
    use std::process::Command;
    let temp = tempfile::tempdir().unwrap();
    let link = temp.path().join("sampan-oci");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sampan"), &link).unwrap();
    let told = |command: &mut Command| {
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let by_link = told(Command::new(&link).arg("--version"));
    assert_eq!(
        by_link,
        format!(
            "sampan-oci version {}\nspec: 1.3.0\n",
            env!("CARGO_PKG_VERSION")
        )
    );
    assert_eq!(told(Command::new(&link).arg("-v")), by_link);
    assert_eq!(
        told(Command::new(env!("CARGO_BIN_EXE_sampan")).args(["oci", "--version"])),
        by_link
    );
}

/// The fields of runtime-spec's state, no others but runc's.
#[test]
fn state_has_the_specified_form() {
    let mut case = Case::new("exit 0");
    case.spec["annotations"] = json!({"org.example.key": "value"});
    case.write();
    case.create(&[]).good();
    let state = case.state();
    let pid = state["pid"].as_i64().unwrap();
    assert!(pid > 1);
    let created = state["created"].as_str().unwrap();
    assert!(created.parse::<jiff::Timestamp>().is_ok(), "{created}");
    let mut want = json!({
        "ociVersion": "1.3.0",
        "id": case.id,
        "status": "created",
        "pid": pid,
        "bundle": case.bundle(),
        "rootfs": case.bundle().join("rootfs"),
        "created": created,
        "owner": "root",
        "annotations": {"org.example.key": "value"},
    });
    assert_eq!(state, want);
    case.oci(&["start", &case.id]).good();
    case.wait_for("stopped");
    want["status"] = json!("stopped");
    want["pid"] = json!(0);
    assert_eq!(case.state(), want);
}

/// What is printed as JSON and as a table.
#[test]
fn lists() {
    let case = Case::new(SLEEP);
    assert_eq!(case.oci(&["list", "-q"]).good(), "");
    assert_eq!(case.oci(&["list", "--format", "json"]).good(), "[]\n");
    case.up();
    assert_eq!(
        case.oci(&["list", "--quiet"]).good(),
        format!("{}\n", case.id)
    );
    let all: Value = serde_json::from_str(&case.oci(&["list", "-f", "json"]).good()).unwrap();
    assert_eq!(all, json!([case.state()]));
    let table = case.oci(&["list"]).good();
    let words: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[0],
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    );
    assert_eq!(
        words[1][..3],
        [&*case.id, &case.state()["pid"].to_string(), "running"]
    );
    let table = case.oci(&["ps", &case.id]).good();
    assert!(table.starts_with("UID "), "{table}");
    assert!(table.contains("/bin/sh -c"), "{table}");
    let table = case.oci(&["ps", &case.id, "-e", "-o", "pid,comm"]).good();
    let lines: Vec<&str> = table.lines().map(str::trim).collect();
    assert_eq!(lines[0], "PID COMMAND");
    let first = format!("{} sh", case.state()["pid"]);
    assert!(lines[1..].contains(&&*first), "{table}");
}

/// Wrong words.
#[test]
fn refusals() {
    let case = Case::new("exit 0");
    for (words, code, want) in [
        (
            &["frob"][..],
            1,
            "unknown command frob; `--help` lists the commands",
        ),
        (
            &["start"],
            1,
            "start: needs ID; `start --help` lists the options",
        ),
        (
            &["start", "a", "b"],
            1,
            "start: unexpected b; `start --help` lists the options",
        ),
        (
            &["start", "--frob", "a"],
            1,
            "start: unknown option --frob; `start --help` lists the options",
        ),
        (
            &["--log-format", "xml", "list"],
            1,
            "--log-format: \"xml\" is unknown, only text and json are",
        ),
        (
            &["list", "-f", "xml"],
            1,
            "--format: \"xml\" is unknown, only table and json are",
        ),
        (
            &["run", "a/b"],
            1,
            "container id \"a/b\" is invalid: letters, digits and _ + - . are allowed",
        ),
        (
            &["run", ".."],
            1,
            "container id \"..\" is invalid: letters, digits and _ + - . are allowed",
        ),
        (
            &["state", ""],
            1,
            "container id \"\" is invalid: letters, digits and _ + - . are allowed",
        ),
        (&["state", "none"], 1, "container \"none\" does not exist"),
        (&["start", "none"], 1, "container \"none\" does not exist"),
        (&["kill", "none"], 1, "container \"none\" does not exist"),
        (&["kill", "none", "FROB"], 1, "unknown signal \"FROB\""),
        (&["delete", "none"], 1, "container \"none\" does not exist"),
        (
            &["exec", "none", "ls"],
            255,
            "container \"none\" does not exist",
        ),
        (
            &["checkpoint", "none"],
            1,
            "checkpoint: is not supported: no container is stored or restored (CRIU)",
        ),
        (
            &["update", "--l3-cache-schema", "x", "none"],
            1,
            "--l3-cache-schema: Intel RDT is not supported",
        ),
        (
            &["update", "--memory", "1x", "none"],
            1,
            "--memory: \"1x\" is not a size in bytes",
        ),
    ] {
        assert_eq!(case.oci(words).failed(code), want, "{words:?}");
    }
    assert!(!case.dir().exists());
    assert!(case.oci(&["delete", "--force", "none"]).good().is_empty());
}
