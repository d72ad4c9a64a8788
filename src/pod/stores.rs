//! What keeps the standard input of services open: the master of a terminal (`tty`), the write end of a pipe (`stdin_open` alone).
//!
//! ```text
//! keeper ── makes a pair for each such service, which every supervisor has by its fork
//!   hold ◄── queue: one message, with the descriptor ◄── put
//!     └ supervisor looks at it without taking it (unix(7), MSG_PEEK): a further descriptor each time
//! ```
//!
//! *Invariants:* the descriptor is in the queue of a socket pair that keeper and supervisor both hold open, so a kill of either closes no
//! terminal and ends no input; there is one at most, and taking it is the end of the input. Only when both are killed it is lost:
//! the kernel hangs the terminal up.
//!
//! Leaves to others: who may write ([`super::input`]), the terminal's output (the supervisor's).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;

use crate::compose::Project;
use crate::sys::socket;

/// Holds at most one descriptor.
#[derive(Debug)]
pub struct Store {
    hold: OwnedFd,
    put: OwnedFd,
}

impl Store {
    fn new() -> io::Result<Store> {
        let (hold, put) = socket::pair()?;
        Ok(Store { hold, put })
    }

    /// A further descriptor of what it holds, that does not block.
    pub fn look(&self) -> io::Result<Option<OwnedFd>> {
        let Some((_, mut fds)) = socket::look(&self.hold)? else {
            return Ok(None);
        };
        let Some(fd) = fds.pop() else {
            return Ok(None);
        };
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Some(fd))
    }

    /// Lets go of what it holds.
    pub fn clear(&self) -> io::Result<()> {
        socket::discard(&self.hold)
    }

    /// Replaces what it holds.
    pub fn set(&self, fd: &OwnedFd) -> io::Result<()> {
        self.clear()?;
        socket::send(&self.put, b"input", Some(fd))
    }

    /// Where `create` puts the terminal's master.
    pub fn sender(&self) -> io::Result<OwnedFd> {
        self.put.try_clone()
    }
}

/// Those of a pod, by service.
#[derive(Debug, Default)]
pub struct Stores(BTreeMap<String, Store>);

impl Stores {
    /// For a keeper that begins: nothing in them.
    pub fn make(project: &Project) -> io::Result<Stores> {
        let services = project.services.iter();
        let interactive = services.filter(|(_, service)| service.tty || service.stdin_open);
        let stores = interactive.map(|(name, _)| Ok((name.clone(), Store::new()?)));
        Ok(Stores(stores.collect::<io::Result<_>>()?))
    }

    /// A service's, if it has a terminal or an open standard input.
    pub fn get(&self, service: &str) -> Option<&Store> {
        self.0.get(service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_holds_one_until_it_is_cleared() {
        let store = Store::new().unwrap();
        assert!(store.look().unwrap().is_none());
        let (first, writer) = rustix::pipe::pipe().unwrap();
        store.set(&writer).unwrap();
        drop(writer);
        let (second, writer) = rustix::pipe::pipe().unwrap();
        store.set(&writer).unwrap();
        drop(writer);
        let mut byte = [0];
        // its only write end was replaced
        assert_eq!(rustix::io::read(&first, &mut byte).unwrap(), 0);
        let seen = store.look().unwrap().unwrap();
        rustix::io::write(&seen, b"x").unwrap();
        drop(seen);
        assert_eq!(rustix::io::read(&second, &mut byte).unwrap(), 1);
        store.clear().unwrap();
        assert!(store.look().unwrap().is_none());
        assert_eq!(rustix::io::read(&second, &mut byte).unwrap(), 0);
    }
}
