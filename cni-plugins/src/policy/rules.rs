//! From a policy and the pods to tables, sets and rules: pure.
//!
//! ```text
//! forward, input  an answer, or a neighbour asking for a link address: accept
//!                 from or to a pod of the network ─► judge
//! judge           the rules in their order, then the default
//! senders         what comes from a pod's port with an address that isn't the pod's: drop
//! ```
//!
//! *Invariants*: the tables of a network hold nothing else, so their content is replaced as one change. The same rules work for
//! what the host routes (inet) and for what a bridge passes on (bridge).

use std::net::IpAddr;

use ipnet::IpNet;

use super::conf::{Action, Labels, Pod, Policy, Port, Selector};
use crate::nft::{
    Chain, ESTABLISHED, Expr, FORWARD, Family, Field, INPUT, Keys, PREROUTING, RELATED, Rule, Set,
    Table,
};

const JUDGE: &str = "judge";
/// A chain that every table has.
pub const SENDERS: &str = "senders";
/// Before address translation and everything that follows.
const RAW: i32 = -300;
const UDP: u8 = 17;
const DHCPV6_SERVER: u16 = 547;

const ROUTED: &[Chain] = &[
    Chain::plain(JUDGE),
    Chain::base("forward", "filter", FORWARD, 0),
    Chain::base("input", "filter", INPUT, 0),
    Chain::base(SENDERS, "filter", PREROUTING, RAW),
];
const BRIDGED: &[Chain] = &[
    Chain::plain(JUDGE),
    Chain::base("forward", "filter", FORWARD, 0),
    Chain::base(SENDERS, "filter", PREROUTING, RAW),
];

/// A table with all that is in it.
#[derive(Debug)]
pub struct Content {
    /// The table.
    pub table: Table,
    /// Its sets.
    pub sets: Vec<Set>,
    /// Its rules, in their order.
    pub rules: Vec<Rule>,
}

/// How packets between two ports of a bridge are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bridging {
    /// In the bridge, which follows connections.
    Bridge,
    /// As the packets of the host: br_netfilter shows them to its hooks.
    Host,
}

/// The table of a network in one family.
pub fn table(network: &str, family: Family) -> Table {
    Table {
        family,
        name: format!("sampan_policy_{network}").into(),
        chains: &[],
    }
}

/// Everything for the pods of a network.
pub fn contents(network: &str, policy: &Policy, pods: &[Pod], bridging: Bridging) -> Vec<Content> {
    let (bridged, routed): (Vec<&Pod>, Vec<&Pod>) =
        pods.iter().partition(|pod| pod.bridge.is_some());
    let table = |family, chains| Table {
        chains,
        ..table(network, family)
    };
    let mut host = Content {
        table: table(Family::Inet, ROUTED),
        sets: Vec::new(),
        rules: Vec::new(),
    };
    host.judge(policy, pods);
    host.senders(&routed);
    if bridged.is_empty() {
        return vec![host];
    }
    let mut bridge = Content {
        table: table(Family::Bridge, BRIDGED),
        sets: Vec::new(),
        rules: Vec::new(),
    };
    if bridging == Bridging::Bridge {
        bridge.judge(policy, pods);
    }
    bridge.senders(&bridged);
    vec![host, bridge]
}

fn name(stem: &str, v4: bool) -> String {
    format!("{stem}_{}", if v4 { 4 } else { 6 })
}

/// What IPv6 can't do without: neighbours, a question for routers (RFC 4861) and who listens to which group (RFC 2710, 3810). A
/// router's advertisement or redirect is judged: it says where others' packets go.
fn always() -> Vec<Vec<Expr>> {
    let icmpv6 = |from, to| {
        vec![
            Expr::Family(false),
            Expr::Icmpv6Types(from, to),
            Expr::Accept,
        ]
    };
    vec![icmpv6(130, 133), icmpv6(135, 136), icmpv6(143, 143)]
}

impl Content {
    fn rule(&mut self, chain: &'static str, exprs: Vec<Expr>, comment: String) {
        self.rules.push(Rule {
            chain: chain.into(),
            exprs,
            comment,
        });
    }

    fn set(&mut self, name: String, keys: Keys) {
        self.sets.push(Set {
            name: name.into(),
            keys,
        });
    }

    fn addresses<'a>(&mut self, stem: &str, pods: impl Iterator<Item = &'a Pod>) {
        let addresses: Vec<IpAddr> = pods.flat_map(|pod| pod.addresses.iter().copied()).collect();
        for v4 in [true, false] {
            self.set(name(stem, v4), Keys::Addresses(v4, addresses.clone()));
        }
    }

    /// The way to the verdict.
    fn judge(&mut self, policy: &Policy, pods: &[Pod]) {
        self.addresses("pods", pods.iter());
        let hooked: Vec<&'static str> = ["forward", "input"]
            .into_iter()
            .filter(|name| self.table.chains.iter().any(|chain| chain.name == *name))
            .collect();
        for chain in hooked {
            let related = vec![Expr::State(RELATED), Expr::Accept];
            // packets of the opener are judged each time: what isn't allowed any more ends
            let answer = vec![Expr::State(ESTABLISHED), Expr::Reply, Expr::Accept];
            for exprs in [related, answer].into_iter().chain(always()) {
                self.rule(chain, exprs, String::new());
            }
            for v4 in [true, false] {
                for field in [Field::Source, Field::Destination] {
                    let exprs = vec![
                        Expr::Lookup(true, field, v4, name("pods", v4).into()),
                        Expr::Jump(JUDGE.into()),
                    ];
                    self.rule(chain, exprs, String::new());
                }
            }
        }
        let mut known: Vec<(&Labels, String)> = Vec::new();
        for (index, rule) in policy.rules.iter().enumerate() {
            let from = self.selector(rule.from.as_ref(), format!("from{index}"), &mut known, pods);
            let to = self.selector(rule.to.as_ref(), format!("to{index}"), &mut known, pods);
            for v4 in [true, false] {
                let (from, to) = (
                    from.matching(Field::Source, v4),
                    to.matching(Field::Destination, v4),
                );
                let ports = at_ports(&rule.ports, v4);
                for (from, to, port) in product(&from, &to, &ports) {
                    let mut exprs = vec![Expr::Family(v4)];
                    for steps in [from, to, port] {
                        exprs.extend_from_slice(steps);
                    }
                    exprs.push(verdict(rule.action));
                    self.rule(JUDGE, exprs, format!("rule {index}"));
                }
            }
        }
        self.rule(JUDGE, vec![verdict(policy.default)], "default".to_owned());
    }

    /// What a selector looks at; the same labels have one set.
    fn selector<'a>(
        &mut self,
        selector: Option<&'a Selector>,
        stem: String,
        known: &mut Vec<(&'a Labels, String)>,
        pods: &[Pod],
    ) -> Whom<'a> {
        match selector {
            None => Whom::Anybody,
            Some(Selector::Networks(networks)) => Whom::Others(networks),
            Some(selector @ Selector::Labels(labels)) => {
                if let Some((_, stem)) = known.iter().find(|(other, _)| *other == labels) {
                    return Whom::Pods(stem.clone());
                }
                self.addresses(&stem, pods.iter().filter(|pod| selector.selects(pod)));
                known.push((labels, stem.clone()));
                Whom::Pods(stem)
            }
        }
    }

    /// A policy by address is worth what the addresses are worth.
    fn senders(&mut self, pods: &[&Pod]) {
        if pods.is_empty() {
            return;
        }
        let ports = pods.iter().map(|pod| pod.port.clone()).collect();
        let mut senders: Vec<(String, IpAddr)> = Vec::new();
        for pod in pods {
            // who has no address yet asks for one (RFC 2131, 4862)
            let none: [IpAddr; 2] = [[0; 4].into(), [0u16; 8].into()];
            let own = pod.addresses.iter().copied().chain(none);
            senders.extend(own.map(|address| (pod.port.clone(), address)));
        }
        self.set("ports".to_owned(), Keys::Interfaces(ports));
        let dhcp = vec![
            Expr::Family(false),
            Expr::Protocol(UDP),
            Expr::DestinationPort(DHCPV6_SERVER),
            Expr::Accept,
        ];
        for exprs in always().into_iter().chain([dhcp]) {
            self.rule(SENDERS, exprs, String::new());
        }
        for v4 in [true, false] {
            let set = name("senders", v4);
            self.set(set.clone(), Keys::Senders(v4, senders.clone()));
            let exprs = vec![
                Expr::LookupInterface(true, "ports".into()),
                Expr::LookupSender(false, v4, set.into()),
                Expr::Drop,
            ];
            self.rule(SENDERS, exprs, String::new());
        }
    }
}

/// Whom a selector means.
enum Whom<'a> {
    /// Everybody.
    Anybody,
    /// Pods: the stem of their sets.
    Pods(String),
    /// Those that are no pods.
    Others(&'a [IpNet]),
}

impl Whom<'_> {
    /// The alternatives, each with its steps.
    fn matching(&self, field: Field, v4: bool) -> Vec<Vec<Expr>> {
        let lookup = |equal, stem: &str| Expr::Lookup(equal, field, v4, name(stem, v4).into());
        let one = |net: IpNet| match field {
            Field::Source => Expr::Source(true, net.trunc()),
            Field::Destination => Expr::Destination(true, net.trunc()),
        };
        match self {
            Self::Anybody => vec![Vec::new()],
            Self::Pods(stem) => vec![vec![lookup(true, stem)]],
            Self::Others(networks) => IpNet::aggregate(&networks.to_vec())
                .into_iter()
                .filter(|net| net.addr().is_ipv4() == v4)
                .map(|net| vec![lookup(false, "pods"), one(net)])
                .collect(),
        }
    }
}

type Steps = Vec<Expr>;

fn product<'a>(
    from: &'a [Steps],
    to: &'a [Steps],
    ports: &'a [Steps],
) -> impl Iterator<Item = (&'a Steps, &'a Steps, &'a Steps)> {
    from.iter().flat_map(move |from| {
        to.iter()
            .flat_map(move |to| ports.iter().map(move |port| (from, to, port)))
    })
}

/// The steps for each of the ports; one without steps for all.
fn at_ports(ports: &[Port], v4: bool) -> Vec<Vec<Expr>> {
    if ports.is_empty() {
        return vec![Vec::new()];
    }
    let steps = |port: &Port| {
        let mut steps = vec![Expr::Protocol(port.protocol.number(v4))];
        steps.extend(port.range.map(|(from, to)| {
            if from == to {
                Expr::DestinationPort(from)
            } else {
                Expr::DestinationPorts(from, to)
            }
        }));
        steps
    };
    ports.iter().map(steps).collect()
}

fn verdict(action: Action) -> Expr {
    match action {
        Action::Allow => Expr::Accept,
        Action::Deny => Expr::Drop,
    }
}
