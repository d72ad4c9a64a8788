//! The child's stage: runs in the new namespaces, in one thread, and ends in execve or `_exit`.
//!
//! *Invariants:*
//! * Nothing is decided here: [`plan`] says what, the order of the functions says when.
//! * No descriptor of the host is open when the container's program starts; while it waits at the gate only the gate's are.
//! * Every failure reaches the parent as one message ([`channel`]) or, after the gate, whoever opened it ([`gate`]).
//! * The child dies with its parent until it is released.
//!
//! The parent's stage is [`crate::container`].

pub mod channel;
pub mod gate;
pub mod plan;
mod process;
mod reaper;

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior};

use crate::rootfs;
use crate::sys::{fd, process as calls};
use channel::{Failure, FailureKind, Message, Step};
use plan::{InitPlan, ProcessPlan};

/// Magic number of procfs, `linux/magic.h`.
const PROC_MAGIC: u64 = 0x9fa0;

/// What the child inherits on purpose.
#[derive(Debug)]
pub struct Inherited {
    /// To the parent.
    pub channel: OwnedFd,
    /// The start gate, for the first process.
    pub gate: Option<gate::Child>,
    /// Where the terminal's master goes; the parent when `None`.
    pub console_socket: Option<OwnedFd>,
}

/// The first process of a container, from clone to execve.
pub fn run(plan: &InitPlan, inherited: &Inherited) -> ! {
    let work = || {
        begin(inherited)?;
        let master = set_up(plan, inherited)?;
        finish(&plan.process, inherited, master)
    };
    end(inherited, work())
}

/// A later process of a container, already in its namespaces.
pub fn run_exec(plan: &ProcessPlan, inherited: &Inherited) -> ! {
    let work = || {
        begin(inherited)?;
        new_session()?;
        if plan.user_namespace {
            process::become_root()?;
        }
        let mut master = None;
        if let Some(size) = plan.terminal {
            let root = rustix::fs::open(
                "/",
                rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .step("open the root")?;
            master = process::terminal(&root, plan, size, inherited, false)?;
        }
        finish(plan, inherited, master)
    };
    end(inherited, work())
}

/// Reports the failure and ends. There is no other way out of the child.
fn end(inherited: &Inherited, done: Result<std::convert::Infallible, Failure>) -> ! {
    let Err(failure) = done;
    // the parent may be gone: then nobody is left to tell
    let _ = channel::send(&inherited.channel, &Message::Failed(failure), None);
    calls::exit_now(1)
}

/// Lets go of what was inherited by accident and waits for the parent.
fn begin(inherited: &Inherited) -> Result<(), Failure> {
    let mut keep = vec![inherited.channel.as_raw_fd()];
    keep.extend(inherited.console_socket.iter().map(AsRawFd::as_raw_fd));
    keep.extend(inherited.gate.iter().flat_map(gate::Child::raw));
    fd::close_others(&keep).step("close inherited descriptors")?;
    die_with_parent()?;
    rustix::process::umask(rustix::fs::Mode::empty());
    expect(inherited, &Message::Continue)?;
    // until execve, no process of the container may look into this one; only now, since the parent writes files of ours in /proc
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("make the process undumpable")
}

/// Cleared by the kernel whenever ids change, so it is asked for again then. A parent that dies in between closes the channel.
fn die_with_parent() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step("set the parent death signal")
}

/// Waits for one message of the parent.
fn expect(inherited: &Inherited, want: &Message) -> Result<(), Failure> {
    match channel::receive(&inherited.channel).step("hear from the parent")? {
        Some((message, _)) if message == *want => Ok(()),
        Some((message, _)) => Err(Failure::new(
            "hear from the parent",
            format!("unexpected message {message:?}"),
        )),
        None => calls::exit_now(1),
    }
}

/// Session, names, sysctls, file system: what only the first process does. The terminal's master comes back when the parent wants it.
fn set_up(plan: &InitPlan, inherited: &Inherited) -> Result<Option<OwnedFd>, Failure> {
    new_session()?;
    if plan.loopback {
        calls::loopback_up().step("set the loopback interface up")?;
    }
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).step("set the host name")?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).step("set the domain name")?;
    }
    for (path, value) in &plan.sysctls {
        write_sysctl(path, value).step(&format!("set sysctl {}", path.display()))?;
    }
    let prepared = rootfs::prepare(&plan.rootfs)?;
    if plan.process.user_namespace {
        process::become_root()?;
    }
    if plan.cgroup_namespace {
        nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).step("make a cgroup namespace")?;
    }
    let root = rootfs::mount_all(&plan.rootfs, prepared)?;
    let mut master = None;
    if let Some(size) = plan.process.terminal {
        master = process::terminal(&root, &plan.process, size, inherited, true)?;
    }
    rootfs::enter(&plan.rootfs, &root)?;
    Ok(master)
}

fn new_session() -> Result<(), Failure> {
    rustix::process::setsid().step("make a new session")?;
    calls::new_session_keyring().step("make a new session keyring")
}

/// Writes through the host's `/proc`, where the calling process sees its own namespaces' values.
fn write_sysctl(path: &Path, value: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(Path::new("/proc/sys").join(path))?;
    if rustix::fs::fstatfs(&file)?.f_type as u64 != PROC_MAGIC {
        return Err(std::io::Error::other("/proc/sys is not procfs"));
    }
    file.write_all(value.as_bytes())
}

/// Ids, limits, filter, gate, execve.
fn finish(
    plan: &ProcessPlan,
    inherited: &Inherited,
    master: Option<OwnedFd>,
) -> Result<std::convert::Infallible, Failure> {
    process::restrict(plan)?;
    die_with_parent()?;
    let program = process::find_program(plan)?;
    channel::send(&inherited.channel, &Message::Ready, master.as_ref())
        .step("report to the parent")?;
    drop(master);
    expect(inherited, &Message::Release)?;
    rustix::process::set_parent_process_death_signal(None).step("clear the parent death signal")?;
    calls::reset_signals();
    let Some(gate) = &inherited.gate else {
        fd::close_on_exec().step("mark descriptors")?;
        return Err(process::execute(plan, &program));
    };
    // only the gate stays open: whoever started us must see the end of what it gave us
    fd::close_others(&gate.raw()).step("close descriptors")?;
    if gate.wait().is_err() {
        calls::exit_now(1);
    }
    let split = if plan.reaper {
        reaper::split(plan)
    } else {
        Ok(())
    };
    let failure = match split {
        Ok(()) => process::execute(plan, &program),
        Err(failure) => failure,
    };
    gate.report(&failure);
    calls::exit_now(match failure.kind {
        FailureKind::NotFound => 127,
        FailureKind::NotRunnable => 126,
        FailureKind::Other => 1,
    })
}
