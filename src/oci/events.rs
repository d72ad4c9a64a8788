//! `events`: what a container uses, and when it ran out of memory, one JSON line each.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use super::args::Invocation;
use super::{Error, put, store};
use crate::cgroup::{self, OomEvent, OomWatch};
use crate::container::{self, State};

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
        return tell(&state.id, "stats", Some(counters(&state)?)).map(|()| 0);
    }
    let mut watch = match state.cgroup.watch_oom() {
        Ok(watch) => Some(watch),
        // without a limit of memory there is nothing to watch
        Err(cgroup::Error::Controller { .. }) => None,
        Err(error) => return Err(failed(&state, error)),
    };
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let (ended, news) = wait(&first, watch.as_ref(), left)?;
        if let Some(watch) = watch.as_mut().filter(|_| news || ended)
            && is_over(watch, &state)?
        {
            return Ok(0);
        }
        if ended {
            return Ok(0);
        }
        if Instant::now() >= next {
            tell(&state.id, "stats", Some(counters(&state)?))?;
            next += interval;
        }
    }
}

fn failed(state: &State, error: cgroup::Error) -> Error {
    let error = anyhow::Error::from(error);
    Error::new(format!("events of container {}: {error:#}", state.id))
}

/// Waits for the end of the first process, for news of memory, or for the time to be over.
fn wait(first: &OwnedFd, watch: Option<&OomWatch>, left: Duration) -> Result<(bool, bool), Error> {
    let limit = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    let mut fds = vec![PollFd::new(first, PollFlags::IN)];
    fds.extend(watch.map(|watch| PollFd::new(watch, PollFlags::IN)));
    match rustix::event::poll(&mut fds, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(Error::step("wait for events", error)),
    }
    let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
    Ok((ready(0), ready(1)))
}

/// Tells each time that memory ran out; `true` when there is no cgroup any more.
fn is_over(watch: &mut OomWatch, state: &State) -> Result<bool, Error> {
    loop {
        let event = watch.next(Some(Duration::ZERO));
        match event.map_err(|error| failed(state, error))? {
            Some(OomEvent::Oom) => tell(&state.id, "oom", None)?,
            Some(OomEvent::End) => return Ok(true),
            None => return Ok(false),
        }
    }
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

/// In runc's form, with what it has and we do not.
fn counters(state: &State) -> Result<Value, Error> {
    let metrics = state
        .cgroup
        .metrics()
        .map_err(|error| failed(state, error))?;
    let mut all = serde_json::to_value(metrics).map_err(|error| Error::step("JSON", error))?;
    all["intel_rdt"] = json!({});
    all["network_interfaces"] = Value::Null;
    Ok(all)
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
