//! Making a tap interface that stays: /dev/net/tun, the only way there is (rtnetlink makes none).
//!
//! *Invariants*: the interface is whole when it stays; an error before that leaves nothing. The only `unsafe` of the plugins
//! is here.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

use crate::error::{CniError, Result};
use crate::link::no_driver;

const DEVICE: &str = "/dev/net/tun";

/// `struct ifreq` as TUNSETIFF takes it: name, flags, and the rest of the union.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

nix::ioctl_readwrite_bad!(set_interface, libc::TUNSETIFF, Request);
nix::ioctl_write_int_bad!(set_persistent, libc::TUNSETPERSIST);
nix::ioctl_write_int_bad!(set_owner, libc::TUNSETOWNER);
nix::ioctl_write_int_bad!(set_group, libc::TUNSETGROUP);

/// Who may open the interface, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Access {
    /// User id; absent: those with CAP_NET_ADMIN.
    pub owner: Option<u32>,
    /// Group id.
    pub group: Option<u32>,
    /// Several may, each with a queue of its own.
    pub multi_queue: bool,
}

fn open() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|cause| match cause.raw_os_error() {
            // a file that is there loads the module when it is opened
            Some(libc::ENOENT | libc::ENODEV) => {
                no_driver("tun").because(format!("{DEVICE}: {cause}"))
            }
            _ => CniError::io("open", Path::new(DEVICE), &cause),
        })
}

/// STATUS: whether there is the device.
pub fn require() -> Result<()> {
    open().map(|_| ())
}

/// Makes the tap interface `name` in the calling thread's namespace.
pub fn create(name: &str, access: Access) -> Result<()> {
    let file = open()?;
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        rest: [0; 22],
    };
    if access.multi_queue {
        request.flags |= libc::IFF_MULTI_QUEUE as libc::c_short;
    }
    // the last byte stays NUL
    if name.len() >= libc::IFNAMSIZ {
        return Err(CniError::config(format!("invalid interface name {name:?}")));
    }
    for (to, from) in request.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let fd = file.as_raw_fd();
    let step = |what: &str, result: std::result::Result<libc::c_int, Errno>| {
        result
            .map(|_| ())
            .map_err(|cause| CniError::operation(format!("cannot {what} of the tap {name}"), cause))
    };
    // SAFETY: `request` is the whole structure that TUNSETIFF reads and writes, and outlives the call
    step("set the name", unsafe { set_interface(fd, &mut request) })?;
    if let Some(id) = access.owner {
        // SAFETY: takes a number, no pointer
        step("set the owner", unsafe { set_owner(fd, id as libc::c_int) })?;
    }
    if let Some(id) = access.group {
        // SAFETY: takes a number, no pointer
        step("set the group", unsafe { set_group(fd, id as libc::c_int) })?;
    }
    // SAFETY: takes a number, no pointer
    step("keep the interface", unsafe { set_persistent(fd, 1) })
}
