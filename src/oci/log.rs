//! Where errors go: standard error, and the caller's log in the form that containerd, conmon and Docker read.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use super::args::Values;
use super::{Error, NAME};

/// Whether the log can be written in the form that was asked for: said before anything is done.
pub fn check(global: &Values) -> Result<(), Error> {
    match global.text("log-format")? {
        None | Some("text" | "json") => {}
        Some(other) => {
            return Err(Error::new(format!(
                "--log-format: {other:?} is unknown, only text and json are"
            )));
        }
    }
    match global.text("rootless")? {
        None | Some("true" | "false" | "auto") => {}
        Some(other) => {
            return Err(Error::new(format!(
                "--rootless: {other:?} is unknown, only true, false and auto are"
            )));
        }
    }
    if global.has("debug") {
        let words: Vec<String> = std::env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        return line(global, "debug", &words.join(" "))
            .map(drop)
            .map_err(|error| Error::step("--log", error));
    }
    Ok(())
}

/// A failure, where the caller looks for it. Standard error gets it in any case, so that nobody has to look twice.
pub fn error(global: &Values, message: &str) {
    match line(global, "error", message) {
        // without a log, standard error has it already
        Ok(false) => {}
        Ok(true) => plain(message),
        Err(unwritten) => plain(&format!("{message}; --log: {unwritten}")),
    }
}

/// Something that the caller should know, and that does not stop us.
pub fn warning(global: &Values, message: &str) -> Result<(), Error> {
    line(global, "warning", message)
        .map(drop)
        .map_err(|error| Error::step("--log", error))
}

/// One line to the log; without a log to standard error, and `false`.
fn line(global: &Values, level: &str, message: &str) -> std::io::Result<bool> {
    let Some(path) = global.path("log") else {
        if is_json(global) {
            eprintln!("{}", json(level, message));
        } else if level == "error" {
            plain(message);
        } else {
            plain(&format!("{level}: {message}"));
        }
        return Ok(false);
    };
    let text = if is_json(global) {
        json(level, message)
    } else {
        let time = jiff::Timestamp::now();
        format!("time={:?} level={level} msg={message:?}", time.to_string())
    };
    // one write: lines of several processes do not mix
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o644)
        .open(path)?
        .write_all(format!("{text}\n").as_bytes())?;
    Ok(true)
}

fn is_json(global: &Values) -> bool {
    global
        .get("log-format")
        .is_some_and(|format| format == "json")
}

fn json(level: &str, message: &str) -> String {
    let time = jiff::Timestamp::now().to_string();
    serde_json::json!({"level": level, "msg": message, "time": time}).to_string()
}

fn plain(message: &str) {
    eprintln!("{NAME}: {message}");
}
