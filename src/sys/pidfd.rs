//! Process file descriptors: signals and exit status without a race on a reused pid.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

/// `struct pidfd_info` of `linux/pidfd.h`, first published size (64 bytes).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

/// `PIDFD_INFO_EXIT` of `linux/pidfd.h`.
const INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)`: the size is part of the number, the kernel accepts every published one.
const GET_INFO: libc::c_ulong =
    (3 << 30) | ((size_of::<PidfdInfo>() as libc::c_ulong) << 16) | (0xff << 8) | 11;

/// Opens the process `pid` (pidfd_open(2)). ESRCH when it is gone.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    if pid <= 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        // gone, but still the number of a session or group: ESRCH since Linux 6.9
        Err(Errno::INVAL) => Err(Errno::SRCH.into()),
        other => Ok(other?),
    }
}

/// Whether the process has not ended yet (a zombie has).
pub fn is_alive(pidfd: &impl AsFd) -> bool {
    !wait(pidfd, Some(0)).unwrap_or(false)
}

/// Waits until the process has ended; `milliseconds` `None` waits for ever. `false` when it still runs.
pub fn wait(pidfd: &impl AsFd, milliseconds: Option<u64>) -> io::Result<bool> {
    let timeout = milliseconds.map(|ms| Timespec {
        tv_sec: (ms / 1000) as i64,
        tv_nsec: (ms % 1000 * 1_000_000) as i64,
    });
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            // the full time again: the bound is coarse on purpose
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(n) => return Ok(n > 0),
        }
    }
}

/// The wait status (as wait(2) encodes it) of a process that ended and was reaped by its parent, from the kernel's own record.
/// `None` while it runs, while it is a zombie, and before Linux 6.15.
pub fn exit_status(pidfd: &impl AsFd) -> Option<i32> {
    let mut info = PidfdInfo {
        mask: INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: `info` is the structure whose size the request number carries and lives through the call.
    let done = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), GET_INFO as _, &raw mut info) };
    (done == 0 && info.mask & INFO_EXIT != 0).then_some(info.exit_code)
}

/// Sends signal number `signal`, real-time signals included. ESRCH when the process has ended.
pub fn send_signal(pidfd: &impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers and a null pointer, which pidfd_send_signal(2) allows.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    super::done(done)
}

/// `siginfo_t` of sigqueue(3), as the kernel copies it: 128 bytes (asm-generic/siginfo.h).
#[repr(C)]
union SignalInfo {
    queued: Queued,
    whole: [u8; 128],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Queued {
    signo: i32,
    errno: i32,
    code: i32,
    sender: Sender,
}

/// Aligned as the union of the kernel is, by the pointer in `value`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sender {
    pid: i32,
    uid: u32,
    value: Value,
}

#[repr(C)]
#[derive(Clone, Copy)]
union Value {
    number: i32,
    pointer: usize,
}

/// Sends signal number `signal` with a value, as sigqueue(3) does. ESRCH when the process has ended.
pub fn queue_signal(pidfd: &impl AsFd, signal: i32, value: i32) -> io::Result<()> {
    let mut info = SignalInfo { whole: [0; 128] };
    info.queued.signo = signal;
    info.queued.code = libc::SI_QUEUE;
    info.queued.sender.value.number = value;
    // SAFETY: plain integers and a structure of the kernel's size that lives through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            &raw const info,
            0,
        )
    };
    super::done(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn follows_a_process_to_its_end() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = open(child.id() as i32).unwrap();
        assert!(is_alive(&pidfd));
        assert_eq!(exit_status(&pidfd), None);
        send_signal(&pidfd, libc::SIGTERM).unwrap();
        assert!(wait(&pidfd, None).unwrap());
        assert!(!is_alive(&pidfd));
        child.wait().unwrap();
        // None on a kernel before 6.15
        assert!(matches!(exit_status(&pidfd), None | Some(libc::SIGTERM)));
        assert_eq!(
            send_signal(&pidfd, libc::SIGTERM)
                .unwrap_err()
                .raw_os_error(),
            Some(libc::ESRCH)
        );
    }

    #[test]
    fn no_such_process() {
        for pid in [0, -1] {
            assert_eq!(open(pid).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        }
    }
}
