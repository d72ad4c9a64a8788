//! podman and conmon.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::Machine;
use crate::pod_support::{Ended, until};
use crate::{INSIDE, RUNC, difference};

pub const IMAGE: &str = "localhost/busybox";

/// Something that lives until it is killed, whatever it is sent.
const FOREVER: &[&str] = &["sleep", "1000"];

/// podman with storage, state and settings of its own.
pub struct Podman {
    pub machine: Machine,
    runtime: String,
}

impl Podman {
    pub fn new() -> Podman {
        Podman::with_plugins("/usr/lib/cni")
    }

    /// The same with its networks' plugins from a folder.
    pub fn with_plugins(plugins: &str) -> Podman {
        let machine = Machine::new();
        let path = machine.path().display();
        fs::write(
            machine.path().join("containers.conf"),
            // without default_ulimits podman asks for more than the hard limits, which takes CAP_SYS_RESOURCE
            format!(
                r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{path}/libpod"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{path}/networks"
"#
            ),
        )
        .unwrap();
        fs::write(
            machine.path().join("storage.conf"),
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{path}/storage\"\nrunroot = \"/run/storage\"\n"
            ),
        )
        .unwrap();
        let podman = Podman {
            runtime: machine.runtime(),
            machine,
        };
        podman.ok(&["load", "--quiet", "--input", &podman.machine.image()]);
        podman
    }

    /// The same on another runtime.
    fn on(mut self, runtime: &str) -> Podman {
        self.runtime = runtime.to_owned();
        self
    }

    fn words<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let mut words = vec!["env"];
        words.extend([
            "CONTAINERS_CONF=containers.conf",
            "CONTAINERS_STORAGE_CONF=storage.conf",
        ]);
        words.extend(["podman", "--log-level=error", "--runtime", &self.runtime]);
        words.extend(arguments);
        words
    }

    /// Runs podman.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.machine.run(&self.words(arguments))
    }

    /// podman must succeed: its output without the last line feed.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok().trim_end_matches('\n').to_owned()
    }

    /// `run --rm` on a terminal, with something typed.
    fn terminal(&self, arguments: &[&str], typed: &str) -> Ended {
        self.machine.terminal(&self.words(arguments), typed)
    }

    /// One field of a container, by `inspect --format`.
    #[track_caller]
    pub fn field(&self, container: &str, format: &str) -> String {
        self.ok(&["inspect", "--format", format, container])
    }

    /// Nothing is left: containers, states, cgroups, mounts, processes.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.ok(&["ps", "--all", "--quiet"]), "");
        let left = || {
            let found = "ls -A /run/sampan/oci 2>/dev/null; ps -eo args | grep '[c]onmon'; \
                         grep -E '/merged |/userdata/shm ' /proc/self/mounts; true";
            let mut left = self.machine.shell(found);
            let cgroups = self.machine.cgroups();
            left.extend(cgroups.into_iter().filter(|name| name.contains("libpod-")));
            left
        };
        // conmon calls podman, which calls the runtime, when the one who started it has long gone
        let end = Instant::now() + Duration::from_secs(10);
        while !left().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(left(), "");
    }
}

#[test]
fn exit_codes_are_the_programs_own_or_tell_why_it_did_not_run() {
    let podman = Podman::new();
    let podman = cases(podman);
    cases(podman.on(RUNC));

    fn cases(podman: Podman) -> Podman {
        for (arguments, code, stdout, stderr) in [
            (&["true"][..], 0, "", ""),
            (&["false"], 1, "", ""),
            (
                &["sh", "-c", "echo out; echo err >&2; exit 42"],
                42,
                "out\n",
                "err\n",
            ),
            (
                &["sh", "-c", "sh -c 'kill -9 $$'; exit $?"],
                137,
                "",
                "Killed\n",
            ),
            (&["nothing"], 127, "", "executable file not found in $PATH"),
            (&["/nothing"], 127, "", "o such file or directory"),
            (&["/etc"], 126, "", "ermission denied"),
            (&["/etc/passwd"], 126, "", "ermission denied"),
        ] {
            let mut words = vec!["run", "--rm", "--user=root", IMAGE];
            words.extend(arguments);
            let ended = podman.run(&words);
            assert_eq!(
                (ended.code, ended.out().as_str()),
                (code, stdout),
                "{arguments:?} {ended:#?}"
            );
            assert!(ended.stderr.contains(stderr), "{arguments:?} {ended:#?}");
        }
        podman.assert_clean();
        podman
    }
}

#[test]
fn a_container_is_what_it_is_under_runc() {
    let mut podman = Podman::new();
    let mut differences = Vec::new();
    for options in [
        &[][..],
        &["--privileged"],
        &["--user=5:6", "--group-add=7", "--workdir=/tmp", "--env=A=b"],
        &[
            "--cap-drop=all",
            "--cap-add=net_raw",
            "--security-opt=no-new-privileges",
        ],
        &[
            "--security-opt=seccomp=unconfined",
            "--oom-score-adj=500",
            "--umask=0077",
        ],
        &["--network=host", "--ipc=host", "--pid=host", "--uts=host"],
        &[
            "--tmpfs=/a:size=1m,mode=700",
            "--mount=type=tmpfs,destination=/c",
            "--volume=/var:/b:ro",
            "--shm-size=1m",
        ],
        &["--read-only", "--user=5:6"],
        &[
            "--cgroupns=host",
            "--ulimit=core=5:6",
            "--ulimit=nofile=64:64",
            "--ulimit=nproc=64:64",
            "--sysctl=net.ipv4.ping_group_range=3 4",
            "--device=/dev/null:/dev/nil:r",
        ],
        &["--security-opt=unmask=all", "--tty"],
        &["--uidmap=0:100000:1000", "--gidmap=0:200000:1000"],
    ] {
        let mut words = vec!["run", "--rm"];
        words.extend(options);
        words.extend([IMAGE, "sh", "-c", INSIDE]);
        let ours = podman.run(&words);
        podman = podman.on(RUNC);
        let theirs = podman.run(&words);
        let runtime = podman.machine.runtime();
        podman = podman.on(&runtime);
        differences.extend(difference(&ours, &theirs).map(|text| format!("{options:?}: {text}")));
    }
    assert_eq!(differences, [""; 0]);
    podman.assert_clean();
}

#[test]
fn a_container_in_the_background_is_seen_entered_frozen_and_killed() {
    let podman = Podman::new();
    let script = "echo first; echo second >&2; trap 'echo usr1' USR1; while :; do sleep 0.1; done";
    let id = podman.ok(&["run", "--detach", "--name=a", IMAGE, "sh", "-c", script]);
    assert_eq!(
        podman.field("a", "{{.Id}} {{.State.Status}}"),
        format!("{id} running")
    );
    until("it printed", || {
        (podman.ok(&["logs", "a"]) == "first").then_some(())
    });
    assert_eq!(podman.run(&["logs", "a"]).stderr, "second\n");

    let exec = |arguments: &[&str]| {
        let mut words = vec!["exec"];
        words.extend(arguments);
        podman.run(&words)
    };
    assert_eq!(
        exec(&[
            "--user=5:6",
            "--workdir=/tmp",
            "--env=A=b",
            "a",
            "sh",
            "-c",
            "id; pwd; echo $A"
        ])
        .ok(),
        "uid=5 gid=6\n/tmp\nb\n"
    );
    exec(&["a", "sh", "-c", "exit 7"]).fails(7);
    assert!(exec(&["a", "nothing"]).fails(127).contains("not found"));
    assert!(exec(&["a", "/etc"]).fails(126).contains("denied"));
    let with_input = crate::pod_support::run(
        &mut podman
            .machine
            .command(&podman.words(&["exec", "--interactive", "a", "cat"])),
        b"some input",
    );
    assert_eq!(with_input.ok(), "some input");
    exec(&["--detach", "a", "touch", "/made"]).ok();
    until("the detached one did it", || {
        (exec(&["a", "ls", "/made"]).code == 0).then_some(())
    });

    let top = podman.ok(&["top", "a", "pid", "comm"]);
    assert!(
        top.contains("1    ") || top.lines().nth(1).unwrap().starts_with('1'),
        "{top}"
    );
    let stats: Value =
        serde_json::from_str(&podman.ok(&["stats", "--no-stream", "--format=json", "a"])).unwrap();
    let pids: u32 = stats[0]["pids"].as_str().unwrap().parse().unwrap();
    assert!((1..=3).contains(&pids), "{stats}");

    podman.ok(&["pause", "a"]);
    assert_eq!(podman.field("a", "{{.State.Status}}"), "paused");
    assert!(
        exec(&["a", "true"]).fails(255).contains("not running") || exec(&["a", "true"]).code == 255
    );
    podman.ok(&["unpause", "a"]);
    assert_eq!(podman.field("a", "{{.State.Status}}"), "running");

    podman.ok(&["kill", "--signal=USR1", "a"]);
    until("it got the signal", || {
        podman.ok(&["logs", "a"]).ends_with("usr1").then_some(())
    });
    podman.ok(&["kill", "a"]);
    assert_eq!(podman.ok(&["wait", "a"]), "137");
    assert_eq!(
        podman.field("a", "{{.State.Status}} {{.State.ExitCode}}"),
        "exited 137"
    );

    // once more, with the same state folder
    podman.ok(&["start", "a"]);
    podman.ok(&["restart", "--time=0", "a"]);
    assert_eq!(podman.field("a", "{{.State.Status}}"), "running");
    podman.ok(&["rm", "--force", "--time=0", "a"]);
    podman.assert_clean();
}

#[test]
fn stop_is_told_apart_from_kill() {
    let podman = Podman::new();
    let trap = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    podman.ok(&["run", "--detach", "--name=polite", IMAGE, "sh", "-c", trap]);
    podman.ok(&[&["run", "--detach", "--name=deaf", IMAGE], FOREVER].concat());
    podman.ok(&[
        &["run", "--detach", "--init", "--name=init", IMAGE],
        FOREVER,
    ]
    .concat());
    until("the trap is set", || {
        (podman.ok(&["logs", "polite"]) == "ready").then_some(())
    });
    assert!(
        podman
            .ok(&["exec", "init", "cat", "/proc/1/cmdline"])
            .starts_with("/run/podman-init")
    );
    for (name, code) in [("polite", "3"), ("deaf", "137"), ("init", "143")] {
        podman.ok(&["stop", "--time=1", name]);
        assert_eq!(podman.ok(&["wait", name]), code, "{name}");
    }
    podman.ok(&["rm", "polite", "deaf", "init"]);
    podman.assert_clean();
}

#[test]
fn a_pod_shares_what_its_infra_container_has() {
    let podman = Podman::new();
    podman.ok(&[
        "pod",
        "create",
        "--name=p",
        "--infra-image",
        IMAGE,
        "--infra-command=sleep 1000",
        "--share=net,ipc,uts",
        "--hostname=pod",
    ]);
    for name in ["one", "two"] {
        podman.ok(&[
            &["run", "--detach", "--pod=p", "--name", name, IMAGE],
            FOREVER,
        ]
        .concat());
    }
    let links = "hostname; for kind in ipc net uts pid mnt; do readlink /proc/self/ns/$kind; done";
    let of = |name: &str| -> Vec<String> {
        podman
            .ok(&["exec", name, "sh", "-c", links])
            .lines()
            .map(str::to_owned)
            .collect()
    };
    let (one, two) = (of("one"), of("two"));
    assert_eq!(one[0], "pod");
    assert_eq!(one[..4], two[..4]);
    assert!(one[4] != two[4] && one[5] != two[5], "{one:?} {two:?}");
    assert_eq!(
        podman.ok(&["pod", "ps", "--format={{.Status}} {{.NumberOfContainers}}"]),
        "Running 3"
    );
    podman.ok(&["pod", "pause", "p"]);
    assert_eq!(podman.field("one", "{{.State.Status}}"), "paused");
    podman.ok(&["pod", "unpause", "p"]);
    podman.ok(&["pod", "kill", "p"]);
    assert_eq!(podman.ok(&["wait", "one", "two"]), "137\n137");
    podman.ok(&["pod", "rm", "--force", "--time=0", "p"]);
    podman.assert_clean();
}

#[test]
fn limits_are_in_the_cgroup_and_can_be_changed() {
    let podman = Podman::new();
    podman.ok(&[
        &[
            "run",
            "--detach",
            "--name=a",
            "--memory=64m",
            "--pids-limit=50",
            "--cpus=0.5",
            "--cpu-shares=512",
            IMAGE,
        ],
        FOREVER,
    ]
    .concat());
    let read = |v1: &str, v2: &str| {
        let script = format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}");
        podman.ok(&["exec", "a", "sh", "-c", &script])
    };
    assert_eq!(
        read("memory/memory.limit_in_bytes", "memory.max"),
        "67108864"
    );
    assert_eq!(read("pids/pids.max", "pids.max"), "50");
    assert!(["50000", "50000 100000"].contains(&read("cpu/cpu.cfs_quota_us", "cpu.max").as_str()));
    assert!(["512", "20", "59"].contains(&read("cpu/cpu.shares", "cpu.weight").as_str()));
    podman.ok(&["update", "--memory=32m", "--cpus=0.25", "a"]);
    assert_eq!(
        read("memory/memory.limit_in_bytes", "memory.max"),
        "33554432"
    );
    assert!(["25000", "25000 100000"].contains(&read("cpu/cpu.cfs_quota_us", "cpu.max").as_str()));
    assert_eq!(read("pids/pids.max", "pids.max"), "50");
    // more than the limit allows ends it
    let hungry = "head -c 100000000 /dev/zero | tail -c 90000000 >/dev/null";
    podman
        .run(&[
            "run",
            "--rm",
            "--memory=16m",
            "--memory-swap=16m",
            IMAGE,
            "sh",
            "-c",
            hungry,
        ])
        .fails(137);
    podman.ok(&["rm", "--force", "--time=0", "a"]);
    podman.assert_clean();
}

#[test]
fn a_terminal_has_the_callers_size_and_takes_what_is_typed() {
    let podman = Podman::new();
    let ended = podman.terminal(
        &[
            "run",
            "--rm",
            "--tty",
            IMAGE,
            "sh",
            "-c",
            "tty; stty size; ls -l /dev/console; exit 4",
        ],
        "",
    );
    assert_eq!(ended.code, 4, "{ended:#?}");
    let lines: Vec<String> = ended
        .out()
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    assert_eq!(lines[..2], ["/dev/pts/0", "40 100"], "{ended:#?}");
    assert!(
        lines[2].starts_with("crw") && lines[2].ends_with("/dev/console"),
        "{ended:#?}"
    );

    let typed = "echo $((40 + 2)); tty; exit 6\n";
    let ended = podman.terminal(
        &["run", "--rm", "--interactive", "--tty", IMAGE, "sh"],
        typed,
    );
    assert_eq!(ended.code, 6, "{ended:#?}");
    assert!(ended.out().contains("\n42\r\n/dev/pts/0\r\n"), "{ended:#?}");

    podman.ok(&[&["run", "--detach", "--tty", "--name=a", IMAGE], FOREVER].concat());
    let ended = podman.terminal(
        &["exec", "--tty", "a", "sh", "-c", "tty; stty size; exit 5"],
        "",
    );
    assert_eq!(
        (ended.code, ended.out().as_str()),
        (5, "/dev/pts/1\r\n40 100\r\n")
    );
    podman.ok(&["rm", "--force", "--time=0", "a"]);
    podman.assert_clean();
}

#[test]
fn health_is_probed_inside() {
    let podman = Podman::new();
    podman.ok(&[
        &[
            "run",
            "--detach",
            "--name=a",
            "--health-cmd=test -e /well",
            "--health-interval=disable",
            "--health-retries=1",
            IMAGE,
        ],
        FOREVER,
    ]
    .concat());
    assert_eq!(podman.run(&["healthcheck", "run", "a"]).code, 1);
    podman.ok(&["exec", "a", "touch", "/well"]);
    assert_eq!(podman.run(&["healthcheck", "run", "a"]).code, 0);
    podman.ok(&["rm", "--force", "--time=0", "a"]);
    podman.assert_clean();
}

#[test]
fn one_killed_from_outside_is_seen_to_have_ended() {
    let podman = Podman::new();
    podman.ok(&[&["run", "--detach", "--name=a", IMAGE], FOREVER].concat());
    let pid = podman.field("a", "{{.State.Pid}}");
    podman.machine.shell(&format!("kill -9 {pid}"));
    assert_eq!(podman.ok(&["wait", "a"]), "137");
    podman.ok(&["rm", "a"]);
    // conmon, too: podman then learns from the runtime alone what has become of the container
    podman.ok(&[&["run", "--detach", "--name=b", IMAGE], FOREVER].concat());
    let (conmon, pid) = (
        podman.field("b", "{{.State.ConmonPid}}"),
        podman.field("b", "{{.State.Pid}}"),
    );
    podman.machine.shell(&format!("kill -9 {conmon} {pid}"));
    podman.ok(&["rm", "--force", "--time=0", "b"]);
    // with conmon gone podman asks no runtime to delete it, neither this one nor runc
    let runtime = &podman.runtime;
    let left = podman.machine.shell(&format!("{runtime} list --quiet"));
    let state = podman.machine.run(&[runtime, "state", &left]).json();
    assert_eq!(state["status"], "stopped");
    podman.machine.shell(&format!("{runtime} delete {left}"));
    podman.assert_clean();
}

#[test]
fn what_cannot_be_made_is_an_error_with_its_reason_and_leaves_nothing() {
    let podman = Podman::new();
    for (options, text) in [
        (&["--volume=/does/not/exist:/x"][..], "/does/not/exist"),
        (&["--sysctl=net.ipv4.nothing=1"], "net/ipv4/nothing"),
        (&["--ulimit=nofile=100000000:100000000"], "RLIMIT_NOFILE"),
        (&["--workdir=/bin/busybox"], "/bin/busybox"),
    ] {
        let mut words = vec!["run", "--rm"];
        words.extend(options);
        words.extend([IMAGE, "true"]);
        let ended = podman.run(&words);
        assert!((125..=127).contains(&ended.code), "{options:?} {ended:#?}");
        assert!(ended.stderr.contains(text), "{options:?} {ended:#?}");
        podman.assert_clean();
    }
}

/// Settings of a machine whose root has no CAP_SYS_RESOURCE and no systemd, as the document has them.
pub const SETTINGS: &str = r#"
    mkdir -p /etc/containers/containers.conf.d
    printf '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n' >/etc/containers/containers.conf.d/limits.conf
    printf '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n' >/etc/containers/containers.conf.d/engine.conf
"#;

#[test]
fn as_typed() {
    let machine = Machine::installed();
    machine.image();
    machine.types("## podman", SETTINGS, "true");
}
