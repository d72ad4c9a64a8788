//! The image store: content-addressed blobs, unpacked layers, references, leases.

pub mod build;

use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

/// Why an image operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration: the image's id.
    pub id: String,
    /// Digest of the manifest.
    pub manifest: String,
    /// Names that point to it (`docker.io/library/redis:7`).
    pub references: Vec<String>,
    /// The configuration.
    pub config: ImageConfiguration,
    /// Bytes of all its blobs.
    pub size: u64,
}

/// What long work tells about itself; the command line draws it.
pub trait Progress: Send + Sync {
    /// `total` 0: not known.
    fn advance(&self, what: &str, done: u64, total: u64);
}

/// The store below one folder.
#[derive(Debug, Clone)]
pub struct Store {
    /// `<root>`: `/var/lib/sampan` unless told otherwise.
    pub root: PathBuf,
}

impl Store {
    /// Opens the store, making its folders when they are missing.
    pub fn open(_root: &Path) -> Result<Store, Error> {
        todo!()
    }

    /// Looks an image up by reference (short names allowed: `redis` is `docker.io/library/redis:latest`), by digest, or by the beginning of its id.
    pub fn resolve(&self, _reference: &str) -> Result<Option<Image>, Error> {
        todo!()
    }

    /// The image's layer folders in overlay form, lowest first; unpacks those that are missing.
    pub fn layers(&self, _image: &Image, _progress: &dyn Progress) -> Result<Vec<PathBuf>, Error> {
        todo!()
    }

    /// Keeps images (by id) from `rm` and `prune` as long as `owner` (a pod) holds them; replaces what the owner held.
    pub fn hold(&self, _owner: &str, _images: &[String]) -> Result<(), Error> {
        todo!()
    }

    /// Ends a hold; missing is success.
    pub fn release(&self, _owner: &str) -> Result<(), Error> {
        todo!()
    }
}

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
    _reference: &str,
    _options: &PullOptions,
    _progress: &dyn Progress,
) -> Result<Image, Error> {
    todo!()
}
