//! `state`, `list`, `ps`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Serialize;

use super::args::{Invocation, Values};
use super::{Error, put, store};
use crate::container::{self, State, Status};

/// runtime-spec runtime.md "State", and what runc adds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    oci_version: String,
    id: String,
    pid: i32,
    status: Status,
    bundle: PathBuf,
    rootfs: PathBuf,
    created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: String,
}

impl Shown {
    fn new(state: State) -> Shown {
        let status = container::status(&state);
        Shown {
            pid: if status == Status::Stopped {
                0
            } else {
                state.pid
            },
            status,
            owner: name_of(state.owner),
            oci_version: state.oci_version,
            id: state.id,
            bundle: state.bundle,
            rootfs: state.rootfs,
            created: state.created,
            annotations: state.annotations,
        }
    }
}

/// The user's name, or `#UID`: the host's file alone is asked.
fn name_of(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

/// `state ID`.
pub fn state(call: &Invocation) -> Result<u8, Error> {
    let state = store::find(&call.global, call.word(0)?)?;
    json(&Shown::new(state))
}

/// One JSON document on standard output.
pub fn json(value: &impl Serialize) -> Result<u8, Error> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::step("JSON", error))?;
    put(&format!("{text}\n")).map(|()| 0)
}

/// The same in one line, for those who read line by line.
fn json_line(value: &impl Serialize) -> Result<u8, Error> {
    let text = serde_json::to_string(value).map_err(|error| Error::step("JSON", error))?;
    put(&format!("{text}\n")).map(|()| 0)
}

/// Whether `--format json` was given, and not `table`.
fn wants_json(values: &Values) -> Result<bool, Error> {
    match values.text("format")? {
        None | Some("table") => Ok(false),
        Some("json") => Ok(true),
        Some(other) => Err(Error::new(format!(
            "--format: {other:?} is unknown, only table and json are"
        ))),
    }
}

/// `list`.
pub fn list(call: &Invocation) -> Result<u8, Error> {
    let as_json = wants_json(&call.values)?;
    let all = store::all(&call.global)?.into_iter();
    if call.values.has("quiet") {
        let lines: String = all.map(|state| state.id + "\n").collect();
        return put(&lines).map(|()| 0);
    }
    let all: Vec<Shown> = all.map(Shown::new).collect();
    if as_json {
        return json_line(&all);
    }
    let rows = all.into_iter().map(|shown| {
        [
            shown.id,
            shown.pid.to_string(),
            shown.status.to_string(),
            shown.bundle.display().to_string(),
            shown.created,
            shown.owner,
        ]
    });
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    put(&columns(
        &[header].into_iter().chain(rows).collect::<Vec<_>>(),
    ))
    .map(|()| 0)
}

/// Rows in columns, at least twelve wide, as runc has them.
fn columns(rows: &[[String; 6]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(|column| width(column).max(9) + 3);
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(widths);
        let cells: String = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", cells.trim_end())
    };
    rows.iter().map(line).collect()
}

/// `ps ID`.
pub fn ps(call: &Invocation) -> Result<u8, Error> {
    let as_json = wants_json(&call.values)?;
    let state = store::find(&call.global, call.word(0)?)?;
    let pids = container::processes(&state)?;
    if as_json {
        return json_line(&pids);
    }
    let mut command = Command::new("ps");
    match call.words.get(1..) {
        None | Some([]) => command.arg("-ef"),
        Some(options) => command.args(options),
    };
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Error::step("run ps (`--format json` does without)", error))?;
    if !output.status.success() {
        return Err(Error::new(format!("ps: {}", output.status)));
    }
    put(&lines_of(&String::from_utf8_lossy(&output.stdout), &pids)?).map(|()| 0)
}

/// The header, and the lines of `pids`.
fn lines_of(table: &str, pids: &[i32]) -> Result<String, Error> {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let column = header.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or_else(|| {
        Error::new("ps: a column PID is needed, to find the container's processes")
    })?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column);
        pid.and_then(|pid| pid.parse().ok())
            .is_some_and(|pid: i32| pids.contains(&pid))
    };
    let kept = [header].into_iter().chain(lines.filter(ours));
    Ok(kept.map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_processes() {
        let table = "UID          PID    PPID  C STIME TTY          TIME CMD\n\
                     root           1       0  0 10:00 ?        00:00:00 init 77\n\
                     root          77       1  0 10:00 ?        00:00:00 sleep 1\n";
        let lines = lines_of(table, &[77, 78]).unwrap();
        assert_eq!(lines.lines().count(), 2);
        assert!(lines.ends_with("sleep 1\n"));
        assert!(lines_of("UID CMD\n", &[1]).is_err());
    }

    #[test]
    fn table_of_containers() {
        let row = |cells: [&str; 6]| cells.map(str::to_owned);
        assert_eq!(
            columns(&[
                row(["ID", "PID", "STATUS", "B", "C", "OWNER"]),
                row(["a-long-name-of-it", "0", "stopped", "/b", "x", "root"]),
            ]),
            "ID                  PID         STATUS      B           C           OWNER\n\
             a-long-name-of-it   0           stopped     /b          x           root\n"
        );
    }
}
