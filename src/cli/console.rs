//! Waiting for a program that runs in a container: its terminal, our signals, its exit code.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::{OptionalActions, Termios};

use super::Outcome;
use crate::container::Exec;
use crate::sys::pidfd;

/// Exit code when a time limit was reached, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// Waits for the program to end.
pub fn wait(running: Exec, timeout_ms: Option<u64>) -> Outcome {
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGWINCH,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
    ] {
        mask.add(signal);
    }
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let process = pidfd::open(running.pid)?;
    let deadline = timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    let mut bridge = running.console.map(Bridge::new).transpose()?;
    let mut timed_out = false;
    loop {
        let ready = poll(&process, &signals, bridge.as_ref(), deadline)?;
        if ready.signal {
            while let Some(signal) = signals.read_signal()? {
                let number = signal.ssi_signo as i32;
                if number == libc::SIGWINCH {
                    if let Some(bridge) = &bridge {
                        bridge.resize();
                    }
                } else if let Err(error) = pidfd::send_signal(&process, number)
                    && error.raw_os_error() != Some(libc::ESRCH)
                {
                    return Err(error.into());
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
            // ESRCH: it ended in this instant
            let _ = pidfd::send_signal(&process, libc::SIGKILL);
            timed_out = true;
            break;
        }
    }
    let status = waitpid(Pid::from_raw(running.pid), None)?;
    if let Some(bridge) = &mut bridge {
        bridge.rest()?;
    }
    if timed_out {
        return Ok(TIMED_OUT);
    }
    Ok(match status {
        WaitStatus::Exited(_, code) => u8::try_from(code).unwrap_or(255),
        WaitStatus::Signaled(_, signal, _) => 128 + signal as u8,
        _ => 255,
    })
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
    /// Ours as it was; `None` when standard input is no terminal.
    before: Option<Termios>,
}

impl Bridge {
    fn new(master: OwnedFd) -> anyhow::Result<Bridge> {
        let stdin = std::io::stdin();
        let before = rustix::termios::tcgetattr(&stdin).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        }
        let bridge = Bridge {
            master: master.into(),
            input_open: true,
            before,
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

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // nothing better can be done about a terminal that is gone
            let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, before);
        }
    }
}
