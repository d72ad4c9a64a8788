//! The plugin `firewall`: opens other people's forward chains for a container, and keeps bridges apart.
//!
//! ```text
//! ip filter FORWARD …   accept what the container sends, the answers, and what published ports lead to it
//! sampan_firewall       attachments: a marker for each container with an ingressPolicy
//!                       forward → from_bridge (from a bridge with a policy) → to_bridge (to one: drop)
//! ```
//!
//! *Invariants*: with nftables a drop is final, whichever table says it, so accepting has to happen in the chain that
//! would drop. Each rule there has the attachment's tag and a word of ours as its comment. The plugin's own table gets its content, as
//! one change, from its markers; it exists as long as it has one. All of it happens under the host lock.

mod conf;

use ipnet::IpNet;
use serde_json::Value;

use crate::conf::Conf;
use crate::error::{CniError, Result, all};
use crate::link::Links;
use crate::netns::HostLock;
use crate::nft::{Batch, FoundRule, Nft, Table};
use crate::result::AddResult;
use crate::skel::{Invocation, Plugin};
use crate::tag::{self, tag};
use conf::{ATTACHMENTS, FirewallConf, IngressPolicy, Marker, OURS, TABLE, accepting, rules};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc,
    status,
};

fn own_tag(conf: &Conf, invocation: &Invocation) -> Result<String> {
    tag(&conf.name, &invocation.container_id, &invocation.ifname)
}

fn addresses(result: &AddResult, ifname: &str) -> Vec<IpNet> {
    result.container_ips(ifname).map(|ip| ip.address).collect()
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let firewall = FirewallConf::new(conf)?;
    let result = conf.required_prev_result()?;
    let tag = own_tag(conf, invocation)?;
    let addresses = addresses(&result, &invocation.ifname);

    let _lock = HostLock::take()?;
    let mut nft = Nft::open()?;
    let mut markers = markers(&mut nft)?;
    let before = markers.clone();
    markers.retain(|marker| marker.tag != tag);
    if let Some(policy) = firewall.policy {
        let bridge = bridge_of(&result, policy)?;
        markers.push(Marker {
            tag: tag.clone(),
            policy,
            bridge,
        });
    }
    let mut batch = replacing(&mut nft, &before, &markers)?;
    for foreign in &firewall.chains {
        if !nft.has_chain(&foreign.table, &foreign.chain)? {
            if foreign.required {
                return Err(CniError::config(format!(
                    "forwardChains: there is no chain {} {}",
                    foreign.table, foreign.chain
                )));
            }
            continue;
        }
        let found = nft.rules(&foreign.table)?;
        found
            .iter()
            .filter(|rule| owner(rule) == Some(&tag))
            .for_each(|rule| batch.delete(&foreign.table, rule));
        // before everything else there, as they may end with a reject
        accepting(foreign, &tag, &addresses)
            .iter()
            .rev()
            .for_each(|rule| batch.first(&foreign.table, rule));
    }
    let answer = conf.passed_on()?;
    nft.apply(batch)?;
    Ok(answer)
}

/// The bridge that the container is on. Ports of an isolated one are kept apart by the bridge itself: what goes from
/// port to port doesn't always come by the forward chain.
fn bridge_of(result: &AddResult, policy: IngressPolicy) -> Result<String> {
    let mut host = Links::open()?;
    for interface in result.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        let Some(port) = host.by_name(&interface.name)? else {
            continue;
        };
        let bridge = port
            .controller
            .map_or(Ok(None), |index| host.by_index(index))?;
        if let Some(bridge) = bridge.filter(|bridge| bridge.kind == "bridge") {
            if policy == IngressPolicy::Isolated {
                host.set_isolated(&port)?;
            }
            return Ok(bridge.name);
        }
    }
    Err(CniError::config(
        "ingressPolicy needs a container on a bridge: put firewall after bridge",
    ))
}

fn markers(nft: &mut Nft) -> Result<Vec<Marker>> {
    let found = nft.rules(&TABLE)?;
    Ok(found
        .iter()
        .filter(|rule| rule.chain == ATTACHMENTS)
        .filter_map(|rule| Marker::parse(&rule.comment))
        .collect())
}

/// What makes the table the one that `markers` want.
fn replacing(nft: &mut Nft, before: &[Marker], markers: &[Marker]) -> Result<Batch> {
    let mut batch = Batch::default();
    match (before.is_empty(), markers.is_empty()) {
        (true, true) => {}
        (false, true) => batch.delete_table(&TABLE),
        (_, false) => {
            nft.empty(&mut batch, &TABLE)?;
            for rule in rules(markers) {
                batch.rule(&TABLE, &rule);
            }
        }
    }
    Ok(batch)
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let tag = own_tag(conf, invocation)?;
    let firewall = FirewallConf::new(conf)?;
    let _lock = HostLock::take()?;
    remove(&mut Nft::open()?, &firewall, |comment| {
        !tag::is_of(&tag, comment)
    })
}

fn remove(nft: &mut Nft, conf: &FirewallConf, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let tables = conf.chains.iter().map(|foreign| &foreign.table);
    let mut done: Vec<Result<()>> = tables
        .map(|table| remove_foreign(nft, table, &wanted))
        .collect();
    let own = markers(nft).and_then(|before| {
        let keep: Vec<Marker> = before
            .iter()
            .filter(|marker| wanted(&marker.tag))
            .cloned()
            .collect();
        if keep == before {
            return Ok(());
        }
        let batch = replacing(nft, &before, &keep)?;
        nft.apply(batch)
    });
    done.push(own);
    all(done)
}

/// Whose rule it is, if it is one of ours.
fn owner(rule: &FoundRule) -> Option<&str> {
    rule.comment.strip_suffix(OURS)
}

/// Our rules in a table of somebody else, which stays.
fn remove_foreign(nft: &mut Nft, table: &Table, wanted: &impl Fn(&str) -> bool) -> Result<()> {
    let mut batch = Batch::default();
    nft.rules(table)?
        .iter()
        .filter(|rule| owner(rule).is_some_and(|tag| !wanted(tag)))
        .for_each(|rule| batch.delete(table, rule));
    nft.apply(batch)
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let firewall = FirewallConf::new(conf)?;
    let result = conf.required_prev_result()?;
    let tag = own_tag(conf, invocation)?;
    let addresses = addresses(&result, &invocation.ifname);
    let mut nft = Nft::open()?;
    for foreign in &firewall.chains {
        if foreign.required || nft.has_chain(&foreign.table, &foreign.chain)? {
            let wanted = accepting(foreign, &tag, &addresses);
            nft.check(&foreign.table, &wanted)?;
        }
    }
    let markers = markers(&mut nft)?;
    if let Some(policy) = firewall.policy {
        if !markers
            .iter()
            .any(|marker| marker.tag == tag && marker.policy == policy)
        {
            return Err(CniError::check(format!(
                "the nftables table {TABLE} does not know {tag}"
            )));
        }
        nft.check(&TABLE, &rules(&markers))?;
    }
    Ok(())
}

fn gc(conf: &Conf, _: &Invocation) -> Result<()> {
    let (valid, runtime) = (conf.valid_attachments()?, conf.runtime()?);
    let firewall = FirewallConf::new(conf)?;
    let _lock = HostLock::take()?;
    remove(&mut Nft::open()?, &firewall, |comment| {
        !tag::is_stale(&conf.name, runtime, &valid, comment)
    })
}

fn status(conf: &Conf, _: &Invocation) -> Result<()> {
    FirewallConf::new(conf).map(|_| ())
}
