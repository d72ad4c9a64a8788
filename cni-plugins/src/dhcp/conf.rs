//! What the configuration says of a client: which options it gives and asks for.
//!
//! *Invariants*: keys are the reference plugin's, `timeout`, `broadcast` and `dataDir` are ours. Option values are at most
//! 255 bytes long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::message::option;
use crate::conf::{Conf, arg};
use crate::error::{CniError, Result};

const DEFAULT_DATA_DIR: &str = "/run/cni/dhcp";
/// Runtimes give a plugin a minute.
const DEFAULT_TIMEOUT: u64 = 30;
const NAMES: [(&str, u8); 6] = [
    ("dhcp-client-identifier", option::CLIENT_ID),
    ("subnet-mask", option::MASK),
    ("routers", option::ROUTER),
    ("host-name", option::HOST_NAME),
    ("user-class", option::USER_CLASS),
    ("vendor-class-identifier", option::VENDOR_CLASS),
];
/// RFC 3442: classless routes are asked for before the router.
const WANTED: [u8; 9] = [
    option::MASK,
    option::CLASSLESS_ROUTES,
    option::ROUTER,
    option::DNS,
    option::DOMAIN,
    option::SEARCH,
    option::MTU,
    option::STATIC_ROUTES,
    option::LEASE_TIME,
];

#[derive(Debug, Deserialize)]
struct Wire {
    ipam: WireIpam,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireIpam {
    #[serde(default)]
    provide: Vec<WireProvide>,
    #[serde(default)]
    request: Vec<WireRequest>,
    #[serde(default)]
    priority: u32,
    timeout: Option<u64>,
    #[serde(default)]
    broadcast: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireProvide {
    option: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    from_arg: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireRequest {
    #[serde(default)]
    option: String,
    #[serde(default)]
    skip_default: bool,
}

/// A client as configured.
#[derive(Debug, PartialEq, Eq)]
pub struct DhcpConf {
    /// Sent with every message.
    pub options: Vec<(u8, Vec<u8>)>,
    /// Metric of the routes; 0: the kernel's.
    pub priority: u32,
    /// How long a server may be silent.
    pub timeout: Duration,
    /// Answers as broadcasts: for interfaces that share their link address (ipvlan).
    pub broadcast: bool,
}

fn number(name: &str) -> Result<u8> {
    let known = NAMES.iter().find(|(known, _)| *known == name);
    known
        .map(|(_, code)| *code)
        .or_else(|| name.parse().ok())
        .filter(|code| !matches!(*code, 0 | 255 | option::TYPE))
        .ok_or_else(|| {
            let names = NAMES.map(|(name, _)| name).join(", ");
            CniError::config(format!("DHCP option {name:?} is not known"))
                .because(format!("known are {names} and numbers from 1 to 254"))
        })
}

impl DhcpConf {
    /// Reads `ipam`; `client_id` is who the client is unless the configuration says otherwise.
    pub fn new(conf: &Conf, args: &str, client_id: &str) -> Result<Self> {
        let Wire { ipam } = conf.parse()?;
        // RFC 2132 §9.14: type 0 is no hardware address
        let mut id = vec![0];
        id.extend(client_id.bytes().take(254));
        let mut options = vec![(option::CLIENT_ID, id)];
        for provide in &ipam.provide {
            let code = number(&provide.option)?;
            let from_arg = arg(args, &provide.from_arg).filter(|_| !provide.from_arg.is_empty());
            let value = from_arg.unwrap_or(&provide.value);
            if value.is_empty() {
                continue;
            }
            if value.len() > 255 {
                return Err(CniError::config(format!(
                    "the value of DHCP option {:?} is longer than 255 bytes",
                    provide.option
                )));
            }
            options.retain(|(other, _)| *other != code);
            options.push((code, value.into()));
        }
        let mut wanted: Vec<u8> = Vec::new();
        for request in ipam
            .request
            .iter()
            .filter(|request| !request.option.is_empty())
        {
            wanted.push(number(&request.option)?);
        }
        if !ipam.request.iter().any(|request| request.skip_default) {
            wanted.extend(WANTED);
        }
        let mut seen = [false; 256];
        wanted.retain(|code| !std::mem::replace(&mut seen[usize::from(*code)], true));
        if !wanted.is_empty() {
            options.push((option::WANTED, wanted));
        }
        let timeout = ipam.timeout.unwrap_or(DEFAULT_TIMEOUT);
        if !(1..=3600).contains(&timeout) {
            return Err(CniError::config(format!(
                "ipam.timeout {timeout} is not between 1 and 3600 seconds"
            )));
        }
        Ok(Self {
            options,
            priority: ipam.priority,
            timeout: Duration::from_secs(timeout),
            broadcast: ipam.broadcast,
        })
    }
}

/// Where the network's leases are.
pub fn folder(conf: &Conf) -> PathBuf {
    let data_dir = conf.value.pointer("/ipam/dataDir");
    let data_dir = data_dir.and_then(|path| path.as_str()).unwrap_or_default();
    let data_dir = if data_dir.is_empty() {
        DEFAULT_DATA_DIR
    } else {
        data_dir
    };
    Path::new(data_dir).join(&conf.name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(ipam: Value, args: &str) -> Result<DhcpConf> {
        let conf = json!({"cniVersion": "1.0.0", "name": "n", "ipam": ipam});
        DhcpConf::new(&Conf::new(conf).unwrap(), args, "c/n/eth0")
    }

    #[test]
    fn options() {
        let id = (61, b"\0c/n/eth0".to_vec());
        let plain = read(json!({}), "").unwrap();
        assert_eq!(plain.options, [id.clone(), (55, WANTED.to_vec())]);
        assert_eq!((plain.timeout.as_secs(), plain.broadcast), (30, false));
        let provide = json!([
            {"option": "host-name", "fromArg": "K8S_POD_NAME"}, {"option": "60", "value": "x"},
            {"option": "user-class", "value": "y", "fromArg": "ABSENT"}, {"option": "routers"}
        ]);
        let request =
            json!([{"skipDefault": true}, {"option": "6"}, {"option": "routers"}, {"option": "6"}]);
        let full = read(
            json!({"provide": provide, "request": request}),
            "A=1;K8S_POD_NAME=web",
        )
        .unwrap();
        let expected = [
            id,
            (12, b"web".to_vec()),
            (60, b"x".to_vec()),
            (77, b"y".to_vec()),
            (55, vec![6, 3]),
        ];
        assert_eq!(full.options, expected);
        let own = read(
            json!({"provide": [{"option": "dhcp-client-identifier", "value": "me"}]}),
            "",
        );
        assert_eq!(own.unwrap().options[0], (61, b"me".to_vec()));
        for bad in [
            json!({"provide": [{"option": "colour", "value": "x"}]}),
            json!({"provide": [{"option": "53", "value": "x"}]}),
            json!({"provide": [{"option": "12", "value": "x".repeat(256)}]}),
            json!({"request": [{"option": "256"}]}),
            json!({"timeout": 0}),
        ] {
            assert_eq!(read(bad.clone(), "").unwrap_err().code, 7, "{bad}");
        }
    }
}
