//! Handing the listener of a seccomp filter to the agent that answers (config-linux.md "Seccomp", `listenerPath`).

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use oci_spec::runtime::LinuxSeccomp;
use serde::Serialize;

use super::{Error, chain};
use crate::init::hooks::OciState;
use crate::seccomp;
use crate::sys::socket;

/// How long an agent that accepts nothing may keep us waiting, in seconds.
const AGENT_WAIT: u64 = 10;

/// Who listens, and what it is told.
#[derive(Debug, Clone, Serialize)]
pub struct Listener {
    /// Its socket.
    pub path: PathBuf,
    /// `listenerMetadata`.
    pub metadata: Option<String>,
    /// The container's.
    pub state: OciState,
}

/// config-linux.md "The Container Process State".
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerProcessState<'a> {
    oci_version: &'a str,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: &'a OciState,
}

impl Listener {
    /// The listener that a filter needs.
    pub fn of(
        filter: Option<&seccomp::Program>,
        profile: Option<&LinuxSeccomp>,
        state: impl FnOnce() -> OciState,
    ) -> Option<Listener> {
        let profile = profile.filter(|_| filter.is_some_and(|filter| filter.notifies))?;
        Some(Listener {
            path: profile.listener_path().clone()?,
            metadata: profile.listener_metadata().clone(),
            state: state(),
        })
    }

    /// Sends `listener`, of process `pid` of a container with the first process `first`.
    pub fn send(&self, pid: i32, first: i32, listener: &OwnedFd) -> Result<(), Error> {
        let at = |error: &dyn std::error::Error| {
            Error::step(
                format!(
                    "linux.seccomp.listenerPath: failed to connect with seccomp agent {}",
                    self.path.display()
                ),
                chain(error),
            )
        };
        let state = OciState {
            pid: Some(first),
            ..self.state.clone()
        };
        let told = ContainerProcessState {
            oci_version: &self.state.oci_version,
            fds: ["seccompFd"],
            pid,
            metadata: self.metadata.as_deref(),
            state: &state,
        };
        let text = serde_json::to_vec(&told).map_err(|error| at(&error))?;
        let agent = socket::connect(&self.path, AGENT_WAIT).map_err(|error| at(&error))?;
        socket::send(&agent, &text, Some(listener)).map_err(|error| at(&error))
    }
}
