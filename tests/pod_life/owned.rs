//! Pods as a framework's executor has them: brought up from a description, followed over the control socket, ended by
//! their policy or with their owner.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sampan::compose::{self, LoadRequest};
use sampan::network::Cni;
use sampan::pod::layout::Folders;
use sampan::pod::record::Policy;
use sampan::pod::up::UpSpec;
use serde_json::Value;

use super::pod_support::{BUSYBOX, Ended, Host, until};

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
        wait: false,
        owner: None,
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
    assert_eq!(watch.line().unwrap()["kind"], "done");
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
            "service b: exec \"/nothing\": not found",
        ),
        (
            "{image: localhost/none, pull_policy: never}".to_string(),
            125,
            "t:3:6: services.b.image: image localhost/none is not in the store and must not be pulled; import it with `sampan image import`",
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
