//! Results of ADD (CNI §"Success") and their forms in the versions of the specification.
//!
//! *Invariants*: in memory a result is always of the newest form; only [`AddResult::to_json`] knows the older ones.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{CniError, DECODE_FAILURE, INCOMPATIBLE_VERSION, Result};

/// Versions of the specification whose configurations are accepted, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Position of `version` among the known ones: comparable.
pub fn rank(version: &str) -> Option<usize> {
    VERSIONS.iter().position(|known| *known == version)
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// An interface made or used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name in its namespace.
    #[serde(default)]
    pub name: String,
    /// Link address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU in bytes; 0: not said (1.1.0).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The namespace's path; empty: the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address given to an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Address with prefix length.
    pub address: IpNet,
    /// The subnet's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; absent: the gateway of the address of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Largest TCP segment in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope as of rtnetlink(7) (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// Name resolution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Servers, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// What ADD returns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// Interfaces, host and container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name resolution.
    #[serde(default)]
    pub dns: Dns,
}

impl AddResult {
    /// Reads a result of any supported version; older forms only carry more keys.
    pub fn from_json(value: &Value, what: &str) -> Result<Self> {
        let wrong = CniError::new(DECODE_FAILURE, format!("{what} is not a CNI result"));
        // serde would take an array for an object's fields in order
        if !value.is_object() {
            return Err(wrong.because("it is no JSON object"));
        }
        serde_json::from_value(value.clone()).map_err(|cause| wrong.because(cause))
    }

    /// The object that `version` of the specification has for this result.
    pub fn to_json(&self, version: &str) -> Result<Value> {
        let rank = rank(version).ok_or_else(|| {
            CniError::new(
                INCOMPATIBLE_VERSION,
                format!("no result form for cniVersion {version:?}"),
            )
        })?;
        let mut result = self.clone();
        if rank < 4 {
            result.interfaces.iter_mut().for_each(|link| link.mtu = 0);
            for route in &mut result.routes {
                *route = Route {
                    mtu: None,
                    advmss: None,
                    priority: None,
                    table: None,
                    scope: None,
                    ..route.clone()
                };
            }
        }
        let mut value = json!(result);
        value["cniVersion"] = json!(version);
        // 0.3.x and 0.4.0 name the family beside each address
        if rank < 3
            && let Some(ips) = value["ips"].as_array_mut()
        {
            for (ip, config) in ips.iter_mut().zip(&self.ips) {
                ip["version"] = json!(if config.address.addr().is_ipv4() {
                    "4"
                } else {
                    "6"
                });
            }
        }
        Ok(value)
    }

    /// Addresses of the interface `ifname` inside a container; addresses without an interface count as its own.
    pub fn container_ips<'a>(&'a self, ifname: &'a str) -> impl Iterator<Item = &'a IpConfig> {
        self.ips.iter().filter(move |ip| {
            ip.interface
                .and_then(|index| self.interfaces.get(index))
                .is_none_or(|link| link.name == ifname && !link.sandbox.is_empty())
        })
    }

    /// The interface `ifname` inside a container.
    pub fn container_interface(&self, ifname: &str) -> Option<&Interface> {
        self.interfaces
            .iter()
            .find(|link| link.name == ifname && !link.sandbox.is_empty())
    }
}

/// The namespace's path as `sandbox` has it.
pub fn sandbox(netns: &Path) -> String {
    netns.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "mac": "0a:58:0a:01:00:02", "mtu": 1400, "sandbox": "/run/ns"}],
            "ips": [{"interface": 0, "address": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"address": "fd00::2/64"}],
            "routes": [{"dst": "0.0.0.0/0", "mtu": 1300, "table": 100}],
            "dns": {"nameservers": ["10.1.0.1"]}
        })
    }

    #[test]
    fn newest_form_round_trips() {
        let result = AddResult::from_json(&sample(), "sample").unwrap();
        assert_eq!(result.to_json("1.1.0").unwrap(), sample());
    }

    #[test]
    fn older_forms() {
        let result = AddResult::from_json(&sample(), "sample").unwrap();
        let mut expected = sample();
        expected["cniVersion"] = json!("1.0.0");
        expected["interfaces"][0]
            .as_object_mut()
            .unwrap()
            .remove("mtu");
        expected["routes"][0] = json!({"dst": "0.0.0.0/0"});
        assert_eq!(result.to_json("1.0.0").unwrap(), expected);
        for version in ["0.3.0", "0.3.1", "0.4.0"] {
            expected["cniVersion"] = json!(version);
            expected["ips"][0]["version"] = json!("4");
            expected["ips"][1]["version"] = json!("6");
            let form = result.to_json(version).unwrap();
            assert_eq!(form, expected);
            assert_eq!(AddResult::from_json(&form, "old").unwrap().ips, result.ips);
        }
        assert_eq!(result.to_json("0.2.0").unwrap_err().code, 1);
    }

    #[test]
    fn malformed() {
        for value in [
            json!([]),
            json!({"ips": [{"address": "10.0.0.300/8"}]}),
            json!({"ips": [{"interface": -1, "address": "10.0.0.1/8"}]}),
        ] {
            assert_eq!(
                AddResult::from_json(&value, "prevResult").unwrap_err().code,
                6,
                "{value}"
            );
        }
    }

    #[test]
    fn addresses_of_the_container() {
        let mut result = AddResult::from_json(&sample(), "sample").unwrap();
        assert_eq!(result.container_ips("eth0").count(), 2);
        assert_eq!(result.container_ips("eth1").count(), 1);
        result.interfaces[0].sandbox.clear();
        assert_eq!(result.container_ips("eth0").count(), 1);
        result.ips[0].interface = Some(7);
        assert_eq!(result.container_ips("eth0").count(), 2);
    }
}
