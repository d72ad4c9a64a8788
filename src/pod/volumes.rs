//! Volumes: named ones below `<root>/volumes`, nameless ones in the pod's data. A new, empty one is filled with what the
//! image has at its place, as in Docker.
//!
//! *Invariants:* whoever makes, fills or removes a volume has the folder that it is in locked (flock(2)): pods share named
//! ones. A volume's folder is never replaced, for a container may have it mounted, and nothing that is in it is removed. A
//! copy is on the disk as a whole before any of it is moved into the volume (`READY`), so whoever is killed in between,
//! the machine included, is followed by one who goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::borrowed::with_borrowed;
use super::bundle;
use super::layout::{Folders, PodDir, ServiceDir};
use super::record::{self, ImageFacts, Pod};
use super::{Error, Result, adopt, copy, lock, teardown};
use crate::compose::is_name;
use crate::compose::project::{MountSource, Volume};
use crate::rootfs::overlay::Layers;
use crate::rootfs::resolve::{self, Kind};

/// Beside a volume: a copy that is being made. No nameless volume is called so: its name begins with `%2F`.
const COPY: &str = ".copy";
/// Beside a volume: what is still to be moved into it ([`CONTENT`]), and its own attributes ([`ITSELF`]).
const READY: &str = ".ready";
const CONTENT: &str = "content";
const ITSELF: &str = "itself";

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
    pub labels: BTreeMap<String, String>,
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

/// Makes the named volumes of a project that are not there yet. The pod that names them has its record, so nobody removes
/// them any more; an external one may have been removed just before.
pub fn create<'a>(
    folders: &Folders,
    project: &str,
    volumes: impl Iterator<Item = &'a Volume>,
) -> Result<()> {
    for volume in volumes {
        let dir = folders.volume(&volume.name);
        if volume.external {
            let _lock = lock_at(&dir)?;
            check_external(folders, std::iter::once(volume))?;
            continue;
        }
        create_one(folders, &volume.name, project, &volume.labels)?;
    }
    Ok(())
}

/// Makes a named volume unless it is there; `project` is empty for one that a person makes.
pub fn create_one(
    folders: &Folders,
    name: &str,
    project: &str,
    labels: &BTreeMap<String, String>,
) -> Result<()> {
    if !is_name(name) {
        return Err(Error::Other(format!(
            "volume {name:?}: letters, digits, '.', '_' and '-' only, at most 128, the first one a letter or digit"
        )));
    }
    let dir = folders.volume(name);
    let data = dir.join("_data");
    let _lock = hold(&dir)?;
    if data.is_dir() {
        return Ok(());
    }
    let record = VolumeRecord {
        version: record::VERSION,
        name: name.to_string(),
        created: record::now(),
        project: project.to_string(),
        labels: labels.clone(),
    };
    record::write(&dir.join("volume.json"), &record)?;
    make(&data, 0o755)
}

/// A named volume.
#[derive(Debug)]
pub struct NamedVolume {
    /// Its name.
    pub name: String,
    /// Where its files are.
    pub data: PathBuf,
    /// None of one whose record was lost.
    pub record: Option<VolumeRecord>,
    /// Pods that name it.
    pub pods: Vec<String>,
}

/// Every named volume, by name.
pub fn all(folders: &Folders) -> Result<Vec<NamedVolume>> {
    let mut users = users(folders)?;
    let mut found = Vec::new();
    for dir in teardown::entries(&folders.volumes())? {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let data = dir.join("_data");
        // one that is just being made, or removed
        if !data.is_dir() {
            continue;
        }
        found.push(NamedVolume {
            record: record::read(&dir.join("volume.json"))?,
            pods: users.remove(&*name).unwrap_or_default(),
            name: name.into_owned(),
            data,
        });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Removes a named volume, whoever made it; one that a pod names is refused ([`Error::VolumeInUse`]).
pub fn remove_unused(folders: &Folders, name: &str) -> Result<()> {
    let dir = folders.volume(name);
    match lock_at(&dir)? {
        Some(lock) => remove_locked(folders, "", name, &lock),
        None => Ok(()),
    }
}

/// Makes and locks a folder that has volumes in it.
fn hold(dir: &Path) -> Result<File> {
    loop {
        make(dir, 0o711)?;
        if let Some(lock) = lock_at(dir)? {
            return Ok(lock);
        }
    }
}

/// `None`: there is no such folder, or it was removed while we waited.
fn lock_at(dir: &Path) -> Result<Option<File>> {
    let folder = match File::open(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io("open", dir))?,
    };
    folder.lock().map_err(Error::io("lock", dir))?;
    let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let locked = folder.metadata().map_err(Error::io("read", dir))?;
    let there = fs::metadata(dir).is_ok_and(|there| id(there) == id(locked));
    Ok(there.then_some(folder))
}

fn make(dir: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .map_err(Error::io("make", dir))
}

/// Removes the named volumes that the project made; missing is success, what another project or a person made stays. One
/// that another pod names is refused ([`Error::VolumeInUse`]).
pub fn remove(folders: &Folders, project: &str, volumes: &[&Volume]) -> Vec<Error> {
    let own = volumes.iter().filter(|v| !v.external);
    own.filter_map(|volume| remove_one(folders, project, &volume.name).err())
        .collect()
}

fn remove_one(folders: &Folders, project: &str, name: &str) -> Result<()> {
    let dir = folders.volume(name);
    // a pod that comes has its record before it asks for the volume
    let Some(lock) = lock_at(&dir)? else {
        return Ok(());
    };
    match record::read::<VolumeRecord>(&dir.join("volume.json"))? {
        Some(record) if record.project == project => {}
        None if !dir.join("_data").exists() => {}
        _ => return Ok(()),
    }
    remove_locked(folders, project, name, &lock)
}

/// `project`: the pod that may name it.
fn remove_locked(folders: &Folders, project: &str, name: &str, _lock: &File) -> Result<()> {
    let dir = folders.volume(name);
    let path = dir.join("volume.json");
    let users = users(folders)?.remove(name).unwrap_or_default();
    if let Some(pod) = users.into_iter().find(|pod| pod != project) {
        return Err(Error::VolumeInUse {
            volume: name.to_string(),
            pod,
        });
    }
    // the record last but one: without it nobody would know whose the rest is
    for entry in fs::read_dir(&dir).map_err(Error::io("read", &dir))? {
        let entry = entry.map_err(Error::io("read", &dir))?.path();
        match entry.is_dir() {
            true => remove_tree(&entry)?,
            false if entry == path => {}
            false => fs::remove_file(&entry).map_err(Error::io("remove", &entry))?,
        }
    }
    remove_tree(&dir)
}

/// The pods that name each volume.
fn users(folders: &Folders) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in adopt::names(folders)? {
        let pod = adopt::load(&folders.pod(&name))?;
        for volume in pod.iter().flat_map(|pod| pod.project.volumes.values()) {
            found
                .entry(volume.name.clone())
                .or_default()
                .push(name.clone());
        }
    }
    Ok(found)
}

/// Folders of volumes without a name that a pod, or one before it, has.
pub fn nameless(dir: &PodDir) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for service in teardown::services_in(&dir.data)? {
        found.extend(teardown::entries(&service.join(bundle::VOLUMES))?);
    }
    Ok(found)
}

/// Removes the volumes without a name that no service of the pod has any more; all of them, where there is no pod.
pub fn sweep(dir: &PodDir, pod: Option<&Pod>) -> Result<()> {
    let mut wanted = BTreeSet::new();
    for (name, service) in pod.iter().flat_map(|pod| &pod.project.services) {
        let of_image = pod.and_then(|pod| pod.images.get(name));
        let of_image = of_image.map(|image| bundle::image_volumes(service, image));
        let own = service.volumes.iter();
        let own = own.filter(|mount| matches!(mount.source, MountSource::Anonymous));
        let targets = own.map(|mount| mount.target.clone());
        for target in targets.chain(of_image.unwrap_or_default()) {
            let data = bundle::anonymous_volume(&dir.service(name), &target);
            let (_, names) = beside(&data)?;
            wanted.extend([data, names.copy, names.ready]);
        }
    }
    let found = nameless(dir)?;
    let mut gone = found.iter().filter(|path| !wanted.contains(*path));
    gone.try_for_each(|path| remove_tree(path))
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
    let mut budget = copy::Budget::default();
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
        let root = service_dir.dir.join("rootfs");
        let mut mounted = false;
        for (data, target) in wanted {
            let (dir, names) = beside(&data)?;
            let _lock = hold(dir)?;
            make(&data, 0o755)?;
            if !names.ready.exists() {
                remove_tree(&names.copy)?;
                if !is_empty(&data)? {
                    continue;
                }
                if !private {
                    leave_mount_namespace()?;
                    private = true;
                }
                if !mounted {
                    mount_image(image, &service_dir, &root)?;
                    mounted = true;
                }
                if !prepare(&root, &target, &names, &mut budget)? {
                    continue;
                }
            }
            finish(&names, &data)?;
        }
        if mounted {
            nix::mount::umount2(&root, nix::mount::MntFlags::MNT_DETACH)
                .map_err(|error| Error::Other(format!("umount2({}): {error}", root.display())))?;
        }
    }
    Ok(())
}

/// What there is beside a volume while it is filled.
struct Beside {
    copy: PathBuf,
    ready: PathBuf,
}

/// Also the folder that all of it is in.
fn beside(data: &Path) -> Result<(&Path, Beside)> {
    let (Some(dir), Some(name)) = (data.parent(), data.file_name()) else {
        return Err(Error::Other(format!("{} is no volume", data.display())));
    };
    let called = |prefix: &str| dir.join(format!("{prefix}{}", name.to_string_lossy()));
    let names = Beside {
        copy: called(COPY),
        ready: called(READY),
    };
    Ok((dir, names))
}

fn is_empty(dir: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(dir).map_err(Error::io("read", dir))?;
    Ok(entries.next().is_none())
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<()> {
    let folder = File::open(path).map_err(Error::io("open", path))?;
    rustix::fs::syncfs(&folder).map_err(|errno| Error::io("sync", path)(errno.into()))
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

/// Copies what the image has at `target`; false: it has no folder there, and the volume stays empty.
fn prepare(root: &Path, target: &str, names: &Beside, budget: &mut copy::Budget) -> Result<bool> {
    let open_root = open_folder(root)?;
    // a link in the image must not lead out of it
    let place = rustix::fs::openat2(
        &open_root,
        target,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let Ok(place) = place else {
        return Ok(false);
    };
    // with a dot, or it is the link of procfs that is looked at
    let source = PathBuf::from(format!("/proc/self/fd/{}/.", place.as_raw_fd()));
    // nobody else gets to what is in it
    make(&names.copy, 0o700)?;
    let (content, itself) = (names.copy.join(CONTENT), names.copy.join(ITSELF));
    let copied = make(&content, 0o700)
        .and_then(|()| make(&itself, 0o700))
        .and_then(|()| copy::content(&source, &content, budget))
        .and_then(|()| copy::attributes(&source, &itself));
    if let Err(error) = copied {
        // it may be what fills the disk; the error is the answer
        let _ = remove_tree(&names.copy);
        return Err(error);
    }
    sync(&names.copy)?;
    fs::rename(&names.copy, &names.ready).map_err(Error::io("rename", &names.copy))?;
    Ok(true)
}

/// Moves a copy into its volume. What is there already was written by a container, and stays.
fn finish(names: &Beside, data: &Path) -> Result<()> {
    let (content, itself) = (names.ready.join(CONTENT), names.ready.join(ITSELF));
    // not there: only the removal below is left to do
    if itself.exists() {
        for entry in fs::read_dir(&content).map_err(Error::io("read", &content))? {
            let entry = entry.map_err(Error::io("read", &content))?;
            let (from, to) = (entry.path(), data.join(entry.file_name()));
            match rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io("move", &from)(errno.into())),
            }
        }
        copy::attributes(&itself, data)?;
        sync(data)?;
        fs::remove_dir(&itself).map_err(Error::io("remove", &itself))?;
    }
    remove_tree(&names.ready)?;
    sync(data)
}
