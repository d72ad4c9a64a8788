//! The host's side of `bridge`: the bridge, what hangs on it for all attachments, and an attachment's port.
//!
//! *Invariants*: called under the host lock. A bridge goes only when it is ours and nothing but our own tunnel and
//! gateway interfaces is left on it.

use std::os::fd::AsFd;

use crate::bridge::conf::{BridgeConf, Existing, compare};
use crate::conf::valid_ifname;
use crate::error::{CniError, Result, all, with_undo};
use crate::layer3::Layer3;
use crate::link::{AddressFlags, Kind, Link, Links, NewLink};
use crate::netns::{HostLock, Netns, open_own};
use crate::tag;
use crate::vxlan::Tunnel;
use crate::{mark, sysctl, veth};

/// The bridge and what all attachments share, made where missing.
pub fn ensure_bridge(host: &mut Links, network: &str, conf: &BridgeConf) -> Result<Link> {
    let name = &conf.bridge;
    let bridge = match host.by_name(name)? {
        Some(link) => link,
        None => create_bridge(host, network, conf)?,
    };
    let Some(Kind::Bridge { vlan_filtering, .. }) = bridge.details else {
        return Err(CniError::operation(
            format!("{name:?} already exists but is not a bridge"),
            "",
        ));
    };
    if conf.native_vlan().is_some() && !vlan_filtering {
        return Err(CniError::operation(
            format!("bridge {name:?} doesn't filter VLANs"),
            "",
        ));
    }
    if conf.promiscuous {
        host.set_promiscuous(&bridge, true)?;
    }
    if let Some(tunnel) = &conf.tunnel {
        tunnel.ensure(host, network, &bridge)?;
    }
    if !bridge.up {
        host.up(&bridge)?;
    }
    Ok(bridge)
}

fn create_bridge(host: &mut Links, network: &str, conf: &BridgeConf) -> Result<Link> {
    let name = &conf.bridge;
    host.create(&NewLink {
        name,
        kind: Kind::Bridge {
            vlan_filtering: conf.native_vlan().is_some(),
            default_vlan: None,
        },
        lower: None,
        lower_netns: None,
        mtu: conf.mtu,
        mac: conf.remove_bridge.then(|| mark::birth_mac(network, name)),
    })?;
    let bridge = host.require(name)?;
    let mut set_up = || {
        if conf.remove_bridge {
            host.set_alias(&bridge, &mark::alias(network))?;
        }
        // setting it makes it the bridge's own; otherwise it changes with the ports
        host.set_mac(&bridge, &bridge.mac)?;
        veth::ignore_routers(name)?;
        // until it is the gateway of an IPv6 address
        veth::without_ipv6(name)?;
        sysctl::set_if_present(&["ipv6", "conf", name, "accept_dad"], "0")
    };
    match set_up() {
        Ok(()) => Ok(bridge),
        Err(error) => Err(with_undo(error, host.delete(&bridge))),
    }
}

/// The host's end of a new pair as a port of the bridge, up.
pub fn new_port(
    host: &mut Links,
    netns: &Netns,
    conf: &BridgeConf,
    bridge: &Link,
    ends: &veth::Ends<'_>,
) -> Result<Link> {
    let port = veth::create(host, netns.as_fd(), ends)?;
    let mut set_up = || {
        host.attach(&port, bridge)?;
        if conf.hairpin {
            host.set_hairpin(&port)?;
        }
        if conf.isolated {
            host.set_isolated(&port)?;
        }
        set_vlans(host, conf, bridge, &port)?;
        host.up(&port)
    };
    match set_up() {
        Ok(()) => Ok(port),
        Err(error) => Err(with_undo(error, host.delete(&port))),
    }
}

fn set_vlans(host: &mut Links, conf: &BridgeConf, bridge: &Link, port: &Link) -> Result<()> {
    let Some(native) = conf.native_vlan() else {
        return Ok(());
    };
    let given = match bridge.details {
        Some(Kind::Bridge { default_vlan, .. }) => default_vlan,
        _ => None,
    };
    let listed = |vid: u16| {
        vid == native
            || conf
                .trunk
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&vid))
    };
    let unwanted = given.filter(|vid| !conf.preserve_default_vlan && !listed(*vid));
    host.set_vlans(port, native, &conf.trunk, unwanted)
}

/// The interface that has the gateways' addresses: the bridge, or the host's own in the VLAN.
pub fn gateway_link(
    host: &mut Links,
    network: &str,
    conf: &BridgeConf,
    bridge: &Link,
) -> Result<Link> {
    let Some(name) = wanted_gateway_name(conf)? else {
        return Ok(bridge.clone());
    };
    if let Some(link) = host.by_name(&name)? {
        return Ok(link);
    }
    let port = veth::create(
        host,
        open_own()?.as_fd(),
        &veth::Ends {
            name: &name,
            mtu: Some(bridge.mtu),
            mac: Some(mark::birth_mac(network, &name)),
            alias: &mark::alias(network),
        },
    )?;
    let mut set_up = || {
        let link = host.require(&name)?;
        veth::ignore_routers(&name)?;
        veth::without_ipv6(&name)?;
        sysctl::set_if_present(&["ipv6", "conf", &name, "accept_dad"], "0")?;
        host.attach(&port, bridge)?;
        let plain = BridgeConf {
            trunk: Vec::new(),
            ..conf.clone()
        };
        set_vlans(host, &plain, bridge, &port)?;
        host.up(&port)?;
        host.up(&link)?;
        Ok(link)
    };
    set_up().map_err(|error| with_undo(error, host.delete(&port)))
}

/// The interface in the VLAN that a gateway needs.
pub fn wanted_gateway_name(conf: &BridgeConf) -> Result<Option<String>> {
    let Some(vlan) = conf.vlan else {
        return Ok(None);
    };
    let name = gateway_name(&conf.bridge, vlan).ok_or_else(|| {
        CniError::config(format!(
            "the host's interface in VLAN {vlan} would be {}.{vlan}, longer than 15 bytes: the bridge needs a shorter name",
            conf.bridge
        ))
    })?;
    Ok(Some(name))
}

/// `None`: no interface can have that name, so there is none.
fn gateway_name(bridge: &str, vlan: u16) -> Option<String> {
    Some(format!("{bridge}.{vlan}")).filter(|name| valid_ifname(name))
}

/// The gateways' addresses, and forwarding.
pub fn set_gateways(
    host: &mut Links,
    conf: &BridgeConf,
    link: &Link,
    layer3: &Layer3,
) -> Result<()> {
    let name = &link.name;
    let existing = host.addresses(link)?;
    for wanted in &layer3.gateways {
        for old in &existing {
            match compare(*old, *wanted) {
                Existing::Overlaps if conf.force_address => host.delete_address(link, *old)?,
                Existing::Overlaps => {
                    return Err(CniError::operation(
                        format!("{name:?} already has an IP address different from {wanted}"),
                        format!("{old}; forceAddress replaces it"),
                    ));
                }
                Existing::Same | Existing::Other => {}
            }
        }
        if wanted.addr().is_ipv6() {
            sysctl::set(&["ipv6", "conf", name, "disable_ipv6"], "0")?;
        }
        host.add_address(link, *wanted, AddressFlags::Nodad)?;
    }
    forward(layer3)
}

/// Lets the host pass on packets of the families that are used.
pub fn forward(layer3: &Layer3) -> Result<()> {
    if layer3.has_family(true) {
        sysctl::set(&["ipv4", "ip_forward"], "1")?;
    }
    if layer3.has_family(false) {
        sysctl::set(&["ipv6", "conf", "all", "forwarding"], "1")?;
    }
    Ok(())
}

/// Removes what all attachments of the network share and none uses any more: the bridge, when it is ours, and what hangs
/// on it, when that is ours. What a killed process had not hung on it yet is found by its name.
pub fn remove_bridge(
    host: &mut Links,
    network: &str,
    conf: &BridgeConf,
    _lock: &HostLock,
) -> Result<()> {
    if !conf.remove_bridge {
        return Ok(());
    }
    let bridge = host.by_name(&conf.bridge)?;
    let is_ours = |link: &&Link| link.kind == "bridge" && mark::is_ours(link, network);
    let ours = bridge.as_ref().filter(is_ours);
    // nothing but attachments has a carrier there: the usual case, and no port has to be looked at
    let alone = conf.tunnel.is_none() && conf.vlan.is_none();
    if alone && ours.is_none_or(|bridge| bridge.carrier) {
        return Ok(());
    }
    let mut shared = Vec::new();
    for port in match &bridge {
        Some(bridge) => host.ports(bridge)?,
        None => Vec::new(),
    } {
        if is_shared(host, network, conf, &port)? {
            shared.push(port);
            continue;
        }
        // on somebody else's bridge only our own attachments count
        let counts = tag::parse(&port.alias).is_some_and(|tag| tag.network == network);
        if ours.is_some() || counts {
            return Ok(());
        }
    }
    let names = [
        conf.tunnel.as_ref().map(Tunnel::name),
        conf.vlan.and_then(|vlan| gateway_name(&conf.bridge, vlan)),
    ];
    for name in names.into_iter().flatten() {
        let link = host.by_name(&name)?;
        shared.extend(link.filter(|link| mark::is_ours(link, network)));
    }
    all(shared
        .iter()
        .chain(ours)
        .map(|link| host.delete(link))
        .collect::<Vec<_>>())
}

/// A port that serves all attachments: our tunnel, or the other end of our interface in a VLAN.
fn is_shared(host: &mut Links, network: &str, conf: &BridgeConf, port: &Link) -> Result<bool> {
    if mark::is_ours(port, network) {
        return Ok(true);
    }
    let (Some(vlan), Some(peer)) = (conf.vlan, port.lower) else {
        return Ok(false);
    };
    // the number may be that of an interface in another namespace: the name and the mark decide
    Ok(host.by_index(peer)?.is_some_and(|link| {
        gateway_name(&conf.bridge, vlan).is_some_and(|name| name == link.name)
            && mark::is_ours(&link, network)
    }))
}
