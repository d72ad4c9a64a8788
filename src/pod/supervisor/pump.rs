//! Container output: named pipe → log file, without passing through this program's memory.
//!
//! splice(2) moves bytes out of the pipe and into the file in one call, so that a kill at any instant neither loses a
//! byte nor writes it twice. The index beside a log has one line for each call: Unix time in nanoseconds, offset of the
//! end. Bytes behind the last line (a kill between the two) belong to the next one.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use super::super::layout::ServiceDir;
use super::super::{Error, Result};
use crate::sys::watch::watch;

/// Most bytes moved at once.
const CHUNK: usize = 1 << 20;
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
