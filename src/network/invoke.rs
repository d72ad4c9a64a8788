//! Runs one plugin once: finds it, hands it the environment of CNI §2 and its configuration, understands its answer.
//!
//! *Invariants:* a program of the name in the plugin folders comes before the one built in; a name that leads out of
//! them is never run. How a program runs is [`crate::sys::program`]'s, what it is handed [`super::request`]'s, chains and
//! caches are [`super::attach`]'s.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::conf::is_program;
use super::error::PluginFailure;
use crate::sys::program::{Cut, MAX_OUTPUT, MAX_QUOTE, Output, Program, describe, quote};

/// Time that a plugin has.
const LIMIT: Duration = Duration::from_secs(60);

/// What a plugin is told to do (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Connect.
    Add,
    /// Verify.
    Check,
    /// Disconnect.
    Del,
    /// Remove what belongs to no attachment any more.
    Gc,
    /// Say whether ADD would work.
    Status,
    /// Say which versions of the specification it knows.
    Version,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Command::Add => "ADD",
            Command::Check => "CHECK",
            Command::Del => "DEL",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        })
    }
}

/// Everything that a plugin is called with except its configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub command: Command,
    pub container_id: &'a str,
    /// Empty for DEL when the namespace is gone.
    pub netns: Option<&'a Path>,
    pub ifname: &'a str,
    pub args: &'a [(String, String)],
    pub plugin_dirs: &'a [PathBuf],
}

/// Where a plugin is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plugin {
    Program(PathBuf),
    BuiltIn,
}

/// Finds the plugin `kind` (CNI §4 "Plugin binaries are searched for in CNI_PATH").
pub(super) fn find(kind: &str, dirs: &[PathBuf]) -> Result<Plugin, PluginFailure> {
    if !is_program(kind) {
        return Err(PluginFailure::NoProgram);
    }
    dirs.iter()
        .map(|dir| dir.join(kind))
        .find(|path| path.is_file())
        .map(Plugin::Program)
        .or_else(|| built_in::NAMES.contains(&kind).then_some(Plugin::BuiltIn))
        .ok_or_else(|| PluginFailure::Missing(dirs.to_vec()))
}

/// Whether the plugin `kind` can be run.
pub fn is_there(kind: &str, dirs: &[PathBuf]) -> bool {
    find(kind, dirs).is_ok()
}

/// The plugin `kind` is part of this program.
pub(super) fn is_built_in(kind: &str, dirs: &[PathBuf]) -> bool {
    find(kind, dirs) == Ok(Plugin::BuiltIn)
}

/// Runs the plugin with `config`; gives what it printed, if that is JSON. Only ADD has to print.
pub(super) fn run(kind: &str, call: &Call<'_>, config: Value) -> Result<Value, PluginFailure> {
    let answer = match find(kind, call.plugin_dirs)? {
        Plugin::BuiltIn => built_in::run(kind, call, config)?,
        Plugin::Program(path) => {
            let output = execute(
                &path,
                &environment(call),
                config.to_string().as_bytes(),
                LIMIT,
            )?;
            understand(call.command, &output)?
        }
    };
    if call.command == Command::Add && !answer.is_object() {
        return Err(PluginFailure::BadResult("printed no result".into()));
    }
    Ok(answer)
}

/// VERSION: the versions of the specification that the plugin knows. `version` is the caller's.
pub(super) fn versions(
    kind: &str,
    plugin_dirs: &[PathBuf],
    version: &str,
) -> Result<Vec<String>, PluginFailure> {
    let call = Call {
        command: Command::Version,
        container_id: "",
        netns: None,
        ifname: "",
        args: &[],
        plugin_dirs,
    };
    let answer = run(kind, &call, json!({"cniVersion": version}))?;
    let known = answer.get("supportedVersions").cloned().unwrap_or_default();
    serde_json::from_value(known)
        .map_err(|_| PluginFailure::BadResult("printed no list `supportedVersions`".into()))
}

/// The plugins of the library that is linked into this program.
mod built_in {
    use std::path::Path;

    use super::{Call, Command, PluginFailure, Value, arguments};

    pub(super) use cni_plugins::BUILT_IN as NAMES;

    /// Runs on a thread of its own: a plugin visits other namespaces and drives a runtime for netlink, and the caller
    /// may be in the middle of one already.
    pub(super) fn run(kind: &str, call: &Call<'_>, config: Value) -> Result<Value, PluginFailure> {
        let invocation = cni_plugins::Invocation {
            command: match call.command {
                Command::Add => cni_plugins::Command::Add,
                Command::Check => cni_plugins::Command::Check,
                Command::Del => cni_plugins::Command::Del,
                Command::Gc => cni_plugins::Command::Gc,
                Command::Status => cni_plugins::Command::Status,
                Command::Version => cni_plugins::Command::Version,
            },
            container_id: call.container_id.into(),
            netns: call.netns.map(Path::to_path_buf),
            ifname: call.ifname.into(),
            args: arguments(call),
            path: call.plugin_dirs.to_vec(),
            config,
        };
        let answer = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name(format!("cni-{kind}"))
                .spawn_scoped(scope, || cni_plugins::run(kind, &invocation))
                .map_err(|e| PluginFailure::Start(e.to_string()))?
                .join()
                .map_err(|_| PluginFailure::BadResult("it panicked".into()))
        });
        answer?.map_err(|e| PluginFailure::Reported {
            code: e.code.into(),
            msg: e.msg,
            details: e.details,
            stderr: String::new(),
        })
    }
}

/// `CNI_ARGS`.
fn arguments(call: &Call<'_>) -> String {
    let args: Vec<_> = call.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
    args.join(";")
}

/// The variables of CNI §2 "Parameters".
fn environment(call: &Call<'_>) -> [(&'static str, OsString); 6] {
    let dirs: Vec<_> = call.plugin_dirs.iter().map(|d| d.as_os_str()).collect();
    let mut path = Vec::new();
    for (i, dir) in dirs.iter().enumerate() {
        if i > 0 {
            path.push(b':');
        }
        path.extend_from_slice(dir.as_encoded_bytes());
    }
    [
        ("CNI_COMMAND", call.command.to_string().into()),
        ("CNI_CONTAINERID", call.container_id.into()),
        (
            "CNI_NETNS",
            call.netns.map(|p| p.as_os_str().into()).unwrap_or_default(),
        ),
        ("CNI_IFNAME", call.ifname.into()),
        ("CNI_ARGS", arguments(call).into()),
        ("CNI_PATH", OsString::from_vec(path)),
    ]
}

fn execute(
    path: &Path,
    environment: &[(&str, OsString)],
    input: &[u8],
    limit: Duration,
) -> Result<Output, PluginFailure> {
    let program = Program {
        path,
        args: &[],
        environment,
        input,
        limit,
        strict: false,
        until: None,
    };
    crate::sys::program::execute(&program).map_err(|cut| match cut {
        Cut::Start(e) => PluginFailure::Start(format!("{}: {e}", path.display())),
        Cut::Time(stderr) => PluginFailure::Timeout {
            seconds: limit.as_secs(),
            stderr: quote(&stderr),
        },
        Cut::Size | Cut::Unwanted => PluginFailure::TooMuch(MAX_OUTPUT),
    })
}

/// The plugin's answer, or which of the ways to fail it took.
fn understand(command: Command, output: &Output) -> Result<Value, PluginFailure> {
    let json = serde_json::from_slice::<Value>(&output.stdout);
    let blank = output.stdout.iter().all(u8::is_ascii_whitespace);
    if output.status.success() {
        return match (command, json) {
            (_, Ok(value)) => Ok(value),
            (Command::Add, Err(_)) if blank => {
                Err(PluginFailure::BadResult("printed no result".into()))
            }
            (Command::Add, Err(e)) => Err(PluginFailure::BadResult(format!(
                "printed no JSON ({e}): `{}`",
                head(&output.stdout)
            ))),
            // the other commands' output means nothing
            (_, Err(_)) => Ok(Value::Null),
        };
    }
    let status = describe(output.status);
    let stderr = quote(&output.stderr);
    if let Some(reported) = json.ok().and_then(|json| reported(&json, &stderr)) {
        return Err(reported);
    }
    Err(match (blank, stderr.is_empty()) {
        (true, true) => PluginFailure::Silent { status },
        (true, false) => PluginFailure::Stderr { status, stderr },
        (false, _) => PluginFailure::Garbage {
            status,
            stdout: head(&output.stdout),
            stderr,
        },
    })
}

/// An error in CNI's form (CNI §5 "Error"); `msg` is the least.
fn reported(value: &Value, stderr: &str) -> Option<PluginFailure> {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    Some(PluginFailure::Reported {
        code: value.get("code").and_then(Value::as_u64)?,
        msg: head(text("msg")?.as_bytes()),
        details: head(text("details").unwrap_or_default().as_bytes()),
        stderr: stderr.into(),
    })
}

fn head(bytes: &[u8]) -> String {
    quote(bytes.get(..MAX_QUOTE).unwrap_or(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    fn call(command: Command) -> Call<'static> {
        Call {
            command,
            container_id: "c",
            netns: None,
            ifname: "eth0",
            args: &[],
            plugin_dirs: &[],
        }
    }

    /// Runs a shell script as a plugin.
    fn script(text: &str, command: Command, limit: Duration) -> Result<Value, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let input = format!(r#"{{"pad":"{}"}}"#, "x".repeat(200_000));
        execute(&path, &environment(&call(command)), input.as_bytes(), limit)
            .and_then(|output| understand(command, &output))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn environment_of_a_call() {
        let dirs = [PathBuf::from("/a"), PathBuf::from("/b c")];
        let args = [("K".to_string(), "V".to_string()), ("A".into(), "B".into())];
        let call = Call {
            netns: Some(Path::new("/run/n")),
            args: &args,
            plugin_dirs: &dirs,
            ..call(Command::Add)
        };
        let expected = [
            ("CNI_ARGS", "K=V;A=B"),
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/n"),
            ("CNI_PATH", "/a:/b c"),
        ];
        let mut got = environment(&call);
        got.sort();
        assert_eq!(got, expected.map(|(key, value)| (key, value.into())));
    }

    #[test]
    fn answers() {
        let long = Duration::from_secs(30);
        let table: &[(&str, Command, Result<&str, &str>)] = &[
            (
                "cat >/dev/null; echo '{\"a\":1}'",
                Command::Add,
                Ok(r#"{"a":1}"#),
            ),
            ("echo '{\"a\":1}'", Command::Add, Ok(r#"{"a":1}"#)),
            ("true", Command::Del, Ok("null")),
            ("echo nonsense", Command::Del, Ok("null")),
            (
                "true",
                Command::Add,
                Err("answered with success but printed no result"),
            ),
            (
                "echo nonsense",
                Command::Add,
                Err(
                    "answered with success but printed no JSON (expected ident at line 1 column 2): `nonsense`",
                ),
            ),
            (
                r#"echo '{"code":7,"msg":"bad","details":"mtu"}'; exit 1"#,
                Command::Add,
                Err("bad (code 7): mtu"),
            ),
            (
                r#"echo '{"code":11,"msg":"later"}'; exit 1"#,
                Command::Del,
                Err("later (code 11)"),
            ),
            (
                r#"echo why >&2; echo '{"code":7,"msg":"bad"}'; exit 1"#,
                Command::Add,
                Err("bad (code 7); stderr: why"),
            ),
            (
                "exit 3",
                Command::Add,
                Err("failed with exit status 3 and printed nothing"),
            ),
            (
                "kill -9 $$",
                Command::Add,
                Err("failed with signal 9 and printed nothing"),
            ),
            (
                "echo oh >&2; exit 1",
                Command::Add,
                Err("failed with exit status 1: oh"),
            ),
            (
                "echo oh >&2; echo '{}'; exit 1",
                Command::Add,
                Err("failed with exit status 1 and printed no CNI error but `{}`; stderr: oh"),
            ),
            (
                "head -c 10000000 /dev/zero",
                Command::Add,
                Err("killed: printed more than 1048576 bytes"),
            ),
            (
                "head -c 10000000 /dev/zero | tr '\\0' x >&2; echo '{}'",
                Command::Add,
                Ok("{}"),
            ),
            // what stays behind holds the pipes, and is not waited for
            ("sleep 3 & echo '{}'", Command::Add, Ok("{}")),
        ];
        for (text, command, expected) in table {
            let got = script(text, *command, long).map(|v| v.to_string());
            let expected = expected.map(str::to_string).map_err(str::to_string);
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn a_plugin_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let text = format!("echo dark >&2; sleep 3 & echo $! >{}; wait", pid.display());
        let got = script(&text, Command::Add, Duration::from_secs(1));
        assert_eq!(
            got,
            Err("killed: no answer within 1 s; stderr: dark".to_string())
        );
        let pid = std::fs::read_to_string(pid).unwrap();
        // on its way out, then a zombie until its new parent sees it; three seconds would be its own end
        let ended = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_err() || stat.is_ok_and(|s| s.contains(") Z"))
        };
        let end = Instant::now() + Duration::from_secs(1);
        while !ended() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(ended());
    }

    #[test]
    fn what_can_not_be_started() {
        let dirs = [PathBuf::from("/nonexistent")];
        assert_eq!(find("x", &dirs), Err(PluginFailure::Missing(dirs.to_vec())));
        // a record that was tampered with
        for kind in ["../bin/sh", "a/b", "..", "", "a\\b"] {
            assert_eq!(find(kind, &["/".into()]), Err(PluginFailure::NoProgram));
        }
        let got = execute(Path::new("/etc/passwd"), &[], b"", Duration::from_secs(1));
        assert_eq!(
            got.unwrap_err().to_string(),
            "can't be executed: /etc/passwd: Permission denied (os error 13)"
        );
    }
}
