//! The one error type of the plugins and its form on stdout (CNI §"Error").
//!
//! *Invariants*: `code` is one of the constants below; `msg` names the object that failed; `details` holds the cause.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

/// The configuration's `cniVersion` isn't supported, or doesn't know the command.
pub const INCOMPATIBLE_VERSION: u32 = 1;
/// The configuration asks for something that this plugin doesn't do; `msg` holds key and value.
pub const UNSUPPORTED_FIELD: u32 = 2;
/// A `CNI_*` variable is missing or malformed.
pub const INVALID_ENVIRONMENT: u32 = 4;
/// Reading or writing failed.
pub const IO_FAILURE: u32 = 5;
/// Input isn't JSON of the expected shape.
pub const DECODE_FAILURE: u32 = 6;
/// The configuration is understood and wrong.
pub const INVALID_CONFIG: u32 = 7;
/// STATUS: an ADD would fail.
pub const NOT_AVAILABLE: u32 = 50;
/// CHECK found something else than ADD left.
pub const CHECK_FAILED: u32 = 100;
/// No address is free, or the wanted one is taken.
pub const NO_ADDRESS: u32 = 101;
/// A host port belongs to another container.
pub const PORT_TAKEN: u32 = 102;
/// The kernel refused an operation.
pub const OPERATION_FAILED: u32 = 999;

/// Why a plugin failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// Numeric code of the specification (below 100) or of these plugins.
    pub code: u32,
    /// What failed, with the object.
    pub msg: String,
    /// The cause; may be empty.
    pub details: String,
}

/// Result of everything here.
pub type Result<T> = std::result::Result<T, CniError>;

impl CniError {
    /// An error without a further cause.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// Adds the cause.
    pub fn because(mut self, cause: impl ToString) -> Self {
        self.details = cause.to_string();
        self
    }

    /// A file operation that failed.
    pub fn io(verb: &str, path: &Path, cause: &io::Error) -> Self {
        Self::new(IO_FAILURE, format!("cannot {verb} {}", path.display())).because(cause)
    }

    /// A configuration that is understood and wrong.
    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(INVALID_CONFIG, msg)
    }

    /// A known key whose value isn't supported here.
    pub fn unsupported(key: &str, why: &str) -> Self {
        Self::new(
            UNSUPPORTED_FIELD,
            format!("{key} is not supported by this plugin"),
        )
        .because(why)
    }

    /// The error as the answer of STATUS.
    pub fn unavailable(self) -> Self {
        Self {
            code: NOT_AVAILABLE,
            ..self
        }
    }

    /// What CHECK found.
    pub fn check(msg: impl Into<String>) -> Self {
        Self::new(CHECK_FAILED, msg)
    }

    /// A kernel operation that failed.
    pub fn operation(what: impl Into<String>, cause: impl ToString) -> Self {
        Self::new(OPERATION_FAILED, what).because(cause)
    }

    /// The object printed on stdout.
    pub fn to_json(&self, cni_version: &str) -> Value {
        json!({"cniVersion": cni_version, "code": self.code, "msg": self.msg, "details": self.details})
    }
}

/// Runs every step of a teardown; the first error is returned with the others in its details.
pub fn all(steps: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let mut errors = steps.into_iter().filter_map(Result::err);
    let Some(mut first) = errors.next() else {
        return Ok(());
    };
    for next in errors {
        if !first.details.is_empty() {
            first.details.push_str("; ");
        }
        first.details.push_str(&next.to_string());
    }
    Err(first)
}

/// An error, and what went wrong while its traces were removed.
pub fn with_undo(error: CniError, undone: Result<()>) -> CniError {
    match all([Err(error.clone()), undone]) {
        Err(both) => both,
        Ok(()) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_json() {
        let error = CniError::config("no range").because("subnet is missing");
        assert_eq!(error.to_string(), "no range: subnet is missing");
        assert_eq!(
            error.to_json("1.0.0"),
            json!({"cniVersion": "1.0.0", "code": 7, "msg": "no range", "details": "subnet is missing"})
        );
        assert_eq!(CniError::config("no range").to_string(), "no range");
    }

    #[test]
    fn teardown_reports_every_error() {
        assert_eq!(all([Ok(()), Ok(())]), Ok(()));
        let error = all([
            Err(CniError::config("a")),
            Ok(()),
            Err(CniError::config("b")),
        ]);
        assert_eq!(error.map_err(|e| e.to_string()), Err("a: b".to_owned()));
    }
}
