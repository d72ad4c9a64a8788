//! Real pods on one and several networks: what reaches them, and what they reach.

use std::net::TcpListener;
use std::process::Command;

use serde_json::{Value, json};

use super::*;
use crate::pod_support::run;

/// Where Debian's package puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

#[test]
fn a_real_pod_is_one_host_on_two_networks() {
    let host = Host::empty();
    for image in ["redis", "nginx", "python-app"] {
        host.import(image);
    }
    host.write(
        "nginx.conf",
        "server { listen 80 default_server; location / { proxy_pass http://app:8000; } }\n",
    );
    host.compose(
        "services:
  web:
    image: localhost/nginx
    ports: ['18090:80']
    volumes: ['./nginx.conf:/etc/nginx/conf.d/default.conf:ro']
    networks: {front: {ipv4_address: 10.91.1.10}}
    depends_on: {app: {condition: service_healthy}}
    mem_limit: 64m
  app:
    image: localhost/python-app
    environment: {REDIS_HOST: redis}
    networks: [front, back]
    healthcheck: {interval: 500ms}
    depends_on: {redis: {condition: service_healthy}}
  redis:
    image: localhost/redis
    networks: {back: {ipv4_address: 10.91.2.10}}
    healthcheck: {interval: 500ms}
    volumes: ['data:/data']
networks:
  front: {ipam: {config: [{subnet: 10.91.1.0/24, gateway: 10.91.1.1}]}}
  back: {internal: true, ipam: {config: [{subnet: 10.91.2.0/24}]}}
volumes: {data: }
",
    );
    let before = host.snapshot();
    let mut count = 0;
    let check = |count: &mut u64| {
        for service in ["web", "app", "redis"] {
            let found = addresses(&host, service);
            let ips: Vec<&str> = found.iter().map(|(_, ip)| ip.as_str()).collect();
            assert_eq!(ips.len(), 2, "{service}: {found:?}");
            assert!(
                ips.contains(&"10.91.1.10/24") && ips.contains(&"10.91.2.10/24"),
                "{found:?}"
            );
            let front = &found
                .iter()
                .find(|(_, ip)| ip == "10.91.1.10/24")
                .unwrap()
                .0;
            assert_eq!(
                defaults(&host, service),
                std::slice::from_ref(front),
                "{service}"
            );
            let mut shown = host.row(service)["addresses"].as_array().unwrap().clone();
            shown.sort_by_key(ToString::to_string);
            assert_eq!(shown, [json!("10.91.1.10/24"), json!("10.91.2.10/24")]);
        }
        for ip in ["127.0.0.1", "10.91.1.1"] {
            let body = page(ip, 18090);
            let answer: Value = serde_json::from_str(&body).unwrap();
            *count += 1;
            assert_eq!(answer["count"], *count);
        }
        // every name is the pod itself, and so is localhost
        for name in ["redis", "app", "web", "localhost"] {
            let hosts = host.sampan(&["exec", "app", "cat", "/etc/hosts"]).ok();
            assert!(
                hosts
                    .lines()
                    .any(|line| line.split_whitespace().any(|word| word == name)),
                "{name}: {hosts}"
            );
            let ping = host.sampan(&["exec", "redis", "redis-cli", "-h", name, "ping"]);
            assert_eq!(ping.ok(), "PONG\n", "{name}");
        }
        let code =
            "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)";
        for (name, port) in [("redis", "6379"), ("web", "80"), ("localhost", "8000")] {
            host.sampan(&["exec", "app", "python3", "-c", code, name, port])
                .ok();
        }
    };
    host.sampan(&["up", "-d", "--wait"]).ok();
    check(&mut count);
    host.sampan(&["restart"]).ok();
    host.await_row("app", "health", "healthy");
    until("the restarted web server answers", || {
        let (status, body) = get(at("127.0.0.1", 18090), "/").ok()?;
        let answer: Value = serde_json::from_str(&body).ok()?;
        count = answer["count"].as_u64()?;
        (status == 200).then_some(())
    });
    check(&mut count);
    host.sampan(&["down"]).ok();
    unreachable("127.0.0.1", 18090);
    unreachable("10.91.1.1", 18090);
    host.sampan(&["up", "-d", "--wait"]).ok();
    // redis saved its data in the volume when it was asked to end
    check(&mut count);
    host.down(&before);
    unreachable("127.0.0.1", 18090);
}

#[test]
fn ports_tcp_udp_and_ephemeral() {
    let host = Host::new();
    host.import("python-app");
    let before = host.snapshot();
    let echo = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((\"\", 5300)); print(\"ready\", flush=True)\\nwhile True: d, a = s.recvfrom(9999); s.sendto(b\"echo \" + d, a)";
    host.compose(&format!(
        "services:
  web:
{}    ports: ['80', '127.0.0.1:18091:80', '18092:80/tcp']
  udp:
    image: localhost/python-app
    entrypoint: [python3, -c, \"{}\"]
    stop_grace_period: 0s
    ports: ['18093:5300/udp']
",
        server("web"),
        echo.replace('"', "\\\"")
    ));
    host.sampan(&["up", "-d"]).ok();
    host.await_log("udp", "ready");
    let ports = host.row("web")["ports"].clone();
    let mapping = |i: usize| ports[i]["mapping"].clone();
    assert_eq!(ports.as_array().unwrap().len(), 3);
    let ephemeral = mapping(0)["hostPort"].as_u64().unwrap() as u16;
    assert!(ephemeral >= 1024);
    assert_eq!(
        mapping(1),
        json!({"hostPort": 18091, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"})
    );
    let table = host.sampan(&["ps"]).ok();
    assert!(
        table.contains(&format!(
            "*:{ephemeral}->80/tcp, 127.0.0.1:18091->80/tcp, *:18092->80/tcp"
        )),
        "{table}"
    );
    let network = host.row("web")["addresses"][0]
        .as_str()
        .unwrap()
        .to_string();
    let bridge = gateway(&network);
    for port in [ephemeral, 18092] {
        assert_eq!(page("127.0.0.1", port), "web");
        assert_eq!(page(&bridge, port), "web");
    }
    assert_eq!(page("127.0.0.1", 18091), "web");
    unreachable(&bridge, 18091);
    for ip in ["127.0.0.1", bridge.as_str()] {
        assert_eq!(ask_udp(ip, 18093).unwrap(), "echo hello", "{ip}");
    }
    // the same ports for the life of the pod
    host.sampan(&["restart"]).ok();
    assert_eq!(host.row("web")["ports"], ports);
    assert_eq!(page("127.0.0.1", ephemeral), "web");
    host.await_log("udp", "ready\nready");
    assert_eq!(ask_udp("127.0.0.1", 18093).unwrap(), "echo hello");
    host.down(&before);
    for port in [ephemeral, 18091, 18092] {
        unreachable("127.0.0.1", port);
    }
    assert!(ask_udp("127.0.0.1", 18093).is_err());
}

/// From the outside, from the host and from the pod itself, by both families: a published port answers, and whoever comes from
/// outside is seen with their own address. The server is no root and has port 80 all the same.
#[test]
fn published_ports_from_every_side() {
    let host = Host::new();
    host.import("python-app");
    let before = host.snapshot();
    host.compose(
        "services:
  who:
    image: localhost/python-app
    entrypoint: [python3, -c]
    command:
      - |
        import socket
        server = socket.socket(socket.AF_INET6)
        server.bind(('::', 80))
        server.listen()
        while True:
            peer, address = server.accept()
            peer.recv(999)
            peer.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n' + address[0].removeprefix('::ffff:').encode())
            peer.close()
    stop_grace_period: 0s
    ports: ['18120:80']
networks:
  default: {enable_ipv6: true, ipam: {config: [{subnet: 10.98.7.0/24}, {subnet: 'fd98:7::/64'}]}}
",
    );
    let mut neighbour = Command::new("unshare")
        .args(["-n", "sleep", "1000"])
        .spawn()
        .unwrap();
    let pid = neighbour.id().to_string();
    until("it has a namespace", || {
        let link = |whose: &str| std::fs::read_link(format!("/proc/{whose}/ns/net")).unwrap();
        (link(&pid) != link("thread-self")).then_some(())
    });
    let ip = |arguments: &str| tool("ip", &arguments.split(' ').collect::<Vec<_>>());
    ip("link add out0 type veth peer name out1");
    ip(&format!("link set out1 netns {pid}"));
    for address in ["10.98.8.1/24", "fd98:8::1/64 nodad"] {
        ip(&format!("addr add {address} dev out0"));
    }
    ip("link set out0 up");
    let there = |arguments: &str| {
        let all = ["-t", &pid, "-n", "ip"].into_iter();
        tool(
            "nsenter",
            &all.chain(arguments.split(' ')).collect::<Vec<_>>(),
        )
    };
    for address in ["10.98.8.2/24", "fd98:8::2/64 nodad"] {
        there(&format!("addr add {address} dev out1"));
    }
    there("link set out1 up");
    host.sampan(&["up", "-d"]).ok();
    let pod = host.row("who")["pid"].to_string();
    let from = |whose: &str, ip: &str| in_namespace(whose, || page(ip, 18120));
    assert_eq!(from(&pid, "10.98.8.1"), "10.98.8.2");
    assert_eq!(from(&pid, "fd98:8::1"), "fd98:8::2");
    assert_eq!(page("127.0.0.1", 18120), "10.98.7.1");
    // itself, by the host's address: the answer has to come back the same way
    assert_eq!(from(&pod, "10.98.8.1"), "10.98.7.1");
    assert_eq!(from(&pod, "fd98:8::1"), "fd98:7::1");
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
    until("the neighbour's link went", || {
        (!std::path::Path::new("/proc/sys/net/ipv4/conf/out0").exists()).then_some(())
    });
    host.down(&before);
}

/// Works in the network namespace of a process.
fn in_namespace<T: Send>(whose: &str, work: impl FnOnce() -> T + Send) -> T {
    let space = std::fs::File::open(format!("/proc/{whose}/ns/net")).unwrap();
    std::thread::scope(|scope| {
        let work = || {
            nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(work).join().unwrap()
    })
}

#[test]
fn a_port_is_somebody_elses() {
    let host = Host::new();
    host.compose(&format!(
        "services:\n  web:\n{}    ports: ['18094:80']\n",
        server("web")
    ));
    let before = host.snapshot();
    let taken = TcpListener::bind("127.0.0.1:18094").unwrap();
    let refused = |ended: &pod_support::Ended| {
        let said = ended.fails(125);
        assert!(
            said.contains("compose.yaml:6: services.web.ports: cannot publish 18094/tcp: the port is already taken on this host"),
            "{said}"
        );
    };
    refused(&host.sampan(&["up", "-d"]));
    host.assert_clean(&before);
    drop(taken);
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(page("127.0.0.1", 18094), "web");
    let with_first = steady(&host);
    refused(&host.sampan(&["-p", "other", "up", "-d"]));
    assert_steady(&host, &with_first);
    assert_eq!(page("127.0.0.1", 18094), "web");
    host.down(&before);
}

#[test]
fn two_pods_at_once_do_not_disturb_each_other() {
    let host = Host::new();
    let before = host.snapshot();
    let file = |word: &str, port: u16| {
        let name = format!("{word}.yaml");
        host.write(
            &name,
            format!(
                "services:\n  web:\n{}    ports: ['{port}:80']\n",
                server(word)
            ),
        );
        name
    };
    let pods = [
        ("one", file("one", 18095), 18095),
        ("two", file("two", 18096), 18096),
    ];
    let ups: Vec<_> = pods
        .iter()
        .map(|(pod, file, _)| host.start(&["-f", file, "-p", pod, "up", "-d"]))
        .collect();
    for up in ups {
        let ended = up.wait();
        assert_eq!(ended.code, 0, "{ended:#?}");
    }
    for (pod, _, port) in &pods {
        assert_eq!(page("127.0.0.1", *port), *pod);
    }
    let pid =
        |pod: &str| host.sampan(&["-p", pod, "ps", "--format", "json"]).json()[0]["pid"].clone();
    let two = pid("two");
    host.sampan(&["-p", "one", "down", "-v"]).ok();
    unreachable("127.0.0.1", 18095);
    assert_eq!(page("127.0.0.1", 18096), "two");
    host.sampan(&["-f", "one.yaml", "-p", "one", "up", "-d"])
        .ok();
    assert_eq!(page("127.0.0.1", 18095), "one");
    assert_eq!(page("127.0.0.1", 18096), "two");
    assert_eq!(pid("two"), two);
    let downs: Vec<_> = ["one", "two"]
        .map(|pod| host.start(&["-p", pod, "down", "-v"]))
        .into();
    for down in downs {
        let ended = down.wait();
        assert_eq!(ended.code, 0, "{ended:#?}");
    }
    host.assert_clean(&before);
}

#[test]
fn gateway_priority_and_interface_names() {
    let host = Host::new();
    let before = host.snapshot();
    let file = |networks: &str| {
        format!(
            "services:
  web:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_grace_period: 0s
    networks:
{networks}networks:
  a: {{ipam: {{config: [{{subnet: 10.92.1.0/24}}]}}}}
  b: {{ipam: {{config: [{{subnet: 10.92.2.0/24}}]}}}}
  c: {{internal: true, ipam: {{config: [{{subnet: 10.92.3.0/24}}]}}}}
"
        )
    };
    let ip = |network: u8| format!("ipv4_address: 10.92.{network}.5");
    let cases = [
        (
            format!(
                "      a: {{{}, gw_priority: 1}}\n      b: {{{}, gw_priority: 10, interface_name: wan0}}\n      c: {{{}, gw_priority: 100, interface_name: lan}}\n",
                ip(1),
                ip(2),
                ip(3)
            ),
            pairs(&[
                ("eth0", "10.92.1.5/24"),
                ("lan", "10.92.3.5/24"),
                ("wan0", "10.92.2.5/24"),
            ]),
            "wan0",
        ),
        (
            format!(
                "      a: {{{}, gw_priority: 20, interface_name: up}}\n      b: {{{}, gw_priority: 10}}\n      c: {{{}}}\n",
                ip(1),
                ip(2),
                ip(3)
            ),
            pairs(&[
                ("eth0", "10.92.2.5/24"),
                ("eth1", "10.92.3.5/24"),
                ("up", "10.92.1.5/24"),
            ]),
            "up",
        ),
    ];
    for (networks, wanted, default) in cases {
        host.compose(&file(&networks));
        // the second time the changed pod is made again
        host.sampan(&["up", "-d"]).ok();
        assert_eq!(addresses(&host, "web"), wanted);
        assert_eq!(defaults(&host, "web"), [default]);
    }
    host.down(&before);
}

/// External networks from CNI files, once with the reference plugins and once with those in the program.
fn external(plugins: &str) {
    let mut host = Host::new();
    host.env
        .push(("SAMPAN_CNI_PATH".to_string(), plugins.to_string()));
    let conf = host.path().join("cni-conf");
    std::fs::create_dir_all(&conf).unwrap();
    for (name, subnet, gateway) in [
        ("storage", "10.93.1.0/24", false),
        ("public", "10.93.2.0/24", true),
    ] {
        let mut list = json!({
            "cniVersion": "1.0.0",
            "name": name,
            "plugins": [{
                "type": "bridge",
                "bridge": format!("br-{name}"),
                "isGateway": true,
                "ipMasq": gateway,
                "ipam": {
                    "type": "host-local",
                    "dataDir": host.path().join("leases"),
                    "ranges": [[{"subnet": subnet}]],
                },
            }],
        });
        if gateway {
            list["plugins"][0]["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
            let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
            list["plugins"].as_array_mut().unwrap().push(portmap);
        }
        std::fs::write(conf.join(format!("{name}.conflist")), list.to_string()).unwrap();
    }
    host.compose(&format!(
        "services:
  web:
{}    ports: ['18097:80']
    networks: {{storage: {{interface_name: data0}}, public: }}
networks:
  storage: {{external: true}}
  public: {{external: true, name: public}}
",
        server("web")
    ));
    // bridges and empty firewall chains of external networks are not ours to remove: they stay after the first time
    host.sampan(&["up", "-d"]).ok();
    host.sampan(&["down"]).ok();
    let before = steady(&host);
    for _ in 0..2 {
        host.sampan(&["up", "-d"]).ok();
        let found = addresses(&host, "web");
        assert_eq!(found.len(), 2, "{found:?}");
        let of = |start: &str| {
            let one = found.iter().find(|(_, ip)| ip.starts_with(start));
            one.unwrap_or_else(|| panic!("{start}: {found:?}"))
                .0
                .clone()
        };
        assert_eq!([of("10.93.1."), of("10.93.2.")], ["data0", "eth0"]);
        assert_eq!(defaults(&host, "web"), ["eth0"]);
        for ip in ["127.0.0.1", "10.93.2.1"] {
            assert_eq!(page(ip, 18097), "web");
        }
        host.sampan(&["restart", "web"]).ok();
        assert_eq!(addresses(&host, "web"), found);
        assert_eq!(page("127.0.0.1", 18097), "web");
        host.sampan(&["down"]).ok();
        unreachable("127.0.0.1", 18097);
        assert_steady(&host, &before);
    }
    let missing = run(
        host.command(&["network", "ls"])
            .env("SAMPAN_CNI_CONF", "/nowhere"),
        b"",
    );
    assert_eq!(missing.code, 0, "{missing:#?}");
    host.compose(&format!(
        "services:\n  web:\n{}    networks: [nothing]\nnetworks: {{nothing: {{external: true}}}}\n",
        server("web")
    ));
    let said = host.sampan(&["up", "-d"]);
    assert!(said.fails(125).contains("networks.nothing"), "{said:#?}");
}

#[test]
fn external_networks_with_the_reference_plugins() {
    let there = Command::new(format!("{REFERENCE}/bridge"))
        .env("CNI_COMMAND", "VERSION")
        .output();
    assert!(
        there.is_ok(),
        "needs the Debian package containernetworking-plugins"
    );
    external(REFERENCE);
}

#[test]
fn external_networks_with_the_programs_own_plugins() {
    external("/nowhere");
}
