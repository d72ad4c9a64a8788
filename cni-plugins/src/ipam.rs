//! Delegation of addresses to another plugin (CNI §4 "Plugin Delegation").
//!
//! *Invariants*: a plugin found in `CNI_PATH` is executed; only one that isn't there and is built in runs in process.
//! What a plugin prints is bounded.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

use serde_json::Value;

use crate::conf::{Conf, valid_name};
use crate::error::{
    CniError, DECODE_FAILURE, INVALID_CONFIG, OPERATION_FAILED, Result, all, with_undo,
};
use crate::result::AddResult;
use crate::skel::{Command, Invocation, MAX_JSON};

/// Gives what the address plugin answers, or nothing where none is configured, to `then`, and takes it back when that fails.
pub fn lease<T>(
    conf: &Conf,
    invocation: &Invocation,
    then: impl FnOnce(AddResult) -> Result<T>,
) -> Result<T> {
    let Some(kind) = conf.ipam_type() else {
        return then(AddResult::default());
    };
    let answer = exec(kind, invocation)?;
    let result = AddResult::from_json(&answer, &format!("the answer of {kind}"));
    let used = result.and_then(|result| {
        if result.ips.is_empty() {
            return Err(CniError::config(format!(
                "address plugin {kind} returned no address for network {}",
                conf.name
            )));
        }
        then(result)
    });
    used.map_err(|error| {
        let release = Invocation {
            command: Command::Del,
            ..invocation.clone()
        };
        with_undo(error, call(conf, &release))
    })
}

/// Any other command of the address plugin, where one is configured.
pub fn call(conf: &Conf, invocation: &Invocation) -> Result<()> {
    conf.ipam_type()
        .map_or(Ok(()), |kind| exec(kind, invocation).map(|_| ()))
}

/// DEL of the address plugin after `delete`: nobody may have an address while it is still in use here. A client of DHCP
/// needs the interface to give its lease back.
pub fn release(
    conf: &Conf,
    invocation: &Invocation,
    delete: impl FnOnce() -> Result<()>,
) -> Result<()> {
    if conf.ipam_type() == Some("dhcp") {
        all([call(conf, invocation), delete()])
    } else {
        all([delete(), call(conf, invocation)])
    }
}

fn exec(kind: &str, invocation: &Invocation) -> Result<Value> {
    // a type is a file name: never a path that leaves CNI_PATH
    if !valid_name(kind) {
        return Err(CniError::new(
            INVALID_CONFIG,
            format!("invalid plugin name {kind:?} in ipam.type"),
        ));
    }
    match invocation
        .path
        .iter()
        .map(|folder| folder.join(kind))
        .find(|path| path.is_file())
    {
        Some(path) => execute(&path, invocation),
        None if crate::BUILT_IN.contains(&kind) => crate::run(kind, invocation),
        None => Err(CniError::new(
            INVALID_CONFIG,
            format!(
                "failed to find plugin {kind:?} in path {:?}",
                invocation.path
            ),
        )),
    }
}

fn execute(path: &PathBuf, invocation: &Invocation) -> Result<Value> {
    let failed = |what: &str, cause: &dyn std::fmt::Display| {
        CniError::new(
            OPERATION_FAILED,
            format!("cannot {what} {}", path.display()),
        )
        .because(cause)
    };
    let folders: Vec<String> = invocation
        .path
        .iter()
        .map(|folder| folder.to_string_lossy().into_owned())
        .collect();
    let mut child = Process::new(path)
        .env("CNI_COMMAND", invocation.command.as_str())
        .env("CNI_CONTAINERID", &invocation.container_id)
        .env("CNI_NETNS", invocation.netns.clone().unwrap_or_default())
        .env("CNI_IFNAME", &invocation.ifname)
        .env("CNI_ARGS", &invocation.args)
        .env("CNI_PATH", folders.join(":"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|cause| failed("run", &cause))?;
    let mut written = Ok(());
    if let Some(mut stdin) = child.stdin.take() {
        written = stdin.write_all(invocation.config.to_string().as_bytes());
    }
    let mut output = Vec::new();
    let mut read = Ok(0);
    if let Some(stdout) = child.stdout.take() {
        read = stdout.take(MAX_JSON + 1).read_to_end(&mut output);
    }
    if output.len() as u64 > MAX_JSON {
        // what can't be read can't be waited for either; it may be gone already
        let _ = child.kill();
    }
    let status = child.wait().map_err(|cause| failed("wait for", &cause))?;
    read.map_err(|cause| failed("read the answer of", &cause))?;
    if output.len() as u64 > MAX_JSON {
        return Err(failed(
            "use the answer of",
            &format!("longer than {MAX_JSON} bytes"),
        ));
    }
    if !status.success() {
        return Err(error_of(&output).unwrap_or_else(|| failed("run", &status)));
    }
    // a plugin that needs no input may close it early
    if let Err(cause) = written
        && cause.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(failed("write the configuration to", &cause));
    }
    if output.trim_ascii().is_empty() && invocation.command != Command::Add {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output).map_err(|cause| {
        CniError::new(
            DECODE_FAILURE,
            format!("the answer of {} is not JSON", path.display()),
        )
        .because(cause)
    })
}

fn error_of(output: &[u8]) -> Option<CniError> {
    let value: Value = serde_json::from_slice(output).ok()?;
    let text = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    Some(CniError {
        code: value
            .get("code")
            .and_then(Value::as_u64)
            .and_then(|code| u32::try_from(code).ok())?,
        msg: text("msg"),
        details: text("details"),
    })
}
