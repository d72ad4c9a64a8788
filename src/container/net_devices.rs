//! Moving network devices of the host into the container (config-linux.md "Network Devices").
//!
//! *Invariants:* a device keeps its permanent addresses of global scope and is up afterwards; it comes under exactly the name that was
//! asked for or the move fails. Nothing moves back: that is the owner's of the namespace.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, setns};

use super::Error;
use super::plan::NetDevice;
use crate::sys::netlink::{Address, Socket};

/// Moves the devices into the network namespace of process `pid`.
pub fn move_all(devices: &[NetDevice], pid: i32) -> Result<(), Error> {
    let open = |path: &str| {
        File::open(path).map_err(|error| Error::step(format!("open namespace {path}"), error))
    };
    let own = open("/proc/self/ns/net")?;
    let theirs = open(&format!("/proc/{pid}/ns/net"))?;
    let socket = |error| Error::step("open a netlink socket", error);
    let mut here = Socket::open().map_err(socket)?;
    enter(&theirs)?;
    let there = Socket::open();
    // nothing of ours may happen in there
    enter(&own)?;
    let mut there = there.map_err(socket)?;
    devices.iter().try_for_each(|device| {
        move_one(device, &mut here, &mut there, &theirs).map_err(|error| {
            Error::step(
                format!(
                    "linux.netDevices.{}: move it to the container as {}",
                    device.host, device.name
                ),
                explain(error),
            )
        })
    })
}

fn enter(namespace: &File) -> Result<(), Error> {
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(|error| Error::step("change to a network namespace", error))
}

/// A socket stays in the namespace that it was opened in.
fn move_one(
    device: &NetDevice,
    here: &mut Socket,
    there: &mut Socket,
    namespace: &impl AsFd,
) -> io::Result<()> {
    let found = here
        .links()?
        .into_iter()
        .find(|(_, name)| *name == device.host);
    let (index, _) = found.ok_or(io::ErrorKind::NotFound)?;
    let addresses: Vec<Address> = here.addresses(index)?;
    let before = there.links()?;
    here.move_link(index, &device.name, namespace)?;
    // its index may be another's there, and its name be made from a pattern
    let mut after = there.links()?.into_iter();
    let (index, _) = after
        .find(|link| !before.contains(link))
        .ok_or_else(|| io::Error::other("it did not arrive"))?;
    for address in &addresses {
        there.add_address(index, address)?;
    }
    there.set_up(index)
}

fn explain(error: io::Error) -> io::Error {
    let why = match error.raw_os_error() {
        Some(libc::EEXIST) => "the name is taken in there",
        Some(libc::EINVAL) => "the device is tied to its namespace, or the name is none",
        _ if error.kind() == io::ErrorKind::NotFound => "there is no such device",
        _ => return error,
    };
    io::Error::new(error.kind(), why)
}
