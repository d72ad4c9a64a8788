//! What a process asks of the kernel beyond isolation: time, scheduling, labels, listeners of filters, devices; and namespaces by path.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use sampan::container;
use serde_json::{Value, json};

use crate::Test;
use crate::common::Case;

pub const TESTS: &[Test] = &[
    ("kernel::time_offsets", time_offsets),
    (
        "kernel::joins_mount_and_user_namespaces",
        joins_mount_and_user_namespaces,
    ),
    ("kernel::without_pid_namespace", without_pid_namespace),
    (
        "kernel::what_the_first_process_left",
        what_the_first_process_left,
    ),
    ("kernel::scheduling", scheduling),
    ("kernel::processors", processors),
    (
        "kernel::memory_policy_and_personality",
        memory_policy_and_personality,
    ),
    (
        "kernel::labels_without_security_modules",
        labels_without_security_modules,
    ),
    ("kernel::listener", listener),
    ("kernel::listener_missing", listener_missing),
    ("kernel::net_devices", net_devices),
    ("kernel::ambient_that_cannot_be", ambient_that_cannot_be),
];

fn process(args: &[&str]) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/"], "cwd": "/"})
}

fn add_namespace(case: &mut Case, namespace: Value) {
    let list = case.spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|other| other["type"] != namespace["type"]);
    list.push(namespace);
}

fn user_namespace(case: &mut Case) {
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    add_namespace(case, json!({"type": "user"}));
    case.spec["linux"]["uidMappings"] = maps.clone();
    case.spec["linux"]["gidMappings"] = maps;
    std::os::unix::fs::chown(case.root(), Some(100_000), Some(100_000)).unwrap();
}

fn time_offsets() {
    let words =
        |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    for in_user_namespace in [false, true] {
        let mut case = Case::new(&["sleep"]);
        if in_user_namespace {
            user_namespace(&mut case);
        }
        add_namespace(&mut case, json!({"type": "time"}));
        case.spec["linux"]["timeOffsets"] =
            json!({"monotonic": {"secs": 7881, "nanosecs": 2718281}, "boottime": {"secs": -1}});
        // a clock cannot begin before zero, but an uptime of a second is had everywhere
        let state = case.create().unwrap();
        case.start().unwrap();
        let own = fs::read_link("/proc/self/ns/time").unwrap();
        assert_ne!(
            fs::read_link(format!("/proc/{}/ns/time", state.pid)).unwrap(),
            own
        );
        let want = "monotonic 7881 2718281 boottime -1 0";
        let offsets = fs::read_to_string(format!("/proc/{}/timens_offsets", state.pid)).unwrap();
        assert_eq!(words(&offsets).join(" "), want);
        let (code, text) = case.exec(&process(&["testinit", "cat", "/proc/self/timens_offsets"]));
        assert_eq!((code, words(&text).join(" ")), (0, want.to_owned()));
        container::delete(&case.request.dir).unwrap();
        case.wait(&state);
        case.assert_gone();
    }
}

/// A process in a mount namespace of its own, killed at the end.
struct Holder(Child);

impl Holder {
    fn new() -> Holder {
        let mut command = Command::new("unshare");
        command.args([
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            "echo; exec sleep 1000",
        ]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn joins_mount_and_user_namespaces() {
    let holder = Holder::new();
    let path = format!("/proc/{}/ns/mnt", holder.0.id());
    let mut case = Case::new(&["readlink", "/proc/self/ns/mnt", "--", "ls", "/"]);
    add_namespace(&mut case, json!({"type": "mount", "path": path}));
    let link = fs::read_link(&path).unwrap();
    let text = case.good();
    assert!(text.starts_with(&format!("{}\n", link.display())), "{text}");
    assert!(!text.contains("etc"), "{text}");
    case.assert_gone();

    let mut first = Case::new(&["sleep"]);
    user_namespace(&mut first);
    let state = first.create().unwrap();
    let mut second = Case::new(&["id", "--", "readlink", "/proc/self/ns/user"]);
    let path = format!("/proc/{}/ns/user", state.pid);
    std::os::unix::fs::chown(second.root(), Some(100_000), Some(100_000)).unwrap();
    add_namespace(&mut second, json!({"type": "user", "path": path}));
    let want = format!(
        "uid=0,0,0 gid=0,0,0 groups=\n{}\n",
        fs::read_link(&path).unwrap().display()
    );
    assert_eq!(second.good(), want);
    // maps that stand beside a path are those of the namespace already
    second.spec["linux"]["uidMappings"] =
        json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    second.spec["linux"]["gidMappings"] = second.spec["linux"]["uidMappings"].clone();
    assert_eq!(second.good(), want);
    container::delete(&first.request.dir).unwrap();
    first.wait(&state);
}

fn without_pid_namespace() {
    let mut case = Case::new(&["fork", "2", "--", "sleep"]);
    let list = case.spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|namespace| namespace["type"] != "pid");
    case.spec["process"]["args"] = json!(["/testinit", "on-term", "3"]);
    let state = case.create().unwrap();
    case.start().unwrap();
    case.wait_for("ready\n");
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(
        fs::read_link(format!("/proc/{}/ns/pid", state.pid)).unwrap(),
        own
    );
    container::kill(&case.request.dir, libc::SIGTERM, true).unwrap();
    assert_eq!(case.wait(&state), 3);
    container::delete(&case.request.dir).unwrap();
    case.assert_gone();
}

/// Where the first process is like any other, killing the container kills what it left.
fn what_the_first_process_left() {
    let mut case = Case::new(&["orphan", "sleep"]);
    let list = case.spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|namespace| namespace["type"] != "pid");
    let state = case.create().unwrap();
    case.start().unwrap();
    assert_eq!(case.wait(&state), 0);
    let pid: i32 = case.output().trim().parse().unwrap();
    let (dir, cgroup) = (&case.request.dir, &case.request.cgroup);
    assert_eq!(cgroup.processes().unwrap(), [pid]);
    let refused = "container not running";
    let error = container::kill(dir, libc::SIGTERM, false).unwrap_err();
    assert!(error.to_string().ends_with(refused), "{error}");
    container::kill(dir, libc::SIGKILL, false).unwrap();
    while !cgroup.processes().unwrap().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let error = container::kill(dir, libc::SIGKILL, false).unwrap_err();
    assert!(error.to_string().ends_with(refused), "{error}");
    container::delete(dir).unwrap();
    case.assert_gone();
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn scheduling() {
    let mut case = Case::new(&["sleep"]);
    case.spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "priority": 0, "nice": 19});
    case.spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 4});
    let state = case.create().unwrap();
    case.start().unwrap();
    let pid = state.pid.to_string();
    assert!(said("chrt", &["-p", &pid]).contains("policy: SCHED_BATCH\n"));
    assert_eq!(said("ionice", &["-p", &pid]), "best-effort: prio 4\n");
    // proc_pid_stat(5): nice is field 19, the policy field 41
    let fields = |text: &str| -> (String, String) {
        let rest: Vec<&str> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
        (rest[16].to_owned(), rest[38].to_owned())
    };
    let mut inner = process(&["testinit", "cat", "/proc/self/stat"]);
    let (_, text) = case.exec(&inner);
    assert_eq!(fields(&text), ("19".to_owned(), "3".to_owned()));
    inner["scheduler"] = json!({"policy": "SCHED_DEADLINE", "flags": ["SCHED_RESET_ON_FORK"],
        "runtime": 42000, "deadline": 100000, "period": 1000000});
    let (_, text) = case.exec(&inner);
    assert_eq!(fields(&text).1, "6", "{text}");
    container::delete(&case.request.dir).unwrap();
    case.wait(&state);
}

fn processors() {
    let allowed = |text: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with("Cpus_allowed_list:"));
        line.unwrap().split_once('\t').unwrap().1.to_owned()
    };
    let all = allowed(&fs::read_to_string("/proc/self/status").unwrap());
    let before = sampan::sys::sched::affinity().unwrap();
    let word = before.iter().position(|word| *word != 0).unwrap();
    let first = word * 64 + before[word].trailing_zeros() as usize;
    let mut one = vec![0; word + 1];
    one[word] = 1 << (first % 64);
    // a caller that is bound to one processor does not bind the container
    sampan::sys::sched::set_affinity(&one).unwrap();
    let case = Case::new(&["sleep"]);
    let state = case.create().unwrap();
    case.start().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", state.pid)).unwrap();
    assert_eq!(allowed(&status), all);
    let mut inner = process(&["testinit", "cat", "/proc/self/status"]);
    assert_eq!(allowed(&case.exec(&inner).1), all);
    sampan::sys::sched::set_affinity(&before).unwrap();
    // what is set before it is in the cgroup stays where nothing else is said; before Linux 6.2 the kernel forgot it on the way
    inner["execCPUAffinity"] = json!({"initial": first.to_string()});
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = kernel.split('.').map(|it| it.parse::<u32>().unwrap_or(0));
    let forgets = (numbers.next(), numbers.next()) < (Some(6), Some(2));
    let expected = if forgets {
        all.clone()
    } else {
        first.to_string()
    };
    assert_eq!(allowed(&case.exec(&inner).1), expected);
    inner["execCPUAffinity"] = json!({"initial": first.to_string(), "final": first.to_string()});
    assert_eq!(allowed(&case.exec(&inner).1), first.to_string());
    inner["execCPUAffinity"] = json!({"final": "60000"});
    let (code, text) = case.exec(&inner);
    assert_eq!(code, 125);
    assert!(
        text.contains("set the processors of process.execCPUAffinity.final: "),
        "{text}"
    );
    container::delete(&case.request.dir).unwrap();
    case.wait(&state);
}

fn memory_policy_and_personality() {
    let mut case = Case::new(&["cat", "/proc/self/numa_maps", "/proc/self/personality"]);
    case.spec["linux"]["memoryPolicy"] =
        json!({"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    case.spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    if !Path::new("/proc/self/numa_maps").exists() {
        let text = case.create().unwrap_err().1;
        assert!(
            text.ends_with(
                "set linux.memoryPolicy: the kernel has no memory policies (CONFIG_NUMA)"
            ),
            "{text}"
        );
        case.spec["linux"]["memoryPolicy"] = Value::Null;
        case.spec["process"]["args"] = json!(["/testinit", "cat", "/proc/self/personality"]);
        assert_eq!(case.good(), "00000008\n");
        return;
    }
    let text = case.good();
    assert!(text.contains(" prefer=static:0 "), "{text}");
    assert!(text.ends_with("\n00000008\n"), "{text}");
}

fn labels_without_security_modules() {
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    let apparmor = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    for profile in ["", "unconfined"] {
        let mut case = Case::new(&["true"]);
        case.spec["process"]["apparmorProfile"] = json!(profile);
        case.spec["process"]["selinuxLabel"] = json!("");
        case.good();
    }
    for (key, value, there, want) in [
        (
            "apparmorProfile",
            "sampan-none",
            apparmor.is_ok_and(|text| text.starts_with('Y')),
            "set process.apparmorProfile sampan-none: the kernel has no AppArmor, or it is off",
        ),
        (
            "selinuxLabel",
            "a:b:c:s0",
            known.contains("\tselinuxfs\n"),
            "set process.selinuxLabel a:b:c:s0: the kernel has no SELinux, or it is off",
        ),
    ] {
        if there {
            continue;
        }
        let mut case = Case::new(&["true"]);
        case.spec["process"][key] = json!(value);
        assert_eq!(case.create().unwrap_err(), (125, want.to_owned()));
        case.assert_gone();
    }
}

/// Answers to whoever sends a listener: prints what came with it, then answers each call with an error, or lets it happen.
const AGENT: &str = r#"
import array, fcntl, socket, struct, sys, threading
RECV, SEND = 0xc0502100, 0xc0182101
answer = int(sys.argv[2])
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("ready", flush=True)
def serve(fd):
    while True:
        request = bytearray(80)
        try:
            fcntl.ioctl(fd, RECV, request)
            number = struct.unpack_from("Q", request)[0]
            fcntl.ioctl(fd, SEND, struct.pack("QqiI", number, 0, -answer, 0 if answer else 1))
        except FileNotFoundError:
            pass
        except OSError:
            return
while True:
    peer, _ = server.accept()
    text, fds, _, _ = socket.recv_fds(peer, 65536, 4)
    print(text.decode(), len(fds), flush=True)
    threading.Thread(target=serve, args=(fds[0],), daemon=True).start()
"#;

struct Agent(Child, std::io::BufReader<std::process::ChildStdout>);

impl Agent {
    fn new(socket: &Path, answer: i32) -> Agent {
        let mut command = Command::new("python3");
        command
            .args(["-c", AGENT])
            .arg(socket)
            .arg(answer.to_string());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut agent = Agent(child, out);
        assert_eq!(agent.line(), "ready\n");
        agent
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.1, &mut line).unwrap();
        line
    }

    /// What came with the next listener.
    fn told(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(line.strip_suffix(" 1\n").unwrap()).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn listener() {
    let important = json!([
        "execve", "openat", "open", "read", "close", "fcntl", "sendmsg", "prctl"
    ]);
    for (no_new_privileges, names, answer) in [
        (false, json!(["mkdir", "mkdirat"]), libc::ENOMEDIUM),
        (true, json!(["mkdir", "mkdirat"]), libc::ENOMEDIUM),
        (false, important.clone(), 0),
        (true, important, 0),
    ] {
        let mut case = Case::new(&["sleep"]);
        let socket = case.temp.path().join("agent");
        let mut agent = Agent::new(&socket, answer);
        case.spec["annotations"] = json!({"a": "b"});
        case.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        case.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "meta",
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
        });
        let state = case.create().unwrap();
        let told = |pid: i32, status: &str| {
            json!({"ociVersion": "1.2.0", "fds": ["seccompFd"], "pid": pid, "metadata": "meta", "state": {
                "ociVersion": "1.2.0", "id": case.request.id, "status": status, "pid": state.pid,
                "bundle": case.request.bundle, "annotations": {"a": "b"}}})
        };
        assert_eq!(agent.told(), told(state.pid, "creating"));
        case.start().unwrap();
        let mut inner = process(&["testinit", "mkdir", "/dev/shm/x", "--", "fds"]);
        inner["noNewPrivileges"] = json!(no_new_privileges);
        let (code, text) = case.exec(&inner);
        let heard = agent.told();
        let pid = heard["pid"].as_i64().unwrap() as i32;
        assert!(pid > 0 && pid != state.pid);
        assert_eq!(heard, told(pid, "running"));
        if answer == 0 {
            // three streams, and no listener
            assert_eq!((code, text.lines().count()), (0, 3), "{text}");
        } else {
            assert!(code == 1 && text.contains("No medium found"), "{text}");
        }
        container::delete(&case.request.dir).unwrap();
        case.wait(&state);
        case.assert_gone();
    }
}

fn listener_missing() {
    for (path, names, want) in [
        (
            json!(""),
            json!(["mkdir"]),
            "linux.seccomp.listenerPath: a rule has SCMP_ACT_NOTIFY",
        ),
        (
            json!("/no/such/socket"),
            json!(["mkdir"]),
            "linux.seccomp.listenerPath: failed to connect with seccomp agent /no/such/socket: No such file or directory",
        ),
        (
            json!("/no/such/socket"),
            json!(["write"]),
            "linux.seccomp.syscalls[0]: SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
    ] {
        let mut case = Case::new(&["true"]);
        case.spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}]});
        let (code, text) = case.create().unwrap_err();
        assert!(code == 125 && text.contains(want), "{text}");
        case.assert_gone();
    }
}

fn net_devices() {
    // a network of our own plays the host
    let host = fs::File::open("/proc/self/ns/net").unwrap();
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let ip = |args: &str| said("ip", &args.split(' ').collect::<Vec<_>>());
    let add = || {
        // one half of a pair: every kernel has those where a container has a network
        ip("link add port0 mtu 1789 address 00:11:22:33:44:55 type veth peer name port1");
        ip("address add 169.254.169.77/32 dev port0 label port0:x");
        ip("address add fd00::7/64 dev port0 nodad");
    };
    add();
    let mut case = Case::new(&["sleep"]);
    case.spec["linux"]["netDevices"] = json!({"port0": {"name": "eth%d"}, "port1": {}});
    let state = case.create().unwrap();
    assert_eq!(ip("-brief link").lines().count(), 1);
    let inside = Command::new("nsenter")
        .args([
            "-n",
            "-t",
            &state.pid.to_string(),
            "ip",
            "-oneline",
            "address",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(inside.stdout).unwrap();
    for want in [
        "eth0    inet 169.254.169.77/32 ",
        "eth0    inet6 fd00::7/64 scope global ",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
    let links = Command::new("nsenter")
        .args(["-n", "-t", &state.pid.to_string(), "ip", "-oneline", "link"])
        .output()
        .unwrap();
    let text = String::from_utf8(links.stdout).unwrap();
    assert!(
        text.contains("mtu 1789 ") && text.contains("ether 00:11:22:33:44:55 "),
        "{text}"
    );
    assert_eq!(text.matches(",UP,").count(), 3, "{text}");
    container::delete(&case.request.dir).unwrap();
    case.wait(&state);
    add();
    for (devices, want) in [
        (
            json!({"none0": {}}),
            "linux.netDevices.none0: move it to the container as none0: there is no such device",
        ),
        (
            json!({"port0": {"name": "lo"}}),
            "linux.netDevices.port0: move it to the container as lo: the name is taken in there",
        ),
        (
            json!({"port0": {"name": "a/b"}}),
            "linux.netDevices.port0.name: \"a/b\" is not a device name",
        ),
        (
            json!({"port0": {"name": "a%s"}}),
            "linux.netDevices.port0.name: \"a%s\" is not a device name",
        ),
        (
            json!({"port0": {"name": "x"}, "port1": {"name": "x"}}),
            "linux.netDevices.port1.name: x is there twice",
        ),
    ] {
        let mut case = Case::new(&["true"]);
        case.spec["linux"]["netDevices"] = devices;
        let (code, text) = case.create().unwrap_err();
        assert!(code == 125 && text.ends_with(want), "{text}");
        case.assert_gone();
    }
    let mut case = Case::new(&["true"]);
    case.spec["linux"]["netDevices"] = json!({"port0": {}});
    let list = case.spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|namespace| namespace["type"] != "network");
    let (_, text) = case.create().unwrap_err();
    assert!(
        text.ends_with("linux.netDevices: needs a network namespace in linux.namespaces"),
        "{text}"
    );
    nix::sched::setns(host, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    std::io::stdout().flush().unwrap();
}

fn ambient_that_cannot_be() {
    let mut case = Case::new(&["caps"]);
    case.spec["process"]["capabilities"] = json!({"bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"],
        "permitted": ["CAP_KILL", "CAP_CHOWN"], "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN", "CAP_KILL"]});
    assert!(
        case.good()
            .ends_with("CapAmb:\t0000000000000001\nNoNewPrivs:\t1\nSeccomp:\t0\n"),
        "{}",
        case.output()
    );
}
