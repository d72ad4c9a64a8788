//! Compose files → [`Project`].
pub mod project;

pub use project::Project;

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What to load and with which surroundings.
#[derive(Debug, Clone)]
pub struct LoadRequest {
    /// `-f`, in order; empty: `compose.yaml`, `compose.yml`, `docker-compose.yaml`,
    /// `docker-compose.yml` (and its `.override` sibling) are looked for in `working_dir` and upwards.
    pub files: Vec<PathBuf>,
    /// Folder the search starts in, and that `.env` is read from when no file is named.
    pub working_dir: PathBuf,
    /// `-p`; otherwise `COMPOSE_PROJECT_NAME`, the file's `name:`, the folder's name.
    pub project_name: Option<String>,
    /// The process environment (it wins over `.env`).
    pub environment: BTreeMap<String, String>,
    /// `--env-file`, in order; empty: `.env` in the project folder when it exists.
    pub env_files: Vec<PathBuf>,
    /// `--profile`, in order.
    pub profiles: Vec<String>,
}

/// Why a project could not be loaded: one message that begins with `file:line:column: ` where there is a place.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Complete text for the user.
    pub message: String,
}

/// Loads, interpolates, merges and checks the files of a request. Reads files, changes nothing.
pub fn load(_request: &LoadRequest) -> Result<Project, Error> {
    todo!()
}
