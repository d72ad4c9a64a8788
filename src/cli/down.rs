//! `sampan down`.

use anyhow::bail;

use super::{Global, Outcome, context, output};
use crate::pod::layout::PodDir;
use crate::pod::teardown::{Purpose, abandon_networks, remove};
use crate::pod::up::{stop, stop_and_remove};
use crate::pod::{adopt, volumes};

/// Options of `down`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove the pod's named volumes as well
    #[arg(short, long)]
    volumes: bool,
    /// Seconds until SIGKILL, instead of each service's `stop_grace_period`
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Remove the pod although a network plugin fails to delete what it made
    #[arg(long)]
    force: bool,
    /// Task of a framework, whose pod is meant, instead of the pod of this folder
    task: Option<String>,
}

/// Stops in reverse order, removes everything; no pod is success.
pub fn run(global: &Global, args: Args) -> Outcome {
    let folders = global.folders()?;
    let name = match &args.task {
        Some(task) => global.pod_of(task)?,
        None => global.pod_name()?,
    };
    context::check_name(&name)?;
    let dir: PodDir = folders.pod(&name);
    let _lock = adopt::lock(&folders, &name)?;
    let pod = adopt::load(&dir)?;
    if pod.is_none() {
        output::warning(&format!("no pod {name} here"));
    }
    if args.force {
        stop(&dir, args.timeout, &mut output::progress)?;
        if let Err(error) = remove(&folders, &dir, Purpose::End, &mut output::progress) {
            output::warning(&format!("given up: {error}"));
            abandon_networks(&dir)?;
            remove(&folders, &dir, Purpose::End, &mut output::progress)?;
        }
    } else {
        stop_and_remove(
            &folders,
            &dir,
            args.timeout,
            Purpose::End,
            &mut output::progress,
        )?;
    }
    if args.volumes {
        let project = match pod {
            Some(pod) => pod.project,
            None => global.project()?,
        };
        let list: Vec<_> = project.volumes.values().collect();
        let failed = volumes::remove(&folders, &name, &list);
        if !failed.is_empty() {
            bail!(crate::pod::Error::Several(failed));
        }
    }
    Ok(0)
}
