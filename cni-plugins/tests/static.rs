//! `static` as a process, and side by side with the reference plugin.

mod common;

use std::path::Path;

use common::{Call, REFERENCE};
use serde_json::{Value, json};

fn config(version: &str, mut rest: Value) -> Value {
    rest["cniVersion"] = json!(version);
    rest["name"] = json!("net");
    rest["type"] = json!("x");
    rest["ipam"]["type"] = json!("static");
    rest
}

fn dual() -> Value {
    json!({
        "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}, {"address": "fd09::5/64", "gateway": "fd09::1"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.9.0.9"}, {"dst": "::/0"}],
        "dns": {"nameservers": ["10.9.0.53"], "domain": "example", "search": ["a", "b"], "options": ["ndots:2"]}
    })
}

/// The same answers for the same configuration; needs the package containernetworking-plugins.
#[test]
fn answers_are_those_of_the_reference() {
    let reference = format!("{REFERENCE}/static");
    let one = json!({"ipam": {"addresses": [{"address": "10.9.0.5/24"}]}});
    let asked = json!({"ipam": dual(), "runtimeConfig": {"ips": ["10.9.0.77/24"]}});
    let by_args = json!({"ipam": dual(), "args": {"cni": {"ips": ["10.9.0.78/24"]}}});
    let cases = [
        (json!({"ipam": dual()}), ""),
        (one.clone(), ""),
        (
            one,
            "IgnoreUnknown=1;IP=10.9.0.6/24,fd09::6/64;GATEWAY=10.9.0.1",
        ),
        (json!({"ipam": {}}), "IP=10.9.0.6/24"),
        (asked, ""),
        (by_args, ""),
    ];
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        for (rest, args) in &cases {
            let config = config(version, rest.clone());
            let call = Call {
                args: (*args).into(),
                ..Call::new("a", Path::new("/nowhere"))
            };
            let ours = call.ok("static", "ADD", &config);
            assert_eq!(ours, call.ok(&reference, "ADD", &config), "{config} {args}");
            let mut checked = config.clone();
            checked["prevResult"] = ours;
            if version != "0.3.1" {
                call.ok("static", "CHECK", &checked);
                call.ok(&reference, "CHECK", &checked);
            }
            call.ok("static", "DEL", &checked);
        }
    }
}

#[test]
fn keys_of_newer_routes() {
    let route = json!({"dst": "10.0.0.0/8", "gw": "10.9.0.1", "mtu": 1300, "advmss": 1200, "priority": 5, "table": 99, "scope": 0});
    let ipam = json!({"addresses": [{"address": "10.9.0.5/24"}], "routes": [route]});
    let call = Call::new("a", Path::new("/nowhere"));
    let mut newest = config("1.1.0", json!({"ipam": ipam}));
    let result = call.ok("static", "ADD", &newest);
    assert_eq!(result["routes"], json!([route]));
    call.ok("static", "STATUS", &newest);
    let older = call.ok("static", "ADD", &config("1.0.0", json!({"ipam": ipam})));
    assert_eq!(
        older["routes"],
        json!([{"dst": "10.0.0.0/8", "gw": "10.9.0.1"}])
    );
    newest["prevResult"] = result;
    call.ok("static", "CHECK", &newest);
    for (key, value, msg) in [
        (
            "address",
            "10.9.0.6/24",
            "static: address 10.9.0.5/24 is not in prevResult",
        ),
        (
            "gateway",
            "10.9.0.9",
            "static: address 10.9.0.5/24 has another gateway in prevResult",
        ),
    ] {
        let mut changed = newest.clone();
        changed["ipam"]["addresses"][0]["gateway"] = json!("10.9.0.1");
        changed["prevResult"]["ips"][0][key] = json!(value);
        assert_eq!(call.err("static", "CHECK", &changed)["msg"], msg);
    }
    newest["ipam"]["addresses"][0]["address"] = json!("10.9.0.5");
    assert_eq!(call.err("static", "STATUS", &newest)["code"], 50);
}
