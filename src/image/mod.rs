//! The image store: content-addressed blobs, unpacked layers, references, holds.
//!
//! ```text
//! registry ─ registry.rs ─┐                       ┌─ layers.rs: chain of overlay folders
//!            http.rs      ├─ ingest.rs ─ store.rs ┤    unpack.rs ← archive.rs, metadata.rs, whiteout.rs
//! file ─ import.rs        │  (verify)    (disk)   └─ collect.rs: remove, prune
//!        docker.rs       ─┘
//! ```
//!
//! Files that are no images take the same way in with the same limits: `download.rs`, `extract.rs`, `zip.rs`.
//!
//! *Invariants:* whatever came from outside is verified against its digest before it is visible;
//! every number, name and size in it has a limit; a store survives the death of any writer at any
//! instant. What is on disk and how it is locked is told in `store.rs`.
//!
//! Left to others: mounting (`rootfs`), drawing progress (`cli`).

mod archive;
mod auth;
pub mod build;
mod collect;
mod digest;
mod docker;
mod download;
mod error;
mod extract;
mod http;
mod import;
mod ingest;
mod layers;
mod manifest;
mod metadata;
pub mod reference;
mod registry;
mod store;
mod stream;
mod unpack;
mod whiteout;
mod zip;

use oci_spec::image::ImageConfiguration;

pub use collect::Pruned;
pub use digest::Digest;
pub use download::{download, shown};
pub use error::Error;
pub use extract::{Owner, extract, is_archive};
pub use import::import;
pub use manifest::{Descriptor, Platform};
pub(crate) use metadata::is_image_attribute;
pub use registry::{PullOptions, pull};
pub use store::Store;

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
    /// The configuration as it came, with what image-spec does not name (Docker's `Healthcheck`).
    pub raw_config: serde_json::Value,
    /// Bytes of all its blobs.
    pub size: u64,
}

/// What long work tells about itself; the command line draws it.
pub trait Progress: Send + Sync {
    /// `done` of `total` bytes; `total` 0: not known.
    fn advance(&self, what: &str, done: u64, total: u64);
}
