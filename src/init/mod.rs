//! The child's stage: runs in the new namespaces, in one thread, and ends in execve or `_exit`.
//!
//! *Invariants:*
//! * Nothing is decided here: [`plan`] says what and in which order.
//! * No descriptor of the host is open when the container's program starts; while it waits at the gate only the gate's are.
//! * Every failure reaches the parent as one message ([`channel`]) or, after the gate, whoever opened it ([`gate`]).
//! * The child dies with its parent until it is released.
//!
//! The parent's stage is [`crate::container`].

pub mod channel;
pub mod gate;
pub mod hooks;
pub mod plan;
mod process;
pub mod reaper;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior};

use crate::sys::clone::{namespace_words, unshare};
use crate::sys::{fd, process as calls, procfs, seccomp as filters, socket};
use crate::{cgroup, rootfs, seccomp};
use channel::{Failure, FailureKind, Message, Step};
use plan::Step as PlanStep;

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

/// Takes the steps, the last of which is to become the program.
pub fn run(steps: &[PlanStep], inherited: &Inherited) -> ! {
    let mut child = Child {
        inherited,
        rootfs: rootfs::Work::default(),
        reaper: None,
        heard: false,
        entered: false,
        program: None,
        home: None,
        started: false,
    };
    let done = steps.iter().try_for_each(|step| child.take(step));
    let failure = done.err().unwrap_or_else(|| {
        Failure::new(
            "take the steps of the plan",
            "the last one is not to become a program",
        )
    });
    child.end(&failure)
}

/// Takes the first step already, if it is to close descriptors, and gives the others: in the process that clones a child into the pid
/// namespace of a container, where it can be seen from its first instruction on (CVE-2016-9962).
pub fn close_first<'a>(
    steps: &'a [PlanStep],
    inherited: &Inherited,
) -> Result<&'a [PlanStep], Failure> {
    let [PlanStep::CloseDescriptors { preserved }, others @ ..] = steps else {
        return Ok(steps);
    };
    close_descriptors(*preserved, inherited)?;
    Ok(others)
}

/// Moves the calling process into v1 hierarchies by their open `tasks`.
pub fn enter_cgroup<'a>(tasks: impl IntoIterator<Item = BorrowedFd<'a>>) -> Result<(), Failure> {
    // with what the kernel said
    let entered = cgroup::enter(tasks).map_err(anyhow::Error::from);
    entered.map_err(|error| Failure::new("enter the cgroup", format!("{error:#}")))
}

/// Lets go of what was inherited by accident.
fn close_descriptors(preserved: u32, inherited: &Inherited) -> Result<(), Failure> {
    let mut keep = vec![inherited.channel.as_raw_fd()];
    keep.extend(inherited.console_socket.iter().map(AsRawFd::as_raw_fd));
    keep.extend(inherited.gate.iter().flat_map(gate::Child::raw));
    fd::close_others(preserved, &keep).step("close inherited descriptors")
}

fn is(message: &Message, want: &Message) -> Result<(), Failure> {
    if message == want {
        return Ok(());
    }
    let unexpected = format!("unexpected message {message:?}");
    Err(Failure::new("hear from the parent", unexpected))
}

/// What the steps leave to later ones.
struct Child<'a> {
    inherited: &'a Inherited,
    rootfs: rootfs::Work,
    reaper: Option<OwnedFd>,
    /// Somebody listens to the filter.
    heard: bool,
    /// In the working directory.
    entered: bool,
    program: Option<CString>,
    /// `HOME=…`, when the environment has none.
    home: Option<CString>,
    /// The gate was opened.
    started: bool,
}

impl Child<'_> {
    fn take(&mut self, step: &PlanStep) -> Result<(), Failure> {
        match step {
            PlanStep::CloseDescriptors { preserved } => {
                close_descriptors(*preserved, self.inherited)
            }
            PlanStep::DieWithParent => {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                    .step("set the parent death signal")?;
                // it may have died before, with the message already sent that lets us go on
                match socket::is_closed(&self.inherited.channel) {
                    Ok(false) => Ok(()),
                    Ok(true) => Err(Failure::new("go on", "the parent died")),
                    Err(error) => Err(Failure::new("look for the parent", error)),
                }
            }
            PlanStep::Umask(mask) => {
                rustix::process::umask(rustix::fs::Mode::from_raw_mode(*mask));
                Ok(())
            }
            PlanStep::Namespaces(bits) => {
                let names = || namespace_words(*bits).join(", ");
                unshare(*bits)
                    .map_err(|error| Failure::new(&format!("make namespaces ({})", names()), error))
            }
            PlanStep::AwaitParent => {
                let tasks = self.await_message(&Message::Continue)?;
                enter_cgroup(tasks.iter().map(AsFd::as_fd))
            }
            PlanStep::Undumpable => set_dumpable_behavior(DumpableBehavior::NotDumpable)
                .step("make the process undumpable"),
            PlanStep::OpenReaper => {
                self.reaper = Some(own_program()?);
                Ok(())
            }
            PlanStep::NewSession => rustix::process::setsid()
                .map(drop)
                .step("make a new session"),
            PlanStep::NewKeyring => calls::new_session_keyring().step("make a new session keyring"),
            PlanStep::Loopback => calls::loopback_up().step("set the loopback interface up"),
            PlanStep::Hostname(name) => {
                rustix::system::sethostname(name.as_bytes()).step("set the host name")
            }
            PlanStep::Domainname(name) => {
                rustix::system::setdomainname(name.as_bytes()).step("set the domain name")
            }
            PlanStep::Sysctl { path, value } => {
                // through the host's `/proc`, where the calling process sees its own namespaces' values
                procfs::write(&Path::new("sys").join(path), value)
                    .step(&format!("set sysctl {}", path.display()))
            }
            PlanStep::BecomeRoot => process::become_root(),
            PlanStep::Root(path) => rustix::process::chdir(path)
                .and_then(|()| rustix::process::chroot("."))
                .step(&format!("change the root to {}", path.display())),
            PlanStep::CgroupNamespace => {
                nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).step("make a cgroup namespace")
            }
            PlanStep::Rootfs(rootfs::Step::MapSource { source, map }) => {
                self.map_source(*source, map)
            }
            PlanStep::Rootfs(step) => Ok(self.rootfs.take(step)?),
            PlanStep::AwaitHooks => {
                channel::send(&self.inherited.channel, &Message::Mounted, None)
                    .step("report to the parent")?;
                self.expect(&Message::Continue)
            }
            PlanStep::Hooks(hooks) => {
                let mut hooks = hooks.clone();
                // theirs is the program's environment, once it is known
                let home = self.home.as_ref().map(|home| home.to_string_lossy());
                hooks.env.extend(home.map(|home| home.into_owned()));
                hooks.run(Some(std::process::id() as i32))
            }
            PlanStep::Terminal {
                rows,
                columns,
                uid,
                console,
            } => self.terminal((*rows, *columns), *uid, *console),
            PlanStep::Processors { mask, must } => process::processors(mask, *must),
            PlanStep::Personality(persona) => process::personality(*persona),
            PlanStep::MemoryPolicy { mode, nodes } => process::memory_policy(*mode, nodes),
            PlanStep::Scheduler { attributes, pinned } => process::scheduler(attributes, *pinned),
            PlanStep::IoPriority { class, priority } => process::io_priority(*class, *priority),
            PlanStep::AppArmor(profile) => process::apparmor(profile),
            PlanStep::SelinuxLabel(label) => process::selinux(label),
            PlanStep::Rlimit {
                resource,
                soft,
                hard,
            } => process::set_limit(*resource, *soft, *hard),
            PlanStep::GiveStreams { uid } => process::give_streams(*uid),
            PlanStep::TryCwd(path) => {
                self.entered = rustix::process::chdir(path).is_ok();
                Ok(())
            }
            PlanStep::Cwd(path) => process::enter_cwd(path, self.entered),
            PlanStep::FindHome { uid } => {
                self.home = Some(process::home(*uid));
                Ok(())
            }
            PlanStep::Bounding(set) => process::drop_bounding(*set),
            PlanStep::Groups(groups) => process::set_groups(groups),
            PlanStep::User { uid, gid } => process::become_user(*uid, *gid),
            PlanStep::Capabilities(sets) => process::set_capabilities(sets),
            PlanStep::NoNewPrivileges => {
                rustix::thread::set_no_new_privs(true).step("set no_new_privs")
            }
            PlanStep::Seccomp(program) => self.load_filter(program),
            PlanStep::FindProgram { name, search } => {
                self.program = Some(process::find_program(name, search)?);
                Ok(())
            }
            // under a filter that may forbid all of socket(7)
            PlanStep::Ready => channel::write(&self.inherited.channel, &Message::Ready)
                .step("report to the parent"),
            // who listens may answer for read(2) as a program would want it
            PlanStep::AwaitRelease if self.heard => self.expect(&Message::Release),
            PlanStep::AwaitRelease => {
                match channel::read(&self.inherited.channel).step("hear from the parent")? {
                    Some(message) => is(&message, &Message::Release),
                    None => calls::exit_now(1),
                }
            }
            PlanStep::OutliveParent => rustix::process::set_parent_process_death_signal(None)
                .step("clear the parent death signal"),
            PlanStep::ResetSignals => {
                calls::reset_signals();
                Ok(())
            }
            PlanStep::Gate { preserved } => self.wait_at_gate(*preserved),
            PlanStep::CloseOnExec { preserved } => {
                fd::close_on_exec(*preserved).step("mark descriptors")
            }
            PlanStep::Execute { argv, env } => Err(self.execute(argv, env)),
        }
    }

    /// Waits for one message of the parent that brings nothing along.
    fn expect(&self, want: &Message) -> Result<(), Failure> {
        self.await_message(want).map(drop)
    }

    /// Waits for one message of the parent. When that is gone, there is nobody to tell.
    fn await_message(&self, want: &Message) -> Result<Vec<OwnedFd>, Failure> {
        match channel::receive_all(&self.inherited.channel).step("hear from the parent")? {
            Some((message, fds)) => is(&message, want).map(|()| fds),
            None => calls::exit_now(1),
        }
    }

    /// The parent may give a mount an id map, we may not when we are in a user namespace.
    fn map_source(&self, source: usize, map: &rootfs::SourceMap) -> Result<(), Failure> {
        let message = Message::MapSource(map.clone());
        let tree = self.rootfs.source(source)?;
        channel::send(&self.inherited.channel, &message, Some(tree))
            .step("ask the parent to map the ids of a mount")?;
        self.expect(&Message::Continue)
    }

    fn terminal(&mut self, size: (u16, u16), uid: u32, console: bool) -> Result<(), Failure> {
        let master = if console {
            process::terminal(self.rootfs.root()?, size, uid, true)?
        } else {
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
            let root =
                rustix::fs::open("/", flags, rustix::fs::Mode::empty()).step("open the root")?;
            process::terminal(&root, size, uid, false)?
        };
        match &self.inherited.console_socket {
            Some(console) => socket::send(console, b"/dev/ptmx", Some(&master))
                .step("send the terminal to the console socket"),
            None => channel::send(&self.inherited.channel, &Message::Terminal, Some(&master))
                .step("send the terminal to the parent"),
        }
    }

    /// Loads the filter; a listener goes to the parent, which passes it on.
    fn load_filter(&mut self, program: &seccomp::Program) -> Result<(), Failure> {
        const STEP: &str = "load the seccomp filter";
        let (instructions, flags) = (&program.instructions, program.flags);
        if !program.notifies {
            return filters::load(instructions, flags).step(STEP);
        }
        let channel = &self.inherited.channel;
        let hand_over =
            |listener: &OwnedFd| channel::send(channel, &Message::Listener, Some(listener));
        let (listener, helper) =
            filters::load_with_listener(instructions, flags, hand_over).step(STEP)?;
        self.heard = true;
        // from here on the one who listens may have to answer for any call
        self.expect(&Message::Continue)?;
        drop(listener);
        match helper.ended_well().step(STEP)? {
            true => Ok(()),
            false => Err(Failure::new(STEP, "the listener was not handed over")),
        }
    }

    /// Only the gate stays open: whoever started us must see the end of what it gave us.
    fn wait_at_gate(&mut self, preserved: u32) -> Result<(), Failure> {
        let gate = self
            .inherited
            .gate
            .as_ref()
            .ok_or_else(|| Failure::new("wait at the gate", "there is none"))?;
        let mut keep = gate.raw().to_vec();
        keep.extend(self.reaper.iter().map(AsRawFd::as_raw_fd));
        // who is to go before it began goes; from before `create` ends, which the closed channel tells it to do
        calls::end_on_signals().step("handle signals")?;
        fd::close_others(preserved, &keep).step("close descriptors")?;
        if gate.wait().is_err() {
            calls::exit_now(1);
        }
        self.started = true;
        Ok(())
    }

    /// Comes back only when it failed.
    fn execute(&self, argv: &[CString], env: &[CString]) -> Failure {
        let Some(program) = &self.program else {
            return Failure::new("execute", "no program was looked for");
        };
        let mut env = env.to_vec();
        env.extend(self.home.clone());
        process::execute(program, argv, &env, self.reaper.as_ref())
    }

    /// Reports the failure and ends. There is no other way out of the child.
    fn end(&self, failure: &Failure) -> ! {
        match &self.inherited.gate {
            Some(gate) if self.started => gate.report(failure),
            _ => {
                // the parent may be gone: then nobody is left to tell
                let message = Message::Failed(failure.clone());
                let _ = channel::send(&self.inherited.channel, &message, None);
            }
        }
        calls::exit_now(match failure.kind {
            FailureKind::NotFound => 127,
            FailureKind::NotRunnable => 126,
            FailureKind::Other => 1,
        })
    }
}

/// The program that runs now.
fn own_program() -> Result<OwnedFd, Failure> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/exe", flags, rustix::fs::Mode::empty()).step("open own program")
}
