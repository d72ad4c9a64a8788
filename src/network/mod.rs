//! The runtime side of CNI: configuration, plugin invocation, attachments with cached results.
//!
//! ```text
//! conf           network lists from the configuration folders
//! generate       compose networks as such lists
//! subnets        which addresses these have, and for how long
//! attach         ADD, CHECK, DEL along the chains of all interfaces; the cache that DEL works from
//! request        what a plugin is handed
//! invoke         one plugin, once
//! probe          VERSION and STATUS
//! gc             what attachments left that are gone
//! result         what ADD answered
//! default_route  which interface has it, one per family
//! hosts          /etc/hosts, /etc/resolv.conf
//! interface      what is asked of one beyond its plugins; stable link addresses
//! netns          pinned namespaces
//! owner          which container ids are this state folder's
//! netlink        the few kernel messages that this module sends itself
//!
//! up     subnets::acquire, generate or Cni::load · netns::create · gc::collect · add, offered for each
//!        · preference, settle · hosts::hosts, hosts::resolv_conf
//! down   del_all · netns::remove · subnets::release
//! ```
//!
//! *Invariants:* whatever was begun can be undone from what is on disk; nothing here resolves names or talks to any
//! network; plugin output and files are bounded and never trusted.
//! Links, addresses and firewall rules are the plugins' business, which networks a pod has is [`crate::pod`]'s.

mod attach;
mod conf;
mod default_route;
mod error;
pub mod gc;
mod generate;
pub mod hosts;
pub mod interface;
mod invoke;
pub mod netns;
pub mod owner;
mod probe;
mod ranges;
mod request;
mod result;
pub mod subnets;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use attach::{
    Recorded, add, add_all, check, del, del_all, del_unrecorded, recorded, republish,
};
pub use default_route::{Candidate, Offer, offered, preference, settle, winner};
pub use error::{Error, PluginFailure};
pub use generate::{GENERATED, bridge_name, gateways, generate, is_routed};
pub use invoke::{Command, is_there};
pub use probe::{status, versions};
pub use result::Attached;

/// Where configuration and plugins are found, and what is at work is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cni {
    /// Folders with `*.conflist`, `*.conf`, `*.json` (`/etc/cni/net.d`).
    pub conf_dirs: Vec<PathBuf>,
    /// `CNI_PATH` (`/opt/cni/bin`, `/usr/lib/cni`).
    pub plugin_dirs: Vec<PathBuf>,
    /// Folder of running pods (`/run/sampan`).
    pub state: PathBuf,
}

/// A network list with where it came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkList {
    /// `name`.
    pub name: String,
    /// File, or a word like `generated`.
    pub source: String,
    /// The configuration, a single-plugin file turned into a list.
    pub config: Value,
}

/// A published port as the `portMappings` capability has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// Address on the host; absent: every address.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl std::fmt::Display for PortMapping {
    /// `127.0.0.1:8080->80/tcp`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
            Some(ip) => write!(f, "{ip}")?,
            None => write!(f, "*")?,
        }
        let (host, inside) = (self.host_port, self.container_port);
        write!(f, ":{host}->{inside}/{}", self.protocol)
    }
}

/// One interface of a pod: what ADD, CHECK and DEL are called with. [`Default`] is for the wishes, which are none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network.
    pub network: NetworkList,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// Fixed addresses (capability `ips`), in CIDR form or plain.
    pub ips: Vec<String>,
    /// Fixed link address (capability `mac`).
    pub mac: Option<String>,
    /// Published ports (capability `portMappings`).
    pub ports: Vec<PortMapping>,
    /// Names (capability `aliases`).
    pub aliases: Vec<String>,
    /// `CNI_ARGS` pairs.
    pub args: Vec<(String, String)>,
    /// `groups` of Mesos' `NetworkInfo` (key `args` of the configuration).
    #[serde(default)]
    pub groups: Vec<String>,
    /// Labels of the pod (capability `labels`, and the key `args` of the configuration).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Other capabilities by name (`bandwidth`, `dns`, `ipRanges`, `deviceID`, …) with their values as they are.
    #[serde(default)]
    pub capabilities: Map<String, Value>,
}
