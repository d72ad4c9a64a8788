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

/// Whether descriptor `fd` of the calling process is open.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag of whatever the number stands for and changes nothing.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Where the search for open descriptors ends: the kernel's own limit (`fs.nr_open`) unless somebody raised it.
const END: u32 = 1 << 20;

/// close_range(2), Linux 5.11; one by one where the container's filter does not know that call. The filter comes after everything
/// that was inherited has been closed, so what is left are a few descriptors of ours with low numbers.
fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    match close_range_call(first, last, flags) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            for fd in first..=last.min(END) {
                close_one(fd as RawFd, flags)?;
            }
            Ok(())
        }
        other => other,
    }
}

/// One of them; one that is not open is success.
fn close_one(fd: RawFd, flags: u32) -> io::Result<()> {
    // SAFETY: as in `close_range_call`.
    let done = unsafe {
        if flags == libc::CLOSE_RANGE_CLOEXEC {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC)
        } else {
            libc::close(fd)
        }
    };
    match done {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EBADF) => Ok(()),
            error => Err(error),
        },
    }
}

fn close_range_call(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: the callers run in a cloned child, where no owner of a closed descriptor is dropped any more.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    super::done(done)
}
