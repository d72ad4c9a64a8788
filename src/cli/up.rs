//! `sampan up`.

use anyhow::Context;
use clap::ValueEnum;

use super::{Global, Outcome, context, logs, output};
use crate::compose::project::{MountSource, PullPolicy};
use crate::image::PullOptions;
use crate::pod::adopt;
use crate::pod::control::Request;
use crate::pod::record::Policy;
use crate::pod::up::{UpSpec, up};

/// Options of `up`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sampan up -d\n  sampan up -d --wait          until health checks pass\n  sampan -f a.yaml -f b.yaml up web"
)]
pub struct Args {
    /// Go on in the background
    #[arg(short, long)]
    detach: bool,
    /// Wait until health checks pass; implies -d
    #[arg(long)]
    wait: bool,
    /// When to pull images, whatever the file says: `always`, `missing` or `never`
    #[arg(long, value_name = "WHEN", hide_possible_values = true)]
    pull: Option<Pull>,
    /// Make containers again although nothing changed
    #[arg(long)]
    force_recreate: bool,
    /// Stop all services when one ends; its exit code is the command's
    #[arg(long, conflicts_with = "detach")]
    abort_on_container_exit: bool,
    /// Allow plain http to registries that are not on this machine
    #[arg(long)]
    plain_http: bool,
    /// Services to start with what they depend on; all when none is named
    services: Vec<String>,
}

/// `--pull`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Pull {
    /// Each time
    Always,
    /// When the store does not have it
    Missing,
    /// Never
    Never,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Always => PullPolicy::Always,
            Pull::Missing => PullPolicy::Missing,
            Pull::Never => PullPolicy::Never,
        }
    }
}

/// Brings the pod up; in the foreground follows it until it ends or is interrupted.
pub fn run(global: &Global, args: Args) -> Outcome {
    let project = global.project()?;
    context::check_name(&project.name)?;
    let folders = global.folders()?;
    let dir = folders.pod(&project.name);
    for service in project.services.values() {
        for mount in &service.volumes {
            if let MountSource::Bind {
                path,
                create: false,
                ..
            } = &mount.source
            {
                std::fs::symlink_metadata(path).with_context(|| {
                    format!(
                        "{}:{}: services.{}.volumes: {}",
                        mount.origin.file,
                        mount.origin.line,
                        service.name,
                        path.display()
                    )
                })?;
            }
        }
    }
    let watched: Vec<String> = if args.services.is_empty() {
        project.services.keys().cloned().collect()
    } else {
        args.services.clone()
    };
    let policy = if args.abort_on_container_exit {
        Policy::AbortOnExit
    } else {
        Policy::Compose
    };
    let request = UpSpec {
        folders: folders.clone(),
        project,
        services: args.services,
        cgroup_parent: global.cgroup_parent.clone(),
        cni: global.cni()?,
        policy,
        pull: args.pull.map(PullPolicy::from),
        pull_options: PullOptions {
            plain_http: args.plain_http,
            ..PullOptions::default()
        },
        force_recreate: args.force_recreate,
        wait: args.wait,
        detach: false,
        owner: None,
        hooks_dir: global.hooks_dir(),
    };
    up(request, &output::Bars::new(), &mut output::progress)?;
    if args.detach || args.wait {
        return Ok(0);
    }
    let code = logs::attach(&dir, &watched, logs::Style::Prefixed)?;
    if policy == Policy::AbortOnExit {
        return Ok(code);
    }
    // as docker compose: the containers stay, stopped
    let stop = Request::Stop {
        services: Vec::new(),
        timeout: None,
    };
    adopt::ask(&dir, &stop, &mut output::progress)?;
    Ok(0)
}
