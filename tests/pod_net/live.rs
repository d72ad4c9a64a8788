//! Networks and ports of a running pod.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::*;

/// A pod with a web server on two networks, one of them internal.
fn pod(host: &Host) {
    host.compose(&format!(
        "services:
  web:
{}    networks: {{front: {{ipv4_address: 10.94.1.5}}, back: {{ipv4_address: 10.94.2.5}}}}
networks:
  front: {{ipam: {{config: [{{subnet: 10.94.1.0/24}}]}}}}
  back: {{internal: true, ipam: {{config: [{{subnet: 10.94.2.0/24}}]}}}}
",
        server("web")
    ));
}

/// A file with a network of plugins, which has a default route.
fn external(host: &Host, name: &str, subnet: &str) {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": name,
        "plugins": [
            {
                "type": "bridge", "bridge": format!("br-{name}"), "isGateway": true,
                "capabilities": {"ips": true, "mac": true},
                "ipam": {
                    "type": "host-local", "dataDir": host.path().join("leases"),
                    "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let conf = host.path().join("cni-conf");
    std::fs::create_dir_all(&conf).unwrap();
    std::fs::write(conf.join(format!("{name}.conflist")), list.to_string()).unwrap();
}

#[test]
fn networks_come_and_go() {
    let host = Host::new();
    let before = host.snapshot();
    pod(&host);
    external(&host, "lan", "10.94.3.0/24");
    host.sampan(&["up", "-d"]).ok();
    let pid = host.row("web")["pid"].clone();
    let name = host.name.as_str();
    assert_eq!(defaults(&host, "web"), ["eth0"]);
    let options = [
        "--interface",
        "lan0",
        "--ip",
        "10.94.3.9",
        "--mac",
        "02:00:00:00:00:09",
    ];
    let attach = [&["network", "attach", name, "lan"], &options[..]].concat();
    assert_eq!(host.sampan(&attach).ok(), "lan0 10.94.3.9/24\n");
    let three = pairs(&[
        ("eth0", "10.94.1.5/24"),
        ("eth1", "10.94.2.5/24"),
        ("lan0", "10.94.3.9/24"),
    ]);
    assert_eq!(addresses(&host, "web"), three);
    assert_eq!(defaults(&host, "web"), ["eth0"], "the first one keeps it");
    assert_eq!(
        inside(&host, "web", &["link", "show", "lan0"])[0]["address"],
        "02:00:00:00:00:09"
    );
    assert_eq!(page("10.94.3.9", 80), "web");
    // the same again is there already, another one of that name is not
    assert_eq!(host.sampan(&attach).ok(), "lan0 10.94.3.9/24\n");
    let other = ["network", "attach", name, "lan", "--interface", "lan0"];
    let said = host.sampan(&other);
    assert!(
        said.fails(1).contains("has an interface lan0 already"),
        "{said:#?}"
    );
    // the network that has the default route goes: the next one takes over
    host.sampan(&["network", "detach", name, "front"]).ok();
    assert_eq!(defaults(&host, "web"), ["lan0"]);
    assert_eq!(addresses(&host, "web"), three[1..]);
    unreachable("10.94.1.5", 80);
    // and back, by a name of its own choice, with the highest priority
    let again = host.sampan(&["network", "attach", name, "front", "--gw-priority", "7"]);
    assert!(again.ok().starts_with("eth2 10.94.1."), "{again:#?}");
    assert_eq!(defaults(&host, "web"), ["eth2"]);
    // a restart of its services changes nothing
    let seen = addresses(&host, "web");
    host.sampan(&["restart"]).ok();
    assert_eq!(addresses(&host, "web"), seen);
    assert_eq!(defaults(&host, "web"), ["eth2"]);
    // nor does the same file again
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(addresses(&host, "web"), seen);
    for (network, why) in [("nothing", "nothing"), ("lan", "several interfaces")] {
        let said = match network {
            "lan" => {
                host.sampan(&["network", "attach", name, "lan"]).ok();
                host.sampan(&["network", "detach", name, network])
            }
            _ => host.sampan(&["network", "attach", name, network]),
        };
        assert!(said.fails(1).contains(why), "{said:#?}");
    }
    assert_ne!(host.row("web")["pid"], pid);
    host.sampan(&["down", "-v"]).ok();
    // what an external network leaves is its own; the rest is gone
    let left = host.snapshot();
    let more: Vec<_> = left
        .iter()
        .filter(|line| !before.contains(line))
        .filter(|line| !line.contains("br-lan") && !line.starts_with("nft"))
        .filter(|line| !line.contains("10.94.3."))
        .collect();
    assert!(more.is_empty(), "{more:#?}");
}

#[test]
fn what_cannot_be_attached_leaves_nothing() {
    let host = Host::new();
    pod(&host);
    external(&host, "lan", "10.94.3.0/24");
    host.sampan(&["up", "-d"]).ok();
    let name = host.name.as_str();
    let seen = addresses(&host, "web");
    let with_pod = host.snapshot();
    for (options, why) in [
        (&["--ip", "10.94.99.9"][..], "10.94.99.9"),
        (&["--interface", "eth1"], "has an interface eth1 already"),
        (&["--interface", "a/b"], "is not an interface name"),
        (&["--mac", "01:00:00:00:00:00"], "multicast"),
        (
            &["--ip", "10.94.3.7", "--ip", "10.94.3.8"],
            "one address of a family",
        ),
    ] {
        let attach = [&["network", "attach", name, "lan"], options].concat();
        let said = host.sampan(&attach);
        assert!(said.fails(1).contains(why), "{said:#?}");
        assert_eq!(addresses(&host, "web"), seen);
    }
    let said = host.sampan(&["network", "publish", name, "0:99999"]);
    assert!(said.fails(1).contains("99999"), "{said:#?}");
    assert_eq!(defaults(&host, "web"), ["eth0"]);
    let fresh = |line: &&String| !with_pod.contains(line) && !line.contains("lan");
    let now = host.snapshot();
    let more: Vec<_> = now.iter().filter(fresh).collect();
    let more: Vec<_> = more
        .iter()
        .filter(|l| {
            !l.contains("changes.json") && !l.contains("events.log") && !l.starts_with("nft")
        })
        .filter(|l| !l.starts_with("file") || !l.contains(".lock"))
        .collect();
    assert!(more.is_empty(), "{more:#?}");
    host.sampan(&["down", "-v"]).ok();
}

#[test]
fn ports_come_and_go() {
    let host = Host::new();
    pod(&host);
    let before = host.snapshot();
    host.sampan(&["up", "-d"]).ok();
    let name = host.name.as_str();
    unreachable("127.0.0.1", 18101);
    let said = host.sampan(&["network", "publish", name, "18101:80"]).ok();
    assert_eq!(said, "*:18101->80/tcp\n");
    assert_eq!(page("127.0.0.1", 18101), "web");
    let said = host
        .sampan(&["network", "publish", name, "127.0.0.1::80"])
        .ok();
    let chosen = said.trim().strip_prefix("127.0.0.1:").unwrap();
    let chosen: u16 = chosen.strip_suffix("->80/tcp").unwrap().parse().unwrap();
    assert_eq!(page("127.0.0.1", chosen), "web");
    assert_eq!(page("127.0.0.1", 18101), "web");
    let shown = host.sampan(&["ps"]).ok();
    assert!(shown.contains("*:18101->80/tcp, 127.0.0.1:"), "{shown}");
    // somebody else's
    let taken = std::net::TcpListener::bind("127.0.0.1:18102").unwrap();
    let said = host.sampan(&["network", "publish", name, "18102:80"]);
    assert!(
        said.fails(1)
            .contains("cannot publish 18102/tcp: the port is already taken on this host"),
        "{said:#?}"
    );
    drop(taken);
    // held: nobody else can have it
    assert!(std::net::TcpListener::bind("127.0.0.1:18101").is_err());
    host.sampan(&["network", "unpublish", name, "18101:80"])
        .ok();
    unreachable("127.0.0.1", 18101);
    assert_eq!(page("127.0.0.1", chosen), "web");
    drop(std::net::TcpListener::bind("127.0.0.1:18101").unwrap());
    let said = host.sampan(&["network", "unpublish", name, "18101:80"]);
    assert!(said.fails(1).contains("does not publish"), "{said:#?}");
    // the network that publishes may not go while no other one can
    let said = host.sampan(&["network", "detach", name, "front"]);
    assert!(said.fails(1).contains("unpublish them first"), "{said:#?}");
    assert_eq!(page("127.0.0.1", chosen), "web");
    host.down(&before);
    unreachable("127.0.0.1", chosen);
}

/// The supervisor is killed at moments spread over each change; then the pod is as it was asked for, once.
#[test]
fn a_killed_supervisor_finishes_the_change() {
    let host = Host::new();
    pod(&host);
    external(&host, "lan", "10.94.3.0/24");
    host.sampan(&["up", "-d"]).ok();
    let name = host.name.as_str();
    let supervisor = || -> Option<i32> {
        let text = std::fs::read(host.pod().join("supervisor.json")).ok()?;
        let record: Value = serde_json::from_slice(&text).ok()?;
        Some(record["pid"].as_i64()? as i32)
    };
    for round in 0..8u64 {
        let pause = Duration::from_millis(round * 9);
        let steps: [(&[&str], bool); 4] = [
            (
                &["network", "attach", name, "lan", "--interface", "lan0"],
                true,
            ),
            (&["network", "publish", name, "18103:80"], true),
            (&["network", "unpublish", name, "18103:80"], false),
            (&["network", "detach", name, "lan"], false),
        ];
        for (step, there) in steps {
            let asked = host.start(step);
            let until = Instant::now() + pause;
            while Instant::now() < until {
                std::thread::yield_now();
            }
            if let Some(pid) = supervisor() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let ended = asked.wait();
            assert_eq!(ended.code, 0, "{step:?} after {pause:?}: {ended:#?}");
            let found = addresses(&host, "web");
            let ports = host.row("web")["ports"].as_array().unwrap().len();
            match step[1] {
                "attach" | "detach" => {
                    assert_eq!(found.len(), 2 + usize::from(there), "{step:?}: {found:?}");
                }
                _ => {
                    assert_eq!(ports, usize::from(there), "{step:?}");
                    match there {
                        true => assert_eq!(page("127.0.0.1", 18103), "web"),
                        false => unreachable("127.0.0.1", 18103),
                    }
                }
            }
            assert_eq!(defaults(&host, "web"), ["eth0"]);
        }
    }
    host.sampan(&["down", "-v"]).ok();
    let leases = host.path().join("leases/lan");
    let left = std::fs::read_dir(leases).into_iter().flatten().flatten();
    let left: Vec<_> = left
        .map(|e| e.file_name().into_string().unwrap())
        .filter(|n| n.starts_with("10."))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!host.pod().exists());
}

/// A change that breaks, and whose undoing breaks too, is not taken for what was there before: the ports come back.
#[test]
fn ports_come_back_after_a_change_that_broke() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    external(&host, "shaky", "10.94.4.0/24");
    // the reference plugin, which fails as often as there are lines in a file
    let failures = host.path().join("failures");
    let folder = host.path().join("cni-path");
    std::fs::create_dir_all(&folder).unwrap();
    let script = format!(
        "#!/bin/sh\n\
         if [ \"$CNI_COMMAND\" = ADD ] && [ -s {0} ]; then\n\
         sed -i 1d {0}\n\
         echo '{{\"cniVersion\": \"1.0.0\", \"code\": 100, \"msg\": \"broken\"}}'\n\
         exit 1\n\
         fi\n\
         exec /usr/lib/cni/portmap\n",
        failures.display()
    );
    let plugin = folder.join("portmap");
    std::fs::write(&plugin, script).unwrap();
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
    host.compose(&format!(
        "services:
  web:
{}    ports: ['18105:80']
    networks: [shaky]
networks:
  shaky: {{external: true, name: shaky}}
",
        server("web")
    ));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(page("127.0.0.1", 18105), "web");
    // the new port's, and the one that puts the old one back
    std::fs::write(&failures, "1\n2\n").unwrap();
    let said = host.sampan(&["network", "publish", &host.name, "18106:80"]);
    assert!(said.fails(1).contains("broken"), "{said:#?}");
    assert_eq!(std::fs::read(&failures).unwrap(), b"");
    assert_eq!(page("127.0.0.1", 18105), "web");
    unreachable("127.0.0.1", 18106);
    host.sampan(&["down", "-v"]).ok();
    unreachable("127.0.0.1", 18105);
}
