//! The pod's sandbox: its cgroup, its network namespace and the interfaces in it. A pod could have several: nothing
//! here is global.
//!
//! *Invariants:* what is wanted is on disk before it is done (`pod.json`, `ports.json`, `changes.json`), what is done is
//! in `sandbox.json` only when it is complete, and what is being changed is unknown there; [`change`] brings the
//! one into line with the other, wherever an earlier one was killed.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use super::layout::{Folders, PodDir};
use super::record::{self, Changes, Interface, Pod, PublishedPort, Sandbox};
use super::{Error, Result, adopt, interfaces, lock, plan};
use crate::compose::project::Network;
use crate::network::{
    self, Attached, Attachment, GENERATED, NetworkList, Offer, PortMapping, del_all, gc, interface,
    netns, offered, owner, settle, subnets,
};

/// Makes it. Runs in a single-threaded process; what a killed one left is removed first, what a failure leaves too.
pub fn up(dir: &Path) -> Result<()> {
    let (dir, pod) = open(dir)?;
    let first = !dir.sandbox_lock().exists();
    let _only = lock::acquire(&dir.sandbox_lock())?;
    if dir.sandbox().exists() {
        // by a process that outlived its supervisor
        return Ok(());
    }
    // what was there before the pod may be in its cgroup alone
    if !first || !pod.cgroup.processes()?.is_empty() {
        down(&dir, &pod)?;
    }
    let made = make(&dir, &pod);
    if made.is_err() {
        // reported by `down` again if it still cannot be done
        let _ = down(&dir, &pod);
    }
    made
}

/// Attaches, detaches and publishes until the pod is as its records want it. Runs in a single-threaded process. A
/// failure leaves what was there before, and what was complete by then.
pub fn change(dir: &Path) -> Result<()> {
    let (dir, pod) = open(dir)?;
    let _only = lock::acquire(&dir.sandbox_lock())?;
    let sandbox = record::read(&dir.sandbox())?
        .ok_or_else(|| Error::Other(format!("no sandbox in {}", dir.dir.display())))?;
    apply(&dir, &pod, sandbox)
}

fn open(dir: &Path) -> Result<(PodDir, Pod)> {
    let pod: Pod = record::read(&dir.join("pod.json"))?
        .ok_or_else(|| Error::Other(format!("no pod in {}", dir.display())))?;
    Ok((PodDir::open(dir, &pod.root), pod))
}

fn make(dir: &PodDir, pod: &Pod) -> Result<()> {
    pod.cgroup.create()?;
    let limits = plan::resources(&pod.project.pod.limits, pod.cgroup.accounts_swap())
        .map_err(|why| Error::Other(format!("x-sampan.limits: {why}")))?;
    let limits = serde_json::from_value(limits)
        .map_err(|error| Error::Other(format!("x-sampan.limits: {error}")))?;
    pod.cgroup.apply(&limits)?;
    let sandbox = Sandbox {
        version: record::VERSION,
        ..Sandbox::default()
    };
    if pod.project.on_host() {
        return record::put(&dir.sandbox(), &sandbox);
    }
    netns::create(&dir.netns())?;
    apply(dir, pod, sandbox)
}

/// Brings the interfaces from what `sandbox` says to what is wanted.
fn apply(dir: &PodDir, pod: &Pod, mut sandbox: Sandbox) -> Result<()> {
    let changes: Changes = record::read(&dir.changes())?.unwrap_or_default();
    let ports: Vec<PublishedPort> = record::read(&dir.ports())?.unwrap_or_default();
    let wanted = interfaces::wanted(&pod.project, &changes)?;
    let preferred = interfaces::preferred(&wanted);
    let before = sandbox.clone();
    let done = remove_unwanted(dir, pod, &wanted, &mut sandbox)
        .and_then(|()| add_missing(dir, pod, &wanted, &ports, &mut sandbox))
        .and_then(|()| publish(dir, pod, &wanted, &ports, &mut sandbox));
    interfaces::say_defaults(&wanted, &mut sandbox.interfaces);
    let offers: Vec<_> = sandbox
        .interfaces
        .iter()
        .map(|i| (i.name.clone(), i.offers.clone()))
        .collect();
    // also after a failure: what went took its route with it
    let settled = settle(&dir.netns(), &preferred, &offers).map_err(Error::from);
    match (done, settled) {
        (Ok(()), Ok(())) => {
            record::put(&dir.sandbox(), &sandbox)?;
            leave_networks(dir, pod, Some(&wanted))
        }
        // nothing stands yet that a record could speak of
        (Err(error), _) if before.interfaces.is_empty() => Err(error),
        (done, settled) => {
            let written = record::put(&dir.sandbox(), &sandbox);
            Error::all([done, settled, written].into_iter().filter_map(Result::err))
        }
    }
}

/// Deletes attachments that are not wanted any more, and those that a killed process left half made.
fn remove_unwanted(
    dir: &PodDir,
    pod: &Pod,
    wanted: &[(Network, String)],
    sandbox: &mut Sandbox,
) -> Result<()> {
    let mut failed = Vec::new();
    for file in caches(dir)? {
        let known = sandbox.interfaces.iter().position(|i| i.cache == file);
        let stays = known
            .and_then(|i| sandbox.interfaces.get(i))
            .is_some_and(|i| {
                let of_network =
                    |(n, name): &(Network, String)| *name == i.name && n.name == i.network;
                wanted.iter().any(of_network)
            });
        if stays {
            continue;
        }
        match network::del(&pod.cni, Some(&dir.netns()), &dir.network().join(&file)) {
            Ok(()) => {
                if let Some(i) = known {
                    sandbox.interfaces.remove(i);
                    sandbox.attached.remove(i);
                }
            }
            Err(error) => failed.push(Error::from(error)),
        }
    }
    Error::all(failed)
}

/// Names of the attachments' files, in the order of ADD.
fn caches(dir: &PodDir) -> Result<Vec<String>> {
    let path = dir.network();
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("read", &path))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if name.ends_with(".json") && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A network that is to be attached.
struct Missing<'a> {
    network: &'a Network,
    ifname: &'a str,
    list: NetworkList,
    /// Of its own addresses, where these tell them.
    gateways: Option<Vec<IpAddr>>,
    /// Published with it.
    ports: Vec<PortMapping>,
}

/// Attaches what is wanted and not there, in order. The lists are all read before anything is made.
fn add_missing(
    dir: &PodDir,
    pod: &Pod,
    wanted: &[(Network, String)],
    ports: &[PublishedPort],
    sandbox: &mut Sandbox,
) -> Result<()> {
    let mut missing = Vec::new();
    for (network, ifname) in wanted {
        if !sandbox.interfaces.iter().any(|i| i.name == *ifname) {
            let (list, gateways) = network_list(dir, pod, network)?;
            missing.push(Missing {
                network,
                ifname,
                list,
                gateways,
                ports: Vec::new(),
            });
        }
    }
    // all at once when the pod is made, later by `publish`
    if sandbox.interfaces.is_empty() {
        let able = |name: &str| {
            let mut all = missing.iter();
            all.any(|m| m.ifname == name && m.list.declares("portMappings"))
        };
        let published = interfaces::published(wanted, able, ports)?;
        for (missing, ports) in missing.iter_mut().zip(published) {
            missing.ports = ports;
        }
    }
    for missing in missing {
        let (interface, attached) = add(dir, pod, missing, sandbox)?;
        sandbox.interfaces.push(interface);
        sandbox.attached.push(attached);
    }
    Ok(())
}

fn add(
    dir: &PodDir,
    pod: &Pod,
    missing: Missing<'_>,
    sandbox: &Sandbox,
) -> Result<(Interface, Attached)> {
    let Missing {
        network,
        ifname,
        gateways,
        ..
    } = missing;
    let numbers = sandbox.interfaces.iter().filter_map(|i| {
        let number = i.cache.split('-').next()?;
        number.parse::<u32>().ok()
    });
    let number = numbers.max().map_or(0, |n| n + 1);
    let cache = format!("{number:02}-{ifname}.json");
    let path = dir.network().join(&cache);
    let attachment = attachment(dir, pod, network, ifname, missing.list, missing.ports);
    let add = || network::add(&pod.cni, &dir.netns(), &attachment, &path);
    let attached = match add() {
        // what stood in the way may be what others left
        Err(_) if network.external && frees(pod, &attachment.network) => add()?,
        attached => attached?,
    };
    let fixed = &network.attachment;
    let (ips, sysctls) = (&fixed.link_local_ips, &fixed.sysctls);
    let complete = interface::complete(&dir.netns(), ifname, ips, sysctls);
    let offers = complete.and_then(|()| match gateways {
        Some(gateways) => Ok(gateways.into_iter().map(offer).collect()),
        None => offered(&dir.netns(), ifname, &attachment.network, &attached),
    });
    let offers =
        offers.map_err(
            |error| match network::del(&pod.cni, Some(&dir.netns()), &path) {
                Ok(()) => Error::from(error),
                Err(left) => Error::Several(vec![error.into(), left.into()]),
            },
        )?;
    let interface = Interface {
        network: network.name.clone(),
        generated: !network.external,
        internal: network.internal,
        name: ifname.to_string(),
        addresses: attached.addresses.clone(),
        gateways: attached.gateways.clone(),
        offers,
        default_ipv4: false,
        default_ipv6: false,
        default_reason: String::new(),
        names: interfaces::pod_names(&pod.project, network),
        publishes: attachment.network.declares("portMappings"),
        ports: Some(attachment.ports),
        cache,
    };
    Ok((interface, attached))
}

/// Removes what attachments to a network left that are gone; whether addresses are free again. Why not is not what anybody asked.
fn frees(pod: &Pod, list: &NetworkList) -> bool {
    adopt::network_caches(&folders(pod)).is_ok_and(|caches| {
        gc::collect(&pod.cni, list, &caches, gc::Busy::Wait).is_ok_and(|freed| freed > 0)
    })
}

fn offer(gateway: IpAddr) -> Offer {
    Offer {
        ipv6: gateway.is_ipv6(),
        gateway: Some(gateway),
        metric: 0,
    }
}

fn attachment(
    dir: &PodDir,
    pod: &Pod,
    network: &Network,
    ifname: &str,
    list: NetworkList,
    ports: Vec<PortMapping>,
) -> Attachment {
    let fixed = &network.attachment;
    let v4 = fixed.ipv4_address.map(|ip| ip.to_string());
    let v6 = fixed.ipv6_address.map(|ip| ip.to_string());
    // those of `static` are in its configuration
    let in_list = network.ipam_driver.as_deref() == Some("static");
    let ips = v4.into_iter().chain(v6).filter(|_| !in_list);
    // elsewhere it follows from the address, so that neighbours need not learn it anew with each pod, or is the master's
    let alone = ["dummy", "macvlan", "tap"].contains(&network.driver.as_str());
    let stable = list.declares("mac") && (list.source != GENERATED || alone);
    let derived = || {
        let machine = interface::machine();
        interface::link_address(&machine, &dir.name, &network.name, ifname)
    };
    let mac = match &fixed.mac_address {
        None if stable => Some(derived()),
        given => given.clone(),
    };
    Attachment {
        ips: ips.collect(),
        mac,
        ports,
        aliases: interfaces::pod_names(&pod.project, network),
        container_id: owner::container_id(&pod.state, &dir.name),
        ifname: ifname.to_string(),
        args: owner::arguments(&dir.name, &network.extra.cni_args),
        groups: network.extra.groups.clone(),
        labels: network.extra.labels.clone(),
        capabilities: network.extra.capabilities.clone(),
        network: list,
    }
}

/// The network's list, and its gateways where its own addresses tell them.
fn network_list(
    dir: &PodDir,
    pod: &Pod,
    network: &Network,
) -> Result<(NetworkList, Option<Vec<IpAddr>>)> {
    if network.external {
        let list = pod.cni.load(&network.name).map_err(|error| {
            Error::Other(format!(
                "{}: networks.{}: {error}",
                network.origin, network.key
            ))
        })?;
        return Ok((list, None));
    }
    let used = subnets::in_use(&pod.cni)?;
    let subnets = subnets::acquire(&pod.state, network, &dir.name, &used)?;
    let list = network::generate(network, &subnets, &folders(pod).leases())?;
    let gateways = network::gateways(network, &subnets)?;
    // without any its plugins may have found one by themselves (dhcp)
    Ok((list, (!gateways.is_empty()).then_some(gateways)))
}

fn folders(pod: &Pod) -> Folders {
    Folders {
        root: pod.root.clone(),
        state: pod.state.clone(),
    }
}

/// Publishes every port on its own network, or on the best one whose plugins can, and on no other.
fn publish(
    dir: &PodDir,
    pod: &Pod,
    wanted: &[(Network, String)],
    ports: &[PublishedPort],
    sandbox: &mut Sandbox,
) -> Result<()> {
    let able = |name: &str| {
        let mut all = sandbox.interfaces.iter();
        all.any(|interface| interface.name == name && interface.publishes)
    };
    let published = interfaces::published(wanted, able, ports)?;
    let names = wanted.iter().map(|(_, name)| name.clone());
    let published: BTreeMap<String, Vec<PortMapping>> = names.zip(published).collect();
    let of = |interface: &Interface| published.get(&interface.name).cloned().unwrap_or_default();
    // first what goes: a port is on one interface at a time
    for going in [true, false] {
        for index in 0..sandbox.interfaces.len() {
            let Some(interface) = sandbox.interfaces.get_mut(index) else {
                continue;
            };
            let mut ports = of(interface);
            if going {
                let there = interface.ports.as_deref().unwrap_or_default();
                ports.retain(|port| there.contains(port));
            }
            if interface.ports.as_ref() == Some(&ports) {
                continue;
            }
            interface.ports = None;
            let cache = dir.network().join(&interface.cache);
            // whoever comes after a kill or a failure must not take the ports before for published
            record::put(&dir.sandbox(), sandbox)?;
            network::republish(&pod.cni, &dir.netns(), &ports, &cache)?;
            if let Some(interface) = sandbox.interfaces.get_mut(index) {
                interface.ports = Some(ports);
            }
        }
    }
    Ok(())
}

/// Leaves every generated network but those that are wanted.
fn leave_networks(dir: &PodDir, pod: &Pod, wanted: Option<&[(Network, String)]>) -> Result<()> {
    let mut failed = Vec::new();
    for entry in subnets::registered(&pod.state)? {
        let stays = |wanted: &[(Network, String)]| {
            wanted
                .iter()
                .any(|(n, _)| !n.external && n.name == entry.name)
        };
        if !entry.pods.contains(&dir.name) || wanted.is_some_and(stays) {
            continue;
        }
        let leases = folders(pod).leases();
        let left = subnets::release(&pod.state, &leases, &entry.name, &dir.name);
        failed.extend(left.err().map(Error::from));
    }
    Error::all(failed)
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
    pod.cgroup.remove_room();
    if failed.is_empty() {
        failed.extend(leave_networks(dir, pod, None).err());
        match fs::remove_file(dir.sandbox()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                failed.push(Error::io("remove", &dir.sandbox())(error));
            }
            _ => {}
        }
    }
    Error::all(failed)
}
