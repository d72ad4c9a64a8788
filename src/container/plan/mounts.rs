//! `mounts` → steps. Pure.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIdMapping};

use super::super::CreateRequest;
use super::Host;
use super::namespaces::Namespaces;
use crate::cgroup::Cgroup;
use crate::rootfs::options::{self, Parsed};
use crate::rootfs::{Keep, Mount, Source, SourceMap, Step, resolve};
use crate::sys::mount::Attributes;

/// What the mounts depend on beside themselves.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// The container's.
    pub linux: &'a Linux,
    /// The container's.
    pub request: &'a CreateRequest,
    /// The container's.
    pub namespaces: &'a Namespaces,
    /// The machine.
    pub host: Host,
    /// The root file system, a path outside.
    pub root: &'a Path,
}

impl Around<'_> {
    /// A user namespace, the container's or our own, is in the way of what needs the first one.
    pub fn in_user_namespace(&self) -> bool {
        self.host.user_namespace || self.namespaces.own(libc::CLONE_NEWUSER)
    }
}

/// The steps of one of `mounts`.
#[derive(Debug, Default)]
pub struct Entry {
    /// Tied to the host's mounts, so opened before the two are separated.
    pub early: Vec<Step>,
    /// With the caller's ids.
    pub outside: Vec<Step>,
    /// With those of the container's root, the mount last.
    pub inside: Vec<Step>,
}

/// File systems whose super block is shared with the host or takes no flag of its own: read-only belongs to the mount.
const KERNEL: [&str; 8] = [
    "proc",
    "sysfs",
    "tmpfs",
    "devpts",
    "mqueue",
    "devtmpfs",
    "securityfs",
    "debugfs",
];

/// Most lines of an id map (user_namespaces(7)).
const LINES_MAX: usize = 340;

/// Whether what is mounted on `/dev` is the host's, which is left as it is.
pub fn is_host_dev(entry: &oci_spec::runtime::Mount) -> bool {
    let words = entry.options().iter().flatten();
    let is_bind = |word: &String| word == "bind" || word == "rbind";
    resolve::clean(entry.destination()) == Path::new("/dev")
        && (words.into_iter().any(is_bind)
            || matches!(entry.typ().as_deref(), Some("bind" | "devtmpfs")))
}

/// Plans entry `index` of `mounts`; `sources` counts what was opened before.
pub fn entry(
    entry: &oci_spec::runtime::Mount,
    index: usize,
    around: Around<'_>,
    sources: &mut usize,
) -> Result<Entry, String> {
    let at = |text: String| format!("mounts[{index}]: {}: {text}", entry.destination().display());
    let words = entry.options().clone().unwrap_or_default();
    let draft = Draft {
        spec: entry,
        around,
        parsed: options::parse(&words),
        // the path outside is also taken, as runc does
        destination: below(around.root, entry.destination())
            .unwrap_or_else(|| entry.destination().clone()),
        fstype: entry.typ().clone().unwrap_or_default(),
    };
    draft.plan(sources).map_err(at)
}

/// The path inside of a path outside that is in the root.
fn below(root: &Path, path: &Path) -> Option<PathBuf> {
    let path = resolve::clean(path);
    let rest = path.strip_prefix(resolve::clean(root)).ok()?;
    Some(Path::new("/").join(rest))
}

/// One entry, with what its words mean.
struct Draft<'a> {
    spec: &'a oci_spec::runtime::Mount,
    around: Around<'a>,
    parsed: Parsed,
    destination: PathBuf,
    fstype: String,
}

impl Draft<'_> {
    fn plan(mut self, sources: &mut usize) -> Result<Entry, String> {
        let is_bind = self.parsed.bind.is_some() || self.fstype == "bind";
        let map = self.source_map()?;
        if map.is_some() && !is_bind {
            return Err("only a bind mount can have an id map".to_owned());
        }
        if self.parsed.copy_up && self.fstype != "tmpfs" {
            return Err("option tmpcopyup: only a tmpfs can have it".to_owned());
        }
        if self.parsed.remount && (!is_bind || self.spec.source().is_none()) {
            return self.existing();
        }
        if is_bind {
            let source = self.spec.source().clone();
            let path = source.ok_or("a bind mount needs a source")?;
            return self.bind(&path, map, sources);
        }
        let plain = self.around.request.cgroup.plain();
        match (self.fstype.as_str(), plain) {
            ("", _) => Err("type is missing".to_owned()),
            ("cgroup" | "cgroup2", Cgroup::V1 { .. }) => self.cgroup_v1(sources),
            ("cgroup" | "cgroup2", Cgroup::Unlimited { .. }) => Ok(self.no_cgroup()),
            ("cgroup" | "cgroup2", _) => {
                let path = self.cgroup_v2(plain);
                if self.around.in_user_namespace()
                    && !self.around.namespaces.apart(libc::CLONE_NEWCGROUP)
                {
                    // the caller may own more of the hierarchy than the container (CVE-2023-25809)
                    self.parsed.attributes.set |= libc::MOUNT_ATTR_RDONLY;
                }
                // those of the hierarchy as a whole, which is mounted (cgroup-v2.rst "Mounting")
                self.parsed.data.clear();
                self.bind(&path, None, sources)
            }
            _ => match self.host_tree() {
                Some(path) => {
                    // what a user namespace may not mount anew it sees as the host has it
                    self.parsed.bind = Some(true);
                    self.parsed.data.clear();
                    if self.fstype == "sysfs" {
                        self.parsed.recursive.set |= libc::MOUNT_ATTR_RDONLY;
                    }
                    self.bind(Path::new(path), None, sources)
                }
                None => self.filesystem(),
            },
        }
    }

    /// The mount itself.
    fn mount(&self, source: Source) -> Mount {
        Mount {
            destination: self.destination.clone(),
            source,
            attributes: self.parsed.attributes,
            clear_others: false,
            recursive: self.parsed.recursive,
            late_readonly: false,
        }
    }

    /// A read-only mount that has to be filled first.
    fn make_late(&self, mount: &mut Mount) {
        let filled =
            self.fstype == "tmpfs" || resolve::clean(&self.destination) == Path::new("/dev");
        if filled && mount.attributes.set & libc::MOUNT_ATTR_RDONLY != 0 {
            mount.late_readonly = true;
            mount.attributes.set &= !libc::MOUNT_ATTR_RDONLY;
        }
    }

    /// `remount` without a source of its own. Only flags of the mount: those of the file system are the host's, too.
    fn existing(self) -> Result<Entry, String> {
        let refused = self
            .parsed
            .superblock
            .first()
            .map(|word| (*word).to_owned());
        if let Some(option) = refused.or(self.parsed.data.first().cloned()) {
            return Err(format!(
                "option {option}: a remount changes flags of the mount only"
            ));
        }
        Ok(Entry {
            inside: vec![Step::Mount(self.mount(Source::Existing))],
            ..Entry::default()
        })
    }

    /// Flags of a whole file system do nothing to a bind mount, as with mount(8).
    fn bind(
        mut self,
        path: &Path,
        map: Option<SourceMap>,
        sources: &mut usize,
    ) -> Result<Entry, String> {
        if let Some(option) = self.parsed.data.first() {
            return Err(format!("option {option} is unknown for a bind mount"));
        }
        let recursive = self.parsed.bind == Some(true);
        if recursive && resolve::clean(path) == Path::new("/sys") {
            // the cgroups are mounts below: `ro` alone would leave them writable for their owner (CVE-2023-25809)
            self.parsed.recursive.set |= self.parsed.attributes.set & libc::MOUNT_ATTR_RDONLY;
        }
        let number = *sources;
        *sources += 1;
        let outside = self.around.request.bundle.join(path);
        let inside = match self.parsed.subpath {
            None => below(self.around.root, &outside).filter(|path| path != Path::new("/")),
            Some(_) => None,
        };
        let mut mount = self.mount(Source::Bind { source: number });
        // mount(8) has two forms: `bind,remount` changes what is asked for, `bind` alone sets all flags as soon as one is named
        mount.clear_others = self.parsed.explicit && !self.parsed.remount;
        self.make_late(&mut mount);
        let early = options::follows_host(&mount) && inside.is_none();
        // its end would be the end of what it is tied to
        if early && !self.around.namespaces.own(libc::CLONE_NEWNS) {
            return Err("a mount tied to the host's needs a mount namespace".to_owned());
        }
        if early && recursive && mount.attributes.propagation != 0 {
            // those below are still tied to the host's both ways
            mount.recursive.propagation = mount.attributes.propagation;
            mount.attributes.propagation = 0;
        }
        let mut entry = Entry::default();
        match inside {
            Some(path) => entry.inside.push(Step::OpenInside {
                source: number,
                path,
                recursive,
            }),
            None => {
                if !early {
                    drop_private(&mut mount);
                }
                let open = Step::OpenSource {
                    source: number,
                    path: outside,
                    destination: self.destination.clone(),
                    recursive,
                    beneath: self.parsed.subpath.take().map(PathBuf::from),
                };
                if early {
                    entry.early.push(open);
                } else {
                    entry.outside.push(open);
                }
            }
        }
        entry.inside.extend(map.map(|map| Step::MapSource {
            source: number,
            map,
        }));
        entry.inside.push(Step::Mount(mount));
        Ok(entry)
    }

    /// runtime-spec config.md: `uidMappings`, `gidMappings`, `idmap` and `ridmap`.
    fn source_map(&self) -> Result<Option<SourceMap>, String> {
        let lines = |key: &str, maps: &Option<Vec<LinuxIdMapping>>| {
            let maps = maps.as_deref().unwrap_or_default();
            if maps.len() > LINES_MAX {
                return Err(format!("{key}: has more than {LINES_MAX} lines"));
            }
            let line = |map: &LinuxIdMapping| [map.container_id(), map.host_id(), map.size()];
            Ok(maps.iter().map(line).collect::<Vec<_>>())
        };
        let uids = lines("uidMappings", self.spec.uid_mappings())?;
        let gids = lines("gidMappings", self.spec.gid_mappings())?;
        match (uids.is_empty(), gids.is_empty(), self.parsed.id_map) {
            (true, true, None) => return Ok(None),
            (true, true, Some(_)) if !self.around.namespaces.own(libc::CLONE_NEWUSER) => {
                return Err(
                    "an id map needs uidMappings and gidMappings, or a user namespace".to_owned(),
                );
            }
            (true, false, _) => return Err("gidMappings: need uidMappings beside them".to_owned()),
            (false, true, _) => return Err("uidMappings: need gidMappings beside them".to_owned()),
            _ => {}
        }
        Ok(Some(SourceMap {
            recursive: self.parsed.id_map == Some(true),
            uids,
            gids,
        }))
    }

    /// In a cgroup namespace that is the container's own root; without one the paths of /proc/self/cgroup lead from the real root.
    fn cgroup_v2(&self, cgroup: &Cgroup) -> PathBuf {
        const HIERARCHY: &str = "/sys/fs/cgroup";
        match cgroup {
            Cgroup::V2(path)
                if self.around.namespaces.apart(libc::CLONE_NEWCGROUP)
                    || !path.starts_with(HIERARCHY) =>
            {
                path.clone()
            }
            _ => HIERARCHY.into(),
        }
    }

    /// There is no cgroup to show, and the host's are not the container's (CVE-2023-25809): an empty folder that stays so.
    fn no_cgroup(&self) -> Entry {
        let options = ["size=0", "nr_inodes=1", "mode=555"].map(str::to_owned);
        let mut mount = self.mount(Source::Filesystem {
            fstype: "tmpfs".to_owned(),
            source: Some("cgroup".to_owned()),
            options: options.to_vec(),
            keep: Keep::Nothing,
        });
        mount.attributes.set |= libc::MOUNT_ATTR_RDONLY;
        drop_private(&mut mount);
        Entry {
            inside: vec![Step::Mount(mount)],
            ..Entry::default()
        }
    }

    /// The container's own cgroups, one folder for each hierarchy, and links for controllers that share one.
    fn cgroup_v1(self, sources: &mut usize) -> Result<Entry, String> {
        let Cgroup::V1 {
            controllers,
            unified,
        } = self.around.request.cgroup.plain()
        else {
            return Err("there is no cgroup of version 1".to_owned());
        };
        let mut hierarchies: Vec<(Vec<&str>, &PathBuf)> = Vec::new();
        for (name, path) in controllers {
            let name = name.strip_prefix("name=").unwrap_or(name);
            match hierarchies.iter_mut().find(|(_, other)| *other == path) {
                Some((names, _)) => names.push(name),
                None => hierarchies.push((vec![name], path)),
            }
        }
        hierarchies.extend(unified.iter().map(|path| (vec!["unified"], path)));
        let (mut folders, mut links) = (Vec::new(), Vec::new());
        let mut made = Entry::default();
        for (names, path) in hierarchies {
            let folder = names.join(",");
            if names.len() > 1 {
                let link = |name: &&str| ((*name).to_owned(), folder.clone());
                links.extend(names.iter().map(link));
            }
            made.outside.push(Step::OpenSource {
                source: *sources,
                path: path.clone(),
                destination: self.destination.join(&folder),
                recursive: false,
                beneath: None,
            });
            folders.push((folder, *sources));
            *sources += 1;
        }
        let mut mount = self.mount(Source::CgroupV1 { folders, links });
        drop_private(&mut mount);
        made.inside.push(Step::Mount(mount));
        Ok(made)
    }

    /// What a user namespace may not mount anew because the namespace that it shows is not its own.
    fn host_tree(&self) -> Option<&'static str> {
        let own = |flag| self.around.namespaces.own(flag);
        if !self.around.in_user_namespace() {
            return None;
        }
        match self.fstype.as_str() {
            "sysfs" if !own(libc::CLONE_NEWNET) => Some("/sys"),
            "proc" if !own(libc::CLONE_NEWPID) => Some("/proc"),
            "mqueue" if !own(libc::CLONE_NEWIPC) => Some("/dev/mqueue"),
            _ => None,
        }
    }

    fn filesystem(self) -> Result<Entry, String> {
        let mut options = self.parsed.data.clone();
        options.extend(self.parsed.superblock.iter().map(|word| (*word).to_owned()));
        let fstype = self.fstype.as_str();
        if self.parsed.attributes.set & libc::MOUNT_ATTR_RDONLY != 0 && !KERNEL.contains(&fstype) {
            options.push("ro".to_owned());
        }
        if fstype == "devpts" {
            options.retain(|option| self.is_mapped_group(option));
        }
        options.extend(self.context()?);
        let keep = match fstype {
            "tmpfs" if self.parsed.copy_up => Keep::Content,
            "tmpfs" if !options.iter().any(|option| option.starts_with("mode=")) => Keep::Mode,
            _ => Keep::Nothing,
        };
        let source = self.spec.source().as_ref();
        let mut mount = self.mount(Source::Filesystem {
            source: source.map(|path| path.to_string_lossy().into_owned()),
            fstype: self.fstype.clone(),
            options,
            keep,
        });
        drop_private(&mut mount);
        self.make_late(&mut mount);
        Ok(Entry {
            inside: vec![Step::Mount(mount)],
            ..Entry::default()
        })
    }

    /// The group of terminals is only a convenience: where the id map does not have it there are none in that group.
    fn is_mapped_group(&self, option: &str) -> bool {
        let group = option
            .strip_prefix("gid=")
            .and_then(|id| id.parse::<u32>().ok());
        let maps = self.around.linux.gid_mappings().as_deref();
        match (group, maps) {
            (Some(group), Some(maps @ [_, ..])) => maps.iter().any(|map| {
                group
                    .checked_sub(map.container_id())
                    .is_some_and(|offset| offset < map.size())
            }),
            _ => true,
        }
    }

    /// `linux.mountLabel`, for file systems that hold the container's own files.
    fn context(&self) -> Result<Option<String>, String> {
        match self.around.linux.mount_label().as_deref() {
            None | Some("") => Ok(None),
            Some(_) if ["proc", "sysfs", "mqueue"].contains(&self.fstype.as_str()) => Ok(None),
            Some(label) => Ok(Some(format!("context={label}"))),
        }
    }
}

/// New mounts and copies of private ones are private already.
fn drop_private(mount: &mut Mount) {
    let drop = |attributes: &mut Attributes| {
        if attributes.propagation == libc::MS_PRIVATE {
            attributes.propagation = 0;
        }
    };
    drop(&mut mount.attributes);
    drop(&mut mount.recursive);
}
