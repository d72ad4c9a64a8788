//! The container's file system: root, mounts, devices, masks, pivot.
//!
//! It runs in the container's own mount namespace, takes [`Step`]s one after another and decides nothing that they do not say.
//!
//! *Invariants:*
//! * Every path inside the root is resolved beneath the descriptor of the root (openat2 `RESOLVE_IN_ROOT`); no name is joined and
//!   used outside. Mounts are attached to open descriptors, so nothing can be swapped between check and use.
//! * A mount has its final flags before it becomes visible; only a tmpfs becomes read-only late, after what is mounted inside.
//!
//! The steps and their order come from [`crate::container::plan`]; [`crate::init`] hands them to [`Work`].

pub mod devices;
pub mod options;
pub mod overlay;
mod pivot;
pub mod resolve;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde::Serialize;

use crate::sys::mount::{self, Attributes};
use devices::Device;
use overlay::Layers;
use resolve::Kind;

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

/// One entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Path inside the root.
    pub destination: PathBuf,
    /// What is mounted.
    pub source: Source,
    /// Flags of the mount itself.
    #[serde(serialize_with = "options::attribute_words")]
    pub attributes: Attributes,
    /// Flags of the mount and of all below it.
    #[serde(serialize_with = "options::attribute_words")]
    pub recursive: Attributes,
    /// Becomes read-only at [`Step::LateReadonly`].
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
    },
    /// The next source that was opened.
    Bind,
    /// As many sources as there are names, folders of a tmpfs: the container's own cgroups of version 1.
    CgroupV1(Vec<String>),
}

impl Source {
    /// A new mount of what the kernel shows of itself.
    fn is_kernel_tree(&self) -> bool {
        matches!(self, Source::Filesystem { fstype, .. } if fstype == "proc" || fstype == "sysfs")
    }
}

/// One step on the file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Cut what propagates between the host's mounts and ours.
    Isolate {
        /// Later mounts of the host still come in.
        follow_host: bool,
    },
    /// Open the folder that is the root, with the mounts below.
    OpenRoot(PathBuf),
    /// Open the layers of the root, before the process takes ids that may not reach them.
    OpenLayers(Layers),
    /// Open the source of a mount; each [`Step::Mount`] and [`Step::BindDevice`] takes as many as it needs, in the same order.
    OpenSource {
        /// Path outside.
        path: PathBuf,
        /// With the mounts below.
        recursive: bool,
        /// Not the path itself but this one in it; links in it lead nowhere else.
        beneath: Option<PathBuf>,
    },
    /// Open the host's null device, which masks files.
    OpenNull,
    /// Mount what [`Step::OpenRoot`] opened over its own folder.
    MountRoot(PathBuf),
    /// Mount an overlay as root over a folder.
    MountOverlay {
        /// The folder.
        path: PathBuf,
        /// What it is made of.
        layers: Layers,
    },
    /// Mount one entry.
    Mount(Mount),
    /// Make a device node.
    Device(Device),
    /// Bind a device of the host.
    BindDevice(PathBuf),
    /// Make the links and the `ptmx` of `/dev`.
    DeviceLinks,
    /// Make a folder that is missing.
    Folder(PathBuf),
    /// Make the mounts read-only that had to be filled first.
    LateReadonly,
    /// Make a path read-only.
    Readonly(PathBuf),
    /// Hide a path.
    Mask(PathBuf),
    /// Make the root the root of the process and of its mount namespace.
    Pivot,
    /// The same without pivot_root(2), which a root file system in RAM does not allow: the host's tree stays below ours.
    MoveRoot,
    /// `rootfsPropagation`, of the finished root.
    RootPropagation {
        /// `MS_*`.
        #[serde(serialize_with = "options::propagation_word")]
        kind: u64,
        /// For all below.
        recursive: bool,
    },
    /// The root itself is read-only.
    RootReadonly,
}

/// What the steps leave to later ones.
#[derive(Debug, Default)]
pub struct Work {
    root: Option<OwnedFd>,
    layers: Vec<OwnedFd>,
    sources: VecDeque<OwnedFd>,
    null: Option<OwnedFd>,
    /// Mounts that become read-only once they are filled.
    late: Vec<(OwnedFd, PathBuf)>,
    /// Mounts of proc and sysfs by place: masks inside them do not depend on what has that name in the root by now.
    kernel: Vec<(PathBuf, OwnedFd)>,
}

impl Work {
    /// Takes one step. The order is the plan's: a step whose ground is missing is an error.
    pub fn take(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Isolate { follow_host } => isolate(*follow_host)?,
            Step::OpenRoot(path) => self.root = Some(clone(path, true)?),
            Step::OpenLayers(layers) => self.layers = layers.open()?,
            Step::OpenSource {
                path,
                recursive,
                beneath,
            } => self.sources.push_back(match beneath {
                None => clone(path, *recursive)?,
                Some(beneath) => clone_beneath(path, beneath, *recursive)?,
            }),
            Step::OpenNull => self.null = Some(devices::null()?),
            Step::MountRoot(path) => self.root = Some(attach_root(self.root()?, path)?),
            Step::MountOverlay { path, layers } => {
                self.root = Some(layers.mount(path, &self.layers)?);
                self.layers.clear();
            }
            Step::Mount(mount) => self.mount(mount)?,
            Step::Device(device) => devices::make_node(self.root()?, device)?,
            Step::BindDevice(path) => {
                let source = self.source(path)?;
                devices::bind(self.root()?, path, &source)?;
            }
            Step::DeviceLinks => devices::links(self.root()?)?,
            Step::Folder(path) => drop(resolve::make(self.root()?, path, Kind::Folder)?),
            Step::LateReadonly => {
                for (tree, path) in self.late.drain(..) {
                    mount::set_attributes(&tree, false, read_only())
                        .context(|| format!("make {} read-only", path.display()))?;
                }
            }
            Step::Readonly(path) => {
                let (from, rest) = self.place(path)?;
                make_readonly(from, &rest, path)?;
            }
            Step::Mask(path) => match &self.null {
                Some(null) => {
                    let (from, rest) = self.place(path)?;
                    mask(from, &rest, path, null)?;
                }
                None => return refuse("mask paths".to_owned(), "the null device was not opened"),
            },
            Step::Pivot => pivot::pivot(self.root()?)?,
            Step::MoveRoot => pivot::move_root(self.root()?)?,
            Step::RootPropagation { kind, recursive } => {
                pivot::propagation(self.root()?, *kind, *recursive)?;
            }
            Step::RootReadonly => {
                mount::set_attributes(self.root()?, false, read_only())
                    .context(|| "make the root read-only".to_owned())?;
            }
        }
        Ok(())
    }

    /// The root's descriptor.
    pub fn root(&self) -> Result<&OwnedFd, Error> {
        match &self.root {
            Some(root) => Ok(root),
            None => refuse("use the root".to_owned(), "it was not opened"),
        }
    }

    /// Where a path begins, a mount of the kernel's or the root, and what is left of it.
    fn place(&self, path: &Path) -> Result<(&OwnedFd, PathBuf), Error> {
        let clean = resolve::clean(path);
        let inside = self.kernel.iter().find_map(|(place, tree)| {
            Some((tree, Path::new("/").join(clean.strip_prefix(place).ok()?)))
        });
        match inside {
            Some(found) => Ok(found),
            None => Ok((self.root()?, clean)),
        }
    }

    /// The next opened source.
    fn source(&mut self, path: &Path) -> Result<OwnedFd, Error> {
        match self.sources.pop_front() {
            Some(source) => Ok(source),
            None => refuse(
                format!("mount on {}", path.display()),
                "its source was not opened",
            ),
        }
    }

    fn mount(&mut self, mount: &Mount) -> Result<(), Error> {
        let at = &mount.destination;
        let (tree, target) = match &mount.source {
            Source::Bind => {
                let tree = self.source(at)?;
                let target = resolve::mount_point(self.root()?, mount, Some(&tree))?;
                (tree, target)
            }
            Source::CgroupV1(folders) => {
                let trees = folders.iter().map(|_| self.source(at));
                let trees = trees.collect::<Result<Vec<_>, _>>()?;
                let target = resolve::mount_point(self.root()?, mount, None)?;
                return mount_cgroups(self.root()?, mount, &target, folders.iter().zip(trees));
            }
            Source::Filesystem {
                fstype,
                source,
                options,
            } => {
                let target = resolve::mount_point(self.root()?, mount, None)?;
                let tree = mount::new_filesystem(fstype, source.as_deref(), options, 0)
                    .context(|| format!("mount {fstype} on {}", at.display()))?;
                (tree, target)
            }
        };
        mount::set_attributes(&tree, true, mount.recursive)
            .and_then(|()| mount::set_attributes(&tree, false, mount.attributes))
            .context(|| format!("set the flags of the mount on {}", at.display()))?;
        mount::attach(&tree, &target).context(|| format!("mount on {}", at.display()))?;
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

/// Cuts propagation.
fn isolate(follow_host: bool) -> Result<(), Error> {
    let host = open(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
    let attributes = Attributes {
        propagation: if follow_host {
            libc::MS_SLAVE
        } else {
            libc::MS_PRIVATE
        },
        ..Attributes::default()
    };
    mount::set_attributes(&host, true, attributes)
        .context(|| "make the mounts of the host private".to_owned())
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

/// The container's own cgroups as folders of a tmpfs.
fn mount_cgroups<'a>(
    root: &OwnedFd,
    mount: &Mount,
    target: &OwnedFd,
    folders: impl Iterator<Item = (&'a String, OwnedFd)>,
) -> Result<(), Error> {
    let at = &mount.destination;
    let what = || format!("mount the cgroups on {}", at.display());
    let tmpfs = mount::new_filesystem("tmpfs", Some("cgroup"), &["mode=755".to_owned()], 0)
        .context(what)?;
    mount::attach(&tmpfs, target).context(what)?;
    for (name, tree) in folders {
        let place = resolve::make(root, &at.join(name), Kind::Folder)?;
        mount::set_attributes(&tree, false, mount.attributes)
            .and_then(|()| mount::attach(&tree, &place))
            .context(|| format!("mount the cgroup {name} on {}", at.display()))?;
    }
    mount::set_attributes(&tmpfs, false, mount.attributes).context(what)
}

/// Binds a path onto itself, read-only with all below. A path that is not there is fine.
fn make_readonly(from: &OwnedFd, rest: &Path, path: &Path) -> Result<(), Error> {
    let Some(target) = resolve::existing(from, rest)? else {
        return Ok(());
    };
    let tree = mount::clone_tree_at(&target, true)
        .context(|| format!("bind {} onto itself", path.display()))?;
    mount::set_attributes(&tree, true, read_only())
        .and_then(|()| mount::attach(&tree, &target))
        .context(|| format!("make {} read-only", path.display()))
}

/// Hides a file under the host's `/dev/null` (checked, not the container's) and a folder under an empty tmpfs.
fn mask(from: &OwnedFd, rest: &Path, path: &Path, null: &OwnedFd) -> Result<(), Error> {
    let Some(target) = resolve::existing(from, rest)? else {
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
