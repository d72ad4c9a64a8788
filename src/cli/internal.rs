//! `sampan internal …`: the steps of a pod that run as processes of their own. A failure goes to `error.json` in the folder.
//! They are no part of the command line that people see: not in the help, completions or man pages.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};

use super::exec::{self, container_code};
use super::{Outcome, output, shell};
use crate::container::{self, CreateRequest};
use crate::executor::mesos::launch;
use crate::executor::remote::{self, Listen, Server};
use crate::image::Progress;
use crate::pod::control::Answer;
use crate::pod::layout::{Folders, PodDir};
use crate::pod::record::{self, Failure, Pod, ProcessId};
use crate::pod::supervisor::probe::TIMED_OUT;
use crate::pod::up::{self, UpSpec};
use crate::pod::{Error, hooks, keeper, lock, sandbox, teardown, volumes};

/// Exit code of a step whose supervisor is gone.
const ORPHANED: u8 = 125;

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
    /// Bring up the pod that standard input describes (`UpSpec`): lines of JSON (`Answer`) tell how it goes, the last one is
    /// `done` or `failed`. SIGTERM and SIGINT undo it
    Up,
    /// Run the hook of a pod that is due
    Hook {
        /// Pod folder
        dir: PathBuf,
        /// At which point
        at: String,
        /// Which of those at that point
        next: usize,
    },
    /// Names for a shell to complete: services of this folder's pod, tasks of frameworks
    Names,
    /// Goes on removing the pod in a folder
    Remover {
        /// Pod folder
        dir: PathBuf,
    },
    /// The real executor below the process that a Mesos agent started
    MesosExecutor {
        /// No other follows it: why
        #[arg(long)]
        last: Option<String>,
        /// An earlier one was asked to end
        #[arg(long)]
        terminated: bool,
        /// The command line of that process
        #[arg(last = true)]
        words: Vec<OsString>,
    },
    /// Make the pod of a launch
    MesosLaunch {
        /// Folder of the executor
        dir: PathBuf,
        /// Number of the launch
        number: u64,
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
    /// Make the container of a service folder and start its program
    Launch(Turn),
    /// Open the gate of a container that was made but not started
    Start(Turn),
    /// Answer for an executor on the socket that is standard input, and on the one that is standard output
    Remote {
        /// Folder of images and data
        root: PathBuf,
        /// Folder of running pods
        state: PathBuf,
        /// Owner of the pods
        pid: i32,
        /// When it started
        start_time: u64,
        /// Address, certificates, key and tokens of standard output
        #[arg(num_args = 4)]
        listen: Vec<String>,
    },
    /// Remove the container
    Delete(Turn),
    /// Run a program in a service, for at most so long. Standard input is a pipe to write to: why the exit code is not the program's
    Exec {
        /// Pod folder
        dir: PathBuf,
        /// Service
        service: String,
        /// Milliseconds; 0 for no limit
        #[arg(long)]
        timeout_ms: u64,
        /// `user[:group]`
        #[arg(long)]
        user: Option<String>,
        /// Name of a variable of ours to pass on; may be given several times
        #[arg(long)]
        env: Vec<String>,
        /// Working folder
        #[arg(long)]
        workdir: Option<String>,
        /// With all capabilities
        #[arg(long)]
        privileged: bool,
        /// Program and arguments
        #[arg(last = true)]
        command: Vec<String>,
    },
}

/// What works on a container for a supervisor.
#[derive(Debug, clap::Args)]
pub struct Turn {
    /// Service folder
    dir: PathBuf,
    /// The supervisor
    parent: i32,
}

/// Runs the step that the process's own arguments name.
pub fn run() -> Outcome {
    match Cli::parse_from(std::env::args_os().skip(1)).step {
        Command::Keeper { dir } => Ok(keeper::run(&dir).map(|()| 0)?),
        Command::Up => up(),
        Command::Hook { dir, at, next } => Ok(hooks::step(&dir, &at, next).map(|()| 0)?),
        Command::Names => shell::names(),
        Command::Remover { dir } => Ok(teardown::keep_trying(&dir).map(|()| 0)?),
        Command::MesosExecutor {
            last,
            terminated,
            words,
        } => super::executor(words, last, terminated),
        Command::MesosLaunch { dir, number } => Ok(launch::run(&dir, number)),
        Command::Remote {
            root,
            state,
            pid,
            start_time,
            listen,
        } => {
            let folders = Folders { root, state };
            answer_for(folders, ProcessId { pid, start_time }, &listen)
        }
        Command::VolumesUp { dir } => told(&dir, volumes::populate(&dir)),
        Command::SandboxUp { dir } => told(&dir, sandbox::up(&dir)),
        Command::SandboxChange { dir } => told(&dir, sandbox::change(&dir)),
        Command::Launch(turn) => {
            crate::sys::seal::ensure()?;
            turn.take(launch_container)
        }
        Command::Start(turn) => turn.take(|dir| container::start(dir).map_err(from_container)),
        Command::Delete(turn) => turn.take(teardown::remove_container),
        Command::Exec {
            dir,
            service,
            timeout_ms,
            user,
            env,
            workdir,
            privileged,
            command,
        } => {
            crate::sys::seal::ensure()?;
            let request = exec::Request {
                command,
                user,
                env,
                workdir,
                tty: false,
                session: false,
                privileged,
            };
            inside(&dir, &service, timeout_ms, request)
        }
    }
}

fn inside(dir: &Path, service: &str, timeout_ms: u64, request: exec::Request) -> Outcome {
    let mut report = File::from(rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    // whoever asked is gone with its question: the program is told to end
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let mut tell = |code: u8, message: String| -> Outcome {
        report.write_all(&serde_json::to_vec(&Failure { code, message })?)?;
        Ok(code)
    };
    let ran = || {
        let pod: Pod = record::read(&dir.join("pod.json"))?
            .ok_or_else(|| Error::Other(format!("no pod in {}", dir.display())))?;
        let limit = (timeout_ms > 0).then_some(timeout_ms);
        exec::execute(&PodDir::open(dir, &pod.root), service, request, limit)
    };
    match ran() {
        Ok(Some(code)) => Ok(code),
        Ok(None) => tell(TIMED_OUT, String::new()),
        Err(error) => {
            let code = error.downcast_ref::<Error>().map_or(125, Error::exit_code);
            tell(code, format!("{error:#}"))
        }
    }
}

fn answer_for(folders: Folders, owner: ProcessId, listen: &[String]) -> Outcome {
    let tcp = match listen {
        [address, tls_cert, tls_key, tokens] => {
            let listen = Listen {
                address: address.parse().context("address")?,
                tls_cert: tls_cert.into(),
                tls_key: tls_key.into(),
                tokens: tokens.into(),
            };
            let listener = std::io::stdout().as_fd().try_clone_to_owned()?;
            Some((listener.into(), listen))
        }
        _ => None,
    };
    remote::serve(Server {
        folders,
        owner,
        unix: std::io::stdin().as_fd().try_clone_to_owned()?.into(),
        tcp,
    })
    .map(|()| 0)
}

/// Most bytes of an [`UpSpec`].
const SPEC_LIMIT: u64 = 16 << 20;

/// A line for whoever started us; one who went away is no reason to stop half-way.
fn say(answer: &Answer) {
    let mut out = std::io::stdout().lock();
    let _ = serde_json::to_writer(&mut out, answer);
    let _ = out.write_all(b"\n").and_then(|()| out.flush());
}

fn say_progress(service: &str, text: &str) {
    say(&Answer::Progress {
        service: service.to_string(),
        text: text.to_string(),
    });
}

/// Pulls as lines, one a second.
struct Pulls(Mutex<Option<Instant>>);

impl Progress for Pulls {
    fn advance(&self, what: &str, done: u64, total: u64) {
        let Ok(mut last) = self.0.lock() else { return };
        if last.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return;
        }
        *last = Some(Instant::now());
        say_progress("", &format!("pull {what}: {done} of {total} bytes"));
    }
}

fn up() -> Outcome {
    let input = std::io::stdin().lock().take(SPEC_LIMIT);
    let brought = serde_json::from_reader(input)
        .map_err(|error| Error::Other(format!("standard input: not an UpSpec: {error}")))
        .and_then(|spec: UpSpec| up::up(spec, &Pulls(Mutex::new(None)), &mut say_progress));
    let error = match brought {
        Ok(()) => {
            say(&Answer::Done {
                exit_codes: Vec::new(),
            });
            return Ok(0);
        }
        Err(error) => error,
    };
    let code = error.exit_code();
    say(&Answer::Failed {
        code,
        message: error.to_string(),
        service: error.service().map(str::to_string),
    });
    Ok(code)
}

impl Turn {
    /// Holds the service's lock to the end: when the supervisor is killed, its successor waits for us. One that was killed before that
    /// has a successor that may be ahead of us: nothing is done, and nothing told.
    fn take(self, step: impl FnOnce(&Path) -> Result<(), Error>) -> Outcome {
        let dir = &self.dir;
        let held = match lock::acquire(&dir.join("lock")) {
            Ok(held) => held,
            Err(error) => return told(dir, Err(error)),
        };
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        if parent != Some(self.parent) {
            return Ok(ORPHANED);
        }
        let done = told(dir, step(dir));
        drop(held);
        done
    }
}

/// Two steps, the record of the container between them: a successor of a killed supervisor goes on from there.
fn launch_container(dir: &Path) -> Result<(), Error> {
    let path = dir.join("create.json");
    let request: CreateRequest =
        record::read(&path)?.ok_or_else(|| Error::Other(format!("no {}", path.display())))?;
    let config = container::Config::read(&request.bundle).map_err(from_container)?;
    let terminal = config.spec.process().as_ref().and_then(|it| it.terminal());
    // where the supervisor waits for the terminal; the program has that as standard input then
    let console = match terminal {
        Some(true) => Some(std::io::stdin().as_fd().try_clone_to_owned()),
        _ => None,
    };
    let console = console
        .transpose()
        .map_err(Error::io("use the standard input of launch for", dir))?;
    container::create_from(&request, &config, console).map_err(from_container)?;
    container::start(dir).map_err(from_container)
}

fn from_container(error: container::Error) -> Error {
    Error::Start {
        code: container_code(&error),
        message: error.to_string(),
        service: None,
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
    if let Err(unwritten) = record::put(&dir.join("error.json"), &failure) {
        output::error(&format!("{}; {unwritten}", failure.message));
    }
    Ok(code)
}
