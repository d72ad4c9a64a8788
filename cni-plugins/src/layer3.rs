//! Addresses and routes of a container's interface: what they are, setting them up, comparing.
//!
//! *Invariants*: a [`Layer3`] is complete: whoever executes it decides nothing. Setting up makes addresses usable at
//! once unless duplicate detection was asked for.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::conf::format_mac;
use crate::error::{CniError, Result};
use crate::link::{AddressFlags, Link, Links};
use crate::netns::Netns;
use crate::result::{AddResult, Dns, Interface, IpConfig, Route, sandbox};
use crate::skel::Invocation;
use crate::{sysctl, veth};

/// RT_SCOPE_LINK of rtnetlink(7).
pub const SCOPE_LINK: u8 = 253;

/// Addresses and routes to set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layer3 {
    /// Of the container, with the gateways in force.
    pub ips: Vec<IpConfig>,
    /// Of the host's end.
    pub gateways: Vec<IpNet>,
    /// Of the container; next hops as the address plugin gave them.
    pub routes: Vec<Route>,
    /// The configuration's where it says anything, otherwise the address plugin's.
    pub dns: Dns,
}

/// How a container's interface is set up.
#[derive(Debug, Clone, Copy)]
pub struct SetUp {
    /// Give it the link address that follows from its first address.
    pub derive_mac: bool,
    /// Wait until nobody else turned out to have an IPv6 address.
    pub detect_duplicates: bool,
    /// An address makes its subnet reachable over the interface, and the routes are added. Otherwise routes are the
    /// caller's.
    pub prefix_routes: bool,
    /// The addresses are the whole of it: without one of IPv6 there is no IPv6, and no neighbour says where routes lead.
    pub addresses_alone: bool,
}

impl Layer3 {
    /// What the address plugin answered.
    pub fn new(dns: &Dns, leased: AddResult) -> Self {
        Self {
            ips: leased.ips,
            gateways: Vec::new(),
            routes: leased.routes,
            dns: if *dns == Dns::default() {
                leased.dns
            } else {
                dns.clone()
            },
        }
    }

    /// The first gateway of a family.
    pub fn gateway(&self, v4: bool) -> Option<IpAddr> {
        self.ips
            .iter()
            .filter(|ip| ip.address.addr().is_ipv4() == v4)
            .find_map(|ip| ip.gateway)
    }

    /// The routes with their next hops filled in. What is on the link itself has none.
    pub fn resolved_routes(&self) -> impl Iterator<Item = Route> {
        self.routes.iter().map(|route| {
            let gateway = || self.gateway(route.dst.addr().is_ipv4());
            let far = route.scope.is_none_or(|scope| scope < SCOPE_LINK);
            Route {
                gw: route.gw.or_else(|| gateway().filter(|_| far)),
                ..route.clone()
            }
        })
    }

    /// Whether any address is of IPv4, or of IPv6.
    pub fn has_family(&self, v4: bool) -> bool {
        self.ips.iter().any(|ip| ip.address.addr().is_ipv4() == v4)
    }

    /// A link address that follows from the first address. When a container comes back with the same address but
    /// another link address, its neighbours would send to the old one until their caches expire.
    pub fn mac(&self) -> Option<[u8; 6]> {
        Some(match self.ips.first()?.address.addr() {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                [0x0a, 0x58, a, b, c, d]
            }
            IpAddr::V6(ip) => {
                let [.., a, b, c, d] = ip.octets();
                [0x0a, 0x59, a, b, c, d]
            }
        })
    }

    /// The result with these interfaces, of which number `container` has the addresses.
    pub fn into_result(self, interfaces: Vec<Interface>, container: usize) -> AddResult {
        let own = |ip| IpConfig {
            interface: Some(container),
            ..ip
        };
        AddResult {
            ips: self.ips.into_iter().map(own).collect(),
            routes: self.routes,
            dns: self.dns,
            interfaces,
        }
    }

    /// The addresses with their prefix lengths.
    pub fn addresses(&self) -> Vec<IpNet> {
        self.ips.iter().map(|ip| ip.address).collect()
    }

    /// The container's interface up, with its addresses and then its routes.
    pub fn set_up(&self, netns: &Netns, pod: &mut Links, ifname: &str, how: &SetUp) -> Result<()> {
        self.prepare(netns, pod, ifname, how)?;
        let link = pod.require(ifname)?;
        self.bring_up(pod, &link, how)
    }

    /// The first half of [`Layer3::set_up`]: link address and settings.
    pub fn prepare(&self, netns: &Netns, pod: &mut Links, ifname: &str, how: &SetUp) -> Result<()> {
        if let Some(mac) = self.mac().filter(|_| how.derive_mac) {
            let link = pod.require(ifname)?;
            // an interface that is up was used by the address plugin: its lease is bound to the address that it has
            if !link.up {
                pod.set_mac(&link, &mac)?;
            }
        }
        netns.run(|| self.settings(ifname, how))
    }

    /// The second half.
    pub fn bring_up(&self, pod: &mut Links, link: &Link, how: &SetUp) -> Result<()> {
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Nodad, !how.detect_duplicates);
        flags.set(AddressFlags::Noprefixroute, !how.prefix_routes);
        // the kernel announces what is there when the interface comes up; an IPv6 route needs it up
        let (v4, v6): (Vec<_>, Vec<_>) = self
            .addresses()
            .into_iter()
            .partition(|address| address.addr().is_ipv4());
        for address in v4 {
            pod.add_address(link, address, flags)?;
        }
        pod.up(link)?;
        for address in v6 {
            pod.add_address(link, address, flags)?;
        }
        if how.prefix_routes {
            for route in self.resolved_routes() {
                pod.add_route(link, &route)?;
            }
        }
        if how.detect_duplicates && !settle(pod, link, PATIENT)? {
            return Err(CniError::operation(
                format!("the addresses of {} stay tentative", link.name),
                "",
            ));
        }
        Ok(())
    }

    fn settings(&self, ifname: &str, how: &SetUp) -> Result<()> {
        let detect = if how.detect_duplicates { "1" } else { "0" };
        // the link-local address too is wanted at once, and nobody can have it yet
        sysctl::set_if_present(&["ipv6", "conf", ifname, "accept_dad"], detect)?;
        sysctl::set_if_present(&["ipv6", "conf", ifname, "enhanced_dad"], "1")?;
        if self.ips.is_empty() {
            return Ok(());
        }
        sysctl::set_if_present(&["ipv4", "conf", ifname, "arp_notify"], "1")?;
        sysctl::set_if_present(&["ipv6", "conf", ifname, "ndisc_notify"], "1")?;
        if how.addresses_alone {
            veth::ignore_routers(ifname)?;
        }
        if self.has_family(false) {
            sysctl::set(&["ipv6", "conf", ifname, "disable_ipv6"], "0")?;
        } else if how.addresses_alone {
            veth::without_ipv6(ifname)?;
        }
        Ok(())
    }
}

/// Waits until no address is tentative; says whether it came to that. With duplicate detection a probe and its random delay
/// take the kernel 2 s, without it only the time until it has noticed the carrier.
fn settle(pod: &mut Links, link: &Link, attempts: u32) -> Result<bool> {
    for attempt in 0..attempts {
        let addresses = pod.addresses_with_flags(link)?;
        let first = |wanted: AddressFlags| {
            let found = addresses.iter().find(|(_, flags)| flags.contains(wanted));
            found.map(|(address, _)| *address)
        };
        if let Some(address) = first(AddressFlags::Dadfailed) {
            let name = &link.name;
            return Err(CniError::operation(
                format!("address {address} of {name} belongs to somebody else"),
                "",
            ));
        }
        if first(AddressFlags::Tentative).is_none() {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_micros(500 << attempt.min(7)));
    }
    Ok(false)
}

/// Attempts of [`settle`]: 5 s in all, and 250 ms.
const PATIENT: u32 = 84;
const QUICK: u32 = 9;

/// Waits until packets pass an interface that ought to get a carrier at once, for its link-local address too. One that gets
/// it later (a cable whose ends still negotiate) is none of our business.
pub fn wait_until_usable(pod: &mut Links, link: &Link) -> Result<()> {
    if pod.wait_operable(link)? {
        settle(pod, link, QUICK)?;
    }
    Ok(())
}

/// The result's entry for a link; `None`: of the host.
pub fn interface(link: &Link, netns: Option<&Netns>) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: format_mac(&link.mac),
        mtu: link.mtu,
        sandbox: netns.map(|netns| sandbox(netns.path())).unwrap_or_default(),
    }
}

/// An interface that is there already is somebody else's.
pub fn require_absent(pod: &mut Links, netns: &Netns, ifname: &str) -> Result<()> {
    match pod.by_name(ifname)? {
        Some(_) => Err(CniError::operation(
            format!(
                "interface {ifname} exists already in {}",
                netns.path().display()
            ),
            "",
        )),
        None => Ok(()),
    }
}

/// Deletes the container's interface; a missing one and a missing namespace are success.
pub fn delete_link(invocation: &Invocation) -> Result<()> {
    match container_link(invocation)? {
        Some((mut pod, link)) => pod.delete(&link),
        None => Ok(()),
    }
}

/// The container's interface of a DEL, and a socket of its namespace; `None` when either is gone.
pub fn container_link(invocation: &Invocation) -> Result<Option<(Links, Link)>> {
    let Some(netns) = Netns::of_del(invocation)? else {
        return Ok(None);
    };
    let mut pod = netns.run(Links::open)?;
    let link = pod.by_name(&invocation.ifname)?;
    Ok(link.map(|link| (pod, link)))
}

/// For STATUS: the kernel must be able to make these kinds of links.
pub fn require_drivers(links: &mut Links, kinds: &[&str]) -> Result<()> {
    for kind in kinds {
        links.require_driver(kind).map_err(CniError::unavailable)?;
    }
    Ok(())
}

/// Compares the container's interface with what ADD returned.
pub fn check(
    netns: &Netns,
    pod: &mut Links,
    ifname: &str,
    result: &AddResult,
    up: bool,
) -> Result<Link> {
    let path = netns.path().display();
    let wrong = |what: String| CniError::check(format!("interface {ifname} {what}"));
    let link = pod
        .by_name(ifname)?
        .ok_or_else(|| wrong(format!("is missing in {path}")))?;
    if up && !link.up {
        return Err(wrong(format!("is down in {path}")));
    }
    let wanted = result.container_interface(ifname);
    let mac = wanted.map(|wanted| wanted.mac.to_lowercase());
    if let Some(mac) = mac.filter(|mac| !mac.is_empty() && *mac != format_mac(&link.mac)) {
        let now = format_mac(&link.mac);
        return Err(wrong(format!("has the link address {now}, not {mac}")));
    }
    let mtu = wanted.map_or(0, |wanted| wanted.mtu);
    if mtu != 0 && mtu != link.mtu {
        return Err(wrong(format!("has the MTU {}, not {mtu}", link.mtu)));
    }
    let addresses = pod.addresses(&link)?;
    for wanted in result.container_ips(ifname).map(|ip| ip.address) {
        if !addresses.contains(&wanted) {
            return Err(wrong(format!("has lost its address {wanted}")));
        }
    }
    let routes = pod.routes(&link)?;
    for wanted in &result.routes {
        let same = |gw: Option<IpAddr>| wanted.gw.is_none() || wanted.gw == gw;
        if !routes
            .iter()
            .any(|route| route.dst == wanted.dst.trunc() && same(route.gw))
        {
            return Err(wrong(format!("has lost its route to {}", wanted.dst)));
        }
    }
    Ok(link)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn next_hops() {
        let leased = json!({
            "cniVersion": "1.1.0",
            "ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1"}],
            "routes": [
                {"dst": "0.0.0.0/0"},
                {"dst": "10.9.0.0/16", "gw": "10.1.2.9"},
                {"dst": "10.0.0.0/8", "scope": 253},
                {"dst": "10.8.0.0/16", "scope": 0},
                {"dst": "fd00::/8"},
            ],
        });
        let layer3 = Layer3::new(&Dns::default(), serde_json::from_value(leased).unwrap());
        let gateways: Vec<_> = layer3
            .resolved_routes()
            .map(|route| route.gw.map(|gw| gw.to_string()).unwrap_or_default())
            .collect();
        assert_eq!(gateways, ["10.1.2.1", "10.1.2.9", "", "10.1.2.1", ""]);
    }
}
