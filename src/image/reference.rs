//! Image references: what a person writes, and the one form the store and registries know.
//!
//! *Invariant:* the normal form names registry, repository and either a tag or a digest; a tag
//! beside a digest says nothing and is dropped.

use oci_spec::distribution::Reference;

use super::digest::Digest;
use super::error::Error;

/// Longer text is no reference; bounds what the grammar's matcher is given.
const MAX_LENGTH: usize = 1024;

/// Parses and normalises: `redis` is `docker.io/library/redis:latest`.
pub fn parse(text: &str) -> Result<Reference, Error> {
    let error = |why: String| Error::Reference {
        reference: text.chars().take(100).collect(),
        why,
    };
    if text.len() > MAX_LENGTH {
        return Err(error(format!("it has more than {MAX_LENGTH} bytes")));
    }
    let parsed: Reference = text.parse().map_err(|why| error(format!("{why}")))?;
    let registry = parsed.registry().to_owned();
    let repository = parsed.repository().to_owned();
    match parsed.digest() {
        Some(digest) => {
            Digest::parse(digest, text)?;
            Ok(Reference::with_digest(
                registry,
                repository,
                digest.to_owned(),
            ))
        }
        None => {
            let tag = parsed.tag().unwrap_or("latest").to_owned();
            Ok(Reference::with_tag(registry, repository, tag))
        }
    }
}

/// The normal form as text.
pub fn normalise(text: &str) -> Result<String, Error> {
    Ok(parse(text)?.whole())
}

/// The normal form of a well-formed text without digest; what is not well-formed gives nothing that is in a store. For
/// look-ups only: they are on the way of every start, and the grammar's matcher takes 20 ms and 17 MB to be built.
pub(super) fn expand(text: &str) -> String {
    let names_registry = |first: &str| first == "localhost" || first.contains(['.', ':']);
    let name = match text.split_once('/') {
        Some((first, _)) if names_registry(first) => text.to_owned(),
        Some(_) => format!("docker.io/{text}"),
        None => format!("docker.io/library/{text}"),
    };
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.contains(':') {
        true => name,
        false => format!("{name}:latest"),
    }
}

/// Whether the registry is an address of this machine, where plain http is safe.
pub(super) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    #[test]
    fn normal_forms() {
        let digest = format!("redis@sha256:{HEX}");
        let both = format!("redis:7@sha256:{HEX}");
        let normal = format!("docker.io/library/redis@sha256:{HEX}");
        for (given, expected) in [
            ("redis", "docker.io/library/redis:latest"),
            ("redis:7", "docker.io/library/redis:7"),
            ("grafana/loki", "docker.io/grafana/loki:latest"),
            ("docker.io/redis", "docker.io/library/redis:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:1.0", "localhost:5000/a/b:1.0"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
            (digest.as_str(), normal.as_str()),
            (both.as_str(), normal.as_str()),
        ] {
            assert_eq!(normalise(given).unwrap(), expected, "{given}");
        }
    }

    #[test]
    fn expansion_finds_what_is_usual() {
        for text in [
            "redis",
            "redis:7",
            "grafana/loki",
            "localhost/a",
            "localhost:5000/a/b:1.0",
            "127.0.0.1:5000/a",
            "ghcr.io/a/b/c:v1",
            "docker.io/library/redis",
        ] {
            assert_eq!(expand(text), normalise(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn refused() {
        let long = "a".repeat(5000);
        for bad in [
            "",
            "Redis",
            "redis:",
            "a//b",
            "../etc/passwd",
            "redis:ta g",
            "redis@sha256:123",
            "redis@md5:d41d8cd98f00b204e9800998ecf8427e",
            long.as_str(),
        ] {
            assert!(normalise(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback() {
        for (registry, expected) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.8.9.1", true),
            ("[::1]:5000", true),
            ("10.0.0.1:5000", false),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com", false),
            ("docker.io", false),
        ] {
            assert_eq!(is_loopback(registry), expected, "{registry}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_is_stable(text in ".{0,200}") {
            if let Ok(normal) = normalise(&text) {
                prop_assert_eq!(normalise(&normal).unwrap(), normal);
            }
        }

        #[test]
        fn plausible_text_is_stable(text in "[a-z0-9./:@_-]{1,60}") {
            if let Ok(normal) = normalise(&text) {
                prop_assert_eq!(normalise(&normal).unwrap(), normal);
            }
        }
    }
}
