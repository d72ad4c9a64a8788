//! The last steps of any process of a container: terminal, limits, ids, capabilities, filter, execve.
//!
//! *Invariants:* one function per step, each as its name says; the order is the plan's.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Rlimit, Uid};

use super::channel::{Failure, FailureKind, Step};
use super::plan::{self, Capabilities};
use crate::rootfs::devices;
use crate::sys::sched::{self, Attributes};
use crate::sys::{process as calls, procfs};

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
pub fn set_groups(groups: &[u32]) -> Result<(), Failure> {
    let list: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match rustix::thread::set_thread_groups(&list) {
        Err(Errno::PERM) if list.is_empty() => Ok(()),
        Err(Errno::PERM) => Err(Failure::new(
            &format!("set the additional groups {groups:?}"),
            "not allowed in a user namespace whose map has the caller's own group only: linux.gidMappings needs a range of /etc/subgid",
        )),
        other => other.step(&format!("set the additional groups {groups:?}")),
    }
}

/// Opens a terminal, makes it the controlling one and the standard streams; its master comes back.
pub fn terminal(
    root: &OwnedFd,
    (rows, columns): (u16, u16),
    uid: u32,
    console: bool,
) -> Result<OwnedFd, Failure> {
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
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None)
        .step("give the terminal to the user")?;
    rustix::process::ioctl_tiocsctty(&slave).step("make the terminal the controlling one")?;
    rustix::stdio::dup2_stdin(&slave)
        .and_then(|()| rustix::stdio::dup2_stdout(&slave))
        .and_then(|()| rustix::stdio::dup2_stderr(&slave))
        .step("use the terminal as standard streams")?;
    Ok(master)
}

/// personality(2).
pub fn personality(persona: u64) -> Result<(), Failure> {
    let persona = nix::sys::personality::Persona::from_bits_retain(persona as i32);
    nix::sys::personality::set(persona)
        .map(drop)
        .step("set the personality")
}

/// sched_setaffinity(2).
pub fn processors(mask: &[u64], must: bool) -> Result<(), Failure> {
    match sched::set_affinity(mask) {
        Err(error) if must => {
            Err(error).step("set the processors of process.execCPUAffinity.final")
        }
        // the caller's, then
        _ => Ok(()),
    }
}

/// sched_setattr(2).
pub fn scheduler(attributes: &Attributes, pinned: bool) -> Result<(), Failure> {
    match sched::set_attributes(attributes) {
        // sched(7): a deadline needs every processor of its root domain
        Err(error) if pinned && error.raw_os_error() == Some(libc::EPERM) => Err(error).step(
            "set process.scheduler: process scheduler can't be used together with AllowedCPUs (linux.resources.cpu.cpus)",
        ),
        other => other.step("set process.scheduler"),
    }
}

/// ioprio_set(2).
pub fn io_priority(class: u32, priority: u32) -> Result<(), Failure> {
    sched::set_io_priority(class, priority).step("set process.ioPriority")
}

/// set_mempolicy(2).
pub fn memory_policy(mode: u32, nodes: &[u64]) -> Result<(), Failure> {
    match sched::set_memory_policy(mode, nodes) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Err(Failure::new(
            "set linux.memoryPolicy",
            "the kernel has no memory policies (CONFIG_NUMA)",
        )),
        other => other.step("set linux.memoryPolicy"),
    }
}

/// The profile of the program to be executed (aa_change_onexec(3)).
pub fn apparmor(profile: &str) -> Result<(), Failure> {
    let what = format!("set process.apparmorProfile {profile}");
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|text| text.starts_with('Y')) {
        return match profile {
            "unconfined" => Ok(()),
            _ => Err(Failure::new(
                &what,
                "the kernel has no AppArmor, or it is off",
            )),
        };
    }
    let text = format!("exec {profile}");
    // the first since Linux 5.8; where several modules are on, the second may be another's
    procfs::write_own("attr/apparmor/exec", &text)
        .or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => procfs::write_own("attr/exec", &text),
            _ => Err(error),
        })
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::new(&what, "there is no such profile"),
            _ => Failure::new(&what, error),
        })
}

/// The label of the program to be executed (setexeccon(3)).
pub fn selinux(label: &str) -> Result<(), Failure> {
    let what = format!("set process.selinuxLabel {label}");
    let known = fs::read_to_string("/proc/filesystems");
    if !known.is_ok_and(|text| text.contains("\tselinuxfs\n")) {
        return Err(Failure::new(
            &what,
            "the kernel has no SELinux, or it is off",
        ));
    }
    procfs::write_own("attr/exec", label).step(&what)
}

/// Enters the working directory unless that was possible before, and checks it.
pub fn enter_cwd(path: &Path, entered: bool) -> Result<(), Failure> {
    if !entered {
        rustix::process::chdir(path)
            .step(&format!("enter the working directory {}", path.display()))?;
    }
    check_cwd()
}

/// setrlimit(2).
pub fn set_limit(resource: i32, soft: u64, hard: u64) -> Result<(), Failure> {
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
    let found = all
        .into_iter()
        .find(|(number, _)| *number as i32 == resource);
    let (_, resource) = found.ok_or_else(|| {
        Failure::new(
            &format!("set resource limit {resource}"),
            "no such resource",
        )
    })?;
    let name = format!("{resource:?}").to_uppercase();
    let what = format!("set RLIMIT_{name} to {soft}:{hard}");
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
pub fn give_streams(uid: u32) -> Result<(), Failure> {
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

/// Longest `/etc/passwd` that is read, in bytes.
const PASSWD_MAX: u64 = 1 << 20;

/// `HOME=…` for the user as the container's `/etc/passwd` has it, `/` when that says nothing. What stands there is the image's: only a
/// regular file is read, and no link of procfs followed on the way.
pub fn home(uid: u32) -> CString {
    let folder = passwd().and_then(|text| home_in(&text, uid).map(<[u8]>::to_vec));
    let mut entry = b"HOME=".to_vec();
    entry.extend(folder.unwrap_or_else(|| b"/".to_vec()));
    // a line of the file with a zero byte names no folder
    CString::new(entry).unwrap_or_else(|_| c"HOME=/".to_owned())
}

fn passwd() -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(CWD, "/etc/passwd", flags, Mode::empty(), resolve).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    let file = fs::File::from(file);
    file.take(PASSWD_MAX).read_to_end(&mut text).ok()?;
    Some(text)
}

/// passwd(5): the sixth field of the line whose third is `uid`.
fn home_in(passwd: &[u8], uid: u32) -> Option<&[u8]> {
    let uid = uid.to_string();
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let found = fields.nth(2)? == uid.as_bytes();
        let home = fields.nth(2)?;
        (found && !home.is_empty()).then_some(home)
    })
}

/// Changes user and group; the permitted capabilities stay, which leaving user 0 would clear.
pub fn become_user(uid: u32, gid: u32) -> Result<(), Failure> {
    rustix::thread::set_keep_capabilities(true)
        .step("keep capabilities over the change of user")?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(group, group, group).step(&format!("become group {gid}"))?;
    rustix::thread::set_thread_res_uid(user, user, user).step(&format!("become user {uid}"))?;
    rustix::thread::set_keep_capabilities(false).step("clear keepcaps")
}

/// The sets but the bounding one.
pub fn set_capabilities(sets: &Capabilities) -> Result<(), Failure> {
    let set = rustix::thread::CapabilitySet::from_bits_retain;
    let three = rustix::thread::CapabilitySets {
        effective: set(sets.effective),
        permitted: set(sets.permitted),
        inheritable: set(sets.inheritable),
    };
    rustix::thread::set_capabilities(None, three).map_err(|error| {
        let held = rustix::thread::capabilities(None).map(|held| held.permitted.bits());
        let missing = sets.permitted & !held.unwrap_or(u64::MAX);
        let names = plan::names(missing).join(", ");
        Failure::new(
            "set the capabilities",
            match names.as_str() {
                "" => error.to_string(),
                names => format!("{error}: the caller itself has no {names}"),
            },
        )
    })?;
    rustix::thread::clear_ambient_capability_set().step("clear the ambient capabilities")?;
    for number in (0..64).filter(|number| sets.ambient & (1 << number) != 0) {
        rustix::thread::configure_capability_in_ambient_set(set(1 << number), true)
            .step(&format!("raise ambient capability {number}"))?;
    }
    Ok(())
}

/// Drops what is not in `keep`, by number up to what the kernel knows: it may know more than we have names for.
pub fn drop_bounding(keep: u64) -> Result<(), Failure> {
    for number in (0..64).filter(|number| keep & (1 << number) == 0) {
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

/// The path of the program `name`, looked up with the user's permissions.
pub fn find_program(name: &CStr, search: &[PathBuf]) -> Result<CString, Failure> {
    let failure = |kind, why: &str| Failure {
        kind,
        message: format!("exec {name:?}: {why}"),
    };
    if name.is_empty() {
        return Err(failure(FailureKind::NotFound, "the name is empty"));
    }
    let file = OsStr::from_bytes(name.to_bytes());
    if name.to_bytes().contains(&b'/') {
        return match runnable(Path::new(file)) {
            Ok(()) => Ok(name.to_owned()),
            Err(error) => Err(failure(kind_of(&error), &error.to_string())),
        };
    }
    let mut refused = None;
    for folder in search {
        let candidate = folder.join(file);
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
        // what execve(2) says of a directory is what podman looks for, and why is what people do
        return Err(io::Error::other("permission denied: is a directory"));
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

/// execve(2), of `reaper` first if there is one; comes back only when that failed.
pub fn execute(
    program: &CString,
    argv: &[CString],
    env: &[CString],
    reaper: Option<&OwnedFd>,
) -> Failure {
    let error = match reaper {
        None => calls::execve(program, argv, env),
        Some(reaper) => {
            let name = CString::new(super::reaper::NAME).unwrap_or_default();
            let mut words = vec![name, program.clone()];
            words.extend(argv.iter().cloned());
            calls::execute_file(reaper, &words, env)
        }
    };
    let hint = match error.kind() {
        io::ErrorKind::NotFound => " (its interpreter or loader is missing)",
        _ => "",
    };
    Failure {
        kind: kind_of(&error),
        message: format!("exec {program:?}: {error}{hint}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes() {
        let text = b"\n:::\nroot:x:0:0:root:/root:/bin/sh\nshort:x:7:7\nnone:x:8:8:::\nu:x:1000:1000:a b:/home/u\nu2:x:1000:1:::/2:";
        for (uid, want) in [
            (0, Some(&b"/root"[..])),
            (7, None),
            (8, None),
            (1000, Some(b"/home/u")),
            (100, None),
        ] {
            assert_eq!(home_in(text, uid), want, "{uid}");
        }
    }
}
