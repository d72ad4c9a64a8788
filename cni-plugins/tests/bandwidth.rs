//! `bandwidth` as a process: real bytes, counted, and what tc(8) says of it.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Call, Host, REFERENCE, inside, ip, run};
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

fn bandwidth(previous: &Value, change: Value) -> Value {
    let mut config =
        json!({"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "prevResult": previous});
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

struct Lab {
    host: Host,
    pod: PathBuf,
    call: Call,
    previous: Value,
}

fn lab() -> Lab {
    let mut host = Host::new();
    let pod = host.pod("a");
    let call = Call::new("a", &pod);
    let previous = call.ok("bridge", "ADD", &bridge(&host));
    Lab {
        host,
        pod,
        call,
        previous,
    }
}

/// What is left besides the bridge: queues, filters and interfaces.
fn traffic_control() -> String {
    let links = run("ip", &["-o", "link"]);
    links
        .lines()
        .filter(|line| line.contains("ifb") || line.contains("tbf") || line.contains("clsact"))
        .collect()
}

/// Bytes that arrive in `time`, between two threads of which one is inside the pod. A second TCP connection isn't needed:
/// what counts is what the receiver has read.
fn received(pod: &Path, address: &str, into_pod: bool, time: Duration) -> (u64, f64) {
    let accept = |listener: TcpListener| listener.accept().unwrap().0;
    let listener = inside(pod, || TcpListener::bind(address).unwrap());
    let target = listener.local_addr().unwrap();
    let client = TcpStream::connect(target).unwrap();
    let server = accept(listener);
    let (mut sender, mut receiver) = if into_pod {
        (client, server)
    } else {
        (server, client)
    };
    sender
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let sending = scope.spawn(move || {
            let bytes = vec![7; 16 << 10];
            while begin.elapsed() < time {
                let _ = sender.write(&bytes);
            }
        });
        let mut bytes = vec![0; 64 << 10];
        let mut total = 0;
        while begin.elapsed() < time {
            match receiver.read(&mut bytes).unwrap() {
                0 => break,
                length => total += length as u64,
            }
        }
        let took = begin.elapsed().as_secs_f64();
        drop(receiver);
        sending.join().unwrap();
        (total, took)
    })
}

/// Bytes per second.
const RATE: u64 = 1_000_000;
const BURST: u64 = 20_000;

/// Never more than the rate allows; and at least 90 % of it, for which a busy machine has a few tries.
fn holds(pod: &Path, address: &str, into_pod: bool) {
    for attempt in 1.. {
        let (bytes, seconds) = received(pod, address, into_pod, Duration::from_secs(2));
        let most = RATE as f64 * seconds * 1.1 + BURST as f64;
        assert!(
            (bytes as f64) < most,
            "{address} {into_pod}: {bytes} bytes in {seconds} s"
        );
        if bytes as f64 > RATE as f64 * seconds * 0.9 {
            return;
        }
        assert!(
            attempt < 5,
            "{address} {into_pod}: only {bytes} bytes in {seconds} s"
        );
    }
}

/// Much more than the rate allows.
fn is_free(pod: &Path, address: &str, into_pod: bool) {
    let (bytes, seconds) = received(pod, address, into_pod, Duration::from_millis(500));
    assert!(
        bytes as f64 > RATE as f64 * seconds * 3.0,
        "{address} {into_pod}: {bytes} bytes in {seconds} s"
    );
}

fn limits() -> Value {
    json!({
        "ingressRate": RATE * 8, "ingressBurst": BURST * 8, "egressRate": RATE * 8, "egressBurst": BURST * 8
    })
}

#[test]
fn both_ways_hold() {
    let lab = lab();
    is_free(&lab.pod, "10.9.0.2:0", true);
    let config = bandwidth(
        &lab.previous,
        json!({"runtimeConfig": {"bandwidth": limits()}}),
    );
    let result = lab.call.ok("bandwidth", "ADD", &config);
    let ifb = &result["interfaces"][3];
    let mut expected = lab.previous.clone();
    expected["interfaces"]
        .as_array_mut()
        .unwrap()
        .push(ifb.clone());
    assert_eq!(result, expected);
    let link = common::host_json(&["link", "show", "dev", ifb["name"].as_str().unwrap()]);
    assert_eq!(
        (&link[0]["address"], &link[0]["ifalias"]),
        (&ifb["mac"], &json!("net a eth0"))
    );
    lab.call.ok("bandwidth", "CHECK", &config);
    for address in ["10.9.0.2:0", "[fd09::2]:0"] {
        for into_pod in [true, false] {
            holds(&lab.pod, address, into_pod);
        }
    }
    lab.call.ok("bandwidth", "DEL", &config);
    lab.call.ok("bandwidth", "DEL", &config);
    assert_eq!(traffic_control(), "");
    is_free(&lab.pod, "10.9.0.2:0", true);
    is_free(&lab.pod, "10.9.0.2:0", false);
}

#[test]
fn subnets() {
    for (key, networks, limited, free) in [
        (
            "shapedSubnets",
            json!(["10.7.0.0/16", "fd07::/16"]),
            ["10.7.0.1", "fd07::1"],
            ["10.8.0.1", "fd08::1"],
        ),
        (
            "unshapedSubnets",
            json!(["10.8.0.0/16", "fd08::/16"]),
            ["10.7.0.1", "fd07::1"],
            ["10.8.0.1", "fd08::1"],
        ),
    ] {
        let lab = lab();
        for address in limited.iter().chain(&free) {
            let prefix = if address.contains(':') { 128 } else { 32 };
            run(
                "ip",
                &["addr", "add", &format!("{address}/{prefix}"), "dev", "lo"],
            );
        }
        let mut change = limits();
        change[key] = networks;
        let config = bandwidth(&lab.previous, change);
        assert_eq!(
            lab.call.ok("bandwidth", "ADD", &config)["interfaces"]
                .as_array()
                .unwrap()
                .len(),
            5
        );
        lab.call.ok("bandwidth", "CHECK", &config);
        // the pod asks an address of the host, which says who the other side is
        let ask = |address: &str, into_pod: bool| {
            let target = match address.contains(':') {
                true => format!("[{address}]:0"),
                false => format!("{address}:0"),
            };
            received_from_host(&lab.pod, &target, into_pod)
        };
        for into_pod in [true, false] {
            for address in limited {
                let (bytes, seconds) = ask(address, into_pod);
                let most = RATE as f64 * seconds * 1.1 + BURST as f64;
                assert!(
                    (bytes as f64) < most,
                    "{key} {address} {into_pod}: {bytes} in {seconds}"
                );
                assert!(
                    bytes as f64 > most / 2.0,
                    "{key} {address} {into_pod}: {bytes} in {seconds}"
                );
            }
            for address in free {
                let (bytes, seconds) = ask(address, into_pod);
                assert!(
                    bytes as f64 > RATE as f64 * seconds * 3.0,
                    "{key} {address} {into_pod}: {bytes} in {seconds}"
                );
            }
        }
        lab.call.ok("bandwidth", "DEL", &config);
        assert_eq!(traffic_control(), "");
    }
}

/// As [`received`], with the listener on the host.
fn received_from_host(pod: &Path, address: &str, into_pod: bool) -> (u64, f64) {
    let listener = TcpListener::bind(address).unwrap();
    let target = listener.local_addr().unwrap();
    let client = inside(pod, || TcpStream::connect(target).unwrap());
    let server = listener.accept().unwrap().0;
    let (mut sender, mut receiver) = if into_pod {
        (server, client)
    } else {
        (client, server)
    };
    sender
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let time = Duration::from_secs(1);
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let sending = scope.spawn(move || {
            let bytes = vec![7; 16 << 10];
            while begin.elapsed() < time {
                let _ = sender.write(&bytes);
            }
        });
        let (mut bytes, mut total) = (vec![0; 64 << 10], 0);
        while begin.elapsed() < time {
            match receiver.read(&mut bytes).unwrap() {
                0 => break,
                length => total += length as u64,
            }
        }
        let took = begin.elapsed().as_secs_f64();
        drop(receiver);
        sending.join().unwrap();
        (total, took)
    })
}

/// The same rates and bursts in the kernel as the reference plugin's.
#[test]
fn queues_are_those_of_the_reference() {
    let queues = |plugin: &str| {
        let lab = lab();
        let mut config = bandwidth(&lab.previous, limits());
        config["cniVersion"] = json!("1.0.0");
        config["prevResult"]["cniVersion"] = json!("1.0.0");
        lab.call.ok(plugin, "ADD", &config);
        let text = run("tc", &["qdisc", "show"]);
        let mut found: Vec<String> = text
            .lines()
            .filter(|line| line.contains(" tbf "))
            .map(|line| line[line.find("rate").unwrap()..].to_owned())
            .collect();
        found.sort();
        drop(lab.host);
        found
    };
    let ours = queues("bandwidth");
    assert_eq!(ours.len(), 2);
    assert_eq!(ours, queues(&format!("{REFERENCE}/bandwidth")));
}

#[test]
fn check_and_garbage() {
    let lab = lab();
    let config = bandwidth(&lab.previous, limits());
    let result = lab.call.ok("bandwidth", "ADD", &config);
    let ifb = result["interfaces"][3]["name"].as_str().unwrap().to_owned();
    let port = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    let damaged = |args: &[&str], msg: String| {
        run("tc", args);
        assert_eq!(
            lab.call.err("bandwidth", "CHECK", &config),
            json!({"cniVersion": "1.1.0", "code": 100, "msg": msg, "details": ""})
        );
        lab.call.ok("bandwidth", "DEL", &config);
        lab.call.ok("bandwidth", "ADD", &config);
        lab.call.ok("bandwidth", "CHECK", &config);
    };
    let limited = |name: &str| {
        format!("interface {name} is not limited to 1000000 bytes per second with a burst of 20000")
    };
    damaged(&["qdisc", "del", "dev", &port, "root"], limited(&port));
    damaged(
        &[
            "qdisc", "replace", "dev", &ifb, "root", "tbf", "rate", "9mbit", "burst", "20000",
            "latency", "25ms",
        ],
        limited(&ifb),
    );
    damaged(
        &["filter", "del", "dev", &port, "ingress"],
        format!("packets of {port} do not go by {ifb}"),
    );
    damaged(
        &["qdisc", "del", "dev", &port, "clsact"],
        format!("packets of {port} do not go by {ifb}"),
    );

    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    // one of somebody else, and one whose ADD was killed
    run("ip", &["link", "add", "ifb7", "type", "ifb"]);
    run("ip", &["link", "add", "ifb0123456789e", "type", "ifb"]);
    lab.call.ok("bandwidth", "GC", &gc);
    let names = || {
        let links = run("ip", &["-br", "link", "show", "type", "ifb"]);
        let mut names: Vec<String> = links
            .lines()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let mut both = vec!["ifb7".to_owned(), ifb];
    both.sort();
    assert_eq!(names(), both);
    lab.call.ok("bandwidth", "CHECK", &config);
    gc["cni.dev/valid-attachments"] = json!([]);
    lab.call.ok("bandwidth", "GC", &gc);
    assert_eq!(names(), ["ifb7"]);
    // the namespace is gone, and with it the other end
    lab.call.ok("bandwidth", "STATUS", &config);
    let mut elsewhere = config.clone();
    elsewhere["prevResult"]["interfaces"] = json!([{"name": "eth0", "sandbox": "/ns"}]);
    assert_eq!(
        lab.call.err("bandwidth", "ADD", &elsewhere)["msg"],
        "bandwidth: interface eth0 is no end of a veth pair, of which the host's end is limited"
    );
    lab.call.ok("bandwidth", "DEL", &elsewhere);
    ip(&lab.pod, &["link", "show", "eth0"]);
}
