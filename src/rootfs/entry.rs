//! One entry of `mounts`: what it is, and how it comes to its place.
//!
//! *Invariants:* a mount has its final flags before it becomes visible; only a tmpfs and `/dev` become read-only late, after what is
//! made inside. A flag that a user namespace has locked is never silently given up: it stays, or the mount fails.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};

use super::options::{self, attribute_words};
use super::resolve;
use super::{Context, Error, Work, copyup, propagating, refuse};
use crate::sys::mount::{self, Attributes};

/// One entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Path inside the root.
    pub destination: PathBuf,
    /// What is mounted.
    pub source: Source,
    /// Flags of the mount itself.
    #[serde(serialize_with = "attribute_words")]
    pub attributes: Attributes,
    /// Flags of the source that were not asked for go, unless a user namespace has locked them.
    pub clear_others: bool,
    /// Flags of the mount and of all below it.
    #[serde(serialize_with = "attribute_words")]
    pub recursive: Attributes,
    /// Becomes read-only at [`super::Step::LateReadonly`].
    pub late_readonly: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A new file system.
    Filesystem {
        /// As in `/proc/filesystems`.
        fstype: String,
        /// Its source, free text for most.
        source: Option<String>,
        /// `key` or `key=value`.
        options: Vec<String>,
        /// What it takes over from the folder that it covers.
        keep: Keep,
    },
    /// An opened source.
    Bind {
        /// Its number.
        source: usize,
    },
    /// The container's own cgroups of version 1 as folders of a tmpfs.
    CgroupV1 {
        /// Name and source of each.
        folders: Vec<(String, usize)>,
        /// Links in the tmpfs, name and target: controllers that are mounted together.
        links: Vec<(String, String)>,
    },
    /// What is mounted there already, whose flags change.
    Existing,
}

/// What a tmpfs takes over from the folder that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// Its permissions.
    Mode,
    /// Permissions, owner and content.
    Content,
}

/// An id map for a source. Without lines it is that of the container's user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceMap {
    /// For all mounts below too.
    pub recursive: bool,
    /// Users: first id in the file system, first id that it shows as, how many.
    pub uids: Vec<[u32; 3]>,
    /// Groups.
    pub gids: Vec<[u32; 3]>,
}

impl Source {
    /// A new mount of what the kernel shows of itself.
    pub(super) fn is_kernel_tree(&self) -> bool {
        matches!(self, Source::Filesystem { fstype, .. } if fstype == "proc" || fstype == "sysfs")
    }
}

impl Work {
    /// Mounts one entry.
    pub(super) fn mount(&mut self, mount: &Mount) -> Result<(), Error> {
        let at = &mount.destination;
        let tree = match &mount.source {
            Source::Bind { source } => {
                let tree = self.take_source(*source, at)?;
                let target = resolve::mount_point(self.root()?, mount, Some(&tree))?;
                set_flags(&tree, mount)?;
                attach(&tree, &target, at)?;
                tree
            }
            Source::CgroupV1 { folders, links } => {
                let trees = folders.iter().map(|(_, source)| *source);
                let trees = trees.map(|source| self.take_source(source, at));
                let trees = trees.collect::<Result<Vec<_>, _>>()?;
                let target = resolve::mount_point(self.root()?, mount, None)?;
                let folders = folders.iter().map(|(name, _)| name).zip(trees);
                mount_cgroups(mount, &target, folders, links)?
            }
            Source::Filesystem { .. } => mount_filesystem(self.root()?, mount)?,
            Source::Existing => return change(self.root()?, mount),
        };
        let place = resolve::clean(at);
        self.kernel
            .retain(|(covered, _)| !covered.starts_with(&place));
        if mount.source.is_kernel_tree() {
            self.kernel.push((place, tree));
        } else if mount.late_readonly {
            self.late.push((tree, at.clone()));
        }
        Ok(())
    }
}

fn attach(tree: &OwnedFd, target: &OwnedFd, at: &Path) -> Result<(), Error> {
    mount::attach(tree, target).context(|| format!("mount on {}", at.display()))
}

/// The flags of what is not visible yet.
fn set_flags(tree: &OwnedFd, mount: &Mount) -> Result<(), Error> {
    let what = || {
        format!(
            "set the flags of the mount on {}",
            mount.destination.display()
        )
    };
    mount::set_attributes(tree, true, mount.recursive).context(what)?;
    let mut own = mount.attributes;
    if mount.clear_others {
        let others = options::INHERITED & !own.set & !mount.recursive.set;
        let mut all = own;
        all.clear |= others;
        match mount::set_attributes(tree, false, all) {
            // a user namespace keeps flags of mounts that came from outside (mount_namespaces(7)), all but this one: then only what
            // was asked for
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                own.clear |= others & libc::MOUNT_ATTR_NOSYMFOLLOW;
            }
            other => return other.context(what),
        }
    }
    mount::set_attributes(tree, false, own)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => std::io::Error::new(
                error.kind(),
                format!("{error}: in a user namespace a mount of the host keeps its flags (ro, nosuid, nodev, noexec, atime)"),
            ),
            _ => error,
        })
        .context(what)
}

fn mount_filesystem(root: &OwnedFd, mount: &Mount) -> Result<OwnedFd, Error> {
    let Source::Filesystem {
        fstype,
        source,
        options,
        keep,
    } = &mount.source
    else {
        return refuse("mount".to_owned(), "it is no new file system");
    };
    let at = &mount.destination;
    let what = || format!("mount {fstype} on {}", at.display());
    let existed = *keep != Keep::Nothing && resolve::existing(root, &resolve::clean(at))?.is_some();
    let target = resolve::mount_point(root, mount, None)?;
    let mut all = options.clone();
    if existed {
        let stat = rustix::fs::fstat(&target).context(what)?;
        if !options.iter().any(|option| option.starts_with("mode=")) {
            all.push(format!("mode={:04o}", stat.st_mode & 0o7777));
        }
    }
    if options.iter().any(|option| option.len() > LONGEST) {
        return mount_by_text(root, mount, &target, &all);
    }
    let tree = mount::new_filesystem(fstype, source.as_deref(), &all, mount.attributes.set)
        .map_err(|error| revealing(fstype, error))
        .context(what)?;
    if *keep == Keep::Content && existed {
        take_over(&target, &tree).context(|| format!("copy {} to the tmpfs", at.display()))?;
    }
    let propagation = propagating(mount.attributes.propagation);
    mount::set_attributes(&tree, true, mount.recursive)
        .and_then(|()| mount::set_attributes(&tree, false, propagation))
        .context(|| format!("set the flags of the mount on {}", at.display()))?;
    attach(&tree, &target, at)?;
    Ok(tree)
}

/// mount_namespaces(7), "Restrictions on mount namespaces".
fn revealing(fstype: &str, error: std::io::Error) -> std::io::Error {
    let known = ["proc", "sysfs"].contains(&fstype);
    if !known || error.kind() != std::io::ErrorKind::PermissionDenied {
        return error;
    }
    let text = format!(
        "{error}: in a user namespace it must not show what is masked for the caller, whose own can be bound instead"
    );
    std::io::Error::new(error.kind(), text)
}

/// Content and owner of a folder, for the tmpfs that will cover it.
fn take_over(from: &OwnedFd, to: &OwnedFd) -> std::io::Result<()> {
    copyup::copy(from, to)?;
    let stat = rustix::fs::fstat(from)?;
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, "", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH)?;
    Ok(())
}

/// Longest option in bytes that fsconfig(2) takes.
const LONGEST: usize = 255;
/// What mount(2) takes of options, in bytes; it cuts the rest off without a word.
const PAGE: usize = 4096;

/// With mount(2), for options that are too long one by one, as those of an overlay.
fn mount_by_text(
    root: &OwnedFd,
    mount: &Mount,
    target: &OwnedFd,
    options: &[String],
) -> Result<OwnedFd, Error> {
    let at = &mount.destination;
    let Source::Filesystem { fstype, source, .. } = &mount.source else {
        return refuse("mount".to_owned(), "it is no new file system");
    };
    let what = || format!("mount {fstype} on {}", at.display());
    // flags of the file system are no text for mount(2): overlay before Linux 6.5 knows no "ro"
    let of_all = [
        ("ro", MountFlags::RDONLY),
        ("rw", MountFlags::empty()),
        ("sync", MountFlags::SYNCHRONOUS),
        ("dirsync", MountFlags::DIRSYNC),
        ("lazytime", MountFlags::LAZYTIME),
    ];
    let of_all = |word: &str| of_all.into_iter().find(|(known, _)| *known == word);
    let words: Vec<&str> = options.iter().map(String::as_str).collect();
    let (flags, words): (Vec<&str>, Vec<&str>) =
        words.into_iter().partition(|word| of_all(word).is_some());
    let begin = flags
        .into_iter()
        .filter_map(of_all)
        .fold(MountFlags::empty(), |all, (_, flag)| all | flag);
    let data = words.join(",");
    if data.len() >= PAGE {
        return refuse(what(), "its options are longer than a page");
    }
    let data = CString::new(data)
        .map_err(std::io::Error::from)
        .context(what)?;
    let flags = [
        (libc::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (libc::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (libc::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (libc::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
    ];
    let asked = flags
        .into_iter()
        .filter(|(bit, _)| mount.attributes.set & bit != 0);
    let flags = asked.fold(begin, |all, (_, flag)| all | flag);
    let link = format!("/proc/self/fd/{}", target.as_raw_fd());
    let source = source.as_deref().unwrap_or("none");
    rustix::mount::mount(source, &link, fstype.as_str(), flags, Some(data.as_c_str()))
        .context(what)?;
    let tree = resolve::open(
        root,
        &resolve::clean(at),
        OFlags::PATH,
        ResolveFlags::IN_ROOT,
    )
    .context(what)?;
    mount::set_attributes(&tree, true, mount.recursive)
        .and_then(|()| mount::set_attributes(&tree, false, mount.attributes))
        .context(|| format!("set the flags of the mount on {}", at.display()))?;
    Ok(tree)
}

/// Changes a mount that is there.
fn change(root: &OwnedFd, mount: &Mount) -> Result<(), Error> {
    let what = || format!("remount {}", mount.destination.display());
    let Some(target) = resolve::existing(root, &mount.destination)? else {
        return refuse(what(), "nothing is there");
    };
    mount::set_attributes(&target, true, mount.recursive)
        .and_then(|()| mount::set_attributes(&target, false, mount.attributes))
        .context(what)
}

/// The container's own cgroups as folders of a tmpfs, which nobody else has seen yet. The flags come when all is there.
fn mount_cgroups<'a>(
    mount: &Mount,
    target: &OwnedFd,
    folders: impl Iterator<Item = (&'a String, OwnedFd)>,
    links: &[(String, String)],
) -> Result<OwnedFd, Error> {
    let at = &mount.destination;
    let what = || format!("mount the cgroups on {}", at.display());
    let tmpfs = mount::new_filesystem("tmpfs", Some("cgroup"), &["mode=755".to_owned()], 0)
        .context(what)?;
    mount::attach(&tmpfs, target).context(what)?;
    for (name, tree) in folders {
        rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755))
            .map_err(std::io::Error::from)
            .and_then(|()| mount::attach_in(&tree, &tmpfs, name))
            .context(|| format!("mount the cgroup {name} on {}", at.display()))?;
    }
    for (name, points_to) in links {
        rustix::fs::symlinkat(points_to, &tmpfs, name)
            .context(|| format!("make the link {name} in {}", at.display()))?;
    }
    mount::set_attributes(&tmpfs, true, mount.attributes).context(what)?;
    Ok(tmpfs)
}
