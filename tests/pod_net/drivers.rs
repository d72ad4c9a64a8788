//! Drivers of a compose file's networks, and that a pod's interfaces are the same after each restart.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

/// What is compared: `ip -j addr` and `ip -j route` of both families, whole but for what counts down or numbers the
/// kernel's objects.
fn state(host: &Host, service: &str) -> Vec<Value> {
    let mut all = Vec::new();
    for arguments in [&["addr"][..], &["-4", "route"], &["-6", "route"]] {
        let mut value = inside(host, service, arguments);
        strip(&mut value);
        all.push(value);
    }
    all
}

/// Numbers of interfaces differ when a pod is made again, lifetimes count.
fn strip(value: &mut Value) {
    const LEFT_OUT: [&str; 6] = [
        "ifindex",
        "link_index",
        "link_netnsid",
        "valid_life_time",
        "preferred_life_time",
        "expires",
    ];
    match value {
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Object(map) => {
            map.retain(|key, _| !LEFT_OUT.contains(&key.as_str()));
            map.values_mut().for_each(strip);
        }
        _ => {}
    }
}

/// The kernel has this kind of link; asked in the test's own namespace.
fn kernel_has(kind: &[&str]) -> bool {
    let add = [&["link", "add", "probe0"], kind].concat();
    let made = pod_support::run(std::process::Command::new("ip").args(add), b"");
    let _ = pod_support::run(
        std::process::Command::new("ip").args(["link", "del", "probe0"]),
        b"",
    );
    if made.code != 0 {
        println!("skipped: {kind:?}: {}", made.stderr.trim());
    }
    made.code == 0
}

/// 4 kinds of interface × IPv4, IPv6, both × restart of the services, of the supervisor, and `down` with `up`.
#[test]
fn interfaces_are_the_same_after_each_restart() {
    let host = Host::new();
    tool(
        "ip",
        &["link", "add", "up0", "type", "veth", "peer", "name", "wire"],
    );
    for link in ["up0", "wire"] {
        tool("ip", &["link", "set", link, "up"]);
    }
    let kinds: [(&str, &str, &[&str]); 4] = [
        ("bridge", "{}", &["type", "bridge"]),
        ("ptp", "{}", &["type", "veth"]),
        (
            "macvlan",
            "{parent: up0}",
            &["link", "up0", "type", "macvlan"],
        ),
        (
            "ipvlan",
            "{parent: up0}",
            &["link", "up0", "type", "ipvlan"],
        ),
    ];
    let v4 = "{subnet: 10.96.1.0/24}";
    let v6 = "{subnet: 'fd96:1::/64'}";
    let families = [
        ("IPv4", v4.to_string(), true, false, 1),
        ("IPv6", v6.to_string(), false, true, 1),
        ("both", format!("{v4}, {v6}"), true, true, 2),
    ];
    for (driver, options, probe) in kinds {
        if !built_in(driver) || !kernel_has(probe) {
            println!("skipped: {driver}");
            continue;
        }
        for (family, pools, has_v4, has_v6, defaults) in &families {
            host.compose(&format!(
                "services:
  web:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_grace_period: 0s
    networks: {{net: {{interface_name: net0}}, quiet: }}
networks:
  net: {{driver: {driver}, driver_opts: {options}, enable_ipv4: {has_v4}, enable_ipv6: {has_v6}, ipam: {{config: [{pools}]}}}}
  quiet: {{internal: true, ipam: {{config: [{{subnet: 10.96.2.0/24}}]}}}}
"
            ));
            host.sampan(&["up", "-d"]).ok();
            let listed = host.sampan(&["network", "ls", "--format", "json"]);
            let listed: Value = serde_json::from_str(&listed.ok()).unwrap();
            let name = format!("{}_net", host.name);
            let row = listed
                .as_array()
                .unwrap()
                .iter()
                .find(|n| n["name"] == *name);
            assert_eq!(row.unwrap()["plugins"][0], driver);
            let settled = || {
                // an IPv6 address is tried first
                until("addresses are sure", || {
                    let now = state(&host, "web");
                    (!now[0].to_string().contains("tentative")).then_some(now)
                })
            };
            let first = settled();
            let ways: [(&str, &dyn Fn()); 3] = [
                ("restart", &|| drop(host.sampan(&["restart"]).ok())),
                ("supervisor", &|| {
                    let text = std::fs::read(host.pod().join("supervisor.json")).unwrap();
                    let record: Value = serde_json::from_slice(&text).unwrap();
                    let pid = record["pid"].as_i64().unwrap() as i32;
                    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
                    host.sampan(&["restart", "web"]).ok();
                }),
                ("down and up", &|| {
                    host.sampan(&["down"]).ok();
                    host.sampan(&["up", "-d"]).ok();
                }),
            ];
            for (way, restart) in ways {
                restart();
                assert_eq!(settled(), first, "{driver} {family} {way}");
            }
            let all = [&first[1], &first[2]].into_iter();
            let routes = all.flat_map(|routes| routes.as_array().unwrap());
            let default: Vec<_> = routes.filter(|r| r["dst"] == "default").collect();
            assert_eq!(default.len(), *defaults, "{driver} {family}: {default:?}");
            assert!(default.iter().all(|r| r["dev"] == "net0"), "{default:?}");
            host.sampan(&["down", "-v"]).ok();
        }
    }
}

fn built_in(driver: &str) -> bool {
    cni_plugins::BUILT_IN.contains(&driver)
}

#[test]
fn three_networks_with_static_addresses() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:
  web:
{}    networks:
      storage: {{ipv4_address: 10.97.3.5, interface_name: store0, driver_opts: {{com.docker.network.endpoint.sysctls: 'net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.conf.IFNAME.accept_ra=0'}}}}
      public: {{ipv4_address: 10.97.1.5, ipv6_address: 'fd97:1::5', link_local_ips: [169.254.9.9], mac_address: '02:97:00:00:00:05'}}
      back: {{ipv4_address: 10.97.2.5}}
networks:
  storage: {{ipam: {{config: [{{subnet: 10.97.3.0/24}}]}}, driver_opts: {{mtu: 1400}}}}
  public:
    enable_ipv6: true
    ipam: {{config: [{{subnet: 10.97.1.0/24}}, {{subnet: 'fd97:1::/64'}}]}}
    x-sampan: {{default: true}}
  back:
    internal: true
    ipam: {{config: [{{subnet: 10.97.2.0/24}}]}}
    x-sampan: {{routes: [{{dst: 10.98.0.0/16, gw: 10.97.2.1}}]}}
",
        server("three")
    ));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(
        addresses(&host, "web"),
        pairs(&[
            ("eth0", "10.97.1.5/24"),
            ("eth0", "169.254.9.9/16"),
            ("eth1", "10.97.2.5/24"),
            ("store0", "10.97.3.5/24"),
        ])
    );
    assert_eq!(defaults(&host, "web"), ["eth0"]);
    let v6 = inside(&host, "web", &["-6", "route"]);
    let v6: Vec<_> = v6
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["dst"] == "default")
        .collect();
    assert_eq!((v6.len(), &v6[0]["dev"]), (1, &"eth0".into()));
    assert_eq!(
        inside(&host, "web", &["link", "show", "store0"])[0]["mtu"],
        1400
    );
    assert_eq!(
        inside(&host, "web", &["link", "show", "eth0"])[0]["address"],
        "02:97:00:00:00:05"
    );
    let routed = inside(&host, "web", &["route", "get", "10.98.1.1"]);
    assert_eq!(
        (&routed[0]["dev"], &routed[0]["gateway"]),
        (&"eth1".into(), &"10.97.2.1".into())
    );
    assert_eq!(
        host.shell("web", "cat /proc/sys/net/ipv4/conf/store0/log_martians"),
        "1"
    );
    for ip in ["10.97.1.5", "10.97.3.5"] {
        assert_eq!(page(ip, 80), "three");
    }
    // said aloud, with the reason
    let said = std::fs::read(host.pod().join("sandbox.json")).unwrap();
    let said: Value = serde_json::from_slice(&said).unwrap();
    let reasons: Vec<_> = said["interfaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| {
            (
                i["name"].as_str().unwrap(),
                i["default_reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        reasons,
        [
            ("store0", "eth0 has it"),
            ("eth0", "x-sampan says default: true"),
            ("eth1", "the network is internal"),
        ]
    );
    host.down(&before);
}

#[test]
fn no_network_and_the_hosts() {
    let host = Host::new();
    let before = host.snapshot();
    let service = |mode: &str| {
        format!(
            "services:\n  web:\n{}    network_mode: {mode}\n  other: {{image: {BUSYBOX}, command: [sleep, '1000'], stop_grace_period: 0s, network_mode: 'service:web'}}\n",
            server("web")
        )
    };
    host.compose(&service("none"));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(addresses(&host, "web"), []);
    assert_eq!(host.shell("other", "wget -q -O - http://web/"), "web");
    host.down(&before);
    host.compose(&service("host").replace("-p 80", "-p 18110"));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(page("127.0.0.1", 18110), "web");
    let own = tool("readlink", &["/proc/thread-self/ns/net"]);
    let pid = host.row("web")["pid"].to_string();
    assert_eq!(tool("readlink", &[&format!("/proc/{pid}/ns/net")]), own);
    assert_eq!(host.shell("other", "wget -q -O - http://web:18110/"), "web");
    let name = host.name.as_str();
    let said = host.sampan(&["network", "publish", name, "1:1"]);
    assert!(
        said.fails(1).contains("the host's own network"),
        "{said:#?}"
    );
    host.down(&before);
}

#[test]
fn a_range_of_host_ports_gives_the_first_that_is_free() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n  web:\n{}    ports: ['18120-18122:80']\n",
        server("web")
    ));
    let taken = std::net::TcpListener::bind("127.0.0.1:18120").unwrap();
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.row("web")["ports"][0]["mapping"]["hostPort"], 18121);
    assert_eq!(page("127.0.0.1", 18121), "web");
    drop(taken);
    host.down(&before);
}

/// A plugin that nobody has heard of, by its name: the file's words reach it, and its answer the pod.
#[test]
fn any_plugin_by_name() {
    let host = Host::new();
    let before = host.snapshot();
    let dir = host.path().join("cni-path");
    std::fs::create_dir_all(&dir).unwrap();
    let script = r#"#!/bin/sh
cat > "$(dirname "$0")/$CNI_COMMAND.json"
case $CNI_COMMAND in
ADD)
  nsenter --net="$CNI_NETNS" ip link add "$CNI_IFNAME" type veth peer name other0
  nsenter --net="$CNI_NETNS" ip link set "$CNI_IFNAME" up
  nsenter --net="$CNI_NETNS" ip addr add 10.98.1.7/24 dev "$CNI_IFNAME"
  echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "'$CNI_IFNAME'", "sandbox": "'$CNI_NETNS'"}], "ips": [{"address": "10.98.1.7/24", "interface": 0}], "dns": {"nameservers": ["10.98.1.53"]}}';;
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}';;
DEL) nsenter --net="$CNI_NETNS" ip link del "$CNI_IFNAME";;
esac
"#;
    let plugin = dir.join("strange");
    std::fs::write(&plugin, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&plugin, mode).unwrap();
    host.compose(&format!(
        "services:
  web:
{}    networks: {{odd: {{interface_name: odd0}}}}
networks:
  odd:
    driver: strange
    driver_opts: {{depth: '3', deep: 'true', word: abc}}
    x-sampan: {{config: {{nested: {{list: [1, two]}}}}, plugins: [{{type: firewall}}]}}
",
        server("odd")
    ));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(addresses(&host, "web"), pairs(&[("odd0", "10.98.1.7/24")]));
    let given: Value =
        serde_json::from_slice(&std::fs::read(dir.join("ADD.json")).unwrap()).unwrap();
    let of = |key: &str| given[key].clone();
    assert_eq!(
        serde_json::json!([
            of("type"),
            of("depth"),
            of("deep"),
            of("word"),
            of("nested")
        ]),
        serde_json::json!(["strange", 3, true, "abc", {"list": [1, "two"]}])
    );
    host.down(&before);
    assert!(dir.join("DEL.json").exists());
}
