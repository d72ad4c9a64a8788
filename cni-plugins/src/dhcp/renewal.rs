//! The process that keeps a lease: this program under another name, one for each lease, with nobody to start it but ADD.
//!
//! *Invariants*: between two questions it holds nothing open, so it keeps no namespace alive. It ends when the lease's
//! file is gone or names another process, when the namespace is gone, or when the lease is lost; then the address is no
//! longer on the interface and the file says why.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::lease::{Due, Lease, is_long_enough, times};
use super::message::{Kind, option};
use super::process::{NAME, Process, START, STAY, command};
use super::{boottime, netns_of, now};
use crate::error::Result;
use crate::link::Links;
use crate::netns::Netns;

/// How long an answer is waited for.
const WAIT: Duration = Duration::from_secs(3);
/// Passes after an answer, however late that came.
const PAUSE: Duration = Duration::from_secs(1);
/// How often file and namespace are looked at, in milliseconds.
const LOOK: u64 = 30_000;
/// ADD writes the file right after it started this process.
const FILE_WAIT: Duration = Duration::from_secs(10);

/// Whether a program was called to renew a lease, by its first argument.
pub fn is_meant(name: &OsStr) -> bool {
    name == NAME
}

/// `main` of the program when [`is_meant`].
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let word = args.next().unwrap_or_default();
    let path = PathBuf::from(args.next().unwrap_or_default());
    let ended = if word == START {
        start(&path)
    } else if word == STAY {
        stay(&path)
    } else {
        Err(format!("{NAME} is started by the plugin dhcp alone"))
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // the starter's reader takes it from there
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Leaves the session, the caller's files and the family, and prints the pid of the process that stays.
fn start(path: &Path) -> std::result::Result<(), String> {
    // it leads no process group, having just been started
    nix::unistd::setsid().map_err(|cause| format!("cannot leave the session: {cause}"))?;
    // a caller waits for the end of what it reads from us: nobody may hold the other end for hours
    let open = std::fs::read_dir("/proc/self/fd").map_err(|cause| cause.to_string())?;
    let open: Vec<i32> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // the list itself is closed already
        let _ = nix::unistd::close(fd);
    }
    let stays = command(STAY, path)
        .spawn()
        .map_err(|cause| cause.to_string())?;
    println!("{}", stays.id());
    Ok(())
}

fn stay(path: &Path) -> std::result::Result<(), String> {
    let own = i32::try_from(std::process::id()).ok().and_then(Process::of);
    let own = own.ok_or("cannot look at the own process")?;
    // it would be "exe" in lists; that it isn't harms nobody
    let _ = nix::sys::prctl::set_name(c"cni-dhcp");
    wait_for_file(path);
    let mut tried = None;
    loop {
        let Ok(Some(lease)) = Lease::read(path) else {
            return Ok(());
        };
        if lease.process != own {
            return Ok(());
        }
        let Ok(Some(netns)) = netns_of(&lease) else {
            return Ok(());
        };
        let stage = lease.times.due(now(), tried);
        if let Due::Wait(millis) = stage {
            drop(netns);
            std::thread::sleep(Duration::from_millis(millis.min(LOOK)));
            continue;
        }
        tried = Some(now());
        match ask(&lease, &netns, stage) {
            Verdict::Kept(kept) => {
                tried = None;
                kept.write(path).map_err(|error| error.to_string())?;
                drop(netns);
                std::thread::sleep(PAUSE);
            }
            Verdict::Lost(why) => {
                return lose(lease, &netns, why, path).map_err(|error| error.to_string());
            }
            // a failure is as good as no answer: there is time until the end
            Verdict::Unknown => {}
        }
    }
}

fn wait_for_file(path: &Path) {
    let end = Instant::now() + FILE_WAIT;
    while !path.exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
}

enum Verdict {
    Kept(Box<Lease>),
    Lost(String),
    Unknown,
}

fn ask(lease: &Lease, netns: &Netns, stage: Due) -> Verdict {
    let address = lease.address.addr();
    let client = lease.client();
    // the next stage doesn't wait for an answer to this one
    let until = |end: u64| WAIT.min(Duration::from_millis(end.saturating_sub(now())));
    let heard = netns.run(|| {
        Ok(match stage {
            Due::Renew => {
                let wait = until(lease.times.rebind);
                client.renew(address, lease.server, wait).ok().flatten()
            }
            Due::Rebind => client.rebind(address, until(lease.times.end))?,
            Due::Wait(_) | Due::End => None,
        })
    });
    match heard.ok().flatten() {
        Some(heard) if heard.answer.kind == Kind::Nak => {
            let why = heard.answer.text(option::MESSAGE).unwrap_or_default();
            Verdict::Lost(format!("the server refuses to renew it: {why}"))
        }
        // as good as no answer: who took it would ask without end
        Some(heard) if !is_long_enough(&heard.answer) => Verdict::Unknown,
        Some(heard) => {
            let mut kept = lease.clone();
            kept.times = times(&heard.answer, boottime(heard.asked));
            if stage == Due::Rebind {
                kept.server = heard.answer.ip(option::SERVER).unwrap_or(lease.server);
                kept.server_mac = heard.mac;
            }
            Verdict::Kept(Box::new(kept))
        }
        None if stage == Due::End => Verdict::Lost("no server renewed it until its end".into()),
        None => Verdict::Unknown,
    }
}

/// RFC 2131 §4.4.5: whose lease has ended stops using the address at once.
fn lose(mut lease: Lease, netns: &Netns, why: String, path: &Path) -> Result<()> {
    let mut links = netns.run(Links::open)?;
    if let Some(link) = links.by_name(&lease.ifname)? {
        links.delete_address(&link, lease.address.into())?;
    }
    lease.lost = Some(why);
    lease.write(path)
}
