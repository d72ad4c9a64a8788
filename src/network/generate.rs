//! Networks of a compose file as CNI network lists.
//!
//! *Invariants:* pure; what can't be done as written is refused with the key, never left out. A list declares the
//! capabilities `ips` and `mac`, and `portMappings` unless it is internal.
//! Which subnets a network has when the file says nothing is [`super::subnets`]'s, the default route
//! [`super::default_route`]'s.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::conf::is_ifname;
use super::{Error, NetworkList};
use crate::compose::project::{IpamPool, Network};

/// What the reference plugins of all distributions understand.
const CNI_VERSION: &str = "1.0.0";
/// `source` of a list that no file holds.
pub(super) const GENERATED: &str = "generated";
const OPT_NAME: &str = "com.docker.network.bridge.name";
const OPT_MTU: &str = "com.docker.network.driver.mtu";
const OPT_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";

/// A network list for `network`: a bridge with host-local addresses and port mappings. Address pools are those of
/// `ipam`; a family that `ipam` lacks takes them from `subnets`. Leases are files below `lease_dir`.
pub fn generate(
    network: &Network,
    subnets: &[IpNet],
    lease_dir: &Path,
) -> Result<NetworkList, Error> {
    if network.driver != "bridge" {
        let why = format!(
            "`{}` can't be generated: use `bridge`, or `external: true` and a CNI network list",
            network.driver
        );
        return Err(refuse(network, "driver", &why));
    }
    let options = Options::of(network)?;
    let ranges = ranges(network, subnets)?;
    let mut bridge = Map::new();
    let mut set = |key: &str, value: Value| bridge.insert(key.into(), value);
    set("type", "bridge".into());
    set("hairpinMode", true.into());
    set("removeBridge", true.into());
    set("isGateway", (!network.internal).into());
    set("ipMasq", (options.masquerade && !network.internal).into());
    if let Some(mtu) = options.mtu {
        set("mtu", mtu.into());
    }
    match options.bridge {
        Some(name) => set("bridge", name.into()),
        None => {
            // the bridge is ours alone: an address of an earlier run may go
            set("forceAddress", true.into());
            set("bridge", bridge_name(&network.name).into())
        }
    };
    set("capabilities", json!({"ips": true, "mac": true}));
    let ipam = ipam(network, &ranges, lease_dir);
    set("ipam", ipam);
    let mut plugins = vec![Value::Object(bridge)];
    if !network.internal {
        plugins.push(json!({
            "type": "portmap", "snat": true, "capabilities": {"portMappings": true},
        }));
    }
    let config = json!({"cniVersion": CNI_VERSION, "name": network.name, "plugins": plugins});
    NetworkList::parse(config.to_string().as_bytes(), GENERATED)
        .map_err(|e| refuse(network, "name", &e.to_string()))
}

/// The bridge of a generated network: 15 characters, the most an interface name has.
pub fn bridge_name(network: &str) -> String {
    let digest = Sha256::digest(network.as_bytes());
    let hex: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    format!("sp-{hex}")
}

/// `driver_opts`, all understood.
struct Options {
    bridge: Option<String>,
    mtu: Option<u32>,
    masquerade: bool,
}

impl Options {
    fn of(network: &Network) -> Result<Options, Error> {
        let mut options = Options {
            bridge: None,
            mtu: None,
            masquerade: true,
        };
        for (key, value) in &network.driver_opts {
            let bad = |why: &str| refuse(network, &format!("driver_opts.{key}"), why);
            match key.as_str() {
                OPT_NAME if is_ifname(value) => options.bridge = Some(value.clone()),
                OPT_NAME => {
                    return Err(bad(&format!("`{value}` can't be the name of an interface")));
                }
                OPT_MTU => match value.parse() {
                    // ip(7): the least that IPv4 allows; the most that the kernel takes
                    Ok(mtu @ 68..=65535) => options.mtu = Some(mtu),
                    _ => return Err(bad(&format!("`{value}`: must be 68 to 65535 bytes"))),
                },
                OPT_MASQUERADE => match value.as_str() {
                    "true" | "1" => options.masquerade = true,
                    "false" | "0" => options.masquerade = false,
                    _ => return Err(bad(&format!("`{value}`: must be true or false"))),
                },
                _ => {
                    let why =
                        format!("not known; possible are {OPT_NAME}, {OPT_MTU}, {OPT_MASQUERADE}");
                    return Err(bad(&why));
                }
            }
        }
        Ok(options)
    }
}

/// Part of a subnet that addresses are taken from, as host-local has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    subnet: IpNet,
    gateway: IpAddr,
    first: Option<IpAddr>,
    last: Option<IpAddr>,
}

fn ipam(network: &Network, ranges: &[Range], lease_dir: &Path) -> Value {
    let mut sets = Vec::new();
    let mut routes = Vec::new();
    for (is_v4, everywhere) in [(true, "0.0.0.0/0"), (false, "::/0")] {
        let family = |r: &&Range| r.subnet.addr().is_ipv4() == is_v4;
        let set: Vec<_> = ranges.iter().filter(family).map(Range::to_json).collect();
        // one address is taken per set
        if !set.is_empty() {
            sets.push(set);
            routes.push(json!({"dst": everywhere}));
        }
    }
    let mut ipam = json!({"type": "host-local", "dataDir": lease_dir, "ranges": sets});
    if let (false, Some(ipam)) = (network.internal, ipam.as_object_mut()) {
        ipam.insert("routes".into(), routes.into());
    }
    ipam
}

impl Range {
    fn to_json(&self) -> Value {
        let mut range = json!({"subnet": self.subnet, "gateway": self.gateway});
        if let (Some(first), Some(last), Some(range)) =
            (self.first, self.last, range.as_object_mut())
        {
            range.insert("rangeStart".into(), json!(first));
            range.insert("rangeEnd".into(), json!(last));
        }
        range
    }
}

/// Every range of the network, checked: `ipam`'s, then those of the families that it lacks.
fn ranges(network: &Network, subnets: &[IpNet]) -> Result<Vec<Range>, Error> {
    let mut ranges = Vec::new();
    for (i, pool) in network.ipam.iter().enumerate() {
        let range = range(pool)
            .map_err(|(key, why)| refuse(network, &format!("ipam.config[{i}].{key}"), &why))?;
        ranges.push(range);
    }
    for is_v4 in [true, false] {
        let family = |net: &IpNet| net.addr().is_ipv4() == is_v4;
        if ranges.iter().any(|r| family(&r.subnet)) {
            continue;
        }
        let chosen = subnets.iter().filter(|net| family(net));
        let before = ranges.len();
        for subnet in chosen {
            let pool = IpamPool {
                subnet: *subnet,
                ip_range: None,
                gateway: None,
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
    if ranges.is_empty() {
        return Err(refuse(network, "ipam", "no subnet"));
    }
    for (i, one) in ranges.iter().enumerate() {
        for other in ranges.iter().skip(i + 1) {
            if overlap(&one.subnet, &other.subnet) {
                let why = format!("{} and {} overlap", one.subnet, other.subnet);
                return Err(refuse(network, "ipam.config", &why));
            }
        }
    }
    fixed_addresses(network, &mut ranges)?;
    Ok(ranges)
}

/// One pool; the error is the key and what is wrong with it.
fn range(pool: &IpamPool) -> Result<Range, (&'static str, String)> {
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
        let Some(range) = ranges.iter().find(|r| r.subnet.contains(&address)).cloned() else {
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

/// The subnets have an address in common.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
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

fn refuse(network: &Network, key: &str, why: &str) -> Error {
    Error::Config {
        file: network.origin.file.clone(),
        line: (network.origin.line > 0).then_some(network.origin.line),
        why: format!("networks.{}.{key}: {why}", network.key),
    }
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
