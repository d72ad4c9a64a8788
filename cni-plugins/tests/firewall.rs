//! `firewall` as a process: who reaches whom, compared with the reference plugin, and what is left in whose tables.

mod common;

use std::path::{Path, PathBuf};

use common::{Call, Host, REFERENCE, ask, inside, ip, rules, run, serve};
use serde_json::{Value, json};

fn bridge(host: &Host, network: &str, bridge: &str, number: u8) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": network, "type": "bridge", "bridge": bridge, "isDefaultGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": host.leases(),
            "ranges": [[{"subnet": format!("10.{number}.0.0/24")}], [{"subnet": format!("fd{number:02}::/64")}]]
        }
    })
}

fn firewall(network: &str, previous: &Value, change: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": network, "type": "firewall", "prevResult": previous
    });
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// A machine beside the host that knows the way to its containers.
fn outside(host: &mut Host) -> PathBuf {
    let outside = host.pod("outside");
    let netns = outside.to_str().unwrap();
    let link = "link add up0 type veth peer name up1 netns";
    run(
        "ip",
        &[&link.split(' ').collect::<Vec<_>>()[..], &[netns]].concat(),
    );
    for line in [
        "addr add 192.0.2.1/24 dev up0",
        "addr add 2001:db8::1/64 dev up0 nodad",
        "link set up0 up",
    ] {
        run("ip", &line.split(' ').collect::<Vec<_>>());
    }
    for line in [
        "addr add 192.0.2.2/24 dev up1",
        "addr add 2001:db8::2/64 dev up1 nodad",
        "link set up1 up",
        "route add default via 192.0.2.1",
        "-6 route add default via 2001:db8::1",
    ] {
        ip(&outside, &line.split(' ').collect::<Vec<_>>());
    }
    outside
}

struct Lab {
    host: Host,
    /// Two on one bridge, one on another, and one outside.
    places: [PathBuf; 4],
    calls: [(Call, Value); 3],
}

const ADDRESSES: [[&str; 2]; 4] = [
    ["10.9.0.2:80", "[fd09::2]:80"],
    ["10.9.0.3:80", "[fd09::3]:80"],
    ["10.8.0.2:80", "[fd08::2]:80"],
    ["192.0.2.2:80", "[2001:db8::2]:80"],
];

/// Three pods, of which each is added by `plugin`.
fn lab(plugin: &str, drop: bool, change: &Value) -> Lab {
    let mut host = Host::new();
    let places = [
        host.pod("a"),
        host.pod("b"),
        host.pod("c"),
        outside(&mut host),
    ];
    // IPv4 and IPv6: the reference plugin needs the tables to be there
    for program in ["iptables-nft", "ip6tables-nft"] {
        run(
            program,
            &["-P", "FORWARD", if drop { "DROP" } else { "ACCEPT" }],
        );
    }
    let networks = [("n9", "br9", 9), ("n9", "br9", 9), ("n8", "br8", 8)];
    let calls = [0, 1, 2].map(|index| {
        let (network, name, number) = networks[index];
        let call = Call::new(&format!("c{index}"), &places[index]);
        let previous = call.ok("bridge", "ADD", &bridge(&host, network, name, number));
        let config = firewall(network, &previous, change.clone());
        assert_eq!(call.ok(plugin, "ADD", &config), previous);
        call.ok(plugin, "CHECK", &config);
        (call, config)
    });
    for (place, addresses) in places.iter().zip(ADDRESSES) {
        addresses.iter().for_each(|address| serve(place, address));
    }
    Lab {
        host,
        places,
        calls,
    }
}

/// Who reaches whom: `0>1.4` says that the first reaches the second by IPv4.
fn reachable(places: &[PathBuf]) -> Vec<String> {
    let mut found: Vec<String> = std::thread::scope(|scope| {
        let mut tasks = Vec::new();
        for (from, place) in places.iter().enumerate() {
            for to in (0..ADDRESSES.len()).filter(|to| *to != from) {
                for (address, family) in ADDRESSES[to].into_iter().zip([4, 6]) {
                    let task = move || {
                        let answer = inside(place, || ask(address));
                        (!answer.starts_with("error")).then(|| format!("{from}>{to}.{family}"))
                    };
                    tasks.push(scope.spawn(task));
                }
            }
        }
        tasks
            .into_iter()
            .filter_map(|task| task.join().unwrap())
            .collect()
    });
    found.sort();
    found
}

#[test]
fn the_same_are_reachable_as_with_the_reference_plugin() {
    let reference = format!("{REFERENCE}/firewall");
    for (drop, change, expected) in [
        (false, json!({}), 24),
        (true, json!({}), 6),
        (false, json!({"ingressPolicy": "same-bridge"}), 16),
        (
            true,
            json!({"ingressPolicy": "same-bridge", "backend": "iptables"}),
            0,
        ),
    ] {
        let theirs = reachable(&lab(&reference, drop, &change).places);
        let ours = reachable(&lab("firewall", drop, &change).places);
        assert_eq!(ours, theirs, "{drop} {change}");
        println!("{drop} {change} {}", ours.join(" "));
        if expected > 0 {
            assert!(ours.len() >= expected, "{drop} {change}: {ours:?}");
        }
    }
}

/// What the reference plugin of Debian doesn't have yet.
#[test]
fn isolated_containers() {
    for br_netfilter in [true, false] {
        let lab = lab("firewall", false, &json!({"ingressPolicy": "isolated"}));
        for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let path = format!("/proc/sys/net/bridge/{name}");
            if !br_netfilter && Path::new(&path).exists() {
                std::fs::write(&path, "0").unwrap();
            }
        }
        let expected: Vec<String> = ["0>3", "1>3", "2>3", "3>0", "3>1", "3>2"]
            .into_iter()
            .flat_map(|pair| [format!("{pair}.4"), format!("{pair}.6")])
            .collect();
        assert_eq!(reachable(&lab.places), expected);
        // a route over the host is no way around
        for (from, to) in [(0, "10.9.0.3"), (1, "10.9.0.2")] {
            ip(&lab.places[from], &["route", "add", to, "via", "10.9.0.1"]);
        }
        assert_eq!(reachable(&lab.places), expected);
    }
}

#[test]
fn other_peoples_tables_stay_readable_and_theirs() {
    let mut host = Host::new();
    let (a, outside) = (host.pod("a"), outside(&mut host));
    run("iptables-nft", &["-P", "FORWARD", "DROP"]);
    let theirs = "-A FORWARD -s 10.77.0.0/16 -m comment --comment \"n9 a eth0\" -j DROP";
    run(
        "iptables-nft",
        &[
            "-A",
            "FORWARD",
            "-s",
            "10.77.0.0/16",
            "-m",
            "comment",
            "--comment",
            "n9 a eth0",
            "-j",
            "DROP",
        ],
    );
    run(
        "nft",
        &[
            "add table inet filter; add chain inet filter forward { type filter hook forward priority 5; policy drop; }",
        ],
    );
    let call = Call::new("a", &a);
    let network = bridge(&host, "n9", "br9", 9);
    let previous = call.ok("bridge", "ADD", &network);
    let before = rules();
    let config = firewall(
        "n9",
        &previous,
        json!({"cniVersion": "1.1.0", "forwardChains": ["ip filter FORWARD", "inet filter forward"]}),
    );
    for _ in 0..2 {
        call.ok("firewall", "ADD", &config);
        let expected = format!(
            "-P FORWARD DROP\n\
             -A FORWARD -s 10.9.0.2/32 -m comment --comment \"n9 a eth0 sampan-firewall\" -j ACCEPT\n\
             -A FORWARD -d 10.9.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment \"n9 a eth0 sampan-firewall\" -j ACCEPT\n\
             {theirs}\n"
        );
        assert_eq!(run("iptables-nft", &["-S", "FORWARD"]), expected);
        assert_eq!(rules().matches("n9 a eth0 sampan-firewall").count(), 2 + 6);
    }
    call.ok("firewall", "CHECK", &config);
    serve(&a, "10.9.0.2:80");
    serve(&outside, "192.0.2.2:80");
    assert_eq!(inside(&a, || ask("192.0.2.2:80")), "10.9.0.2");
    assert_eq!(inside(&outside, || ask("10.9.0.2:80")), "error: TimedOut");
    // what is published is open
    let ports = json!({
        "cniVersion": "1.1.0", "name": "n9", "prevResult": previous,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}
    });
    call.ok("portmap", "ADD", &ports);
    assert_eq!(inside(&outside, || ask("192.0.2.1:8080")), "192.0.2.2");
    call.ok("portmap", "DEL", &ports);

    run("nft", &["flush", "chain", "inet", "filter", "forward"]);
    assert_eq!(
        call.err("firewall", "CHECK", &config)["msg"],
        "missing rule in the nftables chain inet filter forward"
    );
    call.ok("firewall", "DEL", &config);
    call.ok("firewall", "DEL", &config);
    assert_eq!(rules(), before);

    // what no valid attachment owns goes, the rest stays
    call.ok("firewall", "ADD", &config);
    let with = rules();
    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    call.ok("firewall", "GC", &gc);
    assert_eq!(rules(), with);
    gc["cni.dev/valid-attachments"] = json!([]);
    call.ok("firewall", "GC", &gc);
    assert_eq!(rules(), before);

    let missing = firewall(
        "n9",
        &previous,
        json!({"forwardChains": ["inet filter input"]}),
    );
    assert_eq!(
        call.err("firewall", "ADD", &missing)["msg"],
        "forwardChains: there is no chain inet filter input"
    );
    assert_eq!(rules(), before);
}

#[test]
fn the_table_goes_with_its_last_attachment() {
    let lab = lab(
        "firewall",
        false,
        &json!({"backend": "nftables", "ingressPolicy": "same-bridge"}),
    );
    let table = || rules().contains("sampan_firewall");
    let (first, config) = &lab.calls[0];
    run(
        "nft",
        &["flush", "chain", "inet", "sampan_firewall", "to_bridge"],
    );
    assert_eq!(
        first.err("firewall", "CHECK", config)["msg"],
        "missing rule in the nftables chain inet sampan_firewall to_bridge"
    );
    for (index, (call, config)) in lab.calls.iter().enumerate() {
        assert!(table());
        call.ok("firewall", "DEL", config);
        call.ok("firewall", "DEL", config);
        // the bridge of the second is the first's: its rules are still there, and whole again
        assert_eq!(rules().contains("br9"), index == 0);
    }
    assert!(!table());
    let (call, config) = &lab.calls[0];
    let mut ptp = config.clone();
    ptp["prevResult"]["interfaces"] = json!([]);
    assert_eq!(
        call.err("firewall", "ADD", &ptp)["msg"],
        "ingressPolicy needs a container on a bridge: put firewall after bridge"
    );
    drop(lab.host);
}
