//! The plugin `sbr`: packets leave by the interface that has their source address.
//!
//! *Invariants*: each address of the interface has a rule that leads to a table of its own, unless `table` names one that
//! somebody else fills. The routes of the interface are in those tables and, but for `addSourceHints`, nowhere else; only
//! link-local routes stay where they were, for whom no source decides. Everything is in the container.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::conf::Conf;
use crate::error::{CniError, Result, all, with_undo};
use crate::link::{KernelRoute, Link, Links, SourceRule};
use crate::netns::{HostLock, Netns};
use crate::result::{IpConfig, Route};
use crate::skel::{Invocation, Plugin};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc: |_, _| Ok(()),
    status: |conf, _| {
        SbrConf::new(conf)
            .map(|_| ())
            .map_err(CniError::unavailable)
    },
};

/// The reference plugin's first table.
const FIRST_TABLE: u32 = 100;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SbrConf {
    table: Option<u32>,
    #[serde(default)]
    gateways: Vec<IpAddr>,
    #[serde(default)]
    add_source_hints: bool,
}

impl SbrConf {
    fn new(conf: &Conf) -> Result<Self> {
        let sbr: Self = conf.parse()?;
        if sbr.table == Some(0) {
            return Err(CniError::config("table 0 is no routing table"));
        }
        for v4 in [true, false] {
            if sbr.gateways.iter().filter(|ip| ip.is_ipv4() == v4).count() > 1 {
                return Err(CniError::config(
                    "gateways has more than one address of a family",
                ));
            }
        }
        Ok(sbr)
    }

    fn gateway(&self, ip: &IpConfig) -> Option<IpAddr> {
        let v4 = ip.address.addr().is_ipv4();
        let own = self.gateways.iter().copied().find(|ip| ip.is_ipv4() == v4);
        own.or(ip.gateway)
    }
}

fn addresses(conf: &Conf, ifname: &str) -> Result<Vec<IpConfig>> {
    let result = conf.required_prev_result()?;
    let ips: Vec<IpConfig> = result.container_ips(ifname).cloned().collect();
    if ips.is_empty() {
        return Err(CniError::config(format!(
            "sbr: prevResult has no address of interface {ifname}"
        )));
    }
    Ok(ips)
}

fn host_net(ip: IpAddr) -> IpNet {
    ip.into()
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let sbr = SbrConf::new(conf)?;
    let ips = addresses(conf, &invocation.ifname)?;
    let netns = Netns::open(invocation.required_netns()?)?;
    // two interfaces of one container must not find the same table free
    let _lock = netns.run(HostLock::take)?;
    let mut pod = netns.run(Links::open)?;
    let link = pod.require(&invocation.ifname)?;
    let mut rules = Vec::new();
    let before = pod.main_routes(&link)?;
    set_up(&sbr, &mut pod, &link, &ips, &before, &mut rules).map_err(|error| {
        let removed = all(rules.iter().map(|rule| pod.delete_rule(rule)));
        // of the tables' routes the interface's end is the end; those of the main table are wanted until then
        let back = all(before.iter().map(|route| pod.replace_route(route)));
        with_undo(error, all([removed, back]))
    })?;
    conf.passed_on()
}

fn set_up(
    sbr: &SbrConf,
    pod: &mut Links,
    link: &Link,
    ips: &[IpConfig],
    routes: &[KernelRoute],
    rules: &mut Vec<SourceRule>,
) -> Result<()> {
    for ip in ips {
        let address = ip.address.addr();
        let rule = SourceRule {
            source: host_net(address),
            table: match sbr.table {
                Some(table) => table,
                None => pod.free_table(FIRST_TABLE)?,
            },
        };
        rules.push(rule);
        pod.add_rule(&rule)?;
        if sbr.table.is_none() {
            fill(sbr, pod, link, ip, routes, rule.table)?;
        }
    }
    if sbr.table.is_some() {
        return Ok(());
    }
    if sbr.add_source_hints {
        for ip in ips {
            pod.replace_route(&source_hint(link, ip))?;
        }
    }
    for route in routes.iter().filter(|route| !is_link_local(route)) {
        if !(sbr.add_source_hints && is_subnet(route, ips)) {
            pod.delete_route(route)?;
        }
    }
    Ok(())
}

/// The table of one address: the interface's routes as far as they are the address's, and a default route.
fn fill(
    sbr: &SbrConf,
    pod: &mut Links,
    link: &Link,
    ip: &IpConfig,
    routes: &[KernelRoute],
    table: u32,
) -> Result<()> {
    let v4 = ip.address.addr().is_ipv4();
    // on the link first: next hops are looked for there
    let mut own: Vec<&KernelRoute> = routes
        .iter()
        .filter(|route| route.is_v4() == v4 && is_of(route, ip))
        .collect();
    own.sort_by_key(|route| route.gateway().is_some());
    for route in own {
        pod.replace_route(&route.in_table(table))?;
    }
    let Some(gateway) = sbr.gateway(ip) else {
        return Ok(());
    };
    let default = Route {
        gw: Some(gateway),
        table: Some(table),
        ..to(if v4 { DEFAULT_V4 } else { DEFAULT_V6 })
    };
    pod.replace_route(&KernelRoute::new(link, &default, None))
}

const DEFAULT_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
const DEFAULT_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);

fn to(any: IpAddr) -> Route {
    Route {
        dst: IpNet::new_assert(any, 0),
        gw: None,
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    }
}

/// Whether a route is for packets from this address: its source or next hop is in the subnet, or it has neither.
fn is_of(route: &KernelRoute, ip: &IpConfig) -> bool {
    match (route.source(), route.gateway()) {
        (None, None) => true,
        (source, gateway) => [source, gateway]
            .into_iter()
            .flatten()
            .any(|found| ip.address.contains(&found)),
    }
}

fn is_link_local(route: &KernelRoute) -> bool {
    match route.destination() {
        Some(IpNet::V6(net)) => net.addr().is_unicast_link_local(),
        _ => false,
    }
}

fn is_subnet(route: &KernelRoute, ips: &[IpConfig]) -> bool {
    route.gateway().is_none()
        && ips
            .iter()
            .any(|ip| route.destination() == Some(ip.address.trunc()))
}

/// The subnet's route in the main table, with the address as the source for who has none yet.
fn source_hint(link: &Link, ip: &IpConfig) -> KernelRoute {
    let subnet = Route {
        dst: ip.address.trunc(),
        ..to(DEFAULT_V4)
    };
    KernelRoute::new(link, &subnet, Some(ip.address.addr()))
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let sbr = SbrConf::new(conf)?;
    let Some(netns) = Netns::of_del(invocation)? else {
        return Ok(());
    };
    let mut pod = netns.run(Links::open)?;
    // the interface may be gone already, the rules aren't then
    let mut own: Vec<IpAddr> = match conf.prev_result()? {
        Some(result) => {
            let ips = result.container_ips(&invocation.ifname);
            ips.map(|ip| ip.address.addr()).collect()
        }
        None => Vec::new(),
    };
    if let Some(link) = pod.by_name(&invocation.ifname)? {
        own.extend(pod.addresses(&link)?.iter().map(IpNet::addr));
    }
    let rules = pod.source_rules()?;
    let ours = rules.iter().filter(|rule| {
        own.iter().any(|ip| rule.source == host_net(*ip))
            && sbr.table.is_none_or(|table| table == rule.table)
    });
    all(ours.map(|rule| pod.delete_rule(rule)))
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let sbr = SbrConf::new(conf)?;
    let ips = addresses(conf, &invocation.ifname)?;
    let netns = Netns::open(invocation.required_netns()?)?;
    let mut pod = netns.run(Links::open)?;
    let rules = pod.source_rules()?;
    let routes = pod.kernel_routes()?;
    for ip in &ips {
        let address = ip.address.addr();
        let rule = rules.iter().find(|rule| {
            rule.source == host_net(address) && sbr.table.is_none_or(|table| table == rule.table)
        });
        let Some(rule) = rule else {
            return Err(CniError::check(format!(
                "sbr: no rule for packets from {address}"
            )));
        };
        let Some(gateway) = sbr.gateway(ip).filter(|_| sbr.table.is_none()) else {
            continue;
        };
        let has_default = routes.iter().any(|route| {
            route.table() == rule.table
                && route.destination().is_none()
                && route.gateway() == Some(gateway)
        });
        if !has_default {
            return Err(CniError::check(format!(
                "sbr: table {} for packets from {address} has no default route via {gateway}",
                rule.table
            )));
        }
    }
    Ok(())
}
