//! Labels of a task → hooks of its pod.
//!
//! *Invariants:* they come after the hooks of folder and file, those of `sampan.hooks` in their order, then those of `sampan.hooks.POINT`
//! in the order in which the points come in a life; nothing in them is interpolated; a program named with a slash is below the task's
//! sandbox; what is wrong with one is an error of the task.

use std::collections::HashSet;

use serde_json::json;

use super::{Draft, Invalid};
use crate::compose::project::{Hook, HookPoint};
use crate::compose::{Project, hooks_of_text};

/// Most hooks that the labels of one task may make.
const MOST: usize = 32;

/// Adds the hooks of a task's labels to its pod. Those of `sampan.hooks.POINT` are named after the task's `service`.
///
/// # Errors
/// For a label that is no hook, or has the name of another one at its point.
pub fn add(draft: &Draft<'_>, service: &str, project: &mut Project) -> Result<(), Invalid> {
    let error = |why: String| Invalid::of(draft.task, format_args!("labels: {why}"));
    let dir = &draft.sandbox.host;
    let read = |name: &str, text: &str| {
        hooks_of_text(name, text, dir).map_err(|found| error(found.message))
    };
    let mut own: Vec<Hook> = Vec::new();
    if let Some(text) = &draft.options.hooks {
        own.extend(read("sampan.hooks", text)?);
    }
    for point in HookPoint::ALL {
        if let Some(line) = draft.options.hook_lines.get(point.name()) {
            let entry = json!([{"name": service, "at": point.name(), "command": line}]);
            let label = format!("sampan.hooks.{}", point.name());
            own.extend(read(&label, &entry.to_string())?);
        }
    }
    if own.len() > MOST {
        return Err(error(format!(
            "sampan.hooks: {} hooks, each at each of its points, are more than {MOST}",
            own.len()
        )));
    }
    let hooks = &mut project.pod.hooks;
    let mut taken: HashSet<(String, HookPoint)> =
        hooks.iter().map(|h| (h.name.clone(), h.at)).collect();
    for hook in own {
        if !taken.insert((hook.name.clone(), hook.at)) {
            return Err(error(format!(
                "{}: there is another hook {} at {}; choose another name",
                hook.origin.file,
                hook.name,
                hook.at.name()
            )));
        }
        hooks.push(hook);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::{around, image, task};
    use super::super::{PodPlan, plan};
    use super::*;

    fn with(labels: &[(&str, &str)]) -> Result<PodPlan, String> {
        let labels: Vec<_> = labels
            .iter()
            .map(|(key, value)| json!({"key": key, "value": value}))
            .collect();
        let given = json!({"container": image(), "labels": {"labels": labels}});
        plan(&[task(given)], false, &around(Path::new("/s"))).map_err(|error| error.message)
    }

    #[test]
    fn labels_are_hooks() {
        let over = "x-sampan: {hooks: [{name: web, at: on-failure, command: note}]}";
        let list =
            "- {name: a, at: [after-start, after-stop], command: ['./a', '$x'], timeout: 5s}";
        let plan = with(&[
            ("sampan.override", over),
            ("sampan.hooks.after-stop", "bye 'to all'"),
            ("sampan.hooks", list),
            ("sampan.hooks.before-launch", "bin/env"),
        ])
        .unwrap();
        let hooks = plan.project.pod.hooks.iter();
        let found: Vec<_> = hooks
            .map(|h| (h.name.as_str(), h.at.name(), h.command.join("|")))
            .collect();
        assert_eq!(
            found,
            [
                ("web", "on-failure", "note".to_owned()),
                ("a", "after-start", "/s/a|$x".to_owned()),
                ("a", "after-stop", "/s/a|$x".to_owned()),
                ("web", "before-launch", "/s/bin/env".to_owned()),
                ("web", "after-stop", "bye|to all".to_owned()),
            ]
        );
    }

    #[test]
    fn what_is_no_hook() {
        let many: String = (0..33)
            .map(|i| format!("- {{name: h{i}, at: after-start, command: x}}\n"))
            .collect();
        for (labels, expected) in [
            (
                &[("sampan.hooks", "{name: a}")][..],
                "labels: sampan.hooks:1:1: must be a list, not a mapping",
            ),
            (
                &[("sampan.hooks", "- {at: after-start, command: x}")],
                "labels: sampan.hooks:1:3: has no name; messages and the pod's events name a hook by it",
            ),
            (
                &[("sampan.hooks.after-start", "a 'b")],
                "labels: sampan.hooks.after-start:1:32: command: a single quote is not closed",
            ),
            (
                &[
                    ("sampan.hooks", "- {name: web, at: after-stop, command: x}"),
                    ("sampan.hooks.after-stop", "y"),
                ],
                "labels: sampan.hooks.after-stop: there is another hook web at after-stop; choose another name",
            ),
            (
                &[("sampan.hooks", many.as_str())],
                "labels: sampan.hooks: 33 hooks, each at each of its points, are more than 32",
            ),
        ] {
            assert_eq!(with(labels).unwrap_err(), format!("task t: {expected}"));
        }
    }
}
