//! Tar streams, in and out: packages are read from one, a layer is written to one.
//!
//! *Invariants:* a written layer depends on the tree alone: sorted entries, numeric ids, whole-second modification
//! times, no access or change times, ustar headers with PAX records only where a value needs them, a gzip header without
//! name and time. Nothing is unpacked on this machine, so owners, devices and setuid bits need no privilege.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;
use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};

use super::tree::{Entry, Kind, Node, NodeId, Source, Tree};

/// Block size of tar.
const BLOCK: u64 = 512;
/// Two zero blocks end an archive.
const END: [u8; 1024] = [0; 1024];

/// File contents on their way from packages to a layer: one unnamed file.
#[derive(Debug)]
pub struct Spool {
    file: File,
    length: u64,
}

impl Spool {
    /// Makes an empty spool in `folder`.
    pub fn new(folder: &Path) -> io::Result<Spool> {
        let path = folder.join("spool");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        // unnamed from here on: gone with its descriptor
        fs::remove_file(&path)?;
        Ok(Spool { file, length: 0 })
    }

    /// Appends what `input` still has.
    pub fn append(&mut self, input: &mut dyn Read) -> io::Result<Kind> {
        let offset = self.length;
        let length = io::copy(input, &mut self.file)?;
        self.length += length;
        Ok(Kind::File { offset, length })
    }

    fn copy_to(&self, offset: u64, length: u64, output: &mut dyn Write) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        let mut done = 0;
        while done < length {
            let part = (length - done).min(buffer.len() as u64) as usize;
            self.file
                .read_exact_at(&mut buffer[..part], offset + done)?;
            output.write_all(&buffer[..part])?;
            done += part as u64;
        }
        Ok(())
    }
}

/// Reads a package's file archive into the tree; `kept` decides by canonical path. Returns the newest modification time
/// in it, seconds since 1970.
pub fn read_package(
    input: &mut dyn Read,
    package: &str,
    tree: &mut Tree,
    spool: &mut Spool,
    kept: &dyn Fn(&[u8]) -> bool,
) -> io::Result<u64> {
    let mut parser = Parser::new(Limits {
        max_path_len: Some(4096),
        ..Limits::default()
    });
    let mut reader = Buffered {
        input,
        buffer: Vec::new(),
    };
    // hard links name paths as the archive has them, also of files that are left out
    let mut seen = std::collections::HashMap::<Vec<u8>, NodeId>::new();
    let mut newest = 0;
    loop {
        let (consumed, entry) = match parser.parse(&reader.buffer).map_err(invalid)? {
            ParseEvent::NeedData { min_bytes } => {
                reader.fill(min_bytes)?;
                continue;
            }
            ParseEvent::Entry { consumed, entry } => (consumed, Header::of(&entry)),
            ParseEvent::SparseEntry { .. } => {
                return Err(invalid("sparse files do not occur in packages"));
            }
            ParseEvent::GlobalExtensions { consumed, .. } => {
                reader.buffer.drain(..consumed);
                continue;
            }
            ParseEvent::End { .. } => break,
        };
        reader.buffer.drain(..consumed);
        newest = newest.max(entry.mtime);
        let node = match entry.kind {
            EntryType::Link => *seen
                .get(&strip(&entry.link))
                .ok_or_else(|| invalid(format!("{}: hard link to nothing", entry.show())))?,
            _ => {
                let mut content = (&mut reader).take(entry.size);
                let kind = entry.kind(&mut content, spool)?;
                io::copy(&mut content, &mut io::sink())?;
                let padding = entry.size.next_multiple_of(BLOCK) - entry.size;
                io::copy(&mut (&mut reader).take(padding), &mut io::sink())?;
                tree.add(entry.node(kind))
            }
        };
        seen.insert(strip(&entry.path), node);
        let canonical = tree.canonical(&entry.path).map_err(invalid)?;
        if kept(&canonical) {
            tree.put(&entry.path, node, Source::Package(package))
                .map_err(invalid)?;
        }
    }
    // what follows the end is padding; reading it lets dpkg-deb finish
    io::copy(&mut reader, &mut io::sink())?;
    Ok(newest)
}

fn strip(path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path).to_vec()
}

fn invalid(e: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e.to_string())
}

/// What is kept of a parsed entry while its content is read.
struct Header {
    kind: EntryType,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
    size: u64,
    device: (u32, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Header {
    fn of(entry: &ParsedEntry<'_>) -> Header {
        Header {
            kind: entry.entry_type,
            path: entry.path.to_vec(),
            link: entry.link_target.as_deref().unwrap_or_default().to_vec(),
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            size: entry.size,
            device: (entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0)),
            xattrs: entry
                .xattrs
                .iter()
                .map(|(k, v)| (k.to_vec(), v.to_vec()))
                .collect(),
        }
    }

    fn show(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }

    fn kind(&self, content: &mut dyn Read, spool: &mut Spool) -> io::Result<Kind> {
        Ok(match self.kind {
            EntryType::Regular | EntryType::Continuous => {
                let kind = spool.append(content)?;
                match kind {
                    Kind::File { length, .. } if length < self.size => {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    _ => kind,
                }
            }
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(self.link.clone()),
            EntryType::Char => Kind::CharacterDevice(self.device.0, self.device.1),
            EntryType::Block => Kind::BlockDevice(self.device.0, self.device.1),
            EntryType::Fifo => Kind::Fifo,
            other => return Err(invalid(format!("{}: entry type {other:?}", self.show()))),
        })
    }

    fn node(&self, kind: Kind) -> Node {
        Node {
            kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: Some(self.mtime),
            xattrs: self.xattrs.clone(),
        }
    }
}

/// A reader whose next bytes can be looked at.
struct Buffered<'a> {
    input: &'a mut dyn Read,
    buffer: Vec<u8>,
}

impl Buffered<'_> {
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        let missing = wanted.saturating_sub(self.buffer.len()) as u64;
        let got = Read::take(&mut *self.input, missing).read_to_end(&mut self.buffer)? as u64;
        if missing == 0 || got < missing {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl Read for Buffered<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() {
            return self.input.read(out);
        }
        let part = out.len().min(self.buffer.len());
        out[..part].copy_from_slice(&self.buffer[..part]);
        self.buffer.drain(..part);
        Ok(part)
    }
}

/// A layer that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the archive before compression.
    pub diff_id: String,
    /// Digest of the blob.
    pub digest: String,
    /// Bytes of the blob.
    pub size: u64,
}

/// Writes the tree's present layer to `path`; nodes without a time get `time`.
pub fn write_layer(tree: &Tree, spool: &Spool, time: u64, path: &Path) -> io::Result<Layer> {
    let blob = Hashed::new(BufWriter::new(File::create_new(path)?));
    // no name, no time, operating system "unknown"
    let gzip = GzBuilder::new().write(blob, Compression::best());
    let mut archive = Hashed::new(gzip);
    for entry in tree.entries() {
        let (header, content) = header(tree, &entry, time)?;
        archive.write_all(&header)?;
        if let Some((offset, length)) = content {
            spool.copy_to(offset, length, &mut archive)?;
            let padding = length.next_multiple_of(BLOCK) - length;
            archive.write_all(&END[..padding as usize])?;
        }
    }
    archive.write_all(&END)?;
    let (gzip, diff_id, _) = archive.finish();
    let (mut file, digest, size) = gzip.finish()?.finish();
    file.flush()?;
    Ok(Layer {
        diff_id,
        digest,
        size,
    })
}

/// Header blocks of an entry and, for a file, where its content is.
type Encoded = (Vec<u8>, Option<(u64, u64)>);

fn header(tree: &Tree, entry: &Entry<'_>, time: u64) -> io::Result<Encoded> {
    let (path, first, id) = match entry {
        Entry::Node(path, id) => (path, None, id),
        Entry::HardLink(path, first, id) => (path, Some(first), id),
    };
    let node = tree.node(*id);
    let mut name = path.to_vec();
    let mut content = None;
    let mut out = EntryBuilder::new_ustar();
    match (&node.kind, first) {
        (_, Some(first)) => {
            out.entry_type(EntryType::Link).link_name(first);
        }
        (Kind::Directory, None) => {
            name.push(b'/');
            out.entry_type(EntryType::Directory);
        }
        (Kind::File { offset, length }, None) => {
            content = Some((*offset, *length));
            out.entry_type(EntryType::Regular);
        }
        (Kind::Symlink(target), None) => {
            out.entry_type(EntryType::Symlink).link_name(target);
        }
        (Kind::CharacterDevice(major, minor), None) => {
            out.entry_type(EntryType::Char)
                .device(*major, *minor)
                .map_err(invalid)?;
        }
        (Kind::BlockDevice(major, minor), None) => {
            out.entry_type(EntryType::Block)
                .device(*major, *minor)
                .map_err(invalid)?;
        }
        (Kind::Fifo, None) => {
            out.entry_type(EntryType::Fifo);
        }
    }
    out.path(&name)
        .mode(node.mode)
        .and_then(|o| o.uid(node.uid))
        .and_then(|o| o.gid(node.gid))
        .and_then(|o| o.mtime(node.mtime.unwrap_or(time)))
        .and_then(|o| o.size(content.map_or(0, |(_, length)| length)))
        .map_err(invalid)?;
    for (key, value) in &node.xattrs {
        let key = String::from_utf8_lossy(key);
        out.add_pax(&format!("SCHILY.xattr.{key}"), value);
    }
    Ok((out.finish_bytes(), content))
}

/// Passes bytes on and hashes them.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Self {
        Hashed {
            inner,
            hash: Sha256::new(),
            length: 0,
        }
    }

    fn finish(self) -> (W, String, u64) {
        (self.inner, digest_text(self.hash), self.length)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hash.update(&data[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// `sha256:<hex>` of bytes.
pub fn digest(data: &[u8]) -> String {
    digest_text(Sha256::new_with_prefix(data))
}

/// `sha256:<hex>` of a file.
pub fn digest_file(path: &Path) -> io::Result<String> {
    let mut hash = Hashed::new(io::sink());
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash.finish().1)
}

fn digest_text(hash: Sha256) -> String {
    let mut text = String::from("sha256:");
    for byte in hash.finalize() {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(kind: Kind, mode: u32) -> Node {
        Node {
            kind,
            uid: 3_000_000,
            gid: 42,
            mtime: Some(1_700_000_000),
            ..Node::directory(mode)
        }
    }

    /// One of every kind, names beyond ustar's 100 bytes, and a hard link whose first path sorts last.
    fn sample(spool: &mut Spool) -> Tree {
        let mut tree = Tree::default();
        let long = "d".repeat(120);
        let content = spool.append(&mut &b"content"[..]).unwrap();
        let mut file = node(content, 0o4755);
        file.xattrs = vec![(b"security.capability".to_vec(), b"\x01\n\x00".to_vec())];
        let file = tree.add(file);
        let from = Source::Package("p");
        tree.put(b"./z", file, from).unwrap();
        tree.put(b"./a", file, from).unwrap();
        let target = format!("/{long}").into_bytes();
        for (path, kind, mode) in [
            ("tmp", Kind::Directory, 0o1777),
            ("link", Kind::Symlink(target), 0o777),
            ("null", Kind::CharacterDevice(1, 3), 0o666),
            ("disk", Kind::BlockDevice(8, 0), 0o660),
            ("pipe", Kind::Fifo, 0o600),
            (
                &format!("{long}/empty"),
                Kind::File {
                    offset: 0,
                    length: 0,
                },
                0o644,
            ),
        ] {
            let id = tree.add(node(kind, mode));
            tree.put(path.as_bytes(), id, from).unwrap();
        }
        tree
    }

    /// Every entry with its metadata and content.
    fn listing(tree: &Tree, spool: &Spool) -> Vec<String> {
        let describe = |entry: &Entry<'_>| {
            let id = match entry {
                Entry::Node(_, id) | Entry::HardLink(_, _, id) => *id,
            };
            let n = tree.node(id);
            let mut content = Vec::new();
            let kind = match n.kind {
                Kind::File { offset, length } => {
                    spool.copy_to(offset, length, &mut content).unwrap();
                    format!("file {content:?}")
                }
                ref kind => format!("{kind:?}"),
            };
            let place = match entry {
                Entry::Node(path, _) => super::super::tree::show(path),
                Entry::HardLink(path, first, _) => format!("{path:?} = {first:?}"),
            };
            format!(
                "{place} {kind} {:o} {} {} {:?}",
                n.mode, n.uid, n.gid, n.xattrs
            )
        };
        tree.entries().iter().map(describe).collect()
    }

    fn read(data: &[u8], folder: &Path) -> io::Result<(Tree, Spool)> {
        let mut tree = Tree::default();
        let mut spool = Spool::new(folder)?;
        read_package(&mut &data[..], "p", &mut tree, &mut spool, &|_| true)?;
        Ok((tree, spool))
    }

    fn archive_of(folder: &Path) -> (Vec<u8>, Vec<String>) {
        let mut spool = Spool::new(folder).unwrap();
        let tree = sample(&mut spool);
        let path = folder.join("layer");
        let layer = write_layer(&tree, &spool, 7, &path).unwrap();
        let blob = fs::read(&path).unwrap();
        assert_eq!(layer.digest, digest(&blob));
        assert_eq!(layer.size, blob.len() as u64);
        let mut data = Vec::new();
        flate2::read::GzDecoder::new(&blob[..])
            .read_to_end(&mut data)
            .unwrap();
        assert_eq!(layer.diff_id, digest(&data));
        (data, listing(&tree, &spool))
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (data, expected) = archive_of(folder.path());
        let (tree, spool) = read(&data, folder.path()).unwrap();
        assert_eq!(listing(&tree, &spool), expected);
        assert_eq!(expected.len(), 9);
        assert!(expected.iter().any(|e| e == "[122] = [97] file [99, 111, 110, 116, 101, 110, 116] 4755 3000000 42 [([115, 101, 99, 117, 114, 105, 116, 121, 46, 99, 97, 112, 97, 98, 105, 108, 105, 116, 121], [1, 10, 0])]"), "{expected:#?}");
        // folders nobody named have the layer's time
        assert_eq!(tree.get("d".repeat(120).as_bytes()).unwrap().mtime, Some(7));
    }

    #[test]
    fn damaged_archives_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (data, _) = archive_of(folder.path());
        for cut in [1, 511, 512, 700, 1024, data.len() - 1024] {
            let error = read(&data[..cut], folder.path())
                .map(|_| ())
                .expect_err("cut");
            assert_eq!(
                error.kind(),
                io::ErrorKind::UnexpectedEof,
                "cut at {cut}: {error}"
            );
        }
        let mut wrong = data.clone();
        wrong[0] ^= 1;
        let error = read(&wrong, folder.path())
            .map(|_| ())
            .expect_err("checksum");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        let mut link = EntryBuilder::new_ustar();
        link.path(b"x")
            .entry_type(EntryType::Link)
            .link_name(b"nowhere");
        let data = link
            .mode(0)
            .and_then(|l| l.uid(0))
            .and_then(|l| l.gid(0))
            .and_then(|l| l.mtime(0))
            .and_then(|l| l.size(0))
            .unwrap()
            .finish_bytes();
        let error = read(&data, folder.path()).map(|_| ()).expect_err("link");
        assert_eq!(error.to_string(), "x: hard link to nothing");
    }
}
