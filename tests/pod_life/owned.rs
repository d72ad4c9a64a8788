//! Pods as a framework's executor has them: brought up from a description, followed over the control socket, ended by
//! their policy or with their owner.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sampan::compose::{self, LoadRequest};
use sampan::network::Cni;
use sampan::pod::layout::Folders;
use sampan::pod::record::{Owner, Policy, ProcessId};
use sampan::pod::up::UpSpec;
use serde_json::Value;

use super::pod_support::{BUSYBOX, Ended, Host, run, until};

/// A description of the host's own pod from a compose text.
fn spec(host: &Host, text: &str) -> UpSpec {
    let request = LoadRequest {
        files: Vec::new(),
        working_dir: host.project.clone(),
        project_name: Some(host.name.clone()),
        environment: Default::default(),
        env_files: Vec::new(),
        profiles: Vec::new(),
    };
    // for commands that look for the project
    host.compose(text);
    let loaded = compose::load_text(text, "t", &request);
    UpSpec {
        folders: Folders {
            root: host.root.clone(),
            state: host.state.clone(),
        },
        project: loaded.unwrap_or_else(|e| panic!("{}", e.message)).project,
        services: Vec::new(),
        cgroup_parent: None,
        cni: Cni {
            conf_dirs: Vec::new(),
            plugin_dirs: Vec::new(),
            state: host.state.clone(),
        },
        policy: Policy::FailPod,
        pull: None,
        pull_options: Default::default(),
        force_recreate: false,
        renew_volumes: false,
        wait: false,
        detach: false,
        owner: None,
        hooks_dir: None,
    }
}

/// `internal up` to its end.
fn up(host: &Host, spec: &UpSpec) -> Ended {
    let text = serde_json::to_vec(spec).unwrap();
    host.sampan_with(&["internal", "up"], &text)
}

/// The lines of an answer.
fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What `watch` tells.
struct Watch(BufReader<UnixStream>);

impl Watch {
    fn new(host: &Host) -> Watch {
        let mut stream = UnixStream::connect(host.pod().join("control.sock")).unwrap();
        stream.write_all(b"{\"op\":\"watch\"}\n").unwrap();
        Watch(BufReader::new(stream))
    }

    /// The next line; `None` at the end.
    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The next line of a kind, and where each service was meanwhile.
    #[track_caller]
    fn until(&mut self, kind: &str) -> (Value, Vec<String>) {
        let mut phases = Vec::new();
        while let Some(line) = self.line() {
            if line["kind"] == kind {
                return (line, phases);
            }
            let [service, phase] = [&line["service"], &line["status"]["phase"]];
            phases.push(format!(
                "{} {}",
                service.as_str().unwrap(),
                phase.as_str().unwrap()
            ));
        }
        panic!("no {kind} after {phases:?}");
    }
}

/// A process that owns pods.
struct OwnerProcess(Child);

impl OwnerProcess {
    fn new() -> OwnerProcess {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null());
        OwnerProcess(command.spawn().unwrap())
    }

    fn owner(&self, host: &Host, tasks: &[(&str, &[&str])]) -> Owner {
        let pid = self.0.id() as i32;
        let tasks = tasks.iter().map(|(task, services)| {
            let services = services.iter().map(|s| s.to_string()).collect();
            (task.to_string(), services)
        });
        Owner {
            process: ProcessId {
                pid,
                start_time: sampan::sys::process::start_time(pid).unwrap(),
            },
            kind: "mesos".to_string(),
            framework: "f-1".to_string(),
            executor: "e-1".to_string(),
            agent: "a-1".to_string(),
            tasks: tasks.collect(),
            sandbox: host.project.clone(),
        }
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for OwnerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_service_that_fails_ends_the_pod_and_watchers_are_told_why() {
    let host = Host::new();
    let before = host.snapshot();
    let text = format!(
        "services:
  web: {{image: {BUSYBOX}, command: [sleep, '1000'], init: true}}
  job: {{image: {BUSYBOX}, command: [sh, -c, 'exit 0']}}
  bad:
    image: {BUSYBOX}
    command: [sh, -c, 'mkfifo /tmp/gate; read code < /tmp/gate; exit $$code']
    depends_on: [web, job]
"
    );
    let ended = up(&host, &spec(&host, &text));
    assert_eq!(lines(&ended.ok()).last().unwrap()["kind"], "done");
    let mut watch = Watch::new(&host);
    host.await_row("job", "status", "exited");
    assert!(!host.pod().join("verdict.json").exists());
    host.shell(
        "bad",
        "while ! [ -p /tmp/gate ]; do usleep 1000; done; echo 3 > /tmp/gate",
    );
    let (line, phases) = watch.until("verdict");
    let verdict = &line["verdict"];
    assert_eq!(verdict["service"], "bad");
    assert_eq!(verdict["cause"], "exited");
    assert_eq!(verdict["exit_code"], 3);
    assert_eq!(verdict["message"], "service bad exited with code 3");
    assert!(phases.ends_with(&["web exited".to_string()]), "{phases:?}");
    let saved = std::fs::read(host.pod().join("verdict.json")).unwrap();
    assert_eq!(&serde_json::from_slice::<Value>(&saved).unwrap(), verdict);
    // told again to one who comes later, and by a successor
    let supervisor = std::fs::read(host.pod().join("supervisor.json")).unwrap();
    let pid = serde_json::from_slice::<Value>(&supervisor).unwrap()["pid"].clone();
    kill(Pid::from_raw(pid.as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    assert_eq!(watch.line(), None);
    until("another supervisor", || {
        let other = std::fs::read(host.pod().join("supervisor.json")).ok()? != supervisor;
        (other && UnixStream::connect(host.pod().join("control.sock")).is_ok()).then_some(())
    });
    let mut watch = Watch::new(&host);
    let (line, phases) = watch.until("verdict");
    assert_eq!(&line["verdict"], verdict);
    assert_eq!(phases, ["bad exited", "job exited", "web exited"]);
    let rows = ["web", "job", "bad"].map(|name| host.row(name)["cause"].clone());
    assert_eq!(rows, ["pod", "exited", "exited"]);
    host.down(&before);
    watch.until("done");
    assert_eq!(watch.line(), None);
}

#[test]
fn what_cannot_come_up_leaves_nothing_and_names_the_service() {
    let host = Host::new();
    let before = host.snapshot();
    for (service, code, message) in [
        (
            format!("{{image: {BUSYBOX}, command: [/nothing]}}"),
            127,
            "service b: exec \"/nothing\": No such file or directory (os error 2)",
        ),
        (
            "{image: localhost/none, pull_policy: never}".to_string(),
            125,
            "t:3: services.b.image: image localhost/none is not in the store and must not be pulled; import it with `sampan image import`",
        ),
    ] {
        let text = format!(
            "services:\n  a: {{image: {BUSYBOX}, command: [sleep, '1000'], init: true}}\n  b: {service}\n"
        );
        let ended = up(&host, &spec(&host, &text));
        assert_eq!(ended.code, code, "{ended:?}");
        let last = lines(&ended.out()).pop().unwrap();
        let expected =
            serde_json::json!({"kind": "failed", "code": code, "service": "b", "message": message});
        assert_eq!(last, expected);
        host.assert_clean(&before);
    }
    let ended = host.sampan_with(&["internal", "up"], b"{\"project\": 1}");
    assert_eq!(ended.code, 1, "{ended:?}");
    let message = lines(&ended.out()).pop().unwrap()["message"].clone();
    let start = "standard input: not an UpSpec: ";
    assert!(message.as_str().unwrap().starts_with(start), "{message}");
    host.assert_clean(&before);
}

#[test]
fn sigterm_undoes_what_has_come_up_so_far() {
    let host = Host::new();
    let before = host.snapshot();
    let text = format!(
        "services:
  db: {{image: {BUSYBOX}, command: [sleep, '1000'], init: true, healthcheck: {{test: 'false', interval: 60s, start_period: 60s}}}}
  web: {{image: {BUSYBOX}, command: [sleep, '1000'], depends_on: {{db: {{condition: service_healthy}}}}}}
"
    );
    let file = host.write(
        "spec.json",
        serde_json::to_vec(&spec(&host, &text)).unwrap(),
    );
    let mut command = host.command(&["internal", "up"]);
    command
        .stdin(std::fs::File::open(&file).unwrap())
        .stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    until("db runs", || {
        let status = host.pod().join("services/db/status.json");
        let text = std::fs::read_to_string(status).ok()?;
        text.contains("\"running\"").then_some(())
    });
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143));
    let last = lines(&String::from_utf8(output.stdout).unwrap()).pop();
    let last = last.unwrap();
    assert_eq!(last["kind"], "failed");
    assert_eq!(last["message"], "interrupted by signal 15");
    host.assert_clean(&before);
}

/// What ends slowly and what not at all.
fn stubborn() -> String {
    format!(
        "services:
  web: {{image: {BUSYBOX}, command: [sh, -c, 'trap \"echo bye; exit 0\" TERM; echo up; while true; do usleep 5000; done'], ports: ['127.0.0.1:7777:80']}}
  hard: {{image: {BUSYBOX}, command: [sh, -c, 'trap : TERM; echo up; while true; do usleep 5000; done'], stop_grace_period: 200ms}}
"
    )
}

/// From a folder that has nothing to do with the pod.
fn commands_by_task(host: &Host) {
    let elsewhere = |arguments: &[&str]| {
        let mut command = host.command(arguments);
        run(command.current_dir(host.path()), b"")
    };
    assert_eq!(elsewhere(&["exec", "t-1/hard", "echo", "x"]).ok(), "x\n");
    let several = "sampan: task t-1 has several services: t-1/web, t-1/hard\n";
    assert_eq!(elsewhere(&["exec", "t-1", "echo", "x"]).fails(1), several);
    assert_eq!(
        elsewhere(&["logs", "--no-log-prefix", "t-1/web"]).ok(),
        "up\n"
    );
    let rows = elsewhere(&["ps", "--format", "json", "t-1"]).json();
    let tasks: Vec<_> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["task"])
        .collect();
    assert_eq!(tasks, ["t-1", "t-1"]);
    let table = elsewhere(&["ps", "-A"]).ok();
    assert!(table.starts_with("POD"), "{table}");
    assert!(table.lines().next().unwrap().contains("TASK"), "{table}");
    let tree = elsewhere(&["stats", "--format", "json", "t-1"]).json();
    assert_eq!(tree["children"].as_array().unwrap().len(), 2);
    elsewhere(&["kill", "-s", "CONT", "t-1/web"]).ok();
    let none = elsewhere(&["logs", "t-2"]);
    assert!(
        none.fails(1).starts_with("sampan: no task t-2 here: "),
        "{none:?}"
    );
    let none = "sampan: no task t-2 here; `sampan ps -A` lists all\n";
    assert_eq!(elsewhere(&["down", "t-2"]).fails(1), none);
    let names = elsewhere(&["internal", "names"]).ok();
    assert_eq!(names, "t-1\nt-1/hard\nt-1/web\n");
}

#[test]
fn a_pod_goes_with_its_owner() {
    let host = Host::new();
    let before = host.snapshot();
    let mut owner = OwnerProcess::new();
    let mut spec = spec(&host, &stubborn());
    spec.owner = Some(owner.owner(&host, &[("t-1", &["web", "hard"])]));
    up(&host, &spec).ok();
    host.await_log("web", "up");
    host.await_log("hard", "up");
    assert_eq!(host.sampan(&["gc"]).ok(), "");
    commands_by_task(&host);
    let mut watch = Watch::new(&host);
    owner.end();
    let (verdict, phases) = watch.until("verdict");
    assert_eq!(verdict["verdict"]["cause"], "owner");
    assert!(phases.contains(&"web stopping".to_string()), "{phases:?}");
    host.assert_clean(&before);

    // one that is gone before the pod is there
    let ended = up(&host, &spec);
    assert_eq!(ended.code, 1, "{ended:?}");
    let last = lines(&ended.out()).pop().unwrap();
    let message = format!(
        "pod {}: its owner, process {}, has ended",
        host.name,
        owner.0.id()
    );
    assert_eq!(last["message"], message);
    host.assert_clean(&before);
}

#[test]
fn what_was_killed_as_a_whole_is_collected() {
    let host = Host::new();
    let before = host.snapshot();
    for lives in [true, false] {
        let mut owner = OwnerProcess::new();
        let mut spec = spec(&host, &stubborn());
        spec.owner = lives.then(|| owner.owner(&host, &[("t-1", &["web"])]));
        up(&host, &spec).ok();
        host.await_log("hard", "up");
        assert_eq!(host.sampan(&["gc", "--json"]).json(), serde_json::json!([]));
        // keeper, supervisor and containers at once, as an agent that destroys their cgroup does
        owner.end();
        for _ in 0..3 {
            for (pid, _) in host.processes() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        until("everything is dead", || {
            host.processes().is_empty().then_some(())
        });
        let why = if lives { "owner_ended" } else { "killed" };
        let found = |outcome: &str| serde_json::json!([{"pod": host.name, "why": why, "outcome": outcome, "error": null, "hooks": []}]);
        // one that is on its way out still counts as running
        until("it is found", || {
            let dry = host.sampan(&["gc", "--json", "--dry-run"]).json();
            (dry == found("found")).then_some(())
        });
        assert!(host.pod().exists());
        let done = host.sampan(&["gc", "--json"]).json();
        assert_eq!(done, found("removed"));
        host.assert_clean(&before);
        assert_eq!(host.sampan(&["gc"]).ok(), "");
    }
}

#[test]
fn what_a_restart_of_the_machine_left_is_collected() {
    let host = Host::new();
    let before = host.snapshot();
    let text = format!(
        "services: {{web: {{image: {BUSYBOX}, command: [sleep, '1000'], network_mode: host}}}}"
    );
    up(&host, &spec(&host, &text)).ok();
    for (pid, _) in host.processes() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    until("everything is dead", || {
        host.processes().is_empty().then_some(())
    });
    let cgroup = host.cgroup.child(&format!("sampan-{}", host.name));
    cgroup.remove().unwrap();
    std::fs::remove_dir_all(host.pod()).unwrap();
    // another state folder with the same root sees nothing of its own
    let state = host.path().join("other");
    let other = ["--state", state.to_str().unwrap(), "gc", "--json"];
    let other = host.sampan(&other).json();
    assert_eq!(other, serde_json::json!([]));
    let found = host.sampan(&["gc", "--json"]).json();
    assert_eq!(found[0]["why"], "forgotten");
    host.assert_clean(&before);
}
