//! What can go wrong with a cgroup.
//!
//! *Invariants:* every error names the folder, file, field or unit that it is about, and has the system's answer as its source.

use std::io;
use std::path::PathBuf;

/// Why a cgroup operation failed; names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused a value.
    #[error("write {value:?} to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A folder could not be made.
    #[error("create cgroup {} (a parent that may be written to can be chosen with --cgroup-parent)", path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A folder could not be removed.
    #[error("remove cgroup {}", path.display())]
    Remove {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A limit needs a controller that is not there.
    #[error("set {what}: controller {controller} is not available: {why}")]
    Controller {
        /// The controller, as in `cgroup.controllers` or /proc/cgroups.
        controller: String,
        /// The file or action it was wanted for.
        what: String,
        /// What stands in the way, and the remedy.
        why: String,
    },
    /// A value makes no sense, or no sense on this kind of hierarchy.
    #[error("linux.resources.{field}: {why}")]
    Invalid {
        /// The place in the OCI specification.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// A path that is no cgroup path.
    #[error("cgroup path {path:?}: {why}")]
    Path {
        /// As given.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No hierarchy was found.
    #[error("no usable cgroup hierarchy: {0}")]
    Hierarchy(String),
    /// Processes outlived SIGKILL.
    #[error("cgroup {}: processes {pids:?} are still there after SIGKILL (uninterruptible sleep?)", path.display())]
    Survivors {
        /// The cgroup.
        path: PathBuf,
        /// Who is left.
        pids: Vec<i32>,
    },
    /// The freezer did not get there.
    #[error("cgroup {}: still not {wanted} after {seconds} s", path.display())]
    Freeze {
        /// The cgroup.
        path: PathBuf,
        /// `frozen` or `thawed`.
        wanted: &'static str,
        /// How long we waited.
        seconds: u64,
    },
    /// The caller asked to kill or freeze itself.
    #[error("refuse to {action} cgroup {}: this process is in it", path.display())]
    Own {
        /// `kill` or `freeze`.
        action: &'static str,
        /// The cgroup.
        path: PathBuf,
    },
    /// The device filter could not be installed.
    #[error("device rules of cgroup {}: {call}", path.display())]
    Devices {
        /// The cgroup.
        path: PathBuf,
        /// The failed call.
        call: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The cgroup is somebody's: a container would share limits and fate with processes that are not its own.
    #[error("container's cgroup is not empty: {count} process(es) found in {}", path.display())]
    InUse {
        /// The cgroup.
        path: PathBuf,
        /// Processes in it and below.
        count: usize,
    },
    /// A process put there would not run.
    #[error("container's cgroup unexpectedly frozen: {}; thaw it or name another cgroupsPath", path.display())]
    Frozen {
        /// The cgroup.
        path: PathBuf,
    },
    /// systemd could not be asked, or refused.
    #[error("systemd: {what}: {why}")]
    Systemd {
        /// What was asked for, with the unit.
        what: String,
        /// What stands in the way.
        why: String,
    },
    /// Several things failed; all are told.
    #[error("{}", several(.0))]
    Several(Vec<Error>),
}

fn several(errors: &[Error]) -> String {
    let chain = |error: &Error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        text
    };
    errors.iter().map(chain).collect::<Vec<_>>().join("; ")
}

/// All errors as one result.
pub(super) fn collect(results: impl IntoIterator<Item = Result<(), Error>>) -> Result<(), Error> {
    let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Several(errors)),
    }
}
