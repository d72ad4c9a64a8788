//! Networks of compose files, with the reference plugins and with those built in.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use sampan::compose::project::Network;
use sampan::network::{self, Attachment, Offer, add_all, check, del_all, generate, netns, subnets};
use serde_json::{Value, json};

use crate::{Host, addresses, attachment, default_routes, host_links, ip, ip_in};

/// A network of a compose file, internal and with IPv6 unless `more` says otherwise.
fn network(key: &str, more: Value) -> Network {
    let mut all = json!({
        "key": key, "origin": {"file": "compose.yaml", "line": 1}, "name": format!("app_{key}"),
        "external": false, "driver": "bridge", "internal": true, "enable_ipv4": true, "enable_ipv6": true,
        "ipam_driver": null, "ipam_options": {},
        "extra": {"default": false, "routes": [], "config": {}, "plugins": []},
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

/// What a listener in the pod answers to a client on the host.
fn ask(netns: &Path, port: u16, address: &str) -> String {
    let (ready, listening) = std::sync::mpsc::channel();
    let netns = fs::File::open(netns).unwrap();
    let server = std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
    });
    listening.recv().unwrap();
    let address = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    server.join().unwrap();
    answer
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
        assert!(subnets::release(&state, &state.join("leases"), &network.name, "pod").unwrap());
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
    let offers: Vec<_> = (0..)
        .zip(&networks)
        .map(|(i, network)| {
            let registered = subnets::registered(&host.path("state")).unwrap();
            let own = registered.iter().find(|r| r.name == network.name).unwrap();
            let gateways = network::gateways(network, &own.subnets).unwrap();
            let offer = |gateway: IpAddr| Offer {
                ipv6: gateway.is_ipv6(),
                gateway: Some(gateway),
                metric: 0,
            };
            let offers = gateways.into_iter().map(offer).collect();
            (format!("eth{i}"), offers)
        })
        .collect();
    let cache = host.path("cache");
    for _ in 0..2 {
        let pod = host.netns("pod");
        let attached = add_all(&host.cni, &pod, &attachments, &cache).unwrap();
        // addresses of two networks; a published port on loopback and on an address of the host
        for address in [
            "10.190.0.2:80",
            "10.190.1.2:80",
            "127.0.0.1:8080",
            "10.190.1.1:8080",
        ] {
            assert_eq!(ask(&pod, 80, address), "hello", "{address}");
        }
        assert_eq!(texts(&attached[1]), ["10.190.1.2/24"]);
        assert_eq!(
            texts(&attached[0]),
            ["10.190.0.2/24", "fd73:616d:7061::2/64"]
        );
        assert_eq!(
            texts(&attached[2]),
            ["10.190.2.2/24", "fd73:616d:7061:1::2/64"]
        );
        assert_eq!(default_routes(&pod, "-4"), [""; 0]);
        for _ in 0..2 {
            network::settle(&pod, &preferred, &offers).unwrap();
            assert_eq!(default_routes(&pod, "-4"), ["eth1"]);
            assert_eq!(default_routes(&pod, "-6"), ["eth0"]);
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
