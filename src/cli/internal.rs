//! `sampan internal …`: the steps of a pod that run as processes of their own. A failure goes to `error.json` in the folder.
//! They are no part of the command line that people see: not in the help, completions or man pages.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use super::exec::{self, container_code};
use super::{Outcome, output};
use crate::container::{self, CreateRequest};
use crate::pod::layout::PodDir;
use crate::pod::record::{self, Failure, Pod};
use crate::pod::{Error, keeper, lock, sandbox, supervisor, teardown, volumes};
use crate::sys::seal;

/// Arguments from `internal` on.
#[derive(Debug, Parser)]
#[command(name = "sampan internal")]
struct Cli {
    #[command(subcommand)]
    step: Command,
}

/// The process was started for a step.
pub fn is_meant() -> bool {
    std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == "internal")
}

/// The steps.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keeper of the pod in a folder
    Keeper {
        /// Pod folder
        dir: PathBuf,
    },
    /// Goes on removing the pod in a folder
    Remover {
        /// Pod folder
        dir: PathBuf,
    },
    /// Supervisor of the pod in a folder
    Supervisor {
        /// Pod folder
        dir: PathBuf,
    },
    /// Fill new volumes
    VolumesUp {
        /// Pod folder
        dir: PathBuf,
    },
    /// Make network and cgroup
    SandboxUp {
        /// Pod folder
        dir: PathBuf,
    },
    /// Bring networks and ports of a running pod to what its records want
    SandboxChange {
        /// Pod folder
        dir: PathBuf,
    },
    /// Make the container of a service folder, up to its gate
    Create {
        /// Service folder
        dir: PathBuf,
    },
    /// Open the gate
    Start {
        /// Service folder
        dir: PathBuf,
    },
    /// Remove the container
    Delete {
        /// Service folder
        dir: PathBuf,
    },
    /// Run a program in a service, for at most so long
    Exec {
        /// Pod folder
        dir: PathBuf,
        /// Service
        service: String,
        /// Milliseconds
        #[arg(long)]
        timeout_ms: u64,
        /// Program and arguments
        #[arg(last = true)]
        command: Vec<String>,
    },
}

/// Runs the step that the process's own arguments name.
pub fn run() -> Outcome {
    match Cli::parse_from(std::env::args_os().skip(1)).step {
        Command::Keeper { dir } => Ok(keeper::run(&dir).map(|()| 0)?),
        Command::Remover { dir } => Ok(teardown::keep_trying(&dir).map(|()| 0)?),
        Command::Supervisor { dir } => Ok(supervisor::run(&dir).map(|()| 0)?),
        Command::VolumesUp { dir } => told(&dir, volumes::populate(&dir)),
        Command::SandboxUp { dir } => told(&dir, sandbox::up(&dir)),
        Command::SandboxChange { dir } => told(&dir, sandbox::change(&dir)),
        Command::Create { dir } => {
            let held = seal::hold()?;
            told(&dir, create(&dir, held))
        }
        Command::Start { dir } => told(&dir, start(&dir)),
        Command::Delete { dir } => told(&dir, delete(&dir)),
        Command::Exec {
            dir,
            service,
            timeout_ms,
            command,
        } => {
            seal::ensure()?;
            let pod: Pod = record::read(&dir.join("pod.json"))?
                .ok_or_else(|| Error::Other(format!("no pod in {}", dir.display())))?;
            let request = exec::Request {
                command,
                user: None,
                env: Vec::new(),
                workdir: None,
                tty: false,
            };
            exec::execute(
                &PodDir::open(&dir, &pod.root),
                &service,
                request,
                Some(timeout_ms),
            )
        }
    }
}

// Each holds the service's lock to its end: when the supervisor was killed, its successor waits for them.

fn create(dir: &Path, held: seal::Held) -> Result<(), Error> {
    let _only = lock::acquire(&dir.join("lock"))?;
    let path = dir.join("create.json");
    let request: CreateRequest =
        record::read(&path)?.ok_or_else(|| Error::Other(format!("no {}", path.display())))?;
    container::create(&request, held)
        .map(|_| ())
        .map_err(from_container)
}

fn start(dir: &Path) -> Result<(), Error> {
    let _only = lock::acquire(&dir.join("lock"))?;
    container::start(dir).map_err(from_container)
}

fn delete(dir: &Path) -> Result<(), Error> {
    let _only = lock::acquire(&dir.join("lock"))?;
    teardown::remove_container(dir)
}

fn from_container(error: container::Error) -> Error {
    Error::Start {
        code: container_code(&error),
        message: error.to_string(),
    }
}

/// Leaves a failure where the supervisor looks for it: standard error is the container's.
fn told(dir: &Path, result: Result<(), Error>) -> Outcome {
    let Err(error) = result else { return Ok(0) };
    let code = match &error {
        Error::Start { code, .. } => *code,
        _ => 125,
    };
    let failure = Failure {
        code,
        message: error.to_string(),
    };
    if let Err(unwritten) = record::write(&dir.join("error.json"), &failure) {
        output::error(&format!("{}; {unwritten}", failure.message));
    }
    Ok(code)
}
