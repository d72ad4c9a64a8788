//! `sampan selftest`.

use std::io::Write;

use serde_json::json;

use super::{Outcome, output};
use crate::selftest::{self, Check, Outcome as Seen};

/// Options of `selftest`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sampan selftest                        try everything\n  sampan selftest 2019-5736 2024-21626   only these\n  sampan selftest --list                 what is tried, and how\n\n\
        Exit codes: 0 no check failed (some may not apply to this machine), 1 a check failed, 2 wrong usage."
)]
pub struct Args {
    /// Print one JSON document instead of lines
    #[arg(long)]
    json: bool,
    /// Tell what there is instead of trying it
    #[arg(long)]
    list: bool,
    /// Names of checks, `CVE-` in front or not; all when none is given
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Tries the checks one after another and prints what came of each.
pub fn run(args: &Args) -> Outcome {
    let checks = chosen(&args.names)?;
    if args.list {
        return list(&checks, args.json);
    }
    let mut results = Vec::new();
    for check in &checks {
        let outcome = check.run();
        if !args.json {
            line(check, &outcome)?;
        }
        results.push((check, outcome));
    }
    let count = |wanted: fn(&Seen) -> bool| results.iter().filter(|(_, seen)| wanted(seen)).count();
    let failed = count(|seen| matches!(seen, Seen::Failed(_)));
    let skipped = count(|seen| matches!(seen, Seen::NotApplicable(_)));
    if args.json {
        let all: Vec<_> = results
            .iter()
            .map(|(check, outcome)| {
                let mut entry = json!(check);
                if let (Some(entry), Ok(serde_json::Value::Object(outcome))) =
                    (entry.as_object_mut(), serde_json::to_value(outcome))
                {
                    entry.extend(outcome);
                }
                entry
            })
            .collect();
        output::json(
            &json!({"version": 1, "failed": failed, "not_applicable": skipped, "checks": all}),
        )?;
    } else {
        let passed = results.len() - failed - skipped;
        output::print(&format!(
            "{passed} ok, {failed} failed, {skipped} not applicable\n"
        ))?;
    }
    Ok(u8::from(failed > 0))
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<Check>> {
    let all = selftest::checks();
    if names.is_empty() {
        return Ok(all);
    }
    names
        .iter()
        .map(|name| {
            let short = name.strip_prefix("CVE-").unwrap_or(name);
            let found = all.iter().find(|check| check.name == short);
            found.copied().ok_or_else(|| {
                anyhow::anyhow!("no check is called {name}; `sampan selftest --list` tells all")
            })
        })
        .collect()
}

fn list(checks: &[Check], as_json: bool) -> Outcome {
    if as_json {
        return output::json(&checks);
    }
    let text: String = checks
        .iter()
        .map(|check| {
            format!(
                "{}\n  was    {}\n  tried  {}\n",
                check.name, check.what, check.how
            )
        })
        .collect();
    output::print(&text)
}

fn line(check: &Check, outcome: &Seen) -> anyhow::Result<()> {
    let text = match outcome {
        Seen::Ok => "ok".to_owned(),
        Seen::Failed(seen) => format!("FAILED: {seen}"),
        Seen::NotApplicable(why) => format!("not applicable: {why}"),
    };
    output::print(&format!("{:<16} {text}\n", check.name))?;
    // a long check must not hide that the one before has ended
    Ok(std::io::stdout().flush()?)
}
