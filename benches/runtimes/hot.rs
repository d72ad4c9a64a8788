//! Which functions of the program a container's start needs, so that the linker can put them side by side: `make hot`.
//!
//! The kernel maps a program's pages sixteen at a time around each one that is touched. The six hundred functions of a start lie all
//! over thirteen megabytes, so three of them count as the process's own; side by side it is one tenth, and a third of the page faults.
//! Behind them lie those of the processes that stay: what keeps a pod, and an executor.
//!
//! It is made on x86_64 and serves other machines as well, since names are the same.
//!
//! *Invariants:* the list orders, nothing else: a name that is not there any more is ignored by the linker, a function that is not in
//! the list lies where it always did.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::place::Place;
use crate::runtime::{Runtime, Step};
use crate::{Options, Result};

/// What a start of any command touches is in each; these are the ones that make and enter.
const STEPS: [(Step, &str); 2] = [(Step::Run, "seccomp"), (Step::Run, "plain")];

/// A name that more functions than these have lets too many come along that nobody needs.
const SAME_NAME_MAX: usize = 4;

/// Functions of the program by address.
type Symbols = BTreeMap<u64, String>;

/// Programs without fixed addresses are mapped far above.
const FIXED_BELOW: u64 = 1 << 32;

/// int3
const BREAKPOINT: [u8; 1] = [0xcc];

/// Takes `sampan` from function to function through the steps, and what runs it below the other command, and writes the linker script.
/// The program needs its symbols.
pub fn write(place: &Place, sampan: &Runtime, options: &Options, script: &Path) -> Result<()> {
    let file = &options.sampan;
    let symbols = symbols(file)?;
    if symbols.len() < 1000 {
        return Err(format!("{} has no symbols", file.display()));
    }
    let mut parts = Vec::new();
    let mut start = Vec::new();
    for (step, bundle) in STEPS {
        start.extend(walk(
            sampan.command(place, step, bundle, "bench"),
            file,
            &symbols,
        )?);
    }
    parts.push(("start", start));
    if let Some(also) = &options.also {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", also]);
        parts.push(("stay", walk(shell, file, &symbols)?));
    }
    let mut count: HashMap<String, usize> = HashMap::new();
    for name in symbols.values() {
        *count.entry(pattern(name)).or_default() += 1;
    }
    let mut text = HEAD.to_owned();
    let mut told = HashSet::new();
    for (name, offsets) in parts {
        let functions: Vec<&String> = offsets.iter().filter_map(|at| symbols.get(at)).collect();
        let patterns = functions.iter().map(|name| pattern(name));
        let (few, many): (Vec<String>, Vec<String>) = patterns
            .filter(|name| told.insert(name.clone()))
            .partition(|name| count.get(name).is_some_and(|count| *count <= SAME_NAME_MAX));
        let members: Vec<String> = library_members(&functions)?
            .into_iter()
            .filter(|member| told.insert(member.clone()))
            .collect();
        text.push_str(&section(name, few.iter().chain(&many), &members));
    }
    text.push_str("} INSERT BEFORE .text;\n");
    fs::write(script, text).map_err(|error| format!("write {}: {error}", script.display()))
}

/// Where the C library is for the linker.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libc.a";

/// The parts of the C library that have the functions: it has no section for each.
fn library_members(functions: &[&String]) -> Result<Vec<String>> {
    let output = Command::new("nm")
        .args(["--print-file-name", "--defined-only", LIBRARY])
        .output()
        .map_err(|error| format!("nm: {error}"))?;
    let wanted: HashSet<&str> = functions.iter().map(|name| name.as_str()).collect();
    let mut members = BTreeSet::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // FILE:MEMBER:ADDRESS TYPE NAME
        let mut words = line.split_whitespace();
        let (Some(place), Some("t" | "T" | "i" | "W"), Some(name)) =
            (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if let Some(member) = place.split(':').nth(1)
            && wanted.contains(name)
        {
            members.insert(member.to_owned());
        }
    }
    Ok(members.into_iter().collect())
}

const HEAD: &str = "\
/* The functions that a container's start needs, side by side, and those of the processes that stay: made by `make hot`, see
   benches/runtimes/hot.rs. */
SECTIONS {
";

fn section<'a>(
    name: &str,
    patterns: impl Iterator<Item = &'a String>,
    members: &[String],
) -> String {
    let mut text = format!("  .text.{name} : {{\n");
    for pattern in patterns {
        text.push_str(&format!(
            "    *(.text.{pattern} .text.unlikely.{pattern})\n"
        ));
    }
    for member in members {
        text.push_str(&format!("    *libc.a:{member}(.text .text.*)\n"));
    }
    text + "  }\n"
}

/// A name without what changes from build to build: the hash at the end of a legacy name, the crates' in a v0 one.
fn pattern(name: &str) -> String {
    if let Some(at) = name.rfind("17h").filter(|_| name.starts_with("_ZN")) {
        return format!("{}*", &name[..at + 3]);
    }
    let mut out = String::new();
    let mut rest = name;
    while let Some(at) = rest.find("Cs") {
        let (before, behind) = rest.split_at(at);
        out.push_str(before);
        match behind.find('_') {
            Some(end) if behind[2..end].chars().all(|c| c.is_ascii_alphanumeric()) => {
                out.push_str("Cs*_");
                rest = &behind[end + 1..];
            }
            _ => {
                out.push_str("Cs");
                rest = &behind[2..];
            }
        }
    }
    out + rest
}

/// As nm(1) tells.
fn symbols(file: &Path) -> Result<Symbols> {
    let output = Command::new("nm")
        .args(["--print-size", "--defined-only"])
        .arg(file)
        .output()
        .map_err(|error| format!("nm: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut all = Symbols::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        // a label has no size
        let [at, _, "t" | "T", name] = words[..] else {
            continue;
        };
        if let Ok(at) = u64::from_str_radix(at, 16) {
            all.insert(at, name.to_owned());
        }
    }
    Ok(all)
}

/// Runs a command and its children with a breakpoint on every function; gives the offset in the program of each that was reached, once,
/// in order.
fn walk(command: Command, file: &Path, symbols: &Symbols) -> Result<Vec<u64>> {
    let failed = |what: &'static str| move |error: nix::Error| format!("{what}: {error}");
    // stops itself, so that it can be taken before it executes the program
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", "kill -STOP $$; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    let child = shell.spawn().map_err(|error| format!("sh: {error}"))?;
    let first = Pid::from_raw(child.id() as i32);
    waitpid(first, Some(WaitPidFlag::WUNTRACED)).map_err(failed("wait for sh"))?;
    let options = ptrace::Options::PTRACE_O_TRACECLONE
        | ptrace::Options::PTRACE_O_TRACEFORK
        | ptrace::Options::PTRACE_O_TRACEVFORK
        | ptrace::Options::PTRACE_O_TRACEEXEC
        | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::seize(first, options).map_err(failed("seize"))?;
    kill(first, Signal::SIGCONT).map_err(failed("continue sh"))?;
    let meta = fs::metadata(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut walk = Walk {
        symbols,
        inode: meta.ino().to_string(),
        start: HashMap::new(),
        offsets: Vec::new(),
    };
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == first && code != 0 => {
                return Err(format!("{command:?} ended with {code}"));
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {}
            Ok(status) => walk.stopped(status)?,
            Err(nix::Error::ECHILD) => return Ok(walk.offsets),
            Err(error) => return Err(format!("wait: {error}")),
        }
    }
}

/// Where the program is, and what was in the place of each breakpoint.
type Loaded = (u64, HashMap<u64, u8>);

struct Walk<'a> {
    symbols: &'a Symbols,
    /// The program's: the sealed copy has no name.
    inode: String,
    /// Where each process has the program, and what was in the place of each breakpoint; none while it is another program.
    start: HashMap<Pid, Option<Loaded>>,
    offsets: Vec<u64>,
}

impl Walk<'_> {
    /// Notes where a process stopped and lets it go on.
    fn stopped(&mut self, status: WaitStatus) -> Result<()> {
        let Some(pid) = status.pid() else {
            return Ok(());
        };
        let signal = match status {
            WaitStatus::PtraceEvent(_, _, event) => {
                self.event(pid, event)?;
                None
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                self.breakpoint(pid)?;
                None
            }
            WaitStatus::Stopped(_, Signal::SIGSTOP | Signal::SIGCONT) => None,
            WaitStatus::Stopped(_, signal) => Some(signal),
            _ => None,
        };
        match ptrace::cont(pid, signal) {
            // it was killed
            Err(nix::Error::ESRCH) => Ok(()),
            other => other.map_err(|error| format!("continue process {pid}: {error}")),
        }
    }

    /// A new program gets breakpoints; a new process has those of the one that it is a copy of, or whose memory it
    /// shares.
    fn event(&mut self, pid: Pid, event: i32) -> Result<()> {
        use ptrace::Event::{
            PTRACE_EVENT_CLONE, PTRACE_EVENT_EXEC, PTRACE_EVENT_FORK, PTRACE_EVENT_VFORK,
        };
        let cloned = [PTRACE_EVENT_CLONE, PTRACE_EVENT_FORK, PTRACE_EVENT_VFORK];
        if event == PTRACE_EVENT_EXEC as i32 {
            let planted = match mapped(pid, &self.inode) {
                Some(start) => Some((start, self.plant(pid, start)?)),
                None => None,
            };
            self.start.insert(pid, planted);
        } else if cloned.iter().any(|it| event == *it as i32)
            && let Some(Some(own)) = self.start.get(&pid)
            && let Ok(child) = ptrace::getevent(pid)
        {
            let own = own.clone();
            self.start.insert(Pid::from_raw(child as i32), Some(own));
        }
        Ok(())
    }

    fn plant(&self, pid: Pid, start: u64) -> Result<HashMap<u64, u8>> {
        let memory = memory(pid)?;
        let mut before = HashMap::new();
        for offset in self.symbols.keys() {
            let mut byte = [0];
            let at = start + offset;
            memory
                .read_exact_at(&mut byte, at)
                .and_then(|()| memory.write_all_at(&BREAKPOINT, at))
                .map_err(|error| format!("set a breakpoint at {at:#x}: {error}"))?;
            before.insert(*offset, byte[0]);
        }
        Ok(before)
    }

    /// Takes the breakpoint away that was hit.
    fn breakpoint(&mut self, pid: Pid) -> Result<()> {
        let failed = |error: nix::Error| format!("registers of process {pid}: {error}");
        let Some(Some((start, before))) = self.start.get_mut(&pid) else {
            return Ok(());
        };
        let mut registers = ptrace::getregs(pid).map_err(failed)?;
        let at = registers.rip - 1;
        let offset = at.wrapping_sub(*start);
        let Some(byte) = before.remove(&offset) else {
            return Ok(());
        };
        memory(pid)?
            .write_all_at(&[byte], at)
            .map_err(|error| format!("take the breakpoint at {at:#x} away: {error}"))?;
        registers.rip = at;
        ptrace::setregs(pid, registers).map_err(failed)?;
        if !self.offsets.contains(&offset) {
            self.offsets.push(offset);
        }
        Ok(())
    }
}

/// A process's memory (proc_pid_mem(5)).
fn memory(pid: Pid) -> Result<File> {
    let path = format!("/proc/{pid}/mem");
    let opened = File::options().read(true).write(true).open(&path);
    opened.map_err(|error| format!("open {path}: {error}"))
}

/// Where the program begins in a process's memory (proc_pid_maps(5)).
fn mapped(pid: Pid, inode: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let mut lines = text.lines();
    let line = lines.find(|line| line.split_whitespace().nth(4) == Some(inode))?;
    let start = u64::from_str_radix(line.split_once('-')?.0, 16).ok()?;
    // a program with fixed addresses begins where its symbols say
    Some(if start < FIXED_BELOW { 0 } else { start })
}
