//! What is handed to plugins, word for word.

use super::*;
use crate::network::PortMapping;

#[test]
fn of_attachments() {
    let plugin = json!({"type": "p", "cniVersion": "0.1.0", "name": "other", "mtu": 9,
        "capabilities": {"ips": true, "mac": false, "portMappings": true, "bandwidth": true, "labels": true},
        "args": {"own": 1, "cni": {"x": 1}},
        "cni.dev/x": 1, "prevResult": 1, "runtimeConfig": {"ips": []}});
    let cni = Cni {
        conf_dirs: vec![],
        plugin_dirs: vec![],
        state: "/run/sampan".into(),
    };
    let plain = Attachment {
        network: NetworkList {
            name: "net".into(),
            source: "f".into(),
            config: json!({"cniVersion": "1.0.0", "name": "net", "plugins": [plugin]}),
        },
        container_id: "pod-1".into(),
        ifname: "eth0".into(),
        ..Attachment::default()
    };
    let base = json!({"type": "p", "cniVersion": "1.0.0", "name": "net", "mtu": 9,
        "args": {"own": 1, "cni": {"x": 1}, "sampan": {"runtime": "sampan-2298630b"}}});
    let with = |pairs: &[(&str, Value)]| {
        let mut config = base.clone();
        for (key, value) in pairs {
            config[key] = value.clone();
        }
        config
    };
    let bandwidth = json!({"ingressRate": 1000, "ingressBurst": 2000});
    let wished = Attachment {
        ips: vec!["10.0.0.2/24".into(), "fd00::2".into()],
        mac: Some("02:00:00:00:00:01".into()),
        ports: vec![PortMapping {
            host_port: 80,
            container_port: 8080,
            protocol: "tcp".into(),
            host_ip: None,
        }],
        labels: [("app".to_string(), "web".to_string())].into(),
        capabilities: Map::from_iter([
            ("bandwidth".to_string(), bandwidth.clone()),
            ("dns".to_string(), json!({"servers": []})),
        ]),
        ..plain.clone()
    };
    // the configuration of Mesos' documentation, with addresses
    let labels = json!([{"key": "app", "value": "web"}]);
    let args = json!({
        "own": 1,
        "sampan": {"runtime": "sampan-2298630b"},
        "cni": {"x": 1, "labels": labels, "ips": ["10.0.0.2/24", "fd00::2"]},
        "org.apache.mesos": {"network_info": {
            "name": "net",
            "labels": {"labels": labels},
            "ip_addresses": [
                {"protocol": "IPv4", "ip_address": "10.0.0.2"},
                {"protocol": "IPv6", "ip_address": "fd00::2"},
            ],
            "port_mappings": [{"host_port": 80, "container_port": 8080, "protocol": "tcp"}],
        }},
    });
    let runtime_config = json!({"ips": ["10.0.0.2/24", "fd00::2"], "bandwidth": bandwidth,
        "labels": {"app": "web"},
        "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]});
    let before = json!({"a": 1});
    let table = [
        (&plain, None, base.clone()),
        (
            &plain,
            Some(&before),
            with(&[("prevResult", before.clone())]),
        ),
        (
            &wished,
            None,
            with(&[("runtimeConfig", runtime_config), ("args", args)]),
        ),
    ];
    for (attachment, previous, expected) in table {
        let got = of_attachment(&cni, attachment, &plugin, previous);
        assert_eq!(Value::Object(got), expected);
    }
    let network = of_network(&cni, &plain.network, &plugin);
    assert_eq!(Value::Object(network), base);
}
