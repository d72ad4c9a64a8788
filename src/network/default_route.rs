//! Which network has the pod's default route: one per family, whatever the plugins did.
//!
//! *Invariants:* the decision is pure; what is kept is a route that a plugin made, nothing is added here; routes other
//! than the main table's default ones are not touched.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::generate::GENERATED;
use super::{Attachment, Error, NetworkList, netns};
use crate::sys::netlink::{DefaultRoute, Socket};

/// What decides about an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Name inside the pod.
    pub ifname: String,
    /// `gw_priority`; 0 when not given.
    pub priority: i64,
    /// `internal` networks never have the default route.
    pub internal: bool,
}

/// The interfaces that may have the default route, the best first: by priority, then in the order of attachment. The
/// first one that offers a route of a family has that family's.
pub fn preference(candidates: &[Candidate]) -> Vec<String> {
    let mut able: Vec<_> = candidates.iter().filter(|c| !c.internal).collect();
    // stable: equals stay in order
    able.sort_by_key(|c| std::cmp::Reverse(c.priority));
    able.into_iter().map(|c| c.ifname.clone()).collect()
}

/// After the ADDs: leaves in the pod's namespace one default route per family, that of the first interface of
/// `preferred` which has one, and deletes all others.
pub fn keep_one_default(netns: &Path, preferred: &[String]) -> Result<(), Error> {
    let at = |what: &str| Error::io(format!("{what} in {}", netns.display()));
    let mut socket = netns::inside(netns, || Socket::open().map_err(at("open a route socket")))?;
    let links: HashMap<u32, String> = socket
        .links()
        .map_err(at("list interfaces"))?
        .into_iter()
        .collect();
    let routes = socket.default_routes().map_err(at("list routes"))?;
    let errors = superfluous(&routes, &links, preferred)
        .into_iter()
        .filter_map(|route| {
            let names: Vec<_> = route.links.iter().filter_map(|l| links.get(l)).collect();
            let what = format!("delete the default route of {names:?}");
            socket.delete_route(route).map_err(at(&what)).err()
        });
    Error::all(errors.collect())
}

/// Before the ADDs: brings the attachments into the order of `preferred`, the rest behind, since a plugin leaves a
/// destination to the interface that claimed it first; and leaves the default route of a family in one generated list
/// only, that of the first which offers one, since some plugins refuse to add a second. Lists from files stay as they
/// are, and what their plugins do is settled by [`keep_one_default`].
pub fn offer_one_default(attachments: &mut [Attachment], preferred: &[String]) {
    let rank = |a: &Attachment| preferred.iter().position(|p| *p == a.ifname);
    // stable; those that are not preferred rank last
    attachments.sort_by_key(|a| rank(a).unwrap_or(preferred.len()));
    for everywhere in ["0.0.0.0/0", "::/0"] {
        let mut able = attachments.iter().filter(|a| rank(a).is_some());
        let chosen = able.position(|a| offers(&a.network, everywhere));
        for (i, attachment) in attachments.iter_mut().enumerate() {
            if Some(i) != chosen && attachment.network.source == GENERATED {
                retract(&mut attachment.network, everywhere);
            }
        }
    }
}

/// The list says that its network has a default route.
fn offers(list: &NetworkList, everywhere: &str) -> bool {
    list.plugins().iter().any(|plugin| {
        let routes = plugin.pointer("/ipam/routes").and_then(Value::as_array);
        plugin.get("isDefaultGateway") == Some(&true.into())
            || routes.is_some_and(|routes| routes.iter().any(|r| leads(r, everywhere)))
    })
}

/// Takes the default route out of a generated list.
fn retract(list: &mut NetworkList, everywhere: &str) {
    let plugins = list.config.get_mut("plugins").and_then(Value::as_array_mut);
    for plugin in plugins.into_iter().flatten() {
        let routes = plugin.pointer_mut("/ipam/routes");
        if let Some(routes) = routes.and_then(Value::as_array_mut) {
            routes.retain(|route| !leads(route, everywhere));
        }
    }
}

fn leads(route: &Value, to: &str) -> bool {
    route.get("dst").and_then(Value::as_str) == Some(to)
}

/// All routes but the one of each family that is kept.
fn superfluous<'a>(
    routes: &'a [DefaultRoute],
    links: &HashMap<u32, String>,
    preferred: &[String],
) -> Vec<&'a DefaultRoute> {
    // a multipath route through several networks is nobody's
    let rank = |route: &DefaultRoute| match route.links[..] {
        [link] => {
            let name = links.get(&link)?;
            preferred.iter().position(|p| p == name)
        }
        _ => None,
    };
    let mut kept: HashMap<u8, ((usize, u32), usize)> = HashMap::new();
    for (i, route) in routes.iter().enumerate() {
        let Some(rank) = rank(route) else { continue };
        let order = (rank, route.metric);
        let best = kept.entry(route.family).or_insert((order, i));
        if order < best.0 {
            *best = (order, i);
        }
    }
    let kept: Vec<_> = kept.values().map(|(_, i)| *i).collect();
    let all = routes.iter().enumerate();
    all.filter(|(i, _)| !kept.contains(i))
        .map(|(_, r)| r)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn preferences() {
        let candidate = |(ifname, priority, internal): &(&str, i64, bool)| Candidate {
            ifname: ifname.to_string(),
            priority: *priority,
            internal: *internal,
        };
        // name, priority, internal of each; the order
        type Row = (
            &'static [(&'static str, i64, bool)],
            &'static [&'static str],
        );
        let table: &[Row] = &[
            (&[], &[]),
            (&[("a", 0, false), ("b", 0, false)], &["a", "b"]),
            (&[("a", 0, false), ("b", 5, false)], &["b", "a"]),
            (
                &[("a", -1, false), ("b", 0, false), ("c", 0, false)],
                &["b", "c", "a"],
            ),
            (&[("a", 9, true), ("b", 0, false)], &["b"]),
        ];
        for (candidates, expected) in table {
            let candidates: Vec<_> = candidates.iter().map(candidate).collect();
            assert_eq!(preference(&candidates), *expected, "{candidates:?}");
        }
    }

    #[test]
    fn one_route_per_family_is_kept() {
        let links = HashMap::from([(2, "eth0".to_string()), (3, "eth1".to_string())]);
        // family, links, metric of each; preferred; indices of what goes
        type Routes = &'static [(u8, &'static [u32], u32)];
        type Row = (Routes, &'static [&'static str], &'static [usize]);
        let table: &[Row] = &[
            (&[(2, &[2], 0), (2, &[3], 0)], &["eth1", "eth0"], &[0]),
            // the preferred one offers IPv4 only
            (
                &[(2, &[2], 0), (2, &[3], 0), (10, &[2], 1024)],
                &["eth1", "eth0"],
                &[0],
            ),
            (&[(2, &[2], 9), (2, &[2], 1)], &["eth0"], &[0]),
            (&[(2, &[2, 3], 0), (2, &[3], 0)], &["eth0", "eth1"], &[0]),
            (&[(2, &[2], 0), (10, &[7], 0)], &[], &[0, 1]),
        ];
        for (routes, preferred, expected) in table {
            let routes: Vec<_> = routes
                .iter()
                .map(|(family, links, metric)| DefaultRoute::sample(*family, links, *metric))
                .collect();
            let preferred: Vec<_> = preferred.iter().map(|p| p.to_string()).collect();
            let got = superfluous(&routes, &links, &preferred);
            let expected: Vec<_> = expected.iter().map(|i| &routes[*i]).collect();
            assert_eq!(got, expected, "{routes:?}");
        }
    }

    #[test]
    fn one_generated_list_offers_a_family() {
        let attachment = |(ifname, source, routes): &(&str, &str, &[&str])| {
            let routes: Vec<_> = routes.iter().map(|dst| json!({"dst": dst})).collect();
            Attachment {
                network: NetworkList {
                    name: "n".into(),
                    source: source.to_string(),
                    config: json!({"plugins": [{"ipam": {"routes": routes}}, {"type": "portmap"}]}),
                },
                container_id: "c".into(),
                ifname: ifname.to_string(),
                ..Attachment::default()
            }
        };
        let (v4, v6, both) = (["0.0.0.0/0"], ["::/0"], ["0.0.0.0/0", "::/0"]);
        // interfaces, the preference; the interfaces as they should be
        type Interfaces<'a> = &'a [(&'a str, &'a str, &'a [&'a str])];
        type Row<'a> = (Interfaces<'a>, &'a [&'a str], Interfaces<'a>);
        let table: &[Row<'_>] = &[
            (
                &[("a", GENERATED, &both), ("b", GENERATED, &both)],
                &["b", "a"],
                &[("b", GENERATED, &both), ("a", GENERATED, &[])],
            ),
            // the preferred one has no IPv6
            (
                &[("a", GENERATED, &v4), ("b", GENERATED, &both)],
                &["a", "b"],
                &[("a", GENERATED, &v4), ("b", GENERATED, &v6)],
            ),
            // files are not changed, but count
            (
                &[("a", GENERATED, &both), ("b", "/f", &v4), ("c", "/g", &v4)],
                &["b", "a", "c"],
                &[("b", "/f", &v4), ("a", GENERATED, &v6), ("c", "/g", &v4)],
            ),
            (
                &[
                    ("a", GENERATED, &v4),
                    ("b", GENERATED, &v4),
                    ("c", GENERATED, &v4),
                ],
                &["c"],
                &[
                    ("c", GENERATED, &v4),
                    ("a", GENERATED, &[]),
                    ("b", GENERATED, &[]),
                ],
            ),
            (
                &[("a", GENERATED, &["0.0.0.0/0", "10.0.0.0/8"])],
                &[],
                &[("a", GENERATED, &["10.0.0.0/8"])],
            ),
        ];
        for (given, preferred, expected) in table {
            let mut got: Vec<_> = given.iter().map(attachment).collect();
            let preferred: Vec<_> = preferred.iter().map(|p| p.to_string()).collect();
            offer_one_default(&mut got, &preferred);
            let expected: Vec<_> = expected.iter().map(attachment).collect();
            assert_eq!(got, expected, "{given:?}");
        }
    }
}
