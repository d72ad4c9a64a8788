//! Exact texts.

use super::*;
use serde_json::{Value, json};

/// A service with what is given over what a file without it gives.
fn service(given: Value) -> Service {
    let mut all = json!({
        "name": "web", "origin": {"file": "", "line": 0}, "image": "i", "pull_policy": "missing",
        "environment": {}, "group_add": [], "depends_on": {}, "ports": [], "expose": [],
        "networks": {}, "extra_hosts": [], "dns": [], "dns_search": [], "dns_opt": [],
        "volumes": [], "restart": "no", "stop_grace_period": {"secs": 10, "nanos": 0},
        "cap_add": [], "cap_drop": [], "privileged": false, "security_opt": [],
        "read_only": false, "init": false, "tty": false, "stdin_open": false, "ulimits": {},
        "sysctls": {}, "labels": {}, "devices": [], "limits": {
            "blkio": null, "cpus": null, "cpu_shares": null, "cpuset": null, "memory": null,
            "memory_reservation": null, "memory_swap": null, "pids": null},
        "profiles": [],
    });
    for (key, value) in given.as_object().unwrap() {
        all[key] = value.clone();
    }
    serde_json::from_value(all).unwrap()
}

fn project(services: Vec<Service>) -> Project {
    Project {
        name: "app".into(),
        working_dir: "/".into(),
        files: vec![],
        services: services.into_iter().map(|s| (s.name.clone(), s)).collect(),
        networks: vec![],
        volumes: Default::default(),
        pod: Default::default(),
    }
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|a| a.parse().unwrap()).collect()
}

#[test]
fn hosts_of_a_service() {
    let web = service(json!({"extra_hosts": [
        ["api", "10.1.1.1"], ["six", "[fd00::9]"], ["host.docker.internal", "host-gateway"]]}));
    let db = service(json!({
        "name": "db", "container_name": "app-db", "hostname": "db1", "domainname": "lan",
        "networks": {"back": {"aliases": ["postgres", "db"]}},
    }));
    let api = service(json!({"name": "api"}));
    let project = project(vec![web.clone(), db, api.clone()]);
    let gateways = ips(&["10.0.0.1", "fd00::1"]);
    assert_eq!(
        hosts(&project, &web, &gateways).unwrap(),
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         127.0.0.1\tdb app-db db1.lan db1 postgres\n\
         127.0.0.1\tweb\n\
         10.1.1.1\tapi\n\
         fd00::9\tsix\n\
         10.0.0.1\thost.docker.internal\n\
         fd00::1\thost.docker.internal\n"
    );
    assert_eq!(
        hosts(&project, &api, &[]).unwrap(),
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         127.0.0.1\tapi\n\
         127.0.0.1\tdb app-db db1.lan db1 postgres\n\
         127.0.0.1\tweb\n"
    );
}

#[test]
fn hosts_refused() {
    let table = [
        (
            json!({"extra_hosts": [["a", "host-gateway"]]}),
            "services.web.extra_hosts: `a`: `host-gateway` needs a network with a default route",
        ),
        (
            json!({"extra_hosts": [["a", "b"]]}),
            "services.web.extra_hosts: `a`: `b` is neither an address nor `host-gateway`",
        ),
        (
            json!({"extra_hosts": [["a\n1.1.1.1 b", "1.1.1.1"]]}),
            "services.web.extra_hosts: `a\n1.1.1.1 b`: must be one word without blanks and `#`",
        ),
        (
            json!({"hostname": "a b"}),
            "services.web: name `a b`: must be one word without blanks and `#`",
        ),
    ];
    for (given, expected) in table {
        let service = service(given);
        let project = project(vec![service.clone()]);
        let got = hosts(&project, &service, &[]).unwrap_err();
        assert_eq!(got.to_string(), expected);
    }
}

#[test]
fn resolv_conf_of_a_service() {
    let plain = || service(json!({}));
    let own = service(json!({"dns": ["9.9.9.9"], "dns_search": ["."], "dns_opt": ["ndots:1"]}));
    let plugin = Attached {
        nameservers: vec!["10.0.0.53".into(), "nonsense\nnameserver 6.6.6.6".into()],
        search: vec!["pod.lan".into(), "a b".into()],
        ..Attached::default()
    };
    let host = "# c\nnameserver 127.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\n\
        nameserver 192.0.2.1\ndomain old\nsearch a.lan b.lan\noptions edns0 trust-ad\n";
    let of_host = "nameserver 192.0.2.1\nsearch a.lan b.lan\noptions edns0 trust-ad\n";
    let of_plugin = "nameserver 10.0.0.53\nsearch pod.lan\noptions edns0 trust-ad\n";
    let two = [plugin.clone(), plugin];
    let table: &[(Service, &[Attached], &str, &str)] = &[
        (plain(), &[], host, of_host),
        (plain(), &[Attached::default()], host, of_host),
        (plain(), &two, host, of_plugin),
        (
            own.clone(),
            &two,
            host,
            "nameserver 9.9.9.9\nsearch .\noptions ndots:1\n",
        ),
        (plain(), &[], "nameserver 127.0.0.1\n", ""),
        (plain(), &[], "", ""),
    ];
    for (service, attached, host, expected) in table {
        let got = resolv_conf(service, attached, host, Source::Pod).unwrap();
        assert_eq!(got, *expected);
    }
    // the host's own loopback is there on the host's network
    let got = resolv_conf(&plain(), &[], "nameserver 127.0.0.53\n", Source::Host).unwrap();
    assert_eq!(got, "nameserver 127.0.0.53\n");
    let resolver = Source::Resolver("127.0.0.11".parse().unwrap());
    let got = resolv_conf(&plain(), &two, host, resolver).unwrap();
    let expected = "nameserver 127.0.0.11\nsearch pod.lan\noptions edns0 trust-ad ndots:0\n";
    assert_eq!(got, expected);
    let got = resolv_conf(&own, &two, host, resolver).unwrap();
    assert_eq!(got, "nameserver 127.0.0.11\nsearch .\noptions ndots:1\n");
    for (given, expected) in [
        (
            json!({"dns": ["dns.lan"]}),
            "services.web.dns: `dns.lan`: not an address",
        ),
        (
            json!({"dns_search": ["a\nb"]}),
            "services.web.dns_search: `a\nb`: must be one word without blanks and `#`",
        ),
    ] {
        let got = resolv_conf(&service(given), &[], "", Source::Pod).unwrap_err();
        assert_eq!(got.to_string(), expected);
    }
}
