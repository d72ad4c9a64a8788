//! Device nodes, `/dev` links and the terminal's place.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, makedev};
use rustix::io::Errno;
use serde::Serialize;

use super::{Context, Error, open, refuse, resolve};
use crate::sys::mount;
use resolve::Kind;

/// A device node of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Path inside.
    pub path: PathBuf,
    /// Kind of node.
    pub kind: NodeKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeKind {
    /// Block device.
    Block,
    /// Character device.
    Character,
    /// Named pipe.
    Fifo,
}

/// runtime-spec config-linux.md "Default Devices".
pub fn defaults() -> Vec<Device> {
    [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ]
    .into_iter()
    .map(|(name, major, minor)| Device {
        path: Path::new("/dev").join(name),
        kind: NodeKind::Character,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    })
    .collect()
}

/// The host's `/dev/null`, checked: a mask made of something else would let the container write through it.
pub fn null() -> Result<OwnedFd, Error> {
    let null = open(Path::new("/dev/null"), OFlags::PATH | OFlags::NOFOLLOW)?;
    let stat = rustix::fs::fstat(&null).context(|| "look at /dev/null".to_owned())?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !is_device || stat.st_rdev != makedev(1, 3) {
        return refuse("open /dev/null".to_owned(), "it is not the null device");
    }
    Ok(null)
}

/// Binds a device of the host, opened as `source`, to the same path: the one that was asked for and no other.
pub fn bind(root: &OwnedFd, device: &Device, source: &OwnedFd) -> Result<(), Error> {
    let what = || format!("bind device {}", device.path.display());
    let stat = rustix::fs::fstat(source).context(what)?;
    if !device.is(&stat) {
        return refuse(what(), "the host has something else there");
    }
    let target = resolve::make_straight(root, &device.path, Kind::File)?;
    mount::attach(source, &target).context(what)
}

/// Makes a node in its folder, or takes the one that is there as it is when it is the same. `false`: we may not make nodes.
pub fn make_node(folder: &OwnedFd, device: &Device) -> Result<bool, Error> {
    let what = || format!("make device {}", device.path.display());
    let Some(name) = device.path.file_name() else {
        return refuse(what(), "it needs a name");
    };
    let (kind, number) = device.node();
    let mode = Mode::from_raw_mode(device.mode);
    let made = match rustix::fs::mknodat(folder, name, kind, mode, number) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(Errno::PERM) => return Ok(false),
        Err(error) => return Err(error).context(what),
    };
    if made && (device.uid, device.gid) == (0, 0) {
        return Ok(true);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(folder, name, flags, Mode::empty()).context(what)?;
    let stat = rustix::fs::fstat(&node).context(what)?;
    if !device.is(&stat) {
        return refuse(what(), "something else is in its place");
    }
    if made {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        rustix::fs::chownat(&node, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).context(what)?;
    }
    Ok(true)
}

impl Device {
    /// As mknod(2) wants it.
    fn node(&self) -> (FileType, u64) {
        let number = makedev(self.major, self.minor);
        match self.kind {
            NodeKind::Block => (FileType::BlockDevice, number),
            NodeKind::Character => (FileType::CharacterDevice, number),
            NodeKind::Fifo => (FileType::Fifo, 0),
        }
    }

    fn is(&self, stat: &Stat) -> bool {
        let (kind, number) = self.node();
        let same_kind = FileType::from_raw_mode(stat.st_mode) == kind;
        same_kind && (kind == FileType::Fifo || stat.st_rdev == number)
    }
}

const KCORE: &str = "/proc/kcore";

/// Links that programs expect in `/dev` (runtime-linux.md "Dev symbolic links"), `core` where the kernel has what it leads to, as other
/// runtimes make it, and `ptmx`, which has to lead to the container's own devpts. What is there already stays.
pub fn links(root: &OwnedFd) -> Result<(), Error> {
    let dev = resolve::make(root, Path::new("/dev"), Kind::Folder)?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("core", KCORE),
        ("ptmx", "pts/ptmx"),
    ] {
        if target == KCORE && !Path::new(KCORE).exists() {
            continue;
        }
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context(|| format!("make link /dev/{name}")),
        }
    }
    Ok(())
}

/// A terminal of the container's own devpts: (master, slave).
pub fn open_terminal(root: &OwnedFd) -> Result<(OwnedFd, OwnedFd), Error> {
    let what = || "open a terminal in the container's /dev/pts".to_owned();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = resolve::open(
        root,
        Path::new("dev/pts/ptmx"),
        flags,
        ResolveFlags::IN_ROOT,
    )
    .context(what)?;
    // DEVPTS_SUPER_MAGIC: a file that only looks like one would take the terminal's bytes
    if rustix::fs::fstatfs(&master).context(what)?.f_type as u64 != 0x1cd1 {
        return refuse(what(), "it is not a devpts file system");
    }
    rustix::pty::unlockpt(&master).context(what)?;
    let flags = rustix::pty::OpenptFlags::RDWR
        | rustix::pty::OpenptFlags::NOCTTY
        | rustix::pty::OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).context(what)?;
    Ok((master, slave))
}

/// Puts the terminal at `/dev/console`.
pub fn bind_console(root: &OwnedFd, slave: &OwnedFd) -> Result<(), Error> {
    let what = || "bind the terminal to /dev/console".to_owned();
    let target = resolve::make_straight(root, Path::new("/dev/console"), Kind::File)?;
    let tree = mount::clone_tree_at(slave, false).context(what)?;
    mount::attach(&tree, &target).context(what)
}
