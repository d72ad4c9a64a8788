//! Units of a real systemd, which runs in namespaces of its own below a cgroup of the test's.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use sampan::cgroup::{Cgroup, Error};

use super::{Fresh, read, until};

const SYSTEMD: &str = "/lib/systemd/systemd";
/// Set where this program runs beside systemd.
const INSIDE: &str = "SAMPAN_TEST_INSIDE_SYSTEMD";

/// Runs the test of that name once more, beside a systemd.
fn beside_systemd(test: &str) {
    if !Path::new(SYSTEMD).exists() {
        println!("skipped: needs {SYSTEMD}");
        return;
    }
    let cgroup = Fresh::below_own(&test.replace(':', "-"));
    let boot = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cgroup/systemd-boot");
    let script = fs::read_to_string(boot).unwrap_or_else(|_| {
        // in the virtual machine
        fs::read_to_string("/test/systemd-boot").unwrap()
    });
    // attached before it unshares, so that its cgroup is the root of the namespace
    // by path: the shell of the virtual machine would run its own
    let mut systemd = below(&cgroup.0)
        .args([
            "/usr/bin/unshare",
            "-m",
            "-p",
            "-f",
            "-C",
            "--kill-child",
            "sh",
            "-c",
            &script,
        ])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let pid = || {
        let children = format!("/proc/{0}/task/{0}/children", systemd.id());
        let text = fs::read_to_string(children).unwrap();
        text.split_whitespace().next().map(str::to_owned)
    };
    until("it unshared", || pid().is_some());
    // who waits for systemd would be in the way of controllers
    let waiting = i32::try_from(systemd.id()).unwrap();
    Cgroup::own().unwrap().attach(waiting).unwrap();
    until("systemd listens", || {
        pid().is_some_and(|pid| {
            let scope = |path: &&Path| path.join("init.scope").exists();
            Path::new(&format!("/proc/{pid}/root/run/systemd/private")).exists()
                && cgroup.0.folders().iter().any(scope)
                && fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name == "systemd\n")
        })
    });
    // beside systemd itself: a cgroup of ours it would take away
    let output = below(&cgroup.0)
        .args([
            "/usr/bin/nsenter",
            "-t",
            &pid().unwrap(),
            "-m",
            "-p",
            "-C",
            "--",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output();
    systemd.kill().unwrap();
    systemd.wait().unwrap();
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// A command in `cgroup`, or in systemd's scope where that is there already: the arguments that follow.
fn below(cgroup: &Cgroup) -> Command {
    let enter: String = cgroup
        .folders()
        .iter()
        .map(|path| match path.join("init.scope") {
            scope if scope.exists() => scope,
            _ => path.to_path_buf(),
        })
        .map(|path| format!("echo $$ >{}/cgroup.procs\n", path.display()))
        .collect();
    let mut command = Command::new("sh");
    command.args(["-ec", &format!("{enter}exec \"$@\""), "sh"]);
    command
}

/// What systemd has for a property of a unit.
fn show(unit: &str, property: &str) -> String {
    let output = Command::new("systemctl")
        .args(["show", "--value", "-p", property, unit])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").spawn().unwrap()
}

fn in_slice(name: &str) -> Cgroup {
    let path = format!("sampan-tests.slice:box:{name}");
    Cgroup::for_container(Some(Path::new(&path)), true, "unused").unwrap()
}

/// The folder of a controller.
fn folder<'a>(cgroup: &'a Cgroup, controller: &str) -> &'a Path {
    match cgroup.plain() {
        Cgroup::V2(path) => path,
        Cgroup::V1 { controllers, .. } => &controllers[controller],
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_unit_from_begin_to_end() {
    if std::env::var_os(INSIDE).is_none() {
        return beside_systemd("systemd::a_unit_from_begin_to_end");
    }
    let cgroup = in_slice("one");
    let v2 = matches!(cgroup.plain(), Cgroup::V2(_));
    let unit = "box-one.scope";
    cgroup.prepare().unwrap();
    let mut child = sleeper();
    let pid = i32::try_from(child.id()).unwrap();
    let limits = r#"{"memory":{"limit":67108864},"pids":{"limit":9},"cpu":{"quota":50000,"period":100000,"cpus":"0"},
        "devices":[{"allow":false},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}]}"#;
    let limits = serde_json::from_str(limits).unwrap();
    let annotations = [
        ("org.systemd.property.Description", "'a test'"),
        ("org.systemd.property.TimeoutStopSec", "uint64 7"),
    ];
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
    cgroup
        .begin(pid, &limits, &HashMap::from(annotations))
        .unwrap();
    for path in cgroup.folders() {
        assert_eq!(
            read(path, "cgroup.procs"),
            pid.to_string(),
            "{}",
            path.display()
        );
        assert!(path.ends_with("sampan.slice/sampan-tests.slice/box-one.scope"));
    }
    for (property, value) in [
        ("Slice", "sampan-tests.slice"),
        ("Description", "a test"),
        ("TimeoutStopUSec", "7s"),
        ("Delegate", "yes"),
        (if v2 { "MemoryMax" } else { "MemoryLimit" }, "67108864"),
        ("TasksMax", "9"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("AllowedCPUs", "0"),
        ("DevicePolicy", "strict"),
        ("DeviceAllow", "/dev/char/1:3 rw"),
    ] {
        assert_eq!(show(unit, property), value, "{property}");
    }
    let stats = cgroup.stats().unwrap();
    assert_eq!(
        (stats.memory_limit, stats.pids_limit),
        (Some(67_108_864), Some(9))
    );
    assert_eq!(read(folder(&cgroup, "cpuset"), "cpuset.cpus"), "0");

    let change = r#"{"pids":{"limit":20},"memory":{"limit":33554432},"cpu":{"quota":20000}}"#;
    cgroup
        .update(&serde_json::from_str(change).unwrap())
        .unwrap();
    assert_eq!(show(unit, "TasksMax"), "20");
    assert_eq!(show(unit, "CPUQuotaPerSecUSec"), "200ms");
    let stats = cgroup.stats().unwrap();
    assert_eq!(
        (stats.memory_limit, stats.pids_limit),
        (Some(33_554_432), Some(20))
    );
    // systemd, asked to write everything again, writes the same
    Command::new("systemctl")
        .arg("daemon-reload")
        .status()
        .unwrap();
    let stats = cgroup.stats().unwrap();
    assert_eq!(
        (stats.memory_limit, stats.pids_limit),
        (Some(33_554_432), Some(20))
    );

    assert!(matches!(
        cgroup.prepare(),
        Err(Error::InUse { count: 1, .. })
    ));
    let record = serde_json::to_string(&cgroup).unwrap();
    let again: Cgroup = serde_json::from_str(&record).unwrap();
    again.freeze(true).unwrap();
    assert!(again.is_frozen().unwrap());
    again.destroy().unwrap();
    child.wait().unwrap();
    assert_eq!(show(unit, "ActiveState"), "inactive");
    for path in cgroup.folders() {
        assert!(!path.exists(), "{}", path.display());
    }
    again.destroy().unwrap();
}

#[test]
fn a_unit_that_is_refused() {
    if std::env::var_os(INSIDE).is_none() {
        return beside_systemd("systemd::a_unit_that_is_refused");
    }
    let cgroup = in_slice("two");
    let mut child = sleeper();
    let pid = i32::try_from(child.id()).unwrap();
    let nothing = serde_json::from_str("{}").unwrap();
    let annotation = [(
        "org.systemd.property.NoSuchThing".to_owned(),
        "true".to_owned(),
    )];
    let refused = cgroup.begin(pid, &nothing, &HashMap::from(annotation));
    let text = refused.unwrap_err().to_string();
    assert!(
        text.starts_with("systemd: start unit box-two.scope: "),
        "{text}"
    );
    assert!(text.contains("NoSuchThing"), "{text}");
    assert_eq!(show("box-two.scope", "ActiveState"), "inactive");
    // one that failed to take its limits is gone again
    let wrong = serde_json::from_str(r#"{"hugepageLimits":[{"pageSize":"3MB","limit":1}]}"#);
    cgroup
        .begin(pid, &wrong.unwrap(), &HashMap::new())
        .unwrap_err();
    assert_eq!(show("box-two.scope", "ActiveState"), "inactive");
    let _ = child.kill();
    child.wait().unwrap();
    cgroup.destroy().unwrap();
}

#[test]
fn without_systemd_it_is_told() {
    if Path::new("/run/systemd/system").exists() {
        println!("skipped: systemd runs here");
        return;
    }
    let error = Cgroup::for_container(None, true, "box").unwrap_err();
    assert_eq!(
        error.to_string(),
        "systemd: use systemd for cgroups: it does not run here (no /run/systemd/system); leave --systemd-cgroup out"
    );
}
