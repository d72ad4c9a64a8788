//! `sampan up`: for a person, and in the foreground for whoever starts programs (service managers, batch systems, cron).

use std::collections::BTreeMap;

use anyhow::Context;
use clap::ValueEnum;
use nix::sys::signal::{Signal, raise};

use super::logs::{Followed, Follower};
use super::notify::{Manager, Message};
use super::{Global, Outcome, context, logs, output};
use crate::cgroup::Cgroup;
use crate::compose::Project;
use crate::compose::project::{MountSource, PullPolicy};
use crate::image::PullOptions;
use crate::pod::control::Request;
use crate::pod::layout::PodDir;
use crate::pod::record::{self, Owner, Policy, ProcessId, Verdict};
use crate::pod::teardown::Purpose;
use crate::pod::up::{UpSpec, stop_and_remove, up};
use crate::pod::{self, adopt};

/// Options of `up`.
#[derive(Debug, clap::Args)]
#[command(
    // `-V` is compose's
    disable_version_flag = true,
    after_help = "Examples:\n  sampan up -d\n  sampan up -d --wait          until health checks pass\n  sampan up --rm --abort-on-container-failure    as a job, which leaves nothing\n  sampan -f a.yaml -f b.yaml up web"
)]
pub struct Args {
    /// Go on in the background
    #[arg(short, long)]
    detach: bool,
    /// Wait until health checks pass; implies -d, but for --rm and --abort-on-container-…
    #[arg(long)]
    wait: bool,
    /// When to pull images, whatever the file says: `always`, `missing` or `never`
    #[arg(long, value_name = "WHEN", hide_possible_values = true)]
    pull: Option<Pull>,
    /// Make containers again although nothing changed
    #[arg(long)]
    force_recreate: bool,
    /// Where containers are made again, make their volumes without a name anew too
    #[arg(short = 'V', long)]
    renew_anon_volumes: bool,
    /// Stop all services when one ends; its exit code is the command's
    #[arg(long, conflicts_with = "detach")]
    abort_on_container_exit: bool,
    /// Stop all services when one fails; its exit code is the command's
    #[arg(long, conflicts_with_all = ["detach", "abort_on_container_exit"])]
    abort_on_container_failure: bool,
    /// Remove the pod when it has ended, and also when this command is killed
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
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

impl Args {
    /// The command goes on as long as the pod.
    fn stays(&self) -> bool {
        !self.detach && (!self.wait || self.rm || self.policy() != Policy::Compose)
    }

    fn policy(&self) -> Policy {
        match (
            self.abort_on_container_exit,
            self.abort_on_container_failure,
        ) {
            (true, _) => Policy::AbortOnExit,
            (false, true) => Policy::FailPod,
            (false, false) => Policy::Compose,
        }
    }

    /// What is to be removed at the end is so too when this process is killed.
    fn owner(&self, project: &Project) -> anyhow::Result<Option<Owner>> {
        let owner = Owner {
            process: ProcessId::own()?,
            kind: "up".to_owned(),
            framework: String::new(),
            executor: String::new(),
            agent: String::new(),
            tasks: BTreeMap::new(),
            sandbox: project.working_dir.clone(),
        };
        Ok(self.rm.then_some(owner))
    }
}

/// Brings the pod up; in the foreground follows it until it ends or is interrupted.
pub fn run(global: &Global, args: Args) -> Outcome {
    let manager = Manager::from_environment()?;
    let dir = bring_up(global, &args)?;
    if !args.stays() {
        let keeper = record::read::<ProcessId>(&dir.keeper())?;
        manager.tell(&keeper.map_or(Vec::new(), |keeper| {
            vec![Message::Ready { main: keeper.pid }]
        }));
        return Ok(0);
    }
    let watched = dir.clone();
    manager.watch(move || adopt::ask(&watched, &Request::Ping, &mut |_, _| {}).is_ok())?;
    let code = follow(global, &args, &dir, &manager)?;
    manager.tell(&[Message::Stopping]);
    if args.rm {
        let folders = global.folders()?;
        let _lock = adopt::lock(&folders, &dir.name)?;
        stop_and_remove(&folders, &dir, None, Purpose::End, &mut output::progress)?;
        Cgroup::own()?.step_back()?;
    }
    Ok(code)
}

/// Shows what the pod prints until it has ended: its exit code.
fn follow(global: &Global, args: &Args, dir: &PodDir, manager: &Manager) -> Outcome {
    let mut ready = vec![Message::Ready {
        main: std::process::id() as i32,
    }];
    loop {
        let pod = adopt::load(dir)?.context("the pod was removed by another command")?;
        let watched: Vec<String> = match args.services.as_slice() {
            [] => pod.project.services.keys().cloned().collect(),
            named => named.to_vec(),
        };
        let mut follower = Follower::new(dir, &watched, logs::Style::Prefixed, manager)?;
        loop {
            match follower.follow(&ready)? {
                Followed::Ended(code) => return ended(args, dir, code),
                Followed::Reload => {
                    manager.tell(&[Message::reloading()]);
                    ready.truncate(1);
                    match reload(global, args, dir)? {
                        Reloaded::Same => {}
                        Reloaded::Anew => break,
                        Reloaded::Gone => return Ok(0),
                    }
                }
            }
        }
    }
}

/// What the command ends with. `code`: of the service that ended first.
fn ended(args: &Args, dir: &PodDir, code: u8) -> Outcome {
    if !dir.record().exists() {
        // removed on request
        return Ok(0);
    }
    match args.policy() {
        Policy::AbortOnExit => Ok(code),
        Policy::FailPod => {
            // a supervisor that answers has written it
            adopt::ask(dir, &Request::Ping, &mut output::progress)?;
            let verdict = record::read::<Verdict>(&dir.verdict())?;
            let verdict = verdict.with_context(|| format!("no {}", dir.verdict().display()))?;
            if verdict.code() != 0 {
                output::error(&verdict.message);
            }
            Ok(verdict.code())
        }
        Policy::Compose => {
            if !args.rm {
                // as docker compose: the containers stay, stopped
                let stop = Request::Stop {
                    services: Vec::new(),
                    timeout: None,
                };
                adopt::ask(dir, &stop, &mut output::progress)?;
            }
            Ok(0)
        }
    }
}

/// What became of a pod whose files were read again.
enum Reloaded {
    /// It goes on.
    Same,
    /// Other containers run.
    Anew,
    /// It was to end while they were made.
    Gone,
}

/// Reads the files again, and makes the pod anew when they changed. What is wrong with them leaves it as it is.
fn reload(global: &Global, args: &Args, dir: &PodDir) -> anyhow::Result<Reloaded> {
    let created = |dir: &PodDir| Ok::<_, pod::Error>(adopt::load(dir)?.map(|pod| pod.created));
    let before = created(dir)?;
    let done = bring_up(global, args);
    let same = before.is_some() && created(dir)? == before;
    let Err(error) = done else {
        return Ok(if same { Reloaded::Same } else { Reloaded::Anew });
    };
    match error.downcast_ref() {
        // a request to end that came meanwhile, and ended the reload first: it is the pod's
        Some(pod::Error::Interrupted { signal }) if same => {
            raise(Signal::try_from(*signal)?)?;
        }
        Some(pod::Error::Interrupted { .. }) => return Ok(Reloaded::Gone),
        _ if !same => return Err(error.context("reload")),
        _ => output::error(&format!("reload: {error:#}; the pod goes on as it is")),
    }
    Ok(Reloaded::Same)
}

/// From the files to a pod that is up.
fn bring_up(global: &Global, args: &Args) -> anyhow::Result<PodDir> {
    let project = global.project()?;
    context::check_name(&project.name)?;
    let folders = global.folders()?;
    let dir = folders.pod(&project.name);
    check_binds(&project)?;
    let owner = args.owner(&project)?;
    let request = UpSpec {
        folders,
        project,
        services: args.services.clone(),
        cgroup_parent: global.cgroup_parent.clone(),
        cni: global.cni()?,
        policy: args.policy(),
        pull: args.pull.map(PullPolicy::from),
        pull_options: PullOptions {
            plain_http: args.plain_http,
            ..PullOptions::default()
        },
        force_recreate: args.force_recreate,
        renew_volumes: args.renew_anon_volumes,
        wait: args.wait,
        detach: false,
        owner,
        hooks_dir: global.hooks_dir(),
    };
    up(request, &output::Bars::new(), &mut output::progress)?;
    Ok(dir)
}

/// Host folders that a pod does not make are there.
fn check_binds(project: &Project) -> anyhow::Result<()> {
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
                        "{}: services.{}.volumes: {}",
                        mount.origin,
                        service.name,
                        path.display()
                    )
                })?;
            }
        }
    }
    Ok(())
}
