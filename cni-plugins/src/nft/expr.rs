//! The steps of a rule and their encoding: pure.
//!
//! *Invariants*: a step that looks at an address first makes sure of the packet's family, in every family of tables.
//! Attribute numbers are those of each expression's `enum nft_*_attributes` (`linux/netfilter/nf_tables.h`).

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Family, NFPROTO_IPV4, NFPROTO_IPV6, Name};
use crate::netfilter::Encoder;

/// The first four numbers of NFT_REG_*: verdict, then 16 bytes each.
const VALUE: u32 = 1;
const SECOND: u32 = 2;
/// NFT_REG32_04: 16 bytes behind the beginning of VALUE.
const BEHIND_NAME: u32 = 12;
/// `enum nft_meta_keys`.
const META_PROTOCOL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_IIFTYPE: u32 = 8;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `enum nft_ct_keys`.
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
/// IFNAMSIZ.
const INTERFACE_NAME: usize = 16;
const ICMPV6: u8 = 58;

/// `ct state established`, a bit of [`Expr::State`].
pub const ESTABLISHED: u32 = 1 << 1;
/// `ct state related`.
pub const RELATED: u32 = 1 << 2;

/// Which header a byte is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Of the link: the Ethernet header.
    Link = 0,
    /// Of IP or ARP.
    Network = 1,
    /// Of TCP, UDP, ICMP, …
    Transport = 2,
}

/// Which address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Of the sender.
    Source,
    /// Of the receiver.
    Destination,
}

/// One step of a rule; the names are nft(8)'s. A `bool` tells `==` (true) from `!=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// IPv4 (true) or IPv6: `meta nfproto` in the family inet, `meta protocol` in bridge.
    Family(bool),
    /// `meta protocol N`: the type of an Ethernet frame; family bridge.
    EtherType(u16),
    /// `meta l4proto N`.
    Protocol(u8),
    /// `iifname [!=] NAME`.
    InputInterface(bool, String),
    /// `oifname [!=] NAME`.
    OutputInterface(bool, String),
    /// `meta iiftype != loopback`.
    NotFromLoopback,
    /// `@HEADER,OFFSET,LENGTH [!=] BYTES`; the offset counts bytes.
    Bytes(bool, Header, u32, Vec<u8>),
    /// `ip saddr [!=] NET`.
    Source(bool, IpNet),
    /// `ip daddr [!=] NET`.
    Destination(bool, IpNet),
    /// `ip saddr [!=] @SET`; IPv4 is true.
    Lookup(bool, Field, bool, Name),
    /// `iifname [!=] @SET`.
    LookupInterface(bool, Name),
    /// `iifname . ip saddr [!=] @SET`; IPv4 is true.
    LookupSender(bool, bool, Name),
    /// `th dport N`.
    DestinationPort(u16),
    /// `th dport N-M`.
    DestinationPorts(u16, u16),
    /// `icmpv6 type N-M`.
    Icmpv6Types(u8, u8),
    /// `fib daddr type local`.
    LocalDestination,
    /// `ct state`: any of these bits.
    State(u32),
    /// The same, or `ct status dnat`, as the match of xtables: iptables(8) doesn't read tables that hold nftables' own.
    XtablesState(u32),
    /// `ct direction reply`.
    Reply,
    /// `ct status dnat`.
    Dnatted,
    /// `jump CHAIN`.
    Jump(Name),
    /// `return`.
    Return,
    /// `accept`.
    Accept,
    /// `drop`.
    Drop,
    /// `masquerade`.
    Masquerade,
    /// `dnat to ADDRESS:PORT`.
    Dnat(IpAddr, u16),
}

impl Encoder {
    fn expr(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        // NFTA_LIST_ELEM { NFTA_EXPR_NAME, NFTA_EXPR_DATA }
        self.nest(1, |list| {
            list.text(1, name);
            list.nest(2, fill);
        });
    }

    /// `meta`, `ct`: load `key` into the register.
    fn load(&mut self, name: &str, key: u32) {
        self.expr(name, |e| {
            e.number(1, VALUE);
            e.number(2, key);
        });
    }

    fn payload(&mut self, base: Header, offset: u32, length: usize) {
        self.payload_to(VALUE, base, offset, length);
    }

    fn payload_to(&mut self, register: u32, base: Header, offset: u32, length: usize) {
        self.expr("payload", |e| {
            e.number(1, register);
            e.number(2, base as u32);
            e.number(3, offset);
            e.number(4, length as u32);
        });
    }

    fn cmp(&mut self, equal: bool, data: &[u8]) {
        self.expr("cmp", |e| {
            e.number(1, VALUE);
            e.number(2, u32::from(!equal));
            e.nest(3, |value| value.attr(1, data));
        });
    }

    fn range(&mut self, from: &[u8], to: &[u8]) {
        self.expr("range", |e| {
            e.number(1, VALUE);
            e.number(2, 0);
            e.nest(3, |value| value.attr(1, from));
            e.nest(4, |value| value.attr(1, to));
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.expr("bitwise", |e| {
            e.number(1, VALUE);
            e.number(2, VALUE);
            e.number(3, mask.len() as u32);
            e.nest(4, |value| value.attr(1, mask));
            e.nest(5, |value| value.attr(1, &vec![0; mask.len()]));
        });
    }

    fn immediate(&mut self, register: u32, data: &[u8]) {
        self.expr("immediate", |e| {
            e.number(1, register);
            e.nest(2, |value| value.attr(1, data));
        });
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.expr("immediate", |e| {
            e.number(1, 0);
            e.nest(2, |data| {
                data.nest(2, |verdict| {
                    verdict.number(1, code as u32);
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        });
    }

    /// The packet is of this family of IP.
    fn is_ip(&mut self, family: Family, v4: bool) {
        match family {
            Family::Ip | Family::Ip6 => {}
            Family::Inet => {
                self.load("meta", META_NFPROTO);
                self.cmp(true, &[if v4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 }]);
            }
            Family::Bridge => self.ether_type(if v4 { 0x0800 } else { 0x86dd }),
        }
    }

    fn ether_type(&mut self, number: u16) {
        self.load("meta", META_PROTOCOL);
        self.cmp(true, &number.to_be_bytes());
    }

    fn protocol(&mut self, number: u8) {
        self.load("meta", META_L4PROTO);
        self.cmp(true, &[number]);
    }

    fn interface(&mut self, key: u32, equal: bool, name: &str) {
        self.load("meta", key);
        self.cmp(equal, &name_bytes(name));
    }

    fn address(&mut self, family: Family, field: Field, v4: bool) {
        self.is_ip(family, v4);
        let (offset, length) = place(field, v4);
        self.payload(Header::Network, offset, length);
    }

    fn lookup(&mut self, equal: bool, set: &str) {
        self.expr("lookup", |e| {
            e.text(1, set);
            e.number(2, VALUE);
            // NFT_LOOKUP_F_INV
            e.number(5, u32::from(!equal));
        });
    }

    fn network(&mut self, family: Family, field: Field, equal: bool, net: &IpNet) {
        self.address(family, field, net.addr().is_ipv4());
        if net.prefix_len() < net.max_prefix_len() {
            self.mask(&octets(net.netmask()));
        }
        self.cmp(equal, &octets(net.network()));
    }

    /// Appends a step of a rule in a table of `family`.
    pub(super) fn step(&mut self, family: Family, step: &Expr) {
        match step {
            Expr::Family(v4) => self.is_ip(family, *v4),
            Expr::EtherType(number) => self.ether_type(*number),
            Expr::Protocol(number) => self.protocol(*number),
            Expr::InputInterface(equal, name) => self.interface(META_IIFNAME, *equal, name),
            Expr::OutputInterface(equal, name) => self.interface(META_OIFNAME, *equal, name),
            Expr::NotFromLoopback => {
                self.load("meta", META_IIFTYPE);
                // ARPHRD_LOOPBACK
                self.cmp(false, &772u16.to_ne_bytes());
            }
            Expr::Bytes(equal, base, offset, data) => {
                self.payload(*base, *offset, data.len());
                self.cmp(*equal, data);
            }
            Expr::Source(equal, net) => self.network(family, Field::Source, *equal, net),
            Expr::Destination(equal, net) => self.network(family, Field::Destination, *equal, net),
            Expr::Lookup(equal, field, v4, set) => {
                self.address(family, *field, *v4);
                self.lookup(*equal, set);
            }
            Expr::LookupInterface(equal, set) => {
                self.load("meta", META_IIFNAME);
                self.lookup(*equal, set);
            }
            Expr::LookupSender(equal, v4, set) => {
                self.is_ip(family, *v4);
                self.load("meta", META_IIFNAME);
                let (offset, length) = place(Field::Source, *v4);
                self.payload_to(BEHIND_NAME, Header::Network, offset, length);
                self.lookup(*equal, set);
            }
            Expr::DestinationPort(port) => {
                self.payload(Header::Transport, 2, 2);
                self.cmp(true, &port.to_be_bytes());
            }
            Expr::DestinationPorts(from, to) => {
                self.payload(Header::Transport, 2, 2);
                self.range(&from.to_be_bytes(), &to.to_be_bytes());
            }
            Expr::Icmpv6Types(from, to) => {
                self.protocol(ICMPV6);
                self.payload(Header::Transport, 0, 1);
                self.range(&[*from], &[*to]);
            }
            Expr::LocalDestination => {
                // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR
                self.expr("fib", |e| {
                    e.number(1, VALUE);
                    e.number(2, 3);
                    e.number(3, 2);
                });
                // RTN_LOCAL
                self.cmp(true, &2u32.to_ne_bytes());
            }
            Expr::State(bits) => {
                self.load("ct", CT_STATE);
                self.mask(&bits.to_ne_bytes());
                self.cmp(false, &0u32.to_ne_bytes());
            }
            Expr::XtablesState(bits) => self.expr("match", |e| {
                e.text(1, "conntrack");
                e.number(2, 3);
                e.attr(3, &conntrack_match(*bits));
            }),
            Expr::Reply => {
                self.load("ct", CT_DIRECTION);
                // IP_CT_DIR_REPLY
                self.cmp(true, &[1]);
            }
            Expr::Dnatted => {
                self.load("ct", CT_STATUS);
                // IPS_DST_NAT
                self.mask(&0x20u32.to_ne_bytes());
                self.cmp(false, &0u32.to_ne_bytes());
            }
            Expr::Jump(chain) => self.verdict(-3, Some(chain)),
            Expr::Return => self.verdict(-5, None),
            Expr::Accept => self.verdict(1, None),
            Expr::Drop => self.verdict(0, None),
            Expr::Masquerade => self.expr("masq", |_| {}),
            Expr::Dnat(address, port) => {
                self.immediate(VALUE, &octets(*address));
                self.immediate(SECOND, &port.to_be_bytes());
                let family = if address.is_ipv4() {
                    NFPROTO_IPV4
                } else {
                    NFPROTO_IPV6
                };
                self.expr("nat", |e| {
                    e.number(1, 1);
                    e.number(2, u32::from(family));
                    e.number(3, VALUE);
                    e.number(5, SECOND);
                });
            }
        }
    }
}

/// `struct xt_conntrack_mtinfo3` of `linux/netfilter/xt_conntrack.h`.
fn conntrack_match(state: u32) -> [u8; 164] {
    // XT_CONNTRACK_STATE in match_flags; XT_CONNTRACK_STATE_DNAT beside the bits that both have in common
    let (flags, state) = (1u16.to_ne_bytes(), (state as u16 | 1 << 7).to_ne_bytes());
    let mut info = [0; 164];
    info[146..148].copy_from_slice(&flags);
    info[150..152].copy_from_slice(&state);
    info
}

/// Offset and length of an address in its header.
fn place(field: Field, v4: bool) -> (u32, usize) {
    match (field, v4) {
        (Field::Source, true) => (12, 4),
        (Field::Destination, true) => (16, 4),
        (Field::Source, false) => (8, 16),
        (Field::Destination, false) => (24, 16),
    }
}

/// An interface's name as the kernel compares it.
pub(super) fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(INTERFACE_NAME, 0);
    bytes
}

/// An address as the kernel compares it.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
