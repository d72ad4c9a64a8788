//! `sampan volume …`: named volumes, which outlive the pods that made them.

use anyhow::bail;
use clap::Subcommand;
use serde_json::{Value, json};

use super::output::{self, Format};
use super::{Global, Outcome, context};
use crate::pod::volumes::{self, NamedVolume};

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the named volumes and the pods that have them
    Ls {
        /// Only those that no pod has
        #[arg(long)]
        unused: bool,
        /// How to print: `table` or `json`
        #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
        format: Format,
        /// Only names
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show everything about volumes as JSON
    Inspect {
        /// Names
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Make an empty volume, for files that say `external: true`; no `down -v` removes it
    Create {
        /// Name
        name: String,
        /// Label; may be given several times
        #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = context::pair)]
        labels: Vec<(String, String)>,
    },
    /// Remove volumes and what is in them, unless a pod has them
    #[command(after_help = "Examples:\n  \
        sampan volume rm shop_data\n  \
        sampan volume ls -q --unused | xargs -r sampan volume rm")]
    Rm {
        /// Names
        #[arg(required = true)]
        volumes: Vec<String>,
    },
}

/// Runs one of them.
pub fn run(global: &Global, command: Command) -> Outcome {
    let folders = global.folders()?;
    match command {
        Command::Ls {
            unused,
            format,
            quiet,
        } => {
            let mut all = volumes::all(&folders)?;
            all.retain(|volume| !unused || volume.pods.is_empty());
            list(all, format, quiet)
        }
        Command::Inspect { volumes: names } => {
            let all = volumes::all(&folders)?;
            let found: anyhow::Result<Vec<Value>> = names
                .iter()
                .map(|name| Ok(shown(find(&all, name)?)))
                .collect();
            output::json(&found?)
        }
        Command::Create { name, labels } => {
            volumes::create_one(&folders, &name, "", &labels.into_iter().collect())?;
            output::print(&format!("{name}\n"))
        }
        Command::Rm { volumes: names } => {
            let all = volumes::all(&folders)?;
            let mut failed = false;
            for name in &names {
                let removed = find(&all, name)
                    .and_then(|volume| Ok(volumes::remove_unused(&folders, &volume.name)?));
                if let Err(error) = removed {
                    output::error(&error.to_string());
                    failed = true;
                }
            }
            Ok(u8::from(failed))
        }
    }
}

fn find<'a>(all: &'a [NamedVolume], name: &str) -> anyhow::Result<&'a NamedVolume> {
    match all.iter().find(|volume| volume.name == name) {
        Some(volume) => Ok(volume),
        None => bail!("no volume {name} here; `sampan volume ls` lists all"),
    }
}

fn list(all: Vec<NamedVolume>, format: Format, quiet: bool) -> Outcome {
    if quiet {
        let names: Vec<String> = all.iter().map(|v| format!("{}\n", v.name)).collect();
        return output::print(&names.concat());
    }
    match format {
        Format::Json => output::json(&all.iter().map(shown).collect::<Vec<_>>()),
        Format::Table => output::table(
            &["VOLUME", "MADE BY", "PODS", "CREATED"],
            all.into_iter()
                .map(|volume| {
                    let (project, created) = volume
                        .record
                        .map_or_else(Default::default, |record| (record.project, record.created));
                    vec![volume.name, project, volume.pods.join(", "), created]
                })
                .collect(),
        ),
    }
}

fn shown(volume: &NamedVolume) -> Value {
    let record = volume.record.as_ref();
    json!({
        "version": 1,
        "name": volume.name,
        "path": volume.data,
        "created": record.map(|record| &record.created),
        "project": record.map(|record| &record.project),
        "labels": record.map(|record| &record.labels),
        "pods": volume.pods,
    })
}
