//! Phase 6, networks: the networks of the project and what the services ask of them.
//!
//! *Invariants.* A pod has one interface per network, so the settings of its services on a network are one set: a
//! contradiction is refused with both places. Networks keep the file's order, `default` comes first.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::node::{At, Pos, Result, Value};
use super::project::{
    HOST_NETWORK, IpamPool, NO_NETWORK, Network, NetworkExtra, Route, ServiceNetwork,
};
use super::{schema, service, units};

/// The network of services that name none.
const DEFAULT: &str = "default";
/// The only one of Docker's endpoint options.
pub(super) const ENDPOINT_SYSCTLS: &str = "com.docker.network.endpoint.sysctls";
/// Most bytes of `x-sampan` of a network, as JSON.
const MAX_EXTRA: usize = 256 << 10;

/// Networks of a service by key.
pub(super) fn of_service(at: &At<'_>) -> Result<BTreeMap<String, ServiceNetwork>> {
    let named = at.entries_of("networks")?;
    let only = |key: &str| BTreeMap::from([(key.to_owned(), ServiceNetwork::default())]);
    if let Some(mode) = at.get("network_mode") {
        if let Some(networks) = at.get("networks") {
            return Err(networks.error("does not go together with network_mode; remove one"));
        }
        return match mode.raw()? {
            "bridge" | "default" | "" => Ok(only(DEFAULT)),
            text @ (HOST_NETWORK | NO_NETWORK) => Ok(only(text)),
            text if text.starts_with("service:") => Ok(BTreeMap::new()),
            text => Err(mode.key_pos.error(
                &mode.path,
                format_args!("{text:?} is not supported; use none, host, bridge or service:NAME"),
            )),
        };
    }
    if named.is_empty() {
        return Ok(only(DEFAULT));
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
        link_local_ips: link_local_ips(at)?,
        sysctls: match at.find(&["driver_opts", ENDPOINT_SYSCTLS]) {
            Some(at) => sysctls(&at)?,
            None => BTreeMap::new(),
        },
    })
}

fn link_local_ips(at: &At<'_>) -> Result<Vec<IpAddr>> {
    let mut ips = Vec::new();
    for item in at.items_of("link_local_ips")? {
        let ip: IpAddr = parsed(&item, "an IP address")?;
        let good = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if !good {
            return Err(item.error(format_args!(
                "{ip} is not within 169.254.0.0/16 or fe80::/10"
            )));
        }
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    Ok(ips)
}

/// `net.ipv4.conf.IFNAME.log_martians=1,…`: what belongs to an interface alone.
fn sysctls(at: &At<'_>) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for pair in at
        .raw()?
        .split(',')
        .map(str::trim)
        .filter(|p| !p.is_empty())
    {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (key.trim(), value.trim());
        let parts: Vec<&str> = key.split('.').collect();
        let word = |w: &str| {
            !w.is_empty()
                && w.chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
        };
        let good = matches!(parts[..], ["net", "ipv4" | "ipv6" | "mpls", "conf" | "neigh", "IFNAME", name] if word(name));
        if !good || value.is_empty() {
            return Err(at.error(format_args!(
                "{pair:?} is not net.FAMILY.conf.IFNAME.NAME=VALUE; write the word IFNAME for the interface"
            )));
        }
        out.insert(key.to_owned(), value.to_owned());
    }
    Ok(out)
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
        if !implied(&key) && !known.contains_key(key.as_str()) {
            return Err(used.at.key_pos.error(
                &used.at.path,
                format_args!("network {key} is not declared below networks:"),
            ));
        }
        by_key.entry(key).or_default().push(used);
    }
    let mut order = vec![DEFAULT];
    order.extend(declared.iter().map(|(key, _)| *key));
    order.extend([HOST_NETWORK, NO_NETWORK]);
    let mut seen = std::collections::HashSet::new();
    order.retain(|key| seen.insert(*key));
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
    let alone = |n: &&Network| [HOST_NETWORK, NO_NETWORK].contains(&n.driver.as_str());
    if let (Some(network), true) = (out.iter().find(alone), out.len() > 1)
        && let Some(used) = by_key.get(&network.key).and_then(|uses| uses.first())
    {
        let others = out.iter().filter(|n| n.key != network.key);
        let others: Vec<_> = others.map(|n| n.key.as_str()).collect();
        return Err(used.at.error(format_args!(
            "wants network {}, but other services are on {}; the services of a pod share one network namespace",
            network.driver,
            others.join(", ")
        )));
    }
    Ok(out)
}

/// Networks that need not be declared: the default one, and what `network_mode` names.
fn implied(key: &str) -> bool {
    [DEFAULT, HOST_NETWORK, NO_NETWORK].contains(&key)
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
    for used in uses {
        for ip in &used.settings.link_local_ips {
            if !out.link_local_ips.contains(ip) {
                out.link_local_ips.push(*ip);
            }
        }
        for (key, value) in &used.settings.sysctls {
            if let Some(other) = out.sysctls.insert(key.clone(), value.clone())
                && other != *value
            {
                return Err(used.at.error(format_args!(
                    "{key}={value} contradicts {other} of another service; a pod has one interface on a network"
                )));
            }
        }
    }
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
        let driver = match key {
            HOST_NETWORK | NO_NETWORK => key,
            _ => "bridge",
        };
        return Ok(Network {
            key: key.to_owned(),
            origin,
            name: default_name,
            external: false,
            driver: driver.to_owned(),
            driver_opts: BTreeMap::new(),
            internal: false,
            enable_ipv4: true,
            enable_ipv6: false,
            ipam_driver: None,
            ipam_options: BTreeMap::new(),
            ipam: Vec::new(),
            extra: NetworkExtra::default(),
            labels: BTreeMap::new(),
            attachment,
        });
    };
    let flag = |key: &str, default: bool| at.get(key).map_or(Ok(default), |at| at.bool());
    let external = flag("external", false)?;
    if external {
        only_a_name(at)?;
    }
    let (enable_ipv4, enable_ipv6) = (flag("enable_ipv4", true)?, flag("enable_ipv6", false)?);
    if let (Some(v4), false, false) = (at.get("enable_ipv4"), enable_ipv4, enable_ipv6) {
        return Err(v4.error("neither IPv4 nor IPv6 is left; write enable_ipv6: true"));
    }
    let name = at.get("name").map(|at| schema::name_at(&at)).transpose()?;
    let extra = match at.get("x-sampan") {
        Some(extra) => self::extra(&extra, external)?,
        None => NetworkExtra::default(),
    };
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
        internal: flag("internal", false)?,
        enable_ipv4,
        enable_ipv6,
        ipam_driver: ipam_driver(at)?,
        ipam_options: match at.get("ipam") {
            Some(ipam) => service::text_map(&ipam, "options")?,
            None => BTreeMap::new(),
        },
        ipam: match at.get("ipam") {
            Some(ipam) => ipam
                .items_of("config")?
                .iter()
                .map(pool)
                .collect::<Result<_>>()?,
            None => Vec::new(),
        },
        extra,
        labels: service::text_map(at, "labels")?,
        attachment,
    })
}

/// `x-sampan` of a network.
fn extra(at: &At<'_>, external: bool) -> Result<NetworkExtra> {
    for key in ["config", "plugins", "routes"] {
        if let (true, Some(at)) = (external, at.get(key)) {
            return Err(at.key_pos.error(
                &at.path,
                "does not go together with external; write it into the network list",
            ));
        }
    }
    let mut extra = NetworkExtra {
        default: at.get("default").map_or(Ok(false), |at| at.bool())?,
        groups: at.strings_of("groups")?,
        labels: service::text_map(at, "labels")?,
        cni_args: service::text_map(at, "cni_args")?,
        ..NetworkExtra::default()
    };
    for item in at.items_of("routes")? {
        let Some(dst) = item.get("dst") else {
            return Err(item.error("has no dst, the subnet that it leads to"));
        };
        extra.routes.push(Route {
            dst: parsed(&dst, "a subnet such as 10.1.0.0/24")?,
            gw: item
                .get("gw")
                .map(|at| parsed(&at, "an IP address"))
                .transpose()?,
        });
    }
    for (key, value) in at.entries_of("config")? {
        extra.config.insert(key.to_owned(), json(&value)?);
    }
    for (key, value) in at.entries_of("capabilities")? {
        if matches!(key, "aliases" | "ips" | "labels" | "mac" | "portMappings") {
            return Err(value.key_pos.error(
                &value.path,
                "compose has words of its own for it; see docs/cni.md",
            ));
        }
        extra.capabilities.insert(key.to_owned(), json(&value)?);
    }
    for item in at.items_of("plugins")? {
        extra.plugins.push(json(&item)?);
    }
    let size = serde_json::to_vec(&extra).map_or(0, |text| text.len());
    match size <= MAX_EXTRA {
        true => Ok(extra),
        false => Err(at.error(format_args!("longer than {MAX_EXTRA} bytes"))),
    }
}

/// A value as JSON, each scalar of the type that YAML gives it.
fn json(at: &At<'_>) -> Result<serde_json::Value> {
    Ok(match &at.node.value {
        Value::Null => serde_json::Value::Null,
        Value::Scalar { text, plain: false } => text.as_str().into(),
        Value::Scalar { text, .. } => match units::plain(text) {
            units::Plain::Null => serde_json::Value::Null,
            units::Plain::Bool(value) => value.into(),
            units::Plain::Int(number) => match i64::try_from(number) {
                Ok(number) => number.into(),
                Err(_) => return Err(at.error(format_args!("{number} is out of range"))),
            },
            units::Plain::Float(number) => number.into(),
            units::Plain::Str => text.as_str().into(),
        },
        Value::Seq(_) => at
            .items()?
            .iter()
            .map(json)
            .collect::<Result<Vec<_>>>()?
            .into(),
        Value::Map(_) => {
            let entries = at.entries()?.into_iter();
            let entries = entries.map(|(key, value)| Ok((key.to_owned(), json(&value)?)));
            serde_json::Value::Object(entries.collect::<Result<_>>()?)
        }
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
        "overlay" => Err(at.error("\"overlay\" is not supported; use vxlan")),
        _ => schema::name_at(&at),
    }
}

/// `default` is what is chosen when nothing is said.
fn ipam_driver(at: &At<'_>) -> Result<Option<String>> {
    match at.find(&["ipam", "driver"]) {
        Some(driver) if driver.raw()? == "default" => Ok(None),
        Some(driver) => schema::name_at(&driver).map(Some),
        None => Ok(None),
    }
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
    let mut aux_addresses = BTreeMap::new();
    for (name, at) in at.entries_of("aux_addresses")? {
        let address = parsed::<IpAddr>(&at, "an IP address")?;
        if !subnet.contains(&address) {
            return Err(at.error(format_args!("{address} lies outside {subnet}")));
        }
        aux_addresses.insert(name.to_owned(), address);
    }
    Ok(IpamPool {
        subnet,
        ip_range,
        gateway,
        aux_addresses,
    })
}
