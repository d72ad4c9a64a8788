//! Bringing content into the store.
//!
//! *Invariants:* a blob gets its final name only after its digest and size are verified and it is
//! on disk; what a live [`Ingest`] has marked as wanted is not collected. Marks are files in the
//! writer's own folder, made under the store's shared lock: a collection that runs before sees
//! nothing that the writer relies on, one that runs after sees the mark.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::digest::{Digest, Hasher};
use super::error::{Context, Error};
use super::store::{Lock, Store};

/// Bytes copied at once.
const CHUNK: usize = 128 << 10;

/// One writer: a flocked folder for temporaries and marks, removed when it ends.
pub(super) struct Ingest<'a> {
    pub(super) store: &'a Store,
    folder: PathBuf,
    _lock: File,
}

impl<'a> Ingest<'a> {
    pub(super) fn begin(store: &'a Store) -> Result<Ingest<'a>, Error> {
        let name = format!("{}.{:016x}", std::process::id(), fastrand::u64(..));
        let folder = store.root.join("tmp").join(name);
        // under the lock, so that a collection never meets a folder that is not flocked yet
        let _shared = store.lock(Lock::Shared)?;
        fs::create_dir(&folder).at("make", &folder)?;
        let lock = File::open(&folder).at("open", &folder)?;
        lock.lock().at("lock", &folder)?;
        Ok(Ingest {
            store,
            folder,
            _lock: lock,
        })
    }

    /// Marks a blob as wanted; `true`: it is in the store already, with the right size.
    pub(super) fn want(&self, digest: &Digest, size: u64) -> Result<bool, Error> {
        self.mark("blob", digest)?;
        // another size: either the descriptor lies, which fetching it shows, or the disk lost
        // something, which fetching it heals
        Ok(self.store.blob_size(digest)? == Some(size))
    }

    /// Marks `kind` (`blob`, `layer`, `chain`) with `digest` as wanted.
    pub(super) fn mark(&self, kind: &str, digest: &Digest) -> Result<(), Error> {
        let path = self.folder.join(format!("want-{kind}-{}", digest.hex()));
        let _shared = self.store.lock(Lock::Shared)?;
        File::create(&path).at("make", &path).map(drop)
    }

    /// A path for a temporary; nothing is there yet.
    pub(super) fn temporary(&self, name: &str) -> PathBuf {
        self.folder
            .join(format!("{name}.{:016x}", fastrand::u64(..)))
    }

    /// Starts a blob whose digest is known (`expected`) or not; `what` names it in errors.
    pub(super) fn blob(
        &self,
        what: &str,
        expected: Option<(Digest, u64)>,
    ) -> Result<BlobWriter<'_, 'a>, Error> {
        let path = self.temporary("blob");
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .at("make", &path)?;
        Ok(BlobWriter {
            ingest: self,
            file,
            path,
            hasher: Hasher::default(),
            written: 0,
            what: what.to_owned(),
            expected,
        })
    }

    /// Copies `content` into a blob.
    pub(super) fn copy(
        &self,
        what: &str,
        expected: Option<(Digest, u64)>,
        mut content: impl Read,
        mut advance: impl FnMut(u64),
    ) -> Result<(Digest, u64), Error> {
        let mut writer = self.blob(what, expected)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).doing(|| format!("read {what}")),
            };
            writer.append(buffer.get(..count).unwrap_or_default())?;
            advance(writer.written);
        }
        writer.commit()
    }

    /// Stores bytes that are at hand.
    pub(super) fn put(&self, what: &str, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        if !self.want(&digest, bytes.len() as u64)? {
            self.copy(what, None, bytes, |_| ())?;
        }
        Ok(digest)
    }
}

impl Drop for Ingest<'_> {
    fn drop(&mut self) {
        // what can't be removed now is prune's, once the flock is gone
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A blob on its way into the store; dropped before `commit`, it leaves nothing.
pub(super) struct BlobWriter<'i, 'a> {
    ingest: &'i Ingest<'a>,
    file: File,
    path: PathBuf,
    hasher: Hasher,
    written: u64,
    what: String,
    expected: Option<(Digest, u64)>,
}

impl BlobWriter<'_, '_> {
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.written = self.written.saturating_add(bytes.len() as u64);
        if let Some((_, size)) = &self.expected
            && self.written > *size
        {
            return Err(Error::Size {
                what: self.what.clone(),
                expected: *size,
                actual: self.written,
            });
        }
        self.hasher.update(bytes);
        self.file.write_all(bytes).at("write", &self.path)
    }

    /// Verifies, syncs and renames; the blob's digest and size.
    pub(super) fn commit(self) -> Result<(Digest, u64), Error> {
        let digest = self.hasher.clone().finish();
        if let Some((expected, size)) = &self.expected {
            if self.written != *size {
                return Err(Error::Size {
                    what: self.what.clone(),
                    expected: *size,
                    actual: self.written,
                });
            }
            if digest != *expected {
                return Err(Error::Digest {
                    what: self.what.clone(),
                    expected: expected.to_string(),
                    actual: digest.to_string(),
                });
            }
        }
        self.file.sync_all().at("sync", &self.path)?;
        self.ingest.mark("blob", &digest)?;
        let target = self.ingest.store.blob_path(&digest);
        fs::rename(&self.path, &target).at("rename to", &target)?;
        sync_parent(&target)?;
        Ok((digest, self.written))
    }
}

impl Drop for BlobWriter<'_, '_> {
    fn drop(&mut self) {
        // gone after a commit; otherwise the folder's removal is the second chance
        let _ = fs::remove_file(&self.path);
    }
}

/// Syncs the folder of `path`, so that a rename survives a crash.
pub(super) fn sync_parent(path: &Path) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .at("sync", folder)
}
