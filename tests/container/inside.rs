//! What the container's first process sees.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use sampan::container::{self, Rootfs};
use serde_json::json;

use crate::Test;
use crate::common::{Case, drain};

pub const TESTS: &[Test] = &[
    ("inside::mounts_are_its_own", mounts_are_its_own),
    (
        "inside::no_descriptor_comes_along",
        no_descriptor_comes_along,
    ),
    ("inside::ids_capabilities_limits", ids_capabilities_limits),
    (
        "inside::root_without_capability_section_has_none",
        root_without_capability_section_has_none,
    ),
    ("inside::process_surroundings", process_surroundings),
    ("inside::devices_and_links", devices_and_links),
    (
        "inside::masked_and_readonly_paths",
        masked_and_readonly_paths,
    ),
    ("inside::readonly_root", readonly_root),
    ("inside::bind_mounts", bind_mounts),
    ("inside::overlay_of_many_layers", overlay_of_many_layers),
    (
        "inside::overlay_of_an_older_kernel",
        overlay_of_an_older_kernel,
    ),
    ("inside::cgroup_is_its_own", cgroup_is_its_own),
    ("inside::in_its_cgroup_at_once", in_its_cgroup_at_once),
    ("inside::terminal", terminal),
    ("inside::user_namespace", user_namespace),
    ("inside::joins_namespaces", joins_namespaces),
    ("inside::sysctls", sysctls),
    ("inside::seccomp_filter", seccomp_filter),
    (
        "inside::a_filter_older_than_the_set_up",
        a_filter_older_than_the_set_up,
    ),
];

fn mounts_are_its_own() {
    let text = Case::new(&["mounts"]).good();
    // mount point, options, type; the root's own differ by machine
    let mut seen = Vec::new();
    for line in text.lines() {
        let (left, right) = line.split_once(" - ").unwrap();
        let left: Vec<&str> = left.split(' ').collect();
        assert!(
            !left
                .iter()
                .any(|word| word.starts_with("shared:") || word.starts_with("master:")),
            "{line}"
        );
        seen.push(format!("{} {}", left[4], right.split(' ').next().unwrap()));
    }
    assert!(seen[0].starts_with("/ "), "{text}");
    let cgroups = |line: &&String| !line.starts_with("/sys/fs/cgroup") && !line.starts_with("/ ");
    let seen: Vec<&String> = seen.iter().filter(cgroups).collect();
    let want = [
        "/proc proc",
        "/dev tmpfs",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/dev/mqueue mqueue",
        "/sys sysfs",
    ];
    assert_eq!(seen[..want.len()], want, "{text}");
    for line in &seen[want.len()..] {
        assert!(
            line.starts_with("/proc/") || line.starts_with("/sys/firmware"),
            "{line}"
        );
    }
}

fn no_descriptor_comes_along() {
    let case = Case::new(&["fds"]);
    let out = case.temp.path().join("out");
    // outside of the root: shown by the kernel as it was opened
    let want = format!("0 /dev/null\n1 {0}\n2 {0}\n", out.display());
    assert_eq!(case.good(), want);
    let case = Case::new(&["true"]);
    let state = case.create().unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", state.pid)).unwrap();
    let mut open: Vec<String> = open
        .map(|entry| {
            fs::read_link(entry.unwrap().path())
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|path| *path != "/dev/null" && !path.ends_with("/out"))
        .collect();
    open.sort();
    let dir = case.request.dir.display();
    assert_eq!(open, [format!("{dir}/gate"), format!("{dir}/result")]);
    container::delete(&case.request.dir).unwrap();
    case.wait(&state);
}

fn ids_capabilities_limits() {
    let mut case = Case::new(&[
        "id", "--", "caps", "--", "limits", "--", "umask", "--", "signals",
    ]);
    let process = &mut case.spec["process"];
    process["user"] = json!({"uid": 1234, "gid": 56, "additionalGids": [9, 7, 9], "umask": 0o027});
    process["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
        "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
    });
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    let text = case.good();
    for want in [
        "uid=1234,1234,1234 gid=56,56,56 groups=7,9,9\n",
        "CapInh:\t0000000000000020\nCapPrm:\t0000000000000020\nCapEff:\t0000000000000020\nCapBnd:\t0000000000000021\nCapAmb:\t0000000000000020\n",
        "NoNewPrivs:\t1\n",
        "Max open files            100                  200 ",
        "Max core file size        0                    0 ",
        "\n0027\n",
        // Rust's own start ignores SIGPIPE again
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001000\n",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
}

fn root_without_capability_section_has_none() {
    let mut case = Case::new(&["caps"]);
    case.spec["process"]
        .as_object_mut()
        .unwrap()
        .remove("capabilities");
    case.spec["process"]["noNewPrivileges"] = json!(false);
    let text = case.good();
    assert!(
        text.contains(
            "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n"
        ),
        "{text}"
    );
    assert!(text.contains("NoNewPrivs:\t0\n"), "{text}");
}

fn process_surroundings() {
    let mut case = Case::new(&[
        "env",
        "--",
        "pwd",
        "--",
        "hostname",
        "--",
        "pid",
        "--",
        "sysctl",
        "kernel.domainname",
    ]);
    case.spec["process"]["env"] = json!(["A=1", "B=two words", "EMPTY="]);
    case.spec["process"]["cwd"] = json!("/made/here");
    case.spec["domainname"] = json!("harbour");
    assert_eq!(
        case.good(),
        "A=1\nB=two words\nEMPTY=\nHOME=/\n/made/here\nboat\n1 0 1\nharbour\n"
    );
}

fn devices_and_links() {
    let mut args = Vec::new();
    for path in [
        "null", "zero", "full", "random", "urandom", "tty", "fuse", "pipe",
    ] {
        args.extend(["stat".to_owned(), format!("/dev/{path}"), "--".to_owned()]);
    }
    for path in ["fd", "stdin", "stdout", "stderr", "ptmx"] {
        args.extend([
            "readlink".to_owned(),
            format!("/dev/{path}"),
            "--".to_owned(),
        ]);
    }
    args.extend(["write".to_owned(), "/dev/null".to_owned(), "x".to_owned()]);
    let mut case = Case::new(&args.iter().map(String::as_str).collect::<Vec<_>>());
    case.spec["linux"]["devices"] = json!([
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
    ]);
    let lines = [
        "character 0666 0:0 0 1:3",
        "character 0666 0:0 0 1:5",
        "character 0666 0:0 0 1:7",
        "character 0666 0:0 0 1:8",
        "character 0666 0:0 0 1:9",
        "character 0666 0:0 0 5:0",
        "character 0640 5:6 0 10:229",
        "fifo 0600 0:0 0 0:0",
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "pts/ptmx",
        "",
    ];
    assert_eq!(case.good(), lines.join("\n"));
}

fn masked_and_readonly_paths() {
    let mut case = Case::new(&[
        "cat", "/secret", "--", "ls", "/hidden", "--", "stat", "/secret",
    ]);
    fs::write(case.root().join("secret"), "text").unwrap();
    fs::create_dir_all(case.root().join("hidden/below")).unwrap();
    let masked = case.spec["linux"]["maskedPaths"].as_array_mut().unwrap();
    masked.extend([json!("/secret"), json!("/hidden"), json!("/missing")]);
    assert_eq!(case.good(), "character 0666 0:0 0 1:3\n");
    for (args, want) in [
        (["sysctl", "kernel.domainname=x"], "Read-only file system"),
        (["mkdir", "/hidden/x"], "Read-only file system"),
        (["write", "/fixed/x"], "Read-only file system"),
        (["write", "/sys/kernel/profiling"], "Read-only file system"),
    ] {
        let mut case = Case::new(&args);
        fs::create_dir_all(case.root().join("hidden")).unwrap();
        fs::create_dir_all(case.root().join("fixed")).unwrap();
        case.spec["linux"]["maskedPaths"] = json!(["/hidden"]);
        case.spec["linux"]["readonlyPaths"]
            .as_array_mut()
            .unwrap()
            .push(json!("/fixed"));
        let (code, text) = case.run();
        assert!(code == 1 && text.contains(want), "{args:?}: {text}");
    }
}

fn readonly_root() {
    let mut case = Case::new(&[
        "write",
        "/dev/shm/x",
        "text",
        "--",
        "cat",
        "/dev/shm/x",
        "--",
        "write",
        "/x",
        "text",
    ]);
    case.spec["root"]["readonly"] = json!(true);
    let (code, text) = case.run();
    assert_eq!(code, 1);
    assert!(
        text.starts_with("texttestinit: write /x text: Read-only file system"),
        "{text}"
    );
    assert!(!case.root().join("x").exists());
}

fn bind_mounts() {
    let mut case = Case::new(&[
        "cat",
        "/file",
        "/data/deep/one",
        "--",
        "write",
        "/data/two",
        "new",
        "--",
        "write",
        "/fixed/three",
        "x",
    ]);
    let host = case.temp.path().join("host");
    fs::create_dir_all(host.join("deep")).unwrap();
    fs::write(host.join("deep/one"), "one").unwrap();
    let mounts = case.spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/file", "type": "bind", "source": host.join("deep/one"), "options": ["bind", "ro"]}));
    mounts.push(json!({"destination": "/data", "type": "none", "source": host, "options": ["rbind", "rprivate"]}));
    mounts.push(json!({"destination": "/fixed", "source": host, "options": ["rbind", "rro"]}));
    let (code, text) = case.run();
    assert_eq!(code, 1);
    assert!(
        text.starts_with("oneonetestinit: write /fixed/three x: Read-only file system"),
        "{text}"
    );
    assert_eq!(fs::read_to_string(host.join("two")).unwrap(), "new");
}

fn overlay_of_many_layers() {
    let mut case = Case::new(&[
        "cat", "/from-0", "/top", "--", "write", "/changed", "yes", "--", "rm", "/from-7",
    ]);
    let store = case.temp.path().join("store");
    let mut lower = vec![case.root()];
    for index in 0..300 {
        let layer = store.join(format!("{index:0>64}"));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(format!("from-{index}")), index.to_string()).unwrap();
        fs::write(layer.join("top"), format!(" {index}\n")).unwrap();
        lower.push(layer);
    }
    let (upper, work) = (store.join("upper"), store.join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(case.request.bundle.join("merged")).unwrap();
    case.spec["root"]["path"] = json!("merged");
    case.request.rootfs = Rootfs::Overlay {
        lower,
        upper: upper.clone(),
        work,
    };
    assert_eq!(case.good(), "0 299\n");
    case.assert_gone();
    assert_eq!(fs::read_to_string(upper.join("changed")).unwrap(), "yes");
    assert_eq!(
        fs::read_dir(case.request.bundle.join("merged"))
            .unwrap()
            .count(),
        0
    );
}

fn cgroup_is_its_own() {
    let case = Case::new(&["cgroup"]);
    for line in case.good().lines() {
        // a hierarchy without a container's cgroup shows the caller's place
        assert!(line.ends_with(":/") || line.contains("::/"), "{line}");
    }
    let case = Case::new(&["write", "/sys/fs/cgroup/x", "1"]);
    let (code, text) = case.run();
    assert!(
        code == 1 && text.contains("Read-only file system"),
        "{text}"
    );
    let mut case = Case::new(&["memhog", "50000000"]);
    case.spec["linux"]["resources"] = json!({"memory": {"limit": 20_000_000, "swap": 20_000_000}});
    assert_eq!(case.run().0, 128 + libc::SIGKILL);
}

/// Its limits hold for what it starts first.
fn in_its_cgroup_at_once() {
    let case = Case::new(&["true"]);
    let state = case.create().unwrap();
    let text = fs::read_to_string(format!("/proc/{}/cgroup", state.pid)).unwrap();
    for line in text.lines() {
        // hierarchies that serve nobody (a stray named one) have no cgroup of the container
        let serves = !line.contains(":name=") && !line.ends_with(":/");
        assert!(!serves || line.ends_with(&case.request.id), "{text}");
    }
    assert_eq!(case.request.cgroup.processes().unwrap(), [state.pid]);
    container::delete(&case.request.dir).unwrap();
    case.wait(&state);
    case.assert_gone();
    let mut case = Case::new(&["fork", "true"]);
    case.spec["linux"]["resources"] = json!({"pids": {"limit": 1}});
    let (code, text) = case.run();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("Resource temporarily unavailable"), "{text}");
}

fn terminal() {
    let mut case = Case::new(&["tty", "--", "stat", "/dev/console"]);
    case.spec["process"]["terminal"] = json!(true);
    case.spec["process"]["consoleSize"] = json!({"height": 33, "width": 111});
    let (_, text) = case.create().unwrap_err();
    assert_eq!(text, "process.terminal needs a console socket");
    let path = case.temp.path().join("console.sock");
    case.request.console_socket = Some(path.clone());
    let (_, text) = case.create().unwrap_err();
    assert!(text.starts_with("connect to console socket "), "{text}");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let state = case.create().unwrap();
    let (message, master) = sampan::sys::socket::receive(&listener.accept().unwrap().0).unwrap();
    assert_eq!(message, b"/dev/ptmx");
    case.start().unwrap();
    let text = String::from_utf8(drain(master.unwrap())).unwrap();
    let want = "controlling true\r\n0 /dev/pts/0\r\n1 /dev/pts/0\r\n2 /dev/pts/0\r\nsize 111x33\r\ncharacter 0620 0:0 0 136:0\r\n";
    assert_eq!(text, want);
    assert_eq!(case.wait(&state), 0);
}

fn user_namespace() {
    let mut case = Case::new(&[
        "id",
        "--",
        "cat",
        "/proc/self/uid_map",
        "--",
        "write",
        "/dev/null",
        "x",
        "--",
        "stat",
        "/testinit",
        "--",
        "write",
        "/new",
        "x",
    ]);
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    case.spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    case.spec["linux"]["uidMappings"] = maps.clone();
    case.spec["linux"]["gidMappings"] = maps;
    // as an id-shifted image would be
    std::os::unix::fs::chown(case.root(), Some(100_000), Some(100_000)).unwrap();
    let text = case.good();
    assert!(
        text.starts_with("uid=0,0,0 gid=0,0,0 groups=\n         0     100000      65536\nfile "),
        "{text}"
    );
    assert!(text.contains(" 65534:65534 "), "{text}");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        fs::metadata(case.root().join("new")).unwrap().uid(),
        100_000
    );
    case.assert_gone();
}

fn joins_namespaces() {
    // the second one shares network, ipc, uts and pid of the first
    let first = Case::new(&["sleep"]);
    let state = first.create().unwrap();
    let mut second = Case::new(&[
        "readlink",
        "/proc/self/ns/net",
        "--",
        "readlink",
        "/proc/self/ns/pid",
        "--",
        "hostname",
        "--",
        "cat",
        "/proc/1/comm",
    ]);
    let path = |name: &str| format!("/proc/{}/ns/{name}", state.pid);
    let link = |name: &str| fs::read_link(path(name)).unwrap().display().to_string();
    second.spec["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "cgroup"},
        {"type": "network", "path": path("net")}, {"type": "pid", "path": path("pid")},
        {"type": "ipc", "path": path("ipc")}, {"type": "uts", "path": path("uts")},
    ]);
    first.start().unwrap();
    second.spec.as_object_mut().unwrap().remove("hostname");
    assert_eq!(
        second.good(),
        format!("{}\n{}\nboat\ntestinit\n", link("net"), link("pid"))
    );
    second.assert_gone();
    container::kill(&first.request.dir, libc::SIGTERM, false).unwrap();
    assert_eq!(first.wait(&state), 143);
}

fn sysctls() {
    let mut case = Case::new(&[
        "sysctl",
        "net.ipv4.ip_unprivileged_port_start",
        "--",
        "sysctl",
        "kernel.msgmax",
        "--",
        "sysctl",
        "net.ipv4.conf.lo.forwarding",
    ]);
    case.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "8000", "net/ipv4/conf/lo/forwarding": "1"});
    assert_eq!(case.good(), "80\n8000\n1\n");
    assert_ne!(
        fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(),
        "8000\n"
    );
}

/// The filter forbids what the set-up itself needs: it has to come last.
fn seccomp_filter() {
    for no_new_privileges in [true, false] {
        let mut case = Case::new(&["caps", "--", "mkdir", "/x"]);
        case.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        case.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{
                "names": ["mkdir", "mkdirat", "mount", "pivot_root", "fsopen", "accept4", "connect", "sendmsg", "sendto", "recvmsg", "recvfrom"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 42,
            }],
        });
        let (code, text) = case.run();
        assert_eq!(code, 1, "{text}");
        assert!(
            text.contains("Seccomp:\t2\n") && text.contains("os error 42"),
            "{text}"
        );
    }
}

/// Loaded before the last descriptors are closed: those go all the same.
fn a_filter_older_than_the_set_up() {
    let mut case = Case::new(&["fds"]);
    case.spec["process"]["noNewPrivileges"] = json!(false);
    case.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["close_range", "openat2", "move_mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    });
    let told = case.good();
    case.spec["linux"]["seccomp"] = json!(null);
    assert_eq!(told, case.good());
}

/// Without `lowerdir+`: what Linux before 6.5 gets.
fn overlay_of_an_older_kernel() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    for name in ["upper", "work", "merged"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    for index in 0..300 {
        // overlay's own separators are plain characters here
        let layer = dir.join(format!("lower/{index:03},a:b{:0>60}", ""));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join("top"), index.to_string()).unwrap();
        if index == 0 {
            fs::write(layer.join("bottom"), "first").unwrap();
        }
    }
    let output = std::process::Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().unwrap())
        .args(["internal", "overlay"])
        .arg(dir)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "first 299",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
