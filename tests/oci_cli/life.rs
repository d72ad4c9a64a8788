//! From create to delete: exit codes, exec, kill, update, and what is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::{Value, json};

use super::support::{Case, until};

const SLEEP: &str = "trap 'exit 5' TERM; while :; do sleep 0.1; done";

#[test]
fn exit_codes_of_run() {
    for (script, want) in [
        ("exit 0", 0),
        ("exit 42", 42),
        ("kill -9 $$; sleep 1; exit 7", 7),
    ] {
        let case = Case::new(script);
        assert_eq!(case.oci(&["run", &case.id]).code, want, "{script}");
        case.assert_gone();
    }
    // a signal of its own does not end a first process, one from outside does
    let case = Case::new("echo up; sleep 100");
    let mut run = case
        .command(&["run", &case.id])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("a container", || {
        case.dir().join("state.json").exists() && case.status() == "running"
    });
    case.oci(&["kill", &case.id, "KILL"]).good();
    assert_eq!(run.wait().unwrap().code(), Some(137));
    case.assert_gone();
}

/// By a machine that lost power, or by another version: the others are there all the same, and with force it goes.
#[test]
fn a_record_that_cannot_be_read() {
    let case = Case::new(SLEEP);
    case.up();
    let state = case.dir().join("state.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, &text[..text.len() / 2]).unwrap();
    let listed = case.oci(&["list", "--quiet"]);
    assert!(listed.err.contains("state.json"), "{}", listed.err);
    assert_eq!((listed.code, &*listed.out), (0, ""));
    let said = case.oci(&["delete", &case.id]).failed(1);
    assert!(said.contains("state.json"), "{said}");
    let removed = case.oci(&["delete", "--force", &case.id]);
    let expected = "removed by what its creation was asked for";
    assert!(removed.err.contains(expected), "{}", removed.err);
    assert_eq!((removed.code, &*removed.out), (0, ""));
    case.assert_gone();
}

#[test]
fn a_wrong_bundle_leaves_nothing() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 6] = [
        (
            |spec| spec["process"]["args"] = json!(["/none"]),
            "exec \"/none\": no such file or directory",
        ),
        (
            |spec| spec["process"]["args"] = json!(["frob"]),
            "exec \"frob\": executable file not found in $PATH",
        ),
        (
            |spec| spec["process"]["args"] = json!(["/bin"]),
            "exec \"/bin\": ",
        ),
        (
            |spec| spec["process"]["cwd"] = json!("x"),
            "process.cwd: x is not absolute",
        ),
        (|spec| spec["root"]["path"] = json!("none"), "none"),
        (
            |spec| spec["process"]["capabilities"]["bounding"] = json!(["CAP_FROB"]),
            "CAP_FROB",
        ),
    ];
    for (change, want) in cases {
        let mut case = Case::new("exit 0");
        change(&mut case.spec);
        case.write();
        for command in ["create", "run"] {
            let said = case.oci(&[command, &case.id]).failed(1);
            assert!(said.contains(want), "{want}: {said}");
            case.assert_gone();
        }
    }
    let case = Case::new("exit 0");
    fs::remove_file(case.bundle().join("config.json")).unwrap();
    let said = case.oci(&["create", &case.id]).failed(1);
    assert!(
        said.contains("config.json: no such file or directory"),
        "{said}"
    );
    case.assert_gone();
}

#[test]
fn folders_are_closed_to_others() {
    let case = Case::new(SLEEP);
    case.create(&[]).good();
    for path in [case.root(), case.dir()] {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o700, "{}", path.display());
    }
    for entry in fs::read_dir(case.dir()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
    }
    let said = case.create(&[]).failed(1);
    assert_eq!(
        said,
        format!(
            "container with id {} exists in {}",
            case.id,
            case.dir().display()
        )
    );
}

#[test]
fn what_a_status_allows() {
    let case = Case::new("trap 'echo term; exit' TERM; echo up; while :; do sleep 0.1; done");
    let id = case.id.as_str();
    case.create(&[]).good();
    case.oci(&["start", id]).good();
    assert_eq!(
        case.oci(&["start", id]).failed(1),
        format!("start container {id}: it is running, not created")
    );
    let refused = format!(
        "cannot delete container {id} that is not stopped: it is running; end it with `kill`, or use --force"
    );
    assert_eq!(case.oci(&["delete", id]).failed(1), refused);
    assert_eq!(
        case.oci(&["resume", id]).failed(1),
        format!("resume container {id}: it is running")
    );
    case.oci(&["pause", id]).good();
    assert_eq!(
        case.oci(&["pause", id]).failed(1),
        format!("pause container {id}: it is paused")
    );
    let refused =
        format!("cannot exec in a paused container: resume {id} first, or use --ignore-paused");
    assert_eq!(case.oci(&["exec", id, "ls"]).failed(255), refused);
    // a frozen one is killed, too
    case.oci(&["kill", id, "SIGKILL"]).good();
    case.wait_for("stopped");
    assert_eq!(
        case.oci(&["kill", id]).failed(1),
        format!("send signal 15 to container {id}: container not running")
    );
    assert_eq!(
        case.oci(&["exec", id, "ls"]).failed(255),
        format!("cannot exec in a stopped container: {id} is not running")
    );
    assert_eq!(
        case.oci(&["start", id]).failed(1),
        format!("start container {id}: it is stopped, not created")
    );
    case.oci(&["delete", id]).good();
    case.assert_gone();
    // one that was never started
    case.create(&[]).good();
    case.oci(&["pause", id]).good();
    assert_eq!(
        case.oci(&["start", id]).failed(1),
        format!("start container {id}: it is paused")
    );
    case.oci(&["resume", id]).good();
    case.oci(&["delete", id]).good();
    case.assert_gone();
    // the program's trap takes the default signal
    case.up();
    until("the trap", || case.output() == "up\n");
    case.oci(&["kill", id]).good();
    case.wait_for("stopped");
    assert_eq!(case.output(), "up\nterm\n");
}

#[test]
fn exec_has_the_process_that_was_asked_for() {
    let case = Case::new(SLEEP);
    let id = case.id.as_str();
    case.up();
    assert_eq!(case.oci(&["exec", id, "ls", "-d", "/bin"]).good(), "/bin\n");
    assert_eq!(case.oci(&["exec", id, "--", "ls", "-d", "/"]).good(), "/\n");
    let words = [
        "exec",
        "-u",
        "5:6",
        "-g",
        "7",
        "-g",
        "8",
        "-e",
        "A=1",
        "--env",
        "B=2",
        id,
        "--cwd",
        "/bin",
        "sh",
        "-c",
        "id; echo $A$B; readlink /proc/self/cwd",
    ];
    assert_eq!(
        case.oci(&words).good(),
        "uid=5 gid=6 groups=7,8\n12\n/bin\n"
    );
    let status = |words: &[&str], key: &str| {
        let text = case
            .oci(&[&["exec"], words, &[id, "cat", "/proc/self/status"]].concat())
            .good();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(status(&[], "CapEff"), "0000000020000420");
    assert_eq!(status(&["-c", "CAP_CHOWN"], "CapEff"), "0000000020000421");
    assert_eq!(status(&[], "NoNewPrivs"), "1");
    assert_eq!(status(&["--no-new-privs=false"], "NoNewPrivs"), "0");
    for (words, code, want) in [
        (&["exec", id, "sh", "-c", "exit 9"][..], 9, ""),
        (&["exec", id, "sh", "-c", "kill -TERM $$"], 143, ""),
    ] {
        let told = case.oci(words);
        assert_eq!((told.code, &*told.err), (code, want), "{words:?}");
    }
    for (words, want) in [
        (&["exec", id][..], "exec needs a command, or --process"),
        (
            &["exec", id, "frob"],
            "exec \"frob\": executable file not found in $PATH",
        ),
        (
            &["exec", id, "/proc"],
            "exec \"/proc\": permission denied: is a directory",
        ),
        (
            &["exec", "-u", "x", id, "ls"],
            "--user: \"x\" is not a number from 0 to 4294967294",
        ),
        (
            &["exec", "-e", "A", id, "ls"],
            "--env: \"A\" is not NAME=VALUE",
        ),
        (
            &["exec", "-d", "-t", id, "ls"],
            "process.terminal without waiting for the process needs --console-socket",
        ),
        (
            &["exec", "--process", "/none", id],
            "read /none: no such file or directory",
        ),
        (
            &["exec", "--process", "/none", id, "ls"],
            "--process holds the command, ls is one too many",
        ),
    ] {
        assert_eq!(case.oci(words).failed(255), want, "{words:?}");
    }
    // what became of the bundle is no matter
    fs::remove_file(case.bundle().join("config.json")).unwrap();
    assert_eq!(case.oci(&["exec", id, "ls", "-d", "/bin"]).good(), "/bin\n");
}

#[test]
fn exec_in_a_paused_container_waits() {
    let case = Case::new(SLEEP);
    case.up();
    case.oci(&["pause", &case.id]).good();
    let exec = case
        .command(&["exec", "--ignore-paused", &case.id, "ls", "-d", "/bin"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // two processes: the first and the new one
    until("a second process", || {
        case.oci(&["ps", "-f", "json", &case.id])
            .good()
            .matches(',')
            .count()
            >= 1
    });
    case.oci(&["resume", &case.id]).good();
    assert_eq!(exec.wait_with_output().unwrap().stdout, b"/bin\n");
}

/// Without a pid namespace of its own, killing the first process leaves the others.
#[test]
fn all_processes_of_a_shared_pid_namespace_are_killed() {
    let mut case = Case::new("sleep 1000 & sleep 1000 & wait");
    let namespaces = case.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    case.write();
    let members = || -> Vec<i32> {
        serde_json::from_str(&case.oci(&["ps", "-f", "json", &case.id]).good()).unwrap()
    };
    for (all, first) in [(true, false), (false, true)] {
        case.up();
        until("three processes", || members().len() == 3);
        let words: &[&str] = if all {
            &["kill", "--all", &case.id, "KILL"]
        } else {
            &["kill", &case.id, "KILL"]
        };
        case.oci(words).good();
        until("nobody", || members().is_empty());
        assert!(all || first);
        case.oci(&["delete", &case.id]).good();
        case.assert_gone();
    }
}

#[test]
fn limits_are_changed() {
    let case = Case::new(SLEEP);
    let id = case.id.as_str();
    case.up();
    let limits = || -> Value {
        let line: Value =
            serde_json::from_str(&case.oci(&["events", "--stats", id]).good()).unwrap();
        // no limit is the largest number
        let memory = line["data"]["memory"]["usage"]["limit"].as_u64();
        json!([
            memory.filter(|limit| *limit < 1 << 60),
            line["data"]["pids"]["limit"]
        ])
    };
    assert_eq!(limits(), json!([null, null]));
    case.oci(&["update", "--memory", "64M", id, "--pids-limit", "50"])
        .good();
    assert_eq!(limits(), json!([64 << 20, 50]));
    case.oci(&["update", "--memory", "-1", "--pids-limit=-1", id])
        .good();
    assert_eq!(limits(), json!([null, null]));
    let file = case.temp.path().join("limits.json");
    fs::write(&file, json!({"pids": {"limit": 9}}).to_string()).unwrap();
    case.oci(&["update", "-r", file.to_str().unwrap(), id])
        .good();
    assert_eq!(limits(), json!([null, 9]));
    let told = case.oci(&["update", "--kernel-memory", "5", "--pids-limit", "8", id]);
    let warned = " level=warning msg=\"limits of kernel memory are ignored: the kernel has none any more\"\n";
    assert!(told.err.ends_with(warned), "{}", told.err);
    assert_eq!((told.code, limits()), (0, json!([null, 8])));
    fs::write(&file, "[1]").unwrap();
    assert!(
        case.oci(&["update", "-r", file.to_str().unwrap(), id])
            .failed(1)
            .starts_with("the limits to update: ")
    );
}

#[test]
fn running_out_of_memory_is_an_event() {
    let mut case = Case::new("sleep 1000");
    case.spec["linux"]["resources"]["memory"] = json!({"limit": 32 << 20});
    case.write();
    case.up();
    let events = case
        .command(&["events", "--interval", "100ms", &case.id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // it has counted before the first line
    std::thread::sleep(std::time::Duration::from_millis(300));
    // x grows until the kernel ends the shell
    let told = case.oci(&[
        "exec",
        &case.id,
        "sh",
        "-c",
        "x=0123456789; while :; do x=$x$x; done",
    ]);
    assert_eq!(told.code, 137, "{}", told.err);
    std::thread::sleep(std::time::Duration::from_millis(600));
    case.oci(&["kill", &case.id, "KILL"]).good();
    let text = String::from_utf8(events.wait_with_output().unwrap().stdout).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
    assert!(of("oom") >= 1 && of("stats") >= 1, "{text}");
    assert_eq!(
        lines.iter().find(|line| line["type"] == "oom"),
        Some(&json!({"type": "oom", "id": case.id}))
    );
}

#[test]
fn spec_is_a_container_that_runs() {
    let case = Case::new("exit 0");
    let path = case.bundle().join("config.json");
    assert_eq!(
        case.oci(&["spec"]).failed(1),
        "./config.json exists; remove it first"
    );
    fs::remove_file(&path).unwrap();
    case.oci(&["spec", "--rootless"]).good();
    let mut spec: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        spec["linux"]["uidMappings"],
        json!([{"containerID": 0, "hostID": 0, "size": 1}])
    );
    spec["process"]["args"] = json!(["/bin/sh", "-c", "id; exit 4"]);
    spec["process"]["terminal"] = json!(false);
    fs::write(&path, spec.to_string()).unwrap();
    let told = case.oci(&["run", &case.id]);
    assert_eq!(
        (told.code, &*told.out, &*told.err),
        (4, "uid=0 gid=0\n", "")
    );
    case.assert_gone();
}

/// A procfs without masks, the host's, would allow one in a user namespace (mount_namespaces(7)).
#[test]
fn a_root_without_pivot_root() {
    let mount =
        "busybox unshare -r -m -p -f busybox mount -t proc proc /sys 2>/dev/null; echo $?; ls /";
    let mut case = Case::new(mount);
    // user 0 of the container may not be mapped without CAP_SETFCAP (user_namespaces(7))
    case.spec["process"]["user"] = json!({"uid": 5, "gid": 5});
    case.write();
    let words = ["run", "--no-pivot", "--no-new-keyring", &case.id];
    assert_eq!(case.oci(&words).good(), "1\nbin\ndev\nproc\nsys\n");
    case.assert_gone();
    case.spec["linux"]["maskedPaths"] = json!([]);
    case.spec["linux"]["readonlyPaths"] = json!([]);
    case.write();
    assert_eq!(case.oci(&words).good(), "0\nbin\ndev\nproc\nsys\n");
    case.assert_gone();
}

/// A program that nobody could be told of does not run on.
#[test]
fn exec_that_cannot_tell_its_pid() {
    let case = Case::new(SLEEP);
    case.up();
    let words = [
        "exec",
        "-d",
        "--pid-file",
        "/nonexistent/pid",
        &case.id,
        "sleep",
        "1000",
    ];
    let said = case.oci(&words).failed(255);
    assert!(said.contains("/nonexistent/pid"), "{said}");
    let names = case.oci(&["ps", &case.id, "-o", "pid,args"]).good();
    assert!(!names.contains("sleep 1000"), "{names}");
}

#[test]
fn exec_where_nothing_is_the_containers_own() {
    let mut case = Case::new(SLEEP);
    case.spec["linux"] = json!({"namespaces": []});
    case.spec["hostname"] = Value::Null;
    case.spec["mounts"] = json!([]);
    case.spec["root"]["readonly"] = json!(false);
    case.write();
    case.up();
    assert_eq!(case.oci(&["exec", &case.id, "sh", "-c", "exit 9"]).code, 9);
    case.oci(&["delete", "--force", &case.id]).good();
    case.assert_gone();
}
