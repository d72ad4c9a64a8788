//! Running hooks (runtime-spec config.md "POSIX-platform Hooks"): by the parent in the runtime's namespaces, by the child in the
//! container's.
//!
//! *Invariants:* a hook gets the state on standard input and no other descriptor, runs in a process group of its own, and is waited
//! for no longer than its timeout, after which the whole group is killed. What it prints is drained, and kept only to
//! some kilobytes; a process that it leaves behind and that holds its output keeps nobody waiting.
//!
//! When which hooks run, and what follows from a failure, is [`crate::container`]'s business.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, PipeReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};

use super::channel::Failure;
use crate::sys::{pidfd, process as calls};

/// How much of each output of a hook is kept for its error, in bytes.
const KEPT: usize = 4096;

/// When hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Point {
    /// Before the root is changed, by the parent; deprecated.
    Prestart,
    /// The same, after those.
    CreateRuntime,
    /// Before the root is changed, by the child.
    CreateContainer,
    /// Before the program is executed, by the child.
    StartContainer,
    /// After it was, by whoever started it.
    Poststart,
    /// When the container is gone.
    Poststop,
}

impl Point {
    /// Its property of `hooks`.
    pub fn key(self) -> &'static str {
        match self {
            Point::Prestart => "prestart",
            Point::CreateRuntime => "createRuntime",
            Point::CreateContainer => "createContainer",
            Point::StartContainer => "startContainer",
            Point::Poststart => "poststart",
            Point::Poststop => "poststop",
        }
    }
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute.
    pub path: PathBuf,
    /// `argv`, the name first; the path alone when empty.
    #[serde(default)]
    pub args: Vec<String>,
    /// `KEY=value`; that of [`Hooks`] when empty.
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds.
    #[serde(default)]
    pub timeout: Option<u64>,
}

/// The hooks of one point, in their order.
#[derive(Debug, Clone, Serialize)]
pub struct Hooks {
    /// When.
    pub point: Point,
    /// What.
    pub list: Vec<Hook>,
    /// Environment of those that have none; the caller's when this is empty, too.
    pub env: Vec<String>,
    /// Where they start; the caller's working directory when `None`.
    pub cwd: Option<PathBuf>,
    /// What they read.
    pub state: OciState,
}

/// runtime.md "State", as hooks and listeners of filters read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OciState {
    /// Of the specification.
    pub oci_version: String,
    /// Container id.
    pub id: String,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: String,
    /// The first process, as the reader sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Folder with `config.json`.
    pub bundle: PathBuf,
    /// As in `config.json`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Hooks {
    /// Runs them one after the other, up to the first that fails.
    pub fn run(&self, pid: Option<i32>) -> Result<(), Failure> {
        self.list
            .iter()
            .enumerate()
            .try_for_each(|(number, hook)| self.run_one(number, hook, pid))
    }

    /// Runs them all; what failed comes back.
    pub fn run_all(&self) -> Option<String> {
        let hooks = self.list.iter().enumerate();
        let failed: Vec<String> = hooks
            .filter_map(|(number, hook)| self.run_one(number, hook, None).err())
            .map(|failure| failure.message)
            .collect();
        (!failed.is_empty()).then(|| failed.join("; "))
    }

    fn run_one(&self, number: usize, hook: &Hook, pid: Option<i32>) -> Result<(), Failure> {
        let state = OciState {
            pid,
            ..self.state.clone()
        };
        let what = || {
            format!(
                "error running {} hook #{number}: {}",
                self.point.key(),
                hook.path.display()
            )
        };
        let done = serde_json::to_vec(&state)
            .map_err(io::Error::from)
            .and_then(|state| execute(hook, self, &state));
        match done {
            Err(error) => Err(Failure::new(&what(), error)),
            Ok(None) => Ok(()),
            Ok(Some(text)) => Err(Failure::new(&what(), text)),
        }
    }
}

/// Runs one hook to its end; how it failed, if it did.
fn execute(hook: &Hook, hooks: &Hooks, state: &[u8]) -> io::Result<Option<String>> {
    let (stdout, their_stdout) = io::pipe()?;
    let (stderr, their_stderr) = io::pipe()?;
    let mut command = Command::new(&hook.path);
    // a file: a hook that does not read cannot block us, and it may read it again
    command
        .stdin(Stdio::from(calls::memory_file(state)?))
        .stdout(their_stdout)
        .stderr(their_stderr)
        .process_group(0);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    let env = if hook.env.is_empty() {
        &hooks.env
    } else {
        &hook.env
    };
    if !env.is_empty() {
        command.env_clear();
        for entry in env {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            command.env(OsStr::new(key), OsStr::new(value));
        }
    }
    if let Some(cwd) = &hooks.cwd {
        command.current_dir(cwd);
    }
    // the child sets up with 0
    calls::start_fresh(
        &mut command,
        (hooks.point == Point::CreateContainer).then_some(0o022),
    );
    let mut child = command.spawn()?;
    // our ends of what is theirs
    drop(command);
    let deadline = hook.timeout.map(|seconds| {
        (
            seconds,
            Instant::now().checked_add(Duration::from_secs(seconds)),
        )
    });
    let ended = follow(
        &mut child,
        [&stdout, &stderr],
        deadline.and_then(|(_, at)| at),
    );
    match ended {
        Ok((Some(status), _)) if status.success() => Ok(None),
        Ok((Some(status), [stdout, stderr])) => Ok(Some(format!(
            "{}, stdout: {stdout}, stderr: {stderr}",
            describe(status)
        ))),
        Ok((None, [_, stderr])) => {
            end(&mut child);
            let seconds = deadline.map(|(seconds, _)| seconds).unwrap_or_default();
            Ok(Some(format!(
                "it ran past its timeout of {seconds} s and was killed, stderr: {stderr}"
            )))
        }
        Err(error) => {
            end(&mut child);
            Err(error)
        }
    }
}

/// Kills the group and reaps its leader.
fn end(child: &mut Child) {
    if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
        // ESRCH: it ended by itself
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

/// Drains both outputs until the hook ends; no status when the time was over before.
fn follow(
    child: &mut Child,
    outputs: [&PipeReader; 2],
    deadline: Option<Instant>,
) -> io::Result<(Option<ExitStatus>, [String; 2])> {
    let ended = pidfd::open(child.id() as i32)?;
    for output in outputs {
        rustix::io::ioctl_fionbio(output, true)?;
    }
    let mut kept = [Vec::new(), Vec::new()];
    let mut open = [true, true];
    let done = loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let mut polled = vec![PollFd::new(&ended, PollFlags::IN)];
        let readers = outputs.iter().zip(&open).filter(|(_, open)| **open);
        polled.extend(readers.map(|(output, _)| PollFd::new(*output, PollFlags::IN)));
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let over = polled.first().is_some_and(|one| !one.revents().is_empty());
        for ((output, kept), open) in outputs.iter().zip(&mut kept).zip(&mut open) {
            *open = *open && drain(output, kept)?;
        }
        if over {
            break Some(child.wait()?);
        }
        if left.is_some_and(|left| left.is_zero()) {
            break None;
        }
    };
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).trim_end().to_owned();
    Ok((done, [text(&kept[0]), text(&kept[1])]))
}

/// Reads what is there, one buffer at a time; `false` at the end of file.
fn drain(mut output: &PipeReader, kept: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; KEPT];
    // a writer that never stops must not keep us from looking at the clock
    for _ in 0..16 {
        match output.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => {
                let room = (KEPT - kept.len()).min(length);
                kept.extend_from_slice(&buffer[..room]);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(libc::SIGSYS)) => {
            "signal 31 (bad system call: the filter kills for it)".to_owned()
        }
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: vec!["sh".into(), "-c".into(), script.into()],
            env: vec!["A=b".into(), "PATH=/usr/bin:/bin".into()],
            timeout: None,
        }
    }

    fn hooks(list: Vec<Hook>) -> Hooks {
        Hooks {
            point: Point::CreateRuntime,
            list,
            env: Vec::new(),
            cwd: Some("/".into()),
            state: OciState {
                oci_version: "1.2.0".into(),
                id: "web".into(),
                status: "creating".into(),
                pid: None,
                bundle: "/b".into(),
                annotations: [("k".to_owned(), "v".to_owned())].into(),
            },
        }
    }

    #[test]
    fn hooks_read_the_state_and_their_failures_are_told() {
        let state = r#"{"ociVersion":"1.2.0","id":"web","status":"creating","pid":7,"bundle":"/b","annotations":{"k":"v"}}"#;
        for (script, want) in [
            ("true", None),
            (&*format!("test \"$(cat)\" = '{state}'"), None),
            // another look at the same input
            ("cat > /dev/null; test -n \"$(cat < /dev/stdin)\"", None),
            (
                "test $A = b && test \"$PWD\" = / && test -z \"$HOME\"",
                None,
            ),
            // the shell's own listing is the fourth
            ("test $(ls /proc/self/fd | wc -l) = 4", None),
            ("test $(ps -o pgid= -p $$) = $$", None),
            // what is left behind keeps nobody waiting
            ("sleep 100 & test $! -gt 1", None),
            (
                "echo out; echo why >&2; exit 3",
                Some("exit status 3, stdout: out, stderr: why"),
            ),
            ("kill -9 $$", Some("signal 9, stdout: , stderr: ")),
            (
                "kill -SYS $$",
                Some("signal 31 (bad system call: the filter kills for it), stdout: , stderr: "),
            ),
        ] {
            let done = hooks(vec![shell("exec true"), shell(script)]).run(Some(7));
            let want =
                want.map(|why| format!("error running createRuntime hook #1: /bin/sh: {why}"));
            assert_eq!(done.err().map(|failure| failure.message), want, "{script}");
        }
    }

    #[test]
    fn hostile_hooks_do_no_harm() {
        let limited = |script: &str| Hook {
            timeout: Some(1),
            ..shell(script)
        };
        for script in [
            "sleep 100",
            "while true; do echo x >&2; done",
            "(sleep 100 & exec sleep 100); sleep 100",
            "trap '' TERM INT; while true; do sleep 1; done",
        ] {
            let failure = hooks(vec![limited(script)]).run(None).unwrap_err();
            let want = "error running createRuntime hook #0: /bin/sh: it ran past its timeout of 1 s and was killed, stderr: ";
            assert!(failure.message.starts_with(want), "{}", failure.message);
            assert!(failure.message.len() < 2 * KEPT);
        }
        let missing = Hook {
            path: "/nothing".into(),
            ..shell("")
        };
        let failed = hooks(vec![missing, shell("exit 1")]).run_all().unwrap();
        assert_eq!(
            failed,
            "error running createRuntime hook #0: /nothing: No such file or directory (os error 2); \
             error running createRuntime hook #1: /bin/sh: exit status 1, stdout: , stderr: "
        );
    }
}
