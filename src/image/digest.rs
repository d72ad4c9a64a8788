//! Digests: parsing, and readers and writers that compute them on the way.
//!
//! *Invariant:* a [`Digest`] is `sha256:` and 64 lower-case hexadecimal digits, so its hex part is
//! safe as a file name.

use std::fmt;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::error::Error;

const PREFIX: &str = "sha256:";

/// The digest of a blob (image-spec descriptor.md, "Digests"); SHA-256 only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Parses `sha256:<hex>`; `what` names the owner of the digest in errors.
    pub fn parse(text: &str, what: &str) -> Result<Digest, Error> {
        let fits = text.strip_prefix(PREFIX).is_some_and(is_hex_digest);
        if fits {
            return Ok(Digest(text.to_owned()));
        }
        let shown: String = text.chars().take(100).collect();
        Err(Error::invalid(
            what,
            format!("digest {shown:?} is not sha256 with 64 lower-case hexadecimal digits"),
        ))
    }

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The hexadecimal part.
    pub fn hex(&self) -> &str {
        self.0.get(PREFIX.len()..).unwrap_or_default()
    }

    /// `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` is the hexadecimal part of a SHA-256 digest.
pub(super) fn is_hex_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// SHA-256 in steps.
#[derive(Default, Clone)]
pub(super) struct Hasher(Sha256);

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> Digest {
        let mut text = String::with_capacity(PREFIX.len() + 64);
        text.push_str(PREFIX);
        for byte in self.0.finalize() {
            text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
            text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
        }
        Digest(text)
    }
}

/// Hashes and counts what is read through it.
pub(super) struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    bytes: u64,
}

impl<R: Read> HashingReader<R> {
    pub(super) fn new(inner: R) -> Self {
        HashingReader {
            inner,
            hasher: Hasher::default(),
            bytes: 0,
        }
    }

    /// Digest and number of the bytes read.
    pub(super) fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.bytes)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_of_nothing() {
        assert_eq!(Digest::of(b"").as_str(), EMPTY);
        assert_eq!(Digest::of(b"").hex(), &EMPTY[7..]);
    }

    #[test]
    fn only_lower_case_sha256() {
        assert!(Digest::parse(EMPTY, "x").is_ok());
        let upper = EMPTY.replace("e3b0", "E3B0");
        for bad in [
            "",
            "sha256:",
            "sha256:../../etc/passwd",
            upper.as_str(),
            &EMPTY[..70],
            "sha512:00",
        ] {
            assert!(Digest::parse(bad, "x").is_err(), "{bad}");
        }
    }
}
