//! A file that gets output: opened where programs in the pod may write too, shared with other pods, changed for a new one when it is full.
//!
//! *Invariants:* what is opened is a regular file with one name, below a folder that is trusted and without a link in between; a new one
//! belongs to the owner of its folder. Whoever appends or renames holds the file's lock (flock(2)) and has looked that it still has its
//! name. A record is appended as a whole or not at all, and belongs to one file.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::super::record::Intent;
use crate::compose::project::LogFile;

/// Which, and how large it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The file.
    pub file: LogFile,
    /// Bytes; `None`: without bound.
    pub max_size: Option<u64>,
    /// Files, this one included; the others have `.1`, `.2` … behind its name, the newest first.
    pub max_file: u32,
}

/// The file is open and ours until this is dropped.
pub struct Locked {
    folder: OwnedFd,
    file: File,
    length: u64,
}

impl Target {
    /// Opens and locks the file, and makes it where it is missing. `WouldBlock`: somebody else has it.
    pub fn lock(&self) -> io::Result<Locked> {
        loop {
            let folder = self.folder()?;
            let file = open(&folder, self.name(), true)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Err(ErrorKind::WouldBlock.into()),
                other => other?,
            }
            let meta = file.metadata()?;
            if inode_of(&folder, self.name())? == Some(meta.ino()) {
                return Ok(Locked {
                    folder,
                    file,
                    length: meta.len(),
                });
            }
        }
    }

    /// The folder that the file is in. One that is missing is made, if the one above is there.
    fn folder(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let trusted = match rustix::fs::open(&self.file.folder, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdir(&self.file.folder, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                rustix::fs::open(&self.file.folder, flags, Mode::empty())?
            }
            other => other?,
        };
        match self.file.name.parent() {
            Some(below) if below != Path::new("") => {
                Ok(beneath(&trusted, below, flags, Mode::empty())?)
            }
            _ => Ok(trusted),
        }
    }

    fn name(&self) -> &Path {
        Path::new(self.file.name.file_name().unwrap_or_default())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        match number {
            0 => self.name().to_owned(),
            number => {
                let mut name = self.name().as_os_str().to_owned();
                name.push(format!(".{number}"));
                name.into()
            }
        }
    }

    /// Gives the file that is full another name, and those before it; the oldest goes. What an earlier attempt has done already is not done
    /// again: names are given from the first that is free.
    fn rotate(&self, locked: &Locked) -> io::Result<()> {
        let folder = &locked.folder;
        let mut free = 1;
        while free < self.max_file && inode_of(folder, &self.numbered(free))?.is_some() {
            free += 1;
        }
        if self.max_file == 1 {
            rustix::fs::unlinkat(folder, self.name(), AtFlags::empty())?;
            return Ok(());
        }
        for number in (1..=free.min(self.max_file - 1)).rev() {
            let (from, to) = (self.numbered(number - 1), self.numbered(number));
            rustix::fs::renameat(folder, &from, folder, &to)?;
        }
        Ok(())
    }

    /// Appends as many of `records` as go into the file, and gives how many. `keep` is told before anything is written.
    pub fn append(
        &self,
        records: &[&[u8]],
        keep: &mut dyn FnMut(usize, Intent) -> io::Result<()>,
    ) -> io::Result<usize> {
        loop {
            let mut locked = self.lock()?;
            let count = self.fitting(records, locked.length);
            if count == 0 {
                self.rotate(&locked)?;
                continue;
            }
            let bytes = records
                .iter()
                .take(count)
                .copied()
                .collect::<Vec<_>>()
                .concat();
            let intent = Intent {
                inode: locked.file.metadata()?.ino(),
                start: locked.length,
                length: bytes.len() as u64,
                hash: hash(&bytes),
            };
            keep(count, intent)?;
            locked.append(&bytes)?;
            return Ok(count);
        }
    }

    /// A file has one record at least, however long.
    fn fitting(&self, records: &[&[u8]], length: u64) -> usize {
        let Some(max_size) = self.max_size else {
            return records.len();
        };
        let mut end = length;
        let fits = |record: &&&[u8]| {
            end += record.len() as u64;
            end <= max_size
        };
        let count = records.iter().take_while(fits).count();
        match (count, length) {
            (0, 0) => 1,
            (count, _) => count,
        }
    }

    /// Whether what was intended was done. A part of it, which `ours` begins with, is taken back; what others have written there since stays.
    pub fn was_done(&self, intent: &Intent, ours: &[u8]) -> io::Result<bool> {
        let locked = self.lock()?;
        for number in 0..self.max_file {
            let name = self.numbered(number);
            if inode_of(&locked.folder, &name)? != Some(intent.inode) {
                continue;
            }
            let mut file = open(&locked.folder, &name, false)?;
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(intent.start))?;
            (&mut file).take(intent.length).read_to_end(&mut bytes)?;
            let whole = bytes.len() as u64 == intent.length;
            if !whole && ours.starts_with(&bytes) {
                file.set_len(file.metadata()?.len().min(intent.start))?;
            }
            return Ok(whole && hash(&bytes) == intent.hash);
        }
        Ok(false)
    }
}

impl Locked {
    /// All or nothing.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let done = self.file.write_all(bytes);
        if done.is_err() {
            // a full disk lets a file get shorter
            self.file.set_len(self.length)?;
        }
        done
    }
}

fn beneath(
    folder: &OwnedFd,
    name: &Path,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(folder, name, flags | OFlags::CLOEXEC, mode, how)
}

/// Opens a file of a folder to append and to read it.
fn open(folder: &OwnedFd, name: &Path, create: bool) -> io::Result<File> {
    // a pipe that somebody put there must not hold us up
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match beneath(folder, name, flags, Mode::empty()) {
        Err(Errno::NOENT) if create => {
            let new = flags | OFlags::CREATE | OFlags::EXCL;
            let file = match beneath(folder, name, new, Mode::from_raw_mode(0o644)) {
                Err(Errno::EXIST) => beneath(folder, name, flags, Mode::empty()),
                other => other,
            }?;
            let owner = rustix::fs::fstat(folder)?;
            let (uid, gid) = (owner.st_uid, owner.st_gid);
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(uid),
                rustix::fs::Gid::from_raw(gid),
            );
            match rustix::fs::fchown(file.as_fd(), Some(uid), Some(gid)) {
                // only root gives files away
                Ok(()) | Err(Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
            file
        }
        other => other?,
    };
    let file = File::from(file);
    let meta = file.metadata()?;
    match meta.is_file() && meta.nlink() <= 1 {
        true => Ok(file),
        false => Err(io::Error::other(
            "it is not a regular file with one name; remove it",
        )),
    }
}

fn inode_of(folder: &OwnedFd, name: &Path) -> io::Result<Option<u64>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat.st_ino)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// FNV-1a: told apart is what was written from what was not, not friend from foe.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
