//! ADD, CHECK, DEL with the reference plugins, and what plugins are handed.

use std::fs;
use std::path::Path;

use sampan::network::{
    self, Attachment, Candidate, NetworkList, add, add_all, check, del, del_all, netns, offered,
    preference, settle,
};
use serde_json::{Value, json};

use crate::{Host, addresses, attachment, default_routes, host_links, ip, ip_in, list};

#[test]
fn namespaces() {
    let host = Host::new();
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let path = host.path("deep/er/pod");
    netns::create(&path).unwrap();
    assert_eq!(own, fs::read_link("/proc/thread-self/ns/net").unwrap());
    assert!(netns::exists(&path));
    assert!(ip_in(&path, &["link", "show", "lo"]).contains("LOOPBACK,UP"));
    assert_eq!(
        netns::create(&path).unwrap_err().to_string(),
        format!("{}: a namespace is pinned there already", path.display())
    );
    netns::remove(&path).unwrap();
    assert!(!path.exists());
    netns::remove(&path).unwrap();
    // a machine that stopped leaves a plain file
    fs::write(&path, "").unwrap();
    netns::create(&path).unwrap();
    netns::remove(&path).unwrap();
    // what fails leaves nothing
    let beneath_a_file = Path::new("/proc/version/x");
    assert!(netns::create(beneath_a_file).is_err());
}

#[test]
fn several_networks_of_one_pod() {
    let host = Host::new();
    let cache = host.path("cache");
    let attachments = [
        attachment(host.bridge(1, &[]), "eth0"),
        Attachment {
            ips: vec!["10.2.0.77/24".into(), "fd00:2::77/64".into()],
            mac: Some("02:00:00:00:00:77".into()),
            ..attachment(host.bridge(2, &[json!({"type": "tuning"})]), "back")
        },
        attachment(host.bridge(3, &[]), "eth2"),
    ];
    let mut seen = Vec::new();
    for round in 0..2 {
        let pod = host.netns("pod");
        let attached = add_all(&host.cni, &pod, &attachments, &cache).unwrap();
        assert_eq!(attached.len(), 3);
        let back: Vec<_> = attached[1]
            .addresses
            .iter()
            .map(|a| a.to_string())
            .collect();
        assert_eq!(back, ["10.2.0.77/24", "fd00:2::77/64"]);
        let gateways: Vec<_> = attached[1].gateways.iter().map(|a| a.to_string()).collect();
        assert_eq!(gateways, ["10.2.0.1", "fd00:2::1"]);
        let addresses = addresses(&pod);
        assert!(
            addresses.contains(&"back 10.2.0.77/24".to_string()),
            "{addresses:?}"
        );
        assert!(
            addresses.contains(&"back fd00:2::77/64".to_string()),
            "{addresses:?}"
        );
        assert_eq!(addresses.len(), 6);
        assert!(ip_in(&pod, &["link", "show", "back"]).contains("02:00:00:00:00:77"));
        for file in ["00-eth0.json", "01-back.json", "02-eth2.json"] {
            check(&host.cni, &pod, &cache.join(file)).unwrap();
        }
        if round == 0 {
            assert_eq!(host.leases("net2"), ["10.2.0.77", "fd00:2::77"]);
        }
        seen.push(back);
        del_all(&host.cni, Some(&pod), &cache).unwrap();
        assert!(!cache.exists());
        for network in ["net1", "net2", "net3"] {
            assert_eq!(host.leases(network), [""; 0], "{network}");
        }
        assert_eq!(host_links(), [""; 0]);
        del_all(&host.cni, Some(&pod), &cache).unwrap();
        netns::remove(&pod).unwrap();
    }
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn one_default_route_per_family() {
    let mut host = Host::new();
    // the reference plugins add one each
    assert_eq!(one_default(&host), [3, 3]);
    // those built in leave it to the first
    host.cni.plugin_dirs = vec![];
    assert_eq!(one_default(&host), [1, 1]);
}

/// Tries two choices; gives the numbers of default routes that the plugins made.
fn one_default(host: &Host) -> [usize; 2] {
    let candidate = |n: i64, priority: i64| Candidate {
        ifname: format!("eth{n}"),
        chosen: false,
        priority,
        internal: n == 3,
    };
    [([0, 0, 9], "eth1"), ([0, 1, 9], "eth2")].map(|(priorities, chosen)| {
        let attachments: Vec<_> = (1..=3)
            .map(|n| attachment(host.bridge(n, &[]), &format!("eth{n}")))
            .collect();
        let pod = host.netns("pod");
        let cache = host.path("cache");
        let candidates: Vec<_> = (1..)
            .zip(priorities)
            .map(|(n, p)| candidate(n, p))
            .collect();
        let preferred = preference(&candidates);
        let attached = add_all(&host.cni, &pod, &attachments, &cache).unwrap();
        let made = default_routes(&pod, "-4").len();
        let offers: Vec<_> = attachments
            .iter()
            .zip(&attached)
            .map(|(a, attached)| {
                let offers = offered(&pod, &a.ifname, &a.network, attached).unwrap();
                // what the plugin made, or would have made
                assert_eq!(offers.len(), 2, "{}: {offers:?}", a.ifname);
                (a.ifname.clone(), offers)
            })
            .collect();
        for _ in 0..2 {
            settle(&pod, &preferred, &offers).unwrap();
            assert_eq!(default_routes(&pod, "-4"), [chosen]);
            assert_eq!(default_routes(&pod, "-6"), [chosen]);
        }
        // the networks' own routes stay
        assert!(ip_in(&pod, &["route"]).contains("10.3.0.0/24 dev eth3"));
        del_all(&host.cni, Some(&pod), &cache).unwrap();
        netns::remove(&pod).unwrap();
        made
    })
}

#[test]
fn other_reference_plugins() {
    let host = Host::new();
    ip(&["link", "add", "up0", "type", "veth", "peer", "name", "wire"]);
    ip(&["link", "set", "up0", "up"]);
    let fixed = |address: &str, gateway: &str| json!({"type": "static", "addresses": [{"address": address, "gateway": gateway}]});
    let lists = [
        list(
            "mv",
            &[
                json!({"type": "macvlan", "master": "up0", "ipam": fixed("10.8.0.5/24", "10.8.0.1")}),
            ],
        ),
        list(
            "p2p",
            &[json!({"type": "ptp", "ipam": fixed("10.9.0.5/24", "10.9.0.1")})],
        ),
    ];
    let pod = host.netns("pod");
    let attachments: Vec<_> = ["mv0", "p2p0"]
        .iter()
        .zip(lists)
        .map(|(ifname, list)| attachment(list, ifname))
        .collect();
    let attached = add_all(&host.cni, &pod, &attachments, &host.path("cache")).unwrap();
    assert_eq!(attached[0].addresses[0].to_string(), "10.8.0.5/24");
    assert_eq!(attached[1].addresses[0].to_string(), "10.9.0.5/24");
    del_all(&host.cni, Some(&pod), &host.path("cache")).unwrap();
    assert_eq!(addresses(&pod), [""; 0]);
    // the oldest form that the specification still describes
    let old = json!({"cniVersion": "0.2.0", "name": "old", "type": "ptp", "ipam": {
        "type": "host-local", "dataDir": host.path("leases"), "subnet": "10.7.0.0/24"}});
    let old = NetworkList::parse(old.to_string().as_bytes(), "test").unwrap();
    let cache = host.path("old.json");
    let attached = add(&host.cni, &pod, &attachment(old, "eth0"), &cache).unwrap();
    assert_eq!(attached.addresses[0].to_string(), "10.7.0.2/24");
    check(&host.cni, &pod, &cache).unwrap();
    del(&host.cni, Some(&pod), &cache).unwrap();
    assert_eq!(host.leases("old"), [""; 0]);
}

#[test]
fn what_plugins_are_handed() {
    let host = Host::new();
    let pod = host.netns("pod");
    let text = "echo $CNI_COMMAND ${0##*/} $CNI_CONTAINERID $CNI_IFNAME \"$CNI_ARGS\" \"${CNI_NETNS##*/}\" >>$log
cat >>$log; echo >>$log";
    host.script("one", &format!("{text}; echo '{{\"from\":1}}'"));
    host.script("two", &format!("{text}; echo '{{\"from\":2}}'"));
    for (version, del_has_result) in [("0.3.1", false), ("1.0.0", true)] {
        let _ = fs::remove_file(host.path("log"));
        let config = json!({"cniVersion": version, "name": "n", "plugins": [
            {"type": "one", "key": "value"},
            {"type": "two", "capabilities": {"aliases": true}},
        ]});
        let list = NetworkList::parse(config.to_string().as_bytes(), "test").unwrap();
        let attachment = Attachment {
            aliases: vec!["web".into()],
            args: vec![("K".into(), "V".into()), ("L".into(), "W".into())],
            ..attachment(list, "eth0")
        };
        let cache = host.path("c.json");
        add(&host.cni, &pod, &attachment, &cache).unwrap();
        check(&host.cni, &pod, &cache).unwrap();
        del(&host.cni, None, &cache).unwrap();
        let result = |from: u8| json!({"cniVersion": version, "from": from});
        let one = |previous: Option<u8>| {
            let mut config = json!({"type": "one", "key": "value", "cniVersion": version, "name": "n", "args": host.args()});
            if let Some(from) = previous {
                config["prevResult"] = result(from);
            }
            config
        };
        let two = |previous: Option<u8>| {
            let mut config = json!({"type": "two", "cniVersion": version, "name": "n", "args": host.args(),
                "runtimeConfig": {"aliases": ["web"]}});
            if let Some(from) = previous {
                config["prevResult"] = result(from);
            }
            config
        };
        let last = del_has_result.then_some(2);
        let mut expected = vec![
            ("ADD one", "pod", one(None)),
            ("ADD two", "pod", two(Some(1))),
        ];
        if version == "1.0.0" {
            expected.push(("CHECK one", "pod", one(Some(2))));
            expected.push(("CHECK two", "pod", two(Some(2))));
        }
        expected.push(("DEL two", "", two(last)));
        expected.push(("DEL one", "", one(last)));
        let log = host.log();
        let mut lines = log.lines();
        for (head, netns, config) in expected {
            let line = format!("{head} pod eth0 K=V;L=W {netns}");
            assert_eq!(lines.next().map(str::trim_end), Some(line.trim_end()));
            let got: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
            assert_eq!(got, config, "{head} {version}");
        }
        assert_eq!(lines.next(), None);
    }
}

#[test]
fn the_newest_version_that_all_plugins_know() {
    let host = Host::new();
    let pod = host.netns("pod");
    let cache = host.path("c.json");
    let of = |versions: &[&str], further: &str| {
        let mut config = host.bridge(1, &[json!({"type": further})]).config;
        config["cniVersion"] = versions[0].into();
        config["cniVersions"] = json!(versions);
        let list = NetworkList::parse(config.to_string().as_bytes(), "test").unwrap();
        add(&host.cni, &pod, &attachment(list, "eth0"), &cache).map(|attached| {
            del(&host.cni, Some(&pod), &cache).unwrap();
            attached.result["cniVersion"].clone()
        })
    };
    // Debian's plugins are of a time before 1.1.0
    let all = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    assert_eq!(of(&all, "tuning").unwrap(), "1.0.0");
    let version = |text: &str| format!("[ $CNI_COMMAND = VERSION ] && {{ {text}; }}; cat >$log");
    let known = |versions: &str| {
        version(&format!(
            "echo '{{\"supportedVersions\":{versions}}}'; exit"
        ))
    };
    host.script(
        "old",
        &format!("{}; echo '{{}}'", known(r#"["0.3.1","0.4.0"]"#)),
    );
    assert_eq!(of(&all, "old").unwrap(), "0.4.0");
    let handed: Value = serde_json::from_str(&host.log()).unwrap();
    assert_eq!(handed["cniVersion"], "0.4.0");
    let _ = fs::remove_file(host.path("log"));
    let table = [
        (
            known(r#"["0.1.0"]"#),
            "test: cniVersions: none of 1.1.0, 1.0.0, 0.4.0, 0.3.1 is known to all plugins: `bridge` knows 0.1.0, 0.2.0, \
             0.3.0, 0.3.1, 0.4.0, 1.0.0; `odd` knows 0.1.0",
        ),
        (
            known(r#""1.0.0""#),
            "CNI plugin `odd` of network `net1` (test), VERSION: answered with success but printed no list `supportedVersions`",
        ),
        (
            version("echo no >&2; exit 1"),
            "CNI plugin `odd` of network `net1` (test), VERSION: failed with exit status 1: no",
        ),
    ];
    for (text, expected) in table {
        host.script("odd", &text);
        assert_eq!(of(&all, "odd").unwrap_err().to_string(), expected);
        assert_eq!(host.log(), "", "nothing ran");
    }
    // no choice: the plugin has the word
    let error = of(&["1.1.0"], "tuning").unwrap_err().to_string();
    assert!(
        error.contains("ADD: incompatible CNI versions (code 1)"),
        "{error}"
    );
}

#[test]
fn status_and_garbage_collection() {
    let host = Host::new();
    host.script(
        "one",
        "echo $CNI_COMMAND \"$CNI_CONTAINERID$CNI_NETNS\" >>$log; cat >>$log; echo >>$log",
    );
    host.script("two", "echo '{\"code\":50,\"msg\":\"no daemon\"}'; exit 1");
    let of = |version: &str, kind: &str| {
        let config = json!({"cniVersion": version, "name": "n", "plugins": [{"type": kind}]});
        NetworkList::parse(config.to_string().as_bytes(), "test").unwrap()
    };
    let valid = [("pod".to_string(), "eth0".to_string())].into();
    // nobody is asked before 1.1.0
    network::status(&host.cni, &of("1.0.0", "two")).unwrap();
    network::gc::gc(&host.cni, &of("1.0.0", "two"), &valid).unwrap();
    network::status(&host.cni, &of("1.1.0", "one")).unwrap();
    network::gc::gc(&host.cni, &of("1.1.0", "one"), &valid).unwrap();
    let log = host.log();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!((lines[0].trim(), lines[2].trim()), ("STATUS", "GC"));
    let got: Value = serde_json::from_str(lines[3]).unwrap();
    let expected = json!({"cniVersion": "1.1.0", "name": "n", "type": "one", "args": host.args(),
        "cni.dev/valid-attachments": [{"containerID": "pod", "ifname": "eth0"}]});
    assert_eq!(got, expected);
    let error = network::status(&host.cni, &of("1.1.0", "two")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CNI plugin `two` of network `n` (test), STATUS: no daemon (code 50)"
    );
}
