//! The plugin `host-local`: addresses from ranges, leased in files.
//!
//! *Invariants*: configuration, errors and files are those of the reference plugin, so either can take over the other's
//! leases; what this one can do beside (variables of the node, [`node`]; addresses kept back, [`ranges`]; GC) the other
//! doesn't see. Every look and change happens under the network's lock; a lease is on disk before ADD answers; an ADD that
//! fails leaves no lease. [`ranges`] decides what may be given, [`store`] knows what is.

mod node;
mod ranges;
mod store;

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::conf::{Conf, arg, parse_ip};
use crate::error::{
    CniError, DECODE_FAILURE, INVALID_ENVIRONMENT, NO_ADDRESS, NOT_AVAILABLE, Result,
};
use crate::result::{AddResult, Dns, IpConfig, Route};
use crate::skel::{Invocation, Plugin};
use ranges::{Range, RangeSet};
use store::{Owner, Store};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc,
    status,
};

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";
/// Longer resolver files are no resolver files.
const MAX_RESOLV_CONF: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    ipam: WireIpam,
    #[serde(default)]
    runtime_config: WireRuntime,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireIpam {
    #[serde(flatten)]
    shorthand: ranges::WireRange,
    #[serde(default)]
    ranges: Vec<Vec<ranges::WireRange>>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    resolv_conf: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireRuntime {
    #[serde(default)]
    ip_ranges: Vec<Vec<ranges::WireRange>>,
}

#[derive(Debug)]
struct Ipam {
    sets: Vec<RangeSet>,
    routes: Vec<Route>,
    requested: Vec<IpAddr>,
    resolv_conf: Option<PathBuf>,
    folder: PathBuf,
}

impl Ipam {
    fn new(conf: &Conf, args: &str) -> Result<Self> {
        if conf.value.get("ipam").is_none_or(Value::is_null) {
            return Err(CniError::config("IPAM config missing 'ipam' key"));
        }
        let wire: Wire = node::expanded(conf)?.parse()?;
        let mut wire_sets = wire.runtime_config.ip_ranges;
        if wire.ipam.shorthand.subnet.is_some() {
            wire_sets.push(vec![wire.ipam.shorthand]);
        }
        wire_sets.extend(wire.ipam.ranges);
        let sets = ranges::read(wire_sets)?;

        let mut requested = Vec::new();
        if let Some(text) = arg(args, "IP") {
            requested.push(parse_ip(text).ok_or_else(|| {
                CniError::new(
                    INVALID_ENVIRONMENT,
                    format!("IP={text} in CNI_ARGS is not an address"),
                )
            })?);
        }
        let in_config = conf.requested_ips()?;
        for text in in_config.args.iter().chain(&in_config.capability) {
            let ip = parse_ip(text).ok_or_else(|| {
                CniError::new(
                    DECODE_FAILURE,
                    format!("requested address {text:?} is not an address"),
                )
            })?;
            if !requested.contains(&ip) {
                requested.push(ip);
            }
        }
        Ok(Self {
            sets,
            routes: wire.ipam.routes,
            requested,
            resolv_conf: wire
                .ipam
                .resolv_conf
                .filter(|path| !path.as_os_str().is_empty()),
            folder: folder(conf)?,
        })
    }
}

/// Where the network's leases are. Nothing else is read for it: DEL and GC work although the ranges have become wrong.
fn folder(conf: &Conf) -> Result<PathBuf> {
    let data_dir = match conf.value.get("ipam").and_then(|ipam| ipam.get("dataDir")) {
        None | Some(Value::Null) => "",
        Some(Value::String(path)) => path,
        Some(other) => {
            return Err(CniError::config(format!("ipam.dataDir {other} is no path")));
        }
    };
    let data_dir = if data_dir.is_empty() {
        DEFAULT_DATA_DIR
    } else {
        data_dir
    };
    Ok(Path::new(data_dir).join(&conf.name))
}

fn owner(invocation: &Invocation) -> Owner {
    Owner::new(&invocation.container_id, &invocation.ifname)
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let ipam = Ipam::new(conf, &invocation.args)?;
    let dns = ipam
        .resolv_conf
        .as_deref()
        .map(read_resolv_conf)
        .transpose()?
        .unwrap_or_default();
    let store = Store::open(&ipam.folder)?;
    let owner = owner(invocation);
    let mut taken = Vec::new();
    let runtime = conf.runtime()?;
    let ips = lease(&ipam, &store, &owner, runtime, &mut taken).map_err(|mut error| {
        for ip in &taken {
            if let Err(undo) = store.release(*ip, &owner) {
                error.details = format!("{}; {undo}", error.details);
            }
        }
        error
    })?;
    let result = AddResult {
        ips,
        routes: ipam.routes,
        dns,
        ..AddResult::default()
    };
    result.to_json(&conf.cni_version)
}

/// One address of each set; `taken` grows with each lease, so that the caller can undo.
fn lease(
    ipam: &Ipam,
    store: &Store,
    owner: &Owner,
    runtime: &str,
    taken: &mut Vec<IpAddr>,
) -> Result<Vec<IpConfig>> {
    let mut open = ipam.requested.clone();
    let held = store.of_new(owner)?;
    let mut ips = Vec::new();
    for (index, set) in ipam.sets.iter().enumerate() {
        let failed = |why: String| {
            CniError::new(
                NO_ADDRESS,
                format!("failed to allocate for range {index}: {why}"),
            )
        };
        // CNI §2 "ADD": an attachment is added once
        if let Some(ip) = held.iter().find(|ip| set.range_of(**ip).is_some()) {
            let id = &owner.container_id;
            return Err(failed(format!(
                "{ip} has been allocated to {id}, duplicate allocation is not allowed"
            )));
        }
        let wanted = open
            .iter()
            .position(|ip| set.range_of(*ip).is_some())
            .map(|at| open.remove(at));
        let ip = match wanted {
            Some(ip) => {
                if let Some(why) = set.range_of(ip).and_then(|range| range.refuses(ip)) {
                    return Err(failed(format!("requested ip {ip} is {why}")));
                }
                if store.is_leased(ip)? {
                    return Err(failed(format!(
                        "requested IP address {ip} is not available in range set {set}"
                    )));
                }
                ip
            }
            None => free(set, store, index)?
                .ok_or_else(|| failed(format!("no IP addresses available in range set: {set}")))?,
        };
        taken.push(ip);
        store.lease(ip, owner, runtime, index)?;
        ips.extend(set.range_of(ip).map(|range| range.config(ip)));
    }
    if open.is_empty() {
        return Ok(ips);
    }
    let list: Vec<String> = open.iter().map(IpAddr::to_string).collect();
    Err(CniError::new(
        NO_ADDRESS,
        format!("failed to allocate all requested IPs: {}", list.join(" ")),
    ))
}

/// The next free address, beginning after the last that was given: a container that comes back soon has another one.
fn free(set: &RangeSet, store: &Store, index: usize) -> Result<Option<IpAddr>> {
    for ip in set.after(store.last_reserved(index)?) {
        if !store.is_leased(ip)? {
            return Ok(Some(ip));
        }
    }
    Ok(None)
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    match Store::open_if_present(&folder(conf)?)? {
        Some(store) => store.release_all(&owner(invocation)),
        None => Ok(()),
    }
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let ipam = Ipam::new(conf, &invocation.args)?;
    let held = match Store::open_if_present(&ipam.folder)? {
        Some(store) => store.of(&owner(invocation))?,
        None => Vec::new(),
    };
    if held.is_empty() {
        let id = &invocation.container_id;
        return Err(CniError::check(format!(
            "host-local: Failed to find address added by container {id}"
        )));
    }
    Ok(())
}

/// Frees the leases that this plugin gave for the calling runtime to attachments that aren't valid any more. The folder
/// may be another runtime's too, which knows attachments that the caller doesn't: what has no mark of the caller stays.
fn gc(conf: &Conf, _: &Invocation) -> Result<()> {
    let attachments = conf.valid_attachments()?;
    let valid: HashSet<(&str, &str)> = attachments
        .iter()
        .map(|attachment| (&*attachment.container_id, &*attachment.ifname))
        .collect();
    let runtime = conf.runtime()?;
    match Store::open_if_present(&folder(conf)?)? {
        Some(store) => store.retain(|owner, mark| {
            mark != Some(runtime)
                || owner
                    .ifname
                    .as_deref()
                    .is_none_or(|ifname| valid.contains(&(&*owner.container_id, ifname)))
        }),
        None => Ok(()),
    }
}

fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let unavailable = |error: CniError| {
        CniError::new(NOT_AVAILABLE, "host-local can't lease an address").because(error)
    };
    let ipam = Ipam::new(conf, &invocation.args).map_err(unavailable)?;
    let store = Store::open(&ipam.folder).map_err(unavailable)?;
    for (index, set) in ipam.sets.iter().enumerate() {
        if free(set, &store, index).map_err(unavailable)?.is_none() {
            return Err(unavailable(CniError::config(format!(
                "no IP addresses available in range set: {set}"
            ))));
        }
    }
    Ok(())
}

fn read_resolv_conf(path: &Path) -> Result<Dns> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_RESOLV_CONF).read_to_string(&mut text))
        .map_err(|cause| CniError::io("read", path, &cause))?;
    Ok(parse_resolv_conf(&text))
}

/// resolv.conf(5).
fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        let mut words = line.split_whitespace();
        let Some(keyword) = words.next() else {
            continue;
        };
        match keyword {
            "nameserver" => dns.nameservers.extend(words.next().map(str::to_owned)),
            "domain" => dns.domain = words.next().unwrap_or_default().to_owned(),
            // the last one counts
            "search" => dns.search = words.map(str::to_owned).collect(),
            "options" => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

impl Range {
    fn config(&self, ip: IpAddr) -> IpConfig {
        IpConfig {
            interface: None,
            address: self.with_prefix(ip),
            gateway: self.gateway,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolver_file() {
        let dns = parse_resolv_conf(
            "# comment\nnameserver 10.0.0.1\n\n  nameserver fd00::1\ndomain a.b\nsearch x\nsearch y z\noptions ndots:2 rotate\n;x\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.1", "fd00::1"]);
        assert_eq!(dns.domain, "a.b");
        assert_eq!(dns.search, ["y", "z"]);
        assert_eq!(dns.options, ["ndots:2", "rotate"]);
    }
}
