//! Which routes packets follow, and what a link lets through: rules, tables, VRFs, flags.
//!
//! *Invariants*: a [`KernelRoute`] keeps every attribute that the kernel gave, so a route that is moved to another table is
//! otherwise the same.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::libc;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::message::{family, route_message};
use super::{Link, Links};
use crate::error::{CniError, Result};
use crate::result::Route;

/// The table of routes without one.
const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// A rule that looks at the source alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRule {
    /// Who sends.
    pub source: IpNet,
    /// The table that is looked into.
    pub table: u32,
}

/// A route as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRoute(RouteMessage);

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

impl KernelRoute {
    /// A route over `link`.
    pub fn new(link: &Link, route: &Route, source: Option<IpAddr>) -> Self {
        let mut message = route_message(link, route);
        let source = source.map(|ip| RouteAttribute::PrefSource(ip.into()));
        message.attributes.extend(source);
        Self(message)
    }

    fn find<T>(&self, get: impl Fn(&RouteAttribute) -> Option<T>) -> Option<T> {
        self.0.attributes.iter().find_map(get)
    }

    /// Its table.
    pub fn table(&self) -> u32 {
        let table = self.find(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
        table.unwrap_or(self.0.header.table.into())
    }

    /// Its next hop.
    pub fn gateway(&self) -> Option<IpAddr> {
        self.find(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            _ => None,
        })
    }

    /// The source address that it recommends.
    pub fn source(&self) -> Option<IpAddr> {
        self.find(|attribute| match attribute {
            RouteAttribute::PrefSource(address) => ip(address),
            _ => None,
        })
    }

    /// Its destination; `None`: everything.
    pub fn destination(&self) -> Option<IpNet> {
        let address = self.find(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        })?;
        IpNet::new(address, self.0.header.destination_prefix_length).ok()
    }

    /// Whether it is of IPv4.
    pub fn is_v4(&self) -> bool {
        self.0.header.address_family == AddressFamily::Inet
    }

    /// Whether the kernel made it with an address.
    pub fn is_kernels(&self) -> bool {
        self.0.header.protocol == RouteProtocol::Kernel
    }

    /// The same in another table.
    pub fn in_table(&self, table: u32) -> Self {
        let mut message = self.0.clone();
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        // what the kernel says of its state it doesn't take back
        message.header.flags &= RouteFlags::Onlink;
        message.attributes.retain(|attribute| {
            !matches!(
                attribute,
                RouteAttribute::Table(_) | RouteAttribute::CacheInfo(_)
            )
        });
        message.attributes.push(RouteAttribute::Table(table));
        Self(message)
    }
}

impl std::fmt::Display for KernelRoute {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.destination() {
            Some(net) => write!(out, "{net}")?,
            None => write!(out, "default")?,
        }
        if let Some(gateway) = self.gateway() {
            write!(out, " via {gateway}")?;
        }
        write!(out, " in table {}", self.table())
    }
}

fn rule_message(rule: &SourceRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.source.addr());
    message.header.src_len = rule.source.prefix_len();
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(rule.source.addr()),
        RuleAttribute::Table(rule.table),
    ];
    message
}

fn table_of(rule: &RuleMessage) -> u32 {
    let table = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Table(table) => Some(*table),
            _ => None,
        });
    table.unwrap_or(rule.header.table.into())
}

fn source_rule(rule: &RuleMessage) -> Option<SourceRule> {
    let source = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Source(ip) => IpNet::new(*ip, rule.header.src_len).ok(),
            _ => None,
        });
    let table = table_of(rule);
    (rule.header.action == RuleAction::ToTable && table != 0).then_some(SourceRule {
        source: source?,
        table,
    })
}

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

impl Links {
    fn rule_messages(&mut self) -> Result<Vec<RuleMessage>> {
        let mut found = Vec::new();
        for family in FAMILIES {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let answer = match self.call(Message::GetRule(message), NLM_F_DUMP) {
                // no such family in this kernel
                Err(cause) if cause.raw_os_error() == Some(libc::EAFNOSUPPORT) => continue,
                answer => {
                    answer.map_err(|cause| CniError::operation("cannot list the rules", cause))?
                }
            };
            found.extend(answer.into_iter().filter_map(|message| match message {
                Message::NewRule(rule) => Some(rule),
                _ => None,
            }));
        }
        Ok(found)
    }

    /// The rules that look at sources.
    pub fn source_rules(&mut self) -> Result<Vec<SourceRule>> {
        let rules = self.rule_messages()?;
        Ok(rules.iter().filter_map(source_rule).collect())
    }

    /// Adds a rule before all others but those for local addresses.
    pub fn add_rule(&mut self, rule: &SourceRule) -> Result<()> {
        let SourceRule { source, table } = rule;
        self.call(
            Message::NewRule(rule_message(rule)),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .map(|_| ())
        .map_err(|cause| {
            CniError::operation(
                format!("cannot add the rule from {source} to table {table}"),
                cause,
            )
        })
    }

    /// Removes a rule; missing is success.
    pub fn delete_rule(&mut self, rule: &SourceRule) -> Result<()> {
        let SourceRule { source, table } = rule;
        missing_is_success(self.call(Message::DelRule(rule_message(rule)), 0)).map_err(|cause| {
            let what = format!("cannot remove the rule from {source} to table {table}");
            CniError::operation(what, cause)
        })
    }

    /// Every unicast route.
    pub fn kernel_routes(&mut self) -> Result<Vec<KernelRoute>> {
        let mut found = Vec::new();
        for family in FAMILIES {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answer = self
                .call(Message::GetRoute(message), NLM_F_DUMP)
                .map_err(|cause| CniError::operation("cannot list the routes", cause))?;
            found.extend(answer.into_iter().filter_map(|message| match message {
                Message::NewRoute(route) if route.header.kind == RouteType::Unicast => {
                    Some(KernelRoute(route))
                }
                _ => None,
            }));
        }
        Ok(found)
    }

    /// The unicast routes of the main table over `link` alone.
    pub fn main_routes(&mut self, link: &Link) -> Result<Vec<KernelRoute>> {
        let mut routes = self.kernel_routes()?;
        routes.retain(|route| {
            route.table() == MAIN
                && route
                    .0
                    .attributes
                    .contains(&RouteAttribute::Oif(link.index))
        });
        Ok(routes)
    }

    /// Adds a route, in the place of one to the same destination with the same metric.
    pub fn replace_route(&mut self, route: &KernelRoute) -> Result<()> {
        let message = Message::NewRoute(route.0.clone());
        self.call(message, NLM_F_CREATE | NLM_F_REPLACE)
            .map(|_| ())
            .map_err(|cause| CniError::operation(format!("cannot add the route {route}"), cause))
    }

    /// Removes a route; missing is success.
    pub fn delete_route(&mut self, route: &KernelRoute) -> Result<()> {
        missing_is_success(self.call(Message::DelRoute(route.0.clone()), 0))
            .map_err(|cause| CniError::operation(format!("cannot remove the route {route}"), cause))
    }

    /// The first table from `first` on that no rule, route or VRF uses.
    pub fn free_table(&mut self, first: u32) -> Result<u32> {
        let mut used: Vec<u32> = self.rule_messages()?.iter().map(table_of).collect();
        used.extend(self.kernel_routes()?.iter().map(KernelRoute::table));
        used.extend(self.all()?.iter().filter_map(Link::vrf_table));
        // rt_tables of iproute2: default, main, local; they may be empty
        (first..)
            .find(|table| !(253..=255).contains(table) && !used.contains(table))
            .ok_or_else(|| CniError::operation("no routing table is free", ""))
    }

    /// Takes a link from its controller.
    pub fn detach(&mut self, link: &Link) -> Result<()> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new().nocontroller();
        self.change(link, "no controller", builder)
    }

    /// Sets the length of the transmit queue, in packets.
    pub fn set_queue(&mut self, link: &Link, length: u32) -> Result<()> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new().txqueuelen(length);
        self.change(link, "the transmit queue", builder)
    }

    /// Makes a link receive everything, or no longer.
    pub fn set_promiscuous(&mut self, link: &Link, on: bool) -> Result<()> {
        self.set_flag(link, LinkFlags::Promisc, on)
    }

    /// Makes a link receive every multicast packet, or no longer.
    pub fn set_all_multicast(&mut self, link: &Link, on: bool) -> Result<()> {
        self.set_flag(link, LinkFlags::Allmulti, on)
    }

    fn set_flag(&mut self, link: &Link, flag: LinkFlags, on: bool) -> Result<()> {
        let mut message = LinkMessageBuilder::<LinkUnspec>::new()
            .index(link.index)
            .build();
        message.header.flags.set(flag, on);
        message.header.change_mask = flag;
        self.call(Message::SetLink(message), 0)
            .map(|_| ())
            .map_err(|cause| {
                let what = format!("cannot set {flag:?} of {} to {on}", link.name);
                CniError::operation(what, cause)
            })
    }
}

fn missing_is_success<T>(answer: io::Result<T>) -> io::Result<()> {
    match answer {
        Err(cause) if !matches!(cause.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
            Err(cause)
        }
        _ => Ok(()),
    }
}
