//! The API of an executor, against real pods: the command line's side of it, and clients that speak it badly. Needs root and the Debian
//! packages iproute2, nftables, openssl and util-linux.

mod pod_support;
mod pty;
mod tls;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pod_support::{BUSYBOX, Ended, Host, until};
use pty::{Pty, SLEEP, until_size};
use rustix::event::{PollFd, PollFlags, Timespec};
use sampan::compose::{self, LoadRequest};
use sampan::network::Cni;
use sampan::pod::layout::Folders;
use sampan::pod::record::{Owner, Policy, ProcessId};
use sampan::pod::up::UpSpec;
use serde_json::{Value, json};

/// A pod of a framework, and what answers for its executor.
struct Api {
    host: Host,
    before: Vec<String>,
    child: Child,
    socket: PathBuf,
    port: u16,
}

impl Api {
    fn new() -> Api {
        let host = Host::new();
        let before = host.snapshot();
        up(&host);
        let socket = host.path().join("api.sock");
        let unix = UnixListener::bind(&socket).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        tls::certificates(host.path());
        let mut command = host.command(&["internal", "remote"]);
        command
            .args([&host.root, &host.state])
            .args([owner().pid.to_string(), owner().start_time.to_string()])
            .arg(format!("127.0.0.1:{port}"))
            .args(["tls.pem", "tls.key", "tokens"].map(|name| host.path().join(name)))
            .stdin(Stdio::from(OwnedFd::from(unix)))
            .stdout(Stdio::from(OwnedFd::from(tcp)));
        let child = command.spawn().unwrap();
        Api {
            host,
            before,
            child,
            socket,
            port,
        }
    }

    fn local<'a>(&'a self, arguments: &[&'a str]) -> Vec<String> {
        let url = format!("unix:{}", self.socket.display());
        let all = ["--remote".to_string(), url].into_iter();
        all.chain(arguments.iter().map(|it| it.to_string()))
            .collect()
    }

    fn sampan(&self, arguments: &[&str], input: &[u8]) -> Ended {
        let all = self.local(arguments);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        self.host.sampan_with(&all, input)
    }

    fn pty(&self, arguments: &[&str]) -> Pty {
        let all = self.local(arguments);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        Pty::start(&self.host.command(&all), (30, 100))
    }

    /// Over TLS with a token.
    fn with_token(&self, token: &str, arguments: &[&str]) -> Ended {
        let file = self.host.write("token", format!("{token}\n"));
        let ca = self.host.path().join("ca.pem");
        let url = format!("https://127.0.0.1:{}", self.port);
        let mut all = vec!["--remote", &url, "--token-file", file.to_str().unwrap()];
        all.extend(["--remote-ca", ca.to_str().unwrap()]);
        all.extend(arguments);
        self.host.sampan(&all)
    }

    /// Says something on the socket: status, and what else comes until the end.
    fn raw(&self, text: &[u8]) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        // one that is refused in the middle does not listen to the end
        let _ = stream.write_all(text);
        answer(stream)
    }

    fn call(&self, headers: &str, body: &str) -> (u16, String) {
        let request = format!(
            "POST /api/v1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.raw(request.as_bytes())
    }

    /// Begins a session in `copy`: a program on a terminal or not. Records are protobuf, so that text is seen as it is.
    fn launch(&self, id: &str, program: &str, terminal: bool) -> UnixStream {
        let mut launch = json!({
            "container_id": {"value": id, "parent": {"value": "copy"}},
            "command": {"value": program},
        });
        if terminal {
            launch["container"] = json!({"type": "MESOS", "tty_info": {}});
        }
        let call = json!({"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": launch});
        let call = call.to_string();
        let text = format!(
            "POST /api/v1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTE: trailers\r\nContent-Type: application/json\r\n\
             Message-Accept: application/x-protobuf\r\nContent-Length: {}\r\n\r\n{call}",
            call.len()
        );
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        stream
    }

    /// A call about a session of [`Api::launch`].
    fn about(&self, kind: &str, id: &str, more: Value) -> (u16, String) {
        let mut body = json!({"container_id": {"value": id, "parent": {"value": "copy"}}});
        let more = more.as_object().cloned().unwrap_or_default();
        body.as_object_mut().unwrap().extend(more);
        let call = json!({"type": kind, kind.to_lowercase(): body});
        self.call("Content-Type: application/json\r\n", &call.to_string())
    }

    /// What a command in `copy` prints.
    fn inside(&self, command: &str) -> String {
        self.host
            .sampan(&["exec", "copy", "sh", "-c", command])
            .out()
    }

    /// Waits until a process whose number is in a file has ended: one that nobody reaps has no command line.
    fn await_end(&self, file: &str) {
        let ask = format!("tr '\\0' ' ' < /proc/$(cat {file})/cmdline");
        until("its program ends", || {
            self.inside(&ask).is_empty().then_some(())
        });
    }

    fn end(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for name in ["api.sock", "token"] {
            let _ = fs::remove_file(self.host.path().join(name));
        }
        let host = &self.host;
        if host.pod().exists() {
            host.sampan(&["-p", &host.name, "down", "-v"]).ok();
        }
        host.assert_clean(&self.before);
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answer(mut stream: UnixStream) -> (u16, String) {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let text = String::from_utf8_lossy(&all).into_owned();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.unwrap_or(0), text)
}

/// Reads until a text has come.
#[track_caller]
fn await_in(stream: &mut UnixStream, text: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "never {text:?}");
        seen.extend_from_slice(&piece[..count]);
    }
}

/// The test's own process.
fn owner() -> ProcessId {
    let pid = std::process::id() as i32;
    ProcessId {
        pid,
        start_time: sampan::sys::process::start_time(pid).unwrap(),
    }
}

fn up(host: &Host) {
    let text = format!(
        "
x-image: &image
  image: {BUSYBOX}
  stop_signal: KILL
  network_mode: none
  logging: {{options: {{max-size: 256k, max-file: '20'}}}}
services:
  shell: {{<<: *image, tty: true, stdin_open: true, environment: {{PS1: '> '}}}}
  copy:
    <<: *image
    stdin_open: true
    command: [sh, -c, 'while read line; do echo got $$line; done; echo end; exit 7']
  web: {{<<: *image, command: [sh, -c, 'echo one; echo two >&2; exec sleep 1000']}}
  db: {{<<: *image, command: [sleep, '1000']}}
"
    );
    let request = LoadRequest {
        files: Vec::new(),
        working_dir: host.project.clone(),
        project_name: Some(host.name.clone()),
        environment: Default::default(),
        env_files: Vec::new(),
        profiles: Vec::new(),
    };
    let loaded = compose::load_text(&text, "t", &request);
    let tasks = [
        ("shell", vec!["shell"]),
        ("copy", vec!["copy"]),
        ("both", vec!["web", "db"]),
    ];
    let tasks = tasks.map(|(task, services)| {
        let services = services.into_iter().map(str::to_string).collect();
        (task.to_string(), services)
    });
    let spec = UpSpec {
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
        policy: Policy::Compose,
        pull: None,
        pull_options: Default::default(),
        force_recreate: false,
        renew_volumes: false,
        wait: false,
        detach: false,
        hooks_dir: None,
        owner: Some(Owner {
            process: owner(),
            kind: "mesos".to_string(),
            framework: "f".to_string(),
            executor: "e".to_string(),
            agent: "a".to_string(),
            tasks: tasks.into(),
            sandbox: host.project.clone(),
        }),
    };
    let text = serde_json::to_vec(&spec).unwrap();
    host.sampan_with(&["internal", "up"], &text).ok();
}

#[test]
fn commands_on_a_socket_are_those_of_the_machine() {
    let api = Api::new();
    let run = |arguments: &[&str]| api.sampan(arguments, b"");
    let ended = api.sampan(
        &["exec", "copy", "sh", "-c", "cat; echo bad >&2; exit 3"],
        b"in\nput",
    );
    assert_eq!(
        (ended.code, ended.out().as_str(), ended.stderr.as_str()),
        (3, "in\nput", "bad\n")
    );
    let ended = run(&[
        "exec",
        "-e",
        "A=b c",
        "-u",
        "7:8",
        "both/db",
        "sh",
        "-c",
        "echo $A; id -u; kill -9 $$",
    ]);
    assert_eq!(
        (ended.code, ended.out().as_str()),
        (137, "b c\n7\n"),
        "{ended:?}"
    );
    assert_eq!(run(&["exec", "copy", "/no/such"]).code, 127);
    // a program is none of our options, whatever it is called
    for name in ["--state=/x", "--help"] {
        let ended = run(&["exec", "copy", "--", name]);
        assert!(ended.fails(127).contains(name), "{ended:?}");
    }
    // a variable of the program is none of ours
    let named = "exec -e SAMPAN_STATE=/x -e SAMPAN_REMOTE=y copy sh -c".split(' ');
    let named: Vec<&str> = named.chain(["echo $SAMPAN_STATE $SAMPAN_REMOTE"]).collect();
    assert_eq!(run(&named).ok(), "/x y\n");
    // what goes on in the background keeps nobody waiting
    let ended = run(&["exec", "copy", "sh", "-c", "sleep 1000 & echo here; exit 4"]);
    assert_eq!((ended.code, ended.out().as_str()), (4, "here\n"));
    // also where it goes on writing
    let ended = run(&["exec", "copy", "sh", "-c", "yes & echo here; exit 4"]);
    assert_eq!(ended.code, 4, "{}", ended.stderr);
    assert!(ended.out().lines().any(|line| line == "here"));
    let several = run(&["exec", "both", "true"]);
    assert!(
        several.fails(125).contains("both/web, both/db"),
        "{several:?}"
    );
    assert!(
        run(&["exec", "nobody", "true"])
            .fails(125)
            .contains("no task nobody")
    );
    let large = run(&["exec", "copy", "sh", "-c", "seq 1 200000"]).ok();
    assert_eq!(large.lines().count(), 200_000);

    let logs = run(&["logs", "--no-log-prefix", "both/web"]);
    assert_eq!(
        (logs.out().as_str(), logs.stderr.as_str()),
        ("one\n", "two\n")
    );
    assert_eq!(run(&["logs", "-n", "1", "copy"]).ok(), "");
    assert!(
        run(&["logs", "--since", "never", "copy"])
            .fails(1)
            .contains("--since never")
    );

    let rows = run(&["ps", "--format", "json"]).json();
    let mut names: Vec<String> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            format!(
                "{}/{}",
                row["task"].as_str().unwrap(),
                row["service"].as_str().unwrap()
            )
        })
        .collect();
    names.sort();
    assert_eq!(names, ["both/db", "both/web", "copy/copy", "shell/shell"]);
    assert_eq!(run(&["ps", "-q", "copy"]).ok(), "copy\n");
    assert!(
        run(&["stop", "copy"])
            .fails(1)
            .contains("--remote is for exec")
    );

    let ended = api.sampan(&["attach", "copy"], b"a\nb\n");
    assert_eq!(
        (ended.code, ended.out().as_str()),
        (7, "got a\ngot b\nend\n"),
        "{ended:?}"
    );
    assert!(run(&["attach", "copy"]).fails(125).contains("does not run"));
    // what cannot be done from here is not advised
    let over = run(&["exec", "copy", "true"]);
    assert_eq!(
        over.fails(125),
        "sampan: service copy exited with code 7\n",
        "{over:?}"
    );
    // one that goes away in the middle is named
    let path = api.host.path().join("mute.sock");
    let mute = UnixListener::bind(&path).unwrap();
    let gone = std::thread::spawn(move || drop(mute.accept().unwrap()));
    let url = format!("unix:{}", path.display());
    let ended = api.host.sampan(&["--remote", &url, "ps"]);
    assert!(ended.fails(1).contains(path.to_str().unwrap()), "{ended:?}");
    gone.join().unwrap();
    fs::remove_file(&path).unwrap();
    api.end();
}

#[test]
fn terminals_through_the_api() {
    let api = Api::new();
    let mut exec = api.pty(&["exec", "-t", "copy", "sh"]);
    until("raw", || exec.is_raw().then_some(()));
    exec.keys("stty size; echo $TERM\r");
    exec.await_text("30 100\r\n");
    exec.resize(12, 34);
    exec.keys(until_size("12 34"));
    exec.await_text("sized 42\r\n");
    exec.keys(SLEEP);
    exec.await_text("asleep 42\r\n");
    exec.keys("\x03");
    exec.keys("echo code $?\r");
    exec.await_text("code 130\r\n");
    exec.keys("exit 6\r");
    assert_eq!(exec.wait(), 6);
    assert!(!exec.is_raw());

    // the keys that leave a service are the program's here, as they are on the machine
    let ask = "stty raw -echo; echo ready; head -c 2 | od -An -tx1; exit 3";
    let mut exec = api.pty(&["exec", "-t", "copy", "sh", "-c", ask]);
    exec.await_text("ready");
    exec.keys("\x10\x11");
    exec.await_text("10 11");
    assert_eq!(exec.wait(), 3);
    // whoever ends us finds the terminal as it was
    let mut exec = api.pty(&["exec", "-t", "copy", "sh"]);
    until("raw", || exec.is_raw().then_some(()));
    kill(Pid::from_raw(exec.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(exec.wait(), 128 + 15);
    assert!(!exec.is_raw());
    let mut looker = api.pty(&["attach", "--no-stdin", "shell"]);
    until("it looks", || looker.is_shown().then_some(()));
    kill(Pid::from_raw(looker.child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(looker.wait(), 128 + 2);
    assert!(!looker.is_shown());

    let mut shell = api.pty(&["attach", "shell"]);
    until("raw", || shell.is_raw().then_some(()));
    shell.keys("echo $((6*7)); stty size\r");
    shell.await_text("42\r\n");
    shell.await_text("30 100\r\n");
    // one writes, here or there; anybody may look
    let second = api.sampan(&["attach", "shell"], b"");
    assert!(second.fails(1).contains("409"), "{second:?}");
    let there = api.host.sampan(&["attach", "shell"]);
    assert!(there.fails(1).contains("somebody else"), "{there:?}");
    let mut looker = api.pty(&["attach", "--no-stdin", "shell"]);
    until("it looks", || looker.is_shown().then_some(()));
    shell.keys("echo seen $((1+1))\r");
    looker.await_text("seen 2\r\n");
    shell.keys("\x10\x11");
    assert_eq!(shell.wait(), 0);
    let mut again = api.pty(&["attach", "shell"]);
    until("raw", || again.is_raw().then_some(()));
    again.keys("exit 8\r");
    assert_eq!(again.wait(), 8);
    assert_eq!(looker.wait(), 8);
    api.end();
}

#[test]
fn tokens_allow_what_their_file_says() {
    let api = Api::new();
    for (token, arguments, expected) in [
        ("token-of-all", &["exec", "copy", "true"][..], Ok(0)),
        ("token-of-all", &["logs", "shell"], Ok(0)),
        ("token-of-few", &["logs", "both"], Ok(0)),
        ("token-of-few", &["logs", "copy"], Err("403")),
        ("token-of-few", &["logs", "nobody"], Err("403")),
        ("token-of-few", &["exec", "both/db", "true"], Err("403")),
        ("token-of-few", &["attach", "both/web"], Err("403")),
        ("token-of-none", &["logs", "both"], Err("401")),
        ("token-of-none", &["ps"], Err("401")),
        ("token-of-few", &["attach", "copy"], Err("403")),
        ("token-of-all", &["attach", "copy"], Ok(7)),
    ] {
        let ended = api.with_token(token, arguments);
        match expected {
            Ok(code) => assert_eq!(ended.code, code, "{token} {arguments:?} {ended:?}"),
            Err(status) => assert!(
                ended.code != 0 && ended.stderr.contains(status) && !ended.stderr.contains(token),
                "{token} {arguments:?} {ended:?}"
            ),
        }
    }
    let rows = |token| api.with_token(token, &["ps", "-q"]).ok();
    // a crowd that says nothing keeps nobody on the socket waiting: all of it is still there when that is answered
    until("an answer meanwhile", || {
        let crowd: Vec<TcpStream> = (0..64)
            .map(|_| TcpStream::connect(("127.0.0.1", api.port)).unwrap())
            .collect();
        api.sampan(&["exec", "both/db", "true"], b"").ok();
        crowd.iter().all(is_open).then_some(())
    });
    assert_eq!(rows("token-of-few").lines().count(), 2);
    // the service that was attached to has ended
    assert_eq!(rows("token-of-all").lines().count(), 3);
    // taken out, it is refused from then on
    fs::write(api.host.path().join("tokens"), "").unwrap();
    assert!(
        api.with_token("token-of-all", &["ps"])
            .stderr
            .contains("401")
    );
    // never without TLS
    let url = format!("http://127.0.0.1:{}", api.port);
    let plain = api.host.sampan(&["--remote", &url, "ps"]);
    assert!(plain.fails(1).contains("over TLS alone"), "{plain:?}");
    api.end();
}

fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = (&*stream).read(&mut [0]);
    matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

fn json_call(body: Value) -> String {
    body.to_string()
}

#[test]
fn clients_that_speak_badly() {
    let api = Api::new();
    let json = "Content-Type: application/json\r\n";
    let wait = json_call(
        json!({"type": "WAIT_CONTAINER", "wait_container": {"container_id": {"value": "copy/x"}}}),
    );
    let look = json_call(
        json!({"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": {"container_id": {"value": "copy"}}}),
    );
    let nobody = json_call(
        json!({"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": {"container_id": {"value": "nobody"}}}),
    );
    let first = |task: &str| {
        let text = json_call(
            json!({"type": "ATTACH_CONTAINER_INPUT", "attach_container_input":
            {"type": "CONTAINER_ID", "container_id": {"value": task}}}),
        );
        format!("{}\n{text}", text.len())
    };
    let piece = |io: Value| {
        let text = json_call(
            json!({"type": "ATTACH_CONTAINER_INPUT", "attach_container_input":
            {"type": "PROCESS_IO", "process_io": io}}),
        );
        format!("{}\n{text}", text.len())
    };
    let stdout = piece(json!({"type": "DATA", "data": {"type": "STDOUT", "data": "eA=="}}));
    let records =
        "Content-Type: application/recordio\r\nMessage-Content-Type: application/json\r\n";
    for (headers, body, status) in [
        ("", "{}", 400),
        ("Content-Type: text/plain\r\n", "{}", 415),
        (json, "{", 400),
        (json, "{}", 501),
        (json, &wait, 404),
        (json, &nobody, 404),
        (&format!("{json}Accept: text/html\r\n"), &look, 406),
        (&format!("{json}Message-Accept: text/html\r\n"), &look, 406),
        (
            "Content-Type: application/x-protobuf\r\n",
            "\u{7f}\u{7f}",
            400,
        ),
        (records, "", 400),
        (records, "x\n", 400),
        (records, &stdout, 400),
        (records, &format!("{}{stdout}", first("copy")), 400),
        (records, &first("nobody"), 404),
        (records, &first("both/db"), 400),
        (records, &first("copy"), 200),
        (records, &format!("{}5\nhalf", first("copy")), 200),
        (
            "Content-Type: application/recordio\r\nMessage-Content-Type: text/plain\r\n",
            &first("copy"),
            415,
        ),
    ] {
        let (found, text) = api.call(headers, body);
        assert_eq!(found, status, "{headers:?} {body:?} {text}");
    }
    let request = |line: &str| format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    for (line, status) in [
        ("GET /api/v1", 405),
        ("POST /api/v1/tasks", 405),
        ("GET /", 404),
        ("GET /api/v1/logs", 400),
        ("GET /api/v1/logs?task=nobody", 404),
        ("GET /api/v1/logs?task=copy&format=x", 400),
        ("GET /api/v1/tasks", 200),
    ] {
        assert_eq!(api.raw(request(line).as_bytes()).0, status, "{line}");
    }
    // a record without end, a body without end
    let endless = format!(
        "POST /api/v1 HTTP/1.1\r\nHost: x\r\n{records}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n",
        first("copy").len(),
        first("copy")
    );
    let mut stream = UnixStream::connect(&api.socket).unwrap();
    stream.write_all(endless.as_bytes()).unwrap();
    stream.write_all(b"9\r\n60000000\n\r\n").unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let mut sent = 0;
    while sent < 1000 && stream.write_all(chunk.as_bytes()).is_ok() {
        sent += 1;
    }
    assert!(sent < 1000);
    let long = format!(
        "POST /api/v1 HTTP/1.1\r\nHost: x\r\n{json}Content-Length: 99999999\r\n\r\n{}",
        "x".repeat(2 << 20)
    );
    assert_eq!(api.raw(long.as_bytes()).0, 400);

    // one that does not read holds up its own program and nobody else
    let exec = json_call(
        json!({"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": {
        "container_id": {"value": "s", "parent": {"value": "copy"}},
        "command": {"value": "sleep 1000 & echo $! > /tmp/child; echo $$ > /tmp/pid; exec yes"}}}),
    );
    let mut slow = UnixStream::connect(&api.socket).unwrap();
    let text = format!(
        "POST /api/v1 HTTP/1.1\r\nHost: x\r\n{json}Content-Length: {}\r\n\r\n{exec}",
        exec.len()
    );
    slow.write_all(text.as_bytes()).unwrap();
    until("it runs", || {
        let seen = api.host.sampan(&["exec", "copy", "cat", "/tmp/pid"]);
        (seen.code == 0 && !seen.stdout.is_empty()).then_some(())
    });
    assert_eq!(api.call(json, &exec).0, 409);
    assert_eq!(
        api.sampan(&["exec", "copy", "echo", "here"], b"").ok(),
        "here\n"
    );
    let size = fs::read_to_string(format!("/proc/{}/status", api.child.id())).unwrap();
    let resident = size
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    // a debug build
    assert!(kilobytes < 64 << 10, "{resident}");
    // when it goes, its program does, and what that had begun
    drop(slow);
    for of in ["pid", "child"] {
        // one that nobody reaps has no command line
        let ask = format!("grep -q . /proc/$(cat /tmp/{of})/cmdline");
        until("its programs end", || {
            let seen = api.host.sampan(&["exec", "copy", "sh", "-c", &ask]);
            (seen.code != 0).then_some(())
        });
    }
    // by the name of a service that is attached to
    let named = exec.replace("\"s\"", "\"copy\"");
    assert_eq!(api.call(json, &named).0, 409);
    // closed for writing is gone
    let mut half = UnixStream::connect(&api.socket).unwrap();
    half.write_all(b"POST /api/v1 HTTP/1.1\r\n").unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    answer(half);
    // a session's end is known for a while
    let status = json_call(
        json!({"type": "WAIT_CONTAINER", "wait_container": {"container_id": {"value": "s", "parent": {"value": "copy"}}}}),
    );
    let (code, text) = api.call(json, &status);
    assert!(code == 200 && text.contains("exit_status"), "{text}");
    // however many there were
    let exec = |number: u32| {
        json_call(
            json!({"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": {
            "container_id": {"value": format!("t{number}"), "parent": {"value": "copy"}},
            "command": {"value": "true"}}}),
        )
    };
    for number in 0..130 {
        let (status, text) = api.call(json, &exec(number));
        assert_eq!(status, 200, "{number}: {text}");
    }
    api.end();
}

#[test]
fn every_signal_is_the_program_s() {
    let api = Api::new();
    let kill = |id: &str, signal: i32| {
        let (status, text) = api.about("KILL_CONTAINER", id, json!({"signal": signal}));
        assert_eq!(status, 200, "{signal}: {text}");
    };
    // those that stop or kill whoever gets them, that it has its own use for, or ignores
    let signals = [1, 3, 4, 5, 6, 7, 8, 11, 13, 15, 22, 23, 28, 30, 31];
    let traps = signals.map(|signal| format!("trap 'echo got {signal}.' {signal}; "));
    let program = format!(
        "{}echo $$ > /tmp/trap; echo ready.; while :; do sleep 0.1; done",
        traps.concat()
    );
    let mut stream = api.launch("s", &program, false);
    await_in(&mut stream, "ready.");
    for signal in signals {
        kill("s", signal);
        await_in(&mut stream, &format!("got {signal}."));
    }
    kill("s", libc::SIGSTOP);
    let stopped = |file: &str| {
        let ask = format!("grep State: /proc/$(cat {file})/status");
        until("it is stopped", || {
            api.inside(&ask).contains("T (stopped)").then_some(())
        });
    };
    stopped("/tmp/trap");
    kill("s", libc::SIGHUP);
    kill("s", libc::SIGCONT);
    await_in(&mut stream, "got 1.");
    kill("s", libc::SIGKILL);
    await_in(&mut stream, "sampan-exit-code: 137");
    // what is stopped is ended with its session like anything else
    let mut stream = api.launch(
        "t",
        "echo $$ > /tmp/still; echo ready.; sleep 1000; true",
        false,
    );
    await_in(&mut stream, "ready.");
    kill("t", libc::SIGSTOP);
    stopped("/tmp/still");
    drop(stream);
    api.await_end("/tmp/still");
    assert_eq!(api.about("WAIT_CONTAINER", "t", json!({})).0, 200);
    api.end();
}

#[test]
fn a_terminal_that_nobody_reads_ends_with_its_reader() {
    let api = Api::new();
    let slow = api.launch("s", "echo $$ > /tmp/pid; exec yes", true);
    let written = || api.inside("grep wchar /proc/$(cat /tmp/pid)/io");
    until("it is held up", || {
        let (one, two) = (written(), written());
        (!one.is_empty() && one == two).then_some(())
    });
    drop(slow);
    api.await_end("/tmp/pid");
    let (status, text) = api.about("WAIT_CONTAINER", "s", json!({}));
    assert!(
        status == 200 && text.contains("exit_status"),
        "{status} {text}"
    );
    api.end();
}

#[test]
fn one_who_leaves_keeps_no_input() {
    let api = Api::new();
    let name = &api.host.name;
    api.host
        .sampan(&["-p", name, "kill", "-s", "STOP", "copy"])
        .ok();
    let record = |body: Value| {
        let text =
            json!({"type": "ATTACH_CONTAINER_INPUT", "attach_container_input": body}).to_string();
        format!("{}\n{text}", text.len())
    };
    let first = record(json!({"type": "CONTAINER_ID", "container_id": {"value": "copy"}}));
    // more than the pipe holds, and more than is read ahead
    let data = record(json!({"type": "PROCESS_IO", "process_io":
        {"type": "DATA", "data": {"type": "STDIN", "data": "YWFh".repeat(100_000)}}}));
    let headers =
        "Content-Type: application/recordio\r\nMessage-Content-Type: application/json\r\n";
    for (length, records) in [(1, 1), (8, 2)] {
        let body = format!("{first}{}", data.repeat(records));
        let head = format!(
            "POST /api/v1 HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len() * length
        );
        let mut stream = UnixStream::connect(&api.socket).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        // as much as is taken, and all of the first record
        let mut sent = 0;
        let status = || api.call(headers, &first).0;
        until("it is written", || {
            while let Some(rest) = body.as_bytes().get(sent..).filter(|it| !it.is_empty()) {
                match stream.write(rest) {
                    Ok(count) => sent += count,
                    Err(_) => break,
                }
            }
            (sent >= first.len() + data.len()).then_some(())
        });
        assert_eq!(status(), 409);
        drop(stream);
        until("the input is free", || (status() == 200).then_some(()));
    }
    api.end();
}

#[test]
fn a_reader_who_is_slow_misses_nothing() {
    let api = Api::new();
    let all = api.local(&["attach", "--no-stdin", "copy"]);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut reader = api.host.command(&all);
    let mut reader = reader.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = reader.stdout.take().unwrap();
    let mut writer = api.host.command(&["attach", "copy"]);
    writer.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut writer = writer.spawn().unwrap();
    let mut input = writer.stdin.take().unwrap();
    let readable = |out: &ChildStdout| {
        let mut fds = [PollFd::new(out, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    };
    until("it looks", || {
        input.write_all(b"early\n").unwrap();
        readable(&out).then_some(())
    });
    let lines: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    input
        .write_all(format!("begin\n{lines}").as_bytes())
        .unwrap();
    drop(input);
    assert_eq!(writer.wait().unwrap().code(), Some(7));
    // the task is over, and so is its pod
    let name = &api.host.name;
    api.host.sampan(&["-p", name, "down", "-v"]).ok();
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    let (_, text) = text.split_once("got begin\n").unwrap();
    let mut expected: String = (0..200_000).map(|n| format!("got {n}\n")).collect();
    expected.push_str("end\n");
    assert!(
        text == expected,
        "{} of {} bytes",
        text.len(),
        expected.len()
    );
    assert_eq!(reader.wait().unwrap().code(), Some(7));
    api.end();
}

#[test]
fn streams_leave_room_for_inputs() {
    let api = Api::new();
    let json = "Content-Type: application/json\r\n";
    let look = json!({"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output":
        {"container_id": {"value": "both/db"}}})
    .to_string();
    let request = format!(
        "POST /api/v1 HTTP/1.1\r\nHost: x\r\n{json}Content-Length: {}\r\n\r\n{look}",
        look.len()
    );
    let mut streams = Vec::new();
    for _ in 0..32 {
        let mut stream = UnixStream::connect(&api.socket).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        await_in(&mut stream, "200 OK");
        streams.push(stream);
    }
    let (status, text) = api.call(json, &look);
    assert_eq!(status, 503, "{text}");
    let refused = api.sampan(&["exec", "copy", "true"], b"");
    assert!(refused.fails(1).contains("32 streams"), "{refused:?}");
    let first = json!({"type": "ATTACH_CONTAINER_INPUT", "attach_container_input":
        {"type": "CONTAINER_ID", "container_id": {"value": "copy"}}})
    .to_string();
    let records =
        "Content-Type: application/recordio\r\nMessage-Content-Type: application/json\r\n";
    let (status, text) = api.call(records, &format!("{}\n{first}", first.len()));
    assert_eq!(status, 200, "{text}");
    streams.pop();
    until("there is room again", || {
        (api.sampan(&["exec", "copy", "true"], b"").code == 0).then_some(())
    });
    api.end();
}

#[test]
fn a_certificate_is_read_when_it_is_needed() {
    let api = Api::new();
    let path = api.host.path().join("tls.pem");
    let whole = fs::read(&path).unwrap();
    api.with_token("token-of-all", &["ps"]).ok();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let refused = api.with_token("token-of-all", &["ps"]);
    assert!(
        refused.fails(1).contains("TLS with 127.0.0.1"),
        "{refused:?}"
    );
    // nobody else minds
    api.sampan(&["exec", "copy", "true"], b"").ok();
    fs::write(&path, &whole).unwrap();
    api.with_token("token-of-all", &["ps"]).ok();
    // whoever has no token is let go of, and is not answered again
    let mut client = Command::new("openssl");
    client
        .args(["s_client", "-quiet", "-verify_quiet", "-connect"])
        .arg(format!("127.0.0.1:{}", api.port))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut client = client.spawn().unwrap();
    let request = "GET /api/v1/tasks HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut input = client.stdin.take().unwrap();
    input.write_all(request.repeat(2).as_bytes()).unwrap();
    let mut text = String::new();
    client
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text.matches("HTTP/1.1 401").count(), 1, "{text}");
    drop(input);
    client.wait().unwrap();
    api.end();
}

#[test]
fn an_idle_stream_has_heartbeats() {
    let api = Api::new();
    let look = json_call(
        json!({"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": {"container_id": {"value": "both/db"}}}),
    );
    let request = format!(
        "POST /api/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{look}",
        look.len()
    );
    let mut stream = UnixStream::connect(&api.socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut seen = String::new();
    while !seen.contains("HEARTBEAT") {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    assert!(seen.contains("30000000000"), "{seen}");
    api.end();
}

#[test]
fn a_server_that_is_killed_leaves_nothing() {
    let mut api = Api::new();
    for program in ["exec sleep 1234", "sleep 1234; true"] {
        let exec = json_call(
            json!({"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": {
            "container_id": {"value": program.len().to_string(), "parent": {"value": "copy"}},
            "command": {"value": program}}}),
        );
        let request = format!(
            "POST /api/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{exec}",
            exec.len()
        );
        let mut stream = UnixStream::connect(&api.socket).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        std::mem::forget(stream);
    }
    let sleeping = |api: &Api| {
        let ask = "grep -l 12[3]4 /proc/[0-9]*/cmdline";
        let seen = api.host.sampan(&["exec", "copy", "sh", "-c", ask]);
        seen.out().lines().count()
    };
    // one of the two is a shell with a child, and both have it in their command line
    until("all run", || (sleeping(&api) == 3).then_some(()));
    api.child.kill().unwrap();
    api.child.wait().unwrap();
    until("all are gone", || (sleeping(&api) == 0).then_some(()));
    api.end();
}
