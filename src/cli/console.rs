//! Waiting for a program that runs in a container: its terminal, our signals, its exit code.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::Outcome;
use super::terminal::Raw;
use crate::container::Exec;
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

    /// The next one that came.
    pub fn next(&self) -> anyhow::Result<Option<i32>> {
        let signal = self.0.read_signal()?;
        Ok(signal.map(|signal| signal.ssi_signo as i32))
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

/// As [`wait`], at most so long; `None`: it was killed for that, with what it had started in its process group. In a `session` SIGHUP
/// tells that nobody wants the program any more: it is killed like that.
pub fn wait_until(
    running: Exec,
    signals: Signals,
    timeout_ms: Option<u64>,
    session: bool,
) -> anyhow::Result<Option<u8>> {
    let process = pidfd::open(running.pid)?;
    let deadline = timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    let mut bridge = running.console.map(Bridge::new).transpose()?;
    let mut timed_out = false;
    loop {
        let ready = poll(&process, &signals.0, bridge.as_ref(), deadline)?;
        if ready.signal {
            while let Some(signal) = signals.next()? {
                match signal {
                    libc::SIGHUP if session => kill_group(running.pid, &process),
                    other => pass(other, running.pid, &process, bridge.as_ref())?,
                }
            }
        }
        if let Some(bridge) = &mut bridge {
            bridge.copy(ready.input, ready.output)?;
        }
        if ready.ended {
            break;
        }
        if deadline.is_some_and(|end| Instant::now() >= end) {
            kill_group(running.pid, &process);
            timed_out = true;
            break;
        }
    }
    let ended = wait::reap_one(running.pid)?;
    if let Some(bridge) = &mut bridge {
        bridge.rest()?;
    }
    if timed_out {
        return Ok(None);
    }
    Ok(Some(u8::try_from(ended.code).unwrap_or(255)))
}

/// Kills a program with its process group.
fn kill_group(pid: i32, process: &OwnedFd) {
    // ESRCH: it ended in this instant, or leads no group; its number is its own until it is reaped
    let _ = nix::sys::signal::killpg(Pid::from_raw(pid), Signal::SIGKILL);
    let _ = pidfd::send_signal(process, libc::SIGKILL);
}

/// One of our signals, to where it belongs.
fn pass(signal: i32, pid: i32, process: &OwnedFd, bridge: Option<&Bridge>) -> anyhow::Result<()> {
    match (signal, bridge) {
        (libc::SIGCHLD, _) => reap_others(pid)?,
        (libc::SIGWINCH, Some(bridge)) => bridge.resize(),
        _ => match pidfd::send_signal(process, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other?,
        },
    }
    Ok(())
}

/// Orphans that became our children; `pid` is left for whoever wants to know how it ended.
fn reap_others(pid: i32) -> anyhow::Result<()> {
    // it ended itself, which ends the wait
    while let Some(ended) = wait::look()?.filter(|ended| ended.pid != pid) {
        wait::reap_one(ended.pid)?;
    }
    Ok(())
}

struct Ready {
    ended: bool,
    signal: bool,
    input: bool,
    output: bool,
}

fn poll(
    process: &OwnedFd,
    signals: &SignalFd,
    bridge: Option<&Bridge>,
    deadline: Option<Instant>,
) -> anyhow::Result<Ready> {
    let timeout = deadline.map(|end| {
        let left = end.saturating_duration_since(Instant::now());
        Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        }
    });
    let stdin = std::io::stdin();
    let mut fds = vec![
        PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
    ];
    if let Some(bridge) = bridge {
        fds.push(PollFd::from_borrowed_fd(
            bridge.master.as_fd(),
            PollFlags::IN,
        ));
        if bridge.input_open {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
        }
    }
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let at = |i: usize| fds.get(i).is_some_and(|fd| !fd.revents().is_empty());
    Ok(Ready {
        ended: at(0),
        signal: at(1),
        output: at(2),
        input: at(3),
    })
}

/// Between our terminal and the container's.
struct Bridge {
    master: std::fs::File,
    input_open: bool,
    _raw: Option<Raw>,
}

impl Bridge {
    fn new(master: OwnedFd) -> anyhow::Result<Bridge> {
        let bridge = Bridge {
            master: master.into(),
            input_open: true,
            _raw: Raw::enter()?,
        };
        bridge.resize();
        Ok(bridge)
    }

    /// A size that cannot be read or set leaves the terminal as it is.
    fn resize(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    fn copy(&mut self, input: bool, output: bool) -> anyhow::Result<()> {
        let mut buffer = [0u8; 16384];
        if input {
            match std::io::stdin().lock().read(&mut buffer)? {
                0 => {
                    self.input_open = false;
                    // end of file, as a terminal says it
                    self.master.write_all(&[4])?;
                }
                count => self.master.write_all(&buffer[..count])?,
            }
        }
        if output {
            // EIO: the other side is closed
            if let Ok(count) = self.master.read(&mut buffer) {
                let mut out = std::io::stdout().lock();
                out.write_all(&buffer[..count])?;
                out.flush()?;
            }
        }
        Ok(())
    }

    /// What was printed last.
    fn rest(&mut self) -> anyhow::Result<()> {
        loop {
            let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
            let none = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let ready = rustix::event::poll(&mut fds, Some(&none))?;
            if ready == 0 || !fds[0].revents().contains(PollFlags::IN) {
                return Ok(());
            }
            self.copy(false, true)?;
        }
    }
}
