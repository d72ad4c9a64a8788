//! Between our values and rtnetlink's messages: pure.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoIpVlan, InfoMacVlan, InfoVlan, InfoVrf, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, State,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};

use super::{FoundRoute, Kind, Link, Vxlan};
use crate::result::Route;

/// The family of an address.
pub fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// What a message says of a link.
pub fn link_of(message: Message) -> Option<Link> {
    let Message::NewLink(message) = message else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        all_multicast: message.header.flags.contains(LinkFlags::Allmulti),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Link(index) => link.lower = Some(index),
            LinkAttribute::Promiscuity(count) => link.promiscuous = count > 0,
            LinkAttribute::OperState(state) => {
                link.operational = state == State::Up;
                link.inoperable = !matches!(state, State::Up | State::Unknown);
            }
            LinkAttribute::Carrier(carrier) => link.carrier = carrier == 1,
            LinkAttribute::TxQueueLen(length) => link.queue = length,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
                        LinkInfo::Data(data) => link.details = kind_of(&data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // no data at all
    if link.kind == "dummy" {
        link.details = Some(Kind::Dummy);
    }
    Some(link)
}

/// What is particular to a kind, as the kernel takes it.
pub fn info_data(kind: &Kind) -> Option<InfoData> {
    Some(match kind {
        Kind::Dummy | Kind::Ifb => return None,
        // where VLANs aren't wanted the kernel needn't know them
        Kind::Bridge { vlan_filtering, .. } => InfoData::Bridge(if *vlan_filtering {
            vec![InfoBridge::VlanFiltering(true)]
        } else {
            Vec::new()
        }),
        Kind::IpVlan(mode) => InfoData::IpVlan(vec![InfoIpVlan::Mode(*mode)]),
        Kind::MacVlan { mode, queue } => InfoData::MacVlan(
            std::iter::once(InfoMacVlan::Mode(*mode))
                .chain(queue.map(InfoMacVlan::BcQueueLen))
                .collect(),
        ),
        Kind::Vlan(id) => InfoData::Vlan(vec![InfoVlan::Id(*id)]),
        Kind::Vrf(table) => InfoData::Vrf(vec![InfoVrf::TableId(*table)]),
        Kind::Vxlan(vxlan) => {
            let mut data = vec![
                InfoVxlan::Id(vxlan.id),
                InfoVxlan::Port(vxlan.port),
                InfoVxlan::Learning(vxlan.learning),
            ];
            data.extend(vxlan.local.map(|local| match local {
                IpAddr::V4(ip) => InfoVxlan::Local(ip),
                IpAddr::V6(ip) => InfoVxlan::Local6(ip),
            }));
            data.extend(vxlan.lower.map(InfoVxlan::Link));
            InfoData::Vxlan(data)
        }
    })
}

/// The reverse of [`info_data`].
fn kind_of(data: &InfoData) -> Option<Kind> {
    Some(match data {
        InfoData::Bridge(data) => Kind::Bridge {
            vlan_filtering: data.contains(&InfoBridge::VlanFiltering(true)),
            default_vlan: data.iter().find_map(|info| match info {
                InfoBridge::VlanDefaultPvid(vid) => Some(*vid).filter(|vid| *vid > 0),
                _ => None,
            }),
        },
        InfoData::IpVlan(data) => Kind::IpVlan(data.iter().find_map(|info| match info {
            InfoIpVlan::Mode(mode) => Some(*mode),
            _ => None,
        })?),
        InfoData::MacVlan(data) => Kind::MacVlan {
            mode: data.iter().find_map(|info| match info {
                InfoMacVlan::Mode(mode) => Some(*mode),
                _ => None,
            })?,
            queue: None,
        },
        InfoData::Vlan(data) => Kind::Vlan(data.iter().find_map(|info| match info {
            InfoVlan::Id(id) => Some(*id),
            _ => None,
        })?),
        InfoData::Vrf(data) => Kind::Vrf(data.iter().find_map(|info| match info {
            InfoVrf::TableId(table) => Some(*table),
            _ => None,
        })?),
        InfoData::Vxlan(data) => {
            let mut vxlan = Vxlan {
                id: 0,
                port: 0,
                local: None,
                lower: None,
                learning: false,
            };
            for info in data {
                match info {
                    InfoVxlan::Id(id) => vxlan.id = *id,
                    InfoVxlan::Port(port) => vxlan.port = *port,
                    InfoVxlan::Local(ip) => vxlan.local = Some((*ip).into()),
                    InfoVxlan::Local6(ip) => vxlan.local = Some((*ip).into()),
                    InfoVxlan::Link(index) => vxlan.lower = Some(*index),
                    InfoVxlan::Learning(learning) => vxlan.learning = *learning,
                    _ => {}
                }
            }
            Kind::Vxlan(vxlan)
        }
        _ => return None,
    })
}

/// The entry of a tunnel's forwarding table that sends to a peer what has no entry of its own (vxlan: the zero address).
pub fn peer_message(tunnel: &Link, peer: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = tunnel.index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(vec![0; 6]),
        NeighbourAttribute::Destination(match peer {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        }),
    ];
    message
}

/// The peer that an entry of a tunnel's forwarding table sends to what has no entry of its own.
pub fn peer_of(message: &NeighbourMessage) -> Option<IpAddr> {
    let mut peer = None;
    let mut rest = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => rest = mac.iter().all(|byte| *byte == 0),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                peer = Some((*ip).into())
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                peer = Some((*ip).into())
            }
            // the family of the message is the bridge's, not the address's
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                peer = <[u8; 4]>::try_from(bytes.as_slice())
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
                    .ok();
            }
            _ => {}
        }
    }
    peer.filter(|_| rest)
}

/// A message about an address of a link.
pub fn address_message(link: &Link, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.index = link.index;
    message.header.prefix_len = address.prefix_len();
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
    ];
    message
}

/// The address that a message is about.
pub fn address_of(message: &AddressMessage) -> Option<(IpNet, AddressFlags)> {
    let mut flags = AddressFlags::empty();
    let mut remote = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => remote = Some(*address),
            AddressAttribute::Flags(found) => flags = *found,
            _ => {}
        }
    }
    let address = IpNet::new(local.or(remote)?, message.header.prefix_len).ok()?;
    Some((address, flags))
}

/// A message about a route over a link.
pub fn route_message(link: &Link, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.dst.addr());
    message.header.destination_prefix_length = route.dst.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match (route.scope, route.gw) {
        (Some(scope), _) => scope.into(),
        (None, Some(_)) => RouteScope::Universe,
        (None, None) => RouteScope::Link,
    };
    message.attributes.push(RouteAttribute::Oif(link.index));
    if route.dst.prefix_len() > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(route.dst.network().into()));
    }
    if let Some(gw) = route.gw {
        message.attributes.push(RouteAttribute::Gateway(gw.into()));
    }
    if let Some(table) = route.table {
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Table(table));
    }
    if let Some(priority) = route.priority {
        message.attributes.push(RouteAttribute::Priority(priority));
    }
    let metrics: Vec<RouteMetric> = [
        route.mtu.map(RouteMetric::Mtu),
        route.advmss.map(RouteMetric::Advmss),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// The unicast route that a message is about.
pub fn route_of(message: &RouteMessage) -> Option<FoundRoute> {
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::from(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::from(*ip)),
        _ => None,
    };
    let mut dst: Option<IpAddr> = None;
    let mut gw = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address),
            RouteAttribute::Gateway(address) => gw = ip(address),
            _ => {}
        }
    }
    let any: IpAddr = match message.header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let dst = IpNet::new(dst.unwrap_or(any), message.header.destination_prefix_length).ok()?;
    Some(FoundRoute { dst, gw })
}

/// The link of a default route of the main table.
pub fn default_route_link(message: &Message) -> Option<u32> {
    let Message::NewRoute(route) = message else {
        return None;
    };
    let header = &route.header;
    if header.destination_prefix_length != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}
