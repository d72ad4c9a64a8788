//! What a task says in labels that Mesos has no field for.
//!
//! *Invariants:* a label counts by its whole key or by what follows a dot in it, since frameworks put their own name in front
//! (`org.apache.aurora.metadata.fileName`); a label below `sampan.` that is not known is an error, one elsewhere is no business of ours.

use std::collections::BTreeMap;

use super::Invalid;
use super::output::LEAST;
use crate::compose::project::HookPoint;
use crate::compose::size;
use crate::executor::mesos::proto::TaskInfo;
use crate::pod::record::Policy;

/// Everything that labels say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `fileName`: compose files in the sandbox, in the order of merging.
    pub files: Vec<String>,
    /// `sampan.compose`: the text of a compose file.
    pub compose: Option<String>,
    /// `sampan.image`: what runs where the task has no image.
    pub image: Option<String>,
    /// `sampan.command`: a line for the shell where the task has no command.
    pub command: Option<String>,
    /// `sampan.override`: the text of a compose file that is merged over what the task is otherwise.
    pub over: Option<String>,
    /// `sampan.profiles` of the compose file.
    pub profiles: Vec<String>,
    /// `sampan.ready`: the task runs when it is ready.
    pub ready: bool,
    /// `sampan.policy`: what becomes of the pod when a service ends.
    pub policy: Policy,
    /// `sampan.check-service`: the service that Mesos' checks are about.
    pub check_service: Option<String>,
    /// `sampan.success-threshold`: so many passes of the health check in a row make the task healthy.
    pub success_threshold: Option<u32>,
    /// `sampan.snooze`: seconds between health checks once the task is healthy.
    pub snooze: Option<u32>,
    /// `sampan.log-size`: bytes of one file of its output in the sandbox.
    pub log_size: Option<u64>,
    /// `sampan.log-files`: how many such files there are.
    pub log_files: Option<u32>,
    /// `sampan.hooks`: the text of a list of hooks.
    pub hooks: Option<String>,
    /// `sampan.hooks.POINT`: a line to run at that point, by the point's name.
    pub hook_lines: BTreeMap<&'static str, String>,
}

const PREFIX: &str = "sampan.";
const FILES: &str = "fileName";
/// In front of the name of a point.
const HOOKS: &str = "hooks.";
const KNOWN: [&str; 14] = [
    "check-service",
    "command",
    "compose",
    "hooks",
    "hooks.POINT",
    "image",
    "log-files",
    "log-size",
    "override",
    "policy",
    "profiles",
    "ready",
    "snooze",
    "success-threshold",
];

/// The key as we know it.
fn known(key: &str) -> Option<&str> {
    if key == FILES || key.ends_with(".fileName") {
        return Some(FILES);
    }
    let at = key.rfind(PREFIX)?;
    let own = at == 0 || key.as_bytes().get(at - 1) == Some(&b'.');
    key.get(at..).filter(|_| own)
}

/// Reads the labels of a task.
///
/// # Errors
/// Where one is not known, or its value is not what it should be.
pub fn read(task: &TaskInfo) -> Result<Options, Invalid> {
    let mut options = Options {
        policy: Policy::FailPod,
        ..Options::default()
    };
    let mut seen = std::collections::BTreeSet::new();
    for label in task.labels.iter().flat_map(|l| &l.labels) {
        let Some(key) = known(&label.key) else {
            continue;
        };
        let at = |why: String| Invalid::of(task, format_args!("labels: {}: {why}", label.key));
        if !seen.insert(key) {
            return Err(at("is there twice; remove one".to_owned()));
        }
        let value = label.value.as_deref().unwrap_or_default();
        set(&mut options, key, value).map_err(at)?;
    }
    Ok(options)
}

fn set(options: &mut Options, key: &str, value: &str) -> Result<(), String> {
    let text = || Some(value.to_owned()).filter(|text| !text.trim().is_empty());
    let count = || match value.parse::<u32>() {
        Ok(count @ 1..=1_000_000) => Ok(Some(count)),
        _ => Err(format!("{value:?} is not a number from 1 to 1000000")),
    };
    let key = key.strip_prefix(PREFIX).unwrap_or(key);
    match key {
        FILES => options.files = list(value),
        "compose" => options.compose = text(),
        "image" => options.image = text(),
        "command" => options.command = text(),
        "override" => options.over = text(),
        "hooks" => options.hooks = text(),
        "profiles" => options.profiles = list(value),
        "check-service" => options.check_service = text(),
        "success-threshold" => options.success_threshold = count()?,
        "snooze" => options.snooze = count()?,
        "log-size" => options.log_size = Some(log_size(value)?),
        "log-files" => match count()? {
            Some(files @ 1..=1000) => options.log_files = Some(files),
            _ => return Err(format!("{value:?} is more than 1000")),
        },
        "ready" => {
            options.ready = match value {
                "true" => true,
                "false" => false,
                _ => return Err(format!("{value:?} is not true or false")),
            }
        }
        "policy" => {
            options.policy = match value {
                "fail-pod" => Policy::FailPod,
                "compose" => Policy::Compose,
                "abort-on-exit" => Policy::AbortOnExit,
                _ => {
                    return Err(format!(
                        "{value:?} is not fail-pod, compose or abort-on-exit"
                    ));
                }
            }
        }
        _ if key.starts_with(HOOKS) => {
            let name = key.trim_start_matches(HOOKS);
            let points = HookPoint::ALL.map(HookPoint::name);
            let Some(point) = points.into_iter().find(|point| *point == name) else {
                return Err(format!("{name:?} is none of {}", points.join(", ")));
            };
            options.hook_lines.extend(text().map(|text| (point, text)));
        }
        _ => {
            return Err(format!(
                "is not known; below {PREFIX} there are {}",
                KNOWN.join(", ")
            ));
        }
    }
    Ok(())
}

/// Bytes of one file of output.
pub fn log_size(text: &str) -> Result<u64, String> {
    match size(text) {
        Some(size @ LEAST..) => Ok(size),
        _ => Err(format!(
            "{text:?} is not a size of at least 64KB; write something like 10MB"
        )),
    }
}

fn list(value: &str) -> Vec<String> {
    let items = value.split(',').map(str::trim);
    items.filter(|i| !i.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mesos::task::tests::task;
    use serde_json::json;

    fn labels(given: &[(&str, &str)]) -> Result<Options, String> {
        let labels: Vec<_> = given
            .iter()
            .map(|(key, value)| json!({"key": key, "value": value}))
            .collect();
        read(&task(json!({"labels": {"labels": labels}}))).map_err(|e| e.message)
    }

    #[test]
    fn what_labels_say() {
        let none = Options {
            policy: Policy::FailPod,
            ..Options::default()
        };
        let table = [
            (
                &[("team", "web"), ("a.b", "c"), ("notsampan.x", "y")][..],
                none.clone(),
            ),
            (
                &[("org.apache.aurora.metadata.fileName", "a/b.yml, c.yml ,")],
                Options {
                    files: vec!["a/b.yml".into(), "c.yml".into()],
                    ..none.clone()
                },
            ),
            (
                &[
                    ("sampan.ready", "true"),
                    ("x.sampan.policy", "compose"),
                    ("sampan.profiles", "a,b"),
                    ("sampan.success-threshold", "2"),
                    ("sampan.log-size", "1MB"),
                    ("sampan.log-files", "3"),
                    ("sampan.image", " "),
                    ("sampan.hooks", "[]"),
                    ("x.sampan.hooks.before-kill", "bye 1"),
                    ("sampan.hooks.after-start", ""),
                ],
                Options {
                    hooks: Some("[]".into()),
                    hook_lines: BTreeMap::from([("before-kill", "bye 1".into())]),
                    ready: true,
                    policy: Policy::Compose,
                    profiles: vec!["a".into(), "b".into()],
                    success_threshold: Some(2),
                    log_size: Some(1 << 20),
                    log_files: Some(3),
                    ..none
                },
            ),
        ];
        for (given, expected) in table {
            assert_eq!(labels(given), Ok(expected), "{given:?}");
        }
        for (given, expected) in [
            (
                &[("sampan.redy", "true")][..],
                "task t: labels: sampan.redy: is not known; below sampan. there are check-service, command, compose, hooks, hooks.POINT, image, log-files, log-size, override, policy, profiles, ready, snooze, success-threshold",
            ),
            (
                &[("sampan.ready", "yes")],
                "task t: labels: sampan.ready: \"yes\" is not true or false",
            ),
            (
                &[("sampan.log-size", "1KB")],
                "task t: labels: sampan.log-size: \"1KB\" is not a size of at least 64KB; write something like 10MB",
            ),
            (
                &[("sampan.snooze", "0")],
                "task t: labels: sampan.snooze: \"0\" is not a number from 1 to 1000000",
            ),
            (
                &[("sampan.hooks.later", "x")],
                "task t: labels: sampan.hooks.later: \"later\" is none of before-launch, after-start, after-ready, before-kill, on-failure, after-stop",
            ),
            (
                &[("fileName", "a"), ("x.fileName", "b")],
                "task t: labels: x.fileName: is there twice; remove one",
            ),
        ] {
            assert_eq!(labels(given).unwrap_err(), expected);
        }
    }
}
