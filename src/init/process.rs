//! The last steps of any process of a container: terminal, limits, ids, capabilities, filter, execve.
//!
//! *Invariants:* privileges only go down. The filter is loaded after everything it could forbid: at the very end with no_new_privs,
//! otherwise while CAP_SYS_ADMIN is still there (seccomp(2) EACCES).

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use caps::CapSet;
use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;
use rustix::process::{Gid, Rlimit, Uid};

use super::channel::{Failure, FailureKind, Step};
use super::plan::{Capabilities, ProcessPlan};
use super::{Inherited, channel};
use crate::rootfs::devices;
use crate::sys::{process as calls, socket};

/// Takes id 0 of the user namespace, all groups dropped where that is allowed.
pub fn become_root() -> Result<(), Failure> {
    set_groups(&[])?;
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .step("become group 0 of the user namespace")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("become user 0 of the user namespace")
}

/// Sets the additional groups. Where an unprivileged user wrote the map nobody may (user_namespaces(7) `/proc/PID/setgroups`): then the
/// caller's groups stay, which is fine as long as none is asked for.
fn set_groups(groups: &[u32]) -> Result<(), Failure> {
    let list: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match rustix::thread::set_thread_groups(&list) {
        Err(Errno::PERM) if list.is_empty() => Ok(()),
        other => other.step(&format!("set the additional groups {groups:?}")),
    }
}

/// Opens a terminal, makes it the controlling one and the standard streams. Its master goes to the console socket, or comes back.
pub fn terminal(
    root: &OwnedFd,
    plan: &ProcessPlan,
    (rows, columns): (u16, u16),
    inherited: &Inherited,
    console: bool,
) -> Result<Option<OwnedFd>, Failure> {
    let (master, slave) = devices::open_terminal(root)?;
    if rows > 0 || columns > 0 {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&slave, size).step("set the size of the terminal")?;
    }
    if console {
        devices::bind_console(root, &slave)?;
    }
    let owner = (Some(Uid::from_raw(plan.uid)), None);
    rustix::fs::fchown(&slave, owner.0, owner.1).step("give the terminal to the user")?;
    rustix::process::ioctl_tiocsctty(&slave).step("make the terminal the controlling one")?;
    rustix::stdio::dup2_stdin(&slave)
        .and_then(|()| rustix::stdio::dup2_stdout(&slave))
        .and_then(|()| rustix::stdio::dup2_stderr(&slave))
        .step("use the terminal as standard streams")?;
    match &inherited.console_socket {
        Some(console) => {
            socket::send(console, b"/dev/ptmx", Some(&master))
                .step("send the terminal to the console socket")?;
            Ok(None)
        }
        None => Ok(Some(master)),
    }
}

/// Everything up to the filter's last moment.
pub fn restrict(plan: &ProcessPlan) -> Result<(), Failure> {
    if let Some(domain) = plan.personality {
        let domain = nix::sys::personality::Persona::from_bits_retain(domain as i32);
        nix::sys::personality::set(domain).step("set the personality")?;
    }
    for &(resource, soft, hard) in &plan.rlimits {
        set_limit(resource, soft, hard)?;
    }
    give_streams(plan.uid)?;
    // with the privileges of root first: the user may not be allowed to walk there (and the other way round on some network mounts)
    let entered = rustix::process::chdir(&plan.cwd).is_ok();
    if !plan.no_new_privileges {
        load_filter(plan)?;
    }
    set_ids(plan)?;
    if !entered {
        rustix::process::chdir(&plan.cwd).step(&format!(
            "enter the working directory {}",
            plan.cwd.display()
        ))?;
    }
    check_cwd()?;
    if plan.no_new_privileges {
        rustix::thread::set_no_new_privs(true).step("set no_new_privs")?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(plan.umask));
    Ok(())
}

fn set_limit(resource: i32, soft: u64, hard: u64) -> Result<(), Failure> {
    let all = [
        (libc::RLIMIT_CPU, rustix::process::Resource::Cpu),
        (libc::RLIMIT_FSIZE, rustix::process::Resource::Fsize),
        (libc::RLIMIT_DATA, rustix::process::Resource::Data),
        (libc::RLIMIT_STACK, rustix::process::Resource::Stack),
        (libc::RLIMIT_CORE, rustix::process::Resource::Core),
        (libc::RLIMIT_RSS, rustix::process::Resource::Rss),
        (libc::RLIMIT_NPROC, rustix::process::Resource::Nproc),
        (libc::RLIMIT_NOFILE, rustix::process::Resource::Nofile),
        (libc::RLIMIT_MEMLOCK, rustix::process::Resource::Memlock),
        (libc::RLIMIT_AS, rustix::process::Resource::As),
        (libc::RLIMIT_LOCKS, rustix::process::Resource::Locks),
        (
            libc::RLIMIT_SIGPENDING,
            rustix::process::Resource::Sigpending,
        ),
        (libc::RLIMIT_MSGQUEUE, rustix::process::Resource::Msgqueue),
        (libc::RLIMIT_NICE, rustix::process::Resource::Nice),
        (libc::RLIMIT_RTPRIO, rustix::process::Resource::Rtprio),
        (libc::RLIMIT_RTTIME, rustix::process::Resource::Rttime),
    ];
    let what = format!("set resource limit {resource} to {soft}:{hard}");
    let found = all
        .into_iter()
        .find(|(number, _)| *number as i32 == resource);
    let (_, resource) = found.ok_or_else(|| Failure::new(&what, "no such resource"))?;
    // u64::MAX is RLIM_INFINITY, for rustix None
    let limit = |value: u64| (value != u64::MAX).then_some(value);
    let limits = Rlimit {
        current: limit(soft),
        maximum: limit(hard),
    };
    rustix::process::setrlimit(resource, limits).step(&what)
}

/// Standard streams that are pipes or files of ours belong to the user, who may open them again through `/dev/stdout`. Never a device:
/// it is the host's.
fn give_streams(uid: u32) -> Result<(), Failure> {
    let own = rustix::process::geteuid();
    for fd in [
        rustix::stdio::stdin().as_fd(),
        rustix::stdio::stdout().as_fd(),
        rustix::stdio::stderr().as_fd(),
    ] {
        let Ok(stat) = rustix::fs::fstat(fd) else {
            continue;
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let ours =
            matches!(kind, FileType::Fifo | FileType::RegularFile) && stat.st_uid == own.as_raw();
        if !ours || stat.st_uid == uid {
            continue;
        }
        match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None) {
            // owner outside of the user namespace, read-only file system: the stream works without
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS | Errno::OVERFLOW) => {}
            Err(error) => return Err(error).step("give a standard stream to the user"),
        }
    }
    Ok(())
}

/// User, groups, capabilities, in the order that keeps the next step allowed.
fn set_ids(plan: &ProcessPlan) -> Result<(), Failure> {
    drop_bounding(&plan.capabilities)?;
    // otherwise leaving user 0 clears all sets before ours can be set
    rustix::thread::set_keep_capabilities(true)
        .step("keep capabilities over the change of user")?;
    set_groups(&plan.groups)?;
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .step(&format!("become group {}", plan.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step(&format!("become user {}", plan.uid))?;
    rustix::thread::set_keep_capabilities(false).step("clear keepcaps")?;
    let sets = &plan.capabilities;
    // effective before permitted, which must stay a superset (capabilities(7))
    for (set, value) in [
        (CapSet::Inheritable, &sets.inheritable),
        (CapSet::Effective, &sets.effective),
        (CapSet::Permitted, &sets.permitted),
    ] {
        caps::set(None, set, value).step(&format!("set the {set:?} capabilities"))?;
    }
    rustix::thread::clear_ambient_capability_set().step("clear the ambient capabilities")?;
    for capability in &sets.ambient {
        caps::raise(None, CapSet::Ambient, *capability)
            .step(&format!("raise ambient {capability}"))?;
    }
    Ok(())
}

/// Drops what is not in the plan, by number up to what the kernel knows: it may know more than we have names for.
fn drop_bounding(sets: &Capabilities) -> Result<(), Failure> {
    let keep: u64 = sets
        .bounding
        .iter()
        .map(|capability| capability.bitmask())
        .sum();
    for number in 0..64 {
        if keep & (1 << number) != 0 {
            continue;
        }
        let capability = rustix::thread::CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // beyond the last one
            Err(Errno::INVAL) => break,
            Err(error) => {
                return Err(error).step(&format!("drop capability {number} from the bounding set"));
            }
        }
    }
    Ok(())
}

/// A working directory outside of the root would be a door to the host (CVE-2024-21626).
fn check_cwd() -> Result<(), Failure> {
    let cwd = rustix::process::getcwd(Vec::new()).step("read the working directory")?;
    if cwd.as_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(Failure::new(
        "enter the working directory",
        "it is outside of the container",
    ))
}

/// Loads the filter of the plan, if it has one.
pub fn load_filter(plan: &ProcessPlan) -> Result<(), Failure> {
    match &plan.seccomp {
        Some(program) => calls::load_seccomp(&program.instructions, program.flags)
            .step("load the seccomp filter"),
        None => Ok(()),
    }
}

/// The path of `argv[0]`, looked up in the container's PATH with the user's permissions, so that `create` can already say what is wrong.
pub fn find_program(plan: &ProcessPlan) -> Result<CString, Failure> {
    let Some(name) = plan.argv.first() else {
        return Err(Failure::new("find the program", "args is empty"));
    };
    let failure = |kind, why: &str| Failure {
        kind,
        message: format!("exec {name:?}: {why}"),
    };
    if name.is_empty() {
        return Err(failure(FailureKind::NotFound, "the name is empty"));
    }
    if name.as_bytes().contains(&b'/') {
        return match runnable(Path::new(OsStr::from_bytes(name.as_bytes()))) {
            Ok(()) => Ok(name.clone()),
            Err(error) => Err(failure(kind_of(&error), &error.to_string())),
        };
    }
    let path = plan
        .env
        .iter()
        .find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
    let path = path.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut refused = None;
    for folder in path.split(|byte| *byte == b':') {
        let folder: &[u8] = if folder.is_empty() { b"." } else { folder };
        let candidate: PathBuf =
            Path::new(OsStr::from_bytes(folder)).join(OsStr::from_bytes(name.as_bytes()));
        match runnable(&candidate) {
            Ok(()) => {
                return CString::new(candidate.into_os_string().into_vec())
                    .step("find the program");
            }
            Err(error) if kind_of(&error) == FailureKind::NotRunnable => refused = Some(error),
            Err(_) => {}
        }
    }
    Err(match refused {
        Some(error) => failure(FailureKind::NotRunnable, &error.to_string()),
        None => failure(FailureKind::NotFound, "executable file not found in $PATH"),
    })
}

/// Whether it is a file that the user may execute.
fn runnable(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.is_dir() {
        return Err(io::Error::other("is a directory"));
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?;
    Ok(())
}

/// Shell's rule for what is told as 127 and what as 126.
fn kind_of(error: &io::Error) -> FailureKind {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FailureKind::NotFound,
        _ => FailureKind::NotRunnable,
    }
}

/// The filter's last moment and execve; comes back only when that failed.
pub fn execute(plan: &ProcessPlan, program: &CString) -> Failure {
    if plan.no_new_privileges
        && let Err(failure) = load_filter(plan)
    {
        return failure;
    }
    let error = calls::execve(program, &plan.argv, &plan.env);
    let hint = match error.kind() {
        io::ErrorKind::NotFound => " (its interpreter or loader is missing)",
        _ => "",
    };
    channel::Failure {
        kind: kind_of(&error),
        message: format!("exec {program:?}: {error}{hint}"),
    }
}
