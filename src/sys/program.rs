//! Runs a program of the host once, with bounds on its time and its output.
//!
//! *Invariants*: it has its [`Program::limit`] and may print [`MAX_OUTPUT`] bytes, otherwise its process group is killed; when
//! this returns, the program has ended. What it printed is the caller's to understand.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Bytes that a program may print.
pub const MAX_OUTPUT: usize = 1 << 20;
/// Bytes of a program's output that go into a message.
pub const MAX_QUOTE: usize = 2048;
/// For programs that run others such as `iptables`, where there is no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// A path, or a name to look for in `PATH`.
    pub path: &'a Path,
    /// Without the program's own name.
    pub args: &'a [String],
    /// Its variables; over ours, unless `strict`.
    pub environment: &'a [(&'a str, OsString)],
    /// What it reads.
    pub input: &'a [u8],
    /// Longest time until it has ended.
    pub limit: Duration,
    /// Nothing of ours but what is named here: no variable, no descriptor, no working folder, default signals, an end with the
    /// calling thread; and nothing of its process group stays when it has ended.
    pub strict: bool,
    /// The program is not wanted any more once this can be read.
    pub until: Option<BorrowedFd<'a>>,
}

/// What a program left when it ended.
#[derive(Debug)]
pub struct Output {
    /// How.
    pub status: ExitStatus,
    /// All of it.
    pub stdout: Vec<u8>,
    /// At most [`MAX_QUOTE`] bytes from its end.
    pub stderr: Vec<u8>,
}

/// Why a program was not heard to its end.
#[derive(Debug)]
pub enum Cut {
    /// It could not be started, or be waited for.
    Start(io::Error),
    /// It did not end in time, and was killed; the end of what it wrote to stderr.
    Time(Vec<u8>),
    /// It printed more than [`MAX_OUTPUT`] bytes, and was killed.
    Size,
    /// [`Program::until`]; it was killed.
    Unwanted,
}

/// Readable on one line.
pub fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// How a program ended, in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".into(),
    }
}

/// Runs a program in a process group of its own, feeding and reading it at once.
///
/// # Errors
/// [`Cut`]; how a program that was heard to its end judged its own work is in [`Output::status`].
pub fn execute(program: &Program<'_>) -> Result<Output, Cut> {
    let mut command = Command::new(program.path);
    command.args(program.args);
    if program.strict {
        command.env_clear().current_dir("/");
        super::process::start_fresh(&mut command, None);
        super::process::end_with_parent(&mut command);
    }
    if program.strict || std::env::var_os("PATH").is_none() {
        command.env("PATH", DEFAULT_PATH);
    }
    command
        .envs(
            program
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn().map_err(Cut::Start)?;
    let mut exchange = Exchange::new(&mut child, program.input);
    let ended = exchange.until_exit(&child, program);
    if ended.is_err() || program.strict {
        // the group is ours until its leader is waited for; already gone is fine
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    }
    let status = child.wait().map_err(Cut::Start)?;
    match ended {
        Err(Cut::Time(_)) => Err(Cut::Time(exchange.stderr.bytes)),
        Err(cut) => Err(cut),
        Ok(()) => Ok(Output {
            status,
            stdout: exchange.stdout.bytes,
            stderr: exchange.stderr.bytes,
        }),
    }
}

impl From<Errno> for Cut {
    fn from(e: Errno) -> Cut {
        Cut::Start(e.into())
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
    fn until_exit(&mut self, child: &Child, program: &Program<'_>) -> Result<(), Cut> {
        let deadline = Instant::now() + program.limit;
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        nonblocking(self.stdin.as_ref())?;
        nonblocking(self.stdout.end.as_ref())?;
        nonblocking(self.stderr.end.as_ref())?;
        loop {
            let exited = self.wait(&pidfd, deadline, program.until)?;
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
    fn wait(
        &self,
        pidfd: &impl AsFd,
        deadline: Instant,
        until: Option<BorrowedFd<'_>>,
    ) -> Result<bool, Cut> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Cut::Time(Vec::new()));
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
        if let Some(until) = &until {
            fds.push(PollFd::new(until, PollFlags::IN));
        }
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
        let ready = |n: usize| fds.get(n).is_some_and(|f| !f.revents().is_empty());
        match until.is_some() && ready(1) {
            true => Err(Cut::Unwanted),
            false => Ok(ready(0)),
        }
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
