//! `sampan gc`.

use super::output;
use super::{Global, Outcome, networks};
use crate::pod::gc::{self, Found, Outcome as Became, Why};

/// Options of `gc`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Safe at any time, beside running pods and other commands: as a hook of a framework's agent, and from a timer."
)]
pub struct Args {
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Removes pods that nobody will, then what they left on networks.
pub fn run(global: &Global, args: Args) -> Outcome {
    let folders = global.folders()?;
    let found = gc::collect(&folders, args.dry_run)?;
    let mut code = u8::from(found.iter().any(|one| one.outcome == Became::Failed));
    if !args.dry_run {
        code |= networks::sweep_idle(global)?;
        crate::executor::mesos::ledger::sweep(&folders.state)?;
    }
    for one in &found {
        one.hooks
            .iter()
            .for_each(|text| output::progress(&one.pod, text));
    }
    if args.json {
        output::json(&found)?;
    } else if !found.is_empty() {
        output::table(&["POD", "WHY", "NOW"], found.iter().map(row).collect())?;
    }
    Ok(code)
}

fn row(found: &Found) -> Vec<String> {
    let why = match found.why {
        Why::OwnerEnded => "its owner ended",
        Why::Killed => "all its processes were killed",
        Why::CgroupGone => "its cgroup was removed",
        Why::HalfMade => "its making was cut short",
        Why::HalfRemoved => "its removal was cut short",
        Why::Forgotten => "the machine was started anew",
    };
    let now = match (found.outcome, &found.error) {
        (_, Some(error)) => format!("not removed: {error}"),
        (Became::Removed, None) => "removed".to_string(),
        (Became::Ending, None) => "being stopped by its supervisor".to_string(),
        (Became::Found, None) => "to be removed".to_string(),
        (Became::Failed, None) => "not removed".to_string(),
    };
    vec![found.pod.clone(), why.to_string(), now]
}
