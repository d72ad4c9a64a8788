//! Container output: named pipe → log file, without passing through this program's memory.
//!
//! splice(2) moves bytes out of the pipe and into the file in one call, so that a kill at any instant neither loses a
//! byte nor writes it twice. The index beside a log has one line for each call: Unix time in nanoseconds, offset of the
//! end in the stream. Bytes behind the last line (a kill between the two) get theirs from the next supervisor.
//!
//! A log with a bound is cut into parts (see [`parts`]). *Invariants:* a part is never longer than the bound, nor its index but for a line
//! (or [`INDEX`], where the bound is less), for a program that prints byte by byte makes thirty bytes of index of each; the index of a part is
//! complete before the next one is made; one that is full is followed by another when there is something to write.
//!
//! A log that cannot be opened or written, on a full disk say, is told and tried again: the supervisor goes on without it.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{SpliceFlags, splice};

use super::super::layout::ServiceDir;
use super::super::logs::parts;
use super::super::{Error, Result};
use super::sinks::Sinks;
use crate::compose::project::Logging;
use crate::sys::watch::watch;

/// Most bytes moved at once.
const CHUNK: usize = 1 << 20;
/// Most calls before others have their turn: a program can print without end.
const CALLS: usize = 16;
/// Any index may have as many bytes.
const INDEX: u64 = 1 << 16;
/// More than two index lines (bytes).
const TAIL: u64 = 256;
/// Pause after a log that could not be written (a full disk); the container waits at its full pipe meanwhile.
const RETRY: Duration = Duration::from_secs(1);

/// What is kept where only sinks want the output: they read it before it goes.
const SPOOL: Logging = Logging::Kept {
    max_size: Some(1 << 20),
    max_file: 1,
};

/// Who reads the log along.
#[derive(Clone)]
pub struct Readers {
    /// The service.
    pub service: String,
    /// All of the pod.
    pub sinks: Rc<Sinks>,
}

/// One stream of one service.
pub struct Pump {
    pipe: File,
    log: Log,
}

/// Where the bytes go.
enum Log {
    Kept(Box<Kept>),
    /// `/dev/null`.
    Dropped(File),
}

struct Kept {
    readers: Option<Readers>,
    service: ServiceDir,
    stream: &'static str,
    max_size: Option<u64>,
    max_file: u32,
    /// The one that is written; `None` until it could be opened.
    part: Option<Part>,
    /// There may be more parts than `max_file`: one was begun, here or by one that was killed before it could remove another.
    crowded: bool,
}

/// The part of a log that is written.
#[derive(Debug)]
struct Part {
    log: File,
    index: File,
    /// Where it begins and ends in the stream, and up to where its index goes.
    base: u64,
    end: u64,
    indexed: u64,
    /// Bytes of the index.
    length: u64,
    /// The last line of the index may have been cut short.
    torn: bool,
}

impl Pump {
    fn open(
        service: &ServiceDir,
        stream: &'static str,
        logging: Logging,
        readers: Option<Readers>,
    ) -> Result<Pump> {
        let open = |path: &Path, options: &OpenOptions| {
            options.open(path).map_err(Error::io("open", path))
        };
        let mut both = OpenOptions::new();
        // both ends, so that a container which closes its own is no end of file
        both.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let logging = match (logging, &readers) {
            (Logging::None, Some(_)) => SPOOL,
            (logging, _) => logging,
        };
        let log = match logging {
            Logging::None => Log::Dropped(open(
                Path::new("/dev/null"),
                OpenOptions::new().write(true),
            )?),
            Logging::Kept { max_size, max_file } => Log::Kept(Box::new(Kept {
                readers,
                service: service.clone(),
                stream,
                max_size,
                max_file,
                part: None,
                crowded: max_size.is_some(),
            })),
        };
        Ok(Pump {
            pipe: open(&service.pipe(stream), &both)?,
            log,
        })
    }

    /// Opens what there is, as [`Pump::drain`] does too.
    fn prepare(&mut self) -> io::Result<()> {
        match &mut self.log {
            Log::Dropped(_) => Ok(()),
            Log::Kept(kept) => kept.room(&self.pipe).map(|_| ()),
        }
    }

    /// Moves what the pipe holds now; whether there may be more.
    fn drain(&mut self) -> io::Result<bool> {
        for _ in 0..CALLS {
            let (to, room) = match &mut self.log {
                Log::Dropped(null) => (&*null, CHUNK),
                Log::Kept(kept) => {
                    let Some((part, room)) = kept.room(&self.pipe)? else {
                        return Ok(true);
                    };
                    (&part.log, room)
                }
            };
            match splice(&self.pipe, None, to, None, room, SpliceFlags::NONBLOCK) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(false),
                Ok(count) => {
                    if let Log::Kept(kept) = &mut self.log {
                        kept.moved(count)?;
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

impl Kept {
    /// Where to write, and most bytes to move at once; where the part is full and the pipe has more, a new one is begun. None: those who read
    /// along are behind.
    fn room(&mut self, pipe: &File) -> io::Result<Option<(&mut Part, usize)>> {
        // one that fails is opened again: its files know what is to be done
        let mut part = match self.part.take() {
            Some(part) => part,
            None => {
                let last = parts::list(&self.service, self.stream)?.pop();
                Part::open(&self.service, self.stream, last.unwrap_or(0))?
            }
        };
        // the last attempt may have failed
        part.note()?;
        let full = self.max_size.is_some_and(|most| part.full(most)) && ioctl_fionread(pipe)? > 0;
        if (full || self.crowded) && !self.is_read(usize::from(full))? {
            self.part = Some(part);
            return Ok(None);
        }
        if full {
            part = Part::open(&self.service, self.stream, part.end)?;
            self.crowded = true;
        }
        if self.crowded {
            self.prune()?;
            self.crowded = false;
        }
        let left = self
            .max_size
            .map_or(u64::MAX, |most| most.saturating_sub(part.end - part.base));
        let room = left.min(CHUNK as u64) as usize;
        Ok(Some((self.part.insert(part), room)))
    }

    /// So many bytes are in the log.
    fn moved(&mut self, count: usize) -> io::Result<()> {
        if let Some(part) = &mut self.part {
            part.end += count as u64;
            part.note()?;
        }
        if let Some(Readers { service, sinks }) = &self.readers {
            sinks.wake(service, self.stream);
        }
        Ok(())
    }

    /// Whether those who read along have what goes when there are so many parts more.
    fn is_read(&self, more: usize) -> io::Result<bool> {
        let Some(Readers { service, sinks }) = &self.readers else {
            return Ok(true);
        };
        let count = parts::list(&self.service, self.stream)?.len() + more;
        Ok(count <= self.max_file as usize || sinks.catch_up(service))
    }

    /// Removes the parts that are too many.
    fn prune(&self) -> io::Result<()> {
        let all = parts::list(&self.service, self.stream)?;
        let spare = all.len().saturating_sub(self.max_file as usize);
        match all.get(spare) {
            Some(first) if spare > 0 && self.max_size.is_some() => {
                parts::remove_before(&self.service, self.stream, *first)
            }
            _ => Ok(()),
        }
    }
}

impl Part {
    /// The part that begins at `base`, new or as it was left.
    fn open(service: &ServiceDir, stream: &str, base: u64) -> io::Result<Part> {
        let mut own = OpenOptions::new();
        own.write(true).create(true).mode(0o600);
        // the log last: once it is there the part is
        let path = service.index_at(stream, base);
        let index = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)?;
        // splice(2) refuses files opened to append
        let mut log = own.open(service.log_at(stream, base))?;
        let end = base + log.seek(SeekFrom::End(0))?;
        let known = Known::read(&path)?;
        Ok(Part {
            log,
            index,
            base,
            end,
            // one that was killed, or a full disk, left bytes without a line
            indexed: known.end.unwrap_or(base).min(end),
            length: known.length,
            torn: known.torn,
        })
    }

    /// No more is written to it, of at most so many bytes.
    fn full(&self, most: u64) -> bool {
        self.end - self.base >= most || self.length >= most.max(INDEX)
    }

    /// Gives the bytes that have none yet a line of the index.
    fn note(&mut self) -> io::Result<()> {
        if self.indexed == self.end {
            return Ok(());
        }
        let now = jiff::Timestamp::now().as_nanosecond();
        let start = if self.torn { "\n" } else { "" };
        self.torn = true;
        let line = format!("{start}{now} {}\n", self.end);
        self.index.write_all(line.as_bytes())?;
        self.length += line.len() as u64;
        (self.torn, self.indexed) = (false, self.end);
        Ok(())
    }
}

/// What an index says.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    length: u64,
    /// The end that its last line names; a line cut short is none.
    end: Option<u64>,
    /// There is such a line.
    torn: bool,
}

impl Known {
    fn read(index: &Path) -> io::Result<Known> {
        let mut file = File::open(index)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        let torn = tail.last().is_some_and(|byte| *byte != b'\n');
        let tail = String::from_utf8_lossy(&tail);
        let mut lines = tail.lines().rev().skip(usize::from(torn));
        Ok(Known {
            length,
            end: lines.find_map(|line| line.split_once(' ')?.1.parse().ok()),
            torn,
        })
    }
}

/// Both streams of a service.
#[derive(Clone)]
pub struct Pumps(Vec<Rc<RefCell<Pump>>>);

impl Pumps {
    /// Opens the pipes and logs and pumps until the supervisor ends. `failed` is told of a log that cannot be written.
    pub fn start(
        service: &ServiceDir,
        logging: Logging,
        readers: Option<Readers>,
        failed: impl Fn(String) + Clone + 'static,
    ) -> Result<Pumps> {
        let mut pumps = Vec::new();
        for stream in ["stdout", "stderr"] {
            let mut pump = Pump::open(service, stream, logging, readers.clone())?;
            let path = service.log_at(stream, 0);
            let pipe = pump.pipe.try_clone().map_err(Error::io("open", &path))?;
            let pipe = watch(pipe.into()).map_err(Error::io("watch", &path))?;
            let text = move |error| format!("write {}: {error}; trying again", path.display());
            let mut told = pump.prepare().err().map(&text);
            told.iter().cloned().for_each(&failed);
            let pump = Rc::new(RefCell::new(pump));
            pumps.push(pump.clone());
            let failed = failed.clone();
            tokio::task::spawn_local(async move {
                while let Ok(mut ready) = pipe.readable().await {
                    let moved = pump.borrow_mut().drain();
                    match moved {
                        Ok(true) => tokio::task::yield_now().await,
                        Ok(false) => {
                            told = None;
                            ready.clear_ready();
                        }
                        Err(error) => {
                            // once, not every second while a disk stays full
                            let text = text(error);
                            if told.as_ref() != Some(&text) {
                                failed(text.clone());
                                told = Some(text);
                            }
                            tokio::time::sleep(RETRY).await;
                        }
                    }
                }
            });
        }
        Ok(Pumps(pumps))
    }

    /// Moves some of what the pipes hold now; whether there may be more.
    pub fn drain(&self) -> bool {
        let mut more = false;
        for pump in &self.0 {
            // a log that cannot be written is reported by its own task
            more |= pump.borrow_mut().drain().unwrap_or(false);
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(dir: &Path) -> ServiceDir {
        let service = ServiceDir {
            dir: dir.to_path_buf(),
            data: dir.to_path_buf(),
        };
        nix::unistd::mkfifo(&service.pipe("stdout"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        service
    }

    #[test]
    fn an_index_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path());
        let line = " 20\n";
        for (before, base, end, kept, added) in [
            ("", 0, 0, "", ""),
            ("", 20, 20, "", ""),
            ("", 0, 20, "", line),
            ("1 5\n2 20\n", 0, 20, "1 5\n2 20\n", ""),
            ("1 5\n", 0, 20, "1 5\n", line),
            // what it begins with ends the line when there is another
            ("1 5\n2", 0, 5, "1 5\n2", ""),
            ("1 5\n2 2", 0, 20, "1 5\n2 2\n", line),
            ("1 15\n", 10, 20, "1 15\n", line),
            // longer than the log: of a disk that lost its end
            ("1 30\n", 0, 20, "1 30\n", ""),
        ] {
            let (log, index) = (
                service.log_at("stdout", base),
                service.index_at("stdout", base),
            );
            std::fs::write(&log, vec![b'x'; (end - base) as usize]).unwrap();
            std::fs::write(&index, before).unwrap();
            let mut part = Part::open(&service, "stdout", base).unwrap();
            part.note().unwrap();
            let text = std::fs::read_to_string(&index).unwrap();
            let rest = text.strip_prefix(kept).unwrap();
            assert_eq!(rest.is_empty(), added.is_empty(), "{before:?}: {text:?}");
            assert!(rest.ends_with(added), "{before:?}: {text:?}");
            assert_eq!(part.length as usize, text.len(), "{before:?}");
        }
    }

    /// One byte at a time, of which each has a line of the index.
    #[test]
    fn an_index_has_a_bound_too() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path());
        let logging = Logging::Kept {
            max_size: Some(60_000),
            max_file: 2,
        };
        let mut pump = Pump::open(&service, "stdout", logging, None).unwrap();
        for _ in 0..20_000 {
            (&pump.pipe).write_all(b"x").unwrap();
            assert!(!pump.drain().unwrap());
        }
        let all = parts::list(&service, "stdout").unwrap();
        let length = |path| std::fs::metadata(path).unwrap().len();
        let indexes = all
            .iter()
            .map(|base| length(service.index_at("stdout", *base)));
        let indexes: Vec<u64> = indexes.collect();
        assert_eq!(indexes.len(), 2);
        assert!((INDEX..INDEX + 40).contains(&indexes[0]), "{indexes:?}");
        assert!(indexes[1] < INDEX + 40, "{indexes:?}");
        let last = length(service.log_at("stdout", all[1]));
        assert_eq!(all[1] + last, 20_000);
    }

    #[test]
    fn parts_that_a_killed_one_left_go() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path());
        for base in [0, 4, 8, 12] {
            std::fs::write(service.log_at("stdout", base), "text").unwrap();
            std::fs::write(
                service.index_at("stdout", base),
                format!("1 {}\n", base + 4),
            )
            .unwrap();
        }
        let logging = Logging::Kept {
            max_size: Some(4),
            max_file: 2,
        };
        let mut pump = Pump::open(&service, "stdout", logging, None).unwrap();
        pump.prepare().unwrap();
        assert_eq!(parts::list(&service, "stdout").unwrap(), [8, 12]);
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path());
        let logging = Logging::Kept {
            max_size: None,
            max_file: 1,
        };
        let index = service.index_at("stdout", 0);
        std::fs::create_dir(&index).unwrap();
        let mut pump = Pump::open(&service, "stdout", logging, None).unwrap();
        (&pump.pipe).write_all(b"text").unwrap();
        let is_dir = Some(libc::EISDIR);
        assert_eq!(pump.prepare().unwrap_err().raw_os_error(), is_dir);
        assert_eq!(pump.drain().unwrap_err().raw_os_error(), is_dir);
        std::fs::remove_dir(&index).unwrap();
        assert!(!pump.drain().unwrap());
        assert_eq!(std::fs::read(service.log_at("stdout", 0)).unwrap(), b"text");
        assert!(std::fs::read_to_string(&index).unwrap().ends_with(" 4\n"));
    }

    #[test]
    fn a_log_is_cut_at_its_bound() {
        let all = b"abcdefghijklmnopqrstuvwxyz";
        for (count, at_once, max_file, expected) in [
            (26, 1, 1, &[(24, "yz")][..]),
            (26, 26, 1, &[(24, "yz")]),
            (26, 4, 3, &[(16, "qrst"), (20, "uvwx"), (24, "yz")]),
            (26, 7, 2, &[(20, "uvwx"), (24, "yz")]),
            // full, and nothing more came
            (24, 12, 2, &[(16, "qrst"), (20, "uvwx")]),
            (3, 2, 1, &[(0, "abc")]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let service = service(dir.path());
            let logging = Logging::Kept {
                max_size: Some(4),
                max_file,
            };
            for piece in all[..count].chunks(at_once) {
                // each by a supervisor of its own
                let mut pump = Pump::open(&service, "stdout", logging, None).unwrap();
                (&pump.pipe).write_all(piece).unwrap();
                while pump.drain().unwrap() {}
            }
            let mut found = Vec::new();
            for base in parts::list(&service, "stdout").unwrap() {
                let log = std::fs::read_to_string(service.log_at("stdout", base)).unwrap();
                let index = std::fs::read_to_string(service.index_at("stdout", base)).unwrap();
                let end = format!(" {}\n", base + log.len() as u64);
                assert!(index.ends_with(&end), "{index:?} of {log:?} from {base}");
                found.push((base, log));
            }
            let expected: Vec<_> = expected.iter().map(|(b, t)| (*b, t.to_string())).collect();
            assert_eq!(found, expected, "{at_once} bytes at once, {max_file} files");
        }
    }

    #[test]
    fn what_is_not_kept_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path());
        let mut pump = Pump::open(&service, "stdout", Logging::None, None).unwrap();
        (&pump.pipe).write_all(&[b'x'; 5000]).unwrap();
        assert!(!pump.drain().unwrap());
        assert_eq!(ioctl_fionread(&pump.pipe).unwrap(), 0);
        assert!(parts::list(&service, "stdout").unwrap().is_empty());
    }
}
