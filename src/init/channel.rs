//! Messages between the parent (create or exec) and its child.
//!
//! ```text
//! parent                      intermediate            child
//!   │ clone (only to join namespaces) ►│ setns            │
//!   │◄──────── Pid ────────────────────┤ clone ──────────►│
//!   │ cgroup, id maps, oom score                          │ new namespaces (with mapped ids: after Continue)
//!   ├──────────────────── Continue [v1 cgroups] ─────────►│ cgroup, mounts, ids, everything but execve
//!   │◄──────── MapSource (mount), Continue ──────────────►│ for each mount with an id map
//!   │◄─────────────────── Mounted (only for hooks) ───────┤
//!   │ hooks of the runtime's namespaces                   │
//!   ├──────────────────── Continue ──────────────────────►│
//!   │◄─────────────────── Listener (only of a filter) ────┤ from here on held by the filter
//!   │ to whoever listens                                  │
//!   ├──────────────────── Continue ──────────────────────►│
//!   │◄─────────────────── Terminal (exec only) ───────────┤
//!   │◄─────────────────── Ready ──────────────────────────┤
//!   │ state.json                                          │
//!   ├──────────────────── Release ───────────────────────►│ gate (first process only), filter, execve
//!   │◄──── end of file: executed, or goes to the gate ────┤
//! ```
//!
//! `Failed` may come in place of any message from the child. End of file before `Ready` means that the child died; before `Continue`
//! or `Release` that the parent died, and the child ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::rootfs;
use crate::sys::socket;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The child's pid in the parent's pid namespace.
    Pid(i32),
    /// Go on: the child has its ids. The first one brings the v1 cgroups that it is to enter.
    Continue,
    /// All is mounted, and the old root is still the root.
    Mounted,
    /// The listener of the filter comes along.
    Listener,
    /// The descriptor is a detached mount that is to get an id map; `Continue` answers.
    MapSource(rootfs::SourceMap),
    /// The terminal's master comes along.
    Terminal,
    /// All is set up.
    Ready,
    /// Go to the gate, or to execve.
    Release,
    /// The child ends.
    Failed(Failure),
}

/// What a failure is to the one who asked for the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No such program (127).
    NotFound,
    /// Cannot be run (126).
    NotRunnable,
    /// All else (125).
    Other,
}

/// Why the child could not go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whose fault.
    pub kind: FailureKind,
    /// The chain of messages, joined by `: `.
    pub message: String,
}

impl Failure {
    /// A step that failed.
    pub fn new(step: &str, error: impl std::fmt::Display) -> Failure {
        Failure {
            kind: FailureKind::Other,
            message: format!("{step}: {error}"),
        }
    }
}

impl From<rootfs::Error> for Failure {
    fn from(error: rootfs::Error) -> Failure {
        Failure::new(&error.context, &error.source)
    }
}

/// Names the step of an error.
pub trait Step<T> {
    /// The step, in words.
    fn step(self, text: &str) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> Step<T> for Result<T, E> {
    fn step(self, text: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(text, error))
    }
}

/// Sends a message, with a descriptor when given.
pub fn send(channel: &impl AsFd, message: &Message, fd: Option<&OwnedFd>) -> io::Result<()> {
    let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
    send_all(channel, message, &fds)
}

/// [`send`] with several descriptors.
pub fn send_all(channel: &impl AsFd, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut message = message.clone();
    if let Message::Failed(failure) = &mut message {
        // quoting can make each byte six
        let mut end = failure.message.len().min(socket::MESSAGE_MAX / 8);
        while !failure.message.is_char_boundary(end) {
            end -= 1;
        }
        failure.message.truncate(end);
    }
    socket::send_all(channel, &serde_json::to_vec(&message)?, fds)
}

/// Receives a message; `None` when the other end is closed.
pub fn receive(channel: &impl AsFd) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    let received = receive_all(channel)?;
    Ok(received.map(|(message, mut fds)| (message, fds.pop())))
}

/// [`receive`] with all descriptors that came.
pub fn receive_all(channel: &impl AsFd) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    let (bytes, fds) = socket::receive_all(channel)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes)?, fds)))
}

/// [`send`] by write(2), which hardly any filter forbids: a program without the rights to load a filter has it loaded before this.
pub fn write(channel: &impl AsFd, message: &Message) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    // one write is one message
    rustix::io::retry_on_intr(|| rustix::io::write(channel, &bytes))?;
    Ok(())
}

/// [`receive`] by read(2), of a short message without a descriptor.
pub fn read(channel: &impl AsFd) -> io::Result<Option<Message>> {
    let mut bytes = [0; 64];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(channel, &mut bytes))?;
    match bytes.get(..count) {
        None | Some([]) => Ok(None),
        Some(bytes) => Ok(Some(serde_json::from_slice(bytes)?)),
    }
}

/// The next message, which stays in the queue; `None` when there is none yet.
pub fn look(channel: &impl AsFd) -> io::Result<Option<Message>> {
    let found = socket::look(channel)?;
    Ok(match found {
        Some((bytes, _)) if !bytes.is_empty() => Some(serde_json::from_slice(&bytes)?),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_failures_of_any_length() {
        let (a, b) = socket::pair().unwrap();
        let failure = Failure::new("mount", "\u{1}é".repeat(100_000));
        send(&a, &Message::Failed(failure.clone()), None).unwrap();
        match receive(&b).unwrap() {
            Some((Message::Failed(got), None)) => {
                assert!(failure.message.starts_with(&got.message))
            }
            other => panic!("{other:?}"),
        }
        drop(a);
        assert!(receive(&b).unwrap().is_none());
    }
}
