//! Slurm on a machine of its own: munge, slurmctld and slurmd, with the files of `docs/engines.md`.
//!
//! `proctrack/cgroup` and `task/cgroup` need the hierarchies `freezer` and `memory`, or cgroup v2, and neither systemd nor
//! CAP_SYS_RESOURCE; `proctrack/linuxproc` would lose processes that leave their session. Needs Debian's `munge` and `slurm-wlm`.

use std::fs;
use std::process::{Child, Stdio};

use crate::machine::Machine;
use crate::pod_support::until;
use crate::typed::{self, Step};

/// What Slurm takes for granted: a host name, an address that is not the loopback's, munge.
const SURROUNDINGS: &str = r#"
    hostname node1
    ip link add slurm0 type veth peer name slurm1
    ip addr add 192.0.2.1/24 dev slurm0
    ip link set slurm0 up
    ip link set slurm1 up
    echo '192.0.2.1 node1' >>/etc/hosts
    mkdir -p munge /run/munge
    chmod 700 munge
    head -c 64 /dev/urandom >munge/key
    chmod 600 munge/key
    munged --force --socket=/run/munge/munge.socket.2 --key-file=$PWD/munge/key --pid-file=$PWD/munge/pid \
        --log-file=$PWD/munge/log --seed-file=$PWD/munge/seed >munge/out 2>&1
"#;

#[test]
fn as_typed() {
    let machine = Machine::installed();
    machine.types(
        "## Slurm",
        SURROUNDINGS,
        "scontrol show jobs; scontrol show node",
    );
}

/// A cluster that runs.
pub struct Slurm(pub Machine);

impl Slurm {
    /// With the files of the documentation, and little patience.
    pub fn new() -> Slurm {
        let machine = Machine::installed();
        machine.shell(SURROUNDINGS);
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/engines.md");
        for step in typed::steps(&fs::read_to_string(document).unwrap(), "## Slurm") {
            let Step::Save(name, mut text) = step else {
                continue;
            };
            if name.ends_with("slurm.conf") {
                text.push_str("\nKillWait=2\nSlurmdLogFile=/var/log/slurmd.log\n");
            }
            let path = machine.path().join("saved");
            fs::write(&path, text).unwrap();
            machine.shell(&format!("cp saved {name}; chmod +x {name}"));
        }
        machine.shell(
            "mkdir -p /var/lib/slurm; mkdir -m 1777 /run/slurm-oci; slurmctld >ctld 2>&1; slurmd >d 2>&1
             until sinfo --noheader --format %T | grep -q idle; do sleep 0.1; done
             umoci unpack --image busybox bundle >umoci 2>&1",
        );
        Slurm(machine)
    }

    /// Starts a job step, and waits until it printed a line.
    fn srun(&self, words: &str, line: &str) -> Child {
        // the last step's says nothing of this one
        let _ = fs::remove_file(self.0.path().join("out"));
        let script = format!("exec srun --job-name=try {words} >out 2>&1");
        let mut command = self.0.command(&["sh", "-c", &script]);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        until(&format!("{line} of {words}"), || {
            let out = fs::read_to_string(self.0.path().join("out")).ok()?;
            out.lines().any(|found| found == line).then_some(())
        });
        child
    }

    fn out(&self) -> String {
        fs::read_to_string(self.0.path().join("out")).unwrap()
    }

    fn cancel(&self, mut step: Child) {
        self.0.shell("scancel --name=try");
        step.wait().unwrap();
        self.0
            .shell("until [ -z \"$(squeue --noheader)\" ]; do sleep 0.1; done");
    }

    /// Processes, mounts, states and cgroups of anything that Slurm ran.
    fn traces(&self) -> Vec<String> {
        let mut all: Vec<String> = self.0.cgroups();
        let shown = self.0.shell(
            "ls -A /run/slurm-oci/root /run/sampan/pods 2>/dev/null | grep -v -e '[.]lock$' -e '^$' -e ':$'
             ps -e -o comm= | grep -v -e '^slurm' -e munged -e ps -e grep -e sh -e catatonit -e timeout
             ip -o link | cut -d : -f 2; ls /run/netns 2>/dev/null; cut -d ' ' -f 2 /proc/mounts; true",
        );
        all.extend(shown.lines().map(str::to_owned));
        // those of the job, which Slurm keeps for the next one or removes later
        all.retain(|line| !is_slurms(line));
        all
    }

    #[track_caller]
    fn left_nothing(&self, before: &[String]) {
        let mut found = Vec::new();
        for _ in 0..100 {
            found = self.traces();
            if found == before {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert_eq!(found, before, "{}", self.out());
    }
}

/// `slurm_node1/uid_0/job_1/step_0/task_0` and what is above it.
fn is_slurms(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or_default();
    ["slurm", "system", "uid_", "job_", "step_", "task_", "user"]
        .iter()
        .any(|name| last.starts_with(name))
}

#[test]
fn bundles_that_are_cancelled() {
    let slurm = Slurm::new();
    let before = slurm.traces();
    let bundle = slurm.0.path().join("bundle");
    for (script, said) in [
        // asked to end, and given time
        (
            "trap 'sleep 1; echo asked; exit 9' TERM; echo started; while :; do sleep 0.1; done",
            true,
        ),
        // killed: `run` is a process of the step, the container one of the cgroup below, which Slurm does not look into
        (
            "trap '' TERM; echo started; while :; do sleep 0.1; done",
            false,
        ),
    ] {
        let words = format!("--container={} sh -c \"{script}\"", bundle.display());
        let step = slurm.srun(&words, "started");
        slurm.cancel(step);
        let out = slurm.out();
        assert_eq!(out.lines().any(|line| line == "asked"), said, "{out}");
        slurm.left_nothing(&before);
    }
}

const POD: &str = r#"
services:
  patient:
    image: localhost/busybox
    command: sh -c 'trap "" TERM; echo started; while :; do sleep 0.1; done'
    stop_grace_period: GRACE
  willing:
    image: localhost/busybox
    command: sh -c 'trap "echo asked; exit 0" TERM; while :; do sleep 0.1; done'
"#;

#[test]
fn pods_that_are_cancelled() {
    let slurm = Slurm::new();
    let before = slurm.traces();
    // in order within Slurm's patience; then all of the step is killed, and the epilog removes what is left
    for grace in ["1s", "1m"] {
        let file = slurm.0.path().join("compose.yaml");
        fs::write(file, POD.replace("GRACE", grace)).unwrap();
        let words = "sampan up --rm --abort-on-container-failure";
        let step = slurm.srun(words, "patient | started");
        slurm.cancel(step);
        let out = slurm.out();
        assert!(out.contains("willing | asked"), "{out}");
        slurm.left_nothing(&before);
        // an epilog that fails would have taken the machine out of use
        assert_eq!(slurm.0.shell("sinfo --noheader --format %T"), "idle");
    }
}

#[test]
fn pods_whose_time_is_over() {
    let slurm = Slurm::new();
    let before = slurm.traces();
    fs::write(
        slurm.0.path().join("compose.yaml"),
        POD.replace("GRACE", "1s"),
    )
    .unwrap();
    // the shortest limit that there is
    let words = "--time=1 sampan up --rm --abort-on-container-failure";
    let mut step = slurm.srun(words, "patient | started");
    step.wait().unwrap();
    let out = slurm.out();
    assert!(
        out.contains("DUE TO TIME LIMIT") && out.contains("willing | asked"),
        "{out}"
    );
    slurm.left_nothing(&before);
}
