//! Who of our processes works on something: one writer at a time, and a way to end one that nobody waits for any more.
//!
//! Record locks (fcntl(2), `F_SETLK`): they end with their process, no container inherits them, and the kernel tells
//! who holds one. *Invariant:* a lock file is opened here alone, for a process loses its lock by closing any
//! descriptor of the file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Flock, FlockType, fcntl_getlk};

use super::{Error, Result};
use crate::sys::pidfd;

/// How long a killed holder may take to end, in milliseconds.
const KILL_WAIT: u64 = 10_000;

/// A lock that is held until this is dropped or the process ends.
#[derive(Debug)]
pub struct Held(File);

impl Held {
    /// Whether the locked file is still what `path` names: it may have been removed, and made again, while we waited.
    pub fn is_at(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        match (self.0.metadata(), std::fs::metadata(path)) {
            (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }
}

/// Waits for the lock at `path`; its folder must exist.
pub fn acquire(path: &Path) -> Result<Held> {
    let file = open(path)?;
    retry_on_intr(|| fcntl_lock(&file, FlockOperation::LockExclusive)).map_err(at(path))?;
    Ok(Held(file))
}

/// Takes the lock unless another process holds it.
pub fn attempt(path: &Path) -> Result<Option<Held>> {
    take(open(path)?, path).map(|(file, held)| held.then_some(Held(file)))
}

/// Takes the lock, killing whoever holds it. The caller knows that the holder's work is not wanted any more.
pub fn evict(path: &Path) -> Result<Held> {
    let mut file = open(path)?;
    loop {
        let held;
        (file, held) = take(file, path)?;
        if held {
            return Ok(Held(file));
        }
        let Some(pid) = holder(&file, path)? else {
            continue;
        };
        let ended = pidfd::open(pid).and_then(|process| {
            // after the open: the number of one that has just ended may be another process's
            if holder(&file, path).ok().flatten() != Some(pid) {
                return Ok(true);
            }
            pidfd::send_signal(&process, libc::SIGKILL)?;
            pidfd::wait(&process, Some(KILL_WAIT))
        });
        match ended {
            Ok(true) => {}
            Ok(false) => {
                return Err(Error::Other(format!(
                    "process {pid}, which holds {}, does not end after SIGKILL",
                    path.display()
                )));
            }
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(Error::io("end the holder of", path)(error)),
        }
    }
}

/// Somebody holds the lock, of whatever pid namespace. Not for one that this process holds: it would lose it.
pub fn is_held(path: &Path) -> Result<bool> {
    let file = match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(Error::io("open", path))?,
    };
    let lock = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).map_err(at(path))?;
    Ok(lock.is_some())
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("open", path))
}

fn at(path: &Path) -> impl FnOnce(Errno) -> Error {
    let failed = Error::io("lock", path);
    move |errno| failed(errno.into())
}

fn take(file: File, path: &Path) -> Result<(File, bool)> {
    match retry_on_intr(|| fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok((file, true)),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok((file, false)),
        Err(errno) => Err(at(path)(errno)),
    }
}

/// `None`: nobody holds it by now.
fn holder(file: &File, path: &Path) -> Result<Option<i32>> {
    let lock = fcntl_getlk(file, &Flock::from(FlockType::WriteLock)).map_err(at(path))?;
    match lock.map(|lock| lock.pid) {
        None => Ok(None),
        Some(Some(pid)) => Ok(Some(pid.as_raw_nonzero().get())),
        Some(None) => Err(Error::Other(format!(
            "{} is held by a process of another pid namespace",
            path.display()
        ))),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    const HOLD: &str = "LOCK_TO_HOLD";

    /// The process of [`hold`].
    #[test]
    fn holder_for_another_test() {
        if let Some(path) = std::env::var_os(HOLD) {
            let _held = acquire(Path::new(&path)).unwrap();
            eprintln!("held");
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
    }

    /// Another process that holds a lock: within one process a record lock never conflicts.
    pub(crate) fn hold(path: &Path) -> Child {
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "pod::lock::tests::holder_for_another_test",
            ])
            .env(HOLD, path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(other.stderr.take().unwrap()).lines();
        assert!(
            said.map_while(std::result::Result::ok)
                .any(|line| line == "held")
        );
        other
    }

    #[test]
    fn a_holder_is_waited_for_or_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut other = hold(&path);
        assert!(attempt(&path).unwrap().is_none());
        assert!(is_held(&path).unwrap());
        assert!(!is_held(&dir.path().join("none")).unwrap());
        let held = evict(&path).unwrap();
        assert_eq!(other.wait().unwrap().signal(), Some(libc::SIGKILL));
        drop(held);
        assert!(attempt(&path).unwrap().is_some());
        acquire(&path).unwrap();
        assert!(acquire(&dir.path().join("missing/lock")).is_err());
    }
}
