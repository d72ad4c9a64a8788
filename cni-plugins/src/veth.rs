//! Pairs of virtual interfaces between the host and a container.
//!
//! *Invariants*: the host's end carries the attachment's tag as its alias and takes no router's advertisements before it
//! is up; it has a random name. Nothing without our mark is ever deleted.

use std::hash::{BuildHasher, Hasher};
use std::os::fd::BorrowedFd;

use crate::error::{CniError, Result, all, with_undo};
use crate::link::{Link, Links, VethPair};
use crate::sysctl;

/// Random names that are all taken mean that something else is wrong.
const NAME_TRIES: usize = 16;

/// What both ends get.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    /// Name of the other end.
    pub name: &'a str,
    /// MTU of both in bytes; `None`: the kernel's.
    pub mtu: Option<u32>,
    /// Link address of the other end; `None`: random.
    pub mac: Option<[u8; 6]>,
    /// Alias of the host's end.
    pub alias: &'a str,
}

/// Makes a pair whose other end is born in `netns`; returns the host's end.
pub fn create(host: &mut Links, netns: BorrowedFd<'_>, ends: &Ends<'_>) -> Result<Link> {
    for _ in 0..NAME_TRIES {
        let host_name = random_name();
        let made = host.create_veth(&VethPair {
            host_name: &host_name,
            name: ends.name,
            netns,
            mtu: ends.mtu,
            mac: ends.mac,
        })?;
        if !made {
            continue;
        }
        let link = host.require(&host_name)?;
        let marked = host
            .set_alias(&link, ends.alias)
            .and_then(|()| ignore_routers(&host_name));
        return match marked {
            Ok(()) => Ok(link),
            Err(error) => Err(with_undo(error, host.delete(&link))),
        };
    }
    Err(CniError::operation(
        format!("no free name for the host's end of {}", ends.name),
        "",
    ))
}

/// An interface between host and containers takes no addresses and routes from whoever is there.
pub fn ignore_routers(name: &str) -> Result<()> {
    sysctl::set_if_present(&["ipv6", "conf", name, "accept_ra"], "0")?;
    sysctl::set_if_present(&["ipv6", "conf", name, "accept_redirects"], "0")
}

/// Nor does it speak IPv6 unless it was given an address: by its link-local one it would reach what no rule for the IPv4
/// addresses knows of.
pub fn without_ipv6(name: &str) -> Result<()> {
    sysctl::set_if_present(&["ipv6", "conf", name, "disable_ipv6"], "1")
}

fn random_name() -> String {
    // each RandomState is keyed from the kernel's random numbers
    let random = std::hash::RandomState::new().build_hasher().finish() as u32;
    format!("veth{random:08x}")
}

/// Deletes those of `links` whose alias is `stale`. The kernel takes a while to destroy a namespace, and its interfaces
/// only then: their ends here are deleted by name instead of waited for.
pub fn delete_stale(host: &mut Links, links: &[Link], stale: impl Fn(&str) -> bool) -> Result<()> {
    all(links
        .iter()
        .filter(|link| link.kind == "veth" && stale(&link.alias))
        .map(|link| host.delete(link)))
}
