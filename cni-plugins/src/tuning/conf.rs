//! What the configuration wants of an interface, and which settings it may touch.
//!
//! *Invariants*: keys and their order of precedence are the reference plugin's: `CNI_ARGS`, then the capability `mac`, then
//! `args.cni`. A [`Setting`] is a path below `net` whose components can't lead elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use regex_lite::Regex;
use serde::Deserialize;

use crate::conf::{Conf, arg, parse_mac};
use crate::error::{CniError, Result};

const DEFAULT_DATA_DIR: &str = "/run/cni/tuning";
/// Regular expressions, one on each line; without the file everything below `net` is allowed.
const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";
const MAX_ALLOW_LIST: u64 = 1 << 20;
/// Stands for the interface in a setting's name.
const PLACEHOLDER: &str = "IFNAME";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    data_dir: Option<PathBuf>,
    #[serde(flatten)]
    wanted: WireWanted,
    runtime_config: Option<WireRuntime>,
    args: Option<WireArgs>,
}

#[derive(Debug, Default, Deserialize)]
struct WireWanted {
    sysctl: Option<BTreeMap<String, String>>,
    mac: Option<String>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
    mtu: Option<u32>,
    #[serde(rename = "txQLen")]
    queue: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
struct WireRuntime {
    mac: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct WireArgs {
    cni: Option<WireWanted>,
}

/// A file below `/proc/sys/net` and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Components of the path below `net`.
    pub parts: Vec<String>,
    /// What it is set to.
    pub value: String,
}

/// What is wanted; absent: as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct TuningConf {
    /// Settings of the namespace.
    pub settings: Vec<Setting>,
    /// Link address.
    pub mac: Option<[u8; 6]>,
    /// Receive everything. `false` in a configuration is the same as nothing.
    pub promiscuous: bool,
    /// Receive every multicast packet.
    pub all_multicast: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Length of the transmit queue in packets.
    pub queue: Option<u32>,
    /// Where it is remembered what was before.
    pub data_dir: PathBuf,
}

impl TuningConf {
    /// Reads the configuration for `ifname`.
    pub fn new(conf: &Conf, args: &str, ifname: &str) -> Result<Self> {
        let wire: Wire = conf.parse()?;
        let from_args = wire.args.and_then(|args| args.cni).unwrap_or_default();
        let mut sysctl = wire.wanted.sysctl.unwrap_or_default();
        sysctl.extend(from_args.sysctl.unwrap_or_default());
        let settings = sysctl
            .into_iter()
            .map(|(key, value)| Setting::new(&key, value, ifname))
            .collect::<Result<_>>()?;
        let mac = from_args
            .mac
            .or(wire.runtime_config.and_then(|runtime| runtime.mac))
            .or(arg(args, "MAC").map(str::to_owned))
            .filter(|mac| !mac.is_empty())
            .or(wire.wanted.mac)
            .filter(|mac| !mac.is_empty());
        let mac = mac.map(|text| {
            parse_mac(&text)
                .ok_or_else(|| CniError::config(format!("mac {text:?} is no link address")))
        });
        Ok(Self {
            settings,
            mac: mac.transpose()?,
            promiscuous: from_args.promisc.or(wire.wanted.promisc) == Some(true),
            all_multicast: from_args.allmulti.or(wire.wanted.allmulti),
            mtu: from_args.mtu.or(wire.wanted.mtu).filter(|mtu| *mtu != 0),
            queue: from_args.queue.or(wire.wanted.queue),
            data_dir: wire
                .data_dir
                .filter(|path| !path.as_os_str().is_empty())
                .unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
        })
    }

    /// Whether anything of the interface itself changes.
    pub fn changes_link(&self) -> bool {
        self.mac.is_some()
            || self.promiscuous
            || self.all_multicast.is_some()
            || self.mtu.is_some()
            || self.queue.is_some()
    }
}

impl Setting {
    /// `net.ipv4.conf.IFNAME.arp_filter`, or with slashes where a component has dots of its own, as sysctl(8) has it.
    fn new(key: &str, value: String, ifname: &str) -> Result<Self> {
        let invalid = || CniError::config(format!("invalid net sysctl key: {key:?}"));
        // the first separator says which one it is
        let separator = key.chars().find(|c| ['.', '/'].contains(c));
        let mut parts = key.split(separator.ok_or_else(invalid)?);
        if parts.next() != Some("net") {
            return Err(invalid());
        }
        let parts: Vec<String> = parts
            .map(|part| {
                if part == PLACEHOLDER {
                    ifname.to_owned()
                } else {
                    part.to_owned()
                }
            })
            .collect();
        let bad = |part: &String| {
            part.is_empty() || part == "." || part == ".." || part.contains(['/', '\0'])
        };
        if parts.is_empty() || parts.iter().any(bad) {
            return Err(invalid());
        }
        Ok(Self { parts, value })
    }
}

/// Refuses settings that the machine's allow-list doesn't have.
pub fn require_allowed(conf: &Conf) -> Result<()> {
    let path = Path::new(ALLOW_LIST);
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(MAX_ALLOW_LIST).read_to_string(&mut text)) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(CniError::io("read", path, &cause)),
        Ok(_) => {}
    }
    let list = allow_list(&text)?;
    for pointer in ["/sysctl", "/args/cni/sysctl"] {
        let keys = conf.value.pointer(pointer).and_then(|map| map.as_object());
        for key in keys.into_iter().flat_map(|map| map.keys()) {
            if !list.iter().any(|allowed| allowed.is_match(key)) {
                let error = CniError::config(format!("sysctl {key} is not allowed"));
                return Err(error.because(format!("no line of {ALLOW_LIST} matches it")));
            }
        }
    }
    Ok(())
}

fn allow_list(text: &str) -> Result<Vec<Regex>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            Regex::new(line).map_err(|cause| {
                CniError::config(format!("{line:?} in {ALLOW_LIST} is no regular expression"))
                    .because(cause)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(mut value: Value, args: &str) -> Result<TuningConf> {
        value["cniVersion"] = json!("1.0.0");
        value["name"] = json!("n");
        TuningConf::new(&Conf::new(value).unwrap(), args, "eth0.5")
    }

    #[test]
    fn names_of_settings() {
        let cases = [
            (
                "net.ipv4.conf.IFNAME.arp_filter",
                Some("ipv4 conf eth0.5 arp_filter"),
            ),
            (
                "net/ipv4/conf/a.b/arp_filter",
                Some("ipv4 conf a.b arp_filter"),
            ),
            ("net.core.somaxconn", Some("core somaxconn")),
            ("net", None),
            ("net.", None),
            ("kernel.hostname", None),
            ("net/../kernel/hostname", None),
            ("net.ipv4./etc/passwd", None),
            ("net/ipv4//x", None),
            ("/net/core/somaxconn", None),
            ("network.x", None),
        ];
        for (key, expected) in cases {
            let got = Setting::new(key, "1".into(), "eth0.5");
            let got = got.map(|setting| setting.parts.join(" "));
            assert_eq!(got.ok().as_deref(), expected, "{key}");
        }
    }

    #[test]
    fn who_says_what() {
        let mac = |value: Value, args: &str| read(value, args).unwrap().mac.map(|mac| mac[5]);
        let own = json!({"mac": "02:00:00:00:00:01"});
        assert_eq!(mac(own.clone(), ""), Some(1));
        assert_eq!(mac(own.clone(), "MAC=02:00:00:00:00:02"), Some(2));
        let mut runtime = own.clone();
        runtime["runtimeConfig"] = json!({"mac": "02:00:00:00:00:03"});
        assert_eq!(mac(runtime.clone(), "MAC=02:00:00:00:00:02"), Some(3));
        runtime["args"] = json!({"cni": {"mac": "02:00:00:00:00:04", "mtu": 1300, "promisc": false,
            "sysctl": {"net.core.somaxconn": "9"}}});
        runtime["promisc"] = json!(true);
        runtime["sysctl"] = json!({"net.core.somaxconn": "8", "net.ipv4.ip_forward": "1"});
        let full = read(runtime, "").unwrap();
        assert_eq!(full.mac.map(|mac| mac[5]), Some(4));
        assert_eq!((full.mtu, full.promiscuous), (Some(1300), false));
        let values: Vec<_> = full.settings.iter().map(|s| s.value.as_str()).collect();
        assert_eq!(values, ["9", "1"]);
        assert_eq!(read(json!({"mac": "nonsense"}), "").unwrap_err().code, 7);
        assert!(
            !read(json!({"mtu": 0, "mac": ""}), "")
                .unwrap()
                .changes_link()
        );
    }

    #[test]
    fn allowed() {
        let list =
            allow_list("^net\\.core\\.\n\n  ^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$ \n").unwrap();
        for (key, expected) in [
            ("net.core.somaxconn", true),
            ("net.ipv4.conf.IFNAME.arp_filter", true),
            ("net.ipv4.conf.all.arp_filter", false),
        ] {
            assert_eq!(
                list.iter().any(|line| line.is_match(key)),
                expected,
                "{key}"
            );
        }
        assert_eq!(allow_list("[").unwrap_err().code, 7);
    }
}
