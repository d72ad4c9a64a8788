//! `network_infos`: several networks, each with its own port mappings.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::pod_support::{tool, until};
use crate::support::*;

/// A file with a network on a bridge of its own, whose plugins publish ports.
fn network(mesos: &Mesos, name: &str, subnet: &str) {
    let host = &mesos.host;
    let list = json!({
        "cniVersion": "1.0.0",
        "name": name,
        "plugins": [
            {
                "type": "bridge", "bridge": format!("br-{name}"), "isGateway": true,
                "capabilities": {"ips": true},
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

/// The front page of the server behind a port of the host.
fn said(address: &str) -> String {
    until(&format!("{address} answers"), || {
        let mut text = String::new();
        let mut stream = TcpStream::connect(address).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        stream.read_to_string(&mut text).ok()?;
        Some(text.split_once("\r\n\r\n")?.1.to_owned())
    })
}

fn join(name: &str, address: &str, ports: Value) -> Value {
    json!({"name": name, "ip_addresses": [{"ip_address": address}], "port_mappings": ports})
}

/// The same port of the container on two networks, and each of them leads to the address that it has there.
#[test]
fn a_port_mapping_is_that_of_its_own_network() {
    let mesos = Mesos::new();
    network(&mesos, "front", "10.98.1.0/24");
    network(&mesos, "back", "10.98.2.0/24");
    let work = "mkdir -p /tmp/front /tmp/back; echo front > /tmp/front/index.html; echo back > /tmp/back/index.html; \
                busybox httpd -p 10.98.1.5:80 -h /tmp/front; exec busybox httpd -f -p 10.98.2.5:80 -h /tmp/back";
    let map = |host: u32| json!([{"host_port": host, "container_port": 80}]);
    let mut task = member("a", work);
    task["container"]["network_infos"] = json!([
        join("front", "10.98.1.5", map(31000)),
        join("back", "10.98.2.5", map(31001)),
    ]);
    task["resources"].as_array_mut().unwrap().push(json!({
        "name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 31000, "end": 31001}]},
        "allocation_info": {"role": "*"},
    }));
    mesos.agent.launch_group(vec![task]);
    mesos.start();
    let running = mesos.wait("a", "RUNNING");
    let told = |name: &str, address: &str, host: u32| {
        json!({
            "name": name, "ip_addresses": [{"protocol": "IPv4", "ip_address": address}],
            "port_mappings": [{"host_port": host, "container_port": 80, "protocol": "tcp"}],
        })
    };
    assert_eq!(
        running["container_status"]["network_infos"],
        json!([
            told("front", "10.98.1.5", 31000),
            told("back", "10.98.2.5", 31001)
        ])
    );
    assert_eq!(said("10.98.1.1:31000"), "front\n");
    assert_eq!(said("10.98.2.1:31001"), "back\n");
    mesos.agent.kill("a", None);
    mesos.agent.wait_exit();
    // bridges of lists in files are not ours to remove
    for bridge in ["br-front", "br-back"] {
        tool("ip", &["link", "delete", bridge]);
    }
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING KILLED");
}

/// A network whose plugins publish nothing is not passed over for another one.
#[test]
fn a_network_that_cannot_publish_is_told() {
    let mesos = Mesos::new();
    network(&mesos, "front", "10.98.1.0/24");
    network(&mesos, "back", "10.98.2.0/24");
    let file = mesos.host.path().join("cni-conf/front.conflist");
    let mut list: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    list["plugins"].as_array_mut().unwrap().pop();
    std::fs::write(&file, list.to_string()).unwrap();
    let mut task = member("a", "sleep 1000");
    task["container"]["network_infos"] = json!([
        join("front", "10.98.1.5", json!([{"host_port": 31000, "container_port": 80}])),
        {"name": "back"},
    ]);
    task["resources"].as_array_mut().unwrap().push(json!({
        "name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 31000, "end": 31000}]},
        "allocation_info": {"role": "*"},
    }));
    mesos.agent.launch_group(vec![task]);
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING FAILED");
    let last = mesos.last("a");
    assert_eq!(last["reason"], "REASON_CONTAINER_LAUNCH_FAILED", "{last}");
    let why = "port 31000 of service a is to be published on network front, which has no plugin with the capability portMappings (such as portmap)";
    assert!(last["message"].as_str().unwrap().contains(why), "{last}");
}
