//! Manifests and indexes, OCI's and Docker's: parsing, checks, choice of a platform.
//!
//! *Invariants:* documents are at most [`MAX_MANIFEST`] bytes; every descriptor handed out has a
//! valid digest and a sane size; a document that could be read as two kinds is refused
//! (CVE-2021-41190). Pure: nothing is read or written here.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::Error;

/// Largest manifest or index (bytes); the size registries accept.
pub(super) const MAX_MANIFEST: u64 = 4 << 20;
/// Largest configuration (bytes).
pub(super) const MAX_CONFIG: u64 = 8 << 20;
/// overlayfs takes at most this many lower folders (`OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;
/// Bytes of one layer blob beyond which a descriptor is taken for a lie.
const MAX_BLOB: u64 = 1 << 40;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What a registry is asked for.
pub(super) const ACCEPTED: &[&str] = &[OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// Points to a blob (image-spec descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest, `sha256:<hex>`.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// What it runs on, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Names and notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub(super) fn digest(&self) -> Result<Digest, Error> {
        Digest::parse(&self.digest, "descriptor")
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn check(&self, what: &str) -> Result<(), Error> {
        Digest::parse(&self.digest, what)?;
        if self.size > MAX_BLOB {
            return Err(Error::invalid(
                what,
                format!(
                    "descriptor {} claims {} bytes, more than {MAX_BLOB}",
                    self.digest, self.size
                ),
            ));
        }
        Ok(())
    }
}

/// Operating system and processor (image-spec image-index.md, "platform").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH.
    #[serde(default)]
    pub architecture: String,
    /// GOOS.
    #[serde(default)]
    pub os: String,
    /// `v7` and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Platform {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// Parses `os/architecture[/variant]`.
    pub fn parse(text: &str) -> Result<Platform, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(not_a_platform(text)),
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(not_a_platform(text));
        }
        let architecture = match *architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Platform {
            architecture: architecture.to_owned(),
            os: (*os).to_owned(),
            variant: variant.map(|variant| (*variant).to_owned()),
        })
    }

    /// How well `offer` serves us; higher is better, `None` is not at all.
    fn rank(&self, offer: &Platform) -> Option<u8> {
        if self.os != offer.os || self.architecture != offer.architecture {
            return None;
        }
        let number = |variant: &Option<String>| -> Option<u8> {
            let default = match self.architecture.as_str() {
                "arm64" => "v8",
                "arm" => "v7",
                "amd64" => "v1",
                _ => "v0",
            };
            variant
                .as_deref()
                .unwrap_or(default)
                .strip_prefix('v')?
                .parse()
                .ok()
        };
        match (number(&self.variant), number(&offer.variant)) {
            // a processor runs what was built for its predecessors
            (Some(ours), Some(theirs)) => (theirs <= ours).then_some(theirs),
            _ => (self.variant == offer.variant).then_some(0),
        }
    }
}

fn not_a_platform(text: &str) -> Error {
    Error::invalid(
        format!("platform {text:?}"),
        "write os/architecture[/variant], as linux/arm64",
    )
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// An image manifest (image-spec manifest.md), checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    /// Lowest first.
    pub(super) layers: Vec<Descriptor>,
}

/// Either kind of document behind a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default, rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Parses and checks a document; `what` names it in errors.
    pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Document, Error> {
        let invalid = |why: String| Error::invalid(what, why);
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(invalid(format!(
                "manifest has more than {MAX_MANIFEST} bytes"
            )));
        }
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|why| invalid(format!("no image manifest or index: {why}")))?;
        if raw.schema_version != 2 {
            return Err(invalid(format!(
                "manifest schema {} is not supported, only 2; push the image again with a newer tool",
                raw.schema_version
            )));
        }
        let media_type = raw.media_type.as_deref();
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) if raw.fs_layers.is_none() => {
                if matches!(media_type, Some(OCI_INDEX | DOCKER_LIST)) {
                    return Err(invalid("media type says index, content manifest".into()));
                }
                check_manifest(&config, &layers, what)?;
                Ok(Document::Manifest(Manifest { config, layers }))
            }
            (None, None, Some(manifests)) if raw.fs_layers.is_none() => {
                if matches!(media_type, Some(OCI_MANIFEST | DOCKER_MANIFEST)) {
                    return Err(invalid("media type says manifest, content index".into()));
                }
                for entry in &manifests {
                    entry.check(what)?;
                }
                Ok(Document::Index(manifests))
            }
            (None, None, None) => Err(invalid(
                "has neither config and layers nor manifests: no image".into(),
            )),
            _ => Err(invalid(
                "has the fields of a manifest and of an index: ambiguous".into(),
            )),
        }
    }
}

fn check_manifest(config: &Descriptor, layers: &[Descriptor], what: &str) -> Result<(), Error> {
    config.check(what)?;
    if config.size > MAX_CONFIG {
        return Err(Error::invalid(
            what,
            format!(
                "configuration claims {} bytes, more than {MAX_CONFIG}",
                config.size
            ),
        ));
    }
    if layers.len() > MAX_LAYERS {
        return Err(Error::invalid(
            what,
            format!(
                "{} layers, more than the {MAX_LAYERS} of overlayfs",
                layers.len()
            ),
        ));
    }
    for layer in layers {
        layer.check(what)?;
        if layer.media_type.ends_with("+encrypted") {
            return Err(Error::invalid(
                what,
                format!(
                    "layer {} is encrypted, which is not supported",
                    layer.digest
                ),
            ));
        }
    }
    Ok(())
}

/// Parses a configuration and holds it against its manifest: one diff_id per layer.
pub(super) fn parse_config(
    bytes: &[u8],
    layers: usize,
    what: &str,
) -> Result<ImageConfiguration, Error> {
    let config: ImageConfiguration = serde_json::from_slice(bytes)
        .map_err(|why| Error::invalid(what, format!("no image configuration: {why}")))?;
    let ids = config.rootfs().diff_ids();
    if ids.len() != layers {
        return Err(Error::invalid(
            what,
            format!(
                "configuration has {} diff_ids for {layers} layers",
                ids.len()
            ),
        ));
    }
    for id in ids {
        Digest::parse(id, what)?;
    }
    Ok(config)
}

/// Chooses the manifest for `wanted`; the first of the best ones.
pub(super) fn choose<'a>(
    entries: &'a [Descriptor],
    wanted: &Platform,
    what: &str,
) -> Result<&'a Descriptor, Error> {
    // attestations: manifests for unknown/unknown that describe their neighbours
    let images: Vec<&Descriptor> = entries
        .iter()
        .filter(|entry| {
            entry.platform.as_ref().is_none_or(|p| p.os != "unknown")
                && entry.annotation("vnd.docker.reference.type").is_none()
        })
        .collect();
    let mut best: Option<(u8, &Descriptor)> = None;
    for entry in &images {
        let rank = match &entry.platform {
            // without a platform it is the only one, or there is no telling
            None if images.len() == 1 => Some(0),
            None => None,
            Some(offer) => wanted.rank(offer),
        };
        if let Some(rank) = rank
            && best.is_none_or(|(so_far, _)| rank > so_far)
        {
            best = Some((rank, entry));
        }
    }
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let mut available: Vec<String> = images
            .iter()
            .filter_map(|entry| entry.platform.as_ref().map(Platform::to_string))
            .take(50)
            .collect();
        if available.is_empty() {
            available.push("no named platform".to_owned());
        }
        Error::Platform {
            what: what.to_owned(),
            wanted: wanted.to_string(),
            available,
        }
    })
}

/// Whether the blob is a manifest or an index by its media type; unknown ones are looked into.
pub(super) fn is_document(media_type: &str) -> bool {
    ACCEPTED.contains(&media_type) || media_type.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn descriptor(platform: Option<&str>, digit: char) -> Descriptor {
        Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: format!("sha256:{}", digit.to_string().repeat(64)),
            size: 7,
            platform: platform.map(|text| Platform::parse(text).unwrap()),
            annotations: None,
        }
    }

    #[test]
    fn platform_choice() {
        let index = [
            descriptor(Some("unknown/unknown"), '0'),
            descriptor(Some("linux/arm/v5"), '1'),
            descriptor(Some("linux/arm/v7"), '2'),
            descriptor(Some("linux/arm64/v8"), '3'),
            descriptor(Some("linux/amd64"), '4'),
            descriptor(Some("windows/amd64"), '5'),
        ];
        for (wanted, expected) in [
            ("linux/amd64", Some('4')),
            ("linux/x86_64", Some('4')),
            ("linux/amd64/v3", Some('4')),
            ("linux/arm64", Some('3')),
            ("linux/arm", Some('2')),
            ("linux/arm/v6", Some('1')),
            ("linux/arm/v5", Some('1')),
            ("linux/riscv64", None),
            ("freebsd/amd64", None),
        ] {
            let chosen = choose(&index, &Platform::parse(wanted).unwrap(), "x").ok();
            assert_eq!(
                chosen.and_then(|d| d.digest.chars().last()),
                expected,
                "{wanted}"
            );
        }
        let nameless = [descriptor(None, '1')];
        assert!(choose(&nameless, &Platform::host(), "x").is_ok());
        let error = choose(
            &index[5..],
            &Platform::parse("linux/s390x").unwrap(),
            "app:1",
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "app:1 has no image for linux/s390x, only for windows/amd64; name one of these with --platform"
        );
    }

    #[test]
    fn documents() {
        let hex = "a".repeat(64);
        let part = format!(r#"{{"mediaType":"x","digest":"sha256:{hex}","size":1}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{part},"layers":[{part}]}}"#);
        assert!(matches!(
            Document::parse(manifest.as_bytes(), "x"),
            Ok(Document::Manifest(m)) if m.layers.len() == 1
        ));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{part}]}}"#);
        assert!(matches!(
            Document::parse(index.as_bytes(), "x"),
            Ok(Document::Index(entries)) if entries.len() == 1
        ));
        let typed =
            format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","manifests":[{part}]}}"#);
        let both = format!(r#"{{"schemaVersion":2,"config":{part},"layers":[],"manifests":[]}}"#);
        let huge = manifest.replace("\"size\":1", "\"size\":99999999999999999");
        let wrong = manifest.replace(&hex, "../../../etc/shadow");
        let negative = manifest.replace("\"size\":1", "\"size\":-1");
        for bad in [
            typed.as_str(),
            both.as_str(),
            huge.as_str(),
            wrong.as_str(),
            negative.as_str(),
            "",
            "[]",
            "null",
            r#"{"schemaVersion":2}"#,
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
        ] {
            assert!(Document::parse(bad.as_bytes(), "x").is_err(), "{bad}");
        }
    }

    #[test]
    fn one_diff_id_per_layer() {
        let config =
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert!(parse_config(config, 0, "x").is_ok());
        assert!(parse_config(config, 1, "x").is_err());
        assert!(parse_config(b"{}", 0, "x").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Document::parse(&bytes, "x");
            let _ = parse_config(&bytes, 1, "x");
        }

        #[test]
        fn any_platform(text in ".{0,40}") {
            let _ = Platform::parse(&text);
        }
    }
}
