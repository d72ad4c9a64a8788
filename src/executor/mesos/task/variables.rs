//! The environment of a task.
//!
//! The order, later ones winning: what the image says, the agent-wide variables for tasks, the task's `command.environment`, what a compose
//! file says of a service, and what is made here: `MESOS_TASK_ID`, `MESOS_SANDBOX`, `MESOS_CONTAINER_IP`, `MESOS_ALLOCATION_ROLE`,
//! `HOST`. Ports (`PORT0` and the like) only fill gaps: a framework that sets them itself knows which is for what.
//!
//! *Invariants:* pure; a secret that nobody has resolved is an error, never a variable that is missing.

use std::collections::BTreeMap;

use super::volumes::resolved;
use super::{Invalid, Surroundings};
use crate::executor::mesos::proto::environment::variable;
use crate::executor::mesos::proto::{Environment, TaskInfo};

/// Variables by name.
pub type Variables = BTreeMap<String, String>;

/// `command.environment` of a task.
///
/// # Errors
/// For a secret without its value, and what is no variable.
pub fn own(task: &TaskInfo, environment: Option<&Environment>) -> Result<Variables, Invalid> {
    let mut out = Variables::new();
    for (index, variable) in environment.iter().flat_map(|e| &e.variables).enumerate() {
        let name = &variable.name;
        let field = format!("command.environment.variables[{index}]");
        let error = |why: &str| Invalid::of(task, format_args!("{field}: {name}: {why}"));
        let value = match variable.r#type() {
            variable::Type::Value => variable.value.clone().unwrap_or_default(),
            variable::Type::Secret => {
                let secret = variable
                    .secret
                    .as_ref()
                    .ok_or_else(|| error("secret: is missing"))?;
                let value = resolved(secret)
                    .map_err(|why| Invalid::failed(task, format_args!("{field}: {name}: {why}")))?;
                match std::str::from_utf8(value) {
                    Ok(text) => text.to_owned(),
                    Err(_) => return Err(error("secret: is not text; mount it as a volume")),
                }
            }
            variable::Type::Unknown => return Err(error("type: is not known")),
        };
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(error(
                "is not a variable: an empty name, = in it, or a NUL byte",
            ));
        }
        out.insert(name.clone(), value);
    }
    Ok(out)
}

/// What is made here, but for the ports.
pub fn made(
    task: &TaskInfo,
    sandbox: &str,
    role: Option<&str>,
    around: &Surroundings,
) -> Variables {
    let mut out = Variables::from([
        ("MESOS_TASK_ID".to_owned(), task.task_id.value.clone()),
        ("MESOS_SANDBOX".to_owned(), sandbox.to_owned()),
        ("HOST".to_owned(), around.agent.hostname.clone()),
    ]);
    if let Some(role) = role {
        out.insert("MESOS_ALLOCATION_ROLE".to_owned(), role.to_owned());
    }
    out
}

/// Adds what is not there.
pub fn fill(into: &mut Variables, more: Variables) {
    for (name, value) in more {
        into.entry(name).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mesos::proto::TaskState;
    use crate::executor::mesos::task::tests::task;
    use serde_json::{Value, json};

    fn found(variables: Value) -> Result<Variables, Invalid> {
        let environment = json!({"variables": variables});
        let environment = serde_json::from_value(environment).unwrap();
        own(&task(json!({})), Some(&environment))
    }

    #[test]
    fn variables_of_a_task() {
        let secret = |data: &str| json!({"name": "S", "type": "SECRET", "secret": {"type": "VALUE", "value": {"data": data}}});
        let given = json!([{"name": "A", "value": "b=$c"}, {"name": "B"}, {"name": "A", "value": "2"}, secret("eA==")]);
        let expected = [("A", "2"), ("B", ""), ("S", "x")];
        let expected = expected.map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(found(given).unwrap(), Variables::from(expected));
        let reference = json!({"name": "S", "type": "SECRET", "secret": {"type": "REFERENCE", "reference": {"name": "x"}}});
        let table = [
            (
                json!([reference]),
                TaskState::Failed,
                "S: secret \"x\" has not been resolved; the agent needs a secret resolver for it",
            ),
            (
                json!([secret("/w==")]),
                TaskState::Error,
                "S: secret: is not text; mount it as a volume",
            ),
            (
                json!([{"name": "A=B", "value": "x"}]),
                TaskState::Error,
                "A=B: is not a variable: an empty name, = in it, or a NUL byte",
            ),
            (
                json!([{"name": "A", "type": "UNKNOWN"}]),
                TaskState::Error,
                "A: type: is not known",
            ),
        ];
        for (given, state, expected) in table {
            let error = found(given).unwrap_err();
            let expected = format!("task t: command.environment.variables[0]: {expected}");
            assert_eq!((error.state, error.message), (state, expected));
        }
    }
}
