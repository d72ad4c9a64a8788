//! What plugins are handed: the configuration of one call, and whether what is asked for can be handed at all.
//!
//! *Invariants:* pure. A capability goes to the plugins that declare it and to no other; one that is asked for and that
//! no plugin declares is refused before anything runs, except those whose work is done anyway: `aliases` and `dns`
//! (the pod's own hosts and resolv.conf) and `labels` (all plugins get them in `args`).

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::conf::{declares, is_ifname, is_name};
use super::{Attachment, Cni, Error, NetworkList, owner};

/// Capabilities that may go unheard.
const OPTIONAL: &[&str] = &["aliases", "dns", "labels"];
/// Where Mesos told plugins about a container (its `docs/cni.md`).
const MESOS: &str = "org.apache.mesos";

/// Names, arguments, addresses, and wishes that nobody fulfils.
pub(super) fn validate(attachment: &Attachment) -> Result<(), Error> {
    let list = &attachment.network;
    if !is_name(&attachment.container_id) {
        return Err(Error::invalid(
            format!("container id `{}`", attachment.container_id),
            "must begin with a letter or digit and hold only these, `_`, `.` and `-`",
        ));
    }
    if !is_ifname(&attachment.ifname) {
        return Err(Error::invalid(
            format!(
                "interface `{}` of network `{}`",
                attachment.ifname, list.name
            ),
            "must be 1 to 15 characters without `/`, `:` and blanks",
        ));
    }
    for (key, value) in &attachment.args {
        // CNI §2 `CNI_ARGS`: there is no quoting
        if key.is_empty() || key.contains(['=', ';', '\0']) || value.contains([';', '\0']) {
            return Err(Error::invalid(
                format!("argument `{key}={value}` of network `{}`", list.name),
                "must be KEY=VALUE without `;`",
            ));
        }
    }
    for ip in &attachment.ips {
        if address(ip).is_none() {
            return Err(Error::invalid(
                format!("address `{ip}` of network `{}`", list.name),
                "not an address, with or without prefix",
            ));
        }
    }
    for capability in wishes(attachment).keys() {
        if !OPTIONAL.contains(&capability.as_str()) && !list.declares(capability) {
            let what = match capability.as_str() {
                "ips" => "a fixed address is asked for, but no plugin declares the capability",
                "mac" => "a fixed link address is asked for, but no plugin declares the capability",
                "portMappings" => {
                    "a published port is asked for, but no plugin declares the capability"
                }
                _ => "no plugin declares the capability",
            };
            return Err(Error::invalid(
                format!("network `{}` ({})", list.name, list.source),
                format!("{what} `{capability}`"),
            ));
        }
    }
    Ok(())
}

/// The configuration that a plugin is handed for an attachment (CNI §3 "Deriving request configuration"). `previous`
/// is the result that goes with it.
pub(super) fn of_attachment(
    cni: &Cni,
    attachment: &Attachment,
    plugin: &Value,
    previous: Option<&Value>,
) -> Map<String, Value> {
    let mut config = of_network(cni, &attachment.network, plugin);
    if let Some(previous) = previous {
        config.insert("prevResult".into(), previous.clone());
    }
    let mut wishes = wishes(attachment);
    wishes.retain(|capability, _| declares(plugin, capability));
    if !wishes.is_empty() {
        config.insert("runtimeConfig".into(), Value::Object(wishes));
    }
    add_args(&mut config, attachment);
    config
}

/// The configuration that a plugin is handed for a network as a whole: GC, STATUS.
pub(super) fn of_network(cni: &Cni, list: &NetworkList, plugin: &Value) -> Map<String, Value> {
    let mut config = plugin.as_object().cloned().unwrap_or_default();
    config.retain(|key, _| {
        !matches!(
            key.as_str(),
            "capabilities" | "prevResult" | "runtimeConfig"
        ) && !key.starts_with("cni.dev/")
    });
    config.insert("cniVersion".into(), list.version().into());
    config.insert("name".into(), list.name.clone().into());
    let runtime = json!({"runtime": owner::runtime(&cni.state)});
    if let Some(args) = args(&mut config) {
        args.insert("sampan".into(), runtime);
    }
    config
}

/// `args` of a configuration, made where it is missing. `None`: the file has something else there, which is its
/// plugin's matter.
fn args(config: &mut Map<String, Value>) -> Option<&mut Map<String, Value>> {
    let args = config.entry("args").or_insert_with(|| json!({}));
    args.as_object_mut()
}

/// Everything that is asked for by the name of its capability (CNI CONVENTIONS.md "Well-known Capabilities").
fn wishes(attachment: &Attachment) -> Map<String, Value> {
    let a = attachment;
    let mut wishes = a.capabilities.clone();
    let mut wish = |capability: &str, wanted: bool, value: Value| {
        if wanted {
            wishes.insert(capability.into(), value);
        }
    };
    wish("ips", !a.ips.is_empty(), json!(a.ips));
    wish("mac", a.mac.is_some(), json!(a.mac));
    wish("portMappings", !a.ports.is_empty(), json!(a.ports));
    wish("aliases", !a.aliases.is_empty(), json!(a.aliases));
    wish("labels", !a.labels.is_empty(), json!(a.labels));
    wishes
}

/// What plugins may look at or not (CNI CONVENTIONS.md "args in network config"): labels and addresses under `cni`, and
/// under `org.apache.mesos` the JSON form of Mesos' message `NetworkInfo`, for plugins written for its isolator. Only
/// where there is anything to tell; what the file has in `args` stays.
fn add_args(config: &mut Map<String, Value>, attachment: &Attachment) {
    let a = attachment;
    if a.labels.is_empty() && a.ips.is_empty() && a.ports.is_empty() && a.groups.is_empty() {
        return;
    }
    let labels: Vec<_> = a
        .labels
        .iter()
        .map(|(key, value)| json!({"key": key, "value": value}))
        .collect();
    let mut cni = Map::new();
    let mut info = Map::from_iter([("name".to_string(), json!(a.network.name))]);
    if !labels.is_empty() {
        cni.insert("labels".into(), json!(labels));
        info.insert("labels".into(), json!({"labels": labels}));
    }
    if !a.groups.is_empty() {
        info.insert("groups".into(), json!(a.groups));
    }
    if !a.ips.is_empty() {
        cni.insert("ips".into(), json!(a.ips));
        let addresses: Vec<_> = a.ips.iter().filter_map(|ip| address(ip)).collect();
        let addresses: Vec<_> = addresses.iter().map(mesos_address).collect();
        info.insert("ip_addresses".into(), json!(addresses));
    }
    if !a.ports.is_empty() {
        let mappings = a.ports.iter().map(|port| {
            json!({"host_port": port.host_port, "container_port": port.container_port, "protocol": port.protocol})
        });
        info.insert("port_mappings".into(), mappings.collect());
    }
    let Some(args) = args(config) else { return };
    if !cni.is_empty() {
        match args.get_mut("cni").and_then(Value::as_object_mut) {
            Some(known) => known.extend(cni),
            None => drop(args.insert("cni".into(), Value::Object(cni))),
        }
    }
    args.insert(MESOS.into(), json!({"network_info": info}));
}

/// `NetworkInfo.IPAddress`: the protocol has a default, which its JSON form always shows.
fn mesos_address(address: &IpAddr) -> Value {
    let protocol = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({"protocol": protocol, "ip_address": address})
}

/// An address with or without prefix.
fn address(text: &str) -> Option<IpAddr> {
    let with_prefix = || text.parse::<IpNet>().ok().map(|net| net.addr());
    text.parse().ok().or_else(with_prefix)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
