//! What a pod wants of an interface beyond what its plugins do: link-local addresses and settings of the kernel.
//!
//! *Invariant:* only the interface itself is touched, in the pod's namespace; what is there already is success.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::doing;
use super::{Error, netns};
use crate::sys::netlink::Socket;

/// Gives the interface further addresses of link-local scope, and settings below `/proc/sys` by their dotted names, in
/// which `IFNAME` stands for the interface.
pub fn complete(
    netns: &Path,
    ifname: &str,
    link_local: &[IpAddr],
    sysctls: &BTreeMap<String, String>,
) -> Result<(), Error> {
    if link_local.is_empty() && sysctls.is_empty() {
        return Ok(());
    }
    netns::inside(netns, || {
        let mut socket = Socket::open().map_err(Error::io("open a route socket"))?;
        let links = socket.links().map_err(Error::io("list interfaces"))?;
        let index = links.iter().find(|(_, name)| name == ifname);
        if link_local.iter().any(IpAddr::is_ipv6) {
            // it is turned off where the network has no IPv6
            let path = sysctl("net.ipv6.conf.IFNAME.disable_ipv6", ifname);
            std::fs::write(&path, "0").map_err(Error::io(doing("write", &path)))?;
        }
        for ip in link_local {
            let what = format!("add address {ip} to {ifname}");
            let index = index.ok_or(io::Error::from(io::ErrorKind::NotFound));
            index
                .and_then(|(index, _)| socket.add_link_local(*index, *ip))
                .map_err(Error::io(what))?;
        }
        for (key, value) in sysctls {
            let path = sysctl(key, ifname);
            let file = std::fs::OpenOptions::new().write(true).open(&path);
            file.and_then(|mut file| file.write_all(value.as_bytes()))
                .map_err(Error::io(doing("write", &path)))?;
        }
        Ok(())
    })
}

/// The file of a setting; names of interfaces may have dots.
fn sysctl(key: &str, ifname: &str) -> PathBuf {
    let parts = key
        .split('.')
        .map(|part| if part == "IFNAME" { ifname } else { part });
    Path::new("/proc/sys").join(parts.collect::<PathBuf>())
}

/// A link address that is the same each time for an interface of a pod, and another one for each on other machines:
/// `machine` tells those apart. Locally administered (IEEE 802, second bit).
pub fn link_address(machine: &str, pod: &str, network: &str, ifname: &str) -> String {
    let digest = Sha256::digest([machine, pod, network, ifname].join("\0"));
    let octets = digest.iter().take(5).map(|b| format!(":{b:02x}"));
    format!("02{}", octets.collect::<String>())
}

/// What tells this machine from others: machine-id(5), else its host name.
pub fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let id = read("/etc/machine-id");
    match id.trim() {
        "" | "uninitialized" => read("/proc/sys/kernel/hostname").trim().to_string(),
        id => id.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_an_interface() {
        let path = sysctl("net.ipv4.conf.IFNAME.log_martians", "eth0.7");
        let expected = "/proc/sys/net/ipv4/conf/eth0.7/log_martians";
        assert_eq!(path, Path::new(expected));
    }

    #[test]
    fn link_addresses_are_stable_and_apart() {
        let one = link_address("m", "p", "n", "eth0");
        assert_eq!(one, "02:81:e8:f1:82:4e");
        for other in [
            link_address("x", "p", "n", "eth0"),
            link_address("m", "p", "n", "eth1"),
        ] {
            assert_ne!(one, other);
        }
    }
}
