//! The logs of some services as one, in order of time.
//!
//! Logs may be larger than memory. *Invariant:* what is held of each stream is one portion, however much there is, and however many lines
//! are asked for. A reading goes up to where the logs end when it begins ([`Reader::fix`]), so that it has an end beside a program that prints
//! without one.

use std::collections::VecDeque;

use super::super::layout::ServiceDir;
use super::super::{Error, Result};
use super::{Line, Lost, Stream, parts};

/// Most bytes of a stream held as lines. An empty line takes about a hundred bytes, so a stream takes two megabytes at most.
const PORTION: u64 = 1 << 14;
/// Lines between two places of a log that are remembered while the last ones are looked for.
const STRIDE: u64 = 1 << 10;

/// Follows the logs of some services.
#[derive(Debug)]
pub struct Reader {
    services: Vec<Service>,
    /// Lines before that time (Unix, nanoseconds) are not given out.
    since: i64,
}

impl Reader {
    /// A reader at the beginning of the logs of services.
    pub fn new(services: &[(String, ServiceDir)], since: i64) -> Reader {
        let new = |(name, dir): &(String, ServiceDir)| Service::new(name, dir);
        Reader {
            services: services.iter().map(new).collect(),
            since,
        }
    }

    /// [`Reader::next`] goes up to where the logs end now.
    pub fn fix(&mut self) -> Result<()> {
        for source in self.services.iter_mut().flat_map(|s| &mut s.sources) {
            source.fix()?;
        }
        Ok(())
    }

    /// Passes over all but the last `count` lines of each service. `last`: as of [`Reader::next`].
    pub fn pass_to(&mut self, count: u64, last: bool) -> Result<()> {
        for service in &mut self.services {
            service.pass_to(count, self.since, last)?;
        }
        Ok(())
    }

    /// The next complete line in order of time; `None` where the logs ended. `last`: lines that have not ended then are given out too.
    pub fn next(&mut self, last: bool) -> Result<Option<Line>> {
        let mut first: Option<(i64, &mut Service)> = None;
        for service in &mut self.services {
            if let Some(time) = service.ready(self.since, last)?
                && first.as_ref().is_none_or(|(before, _)| time < *before)
            {
                first = Some((time, service));
            }
        }
        let taken = first.and_then(|(_, service)| service.take());
        Ok(taken.map(|(_, line)| line))
    }

    /// What went since this was asked last.
    pub fn lost(&mut self) -> Vec<Lost> {
        let sources = self.services.iter_mut().flat_map(|s| &mut s.sources);
        sources.filter_map(|source| source.stream.lost()).collect()
    }
}

/// Both streams of a service.
#[derive(Debug)]
struct Service {
    sources: [Source; 2],
    /// So many lines are still passed over.
    skip: u64,
}

impl Service {
    fn new(name: &str, dir: &ServiceDir) -> Service {
        let source = |stream| Source {
            stream: Stream::new(name, dir, stream, None),
            waiting: VecDeque::new(),
            until: 0,
        };
        Service {
            sources: [source("stdout"), source("stderr")],
            skip: 0,
        }
    }

    /// The time of the line that is given out next.
    fn ready(&mut self, since: i64, last: bool) -> Result<Option<i64>> {
        loop {
            for source in &mut self.sources {
                source.fill(last)?;
            }
            let Some(time) = self.earliest().map(|(time, _)| time) else {
                return Ok(None);
            };
            if time >= since && self.skip == 0 {
                return Ok(Some(time));
            }
            if time >= since {
                self.skip -= 1;
            }
            self.take();
        }
    }

    /// When the next line came, and which stream it is in; of equal ones the output before the errors.
    fn earliest(&self) -> Option<(i64, usize)> {
        let fronts = self.sources.iter().enumerate();
        let times = fronts.filter_map(|(i, source)| Some((source.waiting.front()?.time, i)));
        times.min()
    }

    fn take(&mut self) -> Option<(usize, Line)> {
        let (_, from) = self.earliest()?;
        Some((from, self.sources[from].waiting.pop_front()?))
    }

    /// Lines are counted to the end, and some places on the way remembered: from the right one the rest is passed over as it comes.
    fn pass_to(&mut self, count: u64, since: i64, last: bool) -> Result<()> {
        let mut scout = Service {
            sources: self.sources.each_ref().map(Source::again),
            skip: 0,
        };
        let (mut seen, mut ends) = (0, [None; 2]);
        let mut places: VecDeque<(u64, [Option<u64>; 2])> = VecDeque::new();
        while scout.ready(since, last)?.is_some() {
            if seen % STRIDE == 0 {
                places.push_back((seen, ends));
            }
            while let Some((later, _)) = places.get(1)
                && later.saturating_add(count) <= seen
            {
                places.pop_front();
            }
            let Some((from, line)) = scout.take() else {
                break;
            };
            ends[from] = Some(line.end);
            seen += 1;
        }
        if let Some((passed, ends)) = places.front() {
            for (source, end) in self.sources.iter_mut().zip(ends) {
                if end.is_some() {
                    source.stream = source.stream.at(*end);
                }
            }
            self.skip = seen.saturating_sub(count).saturating_sub(*passed);
        }
        Ok(())
    }
}

/// One stream, and what was read of it and not given out.
#[derive(Debug)]
struct Source {
    stream: Stream,
    waiting: VecDeque<Line>,
    /// Where this reading ends.
    until: u64,
}

impl Source {
    /// The same from the beginning, up to the same end.
    fn again(&self) -> Source {
        Source {
            stream: self.stream.at(None),
            waiting: VecDeque::new(),
            until: self.until,
        }
    }

    fn fix(&mut self) -> Result<()> {
        let (dir, stream) = (&self.stream.dir, self.stream.stream);
        let end = parts::end(dir, stream).map_err(Error::io("look for logs in", &dir.data))?;
        // of a pod that is gone what is open is read to its end, which stays where it is
        self.until = end.map_or(u64::MAX, |end| end.max(self.stream.offset));
        Ok(())
    }

    /// Reads on where nothing waits.
    fn fill(&mut self, last: bool) -> Result<()> {
        let mut lines = Vec::new();
        while self.waiting.is_empty() {
            let left = self.until.saturating_sub(self.stream.offset);
            let more = left > 0 && self.stream.read(left.min(PORTION), &mut lines)?;
            if !more && last {
                self.stream.flush(&mut lines);
            }
            self.waiting.extend(lines.drain(..));
            if !more {
                // what has no time yet is for the next reading
                self.until = self.stream.offset;
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service whose errors repeat every third line of its output, each line a piece of its own, at the time that is its number.
    fn service(dir: &std::path::Path, lines: i64) -> (String, ServiceDir) {
        let service = ServiceDir {
            dir: dir.to_path_buf(),
            data: dir.to_path_buf(),
        };
        for (stream, step) in [("stdout", 1), ("stderr", 3)] {
            let (mut log, mut index) = (String::new(), String::new());
            for i in (0..lines).step_by(step) {
                log.push_str(&format!("{stream} {i}\n"));
                index.push_str(&format!("{i} {}\n", log.len()));
            }
            std::fs::write(service.log_at(stream, 0), log).unwrap();
            std::fs::write(service.index_at(stream, 0), index).unwrap();
        }
        ("web".to_owned(), service)
    }

    #[test]
    fn the_last_lines_are_those_of_all() {
        let dir = tempfile::tempdir().unwrap();
        let lines = 3 * STRIDE as i64 + 7;
        let service = service(dir.path(), lines);
        let all: Vec<(i64, String)> = (0..lines)
            .flat_map(|i| {
                let error = (i % 3 == 0).then(|| (i, format!("stderr {i}\n")));
                [Some((i, format!("stdout {i}\n"))), error]
            })
            .flatten()
            .collect();
        let total = all.len() as u64;
        let counts = (0..4).flat_map(|n| [n * STRIDE, n * STRIDE + 1, total - n * 7]);
        for count in counts.chain([total + 1, u64::MAX]) {
            for from in [0, 2, lines - 5, lines] {
                let mut reader = Reader::new(std::slice::from_ref(&service), from);
                reader.fix().unwrap();
                reader.pass_to(count, true).unwrap();
                let mut found = Vec::new();
                while let Some(line) = reader.next(true).unwrap() {
                    found.push((line.time, String::from_utf8(line.text).unwrap()));
                }
                let since: Vec<_> = all.iter().filter(|(time, _)| *time >= from).collect();
                let first = since.len().saturating_sub(count as usize);
                let same = found.iter().eq(since[first..].iter().copied());
                assert!(same, "{count} since {from}: {} lines", found.len());
                assert_eq!(reader.lost(), []);
            }
        }
    }

    #[test]
    fn a_reading_ends_where_the_logs_did() {
        let dir = tempfile::tempdir().unwrap();
        let one = service(dir.path(), 2);
        let mut reader = Reader::new(std::slice::from_ref(&one), i64::MIN);
        reader.fix().unwrap();
        service(dir.path(), 3);
        let gone = |stream| {
            std::fs::remove_file(one.1.log_at(stream, 0)).unwrap();
            std::fs::remove_file(one.1.index_at(stream, 0)).unwrap();
        };
        let mut texts = || {
            let lines = std::iter::from_fn(|| reader.next(false).unwrap());
            let texts: String = lines.map(|l| String::from_utf8(l.text).unwrap()).collect();
            reader.fix().unwrap();
            texts
        };
        assert_eq!(texts(), "stdout 0\nstderr 0\nstdout 1\n");
        assert_eq!(texts(), "stdout 2\n");
        assert_eq!(texts(), "");
        service(dir.path(), 4);
        ["stdout", "stderr"].into_iter().for_each(gone);
        assert_eq!(texts(), "");
        assert_eq!(texts(), "stdout 3\nstderr 3\n");
        assert_eq!(texts(), "");
    }
}
