//! `update`: other limits for a container that runs.

use std::path::Path;

use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::args::{Invocation, Values};
use super::create::read;
use super::{Error, log, store};
use crate::container::{self, Status};

/// Longest description of limits, in bytes.
const RESOURCES_MAX: u64 = 1 << 20;

/// What the value of an option is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A number.
    Number,
    /// Bytes, with a unit, or -1.
    Size,
    /// Text as it is.
    Text,
}

/// Option, its place in `linux.resources`, its kind.
const OPTIONS: [(&str, (&str, &str), Kind); 14] = [
    ("memory", ("memory", "limit"), Kind::Size),
    ("memory-swap", ("memory", "swap"), Kind::Size),
    ("memory-reservation", ("memory", "reservation"), Kind::Size),
    ("cpu-share", ("cpu", "shares"), Kind::Number),
    ("cpu-quota", ("cpu", "quota"), Kind::Number),
    ("cpu-period", ("cpu", "period"), Kind::Number),
    ("cpu-burst", ("cpu", "burst"), Kind::Number),
    ("cpu-idle", ("cpu", "idle"), Kind::Number),
    ("cpu-rt-period", ("cpu", "realtimePeriod"), Kind::Number),
    ("cpu-rt-runtime", ("cpu", "realtimeRuntime"), Kind::Number),
    ("cpuset-cpus", ("cpu", "cpus"), Kind::Text),
    ("cpuset-mems", ("cpu", "mems"), Kind::Text),
    ("pids-limit", ("pids", "limit"), Kind::Number),
    ("blkio-weight", ("blockIO", "weight"), Kind::Number),
];

/// `update ID …`.
pub fn update(call: &Invocation) -> Result<u8, Error> {
    let values = &call.values;
    for option in ["l3-cache-schema", "mem-bw-schema"] {
        if values.text(option)?.is_some() {
            return Err(Error::new(format!(
                "--{option}: Intel RDT is not supported"
            )));
        }
    }
    let wanted = match values.path("resources") {
        Some(path) => from_file(&path)?,
        None => from_options(values)?,
    };
    let (resources, dropped) = settle(wanted);
    if dropped || values.get("kernel-memory").is_some() || values.get("kernel-memory-tcp").is_some()
    {
        log::warning(
            &call.global,
            "limits of kernel memory are ignored: the kernel has none any more",
        )?;
    }
    let resources: LinuxResources = serde_json::from_value(resources)
        .map_err(|error| Error::step("the limits to update", error))?;
    let state = store::find(&call.global, call.word(0)?)?;
    if container::status(&state) == Status::Stopped {
        return Err(Error::new(format!(
            "update container {}: container not running",
            state.id
        )));
    }
    Ok(container::update(&state, &resources).map(|()| 0)?)
}

fn from_file(path: &Path) -> Result<Value, Error> {
    let text = read(path, RESOURCES_MAX)?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::step(format!("--resources {}", path.display()), error))
}

fn from_options(values: &Values) -> Result<Value, Error> {
    let mut all = json!({});
    for (option, place, kind) in OPTIONS {
        let Some(text) = values.text(option)? else {
            continue;
        };
        let wrong = |what| Error::new(format!("--{option}: {text:?} is not {what}"));
        let value = match kind {
            Kind::Text => json!(text),
            Kind::Number => json!(text.parse::<i64>().map_err(|_| wrong("a number"))?),
            Kind::Size => json!(size(text).ok_or_else(|| wrong("a size in bytes"))?),
        };
        let (part, key) = place;
        all[part][key] = value;
    }
    Ok(all)
}

/// Leaves out what an update does not change: the device rules, which callers send along and which stay those of the container, and
/// limits of kernel memory, which the kernel no longer has; whether there were any of those.
fn settle(mut resources: Value) -> (Value, bool) {
    let mut dropped = false;
    if let Some(all) = resources.as_object_mut() {
        all.remove("devices");
        if let Some(memory) = all.get_mut("memory").and_then(Value::as_object_mut) {
            for key in ["kernel", "kernelTCP"] {
                let value = memory.remove(key).and_then(|value| value.as_i64());
                dropped |= value.is_some_and(|value| value != 0);
            }
        }
    }
    (resources, dropped)
}

/// Bytes with a unit of powers of 1024, as `64m`, `1.5GiB`, `512`; -1 for none.
fn size(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let lower = text.trim().to_ascii_lowercase();
    let end = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at_checked(end)?;
    let unit = unit.trim();
    let prefix = unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(unit);
    let power = match prefix {
        "" if unit != "ib" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let factor = 1_i64 << (10 * power);
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(factor);
    }
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    (bytes >= 0.0 && bytes < i64::MAX as f64).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("512", Some(512)),
            ("64b", Some(64)),
            ("32k", Some(32 << 10)),
            ("64M", Some(64 << 20)),
            ("64mb", Some(64 << 20)),
            ("1GiB", Some(1 << 30)),
            ("1.5g", Some(3 << 29)),
            ("2 T", Some(2 << 40)),
            ("ib", None),
            ("5ib", None),
            ("", None),
            ("-2", None),
            ("m", None),
            ("1x", None),
            ("1.2.3", None),
            ("9223372036854775807k", None),
            ("é", None),
        ] {
            assert_eq!(size(text), want, "{text}");
        }
    }

    #[test]
    fn what_stays_is_left_out() {
        let (left, dropped) =
            settle(json!({"devices": [{"allow": true}], "memory": {"limit": 5, "kernel": 7}}));
        assert_eq!((left, dropped), (json!({"memory": {"limit": 5}}), true));
        let (left, dropped) =
            settle(json!({"memory": {"kernel": 0, "kernelTCP": null}, "cpu": {}}));
        assert_eq!((left, dropped), (json!({"memory": {}, "cpu": {}}), false));
        assert_eq!(
            settle(json!({"pids": {"limit": 3}})),
            (json!({"pids": {"limit": 3}}), false)
        );
    }
}
