//! Running one hook, recording that it ran.

use std::ffi::OsString;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::schedule::{Ledger, View};
use super::{any, at, document};
use crate::compose::project::{Hook, OnFailure};
use crate::pod::layout::PodDir;
use crate::pod::record::{self, Pod, Status};
use crate::pod::{Error, Result, lock};
use crate::sys::pidfd;
use crate::sys::program::{self, Cut, MAX_OUTPUT, Output, Program, describe, quote};

/// Variable by which processes of a hook are found that outlived the one that ran it.
const MARK: &str = "SAMPAN_HOOK_RUN";

/// Runs a hook to its end. `mark`: of the pod.
pub fn execute(
    hook: &Hook,
    pod: &str,
    mark: Option<&str>,
    input: &[u8],
    until: Option<BorrowedFd<'_>>,
) -> std::result::Result<Output, Cut> {
    let Some((path, args)) = hook.command.split_first() else {
        let error = std::io::Error::other("it has no command");
        return Err(Cut::Start(error));
    };
    let mut environment: Vec<(&str, OsString)> = vec![
        ("SAMPAN_HOOK", hook.at.name().into()),
        ("SAMPAN_POD", pod.into()),
    ];
    environment.extend(mark.map(|mark| (MARK, mark.into())));
    let own = hook.env.iter();
    environment.extend(own.map(|(name, value)| (name.as_str(), value.into())));
    program::execute(&Program {
        path: Path::new(path),
        args,
        environment: &environment,
        input,
        limit: hook.timeout,
        strict: true,
        until,
    })
}

/// How a hook is called in the pod's events.
pub fn title(hook: &Hook) -> String {
    format!("hook {} at {}", hook.name, hook.at.name())
}

/// Why a hook was not heard to its end.
pub fn cut(hook: &Hook, cut: Cut) -> String {
    match cut {
        Cut::Start(error) => {
            let program = hook.command.first().map(String::as_str);
            format!("{}: {error}", program.unwrap_or_default())
        }
        Cut::Time(stderr) => {
            let text = format!("killed: it took longer than {:?}", hook.timeout);
            with(text, &quote(&stderr))
        }
        Cut::Size => format!("killed: it printed more than {MAX_OUTPUT} bytes"),
        Cut::Unwanted => "killed: it is not wanted any more".to_string(),
    }
}

/// How a hook ended, and the last it said about it.
pub fn ended(output: &Output) -> String {
    with(describe(output.status), &quote(&output.stderr))
}

fn with(text: String, said: &str) -> String {
    match said {
        "" => text,
        said => format!("{text}: {said}"),
    }
}

/// Body of `sampan internal hook`: runs the hook that is due unless it ran already, as where another one was at it when this one began
/// to wait.
pub fn step(dir: &Path, point: &str, next: usize) -> Result<()> {
    let pod: Pod = record::read(&dir.join("pod.json"))?
        .ok_or_else(|| Error::Other(format!("no pod in {}", dir.display())))?;
    let dir = PodDir::open(dir, &pod.root);
    let _only = lock::acquire(&dir.hooks_lock())?;
    let mut ledger: Ledger = record::read(&dir.hooks())?.unwrap_or_default();
    match ledger.chain {
        Some(chain) if chain.at.name() == point && chain.next == next => {
            run_next(&dir, &pod, &mut ledger).map(drop)
        }
        _ => Ok(()),
    }
}

/// Runs what is owed by a pod without a supervisor: `before-kill` while `over` is false, then what is left. The caller is taking the
/// pod apart and hears from `told` how it went.
pub fn pay(dir: &PodDir, pod: &Pod, over: bool, told: &mut dyn FnMut(&str, &str)) -> Result<()> {
    if !any(pod) || !dir.hooks().exists() {
        return Ok(());
    }
    // one that is running comes to its own end
    let _only = lock::acquire(&dir.hooks_lock())?;
    let mut ledger: Ledger = record::read(&dir.hooks())?.unwrap_or_default();
    let mut statuses = Vec::new();
    for name in pod.project.services.keys() {
        statuses.extend(record::read::<Status>(&dir.service(name).status())?);
    }
    let view = View {
        up: false,
        ready: false,
        ending: !over,
        over,
        ..View::of(statuses.iter())
    };
    loop {
        ledger.advance(view, |point| at(pod, point).count());
        record::write(&dir.hooks(), &ledger)?;
        if ledger.chain.is_none() {
            return Ok(());
        }
        let text = run_next(dir, pod, &mut ledger)?;
        told("", &text);
    }
}

/// Runs the next hook of the chain, and writes that it ran. Gives the line for the pod's events.
fn run_next(dir: &PodDir, pod: &Pod, ledger: &mut Ledger) -> Result<String> {
    let mark = format!("{} {}", dir.dir.display(), pod.created);
    let Some(chain) = &mut ledger.chain else {
        return Ok(String::new());
    };
    let Some(hook) = at(pod, chain.at).nth(chain.next) else {
        return Ok(String::new());
    };
    if chain.begun {
        // whoever ran it was killed
        sweep(&mark)?;
    }
    chain.begun = true;
    record::write(&dir.hooks(), ledger)?;
    let failure = failure(hook, pod, dir, ledger, &mark).err();
    let text = match &failure {
        None => format!("{}: done", title(hook)),
        Some(failure) => format!("{} failed: {failure}", title(hook)),
    };
    // told first: of two things that a kill can come between, to be told twice is the better one
    record::event(&dir.events(), "", &text)?;
    let fails = hook.on_failure == OnFailure::Fail && hook.at.can_fail();
    ledger.ran(failure.filter(|_| fails).map(|_| text.clone()));
    ledger.last.clone_from(&text);
    record::write(&dir.hooks(), ledger)?;
    Ok(text)
}

fn failure(
    hook: &Hook,
    pod: &Pod,
    dir: &PodDir,
    ledger: &Ledger,
    mark: &str,
) -> std::result::Result<(), String> {
    let input = document::of(hook, pod, dir, ledger.failure.as_deref());
    let input = input.map_err(|error| error.to_string())?;
    match execute(hook, &pod.project.name, Some(mark), &input, None) {
        Err(why) => Err(cut(hook, why)),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(ended(&output)),
    }
}

/// Kills every process with the mark of a pod's hooks.
fn sweep(mark: &str) -> Result<()> {
    let wanted = format!("{MARK}={mark}");
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(Error::io("read", proc))?;
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let has_mark = || {
            // one that has ended meanwhile has none
            let variables = fs::read(entry.path().join("environ")).unwrap_or_default();
            let mut variables = variables.split(|byte| *byte == 0);
            variables.any(|variable| variable == wanted.as_bytes())
        };
        if !has_mark() {
            continue;
        }
        let Ok(process) = pidfd::open(pid) else {
            continue;
        };
        // after the open: the number may be another process's by now
        if has_mark()
            && let Err(error) = pidfd::send_signal(&process, libc::SIGKILL)
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            return Err(Error::io("end a hook's process in", proc)(error));
        }
    }
    Ok(())
}
