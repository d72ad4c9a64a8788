//! Which addresses a network may give: pure arithmetic.
//!
//! *Invariants*: a [`Range`] lies inside its subnet, start before end; the ranges of a set are of one family; no two
//! ranges overlap. Addresses of both families are counted as `u128`, never across families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::Deserialize;

use crate::error::{CniError, Result};

/// A range as configured.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireRange {
    #[serde(default)]
    pub subnet: Option<IpNet>,
    #[serde(default)]
    range_start: Option<IpAddr>,
    #[serde(default)]
    range_end: Option<IpAddr>,
    #[serde(default)]
    gateway: Option<IpAddr>,
    /// The part of `subnet` that belongs to this host.
    #[serde(default)]
    slice: Option<WireSlice>,
    /// Never given to anybody.
    #[serde(default)]
    exclude: Vec<String>,
    /// Given only to who asks for it.
    #[serde(default)]
    reserved: Vec<String>,
}

/// The subnet number `node` of those with `bits` as their prefix length.
#[derive(Debug, Deserialize)]
struct WireSlice {
    bits: u8,
    node: NodeNumber,
}

/// A number, or the text that a variable was replaced in.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum NodeNumber {
    Number(u64),
    Text(String),
}

/// Addresses from `start` to `end`, both included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    start: IpAddr,
    end: IpAddr,
    /// Never given to a container.
    pub gateway: Option<IpAddr>,
    exclude: Vec<Span>,
    reserved: Vec<Span>,
}

/// Numbers of addresses, both ends included.
type Span = RangeInclusive<u128>;

/// Ranges of which one address is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        // numbers of IPv4 come from u32 and stay inside their subnet
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

impl Range {
    fn new(wire: &WireRange) -> Result<Self> {
        let subnet = wire
            .subnet
            .ok_or_else(|| CniError::config("subnet is missing"))?;
        let subnet = match &wire.slice {
            Some(slice) => slice.of(subnet)?,
            None => subnet,
        };
        // /31 and /32 hold no network, gateway and host
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(CniError::config(format!(
                "Network {subnet} too small to allocate from"
            )));
        }
        if subnet != subnet.trunc() {
            return Err(CniError::config(format!(
                "Network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.prefix_len(),
                subnet.network()
            )));
        }
        let network = subnet.network();
        let first = address(number(network) + 1, network);
        let last = match subnet {
            IpNet::V4(_) => address(number(subnet.broadcast()) - 1, network),
            IpNet::V6(_) => subnet.broadcast(),
        };
        let range = Self {
            subnet,
            start: wire.range_start.unwrap_or(first),
            end: wire.range_end.unwrap_or(last),
            gateway: Some(wire.gateway.unwrap_or(first)),
            exclude: spans("exclude", &wire.exclude, subnet)?,
            reserved: spans("reserved", &wire.reserved, subnet)?,
        };
        for (key, ip) in [("RangeStart", range.start), ("RangeEnd", range.end)] {
            if !subnet.contains(&ip) {
                return Err(CniError::config(format!(
                    "{key} {ip} not in network {subnet}"
                )));
            }
        }
        if number(range.start) > number(range.end) {
            return Err(CniError::config(format!(
                "RangeStart {} is after RangeEnd {}",
                range.start, range.end
            )));
        }
        if range
            .gateway
            .is_some_and(|gateway| gateway.is_ipv4() != range.start.is_ipv4())
        {
            return Err(CniError::config(format!(
                "gateway of network {subnet} is of the other address family"
            )));
        }
        Ok(range)
    }

    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4()
            && (number(self.start)..=number(self.end)).contains(&number(ip))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }

    /// `ip` with the subnet's prefix length.
    pub fn with_prefix(&self, ip: IpAddr) -> IpNet {
        IpNet::new(ip, self.subnet.prefix_len()).unwrap_or_else(|_| ip.into())
    }

    /// Why `ip` is given to nobody.
    pub fn refuses(&self, ip: IpAddr) -> Option<&'static str> {
        if self.gateway == Some(ip) {
            return Some("subnet's gateway");
        }
        let excluded = self.exclude.iter().any(|span| span.contains(&number(ip)));
        excluded.then_some("excluded")
    }

    /// What is given to who has no wish, in order. Whole spans that are kept back are skipped at once.
    fn addresses(&self, from: u128) -> impl Iterator<Item = IpAddr> {
        let mut next = Some(from);
        std::iter::from_fn(move || {
            loop {
                let at = next.filter(|at| *at <= number(self.end))?;
                let kept = self.exclude.iter().chain(&self.reserved);
                let skip = kept.filter(|span| span.contains(&at)).map(|s| *s.end());
                let ip = address(at, self.start);
                match skip.max() {
                    Some(end) => next = end.checked_add(1),
                    None => {
                        next = at.checked_add(1);
                        if Some(ip) != self.gateway {
                            return Some(ip);
                        }
                    }
                }
            }
        })
    }
}

impl WireSlice {
    fn of(&self, subnet: IpNet) -> Result<IpNet> {
        let wrong = |why: String| CniError::config(format!("slice of {subnet}: {why}"));
        let node = match &self.node {
            NodeNumber::Number(number) => *number,
            NodeNumber::Text(text) => text
                .parse()
                .map_err(|_| wrong(format!("node {text:?} is no number")))?,
        };
        if !(subnet.prefix_len()..=subnet.max_prefix_len()).contains(&self.bits) {
            return Err(wrong(format!(
                "bits {} is no prefix length in it",
                self.bits
            )));
        }
        let rest = u32::from(subnet.max_prefix_len() - self.bits);
        let count = u32::from(self.bits - subnet.prefix_len());
        if u128::from(node).checked_shr(count).unwrap_or(0) != 0 {
            return Err(wrong(format!(
                "it has no subnet number {node} of {} bits",
                self.bits
            )));
        }
        let offset = u128::from(node).checked_shl(rest).unwrap_or(0);
        let network = address(number(subnet.network()) + offset, subnet.network());
        IpNet::new(network, self.bits).map_err(|cause| wrong(cause.to_string()))
    }
}

/// Addresses, subnets and `first-last`, all inside `subnet`.
fn spans(key: &str, list: &[String], subnet: IpNet) -> Result<Vec<Span>> {
    let parse = |text: &str| -> Option<Span> {
        let (first, last) = if let Some((first, last)) = text.split_once('-') {
            (first.trim().parse().ok()?, last.trim().parse().ok()?)
        } else if let Ok(ip) = text.parse::<IpAddr>() {
            (ip, ip)
        } else {
            let net: IpNet = text.parse().ok()?;
            (net.network(), net.broadcast())
        };
        let inside = subnet.contains(&first) && subnet.contains(&last);
        let span = number(first)..=number(last);
        (inside && !span.is_empty()).then_some(span)
    };
    list.iter()
        .map(|text| {
            parse(text).ok_or_else(|| {
                CniError::config(format!(
                    "{key} {text:?} is no address, subnet or first-last in network {subnet}"
                ))
            })
        })
        .collect()
}

impl fmt::Display for RangeSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(out, "{comma}{}-{}", range.start, range.end)?;
        }
        Ok(())
    }
}

impl RangeSet {
    /// The range that holds `ip`.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Every address once, in order, beginning after `last`; from the start when `last` isn't of this set.
    pub fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let at = last.and_then(|last| {
            Some((
                self.0.iter().position(|range| range.contains(last))?,
                number(last),
            ))
        });
        let (index, from) = at.map_or((0, None), |(index, last)| (index, Some(last)));
        let count = self.0.len();
        let rest = self.0.iter().skip(index).take(1).flat_map(move |range| {
            let next = from.map_or(Some(number(range.start)), |last| last.checked_add(1));
            next.into_iter().flat_map(|next| range.addresses(next))
        });
        let others = self
            .0
            .iter()
            .cycle()
            .skip(index + 1)
            .take(count.saturating_sub(1));
        let first_part = self.0.iter().skip(index).take(1).flat_map(move |range| {
            range
                .addresses(number(range.start))
                .take_while(move |ip| from.is_some_and(|last| number(*ip) <= last))
        });
        rest.chain(others.flat_map(|range| range.addresses(number(range.start))))
            .chain(first_part)
    }
}

/// Checks and completes what is configured.
pub fn read(wire: Vec<Vec<WireRange>>) -> Result<Vec<RangeSet>> {
    if wire.is_empty() {
        return Err(CniError::config("no IP ranges specified"));
    }
    let mut sets: Vec<RangeSet> = Vec::new();
    for (index, ranges) in wire.iter().enumerate() {
        let invalid = |why: String| CniError::config(format!("invalid range set {index}: {why}"));
        let ranges: Vec<Range> = ranges
            .iter()
            .map(|range| Range::new(range).map_err(|error| invalid(error.msg)))
            .collect::<Result<_>>()?;
        let Some(first) = ranges.first() else {
            return Err(invalid("empty range set".to_owned()));
        };
        if ranges
            .iter()
            .any(|range| range.start.is_ipv4() != first.start.is_ipv4())
        {
            return Err(invalid("mixed address families".to_owned()));
        }
        for (at, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges
                .iter()
                .skip(at + 1)
                .find(|other| range.overlaps(other))
            {
                return Err(invalid(format!(
                    "subnets {}-{} and {}-{} overlap",
                    range.start, range.end, other.start, other.end
                )));
            }
        }
        let overlaps =
            |other: &RangeSet| other.0.iter().any(|a| ranges.iter().any(|b| a.overlaps(b)));
        if let Some(other) = sets.iter().position(overlaps) {
            return Err(CniError::config(format!(
                "range set {other} overlaps with {index}"
            )));
        }
        sets.push(RangeSet(ranges));
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sets(value: Value) -> Result<Vec<RangeSet>> {
        read(serde_json::from_value(value).unwrap())
    }

    fn order(value: Value, last: Option<&str>) -> String {
        let sets = sets(json!([value])).unwrap();
        let ips: Vec<String> = sets[0]
            .after(last.map(|ip| ip.parse().unwrap()))
            .take(10)
            .map(|ip| ip.to_string())
            .collect();
        ips.join(" ")
    }

    #[test]
    fn order_of_addresses() {
        let small = json!([{"subnet": "10.0.0.0/29"}]);
        assert_eq!(
            order(small.clone(), None),
            "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6"
        );
        assert_eq!(
            order(small.clone(), Some("10.0.0.4")),
            "10.0.0.5 10.0.0.6 10.0.0.2 10.0.0.3 10.0.0.4"
        );
        assert_eq!(
            order(small.clone(), Some("10.0.0.6")),
            "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6"
        );
        assert_eq!(
            order(small, Some("10.9.0.4")),
            "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6"
        );
        let two = json!([
            {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.5", "rangeEnd": "10.0.0.6", "gateway": "10.0.0.5"},
            {"subnet": "10.0.1.0/24", "rangeStart": "10.0.1.8", "rangeEnd": "10.0.1.9"}
        ]);
        assert_eq!(order(two.clone(), None), "10.0.0.6 10.0.1.8 10.0.1.9");
        assert_eq!(order(two, Some("10.0.1.8")), "10.0.1.9 10.0.0.6 10.0.1.8");
        assert_eq!(
            order(json!([{"subnet": "fd00::/126"}]), None),
            "fd00::2 fd00::3"
        );
        assert_eq!(
            order(
                json!([{"subnet": "255.255.255.248/29", "rangeEnd": "255.255.255.255"}]),
                Some("255.255.255.255")
            ),
            "255.255.255.250 255.255.255.251 255.255.255.252 255.255.255.253 255.255.255.254 255.255.255.255"
        );
        let kept = json!([{"subnet": "10.0.0.0/24", "exclude": ["10.0.0.0/28", "10.0.0.17", "10.0.0.15-10.0.0.16"],
            "reserved": ["10.0.0.19-10.0.0.250"]}]);
        assert_eq!(
            order(kept.clone(), None),
            "10.0.0.18 10.0.0.251 10.0.0.252 10.0.0.253 10.0.0.254"
        );
        assert_eq!(
            order(kept, Some("10.0.0.100")),
            "10.0.0.251 10.0.0.252 10.0.0.253 10.0.0.254 10.0.0.18"
        );
        let all = json!([{"subnet": "fd00::/64", "exclude": ["fd00::/64"]}]);
        assert_eq!(order(all, None), "");
        let top = json!([{"subnet": "ffff::/16", "rangeStart": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"}]);
        assert_eq!(
            order(top, Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")),
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        );
    }

    #[test]
    fn slices() {
        let cases = [
            ("10.0.0.0/8", json!({"bits": 24, "node": 259}), "10.1.3.2"),
            (
                "10.0.0.0/8",
                json!({"bits": 24, "node": "65535"}),
                "10.255.255.2",
            ),
            ("10.9.0.0/16", json!({"bits": 16, "node": 0}), "10.9.0.2"),
            (
                "fd00::/48",
                json!({"bits": 64, "node": 10}),
                "fd00:0:0:a::2",
            ),
            (
                "::/0",
                json!({"bits": 64, "node": u64::MAX}),
                "ffff:ffff:ffff:ffff::2",
            ),
        ];
        for (subnet, slice, expected) in cases {
            let got = order(json!([{"subnet": subnet, "slice": slice}]), None);
            assert_eq!(got.split(' ').next(), Some(expected), "{subnet} {slice}");
        }
    }

    #[test]
    fn wishes() {
        let sets = sets(
            json!([[{"subnet": "10.0.0.0/24", "exclude": ["10.0.0.9"], "reserved": ["10.0.0.8"]}]]),
        )
        .unwrap();
        let range = &sets[0].0[0];
        for (ip, expected) in [
            ("10.0.0.1", Some("subnet's gateway")),
            ("10.0.0.8", None),
            ("10.0.0.9", Some("excluded")),
            ("10.0.0.10", None),
        ] {
            assert_eq!(range.refuses(ip.parse().unwrap()), expected, "{ip}");
        }
    }

    #[test]
    fn refusals() {
        let cases = [
            (
                json!([[{"subnet": "10.0.0.0/24", "exclude": ["10.0.1.1"]}]]),
                "invalid range set 0: exclude \"10.0.1.1\" is no address, subnet or first-last in network 10.0.0.0/24",
            ),
            (
                json!([[{"subnet": "10.0.0.0/24", "reserved": ["10.0.0.9-10.0.0.8"]}]]),
                "invalid range set 0: reserved \"10.0.0.9-10.0.0.8\" is no address, subnet or first-last in network 10.0.0.0/24",
            ),
            (
                json!([[{"subnet": "10.0.0.0/8", "slice": {"bits": 24, "node": 65536}}]]),
                "invalid range set 0: slice of 10.0.0.0/8: it has no subnet number 65536 of 24 bits",
            ),
            (
                json!([[{"subnet": "10.0.0.0/8", "slice": {"bits": 7, "node": 0}}]]),
                "invalid range set 0: slice of 10.0.0.0/8: bits 7 is no prefix length in it",
            ),
            (
                json!([[{"subnet": "10.0.0.0/8", "slice": {"bits": 24, "node": "x"}}]]),
                "invalid range set 0: slice of 10.0.0.0/8: node \"x\" is no number",
            ),
            (json!([]), "no IP ranges specified"),
            (json!([[]]), "invalid range set 0: empty range set"),
            (
                json!([[{"gateway": "10.0.0.1"}]]),
                "invalid range set 0: subnet is missing",
            ),
            (
                json!([[{"subnet": "10.0.0.0/31"}]]),
                "invalid range set 0: Network 10.0.0.0/31 too small to allocate from",
            ),
            (
                json!([[{"subnet": "fd00::/127"}]]),
                "invalid range set 0: Network fd00::/127 too small to allocate from",
            ),
            (
                json!([[{"subnet": "10.0.0.9/24"}]]),
                "invalid range set 0: Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0",
            ),
            (
                json!([[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}]]),
                "invalid range set 0: RangeStart 10.0.1.1 not in network 10.0.0.0/24",
            ),
            (
                json!([[{"subnet": "10.0.0.0/24", "rangeEnd": "fd00::1"}]]),
                "invalid range set 0: RangeEnd fd00::1 not in network 10.0.0.0/24",
            ),
            (
                json!([[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}]]),
                "invalid range set 0: RangeStart 10.0.0.9 is after RangeEnd 10.0.0.8",
            ),
            (
                json!([[{"subnet": "10.0.0.0/24", "gateway": "fd00::1"}]]),
                "invalid range set 0: gateway of network 10.0.0.0/24 is of the other address family",
            ),
            (
                json!([[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]),
                "invalid range set 0: mixed address families",
            ),
            (
                json!([[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/25"}]]),
                "invalid range set 0: subnets 10.0.0.1-10.0.0.254 and 10.0.0.1-10.0.0.126 overlap",
            ),
            (
                json!([[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}], [{"subnet": "10.0.0.128/25"}]]),
                "range set 0 overlaps with 2",
            ),
        ];
        for (value, expected) in cases {
            let error = sets(value.clone()).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (7, expected), "{value}");
        }
    }
}
