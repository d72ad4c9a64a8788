//! Which interfaces a pod has, under which names, and which of them has the default route and the published ports.
//!
//! *Invariants:* pure; an interface keeps its name whatever is attached or detached beside it.

use std::collections::BTreeSet;

use super::record::{Changes, Interface, PublishedPort};
use super::{Error, Result};
use crate::compose::Project;
use crate::compose::project::{HOST_NETWORK, NO_NETWORK, Network};
use crate::network::{Candidate, PortMapping, preference, winner};

/// The networks of a pod with the names of their interfaces: the project's that were not taken away, then those attached
/// since.
pub fn wanted(project: &Project, changes: &Changes) -> Result<Vec<(Network, String)>> {
    let own = project
        .networks
        .iter()
        .filter(|n| ![HOST_NETWORK, NO_NETWORK].contains(&n.driver.as_str()));
    let own: Vec<Network> = own.cloned().collect();
    let names = names(&own)?;
    let own = own.into_iter().zip(names);
    let mut wanted: Vec<_> = own
        .filter(|(_, name)| !changes.detached.contains(name))
        .collect();
    for network in &changes.attached {
        let name = network.attachment.interface_name.clone();
        wanted.push((network.clone(), name.unwrap_or_default()));
    }
    Ok(wanted)
}

/// Names given, and `eth0`, `eth1`, … for the others.
fn names(networks: &[Network]) -> Result<Vec<String>> {
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

/// The first of `eth0`, `eth1`, … that none of them has, nor had.
pub fn free_name(project: &Project, changes: &Changes) -> Result<String> {
    let everything = Changes {
        detached: BTreeSet::new(),
        ..changes.clone()
    };
    let taken = wanted(project, &everything)?;
    (0..)
        .map(|i| format!("eth{i}"))
        .find(|name| !taken.iter().any(|(_, other)| other == name))
        .ok_or_else(|| Error::Other("no interface name left".to_string()))
}

/// What other pods on the network find the pod by: its own name, and those of its services that are on it.
pub fn pod_names(project: &Project, network: &Network) -> Vec<String> {
    let mut names = vec![project.name.clone()];
    let known = project.networks.iter().any(|n| n.key == network.key);
    for service in project.services.values() {
        // a network that came later is no service's in particular; a service without any shares those of another
        let on_it = !known || service.networks.is_empty();
        let own = service.networks.get(&network.key);
        if own.is_none() && !on_it {
            continue;
        }
        let of_service = [
            Some(&service.name),
            service.container_name.as_ref(),
            service.hostname.as_ref(),
        ];
        names.extend(of_service.into_iter().flatten().cloned());
        names.extend(own.into_iter().flat_map(|n| n.aliases.iter().cloned()));
    }
    names.extend(network.attachment.aliases.iter().cloned());
    let mut seen = BTreeSet::new();
    names.retain_mut(|name| {
        name.make_ascii_lowercase();
        seen.insert(name.clone())
    });
    names
}

/// Who may have the default route, the best first.
pub fn preferred(wanted: &[(Network, String)]) -> Vec<String> {
    let candidates: Vec<Candidate> = wanted
        .iter()
        .map(|(network, ifname)| Candidate {
            ifname: ifname.clone(),
            chosen: network.extra.default,
            priority: network.attachment.gw_priority.unwrap_or(0),
            internal: network.internal,
        })
        .collect();
    preference(&candidates)
}

/// The ports that each of the interfaces `wanted` publishes, in that order; those that name no network are on the first of `preferred` whose
/// plugins can. `able` tells whose can; a port whose network was detached waits for it.
///
/// # Errors
/// Where a port's own network cannot, or none can.
pub fn published(
    wanted: &[(Network, String)],
    able: impl Fn(&str) -> bool,
    ports: &[PublishedPort],
) -> Result<Vec<Vec<PortMapping>>> {
    let preferred = preferred(wanted);
    let usual = preferred.iter().find(|name| able(name));
    let mut out = vec![Vec::new(); wanted.len()];
    for port in ports {
        let place = match &port.network {
            Some(key) => wanted.iter().position(|(network, _)| network.key == *key),
            None => wanted.iter().position(|(_, name)| Some(name) == usual),
        };
        let of = place.and_then(|place| Some((wanted.get(place)?, out.get_mut(place)?)));
        match of {
            Some(((_, name), ports)) if able(name) => ports.push(port.mapping.clone()),
            Some(((network, _), _)) => {
                return Err(Error::Other(format!(
                    "port {} of service {} is to be published on network {}, which has no plugin with the capability portMappings (such as portmap)",
                    port.mapping.host_port, port.service, network.name
                )));
            }
            None if port.network.is_some() => {}
            None => {
                return Err(Error::Other(
                    "ports are published, but no network of the pod has a plugin with the capability portMappings (such as portmap)"
                        .to_string(),
                ));
            }
        }
    }
    Ok(out)
}

/// Says at each interface whether it has the default routes, and why.
pub fn say_defaults(wanted: &[(Network, String)], interfaces: &mut [Interface]) {
    let preferred = preferred(wanted);
    let offers: Vec<_> = interfaces
        .iter()
        .map(|i| (i.name.clone(), i.offers.clone()))
        .collect();
    let [v4, v6] = [false, true].map(|v6| winner(&preferred, &offers, v6).map(|(name, _)| name));
    for interface in interfaces {
        let name = interface.name.as_str();
        interface.default_ipv4 = v4 == Some(name);
        interface.default_ipv6 = v6 == Some(name);
        let network = wanted.iter().find(|(_, n)| n == name).map(|(n, _)| n);
        interface.default_reason = match network {
            _ if interface.internal => "the network is internal".to_string(),
            _ if interface.offers.is_empty() => "the network offers none".to_string(),
            Some(n) if interface.has_default() && n.extra.default => {
                "x-sampan says default: true".to_string()
            }
            Some(n) if interface.has_default() => match n.attachment.gw_priority {
                Some(priority) => format!("gw_priority {priority}"),
                None => "the first network that offers one".to_string(),
            },
            _ => {
                let mut others: Vec<_> = [v4, v6].into_iter().flatten().collect();
                others.dedup();
                format!("{} has it", others.join(" and "))
            }
        };
    }
}

#[cfg(test)]
#[path = "interfaces_tests.rs"]
mod tests;
