//! Tables: a project and what was asked of it since, and the interfaces that come of it.

use super::*;
use crate::network::Offer;

fn project(text: &str) -> Project {
    let request = crate::compose::LoadRequest {
        files: Vec::new(),
        working_dir: "/srv/shop".into(),
        project_name: Some("shop".into()),
        environment: Default::default(),
        env_files: Vec::new(),
        profiles: Vec::new(),
    };
    crate::compose::load_text(text, "t", &request)
        .unwrap_or_else(|e| panic!("{}", e.message))
        .project
}

const TEXT: &str = "
services:
  web: {image: i, hostname: WWW, networks: {a: {aliases: [front]}, b: {interface_name: eth0}}}
  db: {image: i, container_name: store, networks: {c: {gw_priority: 5}}}
networks: {a: , b: {internal: true}, c: }
";

fn ifnames(project: &Project, changes: &Changes) -> Vec<(String, String)> {
    let wanted = wanted(project, changes).unwrap();
    let pairs = wanted
        .into_iter()
        .map(|(network, name)| (network.key, name));
    pairs.collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = list.iter().map(|(a, b)| (a.to_string(), b.to_string()));
    own.collect()
}

#[test]
fn names_stay() {
    let project = project(TEXT);
    let mut changes = Changes::default();
    let all = pairs(&[("a", "eth1"), ("b", "eth0"), ("c", "eth2")]);
    assert_eq!(ifnames(&project, &changes), all);
    changes.detached.insert("eth1".into());
    assert_eq!(
        ifnames(&project, &changes),
        pairs(&[("b", "eth0"), ("c", "eth2")])
    );
    // a name that was somebody's is not given again by itself
    assert_eq!(free_name(&project, &changes).unwrap(), "eth3");
    let mut again = project.networks[0].clone();
    again.attachment.interface_name = Some("eth3".into());
    changes.attached.push(again);
    assert_eq!(
        ifnames(&project, &changes),
        pairs(&[("b", "eth0"), ("c", "eth2"), ("a", "eth3")])
    );
    assert_eq!(free_name(&project, &changes).unwrap(), "eth4");
}

#[test]
fn no_network_has_no_interface() {
    for mode in ["none", "host"] {
        let project = project(&format!(
            "services: {{a: {{image: i, network_mode: {mode}}}}}"
        ));
        assert_eq!(ifnames(&project, &Changes::default()), []);
    }
}

#[test]
fn other_pods_know_the_services_of_a_network() {
    let project = project(TEXT);
    let names: Vec<_> = project
        .networks
        .iter()
        .map(|n| pod_names(&project, n))
        .collect();
    assert_eq!(
        names,
        [
            vec!["shop", "web", "www", "front"],
            vec!["shop", "web", "www"],
            vec!["shop", "db", "store"]
        ]
    );
    let mut later = project.networks[0].clone();
    later.key = "later".into();
    later.attachment.aliases = vec!["extra".into()];
    assert_eq!(
        pod_names(&project, &later),
        ["shop", "db", "store", "web", "www", "extra"]
    );
}

#[test]
fn default_routes_are_said_with_the_reason() {
    let project = project(TEXT);
    let wanted = wanted(&project, &Changes::default()).unwrap();
    let offer = |ipv6| Offer {
        ipv6,
        gateway: None,
        metric: 0,
    };
    let interface = |(network, name): &(Network, String), offers: &[Offer]| Interface {
        network: network.name.clone(),
        generated: true,
        internal: network.internal,
        name: name.clone(),
        addresses: vec![],
        gateways: vec![],
        offers: offers.to_vec(),
        default_ipv4: false,
        default_ipv6: false,
        default_reason: String::new(),
        names: vec![],
        publishes: true,
        ports: Some(vec![]),
        cache: String::new(),
    };
    let of: [&[Offer]; 3] = [
        &[offer(false), offer(true)],
        &[offer(false)],
        &[offer(false)],
    ];
    let mut all: Vec<_> = wanted
        .iter()
        .zip(of)
        .map(|(w, o)| interface(w, o))
        .collect();
    let said =
        |wanted: &[(Network, String)], all: &mut Vec<Interface>| -> Vec<(bool, bool, String)> {
            say_defaults(wanted, all);
            let of = all.iter();
            of.map(|i| (i.default_ipv4, i.default_ipv6, i.default_reason.clone()))
                .collect()
        };
    let row = |v4, v6, why: &str| (v4, v6, why.to_string());
    assert_eq!(
        said(&wanted, &mut all),
        [
            row(false, true, "the first network that offers one"),
            row(false, false, "the network is internal"),
            row(true, false, "gw_priority 5"),
        ]
    );
    let mut chosen = wanted.clone();
    chosen[0].0.extra.default = true;
    assert_eq!(
        said(&chosen, &mut all),
        [
            row(true, true, "x-sampan says default: true"),
            row(false, false, "the network is internal"),
            row(false, false, "eth1 has it"),
        ]
    );
    // the next one when the first goes
    all.remove(0);
    assert_eq!(
        said(&wanted[1..], &mut all)[1],
        row(true, false, "gw_priority 5")
    );
}

#[test]
fn where_ports_are_published() {
    let text = "services: {web: {image: i, networks: [a, b, c]}}\nnetworks: {a: , b: , c: }";
    let wanted = wanted(&project(text), &Changes::default()).unwrap();
    let port = |host_port, network: Option<&str>| PublishedPort {
        service: "web".into(),
        mapping: PortMapping {
            host_port,
            container_port: 80,
            protocol: "tcp".into(),
            host_ip: None,
        },
        network: network.map(str::to_owned),
    };
    let found = |able: &[&str], ports: &[PublishedPort]| {
        let found = published(&wanted, |name| able.contains(&name), ports);
        let hosts = |ports: Vec<PortMapping>| ports.into_iter().map(|p| p.host_port).collect();
        found
            .map(|all| all.into_iter().map(hosts).collect::<Vec<Vec<u16>>>())
            .map_err(|error| error.to_string())
    };
    let ports = [
        port(1, None),
        port(2, Some("a")),
        port(3, Some("c")),
        port(4, Some("gone")),
    ];
    assert_eq!(
        found(&["eth0", "eth1", "eth2"], &ports),
        Ok(vec![vec![1, 2], vec![], vec![3]])
    );
    assert_eq!(
        found(&["eth1", "eth2"], &ports[..1]),
        Ok(vec![vec![], vec![1], vec![]])
    );
    assert_eq!(
        found(&["eth1", "eth2"], &ports).unwrap_err(),
        "port 2 of service web is to be published on network shop_a, which has no plugin with the capability portMappings (such as portmap)"
    );
    assert_eq!(
        found(&[], &ports).unwrap_err(),
        "ports are published, but no network of the pod has a plugin with the capability portMappings (such as portmap)"
    );
    assert_eq!(found(&[], &[]), Ok(vec![vec![], vec![], vec![]]));
}
