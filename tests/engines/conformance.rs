//! The same pod through every door: `tests/conformance/run` on machines that have them all.

use std::path::Path;

use crate::containerd::SYSTEMCTL;
use crate::machine::Machine;
use crate::podman::SETTINGS;
use crate::slurm::Slurm;

/// Shows the table; what differs is below its line.
fn conform(machine: &Machine, doors: &str, cases: usize) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/run");
    let ended = machine.run(&["sh", "-c", &format!("{script} {doors} 2>&1")]);
    println!("{}", ended.out());
    assert_eq!(ended.code, 0, "{}{}", ended.out(), ended.stderr);
    let out = ended.out();
    let rows = out.lines().filter(|line| line.ends_with(" ok"));
    assert_eq!(rows.count(), cases);
}

#[test]
fn programs() {
    conform(&Machine::installed(), "up notify cron run", 3 * 6 + 5);
}

#[test]
fn jobs() {
    conform(&Slurm::new().0, "srun bundle", 6 + 5);
}

#[test]
fn units() {
    conform(&Machine::with_systemd(), "systemd", 6);
}

#[test]
fn containers() {
    let machine = Machine::installed();
    machine.image();
    machine.shell(&format!(
        r#"
        {SETTINGS}
        {SYSTEMCTL}
        printf '[engine]\nruntime = "sampan"\n[engine.runtimes]\nsampan = ["/usr/local/bin/sampan-oci"]\n' \
            >/etc/containers/containers.conf.d/runtime.conf
        systemctl restart containerd
        ctr image import busybox.tar
        podman load --quiet --input busybox.tar
        "#
    ));
    conform(&machine, "podman ctr", 2 * 5);
}

#[test]
fn tasks() {
    let agent = Path::new(env!("CARGO_BIN_EXE_sampan")).with_file_name("mesos-test-agent");
    if !agent.exists() {
        println!("skipped: needs {}, see `make test`", agent.display());
        return;
    }
    let machine = Machine::installed();
    machine.shell(&format!("ln -s {} /usr/local/bin", agent.display()));
    conform(&machine, "mesos", 6);
}
