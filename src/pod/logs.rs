//! Reading what containers printed: the two streams of a service, merged by time, line by line.
//!
//! The pieces of a log are what its index says (see the supervisor's pump); a line has the time of the piece that its first byte is in.
//! A log may consist of several files ([`parts`]), of which the oldest go while it is read. *Invariants:* no byte is given out twice; what
//! went before it was read is counted, and told.

pub mod parts;
mod reader;

pub use self::reader::Reader;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};

use super::layout::ServiceDir;
use super::{Error, Result};

/// Longest line given out at once (bytes); a longer one comes in parts.
pub const LINE_LIMIT: usize = 1 << 16;
/// Most bytes of a log in memory beside its lines.
const CHUNK: u64 = 1 << 20;
/// Most pieces known at once: a program that prints byte by byte makes one of each.
const PIECES: usize = 1 << 12;

/// A line with where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Service.
    pub service: String,
    /// `stdout` or `stderr`.
    pub stream: &'static str,
    /// Unix time in nanoseconds.
    pub time: i64,
    /// With its line feed, when it had one.
    pub text: Vec<u8>,
    /// Where it ends in the stream.
    pub end: u64,
}

/// Output that was removed before it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Service.
    pub service: String,
    /// `stdout` or `stderr`.
    pub stream: &'static str,
    /// How much.
    pub bytes: u64,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} bytes of {} were rotated away before they could be read",
            self.service, self.bytes, self.stream
        )
    }
}

/// Follows one stream of one service.
#[derive(Debug)]
pub struct Stream {
    service: String,
    stream: &'static str,
    dir: ServiceDir,
    /// Kept open: it may be removed while it is read.
    part: Option<Part>,
    /// Where the next byte is read.
    offset: u64,
    /// Something was read; what is missing from now on is lost.
    begun: bool,
    lost: u64,
    /// Pieces known and not used up: time, end.
    pieces: VecDeque<(i64, u64)>,
    /// A line that has not ended yet.
    partial: Option<(i64, Vec<u8>)>,
}

#[derive(Debug)]
struct Part {
    base: u64,
    log: File,
    index: File,
    /// Where the next line of the index is read.
    next: u64,
}

impl Stream {
    /// A reader from an offset on, or from what there is.
    pub fn new(
        service: &str,
        dir: &ServiceDir,
        stream: &'static str,
        offset: Option<u64>,
    ) -> Stream {
        Stream {
            service: service.to_owned(),
            stream,
            dir: dir.clone(),
            part: None,
            offset: offset.unwrap_or(0),
            begun: offset.is_some(),
            lost: 0,
            pieces: VecDeque::new(),
            partial: None,
        }
    }

    /// The same stream from another place on, as of [`Stream::new`].
    fn at(&self, offset: Option<u64>) -> Stream {
        Stream::new(&self.service, &self.dir, self.stream, offset)
    }

    /// Adds new complete lines, of about `limit` bytes; whether it stopped there.
    pub fn read(&mut self, limit: u64, lines: &mut Vec<Line>) -> Result<bool> {
        let until = self.offset.saturating_add(limit);
        loop {
            if self.part.is_none() && !self.open(lines)? {
                return Ok(false);
            }
            self.read_part(until, lines)?;
            if self.offset >= until {
                return Ok(true);
            }
            if !self.leave(until, lines)? {
                return Ok(self.offset >= until);
            }
        }
    }

    /// Adds the line that has not ended.
    pub fn flush(&mut self, lines: &mut Vec<Line>) {
        if let Some((time, text)) = self.partial.take() {
            lines.push(self.line(time, text, self.offset));
        }
    }

    /// What went since this was asked last.
    pub fn lost(&mut self) -> Option<Lost> {
        let bytes = std::mem::take(&mut self.lost);
        (bytes > 0).then(|| Lost {
            service: self.service.clone(),
            stream: self.stream,
            bytes,
        })
    }

    /// Opens the part that has the next byte, or the first behind it; whether there is one.
    fn open(&mut self, lines: &mut Vec<Line>) -> Result<bool> {
        loop {
            let bases = parts::list(&self.dir, self.stream)
                .map_err(Error::io("look for logs in", &self.dir.data))?;
            let at = bases.iter().rev().find(|base| **base <= self.offset);
            let Some(&base) = at.or(bases.first()) else {
                return Ok(false);
            };
            let path = self.dir.log_at(self.stream, base);
            let index = self.dir.index_at(self.stream, base);
            let (Some(log), Some(index)) = (
                open(&path).map_err(Error::io("open", &path))?,
                open(&index).map_err(Error::io("open", &index))?,
            ) else {
                // it went meanwhile
                continue;
            };
            if base > self.offset {
                self.flush(lines);
                self.pieces.clear();
                if self.begun {
                    self.lost += base - self.offset;
                }
                self.offset = base;
            }
            self.begun = true;
            self.part = Some(Part {
                base,
                log,
                index,
                next: 0,
            });
            return Ok(true);
        }
    }

    fn read_part(&mut self, until: u64, lines: &mut Vec<Line>) -> Result<()> {
        loop {
            let more = self.read_index()?;
            self.read_pieces(until, lines)?;
            if !more || !self.pieces.is_empty() {
                return Ok(());
            }
        }
    }

    fn read_pieces(&mut self, until: u64, lines: &mut Vec<Line>) -> Result<()> {
        while let Some(&(time, end)) = self.pieces.front()
            && self.offset < until
            && let Some(part) = &mut self.part
        {
            let mut piece = Vec::new();
            part.log
                .seek(SeekFrom::Start(self.offset - part.base))
                .and_then(|_| {
                    let room = (end - self.offset).min(until - self.offset).min(CHUNK);
                    (&mut part.log).take(room).read_to_end(&mut piece)
                })
                .map_err(Error::io("read", &self.dir.log_at(self.stream, part.base)))?;
            if piece.is_empty() {
                break;
            }
            self.split(time, &piece, lines);
            if self.offset >= end {
                self.pieces.pop_front();
            }
        }
        Ok(())
    }

    /// Closes a part that was read to its end and is followed by another; whether it was.
    fn leave(&mut self, until: u64, lines: &mut Vec<Line>) -> Result<bool> {
        let Some(base) = self.part.as_ref().map(|part| part.base) else {
            return Ok(false);
        };
        let there = |base| self.dir.log_at(self.stream, base).exists();
        if self.offset > base && there(self.offset) {
            self.part = None;
            return Ok(true);
        }
        if there(base) {
            return Ok(false);
        }
        // removed, so another one was begun and this one has all that it will ever have
        self.read_part(until, lines)?;
        let over = self.offset < until;
        if over {
            self.part = None;
        }
        Ok(over)
    }

    fn line(&self, time: i64, text: Vec<u8>, end: u64) -> Line {
        Line {
            service: self.service.clone(),
            stream: self.stream,
            time,
            text,
            end,
        }
    }

    fn split(&mut self, time: i64, piece: &[u8], lines: &mut Vec<Line>) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = part;
            while !rest.is_empty() {
                let (since, mut text) = self.partial.take().unwrap_or((time, Vec::new()));
                let (now, later) = rest.split_at(rest.len().min(LINE_LIMIT - text.len()));
                text.extend_from_slice(now);
                self.offset += now.len() as u64;
                rest = later;
                if text.ends_with(b"\n") || text.len() >= LINE_LIMIT {
                    lines.push(self.line(since, text, self.offset));
                } else {
                    self.partial = Some((since, text));
                }
            }
        }
    }

    /// Reads on in the index; whether it stopped at [`PIECES`].
    fn read_index(&mut self) -> Result<bool> {
        let Some(part) = &mut self.part else {
            return Ok(false);
        };
        let path = || self.dir.index_at(self.stream, part.base);
        part.index
            .seek(SeekFrom::Start(part.next))
            .map_err(|error| Error::io("seek in", &path())(error))?;
        let mut reader = BufReader::new(&part.index);
        let mut line = String::new();
        while self.pieces.len() < PIECES {
            line.clear();
            let count = reader
                .read_line(&mut line)
                .map_err(|error| Error::io("read", &path())(error))?;
            if count == 0 || !line.ends_with('\n') {
                return Ok(false);
            }
            part.next += count as u64;
            let piece = line
                .trim_end()
                .split_once(' ')
                .and_then(|(time, end)| Some((time.parse().ok()?, end.parse().ok()?)));
            // a line that a kill cut short may name any smaller end
            let before = self.pieces.back().map_or(self.offset, |(_, end)| *end);
            if let Some((time, end)) = piece
                && end > before
            {
                self.pieces.push_back((time, end));
            }
        }
        Ok(true)
    }
}

/// The last bytes of a stream, at most so many.
pub fn tail(dir: &ServiceDir, stream: &str, count: u64) -> io::Result<Vec<u8>> {
    let mut found = Vec::new();
    for base in parts::list(dir, stream)?.into_iter().rev() {
        let wanted = count - found.len() as u64;
        let Some(mut log) = open(&dir.log_at(stream, base))? else {
            break;
        };
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(wanted)))?;
        let mut part = Vec::new();
        log.take(wanted).read_to_end(&mut part)?;
        part.append(&mut found);
        found = part;
        if found.len() as u64 >= count {
            break;
        }
    }
    Ok(found)
}

fn open(path: &std::path::Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that there is now.
    fn read(reader: &mut Reader, last: bool) -> Vec<Line> {
        reader.fix().unwrap();
        std::iter::from_fn(|| reader.next(last).unwrap()).collect()
    }

    #[test]
    fn streams_merge_by_time_and_partial_lines_wait() {
        let dir = tempfile::tempdir().unwrap();
        let service = ServiceDir {
            dir: dir.path().to_path_buf(),
            data: dir.path().to_path_buf(),
        };
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("stdout.log", "one\ntwo\nthr");
        write("stdout.idx", "10 4\n30 11\n");
        write("stderr.log", "bad\n");
        write("stderr.idx", "20 4\n");
        let mut reader = Reader::new(&[("web".into(), service.clone())], i64::MIN);
        let seen = |lines: Vec<Line>| -> Vec<(i64, String)> {
            lines
                .into_iter()
                .map(|l| (l.time, String::from_utf8(l.text).unwrap()))
                .collect()
        };
        let line = |time: i64, text: &str| (time, text.to_string());
        assert_eq!(
            seen(read(&mut reader, false)),
            [line(10, "one\n"), line(20, "bad\n"), line(30, "two\n")]
        );
        write("stdout.log", "one\ntwo\nthree\n");
        write("stdout.idx", "10 4\n30 11\n40 14\n");
        assert_eq!(seen(read(&mut reader, true)), [line(30, "three\n")]);
        assert_eq!(read(&mut reader, true), []);
        write("stdout.log", "one\ntwo\nthree\nfour\n");
        write("stdout.idx", "10 4\n30 11\n40 14\n50 1\n60 19\n");
        assert_eq!(seen(read(&mut reader, true)), [line(60, "four\n")]);
        let mut again = Reader::new(&[("web".into(), service)], i64::MIN);
        assert_eq!(read(&mut again, true).len(), 5);
    }

    fn dir_of(dir: &std::path::Path) -> ServiceDir {
        ServiceDir {
            dir: dir.to_path_buf(),
            data: dir.to_path_buf(),
        }
    }

    fn texts(lines: Vec<Line>) -> Vec<(u64, String)> {
        let line = |line: Line| (line.end, String::from_utf8(line.text).unwrap());
        lines.into_iter().map(line).collect()
    }

    #[test]
    fn parts_are_one_stream() {
        let dir = tempfile::tempdir().unwrap();
        let service = dir_of(dir.path());
        let part = |base: u64, text: &str| {
            let end = base + text.len() as u64;
            std::fs::write(service.log_at("stdout", base), text).unwrap();
            let mut index = File::options();
            let index = index.append(true).create(true);
            let mut index = index.open(service.index_at("stdout", base)).unwrap();
            std::io::Write::write_all(&mut index, format!("{end} {end}\n").as_bytes()).unwrap();
        };
        let line = |end: u64, text: &str| (end, text.to_owned());
        let mut reader = Reader::new(&[("web".into(), service.clone())], i64::MIN);
        part(0, "one\ntw");
        assert_eq!(texts(read(&mut reader, false)), [line(4, "one\n")]);
        part(6, "o\nthree\nf");
        // gone while it was the one that is read: what is behind it is found
        parts::remove_before(&service, "stdout", 6).unwrap();
        let expected = [line(8, "two\n"), line(14, "three\n")];
        assert_eq!(texts(read(&mut reader, false)), expected);
        assert_eq!(reader.lost(), []);
        part(15, "");
        assert_eq!(texts(read(&mut reader, false)), []);
        part(15, "our\n");
        assert_eq!(texts(read(&mut reader, false)), [line(19, "four\n")]);
        // two parts on at once, and the first of them never seen
        part(15, "our\nfive\n");
        part(24, "six\n");
        part(28, "seven\n");
        parts::remove_before(&service, "stdout", 28).unwrap();
        let expected = [line(24, "five\n"), line(34, "seven\n")];
        assert_eq!(texts(read(&mut reader, false)), expected);
        let lost = reader.lost();
        assert_eq!(
            lost[0].to_string(),
            "web: 4 bytes of stdout were rotated away before they could be read"
        );
        assert_eq!((lost.len(), reader.lost()), (1, vec![]));
        // what was removed before one begins is not lost
        let mut late = Reader::new(&[("web".into(), service.clone())], i64::MIN);
        assert_eq!(texts(read(&mut late, true)), [line(34, "seven\n")]);
        assert_eq!(late.lost(), []);
        assert_eq!(tail(&service, "stdout", 3).unwrap(), b"en\n");
        part(34, "x\ny");
        assert_eq!(tail(&service, "stdout", 5).unwrap(), b"n\nx\ny");
        assert_eq!(tail(&service, "stdout", 50).unwrap(), b"seven\nx\ny");
    }

    #[test]
    fn a_stream_is_read_in_portions_from_any_offset() {
        let dir = tempfile::tempdir().unwrap();
        let service = dir_of(dir.path());
        let text: String = (0..40_000).map(|i| format!("line {i}\n")).collect();
        let half = text.len() / 2;
        for (base, part) in [(0, &text[..half]), (half, &text[half..])] {
            std::fs::write(service.log_at("stderr", base as u64), part).unwrap();
            let index = format!("1 {}\n", base + part.len());
            std::fs::write(service.index_at("stderr", base as u64), index).unwrap();
        }
        for limit in [1000, 1 << 20] {
            let (mut found, mut end) = (String::new(), 0);
            loop {
                // as after a kill behind each portion
                let mut stream = Stream::new("web", &service, "stderr", Some(end));
                let mut lines = Vec::new();
                stream.read(limit, &mut lines).unwrap();
                let Some(last) = lines.last() else { break };
                end = last.end;
                for (_, line) in texts(lines) {
                    found.push_str(&line);
                }
            }
            assert!(found == text, "limit {limit}");
        }
    }

    #[test]
    fn of_many_pieces_few_are_known_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let service = dir_of(dir.path());
        let count = 3 * PIECES as u64 + 1;
        std::fs::write(service.log_at("stdout", 0), vec![b'\n'; count as usize]).unwrap();
        let index: String = (1..=count).map(|end| format!("{end} {end}\n")).collect();
        std::fs::write(service.index_at("stdout", 0), index).unwrap();
        let mut stream = Stream::new("web", &service, "stdout", None);
        let mut lines = Vec::new();
        assert!(stream.read(1, &mut lines).unwrap());
        assert_eq!(stream.pieces.len(), PIECES - 1);
        assert!(!stream.read(u64::MAX, &mut lines).unwrap());
        let found = lines.iter().map(|line| (line.time as u64, line.end));
        assert!(found.eq((1..=count).map(|end| (end, end))));
    }

    #[test]
    fn a_line_without_end_comes_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let service = dir_of(dir.path());
        let length = 5 * LINE_LIMIT + 7;
        std::fs::write(service.log_at("stdout", 0), vec![0; length]).unwrap();
        std::fs::write(service.index_at("stdout", 0), format!("1 {length}\n")).unwrap();
        let mut reader = Reader::new(&[("web".into(), service)], i64::MIN);
        let lengths = |lines: Vec<Line>| lines.iter().map(|l| l.text.len()).collect::<Vec<_>>();
        assert_eq!(lengths(read(&mut reader, false)), [LINE_LIMIT; 5]);
        assert_eq!(lengths(read(&mut reader, true)), [7]);
    }
}
