//! Where errors go: standard error, and the caller's log in the form that containerd, conmon and Docker read.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use super::args::Values;
use super::{Error, NAME};
use crate::sys::stderr;

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
    let message = &worded(message);
    match line(global, "error", message) {
        // without a log, standard error has it already
        Ok(false) => {}
        Ok(true) => plain(message),
        Err(unwritten) => plain(&format!("{message}; --log: {unwritten}")),
    }
}

/// Something that the caller should know, and that does not stop us.
pub fn warning(global: &Values, message: &str) -> Result<(), Error> {
    line(global, "warning", &worded(message))
        .map(drop)
        .map_err(|error| Error::step("--log", error))
}

/// Errors of the system in the words that callers know: lower case, without the number. `No such file or directory (os error 2)` is
/// how Rust tells them.
fn worded(message: &str) -> String {
    const MARK: &str = " (os error ";
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find(MARK) {
        let (head, tail) = rest.split_at(at);
        let number = tail.trim_start_matches(MARK);
        let end = number.find(')').unwrap_or(0);
        let known = number.get(..end).and_then(|digits| digits.parse().ok());
        let told = known.map(|number| std::io::Error::from_raw_os_error(number).to_string());
        let length = MARK.len() + end + 1;
        match (told, rest.get(..at + length), tail.get(length..)) {
            (Some(told), Some(whole), Some(after)) if whole.ends_with(&told) => {
                let words = told.get(..told.len() - length).unwrap_or_default();
                out.push_str(head.strip_suffix(words).unwrap_or(head));
                out.extend(words.chars().next().map(|first| first.to_ascii_lowercase()));
                out.extend(words.chars().skip(1));
                rest = after;
            }
            _ => {
                out.push_str(head);
                out.push_str(MARK);
                rest = number;
            }
        }
    }
    out + rest
}

/// One line to the log; without a log to standard error, and `false`.
fn line(global: &Values, level: &str, message: &str) -> std::io::Result<bool> {
    let text = if is_json(global) {
        json(level, message)
    } else {
        let time = jiff::Timestamp::now();
        format!("time={:?} level={level} msg={message:?}", time.to_string())
    };
    let Some(path) = global.path("log") else {
        if level == "error" && !is_json(global) {
            plain(message);
        } else {
            stderr::line(&text);
        }
        return Ok(false);
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
    stderr::line(format_args!("{NAME}: {message}"));
}

#[cfg(test)]
mod tests {
    use super::worded;

    #[test]
    fn errors_of_the_system() {
        for (message, want) in [
            ("", ""),
            ("read /x: no", "read /x: no"),
            (
                "open /A: No such file or directory (os error 2)",
                "open /A: no such file or directory",
            ),
            (
                "a: Permission denied (os error 13): why; b: Device or resource busy (os error 16)",
                "a: permission denied: why; b: device or resource busy",
            ),
            ("x (os error 2)", "x (os error 2)"),
            ("x (os error ", "x (os error "),
            ("x (os error 2) (os error é)", "x (os error 2) (os error é)"),
        ] {
            assert_eq!(worded(message), want, "{message}");
        }
    }
}
