//! The configuration of `firewall` and the rules that follow from it: pure.
//!
//! *Invariants*: what the reference plugin knows and this one doesn't was refused by name. The rules of the plugin's own
//! table follow from its markers alone, which are in the kernel.

use std::borrow::Cow;

use ipnet::IpNet;
use serde::Deserialize;

use crate::conf::Conf;
use crate::error::{CniError, Result};
use crate::nft::{Chain, ESTABLISHED, Expr, FORWARD, Family, Name, RELATED, Rule, Table};
use crate::tag;

/// Holds one rule for each attachment with a policy; nothing leads here.
pub const ATTACHMENTS: &str = "attachments";
const FROM: &str = "from_bridge";
const TO: &str = "to_bridge";

/// What a rule's comment has after the tag in other people's tables, where comments may look like tags.
pub const OURS: &str = " sampan-firewall";

/// The plugin's own.
pub const TABLE: Table = Table {
    family: Family::Inet,
    name: Cow::Borrowed("sampan_firewall"),
    chains: &[
        Chain::plain(ATTACHMENTS),
        Chain::plain(TO),
        Chain::plain(FROM),
        Chain::base("forward", "filter", FORWARD, 0),
    ],
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    backend: String,
    #[serde(default)]
    iptables_admin_chain_name: String,
    #[serde(default)]
    firewalld_zone: String,
    #[serde(default)]
    ingress_policy: String,
    #[serde(default)]
    forward_chains: Option<Vec<String>>,
}

/// Who may open connections to the containers of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IngressPolicy {
    /// Containers of the same bridge and whoever is on no bridge with a policy.
    SameBridge,
    /// Only the latter.
    Isolated,
}

impl IngressPolicy {
    const ALL: [(&'static str, Self); 2] = [
        ("same-bridge", Self::SameBridge),
        ("isolated", Self::Isolated),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::SameBridge => "same-bridge",
            Self::Isolated => "isolated",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find_map(|(name, policy)| (name == text).then_some(policy))
    }
}

/// A chain of somebody else.
#[derive(Debug, Clone)]
pub struct Foreign {
    /// Its table.
    pub table: Table,
    /// Its name.
    pub chain: Name,
    /// It was asked for: its absence is an error.
    pub required: bool,
}

impl Foreign {
    fn parse(text: &str, required: bool) -> Option<Self> {
        let mut words = text.split(' ');
        let family = match words.next()? {
            "inet" => Family::Inet,
            "ip" => Family::Ip,
            "ip6" => Family::Ip6,
            _ => return None,
        };
        let (table, chain) = (words.next()?, words.next()?);
        (words.next().is_none() && !table.is_empty() && !chain.is_empty()).then(|| Self {
            table: Table {
                family,
                name: table.to_owned().into(),
                chains: &[],
            },
            chain: chain.to_owned().into(),
            required,
        })
    }
}

/// What to do.
#[derive(Debug)]
pub struct FirewallConf {
    /// `ingressPolicy`; `None`: open.
    pub policy: Option<IngressPolicy>,
    /// Where the container's packets are to be accepted.
    pub chains: Vec<Foreign>,
}

impl FirewallConf {
    /// Reads and checks.
    pub fn new(conf: &Conf) -> Result<Self> {
        let wire: Wire = conf.parse()?;
        // as the reference plugin: where iptables(8) keeps its rules
        let usual: &[&str] = match wire.backend.as_str() {
            "" | "iptables" => &["ip filter FORWARD", "ip6 filter FORWARD"],
            "nftables" => &[],
            other => {
                return Err(CniError::unsupported(
                    &format!("backend {other:?}"),
                    "nftables and iptables are known",
                ));
            }
        };
        for (key, value, why) in [
            (
                "iptablesAdminChainName",
                &wire.iptables_admin_chain_name,
                "a base chain of the administrator's own sees every packet too, and its drop is final",
            ),
            (
                "firewalldZone",
                &wire.firewalld_zone,
                "firewalld is not spoken to",
            ),
        ] {
            if !value.is_empty() {
                return Err(CniError::unsupported(key, why));
            }
        }
        let policy = match wire.ingress_policy.as_str() {
            "" | "open" => None,
            text => Some(IngressPolicy::parse(text).ok_or_else(|| {
                CniError::config(format!(
                    "unknown ingress policy: {text:?} (open, same-bridge and isolated are known)"
                ))
            })?),
        };
        let chains = match &wire.forward_chains {
            None => usual
                .iter()
                .filter_map(|text| Foreign::parse(text, false))
                .collect(),
            Some(list) => list
                .iter()
                .map(|text| {
                    Foreign::parse(text, true).ok_or_else(|| {
                        CniError::config(format!(
                            "forwardChains: {text:?} is not FAMILY TABLE CHAIN with a family inet, ip or ip6"
                        ))
                    })
                })
                .collect::<Result<_>>()?,
        };
        Ok(Self { policy, chains })
    }
}

/// The rules of an attachment in somebody else's chain, in their order: what the container sends, the answers, and
/// what published ports lead to it.
pub fn accepting(foreign: &Foreign, tag: &str, addresses: &[IpNet]) -> Vec<Rule> {
    let family = foreign.table.family;
    let seen = |net: &&IpNet| match family {
        Family::Ip => net.addr().is_ipv4(),
        Family::Ip6 => net.addr().is_ipv6(),
        _ => true,
    };
    let rule = |mut exprs: Vec<Expr>| {
        exprs.push(Expr::Accept);
        Rule {
            chain: foreign.chain.clone(),
            exprs,
            comment: format!("{tag}{OURS}"),
        }
    };
    let of_address = |net: &IpNet| {
        let address = IpNet::from(net.addr());
        let back = ESTABLISHED | RELATED;
        let states = match family {
            Family::Ip | Family::Ip6 => vec![Expr::XtablesState(back)],
            _ => vec![Expr::State(back), Expr::Dnatted],
        };
        let mut rules = vec![rule(vec![Expr::Source(true, address)])];
        rules.extend(
            states
                .into_iter()
                .map(|state| rule(vec![Expr::Destination(true, address), state])),
        );
        rules
    };
    addresses.iter().filter(seen).flat_map(of_address).collect()
}

/// An attachment with a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Its tag.
    pub tag: String,
    /// Its policy.
    pub policy: IngressPolicy,
    /// Its bridge.
    pub bridge: String,
}

impl Marker {
    /// Reads the comment of a marker's rule.
    pub fn parse(comment: &str) -> Option<Self> {
        let found = tag::parse(comment)?;
        let mut words = comment.splitn(5, ' ').skip(3);
        Some(Self {
            tag: format!("{} {} {}", found.network, found.container_id, found.ifname),
            policy: IngressPolicy::parse(words.next()?)?,
            bridge: words.next()?.to_owned(),
        })
    }
}

/// Everything in the table.
pub fn rules(markers: &[Marker]) -> Vec<Rule> {
    let rule = |chain: &'static str, exprs, comment| Rule {
        chain: chain.into(),
        exprs,
        comment,
    };
    let mut bridges: Vec<(&str, IngressPolicy)> = Vec::new();
    for marker in markers {
        match bridges.iter_mut().find(|(name, _)| *name == marker.bridge) {
            // several networks on one bridge: the narrowest
            Some((_, policy)) => *policy = marker.policy.max(*policy),
            None => bridges.push((&marker.bridge, marker.policy)),
        }
    }
    let mut rules: Vec<Rule> = markers
        .iter()
        .map(|marker| {
            let comment = format!("{} {} {}", marker.tag, marker.policy.name(), marker.bridge);
            rule(ATTACHMENTS, vec![Expr::Return], comment)
        })
        .collect();
    rules.push(rule(
        "forward",
        vec![Expr::Jump(FROM.into())],
        String::new(),
    ));
    for (bridge, policy) in bridges {
        let mut from = vec![Expr::InputInterface(true, bridge.to_owned())];
        if policy == IngressPolicy::SameBridge {
            from.push(Expr::OutputInterface(false, bridge.to_owned()));
        }
        from.push(Expr::Jump(TO.into()));
        rules.push(rule(FROM, from, String::new()));
        let to = vec![Expr::OutputInterface(true, bridge.to_owned()), Expr::Drop];
        rules.push(rule(TO, to, String::new()));
    }
    rules
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn configurations() {
        let read = |change: Value| {
            let mut value = json!({"cniVersion": "1.0.0", "name": "n"});
            for (key, new) in change.as_object().unwrap() {
                value[key] = new.clone();
            }
            let conf = FirewallConf::new(&Conf::new(value).unwrap()).map_err(|e| e.to_string())?;
            let chains: Vec<String> = conf
                .chains
                .iter()
                .map(|foreign| format!("{} {}", foreign.table, foreign.chain))
                .collect();
            Ok((conf.policy, chains.join(", ")))
        };
        let usual = "ip filter FORWARD, ip6 filter FORWARD";
        type Expected = std::result::Result<(Option<IngressPolicy>, &'static str), &'static str>;
        let cases: [(Value, Expected); 10] = [
            (json!({}), Ok((None, usual))),
            (json!({"backend": "iptables"}), Ok((None, usual))),
            (
                json!({"backend": "nftables", "ingressPolicy": "open"}),
                Ok((None, "")),
            ),
            (
                json!({"forwardChains": ["inet filter forward"], "ingressPolicy": "same-bridge"}),
                Ok((Some(IngressPolicy::SameBridge), "inet filter forward")),
            ),
            (
                json!({"forwardChains": [], "ingressPolicy": "isolated"}),
                Ok((Some(IngressPolicy::Isolated), "")),
            ),
            (
                json!({"backend": "firewalld"}),
                Err(
                    "backend \"firewalld\" is not supported by this plugin: nftables and iptables are known",
                ),
            ),
            (
                json!({"iptablesAdminChainName": "X"}),
                Err(
                    "iptablesAdminChainName is not supported by this plugin: a base chain of the administrator's own sees every packet too, and its drop is final",
                ),
            ),
            (
                json!({"firewalldZone": "trusted"}),
                Err("firewalldZone is not supported by this plugin: firewalld is not spoken to"),
            ),
            (
                json!({"ingressPolicy": "closed"}),
                Err(
                    "unknown ingress policy: \"closed\" (open, same-bridge and isolated are known)",
                ),
            ),
            (
                json!({"forwardChains": ["FORWARD"]}),
                Err(
                    "forwardChains: \"FORWARD\" is not FAMILY TABLE CHAIN with a family inet, ip or ip6",
                ),
            ),
        ];
        for (change, expected) in cases {
            let got: std::result::Result<(Option<IngressPolicy>, String), String> =
                read(change.clone());
            let expected = expected
                .map(|(policy, text)| (policy, text.to_owned()))
                .map_err(str::to_owned);
            assert_eq!(got, expected, "{change}");
        }
    }

    #[test]
    fn markers_come_back_from_their_comments() {
        let marker = |id: &str, policy, bridge: &str| Marker {
            tag: format!("net {id} eth0"),
            policy,
            bridge: bridge.into(),
        };
        let markers = [
            marker("a", IngressPolicy::SameBridge, "br0"),
            marker("b", IngressPolicy::Isolated, "br0"),
            marker("c", IngressPolicy::SameBridge, "br1"),
        ];
        let rules = rules(&markers);
        let found: Vec<Marker> = rules
            .iter()
            .filter_map(|rule| Marker::parse(&rule.comment))
            .collect();
        assert_eq!(found, markers);
        // two bridges, each with its way in and out, and the narrower policy of the first
        assert_eq!(rules.len(), 3 + 1 + 4);
        let to_elsewhere = |rule: &&Rule| {
            rule.exprs
                .iter()
                .any(|step| matches!(step, Expr::OutputInterface(false, _)))
        };
        assert_eq!(rules.iter().filter(to_elsewhere).count(), 1);
        assert_eq!(Marker::parse("net a eth0"), None);
        assert_eq!(Marker::parse("net a eth0 open br0"), None);
    }
}
