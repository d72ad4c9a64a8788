//! Between our terminal and the container's: bytes both ways.
//!
//! *Invariants:* nothing here blocks, whoever does not read or write; what waits is one piece in each direction, and no more is read before
//! that is written. Our standard streams are shared with others, so their flags stay as they are.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFlags, Timespec, epoll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::stdio::{stdin, stdout};

use super::Ready;
use crate::cli::terminal::Raw;

/// Most bytes of a piece.
const PIECE: usize = 16 << 10;
/// Most bytes of one write: it does not block where poll(2) has just told of room. A pipe has room for a page then, a pseudo-terminal takes
/// a buffer's (drivers/tty/tty_buffer.c) whose limit it has not reached.
const ROOM: usize = 1024;
/// More than a terminal holds, of what is read once its program has ended: what others go on writing is not awaited.
const REST: usize = 128 << 10;
/// End of the input as a terminal takes it (termios(3), VEOF).
const EOT: u8 = 4;

/// Our terminal or standard streams, and the container's terminal.
pub struct Bridge {
    master: OwnedFd,
    /// Readable when there is news of the master, once for each: one that nobody has open tells poll(2) so for ever, and may be opened again.
    news: OwnedFd,
    /// There may be something to read.
    readable: bool,
    /// So much is still read.
    left: usize,
    input_open: bool,
    typed: Vec<u8>,
    printed: Vec<u8>,
    _raw: Option<Raw>,
}

impl Bridge {
    /// With the master of the container's terminal, whose open file is ours alone.
    pub fn new(master: OwnedFd) -> anyhow::Result<Bridge> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
        let news = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&news, &master, epoll::EventData::new_u64(0), events)?;
        let bridge = Bridge {
            master,
            news,
            readable: true,
            left: usize::MAX,
            input_open: true,
            typed: Vec::new(),
            printed: Vec::new(),
            _raw: Raw::enter()?,
        };
        bridge.resize();
        Ok(bridge)
    }

    /// A size that cannot be read or set leaves the terminal as it is.
    pub fn resize(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(stdin()) {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    /// What it waits for.
    pub fn awaited(&self) -> Vec<(Ready, BorrowedFd<'_>, PollFlags)> {
        let mut all = Vec::new();
        match (self.typed.is_empty(), self.input_open) {
            (false, _) => all.push((Ready::InputRoom, self.master.as_fd(), PollFlags::OUT)),
            (true, true) => all.push((Ready::Input, stdin(), PollFlags::IN)),
            (true, false) => {}
        }
        all.push(match self.printed.is_empty() {
            false => (Ready::OutputRoom, stdout(), PollFlags::OUT),
            true => (Ready::Output, self.news.as_fd(), PollFlags::IN),
        });
        all
    }

    /// Moves what can be moved now.
    pub fn copy(&mut self, ready: &[Ready]) -> io::Result<()> {
        if ready.contains(&Ready::Input) {
            self.take_typed()?;
        }
        if ready.contains(&Ready::InputRoom) {
            self.give_typed()?;
        }
        if ready.contains(&Ready::OutputRoom) {
            let piece = self.printed.get(..ROOM).unwrap_or(&self.printed);
            let count = written(rustix::io::write(stdout(), piece))?;
            self.printed.drain(..count);
        }
        if ready.contains(&Ready::Output) {
            let mut events = Vec::with_capacity(1);
            let buffer = rustix::buffer::spare_capacity(&mut events);
            epoll::wait(&self.news, buffer, Some(&Timespec::default()))?;
            self.readable = true;
        }
        if self.printed.is_empty() && self.readable {
            self.take_printed()?;
        }
        Ok(())
    }

    /// The program has ended: what it printed last is still there.
    pub fn end(&mut self) {
        self.input_open = false;
        self.typed.clear();
        self.readable = true;
        self.left = REST;
    }

    /// Nothing of what has been printed by now is left.
    pub fn is_empty(&self) -> bool {
        self.printed.is_empty() && !self.readable
    }

    fn take_typed(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        let count = match rustix::io::read(stdin(), &mut *buffer) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            // a terminal that hung up
            Err(Errno::IO) => 0,
            read => read?,
        };
        buffer.truncate(count);
        if count == 0 {
            self.input_open = false;
            buffer.push(EOT);
        }
        self.typed = buffer;
        Ok(())
    }

    fn give_typed(&mut self) -> io::Result<()> {
        let piece = self.typed.get(..ROOM).unwrap_or(&self.typed);
        let count = match rustix::io::write(&self.master, piece) {
            // nobody has the terminal open, so nobody is to read this
            Err(Errno::IO) => self.typed.len(),
            other => written(other)?,
        };
        self.typed.drain(..count);
        Ok(())
    }

    fn take_printed(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; PIECE.min(self.left)];
        let count = match rustix::io::read(&self.master, &mut *buffer) {
            Err(Errno::INTR) => return Ok(()),
            // EIO: the other side is closed
            Err(Errno::AGAIN | Errno::IO) => 0,
            read => read?,
        };
        buffer.truncate(count);
        self.readable = count > 0;
        self.left -= count;
        self.printed = buffer;
        Ok(())
    }
}

fn written(done: Result<usize, Errno>) -> io::Result<usize> {
    match done {
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        other => Ok(other?),
    }
}
