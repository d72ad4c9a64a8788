//! `sampan executor`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Global, Outcome, context, output};
use crate::cgroup::Cgroup;
use crate::executor::mesos::proto::Encoding;
use crate::executor::mesos::run::Options;
use crate::executor::mesos::task::labels::log_size;
use crate::executor::mesos::task::output::Bound;
use crate::executor::mesos::{run, shim};
use crate::executor::remote::Listen;

/// Which framework.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run tasks of a Mesos agent, which starts this; each LAUNCH or LAUNCH_GROUP becomes a pod
    Mesos(Mesos),
}

/// Options of `executor mesos`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples, as the command of an ExecutorInfo:\n  \
        sampan executor mesos\n  \
        sampan executor mesos --json --log-format json\n  \
        sampan executor mesos --linger forever\n  \
        sampan --root /data/sampan executor mesos --plain-http\n\n\
        Everything else comes from the agent, in variables MESOS_*. SIGTERM stops the tasks, SIGHUP changes to the program\n\
        that is on disk now and leaves the tasks alone.\n\n\
        Exit codes: 0 every task is over and reported, or the agent shut the executor down; 1 the agent was lost or refused us.")]
pub struct Mesos {
    /// Speak JSON with the agent, not protobuf
    #[arg(long)]
    json: bool,
    /// How to log on standard error
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
    /// Allow plain http to registries that are not on this machine
    #[arg(long)]
    plain_http: bool,
    /// Serve `exec`, `attach`, `logs` and `ps` on this address too, over TLS
    #[arg(long, value_name = "IP:PORT", requires_all = ["tls_cert", "tls_key", "tokens"])]
    listen: Option<SocketAddr>,
    /// Certificates for `--listen`, PEM
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_cert: Option<PathBuf>,
    /// Key for `--listen`, PEM
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_key: Option<PathBuf>,
    /// Who may do what over `--listen`, by token
    #[arg(long, value_name = "FILE", requires = "listen")]
    tokens: Option<PathBuf>,
    /// Variable of every task, KEY=VALUE; may be given several times
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = context::pair)]
    env: Vec<(String, String)>,
    /// Folder of the seccomp profiles that tasks may name
    #[arg(long, value_name = "DIR")]
    seccomp_profiles: Option<PathBuf>,
    /// Largest file of a task's output in its sandbox; a full one is renamed to stdout.1
    #[arg(long, value_name = "SIZE", default_value = "10MB", value_parser = log_size)]
    log_size: u64,
    /// How many such files there are of each stream
    #[arg(long, value_name = "COUNT", default_value_t = Bound::default().max_file, value_parser = clap::value_parser!(u32).range(1..=1000))]
    log_files: u32,
    /// How long to wait for another task once all are over and reported; forever: until the agent shuts the executor down
    #[arg(long, value_name = "SECONDS|forever", default_value = "1", value_parser = linger)]
    linger: Duration,
}

fn linger(text: &str) -> Result<Duration, String> {
    match text {
        "forever" => Ok(Duration::MAX),
        text => text
            .parse()
            .map(Duration::from_secs)
            .map_err(|_| "is neither a number of seconds nor forever".to_string()),
    }
}

impl Mesos {
    /// The four go together.
    fn listen(&self) -> Option<Listen> {
        Some(Listen {
            address: self.listen?,
            tls_cert: absolute(self.tls_cert.as_ref()?),
            tls_key: absolute(self.tls_key.as_ref()?),
            tokens: absolute(self.tokens.as_ref()?),
        })
    }
}

/// What answers has another working folder; a path that cannot be made absolute is told of when it is read.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One object each.
    Json,
}

/// The process that the agent starts: it keeps the real executor running.
pub fn run(global: &Global, command: Command) -> Outcome {
    let Command::Mesos(_) = command;
    // while it is alone there: the pods' cgroups hang below
    if global.cgroup_parent.is_none() && !Cgroup::own()?.make_room()? {
        output::warning(
            "other processes are in the executor's cgroup: tasks with limits are refused; give pods another one with --cgroup-parent",
        );
    }
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    Ok(shim::run(&words, &global.folders()?.state)?)
}

/// The real executor; `last`: why there will be no other; `terminated`: an earlier one was asked to end.
pub fn run_real(
    global: &Global,
    command: Command,
    last: Option<String>,
    terminated: bool,
) -> Outcome {
    let Command::Mesos(args) = command;
    let options = Options {
        folders: global.folders()?,
        cni_conf: global.cni_conf.clone(),
        cni_path: global.cni_path.clone(),
        cgroup_parent: global.cgroup_parent.clone(),
        encoding: match args.json {
            true => Encoding::Json,
            false => Encoding::Protobuf,
        },
        log_json: args.log_format == LogFormat::Json,
        plain_http: args.plain_http,
        listen: args.listen(),
        variables: args.env.into_iter().collect(),
        seccomp_profiles: args.seccomp_profiles,
        output: Bound {
            max_size: args.log_size,
            max_file: args.log_files,
        },
        linger: args.linger,
        last,
        terminated,
    };
    Ok(run::run(&options)?)
}
