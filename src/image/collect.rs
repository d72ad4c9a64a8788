//! Taking images and what belongs to no image out of the store.
//!
//! *Invariants:* everything here runs under the store's exclusive lock; references go before
//! content, so a kill in between leaves garbage and never a broken image; one thing that can't be
//! removed doesn't keep the others.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::digest::{Digest, is_hex_digest};
use super::error::{Context, Error};
use super::reference;
use super::store::{Index, Lock, Record, Store, find};

/// What `prune` or `remove` took away.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Bytes that the disk got back.
    pub freed: u64,
    /// References of removed images; the id of one that had none.
    pub images: Vec<String>,
    /// Digests of removed blobs.
    pub blobs: Vec<String>,
    /// Names of removed layer folders: diff_ids and chain ids.
    pub layers: Vec<String>,
    /// Temporaries of writers that were killed.
    pub temporaries: u64,
    /// What could not be removed; the rest was.
    pub failures: Vec<Error>,
}

/// Names (hex) that must stay, by kind.
#[derive(Default)]
struct Wanted {
    blobs: BTreeSet<String>,
    layers: BTreeSet<String>,
    chains: BTreeSet<String>,
}

impl Store {
    /// Removes a reference; with an image's last one, or by its id, the image and its content.
    ///
    /// Refuses while a pod holds the image and no other reference keeps it.
    pub fn remove(&self, name: &str) -> Result<Pruned, Error> {
        let _lock = self.lock(Lock::Exclusive)?;
        let mut index = self.index()?;
        let record = find(&index.images, name)?
            .cloned()
            .ok_or_else(|| Error::Unknown(name.to_owned()))?;
        let whole = reference::normalise(name).ok();
        let named = whole.filter(|whole| record.references.contains(whole));
        if let Some(named) = named
            && record.references.len() > 1
        {
            for other in &mut index.images {
                other.references.retain(|reference| *reference != named);
            }
            self.write_index(&index)?;
            return Ok(Pruned {
                images: vec![named],
                ..Pruned::default()
            });
        }
        let owners: Vec<String> = self
            .holds()?
            .into_iter()
            .filter(|(_, ids)| ids.contains(&record.id))
            .map(|(owner, _)| owner)
            .collect();
        if !owners.is_empty() {
            return Err(Error::Held {
                image: name.to_owned(),
                owners,
            });
        }
        index
            .images
            .retain(|other| other.manifest != record.manifest);
        self.write_index(&index)?;
        let mut pruned = Pruned {
            images: names(&record),
            ..Pruned::default()
        };
        self.sweep(&index, &mut pruned)?;
        Ok(pruned)
    }

    /// Removes images without a reference, or with `all` every image, as long as nobody holds
    /// them; then content that no image needs and what killed writers left.
    pub fn prune(&self, all: bool) -> Result<Pruned, Error> {
        let _lock = self.lock(Lock::Exclusive)?;
        self.sweep_records()?;
        let mut index = self.index()?;
        let held: BTreeSet<String> = self.holds()?.into_iter().flat_map(|(_, ids)| ids).collect();
        let mut pruned = Pruned::default();
        index.images.retain(|record| {
            let stays = held.contains(&record.id) || !(all || record.references.is_empty());
            if !stays {
                pruned.images.extend(names(record));
            }
            stays
        });
        if !pruned.images.is_empty() {
            self.write_index(&index)?;
        }
        self.sweep(&index, &mut pruned)?;
        Ok(pruned)
    }

    fn sweep(&self, index: &Index, pruned: &mut Pruned) -> Result<(), Error> {
        let mut wanted = Wanted::default();
        let held: BTreeSet<String> = self.holds()?.into_iter().flat_map(|(_, ids)| ids).collect();
        let mut unknown = false;
        for record in &index.images {
            // an image that can't be read needs no content, `list` reports it; but a pod may run from it
            if let Err(error) = self.add_wanted(record, &mut wanted) {
                pruned.failures.push(error);
                unknown |= held.contains(&record.id);
            }
        }
        self.sweep_temporaries(&mut wanted, pruned)?;
        if unknown {
            return Ok(());
        }
        // moved away first: a half-removed layer must never have its name
        let bin = self
            .root
            .join("tmp")
            .join(format!("bin.{:016x}", fastrand::u64(..)));
        fs::create_dir(&bin).at("make", &bin)?;
        let Pruned {
            blobs,
            layers,
            freed,
            failures,
            ..
        } = pruned;
        for (kind, wanted, removed) in [
            ("blobs", &wanted.blobs, blobs),
            ("layers", &wanted.layers, &mut *layers),
        ] {
            self.sweep_folder(kind, wanted, &bin, freed, removed, failures)?;
        }
        self.sweep_folder("chains", &wanted.chains, &bin, freed, layers, failures)?;
        if let Err(error) = fs::remove_dir_all(&bin).at("remove", &bin) {
            failures.push(error);
        }
        Ok(())
    }

    fn add_wanted(&self, record: &Record, wanted: &mut Wanted) -> Result<(), Error> {
        let digest = Digest::parse(&record.manifest, "images.json")?;
        let manifest = self.manifest(&digest)?;
        wanted.blobs.insert(digest.hex().to_owned());
        let config = manifest.config.digest()?;
        wanted.blobs.insert(config.hex().to_owned());
        for layer in &manifest.layers {
            wanted.blobs.insert(layer.digest()?.hex().to_owned());
        }
        let bytes = self.read_blob(&config, super::manifest::MAX_CONFIG)?;
        let config = super::manifest::parse_config(&bytes, manifest.layers.len(), config.as_str())?;
        let mut chain: Option<Digest> = None;
        for diff_id in config.rootfs().diff_ids() {
            let diff_id = Digest::parse(diff_id, &record.id)?;
            let next = match &chain {
                None => diff_id.clone(),
                Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            };
            wanted.layers.insert(diff_id.hex().to_owned());
            wanted.chains.insert(next.hex().to_owned());
            chain = Some(next);
        }
        Ok(())
    }

    /// Removes temporaries of the dead and collects what the living want.
    fn sweep_temporaries(&self, wanted: &mut Wanted, pruned: &mut Pruned) -> Result<(), Error> {
        let folder = self.root.join("tmp");
        for entry in fs::read_dir(&folder).at("read", &folder)? {
            let path = entry.at("read", &folder)?.path();
            let lock = match File::open(&path) {
                // its writer ended just now
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                lock => lock.at("open", &path)?,
            };
            if lock.try_lock().is_err() {
                add_marks(&path, wanted);
                continue;
            }
            pruned.freed += usage(&path);
            pruned.temporaries += 1;
            if let Err(error) = remove(&path) {
                pruned.failures.push(error);
            }
        }
        Ok(())
    }

    fn sweep_folder(
        &self,
        kind: &str,
        wanted: &BTreeSet<String>,
        bin: &Path,
        freed: &mut u64,
        removed: &mut Vec<String>,
        failures: &mut Vec<Error>,
    ) -> Result<(), Error> {
        let folder = self.root.join(kind).join("sha256");
        for entry in fs::read_dir(&folder).at("read", &folder)? {
            let path = entry.at("read", &folder)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if wanted.contains(name) || !is_hex_digest(name) {
                continue;
            }
            let away = bin.join(format!("{kind}-{name}"));
            let bytes = usage(&path);
            let moved = fs::rename(&path, &away).at("move away", &path);
            match moved.and_then(|()| remove(&away)) {
                Ok(()) => {
                    *freed += bytes;
                    removed.push(format!("sha256:{name}"));
                }
                Err(error) => failures.push(error),
            }
        }
        removed.sort();
        Ok(())
    }
}

fn names(record: &Record) -> Vec<String> {
    if record.references.is_empty() {
        return vec![record.id.clone()];
    }
    record.references.clone()
}

/// `want-<kind>-<hex>`, see `ingest`. A folder that vanishes wants nothing any more.
fn add_marks(folder: &Path, wanted: &mut Wanted) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((kind, hex)) = name
            .to_str()
            .and_then(|name| name.strip_prefix("want-"))
            .and_then(|name| name.split_once('-'))
        else {
            continue;
        };
        let set = match kind {
            "blob" => &mut wanted.blobs,
            "layer" => &mut wanted.layers,
            _ => &mut wanted.chains,
        };
        set.insert(hex.to_owned());
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_dir {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.at("remove", path),
    }
}

/// Bytes on disk below `path`; a file with several names counts once. For the report only, so
/// what can't be read counts nothing.
fn usage(path: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut total = 0;
    let mut waiting = vec![path.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.nlink() < 2 || metadata.is_dir() || seen.insert(metadata.ino()) {
            total += metadata.blocks() * 512;
        }
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(entries.map(|entry| entry.path()));
        }
    }
    total
}
