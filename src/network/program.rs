//! Runs a program once, with bounds on its time and its output.
//!
//! *Invariants*: it has [`LIMIT`] and may print [`MAX_OUTPUT`] bytes, otherwise its process group is killed; when this
//! returns, the program has ended. Processes that it leaves behind on purpose stay.
//! What it printed is [`super::invoke`]'s to understand.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::error::PluginFailure;

/// Time that a plugin has.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// Bytes that a plugin may print.
const MAX_OUTPUT: usize = 1 << 20;
/// Bytes of a plugin's output that go into a message.
pub(super) const MAX_QUOTE: usize = 2048;
/// For plugins that run programs such as `iptables`, when we have no `PATH` ourselves.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program left when it ended.
#[derive(Debug)]
pub(super) struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// At most [`MAX_QUOTE`] bytes from its end.
    pub stderr: Vec<u8>,
}

/// Readable on one line.
pub(super) fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Runs `program` in a process group of its own, feeding and reading it at once.
pub(super) fn execute(
    program: &Path,
    environment: &BTreeMap<&'static str, OsString>,
    input: &[u8],
    limit: Duration,
) -> Result<Output, PluginFailure> {
    let mut command = std::process::Command::new(program);
    command
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", DEFAULT_PATH);
    }
    let start = |e: io::Error| PluginFailure::Start(format!("{}: {e}", program.display()));
    let mut child = command.spawn().map_err(start)?;
    let mut exchange = Exchange::new(&mut child, input);
    let ended = exchange.until_exit(&child, Instant::now() + limit);
    if ended.is_err() {
        // the group is ours until its leader is waited for; already gone is fine
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    }
    let status = child.wait().map_err(start)?;
    ended.map_err(|e| match e {
        Cut::Time => PluginFailure::Timeout {
            seconds: limit.as_secs(),
            stderr: quote(&exchange.stderr.bytes),
        },
        Cut::Size => PluginFailure::TooMuch(MAX_OUTPUT),
        Cut::System(e) => start(e),
    })?;
    Ok(Output {
        status,
        stdout: exchange.stdout.bytes,
        stderr: exchange.stderr.bytes,
    })
}

/// Why a program was not heard to its end.
enum Cut {
    Time,
    Size,
    System(io::Error),
}

impl From<Errno> for Cut {
    fn from(e: Errno) -> Cut {
        Cut::System(e.into())
    }
}

/// The three pipes of a running program.
struct Exchange<'a> {
    stdin: Option<std::process::ChildStdin>,
    input: &'a [u8],
    stdout: Pipe<std::process::ChildStdout>,
    stderr: Pipe<std::process::ChildStderr>,
}

struct Pipe<P> {
    end: Option<P>,
    bytes: Vec<u8>,
}

impl<'a> Exchange<'a> {
    fn new(child: &mut Child, input: &'a [u8]) -> Exchange<'a> {
        Exchange {
            stdin: child.stdin.take(),
            input,
            stdout: Pipe {
                end: child.stdout.take(),
                bytes: Vec::new(),
            },
            stderr: Pipe {
                end: child.stderr.take(),
                bytes: Vec::new(),
            },
        }
    }

    /// Until the program itself has ended: a process it left behind may hold the pipes for ever.
    fn until_exit(&mut self, child: &Child, deadline: Instant) -> Result<(), Cut> {
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        nonblocking(self.stdin.as_ref())?;
        nonblocking(self.stdout.end.as_ref())?;
        nonblocking(self.stderr.end.as_ref())?;
        loop {
            let exited = self.wait(&pidfd, deadline)?;
            self.write()?;
            self.stdout.read()?;
            if self.stdout.bytes.len() > MAX_OUTPUT {
                return Err(Cut::Size);
            }
            self.stderr.read()?;
            let excess = self.stderr.bytes.len().saturating_sub(MAX_QUOTE);
            self.stderr.bytes.drain(..excess);
            if exited {
                return Ok(());
            }
        }
    }

    /// Waits for anything to do; true when the program has ended.
    fn wait(&self, pidfd: &impl AsFd, deadline: Instant) -> Result<bool, Cut> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Cut::Time);
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
        if let Some(end) = &self.stdin {
            fds.push(PollFd::new(end, PollFlags::OUT));
        }
        if let Some(end) = &self.stdout.end {
            fds.push(PollFd::new(end, PollFlags::IN));
        }
        if let Some(end) = &self.stderr.end {
            fds.push(PollFd::new(end, PollFlags::IN));
        }
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(fds.first().is_some_and(|f| !f.revents().is_empty()))
    }

    /// Writes what fits; a program that doesn't read its configuration is judged by its answer.
    fn write(&mut self) -> Result<(), Errno> {
        while let Some(end) = &self.stdin {
            match rustix::io::write(end, self.input) {
                Ok(n) => self.input = self.input.get(n..).unwrap_or_default(),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(Errno::PIPE) => self.input = &[],
                Err(e) => return Err(e),
            }
            if self.input.is_empty() {
                // the reader waits for the end of its input
                self.stdin = None;
            }
        }
        Ok(())
    }
}

impl<P: AsFd> Pipe<P> {
    /// Takes what is there, a little over [`MAX_OUTPUT`] at most.
    fn read(&mut self) -> Result<(), Errno> {
        let mut buffer = [0; 16 << 10];
        while let Some(end) = &self.end {
            match rustix::io::read(end, &mut buffer) {
                Ok(0) => self.end = None,
                Ok(n) => self.bytes.extend_from_slice(&buffer[..n]),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e),
            }
            if self.bytes.len() > MAX_OUTPUT {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn nonblocking(end: Option<&impl AsFd>) -> Result<(), Errno> {
    match end {
        Some(end) => rustix::io::ioctl_fionbio(end, true),
        None => Ok(()),
    }
}
