//! Reading archives: decompression by content, tar entries with resolved metadata.
//!
//! *Invariants:* memory is bounded (one extended header, one buffer, whatever the archive claims);
//! entries come out with checked numbers but with names as they stand: the reader of an entry
//! judges its name. What follows the end of an archive is left to be drained.

use std::io::{self, BufReader, Read};

use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, SparseEntry};

/// Bytes read at once.
const CHUNK: usize = 128 << 10;
/// Extended headers of one entry (bytes); xattrs may have 64 KiB each.
const MAX_METADATA: u32 = 1 << 20;
/// zstd windows beyond this (log2 of bytes) are refused: memory.
const MAX_ZSTD_WINDOW: u32 = 27;
/// Longest path, PATH_MAX of Linux.
const MAX_PATH: u32 = 4096;

/// Compression of a blob, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// `Err` names a compression that is known but not supported.
    pub(super) fn detect(start: &[u8]) -> Result<Compression, &'static str> {
        match start {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
            // a skippable frame may come first (RFC 8878 §3.1.2)
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Err("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err("bzip2"),
            _ => Ok(Compression::None),
        }
    }
}

/// Decompresses whatever `input` is.
pub(super) fn decompress<'a>(
    input: impl Read + 'a,
) -> io::Result<(Box<dyn Read + 'a>, Compression)> {
    let mut input = input;
    let mut start = Vec::with_capacity(8);
    input.by_ref().take(8).read_to_end(&mut start)?;
    let compression = Compression::detect(&start).map_err(|name| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{name} compression is not supported; use gzip, zstd or none"),
        )
    })?;
    let whole = BufReader::with_capacity(CHUNK, io::Cursor::new(start).chain(input));
    let reader: Box<dyn Read + 'a> = match compression {
        Compression::None => Box::new(whole),
        // several members in one file: pigz, stargz
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(whole)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW)?;
            Box::new(decoder)
        }
    };
    Ok((reader, compression))
}

/// A point in time as the kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Time {
    pub(super) seconds: i64,
    /// Below 10⁹.
    pub(super) nanoseconds: u32,
}

/// Kind of an entry with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    /// Data regions (offset, length) and the logical size.
    Sparse(Vec<(u64, u64)>, u64),
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
    Other(u8),
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// As in the archive.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Permission bits with setuid, setgid, sticky.
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) modified: Time,
    pub(super) accessed: Option<Time>,
    /// Bytes of content in the archive.
    pub(super) size: u64,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The path for messages.
    pub(super) fn name(&self) -> String {
        shown(&self.path)
    }
}

/// Outside bytes for a message: bounded, without control characters.
pub(super) fn shown(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes)
        .chars()
        .take(256)
        .flat_map(char::escape_default)
        .collect();
    format!("\"{text}\"")
}

/// Reads the entries of an uncompressed tar stream.
pub(super) struct Archive<R> {
    input: R,
    parser: Parser,
    buffer: Vec<u8>,
    start: usize,
    /// Content of the current entry that is not read yet, and its padding.
    content: u64,
    padding: u64,
    ended: bool,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(input: R) -> Self {
        let limits = Limits {
            max_metadata_size: MAX_METADATA,
            max_path_len: Some(MAX_PATH),
            ..Limits::default()
        };
        let mut parser = Parser::new(limits);
        // fractions and negative times are ours to read; `resolve` checks the numbers again
        parser.set_ignore_pax_errors(true);
        Archive {
            input,
            parser,
            buffer: Vec::new(),
            start: 0,
            content: 0,
            padding: 0,
            ended: false,
        }
    }

    /// The next entry; skips what is left of the current one.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        self.skip_content()?;
        while !self.ended {
            let unread = self.buffer.get(self.start..).unwrap_or_default();
            if unread.is_empty() && !self.fill(1)? {
                // an archive without end marker: tar(5) readers take it
                self.ended = true;
                break;
            }
            let unread = self.buffer.get(self.start..).unwrap_or_default();
            match self.parser.parse(unread).map_err(malformed)? {
                ParseEvent::NeedData { min_bytes } => {
                    // a sparse map without line ends: the parser would ask for ever
                    if min_bytes <= unread.len() {
                        return Err(malformed("a header without an end"));
                    }
                    if !self.fill(min_bytes)? {
                        return Err(truncated());
                    }
                }
                ParseEvent::Entry { consumed, entry } => {
                    let entry = resolve(&entry, None)?;
                    self.begin(consumed, entry.size);
                    return Ok(Some(entry));
                }
                ParseEvent::SparseEntry {
                    consumed,
                    entry,
                    sparse_map,
                    real_size,
                } => {
                    let entry = resolve(&entry, Some((sparse_map, real_size)))?;
                    self.begin(consumed, entry.size);
                    return Ok(Some(entry));
                }
                // defaults for all entries: Docker and containerd pass over them too
                ParseEvent::GlobalExtensions { consumed, .. } => self.start += consumed,
                ParseEvent::End { consumed } => {
                    self.start += consumed;
                    self.ended = true;
                }
            }
        }
        Ok(None)
    }

    fn begin(&mut self, consumed: usize, size: u64) {
        self.start += consumed;
        self.content = size;
        self.padding = size.wrapping_neg() % 512;
    }

    /// Makes at least `wanted` unread bytes available; false at the end of the input.
    fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        // a header chain is bounded by the parser's limits; this is the belt
        if wanted > (MAX_METADATA as usize) * 2 + CHUNK {
            return Err(malformed("a header of more than 2 MiB"));
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        while self.buffer.len() < wanted {
            let old = self.buffer.len();
            let missing = (wanted - old).next_multiple_of(512) as u64;
            // no more than is needed: content is read past this buffer
            if self
                .input
                .by_ref()
                .take(missing)
                .read_to_end(&mut self.buffer)?
                == 0
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn skip_content(&mut self) -> io::Result<()> {
        io::copy(&mut Content(self), &mut io::sink())?;
        let mut padding = self.padding;
        self.padding = 0;
        let buffered = (self.buffer.len() - self.start).min(padding as usize);
        self.start += buffered;
        padding -= buffered as u64;
        // padding cut off at the very end is as good as a missing end marker
        io::copy(&mut self.input.by_ref().take(padding), &mut io::sink())?;
        Ok(())
    }

    /// The content of the current entry.
    pub(super) fn content(&mut self) -> Content<'_, R> {
        Content(self)
    }

    /// The stream behind the archive.
    pub(super) fn get_ref(&self) -> &R {
        &self.input
    }
}

/// The rest of the current entry's content; ends early only with an error.
pub(super) struct Content<'a, R>(&'a mut Archive<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let archive = &mut *self.0;
        let wanted = archive.content.min(into.len() as u64) as usize;
        let Some(into) = into.get_mut(..wanted).filter(|part| !part.is_empty()) else {
            return Ok(0);
        };
        let buffered = archive.buffer.get(archive.start..).unwrap_or_default();
        let count = if buffered.is_empty() {
            archive.input.read(into)?
        } else {
            let mut buffered = buffered;
            let count = buffered.read(into)?;
            archive.start += count;
            count
        };
        if count == 0 {
            return Err(truncated());
        }
        archive.content -= count as u64;
        Ok(count)
    }
}

fn malformed(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed tar: {why}"))
}

fn truncated() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the archive ends in the middle of an entry",
    )
}

fn resolve(entry: &ParsedEntry<'_>, sparse: Option<(Vec<SparseEntry>, u64)>) -> io::Result<Entry> {
    let path = entry.path.to_vec();
    let mut resolved = Entry {
        kind: kind(entry, &path, sparse)?,
        path,
        mode: entry.mode & 0o7777,
        uid: entry.uid,
        gid: entry.gid,
        modified: Time {
            seconds: i64::try_from(entry.mtime).unwrap_or(i64::MAX),
            nanoseconds: 0,
        },
        accessed: None,
        size: entry.size,
        xattrs: Vec::new(),
    };
    // only files have content, whatever the size field says (pax, "Header Block", typeflag)
    if !matches!(
        resolved.kind,
        Kind::File | Kind::Sparse(..) | Kind::Other(_)
    ) {
        resolved.size = 0;
    }
    if let Some(pax) = entry.pax {
        apply_pax(&mut resolved, pax)?;
    }
    let nul = |bytes: &[u8]| bytes.contains(&0);
    let target_nul = match &resolved.kind {
        Kind::Symlink(target) | Kind::HardLink(target) => nul(target),
        _ => false,
    };
    if nul(&resolved.path) || target_nul {
        return Err(malformed(format!("NUL in the name of {}", resolved.name())));
    }
    Ok(resolved)
}

fn kind(
    entry: &ParsedEntry<'_>,
    path: &[u8],
    sparse: Option<(Vec<SparseEntry>, u64)>,
) -> io::Result<Kind> {
    if let Some((map, size)) = sparse {
        return sparse_kind(entry, map, size);
    }
    let link = || {
        entry
            .link_target
            .as_deref()
            .map(<[u8]>::to_vec)
            .ok_or_else(|| malformed(format!("link {} without a target", shown(path))))
    };
    let device = || (entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0));
    Ok(match entry.entry_type {
        // a directory of the oldest tars: a file whose name ends with a slash
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Link => Kind::HardLink(link()?),
        EntryType::Symlink => Kind::Symlink(link()?),
        EntryType::Char => Kind::Character(device().0, device().1),
        EntryType::Block => Kind::Block(device().0, device().1),
        EntryType::Directory => Kind::Directory,
        EntryType::Fifo => Kind::Fifo,
        EntryType::Other(code) => Kind::Other(code),
        EntryType::GnuLongName => Kind::Other(b'L'),
        EntryType::GnuLongLink => Kind::Other(b'K'),
        EntryType::GnuSparse => Kind::Other(b'S'),
        EntryType::XHeader => Kind::Other(b'x'),
        EntryType::XGlobalHeader => Kind::Other(b'g'),
    })
}

/// Regions must ascend, lie within the file and add up to the content.
fn sparse_kind(entry: &ParsedEntry<'_>, map: Vec<SparseEntry>, size: u64) -> io::Result<Kind> {
    let mut end = 0u64;
    let mut sum = 0u64;
    let mut regions = Vec::with_capacity(map.len());
    for region in map {
        let next = region.offset.checked_add(region.length);
        match next {
            Some(next) if region.offset >= end && next <= size => end = next,
            _ => return Err(malformed(format!("sparse map of {}", shown(&entry.path)))),
        }
        sum += region.length;
        regions.push((region.offset, region.length));
    }
    if sum != entry.size {
        return Err(malformed(format!(
            "sparse map of {} has {sum} bytes for {} of content",
            shown(&entry.path),
            entry.size
        )));
    }
    Ok(Kind::Sparse(regions, size))
}

/// What the parser leaves out or is lenient about: times with fractions, both xattr forms, strict
/// numbers and a strict end (a list that stops early could hide a second meaning).
fn apply_pax(entry: &mut Entry, pax: &[u8]) -> io::Result<()> {
    let mut rest = pax;
    while !rest.is_empty() {
        let (key, value);
        (key, value, rest) = record(rest)
            .ok_or_else(|| malformed(format!("extended header of {}", entry.name())))?;
        match key {
            b"mtime" => entry.modified = time(value)?,
            b"atime" => entry.accessed = Some(time(value)?),
            b"size" | b"uid" | b"gid" => {
                let text = std::str::from_utf8(value).ok();
                if text.and_then(|text| text.parse::<u64>().ok()).is_none() {
                    let (key, value) = (shown(key), shown(value));
                    return Err(malformed(format!("{key} {value} of {}", entry.name())));
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    entry.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    libarchive_xattr(entry, name, value)?;
                }
            }
        }
    }
    Ok(())
}

/// Splits `"<length> <key>=<value>\n"` off (pax, "Extended Header"): key, value, rest.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(data.get(..space)?).ok()?.parse().ok()?;
    let body = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&byte| byte == b'=')?;
    Some((
        body.get(..equals)?,
        body.get(equals + 1..)?,
        data.get(length..)?,
    ))
}

fn libarchive_xattr(entry: &mut Entry, name: &[u8], value: &[u8]) -> io::Result<()> {
    let known = entry.xattrs.iter().any(|(other, _)| other == name);
    // libarchive writes both forms; the other one needs no decoding
    if known {
        return Ok(());
    }
    let decoded = super::auth::base64_decode(value)
        .ok_or_else(|| malformed(format!("xattr {} of {}", shown(name), entry.name())))?;
    entry.xattrs.push((name.to_vec(), decoded));
    Ok(())
}

/// `[-]seconds[.fraction]` (pax, "File Times").
fn time(value: &[u8]) -> io::Result<Time> {
    let wrong = || malformed(format!("time {}", shown(value)));
    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    let mut nanoseconds = 0u32;
    for place in 0..9 {
        let digit = match fraction.as_bytes().get(place) {
            None => 0,
            Some(byte @ b'0'..=b'9') => u32::from(byte - b'0'),
            Some(_) => return Err(wrong()),
        };
        nanoseconds = nanoseconds * 10 + digit;
    }
    if whole.starts_with('-') && nanoseconds > 0 {
        return Ok(Time {
            seconds: seconds.checked_sub(1).ok_or_else(wrong)?,
            nanoseconds: 1_000_000_000 - nanoseconds,
        });
    }
    Ok(Time {
        seconds,
        nanoseconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    #[test]
    fn times() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("1700000000.123456789", 1_700_000_000, 123_456_789),
            ("1700000000.5", 1_700_000_000, 500_000_000),
            ("1.1234567899", 1, 123_456_789),
            ("-1", -1, 0),
            ("-1.25", -2, 750_000_000),
            ("-0.5", -1, 500_000_000),
        ] {
            let expected = Time {
                seconds,
                nanoseconds,
            };
            assert_eq!(time(text.as_bytes()).unwrap(), expected, "{text}");
        }
        for bad in ["", "x", "1.x", "1e9", "99999999999999999999"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn records() {
        assert_eq!(
            record(b"20 path=foo/bar.txt\n6 a=\n"),
            Some((&b"path"[..], &b"foo/bar.txt"[..], &b"6 a=\n"[..]))
        );
        for bad in [
            "", "6", "6 a=b", "0 a=b\n", "99 a=b\n", "2 a=b\n", "6 abc\n", "x a=b\n",
        ] {
            assert_eq!(record(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn compressions() {
        let text = b"some text, repeated some text".repeat(9);
        let gzip = |bytes: &[u8]| {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        };
        let members = [gzip(&text[..50]), gzip(&text[50..])].concat();
        let zstd = zstd::encode_all(&text[..], 1).unwrap();
        let skippable = [b"\x50\x2a\x4d\x18\x02\0\0\0hi".to_vec(), zstd.clone()].concat();
        for (bytes, expected) in [
            (text.to_vec(), Compression::None),
            (gzip(&text), Compression::Gzip),
            (members, Compression::Gzip),
            (zstd, Compression::Zstd),
            (skippable, Compression::Zstd),
        ] {
            let (mut reader, compression) = decompress(&bytes[..]).unwrap();
            let mut out = Vec::new();
            reader.read_to_end(&mut out).unwrap();
            assert_eq!((out, compression), (text.clone(), expected));
        }
        for known in [&b"\xfd7zXZ\0\0\0"[..], b"BZh91AY&SY"] {
            assert!(decompress(known).is_err());
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let mut archive = Archive::new(&bytes[..]);
            while let Ok(Some(_)) = archive.next() {}
            if let Ok((mut reader, _)) = decompress(&bytes[..]) {
                let _ = io::copy(&mut reader, &mut io::sink());
            }
        }

        #[test]
        fn random_pax_never_panics(text in "([0-9]{1,3} [a-zA-Z.]{1,20}=[^=]{0,20}\n){0,5}") {
            let mut entry = Entry {
                path: b"x".to_vec(), kind: Kind::File, mode: 0, uid: 0, gid: 0,
                modified: Time::default(), accessed: None, size: 0, xattrs: Vec::new(),
            };
            let _ = apply_pax(&mut entry, text.as_bytes());
        }
    }
}
