//! Annotations `org.systemd.property.NAME`, whose value is a GVariant in text form, → properties of the unit.
//!
//! *Invariants:* pure. Only the forms that properties of units have are known; any other is an error, and so is a strange name.

use std::collections::HashMap;

use super::super::Error;
use super::bus::{Property, Value};

const PREFIX: &str = "org.systemd.property.";

/// All of them, by name.
pub(super) fn properties(annotations: &HashMap<String, String>) -> Result<Vec<Property>, Error> {
    let mut found: Vec<(&str, &str)> = annotations
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.as_str())))
        .collect();
    found.sort_unstable();
    found.into_iter().map(property).collect()
}

fn property((name, text): (&str, &str)) -> Result<Property, Error> {
    let wrong = |why: &str| Error::Systemd {
        what: format!("annotation {PREFIX}{name}"),
        why: why.to_owned(),
    };
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(wrong("is not the name of a property"));
    }
    let value = value(text.trim()).ok_or_else(|| {
        wrong("its value is none of true, false, a number (uint64 5), 'text', ['texts']")
    })?;
    // systemd's files have seconds, its bus has microseconds
    let Some(stem) = name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) else {
        return Ok((name.to_owned(), value));
    };
    let seconds = match value {
        Value::U64(seconds) => Some(seconds),
        Value::I64(seconds) => u64::try_from(seconds).ok(),
        Value::U32(seconds) => Some(seconds.into()),
        Value::I32(seconds) => u64::try_from(seconds).ok(),
        _ => None,
    };
    let usec = seconds.and_then(|seconds| seconds.checked_mul(1_000_000));
    let usec = usec.ok_or_else(|| wrong("is not a number of seconds"))?;
    Ok((format!("{stem}USec"), Value::U64(usec)))
}

fn value(text: &str) -> Option<Value> {
    match text {
        "true" => return Some(Value::Bool(true)),
        "false" => return Some(Value::Bool(false)),
        _ => {}
    }
    if let Some(list) = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
    {
        let mut found = Vec::new();
        let mut rest = list.trim();
        while !rest.is_empty() {
            let (one, behind) = quoted(rest)?;
            found.push(one);
            rest = behind.trim_start();
            match rest.strip_prefix(',') {
                Some(behind) => rest = behind.trim_start(),
                None if rest.is_empty() => {}
                None => return None,
            }
        }
        return Some(Value::Texts(found));
    }
    if text.starts_with(['\'', '"']) {
        let (one, rest) = quoted(text)?;
        return rest.is_empty().then_some(Value::Text(one));
    }
    match text.split_once(' ') {
        Some(("uint64", number)) => number.trim().parse().ok().map(Value::U64),
        Some(("int64", number)) => number.trim().parse().ok().map(Value::I64),
        Some(("uint32", number)) => number.trim().parse().ok().map(Value::U32),
        Some(("int32", number)) => number.trim().parse().ok().map(Value::I32),
        Some(_) => None,
        None => text.parse().ok().map(Value::I32),
    }
}

/// A quoted text at the start of `text`, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut found = String::new();
    let mut rest = text.char_indices().skip(1);
    while let Some((at, c)) = rest.next() {
        match c {
            '\\' => found.push(rest.next()?.1),
            c if c == quote => return Some((found, text.get(at + 1..)?)),
            c => found.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (name, text, expected) in [
            (
                "CollectMode",
                "'inactive-or-failed'",
                Some(Value::Text("inactive-or-failed".into())),
            ),
            ("TimeoutStopUSec", "uint64 5000", Some(Value::U64(5000))),
            ("SendSIGHUP", "true", Some(Value::Bool(true))),
            (
                "After",
                "['a.service', \"b\"]",
                Some(Value::Texts(vec!["a.service".into(), "b".into()])),
            ),
            ("After", "[]", Some(Value::Texts(Vec::new()))),
            ("Nice", "-5", Some(Value::I32(-5))),
            ("Text", r"'it\'s'", Some(Value::Text("it's".into()))),
            ("Ab", "true", None),
            ("A.b", "true", None),
            ("Abc", "'open", None),
            ("Abc", "'a' 'b'", None),
            ("Abc", "['a' 'b']", None),
            ("Abc", "double 5", None),
            ("Abc", "", None),
        ] {
            let found = property((name, text)).ok().map(|(_, value)| value);
            assert_eq!(found, expected, "{name} {text}");
        }
    }

    #[test]
    fn seconds_are_microseconds() {
        let expected = ("TimeoutStopUSec".to_owned(), Value::U64(123_000_000));
        for text in ["uint64 123", "123", "int64 123"] {
            assert_eq!(property(("TimeoutStopSec", text)).unwrap(), expected);
        }
        for text in ["'123'", "-1", "uint64 18446744073709551615"] {
            assert!(property(("TimeoutStopSec", text)).is_err(), "{text}");
        }
    }

    #[test]
    fn others_are_left_alone() {
        let list = [
            ("org.opencontainers.image.os", "linux"),
            ("org.systemd.property.Foo", "true"),
        ];
        let annotations = list.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let found = properties(&annotations.into()).unwrap();
        assert_eq!(found, [("Foo".to_owned(), Value::Bool(true))]);
    }
}
