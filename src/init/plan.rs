//! What the child does, as data: a list of steps in their order, made by [`crate::container::plan`] and carried over by the clone.
//!
//! *Invariants:* a step holds all that it needs; what it makes for later ones (the root, the terminal, the program's path) is in the
//! hands of [`super::run`]. The form is also what `sampan explain` prints.

use std::ffi::{CStr, CString};
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::hooks::Hooks;
use crate::sys::sched::Attributes;
use crate::{rootfs, seccomp};

/// One step of the child.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Close every descriptor but the standard streams, the talk with the parent and the `preserved` ones that follow 2.
    CloseDescriptors {
        /// How many from 3 on stay.
        preserved: u32,
    },
    /// Die with the parent, until released. The kernel forgets it whenever ids change.
    DieWithParent,
    /// File mode creation mask.
    Umask(u32),
    /// Make namespaces, while the parent makes the cgroup.
    Namespaces(#[serde(serialize_with = "namespace_names")] u64),
    /// Wait until the parent has done its part, cgroup, id maps, score, and enter the v1 cgroups that it hands over.
    AwaitParent,
    /// No process of the container may look into this one before execve.
    Undumpable,
    /// Open the program that runs now, which will start the container's (see [`super::reaper`]).
    OpenReaper,
    /// setsid(2).
    NewSession,
    /// An anonymous session keyring.
    NewKeyring,
    /// Set the loopback interface of a new network namespace up.
    Loopback,
    /// sethostname(2).
    Hostname(String),
    /// setdomainname(2).
    Domainname(String),
    /// Write a file below `/proc/sys`.
    Sysctl {
        /// Relative to `/proc/sys`.
        path: PathBuf,
        /// What to write.
        value: String,
    },
    /// Become user and group 0 of the user namespace.
    BecomeRoot,
    /// Change the root to this folder: that of a container without a mount namespace.
    Root(PathBuf),
    /// Make a cgroup namespace, now that the process is in its cgroup.
    CgroupNamespace,
    /// On the file system.
    Rootfs(rootfs::Step),
    /// All is mounted: tell the parent, and wait until it has run its hooks.
    AwaitHooks,
    /// Run hooks in the container's namespaces.
    Hooks(Hooks),
    /// Open a terminal, make it the controlling one and the standard streams.
    Terminal {
        /// Height, 0 for unset.
        rows: u16,
        /// Width, 0 for unset.
        columns: u16,
        /// Who owns it.
        uid: u32,
        /// It also stands at `/dev/console`.
        console: bool,
    },
    /// sched_setaffinity(2), now that the process is in its cgroup.
    Processors {
        /// Bit mask.
        #[serde(serialize_with = "processor_list")]
        mask: Vec<u64>,
        /// A failure is one; otherwise what the kernel allows is fine.
        must: bool,
    },
    /// personality(2).
    Personality(u64),
    /// set_mempolicy(2).
    MemoryPolicy {
        /// `MPOL_*` with its flags.
        mode: u32,
        /// Bit mask.
        nodes: Vec<u64>,
    },
    /// sched_setattr(2).
    Scheduler {
        /// What it gets.
        attributes: Attributes,
        /// The cgroup pins the container to some processors.
        pinned: bool,
    },
    /// ioprio_set(2).
    IoPriority {
        /// `IOPRIO_CLASS_*`.
        class: u32,
        /// 0 to 7, the lower the more.
        priority: u32,
    },
    /// The AppArmor profile that the program gets.
    AppArmor(String),
    /// The SELinux label that the program gets.
    SelinuxLabel(String),
    /// setrlimit(2).
    Rlimit {
        /// `RLIMIT_*`, by number.
        resource: i32,
        /// Soft limit.
        soft: u64,
        /// Hard limit.
        hard: u64,
    },
    /// Standard streams that are pipes or files of ours become the user's.
    GiveStreams {
        /// The user.
        uid: u32,
    },
    /// Enter the working directory with the privileges that are still there; it may fail.
    TryCwd(PathBuf),
    /// Enter the working directory unless that is done, and check that it is inside the root.
    Cwd(PathBuf),
    /// Look up the user's home folder in the container's `/etc/passwd`: the environment says none.
    FindHome {
        /// The user.
        uid: u32,
    },
    /// Drop the rest from the bounding set.
    Bounding(#[serde(serialize_with = "capability_names")] u64),
    /// Additional groups.
    Groups(Vec<u32>),
    /// User and group, with the permitted capabilities kept.
    User {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// The other four sets of capabilities.
    Capabilities(Capabilities),
    /// Set no_new_privs.
    NoNewPrivileges,
    /// Load the filter.
    Seccomp(#[serde(serialize_with = "filter_length")] seccomp::Program),
    /// Find the program with the user's permissions, so that `create` can already say what is wrong.
    FindProgram {
        /// `argv[0]`.
        #[serde(serialize_with = "text")]
        name: CString,
        /// Where to look for a name without a slash.
        search: Vec<PathBuf>,
    },
    /// All is set up: tell the parent, with the terminal's master when it wants that.
    Ready,
    /// Wait until the parent has written the record.
    AwaitRelease,
    /// Outlive the parent from now on.
    OutliveParent,
    /// Default dispositions, nothing blocked.
    ResetSignals,
    /// Let go of everything but the gate and wait there until somebody starts the container.
    Gate {
        /// As in [`Step::CloseDescriptors`].
        preserved: u32,
    },
    /// Mark every descriptor but the standard streams and the preserved ones close-on-exec.
    CloseOnExec {
        /// As in [`Step::CloseDescriptors`].
        preserved: u32,
    },
    /// Become the program.
    Execute {
        /// Arguments.
        #[serde(serialize_with = "texts")]
        argv: Vec<CString>,
        /// Environment, `KEY=value`; `HOME` from [`Step::FindHome`] comes to it.
        #[serde(serialize_with = "texts")]
        env: Vec<CString>,
    },
}

/// Sets of capabilities(7) as bit masks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// In force.
    #[serde(serialize_with = "capability_names")]
    pub effective: u64,
    /// May be made effective.
    #[serde(serialize_with = "capability_names")]
    pub permitted: u64,
    /// Kept over execve by files that allow it.
    #[serde(serialize_with = "capability_names")]
    pub inheritable: u64,
    /// Kept over execve.
    #[serde(serialize_with = "capability_names")]
    pub ambient: u64,
}

fn capability_names<S: Serializer>(set: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names(*set))
}

/// The names of capabilities, by their numbers.
pub fn names(set: u64) -> Vec<String> {
    let mut all: Vec<caps::Capability> = caps::all().into_iter().collect();
    all.sort_by_key(|capability| capability.index());
    let named = all.iter().filter(|one| set & one.bitmask() != 0);
    named.map(ToString::to_string).collect()
}

fn namespace_names<S: Serializer>(bits: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(crate::sys::clone::namespace_words(*bits))
}

/// As in `Cpus_allowed_list`; all of a full mask in one word.
fn processor_list<S: Serializer>(mask: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
    if mask.iter().all(|word| *word == u64::MAX) {
        return serializer.serialize_str("all");
    }
    let bits = (0..mask.len() * 64).filter(|bit| mask[bit / 64] & (1 << (bit % 64)) != 0);
    let list: Vec<String> = bits.map(|bit| bit.to_string()).collect();
    serializer.serialize_str(&list.join(","))
}

fn filter_length<S: Serializer>(
    filter: &seccomp::Program,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeStruct;
    let mut out = serializer.serialize_struct("filter", 2)?;
    out.serialize_field("instructions", &filter.instructions.len())?;
    out.serialize_field("flags", &filter.flags)?;
    out.end()
}

fn text<S: Serializer>(text: &CStr, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text.to_string_lossy())
}

fn texts<S: Serializer>(texts: &[CString], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(texts.iter().map(|text| text.to_string_lossy()))
}
