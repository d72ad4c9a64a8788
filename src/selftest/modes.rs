//! Modes of what is kept on the host for a container: the tightest that work.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::case::{Case, helper, wait_for_line};
use super::{Check, Stop, Tried, expect};

pub const CHECKS: &[Check] = &[Check {
    name: "state-modes",
    what: "folders, files and sockets that a runtime keeps of a container were readable or writable for others",
    how: "everything below --root at the gate and while the container runs, made by a caller with umask 0: each kind and mode",
    run: state_modes,
}];

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

/// `kind mode path` of everything below the runtime's folder, the container's id as `ID`.
fn list(case: &Case) -> Result<Vec<String>, Stop> {
    let mut all = Vec::new();
    walk(&case.state(), "", &case.id, &mut all)?;
    all.sort();
    Ok(all)
}

fn walk(path: &Path, name: &str, id: &str, all: &mut Vec<String>) -> Tried {
    let meta = fs::symlink_metadata(path)?;
    let kind = meta.file_type();
    let word = match () {
        () if kind.is_dir() => "folder",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () if kind.is_file() => "file",
        () => "other",
    };
    all.push(
        format!(
            "{} {word} {:o}",
            if name.is_empty() { "/" } else { name },
            meta.mode() & 0o7777
        )
        .replace(id, "ID"),
    );
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            walk(&entry.path(), &name, id, all)?;
        }
    }
    Ok(())
}
