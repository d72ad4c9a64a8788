//! Zip archives (APPNOTE.TXT 6.3): stored and deflated entries, found by the central directory.
//!
//! *Invariants:* only what the directory at the end lists is read; sizes and checksums are the directory's, and content that differs is an
//! error; an entry inflates to no more than the directory says; memory is bounded by the directory, which is. Zip64, encryption, parts
//! and other methods are refused.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::archive::{Entry, Kind, Time};
use super::error::{Context, Error};
use super::unpack::Tree;

/// §4.3.16 "End of central directory record".
const END: &[u8; 4] = b"PK\x05\x06";
/// §4.3.12 "Central directory structure".
const DIRECTORY: &[u8; 4] = b"PK\x01\x02";
/// §4.3.7 "Local file header".
const LOCAL: &[u8; 4] = b"PK\x03\x04";
/// The end record and the longest comment behind it.
const END_MAX: u64 = 22 + 65_535;
/// Bytes of the directory.
const DIRECTORY_MAX: u32 = 64 << 20;
/// Bytes of all content; deflate reaches 1032:1.
const CONTENT_MAX: u64 = 64 << 30;
/// §4.4.4: encrypted, strongly encrypted, masked.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
/// §4.4.2.2: attributes are those of unix.
const UNIX: u8 = 3;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;
/// `S_IFMT`, `S_IFLNK`.
const KIND: u32 = 0o170_000;
const LINK: u32 = 0o120_000;
/// Longest target of a link.
const TARGET_MAX: u64 = 4096;

/// The file begins as a zip archive does.
pub(super) fn is_zip(file: &mut File) -> io::Result<bool> {
    let mut start = [0; 4];
    file.seek(SeekFrom::Start(0))?;
    match file.read_exact(&mut start) {
        Ok(()) => Ok(&start == LOCAL || &start == END),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// An entry of the directory.
struct Listed {
    name: Vec<u8>,
    method: u16,
    checksum: u32,
    compressed: u64,
    size: u64,
    /// Permission bits and kind, as unix has them.
    mode: u32,
    /// Where its local header is.
    at: u64,
}

/// Makes every entry.
pub(super) fn extract(
    file: &File,
    size: u64,
    tree: &mut Tree<'_>,
    what: &str,
) -> Result<(), Error> {
    let refuse = |why: &str| Error::invalid(what, why);
    let directory = directory(file, size).doing(|| format!("read {what}"))?;
    let directory = directory.map_err(refuse)?;
    let mut rest = directory.as_slice();
    let mut left = CONTENT_MAX;
    while !rest.is_empty() {
        let (listed, after) = listed(rest).ok_or_else(|| refuse("its directory is broken"))?;
        rest = after;
        let entry = |why: &str| tree_refuse(tree, &listed.name, why);
        if listed.method != STORED && listed.method != DEFLATED {
            return Err(entry("it is compressed by another method than deflate"));
        }
        left = left
            .checked_sub(listed.size)
            .ok_or_else(|| refuse("it holds more than 64 GiB"))?;
        make(file, &listed, tree, what)?;
    }
    Ok(())
}

fn tree_refuse(tree: &Tree<'_>, name: &[u8], why: &str) -> Error {
    tree.refuse(name, why)
}

fn make(file: &File, listed: &Listed, tree: &mut Tree<'_>, what: &str) -> Result<(), Error> {
    let reading = || format!("read {what}");
    let mut header = [0; 30];
    file.read_exact_at(&mut header, listed.at).doing(reading)?;
    let lengths = (half(&header, 26), half(&header, 28));
    let (Some(name), Some(extra), true) = (lengths.0, lengths.1, header.starts_with(LOCAL)) else {
        return Err(tree.refuse(&listed.name, "its header is not where the directory says"));
    };
    let start = listed.at + 30 + u64::from(name) + u64::from(extra);
    let raw = Part {
        file,
        at: start,
        left: listed.compressed,
    };
    let inflated: Box<dyn Read + '_> = match listed.method {
        STORED => Box::new(raw),
        _ => Box::new(flate2::read::DeflateDecoder::new(raw)),
    };
    let mut content = Checked {
        inner: inflated.take(listed.size.saturating_add(1)),
        crc: flate2::Crc::new(),
        size: 0,
    };
    let kind = match (listed.mode & KIND, listed.name.ends_with(b"/")) {
        (_, true) => Kind::Directory,
        (LINK, false) => {
            let mut target = Vec::new();
            (&mut content)
                .take(TARGET_MAX + 1)
                .read_to_end(&mut target)
                .doing(reading)?;
            if target.is_empty() || target.len() as u64 > TARGET_MAX {
                return Err(tree.refuse(
                    &listed.name,
                    "a link without a target, or with too long a one",
                ));
            }
            Kind::Symlink(target)
        }
        _ => Kind::File,
    };
    let directory = kind == Kind::Directory;
    let permissions = match (listed.mode & 0o777, directory) {
        (0, true) => 0o755,
        (0, false) => 0o644,
        (mode, _) => mode,
    };
    let is_link = matches!(kind, Kind::Symlink(_));
    let entry = Entry {
        path: listed.name.clone(),
        kind,
        mode: permissions,
        uid: 0,
        gid: 0,
        modified: Time::default(),
        accessed: None,
        size: if is_link { 0 } else { listed.size },
        xattrs: Vec::new(),
    };
    tree.apply(&entry, &mut content)?;
    if directory {
        return Ok(());
    }
    // what is left is more than the directory says
    io::copy(&mut content, &mut io::sink()).doing(reading)?;
    match (content.size, content.crc.sum()) == (listed.size, listed.checksum) {
        true => Ok(()),
        false => Err(tree.refuse(
            &listed.name,
            "size or checksum is not what the directory says",
        )),
    }
}

/// A part of a file.
struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Counts and sums up what is read.
struct Checked<R> {
    inner: R,
    crc: flate2::Crc,
    size: u64,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.crc.update(buffer.get(..count).unwrap_or_default());
        self.size += count as u64;
        Ok(count)
    }
}

/// The bytes of the central directory.
fn directory(file: &File, size: u64) -> io::Result<Result<Vec<u8>, &'static str>> {
    let tail_size = size.min(END_MAX);
    let mut tail = vec![0; tail_size as usize];
    file.read_exact_at(&mut tail, size - tail_size)?;
    let found = tail.windows(END.len()).rposition(|window| window == END);
    let Some(end) = found.and_then(|at| tail.get(at..)) else {
        return Ok(Err(
            "it has no end of a zip archive; it is cut off, or something else",
        ));
    };
    let disks = (half(end, 4), half(end, 6));
    let (Some(length), Some(start)) = (word(end, 12), word(end, 16)) else {
        return Ok(Err("it is cut off"));
    };
    if disks != (Some(0), Some(0)) {
        return Ok(Err(
            "it is a part of several, or zip64; neither is supported",
        ));
    }
    let beyond = u64::from(start) + u64::from(length) > size;
    if start == u32::MAX || length > DIRECTORY_MAX || beyond {
        return Ok(Err(
            "its directory is too large, or not where its end says (zip64 is not supported)",
        ));
    }
    let mut directory = vec![0; length as usize];
    file.read_exact_at(&mut directory, start.into())?;
    Ok(Ok(directory))
}

/// The first entry, and what follows.
fn listed(bytes: &[u8]) -> Option<(Listed, &[u8])> {
    if !bytes.starts_with(DIRECTORY) {
        return None;
    }
    let (name, extra, comment) = (half(bytes, 28)?, half(bytes, 30)?, half(bytes, 32)?);
    let name_end = 46 + usize::from(name);
    let rest = name_end + usize::from(extra) + usize::from(comment);
    let unix = bytes.get(5) == Some(&UNIX);
    let encrypted = half(bytes, 8)? & ENCRYPTED != 0;
    let sizes = (word(bytes, 20)?, word(bytes, 24)?);
    let at = word(bytes, 42)?;
    let zip64 = [sizes.0, sizes.1, at].contains(&u32::MAX);
    let listed = Listed {
        name: bytes.get(46..name_end)?.to_vec(),
        // neither can be read: the method tells so
        method: if encrypted || zip64 {
            u16::MAX
        } else {
            half(bytes, 10)?
        },
        checksum: word(bytes, 16)?,
        compressed: sizes.0.into(),
        size: sizes.1.into(),
        mode: if unix { word(bytes, 38)? >> 16 } else { 0 },
        at: at.into(),
    };
    Some((listed, bytes.get(rest..)?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_le_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::super::extract::{Owner, extract};
    use proptest::prelude::*;
    use std::io::Write;

    /// An archive of stored or deflated entries: name, mode with kind, content.
    fn archive(entries: &[(&str, u32, &[u8])], deflate: bool) -> Vec<u8> {
        let (mut out, mut directory) = (Vec::new(), Vec::new());
        for (name, mode, content) in entries {
            let mut crc = flate2::Crc::new();
            crc.update(content);
            let body = match deflate {
                false => content.to_vec(),
                true => {
                    let level = flate2::Compression::default();
                    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
                    encoder.write_all(content).unwrap();
                    encoder.finish().unwrap()
                }
            };
            let at = out.len() as u32;
            let method = if deflate { 8u16 } else { 0 };
            let mut common = Vec::new();
            common.extend([20, 0, 0, 0]);
            common.extend(method.to_le_bytes());
            common.extend([0; 4]);
            common.extend(crc.sum().to_le_bytes());
            common.extend((body.len() as u32).to_le_bytes());
            common.extend((content.len() as u32).to_le_bytes());
            common.extend((name.len() as u16).to_le_bytes());
            common.extend([0; 2]);
            out.extend(b"PK\x03\x04");
            out.extend(&common);
            out.extend(name.as_bytes());
            out.extend(&body);
            directory.extend(b"PK\x01\x02");
            directory.extend([20, 3]);
            directory.extend(&common);
            directory.extend([0; 6]);
            directory.extend((mode << 16).to_le_bytes());
            directory.extend(at.to_le_bytes());
            directory.extend(name.as_bytes());
        }
        let start = out.len() as u32;
        out.extend(&directory);
        out.extend(b"PK\x05\x06");
        out.extend([0; 4]);
        out.extend([entries.len() as u8, 0, entries.len() as u8, 0]);
        out.extend((directory.len() as u32).to_le_bytes());
        out.extend(start.to_le_bytes());
        out.extend([0; 2]);
        out
    }

    fn unpack(bytes: &[u8]) -> (tempfile::TempDir, Result<(), String>) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.zip");
        std::fs::write(&file, bytes).unwrap();
        std::fs::create_dir(dir.path().join("to")).unwrap();
        let owner = Owner {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let to = std::fs::File::open(dir.path().join("to")).unwrap();
        let file = std::fs::File::open(&file).unwrap();
        let done = extract(file, "x.zip", to.into(), owner).map_err(|e| e.to_string());
        (dir, done)
    }

    #[test]
    fn stored_and_deflated() {
        let long = b"abc".repeat(10_000);
        let entries: [(&str, u32, &[u8]); 4] = [
            ("d/", 0o040_755, b""),
            ("d/long", 0o100_644, &long),
            ("e/run", 0o104_755, b"#!"),
            ("link", 0o120_777, b"e/run"),
        ];
        for deflate in [false, true] {
            let (dir, done) = unpack(&archive(&entries, deflate));
            done.unwrap();
            let read = |name: &str| std::fs::read(dir.path().join("to").join(name)).unwrap();
            assert_eq!(
                (read("d/long"), read("link")),
                (long.clone(), b"#!".to_vec())
            );
            use std::os::unix::fs::PermissionsExt;
            let meta = std::fs::metadata(dir.path().join("to/e/run")).unwrap();
            assert_eq!(meta.permissions().mode() & 0o7777, 0o755);
        }
    }

    #[test]
    fn what_is_refused() {
        let good = archive(&[("a", 0o100_644, b"abc")], false);
        let mut wrong = good.clone();
        let at = wrong.windows(3).position(|w| w == b"abc").unwrap();
        wrong[at] = b'x';
        let cut = &good[..good.len() - 10];
        let out = archive(&[("../a", 0o100_644, b"abc")], false);
        let table = [
            (
                wrong.as_slice(),
                "size or checksum is not what the directory says",
            ),
            (cut, "it is cut off"),
            (out.as_slice(), "its path has .."),
        ];
        for (bytes, expected) in table {
            let (_dir, done) = unpack(bytes);
            let error = done.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..200, byte in any::<u8>(), cut in 0usize..200) {
            let mut bytes = archive(&[("a/b", 0o100_644, b"abcabcabc"), ("l", 0o120_777, b"a")], true);
            let end = bytes.len();
            bytes[at % end] = byte;
            bytes.truncate(end - cut % 40);
            let _ = unpack(&bytes);
        }
    }
}
