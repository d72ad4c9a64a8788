//! The plugin `static`: the addresses that the configuration or the runtime names.
//!
//! *Invariants*: nothing is kept anywhere. Keys and their order of precedence are the reference plugin's: `CNI_ARGS` adds
//! to `addresses`, `args.cni.ips` replaces them, the capability `ips` replaces both.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::conf::{Conf, arg};
use crate::error::{CniError, INVALID_ENVIRONMENT, NOT_AVAILABLE, Result};
use crate::result::{AddResult, Dns, IpConfig, Route};
use crate::skel::{Invocation, Plugin};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del: |_, _| Ok(()),
    check,
    gc: |_, _| Ok(()),
    status,
};

#[derive(Debug, Deserialize)]
struct Wire {
    ipam: Option<WireIpam>,
}

#[derive(Debug, Deserialize)]
struct WireIpam {
    #[serde(default)]
    addresses: Vec<WireAddress>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Debug, Deserialize)]
struct WireAddress {
    address: String,
    gateway: Option<IpAddr>,
}

fn with_prefix(key: &str, text: &str) -> Result<IpNet> {
    text.trim().parse().map_err(|_| {
        CniError::config(format!(
            "{key}: {text:?} is no address with a prefix length, such as 10.1.2.3/24"
        ))
    })
}

fn plain(key: &str, list: &[String]) -> Result<Vec<IpConfig>> {
    list.iter()
        .map(|text| with_prefix(key, text).map(|address| config(address, None)))
        .collect()
}

fn config(address: IpNet, gateway: Option<IpAddr>) -> IpConfig {
    IpConfig {
        interface: None,
        address,
        gateway,
    }
}

fn read(conf: &Conf, args: &str) -> Result<AddResult> {
    let wire: Wire = conf.parse()?;
    let ipam = wire
        .ipam
        .ok_or_else(|| CniError::config("IPAM config missing 'ipam' key"))?;
    let mut ips = Vec::new();
    for wire in &ipam.addresses {
        let address = with_prefix("ipam.addresses", &wire.address)?;
        if wire
            .gateway
            .is_some_and(|gateway| gateway.is_ipv4() != address.addr().is_ipv4())
        {
            return Err(CniError::config(format!(
                "gateway of {address} is of the other address family"
            )));
        }
        ips.push(config(address, wire.gateway));
    }
    ips.extend(from_args(args)?);
    let requested = conf.requested_ips()?;
    for (key, list) in [
        ("args.cni.ips", &requested.args),
        ("runtimeConfig.ips", &requested.capability),
    ] {
        if !list.is_empty() {
            ips = plain(key, list)?;
        }
    }
    Ok(AddResult {
        ips,
        routes: ipam.routes,
        dns: ipam.dns,
        ..AddResult::default()
    })
}

/// `IP` and `GATEWAY` of `CNI_ARGS`, lists with commas. A gateway is that of every such address whose subnet holds it.
fn from_args(args: &str) -> Result<Vec<IpConfig>> {
    let mut ips = Vec::new();
    for text in arg(args, "IP").into_iter().flat_map(|list| list.split(',')) {
        ips.push(config(with_prefix("IP in CNI_ARGS", text)?, None));
    }
    let gateways = arg(args, "GATEWAY").into_iter();
    for text in gateways.flat_map(|list| list.split(',')) {
        let gateway: IpAddr = text.trim().parse().map_err(|_| {
            CniError::new(
                INVALID_ENVIRONMENT,
                format!("GATEWAY={text} in CNI_ARGS is not an address"),
            )
        })?;
        for ip in ips.iter_mut().filter(|ip| ip.address.contains(&gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    Ok(ips)
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    read(conf, &invocation.args)?.to_json(&conf.cni_version)
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let found = conf.required_prev_result()?;
    for wanted in read(conf, &invocation.args)?.ips {
        let same = found.ips.iter().find(|ip| ip.address == wanted.address);
        match same {
            None => {
                return Err(CniError::check(format!(
                    "static: address {} is not in prevResult",
                    wanted.address
                )));
            }
            Some(ip) if wanted.gateway.is_some() && wanted.gateway != ip.gateway => {
                return Err(CniError::check(format!(
                    "static: address {} has another gateway in prevResult",
                    wanted.address
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    // what the addresses are may only be said with ADD
    read(conf, &invocation.args).map(|_| ()).map_err(|error| {
        CniError::new(NOT_AVAILABLE, "static has no address to give").because(error)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(config: Value, args: &str) -> std::result::Result<String, String> {
        let mut config = config;
        config["cniVersion"] = json!("1.1.0");
        config["name"] = json!("n");
        let conf = Conf::new(config).unwrap();
        let result = read(&conf, args).map_err(|error| error.to_string())?;
        let ips: Vec<String> = result
            .ips
            .iter()
            .map(|ip| match ip.gateway {
                Some(gateway) => format!("{} via {gateway}", ip.address),
                None => ip.address.to_string(),
            })
            .collect();
        Ok(ips.join(", "))
    }

    #[test]
    fn who_says_the_addresses() {
        let ipam = json!({"addresses": [
            {"address": "10.0.0.5/24", "gateway": "10.0.0.254"}, {"address": "fd00::5/64"}
        ]});
        let args = json!({"cni": {"ips": ["10.1.0.1/16"]}});
        let runtime = json!({"ips": ["10.2.0.1/16", "fd02::1/64"]});
        let cases = [
            (
                json!({"ipam": ipam}),
                "",
                Ok("10.0.0.5/24 via 10.0.0.254, fd00::5/64"),
            ),
            (
                json!({"ipam": ipam}),
                "IP=10.0.0.6/24,fd00::6/64;GATEWAY=10.0.0.1, fd00::1",
                Ok(
                    "10.0.0.5/24 via 10.0.0.254, fd00::5/64, 10.0.0.6/24 via 10.0.0.1, fd00::6/64 via fd00::1",
                ),
            ),
            (
                json!({"ipam": ipam, "args": args}),
                "IP=10.0.0.6/24",
                Ok("10.1.0.1/16"),
            ),
            (
                json!({"ipam": ipam, "args": args, "runtimeConfig": runtime}),
                "",
                Ok("10.2.0.1/16, fd02::1/64"),
            ),
            (json!({"ipam": {}}), "", Ok("")),
            (json!({}), "", Err("IPAM config missing 'ipam' key")),
            (
                json!({"ipam": {"addresses": [{"address": "10.0.0.5"}]}}),
                "",
                Err(
                    "ipam.addresses: \"10.0.0.5\" is no address with a prefix length, such as 10.1.2.3/24",
                ),
            ),
            (
                json!({"ipam": {"addresses": [{"address": "10.0.0.5/24", "gateway": "fd00::1"}]}}),
                "",
                Err("gateway of 10.0.0.5/24 is of the other address family"),
            ),
            (
                json!({"ipam": ipam}),
                "GATEWAY=x",
                Err("GATEWAY=x in CNI_ARGS is not an address"),
            ),
            (
                json!({"ipam": ipam, "runtimeConfig": {"ips": ["10.2.0.1"]}}),
                "",
                Err(
                    "runtimeConfig.ips: \"10.2.0.1\" is no address with a prefix length, such as 10.1.2.3/24",
                ),
            ),
        ];
        for (config, args, expected) in cases {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(list(config.clone(), args), expected, "{config} {args}");
        }
    }
}
