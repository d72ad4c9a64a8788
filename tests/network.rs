//! Networks of a pod with real plugins in network and mount namespaces of the test's own. Runs as root; needs Debian's
//! `containernetworking-plugins` in `/usr/lib/cni` and `ip` (iproute2).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sampan::compose::project::Network;
use sampan::network::{
    self, Attachment, Candidate, Cni, NetworkList, add, add_all, check, del, del_all, generate,
    keep_one_default, netns, offer_one_default, preference, subnets,
};
use serde_json::{Value, json};

/// A host of the test's own: namespaces of the calling thread, a folder, an empty plugin folder before Debian's.
struct Host {
    dir: tempfile::TempDir,
    cni: Cni,
}

impl Host {
    fn new() -> Host {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let plugins = dir.path().join("plugins");
        fs::create_dir(&plugins).unwrap();
        let cni = Cni {
            conf_dirs: vec![dir.path().join("net.d")],
            plugin_dirs: vec![plugins, "/usr/lib/cni".into()],
        };
        ip(&["link", "set", "lo", "up"]);
        // ip(8) looks at /sys/class/net for some of what it prints
        mount(
            Some("sysfs"),
            "/sys",
            Some("sysfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        Host { dir, cni }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A pod's namespace.
    fn netns(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        netns::create(&path).unwrap();
        path
    }

    /// A plugin that is a shell script; `$log` is a file for its notes.
    fn script(&self, name: &str, text: &str) {
        let path = self.path("plugins").join(name);
        let log = self.path("log");
        fs::write(&path, format!("#!/bin/sh\nlog={}\n{text}\n", log.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A bridge network with addresses of 10.<n>.0.0/24 and fd00:<n>::/64, and further plugins.
    fn bridge(&self, n: u8, further: &[Value]) -> NetworkList {
        let mut plugins = vec![json!({
            "type": "bridge", "bridge": format!("br{n}"), "isGateway": true,
            "capabilities": {"ips": true, "mac": true},
            "ipam": {
                "type": "host-local", "dataDir": self.path("leases"),
                "ranges": [[{"subnet": format!("10.{n}.0.0/24")}], [{"subnet": format!("fd00:{n}::/64")}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        })];
        plugins.extend_from_slice(further);
        list(&format!("net{n}"), &plugins)
    }

    fn leases(&self, network: &str) -> Vec<String> {
        let dir = self.path("leases").join(network);
        let mut names: Vec<_> = fs::read_dir(dir)
            .map(|entries| {
                entries
                    .map(|e| e.unwrap().file_name().into_string().unwrap())
                    .filter(|n| n != "lock" && !n.starts_with("last_reserved_ip"))
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        names
    }
}

fn list(name: &str, plugins: &[Value]) -> NetworkList {
    let config = json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins});
    NetworkList::parse(config.to_string().as_bytes(), "test").unwrap()
}

fn attachment(network: NetworkList, ifname: &str) -> Attachment {
    Attachment {
        network,
        container_id: "pod".into(),
        ifname: ifname.into(),
        ips: vec![],
        mac: None,
        ports: vec![],
        aliases: vec![],
        args: vec![],
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip(args: &[&str]) -> String {
    run("ip", args)
}

/// ip(8) in a pod's namespace.
fn ip_in(netns: &Path, args: &[&str]) -> String {
    let net = format!("--net={}", netns.display());
    let mut all = vec![net.as_str(), "ip"];
    all.extend_from_slice(args);
    run("nsenter", &all)
}

/// Interfaces with their global addresses.
fn addresses(netns: &Path) -> Vec<String> {
    let answer = ip_in(netns, &["-j", "addr", "show", "scope", "global"]);
    let links: Vec<Value> = serde_json::from_str(&answer).unwrap();
    let mut found = Vec::new();
    for link in &links {
        // what the filter leaves out are empty objects
        for info in link["addr_info"].as_array().into_iter().flatten() {
            if let (Some(name), Some(local)) = (link["ifname"].as_str(), info["local"].as_str()) {
                found.push(format!("{name} {local}/{}", info["prefixlen"]));
            }
        }
    }
    found
}

fn default_routes(netns: &Path, family: &str) -> Vec<String> {
    let answer = ip_in(netns, &[family, "-j", "route", "show", "default"]);
    let routes: Vec<Value> = serde_json::from_str(answer.trim()).unwrap_or_default();
    routes
        .iter()
        .map(|r| r["dev"].as_str().unwrap().to_string())
        .collect()
}

/// Names of the host's interfaces without loopback and bridges.
fn host_links() -> Vec<String> {
    let links: Vec<Value> = serde_json::from_str(&ip(&["-j", "link"])).unwrap();
    let names = links.iter().map(|l| l["ifname"].as_str().unwrap());
    names
        .filter(|n| *n != "lo" && !n.starts_with("br"))
        .map(str::to_string)
        .collect()
}

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
    let host = Host::new();
    let attachments: Vec<_> = (1..=3)
        .map(|n| attachment(host.bridge(n, &[]), &format!("eth{n}")))
        .collect();
    let candidate = |n: i64, priority: i64| Candidate {
        ifname: format!("eth{n}"),
        priority,
        internal: n == 3,
    };
    for (priorities, chosen) in [([0, 0, 9], "eth1"), ([0, 1, 9], "eth2")] {
        let pod = host.netns("pod");
        let cache = host.path("cache");
        add_all(&host.cni, &pod, &attachments, &cache).unwrap();
        assert!(default_routes(&pod, "-4").len() > 1);
        let candidates: Vec<_> = (1..)
            .zip(priorities)
            .map(|(n, p)| candidate(n, p))
            .collect();
        let preferred = preference(&candidates);
        for _ in 0..2 {
            keep_one_default(&pod, &preferred).unwrap();
            assert_eq!(default_routes(&pod, "-4"), [chosen]);
            assert_eq!(default_routes(&pod, "-6"), [chosen]);
        }
        // the networks' own routes stay
        assert!(ip_in(&pod, &["route"]).contains("10.3.0.0/24 dev eth3"));
        del_all(&host.cni, Some(&pod), &cache).unwrap();
        netns::remove(&pod).unwrap();
    }
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
fn failing_plugins_are_undone_and_reported() {
    let host = Host::new();
    let pod = host.netns("pod");
    let fail = |text: &str| {
        format!(
            "cat >/dev/null; echo $CNI_COMMAND >>$log; [ $CNI_COMMAND = DEL ] && exit 0\n{text}"
        )
    };
    let table = [
        (
            fail("exit 4"),
            "failed with exit status 4 and printed nothing",
        ),
        (fail("true"), "answered with success but printed no result"),
        (
            fail("echo '[1]'"),
            "answered with success but printed no result",
        ),
        (
            fail("echo oh no"),
            "answered with success but printed no JSON (expected value at line 1 column 1): `oh no`",
        ),
        (
            fail("echo '{\"ips\": [{}]}'"),
            "answered with success but its result can't be used: ips[0].address: missing",
        ),
        (
            fail("echo broken pipe >&2; exit 1"),
            "failed with exit status 1: broken pipe",
        ),
        (
            fail("head -c 10000000 /dev/zero"),
            "killed: printed more than 1048576 bytes",
        ),
        (
            fail(
                r#"echo '{"cniVersion":"1.0.0","code":101,"msg":"no","details":"not today"}'; exit 1"#,
            ),
            "no (code 101): not today",
        ),
    ];
    for (text, expected) in table {
        host.script("bad", &text);
        let _ = fs::remove_file(host.path("log"));
        let attachments = [
            attachment(host.bridge(1, &[]), "eth0"),
            attachment(host.bridge(2, &[json!({"type": "bad"})]), "eth1"),
        ];
        let error = add_all(&host.cni, &pod, &attachments, &host.path("cache")).unwrap_err();
        let prefix = "CNI plugin `bad` of network `net2` (test), ADD: ";
        assert_eq!(error.to_string(), format!("{prefix}{expected}"));
        assert_eq!(host.log(), "ADD\nDEL\n");
        assert_eq!(addresses(&pod), [""; 0]);
        assert_eq!(host.leases("net1"), [""; 0]);
        assert_eq!(host.leases("net2"), [""; 0]);
        assert!(!host.path("cache").exists());
    }
}

#[test]
fn del_goes_on_over_errors_and_keeps_what_is_not_done() {
    let host = Host::new();
    let pod = host.netns("pod");
    let text = |del: &str| {
        format!("echo $CNI_COMMAND $0 >>$log; [ $CNI_COMMAND = DEL ] && {del}\necho '{{}}'")
    };
    host.script("one", &text("exit 1"));
    host.script("two", &text("exit 2"));
    let chain = list("n", &[json!({"type": "one"}), json!({"type": "two"})]);
    let cache = host.path("cache");
    let bridge = attachment(host.bridge(1, &[]), "eth0");
    add_all(
        &host.cni,
        &pod,
        &[bridge, attachment(chain, "eth1")],
        &cache,
    )
    .unwrap();
    let errors = del_all(&host.cni, None, &cache).unwrap_err();
    assert_eq!(
        errors.iter().map(|e| e.to_string()).collect::<Vec<_>>(),
        [
            "CNI plugin `two` of network `n` (test), DEL: failed with exit status 2 and printed nothing; \
             CNI plugin `one` of network `n` (test), DEL: failed with exit status 1 and printed nothing"
        ]
    );
    assert_eq!(host.leases("net1"), [""; 0], "the other network is done");
    assert!(!cache.join("00-eth0.json").exists());
    assert!(cache.join("01-eth1.json").exists());
    host.script("one", "true");
    host.script("two", "true");
    del_all(&host.cni, None, &cache).unwrap();
    assert!(!cache.exists());
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
            let mut config =
                json!({"type": "one", "key": "value", "cniVersion": version, "name": "n"});
            if let Some(from) = previous {
                config["prevResult"] = result(from);
            }
            config
        };
        let two = |previous: Option<u8>| {
            let mut config = json!({"type": "two", "cniVersion": version, "name": "n",
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

/// A network of a compose file, internal and with IPv6 unless `more` says otherwise.
fn network(key: &str, more: Value) -> Network {
    let mut all = json!({
        "key": key, "origin": {"file": "compose.yaml", "line": 1}, "name": format!("app_{key}"),
        "external": false, "driver": "bridge", "internal": true, "enable_ipv6": true,
        "driver_opts": {}, "ipam": [], "labels": {}, "attachment": {"aliases": []},
    });
    for (key, value) in more.as_object().unwrap() {
        all[key] = value.clone();
    }
    serde_json::from_value(all).unwrap()
}

/// What a pod does with the networks of its file: a subnet each, a list each, fixed addresses.
fn planned(host: &Host, networks: &[Network]) -> Vec<Attachment> {
    let mut attachments = Vec::new();
    for (i, network) in networks.iter().enumerate() {
        let used = subnets::in_use(&host.cni).unwrap();
        let subnets = subnets::acquire(&host.path("state"), network, "pod", &used).unwrap();
        let list = generate(network, &subnets, &host.path("leases")).unwrap();
        let fixed = network.attachment.ipv4_address.iter();
        attachments.push(Attachment {
            ips: fixed.map(|a| a.to_string()).collect(),
            ..attachment(list, &format!("eth{i}"))
        });
    }
    attachments
}

fn texts(attached: &network::Attached) -> Vec<String> {
    attached.addresses.iter().map(|a| a.to_string()).collect()
}

#[test]
fn generated_networks() {
    let host = Host::new();
    let networks = [
        network(
            "back",
            json!({"driver_opts": {"com.docker.network.driver.mtu": "1400"}}),
        ),
        network(
            "store",
            json!({
                "ipam": [{"subnet": "10.66.0.0/16", "ip_range": "10.66.9.0/24", "gateway": "10.66.0.254"}],
                "attachment": {"aliases": [], "ipv4_address": "10.66.1.1"},
            }),
        ),
    ];
    // the first subnet of the pool is the host's already
    ip(&["route", "add", "10.190.0.0/25", "dev", "lo"]);
    let attachments = planned(&host, &networks);
    let pod = host.netns("pod");
    let cache = host.path("cache");
    let attached = add_all(&host.cni, &pod, &attachments, &cache).unwrap();
    assert_eq!(
        texts(&attached[0]),
        ["10.190.1.2/24", "fd73:616d:7061::2/64"]
    );
    assert_eq!(
        texts(&attached[1]),
        ["10.66.1.1/16", "fd73:616d:7061:1::2/64"]
    );
    assert!(ip_in(&pod, &["link", "show", "eth0"]).contains("mtu 1400"));
    assert_eq!(default_routes(&pod, "-4"), [""; 0]);
    del_all(&host.cni, Some(&pod), &cache).unwrap();
    let state = host.path("state");
    for network in &networks {
        assert!(subnets::release(&state, &network.name, "pod").unwrap());
    }
    assert_eq!(subnets::registered(&state).unwrap(), []);
}

#[test]
fn built_in_plugins() {
    let mut host = Host::new();
    host.cni.plugin_dirs = vec![host.path("plugins")];
    let networks = [
        network("front", json!({"internal": false})),
        network("back", json!({"internal": false, "enable_ipv6": false})),
        network("quiet", json!({})),
    ];
    let mut attachments = planned(&host, &networks);
    attachments[1].ports = vec![network::PortMapping {
        host_port: 8080,
        container_port: 80,
        protocol: "tcp".into(),
        host_ip: None,
    }];
    // `back` has the priority, but no IPv6
    let preferred = ["eth1".to_string(), "eth0".to_string()];
    offer_one_default(&mut attachments, &preferred);
    let cache = host.path("cache");
    for _ in 0..2 {
        let pod = host.netns("pod");
        let attached = add_all(&host.cni, &pod, &attachments, &cache).unwrap();
        assert_eq!(
            texts(&attached[0]),
            ["10.190.0.2/24", "fd73:616d:7061::2/64"]
        );
        assert_eq!(texts(&attached[1]), ["10.190.1.2/24"]);
        assert_eq!(
            texts(&attached[2]),
            ["10.190.2.2/24", "fd73:616d:7061:1::2/64"]
        );
        for _ in 0..2 {
            assert_eq!(default_routes(&pod, "-4"), ["eth1"]);
            assert_eq!(default_routes(&pod, "-6"), ["eth0"]);
            keep_one_default(&pod, &preferred).unwrap();
        }
        for (i, attachment) in attachments.iter().enumerate() {
            let cache = cache.join(format!("{i:02}-{}.json", attachment.ifname));
            check(&host.cni, &pod, &cache).unwrap();
        }
        del_all(&host.cni, Some(&pod), &cache).unwrap();
        assert_eq!(addresses(&pod), [""; 0]);
        assert_eq!(
            host_links(),
            [""; 0],
            "the bridges went with their last ports"
        );
        for network in &networks {
            assert_eq!(host.leases(&network.name), [""; 0]);
        }
        netns::remove(&pod).unwrap();
        // leases begin anew, so that the next round has the same addresses
        fs::remove_dir_all(host.path("leases")).unwrap();
    }
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
    let valid = [("pod".to_string(), "eth0".to_string())];
    // nobody is asked before 1.1.0
    network::status(&host.cni, &of("1.0.0", "two")).unwrap();
    network::gc(&host.cni, &of("1.0.0", "two"), &valid).unwrap();
    network::status(&host.cni, &of("1.1.0", "one")).unwrap();
    network::gc(&host.cni, &of("1.1.0", "one"), &valid).unwrap();
    let log = host.log();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!((lines[0].trim(), lines[2].trim()), ("STATUS", "GC"));
    let got: Value = serde_json::from_str(lines[3]).unwrap();
    let expected = json!({"cniVersion": "1.1.0", "name": "n", "type": "one",
        "cni.dev/valid-attachments": [{"containerID": "pod", "ifname": "eth0"}]});
    assert_eq!(got, expected);
    let error = network::status(&host.cni, &of("1.1.0", "two")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CNI plugin `two` of network `n` (test), STATUS: no daemon (code 50)"
    );
}

#[test]
fn del_after_the_namespace_is_gone() {
    let host = Host::new();
    let pod = host.netns("pod");
    let cache = host.path("cache");
    let attachments = [
        attachment(host.bridge(1, &[json!({"type": "tuning"})]), "eth0"),
        attachment(host.bridge(2, &[]), "eth1"),
    ];
    add_all(&host.cni, &pod, &attachments, &cache).unwrap();
    assert_eq!(host_links().len(), 2);
    netns::remove(&pod).unwrap();
    // as after a restart of the machine
    fs::write(&pod, "").unwrap();
    del_all(&host.cni, Some(&pod), &cache).unwrap();
    assert!(!cache.exists());
    assert_eq!(host.leases("net1"), [""; 0]);
    assert_eq!(host.leases("net2"), [""; 0]);
}

#[test]
fn refusals() {
    let host = Host::new();
    let cache = host.path("c.json");
    let bridge = attachment(host.bridge(1, &[]), "eth0");
    let plain = host.path("plain");
    fs::write(&plain, "").unwrap();
    let error = add(&host.cni, &plain, &bridge, &cache).unwrap_err();
    let expected = format!("{}: not a pinned network namespace", plain.display());
    assert_eq!(error.to_string(), expected);
    let pod = host.netns("pod");
    let twice = [bridge.clone(), attachment(host.bridge(2, &[]), "eth0")];
    let error = add_all(&host.cni, &pod, &twice, &host.path("cache")).unwrap_err();
    assert_eq!(error.to_string(), "interface `eth0`: two networks want it");
    add(&host.cni, &pod, &bridge, &cache).unwrap();
    let error = add(&host.cni, &pod, &bridge, &cache).unwrap_err();
    assert!(error.to_string().ends_with("delete it first"), "{error}");
    check(&host.cni, &pod, &cache).unwrap();
    ip_in(&pod, &["link", "del", "eth0"]);
    assert!(matches!(
        check(&host.cni, &pod, &cache),
        Err(network::Error::Plugin { .. })
    ));
    del(&host.cni, Some(&pod), &cache).unwrap();
}

/// Run by [`a_crash_is_undone_from_the_cache`] in a process of its own, which a plugin kills.
#[test]
#[ignore = "part of another test"]
fn crash_child() {
    let Ok(dir) = std::env::var("CRASH_DIR") else {
        return;
    };
    let dir = Path::new(&dir);
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    let cni: Cni = serde_json::from_slice(&read("cni")).unwrap();
    let attachments: Vec<Attachment> = serde_json::from_slice(&read("attachments")).unwrap();
    let _ = add_all(&cni, &dir.join("pod"), &attachments, &dir.join("cache"));
    unreachable!("killed by a plugin");
}

#[test]
fn a_crash_is_undone_from_the_cache() {
    let host = Host::new();
    let kill = json!({"type": "kill"});
    // first in its chain, between two plugins, and after the only real one
    let chains = [
        list("net2", std::slice::from_ref(&kill)),
        host.bridge(2, &[kill.clone(), json!({"type": "tuning"})]),
        host.bridge(2, &[json!({"type": "tuning"}), kill]),
    ];
    host.script("kill", "[ $CNI_COMMAND = ADD ] && kill -9 $PPID; exit 0");
    for chain in chains {
        let pod = host.netns("pod");
        let attachments = [
            attachment(host.bridge(1, &[]), "eth0"),
            attachment(chain, "eth1"),
        ];
        let write = |name: &str, text: String| fs::write(host.path(name), text).unwrap();
        write("cni", serde_json::to_string(&host.cni).unwrap());
        write("attachments", serde_json::to_string(&attachments).unwrap());
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_child", "--ignored", "--test-threads=1"])
            .env("CRASH_DIR", host.dir.path())
            .output()
            .unwrap()
            .status;
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
        assert_eq!(host.leases("net1").len(), 2, "the first network was there");
        // a half-written cache file is nobody's
        fs::write(host.path("cache/.01-eth1.json.1.00000000"), "{").unwrap();
        del_all(&host.cni, Some(&pod), &host.path("cache")).unwrap();
        assert!(!host.path("cache").exists());
        assert_eq!(addresses(&pod), [""; 0]);
        assert_eq!(host_links(), [""; 0]);
        assert_eq!(host.leases("net1"), [""; 0]);
        assert_eq!(host.leases("net2"), [""; 0]);
        netns::remove(&pod).unwrap();
    }
}
