//! Descriptors in the event loop.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

use super::{pidfd, process};

/// Registers the process that has this pid and start time. `None`: it is gone.
pub fn watch_process(pid: i32, start_time: u64) -> io::Result<Option<AsyncFd<OwnedFd>>> {
    let descriptor = match pidfd::open(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        other => other?,
    };
    // after the open: what has this start time now is what the descriptor means
    match process::start_time(pid) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => match found? == start_time {
            true => watch(descriptor).map(Some),
            false => Ok(None),
        },
    }
}

/// Registers a descriptor with the event loop of the calling task.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, which AsyncFd does after it has deregistered it.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}
