//! Writing to the standard input of a service: one writer at a time.
//!
//! *Invariants:* a writer holds a lock from before it has the descriptor until it has let go of it; the lock ends with its process. A
//! supervisor that is killed meanwhile changes nothing: writers have the terminal or the pipe itself.
//!
//! Leaves to others: what keeps the descriptor open when nobody writes ([`super::stores`]), reading ([`super::follow`]).

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::io::Errno;
use rustix::termios::Winsize;

use super::control::Request;
use super::layout::PodDir;
use super::{Error, Result, adopt};

/// End of the input as a terminal takes it (termios(3), VEOF).
const EOT: u8 = 4;

/// The way to the standard input of a service.
#[derive(Debug)]
pub struct Input {
    fd: OwnedFd,
    terminal: bool,
    dir: PodDir,
    service: String,
    _only: File,
}

impl Input {
    /// Takes the input of a service that runs. Refused while somebody else writes to it, and when it has none. Blocks for as long as the
    /// supervisor takes to answer.
    pub fn open(dir: &PodDir, service: &str) -> Result<Input> {
        let path = dir.service(service).input_lock();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let only = options.open(&path).map_err(Error::io("open", &path))?;
        match only.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy(service.to_string())),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        let fd = adopt::input(dir, service)?;
        Ok(Input {
            terminal: rustix::termios::isatty(&fd),
            fd,
            dir: dir.clone(),
            service: service.to_string(),
            _only: only,
        })
    }

    /// It is a terminal, not a pipe.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes some of the bytes; none when there is no room now (`WouldBlock`) or nobody reads any more (`BrokenPipe`).
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, bytes)) {
            Err(Errno::IO) => Err(io::ErrorKind::BrokenPipe.into()),
            other => Ok(other?),
        }
    }

    /// Ends the input: a terminal's with EOT, which the program may go on after; a pipe's for good.
    pub fn end(&self) -> Result<()> {
        if self.terminal {
            return match self.write(&[EOT]) {
                // a terminal whose buffer is full has been told nothing, and its program reads nothing
                Ok(_) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                Err(error) => Err(Error::io(
                    "end the input of",
                    &self.dir.service(&self.service).dir,
                )(error)),
            };
        }
        let request = Request::EndInput {
            service: self.service.clone(),
        };
        adopt::ask(&self.dir, &request, &mut |_, _| {}).map(|_| ())
    }

    /// Sets the size of a terminal; that of one which is gone is of no interest.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        if self.terminal {
            let _ = rustix::termios::tcsetwinsize(&self.fd, size);
        }
    }
}

impl AsFd for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
