//! clone3(2): a new process in new namespaces, in its cgroup from the first instruction.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// We are a clone ourselves: one thread for certain, and `/proc` may be another's by now.
static CLONED: AtomicBool = AtomicBool::new(false);

/// Which side of the clone the caller is.
#[derive(Debug)]
pub enum Cloned {
    /// The new process. It must end in execve or `_exit`: what it inherited belongs to the parent.
    Child,
    /// The parent, with the child's pid in its own pid namespace and a pidfd.
    Parent(i32, OwnedFd),
}

/// fork(2): `None` in the child, its pid in the parent. Unlike clone3 it passes the usual system call filters.
pub fn fork() -> io::Result<Option<i32>> {
    if !CLONED.load(Ordering::Relaxed) && !super::process::is_single_threaded()? {
        return Err(io::Error::other(
            "fork needs a process with a single thread",
        ));
    }
    // SAFETY: there is one thread, so the child has no lock that nobody will open.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            CLONED.store(true, Ordering::Relaxed);
            Ok(None)
        }
        pid => Ok(Some(pid)),
    }
}

/// Clones the calling process with `CLONE_*` bits `flags`, into `cgroup` (a v2 folder) when given. With `CLONE_PARENT` the child's parent
/// is the caller's. Fails when the process has more than one thread: locks held by the others would stay locked in the child.
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    if !CLONED.load(Ordering::Relaxed) && !super::process::is_single_threaded()? {
        return Err(io::Error::other(
            "clone needs a process with a single thread",
        ));
    }
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers, for which zero means "not asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    // CLONE_PARENT takes the caller's own exit signal, and clone3 refuses another
    if flags & libc::CLONE_PARENT as u64 == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= 1 << 33; // CLONE_INTO_CGROUP, which libc has as a truncated int
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` lives through the call; without CLONE_VM the child has a copy of this single thread's memory and stack,
    // as after fork(2).
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            CLONED.store(true, Ordering::Relaxed);
            Ok(Cloned::Child)
        }
        // SAFETY: CLONE_PIDFD stored a descriptor that nobody else owns.
        pid => Ok(Cloned::Parent(pid as i32, unsafe {
            OwnedFd::from_raw_fd(pidfd)
        })),
    }
}
