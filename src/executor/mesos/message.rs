//! MESSAGE: what a framework may ask of tasks that run, beyond the protocol's own words.
//!
//! *Invariants:* only a JSON object with the key `sampan` is for us; each of those is answered, with the `id` that it has; what is not
//! understood is an error, not silence.
//!
//! Leaves to others: what a pod makes of it ([`crate::pod::control`]).

use serde::Deserialize;
use serde_json::{Value, json};

use crate::pod::control::Request;
use crate::pod::plan::signal_number;

/// Longest pause of checks (seconds).
const SNOOZE_MOST: u64 = 7 * 24 * 60 * 60;

/// Something that is asked of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// `TaskID`.
    pub task: String,
    /// One of its services; `None`: all.
    pub service: Option<String>,
    /// For the answer.
    pub id: Value,
    what: What,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    Signal(i32),
    Restart,
    Snooze(u64),
}

/// As it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    sampan: String,
    #[serde(default)]
    id: Value,
    task: String,
    service: Option<String>,
    signal: Option<String>,
    seconds: Option<u64>,
}

/// A message to us; `None`: it is somebody else's. The error is the answer.
pub fn read(data: &[u8]) -> Option<Result<Ask, Vec<u8>>> {
    let value: Value = serde_json::from_slice(data).ok()?;
    value.get("sampan")?;
    let id = value.get("id").cloned().unwrap_or_default();
    Some(understand(value).map_err(|why| failed(&id, &why)))
}

fn understand(value: Value) -> Result<Ask, String> {
    let written: Written = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let what = match (written.sampan.as_str(), &written.signal, written.seconds) {
        ("signal", Some(name), None) => What::Signal(signal_number(name)?),
        ("restart", None, None) => What::Restart,
        ("snooze", None, Some(seconds @ ..=SNOOZE_MOST)) => What::Snooze(seconds),
        ("snooze", None, Some(_)) => return Err(format!("seconds: more than {SNOOZE_MOST}")),
        ("signal" | "restart" | "snooze", ..) => {
            return Err("signal has signal, snooze has seconds, restart has neither".into());
        }
        (other, ..) => {
            return Err(format!(
                "sampan: {other:?} is not signal, restart or snooze"
            ));
        }
    };
    Ok(Ask {
        task: written.task,
        service: written.service,
        id: written.id,
        what,
    })
}

impl Ask {
    /// The same for a supervisor, about these services.
    pub fn request(&self, services: Vec<String>) -> Request {
        match self.what {
            What::Signal(signal) => Request::Kill { services, signal },
            What::Restart => Request::Restart {
                services,
                timeout: None,
            },
            What::Snooze(seconds) => Request::Snooze { services, seconds },
        }
    }
}

/// The answer that it was done.
pub fn done(id: &Value) -> Vec<u8> {
    json!({"sampan": "done", "id": id}).to_string().into_bytes()
}

/// The answer that it was not.
pub fn failed(id: &Value, why: &str) -> Vec<u8> {
    let answer = json!({"sampan": "failed", "id": id, "message": why});
    answer.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked() {
        let web = || vec!["web".to_owned()];
        for (text, expected) in [
            (
                r#"{"sampan": "signal", "task": "a", "service": "web", "signal": "HUP", "id": 7}"#,
                Request::Kill {
                    services: web(),
                    signal: libc::SIGHUP,
                },
            ),
            (
                r#"{"sampan": "restart", "task": "a"}"#,
                Request::Restart {
                    services: web(),
                    timeout: None,
                },
            ),
            (
                r#"{"sampan": "snooze", "task": "a", "seconds": 60}"#,
                Request::Snooze {
                    services: web(),
                    seconds: 60,
                },
            ),
        ] {
            let ask = read(text.as_bytes()).unwrap().unwrap();
            assert_eq!((ask.task.as_str(), ask.request(web())), ("a", expected));
        }
        for foreign in [
            "",
            "\u{0}",
            "{}",
            "7",
            r#"{"other": 1}"#,
            "[{\"sampan\": 1}]",
        ] {
            assert!(read(foreign.as_bytes()).is_none(), "{foreign}");
        }
    }

    #[test]
    fn what_is_not_understood() {
        for (text, expected) in [
            (
                r#"{"sampan": "stop", "task": "a", "id": "x"}"#,
                r#"sampan: "stop" is not signal, restart or snooze"#,
            ),
            (
                r#"{"sampan": "restart", "task": "a", "seconds": 3}"#,
                "signal has signal, snooze has seconds, restart has neither",
            ),
            (
                r#"{"sampan": "snooze", "task": "a", "seconds": 604801}"#,
                "seconds: more than 604800",
            ),
            (
                r#"{"sampan": "restart", "task": "a", "wait": true}"#,
                "unknown field `wait`, expected one of `sampan`, `id`, `task`, `service`, `signal`, `seconds`",
            ),
            (r#"{"sampan": "restart"}"#, "missing field `task`"),
        ] {
            let answer: Value =
                serde_json::from_slice(&read(text.as_bytes()).unwrap().unwrap_err()).unwrap();
            assert_eq!(
                (&answer["sampan"], &answer["message"]),
                (&json!("failed"), &json!(expected)),
                "{text}"
            );
        }
    }
}
