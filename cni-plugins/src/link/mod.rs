//! Links, addresses and routes through rtnetlink(7); the only user of the crate `rtnetlink`.
//!
//! *Invariants*: a [`Links`] is a socket of the namespace in which it was opened and works there from anywhere. Calls
//! are synchronous: the kernel answers a request before `send` returns, so no runtime is needed. Errors name the object.

mod create;
mod filter;
mod message;
mod policy;
mod shape;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use ipnet::IpNet;
use nix::libc;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
pub use rtnetlink::packet_route::address::AddressFlags;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridgePort, InfoPortData, InfoPortKind,
    LinkAttribute, LinkExtentMask, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::error::{CniError, Result};
use crate::result::Route;
pub use create::{Kind, MACVLAN_MODES, NewLink, VethPair, Vxlan, no_driver};
use message::{
    address_message, address_of, default_route_link, family, link_of, route_message, route_of,
};
pub use policy::{KernelRoute, SourceRule};
pub use rtnetlink::packet_route::link::{IpVlanMode, MacVlanMode};
pub use shape::{Choice, Direction, Rate};

/// A dump is asked for again this often when the kernel says that it changed meanwhile.
const DUMP_TRIES: usize = 8;
/// The kernel's datagrams for dumps are 32 KiB at most.
const RECEIVE: usize = 64 << 10;

/// What is known of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `bridge`, `veth`, …; empty for hardware and loopback.
    pub kind: String,
    /// Link address.
    pub mac: Vec<u8>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Able to pass packets.
    pub operational: bool,
    /// It has a carrier; that of a bridge is one of its ports'.
    pub carrier: bool,
    /// Not able to pass packets; kinds that don't say are neither (RFC 2863 ifOperStatus).
    pub inoperable: bool,
    /// `ifalias`.
    pub alias: String,
    /// What its kind has of its own, where this module knows it.
    pub details: Option<Kind>,
    /// Index of the bridge that it is a port of.
    pub controller: Option<u32>,
    /// Index of the interface that it stands on, or of the other end of the pair.
    pub lower: Option<u32>,
    /// Somebody asked for everything that passes.
    pub promiscuous: bool,
    /// It receives every multicast packet.
    pub all_multicast: bool,
    /// Length of the transmit queue, in packets.
    pub queue: u32,
}

impl Link {
    /// The table of a VRF.
    pub fn vrf_table(&self) -> Option<u32> {
        match self.details {
            Some(Kind::Vrf(table)) => Some(table),
            _ => None,
        }
    }
}

/// A route as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRoute {
    /// Destination.
    pub dst: IpNet,
    /// Next hop.
    pub gw: Option<IpAddr>,
}

/// A socket of one namespace.
pub struct Links {
    socket: Socket,
    sequence: u32,
}

impl Links {
    /// Opens the socket in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket =
            open().map_err(|cause| CniError::operation("cannot open a rtnetlink socket", cause))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    fn call(&mut self, message: Message, flags: u16) -> io::Result<Vec<Message>> {
        for _ in 0..DUMP_TRIES {
            if let Some(answer) = self.call_once(message.clone(), flags)? {
                return Ok(answer);
            }
        }
        Err(io::Error::other("the kernel's tables keep changing"))
    }

    /// `None`: a dump that was overtaken by a change.
    fn call_once(&mut self, message: Message, flags: u16) -> io::Result<Option<Vec<Message>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        retry(|| self.socket.send(&bytes, 0))?;

        let mut answer = Vec::new();
        let mut whole = true;
        loop {
            let mut bytes = Vec::with_capacity(RECEIVE);
            retry(|| self.socket.recv_from(&mut bytes, 0))?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let part =
                    NetlinkMessage::<Message>::deserialize(rest).map_err(io::Error::other)?;
                let length = (part.header.length as usize)
                    .next_multiple_of(4)
                    .min(rest.len());
                rest = rest.get(length..).unwrap_or_default();
                if part.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= part.header.flags & NLM_F_DUMP_INTR == 0;
                match part.payload {
                    NetlinkPayload::InnerMessage(message) => answer.push(message),
                    NetlinkPayload::Error(error) => match error.code {
                        Some(code) => {
                            return Err(io::Error::from_raw_os_error(code.get().wrapping_neg()));
                        }
                        None => return Ok(Some(answer)),
                    },
                    NetlinkPayload::Done(_) => return Ok(whole.then_some(answer)),
                    _ => {}
                }
            }
        }
    }

    /// Has the kernel heed what a dump's header asks for, where it can (NETLINK_GET_STRICT_CHK of netlink(7), Linux 4.20): a host
    /// may have thousands of addresses. The answer is to be looked through all the same.
    fn filtered<T>(&mut self, dump: impl FnOnce(&mut Self) -> T) -> T {
        let _ = self.socket.set_netlink_get_strict_chk(true);
        let answer = dump(self);
        let _ = self.socket.set_netlink_get_strict_chk(false);
        answer
    }

    fn get_link(&mut self, mut message: LinkMessage) -> io::Result<Option<Link>> {
        message
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        match self.call(Message::GetLink(message), 0) {
            Ok(answer) => Ok(answer.into_iter().find_map(link_of)),
            Err(cause) if cause.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// The link `name`, if there is one.
    pub fn by_name(&mut self, name: &str) -> Result<Option<Link>> {
        self.get_link(LinkUnspec::new_with_name(name).build())
            .map_err(|cause| {
                CniError::operation(format!("cannot look up the interface {name}"), cause)
            })
    }

    /// The link `name`; its absence is an error.
    pub fn require(&mut self, name: &str) -> Result<Link> {
        self.by_name(name)?
            .ok_or_else(|| CniError::operation(format!("interface {name} not found"), ""))
    }

    /// The link with `index`, if there is one.
    pub fn by_index(&mut self, index: u32) -> Result<Option<Link>> {
        self.get_link(LinkUnspec::new_with_index(index).build())
            .map_err(|cause| {
                CniError::operation(
                    format!("cannot look up the interface number {index}"),
                    cause,
                )
            })
    }

    /// Every link of the namespace.
    pub fn all(&mut self) -> Result<Vec<Link>> {
        let request = LinkMessageBuilder::<LinkUnspec>::new()
            .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
            .build();
        let answer = self
            .call(Message::GetLink(request), NLM_F_DUMP)
            .map_err(|cause| CniError::operation("cannot list the interfaces", cause))?;
        Ok(answer.into_iter().filter_map(link_of).collect())
    }

    /// The ports of a bridge.
    pub fn ports(&mut self, bridge: &Link) -> Result<Vec<Link>> {
        let request = LinkMessageBuilder::<LinkUnspec>::new()
            .controller(bridge.index)
            .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
            .build();
        let answer = self
            .call(Message::GetLink(request), NLM_F_DUMP)
            .map_err(|cause| {
                CniError::operation(format!("cannot list the ports of {}", bridge.name), cause)
            })?;
        Ok(answer
            .into_iter()
            .filter_map(link_of)
            .filter(|link| link.controller == Some(bridge.index))
            .collect())
    }

    fn change(
        &mut self,
        link: &Link,
        what: &str,
        builder: LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        self.call(Message::SetLink(builder.index(link.index).build()), 0)
            .map(|_| ())
            .map_err(|cause| {
                CniError::operation(format!("cannot set {what} of {}", link.name), cause)
            })
    }

    /// Brings a link up.
    pub fn up(&mut self, link: &Link) -> Result<()> {
        self.change(
            link,
            "the state up",
            LinkMessageBuilder::<LinkUnspec>::new().up(),
        )
    }

    /// Takes a link down.
    pub fn down(&mut self, link: &Link) -> Result<()> {
        self.change(
            link,
            "the state down",
            LinkMessageBuilder::<LinkUnspec>::new().down(),
        )
    }

    /// Sets the link address.
    pub fn set_mac(&mut self, link: &Link, mac: &[u8]) -> Result<()> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new().address(mac.to_vec());
        self.change(link, "the link address", builder)
    }

    /// Sets the MTU in bytes.
    pub fn set_mtu(&mut self, link: &Link, mtu: u32) -> Result<()> {
        self.change(
            link,
            "the MTU",
            LinkMessageBuilder::<LinkUnspec>::new().mtu(mtu),
        )
    }

    /// Moves a link into another namespace under another name. The link goes down.
    pub fn hand_over(&mut self, link: &Link, netns: BorrowedFd<'_>, name: &str) -> Result<()> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new()
            .setns_by_fd(netns.as_raw_fd())
            .name(name);
        self.change(link, &format!("namespace and name {name}"), builder)
    }

    /// Gives a link that is down another name.
    pub fn rename(&mut self, link: &Link, name: &str) -> Result<()> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new().name(name);
        self.change(link, &format!("the name {name}"), builder)
    }

    /// Sets `ifalias`.
    pub fn set_alias(&mut self, link: &Link, alias: &str) -> Result<()> {
        self.change(
            link,
            "the alias",
            LinkMessageBuilder::<LinkUnspec>::new().alias(alias),
        )
    }

    /// Makes `port` a port of `bridge`.
    pub fn attach(&mut self, port: &Link, bridge: &Link) -> Result<()> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new().controller(bridge.index);
        self.change(port, &format!("the bridge {}", bridge.name), builder)
    }

    /// Lets frames leave a bridge port by which they came.
    pub fn set_hairpin(&mut self, port: &Link) -> Result<()> {
        self.set_port(port, InfoBridgePort::HairpinMode(true))
    }

    /// Keeps a bridge port from other isolated ones.
    pub fn set_isolated(&mut self, port: &Link) -> Result<()> {
        self.set_port(port, InfoBridgePort::Isolated(true))
    }

    fn set_port(&mut self, port: &Link, flag: InfoBridgePort) -> Result<()> {
        let what = format!("cannot set {flag:?} of the bridge port {}", port.name);
        let builder = LinkMessageBuilder::<LinkUnspec>::new()
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(vec![flag]))
            .index(port.index);
        self.call(Message::NewLink(builder.build()), 0)
            .map(|_| ())
            .map_err(|cause| CniError::operation(what, cause))
    }

    /// The VLANs of a bridge port: `native` untagged, those of `trunk` (first and last) tagged, and no longer `drop`.
    pub fn set_vlans(
        &mut self,
        port: &Link,
        native: u16,
        trunk: &[(u16, u16)],
        drop: Option<u16>,
    ) -> Result<()> {
        use BridgeVlanInfoFlags as Flags;
        let request = |vlans: &[(u16, Flags)]| {
            let mut message = LinkMessage::default();
            message.header.interface_family = AddressFamily::Bridge;
            message.header.index = port.index;
            let info = |(vid, flags): &(u16, Flags)| {
                AfSpecBridge::VlanInfo(BridgeVlanInfo {
                    flags: *flags,
                    vid: *vid,
                })
            };
            message.attributes = vec![LinkAttribute::AfSpecBridge(
                vlans.iter().map(info).collect(),
            )];
            message
        };
        let mut wanted = Vec::new();
        for (first, last) in trunk {
            if first == last {
                wanted.push((*first, Flags::empty()));
            } else {
                wanted.push((*first, Flags::RangeBegin));
                wanted.push((*last, Flags::RangeEnd));
            }
        }
        // last: an untagged VLAN that is in the trunk too stays untagged
        wanted.push((native, Flags::Pvid | Flags::Untagged));
        let mut set = || {
            self.call(Message::SetLink(request(&wanted)), 0)?;
            if let Some(vid) = drop {
                self.call(Message::DelLink(request(&[(vid, Flags::empty())])), 0)?;
            }
            Ok(())
        };
        set().map_err(|cause: io::Error| {
            CniError::operation(format!("cannot set the VLANs of {}", port.name), cause)
        })
    }

    /// Removes a link; missing is success.
    pub fn delete(&mut self, link: &Link) -> Result<()> {
        let message = LinkUnspec::new_with_index(link.index).build();
        match self.call(Message::DelLink(message), 0) {
            Err(cause) if cause.raw_os_error() != Some(libc::ENODEV) => Err(CniError::operation(
                format!("cannot delete the interface {}", link.name),
                cause,
            )),
            _ => Ok(()),
        }
    }

    /// Waits until packets pass: a bridge port that got its carrier this moment doesn't forward yet.
    pub fn wait_operational(&mut self, link: &Link) -> Result<()> {
        if self.wait(link, |now| now.operational)? {
            return Ok(());
        }
        Err(CniError::operation(
            format!("interface {} does not become operational", link.name),
            "",
        ))
    }

    /// As [`Links::wait_operational`] for a link whose kind may not say what it is able to; whether it came to that.
    pub fn wait_operable(&mut self, link: &Link) -> Result<bool> {
        self.wait(link, |now| !now.inoperable)
    }

    fn wait(&mut self, link: &Link, done: impl Fn(&Link) -> bool) -> Result<bool> {
        for attempt in 0..12 {
            match self.by_index(link.index)? {
                Some(now) if done(&now) => return Ok(true),
                None => break,
                // 2 s in all
                Some(_) => std::thread::sleep(Duration::from_micros(500 << attempt)),
            }
        }
        Ok(false)
    }

    /// The addresses of a link.
    pub fn addresses(&mut self, link: &Link) -> Result<Vec<IpNet>> {
        let found = self.addresses_with_flags(link)?;
        Ok(found.into_iter().map(|(address, _)| address).collect())
    }

    /// The addresses of a link with what the kernel thinks of them.
    pub fn addresses_with_flags(&mut self, link: &Link) -> Result<Vec<(IpNet, AddressFlags)>> {
        let mut answer = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = AddressMessage::default();
            message.header.family = family;
            message.header.index = link.index;
            let found = self.filtered(|links| links.call(Message::GetAddress(message), NLM_F_DUMP));
            match found {
                // gone meanwhile
                Err(cause) if cause.raw_os_error() == Some(libc::ENODEV) => {}
                found => answer.extend(found.map_err(|cause| {
                    let what = format!("cannot list the addresses of {}", link.name);
                    CniError::operation(what, cause)
                })?),
            }
        }
        Ok(answer
            .into_iter()
            .filter_map(|message| match message {
                Message::NewAddress(found) if found.header.index == link.index => {
                    address_of(&found)
                }
                _ => None,
            })
            .collect())
    }

    /// Adds an address; one that is there already is success. `Nodad`: usable at once, without duplicate detection.
    pub fn add_address(&mut self, link: &Link, address: IpNet, flags: AddressFlags) -> Result<()> {
        let mut message = address_message(link, address);
        message.attributes.push(AddressAttribute::Flags(flags));
        if let IpNet::V4(net) = address
            && net.prefix_len() < 31
        {
            message
                .attributes
                .push(AddressAttribute::Broadcast(net.broadcast()));
        }
        match self.call(Message::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL) {
            Err(cause) if cause.raw_os_error() != Some(libc::EEXIST) => Err(CniError::operation(
                format!("cannot add {address} to {}", link.name),
                cause,
            )),
            _ => Ok(()),
        }
    }

    /// Removes an address; missing is success.
    pub fn delete_address(&mut self, link: &Link, address: IpNet) -> Result<()> {
        match self.call(Message::DelAddress(address_message(link, address)), 0) {
            Err(cause) if cause.raw_os_error() != Some(libc::EADDRNOTAVAIL) => Err(
                CniError::operation(format!("cannot remove {address} from {}", link.name), cause),
            ),
            _ => Ok(()),
        }
    }

    /// Adds a route over `link`. One to the same destination with the same metric stays as it is: with several
    /// interfaces the first to claim a destination has it.
    pub fn add_route(&mut self, link: &Link, route: &Route) -> Result<()> {
        self.add_route_from(link, route, None)
    }

    /// As [`Links::add_route`]; what uses it is sent from `source`.
    pub fn add_route_from(
        &mut self,
        link: &Link,
        route: &Route,
        source: Option<IpAddr>,
    ) -> Result<()> {
        let mut message = route_message(link, route);
        let source = source.map(|source| RouteAttribute::PrefSource(source.into()));
        message.attributes.extend(source);
        match self.call(Message::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL) {
            Err(cause) if cause.raw_os_error() != Some(libc::EEXIST) => {
                let via = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
                let what = format!(
                    "cannot add the route to {}{via} over {}",
                    route.dst, link.name
                );
                Err(CniError::operation(what, cause))
            }
            _ => Ok(()),
        }
    }

    /// Every unicast route over `link`, of every table.
    pub fn routes(&mut self, link: &Link) -> Result<Vec<FoundRoute>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answer = self
                .call(Message::GetRoute(message), NLM_F_DUMP)
                .map_err(|cause| {
                    CniError::operation(format!("cannot list the routes of {}", link.name), cause)
                })?;
            for message in answer {
                if let Message::NewRoute(route) = message
                    && route.attributes.contains(&RouteAttribute::Oif(link.index))
                {
                    found.extend(route_of(&route));
                }
            }
        }
        Ok(found)
    }

    /// The link of the first default route of the main table, IPv4 before IPv6.
    pub fn default_interface(&mut self) -> Result<Option<Link>> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answer = self
                .call(Message::GetRoute(message), NLM_F_DUMP)
                .map_err(|cause| CniError::operation("cannot list the routes", cause))?;
            let index = answer.iter().find_map(default_route_link);
            if let Some(index) = index {
                return self.by_index(index);
            }
        }
        Ok(None)
    }

    /// The link over which `address` is reached.
    pub fn link_to(&mut self, address: IpAddr) -> Result<Option<Link>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        let answer = match self.call(Message::GetRoute(message), 0) {
            Err(cause)
                if matches!(
                    cause.raw_os_error(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH)
                ) =>
            {
                return Ok(None);
            }
            answer => answer.map_err(|cause| {
                CniError::operation(format!("cannot find the route to {address}"), cause)
            })?,
        };
        let index = answer.iter().find_map(|message| match message {
            Message::NewRoute(route) => {
                route
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        RouteAttribute::Oif(index) => Some(*index),
                        _ => None,
                    })
            }
            _ => None,
        });
        index.map_or(Ok(None), |index| self.by_index(index))
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
