//! What attachments left that are gone: GC for plugins that have it, a sweep of our own for those that don't.
//!
//! ```text
//! <state>/networks/NAME.lock       shared while ADD or DEL is at work on the network, exclusive for GC; written by each GC
//! /var/lib/cni/results/            attachments of other runtimes, which libcni writes down here
//! <dataDir>/NAME/ADDRESS           leases of host-local
//! ```
//!
//! *Invariants:* an attachment is valid when a record says so or when it isn't ours: nothing of another runtime is ever
//! given up. The records are read under the lock, and one that can't be read stops everything. What we remove ourselves
//! bears a container id of this state folder ([`super::owner`]) that no record has.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use super::attach::kind;
use super::conf::is_name;
use super::error::doing;
use super::invoke::{Command, is_built_in};
use super::probe::{settle, without_container};
use super::{Cni, Error, NetworkList, owner, recorded, request};

/// Where libcni keeps its cache.
const LIBCNI: &str = "/var/lib/cni/results";
/// Where host-local keeps leases when the list says nothing.
pub const LEASES: &str = "/var/lib/cni/networks";
/// Version of the specification that has GC.
const SINCE: &str = "1.1.0";
/// Longer files are neither leases nor results.
const MAX_FILE: u64 = 1 << 20;
/// A network that was collected on no longer ago is not [`is_due`]: GC reads all records and leases of a network, which a burst of
/// launches would otherwise do once for each.
const RECENTLY: Duration = Duration::from_secs(60);

/// An attachment as GC names it: container id and interface.
pub type Key = (String, String);

/// Holds GC off a network while ADD or DEL is at work on it (CNI §3 "Lifecycle & Ordering").
pub(super) fn hold(cni: &Cni, network: &str) -> Result<File, Error> {
    let (file, path) = open_lock(&cni.state, network)?;
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockShared))
        .map_err(Error::io(doing("lock", &path)))?;
    Ok(file)
}

/// How GC deals with an ADD or DEL that is at work on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// Waits for it.
    Wait,
    /// Leaves the network to whoever comes next.
    Skip,
}

/// Whether nothing was collected on the network in the last minute.
pub fn is_due(cni: &Cni, network: &str) -> bool {
    let path = cni.state.join("networks").join(format!("{network}.lock"));
    let recent = fs::metadata(path).is_ok_and(|file| {
        let age = file.modified().ok().and_then(|time| time.elapsed().ok());
        // ADD and DEL leave it empty
        file.len() > 0 && age.is_some_and(|age| age < RECENTLY)
    });
    !recent
}

/// Removes what attachments to the network left that are gone, and gives how many addresses are free again. `caches` are all folders
/// that record attachments of this state folder. All errors are given.
pub fn collect(
    cni: &Cni,
    list: &NetworkList,
    caches: &[PathBuf],
    busy: Busy,
) -> Result<usize, Error> {
    let state = &cni.state;
    let (mut file, path) = open_lock(state, &list.name)?;
    let operation = match busy {
        Busy::Wait => FlockOperation::LockExclusive,
        Busy::Skip => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::io::retry_on_intr(|| flock(&file, operation)) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(0),
        other => other.map_err(Error::io(doing("lock", &path)))?,
    }
    let ours = ours(caches, &list.name)?;
    let valid = attached(cni, list, caches)?;
    let folders = lease_folders(list);
    let mut errors = Vec::new();
    let mut removed = 0;
    for folder in &folders {
        match sweep_leases(folder, state, &ours) {
            Ok(count) => removed += count,
            Err(error) => errors.push(error),
        }
    }
    errors.extend(gc(cni, list, &valid).err());
    Error::all(errors)?;
    // see is_due
    file.set_len(0)
        .and_then(|()| file.write_all(b"collected\n"))
        .map_err(Error::io(doing("write", &path)))?;
    Ok(removed)
}

/// Every attachment to the network that is known to be in use, ours and other runtimes'.
pub fn attached(cni: &Cni, list: &NetworkList, caches: &[PathBuf]) -> Result<BTreeSet<Key>, Error> {
    let mut valid = ours(caches, &list.name)?;
    valid.extend(foreign(Path::new(LIBCNI), &list.name, &cni.state)?);
    for folder in lease_folders(list) {
        valid.extend(foreign_leases(&folder, &cni.state)?);
    }
    Ok(valid)
}

/// Removes the folders of leases of a network that nobody is attached to: what is left in them only remembers the
/// address given last.
pub fn forget_leases(list: &NetworkList) -> Result<(), Error> {
    let errors =
        lease_folders(list)
            .into_iter()
            .filter_map(|folder| match fs::remove_dir_all(&folder) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    Some(Error::io(doing("remove", &folder))(e))
                }
                _ => None,
            });
    Error::all(errors.collect())
}

/// Removes the leases in the standard folder of networks that no file configures any more. See [`collect`].
pub fn collect_orphans(
    state: &Path,
    configured: &[NetworkList],
    caches: &[PathBuf],
) -> Result<usize, Error> {
    let mut removed = 0;
    for folder in children(Path::new(LEASES))? {
        let Some(name) = folder.file_name().and_then(|n| n.to_str()) else {
            continue;
        };
        if folder.is_dir() && !configured.iter().any(|list| list.name == name) {
            removed += sweep_leases(&folder, state, &ours(caches, name)?)?;
        }
    }
    Ok(removed)
}

/// GC: tells the network's plugins which attachments exist, so that they can remove the rest. A list with `disableGC`
/// is left alone, and one that is older than 1.1.0, apart from the plugins in this program, which need no version to
/// know the command. All errors are given.
pub fn gc(cni: &Cni, list: &NetworkList, valid: &BTreeSet<Key>) -> Result<(), Error> {
    if list.flag("disableGC") {
        return Ok(());
    }
    let mut list = settle(cni, list)?;
    let all = list.at_least(SINCE);
    list = list.at_version(if all { list.version() } else { SINCE });
    let valid: Vec<_> = valid
        .iter()
        .map(|(id, ifname)| json!({"containerID": id, "ifname": ifname}))
        .collect();
    let errors = list.plugins().iter().filter_map(|plugin| {
        if !all && !is_built_in(kind(plugin), list.plugin_dirs(cni, plugin)) {
            return None;
        }
        let mut config = request::of_network(cni, &list, plugin);
        config.insert("cni.dev/valid-attachments".into(), json!(valid));
        without_container(cni, &list, Command::Gc, plugin, config).err()
    });
    Error::all(errors.collect())
}

/// Attachments to the network that have a record.
fn ours(caches: &[PathBuf], network: &str) -> Result<BTreeSet<Key>, Error> {
    let mut found = BTreeSet::new();
    for cache in caches {
        for one in recorded(cache)? {
            if one.attachment.network.name == network {
                found.insert((one.attachment.container_id, one.attachment.ifname));
            }
        }
    }
    Ok(found)
}

/// Attachments to the network that other runtimes wrote down.
fn foreign(results: &Path, network: &str, state: &Path) -> Result<BTreeSet<Key>, Error> {
    let mut found = BTreeSet::new();
    for file in children(results)? {
        // another runtime's file: what it does not tell, it does not tell
        let Ok(value) = serde_json::from_slice::<Value>(&small(&file)?) else {
            continue;
        };
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_string);
        if text("networkName").as_deref() == Some(network)
            && let (Some(id), Some(ifname)) = (text("containerId"), text("ifName"))
            && !id.starts_with(&owner::prefix(state))
        {
            found.insert((id, ifname));
        }
    }
    Ok(found)
}

/// Folders of leases that the list's plugins use.
fn lease_folders(list: &NetworkList) -> Vec<PathBuf> {
    let of = |plugin: &Value| {
        let ipam = plugin.get("ipam")?;
        let text = |key: &str| ipam.get(key).and_then(Value::as_str);
        let dir = text("dataDir").filter(|dir| !dir.is_empty());
        (text("type")? == "host-local").then(|| Path::new(dir.unwrap_or(LEASES)).join(&list.name))
    };
    let mut folders: Vec<_> = list.plugins().iter().filter_map(of).collect();
    folders.dedup();
    folders
}

/// Who holds the leases of a folder, apart from us.
fn foreign_leases(folder: &Path, state: &Path) -> Result<BTreeSet<Key>, Error> {
    let leases = leases(folder)?.into_iter().map(|(_, key)| key);
    let foreign = |(id, _): &Key| !id.is_empty() && !id.starts_with(&owner::prefix(state));
    Ok(leases.filter(foreign).collect())
}

/// Gives back leases of ours that no record has, under the lock of host-local.
fn sweep_leases(folder: &Path, state: &Path, ours: &BTreeSet<Key>) -> Result<usize, Error> {
    if !folder.is_dir() {
        return Ok(0);
    }
    let path = folder.join("lock");
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Error::io(doing("open", &path)))?;
    rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
        .map_err(Error::io(doing("lock", &path)))?;
    let prefix = owner::prefix(state);
    let is_stale = |key: &Key| match key.1.as_str() {
        // plugins of old wrote the container's id alone
        "" => !ours.iter().any(|(id, _)| *id == key.0),
        _ => !ours.contains(key),
    };
    let mut removed = 0;
    let mut errors = Vec::new();
    for (file, key) in leases(folder)? {
        // the reference plugin makes the file first and writes then: under the lock, one without content is of a
        // plugin that was killed between the two, and nobody's
        if key.0.is_empty() || (key.0.starts_with(&prefix) && is_stale(&key)) {
            let freed = remove(&file);
            removed += usize::from(freed.is_ok());
            errors.extend(freed.err());
            // our own plugin's, see its store
            let mut mark = OsString::from(".mark.");
            mark.push(file.file_name().unwrap_or_default());
            errors.extend(remove(&file.with_file_name(mark)).err());
            let link = format!(".of.{}:{}", key.0, key.1);
            errors.extend(remove(&file.with_file_name(link)).err());
        }
    }
    Error::all(errors).map(|()| removed)
}

/// The leases of a folder with their holders; without interface where the file has none.
fn leases(folder: &Path) -> Result<Vec<(PathBuf, Key)>, Error> {
    let mut found = Vec::new();
    for file in children(folder)? {
        let name = file.file_name().and_then(|name| name.to_str());
        if name.is_none_or(|name| name.parse::<IpAddr>().is_err()) {
            continue;
        }
        let text = String::from_utf8_lossy(&small(&file)?).into_owned();
        let mut lines = text.trim().lines().map(|line| line.trim().to_string());
        let id = lines.next().unwrap_or_default();
        found.push((file, (id, lines.next().unwrap_or_default())));
    }
    Ok(found)
}

/// The entries of a folder; none when there is no folder.
fn children(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(doing("read folder", dir))(e)),
    };
    Ok(entries.iter().map(fs::DirEntry::path).collect())
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(doing("remove", path))(e)),
        _ => Ok(()),
    }
}

/// A small file; empty when it went away meanwhile.
fn small(path: &Path) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut text)) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(doing("read", path))(e)),
        _ => Ok(text),
    }
}

fn open_lock(state: &Path, network: &str) -> Result<(File, PathBuf), Error> {
    // it comes from a record, too
    if !is_name(network) {
        return Err(Error::invalid(
            format!("network `{network}`"),
            "must begin with a letter or digit and hold only these, `_`, `.` and `-`",
        ));
    }
    let dir = state.join("networks");
    fs::create_dir_all(&dir).map_err(Error::io(doing("create folder", &dir)))?;
    let path = dir.join(format!("{network}.lock"));
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Error::io(doing("open", &path)))?;
    Ok((file, path))
}
