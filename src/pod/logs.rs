//! Reading what containers printed: the two streams of a service, merged by time, line by line.
//!
//! The pieces of a log are what its index says (see the supervisor's pump); a line has the time of the piece that its first byte is in.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::PathBuf;

use super::layout::ServiceDir;
use super::{Error, Result};

/// Longest line given out at once (bytes); a longer one comes in parts.
const LINE_LIMIT: usize = 1 << 16;

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
}

/// Follows the logs of some services; [`Reader::read`] gives what is new.
#[derive(Debug)]
pub struct Reader {
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    service: String,
    stream: &'static str,
    log: PathBuf,
    index: PathBuf,
    /// Where the next byte and the next index line are read.
    offset: u64,
    index_offset: u64,
    /// Pieces known and not used up: time, end.
    pieces: VecDeque<(i64, u64)>,
    /// A line that has not ended yet.
    partial: Option<(i64, Vec<u8>)>,
}

impl Reader {
    /// A reader at the beginning of the logs of services.
    pub fn new(services: &[(String, ServiceDir)]) -> Reader {
        let mut streams = Vec::new();
        for (name, dir) in services {
            for stream in ["stdout", "stderr"] {
                streams.push(Stream {
                    service: name.clone(),
                    stream,
                    log: dir.log(stream),
                    index: dir.index(stream),
                    offset: 0,
                    index_offset: 0,
                    pieces: VecDeque::new(),
                    partial: None,
                });
            }
        }
        Reader { streams }
    }

    /// New complete lines in order of time. `last`: also give out lines that have not ended.
    pub fn read(&mut self, last: bool) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for stream in &mut self.streams {
            stream.read(last, &mut lines)?;
        }
        // stable: the order within a stream stays
        lines.sort_by_key(|line| line.time);
        Ok(lines)
    }
}

impl Stream {
    fn read(&mut self, last: bool, lines: &mut Vec<Line>) -> Result<()> {
        self.read_index()?;
        if let Some(mut log) = open(&self.log)? {
            log.seek(SeekFrom::Start(self.offset))
                .map_err(Error::io("seek in", &self.log))?;
            while let Some(&(time, end)) = self.pieces.front() {
                let mut piece = Vec::new();
                (&mut log)
                    .take((end - self.offset).min(1 << 20))
                    .read_to_end(&mut piece)
                    .map_err(Error::io("read", &self.log))?;
                if piece.is_empty() {
                    break;
                }
                self.offset += piece.len() as u64;
                self.split(time, &piece, lines);
                if self.offset >= end {
                    self.pieces.pop_front();
                }
            }
        }
        if last && let Some((time, text)) = self.partial.take() {
            lines.push(self.line(time, text));
        }
        Ok(())
    }

    fn line(&self, time: i64, text: Vec<u8>) -> Line {
        Line {
            service: self.service.clone(),
            stream: self.stream,
            time,
            text,
        }
    }

    fn split(&mut self, time: i64, piece: &[u8], lines: &mut Vec<Line>) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let (since, mut text) = self.partial.take().unwrap_or((time, Vec::new()));
            text.extend_from_slice(part);
            if text.ends_with(b"\n") || text.len() >= LINE_LIMIT {
                lines.push(self.line(since, text));
            } else {
                self.partial = Some((since, text));
            }
        }
    }

    fn read_index(&mut self) -> Result<()> {
        let Some(mut file) = open(&self.index)? else {
            return Ok(());
        };
        file.seek(SeekFrom::Start(self.index_offset))
            .map_err(Error::io("seek in", &self.index))?;
        let mut reader = BufReader::new(file);
        let mut line = String::new();
        loop {
            line.clear();
            let count = reader
                .read_line(&mut line)
                .map_err(Error::io("read", &self.index))?;
            if count == 0 || !line.ends_with('\n') {
                return Ok(());
            }
            self.index_offset += count as u64;
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
    }
}

fn open(path: &std::path::Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut reader = Reader::new(&[("web".into(), service.clone())]);
        let seen = |lines: Vec<Line>| -> Vec<(i64, String)> {
            lines
                .into_iter()
                .map(|l| (l.time, String::from_utf8(l.text).unwrap()))
                .collect()
        };
        let line = |time: i64, text: &str| (time, text.to_string());
        assert_eq!(
            seen(reader.read(false).unwrap()),
            [line(10, "one\n"), line(20, "bad\n"), line(30, "two\n")]
        );
        write("stdout.log", "one\ntwo\nthree\n");
        write("stdout.idx", "10 4\n30 11\n40 14\n");
        assert_eq!(seen(reader.read(true).unwrap()), [line(30, "three\n")]);
        assert_eq!(reader.read(true).unwrap(), []);
        write("stdout.log", "one\ntwo\nthree\nfour\n");
        write("stdout.idx", "10 4\n30 11\n40 14\n50 1\n60 19\n");
        assert_eq!(seen(reader.read(true).unwrap()), [line(60, "four\n")]);
        let mut again = Reader::new(&[("web".into(), service)]);
        assert_eq!(again.read(true).unwrap().len(), 5);
    }
}
