//! What the agent refuses and in which order, and every fault that tests ask it for: seen by a client that knows
//! nothing but bytes.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Answer, Chunks, exchange, open, post, record};
use test_agent::codec::{Encoding, decode, encode};
use test_agent::{Acks, Agent, Calls, Launcher, Phase, Settings, Transport, task};

const LONG: &str = "/slave(1)/api/v1/executor";
const JSON: &str = "Content-Type: application/json";

fn settings() -> Settings {
    Settings {
        ids: ["f", "e", "S0", "c"].map(str::to_owned),
        ..Settings::default()
    }
}

fn call(kind: &str, more: Value) -> String {
    let mut call =
        json!({"type": kind, "framework_id": {"value": "f"}, "executor_id": {"value": "e"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        call[key] = value.clone();
    }
    call.to_string()
}

fn subscribe(more: Value) -> Vec<u8> {
    post(
        LONG,
        &[JSON],
        &call("SUBSCRIBE", json!({ "subscribe": more })),
    )
}

fn update(task: &str, state: &str, uuid: u8) -> String {
    let mut bytes = [0x40; 16];
    bytes[0] = uuid;
    let uuid = encode(
        Encoding::Json,
        "Call.Message",
        &json!({"data": base64(&bytes)}),
    )
    .unwrap();
    let uuid: Value = serde_json::from_slice(&uuid).unwrap();
    call(
        "UPDATE",
        json!({"update": {"status": {"task_id": {"value": task}, "state": state,
        "executor_id": {"value": "e"}, "source": "SOURCE_EXECUTOR", "uuid": uuid["data"]}}}),
    )
}

/// Base64 by way of the codec: bytes of a message in protobuf as JSON.
fn base64(bytes: &[u8]) -> String {
    let mut message = vec![0x12, bytes.len() as u8];
    message.extend_from_slice(bytes);
    let decoded = decode(Encoding::Protobuf, "Call.Message", &message).unwrap();
    decoded.value["data"].as_str().unwrap().to_owned()
}

fn send(agent: &Agent, body: &str) -> (u16, String) {
    let answer = exchange(&agent.endpoint(), &post(LONG, &[JSON], body));
    (answer.code, answer.body)
}

#[test]
fn refusals_come_in_the_order_of_the_agent() {
    let agent = Agent::new(Settings {
        token: true,
        ..settings()
    });
    let environment = agent.environment();
    let token = environment
        .iter()
        .find(|(name, _)| name == "MESOS_EXECUTOR_AUTHENTICATION_TOKEN");
    let token = format!("Authorization: Bearer {}", token.unwrap().1);
    let other = Agent::new(Settings {
        token: true,
        ids: ["f", "e", "S0", "old"].map(str::to_owned),
        ..settings()
    });
    let other = other.environment();
    let other = other
        .iter()
        .find(|(name, _)| name == "MESOS_EXECUTOR_AUTHENTICATION_TOKEN");
    let other = format!("Authorization: Bearer {}", other.unwrap().1);
    let refused = |path: &str, headers: &[&str], body: &str| {
        let Answer { code, body, .. } = exchange(&agent.endpoint(), &post(path, headers, body));
        (code, body)
    };
    let own = [JSON, token.as_str()];
    let hello = call("SUBSCRIBE", json!({"subscribe": {}}));
    let text = |text: &str| text.to_owned();
    assert_eq!(refused("/api/v1/nothing", &[], "").0, 404);
    assert_eq!(refused(LONG, &[JSON], "").0, 401);
    assert_eq!(
        refused(LONG, &[JSON, "Authorization: Bearer a.b.c"], "").0,
        401
    );
    agent.phase(Phase::Recovering);
    assert_eq!(
        refused(LONG, &own, ""),
        (503, text("Agent has not finished recovery"))
    );
    assert_eq!(refused(LONG, &[JSON], "").0, 401);
    agent.phase(Phase::NoRoutes);
    assert_eq!(refused(LONG, &own, "").0, 404);
    agent.phase(Phase::Reconnecting);
    assert_eq!(
        refused(LONG, &[token.as_str()], ""),
        (400, text("Expecting 'Content-Type' to be present"))
    );
    assert_eq!(
        refused(LONG, &["Content-Type: text/plain", &token], "").0,
        415
    );
    assert_eq!(refused(LONG, &own, "{").0, 400);
    let nothing_known = |kind: &str| {
        call(
            kind,
            json!({"framework_id": {"value": "x"}, "message": {"data": ""}}),
        )
    };
    assert_eq!(refused(LONG, &own, &nothing_known("MESSAGE")).0, 503);
    assert_eq!(
        refused(LONG, &own, &nothing_known("HEARTBEAT")),
        (202, text(""))
    );
    agent.phase(Phase::Running);
    let picky = [JSON, token.as_str(), "Accept: text/html"];
    assert_eq!(refused(LONG, &picky, &hello).0, 406);
    assert_eq!(
        refused(LONG, &own, &nothing_known("MESSAGE")),
        (400, text("Framework cannot be found"))
    );
    let unknown = call(
        "MESSAGE",
        json!({"executor_id": {"value": "x"}, "message": {"data": ""}}),
    );
    assert_eq!(
        refused(LONG, &own, &unknown),
        (400, text("Executor cannot be found"))
    );
    let message = call("MESSAGE", json!({"message": {"data": ""}}));
    assert_eq!(refused(LONG, &[JSON, &other], &message).0, 403);
    for path in [LONG, "/api/v1/executor", "/slave%281%29/api/v1/executor"] {
        assert_eq!(
            refused(path, &own, &message),
            (403, text("Executor is not subscribed"))
        );
    }
    assert_eq!(refused(LONG, &own, &call("UNKNOWN", json!({}))).0, 403);
    let (answer, _stream) = open(&agent.endpoint(), &post(LONG, &own, &hello));
    assert_eq!(answer.code, 200);
    assert_eq!(refused(LONG, &own, &call("UNKNOWN", json!({}))).0, 501);
    assert_eq!(refused(LONG, &own, &message), (202, text("")));
    agent.assert_clean();
    let unknown = call("MESSAGE", json!({"message": {"data": ""}, "later": 1}));
    assert_eq!(
        refused(LONG, &own, &unknown),
        (400, text("Call.later: unknown field"))
    );
    assert_eq!(agent.violations(), ["MESSAGE: Call.later: unknown field"]);
}

#[test]
fn the_domain_socket_serves_the_long_path_alone() {
    let agent = Agent::new(Settings {
        transport: Transport::DomainSocket,
        ..settings()
    });
    let answer = |path: &str| {
        let mut socket = UnixStream::connect(agent.socket()).unwrap();
        let close = [JSON, "Connection: close"];
        let body = call("MESSAGE", json!({"message": {"data": ""}}));
        socket.write_all(&post(path, &close, &body)).unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
        (
            text.split(' ').nth(1).unwrap().parse::<u16>().unwrap(),
            body,
        )
    };
    assert_eq!(answer("/api/v1/executor"), (403, String::new()));
    assert_eq!(answer("/elsewhere"), (403, String::new()));
    assert_eq!(answer(LONG), (403, "Executor is not subscribed".into()));
}

#[test]
fn updates_are_kept_once_and_acknowledged_each_time() {
    let agent = Agent::new(settings());
    for name in ["a", "b"] {
        agent.launch(task(name, Value::Null));
    }
    let (_, reader) = open(&agent.endpoint(), &subscribe(json!({})));
    let mut chunks = Chunks(reader);
    let mut next = || record(&chunks.next().unwrap());
    assert_eq!(next()["type"], "SUBSCRIBED");
    assert_eq!(next()["launch"]["task"]["task_id"]["value"], "a");
    assert_eq!(
        next()["launch"]["task"]["executor"]["executor_id"]["value"],
        "e"
    );
    let taken = (202, String::new());
    assert_eq!(send(&agent, &update("a", "TASK_RUNNING", 1)), taken);
    assert_eq!(send(&agent, &update("a", "TASK_RUNNING", 1)), taken);
    let first = next();
    assert_eq!(first["acknowledged"]["task_id"]["value"], "a");
    assert_eq!(next(), first);
    agent.acks(Acks::Held);
    assert_eq!(send(&agent, &update("a", "TASK_FINISHED", 2)), taken);
    assert_eq!(send(&agent, &update("b", "TASK_RUNNING", 3)), taken);
    agent.event(json!({"type": "HEARTBEAT"}));
    assert_eq!(next(), json!({"type": "HEARTBEAT"}));
    agent.release();
    assert_eq!(next()["acknowledged"]["task_id"]["value"], "a");
    assert_eq!(next()["acknowledged"]["task_id"]["value"], "b");
    agent.acks(Acks::Twice);
    assert_eq!(send(&agent, &update("b", "TASK_FINISHED", 4)), taken);
    let twice = next();
    assert_eq!(next(), twice);
    assert_eq!(agent.states("a"), ["TASK_RUNNING", "TASK_FINISHED"]);
    agent.assert_clean();
    // what loses or falsifies something
    agent.acks(Acks::Given);
    for (body, expected) in [
        (
            update("a", "TASK_FAILED", 5),
            "a: TASK_FAILED after TASK_FINISHED",
        ),
        (
            update("x", "TASK_FAILED", 6),
            "x: update for an unknown task",
        ),
        (
            update("b", "TASK_FAILED", 4),
            "b: uuid BEBAQEBAQEBAQEBAQEBAQA== again with another content",
        ),
    ] {
        assert_eq!(send(&agent, &body), taken);
        assert_eq!(agent.violations(), [expected]);
    }
    assert_eq!(agent.states("a"), ["TASK_RUNNING", "TASK_FINISHED"]);
}

#[test]
fn a_second_subscription_ends_the_first_and_has_to_bring_what_is_open() {
    let agent = Agent::new(settings());
    agent.launch(task("a", Value::Null));
    agent.launch(task("b", Value::Null));
    let (_, first) = open(&agent.endpoint(), &subscribe(json!({})));
    let mut first = Chunks(first);
    for _ in 0..3 {
        first.next().unwrap();
    }
    agent.acks(Acks::Lost);
    send(&agent, &update("a", "TASK_RUNNING", 1));
    let status: Value = serde_json::from_str(&update("a", "TASK_RUNNING", 1)).unwrap();
    let status = &status["update"];
    agent.acks(Acks::Given);
    let b = task("b", json!({"agent_id": {"value": "S0"}}));
    let again = subscribe(json!({"unacknowledged_updates": [status], "unacknowledged_tasks": [b]}));
    let (_, second) = open(&agent.endpoint(), &again);
    assert!(first.next().is_none(), "the first stream ends");
    let mut second = Chunks(second);
    assert_eq!(record(&second.next().unwrap())["type"], "SUBSCRIBED");
    assert_eq!(record(&second.next().unwrap())["type"], "ACKNOWLEDGED");
    agent.assert_clean();
    // without the task it is given up
    let (_, _third) = open(&agent.endpoint(), &subscribe(json!({})));
    agent.wait_for("b", "TASK_LOST");
    assert_eq!(
        agent.violations(),
        ["SUBSCRIBE without the unacknowledged task b"]
    );
}

#[test]
fn a_restart_keeps_address_and_updates() {
    let agent = Agent::new(settings());
    let endpoint = agent.endpoint();
    agent.launch(task("a", Value::Null));
    let (_, reader) = open(&endpoint, &subscribe(json!({})));
    agent.acks(Acks::Lost);
    send(&agent, &update("a", "TASK_STARTING", 1));
    agent.stop();
    let mut chunks = Chunks(reader);
    while chunks.next().is_some() {}
    assert!(std::net::TcpStream::connect(&endpoint).is_err());
    agent.start(Phase::Reconnecting);
    agent.acks(Acks::Given);
    let (answer, _reader) = open(&endpoint, &subscribe(json!({})));
    assert_eq!(answer.code, 200);
    assert_eq!(
        agent.violations(),
        ["SUBSCRIBE with the updates [] instead of [\"AUBAQEBAQEBAQEBAQEBAQA==\"]"]
    );
    assert_eq!(send(&agent, &update("a", "TASK_RUNNING", 2)).0, 503);
    agent.phase(Phase::Running);
    assert_eq!(send(&agent, &update("a", "TASK_RUNNING", 2)).0, 202);
}

#[test]
fn shutdown_may_be_all_there_is() {
    let agent = Agent::new(settings());
    agent.launch_group(vec![task("a", Value::Null), task("b", Value::Null)]);
    agent.kill("b", None);
    for name in ["a", "b"] {
        assert_eq!(agent.states(name), ["TASK_KILLED"]);
    }
    let (_, reader) = open(&agent.endpoint(), &subscribe(json!({})));
    assert_eq!(
        record(&Chunks(reader).next().unwrap()),
        json!({"type": "SHUTDOWN"})
    );
    let cleanup = Agent::new(settings());
    cleanup.phase(Phase::Cleanup);
    let (_, reader) = open(&cleanup.endpoint(), &subscribe(json!({})));
    assert_eq!(
        record(&Chunks(reader).next().unwrap()),
        json!({"type": "SHUTDOWN"})
    );
}

#[test]
fn streams_are_cut_anywhere_and_say_the_same() {
    for seed in 0..20 {
        let agent = Agent::new(Settings {
            cut: Some(seed),
            ..settings()
        });
        for number in 0..20 {
            agent.launch(task(&format!("t{number}"), json!({"data": "AAECAw=="})));
        }
        let accept = [JSON, "Accept: application/x-protobuf"];
        let body = call("SUBSCRIBE", json!({"subscribe": {}}));
        let (_, reader) = open(&agent.endpoint(), &post(LONG, &accept, &body));
        agent.end_stream();
        let mut chunks = Chunks(reader);
        let mut all = Vec::new();
        let mut count = 0;
        while let Some(chunk) = chunks.next() {
            all.extend(chunk);
            count += 1;
        }
        assert!(count > 21, "{count} chunks");
        let mut rest = all.as_slice();
        let mut names = Vec::new();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let length: usize = std::str::from_utf8(&rest[..end]).unwrap().parse().unwrap();
            let (now, later) = rest[end + 1..].split_at(length);
            let event = decode(Encoding::Protobuf, "Event", now).unwrap().value;
            names.extend(event["launch"]["task"]["name"].as_str().map(str::to_owned));
            rest = later;
        }
        assert_eq!(names, (0..20).map(|n| format!("t{n}")).collect::<Vec<_>>());
    }
}

#[test]
fn arranged_answers() {
    let agent = Agent::new(settings());
    agent.answer(Calls::Subscribe, test_agent::Answer::Status(500));
    agent.answer(
        Calls::Subscribe,
        test_agent::Answer::Redirect("http://elsewhere/".into()),
    );
    assert_eq!(exchange(&agent.endpoint(), &subscribe(json!({}))).code, 500);
    let redirect = exchange(&agent.endpoint(), &subscribe(json!({})));
    assert_eq!(redirect.code, 307);
    assert!(
        redirect.head.contains("Location: http://elsewhere/\r\n"),
        "{}",
        redirect.head
    );
    let (answer, reader) = open(&agent.endpoint(), &subscribe(json!({})));
    assert_eq!(answer.code, 200);
    let mut chunks = Chunks(reader);
    chunks.next().unwrap();
    agent.garbage(b"what\n");
    assert_eq!(chunks.next().unwrap(), b"what\n");
    agent.unknown_event();
    assert_eq!(
        record(&chunks.next().unwrap())["type"],
        "OF_A_LATER_VERSION"
    );
    agent.half_close();
    assert!(chunks.next().is_none());
}

#[test]
fn tls_has_an_authority_of_its_own() {
    let agent = Agent::new(Settings {
        transport: Transport::Tls,
        ..settings()
    });
    let environment = agent.environment();
    let authority = environment
        .iter()
        .find(|(name, _)| name == "LIBPROCESS_SSL_CA_FILE")
        .unwrap();
    let url = format!("{}{LONG}", agent.url());
    let curl = |more: &[&str]| {
        let mut curl = std::process::Command::new("curl");
        curl.args([
            "-s",
            "-g",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-H",
            JSON,
            "-d",
            "{}",
            &url,
        ]);
        let output = curl.args(more).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(curl(&["--cacert", &authority.1]), "400");
    assert_eq!(curl(&[]), "000");
}

#[test]
fn executors_get_a_sandbox_and_go_with_their_container() {
    for cgroup in [false, true] {
        let launcher = Launcher {
            cgroup,
            shell: true,
            wrapper: Vec::new(),
        };
        let grace = Duration::from_millis(300);
        let agent = Agent::new(Settings {
            launcher,
            shutdown_grace: grace,
            ..settings()
        });
        agent.launch(task("a", Value::Null));
        // a child that is nobody's, and one that ignores SIGTERM
        let script = "env | sort; pwd; (setsid sleep 1000 &); trap '' TERM; sleep 1000; true";
        agent.start_executor(&["/bin/sh", "-c", script]);
        let line = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let sleeping = |pids: &[i32]| {
            pids.iter()
                .filter(|pid| line(pid) == b"sleep\x001000\0")
                .count()
        };
        while sleeping(&agent.processes()) < 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let all = agent.processes();
        let sandbox = agent.sandbox();
        let printed = || std::fs::read_to_string(sandbox.join("stdout")).unwrap();
        while !printed().ends_with(&format!("\n{}\n", sandbox.display())) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let names: Vec<String> = printed()
            .lines()
            .filter_map(|line| Some(line.split_once('=')?.0.to_owned()))
            .collect();
        let mut expected: Vec<String> = agent
            .environment()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        expected.extend(["PWD", "_"].map(str::to_owned));
        expected.sort();
        let names: Vec<&String> = names
            .iter()
            .filter(|name| *name != "OLDPWD" && *name != "SHLVL")
            .collect();
        let expected: Vec<&String> = expected
            .iter()
            .filter(|name| *name != "_" || names.contains(name))
            .collect();
        assert_eq!(names, expected);
        agent.shutdown();
        let exit = agent.wait_exit();
        assert!(exit.destroyed, "{exit:?}");
        assert_eq!((sleeping(&all), agent.processes()), (0, Vec::new()));
        let status = &agent.statuses("a")[0];
        assert_eq!(
            (&status["state"], &status["reason"]),
            (&json!("TASK_FAILED"), &json!("REASON_EXECUTOR_TERMINATED"))
        );
    }
}
