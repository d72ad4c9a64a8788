//! Descriptors in the event loop.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the event loop of the calling task.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, which AsyncFd does after it has deregistered it.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}
