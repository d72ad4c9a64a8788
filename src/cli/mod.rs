//! The command line: parse, call one library function, print. Nothing else in the program prints or chooses an exit code.

mod attach;
mod checks;
mod cni;
mod config;
pub(crate) mod console;
mod context;
mod down;
mod exec;
mod executor;
mod explain;
mod gc;
mod generate;
mod image;
mod internal;
mod lifecycle;
mod live;
mod logs;
mod network;
mod networks;
mod notify;
mod output;
mod ps;
mod remote;
mod run;
mod selftest;
mod shell;
mod stats;
pub(crate) mod terminal;
mod up;
mod volume;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

/// Result of a command: the exit code of the program.
type Outcome = anyhow::Result<u8>;

/// Run OCI containers and compose files as pods, without a daemon.
#[derive(Debug, Parser)]
#[command(
    name = "sampan",
    version,
    propagate_version = true,
    after_help = "Examples:\n  \
        sampan image import redis.tar\n  \
        sampan up -d                 bring up the compose file of this folder\n  \
        sampan ps                    what runs\n  \
        sampan logs -f web           follow a service\n  \
        sampan exec -it web sh       a shell inside\n  \
        sampan down -v               stop and remove, volumes too\n\n\
        Exit codes: 0 success, 1 failure, 2 wrong usage, 125 a container could not be made,\n\
        126 its program cannot be run, 127 its program is not there, else the program's own."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Folder of images, volumes and what pods write.
const ROOT: &str = "/var/lib/sampan";
/// Folder of running pods.
const STATE: &str = "/run/sampan";
/// Folder of CNI configuration.
const CNI_CONF: &str = "/etc/cni/net.d";
/// Folders of CNI plugins.
const CNI_PATH: &str = "/opt/cni/bin:/usr/lib/cni";

/// Where the options of every command are listed: behind a command's own.
const GLOBAL: &str = "Options of every command";

/// Options of every command.
#[derive(Debug, Args)]
struct Global {
    /// Folder of images, volumes and what pods write
    #[arg(
        long,
        global = true,
        env = "SAMPAN_ROOT", hide_env_values = true,
        default_value = ROOT,
        help_heading = GLOBAL, value_name = "DIR"
    )]
    root: PathBuf,
    /// Folder of running pods
    #[arg(
        long,
        global = true,
        env = "SAMPAN_STATE", hide_env_values = true,
        default_value = STATE,
        help_heading = GLOBAL, value_name = "DIR"
    )]
    state: PathBuf,
    /// Compose file; may be given several times, later ones are merged over earlier ones
    #[arg(short, long = "file", help_heading = GLOBAL, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Pod name instead of the file's `name:` or the folder's
    #[arg(short, long, help_heading = GLOBAL, value_name = "NAME")]
    project_name: Option<String>,
    /// Folder that relative paths are resolved against
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DIR")]
    project_directory: Option<PathBuf>,
    /// Profile to enable; may be given several times
    #[arg(long = "profile", global = true, help_heading = GLOBAL, value_name = "NAME")]
    profiles: Vec<String>,
    /// File of variables instead of `.env`; may be given several times
    #[arg(long = "env-file", global = true, help_heading = GLOBAL, value_name = "FILE")]
    env_files: Vec<PathBuf>,
    /// Cgroup to put pods under instead of the caller's own
    #[arg(long, global = true, env = "SAMPAN_CGROUP_PARENT", hide_env_values = true, help_heading = GLOBAL, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// Folders of CNI configuration
    #[arg(
        long,
        global = true,
        env = "SAMPAN_CNI_CONF", hide_env_values = true,
        value_delimiter = ':',
        default_value = CNI_CONF,
        help_heading = GLOBAL, value_name = "DIRS"
    )]
    cni_conf: Vec<PathBuf>,
    /// Folders of CNI plugins; those that come with Sampan need none
    #[arg(
        long,
        global = true,
        env = "SAMPAN_CNI_PATH", hide_env_values = true,
        value_delimiter = ':',
        default_value = CNI_PATH,
        help_heading = GLOBAL, value_name = "DIRS"
    )]
    cni_path: Vec<PathBuf>,
    /// Folder of hooks that every pod has before its own
    #[arg(
        long,
        global = true,
        env = "SAMPAN_HOOKS_DIR", hide_env_values = true,
        default_value = crate::pod::hooks::FOLDER,
        help_heading = GLOBAL, value_name = "DIR"
    )]
    hooks_dir: PathBuf,
    #[command(flatten)]
    remote: remote::Remote,
}

#[derive(Debug, Subcommand)]
// one value for each run of the program
#[allow(clippy::large_enum_variant)]
enum Command {
    /// Bring up the pod of a compose file
    Up(up::Args),
    /// Stop a pod and remove everything of it
    Down(down::Args),
    /// List the services of pods
    Ps(ps::Args),
    /// List the checks of services and their results, or pause them
    Checks(checks::Args),
    /// Show limits and use of a pod's cgroups
    Stats(stats::Args),
    /// Show what services printed
    Logs(logs::Args),
    /// Run a program in a running service
    Exec(exec::Args),
    /// Have a running service's terminal, or its standard streams
    Attach(attach::Args),
    /// Start services that are stopped
    Start(lifecycle::Services),
    /// Stop services; their containers stay
    Stop(lifecycle::Stop),
    /// Stop services and start them again
    Restart(lifecycle::Stop),
    /// Send a signal to services
    Kill(lifecycle::Kill),
    /// Wait until services end; the exit code is the last one's
    Wait(lifecycle::Wait),
    /// Run one image as a pod of its own
    Run(Box<run::Args>),
    /// Check a compose file and show what it means
    Config(config::Args),
    /// Images in the store
    #[command(subcommand)]
    Image(image::Command),
    /// Remove pods that nobody will: of owners that ended, killed as a whole, made or removed by half
    Gc(gc::Args),
    /// Networks that pods can use
    #[command(subcommand)]
    Network(network::Command),
    /// Named volumes, which outlive pods
    #[command(subcommand)]
    Volume(volume::Command),
    /// Try a CNI network by hand on a network namespace
    Cni(cni::Args),
    /// Run containers from OCI bundles, with runc's command line; also by the name sampan-oci
    #[command(disable_help_flag = true)]
    Oci {
        /// See `sampan oci --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<std::ffi::OsString>,
    },
    /// Run the tasks of a cluster framework
    #[command(subcommand)]
    Executor(executor::Command),
    /// Show what the creation of a container from an OCI bundle does, step by step, as JSON
    Explain(explain::Args),
    /// Try on this machine what containers did to their runtimes in the past
    Selftest(selftest::Args),
    /// Write files that have other programs run pods
    #[command(subcommand)]
    Generate(generate::Command),
    /// Print a completion script for a shell
    Completions(shell::Completions),
    /// Write the man pages into a folder
    Man(shell::Man),
}

/// Runs the program with the process's own arguments.
pub fn main() -> ExitCode {
    // folders and files that containers see have the modes we give them, whatever the caller's mask
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let outcome = if internal::is_meant() {
        internal::run()
    } else {
        dispatch(Cli::parse())
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        // the reader went away: `sampan logs | head`
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&format!("{error:#}"));
            let own = error.downcast_ref::<crate::pod::Error>();
            ExitCode::from(own.map_or(1, crate::pod::Error::exit_code))
        }
    }
}

/// The command line behind `internal mesos-executor --`, which is that of `executor mesos`.
fn executor(words: Vec<std::ffi::OsString>, last: Option<String>, terminated: bool) -> Outcome {
    let cli = Cli::try_parse_from(std::iter::once("sampan".into()).chain(words))?;
    match cli.command {
        Command::Executor(command) => executor::run_real(&cli.global, command, last, terminated),
        _ => Err(anyhow::anyhow!("not the command line of an executor")),
    }
}

fn dispatch(cli: Cli) -> Outcome {
    let there = matches!(
        cli.command,
        Command::Exec(_)
            | Command::Attach(_)
            | Command::Logs(_)
            | Command::Ps(_)
            | Command::Completions(_)
            | Command::Man(_)
    );
    if cli.global.remote.remote.is_some() && !there {
        anyhow::bail!(
            "--remote is for exec, attach, logs and ps; take it away, or SAMPAN_REMOTE, for what is done on this machine"
        );
    }
    match cli.command {
        Command::Up(_) | Command::Run(_) | Command::Executor(_)
            if !rustix::process::geteuid().is_root() =>
        {
            Err(anyhow::anyhow!(
                "pods need root, whose networks and images they use; `sampan oci` runs single containers for an ordinary user"
            ))
        }
        Command::Up(args) => up::run(&cli.global, args),
        Command::Down(args) => down::run(&cli.global, args),
        Command::Ps(args) => ps::run(&cli.global, args),
        Command::Checks(args) => checks::run(&cli.global, args),
        Command::Stats(args) => stats::run(&cli.global, args),
        Command::Logs(args) => logs::run(&cli.global, args),
        Command::Exec(args) => exec::run(&cli.global, args),
        Command::Attach(args) => attach::run(&cli.global, args),
        Command::Start(args) => lifecycle::start(&cli.global, args),
        Command::Stop(args) => lifecycle::stop(&cli.global, args),
        Command::Restart(args) => lifecycle::restart(&cli.global, args),
        Command::Kill(args) => lifecycle::kill(&cli.global, args),
        Command::Wait(args) => lifecycle::wait(&cli.global, args),
        Command::Run(args) => run::run(&cli.global, *args),
        Command::Config(args) => config::run(&cli.global, args),
        Command::Executor(command) => executor::run(&cli.global, command),
        Command::Explain(args) => explain::run(args),
        Command::Image(command) => image::run(&cli.global, command),
        Command::Gc(args) => gc::run(&cli.global, args),
        Command::Network(command) => network::run(&cli.global, command),
        Command::Volume(command) => volume::run(&cli.global, command),
        Command::Cni(args) => cni::run(&cli.global, &args),
        // without options before it, it does not come here
        Command::Oci { .. } => Err(anyhow::anyhow!(
            "options of oci go behind the word: `sampan oci --root DIR …`"
        )),
        Command::Selftest(args) => selftest::run(&args),
        Command::Generate(command) => generate::run(&cli.global, command),
        Command::Completions(args) => shell::completions(&args, &mut whole()),
        Command::Man(args) => shell::man(&args, &whole()),
    }
}

/// The command line with what `oci` has of its own.
fn whole() -> clap::Command {
    Cli::command().mut_subcommand("oci", |_| crate::oci::command("oci"))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        whole().debug_assert();
        crate::oci::command(crate::oci::NAME).debug_assert();
    }
}
