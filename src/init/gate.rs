//! The start gate: two named pipes in the container's folder.
//!
//! ```text
//! gate     start writes one byte, the child reads it      open for reading as long as the child waits
//! result   the child writes ">" before execve and a Failure after it failed; execve closes it
//! ```
//!
//! *Invariants:* the child's ends are close-on-exec, so that the kernel itself tells waiting (the gate has a reader), started (it has
//! none), executed (`>` and end of file) and died (end of file) apart. One `start` at a time: the gate is locked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, Mode};
use rustix::io::Errno;

use super::channel::Failure;

const GATE: &str = "gate";
const RESULT: &str = "result";
/// Longest answer read, in bytes.
const ANSWER_MAX: u64 = 64 * 1024;

/// The child's ends.
#[derive(Debug)]
pub struct Child {
    gate: File,
    result: File,
}

impl Child {
    /// Its descriptors.
    pub fn raw(&self) -> [RawFd; 2] {
        [self.gate.as_raw_fd(), self.result.as_raw_fd()]
    }

    /// Waits until the gate is opened.
    pub fn wait(&self) -> io::Result<()> {
        (&self.gate).read_exact(&mut [0])?;
        (&self.result).write_all(b">")
    }

    /// Tells whoever opened the gate. It may be gone: then nobody asks.
    pub fn report(&self, failure: &Failure) {
        if let Ok(text) = serde_json::to_vec(failure) {
            let _ = (&self.result).write_all(&text);
        }
    }
}

/// What opening the gate led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The program runs.
    Executed,
    /// It could not be executed.
    Failed(Failure),
    /// The process died before.
    Died,
    /// Nobody waits at the gate.
    NotWaiting,
}

/// Makes both pipes, open at both ends, so that no open waits and the child reads no end of file.
pub fn make(dir: &Path) -> io::Result<Child> {
    remove(dir)?;
    let pipe = |name: &str| -> io::Result<File> {
        let path = dir.join(name);
        rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(0o600))?;
        OpenOptions::new().read(true).write(true).open(&path)
    };
    Ok(Child {
        gate: pipe(GATE)?,
        result: pipe(RESULT)?,
    })
}

/// Whether somebody waits at the gate.
pub fn is_waiting(dir: &Path) -> io::Result<bool> {
    Ok(open_gate(dir)?.is_some())
}

/// The gate's writing end; `None` when it has no reader.
fn open_gate(dir: &Path) -> io::Result<Option<File>> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    match OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(dir.join(GATE))
    {
        Ok(gate) => Ok(Some(gate)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the gate and waits for what comes of it. The lock is kept on `dir`.
pub fn open(dir: &Path) -> io::Result<Outcome> {
    let lock = File::open(dir)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    // a reader before the byte is written: the answer cannot be missed
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let result = match OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(dir.join(RESULT))
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::NotWaiting),
        other => other?,
    };
    let Some(mut gate) = open_gate(dir)? else {
        return Ok(Outcome::NotWaiting);
    };
    match gate.write_all(b"\n") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Outcome::Died),
        other => other?,
    }
    rustix::fs::fcntl_setfl(&result, rustix::fs::OFlags::empty())?;
    let mut answer = Vec::new();
    result.take(ANSWER_MAX).read_to_end(&mut answer)?;
    Ok(match answer.split_first() {
        None => Outcome::Died,
        Some((_, [])) => Outcome::Executed,
        Some((_, failure)) => Outcome::Failed(serde_json::from_slice(failure)?),
    })
}

/// Removes the pipes; missing is success.
pub fn remove(dir: &Path) -> io::Result<()> {
    for name in [GATE, RESULT] {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::channel::FailureKind;

    #[test]
    fn tells_outcomes_apart() {
        let failure = Failure {
            kind: FailureKind::NotFound,
            message: "no".into(),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert!(!is_waiting(path).unwrap());
        assert_eq!(open(path).unwrap(), Outcome::NotWaiting);
        type Act = fn(&Child, &Failure);
        let cases: [(Act, Outcome); 3] = [
            (|child, _| child.wait().unwrap(), Outcome::Executed),
            (
                |child, failure| {
                    child.wait().unwrap();
                    child.report(failure);
                },
                Outcome::Failed(failure.clone()),
            ),
            (
                |child, _| (&child.gate).read_exact(&mut [0]).unwrap(),
                Outcome::Died,
            ),
        ];
        for (act, want) in cases {
            let child = make(path).unwrap();
            assert!(is_waiting(path).unwrap());
            let failure = failure.clone();
            let thread = std::thread::spawn(move || act(&child, &failure));
            assert_eq!(open(path).unwrap(), want);
            thread.join().unwrap();
            assert!(!is_waiting(path).unwrap());
            assert_eq!(open(path).unwrap(), Outcome::NotWaiting);
        }
        remove(path).unwrap();
        remove(path).unwrap();
    }
}
