//! A compose project as one pod: one network namespace, one cgroup, one supervisor.
//!
//! ```text
//! up ──► keeper            reaps every container, writes exit records, restarts the supervisor
//!          ├─ supervisor   starts, watches, probes, restarts, stops; writes logs; answers the control socket
//!          │    └─ sandbox-up, create, start, exec, delete   short single-threaded processes of our own
//!          └─ container inits (their parent, `create`, has ended)
//! ```
//!
//! Owns the pod's folder (see [`layout`]). *Invariants:* what must survive a kill is on disk before it takes
//! effect; every file there is written by one owner; removing a pod needs nothing but its folder.

pub mod adopt;
mod borrowed;
pub mod bundle;
pub mod checks;
pub mod control;
mod copy;
pub mod follow;
pub mod gc;
pub mod hooks;
pub mod input;
pub mod interfaces;
pub mod keeper;
pub mod layout;
pub mod lock;
pub mod logs;
pub mod plan;
pub mod ports;
pub mod profile;
pub mod record;
mod resolver;
pub mod sandbox;
pub mod stores;
pub mod supervisor;
pub mod tasks;
pub mod teardown;
pub mod up;
pub mod users;
pub mod volumes;
pub mod watch;

use std::io;
use std::path::{Path, PathBuf};

/// Why something with a pod failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// Verb.
        what: &'static str,
        /// Object.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// A record of ours that cannot be read.
    #[error("read {}: {source}", path.display())]
    Record {
        /// File.
        path: PathBuf,
        /// Reason.
        source: serde_json::Error,
    },
    /// Network set-up or removal.
    #[error(transparent)]
    Network(#[from] crate::network::Error),
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::Error),
    /// Images.
    #[error(transparent)]
    Image(#[from] crate::image::Error),
    /// A service could not be started; the code is what the command ends with (125, 126, 127).
    #[error("{message}")]
    Start {
        /// Exit code.
        code: u8,
        /// Complete text.
        message: String,
        /// The service, where it is one.
        service: Option<String>,
    },
    /// Somebody writes to the standard input of the service already.
    #[error(
        "somebody else has the standard input of service {0}; wait until they leave, or look on with --no-stdin"
    )]
    Busy(String),
    /// A named volume of another pod, too.
    #[error(
        "volume {volume} is in use by pod {pod}; remove that one first (`sampan -p {pod} down`)"
    )]
    VolumeInUse {
        /// Its name.
        volume: String,
        /// One of those that name it.
        pod: String,
    },
    /// The user asked to stop by a signal.
    #[error("interrupted by signal {signal}")]
    Interrupted {
        /// Its number.
        signal: i32,
    },
    /// Several failures of a removal that went on.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
    /// Anything else: complete text.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// For `map_err` on file operations.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { what, path, source }
    }

    /// Success when there are none.
    pub fn all(errors: impl IntoIterator<Item = Error>) -> Result<()> {
        let mut errors: Vec<Error> = errors.into_iter().collect();
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }

    /// The service that is the reason, where one is.
    pub fn service(&self) -> Option<&str> {
        match self {
            Error::Start { service, .. } => service.as_deref(),
            Error::Several(errors) => errors.first()?.service(),
            _ => None,
        }
    }

    /// Exit code for the command line.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Start { code, .. } => *code,
            Error::Interrupted { signal } => u8::try_from(128 + signal).unwrap_or(1),
            // the first is why the others came up
            Error::Several(errors) => errors.first().map_or(1, Error::exit_code),
            _ => 1,
        }
    }
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;
