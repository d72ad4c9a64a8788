//! The plugins that make one interface: real namespaces, real traffic, and the reference plugins beside them.

mod common;

use std::path::{Path, PathBuf};

use common::{
    Call, Host, REFERENCE, addresses, ask, ask_udp, has_kind, host_json, inside, ip, ip_json,
    plug_cable, remove_pod, run, serve, serve_udp,
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

/// The same when the kernel has told whether packets pass: at most once a second (net/core/link_watch.c), and of other kinds
/// than these never.
fn settled(pod: &Path, plugin: &str) -> Value {
    for _ in 0..30 {
        let seen = layer3(pod);
        if seen[0][0]["operstate"] != "UNKNOWN" || !["macvlan", "vlan"].contains(&plugin) {
            return seen;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("the interface stays in an unknown state");
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

/// Names of the host's interfaces, rules and leases.
fn left(host: &Host) -> Value {
    let links = host_json(&["link"]);
    let mut names: Vec<&str> = links
        .as_array()
        .unwrap()
        .iter()
        .map(|link| link["ifname"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    let snapshot = host.snapshot();
    json!([names, snapshot["rules"], snapshot["leases"]])
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

fn matrix(plugin: &str, families: &str) {
    for kind in kinds().into_iter().filter(|kind| kind.plugin == plugin) {
        let mut host = Host::new();
        if !has_kind(kind.driver) {
            continue;
        }
        println!("{} {families}", kind.config);
        let outside = outside_machine(&mut host, &kind);
        let before = left(&host);
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
            let seen = settled(&pod, kind.plugin);
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
            assert_eq!(left(&host), before);
        }
    }
}

const FAMILIES: [&str; 3] = ["v4", "v6", "dual"];

#[test]
fn macvlan() {
    FAMILIES
        .iter()
        .for_each(|families| matrix("macvlan", families));
}

#[test]
fn ipvlan() {
    FAMILIES
        .iter()
        .for_each(|families| matrix("ipvlan", families));
}

#[test]
fn vlan() {
    FAMILIES
        .iter()
        .for_each(|families| matrix("vlan", families));
}

#[test]
fn host_device() {
    FAMILIES
        .iter()
        .for_each(|families| matrix("host-device", families));
}

#[test]
fn vxlan() {
    FAMILIES
        .iter()
        .for_each(|families| matrix("vxlan", families));
}

/// A configuration of `plugin` with dual stack addresses.
fn plain(host: &Host, plugin: &str, change: Value) -> Value {
    let mut config =
        json!({"cniVersion": "1.1.0", "name": "net", "type": plugin, "ipam": ipam(host, "dual")});
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn ptp_is_alone_with_the_host() {
    let mut host = Host::new();
    let (a, b, outside) = (host.pod("a"), host.pod("b"), host.pod("outside"));
    plug_cable(&outside);
    run("ip", &["addr", "add", "192.0.2.1/24", "dev", "up0"]);
    ip(&outside, &["addr", "add", "192.0.2.2/24", "dev", "up1"]);
    both_servers(&outside, "192.0.2.2:80");
    let before = left(&host);
    let ptp = |masq: bool| {
        let mut config = plain(&host, "ptp", json!({"ipMasq": masq, "mtu": 1300}));
        config["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
        config
    };
    let (call_a, call_b) = (Call::new("a", &a), Call::new("b", &b));
    let result = call_a.ok("ptp", "ADD", &ptp(true));
    let end = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": end, "mac": host_json(&["link", "show", &end])[0]["address"], "mtu": 1300},
                {"name": "eth0", "mac": "0a:58:0a:09:00:0a", "mtu": 1300, "sandbox": a}
            ],
            "ips": [
                {"interface": 1, "address": "10.9.0.10/24", "gateway": "10.9.0.1"},
                {"interface": 1, "address": "fd09::10/64", "gateway": "fd09::1"}
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "dns": {}
        })
    );
    call_b.ok("ptp", "ADD", &ptp(false));
    // through the host, even in the same subnet
    for (own, other) in [("10.9.0.10", "10.9.0.11"), ("[fd09::10]", "[fd09::11]")] {
        let address = format!("{own}:80");
        both_servers(&a, &address);
        let source = other.trim_matches(['[', ']']);
        assert_eq!(
            inside(&b, || [ask(&address), ask_udp(&address)]),
            [source, source]
        );
    }
    assert_eq!(
        (ask("10.9.0.10:80"), ask("[fd09::10]:80")),
        ("10.9.0.1".into(), "fd09::1".into())
    );
    assert_eq!(inside(&a, || ask("192.0.2.2:80")), "192.0.2.1");
    assert_eq!(inside(&b, || ask("192.0.2.2:80")), "error: TimedOut");

    let mut check = ptp(true);
    check["prevResult"] = result;
    call_a.ok("ptp", "CHECK", &check);
    call_a.ok("ptp", "STATUS", &ptp(true));
    let steps: [(&dyn Fn(), String); 6] = [
        (
            &|| drop(run("nft", &["flush", "ruleset"])),
            "missing rule in the nftables chain inet sampan_masquerade postrouting".into(),
        ),
        (
            &|| drop(run("ip", &["route", "del", "10.9.0.10", "dev", &end])),
            format!("interface {end} has lost its route to 10.9.0.10/32"),
        ),
        (
            &|| drop(run("ip", &["link", "set", &end, "alias", "x"])),
            format!("interface {end} is not of this attachment"),
        ),
        (
            &|| drop(ip(&a, &["route", "del", "default"])),
            "interface eth0 has lost its route to 0.0.0.0/0".into(),
        ),
        (
            &|| drop(ip(&a, &["link", "set", "eth0", "mtu", "1280"])),
            "interface eth0 has the MTU 1280, not 1300".into(),
        ),
        (
            &|| drop(run("ip", &["link", "del", &end])),
            format!("interface eth0 is missing in {}", a.display()),
        ),
    ];
    for (change, msg) in steps {
        change();
        assert_eq!(call_a.err("ptp", "CHECK", &check)["msg"], msg);
    }
    // as if b's DEL had never come
    let mut gc = ptp(true);
    gc["cni.dev/valid-attachments"] = json!([]);
    Call::new("", Path::new("")).ok("ptp", "GC", &gc);
    call_a.ok("ptp", "DEL", &ptp(true));
    call_a.ok("ptp", "DEL", &ptp(true));
    assert_eq!(left(&host), before);
}

#[test]
fn ptp_failures_leave_nothing() {
    let mut host = Host::new();
    let pod = host.pod("a");
    let before = left(&host);
    let call = Call::new("a", &pod);
    let no_gateway = json!({"type": "static", "addresses": [{"address": "10.9.0.9/24"}]});
    for (change, msg) in [
        (
            json!({"ipam": {}}),
            "ipam is missing: ptp is nothing without addresses",
        ),
        (
            json!({"ipam": no_gateway}),
            "the address plugin gave no gateway with 10.9.0.9/24",
        ),
        (
            json!({"ipMasqBackend": "iptables"}),
            "ipMasqBackend \"iptables\" is not supported by this plugin",
        ),
        (json!({"mtu": 70000}), "cannot create the veth pair"),
        (
            json!({"runtimeConfig": {"mac": "x"}}),
            "invalid link address \"x\"",
        ),
    ] {
        let error = call.err("ptp", "ADD", &plain(&host, "ptp", change));
        assert!(error["msg"].as_str().unwrap().starts_with(msg), "{error}");
        assert_eq!(left(&host), before);
        assert_eq!(ip_json(&pod, &["link"]).as_array().unwrap().len(), 1);
    }
}

#[test]
fn dummy() {
    let mut host = Host::new();
    let pod = host.pod("a");
    let before = left(&host);
    let config = plain(&host, "dummy", json!({}));
    let call = Call::new("a", &pod);
    if !has_kind("dummy") {
        for (command, code) in [("STATUS", 50), ("ADD", 999)] {
            let error = call.err("dummy", command, &config);
            assert_eq!(error["code"], code);
            assert_eq!(error["msg"], "kernel has no dummy (CONFIG_DUMMY)");
        }
        assert_eq!(left(&host), before);
        return;
    }
    let result = call.ok("dummy", "ADD", &config);
    assert_eq!(
        addresses(&ip_json(&pod, &["addr", "show", "eth0"])),
        ["10.9.0.10/24", "fd09::10/64"]
    );
    let mut check = config.clone();
    check["prevResult"] = result;
    call.ok("dummy", "CHECK", &check);
    ip(&pod, &["link", "del", "eth0"]);
    ip(
        &pod,
        &[
            "link",
            "add",
            "eth0",
            "address",
            "0a:58:0a:09:00:0a",
            "type",
            "bridge",
        ],
    );
    ip(&pod, &["addr", "add", "10.9.0.10/24", "dev", "eth0"]);
    ip(&pod, &["addr", "add", "fd09::10/64", "dev", "eth0"]);
    ip(&pod, &["link", "set", "eth0", "up"]);
    assert_eq!(
        call.err("dummy", "CHECK", &check)["msg"],
        "interface eth0 is a bridge, not a dummy"
    );
    call.ok("dummy", "DEL", &config);
    call.ok("dummy", "DEL", &config);
    assert_eq!(left(&host), before);
}

#[test]
fn tap() {
    if !Path::new("/dev/net/tun").exists() {
        println!("skipped: needs /dev/net/tun");
        return;
    }
    let mut host = Host::new();
    let pod = host.pod("a");
    let before = left(&host);
    ip(&pod, &["link", "add", "br0", "type", "bridge"]);
    let config = plain(
        &host,
        "tap",
        json!({"owner": 54321, "group": 54322, "multiQueue": true, "bridge": "br0", "mtu": 1400,
            "ipam": {}, "runtimeConfig": {"mac": "02:11:22:33:44:55"}}),
    );
    let call = Call::new("a", &pod);
    call.ok("tap", "STATUS", &config);
    let result = call.ok("tap", "ADD", &config);
    assert_eq!(
        result["interfaces"],
        json!([{"name": "eth0", "mac": "02:11:22:33:44:55", "mtu": 1400, "sandbox": pod}])
    );
    let link = &ip_json(&pod, &["-d", "link", "show", "eth0"])[0];
    let data = &link["linkinfo"]["info_data"];
    let told = ["type", "persist", "multi_queue", "user", "group"]
        .map(|key| data[key].to_string().replace('"', ""));
    assert_eq!(told, ["tap", "true", "true", "54321", "54322"], "{link}");
    assert_eq!(link["master"], "br0");
    let mut check = config.clone();
    check["prevResult"] = result;
    call.ok("tap", "CHECK", &check);
    ip(&pod, &["link", "set", "eth0", "nomaster"]);
    assert_eq!(
        call.err("tap", "CHECK", &check)["msg"],
        "interface eth0 is no port of the bridge br0"
    );
    call.ok("tap", "DEL", &config);
    call.ok("tap", "DEL", &config);

    for (change, msg) in [
        (
            json!({"bridge": "br9"}),
            "bridge br9 not found in the container",
        ),
        (
            json!({"selinuxContext": "x"}),
            "selinuxContext is not supported by this plugin",
        ),
        (
            json!({"ipam": {"type": "nothing"}}),
            "failed to find plugin \"nothing\" in path [\"/nonexistent\"]",
        ),
    ] {
        assert_eq!(
            call.err("tap", "ADD", &plain(&host, "tap", change))["msg"],
            msg
        );
        assert_eq!(ip_json(&pod, &["link"]).as_array().unwrap().len(), 2);
    }
    let with_addresses = plain(&host, "tap", json!({}));
    call.ok("tap", "ADD", &with_addresses);
    let list = ip_json(&pod, &["addr", "show", "eth0"]);
    assert_eq!(list[0]["address"], "0a:58:0a:09:00:0a");
    assert_eq!(addresses(&list), ["10.9.0.10/24", "fd09::10/64"]);
    call.ok("tap", "DEL", &with_addresses);
    assert_eq!(left(&host), before);
}

/// What was changed behind a plugin's back, and what CHECK says.
#[test]
fn check_sees_what_changed() {
    type Change<'a> = (&'a [&'a str], &'a str);
    let macvlan: [Change<'_>; 3] = [
        (
            &["addr", "del", "10.9.0.10/24", "dev", "eth0"],
            "interface eth0 has lost its address 10.9.0.10/24",
        ),
        (
            &["link", "set", "eth0", "mtu", "1400"],
            "interface eth0 has the MTU 1400, not 1500",
        ),
        (
            &["link", "set", "eth0", "address", "02:00:00:00:00:09"],
            "interface eth0 has the link address 02:00:00:00:00:09, not 0a:58:0a:09:00:0a",
        ),
    ];
    let ipvlan: [Change<'_>; 1] = [(
        &["link", "set", "eth0", "type", "ipvlan", "mode", "l3"],
        "interface eth0 is a ipvlan in mode l3, not a ipvlan in mode l2",
    )];
    let vlan: [Change<'_>; 1] = [(
        &["addr", "del", "fd09::10/64", "dev", "eth0"],
        "interface eth0 has lost its address fd09::10/64",
    )];
    let vxlan: [Change<'_>; 1] = [(
        &["link", "set", "eth0", "down"],
        "interface eth0 is down in POD",
    )];
    for (plugin, config, changes) in [
        ("macvlan", json!({"master": "up0"}), &macvlan[..]),
        ("ipvlan", json!({"master": "up0"}), &ipvlan),
        ("vlan", json!({"master": "up0", "vlanId": 5}), &vlan),
        ("vxlan", json!({"id": 7}), &vxlan),
    ] {
        if !has_kind(plugin) {
            continue;
        }
        let mut host = Host::new();
        let (pod, outside) = (host.pod("a"), host.pod("outside"));
        plug_cable(&outside);
        run("ip", &["link", "add", "up9", "type", "bridge"]);
        let config = plain(&host, plugin, config);
        let call = Call::new("a", &pod);
        let mut check = config.clone();
        check["prevResult"] = call.ok(plugin, "ADD", &config);
        call.ok(plugin, "CHECK", &check);
        if config["master"] == "up0" {
            let mut other = check.clone();
            other["master"] = json!("up9");
            assert_eq!(
                call.err(plugin, "CHECK", &other)["msg"],
                "interface eth0 does not stand on up9"
            );
        }
        if plugin == "macvlan" {
            let mut other = check.clone();
            other["mode"] = json!("private");
            let expected =
                "interface eth0 is a macvlan in mode bridge, not a macvlan in mode private";
            assert_eq!(call.err(plugin, "CHECK", &other)["msg"], expected);
        }
        if plugin == "vlan" {
            let mut other = check.clone();
            other["vlanId"] = json!(6);
            let expected = "interface eth0 is a vlan with id 5, not a vlan with id 6";
            assert_eq!(call.err(plugin, "CHECK", &other)["msg"], expected);
        }
        if plugin == "vxlan" {
            let mut other = check.clone();
            other["peers"] = json!(["192.0.2.9"]);
            assert_eq!(
                call.err(plugin, "CHECK", &other)["msg"],
                "interface eth0 has lost its peer 192.0.2.9"
            );
        }
        for (change, msg) in changes {
            ip(&pod, change);
            let error = call.err(plugin, "CHECK", &check);
            let expected = msg.replace("POD", pod.to_str().unwrap());
            assert_eq!(
                (&error["code"], &error["msg"]),
                (&json!(100), &json!(expected))
            );
        }
        ip(&pod, &["link", "del", "eth0"]);
        let expected = format!("interface eth0 is missing in {}", pod.display());
        assert_eq!(call.err(plugin, "CHECK", &check)["msg"], expected);
        call.ok(plugin, "DEL", &config);
    }
}

#[test]
fn failures_leave_nothing() {
    let mut host = Host::new();
    let (pod, outside) = (host.pod("a"), host.pod("outside"));
    plug_cable(&outside);
    let bad_route = json!({"type": "host-local", "dataDir": host.leases(), "subnet": "10.9.0.0/24", "routes": [{"dst": "10.0.0.0/8", "gw": "192.168.1.1"}]});
    let before = left(&host);
    let call = Call::new("a", &pod);
    let cases = [
        (
            "macvlan",
            json!({}),
            7,
            "no master is given and there is no default route",
        ),
        (
            "macvlan",
            json!({"master": "none"}),
            999,
            "master none not found",
        ),
        (
            "macvlan",
            json!({"master": "a/b"}),
            7,
            "invalid master \"a/b\"",
        ),
        (
            "macvlan",
            json!({"master": "up0", "mode": "x"}),
            7,
            "unknown macvlan mode \"x\"",
        ),
        (
            "macvlan",
            json!({"master": "up0", "mtu": 9000}),
            7,
            "invalid mtu 9000: up0 has 1500",
        ),
        (
            "macvlan",
            json!({"master": "up0", "ipam": bad_route}),
            999,
            "cannot add the route to 10.0.0.0/8 via 192.168.1.1 over eth0",
        ),
        (
            "macvlan",
            json!({"master": "up0", "ipam": {"type": "../x"}}),
            7,
            "invalid plugin name \"../x\" in ipam.type",
        ),
        (
            "ipvlan",
            json!({"master": "up0", "mode": "x"}),
            7,
            "unknown ipvlan mode \"x\"",
        ),
        (
            "ipvlan",
            json!({"prevResult": {"interfaces": [{"name": "a"}, {"name": "b"}]}}),
            7,
            "no master is given and prevResult has not exactly one interface",
        ),
        (
            "vlan",
            json!({"vlanId": 5}),
            7,
            "master is missing: the interface to make the VLAN on",
        ),
        (
            "vlan",
            json!({"master": "up0", "vlanId": 4095}),
            7,
            "invalid VLAN ID 4095 (must be between 0 and 4094)",
        ),
        (
            "host-device",
            json!({"device": "none"}),
            999,
            "no interface with the name none on the host",
        ),
        (
            "host-device",
            json!({"device": "up0", "ipam": bad_route}),
            999,
            "cannot add the route to 10.0.0.0/8 via 192.168.1.1 over eth0",
        ),
        (
            "vxlan",
            json!({"id": 7, "mtu": 1451}),
            7,
            "mtu 1451 is more than the 1450 bytes that the tunnel leaves",
        ),
        (
            "vxlan",
            json!({"id": 7, "dev": "none"}),
            999,
            "interface none not found",
        ),
        (
            "vxlan",
            json!({"id": 7, "bridge": "br7", "ipam": bad_route}),
            999,
            "cannot add the route to 10.0.0.0/8 via 192.168.1.1 over eth0",
        ),
    ];
    for (plugin, change, code, msg) in cases {
        let error = call.err(plugin, "ADD", &plain(&host, plugin, change.clone()));
        assert_eq!(
            (&error["code"], &error["msg"]),
            (&json!(code), &json!(msg)),
            "{change} {error}"
        );
        assert_eq!(left(&host), before, "{change}");
        assert_eq!(
            ip_json(&pod, &["link"]).as_array().unwrap().len(),
            1,
            "{change}"
        );
    }
    for (plugin, change, msg) in [
        (
            "macvlan",
            json!({"master": "none"}),
            "master none not found",
        ),
        (
            "host-device",
            json!({"device": "none"}),
            "no interface with the name none on the host",
        ),
        (
            "vxlan",
            json!({"id": 7, "dev": "none"}),
            "interface none not found",
        ),
    ] {
        let error = call.err(plugin, "STATUS", &plain(&host, plugin, change));
        assert_eq!((&error["code"], &error["msg"]), (&json!(50), &json!(msg)));
    }
    for (plugin, option) in [("ipvlan", "IPVLAN"), ("vlan", "VLAN_8021Q")] {
        if has_kind(plugin) {
            continue;
        }
        let config = plain(&host, plugin, json!({"master": "up0", "vlanId": 5}));
        let expected = format!("kernel has no {plugin} (CONFIG_{option})");
        for command in ["ADD", "STATUS"] {
            assert_eq!(call.err(plugin, command, &config)["msg"], expected);
        }
        assert_eq!(left(&host), before);
    }
}

#[test]
fn the_interface_below_may_be_in_the_container() {
    let mut host = Host::new();
    let (pod, outside) = (host.pod("a"), host.pod("outside"));
    let target = pod.to_str().unwrap();
    let other = outside.to_str().unwrap();
    ip(
        &outside,
        &[
            "link", "add", "up1", "type", "veth", "peer", "name", "below", "netns", target,
        ],
    );
    ip(&outside, &["link", "set", "up1", "up"]);
    ip(&pod, &["link", "set", "below", "up"]);
    ip(&outside, &["addr", "add", "10.9.0.250/24", "dev", "up1"]);
    both_servers(&outside, "10.9.0.250:80");
    let call = Call::new("a", &pod);
    for (plugin, more) in [
        ("macvlan", json!({})),
        ("ipvlan", json!({})),
        ("vlan", json!({"vlanId": 5})),
    ] {
        if !has_kind(plugin) {
            continue;
        }
        let mut config = plain(&host, plugin, more);
        config["master"] = json!("below");
        config["linkInContainer"] = json!(true);
        call.ok(plugin, "STATUS", &config);
        let mut check = config.clone();
        check["prevResult"] = call.ok(plugin, "ADD", &config);
        call.ok(plugin, "CHECK", &check);
        if plugin != "vlan" {
            assert!(
                !inside(&pod, || ask("10.9.0.250:80")).contains("error"),
                "{other}"
            );
        }
        call.ok(plugin, "DEL", &config);
    }
}

#[test]
fn layer_two_alone() {
    let mut host = Host::new();
    let (pod, outside) = (host.pod("a"), host.pod("outside"));
    plug_cable(&outside);
    for (plugin, change) in [
        (
            "macvlan",
            json!({"master": "up0", "mac": "02:00:00:00:00:31"}),
        ),
        ("vlan", json!({"master": "up0", "vlanId": 9})),
        ("vxlan", json!({"id": 9})),
        (
            "host-device",
            json!({"hwaddr": host_json(&["link", "show", "up0"])[0]["address"]}),
        ),
    ] {
        if plugin != "host-device" && !has_kind(plugin) {
            continue;
        }
        let mut config = plain(&host, plugin, change);
        config.as_object_mut().unwrap().remove("ipam");
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            config["cniVersion"] = json!(version);
            let call = Call::new("a", &pod);
            let result = call.ok(plugin, "ADD", &config);
            assert_eq!(result["cniVersion"], version);
            let link = &ip_json(&pod, &["link", "show", "eth0"])[0];
            assert_eq!(result["interfaces"][0]["mac"], link["address"]);
            assert!(
                link["flags"].as_array().unwrap().contains(&json!("UP")),
                "{link}"
            );
            if plugin == "macvlan" {
                assert_eq!(link["address"], "02:00:00:00:00:31");
            }
            call.ok(plugin, "DEL", &config);
        }
    }
}

/// All that `ip` says of a namespace, without what is chance or the kernel's count. Ours are used without duplicate
/// detection and make their own subnet routes; the reference plugin waits and deletes the kernel's.
fn everything(netns: Option<&Path>) -> Value {
    let ask = |args: &[&str]| match netns {
        Some(netns) => ip_json(netns, args),
        None => host_json(args),
    };
    let mut all = json!([
        ask(&["-d", "link"]),
        ask(&["-d", "addr"]),
        ask(&["-d", "-4", "route"]),
        ask(&["-d", "-6", "route"]),
        ask(&["rule"]),
    ]);
    let chance = [
        "ifindex",
        "txqlen",
        "link_index",
        "link_netnsid",
        "link",
        "nodad",
        "noprefixroute",
        "valid_life_time",
        "preferred_life_time",
        "address",
        "ifalias",
        "parentbus",
        "parentdev",
        "bridge_id",
        "root_id",
        "designated_bridge",
        "designated_root",
        "operstate",
        "forward_delay_timer",
        "message_age_timer",
        "hold_timer",
        "state",
        "hello_timer",
        "gc_timer",
        "tcn_timer",
        "topology_change_timer",
    ];
    strip(&mut all, &chance);
    settle(&mut all);
    // link-local addresses follow from link addresses, and random names from nothing
    let mut text = all.to_string();
    for list in [ask(&["link"]), ask(&["addr"])] {
        for link in list.as_array().unwrap() {
            let name = link["ifname"].as_str().unwrap();
            if name.starts_with("veth") {
                text = text.replace(name, "VETH");
            }
            for info in link["addr_info"].as_array().into_iter().flatten() {
                if info["scope"] == "link" {
                    text = text.replace(info["local"].as_str().unwrap(), "LINKLOCAL");
                }
            }
        }
    }
    serde_json::from_str(&text).unwrap()
}

/// Carriers and their effects are noticed by the kernel a little later.
fn settle(value: &mut Value) {
    match value {
        Value::Array(list) => {
            list.retain(|item| {
                !["NO-CARRIER", "LOWER_UP", "linkdown"].contains(&item.as_str().unwrap_or_default())
            });
            list.retain(|item| item["scope"] != "link" || item.get("prefixlen").is_none());
            list.retain(|item| item["dst"] != "fe80::/64");
            list.iter_mut().for_each(settle);
        }
        Value::Object(map) => map.values_mut().for_each(settle),
        _ => {}
    }
}

fn differences(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}/{index}"), a, b, found);
            }
        }
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let none = Value::Null;
                let (a, b) = (a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none));
                differences(&format!("{path}/{key}"), a, b, found);
            }
        }
        _ if ours != theirs => found.push(format!(" {path}: ours {ours}, theirs {theirs}")),
        _ => {}
    }
}

fn result_form(result: &Value, pod: &Path) -> Value {
    let mut result = result.clone();
    for link in result["interfaces"].as_array_mut().unwrap() {
        link["mac"] = json!(link.get("mac").is_some());
        if link["name"].as_str().unwrap().starts_with("veth") {
            link["name"] = json!("VETH");
        }
        if link.get("sandbox").is_some() {
            assert_eq!(link["sandbox"], pod.to_str().unwrap());
            link["sandbox"] = json!("POD");
        }
    }
    result
}

/// Needs the package containernetworking-plugins.
#[test]
fn the_same_as_the_reference_plugins() {
    let table = [
        ("ptp", json!({})),
        (
            "ptp",
            json!({"mtu": 1400, "dns": {"nameservers": ["10.9.0.53"], "search": ["x"]}}),
        ),
        ("macvlan", json!({"master": "up0"})),
        (
            "macvlan",
            json!({"master": "up0", "mode": "private", "mtu": 1400}),
        ),
        ("macvlan", json!({"master": "up0", "mode": "vepa"})),
        ("macvlan", json!({"master": "up0", "mode": "passthru"})),
        ("macvlan", json!({"master": "up0", "ipam": {}})),
        ("macvlan", json!({})),
        ("ipvlan", json!({"master": "up0"})),
        ("ipvlan", json!({"master": "up0", "mode": "l3"})),
        (
            "ipvlan",
            json!({"master": "up0", "mode": "l3s", "mtu": 1400}),
        ),
        ("vlan", json!({"master": "up0", "vlanId": 5})),
        ("vlan", json!({"master": "up0", "vlanId": 6, "mtu": 1400})),
        ("host-device", json!({"device": "up0"})),
        ("bridge", json!({"isGateway": true, "bridge": "br0"})),
        (
            "bridge",
            json!({"isDefaultGateway": true, "bridge": "br0", "mtu": 1400}),
        ),
        ("bridge", json!({"bridge": "br0", "hairpinMode": true})),
        ("bridge", json!({"bridge": "br0", "promiscMode": true})),
    ];
    let mut all: Vec<String> = Vec::new();
    let mut last = "";
    for (plugin, change) in table {
        let driver = if plugin == "host-device" || plugin == "ptp" {
            "veth"
        } else {
            plugin
        };
        // one configuration of a plugin with each family, the others with both
        let is_first = !std::mem::replace(&mut last, plugin).eq(plugin);
        for families in if is_first {
            &FAMILIES[..]
        } else {
            &FAMILIES[2..]
        } {
            let mut seen = Vec::new();
            for program in [plugin.to_owned(), format!("{REFERENCE}/{plugin}")] {
                let mut host = Host::new();
                if !has_kind(driver) {
                    break;
                }
                let (pod, outside) = (host.pod("a"), host.pod("outside"));
                // the reference plugins wait for duplicate detection otherwise
                let no_detection =
                    || std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
                no_detection();
                inside(&pod, no_detection);
                plug_cable(&outside);
                run("ip", &["addr", "add", "192.0.2.1/24", "dev", "up0"]);
                run("ip", &["route", "add", "default", "via", "192.0.2.9"]);
                let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": plugin});
                config["ipam"] = ipam(&host, families);
                for (key, value) in change.as_object().unwrap() {
                    config[key] = value.clone();
                }
                if config["ipam"] != json!({}) {
                    config["ipam"]["routes"] = json!([{"dst": "172.16.0.0/12", "gw": "10.9.0.1"}, {"dst": "2001:db8:1::/48", "gw": "fd09::1"}]);
                    if *families != "dual" {
                        let only = usize::from(*families == "v6");
                        config["ipam"]["routes"] = json!([config["ipam"]["routes"][only]]);
                    }
                }
                // the reference plugins insist on a path, ours have it built in
                let call = Call {
                    path: REFERENCE.into(),
                    ..Call::new("a", &pod)
                };
                let result = call.ok(&program, "ADD", &config);
                let state = [everything(Some(&pod)), everything(None)];
                let mut check = config.clone();
                check["prevResult"] = result.clone();
                // the reference plugin is content with what ours made
                if config["ipam"] != json!({}) {
                    call.ok(&program, "CHECK", &check);
                    call.ok(&format!("{REFERENCE}/{plugin}"), "CHECK", &check);
                }
                // and deletes it
                // (the alias of a moved device tells ours more)
                let other = if seen.is_empty() && plugin != "host-device" {
                    format!("{REFERENCE}/{plugin}")
                } else {
                    plugin.to_owned()
                };
                call.ok(&other, "DEL", &config);
                assert_eq!(ip_json(&pod, &["link"]).as_array().unwrap().len(), 1);
                seen.push((result_form(&result, &pod), state, everything(None)));
            }
            let [ours, theirs] = seen.as_slice() else {
                continue;
            };
            println!("{plugin} {change} {families}");
            let mut found = Vec::new();
            differences("", &ours.0, &theirs.0, &mut found);
            differences("pod", &ours.1[0], &theirs.1[0], &mut found);
            differences("host", &ours.1[1], &theirs.1[1], &mut found);
            differences("after", &ours.2, &theirs.2, &mut found);
            all.extend(
                found
                    .into_iter()
                    .map(|text| format!("{plugin} {change} {families}{text}")),
            );
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

/// Runs `visit` with the calling thread in another host's namespace.
fn on<T: Send>(host: Option<&Path>, visit: impl FnOnce() -> T + Send) -> T {
    match host {
        Some(netns) => inside(netns, visit),
        None => visit(),
    }
}

/// Two hosts with a cable between them, two tenants with the same addresses, three pods each.
#[test]
fn tenants_of_two_hosts_are_apart() {
    for (family, underlay) in [
        ("v4", ["192.0.2.1", "192.0.2.2"]),
        ("v6", ["2001:db8::1", "2001:db8::2"]),
    ] {
        let mut host = Host::new();
        if !has_kind("vxlan") {
            return;
        }
        let second = host.pod("second");
        plug_cable(&second);
        let prefix = if family == "v4" { "24" } else { "64" };
        let nodad: &[&str] = if family == "v6" { &["nodad"] } else { &[] };
        let [here, there] = underlay.map(|address| format!("{address}/{prefix}"));
        run(
            "ip",
            &[&["addr", "add", here.as_str(), "dev", "up0"], nodad].concat(),
        );
        ip(
            &second,
            &[&["addr", "add", there.as_str(), "dev", "up1"], nodad].concat(),
        );
        let before = [left(&host), inside(&second, || left(&host))];
        let leases = host.leases();
        let tenant = |id: u32, machine: usize| {
            // each machine leases from its own part of the subnet
            let first = 10 + 100 * machine;
            let ipam = json!({"type": "host-local", "dataDir": leases.join(format!("{id}-{machine}")), "ranges": [
                [{"subnet": "10.9.0.0/24", "rangeStart": format!("10.9.0.{first}"), "rangeEnd": format!("10.9.0.{}", first + 50)}],
                [{"subnet": "fd09::/64", "rangeStart": format!("fd09::{first}"), "rangeEnd": format!("fd09::{}", first + 50)}]
            ]});
            json!({"cniVersion": "1.1.0", "name": format!("tenant{id}"), "type": "vxlan", "id": id, "bridge": format!("brt{id}"),
                "peers": [underlay[1 - machine]], "local": underlay[machine], "learning": id != 8, "ipam": ipam})
        };
        let mut pods = Vec::new();
        for id in [7, 8] {
            for (name, machine) in [("a", 0), ("b", 0), ("c", 1)] {
                let pod = host.pod(&format!("{name}{id}"));
                pods.push((format!("{name}{id}"), id, machine, pod));
            }
        }
        let machines = [None, Some(second.as_path())];
        for (name, id, machine, pod) in &pods {
            let config = tenant(*id, *machine);
            let call = Call::new(name, pod);
            on(machines[*machine], || {
                call.ok("vxlan", "STATUS", &config);
                let result = call.ok("vxlan", "ADD", &config);
                let room = if family == "v4" { 1450 } else { 1430 };
                assert_eq!(result["interfaces"][2]["mtu"], room);
                let mut check = config.clone();
                check["prevResult"] = result;
                call.ok("vxlan", "CHECK", &check);
            });
        }
        // everybody of a tenant has its own server of the same address as the other tenant's
        let find = |name: &str| &pods.iter().find(|(other, ..)| other == name).unwrap().3;
        for id in [7, 8] {
            for (name, address) in [("a", "10.9.0.10"), ("b", "10.9.0.11"), ("c", "10.9.0.110")] {
                let port = if id == 7 { 70 } else { 80 };
                both_servers(find(&format!("{name}{id}")), &format!("{address}:{port}"));
            }
            both_servers(find(&format!("c{id}")), &format!("[fd09::110]:{}", id * 10));
        }
        for (id, port, closed) in [(7, 70, 80), (8, 80, 70)] {
            let (a, c) = (find(&format!("a{id}")), find(&format!("c{id}")));
            for (client, server, source) in [
                (a, "10.9.0.110", "10.9.0.10"),
                (a, "10.9.0.11", "10.9.0.10"),
                (c, "10.9.0.10", "10.9.0.110"),
                (c, "10.9.0.11", "10.9.0.110"),
            ] {
                let address = format!("{server}:{port}");
                assert_eq!(
                    inside(client, || [ask(&address), ask_udp(&address)]),
                    [source, source],
                    "{address}"
                );
                // the other tenant's server isn't reached by the same address
                let other = format!("{server}:{closed}");
                assert_eq!(inside(client, || ask(&other)), "error: ConnectionRefused");
            }
            let address = format!("[fd09::110]:{port}");
            assert_eq!(
                inside(a, || [ask(&address), ask_udp(&address)]),
                ["fd09::10", "fd09::10"]
            );
        }
        // another network can't have the id, and a changed tunnel is told
        let pod = host.pod("stranger");
        let stranger = Call::new("s", &pod);
        let mut config = tenant(7, 0);
        config["name"] = json!("stranger");
        config["bridge"] = json!("brs");
        let error = stranger.err("vxlan", "ADD", &config);
        assert_eq!(
            error["msg"],
            "interface vxlan7 exists and is not of the network stranger"
        );
        assert!(
            host_json(&["link"])
                .as_array()
                .unwrap()
                .iter()
                .all(|link| link["ifname"] != "brs")
        );
        let mut config = tenant(7, 0);
        config["port"] = json!(8472);
        let error = stranger.err("vxlan", "ADD", &config);
        assert!(
            error["msg"]
                .as_str()
                .unwrap()
                .starts_with("interface vxlan7 is a vxlan with id 7, port 4789"),
            "{error}"
        );
        check_of_tunnel(&tenant(7, 0), find("a7"));
        // the last pod of each machine takes bridge and tunnel along; GC does what a missing DEL did not
        let mut gc = tenant(7, 0);
        gc["cni.dev/valid-attachments"] = json!([]);
        Call::new("", Path::new("")).ok("vxlan", "GC", &gc);
        for (name, id, machine, pod) in &pods {
            on(machines[*machine], || {
                for _ in 0..2 {
                    Call::new(name, pod).ok("vxlan", "DEL", &tenant(*id, *machine));
                }
            });
        }
        assert_eq!([left(&host), inside(&second, || left(&host))], before);
    }
}

fn check_of_tunnel(config: &Value, pod: &Path) {
    let call = Call::new("a7", pod);
    let mut check = config.clone();
    check["prevResult"] = json!({"interfaces": [{"name": "eth0", "sandbox": pod}]});
    call.ok("vxlan", "CHECK", &check);
    let peer = config["peers"][0].as_str().unwrap();
    let steps: [(&[&str], String); 4] = [
        (
            &[
                "bridge",
                "fdb",
                "del",
                "00:00:00:00:00:00",
                "dev",
                "vxlan7",
                "dst",
                peer,
            ],
            format!("interface vxlan7 has lost its peer {peer}"),
        ),
        (
            &["ip", "link", "set", "vxlan7", "nomaster"],
            "interface vxlan7 is no port of the bridge brt7".to_owned(),
        ),
        (
            &["ip", "link", "set", "vxlan7", "down"],
            "interface vxlan7 is down".to_owned(),
        ),
        (
            &["ip", "link", "set", "brt7", "down"],
            "bridge brt7 is down".to_owned(),
        ),
    ];
    for (change, msg) in steps {
        run(change[0], &change[1..]);
        assert_eq!(call.err("vxlan", "CHECK", &check)["msg"], msg);
    }
    run("ip", &["link", "set", "vxlan7", "master", "brt7"]);
}

/// A device comes back under its name whatever happened.
#[test]
fn a_moved_device_comes_back() {
    let mut host = Host::new();
    let (pod, outside) = (host.pod("a"), host.pod("outside"));
    plug_cable(&outside);
    // a name that the host has too, and the device's name in the container
    run("ip", &["link", "add", "eth0", "type", "bridge"]);
    ip(&pod, &["link", "add", "up0", "type", "bridge"]);
    let before = left(&host);
    let config = plain(&host, "host-device", json!({"device": "up0"}));
    let call = Call::new("a", &pod);
    let mut check = config.clone();
    check["prevResult"] = call.ok("host-device", "ADD", &config);
    assert_eq!(
        ip_json(&pod, &["link", "show", "eth0"])[0]["ifalias"],
        "net a eth0 up0"
    );
    call.ok("host-device", "CHECK", &check);
    assert_eq!(call.err("host-device", "STATUS", &config)["code"], 50);
    // taken: the second pod's ADD leaves nothing
    let other = host.pod("b");
    let error = Call::new("b", &other).err("host-device", "ADD", &config);
    assert_eq!(error["msg"], "no interface with the name up0 on the host");
    ip(&pod, &["link", "set", "eth0", "alias", "else"]);
    let expected = "interface eth0 is not the device that was moved";
    assert_eq!(call.err("host-device", "CHECK", &check)["msg"], expected);
    ip(&pod, &["link", "set", "eth0", "alias", "net a eth0 up0"]);
    // not by another attachment's DEL
    Call {
        id: "c".into(),
        ..call.clone()
    }
    .ok("host-device", "DEL", &config);
    assert_eq!(
        ip_json(&pod, &["link", "show", "eth0"])[0]["ifalias"],
        "net a eth0 up0"
    );
    call.ok("host-device", "DEL", &config);
    assert_eq!(left(&host), before);
    let back = &host_json(&["link", "show", "up0"])[0];
    assert_eq!(
        (back.get("ifalias"), &back["operstate"]),
        (None, &json!("DOWN"))
    );

    // as the kernel leaves it when the namespace of a physical device ends
    for (name, alias, valid, expected) in [
        ("moved1", "net a eth0 up0", json!([]), "up0"),
        (
            "moved1",
            "net a eth0 up0",
            json!([{"containerID": "a", "ifname": "eth0"}]),
            "moved1",
        ),
        ("moved1", "other a eth0 up0", json!([]), "moved1"),
        ("moved1", "somebody's device", json!([]), "moved1"),
    ] {
        run("ip", &["link", "set", "up0", "name", name]);
        run("ip", &["link", "set", name, "alias", alias]);
        let mut gc = config.clone();
        gc["cni.dev/valid-attachments"] = valid;
        Call::new("", Path::new("")).ok("host-device", "GC", &gc);
        let link = &host_json(&["link", "show", expected])[0];
        assert_eq!(link.get("ifalias").is_some(), expected == name, "{alias}");
        if expected == name {
            run("ip", &["link", "set", name, "alias", "net a eth0 up0"]);
            let no_netns = Call {
                netns: None,
                ..call.clone()
            };
            no_netns.ok("host-device", "DEL", &config);
        }
        assert_eq!(left(&host), before);
    }
    // what was killed between mark and move
    run("ip", &["link", "set", "up0", "alias", "net a eth0 up0"]);
    call.ok("host-device", "DEL", &config);
    assert_eq!(host_json(&["link", "show", "up0"])[0].get("ifalias"), None);
}

#[test]
fn killed_adds_leave_nothing_after_del() {
    let mut host = Host::new();
    let (pod, outside) = (host.pod("a"), host.pod("outside"));
    plug_cable(&outside);
    let before = left(&host);
    let call = Call::new("a", &pod);
    for (plugin, change) in [
        ("ptp", json!({"ipMasq": true})),
        ("macvlan", json!({"master": "up0"})),
        (
            "vxlan",
            json!({"id": 7, "bridge": "br7", "ipspoofchk": true}),
        ),
        ("host-device", json!({"device": "up0"})),
    ] {
        let config = plain(&host, plugin, change);
        for step in 0..20 {
            let mut child = call.spawn(plugin, "ADD", &config);
            std::thread::sleep(std::time::Duration::from_micros(step * 500));
            child.kill().unwrap();
            child.wait().unwrap();
            call.ok(plugin, "DEL", &config);
            assert_eq!(left(&host), before, "{plugin} killed in step {step}");
            assert_eq!(ip_json(&pod, &["link"]).as_array().unwrap().len(), 1);
        }
        call.ok(plugin, "ADD", &config);
        call.ok(plugin, "DEL", &config);
        assert_eq!(left(&host), before);
    }
}
