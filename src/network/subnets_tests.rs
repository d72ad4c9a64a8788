//! Choosing subnets, and the registry in a folder of the test's own.

use super::*;
use crate::compose::project::IpamPool;
use serde_json::json;

fn network(name: &str, ipam: &[&str], enable_ipv6: bool) -> Network {
    Network {
        key: name.into(),
        origin: Default::default(),
        name: name.into(),
        external: false,
        driver: "bridge".into(),
        driver_opts: Default::default(),
        internal: false,
        enable_ipv4: true,
        enable_ipv6,
        ipam_driver: None,
        ipam_options: Default::default(),
        extra: Default::default(),
        ipam: nets(ipam)
            .into_iter()
            .map(|subnet| IpamPool {
                subnet,
                ip_range: None,
                gateway: None,
                aux_addresses: Default::default(),
            })
            .collect(),
        labels: Default::default(),
        attachment: Default::default(),
    }
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|n| n.parse().unwrap()).collect()
}

#[test]
fn chosen_subnets() {
    let other = Registered {
        version: VERSION,
        name: "other".into(),
        subnets: nets(&["10.190.1.0/24"]),
        pods: BTreeSet::new(),
    };
    // ipam, enable_ipv6, used; what comes out
    type Row = (
        &'static [&'static str],
        bool,
        &'static [&'static str],
        &'static [&'static str],
    );
    let table: &[Row] = &[
        (&[], false, &[], &["10.190.0.0/24"]),
        (&[], false, &["10.190.0.128/25"], &["10.190.2.0/24"]),
        (&[], false, &["10.0.0.0/8"], &["172.26.0.0/24"]),
        (
            &[],
            true,
            &["fd73:616d:7061::/64"],
            &["10.190.0.0/24", "fd73:616d:7061:1::/64"],
        ),
        (&["10.3.0.0/24"], false, &["10.0.0.0/8"], &["10.3.0.0/24"]),
        (&["fd00::/64"], true, &[], &["fd00::/64", "10.190.0.0/24"]),
    ];
    for (ipam, ipv6, used, expected) in table {
        let network = network("n", ipam, *ipv6);
        let others = std::slice::from_ref(&other);
        let got = complete(&network, &nets(ipam), others, &nets(used)).unwrap();
        assert_eq!(got, nets(expected), "{ipam:?} {used:?}");
    }
    let full = nets(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]);
    let got = complete(&network("n", &[], false), &[], &[], &full).unwrap_err();
    assert_eq!(
        got.to_string(),
        "network `n`: no subnet is free in [10.190.0.0/16, 172.26.0.0/16, 192.168.192.0/18]; give one in `ipam`"
    );
}

#[test]
fn registry() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path();
    assert_eq!(registered(state).unwrap(), []);
    let a = network("a", &[], false);
    let b = network("b", &[], false);
    let first = acquire(state, &a, "pod1", &[]).unwrap();
    assert_eq!(first, nets(&["10.190.0.0/24"]));
    assert_eq!(
        acquire(state, &b, "pod1", &[]).unwrap(),
        nets(&["10.190.1.0/24"])
    );
    // its own bridge is among the host's routes by now
    assert_eq!(acquire(state, &a, "pod2", &first).unwrap(), first);
    assert_eq!(acquire(state, &a, "pod2", &first).unwrap(), first);
    let clash = network("c", &["10.190.1.128/25"], false);
    assert_eq!(
        acquire(state, &clash, "pod3", &[]).unwrap_err().to_string(),
        "network `c`: subnet 10.190.1.128/25 overlaps network `b`"
    );
    let changed = network("a", &["10.5.0.0/24"], false);
    assert_eq!(
        acquire(state, &changed, "pod3", &[])
            .unwrap_err()
            .to_string(),
        "network `a`: subnet 10.5.0.0/24 is wanted, but it has [10.190.0.0/24]; stop its pods first: pod1, pod2"
    );
    let names = |list: Vec<Registered>| list.into_iter().map(|r| r.name).collect::<Vec<_>>();
    assert_eq!(names(registered(state).unwrap()), ["a", "b"]);
    let leases = state.join("leases");
    std::fs::create_dir_all(leases.join("a")).unwrap();
    std::fs::write(leases.join("a/last_reserved_ip.0"), "10.0.0.2").unwrap();
    assert!(!release(state, &leases, "a", "pod1").unwrap());
    assert!(!release(state, &leases, "a", "pod1").unwrap());
    assert!(leases.join("a").exists());
    assert!(release(state, &leases, "a", "pod2").unwrap());
    assert!(!release(state, &leases, "a", "pod2").unwrap());
    assert!(!leases.join("a").exists());
    assert_eq!(names(registered(state).unwrap()), ["b"]);
    let outside = network("../a", &[], false);
    assert!(acquire(state, &outside, "pod1", &[]).is_err());
}

#[test]
fn subnets_of_the_host() {
    let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\n\
        eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n\
        tun0\t00000080\t00000000\t0001\t0\t0\t0\t00000080\t0\n\
        broken\tline\n";
    // the example is from a little-endian machine
    if cfg!(target_endian = "little") {
        assert_eq!(routes_v4(v4), nets(&["192.0.2.0/24"]));
    }
    let zero = "0".repeat(32);
    let line = |address: &str, prefix: &str, name: &str| {
        format!("{address} {prefix} {zero} 00 {zero} 00000100 00000001 00000000 00000001 {name}\n")
    };
    let v6 = [
        line(&format!("fd{}", "0".repeat(30)), "40", "eth0"),
        line(&format!("fe80{}", "0".repeat(28)), "40", "eth0"),
        line(&format!("ff{}", "0".repeat(30)), "08", "eth0"),
        line(&zero, "00", "eth0"),
        line(&format!("{}1", "0".repeat(31)), "80", "lo"),
        "broken\n".into(),
    ];
    assert_eq!(routes_v6(&v6.concat()), nets(&["fd00::/64"]));
}

#[test]
fn subnets_of_lists() {
    let list = NetworkList {
        name: "n".into(),
        source: "f".into(),
        config: json!({"plugins": [
            {"type": "bridge", "ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "x"}]]}},
            {"ipam": {"subnet": "fd00::/64"}},
        ]}),
    };
    let mut got = subnets_of(&list);
    got.sort();
    assert_eq!(got, nets(&["10.0.0.0/24", "fd00::/64"]));
}

#[test]
fn networks_made_at_once_never_overlap() {
    let dir = tempfile::tempdir().unwrap();
    let mut got: Vec<IpNet> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|i| {
                let state = dir.path();
                scope
                    .spawn(move || acquire(state, &network(&format!("n{i}"), &[], false), "p", &[]))
            })
            .collect();
        let results = threads.into_iter().map(|t| t.join().unwrap().unwrap());
        results.flatten().collect()
    });
    got.sort();
    got.dedup();
    assert_eq!(got.len(), 8);
}
