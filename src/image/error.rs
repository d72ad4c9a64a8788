//! What can go wrong with images, in the words that a person acts on.

use std::io;
use std::path::Path;

/// Why an image operation failed.
///
/// Display says what was tried and with which object; causes hang on [`std::error::Error::source`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is no image reference.
    #[error("{reference:?} is no image reference: {why}; write [registry/]name[:tag][@sha256:...]")]
    Reference {
        /// The text as given.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// Neither a reference nor an id in the store.
    #[error("no image {0} in the store; pull or import it first")]
    Unknown(String),
    /// The beginning of an id fits several images.
    #[error("{prefix:?} is the beginning of {count} image ids; give more digits")]
    Ambiguous {
        /// The text as given.
        prefix: String,
        /// How many ids begin with it.
        count: usize,
    },
    /// The image is in use.
    #[error("image {image} is held by {owners}; end that first", owners = .owners.join(", "))]
    Held {
        /// The image's id.
        image: String,
        /// Who holds it: pods.
        owners: Vec<String>,
    },
    /// Content that isn't what its digest says.
    #[error(
        "{what} has digest {actual} instead of {expected}; it was changed on the way or at its origin, get it again from a source you trust"
    )]
    Digest {
        /// The object.
        what: String,
        /// Digest in its descriptor.
        expected: String,
        /// Digest of what came.
        actual: String,
    },
    /// Content that is shorter or longer than its descriptor says.
    #[error("{what} has {actual} bytes instead of {expected}; get it again")]
    Size {
        /// The object.
        what: String,
        /// Bytes in its descriptor.
        expected: u64,
        /// Bytes that came.
        actual: u64,
    },
    /// No manifest in the index fits.
    #[error("{what} has no image for {wanted}, only for {available}; name one of these with --platform", available = .available.join(", "))]
    Platform {
        /// The reference or file.
        what: String,
        /// `os/architecture[/variant]`.
        wanted: String,
        /// What it has.
        available: Vec<String>,
    },
    /// The registry knows no such image.
    #[error(
        "registry {registry} has no image {reference} ({answer}); check name and tag, and whether it needs a login"
    )]
    NotFound {
        /// Host and port.
        registry: String,
        /// What was asked for.
        reference: String,
        /// The registry's words.
        answer: String,
    },
    /// The registry wants a login, or another one.
    #[error("registry {registry} refuses access to {reference} ({answer}); {advice}")]
    Unauthorized {
        /// Host and port.
        registry: String,
        /// What was asked for.
        reference: String,
        /// The registry's words.
        answer: String,
        /// Where the login came from or where to put one.
        advice: String,
    },
    /// No answer from the registry.
    #[error("registry {registry} can't be reached: {why}; {advice}")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// The innermost cause.
        why: String,
        /// What to look at.
        advice: String,
    },
    /// The registry answered with an error of its own.
    #[error("registry {registry} failed on {what}: {answer}; try again later")]
    Registry {
        /// Host and port.
        registry: String,
        /// What was asked for.
        what: String,
        /// The registry's words.
        answer: String,
    },
    /// Content that breaks a specification or a limit.
    #[error("{what}: {why}")]
    Invalid {
        /// The object: a path, a digest, an entry of an archive.
        what: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A system call failed.
    #[error("{doing}")]
    Io {
        /// The operation with its object.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Invalid {
            what: what.into(),
            why: why.into(),
        }
    }
}

/// Adds the operation to an I/O error.
pub(super) trait Context<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;

    /// `verb` with a path.
    fn at(self, verb: &str, path: &Path) -> Result<T, Error>
    where
        Self: Sized,
    {
        self.doing(|| format!("{verb} {}", path.display()))
    }
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Io {
            doing: what(),
            source: source.into(),
        })
    }
}
