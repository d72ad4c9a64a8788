//! `sampan internal mesos-launch`: from the tasks of a launch to a pod, in a short process of its own.
//!
//! What tasks bring (files, compose text, images) is read here and not in the executor, whose memory stays small and whose life does not
//! depend on it. *Invariants:* it dies with the executor, whose successor begins anew; a failure leaves no pod.
//!
//! Leaves to others: what a task is as a pod ([`super::task`]), how a pod comes up ([`crate::pod::up`]).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::ledger::{Executor, Launch, Ledger, Planned};
use super::proto::task_status::Reason;
use super::proto::{TaskInfo, TaskState};
use crate::compose::Project;
use crate::image::{Progress, PullOptions};
use crate::network::Cni;
use crate::pod::record::{Owner, Policy};
use crate::pod::up::{UpSpec, up};
use crate::pod::{Error, Result};

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

/// Makes the pod of launch `number` of the executor with the folder `dir`; the exit code.
pub fn run(dir: &Path, number: u64) -> u8 {
    let failed = |error: Error| Line::Failed {
        task: None,
        state: TaskState::Failed.into(),
        reason: Some(Reason::ContainerLaunchFailed.into()),
        message: error.to_string(),
    };
    match make(&Ledger::open(dir), number) {
        Ok(()) => 0,
        Err(error) => {
            say(&failed(error));
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

fn make(ledger: &Ledger, number: u64) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| Error::Other(format!("follow the executor: {error}")))?;
    let executor = ledger.executor()?;
    let launch = ledger.launch(number)?;
    let tasks = ledger.tasks(number)?;
    let (project, plans) = plan(&executor, &launch, &tasks)?;
    say(&Line::Planned {
        tasks: plans.clone(),
    });
    let owner = Owner {
        process: executor.process,
        kind: "mesos".to_string(),
        framework: executor.framework.clone(),
        executor: executor.executor.clone(),
        agent: executor.agent.clone(),
        tasks: plans
            .into_iter()
            .map(|plan| (plan.id, plan.services))
            .collect(),
        sandbox: executor.sandbox.clone(),
    };
    let spec = UpSpec {
        folders: executor.folders(),
        project,
        services: Vec::new(),
        cgroup_parent: executor.cgroup_parent.clone(),
        cni: Cni {
            conf_dirs: executor.cni_conf.clone(),
            plugin_dirs: executor.cni_path.clone(),
            state: executor.state.clone(),
        },
        policy: Policy::FailPod,
        pull: None,
        pull_options: PullOptions {
            plain_http: executor.plain_http,
            ..PullOptions::default()
        },
        force_recreate: false,
        wait: false,
        owner: Some(owner),
    };
    up(spec, &Silent, &mut |_, _| {})
}

fn plan(
    executor: &Executor,
    launch: &Launch,
    tasks: &[TaskInfo],
) -> Result<(Project, Vec<Planned>)> {
    let other = |error: &dyn std::fmt::Display| Error::Other(error.to_string());
    let mut services = serde_json::Map::new();
    let mut plans = Vec::new();
    for (at, task) in tasks.iter().enumerate() {
        let name = format!("task{at}");
        let image = task
            .container
            .as_ref()
            .and_then(|c| c.mesos.as_ref()?.image.as_ref()?.docker.as_ref());
        let command = task.command.as_ref().and_then(|c| c.value.clone());
        let image =
            image.ok_or_else(|| Error::Other(format!("task {}: no image", task.task_id.value)))?;
        services.insert(
            name.clone(),
            serde_json::json!({
                "image": image.name, "network_mode": "host", "stop_signal": "SIGTERM",
                "entrypoint": ["/bin/sh", "-c", command.unwrap_or_default().replace('$', "$$")],
            }),
        );
        let grace = task
            .kill_policy
            .as_ref()
            .and_then(|p| p.grace_period.as_ref());
        plans.push(Planned {
            id: task.task_id.value.clone(),
            services: vec![name],
            grace: Some(std::time::Duration::from_nanos(
                grace.map_or(3_000_000_000, |g| g.nanoseconds.max(0) as u64),
            )),
            ready: false,
            max_completion: task
                .max_completion_time
                .as_ref()
                .map(|t| std::time::Duration::from_nanos(t.nanoseconds.max(0) as u64)),
        });
    }
    let text = serde_json::json!({"name": launch.pod, "services": services}).to_string();
    let path = executor
        .state
        .join("executors")
        .join(format!("{}.yaml", launch.pod));
    std::fs::write(&path, text).map_err(|error| other(&error))?;
    let loaded = crate::compose::load(&crate::compose::LoadRequest {
        files: vec![path.clone()],
        working_dir: executor.sandbox.clone(),
        project_name: None,
        environment: BTreeMap::new(),
        env_files: Vec::new(),
        profiles: Vec::new(),
    })
    .map_err(|error| other(&error))?;
    let _ = std::fs::remove_file(&path);
    Ok((loaded.project, plans))
}
