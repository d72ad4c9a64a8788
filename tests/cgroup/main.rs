//! Cgroups with real processes. Needs root; makes folders of its own below the caller's cgroup and
//! removes them.

mod life;
mod systemd;
mod v2;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sampan::cgroup::{Cgroup, Error};

/// A cgroup that is gone when the test ends, however it ends.
struct Fresh(Cgroup);

impl Fresh {
    fn new(parent: Cgroup, name: &str) -> Fresh {
        let cgroup = parent.child(&format!("sampan-test-{}-{name}", std::process::id()));
        cgroup.create().unwrap();
        Fresh(cgroup)
    }

    fn below_own(name: &str) -> Fresh {
        Fresh::new(Cgroup::own().unwrap(), name)
    }

    fn apply(&self, json: &str) -> Result<(), Error> {
        self.0.apply(&serde_json::from_str(json).unwrap())
    }

    fn folders(&self) -> Vec<PathBuf> {
        self.0
            .folders()
            .iter()
            .map(|path| path.to_path_buf())
            .collect()
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let killed = self.0.kill();
        let removed = self.0.remove();
        if !std::thread::panicking() {
            killed.unwrap();
            removed.unwrap();
        }
    }
}

/// A shell that runs `script` once it has been put into `cgroup`.
fn run_in(cgroup: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", &format!("read go\n{script}")])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    cgroup.attach(child.id().try_into().unwrap()).unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child
}

fn status_in(cgroup: &Cgroup, script: &str) -> ExitStatus {
    run_in(cgroup, script).wait().unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The v2 mount of this host, whatever else there is.
fn unified() -> Option<Cgroup> {
    match Cgroup::own().unwrap() {
        Cgroup::V2(path) => Some(Cgroup::V2(path)),
        Cgroup::V1 { unified, .. } => unified.map(Cgroup::V2),
        other => panic!("{other:?}"),
    }
}

fn v1_only(cgroup: &Cgroup) -> Option<Cgroup> {
    match cgroup {
        Cgroup::V1 { controllers, .. } => Some(Cgroup::V1 {
            controllers: controllers.clone(),
            unified: None,
        }),
        _ => None,
    }
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name))
        .unwrap()
        .trim()
        .to_owned()
}

const MIB: u64 = 1 << 20;

#[test]
fn memory_hog_dies_inside_its_limit_and_is_counted() {
    let cgroup = Fresh::below_own("hog");
    cgroup
        .apply(r#"{"memory":{"limit":33554432,"swap":33554432}}"#)
        .unwrap();
    let stats = cgroup.0.stats().unwrap();
    assert_eq!(stats.memory_limit, Some(32 * MIB));
    assert_eq!(stats.oom_kills, Some(0));
    // tail keeps what it was asked for, and may not
    let mut child = run_in(
        &cgroup.0,
        "head -c 134217728 /dev/zero | exec tail -c 134217728 >/dev/null",
    );
    until("a kill is counted", || {
        cgroup.0.stats().unwrap().oom_kills >= Some(1)
    });
    assert!(!child.wait().unwrap().success());
    let peak = cgroup.0.stats().unwrap().memory_peak.unwrap();
    assert!(peak <= 32 * MIB, "{peak}");
}

#[test]
fn memory_limits_go_up_and_down() {
    let cgroup = Fresh::below_own("memory");
    for mib in [64, 256, 16, 128] {
        let limit = mib * MIB;
        cgroup
            .apply(&format!(
                r#"{{"memory":{{"limit":{limit},"swap":{}}}}}"#,
                2 * limit
            ))
            .unwrap();
        assert_eq!(cgroup.0.stats().unwrap().memory_limit, Some(limit));
    }
    cgroup.apply(r#"{"memory":{"limit":-1}}"#).unwrap();
    assert_eq!(cgroup.0.stats().unwrap().memory_limit, None);
}

#[test]
fn parents_limit_holds_for_the_sum() {
    let parent = Fresh::below_own("sum");
    parent
        .apply(r#"{"memory":{"limit":67108864,"swap":67108864}}"#)
        .unwrap();
    let children: Vec<Child> = ["a", "b"]
        .iter()
        .map(|name| {
            let child = parent.0.child(name);
            child.create().unwrap();
            // sleep never reads, so tail stays there with its 48 MiB
            run_in(
                &child,
                "head -c 50331648 /dev/zero | tail -c 50331648 | sleep 1000",
            )
        })
        .collect();
    until("one of the two is killed", || {
        parent.0.stats().unwrap().oom_kills >= Some(1)
    });
    let tree = parent.0.tree().unwrap();
    assert_eq!(
        tree.children
            .iter()
            .map(|c| c.name.as_str())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(tree.stats.memory_limit, Some(64 * MIB));
    assert_eq!(tree.children[0].stats.memory_limit, None);
    parent.0.kill().unwrap();
    for mut child in children {
        child.wait().unwrap();
    }
}

#[test]
fn pids_limit_stops_fork() {
    let cgroup = Fresh::below_own("pids");
    cgroup.apply(r#"{"pids":{"limit":5}}"#).unwrap();
    // a shell whose fork fails with EAGAIN gives up
    let status = status_in(&cgroup.0, "for i in 1 2 3 4 5 6 7; do sleep 1000 & done");
    assert!(!status.success());
    let stats = cgroup.0.stats().unwrap();
    assert_eq!((stats.pids_limit, stats.pids_current), (Some(5), Some(4)));
    assert_eq!(cgroup.0.processes().unwrap().len(), 4);
}

#[test]
fn cpu_values_are_in_the_files() {
    let cgroup = Fresh::below_own("cpu");
    cgroup
        .apply(r#"{"cpu":{"quota":50000,"period":100000,"shares":512,"cpus":"0","mems":"0"}}"#)
        .unwrap();
    let tree = cgroup.0.tree().unwrap();
    assert_eq!(tree.cpu_quota, Some((50_000, 100_000)));
    match &cgroup.0 {
        Cgroup::V2(path) => {
            assert_eq!(tree.cpu_weight, Some(59));
            assert_eq!(read(path, "cpuset.cpus"), "0");
        }
        Cgroup::V1 { controllers, .. } => {
            assert_eq!(tree.cpu_weight, Some(512));
            assert_eq!(read(&controllers["cpuset"], "cpuset.cpus"), "0");
        }
        other => panic!("{other:?}"),
    }
    // a child of a v1 cpuset can be entered at once
    let child = cgroup.0.child("inner");
    child.create().unwrap();
    assert!(status_in(&child, "true").success());
}

#[test]
fn frozen_means_stopped() {
    for cgroup in [Fresh::below_own("freeze")]
        .into_iter()
        .chain(unified().map(|parent| Fresh::new(parent, "freeze2")))
    {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        let script = format!(
            "while :; do i=$((i+1)); echo $i >>{}; done",
            count.display()
        );
        let mut child = run_in(&cgroup.0, &script);
        let length = || fs::metadata(&count).map_or(0, |file| file.len());
        until("it counts", || length() > 0);
        cgroup.0.freeze(true).unwrap();
        let frozen_at = length();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(length(), frozen_at);
        cgroup.0.freeze(false).unwrap();
        until("it goes on", || length() > frozen_at);
        // a frozen one dies too
        cgroup.0.freeze(true).unwrap();
        cgroup.0.kill().unwrap();
        assert!(!child.wait().unwrap().success());
    }
}

/// The static test program, built beside this one.
fn testinit() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let path = exe.parent().unwrap().parent().unwrap().join("testinit");
    if !path.exists() {
        let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
        let status = Command::new(cargo)
            .args(["build", "-p", "testinit"])
            .status()
            .unwrap();
        assert!(status.success());
    }
    path
}

fn kill_bomb(cgroup: &Fresh) {
    let child = cgroup.0.child("bomb");
    child.create().unwrap();
    // a shell would give up at the first fork that fails
    let script = format!("exec {} fork-bomb", testinit().display());
    let mut bomb = run_in(&child, &script);
    until("it grows", || cgroup.0.processes().unwrap().len() > 20);
    cgroup.0.kill().unwrap();
    assert_eq!(cgroup.0.processes().unwrap(), Vec::<i32>::new());
    bomb.wait().unwrap();
}

#[test]
fn kill_ends_a_fork_bomb_and_remove_leaves_nothing() {
    let cgroup = Fresh::below_own("bomb");
    cgroup.apply(r#"{"pids":{"limit":60}}"#).unwrap();
    kill_bomb(&cgroup);
    cgroup.0.remove().unwrap();
    for folder in cgroup.folders() {
        assert!(!folder.exists(), "{}", folder.display());
    }
    // missing is success
    cgroup.0.kill().unwrap();
    cgroup.0.remove().unwrap();
}

#[test]
fn kill_ends_a_fork_bomb_with_the_v1_freezer_alone() {
    let Some(own) = v1_only(&Cgroup::own().unwrap()) else {
        println!("skipped: needs cgroup v1");
        return;
    };
    let cgroup = Fresh::new(own, "bomb1");
    cgroup.apply(r#"{"pids":{"limit":60}}"#).unwrap();
    kill_bomb(&cgroup);
}

/// Null is allowed, zero is not.
const NULL_ONLY: &str = r#"{"devices":[
    {"allow":false,"access":"rwm"},
    {"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}]}"#;
const ZERO_TOO: &str = r#"{"devices":[
    {"allow":false,"access":"rwm"},
    {"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},
    {"allow":true,"type":"c","major":1,"minor":5,"access":"r"}]}"#;

#[test]
fn device_rules_deny() {
    let parents = [Some(Cgroup::own().unwrap()), unified()];
    for (index, parent) in parents.into_iter().flatten().enumerate() {
        let cgroup = Fresh::new(parent, &format!("devices{index}"));
        assert!(status_in(&cgroup.0, ": </dev/zero && : </dev/null").success());
        cgroup.apply(NULL_ONLY).unwrap();
        assert!(status_in(&cgroup.0, ": </dev/null && : >/dev/null").success());
        assert!(!status_in(&cgroup.0, ": </dev/zero").success());
        // replaced, not added to
        cgroup.apply(ZERO_TOO).unwrap();
        assert!(status_in(&cgroup.0, ": </dev/zero").success());
        assert!(!status_in(&cgroup.0, ": >/dev/zero").success());
        // also with cgroups below, as when a running container is updated
        let inner = cgroup.0.child("inner");
        inner.create().unwrap();
        cgroup.apply(NULL_ONLY).unwrap();
        cgroup.apply(NULL_ONLY).unwrap();
        assert!(!status_in(&inner, ": </dev/zero").success());
        assert!(status_in(&inner, ": </dev/null").success());
    }
}

#[test]
fn unified_hierarchy() {
    let Some(parent) = unified() else {
        println!("skipped: needs a cgroup2 mount");
        return;
    };
    let cgroup = Fresh::new(parent, "unified");
    let inner = cgroup.0.child("pod/web");
    inner.create().unwrap();
    inner.create().unwrap();
    assert!(inner.open().unwrap().is_some());
    let Cgroup::V2(path) = &cgroup.0 else {
        unreachable!()
    };
    // everything there is was handed on
    assert_eq!(
        read(path, "cgroup.controllers"),
        read(&path.join("pod/web"), "cgroup.controllers")
    );
    let controllers = read(path, "cgroup.controllers");
    if controllers.split(' ').any(|name| name == "hugetlb") {
        let limits = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#;
        inner.apply(&serde_json::from_str(limits).unwrap()).unwrap();
        assert_eq!(read(&path.join("pod/web"), "hugetlb.2MB.max"), "4194304");
    }
    if !controllers.split(' ').any(|name| name == "memory") {
        let error = inner.apply(&serde_json::from_str(r#"{"memory":{"limit":4096}}"#).unwrap());
        let text = error.unwrap_err().to_string();
        assert!(
            text.starts_with("set memory.max to \"4096\": controller memory is not available: "),
            "{text}"
        );
    }
    let mut child = run_in(&inner, "exec sleep 1000");
    let pid: i32 = child.id().try_into().unwrap();
    assert_eq!(cgroup.0.processes().unwrap(), [pid]);
    assert!(matches!(inner.remove(), Err(Error::Remove { .. })));
    cgroup.0.kill().unwrap();
    child.wait().unwrap();
    cgroup.0.remove().unwrap();
    assert!(!path.exists());
}

#[test]
fn nobody_kills_or_freezes_himself() {
    let own = Cgroup::own().unwrap();
    assert!(matches!(own.kill(), Err(Error::Own { .. })));
    assert!(matches!(own.freeze(true), Err(Error::Own { .. })));
    // nor a hierarchy as a whole
    let root = Cgroup::at("/").unwrap();
    root.create().unwrap();
    assert!(matches!(
        root.kill(),
        Err(Error::Own { .. } | Error::Path { .. })
    ));
    assert!(matches!(root.remove(), Err(Error::Path { .. })));
}

#[test]
fn hybrid_huge_pages_are_limited_through_the_unified_mount() {
    let cgroup = Fresh::below_own("huge");
    let Cgroup::V1 {
        controllers,
        unified: Some(path),
    } = &cgroup.0
    else {
        println!("skipped: needs a hybrid host");
        return;
    };
    if controllers.contains_key("hugetlb") {
        println!("skipped: needs hugetlb on the unified mount");
        return;
    }
    cgroup
        .apply(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":2097152}]}"#)
        .unwrap();
    assert_eq!(read(path, "hugetlb.2MB.max"), "2097152");
}

/// hugetlb is the one controller that a hybrid host has on the unified mount.
const HUGE: &str = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":2097152}]}"#;

#[test]
fn processes_in_the_parent_are_told_or_step_aside() {
    let Some(parent) = unified() else {
        println!("skipped: needs a cgroup2 mount");
        return;
    };
    let home = parent.clone();
    let cgroup = Fresh::new(parent, "internal");
    let Cgroup::V2(path) = &cgroup.0 else {
        unreachable!()
    };
    if !read(path, "cgroup.controllers").contains("hugetlb") {
        println!("skipped: needs hugetlb on the unified mount");
        return;
    }
    let own: i32 = std::process::id().try_into().unwrap();
    let child = cgroup.0.child("web");

    let mut other = run_in(&cgroup.0, "exec sleep 1000");
    child.create().unwrap();
    let error = child
        .apply(&serde_json::from_str(HUGE).unwrap())
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("--cgroup-parent") && text.contains(&other.id().to_string()),
        "{text}"
    );
    other.kill().unwrap();
    other.wait().unwrap();

    cgroup.0.attach(own).unwrap();
    child.create().unwrap();
    child.apply(&serde_json::from_str(HUGE).unwrap()).unwrap();
    assert_eq!(
        read(&path.join("sampan-self"), "cgroup.procs"),
        own.to_string()
    );
    // and it is found where it was
    assert_eq!(unified().unwrap(), cgroup.0);
    home.attach(own).unwrap();
}

/// The kernel's verifier takes every shape of program that rules can give.
#[test]
fn device_programs_are_valid() {
    let Some(parent) = unified() else {
        println!("skipped: needs a cgroup2 mount");
        return;
    };
    let cgroup = Fresh::new(parent, "verifier");
    for rules in [
        r#"{"allow":false}"#,
        r#"{"allow":true}"#,
        r#"{"allow":false,"type":"c","major":1,"minor":5,"access":"w"}"#,
        r#"{"allow":true,"type":"b","access":""},{"allow":false,"access":""}"#,
        r#"{"allow":true,"type":"c","access":"m"},{"allow":true,"type":"b","access":"m"},{"allow":false,"major":7}"#,
        r#"{"allow":false},{"allow":true,"access":"r"},{"allow":true,"access":"w"},{"allow":true,"access":"m"}"#,
        r#"{"allow":false,"access":"rwm"},{"allow":true,"type":"c","access":"m"},{"allow":true,"type":"b","access":"m"},
           {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":8,"access":"rwm"},
           {"allow":true,"type":"c","major":136,"access":"rwm"},{"allow":true,"type":"c","major":5,"minor":2,"access":"rwm"},
           {"allow":true,"type":"b","major":4294967295,"minor":4294967295,"access":"rw"}"#,
    ] {
        cgroup
            .apply(&format!(r#"{{"devices":[{rules}]}}"#))
            .unwrap();
    }
}
