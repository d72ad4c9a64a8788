//! Modes of what is kept on the host for a container: the tightest that work.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::case::{Case, PROBE, helper, wait_for_line};
use super::{Check, Stop, Tried, expect};

pub const CHECKS: &[Check] = &[
    Check {
        name: "pod-modes",
        what: "folders, files and sockets of pods and images could be entered, read or locked by others",
        how: "a pod made by a caller with umask 0, in a network namespace of its own: what others can reach below --root and --state, and each named socket",
        run: pod_modes,
    },
    Check {
        name: "state-modes",
        what: "folders, files and sockets that a runtime keeps of a container were readable or writable for others",
        how: "everything below --root at the gate and while the container runs, made by a caller with umask 0: each kind and mode",
        run: state_modes,
    },
];

fn state_modes() -> Tried {
    let mut case = Case::new(&["hold"])?;
    case.through = helper(&case, &["loose"])?;
    case.create()?.good()?;
    let out = case.keep_output()?;
    only(&list(&case)?, AT_THE_GATE, "at the gate")?;
    case.command(&["start", &case.id])?.good()?;
    wait_for_line(&out, 1)?;
    only(&list(&case)?, RUNNING, "while it runs")?;
    case.delete()?;
    let left = list(&case)?;
    expect(left.len() <= 1, || {
        format!("after delete there are {left:?}")
    })
}

/// Others may neither list nor read anything. Folders and the gate's pipes are opened by the owner alone.
const AT_THE_GATE: &[&str] = &[
    "/ folder 700",
    "/ID folder 700",
    "/ID/create.json file 600",
    "/ID/gate pipe 600",
    "/ID/lock file 600",
    "/ID/result pipe 600",
    "/ID/spec.json file 600",
    "/ID/state.json file 600",
];
const RUNNING: &[&str] = &[
    "/ folder 700",
    "/ID folder 700",
    "/ID/create.json file 600",
    "/ID/lock file 600",
    "/ID/spec.json file 600",
    "/ID/state.json file 600",
];

fn only(seen: &[String], want: &[&str], when: &str) -> Tried {
    expect(seen == want, || {
        format!("{when} there are {seen:?}, not {want:?}")
    })
}

const COMPOSE: &str = "name: sampan-selftest
services:
  probe:
    image: localhost/sampan-selftest
    command: [/bin/sampan-probe, hold]
    stop_grace_period: 0s
    volumes: ['data:/data']
volumes:
  data: {}
";

/// What others can reach of a pod: the way to volumes, whose content has the owners and modes that containers give it.
const OF_A_POD: &[&str] = &[
    "/lib folder 755",
    "/lib/volumes folder 711",
    "/lib/volumes/sampan-selftest_data folder 711",
    "/lib/volumes/sampan-selftest_data/_data folder 755",
];

fn pod_modes() -> Tried {
    let case = Case::new(&[])?;
    let image = case.dir.join("image.tar");
    archive(case.runtime(), &image)?;
    fs::write(case.dir.join("compose.yaml"), COMPOSE)?;
    let pods = case.host_folder("pods")?;
    let sampan = |words: &[&str]| -> Vec<String> {
        let mut all = vec![case.runtime().display().to_string()];
        for (option, folder) in [("--root", "lib"), ("--state", "run")] {
            all.extend([option.to_owned(), pods.join(folder).display().to_string()]);
        }
        all.extend(words.iter().map(|word| word.to_string()));
        all
    };
    let separator = || vec!["--".to_owned()];
    let up = [
        helper(&case, &["loose"])?,
        helper(&case, &["alone"])?,
        helper(&case, &["in-turn"])?,
        sampan(&[
            "image",
            "import",
            &image.to_string_lossy(),
            "localhost/sampan-selftest",
        ]),
        separator(),
        sampan(&["up", "-d"]),
        separator(),
        helper(&case, &["inventory"])?,
    ];
    let done = host_command(&case, &up.concat());
    let mut reached = Vec::new();
    let walked = walk(&pods, "", &case.id, true, &mut reached);
    let down = [helper(&case, &["alone"])?, sampan(&["down", "-v"])];
    host_command(&case, &down.concat())?.good()?;
    walked?;
    let report = done?.report()?;
    reached.sort();
    // the folder that holds both is this check's own
    reached.retain(|entry| !entry.starts_with("/ "));
    only(&reached, OF_A_POD, "of a pod")?;
    let sockets = report["sockets"].as_str().unwrap_or_default();
    // a connection that was taken has its listener's name
    let names: BTreeSet<_> = sockets
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(7))
        .collect();
    let own = pods.join("run/pods/sampan-selftest/control.sock");
    expect(names == BTreeSet::from([&*own.to_string_lossy()]), || {
        format!("named sockets are {names:?}")
    })
}

fn host_command(case: &Case, words: &[String]) -> Result<super::case::Said, Stop> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    case.host_command(&words)
}

/// A tar with the program alone (tar(5) "POSIX ustar Archives").
fn archive(program: &Path, to: &Path) -> Tried {
    let mut program = fs::File::open(program)?;
    let size = program.metadata()?.len();
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| {
        if let Some(place) = header.get_mut(at..at + text.len()) {
            place.copy_from_slice(text.as_bytes());
        }
    };
    put(0, PROBE.trim_start_matches('/'));
    // fields end with the zero bytes that are there
    put(100, "0000755");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    if let Some(place) = header.get_mut(148..156) {
        place.copy_from_slice(sum.as_bytes());
    }
    let mut to = fs::File::create(to)?;
    to.write_all(&header)?;
    std::io::copy(&mut program, &mut to)?;
    let padding = (512 - size % 512) % 512 + 1024;
    to.write_all(&vec![0; padding as usize])?;
    Ok(())
}

/// `kind mode path` of everything below the runtime's folder, the container's id as `ID`.
fn list(case: &Case) -> Result<Vec<String>, Stop> {
    let mut all = Vec::new();
    walk(&case.state(), "", &case.id, false, &mut all)?;
    all.sort();
    Ok(all)
}

/// With `others`, only what they have a right to, where they can get.
fn walk(path: &Path, name: &str, id: &str, others: bool, all: &mut Vec<String>) -> Tried {
    let meta = fs::symlink_metadata(path)?;
    let kind = meta.file_type();
    let word = match () {
        () if kind.is_dir() => "folder",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () if kind.is_file() => "file",
        () => "other",
    };
    if !others || meta.mode() & 7 != 0 {
        all.push(
            format!(
                "{} {word} {:o}",
                if name.is_empty() { "/" } else { name },
                meta.mode() & 0o7777
            )
            .replace(id, "ID"),
        );
    }
    if kind.is_dir() && (!others || meta.mode() & 1 != 0) {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            walk(&entry.path(), &name, id, others, all)?;
        }
    }
    Ok(())
}
