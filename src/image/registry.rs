//! Pulling from registries (distribution-spec).

use std::path::PathBuf;

use super::error::Error;
use super::store::Store;
use super::{Image, Progress};

/// How a pull reaches its registry.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// Plain http is allowed (always so for loopback addresses).
    pub plain_http: bool,
    /// Certificate authorities (PEM files) besides the host's.
    pub ca_files: Vec<PathBuf>,
    /// `os/architecture[/variant]` instead of the host's.
    pub platform: Option<String>,
}

/// Pulls `reference` into the store and unpacks nothing. Runs its own single-threaded tokio runtime.
pub fn pull(
    _store: &Store,
    reference: &str,
    _options: &PullOptions,
    _progress: &dyn Progress,
) -> Result<Image, Error> {
    Err(Error::invalid(reference, "pulling comes next"))
}
