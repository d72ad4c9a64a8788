//! Folders and links that change places while containers are made on them.
//!
//! *Invariants:* the number of tries is bounded, and each race has a version without one beside it: a green race alone would say
//! little. What is compared is what the attack would reach, not whether the runtime noticed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::fs::{CWD, RenameFlags};
use serde_json::json;

use super::case::{Case, wait_for_line};
use super::{Check, Stop, Tried, expect};

pub const CHECKS: &[Check] = &[
    Check {
        name: "2021-30465",
        what: "a link put in the place of a folder between check and mount led a mount out of the root, and the next one's source with it",
        how: "a link on the way to a mount's place, standing still and changing places with a folder; a later mount's source would show it",
        run: cve_2021_30465,
    },
    Check {
        name: "2024-45310",
        what: "a link put in the place of a folder while a mount's place was made led to empty files and folders on the host",
        how: "the same for files, folders and devices that have to be made first; a folder of the host must stay empty",
        run: cve_2024_45310,
    },
];

/// How many containers are made during a race.
const TRIES: usize = 25;

/// Two names that change places until it is dropped.
pub struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    begun: bool,
}

impl Swapper {
    /// Begins, and comes back when they have changed places for the first time.
    pub fn new(one: PathBuf, other: PathBuf) -> Swapper {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let swap = move || rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE);
        let begun = swap().is_ok();
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = sender.send(());
            while !seen.load(Ordering::Relaxed) {
                // it fails while the other side is at work: tried again
                let _ = swap();
            }
        });
        let _ = receiver.recv();
        Swapper {
            stop,
            thread: Some(thread),
            begun,
        }
    }

    /// Ends it.
    pub fn end(mut self) -> Tried {
        self.join();
        if self.begun {
            return Ok(());
        }
        Err(Stop::NotApplicable(
            "files cannot change places on this file system (renameat2 RENAME_EXCHANGE)".to_owned(),
        ))
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.join();
    }
}

/// A root where `swap` is a folder and `link` leads to the folder `victim` of the host.
fn with_link(case: &Case) -> Result<PathBuf, Stop> {
    let victim = case.host_folder("victim")?;
    fs::create_dir_all(case.root().join("swap"))?;
    symlink(&victim, case.root().join("link"))?;
    Ok(victim)
}

fn swapper(case: &Case) -> Swapper {
    Swapper::new(case.root().join("swap"), case.root().join("link"))
}

/// Mounts by way of `/NAME` what a later mount's source, `victim/volumes/data`, would be found in.
fn two_steps(case: &mut Case, name: &str) -> Tried {
    let victim = with_link(case)?;
    fs::create_dir_all(victim.join("volumes/data"))?;
    fs::write(victim.join("volumes/data/text"), "of the volume")?;
    let evil = case.host_folder("evil")?;
    let secret = case.host_folder("secret")?;
    fs::write(secret.join("text"), "of the host")?;
    symlink(&secret, evil.join("data"))?;
    case.mount(&format!("/{name}/volumes"), "bind", &evil, &["bind"]);
    case.mount("/data", "bind", &victim.join("volumes/data"), &["bind"]);
    Ok(())
}

fn cve_2021_30465() -> Tried {
    let attack = ["places-and-look", "/data/text"];
    let check = |case: &Case, when: &str| -> Result<bool, Stop> {
        let said = case.run()?;
        // refusing is as good as mounting inside
        if said.code != 0 {
            return Ok(false);
        }
        let report = said.report()?;
        let places = report["places"].as_array().into_iter().flatten();
        let inside = places
            .filter_map(|place| place.as_str())
            .any(|place| place.ends_with("/volumes"));
        expect(inside, || {
            format!(
                "{when}, a mount left the root: mounts are {}",
                report["places"]
            )
        })?;
        let seen = &report["seen"];
        expect(seen["text"] == "of the volume", || {
            format!("{when}, a volume came from elsewhere: {seen}")
        })?;
        Ok(true)
    };
    let mut still = Case::new(&attack)?;
    two_steps(&mut still, "link")?;
    expect(check(&still, "with a link on the way")?, || {
        "a link that stays inside is fine, but it was refused".to_owned()
    })?;
    let mut case = Case::new(&attack)?;
    two_steps(&mut case, "swap")?;
    let race = swapper(&case);
    for _ in 0..TRIES {
        check(&case, "while a folder and a link changed places")?;
    }
    race.end()
}

/// Files, folders and devices that have to be made below `/NAME`.
fn to_be_made(name: &str) -> Result<(Case, PathBuf), Stop> {
    let mut case = Case::new(&["true"])?;
    let victim = with_link(&case)?;
    let file = case.dir.join("file");
    fs::write(&file, "")?;
    let at = |last: &str| format!("/{name}/made/{last}");
    case.mount(&at("folder"), "tmpfs", Path::new("tmpfs"), &[]);
    case.mount(&at("file"), "bind", &file, &["bind"]);
    case.spec["process"]["cwd"] = json!(at("cwd"));
    case.spec["linux"]["devices"] =
        json!([{"path": at("device"), "type": "c", "major": 1, "minor": 3}]);
    Ok((case, victim))
}

fn cve_2024_45310() -> Tried {
    let untouched = |victim: &Path, when: &str| {
        let made: Vec<_> = fs::read_dir(victim)?
            .filter_map(|entry| Some(entry.ok()?.file_name()))
            .collect();
        expect(made.is_empty(), || {
            format!("{when}, {made:?} was made on the host")
        })
    };
    let (still, victim) = to_be_made("link")?;
    let said = still.run()?;
    untouched(&victim, "with a link on the way")?;
    said.good()?;
    let (case, victim) = to_be_made("swap")?;
    let race = swapper(&case);
    for _ in 0..TRIES {
        case.run()?;
        untouched(&victim, "while a folder and a link changed places")?;
        // so that there is something to be made again
        let _ = fs::remove_dir_all(case.root().join("swap/made"));
    }
    race.end()
}

/// `/proc` changes places with a link to another folder: wherever proc is mounted in the end, its masks are on it.
pub fn proc_and_link() -> Tried {
    for _ in 0..TRIES {
        let case = Case::new(&["procs"])?;
        for name in ["proc", "fake"] {
            fs::create_dir(case.root().join(name))?;
        }
        symlink("/fake", case.root().join("link"))?;
        let race = Swapper::new(case.root().join("proc"), case.root().join("link"));
        let created = case.create()?;
        race.end()?;
        if created.code != 0 {
            case.delete()?;
            continue;
        }
        let out = case.keep_output()?;
        case.command(&["start", &case.id])?.good()?;
        let report = wait_for_line(&out, 1)?;
        case.delete()?;
        let all = report.as_array().map(Vec::as_slice).unwrap_or_default();
        expect(!all.is_empty(), || {
            "no proc is mounted in the container".to_owned()
        })?;
        for one in all {
            let masked = one["kcore"]["error"].is_string() || one["kcore"]["device"] == "1:3";
            expect(
                masked && one["core_pattern"] != "ok" && one["sysrq"] != "ok",
                || format!("while /proc and a link changed places, a proc was left open: {one}"),
            )?;
        }
    }
    Ok(())
}
