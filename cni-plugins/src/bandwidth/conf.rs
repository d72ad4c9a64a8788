//! The configuration of `bandwidth`: pure.

use ipnet::IpNet;
use serde::Deserialize;

use crate::conf::Conf;
use crate::error::{CniError, Result};
use crate::link::{Choice, Rate};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    ingress_rate: u64,
    #[serde(default)]
    ingress_burst: u64,
    #[serde(default)]
    egress_rate: u64,
    #[serde(default)]
    egress_burst: u64,
    #[serde(default)]
    unshaped_subnets: Vec<IpNet>,
    #[serde(default)]
    shaped_subnets: Vec<IpNet>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    runtime_config: WireRuntime,
}

#[derive(Debug, Default, Deserialize)]
struct WireRuntime {
    #[serde(default)]
    bandwidth: Option<Entry>,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub struct BandwidthConf {
    /// Of what the container receives.
    pub ingress: Option<Rate>,
    /// Of what it sends.
    pub egress: Option<Rate>,
    unshaped: Vec<IpNet>,
    shaped: Vec<IpNet>,
}

const KEYS: [&str; 6] = [
    "ingressRate",
    "ingressBurst",
    "egressRate",
    "egressBurst",
    "unshapedSubnets",
    "shapedSubnets",
];

/// From bits to bytes.
fn rate(what: &str, rate: u64, burst: u64) -> Result<Option<Rate>> {
    let wrong = |why: &str| Err(CniError::config(format!("{what}: {why}")));
    match (rate, burst) {
        (0, 0) => Ok(None),
        (0, _) => wrong("if burst is set, rate must also be set"),
        (_, 0) => wrong("if rate is set, burst must also be set"),
        (..8, _) => wrong("the rate is less than a byte in a second"),
        _ => match u32::try_from(burst / 8) {
            Ok(bytes) if bytes < u32::MAX => Ok(Some(Rate {
                bytes: rate / 8,
                burst: bytes,
            })),
            _ => wrong("burst cannot be more than 4GB"),
        },
    }
}

impl BandwidthConf {
    /// Reads and checks. What the network's configuration says counts more than what the runtime asks for.
    pub fn new(conf: &Conf) -> Result<Self> {
        let wire: Wire = conf.parse()?;
        let entry = if KEYS.iter().any(|key| conf.value.get(key).is_some()) {
            conf.parse()?
        } else {
            wire.runtime_config.bandwidth.unwrap_or_default()
        };
        if !entry.unshaped_subnets.is_empty() && !entry.shaped_subnets.is_empty() {
            return Err(CniError::config(
                "unshapedSubnets and shapedSubnets cannot be both specified, one of them should be discarded",
            ));
        }
        Ok(Self {
            ingress: rate("ingress", entry.ingress_rate, entry.ingress_burst)?,
            egress: rate("egress", entry.egress_rate, entry.egress_burst)?,
            unshaped: entry.unshaped_subnets,
            shaped: entry.shaped_subnets,
        })
    }

    /// Whether every packet counts.
    pub fn is_for_all(&self) -> bool {
        self.shaped.is_empty() && self.unshaped.is_empty()
    }

    /// Which packets count.
    pub fn choice(&self) -> Choice<'_> {
        if self.shaped.is_empty() {
            Choice::AllBut(&self.unshaped)
        } else {
            Choice::Only(&self.shaped)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(change: Value) -> Result<BandwidthConf> {
        let mut value = json!({"cniVersion": "1.1.0", "name": "n"});
        for (key, new) in change.as_object().unwrap() {
            value[key] = new.clone();
        }
        BandwidthConf::new(&Conf::new(value).unwrap())
    }

    #[test]
    fn configurations() {
        let entry =
            json!({"ingressRate": 8000, "ingressBurst": 80, "egressRate": 16, "egressBurst": 16});
        let of_runtime = read(json!({"runtimeConfig": {"bandwidth": entry}})).unwrap();
        assert_eq!(read(entry).unwrap(), of_runtime);
        let rate = |bytes, burst| Some(Rate { bytes, burst });
        assert_eq!(
            (of_runtime.ingress, of_runtime.egress),
            (rate(1000, 10), rate(2, 2))
        );
        let both = read(json!({
            "ingressRate": 8, "ingressBurst": 8, "shapedSubnets": ["10.0.0.0/8"],
            "runtimeConfig": {"bandwidth": {"egressRate": 8, "egressBurst": 8}}
        }))
        .unwrap();
        assert_eq!((both.ingress, both.egress), (rate(1, 1), None));
        assert_eq!(
            both.choice(),
            Choice::Only(&["10.0.0.0/8".parse().unwrap()])
        );
        assert!(!both.is_for_all() && of_runtime.is_for_all());
        for (change, msg) in [
            (
                json!({"ingressRate": 8}),
                "ingress: if rate is set, burst must also be set",
            ),
            (
                json!({"egressBurst": 8}),
                "egress: if burst is set, rate must also be set",
            ),
            (
                json!({"egressRate": 7, "egressBurst": 8}),
                "egress: the rate is less than a byte in a second",
            ),
            (
                json!({"egressRate": 8, "egressBurst": 34_359_738_360u64}),
                "egress: burst cannot be more than 4GB",
            ),
            (
                json!({"shapedSubnets": ["10.0.0.0/8"], "unshapedSubnets": ["10.0.0.0/8"]}),
                "unshapedSubnets and shapedSubnets cannot be both specified, one of them should be discarded",
            ),
            (
                json!({"shapedSubnets": ["nonsense"]}),
                "cannot read the configuration of network n",
            ),
        ] {
            assert_eq!(read(change).unwrap_err().msg, msg);
        }
    }
}
