//! Leases on disk, in the reference plugin's layout.
//!
//! ```text
//! <dataDir>/<network>/lock                 flock(2), held by an open Store
//!                     10.1.0.2             "<container id>\r\n<ifname>"; older plugins wrote the id alone
//!                     last_reserved_ip.0   the address given last, per range set
//! ```
//!
//! *Invariants*: a lease file appears whole or not at all and survives a power cut; other files are left alone.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{CniError, Result, all};

/// Longer files are no leases.
const MAX_LEASE: u64 = 4096;
const NEW_LEASE: &str = ".lease.new";

/// Who holds a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The container.
    pub container_id: String,
    /// Its interface; `None` in files of old plugins.
    pub ifname: Option<String>,
}

impl Owner {
    /// An attachment.
    pub fn new(container_id: &str, ifname: &str) -> Self {
        Self {
            container_id: container_id.to_owned(),
            ifname: Some(ifname.to_owned()),
        }
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.trim().lines().map(str::trim);
        Self {
            container_id: lines.next().unwrap_or_default().to_owned(),
            ifname: lines.next().map(str::to_owned),
        }
    }

    /// Whether a lease of `self` belongs to `other`.
    fn is_of(&self, other: &Self) -> bool {
        self.container_id == other.container_id
            && (self.ifname.is_none() || self.ifname == other.ifname)
    }
}

/// A network's leases, locked.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Makes the folder where needed and waits for its lock.
    pub fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|cause| CniError::io("create", folder, &cause))?;
        let path = folder.join("lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|cause| CniError::io("open", &path, &cause))?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => {
                    return Ok(Self {
                        folder: folder.to_owned(),
                        _lock: lock,
                    });
                }
                Err((back, nix::errno::Errno::EINTR)) => file = back,
                Err((_, cause)) => return Err(CniError::io("lock", &path, &cause.into())),
            }
        }
    }

    /// As [`Store::open`], without making the folder: `None` where no lease was ever given.
    pub fn open_if_present(folder: &Path) -> Result<Option<Self>> {
        match fs::metadata(folder) {
            Ok(_) => Self::open(folder).map(Some),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(CniError::io("stat", folder, &cause)),
        }
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.folder.join(ip.to_string())
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.folder.join(format!("last_reserved_ip.{set}"))
    }

    /// Whether anybody holds `ip`.
    pub fn is_leased(&self, ip: IpAddr) -> Result<bool> {
        let path = self.path(ip);
        match fs::symlink_metadata(&path) {
            Ok(_) => Ok(true),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(CniError::io("stat", &path, &cause)),
        }
    }

    /// Gives `ip`, which is free, to `owner`.
    pub fn lease(&self, ip: IpAddr, owner: &Owner, set: usize) -> Result<()> {
        let ifname = owner.ifname.as_deref().unwrap_or_default();
        let content = format!("{}\r\n{ifname}", owner.container_id);
        self.write(&self.path(ip), &content)?;
        // a lost file only costs the round robin
        self.write(&self.last_path(set), &ip.to_string())
    }

    fn write(&self, path: &Path, content: &str) -> Result<()> {
        let new = self.folder.join(NEW_LEASE);
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|cause| CniError::io("write", path, &cause))
    }

    /// The address given last from set number `set`.
    pub fn last_reserved(&self, set: usize) -> Result<Option<IpAddr>> {
        let path = self.last_path(set);
        match read_small(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(CniError::io("read", &path, &cause)),
        }
    }

    fn leases(&self) -> Result<Vec<(IpAddr, Owner)>> {
        let read = || -> io::Result<Vec<(IpAddr, Owner)>> {
            let mut leases = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                let name = entry?.file_name();
                let Some(ip) = name.to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                leases.push((ip, Owner::parse(&read_small(&self.folder.join(name))?)));
            }
            leases.sort_by_key(|(ip, _)| *ip);
            Ok(leases)
        };
        read().map_err(|cause| CniError::io("read the leases in", &self.folder, &cause))
    }

    /// What `owner` holds.
    pub fn of(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let leases = self.leases()?.into_iter();
        Ok(leases
            .filter(|(_, holder)| holder.is_of(owner))
            .map(|(ip, _)| ip)
            .collect())
    }

    /// Frees `ip`; missing is success.
    pub fn release(&self, ip: IpAddr) -> Result<()> {
        let path = self.path(ip);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(CniError::io("remove", &path, &cause))
            }
            _ => Ok(()),
        }
    }

    /// Frees everything that `owner` holds.
    pub fn release_all(&self, owner: &Owner) -> Result<()> {
        self.retain(|holder| !holder.is_of(owner))
    }

    /// Frees every lease whose owner isn't wanted.
    pub fn retain(&self, wanted: impl Fn(&Owner) -> bool) -> Result<()> {
        let leases = self.leases()?;
        all(leases
            .iter()
            .filter(|(_, owner)| !wanted(owner))
            .map(|(ip, _)| self.release(*ip)))
    }
}

fn read_small(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_LEASE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_those_of_the_reference() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("net");
        assert!(Store::open_if_present(&folder).unwrap().is_none());
        let store = Store::open(&folder).unwrap();
        let (a, b) = (Owner::new("c1", "eth0"), Owner::new("c1", "eth1"));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        store.lease(ip("10.0.0.2"), &a, 0).unwrap();
        store.lease(ip("fd00::2"), &a, 1).unwrap();
        store.lease(ip("10.0.0.3"), &b, 0).unwrap();
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(text("10.0.0.2"), "c1\r\neth0");
        assert_eq!(text("last_reserved_ip.0"), "10.0.0.3");
        assert_eq!(text("last_reserved_ip.1"), "fd00::2");
        assert!(!folder.join(NEW_LEASE).exists());
        assert_eq!(store.of(&a).unwrap(), [ip("10.0.0.2"), ip("fd00::2")]);
        assert_eq!(store.last_reserved(0).unwrap(), Some(ip("10.0.0.3")));
        assert_eq!(store.last_reserved(7).unwrap(), None);

        fs::write(folder.join("10.0.0.9"), "c1").unwrap();
        fs::write(folder.join("notes"), "c1\r\neth0").unwrap();
        store.release_all(&a).unwrap();
        store.release_all(&a).unwrap();
        assert_eq!(store.leases().unwrap(), [(ip("10.0.0.3"), b)]);
        assert!(folder.join("notes").exists());
    }
}
