//! What keeps the standard input of services open: the master of a terminal (`tty`), the write end of a pipe (`stdin_open` alone).
//!
//! ```text
//! keeper ── makes a pair for each such service, hands all of them down to every supervisor on its standard input
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
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use rustix::fs::OFlags;

use super::{Error, Result};
use crate::compose::Project;
use crate::sys::socket::{self, DESCRIPTORS_MAX};

/// Most services of a pod with a terminal or an open standard input: their pairs come in one message.
pub const STORES_MAX: usize = DESCRIPTORS_MAX / 2;

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
        let names = interactive(project).map(|name| Ok((name.to_string(), Store::new()?)));
        Ok(Stores(names.collect::<io::Result<_>>()?))
    }

    /// Standard input for a supervisor.
    pub fn hand_down(&self) -> io::Result<Stdio> {
        if self.0.is_empty() {
            return Ok(Stdio::null());
        }
        let (hold, put) = socket::pair()?;
        let fds: Vec<_> = self
            .0
            .values()
            .flat_map(|store| [store.hold.as_fd(), store.put.as_fd()])
            .collect();
        socket::send_all(&put, b"stores", &fds)?;
        Ok(hold.into())
    }

    /// From our standard input, in a supervisor. The order is that of the names.
    pub fn inherit(project: &Project) -> Result<Stores> {
        let names: Vec<&str> = interactive(project).collect();
        if names.is_empty() {
            return Ok(Stores::default());
        }
        let failed = |why: String| {
            Error::Other(format!(
                "take over the inputs of services from the keeper: {why}"
            ))
        };
        let found = socket::look(&std::io::stdin()).map_err(|error| failed(error.to_string()))?;
        let fds = found.map_or_else(Vec::new, |(_, fds)| fds);
        if fds.len() != 2 * names.len() {
            let why = format!("{} descriptors for {} services", fds.len(), names.len());
            return Err(failed(why));
        }
        // for nobody that we start
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let null = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty());
        null.and_then(|null| rustix::stdio::dup2_stdin(&null))
            .map_err(|errno| failed(errno.to_string()))?;
        let mut fds = fds.into_iter();
        let mut stores = BTreeMap::new();
        for name in names {
            if let (Some(hold), Some(put)) = (fds.next(), fds.next()) {
                stores.insert(name.to_string(), Store { hold, put });
            }
        }
        Ok(Stores(stores))
    }

    /// A service's, if it has a terminal or an open standard input.
    pub fn get(&self, service: &str) -> Option<&Store> {
        self.0.get(service)
    }
}

/// Services that have one, in the order of their names.
pub fn interactive(project: &Project) -> impl Iterator<Item = &str> {
    let mut names: Vec<&str> = project
        .services
        .iter()
        .filter(|(_, service)| service.tty || service.stdin_open)
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    names.into_iter()
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
