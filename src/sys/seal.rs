//! Runs this program from a copy that no container can write: the answer to CVE-2019-5736, where a container overwrote its runtime
//! through `/proc/PID/exe`.
//!
//! *Invariants:* after [`ensure`] the running program is either on a read-only overlay without an upper layer (nothing can make that
//! writable, remounting included) or in a sealed memfd. `/proc/self/exe` still starts the program; its link text is no path.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// Set for the second run of the program only.
const MARK: &str = "_SAMPAN_SEALED";
/// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
const OVERLAY_MAGIC: u64 = 0x794c_7630;

/// Makes sure that the calling process runs from a protected copy: executes it with the same arguments and environment if it does not.
/// To be called first thing in `main`, while there is one thread, by commands that create or enter containers.
pub fn ensure() -> io::Result<()> {
    if std::env::var_os(MARK).is_some() {
        // SAFETY: the caller promises that there is one thread.
        unsafe { std::env::remove_var(MARK) };
        if is_sealed()? {
            return Ok(());
        }
    } else if has_seals(&File::open("/proc/self/exe")?) {
        return Ok(());
    }
    let copy = match overlay_copy() {
        Ok(copy) => copy,
        // no privilege, no overlay, or stacked too deep
        Err(_) => memfd_copy()?,
    };
    let arguments = strings(std::env::args_os())?;
    let mut environment = Vec::new();
    for (key, value) in std::env::vars_os() {
        let mut entry = key;
        entry.push("=");
        entry.push(value);
        environment.push(entry);
    }
    environment.push(format!("{MARK}=1").into());
    let environment = strings(environment.into_iter())?;
    Err(super::process::execute_file(
        &copy,
        &arguments,
        &environment,
    ))
}

/// Whether the program's own file cannot be written.
fn is_sealed() -> io::Result<bool> {
    let exe = File::open("/proc/self/exe")?;
    Ok(has_seals(&exe) || rustix::fs::fstatfs(&exe)?.f_type as u64 == OVERLAY_MAGIC)
}

fn has_seals(file: &File) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::WRITE))
}

/// The program as seen through a detached overlay of two read-only layers: no byte is copied. Two, because one alone needs an upper;
/// the second is a folder that is always there (procfs cannot be a layer).
fn overlay_copy() -> io::Result<OwnedFd> {
    let exe = fs::read_link("/proc/self/exe")?;
    let (Some(dir), Some(name)) = (exe.parent(), exe.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    // a path with ':' or '\' has a meaning to overlay: named by descriptor instead
    let dir = open_path(dir)?;
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let layers = format!("/proc/self/fd/{}:/sys", dir.as_raw_fd());
    rustix::mount::fsconfig_set_string(&context, "lowerdir", layers)?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    let tree = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let copy = rustix::fs::openat(
        &tree,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // the path may lead to another file by now
    let (seen, running) = (
        rustix::fs::fstat(&copy)?,
        rustix::fs::stat("/proc/self/exe")?,
    );
    if (seen.st_ino, seen.st_size, seen.st_mtime)
        != (running.st_ino, running.st_size, running.st_mtime)
    {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(copy)
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// The program in memory, sealed.
fn memfd_copy() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // MFD_EXEC since Linux 6.3, which sysctl vm.memfd_noexec=1 asks for; EINVAL before
    let memfd = rustix::fs::memfd_create("sampan", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("sampan", flags))?;
    let mut copy = File::from(memfd);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

fn strings(list: impl Iterator<Item = OsString>) -> io::Result<Vec<CString>> {
    list.map(|text| Ok(CString::new(text.into_vec())?))
        .collect()
}
