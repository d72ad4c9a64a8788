//! `exec`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::Process;
use serde_json::{Value, json};

use super::args::Invocation;
use super::create::{Passed, Watcher, check_console, fit, protect, read, shown};
use super::{Error, store};
use crate::cgroup::Cgroup;
use crate::cli::console;
use crate::container::{self, ExecOptions, State, Status};

/// Longest description of a process, in bytes.
const PROCESS_MAX: u64 = 16 << 20;

/// `exec ID …`.
pub fn exec(call: &Invocation) -> Result<u8, Error> {
    protect()?;
    let state = store::find(&call.global, call.word(0)?)?;
    let ignore_paused = call.values.has("ignore-paused");
    runs(&state, ignore_paused)?;
    let passed = Passed::new(&call.values)?;
    let mut process = process(call, &state)?;
    passed.tell(&mut process);
    let detach = call.values.has("detach");
    if !detach {
        fit(&mut process);
    }
    check_console(process.terminal() == Some(true), detach, &call.values)?;
    let console = call.values.path("console-socket");
    let watcher = Watcher::new(&call.values)?;
    let options = ExecOptions {
        console: console.as_deref().map(container::connect).transpose()?,
        ignore_paused,
        preserve_fds: passed.count,
        cgroup: sub_cgroup(state.cgroup.plain(), &call.values.texts("cgroup")?)?,
    };
    let signals = if detach {
        None
    } else {
        Some(console::Signals::take().map_err(shown)?)
    };
    let running = container::exec_with(&state.dir, &process, options)?;
    if let Err(error) = watcher.tell(running.pid) {
        // a program that nobody knows of must not stay; it is our child, so its number is not another's
        let process = Pid::from_raw(running.pid);
        let _ = kill(process, Signal::SIGKILL);
        let _ = waitpid(process, None);
        return Err(error);
    }
    match signals {
        Some(signals) => console::wait(running, signals).map_err(shown),
        None => Ok(0),
    }
}

/// [`cgroup`], which has to be there.
fn sub_cgroup(own: &Cgroup, wanted: &[&str]) -> Result<Option<Cgroup>, Error> {
    let place = cgroup(own, wanted)?;
    let folders: Vec<&PathBuf> = match &place {
        Some(Cgroup::V1 { controllers, .. }) => controllers.values().collect(),
        Some(Cgroup::V2(path)) => vec![path],
        _ => Vec::new(),
    };
    for folder in folders {
        let members = folder.join("cgroup.procs");
        rustix::fs::access(&members, rustix::fs::Access::EXISTS).map_err(|error| {
            let step = format!("--cgroup: adding pid to {}", members.display());
            Error::step(step, std::io::Error::from(error))
        })?;
    }
    Ok(place)
}

/// The cgroup that `--cgroup` names below the container's: one for all, or on v1 `CONTROLLER[,CONTROLLER]:PATH`. `None` without any.
fn cgroup(own: &Cgroup, wanted: &[&str]) -> Result<Option<Cgroup>, Error> {
    let mut place = own.clone();
    let mut named = BTreeSet::new();
    for option in wanted {
        let path = option.split_once(':').map_or(*option, |(_, path)| path);
        if path.split('/').any(|part| part == "..") {
            let text = format!("--cgroup {option}: {path} is not a sub cgroup path");
            return Err(Error::new(text));
        }
        let Some((names, path)) = option.split_once(':') else {
            if wanted.len() > 1 {
                let text = format!("--cgroup {option}: several need CONTROLLER: before each");
                return Err(Error::new(text));
            }
            return Ok(Some(own.child(option)));
        };
        let below = own.child(path);
        for name in names.split(',') {
            let (
                Cgroup::V1 { controllers, .. },
                Cgroup::V1 {
                    controllers: at, ..
                },
            ) = (&mut place, &below)
            else {
                let text = format!("--cgroup {option}: cgroup v2 has no place for one controller");
                return Err(Error::new(text));
            };
            match (controllers.get_mut(name), at.get(name)) {
                (Some(folder), Some(at)) => folder.clone_from(at),
                _ => {
                    let text = format!("--cgroup {option}: unknown controller {name:?}");
                    return Err(Error::new(text));
                }
            }
            if !named.insert(name) {
                let text = format!("--cgroup {option}: controller {name} is there twice");
                return Err(Error::new(text));
            }
        }
    }
    Ok((!wanted.is_empty()).then_some(place))
}

fn runs(state: &State, ignore_paused: bool) -> Result<(), Error> {
    let id = &state.id;
    match container::status(state) {
        Status::Paused if !ignore_paused => Err(Error::new(format!(
            "cannot exec in a paused container: resume {id} first, or use --ignore-paused"
        ))),
        Status::Stopped => Err(Error::new(format!(
            "cannot exec in a stopped container: {id} is not running"
        ))),
        _ => Ok(()),
    }
}

/// The process: from a file, or the container's own with what the options change.
fn process(call: &Invocation, state: &State) -> Result<Process, Error> {
    if let Some(path) = call.values.path("process") {
        if let Some(word) = call.words.get(1) {
            return Err(Error::new(format!(
                "--process holds the command, {} is one too many",
                word.display()
            )));
        }
        return from_file(&path);
    }
    let spec = container::spec(state)?;
    let own =
        serde_json::to_value(spec.process()).map_err(|error| Error::step("process", error))?;
    let changed = change(own, call)?;
    serde_json::from_value(changed).map_err(|error| Error::step("process", error))
}

fn from_file(path: &Path) -> Result<Process, Error> {
    let text = read(path, PROCESS_MAX)?;
    container::parse_process(&text)
        .map_err(|error| Error::step(format!("--process {}", path.display()), error))
}

/// What the options say, over the container's own process.
fn change(mut process: Value, call: &Invocation) -> Result<Value, Error> {
    let values = &call.values;
    let words: Result<Vec<&str>, Error> = (1..call.words.len()).map(|at| call.word(at)).collect();
    let words = words?;
    if words.is_empty() {
        return Err(Error::new("exec needs a command, or --process"));
    }
    process["args"] = json!(words);
    // a terminal is for whoever asks
    process["terminal"] = json!(values.has("tty"));
    if let Some(cwd) = values.text("cwd")? {
        process["cwd"] = json!(cwd);
    }
    if let Some(user) = values.text("user")? {
        let (uid, gid) = user_and_group(user)?;
        process["user"]["uid"] = json!(uid);
        if let Some(gid) = gid {
            process["user"]["gid"] = json!(gid);
        }
    }
    for gid in values.texts("additional-gids")? {
        let gid: u32 = number("additional-gids", gid)?;
        push(&mut process["user"]["additionalGids"], json!(gid));
    }
    for entry in values.texts("env")? {
        if !entry.contains('=') {
            return Err(Error::new(format!("--env: {entry:?} is not NAME=VALUE")));
        }
        push(&mut process["env"], json!(entry));
    }
    for name in values.texts("cap")? {
        add_capability(&mut process["capabilities"], name);
    }
    if values.get("no-new-privs").is_some() {
        process["noNewPrivileges"] = json!(values.has("no-new-privs"));
    }
    for (option, key) in [
        ("apparmor", "apparmorProfile"),
        ("process-label", "selinuxLabel"),
    ] {
        if let Some(label) = values.text(option)? {
            process[key] = json!(label);
        }
    }
    Ok(process)
}

/// Ambient only where it is inheritable: the kernel allows no other (capabilities(7)).
fn add_capability(sets: &mut Value, name: &str) {
    let inheritable = sets["inheritable"].as_array();
    let ambient = inheritable.is_some_and(|list| list.contains(&json!(name)));
    for set in ["bounding", "effective", "permitted"] {
        push(&mut sets[set], json!(name));
    }
    if ambient {
        push(&mut sets["ambient"], json!(name));
    }
}

fn user_and_group(text: &str) -> Result<(u32, Option<u32>), Error> {
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number("user", uid)?, Some(number("user", gid)?))),
        None => Ok((number("user", text)?, None)),
    }
}

/// Digits alone, as callers write ids: another reading of one would be another user (CVE-2026-30892).
fn number(option: &str, text: &str) -> Result<u32, Error> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(number),
        _ => Err(Error::new(format!(
            "--{option}: {text:?} is not a number from 0 to 4294967294"
        ))),
    }
}

/// Adds to a list that may be missing.
fn push(list: &mut Value, entry: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(entry),
        None => *list = json!([entry]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_below_the_container() {
        let own = Cgroup::V1 {
            controllers: [("cpu", "/c/cpu/x"), ("pids", "/c/pids/x")]
                .map(|(name, path)| (name.to_owned(), path.into()))
                .into(),
            unified: None,
        };
        let told = |wanted: &[&str]| match cgroup(&own, wanted) {
            Ok(Some(Cgroup::V1 { controllers, .. })) => controllers
                .values()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
                .join(" "),
            Ok(other) => format!("{other:?}"),
            Err(error) => error.to_string(),
        };
        for (wanted, want) in [
            (&[][..], "None"),
            (&["/"], "/c/cpu/x /c/pids/x"),
            (&["a/b"], "/c/cpu/x/a/b /c/pids/x/a/b"),
            (&["cpu:a"], "/c/cpu/x/a /c/pids/x"),
            (&["cpu,pids:/a"], "/c/cpu/x/a /c/pids/x/a"),
            (&["cpu:a", "pids:b"], "/c/cpu/x/a /c/pids/x/b"),
            (
                &["cpu:a", "cpu:b"],
                "--cgroup cpu:b: controller cpu is there twice",
            ),
            (
                &["cpu:a", "b"],
                "--cgroup b: several need CONTROLLER: before each",
            ),
            (&["frob:a"], "--cgroup frob:a: unknown controller \"frob\""),
            (&[":a"], "--cgroup :a: unknown controller \"\""),
            (&[".."], "--cgroup ..: .. is not a sub cgroup path"),
            (
                &["cpu:a/../.."],
                "--cgroup cpu:a/../..: a/../.. is not a sub cgroup path",
            ),
        ] {
            assert_eq!(told(wanted), want, "{wanted:?}");
        }
        let unified = Cgroup::V2("/c/x".into());
        assert_eq!(
            cgroup(&unified, &["a"]).unwrap(),
            Some(Cgroup::V2("/c/x/a".into()))
        );
        assert!(cgroup(&unified, &["cpu:a"]).is_err());
    }
}
