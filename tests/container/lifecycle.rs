//! create, start, status, kill, delete, and what failures leave.

use std::fs;

use sampan::container::{self, Rootfs, Status};
use serde_json::json;

use crate::Test;
use crate::common::Case;

pub const TESTS: &[Test] = &[
    ("lifecycle::runs", runs),
    (
        "lifecycle::walks_through_the_states",
        walks_through_the_states,
    ),
    ("lifecycle::delete_kills", delete_kills),
    (
        "lifecycle::a_signal_ends_what_waits",
        a_signal_ends_what_waits,
    ),
    (
        "lifecycle::tells_missing_from_unusable_programs",
        tells_missing_from_unusable_programs,
    ),
    ("lifecycle::exec_fails_at_start", exec_fails_at_start),
    ("lifecycle::failure_leaves_nothing", failure_leaves_nothing),
    (
        "lifecycle::refuses_what_it_does_not_do",
        refuses_what_it_does_not_do,
    ),
    (
        "lifecycle::a_source_that_blocks_is_only_referred_to",
        a_source_that_blocks_is_only_referred_to,
    ),
    ("lifecycle::seals_itself", seals_itself),
];

fn runs() {
    let case = Case::new(&["echo", "hello"]);
    assert_eq!(case.good(), "hello\n");
    case.assert_gone();
    assert_eq!(Case::new(&["exit", "42"]).run().0, 42);
    // a later version, what it may have brought, and names that are empty
    let mut case = Case::new(&["echo", "later"]);
    case.spec["ociVersion"] = json!("1.9.0");
    case.spec["process"]["invented"] = json!({"later": [1]});
    case.spec["annotations"] = json!({"com.example.unknown": ""});
    case.spec["hostname"] = json!("");
    assert_eq!(case.good(), "later\n");
}

fn walks_through_the_states() {
    let case = Case::new(&["on-term", "7"]);
    let dir = &case.request.dir;
    assert_eq!(container::load(dir).unwrap(), None);
    let state = case.create().unwrap();
    assert_eq!(container::status(&state), Status::Created);
    assert_eq!(
        (state.version, &state.id, &state.dir),
        (1, &case.request.id, dir)
    );
    assert_eq!(case.request.cgroup.processes().unwrap(), [state.pid]);
    case.start().unwrap();
    assert_eq!(container::status(&state), Status::Running);
    let again = case.start().unwrap_err().1;
    assert!(again.ends_with("it is running, not created"), "{again}");
    case.request.cgroup.freeze(true).unwrap();
    assert_eq!(container::status(&state), Status::Paused);
    case.request.cgroup.freeze(false).unwrap();
    case.wait_for("ready\n");
    container::kill(dir, libc::SIGTERM, false).unwrap();
    assert_eq!(case.wait(&state), 7);
    assert_eq!(container::status(&state), Status::Stopped);
    assert!(
        container::kill(dir, libc::SIGTERM, false)
            .unwrap_err()
            .to_string()
            .ends_with("container not running")
    );
    container::kill(dir, libc::SIGTERM, true).unwrap();
    assert!(case.create().unwrap_err().1.contains("exists in"));
    container::delete(dir).unwrap();
    container::delete(dir).unwrap();
    case.assert_gone();
}

/// The first process of a pid namespace would not notice a signal that it has no handler for.
fn a_signal_ends_what_waits() {
    let case = Case::new(&["echo", "never"]);
    let state = case.create().unwrap();
    container::kill(&case.request.dir, libc::SIGTERM, false).unwrap();
    assert_eq!(case.wait(&state), 128 + libc::SIGTERM);
    assert_eq!(container::status(&state), Status::Stopped);
    assert_eq!(case.output(), "");
    container::delete(&case.request.dir).unwrap();
    case.assert_gone();
}

fn delete_kills() {
    for started in [false, true] {
        let case = Case::new(&["ignore-term"]);
        let state = case.create().unwrap();
        if started {
            case.start().unwrap();
        }
        container::delete(&case.request.dir).unwrap();
        assert_eq!(case.wait(&state), 128 + libc::SIGKILL);
        case.assert_gone();
    }
}

fn tells_missing_from_unusable_programs() {
    for (program, code, text) in [
        (
            "nothing",
            127,
            "exec \"nothing\": executable file not found in $PATH",
        ),
        (
            "/nothing",
            127,
            "exec \"/nothing\": No such file or directory (os error 2)",
        ),
        (
            "/plain",
            126,
            "exec \"/plain\": Permission denied (os error 13)",
        ),
        (
            "plain",
            126,
            "exec \"plain\": Permission denied (os error 13)",
        ),
        (
            "/proc",
            126,
            "exec \"/proc\": permission denied: is a directory",
        ),
    ] {
        let mut case = Case::new(&[]);
        case.spec["process"]["args"] = json!([program]);
        fs::write(case.root().join("plain"), "text").unwrap();
        assert_eq!(case.create().unwrap_err(), (code, text.to_owned()));
        case.assert_gone();
    }
    let mut case = Case::new(&[]);
    case.spec["process"]["args"] = json!(["testinit", "echo", "found"]);
    assert_eq!(case.good(), "found\n");
}

fn exec_fails_at_start() {
    use std::os::unix::fs::PermissionsExt;
    for (content, code) in [("#!/missing\n", 127), ("\u{7f}ELF nonsense", 126)] {
        let mut case = Case::new(&[]);
        case.spec["process"]["args"] = json!(["/script"]);
        let path = case.root().join("script");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let state = case.create().unwrap();
        let (got, text) = case.start().unwrap_err();
        assert_eq!(got, code, "{text}");
        assert!(text.starts_with("exec \"/script\": "), "{text}");
        assert_eq!(case.wait(&state), code);
        container::delete(&case.request.dir).unwrap();
        case.assert_gone();
    }
}

fn failure_leaves_nothing() {
    let bind = json!([{"destination": "/x", "type": "bind", "source": "/no/such/thing", "options": ["rbind"]}]);
    for (pointer, value, want) in [
        (
            "/mounts",
            bind,
            "open /no/such/thing to mount it on /x: No such file or directory",
        ),
        ("/root/path", json!("nowhere"), "nowhere"),
        ("/root", json!({}), "root.path: is missing"),
        ("/ociVersion", json!(""), "ociVersion: is missing"),
        (
            "/process/cwd",
            json!("/testinit"),
            "make /testinit in the root: a file is in the place of a folder",
        ),
        (
            "/linux/namespaces/1",
            json!({"type": "network", "path": "/no/ns"}),
            "open namespace /no/ns: No such file",
        ),
        (
            "/linux/namespaces/1",
            json!({"type": "network", "path": "/proc/self/ns/uts"}),
            "join namespace /proc/self/ns/uts: EINVAL",
        ),
        (
            "/linux/sysctl",
            json!({"net.no_such": "1"}),
            "set sysctl net/no_such: No such file",
        ),
        (
            "/linux/resources",
            json!({"unified": {"no.such": "1"}}),
            "set the limits",
        ),
        (
            "/process/oomScoreAdj",
            json!(5000),
            "oom_score_adj: Invalid argument",
        ),
    ] {
        let mut case = Case::new(&["true"]);
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let place = case.spec.pointer_mut(parent).unwrap();
        match key.parse::<usize>() {
            Ok(index) => place[index] = value,
            Err(_) => place[key] = value,
        }
        let (code, text) = case.create().unwrap_err();
        assert_eq!(code, 125, "{text}");
        assert!(text.contains(want), "{text}");
        case.assert_gone();
    }
    let mut case = Case::new(&["true"]);
    case.request.rootfs = Rootfs::Overlay {
        lower: vec!["/no/layer".into()],
        upper: case.temp.path().to_owned(),
        work: case.temp.path().to_owned(),
    };
    let (_, text) = case.create().unwrap_err();
    assert!(text.contains("/no/layer"), "{text}");
    case.assert_gone();
}

fn refuses_what_it_does_not_do() {
    for (pointer, value, want) in [
        (
            "/ociVersion",
            json!("2.0.0"),
            "ociVersion: 2.0.0 is not supported",
        ),
        (
            "/linux/intelRdt",
            json!({"closID": "x"}),
            "linux.intelRdt: is not supported",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]),
            "soft 2 is above hard 1",
        ),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": 1}}),
            "linux.timeOffsets: needs a time namespace",
        ),
        (
            "/linux/sysctl",
            json!({"vm.swappiness": "1"}),
            "vm.swappiness is not separate for a container",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "uts"}, {"type": "user"}]),
            "linux.namespaces: user: needs a mount namespace",
        ),
    ] {
        let mut case = Case::new(&["true"]);
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        case.spec.pointer_mut(parent).unwrap()[key] = value;
        let (code, text) = case.create().unwrap_err();
        assert_eq!(code, 125);
        assert!(text.contains(want), "{text}");
        case.assert_gone();
    }
}

fn a_source_that_blocks_is_only_referred_to() {
    let mut case = Case::new(&["true"]);
    let fifo = case.temp.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let entry =
        json!({"destination": "/fifo", "type": "bind", "source": fifo, "options": ["bind", "ro"]});
    case.spec["mounts"].as_array_mut().unwrap().push(entry);
    case.spec["process"]["args"] = json!(["/testinit", "stat", "/fifo"]);
    assert!(case.good().starts_with("fifo "));
}

fn seals_itself() {
    let output = std::process::Command::new("/proc/self/exe")
        .args(["internal", "sealed", "a b", "c"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // text file busy, which the kernel looks at first; the root of a mount of its own, which is read-only
    assert_eq!(text.trim_end(), "/ a b c Some(26)");
}
