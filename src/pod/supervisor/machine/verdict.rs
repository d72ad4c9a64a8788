//! How a pod ended, from the statuses of its services alone: whoever looks at the same records comes to the same verdict.

use super::super::super::record::{self, Cause, Goal, Phase, Policy, Status, Verdict};
use crate::compose::project::CheckKind;

/// A service for itself is to blame for it.
pub fn is_failure(cause: Cause) -> bool {
    match cause {
        Cause::Exited | Cause::OutOfMemory | Cause::Unhealthy | Cause::NotStarted => true,
        Cause::Stopped | Cause::Pod | Cause::Owner | Cause::Hook => false,
    }
}

/// `None` while a service runs or is going to, and before one was to.
pub fn verdict<'a>(
    policy: Policy,
    statuses: impl Iterator<Item = (&'a str, &'a Status)>,
) -> Option<Verdict> {
    let all: Vec<(&str, &Status)> = statuses.collect();
    if !all.iter().all(|(_, status)| is_over(status)) {
        return None;
    }
    let (service, status, cause) = all
        .iter()
        .filter_map(|(service, status)| Some((*service, *status, status.cause?)))
        .min_by_key(|(_, status, cause)| {
            let success = *cause == Cause::Exited && status.exit_code == Some(0);
            let weight = weight(policy, *cause, success);
            let finished = time(status);
            // what came first decided it, unless nothing went wrong
            (weight, if success { -finished } else { finished })
        })?;
    let finished = all.iter().max_by_key(|(_, status)| time(status));
    Some(Verdict {
        version: record::VERSION,
        service: Some(service.to_string()),
        cause,
        exit_code: status.exit_code,
        signal: status.signal,
        message: message(service, status, cause),
        finished: finished.map_or_else(String::new, |(_, last)| last.finished.clone()),
    })
}

/// It does not run and will not.
fn is_over(status: &Status) -> bool {
    match status.phase {
        Phase::Exited | Phase::Failed => status.goal != Goal::Restart,
        Phase::Waiting => status.goal == Goal::Stop,
        Phase::Starting | Phase::Running | Phase::Stopping | Phase::Restarting => false,
    }
}

/// The lightest decides. Where each service is for itself, a failure long ago is not why the pod was stopped.
fn weight(policy: Policy, cause: Cause, success: bool) -> u8 {
    match cause {
        Cause::Exited if success && policy == Policy::AbortOnExit => 1,
        Cause::Exited if success => 5,
        Cause::Hook => 0,
        Cause::Owner => 2,
        Cause::Stopped => 3,
        Cause::Pod => 6,
        Cause::Exited | Cause::OutOfMemory | Cause::Unhealthy | Cause::NotStarted => match policy {
            Policy::Compose => 4,
            Policy::AbortOnExit | Policy::FailPod => 1,
        },
    }
}

/// Unix time in nanoseconds of its end; the beginning of time where it never ran.
fn time(status: &Status) -> i128 {
    let finished = status.finished.parse::<jiff::Timestamp>();
    finished.map_or(i128::MIN + 1, jiff::Timestamp::as_nanosecond)
}

fn message(service: &str, status: &Status, cause: Cause) -> String {
    let how = match (status.signal, status.exit_code) {
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => "ended, its exit code was not seen".to_string(),
    };
    let what = match cause {
        Cause::Exited => how,
        Cause::OutOfMemory => format!("ran out of memory and {how}"),
        Cause::Unhealthy => format!("was unhealthy: {}", status.failing(CheckKind::Health)),
        Cause::NotStarted => format!(
            "could not be started: {}",
            status.error.as_deref().unwrap_or("for a reason unknown")
        ),
        Cause::Stopped => "was stopped on request".to_string(),
        Cause::Pod => "was stopped with the pod".to_string(),
        Cause::Hook => "was stopped, for a hook of the pod failed".to_string(),
        Cause::Owner => "was stopped, for the pod's owner ended".to_string(),
    };
    format!("service {service} {what}")
}
