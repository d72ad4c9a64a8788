//! Reference plugins that need a driver each: one attachment from ADD to DEL. What this kernel lacks is said aloud, and runs in the
//! virtual machine.

use sampan::network::{Attachment, add, check, del};
use serde_json::{Value, json};

use crate::{Host, addresses, attachment, ip, ip_in, list};

/// Whether the kernel can make such a link on `up0`.
fn has(kind: &[&str]) -> bool {
    let mut arguments = vec!["link", "add", "link", "up0", "name", "probe0", "type"];
    arguments.extend(kind);
    let made = std::process::Command::new("ip").args(arguments).output();
    let made = made.unwrap().status.success();
    if made {
        ip(&["link", "del", "probe0"]);
    } else {
        println!("skipped: needs a kernel with {}", kind[0]);
    }
    made
}

/// ADD, CHECK, DEL of a list; what `ip -d link` tells of the interface in between.
fn life(host: &Host, plugins: &[Value], capabilities: Value) -> String {
    let pod = host.netns("pod");
    let cache = host.path("cache.json");
    let wanted = Attachment {
        capabilities: capabilities.as_object().cloned().unwrap_or_default(),
        ..attachment(list("net", plugins), "eth0")
    };
    let attached = add(&host.cni, &pod, &wanted, &cache).unwrap();
    assert_eq!(attached.addresses[0].to_string(), "10.8.0.5/24");
    assert_eq!(addresses(&pod), ["eth0 10.8.0.5/24"]);
    let told = ip_in(&pod, &["-d", "link", "show", "eth0"]);
    check(&host.cni, &pod, &cache).unwrap();
    del(&host.cni, Some(&pod), &cache).unwrap();
    assert_eq!(addresses(&pod), [""; 0]);
    sampan::network::netns::remove(&pod).unwrap();
    told
}

fn with_address(mut plugin: Value) -> Value {
    plugin["ipam"] = json!({"type": "static", "addresses": [{"address": "10.8.0.5/24"}]});
    plugin
}

#[test]
fn interfaces_of_every_kind() {
    let host = Host::new();
    ip(&["link", "add", "up0", "type", "veth", "peer", "name", "wire"]);
    ip(&["link", "set", "up0", "up"]);
    ip(&["link", "set", "wire", "up"]);
    for (kind, plugin, told) in [
        (
            &["macvlan"][..],
            json!({"type": "macvlan", "master": "up0", "mode": "private"}),
            "macvlan mode private",
        ),
        (
            &["ipvlan"],
            json!({"type": "ipvlan", "master": "up0", "mode": "l2"}),
            "ipvlan  mode l2",
        ),
        (
            &["vlan", "id", "9"],
            json!({"type": "vlan", "master": "up0", "vlanId": 5}),
            "802.1Q id 5",
        ),
    ] {
        if has(kind) {
            let seen = life(&host, &[with_address(plugin)], json!({}));
            assert!(seen.contains(told), "{seen}");
        }
    }
    life(
        &host,
        &[with_address(
            json!({"type": "host-device", "device": "up0"}),
        )],
        json!({}),
    );
    // it came back
    ip(&["link", "show", "up0"]);
}

#[test]
fn chains() {
    // not sbr and vrf: with the routes elsewhere the CHECK of the bridge fails
    let host = Host::new();
    ip(&["link", "add", "up0", "type", "veth", "peer", "name", "wire"]);
    let bridge = with_address(json!({"type": "bridge", "bridge": "br0"}));
    life(
        &host,
        &[
            bridge.clone(),
            json!({"type": "firewall"}),
            json!({"type": "tuning", "mtu": 1400}),
        ],
        json!({}),
    );
    if has(&["ifb"]) {
        let limits = json!({"bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 100_000, "egressRate": 1_000_000, "egressBurst": 100_000}});
        let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
        life(&host, &[bridge, bandwidth], limits);
    }
}
