//! The plugin `vxlan`: an Ethernet between hosts, in UDP, to static peers.
//!
//! *Invariants*: without `bridge` the tunnel is the container's interface itself; with it the container is on a bridge
//! that the tunnel is a port of (plugin `bridge`, whose keys all apply), and both go with the last pod. Networks with
//! different ids share nothing.

mod tunnel;

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::bridge::{self, BridgeConf};
use crate::conf::{Conf, valid_ifname};
use crate::error::{CniError, Result};
use crate::layer3::require_drivers;
use crate::link::{Link, Links};
use crate::single::{self, Making, Sides};
use crate::skel::{Invocation, Plugin};
pub use tunnel::Tunnel;

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc,
    status,
};

#[derive(Debug, Deserialize)]
struct Wire {
    id: u32,
    #[serde(default = "iana_port")]
    port: u16,
    local: Option<IpAddr>,
    dev: Option<String>,
    #[serde(default = "yes")]
    learning: bool,
    #[serde(default)]
    peers: Vec<IpAddr>,
    bridge: Option<String>,
    #[serde(default)]
    mtu: u32,
}

/// RFC 7348 §5.
fn iana_port() -> u16 {
    4789
}

fn yes() -> bool {
    true
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
struct VxlanConf {
    tunnel: Tunnel,
    /// `mtu` in bytes; `None`: what the tunnel leaves.
    mtu: Option<u32>,
    /// With a bridge: what the container's part is.
    bridge: Option<BridgeConf>,
}

impl VxlanConf {
    fn new(conf: &Conf, args: &str) -> Result<Self> {
        let wire: Wire = conf.parse()?;
        if wire.id >= 1 << 24 {
            return Err(CniError::config(format!(
                "invalid VXLAN id {} (must be below 16777216)",
                wire.id
            )));
        }
        if let Some(dev) = wire.dev.as_deref().filter(|dev| !valid_ifname(dev)) {
            return Err(CniError::config(format!("invalid dev {dev:?}")));
        }
        let mut addresses = wire.peers.iter().chain(&wire.local);
        if let Some(first) = addresses.next()
            && let Some(other) = addresses.find(|other| other.is_ipv4() != first.is_ipv4())
        {
            return Err(CniError::config(format!(
                "peers and local mix IPv4 and IPv6: {first} and {other}"
            )));
        }
        let tunnel = Tunnel {
            id: wire.id,
            port: wire.port,
            local: wire.local,
            dev: wire.dev,
            learning: wire.learning,
            peers: wire.peers,
        };
        let bridge = match wire.bridge {
            None => None,
            Some(_) => Some(BridgeConf {
                tunnel: Some(tunnel.clone()),
                remove_bridge: true,
                ..BridgeConf::new(conf, args)?
            }),
        };
        Ok(Self {
            tunnel,
            mtu: Some(wire.mtu).filter(|mtu| *mtu > 0),
            bridge,
        })
    }
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let VxlanConf {
        tunnel,
        mtu,
        bridge,
    } = VxlanConf::new(conf, &invocation.args)?;
    let room = tunnel.mtu(&mut Links::open()?)?;
    let mtu = mtu.unwrap_or(room);
    if mtu > room {
        return Err(CniError::config(format!(
            "mtu {mtu} is more than the {room} bytes that the tunnel leaves"
        )));
    }
    if let Some(bridge) = bridge {
        let bridge = BridgeConf {
            mtu: Some(mtu),
            ..bridge
        };
        return bridge::add(conf, &bridge, invocation);
    }
    single::add(conf, invocation, |sides| {
        let kind = tunnel.kind(&mut sides.host)?;
        let making = Making {
            kind,
            lower: None,
            in_container: false,
            mtu: Some(mtu),
            own_mac: true,
        };
        let link = sides.create(&making)?;
        tunnel.set_peers(&mut sides.pod, &link)
    })
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    match VxlanConf::new(conf, &invocation.args)?.bridge {
        Some(bridge) => bridge::del(conf, &bridge, invocation),
        None => single::del(conf, invocation),
    }
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let VxlanConf { tunnel, bridge, .. } = VxlanConf::new(conf, &invocation.args)?;
    if let Some(bridge) = bridge {
        return bridge::check(conf, &bridge, invocation);
    }
    single::check(conf, invocation, |sides: &mut Sides<'_>, link: &Link| {
        let kind = tunnel.kind(&mut sides.host)?;
        single::same_kind(link, &kind)?;
        tunnel.check_peers(&mut sides.pod, link)
    })
}

fn gc(conf: &Conf, invocation: &Invocation) -> Result<()> {
    match VxlanConf::new(conf, &invocation.args)?.bridge {
        Some(bridge) => bridge::gc(conf, &bridge, invocation),
        None => single::gc(conf, invocation),
    }
}

fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let VxlanConf { tunnel, bridge, .. } = VxlanConf::new(conf, &invocation.args)?;
    let mut host = Links::open()?;
    require_drivers(&mut host, &["vxlan"])?;
    tunnel.kind(&mut host).map_err(CniError::unavailable)?;
    match bridge {
        Some(bridge) => bridge::status(conf, &bridge, invocation),
        None => single::status(conf, invocation),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(mut value: Value) -> Result<VxlanConf> {
        value["cniVersion"] = json!("1.1.0");
        value["name"] = json!("n");
        VxlanConf::new(&Conf::new(value).unwrap(), "")
    }

    #[test]
    fn configurations() {
        let plain = read(json!({"id": 7})).unwrap();
        assert_eq!(
            plain.tunnel,
            Tunnel {
                id: 7,
                port: 4789,
                local: None,
                dev: None,
                learning: true,
                peers: Vec::new(),
            }
        );
        assert_eq!((plain.mtu, plain.bridge), (None, None));
        let bridged = read(json!({"id": 7, "bridge": "br7", "mtu": 1400})).unwrap();
        let bridge = bridged.bridge.unwrap();
        assert_eq!(
            (bridge.bridge.as_str(), bridge.remove_bridge, bridged.mtu),
            ("br7", true, Some(1400))
        );
        for (value, expected) in [
            (
                json!({}),
                "cannot read the configuration of network n: missing field `id`",
            ),
            (
                json!({"id": 16_777_216}),
                "invalid VXLAN id 16777216 (must be below 16777216)",
            ),
            (json!({"id": 1, "dev": "a/b"}), "invalid dev \"a/b\""),
            (
                json!({"id": 1, "local": "::1", "peers": ["10.0.0.1"]}),
                "peers and local mix IPv4 and IPv6: 10.0.0.1 and ::1",
            ),
            (
                json!({"id": 1, "bridge": "a/b"}),
                "invalid bridge name \"a/b\"",
            ),
        ] {
            assert_eq!(read(value).unwrap_err().to_string(), expected);
        }
    }
}
