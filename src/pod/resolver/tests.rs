//! What is known from records, and who asks where.

use std::path::Path;

use serde_json::json;

use super::message::{A, AAAA, Answer, PTR};
use super::*;
use crate::cgroup::Cgroup;
use crate::network::Cni;
use crate::pod::record::{ImageFacts, Policy};

fn pod(text: &str, state: &Path) -> Pod {
    let request = crate::compose::LoadRequest {
        files: Vec::new(),
        working_dir: "/srv".into(),
        project_name: Some("shop".into()),
        environment: Default::default(),
        env_files: Vec::new(),
        profiles: Vec::new(),
    };
    let loaded = crate::compose::load_text(text, "t", &request);
    let project = loaded.unwrap_or_else(|e| panic!("{}", e.message)).project;
    let images = project.services.keys();
    Pod {
        version: 1,
        created: String::new(),
        images: images.map(|n| (n.clone(), ImageFacts::default())).collect(),
        project,
        root: state.into(),
        state: state.into(),
        cgroup: Cgroup::own().unwrap(),
        cni: Cni {
            conf_dirs: vec![],
            plugin_dirs: vec![],
            state: state.into(),
        },
        policy: Policy::Compose,
        start: vec![],
        pid_namespace: 0,
        owner: None,
    }
}

#[test]
fn services_with_servers_of_their_own_ask_elsewhere() {
    let addresses = |text: &str| -> Vec<Option<String>> {
        let pod = pod(text, Path::new("/s"));
        let services = pod.project.services.values();
        services
            .map(|s| address(&pod, s).map(|ip| ip.to_string()))
            .collect()
    };
    let some = |list: &[&str]| {
        list.iter()
            .map(|ip| Some(ip.to_string()))
            .collect::<Vec<_>>()
    };
    let text = "services: {a: {image: i, dns: 9.9.9.9}, b: {image: i}, c: {image: i, dns: [9.9.9.9]}, d: {image: i, dns: [8.8.8.8, 9.9.9.9]}}";
    let expected = ["127.0.0.12", "127.0.0.11", "127.0.0.12", "127.0.0.13"];
    assert_eq!(addresses(text), some(&expected));
    // one that is a server itself has the port
    for own in ["expose: ['53/udp']", "ports: ['5300:53']", "expose: [53]"] {
        let text = format!("services: {{a: {{image: i, {own}}}, b: {{image: i}}}}");
        assert_eq!(addresses(&text), [None, None], "{own}");
    }
    assert_eq!(
        addresses("services: {a: {image: i, network_mode: host}}"),
        [None]
    );
    assert_eq!(
        addresses("services: {a: {image: i, network_mode: none, expose: [530]}}"),
        some(&["127.0.0.11"])
    );
}

#[test]
fn names_are_those_of_shared_networks() {
    let dir = tempfile::tempdir().unwrap();
    let interface = |network: &str, generated: bool, names: &[&str], addresses: &[&str]| {
        json!({
            "network": network, "generated": generated, "internal": false, "name": "eth0",
            "addresses": addresses, "gateways": [], "offers": [], "default_ipv4": false,
            "default_ipv6": false, "default_reason": "", "names": names, "publishes": false,
            "ports": [], "cache": "",
        })
    };
    let put = |pod: &str, interfaces: &[serde_json::Value]| {
        let folder = dir.path().join("pods").join(pod);
        std::fs::create_dir_all(&folder).unwrap();
        let sandbox = json!({"version": 1, "interfaces": interfaces, "attached": []});
        std::fs::write(folder.join("sandbox.json"), sandbox.to_string()).unwrap();
    };
    put(
        "shop",
        &[interface(
            "lan",
            true,
            &["shop", "web", "extra"],
            &["10.0.0.2/24"],
        )],
    );
    put(
        "other",
        &[
            interface(
                "lan",
                true,
                &["other", "db"],
                &["10.0.0.3/24", "fd00::3/64"],
            ),
            interface("back", true, &["other", "hidden"], &["10.0.1.3/24"]),
        ],
    );
    put(
        "third",
        &[interface("lan", true, &["third", "db"], &["10.0.0.4/24"])],
    );
    // a network of that name from a file is another one
    put(
        "fourth",
        &[interface("lan", false, &["fourth", "db"], &["10.0.9.4/24"])],
    );
    put("broken", &[json!({"nonsense": 1})]);
    let text = "services: {web: {image: i, hostname: Front, domainname: shop.lan, networks: {n: {aliases: [www]}}}}\nnetworks: {n: {name: lan}}";
    let pod = pod(text, dir.path());
    let mut names = Names::new(dir.path().join("pods"), &pod.project);
    let ips = |list: &[&str]| {
        list.iter()
            .map(|ip| Answer::Ip(ip.parse().unwrap()))
            .collect()
    };
    let own: Vec<Answer> = ips(&["127.0.0.1"]);
    for name in ["shop", "web", "front", "front.shop.lan", "www", "extra"] {
        assert_eq!(names.answer(name, A), Some(own.clone()), "{name}");
        assert_eq!(names.answer(name, AAAA), Some(vec![]), "{name}");
    }
    // name, type; addresses
    type Row = (&'static str, u16, Option<&'static [&'static str]>);
    let table: &[Row] = &[
        ("db", A, Some(&["10.0.0.3", "10.0.0.4"])),
        ("db", AAAA, Some(&["fd00::3"])),
        ("db", 15, Some(&[])),
        ("other", message::ANY, Some(&["10.0.0.3", "fd00::3"])),
        ("db.third", A, Some(&["10.0.0.4"])),
        ("db.lan", A, Some(&["10.0.0.3", "10.0.0.4"])),
        ("db.fourth", A, None),
        ("hidden", A, None),
        ("fourth", A, None),
        ("", A, None),
        ("db.", A, None),
        ("example.org", A, None),
    ];
    for (name, kind, expected) in table {
        assert_eq!(
            names.answer(name, *kind),
            expected.map(&ips),
            "{name} {kind}"
        );
    }
    let ptr = |names: &mut Names, name: &str, kind| names.answer(name, kind);
    let name = |text: &str| Answer::Name(text.to_string());
    let got = ptr(&mut names, "4.0.0.10.in-addr.arpa", PTR);
    assert_eq!(got, Some(vec![name("third"), name("db")]));
    assert_eq!(ptr(&mut names, "4.0.0.10.in-addr.arpa", A), Some(vec![]));
    assert_eq!(ptr(&mut names, "3.1.0.10.in-addr.arpa", PTR), None);
    // what changes is seen
    std::fs::remove_dir_all(dir.path().join("pods/third")).unwrap();
    std::thread::sleep(Duration::from_millis(25));
    assert_eq!(names.answer("db.third", A), None);
}
