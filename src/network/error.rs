//! Why a network operation failed, in a form that says what, where and what to do.
//!
//! *Invariant:* text from plugins and files is cut to a few kilobytes before it becomes part of an error.

use std::io;
use std::path::{Path, PathBuf};

use super::invoke::Command;

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A network configuration can't be used.
    #[error("{file}{}: {why}", .line.map(|l| format!(":{l}")).unwrap_or_default())]
    Config {
        /// File, or where else the configuration comes from.
        file: String,
        /// Line of a JSON error, counted from 1.
        line: Option<usize>,
        /// What is wrong and what would be right.
        why: String,
    },
    /// No network list has this name.
    #[error("no CNI network list `{name}` in {}{}", join(.dirs), unreadable(.broken))]
    NotFound {
        /// The name asked for.
        name: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
        /// Files that could not be read: one of them may hold it.
        broken: Vec<Error>,
    },
    /// A value handed to this module is not possible.
    #[error("{what}: {why}")]
    Invalid {
        /// What it is, with its value or key.
        what: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The system refused something.
    #[error("{what}")]
    Io {
        /// What we were doing, with the object.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A plugin failed, could not be run or answered nonsense.
    #[error("CNI plugin `{plugin}` of network `{network}` ({from}), {command}: {why}")]
    Plugin {
        /// `type` of the plugin.
        plugin: String,
        /// Name of the network list.
        network: String,
        /// Where the list comes from.
        from: String,
        /// What it was told to do.
        command: Command,
        /// What happened.
        why: Box<PluginFailure>,
    },
    /// Several things failed, one after the other.
    #[error("{}", .0.iter().map(chain).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
    /// Something failed, and undoing what had been done before failed as well.
    #[error("{}; undoing it failed too: {}", chain(.first), .undo.iter().map(chain).collect::<Vec<_>>().join("; "))]
    Undo {
        /// The failure itself.
        first: Box<Error>,
        /// Failures of the clean-up.
        undo: Vec<Error>,
    },
}

/// How a plugin failed (CNI §2 and §5 "Error").
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PluginFailure {
    /// It is in none of the folders and not built in.
    #[error("not found in {} and not built in; install it or correct `type`", join(.0))]
    Missing(Vec<PathBuf>),
    /// Its name leads out of the folders (CVE-2021-20206).
    #[error("`type` must be the name of a plugin, without a path")]
    NoProgram,
    /// It could not be started.
    #[error("can't be executed: {0}")]
    Start(String),
    /// It reported an error in CNI's form.
    #[error("{msg} (code {code}){}{}{}", lead(": ", .details), .details, said(.stderr))]
    Reported {
        /// CNI error code; below 100 well known.
        code: u64,
        /// `msg`.
        msg: String,
        /// `details`, empty when absent.
        details: String,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// It failed without a word.
    #[error("failed with {status} and printed nothing")]
    Silent {
        /// Exit status or signal.
        status: String,
    },
    /// It failed and wrote to stderr only.
    #[error("failed with {status}: {stderr}")]
    Stderr {
        /// Exit status or signal.
        status: String,
        /// The end of what it wrote.
        stderr: String,
    },
    /// It failed, and what it printed is not an error in CNI's form.
    #[error("failed with {status} and printed no CNI error but `{stdout}`{}", said(.stderr))]
    Garbage {
        /// Exit status or signal.
        status: String,
        /// The beginning of what it printed.
        stdout: String,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// It succeeded, and what it printed can't be understood.
    #[error("answered with success but {0}")]
    BadResult(String),
    /// It did not end in time and was killed.
    #[error("killed: no answer within {seconds} s{}", said(.stderr))]
    Timeout {
        /// What it had.
        seconds: u64,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// It printed more than is taken and was killed.
    #[error("killed: printed more than {0} bytes")]
    TooMuch(usize),
}

impl Error {
    /// An [`Error::Io`]; for use in `map_err`.
    pub(super) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
        let what = what.into();
        move |e| Error::Io {
            what,
            source: e.into(),
        }
    }

    /// An [`Error::Invalid`].
    pub(super) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Invalid {
            what: what.into(),
            why: why.into(),
        }
    }

    /// Several errors as one; `Ok` when there are none.
    pub(super) fn all(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }

    /// This error, with what went wrong while undoing.
    pub(super) fn with_undo(self, undo: Vec<Error>) -> Error {
        if undo.is_empty() {
            return self;
        }
        Error::Undo {
            first: Box::new(self),
            undo,
        }
    }
}

/// `path: verb` for [`Error::io`].
pub(super) fn doing(verb: &str, path: &Path) -> String {
    format!("{verb} {}", path.display())
}

/// An error with its sources, for errors that are part of another one's text.
fn chain(e: &Error) -> String {
    match e {
        Error::Io { what, source } => format!("{what}: {source}"),
        other => other.to_string(),
    }
}

fn lead(mark: &'static str, text: &str) -> &'static str {
    if text.is_empty() { "" } else { mark }
}

fn said(stderr: &str) -> String {
    format!("{}{stderr}", lead("; stderr: ", stderr))
}

fn join(dirs: &[PathBuf]) -> String {
    if dirs.is_empty() {
        return "no folder at all".into();
    }
    let names: Vec<_> = dirs.iter().map(|d| d.display().to_string()).collect();
    names.join(", ")
}

fn unreadable(broken: &[Error]) -> String {
    if broken.is_empty() {
        return String::new();
    }
    let all: Vec<_> = broken.iter().map(chain).collect();
    format!("; unreadable there: {}", all.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let io = || Error::io("open /x")(io::Error::from_raw_os_error(2));
        let table = [
            (
                Error::Config {
                    file: "/a/b".into(),
                    line: Some(3),
                    why: "no".into(),
                },
                "/a/b:3: no",
            ),
            (
                Error::NotFound {
                    name: "n".into(),
                    dirs: vec!["/a".into(), "/b".into()],
                    broken: vec![io()],
                },
                "no CNI network list `n` in /a, /b; unreadable there: open /x: No such file or directory (os error 2)",
            ),
            (
                Error::invalid("a", "b").with_undo(vec![io()]),
                "a: b; undoing it failed too: open /x: No such file or directory (os error 2)",
            ),
            (
                Error::Plugin {
                    plugin: "bridge".into(),
                    network: "n".into(),
                    from: "/f".into(),
                    command: Command::Add,
                    why: Box::new(PluginFailure::Reported {
                        code: 7,
                        msg: "bad".into(),
                        details: "mtu".into(),
                        stderr: String::new(),
                    }),
                },
                "CNI plugin `bridge` of network `n` (/f), ADD: bad (code 7): mtu",
            ),
        ];
        for (error, text) in table {
            assert_eq!(error.to_string(), text);
        }
    }
}
