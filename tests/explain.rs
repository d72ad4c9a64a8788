//! `sampan explain` against what strace(1) sees: each step of the plan is there, in the plan's order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

const SAMPAN: &str = env!("CARGO_BIN_EXE_sampan");

fn testinit() -> PathBuf {
    let path = Path::new(SAMPAN).with_file_name("testinit");
    if !path.exists() {
        let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
        let built = Command::new(cargo)
            .args(["build", "-p", "testinit"])
            .status()
            .unwrap();
        assert!(built.success());
    }
    path
}

fn spec() -> Value {
    let capabilities = json!(["CAP_KILL", "CAP_CHOWN"]);
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 12, "gid": 34, "additionalGids": [5, 6], "umask": 0o027},
            "args": ["/testinit", "true"], "env": ["PATH=/"], "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 201}, {"type": "RLIMIT_CORE", "soft": 7, "hard": 9}],
            "noNewPrivileges": true,
            "oomScoreAdj": 123,
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
            "scheduler": {"policy": "SCHED_BATCH", "nice": 3},
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "boat",
        "domainname": "harbour",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/etc/passwd", "type": "bind", "source": "/etc/passwd", "options": ["bind", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "user"}
            ],
            "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 1000}],
            "gidMappings": [{"containerID": 0, "hostID": 200_000, "size": 1000}],
            "personality": {"domain": "LINUX"},
            "sysctl": {"net.ipv4.ip_forward": "1"},
            "maskedPaths": ["/proc/keys"],
            "readonlyPaths": ["/proc/sys"],
            "resources": {"memory": {"limit": 67_108_864}, "pids": {"limit": 77}},
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]},
        }
    })
}

/// A step and what is in it.
fn parts(step: &Value) -> (&str, &Value) {
    match step {
        Value::String(name) => (name, &Value::Null),
        Value::Object(all) => all
            .iter()
            .next()
            .map(|(name, what)| (name.as_str(), what))
            .unwrap(),
        other => panic!("{other}"),
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// What a line of strace has that shows the step of the child; nothing for a step without a call of its own.
fn child_call(step: &Value) -> Vec<String> {
    let (name, what) = parts(step);
    let of = |key: &str| text(&what[key]);
    let call = match name {
        "closeDescriptors" => "close_range(".into(),
        "dieWithParent" => "prctl(PR_SET_PDEATHSIG, SIGKILL".into(),
        "umask" => format!("umask({:03o})", what.as_u64().unwrap()),
        "namespaces" => {
            let flags = [("CLONE_NEWNS", "mount"), ("CLONE_NEWNET", "network")];
            let named = |(flag, name): (&'static str, &str)| {
                let names = what.as_array().unwrap();
                names.iter().any(|one| one == name).then_some(flag)
            };
            let named = flags.into_iter().filter_map(named).map(str::to_owned);
            return ["unshare(".to_owned()].into_iter().chain(named).collect();
        }
        "awaitParent" => "recvmsg(".into(),
        "awaitRelease" => "read(".into(),
        "undumpable" => "prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE".into(),
        "processors" => "sched_setaffinity(0".into(),
        "newSession" => "setsid(".into(),
        "newKeyring" => "keyctl(KEYCTL_JOIN_SESSION_KEYRING".into(),
        "loopback" => "SIOCSIFFLAGS".into(),
        "hostname" => format!("sethostname(\"{}\"", text(what)),
        "domainname" => format!("setdomainname(\"{}\"", text(what)),
        "sysctl" => format!("\"sys/{}\"", of("path")),
        "becomeRoot" => "setresuid(0, 0, 0".into(),
        "cgroupNamespace" => "unshare(CLONE_NEWCGROUP".into(),
        "personality" => "personality(".into(),
        "scheduler" => "sched_setattr(0".into(),
        "ioPriority" => "ioprio_set(".into(),
        "rlimit" => format!("rlim_cur={}, rlim_max={}", of("soft"), of("hard")),
        "giveStreams" => "fstat".into(),
        "tryCwd" => format!("chdir(\"{}\"", text(what)),
        "cwd" => "getcwd(".into(),
        "bounding" => "prctl(PR_CAPBSET_DROP".into(),
        "groups" => "setgroups(2, [5, 6]".into(),
        "user" => format!("setresuid({0}, {0}, {0}", of("uid")),
        "capabilities" => "capset(".into(),
        "noNewPrivileges" => "prctl(PR_SET_NO_NEW_PRIVS, 1".into(),
        "seccomp" => "seccomp(SECCOMP_SET_MODE_FILTER".into(),
        "findHome" => "\"/etc/passwd\"".into(),
        "findProgram" => format!("faccessat2(AT_FDCWD, \"{}\"", of("name")),
        "ready" => "write(".into(),
        "outliveParent" => "prctl(PR_SET_PDEATHSIG, 0".into(),
        "resetSignals" => "rt_sigaction(".into(),
        "gate" => "read(".into(),
        "execute" => format!("execve(\"{}\"", text(&what["argv"][0])),
        "rootfs" => return rootfs_call(what),
        other => panic!("no call is known for step {other}"),
    };
    vec![call]
}

/// The steps on the file system that one call stands for.
fn rootfs_call(step: &Value) -> Vec<String> {
    let (name, what) = parts(step);
    let kind = what.pointer("/source/filesystem/fstype");
    match (name, kind) {
        ("openRoot", _) => vec!["openat(".into(), format!("\"{}\"", of_path(what))],
        ("openSource", _) => vec!["open_tree(".into(), format!("\"{}\"", of_path(what))],
        ("mount", Some(kind)) => vec![format!("fsopen(\"{}\"", text(kind))],
        ("mount" | "mountRoot" | "mask" | "bindDevice", _) => vec!["move_mount(".into()],
        ("pivot", _) => vec!["pivot_root(".into()],
        ("readonly" | "rootReadonly", _) => vec!["mount_setattr(".into()],
        _ => Vec::new(),
    }
}

fn of_path(what: &Value) -> String {
    text(&what["path"])
}

fn parent_call(step: &Value) -> Vec<String> {
    let (name, what) = parts(step);
    match name {
        "cgroup" => vec!["mkdir".into()],
        // in an order of their own
        "limits" => Vec::new(),
        "gate" => vec!["mknod".into(), "gate".into()],
        "clone" => vec![
            "clone3(".into(),
            "CLONE_NEWPID".into(),
            "CLONE_NEWUSER".into(),
        ],
        "mapIds" => vec!["uid_map".into()],
        "oomScore" => vec!["oom_score_adj".into()],
        "begin" | "release" => vec!["sendmsg(".into()],
        "keepSpec" => vec!["spec.json".into()],
        "setUp" | "letGo" => vec!["recv".into()],
        "draft" => vec!["openat(".into(), ".state.json".into()],
        "record" => vec!["rename".into(), "state.json\"".into()],
        other => panic!("no call is known for step {other}: {what}"),
    }
}

/// Finds the calls one after the other.
fn follow(steps: &[Value], lines: &[&str], call: fn(&Value) -> Vec<String>) {
    let mut rest = lines.iter();
    for step in steps {
        let wanted = call(step);
        if wanted.is_empty() {
            continue;
        }
        let found = rest.any(|line| wanted.iter().all(|part| line.contains(part.as_str())));
        assert!(
            found,
            "{step}: {wanted:?} is not there, or not in its place:\n{}",
            lines.join("\n")
        );
    }
}

#[test]
fn the_plan_is_what_happens() {
    let temp = tempfile::tempdir().unwrap();
    let id = format!("sampan-explain-{}", std::process::id());
    let bundle = temp.path().join(&id);
    let root = bundle.join("rootfs");
    fs::create_dir_all(&root).unwrap();
    std::os::unix::fs::chown(&root, Some(100_000), Some(200_000)).unwrap();
    fs::copy(testinit(), root.join("testinit")).unwrap();
    fs::write(bundle.join("config.json"), spec().to_string()).unwrap();
    // whoever is user 0 in there has to come this far
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(temp.path(), open).unwrap();

    let explained = Command::new(SAMPAN)
        .arg("explain")
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(explained.status.success(), "{explained:?}");
    let plan: Value = serde_json::from_slice(&explained.stdout).unwrap();

    let trace = temp.path().join("trace");
    let ran = Command::new("strace")
        // a file for each process: parent and child work at the same time
        .args(["-ff", "-s", "200", "-o"])
        .arg(&trace)
        .args([SAMPAN, "oci", "--root"])
        .arg(temp.path().join("state"))
        // not waited for, it gets a gate and outlives the command, as by `create`
        .args(["run", "--detach", "--bundle"])
        .arg(&bundle)
        .arg(&id)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let removed = Command::new(SAMPAN)
        .args(["oci", "--root"])
        .arg(temp.path().join("state"))
        .args(["delete", "--force", &id])
        .output()
        .unwrap();
    assert!(removed.status.success(), "{removed:?}");
    let traces: Vec<String> = fs::read_dir(temp.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_stem() == trace.file_name() && *path != trace)
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let of = |part: &str| -> Vec<&str> {
        let own = traces.iter().find(|trace| trace.contains(part));
        own.unwrap().lines().collect()
    };
    let steps = |list: &str| plan[list].as_array().unwrap().clone();
    follow(&steps("child"), &of("execve(\"/testinit\""), child_call);
    let parent = of("CLONE_NEWUSER");
    follow(&steps("parent"), &parent, parent_call);
    let limits = steps("parent");
    let limits = limits.iter().find_map(|step| step.get("limits")).unwrap();
    let limits = limits.as_array().unwrap();
    assert!(limits.len() >= 2, "{limits:?}");
    let before = parent.iter().take_while(|call| !call.contains("rename"));
    let before: Vec<&&str> = before.collect();
    for write in limits {
        let file = Path::new(write["file"].as_str().unwrap()).to_owned();
        // rules of devices are a program on version 2
        if file.ends_with(&id) {
            continue;
        }
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let value = write["value"].as_str().unwrap();
        assert!(before.iter().any(|call| call.contains(&name)), "{name}");
        let written = format!("\"{value}");
        assert!(
            before
                .iter()
                .any(|call| call.contains("write(") && call.contains(&written)),
            "{value}"
        );
    }
}

#[test]
fn what_is_wrong_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let config = temp.path().join("config.json");
    for (text, want) in [
        (json!({}), "CONFIG: ociVersion: is missing"),
        (
            json!({"ociVersion": "1.2.0", "process": {"args": ["x"], "cwd": 5}}),
            "read CONFIG: process.cwd: invalid type: integer `5`, expected path string",
        ),
        (
            json!({"ociVersion": "1.2.0", "process": {"args": ["x"], "cwd": "x"}, "root": {"path": "r"}, "linux": {"namespaces": [{"type": "mount"}]}}),
            "CONFIG: process.cwd: x is not absolute",
        ),
    ] {
        fs::write(&config, text.to_string()).unwrap();
        let output = Command::new(SAMPAN)
            .arg("explain")
            .arg(temp.path())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let want = want.replace("CONFIG", &config.display().to_string());
        assert!(!output.status.success() && said.contains(&want), "{said}");
    }
}
