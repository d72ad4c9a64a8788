//! What only a host with every controller on the unified hierarchy can show: ignored elsewhere, run by `make test-vm`.

use std::fs;
use std::path::PathBuf;

use sampan::cgroup::{Cgroup, Error};

use super::{Fresh, MIB, read, run_in, status_in, until};

/// A cgroup on a host without v1 controllers, and its folder.
fn fresh(name: &str) -> (Fresh, PathBuf) {
    let Cgroup::V2(parent) = Cgroup::own().unwrap() else {
        panic!("needs cgroup v2 with all controllers");
    };
    let cgroup = Fresh::new(Cgroup::V2(parent), name);
    let path = cgroup.folders().remove(0);
    (cgroup, path)
}

#[test]
#[ignore = "needs cgroup v2 with all controllers: make test-vm"]
fn values_are_in_the_files() {
    let (cgroup, path) = fresh("values");
    for (json, file, value) in [
        (
            r#"{"memory":{"limit":67108864,"swap":100663296,"reservation":1048576}}"#,
            "memory.max memory.swap.max memory.low",
            "67108864 33554432 1048576",
        ),
        (
            r#"{"memory":{"limit":-1,"swap":-1}}"#,
            "memory.max memory.swap.max",
            "max max",
        ),
        (
            r#"{"unified":{"memory.high":"8388608","memory.oom.group":"1"}}"#,
            "memory.high memory.oom.group",
            "8388608 1",
        ),
        (
            r#"{"cpu":{"quota":50000,"period":200000,"burst":10000,"shares":1024}}"#,
            "cpu.max cpu.max.burst cpu.weight",
            "50000 200000 10000 100",
        ),
        // a limit below the burst: the order matters
        (
            r#"{"cpu":{"quota":5000,"burst":1000}}"#,
            "cpu.max cpu.max.burst",
            "5000 200000 1000",
        ),
        (
            r#"{"cpu":{"quota":-1,"burst":0,"period":100000}}"#,
            "cpu.max cpu.max.burst",
            "max 100000 0",
        ),
        (r#"{"cpu":{"idle":1}}"#, "cpu.idle", "1"),
        (
            r#"{"cpu":{"cpus":"0","mems":"0"}}"#,
            "cpuset.cpus cpuset.mems cpuset.cpus.effective",
            "0 0 0",
        ),
        (r#"{"pids":{"limit":7}}"#, "pids.max", "7"),
        (r#"{"pids":{"limit":-1}}"#, "pids.max", "max"),
        (
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
            "hugetlb.2MB.max",
            "4194304",
        ),
        (
            r#"{"blockIO":{"weight":100}}"#,
            "io.weight io.bfq.weight",
            "default 910|default 100",
        ),
    ] {
        cgroup.apply(json).unwrap();
        let found: Vec<String> = file
            .split(' ')
            .filter(|name| path.join(name).exists())
            .map(|name| read(&path, name))
            .collect();
        if let Some((weight, bfq)) = value.split_once('|') {
            assert!(found.iter().any(|v| v == weight || v == bfq), "{found:?}");
        } else {
            assert_eq!(found.join(" "), value, "{json}");
        }
    }
}

#[test]
#[ignore = "needs cgroup v2 with all controllers: make test-vm"]
fn io_limits_of_a_device() {
    let (cgroup, path) = fresh("io");
    // any whole disk
    let disk = fs::read_dir("/sys/block").unwrap().next();
    let disk = disk.expect("needs a block device").unwrap();
    let numbers = read(&disk.path(), "dev");
    let (major, minor) = numbers.split_once(':').unwrap();
    let rate = |rate: u64| format!(r#"[{{"major":{major},"minor":{minor},"rate":{rate}}}]"#);
    cgroup
        .apply(&format!(
            r#"{{"blockIO":{{"throttleReadBpsDevice":{},"throttleWriteBpsDevice":{},"throttleWriteIOPSDevice":{}}}}}"#,
            rate(MIB),
            rate(2 * MIB),
            rate(50),
        ))
        .unwrap();
    let want = format!("{numbers} rbps=1048576 wbps=2097152 riops=max wiops=50");
    assert_eq!(read(&path, "io.max"), want);
}

#[test]
#[ignore = "needs cgroup v2 with all controllers: make test-vm"]
fn unknown_values_are_told_with_their_file() {
    let (cgroup, path) = fresh("unknown");
    let folder = path.display();
    for (json, want) in [
        (
            r#"{"cpu":{"cpus":"4000"}}"#,
            format!("write \"4000\" to {folder}/cpuset.cpus"),
        ),
        (
            r#"{"unified":{"memory.nonsense":"1"}}"#,
            format!("write \"1\" to {folder}/memory.nonsense"),
        ),
        (
            r#"{"memory":{"swappiness":5}}"#,
            "linux.resources.memory.swappiness: ".to_owned(),
        ),
    ] {
        let text = cgroup.apply(json).unwrap_err().to_string();
        assert!(text.starts_with(&want), "{text}");
    }
}

#[test]
#[ignore = "needs cgroup v2 with all controllers: make test-vm"]
fn pids_of_the_parent_hold_for_the_sum() {
    let (parent, path) = fresh("pidsum");
    parent.apply(r#"{"pids":{"limit":6}}"#).unwrap();
    let (first, second) = (parent.0.child("a"), parent.0.child("b"));
    first.create().unwrap();
    second.create().unwrap();
    let mut sleeper = run_in(&first, "sleep 1000 & sleep 1000 & sleep 1000 & wait");
    until("it sleeps", || first.processes().unwrap().len() == 4);
    // two are left for the shell and its first child
    let status = status_in(&second, "sleep 1000 & sleep 1000 & sleep 1000 &");
    assert!(!status.success());
    assert!(!read(&path.join("b"), "pids.events").ends_with(" 0"));
    parent.0.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
#[ignore = "needs cgroup v2 with all controllers: make test-vm"]
fn a_tree_is_killed_as_one_although_parts_are_frozen() {
    let (cgroup, path) = fresh("tree");
    assert!(path.join("cgroup.kill").exists());
    let names = ["a", "a/b", "c/d/e"];
    let mut children = Vec::new();
    for name in names {
        let child = cgroup.0.child(name);
        child.create().unwrap();
        // only leaves have members
        if name != "a" {
            children.push(run_in(&child, "sleep 1000 & wait"));
            until("both are there", || child.processes().unwrap().len() == 2);
        }
    }
    cgroup.0.child("c").freeze(true).unwrap();
    assert!(read(&path.join("c/d/e"), "cgroup.events").contains("frozen 1"));
    assert_eq!(cgroup.0.processes().unwrap().len(), 4);
    cgroup.0.kill().unwrap();
    for mut child in children {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
    cgroup.0.remove().unwrap();
    assert!(!path.exists());
}

/// Threaded controllers could be switched on beside processes, and would spoil the cgroup for all others.
#[test]
#[ignore = "needs cgroup v2 with all controllers: make test-vm"]
fn a_parent_with_members_is_left_as_it_is() {
    let (cgroup, path) = fresh("members");
    let mut other = run_in(&cgroup.0, "exec sleep 1000");
    let child = cgroup.0.child("web");
    child.create().unwrap();
    assert_eq!(read(&path, "cgroup.subtree_control"), "");
    assert_eq!(read(&path, "cgroup.type"), "domain");
    assert_eq!(read(&path.join("web"), "cgroup.type"), "domain");
    for json in [r#"{"pids":{"limit":5}}"#, r#"{"memory":{"limit":4194304}}"#] {
        let error = child.apply(&serde_json::from_str(json).unwrap());
        let error = error.unwrap_err();
        assert!(
            matches!(&error, Error::Controller { why, .. }
            if why.contains(&format!("processes {} are in that cgroup", other.id()))
                && why.contains("--cgroup-parent")),
            "{error}"
        );
    }
    assert_eq!(read(&path, "cgroup.type"), "domain");
    // without limits it serves
    assert!(status_in(&child, "true").success());
    other.kill().unwrap();
    other.wait().unwrap();
    child.create().unwrap();
    child
        .apply(&serde_json::from_str(r#"{"pids":{"limit":5}}"#).unwrap())
        .unwrap();
    assert_eq!(read(&path.join("web"), "pids.max"), "5");
}

/// As the launcher of a pod in its task's cgroup: in nobody's way but its own.
#[test]
#[ignore = "needs cgroup v2 with all controllers: make test-vm"]
fn the_caller_steps_aside_with_every_controller() {
    let (cgroup, path) = fresh("aside");
    let own: i32 = std::process::id().try_into().unwrap();
    let home = Cgroup::own().unwrap();
    cgroup.0.attach(own).unwrap();
    assert_eq!(Cgroup::own().unwrap(), cgroup.0);
    let child = cgroup.0.child("pod/web");
    child.create().unwrap();
    assert_eq!(
        read(&path.join("pod/web"), "cgroup.controllers"),
        read(&path, "cgroup.controllers")
    );
    assert_eq!(
        read(&path.join("sampan-self"), "cgroup.procs"),
        own.to_string()
    );
    assert_eq!(Cgroup::own().unwrap(), cgroup.0);
    home.attach(own).unwrap();
}

/// A subtree that an ordinary user was given serves him, limits included; anything else does not.
#[test]
#[ignore = "needs cgroup v2 with all controllers: make test-vm"]
fn a_delegated_subtree_serves_its_user() {
    use std::os::unix::process::CommandExt;
    const USER: u32 = 4711;
    const INSIDE: &str = "SAMPAN_TEST_AS_USER";
    if std::env::var_os(INSIDE).is_some() {
        return as_user();
    }
    let (cgroup, path) = fresh("delegated");
    let home = cgroup.0.child("home");
    home.create().unwrap();
    cgroup.0.give_to(USER).unwrap();
    home.give_to(USER).unwrap();
    // the parent hands on what it has while root may
    for name in ["memory", "pids"] {
        fs::write(path.join("cgroup.subtree_control"), format!("+{name}")).unwrap();
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "v2::a_delegated_subtree_serves_its_user"])
        .args(["--nocapture", "--include-ignored"])
        .env(INSIDE, &path)
        .uid(USER)
        .gid(USER);
    // moved in by root: the user could not leave the cgroup where he comes from
    let own = std::process::id().cast_signed();
    let before = Cgroup::own().unwrap();
    home.attach(own).unwrap();
    let status = command.status();
    before.attach(own).unwrap();
    let status = status.unwrap();
    assert!(status.success());
}

/// What the user does, in the leaf `home` of his subtree.
fn as_user() {
    let limits =
        serde_json::from_str(r#"{"pids":{"limit":5},"memory":{"limit":33554432}}"#).unwrap();
    let mine = Cgroup::for_container(None, false, "box").unwrap();
    let top = PathBuf::from(std::env::var_os("SAMPAN_TEST_AS_USER").unwrap());
    assert_eq!(mine, Cgroup::V2(top.join("box")));
    mine.prepare().unwrap();
    mine.apply(&limits).unwrap();
    assert_eq!(read(&top.join("box"), "pids.max"), "5");
    assert_eq!(read(&top.join("box"), "memory.max"), "33554432");
    mine.destroy().unwrap();
    let elsewhere =
        Cgroup::for_container(Some(std::path::Path::new("/box")), false, "box").unwrap();
    assert!(
        matches!(elsewhere, Cgroup::Unlimited { .. }),
        "{elsewhere:?}"
    );
    elsewhere.prepare().unwrap();
    assert!(matches!(
        elsewhere.apply(&limits),
        Err(Error::Controller { .. })
    ));
    assert_eq!(elsewhere.warnings(None).len(), 1);
}
