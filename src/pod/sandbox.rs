//! The pod's sandbox: its cgroup, its network namespace and the interfaces in it. A pod could have several: nothing
//! here is global.

use std::collections::BTreeSet;
use std::path::Path;

use super::layout::{Folders, PodDir};
use super::record::{self, Interface, Pod, PublishedPort, Sandbox};
use super::{Error, Result, lock, plan};
use crate::compose::project::Network;
use crate::network::{
    Attached, Attachment, Candidate, NetworkList, PortMapping, add_all, del_all, generate,
    keep_one_default, netns, offer_one_default, owner, preference, subnets,
};

/// Makes it. Runs in a single-threaded process; what a killed one left is removed first, what a failure leaves too.
pub fn up(dir: &Path) -> Result<()> {
    let pod: Pod = record::read(&dir.join("pod.json"))?
        .ok_or_else(|| Error::Other(format!("no pod in {}", dir.display())))?;
    let dir = PodDir::open(dir, &pod.root);
    let _only = lock::acquire(&dir.sandbox_lock())?;
    if dir.sandbox().exists() {
        // by a process that outlived its supervisor
        return Ok(());
    }
    down(&dir, &pod)?;
    let made = make(&dir, &pod);
    if made.is_err() {
        // reported by `down` again if it still cannot be done
        let _ = down(&dir, &pod);
    }
    made
}

fn make(dir: &PodDir, pod: &Pod) -> Result<()> {
    pod.cgroup.create()?;
    let limits = plan::resources(&pod.project.pod.limits, pod.cgroup.accounts_swap())
        .map_err(|why| Error::Other(format!("x-sampan.limits: {why}")))?;
    let limits = serde_json::from_value(limits)
        .map_err(|error| Error::Other(format!("x-sampan.limits: {error}")))?;
    pod.cgroup.apply(&limits)?;
    netns::create(&dir.netns())?;
    let ports: Vec<PublishedPort> = record::read(&dir.ports())?.unwrap_or_default();
    let plan = attachments(dir, pod, &ports)?;
    let attached = add_all(&pod.cni, &dir.netns(), &plan.attachments, &dir.network())?;
    keep_one_default(&dir.netns(), &plan.preferred)?;
    record::write(&dir.sandbox(), &sandbox(&plan, attached))
}

/// What is added, and which interfaces may have the default route, the best first.
struct Plan {
    attachments: Vec<Attachment>,
    preferred: Vec<String>,
}

fn attachments(dir: &PodDir, pod: &Pod, ports: &[PublishedPort]) -> Result<Plan> {
    let networks = &pod.project.networks;
    let names = interface_names(networks)?;
    let candidates: Vec<Candidate> = networks
        .iter()
        .zip(&names)
        .map(|(network, ifname)| Candidate {
            ifname: ifname.clone(),
            priority: network.attachment.gw_priority.unwrap_or(0),
            internal: network.internal,
        })
        .collect();
    let preferred = preference(&candidates);
    let mut attachments = Vec::new();
    for (network, ifname) in networks.iter().zip(names) {
        let list = network_list(dir, pod, network)?;
        let fixed = &network.attachment;
        attachments.push(Attachment {
            network: list,
            container_id: owner::container_id(&pod.state, &dir.name),
            ifname,
            ips: [
                fixed.ipv4_address.map(|ip| ip.to_string()),
                fixed.ipv6_address.map(|ip| ip.to_string()),
            ]
            .into_iter()
            .flatten()
            .collect(),
            mac: fixed.mac_address.clone(),
            ports: Vec::new(),
            aliases: fixed.aliases.clone(),
            args: owner::arguments(&dir.name),
            ..Attachment::default()
        });
    }
    offer_one_default(&mut attachments, &preferred);
    publish(&mut attachments, &preferred, ports)?;
    Ok(Plan {
        attachments,
        preferred,
    })
}

/// Names given, and `eth0`, `eth1`, … for the others.
fn interface_names(networks: &[Network]) -> Result<Vec<String>> {
    let given: BTreeSet<&String> = networks
        .iter()
        .filter_map(|n| n.attachment.interface_name.as_ref())
        .collect();
    let mut free = (0..)
        .map(|i| format!("eth{i}"))
        .filter(|name| !given.contains(name));
    networks
        .iter()
        .map(|network| {
            network
                .attachment
                .interface_name
                .clone()
                .or_else(|| free.next())
                .ok_or_else(|| Error::Other("no interface name left".to_string()))
        })
        .collect()
}

fn network_list(dir: &PodDir, pod: &Pod, network: &Network) -> Result<NetworkList> {
    if network.external {
        return pod.cni.load(&network.name).map_err(|error| {
            Error::Other(format!(
                "{}:{}: networks.{}: {error}",
                network.origin.file, network.origin.line, network.key
            ))
        });
    }
    let used = subnets::in_use(&pod.cni)?;
    let subnets = subnets::acquire(&pod.state, network, &dir.name, &used)?;
    Ok(generate(network, &subnets, &folders(pod).leases())?)
}

fn folders(pod: &Pod) -> Folders {
    Folders {
        root: pod.root.clone(),
        state: pod.state.clone(),
    }
}

/// Every port goes to the best network whose plugins can publish.
fn publish(
    attachments: &mut [Attachment],
    preferred: &[String],
    ports: &[PublishedPort],
) -> Result<()> {
    if ports.is_empty() {
        return Ok(());
    }
    let chosen = preferred.iter().find_map(|name| {
        attachments
            .iter()
            .position(|a| a.ifname == *name && a.network.declares("portMappings"))
    });
    let mappings: Vec<PortMapping> = ports.iter().map(|p| p.mapping.clone()).collect();
    match chosen.and_then(|i| attachments.get_mut(i)) {
        Some(attachment) => {
            attachment.ports = mappings;
            Ok(())
        }
        None => Err(Error::Other(
            "ports are published, but no network of the pod has a plugin with the capability portMappings (such as portmap)"
                .to_string(),
        )),
    }
}

fn sandbox(plan: &Plan, attached: Vec<Attached>) -> Sandbox {
    let default = plan.preferred.iter().find(|name| {
        plan.attachments
            .iter()
            .zip(&attached)
            .any(|(a, result)| a.ifname == **name && !result.gateways.is_empty())
    });
    let interfaces = plan
        .attachments
        .iter()
        .zip(&attached)
        .map(|(attachment, result)| Interface {
            network: attachment.network.name.clone(),
            name: attachment.ifname.clone(),
            addresses: result.addresses.clone(),
            gateways: result.gateways.clone(),
            default_route: default == Some(&attachment.ifname),
        })
        .collect();
    Sandbox {
        version: record::VERSION,
        interfaces,
        attached,
    }
}

/// Removes it from what is on disk; missing is success, and one failure does not keep the rest from being removed.
pub fn down(dir: &PodDir, pod: &Pod) -> Result<()> {
    let mut failed: Vec<Error> = Vec::new();
    let netns = dir.netns();
    let there = netns::exists(&netns).then_some(netns.as_path());
    if let Err(errors) = del_all(&pod.cni, there, &dir.network()) {
        failed.extend(errors.into_iter().map(Error::from));
    }
    failed.extend(netns::remove(&netns).err().map(Error::from));
    let removed = pod.cgroup.kill().and_then(|()| pod.cgroup.remove());
    failed.extend(removed.err().map(Error::from));
    if failed.is_empty() {
        for network in pod.project.networks.iter().filter(|n| !n.external) {
            let leases = folders(pod).leases();
            let released = subnets::release(&pod.state, &leases, &network.name, &dir.name);
            failed.extend(released.err().map(Error::from));
        }
        match std::fs::remove_file(dir.sandbox()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                failed.push(Error::io("remove", &dir.sandbox())(error));
            }
            _ => {}
        }
    }
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0)),
        _ => Err(Error::Several(failed)),
    }
}
