//! containerd with its runc shim, driven by ctr: what Kubernetes' container runtime interface stands on.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::Machine;
use crate::pod_support::{Ended, until};
use crate::{INSIDE, RUNC, difference};

const IMAGE: &str = "localhost/busybox:latest";

/// A daemon with folders and sockets of its own.
struct Containerd {
    machine: Machine,
    daemon: Child,
    runtime: String,
}

impl Containerd {
    fn new() -> Containerd {
        let machine = Machine::new();
        let path = machine.path().display();
        fs::write(
            machine.path().join("config.toml"),
            format!(
                r#"
version = 2
root = "{path}/root"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "/run/containerd/sock"
"#
            ),
        )
        .unwrap();
        let containerd = Containerd {
            daemon: start(&machine),
            runtime: machine.runtime(),
            machine,
        };
        let archive = containerd.machine.image();
        containerd.ok(&["image", "import", &archive]);
        containerd
    }

    /// The same on another runtime.
    fn on(mut self, runtime: &str) -> Containerd {
        self.runtime = runtime.to_owned();
        self
    }

    fn words<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let mut words = vec!["ctr", "--address=/run/containerd/sock"];
        for word in arguments {
            words.push(word);
            if *word == "run" {
                words.extend(["--runc-binary", &self.runtime]);
            }
        }
        words
    }

    /// Runs ctr; `run` gets the runtime.
    fn run(&self, arguments: &[&str]) -> Ended {
        self.machine.run(&self.words(arguments))
    }

    /// ctr must succeed: its output without the last line feed.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok().trim_end_matches('\n').to_owned()
    }

    fn terminal(&self, arguments: &[&str], typed: &str) -> Ended {
        self.machine.terminal(&self.words(arguments), typed)
    }

    /// Process and state of a task, as the shim knows it.
    #[track_caller]
    fn task(&self, id: &str) -> (String, String) {
        let list = self.ok(&["task", "ls"]);
        let rows = list
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut rows = rows.filter(|row| row[0] == id);
        let row = rows.next().unwrap_or_else(|| panic!("no {id} in {list}"));
        (row[1].to_owned(), row[2].to_owned())
    }

    #[track_caller]
    fn await_state(&self, id: &str, state: &str) {
        until(&format!("{id} is {state}"), || {
            (self.task(id).1 == state).then_some(())
        });
    }

    /// Ends a task and removes its container.
    #[track_caller]
    fn remove(&self, id: &str) {
        self.run(&["task", "kill", "--signal=KILL", id]).ok();
        self.await_state(id, "STOPPED");
        self.ok(&["task", "rm", id]);
        self.ok(&["container", "rm", id]);
    }

    /// Nothing is left: tasks, states, bundles, cgroups, mounts, shims.
    #[track_caller]
    fn assert_clean(&self) {
        let left = || {
            let found = "ls -A /run/containerd/runc/default /run/containerd/io.containerd.runtime.v2.task/default 2>/dev/null |
                         grep -v '^/\\|^$'; ps -eo args | grep '[c]ontainerd-shim'; grep /rootfs /proc/self/mounts; true";
            let mut left = self.machine.shell(found);
            let cgroups = self.machine.cgroups();
            left.extend(
                cgroups
                    .into_iter()
                    .filter(|name| name.starts_with("default/")),
            );
            left
        };
        let end = Instant::now() + Duration::from_secs(10);
        while !left().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(left(), "");
        assert_eq!(self.ok(&["container", "ls", "--quiet"]), "");
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // inside the machine it ends with the machine; what is ours is the one who waits for it
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Starts the daemon and waits until it answers. `timeout` around it would end it with the test's first minute.
fn start(machine: &Machine) -> Child {
    let log = fs::File::create(machine.path().join("log")).unwrap();
    let daemon = machine
        .command(&[
            "sh",
            "-c",
            "containerd --config config.toml & echo $! > daemon.pid; wait",
        ])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    until("containerd answers", || {
        let version = machine.run(&["ctr", "--address=/run/containerd/sock", "version"]);
        (version.code == 0).then_some(())
    });
    daemon
}

#[test]
fn exit_codes_are_the_programs_own_and_errors_say_why() {
    let containerd = Containerd::new();
    let containerd = cases(containerd);
    cases(containerd.on(RUNC));

    fn cases(containerd: Containerd) -> Containerd {
        for (arguments, code, stdout, stderr) in [
            (&["true"][..], 0, "", ""),
            (&["false"], 1, "", ""),
            (
                &["sh", "-c", "echo out; echo err >&2; exit 42"],
                42,
                "out\n",
                "err\n",
            ),
            (&["sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137, "", ""),
            (&["nothing"], 1, "", "OCI runtime create failed: "),
            (
                &["nothing"],
                1,
                "",
                "exec: \"nothing\": executable file not found in $PATH",
            ),
            (&["/etc"], 1, "", "ermission denied"),
        ] {
            let ended = containerd.run(&[&["run", "--rm", IMAGE, "a"], arguments].concat());
            assert_eq!(
                (ended.code, ended.out().as_str()),
                (code, stdout),
                "{arguments:?} {ended:#?}"
            );
            let said = ended.stderr.replace("exec \"", "exec: \"");
            assert!(said.contains(stderr), "{arguments:?} {ended:#?}");
        }
        containerd.assert_clean();
        containerd
    }
}

#[test]
fn a_container_is_what_it_is_under_runc() {
    let mut containerd = Containerd::new();
    let mut differences = Vec::new();
    for options in [
        &[][..],
        &["--privileged"],
        &["--read-only", "--cwd=/tmp", "--env=A=b", "--seccomp"],
        &["--net-host", "--allow-new-privs"],
        &[
            "--cap-add=CAP_SYS_ADMIN",
            "--cap-drop=CAP_CHOWN",
            "--device=/dev/null",
        ],
        &[
            "--mount=type=bind,src=/tmp,dst=/host,options=rbind:ro",
            "--cgroup=/elsewhere/b",
        ],
        &["--uidmap=0:100000:1000", "--gidmap=0:200000:1000"],
    ] {
        let words = [&["run", "--rm"], options, &[IMAGE, "a", "sh", "-c", INSIDE]].concat();
        let ours = containerd.run(&words);
        containerd = containerd.on(RUNC);
        let theirs = containerd.run(&words);
        let runtime = containerd.machine.runtime();
        containerd = containerd.on(&runtime);
        differences.extend(difference(&ours, &theirs).map(|text| format!("{options:?}: {text}")));
    }
    assert_eq!(differences, [""; 0]);
    containerd.assert_clean();
}

#[test]
fn a_task_is_seen_entered_frozen_measured_and_killed() {
    let containerd = Containerd::new();
    let script = "trap 'exit 3' TERM; while :; do sleep 0.1; done";
    containerd.ok(&[
        "run",
        "--detach",
        "--pid-file=pid",
        "--memory-limit=67108864",
        "--cpus=0.5",
        IMAGE,
        "a",
        "sh",
        "-c",
        script,
    ]);
    let (pid, state) = containerd.task("a");
    assert_eq!(state, "RUNNING");
    assert_eq!(
        fs::read_to_string(containerd.machine.path().join("pid")).unwrap(),
        pid
    );

    let exec = |arguments: &[&str]| {
        let words = [&["task", "exec", "--exec-id=e"], arguments].concat();
        containerd.run(&words)
    };
    let ended = exec(&[
        "--cwd=/tmp",
        "--user=5:6",
        "a",
        "sh",
        "-c",
        "id; pwd; exit 7",
    ]);
    assert_eq!(
        (ended.code, ended.out().as_str()),
        (7, "uid=5 gid=6 groups=6\n/tmp\n"),
        "{ended:#?}"
    );
    assert!(
        exec(&["a", "nothing"])
            .fails(1)
            .contains("OCI runtime exec failed: exec")
    );
    let input = crate::pod_support::run(
        &mut containerd.machine.command(&containerd.words(&[
            "task",
            "exec",
            "--exec-id=i",
            "a",
            "cat",
        ])),
        b"some input",
    );
    assert_eq!(input.ok(), "some input");
    assert!(containerd.ok(&["task", "ps", "a"]).contains(&pid));

    let metrics: Value =
        serde_json::from_str(&containerd.ok(&["task", "metrics", "--format=json", "a"])).unwrap();
    let limit = metrics
        .pointer("/memory/usage/limit")
        .or(metrics.pointer("/memory/usage_limit"));
    assert_eq!(
        limit.and_then(Value::as_u64),
        Some(67_108_864),
        "{metrics:#}"
    );
    let pids = metrics
        .pointer("/pids/current")
        .and_then(Value::as_u64)
        .unwrap();
    assert!((1..=2).contains(&pids), "{metrics:#}");

    containerd.ok(&["task", "pause", "a"]);
    assert_eq!(containerd.task("a").1, "PAUSED");
    exec(&["a", "true"]).fails(1);
    containerd.ok(&["task", "resume", "a"]);
    assert_eq!(containerd.task("a").1, "RUNNING");

    containerd.ok(&["task", "kill", "--signal=TERM", "a"]);
    containerd.await_state("a", "STOPPED");
    assert!(
        containerd
            .run(&["task", "rm", "a"])
            .stderr
            .contains("exit code 3")
    );
    // the container is still there and can have another task
    containerd.ok(&["task", "start", "--detach", "a"]);
    assert_eq!(containerd.task("a").1, "RUNNING");
    containerd.remove("a");
    containerd.assert_clean();
}

#[test]
fn a_terminal_has_the_callers_size_and_takes_what_is_typed() {
    let containerd = Containerd::new();
    // ctr tells the size when the program runs already
    let typed = "until [ \"$(stty size 2>&1)\" = '40 100' ]; do sleep 0.1; done; echo $((40 + 2)); tty; exit 6\n";
    let ended = containerd.terminal(&["run", "--rm", "--tty", IMAGE, "a", "sh"], typed);
    assert_eq!(ended.code, 6, "{ended:#?}");
    assert_eq!(last_lines(&ended), ["42", "/dev/pts/0"], "{ended:#?}");

    containerd.ok(&["run", "--detach", IMAGE, "a", "sleep", "1000"]);
    let ended = containerd.terminal(&["task", "exec", "--tty", "--exec-id=e", "a", "sh"], typed);
    assert_eq!(ended.code, 6, "{ended:#?}");
    assert_eq!(last_lines(&ended), ["42", "/dev/pts/0"], "{ended:#?}");
    containerd.remove("a");
    containerd.assert_clean();
}

/// The last two lines on a terminal, without what ends lines there.
fn last_lines(ended: &Ended) -> [String; 2] {
    let out = ended.out();
    let is_text = |line: &&str| !line.is_empty();
    let mut lines = out
        .split(['\r', '\n', '\0'])
        .rev()
        .filter(is_text)
        .map(str::to_owned);
    let (last, before) = (lines.next().unwrap(), lines.next().unwrap());
    [before, last]
}

#[test]
fn a_dead_shim_takes_its_container_along() {
    let containerd = Containerd::new();
    containerd.ok(&["run", "--detach", IMAGE, "a", "sleep", "1000"]);
    let (pid, _) = containerd.task("a");
    let shim = containerd.machine.shell(&format!("ps -o ppid= -p {pid}"));
    containerd.machine.shell(&format!("kill -9 {shim}"));
    // containerd starts `containerd-shim … delete`, which calls `delete --force`
    until("the task is gone", || {
        containerd
            .ok(&["task", "ls", "--quiet"])
            .is_empty()
            .then_some(())
    });
    containerd.ok(&["container", "rm", "a"]);
    containerd.assert_clean();
}

#[test]
fn tasks_outlive_the_daemon() {
    let mut containerd = Containerd::new();
    containerd.ok(&["run", "--detach", IMAGE, "a", "sleep", "1000"]);
    let before = containerd.task("a");
    containerd.machine.shell("kill -9 $(cat daemon.pid)");
    containerd.daemon.wait().unwrap();
    containerd.daemon = start(&containerd.machine);
    assert_eq!(containerd.task("a"), before);
    let inside = containerd.ok(&["task", "exec", "--exec-id=e", "a", "cat", "/proc/1/cmdline"]);
    assert_eq!(inside, "sleep\x001000\0");
    containerd.remove("a");
    containerd.assert_clean();
}

#[test]
fn what_cannot_be_made_is_an_error_with_its_reason_and_leaves_nothing() {
    let containerd = Containerd::new();
    for (options, text) in [
        (
            &["--mount=type=bind,src=/does/not/exist,dst=/x,options=rbind"][..],
            "/does/not/exist",
        ),
        (&["--with-ns=network:/does/not/exist"], "/does/not/exist"),
        (&["--cwd=/bin/busybox"], "/bin/busybox"),
    ] {
        let ended = containerd.run(&[&["run", "--rm"], options, &[IMAGE, "a", "true"]].concat());
        assert!(
            ended.fails(1).contains("OCI runtime create failed: "),
            "{options:?} {ended:#?}"
        );
        assert!(ended.stderr.contains(text), "{options:?} {ended:#?}");
        containerd.assert_clean();
    }
}

/// systemctl(1) as far as the document needs it: there is no service manager here.
pub const SYSTEMCTL: &str = r#"
    systemctl() {
        containerd >containerd.log 2>&1 &
        until ctr version >/dev/null 2>&1; do sleep 0.1; done
    }
"#;

#[test]
fn as_typed() {
    let machine = Machine::installed();
    machine.image();
    machine.types("## containerd", SYSTEMCTL, "cat containerd.log");
}
