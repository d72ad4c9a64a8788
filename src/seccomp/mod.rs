//! runtime-spec seccomp → classic BPF. Pure: nothing here loads a filter.
//!
//! *Invariants:* a profile either becomes a filter that decides as libseccomp's would for the same rules,
//! or is an error; the one thing left out is a system call whose name nobody here knows, and those are
//! listed. An architecture that is not in the filter is killed, never allowed. The program is at most
//! 4096 instructions (BPF_MAXINSNS) and finds a system call in logarithmic time.
//!
//! Left to others: loading it (`init`), passing the listener on (`container`).
//!
//! ```text
//! mod.rs      checks, actions, flags            arch.rs     names -> numbers, by architecture
//! rules.rs    rules -> what each number gets    program.rs  ranges of numbers -> instructions
//! default.rs  the filter for those who bring none
//! ```

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

mod arch;
mod default;
mod program;
mod rules;

pub use default::default_profile;

/// Why a profile cannot be compiled; names the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the profile is wrong.
    #[error("linux.seccomp.{field}: {why}")]
    Invalid {
        /// Its place in the specification.
        field: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The kernel would refuse it.
    #[error(
        "linux.seccomp: the filter has {0} instructions and the kernel takes 4096; leave out argument rules or architectures"
    )]
    TooLong(usize),
}

/// A compiled profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Instructions as (code, jt, jf, k).
    pub instructions: Vec<(u16, u8, u8, u32)>,
    /// `SECCOMP_FILTER_FLAG_*` bits, `NEW_LISTENER` among them when a rule notifies.
    pub flags: u64,
    /// A rule notifies: a listener descriptor is wanted.
    pub notifies: bool,
    /// Names that none of the filter's architectures has; they were passed over.
    pub unknown: Vec<String>,
}

// SECCOMP_FILTER_FLAG_*, linux/seccomp.h
const FLAG_TSYNC: u64 = 1;
const FLAG_LOG: u64 = 2;
const FLAG_SPEC_ALLOW: u64 = 4;
const FLAG_NEW_LISTENER: u64 = 8;
const FLAG_WAIT_KILLABLE_RECV: u64 = 32;

// SECCOMP_RET_*, linux/seccomp.h
const RET_KILL_THREAD: u32 = 0;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The kernel cuts an errno down to this (MAX_ERRNO).
const ERRNO_MAX: u32 = 4095;

fn invalid(field: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Invalid {
        field: field.into(),
        why: why.into(),
    }
}

/// The architectures that a filter can be made for, as the specification names them.
pub fn architectures() -> Vec<oci_spec::runtime::Arch> {
    arch::KNOWN.iter().map(|(name, _)| *name).collect()
}

/// An action with its errno → the filter's return value (config-linux.md, "Seccomp").
fn action(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Error> {
    use LinuxSeccompAction as A;
    let (value, takes_data) = match action {
        A::ScmpActKill | A::ScmpActKillThread => (RET_KILL_THREAD, false),
        A::ScmpActKillProcess => (RET_KILL_PROCESS, false),
        A::ScmpActTrap => (RET_TRAP, false),
        A::ScmpActErrno => (RET_ERRNO, true),
        A::ScmpActNotify => (RET_USER_NOTIF, false),
        A::ScmpActTrace => (RET_TRACE, true),
        A::ScmpActLog => (RET_LOG, false),
        A::ScmpActAllow => (RET_ALLOW, false),
    };
    let limit = if action == A::ScmpActTrace {
        u32::from(u16::MAX)
    } else {
        ERRNO_MAX
    };
    match errno {
        // EPERM unless told otherwise, for both
        None if takes_data => Ok(value | EPERM),
        None => Ok(value),
        Some(errno) if takes_data && errno <= limit => Ok(value | errno),
        Some(errno) if takes_data => Err(invalid(field, format!("{errno} is above {limit}"))),
        Some(_) => Err(invalid(field, format!("{action} takes no errno"))),
    }
}

/// Compiles a profile. The architecture of this program is always part of it, the sub-architectures
/// only when listed; those that can't run here at all are passed over.
///
/// As in runc, a number above all that the rules know answers ENOSYS instead of the default, unless the
/// default is permissive: to a program, a call newer than the profile is one the kernel lacks, and it
/// then tries an older one.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, Error> {
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        let why = "SCMP_ACT_NOTIFY would stop the container before it starts";
        return Err(invalid("defaultAction", why));
    }
    let default = action(
        "defaultErrnoRet",
        profile.default_action(),
        profile.default_errno_ret(),
    )?;
    let architectures = arch::selected(profile.architectures().as_deref().unwrap_or_default());
    let rules = rules::read(profile, default)?;
    let notifies = rules
        .iter()
        .any(|rule| rule.action == RET_USER_NOTIF && rule.is_known(&architectures));
    let listener = profile.listener_path().as_ref();
    if notifies && listener.is_none_or(|path| path.as_os_str().is_empty()) {
        return Err(invalid(
            "listenerPath",
            "a rule has SCMP_ACT_NOTIFY, so somebody must listen; name the socket",
        ));
    }
    let tables = architectures
        .iter()
        .map(|arch| (*arch, rules::table(&rules, *arch, default)))
        .collect::<Vec<_>>();
    let instructions = program::assemble(&tables);
    if instructions.len() > 4096 {
        return Err(Error::TooLong(instructions.len()));
    }
    Ok(Program {
        instructions,
        flags: flags(profile.flags().as_deref(), notifies),
        notifies,
        unknown: rules::unknown(&rules, &architectures),
    })
}

/// Without a list, SPEC_ALLOW, as runc: the mitigation costs more than it protects, and is off by default
/// in the kernel for seccomp since 5.16. TSYNC makes no difference to a process with one thread and
/// cannot stand beside a listener.
fn flags(list: Option<&[LinuxSeccompFilterFlag]>, notifies: bool) -> u64 {
    use LinuxSeccompFilterFlag as F;
    let listed = match list {
        None => FLAG_SPEC_ALLOW,
        Some(list) => list
            .iter()
            .map(|flag| match flag {
                F::SeccompFilterFlagLog => FLAG_LOG,
                F::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
                F::SeccompFilterFlagTsync if notifies => 0,
                F::SeccompFilterFlagTsync => FLAG_TSYNC,
                // EINVAL without a listener
                F::SeccompFilterFlagWaitKillableRecv if notifies => FLAG_WAIT_KILLABLE_RECV,
                F::SeccompFilterFlagWaitKillableRecv => 0,
            })
            .fold(0, |all, flag| all | flag),
    };
    if notifies {
        listed | FLAG_NEW_LISTENER
    } else {
        listed
    }
}

#[cfg(test)]
#[path = "../../tests/cbpf/mod.rs"]
mod cbpf;

#[cfg(test)]
mod tests;
