//! What a task's services make of the task.
//!
//! *Invariants:* a task is over when none of its services runs or is going to; a failure is blamed on what failed first; what ended
//! because it was asked to has not finished, whatever its exit code.
//!
//! Leaves to others: what is done about it.

use super::super::ledger::{Kill, Planned, Task, Why};
use super::super::proto::task_status::Reason;
use super::super::proto::{
    CheckInfo, CheckStatusInfo, ContainerStatus, NetworkInfo, Resource, TaskInfo,
    TaskResourceLimitation, TaskState, check_info, check_status_info, value,
};
use super::super::task::CHECK;
use super::{Live, Service};
use crate::compose::project::CheckKind;
use crate::pod::record::{Cause, CheckResult, Goal, Measured, Phase, Status};

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

/// The services that a task is, once all are known.
fn services<'a>(plan: &'a Planned, live: &'a Live) -> Option<Vec<(&'a str, &'a Service)>> {
    let names = plan.services.iter();
    names
        .map(|name| Some((name.as_str(), live.services.get(name)?)))
        .collect()
}

/// That a task ran, when it becomes `next` and had ended before anybody looked: who counts tasks that run counts this one, too.
pub fn ran(task: &Task, live: &Live, next: &Change) -> Option<Change> {
    let plan = task.plan.as_ref()?;
    let begun = task.status.as_ref()?.state() == TaskState::Starting;
    let unseen = begun && next.state != TaskState::Running && task.kill.is_none();
    (unseen && runs(plan, &services(plan, live)?)).then(|| Change::to(TaskState::Running))
}

/// Each of its services has told its status.
pub fn is_known(task: &Task, live: &Live) -> bool {
    let plan = task.plan.as_ref();
    plan.is_some_and(|plan| services(plan, live).is_some())
}

/// One of its services has failed.
pub fn has_failed(task: &Task, live: &Live) -> bool {
    let names = task.plan.iter().flat_map(|plan| &plan.services);
    let mut services = names.filter_map(|name| live.services.get(name));
    services.any(|service| is_failure(&service.status))
}

/// That a task is being stopped because of a health check, and because of which one.
pub fn unhealthy(task: &Task, live: &Live) -> Option<String> {
    let mut names = task.plan.iter().flat_map(|plan| &plan.services);
    names.find_map(|name| {
        let status = &live.services.get(name)?.status;
        let stopped = status.goal == Goal::Stop && status.cause == Some(Cause::Unhealthy);
        stopped.then(|| is_unhealthy(name, status))
    })
}

fn is_unhealthy(service: &str, status: &Status) -> String {
    let failing = status.failing(CheckKind::Health);
    format!("service {service} is unhealthy: {failing}")
}

/// What a task has become by its services; `None`: nothing new. `known`: each service of the pod has told its status.
pub fn derive(task: &Task, live: &Live, known: bool) -> Option<Change> {
    let plan = task.plan.as_ref()?;
    let services = services(plan, live)?;
    let healthy = health(&services);
    let check_status = check_status(task, &services);
    if services.iter().all(|(_, service)| is_over(&service.status)) {
        let mut end = end(task, live, &services, known)?;
        end.healthy = end.healthy.or(healthy);
        end.check_status = check_status;
        return Some(end);
    }
    let last = task.status.as_ref()?;
    if task.kill.is_some() {
        return None;
    }
    let now = Change {
        healthy,
        check_status,
        ..Change::to(TaskState::Running)
    };
    if last.state() != TaskState::Running {
        return runs(plan, &services).then_some(now);
    }
    // each of them the reason of an update of its own
    if now.healthy.is_some() && now.healthy != last.healthy {
        let words = words(&services);
        let now = Change {
            message: (healthy == Some(false)).then(|| bounded(&words)),
            ..now
        };
        return Some(now.reason(Reason::TaskHealthCheckStatusUpdated));
    }
    if now.check_status.is_some() && now.check_status != last.check_status {
        return Some(now.reason(Reason::TaskCheckStatusUpdated));
    }
    None
}

/// It does not run and will not.
fn is_over(status: &Status) -> bool {
    match status.phase {
        Phase::Exited | Phase::Failed => status.goal != Goal::Restart,
        // one without a cause was not begun yet
        Phase::Waiting => status.goal == Goal::Stop && status.cause.is_some(),
        Phase::Starting | Phase::Running | Phase::Stopping | Phase::Restarting => false,
    }
}

/// Every service was started; when readiness counts, is ready or done.
fn runs(plan: &Planned, services: &[(&str, &Service)]) -> bool {
    services.iter().all(|(_, service)| {
        let status = &service.status;
        let done = status.phase == Phase::Exited && status.exit_code == Some(0);
        !status.started.is_empty() && (!plan.ready || done || status.ready)
    })
}

/// Whether the last result of every health check is a success; `None` while one has none.
fn health(services: &[(&str, &Service)]) -> Option<bool> {
    let checks = services.iter().flat_map(|(_, s)| s.status.checks.values());
    let checks = checks.filter(|check| check.kind == CheckKind::Health);
    let results: Vec<Option<bool>> = checks.map(CheckResult::healthy).collect();
    if results.contains(&Some(false)) {
        return Some(false);
    }
    (!results.is_empty() && !results.contains(&None)).then_some(true)
}

/// The health checks whose last result is a failure.
fn words(services: &[(&str, &Service)]) -> String {
    let checks = services
        .iter()
        .flat_map(|(service, s)| s.status.checks.iter().map(move |check| (service, check)));
    let failed = checks.filter(|(_, (_, check))| {
        check.kind == CheckKind::Health && check.healthy() == Some(false)
    });
    let each = failed
        .map(|(service, (name, check))| format!("service {service}: {name}: {}", check.told()));
    each.collect::<Vec<_>>().join("; ")
}

/// The result of the task's check, once there is one.
fn check_status(task: &Task, services: &[(&str, &Service)]) -> Option<CheckStatusInfo> {
    let mut info = no_result(task.check?);
    let measured = services
        .iter()
        .find_map(|(_, service)| service.status.checks.get(CHECK));
    match measured.map(|check| &check.measured) {
        Some(Measured::Command { exit_code }) => {
            info.command = Some(check_status_info::Command {
                exit_code: *exit_code,
            });
        }
        Some(Measured::Http { status_code }) => {
            info.http = Some(check_status_info::Http {
                status_code: status_code.map(u32::from),
            });
        }
        Some(Measured::Tcp { succeeded }) => {
            info.tcp = Some(check_status_info::Tcp {
                succeeded: *succeeded,
            });
        }
        None => {}
    }
    Some(info)
}

fn end(task: &Task, live: &Live, services: &[(&str, &Service)], known: bool) -> Option<Change> {
    if let Some(Kill { why, .. }) = &task.kill {
        return Some(killed(why));
    }
    let failed = services
        .iter()
        .filter(|(_, service)| is_failure(&service.status))
        .min_by_key(|(_, service)| &service.status.finished);
    if let Some((name, service)) = failed {
        return Some(failure(task, name, service));
    }
    let is_done = |status: &Status| {
        status.phase == Phase::Exited
            && status.exit_code == Some(0)
            && status.cause == Some(Cause::Exited)
    };
    let done = services.iter().filter(|(_, s)| is_done(&s.status)).count();
    if done == services.len() {
        return Some(Change::to(TaskState::Finished));
    }
    // the failure of another task may be what is told next
    if !known {
        return None;
    }
    // without a failure the first success ended the others (`abort-on-exit`)
    let failed = live.services.values().any(|s| is_failure(&s.status));
    let pod = |status: &Status| status.cause == Some(Cause::Pod);
    let ended = |status: &Status| is_done(status) || pod(status) && !failed;
    if done > 0 && services.iter().all(|(_, s)| ended(&s.status)) {
        return Some(Change::to(TaskState::Finished));
    }
    // by hand
    let text = match &live.verdict {
        Some(verdict) => verdict.message.as_str(),
        None => "it was stopped by a command on the agent's machine",
    };
    Some(Change::to(TaskState::Killed).because(text))
}

/// The end that we made.
pub fn killed(why: &Why) -> Change {
    match why {
        Why::Asked => Change::to(TaskState::Killed).because("killed on request"),
        Why::Shutdown(text) | Why::Group(text) => Change::to(TaskState::Killed).because(text),
        Why::Failed(text) => Change::to(TaskState::Failed).because(text),
        Why::TooLong => Change::to(TaskState::Failed)
            .reason(Reason::MaxCompletionTimeReached)
            .because("it took longer than its max_completion_time"),
        Why::Unhealthy(text) => Change {
            healthy: Some(false),
            ..Change::to(TaskState::Killed).because(text)
        },
    }
}

/// The service's own end is a failure, and not the end of something else.
fn is_failure(status: &Status) -> bool {
    match status.cause {
        Some(Cause::Exited | Cause::OutOfMemory) => status.exit_code != Some(0),
        Some(Cause::Unhealthy | Cause::NotStarted | Cause::Hook) => true,
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
            ..Change::to(TaskState::Killed).because(&is_unhealthy(name, status))
        },
        Some(Cause::Hook) => Change::to(TaskState::Failed).because(&format!(
            "service {name} was stopped, for a hook of the pod failed"
        )),
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
