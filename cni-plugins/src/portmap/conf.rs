//! The configuration of `portmap` and the mappings that follow from it: pure.
//!
//! *Invariants*: a [`Mapping`] is of one family and its ports aren't 0; no two of one configuration collide. What the
//! reference plugin knows and this one doesn't was refused by name.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::conf::Conf;
use crate::error::{CniError, Result};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    backend: Option<String>,
    #[serde(default)]
    snat: Option<bool>,
    #[serde(default)]
    masq_all: bool,
    #[serde(default)]
    mark_masq_bit: Option<i64>,
    #[serde(default)]
    external_set_mark_chain: Option<String>,
    #[serde(default)]
    conditions_v4: Option<Vec<Value>>,
    #[serde(default)]
    conditions_v6: Option<Vec<Value>>,
    #[serde(default)]
    runtime_config: WireRuntime,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireRuntime {
    #[serde(default)]
    port_mappings: Option<Vec<WireMapping>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMapping {
    #[serde(default)]
    host_port: i64,
    #[serde(default)]
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(rename = "hostIP", default)]
    host_ip: String,
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
}

impl Protocol {
    /// Its number in the header of IP.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            "sctp" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A host port of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// Transport.
    pub protocol: Protocol,
    /// Unspecified: every address of the family.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {}", self.protocol, self.address, self.port)
    }
}

impl HostPort {
    /// Reads what a comment holds after the tag.
    pub fn of_comment(comment: &str) -> Option<Self> {
        let mut words = comment.split(' ').skip(3);
        Some(Self {
            protocol: Protocol::parse(words.next()?)?,
            address: words.next()?.parse().ok()?,
            port: words.next()?.parse().ok()?,
        })
    }

    /// Whether both can't be had at once.
    pub fn collides(&self, other: &Self) -> bool {
        let (a, b) = (self.address, other.address);
        self.protocol == other.protocol
            && self.port == other.port
            && a.is_ipv4() == b.is_ipv4()
            && (a == b || a.is_unspecified() || b.is_unspecified())
    }
}

/// A mapping of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Where it is asked for.
    pub host: HostPort,
    /// Who answers.
    pub container: IpAddr,
    /// Where.
    pub container_port: u16,
}

/// What to do.
#[derive(Debug)]
pub struct PortmapConf {
    /// `snat`: replies that would miss the host come back to it.
    pub snat: bool,
    /// `masqAll`: those of every client.
    pub masq_all: bool,
    ports: Vec<WireMapping>,
}

impl PortmapConf {
    /// Reads and checks.
    pub fn new(conf: &Conf) -> Result<Self> {
        let wire: Wire = conf.parse()?;
        if let Some(other) = wire.backend.as_deref().filter(|name| *name != "nftables") {
            return Err(CniError::unsupported(
                &format!("backend {other:?}"),
                "only nftables",
            ));
        }
        if wire.external_set_mark_chain.is_some() {
            return Err(CniError::unsupported(
                "externalSetMarkChain",
                "it is an iptables chain",
            ));
        }
        for (key, conditions) in [
            ("conditionsV4", &wire.conditions_v4),
            ("conditionsV6", &wire.conditions_v6),
        ] {
            if conditions.as_ref().is_some_and(|list| !list.is_empty()) {
                return Err(CniError::unsupported(key, "use hostIP of the port mapping"));
            }
        }
        // no mark is needed with nftables; the value is checked for the sake of other backends
        if wire
            .mark_masq_bit
            .is_some_and(|bit| !(0..=31).contains(&bit))
        {
            return Err(CniError::config("MasqMarkBit must be between 0 and 31"));
        }
        Ok(Self {
            snat: wire.snat.unwrap_or(true),
            masq_all: wire.masq_all,
            ports: wire.runtime_config.port_mappings.unwrap_or_default(),
        })
    }

    /// Whether there is nothing to map.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// The mappings for the first address of each family, in the order of the configuration.
    pub fn mappings(&self, container: &[IpNet]) -> Result<Vec<Mapping>> {
        let mut mappings: Vec<Mapping> = Vec::new();
        for (index, port) in self.ports.iter().enumerate() {
            let invalid = |why: String| CniError::config(format!("portMappings[{index}]: {why}"));
            let number = |what: &str, number: i64| {
                u16::try_from(number)
                    .ok()
                    .filter(|number| *number > 0)
                    .ok_or_else(|| invalid(format!("Invalid {what} port number: {number}")))
            };
            let container_port = number("container", port.container_port)?;
            let host_port = number("host", port.host_port)?;
            let protocol = Protocol::parse(&port.protocol.to_ascii_lowercase())
                .ok_or_else(|| invalid(format!("invalid protocol {:?}", port.protocol)))?;
            let wanted: Option<IpAddr> = match port.host_ip.as_str() {
                "" => None,
                text => Some(
                    text.parse()
                        .map_err(|_| invalid(format!("invalid hostIP {text:?}")))?,
                ),
            };
            let before = mappings.len();
            for v4 in [true, false] {
                let Some(address) = container.iter().find(|net| net.addr().is_ipv4() == v4) else {
                    continue;
                };
                let any: IpAddr = if v4 { [0; 4].into() } else { [0u16; 8].into() };
                let address_of_host = wanted.unwrap_or(any);
                if address_of_host.is_ipv4() != v4 {
                    continue;
                }
                let mapping = Mapping {
                    host: HostPort {
                        protocol,
                        address: address_of_host,
                        port: host_port,
                    },
                    container: address.addr(),
                    container_port,
                };
                if let Some(other) = mappings
                    .iter()
                    .find(|other| other.host.collides(&mapping.host))
                {
                    return Err(invalid(format!(
                        "host port {} is mapped twice ({})",
                        mapping.host, other.host
                    )));
                }
                mappings.push(mapping);
            }
            if mappings.len() == before {
                let family = wanted
                    .map(|ip| format!(" for host address {ip}"))
                    .unwrap_or_default();
                return Err(invalid(format!("the container has no address{family}")));
            }
        }
        Ok(mappings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collisions_and_comments() {
        let port = |text: &str| HostPort::of_comment(&format!("net a eth0 {text}")).unwrap();
        let cases = [
            ("tcp 0.0.0.0 80", "tcp 0.0.0.0 80", true),
            ("tcp 0.0.0.0 80", "tcp 192.0.2.1 80", true),
            ("tcp 192.0.2.1 80", "tcp 192.0.2.2 80", false),
            ("tcp 0.0.0.0 80", "tcp :: 80", false),
            ("tcp :: 80", "tcp fd00::1 80", true),
            ("tcp 0.0.0.0 80", "udp 0.0.0.0 80", false),
            ("tcp 0.0.0.0 80", "tcp 0.0.0.0 81", false),
        ];
        for (a, b, expected) in cases {
            assert_eq!(port(a).collides(&port(b)), expected, "{a} {b}");
            assert_eq!(port(b).collides(&port(a)), expected, "{b} {a}");
            assert_eq!(port(a).to_string(), a);
        }
        for other in [
            "net a eth0",
            "",
            "net a eth0 tcp",
            "net a eth0 tcp x 80",
            "net a eth0 icmp 0.0.0.0 1",
        ] {
            assert_eq!(HostPort::of_comment(other), None, "{other:?}");
        }
    }
}
