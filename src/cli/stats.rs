//! `sampan stats`: the pod's cgroup tree.

use anyhow::Context;

use super::output::{self, Format};
use super::{Global, Outcome};
use crate::cgroup::Tree;
use crate::pod::adopt;

/// Options of `stats`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print: `table` or `json`
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    format: Format,
    /// Task of a framework instead of the pod of this folder
    task: Option<String>,
}

/// Prints limits and use of the pod's cgroup and of those below.
pub fn run(global: &Global, args: Args) -> Outcome {
    let (dir, _) = global.target(args.task.into_iter().collect())?;
    let pod = adopt::load(&dir)?.context("pod is gone")?;
    let tree = pod.cgroup.tree()?;
    if args.format == Format::Json {
        return output::json(&tree);
    }
    let mut rows = Vec::new();
    add(&tree, 0, &mut rows);
    output::table(
        &["CGROUP", "MEMORY", "LIMIT", "CPU", "LIMIT", "PIDS", "LIMIT"],
        rows,
    )
}

fn add(tree: &Tree, depth: usize, rows: &mut Vec<Vec<String>>) {
    let stats = &tree.stats;
    let bytes = |value: Option<u64>| value.map_or("-".to_string(), output::size);
    let count = |value: Option<u64>| value.map_or("-".to_string(), |v| v.to_string());
    let cpus = tree.cpu_quota.map_or("-".to_string(), |(quota, period)| {
        format!("{:.2}", quota as f64 / period.max(1) as f64)
    });
    let used = stats
        .cpu_usage_usec
        .map_or("-".to_string(), |usec| format!("{:.2}s", usec as f64 / 1e6));
    rows.push(vec![
        format!("{}{}", "  ".repeat(depth), tree.name),
        bytes(stats.memory_current),
        bytes(stats.memory_limit),
        used,
        cpus,
        count(stats.pids_current),
        count(stats.pids_limit),
    ]);
    for child in &tree.children {
        add(child, depth + 1, rows);
    }
}
