//! Runs this program from a copy that no container can write: the answer to CVE-2019-5736, where a container overwrote its runtime
//! through `/proc/PID/exe`. The copy is a view of the program through a read-only mount of its file, which `sampan-seal` makes (already
//! at the entry point, when the words ask for it), or a memfd.
//!
//! That mount is in no mount namespace: it was never attached, and the kernel dissolved it when execve(2) closed its descriptor. So
//! nobody can remount it, change its attributes, clone it or mount over it, with whatever capabilities: mount(2), mount_setattr(2) and
//! open_tree(2) want a mount of the caller's namespace, or one that is still held by a descriptor of open_tree(2).
//!
//! *Invariants:* after [`ensure`] the running program is either on such a mount or in a sealed memfd. `/proc/self/exe` still starts the
//! program; its link text is no path.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags};

/// Set for the second run of the program only.
const NAME: &str = "_SAMPAN_SEALED";
/// The program.
const EXE: &str = "/proc/self/exe";

/// Makes sure that the calling process runs from a protected copy: executes it with the same arguments and environment if it does not.
/// To be called first thing in `main`, while there is one thread, by commands that create or enter containers.
pub fn ensure() -> io::Result<()> {
    if std::env::var_os(NAME).is_some() {
        // SAFETY: the caller promises that there is one thread.
        unsafe { std::env::remove_var(NAME) };
        if is_sealed()? {
            return Ok(());
        }
    } else if has_seals(&File::open(EXE)?) {
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
        unsafe { sampan_seal::execute_read_only(arguments.as_ptr(), environment.as_ptr()) };
    }
    // no privilege, or a mount of another namespace
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
    let exe = Path::new(EXE);
    let read_only = rustix::fs::statfs(exe)?.f_flags as u64 & libc::ST_RDONLY != 0;
    // the mount's root: an ordinary read-only mount could be made writable
    if read_only && std::fs::read_link(exe)? == Path::new("/") {
        return Ok(true);
    }
    Ok(has_seals(&File::open(exe)?))
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
    io::copy(&mut File::open(EXE)?, &mut copy)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

fn strings(list: impl Iterator<Item = OsString>) -> io::Result<Vec<CString>> {
    list.map(|text| Ok(CString::new(text.into_vec())?))
        .collect()
}
