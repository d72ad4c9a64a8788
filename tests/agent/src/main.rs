//! `mesos-test-agent`: runs an executor without Mesos and prints what happens as JSON lines.
//!
//! ```text
//! mesos-test-agent --task web.json -- sampan executor mesos
//! ```
//! A file holds a TaskInfo as JSON, or a list of them, which is a task group. Of a TaskInfo only what matters has to
//! stand there; a task with a command of its own becomes a group of one, since no master lets it be launched
//! otherwise. It ends with 0 when all tasks have finished. SIGINT and SIGTERM are a SHUTDOWN.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Weak};
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};
use test_agent::{Agent, Launcher, Settings, Transport, task};

/// Runs an executor without Mesos.
#[derive(Debug, Parser)]
struct Arguments {
    /// A task or a list of them (a group); may be given several times
    #[arg(long = "task", value_name = "FILE", required = true)]
    tasks: Vec<PathBuf>,
    /// Launches each this many times, with `-0`, `-1`, … behind the ids
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// How the executor reaches the agent: tcp, tls or socket
    #[arg(long, default_value = "tcp")]
    transport: String,
    /// A capability of the framework, such as TASK_KILLING_STATE; may be given several times
    #[arg(long = "capability", value_name = "NAME")]
    capabilities: Vec<String>,
    /// A variable for the executor; may be given several times
    #[arg(long = "env", value_name = "NAME=VALUE")]
    environment: Vec<String>,
    /// The framework does not checkpoint
    #[arg(long)]
    no_checkpoint: bool,
    /// Executors must show a token
    #[arg(long)]
    token: bool,
    /// Starts the executor in cgroups of its own
    #[arg(long)]
    cgroup: bool,
    /// Keeps the agent's folder here
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Stops all tasks after this many seconds
    #[arg(long, value_name = "SECONDS")]
    shutdown_after: Option<f64>,
    /// Prints only the statuses
    #[arg(long)]
    quiet: bool,
    /// The executor's command
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mesos-test-agent: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> Result<bool, String> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // before there is another thread
    signals.thread_block().map_err(|error| error.to_string())?;
    let mut launches = Vec::new();
    for file in &arguments.tasks {
        launches.push(read(file)?);
    }
    let mut settings = Settings {
        transport: match arguments.transport.as_str() {
            "tcp" => Transport::Tcp,
            "tls" => Transport::Tls,
            "socket" => Transport::DomainSocket,
            other => return Err(format!("transport {other}: not tcp, tls or socket")),
        },
        checkpoint: !arguments.no_checkpoint,
        token: arguments.token,
        folder: arguments.folder,
        launcher: Launcher {
            cgroup: arguments.cgroup,
            ..Launcher::default()
        },
        ..Settings::default()
    };
    settings.capabilities.extend(arguments.capabilities);
    for variable in &arguments.environment {
        let Some((name, value)) = variable.split_once('=') else {
            return Err(format!("variable {variable}: not NAME=VALUE"));
        };
        settings.environment.push((name.into(), value.into()));
    }
    let agent = Arc::new(Agent::new(settings));
    let quiet = arguments.quiet;
    agent.follow(match quiet {
        true => |line| {
            if line.what == "status" {
                println!("{}", line.value);
            }
        },
        false => |line| println!("{}", json!({"at": line.at, line.what: line.value})),
    });
    let mut names = Vec::new();
    for number in 0..arguments.count.unwrap_or(1) {
        for (tasks, group) in &launches {
            let tasks = numbered(tasks, arguments.count.map(|_| number));
            let ids = tasks.iter().map(|task| task["task_id"]["value"].as_str());
            names.extend(ids.flatten().map(str::to_owned));
            match (group, tasks.as_slice()) {
                (false, [task]) => agent.launch(task.clone()),
                _ => agent.launch_group(tasks),
            }
        }
    }
    let command: Vec<&str> = arguments.command.iter().map(String::as_str).collect();
    agent.start_executor(&command);
    let shutdown = |agent: &Weak<Agent>| {
        if let Some(agent) = agent.upgrade() {
            agent.shutdown();
        }
    };
    let at_signal = Arc::downgrade(&agent);
    std::thread::spawn(move || {
        let _ = signals.wait();
        shutdown(&at_signal);
    });
    if let Some(seconds) = arguments.shutdown_after {
        let later = Arc::downgrade(&agent);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs_f64(seconds));
            shutdown(&later);
        });
    }
    agent.await_over(&names);
    if agent.exit().is_none() {
        agent.shutdown();
    }
    agent.await_end();
    for violation in agent.violations() {
        eprintln!("mesos-test-agent: against the rules: {violation}");
    }
    let finished = |name: &String| {
        agent
            .states(name)
            .last()
            .is_some_and(|s| s == "TASK_FINISHED")
    };
    Ok(names.iter().all(finished))
}

/// Tasks of a file, and whether they are a group.
fn read(file: &PathBuf) -> Result<(Vec<Value>, bool), String> {
    let wrong = |error: String| format!("{}: {error}", file.display());
    let bytes = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let (list, group) = match value {
        Value::Array(list) => (list, true),
        one => {
            let group = one.get("command").is_some();
            (vec![one], group)
        }
    };
    let mut tasks = Vec::new();
    for fields in list {
        let id = fields["task_id"]["value"]
            .as_str()
            .or(fields["name"].as_str());
        let id = id.ok_or_else(|| wrong("a task without a name".into()))?;
        tasks.push(task(id, fields.clone()));
    }
    Ok((tasks, group))
}

fn numbered(tasks: &[Value], number: Option<usize>) -> Vec<Value> {
    let mut tasks = tasks.to_vec();
    if let Some(number) = number {
        for task in &mut tasks {
            let id = task["task_id"]["value"].as_str().unwrap_or_default();
            task["task_id"]["value"] = json!(format!("{id}-{number}"));
        }
    }
    tasks
}
