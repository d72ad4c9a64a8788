//! Further processes in a container.

use std::fs;

use sampan::cgroup::Cgroup;
use sampan::container;
use serde_json::{Value, json};

use crate::Test;
use crate::common::Case;

pub const TESTS: &[Test] = &[
    (
        "exec::is_in_everything_of_the_container",
        is_in_everything_of_the_container,
    ),
    ("exec::tells_failures_apart", tells_failures_apart),
    ("exec::terminal", terminal),
    (
        "exec::beside_a_first_process_that_left_the_cgroups_root",
        beside_a_first_process_that_left_the_cgroups_root,
    ),
    ("exec::user_namespace", user_namespace),
];

fn process(args: &[&str]) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/"], "cwd": "/"})
}

fn is_in_everything_of_the_container() {
    let case = Case::new(&["sleep"]);
    let state = case.create().unwrap();
    case.start().unwrap();
    for (args, want) in [
        (vec!["/testinit", "hostname"], (0, "boat\n".to_owned())),
        (vec!["testinit", "exit", "9"], (9, String::new())),
        (vec!["testinit", "signal-self", "15"], (143, String::new())),
        (
            vec!["testinit", "cat", "/proc/1/comm"],
            (0, "testinit\n".to_owned()),
        ),
    ] {
        assert_eq!(case.exec(&process(&args)), want);
    }
    for kind in ["mnt", "uts", "ipc", "pid", "net", "cgroup", "user"] {
        let link = fs::read_link(format!("/proc/{}/ns/{kind}", state.pid)).unwrap();
        let path = format!("/proc/self/ns/{kind}");
        assert_eq!(
            case.exec(&process(&["testinit", "readlink", &path])),
            (0, format!("{}\n", link.display()))
        );
    }
    let (_, fds) = case.exec(&process(&["testinit", "fds"]));
    assert_eq!(fds.lines().count(), 3, "{fds}");
    let (_, caps) = case.exec(&process(&["testinit", "caps"]));
    // the container's own
    assert!(
        caps.contains("CapBnd:\t00000000a80425fb\n") && caps.contains("NoNewPrivs:\t1\n"),
        "{caps}"
    );
    let mut other = process(&["testinit", "id", "--", "pwd", "--", "caps"]);
    other["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [3]});
    other["cwd"] = json!("/dev");
    other["capabilities"] = json!({});
    let (_, text) = case.exec(&other);
    assert!(
        text.starts_with("uid=7,7,7 gid=8,8,8 groups=3\n/dev\n"),
        "{text}"
    );
    assert!(text.contains("CapBnd:\t0000000000000000\n"), "{text}");
    let (_, groups) = case.exec(&process(&["testinit", "cgroup"]));
    assert!(
        groups
            .lines()
            .all(|line| line.ends_with(":/") || line.contains("::/")),
        "{groups}"
    );
    container::delete(&case.request.dir).unwrap();
    case.wait(&state);
    case.assert_gone();
}

fn tells_failures_apart() {
    let case = Case::new(&["sleep"]);
    let state = case.create().unwrap();
    fs::write(case.root().join("plain"), "").unwrap();
    // in a container that was not started yet, too
    assert_eq!(
        case.exec(&process(&["testinit", "echo", "early"])),
        (0, "early\n".to_owned())
    );
    case.start().unwrap();
    let mut nowhere = process(&["testinit", "pwd"]);
    nowhere["cwd"] = json!("/missing");
    for (process, code, want) in [
        (
            process(&["missing"]),
            127,
            "exec \"missing\": executable file not found in $PATH\n",
        ),
        (
            process(&["/plain"]),
            126,
            "exec \"/plain\": Permission denied (os error 13)\n",
        ),
        (
            nowhere,
            125,
            "enter the working directory /missing: No such file or directory",
        ),
    ] {
        let (got, text) = case.exec(&process);
        assert_eq!(got, code, "{text}");
        assert!(text.contains(want), "{text}");
    }
    case.request.cgroup.freeze(true).unwrap();
    let (code, text) = case.exec(&process(&["testinit"]));
    assert!(code == 125 && text.contains("it is paused"), "{text}");
    container::delete(&case.request.dir).unwrap();
    case.wait(&state);
    case.assert_gone();
}

fn terminal() {
    let case = Case::new(&["sleep"]);
    let state = case.create().unwrap();
    case.start().unwrap();
    let mut wanted = process(&["testinit", "tty"]);
    wanted["terminal"] = json!(true);
    wanted["consoleSize"] = json!({"height": 20, "width": 70});
    assert_eq!(case.exec(&wanted).0, 0);
    let text = fs::read_to_string(case.request.dir.join("console")).unwrap();
    // what it prints goes to no terminal: without carriage returns
    assert_eq!(
        text,
        "controlling true\n0 /dev/pts/0\n1 /dev/pts/0\n2 /dev/pts/0\nsize 70x20\n"
    );
    container::delete(&case.request.dir).unwrap();
    case.wait(&state);
}

fn user_namespace() {
    let mut case = Case::new(&["sleep"]);
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    case.spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    case.spec["linux"]["uidMappings"] = maps.clone();
    case.spec["linux"]["gidMappings"] = maps;
    std::os::unix::fs::chown(case.root(), Some(100_000), Some(100_000)).unwrap();
    let state = case.create().unwrap();
    case.start().unwrap();
    assert_eq!(
        case.exec(&process(&["testinit", "id"])),
        (0, "uid=0,0,0 gid=0,0,0 groups=\n".to_owned())
    );
    container::delete(&case.request.dir).unwrap();
    case.wait(&state);
}

/// Whoever manages cgroups of its own (systemd, another engine) has to leave the root of its own (cgroup-v2.rst, "No Internal Process
/// Constraint"), and nobody can enter it any more.
fn beside_a_first_process_that_left_the_cgroups_root() {
    let case = Case::new(&["sleep"]);
    let state = case.create().unwrap();
    case.start().unwrap();
    let unified = match &state.cgroup {
        Cgroup::V2(path) => path,
        Cgroup::V1 { unified, .. } => unified.as_ref().unwrap(),
        other => panic!("{other:?}"),
    };
    let inner = unified.join("deep/inner");
    fs::create_dir_all(&inner).unwrap();
    fs::write(inner.join("cgroup.procs"), state.pid.to_string()).unwrap();
    let available = fs::read_to_string(unified.join("cgroup.controllers")).unwrap();
    let controller = available.split_whitespace().next().unwrap();
    fs::write(
        unified.join("cgroup.subtree_control"),
        format!("+{controller}"),
    )
    .unwrap();
    let (code, text) = case.exec(&process(&["testinit", "cat", "/proc/self/cgroup"]));
    assert_eq!(code, 0, "{text}");
    assert!(text.lines().any(|line| line == "0::/deep/inner"), "{text}");
}
