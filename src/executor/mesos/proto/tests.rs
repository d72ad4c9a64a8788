use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};

use super::*;

/// What an agent sent to an executor.
const EVENTS: &str = include_str!("../../../../tests/fixtures/mesos/events.recordio");
/// What that executor sent, a call a line.
const CALLS: &str = include_str!("../../../../tests/fixtures/mesos/calls.jsonl");

fn records() -> Vec<&'static str> {
    let (mut left, mut records) = (EVENTS, Vec::new());
    while let Some((length, rest)) = left.split_once('\n') {
        let (record, rest) = rest.split_at(length.parse().unwrap());
        records.push(record);
        left = rest;
    }
    records
}

fn read(text: &str) -> Result<Event, String> {
    let event = Encoding::Json.decode(text.as_bytes());
    event.map_err(|error| error.to_string())
}

/// Without what JSON may leave out: null.
fn status(fields: Value) -> Result<TaskStatus, String> {
    serde_json::from_value(fields).map_err(|error| error.to_string())
}

#[test]
fn recorded_events() {
    let types: Vec<_> = records()
        .into_iter()
        .map(|record| {
            let event = read(record).unwrap();
            // the same by way of protobuf
            let bytes = event.encode_to_vec();
            assert_eq!(Encoding::Protobuf.decode(&bytes).unwrap(), event);
            // the agent writes nothing that is lost
            let value: Value = serde_json::from_str(record).unwrap();
            assert_eq!(serde_json::to_value(&event).unwrap(), value);
            event.r#type().to_string()
        })
        .collect();
    assert_eq!(
        types[..5],
        ["SUBSCRIBED", "LAUNCH", "LAUNCH", "LAUNCH", "LAUNCH_GROUP"]
    );
    let acknowledged = types.iter().filter(|name| *name == "ACKNOWLEDGED").count();
    assert_eq!((types.len(), acknowledged), (22, 14));
    assert_eq!(types.last().unwrap(), "SHUTDOWN");
}

#[test]
fn recorded_group() {
    let event = read(records()[4]).unwrap();
    let tasks = event.launch_group.unwrap().task_group.tasks;
    assert_eq!(tasks.len(), 2);
    let task = &tasks[1];
    assert_eq!((task.name.as_str(), task.data()), ("g2", &b"1"[..]));
    let executor = task.executor.as_ref().unwrap();
    assert_eq!(executor.r#type(), executor_info::Type::Custom);
    let memory = &task.resources[1];
    assert_eq!(
        (memory.name.as_str(), memory.r#type()),
        ("mem", value::Type::Scalar)
    );
    assert_eq!(memory.scalar, Some(value::Scalar { value: 32.0 }));
}

#[test]
fn recorded_calls() {
    let mut count = 0;
    for line in CALLS.lines() {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let call: Call = serde_json::from_value(value.clone()).unwrap();
        // empty lists mean nothing
        if let Some(subscribe) = value.get_mut("subscribe") {
            *subscribe = json!({});
        }
        let ours: Value = serde_json::from_slice(&Encoding::Json.encode(&call)).unwrap();
        assert_eq!(ours, value);
        let bytes = Encoding::Protobuf.encode(&call);
        assert_eq!(Call::decode(&bytes[..]).unwrap(), call);
        count += 1;
    }
    assert_eq!(count, 17);
}

/// Bytes written by hand from the numbers of the proto files.
#[test]
fn protobuf_bytes() {
    let id = |text: &str| -> Vec<u8> {
        let inner = [&[0x0a, text.len() as u8], text.as_bytes()].concat();
        [&[inner.len() as u8], &inner[..]].concat()
    };
    let call = Call {
        executor_id: ExecutorId {
            value: "e".to_owned(),
        },
        framework_id: FrameworkId {
            value: String::new(),
        },
        r#type: Some(call::Type::Update.into()),
        update: Some(call::Update {
            status: TaskStatus {
                task_id: TaskId {
                    value: "t".to_owned(),
                },
                state: TaskState::Starting.into(),
                source: Some(task_status::Source::Executor.into()),
                healthy: Some(false),
                ..TaskStatus::default()
            },
        }),
        ..Call::default()
    };
    // required fields that are zero or empty are there: framework_id.value, state
    let status = [&[0x0a][..], &id("t"), &[0x10, 0, 0x40, 0, 0x48, 2]].concat();
    let update = [&[0x0a, status.len() as u8][..], &status].concat();
    let expected = [
        &[0x0a][..],
        &id("e"),
        &[0x12],
        &id(""),
        &[0x18, 2, 0x2a, update.len() as u8],
        &update,
    ]
    .concat();
    assert_eq!(Encoding::Protobuf.encode(&call), expected);
    // `data` is 2 in the call and 1 in the event
    let data = b"x".to_vec();
    let sent = call::Message { data: data.clone() };
    assert_eq!(sent.encode_to_vec(), [0x12, 1, b'x']);
    assert_eq!(event::Message { data }.encode_to_vec(), [0x0a, 1, b'x']);
    // repeated numbers are not packed
    let http = health_check::HttpCheckInfo {
        port: 0,
        statuses: vec![1, 2],
        ..Default::default()
    };
    assert_eq!(http.encode_to_vec(), [8, 0, 32, 1, 32, 2]);
}

#[test]
fn json_numbers_and_null() {
    let full = status(json!({
        "task_id": {"value": "t"}, "state": "TASK_RUNNING", "message": null, "uuid": "AAE=", "timestamp": 7,
        "reason": "REASON_OF_THE_FUTURE", "source": "SOURCE_EXECUTOR", "future": {"x": [1]},
        "container_status": {"executor_pid": "17", "network_infos": null},
        "unreachable_time": {"nanoseconds": "9007199254740993"},
    }))
    .unwrap();
    assert_eq!(
        (full.timestamp, full.reason, full.uuid()),
        (Some(7.0), None, &[0, 1][..])
    );
    assert_eq!(
        full.unreachable_time,
        Some(TimeInfo {
            nanoseconds: 9_007_199_254_740_993
        })
    );
    assert_eq!(full.container_status.unwrap().executor_pid, Some(17));
}

#[test]
fn infinity_and_defaults() {
    let task: TaskInfo = serde_json::from_value(json!({
        "name": "", "task_id": {"value": "t"}, "agent_id": {"value": "a"},
        "limits": {"mem": {"value": "Infinity"}, "cpus": {"value": 1}, "disk": {"value": "-Infinity"}},
        "command": {"arguments": []}, "health_check": {"command": {"shell": false}},
    }))
    .unwrap();
    assert_eq!(task.limits["mem"].value, f64::INFINITY);
    let text = serde_json::to_value(&task).unwrap();
    assert_eq!(
        text["limits"],
        json!({"mem": {"value": "Infinity"}, "cpus": {"value": 1.0}, "disk": {"value": "-Infinity"}})
    );
    assert_eq!(TaskInfo::decode(&task.encode_to_vec()[..]).unwrap(), task);
    let health = task.health_check.unwrap();
    assert_eq!(
        (health.delay_seconds(), health.consecutive_failures()),
        (15.0, 3)
    );
    assert!(task.command.unwrap().shell());
    assert!(!health.command.unwrap().shell());
}

#[test]
fn wrong_json() {
    let id = json!({"value": "t"});
    for (fields, expected) in [
        (json!({"state": "TASK_LOST"}), "task_id: is missing"),
        (json!({"task_id": id, "state": null}), "state: is missing"),
        (
            json!({"task_id": {"value": 1}, "state": "TASK_LOST"}),
            "task_id.value: expected text, found a number",
        ),
        (
            json!({"task_id": id, "state": "TASK_NEW"}),
            "state: unknown value \"TASK_NEW\"",
        ),
        (
            json!({"task_id": id, "state": 1}),
            "state: expected text, found a number",
        ),
        (
            json!({"task_id": id, "state": "TASK_LOST", "healthy": "yes"}),
            "healthy: expected a boolean, found text",
        ),
        (
            json!({"task_id": id, "state": "TASK_LOST", "timestamp": "x"}),
            "timestamp: expected a number, found text",
        ),
        (
            json!({"task_id": id, "state": "TASK_LOST", "container_status": {"network_infos": [{}, {"port_mappings": [{"host_port": -1}]}]}}),
            "container_status.network_infos[1].port_mappings[0].host_port: -1 is no whole number of 32 bits",
        ),
        (
            json!({"task_id": id, "state": "TASK_LOST", "labels": []}),
            "labels: expected an object, found a list",
        ),
        (json!([]), "expected an object, found a list"),
    ] {
        assert_eq!(status(fields).unwrap_err(), expected);
    }
    let wrong = status(json!({"task_id": id, "state": "TASK_LOST", "uuid": "*"})).unwrap_err();
    assert!(wrong.starts_with("uuid: is not base64: "), "{wrong}");
}

#[test]
fn events_without_their_body() {
    for (text, expected) in [
        (
            r#"{"type":"LAUNCH"}"#,
            Some("application/json message Event cannot be read: LAUNCH has no `launch`"),
        ),
        (
            r#"{"type":"KILL","kill":null}"#,
            Some("application/json message Event cannot be read: KILL has no `kill`"),
        ),
        (r#"{"type":"HEARTBEAT"}"#, None),
        (r#"{"type":"SHUTDOWN"}"#, None),
        (r#"{"type":"OF_THE_FUTURE","x":{}}"#, None),
        ("{}", None),
    ] {
        assert_eq!(read(text).err().as_deref(), expected, "{text}");
    }
    // number 99
    let newer = Encoding::Protobuf.decode(&[8, 99]).unwrap();
    assert_eq!(newer.r#type(), event::Type::Unknown);
}

#[test]
fn nesting_is_bounded() {
    let parent = "{\"parent\":".repeat(200_000);
    let text = format!("{{\"type\":\"SUBSCRIBED\",\"subscribed\":{{\"container_id\":{parent}");
    assert!(read(&text).unwrap_err().contains("recursion limit"));
    let mut bytes = Vec::new();
    for _ in 0..200 {
        let mut outer = vec![0x12];
        prost::encode_length_delimiter(bytes.len(), &mut outer).unwrap();
        outer.extend_from_slice(&bytes);
        bytes = outer;
    }
    let error = ContainerId::decode(&bytes[..]).unwrap_err();
    assert!(error.to_string().contains("recursion limit"), "{error}");
}

fn any_status() -> impl Strategy<Value = TaskStatus> {
    let scalars = (
        0..14i32,
        any::<Option<bool>>(),
        proptest::option::of(0..35i32),
    );
    let texts = (
        ".{0,20}",
        proptest::option::of(any::<Vec<u8>>()),
        any::<Option<String>>(),
    );
    let ports = proptest::collection::vec((any::<u32>(), any::<u32>()), 0..3);
    (
        scalars,
        texts,
        ports,
        proptest::option::of(-(1i64 << 40)..1 << 40),
    )
        .prop_map(
            |((state, healthy, reason), (id, uuid, message), ports, timestamp)| {
                let ports = ports.into_iter().map(|(host_port, container_port)| {
                    network_info::PortMapping {
                        host_port,
                        container_port,
                        protocol: None,
                    }
                });
                let network = NetworkInfo {
                    port_mappings: ports.collect(),
                    ..Default::default()
                };
                TaskStatus {
                    task_id: TaskId { value: id },
                    container_status: Some(ContainerStatus {
                        network_infos: vec![network],
                        ..Default::default()
                    }),
                    state,
                    healthy,
                    reason,
                    uuid,
                    message,
                    // exact in JSON, as serde_json reads only few digits exactly
                    timestamp: timestamp.map(|quarters| quarters as f64 / 4.0),
                    ..Default::default()
                }
            },
        )
}

proptest! {
    #[test]
    fn round_trips(status in any_status()) {
        let text = serde_json::to_string(&status).unwrap();
        prop_assert_eq!(&serde_json::from_str::<TaskStatus>(&text).unwrap(), &status);
        prop_assert_eq!(TaskStatus::decode(&status.encode_to_vec()[..]).unwrap(), status);
    }

    #[test]
    fn any_bytes(bytes in any::<Vec<u8>>()) {
        let _ = Encoding::Protobuf.decode(&bytes);
        let _ = Encoding::Json.decode(&bytes);
    }

    /// A good record with a few bytes changed reaches deeper.
    #[test]
    fn nearly_good(which in 0..22usize, changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4)) {
        let mut text = records()[which].as_bytes().to_vec();
        let mut bytes = Encoding::Json.decode(&text).unwrap().encode_to_vec();
        for (at, byte) in changes {
            let (in_text, in_bytes) = (at % text.len(), at % bytes.len());
            text[in_text] = byte;
            bytes[in_bytes] = byte;
        }
        let _ = Encoding::Json.decode(&text);
        if let Ok(event) = Encoding::Protobuf.decode(&bytes) {
            let _ = serde_json::to_string(&event);
        }
    }
}
