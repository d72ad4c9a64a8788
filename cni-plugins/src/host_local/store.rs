//! Leases on disk, in the reference plugin's layout.
//!
//! ```text
//! <dataDir>/<network>/lock                 flock(2), held by an open Store
//!                     10.1.0.2             "<container id>\r\n<ifname>"; older plugins wrote the id alone
//!                     last_reserved_ip.0   the address given last, per range set
//!                     .mark.10.1.0.2       a symbolic link to nowhere: "sampan:<runtime> <container id> <ifname>"
//!                     .of.<id>:<ifname>    another one: "sampan:10.1.0.2,fd00::2", the addresses given to an attachment
//! ```
//!
//! The mark tells a lease that this plugin gave, and for whom, from one of another program's. The reference plugin reads
//! every file for its content and passes over what it can't read. A mark counts only while it names the lease's owner.
//! The link of an attachment saves ADD and DEL from reading the leases of all others; it only says where to look: the leases are
//! what counts, and where it leads to none of the attachment's all are read.
//!
//! *Invariants*: a lease file appears whole or not at all, after its mark and its link, and survives a power cut; other
//! files, and leases that aren't understood, are left alone.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::conf::{valid_ifname, valid_name};
use crate::error::{CniError, DECODE_FAILURE, Result, all};

/// Longer files are no leases.
const MAX_LEASE: u64 = 4096;
const NEW_LEASE: &str = ".lease.new";
const MARK: &str = ".mark.";
const OF: &str = ".of.";
/// Longest name of a file (limits.h).
const NAME_MAX: usize = 255;
/// What both links begin with.
const OURS: &str = "sampan:";

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

    /// `None`: no lease.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.trim().lines().map(str::trim);
        let owner = Self {
            container_id: lines.next()?.to_owned(),
            ifname: lines.next().map(str::to_owned),
        };
        let understood = valid_name(&owner.container_id)
            && owner.ifname.as_deref().is_none_or(valid_ifname)
            && lines.next().is_none();
        understood.then_some(owner)
    }

    /// Name of the link that tells its addresses. No name of a container or of an interface has a colon.
    fn link(&self) -> String {
        let ifname = self.ifname.as_deref().unwrap_or_default();
        format!("{OF}{}:{ifname}", self.container_id)
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

    fn mark_path(&self, ip: IpAddr) -> PathBuf {
        self.folder.join(format!("{MARK}{ip}"))
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

    /// Gives `ip`, which is free, to `owner`, which `runtime` asked for.
    pub fn lease(&self, ip: IpAddr, owner: &Owner, runtime: &str, set: usize) -> Result<()> {
        let ifname = owner.ifname.as_deref().unwrap_or_default();
        let path = self.mark_path(ip);
        remove(&path)?;
        symlink(mark(runtime, owner), &path)
            .map_err(|cause| CniError::io("create", &path, &cause))?;
        let mut ips = self.linked(owner)?;
        ips.push(ip);
        self.link(owner, &ips)?;
        let content = format!("{}\r\n{ifname}", owner.container_id);
        self.write(&self.path(ip), &content)?;
        // a lost or broken file only costs the round robin
        let last = self.last_path(set);
        fs::write(&last, ip.to_string()).map_err(|cause| CniError::io("write", &last, &cause))
    }

    /// Brings the lease to the disk, and its mark with the folder.
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

    /// Names of the folder's files.
    fn files(&self) -> Result<Vec<String>> {
        let read = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                names.extend(entry?.file_name().into_string().ok());
            }
            Ok(names)
        };
        read().map_err(|cause| CniError::io("read", &self.folder, &cause))
    }

    /// The lease of `ip`; `None` where the file is none.
    fn holder(&self, ip: IpAddr) -> Result<Option<Owner>> {
        let path = self.path(ip);
        match read_small(&path) {
            // a folder is no lease either
            Err(cause) if cause.kind() == io::ErrorKind::IsADirectory => Ok(None),
            Err(cause) => Err(CniError::io("read the lease", &path, &cause)),
            Ok(text) => Ok(Owner::parse(&text)),
        }
    }

    /// Everything in the folder that has to do with leases, in the order of the addresses.
    fn read(&self) -> Result<Contents> {
        let mut contents = Contents::default();
        for name in self.files()? {
            if let Some(ip) = name.strip_prefix(MARK).and_then(|ip| ip.parse().ok()) {
                contents
                    .marks
                    .push((ip, fs::read_link(self.folder.join(name)).ok()));
            } else if let Ok(ip) = name.parse() {
                match self.holder(ip)? {
                    Some(owner) => contents.leases.push((ip, owner)),
                    None => contents.strange.push(self.path(ip)),
                }
            } else if name.starts_with(OF) {
                contents.links.push(name);
            }
        }
        contents.leases.sort_by_key(|(ip, _)| *ip);
        Ok(contents)
    }

    /// Those of `ips` that `owner` holds, in their order.
    fn held(&self, owner: &Owner, ips: impl IntoIterator<Item = IpAddr>) -> Result<Vec<IpAddr>> {
        let mut held = Vec::new();
        for ip in ips {
            let holder = match self.is_leased(ip)? {
                true => self.holder(ip)?,
                false => None,
            };
            if holder.is_some_and(|holder| holder.is_of(owner)) {
                held.push(ip);
            }
        }
        held.sort();
        Ok(held)
    }

    /// What `owner` holds as far as its link tells.
    fn linked(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let target = fs::read_link(self.folder.join(owner.link())).unwrap_or_default();
        let list = target.to_str().and_then(|text| text.strip_prefix(OURS));
        let ips = list.into_iter().flat_map(|list| list.split(','));
        self.held(owner, ips.filter_map(|ip| ip.parse().ok()))
    }

    /// Has the link of `owner` tell these addresses; without any it goes.
    fn link(&self, owner: &Owner, ips: &[IpAddr]) -> Result<()> {
        let name = owner.link();
        // a container's id may have any length; its leases are found by reading all
        if name.len() > NAME_MAX {
            return Ok(());
        }
        let path = self.folder.join(name);
        match remove(&path) {
            Ok(()) if !ips.is_empty() => {}
            done => return done,
        }
        let list: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
        symlink(format!("{OURS}{}", list.join(",")), &path)
            .map_err(|cause| CniError::io("create", &path, &cause))
    }

    /// What `owner` holds.
    pub fn of(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let linked = self.linked(owner)?;
        if !linked.is_empty() {
            return Ok(linked);
        }
        let files = self.files()?;
        self.held(owner, files.iter().filter_map(|name| name.parse().ok()))
    }

    /// What `owner`, which is new, holds all the same. Leases that have a mark are this plugin's, and would be linked.
    pub fn of_new(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let linked = self.linked(owner)?;
        if !linked.is_empty() {
            return Ok(linked);
        }
        let files = self.files()?;
        let marked: HashSet<IpAddr> = files
            .iter()
            .filter_map(|name| name.strip_prefix(MARK)?.parse().ok())
            .collect();
        let leased = files.iter().filter_map(|name| name.parse().ok());
        self.held(owner, leased.filter(|ip| !marked.contains(ip)))
    }

    /// Frees `ip`, which `owner` holds; missing is success.
    pub fn release(&self, ip: IpAddr, owner: &Owner) -> Result<()> {
        remove(&self.path(ip))?;
        remove(&self.mark_path(ip))?;
        self.link(owner, &self.linked(owner)?)
    }

    /// Frees everything that `owner` holds.
    pub fn release_all(&self, owner: &Owner) -> Result<()> {
        let held = self.of(owner)?;
        all(held.into_iter().map(|ip| self.release(ip, owner)))
    }

    /// Frees every lease whose owner isn't wanted; `wanted` is told which runtime this plugin gave it to. Removes marks and links
    /// without a lease. Leases that aren't understood stay, and are an error after everything else is done.
    pub fn retain(&self, wanted: impl Fn(&Owner, Option<&str>) -> bool) -> Result<()> {
        let contents = self.read()?;
        let marks: HashMap<IpAddr, &Path> = contents
            .marks
            .iter()
            .filter_map(|(ip, target)| Some((*ip, target.as_deref()?)))
            .collect();
        let (mut held, mut owners) = (HashSet::new(), HashSet::new());
        let mut steps = Vec::new();
        for (ip, owner) in &contents.leases {
            let mark = marks.get(ip).and_then(|mark| runtime_of(mark, owner));
            if wanted(owner, mark) {
                held.insert(*ip);
                owners.insert(owner.link());
            } else {
                steps.push(self.release(*ip, owner));
            }
        }
        let orphans = marks.keys().filter(|ip| !held.contains(*ip));
        steps.extend(orphans.map(|ip| remove(&self.mark_path(*ip))));
        let unused = contents.links.iter().filter(|link| !owners.contains(*link));
        steps.extend(unused.map(|link| remove(&self.folder.join(link))));
        steps.extend(contents.strange.iter().map(|path| {
            Err(CniError::new(
                DECODE_FAILURE,
                format!(
                    "{} is not understood as a lease: if nobody uses the address, remove it",
                    path.display()
                ),
            ))
        }));
        all(steps)
    }
}

/// What is in a store's folder.
#[derive(Debug, Default)]
struct Contents {
    leases: Vec<(IpAddr, Owner)>,
    marks: Vec<(IpAddr, Option<PathBuf>)>,
    /// Names of links that tell an attachment's addresses.
    links: Vec<String>,
    /// Named as leases are, but none.
    strange: Vec<PathBuf>,
}

fn mark(runtime: &str, owner: &Owner) -> String {
    let ifname = owner.ifname.as_deref().unwrap_or_default();
    format!("{OURS}{runtime} {} {ifname}", owner.container_id)
}

/// The runtime that a mark names, if it is the mark of a lease of `owner`.
fn runtime_of<'a>(target: &'a Path, owner: &Owner) -> Option<&'a str> {
    let text = target.to_str()?.strip_prefix(OURS)?;
    let (runtime, holder) = text.split_once(' ')?;
    (mark("", owner).strip_prefix("sampan: ")? == holder).then_some(runtime)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(CniError::io("remove", path, &cause))
        }
        _ => Ok(()),
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
        store.lease(ip("10.0.0.2"), &a, "", 0).unwrap();
        store.lease(ip("fd00::2"), &a, "", 1).unwrap();
        store.lease(ip("10.0.0.3"), &b, "r", 0).unwrap();
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
        let contents = store.read().unwrap();
        assert_eq!(contents.leases, [(ip("10.0.0.3"), b)]);
        assert_eq!(
            contents.marks,
            [(ip("10.0.0.3"), Some("sampan:r c1 eth1".into()))]
        );
        assert!(folder.join("notes").exists());
    }

    #[test]
    fn leases_of_others_are_not_read() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path()).unwrap();
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let (own, other) = (Owner::new("c1", "eth0"), Owner::new("c2", "eth0"));
        let links = || store.read().unwrap().links;
        store.lease(ip(2), &own, "", 0).unwrap();
        store.lease(ip(3), &own, "", 1).unwrap();
        store.lease(ip(4), &other, "", 0).unwrap();
        let target = fs::read_link(temp.path().join(".of.c1:eth0")).unwrap();
        assert_eq!(target.to_str(), Some("sampan:10.0.0.2,10.0.0.3"));
        // whoever reads it takes it for one of c1's
        fs::write(temp.path().join("10.0.0.4"), "c1\r\neth0").unwrap();
        assert_eq!(store.of(&own).unwrap(), [ip(2), ip(3)]);
        assert_eq!(store.of_new(&own).unwrap(), [ip(2), ip(3)]);
        store.release(ip(2), &own).unwrap();
        assert_eq!(store.of(&own).unwrap(), [ip(3)]);
        store.release(ip(3), &own).unwrap();
        assert_eq!(links(), [".of.c2:eth0"]);
        assert!(store.of_new(&own).unwrap().is_empty());
        assert_eq!(store.of(&own).unwrap(), [ip(4)]);
        // of another program, which has no marks
        fs::write(temp.path().join("10.0.0.5"), "c1\r\neth0").unwrap();
        assert_eq!(store.of_new(&own).unwrap(), [ip(5)]);
        // what was given to c2 is another's by now, and one that nothing is left of
        symlink("sampan:10.0.0.9", temp.path().join(".of.c9:eth0")).unwrap();
        assert!(store.of(&other).unwrap().is_empty());
        store.retain(|_, _| true).unwrap();
        assert!(links().is_empty());
        store.release_all(&own).unwrap();
        let long = Owner::new(&"c".repeat(NAME_MAX), "eth0");
        store.lease(ip(6), &long, "", 0).unwrap();
        assert_eq!(store.of(&long).unwrap(), [ip(6)]);
        store.release_all(&long).unwrap();
        let contents = store.read().unwrap();
        assert_eq!((contents.leases, contents.links), (vec![], vec![]));
    }

    #[test]
    fn contents_of_leases() {
        let owner = |id: &str, ifname: Option<&str>| {
            Some(Owner {
                container_id: id.into(),
                ifname: ifname.map(str::to_owned),
            })
        };
        for (text, expected) in [
            ("c1\r\neth0", owner("c1", Some("eth0"))),
            ("c1\neth0\n", owner("c1", Some("eth0"))),
            ("c1", owner("c1", None)),
            ("", None),
            ("\0\0\0", None),
            ("{}", None),
            ("c1\r\neth0\r\nmore", None),
            ("c1\r\na/b", None),
        ] {
            assert_eq!(Owner::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn who_may_take_a_lease_back() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path()).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (last, runtime) in [(2, ""), (3, "r"), (4, "r")] {
            let owner = Owner::new(&format!("c{last}"), "eth0");
            let ip = ip(&format!("10.0.0.{last}"));
            store.lease(ip, &owner, runtime, 0).unwrap();
        }
        // given again by somebody else, and a lease that was always theirs
        fs::write(temp.path().join("10.0.0.4"), "c9\r\neth0").unwrap();
        fs::write(temp.path().join("10.0.0.5"), "c5\r\neth0").unwrap();
        fs::write(temp.path().join("10.0.0.6"), "").unwrap();
        fs::create_dir(temp.path().join("10.0.0.7")).unwrap();
        let seen = std::cell::RefCell::new(Vec::new());
        let error = store
            .retain(|owner, runtime| {
                let runtime = runtime.map(str::to_owned);
                seen.borrow_mut()
                    .push((owner.container_id.clone(), runtime));
                owner.container_id != "c3"
            })
            .unwrap_err();
        assert!(
            error.msg.contains("is not understood as a lease"),
            "{error}"
        );
        let expected = [
            ("c2", Some("")),
            ("c3", Some("r")),
            ("c9", None),
            ("c5", None),
        ];
        let expected = expected.map(|(id, mark)| (id.to_owned(), mark.map(str::to_owned)));
        assert_eq!(seen.into_inner(), expected);
        for (name, there) in [
            ("10.0.0.2", true),
            (".mark.10.0.0.2", true),
            ("10.0.0.3", false),
            (".mark.10.0.0.3", false),
            ("10.0.0.4", true),
            ("10.0.0.5", true),
            ("10.0.0.6", true),
            ("10.0.0.7", true),
        ] {
            let found = fs::symlink_metadata(temp.path().join(name)).is_ok();
            assert_eq!(found, there, "{name}");
        }
    }
}
