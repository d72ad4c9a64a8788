//! Several at once, and commands that are killed half-way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
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

/// One that is killed while its child sets itself up, with the word already sent that lets the child go on, takes the child with it: the
/// signal that a parent's death sends is lost when ids change.
#[test]
fn a_run_that_is_killed_early_runs_nothing() {
    let mut case = Case::new("echo ran > /ran; sleep 100");
    case.spec["root"]["readonly"] = serde_json::json!(false);
    let linux = &mut case.spec["linux"];
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.push(serde_json::json!({"type": "user"}));
    let ids = serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    linux["uidMappings"] = ids.clone();
    linux["gidMappings"] = ids;
    case.write();
    let rootfs = case.bundle().join("rootfs");
    std::os::unix::fs::chown(&rootfs, Some(100_000), Some(100_000)).unwrap();
    for folder in [case.temp.path(), &case.bundle()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // the child's first change of ids takes as long as the test needs
    let log = case.temp.path().join("strace");
    let run = case.command(&["run", &case.id]);
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-e", "trace=setresuid,execve,execveat,exit_group"])
        .args(["-e", "inject=setresuid:delay_exit=3000000:when=1", "-o"])
        .arg(&log)
        .args(["-a0", "--"])
        .arg(run.get_program());
    // as the program that is called by another name
    strace.arg("oci").args(run.get_args());
    strace.current_dir(case.bundle()).stdin(Stdio::null());
    let mut strace = strace.spawn().unwrap();
    let seen = || fs::read_to_string(&log).unwrap_or_default();
    until("a change of ids", || seen().contains("setresuid"));
    let pid: i32 = seen().split_whitespace().next().unwrap().parse().unwrap();
    let pidfd = sampan::sys::pidfd::open(pid).unwrap();
    sampan::sys::pidfd::send_signal(&pidfd, libc::SIGKILL).unwrap();
    // it ends with the last one of those it follows
    strace.wait().unwrap();
    assert!(!rootfs.join("ran").exists());
    case.oci(&["delete", "--force", &case.id]).good();
    case.assert_gone();
}

/// Processes of a cgroup that turns out to be in use, or that was not looked at because something failed before, are somebody's.
#[test]
fn strangers_in_the_cgroup_live() {
    let mut case = Case::new(SLEEP);
    let own = sampan::cgroup::Cgroup::own().unwrap();
    let name = format!("{}-theirs", case.id);
    let theirs = own.child(&name);
    // in one hierarchy alone, where there are several
    let folders = theirs.folders();
    let folder = folders
        .iter()
        .find(|path| path.to_string_lossy().contains("memory"));
    let folder = folder.unwrap_or(&folders[0]);
    fs::create_dir(folder).unwrap();
    let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(folder.join("cgroup.procs"), stranger.id().to_string()).unwrap();
    case.spec["linux"]["cgroupsPath"] = serde_json::json!(name);
    case.write();
    let said = case.create(&[]).failed(1);
    assert!(said.contains("is not empty: 1 process"), "{said}");
    for namespace in case.spec["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "network" {
            namespace["path"] = serde_json::json!("/nonexistent");
        }
    }
    case.write();
    case.create(&[]).failed(1);
    assert_eq!(stranger.try_wait().unwrap(), None);
    assert!(!case.dir().exists());
    // nor of one that was killed before it had looked
    fs::create_dir_all(case.dir()).unwrap();
    let request = serde_json::json!({
        "id": case.id, "bundle": case.bundle(), "dir": case.dir(), "rootfs": "bundle",
        "cgroup": theirs, "console_socket": null, "preserve_fds": 0, "keep_keyring": false,
        "no_pivot": false, "at_once": false, "dies_with_parent": false,
    });
    fs::write(case.dir().join("create.json"), request.to_string()).unwrap();
    case.oci(&["delete", "--force", &case.id]).good();
    assert_eq!(stranger.try_wait().unwrap(), None);
    assert!(!case.dir().exists());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    fs::remove_dir(folder).unwrap();
}

/// What the hooks of a killed `create` made is left to those that follow a container's end.
#[test]
fn hooks_follow_a_killed_create() {
    let mut case = Case::new(SLEEP);
    let (begun, stopped) = (
        case.temp.path().join("begun"),
        case.temp.path().join("stopped"),
    );
    let hook =
        |script: String| serde_json::json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    case.spec["hooks"] = serde_json::json!({
        "createRuntime": hook(format!("cat > /dev/null; echo $$ > {}; exec sleep 1000", begun.display())),
        "poststop": hook(format!("cat > {}", stopped.display())),
    });
    case.write();
    let mut create = begin(&case, &["create", &case.id]);
    let pid = || fs::read_to_string(&begun).ok()?.trim().parse().ok();
    until("a hook", || pid().is_some());
    create.kill().unwrap();
    create.wait().unwrap();
    let hook = sampan::sys::pidfd::open(pid().unwrap()).unwrap();
    sampan::sys::pidfd::send_signal(&hook, libc::SIGKILL).unwrap();
    case.oci(&["delete", "--force", &case.id]).good();
    case.assert_gone();
    let state: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&stopped).unwrap()).unwrap();
    assert_eq!(
        (&state["id"], &state["status"]),
        (&case.id.clone().into(), &"stopped".into())
    );
}
