//! Networks of a compose file as CNI network lists.
//!
//! *Invariants:* pure; what can't be done as written is refused with the key, never left out. No generated list holds a
//! default route: who has it is decided over all interfaces of a pod (see [`super::default_route`]).
//! A driver that Docker does not know is the plugin of that name; its `driver_opts` are the plugin's keys.
//! Which subnets a network has when the file says nothing is [`super::subnets`]'s.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::conf::is_ifname;
use super::ranges::{Range, ranges};
use super::{Error, NetworkList};
use crate::compose::project::Network;

/// What the reference plugins of all distributions understand.
const CNI_VERSION: &str = "1.0.0";
/// `source` of a list that no file holds.
pub const GENERATED: &str = "generated";
/// Address plugin where nothing else is said.
const HOST_LOCAL: &str = "host-local";
const OPT_NAME: &str = "com.docker.network.bridge.name";
const OPT_MTU: &str = "com.docker.network.driver.mtu";
const OPT_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const OPT_ICC: &str = "com.docker.network.bridge.enable_icc";

/// A network list for `network`: the plugin of its driver with its addresses, port mappings where the host routes, and
/// the further plugins of `x-sampan`. Address pools are those of `ipam`; a family that `ipam` lacks takes them from
/// `subnets`. Leases are files below `lease_dir`.
pub fn generate(
    network: &Network,
    subnets: &[IpNet],
    lease_dir: &Path,
) -> Result<NetworkList, Error> {
    let routed = is_routed(network);
    let mut plugin = Map::new();
    plugin.insert("type".into(), network.driver.clone().into());
    options(network, &mut plugin)?;
    match network.driver.as_str() {
        "bridge" => bridge(network, &mut plugin),
        "ptp" => {
            let masquerade = (!network.internal).into();
            plugin.entry("ipMasq").or_insert(masquerade);
        }
        // several pods of a host share one end of the tunnel
        "vxlan" => {
            let bridge = bridge_name(&network.name).into();
            plugin.entry("bridge").or_insert(bridge);
        }
        _ => {}
    }
    let addresses = addresses(network, subnets, lease_dir)?;
    // the plugins that heed `mac`; static addresses are in the configuration
    let mac = ["bridge", "dummy", "macvlan", "ptp", "tap", "vlan", "vxlan"];
    let mac = mac.contains(&network.driver.as_str());
    let ips = network.ipam_driver.as_deref() != Some("static") && addresses.is_some();
    plugin.insert("capabilities".into(), json!({"ips": ips, "mac": mac}));
    plugin.extend(addresses.map(|ipam| ("ipam".into(), ipam)));
    plugin.extend(network.extra.config.clone());
    let mut plugins = vec![Value::Object(plugin)];
    if routed && !network.internal {
        plugins.push(json!({
            "type": "portmap", "snat": true, "capabilities": {"portMappings": true},
        }));
    }
    plugins.extend(network.extra.plugins.iter().cloned());
    let config = json!({"cniVersion": CNI_VERSION, "name": network.name, "plugins": plugins});
    NetworkList::parse(config.to_string().as_bytes(), GENERATED)
        .map_err(|e| refuse(network, "name", &e.to_string()))
}

/// The host routes for the network: it has subnets of its own choice, a gateway address on the host, published ports.
pub fn is_routed(network: &Network) -> bool {
    matches!(network.driver.as_str(), "bridge" | "ptp")
}

/// Subnets are chosen for the network when it names none.
pub(super) fn wants_subnets(network: &Network) -> bool {
    is_routed(network) && matches!(network.ipam_driver.as_deref(), None | Some(HOST_LOCAL))
}

/// What the default routes of the network lead to: its gateway in each family.
pub fn gateways(network: &Network, subnets: &[IpNet]) -> Result<Vec<IpAddr>, Error> {
    let mut gateways: Vec<IpAddr> = Vec::new();
    let leased = matches!(
        network.ipam_driver.as_deref(),
        None | Some(HOST_LOCAL | "static")
    );
    if network.internal || !leased {
        return Ok(gateways);
    }
    for range in ranges(network, subnets)? {
        if !gateways
            .iter()
            .any(|g| g.is_ipv4() == range.gateway.is_ipv4())
        {
            gateways.push(range.gateway);
        }
    }
    Ok(gateways)
}

/// The bridge of a generated network: 15 characters, the most an interface name has.
pub fn bridge_name(network: &str) -> String {
    let digest = Sha256::digest(network.as_bytes());
    let hex: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    format!("sp-{hex}")
}

fn bridge(network: &Network, plugin: &mut Map<String, Value>) {
    let mut set = |key: &str, value: Value| {
        plugin.entry(key).or_insert(value);
    };
    set("hairpinMode", true.into());
    set("removeBridge", true.into());
    set("isGateway", (!network.internal).into());
    set("ipMasq", (!network.internal).into());
    if !plugin.contains_key("bridge") {
        // the bridge is ours alone: an address of an earlier run may go
        plugin.insert("forceAddress".into(), true.into());
        plugin.insert("bridge".into(), bridge_name(&network.name).into());
    }
}

/// `driver_opts` as keys of the plugin: Docker's for the drivers that Docker has.
fn options(network: &Network, plugin: &mut Map<String, Value>) -> Result<(), Error> {
    let driver = network.driver.as_str();
    for (key, value) in &network.driver_opts {
        let bad = |why: &str| refuse(network, &format!("driver_opts.{key}"), why);
        let of = |words: &[&str], name: &str| match words.contains(&value.as_str()) {
            true => Ok((name.to_string(), value.clone().into())),
            false => Err(bad(&format!(
                "`{value}`: must be one of {}",
                words.join(", ")
            ))),
        };
        let interface = |name: &str| match is_ifname(value) {
            true => Ok((name.to_string(), value.clone().into())),
            false => Err(bad(&format!("`{value}` can't be the name of an interface"))),
        };
        let flag = |yes: bool| match value.as_str() {
            "true" | "1" => Ok(yes),
            "false" | "0" => Ok(!yes),
            _ => Err(bad(&format!("`{value}`: must be true or false"))),
        };
        let (name, value): (String, Value) = match (driver, key.as_str()) {
            (_, OPT_MTU | "mtu") => match value.parse::<u32>() {
                // ip(7): the least that IPv4 allows; the most that the kernel takes
                Ok(mtu @ 68..=65535) => ("mtu".into(), mtu.into()),
                _ => return Err(bad(&format!("`{value}`: must be 68 to 65535 bytes"))),
            },
            ("bridge", OPT_NAME) => interface("bridge")?,
            ("bridge", OPT_MASQUERADE) => {
                let on = flag(true)? && !network.internal;
                ("ipMasq".into(), on.into())
            }
            ("bridge", OPT_ICC) => ("portIsolation".into(), flag(false)?.into()),
            ("macvlan" | "ipvlan" | "vlan", "parent") => interface("master")?,
            ("macvlan", "macvlan_mode" | "mode") => {
                of(&["bridge", "vepa", "private", "passthru"], "mode")?
            }
            ("ipvlan", "ipvlan_mode" | "mode") => of(&["l2", "l3", "l3s"], "mode")?,
            // the others of Docker's have no counterpart in the plugin
            ("ipvlan", "ipvlan_flag") if value == "bridge" => continue,
            ("vlan", "vlan_id" | "vlanid") => ("vlanId".into(), scalar(value)),
            ("vxlan", "parent") => interface("dev")?,
            ("vxlan", "vxlan_id" | "vni") => ("id".into(), scalar(value)),
            ("vxlan", "peers") => {
                let peers = value.split(',').map(str::trim).filter(|p| !p.is_empty());
                ("peers".into(), peers.collect::<Vec<_>>().into())
            }
            ("bridge" | "macvlan" | "ipvlan", _) => {
                let known: &[&str] = match driver {
                    "bridge" => &[OPT_NAME, OPT_MTU, OPT_MASQUERADE, OPT_ICC],
                    "macvlan" => &["parent", "macvlan_mode", OPT_MTU],
                    _ => &["parent", "ipvlan_mode", OPT_MTU],
                };
                let why = format!("not known; possible are {}", known.join(", "));
                return Err(bad(&why));
            }
            (_, key) => (key.into(), scalar(value)),
        };
        plugin.insert(name, value);
    }
    Ok(())
}

/// A number or a boolean where the text is one.
fn scalar(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
        _ => text.into(),
    }
}

/// `ipam` of the plugin; `None`: no addresses.
fn addresses(
    network: &Network,
    subnets: &[IpNet],
    lease_dir: &Path,
) -> Result<Option<Value>, Error> {
    let driver = match network.ipam_driver.as_deref() {
        None if network.ipam.is_empty() && !is_routed(network) => {
            return match network.driver.as_str() {
                "macvlan" | "ipvlan" | "vlan" | "vxlan" => {
                    let why = "whose addresses? give ipam.config with the network's subnet, or ipam.driver: dhcp; ipam.driver: none for no addresses";
                    Err(refuse(network, "ipam", why))
                }
                _ => Ok(None),
            };
        }
        None => HOST_LOCAL,
        Some("none") => return Ok(None),
        Some(driver) => driver,
    };
    let mut ipam = Map::new();
    for (key, value) in &network.ipam_options {
        ipam.insert(key.clone(), scalar(value));
    }
    ipam.insert("type".into(), driver.into());
    match driver {
        HOST_LOCAL => {
            let ranges = ranges(network, subnets)?;
            if ranges.is_empty() {
                return Err(refuse(network, "ipam", "no subnet"));
            }
            ipam.insert("dataDir".into(), json!(lease_dir));
            ipam.insert("ranges".into(), sets(&ranges));
        }
        "static" => {
            ipam.insert(
                "addresses".into(),
                fixed(network, &ranges(network, subnets)?)?,
            );
        }
        "dhcp" => {
            if let Some(pool) = network.ipam.first() {
                let why = format!("{} is for the server to know; remove it", pool.subnet);
                return Err(refuse(network, "ipam.config", &why));
            }
        }
        // another's plugin: the usual keys
        _ => {
            let ranges = ranges(network, subnets)?;
            if !ranges.is_empty() {
                ipam.insert("ranges".into(), sets(&ranges));
            }
        }
    }
    if !network.extra.routes.is_empty() {
        ipam.insert("routes".into(), json!(network.extra.routes));
    }
    Ok(Some(Value::Object(ipam)))
}

/// One set of ranges per family: an address is taken from each.
fn sets(ranges: &[Range]) -> Value {
    let mut sets = Vec::new();
    for is_v4 in [true, false] {
        let family = |r: &&Range| r.subnet.addr().is_ipv4() == is_v4;
        let set: Vec<_> = ranges.iter().filter(family).map(|r| r.to_json()).collect();
        if !set.is_empty() {
            sets.push(set);
        }
    }
    sets.into()
}

/// The fixed addresses with the prefix of their subnet.
fn fixed(network: &Network, ranges: &[Range]) -> Result<Value, Error> {
    let attachment = &network.attachment;
    let v4 = attachment.ipv4_address.map(IpAddr::from);
    let v6 = attachment.ipv6_address.map(IpAddr::from);
    let mut addresses = Vec::new();
    for ip in v4.into_iter().chain(v6) {
        // `ranges` has refused one that is in none
        let Some(range) = ranges.iter().find(|r| r.subnet.contains(&ip)) else {
            continue;
        };
        let mut entry = json!({"address": format!("{ip}/{}", range.subnet.prefix_len())});
        if let (false, Some(entry)) = (network.internal, entry.as_object_mut()) {
            entry.insert("gateway".into(), json!(range.gateway));
        }
        addresses.push(entry);
    }
    match addresses.is_empty() {
        true => {
            let why = "`static` needs ipv4_address or ipv6_address of a service on the network";
            Err(refuse(network, "ipam.driver", why))
        }
        false => Ok(addresses.into()),
    }
}

/// The subnets have an address in common.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The error of a key of a network.
pub(super) fn refuse(network: &Network, key: &str, why: &str) -> Error {
    Error::Config {
        file: network.origin.file.clone(),
        line: (network.origin.line > 0).then_some(network.origin.line),
        why: format!("networks.{}.{key}: {why}", network.key),
    }
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
