//! A program in the container, by the way of `sampan exec`: with the service's user, environment, limits and cgroup.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;

use super::super::super::record::{Failure, Measured};
use super::super::super::{Error, Result, checks};
use super::super::Context;
use super::super::machine::Tested;
use super::{MESSAGE, late};
use crate::compose::project::{HealthTest, LifecycleHook};

/// How much longer than its limit the process may take before it is ended from outside: a frozen container lets nobody in.
const PATIENCE: Duration = Duration::from_secs(5);
/// Exit code of a report on a program that took too long, as timeout(1) has it.
pub const TIMED_OUT: u8 = 124;
/// Most bytes of a report.
const REPORT: usize = 64 << 10;

/// Runs a program; `limit` zero: without limit.
pub async fn run(context: &Context, service: &str, test: &HealthTest, limit: Duration) -> Tested {
    let (none, words) = (BTreeMap::new(), checks::command(test));
    let ran = execute(context, service, &[], &none, &words, limit);
    let outcome = match limit.is_zero() {
        true => Ok(ran.await),
        false => tokio::time::timeout(limit + PATIENCE, ran).await,
    };
    let (ran, exit_code, message) = match outcome {
        Ok(Ok(Ended {
            code,
            output,
            report: None,
        })) => (true, Some(code), output),
        Ok(Ok(Ended {
            output,
            report: Some(report),
            ..
        })) => match report.code {
            TIMED_OUT => (true, None, format!("{}\n{output}", late(limit))),
            // the program is not there, or no program
            126 | 127 => (true, Some(report.code.into()), report.message),
            _ => (false, None, report.message),
        },
        Ok(Err(error)) => (false, None, error.to_string()),
        Err(_) => (true, None, late(limit)),
    };
    Tested {
        ran,
        passed: exit_code == Some(0),
        measured: Measured::Command { exit_code },
        message,
    }
}

/// Runs a `post_start` or `pre_stop` hook; the error is how it failed.
pub(in super::super) async fn hook(
    context: &Context,
    service: &str,
    hook: &LifecycleHook,
) -> std::result::Result<(), String> {
    let mut options = Vec::new();
    for (option, value) in [("--user", &hook.user), ("--workdir", &hook.working_dir)] {
        options.extend(value.iter().flat_map(|v| [option.to_string(), v.clone()]));
    }
    options.extend(hook.privileged.then(|| "--privileged".to_string()));
    let words = &hook.command;
    let ended = execute(
        context,
        service,
        &options,
        &hook.environment,
        words,
        Duration::ZERO,
    );
    let with = |text: String, output: &str| match output.trim() {
        "" => text,
        output => format!("{text}: {output}"),
    };
    match ended.await {
        Ok(Ended {
            report: Some(report),
            ..
        }) => Err(report.message),
        Ok(Ended { code: 0, .. }) => Ok(()),
        Ok(Ended { code, output, .. }) => Err(with(format!("exit code {code}"), &output)),
        Err(error) => Err(error.to_string()),
    }
}

/// How our process ended.
struct Ended {
    code: i32,
    output: String,
    /// Why the code is not the program's.
    report: Option<Failure>,
}

async fn execute(
    context: &Context,
    service: &str,
    options: &[String],
    environment: &BTreeMap<String, String>,
    words: &[String],
    limit: Duration,
) -> Result<Ended> {
    let at = || Path::new("/proc/self/exe");
    let limit = limit.as_millis().to_string();
    let args: [&OsStr; 5] = [
        "exec".as_ref(),
        context.dir.dir.as_os_str(),
        service.as_ref(),
        "--timeout-ms".as_ref(),
        limit.as_ref(),
    ];
    let (output, writer) = pipe().map_err(Error::io("make a pipe for", at()))?;
    let (report, reporter) = pipe().map_err(Error::io("make a pipe for", at()))?;
    let mut child = {
        let errors = writer
            .try_clone()
            .map_err(Error::io("make a pipe for", at()))?;
        let mut command = Command::new(at());
        command
            .arg("internal")
            .args(args)
            .args(options)
            // their values are nobody's business who lists processes
            .args(environment.keys().flat_map(|name| ["--env", name]))
            .envs(environment)
            .arg("--")
            .args(words)
            // not its input, which is empty: where it says what went wrong
            .stdin(Stdio::from(reporter))
            .stdout(Stdio::from(writer))
            .stderr(Stdio::from(errors))
            .kill_on_drop(true);
        command.spawn().map_err(Error::io("run", at()))?
    };
    let (mut output, mut report) = (Tail::new(output, MESSAGE), Tail::new(report, REPORT));
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(Error::io("run", at()))?,
            () = output.read() => {}
            () = report.read() => {}
        }
    };
    // whoever still holds the pipes is not waited for
    output.rest();
    report.rest();
    let report = match report.kept.as_slice() {
        [] => None,
        text => Some(
            serde_json::from_slice(text).map_err(|source| Error::Record {
                path: at().to_path_buf(),
                source,
            })?,
        ),
    };
    Ok(Ended {
        code: status.code().unwrap_or(255),
        output: String::from_utf8_lossy(&output.kept).into_owned(),
        report,
    })
}

fn pipe() -> std::io::Result<(Receiver, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((Receiver::from_file(File::from(reader))?, writer))
}

/// The end of what comes out of a pipe: all of it is read, so that the program does not stop at a full one.
struct Tail {
    pipe: Receiver,
    kept: Vec<u8>,
    most: usize,
    open: bool,
}

impl Tail {
    fn new(pipe: Receiver, most: usize) -> Tail {
        Tail {
            pipe,
            kept: Vec::new(),
            most,
            open: true,
        }
    }

    /// Reads what comes next; never ends once there is nothing more to come.
    async fn read(&mut self) {
        if !self.open {
            return std::future::pending().await;
        }
        let mut buffer = [0; 4096];
        let count = self.pipe.read(&mut buffer).await.unwrap_or(0);
        self.open = count > 0;
        self.keep(buffer.get(..count).unwrap_or_default());
    }

    /// Reads what is there, at most a few full pipes: somebody may go on writing.
    fn rest(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..64 {
            match self.pipe.try_read(&mut buffer) {
                Ok(count) if count > 0 => self.keep(buffer.get(..count).unwrap_or_default()),
                _ => return,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        let excess = self.kept.len().saturating_sub(self.most);
        self.kept.drain(..excess);
    }
}
