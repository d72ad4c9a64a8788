//! A task, or the tasks of a group → a pod.
//!
//! Owns what each field of `TaskInfo` means: `labels` what is said there, `source` where the pod comes from, `service` a task as one service
//! of a compose file with `command`, `linux`, `docker`, `volumes`, `networks`, `resources`, `ports`, `variables` and `checks`; [`fetch`]
//! brings what has to be there before, `finish` adds what no compose file says.
//!
//! A task is written as a compose file and read like one, so that every bound and default of those holds for it, too.
//!
//! *Invariants:* the same tasks, surroundings and files give the same pod, with the same name; nothing but compose files and what
//! they name is read, nothing is changed (`fetch` aside); what is not understood is an error that names task and field; no input makes it
//! panic. Variables and secrets never get into a message.
//!
//! Leaves to others: bringing the pod up, states, the folders of tasks.

mod checks;
mod command;
mod docker;
pub mod fetch;
mod finish;
mod hooks;
pub mod labels;
mod linux;
mod networks;
pub mod output;
mod ports;
mod resources;
mod service;
mod source;
mod variables;
mod volumes;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub use checks::{CHECK, HEALTH};

use super::proto::task_status::Reason;
use super::proto::{AgentInfo, DurationInfo, ExecutorInfo, FrameworkInfo, TaskInfo, TaskState};
use crate::compose::Project;
use crate::pod::record::Policy;
use finish::{finish, set_limits, shares_cgroups, tighter};
use labels::Options;
use networks::{Mapping, Networks};
use ports::Offered;
use resources::Share;
use source::Source;
use variables::Variables;

/// Where a container finds its sandbox (agent flag `--sandbox_directory`).
pub const SANDBOX: &str = "/mnt/mesos/sandbox";
/// Grace of a kill where nothing says another one.
pub const GRACE: Duration = Duration::from_secs(3);

impl Surroundings {
    /// The name of the pod of these tasks.
    fn pod_name(&self, tasks: &[TaskInfo]) -> String {
        let framework = self.framework.id.as_ref().map(|id| id.value.as_str());
        let executor = &self.executor.executor_id.value;
        pod_name(tasks, framework.unwrap_or_default(), executor)
    }
}

/// What a task is translated in.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// From `SUBSCRIBED`.
    pub framework: FrameworkInfo,
    /// From `SUBSCRIBED`.
    pub executor: ExecutorInfo,
    /// From `SUBSCRIBED`.
    pub agent: AgentInfo,
    /// The executor's sandbox, absolute.
    pub sandbox: PathBuf,
    /// Variables that all tasks of the agent get.
    pub variables: BTreeMap<String, String>,
    /// The machine's address, for tasks on the host's network.
    pub address: Option<IpAddr>,
    /// Folder of seccomp profiles that tasks may name.
    pub seccomp_profiles: Option<PathBuf>,
    /// How much of a task's output the sandbox holds, where the task does not say.
    pub output: output::Bound,
}

/// What one launch becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct PodPlan {
    /// The pod; its name is made of the ids, so a later executor finds it again.
    pub project: Project,
    /// What becomes of the pod when a service ends.
    pub policy: Policy,
    /// The tasks in the order of the launch.
    pub tasks: Vec<TaskPlan>,
    /// What a person should know and is no error, for the log.
    pub notes: Vec<String>,
}

/// One task of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPlan {
    /// Task id.
    pub id: String,
    /// Its services.
    pub services: Vec<String>,
    /// Grace of the task's kill policy; `None`: each service's own.
    pub grace: Option<Duration>,
    /// `TASK_RUNNING` when it is ready, not when it has started.
    pub ready: bool,
    /// Longest run, from the start.
    pub max_completion: Option<Duration>,
    /// `tasks/ID` in the executor's sandbox, for its output.
    pub folder: PathBuf,
    /// What the task sees as its sandbox: the executor's, for a task of a group its own folder.
    pub sandbox: PathBuf,
}

/// A task that cannot be a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// Task id.
    pub task: String,
    /// For the status update.
    pub reason: Option<Reason>,
    /// `TASK_ERROR` for a description that is wrong, `TASK_FAILED` for what may be otherwise next time.
    pub state: TaskState,
    /// Complete text, which begins with task and field.
    pub message: String,
}

impl Invalid {
    fn of(task: &TaskInfo, why: impl std::fmt::Display) -> Invalid {
        let id = task.task_id.value.clone();
        Invalid {
            message: format!("task {id}: {why}"),
            task: id,
            reason: Some(Reason::TaskInvalid),
            state: TaskState::Error,
        }
    }

    fn group(why: &str) -> Invalid {
        Invalid {
            task: String::new(),
            reason: Some(Reason::TaskGroupInvalid),
            state: TaskState::Error,
            message: why.to_owned(),
        }
    }

    fn failed(task: &TaskInfo, why: impl std::fmt::Display) -> Invalid {
        Invalid {
            reason: Some(Reason::ContainerLaunchFailed),
            state: TaskState::Failed,
            ..Invalid::of(task, why)
        }
    }
}

/// The sandbox of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sandbox {
    /// On the host.
    host: PathBuf,
    /// The executor's, which the tasks of a group share.
    parent: Option<PathBuf>,
    /// In the container.
    inside: String,
}

/// All that one task says, field by field.
struct Draft<'a> {
    task: &'a TaskInfo,
    options: Options,
    share: Share,
    source: Source,
    sandbox: Sandbox,
    /// The task's own variables.
    own: Variables,
    mappings: Vec<Mapping>,
    offered: Offered,
    checks: Vec<crate::compose::project::Check>,
    folder: PathBuf,
}

/// The pod of a launch: of one task, or of the tasks of a group.
///
/// # Errors
/// The first thing that is wrong with a task, with the state and reason that it ends in.
pub fn plan(tasks: &[TaskInfo], group: bool, around: &Surroundings) -> Result<PodPlan, Invalid> {
    let plan = match tasks {
        [task] if !group => one(task, around),
        tasks => several(tasks, around),
    };
    plan.map_err(|error| match error.reason {
        Some(Reason::TaskInvalid) if group => Invalid {
            reason: Some(Reason::TaskGroupInvalid),
            ..error
        },
        _ => error,
    })
}

/// Folder of a task in the executor's sandbox.
pub fn folder(sandbox: &Path, task: &TaskInfo) -> PathBuf {
    sandbox.join("tasks").join(&task.task_id.value)
}

/// Name of the pod of a launch: words of the first task's id for people, and a digest of all ids that make it this one.
pub fn pod_name(tasks: &[TaskInfo], framework: &str, executor: &str) -> String {
    /// Letters of the id that are shown.
    const SHOWN: usize = 24;
    let mut hash = Sha256::new();
    let tasks_ids = tasks.iter().map(|task| task.task_id.value.as_str());
    for id in [framework, executor].into_iter().chain(tasks_ids) {
        hash.update(id.as_bytes());
        hash.update([0]);
    }
    let digest: String = hash
        .finalize()
        .iter()
        .take(5)
        .map(|b| format!("{b:02x}"))
        .collect();
    let first = tasks.first().map(|task| task.task_id.value.to_lowercase());
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let shown: String = first
        .unwrap_or_default()
        .chars()
        .map(plain)
        .take(SHOWN)
        .collect();
    match shown.trim_matches('-') {
        "" => format!("task-{digest}"),
        shown => format!("{shown}-{digest}"),
    }
}

fn draft<'a>(task: &'a TaskInfo, group: bool, around: &Surroundings) -> Result<Draft<'a>, Invalid> {
    let id = &task.task_id.value;
    // checked by the master; here it becomes a path
    if id.is_empty() || id == "." || id == ".." || id.contains(['/', '\0']) || id.len() > 255 {
        return Err(Invalid::of(task, "task_id: is not a name"));
    }
    let options = labels::read(task)?;
    let share = resources::share(task)?;
    let folder = folder(&around.sandbox, task);
    let source = source::of(task, &options, &around.sandbox, &folder)?;
    let host = if group {
        folder.clone()
    } else {
        around.sandbox.clone()
    };
    let inside = match source {
        Source::Host => host.to_string_lossy().into_owned(),
        _ => SANDBOX.to_owned(),
    };
    let own = own_variables(task, group, around)?;
    let (_, mappings) = networks::networks(task)?;
    Ok(Draft {
        offered: Offered::of(task, &share.ports, &own),
        checks: checks::checks(task, &options)?,
        sandbox: Sandbox {
            host,
            parent: group.then(|| around.sandbox.clone()),
            inside,
        },
        task,
        options,
        share,
        source,
        own,
        mappings,
        folder,
    })
}

/// A task that is launched alone has its command in that of its executor where it has none (the master takes one of the two only).
fn own_variables(
    task: &TaskInfo,
    group: bool,
    around: &Surroundings,
) -> Result<Variables, Invalid> {
    let executor = match (&task.command, group) {
        (None, false) => around.executor.command.as_ref(),
        _ => None,
    };
    let command = task.command.as_ref().or(executor);
    let mut own = variables::own(task, command.and_then(|c| c.environment.as_ref()))?;
    own.retain(|name, _| !name.starts_with("LIBPROCESS_"));
    if executor.is_some() {
        own.retain(|name, _| !name.starts_with("MESOS_"));
    }
    Ok(own)
}

/// One task: a whole project, or one service.
fn one(task: &TaskInfo, around: &Surroundings) -> Result<PodPlan, Invalid> {
    let draft = draft(task, false, around)?;
    let name = around.pod_name(std::slice::from_ref(task));
    let (networks, _) = networks::networks(task)?;
    let drafts = [draft];
    let [draft] = &drafts;
    let loaded = match &draft.source {
        Source::Compose { .. } => return compose(draft, &name, &networks, around),
        _ => service::load(
            &drafts,
            &[service::name(task, &BTreeSet::new())],
            &name,
            &networks,
            around,
        )?,
    };
    let names: Vec<String> = loaded.project.services.keys().cloned().collect();
    let (mut project, mut notes) = (loaded.project, loaded.warnings);
    let assigned = ports::assign(
        task,
        &project,
        &names,
        &draft.offered,
        &BTreeSet::new(),
        false,
    )?;
    finish(draft, &mut project, &names, &assigned, around)?;
    let limits = draft.share.limits();
    match names.as_slice() {
        [only] => set_limits(&mut project, only, limits),
        // with those that an override brought along
        _ => project.pod.limits = limits,
    }
    notes.extend(assigned.notes);
    Ok(PodPlan {
        project,
        policy: draft.options.policy,
        tasks: vec![task_plan(draft, names)?],
        notes,
    })
}

/// Variables that a compose file may use.
fn interpolation(draft: &Draft<'_>, around: &Surroundings) -> Variables {
    let mut all = around.variables.clone();
    all.extend(draft.own.clone());
    all.extend(made(draft, around));
    variables::fill(&mut all, draft.offered.variables());
    all
}

fn made(draft: &Draft<'_>, around: &Surroundings) -> Variables {
    let role = draft.share.role.as_deref();
    variables::made(draft.task, &draft.sandbox.inside, role, around)
}

/// A task that is a compose file. Its ports are known when it is read, and may be used in it, so it is read twice where it does.
fn compose(
    draft: &Draft<'_>,
    name: &str,
    networks: &Networks,
    around: &Surroundings,
) -> Result<PodPlan, Invalid> {
    let task = draft.task;
    source::only_networks(task)?;
    let mut variables = interpolation(draft, around);
    let (asked, replace) = source::port_variables(draft);
    // numbers that no offered port has, a different one for each
    let mut placeholders = BTreeSet::new();
    let mut first = variables.clone();
    let free = (1..=u16::MAX).filter(|port| !draft.share.ports.contains(port));
    for (variable, port) in asked.iter().zip(free) {
        if !variables.contains_key(variable) {
            first.insert(variable.clone(), port.to_string());
            placeholders.insert(port);
        }
    }
    let loaded = source::load(draft, name, first, around)?;
    let names: Vec<String> = loaded.project.services.keys().cloned().collect();
    let assign = |project: &Project, open: &BTreeSet<u16>| {
        ports::assign(task, project, &names, &draft.offered, open, replace)
    };
    let assigned = assign(&loaded.project, &placeholders)?;
    let loaded = match placeholders.is_empty() {
        true => loaded,
        false => {
            variables::fill(&mut variables, assigned.variables());
            source::load(draft, name, variables, around)?
        }
    };
    let (mut project, mut notes) = (loaded.project, loaded.warnings);
    networks.join(task, &mut project)?;
    finish(draft, &mut project, &names, &assigned, around)?;
    project.pod.limits = tighter(project.pod.limits, draft.share.limits());
    notes.extend(assigned.notes);
    Ok(PodPlan {
        project,
        policy: draft.options.policy,
        tasks: vec![task_plan(draft, names)?],
        notes,
    })
}

/// The tasks of a group: a service of each.
fn several(tasks: &[TaskInfo], around: &Surroundings) -> Result<PodPlan, Invalid> {
    let Some(first) = tasks.first() else {
        return Err(Invalid::group("the group has no task"));
    };
    let mut drafts = Vec::new();
    let mut names: Vec<String> = Vec::new();
    let mut taken = BTreeSet::new();
    for task in tasks {
        let draft = draft(task, true, around)?;
        if let Source::Compose { .. } = draft.source {
            return Err(Invalid::of(
                task,
                "a task of a group is one service; launch the compose file as a task of its own",
            ));
        }
        let name = service::name(task, &taken);
        taken.insert(name.clone());
        names.push(name);
        drafts.push(draft);
    }
    let each = tasks
        .iter()
        .map(|task| networks::networks(task).map(|(n, _)| n));
    let each: Vec<Networks> = each.collect::<Result<_, _>>()?;
    let networks = networks::together(tasks, &each)?;
    let loaded = service::load(&drafts, &names, &around.pod_name(tasks), &networks, around)?;
    let (mut project, mut notes) = (loaded.project, loaded.warnings);
    let policy = drafts
        .first()
        .map_or(Policy::FailPod, |draft| draft.options.policy);
    let mut plans = Vec::new();
    for (draft, name) in drafts.iter().zip(&names) {
        if draft.options.policy != policy {
            return Err(Invalid::of(
                draft.task,
                format_args!(
                    "labels: sampan.policy: is another one than that of task {}; a group has one",
                    first.task_id.value
                ),
            ));
        }
        let own = std::slice::from_ref(name);
        let assigned = ports::assign(
            draft.task,
            &project,
            own,
            &draft.offered,
            &BTreeSet::new(),
            false,
        )?;
        finish(draft, &mut project, own, &assigned, around)?;
        let limits = match shares_cgroups(draft.task) {
            true => draft.share.soft_limits(),
            false => draft.share.limits(),
        };
        set_limits(&mut project, name, limits);
        notes.extend(assigned.notes);
        plans.push(task_plan(draft, vec![name.clone()])?);
    }
    project.pod.limits = Share::sum(drafts.iter().map(|draft| &draft.share)).limits();
    Ok(PodPlan {
        project,
        policy,
        tasks: plans,
        notes,
    })
}

fn task_plan(draft: &Draft<'_>, services: Vec<String>) -> Result<TaskPlan, Invalid> {
    let task = draft.task;
    let policy = task
        .kill_policy
        .as_ref()
        .and_then(|p| p.grace_period.as_ref());
    Ok(TaskPlan {
        id: task.task_id.value.clone(),
        services,
        grace: duration(task, "kill_policy.grace_period", policy)?,
        ready: draft.options.ready,
        max_completion: duration(
            task,
            "max_completion_time",
            task.max_completion_time.as_ref(),
        )?,
        folder: draft.folder.clone(),
        sandbox: draft.sandbox.host.clone(),
    })
}

fn duration(
    task: &TaskInfo,
    field: &str,
    given: Option<&DurationInfo>,
) -> Result<Option<Duration>, Invalid> {
    let nanoseconds = given.map(|d| u64::try_from(d.nanoseconds));
    match nanoseconds.transpose() {
        Ok(nanoseconds) => Ok(nanoseconds.map(Duration::from_nanos)),
        Err(_) => Err(Invalid::of(task, format_args!("{field}: is negative"))),
    }
}

/// Merges keys of a compose file: mappings by key, lists one after the other, else the later value.
fn extend(into: &mut Map<String, Value>, more: Map<String, Value>) {
    for (key, value) in more {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => extend(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => old.extend(new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}
