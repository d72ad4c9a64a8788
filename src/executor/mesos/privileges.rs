//! What an executor needs of the kernel, and may have lost: the agent's isolators `linux/capabilities` and `linux/seccomp` bound what
//! it starts.
//!
//! Owns the list of it. *Invariants:* asking changes nothing; all that is missing is named at once. Leaves to others: rootless use,
//! for which nothing is asked here, and everything that only some tasks need.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;

/// Containers and networks need the first two; tasks may get the rest, Docker's fourteen.
const NEEDED: &[Capability] = &[
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETFCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_MKNOD,
    Capability::CAP_AUDIT_WRITE,
];

/// What is missing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", words(.capabilities, .calls))]
pub struct Missing {
    capabilities: Vec<String>,
    calls: Vec<&'static str>,
}

fn words(capabilities: &[String], calls: &[&str]) -> String {
    let mut all = Vec::new();
    if !capabilities.is_empty() {
        let names = capabilities.join(" ");
        all.push(format!(
            "the executor lacks the capabilities {names}: give them in the executor's LinuxInfo, or extend the agent's \
             --effective_capabilities and --bounding_capabilities"
        ));
    }
    if !calls.is_empty() {
        let names = calls.join(" ");
        all.push(format!(
            "a seccomp filter forbids the system calls {names}: run the executor unconfined (LinuxInfo.seccomp), or extend the \
             agent's profile"
        ));
    }
    all.join("; ")
}

/// Which of the needed capabilities and system calls are not among those that there are.
fn compare(held: &CapsHashSet, calls: &[(&'static str, Errno)]) -> Option<Missing> {
    let capabilities: Vec<String> = NEEDED
        .iter()
        .filter(|needed| !held.contains(needed))
        .map(|needed| needed.to_string().trim_start_matches("CAP_").to_owned())
        .collect();
    // what a filter answers; without the capability the kernel says the same
    let refused = |errno| matches!(errno, Errno::EPERM | Errno::EACCES | Errno::ENOSYS);
    let privileged = held.contains(&Capability::CAP_SYS_ADMIN);
    let calls: Vec<_> = calls
        .iter()
        .filter(|(_, errno)| privileged && refused(*errno))
        .map(|(name, _)| *name)
        .collect();
    let complete = capabilities.is_empty() && calls.is_empty();
    (!complete).then_some(Missing {
        capabilities,
        calls,
    })
}

/// Calls that do nothing, by their arguments, and how each ended.
fn calls() -> [(&'static str, Errno); 3] {
    let ended = |result: nix::Result<()>| result.err().unwrap_or(Errno::UnknownErrno);
    let nothing = None::<&str>;
    [
        ("unshare", ended(nix::sched::unshare(CloneFlags::empty()))),
        // the empty path names nothing
        (
            "mount",
            ended(nix::mount::mount(
                nothing,
                "",
                nothing,
                MsFlags::empty(),
                nothing,
            )),
        ),
        ("pivot_root", ended(nix::unistd::pivot_root("", ""))),
    ]
}

/// What the calling process lacks, when it is root.
pub fn missing() -> io::Result<Option<Missing>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let held = caps::read(None, CapSet::Effective).map_err(io::Error::other)?;
    Ok(compare(&held, &calls()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing() {
        let good = [("unshare", Errno::UnknownErrno), ("mount", Errno::ENOENT)];
        let bad = [("unshare", Errno::EPERM), ("mount", Errno::ENOSYS)];
        let all: CapsHashSet = NEEDED.iter().copied().collect();
        let without = |gone: &[Capability]| -> CapsHashSet {
            all.iter()
                .copied()
                .filter(|it| !gone.contains(it))
                .collect()
        };
        let missing = |capabilities: &[&str], calls: &[&'static str]| Missing {
            capabilities: capabilities.iter().map(|name| (*name).to_owned()).collect(),
            calls: calls.to_vec(),
        };
        for (held, calls, expected) in [
            (all.clone(), good, None),
            (
                without(&[Capability::CAP_MKNOD, Capability::CAP_NET_ADMIN]),
                good,
                Some(missing(&["NET_ADMIN", "MKNOD"], &[])),
            ),
            (all.clone(), bad, Some(missing(&[], &["unshare", "mount"]))),
            // a filter cannot be told from the missing capability
            (
                without(&[Capability::CAP_SYS_ADMIN]),
                bad,
                Some(missing(&["SYS_ADMIN"], &[])),
            ),
        ] {
            assert_eq!(compare(&held, &calls), expected);
        }
        let both = missing(&["MKNOD"], &["mount"]).to_string();
        assert!(
            both.contains("capabilities MKNOD: ") && both.contains("system calls mount: "),
            "{both}"
        );
    }

    #[test]
    fn asking_the_kernel() {
        let seen = calls().map(|(_, errno)| errno);
        assert_eq!(seen[0], Errno::UnknownErrno);
    }
}
