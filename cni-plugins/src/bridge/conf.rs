//! The configuration of `bridge` and what follows from it: pure.
//!
//! *Invariants*: a [`BridgeConf`] holds only what this plugin does; everything else that the reference plugin knows was
//! refused by name.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::conf::{Conf, valid_ifname};
use crate::error::{CniError, Result};
use crate::layer3::Layer3;
use crate::masquerade;
use crate::result::{AddResult, Dns, Route};
use crate::vxlan::Tunnel;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: u16,
    vlan_trunk: Vec<WireTrunk>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    ipspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    remove_bridge: bool,
    dns: Dns,
}

#[derive(Debug, Deserialize)]
struct WireTrunk {
    #[serde(rename = "minID")]
    min: Option<u16>,
    #[serde(rename = "maxID")]
    max: Option<u16>,
    id: Option<u16>,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            bridge: "cni0".to_owned(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            ip_masq_backend: None,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            vlan: 0,
            vlan_trunk: Vec::new(),
            preserve_default_vlan: true,
            macspoofchk: false,
            ipspoofchk: false,
            enabledad: false,
            disable_container_interface: false,
            port_isolation: false,
            remove_bridge: false,
            dns: Dns::default(),
        }
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConf {
    /// `bridge`: its name.
    pub bridge: String,
    /// `isGateway` or `isDefaultGateway`: the bridge has the gateways' addresses and the host forwards.
    pub is_gateway: bool,
    /// `isDefaultGateway`: the gateways are the container's default routes.
    pub is_default_gateway: bool,
    /// `forceAddress`: an overlapping address of the bridge makes way.
    pub force_address: bool,
    /// `ipMasq`: traffic that leaves the subnet has the host's address.
    pub ip_masq: bool,
    /// `mtu` in bytes; `None`: the kernel's.
    pub mtu: Option<u32>,
    /// `hairpinMode`: a container may reach itself over the bridge.
    pub hairpin: bool,
    /// `promiscMode` of the bridge.
    pub promiscuous: bool,
    /// `vlan` of the port.
    pub vlan: Option<u16>,
    /// `vlanTrunk`: first and last of the tagged VLANs of the port.
    pub trunk: Vec<(u16, u16)>,
    /// `preserveDefaultVlan`: the port stays in VLAN 1 too.
    pub preserve_default_vlan: bool,
    /// `macspoofchk` or `ipspoofchk`: frames with another source link address are dropped.
    pub check_mac: bool,
    /// `ipspoofchk`: packets with another source address are dropped (not in the reference plugin).
    pub check_ip: bool,
    /// `enabledad`: ADD waits for IPv6's duplicate detection.
    pub detect_duplicates: bool,
    /// `disableContainerInterface`: the container's interface stays down.
    pub disable_container_interface: bool,
    /// `portIsolation`: ports don't reach each other.
    pub isolated: bool,
    /// `removeBridge`: a bridge that this plugin made goes with its last port (not in the reference plugin).
    pub remove_bridge: bool,
    /// The tunnel that is a port of the bridge too; the plugin `vxlan`.
    pub tunnel: Option<Tunnel>,
    /// `dns`; where it says anything it takes the place of the address plugin's.
    pub dns: Dns,
    /// The container's link address, where asked for.
    pub mac: Option<[u8; 6]>,
}

impl BridgeConf {
    /// Reads and checks.
    pub fn new(conf: &Conf, args: &str) -> Result<Self> {
        let wire: Wire = conf.parse()?;
        masquerade::require_backend(wire.ip_masq_backend.as_deref())?;
        if !valid_ifname(&wire.bridge) {
            return Err(CniError::config(format!(
                "invalid bridge name {:?}",
                wire.bridge
            )));
        }
        if wire.hairpin_mode && wire.promisc_mode {
            return Err(CniError::config(
                "cannot set hairpin mode and promiscuous mode at the same time",
            ));
        }
        if wire.vlan > 4094 {
            return Err(CniError::config(format!(
                "invalid VLAN ID {} (must be between 0 and 4094)",
                wire.vlan
            )));
        }
        if wire.disable_container_interface && conf.ipam_type().is_some() {
            return Err(CniError::config(
                "cannot use IPAM when disableContainerInterface is set",
            ));
        }
        Ok(Self {
            bridge: wire.bridge,
            is_gateway: wire.is_gateway || wire.is_default_gateway,
            is_default_gateway: wire.is_default_gateway,
            force_address: wire.force_address,
            ip_masq: wire.ip_masq,
            mtu: Some(wire.mtu).filter(|mtu| *mtu > 0),
            hairpin: wire.hairpin_mode,
            promiscuous: wire.promisc_mode,
            vlan: Some(wire.vlan).filter(|vlan| *vlan > 0),
            trunk: trunk(&wire.vlan_trunk)?,
            check_mac: wire.macspoofchk || wire.ipspoofchk,
            check_ip: wire.ipspoofchk,
            detect_duplicates: wire.enabledad,
            preserve_default_vlan: wire.preserve_default_vlan,
            disable_container_interface: wire.disable_container_interface,
            isolated: wire.port_isolation,
            remove_bridge: wire.remove_bridge,
            tunnel: None,
            dns: wire.dns,
            mac: conf.mac(args)?,
        })
    }
}

impl BridgeConf {
    /// The untagged VLAN of the port, where VLANs matter.
    pub fn native_vlan(&self) -> Option<u16> {
        // a trunk without a VLAN of its own has the usual default
        self.vlan.or_else(|| (!self.trunk.is_empty()).then_some(1))
    }
}

/// The VLANs of a trunk, sorted, without overlaps: the kernel takes ranges as they are.
fn trunk(wire: &[WireTrunk]) -> Result<Vec<(u16, u16)>> {
    let wrong = |why: String| Err(CniError::config(format!("invalid vlanTrunk: {why}")));
    let mut ranges = Vec::new();
    for entry in wire {
        match (entry.min, entry.max) {
            (Some(min), Some(max)) if min > max => {
                return wrong(format!("minID {min} is greater than maxID {max}"));
            }
            (Some(min), Some(max)) => ranges.push((min, max)),
            (None, None) if entry.id.is_some() => {}
            _ => return wrong("an entry needs id, or minID and maxID".to_owned()),
        }
        ranges.extend(entry.id.map(|id| (id, id)));
    }
    if let Some((min, max)) = ranges.iter().find(|(min, max)| *min == 0 || *max > 4094) {
        return wrong(format!("{min} to {max} is not between 1 and 4094"));
    }
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (min, max) in ranges {
        match merged.last_mut() {
            Some(last) if min <= last.1 + 1 => last.1 = last.1.max(max),
            _ => merged.push((min, max)),
        }
    }
    Ok(merged)
}

/// What follows from what the address plugin answered.
pub fn plan(conf: &BridgeConf, leased: AddResult) -> Layer3 {
    let mut plan = Layer3::new(&conf.dns, leased);
    for ip in &mut plan.ips {
        if conf.is_gateway && ip.gateway.is_none() {
            ip.gateway = first_host(ip.address);
        }
        if conf.is_gateway
            && let Some(gateway) = ip
                .gateway
                .and_then(|gw| IpNet::new(gw, ip.address.prefix_len()).ok())
            && !plan.gateways.contains(&gateway)
        {
            plan.gateways.push(gateway);
        }
    }
    if conf.is_default_gateway {
        for v4 in [true, false] {
            let default =
                |route: &Route| route.dst.prefix_len() == 0 && route.dst.addr().is_ipv4() == v4;
            if !plan.routes.iter().any(default) {
                plan.routes.extend(plan.gateway(v4).map(default_route));
            }
        }
    }
    plan
}

fn first_host(address: IpNet) -> Option<IpAddr> {
    address.hosts().next()
}

fn default_route(gw: IpAddr) -> Route {
    let any = match gw {
        IpAddr::V4(_) => IpNet::from(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::from(ipnet::Ipv6Net::default()),
    };
    Route {
        dst: any,
        gw: Some(gw),
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    }
}

/// What to do about an address that the bridge has already.
#[derive(Debug, PartialEq, Eq)]
pub enum Existing {
    /// It is the wanted one.
    Same,
    /// It lies in the wanted one's subnet or the other way round.
    Overlaps,
    /// It has nothing to do with it.
    Other,
}

/// Compares an address of the bridge with a wanted one.
pub fn compare(existing: IpNet, wanted: IpNet) -> Existing {
    if existing == wanted {
        Existing::Same
    } else if existing.contains(&wanted.addr()) || wanted.contains(&existing.addr()) {
        Existing::Overlaps
    } else {
        Existing::Other
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn conf(mut value: Value) -> Conf {
        value["cniVersion"] = json!("1.1.0");
        value["name"] = json!("n");
        Conf::new(value).unwrap()
    }

    #[test]
    fn refusals() {
        let cases = [
            (
                json!({"ipMasqBackend": "iptables"}),
                2,
                "ipMasqBackend \"iptables\" is not supported by this plugin",
            ),
            (
                json!({"vlanTrunk": [{"minID": 5}]}),
                7,
                "invalid vlanTrunk: an entry needs id, or minID and maxID",
            ),
            (
                json!({"vlanTrunk": [{"minID": 5, "maxID": 4}]}),
                7,
                "invalid vlanTrunk: minID 5 is greater than maxID 4",
            ),
            (
                json!({"vlanTrunk": [{"id": 4095}]}),
                7,
                "invalid vlanTrunk: 4095 to 4095 is not between 1 and 4094",
            ),
            (json!({"bridge": "a/b"}), 7, "invalid bridge name \"a/b\""),
            (
                json!({"hairpinMode": true, "promiscMode": true}),
                7,
                "cannot set hairpin mode and promiscuous mode at the same time",
            ),
            (
                json!({"vlan": 4095}),
                7,
                "invalid VLAN ID 4095 (must be between 0 and 4094)",
            ),
            (
                json!({"disableContainerInterface": true, "ipam": {"type": "host-local"}}),
                7,
                "cannot use IPAM when disableContainerInterface is set",
            ),
            (
                json!({"mtu": -1}),
                6,
                "cannot read the configuration of network n",
            ),
        ];
        for (value, code, msg) in cases {
            let error = BridgeConf::new(&conf(value.clone()), "").unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (code, msg), "{value}");
        }
    }

    fn plan(value: Value, leased: Value) -> Layer3 {
        super::plan(
            &BridgeConf::new(&conf(value), "").unwrap(),
            serde_json::from_value(leased).unwrap(),
        )
    }

    #[test]
    fn gateways_and_routes() {
        let leased = json!({
            "ips": [{"address": "10.1.0.9/24"}, {"address": "10.2.0.9/24", "gateway": "10.2.0.254"}, {"address": "fd00::9/64", "gateway": "fd00::1"}],
            "routes": [{"dst": "192.168.0.0/16"}]
        });
        let none = plan(json!({}), leased.clone());
        assert_eq!(
            (none.gateways.len(), none.routes.len(), none.ips[0].gateway),
            (0, 1, None)
        );

        let gateway = plan(json!({"isGateway": true}), leased.clone());
        let text: Vec<String> = gateway.gateways.iter().map(IpNet::to_string).collect();
        assert_eq!(text, ["10.1.0.1/24", "10.2.0.254/24", "fd00::1/64"]);
        let routes: Vec<_> = gateway
            .resolved_routes()
            .map(|r| (r.dst.to_string(), r.gw.unwrap().to_string()))
            .collect();
        assert_eq!(
            routes,
            [("192.168.0.0/16".to_owned(), "10.1.0.1".to_owned())]
        );

        let default = plan(json!({"isDefaultGateway": true}), leased.clone());
        let routes: Vec<_> = default
            .resolved_routes()
            .map(|r| (r.dst.to_string(), r.gw.unwrap().to_string()))
            .collect();
        let expected = [
            ("192.168.0.0/16", "10.1.0.1"),
            ("0.0.0.0/0", "10.1.0.1"),
            ("::/0", "fd00::1"),
        ];
        assert_eq!(routes, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(default.mac(), Some([0x0a, 0x58, 10, 1, 0, 9]));

        let dns = plan(json!({"dns": {"nameservers": ["10.1.0.53"]}}), leased);
        assert_eq!(dns.dns.nameservers, ["10.1.0.53"]);

        let own = json!({"ips": [{"address": "10.1.0.9/24"}], "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.7"}]});
        let kept = plan(json!({"isDefaultGateway": true}), own);
        let routes: Vec<_> = kept
            .resolved_routes()
            .map(|r| r.gw.unwrap().to_string())
            .collect();
        assert_eq!(routes, ["10.1.0.7"]);
    }

    #[test]
    fn trunks() {
        let value = json!({"vlanTrunk": [
            {"minID": 10, "maxID": 20, "id": 5}, {"id": 21}, {"minID": 15, "maxID": 18}, {"id": 4094}, {"id": 5}
        ]});
        let got = BridgeConf::new(&conf(value), "").unwrap().trunk;
        assert_eq!(got, [(5, 5), (10, 21), (4094, 4094)]);
    }

    #[test]
    fn existing_addresses() {
        let wanted = "10.1.0.1/24".parse().unwrap();
        for (existing, expected) in [
            ("10.1.0.1/24", Existing::Same),
            ("10.1.0.2/24", Existing::Overlaps),
            ("10.1.0.1/16", Existing::Overlaps),
            ("10.2.0.1/24", Existing::Other),
            ("fe80::1/64", Existing::Other),
        ] {
            assert_eq!(
                compare(existing.parse().unwrap(), wanted),
                expected,
                "{existing}"
            );
        }
    }
}
