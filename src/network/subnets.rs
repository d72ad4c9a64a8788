//! Subnets of generated networks, and which pods use them.
//!
//! ```text
//! <state>/networks/.lock         held while anything below changes
//!                  <name>.json   one generated network: its subnets, the pods on it
//! ```
//!
//! *Invariants:* two registered networks that the host routes for never overlap; a network keeps its subnets while a pod is on it, and is
//! forgotten with its last pod, the folder of its leases too. Bridges and leases are the plugins'.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::conf::is_name;
use super::error::doing;
use super::generate::{is_routed, overlap, wants_subnets};
use super::{Cni, Error, NetworkList};
use crate::compose::project::Network;
use crate::sys::file::{sweep, write_atomic};

/// Version of the files.
const VERSION: u32 = 1;
/// Where IPv4 subnets of 256 addresses come from, in this order: private ranges that others seldom take.
const POOLS_V4: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 190, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 26, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 192, 0), 18),
];
/// Where IPv6 subnets come from: a site of unique local addresses (RFC 4193).
const POOL_V6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd73, 0x616d, 0x7061, 0, 0, 0, 0, 0), 48);
/// The host's routes, of the namespace that the calling thread is in.
const ROUTES_V4: &str = "/proc/thread-self/net/route";
const ROUTES_V6: &str = "/proc/thread-self/net/ipv6_route";
/// Bytes of a host's routes that are read.
const MAX_ROUTES: u64 = 64 << 20;

/// A generated network that pods are on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    version: u32,
    /// Name of the network.
    pub name: String,
    /// `ipam`'s and those chosen.
    pub subnets: Vec<IpNet>,
    /// Names of the pods.
    pub pods: BTreeSet<String>,
}

/// Puts `pod` on the generated network and gives its subnets: those that it has already, else those of `ipam`, and for
/// a family without one a free subnet that avoids `used` (see [`in_use`]) and all registered networks.
pub fn acquire(
    state: &Path,
    network: &Network,
    pod: &str,
    used: &[IpNet],
) -> Result<Vec<IpNet>, Error> {
    let registry = Registry::open(state)?;
    let wanted: Vec<_> = network.ipam.iter().map(|p| p.subnet.trunc()).collect();
    let mut entry = match registry.load(&network.name)? {
        Some(entry) => {
            if let Some(foreign) = wanted.iter().find(|net| !entry.subnets.contains(net)) {
                let pods: Vec<_> = entry.pods.iter().map(String::as_str).collect();
                let why = format!(
                    "subnet {foreign} is wanted, but it has {:?}; stop its pods first: {}",
                    entry.subnets,
                    pods.join(", ")
                );
                return Err(Error::invalid(format!("network `{}`", network.name), why));
            }
            entry
        }
        None => Registered {
            version: VERSION,
            name: network.name.clone(),
            subnets: wanted,
            pods: BTreeSet::new(),
        },
    };
    if entry.pods.is_empty() {
        let others = registry.all()?;
        entry.subnets = complete(network, &entry.subnets, &others, used)?;
    }
    entry.pods.insert(pod.into());
    registry.store(&entry)?;
    Ok(entry.subnets)
}

/// The subnets of a network that is going to be a file: those of `ipam` and free ones for the rest, see [`acquire`].
pub fn choose(state: &Path, network: &Network, used: &[IpNet]) -> Result<Vec<IpNet>, Error> {
    let wanted: Vec<_> = network.ipam.iter().map(|p| p.subnet.trunc()).collect();
    complete(network, &wanted, &Registry::open(state)?.all()?, used)
}

/// Takes `pod` off the network; true when it was the last one, and the network is forgotten with its folder below
/// `leases`. Missing is success.
pub fn release(state: &Path, leases: &Path, name: &str, pod: &str) -> Result<bool, Error> {
    let registry = Registry::open(state)?;
    let Some(mut entry) = registry.load(name)? else {
        return Ok(false);
    };
    let was_there = entry.pods.remove(pod);
    if !entry.pods.is_empty() {
        registry.store(&entry)?;
        return Ok(false);
    }
    let path = registry.path(name)?;
    // what is left in it remembers the last address given; nobody has one any more
    let folder = leases.join(name);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(doing("remove", &folder))(error));
        }
        _ => {}
    }
    fs::remove_file(&path).map_err(Error::io(doing("remove", &path)))?;
    Ok(was_there)
}

/// The generated networks that pods are on, by name.
pub fn registered(state: &Path) -> Result<Vec<Registered>, Error> {
    if !state.join("networks").exists() {
        return Ok(Vec::new());
    }
    Registry::open(state)?.all()
}

/// Subnets that must be avoided: those the host has routes to, and those of configured network lists.
pub fn in_use(cni: &Cni) -> Result<Vec<IpNet>, Error> {
    let mut used = routes_v4(&read_routes(ROUTES_V4)?);
    used.extend(routes_v6(&read_routes(ROUTES_V6)?));
    // a broken file is reported where its network is asked for
    let (lists, _) = cni.list()?;
    for list in &lists {
        used.extend(subnets_of(list));
    }
    Ok(used)
}

/// The folder of the registry, locked as long as this lives.
struct Registry {
    dir: PathBuf,
    _lock: File,
}

impl Registry {
    fn open(state: &Path) -> Result<Registry, Error> {
        let dir = state.join("networks");
        fs::create_dir_all(&dir).map_err(Error::io(doing("create folder", &dir)))?;
        let path = dir.join(".lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io(doing("open", &path)))?;
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
            .map_err(Error::io(doing("lock", &path)))?;
        // under the lock there is no other writer
        sweep(&dir).map_err(Error::io(doing("clean", &dir)))?;
        Ok(Registry { dir, _lock: lock })
    }

    fn path(&self, name: &str) -> Result<PathBuf, Error> {
        if !is_name(name) {
            return Err(Error::invalid(
                format!("network `{name}`"),
                "must begin with a letter or digit and hold only these, `_`, `.` and `-`",
            ));
        }
        Ok(self.dir.join(format!("{name}.json")))
    }

    fn load(&self, name: &str) -> Result<Option<Registered>, Error> {
        let path = self.path(name)?;
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(doing("read", &path))(e)),
        };
        let refuse = |line, why| Error::Config {
            file: path.display().to_string(),
            line,
            why,
        };
        let entry: Registered = serde_json::from_slice(&text)
            .map_err(|e| refuse(Some(e.line()), format!("not a registered network: {e}")))?;
        if entry.version != VERSION {
            let why = format!("version {}: this program knows {VERSION}", entry.version);
            return Err(refuse(None, why));
        }
        Ok(Some(entry))
    }

    fn store(&self, entry: &Registered) -> Result<(), Error> {
        let path = self.path(&entry.name)?;
        serde_json::to_vec(entry)
            .map_err(io::Error::from)
            .and_then(|text| write_atomic(&path, &text, 0o600))
            .map_err(Error::io(doing("write", &path)))
    }

    fn all(&self) -> Result<Vec<Registered>, Error> {
        let failed = || Error::io(doing("read folder", &self.dir));
        let mut entries = Vec::new();
        for file in self.dir.read_dir().map_err(failed())? {
            let name = file.map_err(failed())?.file_name();
            let name = name.to_str().and_then(|n| n.strip_suffix(".json"));
            // temporary files begin with a dot
            if let Some(name) = name.filter(|n| is_name(n)) {
                entries.extend(self.load(name)?);
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }
}

/// The subnets of a new network: those wanted, which must not overlap another network's, and free ones for the rest.
fn complete(
    network: &Network,
    wanted: &[IpNet],
    others: &[Registered],
    used: &[IpNet],
) -> Result<Vec<IpNet>, Error> {
    let others = || others.iter().filter(|other| other.name != network.name);
    // where the host does not route, several networks may be parts of one
    for net in wanted.iter().filter(|_| is_routed(network)) {
        if let Some(other) = others().find(|o| o.subnets.iter().any(|s| overlap(s, net))) {
            return Err(Error::invalid(
                format!("network `{}`", network.name),
                format!("subnet {net} overlaps network `{}`", other.name),
            ));
        }
    }
    let mut taken = used.to_vec();
    taken.extend(others().flat_map(|o| o.subnets.iter().copied()));
    let mut subnets = wanted.to_vec();
    if !wants_subnets(network) {
        return Ok(subnets);
    }
    if network.enable_ipv4 && !subnets.iter().any(|net| net.addr().is_ipv4()) {
        let pools = POOLS_V4.map(IpNet::V4);
        subnets.push(free(&network.name, &pools, 24, &taken)?);
    }
    if network.enable_ipv6 && !subnets.iter().any(|net| net.addr().is_ipv6()) {
        subnets.push(free(&network.name, &[POOL_V6.into()], 64, &taken)?);
    }
    Ok(subnets)
}

/// The first subnet of the pools that overlaps nothing taken.
fn free(name: &str, pools: &[IpNet], prefix: u8, taken: &[IpNet]) -> Result<IpNet, Error> {
    pools
        .iter()
        .filter_map(|pool| pool.subnets(prefix).ok())
        .flatten()
        .find(|net| !taken.iter().any(|t| overlap(t, net)))
        .ok_or_else(|| {
            Error::invalid(
                format!("network `{name}`"),
                format!("no subnet is free in {pools:?}; give one in `ipam`"),
            )
        })
}

fn read_routes(path: &str) -> Result<String, Error> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(MAX_ROUTES).read_to_string(&mut text)) {
        Ok(_) => Ok(text),
        // a kernel without IPv6
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(text),
        Err(e) => Err(Error::io(format!("read {path}"))(e)),
    }
}

/// Destinations of proc_net(5) `route`: addresses and masks are numbers in the byte order of the machine.
fn routes_v4(text: &str) -> Vec<IpNet> {
    let parse = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let number = |i: usize| u32::from_str_radix(fields.get(i)?, 16).ok();
        let address = |n: u32| IpAddr::V4(Ipv4Addr::from(n.to_ne_bytes()));
        IpNet::with_netmask(address(number(1)?), address(number(7)?)).ok()
    };
    text.lines()
        .skip(1)
        .filter_map(parse)
        .filter(counts)
        .collect()
}

/// Destinations of `ipv6_route`: 32 digits, the prefix length in hex, and the interface at the end.
fn routes_v6(text: &str) -> Vec<IpNet> {
    let parse = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let address = u128::from_str_radix(fields.first()?, 16).ok()?;
        let prefix = u8::from_str_radix(fields.get(1)?, 16).ok()?;
        let address = Ipv6Addr::from(address);
        let elsewhere = address.is_multicast() || address.is_unicast_link_local();
        if elsewhere || fields.last() == Some(&"lo") {
            return None;
        }
        IpNet::new(address.into(), prefix).ok()
    };
    text.lines().filter_map(parse).filter(counts).collect()
}

/// Default routes, whole or in halves as VPNs write them, take nothing.
fn counts(net: &IpNet) -> bool {
    net.prefix_len() > 1
}

/// Every `subnet` in a list, wherever its plugins have it.
fn subnets_of(list: &NetworkList) -> Vec<IpNet> {
    let mut found = Vec::new();
    let mut pending = vec![&list.config];
    while let Some(value) = pending.pop() {
        match value {
            Value::Array(items) => pending.extend(items),
            Value::Object(map) => {
                let subnet = map.get("subnet").and_then(Value::as_str);
                found.extend(subnet.and_then(|s| s.parse::<IpNet>().ok()));
                pending.extend(map.values());
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
#[path = "subnets_tests.rs"]
mod tests;
