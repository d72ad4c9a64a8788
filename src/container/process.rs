//! The `process` part of a specification → what a child does. Pure.

use std::ffi::CString;

use caps::CapsHashSet;
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, PosixRlimitType, Process};

use crate::init::plan::{Capabilities, ProcessPlan};
use crate::seccomp;

/// Everything but capabilities and filter, which depend on the container.
pub fn process(process: &Process) -> Result<ProcessPlan, String> {
    let cwd = process.cwd().clone();
    if !cwd.is_absolute() {
        return Err(format!("process.cwd: {} is not absolute", cwd.display()));
    }
    let argv = strings("process.args", process.args().as_deref())?;
    if argv.is_empty() {
        return Err("process.args: is empty".to_owned());
    }
    let user = process.user();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    groups.sort_unstable();
    groups.dedup();
    Ok(ProcessPlan {
        argv,
        env: strings("process.env", process.env().as_deref())?,
        cwd,
        user_namespace: false,
        uid: user.uid(),
        gid: user.gid(),
        groups,
        umask: user.umask().unwrap_or(0o022) & 0o777,
        no_new_privileges: process.no_new_privileges() == Some(true),
        capabilities: Capabilities::default(),
        rlimits: rlimits(process)?,
        seccomp: None,
        personality: None,
        reaper: false,
        terminal: terminal(process)?,
    })
}

fn strings(key: &str, list: Option<&[String]>) -> Result<Vec<CString>, String> {
    let list = list.unwrap_or_default().iter();
    list.map(|text| {
        CString::new(text.as_str()).map_err(|_| format!("{key}: {text:?} holds a zero byte"))
    })
    .collect()
}

fn terminal(process: &Process) -> Result<Option<(u16, u16)>, String> {
    if process.terminal() != Some(true) {
        return Ok(None);
    }
    let Some(size) = process.console_size() else {
        return Ok(Some((0, 0)));
    };
    match (u16::try_from(size.height()), u16::try_from(size.width())) {
        (Ok(rows), Ok(columns)) => Ok(Some((rows, columns))),
        _ => Err(format!(
            "process.consoleSize: {}x{} is too large",
            size.width(),
            size.height()
        )),
    }
}

fn rlimits(process: &Process) -> Result<Vec<(i32, u64, u64)>, String> {
    let mut out: Vec<(i32, u64, u64)> = Vec::new();
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
        if out.iter().any(|(other, ..)| *other == resource) {
            return Err(format!("process.rlimits: {typ} is there twice"));
        }
        out.push((resource, soft, hard));
    }
    Ok(out)
}

/// The five sets; all empty when there is no section.
pub fn capabilities(sets: Option<&LinuxCapabilities>) -> Result<Capabilities, String> {
    let Some(sets) = sets else {
        return Ok(Capabilities::default());
    };
    let one = |set: &Option<oci_spec::runtime::Capabilities>| -> Result<CapsHashSet, String> {
        let names = set
            .iter()
            .flatten()
            .map(|capability| caps::to_canonical(&capability.to_string()));
        names
            .map(|name| {
                name.parse()
                    .map_err(|_| format!("process.capabilities: {name} is unknown"))
            })
            .collect()
    };
    let sets = Capabilities {
        bounding: one(sets.bounding())?,
        effective: one(sets.effective())?,
        permitted: one(sets.permitted())?,
        inheritable: one(sets.inheritable())?,
        ambient: one(sets.ambient())?,
    };
    // the kernel would answer a bare EPERM (capabilities(7))
    if let Some(name) = sets.effective.difference(&sets.permitted).next() {
        return Err(format!(
            "process.capabilities: {name} is effective but not permitted"
        ));
    }
    let usable = |capability: &&caps::Capability| {
        sets.permitted.contains(capability) && sets.inheritable.contains(capability)
    };
    if let Some(name) = sets.ambient.iter().find(|capability| !usable(capability)) {
        return Err(format!(
            "process.capabilities: {name} is ambient but not both permitted and inheritable"
        ));
    }
    Ok(sets)
}

/// The compiled filter.
pub fn filter(profile: Option<&LinuxSeccomp>) -> Result<Option<seccomp::Program>, String> {
    let Some(profile) = profile else {
        return Ok(None);
    };
    if profile.listener_path().is_some() {
        return Err("linux.seccomp.listenerPath: is not supported".to_owned());
    }
    let program = seccomp::compile(profile)
        .map_err(|error| format!("linux.seccomp: {}", super::chain(&error)))?;
    if program.notifies {
        return Err(
            "linux.seccomp: SCMP_ACT_NOTIFY needs a listener, which is not supported".to_owned(),
        );
    }
    Ok(Some(program))
}
