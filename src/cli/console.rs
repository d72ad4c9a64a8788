//! Waiting for a program that runs in a container: its terminal, our signals, its exit code.

mod bridge;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec};

use self::bridge::Bridge;
use super::Outcome;
use crate::container::Exec;
use crate::executor::remote::{GONE, RELAY};
use crate::sys::{pidfd, wait};

/// Our signals, which are the program's while we wait for it. The process has them blocked from now on; a container's own begins
/// with none blocked.
pub struct Signals(SignalFd);

impl Signals {
    /// Takes them, before there is a program that could miss one.
    pub fn take() -> anyhow::Result<Signals> {
        let mut mask = SigSet::all();
        for signal in [
            // our own faults, and what a write to a closed pipe or a terminal in the background tells us
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGILL,
            Signal::SIGTRAP,
            Signal::SIGABRT,
            Signal::SIGSYS,
            Signal::SIGPIPE,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
            Signal::SIGURG,
        ] {
            mask.remove(signal);
        }
        mask.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Signals(SignalFd::with_flags(&mask, flags)?))
    }

    /// The next one that came, and the value that came with it.
    pub fn next(&self) -> anyhow::Result<Option<(i32, i32)>> {
        let signal = self.0.read_signal()?;
        Ok(signal.map(|signal| (signal.ssi_signo as i32, signal.ssi_int)))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits for the program to end; it is a child of ours. Reaps whatever else becomes one.
pub fn wait(running: Exec, signals: Signals) -> Outcome {
    wait_until(running, signals, None, false).map(|code| code.unwrap_or(255))
}

/// As [`wait`], at most so long; `None`: it was killed for that, with what it had started in its process group. In a `session` [`GONE`]
/// tells that nobody wants the program any more: it is killed like that; and [`RELAY`] brings a signal for it.
pub fn wait_until(
    running: Exec,
    signals: Signals,
    timeout_ms: Option<u64>,
    session: bool,
) -> anyhow::Result<Option<u8>> {
    let mut program = Program {
        pid: running.pid,
        process: pidfd::open(running.pid)?,
        bridge: None,
        session,
        over: false,
    };
    let deadline = timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    let followed = running.console.map(Bridge::new).transpose();
    let followed = followed.and_then(|bridge| {
        program.bridge = bridge;
        program.follow(&signals, deadline)
    });
    if followed.is_err() && session {
        program.kill_group();
    }
    let in_time = followed?;
    // not before: its number is its own until now
    let ended = wait::reap_one(running.pid)?;
    Ok(in_time.then_some(u8::try_from(ended.code).unwrap_or(255)))
}

/// What is waited for.
struct Program {
    pid: i32,
    process: OwnedFd,
    bridge: Option<Bridge>,
    session: bool,
    /// It has ended.
    over: bool,
}

impl Program {
    /// Until it has ended and what it printed is written; `false`: it was killed at the deadline.
    fn follow(&mut self, signals: &Signals, deadline: Option<Instant>) -> anyhow::Result<bool> {
        let mut in_time = true;
        loop {
            let ready = self.poll(signals, deadline.filter(|_| in_time))?;
            if ready.contains(&Ready::Ended) {
                self.over = true;
                self.bridge.iter_mut().for_each(Bridge::end);
            }
            if ready.contains(&Ready::Signal) {
                while let Some((signal, value)) = signals.next()? {
                    self.obey(signal, value)?;
                }
            }
            if let Some(bridge) = &mut self.bridge {
                bridge.copy(&ready)?;
            }
            if self.over && self.bridge.as_ref().is_none_or(Bridge::is_empty) {
                return Ok(in_time);
            }
            if !self.over && in_time && deadline.is_some_and(|end| Instant::now() >= end) {
                self.kill_group();
                in_time = false;
            }
        }
    }

    fn poll(&self, signals: &Signals, deadline: Option<Instant>) -> anyhow::Result<Vec<Ready>> {
        let timeout = deadline.map(|end| {
            let left = end.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        let mut awaited = vec![(Ready::Signal, signals.as_fd(), PollFlags::IN)];
        if !self.over {
            awaited.push((Ready::Ended, self.process.as_fd(), PollFlags::IN));
        }
        awaited.extend(self.bridge.iter().flat_map(Bridge::awaited));
        let fds = awaited.iter();
        let mut fds: Vec<PollFd<'_>> = fds
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = awaited.iter().zip(&fds);
        Ok(ready
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|((what, ..), _)| *what)
            .collect())
    }

    /// One of our signals, to where it belongs.
    fn obey(&mut self, signal: i32, value: i32) -> anyhow::Result<()> {
        match (signal, &self.bridge) {
            (GONE, _) if self.session => {
                self.kill_group();
                // nobody reads it either
                self.bridge = None;
            }
            (RELAY, _) if self.session && value == libc::SIGKILL => self.kill_group(),
            (RELAY, _) if self.session => self.send(value)?,
            (libc::SIGCHLD, _) => reap_others(self.pid)?,
            (libc::SIGWINCH, Some(bridge)) => bridge.resize(),
            // what would be the program's is ours now: whoever wants us to end does not read its last words
            (libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM, _) if self.over => {
                self.bridge = None;
            }
            _ => self.send(signal)?,
        }
        Ok(())
    }

    fn send(&self, signal: i32) -> anyhow::Result<()> {
        match pidfd::send_signal(&self.process, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Kills it with its process group.
    fn kill_group(&self) {
        // ESRCH: it ended in this instant, or leads no group; its number is its own until it is reaped
        let _ = nix::sys::signal::killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = pidfd::send_signal(&self.process, libc::SIGKILL);
    }
}

/// Orphans that became our children; `pid` is left for whoever wants to know how it ended.
fn reap_others(pid: i32) -> anyhow::Result<()> {
    // it ended itself, which ends the wait
    while let Some(ended) = wait::look()?.filter(|ended| ended.pid != pid) {
        wait::reap_one(ended.pid)?;
    }
    Ok(())
}

/// What poll(2) has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    /// The program has ended.
    Ended,
    /// A signal came.
    Signal,
    /// Something was typed.
    Input,
    /// And can be passed on.
    InputRoom,
    /// Something was printed.
    Output,
    /// And can be passed on.
    OutputRoom,
}
