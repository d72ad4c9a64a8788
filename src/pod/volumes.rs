//! Volumes: named ones below `<root>/volumes`, nameless ones in the pod's data. A new, empty one is filled with what the
//! image has at its place, as in Docker.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use super::borrowed::with_borrowed;
use super::bundle;
use super::layout::{Folders, PodDir, ServiceDir};
use super::record::{self, ImageFacts, Pod};
use super::{Error, Result, lock};
use crate::compose::project::{MountSource, Volume};
use crate::rootfs::overlay::Layers;
use crate::rootfs::resolve::{self, Kind};

/// `volume.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Version of this file's form.
    pub version: u32,
    /// Name.
    pub name: String,
    /// RFC 3339.
    pub created: String,
    /// Pod that made it.
    pub project: String,
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// Refuses an external volume that does not exist.
pub fn check_external<'a>(
    folders: &Folders,
    volumes: impl Iterator<Item = &'a Volume>,
) -> Result<()> {
    for volume in volumes.filter(|volume| volume.external) {
        let data = folders.volume(&volume.name).join("_data");
        if !data.is_dir() {
            return Err(Error::Other(format!(
                "volume {} is external and does not exist (looked for {})",
                volume.name,
                data.display()
            )));
        }
    }
    Ok(())
}

/// Makes the named volumes of a project that are not there yet.
pub fn create<'a>(
    folders: &Folders,
    project: &str,
    volumes: impl Iterator<Item = &'a Volume>,
) -> Result<()> {
    for volume in volumes.filter(|volume| !volume.external) {
        let dir = folders.volume(&volume.name);
        let data = dir.join("_data");
        if data.is_dir() {
            continue;
        }
        make(&dir, 0o711)?;
        let record = VolumeRecord {
            version: record::VERSION,
            name: volume.name.clone(),
            created: record::now(),
            project: project.to_string(),
            labels: volume.labels.clone(),
        };
        record::write(&dir.join("volume.json"), &record)?;
        make(&data, 0o755)?;
    }
    Ok(())
}

fn make(dir: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .map_err(Error::io("make", dir))
}

/// Removes the named volumes that the project made; missing is success, and one that another project made stays.
pub fn remove(folders: &Folders, project: &str, volumes: &[&Volume]) -> Vec<Error> {
    let mut failed = Vec::new();
    for volume in volumes.iter().filter(|v| !v.external) {
        let dir = folders.volume(&volume.name);
        match record::read::<VolumeRecord>(&dir.join("volume.json")) {
            Ok(Some(record)) if record.project != project => continue,
            Ok(_) => {}
            Err(error) => {
                failed.push(error);
                continue;
            }
        }
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                failed.push(Error::io("remove", &dir)(error));
            }
            _ => {}
        }
    }
    failed
}

/// A service has a volume that [`populate`] has to look after.
pub fn any(pod: &Pod) -> bool {
    pod.project.services.iter().any(|(name, service)| {
        let of_image = pod
            .images
            .get(name)
            .is_some_and(|image| !bundle::image_volumes(service, image).is_empty());
        let own = |m: &crate::compose::project::Mount| {
            matches!(
                m.source,
                MountSource::Volume { .. } | MountSource::Anonymous
            )
        };
        of_image || service.volumes.iter().any(own)
    })
}

/// Fills every new volume of a pod. Must run in a single-threaded process of its own: it leaves the mount namespace.
pub fn populate(dir: &Path) -> Result<()> {
    let pod: Pod = record::read(&dir.join("pod.json"))?
        .ok_or_else(|| Error::Other(format!("no pod in {}", dir.display())))?;
    let pod_dir = PodDir::open(dir, &pod.root);
    let _only = lock::acquire(&pod_dir.sandbox_lock())?;
    let mut private = false;
    for (name, service) in &pod.project.services {
        let service_dir = pod_dir.service(name);
        let Some(image) = pod.images.get(name) else {
            continue;
        };
        let whole = with_borrowed(&pod, &pod_dir, service);
        let mut wanted: Vec<(PathBuf, String)> = bundle::image_volumes(&whole, image)
            .into_iter()
            .map(|target| (bundle::anonymous_volume(&service_dir, &target), target))
            .collect();
        for mount in &service.volumes {
            let (fill, sub) = match &mount.source {
                MountSource::Volume {
                    nocopy, subpath, ..
                } => (!nocopy && subpath.is_none(), subpath.as_deref()),
                MountSource::Anonymous => (true, None),
                _ => continue,
            };
            let data = bundle::volume_dir(&pod, &service_dir, &mount.source, &mount.target)?;
            if fill {
                wanted.push((data, mount.target.clone()));
                continue;
            }
            make(&data, 0o755)?;
            if let Some(sub) = sub {
                let root = open_folder(&data)?;
                resolve::make(&root, Path::new(sub), Kind::Folder).map_err(|error| {
                    Error::Other(format!(
                        "volume {}: {error}: {}",
                        data.display(),
                        error.source
                    ))
                })?;
            }
        }
        wanted.retain(|(data, _)| is_new(data));
        if wanted.is_empty() {
            continue;
        }
        if !private {
            leave_mount_namespace()?;
            private = true;
        }
        let root = service_dir.dir.join("rootfs");
        mount_image(image, &service_dir, &root)?;
        for (data, target) in wanted {
            fill(&root, &target, &data)?;
        }
        nix::mount::umount2(&root, nix::mount::MntFlags::MNT_DETACH)
            .map_err(|error| Error::Other(format!("umount2({}): {error}", root.display())))?;
    }
    Ok(())
}

/// Not there yet, or empty.
fn is_new(data: &Path) -> bool {
    fs::read_dir(data).map_or(true, |mut entries| entries.next().is_none())
}

fn leave_mount_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|error| Error::Other(format!("unshare(CLONE_NEWNS): {error}")))?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(|error| Error::Other(format!("mount(/, rprivate): {error}")))
}

/// Shows what the container would see, in a mount namespace that ends with this process.
fn mount_image(image: &ImageFacts, service: &ServiceDir, root: &Path) -> Result<()> {
    let layers = Layers {
        lower: image.layers.clone(),
        upper: service.data.join("upper"),
        work: service.data.join("work"),
        userxattr: false,
    };
    for dir in [root, &layers.upper, &layers.work] {
        make(dir, 0o755)?;
    }
    match layers.mount(root, &[]) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Other(error.to_string())),
    }
}

fn open_folder(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| Error::io("open", path)(error.into()))
}

/// Whole or not at all: a copy that was cut short would never be taken for a new volume again.
fn fill(root: &Path, target: &str, data: &Path) -> Result<()> {
    make(data, 0o755)?;
    let open_root = open_folder(root)?;
    // a link in the image must not lead out of it
    let place = rustix::fs::openat2(
        &open_root,
        target,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let Ok(place) = place else {
        // the image has nothing there: an empty volume
        return Ok(());
    };
    use std::os::fd::AsRawFd;
    let source = PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()));
    let meta = fs::metadata(&source).map_err(Error::io("read", &source))?;
    if !meta.is_dir() {
        return Ok(());
    }
    let mut name = data.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let copy = data.with_file_name(name);
    match fs::remove_dir_all(&copy) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Error::io("remove", &copy)(error));
        }
        _ => make(&copy, 0o700)?,
    }
    copy_tree(&source, &copy, &meta)?;
    // rename(2) takes the place of an empty folder
    fs::rename(&copy, data).map_err(Error::io("rename", &copy))
}

fn copy_tree(source: &Path, target: &Path, meta: &fs::Metadata) -> Result<()> {
    let entries = fs::read_dir(source).map_err(Error::io("read", source))?;
    for entry in entries {
        let entry = entry.map_err(Error::io("read", source))?;
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        let meta = fs::symlink_metadata(&from).map_err(Error::io("read", &from))?;
        if meta.is_dir() {
            make(&to, 0o700)?;
            copy_tree(&from, &to, &meta)?;
        } else if meta.is_symlink() {
            let link = fs::read_link(&from).map_err(Error::io("read", &from))?;
            std::os::unix::fs::symlink(link, &to).map_err(Error::io("make", &to))?;
            lchown(&to, Some(meta.uid()), Some(meta.gid())).map_err(Error::io("chown", &to))?;
        } else if meta.is_file() {
            fs::copy(&from, &to).map_err(Error::io("copy", &from))?;
            own(&to, &meta)?;
        }
    }
    own(target, meta)
}

/// Owner first: chown(2) clears the setuid bit.
fn own(path: &Path, meta: &fs::Metadata) -> Result<()> {
    chown(path, Some(meta.uid()), Some(meta.gid())).map_err(Error::io("chown", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o7777))
        .map_err(Error::io("chmod", path))
}
