//! Container output: named pipe → log file, without passing through this program's memory.
//!
//! splice(2) moves bytes out of the pipe and into the file in one call, so that a kill at any instant neither loses a
//! byte nor writes it twice. The index beside a log has one line for each call: Unix time in nanoseconds, offset of the
//! end in the stream. Bytes behind the last line (a kill between the two) get theirs from the next supervisor.
//!
//! A log with a bound is cut into parts (see [`parts`]). *Invariants:* a part is never longer than the bound; the index of a part is
//! complete before the next one is made; one that is full is followed by another when there is something to write.

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
    part: Part,
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
            Logging::Kept { max_size, max_file } => {
                let kept = Kept::open(service, stream, max_size, max_file);
                let mut kept = kept.map_err(Error::io("open a log in", &service.data))?;
                kept.readers = readers;
                Log::Kept(Box::new(kept))
            }
        };
        Ok(Pump {
            pipe: open(&service.pipe(stream), &both)?,
            log,
        })
    }

    /// Moves what the pipe holds now; whether there may be more.
    fn drain(&mut self) -> io::Result<bool> {
        for _ in 0..CALLS {
            let (to, room) = match &mut self.log {
                Log::Dropped(null) => (&*null, CHUNK),
                Log::Kept(kept) => {
                    let Some(room) = kept.room(&self.pipe)? else {
                        return Ok(true);
                    };
                    (&kept.part.log, room)
                }
            };
            match splice(&self.pipe, None, to, None, room, SpliceFlags::NONBLOCK) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(false),
                Ok(count) => {
                    if let Log::Kept(kept) = &mut self.log {
                        kept.part.end += count as u64;
                        kept.part.note()?;
                        if let Some(Readers { service, sinks }) = &kept.readers {
                            sinks.wake(service, kept.stream);
                        }
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
    fn open(
        service: &ServiceDir,
        stream: &'static str,
        max_size: Option<u64>,
        max_file: u32,
    ) -> io::Result<Kept> {
        let last = parts::list(service, stream)?.pop().unwrap_or(0);
        let kept = Kept {
            readers: None,
            part: Part::open(service, stream, last)?,
            service: service.clone(),
            stream,
            max_size,
            max_file,
        };
        Ok(kept)
    }

    /// Most bytes to move at once; where the part is full and the pipe has more, a new one is begun. None: those who read along are behind.
    fn room(&mut self, pipe: &File) -> io::Result<Option<usize>> {
        // the last attempt may have failed
        self.part.note()?;
        let Some(max_size) = self.max_size else {
            return Ok(Some(CHUNK));
        };
        if self.part.end - self.part.base >= max_size && ioctl_fionread(pipe)? > 0 {
            if !self.is_read()? {
                return Ok(None);
            }
            self.part = Part::open(&self.service, self.stream, self.part.end)?;
            self.prune()?;
        }
        let room = max_size.saturating_sub(self.part.end - self.part.base);
        Ok(Some(room.min(CHUNK as u64) as usize))
    }

    /// Whether those who read along have what goes when another part is begun.
    fn is_read(&self) -> io::Result<bool> {
        let Some(Readers { service, sinks }) = &self.readers else {
            return Ok(true);
        };
        let stays = parts::list(&self.service, self.stream)?.len() < self.max_file as usize;
        Ok(stays || sinks.catch_up(service))
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
        complete(&path, base, end)?;
        Ok(Part {
            log,
            index,
            base,
            end,
            indexed: end,
            torn: false,
        })
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
        (self.torn, self.indexed) = (false, self.end);
        Ok(())
    }
}

/// Gives bytes of the log that a killed supervisor left without an index line theirs, and ends a line cut short.
fn complete(index: &Path, base: u64, end: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).open(index)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let cut = tail.last().is_some_and(|byte| *byte != b'\n');
    let tail = String::from_utf8_lossy(&tail);
    let known = tail
        .lines()
        .rev()
        .skip(usize::from(cut))
        .find_map(|line| line.split_once(' ')?.1.parse::<u64>().ok());
    let mut text = String::new();
    if cut {
        text.push('\n');
    }
    if known.unwrap_or(base) < end {
        let now = jiff::Timestamp::now().as_nanosecond();
        text.push_str(&format!("{now} {end}\n"));
    }
    file.write_all(text.as_bytes())
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
            let pump = Pump::open(service, stream, logging, readers.clone())?;
            let path = service.log_at(stream, 0);
            let pipe = pump.pipe.try_clone().map_err(Error::io("open", &path))?;
            let pipe = watch(pipe.into()).map_err(Error::io("watch", &path))?;
            let pump = Rc::new(RefCell::new(pump));
            pumps.push(pump.clone());
            let failed = failed.clone();
            tokio::task::spawn_local(async move {
                let mut told = None;
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
                            let text = format!("write {}: {error}; trying again", path.display());
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

    #[test]
    fn an_index_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("idx");
        let line = " 20\n";
        for (before, base, end, kept, added) in [
            ("", 0, 0, "", ""),
            ("", 20, 20, "", ""),
            ("", 0, 20, "", line),
            ("1 5\n2 20\n", 0, 20, "1 5\n2 20\n", ""),
            ("1 5\n", 0, 20, "1 5\n", line),
            ("1 5\n2", 0, 5, "1 5\n2\n", ""),
            ("1 5\n2 2", 0, 20, "1 5\n2 2\n", line),
            ("1 15\n", 10, 20, "1 15\n", line),
        ] {
            std::fs::write(&path, before).unwrap();
            complete(&path, base, end).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            let rest = text.strip_prefix(kept).unwrap();
            assert_eq!(rest.is_empty(), added.is_empty(), "{before:?}: {text:?}");
            assert!(rest.ends_with(added), "{before:?}: {text:?}");
        }
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
            let service = ServiceDir {
                dir: dir.path().to_path_buf(),
                data: dir.path().to_path_buf(),
            };
            nix::unistd::mkfifo(&service.pipe("stdout"), nix::sys::stat::Mode::S_IRWXU).unwrap();
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
        let service = ServiceDir {
            dir: dir.path().to_path_buf(),
            data: dir.path().to_path_buf(),
        };
        nix::unistd::mkfifo(&service.pipe("stdout"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut pump = Pump::open(&service, "stdout", Logging::None, None).unwrap();
        (&pump.pipe).write_all(&[b'x'; 5000]).unwrap();
        assert!(!pump.drain().unwrap());
        assert_eq!(ioctl_fionread(&pump.pipe).unwrap(), 0);
        assert!(parts::list(&service, "stdout").unwrap().is_empty());
    }
}
