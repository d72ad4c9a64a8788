//! What every plugin's configuration has in common (CNI §1 "Network configuration format", CONVENTIONS.md).
//!
//! *Invariants*: a [`Conf`] has a supported version and a valid name. Keys that aren't known are ignored, as the
//! specification has it; keys that are known and not implemented are refused by the plugin that owns them.

use std::net::IpAddr;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{CniError, DECODE_FAILURE, INCOMPATIBLE_VERSION, Result};
use crate::result::{AddResult, VERSIONS, rank};

/// The common part of a configuration.
#[derive(Debug, Clone)]
pub struct Conf {
    /// `cniVersion`: one of [`VERSIONS`].
    pub cni_version: String,
    /// `name` of the network.
    pub name: String,
    /// The whole configuration, as it came.
    pub value: Value,
}

/// An attachment that GC must keep.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// `CNI_CONTAINERID` of its ADD.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME` of its ADD.
    pub ifname: String,
}

/// Addresses that a runtime asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RequestedIps {
    /// From `args.cni.ips`.
    pub args: Vec<String>,
    /// From `runtimeConfig.ips`.
    pub capability: Vec<String>,
}

/// A container id or network name as the specification allows it.
pub fn valid_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// An interface name that the kernel takes (dev_valid_name) and that has no colon.
pub fn valid_ifname(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 15
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|byte| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0)
}

impl Conf {
    /// Checks version and name.
    pub fn new(value: Value) -> Result<Self> {
        let Some(object) = value.as_object() else {
            return Err(CniError::new(
                DECODE_FAILURE,
                "the network configuration is not a JSON object",
            ));
        };
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
        let cni_version = text("cniVersion").to_owned();
        if rank(&cni_version).is_none() {
            return Err(
                CniError::new(INCOMPATIBLE_VERSION, "incompatible CNI versions").because(format!(
                    "config is {cni_version:?}, plugin supports {VERSIONS:?}"
                )),
            );
        }
        let name = text("name").to_owned();
        if name.is_empty() {
            return Err(CniError::config("missing network name"));
        }
        if !valid_name(&name) {
            return Err(CniError::config("invalid characters found in network name").because(name));
        }
        Ok(Self {
            cni_version,
            name,
            value,
        })
    }

    /// Reads the plugin's own view of the configuration.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.value.clone()).map_err(|cause| {
            CniError::new(
                DECODE_FAILURE,
                format!("cannot read the configuration of network {}", self.name),
            )
            .because(cause)
        })
    }

    /// Whether the configuration's version is `version` or newer.
    pub fn at_least(&self, version: &str) -> bool {
        rank(&self.cni_version) >= rank(version)
    }

    /// `prevResult`, read.
    pub fn prev_result(&self) -> Result<Option<AddResult>> {
        match self.value.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => AddResult::from_json(value, "prevResult").map(Some),
        }
    }

    /// `prevResult`, without which a chained plugin or CHECK can't work.
    pub fn required_prev_result(&self) -> Result<AddResult> {
        self.prev_result()?
            .ok_or_else(|| CniError::config("required prevResult missing"))
    }

    /// `prevResult` as this plugin's own answer: with every key that it came with, known here or not.
    pub fn passed_on(&self) -> Result<Value> {
        let result = self.required_prev_result()?;
        let mut value = self.value.get("prevResult").cloned().unwrap_or_default();
        match value.get("cniVersion").and_then(Value::as_str) {
            Some(version) if version != self.cni_version => result.to_json(&self.cni_version),
            _ => {
                value["cniVersion"] = self.cni_version.clone().into();
                Ok(value)
            }
        }
    }

    /// `cni.dev/valid-attachments` of GC.
    pub fn valid_attachments(&self) -> Result<Vec<ValidAttachment>> {
        match self.value.get("cni.dev/valid-attachments") {
            // without the list everything would look stale: a caller's mistake, not a reason to delete all
            None => Err(CniError::config("cni.dev/valid-attachments is missing")),
            Some(Value::Null) => Ok(Vec::new()),
            Some(list) => serde_json::from_value(list.clone()).map_err(|cause| {
                CniError::new(DECODE_FAILURE, "cannot read cni.dev/valid-attachments")
                    .because(cause)
            }),
        }
    }

    /// The link address asked for: by the runtime, by the user through the runtime, by the configuration.
    pub fn mac(&self, args: &str) -> Result<Option<[u8; 6]>> {
        let asked = ["/runtimeConfig/mac", "/args/cni/mac"]
            .into_iter()
            .find_map(|key| self.value.pointer(key))
            .or_else(|| self.value.get("mac").filter(|_| arg(args, "MAC").is_none()))
            .filter(|value| !value.is_null());
        let text = match asked {
            Some(value) => value
                .as_str()
                .ok_or_else(|| CniError::new(DECODE_FAILURE, "mac is no text").because(value))?,
            None => arg(args, "MAC").unwrap_or_default(),
        };
        if text.is_empty() {
            return Ok(None);
        }
        match parse_mac(text) {
            Some(mac) => Ok(Some(mac)),
            None => Err(CniError::config(format!("invalid link address {text:?}"))),
        }
    }

    /// The addresses that the runtime asks for: `args.cni.ips` and the capability `ips` (CONVENTIONS.md), as they are
    /// written.
    pub fn requested_ips(&self) -> Result<RequestedIps> {
        #[derive(Deserialize)]
        struct Wire {
            args: Option<WireArgs>,
            #[serde(rename = "runtimeConfig")]
            runtime: Option<WireIps>,
        }
        #[derive(Deserialize)]
        struct WireArgs {
            cni: Option<WireIps>,
        }
        #[derive(Deserialize)]
        struct WireIps {
            ips: Option<Vec<String>>,
        }
        let wire: Wire = self.parse()?;
        let ips = |wire: Option<WireIps>| wire.and_then(|wire| wire.ips).unwrap_or_default();
        Ok(RequestedIps {
            args: ips(wire.args.and_then(|args| args.cni)),
            capability: ips(wire.runtime),
        })
    }

    /// Who calls: `args.sampan.runtime`, so that several runtimes can share a network and its folders: with the name of one,
    /// GC removes what is of containers whose ids begin with it and `-`. Those that don't say count as one.
    pub fn runtime(&self) -> Result<&str> {
        let name = self.value.pointer("/args/sampan/runtime");
        let name = name.and_then(Value::as_str).unwrap_or_default();
        if name.len() > 255 || name.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(CniError::config(format!(
                "args.sampan.runtime {name:?} is no name"
            )));
        }
        Ok(name)
    }

    /// `ipam.type`, where addresses are wanted.
    pub fn ipam_type(&self) -> Option<&str> {
        self.value
            .get("ipam")
            .and_then(|ipam| ipam.get("type"))
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
    }
}

/// An address written plain or with a prefix length.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    let plain = match text.split_once('/') {
        Some((plain, prefix)) => {
            let bits: u8 = prefix.parse().ok()?;
            let ip: IpAddr = plain.parse().ok()?;
            ipnet::IpNet::new(ip, bits).ok()?;
            plain
        }
        None => text,
    };
    plain.parse().ok()
}

/// A value of `CNI_ARGS` (`K=V;K=V`).
pub fn arg<'a>(args: &'a str, key: &str) -> Option<&'a str> {
    args.split(';')
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value)
}

/// A link address `aa:bb:cc:dd:ee:ff`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next()?;
        // from_str_radix alone takes a sign
        if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    // a group or all-zero address belongs to no interface
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// The usual spelling of a link address.
pub fn format_mac(mac: &[u8]) -> String {
    let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn common_part() {
        let cases = [
            (json!({"cniVersion": "1.1.0", "name": "n"}), Ok(())),
            (
                json!({"cniVersion": "0.3.1", "name": "a.b_c-1", "other": 1}),
                Ok(()),
            ),
            (json!({"name": "n"}), Err(1)),
            (json!({"cniVersion": "0.2.0", "name": "n"}), Err(1)),
            (json!({"cniVersion": "9.9.9", "name": "n"}), Err(1)),
            (json!({"cniVersion": "1.0.0"}), Err(7)),
            (json!({"cniVersion": "1.0.0", "name": "../n"}), Err(7)),
            (json!({"cniVersion": "1.0.0", "name": ".n"}), Err(7)),
            (json!([1]), Err(6)),
        ];
        for (value, expected) in cases {
            let got = Conf::new(value.clone()).map(|_| ()).map_err(|e| e.code);
            assert_eq!(got, expected, "{value}");
        }
    }

    #[test]
    fn names_of_interfaces() {
        for (name, valid) in [
            ("eth0", true),
            ("a.b@c", true),
            ("123456789012345", true),
            ("1234567890123456", false),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a:b", false),
            ("a b", false),
        ] {
            assert_eq!(valid_ifname(name), valid, "{name:?}");
        }
    }

    #[test]
    fn small_parsers() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("10.0.0.1/24", Some("10.0.0.1")),
            ("10.0.0.1/33", None),
            ("fd00::1/64", Some("fd00::1")),
            ("nonsense", None),
        ] {
            assert_eq!(parse_ip(text).map(|ip| ip.to_string()).as_deref(), expected);
        }
        assert_eq!(arg("A=1;IP=10.0.0.1;B", "IP"), Some("10.0.0.1"));
        assert_eq!(arg("", "IP"), None);
        assert_eq!(
            parse_mac("02:42:ac:11:00:0F"),
            Some([2, 0x42, 0xac, 0x11, 0, 15])
        );
        for bad in [
            "",
            "02:42",
            "02:42:ac:11:00:0f:01",
            "03:42:ac:11:00:02",
            "00:00:00:00:00:00",
            "02:42:ac:11:00:+f",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
        assert_eq!(
            format_mac(&[2, 0x42, 0xac, 0x11, 0, 15]),
            "02:42:ac:11:00:0f"
        );
    }

    #[test]
    fn link_address_of_the_most_specific_source() {
        let args = "IgnoreUnknown=1;MAC=02:00:00:00:00:03";
        let nonsense = "invalid link address \"nonsense\"";
        for (value, args, expected) in [
            (
                json!({"runtimeConfig": {"mac": "02:00:00:00:00:01"}, "args": {"cni": {"mac": "02:00:00:00:00:02"}}}),
                args,
                Ok(Some(1)),
            ),
            (
                json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}}),
                args,
                Ok(Some(2)),
            ),
            (json!({"mac": "02:00:00:00:00:04"}), args, Ok(Some(3))),
            (json!({"mac": "02:00:00:00:00:04"}), "", Ok(Some(4))),
            (json!({"mac": ""}), "", Ok(None)),
            (json!({}), "", Ok(None)),
            (
                json!({"runtimeConfig": {"mac": "nonsense"}}),
                "",
                Err(nonsense.to_owned()),
            ),
            (json!({"mac": 7}), "", Err("mac is no text: 7".to_owned())),
        ] {
            let conf = Conf {
                cni_version: "1.1.0".into(),
                name: "n".into(),
                value: value.clone(),
            };
            let got = conf.mac(args).map(|mac| mac.map(|mac| mac[5]));
            assert_eq!(got.map_err(|error| error.to_string()), expected, "{value}");
        }
    }

    #[test]
    fn passing_on() {
        let conf = |version: &str| {
            let previous = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "a", "mtu": 9, "pciID": "x"}], "new": 1});
            Conf::new(json!({"cniVersion": version, "name": "n", "prevResult": previous})).unwrap()
        };
        assert_eq!(
            conf("1.1.0").passed_on().unwrap(),
            conf("1.1.0").value["prevResult"]
        );
        let older = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "a"}], "dns": {}});
        assert_eq!(conf("1.0.0").passed_on().unwrap(), older);
    }

    #[test]
    fn garbage_collection_needs_its_list() {
        let conf = |value: Value| Conf {
            cni_version: "1.1.0".into(),
            name: "n".into(),
            value,
        };
        assert_eq!(conf(json!({})).valid_attachments().unwrap_err().code, 7);
        assert_eq!(
            conf(json!({"cni.dev/valid-attachments": "x"}))
                .valid_attachments()
                .unwrap_err()
                .code,
            6
        );
        let list =
            conf(json!({"cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}]}));
        assert_eq!(
            list.valid_attachments().unwrap(),
            [ValidAttachment {
                container_id: "c".into(),
                ifname: "eth0".into()
            }]
        );
    }
}
