//! Tests of what is decided before a plugin runs; the chains themselves are in `tests/network.rs`.

use super::*;
use crate::network::PortMapping;

fn attachment(config: Value) -> Attachment {
    Attachment {
        network: NetworkList {
            name: "net".into(),
            source: "f".into(),
            config,
        },
        container_id: "pod-1".into(),
        ifname: "eth0".into(),
        ..Attachment::default()
    }
}

#[test]
fn execution_configuration() {
    let plugin = json!({"type": "p", "cniVersion": "0.1.0", "name": "other", "mtu": 9,
        "capabilities": {"ips": true, "mac": false, "portMappings": true, "aliases": true},
        "cni.dev/x": 1, "prevResult": 1});
    let config = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [plugin]});
    let plain = attachment(config);
    let list = &plain.network;
    let wished = Attachment {
        ips: vec!["10.0.0.2/24".into()],
        mac: Some("02:00:00:00:00:01".into()),
        ports: vec![PortMapping {
            host_port: 80,
            container_port: 8080,
            protocol: "tcp".into(),
            host_ip: None,
        }],
        ..plain.clone()
    };
    let base = json!({"type": "p", "cniVersion": "1.0.0", "name": "net", "mtu": 9});
    let with = |key: &str, value: Value| {
        let mut config = base.clone();
        config[key] = value;
        config
    };
    let got = derive(list, &plugin, None, runtime_config(&plugin, &plain));
    assert_eq!(Value::Object(got), base);
    let got = derive(list, &plugin, Some(&json!({"a": 1})), None);
    assert_eq!(Value::Object(got), with("prevResult", json!({"a": 1})));
    let got = derive(list, &plugin, None, runtime_config(&plugin, &wished));
    let expected = json!({"ips": ["10.0.0.2/24"],
        "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]});
    assert_eq!(Value::Object(got), with("runtimeConfig", expected));
}

#[test]
fn refused_before_anything_runs() {
    let config = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "p"}]});
    let base = attachment(config);
    let table = [
        (
            Attachment {
                container_id: "a/b".into(),
                ..base.clone()
            },
            "container id `a/b`: must begin with a letter or digit and hold only these, `_`, `.` and `-`",
        ),
        (
            Attachment {
                ifname: "..".into(),
                ..base.clone()
            },
            "interface `..` of network `net`: must be 1 to 15 characters without `/`, `:` and blanks",
        ),
        (
            Attachment {
                args: vec![("A".into(), "x;K=v".into())],
                ..base.clone()
            },
            "argument `A=x;K=v` of network `net`: must be KEY=VALUE without `;`",
        ),
        (
            Attachment {
                ips: vec!["10.0.0".into()],
                ..base.clone()
            },
            "address `10.0.0` of network `net`: not an address, with or without prefix",
        ),
        (
            Attachment {
                ips: vec!["10.0.0.1".into()],
                ..base.clone()
            },
            "network `net` (f): a fixed address is asked for, but no plugin declares the capability `ips`",
        ),
        (
            base,
            "CNI plugin `p` of network `net` (f), ADD: not found in no folder at all and not built in; install it or correct `type`",
        ),
    ];
    let cni = Cni {
        conf_dirs: vec![],
        plugin_dirs: vec![],
    };
    for (attachment, expected) in table {
        let got = validate(&cni, &attachment).unwrap_err().to_string();
        assert_eq!(got, expected);
    }
}

#[test]
fn a_damaged_or_foreign_cache_is_an_error_that_names_it() {
    let cni = Cni {
        conf_dirs: vec![],
        plugin_dirs: vec![],
    };
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("00-eth0.json");
    assert!(del(&cni, None, &cache).is_ok(), "missing is success");
    fs::write(&cache, "{").unwrap();
    let got = del(&cni, None, &cache).unwrap_err().to_string();
    assert!(
        got.starts_with(&format!("{}:1: not a record", cache.display())),
        "{got}"
    );
    let record = Record {
        version: 2,
        attachment: attachment(json!({})),
        netns: "/n".into(),
        begun: 0,
        added: false,
        result: None,
    };
    record.store(&cache).unwrap();
    let got = del(&cni, None, &cache).unwrap_err().to_string();
    assert!(got.contains("version 2: this program knows 1"), "{got}");
}
