//! A container's cgroup from `prepare` to `destroy`.

use std::path::Path;
use std::process::{Child, Command};

use oci_spec::runtime::LinuxResources;
use sampan::cgroup::{Cgroup, Entry, Error, OomEvent};

use super::{Fresh, MIB, read, run_in, until};

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

/// A container's cgroup that does not exist yet, and is gone in the end.
fn place(name: &str) -> Fresh {
    let path = format!("sampan-life-{}-{name}", std::process::id());
    Fresh(Cgroup::for_container(Some(Path::new(&path)), false, "unused").unwrap())
}

/// A child of a thread that entered: on v1 a thread can, and takes its children with it.
fn enter(entry: Entry) -> Child {
    let thread = std::thread::spawn(move || {
        sampan::cgroup::enter(entry.tasks()).unwrap();
        Command::new("sleep").arg("1000").spawn().unwrap()
    });
    thread.join().unwrap()
}

#[test]
fn a_container_from_prepare_to_destroy() {
    let cgroup = place("whole");
    cgroup.0.prepare().unwrap();
    cgroup
        .0
        .apply(&resources(r#"{"pids":{"limit":9}}"#))
        .unwrap();
    let entry = cgroup.0.entry().unwrap();
    assert_eq!(cgroup.0.stats().unwrap().pids_limit, Some(9));
    assert_eq!(
        cgroup
            .0
            .folders()
            .last()
            .unwrap()
            .join("cgroup.procs")
            .exists(),
        entry.folder().is_some()
    );
    let mut child = enter(entry);
    let pid = i32::try_from(child.id()).unwrap();
    if let Cgroup::V1 { controllers, .. } = &cgroup.0 {
        for folder in controllers.values() {
            assert_eq!(read(folder, "cgroup.procs"), pid.to_string(), "{folder:?}");
        }
    } else {
        cgroup.0.attach(pid).unwrap();
    }
    // somebody is in it: not for another container, and left as it is
    for other in [cgroup.0.clone(), cgroup.0.child("below")] {
        let _ = std::fs::create_dir(other.folders()[0]);
        let taken = cgroup.0.prepare();
        assert!(
            matches!(taken, Err(Error::InUse { count: 1, .. })),
            "{taken:?}"
        );
    }
    assert_eq!(cgroup.0.processes().unwrap(), [pid]);
    cgroup.0.destroy().unwrap();
    assert!(!child.wait().unwrap().success());
    for folder in cgroup.folders() {
        assert!(!folder.exists(), "{}", folder.display());
    }
    cgroup.0.destroy().unwrap();
}

#[test]
fn an_empty_cgroup_serves_and_a_frozen_one_does_not() {
    let cgroup = place("frozen");
    cgroup.0.create().unwrap();
    cgroup.0.prepare().unwrap();
    assert!(!cgroup.0.is_frozen().unwrap());
    // by itself, and through the one above
    for frozen in [cgroup.0.clone(), cgroup.0.child("below")] {
        frozen.create().unwrap();
        cgroup.0.freeze(true).unwrap();
        cgroup.0.freeze(true).unwrap();
        assert!(frozen.is_frozen().unwrap());
        let refused = frozen.prepare();
        assert!(matches!(refused, Err(Error::Frozen { .. })), "{refused:?}");
        cgroup.0.freeze(false).unwrap();
        cgroup.0.freeze(false).unwrap();
    }
}

/// A cpuset that somebody made and left empty would let nobody in (cpusets.rst: ENOSPC).
#[test]
fn empty_cpusets_above_are_filled() {
    let pod = place("pod");
    let Cgroup::V1 { controllers, .. } = &pod.0 else {
        return;
    };
    for folder in controllers.values() {
        std::fs::create_dir(folder).unwrap();
    }
    let cpuset = &controllers["cpuset"];
    assert_eq!(read(cpuset, "cpuset.cpus"), "");
    let below = pod.0.child("a").child("b");
    below.prepare().unwrap();
    let mut child = enter(below.entry().unwrap());
    assert_eq!(
        read(cpuset, "cpuset.cpus"),
        read(&cpuset.join("a/b"), "cpuset.cpus")
    );
    pod.0.destroy().unwrap();
    assert!(!child.wait().unwrap().success());
}

#[test]
fn without_a_cgroup_a_limit_is_an_error() {
    let cgroup = Cgroup::Unlimited {
        why: "it is not ours".to_owned(),
    };
    cgroup.prepare().unwrap();
    for json in [
        "{}",
        r#"{"pids":{"limit":-1},"memory":{"limit":-1,"swap":-1}}"#,
    ] {
        cgroup.apply(&resources(json)).unwrap();
    }
    let error = cgroup.apply(&resources(r#"{"memory":{"limit":4096}}"#));
    assert_eq!(
        error.unwrap_err().to_string(),
        "set memory.max to \"4096\": controller memory is not available: it is not ours"
    );
    let entry = cgroup.entry().unwrap();
    assert!(entry.folder().is_none());
    sampan::cgroup::enter(entry.tasks()).unwrap();
    cgroup.destroy().unwrap();
    assert!(cgroup.processes().unwrap().is_empty());
}

/// Whoever is in a cgroup is told from the record alone.
#[test]
fn it_survives_in_a_record() {
    let cgroup = place("record");
    let text = serde_json::to_string(&cgroup.0).unwrap();
    let again: Cgroup = serde_json::from_str(&text).unwrap();
    assert_eq!(again, cgroup.0);
    cgroup.0.create().unwrap();
    let mut child = run_in(&again, "exec sleep 1000");
    cgroup.0.destroy().unwrap();
    child.wait().unwrap();
}

const HOG: &str = "sleep 1; head -c 134217728 /dev/zero | tail -c 134217728 >/dev/null";

#[test]
fn out_of_memory_is_told() {
    let cgroup = Fresh::below_own("oom");
    cgroup
        .apply(r#"{"memory":{"limit":16777216,"swap":16777216}}"#)
        .unwrap();
    let mut child = run_in(&cgroup.0, HOG);
    let mut watch = cgroup.0.watch_oom().unwrap();
    let soon = Some(std::time::Duration::from_millis(10));
    let long = Some(std::time::Duration::from_secs(60));
    assert_eq!(watch.next(soon).unwrap(), None);
    assert_eq!(watch.next(long).unwrap(), Some(OomEvent::Oom));
    child.wait().unwrap();
    cgroup.0.destroy().unwrap();
    // v1 may tell of more than one attempt
    until("the watch ends", || {
        watch.next(long).unwrap() == Some(OomEvent::End)
    });
}

#[test]
fn metrics_are_those_of_the_kernel() {
    let cgroup = Fresh::below_own("metrics");
    cgroup
        .apply(r#"{"memory":{"limit":67108864},"pids":{"limit":9},"cpu":{"quota":50000,"period":100000}}"#)
        .unwrap();
    let mut child = run_in(
        &cgroup.0,
        "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exec sleep 1000",
    );
    until("it ran and was stopped", || {
        let cpu = cgroup.0.metrics().unwrap().cpu;
        cpu.throttling.periods > 0 && cpu.usage.total > 0
    });
    let found = cgroup.0.metrics().unwrap();
    assert_eq!((found.pids.current, found.pids.limit), (1, 9));
    assert_eq!(found.memory.usage.limit, 64 * MIB);
    assert!(found.memory.usage.max >= found.memory.usage.usage);
    assert!(!found.memory.raw.is_empty());
    if let Cgroup::V1 { .. } = cgroup.0 {
        let sum: u64 = found.cpu.usage.percpu.iter().sum();
        assert!(sum > 0 && !found.cpuset.cpus.is_empty());
    }
    cgroup.0.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_limit_below_what_is_in_use_is_refused() {
    let cgroup = Fresh::below_own("below");
    cgroup
        .apply(r#"{"memory":{"limit":134217728,"swap":134217728}}"#)
        .unwrap();
    let mut child = run_in(
        &cgroup.0,
        "head -c 33554432 /dev/zero | tail -c 33554432 | sleep 1000",
    );
    until("it has its memory", || {
        cgroup.0.stats().unwrap().memory_current > Some(32 * MIB)
    });
    let low = r#"{"memory":{"limit":4194304,"swap":4194304,"checkBeforeUpdate":true}}"#;
    let text = cgroup.0.update(&resources(low)).unwrap_err().to_string();
    let wanted = match cgroup.0 {
        Cgroup::V2(_) => "rejecting memory+swap limit 4194304 <= usage ",
        _ => "unable to set memory limit to 4194304 (current usage: ",
    };
    assert!(text.contains(wanted), "{text}");
    // head may be done
    assert!(cgroup.0.processes().unwrap().len() >= 3);
    cgroup.0.kill().unwrap();
    child.wait().unwrap();
}
