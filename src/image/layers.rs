//! An image's layers as folders for overlayfs.
//!
//! A layer in overlay form depends on nothing below it and is shared under its diff_id, unless its
//! archive implies folders it has no entry for: these must look as in the layers below, so such a
//! layer is kept per chain (image-spec config.md, "Layer ChainID").
//!
//! *Invariants:* a folder gets its final name when it is complete, its diff_id verified and its
//! content on disk; folders are handed out each once (overlayfs refuses the same one twice).

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::digest::{Digest, HashingReader};
use super::error::{Context, Error};
use super::ingest::{Ingest, sync_parent};
use super::manifest::Descriptor;
use super::store::Store;
use super::unpack::{self, Unpacked, beneath, times_of};
use super::{Image, Progress, whiteout};

/// Layers unpacked at once, at most; more only wait for the disk.
const MAX_THREADS: usize = 4;

/// One layer of an image.
struct Layer {
    blob: Descriptor,
    diff_id: Digest,
    chain_id: Digest,
}

/// Each once, at its topmost place.
fn topmost(all: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::with_capacity(all.len());
    for folder in all {
        folders.retain(|other| *other != folder);
        folders.push(folder);
    }
    folders
}

impl Store {
    /// The image's layer folders in overlay form, lowest first; unpacks those that are missing.
    ///
    /// Hold the image first ([`Store::hold`]), or a collection may take the folders away. A layer
    /// that is there several times is given once, at its topmost place: the result is the same.
    pub fn layers(&self, image: &Image, progress: &dyn Progress) -> Result<Vec<PathBuf>, Error> {
        let layers = self.layer_list(image)?;
        let there: Result<Option<Vec<PathBuf>>, Error> =
            layers.iter().map(|layer| self.find_layer(layer)).collect();
        if let Some(folders) = there? {
            return Ok(topmost(folders));
        }
        let ingest = Ingest::begin(self)?;
        for layer in &layers {
            ingest.mark("layer", &layer.diff_id)?;
            ingest.mark("chain", &layer.chain_id)?;
            ingest.mark("blob", &layer.blob.digest()?)?;
        }
        let mut missing = Vec::new();
        for layer in &layers {
            if self.find_layer(layer)?.is_none() {
                missing.push(layer);
            }
        }
        let unpacked = unpack_all(&ingest, &missing, progress)?;
        if !missing.is_empty() {
            // one sync for all: a rename must not reach the disk before its content
            let folder = File::open(&self.root).at("open", &self.root)?;
            rustix::fs::syncfs(&folder).at("sync", &self.root)?;
        }
        let mut folders: Vec<PathBuf> = Vec::with_capacity(layers.len());
        for layer in &layers {
            let folder = match self.find_layer(layer)? {
                Some(folder) => folder,
                None => {
                    let done = unpacked
                        .iter()
                        .find(|(at, ..)| at.chain_id == layer.chain_id)
                        .ok_or_else(|| {
                            Error::invalid(layer.diff_id.to_string(), "layer was not unpacked")
                        })?;
                    self.place(layer, &done.1, &done.2, &folders)?
                }
            };
            folders.retain(|other| *other != folder);
            folders.push(folder);
        }
        Ok(folders)
    }

    fn layer_list(&self, image: &Image) -> Result<Vec<Layer>, Error> {
        let manifest = self.manifest(&Digest::parse(&image.manifest, "image")?)?;
        let diff_ids = image.config.rootfs().diff_ids();
        if diff_ids.len() != manifest.layers.len() {
            return Err(Error::invalid(
                image.id.clone(),
                "manifest and configuration differ in the number of layers",
            ));
        }
        let mut chain: Option<Digest> = None;
        let mut layers: Vec<Layer> = Vec::new();
        for (blob, diff_id) in manifest.layers.into_iter().zip(diff_ids) {
            let diff_id = Digest::parse(diff_id, &image.id)?;
            let chain_id = match &chain {
                None => diff_id.clone(),
                Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            };
            chain = Some(chain_id.clone());
            // of the same layer twice only the upper one can show anything
            layers.retain(|other| other.diff_id != diff_id);
            layers.push(Layer {
                blob,
                diff_id,
                chain_id,
            });
        }
        Ok(layers)
    }

    fn find_layer(&self, layer: &Layer) -> Result<Option<PathBuf>, Error> {
        for path in [
            self.layer_path("layers", &layer.diff_id),
            self.layer_path("chains", &layer.chain_id),
        ] {
            if path.try_exists().at("look for", &path)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    pub(super) fn layer_path(&self, kind: &str, digest: &Digest) -> PathBuf {
        self.root.join(kind).join("sha256").join(digest.hex())
    }

    /// Gives an unpacked folder its name.
    fn place(
        &self,
        layer: &Layer,
        folder: &Path,
        unpacked: &Unpacked,
        below: &[PathBuf],
    ) -> Result<PathBuf, Error> {
        let target = if unpacked.implied.is_empty() {
            self.layer_path("layers", &layer.diff_id)
        } else {
            inherit(folder, &unpacked.implied, below)?;
            let opened = File::open(folder).at("open", folder)?;
            rustix::fs::syncfs(&opened).at("sync", folder)?;
            self.layer_path("chains", &layer.chain_id)
        };
        match fs::rename(folder, &target) {
            Ok(()) => sync_parent(&target)?,
            // another process was faster; ours goes with the temporaries
            Err(_) if target.is_dir() => {}
            Err(error) => return Err(error).at("rename to", &target),
        }
        Ok(target)
    }
}

type Done<'l> = (&'l Layer, PathBuf, Unpacked);

fn unpack_all<'l>(
    ingest: &Ingest<'_>,
    missing: &[&'l Layer],
    progress: &dyn Progress,
) -> Result<Vec<Done<'l>>, Error> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors.min(MAX_THREADS).min(missing.len());
    let queue = Mutex::new(missing.iter().copied().collect::<VecDeque<_>>());
    let take = || queue.lock().ok().and_then(|mut queue| queue.pop_front());
    let work = || -> Result<Vec<Done<'l>>, Error> {
        let mut done = Vec::new();
        while let Some(layer) = take() {
            match unpack_one(ingest, layer, progress) {
                Ok((folder, unpacked)) => done.push((layer, folder, unpacked)),
                Err(error) => {
                    // the others end after the layer they are at
                    if let Ok(mut queue) = queue.lock() {
                        queue.clear();
                    }
                    return Err(error);
                }
            }
        }
        Ok(done)
    };
    if threads <= 1 {
        return work();
    }
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        let mut failed = None;
        for worker in workers {
            match worker.join() {
                Ok(Ok(mut done)) => all.append(&mut done),
                Ok(Err(error)) => failed = failed.or(Some(error)),
                Err(_) => {
                    failed = failed.or(Some(Error::invalid("layers", "unpacking panicked")));
                }
            }
        }
        failed.map_or(Ok(all), Err)
    })
}

fn unpack_one(
    ingest: &Ingest<'_>,
    layer: &Layer,
    progress: &dyn Progress,
) -> Result<(PathBuf, Unpacked), Error> {
    let blob = layer.blob.digest()?;
    let path = ingest.store.blob_path(&blob);
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::invalid(
                format!("layer {blob}"),
                "is not in the store; pull or load the image again",
            ));
        }
        file => file.at("open", &path)?,
    };
    let folder = ingest.temporary("layer");
    fs::create_dir(&folder).at("make", &folder)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&folder, mode).at("set mode of", &folder)?;
    let what = format!("layer {blob}");
    let total = layer.blob.size;
    progress.advance(&what, 0, total);
    let advance = |done| progress.advance(&what, done, total);
    let unpacked = match unpack::unpack(file, total, &folder, &what, advance) {
        Ok(unpacked) if unpacked.diff_id == layer.diff_id => unpacked,
        failed => {
            drop_if_damaged(&path, &blob)?;
            failed?
        }
    };
    progress.advance(&what, total, total);
    if unpacked.diff_id != layer.diff_id {
        return Err(Error::Digest {
            what: format!("uncompressed {what}"),
            expected: layer.diff_id.to_string(),
            actual: unpacked.diff_id.to_string(),
        });
    }
    Ok((folder, unpacked))
}

/// A blob that is no longer what it was when it was verified goes, so that it can be fetched again.
fn drop_if_damaged(path: &Path, digest: &Digest) -> Result<(), Error> {
    let file = File::open(path).at("open", path)?;
    let mut reader = HashingReader::new(file);
    std::io::copy(&mut reader, &mut std::io::sink()).at("read", path)?;
    let (actual, _) = reader.finish();
    if actual == *digest {
        return Ok(());
    }
    fs::remove_file(path).at("remove", path)?;
    Err(Error::Digest {
        what: format!("layer {digest} in the store"),
        expected: digest.to_string(),
        actual: actual.to_string(),
    })
}

/// Gives implied folders owner, mode, attributes and times of the folder they cover below.
fn inherit(folder: &Path, implied: &BTreeSet<Vec<u8>>, below: &[PathBuf]) -> Result<(), Error> {
    let root = open_root(folder)?;
    let lowers = below
        .iter()
        .rev()
        .map(|path| open_root(path))
        .collect::<Result<Vec<_>, _>>()?;
    for path in implied {
        // replaced later by an entry that is no folder
        let Ok(target) = beneath(&root, path, OFlags::DIRECTORY) else {
            continue;
        };
        if let Some(source) = lowers
            .iter()
            .map_while(|lower| look(lower, path))
            .flatten()
            .next()
        {
            copy_metadata(&source, &target)
                .doing(|| format!("copy metadata of {}", super::archive::shown(path)))?;
        }
    }
    Ok(())
}

fn open_root(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).at("open", path)
}

/// Looks for the folder `path` in one layer as overlayfs does: `None`, nothing below this layer
/// can be seen there; `Some(None)`, this layer has none.
fn look(layer: &OwnedFd, path: &[u8]) -> Option<Option<OwnedFd>> {
    let mut current = layer.try_clone().ok()?;
    let mut hides = false;
    for component in path.split(|&byte| byte == b'/') {
        let open = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let stat: Stat = match rustix::fs::statat(&current, component, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(_) if hides => return None,
            Err(_) => return Some(None),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return None;
        }
        current = rustix::fs::openat(&current, component, open, Mode::empty()).ok()?;
        hides |= whiteout::is_opaque(&current);
    }
    Some(Some(current))
}

fn copy_metadata(source: impl AsFd, target: impl AsFd) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(&source)?;
    let owner = rustix::fs::Uid::from_raw(stat.st_uid);
    let group = rustix::fs::Gid::from_raw(stat.st_gid);
    rustix::fs::fchown(&target, Some(owner), Some(group))?;
    rustix::fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode))?;
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        let mut value = vec![0u8; 4096];
        if let Ok(size) = rustix::fs::fgetxattr(&source, name, value.as_mut_slice()) {
            value.truncate(size);
            rustix::fs::fsetxattr(&target, name, &value, rustix::fs::XattrFlags::empty())?;
        }
    }
    rustix::fs::futimens(&target, &times_of(&source)?)
}
