//! The store on disk: references, images, blobs, holds.
//!
//! ```text
//! <root>/images.json            {version, images: [{manifest, id, references, size}]}, replaced as a whole
//! <root>/lock                   flock: shared to mark content as wanted, exclusive to change images.json or collect
//! <root>/holds/<owner>.json     {version, images: [id]}
//! <root>/blobs/sha256/<hex>     verified content
//! <root>/layers/sha256/<hex>/   unpacked layer in overlay form, by diff_id
//! <root>/chains/sha256/<hex>/   the same for a layer that depends on those below it, by chain id
//! <root>/tmp/<name>/            one writer's temporaries, flocked as long as it lives
//! ```
//!
//! *Invariants:* whatever is visible under `blobs`, `layers` and `chains` is complete and verified;
//! `images.json` names only images whose blobs were all there when it was written; nothing that is
//! held, referenced or wanted by a live writer is collected. Any process may be killed at any
//! instant: what stays behind is in `tmp` or unreferenced, and `prune` takes it away.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::{Digest, is_hex_digest};
use super::error::{Context, Error};
use super::manifest::{self, Document, Manifest};
use super::{Image, reference};
use crate::sys::file::{sweep, write_atomic};

/// Version of the files in the store.
pub(super) const VERSION: u32 = 1;
/// Fewest digits of an id's beginning.
const MIN_PREFIX: usize = 4;

/// The store below one folder.
#[derive(Debug, Clone)]
pub struct Store {
    /// `<root>`: `/var/lib/sampan` unless told otherwise.
    pub root: PathBuf,
}

/// `images.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) version: u32,
    pub(super) images: Vec<Record>,
}

/// One image of `images.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) manifest: String,
    pub(super) id: String,
    pub(super) references: Vec<String>,
    pub(super) size: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Hold {
    version: u32,
    images: Vec<String>,
}

/// How the store's lock is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    Shared,
    Exclusive,
}

impl Store {
    /// Opens the store, making its folders when they are missing.
    pub fn open(root: &Path) -> Result<Store, Error> {
        let store = Store {
            root: root.to_path_buf(),
        };
        for folder in [
            "blobs/sha256",
            "layers/sha256",
            "chains/sha256",
            "holds",
            "tmp",
        ] {
            let path = root.join(folder);
            fs::create_dir_all(&path).at("make", &path)?;
        }
        // layers hold setuid programs and other people's secrets: for this user's eyes only
        for folder in ["blobs", "layers", "chains", "holds", "tmp"] {
            let path = root.join(folder);
            let is = fs::metadata(&path).at("look at", &path)?.permissions();
            // most opens find what an earlier one has made: nothing to be written to the disk
            if is.mode() & 0o7777 != 0o700 {
                let mode = fs::Permissions::from_mode(0o700);
                fs::set_permissions(&path, mode).at("restrict", &path)?;
            }
        }
        Ok(store)
    }

    /// All images, sorted by first reference (those without one last), then id.
    pub fn list(&self) -> Result<Vec<Image>, Error> {
        // or a collection could take a configuration away between the two looks
        let _lock = self.lock(Lock::Shared)?;
        let mut images = self
            .index()?
            .images
            .iter()
            .map(|record| self.image(record))
            .collect::<Result<Vec<_>, _>>()?;
        images.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
        Ok(images)
    }

    /// Looks an image up by reference (short names allowed: `redis` is
    /// `docker.io/library/redis:latest`), by digest of manifest or configuration, or by the
    /// beginning of its id (four digits or more).
    pub fn resolve(&self, reference: &str) -> Result<Option<Image>, Error> {
        let _lock = self.lock(Lock::Shared)?;
        let index = self.index()?;
        let found = find(&index.images, reference)?;
        found.map(|record| self.image(record)).transpose()
    }

    /// Manifest and configuration as they came, with references and layers; for people and tools.
    pub fn inspect(&self, reference: &str) -> Result<Option<serde_json::Value>, Error> {
        let Some(image) = self.resolve(reference)? else {
            return Ok(None);
        };
        let digest = Digest::parse(&image.manifest, "images.json")?;
        let raw = self.read_blob(&digest, manifest::MAX_MANIFEST)?;
        let manifest = parse_manifest(&raw, digest.as_str())?;
        let config = self.read_blob(&manifest.config.digest()?, manifest::MAX_CONFIG)?;
        let layers: Vec<_> = manifest
            .layers
            .iter()
            .zip(image.config.rootfs().diff_ids())
            .map(|(layer, diff_id)| {
                serde_json::json!({
                    "digest": layer.digest,
                    "mediaType": layer.media_type,
                    "size": layer.size,
                    "diffId": diff_id,
                })
            })
            .collect();
        let json = |bytes: &[u8]| {
            serde_json::from_slice::<serde_json::Value>(bytes)
                .map_err(|why| Error::invalid(image.id.clone(), why.to_string()))
        };
        Ok(Some(serde_json::json!({
            "version": VERSION,
            "id": image.id,
            "references": image.references,
            "size": image.size,
            "manifestDigest": image.manifest,
            "manifest": json(&raw)?,
            "config": json(&config)?,
            "layers": layers,
        })))
    }

    /// Keeps images (by id) from `rm` and `prune` as long as `owner` (a pod) holds them; replaces
    /// what the owner held. An id that is not in the store is an error.
    pub fn hold(&self, owner: &str, images: &[String]) -> Result<(), Error> {
        self.set_hold(owner, images, false)
    }

    /// As [`Store::hold`], beside what the owner holds.
    pub fn hold_too(&self, owner: &str, images: &[String]) -> Result<(), Error> {
        self.set_hold(owner, images, true)
    }

    fn set_hold(&self, owner: &str, images: &[String], add: bool) -> Result<(), Error> {
        let path = self.hold_path(owner)?;
        let _lock = self.lock(Lock::Exclusive)?;
        let index = self.index()?;
        for id in images {
            if !index.images.iter().any(|record| &record.id == id) {
                return Err(Error::Unknown(id.clone()));
            }
        }
        let mut images = images.to_vec();
        if add && path.try_exists().at("look for", &path)? {
            let held: Hold = read_json(&path)?;
            check_version(held.version, &path)?;
            images.extend(held.images);
        }
        let hold = Hold {
            version: VERSION,
            images,
        };
        write_json(&path, &hold)
    }

    /// The owner holds something.
    pub fn is_holder(&self, owner: &str) -> Result<bool, Error> {
        let path = self.hold_path(owner)?;
        path.try_exists().at("look for", &path)
    }

    /// Ends a hold; missing is success.
    pub fn release(&self, owner: &str) -> Result<(), Error> {
        let path = self.hold_path(owner)?;
        let _lock = self.lock(Lock::Exclusive)?;
        self.sweep_records()?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result.at("remove", &path),
        }
    }

    /// What killed writers of `images.json` and of holds left; the caller has the lock for itself.
    pub(super) fn sweep_records(&self) -> Result<(), Error> {
        for folder in [self.root.clone(), self.root.join("holds")] {
            sweep(&folder).at("clean", &folder)?;
        }
        Ok(())
    }

    fn hold_path(&self, owner: &str) -> Result<PathBuf, Error> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if owner.is_empty()
            || owner.len() > 200
            || owner.starts_with('.')
            || !owner.bytes().all(plain)
        {
            return Err(Error::invalid(
                format!("owner {owner:?}"),
                "a holder's name has letters, digits, - _ and .",
            ));
        }
        Ok(self.root.join("holds").join(format!("{owner}.json")))
    }

    /// Owners and the ids they hold.
    pub(super) fn holds(&self) -> Result<Vec<(String, Vec<String>)>, Error> {
        let folder = self.root.join("holds");
        let mut holds = Vec::new();
        for entry in fs::read_dir(&folder).at("read", &folder)? {
            let path = entry.at("read", &folder)?.path();
            let owner = path.file_name().and_then(|name| name.to_str());
            let Some(owner) = owner.and_then(|name| name.strip_suffix(".json")) else {
                continue;
            };
            // a dot in front: the temporary of a writer that was killed
            if owner.starts_with('.') {
                continue;
            }
            let hold: Hold = read_json(&path)?;
            check_version(hold.version, &path)?;
            holds.push((owner.to_owned(), hold.images));
        }
        holds.sort();
        Ok(holds)
    }

    pub(super) fn lock(&self, lock: Lock) -> Result<File, Error> {
        let path = self.root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            // whoever can open it can keep it locked (flock(2))
            .mode(0o600)
            .open(&path)
            .at("open", &path)?;
        loop {
            let locked = match lock {
                Lock::Shared => file.lock_shared(),
                Lock::Exclusive => file.lock(),
            };
            match locked {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                locked => return locked.at("lock", &path).map(|()| file),
            }
        }
    }

    pub(super) fn index(&self) -> Result<Index, Error> {
        let path = self.root.join("images.json");
        if !path.try_exists().at("look for", &path)? {
            return Ok(Index {
                version: VERSION,
                images: Vec::new(),
            });
        }
        let index: Index = read_json(&path)?;
        check_version(index.version, &path)?;
        Ok(index)
    }

    /// Replaces `images.json`; the caller holds the lock exclusively.
    pub(super) fn write_index(&self, index: &Index) -> Result<(), Error> {
        write_json(&self.root.join("images.json"), index)
    }

    /// Makes an image visible whose blobs are all in the store, and gives it `references`, which
    /// other images lose.
    pub(super) fn publish(&self, digest: &Digest, references: &[String]) -> Result<Image, Error> {
        let bytes = self.read_blob(digest, manifest::MAX_MANIFEST)?;
        let manifest = parse_manifest(&bytes, digest.as_str())?;
        let size = manifest
            .layers
            .iter()
            .fold(manifest.config.size + bytes.len() as u64, |sum, layer| {
                sum.saturating_add(layer.size)
            });
        let mut record = Record {
            manifest: digest.to_string(),
            id: manifest.config.digest.clone(),
            references: references.to_vec(),
            size,
        };
        // reads the configuration: an image that can't be shown is not published
        self.image(&record)?;
        let _lock = self.lock(Lock::Exclusive)?;
        let mut index = self.index()?;
        for other in &mut index.images {
            other.references.retain(|name| !references.contains(name));
        }
        match index
            .images
            .iter_mut()
            .find(|other| other.manifest == record.manifest)
        {
            Some(known) => {
                record.references.append(&mut known.references);
                record.references.sort();
                record.references.dedup();
                *known = record.clone();
            }
            None => index.images.push(record.clone()),
        }
        self.write_index(&index)?;
        self.image(&record)
    }

    fn image(&self, record: &Record) -> Result<Image, Error> {
        let digest = Digest::parse(&record.manifest, "images.json")?;
        let manifest = self.manifest(&digest)?;
        let bytes = self.read_blob(&manifest.config.digest()?, manifest::MAX_CONFIG)?;
        let config =
            manifest::parse_config(&bytes, manifest.layers.len(), &manifest.config.digest)?;
        let raw_config = serde_json::from_slice(&bytes)
            .map_err(|why| Error::invalid(record.id.clone(), why.to_string()))?;
        let mut references = record.references.clone();
        references.sort();
        Ok(Image {
            id: record.id.clone(),
            manifest: record.manifest.clone(),
            references,
            config,
            raw_config,
            size: record.size,
        })
    }

    /// The manifest behind a digest, from the store.
    pub(super) fn manifest(&self, digest: &Digest) -> Result<Manifest, Error> {
        let bytes = self.read_blob(digest, manifest::MAX_MANIFEST)?;
        parse_manifest(&bytes, digest.as_str())
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// A blob of at most `limit` bytes.
    pub(super) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Error> {
        let path = self.blob_path(digest);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
            .at("read", &path)?;
        if bytes.len() as u64 > limit {
            return Err(Error::invalid(
                digest.to_string(),
                format!("has more than {limit} bytes"),
            ));
        }
        Ok(bytes)
    }

    /// Size of a blob, `None` when it is not in the store.
    pub(super) fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).at("look for", &path),
        }
    }
}

fn sort_key(image: &Image) -> (bool, Option<&String>, &str, &str) {
    (
        image.references.is_empty(),
        image.references.first(),
        &image.id,
        &image.manifest,
    )
}

fn parse_manifest(bytes: &[u8], what: &str) -> Result<Manifest, Error> {
    match Document::parse(bytes, what)? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(_) => Err(Error::invalid(what, "is an index, not a manifest")),
    }
}

/// The record that `text` means: exact digest, reference, beginning of an id, in this order.
pub(super) fn find<'a>(records: &'a [Record], text: &str) -> Result<Option<&'a Record>, Error> {
    let exact = |record: &&Record| record.id == text || record.manifest == text;
    if let Some(record) = records.iter().find(exact) {
        return Ok(Some(record));
    }
    let expanded = reference::expand(text);
    if let Some(record) = records.iter().find(|r| r.references.contains(&expanded)) {
        return Ok(Some(record));
    }
    let normal = reference::parse(text);
    if let Ok(normal) = &normal {
        let whole = normal.whole();
        if let Some(record) = records.iter().find(|r| r.references.contains(&whole)) {
            return Ok(Some(record));
        }
        // name@digest of an image that came under another tag
        if let Some(digest) = normal.digest() {
            let name = format!("{}/{}", normal.registry(), normal.repository());
            return Ok(records.iter().find(|record| {
                record.manifest == digest
                    && record.references.iter().any(|other| {
                        other
                            .strip_prefix(&name)
                            .is_some_and(|rest| rest.starts_with([':', '@']))
                    })
            }));
        }
    }
    let prefix = text.strip_prefix("sha256:").unwrap_or(text);
    let is_prefix = prefix.len() >= MIN_PREFIX
        && (prefix.len() < 64 && is_hex_digest(&format!("{prefix:0<64}")));
    if !is_prefix {
        return match normal {
            Err(error) if !is_hex_digest(prefix) => Err(error),
            _ => Ok(records
                .iter()
                .find(|record| record.id.ends_with(prefix) && is_hex_digest(prefix))),
        };
    }
    let mut ids: Vec<&Record> = records
        .iter()
        .filter(|record| {
            record
                .id
                .strip_prefix("sha256:")
                .is_some_and(|hex| hex.starts_with(prefix))
        })
        .collect();
    ids.sort_by(|a, b| a.id.cmp(&b.id));
    ids.dedup_by(|a, b| a.id == b.id);
    match ids.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        several => Err(Error::Ambiguous {
            prefix: text.to_owned(),
            count: several.len(),
        }),
    }
}

fn check_version(version: u32, path: &Path) -> Result<(), Error> {
    if version == VERSION {
        return Ok(());
    }
    Err(Error::invalid(
        path.display().to_string(),
        format!(
            "has version {version}, this program knows {VERSION}; use the program that wrote it"
        ),
    ))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = fs::read(path).at("read", path)?;
    serde_json::from_slice(&bytes)
        .map_err(|why| Error::invalid(path.display().to_string(), why.to_string()))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value)
        .map_err(|why| Error::invalid(path.display().to_string(), why.to_string()))?;
    write_atomic(path, &bytes, 0o600).at("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(digit: char, tail: &str, references: &[&str]) -> Record {
        let hex = format!("{}{tail}", digit.to_string().repeat(64 - tail.len()));
        Record {
            manifest: format!("sha256:{:f>64}", format!("{digit}{tail}")),
            id: format!("sha256:{hex}"),
            references: references.iter().map(|&r| r.to_owned()).collect(),
            size: 1,
        }
    }

    #[test]
    fn lookup() {
        let records = [
            record(
                'a',
                "1",
                &[
                    "docker.io/library/redis:latest",
                    "docker.io/library/redis:7",
                ],
            ),
            record('a', "2", &["localhost:5000/web:1"]),
            record('b', "", &[]),
            record('c', "", &["docker.io/library/bbbb:latest"]),
        ];
        let at = |text: &str| {
            let found = find(&records, text).unwrap();
            found.and_then(|found| records.iter().position(|record| record == found))
        };
        let name_at_digest = format!("redis@{}", records[0].manifest);
        let other_name = format!("web@{}", records[0].manifest);
        for (text, expected) in [
            ("redis", Some(0)),
            ("redis:7", Some(0)),
            ("docker.io/library/redis", Some(0)),
            ("redis:8", None),
            ("localhost:5000/web:1", Some(1)),
            (records[1].id.as_str(), Some(1)),
            (records[1].manifest.as_str(), Some(1)),
            (&records[1].id[7..], Some(1)),
            (name_at_digest.as_str(), Some(0)),
            (other_name.as_str(), None),
            ("bbbbbb", Some(2)),
            ("sha256:bbbbbb", Some(2)),
            // a name wins over an id
            ("bbbb", Some(3)),
            ("bb", None),
            ("dddd", None),
        ] {
            assert_eq!(at(text), expected, "{text}");
        }
        assert!(matches!(
            find(&records, "aaaa"),
            Err(Error::Ambiguous { count: 2, .. })
        ));
        assert!(matches!(
            find(&records, "No Name"),
            Err(Error::Reference { .. })
        ));
    }
}
