//! The program inside the container: attacks from there and tells in JSON lines on standard output what came of it.
//!
//! It is this program itself, started under the name [`NAME`]. *Invariants:* it writes nothing but a marker into files that the
//! self test made; what it tries on files of the kernel ends before a byte is written.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::mount::MsFlags;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use crate::sys::{dirt, mount, stderr};

/// `argv[0]`, or its last part, that asks for the probe; what to do follows.
pub const NAME: &str = "sampan-probe";
/// What it writes where it should not be able to.
pub const MARK: &[u8] = b"overwritten by a container\n";
/// Description of a key that the caller of the runtime holds.
pub const KEY: &std::ffi::CStr = c"sampan-selftest";
/// File inside whose appearance ends [`spy`].
const STOP: &str = "/stop";
/// Longest time for one attack.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest time for [`spy`].
const LONG: Duration = Duration::from_secs(60);

/// Whether the program was started as the probe.
pub fn is_meant(name: &std::ffi::OsStr) -> bool {
    Path::new(name).file_name().is_some_and(|last| last == NAME)
}

/// Runs the attack that the arguments name.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Vec<String> = arguments
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match attack(&words).and_then(|report| match report {
        Value::Null => Ok(()),
        report => say(&report),
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            stderr::line(format_args!("{NAME}: {words:?}: {error}"));
            ExitCode::from(99)
        }
    }
}

fn attack(words: &[&str]) -> io::Result<Value> {
    match words {
        ["true", ..] => Ok(Value::Null),
        ["inventory"] => inventory(),
        ["hold"] => hold(),
        ["hold", "and", "spy"] => spy(),
        ["into", file, rest @ ..] => {
            let report = attack(rest)?;
            fs::write(file, format!("{report}\n")).map(|()| Value::Null)
        }
        ["procs"] => procs(),
        ["places-and-look", path] => Ok(json!({
            "places": mounts("/proc/self/mountinfo")?,
            "seen": look(Path::new(path)),
        })),
        ["cgroups"] => cgroups(),
        ["look", paths @ ..] => Ok(paths.iter().map(|path| look(Path::new(path))).collect()),
        ["try", paths @ ..] => Ok(paths.iter().map(|path| attempt(Path::new(path))).collect()),
        // further words are those of the line that asked for it (execve(2) "Interpreter scripts")
        ["take-program", ..] => take_program(),
        ["overwrite", descriptor] => Ok(overwrite(descriptor)),
        ["leak", folder, command @ ..] => Err(leak(folder, command)),
        ["dirty", command @ ..] => Err(dirty(command)),
        ["loose", command @ ..] => {
            rustix::process::umask(Mode::empty());
            Err(execute(command, |command| command))
        }
        ["in-turn", commands @ ..] => in_turn(commands),
        ["alone", command @ ..] => Err(alone(command)),
        ["disguised", place, with, command @ ..] => Err(disguised(place, with, command)),
        ["user", id, command @ ..] => Err(as_user(id, command)),
        _ => Err(io::Error::other("no such attack")),
    }
}

fn say(report: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{report}")?;
    out.flush()
}

fn name_of(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).to_string(),
        None => error.to_string(),
    }
}

/// Everything that a process may have inherited.
fn inventory() -> io::Result<Value> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.map_or("", |rest| rest.trim_start_matches(':').trim())
    };
    let fields: serde_json::Map<String, Value> = [
        "Uid",
        "Gid",
        "Groups",
        "Umask",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "SigBlk",
        "SigIgn",
        "SigPnd",
        "ShdPnd",
        "NoNewPrivs",
        "Seccomp",
    ]
    .iter()
    .map(|key| (key.to_string(), json!(field(key))))
    .collect();
    let environment: Vec<String> = std::env::vars_os()
        .map(|(key, value)| format!("{}={}", key.to_string_lossy(), value.to_string_lossy()))
        .collect();
    Ok(json!({
        "descriptors": descriptors("/proc/self/fd")?,
        "status": fields,
        "environment": environment,
        "cwd": fs::read_link("/proc/self/cwd")?,
        "root": fs::read_dir("/")?.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect::<Vec<_>>(),
        "mounts": fs::read_to_string("/proc/self/mountinfo")?,
        "sockets": fs::read_to_string("/proc/net/unix")?,
        "key": dirt::finds_key(KEY),
        "pid": std::process::id(),
        "session": nix::unistd::getsid(None).map_or(-1, nix::unistd::Pid::as_raw),
        "oom": fs::read_to_string("/proc/self/oom_score_adj")?.trim(),
    }))
}

/// Numbers and what they lead to, without the one that reads the folder.
fn descriptors(folder: &str) -> io::Result<Vec<(i32, String)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(number) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        if !target.starts_with("/proc/") || !target.ends_with("/fd") {
            all.push((number, target));
        }
    }
    all.sort();
    Ok(all)
}

/// Waits until it is killed.
fn hold() -> io::Result<Value> {
    say(&json!("ready"))?;
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// What is at a path.
fn look(path: &Path) -> Value {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return json!({ "error": name_of(&error) }),
    };
    let kind = meta.file_type();
    let mut seen = json!({
        "kind": if kind.is_dir() { "folder" } else if kind.is_char_device() { "device" } else if kind.is_file() { "file" } else { "other" },
        "device": format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())),
        "owner": format!("{}:{}", meta.uid(), meta.gid()),
        "filesystem": rustix::fs::statfs(path).map_or(0, |fs| fs.f_type as u64),
    });
    if kind.is_dir() {
        let names = fs::read_dir(path).map(|all| all.count());
        seen["entries"] = json!(names.unwrap_or(0));
    } else if kind.is_file() || kind.is_char_device() {
        // not a terminal, which would wait for a key
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut text = [0; 256];
        let read = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .and_then(|mut file| io::Read::read(&mut file, &mut text));
        seen["text"] = match read {
            Ok(length) => json!(String::from_utf8_lossy(
                text.get(..length).unwrap_or_default()
            )),
            Err(error) => json!({ "error": name_of(&error) }),
        };
    }
    seen
}

/// Whether a cgroup can be made in each hierarchy.
fn cgroups() -> io::Result<Value> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let places = mounts.lines().filter(|line| line.contains(" - cgroup"));
    let places = places.filter_map(|line| line.split(' ').nth(4));
    Ok(places
        .map(|place| json!({"place": place, "make": attempt(Path::new(place))}))
        .collect())
}

/// Where something is mounted.
fn mounts(table: &str) -> io::Result<Vec<String>> {
    let table = fs::read_to_string(table)?;
    let places = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(places.map(str::to_owned).collect())
}

/// What is open of every proc that is mounted.
fn procs() -> io::Result<Value> {
    // whatever name the folder has by now
    let mut tables = ["/proc", "/link", "/fake"]
        .iter()
        .map(|folder| fs::read_to_string(Path::new(folder).join("self/mountinfo")));
    let mounts = tables
        .find_map(Result::ok)
        .ok_or_else(|| io::Error::other("no proc is mounted"))?;
    let places = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        (root == "/" && line.contains(" - proc ")).then(|| PathBuf::from(place))
    });
    let seen = places.map(|place| {
        json!({
            "place": place,
            "kcore": look(&place.join("kcore")),
            "core_pattern": attempt(&place.join("sys/kernel/core_pattern")),
            "sysrq": attempt(&place.join("sysrq-trigger")),
        })
    });
    Ok(seen.collect())
}

/// Whether a file can be opened for writing, or something made in a folder: `ok`, or the error's name.
fn attempt(path: &Path) -> Value {
    let done = if path.is_dir() {
        let inside = path.join("sampan-selftest");
        fs::create_dir(&inside).and_then(|()| fs::remove_dir(&inside))
    } else {
        OpenOptions::new().write(true).open(path).map(drop)
    };
    json!(done.map_or_else(|error| name_of(&error), |()| "ok".to_owned()))
}

/// Runs from the runtime's own file, led there through a link to `/proc/self/exe` (CVE-2019-5736): takes the file along into another
/// program, since nobody may write to one that runs.
fn take_program() -> io::Result<Value> {
    let own = rustix::fs::open("/proc/self/exe", OFlags::RDONLY, Mode::empty())?;
    let mut words = Command::new("/bin/sampan-probe");
    Err(words
        .args(["overwrite", &own.as_raw_fd().to_string()])
        .exec())
}

/// Writes to the file behind a descriptor, whatever it was opened for, as soon as nobody executes it any more.
fn overwrite(descriptor: &str) -> Value {
    let path = PathBuf::from("/proc/self/fd").join(descriptor);
    let freed = make_writable(&path);
    let before = fs::read_link(&path)
        .map_or_else(|error| name_of(&error), |path| path.display().to_string());
    let begin = Instant::now();
    loop {
        match OpenOptions::new().append(true).open(&path) {
            Ok(mut file) => {
                let written = file.write_all(MARK);
                return json!({"file": before, "mount": freed, "overwrite": written.map_or_else(|error| name_of(&error), |()| "done".to_owned())});
            }
            Err(error)
                if error.raw_os_error() == Some(libc::ETXTBSY) && begin.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => {
                return json!({"file": before, "mount": freed, "overwrite": name_of(&error)});
            }
        }
    }
}

/// What CAP_SYS_ADMIN has to make the mount of a file writable: each way with its answer.
fn make_writable(path: &Path) -> Value {
    let none: Option<&str> = None;
    let bind = |more| nix::mount::mount(Some(path), path, none, MsFlags::MS_BIND | more, none);
    let open = || rustix::fs::open(path, OFlags::PATH, Mode::empty());
    let writable = mount::Attributes {
        clear: libc::MOUNT_ATTR_RDONLY,
        ..mount::Attributes::default()
    };
    let tries = [
        ("remount", bind(MsFlags::MS_REMOUNT).map_err(Into::into)),
        (
            "mount_setattr",
            open()
                .map_err(Into::into)
                .and_then(|file| mount::set_attributes(&file, false, writable)),
        ),
        (
            "open_tree",
            mount::clone_tree(path, false)
                .and_then(|tree| mount::set_attributes(&tree, false, writable)),
        ),
        ("bind", bind(MsFlags::empty()).map_err(Into::into)),
    ];
    let said = tries.map(|(way, done): (_, io::Result<()>)| {
        let answer = done.map_or_else(|error| name_of(&error), |()| "ok".to_owned());
        (way.to_owned(), json!(answer))
    });
    Value::Object(said.into_iter().collect())
}

/// Looks into every other process of the container that is not the probe, as fast as it can, until [`STOP`] appears (CVE-2016-9962):
/// counts those it saw, and tells what it could get at.
fn spy() -> io::Result<Value> {
    let own = fs::metadata("/bin/sampan-probe")?;
    let (mut loot, mut alive) = (BTreeSet::new(), BTreeSet::new());
    let (mut next, mut seen) = (2, 0);
    say(&json!("ready"))?;
    let begin = Instant::now();
    while !Path::new(STOP).exists() && begin.elapsed() < LONG {
        // numbers are given in order: no need to list the folder, which takes longer than what we wait for
        for pid in [next, next + 1, next + 2] {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            if folder.exists() {
                seen += u32::from(alive.insert(pid));
                peek(&folder, &own, &mut loot);
            } else if alive.remove(&pid) {
                next = pid + 1;
            }
        }
    }
    Ok(json!({"seen": seen, "loot": loot}))
}

/// What is open to us of a process that does not run the probe: its file, memory and descriptors.
fn peek(folder: &Path, own: &fs::Metadata, loot: &mut BTreeSet<String>) {
    let exe = folder.join("exe");
    let Ok(file) = File::open(&exe) else { return };
    let Ok(meta) = file.metadata() else { return };
    if (meta.dev(), meta.ino()) == (own.dev(), own.ino()) {
        return;
    }
    loot.insert("its program".to_owned());
    let still = || fs::metadata(&exe).is_ok_and(|now| now.ino() == meta.ino());
    for (number, target) in descriptors(&folder.join("fd").to_string_lossy()).unwrap_or_default() {
        let kind = target.split(['[', '(']).next().unwrap_or_default();
        if number > 2 && still() {
            loot.insert(format!("descriptor of {kind}"));
        }
    }
    if File::open(folder.join("mem")).is_ok() && still() {
        loot.insert("its memory".to_owned());
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    if OpenOptions::new().append(true).open(path).is_ok() {
        loot.insert("a writable descriptor of its program".to_owned());
    }
}

/// Becomes as dirty as a caller can be, then runs a command: what the container sees of that was inherited.
fn dirty(command: &[&str]) -> io::Error {
    let work = || -> io::Result<()> {
        for (signal, ignored) in [
            (Signal::SIGINT, true),
            (Signal::SIGHUP, true),
            (Signal::SIGUSR1, false),
            (Signal::SIGTERM, false),
        ] {
            if ignored {
                dirt::ignore_signal(signal as i32)?;
            } else {
                SigSet::from(signal).thread_block()?;
            }
        }
        // a kernel without keys has none to leak
        match dirt::new_session_with_key(KEY) {
            Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => return Err(error),
            _ => {}
        }
        leave_open("/")?;
        rustix::process::umask(Mode::from_raw_mode(0o077));
        if rustix::process::geteuid().is_root() {
            let groups: Vec<_> = [1u32, 2, 3].map(rustix::process::Gid::from_raw).to_vec();
            rustix::thread::set_thread_groups(&groups)?;
            let both = [caps::Capability::CAP_CHOWN, caps::Capability::CAP_NET_RAW];
            for capability in both {
                caps::raise(None, caps::CapSet::Inheritable, capability)
                    .map_err(io::Error::other)?;
                caps::raise(None, caps::CapSet::Ambient, capability).map_err(io::Error::other)?;
            }
        }
        Ok(())
    };
    match work() {
        Ok(()) => execute(command, |command| {
            command.env("SAMPAN_SELFTEST_SECRET", "of the caller")
        }),
        Err(error) => error,
    }
}

/// Leaves a folder open, under low and high numbers, for programs executed later.
fn leave_open(folder: &str) -> io::Result<()> {
    let folder = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    for number in [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 60, 200, 1000] {
        let open = rustix::io::fcntl_dupfd_cloexec(&folder, number)?;
        rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty())?;
        let _ = open.into_raw_fd();
    }
    Ok(())
}

/// Runs a command with a folder left open (CVE-2024-21626).
fn leak(folder: &str, command: &[&str]) -> io::Error {
    match leave_open(folder) {
        Ok(()) => execute(command, |command| command),
        Err(error) => error,
    }
}

/// Runs commands with `--` between them, one after another; the first that fails ends it.
fn in_turn(commands: &[&str]) -> io::Result<Value> {
    for words in commands.split(|word| *word == "--") {
        let Some((program, arguments)) = words.split_first() else {
            return Err(io::Error::other("needs a command"));
        };
        let status = Command::new(program).args(arguments).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("{words:?}: {status}")));
        }
    }
    Ok(Value::Null)
}

/// Runs a command in a network namespace of its own.
fn alone(command: &[&str]) -> io::Error {
    match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
        Ok(()) => execute(command, |command| command),
        Err(error) => error.into(),
    }
}

/// Runs a command in a mount namespace where the file `with` is mounted over the file `place` of the host (CVE-2025-52881).
fn disguised(place: &str, with: &str, command: &[&str]) -> io::Error {
    let work = || -> io::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(none, "/", none, private, none)?;
        nix::mount::mount(Some(with), place, none, nix::mount::MsFlags::MS_BIND, none)?;
        Ok(())
    };
    match work() {
        Ok(()) => execute(command, |command| command),
        Err(error) => error,
    }
}

/// Runs a command as an ordinary user.
fn as_user(id: &str, command: &[&str]) -> io::Error {
    let Ok(id) = id.parse() else {
        return io::ErrorKind::InvalidInput.into();
    };
    execute(command, |command| command.uid(id).gid(id))
}

fn execute(command: &[&str], change: impl FnOnce(&mut Command) -> &mut Command) -> io::Error {
    let Some((program, arguments)) = command.split_first() else {
        return io::Error::other("needs a command");
    };
    let mut command = Command::new(program);
    change(command.args(arguments)).exec()
}
