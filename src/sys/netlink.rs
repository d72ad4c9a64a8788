//! The little of rtnetlink(7) that namespaces of pods and containers need: set links up, move them with their addresses, list and
//! delete default routes.
//!
//! *Invariants:* every answer is read with bounds checks and matched by sequence number; nothing here looks at any
//! namespace but the one that the socket was opened in. Making links is the plugins' business.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u32 = 0x80;
/// NODAD, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN: what a user may set.
const IFA_F_KEPT: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;
const RT_SCOPE_UNIVERSE: u8 = 0;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RT_SCOPE_LINK: u8 = 253;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
/// Routes of administrators (linux/rtnetlink.h).
const RTPROT_STATIC: u8 = 4;
/// The gateway is on the link, whatever the other routes say.
const RTNH_F_ONLINK: u32 = 4;
const IFF_UP: u32 = 1;
/// Lengths of struct nlmsghdr, rtmsg, rtnexthop, ifinfomsg.
const HEADER: usize = 16;
const RTMSG: usize = 12;
const RTNEXTHOP: usize = 8;
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
/// Largest answer: the kernel sizes dumps to what the reader offers, 32 KiB at most.
const BUFFER: usize = 64 << 10;
const MAX_ATTEMPTS: u32 = 20;

/// A route socket of the namespace it was opened in.
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

/// A default route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DefaultRoute {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// Interfaces it leads to; several for a multipath route of IPv4.
    pub links: Vec<u32>,
    /// Metric: the lowest is used.
    pub metric: u32,
    /// Where it leads; none for one that takes everything to be on the link, and for several at once.
    pub gateway: Option<IpAddr>,
    /// rtmsg and attributes as the kernel gave them: what to hand back to delete exactly this one.
    message: Vec<u8>,
}

/// An address of an interface: ifaddrmsg and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address(Vec<u8>);

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> io::Result<Socket> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // only the kernel is heard from now on
        connect(&fd, &SocketAddrNetlink::new(0, 0))?;
        Ok(Socket { fd, sequence: 0 })
    }

    /// Sets the interface of this index up.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        let mut message = vec![0; 4];
        message.extend_from_slice(&index.to_ne_bytes());
        message.extend_from_slice(&IFF_UP.to_ne_bytes());
        message.extend_from_slice(&IFF_UP.to_ne_bytes());
        self.request(RTM_NEWLINK, NLM_F_ACK, &message).map(drop)
    }

    /// Names of the interfaces by index.
    pub fn links(&mut self) -> io::Result<Vec<(u32, String)>> {
        let answers = self.request(RTM_GETLINK, NLM_F_DUMP, &[0; IFINFOMSG])?;
        Ok(answers.iter().filter_map(|m| link(m)).collect())
    }

    /// Moves the interface of this index into another network namespace, under a name that is free there; one with `%d` gets a number.
    pub fn move_link(&mut self, index: u32, name: &str, namespace: &impl AsFd) -> io::Result<()> {
        let mut message = vec![0; IFINFOMSG];
        message[4..8].copy_from_slice(&index.to_ne_bytes());
        let fd = namespace.as_fd().as_raw_fd();
        push_attribute(&mut message, IFLA_NET_NS_FD, &fd.to_ne_bytes());
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        push_attribute(&mut message, IFLA_IFNAME, &text);
        self.request(RTM_NEWLINK, NLM_F_ACK, &message).map(drop)
    }

    /// The permanent addresses of global scope of an interface, in the form that [`Socket::add_address`] takes.
    pub fn addresses(&mut self, index: u32) -> io::Result<Vec<Address>> {
        let answers = self.request(RTM_GETADDR, NLM_F_DUMP, &[0; IFADDRMSG])?;
        Ok(answers
            .iter()
            .filter_map(|body| address(body, index))
            .collect())
    }

    /// Gives an address to the interface of this index.
    pub fn add_address(&mut self, index: u32, address: &Address) -> io::Result<()> {
        let mut message = address.0.clone();
        if let Some(place) = message.get_mut(4..8) {
            place.copy_from_slice(&index.to_ne_bytes());
        }
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.request(RTM_NEWADDR, flags, &message).map(drop)
    }

    /// Gives the interface an address of link-local scope; one that is there already is success.
    pub fn add_link_local(&mut self, index: u32, ip: IpAddr) -> io::Result<()> {
        let (family, prefix) = match ip {
            IpAddr::V4(_) => (AddressFamily::INET, 16),
            IpAddr::V6(_) => (AddressFamily::INET6, 64),
        };
        let mut message = vec![family.as_raw() as u8, prefix, 0, RT_SCOPE_LINK];
        message.extend_from_slice(&index.to_ne_bytes());
        for kind in [IFA_LOCAL, IFA_ADDRESS] {
            push_attribute(&mut message, kind, &octets(ip));
        }
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        match self.request(RTM_NEWADDR, flags, &message) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Makes a default route of the main table; without gateway everything is on the link. Metric 0 is the kernel's
    /// default.
    pub fn add_default_route(
        &mut self,
        link: u32,
        ipv6: bool,
        gateway: Option<IpAddr>,
        metric: u32,
    ) -> io::Result<()> {
        let family = if ipv6 {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        let scope = match gateway {
            None if !ipv6 => RT_SCOPE_LINK,
            _ => RT_SCOPE_UNIVERSE,
        };
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
        let family = family.as_raw() as u8;
        let head = [
            family,
            0,
            0,
            0,
            RT_TABLE_MAIN,
            RTPROT_STATIC,
            scope,
            RTN_UNICAST,
        ];
        let mut rest = Vec::new();
        push_attribute(&mut rest, RTA_OIF, &link.to_ne_bytes());
        if let Some(gateway) = gateway {
            push_attribute(&mut rest, RTA_GATEWAY, &octets(gateway));
        }
        if metric > 0 {
            push_attribute(&mut rest, RTA_PRIORITY, &metric.to_ne_bytes());
        }
        let mut add = |flags: u32| {
            let message = [&head[..], &flags.to_ne_bytes(), &rest].concat();
            // without EXCL: beside another one of the same metric, which goes then
            self.request(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE, &message)
                .map(drop)
        };
        match add(0) {
            Err(e) if gateway.is_some() && is_unreachable(&e) => add(RTNH_F_ONLINK),
            other => other,
        }
    }

    /// The unicast default routes of the main table, both families.
    pub fn default_routes(&mut self) -> io::Result<Vec<DefaultRoute>> {
        let mut found = Vec::new();
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            let mut message = [0; RTMSG];
            message[0] = family.as_raw() as u8;
            let answers = match self.request(RTM_GETROUTE, NLM_F_DUMP, &message) {
                // a kernel without IPv6
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
                other => other?,
            };
            found.extend(answers.into_iter().flat_map(default_routes));
        }
        Ok(found)
    }

    /// Deletes a route; already gone is success.
    pub fn delete_route(&mut self, route: &DefaultRoute) -> io::Result<()> {
        match self.request(RTM_DELROUTE, NLM_F_ACK, &route.message) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Asks until the answer is of one moment: the kernel marks a dump during which something changed.
    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..MAX_ATTEMPTS {
            match self.exchange(kind, flags, body) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
        Err(io::Error::other("the kernel's tables change all the time"))
    }

    /// Sends one request; gives the bodies of the answers.
    fn exchange(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(body);
        send(&self.fd, &message, SendFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; BUFFER];
        let mut whole = true;
        loop {
            let length = match recv(&self.fd, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let datagram = buffer.get(..length).ok_or_else(cut)?;
            let datagram = Datagram::read(datagram, self.sequence, &mut answers)?;
            whole &= !datagram.interrupted;
            match (datagram.last, whole) {
                (false, _) => {}
                (true, true) => return Ok(answers),
                (true, false) => return Err(io::ErrorKind::Interrupted.into()),
            }
        }
    }
}

/// What a datagram says beyond its messages.
#[derive(Debug, Default, PartialEq, Eq)]
struct Datagram {
    /// The answer is complete.
    last: bool,
    /// Something changed while the kernel was listing.
    interrupted: bool,
}

impl Datagram {
    /// Takes the messages out of one datagram.
    fn read(mut rest: &[u8], sequence: u32, answers: &mut Vec<Vec<u8>>) -> io::Result<Datagram> {
        let mut datagram = Datagram::default();
        while !rest.is_empty() {
            let length = u32_at(rest, 0).ok_or_else(cut)? as usize;
            let kind = u16_at(rest, 4).ok_or_else(cut)?;
            let flags = u16_at(rest, 6).ok_or_else(cut)?;
            let number = u32_at(rest, 8).ok_or_else(cut)?;
            let body = rest.get(HEADER..length).ok_or_else(cut)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            if number != sequence {
                continue;
            }
            datagram.interrupted |= flags & NLM_F_DUMP_INTR != 0;
            match kind {
                // also DONE carries an error number
                NLMSG_ERROR | NLMSG_DONE => {
                    match u32_at(body, 0).unwrap_or(0) as i32 {
                        0 => datagram.last = true,
                        errno => return Err(io::Error::from_raw_os_error(errno.wrapping_neg())),
                    };
                }
                RTM_NEWROUTE | RTM_NEWLINK | RTM_NEWADDR => answers.push(body.to_vec()),
                _ => {}
            }
        }
        Ok(datagram)
    }
}

fn link(body: &[u8]) -> Option<(u32, String)> {
    let index = u32_at(body, 4)?;
    let (_, name) = attributes(body.get(IFINFOMSG..)?).find(|(kind, _)| *kind == IFLA_IFNAME)?;
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    Some((index, String::from_utf8_lossy(name).into_owned()))
}

/// A body of RTM_NEWADDR as what gives the same address again; `None` when it is another interface's, of narrower scope or not
/// permanent. The label of IPv4 goes: it begins with a name that may change.
fn address(body: &[u8], index: u32) -> Option<Address> {
    // struct ifaddrmsg: family, prefixlen, flags, scope, index
    let mut message = body.get(..IFADDRMSG)?.to_vec();
    let [_, _, first_flags, RT_SCOPE_UNIVERSE, ..] = message[..] else {
        return None;
    };
    let attributes: Vec<_> = attributes(body.get(IFADDRMSG..)?).collect();
    let all = attributes.iter().find(|(kind, _)| *kind == IFA_FLAGS);
    let flags = all
        .and_then(|(_, value)| u32_at(value, 0))
        .unwrap_or(u32::from(first_flags));
    if flags & IFA_F_PERMANENT == 0 || u32_at(body, 4)? != index {
        return None;
    }
    message[2] = 0;
    for (kind, value) in attributes {
        if ![IFA_LABEL, IFA_CACHEINFO, IFA_FLAGS].contains(&kind) {
            push_attribute(&mut message, kind, value);
        }
    }
    push_attribute(&mut message, IFA_FLAGS, &(flags & IFA_F_KEPT).to_ne_bytes());
    Some(Address(message))
}

/// A body of RTM_NEWROUTE as default routes; none when it is another kind of route. IPv6 shows routes of equal metric
/// as the hops of one, but deletes them one by one, so they are taken apart; a multipath route of IPv4 is one thing.
fn default_routes(body: Vec<u8>) -> Vec<DefaultRoute> {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
    let [family, 0, _, _, RT_TABLE_MAIN, _, _, RTN_UNICAST, ..] = body[..] else {
        return Vec::new();
    };
    let (Some(rtmsg), Some(rest)) = (body.get(..RTMSG), body.get(RTMSG..)) else {
        return Vec::new();
    };
    let mut links = Vec::new();
    let mut metric = 0;
    let mut gateway = None;
    let mut hops = Vec::new();
    // the message as it would be with one hop
    let mut single = rtmsg.to_vec();
    for (kind, value) in attributes(rest) {
        match kind {
            RTA_OIF => links.extend(u32_at(value, 0)),
            RTA_PRIORITY => metric = u32_at(value, 0).unwrap_or(0),
            RTA_GATEWAY => gateway = ip(value),
            _ => {}
        }
        if kind == RTA_MULTIPATH {
            hops = next_hops(value);
        } else {
            push_attribute(&mut single, kind, value);
        }
    }
    let route = |links, gateway, message| DefaultRoute {
        family,
        links,
        metric,
        gateway,
        message,
    };
    if hops.is_empty() || u16::from(family) != AddressFamily::INET6.as_raw() {
        links.extend(hops.iter().map(|(link, _)| *link));
        return vec![route(links, gateway, body)];
    }
    hops.into_iter()
        .map(|(link, rest)| {
            let mut message = single.clone();
            push_attribute(&mut message, RTA_OIF, &link.to_ne_bytes());
            message.extend_from_slice(rest);
            let gateway = attributes(rest).find(|(kind, _)| *kind == RTA_GATEWAY);
            let gateway = gateway.and_then(|(_, value)| ip(value));
            route(vec![link], gateway, message)
        })
        .collect()
}

/// A list of struct rtnexthop (length, flags, hops, interface): interface and attributes of each.
fn next_hops(mut list: &[u8]) -> Vec<(u32, &[u8])> {
    let mut hops = Vec::new();
    while let (Some(length), Some(link)) = (u16_at(list, 0), u32_at(list, 4)) {
        let length = usize::from(length).max(RTNEXTHOP);
        hops.push((link, list.get(RTNEXTHOP..length).unwrap_or(&[])));
        list = list.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    hops
}

/// No route leads to the gateway.
fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH)
    )
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
        .ok()
}

fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // it came from a message of the kernel: shorter than 64 KiB
    message.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The attributes of a message: kind and value.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)?;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let part = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(part.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let part = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(part.try_into().ok()?))
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "netlink answer cut short")
}

impl DefaultRoute {
    /// Of IPv6, else of IPv4.
    pub fn is_ipv6(&self) -> bool {
        u16::from(self.family) == AddressFamily::INET6.as_raw()
    }
}

#[cfg(test)]
impl DefaultRoute {
    /// For tests of what is decided over routes.
    pub fn sample(family: u8, links: &[u32], metric: u32) -> DefaultRoute {
        DefaultRoute {
            family,
            links: links.to_vec(),
            metric,
            gateway: None,
            message: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        push_attribute(&mut message, kind, value);
        message
    }

    fn route(family: u8, table: u8, prefix: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![family, prefix, 0, 0, table, 3, 0, RTN_UNICAST, 0, 0, 0, 0];
        body.extend(attributes.concat());
        body
    }

    #[test]
    fn routes() {
        let oif = |n: u32| attribute(RTA_OIF, &n.to_ne_bytes());
        let metric = || attribute(RTA_PRIORITY, &[9, 0, 0, 0]);
        let gateway = |n: u8| attribute(5, &[n; 16]);
        let hop = |n: u8| {
            let mut hop = vec![28, 0, 0, 0, n, 0, 0, 0];
            hop.extend(gateway(n));
            hop
        };
        let hops = || attribute(RTA_MULTIPATH, &[hop(3), hop(4)].concat());
        // body; links, metric and message of what it gives
        type Row = (Vec<u8>, Vec<(Vec<u32>, u32, Vec<u8>)>);
        let same = |body: Vec<u8>, links: Vec<u32>, metric: u32| -> Row {
            (body.clone(), vec![(links, metric, body)])
        };
        let table: Vec<Row> = vec![
            same(route(2, 254, 0, &[oif(3)]), vec![3], 0),
            same(route(2, 254, 0, &[metric(), oif(3)]), vec![3], 9),
            same(route(2, 254, 0, &[hops()]), vec![3, 4], 0),
            (
                route(10, 254, 0, &[hops(), metric()]),
                vec![
                    (
                        vec![3],
                        9,
                        route(10, 254, 0, &[metric(), oif(3), gateway(3)]),
                    ),
                    (
                        vec![4],
                        9,
                        route(10, 254, 0, &[metric(), oif(4), gateway(4)]),
                    ),
                ],
            ),
            (route(2, 254, 24, &[oif(3)]), vec![]),
            (route(2, 7, 0, &[oif(3)]), vec![]),
            (vec![2, 0], vec![]),
            // an attribute that claims more than there is
            same(route(2, 254, 0, &[vec![200, 0, 4, 0, 1]]), vec![], 0),
        ];
        for (body, expected) in table {
            let got: Vec<_> = default_routes(body.clone())
                .into_iter()
                .map(|r| (r.links, r.metric, r.message))
                .collect();
            assert_eq!(got, expected, "{body:?}");
        }
    }

    #[test]
    fn addresses() {
        // family, prefix, flags, scope and index; what follows
        let body = |head: [u8; 5], rest: &[Vec<u8>]| {
            let [family, prefix, flags, scope, index] = head;
            let mut body = vec![family, prefix, flags, scope, index, 0, 0, 0];
            body.extend(rest.concat());
            body
        };
        let ip = || attribute(1, &[10, 0, 0, 1]);
        let flags = |flags: u32| attribute(IFA_FLAGS, &flags.to_ne_bytes());
        let label = || attribute(IFA_LABEL, b"eth0:1\0");
        for (given, want) in [
            (
                body(
                    [2, 24, 0x80, 0, 3],
                    &[ip(), label(), flags(0x280), attribute(6, &[0; 16])],
                ),
                Some(body([2, 24, 0, 0, 3], &[ip(), flags(0x200)])),
            ),
            (
                body([2, 24, 0x80, 0, 3], &[ip()]),
                Some(body([2, 24, 0, 0, 3], &[ip(), flags(0)])),
            ),
            (body([2, 24, 0x80, 0, 4], &[ip()]), None),
            (body([10, 64, 0x80, 253, 3], &[ip()]), None),
            (body([10, 64, 0, 0, 3], &[ip(), flags(0x100)]), None),
            (vec![2, 24, 0x80], None),
        ] {
            assert_eq!(
                address(&given, 3).map(|address| address.0),
                want,
                "{given:?}"
            );
        }
    }

    #[test]
    fn datagrams() {
        let message = |kind: u16, flags: u16, number: u32, body: &[u8]| {
            let mut m = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
            m.extend_from_slice(&kind.to_ne_bytes());
            m.extend_from_slice(&flags.to_ne_bytes());
            m.extend_from_slice(&number.to_ne_bytes());
            m.extend_from_slice(&[0; 4]);
            m.extend_from_slice(body);
            m
        };
        let mut answers = Vec::new();
        let bytes = [
            message(RTM_NEWLINK, 0, 7, &[1, 2, 3, 4]),
            message(RTM_NEWLINK, 0, 8, &[5, 6, 7, 8]),
            message(NLMSG_DONE, NLM_F_DUMP_INTR, 7, &[0; 4]),
        ];
        let got = Datagram::read(&bytes.concat(), 7, &mut answers).unwrap();
        let expected = Datagram {
            last: true,
            interrupted: true,
        };
        assert_eq!((got, answers), (expected, vec![vec![1, 2, 3, 4]]));
        let error = message(NLMSG_ERROR, 0, 7, &(-libc::EPERM).to_ne_bytes());
        let got = Datagram::read(&error, 7, &mut Vec::new()).unwrap_err();
        assert_eq!(got.raw_os_error(), Some(libc::EPERM));
        for bytes in [
            &[1, 2, 3][..],
            &[0; 16],
            &[255; 16],
            &[15, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ] {
            let got = Datagram::read(bytes, 1, &mut Vec::new());
            assert!(got.is_err(), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Datagram::read(&bytes, 0, &mut Vec::new());
            let mut body = route(10, 254, 0, &[]);
            body.extend_from_slice(&bytes);
            default_routes(body);
            next_hops(&bytes);
            link(&bytes);
            address(&bytes, 0);
        }
    }
}
