//! Container output: named pipe → log file, without passing through this program's memory.
//!
//! splice(2) moves bytes out of the pipe and into the file in one call, so that a kill at any instant neither loses a
//! byte nor writes it twice. The index beside a log has one line for each call: Unix time in nanoseconds, offset of the
//! end. Bytes behind the last line (a kill between the two) get theirs from the next supervisor.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use super::super::layout::ServiceDir;
use super::super::{Error, Result};
use crate::sys::watch::watch;

/// Most bytes moved at once.
const CHUNK: usize = 1 << 20;
/// More than two index lines (bytes).
const TAIL: u64 = 256;
/// Pause after a log that could not be written (a full disk); the container waits at its full pipe meanwhile.
const RETRY: Duration = Duration::from_secs(1);

/// One stream of one service.
#[derive(Debug)]
pub struct Pump {
    pipe: File,
    log: File,
    index: File,
    end: u64,
}

impl Pump {
    fn open(service: &ServiceDir, stream: &str) -> Result<Pump> {
        let open = |path: std::path::PathBuf, options: &OpenOptions| {
            options.open(&path).map_err(Error::io("open", &path))
        };
        let mut own = OpenOptions::new();
        own.write(true).create(true).mode(0o600);
        let mut pipe = OpenOptions::new();
        // both ends, so that a container which closes its own is no end of file
        pipe.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let path = service.log(stream);
        // splice(2) refuses files opened to append
        let mut log = open(path.clone(), &own)?;
        let end = log
            .seek(SeekFrom::End(0))
            .map_err(Error::io("seek in", &path))?;
        let index = service.index(stream);
        complete(&index, end).map_err(Error::io("complete", &index))?;
        Ok(Pump {
            pipe: open(service.pipe(stream), &pipe)?,
            log,
            index: open(
                service.index(stream),
                OpenOptions::new().append(true).create(true).mode(0o600),
            )?,
            end,
        })
    }

    /// Moves what the pipe holds now.
    fn drain(&mut self) -> io::Result<()> {
        loop {
            match splice(
                &self.pipe,
                None,
                &self.log,
                None,
                CHUNK,
                SpliceFlags::NONBLOCK,
            ) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(count) => {
                    self.end += count as u64;
                    let now = jiff::Timestamp::now().as_nanosecond();
                    self.index
                        .write_all(format!("{now} {}\n", self.end).as_bytes())?;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Gives bytes of the log that a killed supervisor left without an index line theirs, and ends a line cut short.
fn complete(index: &Path, end: u64) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(index)?;
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
    if known.unwrap_or(0) < end {
        let now = jiff::Timestamp::now().as_nanosecond();
        text.push_str(&format!("{now} {end}\n"));
    }
    file.write_all(text.as_bytes())
}

/// Both streams of a service.
#[derive(Debug, Clone)]
pub struct Pumps(Vec<Rc<RefCell<Pump>>>);

impl Pumps {
    /// Opens the pipes and logs and pumps until the supervisor ends. `failed` is told of a log that cannot be written.
    pub fn start(service: &ServiceDir, failed: impl Fn(String) + Clone + 'static) -> Result<Pumps> {
        let mut pumps = Vec::new();
        for stream in ["stdout", "stderr"] {
            let pump = Pump::open(service, stream)?;
            let path = service.log(stream);
            let pipe = pump.pipe.try_clone().map_err(Error::io("open", &path))?;
            let pipe = watch(pipe.into()).map_err(Error::io("watch", &path))?;
            let pump = Rc::new(RefCell::new(pump));
            pumps.push(pump.clone());
            let failed = failed.clone();
            tokio::task::spawn_local(async move {
                let mut told = None;
                while let Ok(mut ready) = pipe.readable().await {
                    let moved = pump.borrow_mut().drain();
                    if let Err(error) = moved {
                        // once, not every second while a disk stays full
                        let text = format!("write {}: {error}; trying again", path.display());
                        if told.as_ref() != Some(&text) {
                            failed(text.clone());
                            told = Some(text);
                        }
                        tokio::time::sleep(RETRY).await;
                    } else {
                        told = None;
                        ready.clear_ready();
                    }
                }
            });
        }
        Ok(Pumps(pumps))
    }

    /// Moves what the pipes hold now: after an exit, before it is told.
    pub fn drain(&self) {
        for pump in &self.0 {
            // a log that cannot be written is reported by its own task
            let _ = pump.borrow_mut().drain();
        }
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
        for (before, end, kept, added) in [
            (None, 0, "", ""),
            (None, 20, "", line),
            (Some("1 5\n2 20\n"), 20, "1 5\n2 20\n", ""),
            (Some("1 5\n"), 20, "1 5\n", line),
            (Some("1 5\n2"), 5, "1 5\n2\n", ""),
            (Some("1 5\n2 2"), 20, "1 5\n2 2\n", line),
        ] {
            let _ = std::fs::remove_file(&path);
            if let Some(text) = before {
                std::fs::write(&path, text).unwrap();
            }
            complete(&path, end).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            let rest = text.strip_prefix(kept).unwrap();
            assert_eq!(rest.is_empty(), added.is_empty(), "{before:?}: {text:?}");
            assert!(rest.ends_with(added), "{before:?}: {text:?}");
        }
    }
}
