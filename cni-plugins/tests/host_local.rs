//! `host-local` as a process, and side by side with the reference plugin on the same files.

mod common;

use std::fs;
use std::path::Path;

use common::{Call, REFERENCE};
use serde_json::{Value, json};

fn config(folder: &Path, ipam: Value) -> Value {
    let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "x", "ipam": ipam});
    config["ipam"]["type"] = json!("host-local");
    config["ipam"]["dataDir"] = json!(folder);
    config
}

fn call(id: &str) -> Call {
    Call::new(id, Path::new("/nowhere"))
}

fn leases(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder.join("net"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
        .collect();
    names.sort();
    names
}

#[test]
fn life_of_a_lease() {
    let temp = tempfile::tempdir().unwrap();
    let resolv = temp.path().join("resolv.conf");
    fs::write(&resolv, "nameserver 10.9.0.53\nsearch a b\n").unwrap();
    let config = config(
        temp.path(),
        json!({
            "ranges": [[{"subnet": "10.9.0.0/29"}], [{"subnet": "fd09::/64", "gateway": "fd09::fe"}]],
            "routes": [{"dst": "0.0.0.0/0"}], "resolvConf": resolv
        }),
    );
    assert_eq!(
        call("a").ok("host-local", "ADD", &config),
        json!({
            "cniVersion": "1.0.0",
            "ips": [{"address": "10.9.0.2/29", "gateway": "10.9.0.1"}, {"address": "fd09::1/64", "gateway": "fd09::fe"}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {"nameservers": ["10.9.0.53"], "search": ["a", "b"]}
        })
    );
    assert_eq!(
        call("a").err("host-local", "ADD", &config),
        json!({
            "cniVersion": "1.0.0", "code": 101, "details": "",
            "msg": "failed to allocate for range 0: 10.9.0.2 has been allocated to a, duplicate allocation is not allowed"
        })
    );
    assert_eq!(leases(temp.path()), ["10.9.0.2", "fd09::1"]);
    call("a").ok("host-local", "CHECK", &config);
    call("b").ok("host-local", "ADD", &config);
    call("a").ok("host-local", "DEL", &config);
    call("a").ok("host-local", "DEL", &config);
    assert_eq!(
        call("a").err("host-local", "CHECK", &config)["msg"],
        "host-local: Failed to find address added by container a"
    );
    // round robin: the address just freed comes last
    for (id, expected) in [
        ("c", "10.9.0.4/29"),
        ("d", "10.9.0.5/29"),
        ("e", "10.9.0.6/29"),
        ("f", "10.9.0.2/29"),
    ] {
        assert_eq!(
            call(id).ok("host-local", "ADD", &config)["ips"][0]["address"],
            expected
        );
    }
    assert_eq!(
        call("g").err("host-local", "ADD", &config)["msg"],
        "failed to allocate for range 0: no IP addresses available in range set: 10.9.0.1-10.9.0.6"
    );
    assert_eq!(leases(temp.path()).len(), 10);
}

#[test]
fn a_failed_add_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let mut config = config(
        temp.path(),
        json!({"ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]}),
    );
    config["runtimeConfig"] = json!({"ips": ["fd09::1"]});
    let cases = [
        (
            json!(["fd09::1"]),
            "failed to allocate for range 1: requested ip fd09::1 is subnet's gateway",
        ),
        (
            json!(["10.9.0.7", "192.168.0.1"]),
            "failed to allocate all requested IPs: 192.168.0.1",
        ),
        (
            json!(["10.9.0.7", "10.9.0.8"]),
            "failed to allocate all requested IPs: 10.9.0.8",
        ),
    ];
    for (ips, msg) in cases {
        config["runtimeConfig"]["ips"] = ips;
        assert_eq!(call("a").err("host-local", "ADD", &config)["msg"], msg);
        assert_eq!(leases(temp.path()), [""; 0]);
    }
    config["runtimeConfig"]["ips"] = json!(["10.9.0.7/24", "fd09::7"]);
    let result = call("a").ok("host-local", "ADD", &config);
    assert_eq!(result["ips"][0]["address"], "10.9.0.7/24");
    assert_eq!(
        call("b").err("host-local", "ADD", &config)["msg"],
        "failed to allocate for range 0: requested IP address 10.9.0.7 is not available in range set 10.9.0.1-10.9.0.254"
    );
    config["runtimeConfig"] = json!({});
    let with_args = Call {
        args: "IgnoreUnknown=1;IP=10.9.0.99".into(),
        ..call("c")
    };
    assert_eq!(
        with_args.ok("host-local", "ADD", &config)["ips"][0]["address"],
        "10.9.0.99/24"
    );
    config["args"] = json!({"cni": {"ips": ["10.9.0.100"]}});
    assert_eq!(
        call("d").ok("host-local", "ADD", &config)["ips"][0]["address"],
        "10.9.0.100/24"
    );
}

#[test]
fn garbage_collection_and_status() {
    let temp = tempfile::tempdir().unwrap();
    let mut config = config(
        temp.path(),
        json!({"subnet": "10.9.0.0/29", "rangeStart": "10.9.0.2", "rangeEnd": "10.9.0.3"}),
    );
    config["cniVersion"] = json!("1.1.0");
    call("a").ok("host-local", "STATUS", &config);
    for id in ["a", "b"] {
        call(id).ok("host-local", "ADD", &config);
    }
    assert_eq!(call("a").err("host-local", "STATUS", &config)["code"], 50);
    assert_eq!(call("a").err("host-local", "GC", &config)["code"], 7);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    call("a").ok("host-local", "GC", &config);
    assert_eq!(leases(temp.path()), ["10.9.0.3"]);
    call("a").ok("host-local", "STATUS", &config);
}

/// Half of them are the reference plugin's; needs the package containernetworking-plugins.
#[test]
fn many_at_once_get_one_address_each() {
    let reference = format!("{REFERENCE}/host-local");
    let temp = tempfile::tempdir().unwrap();
    let config = config(temp.path(), json!({"subnet": "10.9.0.0/24"}));
    let mut got: Vec<String> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..50)
            .map(|n| {
                let config = &config;
                let program = if n % 2 == 0 { "host-local" } else { &reference };
                scope.spawn(move || {
                    call(&format!("c{n}")).ok(program, "ADD", config)["ips"][0]["address"]
                        .to_string()
                })
            })
            .collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    });
    got.sort();
    got.dedup();
    assert_eq!(got.len(), 50);
    assert_eq!(leases(temp.path()).len(), 50);
    // either takes back what the other gave
    for n in 0..50 {
        let program = if n % 2 == 0 { &reference } else { "host-local" };
        call(&format!("c{n}")).ok(program, "DEL", &config);
    }
    assert_eq!(leases(temp.path()), [""; 0]);
}

/// Leases that nobody took back go in one call; those of others stay: of the reference plugin (needs the package
/// containernetworking-plugins), of this one for another runtime, and what is no lease.
#[test]
fn a_pool_full_of_lost_leases() {
    let reference = format!("{REFERENCE}/host-local");
    let temp = tempfile::tempdir().unwrap();
    let mut config = config(temp.path(), json!({"subnet": "10.9.0.0/23"}));
    config["cniVersion"] = json!("1.1.0");
    let of = |runtime: &str| {
        let mut config = config.clone();
        config["args"] = json!({"sampan": {"runtime": runtime}});
        config
    };
    let mut older = config.clone();
    older["cniVersion"] = json!("1.0.0");
    call("theirs").ok(&reference, "ADD", &older);
    call("other").ok("host-local", "ADD", &of("other"));
    call("unsaid").ok("host-local", "ADD", &config);
    fs::write(temp.path().join("net/10.9.1.254"), "").unwrap();
    fs::create_dir(temp.path().join("net2")).unwrap();
    fs::write(temp.path().join("net2/10.9.0.2"), "gone\r\neth0").unwrap();
    let full = "failed to allocate for range 0: no IP addresses available in range set: 10.9.0.1-10.9.1.254";
    let mut count = 0;
    loop {
        let (code, answer) = call(&format!("lost{count}")).raw("host-local", "ADD", &of("us"));
        if code != 0 {
            assert_eq!(answer["msg"], full);
            break;
        }
        count += 1;
    }
    assert_eq!(count, 509 - 4);
    let mut gc = of("us");
    gc["cni.dev/valid-attachments"] = json!([
        {"containerID": "lost7", "ifname": "eth0"}, {"containerID": "lost8", "ifname": "eth1"}
    ]);
    let error = call("").err("host-local", "GC", &gc);
    assert_eq!(
        error["msg"],
        format!(
            "{} is not understood as a lease: if nobody uses the address, remove it",
            temp.path().join("net/10.9.1.254").display()
        )
    );
    let expected = [
        "10.9.0.12",
        "10.9.0.2",
        "10.9.0.3",
        "10.9.0.4",
        "10.9.1.254",
    ];
    assert_eq!(leases(temp.path()), expected);
    assert!(temp.path().join("net2/10.9.0.2").exists());
    fs::remove_file(temp.path().join("net/10.9.1.254")).unwrap();
    call("").ok("host-local", "GC", &gc);
    // who is asked for has its own
    for (runtime, left) in [("other", 3), ("", 2), ("us", 1)] {
        let mut gc = of(runtime);
        gc["cni.dev/valid-attachments"] = json!([]);
        call("").ok("host-local", "GC", &gc);
        assert_eq!(leases(temp.path()).len(), left, "{runtime}");
    }
    let names = fs::read_dir(temp.path().join("net")).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn a_subnet_of_the_node() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("node.json");
    fs::write(&file, r#"{"R": 4, "C": 7, "N": 259}"#).unwrap();
    let config = config(
        temp.path(),
        json!({"nodeFile": file, "ranges": [
            [{"subnet": "10.${R}.${C}.0/24", "exclude": ["10.${R}.${C}.2"], "reserved": ["10.4.7.3-10.4.7.100"]}],
            [{"subnet": "fd00::/48", "slice": {"bits": 64, "node": "${N}"}}]
        ]}),
    );
    let result = call("a").ok("host-local", "ADD", &config);
    assert_eq!(
        result["ips"],
        json!([
            {"address": "10.4.7.101/24", "gateway": "10.4.7.1"},
            {"address": "fd00:0:0:103::2/64", "gateway": "fd00:0:0:103::1"}
        ])
    );
    let wish = |ip: &str| {
        let mut config = config.clone();
        config["runtimeConfig"] = json!({"ips": [ip]});
        config
    };
    assert_eq!(
        call("b").err("host-local", "ADD", &wish("10.4.7.2"))["msg"],
        "failed to allocate for range 0: requested ip 10.4.7.2 is excluded"
    );
    let result = call("b").ok("host-local", "ADD", &wish("10.4.7.3"));
    assert_eq!(result["ips"][0]["address"], "10.4.7.3/24");
    // DEL needs no variables
    fs::remove_file(&file).unwrap();
    assert_eq!(
        call("c").err("host-local", "ADD", &config)["msg"],
        format!(
            "variable ${{R}} in ipam has no value: neither SAMPAN_NODE_R in the environment nor R in {}",
            file.display()
        )
    );
    for id in ["a", "b"] {
        call(id).ok("host-local", "DEL", &config);
    }
    assert_eq!(leases(temp.path()), [""; 0]);
}

/// Needs the package containernetworking-plugins.
#[test]
fn shares_its_files_with_the_reference_plugin() {
    let reference = format!("{REFERENCE}/host-local");
    let temp = tempfile::tempdir().unwrap();
    let config = config(
        temp.path(),
        json!({"ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]], "routes": [{"dst": "::/0"}]}),
    );
    let mut ours = call("a").ok("host-local", "ADD", &config);
    let content = fs::read(temp.path().join("net/10.9.0.2")).unwrap();
    call("a").ok(&reference, "CHECK", &config);
    call("a").ok(&reference, "DEL", &config);
    assert_eq!(leases(temp.path()), [""; 0]);
    // the round robin goes on where the other stopped
    let theirs = call("a").ok(&reference, "ADD", &config);
    ours["ips"][0]["address"] = json!("10.9.0.3/24");
    ours["ips"][1]["address"] = json!("fd09::3/64");
    assert_eq!(ours, theirs);
    assert_eq!(fs::read(temp.path().join("net/10.9.0.3")).unwrap(), content);
    call("a").ok("host-local", "CHECK", &config);
    assert_eq!(
        call("a").err("host-local", "ADD", &config)["msg"],
        call("a").err(&reference, "ADD", &config)["msg"]
    );
    call("a").ok("host-local", "DEL", &config);
    assert_eq!(leases(temp.path()), [""; 0]);
}
