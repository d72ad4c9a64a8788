//! How children ended, by any signal: nix has no names for those of real time (signal(7)), and gives an error for a child that it has reaped.
#![allow(unsafe_code)]

use std::io;

/// A child that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its number.
    pub pid: i32,
    /// Exit code; as a shell has it when a signal was the end.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// Reaps a child that has ended. `None`: there is none at the moment.
pub fn reap() -> io::Result<Option<Ended>> {
    wait(libc::P_ALL, 0, libc::WNOHANG)
}

/// Waits for the end of a child, and reaps it.
pub fn reap_one(pid: i32) -> io::Result<Ended> {
    let ended = wait(libc::P_PID, pid as libc::id_t, 0)?;
    ended.ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))
}

/// A child that has ended, which stays to be reaped; waits for one.
pub fn await_any() -> io::Result<Option<Ended>> {
    wait(libc::P_ALL, 0, libc::WNOWAIT)
}

/// As [`await_any`], without waiting.
pub fn look() -> io::Result<Option<Ended>> {
    wait(libc::P_ALL, 0, libc::WNOWAIT | libc::WNOHANG)
}

fn wait(which: libc::idtype_t, id: libc::id_t, flags: i32) -> io::Result<Option<Ended>> {
    // SAFETY: plain data, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: the kernel writes at most one siginfo_t.
        if unsafe { libc::waitid(which, id, &raw mut info, libc::WEXITED | flags) } == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ECHILD) => return Ok(None),
            _ => return Err(error),
        }
    }
    // SAFETY: waitid(2) fills these, or leaves them zero when there is nobody.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(match info.si_code {
        libc::CLD_EXITED => Ended {
            pid,
            code: status,
            signal: None,
        },
        _ => Ended {
            pid,
            code: 128 + status,
            signal: Some(status),
        },
    }))
}
