//! The container's file system: root, mounts, devices, masks, pivot.
//!
//! It runs in the container's own mount namespace, in the order of [`Plan`], and decides nothing that the plan does not say.
//!
//! *Invariants:*
//! * Every path inside the root is resolved beneath the descriptor of the root (openat2 `RESOLVE_IN_ROOT`); no name is joined and
//!   used outside. Mounts are attached to open descriptors, so nothing can be swapped between check and use.
//! * A mount has its final flags before it becomes visible; only a tmpfs becomes read-only late, after what is mounted inside.
//! * Sources outside the root are opened before the process takes the ids of a user namespace.
//!
//! What the plan holds comes from [`crate::container`]; [`crate::init`] calls [`prepare`], [`mount_all`] and [`enter`].

pub mod devices;
pub mod options;
pub mod overlay;
mod pivot;
pub mod resolve;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::sys::mount::{self, Attributes};
use devices::Device;
use resolve::Kind;

pub use pivot::enter;

/// A step on the file system that failed: what was tried, and why.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    /// What was tried, with the path.
    pub context: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Adds what was tried to an error.
pub trait Context<T> {
    /// Names the step.
    fn context(self, text: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, text: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error {
            context: text(),
            source: error.into(),
        })
    }
}

/// An error that is ours and no system call's.
pub(crate) fn refuse<T>(context: String, why: &str) -> Result<T, Error> {
    Err(Error {
        context,
        source: io::Error::other(why.to_owned()),
    })
}

/// Where the root comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The folder itself.
    Folder,
    /// An overlay, mounted over the folder.
    Overlay(overlay::Layers),
}

/// One entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Path inside the root.
    pub destination: PathBuf,
    /// What is mounted.
    pub source: Source,
    /// Flags of the mount itself.
    pub attributes: Attributes,
    /// Flags of the mount and of all below it.
    pub recursive: Attributes,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A new file system.
    Filesystem {
        /// As in `/proc/filesystems`.
        fstype: String,
        /// Its source, free text for most.
        source: Option<String>,
        /// `key` or `key=value`.
        options: Vec<String>,
    },
    /// A file or folder of the host.
    Bind {
        /// Path outside.
        path: PathBuf,
        /// With the mounts below.
        recursive: bool,
        /// Not the path itself but this one in it; links in it lead nowhere else.
        beneath: Option<PathBuf>,
    },
    /// The container's own cgroups of version 1 in a tmpfs: (folder name, path outside).
    CgroupV1(Vec<(String, PathBuf)>),
}

/// Everything to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Folder outside that is or carries the root.
    pub path: PathBuf,
    /// What the root is made of.
    pub root: Root,
    /// Mounts of the host may still propagate into ours (an entry or the root asks for it).
    pub follow_host: bool,
    /// In order.
    pub mounts: Vec<Mount>,
    /// Device nodes; empty when `/dev` is the host's.
    pub devices: Vec<Device>,
    /// Make the links and the `ptmx` of `/dev`.
    pub dev_links: bool,
    /// Devices are bound from the host, since mknod(2) is refused in a user namespace.
    pub bind_devices: bool,
    /// Made when missing.
    pub cwd: PathBuf,
    /// Hidden from the container.
    pub masked: Vec<PathBuf>,
    /// Made read-only.
    pub readonly: Vec<PathBuf>,
    /// The root itself is read-only.
    pub readonly_root: bool,
    /// `rootfsPropagation`, applied to the finished root: `MS_*` and whether for all below.
    pub propagation: Option<(u64, bool)>,
}

/// Sources opened outside, by index of the mount, and the root.
#[derive(Debug)]
pub struct Prepared {
    root: Option<OwnedFd>,
    trees: Vec<Vec<OwnedFd>>,
    devices: Vec<OwnedFd>,
    null: OwnedFd,
    layers: Vec<OwnedFd>,
}

/// Cuts propagation and opens everything outside the root. Runs with the ids of the caller.
pub fn prepare(plan: &Plan) -> Result<Prepared, Error> {
    let propagation = if plan.follow_host {
        libc::MS_SLAVE
    } else {
        libc::MS_PRIVATE
    };
    let host = open(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
    let attributes = Attributes {
        propagation,
        ..Attributes::default()
    };
    mount::set_attributes(&host, true, attributes)
        .context(|| "make the mounts of the host private".to_owned())?;
    let (root, layers) = match &plan.root {
        Root::Folder => (Some(clone(&plan.path, true)?), Vec::new()),
        Root::Overlay(layers) if plan.bind_devices => (None, layers.open()?),
        Root::Overlay(_) => (None, Vec::new()),
    };
    let mut trees = Vec::with_capacity(plan.mounts.len());
    for mount in &plan.mounts {
        trees.push(match &mount.source {
            Source::Filesystem { .. } => Vec::new(),
            Source::Bind {
                path,
                recursive,
                beneath,
            } => vec![match beneath {
                None => clone(path, *recursive)?,
                Some(beneath) => clone_beneath(path, beneath, *recursive)?,
            }],
            Source::CgroupV1(folders) => folders
                .iter()
                .map(|(_, path)| clone(path, false))
                .collect::<Result<_, _>>()?,
        });
    }
    let bound = plan.devices.iter().filter(|_| plan.bind_devices);
    Ok(Prepared {
        root,
        trees,
        devices: bound
            .map(|device| clone(&device.path, false))
            .collect::<Result<_, _>>()?,
        null: devices::null()?,
        layers,
    })
}

/// Mounts root, mounts, devices and masks; the root's descriptor comes back. Runs with the ids of the container's root.
pub fn mount_all(plan: &Plan, prepared: Prepared) -> Result<OwnedFd, Error> {
    let Prepared {
        root,
        trees,
        devices,
        null,
        layers,
    } = prepared;
    let root = match (root, &plan.root) {
        (Some(tree), _) => attach_root(&tree, &plan.path)?,
        (None, Root::Overlay(overlay)) => overlay.mount(&plan.path, &layers)?,
        (None, Root::Folder) => return refuse("mount the root".to_owned(), "it was not opened"),
    };
    let mut late = Vec::new();
    for (mount, trees) in plan.mounts.iter().zip(trees) {
        if let Some(tree) = mount_one(&root, mount, trees)? {
            late.push((tree, &mount.destination));
        }
    }
    devices::make(&root, &plan.devices, devices)?;
    if plan.dev_links {
        devices::links(&root)?;
    }
    resolve::make(&root, &plan.cwd, Kind::Folder)?;
    for (tree, path) in late {
        mount::set_attributes(&tree, false, read_only())
            .context(|| format!("make {} read-only", path.display()))?;
    }
    for path in &plan.readonly {
        make_readonly(&root, path)?;
    }
    for path in &plan.masked {
        mask(&root, path, &null)?;
    }
    Ok(root)
}

/// Read-only as an attribute.
fn read_only() -> Attributes {
    Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Attributes::default()
    }
}

/// Attaches a detached root over the folder it came from and opens it again: the descriptor of a detached mount cannot be pivoted to.
fn attach_root(tree: &OwnedFd, path: &Path) -> Result<OwnedFd, Error> {
    let target = open(path, OFlags::PATH | OFlags::DIRECTORY)?;
    mount::attach(tree, &target).context(|| format!("mount the root on {}", path.display()))?;
    // a descriptor of the root of a mount stays good once the mount is attached
    rustix::io::fcntl_dupfd_cloexec(tree, 3).context(|| "keep the root open".to_owned())
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Error> {
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("open {}", path.display()))
}

/// A detached, private copy of a mount outside.
fn clone(path: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    mount::clone_tree(path, recursive).context(|| format!("open {} to bind it", path.display()))
}

/// The same of a path in a folder whose content nobody trusts.
fn clone_beneath(folder: &Path, path: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let root = open(folder, OFlags::PATH | OFlags::DIRECTORY)?;
    let what = || format!("open {} in {} to bind it", path.display(), folder.display());
    let place = resolve::open(&root, path, OFlags::PATH, rustix::fs::ResolveFlags::IN_ROOT)
        .context(what)?;
    mount::clone_tree_at(&place, recursive).context(what)
}

/// Mounts one entry. A tmpfs that has to become read-only after what is mounted inside comes back.
fn mount_one(root: &OwnedFd, mount: &Mount, trees: Vec<OwnedFd>) -> Result<Option<OwnedFd>, Error> {
    let at = &mount.destination;
    let target = resolve::mount_point(root, mount, trees.first())?;
    let mut attributes = mount.attributes;
    let mut late = false;
    let tree = match &mount.source {
        Source::Bind { .. } => match trees.into_iter().next() {
            Some(tree) => tree,
            None => {
                return refuse(
                    format!("mount {}", at.display()),
                    "its source was not opened",
                );
            }
        },
        Source::CgroupV1(folders) => {
            return mount_cgroups(root, mount, &target, folders.iter().zip(trees));
        }
        Source::Filesystem {
            fstype,
            source,
            options,
        } => {
            if fstype == "tmpfs" {
                late = attributes.set & libc::MOUNT_ATTR_RDONLY != 0;
                attributes.set &= !libc::MOUNT_ATTR_RDONLY;
            }
            mount::new_filesystem(fstype, source.as_deref(), options, 0)
                .context(|| format!("mount {fstype} on {}", at.display()))?
        }
    };
    mount::set_attributes(&tree, true, mount.recursive)
        .and_then(|()| mount::set_attributes(&tree, false, attributes))
        .context(|| format!("set the flags of the mount on {}", at.display()))?;
    mount::attach(&tree, &target).context(|| format!("mount on {}", at.display()))?;
    Ok(late.then_some(tree))
}

/// The container's own cgroups as folders of a tmpfs.
fn mount_cgroups<'a>(
    root: &OwnedFd,
    mount: &Mount,
    target: &OwnedFd,
    folders: impl Iterator<Item = (&'a (String, PathBuf), OwnedFd)>,
) -> Result<Option<OwnedFd>, Error> {
    let at = &mount.destination;
    let what = || format!("mount the cgroups on {}", at.display());
    let tmpfs = mount::new_filesystem("tmpfs", Some("cgroup"), &["mode=755".to_owned()], 0)
        .context(what)?;
    mount::attach(&tmpfs, target).context(what)?;
    for ((name, _), tree) in folders {
        let place = resolve::make(root, &at.join(name), Kind::Folder)?;
        mount::set_attributes(&tree, false, mount.attributes)
            .and_then(|()| mount::attach(&tree, &place))
            .context(|| format!("mount the cgroup {name} on {}", at.display()))?;
    }
    mount::set_attributes(&tmpfs, false, mount.attributes).context(what)?;
    Ok(None)
}

/// Binds a path onto itself, read-only with all below. A path that is not there is fine.
fn make_readonly(root: &OwnedFd, path: &Path) -> Result<(), Error> {
    let Some(target) = resolve::existing(root, path)? else {
        return Ok(());
    };
    let tree = mount::clone_tree_at(&target, true)
        .context(|| format!("bind {} onto itself", path.display()))?;
    mount::set_attributes(&tree, true, read_only())
        .and_then(|()| mount::attach(&tree, &target))
        .context(|| format!("make {} read-only", path.display()))
}

/// Hides a file under the host's `/dev/null` (checked, not the container's) and a folder under an empty tmpfs.
fn mask(root: &OwnedFd, path: &Path, null: &OwnedFd) -> Result<(), Error> {
    let Some(target) = resolve::existing(root, path)? else {
        return Ok(());
    };
    let stat = rustix::fs::fstat(&target).context(|| format!("look at {}", path.display()))?;
    let tree = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let options = [
            "size=0".to_owned(),
            "nr_inodes=1".to_owned(),
            "mode=755".to_owned(),
        ];
        mount::new_filesystem("tmpfs", Some("tmpfs"), &options, libc::MOUNT_ATTR_RDONLY)
    } else {
        mount::clone_tree_at(null, false)
    };
    tree.and_then(|tree| mount::attach(&tree, &target))
        .context(|| format!("mask {}", path.display()))
}
