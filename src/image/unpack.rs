//! A layer archive becomes a folder in overlay form.
//!
//! *Invariants:* archives are hostile. Every path is resolved beneath the folder's descriptor
//! (openat2, RESOLVE_BENEATH and RESOLVE_NO_MAGICLINKS); names with `..` are refused; an entry that
//! can't be made exactly is an error that names it, never a guess. Memory is bounded: one entry's
//! header, one parent folder, the list of implied folders with a limit. The folder is the caller's
//! alone while this runs; what is in it after an error is to be thrown away.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, fstat,
};
use rustix::io::Errno;

use super::archive::{Archive, Entry, Kind, Time, shown};
use super::error::{Context, Error};
use super::extract::Owner;
use super::whiteout::{self, Name};
use super::{metadata, stream};

/// Entries of one layer.
const MAX_ENTRIES: u64 = 4_000_000;
/// Components of one path.
const MAX_DEPTH: usize = 512;
/// Bytes of one component, NAME_MAX.
const MAX_NAME: usize = 255;
/// Folders without an entry of their own; kept in memory.
const MAX_IMPLIED: usize = 100_000;
/// Logical bytes of one sparse file: the size limit of ext4.
const MAX_SPARSE: u64 = 16 << 40;
const CHUNK: usize = 128 << 10;

/// Mode of folders that an archive implies but doesn't have.
const IMPLIED_MODE: u32 = 0o755;

/// What unpacking found out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Digest of the whole uncompressed stream.
    pub(super) diff_id: super::digest::Digest,
    /// Folders without an entry of their own: they should look as in the layers below.
    pub(super) implied: BTreeSet<Vec<u8>>,
}

/// Unpacks the blob `input` of `size` bytes into the existing, empty `folder`.
pub(super) fn unpack(
    input: impl Read,
    size: u64,
    folder: &Path,
    what: &str,
    mut advance: impl FnMut(u64),
) -> Result<Unpacked, Error> {
    let reading = || format!("read {what}");
    let mut stream = stream::Layer::open(input, size).doing(reading)?;
    let mut tree = Tree::open(folder, what, Form::Layer)?;
    let mut archive = Archive::new(&mut stream);
    while let Some(entry) = archive.next().doing(reading)? {
        tree.apply(&entry, &mut archive.content())?;
        advance(archive.get_ref().compressed());
    }
    tree.leave_parent()?;
    // what follows the archive's end belongs to the diff_id too
    drop(archive);
    io::copy(&mut stream, &mut io::sink()).doing(reading)?;
    Ok(Unpacked {
        diff_id: stream.finish().0,
        implied: tree.implied,
    })
}

/// What a tree of files is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A layer: names of whiteouts have their meaning.
    Layer,
    /// Files of one owner: a name is a name, nothing in it has rights of its own, and there are no devices. Others may use the folder.
    Files(Owner),
}

/// The folder being filled.
pub(super) struct Tree<'a> {
    root: OwnedFd,
    what: &'a str,
    form: Form,
    parent: Option<Parent>,
    implied: BTreeSet<Vec<u8>>,
    entries: u64,
    buffer: Vec<u8>,
}

/// The folder of the last entry, with the times that making entries in it would change.
struct Parent {
    path: Vec<u8>,
    fd: OwnedFd,
    times: Timestamps,
}

impl<'a> Tree<'a> {
    /// Of an existing, empty folder.
    fn open(folder: &Path, what: &'a str, form: Form) -> Result<Tree<'a>, Error> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty()).at("open", folder)?;
        Ok(Tree::new(root, what, form))
    }

    /// Of a folder that is open.
    pub(super) fn new(root: OwnedFd, what: &'a str, form: Form) -> Tree<'a> {
        Tree {
            root,
            what,
            form,
            parent: None,
            implied: BTreeSet::new(),
            entries: 0,
            buffer: vec![0; CHUNK],
        }
    }

    pub(super) fn refuse(&self, path: &[u8], why: impl std::fmt::Display) -> Error {
        Error::invalid(
            self.what,
            format!("entry {} is refused: {why}", shown(path)),
        )
    }

    /// Makes one entry.
    pub(super) fn apply(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), Error> {
        let plain = match self.form {
            Form::Layer => None,
            Form::Files(owner) => Some(owner.plain(entry)),
        };
        let entry = plain.as_ref().unwrap_or(entry);
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(self.refuse(&entry.path, format!("more than {MAX_ENTRIES} entries")));
        }
        let components = self.components(&entry.path, &entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            // the folder itself is not the archive's
            return match self.form {
                Form::Layer => self.apply_root(entry),
                Form::Files(_) => Ok(()),
            };
        };
        if let Form::Files(_) = self.form {
            return self.make(entry, parents, name, content);
        }
        for parent in parents {
            match whiteout::classify(parent) {
                Name::Plain => {}
                Name::Bookkeeping => return Ok(()),
                _ => return Err(self.refuse(&entry.path, "it lies below a whiteout")),
            }
        }
        match whiteout::classify(name) {
            Name::Bookkeeping => Ok(()),
            Name::Nonsense => Err(self.refuse(&entry.path, "a whiteout of nothing")),
            Name::Opaque => {
                self.enter_parent(parents, &entry.path)?;
                let fd = &self.parent()?.fd;
                whiteout::set_opaque(fd).doing(|| self.making(entry))
            }
            Name::Whiteout(hidden) => self.hide(entry, parents, hidden),
            Name::Plain => self.make(entry, parents, name, content),
        }
    }

    /// Splits and judges a path; `.` and empty components say nothing.
    fn components<'p>(&self, path: &'p [u8], entry: &[u8]) -> Result<Vec<&'p [u8]>, Error> {
        let mut components = Vec::new();
        for component in path.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(self.refuse(entry, "its path has ..")),
                long if long.len() > MAX_NAME => {
                    return Err(self.refuse(entry, format!("a name of more than {MAX_NAME} bytes")));
                }
                plain => components.push(plain),
            }
        }
        if components.len() > MAX_DEPTH {
            return Err(self.refuse(entry, format!("more than {MAX_DEPTH} folders deep")));
        }
        Ok(components)
    }

    fn apply_root(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(self.refuse(&entry.path, "only a folder can be the root"));
        }
        self.leave_parent()?;
        metadata::apply_fd(&self.root, entry).map_err(|error| self.explain(entry, error))
    }

    /// `.wh.<hidden>`: what this layer has under that name stays, but shows nothing from below.
    fn hide(&mut self, entry: &Entry, parents: &[&[u8]], hidden: &[u8]) -> Result<(), Error> {
        self.enter_parent(parents, &entry.path)?;
        let parent = &self.parent()?.fd;
        let doing = || self.making(entry);
        match stat(parent, hidden).doing(doing)? {
            None => whiteout::make(parent, hidden).doing(doing),
            Some(found) if is_folder(&found) => {
                let folder = open_folder(parent, hidden).doing(doing)?;
                whiteout::set_opaque(&folder).doing(doing)
            }
            Some(_) => Ok(()),
        }
    }

    fn make(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
        name: &[u8],
        content: &mut impl Read,
    ) -> Result<(), Error> {
        self.enter_parent(parents, &entry.path)?;
        let path = [parents, &[name]].concat().join(&b'/');
        let doing = || self.making(entry);
        let found = stat(&self.parent()?.fd, name).doing(doing)?;
        let is_directory = entry.kind == Kind::Directory;
        if let Some(found) = &found
            && is_directory
            && is_folder(found)
        {
            let folder = open_folder(&self.parent()?.fd, name).doing(doing)?;
            self.implied.remove(&path);
            return metadata::apply_fd(&folder, entry).map_err(|error| self.explain(entry, error));
        }
        if let Kind::HardLink(target) = &entry.kind {
            return self.link(entry, name, target, found);
        }
        let replaces = found.is_some();
        if let Some(found) = &found {
            self.remove(name, found)
                .doing(|| format!("replace {}", shown(&entry.path)))?;
        }
        self.create(entry, name, content)?;
        if is_directory && replaces && self.form == Form::Layer {
            // the file or whiteout that stood here hid the folder below for good
            let folder = open_folder(&self.parent()?.fd, name).doing(|| self.making(entry))?;
            whiteout::set_opaque(&folder).doing(|| self.making(entry))?;
        }
        if replaces {
            // the cached parent may have been reached through what was replaced
            self.leave_parent()?;
        }
        Ok(())
    }

    fn create(&mut self, entry: &Entry, name: &[u8], content: &mut impl Read) -> Result<(), Error> {
        let private = Mode::RUSR | Mode::WUSR;
        let parent = match &self.parent {
            Some(parent) => parent.fd.as_fd(),
            None => self.root.as_fd(),
        };
        let node = |kind: FileType, major: u32, minor: u32| {
            // the kernel's dev_t has 12 and 20 bits; more would wrap to another device
            if major > 0xfff || minor > 0xf_ffff {
                return Err(Errno::OVERFLOW);
            }
            rustix::fs::mknodat(
                parent,
                name,
                kind,
                private,
                rustix::fs::makedev(major, minor),
            )
        };
        let made = match &entry.kind {
            Kind::File | Kind::Sparse(..) => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = rustix::fs::openat(parent, name, flags, private)
                    .map(File::from)
                    .doing(|| self.making(entry))?;
                write_content(&file, entry, content, &mut self.buffer)
                    .doing(|| self.making(entry))?;
                return metadata::apply_fd(&file, entry)
                    .map_err(|error| self.explain(entry, error));
            }
            Kind::Directory => {
                let folder = rustix::fs::mkdirat(parent, name, private | Mode::XUSR)
                    .and_then(|()| open_folder(parent, name))
                    .doing(|| self.making(entry))?;
                return metadata::apply_fd(&folder, entry)
                    .map_err(|error| self.explain(entry, error));
            }
            Kind::Symlink(target) => rustix::fs::symlinkat(target.as_slice(), parent, name),
            Kind::Character(..) | Kind::Block(..) if self.form != Form::Layer => {
                return Err(self.refuse(&entry.path, "a device"));
            }
            Kind::Character(major, minor) => node(FileType::CharacterDevice, *major, *minor),
            Kind::Block(major, minor) => node(FileType::BlockDevice, *major, *minor),
            Kind::Fifo => rustix::fs::mknodat(parent, name, FileType::Fifo, private, 0),
            Kind::HardLink(_) => Err(Errno::INVAL),
            Kind::Other(code) => {
                return Err(self.refuse(
                    &entry.path,
                    format!("entries of type {:?} are not supported", char::from(*code)),
                ));
            }
        };
        match made {
            Err(Errno::OVERFLOW) => Err(self.refuse(&entry.path, "no such device number")),
            made => {
                made.doing(|| self.making(entry))?;
                metadata::apply_at(parent, name, entry).map_err(|error| self.explain(entry, error))
            }
        }
    }

    /// A further name for a file of this layer; its owner, mode and times are that file's.
    fn link(
        &mut self,
        entry: &Entry,
        name: &[u8],
        target: &[u8],
        found: Option<Stat>,
    ) -> Result<(), Error> {
        let components = self.components(target, &entry.path)?;
        let Some((target_name, target_parents)) = components.split_last() else {
            return Err(self.refuse(&entry.path, "a hard link to the root"));
        };
        let missing = || {
            self.refuse(
                &entry.path,
                format!("this layer has no {} to link to", shown(target)),
            )
        };
        let folder = match self.beneath(
            &target_parents.join(&b'/'),
            OFlags::PATH | OFlags::DIRECTORY,
        ) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
            Err(error) => return Err(self.escape(&entry.path, error)),
        };
        let target_stat = stat(&folder, target_name)
            .doing(|| self.making(entry))?
            .filter(|found| !whiteout::is_whiteout(found))
            .ok_or_else(missing)?;
        if is_folder(&target_stat) {
            return Err(self.refuse(&entry.path, "a hard link to a folder"));
        }
        if let Some(found) = &found {
            if (found.st_dev, found.st_ino) == (target_stat.st_dev, target_stat.st_ino) {
                return Ok(());
            }
            self.remove(name, found)
                .doing(|| format!("replace {}", shown(&entry.path)))?;
        }
        rustix::fs::linkat(
            &folder,
            *target_name,
            &self.parent()?.fd,
            name,
            AtFlags::empty(),
        )
        .doing(|| self.making(entry))?;
        if found.is_some() {
            self.leave_parent()?;
        }
        Ok(())
    }

    fn remove(&self, name: &[u8], found: &Stat) -> io::Result<()> {
        let parent = self
            .parent
            .as_ref()
            .map_or(self.root.as_fd(), |parent| parent.fd.as_fd());
        if is_folder(found) {
            // std removes through descriptors and follows no link (CVE-2022-21658)
            return std::fs::remove_dir_all(metadata::proc_path(parent, name));
        }
        Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?)
    }

    /// Makes the folder of an entry the current one, with folders that are only implied.
    fn enter_parent(&mut self, parents: &[&[u8]], entry: &[u8]) -> Result<(), Error> {
        let path = parents.join(&b'/');
        if self
            .parent
            .as_ref()
            .is_some_and(|parent| parent.path == path)
        {
            return Ok(());
        }
        self.leave_parent()?;
        let fd = match self.beneath(&path, OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.imply(parents, entry)?;
                self.beneath(&path, OFlags::DIRECTORY)
                    .map_err(|error| self.escape(entry, error))?
            }
            Err(error) => return Err(self.escape(entry, error)),
        };
        let times = times_of(&fd).doing(|| format!("stat folder of {}", shown(entry)))?;
        self.parent = Some(Parent { path, fd, times });
        Ok(())
    }

    /// Gives the current parent its times back.
    pub(super) fn leave_parent(&mut self) -> Result<(), Error> {
        let Some(parent) = self.parent.take() else {
            return Ok(());
        };
        rustix::fs::futimens(&parent.fd, &parent.times)
            .doing(|| format!("set times of {}", shown(&parent.path)))
    }

    fn parent(&self) -> Result<&Parent, Error> {
        self.parent
            .as_ref()
            .ok_or_else(|| Error::invalid(self.what, "no current folder"))
    }

    /// Makes the folders on the way that are missing.
    fn imply(&mut self, parents: &[&[u8]], entry: &[u8]) -> Result<(), Error> {
        for count in 1..=parents.len() {
            let (Some(prefix), Some(above)) = (parents.get(..count), parents.get(..count - 1))
            else {
                continue;
            };
            let path = prefix.join(&b'/');
            match self.beneath(&path, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(_) => continue,
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(self.escape(entry, error)),
            }
            let folder = self
                .beneath(&above.join(&b'/'), OFlags::DIRECTORY)
                .map_err(|error| self.escape(entry, error))?;
            let name = prefix.last().copied().unwrap_or_default();
            self.imply_one(&folder, name, entry)?;
            self.implied.insert(path);
            if self.implied.len() > MAX_IMPLIED {
                return Err(self.refuse(
                    entry,
                    format!("more than {MAX_IMPLIED} folders without an entry"),
                ));
            }
        }
        Ok(())
    }

    fn imply_one(&self, folder: &OwnedFd, name: &[u8], entry: &[u8]) -> Result<(), Error> {
        let doing = || format!("make a folder for {} of {}", shown(entry), self.what);
        let times = times_of(folder).doing(doing)?;
        let hidden = match stat(folder, name).doing(doing)? {
            None => false,
            Some(found) if whiteout::is_whiteout(&found) => {
                rustix::fs::unlinkat(folder, name, AtFlags::empty()).doing(doing)?;
                true
            }
            Some(_) => {
                let why = format!("{} on its way is no folder", shown(name));
                return Err(self.refuse(entry, why));
            }
        };
        let mode = Mode::from_raw_mode(IMPLIED_MODE);
        let made = rustix::fs::mkdirat(folder, name, mode)
            .and_then(|()| open_folder(folder, name))
            .doing(doing)?;
        // neither umask nor a setgid folder above has a say
        let owner = match self.form {
            Form::Layer => Owner { uid: 0, gid: 0 },
            Form::Files(owner) => owner,
        };
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(owner.uid),
            rustix::fs::Gid::from_raw(owner.gid),
        );
        rustix::fs::fchown(&made, Some(uid), Some(gid))
            .and_then(|()| rustix::fs::fchmod(&made, mode))
            .doing(doing)?;
        if hidden {
            whiteout::set_opaque(&made).doing(doing)?;
        }
        // the same archive gives the same folder, whenever it is unpacked
        rustix::fs::futimens(&made, &timestamps(Time::default(), Time::default()))
            .and_then(|()| rustix::fs::futimens(folder, &times))
            .doing(doing)
    }

    fn beneath(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        beneath(&self.root, path, flags)
    }

    fn escape(&self, entry: &[u8], error: Errno) -> Error {
        match error {
            Errno::XDEV => self.refuse(entry, "a symbolic link on its way leads out of the layer"),
            Errno::LOOP => self.refuse(entry, "a loop of symbolic links"),
            Errno::NOENT | Errno::NOTDIR => {
                self.refuse(entry, "a symbolic link on its way leads nowhere")
            }
            Errno::NAMETOOLONG => self.refuse(entry, "its path is too long"),
            other => Error::Io {
                doing: format!("open folder of {} of {}", shown(entry), self.what),
                source: other.into(),
            },
        }
    }

    fn making(&self, entry: &Entry) -> String {
        format!("unpack {} of {}", shown(&entry.path), self.what)
    }

    fn explain(&self, entry: &Entry, error: metadata::Failure) -> Error {
        match error {
            metadata::Failure::Refused(why) => self.refuse(&entry.path, why),
            metadata::Failure::Io(step, source) => Error::Io {
                doing: format!("{step} of {} of {}", shown(&entry.path), self.what),
                source,
            },
        }
    }
}

/// Opens `path` beneath `root`; the empty path is `root` itself. Retried where the kernel can't
/// rule out a race with a rename (openat2(2), EAGAIN).
pub(super) fn beneath(root: impl AsFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    loop {
        let flags = flags | OFlags::CLOEXEC;
        match rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

fn open_folder(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// What is there under `name`, not followed.
fn stat(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

pub(super) fn timestamps(accessed: Time, modified: Time) -> Timestamps {
    let point = |time: Time| Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    };
    Timestamps {
        last_access: point(accessed),
        last_modification: point(modified),
    }
}

pub(super) fn times_of(fd: impl AsFd) -> rustix::io::Result<Timestamps> {
    let stat = fstat(fd)?;
    let time = |seconds: i64, nanoseconds: u64| Time {
        seconds,
        nanoseconds: nanoseconds as u32,
    };
    Ok(timestamps(
        time(stat.st_atime, stat.st_atime_nsec),
        time(stat.st_mtime, stat.st_mtime_nsec),
    ))
}

fn write_content(
    file: &File,
    entry: &Entry,
    content: &mut impl Read,
    buffer: &mut [u8],
) -> io::Result<()> {
    let Kind::Sparse(regions, size) = &entry.kind else {
        return copy(content, buffer, |bytes, _| (&*file).write_all(bytes));
    };
    if *size > MAX_SPARSE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a sparse file of {size} bytes is too large"),
        ));
    }
    file.set_len(*size)?;
    for (offset, length) in regions {
        copy(&mut content.take(*length), buffer, |bytes, done| {
            file.write_all_at(bytes, offset.saturating_add(done))
        })?;
    }
    Ok(())
}

fn copy(
    content: &mut impl Read,
    buffer: &mut [u8],
    mut write: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    loop {
        match content.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                write(buffer.get(..count).unwrap_or_default(), done)?;
                done += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
