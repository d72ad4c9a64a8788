//! `sampan run`: one image as a pod with one service.

use std::collections::BTreeMap;

use anyhow::{Context, bail};

use super::logs::{Followed, Follower};
use super::notify::{Manager, Message};
use super::up::Pull;
use super::{Global, Outcome, attach, context, logs, output};
use crate::compose::project::PullPolicy;
use crate::compose::{self, LoadRequest};
use crate::image::PullOptions;
use crate::pod::follow::{self, From};
use crate::pod::layout::PodDir;
use crate::pod::record::Policy;
use crate::pod::teardown::Purpose;
use crate::pod::up::{UpSpec, stop_and_remove, up};
use crate::pod::{self, adopt};

/// Options of `run`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sampan run --rm alpine echo hello\n  sampan run --rm -it alpine sh\n  sampan run -d --name cache -p 6379:6379 redis\n  sampan run --rm -v ./data:/data:ro -e LEVEL=debug tool check /data"
)]
pub struct Args {
    /// Go on in the background
    #[arg(short, long)]
    detach: bool,
    /// Our standard input is the program's
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// Remove the pod when the program has ended
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Name of the pod; made up when not given
    #[arg(long)]
    name: Option<String>,
    /// Variable as `NAME=value`, or `NAME` to pass ours on; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Port as `[IP:]HOST:POD[/PROTOCOL]`; may be given several times
    #[arg(short = 'p', long = "publish", value_name = "PORT")]
    publish: Vec<String>,
    /// Mount as `SOURCE:TARGET[:OPTIONS]`; may be given several times
    #[arg(short, long, value_name = "MOUNT")]
    volume: Vec<String>,
    /// Network: a CNI list by name; may be given several times
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    /// User as `user[:group]`
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Working folder inside
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Program to run instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Most memory, such as 512m
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// CPUs' worth of time, such as 1.5
    #[arg(long, value_name = "CPUS")]
    cpus: Option<String>,
    /// Most processes
    #[arg(long, value_name = "COUNT")]
    pids_limit: Option<i64>,
    /// Root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Capability to add; may be given several times
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Capability to drop; may be given several times
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// When to pull the image: `always`, `missing` or `never`
    #[arg(long, value_name = "WHEN", hide_possible_values = true)]
    pull: Option<Pull>,
    /// Allow plain http to registries that are not on this machine
    #[arg(long)]
    plain_http: bool,
    /// Image
    image: String,
    /// Arguments instead of the image's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Name of the only service.
const SERVICE: &str = "main";

/// What stands for the file's name in messages.
const LABEL: &str = "command line";

/// A message without the places in the file that nobody wrote.
fn plain(message: &str) -> String {
    let key = format!("services.{SERVICE}.");
    let lines = message.lines().map(|line| match line.split_once(&key) {
        Some((place, rest)) if place.starts_with(LABEL) => rest,
        _ => line,
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    text.replace(&format!("service {SERVICE}: "), "")
}

/// Brings the pod up, follows it, ends with its exit code.
pub fn run(global: &Global, args: Args) -> Outcome {
    let name = match args.name.clone().or_else(|| global.project_name.clone()) {
        Some(name) => name,
        None => format!("run-{:08x}", fastrand::u32(..)),
    };
    context::check_name(&name)?;
    let manager = Manager::from_environment()?;
    let folders = global.folders()?;
    let dir = folders.pod(&name);
    if adopt::load(&dir)?.is_some() {
        bail!("there is a pod {name} already; `sampan -p {name} down` removes it");
    }
    let text = compose_text(&args);
    let loaded = compose::load_text(
        &text,
        LABEL,
        &LoadRequest {
            files: Vec::new(),
            working_dir: std::env::current_dir().context("current folder")?,
            project_name: Some(name.clone()),
            environment: BTreeMap::new(),
            env_files: Vec::new(),
            profiles: Vec::new(),
        },
    )
    .map_err(|error| anyhow::anyhow!(plain(&error.message)))?;
    let request = UpSpec {
        folders: folders.clone(),
        project: loaded.project,
        services: Vec::new(),
        cgroup_parent: global.cgroup_parent.clone(),
        cni: global.cni()?,
        policy: Policy::Compose,
        pull: args.pull.map(PullPolicy::from),
        pull_options: PullOptions {
            plain_http: args.plain_http,
            ..PullOptions::default()
        },
        force_recreate: false,
        renew_volumes: false,
        wait: false,
        detach: false,
        owner: None,
        hooks_dir: global.hooks_dir(),
    };
    up(request, &output::Bars::new(), &mut |_, _| {}).map_err(|error| match error {
        pod::Error::Start {
            code,
            message,
            service,
        } => pod::Error::Start {
            code,
            message: plain(&message),
            service,
        },
        other => other,
    })?;
    if args.detach {
        return output::print(&format!("{name}\n"));
    }
    manager.tell(&[Message::Ready {
        main: std::process::id() as i32,
    }]);
    let code = match args.interactive || args.tty {
        true => {
            let stdin = match args.interactive {
                true => attach::Stdin::Read,
                false => attach::Stdin::Size,
            };
            attach::attach(&dir, SERVICE, From::Start, stdin)?
        }
        false => follow_output(&dir, &manager)?,
    };
    // it was left alone, and goes on
    if args.rm && follow::run(&dir, SERVICE)?.is_none() {
        let _lock = adopt::lock(&folders, &name)?;
        stop_and_remove(&folders, &dir, None, Purpose::End, &mut |_, _| {})?;
    }
    Ok(code)
}

/// Shows what it prints to its end: the exit code.
fn follow_output(dir: &PodDir, manager: &Manager) -> Outcome {
    let watched = [SERVICE.to_string()];
    let mut follower = Follower::new(dir, &watched, logs::Style::Raw, manager)?;
    loop {
        // there is no file to read again
        if let Followed::Ended(code) = follower.follow(&[])? {
            return Ok(code);
        }
    }
}

/// The options as a compose file, so that each means just what it means there. JSON is YAML.
fn compose_text(args: &Args) -> String {
    // what a person types is meant as it stands
    let plain = |text: &String| text.replace('$', "$$");
    let list = |texts: &[String]| texts.iter().map(plain).collect::<Vec<_>>();
    let mut service = serde_json::json!({
        "image": plain(&args.image),
        "read_only": args.read_only,
        "tty": args.tty,
        "stdin_open": args.interactive,
    });
    let mut set = |key: &str, value: serde_json::Value| {
        let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if !empty {
            service[key] = value;
        }
    };
    set("command", list(&args.command).into());
    // a name alone passes ours on
    let environment: Vec<String> = args
        .env
        .iter()
        .filter_map(|entry| match entry.contains('=') {
            true => Some(entry.clone()),
            false => std::env::var(entry)
                .ok()
                .map(|value| format!("{entry}={value}")),
        })
        .collect();
    set("environment", list(&environment).into());
    set("ports", list(&args.publish).into());
    set("volumes", list(&args.volume).into());
    set("cap_add", list(&args.cap_add).into());
    set("cap_drop", list(&args.cap_drop).into());
    set("user", args.user.as_ref().map(plain).into());
    set("working_dir", args.workdir.as_ref().map(plain).into());
    set(
        "entrypoint",
        args.entrypoint.iter().map(plain).collect::<Vec<_>>().into(),
    );
    set("mem_limit", args.memory.as_ref().map(plain).into());
    set("cpus", args.cpus.as_ref().map(plain).into());
    set("pids_limit", args.pids_limit.into());
    let mut file = serde_json::json!({});
    let named: Vec<&String> = args.volume.iter().filter(|v| is_named(v)).collect();
    if !named.is_empty() {
        file["volumes"] = named
            .iter()
            .filter_map(|v| {
                Some((
                    v.split(':').next()?.to_string(),
                    serde_json::json!({"name": v.split(':').next()}),
                ))
            })
            .collect::<serde_json::Map<_, _>>()
            .into();
    }
    match args.network.as_slice() {
        [] => {}
        names => {
            service["networks"] = names.to_vec().into();
            file["networks"] = names
                .iter()
                .map(|n| (n.clone(), serde_json::json!({"external": true, "name": n})))
                .collect::<serde_json::Map<_, _>>()
                .into();
        }
    }
    file["services"] = serde_json::json!({ SERVICE: service });
    file.to_string()
}

/// `name:/target`, not a path.
fn is_named(volume: &str) -> bool {
    let source = volume.split(':').next().unwrap_or_default();
    volume.contains(':') && !source.starts_with(['/', '.', '~'])
}

#[cfg(test)]
mod tests {
    #[test]
    fn messages_without_the_places() {
        for (message, shown) in [
            (
                "command line:1:52: services.main.ports[0]: bad",
                "ports[0]: bad",
            ),
            (
                "command line:1: services.main.image: a\ncommand line:1:2: services.main.user: b",
                "image: a\nuser: b",
            ),
            (
                "service main: exec \"x\": not found",
                "exec \"x\": not found",
            ),
            ("read /services.main.x: gone", "read /services.main.x: gone"),
        ] {
            assert_eq!(super::plain(message), shown);
        }
    }
}
