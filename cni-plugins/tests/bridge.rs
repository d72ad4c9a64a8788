//! `bridge` and `loopback` as processes between namespaces.

mod common;

use std::path::Path;

use common::{
    Call, Host, REFERENCE, addresses, ask, host_json, ip, ip_json, remove_pod, rules, run, serve,
};
use serde_json::{Value, json};

fn config(host: &Host, change: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0", "removeBridge": true,
        "isDefaultGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": host.leases(),
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]
        }
    });
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn link(list: &Value, key: &str) -> Value {
    list[0][key].clone()
}

#[test]
fn dual_stack_from_first_to_last() {
    let mut host = Host::new();
    let (a, b) = (host.pod("a"), host.pod("b"));
    let before = host.snapshot();
    let config = config(&host, json!({"mtu": 1400, "ipMasq": true}));
    let (call_a, call_b) = (Call::new("a", &a), Call::new("b", &b));
    let result = call_a.ok("bridge", "ADD", &config);
    let port = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "br0", "mac": link(&host_json(&["link", "show", "br0"]), "address"), "mtu": 1400},
                {"name": port, "mac": link(&host_json(&["link", "show", &port]), "address"), "mtu": 1400},
                {"name": "eth0", "mac": "0a:58:0a:09:00:02", "mtu": 1400, "sandbox": a}
            ],
            "ips": [
                {"interface": 2, "address": "10.9.0.2/24", "gateway": "10.9.0.1"},
                {"interface": 2, "address": "fd09::2/64", "gateway": "fd09::1"}
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}, {"dst": "::/0", "gw": "fd09::1"}],
            "dns": {}
        })
    );
    assert_eq!(
        addresses(&ip_json(&a, &["addr", "show", "eth0"])),
        ["10.9.0.2/24", "fd09::2/64"]
    );
    assert_eq!(
        addresses(&host_json(&["addr", "show", "br0"])),
        ["10.9.0.1/24", "fd09::1/64"]
    );
    for (family, gateway) in [("-4", "10.9.0.1"), ("-6", "fd09::1")] {
        let routes = ip_json(&a, &[family, "route", "show", "default"]);
        assert_eq!(
            (&routes[0]["gateway"], &routes[0]["dev"]),
            (&json!(gateway), &json!("eth0"))
        );
    }
    call_b.ok("bridge", "ADD", &config);
    // usable on return: host, neighbour, both families
    for address in ["10.9.0.2", "[fd09::2]"] {
        serve(&a, &format!("{address}:80"));
        assert_eq!(
            common::inside(&b, || ask(&format!("{address}:80"))),
            if address.starts_with('[') {
                "fd09::3"
            } else {
                "10.9.0.3"
            }
        );
    }
    assert_eq!(
        (ask("10.9.0.2:80"), ask("[fd09::2]:80")),
        ("10.9.0.1".into(), "fd09::1".into())
    );
    assert_eq!(
        rules(),
        "table inet sampan_masquerade {\n\tchain postrouting {\n\t\ttype nat hook postrouting priority 100; policy accept;\n\
         \t\tip saddr 10.9.0.2 ip daddr != 10.9.0.0/24 ip daddr != 224.0.0.0/4 masquerade comment \"net a eth0\"\n\
         \t\tip6 saddr fd09::2 ip6 daddr != fd09::/64 ip6 daddr != ff00::/8 masquerade comment \"net a eth0\"\n\
         \t\tip saddr 10.9.0.3 ip daddr != 10.9.0.0/24 ip daddr != 224.0.0.0/4 masquerade comment \"net b eth0\"\n\
         \t\tip6 saddr fd09::3 ip6 daddr != fd09::/64 ip6 daddr != ff00::/8 masquerade comment \"net b eth0\"\n\t}\n}\n"
    );
    let mut check = config.clone();
    check["prevResult"] = result;
    call_a.ok("bridge", "CHECK", &check);
    call_a.ok("bridge", "STATUS", &config);

    call_a.ok("bridge", "DEL", &config);
    call_a.ok("bridge", "DEL", &config);
    assert_eq!(ip_json(&a, &["link"]).as_array().unwrap().len(), 1);
    // the other one lives on
    assert_eq!(
        common::inside(&b, || ask("10.9.0.1:9")),
        "error: ConnectionRefused"
    );
    remove_pod(&b);
    call_b.ok("bridge", "DEL", &config);
    assert_eq!(host.snapshot(), before);
    let no_netns = Call {
        netns: None,
        ..call_b
    };
    no_netns.ok("bridge", "DEL", &config);
}

#[test]
fn masquerade_hides_the_subnet() {
    let mut host = Host::new();
    let (pod, outside) = (host.pod("pod"), host.pod("outside"));
    connect_outside(&outside);
    serve(&outside, "192.0.2.2:80");
    serve(&outside, "[2001:db8::2]:80");
    let plain = config(&host, json!({}));
    let call = Call::new("a", &pod);
    call.ok("bridge", "ADD", &plain);
    // no way back to the pod's own address
    assert_eq!(
        common::inside(&pod, || ask("192.0.2.2:80")),
        "error: TimedOut"
    );
    call.ok("bridge", "DEL", &plain);
    let masq = config(&host, json!({"ipMasq": true}));
    call.ok("bridge", "ADD", &masq);
    assert_eq!(common::inside(&pod, || ask("192.0.2.2:80")), "192.0.2.1");
    assert_eq!(
        common::inside(&pod, || ask("[2001:db8::2]:80")),
        "2001:db8::1"
    );
}

/// A machine beside the host that doesn't know the pods' subnet.
fn connect_outside(outside: &Path) {
    let outside_arg = outside.to_str().unwrap();
    run(
        "ip",
        &[
            "link",
            "add",
            "up0",
            "type",
            "veth",
            "peer",
            "name",
            "up1",
            "netns",
            outside_arg,
        ],
    );
    run("ip", &["addr", "add", "192.0.2.1/24", "dev", "up0"]);
    run(
        "ip",
        &["addr", "add", "2001:db8::1/64", "dev", "up0", "nodad"],
    );
    run("ip", &["link", "set", "up0", "up"]);
    ip(outside, &["addr", "add", "192.0.2.2/24", "dev", "up1"]);
    ip(
        outside,
        &["addr", "add", "2001:db8::2/64", "dev", "up1", "nodad"],
    );
    ip(outside, &["link", "set", "up1", "up"]);
}

#[test]
fn check_sees_what_changed() {
    let mut host = Host::new();
    let pod = host.pod("a");
    let config = config(&host, json!({"ipMasq": true}));
    let call = Call::new("a", &pod);
    let result = call.ok("bridge", "ADD", &config);
    let port = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    let mut check = config.clone();
    check["prevResult"] = result;
    assert_eq!(
        call.err("bridge", "CHECK", &config)["msg"],
        "required prevResult missing"
    );
    let pod_ip = |args: &[&str]| ip(&pod, args);
    let steps: [(&dyn Fn(), String); 6] = [
        (
            &|| drop(run("nft", &["flush", "ruleset"])),
            "missing rule in the nftables chain inet sampan_masquerade postrouting".into(),
        ),
        (
            &|| drop(pod_ip(&["route", "del", "default"])),
            "interface eth0 has lost its route to 0.0.0.0/0".into(),
        ),
        (
            &|| drop(pod_ip(&["addr", "del", "10.9.0.2/24", "dev", "eth0"])),
            "interface eth0 has lost its address 10.9.0.2/24".into(),
        ),
        (
            &|| drop(pod_ip(&["link", "set", "eth0", "down"])),
            format!("interface eth0 is down in {}", pod.display()),
        ),
        (
            &|| drop(run("ip", &["link", "set", &port, "nomaster"])),
            format!("interface {port} is no port of the bridge br0"),
        ),
        (
            &|| drop(run("ip", &["link", "del", "br0"])),
            "bridge br0 is missing".into(),
        ),
    ];
    for (change, msg) in steps {
        change();
        let error = call.err("bridge", "CHECK", &check);
        assert_eq!(
            (&error["code"], &error["msg"]),
            (&json!(100), &json!(msg)),
            "{error}"
        );
    }
}

#[test]
fn failures_leave_nothing() {
    let mut host = Host::new();
    let pod = host.pod("a");
    ip(&pod, &["link", "add", "taken", "type", "bridge"]);
    run(
        "ip",
        &[
            "link", "add", "other", "type", "veth", "peer", "name", "other1",
        ],
    );
    let before = host.snapshot();
    let call = Call::new("a", &pod);
    let taken = Call {
        ifname: "taken".into(),
        ..call.clone()
    };
    let here = Call::new("a", Path::new("/proc/self/ns/net"));
    let file = Call::new("a", Path::new("/etc/hostname"));
    let path = pod.display();
    let route = json!({"type": "host-local", "dataDir": host.leases(), "subnet": "10.9.0.0/24", "routes": [{"dst": "10.0.0.0/8", "gw": "192.168.1.1"}]});
    let cases = [
        (
            &taken,
            json!({}),
            999,
            format!("interface taken exists already in {path}"),
        ),
        (
            &call,
            json!({"bridge": "other"}),
            999,
            "\"other\" already exists but is not a bridge".into(),
        ),
        (
            &call,
            json!({"ipam": route}),
            999,
            "cannot add the route to 10.0.0.0/8 via 192.168.1.1 over eth0".into(),
        ),
        (
            &call,
            json!({"mtu": 70000}),
            999,
            "cannot create the bridge br0".into(),
        ),
        (
            &call,
            json!({"ipam": {"type": "nothing"}}),
            7,
            "failed to find plugin \"nothing\" in path [\"/nonexistent\"]".into(),
        ),
        (
            &call,
            json!({"ipam": {"type": "../x"}}),
            7,
            "invalid plugin name \"../x\" in ipam.type".into(),
        ),
        (
            &here,
            json!({}),
            4,
            "CNI_NETNS /proc/self/ns/net is the plugin's own network namespace".into(),
        ),
        (
            &file,
            json!({}),
            4,
            "CNI_NETNS /etc/hostname is not a network namespace".into(),
        ),
    ];
    for (call, change, code, msg) in cases {
        let error = call.err("bridge", "ADD", &config(&host, change));
        assert_eq!(
            (&error["code"], &error["msg"]),
            (&json!(code), &json!(msg)),
            "{error}"
        );
        assert_eq!(host.snapshot(), before);
        assert_eq!(ip_json(&pod, &["link"]).as_array().unwrap().len(), 2);
    }
}

#[test]
fn somebody_elses_bridge_stays() {
    let mut host = Host::new();
    let pod = host.pod("a");
    run("ip", &["link", "add", "br0", "type", "bridge"]);
    run("ip", &["addr", "add", "10.9.0.77/24", "dev", "br0"]);
    let call = Call::new("a", &pod);
    let error = call.err("bridge", "ADD", &config(&host, json!({})));
    assert_eq!(
        error["msg"],
        "\"br0\" already has an IP address different from 10.9.0.1/24"
    );
    assert_eq!(error["details"], "10.9.0.77/24; forceAddress replaces it");
    let force = config(&host, json!({"forceAddress": true}));
    call.ok("bridge", "ADD", &force);
    assert_eq!(
        addresses(&host_json(&["addr", "show", "br0"])),
        ["10.9.0.1/24", "fd09::1/64"]
    );
    call.ok("bridge", "DEL", &force);
    assert_eq!(host_json(&["link", "show", "br0"])[0]["ifname"], "br0");
}

#[test]
fn port_options() {
    let mut host = Host::new();
    let (a, b) = (host.pod("a"), host.pod("b"));
    let details = |result: &Value| {
        let port = result["interfaces"][1]["name"].as_str().unwrap();
        host_json(&["-d", "link", "show", port])[0]["linkinfo"]["info_slave_data"].clone()
    };
    let ipam = json!({"type": "host-local", "dataDir": host.leases(), "subnet": "10.9.0.0/24"});
    let options = config(
        &host,
        json!({
            "hairpinMode": true, "portIsolation": true, "isDefaultGateway": false, "ipam": ipam,
            "runtimeConfig": {"mac": "02:11:22:33:44:55"}
        }),
    );
    let result = Call::new("a", &a).ok("bridge", "ADD", &options);
    assert_eq!(
        (&details(&result)["hairpin"], &details(&result)["isolated"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(
        link(&ip_json(&a, &["link", "show", "eth0"]), "address"),
        "02:11:22:33:44:55"
    );
    assert_eq!(addresses(&host_json(&["addr", "show", "br0"])), [""; 0]);
    Call::new("a", &a).ok("bridge", "DEL", &options);

    let bare = config(
        &host,
        json!({"bridge": "br2", "disableContainerInterface": true, "isDefaultGateway": false, "ipam": {}}),
    );
    Call::new("b", &b).ok("bridge", "ADD", &bare);
    assert_eq!(
        link(&ip_json(&b, &["link", "show", "eth0"]), "operstate"),
        "DOWN"
    );
}

#[test]
#[ignore = "needs a kernel with CONFIG_BRIDGE_VLAN_FILTERING"]
fn vlan() {
    let mut host = Host::new();
    let a = host.pod("a");
    let ipam = json!({"type": "host-local", "dataDir": host.leases(), "subnet": "10.9.0.0/24"});
    let vlan = config(
        &host,
        json!({"bridge": "br1", "vlan": 30, "preserveDefaultVlan": false, "isDefaultGateway": false, "promiscMode": true, "ipam": ipam}),
    );
    let result = Call::new("a", &a).ok("bridge", "ADD", &vlan);
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    let vlans: Value =
        serde_json::from_str(&run("bridge", &["-j", "vlan", "show", "dev", port])).unwrap();
    assert_eq!(
        vlans[0]["vlans"],
        json!([{"vlan": 30, "flags": ["PVID", "Egress Untagged"]}])
    );
    let flags = link(&host_json(&["link", "show", "br1"]), "flags");
    assert!(
        flags.as_array().unwrap().contains(&json!("PROMISC")),
        "{flags}"
    );
    run("ip", &["link", "add", "br2", "type", "bridge"]);
    Call::new("a", &a).ok("bridge", "DEL", &vlan);
    let error = Call::new("a", &a).err(
        "bridge",
        "ADD",
        &config(
            &host,
            json!({"bridge": "br2", "vlan": 30, "isDefaultGateway": false, "ipam": ipam}),
        ),
    );
    assert_eq!(error["msg"], "bridge \"br2\" doesn't filter VLANs");
}

#[test]
#[ignore = "needs a kernel with CONFIG_BRIDGE_VLAN_FILTERING"]
fn gateway_in_a_vlan() {
    let mut host = Host::new();
    let (a, b, c) = (host.pod("a"), host.pod("b"), host.pod("c"));
    let before = host.snapshot();
    let in_vlan = |vlan: u16, gateway: bool| {
        config(
            &host,
            json!({"bridge": "br1", "vlan": vlan, "preserveDefaultVlan": false, "isDefaultGateway": gateway}),
        )
    };
    let result = Call::new("a", &a).ok("bridge", "ADD", &in_vlan(30, true));
    let mac = link(&host_json(&["link", "show", "br1.30"]), "address");
    assert_eq!(result["interfaces"][3]["name"], "br1.30");
    assert_eq!(result["interfaces"][3]["mac"], mac);
    Call::new("b", &b).ok("bridge", "ADD", &in_vlan(30, true));
    Call::new("c", &c).ok("bridge", "ADD", &in_vlan(40, false));
    assert_eq!(
        addresses(&host_json(&["addr", "show", "br1.30"])),
        ["10.9.0.1/24", "fd09::1/64"]
    );
    for (server, source) in [("10.9.0.2:80", "10.9.0.3"), ("[fd09::2]:80", "fd09::3")] {
        serve(&a, server);
        assert_eq!(common::inside(&b, || ask(server)), source);
        assert!(common::inside(&c, || ask(server)).starts_with("error"));
        assert_eq!(ask(server), source.replace('3', "1"));
    }
    let mut check = in_vlan(30, true);
    check["prevResult"] = result;
    Call::new("a", &a).ok("bridge", "CHECK", &check);
    Call::new("a", &a).ok("bridge", "DEL", &in_vlan(30, true));
    Call::new("c", &c).ok("bridge", "DEL", &in_vlan(40, false));
    assert_eq!(
        common::inside(&b, || ask("10.9.0.1:9")),
        "error: ConnectionRefused"
    );
    Call::new("b", &b).ok("bridge", "DEL", &in_vlan(30, true));
    assert_eq!(host.snapshot(), before);
}

#[test]
#[ignore = "needs a kernel with CONFIG_BRIDGE_VLAN_FILTERING"]
fn trunk() {
    let mut host = Host::new();
    let (router, member) = (host.pod("router"), host.pod("member"));
    let before = host.snapshot();
    let trunk = |change: Value| {
        let mut config = config(&host, json!({"isDefaultGateway": false, "ipam": {}}));
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    let many = json!([{"minID": 100, "maxID": 102}, {"id": 200}]);
    let tagged = [100, 101, 102, 200].map(|vlan| json!({"vlan": vlan}));
    let native = |vlan: u16| json!({"vlan": vlan, "flags": ["PVID", "Egress Untagged"]});
    let with = |first: Value, rest: &[Value]| json!([&[first], rest].concat());
    for (change, expected) in [
        (json!({"vlanTrunk": many}), with(native(1), &tagged)),
        (
            json!({"vlanTrunk": many, "vlan": 30, "preserveDefaultVlan": false}),
            with(native(30), &tagged),
        ),
        (
            json!({"vlanTrunk": many, "vlan": 100, "preserveDefaultVlan": false}),
            with(native(100), &tagged[1..]),
        ),
    ] {
        let call = Call::new("r", &router);
        let result = call.ok("bridge", "ADD", &trunk(change.clone()));
        let port = result["interfaces"][1]["name"].as_str().unwrap();
        let shown = run("bridge", &["-j", "vlan", "show", "dev", port]);
        let vlans: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(vlans[0]["vlans"], expected, "{change}");
        call.ok("bridge", "DEL", &trunk(change));
    }
    // frames with a tag of the trunk reach the VLAN's members
    Call::new("r", &router).ok("bridge", "ADD", &trunk(json!({"vlanTrunk": many})));
    Call::new("m", &member).ok(
        "bridge",
        "ADD",
        &trunk(json!({"vlan": 101, "preserveDefaultVlan": false})),
    );
    ip(
        &router,
        &[
            "link", "add", "link", "eth0", "name", "v101", "type", "vlan", "id", "101",
        ],
    );
    ip(&router, &["addr", "add", "10.9.0.1/24", "dev", "v101"]);
    ip(&router, &["link", "set", "v101", "up"]);
    ip(&member, &["addr", "add", "10.9.0.2/24", "dev", "eth0"]);
    serve(&router, "10.9.0.1:80");
    assert_eq!(common::inside(&member, || ask("10.9.0.1:80")), "10.9.0.2");
    for (id, pod) in [("r", &router), ("m", &member)] {
        Call::new(id, pod).ok("bridge", "DEL", &trunk(json!({})));
    }
    assert_eq!(host.snapshot(), before);
}

#[test]
fn garbage_collection_keeps_the_valid() {
    let mut host = Host::new();
    let (a, b) = (host.pod("a"), host.pod("b"));
    let mut config = config(&host, json!({"ipMasq": true}));
    for (id, pod) in [("a", &a), ("b", &b)] {
        Call::new(id, pod).ok("bridge", "ADD", &config);
    }
    config["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    Call::new("", Path::new("")).ok("bridge", "GC", &config);
    assert_eq!(host.snapshot()["leases"], json!(["10.9.0.3", "fd09::3"]));
    assert!(!rules().contains("net a eth0"), "{}", rules());
    assert!(rules().contains("net b eth0"), "{}", rules());
    assert_eq!(ip_json(&a, &["link"]).as_array().unwrap().len(), 1);
    assert_eq!(
        common::inside(&b, || ask("10.9.0.1:9")),
        "error: ConnectionRefused"
    );
}

#[test]
fn add_and_del_race_for_the_bridge() {
    let mut host = Host::new();
    let before = host.snapshot();
    let config = config(&host, json!({"ipMasq": true}));
    let pods: Vec<_> = (0..4)
        .map(|n| (format!("c{n}"), host.pod(&format!("p{n}"))))
        .collect();
    std::thread::scope(|scope| {
        for (id, pod) in &pods {
            let config = &config;
            scope.spawn(move || {
                for _ in 0..5 {
                    Call::new(id, pod).ok("bridge", "ADD", config);
                    assert_eq!(
                        common::inside(pod, || ask("10.9.0.1:9")),
                        "error: ConnectionRefused"
                    );
                    Call::new(id, pod).ok("bridge", "DEL", config);
                }
            });
        }
    });
    assert_eq!(host.snapshot(), before);
}

/// Needs the package containernetworking-plugins.
#[test]
fn results_have_the_reference_plugins_form() {
    let mut host = Host::new();
    let (a, b) = (host.pod("a"), host.pod("b"));
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let config = config(&host, json!({"cniVersion": version}));
        let reference = Call {
            path: REFERENCE.into(),
            ..Call::new("b", &b)
        };
        let mut ours = Call::new("a", &a).ok("bridge", "ADD", &config);
        let mut theirs = reference.ok(&format!("{REFERENCE}/bridge"), "ADD", &config);
        for result in [&mut ours, &mut theirs] {
            for link in result["interfaces"].as_array_mut().unwrap() {
                link["mac"] = json!("");
                link["sandbox"] = json!(link.get("sandbox").is_some());
            }
            result["interfaces"][1]["name"] = json!("");
            for ip in result["ips"].as_array_mut().unwrap() {
                ip["address"] = json!("");
            }
        }
        assert_eq!(ours, theirs);
        reference.ok(&format!("{REFERENCE}/bridge"), "DEL", &config);
        // either plugin deletes the other's
        Call {
            path: REFERENCE.into(),
            ..Call::new("a", &a)
        }
        .ok(&format!("{REFERENCE}/bridge"), "DEL", &config);
        assert_eq!(host.snapshot()["leases"], json!([]));
    }
}

#[test]
fn loopback() {
    let mut host = Host::new();
    let pod = host.pod("a");
    ip(&pod, &["link", "set", "lo", "down"]);
    let config = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
    let call = Call {
        ifname: "lo".into(),
        ..Call::new("a", &pod)
    };
    assert_eq!(
        call.err("loopback", "CHECK", &config)["msg"],
        format!("loopback interface is down in {}", pod.display())
    );
    let expected = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod}],
        "ips": [{"interface": 0, "address": "127.0.0.1/8"}, {"interface": 0, "address": "::1/128"}],
        "dns": {}
    });
    assert_eq!(call.ok("loopback", "ADD", &config), expected);
    assert_eq!(
        call.ok(&format!("{REFERENCE}/loopback"), "ADD", &config),
        expected
    );
    call.ok("loopback", "CHECK", &config);
    call.ok("loopback", "DEL", &config);
    remove_pod(&pod);
    call.ok("loopback", "DEL", &config);
    let version = call.ok("bridge", "VERSION", &json!({"cniVersion": "1.0.0"}));
    assert_eq!(
        version,
        json!({"cniVersion": "1.0.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
    );
}

/// Needs the package containernetworking-plugins.
#[test]
fn an_address_plugin_on_the_path_is_executed() {
    let mut host = Host::new();
    let pod = host.pod("a");
    let before = host.snapshot();
    let script = |name: &str, text: &str| {
        let path = host.temp.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        run("chmod", &["+x", path.to_str().unwrap()]);
    };
    script(
        "refuses",
        r#"echo '{"cniVersion":"1.1.0","code":11,"msg":"later","details":"$CNI_COMMAND"}'; exit 1"#,
    );
    script("breaks", "exit 3");
    script("babbles", "cat > /dev/null; echo nonsense");
    script("floods", "yes");
    script("empty", "cat > /dev/null; echo '{}'");
    script(
        "deaf",
        r#"exec <&-; echo '{"ips": [{"address": "10.9.0.9/24"}]}'"#,
    );
    let call = Call {
        path: host.temp.path().to_str().unwrap().into(),
        ..Call::new("a", &pod)
    };
    let at = |name: &str| host.temp.path().join(name).display().to_string();
    for (kind, code, msg) in [
        ("refuses", 11, "later".to_owned()),
        ("breaks", 999, format!("cannot run {}", at("breaks"))),
        (
            "babbles",
            6,
            format!("the answer of {} is not JSON", at("babbles")),
        ),
        (
            "floods",
            999,
            format!("cannot use the answer of {}", at("floods")),
        ),
        (
            "empty",
            7,
            "address plugin empty returned no address for network net".into(),
        ),
    ] {
        let error = call.err(
            "bridge",
            "ADD",
            &config(&host, json!({"ipam": {"type": kind}})),
        );
        assert_eq!(
            (&error["code"], &error["msg"]),
            (&json!(code), &json!(msg)),
            "{error}"
        );
        assert_eq!(host.snapshot(), before);
    }
    let deaf = config(
        &host,
        json!({"ipam": {"type": "deaf", "filler": "x".repeat(200_000)}}),
    );
    assert_eq!(
        call.ok("bridge", "ADD", &deaf)["ips"][0]["gateway"],
        "10.9.0.1"
    );
    call.ok("bridge", "DEL", &deaf);

    let reference = Call {
        path: format!("/nowhere:{REFERENCE}"),
        ..call
    };
    let plain = config(&host, json!({}));
    let result = reference.ok(
        "bridge",
        "ADD",
        &plain.clone().tap("cniVersion", json!("1.0.0")),
    );
    assert_eq!(result["ips"][1]["address"], "fd09::2/64");
    reference.ok("bridge", "DEL", &plain.tap("cniVersion", json!("1.0.0")));
    assert_eq!(host.snapshot(), before);
}

trait Tap {
    fn tap(self, key: &str, value: Value) -> Value;
}

impl Tap for Value {
    fn tap(mut self, key: &str, value: Value) -> Value {
        self[key] = value;
        self
    }
}

#[test]
fn del_removes_what_a_killed_add_left() {
    let mut host = Host::new();
    let pod = host.pod("a");
    let before = host.snapshot();
    let config = config(&host, json!({"ipMasq": true}));
    let call = Call::new("a", &pod);
    // at every step of some 10 ms
    for step in 0..50 {
        let mut child = call.spawn("bridge", "ADD", &config);
        std::thread::sleep(std::time::Duration::from_micros(step * 200));
        child.kill().unwrap();
        child.wait().unwrap();
        call.ok("bridge", "DEL", &config);
        assert_eq!(host.snapshot(), before, "killed in step {step}");
        assert_eq!(ip_json(&pod, &["link"]).as_array().unwrap().len(), 1);
    }
    call.ok("bridge", "ADD", &config);
}

#[test]
fn several_networks_in_one_pod() {
    let mut host = Host::new();
    let pod = host.pod("a");
    let before = host.snapshot();
    let net = |n: u8| {
        let ipam = json!({
            "type": "host-local", "dataDir": host.leases(), "routes": [{"dst": format!("172.16.{n}.0/24"), "gw": format!("10.{n}.0.254")}],
            "ranges": [[{"subnet": format!("10.{n}.0.0/24")}], [{"subnet": format!("10.{}.0.0/24", n + 100)}]]
        });
        config(
            &host,
            json!({"name": format!("net{n}"), "bridge": format!("br{n}"), "ipMasq": true, "ipam": ipam}),
        )
    };
    let call = |n: u8| Call {
        ifname: format!("eth{n}"),
        ..Call::new("a", &pod)
    };
    for n in [1, 2] {
        call(n).ok("bridge", "ADD", &net(n));
        let device = format!("eth{n}");
        let expected = [format!("10.{n}.0.2/24"), format!("10.{}.0.2/24", n + 100)];
        assert_eq!(
            addresses(&ip_json(&pod, &["addr", "show", &device])),
            expected
        );
        let gateways = [format!("10.{n}.0.1/24"), format!("10.{}.0.1/24", n + 100)];
        assert_eq!(
            addresses(&host_json(&["addr", "show", &format!("br{n}")])),
            gateways
        );
        let route = &ip_json(&pod, &["route", "show", &format!("172.16.{n}.0/24")])[0];
        assert_eq!(
            (&route["dev"], &route["gateway"]),
            (&json!(device), &json!(format!("10.{n}.0.254")))
        );
    }
    // the first to claim the default route has it
    let routes = ip_json(&pod, &["route", "show", "default"]);
    assert_eq!(
        (routes.as_array().unwrap().len(), &routes[0]["dev"]),
        (1, &json!("eth1"))
    );
    call(1).ok("bridge", "DEL", &net(1));
    assert_eq!(
        addresses(&ip_json(&pod, &["addr", "show", "eth2"])),
        ["10.2.0.2/24", "10.102.0.2/24"]
    );
    assert_eq!(rules().matches("net2 a eth2").count(), 2);
    call(2).ok("bridge", "DEL", &net(2));
    assert_eq!(host.snapshot(), before);
}

#[test]
fn in_process() {
    use cni_plugins::{BUILT_IN, Command, Invocation, run};
    let mut host = Host::new();
    let pod = host.pod("a");
    let before = host.snapshot();
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let mut invocation = Invocation {
        command: Command::Add,
        container_id: "a".into(),
        netns: Some(pod.clone()),
        ifname: "eth0".into(),
        args: String::new(),
        path: Vec::new(),
        config: config(&host, json!({"ipMasq": true})),
    };
    let result = run("bridge", &invocation).unwrap();
    invocation.config["prevResult"] = result.clone();
    invocation.config["runtimeConfig"] =
        json!({"portMappings": [{"hostPort": 80, "containerPort": 80}]});
    assert_eq!(run("portmap", &invocation).unwrap(), result);
    invocation.command = Command::Check;
    for plugin in ["bridge", "portmap"] {
        assert_eq!(run(plugin, &invocation).unwrap(), Value::Null);
    }
    invocation.command = Command::Del;
    for plugin in ["portmap", "bridge", "bridge"] {
        assert_eq!(run(plugin, &invocation).unwrap(), Value::Null);
    }
    assert_eq!(host.snapshot(), before);
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), own);
    invocation.ifname = "../eth0".into();
    assert_eq!(
        run("bridge", &invocation).unwrap_err().to_string(),
        "invalid CNI_IFNAME: ../eth0"
    );
    assert_eq!(
        run("nothing", &invocation).unwrap_err().to_string(),
        "plugin \"nothing\" is not built in"
    );
    for name in ["bridge", "host-local", "loopback", "portmap"] {
        assert!(BUILT_IN.contains(&name));
    }
    assert!(BUILT_IN.is_sorted(), "{BUILT_IN:?}");
}

#[test]
fn one_program_by_its_names() {
    let host = Host::new();
    let folder = host.plugins();
    let call = |path: &Path, args: &[&str], env: &str| {
        let mut command = std::process::Command::new(path);
        command
            .args(args)
            .env_remove("CNI_COMMAND")
            .envs((!env.is_empty()).then_some(("CNI_COMMAND", env)))
            .stdin(std::process::Stdio::null());
        let output = command.output().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let ours = Path::new(common::OURS);
    let names = cni_plugins::BUILT_IN.join("\n") + "\n";
    assert_eq!(call(ours, &["--list"], ""), (0, names, "".into()));
    for args in [&[][..], &["--help"]] {
        let (code, help, _) = call(ours, args, "");
        assert_eq!(code, 0);
        assert!(help.contains("bridge, "), "{help}");
    }
    let stranger = folder.join("stranger");
    std::os::unix::fs::symlink(ours, &stranger).unwrap();
    for (path, args, env, message) in [
        (
            stranger.as_path(),
            &[][..],
            "",
            "plugin \"stranger\" is not built in",
        ),
        (ours, &[], "ADD", "plugin \"cni-plugins\" is not built in"),
        (
            ours,
            &["-x"],
            "",
            "unknown argument \"-x\", only --help, --list and policy are known",
        ),
    ] {
        let expected = format!("cni-plugins: {message}\n");
        assert_eq!(call(path, args, env), (1, "".into(), expected));
    }
    let (code, answer, _) = call(&folder.join("bridge"), &[], "STATUS");
    assert_eq!(code, 1);
    assert!(
        answer.contains("error unmarshalling network config"),
        "{answer}"
    );
}

/// A raw socket that sends `frames` (hexadecimal, whole Ethernet frames) by eth0 inside the pod.
fn send_frames(pod: &Path, frames: &[String]) {
    let target = format!("--net={}", pod.display());
    let script = "import socket, sys\n\
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
        s.bind(('eth0', 0))\n\
        for frame in sys.argv[1:]: s.send(bytes.fromhex(frame))\n";
    let mut args = vec![target.as_str(), "python3", "-c", script];
    args.extend(frames.iter().map(String::as_str));
    run("nsenter", &args);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An ICMPv6 frame to all nodes.
fn icmpv6(mac: &str, source: &str, message: &[u8]) -> String {
    let source: std::net::Ipv6Addr = source.parse().unwrap();
    let target: std::net::Ipv6Addr = "ff02::1".parse().unwrap();
    let length = (message.len() as u16).to_be_bytes();
    let mut pseudo = [source.octets(), target.octets()].concat();
    pseudo.extend([0, 0, length[0], length[1], 0, 0, 0, 58]);
    pseudo.extend(message);
    let sum = checksum(&pseudo);
    let mut message = message.to_vec();
    message[2..4].copy_from_slice(&sum);
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], 58, 255];
    packet.extend(source.octets());
    packet.extend(target.octets());
    packet.extend(message);
    format!("333300000001{}86dd{}", mac.replace(':', ""), hex(&packet))
}

/// A router advertisement for 2001:db8:bad::/64 that makes its sender a default router (RFC 4861 §4.2, §4.6.2).
fn router_advertisement(mac: &str, source: &str) -> String {
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([
        3, 4, 64, 0xc0, 0, 0, 0x70, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0,
    ]);
    message.extend(
        "2001:db8:bad::"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets(),
    );
    icmpv6(mac, source, &message)
}

fn link_local(pod: &Path) -> (String, String) {
    let list = ip_json(pod, &["addr", "show", "eth0"]);
    let info = list[0]["addr_info"].as_array().unwrap();
    let local = info.iter().find(|entry| entry["scope"] == "link").unwrap();
    (
        list[0]["address"].as_str().unwrap().to_owned(),
        local["local"].as_str().unwrap().to_owned(),
    )
}

fn has_python() -> bool {
    let there = Path::new("/usr/bin/python3").exists();
    if !there {
        println!("skipped: needs python3");
    }
    there
}

#[test]
fn routers_inside_containers_are_ignored() {
    if !has_python() {
        return;
    }
    let ptp = json!({"type": "ptp"});
    for (plugin, change) in [("bridge", json!({})), ("ptp", ptp)] {
        // where the host forwards the kernel ignores them anyway: `accept_ra` 2 is the case that counts
        for how in ["1", "2"] {
            let mut host = Host::new();
            let pod = host.pod("a");
            std::fs::write("/proc/sys/net/ipv6/conf/all/accept_ra", how).unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/default/accept_ra", how).unwrap();
            let result = Call::new("a", &pod).ok(plugin, "ADD", &config(&host, change.clone()));
            let (mac, source) = link_local(&pod);
            let frame = router_advertisement(&mac, &source);
            // the same frame is taken by an interface that may take it
            let witness = host.pod("witness");
            let target = witness.to_str().unwrap();
            run(
                "ip",
                &[
                    "link", "add", "w0", "type", "veth", "peer", "name", "eth0", "netns", target,
                ],
            );
            run("ip", &["link", "set", "w0", "up"]);
            ip(&witness, &["link", "set", "eth0", "up"]);
            std::fs::write("/proc/sys/net/ipv6/conf/w0/accept_ra", "2").unwrap();
            let (witness_mac, witness_source) = link_local(&witness);
            for _ in 0..50 {
                send_frames(&pod, std::slice::from_ref(&frame));
                send_frames(
                    &witness,
                    &[router_advertisement(&witness_mac, &witness_source)],
                );
                let taken = run("ip", &["-6", "route", "show", "dev", "w0"]);
                if taken.contains("2001:db8:bad::") && taken.contains("default") {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            let routes = run("ip", &["-6", "route"]);
            assert!(routes.contains("2001:db8:bad::/64 dev w0"), "{routes}");
            for link in result["interfaces"].as_array().unwrap() {
                let name = link["name"].as_str().unwrap();
                if link.get("sandbox").is_none() {
                    assert!(
                        !routes.contains(&format!("2001:db8:bad::/64 dev {name}")),
                        "{routes}"
                    );
                    assert!(
                        !routes.contains(&format!("dev {name} proto ra")),
                        "{routes}"
                    );
                    let file = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
                    assert_eq!(std::fs::read_to_string(file).unwrap().trim(), "0");
                }
            }
        }
    }
}

#[test]
fn spoofed_senders_are_dropped() {
    if !has_python() {
        return;
    }
    let mut host = Host::new();
    let (pod, other) = (host.pod("pod"), host.pod("other"));
    let before = host.snapshot();
    let checked = config(&host, json!({"ipspoofchk": true}));
    let plain = config(&host, json!({}));
    let (call, neighbour) = (Call::new("a", &pod), Call::new("b", &other));
    let result = call.ok("bridge", "ADD", &checked);
    neighbour.ok("bridge", "ADD", &plain);
    serve(&other, "10.9.0.3:80");
    serve(&other, "[fd09::3]:80");
    common::serve_udp(&other, "10.9.0.3:80");
    let asks = || {
        common::inside(&pod, || {
            [
                ask("10.9.0.3:80"),
                ask("[fd09::3]:80"),
                common::ask_udp("10.9.0.3:80"),
            ]
        })
    };
    assert_eq!(asks(), ["10.9.0.2", "fd09::2", "10.9.0.2"]);
    let mut check = checked.clone();
    check["prevResult"] = result;
    call.ok("bridge", "CHECK", &check);

    // more addresses of its own
    ip(&pod, &["addr", "add", "10.9.0.66/24", "dev", "eth0"]);
    ip(
        &pod,
        &["addr", "add", "fd09::66/64", "dev", "eth0", "nodad"],
    );
    let from = |source: &str, target: &str| {
        let bind: std::net::SocketAddr = if source.contains(':') {
            format!("[{source}]:0").parse().unwrap()
        } else {
            format!("{source}:0").parse().unwrap()
        };
        common::inside(&pod, || {
            let socket = std::net::UdpSocket::bind(bind).unwrap();
            socket
                .set_read_timeout(Some(std::time::Duration::from_millis(300)))
                .unwrap();
            let mut buffer = [0; 64];
            let _ = socket.send_to(b"x", target);
            socket.recv(&mut buffer).is_ok()
        })
    };
    common::serve_udp(&other, "[fd09::3]:80");
    assert!(from("10.9.0.2", "10.9.0.3:80"));
    assert!(from("fd09::2", "[fd09::3]:80"));
    assert!(!from("10.9.0.66", "10.9.0.3:80"));
    assert!(!from("fd09::66", "[fd09::3]:80"));

    // claims in ARP and neighbour discovery: the neighbour believes only the true ones
    let (mac, own_link_local) = link_local(&pod);
    let arp = |ip: [u8; 4], sender: &str| {
        let sender = sender.replace(':', "");
        let own = mac.replace(':', "");
        let ip = hex(&ip);
        format!("ffffffffffff{own}08060001080006040002{sender}{ip}ffffffffffff{ip}")
    };
    let advert = |target: &str| {
        let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
        message.extend(target.parse::<std::net::Ipv6Addr>().unwrap().octets());
        message.extend([2, 1]);
        let bytes: Vec<u8> = mac
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        message.extend(bytes);
        icmpv6(&mac, &own_link_local, &message)
    };
    let known = |address: &str| {
        let list = ip_json(&other, &["neigh", "show", address]);
        list[0]["lladdr"].as_str().unwrap_or_default().to_owned()
    };
    for address in ["10.9.0.1", "fd09::1", "10.9.0.2", "fd09::2"] {
        ip(
            &other,
            &[
                "neigh",
                "replace",
                address,
                "lladdr",
                "02:00:00:00:00:99",
                "nud",
                "stale",
                "dev",
                "eth0",
            ],
        );
    }
    let claims = [
        arp([10, 9, 0, 1], &mac),
        arp([10, 9, 0, 2], "02:00:00:00:00:66"),
        advert("fd09::1"),
        advert("fd09::2"),
    ];
    // frames are in order: when the last has arrived the others have, or never will
    let until = |frames: &[String], address: &str| {
        for _ in 0..50 {
            send_frames(&pod, frames);
            if known(address) == mac {
                return;
            }
        }
        panic!("{address} is {}", known(address));
    };
    until(&claims, "fd09::2");
    assert_eq!(known("10.9.0.2"), "02:00:00:00:00:99");
    for address in ["10.9.0.1", "fd09::1"] {
        assert_eq!(known(address), "02:00:00:00:00:99", "{address}");
    }
    until(&[arp([10, 9, 0, 2], &mac)], "10.9.0.2");

    // another link address
    ip(
        &pod,
        &["link", "set", "eth0", "address", "02:00:00:00:00:77"],
    );
    assert_eq!(
        common::inside(&pod, || ask("10.9.0.3:80")),
        "error: TimedOut"
    );
    ip(&pod, &["link", "set", "eth0", "address", &mac]);
    assert_eq!(asks()[0], "10.9.0.2");

    run("nft", &["delete", "table", "bridge", "sampan_spoof"]);
    let error = call.err("bridge", "CHECK", &check);
    assert_eq!(error["code"], 100);
    assert!(
        error["msg"].as_str().unwrap().starts_with("0 of "),
        "{error}"
    );
    call.ok("bridge", "DEL", &checked);
    neighbour.ok("bridge", "DEL", &plain);
    assert_eq!(host.snapshot(), before);
}

#[test]
fn link_address_alone_is_checked() {
    let mut host = Host::new();
    let (pod, other) = (host.pod("pod"), host.pod("other"));
    let checked = config(&host, json!({"macspoofchk": true}));
    let call = Call::new("a", &pod);
    call.ok("bridge", "ADD", &checked);
    Call::new("b", &other).ok("bridge", "ADD", &config(&host, json!({})));
    serve(&other, "10.9.0.3:80");
    ip(&pod, &["addr", "add", "10.9.0.66/24", "dev", "eth0"]);
    assert_eq!(common::inside(&pod, || ask("10.9.0.3:80")), "10.9.0.2");
    ip(
        &pod,
        &["link", "set", "eth0", "address", "02:00:00:00:00:77"],
    );
    assert_eq!(
        common::inside(&pod, || ask("10.9.0.3:80")),
        "error: TimedOut"
    );
    // what is left of an attachment that is gone
    let mut gc = checked.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    Call::new("", Path::new("")).ok("bridge", "GC", &gc);
    assert_eq!(rules(), "");
}

#[test]
fn duplicates_are_detected_where_asked() {
    let mut host = Host::new();
    let (pod, other) = (host.pod("pod"), host.pod("other"));
    let before = host.snapshot();
    let only_v6 = |range: &str| {
        config(
            &host,
            json!({"enabledad": true, "ipam": {"type": "host-local", "dataDir": host.leases().join(range),
                "ranges": [[{"subnet": "fd09::/64", "rangeStart": "fd09::9", "rangeEnd": "fd09::a"}]]}}),
        )
    };
    let (first, second) = (only_v6("one"), only_v6("two"));
    Call::new("a", &pod).ok("bridge", "ADD", &first);
    assert_eq!(
        addresses(&ip_json(&pod, &["addr", "show", "eth0"])),
        ["fd09::9/64"]
    );
    let error = Call::new("b", &other).err("bridge", "ADD", &second);
    // its link-local address, which follows from the other one, may be the first to be found
    let msg = error["msg"].as_str().unwrap();
    assert!(
        msg.ends_with("/64 of eth0 belongs to somebody else"),
        "{error}"
    );
    assert_eq!(ip_json(&other, &["link"]).as_array().unwrap().len(), 1);
    Call::new("a", &pod).ok("bridge", "DEL", &first);
    assert_eq!(host.snapshot()["addresses"], before["addresses"]);
}

/// Whoever is in a namespace can open and lock it: nothing of ours may wait for that.
#[test]
fn a_user_cannot_hold_the_lock() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mut host = Host::new();
    let a = host.pod("a");
    let before = host.snapshot();
    // any user can open it, and has it locked as well as this one
    let theirs = nix::fcntl::Flock::lock(
        std::fs::File::open("/proc/thread-self/ns/net").unwrap(),
        nix::fcntl::FlockArg::LockExclusiveNonblock,
    )
    .unwrap();
    let config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0", "removeBridge": true, "isGateway": true,
        "ipam": {"type": "host-local", "dataDir": host.leases(), "ranges": [[{"subnet": "10.9.0.0/24"}]]}
    });
    let call = Call::new("a", &a);
    call.ok("bridge", "ADD", &config);
    call.ok("bridge", "DEL", &config);
    assert_eq!(host.snapshot(), before);
    drop(theirs);

    let folder = Path::new("/run/cni/sampan");
    let found = std::fs::metadata(folder).unwrap();
    assert_eq!(
        (found.permissions().mode() & 0o777, found.uid()),
        (0o700, 0)
    );
    // nothing is left of a lock that isn't held
    let own = std::fs::metadata("/proc/thread-self/ns/net").unwrap();
    let lock = folder.join(format!("{}-{}.lock", own.dev(), own.ino()));
    assert!(!lock.exists());

    // it is the one that is waited for
    let held = nix::fcntl::Flock::lock(
        std::fs::File::create(&lock).unwrap(),
        nix::fcntl::FlockArg::LockExclusive,
    )
    .unwrap_or_else(|(_, cause)| panic!("{cause}"));
    let waits = call.spawn("bridge", "ADD", &config);
    let blocked = format!("-> FLOCK  ADVISORY  WRITE {} ", waits.id());
    while !std::fs::read_to_string("/proc/locks")
        .unwrap()
        .contains(&blocked)
    {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(host.snapshot(), before);
    drop(held);
    assert!(waits.wait_with_output().unwrap().status.success());
    call.ok("bridge", "DEL", &config);
    assert_eq!(host.snapshot(), before);
}

/// A network of IPv4 has no way around it: no rule for its addresses would see link-local ones of IPv6.
#[test]
fn without_an_ipv6_address_there_is_no_ipv6() {
    for plugin in ["bridge", "ptp"] {
        let mut host = Host::new();
        let (a, b) = (host.pod("a"), host.pod("b"));
        let before = host.snapshot();
        let both = config(&host, json!({"type": plugin}));
        let mut plain = both.clone();
        plain["ipam"]["ranges"] = json!([[{"subnet": "10.9.0.0/24"}]]);
        let setting = |name: &str| format!("cat /proc/sys/net/ipv6/conf/{name}");
        let get = |pod: &Path, name: &str| {
            let netns = format!("--net={}", pod.display());
            run("nsenter", &[&netns, "sh", "-c", &setting(name)])
        };
        let result = Call::new("a", &a).ok(plugin, "ADD", &plain);
        let end = result["interfaces"][0]["name"].as_str().unwrap();
        assert_eq!(run("ip", &["-6", "addr", "show", "dev", end]), "");
        assert_eq!(ip(&a, &["-6", "addr", "show", "dev", "eth0"]), "");
        // one who may change the container's settings speaks to nobody
        let netns = format!("--net={}", a.display());
        let on = "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6";
        run("nsenter", &[&netns, "sh", "-c", on]);
        // the kernel's own comes when it comes
        ip(&a, &["addr", "add", "fe80::9/64", "dev", "eth0", "nodad"]);
        assert_eq!(get(&a, "eth0/accept_ra"), "0\n");
        assert_eq!(get(&a, "eth0/accept_redirects"), "0\n");
        let _open = std::net::TcpListener::bind("[::]:77").unwrap();
        let link = &ip_json(&a, &["link", "show", "eth0"])[0];
        let number = link["ifindex"].as_u64().unwrap();
        let mac = host_json(&["link", "show", end])[0]["address"].clone();
        let mac: Vec<u8> = mac
            .as_str()
            .unwrap()
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        let [m0, m1, m2, m3, m4, m5] = mac[..] else {
            panic!("{mac:?}")
        };
        let local = format!(
            "[fe80::{:02x}{m1:02x}:{m2:02x}ff:fe{m3:02x}:{m4:02x}{m5:02x}%{number}]:77",
            m0 ^ 2
        );
        assert_eq!(common::inside(&a, || ask(&local)), "error: TimedOut");

        // a later one has IPv6, and it works
        Call::new("b", &b).ok(plugin, "ADD", &both);
        assert_eq!(get(&b, "eth0/disable_ipv6"), "0\n");
        assert_eq!(get(&b, "eth0/accept_ra"), "0\n");
        assert_eq!(get(&b, "eth0/accept_redirects"), "0\n");
        let reached = common::inside(&b, || std::net::TcpStream::connect("[fd09::1]:77").is_ok());
        assert!(reached, "{plugin}");
        Call::new("a", &a).ok(plugin, "DEL", &plain);
        Call::new("b", &b).ok(plugin, "DEL", &both);
        assert_eq!(host.snapshot(), before);
    }
}

/// `<bridge>.<vlan>` is the gateway's interface; a name that is none for the kernel is nobody's.
#[test]
fn a_vlan_on_a_bridge_with_a_long_name() {
    let mut host = Host::new();
    let a = host.pod("a");
    let before = host.snapshot();
    let gateway = config(&host, json!({"bridge": "averylongname", "vlan": 100}));
    let call = Call::new("a", &a);
    assert_eq!(
        call.err("bridge", "ADD", &gateway)["msg"],
        "the host's interface in VLAN 100 would be averylongname.100, longer than 15 bytes: the bridge needs a shorter name"
    );
    assert_eq!(host.snapshot(), before);
    call.ok("bridge", "DEL", &gateway);
}

/// GC by a runtime that says who it is removes nothing of others, whose attachments it can't know.
#[test]
fn gc_of_one_runtime() {
    let mut host = Host::new();
    let before = host.snapshot();
    let config = config(&host, json!({"ipam": {}, "isDefaultGateway": false}));
    let ids = ["sampan-1-a", "sampan-1-b", "sampan-2-a"];
    for id in ids {
        let pod = host.pod(id);
        Call::new(id, &pod).ok("bridge", "ADD", &config);
    }
    let ports = || {
        let links = host_json(&["link", "show", "type", "veth"]);
        let alias = |link: &Value| link["ifalias"].as_str().unwrap().to_owned();
        let mut found: Vec<String> = links.as_array().unwrap().iter().map(alias).collect();
        found.sort();
        found
    };
    let gc = |runtime: &str, valid: Value| {
        let mut gc = config.clone();
        gc["args"] = json!({"sampan": {"runtime": runtime}});
        gc["cni.dev/valid-attachments"] = valid;
        Call::new("", Path::new("")).ok("bridge", "GC", &gc);
    };
    gc(
        "sampan-1",
        json!([{"containerID": "sampan-1-a", "ifname": "eth0"}]),
    );
    assert_eq!(ports(), ["net sampan-1-a eth0", "net sampan-2-a eth0"]);
    gc("sampan-1", json!([]));
    assert_eq!(ports(), ["net sampan-2-a eth0"]);
    gc("sampan-2", json!([]));
    assert_eq!(host.snapshot(), before);
}
