//! Phase 6, `ports` and `expose`: ranges expanded, and no port taken twice.
//!
//! *Invariants.* The services of a pod share one network namespace, so a port inside it belongs to one service: what
//! two services publish or expose alike is refused with both places. A port on the host is published once.

use std::collections::HashMap;
use std::net::IpAddr;

use super::node::{At, Pos, Result};
use super::project::Port;
use super::service::Context;
use super::units::port_range;

/// Ports of one service: published, exposed.
pub(super) fn ports(
    name: &str,
    at: &At<'_>,
    context: &mut Context<'_>,
) -> Result<(Vec<Port>, Vec<String>)> {
    let mut ports: Vec<Port> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for item in at.items_of("ports")? {
        for port in published(&item)? {
            context.count_port(&item)?;
            if seen.insert((
                port.host_ip,
                (port.published, port.published_end),
                port.target,
                port.protocol.clone(),
                port.network.clone(),
            )) {
                let holder = Holder {
                    service: name.to_owned(),
                    pos: item.node.pos.clone(),
                };
                context
                    .taken
                    .inside(&item, port.target, &port.protocol, &holder)?;
                context.taken.host(&item, &port, &holder)?;
                ports.push(port);
            }
        }
    }
    let mut exposed = Vec::new();
    for item in at.items_of("expose")? {
        for (port, protocol) in expose(&item)? {
            context.count_port(&item)?;
            let holder = Holder {
                service: name.to_owned(),
                pos: item.node.pos.clone(),
            };
            context.taken.inside(&item, port, protocol, &holder)?;
            exposed.push(expose_text(port, protocol));
        }
    }
    let mut known = std::collections::HashSet::new();
    exposed.retain(|text| known.insert(text.clone()));
    Ok((ports, exposed))
}

fn expose_text(port: u16, protocol: &str) -> String {
    match protocol {
        "tcp" => port.to_string(),
        _ => format!("{port}/{protocol}"),
    }
}

fn expose<'a>(item: &At<'a>) -> Result<impl Iterator<Item = (u16, &'a str)> + use<'a>> {
    let text = item.raw()?;
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    match port_range(range, 1) {
        Some((first, last)) if PROTOCOLS.contains(&protocol) => {
            Ok((first..=last).map(move |port| (port, protocol)))
        }
        _ => Err(item.error(format_args!(
            "{text:?} is not port, port/protocol or first-last"
        ))),
    }
}

const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

fn published(item: &At<'_>) -> Result<Vec<Port>> {
    let Some(target_at) = item.get("target") else {
        return Err(item.error("has no target, the port in the container"));
    };
    let range = |at: &At<'_>, low: u16| {
        let text = at.raw()?;
        port_range(text, low)
            .ok_or_else(|| at.error(format_args!("{text:?} is not a port or a range of ports")))
    };
    let (target, target_end) = range(&target_at, 1)?;
    let published = item
        .filled("published")
        .map(|at| range(&at, 0))
        .transpose()?;
    let protocol = item
        .get("protocol")
        .map_or(Ok("tcp".to_owned()), |at| at.string())?
        .to_ascii_lowercase();
    if !PROTOCOLS.contains(&protocol.as_str()) {
        return Err(item.error(format_args!(
            "protocol {protocol:?} is not one of {}",
            PROTOCOLS.join(", ")
        )));
    }
    if let Some(mode) = item.get("mode")
        && !matches!(mode.raw()?, "host" | "ingress")
    {
        return Err(mode.error("must be host or ingress"));
    }
    let host_ip = item.filled("host_ip").map(|at| host_ip(&at)).transpose()?;
    let choice = target == target_end;
    if let Some((first, last)) = published
        && last - first != target_end - target
        && !choice
    {
        return Err(item.error("the ranges differ in length"));
    }
    let published_end = published
        .filter(|(first, last)| choice && first < last)
        .map(|(_, last)| last);
    let network = item.find(&["x-sampan", "network"]);
    let network = network.map(|at| at.string()).transpose()?;
    let origin = item.node.pos.origin();
    let ports = (target..=target_end).enumerate().map(|(i, target)| Port {
        origin: origin.clone(),
        host_ip,
        // 0 asks for any free one
        published: published
            .map(|(first, _)| first.saturating_add(i as u16))
            .filter(|_| published != Some((0, 0))),
        published_end,
        target,
        protocol: protocol.clone(),
        network: network.clone(),
    });
    Ok(ports.collect())
}

fn host_ip(at: &At<'_>) -> Result<IpAddr> {
    let text = at.raw()?;
    text.parse()
        .map_err(|_| at.error(format_args!("{text:?} is not an IP address")))
}

/// Who holds which port, over all services.
#[derive(Default)]
pub(super) struct Taken {
    inside: HashMap<Key, Holder>,
    host: HashMap<Key, Vec<(Option<IpAddr>, Holder)>>,
}

/// Port and protocol.
type Key = (u16, String);

#[derive(Clone)]
struct Holder {
    service: String,
    pos: Pos,
}

impl Taken {
    fn inside(&mut self, item: &At<'_>, port: u16, protocol: &str, holder: &Holder) -> Result<()> {
        let first = self
            .inside
            .entry((port, protocol.to_owned()))
            .or_insert_with(|| holder.clone());
        match first.service == holder.service {
            true => Ok(()),
            false => Err(item.error(format_args!(
                "port {port}/{protocol} belongs to service {} already, at {}; the services of a pod share one network \
                 namespace: let one of them listen elsewhere",
                first.service, first.pos
            ))),
        }
    }

    fn host(&mut self, item: &At<'_>, port: &Port, holder: &Holder) -> Result<()> {
        // of a range that is free is known when the pod comes up
        let Some(published) = port.published.filter(|_| port.published_end.is_none()) else {
            return Ok(());
        };
        let taken = self
            .host
            .entry((published, port.protocol.clone()))
            .or_default();
        match taken.iter().find(|(ip, _)| overlap(*ip, port.host_ip)) {
            Some((_, other)) => Err(item.error(format_args!(
                "host port {published}/{} is published already, by service {} at {}; choose another one",
                port.protocol, other.service, other.pos
            ))),
            None => {
                taken.push((port.host_ip, holder.clone()));
                Ok(())
            }
        }
    }
}

/// Can two addresses not be bound to one port at once? `None` is every address of both families.
fn overlap(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    let (Some(a), Some(b)) = (a, b) else {
        return true;
    };
    a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())
}
