//! Images from files: OCI layouts (folder or archive), `docker save` archives, root file systems.
//!
//! *Invariants:* nothing is published before every blob is in the store and verified; names inside
//! an archive are keys, never paths of this machine; documents are bounded before they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::archive::{Archive, Compression, Entry, Kind, decompress, shown};
use super::digest::Digest;
use super::error::{Context, Error};
use super::ingest::Ingest;
use super::manifest::{self, Descriptor, Document, MAX_MANIFEST, Platform};
use super::store::Store;
use super::{Image, Progress, docker, reference, stream};

/// Entries of an image archive; a layer's files are not among them.
const MAX_MEMBERS: usize = 200_000;
/// Indexes within indexes.
const MAX_DEPTH: usize = 4;
/// Names that hold an archive's documents.
const DOCUMENTS: &[&str] = &["oci-layout", "index.json", "manifest.json", "repositories"];

/// Imports every image that `path` has: an OCI layout (folder or tar), a `docker save` archive, or
/// the tar of a root file system; any tar may be compressed by gzip or zstd.
///
/// `name` is the reference of the one image; without it the names in the archive count, and an
/// image without any is known by its id.
pub fn import(
    store: &Store,
    path: &Path,
    name: Option<&str>,
    progress: &dyn Progress,
) -> Result<Vec<Image>, Error> {
    let name = name.map(reference::normalise).transpose()?;
    let ingest = Ingest::begin(store)?;
    let metadata = std::fs::metadata(path).at("open", path)?;
    let found = if metadata.is_dir() {
        let mut source = Source::Folder(open_folder(path)?, path);
        import_layout(&ingest, &mut source, progress)?
    } else if metadata.is_file() {
        import_file(&ingest, path, progress)?
    } else {
        return Err(Error::invalid(
            path.display().to_string(),
            "is neither a file nor a folder; write the archive to a file first",
        ));
    };
    publish(store, path, found, name)
}

/// A manifest in the store and the names it had.
pub(super) struct Found {
    pub(super) manifest: Digest,
    pub(super) references: Vec<String>,
}

fn publish(
    store: &Store,
    path: &Path,
    found: Vec<Found>,
    name: Option<String>,
) -> Result<Vec<Image>, Error> {
    let Some(first) = found.first() else {
        return Err(Error::invalid(path.display().to_string(), "has no image"));
    };
    let several = found.iter().any(|other| other.manifest != first.manifest);
    if name.is_some() && several {
        return Err(Error::invalid(
            path.display().to_string(),
            format!(
                "has {} images, a name can be given to one only",
                found.len()
            ),
        ));
    }
    let mut images: Vec<Image> = Vec::new();
    for one in found {
        let references = match &name {
            Some(name) => vec![name.clone()],
            None => one.references,
        };
        let image = store.publish(&one.manifest, &references)?;
        images.retain(|other| other.manifest != image.manifest);
        images.push(image);
    }
    Ok(images)
}

fn import_file(
    ingest: &Ingest<'_>,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Vec<Found>, Error> {
    let members = Members::scan(path)?;
    let has = |name: &str| members.documents.contains_key(name);
    if has("index.json") && has("oci-layout") {
        let mut source = Source::Archive(path, members);
        return import_layout(ingest, &mut source, progress);
    }
    if has("manifest.json") && members.is_docker() {
        return docker::import(ingest, path, &members, progress);
    }
    if has("repositories")
        && members
            .files
            .keys()
            .any(|name| name.ends_with("/layer.tar"))
    {
        return Err(Error::invalid(
            path.display().to_string(),
            "is an archive of a Docker before 1.10; load and save it with a newer one first",
        ));
    }
    if members.files.is_empty() {
        return Err(no_image(path, "a tar without entries"));
    }
    import_rootfs(ingest, path, progress)
}

fn no_image(path: &Path, why: &str) -> Error {
    Error::invalid(
        path.display().to_string(),
        format!(
            "is no image ({why}); wanted: OCI layout, docker save archive or tar of a root file system"
        ),
    )
}

/// Where an archive member is, as far as one pass tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Member {
    File(u64),
    /// A link and its target, both as normalised names in the archive.
    Link(String),
    Other,
}

/// What an archive has: names, and its documents.
pub(super) struct Members {
    pub(super) files: BTreeMap<String, Member>,
    pub(super) documents: BTreeMap<String, Vec<u8>>,
}

impl Members {
    fn scan(path: &Path) -> Result<Members, Error> {
        let mut members = Members {
            files: BTreeMap::new(),
            documents: BTreeMap::new(),
        };
        let mut archive = open_archive(path)?;
        loop {
            let entry = match archive.next() {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(members),
                // the very first block tells whether it is an archive at all
                Err(error) if members.files.is_empty() => {
                    return Err(no_image(path, &error.to_string()));
                }
                Err(error) => return Err(error).at("read", path),
            };
            let Some(name) = member_name(&entry.path) else {
                continue;
            };
            if DOCUMENTS.contains(&name.as_str()) && entry.kind == Kind::File {
                let mut bytes = Vec::new();
                let limit = MAX_MANIFEST + 1;
                archive
                    .content()
                    .take(limit)
                    .read_to_end(&mut bytes)
                    .at("read", path)?;
                if bytes.len() as u64 > MAX_MANIFEST {
                    let why = format!("{name} has more than {MAX_MANIFEST} bytes");
                    return Err(Error::invalid(path.display().to_string(), why));
                }
                members.documents.insert(name.clone(), bytes);
            }
            // a root file system has millions of names; an image archive few
            if members.files.len() < MAX_MEMBERS {
                members.files.insert(name.clone(), member(&entry, &name));
            }
        }
    }

    /// A root file system may well have a file /manifest.json; only a list of images is Docker's.
    fn is_docker(&self) -> bool {
        self.documents
            .get("manifest.json")
            .is_some_and(|bytes| docker::is_manifest(bytes))
    }
}

fn member(entry: &Entry, name: &str) -> Member {
    match &entry.kind {
        Kind::File => Member::File(entry.size),
        Kind::HardLink(target) => member_name(target).map_or(Member::Other, Member::Link),
        Kind::Symlink(target) => {
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            let joined = [folder.as_bytes(), b"/", target.as_slice()].concat();
            member_name(&joined).map_or(Member::Other, Member::Link)
        }
        _ => Member::Other,
    }
}

/// The key of a member: components joined, `.` and `..` applied; `None` when it climbs out.
pub(super) fn member_name(path: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(path).ok()?;
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            plain => parts.push(plain),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

pub(super) fn open_archive(path: &Path) -> Result<Archive<Box<dyn Read>>, Error> {
    let file = File::open(path).at("open", path)?;
    let (reader, _) = decompress(file).at("read", path)?;
    Ok(Archive::new(reader))
}

/// Where the blobs of a layout are.
enum Source<'a> {
    Folder(OwnedFd, &'a Path),
    Archive(&'a Path, Members),
}

impl Source<'_> {
    fn what(&self) -> String {
        match self {
            Source::Folder(_, path) | Source::Archive(path, _) => path.display().to_string(),
        }
    }

    fn document(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Source::Archive(_, members) => Ok(members.documents.get(name).cloned()),
            Source::Folder(folder, _) => {
                let Some((file, size)) = open_member(folder, name, &self.what())? else {
                    return Ok(None);
                };
                if size > MAX_MANIFEST {
                    let why = format!("{name} has more than {MAX_MANIFEST} bytes");
                    return Err(Error::invalid(self.what(), why));
                }
                let mut bytes = Vec::new();
                file.take(MAX_MANIFEST)
                    .read_to_end(&mut bytes)
                    .doing(|| format!("read {name} of {}", self.what()))?;
                Ok(Some(bytes))
            }
        }
    }

    /// Brings these blobs into the store.
    fn fetch(
        &self,
        ingest: &Ingest<'_>,
        wanted: &[&Descriptor],
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let mut missing: BTreeMap<String, (Digest, u64)> = BTreeMap::new();
        for descriptor in wanted {
            let digest = descriptor.digest()?;
            if !ingest.want(&digest, descriptor.size)? {
                let name = format!("blobs/sha256/{}", digest.hex());
                missing.insert(name, (digest, descriptor.size));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        match self {
            Source::Folder(folder, _) => {
                for (name, expected) in missing {
                    let (file, _) = open_member(folder, &name, &self.what())?
                        .ok_or_else(|| self.lacks(&name))?;
                    copy(ingest, expected, file, progress)?;
                }
                Ok(())
            }
            Source::Archive(path, members) => {
                for name in missing.keys() {
                    match members.files.get(name) {
                        Some(Member::File(_)) => {}
                        None => return Err(self.lacks(name)),
                        Some(_) => return Err(not_plain(&self.what(), name)),
                    }
                }
                let mut archive = open_archive(path)?;
                while let Some(entry) = archive.next().at("read", path)? {
                    let expected = member_name(&entry.path).and_then(|name| missing.remove(&name));
                    if let Some(expected) = expected {
                        copy(ingest, expected, archive.content(), progress)?;
                    }
                    if missing.is_empty() {
                        return Ok(());
                    }
                }
                Err(self.lacks(missing.keys().next().map_or("", String::as_str)))
            }
        }
    }

    fn lacks(&self, name: &str) -> Error {
        Error::invalid(self.what(), format!("has no {name}; it is not complete"))
    }
}

fn copy(
    ingest: &Ingest<'_>,
    (digest, size): (Digest, u64),
    content: impl Read,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let what = format!("blob {digest}");
    let advance = |done| progress.advance(&what, done, size);
    ingest.copy(&what, Some((digest.clone(), size)), content, advance)?;
    Ok(())
}

fn open_folder(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).at("open", path)
}

/// A regular file of a layout folder and its size. A link may lead anywhere, and a fifo hangs.
fn open_member(folder: &OwnedFd, name: &str, what: &str) -> Result<Option<(File, u64)>, Error> {
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP | Errno::XDEV | Errno::NXIO) => return Err(not_plain(what, name)),
        Err(error) => return Err(error).doing(|| format!("open {name} of {what}")),
    };
    let stat = rustix::fs::fstat(&file).doing(|| format!("stat {name} of {what}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(not_plain(what, name));
    }
    Ok(Some((file, stat.st_size.unsigned_abs())))
}

fn not_plain(what: &str, name: &str) -> Error {
    Error::invalid(what, format!("{name} is not a regular file: refused"))
}

fn import_layout(
    ingest: &Ingest<'_>,
    source: &mut Source<'_>,
    progress: &dyn Progress,
) -> Result<Vec<Found>, Error> {
    let what = source.what();
    if source.document("oci-layout")?.is_none() {
        return Err(Error::invalid(
            what,
            "is no image: a folder must be an OCI layout, with files oci-layout and index.json",
        ));
    }
    let bytes = source
        .document("index.json")?
        .ok_or_else(|| source.lacks("index.json"))?;
    let Document::Index(entries) = Document::parse(&bytes, &format!("{what}: index.json"))? else {
        return Err(Error::invalid(what, "index.json is no index"));
    };
    let mut groups: BTreeMap<Vec<String>, Vec<Descriptor>> = BTreeMap::new();
    for entry in entries {
        if manifest::is_document(&entry.media_type) {
            groups.entry(names(&entry)).or_default().push(entry);
        }
    }
    let mut found = Vec::new();
    for (references, group) in groups {
        // nameless neighbours of one platform each are images of their own
        let distinct = group.iter().all(|entry| entry.platform.is_none());
        let picked: Vec<&Descriptor> = if distinct {
            group.iter().collect()
        } else {
            vec![manifest::choose(&group, &Platform::host(), &what)?]
        };
        for descriptor in picked {
            let digest = descend(ingest, source, descriptor, progress)?;
            found.push(Found {
                manifest: digest,
                references: references.clone(),
            });
        }
    }
    Ok(found)
}

/// Names of an index entry: containerd's full one, or OCI's when it is more than a tag.
fn names(entry: &Descriptor) -> Vec<String> {
    let full = entry.annotation("io.containerd.image.name");
    let plain = entry
        .annotation("org.opencontainers.image.ref.name")
        .filter(|name| name.contains(['/', ':']));
    full.or(plain)
        .and_then(|name| reference::normalise(name).ok())
        .into_iter()
        .collect()
}

/// From an index entry to the manifest for this machine, with all its blobs.
fn descend(
    ingest: &Ingest<'_>,
    source: &Source<'_>,
    descriptor: &Descriptor,
    progress: &dyn Progress,
) -> Result<Digest, Error> {
    let mut current = descriptor.clone();
    let mut seen = BTreeSet::new();
    while seen.len() < MAX_DEPTH && seen.insert(current.digest.clone()) {
        if current.size > MAX_MANIFEST {
            let why = format!("claims {} bytes, no manifest has that many", current.size);
            return Err(Error::invalid(current.digest, why));
        }
        source.fetch(ingest, &[&current], progress)?;
        let digest = current.digest()?;
        let bytes = ingest.store.read_blob(&digest, MAX_MANIFEST)?;
        match Document::parse(&bytes, digest.as_str())? {
            Document::Index(entries) => {
                let what = source.what();
                current = manifest::choose(&entries, &Platform::host(), &what)?.clone();
            }
            Document::Manifest(parsed) => {
                let mut blobs = vec![&parsed.config];
                blobs.extend(&parsed.layers);
                source.fetch(ingest, &blobs, progress)?;
                return Ok(digest);
            }
        }
    }
    Err(Error::invalid(
        source.what(),
        format!("indexes refer to each other more than {MAX_DEPTH} deep"),
    ))
}

/// One layer, taken as it is, and a configuration that says nothing but the platform.
fn import_rootfs(
    ingest: &Ingest<'_>,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Vec<Found>, Error> {
    let what = path.display().to_string();
    let file = File::open(path).at("open", path)?;
    let total = file.metadata().at("stat", path)?.len();
    let (layer, size) = ingest.copy(&what, None, file, |done| {
        progress.advance(&what, done, total);
    })?;
    let blob = ingest.store.blob_path(&layer);
    let file = File::open(&blob).at("open", &blob)?;
    let mut stream = stream::Layer::open(file, size).at("read", path)?;
    std::io::copy(&mut stream, &mut std::io::sink()).at("read", path)?;
    let compression = stream.compression();
    let (diff_id, _) = stream.finish();
    let host = Platform::host();
    let config = serde_json::json!({
        "architecture": host.architecture,
        "os": host.os,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id.as_str()]},
        "history": [{"created_by": "import of a root file system"}],
    });
    let layers = [(layer, size, compression)];
    let manifest = put_manifest(ingest, config.to_string().as_bytes(), &layers)?;
    Ok(vec![Found {
        manifest,
        references: Vec::new(),
    }])
}

/// Stores a configuration and a manifest for layers that are in the store.
pub(super) fn put_manifest(
    ingest: &Ingest<'_>,
    config: &[u8],
    layers: &[(Digest, u64, Compression)],
) -> Result<Digest, Error> {
    let digest = ingest.put("configuration", config)?;
    let layers: Vec<_> = layers
        .iter()
        .map(|(digest, size, compression)| {
            let suffix = match compression {
                Compression::None => "",
                Compression::Gzip => "+gzip",
                Compression::Zstd => "+zstd",
            };
            serde_json::json!({
                "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
                "digest": digest.as_str(),
                "size": size,
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": manifest::OCI_MANIFEST,
        "config": {
            "mediaType": manifest::OCI_CONFIG,
            "digest": digest.as_str(),
            "size": config.len(),
        },
        "layers": layers,
    });
    ingest.put("manifest", manifest.to_string().as_bytes())
}

/// A link target for messages.
pub(super) fn shown_name(name: &str) -> String {
    shown(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_names() {
        for (path, expected) in [
            ("a/b", Some("a/b")),
            ("./a//b/", Some("a/b")),
            ("/a", Some("a")),
            ("a/../b", Some("b")),
            ("a/b/../../c", Some("c")),
            ("..", None),
            ("a/../..", None),
            (".", None),
            ("", None),
        ] {
            assert_eq!(member_name(path.as_bytes()).as_deref(), expected, "{path}");
        }
        assert_eq!(member_name(b"\xff"), None);
    }
}
