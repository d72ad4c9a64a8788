//! DHCP messages (RFC 2131, options RFC 2132) and the Ethernet frames around them: pure, both ways.
//!
//! *Invariants*: whatever the bytes are, reading them ends with a message or `None`; options that come in parts are
//! joined (RFC 3396), those in `sname` and `file` included (option 52).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Bytes of a message before its options.
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// BOOTP relays may drop shorter ones (RFC 1542 §2.1).
const SHORTEST: usize = 300;
const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [8, 0];
const UDP: u8 = 17;
/// The server's UDP port.
pub const SERVER_PORT: u16 = 67;
/// The client's UDP port.
pub const CLIENT_PORT: u16 = 68;
/// Everybody on the link.
pub const BROADCAST: [u8; 6] = [255; 6];
/// More names or routes than this are no configuration.
const MAX_LIST: usize = 64;

/// Numbers of options.
pub mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const STATIC_ROUTES: u8 = 33;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const WANTED: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const USER_CLASS: u8 = 77;
    pub const SEARCH: u8 = 119;
    pub const CLASSLESS_ROUTES: u8 = 121;
}

/// Option 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who has an address?
    Discover = 1,
    /// This one.
    Offer = 2,
    /// I take it, or keep it.
    Request = 3,
    /// It is yours.
    Ack = 5,
    /// It isn't.
    Nak = 6,
    /// I don't need it any more.
    Release = 7,
}

/// What a client says.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// Which of these.
    pub kind: Kind,
    /// Chosen by the client, the same in the answer.
    pub xid: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// The client's link address.
    pub mac: [u8; 6],
    /// The address that the client has and can be reached by.
    pub address: Option<Ipv4Addr>,
    /// The answer must be a broadcast.
    pub broadcast: bool,
    /// Beside the kind; each at most 255 bytes long.
    pub options: Vec<(u8, &'a [u8])>,
}

impl Question<'_> {
    /// The UDP payload.
    pub fn to_bytes(&self) -> Vec<u8> {
        // request, Ethernet, length of its addresses, hops
        let mut bytes = vec![1, 1, 6, 0];
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend(self.secs.to_be_bytes());
        bytes.extend([if self.broadcast { 0x80 } else { 0 }, 0]);
        bytes.extend(self.address.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes.resize(28, 0);
        bytes.extend(self.mac);
        bytes.resize(FIXED - COOKIE.len(), 0);
        bytes.extend(COOKIE);
        bytes.extend([option::TYPE, 1, self.kind as u8]);
        for (code, value) in &self.options {
            let value = value.get(..255).unwrap_or(value);
            bytes.extend([*code, value.len() as u8]);
            bytes.extend_from_slice(value);
        }
        bytes.push(255);
        bytes.resize(bytes.len().max(SHORTEST), 0);
        bytes
    }
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Which of these.
    pub kind: Kind,
    /// The question's.
    pub xid: u32,
    /// The client's link address.
    pub mac: [u8; 6],
    /// `yiaddr`.
    pub address: Ipv4Addr,
    options: BTreeMap<u8, Vec<u8>>,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn ip(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    array::<4>(bytes, at).map(Ipv4Addr::from)
}

fn read_options(mut rest: &[u8], options: &mut BTreeMap<u8, Vec<u8>>) {
    while let Some((code, behind)) = rest.split_first() {
        match code {
            0 => rest = behind,
            255 => return,
            code => {
                let Some((length, behind)) = behind.split_first() else {
                    return;
                };
                let Some((value, behind)) = behind.split_at_checked(usize::from(*length)) else {
                    return;
                };
                options.entry(*code).or_default().extend(value);
                rest = behind;
            }
        }
    }
}

impl Answer {
    /// Reads a UDP payload.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        // a reply for an Ethernet client
        if array(bytes, 0)? != [2, 1, 6] || array(bytes, FIXED - COOKIE.len())? != COOKIE {
            return None;
        }
        let mut options = BTreeMap::new();
        read_options(bytes.get(FIXED..)?, &mut options);
        let overload = options
            .get(&option::OVERLOAD)
            .and_then(|v| v.first())
            .copied();
        let overload = overload.unwrap_or(0);
        if overload & 1 != 0 {
            read_options(bytes.get(108..236)?, &mut options);
        }
        if overload & 2 != 0 {
            read_options(bytes.get(44..108)?, &mut options);
        }
        let kind = match options.get(&option::TYPE)?.as_slice() {
            [2] => Kind::Offer,
            [5] => Kind::Ack,
            [6] => Kind::Nak,
            _ => return None,
        };
        Some(Self {
            kind,
            xid: u32::from_be_bytes(array(bytes, 4)?),
            mac: array(bytes, 28)?,
            address: ip(bytes, 16)?,
            options,
        })
    }

    fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.get(&code).map(Vec::as_slice)
    }

    /// An option that is one address, or the first of several.
    pub fn ip(&self, code: u8) -> Option<Ipv4Addr> {
        ip(self.option(code)?, 0)
    }

    /// An option that is a list of addresses.
    pub fn ips(&self, code: u8) -> Vec<Ipv4Addr> {
        let value = self.option(code).unwrap_or_default();
        let list = value.chunks_exact(4).filter_map(|chunk| ip(chunk, 0));
        list.take(MAX_LIST).collect()
    }

    /// An option that is a number of seconds.
    pub fn seconds(&self, code: u8) -> Option<u32> {
        array(self.option(code)?, 0).map(u32::from_be_bytes)
    }

    /// Option 26.
    pub fn mtu(&self) -> Option<u16> {
        array(self.option(option::MTU)?, 0).map(u16::from_be_bytes)
    }

    /// An option that is text; what isn't printable ASCII is dropped, for it ends in files that others parse.
    pub fn text(&self, code: u8) -> Option<String> {
        let value = self.option(code)?.iter().copied().map(char::from);
        let text: String = value.filter(char::is_ascii_graphic).collect();
        (!text.is_empty()).then_some(text)
    }

    /// The prefix length of the subnet.
    pub fn prefix_len(&self) -> Option<u8> {
        let mask = self.ip(option::MASK)?;
        ipnet::ipv4_mask_to_prefix(mask).ok()
    }

    /// Option 121 (RFC 3442): destinations and next hops; 0.0.0.0: on the link. `None` where one is wrong.
    pub fn classless_routes(&self) -> Option<Vec<(Ipv4Net, Ipv4Addr)>> {
        let mut rest = self.option(option::CLASSLESS_ROUTES)?;
        let mut routes = Vec::new();
        while let Some((length, behind)) = rest.split_first() {
            let (significant, behind) = behind.split_at_checked(usize::from(length.div_ceil(8)))?;
            let mut network = [0; 4];
            network
                .get_mut(..significant.len())?
                .copy_from_slice(significant);
            let net = Ipv4Net::new(network.into(), *length).ok()?;
            routes.push((net.trunc(), ip(behind, 0)?));
            rest = behind.get(4..)?;
            if routes.len() > MAX_LIST {
                return None;
            }
        }
        Some(routes)
    }

    /// Option 33: destinations by their class.
    pub fn static_routes(&self) -> Vec<(Ipv4Net, Ipv4Addr)> {
        let value = self.option(option::STATIC_ROUTES).unwrap_or_default();
        let routes = value.chunks_exact(8).filter_map(|pair| {
            let network = ip(pair, 0)?;
            let length = match network.octets()[0] {
                0..128 => 8,
                128..192 => 16,
                _ => 24,
            };
            Some((Ipv4Net::new(network, length).ok()?.trunc(), ip(pair, 4)?))
        });
        routes.take(MAX_LIST).collect()
    }

    /// Option 119 (RFC 3397): domain names, compressed as RFC 1035 §4.1.4 has it.
    pub fn search(&self) -> Vec<String> {
        let value = self.option(option::SEARCH).unwrap_or_default();
        let mut names = Vec::new();
        let mut at = 0;
        while at < value.len() && names.len() < MAX_LIST {
            let Some((name, next)) = read_name(value, at) else {
                break;
            };
            names.push(name);
            at = next;
        }
        names
    }
}

/// The name at `at`, and where the next one begins.
fn read_name(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut next = None;
    loop {
        let length = *bytes.get(at)?;
        match length {
            0 => {
                return (!name.is_empty()).then_some((name, next.unwrap_or(at + 1)));
            }
            1..=63 => {
                let label = bytes.get(at + 1..at + 1 + usize::from(length))?;
                if !label
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
                {
                    return None;
                }
                if !name.is_empty() {
                    name.push('.');
                }
                name.extend(label.iter().copied().map(char::from));
                at += 1 + usize::from(length);
                if name.len() > 253 {
                    return None;
                }
            }
            192.. => {
                let to = usize::from(u16::from_be_bytes(array(bytes, at)?) & 0x3fff);
                next.get_or_insert(at + 2);
                // only backwards: no circle
                if to >= at {
                    return None;
                }
                at = to;
            }
            _ => return None,
        }
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([
            pair.first().copied().unwrap_or(0),
            low,
        ]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The Ethernet frame of a message from a client.
pub fn frame(from: ([u8; 6], Ipv4Addr), to: ([u8; 6], Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    let udp_length = (payload.len() + 8) as u16;
    // RFC 768: the checksum also covers addresses, protocol and length
    let mut udp = Vec::from(from.1.octets());
    udp.extend(to.1.octets());
    udp.extend([0, UDP]);
    udp.extend(udp_length.to_be_bytes());
    let pseudo = udp.len();
    udp.extend(CLIENT_PORT.to_be_bytes());
    udp.extend(SERVER_PORT.to_be_bytes());
    udp.extend(udp_length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let sum = match checksum(&udp) {
        0 => 0xffff,
        sum => sum,
    };
    udp.splice(pseudo + 6..pseudo + 8, sum.to_be_bytes());

    let mut header = vec![0x45, 0];
    header.extend((udp_length + 20).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    header.extend(from.1.octets());
    header.extend(to.1.octets());
    let sum = checksum(&header);
    header.splice(10..12, sum.to_be_bytes());

    let mut frame = Vec::from(to.0);
    frame.extend(from.0);
    frame.extend(IPV4);
    frame.extend(header);
    frame.extend(udp.get(pseudo..).unwrap_or_default());
    frame
}

/// The message to a client in an Ethernet frame, and the link address that it comes from. The UDP checksum isn't looked
/// at: between interfaces of one kernel it is never filled in.
pub fn unframe(frame: &[u8]) -> Option<(Answer, [u8; 6])> {
    if array(frame, 12)? != IPV4 {
        return None;
    }
    let source = array(frame, 6)?;
    let packet = frame.get(ETHERNET..)?;
    let first = *packet.first()?;
    let header_length = usize::from(first & 15) * 4;
    let header = packet.get(..header_length)?;
    let total = usize::from(u16::from_be_bytes(array(packet, 2)?));
    let fragment = u16::from_be_bytes(array(packet, 6)?) & 0x3fff;
    if first >> 4 != 4
        || header_length < 20
        || checksum(header) != 0
        || fragment != 0
        || *packet.get(9)? != UDP
    {
        return None;
    }
    let udp = packet.get(header_length..total)?;
    let length = usize::from(u16::from_be_bytes(array(udp, 4)?));
    if u16::from_be_bytes(array(udp, 2)?) != CLIENT_PORT {
        return None;
    }
    Answer::read(udp.get(8..length)?).map(|answer| (answer, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's answer, by hand.
    fn answer(kind: u8, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[..3].copy_from_slice(&[2, 1, 6]);
        bytes[4..8].copy_from_slice(&[1, 2, 3, 4]);
        bytes[16..20].copy_from_slice(&[10, 0, 0, 7]);
        bytes[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        bytes[236..240].copy_from_slice(&COOKIE);
        bytes.extend([53, 1, kind]);
        bytes.extend(options);
        bytes
    }

    fn read(options: &[u8]) -> Answer {
        Answer::read(&answer(5, options)).unwrap()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn a_question() {
        let question = Question {
            kind: Kind::Request,
            xid: 0x0102_0304,
            secs: 3,
            mac: [2, 0, 0, 0, 0, 9],
            address: Some(ip("10.0.0.7")),
            broadcast: true,
            options: vec![(option::WANTED, &[1, 3]), (option::HOST_NAME, b"web")],
        };
        let bytes = question.to_bytes();
        assert_eq!(bytes.len(), SHORTEST);
        assert_eq!(
            bytes[..16],
            [1, 1, 6, 0, 1, 2, 3, 4, 0, 3, 0x80, 0, 10, 0, 0, 7]
        );
        assert_eq!(bytes[28..34], [2, 0, 0, 0, 0, 9]);
        assert_eq!(
            bytes[236..254],
            [
                99, 130, 83, 99, 53, 1, 3, 55, 2, 1, 3, 12, 3, b'w', b'e', b'b', 255, 0
            ]
        );
        assert_eq!(Answer::read(&bytes), None, "a question is no answer");
    }

    #[test]
    fn frames() {
        let (mac, server) = ([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]);
        let payload = answer(2, &[1, 4, 255, 255, 255, 0, 255]);
        let mut bytes = frame((server, ip("10.0.0.1")), (mac, ip("10.0.0.7")), &payload);
        assert_eq!(unframe(&bytes), None, "it is to a server");
        bytes[36..38].copy_from_slice(&CLIENT_PORT.to_be_bytes());
        let (found, from) = unframe(&bytes).unwrap();
        assert_eq!(
            (from, found.kind, found.address),
            (server, Kind::Offer, ip("10.0.0.7"))
        );
        assert_eq!((found.xid, found.mac), (0x0102_0304, mac));
        assert_eq!(found.prefix_len(), Some(24));
        // what the kernel's own sum over such a packet comes to
        let mut udp = bytes[26..34].to_vec();
        udp.extend([0, UDP, 0, (payload.len() + 8) as u8]);
        udp[10] = ((payload.len() + 8) >> 8) as u8;
        udp.extend(&bytes[34..]);
        udp[14..16].copy_from_slice(&SERVER_PORT.to_be_bytes());
        assert_eq!(checksum(&udp), 0);
        for (at, value) in [
            (12, 1),
            (14, 0x65),
            (14, 0x44),
            (20, 0x20),
            (23, 6),
            (24, 0),
            (38, 0),
        ] {
            let mut broken = bytes.clone();
            broken[at] = value;
            assert_eq!(unframe(&broken), None, "byte {at}");
        }
    }

    #[test]
    fn options() {
        let found = read(&[
            3, 4, 10, 0, 0, 1, 6, 8, 10, 0, 0, 2, 10, 0, 0, 3, 26, 2, 5, 0x78, 51, 4, 0, 0, 14, 16,
            15, 4, b'a', b'.', b'b', 0, 255, 1, 4, 255, 0, 0, 0,
        ]);
        assert_eq!(found.ip(option::ROUTER), Some(ip("10.0.0.1")));
        assert_eq!(found.ips(option::DNS), [ip("10.0.0.2"), ip("10.0.0.3")]);
        assert_eq!(found.mtu(), Some(1400));
        assert_eq!(found.seconds(option::LEASE_TIME), Some(3600));
        assert_eq!(found.text(option::DOMAIN).as_deref(), Some("a.b"));
        assert_eq!(found.prefix_len(), None, "behind the end");
        // in parts, and in the fields for names
        let mut bytes = answer(5, &[52, 1, 3, 12, 1, b'x', 12, 1, b'y', 255]);
        bytes[108..112].copy_from_slice(&[12, 1, b'z', 255]);
        bytes[44..48].copy_from_slice(&[12, 1, b'!', 255]);
        let found = Answer::read(&bytes).unwrap();
        assert_eq!(found.text(option::HOST_NAME).as_deref(), Some("xyz!"));
    }

    #[test]
    fn routes() {
        let found = read(&[
            121, 21, 0, 10, 0, 0, 1, 8, 10, 0, 0, 0, 0, 25, 10, 1, 2, 129, 10, 0, 0, 9, 0,
        ]);
        assert_eq!(found.classless_routes(), None, "21 bytes are too many");
        let found = read(&[
            121, 19, 0, 10, 0, 0, 1, 8, 10, 0, 0, 0, 0, 25, 10, 1, 2, 129, 10, 0, 0, 9, 255, 255,
        ]);
        assert_eq!(found.classless_routes(), None, "the last hop is cut");
        let found = read(&[
            121, 19, 0, 10, 0, 0, 1, 8, 10, 0, 0, 0, 0, 25, 10, 1, 2, 129, 10, 0, 0, 255,
        ]);
        assert_eq!(found.classless_routes(), None, "cut");
        let found = read(&[
            121, 20, 0, 10, 0, 0, 1, 8, 10, 0, 0, 0, 0, 25, 10, 1, 2, 129, 10, 0, 0, 9, 255,
        ]);
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        assert_eq!(
            found.classless_routes().unwrap(),
            [
                (net("0.0.0.0/0"), ip("10.0.0.1")),
                (net("10.0.0.0/8"), ip("0.0.0.0")),
                (net("10.1.2.128/25"), ip("10.0.0.9")),
            ]
        );
        let found = read(&[33, 9, 10, 9, 0, 0, 10, 0, 0, 1, 7, 255]);
        assert_eq!(found.static_routes(), [(net("10.0.0.0/8"), ip("10.0.0.1"))]);
        assert_eq!(found.classless_routes(), None);
    }

    #[test]
    fn names() {
        // "eng.apple.com", then "marketing" and a pointer to "apple.com" (RFC 3397 §2)
        let mut value = b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04".to_vec();
        let of = |value: &[u8]| {
            let mut options = vec![119, value.len() as u8];
            options.extend(value);
            read(&options).search()
        };
        assert_eq!(of(&value), ["eng.apple.com", "marketing.apple.com"]);
        value.extend([0xc0, 27]);
        assert_eq!(of(&value).len(), 2, "a circle");
        assert_eq!(of(b"\x03a b\x00"), [""; 0]);
        assert_eq!(of(&[63]), [""; 0]);
    }

    /// Any bytes at all, and good ones with some changed: nothing panics, everything ends.
    #[test]
    fn noise() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let good = answer(
            5,
            b"\x34\x01\x03\x79\x05\x08\x0a\x0a\x00\x00\x01\x77\x08\x03eng\x00\xc0\x00\x21\x08\x0a\x00\x00\x00\x0a\x00\x00\x01\xff",
        );
        let mac = [2; 6];
        let mut whole = frame((mac, ip("1.2.3.4")), (mac, ip("1.2.3.5")), &good);
        whole[36..38].copy_from_slice(&CLIENT_PORT.to_be_bytes());
        for round in 0..20_000 {
            let mut bytes = if round % 4 == 0 {
                (0..random() % 400).map(|_| random() as u8).collect()
            } else {
                whole.clone()
            };
            for _ in 0..random() % 6 {
                let at = random() as usize % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random() as u8;
                }
            }
            bytes.truncate(random() as usize % (whole.len() + 20));
            let body = bytes.get(42..).unwrap_or_default();
            let read = unframe(&bytes).map(|(answer, _)| answer);
            for answer in read.into_iter().chain(Answer::read(body)) {
                for code in 0..=255 {
                    let _ = (answer.ip(code), answer.ips(code), answer.seconds(code));
                    let _ = answer.text(code);
                }
                let _ = (
                    answer.classless_routes(),
                    answer.static_routes(),
                    answer.search(),
                );
                let _ = (answer.mtu(), answer.prefix_len());
            }
        }
    }
}
