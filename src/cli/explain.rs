//! `sampan explain`: what `create` would do with a bundle, step by step, without doing it.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Outcome, output};
use crate::cgroup::Cgroup;
use crate::container::{Config, CreateRequest, Rootfs, plan};

/// Options of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: sampan explain . | jq '.child[] | select(.rlimit)'")]
pub struct Args {
    /// Folder with config.json
    #[arg(default_value = ".")]
    bundle: PathBuf,
    /// Id of the container; the name of the bundle without
    #[arg(long)]
    id: Option<String>,
}

/// Prints both lists of the plan.
pub fn run(args: Args) -> Outcome {
    let bundle = std::path::absolute(&args.bundle)?;
    let name = bundle.file_name().unwrap_or_default().to_string_lossy();
    let id = args.id.unwrap_or_else(|| name.into_owned());
    let spec = Config::read(&bundle)?.spec;
    let linux = spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let cgroup = Cgroup::for_container(path, false, &id)?;
    let request = CreateRequest {
        dir: bundle.clone(),
        id,
        bundle: bundle.clone(),
        rootfs: Rootfs::Bundle,
        cgroup,
        console_socket: None,
        preserve_fds: 0,
        keep_keyring: false,
        no_pivot: false,
        at_once: false,
        dies_with_parent: false,
    };
    let config = bundle.join("config.json");
    let plan = plan::container(&spec, &request, plan::Host::here(&spec))
        .map_err(|error| anyhow::anyhow!("{}: {error}", config.display()))?;
    let mut shown = serde_json::to_value(&plan)?;
    let steps = shown.get_mut("parent").and_then(Value::as_array_mut);
    for (shown, step) in steps.into_iter().flatten().zip(&plan.parent) {
        if let plan::Step::Limits(resources) = step {
            // the values of the files say more than what they are made from
            *shown = json!({"limits": request.cgroup.writes(resources)?});
        }
    }
    output::json(&shown)
}
