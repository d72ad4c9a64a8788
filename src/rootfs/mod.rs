//! The container's file system: root, mounts, devices, masks, pivot.
//!
//! It runs in the container's mount namespace, mostly its own, takes [`Step`]s one after another and decides nothing that they do not say.
//!
//! *Invariants:*
//! * Every path inside the root is resolved beneath the descriptor of the root (openat2 `RESOLVE_IN_ROOT`); no name is joined and
//!   used outside. Mounts are attached to open descriptors, so nothing can be swapped between check and use.
//! * Later mounts of the host do not come in, and ours do not go out, but for mounts that are asked to be tied to the host's.
//!
//! The steps and their order come from [`crate::container::plan`]; [`crate::init`] hands them to [`Work`].

mod copyup;
pub mod devices;
mod entry;
mod mask;
pub mod options;
pub mod overlay;
mod pivot;
pub mod resolve;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use serde::Serialize;

use crate::sys::mount::{self, Attributes};
use devices::Device;
pub use entry::{Keep, Mount, Source, SourceMap};
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

/// One step on the file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Cut what propagates between the host's mounts and ours; what was opened before stays tied to them.
    Isolate,
    /// In the caller's own mount namespace, which nothing may be changed in: what is opened from now on is cut off one by one.
    CutOff,
    /// Open the folder that is the root, with the mounts below.
    OpenRoot {
        /// The folder.
        path: PathBuf,
        /// Later mounts of the host come in.
        follow_host: bool,
    },
    /// Open the layers of the root, before the process takes ids that may not reach them.
    OpenLayers(Layers),
    /// Open the source of a mount or of a device.
    OpenSource {
        /// The number under which the mount finds it.
        source: usize,
        /// Path outside.
        path: PathBuf,
        /// Where it goes, for messages.
        destination: PathBuf,
        /// With the mounts below.
        recursive: bool,
        /// Not the path itself but this one in it; links in it lead nowhere else.
        beneath: Option<PathBuf>,
    },
    /// Open the source of a mount in the root, with what is mounted there by now.
    OpenInside {
        /// The number under which the mount finds it.
        source: usize,
        /// Path inside.
        path: PathBuf,
        /// With the mounts below.
        recursive: bool,
    },
    /// Have the parent, who may do that, give an opened source an id map.
    MapSource {
        /// Its number.
        source: usize,
        /// The map.
        map: SourceMap,
    },
    /// Open the host's null device, which masks files.
    OpenNull,
    /// Mount what [`Step::OpenRoot`] opened over its own folder.
    MountRoot,
    /// Take the host's `/proc`, `/sys` and `/dev` out of the root, which gets its own, and make it read-only with all else that is
    /// mounted below it.
    SealRoot,
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
    /// Bind a device of the host, which is to be the same one.
    BindDevice {
        /// What it is to be.
        device: Device,
        /// The number of the opened one.
        source: usize,
    },
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
    /// Make the root the root of the process alone: its mount namespace is the caller's.
    ChangeRoot,
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
    /// Where the root goes: the folder that it was opened as.
    folder: Option<OwnedFd>,
    layers: Vec<OwnedFd>,
    sources: BTreeMap<usize, OwnedFd>,
    null: Option<OwnedFd>,
    /// The tmpfs that hides folders.
    empty: Option<OwnedFd>,
    /// Mounts that become read-only once they are filled.
    late: Vec<(OwnedFd, PathBuf)>,
    /// Mounts of proc and sysfs by place: masks inside them do not depend on what has that name in the root by now.
    kernel: Vec<(PathBuf, OwnedFd)>,
    /// Trees of the host are made private as they are opened.
    cut_off: bool,
    /// Folder of the last device: most are in the same one.
    devices: Option<(PathBuf, OwnedFd)>,
}

impl Work {
    /// Takes one step. The order is the plan's: a step whose ground is missing is an error.
    pub fn take(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Isolate => isolate()?,
            Step::CutOff => self.cut_off = true,
            Step::OpenRoot { path, follow_host } => self.open_root(path, *follow_host)?,
            Step::OpenLayers(layers) => self.layers = layers.open()?,
            Step::OpenSource {
                source,
                path,
                destination,
                recursive,
                beneath,
            } => {
                let what = || {
                    let (path, at) = (path.display(), destination.display());
                    format!("open {path} to mount it on {at}")
                };
                let tree = match beneath {
                    None => mount::clone_tree(path, *recursive)
                        .map_err(unbindable)
                        .context(what)?,
                    Some(beneath) => clone_beneath(path, beneath, *recursive)?,
                };
                self.cut(&tree).context(what)?;
                self.sources.insert(*source, tree);
            }
            Step::OpenInside {
                source,
                path,
                recursive,
            } => {
                let tree = clone_inside(self.root()?, path, *recursive)?;
                self.sources.insert(*source, tree);
            }
            Step::MapSource { .. } => {
                return refuse(
                    "map the ids of a mount".to_owned(),
                    "only the parent may do that",
                );
            }
            Step::OpenNull => self.null = Some(devices::null()?),
            Step::MountRoot => self.mount_root()?,
            Step::SealRoot => pivot::seal(self.root()?)?,
            Step::MountOverlay { path, layers } => {
                self.root = Some(layers.mount(path, &self.layers)?);
                self.layers.clear();
            }
            Step::Mount(mount) => {
                self.devices = None;
                self.mount(mount)?;
            }
            Step::Device(device) => {
                let folder = self.device_folder(&device.path)?;
                if !devices::make_node(folder, device)? {
                    // not allowed, as in a container without CAP_MKNOD: the host's own, then
                    let source = mount::clone_tree(&device.path, false)
                        .context(|| format!("open device {}", device.path.display()))?;
                    devices::bind(self.root()?, device, &source)?;
                }
            }
            Step::BindDevice { device, source } => {
                let source = self.take_source(*source, &device.path)?;
                devices::bind(self.root()?, device, &source)?;
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
                mask::make_readonly(from, &rest, path)?;
            }
            Step::Mask(path) => self.mask(path)?,
            Step::Pivot => pivot::pivot(self.root()?)?,
            Step::MoveRoot => pivot::move_root(self.root()?)?,
            Step::ChangeRoot => pivot::change_root(self.root()?)?,
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

    /// An opened source.
    pub fn source(&self, number: usize) -> Result<&OwnedFd, Error> {
        match self.sources.get(&number) {
            Some(source) => Ok(source),
            None => refuse(format!("use source {number}"), "it was not opened"),
        }
    }

    fn take_source(&mut self, number: usize, at: &Path) -> Result<OwnedFd, Error> {
        match self.sources.remove(&number) {
            Some(source) => Ok(source),
            None => refuse(
                format!("mount on {}", at.display()),
                "its source was not opened",
            ),
        }
    }

    fn open_root(&mut self, path: &Path, follow_host: bool) -> Result<(), Error> {
        let what = || format!("open the root file system {}", path.display());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, path, flags, Mode::empty()).context(what)?;
        let tree = mount::clone_tree_at(&folder, true).context(what)?;
        self.cut(&tree).context(what)?;
        if follow_host {
            mount::set_attributes(&tree, true, propagating(libc::MS_SLAVE)).context(what)?;
        }
        (self.root, self.folder) = (Some(tree), Some(folder));
        Ok(())
    }

    /// Unmounting a tree that shares with the host's would unmount what is below there too (mount_namespaces(7)).
    fn cut(&self, tree: &OwnedFd) -> io::Result<()> {
        match self.cut_off {
            true => mount::set_attributes(tree, true, propagating(libc::MS_PRIVATE)),
            false => Ok(()),
        }
    }

    /// The root is attached where its folder was opened, whatever the path leads to by now; its descriptor stays good for that.
    fn mount_root(&mut self) -> Result<(), Error> {
        let what = || "mount the root file system on its folder".to_owned();
        match (&self.root, self.folder.take()) {
            (Some(tree), Some(folder)) => mount::attach(tree, &folder).context(what),
            _ => refuse(what(), "it was not opened"),
        }
    }

    /// The folder of a device, made when missing.
    fn device_folder(&mut self, path: &Path) -> Result<&OwnedFd, Error> {
        let parent = match resolve::clean(path).parent() {
            Some(parent) => parent.to_owned(),
            None => return refuse(format!("make device {}", path.display()), "it needs a name"),
        };
        let folder = match self.devices.take() {
            Some((place, folder)) if place == parent => folder,
            _ => resolve::make(self.root()?, &parent, Kind::Folder)?,
        };
        Ok(&self.devices.insert((parent, folder)).1)
    }

    fn mask(&mut self, path: &Path) -> Result<(), Error> {
        let Some(null) = &self.null else {
            return refuse("mask paths".to_owned(), "the null device was not opened");
        };
        let (from, rest) = self.place(path)?;
        if let Some(empty) = mask::mask(from, &rest, path, null, self.empty.as_ref())? {
            self.empty = Some(empty);
        }
        Ok(())
    }
}

/// Cuts propagation.
fn isolate() -> Result<(), Error> {
    let host = open(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
    mount::set_attributes(&host, true, propagating(libc::MS_PRIVATE))
        .context(|| "make the mounts of the host private".to_owned())
}

/// A propagation type as an attribute.
fn propagating(kind: u64) -> Attributes {
    Attributes {
        propagation: kind,
        ..Attributes::default()
    }
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

/// open_tree(2) tells of two things with a bare EINVAL (mount_namespaces(7), "Restrictions on mount namespaces").
fn unbindable(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::new(
            error.kind(),
            format!(
                "{error}: it is unbindable, or has mounts below that a user namespace may not leave out (rbind)"
            ),
        ),
        _ => error,
    }
}

/// A detached copy of a path in a folder whose content nobody trusts.
fn clone_beneath(folder: &Path, path: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let root = open(folder, OFlags::PATH | OFlags::DIRECTORY)?;
    let what = || format!("open {} in {} to bind it", path.display(), folder.display());
    let place = resolve::open(&root, path, OFlags::PATH, ResolveFlags::IN_ROOT).context(what)?;
    mount::clone_tree_at(&place, recursive).context(what)
}

/// A detached copy of a path in the root.
fn clone_inside(root: &OwnedFd, path: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let what = || format!("open {} in the root to bind it", path.display());
    let place = resolve::open(root, path, OFlags::PATH, ResolveFlags::IN_ROOT).context(what)?;
    mount::clone_tree_at(&place, recursive).context(what)
}
