//! `sampan ps`.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::output::{self, Format};
use super::remote::{self, Remote};
use super::{Global, Outcome};
use crate::compose::project::CheckKind;
use crate::pod::adopt;
use crate::pod::layout::PodDir;
use crate::pod::record::{
    self, Cause, CheckResult, Health, Phase, Pod, PublishedPort, Sandbox, SinkState, Status,
};

/// Options of `ps`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also services that do not run
    #[arg(short, long)]
    all: bool,
    /// Every pod on this machine
    #[arg(short = 'A', long)]
    all_pods: bool,
    /// How to print: `table` or `json`
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    format: Format,
    /// Only names of services
    #[arg(short, long)]
    quiet: bool,
    /// Services, or tasks of a framework; all when none is named
    services: Vec<String>,
}

/// One service as JSON has it.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    version: u32,
    pod: String,
    task: Option<String>,
    service: String,
    id: String,
    image: String,
    status: Phase,
    health: Health,
    ready: bool,
    checks: BTreeMap<String, CheckResult>,
    snoozed: Option<String>,
    pid: Option<i32>,
    exit_code: Option<i32>,
    signal: Option<i32>,
    cause: Option<Cause>,
    oom_killed: bool,
    restarts: u32,
    started: String,
    finished: String,
    error: Option<String>,
    removing: Option<String>,
    /// Files for its output that cannot be written, and why.
    unwritten: Vec<String>,
    ports: Vec<PublishedPort>,
    addresses: Vec<ipnet::IpNet>,
}

/// Lists from the pods' records, so that it works without a supervisor too.
pub fn run(global: &Global, args: Args) -> Outcome {
    if global.remote.remote.is_some() {
        return args.show(args.of_executor(&global.remote)?);
    }
    let folders = global.folders()?;
    let (pods, services) = if args.all_pods {
        (adopt::names(&folders)?, args.services.clone())
    } else {
        let (dir, services) = global.target(args.services.clone())?;
        (vec![dir.name], services)
    };
    let mut rows = Vec::new();
    for name in pods {
        let dir = folders.pod(&name);
        // one without record is only just being made, or removed
        if let Some(pod) = adopt::load(&dir)? {
            rows.extend(self::rows(&dir, &pod, args.all, &services)?);
        }
    }
    args.show(rows)
}

impl Args {
    fn show(&self, rows: Vec<Row>) -> Outcome {
        if self.quiet {
            let names: Vec<String> = rows.into_iter().map(|row| row.service + "\n").collect();
            return output::print(&names.concat());
        }
        match self.format {
            Format::Json => output::json(&rows),
            Format::Table => print(&rows, self.all_pods),
        }
    }

    /// What an executor answers, of the tasks that were named.
    fn of_executor(&self, remote: &Remote) -> anyhow::Result<Vec<Row>> {
        let rows = serde_json::Value::Array(remote::ps(remote)?);
        let mut rows: Vec<Row> = serde_json::from_value(rows).context("the answer")?;
        rows.retain(|row| {
            let task = row.task.as_deref().unwrap_or_default();
            let named = |word: &String| *word == task || *word == format!("{task}/{}", row.service);
            let meant = self.services.is_empty() || self.services.iter().any(named);
            let shown = self.all
                || row.removing.is_some()
                || row.status.active()
                || row.status == Phase::Restarting;
            meant && shown
        });
        Ok(rows)
    }
}

fn rows(dir: &PodDir, pod: &Pod, all: bool, wanted: &[String]) -> anyhow::Result<Vec<Row>> {
    let ports: Vec<PublishedPort> = record::read(&dir.ports())?.unwrap_or_default();
    let sandbox: Sandbox = record::read(&dir.sandbox())?.unwrap_or_default();
    let removing = adopt::removing(dir)?;
    let sinks = sinks(dir)?;
    let mut rows = Vec::new();
    for (name, service) in &pod.project.services {
        if !wanted.is_empty() && !wanted.contains(name) {
            continue;
        }
        let mut status: Status = record::read(&dir.service(name).status())?.unwrap_or_default();
        let runs = matches!(status.phase, Phase::Running | Phase::Stopping);
        if runs && status.process.is_some_and(|process| !process.alive()) {
            // seen before the supervisor has told
            status.phase = Phase::Exited;
        }
        if !all && removing.is_none() && !status.phase.active() && status.phase != Phase::Restarting
        {
            continue;
        }
        rows.push(Row {
            version: record::VERSION,
            pod: dir.name.clone(),
            task: task_of(pod, name),
            service: name.clone(),
            id: crate::pod::bundle::container_id(&dir.name, name),
            image: service.image.clone(),
            status: status.phase,
            health: status.health,
            ready: status.ready && status.phase == Phase::Running,
            checks: status.checks,
            snoozed: status.snoozed,
            pid: status
                .process
                .filter(|_| status.phase.active())
                .map(|p| p.pid),
            exit_code: status.exit_code,
            signal: status.signal,
            cause: status.cause,
            oom_killed: status.oom_killed,
            restarts: status.restarts,
            started: status.started,
            finished: status.finished,
            error: status.error,
            removing: removing.clone(),
            unwritten: sinks
                .iter()
                .filter(|sink| sink.services.contains(name))
                .filter_map(|sink| {
                    Some(format!("{}: {}", sink.path.display(), sink.error.as_ref()?))
                })
                .collect(),
            ports: ports
                .iter()
                .filter(|p| p.service == *name)
                .cloned()
                .collect(),
            addresses: sandbox
                .interfaces
                .iter()
                .flat_map(|i| i.addresses.clone())
                .collect(),
        });
    }
    Ok(rows)
}

/// Files for output.
fn sinks(dir: &PodDir) -> anyhow::Result<Vec<SinkState>> {
    let mut all = Vec::new();
    while let Some(sink) = record::read(&dir.sink(all.len()))? {
        all.push(sink);
    }
    Ok(all)
}

/// The task that a service is of.
fn task_of(pod: &Pod, service: &String) -> Option<String> {
    let tasks = &pod.owner.as_ref()?.tasks;
    let of = tasks.iter().find(|(_, list)| list.contains(service));
    of.map(|(id, _)| id.clone())
}

fn print(rows: &[Row], with_pod: bool) -> Outcome {
    let mut header = vec!["SERVICE", "IMAGE", "STATUS", "PORTS"];
    let with_task = rows.iter().any(|row| row.task.is_some());
    if with_task {
        header.insert(0, "TASK");
    }
    if with_pod {
        header.insert(0, "POD");
    }
    let table = rows
        .iter()
        .map(|row| {
            let ports: Vec<String> = row.ports.iter().map(|p| p.mapping.to_string()).collect();
            let mut cells = vec![
                row.service.clone(),
                row.image.clone(),
                state(row),
                ports.join(", "),
            ];
            if with_task {
                cells.insert(0, row.task.clone().unwrap_or_default());
            }
            if with_pod {
                cells.insert(0, row.pod.clone());
            }
            cells
        })
        .collect();
    output::table(&header, table)
}

fn state(row: &Row) -> String {
    match row.removing.as_deref() {
        None => {}
        Some("") => return "removing".to_string(),
        Some(why) => return format!("removing: {why}"),
    }
    let mut text = match row.status {
        Phase::Waiting => "waiting".to_string(),
        Phase::Starting => "starting".to_string(),
        Phase::Running => format!("up {}", since(&row.started)),
        Phase::Stopping => "stopping".to_string(),
        Phase::Restarting => format!("restarting ({} so far)", row.restarts),
        Phase::Exited => match row.exit_code {
            Some(code) => format!("exited ({code}) {} ago", since(&row.finished)),
            None => "exited (code unknown)".to_string(),
        },
        Phase::Failed => format!("failed: {}", row.error.as_deref().unwrap_or_default()),
    };
    if row.oom_killed {
        text.push_str(", out of memory");
    }
    match (row.status, row.health) {
        (Phase::Running, Health::Starting) => text.push_str(" (health: starting)"),
        (Phase::Running, Health::Healthy) => text.push_str(" (healthy)"),
        (Phase::Running, Health::Unhealthy) => text.push_str(" (unhealthy)"),
        _ => {}
    }
    let readiness = |r: &CheckResult| r.kind == CheckKind::Readiness;
    if row.status == Phase::Running && !row.ready && row.checks.values().any(readiness) {
        text.push_str(" (not ready)");
    }
    if row.snoozed.is_some() {
        text.push_str(" (not checked)");
    }
    for file in &row.unwritten {
        text.push_str(&format!(" (not written: {file})"));
    }
    text
}

/// `5s`, `3m`, `2h`, `4d`.
fn since(time: &str) -> String {
    let Ok(time) = time.parse::<jiff::Timestamp>() else {
        return "?".to_string();
    };
    let seconds = jiff::Timestamp::now().duration_since(time).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}
