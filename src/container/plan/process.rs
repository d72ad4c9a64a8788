//! The `process` part of a specification → steps of a child. Pure.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use caps::Capability;
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, PosixRlimitType, Process};

use crate::container::chain;
use crate::init::hooks::Hooks;
use crate::init::plan::{Capabilities, Step};
use crate::seccomp;

/// What depends on the container, not on the process alone.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The five sets.
    pub capabilities: Sets,
    /// Compiled.
    pub seccomp: Option<seccomp::Program>,
    /// Set no_new_privs.
    pub no_new_privileges: bool,
    /// Personality, scheduling and the like.
    pub settings: Vec<Step>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// As in `--preserve-fds`.
    pub preserved: u32,
    /// Hooks of a first process.
    pub start: Option<Hooks>,
    /// It ends when its parent does, for good.
    pub dies_with_parent: bool,
}

impl Surroundings {
    /// Whether the filter has a listener, who must be told while the parent is there.
    pub fn listens(&self) -> bool {
        self.seccomp.as_ref().is_some_and(|filter| filter.notifies)
    }
}

/// How a process gets from its set-up to its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It says that it is ready, and waits at the gate.
    Gate,
    /// It says that it is ready, and goes on when the parent is.
    Told,
    /// It goes on when the parent is, which it mostly is long before; that it executed the program is all there is to say.
    AtOnce,
}

/// The first steps of every process: alone, in its `namespaces` (`CLONE_NEW*` bits), waiting for the parent, who `maps_ids` of its user
/// namespace meanwhile.
pub fn begin(preserved: u32, namespaces: u64, maps_ids: bool) -> Vec<Step> {
    let mut steps = vec![
        Step::CloseDescriptors { preserved },
        Step::DieWithParent,
        Step::Umask(0),
    ];
    let make = (namespaces != 0).then_some(Step::Namespaces(namespaces));
    match maps_ids {
        // files of a network namespace in /proc and /sys are given to its root when it is made, if that is somebody by then
        true => steps.extend([Some(Step::AwaitParent), make].into_iter().flatten()),
        false => steps.extend([make, Some(Step::AwaitParent)].into_iter().flatten()),
    }
    // undumpable only then, since the parent writes files of ours in /proc
    steps.push(Step::Undumpable);
    steps
}

/// A terminal, when the process has one.
pub fn terminal(process: &Process, console: bool) -> Result<Option<Step>, String> {
    if process.terminal() != Some(true) {
        return Ok(None);
    }
    let size = |value: u64| u16::try_from(value).ok();
    let (rows, columns) = match process.console_size() {
        None => (0, 0),
        Some(wanted) => match (size(wanted.height()), size(wanted.width())) {
            (Some(rows), Some(columns)) => (rows, columns),
            _ => {
                return Err(format!(
                    "process.consoleSize: {}x{} is too large",
                    wanted.width(),
                    wanted.height()
                ));
            }
        },
    };
    Ok(Some(Step::Terminal {
        rows,
        columns,
        uid: process.user().uid(),
        console,
    }))
}

/// The last steps of every process, from its root file system to its program; at the gate when it is a first one. Privileges only go
/// down. The filter is loaded after everything it could forbid: at the very end with no_new_privs, otherwise while CAP_SYS_ADMIN is
/// still there (seccomp(2) EACCES); one that notifies no later than the parent can pass the listener on.
pub fn finish(process: &Process, around: Surroundings, way: Way) -> Result<Vec<Step>, String> {
    let cwd = process.cwd().clone();
    if !cwd.is_absolute() {
        return Err(format!("process.cwd: {} is not absolute", cwd.display()));
    }
    let argv = strings("process.args", process.args().as_deref())?;
    let name = argv.first().cloned().ok_or("process.args: is empty")?;
    let env = environment(strings("process.env", process.env().as_deref())?);
    let user = process.user();
    // -1 means "leave it" to setresuid(2): the process would stay root
    for (key, id) in [("uid", user.uid()), ("gid", user.gid())] {
        if id == u32::MAX {
            return Err(format!("process.user.{key}: {id} is no id"));
        }
    }
    let groups = user.additional_gids().clone().unwrap_or_default();
    if groups.contains(&u32::MAX) {
        return Err(format!(
            "process.user.additionalGids: {} is no id",
            u32::MAX
        ));
    }
    let preserved = around.preserved;
    let listens = around.listens();
    let filter = around.seccomp.map(Step::Seccomp);
    let (early, middle, late) = match (around.no_new_privileges, listens) {
        (false, _) => (filter, None, None),
        (true, true) => (None, filter, None),
        (true, false) => (None, None, filter),
    };
    let search = search_path(&env);
    let mut steps = around.settings;
    steps.extend(rlimits(process)?);
    steps.push(Step::GiveStreams { uid: user.uid() });
    // with the privileges of root first: the user may not be allowed to walk there (and the other way round on some network mounts)
    steps.push(Step::TryCwd(cwd.clone()));
    if !env.iter().any(|entry| name_of(entry) == b"HOME") {
        steps.push(Step::FindHome { uid: user.uid() });
    }
    steps.extend(early);
    steps.push(Step::Bounding(around.capabilities.bounding));
    steps.push(Step::Groups(groups));
    steps.push(Step::User {
        uid: user.uid(),
        gid: user.gid(),
    });
    steps.push(Step::Capabilities(around.capabilities.others));
    steps.push(Step::Cwd(cwd));
    if around.no_new_privileges {
        steps.push(Step::NoNewPrivileges);
    }
    steps.push(Step::Umask(around.umask.unwrap_or(0o022) & 0o777));
    steps.push(Step::DieWithParent);
    steps.push(Step::FindProgram { name, search });
    steps.extend(middle);
    if way != Way::AtOnce {
        steps.push(Step::Ready);
    }
    steps.push(Step::AwaitRelease);
    if !around.dies_with_parent {
        steps.push(Step::OutliveParent);
    }
    steps.push(Step::ResetSignals);
    steps.push(match way {
        Way::Gate => Step::Gate { preserved },
        Way::Told | Way::AtOnce => Step::CloseOnExec { preserved },
    });
    steps.extend(late);
    // under the filter like the program: what the filter forbids is no way around it
    steps.extend(around.start.map(Step::Hooks));
    steps.push(Step::Execute { argv, env });
    Ok(steps)
}

/// Each name once, with the value that comes last; `HOME` only where it says something. What is no `NAME=value` stays.
fn environment(entries: Vec<CString>) -> Vec<CString> {
    let mut seen = BTreeSet::new();
    let mut kept: Vec<CString> = Vec::with_capacity(entries.len());
    for entry in entries.into_iter().rev() {
        if seen.insert(name_of(&entry).to_vec()) && entry.as_bytes() != b"HOME=" {
            kept.push(entry);
        }
    }
    kept.reverse();
    kept
}

/// The name in `NAME=value`.
fn name_of(entry: &CString) -> &[u8] {
    entry
        .as_bytes()
        .split(|byte| *byte == b'=')
        .next()
        .unwrap_or_default()
}

/// The folders of the container's PATH; an empty one is the working directory.
fn search_path(env: &[CString]) -> Vec<PathBuf> {
    let path = env
        .iter()
        .find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="))
        .unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path.split(|byte| *byte == b':')
        .map(|folder| if folder.is_empty() { b"." } else { folder })
        .map(|folder| PathBuf::from(OsStr::from_bytes(folder)))
        .collect()
}

fn strings(key: &str, list: Option<&[String]>) -> Result<Vec<CString>, String> {
    let list = list.unwrap_or_default().iter();
    list.map(|text| {
        CString::new(text.as_str()).map_err(|_| format!("{key}: {text:?} holds a zero byte"))
    })
    .collect()
}

fn rlimits(process: &Process) -> Result<Vec<Step>, String> {
    let mut out: Vec<Step> = Vec::new();
    let mut seen = BTreeSet::new();
    for limit in process.rlimits().iter().flatten() {
        let typ = limit.typ();
        let resource = match typ {
            PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
            PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
            PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
            PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
            PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
            PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
            PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
            PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
            PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
            PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
            PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
            PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
            PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
            PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
            PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
            PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
        } as i32;
        let (soft, hard) = (limit.soft(), limit.hard());
        if soft > hard {
            return Err(format!(
                "process.rlimits: {typ}: soft {soft} is above hard {hard}"
            ));
        }
        if !seen.insert(resource) {
            return Err(format!("process.rlimits: {typ} is there twice"));
        }
        out.push(Step::Rlimit {
            resource,
            soft,
            hard,
        });
    }
    Ok(out)
}

/// The five sets of capabilities(7).
#[derive(Debug, Clone, Default)]
pub struct Sets {
    /// What execve may give.
    pub bounding: u64,
    /// The others.
    pub others: Capabilities,
    /// What was asked for and cannot be (config.md "Linux Process": a warning and no error).
    pub warnings: Vec<String>,
}

/// The five sets; all empty when there is no section.
pub fn capabilities(sets: Option<&LinuxCapabilities>) -> Result<Sets, String> {
    let Some(sets) = sets else {
        return Ok(Sets::default());
    };
    let one = |set: &Option<oci_spec::runtime::Capabilities>| -> Result<u64, String> {
        set.iter().flatten().try_fold(0, |mask, capability| {
            let name = caps::to_canonical(&capability.to_string());
            let capability: Capability = name
                .parse()
                .map_err(|_| format!("process.capabilities: {name} is unknown"))?;
            Ok(mask | capability.bitmask())
        })
    };
    let mut others = Capabilities {
        effective: one(sets.effective())?,
        permitted: one(sets.permitted())?,
        inheritable: one(sets.inheritable())?,
        ambient: one(sets.ambient())?,
    };
    // the kernel would answer a bare EPERM (capabilities(7))
    if let Some(name) = named(others.effective & !others.permitted).next() {
        return Err(format!(
            "process.capabilities: {name} is effective but not permitted"
        ));
    }
    let raised = others.permitted & others.inheritable;
    let warnings = named(others.ambient & !raised).map(|name| {
        format!(
            "process.capabilities.ambient: can't raise ambient capability {name}: it is not both permitted and inheritable"
        )
    });
    let warnings = warnings.collect();
    others.ambient &= raised;
    Ok(Sets {
        bounding: one(sets.bounding())?,
        others,
        warnings,
    })
}

/// The members of a set by their numbers.
fn named(set: u64) -> impl Iterator<Item = Capability> {
    let mut all: Vec<Capability> = caps::all().into_iter().collect();
    all.sort_by_key(Capability::index);
    all.into_iter().filter(move |one| set & one.bitmask() != 0)
}

/// The compiled filter.
pub fn filter(profile: Option<&LinuxSeccomp>) -> Result<Option<seccomp::Program>, String> {
    let Some(profile) = profile else {
        return Ok(None);
    };
    seccomp::compile(profile)
        .map(Some)
        .map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments() {
        for (entries, want) in [
            (&["A=1", "B=", "A=2"][..], &["B=", "A=2"][..]),
            (&["HOME=/a", "HOME="], &[]),
            (&["HOME=", "HOME=/a"], &["HOME=/a"]),
            (&["A=\n", "odd", "=x"], &["A=\n", "odd", "=x"]),
        ] {
            let c = |list: &[&str]| -> Vec<CString> {
                list.iter()
                    .map(|text| CString::new(*text).unwrap())
                    .collect()
            };
            assert_eq!(environment(c(entries)), c(want));
        }
    }
}
