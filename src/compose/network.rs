//! Phase 6, networks: the networks of the project and what the services ask of them.
//!
//! *Invariants.* A pod has one interface per network, so the settings of its services on a network are one set: a
//! contradiction is refused with both places. Networks keep the file's order, `default` comes first.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::node::{At, Pos, Result};
use super::project::{IpamPool, Network, ServiceNetwork};
use super::{schema, service};

/// The network of services that name none.
const DEFAULT: &str = "default";

/// Networks of a service by key.
pub(super) fn of_service(at: &At<'_>) -> Result<BTreeMap<String, ServiceNetwork>> {
    let named = at.entries_of("networks")?;
    if service::network_service(at)?.is_some() {
        return match at.get("networks") {
            Some(networks) => {
                Err(networks.error("does not go together with network_mode; remove one"))
            }
            None => Ok(BTreeMap::new()),
        };
    }
    if named.is_empty() {
        return Ok(BTreeMap::from([(
            DEFAULT.to_owned(),
            ServiceNetwork::default(),
        )]));
    }
    named
        .into_iter()
        .map(|(key, at)| Ok((key.to_owned(), settings(&at)?)))
        .collect()
}

fn settings(at: &At<'_>) -> Result<ServiceNetwork> {
    let mut aliases = Vec::new();
    for alias in at.items_of("aliases")? {
        let name = schema::name_at(&alias)?;
        if !aliases.contains(&name) {
            aliases.push(name);
        }
    }
    Ok(ServiceNetwork {
        aliases,
        ipv4_address: at
            .get("ipv4_address")
            .map(|at| parsed(&at, "an IPv4 address"))
            .transpose()?,
        ipv6_address: at
            .get("ipv6_address")
            .map(|at| parsed(&at, "an IPv6 address"))
            .transpose()?,
        mac_address: at
            .get("mac_address")
            .map(|at| mac_address(&at))
            .transpose()?,
        interface_name: at
            .get("interface_name")
            .map(|at| interface_name(&at))
            .transpose()?,
        gw_priority: at.get("gw_priority").map(|at| at.int()).transpose()?,
    })
}

fn parsed<T: std::str::FromStr>(at: &At<'_>, what: &str) -> Result<T> {
    let text = at.raw()?;
    text.parse()
        .map_err(|_| at.error(format_args!("{text:?} is not {what}")))
}

fn mac_address(at: &At<'_>) -> Result<String> {
    let text = at.raw()?;
    let octets: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|o| (o.len() == 2).then(|| u8::from_str_radix(o, 16).ok())?)
        .collect();
    match octets.as_deref() {
        Some([first, _, _, _, _, _]) if first & 1 == 0 => {
            Ok(text.replace('-', ":").to_ascii_lowercase())
        }
        Some([_, _, _, _, _, _]) => Err(at.error(format_args!(
            "{text} is a multicast address; its first octet must be even"
        ))),
        _ => Err(at.error(format_args!(
            "{text:?} is not a MAC address; write something like 02:42:ac:11:00:02"
        ))),
    }
}

/// What the kernel takes as the name of a device (`dev_valid_name`), and is not there already.
fn interface_name(at: &At<'_>) -> Result<String> {
    let text = at.string()?;
    let good = !matches!(text.as_str(), "" | "." | ".." | "lo" | "all" | "default")
        && text.len() <= 15
        && text
            .chars()
            .all(|c| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%'));
    match good {
        true => Ok(text),
        false => Err(at.error(format_args!(
            "{text:?} is not an interface name; use at most 15 letters, digits, '-', '_', '.'"
        ))),
    }
}

/// Where a service uses a network.
pub(super) struct Use<'a> {
    pub settings: ServiceNetwork,
    pub at: At<'a>,
}

/// The uses of a service's networks, with their places.
pub(super) fn uses<'a>(
    at: &At<'a>,
    networks: &BTreeMap<String, ServiceNetwork>,
) -> Result<Vec<(String, Use<'a>)>> {
    let places: HashMap<&str, At<'a>> = at.entries_of("networks")?.into_iter().collect();
    let used = networks.iter().map(|(key, settings)| {
        let at = places.get(key.as_str()).unwrap_or(at).clone();
        (
            key.clone(),
            Use {
                settings: settings.clone(),
                at,
            },
        )
    });
    Ok(used.collect())
}

/// The networks that are used, in order, with the pod's settings on each.
pub(super) fn networks(
    root: &At<'_>,
    project: &str,
    uses: Vec<(String, Use<'_>)>,
) -> Result<Vec<Network>> {
    let declared = root.entries_of("networks")?;
    let known: HashMap<&str, &At<'_>> = declared.iter().map(|(key, at)| (*key, at)).collect();
    let mut by_key: HashMap<String, Vec<Use<'_>>> = HashMap::new();
    for (key, used) in uses {
        if key != DEFAULT && !known.contains_key(key.as_str()) {
            return Err(used.at.key_pos.error(
                &used.at.path,
                format_args!("network {key} is not declared below networks:"),
            ));
        }
        by_key.entry(key).or_default().push(used);
    }
    let mut order: Vec<&str> = declared
        .iter()
        .map(|(key, _)| *key)
        .filter(|key| *key != DEFAULT)
        .collect();
    order.insert(0, DEFAULT);
    let mut out = Vec::new();
    let mut interfaces: HashMap<String, (String, Pos)> = HashMap::new();
    for key in order {
        let Some(uses) = by_key.get(key) else {
            continue;
        };
        let at = known.get(key).copied();
        let network = network(key, at, root, project, attachment(uses)?)?;
        unique_interface(&network, uses, &mut interfaces)?;
        out.push(network);
    }
    Ok(out)
}

fn unique_interface(
    network: &Network,
    uses: &[Use<'_>],
    known: &mut HashMap<String, (String, Pos)>,
) -> Result<()> {
    let Some(name) = &network.attachment.interface_name else {
        return Ok(());
    };
    let Some(at) = uses.iter().find_map(|u| u.at.get("interface_name")) else {
        return Ok(());
    };
    match known.insert(name.clone(), (network.key.clone(), at.node.pos.clone())) {
        Some((key, pos)) => Err(at.error(format_args!(
            "{name} is the interface of network {key} already, at {pos}; choose another name"
        ))),
        None => Ok(()),
    }
}

/// One set of settings from all services on a network.
fn attachment(uses: &[Use<'_>]) -> Result<ServiceNetwork> {
    let mut out = ServiceNetwork::default();
    for used in uses {
        for alias in &used.settings.aliases {
            if !out.aliases.contains(alias) {
                out.aliases.push(alias.clone());
            }
        }
    }
    out.ipv4_address = agreed(uses, "ipv4_address", |s| s.ipv4_address)?;
    out.ipv6_address = agreed(uses, "ipv6_address", |s| s.ipv6_address)?;
    out.mac_address = agreed(uses, "mac_address", |s| s.mac_address.clone())?;
    out.interface_name = agreed(uses, "interface_name", |s| s.interface_name.clone())?;
    out.gw_priority = agreed(uses, "gw_priority", |s| s.gw_priority)?;
    Ok(out)
}

fn agreed<T: PartialEq>(
    uses: &[Use<'_>],
    key: &str,
    field: impl Fn(&ServiceNetwork) -> Option<T>,
) -> Result<Option<T>> {
    let mut found: Option<(T, &Use<'_>)> = None;
    for used in uses {
        match (field(&used.settings), &found) {
            (Some(value), None) => found = Some((value, used)),
            (Some(value), Some((first, holder))) if value != *first => {
                let (at, first) = (used.at.get(key), holder.at.get(key));
                let at = at.as_ref().unwrap_or(&used.at);
                let first = first.as_ref().unwrap_or(&holder.at);
                return Err(at.error(format_args!(
                    "contradicts {} at {}; a pod has one interface on a network: give one value",
                    first.path, first.node.pos
                )));
            }
            _ => {}
        }
    }
    Ok(found.map(|(value, _)| value))
}

fn network(
    key: &str,
    at: Option<&At<'_>>,
    root: &At<'_>,
    project: &str,
    attachment: ServiceNetwork,
) -> Result<Network> {
    let default_name = format!("{project}_{key}");
    let Some(at) = at else {
        let origin = root
            .get("services")
            .map_or_else(|| root.node.pos.origin(), |at| at.key_pos.origin());
        let (driver, name) = ("bridge".to_owned(), default_name);
        let (driver_opts, labels) = (BTreeMap::new(), BTreeMap::new());
        let (external, internal, enable_ipv6, ipam) = (false, false, false, Vec::new());
        let key = key.to_owned();
        return Ok(Network {
            key,
            origin,
            name,
            external,
            driver,
            driver_opts,
            internal,
            enable_ipv6,
            ipam,
            labels,
            attachment,
        });
    };
    let flag = |key: &str| at.get(key).map_or(Ok(false), |at| at.bool());
    let external = flag("external")?;
    if external {
        only_a_name(at)?;
    }
    if let Some(v4) = at.get("enable_ipv4")
        && !v4.bool()?
    {
        return Err(v4.error("a network without IPv4 is not supported yet; remove it for now"));
    }
    let name = at.get("name").map(|at| schema::name_at(&at)).transpose()?;
    Ok(Network {
        key: key.to_owned(),
        origin: at.key_pos.origin(),
        name: name.unwrap_or_else(|| {
            if external {
                key.to_owned()
            } else {
                default_name
            }
        }),
        external,
        driver: driver(at)?,
        driver_opts: service::text_map(at, "driver_opts")?,
        internal: flag("internal")?,
        enable_ipv6: flag("enable_ipv6")?,
        ipam: ipam(at)?,
        labels: service::text_map(at, "labels")?,
        attachment,
    })
}

/// An external network or volume is what it is.
pub(super) fn only_a_name(at: &At<'_>) -> Result<()> {
    let other = at.entries()?.into_iter().find(|(k, v)| {
        !matches!(*k, "external" | "name") && !k.starts_with("x-") && !v.node.is_null()
    });
    match other {
        Some((key, at)) => Err(at.key_pos.error(
            &at.path,
            format_args!("{key} does not go together with external; remove one"),
        )),
        None => Ok(()),
    }
}

fn driver(at: &At<'_>) -> Result<String> {
    let Some(at) = at.get("driver") else {
        return Ok("bridge".to_owned());
    };
    match at.string()?.as_str() {
        "" | "default" => Ok("bridge".to_owned()),
        "host" | "none" | "overlay" => Err(at.error(format_args!(
            "{:?} is not supported; use bridge, macvlan or ipvlan",
            at.raw()?
        ))),
        _ => schema::name_at(&at),
    }
}

fn ipam(at: &At<'_>) -> Result<Vec<IpamPool>> {
    if let Some(driver) = at.find(&["ipam", "driver"])
        && driver.raw()? != "default"
    {
        return Err(driver.error(format_args!(
            "{:?} is not supported; remove it",
            driver.raw()?
        )));
    }
    let Some(ipam) = at.get("ipam") else {
        return Ok(Vec::new());
    };
    ipam.items_of("config")?.iter().map(pool).collect()
}

fn pool(at: &At<'_>) -> Result<IpamPool> {
    let Some(subnet_at) = at.get("subnet") else {
        return Err(at.error("has no subnet"));
    };
    let net = |at: &At<'_>| parsed::<IpNet>(at, "a subnet such as 10.1.0.0/24");
    let subnet = net(&subnet_at)?;
    if subnet.trunc() != subnet {
        return Err(subnet_at.error(format_args!(
            "{subnet} has bits below its prefix; write {}",
            subnet.trunc()
        )));
    }
    let range = at.get("ip_range");
    let ip_range = range.as_ref().map(net).transpose()?;
    if let (Some(at), Some(part)) = (&range, &ip_range)
        && !subnet.contains(part)
    {
        return Err(at.error(format_args!("{part} lies outside {subnet}")));
    }
    let gateway_at = at.get("gateway");
    let gateway = gateway_at
        .as_ref()
        .map(|at| parsed::<IpAddr>(at, "an IP address"))
        .transpose()?;
    if let (Some(at), Some(gateway)) = (&gateway_at, &gateway)
        && !subnet.contains(gateway)
    {
        return Err(at.error(format_args!("{gateway} lies outside {subnet}")));
    }
    Ok(IpamPool {
        subnet,
        ip_range,
        gateway,
    })
}
