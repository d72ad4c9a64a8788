//! The process that the agent starts. It does almost nothing, so that it has few reasons to die: it keeps the real executor running.
//!
//! *Invariants:* it has one thread; it is the parent of whatever in its container has lost its own, and reaps it; a real executor that dies
//! is started again, with growing pauses, and so is one that fails when there may be tasks; one that has brought everything to an end ends
//! this process; when none comes as far as a connection, a last one is started that only brings everything to an end. It is the owner of all pods: when it dies they go. It holds the
//! executor's folder, and removes it when nobody needs it any more.
//!
//! | signal | what becomes of it |
//! |---|---|
//! | SIGTERM, SIGINT, SIGQUIT | passed on, to each real executor from then on: tasks are stopped, then the executor ends |
//! | SIGHUP | the real executor is replaced by the program that is on disk now, or by the old one where that does not get as far as a connection; tasks go on |

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::os::fd::AsFd;

use super::environment::TOKEN;
use super::ledger::Ledger;
use crate::pod::record::ProcessId;
use crate::sys::process::{start_fresh, take_variable};
use crate::sys::stderr;
use crate::sys::wait;

/// First pause before a real executor that died soon is started again, doubled each time.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest pause: an agent that restarts waits for us for two seconds.
const PAUSE_MOST: Duration = Duration::from_secs(1);
/// One that ran this long did not die at once.
const SOON: Duration = Duration::from_secs(2);
/// So many that died in a row without a connection, and we give up.
const DEATHS_MOST: u32 = 30;

/// The step of `sampan internal` that is the real executor.
pub const STEP: &str = "mesos-executor";
/// What a real executor ends with that has brought everything to an end, but without success. One that could not begin has another code, and
/// so has a program that is none.
pub const OVER: u8 = 113;

/// What follows the death of a real executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Another one, after a pause.
    Again(Duration),
    /// The last one.
    Last,
}

/// Real executors that died in a row.
#[derive(Debug, Default)]
struct Deaths {
    /// At once.
    soon: u32,
    /// Without a connection to the agent, however long they lived: on a machine that is busy enough none dies at once.
    in_vain: u32,
}

impl Deaths {
    /// One died, `soon` after its start or not; `subscribed`: the agent had let it in.
    fn next(&mut self, soon: bool, subscribed: bool) -> Next {
        self.in_vain = if subscribed { 0 } else { self.in_vain + 1 };
        if self.in_vain > DEATHS_MOST {
            return Next::Last;
        }
        if !soon {
            self.soon = 0;
            return Next::Again(Duration::ZERO);
        }
        self.soon += 1;
        Next::Again((PAUSE * 2u32.pow(self.soon.min(10))).min(PAUSE_MOST))
    }
}

/// Keeps the real executor running, with the arguments `words` of our own command line and its folder below `state`; its exit code.
pub fn run(words: &[OsString], state: &Path) -> io::Result<u8> {
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
    let ledger = Ledger::at(state, ProcessId::own().map_err(io::Error::other)?);
    let _held = ledger.hold().map_err(io::Error::other)?;
    let mut shim = Shim {
        token: take_token(),
        words: words.to_vec(),
        // its name now: afterwards another program may have it
        installed: std::env::current_exe()?,
        program: PathBuf::from("/proc/self/exe"),
        real: None,
        started: Instant::now(),
        subscription: ledger.subscription(),
        before: None,
        deaths: Deaths::default(),
        last: None,
        pause: Duration::ZERO,
        replacing: false,
        terminated: false,
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
            // it needs no successor, which would have to find everything here
            if let Err(error) = ledger.remove() {
                say(error);
            }
            return Ok(code);
        }
    }
}

fn say(text: impl std::fmt::Display) {
    stderr::line(format_args!("sampan executor: {text}"));
}

/// Takes the agent's token out of the environment, which others inherit and may read.
pub fn take_token() -> Option<String> {
    let name = std::ffi::CString::new(TOKEN).ok()?;
    take_variable(&name)?.into_string().ok()
}

/// What tells a file from the one that it replaced: inode and time of change.
type Version = (u64, i64, i64);

fn version(path: &Path) -> Option<Version> {
    // none is no connection yet
    let meta = path.metadata().ok()?;
    Some((meta.ino(), meta.ctime(), meta.ctime_nsec()))
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
    /// File that is another one with each subscription.
    subscription: PathBuf,
    /// Which one it was when the real executor began.
    before: Option<Version>,
    deaths: Deaths,
    /// Why the next real executor is the last one.
    last: Option<String>,
    /// How long after its end another one is started.
    pause: Duration,
    /// The real executor is being replaced.
    replacing: bool,
    /// We were asked to end; a real executor may have died before it could.
    terminated: bool,
}

impl Shim {
    /// What is left of the pause.
    fn left(&self) -> Duration {
        self.pause.saturating_sub(self.started.elapsed())
    }

    fn start(&mut self) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("internal").arg(STEP);
        if let Some(why) = &self.last {
            command.arg("--last").arg(why);
        }
        if self.terminated {
            command.arg("--terminated");
        }
        command.arg("--").args(&self.words);
        self.before = version(&self.subscription);
        if let Some(token) = &self.token {
            command.env(TOKEN, token);
        }
        start_fresh(&mut command, None);
        self.replacing = false;
        match command.spawn() {
            Ok(child) => {
                self.real = Some(Pid::from_raw(child.id() as i32));
                self.started = Instant::now();
                Ok(())
            }
            Err(error) if self.is_needed() => self.died(&format!("could not be started: {error}")),
            Err(error) => Err(error),
        }
    }

    /// There may be tasks, or it is another program that is there no more: the next real executor is to do better.
    fn is_needed(&self) -> bool {
        version(&self.subscription).is_some() || self.program == self.installed
    }

    fn signal(&mut self, signal: i32) -> io::Result<()> {
        let signal = match signal {
            libc::SIGCHLD => return Ok(()),
            libc::SIGHUP => {
                // everything that matters is written down before it is done
                self.program = self.installed.clone();
                self.replacing = self.real.is_some();
                Signal::SIGKILL
            }
            _ => {
                self.terminated = true;
                Signal::SIGTERM
            }
        };
        // the next one is told
        let Some(real) = self.real else { return Ok(()) };
        match kill(real, signal) {
            Err(error) if error != Errno::ESRCH => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Reaps whatever has ended; the code to end with.
    fn reap(&mut self) -> io::Result<Option<u8>> {
        while let Some(ended) = wait::reap()? {
            if self.real != Some(Pid::from_raw(ended.pid)) {
                continue;
            }
            match (ended.signal, u8::try_from(ended.code).unwrap_or(1)) {
                (Some(signal), _) => {
                    let known = Signal::try_from(signal).map(|signal| signal.to_string());
                    let signal = known.unwrap_or_else(|_| format!("signal {signal}"));
                    self.died(&format!("was ended by {signal}"))?;
                }
                (None, 0) => return Ok(Some(0)),
                (None, OVER) => return Ok(Some(1)),
                (None, code) if !self.is_needed() => return Ok(Some(code)),
                (None, code) => self.died(&format!("ended with code {code}"))?,
            }
        }
        Ok(None)
    }

    /// The real executor is gone, and not of its own accord; `how`: words after "it".
    fn died(&mut self, how: &str) -> io::Result<()> {
        self.real = None;
        let soon = self.started.elapsed() < SOON;
        self.started = Instant::now();
        self.pause = Duration::ZERO;
        if std::mem::take(&mut self.replacing) {
            return Ok(());
        }
        if let Some(why) = &self.last {
            // the pods' supervisors end them when we are gone
            return Err(io::Error::other(format!(
                "{why}; the one that was to end the tasks {how}"
            )));
        }
        let subscribed = version(&self.subscription) != self.before;
        let old = Path::new("/proc/self/exe");
        if !subscribed && self.program != old {
            // a broken upgrade
            let installed = self.installed.display();
            say(format_args!(
                "{installed}: it {how}; the old program goes on"
            ));
            self.program = old.into();
        }
        match self.deaths.next(soon, subscribed) {
            Next::Again(pause) => {
                self.pause = pause;
                say(format_args!("it {how} and is started again"));
            }
            Next::Last => {
                let count = self.deaths.in_vain;
                let why = format!(
                    "the executor died {count} times in a row without a connection to the agent, the last time it {how}"
                );
                say(format_args!("{why}; it is given up"));
                self.pause = PAUSE_MOST;
                self.last = Some(why);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_deaths_in_vain_are_counted() {
        let again = |milliseconds| Next::Again(Duration::from_millis(milliseconds));
        let mut deaths = Deaths::default();
        // each pause is twice the one before, and none is longer than a second
        for pause in [40, 80, 160, 320, 640, 1000, 1000] {
            assert_eq!(deaths.next(true, false), again(pause));
        }
        // the agent let it in: the pauses stay, the count begins anew
        for _ in 0..100 {
            assert_eq!(deaths.next(true, true), again(1000));
        }
        for _ in 0..DEATHS_MOST {
            assert_eq!(deaths.next(true, false), again(1000));
        }
        assert_eq!(deaths.next(true, false), Next::Last);
        // one that ran for a while ends the row of those that died at once
        assert_eq!(deaths.next(false, true), again(0));
        assert_eq!(deaths.next(true, false), again(40));
        assert_eq!(deaths.next(false, false), again(0));
        assert_eq!(deaths.in_vain, 2);
    }
}
