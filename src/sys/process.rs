//! Facts about processes, read from `/proc`, and the calls that end the life of one program and begin another's.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::fs::MemfdFlags;

/// When process `pid` was started, in clock ticks since boot: field 22 of `/proc/PID/stat`. With the pid it names a process
/// uniquely (proc_pid_stat(5)). `NotFound` when there is none.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let (_, start) = stat(pid)?;
    Ok(start)
}

/// How long ago a process was started that has this [`start_time`]: by the clock that nobody sets.
pub fn age(start_time: u64) -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // SAFETY: a plain question.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
    let since = |part: u64, of: u64| Duration::from_nanos(part.saturating_mul(1_000_000_000) / of);
    let started = Duration::from_secs(start_time / ticks) + since(start_time % ticks, ticks);
    Duration::try_from(now)
        .unwrap_or_default()
        .saturating_sub(started)
}

/// Whether process `pid` runs: `false` for a zombie. `NotFound` when there is none.
pub fn is_running(pid: i32) -> io::Result<bool> {
    let (state, _) = stat(pid)?;
    Ok(!matches!(state, b'Z' | b'X' | b'x'))
}

/// State letter and start time.
fn stat(pid: i32) -> io::Result<(u8, u64)> {
    let text = match fs::read(format!("/proc/{pid}/stat")) {
        // the process ended between open and read
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
            return Err(io::ErrorKind::NotFound.into());
        }
        other => other?,
    };
    parse_stat(&text).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat has no start time"),
        )
    })
}

/// Fields 3 and 22. The name (field 2) may hold spaces, brackets and any other byte, so counting starts after the last ')'.
fn parse_stat(text: &[u8]) -> Option<(u8, u64)> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Whether the calling process has one thread, which clone and setns(2) ask for.
pub fn is_single_threaded() -> io::Result<bool> {
    // its links are `.`, `..` and a folder for each thread
    Ok(rustix::fs::stat("/proc/self/task")?.st_nlink == 3)
}

/// Whether we are in a user namespace: the machine's own maps everything onto itself.
pub fn in_user_namespace() -> io::Result<bool> {
    let mut map = [0; 64];
    let length = File::open("/proc/self/uid_map")?.read(&mut map)?;
    let map = map.get(..length).unwrap_or_default();
    let words = map.split(u8::is_ascii_whitespace);
    let whole: [&[u8]; 3] = [b"0", b"0", b"4294967295"];
    Ok(!words.filter(|word| !word.is_empty()).eq(whole))
}

/// Replaces the program (execve(2)); comes back only with the error.
pub fn execve(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter()
            .map(|text| text.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer and point to C strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces the program by an open file (execveat(2) `AT_EMPTY_PATH`); comes back only with the error.
pub fn execute_file(file: &impl AsFd, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        let ends = [std::ptr::null()];
        list.iter().map(|text| text.as_ptr()).chain(ends).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    let empty: &CStr = c"";
    // SAFETY: both arrays end with a null pointer and point to C strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_fd().as_raw_fd(),
            empty.as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// fork(2) of a process with one thread: 0 in the child. Not clone3(2), which filters of containers answer with ENOSYS.
pub fn fork() -> io::Result<i32> {
    if !is_single_threaded()? {
        return Err(io::Error::other(
            "fork needs a process with a single thread",
        ));
    }
    // SAFETY: with one thread nobody else holds a lock that the child would wait for.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// Makes the program of `command` start with default signals, with file mode creation mask `umask` when given, and with the standard
/// streams as only descriptors, whatever the caller has open for others.
pub fn start_fresh(command: &mut Command, umask: Option<u32>) {
    let prepare = move || {
        reset_signals();
        if let Some(mask) = umask {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
        }
        super::fd::close_on_exec(0)
    };
    // SAFETY: the closure makes system calls only, it takes no lock and allocates nothing (signal-safety(7)).
    unsafe { command.pre_exec(prepare) };
}

/// Makes the program of `command` be killed when the calling thread ends before it (PR_SET_PDEATHSIG(2const)).
pub fn end_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        let kill = Some(rustix::process::Signal::KILL);
        rustix::process::set_parent_process_death_signal(kill)?;
        // it may have ended before
        match rustix::process::getppid() == Some(parent) {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: the closure makes system calls only, it takes no lock and allocates nothing (signal-safety(7)).
    unsafe { command.pre_exec(prepare) };
}

/// A file in memory that holds `content`, to be read from its beginning.
pub fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("sampan", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

/// Takes a secret out of the process's environment: the value, which is then neither there, nor in `/proc/self/environ`, nor passed
/// on. To be called while there is one thread.
pub fn take_variable(name: &CStr) -> Option<OsString> {
    // SAFETY: the string ends with a zero; with one thread nobody changes the environment meanwhile.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: getenv(3) gives a string that ends with a zero and stays until the environment is changed.
    let taken = unsafe { CStr::from_ptr(value) }.to_bytes().to_vec();
    // SAFETY: as many bytes are there, in memory that the process may write to: its stack's end, or the C library's copy. Nobody else
    // reads them.
    unsafe { std::ptr::write_bytes(value, 0, taken.len()) };
    // SAFETY: as for getenv.
    unsafe { libc::unsetenv(name.as_ptr()) };
    Some(OsString::from_vec(taken))
}

/// Ends the process at once, without exit handlers: for a cloned child.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(code) }
}

/// Signals as a fresh program expects them: default dispositions, nothing blocked. Rust ignores SIGPIPE, callers block or ignore more,
/// and both are inherited through execve (signal(7) "Signal mask and pending signals").
pub fn reset_signals() {
    // the kernel's own structure and call: libc hides signals 32 and 33, which it uses itself; SIG_DFL, no flags, no mask are all zero
    let action = [0u64; 8];
    for signal in 1..=64 {
        // SAFETY: `action` is larger than the kernel's structure on every 64-bit machine and is only read; the signal set has 8 bytes.
        // Signals that may not be changed answer EINVAL, which is harmless.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8usize,
            )
        };
    }
    // SAFETY: an empty set of 8 bytes, only read.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            action.as_ptr(),
            std::ptr::null_mut::<u64>(),
            8usize,
        )
    };
}

/// Lets the signals that end a program end the calling one, also where it is the first of a pid namespace: without a handler the kernel
/// drops them there (pid_namespaces(7)). execve takes the handlers away.
pub fn end_on_signals() -> io::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn end(signal: libc::c_int) {
        exit_now(128 + signal)
    }
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGTERM,
    ] {
        // SAFETY: the handler calls _exit(2) and nothing else, which is safe in any handler (signal-safety(7)).
        unsafe { sigaction(signal, &action)? };
    }
    Ok(())
}

/// A new anonymous session keyring (keyctl(2) KEYCTL_JOIN_SESSION_KEYRING), so that the caller's keys are out of reach.
/// A kernel without keys is success.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0usize) };
    match io::Error::last_os_error() {
        _ if done >= 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        error => Err(error),
    }
}

/// Sets the loopback interface of the calling process's network namespace up (netdevice(7) SIOCSIFFLAGS).
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: zeroed ifreq is valid: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is the structure this ioctl reads, and lives through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    super::done(done.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_stat() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        for (name, want) in [
            ("(cat)", Some((b'S', 4711))),
            ("(a b)", Some((b'S', 4711))),
            ("() S 1 (x)) )", Some((b'S', 4711))),
            ("no bracket", None),
        ] {
            assert_eq!(
                parse_stat(format!("12 {name} {tail}").as_bytes()),
                want,
                "{name}"
            );
        }
        assert_eq!(parse_stat(b"12 (cat) S 1 2"), None);
        assert_eq!(
            parse_stat(b"12 (\xff\xfe) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 7"),
            Some((b'Z', 7))
        );
    }

    #[test]
    fn what_began_with_the_machine_is_as_old() {
        let uptime = || {
            let text = fs::read_to_string("/proc/uptime").unwrap();
            let seconds: f64 = text.split_once(' ').unwrap().0.parse().unwrap();
            Duration::from_secs_f64(seconds)
        };
        // hundredths, cut off
        let before = uptime();
        let since = age(0);
        assert!(before <= since && since < uptime() + Duration::from_millis(10));
        let own = start_time(std::process::id() as i32).unwrap();
        assert!(age(own) < since && age(u64::MAX / 2) == Duration::ZERO);
    }

    #[test]
    fn knows_itself() {
        let own = std::process::id() as i32;
        assert!(start_time(own).unwrap() > 0);
        assert!(is_running(own).unwrap());
        assert_eq!(
            start_time(i32::MAX).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn takes_a_variable() {
        const NAME: &CStr = c"SAMPAN_TEST_SECRET";
        let name = NAME.to_str().unwrap();
        if let Some(value) = take_variable(NAME) {
            // the second run
            assert_eq!(value, "hidden");
            assert!(std::env::var_os(name).is_none());
            let environment = fs::read("/proc/self/environ").unwrap();
            assert!(!environment.windows(6).any(|bytes| bytes == b"hidden"));
            assert_eq!(take_variable(NAME), None);
            return;
        }
        let mut again = Command::new("/proc/self/exe");
        again
            .args(["--exact", "sys::process::tests::takes_a_variable"])
            .env(name, "hidden");
        let output = again.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
