//! Networks of pods with real servers, driven from outside. Needs root, images of `images/`, and the Debian packages
//! containernetworking-plugins, iproute2, iptables, nftables and util-linux.

#[path = "../pod_support/mod.rs"]
mod pod_support;

mod drivers;
mod live;
mod names;
mod traffic;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use pod_support::{BUSYBOX, Host, tool, until};
use serde_json::Value;

/// `GET PATH` over a fresh connection: status and body.
pub fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: test\r\nAccept: application/json\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok((status.unwrap_or(0), body.to_string()))
}

/// An address with a port.
pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Body of the front page of a server that is up.
#[track_caller]
pub fn page(ip: &str, port: u16) -> String {
    let (status, body) = until(&format!("{ip}:{port} answers"), || {
        get(at(ip, port), "/").ok()
    });
    assert_eq!(status, 200, "{body}");
    body
}

/// Nobody answers there.
#[track_caller]
pub fn unreachable(ip: &str, port: u16) {
    let answer = get(at(ip, port), "/");
    assert!(answer.is_err(), "{ip}:{port} answers {answer:?}");
}

/// What ip(8) says in the network namespace of a service.
#[track_caller]
pub fn inside(host: &Host, service: &str, arguments: &[&str]) -> Value {
    let pid = host.row(service)["pid"].to_string();
    let mut all = vec!["-t", &pid, "-n", "ip", "-j"];
    all.extend(arguments);
    serde_json::from_str(&tool("nsenter", &all)).unwrap()
}

/// Name and IPv4 address of each interface but the loopback, sorted.
#[track_caller]
pub fn addresses(host: &Host, service: &str) -> Vec<(String, String)> {
    let links = inside(host, service, &["-4", "addr"]);
    let mut all: Vec<(String, String)> = links
        .as_array()
        .unwrap()
        .iter()
        .filter(|link| link["ifname"] != "lo")
        .flat_map(|link| {
            let name = link["ifname"].as_str().unwrap().to_string();
            let infos = link["addr_info"].as_array().unwrap().iter();
            infos.map(move |info| {
                let ip = info["local"].as_str().unwrap();
                (name.clone(), format!("{ip}/{}", info["prefixlen"]))
            })
        })
        .collect();
    all.sort();
    all
}

/// Interfaces of the default routes.
#[track_caller]
pub fn defaults(host: &Host, service: &str) -> Vec<String> {
    let routes = inside(host, service, &["-4", "route"]);
    let of_all = routes.as_array().unwrap().iter();
    of_all
        .filter(|route| route["dst"] == "default")
        .map(|route| route["dev"].as_str().unwrap().to_string())
        .collect()
}

/// A host with networks in use: its snapshot without timers, counters and what the kernel is still settling.
pub fn steady(host: &Host) -> Vec<String> {
    let line = |line: String| -> Option<String> {
        match line.split(' ').next()? {
            "mount" | "cgroup" | "process" | "file" if !line.contains("last_reserved_ip") => {
                Some(line)
            }
            // link NUMBER: NAME
            "link" => Some(line.split(' ').take(3).collect::<Vec<_>>().join(" ")),
            "address" if !line.contains(" inet6 ") => Some(line),
            _ => None,
        }
    };
    host.snapshot().into_iter().filter_map(line).collect()
}

/// The host comes to be as it was before.
#[track_caller]
pub fn assert_steady(host: &Host, before: &[String]) {
    until(&format!("the host is as it was: {before:#?}"), || {
        (steady(host) == before).then_some(())
    });
}

/// Owned pairs.
pub fn pairs(wanted: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = wanted.iter().map(|(a, b)| (a.to_string(), b.to_string()));
    own.collect()
}

/// A web server that says one word.
pub fn server(word: &str) -> String {
    format!(
        "    image: {BUSYBOX}
    command: [sh, -c, 'mkdir /www; echo -n {word} > /www/index.html; exec httpd -f -p 80 -h /www']
    stop_grace_period: 0s
"
    )
}

/// First address of a network, which is the bridge's.
pub fn gateway(network: &str) -> String {
    let ip: IpAddr = network.split('/').next().unwrap().parse().unwrap();
    let IpAddr::V4(ip) = ip else {
        panic!("{network}")
    };
    let [a, b, c, _] = ip.octets();
    format!("{a}.{b}.{c}.1")
}

/// What an echo answers.
pub fn ask_udp(ip: &str, port: u16) -> std::io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(at(ip, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send(b"hello")?;
    let mut buffer = [0; 100];
    let count = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}
