//! A VXLAN tunnel to static peers.
//!
//! *Invariants*: as a bridge's port a tunnel carries its network's mark from birth; one that isn't marked so is never
//! changed or removed. Its peers are those of the configuration, no more and no less.

use std::net::IpAddr;

use crate::error::{CniError, Result, with_undo};
use crate::link::{Kind, Link, Links, NewLink, Vxlan};
use crate::{mark, veth};

/// What a tunnel adds to each packet in bytes: Ethernet, VXLAN, UDP and IP (RFC 7348 §5).
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;
/// Of an Ethernet, where nothing says which interface the tunnel uses.
const ETHERNET_MTU: u32 = 1500;

/// A tunnel as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// `id`.
    pub id: u32,
    /// `port`.
    pub port: u16,
    /// `local`.
    pub local: Option<IpAddr>,
    /// `dev`: name of the interface that it sends from.
    pub dev: Option<String>,
    /// `learning`.
    pub learning: bool,
    /// `peers`.
    pub peers: Vec<IpAddr>,
}

impl Tunnel {
    /// The interface's name on the host.
    pub fn name(&self) -> String {
        format!("vxlan{}", self.id)
    }

    /// What the kernel is asked for; `host` is where `dev` is.
    pub fn kind(&self, host: &mut Links) -> Result<Kind> {
        let lower = match &self.dev {
            Some(dev) => Some(host.require(dev)?.index),
            None => None,
        };
        Ok(Kind::Vxlan(Vxlan {
            id: self.id,
            port: self.port,
            local: self.local,
            lower,
            learning: self.learning,
        }))
    }

    /// What is left of the MTU of the interface that it sends from, in bytes.
    pub fn mtu(&self, host: &mut Links) -> Result<u32> {
        let lower = match (&self.dev, self.peers.first()) {
            (Some(dev), _) => Some(host.require(dev)?),
            (None, Some(peer)) => host.link_to(*peer)?,
            (None, None) => None,
        };
        let mut addresses = self.peers.iter().chain(&self.local);
        let overhead = if addresses.any(IpAddr::is_ipv6) {
            OVERHEAD_V6
        } else {
            OVERHEAD_V4
        };
        Ok(lower
            .map_or(ETHERNET_MTU, |link| link.mtu)
            .saturating_sub(overhead))
    }

    /// The tunnel as a port of `bridge`, with its peers, made where missing.
    pub fn ensure(&self, host: &mut Links, network: &str, bridge: &Link) -> Result<()> {
        let name = self.name();
        let kind = self.kind(host)?;
        let Some(link) = host.by_name(&name)? else {
            return self.create(host, network, bridge, kind);
        };
        self.compare(&link, network, &kind)?;
        self.connect(host, &link, bridge)
    }

    fn create(&self, host: &mut Links, network: &str, bridge: &Link, kind: Kind) -> Result<()> {
        let name = self.name();
        host.create(&NewLink {
            name: &name,
            kind,
            lower: None,
            lower_netns: None,
            mtu: Some(bridge.mtu),
            mac: Some(mark::birth_mac(network, &name)),
        })?;
        let link = host.require(&name)?;
        let connected = host
            .set_alias(&link, &mark::alias(network))
            .and_then(|()| veth::ignore_routers(&name))
            .and_then(|()| self.connect(host, &link, bridge));
        connected.map_err(|error| with_undo(error, host.delete(&link)))
    }

    fn connect(&self, host: &mut Links, link: &Link, bridge: &Link) -> Result<()> {
        if link.controller != Some(bridge.index) {
            host.attach(link, bridge)?;
        }
        self.set_peers(host, link)?;
        host.up(link)
    }

    /// Makes the peers of `link` ours.
    pub fn set_peers(&self, links: &mut Links, link: &Link) -> Result<()> {
        let known = links.peers(link)?;
        for peer in self.peers.iter().filter(|peer| !known.contains(peer)) {
            links.add_peer(link, *peer)?;
        }
        for peer in known.iter().filter(|peer| !self.peers.contains(peer)) {
            links.delete_peer(link, *peer)?;
        }
        Ok(())
    }

    fn compare(&self, link: &Link, network: &str, kind: &Kind) -> Result<()> {
        let name = &link.name;
        if !mark::is_ours(link, network) {
            return Err(CniError::operation(
                format!("interface {name} exists and is not of the network {network}"),
                "each VXLAN id needs a network of its own",
            ));
        }
        match &link.details {
            Some(found) if found == kind => Ok(()),
            Some(found) => Err(CniError::operation(
                format!("interface {name} is a {found}, not a {kind}"),
                "it was made from another configuration and goes with the last pod",
            )),
            None => Err(CniError::operation(
                format!("interface {name} is no vxlan"),
                "",
            )),
        }
    }

    /// CHECK of the port of `bridge`.
    pub fn check(&self, host: &mut Links, network: &str, bridge: &Link) -> Result<()> {
        let name = self.name();
        let wrong = |what: &str| CniError::check(format!("interface {name} {what}"));
        let link = host
            .by_name(&name)?
            .ok_or_else(|| wrong("is missing on the host"))?;
        let kind = self.kind(host)?;
        self.compare(&link, network, &kind)
            .map_err(|error| CniError::check(error.msg))?;
        if !link.up {
            return Err(wrong("is down"));
        }
        if link.controller != Some(bridge.index) {
            return Err(wrong(&format!("is no port of the bridge {}", bridge.name)));
        }
        self.check_peers(host, &link)
    }

    /// Compares the peers.
    pub fn check_peers(&self, links: &mut Links, link: &Link) -> Result<()> {
        let known = links.peers(link)?;
        match self.peers.iter().find(|peer| !known.contains(peer)) {
            Some(peer) => Err(CniError::check(format!(
                "interface {} has lost its peer {peer}",
                link.name
            ))),
            None => Ok(()),
        }
    }
}
