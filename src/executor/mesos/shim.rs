//! The process that the agent starts. It does almost nothing, so that it has few reasons to die: it keeps the real executor running.
//!
//! *Invariants:* it has one thread; it is the parent of whatever in its container has lost its own, and reaps it; a real executor that dies
//! is started again, with growing pauses, and one that ends by itself ends this process with its code. It is the owner of all pods: when
//! it dies they go.
//!
//! | signal | what becomes of it |
//! |---|---|
//! | SIGTERM, SIGINT, SIGQUIT | passed on: tasks are stopped, then the executor ends |
//! | SIGHUP | the real executor is replaced by the program that is on disk now; tasks go on |

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::fd::AsFd;

use super::environment::TOKEN;
use crate::sys::process::{start_fresh, take_variable};

/// First pause before a real executor that died soon is started again, doubled each time.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest pause: an agent that restarts waits for us for two seconds.
const PAUSE_MOST: Duration = Duration::from_secs(1);
/// One that ran this long did not die at once.
const SOON: Duration = Duration::from_secs(2);
/// So many that died at once in a row, and we give up.
const DEATHS_MOST: u32 = 30;

/// The step of `sampan internal` that is the real executor.
pub const STEP: &str = "mesos-executor";

/// Keeps the real executor running, with the arguments `words` of our own command line; its exit code.
pub fn run(words: &[OsString]) -> io::Result<u8> {
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
    ] {
        mask.add(signal);
    }
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    nix::sys::prctl::set_child_subreaper(true)?;
    let mut shim = Shim {
        token: take_token(),
        words: words.to_vec(),
        // its name now: afterwards another program may have it
        installed: std::env::current_exe()?,
        program: PathBuf::from("/proc/self/exe"),
        real: None,
        started: Instant::now(),
        deaths: 0,
        pause: Duration::ZERO,
        replacing: false,
    };
    loop {
        if shim.real.is_none() && shim.left().is_zero() {
            shim.start()?;
        }
        let timeout = match shim.real {
            Some(_) => PollTimeout::NONE,
            None => PollTimeout::try_from(shim.left()).unwrap_or(PollTimeout::ZERO),
        };
        match poll(
            &mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(signal) = signals.read_signal()? {
            shim.signal(signal.ssi_signo as i32)?;
        }
        if let Some(code) = shim.reap()? {
            return Ok(code);
        }
    }
}

/// Takes the agent's token out of the environment, which others inherit and may read.
pub fn take_token() -> Option<String> {
    let name = std::ffi::CString::new(TOKEN).ok()?;
    take_variable(&name)?.into_string().ok()
}

struct Shim {
    token: Option<String>,
    words: Vec<OsString>,
    /// Where our program is on disk.
    installed: PathBuf,
    /// What the next real executor is.
    program: PathBuf,
    real: Option<Pid>,
    /// When the real executor began, or ended.
    started: Instant,
    deaths: u32,
    /// How long after its end another one is started.
    pause: Duration,
    /// The real executor is being replaced.
    replacing: bool,
}

impl Shim {
    /// What is left of the pause.
    fn left(&self) -> Duration {
        self.pause.saturating_sub(self.started.elapsed())
    }

    fn start(&mut self) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        command
            .arg("internal")
            .arg(STEP)
            .arg("--")
            .args(&self.words);
        if let Some(token) = &self.token {
            command.env(TOKEN, token);
        }
        start_fresh(&mut command, None);
        match command.spawn() {
            Ok(child) => {
                self.real = Some(Pid::from_raw(child.id() as i32));
                self.started = Instant::now();
                Ok(())
            }
            // a broken upgrade: the old program is still there
            Err(error) if self.program == self.installed => {
                eprintln!(
                    "sampan executor: run {}: {error}; the old program goes on",
                    self.installed.display()
                );
                self.program = PathBuf::from("/proc/self/exe");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn signal(&mut self, signal: i32) -> io::Result<()> {
        let Some(real) = self.real else {
            // nobody who could stop anything: the pods end with us
            return match signal {
                libc::SIGCHLD | libc::SIGHUP => Ok(()),
                _ => Err(io::Error::other(format!(
                    "ended by signal {signal} while the executor was not running"
                ))),
            };
        };
        let signal = match signal {
            libc::SIGCHLD => return Ok(()),
            libc::SIGHUP => {
                // everything that matters is written down before it is done
                self.program = self.installed.clone();
                self.replacing = true;
                Signal::SIGKILL
            }
            _ => Signal::SIGTERM,
        };
        match kill(real, signal) {
            Err(error) if error != Errno::ESRCH => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Reaps whatever has ended; the code to end with.
    fn reap(&mut self) -> io::Result<Option<u8>> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if status.pid() != self.real {
                continue;
            }
            match status {
                WaitStatus::Exited(_, code) => return Ok(Some(u8::try_from(code).unwrap_or(1))),
                WaitStatus::Signaled(_, signal, _) => self.died(signal)?,
                _ => {}
            }
        }
    }

    fn died(&mut self, signal: Signal) -> io::Result<()> {
        self.real = None;
        let soon = self.started.elapsed() < SOON;
        self.started = Instant::now();
        self.pause = Duration::ZERO;
        if std::mem::take(&mut self.replacing) {
            return Ok(());
        }
        self.deaths = if soon { self.deaths + 1 } else { 0 };
        if self.deaths > DEATHS_MOST {
            let text = format!(
                "the executor died {} times in a row, the last time by {signal}",
                self.deaths
            );
            return Err(io::Error::other(text));
        }
        if soon {
            self.pause = (PAUSE * 2u32.pow(self.deaths.min(10))).min(PAUSE_MOST);
        }
        eprintln!("sampan executor: it was ended by {signal} and is started again");
        Ok(())
    }
}
