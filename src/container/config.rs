//! `config.json` and `process.json` → what they say, or which property is wrong. Pure.
//!
//! *Invariants:* the usual document is read in one pass. One that does not fit is read once more, for the path of what is wrong and for
//! the words that other runtimes take and our types do not. Unknown properties are ignored (config.md "Extensibility").

use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A whole specification.
pub fn parse_spec(text: &[u8]) -> Result<Spec, String> {
    parse(text, "", |value| value.get_mut("process"))
}

/// The `process` part of one.
pub fn parse_process(text: &[u8]) -> Result<Process, String> {
    parse(text, "process", |value| Some(value))
}

fn parse<T: DeserializeOwned>(
    text: &[u8],
    at: &str,
    process: fn(&mut Value) -> Option<&mut Value>,
) -> Result<T, String> {
    if let Ok(all) = serde_json::from_slice(text) {
        return Ok(all);
    }
    let mut value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if let Some(process) = process(&mut value) {
        mend(process)?;
    }
    check(&value)?;
    serde_path_to_error::deserialize(&value).map_err(|error| {
        let path = error.path().to_string();
        let places = [at, &path].map(|place| place.trim_matches('.'));
        let places = places.into_iter().filter(|place| !place.is_empty());
        let place = places.collect::<Vec<_>>().join(".");
        match place.as_str() {
            "" => error.inner().to_string(),
            place => format!("{place}: {}", error.inner()),
        }
    })
}

/// What others take: no user for the first one, flags of the scheduler as the kernel's headers spell them.
fn mend(process: &mut Value) -> Result<(), String> {
    let Some(process) = process.as_object_mut() else {
        return Ok(());
    };
    process.entry("user").or_insert_with(|| json!({}));
    let sets = process.get("capabilities").and_then(Value::as_object);
    for (set, names) in sets.into_iter().flatten() {
        let names = names
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        for name in names {
            let known: Result<oci_spec::runtime::Capability, _> =
                serde_json::from_value(json!(name));
            if known.is_err() {
                return Err(format!("process.capabilities.{set}: {name} is unknown"));
            }
        }
    }
    let flags = process
        .get_mut("scheduler")
        .and_then(|scheduler| scheduler.get_mut("flags"))
        .and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = json!("SCHED_RESET_ON_FORK"),
            // how the type of the crate spells it
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = json!("SCHED_FLAG_D_L_OVERRUN"),
            _ => {}
        }
    }
    Ok(())
}

/// Words for which callers look.
fn check(spec: &Value) -> Result<(), String> {
    let Some(policy) = spec
        .pointer("/linux/memoryPolicy")
        .filter(|policy| policy.is_object())
    else {
        return Ok(());
    };
    use oci_spec::runtime::{MemoryPolicyFlagType, MemoryPolicyModeType};
    let mode = policy
        .get("mode")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if mode.parse::<MemoryPolicyModeType>().is_err() {
        return Err(format!(
            "linux.memoryPolicy.mode: invalid memory policy mode {mode:?}"
        ));
    }
    let flags = policy.get("flags").and_then(Value::as_array);
    for flag in flags.into_iter().flatten().filter_map(Value::as_str) {
        if flag.parse::<MemoryPolicyFlagType>().is_err() {
            return Err(format!(
                "linux.memoryPolicy.flags: invalid memory policy flag {flag:?}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_wrong() {
        let good = json!({
            "ociVersion": "1.2.0",
            "process": {"user": {"uid": 0}, "args": ["x"], "cwd": "/"},
            "root": {"path": "r"},
            "linux": {"namespaces": [{"type": "mount"}]},
        });
        for (pointer, value, want) in [
            (
                "/ociVersion",
                Value::Null,
                "ociVersion: invalid type: null, expected a string",
            ),
            (
                "/process/args",
                json!("sh"),
                "process.args: invalid type: string \"sh\", expected a sequence",
            ),
            (
                "/process/args/0",
                json!(1),
                "process.args[0]: invalid type: integer `1`, expected a string",
            ),
            (
                "/process/user",
                json!({"uid": -1}),
                "process.user.uid: invalid value: integer `-1`, expected u32",
            ),
            (
                "/process/user",
                json!({"uid": 4294967296u64}),
                "process.user.uid: invalid value: integer `4294967296`, expected u32",
            ),
            (
                "/process/cwd",
                Value::Bool(true),
                "process.cwd: invalid type: boolean `true`, expected path string",
            ),
            (
                "/process/capabilities",
                json!({"bounding": ["CAP_KILL", "CAP_FOO"]}),
                "process.capabilities.bounding: CAP_FOO is unknown",
            ),
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_X", "hard": 1, "soft": 1}]),
                "process.rlimits[0].type: unknown variant `RLIMIT_X`, expected one of ",
            ),
            (
                "/linux/namespaces/0/type",
                json!("odd"),
                "linux.namespaces[0].type: unknown variant `odd`, expected one of ",
            ),
            (
                "/linux/memoryPolicy",
                json!({}),
                "linux.memoryPolicy.mode: invalid memory policy mode \"\"",
            ),
            (
                "/linux/memoryPolicy",
                json!({"mode": "MPOL_BIND", "flags": ["x"]}),
                "linux.memoryPolicy.flags: invalid memory policy flag \"x\"",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "X"}),
                "linux.seccomp.defaultAction: unknown variant `X`, expected one of ",
            ),
        ] {
            let mut spec = good.clone();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            match (spec.pointer_mut(parent).unwrap(), key.parse::<usize>()) {
                (Value::Array(list), Ok(index)) => list[index] = value,
                (place, _) => place[key] = value,
            }
            let why = parse_spec(spec.to_string().as_bytes()).unwrap_err();
            // lists of what is expected are long
            let same = if want.ends_with(' ') {
                why.starts_with(want)
            } else {
                why == want
            };
            assert!(same, "{why}\n{want}");
        }
        for (text, want) in [
            ("{", "EOF while parsing an object at line 1 column 1"),
            ("", "EOF while parsing a value at line 1 column 0"),
        ] {
            let why = parse_spec(text.as_bytes()).unwrap_err();
            assert!(why.starts_with(want), "{why}");
        }
        let why = parse_process(br#"{"args": [1], "cwd": "/"}"#).unwrap_err();
        assert_eq!(
            why,
            "process.args[0]: invalid type: integer `1`, expected a string"
        );
        for (text, want) in [
            ("{}", "process: missing field `cwd`"),
            ("[]", "process: invalid length "),
            ("", "EOF while parsing a value at line 1 column 0"),
            (
                r#"{"cwd": "/", "user": 1}"#,
                "process.user: invalid type: integer `1`, expected struct User",
            ),
        ] {
            let why = parse_process(text.as_bytes()).unwrap_err();
            assert!(why.starts_with(want), "{why}");
        }
    }

    #[test]
    fn takes_what_others_take() {
        let process = json!({"args": ["x"], "cwd": "/", "unknown": {"a": [1]},
            "scheduler": {"policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"]}});
        let process = parse_process(process.to_string().as_bytes()).unwrap();
        assert_eq!(process.user().uid(), 0);
        assert_eq!(
            process
                .scheduler()
                .as_ref()
                .unwrap()
                .flags()
                .as_ref()
                .unwrap()
                .len(),
            2
        );
    }
}
