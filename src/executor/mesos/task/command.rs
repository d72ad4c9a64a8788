//! `CommandInfo` → what a service runs, as keys of a compose file.
//!
//! *Invariants:* the rules are Mesos' own, which differ between its two containerizers: with `MESOS` a `value` takes the place of
//! all that the image says, with `DOCKER` it is what `docker run IMAGE` is given. In a list of arguments for a program that is
//! named the first is `argv[0]`, which a container has from its program.

use serde_json::{Map, Value, json};

use super::Invalid;
use crate::executor::mesos::proto::{CommandInfo, TaskInfo, container_info};

/// What a program is run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum In {
    /// An image, by one of the containerizers' rules.
    Image(container_info::Type),
    /// The file system of the host.
    Host,
}

/// The keys that say what runs.
///
/// # Errors
/// Where the command says nothing, or what the containerizer would not take.
pub fn program(
    task: &TaskInfo,
    command: Option<&CommandInfo>,
    line: Option<&str>,
    inside: In,
) -> Result<Map<String, Value>, Invalid> {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
    let shell = |text: &str| json!(["/bin/sh", "-c", text]);
    let error = |why: &str| Err(Invalid::of(task, format_args!("command: {why}")));
    let Some(command) = command else {
        match (line, inside) {
            (Some(line), _) => put("entrypoint", shell(line)),
            (None, In::Image(_)) => {}
            (None, In::Host) => return error("there is neither a command nor an image"),
        }
        return Ok(out);
    };
    if line.is_some() {
        return error("is there beside the label sampan.command; remove one");
    }
    let value = command.value.as_deref();
    let arguments = &command.arguments;
    match (command.shell(), value, inside) {
        (true, Some(value), _) => put("entrypoint", shell(value)),
        (true, None, _) => {
            return error(
                "shell is true, and there is no value to run; set shell to false to run what the image says",
            );
        }
        (false, Some(value), In::Image(container_info::Type::Docker)) => {
            let words = std::iter::once(value).chain(arguments.iter().map(String::as_str));
            put("command", words.collect());
        }
        (false, Some(value), _) => {
            let rest = arguments.iter().skip(1).map(String::as_str);
            put("entrypoint", std::iter::once(value).chain(rest).collect());
        }
        (false, None, In::Host) => {
            return error("has no value, and there is no image that names a program");
        }
        (false, None, _) if arguments.is_empty() => {}
        (false, None, In::Image(container_info::Type::Docker)) => put("command", json!(arguments)),
        (false, None, In::Image(_)) => put("x-sampan", json!({"arguments": arguments})),
    }
    Ok(out)
}

/// Program with arguments of a command that a check runs.
///
/// # Errors
/// For what a check cannot have of its own.
pub fn of_check(task: &TaskInfo, field: &str, command: &CommandInfo) -> Result<Check, Invalid> {
    let error = |why: &str| Err(Invalid::of(task, format_args!("{field}: {why}")));
    if command.user.is_some() {
        return error("user: a check runs as the task's user; remove it");
    }
    if command
        .environment
        .as_ref()
        .is_some_and(|e| !e.variables.is_empty())
    {
        return error("environment: a check has the task's variables; set them in its line");
    }
    if !command.uris.is_empty() {
        return error("uris: nothing is fetched for a check");
    }
    match (command.shell(), &command.value) {
        (_, None) => error("has no value"),
        (true, Some(line)) => Ok(Check::Shell(line.clone())),
        (false, Some(value)) => {
            let rest = command.arguments.iter().skip(1).cloned();
            Ok(Check::Exec(
                std::iter::once(value.clone()).chain(rest).collect(),
            ))
        }
    }
}

/// What a check runs.
pub use crate::compose::project::HealthTest as Check;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mesos::task::tests::task;

    #[test]
    fn the_rules_of_both_containerizers() {
        const UCR: In = In::Image(container_info::Type::Mesos);
        const DOCKER: In = In::Image(container_info::Type::Docker);
        let sh = json!({"entrypoint": ["/bin/sh", "-c", "a b"]});
        let table = [
            (json!({"value": "a b"}), UCR, Ok(sh.clone())),
            (
                json!({"value": "a b", "arguments": ["x"]}),
                In::Host,
                Ok(sh.clone()),
            ),
            (json!({"value": "a b"}), DOCKER, Ok(sh)),
            (
                json!({"shell": false, "value": "/bin/a", "arguments": ["a", "b"]}),
                UCR,
                Ok(json!({"entrypoint": ["/bin/a", "b"]})),
            ),
            (
                json!({"shell": false, "value": "/bin/a"}),
                In::Host,
                Ok(json!({"entrypoint": ["/bin/a"]})),
            ),
            (
                json!({"shell": false, "value": "a", "arguments": ["b"]}),
                DOCKER,
                Ok(json!({"command": ["a", "b"]})),
            ),
            (json!({"shell": false}), UCR, Ok(json!({}))),
            (
                json!({"shell": false, "arguments": ["b", "c"]}),
                UCR,
                Ok(json!({"x-sampan": {"arguments": ["b", "c"]}})),
            ),
            (
                json!({"shell": false, "arguments": ["b"]}),
                DOCKER,
                Ok(json!({"command": ["b"]})),
            ),
            (
                json!({"shell": false}),
                In::Host,
                Err("has no value, and there is no image that names a program"),
            ),
            (
                json!({}),
                UCR,
                Err(
                    "shell is true, and there is no value to run; set shell to false to run what the image says",
                ),
            ),
        ];
        for (command, inside, expected) in table {
            let shown = command.to_string();
            let command: CommandInfo = serde_json::from_value(command).unwrap();
            let found = program(&task(json!({})), Some(&command), None, inside);
            let found = found.map(Value::Object).map_err(|e| e.message);
            let expected = expected.map_err(|why| format!("task t: command: {why}"));
            assert_eq!(found, expected, "{shown}");
        }
        let found = program(&task(json!({})), None, Some("a b"), UCR).unwrap();
        assert_eq!(
            Value::Object(found),
            json!({"entrypoint": ["/bin/sh", "-c", "a b"]})
        );
        assert!(
            program(&task(json!({})), None, None, UCR)
                .unwrap()
                .is_empty()
        );
        assert!(program(&task(json!({})), None, None, In::Host).is_err());
    }
}
