//! The overlay that makes a root of image layers (overlayfs.rst).
//!
//! *Invariants:* any number of layers works: `lowerdir+` where the kernel has it, otherwise paths relative to the store, short enough
//! for the one page that mount(2) takes. It lives in the container's mount namespace and goes with it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags};

use super::{Context, Error, attach_root, open, refuse};
use crate::sys::mount::explained;

/// What the overlay is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        match self.detached(&paths) {
            // `lowerdir+` is unknown
            Err(error) if error.source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.legacy(target)
            }
            Err(error) => Err(error),
            Ok(tree) => attach_root(&tree, target),
        }
    }

    /// With one parameter for each layer. An unknown parameter is a bare EINVAL; anything else carries the kernel's words.
    fn detached(&self, paths: &[PathBuf]) -> Result<OwnedFd, Error> {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .context(|| "open the overlay file system".to_owned())?;
        let (changes, lower) = paths.split_at(2.min(paths.len()));
        for (index, path) in lower.iter().enumerate() {
            match rustix::mount::fsconfig_set_string(&context, "lowerdir+", path.as_path()) {
                Err(Errno::INVAL) if index == 0 => {
                    return Err(Errno::INVAL).context(|| "add a layer one by one".to_owned());
                }
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
            .map_err(|error| match explained(&context, error) {
                // not to be taken for an unknown parameter
                plain if plain.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    std::io::Error::new(plain.kind(), plain.to_string())
                }
                explained => explained,
            })
            .context(|| {
                format!(
                    "mount an overlay of {} layers with changes in {}",
                    lower.len(),
                    self.upper.display()
                )
            })
    }

    /// With mount(2), from the folder that the layers have in common.
    fn legacy(&self, target: &Path) -> Result<OwnedFd, Error> {
        let what = || format!("mount an overlay of {} layers", self.lower.len());
        let (base, options) = self.options();
        rustix::process::chdir(&base).context(|| format!("enter {}", base.display()))?;
        let data = std::ffi::CString::new(options)
            .map_err(std::io::Error::from)
            .context(what)?;
        rustix::mount::mount(
            "overlay",
            target,
            "overlay",
            MountFlags::empty(),
            Some(data.as_c_str()),
        )
        .context(what)?;
        rustix::process::chdir("/").context(|| "leave the store".to_owned())?;
        open(target, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The layers' common folder and the option text relative to it.
    fn options(&self) -> (PathBuf, String) {
        let mut base = self
            .lower
            .first()
            .and_then(|path| path.parent())
            .unwrap_or(Path::new("/"));
        while !self.lower.iter().all(|path| path.starts_with(base)) {
            base = base.parent().unwrap_or(Path::new("/"));
        }
        let lower: Vec<String> = self
            .lower
            .iter()
            .rev()
            .map(|path| escape(path.strip_prefix(base).unwrap_or(path)))
            .collect();
        let mut options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            escape(&self.upper),
            escape(&self.work)
        );
        if self.userxattr {
            options.push_str(",userxattr");
        }
        (base.to_owned(), options)
    }
}

/// Characters with a meaning in overlay's option text.
fn escape(path: &Path) -> String {
    let mut out = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, '\\' | ':' | ',') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_options_are_relative() {
        let layers = Layers {
            lower: vec!["/s/l/1".into(), "/s/l/2:b".into(), "/s/m/3".into()],
            upper: "/r/u".into(),
            work: "/r/w".into(),
            userxattr: true,
        };
        let want = "lowerdir=m/3:l/2\\:b:l/1,upperdir=/r/u,workdir=/r/w,userxattr";
        assert_eq!(layers.options(), (PathBuf::from("/s"), want.to_owned()));
    }
}
