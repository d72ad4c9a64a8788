//! What a container may send as: rules in a table of the bridge family, for each frame that enters by its port.
//!
//! *Invariants*: a rule's comment is its attachment's tag; the table exists as long as it has a rule. Rules come before
//! the container's end is up and go with the port. Callers hold the host lock.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::error::{CniError, Result};
use crate::netns::HostLock;
use crate::nft::{Batch, Chain, Expr, Family, Header, Nft, PREROUTING, Rule, Table};

const CHAIN: &str = "prerouting";
/// Before everything that others do with frames.
const TABLE: Table = Table {
    family: Family::Bridge,
    name: Cow::Borrowed("sampan_spoof"),
    chains: &[Chain::base(CHAIN, "filter", PREROUTING, -300)],
};

/// ETH_P_ARP, ETH_P_IPV6.
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// Offsets in an Ethernet header, an ARP packet for IPv4 (RFC 826) and an IPv6 header with ICMPv6 (RFC 4861 §4.4).
const ETHER_SOURCE: u32 = 6;
const ARP_SENDER_MAC: u32 = 8;
const ARP_SENDER_IP: u32 = 14;
const IPV6_SOURCE: u32 = 8;
const ND_TARGET: u32 = 8;
/// ICMPv6 types (RFC 4861): a router's advertisement, a neighbour's, a redirect.
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// What to check of what a container sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// Its port of the bridge.
    pub port: String,
    /// The link address that it must use.
    pub mac: [u8; 6],
    /// The addresses that it must use; `None`: any.
    pub ips: Option<Vec<IpAddr>>,
}

/// The link-local address that follows from a link address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
}

fn rules(tag: &str, sender: &Sender) -> Vec<Rule> {
    let rule = |exprs: Vec<Expr>| Rule {
        chain: CHAIN.into(),
        exprs: std::iter::once(Expr::InputInterface(true, sender.port.clone()))
            .chain(exprs)
            .collect(),
        comment: tag.to_owned(),
    };
    let mac = sender.mac.to_vec();
    let differs = Expr::Bytes(false, Header::Link, ETHER_SOURCE, mac.clone());
    let mut rules = vec![rule(vec![differs, Expr::Drop])];
    let Some(ips) = &sender.ips else {
        return rules;
    };
    let of_arp = |exprs: Vec<Expr>| {
        let mut all = vec![Expr::EtherType(ARP)];
        all.extend(exprs);
        rule(all)
    };
    let other_sender = Expr::Bytes(false, Header::Network, ARP_SENDER_MAC, mac);
    rules.push(of_arp(vec![other_sender, Expr::Drop]));
    let (v4, v6): (Vec<_>, Vec<_>) = ips.iter().copied().partition(IpAddr::is_ipv4);
    for ip in v4 {
        if let IpAddr::V4(ip) = ip {
            let sender = Expr::Bytes(true, Header::Network, ARP_SENDER_IP, ip.octets().to_vec());
            rules.push(of_arp(vec![sender, Expr::Accept]));
        }
        rules.push(rule(vec![
            Expr::Source(true, IpNet::from(ip)),
            Expr::Accept,
        ]));
    }
    let own: Vec<Ipv6Addr> = v6
        .iter()
        .filter_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        })
        .chain([link_local(sender.mac)])
        .collect();
    // routers are others; whoever solicits or advertises may do so for its own addresses only
    for kind in [ROUTER_ADVERTISEMENT, REDIRECT] {
        rules.push(rule(vec![
            Expr::EtherType(IPV6),
            Expr::Icmpv6Types(kind, kind),
            Expr::Drop,
        ]));
    }
    let others: Vec<Expr> = own
        .iter()
        .map(|ip| Expr::Bytes(false, Header::Transport, ND_TARGET, ip.octets().to_vec()))
        .collect();
    let not_own = |kind: u8, more: Vec<Expr>| {
        let mut all = vec![Expr::EtherType(IPV6), Expr::Icmpv6Types(kind, kind)];
        all.extend(more);
        all.extend(others.clone());
        all.push(Expr::Drop);
        rule(all)
    };
    rules.push(not_own(NEIGHBOUR_ADVERTISEMENT, Vec::new()));
    // duplicate detection asks without an address (RFC 4862 §5.4.2), multicast listeners report so (RFC 3590)
    let unspecified = || {
        Expr::Bytes(
            true,
            Header::Network,
            IPV6_SOURCE,
            Ipv6Addr::UNSPECIFIED.octets().to_vec(),
        )
    };
    rules.push(not_own(NEIGHBOUR_SOLICITATION, vec![unspecified()]));
    for (first, last) in [
        (NEIGHBOUR_SOLICITATION, NEIGHBOUR_SOLICITATION),
        (131, 132),
        (143, 143),
    ] {
        rules.push(rule(vec![
            Expr::EtherType(IPV6),
            unspecified(),
            Expr::Icmpv6Types(first, last),
            Expr::Accept,
        ]));
    }
    for ip in own {
        rules.push(rule(vec![
            Expr::Source(true, IpNet::from(IpAddr::from(ip))),
            Expr::Accept,
        ]));
    }
    // nobody else's addresses, and no other protocol
    rules.push(rule(vec![Expr::Drop]));
    rules
}

/// Adds the rules of an attachment, in place of any it has.
pub fn add(tag: &str, sender: &Sender, _lock: &HostLock) -> Result<()> {
    let mut nft = Nft::open()?;
    let mut batch = Batch::default();
    batch.table(&TABLE);
    for old in nft.rules(&TABLE)?.iter().filter(|rule| rule.comment == tag) {
        batch.delete(&TABLE, old);
    }
    for rule in rules(tag, sender) {
        batch.rule(&TABLE, &rule);
    }
    nft.apply(batch)
}

/// Removes the rules whose comment isn't wanted, and the table after its last rule.
pub fn retain(wanted: impl Fn(&str) -> bool, _lock: &HostLock) -> Result<()> {
    Nft::open()?.retain(&TABLE, wanted)
}

/// Whether the rules are there.
pub fn check(tag: &str, sender: &Sender) -> Result<()> {
    let found = Nft::open()?
        .rules(&TABLE)?
        .iter()
        .filter(|rule| rule.comment == tag)
        .count();
    let wanted = rules(tag, sender).len();
    if found == wanted {
        return Ok(());
    }
    Err(CniError::check(format!(
        "{found} of {wanted} rules against spoofing are in the nftables table {TABLE}"
    )))
}
