//! The plugins that make one interface: real namespaces, real traffic, and the reference plugins beside them.

mod common;

use std::path::{Path, PathBuf};

use common::{
    Call, Host, ask, ask_udp, has_kind, inside, ip, ip_json, plug_cable, remove_pod, run, serve,
    serve_udp,
};
use serde_json::{Value, json};

/// A kind of interface whose neighbour is the machine outside.
struct Kind {
    plugin: &'static str,
    /// What the kernel must be able to make.
    driver: &'static str,
    config: Value,
    /// The outside machine's interface.
    neighbour: &'static str,
}

fn kinds() -> Vec<Kind> {
    let kind = |plugin, driver, config, neighbour| Kind {
        plugin,
        driver,
        config,
        neighbour,
    };
    vec![
        kind("macvlan", "macvlan", json!({"master": "up0"}), "up1"),
        kind(
            "macvlan",
            "macvlan",
            json!({"master": "up0", "mode": "private", "mtu": 1400, "bcqueuelen": 100}),
            "up1",
        ),
        kind(
            "ipvlan",
            "ipvlan",
            json!({"master": "up0", "mode": "l2"}),
            "up1",
        ),
        kind(
            "vlan",
            "vlan",
            json!({"master": "up0", "vlanId": 5}),
            "up1.5",
        ),
        kind("host-device", "veth", json!({"device": "up0"}), "up1"),
        kind(
            "vxlan",
            "vxlan",
            json!({"id": 7, "peers": ["192.0.2.2"]}),
            "vx7",
        ),
        kind(
            "vxlan",
            "vxlan",
            json!({"id": 7, "peers": ["2001:db8::2"], "dev": "up0", "local": "2001:db8::1", "bridge": "br7", "learning": false}),
            "vx7",
        ),
    ]
}

/// The outside machine with the neighbour's interface; `family` is `-4` or `-6` for the tunnel.
fn outside_machine(host: &mut Host, kind: &Kind) -> PathBuf {
    let outside = host.pod("outside");
    plug_cable(&outside);
    for (side, end) in [(None, 1), (Some(&outside), 2)] {
        let device = if side.is_some() { "up1" } else { "up0" };
        for address in [format!("192.0.2.{end}/24"), format!("2001:db8::{end}/64")] {
            let args = ["addr", "add", &address, "dev", device];
            let nodad: &[&str] = if address.contains(':') {
                &["nodad"]
            } else {
                &[]
            };
            match side {
                Some(netns) => ip(netns, &[&args[..], nodad].concat()),
                None => run("ip", &[&args[..], nodad].concat()),
            };
        }
    }
    let remote = if kind.config["peers"][0] == "192.0.2.2" {
        "192.0.2.1"
    } else {
        "2001:db8::1"
    };
    let link: &[&str] = match kind.neighbour {
        "up1.5" => &[
            "link", "add", "link", "up1", "name", "up1.5", "type", "vlan", "id", "5",
        ],
        "vx7" => &[
            "link", "add", "vx7", "type", "vxlan", "id", "7", "dstport", "4789", "remote", remote,
        ],
        _ => &[],
    };
    if !link.is_empty() {
        ip(&outside, link);
    }
    for address in ["10.9.0.250/24", "fd09::fa/64"] {
        let nodad: &[&str] = if address.contains(':') {
            &["nodad"]
        } else {
            &[]
        };
        ip(
            &outside,
            &[&["addr", "add", address, "dev", kind.neighbour], nodad].concat(),
        );
    }
    ip(&outside, &["link", "set", kind.neighbour, "up"]);
    for address in ["10.9.0.250:80", "[fd09::fa]:80"] {
        both_servers(&outside, address);
    }
    outside
}

fn ipam(host: &Host, families: &str) -> Value {
    let v4 = json!([{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.10", "rangeEnd": "10.9.0.99"}]);
    let v6 = json!([{"subnet": "fd09::/64", "rangeStart": "fd09::10", "rangeEnd": "fd09::99"}]);
    let ranges = match families {
        "v4" => json!([v4]),
        "v6" => json!([v6]),
        _ => json!([v4, v6]),
    };
    json!({"type": "host-local", "dataDir": host.leases(), "ranges": ranges})
}

/// The static addresses of the pod.
fn wanted(families: &str) -> Value {
    match families {
        "v4" => json!(["10.9.0.20"]),
        "v6" => json!(["fd09::20"]),
        _ => json!(["10.9.0.20", "fd09::20"]),
    }
}

fn config(kind: &Kind, ipam: Value) -> Value {
    let mut config =
        json!({"cniVersion": "1.1.0", "name": "net", "type": kind.plugin, "ipam": ipam});
    for (key, value) in kind.config.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// Addresses and routes without the numbers that the kernel gives.
fn layer3(pod: &Path) -> Value {
    let mut all = json!([
        ip_json(pod, &["addr", "show", "dev", "eth0"]),
        ip_json(pod, &["route"]),
        ip_json(pod, &["-6", "route"]),
    ]);
    strip(
        &mut all,
        &[
            "ifindex",
            "link_index",
            "valid_life_time",
            "preferred_life_time",
        ],
    );
    all
}

fn strip(value: &mut Value, keys: &[&str]) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|item| strip(item, keys)),
        Value::Object(map) => {
            map.retain(|key, _| !keys.contains(&key.as_str()));
            map.values_mut().for_each(|item| strip(item, keys));
        }
        _ => {}
    }
}

fn both_servers(pod: &Path, address: &str) {
    serve(pod, address);
    serve_udp(pod, address);
}

/// Both ask each other over TCP and UDP; the neighbour's servers run already.
fn talks(outside: &Path, pod: &Path, own: &str, neighbour: &str) {
    let plain = |address: &str| address.trim_matches(['[', ']']).to_owned();
    both_servers(pod, &format!("{own}:80"));
    for (server, client, source) in [(own, outside, neighbour), (neighbour, pod, own)] {
        let address = format!("{server}:80");
        assert_eq!(
            inside(client, || ask(&address)),
            plain(source),
            "TCP to {address}"
        );
        assert_eq!(
            inside(client, || ask_udp(&address)),
            plain(source),
            "UDP to {address}"
        );
    }
}

fn matrix(families: &str) {
    for kind in kinds() {
        let mut host = Host::new();
        if !has_kind(kind.driver) {
            continue;
        }
        println!("{} {families}", kind.config);
        let outside = outside_machine(&mut host, &kind);
        let before = host.snapshot();
        let mut config = config(&kind, ipam(&host, families));
        config["runtimeConfig"] = json!({"ips": wanted(families)});
        let mut first = None;
        for round in 0..3 {
            let pod = host.pod(&format!("pod{round}"));
            let call = Call::new("a", &pod);
            call.ok(kind.plugin, "STATUS", &config);
            let result = call.ok(kind.plugin, "ADD", &config);
            for ip in result["ips"].as_array().unwrap() {
                let address = ip["address"].as_str().unwrap().split('/').next().unwrap();
                if address.contains(':') {
                    talks(&outside, &pod, &format!("[{address}]"), "[fd09::fa]");
                } else {
                    talks(&outside, &pod, address, "10.9.0.250");
                }
            }
            let mut check = config.clone();
            check["prevResult"] = result;
            call.ok(kind.plugin, "CHECK", &check);
            let seen = layer3(&pod);
            assert_eq!(
                *first.get_or_insert_with(|| seen.clone()),
                seen,
                "round {round}"
            );
            if round < 2 || kind.plugin == "host-device" {
                call.ok(kind.plugin, "DEL", &config);
                assert_eq!(ip_json(&pod, &["link"]).as_array().unwrap().len(), 1);
            }
            remove_pod(&pod);
            call.ok(kind.plugin, "DEL", &config);
            call.ok(kind.plugin, "DEL", &config);
            let no_netns = Call {
                netns: None,
                ..call
            };
            no_netns.ok(kind.plugin, "DEL", &config);
            if kind.plugin == "host-device" {
                // as with the reference plugin it comes back down, and a link that was down has lost its addresses
                run("ip", &["link", "set", "up0", "up"]);
                continue;
            }
            let mut now = host.snapshot();
            let mut then = before.clone();
            // the kernel counts the namespaces that it knows
            strip(&mut now, &["link_netnsid"]);
            strip(&mut then, &["link_netnsid"]);
            assert_eq!(now, then);
        }
    }
}

#[test]
fn ipv4() {
    matrix("v4");
}

#[test]
fn ipv6() {
    matrix("v6");
}

#[test]
fn dual_stack() {
    matrix("dual");
}
