//! Runs this program from a copy that no container can write: the answer to CVE-2019-5736, where a container overwrote its runtime
//! through `/proc/PID/exe`. The copy is a view of the program through a read-only overlay, which `sampan-seal` makes (already at the
//! entry point, when the words ask for it), or a memfd.
//!
//! *Invariants:* after [`ensure`] the running program is either on a read-only overlay without an upper layer (nothing can make that
//! writable, remounting included) or in a sealed memfd. `/proc/self/exe` still starts the program; its link text is no path.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{MemfdFlags, SealFlags};

/// Set for the second run of the program only.
const NAME: &str = "_SAMPAN_SEALED";
/// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
const OVERLAY_MAGIC: u64 = 0x794c_7630;

/// Makes sure that the calling process runs from a protected copy: executes it with the same arguments and environment if it does not.
/// To be called first thing in `main`, while there is one thread, by commands that create or enter containers.
pub fn ensure() -> io::Result<()> {
    if std::env::var_os(NAME).is_some() {
        // SAFETY: the caller promises that there is one thread.
        unsafe { std::env::remove_var(NAME) };
        if is_sealed()? {
            return Ok(());
        }
    } else if has_seals(&File::open("/proc/self/exe")?) {
        return Ok(());
    }
    let arguments = strings(std::env::args_os())?;
    let mut environment = Vec::new();
    for (key, value) in std::env::vars_os() {
        let mut entry = key;
        entry.push("=");
        entry.push(value);
        environment.push(entry);
    }
    let mut environment = strings(environment.into_iter())?;
    environment.push(sampan_seal::MARK.to_owned());
    {
        let (arguments, environment) = (pointers(&arguments), pointers(&environment));
        // SAFETY: both lists end with a null pointer and hold C strings that outlive the call.
        unsafe { sampan_seal::execute_overlay(arguments.as_ptr(), environment.as_ptr()) };
    }
    // no privilege, no overlay, or stacked too deep
    let copy = memfd_copy()?;
    Err(super::process::execute_file(
        &copy,
        &arguments,
        &environment,
    ))
}

fn pointers(list: &[CString]) -> Vec<*const libc::c_char> {
    let ends = [std::ptr::null()];
    list.iter().map(|text| text.as_ptr()).chain(ends).collect()
}

/// Whether the program's own file cannot be written.
fn is_sealed() -> io::Result<bool> {
    let exe = File::open("/proc/self/exe")?;
    if has_seals(&exe) {
        return Ok(true);
    }
    // read-only: the program may lie on a writable overlay to begin with
    let below = rustix::fs::fstatfs(&exe)?;
    Ok(below.f_type as u64 == OVERLAY_MAGIC && below.f_flags as u64 & libc::ST_RDONLY != 0)
}

fn has_seals(file: &File) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::WRITE))
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
