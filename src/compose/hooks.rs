//! Phase 6, hooks: `x-sampan.hooks` of a project, files of a folder of hooks, and a service's `post_start` and `pre_stop`.
//!
//! *Invariants.* A hook has a program and a limit of its time; of two with one name none is taken silently. A program
//! named with a path is absolute; one without is looked for when it runs. When hooks run is [`crate::pod`]'s.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use super::node::{At, Node, Result};
use super::project::{Hook, HookPoint, LifecycleHook, OnFailure};
use super::service::{Context, flag, nonempty, optional, variables, words};
use super::{Error, canonical, files, mount, parse, schema};

/// Time that a hook has when its entry does not say.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Names of files in a folder of hooks.
const SUFFIXES: [&str; 3] = ["json", "yaml", "yml"];

/// `x-sampan.hooks`: an entry for several points is one hook at each.
pub(super) fn of_pod(root: &At<'_>, context: &mut Context<'_>) -> Result<Vec<Hook>> {
    let Some(at) = root.find(&["x-sampan", "hooks"]) else {
        return Ok(Vec::new());
    };
    let mut hooks = Vec::new();
    for item in at.items()? {
        let name = item.get("name").ok_or_else(|| item.error(NAMELESS))?;
        hooks.extend(hook(&item, schema::name_at(&name)?, context)?);
    }
    unique(&hooks)?;
    Ok(hooks)
}

/// One entry, at each of its points.
fn hook(at: &At<'_>, name: String, context: &mut Context<'_>) -> Result<Vec<Hook>> {
    let points: Vec<HookPoint> = at
        .items_of("at")?
        .iter()
        .map(point)
        .collect::<Result<_>>()?;
    if points.is_empty() {
        return Err(at.error(format_args!("has no at: when it runs; one of {POINTS}")));
    }
    let command = words(at, "command")?.unwrap_or_default();
    let command = match command.split_first() {
        Some((program, rest)) if !program.is_empty() => {
            let mut all = vec![match program.contains('/') {
                true => context.host_path(at, program)?.display().to_string(),
                false => program.clone(),
            }];
            all.extend_from_slice(rest);
            all
        }
        _ => return Err(at.error("has no command: the program that it runs")),
    };
    let timeout = at.get("timeout").map(|at| at.duration()).transpose()?;
    let timeout = timeout.unwrap_or(TIMEOUT);
    if timeout.is_zero() {
        return Err(at.error("timeout: must be more than 0"));
    }
    let mut env = Default::default();
    variables(at, "env", context, &mut env)?;
    let given = at
        .filled("on_failure")
        .map(|at| on_failure(&at, &points))
        .transpose()?;
    let hook = |point: &HookPoint| Hook {
        origin: at.key_pos.origin(),
        name: name.clone(),
        at: *point,
        command: command.clone(),
        timeout,
        // what has ended cannot fail any more
        on_failure: match given {
            _ if !point.can_fail() => OnFailure::Note,
            Some(given) => given,
            None => OnFailure::Fail,
        },
        env: env.clone(),
    };
    Ok(points.iter().map(hook).collect())
}

const NAMELESS: &str = "has no name; messages and the pod's events name a hook by it";
const POINTS: &str =
    "before-launch, after-start, after-ready, before-kill, after-stop and on-failure";

fn point(at: &At<'_>) -> Result<HookPoint> {
    let text = at.string()?;
    HookPoint::ALL
        .into_iter()
        .find(|point| point.name() == text)
        .ok_or_else(|| at.error(format_args!("{text:?} is none of {POINTS}")))
}

fn on_failure(at: &At<'_>, points: &[HookPoint]) -> Result<OnFailure> {
    match at.string()?.as_str() {
        "note" => Ok(OnFailure::Note),
        "fail" if points.iter().any(|p| p.can_fail()) => Ok(OnFailure::Fail),
        "fail" => Err(at.error("fail: the pod is ending by then; only note is possible")),
        other => Err(at.error(format_args!("{other:?} is neither fail nor note"))),
    }
}

/// No two hooks have one name at one point.
fn unique(hooks: &[Hook]) -> Result<()> {
    let mut known = HashSet::new();
    match hooks.iter().find(|h| !known.insert((&h.name, h.at))) {
        None => Ok(()),
        Some(hook) => Err(Error {
            message: format!(
                "{}: there is another hook {} at {}; choose another name",
                hook.origin,
                hook.name,
                hook.at.name()
            ),
        }),
    }
}

/// The hooks of a folder, by file name: each `*.json`, `*.yaml` and `*.yml` is one entry as in `x-sampan.hooks`, named
/// after its file when it has no name. Nothing is interpolated, relative programs are beside the file.
///
/// # Errors
/// A folder or file that cannot be read, and whatever is wrong in one.
pub fn load_hooks(dir: &Path) -> Result<Vec<Hook>> {
    let cannot = |path: &Path, error: std::io::Error| Error {
        message: format!("cannot read {}: {error}", path.display()),
    };
    let entries = std::fs::read_dir(dir).map_err(|e| cannot(dir, e))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| cannot(dir, e))?.path();
        if path
            .extension()
            .is_some_and(|e| SUFFIXES.iter().any(|s| e == *s))
        {
            paths.push(path);
        }
    }
    paths.sort();
    let mut hooks = Vec::new();
    for path in paths {
        let bytes = files::from_disk(&path).map_err(|e| cannot(&path, e))?;
        hooks.extend(from_file(&path, &bytes)?);
    }
    unique(&hooks)?;
    Ok(hooks)
}

/// The hooks of a text that is a list as `x-sampan.hooks`; `name` is the text's, for messages. Nothing is interpolated, relative programs
/// are below `dir`.
///
/// # Errors
/// Whatever is wrong in it.
pub fn hooks_of_text(name: &str, text: &str, dir: &Path) -> Result<Vec<Hook>> {
    let list = one_document(name, text.as_bytes(), "a list of hooks")?;
    let mut hooks = Vec::new();
    for item in At::root(&list).items()? {
        schema::validate_hook(item.node)?;
        let node = canonical::hook_file(item.node.clone())?;
        let at = At::root(&node);
        let name = at.get("name").ok_or_else(|| at.error(NAMELESS))?;
        let mut context = Context::of_folder(dir);
        hooks.extend(hook(&at, schema::name_at(&name)?, &mut context)?);
    }
    unique(&hooks)?;
    Ok(hooks)
}

fn one_document(file: &str, bytes: &[u8], what: &str) -> Result<Node> {
    let mut documents = parse::parse(file, bytes)?.into_iter();
    match (documents.next(), documents.next()) {
        (Some(node), None) => Ok(node),
        _ => Err(Error {
            message: format!("{file}:1:1: must hold {what}"),
        }),
    }
}

fn from_file(path: &Path, bytes: &[u8]) -> Result<Vec<Hook>> {
    let file = path.display().to_string();
    let node = one_document(&file, bytes, "one hook")?;
    schema::validate_hook(&node)?;
    let node = canonical::hook_file(node)?;
    let at = At::root(&node);
    let name = match at.get("name") {
        Some(at) => schema::name_at(&at)?,
        None => match path.file_stem().map(|s| s.to_string_lossy().into_owned()) {
            Some(stem) if schema::is_name(&stem) => stem,
            _ => return Err(at.error("has no name, and its file's is none")),
        },
    };
    let mut context = Context::of_folder(path.parent().unwrap_or(Path::new("/")));
    hook(&at, name, &mut context)
}

/// `post_start` or `pre_stop` of a service.
pub(super) fn of_service(
    at: &At<'_>,
    key: &str,
    context: &mut Context<'_>,
) -> Result<Vec<LifecycleHook>> {
    let mut hooks = Vec::new();
    for item in at.items_of(key)? {
        let command = words(&item, "command")?.unwrap_or_default();
        if command.first().is_none_or(String::is_empty) {
            return Err(item.error("has no command"));
        }
        let mut environment = Default::default();
        variables(&item, "environment", context, &mut environment)?;
        let working_dir = item.filled("working_dir");
        hooks.push(LifecycleHook {
            command,
            user: optional(&item, "user")?,
            privileged: flag(&item, "privileged")?,
            working_dir: working_dir
                .map(|at| nonempty(&at).and_then(|_| mount::container_path(&at)))
                .transpose()?,
            environment,
        });
    }
    Ok(hooks)
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
