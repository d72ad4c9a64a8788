//! The mount calls of Linux 5.12: detached mounts that are complete before they become visible.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// What mount_setattr(2) changes: `MOUNT_ATTR_*` bits and an `MS_*` propagation type (0: as it is).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE` or 0.
    pub propagation: u64,
}

/// Changes the mount whose root `fd` is, with all below when `recursive`.
pub fn set_attributes(fd: &impl AsFd, recursive: bool, attributes: Attributes) -> io::Result<()> {
    if attributes == Attributes::default() {
        return Ok(());
    }
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    set(fd, recursive, &attr)
}

/// Gives a detached mount the id map of a user namespace: an id of the file system shows as the id that the map's line for it has
/// outside. Needs CAP_SYS_ADMIN over the file system. EINVAL: the file system cannot do it (mount_setattr(2) "ID-mapped mounts").
pub fn set_id_map(fd: &impl AsFd, recursive: bool, namespace: &impl AsFd) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_fd().as_raw_fd() as u64,
    };
    set(fd, recursive, &attr)
}

/// mount_setattr(2).
fn set(fd: &impl AsFd, recursive: bool, attr: &libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty path names `fd` itself; `attr` lives through the call and has the size given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    super::done(done)
}

/// A detached copy of the mount at `path` (a bind mount in the making), with the mounts below when `recursive`.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, clone_flags(recursive))?)
}

/// As [`clone_tree`], of an open file or folder.
pub fn clone_tree_at(fd: &impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let flags = clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(fd, "", flags)?)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags | OpenTreeFlags::AT_RECURSIVE
    } else {
        flags
    }
}

/// A new detached mount of a file system. `options` are `key` or `key=value`; `attributes` are `MOUNT_ATTR_*` bits.
/// The error carries what the file system itself said about it.
pub fn new_filesystem(
    fstype: &str,
    source: Option<&str>,
    options: &[String],
    attributes: u64,
) -> io::Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configure = || {
        if let Some(source) = source {
            fsconfig_set_string(&context, "source", source)?;
        }
        for option in options {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, option.as_str())?,
            }
        }
        fsconfig_create(&context)
    };
    configure().map_err(|error| explained(&context, error))?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|error| explained(&context, error))
}

/// `error` with the messages that the kernel left on the file system context.
pub fn explained(context: &OwnedFd, error: rustix::io::Errno) -> io::Error {
    let mut text = String::new();
    let mut buffer = [0; 512];
    // ENODATA when there is no further message
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..length]);
        // "e overlay: …": a severity letter first
        text.push_str(line.get(2..).unwrap_or("").trim_end());
        text.push_str("; ");
        if text.len() > 2048 {
            break;
        }
    }
    let error = io::Error::from(error);
    match text.strip_suffix("; ") {
        Some(text) => io::Error::new(error.kind(), format!("{text}: {error}")),
        None => error,
    }
}

/// Attaches a detached mount over the open file or folder `target`.
pub fn attach(tree: &impl AsFd, target: &impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

/// Attaches a detached mount over what has the name `name` in the open folder `folder`; no link is followed.
pub fn attach_in(tree: &impl AsFd, folder: &impl AsFd, name: &str) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(tree, "", folder, name, flags)?)
}
