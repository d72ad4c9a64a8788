//! Tables: a network of a compose file and the list, or the refusal, that it gives.

use super::*;
use crate::compose::project::Origin;

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
        enable_ipv6: false,
        ipam: vec![],
        labels: Default::default(),
        attachment: Default::default(),
    }
}

fn pool(subnet: &str, ip_range: Option<&str>, gateway: Option<&str>) -> IpamPool {
    IpamPool {
        subnet: subnet.parse().unwrap(),
        ip_range: ip_range.map(|r| r.parse().unwrap()),
        gateway: gateway.map(|g| g.parse().unwrap()),
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
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
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
            |n| n.driver = "overlay".into(),
            "driver: `overlay` can't be generated: use `bridge`, or `external: true` and a CNI network list",
        ),
        (
            |n| n.driver_opts = [("foo".to_string(), "1".to_string())].into(),
            "driver_opts.foo: not known; possible are com.docker.network.bridge.name, com.docker.network.driver.mtu, com.docker.network.bridge.enable_ip_masquerade",
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
