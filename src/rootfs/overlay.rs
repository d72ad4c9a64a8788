//! The overlay that makes a root of image layers (overlayfs.rst).
//!
//! *Invariants:* as many layers work as overlay takes (500): one by one with `lowerdir+` where the kernel has it, otherwise named by
//! descriptor numbers, short enough for the one page that mount(2) takes. It lives in the container's mount namespace and goes with it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags};
use serde::Serialize;

use super::{Context, Error, attach_root, open, refuse};
use crate::sys::mount::explained;

/// What mount(2) takes of options, in bytes; it cuts the rest off without a word.
const PAGE: usize = 4096;

/// What the overlay is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layers {
    /// Read-only layers, lowest first.
    pub lower: Vec<PathBuf>,
    /// Changes.
    pub upper: PathBuf,
    /// Work folder on the file system of `upper`.
    pub work: PathBuf,
    /// Attributes as `user.overlay.*`: what a user namespace may write.
    pub userxattr: bool,
}

impl Layers {
    /// All folders, opened: `upper`, `work`, then the layers, highest first.
    pub fn open(&self) -> Result<Vec<OwnedFd>, Error> {
        [&self.upper, &self.work]
            .into_iter()
            .chain(self.lower.iter().rev())
            .map(|path| open(path, OFlags::PATH | OFlags::DIRECTORY))
            .collect()
    }

    /// Mounts the overlay over `target` and opens its root. `opened` as [`Layers::open`] gave it, or empty to use the paths.
    pub fn mount(&self, target: &Path, opened: &[OwnedFd]) -> Result<OwnedFd, Error> {
        if self.lower.is_empty() {
            return refuse("mount an overlay".to_owned(), "it has no layer");
        }
        let paths: Vec<PathBuf> = if opened.is_empty() {
            [&self.upper, &self.work]
                .into_iter()
                .chain(self.lower.iter().rev())
                .cloned()
                .collect()
        } else {
            opened
                .iter()
                .map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()).into())
                .collect()
        };
        match self.detached(&paths)? {
            None => self.legacy(target, opened),
            Some(tree) => attach_root(&tree, target),
        }
    }

    /// With one parameter for each layer; `None` where the kernel does not know it.
    fn detached(&self, paths: &[PathBuf]) -> Result<Option<OwnedFd>, Error> {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .context(|| "open the overlay file system".to_owned())?;
        // before Linux 6.5 every parameter is taken and pasted into one page of text that fails at the end: ask with a wrong one
        match rustix::mount::fsconfig_set_flag(&context, "no_such_parameter") {
            Ok(()) => return Ok(None),
            // reads away what the kernel says about it
            Err(error) => drop(explained(&context, error)),
        }
        let (changes, lower) = paths.split_at(2.min(paths.len()));
        for (index, path) in lower.iter().enumerate() {
            match rustix::mount::fsconfig_set_string(&context, "lowerdir+", path.as_path()) {
                // the file system takes no `lowerdir+`
                Err(Errno::INVAL) if index == 0 => return Ok(None),
                other => other
                    .map_err(|error| explained(&context, error))
                    .context(|| format!("add layer {} to the overlay", path.display()))?,
            }
        }
        let configure = || {
            for (key, path) in ["upperdir", "workdir"].iter().zip(changes) {
                rustix::mount::fsconfig_set_string(&context, *key, path.as_path())?;
            }
            if self.userxattr {
                rustix::mount::fsconfig_set_flag(&context, "userxattr")?;
            }
            rustix::mount::fsconfig_create(&context)?;
            rustix::mount::fsmount(
                &context,
                FsMountFlags::FSMOUNT_CLOEXEC,
                MountAttrFlags::empty(),
            )
        };
        configure()
            .map(Some)
            .map_err(|error| explained(&context, error))
            .context(|| {
                format!(
                    "mount an overlay of {} layers with changes in {}",
                    lower.len(),
                    self.upper.display()
                )
            })
    }

    /// With mount(2), which takes one page of options: the layers are named by their descriptors, from within `/proc/self/fd`.
    pub fn legacy(&self, target: &Path, opened: &[OwnedFd]) -> Result<OwnedFd, Error> {
        let what = || format!("mount an overlay of {} layers", self.lower.len());
        let ours = if opened.is_empty() {
            self.open()?
        } else {
            Vec::new()
        };
        let opened = if opened.is_empty() { &ours } else { opened };
        let options = options(opened, self.userxattr);
        if options.len() >= PAGE {
            return refuse(
                what(),
                "too many layers for this kernel, Linux 6.5 takes more",
            );
        }
        let data = std::ffi::CString::new(options)
            .map_err(std::io::Error::from)
            .context(what)?;
        let target = std::path::absolute(target).context(what)?;
        rustix::process::chdir("/proc/self/fd").context(|| "enter /proc/self/fd".to_owned())?;
        rustix::mount::mount(
            "overlay",
            &target,
            "overlay",
            MountFlags::empty(),
            Some(data.as_c_str()),
        )
        .context(what)?;
        rustix::process::chdir("/").context(|| "leave /proc/self/fd".to_owned())?;
        open(&target, OFlags::PATH | OFlags::DIRECTORY)
    }
}

/// Option text for mount(2) of descriptors in the order of [`Layers::open`].
fn options(opened: &[OwnedFd], userxattr: bool) -> String {
    let numbers: Vec<String> = opened.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    let (changes, lower) = numbers.split_at(2.min(numbers.len()));
    let mut options = format!("lowerdir={}", lower.join(":"));
    for (key, number) in ["upperdir", "workdir"].iter().zip(changes) {
        options.push_str(&format!(",{key}={number}"));
    }
    if userxattr {
        options.push_str(",userxattr");
    }
    options
}
