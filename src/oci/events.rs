//! `events`: what a container uses, and when it ran out of memory, one JSON line each.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::Invocation;
use super::{Error, put, store};
use crate::cgroup::Stats;
use crate::container::{self, State};
use crate::sys::pidfd;

/// How often is looked whether memory ran out.
const LOOK: Duration = Duration::from_millis(250);
/// Between two lines of counters, unless told otherwise.
const INTERVAL: Duration = Duration::from_secs(5);

/// `events ID`.
pub fn events(call: &Invocation) -> Result<u8, Error> {
    let interval = match call.values.text("interval")? {
        Some(text) => duration(text)
            .filter(|interval| !interval.is_zero())
            .ok_or_else(|| {
                Error::new(format!(
                    "--interval: {text:?} is not a duration above 0, as 5s or 500ms"
                ))
            })?,
        None => INTERVAL,
    };
    let state = store::find(&call.global, call.word(0)?)?;
    let Some(first) = container::open_process(&state)? else {
        return Err(Error::new(format!("container {} is not running", state.id)));
    };
    if call.values.has("stats") {
        return tell(&state.id, "stats", Some(counters(&stats(&state)?))).map(|()| 0);
    }
    let mut killed = stats(&state)?.oom_kills.unwrap_or(0);
    let mut next = Instant::now() + interval;
    loop {
        let wait = next.saturating_duration_since(Instant::now()).min(LOOK);
        let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        let ended = pidfd::wait(&first, Some(wait))
            .map_err(|error| Error::step(format!("wait for process {}", state.pid), error))?;
        // the last look counts, too, while the cgroup is there
        let now = match stats(&state) {
            Ok(now) => now,
            Err(_) if ended => return Ok(0),
            Err(error) => return Err(error),
        };
        let kills = now.oom_kills.unwrap_or(killed);
        for _ in killed..kills {
            tell(&state.id, "oom", None)?;
        }
        killed = kills.max(killed);
        if ended {
            return Ok(0);
        }
        if Instant::now() >= next {
            tell(&state.id, "stats", Some(counters(&now)))?;
            next += interval;
        }
    }
}

fn stats(state: &State) -> Result<Stats, Error> {
    state
        .cgroup
        .stats()
        .map_err(|error| Error::step(format!("count what container {} uses", state.id), error))
}

/// One line, `type` first.
fn tell(id: &str, kind: &str, data: Option<Value>) -> Result<(), Error> {
    let data = data
        .map(|data| format!(",\"data\":{data}"))
        .unwrap_or_default();
    put(&format!(
        "{{\"type\":{},\"id\":{}{data}}}\n",
        json!(kind),
        json!(id)
    ))
}

/// In runc's form; what the kernel does not count is left out.
fn counters(stats: &Stats) -> Value {
    let mut all = json!({
        "cpu": {"usage": {}},
        "memory": {"usage": {}},
        "pids": {},
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    });
    // microseconds here, nanoseconds there
    let cpu = stats.cpu_usage_usec.map(|usec| usec.saturating_mul(1000));
    for (pointer, value) in [
        ("/cpu/usage/total", cpu),
        ("/memory/usage/usage", stats.memory_current),
        ("/memory/usage/limit", stats.memory_limit),
        ("/memory/usage/max", stats.memory_peak),
        ("/pids/current", stats.pids_current),
        ("/pids/limit", stats.pids_limit),
    ] {
        let (above, key) = pointer.rsplit_once('/').unwrap_or_default();
        if let (Some(value), Some(place)) = (value, all.pointer_mut(above)) {
            place[key] = json!(value);
        }
    }
    all
}

/// A duration of Go's form with one unit, or seconds.
fn duration(text: &str) -> Option<Duration> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let factor = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" | "µs" => 1e-6,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * factor).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want) in [
            ("5s", Some(5000)),
            ("100ms", Some(100)),
            ("1.5s", Some(1500)),
            ("2m", Some(120_000)),
            ("3", Some(3000)),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("5x", None),
        ] {
            assert_eq!(duration(text), want.map(Duration::from_millis), "{text}");
        }
    }
}
