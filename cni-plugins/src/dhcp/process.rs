//! The process that renews a lease, seen from outside: starting, recognising and ending it.
//!
//! *Invariants*: a pid counts only together with the time its process started, and is signalled through a pidfd. The
//! process is nobody's child: whoever calls the plugin gets no zombie.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{CniError, OPERATION_FAILED, Result};

/// What the program is called as when it is to renew a lease.
pub const NAME: &str = "cni-dhcp-renewal";
/// The word for the process that only starts the other one.
pub const START: &str = "start";
/// The word for the process that stays.
pub const STAY: &str = "stay";
/// This program, also after its file was replaced.
const OWN: &str = "/proc/self/exe";

/// A process, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Clock ticks from boot to its start (proc_pid_stat(5), field 22).
    pub start: u64,
}

/// The time that a process started.
fn start_of(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name before may hold anything
    let (_, behind) = text.rsplit_once(')')?;
    let mut fields = behind.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Starts this program again under the name [`NAME`] with `word`.
pub fn command(word: &str, lease: &Path) -> Command {
    let mut command = Command::new(OWN);
    command
        .arg0(NAME)
        .arg(word)
        .arg(lease)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

impl Process {
    /// The process `pid`, if there is one.
    pub fn of(pid: i32) -> Option<Self> {
        start_of(pid).map(|start| Self { pid, start })
    }

    /// Starts the one for a lease whose file is about to be written.
    pub fn spawn(lease: &Path) -> Result<Self> {
        let failed = |cause: &dyn std::fmt::Display| {
            let what = format!("cannot start the renewal of {}", lease.display());
            CniError::new(OPERATION_FAILED, what).because(cause)
        };
        let mut starter = command(START, lease)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|cause| failed(&cause))?;
        let mut text = String::new();
        let read = match starter.stdout.take() {
            Some(pipe) => pipe.take(64).read_to_string(&mut text),
            None => Ok(0),
        };
        let status = starter.wait().map_err(|cause| failed(&cause))?;
        read.map_err(|cause| failed(&cause))?;
        let process = text.trim().parse().ok().and_then(Self::of);
        process.ok_or_else(|| failed(&format!("it ended at once ({status}): {}", text.trim())))
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        start_of(self.pid) == Some(self.start)
    }

    /// Kills it and waits until it is gone; gone already is success.
    pub fn end(&self) -> Result<()> {
        let failed = |cause: Errno| {
            CniError::operation(
                format!("cannot end the process {}", self.pid),
                io::Error::from(cause),
            )
        };
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(());
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            // EINVAL: a thread of another process has the number now
            Err(Errno::SRCH | Errno::INVAL) => return Ok(()),
            pidfd => pidfd.map_err(failed)?,
        };
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Err(Errno::SRCH) => return Ok(()),
            sent => sent.map_err(failed)?,
        }
        // SIGKILL isn't held up by anything that it does
        loop {
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None) {
                Err(Errno::INTR) => {}
                polled => return polled.map(|_| ()).map_err(failed),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_itself_is_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = Process::of(pid).unwrap();
        let other = Process {
            pid,
            start: process.start + 1,
        };
        assert!(process.is_alive() && !other.is_alive());
        other.end().unwrap();
        assert!(process.is_alive());
        process.end().unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
        process.end().unwrap();
        assert_eq!(Process::of(pid), None);
    }
}
