//! Several at once, and commands that are killed half-way.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::support::{Case, until};

const SLEEP: &str = "trap 'exit 5' TERM; while :; do sleep 0.1; done";

fn begin(case: &Case, words: &[&str]) -> Child {
    let mut command = case.command(words);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn ended(children: Vec<Child>) -> Vec<i32> {
    let code = |mut child: Child| child.wait().unwrap().code().unwrap_or(-1);
    let mut codes: Vec<i32> = children.into_iter().map(code).collect();
    codes.sort_unstable();
    codes
}

#[test]
fn one_of_several_creates_wins() {
    let case = Case::new(SLEEP);
    let all = (0..6)
        .map(|_| begin(&case, &["create", &case.id]))
        .collect();
    assert_eq!(ended(all), [0, 1, 1, 1, 1, 1]);
    assert_eq!(case.status(), "created");
}

#[test]
fn one_of_several_starts_wins() {
    let case = Case::new(SLEEP);
    case.create(&[]).good();
    let all = (0..6).map(|_| begin(&case, &["start", &case.id])).collect();
    assert_eq!(ended(all), [0, 1, 1, 1, 1, 1]);
    assert_eq!(case.status(), "running");
}

#[test]
fn several_deletes() {
    for (force, want) in [(true, [0; 6]), (false, [0, 1, 1, 1, 1, 1])] {
        let case = Case::new("exit 0");
        case.up();
        case.wait_for("stopped");
        let words: &[&str] = if force {
            &["delete", "--force", &case.id]
        } else {
            &["delete", &case.id]
        };
        let all = (0..6).map(|_| begin(&case, words)).collect();
        assert_eq!(ended(all), want, "force {force}");
        case.assert_gone();
    }
}

/// Whenever `create` is killed, `delete --force` leaves nothing, and the id can be used again.
#[test]
fn what_a_killed_create_left_is_deleted() {
    let case = Case::new(SLEEP);
    for step in 0..25 {
        let mut create = begin(&case, &["create", &case.id]);
        std::thread::sleep(Duration::from_millis(step));
        let _ = create.kill();
        let _ = create.wait();
        // half of it, all or nothing: told as what it is, never a crash
        let told = case.oci(&["state", &case.id]);
        assert!(
            told.code == 0 || told.err.ends_with("does not exist\n"),
            "{}",
            told.err
        );
        case.oci(&["delete", "--force", &case.id]).good();
        case.assert_gone();
    }
    case.up();
}

/// A `create` that hangs, here since nobody takes its terminal, is ended.
#[test]
fn delete_during_create() {
    let case = Case::new(SLEEP);
    let mut create = begin(&case, &["create", &case.id]);
    let pid = create.id();
    let signal = |signal| {
        let pidfd = sampan::sys::pidfd::open(pid as i32)?;
        sampan::sys::pidfd::send_signal(&pidfd, signal)
    };
    until("a folder", || case.dir().join("lock").exists());
    signal(libc::SIGSTOP).unwrap();
    let made = case.dir().join("state.json").exists();
    if !made {
        let told = case.oci(&["state", &case.id]).failed(1);
        assert!(told.ends_with("does not exist"), "{told}");
    }
    case.oci(&["delete", "--force", &case.id]).good();
    // one that was stopped before it had its lock is not ended, and finds its folder gone
    let _ = signal(libc::SIGCONT);
    assert!(made || !create.wait().unwrap().success());
    let _ = create.wait();
    case.assert_gone();
}

/// What somebody put into the folder of containers is not taken for one.
#[test]
fn strange_things_beside_containers() {
    let case = Case::new(SLEEP);
    case.up();
    fs::create_dir(case.root().join("empty")).unwrap();
    fs::write(case.root().join("file"), "").unwrap();
    assert_eq!(case.oci(&["list", "-q"]).good(), format!("{}\n", case.id));
    for id in ["empty", "file"] {
        let said = case.oci(&["start", id]).failed(1);
        assert_eq!(said, format!("container {id:?} does not exist"));
    }
    assert!(
        case.oci(&["create", "empty"])
            .failed(1)
            .starts_with("container with id empty exists")
    );
    case.oci(&["delete", "--force", "empty"]).good();
    assert!(!case.root().join("empty").exists());
}

/// Whoever ends a step by killing what it sees (Slurm) sees `run`, and waits for its pipes.
#[test]
fn a_run_that_is_killed_leaves_nothing_running() {
    for told in [false, true] {
        let mut case = Case::new(SLEEP);
        case.spec["process"]["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
        case.write();
        let pid_file = case.temp.path().join("pid");
        let mut words = vec!["run", &case.id];
        if told {
            words.extend(["--pid-file", pid_file.to_str().unwrap()]);
        }
        let mut run = begin(&case, &words);
        // there is no state before there is a container
        until("it runs", || {
            let told = case.oci(&["state", &case.id]);
            told.code == 0 && told.out.contains("\"running\"")
        });
        run.kill().unwrap();
        run.wait().unwrap();
        case.wait_for("stopped");
        case.oci(&["delete", &case.id]).good();
        case.assert_gone();
    }
}
