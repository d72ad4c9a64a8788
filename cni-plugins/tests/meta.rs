//! `tuning`, `sbr` and `vrf` on interfaces that are there, side by side with the reference plugins.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Call, Host, REFERENCE, has_kind, inside, ip, ip_json, run};
use serde_json::{Value, json};

const MAC: &str = "02:00:00:00:00:05";

/// A pod with an interface `eth0` that is up, with these addresses, and its routes.
fn pod(host: &mut Host, name: &str, addresses: &[&str], routes: &[&str]) -> PathBuf {
    let pod = host.pod(name);
    // addresses of the link are settled at once
    inside(&pod, || {
        fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap()
    });
    add_interface(&pod, name, "eth0", addresses);
    for route in routes {
        let words: Vec<&str> = route.split(' ').collect();
        ip(&pod, &[&["route", "add"], &words[..]].concat());
    }
    pod
}

fn add_interface(pod: &Path, host: &str, ifname: &str, addresses: &[&str]) {
    let netns = pod.to_str().unwrap();
    let peer = [
        "type", "veth", "peer", "name", ifname, "address", MAC, "netns", netns,
    ];
    run("ip", &[&["link", "add", host], &peer[..]].concat());
    run("ip", &["link", "set", host, "up"]);
    for address in addresses {
        let mut words = vec!["addr", "add", address, "dev", ifname];
        if address.contains(':') {
            words.push("nodad");
        }
        ip(pod, &words);
    }
    ip(pod, &["link", "set", ifname, "up"]);
    // both ends have a carrier, and addresses of the link are settled
    for _ in 0..100 {
        let state = ip_json(pod, &["addr", "show", "dev", ifname]);
        if state[0]["operstate"] == "UP" && !state.to_string().contains("tentative") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("{ifname} doesn't come up");
}

fn config(version: &str, kind: &str, pod: &Path, ips: &[(&str, &str)], mut more: Value) -> Value {
    more["cniVersion"] = json!(version);
    more["name"] = json!("net");
    more["type"] = json!(kind);
    let older = ["0.3.1", "0.4.0"].contains(&version);
    let ips: Vec<Value> = ips
        .iter()
        .map(|(address, gateway)| {
            let mut ip = json!({"interface": 0, "address": address});
            if !gateway.is_empty() {
                ip["gateway"] = json!(gateway);
            }
            if older {
                ip["version"] = json!(if address.contains(':') { "6" } else { "4" });
            }
            ip
        })
        .collect();
    more["prevResult"] = json!({
        "cniVersion": version, "ips": ips, "dns": {},
        "interfaces": [{"name": "eth0", "mac": MAC, "sandbox": pod}]
    });
    more
}

/// What differs between any two pods is left out.
fn without_ids(mut value: Value) -> Value {
    for entry in value.as_array_mut().unwrap() {
        let entry = entry.as_object_mut().unwrap();
        for key in ["ifindex", "link_index", "link_netnsid"] {
            entry.remove(key);
        }
    }
    value
}

fn link(pod: &Path) -> Value {
    without_ids(ip_json(pod, &["-d", "link", "show", "dev", "eth0"]))
}

/// Rules and routes of both families.
fn routing(pod: &Path) -> Value {
    let routes = |family: &str| {
        let mut list = ip_json(pod, &[family, "route", "show", "table", "all"]);
        for route in list.as_array_mut().unwrap() {
            route.as_object_mut().unwrap().remove("expires");
        }
        list
    };
    json!({
        "rules": [ip_json(pod, &["-4", "rule"]), ip_json(pod, &["-6", "rule"])],
        "routes": [routes("-4"), routes("-6")]
    })
}

#[test]
fn tuning_is_the_reference_plugins() {
    let mut host = Host::new();
    let reference = format!("{REFERENCE}/tuning");
    let cases = [
        json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "500"}}),
        json!({"mac": "02:00:00:00:00:99", "mtu": 1400}),
        json!({"promisc": true, "allmulti": true}),
        json!({"mac": "02:00:00:00:00:98", "runtimeConfig": {"mac": "02:00:00:00:00:97"}}),
        json!({"args": {"cni": {"mtu": 1300, "allmulti": true}}}),
        json!({"allmulti": false}),
    ];
    for (number, case) in cases.iter().enumerate() {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let mut seen = Vec::new();
            for (program, letter) in [("tuning", "a"), (&*reference, "b")] {
                let name = format!("{letter}{number}{}", version.replace('.', ""));
                let pod = pod(&mut host, &name, &["10.9.0.5/24"], &[]);
                let before = link(&pod);
                let data = host.temp.path().join(format!("data-{letter}"));
                let mut more = case.clone();
                more["dataDir"] = json!(data);
                let mut config = config(version, "tuning", &pod, &[("10.9.0.5/24", "")], more);
                let call = Call::new(&name, &pod);
                let mut result = call.ok(program, "ADD", &config);
                let during = link(&pod);
                result["interfaces"][0]["sandbox"].take();
                let settings = [
                    inside(&pod, || {
                        fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap()
                    }),
                    inside(&pod, || {
                        fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/arp_filter").unwrap()
                    }),
                ];
                // of this version, CHECK knows neither placeholders nor arguments
                let known = program == "tuning" || number == 1 || number == 2;
                if version != "0.3.1" && known {
                    config["prevResult"] = result.clone();
                    config["prevResult"]["interfaces"][0]["sandbox"] = json!(pod);
                    call.ok(program, "CHECK", &config);
                }
                call.ok(program, "DEL", &config);
                assert_eq!(link(&pod), before, "{program} {case}");
                let left = fs::read_dir(&data).into_iter().flatten().count();
                assert_eq!(left, 0, "{program} {case}");
                seen.push((result, during, settings));
            }
            assert_eq!(seen[0], seen[1], "{version} {case}");
        }
    }
}

#[test]
fn tuning_finds_differences_and_takes_back() {
    let mut host = Host::new();
    let pod = pod(&mut host, "p", &["10.9.0.5/24"], &[]);
    let data = host.temp.path().join("data");
    let more = json!({
        "dataDir": data, "mac": "02:00:00:00:00:99", "mtu": 1400, "txQLen": 77, "promisc": true, "allmulti": true,
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.ip_local_port_range": "2000 3000"}
    });
    let before = link(&pod);
    let mut config = config("1.1.0", "tuning", &pod, &[("10.9.0.5/24", "")], more);
    config["prevResult"]["interfaces"][0]["mtu"] = json!(1500);
    let call = Call::new("c", &pod);
    call.ok("tuning", "STATUS", &config);
    let result = call.ok("tuning", "ADD", &config);
    assert_eq!(
        result["interfaces"][0],
        json!({"name": "eth0", "mac": "02:00:00:00:00:99", "mtu": 1400, "sandbox": pod})
    );
    call.ok("tuning", "CHECK", &config);
    assert_eq!(link(&pod)[0]["txqlen"], 77);
    let cases: [(&[&str], &[&str], &str); 5] = [
        (
            &["mtu", "1300"],
            &["mtu", "1400"],
            "tuning: mtu of eth0 is 1300 instead of 1400",
        ),
        (
            &["address", "02:00:00:00:00:11"],
            &["address", "02:00:00:00:00:99"],
            "tuning: mac of eth0 is 02:00:00:00:00:11 instead of 02:00:00:00:00:99",
        ),
        (
            &["promisc", "off"],
            &["promisc", "on"],
            "tuning: promisc of eth0 is false instead of true",
        ),
        (
            &["allmulticast", "off"],
            &["allmulticast", "on"],
            "tuning: allmulti of eth0 is false instead of true",
        ),
        (
            &["txqlen", "9"],
            &["txqlen", "77"],
            "tuning: txQLen of eth0 is 9 instead of 77",
        ),
    ];
    for (change, back, msg) in cases {
        ip(&pod, &[&["link", "set", "eth0"], change].concat());
        assert_eq!(call.err("tuning", "CHECK", &config)["msg"], msg);
        ip(&pod, &[&["link", "set", "eth0"], back].concat());
    }
    inside(&pod, || {
        fs::write("/proc/sys/net/ipv4/conf/eth0/arp_filter", "0").unwrap()
    });
    assert_eq!(
        call.err("tuning", "CHECK", &config)["msg"],
        "tuning: net/ipv4/conf/eth0/arp_filter is \"0\" instead of \"1\""
    );
    call.ok("tuning", "DEL", &config);
    assert_eq!(link(&pod), before);
    call.ok("tuning", "DEL", &config);

    // half of it can't be had: nothing of it stays
    let mut bad = config.clone();
    bad["sysctl"] = json!({"net.core.somaxconn": "500", "net.ipv4.ip_forward": "x"});
    let somaxconn = || {
        inside(&pod, || {
            fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap()
        })
    };
    let old = somaxconn();
    assert_eq!(
        call.err("tuning", "ADD", &bad)["msg"],
        "cannot write x to /proc/sys/net/ipv4/ip_forward"
    );
    bad["sysctl"] = json!({"net.core.somaxconn": "500"});
    bad["mtu"] = json!(70000);
    assert_eq!(
        call.err("tuning", "ADD", &bad)["msg"],
        "cannot set the MTU of eth0"
    );
    assert_eq!((link(&pod), somaxconn()), (before, old));
    bad["sysctl"] = json!({"net/../kernel/hostname": "x"});
    assert_eq!(call.err("tuning", "ADD", &bad)["code"], 7);
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0);

    // what a killed pod left goes with GC; the reference plugin's files have no owner and stay
    call.ok("tuning", "ADD", &config);
    fs::write(data.join("theirs_eth0.json"), r#"{"mtu":1500}"#).unwrap();
    for (valid, left) in [
        (json!([{"containerID": "c", "ifname": "eth0"}]), 2),
        (json!([]), 1),
    ] {
        config["cni.dev/valid-attachments"] = valid;
        call.ok("tuning", "GC", &config);
        assert_eq!(fs::read_dir(&data).unwrap().count(), left);
    }
}

const DUAL: [&str; 3] = ["10.9.0.5/24", "10.8.0.5/24", "fd09::5/64"];
const DUAL_IPS: [(&str, &str); 3] = [
    ("10.9.0.5/24", "10.9.0.1"),
    ("10.8.0.5/24", "10.8.0.1"),
    ("fd09::5/64", "fd09::1"),
];
const DUAL_ROUTES: [&str; 3] = [
    "default via 10.9.0.1",
    "192.168.0.0/16 via 10.8.0.9",
    "default via fd09::1",
];

/// The reference plugin copies routes of one family into tables of the other, where nobody looks for them, and takes the
/// link's own addresses of IPv6 from the main table, without which neighbours aren't found.
fn as_ours(mut state: Value) -> Value {
    for list in state["routes"].as_array_mut().unwrap() {
        list.as_array_mut().unwrap().retain(|route| {
            let of_link = route["dst"].as_str().unwrap().starts_with("fe80:");
            !of_link && route["table"] != "local"
        });
    }
    state
}

#[test]
fn sbr_is_the_reference_plugins() {
    let mut host = Host::new();
    let reference = format!("{REFERENCE}/sbr");
    let cases = [&DUAL_IPS[..1], &DUAL_IPS[..2], &DUAL_IPS[1..]];
    for (number, ips) in cases.into_iter().enumerate() {
        let mut seen = Vec::new();
        for (program, letter) in [("sbr", "a"), (&*reference, "b")] {
            let name = format!("{letter}{number}");
            let pod = pod(&mut host, &name, &DUAL, &DUAL_ROUTES);
            let config = config("1.0.0", "sbr", &pod, ips, json!({}));
            let call = Call::new(&name, &pod);
            let mut result = call.ok(program, "ADD", &config);
            result["interfaces"][0]["sandbox"].take();
            let mut during = as_ours(routing(&pod));
            for (family, other) in [(0, 1), (1, 0)] {
                let rules = during["rules"][other].as_array().unwrap();
                let foreign: Vec<Value> = rules.iter().map(|rule| rule["table"].clone()).collect();
                let routes = during["routes"][family].as_array_mut().unwrap();
                routes.retain(|route| !foreign.contains(&route["table"]));
            }
            call.ok(program, "CHECK", &config);
            call.ok(program, "DEL", &config);
            let rules = routing(&pod)["rules"].clone();
            seen.push((result, during, rules));
        }
        assert_eq!(seen[0], seen[1], "{ips:?}");
    }
}

#[test]
fn sbr_sends_by_the_source() {
    let mut host = Host::new();
    let pod = pod(
        &mut host,
        "h0",
        &["10.9.0.5/24", "fd09::5/64"],
        &["default via 10.9.0.1"],
    );
    add_interface(&pod, "h1", "eth1", &["10.8.0.5/24"]);
    ip(&pod, &["rule", "add", "from", "10.1.1.1", "table", "100"]);
    ip(
        &pod,
        &["route", "add", "10.2.2.2", "dev", "lo", "table", "101"],
    );
    let before = routing(&pod)["rules"].clone();
    let ips = [("10.9.0.5/24", "10.9.0.1"), ("fd09::5/64", "fd09::1")];
    let mut first = config("1.1.0", "sbr", &pod, &ips, json!({}));
    let mut second = config(
        "0.3.1",
        "sbr",
        &pod,
        &[("10.8.0.5/24", "")],
        json!({"gateways": ["10.8.0.9"], "addSourceHints": true}),
    );
    second["prevResult"]["interfaces"][0]["name"] = json!("eth1");
    let a = Call::new("c", &pod);
    let b = Call {
        ifname: "eth1".into(),
        ..a.clone()
    };
    a.ok("sbr", "STATUS", &first);
    a.ok("sbr", "ADD", &first);
    b.ok("sbr", "ADD", &second);
    let path = |source: &str, to: &str| {
        let route = ip_json(&pod, &["route", "get", to, "from", source]);
        format!(
            "{} {}",
            route[0]["dev"].as_str().unwrap(),
            route[0]["gateway"].as_str().unwrap_or("-")
        )
    };
    // both interfaces have a default route, each for its own address; tables in use were left alone
    assert_eq!(path("10.9.0.5", "1.1.1.1"), "eth0 10.9.0.1");
    assert_eq!(path("10.8.0.5", "1.1.1.1"), "eth1 10.8.0.9");
    assert_eq!(path("fd09::5", "2001:db8::1"), "eth0 fd09::1");
    assert_eq!(path("10.9.0.5", "10.9.0.77"), "eth0 -");
    let tables: Vec<String> = ip_json(&pod, &["-4", "rule"])
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| rule["src"] != "all" && rule["src"] != "10.1.1.1")
        .map(|rule| rule["table"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(tables, ["104", "102"]);
    let main = ip_json(&pod, &["route", "show", "dev", "eth1"]);
    assert_eq!(main[0]["prefsrc"], "10.8.0.5", "{main}");
    a.ok("sbr", "CHECK", &first);
    ip(&pod, &["route", "del", "default", "table", "102"]);
    assert_eq!(
        a.err("sbr", "CHECK", &first)["msg"],
        "sbr: table 102 for packets from 10.9.0.5 has no default route via 10.9.0.1"
    );
    ip(&pod, &["rule", "del", "from", "10.9.0.5"]);
    assert_eq!(
        a.err("sbr", "CHECK", &first)["msg"],
        "sbr: no rule for packets from 10.9.0.5"
    );
    a.ok("sbr", "DEL", &first);
    // the interface went first: its rules go all the same
    ip(&pod, &["link", "del", "eth1"]);
    b.ok("sbr", "DEL", &second);
    assert_eq!(routing(&pod)["rules"], before);
    b.ok("sbr", "DEL", &second);
    // a table that somebody else fills: only the rule is ours
    first["table"] = json!(101);
    let routes = routing(&pod)["routes"].clone();
    a.ok("sbr", "ADD", &first);
    a.ok("sbr", "CHECK", &first);
    assert_eq!(routing(&pod)["routes"], routes);
    a.ok("sbr", "DEL", &first);
    assert_eq!(routing(&pod)["rules"], before);
    first["prevResult"]["ips"] = json!([]);
    assert_eq!(
        a.err("sbr", "ADD", &first)["msg"],
        "sbr: prevResult has no address of interface eth0"
    );
    first["gateways"] = json!(["10.0.0.1", "10.0.0.2"]);
    assert_eq!(a.err("sbr", "STATUS", &first)["code"], 50);
}

#[test]
fn vrf_without_a_driver() {
    let mut host = Host::new();
    let pod = pod(&mut host, "p", &["10.9.0.5/24"], &[]);
    let call = Call::new("c", &pod);
    let wrong = config("1.1.0", "vrf", &pod, &[], json!({"vrfname": "a/b"}));
    assert_eq!(call.err("vrf", "ADD", &wrong)["code"], 7);
    let taken = config("1.1.0", "vrf", &pod, &[], json!({"vrfname": "lo"}));
    assert_eq!(
        call.err("vrf", "ADD", &taken)["msg"],
        "interface lo exists and is no VRF"
    );
    let config = config("1.1.0", "vrf", &pod, &[], json!({"vrfname": "red"}));
    if !has_kind("vrf") {
        for command in ["ADD", "STATUS"] {
            let error = call.err("vrf", command, &config);
            assert_eq!(error["msg"], "kernel has no vrf (CONFIG_NET_VRF)");
        }
        call.ok("vrf", "DEL", &config);
    }
}

#[test]
fn vrf_is_the_reference_plugins() {
    let mut host = Host::new();
    if !has_kind("vrf") {
        return;
    }
    let reference = format!("{REFERENCE}/vrf");
    let mut programs = vec![("vrf", "a")];
    if Path::new(&reference).exists() {
        programs.push((&*reference, "b"));
    } else {
        println!("skipped: comparison with {reference}, which isn't there");
    }
    for (number, more) in [
        json!({"vrfname": "red"}),
        json!({"vrfname": "red", "table": 55}),
    ]
    .into_iter()
    .enumerate()
    {
        let mut seen = Vec::new();
        for (program, letter) in &programs {
            let name = format!("{letter}{number}");
            let pod = pod(&mut host, &name, &DUAL, &DUAL_ROUTES);
            let conf = config("1.0.0", "vrf", &pod, &DUAL_IPS, more.clone());
            let call = Call::new(&name, &pod);
            let mut result = call.ok(program, "ADD", &conf);
            result["interfaces"][0]["sandbox"].take();
            let during = as_ours(routing(&pod));
            let addresses = common::addresses(&ip_json(&pod, &["addr", "show", "dev", "eth0"]));
            call.ok(program, "CHECK", &conf);
            // a second interface in the same one, with another idea of its table
            add_interface(&pod, &format!("{name}x"), "eth1", &["10.7.0.5/24"]);
            let other = Call {
                ifname: "eth1".into(),
                ..call.clone()
            };
            let mut wrong = conf.clone();
            wrong["table"] = json!(66);
            other.err(program, "ADD", &wrong);
            other.ok(program, "ADD", &conf);
            call.ok(program, "DEL", &conf);
            let names = ip(&pod, &["-o", "link"]);
            assert!(names.contains("red"), "{names}");
            other.ok(program, "DEL", &conf);
            let names = ip(&pod, &["-o", "link"]);
            assert!(!names.contains("red"), "{names}");
            call.ok("vrf", "DEL", &conf);
            seen.push((result, during, addresses));
        }
        // before release 1.2 the reference plugin loses the routes over routers, which the kernel takes away
        let mut over_routers = Vec::new();
        for (_, during, _) in &mut seen {
            let lists = during["routes"].as_array_mut().unwrap().iter_mut();
            let all = lists.flat_map(|list| {
                let far = |route: &mut Value| route.get("gateway").is_some();
                let list = list.as_array_mut().unwrap();
                list.extract_if(.., far).collect::<Vec<_>>()
            });
            over_routers.push(
                all.map(|route| route["gateway"].clone())
                    .collect::<Vec<_>>(),
            );
        }
        assert_eq!(over_routers[0], ["10.9.0.1", "10.8.0.9", "fd09::1"]);
        if let [ours, theirs] = &seen[..] {
            assert_eq!(ours, theirs, "{more}");
        }
        assert_eq!(seen[0].2, ["10.9.0.5/24", "10.8.0.5/24", "fd09::5/64"]);
    }
    // one that was there before stays
    let pod = pod(&mut host, "c", &["10.9.0.5/24"], &[]);
    ip(&pod, &["link", "add", "red", "type", "vrf", "table", "9"]);
    ip(&pod, &["link", "set", "red", "up"]);
    let config = config(
        "1.1.0",
        "vrf",
        &pod,
        &[("10.9.0.5/24", "")],
        json!({"vrfname": "red"}),
    );
    let call = Call::new("c", &pod);
    call.ok("vrf", "STATUS", &config);
    call.ok("vrf", "ADD", &config);
    call.ok("vrf", "CHECK", &config);
    ip(&pod, &["link", "set", "eth0", "nomaster"]);
    assert_eq!(
        call.err("vrf", "CHECK", &config)["msg"],
        "vrf: eth0 is not in red"
    );
    call.ok("vrf", "DEL", &config);
    ip(&pod, &["link", "show", "dev", "red"]);
}
