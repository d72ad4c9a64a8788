//! Whole ranges of descriptors.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

/// Closes every descriptor above 2 but the `preserved` ones from 3 on and those in `keep`. Only for a cloned child, which never drops
/// what it inherited.
pub fn close_others(preserved: u32, keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .collect();
    keep.sort_unstable();
    let mut first = 3 + preserved;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX, 0)
}

/// Marks every descriptor above 2 and the `preserved` ones from 3 on close-on-exec.
pub fn close_on_exec(preserved: u32) -> io::Result<()> {
    close_range(3 + preserved, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// close_range(2), Linux 5.11.
fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: the callers run in a cloned child, where no owner of a closed descriptor is dropped any more.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
