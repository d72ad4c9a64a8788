//! A lease: what a server said, what comes of it, and the file that remembers it.
//!
//! ```text
//! <dataDir>/<network>/<container id>_<ifname>.json
//! ```
//!
//! *Invariants*: a file appears whole or not at all, with the process that renews the lease in it; it goes last of all.
//! Times are milliseconds of CLOCK_BOOTTIME, which no clock setting and no suspend falsifies.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use super::conf::DhcpConf;
use super::message::{Answer, option};
use super::process::Process;
use crate::error::{CniError, DECODE_FAILURE, OPERATION_FAILED, Result};
use crate::layer3::SCOPE_LINK;
use crate::result::{AddResult, Dns, IpConfig, Route};

/// For servers that don't say.
const DEFAULT_LEASE: u32 = 3600;
/// A server is not asked again sooner than after so many seconds, whatever it says.
const MIN_RENEWAL: u32 = 2;
/// Shorter leases, in seconds, are refused: the usual time of renewal is half of it.
const MIN_LEASE: u32 = 2 * MIN_RENEWAL;
/// Longer files are no leases.
const MAX_FILE: u64 = 64 << 10;
/// The smallest MTU that a host has to take (RFC 791), in bytes.
const MIN_MTU: u16 = 576;

/// The times of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// The question was sent.
    pub asked: u64,
    /// Its server is asked again.
    pub renew: u64,
    /// Any server is asked.
    pub rebind: u64,
    /// The address is somebody else's.
    pub end: u64,
}

/// What to do for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing for so many milliseconds.
    Wait(u64),
    /// Ask its server.
    Renew,
    /// Ask any server.
    Rebind,
    /// Stop using the address.
    End,
}

impl Times {
    /// RFC 2131 §4.4.5, from seconds; times that make no sense are replaced by the usual ones.
    pub fn new(asked: u64, lease: u32, renew: Option<u32>, rebind: Option<u32>) -> Self {
        let millis = |seconds: u32| u64::from(seconds) * 1000;
        let end = millis(lease);
        let (renew, rebind) = (
            renew.map_or(end / 2, millis),
            rebind.map_or(end / 8 * 7, millis),
        );
        let sensible = millis(MIN_RENEWAL) <= renew && renew < rebind && rebind < end;
        let (renew, rebind) = if sensible {
            (renew, rebind)
        } else {
            (end / 2, end / 8 * 7)
        };
        Self {
            asked,
            renew: asked + renew,
            rebind: asked + rebind,
            end: asked + end,
        }
    }

    /// What is due at `now`, when the last try was at `tried`. Half of what is left passes between two tries, a minute at
    /// least where the lease is long enough for that.
    pub fn due(&self, now: u64, tried: Option<u64>) -> Due {
        if now >= self.end {
            return Due::End;
        }
        if now < self.renew {
            return Due::Wait(self.renew - now);
        }
        let (stage, begin, end) = if now < self.rebind {
            (Due::Renew, self.renew, self.rebind)
        } else {
            (Due::Rebind, self.rebind, self.end)
        };
        match tried.filter(|tried| *tried >= begin) {
            None => stage,
            Some(tried) => {
                let least = ((self.end - self.asked) / 16).clamp(1000, 60_000);
                let again = tried + (end.saturating_sub(tried) / 2).max(least);
                if now >= again {
                    stage
                } else {
                    Due::Wait(again.min(end) - now)
                }
            }
        }
    }
}

/// A lease on file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lease {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// Which runtime asked, as `Conf::runtime` has it.
    pub runtime: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// Device and inode of the namespace: a path can come to lead elsewhere.
    pub netns_id: (u64, u64),
    /// The interface's link address.
    pub mac: [u8; 6],
    /// The address.
    pub address: Ipv4Net,
    /// Option 54.
    pub server: Ipv4Addr,
    /// Where the server's packets come from: itself, or its relay.
    pub server_mac: [u8; 6],
    /// Options of every message.
    pub options: Vec<(u8, Vec<u8>)>,
    /// Answers as broadcasts.
    pub broadcast: bool,
    /// When what is due.
    pub times: Times,
    /// Who renews it.
    pub process: Process,
    /// Why it isn't renewed any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

/// What an offer must have to be taken.
pub fn acceptable(answer: &Answer) -> std::result::Result<(Ipv4Net, Ipv4Addr), &'static str> {
    let server = answer.ip(option::SERVER).ok_or("it names no server")?;
    let prefix = answer.prefix_len().ok_or("it has no subnet mask")?;
    let ip = answer.address;
    if ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() || ip.is_loopback() {
        return Err("its address is none for a host");
    }
    let address = Ipv4Net::new(ip, prefix).map_err(|_| "it has no subnet mask")?;
    if !is_long_enough(answer) {
        return Err("its lease is too short to be renewed");
    }
    Ok((address, server))
}

fn seconds(answer: &Answer) -> u32 {
    answer.seconds(option::LEASE_TIME).unwrap_or(DEFAULT_LEASE)
}

/// Whether there is time to renew what an answer gives.
pub fn is_long_enough(answer: &Answer) -> bool {
    seconds(answer) >= MIN_LEASE
}

/// The times of an answer to a question of `asked`.
pub fn times(answer: &Answer, asked: u64) -> Times {
    Times::new(
        asked,
        seconds(answer),
        answer.seconds(option::RENEWAL_TIME),
        answer.seconds(option::REBINDING_TIME),
    )
}

/// What ADD returns.
pub fn result(answer: &Answer, address: Ipv4Net, conf: &DhcpConf) -> AddResult {
    let gateway = answer.ip(option::ROUTER);
    AddResult {
        ips: vec![IpConfig {
            interface: None,
            address: address.into(),
            gateway: gateway.map(IpAddr::V4),
        }],
        routes: routes(answer, conf.priority),
        dns: Dns {
            nameservers: answer
                .ips(option::DNS)
                .iter()
                .map(Ipv4Addr::to_string)
                .collect(),
            domain: answer.text(option::DOMAIN).unwrap_or_default(),
            search: answer.search(),
            options: Vec::new(),
        },
        ..AddResult::default()
    }
}

/// Classless routes, or else static ones and the router (RFC 3442 "DHCP Client Behavior").
fn routes(answer: &Answer, priority: u32) -> Vec<Route> {
    let list = answer.classless_routes().unwrap_or_else(|| {
        let default = answer.ip(option::ROUTER);
        let default = default.map(|gateway| (Ipv4Net::default(), gateway));
        answer.static_routes().into_iter().chain(default).collect()
    });
    list.into_iter()
        .map(|(dst, gw)| Route {
            dst: IpNet::V4(dst),
            gw: Some(gw.into()),
            mtu: None,
            advmss: None,
            priority: (priority != 0).then_some(priority),
            table: None,
            // without a next hop: on the link
            scope: gw.is_unspecified().then_some(SCOPE_LINK),
        })
        .collect()
}

/// The MTU in bytes that an interface of `now` bytes is to have.
pub fn mtu(answer: &Answer, now: u32) -> Option<u32> {
    let mtu = answer.mtu().filter(|mtu| *mtu >= MIN_MTU)?;
    Some(u32::from(mtu)).filter(|mtu| *mtu < now)
}

/// The file of an attachment's lease.
pub fn path(folder: &Path, container_id: &str, ifname: &str) -> PathBuf {
    folder.join(format!("{container_id}_{ifname}.json"))
}

impl Lease {
    /// Reads a file; `None` where there is none.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let mut bytes = Vec::new();
        match File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(CniError::io("read", path, &cause)),
            Ok(_) => {}
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|cause| {
            let what = format!("{} is not understood as a DHCP lease", path.display());
            CniError::new(DECODE_FAILURE, what).because(cause)
        })
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|cause| {
            CniError::new(OPERATION_FAILED, "cannot write a lease").because(cause)
        })?;
        let new = path.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, path))
            .map_err(|cause| CniError::io("write", path, &cause))
    }
}

/// Removes the file of a lease; missing is success.
pub fn remove(path: &Path) -> Result<()> {
    for path in [&path.with_extension("new"), path] {
        if let Err(cause) = fs::remove_file(path)
            && cause.kind() != io::ErrorKind::NotFound
        {
            return Err(CniError::io("remove", path, &cause));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due() {
        let hour = Times::new(1_000, 3600, None, None);
        assert_eq!(
            hour,
            Times {
                asked: 1_000,
                renew: 1_801_000,
                rebind: 3_151_000,
                end: 3_601_000
            }
        );
        let cases = [
            (1_000, None, Due::Wait(1_800_000)),
            (1_801_000, None, Due::Renew),
            // half of the 1350 s until it is rebound
            (1_801_001, Some(1_801_000), Due::Wait(674_999)),
            (2_476_000, Some(1_801_000), Due::Renew),
            // never more often than once a minute, but not beyond the stage
            (3_100_000, Some(3_090_000), Due::Wait(50_000)),
            (3_140_000, Some(3_130_000), Due::Wait(11_000)),
            (3_151_000, Some(3_130_000), Due::Rebind),
            (3_600_999, Some(3_600_000), Due::Wait(1)),
            (3_601_000, Some(3_600_000), Due::End),
        ];
        for (now, tried, expected) in cases {
            assert_eq!(hour.due(now, tried), expected, "{now} {tried:?}");
        }
        let times = |lease, renew, rebind| {
            let times = Times::new(0, lease, renew, rebind);
            (times.renew, times.rebind, times.end)
        };
        assert_eq!(times(10, Some(2), Some(9)), (2_000, 9_000, 10_000));
        // T1 < T2 < lease, and not at once; anything else is as if it were not said
        for (renew, rebind) in [
            (Some(100), Some(90)),
            (Some(0), Some(0)),
            (Some(1), Some(9)),
            (Some(9), Some(9)),
            (Some(5), Some(10)),
            (Some(9), None),
            (None, Some(5)),
        ] {
            let found = times(10, renew, rebind);
            assert_eq!(found, (5_000, 8_750, 10_000), "{renew:?} {rebind:?}");
        }
        let endless = Times::new(5, u32::MAX, None, None);
        assert!(matches!(endless.due(6, None), Due::Wait(_)));
    }
}
