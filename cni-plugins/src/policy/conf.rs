//! The configuration of `policy`: who may talk to whom. Pure but for the policy folder.
//!
//! *Invariants*: a [`Policy`] is understood whole: unknown keys of a rule, protocols and ports are errors. The first rule
//! that matches decides.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::conf::{Conf, arg};
use crate::error::{CniError, DECODE_FAILURE, Result};

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

const DATA_DIR: &str = "/run/cni/policy";
/// More rules than that are a mistake.
const MAX_RULES: usize = 8192;
/// A longer file is no policy, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What happens to a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It passes.
    Allow,
    /// It is dropped.
    #[default]
    Deny,
}

fn allow() -> Action {
    Action::Allow
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "labels (an object of strings) or a list of networks"
)]
pub enum Selector {
    /// Pods of the network that have all of these; with none: every pod of the network.
    Labels(Labels),
    /// Whoever is no pod of the network and has one of these addresses.
    Networks(Vec<IpNet>),
}

/// Of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// tcp(7)
    Tcp,
    /// udp(7)
    Udp,
    /// sctp(7)
    Sctp,
    /// icmp(7), and what IPv6 has instead.
    Icmp,
}

const PROTOCOLS: [(&str, Protocol); 4] = [
    ("tcp", Protocol::Tcp),
    ("udp", Protocol::Udp),
    ("sctp", Protocol::Sctp),
    ("icmp", Protocol::Icmp),
];

impl Protocol {
    /// Its number in the header of IP.
    pub fn number(self, v4: bool) -> u8 {
        match (self, v4) {
            (Self::Tcp, _) => 6,
            (Self::Udp, _) => 17,
            (Self::Sctp, _) => 132,
            (Self::Icmp, true) => 1,
            (Self::Icmp, false) => 58,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = PROTOCOLS.iter().find(|(_, known)| known == self);
        out.write_str(name.map_or("", |(name, _)| name))
    }
}

/// A protocol and what of it, as `tcp/80`, `udp/53-60`, `sctp`, `icmp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Port {
    /// The protocol.
    pub protocol: Protocol,
    /// Destination ports, both included; `None`: all, or the protocol has none.
    pub range: Option<(u16, u16)>,
}

impl Port {
    fn parse(text: &str) -> Option<Self> {
        let (name, range) = match text.split_once('/') {
            None => (text, None),
            Some((name, ports)) => {
                let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
                (name, Some((from.parse().ok()?, to.parse().ok()?)))
            }
        };
        let (_, protocol) = *PROTOCOLS.iter().find(|(known, _)| *known == name)?;
        let sane =
            range.is_none_or(|(from, to)| from > 0 && from <= to && protocol != Protocol::Icmp);
        sane.then_some(Self { protocol, range })
    }
}

impl TryFrom<String> for Port {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        Self::parse(&text).ok_or_else(|| {
            format!("{text:?} is not PROTOCOL, PROTOCOL/PORT or PROTOCOL/FROM-TO with tcp, udp, sctp or icmp")
        })
    }
}

impl From<Port> for String {
    fn from(port: Port) -> Self {
        match port.range {
            None => port.protocol.to_string(),
            Some((from, to)) if from == to => format!("{}/{from}", port.protocol),
            Some((from, to)) => format!("{}/{from}-{to}", port.protocol),
        }
    }
}

/// Who may, or may not, open connections to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What happens to what matches.
    #[serde(default = "allow")]
    pub action: Action,
    /// Who opens the connection; absent: anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Selector>,
    /// To whom; absent: to anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Selector>,
    /// Where to; empty: every protocol and port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
}

impl Rule {
    /// How many rules the kernel has for it, at most, in each family.
    fn weight(&self) -> usize {
        let networks = |selector: &Option<Selector>| match selector {
            Some(Selector::Networks(list)) => list.len().max(1),
            _ => 1,
        };
        let ports = self.ports.len().max(1);
        networks(&self.from)
            .saturating_mul(networks(&self.to))
            .saturating_mul(ports)
    }
}

/// What holds for the pods of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What happens to what no rule matches.
    #[serde(default)]
    pub default: Action,
    /// In their order.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(flatten)]
    policy: Policy,
    #[serde(default)]
    policy_dir: Option<PathBuf>,
    #[serde(default)]
    data_dir: Option<PathBuf>,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    runtime_config: WireRuntime,
    #[serde(default)]
    args: WireArgs,
}

#[derive(Debug, Default, Deserialize)]
struct WireRuntime {
    #[serde(default)]
    labels: Option<Labels>,
}

#[derive(Debug, Default, Deserialize)]
struct WireArgs {
    #[serde(default)]
    cni: KeyValues,
    #[serde(rename = "org.apache.mesos", default)]
    mesos: WireMesos,
}

#[derive(Debug, Default, Deserialize)]
struct WireMesos {
    #[serde(default)]
    network_info: WireNetworkInfo,
}

#[derive(Debug, Default, Deserialize)]
struct WireNetworkInfo {
    #[serde(default)]
    labels: KeyValues,
}

#[derive(Debug, Default, Deserialize)]
struct KeyValues {
    #[serde(default)]
    labels: Vec<KeyValue>,
}

#[derive(Debug, Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
}

/// What to do.
#[derive(Debug)]
pub struct PolicyConf {
    /// What holds, with the files of the folder.
    pub policy: Policy,
    /// Where attachments are written down.
    pub folder: PathBuf,
    labels: Labels,
}

impl PolicyConf {
    /// Reads and checks.
    pub fn new(conf: &Conf) -> Result<Self> {
        let wire: Wire = conf.parse()?;
        let mut policy = wire.policy;
        if let Some(folder) = &wire.policy_dir {
            policy.rules.extend(read_folder(folder)?);
        }
        let weight: usize = policy.rules.iter().map(Rule::weight).sum();
        if weight > MAX_RULES {
            return Err(CniError::config(format!(
                "policy of network {}: its rules are {weight} combinations of networks and ports, the limit is {MAX_RULES}",
                conf.name
            )));
        }
        let lists = [wire.args.mesos.network_info.labels, wire.args.cni];
        let listed = lists
            .into_iter()
            .flat_map(|list| list.labels)
            .map(|label| (label.key, label.value));
        let mut labels = wire.labels;
        labels.extend(listed);
        labels.extend(wire.runtime_config.labels.unwrap_or_default());
        Ok(Self {
            policy,
            folder: folder(wire.data_dir, &conf.name),
            labels,
        })
    }

    /// The pod's labels. What the runtime says directly counts more than what the configuration says.
    pub fn labels(&self, args: &str) -> Labels {
        let mut labels: Labels = [
            ("K8S_POD_NAMESPACE", "io.kubernetes.pod.namespace"),
            ("K8S_POD_NAME", "io.kubernetes.pod.name"),
        ]
        .into_iter()
        .filter_map(|(key, label)| Some((label.to_owned(), arg(args, key)?.to_owned())))
        .collect();
        labels.extend(self.labels.clone());
        labels
    }
}

fn folder(data_dir: Option<PathBuf>, network: &str) -> PathBuf {
    data_dir
        .unwrap_or_else(|| PathBuf::from(DATA_DIR))
        .join(network)
}

/// Where a configuration keeps its attachments, whatever its rules are: DEL and GC have no need of them.
pub fn folder_of(conf: &Conf) -> PathBuf {
    let data_dir = conf.value.get("dataDir").and_then(Value::as_str);
    folder(data_dir.map(PathBuf::from), &conf.name)
}

/// The rules of every `*.json` of a folder, in the order of the names.
fn read_folder(folder: &Path) -> Result<Vec<Rule>> {
    let io = |cause| CniError::io("read the policy folder", folder, &cause);
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|end| end == "json") {
            files.push(path);
        }
    }
    files.sort();
    let mut rules = Vec::new();
    for path in files {
        let bytes = read_bounded(&path)?;
        let file: PolicyFile = serde_json::from_slice(&bytes).map_err(|cause| {
            let what = format!("cannot read the policy {}", path.display());
            CniError::new(DECODE_FAILURE, what).because(cause)
        })?;
        rules.extend(file.rules);
    }
    Ok(rules)
}

/// A file of sane size.
pub fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let io = |cause| CniError::io("read", path, &cause);
    let mut bytes = Vec::new();
    fs::File::open(path)
        .map_err(io)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(CniError::config(format!(
            "{} is longer than {MAX_FILE} bytes",
            path.display()
        )));
    }
    Ok(bytes)
}

/// A pod of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// What selectors look at.
    pub labels: Labels,
    /// Its addresses on the network.
    pub addresses: Vec<IpAddr>,
    /// The host's interface to it.
    pub port: String,
    /// The bridge that the port is on; `None`: the host routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

impl Selector {
    /// Whether a pod is meant.
    pub fn selects(&self, pod: &Pod) -> bool {
        match self {
            Self::Labels(wanted) => wanted
                .iter()
                .all(|(key, value)| pod.labels.get(key) == Some(value)),
            Self::Networks(_) => false,
        }
    }

    /// Whether whoever has `address` is meant.
    fn matches(&self, address: IpAddr, pods: &[Pod]) -> bool {
        let mut owners = pods.iter().filter(|pod| pod.addresses.contains(&address));
        match (self, owners.next()) {
            (Self::Networks(networks), None) => networks.iter().any(|net| net.contains(&address)),
            (_, Some(pod)) => self.selects(pod),
            (Self::Labels(_), None) => false,
        }
    }
}

/// A connection as its opener asked for it, with the address that it really goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// IP's number of the protocol.
    pub protocol: u8,
    /// The opener.
    pub source: IpAddr,
    /// Who answers.
    pub destination: IpAddr,
    /// Where; 0 for protocols without ports.
    pub port: u16,
}

impl Policy {
    /// What happens to a connection: the same as the kernel's rules say, for those that it knows already.
    pub fn decide(&self, flow: &Flow, pods: &[Pod]) -> Action {
        let meant = |selector: &Option<Selector>, address| {
            selector
                .as_ref()
                .is_none_or(|selector| selector.matches(address, pods))
        };
        let at = |port: &Port| {
            port.protocol.number(flow.source.is_ipv4()) == flow.protocol
                && port
                    .range
                    .is_none_or(|(from, to)| (from..=to).contains(&flow.port))
        };
        self.rules
            .iter()
            .find(|rule| {
                meant(&rule.from, flow.source)
                    && meant(&rule.to, flow.destination)
                    && (rule.ports.is_empty() || rule.ports.iter().any(at))
            })
            .map_or(self.default, |rule| rule.action)
    }
}

#[cfg(test)]
#[path = "conf_tests.rs"]
mod tests;
