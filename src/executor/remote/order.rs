//! What a request asks for: calls of an agent's operator API, and paths of our own.
//!
//! *Invariants:* pure; what is not understood is an error with a status code, never ignored.

use hyper::StatusCode;

use super::access::Verb;
use crate::executor::mesos::proto::operator::{Call, call};
use crate::executor::mesos::proto::{CommandInfo, ContainerId, Encoding, environment};

/// Longest name in an id, in bytes.
const NAME_MAX: usize = 255;

/// An answer that says no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub StatusCode, pub String);

impl Refusal {
    /// 400.
    pub fn bad(why: impl Into<String>) -> Refusal {
        Refusal(StatusCode::BAD_REQUEST, why.into())
    }
}

/// A task, and perhaps one of its services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Task id.
    pub task: String,
    /// Its only one when `None`.
    pub service: Option<String>,
}

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Run a program in a task; closing the answer ends it.
    Session {
        /// By which it is attached to.
        id: String,
        /// Where.
        target: Target,
        /// What.
        program: Program,
    },
    /// Follow what a session or a task prints.
    Output(Vec<String>),
    /// Wait for the end of a session.
    Wait(Vec<String>),
    /// Send a session a signal.
    Kill(Vec<String>, i32),
}

/// A program to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// With its arguments.
    pub command: Vec<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Names and values.
    pub env: Vec<(String, String)>,
    /// On a terminal of this size, rows first; 0 is unknown.
    pub terminal: Option<(u16, u16)>,
}

impl Order {
    /// From a call that is one record.
    pub fn read(call: Call) -> Result<Order, Refusal> {
        let without = |field: &str| Refusal::bad(format!("{} has no `{field}`", call.r#type()));
        Ok(match call.r#type() {
            call::Type::LaunchNestedContainerSession => {
                let launch = call.launch_nested_container_session.as_ref();
                let launch = launch.ok_or_else(|| without("launch_nested_container_session"))?;
                let path = path(&launch.container_id)?;
                let [rest @ .., _] = path.as_slice() else {
                    return Err(Refusal::bad("container_id: is empty"));
                };
                let target = target(rest).map_err(|_| {
                    Refusal::bad("container_id: its parent must be a task, or a service whose parent is the task")
                })?;
                let command = launch.command.as_ref().ok_or_else(|| without("command"))?;
                let mut program = program(command)?;
                let tty = launch
                    .container
                    .as_ref()
                    .and_then(|it| it.tty_info.as_ref());
                program.terminal = tty.map(|tty| {
                    tty.window_size.as_ref().map_or((0, 0), |size| {
                        (
                            size.rows.min(0xffff) as u16,
                            size.columns.min(0xffff) as u16,
                        )
                    })
                });
                Order::Session {
                    id: path.join("/"),
                    target,
                    program,
                }
            }
            call::Type::AttachContainerOutput => {
                let body = call.attach_container_output.as_ref();
                let body = body.ok_or_else(|| without("attach_container_output"))?;
                Order::Output(path(&body.container_id)?)
            }
            call::Type::WaitContainer => {
                let body = call.wait_container.as_ref();
                Order::Wait(path(
                    &body.ok_or_else(|| without("wait_container"))?.container_id,
                )?)
            }
            call::Type::KillContainer => {
                let body = call.kill_container.as_ref();
                let body = body.ok_or_else(|| without("kill_container"))?;
                let signal = body.signal.unwrap_or(libc::SIGKILL);
                if !(1..=64).contains(&signal) {
                    return Err(Refusal::bad(format!("signal {signal}: there is none")));
                }
                Order::Kill(path(&body.container_id)?, signal)
            }
            call::Type::AttachContainerInput => {
                return Err(Refusal::bad(
                    "ATTACH_CONTAINER_INPUT is a stream: Content-Type application/recordio",
                ));
            }
            call::Type::Unknown => {
                return Err(Refusal(
                    StatusCode::NOT_IMPLEMENTED,
                    "this type of call is not answered here".into(),
                ));
            }
        })
    }
}

/// The names of an id, the outermost first.
pub fn path(id: &ContainerId) -> Result<Vec<String>, Refusal> {
    let mut names = Vec::new();
    let mut next = Some(id);
    while let Some(id) = next {
        for name in id.value.rsplit('/') {
            if name.is_empty() || name.len() > NAME_MAX || name.contains(char::is_control) {
                return Err(Refusal::bad(
                    "container_id: a name is empty, too long or no text",
                ));
            }
            names.push(name.to_string());
        }
        next = id.parent.as_deref();
        // a task, a service, a session
        if names.len() > 3 {
            return Err(Refusal::bad("container_id: nested too deeply"));
        }
    }
    names.reverse();
    Ok(names)
}

/// `TASK` or `TASK/SERVICE`.
pub fn target(path: &[String]) -> Result<Target, Refusal> {
    match path {
        [task] => Ok(Target {
            task: task.clone(),
            service: None,
        }),
        [task, service] => Ok(Target {
            task: task.clone(),
            service: Some(service.clone()),
        }),
        _ => Err(Refusal::bad(
            "container_id: neither a task nor a service of one",
        )),
    }
}

fn program(command: &CommandInfo) -> Result<Program, Refusal> {
    let value = command.value.clone();
    let words = match (value, command.shell.unwrap_or(true)) {
        (Some(line), true) => vec!["/bin/sh".to_string(), "-c".to_string(), line],
        // the first argument is the program's own name
        (Some(program), false) => {
            let rest = command.arguments.iter().skip(1).cloned();
            std::iter::once(program).chain(rest).collect()
        }
        (None, _) => return Err(Refusal::bad("command: has no `value`")),
    };
    let variables = command.environment.iter().flat_map(|it| &it.variables);
    let env = variables.map(|variable| {
        if variable.r#type() == environment::variable::Type::Secret {
            return Err(Refusal::bad(format!(
                "variable {}: secrets are not resolved here",
                variable.name
            )));
        }
        let wrong = variable.name.is_empty() || variable.name.contains(['=', '\0']);
        let value = variable.value.clone().unwrap_or_default();
        if wrong || value.contains('\0') {
            return Err(Refusal::bad(format!(
                "variable {:?}: cannot be one",
                variable.name
            )));
        }
        Ok((variable.name.clone(), value))
    });
    let env: Vec<(String, String)> = env.collect::<Result<_, Refusal>>()?;
    if words.iter().any(|word| word.contains('\0')) {
        return Err(Refusal::bad("command: a word has a zero byte"));
    }
    Ok(Program {
        command: words,
        user: command.user.clone(),
        env,
        terminal: None,
    })
}

/// What is asked about logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    /// Of which.
    pub target: Target,
    /// Options of `sampan logs`.
    pub options: Vec<String>,
}

impl Logs {
    /// From the query of a URL.
    pub fn read(query: &str) -> Result<Logs, Refusal> {
        let (mut task, mut options) = (None, Vec::new());
        for (name, value) in pairs(query)? {
            match (name.as_str(), value.as_str()) {
                ("task", _) => {
                    let id = ContainerId {
                        value,
                        parent: None,
                    };
                    task = Some(target(&path(&id)?)?);
                }
                ("follow" | "timestamps" | "no-log-prefix", "true") => {
                    options.push(format!("--{name}"))
                }
                ("follow" | "timestamps" | "no-log-prefix", "false") => {}
                ("tail" | "since", _) => options.push(format!("--{name}={value}")),
                _ => {
                    return Err(Refusal::bad(format!(
                        "query: {name}={value} is not understood"
                    )));
                }
            }
        }
        let target = task.ok_or_else(|| Refusal::bad("query: task=TASK is missing"))?;
        Ok(Logs { target, options })
    }
}

fn pairs(query: &str) -> Result<Vec<(String, String)>, Refusal> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, "true"));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

/// Text as a value in a query has it.
pub fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

fn decode(text: &str) -> Result<String, Refusal> {
    let wrong = || Refusal::bad("query: is not percent-encoded text");
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        bytes.push(match byte {
            b'%' => match (digit(rest.next()), digit(rest.next())) {
                (Some(high), Some(low)) => (high * 16 + low) as u8,
                _ => return Err(wrong()),
            },
            byte => byte,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    match text.contains(char::is_control) {
        true => Err(wrong()),
        false => Ok(text),
    }
}

/// The permission that a path of names needs: a session's is the task's.
pub fn needed(path: &[String], is_session: bool) -> (Verb, &str) {
    let verb = if is_session { Verb::Exec } else { Verb::Attach };
    (verb, path.first().map_or("", String::as_str))
}

/// The encoding that a header names: as agents do it, JSON unless only protobuf is allowed. `None`: neither is.
pub fn accepted(header: Option<&str>) -> Option<Encoding> {
    let Some(header) = header else {
        return Some(Encoding::Json);
    };
    let allows = |name: &str| {
        let types = header
            .split(',')
            .map(|it| it.split(';').next().unwrap_or_default().trim());
        types.into_iter().any(|it| it == name)
    };
    match (
        allows("application/json") || allows("*/*") || allows("application/*"),
        allows("application/x-protobuf"),
    ) {
        (true, _) => Some(Encoding::Json),
        (false, true) => Some(Encoding::Protobuf),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(json: &str) -> Result<Order, (u16, String)> {
        let call: Call = serde_json::from_str(json).map_err(|e| (0, e.to_string()))?;
        Order::read(call).map_err(|Refusal(code, why)| (code.as_u16(), why))
    }

    #[test]
    fn calls() {
        let names = |text: &str| text.split('/').map(str::to_string).collect::<Vec<_>>();
        let target = |task: &str, service: Option<&str>| Target {
            task: task.into(),
            service: service.map(Into::into),
        };
        let program = |words: &[&str]| Program {
            command: words.iter().map(|word| word.to_string()).collect(),
            ..Program::default()
        };
        for (json, expected) in [
            (
                r#"{"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": {
                    "container_id": {"value": "s", "parent": {"value": "t"}}, "command": {"value": "ls -l"}}}"#,
                Order::Session {
                    id: "t/s".into(),
                    target: target("t", None),
                    program: program(&["/bin/sh", "-c", "ls -l"]),
                },
            ),
            (
                r#"{"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": {
                    "container_id": {"value": "s", "parent": {"value": "web", "parent": {"value": "t"}}},
                    "command": {"value": "ls", "shell": false, "arguments": ["ls", "-l"], "user": "1:2",
                        "environment": {"variables": [{"name": "A", "value": "b=c"}]}},
                    "container": {"type": "MESOS", "tty_info": {"window_size": {"rows": 4, "columns": 70000}}}}}"#,
                Order::Session {
                    id: "t/web/s".into(),
                    target: target("t", Some("web")),
                    program: Program {
                        user: Some("1:2".into()),
                        env: vec![("A".into(), "b=c".into())],
                        terminal: Some((4, 65535)),
                        ..program(&["ls", "-l"])
                    },
                },
            ),
            (
                r#"{"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": {"container_id": {"value": "t/web"}}}"#,
                Order::Output(names("t/web")),
            ),
            (
                r#"{"type": "WAIT_CONTAINER", "wait_container": {"container_id": {"value": "s", "parent": {"value": "t"}}}}"#,
                Order::Wait(names("t/s")),
            ),
            (
                r#"{"type": "KILL_CONTAINER", "kill_container": {"container_id": {"value": "t/s"}}}"#,
                Order::Kill(names("t/s"), 9),
            ),
        ] {
            assert_eq!(order(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn refusals() {
        for (json, code, why) in [
            (r#"{}"#, 501, "not answered"),
            (r#"{"type": "GET_HEALTH"}"#, 501, "not answered"),
            (r#"{"type": "ATTACH_CONTAINER_INPUT"}"#, 400, "is a stream"),
            (
                r#"{"type": "WAIT_CONTAINER"}"#,
                400,
                "has no `wait_container`",
            ),
            (
                r#"{"type": "WAIT_CONTAINER", "wait_container": {"container_id": {"value": ""}}}"#,
                400,
                "is empty",
            ),
            (
                r#"{"type": "WAIT_CONTAINER", "wait_container": {"container_id": {"value": "a/b/c/d"}}}"#,
                400,
                "too deeply",
            ),
            (
                r#"{"type": "WAIT_CONTAINER", "wait_container": {"container_id": {"value": "a//b"}}}"#,
                400,
                "is empty",
            ),
            (
                r#"{"type": "KILL_CONTAINER", "kill_container": {"container_id": {"value": "a"}, "signal": 65}}"#,
                400,
                "there is none",
            ),
            (
                r#"{"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": {
                    "container_id": {"value": "s"}, "command": {"value": "ls"}}}"#,
                400,
                "its parent must be a task",
            ),
            (
                r#"{"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": {
                    "container_id": {"value": "t/s"}}}"#,
                400,
                "has no `command`",
            ),
            (
                r#"{"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": {
                    "container_id": {"value": "t/s"}, "command": {"shell": false}}}"#,
                400,
                "has no `value`",
            ),
        ] {
            let (found, text) = order(json).unwrap_err();
            assert!(
                found == code && text.contains(why),
                "{json}: {found} {text}"
            );
        }
    }

    #[test]
    fn logs() {
        let read = |query| Logs::read(query).map(|logs| (logs.target, logs.options.join(" ")));
        let target = |service: Option<&str>| Target {
            task: "t 1".into(),
            service: service.map(Into::into),
        };
        for (query, expected) in [
            ("task=t%201", Ok((target(None), ""))),
            (
                "follow&tail=5&task=t%201%2Fweb&since=1m",
                Ok((target(Some("web")), "--follow --tail=5 --since=1m")),
            ),
            ("follow=false&task=t%201", Ok((target(None), ""))),
            ("", Err("task=TASK is missing")),
            ("task=t&x=1", Err("x=1 is not understood")),
            ("task=%zz", Err("percent-encoded")),
            ("task=%00", Err("percent-encoded")),
        ] {
            match (read(query), expected) {
                (Ok(found), Ok((target, options))) => {
                    assert_eq!(found, (target, options.to_string()), "{query}");
                }
                (Err(Refusal(_, text)), Err(why)) => assert!(text.contains(why), "{query}: {text}"),
                (found, _) => panic!("{query}: {found:?}"),
            }
        }
        assert_eq!(decode(&encode("t 1/ä&=%")).unwrap(), "t 1/ä&=%");
    }

    #[test]
    fn encodings() {
        for (header, expected) in [
            (None, Some(Encoding::Json)),
            (Some("*/*"), Some(Encoding::Json)),
            (Some("application/x-protobuf"), Some(Encoding::Protobuf)),
            (
                Some("application/x-protobuf, application/json;q=0.1"),
                Some(Encoding::Json),
            ),
            (Some("text/plain"), None),
        ] {
            assert_eq!(accepted(header), expected, "{header:?}");
        }
    }
}
