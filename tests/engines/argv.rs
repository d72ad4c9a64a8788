//! Command lines of a caller whose own program is not here: Slurm's.

use std::fs;

use serde_json::{Value, json};

use crate::machine::Machine;

/// A bundle with busybox for a root file system.
fn bundle(machine: &Machine, args: &[&str]) -> String {
    let bundle = machine.path().join("bundle");
    let config = bundle.join("config.json");
    let runtime = machine.runtime();
    machine.shell(&format!(
        "mkdir -p bundle/rootfs/bin && cd bundle && cp /bin/busybox rootfs/bin && {runtime} spec &&
         for name in sh sleep; do ln -s busybox rootfs/bin/$name; done"
    ));
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["process"]["args"] = json!(args);
    spec["process"]["terminal"] = json!(false);
    fs::write(&config, spec.to_string()).unwrap();
    bundle.to_str().unwrap().to_owned()
}

#[test]
fn slurm() {
    let machine = Machine::new();
    let bundle = bundle(
        &machine,
        &[
            "sh",
            "-c",
            "trap 'exit 5' TERM; echo started; while :; do sleep 0.05; done",
        ],
    );
    let runtime = machine.runtime();
    let oci = |arguments: &str| {
        machine.run(&[
            "sh",
            "-c",
            &format!("{runtime} --root=/run/slurm {arguments}"),
        ])
    };

    // oci.conf's RunTimeRun: options after the id
    let run =
        format!("{runtime} --root=/run/slurm run job-1.0 -b {bundle} > out 2> err; echo $? > code");
    let mut running = machine.command(&["sh", "-c", &run]).spawn().unwrap();
    machine.shell("until grep -q started out 2>/dev/null; do sleep 0.05; done");

    // RunTimeQuery: JSON and nothing else, on either stream
    let state = oci("state job-1.0");
    assert_eq!(state.json()["status"], "running");
    assert_eq!(state.json()["bundle"], bundle.as_str());
    assert_eq!(state.stderr, "");

    // RunTimeKill, RunTimeDelete
    let killed = oci("kill -a job-1.0");
    assert_eq!((killed.ok().as_str(), killed.stderr.as_str()), ("", ""));
    running.wait().unwrap();
    assert_eq!(machine.shell("cat out code"), "started\n5");
    for _ in 0..2 {
        // what is gone already is no failure
        assert_eq!(oci("delete --force job-1.0").ok(), "");
    }
    assert_eq!(
        oci("state job-1.0").fails(1),
        "sampan-oci: container \"job-1.0\" does not exist\n"
    );
    assert_eq!(machine.shell("ls -A /run/slurm"), "");
}

#[test]
fn slurm_with_create_and_start() {
    let machine = Machine::new();
    let bundle = bundle(&machine, &["sleep", "1000"]);
    let runtime = machine.runtime();
    let oci = |arguments: &str| {
        machine.run(&[
            "sh",
            "-c",
            &format!("{runtime} --root /run/slurm {arguments}"),
        ])
    };
    // it reads to the end what it gave `create` to write to: nothing but the program's own streams is held by what goes on
    assert_eq!(
        oci(&format!(
            "create job --bundle {bundle} 7>&1 < /dev/null > /dev/null 2>&1 | cat"
        ))
        .ok(),
        ""
    );
    assert_eq!(oci("state job").json()["status"], "created");
    oci("start job").ok();
    assert_eq!(oci("state job").json()["status"], "running");
    oci("kill job SIGKILL").ok();
    machine.shell(&format!(
        "until {runtime} --root /run/slurm state job | grep -q stopped; do sleep 0.05; done"
    ));
    oci("delete job").ok();
    assert!(oci("delete job").fails(1).contains("job"));
}
