//! Cloning a child into namespaces, new and existing, and the first half of the talk with it.

use std::cell::{Cell, RefCell};
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::process::{DumpableBehavior, Pid, WaitOptions, WaitStatus, set_dumpable_behavior};

use super::{Error, idmap};
use crate::cgroup::Entry;
use crate::init::channel::{self, Failure, Message, Step as _};
use crate::init::plan::Step;
use crate::init::{self, Inherited};
use crate::sys::clone::{Cloned, clone3, namespace_words};
use crate::sys::{pidfd, process, procfs};

/// What to join before the clone.
#[derive(Debug)]
pub enum Join {
    /// Namespaces by file: `CLONE_NEW*` bit, its path for messages, and the open file.
    Files(Vec<(u64, String, OwnedFd)>),
    /// Those of a process.
    Process(OwnedFd, u64),
}

/// Where the child is to be.
#[derive(Debug)]
pub struct Place<'a> {
    /// `CLONE_NEW*` bits to make.
    pub new: u64,
    /// What to join before.
    pub join: Option<&'a Join>,
    /// For `timens_offsets` of the new time namespace.
    pub time_offsets: Option<&'a str>,
    /// How it gets into its cgroup. The v1 part is for the one that joins; without that [`Child::begin`] has it.
    pub entry: &'a Entry,
}

/// A child that waits for `Continue`. It is a child of the caller, wherever it was cloned.
#[derive(Debug)]
pub struct Child {
    /// In the caller's pid namespace.
    pub pid: i32,
    /// The same, safe against reuse.
    pub pidfd: OwnedFd,
    /// It was told to go on, and was not heard of since.
    begun: Cell<bool>,
    terminal: RefCell<Option<OwnedFd>>,
    channel: OwnedFd,
}

/// Clones into new namespaces and a cgroup, after joining what there is to join: that needs a process in between, since setns
/// to a pid namespace counts for children only, and the caller itself stays where it is. So do the offsets of a time namespace, which are
/// fixed once a process is in it. The one in between is in the cgroup already: from
/// within a cgroup namespace nothing outside of it can be moved (cgroup-v2.rst, "Delegation Containment": ENOENT with `nsdelegate`).
pub fn spawn(
    steps: &[Step],
    place: &Place<'_>,
    console_socket: Option<OwnedFd>,
    gate: Option<init::gate::Child>,
) -> Result<Child, Error> {
    let (channel, theirs) =
        crate::sys::socket::pair().map_err(|error| Error::step("make a channel", error))?;
    let inherited = Inherited {
        channel: theirs,
        gate,
        console_socket,
    };
    let (new, entry) = (place.new, place.entry);
    let cgroup = entry.folder();
    let failed = |error: std::io::Error| {
        let busy = error.kind() == std::io::ErrorKind::ResourceBusy;
        match Error::step(format!("clone into new namespaces ({})", names(new)), error) {
            Error::Other(text) if busy => Error::CgroupBusy(text),
            error => error,
        }
    };
    if place.join.is_none() && place.time_offsets.is_none() {
        return match clone3(new, cgroup).map_err(failed)? {
            Cloned::Child => init::run(steps, &inherited),
            Cloned::Parent(pid, pidfd) => Ok(Child {
                pid,
                pidfd,
                begun: Cell::new(false),
                terminal: RefCell::new(None),
                channel,
            }),
        };
    }
    let between = match clone3(0, cgroup).map_err(failed)? {
        Cloned::Child => {
            let cloned = init::enter_cgroup(entry.tasks())
                .and_then(|()| prepare(place))
                .and_then(|new| Ok((new, init::close_first(steps, &inherited)?)))
                .and_then(|(new, others)| {
                    let cloned = clone3(new | libc::CLONE_PARENT as u64, None);
                    let step = "clone in the joined namespaces";
                    Ok((cloned.step(step)?, others))
                });
            let message = match cloned {
                Ok((Cloned::Child, others)) => init::run(others, &inherited),
                Ok((Cloned::Parent(pid, _), _)) => Message::Pid(pid),
                Err(failure) => Message::Failed(failure),
            };
            // a parent that is gone takes the child with it
            let sent = channel::send(&inherited.channel, &message, None);
            process::exit_now(i32::from(sent.is_err()))
        }
        Cloned::Parent(pid, _) => pid,
    };
    // close the other end: only the child may keep it open
    drop(inherited);
    let answer = channel::receive(&channel);
    let status = reap(between);
    match answer.map_err(|error| Error::step("hear from the joining process", error))? {
        Some((Message::Pid(pid), _)) => {
            let pidfd = pidfd::open(pid)
                .map_err(|error| Error::step(format!("open process {pid}"), error))?;
            Ok(Child {
                pid,
                pidfd,
                begun: Cell::new(false),
                terminal: RefCell::new(None),
                channel,
            })
        }
        Some((Message::Failed(failure), _)) => Err(failure.into()),
        _ => Err(Error::Other(format!(
            "join namespaces: the process ended with {status}"
        ))),
    }
}

/// Nobody whose namespaces are joined gets at the child, which inherits this: it is root of the host until it has become the container's
/// user, and CAP_SYS_PTRACE in its user namespace would be enough (CVE-2016-9962). The files in /proc of one that cannot be traced are
/// root's, so an ordinary user could not write the child's: one has no rights to lose either that its containers don't have.
fn hide(place: &Place<'_>) -> Result<(), Failure> {
    if place.join.is_none() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("make the joining process undumpable")
}

/// Joins, and makes the time namespace when it has offsets; what is left to make comes back.
fn prepare(place: &Place<'_>) -> Result<u64, Failure> {
    let Some(offsets) = place.time_offsets else {
        hide(place)?;
        place.join.map_or(Ok(()), enter)?;
        return Ok(place.new);
    };
    // before another mount namespace brings another /proc
    let file = procfs::open_own("timens_offsets")
        .step("open timens_offsets (a kernel without time namespaces?)")?;
    hide(place)?;
    place.join.map_or(Ok(()), enter)?;
    unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME)).step("make a time namespace")?;
    procfs::write_to(&file, offsets).step(&format!("write {offsets:?} to timens_offsets"))?;
    Ok(place.new & !(libc::CLONE_NEWTIME as u64))
}

/// Joins. A namespace that belongs to a user namespace can be joined only after that, others only before it.
fn enter(join: &Join) -> Result<(), Failure> {
    let flags = |bits: u64| CloneFlags::from_bits_retain(bits as i32);
    let files = match join {
        // a container that has none of its own
        Join::Process(_, 0) => return Ok(()),
        Join::Process(pidfd, bits) => {
            return setns(pidfd, flags(*bits)).step("join the namespaces of the container");
        }
        Join::Files(files) => files,
    };
    let is_user = |bits: u64| bits == libc::CLONE_NEWUSER as u64;
    let user = files.iter().find(|(bits, ..)| is_user(*bits));
    let mut later = Vec::new();
    for file in files.iter().filter(|(bits, ..)| !is_user(*bits)) {
        match setns(&file.2, flags(file.0)) {
            Err(nix::errno::Errno::EPERM) if user.is_some() => later.push(file),
            other => other.step(&format!("join namespace {}", file.1))?,
        }
    }
    for (bits, path, file) in user.into_iter().chain(later) {
        setns(file, flags(*bits)).step(&format!("join namespace {path}"))?;
    }
    Ok(())
}

/// `CLONE_NEW*` bits in words.
fn names(bits: u64) -> String {
    match namespace_words(bits).join(", ") {
        names if names.is_empty() => "none".to_owned(),
        names => names,
    }
}

/// Waits for a child and tells how it ended.
fn reap(pid: i32) -> String {
    let Some(pid) = Pid::from_raw(pid) else {
        return "no status".to_owned();
    };
    match rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), WaitOptions::empty())) {
        Ok(Some((_, status))) => describe(status),
        Ok(None) => "no status".to_owned(),
        Err(error) => format!("an unknown status ({error})"),
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(9)) => "signal 9 (out of memory in the cgroup, or killed)".to_owned(),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "no status".to_owned(),
    }
}

impl Child {
    /// Lets it begin, and enter the v1 cgroups of `entry`; what it says is heard by the next call.
    pub fn begin(&self, entry: &Entry) -> Result<(), Error> {
        self.begun.set(true);
        self.tell(&Message::Continue, &entry.tasks())
    }

    /// Lets it set itself up to the point where hooks run.
    pub fn mount(&self) -> Result<(), Error> {
        match self.go_on()? {
            Some((Message::Mounted, _)) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Lets it set itself up to the point where its filter is loaded, and gives the listener of that.
    pub fn load_filter(&self) -> Result<OwnedFd, Error> {
        match self.go_on()? {
            Some((Message::Listener, Some(listener))) => Ok(listener),
            other => Err(unexpected(other)),
        }
    }

    /// Lets it set itself up; gives the terminal when it sends one.
    pub fn set_up(&self) -> Result<Option<OwnedFd>, Error> {
        match self.go_on()? {
            Some((Message::Ready, _)) => Ok(self.terminal.take()),
            other => Err(unexpected(other)),
        }
    }

    /// Lets it go on; maps the mounts on the way, which takes rights that it does not have.
    fn go_on(&self) -> Result<Option<(Message, Option<OwnedFd>)>, Error> {
        loop {
            if !self.begun.take() {
                self.tell(&Message::Continue, &[])?;
            }
            match self.hear()? {
                Some((Message::MapSource(map), Some(tree))) => {
                    idmap::map_source(self.pid, &tree, &map)?;
                }
                Some((Message::Terminal, Some(master))) => {
                    self.terminal.replace(Some(master));
                    // it does not wait for an answer
                    self.begun.set(true);
                }
                other => return Ok(other),
            }
        }
    }

    /// Lets it go to the gate.
    pub fn release(&self) -> Result<(), Error> {
        self.tell(&Message::Release, &[])
    }

    /// Waits until it closed its end: the first process on its way to the gate, another one by executing its program.
    pub fn let_go(&self) -> Result<(), Error> {
        match self.hear()? {
            // it also closes when the process dies, which its exit status tells the caller
            None => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn tell(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        // a child that died says why in its last message
        match channel::send_all(&self.channel, message, fds) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::step("talk to the child", error))
            }
            _ => Ok(()),
        }
    }

    fn hear(&self) -> Result<Option<(Message, Option<OwnedFd>)>, Error> {
        match channel::receive(&self.channel)
            .map_err(|error| Error::step("hear from the child", error))?
        {
            Some((Message::Failed(failure), _)) => Err(failure.into()),
            other => Ok(other),
        }
    }

    /// Why it failed, when it has said so: what the parent saw of that may be less. Does not wait.
    pub fn last_words(&self) -> Option<Error> {
        match channel::look(&self.channel) {
            Ok(Some(Message::Failed(failure))) => Some(failure.into()),
            _ => None,
        }
    }

    /// Kills and reaps it, and tells how it ended. Missing is success.
    pub fn undo(&self) -> String {
        // ESRCH: it ended by itself
        let _ = pidfd::send_signal(&self.pidfd, libc::SIGKILL);
        reap(self.pid)
    }
}

fn unexpected(message: Option<(Message, Option<OwnedFd>)>) -> Error {
    match message {
        None => Error::Died,
        Some((message, _)) => {
            Error::Other(format!("unexpected message {message:?} from the child"))
        }
    }
}
