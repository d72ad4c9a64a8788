//! `sampan exec`.

use anyhow::Context;
use serde_json::json;

use super::{Global, Outcome, console, remote, terminal};
use crate::container;
use crate::executor::remote::SESSION_ENV;
use crate::pod::adopt;
use crate::pod::bundle::Prepared;
use crate::pod::layout::PodDir;
use crate::pod::plan;
use crate::pod::record::{self, Phase, Status};
use crate::pod::users::Accounts;

/// Options of `exec`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sampan exec -it web sh\n  sampan exec -T db pg_dump app > app.sql\n  sampan exec -u 0 -e DEBUG=1 app ./fix"
)]
pub struct Args {
    /// Keep standard input open (always so; for the habit)
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// No terminal (the default; for the habit)
    #[arg(short = 'T', long = "no-tty", conflicts_with = "tty")]
    no_tty: bool,
    /// User as `user[:group]`, names or numbers
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Variable as `NAME=value`, or `NAME` to pass ours on; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working folder inside
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// SIGPWR kills the program and its process group: whoever wanted it is gone. Variables come as `session.NAME`
    #[arg(long, hide = true)]
    session: bool,
    /// Service, or a task of a framework as `TASK` or `TASK/SERVICE`
    service: String,
    /// Program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Args {
    /// What an executor is asked to run.
    fn into_program(self) -> anyhow::Result<remote::Program> {
        if self.workdir.is_some() {
            anyhow::bail!("--workdir cannot be asked of --remote; use `sh -c 'cd DIR && …'`");
        }
        let pair = |entry: String| match entry.split_once('=') {
            Some((name, value)) => Some((name.to_string(), value.to_string())),
            None => std::env::var(&entry).ok().map(|value| (entry, value)),
        };
        Ok(remote::Program {
            target: self.service,
            command: self.command,
            user: self.user,
            env: self.env.into_iter().filter_map(pair).collect(),
            tty: self.tty,
        })
    }
}

/// Runs the program; the exit code is its own.
pub fn run(global: &Global, args: Args) -> Outcome {
    if global.remote.remote.is_some() {
        return remote::exec(&global.remote, args.into_program()?);
    }
    if args.session {
        // whoever asked for it was killed
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::POWER))?;
    }
    // the container must not get at this program through /proc (CVE-2019-5736)
    crate::sys::seal::ensure()?;
    let (dir, service) = global.target_service(args.service)?;
    let request = Request {
        command: args.command,
        user: args.user,
        env: match args.session {
            true => args
                .env
                .iter()
                .filter_map(|name| of_session(name))
                .collect(),
            false => args.env,
        },
        workdir: args.workdir,
        tty: args.tty,
        session: args.session,
        privileged: false,
    };
    // without a limit there is a code
    execute(&dir, &service, request, None).map(|code| code.unwrap_or(255))
}

/// A variable of a session, whose names are others in our own environment.
fn of_session(name: &str) -> Option<String> {
    let value = std::env::var(format!("{SESSION_ENV}{name}")).ok()?;
    Some(format!("{name}={value}"))
}

/// What to run in a service.
pub struct Request {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// `NAME=value` or `NAME`.
    pub env: Vec<String>,
    /// Working folder.
    pub workdir: Option<String>,
    /// With a terminal.
    pub tty: bool,
    /// For the API of an executor: [`console::wait_until`].
    pub session: bool,
    /// With all capabilities.
    pub privileged: bool,
}

/// Runs a program in a service's container and waits for it, at most `timeout_ms` (then it is killed: no exit code).
pub fn execute(
    dir: &PodDir,
    service: &str,
    request: Request,
    timeout_ms: Option<u64>,
) -> anyhow::Result<Option<u8>> {
    let pod = adopt::load(dir)?.with_context(|| format!("no pod {} here", dir.name))?;
    let prepared = Prepared::new(&pod, dir, service)?;
    must_run(dir, service, request.session)?;
    let mut process = prepared.process()?;
    process["args"] = json!(request.command);
    process["terminal"] = json!(request.tty);
    if let Some(user) = &request.user {
        let image = pod.images.get(service).cloned().unwrap_or_default();
        let mut layers = image.layers;
        layers.push(dir.service(service).data.join("upper"));
        let user = Accounts::read(&layers)
            .resolve(user, &[])
            .map_err(|why| anyhow::anyhow!("--user: {why}"))?;
        process["user"] = json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups});
        let held = if user.uid == 0 {
            process["capabilities"]["bounding"].clone()
        } else {
            json!([])
        };
        process["capabilities"]["effective"] = held.clone();
        process["capabilities"]["permitted"] = held;
        add_env(&mut process, &format!("HOME={}", user.home));
    }
    if request.privileged {
        let all = plan::all_capabilities().map_err(anyhow::Error::msg)?;
        for set in ["bounding", "effective", "permitted"] {
            process["capabilities"][set] = json!(all);
        }
    }
    if request.tty {
        let terminal = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_string());
        add_env(&mut process, &format!("TERM={terminal}"));
        if let Some((height, width)) = terminal::size() {
            process["consoleSize"] = json!({"height": height, "width": width});
        }
    }
    for entry in &request.env {
        match (entry.contains('='), std::env::var(entry)) {
            (true, _) => add_env(&mut process, entry),
            (false, Ok(value)) => add_env(&mut process, &format!("{entry}={value}")),
            (false, Err(_)) => {}
        }
    }
    if let Some(dir) = request.workdir {
        process["cwd"] = json!(dir);
    }
    let process = serde_json::from_value(process).context("process")?;
    let status: Status = record::read(&dir.service(service).status())?.unwrap_or_default();
    if !matches!(status.phase, Phase::Running | Phase::Stopping) {
        return Err(not_running(dir, service, request.session)?);
    }
    let signals = console::Signals::take()?;
    let running = match container::exec(&dir.service(service).dir, &process) {
        Ok(running) => running,
        Err(error) => {
            let code = container_code(&error);
            let message = match error {
                // says where itself
                container::Error::Other(text) => text,
                error => format!("exec in {service}: {error}"),
            };
            return Err(refusal(service, code, message));
        }
    };
    console::wait_until(running, signals, timeout_ms, request.session)
}

/// Says what is the case instead of what is not there.
fn must_run(dir: &PodDir, service: &str, session: bool) -> anyhow::Result<()> {
    let folder = dir.service(service);
    let state = container::load(&folder.dir).map_err(|error| anyhow::anyhow!("{error}"))?;
    if state.is_some_and(|state| container::status(&state) != container::Status::Stopped) {
        return Ok(());
    }
    Err(not_running(dir, service, session)?)
}

/// What became of a service that does not run. Whoever asks from elsewhere, in a `session`, cannot start it.
pub fn not_running(dir: &PodDir, service: &str, session: bool) -> anyhow::Result<anyhow::Error> {
    let status = record::read::<Status>(&dir.service(service).status())?.unwrap_or_default();
    let is = match (status.phase, status.exit_code) {
        (Phase::Exited, Some(code)) => format!("exited with code {code}"),
        (Phase::Failed, _) => "could not be started".to_string(),
        (Phase::Waiting, _) => "has not been started".to_string(),
        _ => "is not running".to_string(),
    };
    let remedy = match session {
        true => String::new(),
        false => format!("; `sampan start {service}` starts it"),
    };
    let message = format!("service {service} {is}{remedy}");
    Ok(refusal(service, 125, message))
}

fn refusal(service: &str, code: u8, message: String) -> anyhow::Error {
    let service = Some(service.to_string());
    crate::pod::Error::Start {
        code,
        message,
        service,
    }
    .into()
}

/// Later entries win: an earlier one of the same name goes.
fn add_env(process: &mut serde_json::Value, entry: &str) {
    let name = entry.split('=').next().unwrap_or(entry);
    if let Some(list) = process["env"].as_array_mut() {
        list.retain(|old| {
            old.as_str()
                .is_none_or(|old| old.split('=').next() != Some(name))
        });
        list.push(json!(entry));
    }
}

/// Exit code as people know them.
pub fn container_code(error: &container::Error) -> u8 {
    match error {
        container::Error::CommandNotFound(_) => 127,
        container::Error::CommandNotRunnable(_) => 126,
        _ => 125,
    }
}
