//! What a task's services make of the task.
//!
//! *Invariants:* a task is over when none of its services runs or is going to; a failure is blamed on what failed first.
//!
//! Leaves to others: what is done about it.

use super::super::ledger::{Kill, Planned, Task, Why};
use super::super::proto::task_status::Reason;
use super::super::proto::{
    CheckInfo, CheckStatusInfo, ContainerStatus, NetworkInfo, Resource, TaskInfo,
    TaskResourceLimitation, TaskState, check_info, check_status_info, value,
};
use super::{Live, Service};
use crate::pod::record::{Cause, Goal, Health, Phase, Status};

/// Longest message of a status (bytes).
const MESSAGE: usize = 1024;

/// What is new in a status.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Change {
    pub state: TaskState,
    pub reason: Option<Reason>,
    pub message: Option<String>,
    pub healthy: Option<bool>,
    pub check_status: Option<CheckStatusInfo>,
    pub limitation: Option<TaskResourceLimitation>,
}

impl Change {
    pub fn to(state: TaskState) -> Change {
        Change {
            state,
            ..Change::default()
        }
    }

    pub fn because(mut self, text: &str) -> Change {
        self.message = Some(bounded(text));
        self
    }

    pub fn reason(mut self, reason: Reason) -> Change {
        self.reason = Some(reason);
        self
    }
}

fn bounded(text: &str) -> String {
    let mut end = text.len().min(MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_string()
}

/// What a task has become by its services; `None`: nothing new.
pub fn derive(task: &Task, live: &Live) -> Option<Change> {
    let plan = task.plan.as_ref()?;
    let services: Option<Vec<(&str, &Service)>> = plan
        .services
        .iter()
        .map(|name| Some((name.as_str(), live.services.get(name)?)))
        .collect();
    let services = services?;
    let healthy = health(&services);
    if services.iter().all(|(_, service)| is_over(&service.status)) {
        let mut end = end(task, live, &services);
        end.healthy = end.healthy.or(healthy);
        return Some(end);
    }
    let last = task.status.as_ref()?;
    if task.kill.is_some() {
        return None;
    }
    if last.state() == TaskState::Running {
        let news = healthy.is_some() && healthy != last.healthy;
        return news.then(|| Change {
            healthy,
            reason: Some(Reason::TaskHealthCheckStatusUpdated),
            ..Change::to(TaskState::Running)
        });
    }
    runs(plan, &services).then(|| Change {
        healthy,
        ..Change::to(TaskState::Running)
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

/// Every service was started; when readiness counts, is ready or done.
fn runs(plan: &Planned, services: &[(&str, &Service)]) -> bool {
    services.iter().all(|(_, service)| {
        let status = &service.status;
        let done = status.phase == Phase::Exited && status.exit_code == Some(0);
        let ready = matches!(status.health, Health::None | Health::Healthy);
        !status.started.is_empty() && (!plan.ready || done || ready)
    })
}

/// `None`: no health check has a result.
fn health(services: &[(&str, &Service)]) -> Option<bool> {
    let of = |wanted| services.iter().any(|(_, s)| s.status.health == wanted);
    match (of(Health::Unhealthy), of(Health::Healthy)) {
        (true, _) => Some(false),
        (false, true) => Some(true),
        (false, false) => None,
    }
}

fn end(task: &Task, live: &Live, services: &[(&str, &Service)]) -> Change {
    if let Some(Kill { why, .. }) = &task.kill {
        return killed(why);
    }
    let failed = services
        .iter()
        .filter(|(_, service)| is_failure(&service.status))
        .min_by_key(|(_, service)| &service.status.finished);
    if let Some((name, service)) = failed {
        return failure(task, name, service);
    }
    let all_done = services.iter().all(|(_, service)| {
        let status = &service.status;
        status.phase == Phase::Exited && status.exit_code == Some(0)
    });
    if all_done {
        return Change::to(TaskState::Finished);
    }
    // by hand, or because another task's service failed
    let text = match &live.verdict {
        Some(verdict) => verdict.message.as_str(),
        None => "it was stopped by a command on the agent's machine",
    };
    Change::to(TaskState::Killed).because(text)
}

/// The end that we made.
pub fn killed(why: &Why) -> Change {
    match why {
        Why::Asked => Change::to(TaskState::Killed).because("killed on request"),
        Why::Shutdown(text) | Why::Group(text) => Change::to(TaskState::Killed).because(text),
        Why::TooLong => Change::to(TaskState::Failed)
            .reason(Reason::MaxCompletionTimeReached)
            .because("it took longer than its max_completion_time"),
    }
}

/// The service's own end is a failure, and not the end of something else.
fn is_failure(status: &Status) -> bool {
    match status.cause {
        Some(Cause::Exited | Cause::OutOfMemory) => status.exit_code != Some(0),
        Some(Cause::Unhealthy | Cause::NotStarted) => true,
        Some(Cause::Stopped | Cause::Pod | Cause::Owner) => false,
        None => status.phase == Phase::Failed,
    }
}

fn failure(task: &Task, name: &str, service: &Service) -> Change {
    let status = &service.status;
    let how = match (status.signal, status.exit_code) {
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => "ended, its exit code was not seen".to_string(),
    };
    let line = match &service.last_line {
        Some(line) => format!("; its last line: {line}"),
        None => String::new(),
    };
    match status.cause {
        Some(Cause::OutOfMemory) => {
            let text = match task.memory {
                Some(most) => {
                    format!("service {name} ran out of memory ({most} MB) and {how}{line}")
                }
                None => format!("service {name} ran out of memory and {how}{line}"),
            };
            Change {
                limitation: task.memory.map(limitation),
                ..Change::to(TaskState::Failed)
                    .reason(Reason::ContainerLimitationMemory)
                    .because(&text)
            }
        }
        Some(Cause::Unhealthy) => Change {
            healthy: Some(false),
            ..Change::to(TaskState::Killed).because(&format!(
                "service {name} was unhealthy after {} failed probes: {}",
                status.failing_streak,
                status.health_output.trim()
            ))
        },
        Some(Cause::NotStarted) | None => {
            let why = status.error.as_deref().unwrap_or("for a reason unknown");
            Change::to(TaskState::Failed)
                .reason(Reason::ContainerLaunchFailed)
                .because(&format!("service {name} could not be started: {why}"))
        }
        Some(Cause::Exited | Cause::Stopped | Cause::Pod | Cause::Owner) => {
            Change::to(TaskState::Failed).because(&format!("service {name} {how}{line}"))
        }
    }
}

fn limitation(megabytes: f64) -> TaskResourceLimitation {
    let memory = Resource {
        name: "mem".to_string(),
        r#type: value::Type::Scalar.into(),
        scalar: Some(value::Scalar { value: megabytes }),
        ..Resource::default()
    };
    TaskResourceLimitation {
        resources: vec![memory],
    }
}

/// Memory that a task may use (MB): `limits.mem`, else the sum of its resources `mem`; `None`: as much as there is.
pub fn memory(task: &TaskInfo) -> Option<f64> {
    if let Some(limit) = task.limits.get("mem") {
        return limit.value.is_finite().then_some(limit.value);
    }
    let of = task
        .resources
        .iter()
        .filter(|resource| resource.name == "mem");
    let scalars: Vec<f64> = of.filter_map(|r| Some(r.scalar.as_ref()?.value)).collect();
    (!scalars.is_empty()).then(|| scalars.iter().sum())
}

/// The type that each status of the task tells, unless it is none that we know.
pub fn check_type(check: &CheckInfo) -> Option<i32> {
    let kind = check.r#type();
    (kind != check_info::Type::Unknown).then_some(kind.into())
}

/// A check's status before its first result.
pub fn no_result(kind: i32) -> CheckStatusInfo {
    let mut info = CheckStatusInfo {
        r#type: Some(kind),
        ..CheckStatusInfo::default()
    };
    match info.r#type() {
        check_info::Type::Command => info.command = Some(check_status_info::Command::default()),
        check_info::Type::Http => info.http = Some(check_status_info::Http::default()),
        check_info::Type::Tcp => info.tcp = Some(check_status_info::Tcp::default()),
        check_info::Type::Unknown => {}
    }
    info
}

/// Where the pod is.
pub fn container(networks: &[NetworkInfo]) -> Option<ContainerStatus> {
    (!networks.is_empty()).then(|| ContainerStatus {
        network_infos: networks.to_vec(),
        ..ContainerStatus::default()
    })
}
