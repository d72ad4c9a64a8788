//! Which network has the pod's default route: one per family, whatever the plugins did.
//!
//! *Invariants:* the decision is pure; after [`settle`] the main table has one default route of a family, or none when no
//! interface offers one; routes of other tables and destinations are not touched. What an interface offers is kept by
//! the caller, so that another one can take over when the first goes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Attached, Error, NetworkList, netns};
use crate::sys::netlink::{DefaultRoute, Socket};

/// Plugins that move an interface's routes to another table on purpose.
const OTHER_TABLE: [&str; 2] = ["sbr", "vrf"];

/// What decides about an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Name inside the pod.
    pub ifname: String,
    /// `x-sampan: {default: true}`: before all others.
    pub chosen: bool,
    /// `gw_priority`; 0 when not given.
    pub priority: i64,
    /// `internal` networks never have the default route.
    pub internal: bool,
}

/// A default route that an interface could have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Of IPv6, else of IPv4.
    pub ipv6: bool,
    /// Where it leads; without one everything is on the link.
    pub gateway: Option<IpAddr>,
    /// Metric; 0 is the kernel's default.
    #[serde(default)]
    pub metric: u32,
}

/// The interfaces that may have the default route, the best first: the chosen one, then by priority, then in the order
/// of attachment. The first one that offers a route of a family has that family's.
pub fn preference(candidates: &[Candidate]) -> Vec<String> {
    let mut able: Vec<_> = candidates.iter().filter(|c| !c.internal).collect();
    // stable: equals stay in order
    able.sort_by_key(|c| std::cmp::Reverse((c.chosen, c.priority)));
    able.into_iter().map(|c| c.ifname.clone()).collect()
}

/// The interface that has the default route of a family.
pub fn winner<'a>(
    preferred: &'a [String],
    offers: &[(String, Vec<Offer>)],
    ipv6: bool,
) -> Option<(&'a str, Offer)> {
    preferred.iter().find_map(|name| {
        let (_, of) = offers.iter().find(|(ifname, _)| ifname == name)?;
        Some((name.as_str(), *of.iter().find(|o| o.ipv6 == ipv6)?))
    })
}

/// What the interface offers after its ADD: the default routes that its plugins made, and those that they name in their
/// result and left out because another interface has one.
pub fn offered(
    netns: &Path,
    ifname: &str,
    list: &NetworkList,
    attached: &Attached,
) -> Result<Vec<Offer>, Error> {
    let (_, links, routes) = look(netns)?;
    let own = |route: &DefaultRoute| match route.links[..] {
        [link] => links.get(&link).map(String::as_str) == Some(ifname),
        _ => false,
    };
    let (own, others): (Vec<_>, Vec<_>) = routes.into_iter().partition(own);
    Ok(offers(list, attached, &own, &others))
}

/// See [`offered`].
fn offers(
    list: &NetworkList,
    attached: &Attached,
    own: &[DefaultRoute],
    others: &[DefaultRoute],
) -> Vec<Offer> {
    let elsewhere = list.plugins().iter().any(|p| {
        let kind = p.get("type").and_then(Value::as_str).unwrap_or_default();
        OTHER_TABLE.contains(&kind)
    });
    let mut found = Vec::new();
    for ipv6 in [false, true] {
        let of_family = |r: &&DefaultRoute| r.is_ipv6() == ipv6;
        if let Some(route) = own.iter().filter(of_family).min_by_key(|r| r.metric) {
            found.push(Offer {
                ipv6,
                gateway: route.gateway,
                metric: route.metric,
            });
            continue;
        }
        if elsewhere || !others.iter().any(|r| of_family(&r)) {
            continue;
        }
        if let Some(gateway) = in_result(attached, ipv6) {
            found.push(Offer {
                ipv6,
                gateway,
                metric: 0,
            });
        }
    }
    found
}

/// The default route of a family in a result: its gateway, else that of the address.
fn in_result(attached: &Attached, ipv6: bool) -> Option<Option<IpAddr>> {
    let everywhere = if ipv6 { "::/0" } else { "0.0.0.0/0" };
    let routes = attached.result.get("routes").and_then(Value::as_array)?;
    let leads = |r: &&Value| r.get("dst").and_then(Value::as_str) == Some(everywhere);
    let route = routes.iter().find(leads)?;
    let own = route.get("gw").and_then(Value::as_str);
    let own = own.and_then(|gw| gw.parse::<IpAddr>().ok());
    let of_address = attached.gateways.iter().find(|g| g.is_ipv6() == ipv6);
    Some(own.or(of_address.copied()))
}

/// Leaves in the pod's namespace the default route of each family's [`winner`], which is made when its plugins have not,
/// and deletes all others.
pub fn settle(
    netns: &Path,
    preferred: &[String],
    offers: &[(String, Vec<Offer>)],
) -> Result<(), Error> {
    let at = |what: &str| Error::io(format!("{what} in {}", netns.display()));
    let (mut socket, links, routes) = look(netns)?;
    let mut errors = Vec::new();
    for ipv6 in [false, true] {
        let winner = winner(preferred, offers, ipv6);
        let of_family: Vec<_> = routes.iter().filter(|r| r.is_ipv6() == ipv6).collect();
        let kept = winner.and_then(|(ifname, _)| kept(&of_family, &links, ifname));
        if let (Some((ifname, offer)), None) = (winner, kept) {
            let link = links.iter().find(|(_, name)| *name == ifname);
            let made = match link {
                Some((link, _)) => {
                    socket.add_default_route(*link, ipv6, offer.gateway, offer.metric)
                }
                None => Err(std::io::ErrorKind::NotFound.into()),
            };
            let what = format!("add the default route of {ifname}");
            errors.extend(made.map_err(at(&what)).err());
        }
        // after the new one: a running pod is not without
        for (i, route) in of_family.iter().enumerate() {
            if Some(i) == kept {
                continue;
            }
            let names: Vec<_> = route.links.iter().filter_map(|l| links.get(l)).collect();
            let what = format!("delete the default route of {names:?}");
            errors.extend(socket.delete_route(route).map_err(at(&what)).err());
        }
    }
    Error::all(errors)
}

/// The route of an interface that stays: that of the lowest metric. A multipath route through several is nobody's.
fn kept(routes: &[&DefaultRoute], links: &HashMap<u32, String>, ifname: &str) -> Option<usize> {
    let own = routes.iter().enumerate().filter(|(_, route)| {
        matches!(route.links[..], [link] if links.get(&link).is_some_and(|name| name == ifname))
    });
    own.min_by_key(|(_, route)| route.metric).map(|(i, _)| i)
}

type Seen = (Socket, HashMap<u32, String>, Vec<DefaultRoute>);

/// A socket of the namespace, its interfaces and default routes.
fn look(netns: &Path) -> Result<Seen, Error> {
    let at = |what: &str| Error::io(format!("{what} in {}", netns.display()));
    let mut socket = netns::inside(netns, || Socket::open().map_err(at("open a route socket")))?;
    let links = socket.links().map_err(at("list interfaces"))?;
    let routes = socket.default_routes().map_err(at("list routes"))?;
    Ok((socket, links.into_iter().collect(), routes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn preferences() {
        let candidate =
            |(ifname, chosen, priority, internal): &(&str, bool, i64, bool)| Candidate {
                ifname: ifname.to_string(),
                chosen: *chosen,
                priority: *priority,
                internal: *internal,
            };
        // name, chosen, priority, internal of each; the order
        type Row = (
            &'static [(&'static str, bool, i64, bool)],
            &'static [&'static str],
        );
        let table: &[Row] = &[
            (&[], &[]),
            (
                &[("a", false, 0, false), ("b", false, 0, false)],
                &["a", "b"],
            ),
            (
                &[("a", false, 0, false), ("b", false, 5, false)],
                &["b", "a"],
            ),
            (
                &[("a", false, 9, false), ("b", true, 0, false)],
                &["b", "a"],
            ),
            (
                &[
                    ("a", false, -1, false),
                    ("b", false, 0, false),
                    ("c", false, 0, false),
                ],
                &["b", "c", "a"],
            ),
            (&[("a", false, 9, true), ("b", false, 0, false)], &["b"]),
        ];
        for (candidates, expected) in table {
            let candidates: Vec<_> = candidates.iter().map(candidate).collect();
            assert_eq!(preference(&candidates), *expected, "{candidates:?}");
        }
    }

    #[test]
    fn one_route_of_the_winner_is_kept() {
        let links = HashMap::from([(2, "eth0".to_string()), (3, "eth1".to_string())]);
        // links and metric of each route; whose is wanted; the index of the one that stays
        type Row = (
            &'static [(&'static [u32], u32)],
            &'static str,
            Option<usize>,
        );
        let table: &[Row] = &[
            (&[(&[2], 0), (&[3], 0)], "eth1", Some(1)),
            (&[(&[2], 9), (&[2], 1)], "eth0", Some(1)),
            (&[(&[2, 3], 0), (&[3], 0)], "eth0", None),
            (&[(&[7], 0)], "eth0", None),
        ];
        for (routes, ifname, expected) in table {
            let routes: Vec<_> = routes
                .iter()
                .map(|(links, metric)| DefaultRoute::sample(2, links, *metric))
                .collect();
            let routes: Vec<_> = routes.iter().collect();
            assert_eq!(kept(&routes, &links, ifname), *expected, "{routes:?}");
        }
    }

    #[test]
    fn offers_are_what_was_made_or_left_out() {
        let list = |kinds: &[&str]| NetworkList {
            config: json!({"plugins": kinds.iter().map(|k| json!({"type": k})).collect::<Vec<_>>()}),
            ..NetworkList::default()
        };
        let attached = |routes: Value, gateway: &str| Attached {
            result: json!({ "routes": routes }),
            gateways: vec![gateway.parse().unwrap()],
            ..Attached::default()
        };
        let own = DefaultRoute::sample(2, &[2], 7);
        let other = DefaultRoute::sample(2, &[3], 0);
        let v4 = json!([{"dst": "0.0.0.0/0"}]);
        let offer = |gateway: Option<&str>, metric| Offer {
            ipv6: false,
            gateway: gateway.map(|g| g.parse().unwrap()),
            metric,
        };
        let bridge = list(&["bridge"]);
        // a route in the kernel counts, whatever the result says
        let got = offers(&bridge, &attached(json!([]), "10.0.0.1"), &[own], &[]);
        assert_eq!(got, [offer(None, 7)]);
        // nothing in the kernel: the plugin did not mean the main table, unless another one was in the way
        let said = attached(v4, "10.0.0.1");
        assert_eq!(offers(&bridge, &said, &[], &[]), []);
        let others = [other];
        let left_out = offers(&bridge, &said, &[], &others);
        assert_eq!(left_out, [offer(Some("10.0.0.1"), 0)]);
        assert_eq!(offers(&list(&["bridge", "sbr"]), &said, &[], &others), []);
        let own_gateway = json!([{"dst": "0.0.0.0/0", "gw": "10.0.0.9"}]);
        let got = offers(&bridge, &attached(own_gateway, "10.0.0.1"), &[], &others);
        assert_eq!(got, [offer(Some("10.0.0.9"), 0)]);
    }

    #[test]
    fn each_family_has_its_winner() {
        let offer = |ipv6| Offer {
            ipv6,
            gateway: None,
            metric: 0,
        };
        let offers = [
            ("a".to_string(), vec![offer(false)]),
            ("b".to_string(), vec![offer(false), offer(true)]),
        ];
        let preferred = ["a".to_string(), "b".to_string()];
        let of = |ipv6| winner(&preferred, &offers, ipv6).map(|(name, _)| name);
        assert_eq!((of(false), of(true)), (Some("a"), Some("b")));
        assert_eq!(winner(&[], &offers, false), None);
    }
}
