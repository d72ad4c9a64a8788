//! `portmap` as a process, with real connections from every side.

mod common;

use std::path::Path;

use common::{Call, Host, ask, inside, ip, remove_pod, rules, run, serve};
use serde_json::{Value, json};

fn bridge(host: &Host) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0", "removeBridge": true,
        "isDefaultGateway": true, "ipMasq": true,
        "ipam": {
            "type": "host-local", "dataDir": host.leases(),
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]
        }
    })
}

fn portmap(previous: &Value, ports: Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "portmap",
        "prevResult": previous, "runtimeConfig": {"portMappings": ports}
    })
}

/// A machine beside the host, with a route to nothing but the host.
fn outside(host: &mut Host) -> std::path::PathBuf {
    let outside = host.pod("outside");
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
            outside.to_str().unwrap(),
        ],
    );
    run("ip", &["addr", "add", "192.0.2.1/24", "dev", "up0"]);
    run(
        "ip",
        &["addr", "add", "2001:db8::1/64", "dev", "up0", "nodad"],
    );
    // no link-local address, which the kernel would add at a moment of its own
    run("ip", &["link", "set", "up0", "addrgenmode", "none", "up"]);
    ip(&outside, &["addr", "add", "192.0.2.2/24", "dev", "up1"]);
    ip(
        &outside,
        &["addr", "add", "2001:db8::2/64", "dev", "up1", "nodad"],
    );
    ip(&outside, &["link", "set", "up1", "up"]);
    ip(
        &outside,
        &["route", "add", "127.0.0.8/32", "via", "192.0.2.1"],
    );
    // the state of the link follows in the kernel's own time too
    for _ in 0..500 {
        if run("ip", &["link", "show", "up0"]).contains("state UP") {
            return outside;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("up0 does not come up");
}

#[test]
fn connections_from_every_side() {
    connections(Host::new());
}

/// The same on a host whose bridged packets go past the hooks of IP.
#[test]
fn connections_without_br_netfilter() {
    let host = Host::new();
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let path = format!("/proc/sys/net/bridge/{name}");
        if Path::new(&path).exists() {
            std::fs::write(&path, "0").unwrap();
        }
    }
    connections(host);
}

fn connections(mut host: Host) {
    let (a, b) = (host.pod("a"), host.pod("b"));
    let outside = outside(&mut host);
    let before = host.snapshot();
    let (call_a, call_b) = (Call::new("a", &a), Call::new("b", &b));
    let previous = call_a.ok("bridge", "ADD", &bridge(&host));
    call_b.ok("bridge", "ADD", &bridge(&host));
    let ports = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
        {"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}
    ]);
    let config = portmap(&previous, ports);
    assert_eq!(call_a.ok("portmap", "ADD", &config), previous);
    call_a.ok("portmap", "CHECK", &config);
    serve(&a, "10.9.0.2:80");
    serve(&a, "[fd09::2]:80");

    // who asks, whom, and the source that the container sees
    let host_asks = |address: &str| ask(address);
    assert_eq!(host_asks("127.0.0.1:8080"), "10.9.0.1");
    assert_eq!(host_asks("[::1]:8080"), "error: ConnectionRefused");
    assert_eq!(host_asks("192.0.2.1:8080"), "192.0.2.1");
    assert_eq!(host_asks("192.0.2.1:8081"), "192.0.2.1");
    assert_eq!(host_asks("127.0.0.1:8081"), "error: ConnectionRefused");
    assert_eq!(host_asks("127.0.0.1:8082"), "10.9.0.1");
    assert_eq!(host_asks("127.0.0.1:80"), "error: ConnectionRefused");
    let client = |address: &'static str| inside(&outside, move || ask(address));
    assert_eq!(client("192.0.2.1:8080"), "192.0.2.2");
    assert_eq!(client("[2001:db8::1]:8080"), "2001:db8::2");
    assert_eq!(client("192.0.2.1:8081"), "192.0.2.2");
    assert_eq!(client("192.0.2.1:8082"), "error: ConnectionRefused");
    let neighbour = |address: &'static str| inside(&b, move || ask(address));
    assert_eq!(neighbour("10.9.0.1:8080"), "10.9.0.1");
    assert_eq!(neighbour("192.0.2.1:8080"), "10.9.0.1");
    assert_eq!(neighbour("[2001:db8::1]:8080"), "fd09::1");
    assert_eq!(neighbour("10.9.0.2:80"), "10.9.0.3");
    let itself = |address: &'static str| inside(&a, move || ask(address));
    assert_eq!(itself("192.0.2.1:8080"), "10.9.0.1");
    assert_eq!(itself("[2001:db8::1]:8080"), "fd09::1");

    call_a.ok("portmap", "DEL", &config);
    call_a.ok("portmap", "DEL", &config);
    assert_eq!(host_asks("192.0.2.1:8080"), "error: ConnectionRefused");
    for call in [&call_a, &call_b] {
        call.ok("bridge", "DEL", &bridge(&host));
    }
    assert_eq!(host.snapshot(), before);
}

const MARTIANS: [&str; 4] = ["chain", "inet", "sampan_loopback", "martians"];

fn localnet(interface: &str) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/route_localnet");
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

/// A container that sends packets to 127.0.0.8 to the host.
fn attacker(host: &mut Host, config: &Value) -> std::path::PathBuf {
    let pod = host.pod("b");
    Call::new("b", &pod).ok("bridge", "ADD", config);
    ip(&pod, &["route", "add", "127.0.0.8/32", "via", "10.9.0.1"]);
    ip(&pod, &["addr", "del", "127.0.0.1/8", "dev", "lo"]);
    let netns = format!("--net={}", pod.display());
    let open = "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet";
    run("nsenter", &[&netns, "sh", "-c", open]);
    pod
}

/// route_localnet would let a neighbour speak to services that listen on the host's loopback only (CVE-2020-8558).
#[test]
fn loopback_stays_closed_to_neighbours() {
    let mut host = Host::new();
    let a = host.pod("a");
    let call = Call::new("a", &a);
    let previous = call.ok("bridge", "ADD", &bridge(&host));
    let config = bridge(&host);
    let b = attacker(&mut host, &config);
    let before = rules();
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "hostIP": "127.0.0.1"}]);
    let config = portmap(&previous, ports);
    call.ok("portmap", "ADD", &config);
    let secret = std::net::TcpListener::bind("127.0.0.8:99").unwrap();
    assert_eq!(localnet("br0"), "1");
    assert_eq!(inside(&b, || ask("127.0.0.8:99")), "error: TimedOut");
    // the attack is real: without our rule it gets through
    run("nft", &[&["flush"], &MARTIANS[..]].concat());
    assert!(inside(&b, || std::net::TcpStream::connect("127.0.0.8:99").is_ok()));
    assert_eq!(
        call.err("portmap", "CHECK", &config)["msg"],
        "br0 has route_localnet and the nftables chain inet sampan_loopback martians has no rule"
    );
    call.ok("portmap", "ADD", &config);
    call.ok("portmap", "CHECK", &config);
    // and after the last port: the setting is what it was, or the guard stays
    call.ok("portmap", "DEL", &config);
    assert_eq!(inside(&b, || ask("127.0.0.8:99")), "error: TimedOut");
    drop(secret);
    assert!(!rules().contains("sampan_portmap"));
    // the flushed chain could not say any more whose setting it was
    assert_eq!(localnet("br0"), "1");
    assert!(rules().contains("sampan_loopback"));
    std::fs::write("/proc/sys/net/ipv4/conf/br0/route_localnet", "0").unwrap();
    call.ok("portmap", "ADD", &config);
    call.ok("portmap", "DEL", &config);
    assert_eq!(localnet("br0"), "0");
    assert_eq!(rules(), before);
}

/// The guard comes before what it guards: an ADD that ends in between leaves nothing open.
#[test]
fn loopback_stays_closed_when_add_fails() {
    let mut host = Host::new();
    let a = host.pod("a");
    let call = Call::new("a", &a);
    let previous = call.ok("bridge", "ADD", &bridge(&host));
    // the chain is there with another hook: the mappings are refused
    run("nft", &["add", "table", "inet", "sampan_portmap"]);
    let chain = "{ type filter hook input priority 0; }";
    run(
        "nft",
        &["add", "chain", "inet", "sampan_portmap", "output", chain],
    );
    let before = rules();
    let config = portmap(&previous, json!([{"hostPort": 80, "containerPort": 80}]));
    call.err("portmap", "ADD", &config);
    assert_eq!(localnet("br0"), "0");
    assert_eq!(rules(), before);
}

#[test]
fn rules_as_nft_prints_them() {
    let host = Host::new();
    let call = Call::new("a", Path::new("/nowhere"));
    let previous = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}, {"address": "fd09::2/64"}], "dns": {}});
    let before = host.snapshot();
    let mut config = portmap(
        &previous,
        json!([
            {"hostPort": 53, "containerPort": 5353, "protocol": "UDP"},
            {"hostPort": 7, "containerPort": 8, "protocol": "sctp", "hostIP": "192.0.2.1"},
            {"hostPort": 9, "containerPort": 9, "protocol": "tcp", "hostIP": "::"}
        ]),
    );
    call.ok("portmap", "ADD", &config);
    let once = rules();
    let hook = |kind: &str, hook: &str, priority: i32| {
        format!("\t\ttype {kind} hook {hook} priority {priority}; policy accept;\n")
    };
    let expected = format!(
        "table inet sampan_portmap {{\n\tchain hostports {{\n\
         \t\tmeta nfproto 2 udp dport 53 dnat ip to 10.9.0.2:5353 comment \"net a eth0 udp 0.0.0.0 53\"\n\
         \t\tip6 daddr != ::1 udp dport 53 dnat ip6 to [fd09::2]:5353 comment \"net a eth0 udp :: 53\"\n\
         \t\tip daddr 192.0.2.1 sctp dport 7 dnat ip to 10.9.0.2:8 comment \"net a eth0 sctp 192.0.2.1 7\"\n\
         \t\tip6 daddr != ::1 tcp dport 9 dnat ip6 to [fd09::2]:9 comment \"net a eth0 tcp :: 9\"\n\t}}\n\n\
         \tchain prerouting {{\n{}\t\tfib daddr type 2 jump hostports\n\t}}\n\n\
         \tchain output {{\n{}\t\tfib daddr type 2 jump hostports\n\t}}\n\n\
         \tchain masquerade {{\n{}\
         \t\tip saddr 10.9.0.0/24 ip daddr 10.9.0.2 ct status 0x20 masquerade comment \"net a eth0\"\n\
         \t\tip saddr 127.0.0.0/8 ip daddr 10.9.0.2 ct status 0x20 masquerade comment \"net a eth0\"\n\
         \t\tip6 saddr fd09::/64 ip6 daddr fd09::2 ct status 0x20 masquerade comment \"net a eth0\"\n\
         \t}}\n}}\n",
        hook("nat", "prerouting", -100),
        hook("nat", "output", -100),
        hook("nat", "postrouting", 100),
    );
    assert_eq!(once, expected);
    // again is the same
    call.ok("portmap", "ADD", &config);
    assert_eq!(rules(), once);
    call.ok("portmap", "CHECK", &config);
    run(
        "nft",
        &["flush", "chain", "inet", "sampan_portmap", "output"],
    );
    assert_eq!(
        call.err("portmap", "CHECK", &config),
        json!({"cniVersion": "1.1.0", "code": 100, "msg": "missing rule in the nftables chain inet sampan_portmap output", "details": ""})
    );
    // DEL knows what to do without the ports
    config["runtimeConfig"] = json!({});
    call.ok("portmap", "DEL", &config);
    assert_eq!(host.snapshot(), before);

    for (change, expected) in [("snat", (4, 0)), ("masqAll", (4, 2))] {
        let mut config = portmap(
            &previous,
            json!([{"hostPort": 53, "containerPort": 53, "protocol": "udp"}, {"hostPort": 53, "containerPort": 53}]),
        );
        config[change] = json!(change == "masqAll");
        call.ok("portmap", "ADD", &config);
        let text = rules();
        assert_eq!(
            (
                text.matches("dnat ip").count(),
                text.matches(" masquerade comment").count()
            ),
            expected,
            "{text}"
        );
        assert_eq!(text.matches("saddr").count(), 0, "{text}");
        call.ok("portmap", "CHECK", &config);
        call.ok("portmap", "DEL", &config);
    }
}

#[test]
fn conflicts_name_the_other() {
    let host = Host::new();
    let before = host.snapshot();
    let previous = |last: u8| json!({"cniVersion": "1.1.0", "ips": [{"address": format!("10.9.0.{last}/24")}], "dns": {}});
    let ports = |ip: &str, port: u16, protocol: &str| json!([{"hostPort": 1000, "containerPort": 1}, {"hostPort": port, "containerPort": 1, "protocol": protocol, "hostIP": ip}]);
    let first = portmap(&previous(2), ports("192.0.2.1", 80, "tcp"));
    let (a, b) = (
        Call::new("a", Path::new("/nowhere")),
        Call::new("b", Path::new("/nowhere")),
    );
    a.ok("portmap", "ADD", &first);
    let with_rules = rules();
    let only = |ip: &str, port: u16, protocol: &str| {
        portmap(&previous(3), json!([ports(ip, port, protocol)[1]]))
    };
    for (config, port, other) in [
        (
            only("", 1000, "tcp"),
            "tcp 0.0.0.0 1000",
            "tcp 0.0.0.0 1000",
        ),
        (
            only("192.0.2.7", 1000, "tcp"),
            "tcp 192.0.2.7 1000",
            "tcp 0.0.0.0 1000",
        ),
        (
            only("0.0.0.0", 80, "tcp"),
            "tcp 0.0.0.0 80",
            "tcp 192.0.2.1 80",
        ),
    ] {
        let expected = json!({
            "cniVersion": "1.1.0", "code": 102, "msg": format!("host port {port} is in use"),
            "details": format!("container a on network net has {other}")
        });
        assert_eq!(b.err("portmap", "ADD", &config), expected);
        assert_eq!(rules(), with_rules);
    }
    for config in [only("192.0.2.2", 80, "tcp"), only("192.0.2.1", 80, "udp")] {
        b.ok("portmap", "ADD", &config);
    }
    // no conflict with oneself on another network
    let second = Call {
        ifname: "eth1".into(),
        ..a.clone()
    };
    let before_second = rules();
    second.ok("portmap", "ADD", &first);
    assert_ne!(rules(), before_second);
    second.ok("portmap", "DEL", &first);
    assert_eq!(rules(), before_second);
    b.ok("portmap", "DEL", &first);
    assert_eq!(rules(), with_rules);
    let mut gc = first.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    a.ok("portmap", "GC", &gc);
    assert_eq!(rules(), with_rules);
    gc["cni.dev/valid-attachments"] = json!([]);
    a.ok("portmap", "GC", &gc);
    assert_eq!(host.snapshot(), before);
}

#[test]
fn refusals() {
    let _host = Host::new();
    let previous = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}], "dns": {}});
    let port = |change: Value| {
        let mut port = json!({"hostPort": 80, "containerPort": 80, "protocol": "tcp"});
        port[change[0].as_str().unwrap()] = change[1].clone();
        portmap(&previous, json!([port]))
    };
    let option = |key: &str, value: Value| {
        let mut config = portmap(&previous, json!([]));
        config[key] = value;
        config
    };
    let cases = [
        (
            port(json!(["hostPort", 0])),
            7,
            "portMappings[0]: Invalid host port number: 0",
        ),
        (
            port(json!(["hostPort", 65536])),
            7,
            "portMappings[0]: Invalid host port number: 65536",
        ),
        (
            port(json!(["containerPort", -1])),
            7,
            "portMappings[0]: Invalid container port number: -1",
        ),
        (
            port(json!(["protocol", "icmp"])),
            7,
            "portMappings[0]: invalid protocol \"icmp\"",
        ),
        (
            port(json!(["hostIP", "nonsense"])),
            7,
            "portMappings[0]: invalid hostIP \"nonsense\"",
        ),
        (
            port(json!(["hostIP", "fd00::1"])),
            7,
            "portMappings[0]: the container has no address for host address fd00::1",
        ),
        (
            portmap(
                &previous,
                json!([{"hostPort": 1, "containerPort": 1}, {"hostPort": 1, "containerPort": 2, "hostIP": "192.0.2.1"}]),
            ),
            7,
            "portMappings[1]: host port tcp 192.0.2.1 1 is mapped twice (tcp 0.0.0.0 1)",
        ),
        (
            portmap(&Value::Null, json!([{"hostPort": 1, "containerPort": 1}])),
            7,
            "required prevResult missing",
        ),
        (
            portmap(&json!([]), json!([])),
            6,
            "prevResult is not a CNI result",
        ),
        (
            option("backend", json!("iptables")),
            2,
            "backend \"iptables\" is not supported by this plugin",
        ),
        (
            option("conditionsV4", json!(["-s", "10.0.0.0/8"])),
            2,
            "conditionsV4 is not supported by this plugin",
        ),
        (
            option("externalSetMarkChain", json!("X")),
            2,
            "externalSetMarkChain is not supported by this plugin",
        ),
        (
            option("markMasqBit", json!(32)),
            7,
            "MasqMarkBit must be between 0 and 31",
        ),
    ];
    for (config, code, msg) in cases {
        let error = Call::new("a", Path::new("/nowhere")).err("portmap", "ADD", &config);
        assert_eq!(
            (&error["code"], &error["msg"]),
            (&json!(code), &json!(msg)),
            "{config}"
        );
        assert_eq!(rules(), "");
    }
}

#[test]
fn a_thousand_ports_in_one_batch() {
    let host = Host::new();
    let before = host.snapshot();
    let call = Call::new("a", Path::new("/nowhere"));
    let previous = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}, {"address": "fd09::2/64"}], "dns": {}});
    let ports: Vec<Value> = (1..=1000)
        .map(|port| json!({"hostPort": 20000 + port, "containerPort": port}))
        .collect();
    let config = portmap(&previous, json!(ports));
    call.ok("portmap", "ADD", &config);
    call.ok("portmap", "CHECK", &config);
    assert_eq!(rules().matches("dnat ip").count(), 2000);
    call.ok("portmap", "DEL", &config);
    assert_eq!(host.snapshot(), before);
}

#[test]
fn del_after_the_namespace_is_gone() {
    let mut host = Host::new();
    let a = host.pod("a");
    let before = host.snapshot();
    let call = Call::new("a", &a);
    let previous = call.ok("bridge", "ADD", &bridge(&host));
    let config = portmap(&previous, json!([{"hostPort": 80, "containerPort": 80}]));
    call.ok("portmap", "ADD", &config);
    remove_pod(&a);
    let gone = Call {
        netns: None,
        ..call
    };
    gone.ok("portmap", "DEL", &config);
    gone.ok("bridge", "DEL", &bridge(&host));
    assert_eq!(host.snapshot(), before);
}

#[test]
fn a_udp_flow_that_came_too_early_finds_its_way() {
    use std::net::UdpSocket;
    use std::time::Duration;
    let mut host = Host::new();
    let a = host.pod("a");
    let outside = outside(&mut host);
    let call = Call::new("a", &a);
    let previous = call.ok("bridge", "ADD", &bridge(&host));
    // conntrack sees the flow: a table of NAT is there already
    let other = portmap(&previous, json!([{"hostPort": 1, "containerPort": 1}]));
    Call::new("z", &a).ok("portmap", "ADD", &other);
    let sink = UdpSocket::bind("192.0.2.1:5353").unwrap();
    let client = inside(&outside, || UdpSocket::bind("192.0.2.2:4444").unwrap());
    client.send_to(b"early", "192.0.2.1:5353").unwrap();
    sink.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    assert_eq!(sink.recv_from(&mut [0; 9]).unwrap().0, 5);
    let server = inside(&a, || UdpSocket::bind("10.9.0.2:53").unwrap());
    call.ok(
        "portmap",
        "ADD",
        &portmap(
            &previous,
            json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]),
        ),
    );
    client.send_to(b"later!", "192.0.2.1:5353").unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    assert_eq!(server.recv_from(&mut [0; 9]).unwrap().0, 6);
}

/// The other way round: a flow that the rule caught doesn't go on to an address that is somebody else's now.
#[test]
fn a_udp_flow_ends_with_its_port() {
    use std::net::UdpSocket;
    use std::time::Duration;
    let mut host = Host::new();
    let a = host.pod("a");
    let outside = outside(&mut host);
    let call = Call::new("a", &a);
    let previous = call.ok("bridge", "ADD", &bridge(&host));
    let config = portmap(
        &previous,
        json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]),
    );
    // the table stays
    let other = portmap(&previous, json!([{"hostPort": 1, "containerPort": 1}]));
    Call::new("z", &a).ok("portmap", "ADD", &other);
    call.ok("portmap", "ADD", &config);
    let wait = Some(Duration::from_secs(2));
    let server = inside(&a, || UdpSocket::bind("10.9.0.2:53").unwrap());
    server.set_read_timeout(wait).unwrap();
    let client = inside(&outside, || UdpSocket::bind("192.0.2.2:4444").unwrap());
    client.send_to(b"first", "192.0.2.1:5353").unwrap();
    assert_eq!(server.recv_from(&mut [0; 9]).unwrap().0, 5);
    let sink = UdpSocket::bind("192.0.2.1:5353").unwrap();
    sink.set_read_timeout(wait).unwrap();
    call.ok("portmap", "DEL", &config);
    client.send_to(b"second", "192.0.2.1:5353").unwrap();
    assert_eq!(sink.recv_from(&mut [0; 9]).unwrap().0, 6);
}

/// A published port is the host's own: what containers ask others on the same port goes there (CVE-2025-67499).
#[test]
fn forwarded_traffic_is_not_caught() {
    use std::net::UdpSocket;
    use std::time::Duration;
    let mut host = Host::new();
    let (a, b) = (host.pod("a"), host.pod("b"));
    let outside = outside(&mut host);
    let previous = Call::new("a", &a).ok("bridge", "ADD", &bridge(&host));
    Call::new("b", &b).ok("bridge", "ADD", &bridge(&host));
    let ports = json!([
        {"hostPort": 53, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "tcp"}
    ]);
    Call::new("a", &a).ok("portmap", "ADD", &portmap(&previous, ports));
    serve(&a, "10.9.0.2:53");
    serve(&outside, "192.0.2.2:53");
    serve(&outside, "[2001:db8::2]:53");
    // the source that the server sees is the host's: the address is translated, the destination isn't
    assert_eq!(inside(&b, || ask("192.0.2.2:53")), "192.0.2.1");
    assert_eq!(inside(&b, || ask("[2001:db8::2]:53")), "2001:db8::1");
    assert_eq!(inside(&b, || ask("192.0.2.1:53")), "10.9.0.1");
    let resolver = inside(&outside, || UdpSocket::bind("192.0.2.2:53").unwrap());
    resolver
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    for pod in [&a, &b] {
        inside(pod, || {
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            client.send_to(b"query", "192.0.2.2:53").unwrap();
        });
        assert_eq!(resolver.recv_from(&mut [0; 9]).unwrap().0, 5);
    }
}
