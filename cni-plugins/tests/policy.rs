//! `policy` as a process: real connections between pods, the host and a machine outside, while the rules change.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Call, Host, OURS, ask, inside, ip, rules, run, serve};
use serde_json::{Value, json};

fn bridge(host: &Host) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0", "removeBridge": true,
        "isDefaultGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": host.leases(),
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]
        }
    })
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// A machine beside the host that knows the way to its containers.
fn outside(host: &mut Host) -> PathBuf {
    let outside = host.pod("outside");
    let mut link = words("link add up0 type veth peer name up1 netns");
    link.push(outside.to_str().unwrap());
    run("ip", &link);
    for line in [
        "addr add 192.0.2.1/24 dev up0",
        "addr add 2001:db8::1/64 dev up0 nodad",
        "link set up0 up",
    ] {
        run("ip", &words(line));
    }
    for line in [
        "addr add 192.0.2.2/24 dev up1",
        "addr add 2001:db8::2/64 dev up1 nodad",
        "link set up1 up",
        "route add default via 192.0.2.1",
        "-6 route add default via 2001:db8::1",
    ] {
        ip(&outside, &words(line));
    }
    outside
}

/// `web`, `db` and `log` on one bridge, and a machine outside.
struct Lab {
    host: Host,
    places: [PathBuf; 4],
    calls: [(Call, Value); 3],
}

const APPS: [&str; 3] = ["web", "db", "log"];
const HOSTS: [[&str; 2]; 5] = [
    ["10.9.0.2", "[fd09::2]"],
    ["10.9.0.3", "[fd09::3]"],
    ["10.9.0.4", "[fd09::4]"],
    ["192.0.2.2", "[2001:db8::2]"],
    // the host itself
    ["10.9.0.1", "[fd09::1]"],
];

fn br_netfilter(on: bool) {
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let path = format!("/proc/sys/net/bridge/{name}");
        if Path::new(&path).exists() {
            std::fs::write(&path, if on { "1" } else { "0" }).unwrap();
        }
    }
}

fn policy(host: &Host, rules: Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "policy", "dataDir": host.temp.path().join("policy"),
        "rules": rules
    })
}

fn with(config: &Value, app: &str, previous: &Value) -> Value {
    let mut config = config.clone();
    config["prevResult"] = previous.clone();
    config["runtimeConfig"] = json!({"labels": {"app": app}});
    config
}

impl Lab {
    fn new(rules: Value) -> Self {
        let mut host = Host::new();
        let places = [
            host.pod("web"),
            host.pod("db"),
            host.pod("log"),
            outside(&mut host),
        ];
        let calls = [0, 1, 2].map(|index| {
            let call = Call::new(APPS[index], &places[index]);
            let previous = call.ok("bridge", "ADD", &bridge(&host));
            let config = with(&policy(&host, rules.clone()), APPS[index], &previous);
            assert_eq!(call.ok("policy", "ADD", &config), previous);
            (call, config)
        });
        for (call, config) in &calls {
            call.ok("policy", "CHECK", config);
        }
        Self {
            host,
            places,
            calls,
        }
    }

    fn serve(&self) {
        for (index, addresses) in HOSTS.iter().enumerate() {
            for address in addresses {
                for port in [80, 81] {
                    let target = format!("{address}:{port}");
                    match self.places.get(index) {
                        Some(place) => serve(place, &target),
                        None => {
                            let listener = TcpListener::bind(&target).unwrap();
                            std::thread::spawn(move || listener.incoming().for_each(drop));
                        }
                    }
                }
            }
        }
    }

    /// Changes the rules of the running pods.
    fn apply(&self, default: &str, rules: Value) {
        let mut config = policy(&self.host, rules);
        config["default"] = json!(default);
        let file = self.host.temp.path().join("net.conflist");
        let list =
            json!({"cniVersion": "1.1.0", "name": "net", "plugins": [bridge(&self.host), config]});
        std::fs::write(&file, list.to_string()).unwrap();
        assert_eq!(run(OURS, &["policy", "apply", file.to_str().unwrap()]), "");
    }

    /// Who reaches whom: `web>db:80/4`.
    fn reachable(&self) -> Vec<String> {
        let name = |index: usize| ["web", "db", "log", "outside", "host"][index];
        let mut found: Vec<String> = std::thread::scope(|scope| {
            let mut tasks = Vec::new();
            for from in 0..HOSTS.len() {
                for to in (0..HOSTS.len()).filter(|to| *to != from) {
                    for (address, family) in HOSTS[to].into_iter().zip([4, 6]) {
                        for port in [80, 81] {
                            let place = self.places.get(from);
                            let task = move || {
                                let target: SocketAddr =
                                    format!("{address}:{port}").parse().unwrap();
                                let connect = || {
                                    TcpStream::connect_timeout(&target, Duration::from_secs(2))
                                        .is_ok()
                                };
                                let is_open = match place {
                                    Some(place) => inside(place, connect),
                                    None => connect(),
                                };
                                is_open
                                    .then(|| format!("{}>{}:{port}/{family}", name(from), name(to)))
                            };
                            tasks.push(scope.spawn(task));
                        }
                    }
                }
            }
            tasks
                .into_iter()
                .filter_map(|task| task.join().unwrap())
                .collect()
        });
        // what the host asks, and what outside asks the host, isn't the policy's matter
        found.retain(|pair| !pair.starts_with("host>") && !pair.starts_with("outside>host"));
        found.sort();
        found
    }
}

/// `web>db:80` for both families.
fn both(pairs: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = pairs
        .iter()
        .flat_map(|pair| [format!("{pair}/4"), format!("{pair}/6")])
        .collect();
    all.sort();
    all
}

#[test]
fn who_reaches_whom() {
    matrix(true);
}

#[test]
fn who_reaches_whom_without_br_netfilter() {
    matrix(false);
}

fn matrix(with_br_netfilter: bool) {
    let lab = Lab::new(json!([
        {"from": {"app": "web"}, "to": {"app": "db"}, "ports": ["tcp/80"]},
        {"to": {"app": "web"}, "from": ["192.0.2.0/24", "2001:db8::/64"], "ports": ["tcp/80-90"]},
        {"action": "deny", "from": {"app": "db"}, "to": ["192.0.2.0/30", "2001:db8::2/128"], "ports": ["tcp/81"]},
        {"from": {"app": "db"}, "to": ["0.0.0.0/0", "::/0"]}
    ]));
    // the bridge of the pods stays in sight whatever the default becomes
    br_netfilter(with_br_netfilter);
    lab.serve();
    let expected = both(&[
        "web>db:80",
        "outside>web:80",
        "outside>web:81",
        "db>outside:80",
        "db>host:80",
        "db>host:81",
    ]);
    assert_eq!(lab.reachable(), expected);
    // the host reaches everybody
    assert_eq!(ask("10.9.0.4:81"), "10.9.0.1");

    // another pod comes, and one goes
    let (log, _) = &lab.calls[2];
    lab.apply("deny", json!([{"from": {}, "to": {"app": "log"}}]));
    let to_log = both(&["web>log:80", "web>log:81", "db>log:80", "db>log:81"]);
    assert_eq!(lab.reachable(), to_log);
    log.ok("policy", "DEL", &lab.calls[2].1);
    // who is not the policy's pod any more is somebody outside
    assert_eq!(
        inside(&lab.places[0], || ask("10.9.0.4:80")),
        "error: TimedOut"
    );
    log.ok(
        "policy",
        "ADD",
        &with(
            &policy(&lab.host, json!([{"from": {}, "to": {"app": "log"}}])),
            "log",
            &lab.calls[2].1["prevResult"],
        ),
    );
    assert_eq!(lab.reachable(), to_log);

    lab.apply(
        "allow",
        json!([{"action": "deny", "from": {"app": "web"}, "ports": ["tcp/81"]}]),
    );
    let found = lab.reachable();
    assert_eq!(
        found.iter().filter(|pair| pair.starts_with("web>")).count(),
        4 * 2
    );
    assert_eq!(
        found
            .iter()
            .filter(|pair| !pair.starts_with("web>"))
            .count(),
        (2 * 8 + 6) * 2,
        "{found:?}"
    );
}

fn echo(place: &Path, address: &str) {
    let listener = inside(place, || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    let _ = stream.write_all(&bytes[..length]);
                }
            });
        }
    });
}

#[test]
fn withdrawn_permission_ends_connections() {
    let allowed =
        json!([{"from": {"app": "web"}, "to": {"app": "db"}, "ports": ["tcp/80", "udp/53"]}]);
    let lab = Lab::new(allowed.clone());
    let wait = Some(Duration::from_millis(700));
    echo(&lab.places[1], "10.9.0.3:80");
    let mut stream = inside(&lab.places[0], || {
        TcpStream::connect("10.9.0.3:80").unwrap()
    });
    stream.set_read_timeout(wait).unwrap();
    let mut talk = |text: &str| {
        stream.write_all(text.as_bytes()).unwrap();
        stream.read(&mut [0; 64]).ok()
    };
    assert_eq!(talk("one"), Some(3));
    // a server that goes on by itself: nobody asks it any more
    let (server, client) = (
        inside(&lab.places[1], || UdpSocket::bind("10.9.0.3:53").unwrap()),
        inside(&lab.places[0], || UdpSocket::bind("10.9.0.2:5353").unwrap()),
    );
    client.set_read_timeout(wait).unwrap();
    client.send_to(b"ask", "10.9.0.3:53").unwrap();
    server.recv_from(&mut [0; 9]).unwrap();
    let push = || {
        server.send_to(b"news", "10.9.0.2:5353").unwrap();
        client.recv_from(&mut [0; 9]).ok().map(|(length, _)| length)
    };
    assert_eq!(push(), Some(4));

    // another rule leaves both alone
    lab.apply("deny", json!([allowed[0], {"from": {"app": "log"}}]));
    assert_eq!((talk("two"), push()), (Some(3), Some(4)));
    lab.apply(
        "deny",
        json!([{"from": {"app": "web"}, "to": {"app": "db"}, "ports": ["tcp/80"]}]),
    );
    assert_eq!((talk("three"), push()), (Some(5), None));
    lab.apply("deny", json!([]));
    assert_eq!((talk("four"), push()), (None, None));
    // what was sent meanwhile arrives when it may
    lab.apply("deny", allowed);
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    assert_eq!(stream.read(&mut [0; 64]).ok(), Some(4));
}

/// Rules are replaced over and over while somebody tries all the time.
#[test]
fn no_moment_without_rules() {
    let lab = Lab::new(json!([]));
    let server = inside(&lab.places[1], || UdpSocket::bind("10.9.0.3:53").unwrap());
    let client = inside(&lab.places[0], || UdpSocket::bind("10.9.0.2:5353").unwrap());
    let ended = std::sync::atomic::AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0u64;
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                sent += u64::from(client.send_to(b"x", "10.9.0.3:53").is_ok());
            }
            sent
        });
        for round in 0..60 {
            let (log, config) = &lab.calls[2];
            log.ok("policy", if round % 2 == 0 { "DEL" } else { "ADD" }, config);
            lab.apply(
                "deny",
                json!([{"from": {"app": "log"}, "ports": [format!("tcp/{}", round + 1)]}]),
            );
        }
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        sender.join().unwrap()
    });
    assert!(sent > 1000, "{sent}");
    server.set_nonblocking(true).unwrap();
    assert!(server.recv_from(&mut [0; 9]).is_err());
    // the way is there
    lab.apply("allow", json!([]));
    server.set_nonblocking(false).unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    client.send_to(b"now", "10.9.0.3:53").unwrap();
    assert!(server.recv_from(&mut [0; 9]).is_ok());
}

/// Sends one UDP packet to port 53 of db in a frame with a VLAN tag of number 0, which receivers take off.
const TAGGED: &str = r#"
import socket, struct, sys
me, peer = (bytes.fromhex(mac.replace(":", "")) for mac in sys.argv[1:3])
def total(data):
    value = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while value >> 16:
        value = (value & 0xffff) + (value >> 16)
    return ~value & 0xffff
payload = b"tagged"
udp = struct.pack("!HHHH", 7, 53, 8 + len(payload), 0) + payload
head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, bytes([10, 9, 0, 2]), bytes([10, 9, 0, 3]))
head = head[:10] + struct.pack("!H", total(head)) + head[12:]
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind(("eth0", 0))
out.send(peer + me + bytes.fromhex(sys.argv[3]) + bytes.fromhex("0800") + head + udp)
"#;

#[test]
fn no_way_around() {
    let lab = Lab::new(json!([{"from": {"app": "log"}, "to": {"app": "db"}}]));
    br_netfilter(false);
    let [web, db, log, _] = &lab.places;
    let server = inside(db, || UdpSocket::bind("[::]:53").unwrap());
    server
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let received = || {
        server
            .recv_from(&mut [0; 64])
            .ok()
            .map(|(length, _)| length)
    };
    let send = |place: &Path, from: &str, to: &str| {
        inside(place, || {
            let client = UdpSocket::bind(from).unwrap();
            let _ = client.send_to(b"x", to);
        });
    };
    send(log, "10.9.0.4:0", "10.9.0.3:53");
    assert_eq!(received(), Some(1), "what is allowed");
    send(log, "[fd09::4]:0", "[fd09::3]:53");
    assert_eq!(received(), Some(1), "what is allowed");
    send(web, "10.9.0.2:0", "10.9.0.3:53");
    assert_eq!(received(), None, "by the front door");

    // under another's name
    ip(web, &words("addr add 10.9.0.4/32 dev eth0"));
    ip(web, &words("-6 addr add fd09::4/128 dev eth0 nodad"));
    send(web, "10.9.0.4:0", "10.9.0.3:53");
    send(web, "[fd09::4]:0", "[fd09::3]:53");
    // under a name that nobody has
    ip(web, &words("addr add 10.9.0.77/32 dev eth0"));
    send(web, "10.9.0.77:0", "10.9.0.3:53");
    // by the address that everybody gives himself
    let links = common::ip_json(db, &words("-6 addr show dev eth0"));
    let entries = links.as_array().unwrap().iter();
    let local = entries
        .flat_map(|link| link["addr_info"].as_array().cloned().unwrap_or_default())
        .find(|address| address["scope"] == "link")
        .map(|address| address["local"].as_str().unwrap().to_owned())
        .unwrap();
    let index = common::ip_json(web, &words("link show dev eth0"))[0]["ifindex"].to_string();
    send(web, "[::]:0", &format!("[{local}%{index}]:53"));
    assert_eq!(received(), None);

    // in a frame with a tag
    if std::process::Command::new("python3")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("skipped: frames with a tag are sent by python3, which is not here");
        return;
    }
    let mac = |place: &Path| {
        let link = common::ip_json(place, &words("link show dev eth0"));
        link[0]["address"].as_str().unwrap().to_owned()
    };
    let tagged = |tag: &str| {
        let target = format!("--net={}", web.display());
        run(
            "nsenter",
            &[&target, "python3", "-c", TAGGED, &mac(web), &mac(db), tag],
        );
        received()
    };
    assert_eq!(tagged("81000000"), None);
    // the frames are good: without rules they arrive
    lab.apply("allow", json!([]));
    assert_eq!(tagged(""), Some(6));
    assert_eq!(tagged("81000000"), Some(6));
}

#[test]
fn tables_follow_the_files() {
    let lab = Lab::new(json!([{"from": {"app": "web"}, "to": {"app": "db"}}]));
    let (web, config) = &lab.calls[0];
    // sets and tables are listed in no order
    let rules = || {
        let text = common::rules();
        let (one, other) = text.split_at(text.find("\ntable").map_or(0, |at| at + 1));
        let mut sorted: Vec<String> = [one, other]
            .into_iter()
            .flat_map(|table| table.split([' ', '\n', '\t']))
            .map(|word| word.trim_end_matches(',').to_owned())
            .collect();
        sorted.sort();
        sorted.join(" ")
    };
    let whole = rules();
    // again is the same
    web.ok("policy", "ADD", config);
    assert_eq!(rules(), whole);
    let table = ["inet", "sampan_policy_net"];
    for (damage, msg) in [
        (
            "flush chain inet sampan_policy_net input",
            "missing rule in the nftables chain inet sampan_policy_net input",
        ),
        (
            "flush set inet sampan_policy_net pods_4",
            "the nftables set inet sampan_policy_net pods_4 is not what the pods of network net make it",
        ),
        (
            "delete table inet sampan_policy_net",
            "missing rule in the nftables chain inet sampan_policy_net forward",
        ),
    ] {
        run("nft", &words(damage));
        assert_eq!(web.err("policy", "CHECK", config)["msg"], msg);
        web.ok("policy", "ADD", config);
        web.ok("policy", "CHECK", config);
        assert_eq!(rules(), whole);
    }
    let mut other = config.clone();
    other["runtimeConfig"]["labels"]["app"] = json!("db");
    assert_eq!(
        web.err("policy", "CHECK", &other)["msg"],
        "the policy of network net does not know eth0 of container web as it is"
    );
    // DEL doesn't need rules that can be read, and doesn't bring old ones back
    let mut old = config.clone();
    old["rules"] = json!("nonsense");
    let (log, _) = &lab.calls[2];
    log.ok("policy", "DEL", &old);
    log.ok("policy", "DEL", &old);
    web.ok("policy", "CHECK", config);
    assert!(!rules().contains("10.9.0.4"));

    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] =
        json!([{"containerID": "web", "ifname": "eth0"}, {"containerID": "x", "ifname": "eth0"}]);
    web.ok("policy", "GC", &gc);
    assert!(rules().contains("10.9.0.2") && !rules().contains("10.9.0.3"));
    gc["cni.dev/valid-attachments"] = json!([]);
    web.ok("policy", "GC", &gc);
    web.ok("policy", "GC", &gc);
    assert!(!rules().contains(table[1]));
    assert!(!lab.host.temp.path().join("policy/net").exists());
    web.ok("policy", "DEL", config);
    // nobody is there: nothing to apply, nothing made
    lab.apply("allow", json!([]));
    assert!(!rules().contains(table[1]));
}

#[test]
fn refusals() {
    let host = Host::new();
    let call = Call::new("a", Path::new("/nowhere"));
    let before = host.snapshot();
    let previous = |interfaces: Value, ips: Value| json!({"cniVersion": "1.1.0", "interfaces": interfaces, "ips": ips, "dns": {}});
    let pod = json!([{"name": "eth0", "sandbox": "/ns"}]);
    for (previous, msg) in [
        (
            previous(pod.clone(), json!([])),
            "policy: interface eth0 has no address, by which packets are told apart",
        ),
        (
            previous(pod, json!([{"interface": 0, "address": "10.0.0.2/24"}])),
            "policy: interface eth0 is no end of a veth pair: what it sends doesn't pass the host's rules",
        ),
    ] {
        let error = call.err(
            "policy",
            "ADD",
            &with(&policy(&host, json!([])), "a", &previous),
        );
        assert_eq!((&error["code"], &error["msg"]), (&json!(7), &json!(msg)));
    }
    call.ok("policy", "STATUS", &policy(&host, json!([])));
    let mut broken = policy(&host, json!([]));
    broken["policyDir"] = json!("/nonexistent");
    assert_eq!(call.err("policy", "STATUS", &broken)["code"], 5);
    assert_eq!(host.snapshot(), before);
    assert!(!host.temp.path().join("policy").exists());
}

/// Where the host routes, there is no bridge to look into.
#[test]
fn routed_pods() {
    let mut host = Host::new();
    let (a, b) = (host.pod("a"), host.pod("b"));
    let mut ptp = bridge(&host);
    ptp["type"] = json!("ptp");
    let config = policy(&host, json!([{"from": {"app": "a"}, "to": {"app": "b"}}]));
    let calls = [("a", &a), ("b", &b)].map(|(name, pod)| {
        let call = Call::new(name, pod);
        let previous = call.ok("ptp", "ADD", &ptp);
        let config = with(&config, name, &previous);
        call.ok("policy", "ADD", &config);
        call.ok("policy", "CHECK", &config);
        (call, config)
    });
    serve(&a, "10.9.0.2:80");
    serve(&b, "10.9.0.3:80");
    assert_eq!(inside(&a, || ask("10.9.0.3:80")), "10.9.0.2");
    assert_eq!(inside(&b, || ask("10.9.0.2:80")), "error: TimedOut");
    for (call, config) in &calls {
        call.ok("policy", "DEL", config);
    }
    assert!(!rules().contains("sampan_policy"));
    assert_eq!(inside(&b, || ask("10.9.0.2:80")), "10.9.0.3");
}

/// Who may say where packets go is a matter of the rules; neighbours and groups are not.
#[test]
fn of_icmpv6_only_what_cannot_be_done_without() {
    let lab = Lab::new(json!([]));
    let text = rules();
    let mut kinds: Vec<&str> = text
        .lines()
        .filter_map(|line| Some(&line[line.find("icmpv6 type")?..]))
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            "icmpv6 type 130-133 accept",
            "icmpv6 type 135-136 accept",
            "icmpv6 type 143-143 accept"
        ]
    );
    drop(lab);
}
