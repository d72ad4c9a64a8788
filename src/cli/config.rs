//! `sampan config`.

use super::output::{self, Format};
use super::{Global, Outcome};
use crate::compose;

/// Options of `config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only check
    #[arg(short, long)]
    quiet: bool,
    /// Only names of services
    #[arg(long)]
    services: bool,
    /// How to print: `table`, which is YAML here, or `json`
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    format: Format,
}

/// Loads and prints.
pub fn run(global: &Global, args: Args) -> Outcome {
    let project = global.project()?;
    if args.quiet {
        return Ok(0);
    }
    if args.services {
        let names: Vec<String> = project.services.keys().map(|s| format!("{s}\n")).collect();
        return output::print(&names.concat());
    }
    match args.format {
        Format::Json => output::json(&project),
        Format::Table => output::print(&compose::to_yaml(&project)),
    }
}
