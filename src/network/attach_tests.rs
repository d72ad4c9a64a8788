//! Tests of what is decided before a plugin runs; the chains themselves are in `tests/network.rs`.

use serde_json::{Map, json};

use super::*;

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
            Attachment {
                capabilities: Map::from_iter([("deviceID".to_string(), json!("0000:04:00.5"))]),
                ..base.clone()
            },
            "network `net` (f): no plugin declares the capability `deviceID`",
        ),
        (
            Attachment {
                aliases: vec!["web".into()],
                labels: [("app".to_string(), "web".to_string())].into(),
                ..base
            },
            "CNI plugin `p` of network `net` (f), ADD: not found in no folder at all and not built in; install it or correct `type`",
        ),
    ];
    let cni = Cni {
        conf_dirs: vec![],
        plugin_dirs: vec![],
        state: "/nonexistent".into(),
    };
    for (attachment, expected) in table {
        let got = prepare(&cni, &attachment).unwrap_err().to_string();
        assert_eq!(got, expected);
    }
}

#[test]
fn a_damaged_or_foreign_cache_is_an_error_that_names_it() {
    let cni = Cni {
        conf_dirs: vec![],
        plugin_dirs: vec![],
        state: "/nonexistent".into(),
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
