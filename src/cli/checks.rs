//! `sampan checks`.

use serde::Serialize;

use super::lifecycle::ask;
use super::output::{self, Format};
use super::{Global, Outcome};
use crate::compose::project::CheckKind;
use crate::pod::adopt;
use crate::pod::control::Request;
use crate::pod::record::{self, CheckResult, CheckState, Status};

/// Options of `checks`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sampan checks\n  sampan checks --snooze 600 web     no checks of web for ten minutes\n  sampan checks --snooze 0           check again"
)]
pub struct Args {
    /// Pause the checks of services that run, from now on; 0 ends a pause
    #[arg(long, value_name = "SECONDS")]
    snooze: Option<u64>,
    /// How to print: `table` or `json`
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    format: Format,
    /// Services, or tasks of a framework; all when none is named
    services: Vec<String>,
}

/// One check as JSON has it.
#[derive(Debug, Serialize)]
struct Row {
    version: u32,
    pod: String,
    service: String,
    check: String,
    #[serde(flatten)]
    result: CheckResult,
    snoozed: Option<String>,
}

/// Lists results from the pod's records, so that it works without a supervisor too; a pause is the supervisor's.
pub fn run(global: &Global, args: Args) -> Outcome {
    if let Some(seconds) = args.snooze {
        let snooze = |services| Request::Snooze { services, seconds };
        return ask(global, args.services, snooze).map(|_| 0);
    }
    let (dir, services) = global.target(args.services)?;
    let Some(pod) = adopt::load(&dir)? else {
        anyhow::bail!("no pod {} here", dir.name);
    };
    if let Some(unknown) = services
        .iter()
        .find(|name| !pod.project.services.contains_key(*name))
    {
        anyhow::bail!("pod {} has no service {unknown}", dir.name);
    }
    let mut rows = Vec::new();
    for name in pod.project.services.keys() {
        if !services.is_empty() && !services.contains(name) {
            continue;
        }
        let status: Status = record::read(&dir.service(name).status())?.unwrap_or_default();
        let snoozed = status.snoozed;
        rows.extend(status.checks.into_iter().map(|(check, result)| Row {
            version: record::VERSION,
            pod: dir.name.clone(),
            service: name.clone(),
            check,
            result,
            snoozed: snoozed.clone(),
        }));
    }
    match args.format {
        Format::Json => output::json(&rows),
        Format::Table => table(&rows),
    }
}

fn table(rows: &[Row]) -> Outcome {
    let cells = rows.iter().map(|row| {
        let state = match (row.result.kind, row.result.state) {
            (CheckKind::Check, _) => "",
            (_, CheckState::Starting) => "starting",
            (_, CheckState::Passing) => "passing",
            (_, CheckState::Failing) => "failing",
        };
        let told = row.result.told().replace('\n', " ");
        vec![
            row.service.clone(),
            row.check.clone(),
            row.result.kind.word().to_string(),
            state.to_string(),
            row.result.since.clone(),
            told,
        ]
    });
    output::table(
        &["SERVICE", "CHECK", "KIND", "STATE", "SINCE", "RESULT"],
        cells.collect(),
    )
}
