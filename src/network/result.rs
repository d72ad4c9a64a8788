//! What the last plugin of a chain answered to ADD, understood (CNI §5 "ADD Success", and the form before 0.3.0).
//!
//! *Invariant:* only addresses of the pod's own interface are taken: plugins also report bridges and host ends.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the last plugin of a chain answered to ADD.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Attached {
    /// The result as printed.
    pub result: Value,
    /// Addresses with prefix of the pod's interface.
    pub addresses: Vec<IpNet>,
    /// Gateways of these addresses: reachable, whether a default route leads there or not.
    pub gateways: Vec<IpAddr>,
    /// `dns.nameservers`.
    pub nameservers: Vec<String>,
    /// `dns.search`, or `dns.domain` when there is none.
    pub search: Vec<String>,
}

impl Attached {
    /// Takes what belongs to the interface `ifname` in `netns`; the error says which key is wrong.
    pub fn parse(result: Value, ifname: &str, netns: &Path) -> Result<Attached, String> {
        let mut attached = Attached::default();
        if result.get("ip4").is_some() || result.get("ip6").is_some() {
            attached.take_old(&result)?;
        } else {
            attached.take_ips(&result, ifname, netns)?;
        }
        if let Some(dns) = result.get("dns") {
            attached.nameservers = strings(dns, "nameservers")?;
            attached.search = strings(dns, "search")?;
            if let (true, Some(domain)) = (attached.search.is_empty(), text(dns, "domain")?) {
                attached.search.push(domain.into());
            }
        }
        attached.result = result;
        Ok(attached)
    }

    /// The form of 0.1.0 and 0.2.0: one address per family, no interfaces.
    fn take_old(&mut self, result: &Value) -> Result<(), String> {
        for family in ["ip4", "ip6"] {
            if let Some(ip) = result.get(family).filter(|v| !v.is_null()) {
                self.take(ip, "ip").map_err(|e| format!("{family}.{e}"))?;
            }
        }
        Ok(())
    }

    fn take_ips(&mut self, result: &Value, ifname: &str, netns: &Path) -> Result<(), String> {
        let interfaces = array(result, "interfaces")?;
        for (i, ip) in array(result, "ips")?.iter().enumerate() {
            if is_of(ip, interfaces, ifname, netns).map_err(|e| format!("ips[{i}].{e}"))? {
                self.take(ip, "address")
                    .map_err(|e| format!("ips[{i}].{e}"))?;
            }
        }
        Ok(())
    }

    fn take(&mut self, ip: &Value, key: &str) -> Result<(), String> {
        let address = text(ip, key)?.ok_or(format!("{key}: missing"))?;
        let address = address
            .parse()
            .map_err(|_| format!("{key} `{address}`: not an address with prefix"))?;
        self.addresses.push(address);
        // Go prints an absent address as an empty string
        if let Some(gateway) = text(ip, "gateway")?.filter(|g| !g.is_empty()) {
            let gateway = gateway
                .parse()
                .map_err(|_| format!("gateway `{gateway}`: not an address"))?;
            self.gateways.push(gateway);
        }
        Ok(())
    }
}

/// The entry of `ips` belongs to our interface; one that names no interface does.
fn is_of(ip: &Value, interfaces: &[Value], ifname: &str, netns: &Path) -> Result<bool, String> {
    let Some(index) = ip.get("interface").filter(|v| !v.is_null()) else {
        return Ok(true);
    };
    let interface = index
        .as_u64()
        .and_then(|i| interfaces.get(usize::try_from(i).ok()?))
        .ok_or(format!("interface {index}: not an index of `interfaces`"))?;
    let sandbox = text(interface, "sandbox")?.unwrap_or_default();
    Ok(text(interface, "name")? == Some(ifname) && Path::new(sandbox) == netns)
}

fn array<'a>(value: &'a Value, key: &str) -> Result<&'a [Value], String> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(format!("{key}: not a list")),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> Result<Option<&'a str>, String> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{key}: not a string")),
    }
}

fn strings(value: &Value, key: &str) -> Result<Vec<String>, String> {
    array(value, key)
        .map_err(|e| format!("dns.{e}"))?
        .iter()
        .map(|v| v.as_str().map(str::to_string))
        .collect::<Option<_>>()
        .ok_or(format!("dns.{key}: not a list of strings"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn own_addresses_only() {
        let interfaces = json!([
            {"name": "br0"},
            {"name": "eth0", "sandbox": "/run/n"},
            {"name": "eth0", "sandbox": "/run/other"},
            {"name": "eth0"},
        ]);
        // result; addresses and gateways, or the error
        type Lists = (&'static [&'static str], &'static [&'static str]);
        type Row = (Value, Result<Lists, &'static str>);
        let table: &[Row] = &[
            (json!({}), Ok((&[], &[]))),
            (
                json!({"interfaces": interfaces, "ips": [
                    {"address": "10.0.0.1/24", "interface": 0},
                    {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1},
                    {"version": "6", "address": "fd00::2/64", "gateway": "fd00::1", "interface": 1},
                    {"address": "10.0.0.3/24", "interface": 2},
                    {"address": "10.0.0.4/24", "interface": 3},
                ]}),
                Ok((&["10.0.0.2/24", "fd00::2/64"], &["10.0.0.1", "fd00::1"])),
            ),
            (
                json!({"ips": [{"address": "10.0.0.2/24", "gateway": ""}]}),
                Ok((&["10.0.0.2/24"], &[])),
            ),
            (
                json!({"ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1"}}),
                Ok((&["10.0.0.2/24"], &["10.0.0.1"])),
            ),
            (
                json!({"ips": [{"address": "10.0.0.2/24", "interface": 0}]}),
                Err("ips[0].interface 0: not an index of `interfaces`"),
            ),
            (
                json!({"ips": [{"address": "10.0.0.2"}]}),
                Err("ips[0].address `10.0.0.2`: not an address with prefix"),
            ),
            (json!({"ips": [{}]}), Err("ips[0].address: missing")),
            (json!({"ips": 1}), Err("ips: not a list")),
            (
                json!({"dns": {"search": [1]}}),
                Err("dns.search: not a list of strings"),
            ),
        ];
        for (result, expected) in table {
            let got = Attached::parse(result.clone(), "eth0", Path::new("/run/n")).map(|a| {
                let show = |v: &dyn ToString| v.to_string();
                (
                    a.addresses.iter().map(|x| show(x)).collect::<Vec<_>>(),
                    a.gateways.iter().map(|x| show(x)).collect::<Vec<_>>(),
                )
            });
            let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
            let expected = expected
                .map(|(a, g)| (own(a), own(g)))
                .map_err(str::to_string);
            assert_eq!(got, expected, "{result}");
        }
    }

    #[test]
    fn dns() {
        for (dns, servers, search) in [
            (
                json!({"nameservers": ["1.1.1.1"], "search": ["a", "b"], "domain": "c"}),
                vec!["1.1.1.1"],
                vec!["a", "b"],
            ),
            (json!({"domain": "c"}), vec![], vec!["c"]),
        ] {
            let got = Attached::parse(json!({"dns": dns}), "eth0", Path::new("/n")).unwrap();
            assert_eq!(
                (got.nameservers, got.search),
                (
                    servers.into_iter().map(String::from).collect(),
                    search.into_iter().map(String::from).collect()
                )
            );
        }
    }
}
