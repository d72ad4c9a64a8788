//! A host with an agent on it, and tasks for it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
pub use test_agent::{Acks, Agent, Answer, Calls, Launcher, Phase, Settings, Transport, task};

use crate::pod_support::Host;

/// An agent on a host of its own, and what the host was before.
pub struct Mesos {
    /// What tests talk to.
    pub agent: Agent,
    before: Vec<String>,
    /// Options of `executor mesos`.
    options: Vec<String>,
    // last, because the agent's executor runs on it
    pub host: Host,
}

impl Mesos {
    /// With everything as usual.
    pub fn new() -> Mesos {
        Mesos::with(Settings::default())
    }

    /// With settings of the test.
    pub fn with(mut settings: Settings) -> Mesos {
        let host = Host::new();
        let before = host.snapshot();
        let folders = [
            ("SAMPAN_ROOT", host.root.clone()),
            ("SAMPAN_STATE", host.state.clone()),
            ("SAMPAN_CNI_CONF", host.path().join("cni-conf")),
            ("SAMPAN_CNI_PATH", host.path().join("cni-path")),
        ];
        let text = |(name, path): (&str, std::path::PathBuf)| {
            (name.to_owned(), path.to_str().unwrap().to_owned())
        };
        settings.environment.extend(folders.map(text));
        settings.folder = Some(host.path().join("agent"));
        let agent = Agent::new(settings);
        Mesos {
            agent,
            before,
            options: Vec::new(),
            host,
        }
    }

    /// With an option of `executor mesos`.
    pub fn option(mut self, option: &str) -> Mesos {
        self.options.push(option.into());
        self
    }

    /// Starts the executor.
    pub fn start(&self) {
        let mut command = vec![env!("CARGO_BIN_EXE_sampan"), "executor", "mesos"];
        command.extend(self.options.iter().map(String::as_str));
        self.agent.start_executor(&command);
    }

    /// Waits for a state of a task.
    #[track_caller]
    pub fn wait(&self, task: &str, state: &str) -> Value {
        self.agent.wait_for(task, &format!("TASK_{state}"))
    }

    /// States of a task without `TASK_`, in a line.
    pub fn states(&self, task: &str) -> String {
        let states = self.agent.states(task);
        let states = states.iter().map(|state| state.trim_start_matches("TASK_"));
        states.collect::<Vec<_>>().join(" ")
    }

    /// The last status of a task.
    pub fn last(&self, task: &str) -> Value {
        self.agent.statuses(task).pop().unwrap_or_default()
    }

    /// The executor ends by itself with this code, has kept to the rules, and nothing is left.
    #[track_caller]
    pub fn ends(&self, code: i32) {
        let exit = self.agent.wait_exit();
        assert!(!exit.destroyed, "destroyed\n{}", self.agent.story());
        assert_eq!(exit.status.code(), Some(code), "{}", self.agent.story());
        self.agent.assert_clean();
        self.host.assert_clean(&self.before);
    }

    /// Nothing is left once `sampan gc` ran.
    #[track_caller]
    pub fn nothing_left_after_gc(&self) {
        self.host.sampan(&["gc"]).ok();
        self.host.assert_clean(&self.before);
    }

    /// Processes of the container whose command line contains this.
    pub fn processes(&self, text: &str) -> Vec<i32> {
        let line = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ")
        };
        let all = self.agent.processes().into_iter();
        all.filter(|pid| line(pid).contains(text)).collect()
    }

    /// The real executor, below the process that the agent started.
    pub fn real_executor(&self) -> i32 {
        let end = Instant::now() + Duration::from_secs(30);
        let mut seen = None;
        loop {
            // twice: a child of one that just died looks like it until it executes something else
            match self.processes("internal mesos-executor")[..] {
                [pid] if seen == Some(pid) => return pid,
                [pid] => seen = Some(pid),
                _ => seen = None,
            }
            assert!(
                Instant::now() < end,
                "no real executor\n{}",
                self.agent.story()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A line of the shell in busybox, for LAUNCH.
pub fn script(id: &str, script: &str) -> Value {
    labelled(
        id,
        &[
            ("sampan.image", "localhost/busybox"),
            ("sampan.command", script),
        ],
    )
}

/// A compose file, for LAUNCH.
pub fn compose(id: &str, text: &str) -> Value {
    labelled(id, &[("sampan.compose", text)])
}

/// Labels, for LAUNCH.
pub fn labelled(id: &str, labels: &[(&str, &str)]) -> Value {
    let labels: Vec<Value> = labels
        .iter()
        .map(|(key, value)| json!({"key": key, "value": value}))
        .collect();
    task(id, json!({"labels": {"labels": labels}}))
}

/// A line of the shell in busybox, for LAUNCH_GROUP.
pub fn member(id: &str, script: &str) -> Value {
    task(
        id,
        json!({
            "command": {"value": script},
            "container": {"type": "MESOS", "mesos": {"image": {"type": "DOCKER", "docker": {"name": "localhost/busybox"}}}},
        }),
    )
}

/// With more fields.
pub fn with(mut task: Value, fields: Value) -> Value {
    for (key, value) in fields.as_object().into_iter().flatten() {
        task[key] = value.clone();
    }
    task
}

/// A `DurationInfo`.
pub fn seconds(seconds: f64) -> Value {
    json!({"nanoseconds": (seconds * 1e9) as i64})
}
