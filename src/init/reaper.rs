//! `init: true`: a first process that starts the program, passes signals on and reaps what is left to it.
//!
//! The container's first process executes this program again, from its sealed copy, under the name [`NAME`]; it has already
//! given up all privileges by then. *Invariants:* no signal is lost from the first instruction of [`main`] on; the exit code is
//! the program's, and with this process the kernel ends everything else in the container (pid_namespaces(7)).

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sys::{pidfd, process as calls, stderr, wait};

/// `argv[0]` that asks for it; the program's path and its arguments, the name first, follow.
pub const NAME: &str = "sampan-init";

/// Runs the program to its end.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            stderr::line(format_args!("{NAME}: {error}"));
            ExitCode::from(1)
        }
    }
}

fn run(arguments: impl Iterator<Item = OsString>) -> io::Result<u8> {
    let mut words = arguments
        .map(|word| Ok(CString::new(word.into_vec())?))
        .collect::<io::Result<Vec<_>>>()?;
    if words.len() < 2 {
        return Err(io::Error::other("needs the path and the name of a program"));
    }
    let program = words.remove(0);
    let all = SigSet::all();
    all.thread_block()?;
    let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC)?;
    let pid = match calls::fork()? {
        0 => execute(&program, &words),
        pid => pid,
    };
    let child = pidfd::open(pid)?;
    loop {
        if let Some(code) = reap(pid)? {
            return Ok(code);
        }
        let Some(signal) = signals.read_signal()? else {
            continue;
        };
        pass_on(&child, signal.ssi_signo as i32)?;
    }
}

/// The child: a process group of its own, so that what the terminal sends reaches it once.
fn execute(program: &CString, words: &[CString]) -> ! {
    // a group or a terminal that cannot be had changes nothing about the program
    let _ = rustix::process::setpgid(None, None);
    let stdin = rustix::stdio::stdin();
    if rustix::termios::isatty(stdin) {
        let _ = rustix::termios::tcsetpgrp(stdin, rustix::process::getpgrp());
    }
    calls::reset_signals();
    let environment: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            CString::new(entry).ok()
        })
        .collect();
    let error = calls::execve(program, words, &environment);
    stderr::line(format_args!("{NAME}: exec {program:?}: {error}"));
    calls::exit_now(match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    })
}

/// Reaps everything that has ended; the program's exit code once it is among it.
fn reap(program: i32) -> io::Result<Option<u8>> {
    let mut code = None;
    while let Some(ended) = wait::reap()? {
        if ended.pid == program {
            code = Some(ended.code as u8);
        }
    }
    Ok(code)
}

fn pass_on(child: &OwnedFd, signal: i32) -> io::Result<()> {
    // ours: a child ended, we were stopped by the terminal
    if [libc::SIGCHLD, libc::SIGTTIN, libc::SIGTTOU].contains(&signal) {
        return Ok(());
    }
    match pidfd::send_signal(child, signal) {
        // it just ended
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}
