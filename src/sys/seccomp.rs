//! seccomp(2): loading filters, with and without somebody who listens.
#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, Signal, WaitOptions};

use super::clone::{Cloned, clone3};
use super::process::exit_now;

/// Instructions as (code, jt, jf, k).
type Instructions = [(u16, u8, u8, u32)];

/// Loads a classic BPF filter with `SECCOMP_FILTER_FLAG_*` bits `flags`, `NEW_LISTENER` not among them.
pub fn load(instructions: &Instructions, flags: u64) -> io::Result<()> {
    match set_filter(instructions, flags)? {
        0 => Ok(()),
        // SECCOMP_FILTER_FLAG_TSYNC answers the thread that could not follow
        thread => Err(io::Error::other(format!(
            "thread {thread} cannot take the filter"
        ))),
    }
}

/// A process that hands a listener over. It shares our descriptors: the pipe that it reads from is open until it has ended.
#[derive(Debug)]
pub struct Helper(Pid, [OwnedFd; 2]);

impl Helper {
    /// Waits for its end; whether it did what it was for.
    pub fn ended_well(self) -> io::Result<bool> {
        let Helper(pid, pipe) = self;
        let ended = rustix::io::retry_on_intr(|| {
            rustix::process::waitpid(Some(pid), WaitOptions::empty())
        })?;
        drop(pipe);
        Ok(ended.is_some_and(|(_, status)| status.exit_status() == Some(0)))
    }
}

/// Loads a filter with `NEW_LISTENER` among its flags. The filter may hold any system call of the caller until somebody listens, so the
/// listener goes to `hand_over` in a process that shares the caller's descriptors and was cloned before; the caller itself makes
/// one call, the write(2) that tells the descriptor, which must not be among those that are held.
pub fn load_with_listener(
    instructions: &Instructions,
    flags: u64,
    hand_over: impl FnOnce(&OwnedFd) -> io::Result<()>,
) -> io::Result<(OwnedFd, Helper)> {
    let (mut told, tell) = io::pipe()?;
    let helper = match clone3(libc::CLONE_FILES as u64, None)? {
        Cloned::Child => {
            // both ends are open as long as one of us lives
            let bound = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            let mut number = [0; 4];
            let heard = told.read_exact(&mut number);
            // SAFETY: the caller's descriptor, which it keeps open until we have ended; never closed here.
            let listener = unsafe { OwnedFd::from_raw_fd(i32::from_ne_bytes(number)) };
            let listener = ManuallyDrop::new(listener);
            let done = bound.map_err(io::Error::from).and(heard);
            exit_now(i32::from(done.and_then(|()| hand_over(&listener)).is_err()))
        }
        Cloned::Parent(pid, _) => Pid::from_raw(pid),
    };
    let helper = helper.ok_or_else(|| io::Error::other("a clone without pid"))?;
    let loaded = set_filter(instructions, flags).and_then(|number| {
        // SAFETY: NEW_LISTENER gave a descriptor that nobody else owns.
        let listener = unsafe { OwnedFd::from_raw_fd(number) };
        (&tell).write_all(&listener.as_raw_fd().to_ne_bytes())?;
        Ok(listener)
    });
    if loaded.is_err() {
        let _ = rustix::process::kill_process(helper, Signal::KILL);
    }
    let helper = Helper(helper, [told.into(), tell.into()]);
    match loaded {
        Ok(listener) => Ok((listener, helper)),
        Err(error) => {
            let _ = helper.ended_well();
            Err(error)
        }
    }
}

/// seccomp(2) `SECCOMP_SET_MODE_FILTER`: 0, a thread or a descriptor.
fn set_filter(instructions: &Instructions, flags: u64) -> io::Result<i32> {
    let mut filter: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k })
        .collect();
    let len = u16::try_from(filter.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "filter is too long"))?;
    let program = libc::sock_fprog {
        len,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: `program` describes `filter`, and both outlive the call, which copies them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match i32::try_from(done) {
        Ok(-1) | Err(_) => Err(io::Error::last_os_error()),
        Ok(number) => Ok(number),
    }
}
