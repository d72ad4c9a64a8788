//! What the agent refuses and what it notices: pure.
//!
//! Owns the order of the agent's checks of a call, its codes and texts, and what is expected of a chain of updates.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::codec::{self, Encoding};

/// An answer other than the one hoped for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) body: String,
    pub(crate) headers: Vec<(&'static str, String)>,
}

/// A refusal without headers of its own.
pub(crate) fn refuse(code: u16, body: impl Into<String>) -> Refusal {
    Refusal {
        code,
        body: body.into(),
        headers: Vec::new(),
    }
}

/// The words for an agent that recovers.
pub(crate) fn recovering() -> Refusal {
    refuse(503, "Agent has not finished recovery")
}

/// A call that was parsed and is complete, and what was odd about it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) value: Value,
    pub(crate) encoding: Encoding,
    pub(crate) oddities: Vec<String>,
}

/// Text at a path of keys; empty if there is none.
pub(crate) fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// Value at a path of keys.
pub(crate) fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

/// Method, media type and content of a request to the executor's endpoint.
pub(crate) fn parse(method: &str, media: Option<&str>, body: &[u8]) -> Result<Call, Refusal> {
    if method != "POST" {
        let body = format!("Expecting one of {{ 'POST' }}, but received '{method}'");
        let mut refusal = refuse(405, body);
        refusal.headers.push(("Allow", "POST".into()));
        return Err(refusal);
    }
    let Some(media) = media else {
        return Err(refuse(400, "Expecting 'Content-Type' to be present"));
    };
    let json = Encoding::Json.media_type();
    let protobuf = Encoding::Protobuf.media_type();
    let encoding = if media == protobuf {
        Encoding::Protobuf
    } else if media == json {
        if let Err(error) = serde_json::from_slice::<Value>(body) {
            let body = format!("Failed to parse body into JSON: {error}");
            return Err(refuse(400, body));
        }
        Encoding::Json
    } else {
        let body = format!("Expecting 'Content-Type' of {json} or {protobuf}");
        return Err(refuse(415, body));
    };
    let decoded = codec::decode(encoding, "Call", body).map_err(|error| match encoding {
        Encoding::Json => refuse(
            400,
            format!("Failed to convert JSON into Call protobuf: {error}"),
        ),
        Encoding::Protobuf => refuse(400, "Failed to parse body into Call protobuf"),
    })?;
    match validate(&decoded.value) {
        Err(error) => Err(refuse(
            400,
            format!("Failed to validate Executor::Call: {error}"),
        )),
        Ok(()) => Ok(Call {
            value: decoded.value,
            encoding,
            oddities: decoded.oddities,
        }),
    }
}

/// The agent's validation of a call that has all its required fields.
fn validate(call: &Value) -> Result<(), String> {
    let expect = |found: bool, name: &str| match found {
        true => Ok(()),
        false => Err(format!("Expecting '{name}' to be present")),
    };
    expect(call.get("type").is_some(), "type")?;
    match text(call, &["type"]) {
        "SUBSCRIBE" => expect(call.get("subscribe").is_some(), "subscribe"),
        "MESSAGE" => expect(call.get("message").is_some(), "message"),
        "UPDATE" => {
            expect(call.get("update").is_some(), "update")?;
            status(
                call,
                at(call, &["update", "status"]).unwrap_or(&Value::Null),
            )
        }
        _ => Ok(()),
    }
}

/// A status as part of a call.
fn status(call: &Value, status: &Value) -> Result<(), String> {
    let Some(uuid) = status.get("uuid").and_then(Value::as_str) else {
        return Err("Expecting 'uuid' to be present".into());
    };
    let bytes = STANDARD.decode(uuid).unwrap_or_default();
    // versions 1 to 5 are those that the agent's library knows
    let known = matches!(bytes.as_slice(), [_, _, _, _, _, _, version, _, ..]
        if bytes.len() == 16 && (1..=5).contains(&(version >> 4)));
    if !known {
        return Err("Not a valid UUID".into());
    }
    let (executor, framework) = (
        text(call, &["executor_id", "value"]),
        text(call, &["framework_id", "value"]),
    );
    let own = at(status, &["executor_id", "value"]).and_then(Value::as_str);
    if let Some(own) = own.filter(|own| *own != executor) {
        return Err(format!(
            "ExecutorID in Call: {executor} does not match ExecutorID in TaskStatus: {own}"
        ));
    }
    if text(status, &["source"]) != "SOURCE_EXECUTOR" {
        return Err(format!(
            "Received Call from executor {executor} of framework {framework} with invalid source, \
             expecting 'SOURCE_EXECUTOR'"
        ));
    }
    if text(status, &["state"]) == "TASK_STAGING" {
        return Err(format!(
            "Received TASK_STAGING from executor {executor} of framework {framework} which is not allowed"
        ));
    }
    let Some(check) = status.get("check_status") else {
        return Ok(());
    };
    let (name, key) = match text(check, &["type"]) {
        "" => return Err("CheckStatusInfo must specify 'type'".into()),
        "COMMAND" => ("COMMAND", "command"),
        "HTTP" => ("HTTP", "http"),
        "TCP" => ("TCP", "tcp"),
        other => return Err(format!("'{other}' is not a valid check's status type")),
    };
    match check.get(key) {
        Some(_) => Ok(()),
        None => Err(format!(
            "Expecting '{key}' to be set for {name} check's status"
        )),
    }
}

/// Which encoding a subscriber gets: JSON wherever that is allowed.
pub(crate) fn accepted(accept: Option<&str>) -> Result<Encoding, Refusal> {
    let allows = |media: &str| {
        let kind = media.split_once('/').map(|(kind, _)| format!("{kind}/*"));
        accept.is_none_or(|accept| {
            let ranges = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let range = parts.next().unwrap_or_default();
                let never = parts.any(|part| matches!(part, "q=0" | "q=0.0"));
                (!never).then_some(range)
            });
            let mut ranges = ranges;
            ranges.any(|range| range == "*/*" || range == media || Some(range) == kind.as_deref())
        })
    };
    let (json, protobuf) = (Encoding::Json.media_type(), Encoding::Protobuf.media_type());
    if allows(json) {
        Ok(Encoding::Json)
    } else if allows(protobuf) {
        Ok(Encoding::Protobuf)
    } else {
        let body = format!("Expecting 'Accept' to allow '{protobuf}' or '{json}'");
        Err(refuse(406, body))
    }
}

/// Whether a task is over in this state.
pub(crate) fn terminal(state: &str) -> bool {
    let over = [
        "FINISHED",
        "FAILED",
        "KILLED",
        "ERROR",
        "LOST",
        "DROPPED",
        "GONE",
        "GONE_BY_OPERATOR",
    ];
    state
        .strip_prefix("TASK_")
        .is_some_and(|state| over.contains(&state))
}

/// What is wrong with a status that follows `before` of the same task (none: it is the task's first), for a framework
/// with these capabilities. The agent takes all of these without a word.
pub(crate) fn follows(
    before: Option<&Value>,
    status: &Value,
    capabilities: &[String],
) -> Vec<String> {
    let mut wrong = Vec::new();
    let state = text(status, &["state"]);
    let last = before.map(|before| text(before, &["state"]));
    let capable = |name: &str| capabilities.iter().any(|capability| capability == name);
    match (last, state) {
        (Some(last), _) if terminal(last) => wrong.push(format!("{state} after {last}")),
        (Some("TASK_KILLING"), "TASK_STARTING" | "TASK_RUNNING")
        | (Some("TASK_RUNNING"), "TASK_STARTING") => {
            wrong.push(format!("{state} after {}", last.unwrap_or_default()));
        }
        (_, "TASK_UNREACHABLE" | "TASK_UNKNOWN" | "TASK_GONE_BY_OPERATOR") => {
            wrong.push(format!("{state} is not an executor's to send"));
        }
        (_, "TASK_KILLING") if !capable("TASK_KILLING_STATE") => {
            wrong.push("TASK_KILLING for a framework without TASK_KILLING_STATE".into());
        }
        (_, "TASK_DROPPED" | "TASK_GONE") if !capable("PARTITION_AWARE") => {
            wrong.push(format!("{state} for a framework without PARTITION_AWARE"));
        }
        (_, "TASK_LOST") if capable("PARTITION_AWARE") => {
            wrong.push("TASK_LOST for a framework with PARTITION_AWARE".into());
        }
        _ => {}
    }
    let content = |status: &Value| {
        let mut status = status.clone();
        if let Some(status) = status.as_object_mut() {
            status.remove("uuid");
            status.remove("timestamp");
        }
        status
    };
    if before.is_some_and(|before| content(before) == content(status)) {
        wrong.push(format!("{state} again without a change"));
    }
    if status.get("executor_id").is_none() {
        wrong.push("no executor_id: the agent adds none".into());
    }
    for never in ["agent_id", "unreachable_time"] {
        // an agent_id that is another's makes the agent drop the update
        if status.get(never).is_some() {
            wrong.push(format!("{never} is set"));
        }
    }
    let limitation = text(status, &["reason"]).starts_with("REASON_CONTAINER_LIMITATION");
    if status.get("limitation").is_some() && !limitation {
        wrong.push("limitation without a reason that is one".into());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn update(change: impl FnOnce(&mut Value)) -> Value {
        let mut call = json!({"type": "UPDATE", "executor_id": {"value": "e"}, "framework_id": {"value": "f"},
            "update": {"status": {"task_id": {"value": "a"}, "state": "TASK_RUNNING", "source": "SOURCE_EXECUTOR",
            "executor_id": {"value": "e"}, "uuid": "M+7DHzI6SxqMDWTv+d424Q=="}}});
        change(&mut call);
        call
    }

    fn answer(call: &Value) -> (u16, String) {
        match parse(
            "POST",
            Some("application/json"),
            call.to_string().as_bytes(),
        ) {
            Ok(_) => (202, String::new()),
            Err(refusal) => (refusal.code, refusal.body),
        }
    }

    #[test]
    fn calls_that_the_agent_refuses() {
        let status = |key: &'static str, value: Value| {
            update(move |call| {
                let status = call["update"]["status"].as_object_mut().unwrap();
                match value {
                    Value::Null => drop(status.remove(key)),
                    value => drop(status.insert(key.into(), value)),
                }
            })
        };
        let call =
            |key: &'static str| update(move |call| drop(call.as_object_mut().unwrap().remove(key)));
        let valid = "Failed to validate Executor::Call: ";
        let convert = "Failed to convert JSON into Call protobuf: ";
        for (call, expected) in [
            (update(|_| ()), String::new()),
            (status("executor_id", Value::Null), String::new()),
            (status("timestamp", json!(3)), String::new()),
            (
                call("type"),
                format!("{valid}Expecting 'type' to be present"),
            ),
            (
                update(|call| call["type"] = json!("NEW")),
                format!("{valid}Expecting 'type' to be present"),
            ),
            (
                call("update"),
                format!("{valid}Expecting 'update' to be present"),
            ),
            (
                update(|call| call["type"] = json!("SUBSCRIBE")),
                format!("{valid}Expecting 'subscribe' to be present"),
            ),
            (
                update(|call| call["type"] = json!("MESSAGE")),
                format!("{valid}Expecting 'message' to be present"),
            ),
            (
                call("executor_id"),
                format!("{convert}Call: missing required field executor_id"),
            ),
            (
                call("framework_id"),
                format!("{convert}Call: missing required field framework_id"),
            ),
            (
                status("uuid", Value::Null),
                format!("{valid}Expecting 'uuid' to be present"),
            ),
            (
                status("uuid", json!("AAAA")),
                format!("{valid}Not a valid UUID"),
            ),
            // version 7
            (
                status("uuid", json!("M+7DHzI6excMDWTv+d424Q==")),
                format!("{valid}Not a valid UUID"),
            ),
            (
                status("state", json!("TASK_STAGING")),
                format!(
                    "{valid}Received TASK_STAGING from executor e of framework f which is not allowed"
                ),
            ),
            (
                status("source", json!("SOURCE_AGENT")),
                format!(
                    "{valid}Received Call from executor e of framework f with invalid source, expecting 'SOURCE_EXECUTOR'"
                ),
            ),
            (
                status("executor_id", json!({"value": "x"})),
                format!("{valid}ExecutorID in Call: e does not match ExecutorID in TaskStatus: x"),
            ),
            (
                status("check_status", json!({})),
                format!("{valid}CheckStatusInfo must specify 'type'"),
            ),
            (
                status("check_status", json!({"type": "TCP"})),
                format!("{valid}Expecting 'tcp' to be set for TCP check's status"),
            ),
            (
                status("check_status", json!({"type": "TCP", "tcp": {}})),
                String::new(),
            ),
        ] {
            let code = if expected.is_empty() { 202 } else { 400 };
            assert_eq!(answer(&call), (code, expected), "{call}");
        }
    }

    #[test]
    fn requests_that_the_agent_refuses() {
        let refused = |method, media, body: &[u8]| parse(method, media, body).unwrap_err();
        let json = Some("application/json");
        assert_eq!(refused("GET", None, b"").code, 405);
        assert_eq!(
            refused("POST", None, b"{}").body,
            "Expecting 'Content-Type' to be present"
        );
        assert_eq!(refused("POST", Some("text/plain"), b"{}").code, 415);
        assert_eq!(
            refused("POST", Some("application/json; charset=utf-8"), b"{}").code,
            415
        );
        assert!(
            refused("POST", json, b"{")
                .body
                .starts_with("Failed to parse body into JSON: ")
        );
        let protobuf = refused("POST", Some("application/x-protobuf"), b"\xff");
        assert_eq!(
            (protobuf.code, protobuf.body.as_str()),
            (400, "Failed to parse body into Call protobuf")
        );
    }

    #[test]
    fn json_wins() {
        for (accept, expected) in [
            (None, Ok(Encoding::Json)),
            (Some("*/*"), Ok(Encoding::Json)),
            (Some("application/*"), Ok(Encoding::Json)),
            (Some("application/x-protobuf"), Ok(Encoding::Protobuf)),
            (
                Some("application/x-protobuf, application/json"),
                Ok(Encoding::Json),
            ),
            (
                Some("application/json;q=0, application/x-protobuf"),
                Ok(Encoding::Protobuf),
            ),
            (Some("text/html"), Err(406)),
        ] {
            assert_eq!(
                accepted(accept).map_err(|refusal| refusal.code),
                expected,
                "{accept:?}"
            );
        }
    }

    #[test]
    fn chains_of_updates() {
        let status = |state: &str, extra: Value| {
            let mut status = json!({"state": format!("TASK_{state}"), "executor_id": {"value": "e"}, "uuid": state});
            for (key, value) in extra.as_object().into_iter().flatten() {
                status[key] = value.clone();
            }
            status
        };
        let plain = |state: &str| status(state, Value::Null);
        let none: &[&str] = &[];
        for (before, after, capabilities, expected) in [
            (None, plain("STARTING"), none, ""),
            (None, plain("KILLED"), none, ""),
            (
                Some("RUNNING"),
                status("RUNNING", json!({"healthy": true})),
                none,
                "",
            ),
            (
                Some("RUNNING"),
                plain("RUNNING"),
                none,
                "TASK_RUNNING again without a change",
            ),
            (
                Some("RUNNING"),
                plain("STARTING"),
                none,
                "TASK_STARTING after TASK_RUNNING",
            ),
            (
                Some("FINISHED"),
                plain("FAILED"),
                none,
                "TASK_FAILED after TASK_FINISHED",
            ),
            (
                Some("KILLING"),
                plain("RUNNING"),
                &["TASK_KILLING_STATE"],
                "TASK_RUNNING after TASK_KILLING",
            ),
            (
                Some("RUNNING"),
                plain("KILLING"),
                none,
                "TASK_KILLING for a framework without TASK_KILLING_STATE",
            ),
            (
                Some("RUNNING"),
                plain("KILLING"),
                &["TASK_KILLING_STATE"],
                "",
            ),
            (
                None,
                plain("LOST"),
                &["PARTITION_AWARE"],
                "TASK_LOST for a framework with PARTITION_AWARE",
            ),
            (
                None,
                plain("DROPPED"),
                none,
                "TASK_DROPPED for a framework without PARTITION_AWARE",
            ),
            (
                None,
                status("RUNNING", json!({"agent_id": {"value": "S"}})),
                none,
                "agent_id is set",
            ),
        ] {
            let before = before.map(plain);
            let capabilities: Vec<String> = capabilities.iter().map(|c| (*c).to_owned()).collect();
            let found = follows(before.as_ref(), &after, &capabilities).join("; ");
            assert_eq!(found, expected, "{before:?} {after}");
        }
    }
}
