//! The program that the tests use as a root file system: many small commands in one static file.
//!
//! `testinit COMMAND ARGS…`, or by a link of the command's name. It prints plain lines and ends with 0, or 1 with a message on stderr.
//! Commands joined by a lone `--` argument run one after the other until one fails.
#![allow(missing_docs)]

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::{ExitCode, exit};

use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::unistd::Pid;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().collect();
    let name = args.first().cloned().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    if name == "testinit" || name == "init" {
        args.remove(0);
    } else if let Some(first) = args.first_mut() {
        *first = name;
    }
    for part in args.split(|arg| arg == "--") {
        if let Err(error) = run(part) {
            eprintln!("testinit: {}: {error}", part.join(" "));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run(args: &[String]) -> Result<()> {
    let arg = |index: usize| {
        args.get(index)
            .map(String::as_str)
            .ok_or("argument missing")
    };
    let rest = args.get(1..).unwrap_or_default();
    match args.first().map_or("true", String::as_str) {
        "true" => {}
        "false" => exit(1),
        "exit" => exit(arg(1)?.parse()?),
        "echo" => println!("{}", rest.join(" ")),
        "echo-err" => eprintln!("{}", rest.join(" ")),
        "cat" => cat(rest)?,
        "id" => id()?,
        "caps" => lines_of("/proc/self/status", &["Cap", "NoNewPrivs", "Seccomp:"])?,
        "env" => std::env::vars().for_each(|(key, value)| println!("{key}={value}")),
        "mounts" => cat(&["/proc/self/mountinfo".to_owned()])?,
        "fds" => fds()?,
        "limits" => cat(&["/proc/self/limits".to_owned()])?,
        "signals" => lines_of("/proc/self/status", &["SigBlk", "SigIgn", "SigCgt"])?,
        "pwd" => println!("{}", std::env::current_dir()?.display()),
        "umask" => println!(
            "{:04o}",
            nix::sys::stat::umask(nix::sys::stat::Mode::empty()).bits()
        ),
        "hostname" => println!(
            "{}",
            fs::read_to_string("/proc/sys/kernel/hostname")?.trim_end()
        ),
        "cgroup" => cat(&["/proc/self/cgroup".to_owned()])?,
        "pid" => println!(
            "{} {} {}",
            std::process::id(),
            nix::unistd::getppid(),
            nix::unistd::getsid(None)?
        ),
        "tty" => tty()?,
        "ls" => ls(arg(1)?)?,
        "stat" => stat(arg(1)?)?,
        "readlink" => println!("{}", fs::read_link(arg(1)?)?.display()),
        "write" => fs::write(arg(1)?, rest.get(1..).unwrap_or_default().join(" "))?,
        "append" => append(arg(1)?, arg(2)?)?,
        "mkdir" => fs::create_dir_all(arg(1)?)?,
        "rm" => fs::remove_file(arg(1)?)?,
        "mknod" => mknod(arg(1)?)?,
        "mount" => mount(arg(1)?)?,
        "sysctl" => sysctl(arg(1)?)?,
        "sleep" => sleep(args.get(1).map(String::as_str))?,
        "wait-for" => wait_for(arg(1)?)?,
        "ignore-term" => ignore_term()?,
        "on-term" => on_term(arg(1)?)?,
        "signal-self" => signal_self(arg(1)?.parse()?)?,
        "memhog" => memhog(arg(1)?.parse()?)?,
        "fork" => fork(rest)?,
        "fork-bomb" => fork_bomb(),
        "orphan" => orphan(rest)?,
        "upper" => upper()?,
        "tcp-serve" => tcp_serve(arg(1)?)?,
        "tcp-get" => tcp_get(arg(1)?)?,
        other => return Err(format!("unknown command {other}").into()),
    }
    io::stdout().flush()?;
    Ok(())
}

fn cat(paths: &[String]) -> Result<()> {
    let mut out = io::stdout().lock();
    if paths.is_empty() {
        io::copy(&mut io::stdin().lock(), &mut out)?;
    }
    for path in paths {
        io::copy(&mut fs::File::open(path)?, &mut out)?;
    }
    Ok(())
}

/// `uid=R,E,S gid=R,E,S groups=…`
fn id() -> Result<()> {
    let (uid, gid) = (nix::unistd::getresuid()?, nix::unistd::getresgid()?);
    let groups: Vec<String> = nix::unistd::getgroups()?
        .iter()
        .map(ToString::to_string)
        .collect();
    println!(
        "uid={},{},{} gid={},{},{} groups={}",
        uid.real,
        uid.effective,
        uid.saved,
        gid.real,
        gid.effective,
        gid.saved,
        groups.join(",")
    );
    Ok(())
}

fn lines_of(path: &str, prefixes: &[&str]) -> Result<()> {
    for line in fs::read_to_string(path)?.lines() {
        if prefixes.iter().any(|prefix| line.starts_with(prefix)) {
            println!("{line}");
        }
    }
    Ok(())
}

/// Open descriptors, without the one that reads them.
fn fds() -> Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        if let Ok(target) = fs::read_link(entry.path()) {
            let number: i32 = entry.file_name().to_string_lossy().parse()?;
            if !target
                .to_string_lossy()
                .ends_with(&format!("/proc/{}/fd", std::process::id()))
            {
                found.push((number, target));
            }
        }
    }
    found.sort();
    for (number, target) in found {
        println!("{number} {}", target.display());
    }
    Ok(())
}

/// Size, whether it is the controlling terminal, and the three streams.
fn tty() -> Result<()> {
    let mut size: libc::winsize = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let controlling = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty");
    println!("controlling {}", controlling.is_ok());
    for fd in 0..3 {
        println!(
            "{fd} {}",
            fs::read_link(format!("/proc/self/fd/{fd}"))?.display()
        );
    }
    window_size(&mut size)?;
    println!("size {}x{}", size.ws_col, size.ws_row);
    Ok(())
}

#[allow(unsafe_code)]
fn window_size(size: &mut libc::winsize) -> Result<()> {
    // SAFETY: TIOCGWINSZ fills the structure, which lives through the call.
    let done = unsafe {
        libc::ioctl(
            io::stdin().as_raw_fd(),
            libc::TIOCGWINSZ,
            size as *mut libc::winsize,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error().into())
    }
}

fn ls(path: &str) -> Result<()> {
    let names =
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<String>>>()?;
    names.sort();
    names.iter().for_each(|name| println!("{name}"));
    Ok(())
}

/// `KIND MODE UID:GID SIZE MAJOR:MINOR`, links not followed.
fn stat(path: &str) -> Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let kind = meta.file_type();
    let kind = match () {
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "link",
        () if kind.is_char_device() => "character",
        () if kind.is_block_device() => "block",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () => "file",
    };
    println!(
        "{kind} {:04o} {}:{} {} {}:{}",
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid(),
        meta.size(),
        libc::major(meta.rdev()),
        libc::minor(meta.rdev())
    );
    Ok(())
}

fn append(path: &str, text: &str) -> Result<()> {
    writeln!(
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)?,
        "{text}"
    )?;
    Ok(())
}

/// A copy of the null device.
fn mknod(path: &str) -> Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    mknod(
        Path::new(path),
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        makedev(1, 3),
    )?;
    Ok(())
}

fn mount(target: &str) -> Result<()> {
    nix::mount::mount(
        Some("tmpfs"),
        target,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )?;
    Ok(())
}

/// `sysctl NAME` or `sysctl NAME=VALUE`.
fn sysctl(text: &str) -> Result<()> {
    let path = |name: &str| format!("/proc/sys/{}", name.replace('.', "/"));
    match text.split_once('=') {
        Some((name, value)) => fs::write(path(name), value)?,
        None => println!("{}", fs::read_to_string(path(text))?.trim_end()),
    }
    Ok(())
}

/// Seconds, or for ever; as PID 1 it ends on SIGTERM and SIGINT and reaps.
fn sleep(seconds: Option<&str>) -> Result<()> {
    if let Some(seconds) = seconds {
        std::thread::sleep(std::time::Duration::from_secs_f64(seconds.parse()?));
        return Ok(());
    }
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        set.add(signal);
    }
    set.thread_block()?;
    loop {
        match set.wait()? {
            Signal::SIGCHLD => {
                while nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
                    .is_ok_and(|status| status.pid().is_some())
                {}
            }
            signal => exit(128 + signal as i32),
        }
    }
}

fn wait_for(path: &str) -> Result<()> {
    while !Path::new(path).exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(())
}

fn handle(number: Signal, handler: SigHandler) -> Result<()> {
    set_handler(number, handler)?;
    Ok(())
}

#[allow(unsafe_code)]
fn set_handler(number: Signal, handler: SigHandler) -> nix::Result<SigHandler> {
    // SAFETY: only SIG_IGN and SIG_DFL are set.
    unsafe { signal(number, handler) }
}

fn ignore_term() -> Result<()> {
    handle(Signal::SIGTERM, SigHandler::SigIgn)?;
    println!("ready");
    io::stdout().flush()?;
    loop {
        nix::unistd::pause();
    }
}

/// Ends with the given code on SIGTERM.
fn on_term(code: &str) -> Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block()?;
    println!("ready");
    io::stdout().flush()?;
    set.wait()?;
    exit(code.parse()?)
}

fn signal_self(number: i32) -> Result<()> {
    let number = Signal::try_from(number)?;
    // as PID 1 a default action is ignored for all but what comes from outside
    kill(Pid::this(), number)?;
    Ok(())
}

/// Takes and touches so many bytes.
fn memhog(bytes: usize) -> Result<()> {
    let mut memory: Vec<u8> = Vec::new();
    memory.try_reserve_exact(bytes)?;
    for index in 0..bytes {
        memory.push(index as u8);
    }
    println!("{}", memory.len());
    Ok(())
}

/// Runs the rest of the line in a child and prints its end.
fn fork(rest: &[String]) -> Result<()> {
    let status = std::process::Command::new("/proc/self/exe")
        .arg0("testinit")
        .args(rest)
        .status()?;
    println!("{status}");
    Ok(())
}

/// Multiplies, and goes on when it cannot.
#[allow(unsafe_code)]
fn fork_bomb() {
    loop {
        // SAFETY: a single thread, whose copy does nothing but this.
        unsafe { libc::fork() };
    }
}

/// Leaves the rest of the line running.
fn orphan(rest: &[String]) -> Result<()> {
    let child = std::process::Command::new("/proc/self/exe")
        .arg0("testinit")
        .args(rest)
        .spawn()?;
    println!("{}", child.id());
    Ok(())
}

use std::os::unix::process::CommandExt;

/// stdin in capitals, until its end.
fn upper() -> Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    print!("{}", text.to_uppercase());
    Ok(())
}

/// Answers each connection with `hello from ADDRESS`.
fn tcp_serve(address: &str) -> Result<()> {
    for stream in std::net::TcpListener::bind(address)?.incoming() {
        writeln!(stream?, "hello from {address}")?;
    }
    Ok(())
}

fn tcp_get(address: &str) -> Result<()> {
    let address: std::net::SocketAddr = address.parse()?;
    io::copy(
        &mut std::net::TcpStream::connect(address)?,
        &mut io::stdout(),
    )?;
    Ok(())
}
