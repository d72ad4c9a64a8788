use serde_json::json;

use super::*;

fn conf(change: Value) -> Result<PolicyConf> {
    let mut value = json!({"cniVersion": "1.1.0", "name": "net"});
    for (key, new) in change.as_object().unwrap() {
        value[key] = new.clone();
    }
    PolicyConf::new(&Conf::new(value).unwrap())
}

#[test]
fn labels_from_everywhere() {
    let conf = conf(json!({
        "labels": {"a": "conf", "tier": "conf"},
        "args": {
            "org.apache.mesos": {"network_info": {"name": "net", "labels": {"labels": [
                {"key": "a", "value": "mesos"}, {"key": "m", "value": "1"}, {"key": "bare"}
            ]}}},
            "cni": {"labels": [{"key": "a", "value": "cni"}]}
        },
        "runtimeConfig": {"labels": {"a": "runtime", "r": "2"}}
    }))
    .unwrap();
    assert_eq!(conf.folder, Path::new("/run/cni/policy/net"));
    let labels = conf.labels("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p");
    let expected = json!({
        "a": "runtime", "bare": "", "m": "1", "r": "2", "tier": "conf",
        "io.kubernetes.pod.name": "p", "io.kubernetes.pod.namespace": "ns"
    });
    assert_eq!(json!(labels), expected);
}

#[test]
fn rules_of_the_folder_come_last_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("20.json", r#"{"rules": [{"to": {"n": "20"}}]}"#);
    write(
        "10.json",
        r#"{"rules": [{"to": {"n": "10"}, "action": "deny"}]}"#,
    );
    write("readme", "no policy");
    let read = || {
        conf(json!({
            "default": "allow", "policyDir": folder.path(), "dataDir": "/d",
            "rules": [{"from": ["10.0.0.0/8"], "ports": ["tcp/80", "udp/5-9", "icmp", "sctp"]}]
        }))
    };
    let found = read().unwrap();
    assert_eq!(found.folder, Path::new("/d/net"));
    // as it is written down, and read again
    let text = json!({"default": "allow", "rules": [
        {"action": "allow", "from": ["10.0.0.0/8"], "ports": ["tcp/80", "udp/5-9", "icmp", "sctp"]},
        {"action": "deny", "to": {"n": "10"}},
        {"action": "allow", "to": {"n": "20"}}
    ]});
    assert_eq!(json!(found.policy), text);
    assert_eq!(
        serde_json::from_value::<Policy>(text).unwrap(),
        found.policy
    );
    write("30.json", r#"{"rule": []}"#);
    let error = read().unwrap_err();
    assert_eq!(error.code, 6);
    assert!(error.msg.ends_with("30.json"), "{error}");
}

#[test]
fn refusals() {
    let many: Vec<Value> = (0..=MAX_RULES).map(|_| json!({})).collect();
    for (change, code, part) in [
        (json!({"default": "maybe"}), 6, "unknown variant `maybe`"),
        (json!({"rules": [{"form": {}}]}), 6, "unknown field `form`"),
        (
            json!({"rules": [{"ports": ["tcp/0"]}]}),
            6,
            "\"tcp/0\" is not PROTOCOL",
        ),
        (
            json!({"rules": [{"ports": ["tcp/9-5"]}]}),
            6,
            "\"tcp/9-5\" is not PROTOCOL",
        ),
        (
            json!({"rules": [{"ports": ["icmp/8"]}]}),
            6,
            "\"icmp/8\" is not PROTOCOL",
        ),
        (
            json!({"rules": [{"ports": ["80"]}]}),
            6,
            "\"80\" is not PROTOCOL",
        ),
        (
            json!({"rules": [{"to": "db"}]}),
            6,
            "labels (an object of strings) or a list of networks",
        ),
        (
            json!({"rules": [{"to": ["10.0.0.0/99"]}]}),
            6,
            "labels (an object of strings) or a list of networks",
        ),
        (
            json!({"rules": many}),
            7,
            "8193 combinations of networks and ports, the limit is 8192",
        ),
        (
            json!({"policyDir": "/nonexistent"}),
            5,
            "cannot read the policy folder /nonexistent",
        ),
    ] {
        let error = conf(change).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn decisions() {
    let pod = |app: &str, address: &str| Pod {
        labels: [("app".to_owned(), app.to_owned())].into(),
        addresses: vec![address.parse().unwrap()],
        port: String::new(),
        bridge: None,
    };
    let pods = [
        pod("web", "10.0.0.2"),
        pod("db", "10.0.0.3"),
        pod("web", "fd00::2"),
    ];
    let policy: Policy = serde_json::from_value(json!({"rules": [
        {"from": {"app": "web"}, "to": {"app": "db"}, "ports": ["tcp/5432-5433"]},
        {"action": "deny", "from": {"app": "web"}, "to": ["192.0.2.7/32"]},
        {"from": {"app": "web"}, "to": ["0.0.0.0/0"]},
        {"to": {"app": "web"}, "ports": ["icmp"]},
        {"from": {}, "ports": ["udp/53"]}
    ]}))
    .unwrap();
    for (source, destination, protocol, port, expected) in [
        ("10.0.0.2", "10.0.0.3", 6, 5432, Action::Allow),
        ("10.0.0.2", "10.0.0.3", 6, 5434, Action::Deny),
        ("10.0.0.2", "10.0.0.3", 17, 5432, Action::Deny),
        ("10.0.0.3", "10.0.0.2", 6, 5432, Action::Deny),
        ("10.0.0.2", "192.0.2.1", 6, 443, Action::Allow),
        ("10.0.0.2", "192.0.2.7", 6, 443, Action::Deny),
        ("10.0.0.3", "192.0.2.1", 6, 443, Action::Deny),
        ("192.0.2.1", "10.0.0.2", 1, 0, Action::Allow),
        ("fd00::9", "fd00::2", 58, 0, Action::Allow),
        ("fd00::9", "fd00::2", 1, 0, Action::Deny),
        ("10.0.0.3", "192.0.2.7", 17, 53, Action::Allow),
        ("192.0.2.7", "10.0.0.3", 17, 53, Action::Deny),
    ] {
        let flow = Flow {
            protocol,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            port,
        };
        assert_eq!(policy.decide(&flow, &pods), expected, "{flow:?}");
    }
}
