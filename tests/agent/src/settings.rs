//! What a test chooses about the agent, its framework and how the executor is started.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

/// How executors reach the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// HTTP on 127.0.0.1.
    Tcp,
    /// HTTPS on 127.0.0.1 with a certificate authority of the agent's own.
    Tls,
    /// HTTP on 127.0.0.1 and on a domain socket, which the executor is told of.
    DomainSocket,
}

/// What surrounds an executor's process.
#[derive(Debug, Clone, Default)]
pub struct Launcher {
    /// `sh -c COMMAND`, as for a command with `shell: true`.
    pub shell: bool,
    /// Cgroups of its own below those of this process, as with the linux launcher; destroying it kills all in them.
    pub cgroup: bool,
    /// Goes before the command: `["unshare", "--mount"]` for `filesystem/linux`.
    pub wrapper: Vec<String>,
}

/// Everything about an agent.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How executors reach it.
    pub transport: Transport,
    /// `FrameworkInfo.checkpoint`: executors survive the agent.
    pub checkpoint: bool,
    /// `FrameworkInfo.capabilities`.
    pub capabilities: Vec<String>,
    /// Further fields of `FrameworkInfo`.
    pub framework: Value,
    /// Further fields of `ExecutorInfo`.
    pub executor: Value,
    /// Further fields of `AgentInfo`.
    pub agent: Value,
    /// `MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD`, after which a container is destroyed.
    pub shutdown_grace: Duration,
    /// `MESOS_RECOVERY_TIMEOUT`.
    pub recovery_timeout: Duration,
    /// `MESOS_SUBSCRIPTION_BACKOFF_MAX`.
    pub backoff_max: Duration,
    /// Executors must show a token.
    pub token: bool,
    /// The stream is cut at places that follow from this seed; records otherwise are a chunk each.
    pub cut: Option<u64>,
    /// Events have fields that nobody knows.
    pub strange: bool,
    /// `--executor_environment_variables` and `ExecutorInfo.command.environment`.
    pub environment: Vec<(String, String)>,
    /// How the executor is started.
    pub launcher: Launcher,
    /// The agent's work folder, with the sandboxes; a fresh one below the folder for temporary files if not set.
    pub folder: Option<PathBuf>,
    /// Framework, executor, agent and container id; made up if empty.
    pub ids: [String; 4],
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            transport: Transport::Tcp,
            checkpoint: true,
            capabilities: vec!["MULTI_ROLE".into(), "RESERVATION_REFINEMENT".into()],
            framework: json!({"failover_timeout": 0.0, "roles": ["*"]}),
            executor: json!({"name": "test"}),
            agent: json!({"hostname": "127.0.0.1"}),
            shutdown_grace: Duration::from_secs(5),
            recovery_timeout: Duration::from_secs(15 * 60),
            backoff_max: Duration::from_secs(2),
            token: false,
            cut: None,
            strange: false,
            environment: Vec::new(),
            launcher: Launcher::default(),
            folder: None,
            ids: Default::default(),
        }
    }
}

/// A duration as Mesos writes it: the largest unit that divides it.
pub(crate) fn duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let units: [(u128, &str); 8] = [
        (604_800_000_000_000, "weeks"),
        (86_400_000_000_000, "days"),
        (3_600_000_000_000, "hrs"),
        (60_000_000_000, "mins"),
        (1_000_000_000, "secs"),
        (1_000_000, "ms"),
        (1_000, "us"),
        (1, "ns"),
    ];
    let fits = |(unit, _): &&(u128, &str)| nanos > 0 && nanos.is_multiple_of(*unit);
    match units.iter().find(fits) {
        Some((unit, name)) => format!("{}{name}", nanos / unit),
        None => "0ns".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (millis, expected) in [
            (900_000, "15mins"),
            (2_000, "2secs"),
            (2_500, "2500ms"),
            (0, "0ns"),
            (86_400_000, "1days"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), expected);
        }
    }
}
