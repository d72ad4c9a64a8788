//! The exchange that was recorded with a real agent, with the test agent in its place: the same calls get the same
//! answers and the same events.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{Chunks, exchange, open, record};
use test_agent::{Agent, Settings, task};

const TRANSCRIPT: &str = include_str!("transcript.txt");

/// One line of the transcript, with those that belong to it.
#[derive(Debug, Clone)]
struct Line {
    what: String,
    text: String,
}

fn lines() -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for line in TRANSCRIPT.split('\n') {
        let mut words = line.trim_start().splitn(3, ' ');
        let time = words.next().unwrap_or_default();
        let what = words.next().unwrap_or_default();
        let starts = line.starts_with("   ") && time.parse::<f64>().is_ok();
        match (starts, lines.last_mut()) {
            (true, _) => lines.push(Line {
                what: what.to_owned(),
                text: words.next().unwrap_or_default().to_owned(),
            }),
            (false, Some(last)) => last.text += &format!("\n{line}"),
            (false, None) => panic!("{line:?}"),
        }
    }
    lines
}

/// What is between `b'` and `'`.
fn bytes(text: &str) -> &str {
    let start = text.find("b'").unwrap() + 2;
    text[start..].strip_suffix('\'').unwrap()
}

fn environment() -> Vec<(String, String)> {
    let lines = lines().into_iter().filter(|line| line.what == "ENV");
    let pairs = lines.map(|line| {
        let (name, value) = line.text.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    });
    pairs.collect()
}

fn agent() -> Agent {
    let variable = |name: &str| {
        let all = environment();
        all.into_iter().find(|(key, _)| key == name).unwrap().1
    };
    let container = variable("MESOS_SANDBOX")
        .rsplit_once('/')
        .unwrap()
        .1
        .to_owned();
    let resources = json!([
        {"name": "cpus", "type": "SCALAR", "scalar": {"value": 4.0}},
        {"name": "mem", "type": "SCALAR", "scalar": {"value": 2048.0}},
        {"name": "disk", "type": "SCALAR", "scalar": {"value": 1000.0}},
        {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 31000, "end": 31100}]}},
    ]);
    Agent::new(Settings {
        ids: [
            variable("MESOS_FRAMEWORK_ID"),
            variable("MESOS_EXECUTOR_ID"),
            variable("MESOS_SLAVE_ID"),
            container,
        ],
        framework: json!({"name": "probe", "failover_timeout": 0.0, "roles": ["*"]}),
        executor: json!({"name": "py-exec", "command": {
            "environment": {"variables": [{"name": "FOO", "type": "VALUE", "value": "bar"}]},
            "shell": true, "value": "/usr/bin/python3 /opt/probe/executor.py 1>&2"}}),
        agent: json!({"hostname": "127.0.0.1", "port": 5051, "resources": resources}),
        environment: vec![("FOO".into(), "bar".into())],
        ..Settings::default()
    })
}

#[test]
fn the_environment_is_that_of_the_recorded_executor() {
    let agent = agent();
    let ours = agent.environment();
    let port = agent.endpoint().rsplit_once(':').unwrap().1.to_owned();
    let folder = agent.folder().to_string_lossy().into_owned();
    let mut ours: Vec<(String, String)> = ours
        .into_iter()
        .map(|(name, value)| {
            let value = value.replace(&folder, "/var/lib/mesos");
            (
                name,
                value.replace(&format!("127.0.0.1:{port}"), "127.0.0.1:5051"),
            )
        })
        .collect();
    ours.sort();
    // what the executor's shell and interpreter have added
    let recorded = environment().into_iter();
    let mut recorded: Vec<_> = recorded
        .filter(|(name, _)| name != "PWD" && name != "LC_CTYPE")
        .collect();
    recorded.sort();
    assert_eq!(ours, recorded);
}

#[test]
fn the_same_calls_get_the_same_answers_and_events() {
    let agent = agent();
    let lines = lines();
    agent.launch(task("a", json!({"data": "Mg=="})));
    let grace = json!({"grace_period": {"nanoseconds": 3_000_000_000i64}});
    agent.launch(task("b", json!({"data": "NjAw", "kill_policy": grace})));
    let labels = json!({"labels": [{"key": "k", "value": "v"}]});
    agent.launch(task("c", json!({"data": "NjAw", "labels": labels})));
    let member = |id| task(id, json!({"data": "MQ=="}));
    agent.launch_group(vec![member("g1"), member("g2")]);

    let subscribe = lines.iter().find(|line| line.what == "SUBSCRIBE>").unwrap();
    let (answer, reader) = open(&agent.endpoint(), subscribe.text.as_bytes());
    let recorded = lines.iter().find(|line| line.what == "SUBSCRIBE<").unwrap();
    let recorded = bytes(&recorded.text).replace("\\r\\n", "\n");
    let without_date = |head: &str| -> Vec<String> {
        let lines = head
            .lines()
            .filter(|line| !line.starts_with("Date: ") && !line.is_empty());
        lines.map(str::to_owned).collect()
    };
    assert_eq!(without_date(&answer.head), without_date(&recorded));

    let calls: Vec<usize> = (0..lines.len())
        .filter(|i| lines[*i].what == "CALL>")
        .collect();
    let mut done = 0;
    for (number, at) in calls.iter().enumerate() {
        // what the scheduler did by then
        for line in &lines[done..*at] {
            if line.what == "CHUNK" && line.text.contains(r#"{"type":"MESSAGE""#) {
                agent.message("cGluZw==");
            } else if line.what == "CHUNK" && line.text.contains(r#"{"type":"KILL""#) {
                agent.kill("b", Some(Duration::from_secs(5)));
            } else if line.what == "CHUNK" && line.text.contains(r#"{"type":"SHUTDOWN""#) {
                agent.shutdown();
            }
        }
        done = *at;
        let answer = exchange(&agent.endpoint(), lines[*at].text.as_bytes());
        let recorded = lines[*at..]
            .iter()
            .find(|line| line.what == "CALL<")
            .unwrap();
        let recorded = bytes(&recorded.text).replace("\\r\\n", "\n");
        assert_eq!(
            without_date(&answer.head),
            without_date(&recorded),
            "call {number}"
        );
        assert_eq!(answer.body, "");
    }
    agent.assert_clean();
    assert_eq!(agent.wait_message(), "cG9uZzpwaW5n");
    agent.end_stream();

    let mut chunks = Chunks(reader);
    let mut events = Vec::new();
    while let Some(chunk) = chunks.next() {
        events.push(record(&chunk));
    }
    let recorded = lines.iter().filter(|line| line.what == "CHUNK");
    // folders were renamed after the recording, so the lengths are not true any more
    let recorded: Vec<Value> = recorded
        .map(|line| bytes(&line.text).split_once("\\n").unwrap().1)
        .map(|record| serde_json::from_str(record).unwrap())
        .collect();
    // the last update was acknowledged after the recorder had gone; acknowledgements of different tasks have no order
    let split = |events: Vec<Value>| -> (Vec<Value>, Vec<Value>) {
        events
            .into_iter()
            .partition(|event| event["type"] == "ACKNOWLEDGED")
    };
    let (mut acks, events) = split(events);
    let (mut recorded_acks, recorded) = split(recorded);
    for (event, recorded) in events.iter().zip(&recorded) {
        assert_eq!(event, recorded);
    }
    assert_eq!(events.len(), recorded.len());
    let last = acks.pop().unwrap();
    assert_eq!(last["acknowledged"]["task_id"]["value"], "c");
    let by_uuid =
        |acks: &mut Vec<Value>| acks.sort_by_key(|ack| ack["acknowledged"]["uuid"].to_string());
    by_uuid(&mut acks);
    by_uuid(&mut recorded_acks);
    assert_eq!(acks, recorded_acks);

    let states = |task: &str| agent.states(task).join(" ");
    assert_eq!(states("a"), "TASK_STARTING TASK_RUNNING TASK_FINISHED");
    assert_eq!(states("b"), "TASK_STARTING TASK_RUNNING TASK_KILLED");
    assert_eq!(states("c"), "TASK_STARTING TASK_RUNNING TASK_KILLED");
    assert_eq!(states("g1"), "TASK_STARTING TASK_RUNNING TASK_FINISHED");
    assert_eq!(states("g2"), "TASK_STARTING TASK_RUNNING TASK_FINISHED");
}
