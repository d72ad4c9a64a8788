//! The small first process of a container that asked for one (compose `init: true`): it ends orphans' zombies, passes
//! signals on to the program, and ends with its exit code. A program that is no first process gets the usual default
//! actions of signals, too (pid_namespaces(7)).
//!
//! *Invariants:* it has the program's ids, capabilities and filter; of the host it keeps no descriptor.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::channel::{Failure, Step};
use super::plan::ProcessPlan;
use super::process;
use crate::sys::{clone, fd, pidfd, process as calls};

/// `si_code` of signals that the kernel itself sends, such as those of a terminal's keys.
const SI_KERNEL: i32 = 0x80;

/// Comes back in a child that is to execute the program; the calling process stays as its parent, and ends with it.
pub fn split(plan: &ProcessPlan) -> Result<(), Failure> {
    // before there is a child: none of its signals is missed
    SigSet::all().thread_block().step("block signals")?;
    match clone::fork().step("fork the program from the first process")? {
        None => {
            calls::reset_signals();
            Ok(())
        }
        Some(program) => {
            let _ = attend(plan, program);
            calls::exit_now(1)
        }
    }
}

/// Until the program ends; an error is what keeps it from being attended to, and the container ends.
fn attend(plan: &ProcessPlan, program: i32) -> Result<(), Failure> {
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC)
        .step("open a signal descriptor")?;
    let child = pidfd::open(program).step("open the program's process")?;
    // the gate among them: whoever opened it waits for the program to have it alone
    fd::close_others(&[signals.as_raw_fd(), child.as_raw_fd()]).step("close descriptors")?;
    if plan.no_new_privileges {
        process::load_filter(plan)?;
    }
    // it may have ended before the signal descriptor was there
    reap(program);
    loop {
        let signal = match signals.read_signal() {
            Ok(Some(signal)) => signal,
            Ok(None) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).step("read signals"),
        };
        let number = signal.ssi_signo as i32;
        if number == libc::SIGCHLD {
            reap(program);
        } else if signal.ssi_code != SI_KERNEL || number == libc::SIGHUP {
            // those that a terminal's keys send reach the program anyway; one that ended is reaped next
            let _ = pidfd::send_signal(&child, number);
        }
    }
}

/// Ends every zombie; ends itself with the program.
fn reap(program: i32) {
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == program => calls::exit_now(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == program => {
                calls::exit_now(128 + signal as i32)
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            // a real-time signal ended it, which has no name here
            Err(Errno::EINVAL) if pidfd::open(program).is_err() => calls::exit_now(1),
            _ => {}
        }
    }
}
