//! Address ranges of a generated network, as host-local has them.
//!
//! *Invariants:* pure; ranges lie within their subnet and leave out its network and broadcast addresses, the gateway's
//! and `aux_addresses`; what can't be is refused with the key.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::Error;
use super::generate::{overlap, refuse};
use crate::compose::project::{IpamPool, Network};

/// Part of a subnet that addresses are taken from, as host-local has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub subnet: IpNet,
    pub gateway: IpAddr,
    pub first: Option<IpAddr>,
    pub last: Option<IpAddr>,
}

impl Range {
    /// As an entry of host-local's `ranges`.
    pub fn to_json(self) -> Value {
        let mut range = json!({"subnet": self.subnet, "gateway": self.gateway});
        if let (Some(first), Some(last), Some(range)) =
            (self.first, self.last, range.as_object_mut())
        {
            range.insert("rangeStart".into(), json!(first));
            range.insert("rangeEnd".into(), json!(last));
        }
        range
    }

    /// What is left of it when an address is another host's.
    fn without(self, address: IpAddr) -> Vec<Range> {
        let first = self.first.unwrap_or(next(self.subnet.network()));
        let last = self.last.unwrap_or(match self.subnet.broadcast() {
            last @ IpAddr::V4(_) => previous(last),
            last => last,
        });
        if !self.subnet.contains(&address) || address < first || last < address {
            return vec![self];
        }
        let part = |first: IpAddr, last: IpAddr| Range {
            first: Some(first),
            last: Some(last),
            ..self
        };
        let mut left = Vec::new();
        if first < address {
            left.push(part(first, previous(address)));
        }
        if address < last {
            left.push(part(next(address), last));
        }
        left
    }
}

/// Every range of the network, checked: `ipam`'s, then those of the families that it lacks.
pub(super) fn ranges(network: &Network, subnets: &[IpNet]) -> Result<Vec<Range>, Error> {
    let mut ranges = Vec::new();
    for (i, pool) in network.ipam.iter().enumerate() {
        let key = |key: &str| format!("ipam.config[{i}].{key}");
        let wanted = match pool.subnet.addr() {
            IpAddr::V4(_) => ("enable_ipv4", network.enable_ipv4),
            // a subnet is as good as the word
            IpAddr::V6(_) => ("enable_ipv6", true),
        };
        if let (off, false) = wanted {
            let why = format!("{} does not go together with {off}: false", pool.subnet);
            return Err(refuse(network, &key("subnet"), &why));
        }
        let range = range(pool).map_err(|(of, why)| refuse(network, &key(of), &why))?;
        ranges.push(range);
    }
    for is_v4 in [true, false] {
        let family = |net: &IpNet| net.addr().is_ipv4() == is_v4;
        if ranges.iter().any(|r| family(&r.subnet)) || is_v4 && !network.enable_ipv4 {
            continue;
        }
        let chosen = subnets.iter().filter(|net| family(net));
        let before = ranges.len();
        for subnet in chosen {
            let pool = IpamPool {
                subnet: *subnet,
                ip_range: None,
                gateway: None,
                aux_addresses: Default::default(),
            };
            ranges.push(range(&pool).map_err(|(key, why)| refuse(network, key, &why))?);
        }
        if ranges.len() == before && !is_v4 && network.enable_ipv6 {
            return Err(refuse(
                network,
                "enable_ipv6",
                "no IPv6 subnet; give one in `ipam`",
            ));
        }
    }
    for (i, one) in ranges.iter().enumerate() {
        for other in ranges.iter().skip(i + 1) {
            if overlap(&one.subnet, &other.subnet) {
                let why = format!("{} and {} overlap", one.subnet, other.subnet);
                return Err(refuse(network, "ipam.config", &why));
            }
        }
    }
    let others = network.ipam.iter().flat_map(|p| p.aux_addresses.values());
    for address in others {
        ranges = ranges
            .into_iter()
            .flat_map(|r| r.without(*address))
            .collect();
    }
    fixed_addresses(network, &mut ranges)?;
    Ok(ranges)
}

/// One pool; the error is the key and what is wrong with it.
pub(super) fn range(pool: &IpamPool) -> Result<Range, (&'static str, String)> {
    let subnet = pool.subnet.trunc();
    // network, gateway, one container, broadcast
    if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
        return Err(("subnet", format!("{subnet} is too small")));
    }
    let gateway = pool.gateway.unwrap_or(next(subnet.network()));
    if !subnet.contains(&gateway) || gateway == subnet.network() {
        let why = format!("{gateway} is no address of a host in {subnet}");
        return Err(("gateway", why));
    }
    let mut range = Range {
        subnet,
        gateway,
        first: None,
        last: None,
    };
    if let Some(part) = pool.ip_range {
        if !subnet.contains(&part.trunc()) {
            return Err(("ip_range", format!("{part} is not within {subnet}")));
        }
        let (first, last) = (part.network(), part.broadcast());
        range.first = Some(if first == subnet.network() {
            next(first)
        } else {
            first
        });
        let whole_end = last == subnet.broadcast() && last.is_ipv4();
        range.last = Some(if whole_end { previous(last) } else { last });
        if range.first > range.last {
            return Err(("ip_range", format!("{part} holds no address for a host")));
        }
    }
    Ok(range)
}

/// Fixed addresses must be in a subnet; outside `ip_range`, which only bounds what is chosen freely, each has a range
/// of its own.
fn fixed_addresses(network: &Network, ranges: &mut Vec<Range>) -> Result<(), Error> {
    let attachment = &network.attachment;
    let fixed = [
        ("ipv4_address", attachment.ipv4_address.map(IpAddr::from)),
        ("ipv6_address", attachment.ipv6_address.map(IpAddr::from)),
    ];
    for (key, address) in fixed {
        let Some(address) = address else { continue };
        let Some(range) = ranges.iter().find(|r| r.subnet.contains(&address)).copied() else {
            let why = format!("{address} is in no subnet of the network");
            return Err(refuse(network, key, &why));
        };
        let subnet = range.subnet;
        let broadcast = address.is_ipv4() && address == subnet.broadcast();
        if address == range.gateway || address == subnet.network() || broadcast {
            let why = format!("{address} is the gateway's, the network's or the broadcast address");
            return Err(refuse(network, key, &why));
        }
        let reachable = ranges.iter().any(|r| {
            r.subnet == subnet
                && r.first.is_none_or(|first| first <= address)
                && r.last.is_none_or(|last| address <= last)
        });
        if !reachable {
            ranges.push(Range {
                first: Some(address),
                last: Some(address),
                ..range
            });
        }
    }
    Ok(())
}

fn next(address: IpAddr) -> IpAddr {
    step(address, 1)
}

fn previous(address: IpAddr) -> IpAddr {
    step(address, -1)
}

/// Callers stay within a subnet of more than two addresses.
fn step(address: IpAddr, by: i32) -> IpAddr {
    match address {
        IpAddr::V4(a) => Ipv4Addr::from(u32::from(a).wrapping_add_signed(by)).into(),
        IpAddr::V6(a) => Ipv6Addr::from(u128::from(a).wrapping_add_signed(by.into())).into(),
    }
}
