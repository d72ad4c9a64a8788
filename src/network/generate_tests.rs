//! Tables: a network of a compose file and the list, or the refusal, that it gives.

use super::super::ranges::range;
use super::*;
use crate::compose::project::{IpamPool, Origin, Route};

fn network() -> Network {
    Network {
        key: "back".into(),
        origin: Origin {
            file: "compose.yaml".into(),
            line: 7,
        },
        name: "app_back".into(),
        external: false,
        driver: "bridge".into(),
        driver_opts: Default::default(),
        internal: false,
        enable_ipv4: true,
        enable_ipv6: false,
        ipam_driver: None,
        ipam_options: Default::default(),
        ipam: vec![],
        extra: Default::default(),
        labels: Default::default(),
        attachment: Default::default(),
    }
}

fn pool(subnet: &str, ip_range: Option<&str>, gateway: Option<&str>) -> IpamPool {
    IpamPool {
        subnet: subnet.parse().unwrap(),
        ip_range: ip_range.map(|r| r.parse().unwrap()),
        gateway: gateway.map(|g| g.parse().unwrap()),
        aux_addresses: Default::default(),
    }
}

fn generated(network: &Network, subnets: &[&str]) -> Result<Value, String> {
    let subnets: Vec<_> = subnets.iter().map(|s| s.parse().unwrap()).collect();
    generate(network, &subnets, Path::new("/leases"))
        .map(|list| list.config)
        .map_err(|e| e.to_string())
}

#[test]
fn plain_network() {
    let got = generated(&network(), &["10.190.3.0/24", "fd00:1::/64"]).unwrap();
    assert_eq!(
        got,
        json!({"cniVersion": "1.0.0", "name": "app_back", "plugins": [
            {
                "type": "bridge", "bridge": "sp-459f6bf961d8", "forceAddress": true,
                "isGateway": true, "ipMasq": true, "hairpinMode": true, "removeBridge": true,
                "capabilities": {"ips": true, "mac": true},
                "ipam": {
                    "type": "host-local", "dataDir": "/leases",
                    "ranges": [
                        [{"subnet": "10.190.3.0/24", "gateway": "10.190.3.1"}],
                        [{"subnet": "fd00:1::/64", "gateway": "fd00:1::1"}],
                    ],
                },
            },
            {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
        ]})
    );
}

#[test]
fn internal_with_options_and_pools() {
    let mut network = network();
    network.internal = true;
    network.driver_opts = [
        (OPT_NAME, "br-own"),
        (OPT_MTU, "1400"),
        (OPT_MASQUERADE, "true"),
    ]
    .map(|(k, v)| (k.to_string(), v.to_string()))
    .into();
    // as in the compose specification's own example; the fixed address is outside the range
    network.ipam = vec![pool(
        "172.28.0.0/16",
        Some("172.28.5.0/24"),
        Some("172.28.5.254"),
    )];
    network.attachment.ipv4_address = Some("172.28.1.9".parse().unwrap());
    let got = generated(&network, &["10.190.3.0/24"]).unwrap();
    assert_eq!(
        got,
        json!({"cniVersion": "1.0.0", "name": "app_back", "plugins": [{
            "type": "bridge", "bridge": "br-own", "mtu": 1400,
            "isGateway": false, "ipMasq": false, "hairpinMode": true, "removeBridge": true,
            "capabilities": {"ips": true, "mac": true},
            "ipam": {
                "type": "host-local", "dataDir": "/leases",
                "ranges": [[
                    {"subnet": "172.28.0.0/16", "gateway": "172.28.5.254",
                        "rangeStart": "172.28.5.0", "rangeEnd": "172.28.5.255"},
                    {"subnet": "172.28.0.0/16", "gateway": "172.28.5.254",
                        "rangeStart": "172.28.1.9", "rangeEnd": "172.28.1.9"},
                ]],
            },
        }]})
    );
}

#[test]
fn ranges_leave_out_network_and_broadcast() {
    let table = [
        ("10.0.0.0/24", "10.0.0.0/25", "10.0.0.1", "10.0.0.127"),
        ("10.0.0.0/24", "10.0.0.128/25", "10.0.0.128", "10.0.0.254"),
        ("fd00::/64", "fd00::/112", "fd00::1", "fd00::ffff"),
        ("10.0.0.0/24", "10.0.0.9/32", "10.0.0.9", "10.0.0.9"),
    ];
    for (subnet, part, first, last) in table {
        let got = range(&pool(subnet, Some(part), None)).unwrap();
        assert_eq!(got.first, Some(first.parse().unwrap()), "{part}");
        assert_eq!(got.last, Some(last.parse().unwrap()), "{part}");
    }
}

#[test]
fn refusals() {
    type Change = fn(&mut Network);
    let table: &[(Change, &str)] = &[
        (
            |n| n.driver = "macvlan".into(),
            "ipam: whose addresses? give ipam.config with the network's subnet, or ipam.driver: dhcp; ipam.driver: none for no addresses",
        ),
        (
            |n| {
                n.driver = "ipvlan".into();
                n.driver_opts = [("ipvlan_mode".to_string(), "l4".to_string())].into();
            },
            "driver_opts.ipvlan_mode: `l4`: must be one of l2, l3, l3s",
        ),
        (
            |n| {
                n.enable_ipv4 = false;
                n.ipam = vec![pool("10.0.0.0/24", None, None)];
            },
            "ipam.config[0].subnet: 10.0.0.0/24 does not go together with enable_ipv4: false",
        ),
        (
            |n| n.ipam_driver = Some("static".into()),
            "ipam.driver: `static` needs ipv4_address or ipv6_address of a service on the network",
        ),
        (
            |n| n.driver_opts = [("foo".to_string(), "1".to_string())].into(),
            "driver_opts.foo: not known; possible are com.docker.network.bridge.name, com.docker.network.driver.mtu, com.docker.network.bridge.enable_ip_masquerade, com.docker.network.bridge.enable_icc",
        ),
        (
            |n| n.driver_opts = [(OPT_MTU.to_string(), "9".to_string())].into(),
            "driver_opts.com.docker.network.driver.mtu: `9`: must be 68 to 65535 bytes",
        ),
        (
            |n| n.driver_opts = [(OPT_NAME.to_string(), "a/b".to_string())].into(),
            "driver_opts.com.docker.network.bridge.name: `a/b` can't be the name of an interface",
        ),
        (
            |n| n.ipam = vec![pool("10.0.0.0/31", None, None)],
            "ipam.config[0].subnet: 10.0.0.0/31 is too small",
        ),
        (
            |n| n.ipam = vec![pool("10.0.0.0/24", None, Some("10.0.1.1"))],
            "ipam.config[0].gateway: 10.0.1.1 is no address of a host in 10.0.0.0/24",
        ),
        (
            |n| n.ipam = vec![pool("10.0.0.0/24", Some("10.0.1.0/25"), None)],
            "ipam.config[0].ip_range: 10.0.1.0/25 is not within 10.0.0.0/24",
        ),
        (
            |n| n.ipam = vec![pool("10.0.0.0/24", Some("10.0.0.0/32"), None)],
            "ipam.config[0].ip_range: 10.0.0.0/32 holds no address for a host",
        ),
        (
            |n| {
                n.ipam = vec![
                    pool("10.0.0.0/16", None, None),
                    pool("10.0.3.0/24", None, None),
                ]
            },
            "ipam.config: 10.0.0.0/16 and 10.0.3.0/24 overlap",
        ),
        (
            |n| n.enable_ipv6 = true,
            "enable_ipv6: no IPv6 subnet; give one in `ipam`",
        ),
        (
            |n| n.attachment.ipv4_address = Some("10.9.9.9".parse().unwrap()),
            "ipv4_address: 10.9.9.9 is in no subnet of the network",
        ),
        (
            |n| n.attachment.ipv4_address = Some("10.190.3.1".parse().unwrap()),
            "ipv4_address: 10.190.3.1 is the gateway's, the network's or the broadcast address",
        ),
        (
            |n| n.name = "a b".into(),
            "name: generated: name `a b`: must begin with a letter or digit and hold only these, `_`, `.` and `-`",
        ),
    ];
    for (change, expected) in table {
        let mut network = network();
        change(&mut network);
        let got = generated(&network, &["10.190.3.0/24"]).unwrap_err();
        assert_eq!(got, format!("compose.yaml:7: networks.back.{expected}"));
    }
    let got = generated(&network(), &[]).unwrap_err();
    assert_eq!(got, "compose.yaml:7: networks.back.ipam: no subnet");
}

#[test]
fn drivers() {
    type Change = fn(&mut Network);
    // the change; the first plugin, and the types of those after it
    let table: &[(Change, Value, &[&str])] = &[
        (
            |n| {
                n.driver = "macvlan".into();
                n.driver_opts = pairs(&[("parent", "eno1"), ("macvlan_mode", "private")]);
                n.ipam = vec![pool("10.20.0.0/24", Some("10.20.0.128/25"), None)];
            },
            json!({
                "type": "macvlan", "master": "eno1", "mode": "private",
                "capabilities": {"ips": true, "mac": true},
                "ipam": {"type": "host-local", "dataDir": "/leases", "ranges": [[
                    {"subnet": "10.20.0.0/24", "gateway": "10.20.0.1",
                        "rangeStart": "10.20.0.128", "rangeEnd": "10.20.0.254"},
                ]]},
            }),
            &[],
        ),
        (
            |n| {
                n.driver = "vlan".into();
                n.driver_opts = pairs(&[("parent", "eno1"), ("vlan_id", "7"), ("mtu", "1400")]);
                n.ipam_driver = Some("dhcp".into());
            },
            json!({
                "type": "vlan", "master": "eno1", "vlanId": 7, "mtu": 1400,
                "capabilities": {"ips": true, "mac": true},
                "ipam": {"type": "dhcp"},
            }),
            &[],
        ),
        (
            |n| {
                n.driver = "vxlan".into();
                n.driver_opts = pairs(&[
                    ("parent", "eno1"),
                    ("vxlan_id", "42"),
                    ("peers", "192.0.2.2, 192.0.2.3"),
                ]);
                n.ipam_driver = Some("none".into());
            },
            json!({
                "type": "vxlan", "dev": "eno1", "id": 42, "peers": ["192.0.2.2", "192.0.2.3"],
                "bridge": "sp-459f6bf961d8",
                "capabilities": {"ips": false, "mac": true},
            }),
            &[],
        ),
        (
            |n| n.driver = "ptp".into(),
            json!({
                "type": "ptp", "ipMasq": true,
                "capabilities": {"ips": true, "mac": true},
                "ipam": {"type": "host-local", "dataDir": "/leases", "ranges": [[
                    {"subnet": "10.190.3.0/24", "gateway": "10.190.3.1"},
                ]]},
            }),
            &["portmap"],
        ),
        (
            |n| {
                n.driver = "weave-net".into();
                n.driver_opts = pairs(&[("hairpinMode", "true"), ("weight", "3"), ("word", "a")]);
                n.extra.config = map(json!({"word": ["b"], "capabilities": {"ips": true}}));
                n.extra.plugins = vec![json!({"type": "tuning"}), json!({"type": "sbr"})];
            },
            json!({
                "type": "weave-net", "hairpinMode": true, "weight": 3, "word": ["b"],
                "capabilities": {"ips": true},
            }),
            &["tuning", "sbr"],
        ),
        (
            |n| {
                n.driver = "host-device".into();
                n.driver_opts = pairs(&[("device", "eno2")]);
                n.ipam_driver = Some("static".into());
                n.ipam = vec![pool("10.20.0.0/24", None, None)];
                n.attachment.ipv4_address = Some("10.20.0.9".parse().unwrap());
                n.extra.routes = vec![Route {
                    dst: "10.0.0.0/8".parse().unwrap(),
                    gw: None,
                }];
            },
            json!({
                "type": "host-device", "device": "eno2",
                "capabilities": {"ips": false, "mac": false},
                "ipam": {
                    "type": "static",
                    "addresses": [{"address": "10.20.0.9/24", "gateway": "10.20.0.1"}],
                    "routes": [{"dst": "10.0.0.0/8"}],
                },
            }),
            &[],
        ),
        (
            |n| {
                n.driver_opts = pairs(&[(OPT_ICC, "false")]);
                n.enable_ipv4 = false;
                n.ipam = vec![pool("fd00:2::/64", None, None)];
                n.ipam[0].aux_addresses = [("printer".into(), "fd00:2::3".parse().unwrap())].into();
            },
            json!({
                "type": "bridge", "bridge": "sp-459f6bf961d8", "forceAddress": true,
                "isGateway": true, "ipMasq": true, "hairpinMode": true, "removeBridge": true,
                "portIsolation": true,
                "capabilities": {"ips": true, "mac": true},
                "ipam": {"type": "host-local", "dataDir": "/leases", "ranges": [[
                    {"subnet": "fd00:2::/64", "gateway": "fd00:2::1",
                        "rangeStart": "fd00:2::1", "rangeEnd": "fd00:2::2"},
                    {"subnet": "fd00:2::/64", "gateway": "fd00:2::1",
                        "rangeStart": "fd00:2::4", "rangeEnd": "fd00:2::ffff:ffff:ffff:ffff"},
                ]]},
            }),
            &["portmap"],
        ),
    ];
    for (change, plugin, types) in table {
        let mut network = network();
        change(&mut network);
        let got = generated(&network, &["10.190.3.0/24"]).unwrap();
        assert_eq!(got["plugins"][0], *plugin);
        let all = got["plugins"].as_array().unwrap().iter().skip(1);
        let all: Vec<_> = all.map(|p| p["type"].as_str().unwrap()).collect();
        assert_eq!(all, *types);
    }
}

fn pairs(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    let pairs = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    pairs.collect()
}

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}
