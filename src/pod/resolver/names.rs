//! The names that a pod knows without asking anybody: its own, and those of pods that it shares a network with.
//!
//! *Invariants:* a pod is seen on the networks that both are on, with its addresses there, and nowhere else; names are
//! read from the pods' records, so whoever is gone is not found. Nothing is read while nobody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::record::{self, Interface, Sandbox};
use super::message::{Answer, OWN, PTR, fits, reversed};
use crate::compose::Project;

/// Records are looked at again after this time at the earliest, however many ask.
const FRESH: Duration = Duration::from_millis(20);
/// Most names that an address is said to have.
const MAX_NAMES: usize = 16;

/// What tells a file from its successor.
type Stamp = (u64, i64, i64, u64);

/// See the module.
pub struct Names {
    /// Folder of all pods.
    pods: PathBuf,
    /// Name of the pod.
    pod: String,
    /// Names of its services.
    own: BTreeSet<String>,
    looked: Option<Instant>,
    seen: BTreeMap<String, (Stamp, Vec<Interface>)>,
}

impl Names {
    /// Of the pod of a project, below the folder of all pods.
    pub fn new(pods: PathBuf, project: &Project) -> Names {
        let mut own = BTreeSet::from([project.name.clone()]);
        for service in project.services.values() {
            let host = service.hostname.clone();
            let full = match (&host, &service.domainname) {
                (Some(host), Some(domain)) if !domain.is_empty() => {
                    Some(format!("{host}.{domain}"))
                }
                _ => None,
            };
            own.insert(service.name.clone());
            own.extend(
                [service.container_name.clone(), host, full]
                    .into_iter()
                    .flatten(),
            );
            own.extend(service.networks.values().flat_map(|n| n.aliases.clone()));
        }
        Names {
            pods,
            pod: project.name.clone(),
            own: own.iter().map(|name| name.to_ascii_lowercase()).collect(),
            looked: None,
            seen: BTreeMap::new(),
        }
    }

    /// What is known about a name; `None`: nothing, somebody else must be asked. An empty list is an answer too.
    pub fn answer(&mut self, name: &str, kind: u16) -> Option<Vec<Answer>> {
        self.look();
        if let Some(ip) = reversed(name) {
            let names = self.names_of(ip);
            let asked = matches!(kind, PTR | super::message::ANY);
            return (!names.is_empty()).then(|| names.into_iter().filter(|_| asked).collect());
        }
        let ips = self.addresses(name)?;
        let fitting = ips.into_iter().filter(|ip| fits(kind, ip));
        Some(fitting.map(Answer::Ip).collect())
    }

    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let own = self.seen.get(&self.pod).map(|(_, own)| own);
        let alias = |i: &Interface| i.names.iter().any(|n| n == name);
        if self.own.contains(name) || own.is_some_and(|own| own.iter().any(alias)) {
            return Some(vec![OWN]);
        }
        let mut found = Vec::new();
        let mut known = false;
        for (pod, interface) in self.peers() {
            let by = |of: &str| {
                let first = name
                    .strip_suffix(of)
                    .and_then(|rest| rest.strip_suffix('.'));
                first.is_some_and(|first| interface.names.iter().any(|n| n == first))
            };
            if alias(interface) || by(pod) || by(&interface.network.to_ascii_lowercase()) {
                known = true;
                found.extend(interface.addresses.iter().map(|net| net.addr()));
            }
        }
        known.then_some(found)
    }

    fn names_of(&self, ip: IpAddr) -> Vec<Answer> {
        let own = self.seen.get(&self.pod).into_iter();
        let own = own.flat_map(|(_, all)| all.iter());
        let all = own.chain(self.peers().map(|(_, interface)| interface));
        let has = |i: &&Interface| i.addresses.iter().any(|net| net.addr() == ip);
        let names = all.filter(has).flat_map(|i| i.names.iter().take(MAX_NAMES));
        names.take(MAX_NAMES).cloned().map(Answer::Name).collect()
    }

    /// Interfaces of other pods on networks of this one.
    fn peers(&self) -> impl Iterator<Item = (&str, &Interface)> {
        let own = self.seen.get(&self.pod).map_or(&[][..], |(_, own)| own);
        let shared = |i: &Interface| {
            own.iter()
                .any(|o| o.network == i.network && o.generated == i.generated)
        };
        let others = self.seen.iter().filter(|(pod, _)| **pod != self.pod);
        others.flat_map(move |(pod, (_, all))| {
            let all = all.iter().filter(move |i| shared(i));
            all.map(|i| (pod.as_str(), i))
        })
    }

    /// Reads the records that changed.
    fn look(&mut self) {
        if self.looked.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        let mut seen = BTreeMap::new();
        for entry in fs::read_dir(&self.pods).into_iter().flatten().flatten() {
            let path = entry.path().join("sandbox.json");
            let Ok(meta) = fs::metadata(&path) else {
                continue;
            };
            let pod = entry.file_name().to_string_lossy().into_owned();
            let stamp = (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size());
            let interfaces = match self.seen.remove(&pod) {
                Some((known, interfaces)) if known == stamp => interfaces,
                // one that cannot be read, or is of another version, is not found by its names
                _ => match record::read::<Sandbox>(&path) {
                    Ok(Some(sandbox)) => sandbox.interfaces,
                    _ => Vec::new(),
                },
            };
            seen.insert(pod, (stamp, interfaces));
        }
        self.seen = seen;
        self.looked = Some(Instant::now());
    }
}
