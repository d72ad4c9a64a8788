//! The plugin `bridge`: a veth pair between the container and a bridge of the host.
//!
//! *Invariants*: [`conf`] decides, [`host`] and this module execute. The bridge is looked at and changed under the host
//! lock only, so a bridge that goes with its last port (`removeBridge`) never goes under a port that is just coming. The
//! host's end of each pair carries the attachment's tag (module `tag`) as its alias, a bridge that may be removed carries
//! `sampan:<network>`: nothing without our mark is ever deleted. An address is usable when ADD returns.
//!
//! The plugin `vxlan` is this one with a tunnel as one more port.

mod conf;
mod host;

use serde_json::Value;

use crate::conf::Conf;
use crate::error::{CniError, Result, all, with_undo};
use crate::layer3::{self, Layer3, SetUp, interface};
use crate::link::{Link, Links};
use crate::netns::{HostLock, Netns};
use crate::result::AddResult;
use crate::skel::{Invocation, Plugin};
use crate::spoof::{self, Sender};
use crate::tag::{self, tag};
use crate::{ipam, masquerade, veth};
pub use conf::BridgeConf;
use conf::plan;
pub use host::forward;
use host::{
    ensure_bridge, gateway_link, new_port, remove_bridge, set_gateways, wanted_gateway_name,
};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add: |conf, invocation| add(conf, &BridgeConf::new(conf, &invocation.args)?, invocation),
    del: |conf, invocation| del(conf, &BridgeConf::new(conf, &invocation.args)?, invocation),
    check: |conf, invocation| check(conf, &BridgeConf::new(conf, &invocation.args)?, invocation),
    gc: |conf, invocation| gc(conf, &BridgeConf::new(conf, &invocation.args)?, invocation),
    status: |conf, invocation| status(conf, &BridgeConf::new(conf, &invocation.args)?, invocation),
};

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

/// ADD.
pub fn add(conf: &Conf, bridge: &BridgeConf, invocation: &Invocation) -> Result<Value> {
    if bridge.is_gateway {
        wanted_gateway_name(bridge)?;
    }
    let netns = Netns::open(invocation.required_netns()?)?;
    let mut attachment = Attachment {
        network: &conf.name,
        conf: bridge,
        ifname: &invocation.ifname,
        tag: tag(&conf.name, &invocation.container_id, &invocation.ifname)?,
        netns: &netns,
        host: Links::open()?,
        pod: netns.run(Links::open)?,
    };
    layer3::require_absent(&mut attachment.pod, &netns, &invocation.ifname)?;
    let (link, port) = attachment.plug()?;
    // the bridge has a port now: nobody removes it
    let result = ipam::lease(conf, invocation, |leased| {
        attachment
            .configure(&link, &port, plan(bridge, leased))?
            .to_json(&conf.cni_version)
    });
    result.map_err(|error| with_undo(error, attachment.unplug(&port)))
}

impl Attachment<'_> {
    /// The bridge, and the host's end of a new pair as its port.
    fn plug(&mut self) -> Result<(Link, Link)> {
        let lock = HostLock::take()?;
        let ends = veth::Ends {
            name: self.ifname,
            mtu: self.conf.mtu,
            mac: self.conf.mac,
            alias: &self.tag,
        };
        ensure_bridge(&mut self.host, self.network, self.conf)
            .and_then(|bridge| {
                let port = new_port(&mut self.host, self.netns, self.conf, &bridge, &ends)?;
                Ok((bridge, port))
            })
            .map_err(|error| {
                with_undo(
                    error,
                    remove_bridge(&mut self.host, self.network, self.conf, &lock),
                )
            })
    }

    fn unplug(&mut self, port: &Link) -> Result<()> {
        let lock = HostLock::take()?;
        all([
            self.host.delete(port),
            remove_rules(self.conf, |comment| comment == self.tag, &lock),
            remove_bridge(&mut self.host, self.network, self.conf, &lock),
        ])
    }

    fn configure(&mut self, bridge: &Link, port: &Link, layer3: Layer3) -> Result<AddResult> {
        let conf = self.conf;
        let lock = HostLock::take()?;
        let mut gateway = None;
        if !layer3.gateways.is_empty() {
            let link = gateway_link(&mut self.host, self.network, conf, bridge)?;
            set_gateways(&mut self.host, conf, &link, &layer3)?;
            gateway = conf.vlan.map(|_| link.name);
        }
        let set_up = SetUp {
            derive_mac: conf.mac.is_none(),
            detect_duplicates: conf.detect_duplicates,
            prefix_routes: true,
            addresses_alone: true,
        };
        layer3.prepare(self.netns, &mut self.pod, self.ifname, &set_up)?;
        let container = self.pod.require(self.ifname)?;
        if let Some(sender) = sender(conf, &port.name, &container.mac, &layer3.addresses()) {
            spoof::add(&self.tag, &sender, &lock)?;
        }
        if conf.ip_masq {
            masquerade::add(&self.tag, &layer3.addresses(), &lock)?;
        }
        drop(lock);
        if !conf.disable_container_interface {
            layer3.bring_up(&mut self.pod, &container, &set_up)?;
            self.host.wait_operational(port)?;
            layer3::wait_until_usable(&mut self.pod, &container)?;
        }
        let container = self.pod.require(self.ifname)?;
        let bridge = self.host.require(&bridge.name)?;
        let mut interfaces = vec![
            interface(&bridge, None),
            interface(port, None),
            interface(&container, Some(self.netns)),
        ];
        if let Some(name) = gateway {
            interfaces.push(interface(&self.host.require(&name)?, None));
        }
        Ok(layer3.into_result(interfaces, 2))
    }
}

/// What may come from the container, where that is checked.
fn sender(conf: &BridgeConf, port: &str, mac: &[u8], nets: &[ipnet::IpNet]) -> Option<Sender> {
    if !conf.check_mac {
        return None;
    }
    Some(Sender {
        port: port.to_owned(),
        mac: mac.try_into().ok()?,
        ips: conf
            .check_ip
            .then(|| nets.iter().map(ipnet::IpNet::addr).collect()),
    })
}

fn remove_rules(conf: &BridgeConf, stale: impl Fn(&str) -> bool, lock: &HostLock) -> Result<()> {
    all([
        if conf.ip_masq {
            masquerade::retain(|comment| !stale(comment), lock)
        } else {
            Ok(())
        },
        if conf.check_mac {
            spoof::retain(|comment| !stale(comment), lock)
        } else {
            Ok(())
        },
    ])
}

/// DEL.
pub fn del(conf: &Conf, bridge: &BridgeConf, invocation: &Invocation) -> Result<()> {
    let tag = tag(&conf.name, &invocation.container_id, &invocation.ifname)?;
    ipam::release(conf, invocation, || {
        let pair = delete_pair(invocation, &tag);
        let search = !matches!(pair, Ok(true));
        all([
            pair.map(|_| ()),
            delete(conf, bridge, search, |alias| alias == tag),
        ])
    })
}

/// Deletes the container's interface; whether the host's end went with it. A bridge may have a thousand ports: only where this
/// one is not found by its other end are all of them looked at.
fn delete_pair(invocation: &Invocation, tag: &str) -> Result<bool> {
    let Some((mut pod, link)) = layer3::container_link(invocation)? else {
        return Ok(false);
    };
    // the number may be that of an interface in another namespace: the mark decides
    let port = match link.lower {
        Some(index) if link.kind == "veth" => Links::open()?.by_index(index)?,
        _ => None,
    };
    pod.delete(&link)?;
    Ok(port.is_some_and(|port| port.kind == "veth" && port.alias == tag))
}

/// Deletes rules that are `stale`, ports too where these are to be searched for, and the bridge after its last port.
fn delete(
    conf: &Conf,
    bridge: &BridgeConf,
    search: bool,
    stale: impl Fn(&str) -> bool,
) -> Result<()> {
    let lock = HostLock::take()?;
    let mut host = Links::open()?;
    let ports = match host.by_name(&bridge.bridge)? {
        Some(link) if search => host.ports(&link)?,
        _ => Vec::new(),
    };
    all([
        veth::delete_stale(&mut host, &ports, &stale),
        remove_rules(bridge, &stale, &lock),
        remove_bridge(&mut host, &conf.name, bridge, &lock),
    ])
}

/// CHECK.
pub fn check(conf: &Conf, bridge: &BridgeConf, invocation: &Invocation) -> Result<()> {
    let result = conf.required_prev_result()?;
    ipam::call(conf, invocation)?;
    let netns = Netns::open(invocation.required_netns()?)?;
    let port = check_host(conf, bridge, &result)?;
    let container = layer3::check(
        &netns,
        &mut netns.run(Links::open)?,
        &invocation.ifname,
        &result,
        !bridge.disable_container_interface,
    )?;
    let tag = tag(&conf.name, &invocation.container_id, &invocation.ifname)?;
    let nets: Vec<_> = result
        .container_ips(&invocation.ifname)
        .map(|ip| ip.address)
        .collect();
    if let Some(sender) = sender(bridge, &port, &container.mac, &nets) {
        spoof::check(&tag, &sender)?;
    }
    if bridge.ip_masq {
        masquerade::check(&tag, &nets)?;
    }
    Ok(())
}

/// Returns the name of the container's port.
fn check_host(conf: &Conf, bridge_conf: &BridgeConf, result: &AddResult) -> Result<String> {
    let mut host = Links::open()?;
    let name = &bridge_conf.bridge;
    let bridge = host
        .by_name(name)?
        .filter(|link| link.kind == "bridge")
        .ok_or_else(|| CniError::check(format!("bridge {name} is missing")))?;
    if !bridge.up {
        return Err(CniError::check(format!("bridge {name} is down")));
    }
    if bridge_conf.promiscuous && !bridge.promiscuous {
        return Err(CniError::check(format!("bridge {name} is not promiscuous")));
    }
    if let Some(tunnel) = &bridge_conf.tunnel {
        tunnel.check(&mut host, &conf.name, &bridge)?;
    }
    let mut own = String::new();
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
        // interfaces of other plugins of the chain aren't veth pairs of this bridge
        let is_pair = link.kind == "veth" && !crate::mark::is_ours(&link, &conf.name);
        if is_pair && link.controller != Some(bridge.index) {
            return Err(CniError::check(format!(
                "interface {name} is no port of the bridge {}",
                bridge.name
            )));
        }
        if is_pair && own.is_empty() {
            own.clone_from(name);
        }
    }
    Ok(own)
}

/// GC.
pub fn gc(conf: &Conf, bridge: &BridgeConf, invocation: &Invocation) -> Result<()> {
    let (valid, runtime) = (conf.valid_attachments()?, conf.runtime()?);
    all([
        delete(conf, bridge, true, |text| {
            tag::is_stale(&conf.name, runtime, &valid, text)
        }),
        ipam::call(conf, invocation),
    ])
}

/// STATUS.
pub fn status(conf: &Conf, _: &BridgeConf, invocation: &Invocation) -> Result<()> {
    layer3::require_drivers(&mut Links::open()?, &["bridge", "veth"])?;
    ipam::call(conf, invocation)
}
