//! What a task says of networks → networks of the pod.
//!
//! *Invariants:* networks are attached in the order in which they are named, and only those that are named; without any the pod is on
//! the host's network, as with Mesos. Several tasks are one pod: all that name networks name the same ones.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::Invalid;
use crate::executor::mesos::proto::container_info::{self, docker_info};
use crate::executor::mesos::proto::{NetworkInfo, TaskInfo};

/// Name of the bridge that tasks with Docker's `BRIDGE` share.
pub const BRIDGE: &str = "sampan-mesos";

/// Where the pod is.
#[derive(Debug, Clone, PartialEq)]
pub enum Networks {
    /// The task says nothing.
    Unsaid,
    /// The host's own network.
    Host,
    /// No interface but the loopback.
    None,
    /// The bridge of [`BRIDGE`].
    Bridge,
    /// CNI networks, in order.
    Named(Vec<Named>),
}

/// A CNI network to join.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// Name of its list.
    pub name: String,
    /// Wanted addresses.
    pub addresses: Vec<IpAddr>,
    /// For its plugins.
    pub labels: BTreeMap<String, String>,
    /// For its plugins.
    pub groups: Vec<String>,
}

/// A port of the container that is to be reached on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// On the host; 0 is any of the offered ones.
    pub host: u16,
    /// In the pod.
    pub container: u16,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// Which of the named networks it is a mapping of.
    pub network: Option<usize>,
}

/// The networks of one task, and its port mappings.
///
/// # Errors
/// For what cannot be a network, an address or a port.
pub fn networks(task: &TaskInfo) -> Result<(Networks, Vec<Mapping>), Invalid> {
    let Some(container) = &task.container else {
        return Ok((Networks::Unsaid, Vec::new()));
    };
    let at = |why: String| Invalid::of(task, format_args!("container.{why}"));
    let mut named = Vec::new();
    let mut mappings = Vec::new();
    for (index, info) in container.network_infos.iter().enumerate() {
        let at = |why: String| at(format!("network_infos[{index}].{why}"));
        // the agent's isolator does not attach one without a name either
        let network = network(info).map_err(at)?;
        let place = network.as_ref().map(|_| named.len());
        for port in &info.port_mappings {
            let (host, inside) = (port.host_port, port.container_port);
            let mapping = mapping(host, inside, port.protocol.as_deref()).map_err(at)?;
            mappings.push(Mapping {
                network: place,
                ..mapping
            });
        }
        if let Some(network) = network {
            if named.iter().any(|n: &Named| n.name == network.name) {
                return Err(at(format!("name: {} is joined already", network.name)));
            }
            named.push(network);
        }
    }
    let docker = container.docker.as_ref().filter(|_| {
        container_info::Type::try_from(container.r#type) == Ok(container_info::Type::Docker)
    });
    for (index, port) in docker.iter().flat_map(|d| &d.port_mappings).enumerate() {
        let at = |why: String| at(format!("docker.port_mappings[{index}].{why}"));
        let (host, inside) = (port.host_port, port.container_port);
        mappings.push(mapping(host, inside, port.protocol.as_deref()).map_err(at)?);
    }
    let networks = match docker.map(docker_network) {
        None if named.is_empty() => Networks::Unsaid,
        None => Networks::Named(named),
        Some(Err(why)) => return Err(at(why)),
        Some(Ok(docker_info::Network::User)) if named.is_empty() => {
            return Err(at(
                "docker.network: is USER, and no network is named in network_infos".to_owned(),
            ));
        }
        Some(Ok(docker_info::Network::User)) => Networks::Named(named),
        Some(Ok(_)) if !named.is_empty() => {
            return Err(at(
                "network_infos: name networks, and docker.network is not USER".to_owned(),
            ));
        }
        Some(Ok(docker_info::Network::Host)) => Networks::Host,
        Some(Ok(docker_info::Network::None)) => Networks::None,
        Some(Ok(docker_info::Network::Bridge)) => Networks::Bridge,
    };
    Ok((networks, mappings))
}

fn docker_network(docker: &container_info::DockerInfo) -> Result<docker_info::Network, String> {
    match docker.network {
        None => Ok(docker_info::Network::Host),
        Some(number) => docker_info::Network::try_from(number)
            .map_err(|_| "docker.network: is not known".to_owned()),
    }
}

fn mapping(host: u32, container: u32, protocol: Option<&str>) -> Result<Mapping, String> {
    let protocol = protocol.unwrap_or("tcp").to_ascii_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(format!("protocol: {protocol:?} is not tcp, udp or sctp"));
    }
    let host = u16::try_from(host).map_err(|_| format!("host_port: {host} is not a port"))?;
    match u16::try_from(container) {
        Ok(container @ 1..) => Ok(Mapping {
            host,
            container,
            protocol,
            network: None,
        }),
        _ => Err(format!("container_port: {container} is not a port")),
    }
}

fn network(info: &NetworkInfo) -> Result<Option<Named>, String> {
    let Some(name) = info.name.clone().filter(|name| !name.is_empty()) else {
        let says = !info.ip_addresses.is_empty() || !info.groups.is_empty();
        return match says {
            true => Err("name: is missing, and addresses or groups are asked for".to_owned()),
            false => Ok(None),
        };
    };
    let mut addresses = Vec::new();
    for wanted in info
        .ip_addresses
        .iter()
        .filter_map(|a| a.ip_address.as_ref())
    {
        let address: IpAddr = wanted
            .parse()
            .map_err(|_| format!("ip_addresses: {wanted:?} is not an address"))?;
        if addresses
            .iter()
            .any(|a: &IpAddr| a.is_ipv4() == address.is_ipv4())
        {
            return Err("ip_addresses: one address of each family can be asked for".to_owned());
        }
        addresses.push(address);
    }
    let labels = info.labels.iter().flat_map(|l| &l.labels);
    let labels = labels.map(|l| (l.key.clone(), l.value.clone().unwrap_or_default()));
    Ok(Some(Named {
        name,
        addresses,
        labels: labels.collect(),
        groups: info.groups.clone(),
    }))
}

/// The networks of a group: those of the tasks that say any.
///
/// # Errors
/// Where two of them say different ones.
pub fn together(tasks: &[TaskInfo], each: &[Networks]) -> Result<Networks, Invalid> {
    let mut found = &Networks::Unsaid;
    for (task, networks) in tasks.iter().zip(each) {
        match networks {
            Networks::Unsaid => {}
            _ if *found == Networks::Unsaid => found = networks,
            _ if found == networks => {}
            _ => {
                return Err(Invalid::of(
                    task,
                    "container: names other networks than another task of its group; the tasks of a group share one network",
                ));
            }
        }
    }
    Ok(found.clone())
}

impl Networks {
    /// `networks` at the top of a compose file.
    pub fn at_top(&self) -> Map<String, Value> {
        let mut out = Map::new();
        match self {
            Networks::Unsaid | Networks::Host | Networks::None => {}
            Networks::Bridge => drop(out.insert("bridge".to_owned(), json!({"name": BRIDGE}))),
            Networks::Named(all) => {
                for (index, network) in all.iter().enumerate() {
                    let entry = json!({
                        "external": true, "name": network.name,
                        "x-sampan": {"labels": network.labels, "groups": network.groups},
                    });
                    out.insert(key(index), entry);
                }
            }
        }
        out
    }

    /// What a service says of them: `networks`, or `network_mode`.
    pub fn of_service(&self) -> (&'static str, Value) {
        match self {
            Networks::Unsaid | Networks::Host => ("network_mode", json!("host")),
            Networks::None => ("network_mode", json!("none")),
            Networks::Bridge => ("networks", json!(["bridge"])),
            Networks::Named(all) => {
                let entries = all.iter().enumerate().map(|(index, network)| {
                    let mut entry = Map::new();
                    for address in &network.addresses {
                        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
                        entry.insert(format!("{family}_address"), json!(address));
                    }
                    (key(index), Value::Object(entry))
                });
                ("networks", Value::Object(entries.collect()))
            }
        }
    }

    /// The pod has no network namespace of its own.
    pub fn on_host(&self) -> bool {
        matches!(self, Networks::Unsaid | Networks::Host)
    }
}

/// Key of a network in the compose file.
pub fn key(index: usize) -> String {
    format!("mesos{index}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mesos::task::tests::task;

    fn found(container: Value) -> Result<(Networks, Vec<Mapping>), String> {
        networks(&task(json!({"container": container}))).map_err(|e| e.message)
    }

    #[test]
    fn where_a_task_is() {
        let named = |name: &str| Named {
            name: name.to_owned(),
            addresses: Vec::new(),
            labels: BTreeMap::new(),
            groups: Vec::new(),
        };
        let map = |host, container, protocol: &str, network| Mapping {
            host,
            container,
            protocol: protocol.to_owned(),
            network,
        };
        let wished = Named {
            addresses: vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            groups: vec!["g".to_owned()],
            ..named("x")
        };
        let docker = |docker: Value| json!({"type": "DOCKER", "docker": docker});
        let table = [
            (json!({"type": "MESOS"}), Networks::Unsaid, vec![]),
            (
                json!({"type": "MESOS", "network_infos": [{}]}),
                Networks::Unsaid,
                vec![],
            ),
            (
                json!({"type": "MESOS", "network_infos": [
                    {"port_mappings": [{"host_port": 31002, "container_port": 82}]}, {"name": "b"},
                    {"name": "a", "port_mappings": [{"host_port": 31000, "container_port": 80}]}]}),
                Networks::Named(vec![named("b"), named("a")]),
                vec![map(31002, 82, "tcp", None), map(31000, 80, "tcp", Some(1))],
            ),
            (
                json!({"type": "MESOS", "network_infos": [{"name": "x", "groups": ["g"], "labels": {"labels": [{"key": "a", "value": "b"}]}, "ip_addresses": [{"ip_address": "10.0.0.9"}, {"protocol": "IPv6", "ip_address": "fd00::9"}]}]}),
                Networks::Named(vec![wished]),
                vec![],
            ),
            (docker(json!({"image": "i"})), Networks::Host, vec![]),
            (
                docker(json!({"image": "i", "network": "NONE"})),
                Networks::None,
                vec![],
            ),
            (
                docker(
                    json!({"image": "i", "network": "BRIDGE", "port_mappings": [{"host_port": 0, "container_port": 53, "protocol": "UDP"}]}),
                ),
                Networks::Bridge,
                vec![map(0, 53, "udp", None)],
            ),
            (
                json!({"type": "DOCKER", "docker": {"image": "i", "network": "USER"}, "network_infos": [{"name": "a"}]}),
                Networks::Named(vec![named("a")]),
                vec![],
            ),
        ];
        for (given, networks, mappings) in table {
            assert_eq!(found(given.clone()), Ok((networks, mappings)), "{given}");
        }
    }

    #[test]
    fn what_is_refused() {
        let table = [
            (
                json!({"type": "MESOS", "network_infos": [{"name": "a"}, {"name": "a"}]}),
                "network_infos[1].name: a is joined already",
            ),
            (
                json!({"type": "MESOS", "network_infos": [{"name": "a", "ip_addresses": [{"ip_address": "10.0.0"}]}]}),
                "network_infos[0].ip_addresses: \"10.0.0\" is not an address",
            ),
            (
                json!({"type": "DOCKER", "docker": {"image": "i", "network": "USER"}}),
                "docker.network: is USER, and no network is named in network_infos",
            ),
            (
                json!({"type": "DOCKER", "docker": {"image": "i", "port_mappings": [{"host_port": 1, "container_port": 0}]}}),
                "docker.port_mappings[0].container_port: 0 is not a port",
            ),
        ];
        for (given, expected) in table {
            assert_eq!(found(given), Err(format!("task t: container.{expected}")));
        }
        let one = |name: &str| {
            task(json!({"container": {"type": "MESOS", "network_infos": [{"name": name}]}}))
        };
        let tasks = [one("a"), task(json!({})), one("b")];
        let each: Vec<_> = tasks.iter().map(|t| networks(t).unwrap().0).collect();
        assert_eq!(together(&tasks[..2], &each[..2]).unwrap(), each[0]);
        assert!(together(&tasks, &each).is_err());
    }
}
