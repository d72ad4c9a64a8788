//! clone3(2): a new process in new namespaces, in its cgroup from the first instruction. And unshare(2), with the same words.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// We are a clone ourselves: one thread for certain, and `/proc` may be another's by now.
static CLONED: AtomicBool = AtomicBool::new(false);

/// Moves the calling process into new namespaces. Errors whose number misleads come with a hint.
pub fn unshare(flags: u64) -> io::Result<()> {
    let flags = nix::sched::CloneFlags::from_bits_retain(flags as i32);
    nix::sched::unshare(flags).map_err(|error| explain(error.into()))
}

/// Which side of the clone the caller is.
#[derive(Debug)]
pub enum Cloned {
    /// The new process. It must end in execve or `_exit`: what it inherited belongs to the parent.
    Child,
    /// The parent, with the child's pid in its own pid namespace and a pidfd.
    Parent(i32, OwnedFd),
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
        -1 => Err(explain(io::Error::last_os_error())),
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

/// Errors of clone(2) and unshare(2) whose number misleads.
fn explain(error: io::Error) -> io::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "not privileged, or user namespaces are restricted (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
        }
        Some(libc::ENOSPC | libc::EUSERS) => {
            "too many namespaces (sysctl user.max_*_namespaces) or nested too deep"
        }
        Some(libc::ENOMEM) => "out of memory, or the pid namespace's first process is gone",
        Some(libc::EAGAIN) => "too many processes (pids limit of the cgroup, RLIMIT_NPROC)",
        Some(libc::EBUSY | libc::EOPNOTSUPP) => {
            "the cgroup has child cgroups with controllers, or is a threaded one"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}: {hint}"))
}

/// `CLONE_NEW*` bits in words.
pub fn namespace_words(bits: u64) -> Vec<&'static str> {
    [
        (libc::CLONE_NEWNS, "mount"),
        (libc::CLONE_NEWUTS, "uts"),
        (libc::CLONE_NEWIPC, "ipc"),
        (libc::CLONE_NEWUSER, "user"),
        (libc::CLONE_NEWPID, "pid"),
        (libc::CLONE_NEWNET, "network"),
        (libc::CLONE_NEWCGROUP, "cgroup"),
        (libc::CLONE_NEWTIME, "time"),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & *bit as u64 != 0)
    .map(|(_, name)| name)
    .collect()
}
