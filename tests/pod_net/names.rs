//! The resolver of a pod: with real clients, with octets of our own, and with a server of the host that counts what it
//! is asked.

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

/// What a server of the host was asked, by UDP and by TCP.
type Asked = Arc<Mutex<Vec<String>>>;

/// Name in the first question of a message.
fn asked_name(bytes: &[u8]) -> String {
    let mut labels = Vec::new();
    let mut at = 12;
    while let Some(length) = bytes.get(at).map(|l| usize::from(*l)).filter(|l| *l > 0) {
        labels.push(String::from_utf8_lossy(&bytes[at + 1..at + 1 + length]).into_owned());
        at += length + 1;
    }
    labels.join(".")
}

/// Answers every question for an address with 192.0.2.1, one for `long.test` by UDP with nothing but the mark that it
/// was cut.
fn answer(query: &[u8], udp: bool) -> Vec<u8> {
    let mut end = 12;
    while query[end] != 0 {
        end += usize::from(query[end]) + 1;
    }
    let question = &query[12..end + 5];
    let is_a = question[question.len() - 4..] == [0, 1, 0, 1];
    let cut = udp && asked_name(query) == "long.test";
    let count = u8::from(is_a && !cut);
    let flags = if cut { 0x83 } else { 0x81 };
    let mut out = vec![query[0], query[1], flags, 0x80, 0, 1, 0, count, 0, 0, 0, 0];
    out.extend_from_slice(question);
    if count > 0 {
        out.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x01");
    }
    out
}

/// The host's `/etc/resolv.conf` names a server that the test itself is.
fn host_server(host: &Host) -> Asked {
    let file = host.path().join("resolv.conf");
    fs::write(&file, "nameserver 127.0.0.1\nsearch example.test\n").unwrap();
    let none = None::<&str>;
    mount(
        Some(&file),
        "/etc/resolv.conf",
        none,
        MsFlags::MS_BIND,
        none,
    )
    .unwrap();
    let asked = Asked::default();
    let udp = UdpSocket::bind("127.0.0.1:53").unwrap();
    let of_udp = asked.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            of_udp.lock().unwrap().push(asked_name(&buffer[..length]));
            let _ = udp.send_to(&answer(&buffer[..length], true), from);
        }
    });
    let tcp = TcpListener::bind("127.0.0.1:53").unwrap();
    let of_tcp = asked.clone();
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let mut length = [0; 2];
            if stream.read_exact(&mut length).is_err() {
                continue;
            }
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            let _ = stream.read_exact(&mut query);
            of_tcp
                .lock()
                .unwrap()
                .push(format!("tcp {}", asked_name(&query)));
            let reply = answer(&query, false);
            let _ = stream.write_all(&(reply.len() as u16).to_be_bytes());
            let _ = stream.write_all(&reply);
        }
    });
    asked
}

/// Runs in the network namespace of a pod.
fn in_pod<T: Send>(host: &Host, pod: &str, work: impl FnOnce() -> T + Send) -> T {
    let netns = fs::File::open(host.state.join("pods").join(pod).join("netns")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut out = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    out
}

fn socket(server: &str) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect((server, 53)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    socket
}

/// The reply to a question, asked again while nobody answers.
fn ask(server: &str, question: &[u8]) -> Vec<u8> {
    let socket = socket(server);
    until("a reply", || {
        socket.send(question).ok()?;
        let mut buffer = [0; 2000];
        let length = socket.recv(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    })
}

/// Response code and number of answers.
fn outcome(reply: &[u8]) -> (u8, u8) {
    (reply[3] & 15, reply[7])
}

fn by_tcp(server: &str, question: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect((server, 53)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream
        .write_all(&(question.len() as u16).to_be_bytes())
        .unwrap();
    stream.write_all(question).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).unwrap();
    reply
}

const A: u16 = 1;
const AAAA: u16 = 28;
const PTR: u16 = 12;

/// Two pods on one network, the second one also on an IPv6 network and with names of all kinds.
fn two_pods(host: &Host) {
    let sleep =
        format!("    image: {BUSYBOX}\n    command: [sleep, '1000']\n    stop_grace_period: 0s\n");
    host.write(
        "one.yaml",
        format!(
            "name: one\nservices:\n  client:\n{sleep}    networks: [lan]\n  own:\n{sleep}    networks: {{lan: {{aliases: [mine]}}}}\nnetworks: {{lan: {{name: shared, enable_ipv6: true, ipam: {{config: [{{subnet: 10.95.1.0/24}}, {{subnet: 'fd95:1::/64'}}]}}}}}}\n"
        ),
    );
    host.write(
        "two.yaml",
        format!(
            "name: two\nservices:\n  web:\n{}    networks: {{net: {{aliases: [www], ipv4_address: 10.95.1.77, ipv6_address: 'fd95:1::77'}}}}\n    container_name: site\n  db:\n{sleep}    networks: [private]\nnetworks:\n  net: {{name: shared, enable_ipv6: true, ipam: {{config: [{{subnet: 10.95.1.0/24}}, {{subnet: 'fd95:1::/64'}}]}}}}\n  private: {{internal: true}}\n",
            server("two")
        ),
    );
    for pod in ["one", "two"] {
        host.sampan(&["-f", &format!("{pod}.yaml"), "up", "-d"])
            .ok();
    }
}

fn exec(host: &Host, pod: &str, service: &str, script: &str) -> pod_support::Ended {
    host.sampan(&["-p", pod, "exec", service, "sh", "-c", script])
}

#[test]
fn pods_find_each_other_and_the_rest() {
    let host = Host::new();
    let asked = host_server(&host);
    let before = host.snapshot();
    two_pods(&host);
    let conf = exec(&host, "one", "client", "cat /etc/resolv.conf").ok();
    assert_eq!(
        conf,
        "nameserver 127.0.0.11\nsearch example.test\noptions ndots:0\n"
    );
    // nslookup of busybox tries the search domain first, whatever the options say, but not with the last dot
    // a real client, over the resolver's names to a real server
    for name in ["web", "www", "site", "two", "web.two", "web.shared", "WEB"] {
        let got = exec(
            &host,
            "one",
            "client",
            &format!("wget -q -O - http://{name}/"),
        );
        assert_eq!(got.ok(), "two", "{name}");
        let looked = exec(&host, "one", "client", &format!("nslookup {name}.")).ok();
        assert!(looked.contains("10.95.1.77"), "{looked}");
        assert!(looked.to_lowercase().contains("fd95:1::77"), "{looked}");
    }
    let pinged = exec(&host, "one", "client", "ping -6 -c 1 -W 5 www");
    pinged.ok();
    let back = exec(&host, "one", "client", "nslookup 10.95.1.77").ok();
    assert!(back.contains("two"), "{back}");
    assert_eq!(
        *asked.lock().unwrap(),
        [""; 0],
        "nothing of this is asked elsewhere"
    );
    in_pod(&host, "one", || {
        // name, type; code and number of answers
        for (name, kind, expected) in [
            ("own", A, (0, 1)),
            ("own", AAAA, (0, 0)),
            ("mine", A, (0, 1)),
            ("www", A, (0, 1)),
            ("www", AAAA, (0, 1)),
            ("www", 16, (0, 0)),
            ("77.1.95.10.in-addr.arpa", PTR, (0, 4)),
        ] {
            let query = question(name, kind);
            assert_eq!(
                outcome(&ask("127.0.0.11", &query)),
                expected,
                "{name} {kind}"
            );
            assert_eq!(
                outcome(&by_tcp("127.0.0.11", &query)),
                expected,
                "{name} {kind}"
            );
        }
        // a service of a network that is not shared is somebody else's to know
        for name in ["db", "example.org"] {
            let reply = ask("127.0.0.11", &question(name, A));
            assert_eq!(outcome(&reply), (0, 1), "{name}");
            assert!(reply.ends_with(&[192, 0, 2, 1]), "{name}");
        }
        // too long for a datagram: the mark comes through, and the whole by TCP
        let query = question("long.test", A);
        assert_eq!(ask("127.0.0.11", &query)[2] & 2, 2);
        assert_eq!(outcome(&by_tcp("127.0.0.11", &query)), (0, 1));
    });
    let mut names = asked.lock().unwrap().clone();
    names.dedup();
    assert_eq!(names, ["db", "example.org", "long.test", "tcp long.test"]);
    // whoever is gone is not found, and asked for elsewhere
    host.sampan(&["-p", "two", "down", "-v"]).ok();
    in_pod(&host, "one", || {
        assert!(ask("127.0.0.11", &question("www", A)).ends_with(&[192, 0, 2, 1]));
    });
    host.sampan(&["-p", "one", "down", "-v"]).ok();
    host.assert_clean(&before);
}

#[test]
fn an_internal_pod_asks_nobody() {
    let host = Host::new();
    let asked = host_server(&host);
    let before = host.snapshot();
    host.compose(&format!(
        "services:
  web:
{}
  own:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_grace_period: 0s
    dns: 127.0.0.1
networks: {{default: {{internal: true}}}}
",
        server("web")
    ));
    host.sampan(&["up", "-d"]).ok();
    let pod = host.name.clone();
    in_pod(&host, &pod, || {
        for name in ["example.org", "secret.lan", "1.2.0.192.in-addr.arpa"] {
            for kind in [A, AAAA, PTR, 16] {
                let query = question(name, kind);
                assert_eq!(outcome(&ask("127.0.0.11", &query)), (3, 0), "{name}");
                assert_eq!(outcome(&by_tcp("127.0.0.11", &query)), (3, 0), "{name}");
            }
        }
        assert_eq!(outcome(&ask("127.0.0.11", &question("web", A))), (0, 1));
    });
    // servers that a service names itself are asked from the pod: there is none at its loopback, but one at the host's
    let looked = exec(&host, &pod, "own", "nslookup example.org");
    assert_ne!(looked.code, 0, "{looked:#?}");
    assert_eq!(*asked.lock().unwrap(), [""; 0]);
    host.down(&before);
}

#[test]
fn hostile_octets_and_a_killed_supervisor() {
    let host = Host::new();
    let asked = host_server(&host);
    let before = host.snapshot();
    host.compose(&format!("services:\n  web:\n{}", server("web")));
    host.sampan(&["up", "-d"]).ok();
    let pod = host.name.clone();
    let supervisor = || -> i32 {
        let text = fs::read(host.pod().join("supervisor.json")).unwrap();
        let record: Value = serde_json::from_slice(&text).unwrap();
        record["pid"].as_i64().unwrap() as i32
    };
    let first = supervisor();
    in_pod(&host, &pod, || {
        let mut random = fastrand::Rng::with_seed(53);
        let socket = socket("127.0.0.11");
        let valid = question("example.org", A);
        for round in 0..20_000 {
            let mut bytes = match round % 3 {
                0 => (0..random.usize(0..600)).map(|_| random.u8(..)).collect(),
                _ => valid.clone(),
            };
            // true questions with octets changed or cut off
            if round % 3 > 0 {
                for _ in 0..random.usize(1..4) {
                    let at = random.usize(..bytes.len());
                    bytes[at] = random.u8(..);
                }
                bytes.truncate(random.usize(..bytes.len() + 1));
            }
            let _ = socket.send(&bytes);
        }
        // connections that say nothing, half of something, and too much
        let streams: Vec<_> = (0..100u8)
            .filter_map(|i| {
                let mut stream = TcpStream::connect("127.0.0.11:53").ok()?;
                let _ = stream.write_all(&[i; 40][..usize::from(i % 40)]);
                Some(stream)
            })
            .collect();
        drop(streams);
        assert_eq!(outcome(&ask("127.0.0.11", &question("web", A))), (0, 1));
    });
    assert_eq!(supervisor(), first, "nothing ended it");
    asked.lock().unwrap().clear();
    // its successor answers; who asks meanwhile asks again
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    in_pod(&host, &pod, || {
        assert_eq!(outcome(&ask("127.0.0.11", &question("web", A))), (0, 1));
        assert_eq!(
            outcome(&ask("127.0.0.11", &question("example.org", A))),
            (0, 1)
        );
    });
    assert_ne!(supervisor(), first);
    host.down(&before);
}

#[test]
fn a_pod_with_a_server_of_its_own_keeps_the_port() {
    let host = Host::empty();
    host.import("python-app");
    let _asked = host_server(&host);
    let before = host.snapshot();
    let code = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((\"\", 53)); t = socket.create_server((\"\", 53)); print(\"ready\", flush=True)\\nwhile True: d, a = s.recvfrom(9999); s.sendto(d, a)";
    host.compose(&format!(
        "services:\n  dns:\n    image: localhost/python-app\n    entrypoint: [python3, -c, \"{}\"]\n    expose: ['53/udp']\n    user: root\n    dns: 127.0.0.1\n    stop_grace_period: 0s\n",
        code.replace('"', "\\\"")
    ));
    host.sampan(&["up", "-d"]).ok();
    host.await_log("dns", "ready");
    let pod = host.name.clone();
    let conf = host
        .sampan(&["exec", "dns", "cat", "/etc/resolv.conf"])
        .ok();
    assert!(conf.starts_with("nameserver 127.0.0.1\n"), "{conf}");
    in_pod(&host, &pod, || {
        let query = question("own", A);
        assert_eq!(
            ask("127.0.0.1", &query),
            query,
            "the service itself answers"
        );
    });
    host.down(&before);
}

/// The C library of a real distribution, through the same resolver.
#[test]
fn another_client_and_servers_of_a_service() {
    let host = Host::empty();
    host.import("python-app");
    let asked = host_server(&host);
    let before = host.snapshot();
    host.compose(
        "services:
  app:
    image: localhost/python-app
    entrypoint: [sleep, '1000']
    stop_grace_period: 0s
    networks: {default: {aliases: [mine]}}
  other:
    image: localhost/python-app
    entrypoint: [sleep, '1000']
    stop_grace_period: 0s
    dns: 10.99.0.1
    dns_search: [lan.test]
networks: {default: {ipam: {config: [{subnet: 10.99.0.0/24}]}}}
",
    );
    host.sampan(&["up", "-d"]).ok();
    let look = |service: &str, name: &str| {
        let code = "import socket,sys; print(sorted({a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80)}))";
        let found = host.sampan(&["exec", service, "python3", "-c", code, name]);
        found.out().trim().to_string()
    };
    assert_eq!(look("app", "mine"), "['127.0.0.1']");
    assert_eq!(look("app", "example.org"), "['192.0.2.1']");
    let conf = host
        .sampan(&["exec", "other", "cat", "/etc/resolv.conf"])
        .ok();
    assert_eq!(
        conf,
        "nameserver 127.0.0.12\nsearch lan.test\noptions ndots:0\n"
    );
    // its own server is asked from the pod, where the bridge's address leads to the host
    let server = UdpSocket::bind("10.99.0.1:53").unwrap();
    let of_server = asked.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            let line = format!("{} {}", from.ip(), asked_name(&buffer[..length]));
            of_server.lock().unwrap().push(line);
            let _ = server.send_to(&answer(&buffer[..length], true), from);
        }
    });
    asked.lock().unwrap().clear();
    assert_eq!(look("other", "own.test"), "['192.0.2.1']");
    let seen = asked.lock().unwrap().clone();
    assert!(
        !seen.is_empty() && seen.iter().all(|line| line == "10.99.0.2 own.test"),
        "{seen:?}"
    );
    host.down(&before);
}
