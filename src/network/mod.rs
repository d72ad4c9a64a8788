//! The runtime side of CNI: configuration, plugin invocation, attachments with cached results.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// Where configuration and plugins are found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cni {
    /// Folders with `*.conflist`, `*.conf`, `*.json` (`/etc/cni/net.d`).
    pub conf_dirs: Vec<PathBuf>,
    /// `CNI_PATH` (`/opt/cni/bin`, `/usr/lib/cni`).
    pub plugin_dirs: Vec<PathBuf>,
}

impl Cni {
    /// Finds and reads the network list `name`; read afresh at each call.
    pub fn load(&self, _name: &str) -> Result<NetworkList, Error> {
        todo!()
    }

    /// Every readable network list, by name; unreadable files come as errors with the file's name.
    pub fn list(&self) -> Result<(Vec<NetworkList>, Vec<Error>), Error> {
        todo!()
    }
}

/// A network list with where it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// One interface of a pod: what ADD, CHECK and DEL are called with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}

/// What the last plugin of a chain answered to ADD, in the form of CNI 1.x.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Attached {
    /// The result as printed.
    pub result: Value,
    /// Addresses with prefix of the pod's interface.
    pub addresses: Vec<ipnet::IpNet>,
    /// Default gateways offered.
    pub gateways: Vec<IpAddr>,
    /// `dns.nameservers`.
    pub nameservers: Vec<String>,
    /// `dns.search`.
    pub search: Vec<String>,
}

/// ADD along the chain. Before the first plugin runs, `cache` holds the attachment, after the last its result too,
/// so that [`del`] works from `cache` alone, whatever happened in between. On failure what was added is deleted again.
pub fn add(
    _cni: &Cni,
    _netns: &Path,
    _attachment: &Attachment,
    _cache: &Path,
) -> Result<Attached, Error> {
    todo!()
}

/// CHECK along the chain with the cached result.
pub fn check(_cni: &Cni, _netns: &Path, _cache: &Path) -> Result<(), Error> {
    todo!()
}

/// DEL along the chain in reverse, from `cache`, which is removed when every plugin answered; `netns` may be gone. Missing cache is success.
pub fn del(_cni: &Cni, _netns: Option<&Path>, _cache: &Path) -> Result<(), Error> {
    todo!()
}
