//! What a careless caller leaves to the programs it starts, for the self test: ignored signals and a keyring with a key.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;

/// `KEYCTL_JOIN_SESSION_KEYRING` and `KEYCTL_SEARCH` of `linux/keyctl.h`.
const JOIN_SESSION_KEYRING: libc::c_long = 1;
const SEARCH: libc::c_long = 10;
/// `KEY_SPEC_SESSION_KEYRING` of the same.
const SESSION_KEYRING: libc::c_long = -3;

/// Ignores a signal; programs executed later inherit that (signal(7)).
pub fn ignore_signal(signal: i32) -> io::Result<()> {
    // SAFETY: SIG_IGN runs no code of ours.
    match unsafe { libc::signal(signal, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A new session keyring that holds the key `name` of type `user` (add_key(2)). ENOSYS where the kernel has no keys.
pub fn new_session_with_key(name: &CStr) -> io::Result<()> {
    // SAFETY: a null name asks for an anonymous keyring; the strings end with a zero byte and outlive the calls.
    let done = unsafe {
        match libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0usize) {
            -1 => -1,
            _ => libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                name.as_ptr(),
                c"secret".as_ptr(),
                6usize,
                SESSION_KEYRING,
            ),
        }
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the key `name` can be found from the session keyring (keyctl(2) KEYCTL_SEARCH).
pub fn finds_key(name: &CStr) -> bool {
    // SAFETY: the strings end with a zero byte and outlive the call; destination 0 links the key nowhere.
    let key = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            SEARCH,
            SESSION_KEYRING,
            c"user".as_ptr(),
            name.as_ptr(),
            0usize,
        )
    };
    key >= 0
}
