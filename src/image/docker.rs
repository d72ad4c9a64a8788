//! Archives of `docker save` with a `manifest.json` and no OCI index (moby image/spec v1.2).
//!
//! Layers have no digest there: the store computes one, and the configuration's diff_ids are held
//! against the content when it is unpacked.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::archive::Compression;
use super::digest::{Digest, is_hex_digest};
use super::error::{Context, Error};
use super::import::{Found, Member, Members, member_name, open_archive, put_manifest, shown_name};
use super::ingest::Ingest;
use super::manifest::{MAX_CONFIG, parse_config};
use super::{Progress, reference};

/// Links from layer to layer that are followed.
const MAX_LINKS: usize = 8;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Whether a `manifest.json` is that of `docker save`.
pub(super) fn is_manifest(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Vec<Saved>>(bytes).is_ok()
}

/// A member in the store.
struct Stored {
    digest: Digest,
    size: u64,
    compression: Compression,
}

pub(super) fn import(
    ingest: &Ingest<'_>,
    path: &Path,
    members: &Members,
    progress: &dyn Progress,
) -> Result<Vec<Found>, Error> {
    let what = path.display().to_string();
    let bytes = members.documents.get("manifest.json").map(Vec::as_slice);
    let images: Vec<Saved> = serde_json::from_slice(bytes.unwrap_or_default())
        .map_err(|why| Error::invalid(&what, format!("manifest.json: {why}")))?;
    let mut wanted = BTreeSet::new();
    for image in &images {
        for name in image.layers.iter().chain([&image.config]) {
            wanted.insert(locate(members, name, &what)?);
        }
    }
    let stored = store_members(ingest, path, wanted, progress)?;
    let find = |name: &str| -> Result<&Stored, Error> {
        let key = locate(members, name, &what)?;
        stored.get(&key).ok_or_else(|| lacks(&what, name))
    };
    let mut found = Vec::new();
    for image in &images {
        let config = find(&image.config)?;
        check_config_name(&image.config, &config.digest)?;
        let bytes = ingest.store.read_blob(&config.digest, MAX_CONFIG)?;
        parse_config(
            &bytes,
            image.layers.len(),
            &format!("{what}: {}", image.config),
        )?;
        let layers = image
            .layers
            .iter()
            .map(|name| find(name).map(|s| (s.digest.clone(), s.size, s.compression)))
            .collect::<Result<Vec<_>, _>>()?;
        let references = image
            .repo_tags
            .iter()
            .flatten()
            .map(|name| reference::normalise(name))
            .collect::<Result<Vec<_>, _>>()?;
        found.push(Found {
            manifest: put_manifest(ingest, &bytes, &layers)?,
            references,
        });
    }
    Ok(found)
}

fn lacks(what: &str, name: &str) -> Error {
    Error::invalid(
        what,
        format!("has no {}; it is not complete", shown_name(name)),
    )
}

/// The regular member behind a name; older Dockers save equal layers as links to the first one.
fn locate(members: &Members, name: &str, what: &str) -> Result<String, Error> {
    let mut key = member_name(name.as_bytes()).ok_or_else(|| lacks(what, name))?;
    for _ in 0..MAX_LINKS {
        match members.files.get(&key) {
            Some(Member::File(_)) => return Ok(key),
            Some(Member::Link(target)) => key = target.clone(),
            Some(Member::Other) => {
                let why = format!("{} is not a regular file: refused", shown_name(name));
                return Err(Error::invalid(what, why));
            }
            None => return Err(lacks(what, name)),
        }
    }
    let why = format!("{} is a loop of links", shown_name(name));
    Err(Error::invalid(what, why))
}

fn store_members(
    ingest: &Ingest<'_>,
    path: &Path,
    mut wanted: BTreeSet<String>,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, Stored>, Error> {
    let mut stored = BTreeMap::new();
    let mut archive = open_archive(path)?;
    while !wanted.is_empty() {
        let Some(entry) = archive.next().at("read", path)? else {
            break;
        };
        let Some(name) = member_name(&entry.path).filter(|name| wanted.remove(name)) else {
            continue;
        };
        let mut content = archive.content();
        let mut start = Vec::new();
        content
            .by_ref()
            .take(8)
            .read_to_end(&mut start)
            .at("read", path)?;
        let compression = Compression::detect(&start).map_err(|kind| {
            let why = format!("{kind} compression is not supported; use gzip, zstd or none");
            Error::invalid(format!("{}: {}", path.display(), shown_name(&name)), why)
        })?;
        let whole = start.as_slice().chain(content);
        let advance = |done| progress.advance(&name, done, entry.size);
        let (digest, size) = ingest.copy(&name, None, whole, advance)?;
        let one = Stored {
            digest,
            size,
            compression,
        };
        stored.insert(name, one);
    }
    Ok(stored)
}

/// Docker names a configuration by its digest: it must be that one.
fn check_config_name(name: &str, digest: &Digest) -> Result<(), Error> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let hex = file.strip_suffix(".json").unwrap_or(file);
    if is_hex_digest(hex) && hex != digest.hex() {
        return Err(Error::Digest {
            what: format!("configuration {name}"),
            expected: format!("sha256:{hex}"),
            actual: digest.to_string(),
        });
    }
    Ok(())
}
