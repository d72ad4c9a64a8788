//! Output of a service as it came, byte for byte, from its logs; and the end of the run that prints it.
//!
//! *Invariants:* readers take nothing from anybody: any number may follow, each as slowly as it likes, and none notices that a supervisor
//! was killed. What a run printed is all there once [`end`] tells that it is over.
//!
//! Leaves to others: lines, times, several services ([`super::logs`]).

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::inotify;

use super::layout::{PodDir, ServiceDir};
use super::logs::parts;
use super::record::{self, Ended, Phase, ProcessId, Status};
use super::{Error, Result};
use crate::sys::pidfd;

/// Which stream bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Standard output, and all of a terminal's.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// With the first byte that is kept.
    Start,
    /// With what comes.
    Now,
}

/// Follows the two streams of a service.
#[derive(Debug)]
pub struct Follower {
    streams: [Stream; 2],
    changes: OwnedFd,
}

#[derive(Debug)]
struct Stream {
    source: Source,
    dir: ServiceDir,
    name: &'static str,
    /// The part that is read, and where it begins.
    part: Option<(u64, File)>,
    /// Those behind it that are held open: [`Follower::hold`].
    held: VecDeque<(u64, File)>,
    offset: u64,
}

impl Follower {
    /// Begins to follow.
    pub fn new(service: &ServiceDir, from: From) -> Result<Follower> {
        let failed = || Error::io("watch", &service.data);
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let changes = inotify::init(flags).map_err(|errno| failed()(errno.into()))?;
        // the index is written after each piece, so the folder tells of every change of a log
        let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
        inotify::add_watch(&changes, &service.data, events)
            .map_err(|errno| failed()(errno.into()))?;
        let stream = |source, name| -> Result<Stream> {
            let mut stream = Stream {
                source,
                dir: service.clone(),
                name,
                part: None,
                held: VecDeque::new(),
                offset: 0,
            };
            if from == From::Now {
                stream.go_to_end()?;
            }
            Ok(stream)
        };
        Ok(Follower {
            streams: [
                stream(Source::Stdout, "stdout")?,
                stream(Source::Stderr, "stderr")?,
            ],
            changes,
        })
    }

    /// What is new, as much as fits; `None` when there is nothing. What comes after that makes the descriptor readable.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Option<(Source, usize)>> {
        // before the look: a change after it is told again
        let mut events = [0; 4096];
        while matches!(rustix::io::read(&self.changes, &mut events), Ok(count) if count > 0) {}
        for stream in &mut self.streams {
            let count = stream.read(buffer)?;
            if count > 0 {
                return Ok(Some((stream.source, count)));
            }
        }
        Ok(None)
    }
}

impl Follower {
    /// Holds on to all that is to be read by now: it can be read also when the logs are removed.
    pub fn hold(&mut self) -> Result<()> {
        self.streams.iter_mut().try_for_each(Stream::hold)
    }
}

impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

impl Stream {
    fn go_to_end(&mut self) -> Result<()> {
        // the last part is the one that begins at the highest offset
        self.offset = u64::MAX;
        self.offset = match self.open()? {
            true => match &self.part {
                Some((base, file)) => base + file.metadata().map_err(self.failed("look at"))?.len(),
                None => 0,
            },
            false => 0,
        };
        Ok(())
    }

    fn hold(&mut self) -> Result<()> {
        if self.part.is_none() && !self.open()? {
            return Ok(());
        }
        let bases = parts::list(&self.dir, self.name).map_err(self.failed("look for"))?;
        let read = self.part.as_ref().map_or(0, |(base, _)| *base);
        for base in bases.into_iter().filter(|base| *base > read) {
            match File::open(self.dir.log_at(self.name, base)) {
                Ok(file) => self.held.push_back((base, file)),
                // it went meanwhile
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.failed("open")(error)),
            }
        }
        Ok(())
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let base = self.part.as_ref().map_or(0, |(base, _)| *base);
        let path = self.dir.log_at(self.name, base);
        move |error| Error::io(what, &path)(error)
    }

    /// Opens the part that has the next byte, or the first behind it where that one is gone.
    fn open(&mut self) -> Result<bool> {
        loop {
            self.part = None;
            let bases = parts::list(&self.dir, self.name).map_err(self.failed("look for"))?;
            let at = bases.iter().rev().find(|base| **base <= self.offset);
            let Some(&base) = at.or(bases.first()) else {
                return Ok(false);
            };
            match File::open(self.dir.log_at(self.name, base)) {
                Ok(file) => self.part = Some((base, file)),
                // it went meanwhile
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(self.failed("open")(error)),
            }
            self.offset = self.offset.max(base);
            return Ok(true);
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if self.part.is_none() && !self.open()? {
            return Ok(0);
        }
        let count = self.read_here(buffer)?;
        if count > 0 || !self.is_over() {
            return Ok(count);
        }
        // written to between our read and the next part
        let count = self.read_here(buffer)?;
        if count > 0 {
            return Ok(count);
        }
        match self.held.pop_front() {
            Some((base, file)) => {
                self.part = Some((base, file));
                self.offset = base;
            }
            None => {
                self.open()?;
            }
        }
        self.read_here(buffer)
    }

    fn read_here(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let Some((base, file)) = &self.part else {
            return Ok(0);
        };
        let count = file
            .read_at(buffer, self.offset - base)
            .map_err(self.failed("read"))?;
        self.offset += count as u64;
        Ok(count)
    }

    /// Nothing is written to the part any more: another follows, or it is gone itself.
    fn is_over(&self) -> bool {
        let there = |base| self.dir.log_at(self.name, base).exists();
        self.part
            .as_ref()
            .is_some_and(|(base, _)| self.offset > *base && there(self.offset) || !there(*base))
    }
}

/// A run of a service that has not ended.
#[derive(Debug)]
pub struct Run {
    /// Its first process.
    pub process: ProcessId,
    /// Readable once that has ended.
    pub pidfd: OwnedFd,
}

/// The run of a service; `None`: there is none now.
pub fn run(dir: &PodDir, service: &str) -> Result<Option<Run>> {
    let status: Status = record::read(&dir.service(service).status())?.unwrap_or_default();
    let process = match (status.phase, status.process) {
        (Phase::Running | Phase::Stopping, Some(process)) => process,
        _ => return Ok(None),
    };
    let pidfd = match pidfd::open(process.pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(Error::io("watch", &dir.service(service).dir)(error)),
    };
    // after the open: what has this start time now is what the descriptor means
    Ok(process.alive().then_some(Run { process, pidfd }))
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// 128 + signal when a signal ended it; `None`: nobody saw it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// How the run of `process` ended, once all of its output is in the logs and its end is written down; `None` before.
pub fn end(dir: &PodDir, service: &str, process: ProcessId) -> Result<Option<End>> {
    let folder = dir.service(service);
    let Some(status) = record::read::<Status>(&folder.status())? else {
        // the pod is gone
        return Ok(Some(End {
            code: None,
            signal: None,
        }));
    };
    let still = matches!(status.phase, Phase::Running | Phase::Stopping);
    if still && status.process == Some(process) {
        return Ok(None);
    }
    let ended = record::read::<Ended>(&folder.ended())?.filter(|ended| ended.process == process);
    Ok(Some(match ended {
        Some(ended) => End {
            code: ended.exit.as_ref().map(|exit| exit.code),
            signal: ended.exit.as_ref().and_then(|exit| exit.signal),
        },
        None => End {
            code: status.exit_code,
            signal: status.signal,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn all(follower: &mut Follower) -> Vec<(Source, String)> {
        let mut buffer = [0; 4];
        let mut found = Vec::new();
        while let Some((source, count)) = follower.read(&mut buffer).unwrap() {
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            found.push((source, text));
        }
        found
    }

    #[test]
    fn follows_from_the_start_or_from_now_and_over_a_change_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let service = ServiceDir {
            dir: folder.path().to_path_buf(),
            data: folder.path().to_path_buf(),
        };
        let write = |name: &str, text: &str| {
            let mut options = fs::OpenOptions::new();
            let mut file = options
                .append(true)
                .create(true)
                .open(folder.path().join(name))
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let out = |text: &str| (Source::Stdout, text.to_string());
        let mut early = Follower::new(&service, From::Now).unwrap();
        assert_eq!(all(&mut early), []);
        write("stdout.log", "onetwo");
        write("stderr.log", "bad");
        let bad = (Source::Stderr, "bad".to_string());
        assert_eq!(all(&mut early), [out("onet"), out("wo"), bad.clone()]);
        let mut start = Follower::new(&service, From::Start).unwrap();
        let mut now = Follower::new(&service, From::Now).unwrap();
        assert_eq!(all(&mut start), [out("onet"), out("wo"), bad]);
        assert_eq!(all(&mut now), []);
        write("stdout.log", "3");
        write("stdout.7.log", "4");
        for follower in [&mut early, &mut start, &mut now] {
            assert_eq!(all(follower), [out("3"), out("4")]);
        }
        // gone while it was read, and the next one before it was
        write("stdout.7.log", "5");
        write("stdout.9.log", "6");
        write("stdout.10.log", "7");
        for gone in ["stdout.log", "stdout.7.log", "stdout.9.log"] {
            fs::remove_file(folder.path().join(gone)).unwrap();
        }
        for follower in [&mut early, &mut start, &mut now] {
            assert_eq!(all(follower), [out("5"), out("7")]);
        }
        let mut late = Follower::new(&service, From::Now).unwrap();
        write("stdout.10.log", "8");
        assert_eq!(all(&mut late), [out("8")]);
    }
}
