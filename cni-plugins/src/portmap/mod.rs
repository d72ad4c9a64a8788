//! The plugin `portmap`: ports of the host that lead into a container.
//!
//! ```text
//! prerouting, output   fib daddr type local → hostports
//! hostports            one rule for each mapping and family: dnat to the container
//! masquerade           replies that would miss the host's address translation: from the container's own subnet
//!                      (hairpin, a neighbour) and from the host's loopback; others keep their source address
//!
//! martians             in a table of its own: nobody outside may speak to 127.0.0.0/8, which route_localnet opens
//!                      (CVE-2020-8558)
//! ```
//!
//! *Invariants*: a rule's comment begins with the attachment's tag, one in `hostports` goes on with what it maps, so
//! conflicts and CHECK need no file. The table exists as long as it has a mapping. The guard of the loopback is there before
//! any interface has route_localnet and goes after the last one has lost it; its rules' comments are the interfaces that got
//! it from us. Changes happen under the host lock.

mod conf;

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;

use crate::conf::Conf;
use crate::conntrack::{self, Target};
use crate::error::{CniError, PORT_TAKEN, Result, all, with_undo};
use crate::link::{Link, Links};
use crate::netns::HostLock;
use crate::nft::{
    Batch, Chain, Expr, Family, FoundRule, MAX_COMMENT, Nft, OUTPUT, POSTROUTING, PREROUTING, Rule,
    Table,
};
use crate::result::AddResult;
use crate::skel::{Invocation, Plugin};
use crate::sysctl;
use crate::tag::{self, is_of, tag};
use conf::{HostPort, Mapping, PortmapConf, Protocol};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc,
    status,
};

const HOST_PORTS: &str = "hostports";
const MASQUERADE: &str = "masquerade";
const DNAT_PRIORITY: i32 = -100;

const TABLE: Table = Table {
    family: Family::Inet,
    name: Cow::Borrowed("sampan_portmap"),
    chains: &[
        Chain::plain(HOST_PORTS),
        Chain::base("prerouting", "nat", PREROUTING, DNAT_PRIORITY),
        Chain::base("output", "nat", OUTPUT, DNAT_PRIORITY),
        Chain::base(MASQUERADE, "nat", POSTROUTING, 100),
    ],
};

const MARTIANS: &str = "martians";

const GUARD: Table = Table {
    family: Family::Inet,
    name: Cow::Borrowed("sampan_loopback"),
    chains: &[Chain::base(MARTIANS, "filter", PREROUTING, -300)],
};

/// The first address of each family of the container.
fn container_addresses(result: &AddResult, ifname: &str) -> Vec<IpNet> {
    let first = |v4: bool| {
        result
            .container_ips(ifname)
            .map(|ip| ip.address)
            .find(|net| net.addr().is_ipv4() == v4)
    };
    [first(true), first(false)].into_iter().flatten().collect()
}

fn loopback(v4: bool) -> IpNet {
    if v4 {
        Ipv4Net::new_assert([127, 0, 0, 0].into(), 8).into()
    } else {
        IpAddr::from([0u16, 0, 0, 0, 0, 0, 0, 1]).into()
    }
}

/// The rules that belong to no mapping.
fn base_rules() -> Vec<Rule> {
    let rule = |chain: &'static str, exprs| Rule {
        chain: chain.into(),
        exprs,
        comment: String::new(),
    };
    vec![
        rule(
            "prerouting",
            vec![Expr::LocalDestination, Expr::Jump(HOST_PORTS.into())],
        ),
        rule(
            "output",
            vec![Expr::LocalDestination, Expr::Jump(HOST_PORTS.into())],
        ),
    ]
}

fn mapping_rule(tag: &str, mapping: &Mapping) -> Rule {
    let host = mapping.host;
    let mut exprs = vec![
        match (host.address.is_unspecified(), host.address.is_ipv4()) {
            (true, true) => Expr::Family(true),
            // no route leads from ::1 to another interface: clients are better refused at once, and then try 127.0.0.1
            (true, false) => Expr::Destination(false, loopback(false)),
            (false, _) => Expr::Destination(true, host.address.into()),
        },
    ];
    exprs.extend([
        Expr::Protocol(host.protocol.number()),
        Expr::DestinationPort(host.port),
        Expr::Dnat(mapping.container, mapping.container_port),
    ]);
    Rule {
        chain: HOST_PORTS.into(),
        exprs,
        comment: format!("{tag} {host}"),
    }
}

/// Only connections that a mapping changed are touched: what reaches the container by its own address stays.
fn masquerade_rules(tag: &str, conf: &PortmapConf, container: &IpNet) -> Vec<Rule> {
    let rule = |source: Option<IpNet>| {
        let mut exprs: Vec<Expr> = source
            .map(|net| Expr::Source(true, net))
            .into_iter()
            .collect();
        exprs.extend([
            Expr::Destination(true, container.addr().into()),
            Expr::Dnatted,
            Expr::Masquerade,
        ]);
        Rule {
            chain: MASQUERADE.into(),
            exprs,
            comment: tag.to_owned(),
        }
    };
    match (conf.snat, conf.masq_all) {
        (false, _) => Vec::new(),
        (true, true) => vec![rule(None)],
        (true, false) => {
            let local = Some(loopback(true)).filter(|_| container.addr().is_ipv4());
            [Some(container.trunc()), local]
                .into_iter()
                .flatten()
                .map(|net| rule(Some(net)))
                .collect()
        }
    }
}

fn rules(tag: &str, conf: &PortmapConf, container: &[IpNet]) -> Result<Vec<Rule>> {
    let mappings = conf.mappings(container)?;
    let mut rules: Vec<Rule> = mappings
        .iter()
        .map(|mapping| mapping_rule(tag, mapping))
        .collect();
    for net in container {
        if mappings
            .iter()
            .any(|mapping| mapping.container == net.addr())
        {
            rules.extend(masquerade_rules(tag, conf, net));
        }
    }
    match rules.iter().find(|rule| rule.comment.len() > MAX_COMMENT) {
        Some(rule) => Err(CniError::config(format!(
            "too long for an nftables comment: {}",
            rule.comment
        ))),
        None => Ok(rules),
    }
}

/// A host port that another container has. The same container may have it for several interfaces, as runtimes that publish
/// on every network ask for it: the first attachment's rule counts, and the next one's when that is gone.
fn conflict(container_id: &str, wanted: &[Mapping], found: &[FoundRule]) -> Option<CniError> {
    let owned = found.iter().filter_map(|rule| {
        let port = HostPort::of_comment(&rule.comment)?;
        Some((tag::parse(&rule.comment)?, port))
    });
    for (owner, port) in owned.filter(|(owner, _)| owner.container_id != container_id) {
        if let Some(mapping) = wanted.iter().find(|mapping| mapping.host.collides(&port)) {
            return Some(
                CniError::new(PORT_TAKEN, format!("host port {} is in use", mapping.host)).because(
                    format!(
                        "container {} on network {} has {port}",
                        owner.container_id, owner.network
                    ),
                ),
            );
        }
    }
    None
}

fn own_tag(conf: &Conf, invocation: &Invocation) -> Result<String> {
    tag(&conf.name, &invocation.container_id, &invocation.ifname)
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let portmap = PortmapConf::new(conf)?;
    let result = conf.required_prev_result()?;
    if portmap.is_empty() {
        return conf.passed_on();
    }
    let tag = own_tag(conf, invocation)?;
    let container = container_addresses(&result, &invocation.ifname);
    let mappings = portmap.mappings(&container)?;
    let wanted = rules(&tag, &portmap, &container)?;

    let _lock = HostLock::take()?;
    let mut nft = Nft::open()?;
    let found = nft.rules(&TABLE)?;
    if let Some(error) = conflict(&invocation.container_id, &mappings, &found) {
        return Err(error);
    }
    let mut batch = Batch::default();
    batch.table(&TABLE);
    if !found.iter().any(|rule| rule.chain == "prerouting") {
        base_rules()
            .iter()
            .for_each(|rule| batch.rule(&TABLE, rule));
    }
    found
        .iter()
        .filter(|rule| is_of(&tag, &rule.comment))
        .for_each(|rule| batch.delete(&TABLE, rule));
    wanted.iter().for_each(|rule| batch.rule(&TABLE, rule));
    let publish = || {
        if portmap.snat {
            open_loopback(&mut nft, &container)?;
            open_hairpin(&result)?;
        }
        nft.apply(batch)?;
        forget_udp(mappings.iter().map(|mapping| mapping.host))
    };
    match publish() {
        Ok(()) => conf.passed_on(),
        Err(error) => Err(with_undo(
            error,
            remove(&mut nft, |comment| !is_of(&tag, comment)),
        )),
    }
}

fn route_localnet(interface: &str) -> [&str; 4] {
    ["ipv4", "conf", interface, "route_localnet"]
}

/// The interface by which the container is reached over IPv4. IPv6 has no route_localnet.
fn way_to(container: &[IpNet]) -> Result<Option<Link>> {
    match container.iter().map(IpNet::addr).find(IpAddr::is_ipv4) {
        Some(address) => Links::open()?.link_to(address),
        None => Ok(None),
    }
}

/// Lets connections to 127.0.0.1 be sent on to the container, behind the guard.
fn open_loopback(nft: &mut Nft, container: &[IpNet]) -> Result<()> {
    let Some(link) = way_to(container)? else {
        return Ok(());
    };
    let setting = route_localnet(&link.name);
    let others = sysctl::is_on(&setting);
    let found = nft.rules(&GUARD)?;
    if !found.iter().any(|rule| others || rule.comment == link.name) {
        let mut batch = Batch::default();
        batch.table(&GUARD);
        batch.rule(
            &GUARD,
            &Rule {
                chain: MARTIANS.into(),
                exprs: vec![
                    Expr::NotFromLoopback,
                    Expr::Destination(true, loopback(true)),
                    Expr::Drop,
                ],
                comment: if others {
                    String::new()
                } else {
                    link.name.clone()
                },
            },
        );
        nft.apply(batch)?;
    }
    sysctl::set(&setting, "1")
}

/// Takes the setting back where it is ours. An interface that has it for another reason, or under another name by now, keeps
/// the guard.
fn close_loopback(nft: &mut Nft) -> Result<()> {
    let found = nft.rules(&GUARD)?;
    if found.is_empty() {
        return Ok(());
    }
    for rule in found.iter().filter(|rule| !rule.comment.is_empty()) {
        sysctl::set_if_present(&route_localnet(&rule.comment), "0")?;
    }
    let mut batch = Batch::default();
    if !sysctl::names(&["ipv4", "conf"])?
        .iter()
        .any(|interface| sysctl::is_on(&route_localnet(interface)))
    {
        batch.delete_table(&GUARD);
    }
    nft.apply(batch)
}

/// Where bridged packets go through the hooks of IP (br_netfilter), a container that asks for its own host port has its
/// packet redirected inside the bridge: it leaves by the port by which it came. Elsewhere it takes the way over the host.
fn open_hairpin(result: &AddResult) -> Result<()> {
    let filtered = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"];
    if !filtered.iter().any(|name| sysctl::is_on(&["bridge", name])) {
        return Ok(());
    }
    let mut host = Links::open()?;
    for interface in result
        .interfaces
        .iter()
        .filter(|interface| interface.sandbox.is_empty())
    {
        let Some(port) = host.by_name(&interface.name)? else {
            continue;
        };
        let bridge = port
            .controller
            .map_or(Ok(None), |index| host.by_index(index))?;
        if bridge.is_some_and(|bridge| bridge.kind == "bridge") {
            host.set_hairpin(&port)?;
        }
    }
    Ok(())
}

/// Flows that know the old state of these ports begin anew.
fn forget_udp(ports: impl Iterator<Item = HostPort>) -> Result<()> {
    let udp: Vec<Target> = ports
        .filter(|host| host.protocol == Protocol::Udp)
        .map(|host| Target {
            address: host.address,
            port: host.port,
        })
        .collect();
    conntrack::forget_udp(&udp)
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let tag = own_tag(conf, invocation)?;
    retain(|comment| !is_of(&tag, comment))
}

/// Removes the rules whose comment isn't wanted, the table after its last mapping, and the flows that went by the rules.
fn retain(wanted: impl Fn(&str) -> bool) -> Result<()> {
    let _lock = HostLock::take()?;
    let mut nft = Nft::open()?;
    let found = nft.rules(&TABLE)?;
    let gone = found
        .iter()
        .filter(|rule| !rule.comment.is_empty() && !wanted(&rule.comment));
    let ports = gone.filter_map(|rule| HostPort::of_comment(&rule.comment));
    let removed = remove(&mut nft, &wanted);
    all([removed, forget_udp(ports)])
}

fn remove(nft: &mut Nft, wanted: impl Fn(&str) -> bool) -> Result<()> {
    nft.retain(&TABLE, wanted)?;
    if nft.rules(&TABLE)?.is_empty() {
        close_loopback(nft)?;
    }
    Ok(())
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let portmap = PortmapConf::new(conf)?;
    let result = conf.required_prev_result()?;
    if portmap.is_empty() {
        return Ok(());
    }
    let tag = own_tag(conf, invocation)?;
    let container = container_addresses(&result, &invocation.ifname);
    let mut wanted = base_rules();
    wanted.extend(rules(&tag, &portmap, &container)?);
    let mut nft = Nft::open()?;
    nft.check(&TABLE, &wanted)?;
    if let Some(link) = way_to(&container)?
        && sysctl::is_on(&route_localnet(&link.name))
        && nft.rules(&GUARD)?.is_empty()
    {
        let name = &link.name;
        return Err(CniError::check(format!(
            "{name} has route_localnet and the nftables chain {GUARD} {MARTIANS} has no rule"
        )));
    }
    Ok(())
}

fn gc(conf: &Conf, _: &Invocation) -> Result<()> {
    let (valid, runtime) = (conf.valid_attachments()?, conf.runtime()?);
    retain(|comment| !tag::is_stale(&conf.name, runtime, &valid, comment))
}

fn status(conf: &Conf, _: &Invocation) -> Result<()> {
    PortmapConf::new(conf).map(|_| ())
}
