//! The plugin `bandwidth`: how fast a container may receive and send.
//!
//! ```text
//! ingress  the host's end of the veth pair has a token bucket as its queue
//! egress   what comes in by the host's end is handed over to an ifb(4), which has the bucket and sends it on
//! subnets  ingress too takes the way over an ifb, and only the packets that count do
//! ```
//!
//! *Invariants*: an ifb's name follows from the attachment's tag, which is its alias. It is made and removed under the host
//! lock.

mod conf;

use serde_json::{Value, json};

use crate::conf::{Conf, format_mac};
use crate::error::{CniError, Result, all, with_undo};
use crate::link::{Direction, Kind, Link, Links, NewLink, Rate};
use crate::mark;
use crate::netns::HostLock;
use crate::result::AddResult;
use crate::skel::{Invocation, Plugin};
use crate::tag::{self, tag};
use conf::BandwidthConf;

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc,
    status,
};

const DIRECTIONS: [Direction; 2] = [Direction::Outgoing, Direction::Incoming];
const PREFIX: &str = "ifb";
/// Of an Ethernet header with a VLAN tag, in bytes.
const HEADER: u32 = 18;

/// The name of the ifb for a direction, at most 15 bytes.
fn ifb_name(tag: &str, direction: Direction) -> String {
    let side = match direction {
        Direction::Outgoing => 'i',
        Direction::Incoming => 'e',
    };
    format!("{PREFIX}{:010x}{side}", mark::hash(tag) >> 24)
}

fn own_tag(conf: &Conf, invocation: &Invocation) -> Result<String> {
    tag(&conf.name, &invocation.container_id, &invocation.ifname)
}

/// Where each limit is.
#[derive(Debug, Clone, Copy)]
struct Limit {
    direction: Direction,
    rate: Rate,
    /// On an interface of its own.
    over_ifb: bool,
}

fn limits(conf: &BandwidthConf, mtu: u32) -> Vec<Limit> {
    let limit = |direction, rate: Rate, over_ifb| Limit {
        direction,
        // a bucket smaller than a packet never lets one go
        rate: Rate {
            burst: rate.burst.max(mtu.saturating_add(HEADER)),
            ..rate
        },
        over_ifb,
    };
    let ingress = conf
        .ingress
        .map(|rate| limit(Direction::Outgoing, rate, !conf.is_for_all()));
    let egress = conf
        .egress
        .map(|rate| limit(Direction::Incoming, rate, true));
    ingress.into_iter().chain(egress).collect()
}

fn host_end(host: &mut Links, result: &AddResult, ifname: &str) -> Result<Link> {
    host.host_end(result)?.ok_or_else(|| {
        CniError::config(format!(
            "bandwidth: interface {ifname} is no end of a veth pair, of which the host's end is limited"
        ))
    })
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let bandwidth = BandwidthConf::new(conf)?;
    let result = conf.required_prev_result()?;
    let mut answer = conf.passed_on()?;
    if bandwidth.ingress.is_none() && bandwidth.egress.is_none() {
        return Ok(answer);
    }
    let tag = own_tag(conf, invocation)?;
    let _lock = HostLock::take()?;
    let mut host = Links::open()?;
    let port = host_end(&mut host, &result, &invocation.ifname)?;
    match limit_all(&mut host, &port, &bandwidth, &tag) {
        Ok(made) => {
            if let Some(interfaces) = answer["interfaces"].as_array_mut() {
                interfaces.extend(
                    made.iter()
                        .map(|link| json!({"name": link.name, "mac": format_mac(&link.mac)})),
                );
            }
            Ok(answer)
        }
        Err(error) => {
            let undone = all([host.unshape(&port), remove(&mut host, &tag)]);
            Err(with_undo(error, undone))
        }
    }
}

fn limit_all(host: &mut Links, port: &Link, conf: &BandwidthConf, tag: &str) -> Result<Vec<Link>> {
    let mut made = Vec::new();
    for limit in limits(conf, port.mtu) {
        if !limit.over_ifb {
            host.shape(port, &limit.rate)?;
            continue;
        }
        let name = ifb_name(tag, limit.direction);
        host.create(&NewLink {
            name: &name,
            kind: Kind::Ifb,
            lower: None,
            lower_netns: None,
            mtu: Some(port.mtu),
            mac: None,
        })?;
        let ifb = host.require(&name)?;
        host.set_alias(&ifb, tag)?;
        host.shape(&ifb, &limit.rate)?;
        host.up(&ifb)?;
        host.hand_packets(port, limit.direction, conf.choice(), &ifb)?;
        made.push(ifb);
    }
    Ok(made)
}

fn remove(host: &mut Links, tag: &str) -> Result<()> {
    let gone = DIRECTIONS.map(|direction| match host.by_name(&ifb_name(tag, direction))? {
        Some(ifb) if ifb.kind == Kind::Ifb.name() => host.delete(&ifb),
        _ => Ok(()),
    });
    all(gone)
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let tag = own_tag(conf, invocation)?;
    let _lock = HostLock::take()?;
    let mut host = Links::open()?;
    // the other end may be gone, and with it everything that is on it; before the ifb goes, so no packet is lost
    let port = match conf.prev_result()? {
        Some(result) => host.host_end(&result)?,
        None => None,
    };
    let unshaped = port.map_or(Ok(()), |port| host.unshape(&port));
    all([unshaped, remove(&mut host, &tag)])
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let bandwidth = BandwidthConf::new(conf)?;
    let result = conf.required_prev_result()?;
    let tag = own_tag(conf, invocation)?;
    let mut host = Links::open()?;
    let port = host_end(&mut host, &result, &invocation.ifname)?;
    for limit in limits(&bandwidth, port.mtu) {
        let (shaped, chosen) = if limit.over_ifb {
            let name = ifb_name(&tag, limit.direction);
            let ifb = host
                .by_name(&name)?
                .ok_or_else(|| CniError::check(format!("interface {name} not found")))?;
            let chosen = host.hands_packets(&port, limit.direction, bandwidth.choice())?;
            (ifb, chosen)
        } else {
            (port.clone(), true)
        };
        if !host.is_shaped(&shaped, &limit.rate)? {
            return Err(CniError::check(format!(
                "interface {} is not limited to {} bytes per second with a burst of {}",
                shaped.name, limit.rate.bytes, limit.rate.burst
            )));
        }
        if !chosen {
            return Err(CniError::check(format!(
                "packets of {} do not go by {}",
                port.name, shaped.name
            )));
        }
    }
    Ok(())
}

fn gc(conf: &Conf, _: &Invocation) -> Result<()> {
    let (valid, runtime) = (conf.valid_attachments()?, conf.runtime()?);
    let _lock = HostLock::take()?;
    let mut host = Links::open()?;
    let stale = |link: &Link| {
        // without an alias: its ADD was killed before it had one
        let unfinished = link.alias.is_empty() && is_ours(&link.name);
        link.kind == Kind::Ifb.name()
            && (unfinished || tag::is_stale(&conf.name, runtime, &valid, &link.alias))
    };
    let gone: Vec<Link> = host.all()?.into_iter().filter(stale).collect();
    all(gone.iter().map(|link| host.delete(link)))
}

/// Whether a name is one of [`ifb_name`].
fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| {
        rest.len() == 11
            && rest.ends_with(['i', 'e'])
            && rest.bytes().take(10).all(|digit| digit.is_ascii_hexdigit())
    })
}

fn status(conf: &Conf, _: &Invocation) -> Result<()> {
    let bandwidth = BandwidthConf::new(conf)?;
    if bandwidth.egress.is_some() || !bandwidth.is_for_all() {
        Links::open()?.require_driver(Kind::Ifb.name())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_recognized() {
        for direction in DIRECTIONS {
            let name = ifb_name("net container eth0", direction);
            assert!(name.len() < 16 && is_ours(&name), "{name}");
        }
        for name in [
            "ifb0",
            "ifb1",
            "ifb0123456789x",
            "ifb01234567890i",
            "veth0123456789i",
        ] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
