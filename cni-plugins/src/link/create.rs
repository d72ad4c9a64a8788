//! New links: every kind through one request, under their final name in the namespace where they are to be.
//!
//! *Invariants*: a link is there whole or not at all, and never under another name: what is killed in between has left
//! nothing that has to be looked for. A kind that the kernel doesn't know is an error that says so.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::{fmt, io};

use nix::libc;
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, IpVlanMode, LinkAttribute, LinkInfo, LinkMessage, MacVlanMode,
};
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::message::{info_data, peer_message, peer_of};
use super::{Link, Links};
use crate::error::{CniError, Result};

/// What a kind of link has of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A bridge.
    Bridge {
        /// It tells VLANs apart.
        vlan_filtering: bool,
        /// The VLAN of new ports; not for a bridge to be made.
        default_vlan: Option<u16>,
    },
    /// An interface that drops everything.
    Dummy,
    /// A queue for what other interfaces hand over.
    Ifb,
    /// A copy of another interface with the same link address.
    IpVlan(IpVlanMode),
    /// An interface on another one with a link address of its own.
    MacVlan {
        /// Who of those on the same interface hears whom.
        mode: MacVlanMode,
        /// Broadcasts that may wait; absent: the kernel's default. Not read back.
        queue: Option<u32>,
    },
    /// The frames of another interface with this VLAN id.
    Vlan(u16),
    /// A routing domain with this table.
    Vrf(u32),
    /// Ethernet in UDP.
    Vxlan(Vxlan),
}

/// A VXLAN tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub id: u32,
    /// UDP port here and there.
    pub port: u16,
    /// Source address; absent: the route's.
    pub local: Option<IpAddr>,
    /// Index of the interface that it sends from; absent: the route's.
    pub lower: Option<u32>,
    /// Remember behind which peer a link address was seen.
    pub learning: bool,
}

impl Kind {
    /// The kernel's word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bridge { .. } => "bridge",
            Self::Dummy => "dummy",
            Self::Ifb => "ifb",
            Self::IpVlan(_) => "ipvlan",
            Self::MacVlan { .. } => "macvlan",
            Self::Vlan(_) => "vlan",
            Self::Vrf(_) => "vrf",
            Self::Vxlan(_) => "vxlan",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Self::Bridge { .. } | Self::Dummy | Self::Ifb => out.write_str(name),
            Self::IpVlan(mode) => write!(out, "{name} in mode {mode}"),
            Self::MacVlan { mode, .. } => write!(out, "{name} in mode {}", macvlan_mode(*mode)),
            Self::Vlan(id) => write!(out, "{name} with id {id}"),
            Self::Vrf(table) => write!(out, "{name} with table {table}"),
            Self::Vxlan(vxlan) => {
                write!(out, "{name} with id {}, port {}", vxlan.id, vxlan.port)?;
                if let Some(local) = vxlan.local {
                    write!(out, ", local address {local}")?;
                }
                if let Some(lower) = vxlan.lower {
                    write!(out, ", over interface number {lower}")?;
                }
                write!(
                    out,
                    ", learning {}",
                    if vxlan.learning { "on" } else { "off" }
                )
            }
        }
    }
}

/// The modes of a macvlan by the reference plugin's names.
pub const MACVLAN_MODES: [(&str, MacVlanMode); 4] = [
    ("bridge", MacVlanMode::Bridge),
    ("private", MacVlanMode::Private),
    ("vepa", MacVlanMode::Vepa),
    ("passthru", MacVlanMode::Passthrough),
];

fn macvlan_mode(mode: MacVlanMode) -> &'static str {
    let known = MACVLAN_MODES.iter().find(|(_, known)| *known == mode);
    known.map_or("unknown", |(name, _)| name)
}

/// A link to make.
#[derive(Debug)]
pub struct NewLink<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub kind: Kind,
    /// Index of the interface that it stands on.
    pub lower: Option<u32>,
    /// The namespace in which `lower` and a tunnel's peers are, by its id here; absent: this one.
    pub lower_netns: Option<i32>,
    /// MTU in bytes; `None`: the kernel's.
    pub mtu: Option<u32>,
    /// Link address; `None`: the kernel's.
    pub mac: Option<[u8; 6]>,
}

/// A pair of virtual interfaces; the second end is born in another namespace.
#[derive(Debug)]
pub struct VethPair<'a> {
    /// Name of the end here.
    pub host_name: &'a str,
    /// Name of the end there.
    pub name: &'a str,
    /// There.
    pub netns: BorrowedFd<'a>,
    /// MTU of both in bytes; `None`: the kernel's default.
    pub mtu: Option<u32>,
    /// Link address of the end there; `None`: random.
    pub mac: Option<[u8; 6]>,
}

/// Names of kinds and of what the kernel must be built with for them.
const DRIVERS: [(&str, &str); 9] = [
    ("bridge", "BRIDGE"),
    ("dummy", "DUMMY"),
    ("ipvlan", "IPVLAN"),
    ("macvlan", "MACVLAN"),
    ("tun", "TUN"),
    ("veth", "VETH"),
    ("vlan", "VLAN_8021Q"),
    ("vrf", "NET_VRF"),
    ("vxlan", "VXLAN"),
];

/// The error for a kind that the kernel doesn't know.
pub fn no_driver(kind: &str) -> CniError {
    let option = DRIVERS.iter().find(|(name, _)| *name == kind);
    let option = option.map_or_else(String::new, |(_, option)| format!(" (CONFIG_{option})"));
    CniError::operation(format!("kernel has no {kind}{option}"), "")
}

fn with_kind(mut message: LinkMessage, kind: &str, data: Option<InfoData>) -> LinkMessage {
    let mut infos = vec![LinkInfo::Kind(InfoKind::Other(kind.to_owned()))];
    infos.extend(data.map(LinkInfo::Data));
    message.attributes.push(LinkAttribute::LinkInfo(infos));
    message
}

impl Links {
    /// Makes a link; the kernel's own answer (EEXIST) decides a race.
    pub fn create(&mut self, new: &NewLink<'_>) -> Result<()> {
        let mut builder = LinkMessageBuilder::<LinkUnspec>::new().name(new.name);
        if let Some(lower) = new.lower {
            builder = builder.link(lower);
        }
        if let Some(id) = new.lower_netns {
            builder = builder.append_extra_attribute(LinkAttribute::LinkNetNsId(id));
        }
        if let Some(mtu) = new.mtu {
            builder = builder.mtu(mtu);
        }
        if let Some(mac) = new.mac {
            builder = builder.address(mac.to_vec());
        }
        let kind = new.kind.name();
        let message = with_kind(builder.build(), kind, info_data(&new.kind));
        self.request_new(message)
            .map_err(|cause| self.not_made(&format!("{kind} {}", new.name), kind, cause))
    }

    fn request_new(&mut self, message: LinkMessage) -> io::Result<()> {
        self.call(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map(|_| ())
    }

    fn not_made(&mut self, what: &str, kind: &str, cause: io::Error) -> CniError {
        if cause.raw_os_error() == Some(libc::EOPNOTSUPP) && !self.has_driver(kind) {
            return no_driver(kind);
        }
        CniError::operation(format!("cannot create the {what}"), cause)
    }

    /// Makes a pair; `Ok(false)`: one of the names is taken.
    pub fn create_veth(&mut self, pair: &VethPair<'_>) -> Result<bool> {
        let mut host = LinkMessageBuilder::<LinkUnspec>::new().name(pair.host_name);
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.name)
            .setns_by_fd(pair.netns.as_raw_fd());
        if let Some(mtu) = pair.mtu {
            host = host.mtu(mtu);
            peer = peer.mtu(mtu);
        }
        if let Some(mac) = pair.mac {
            peer = peer.address(mac.to_vec());
        }
        let data = InfoData::Veth(InfoVeth::Peer(peer.build()));
        match self.request_new(with_kind(host.build(), "veth", Some(data))) {
            Ok(()) => Ok(true),
            Err(cause) if cause.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(cause) => {
                let what = format!("veth pair {} and {}", pair.host_name, pair.name);
                Err(self.not_made(&what, "veth", cause))
            }
        }
    }

    /// Whether the kernel can make links of this kind; loads the module where there is one. No link has no queues: the
    /// kernel looks for the driver first and refuses then.
    fn has_driver(&mut self, kind: &str) -> bool {
        let mut message = with_kind(LinkMessage::default(), kind, None);
        message.attributes.push(LinkAttribute::NumTxQueues(0));
        match self.request_new(message) {
            Ok(()) => true,
            Err(cause) => cause.raw_os_error() != Some(libc::EOPNOTSUPP),
        }
    }

    /// An error where the kernel can't make links of this kind.
    pub fn require_driver(&mut self, kind: &str) -> Result<()> {
        if self.has_driver(kind) {
            Ok(())
        } else {
            Err(no_driver(kind))
        }
    }

    /// The id that this namespace has for another one, given to it where it has none.
    pub fn netns_id(&mut self, netns: BorrowedFd<'_>) -> Result<i32> {
        let fd = NsidAttribute::Fd(netns.as_raw_fd() as u32);
        let mut ask = || -> io::Result<i32> {
            let mut request = NsidMessage::default();
            request.attributes.push(fd.clone());
            for _ in 0..2 {
                let answer = self.call(Message::GetNsId(request.clone()), 0)?;
                let id = answer.iter().find_map(|message| match message {
                    Message::NewNsId(found) => {
                        found.attributes.iter().find_map(|found| match found {
                            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                            _ => None,
                        })
                    }
                    _ => None,
                });
                if let Some(id) = id {
                    return Ok(id);
                }
                let mut new = request.clone();
                new.attributes.push(NsidAttribute::Id(-1));
                match self.call(Message::NewNsId(new), 0) {
                    // another one was quicker
                    Err(cause) if cause.raw_os_error() != Some(libc::EEXIST) => return Err(cause),
                    _ => {}
                }
            }
            Err(io::Error::from_raw_os_error(libc::ENOENT))
        };
        ask().map_err(|cause| {
            CniError::operation("cannot give an id to the host's network namespace", cause)
        })
    }

    /// Sends frames for unknown and group addresses to the tunnel's peer `address` too.
    pub fn add_peer(&mut self, tunnel: &Link, address: IpAddr) -> Result<()> {
        let message = Message::NewNeighbour(peer_message(tunnel, address));
        match self.call(message, NLM_F_CREATE | NLM_F_APPEND) {
            Err(cause) if cause.raw_os_error() != Some(libc::EEXIST) => Err(CniError::operation(
                format!("cannot add the peer {address} to {}", tunnel.name),
                cause,
            )),
            _ => Ok(()),
        }
    }

    /// The peers of a tunnel.
    pub fn peers(&mut self, tunnel: &Link) -> Result<Vec<IpAddr>> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        let answer = self
            .call(Message::GetNeighbour(request), NLM_F_DUMP)
            .map_err(|cause| {
                CniError::operation(format!("cannot list the peers of {}", tunnel.name), cause)
            })?;
        Ok(answer
            .iter()
            .filter_map(|message| match message {
                Message::NewNeighbour(entry) if entry.header.ifindex == tunnel.index => {
                    peer_of(entry)
                }
                _ => None,
            })
            .collect())
    }

    /// Takes a peer away; missing is success.
    pub fn delete_peer(&mut self, tunnel: &Link, address: IpAddr) -> Result<()> {
        match self.call(Message::DelNeighbour(peer_message(tunnel, address)), 0) {
            Err(cause) if cause.raw_os_error() != Some(libc::ENOENT) => Err(CniError::operation(
                format!("cannot remove the peer {address} from {}", tunnel.name),
                cause,
            )),
            _ => Ok(()),
        }
    }
}
