//! `sampan internal mesos-launch`: from the tasks of a launch to a pod, in a short process of its own.
//!
//! What tasks bring (files, compose text, images) is read here and not in the executor, whose memory stays small and whose life does not
//! depend on it. *Invariants:* it dies with the executor, whose successor begins anew; a pod that is there by then is not made again, for
//! what it is to do may be done; a failure leaves no pod.
//!
//! Leaves to others: what a task is as a pod ([`super::task`]), how a pod comes up ([`crate::pod::up`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ledger::{Executor, Ledger, Planned};
use super::privileges;
use super::proto::task_status::Reason;
use super::proto::{ExecutorId, ExecutorInfo, FrameworkId, FrameworkInfo, TaskInfo, TaskState};
use super::task::{self, Invalid, Surroundings, TaskPlan, fetch};
use crate::image::{Progress, PullOptions};
use crate::network::Cni;
use crate::pod::record::{Owner, Pod};
use crate::pod::up::{self, UpSpec};
use crate::pod::{Error, Result, adopt, hooks};
use crate::sys::stderr;

/// The step of `sampan internal`.
pub const STEP: &str = "mesos-launch";
/// Most that it writes (bytes).
pub const OUTPUT: u64 = 1 << 20;

/// A line on standard output, for the executor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// What the tasks become.
    Planned {
        /// Each task.
        tasks: Vec<Planned>,
    },
    /// There is no pod, and why.
    Failed {
        /// The task that is the reason; `None`: all of them.
        task: Option<String>,
        /// TASK_FAILED or TASK_ERROR.
        state: i32,
        /// Why.
        reason: Option<i32>,
        /// For people.
        message: String,
    },
}

impl From<Invalid> for Line {
    fn from(invalid: Invalid) -> Line {
        Line::Failed {
            // that of no task is that of all
            task: Some(invalid.task).filter(|task| !task.is_empty()),
            state: invalid.state.into(),
            reason: invalid.reason.map(Into::into),
            message: invalid.message,
        }
    }
}

impl From<Error> for Line {
    fn from(error: Error) -> Line {
        Line::Failed {
            task: None,
            state: TaskState::Failed.into(),
            reason: Some(Reason::ContainerLaunchFailed.into()),
            message: error.to_string(),
        }
    }
}

/// Makes the pod of launch `number` of the executor with the folder `dir`; the exit code.
pub fn run(dir: &Path, number: u64) -> u8 {
    match make(&Ledger::open(dir), number) {
        Ok(()) => 0,
        Err(line) => {
            say(&line);
            1
        }
    }
}

fn say(line: &Line) {
    let mut out = std::io::stdout().lock();
    // an executor that is gone has taken us with it
    let _ = serde_json::to_writer(&mut out, line);
    let _ = out.write_all(b"\n").and_then(|()| out.flush());
}

/// Pulls are not told: only states are.
struct Silent;

impl Progress for Silent {
    fn advance(&self, _: &str, _: u64, _: u64) {}
}

fn make(ledger: &Ledger, number: u64) -> std::result::Result<(), Line> {
    let missing = privileges::missing()
        .map_err(|error| Error::Other(format!("look at the executor's privileges: {error}")))?;
    if let Some(missing) = missing {
        return Err(Error::Other(missing.to_string()).into());
    }
    let executor = ledger.executor()?;
    let launch = ledger.launch(number)?;
    let tasks = ledger.tasks(number)?;
    let around = surroundings(ledger, &executor)?;
    let options = PullOptions {
        plain_http: executor.plain_http,
        ..PullOptions::default()
    };
    folders(&tasks, &around)?;
    let there = is_there(&executor, &launch.pod)?;
    if there.is_none() {
        let files = fetch::spec(&tasks, launch.group, &around)?;
        fetch::run(&files, &options)?;
    }
    let mut plan = task::plan(&tasks, launch.group, &around)?;
    for note in &plan.notes {
        stderr::line(format_args!("sampan executor: {note}"));
    }
    if let Some(owner) = there.and_then(|pod| pod.owner) {
        // its hooks may have changed them
        for task in &mut plan.tasks {
            let services = owner.tasks.get(&task.id);
            task.services = services.cloned().unwrap_or_default();
        }
        planned(&plan.tasks);
        return Ok(());
    }
    let owner = Owner {
        process: executor.process,
        kind: "mesos".to_string(),
        framework: executor.framework.clone(),
        executor: executor.executor.clone(),
        agent: executor.agent.clone(),
        tasks: services_of(&plan.tasks),
        sandbox: executor.sandbox.clone(),
    };
    let mut spec = UpSpec {
        folders: executor.folders(),
        project: plan.project,
        services: Vec::new(),
        cgroup_parent: executor.cgroup_parent.clone(),
        cni: Cni {
            conf_dirs: executor.cni_conf.clone(),
            plugin_dirs: executor.cni_path.clone(),
            state: executor.state.clone(),
        },
        policy: plan.policy,
        pull: None,
        pull_options: options,
        force_recreate: false,
        renew_volumes: false,
        wait: false,
        // a kill must find services that run, and give them their grace
        detach: true,
        owner: Some(owner.clone()),
        hooks_dir: hooks::usual_folder(),
    };
    let told = up::before_launch(&mut spec, &mut |_, _| {})?;
    let names = spec.project.services.keys().cloned().collect();
    divide(&mut plan.tasks, names)?;
    let tasks_of = services_of(&plan.tasks);
    spec.owner = Some(Owner {
        tasks: tasks_of.clone(),
        ..owner
    });
    planned(&plan.tasks);
    up::up_changed(&spec, &told, &Silent, &mut |_, _| {}).map_err(|error| of_task(error, &tasks_of))
}

/// A stop of a task names each of its services: from here on they stay as they are.
fn planned(tasks: &[TaskPlan]) {
    say(&Line::Planned {
        tasks: tasks.iter().map(Planned::from).collect(),
    });
}

fn services_of(tasks: &[TaskPlan]) -> BTreeMap<String, Vec<String>> {
    let of = |task: &TaskPlan| (task.id.clone(), task.services.clone());
    tasks.iter().map(of).collect()
}

/// Whose the `services` are that the hooks have left or added. Each task of a group is one of them.
fn divide(tasks: &mut [TaskPlan], services: BTreeSet<String>) -> std::result::Result<(), Line> {
    let failed = |task: Option<&TaskPlan>, message: String| Line::Failed {
        task: task.map(|task| task.id.clone()),
        state: TaskState::Failed.into(),
        reason: Some(Reason::ContainerLaunchFailed.into()),
        message,
    };
    if let [task] = tasks {
        if services.is_empty() {
            let text = "hooks at before-launch left no service of it; a task needs one";
            return Err(failed(Some(task), text.into()));
        }
        task.services = services.into_iter().collect();
        return Ok(());
    }
    for task in tasks.iter() {
        if let Some(gone) = task.services.iter().find(|name| !services.contains(*name)) {
            let text = format!(
                "a hook at before-launch removed service {gone}, which is this task; a task of a group has to stay"
            );
            return Err(failed(Some(task), text));
        }
    }
    let own = |name: &String| tasks.iter().any(|task| task.services.contains(name));
    match services.iter().find(|name| !own(name)) {
        Some(new) => Err(failed(
            None,
            format!(
                "a hook at before-launch added service {new}, which belongs to no task of the group; launch it as a task"
            ),
        )),
        None => Ok(()),
    }
}

/// The pod, where an earlier process of this executor made it and nobody has removed it.
fn is_there(executor: &Executor, pod: &str) -> Result<Option<Pod>> {
    let dir = executor.folders().pod(pod);
    let found = adopt::load(&dir)?.filter(|_| !dir.removing().exists());
    Ok(found.filter(|pod| {
        let owner = pod.owner.as_ref();
        owner.is_some_and(|owner| owner.process == executor.process)
    }))
}

/// A failure is that of the task whose service it is.
fn of_task(error: Error, tasks: &BTreeMap<String, Vec<String>>) -> Line {
    let service = match &error {
        Error::Start { service, .. } => service.clone(),
        _ => None,
    };
    let mut line = Line::from(error);
    if let (Line::Failed { task, .. }, Some(service)) = (&mut line, service) {
        let own = tasks
            .iter()
            .find(|(_, services)| services.contains(&service));
        *task = own.map(|(id, _)| id.clone());
    }
    line
}

impl From<&TaskPlan> for Planned {
    fn from(plan: &TaskPlan) -> Planned {
        Planned {
            id: plan.id.clone(),
            services: plan.services.clone(),
            grace: plan.grace,
            ready: plan.ready,
            max_completion: plan.max_completion,
        }
    }
}

fn surroundings(ledger: &Ledger, executor: &Executor) -> Result<Surroundings> {
    let subscribed = ledger.subscribed()?;
    let subscribed =
        subscribed.ok_or_else(|| Error::Other("there was no SUBSCRIBED event".into()))?;
    // what names the pod is what the ledger says: the agent may leave it out
    Ok(Surroundings {
        framework: FrameworkInfo {
            id: Some(FrameworkId {
                value: executor.framework.clone(),
            }),
            ..subscribed.framework_info
        },
        executor: ExecutorInfo {
            executor_id: ExecutorId {
                value: executor.executor.clone(),
            },
            ..subscribed.executor_info
        },
        agent: subscribed.agent_info,
        sandbox: executor.sandbox.clone(),
        variables: executor.variables.clone(),
        address: executor.address,
        seccomp_profiles: executor.seccomp_profiles.clone(),
        output: executor.output,
    })
}

/// `tasks/ID` in the sandbox, whose owner they have. An id that is no name is refused by the plan, and makes no folder elsewhere.
fn folders(tasks: &[TaskInfo], around: &Surroundings) -> Result<()> {
    let sandbox = &around.sandbox;
    for task in tasks {
        let folder = task::folder(sandbox, task);
        if let Ok(below) = folder.strip_prefix(sandbox) {
            fetch::make_folder(sandbox, below).map_err(Error::Other)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_that_of_the_task_whose_service_it_is() {
        let start = |service: Option<&str>| Error::Start {
            code: 125,
            message: "no image".into(),
            service: service.map(str::to_owned),
        };
        let tasks = [("a", vec!["web", "db"]), ("b", vec!["job"])];
        let tasks = tasks.map(|(id, services)| {
            let services = services.into_iter().map(str::to_owned).collect();
            (id.to_owned(), services)
        });
        let tasks = BTreeMap::from(tasks);
        for (error, expected) in [
            (start(Some("db")), Some("a")),
            (start(Some("job")), Some("b")),
            (start(Some("other")), None),
            (start(None), None),
            (Error::Other("no network".into()), None),
        ] {
            let Line::Failed { task, .. } = of_task(error, &tasks) else {
                panic!("a failure");
            };
            assert_eq!(task.as_deref(), expected);
        }
    }
}
