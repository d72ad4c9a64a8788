//! The plugin `bridge`: a veth pair between the container and a bridge of the host.
//!
//! *Invariants*: [`conf`] decides, this module executes. The bridge is looked at and changed under the host lock only, so
//! a bridge that goes with its last port (`removeBridge`) never goes under a port that is just coming. The host's end of
//! each pair carries the attachment's tag (module `tag`) as its alias, a bridge that may be removed carries `sampan:<network>`:
//! nothing without our mark is ever deleted. An address is usable when ADD returns.

mod conf;
mod mark;

use std::hash::{BuildHasher, Hasher};
use std::os::fd::AsFd;

use serde_json::Value;

use crate::conf::Conf;
use crate::error::{CniError, Result, all, with_undo};
use crate::layer3::{self, Layer3, SetUp, interface};
use crate::link::{AddressFlags, Kind, Link, Links, NewLink, VethPair};
use crate::masquerade;
use crate::netns::{HostLock, Netns};
use crate::result::{AddResult, Interface};
use crate::skel::{Invocation, Plugin};
use crate::tag::{self, tag};
use crate::{ipam, sysctl};
use conf::{BridgeConf, Existing, compare, plan};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc,
    status,
};

/// Random names that are all taken mean that something else is wrong.
const NAME_TRIES: usize = 16;

/// One ADD: everything that its steps share.
struct Attachment<'a> {
    network: &'a str,
    conf: &'a BridgeConf,
    ifname: &'a str,
    tag: String,
    netns: &'a Netns,
    host: Links,
    pod: Links,
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let bridge = BridgeConf::new(conf, &invocation.args)?;
    let netns = Netns::open(invocation.required_netns()?)?;
    let mut attachment = Attachment {
        network: &conf.name,
        conf: &bridge,
        ifname: &invocation.ifname,
        tag: tag(&conf.name, &invocation.container_id, &invocation.ifname)?,
        netns: &netns,
        host: Links::open()?,
        pod: netns.run(Links::open)?,
    };
    if attachment.pod.by_name(&invocation.ifname)?.is_some() {
        let path = netns.path().display();
        return Err(CniError::operation(
            format!("interface {} exists already in {path}", invocation.ifname),
            "",
        ));
    }
    let Some(kind) = conf.ipam_type() else {
        return attachment
            .connect(Layer3::default())?
            .to_json(&conf.cni_version);
    };
    let leased = ipam::add(conf, kind, invocation)?;
    let connected = attachment.connect(plan(&bridge, leased));
    match connected.and_then(|result| result.to_json(&conf.cni_version)) {
        Ok(value) => Ok(value),
        Err(error) => {
            let release = Invocation {
                command: crate::Command::Del,
                ..invocation.clone()
            };
            Err(with_undo(error, ipam::call(kind, &release)))
        }
    }
}

impl Attachment<'_> {
    fn connect(&mut self, layer3: Layer3) -> Result<AddResult> {
        let lock = HostLock::take()?;
        let result = self.port().and_then(|(bridge, port)| {
            // the bridge has a port now: nobody removes it
            let configured = self.configure(&bridge, &port, &layer3, &lock);
            configured.map_err(|error| {
                let rules = if self.conf.ip_masq {
                    masquerade::remove(&self.tag, &lock)
                } else {
                    Ok(())
                };
                with_undo(error, all([self.host.delete(&port), rules]))
            })
        });
        let interfaces = result.map_err(|error| {
            with_undo(
                error,
                remove_bridge(&mut self.host, self.network, self.conf, &lock),
            )
        })?;
        Ok(layer3.into_result(interfaces, 2))
    }

    /// The bridge, and the host's end of a new pair as its port.
    fn port(&mut self) -> Result<(Link, Link)> {
        let bridge = ensure_bridge(&mut self.host, self.network, self.conf)?;
        let port = self.pair()?;
        let made = self
            .host
            .set_alias(&port, &self.tag)
            .and_then(|()| self.host.attach(&port, &bridge));
        match made {
            Ok(()) => Ok((bridge, port)),
            Err(error) => Err(with_undo(error, self.host.delete(&port))),
        }
    }

    fn pair(&mut self) -> Result<Link> {
        for _ in 0..NAME_TRIES {
            let host_name = random_name();
            let made = self.host.create_veth(&VethPair {
                host_name: &host_name,
                name: self.ifname,
                netns: self.netns.as_fd(),
                mtu: self.conf.mtu,
                mac: self.conf.mac,
            })?;
            if made {
                return self.host.require(&host_name);
            }
        }
        Err(CniError::operation(
            format!("no free name for the host's end of {}", self.ifname),
            "",
        ))
    }

    fn configure(
        &mut self,
        bridge: &Link,
        port: &Link,
        layer3: &Layer3,
        lock: &HostLock,
    ) -> Result<Vec<Interface>> {
        let conf = self.conf;
        if conf.hairpin {
            self.host.set_hairpin(port)?;
        }
        if conf.isolated {
            self.host.set_isolated(port)?;
        }
        if let Some(vid) = conf.vlan {
            self.host
                .set_access_vlan(port, vid, conf.preserve_default_vlan)?;
        }
        // the port is no host interface: it takes no routes from a container
        sysctl::set_if_present(&["ipv6", "conf", &port.name, "accept_ra"], "0")?;
        self.host.up(port)?;
        self.gateways(bridge, layer3)?;
        if !conf.disable_container_interface {
            layer3.set_up(
                self.netns,
                &mut self.pod,
                self.ifname,
                &SetUp {
                    derive_mac: conf.mac.is_none(),
                    detect_duplicates: false,
                    prefix_routes: true,
                },
            )?;
            self.host.wait_operational(port)?;
        }
        if conf.ip_masq {
            let nets: Vec<_> = layer3.ips.iter().map(|ip| ip.address).collect();
            masquerade::add(&self.tag, &nets, lock)?;
        }
        let container = self.pod.require(self.ifname)?;
        let bridge = self.host.require(&bridge.name)?;
        Ok(vec![
            interface(&bridge, None),
            interface(port, None),
            interface(&container, Some(self.netns)),
        ])
    }

    fn gateways(&mut self, bridge: &Link, layer3: &Layer3) -> Result<()> {
        if layer3.gateways.is_empty() {
            return Ok(());
        }
        let existing = self.host.addresses(bridge)?;
        for wanted in &layer3.gateways {
            for old in &existing {
                match compare(*old, *wanted) {
                    Existing::Overlaps if self.conf.force_address => {
                        self.host.delete_address(bridge, *old)?
                    }
                    Existing::Overlaps => {
                        let name = &bridge.name;
                        return Err(CniError::operation(
                            format!("{name:?} already has an IP address different from {wanted}"),
                            format!("{old}; forceAddress replaces it"),
                        ));
                    }
                    Existing::Same | Existing::Other => {}
                }
            }
            if wanted.addr().is_ipv6() {
                sysctl::set(&["ipv6", "conf", &bridge.name, "disable_ipv6"], "0")?;
            }
            self.host
                .add_address(bridge, *wanted, AddressFlags::Nodad)?;
        }
        if layer3.has_family(true) {
            sysctl::set(&["ipv4", "ip_forward"], "1")?;
        }
        if layer3.has_family(false) {
            sysctl::set(&["ipv6", "conf", "all", "forwarding"], "1")?;
        }
        Ok(())
    }
}

fn random_name() -> String {
    // each RandomState is keyed from the kernel's random numbers
    let random = std::hash::RandomState::new().build_hasher().finish() as u32;
    format!("veth{random:08x}")
}

fn ensure_bridge(host: &mut Links, network: &str, conf: &BridgeConf) -> Result<Link> {
    let name = &conf.bridge;
    let bridge = match host.by_name(name)? {
        Some(link) => link,
        None => create_bridge(host, network, conf)?,
    };
    if bridge.kind != "bridge" {
        return Err(CniError::operation(
            format!("{name:?} already exists but is not a bridge"),
            "",
        ));
    }
    if conf.vlan.is_some()
        && bridge.details
            != Some(Kind::Bridge {
                vlan_filtering: true,
            })
    {
        return Err(CniError::operation(
            format!("bridge {name:?} doesn't filter VLANs"),
            "",
        ));
    }
    if conf.promiscuous {
        host.promiscuous(&bridge)?;
    }
    if !bridge.up {
        host.up(&bridge)?;
    }
    Ok(bridge)
}

fn create_bridge(host: &mut Links, network: &str, conf: &BridgeConf) -> Result<Link> {
    let name = &conf.bridge;
    let mac = conf.remove_bridge.then(|| mark::birth_mac(network, name));
    host.create(&NewLink {
        name,
        kind: Kind::Bridge {
            vlan_filtering: conf.vlan.is_some(),
        },
        lower: None,
        lower_netns: None,
        mtu: conf.mtu,
        mac,
    })?;
    let bridge = host.require(name)?;
    let mut set_up = || {
        if conf.remove_bridge {
            host.set_alias(&bridge, &mark::alias(network))?;
        }
        // setting it makes it the bridge's own; otherwise it changes with the ports
        host.set_mac(&bridge, &bridge.mac)?;
        sysctl::set_if_present(&["ipv6", "conf", name, "accept_ra"], "0")?;
        sysctl::set_if_present(&["ipv6", "conf", name, "accept_dad"], "0")
    };
    match set_up() {
        Ok(()) => Ok(bridge),
        Err(error) => Err(with_undo(error, host.delete(&bridge))),
    }
}

/// Removes a bridge of ours without ports.
fn remove_bridge(
    host: &mut Links,
    network: &str,
    conf: &BridgeConf,
    _lock: &HostLock,
) -> Result<()> {
    if !conf.remove_bridge {
        return Ok(());
    }
    match host.by_name(&conf.bridge)? {
        Some(bridge)
            if bridge.kind == "bridge"
                && mark::is_ours(&bridge, network)
                && host.ports(&bridge)?.is_empty() =>
        {
            host.delete(&bridge)
        }
        _ => Ok(()),
    }
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let bridge = BridgeConf::new(conf, &invocation.args)?;
    let tag = tag(&conf.name, &invocation.container_id, &invocation.ifname)?;
    // the address last: nobody may have it while it is still in use here
    all([
        delete_container_end(invocation),
        HostLock::take().and_then(|lock| {
            all([
                delete_ports(conf, &bridge, |alias| alias == tag, &lock),
                if bridge.ip_masq {
                    masquerade::remove(&tag, &lock)
                } else {
                    Ok(())
                },
            ])
        }),
        conf.ipam_type()
            .map_or(Ok(()), |kind| ipam::call(kind, invocation)),
    ])
}

fn delete_container_end(invocation: &Invocation) -> Result<()> {
    let netns = match &invocation.netns {
        Some(path) => Netns::open_if_present(path)?,
        None => None,
    };
    let Some(netns) = netns else {
        return Ok(());
    };
    let mut pod = netns.run(Links::open)?;
    match pod.by_name(&invocation.ifname)? {
        Some(link) => pod.delete(&link),
        None => Ok(()),
    }
}

/// Deletes the bridge's ports whose alias is `stale`, and the bridge after its last one. The kernel takes a while to
/// destroy a namespace, and its interfaces only then: their ends here are deleted by name instead of waited for.
fn delete_ports(
    conf: &Conf,
    bridge: &BridgeConf,
    stale: impl Fn(&str) -> bool,
    lock: &HostLock,
) -> Result<()> {
    let mut host = Links::open()?;
    let Some(link) = host.by_name(&bridge.bridge)? else {
        return Ok(());
    };
    let ports = host.ports(&link)?;
    let deleted = all(ports
        .iter()
        .filter(|port| stale(&port.alias))
        .map(|port| host.delete(port)));
    all([deleted, remove_bridge(&mut host, &conf.name, bridge, lock)])
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let bridge_conf = BridgeConf::new(conf, &invocation.args)?;
    let result = conf.required_prev_result()?;
    if let Some(kind) = conf.ipam_type() {
        ipam::call(kind, invocation)?;
    }
    let netns = Netns::open(invocation.required_netns()?)?;
    check_host(&bridge_conf, &result)?;
    layer3::check(
        &netns,
        &mut netns.run(Links::open)?,
        &invocation.ifname,
        &result,
        !bridge_conf.disable_container_interface,
    )?;
    if bridge_conf.ip_masq {
        let nets: Vec<_> = result
            .container_ips(&invocation.ifname)
            .map(|ip| ip.address)
            .collect();
        masquerade::check(
            &tag(&conf.name, &invocation.container_id, &invocation.ifname)?,
            &nets,
        )?;
    }
    Ok(())
}

fn check_host(conf: &BridgeConf, result: &AddResult) -> Result<()> {
    let mut host = Links::open()?;
    let Some(bridge) = host
        .by_name(&conf.bridge)?
        .filter(|link| link.kind == "bridge")
    else {
        return Err(CniError::check(format!(
            "bridge {} is missing",
            conf.bridge
        )));
    };
    for wanted in result
        .interfaces
        .iter()
        .filter(|link| link.sandbox.is_empty())
    {
        let name = &wanted.name;
        let Some(link) = host.by_name(name)? else {
            return Err(CniError::check(format!(
                "interface {name} is missing on the host"
            )));
        };
        let is_port = link.index == bridge.index || link.controller == Some(bridge.index);
        // interfaces of other plugins of the chain aren't veth pairs of this bridge
        if link.kind == "veth" && !is_port {
            return Err(CniError::check(format!(
                "interface {name} is no port of the bridge {}",
                bridge.name
            )));
        }
    }
    Ok(())
}

fn gc(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let bridge = BridgeConf::new(conf, &invocation.args)?;
    let valid = conf.valid_attachments()?;
    let stale = |text: &str| tag::is_stale(&conf.name, &valid, text);
    all([
        HostLock::take().and_then(|lock| {
            all([
                delete_ports(conf, &bridge, stale, &lock),
                masquerade::retain(|text| !stale(text), &lock),
            ])
        }),
        conf.ipam_type()
            .map_or(Ok(()), |kind| ipam::call(kind, invocation)),
    ])
}

fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    BridgeConf::new(conf, &invocation.args)?;
    conf.ipam_type()
        .map_or(Ok(()), |kind| ipam::call(kind, invocation))
}
