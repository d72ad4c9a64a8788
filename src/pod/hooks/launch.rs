//! `before-launch`: each hook reads the project, and what it prints, a partial compose file, is merged over it.

use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::signalfd::SignalFd;

use super::{document, run};
use crate::compose::project::{Hook, HookPoint, OnFailure};
use crate::compose::{self, Project};
use crate::pod::record::Owner;
use crate::pod::{Error, Result};
use crate::sys::program::Cut;

/// The project with the hooks of `folder` before its own, as those at [`HookPoint::BeforeLaunch`] change it one after the
/// other. `told` hears how each went. A hook is killed when a signal comes: [`Error::Interrupted`].
///
/// # Errors
/// The first hook that fails, unless its failure is only to be noted.
pub fn before_launch(
    mut project: Project,
    folder: Option<&Path>,
    owner: Option<&Owner>,
    signals: &SignalFd,
    told: &mut dyn FnMut(String),
) -> Result<Project> {
    if let Some(folder) = folder {
        add_folder(&mut project, folder)?;
    }
    let hooks = early(&project);
    for hook in &hooks {
        let failure = match change(&project, hook, owner, signals, told)? {
            Ok(changed) => {
                project = changed;
                told(format!("{}: done", run::title(hook)));
                continue;
            }
            Err(failure) => failure,
        };
        let text = format!("{} failed: {failure}", run::title(hook));
        if hook.on_failure == OnFailure::Fail {
            return Err(Error::Other(format!("{}: {text}", hook.origin)));
        }
        told(text);
    }
    Ok(project)
}

fn early(project: &Project) -> Vec<Hook> {
    let hooks = project.pod.hooks.iter();
    let early = hooks.filter(|hook| hook.at == HookPoint::BeforeLaunch);
    early.cloned().collect()
}

fn add_folder(project: &mut Project, folder: &Path) -> Result<()> {
    let mut hooks = compose::load_hooks(folder).map_err(|e| Error::Other(e.message))?;
    let own = std::mem::take(&mut project.pod.hooks);
    let same = |hook: &&Hook| hooks.iter().any(|h| h.name == hook.name && h.at == hook.at);
    if let Some(hook) = own.iter().find(same) {
        return Err(Error::Other(format!(
            "{}: {} has a hook {} at {}, too; choose another name",
            hook.origin,
            folder.display(),
            hook.name,
            hook.at.name()
        )));
    }
    hooks.extend(own);
    project.pod.hooks = hooks;
    Ok(())
}

/// The inner error is the hook's.
fn change(
    project: &Project,
    hook: &Hook,
    owner: Option<&Owner>,
    signals: &SignalFd,
    told: &mut dyn FnMut(String),
) -> Result<std::result::Result<Project, String>> {
    let input = document::before(hook, project, owner)?;
    let output = match run::execute(hook, &project.name, None, &input, Some(signals.as_fd())) {
        Ok(output) => output,
        Err(Cut::Unwanted) => {
            let signal = signals.read_signal().ok().flatten();
            let signal = signal.map_or(libc::SIGTERM, |s| s.ssi_signo as i32);
            return Err(Error::Interrupted { signal });
        }
        Err(cut) => return Ok(Err(run::cut(hook, cut))),
    };
    if !output.status.success() {
        return Ok(Err(run::ended(&output)));
    }
    let name = format!("hook {}", hook.name);
    let loaded = match compose::patched(project, &output.stdout, &name) {
        Ok(Some(loaded)) => loaded,
        Ok(None) => return Ok(Ok(project.clone())),
        Err(error) => return Ok(Err(error.message)),
    };
    loaded.warnings.into_iter().for_each(told);
    if early(&loaded.project) != early(project) {
        return Ok(Err(format!(
            "{name}: x-sampan.hooks: hooks at before-launch are running already and cannot be changed"
        )));
    }
    Ok(Ok(loaded.project))
}
