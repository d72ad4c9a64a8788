//! The front door for callers of an OCI runtime: runc's command line over [`crate::container`].
//!
//! ```text
//! table     commands and options, once        args    words → Invocation, pure
//! store     ROOT/ID: names, locks, records    log     where errors go
//! ```
//!
//! *Invariants:*
//! * What the words say is decided before anything is touched; what is not understood is an error.
//! * Standard output holds what was asked for and nothing else; errors go to the log and to standard error, in one line.
//! * A container's folder is changed by the holder of its lock only.
//! * Whatever was left by a command that was killed, `delete --force` removes.
//!
//! The life of a container itself is [`crate::container`]'s.

pub mod args;
mod create;
mod events;
mod exec;
mod features;
mod help;
mod life;
mod log;
mod show;
mod signal;
mod spec;
mod store;
pub mod table;
mod update;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use args::{Parsed, Values};

pub use help::clap as command;

/// Name that makes the program an OCI runtime.
pub const NAME: &str = "sampan-oci";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
}

impl Error {
    /// With what, where, why.
    pub fn new(message: impl Into<String>) -> Error {
        Error {
            message: message.into(),
        }
    }

    /// A step that failed.
    fn step(step: impl std::fmt::Display, error: impl std::fmt::Display) -> Error {
        Error::new(format!("{step}: {error}"))
    }
}

impl From<crate::container::Error> for Error {
    fn from(error: crate::container::Error) -> Error {
        Error::new(error.to_string())
    }
}

/// Whether the process was started under our name.
pub fn is_meant(name: &OsStr) -> bool {
    Path::new(name).file_name() == Some(OsStr::new(NAME))
}

/// Runs the command that `words`, those behind the program's name, ask for.
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    // files and folders have the modes we give them, whatever the caller's mask
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let mut global = Values::default();
    let (error, failed) = match args::parse(words, &mut global) {
        Ok(Parsed::Help(command)) => return print(&help::text(command)),
        Ok(Parsed::Version) => return print(&help::version()),
        Ok(Parsed::Run(call)) => {
            match log::check(&call.global).and_then(|()| (call.command.run)(&call)) {
                Ok(code) => return ExitCode::from(code),
                Err(error) => {
                    global = call.global;
                    (error, call.command.failed)
                }
            }
        }
        Err(error) => (error, 1),
    };
    log::error(&global, &error.message);
    ExitCode::from(failed)
}

/// Standard output, whole; a reader that went away has what it wanted.
fn print(text: &str) -> ExitCode {
    match put(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn put(text: &str) -> Result<(), Error> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::step("write to standard output", error))
        }
        _ => Ok(()),
    }
}
