//! From a project to a running pod: images, volumes, the pod's folder, the keeper.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde::{Deserialize, Serialize};

use super::adopt::network_caches;
use super::control::{self, Request};
use super::layout::{self, Folders, PodDir};
use super::record::{self, ImageConfig, ImageFacts, Owner, Pod, Policy};
use super::teardown::Purpose;
use super::{Error, Result, adopt, hooks, teardown, volumes};
use crate::cgroup::Cgroup;
use crate::compose::Project;
use crate::compose::project::PullPolicy;
use crate::image::{self, Image, Progress, PullOptions, Store};
use crate::network::{Cni, gc};

/// What to bring up, and with which surroundings; as JSON what `sampan internal up` reads.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpSpec {
    /// Folders.
    pub folders: Folders,
    /// The project.
    pub project: Project,
    /// Services to start with what they depend on; empty: all.
    #[serde(default)]
    pub services: Vec<String>,
    /// `--cgroup-parent`, else the caller's own cgroup.
    #[serde(default)]
    pub cgroup_parent: Option<String>,
    /// CNI folders.
    pub cni: Cni,
    /// Failure policy.
    pub policy: Policy,
    /// `--pull`, over each service's own.
    #[serde(default)]
    pub pull: Option<PullPolicy>,
    /// How registries are reached.
    #[serde(default)]
    pub pull_options: PullOptions,
    /// Make the containers again although nothing changed.
    #[serde(default)]
    pub force_recreate: bool,
    /// Make volumes without a name anew where containers are made again.
    #[serde(default)]
    pub renew_volumes: bool,
    /// Wait for health checks too.
    #[serde(default)]
    pub wait: bool,
    /// Come back as soon as the pod has a supervisor, of which the caller asks what becomes of it ([`Request::Watch`]).
    #[serde(default)]
    pub detach: bool,
    /// Whose the pod is.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// Folder of hooks, which come before the project's own.
    #[serde(default)]
    pub hooks_dir: Option<PathBuf>,
}

/// Brings a pod up. On failure, or when SIGINT or SIGTERM comes, a pod that was made by this call is removed again, without a trace
/// but for the volumes without a name that it was given by one before it.
/// From the moment that something is made these signals stay blocked: the caller waits for them by descriptor.
pub fn up(
    mut request: UpSpec,
    images: &dyn Progress,
    progress: &mut dyn FnMut(&str, &str),
) -> Result<()> {
    let told = before_launch(&mut request, progress)?;
    up_changed(&request, &told, images, progress)
}

/// The rest of [`up`], for who has to know what the hooks made of the project: [`before_launch`] changed it, and gave `told`.
pub fn up_changed(
    request: &UpSpec,
    told: &[String],
    images: &dyn Progress,
    progress: &mut dyn FnMut(&str, &str),
) -> Result<()> {
    let folders = &request.folders;
    let dir = folders.pod(&request.project.name);
    let pod = plan(request, images)?;
    let lock = adopt::lock(folders, &dir.name)?;
    let signals = interrupts()?;
    match adopt::load(&dir)? {
        // what a killed `down` left
        Some(_) if dir.removing().exists() => teardown::finish(folders, &dir, progress)?,
        // not ours to stop: a job that is started while the last one still runs, say
        Some(running) if belongs_to_another(&running, &pod) => {
            let owner = running.owner.as_ref();
            return Err(Error::Other(format!(
                "pod {} is up and belongs to process {} ({}), which still runs; end that one first, or give this pod another name",
                dir.name,
                owner.map_or(0, |owner| owner.process.pid),
                owner.map_or("", |owner| owner.kind.as_str()),
            )));
        }
        Some(running) if same(&running, &pod) && !request.force_recreate => {
            let start = Request::Start {
                services: pod.start.clone(),
                healthy: request.wait,
            };
            // an `up` that was killed may not have made them all
            volumes::create(folders, &dir.name, pod.project.volumes.values())?;
            drop(lock);
            // one whose network could never be made has nothing to keep
            return match adopt::ask_unless(&dir, &start, Some(&signals), progress) {
                Err(error) if dir.record().exists() && !dir.sandbox().exists() => {
                    let _lock = adopt::lock(folders, &dir.name)?;
                    let left = of_before(&dir)?;
                    Err(undo(folders, &dir, left, error, progress))
                }
                answer => answer.map(|_| ()),
            };
        }
        Some(_) => {
            secure(folders, &dir, &pod, images)?;
            progress("", "changed: containers are made again");
            stop_and_remove(folders, &dir, None, Purpose::Renew, progress)?;
        }
        // what a killed `up` left
        None => teardown::remove(folders, &dir, Purpose::Finish, progress)?,
    }
    if request.renew_volumes {
        volumes::sweep(&dir, None)?;
    }
    let left = of_before(&dir)?;
    let ask = Request::Up {
        healthy: request.wait,
    };
    collect_garbage(request, progress);
    // the cgroup while no other process of ours is in the way: then this one steps aside, and those that follow with it
    let made = make(folders, &dir, &pod, images)
        .and_then(|()| {
            let mut told = told.iter();
            told.try_for_each(|text| record::event(&dir.events(), "", text))
        })
        .and_then(|()| Ok(pod.cgroup.create()?));
    if let Err(error) = made {
        return Err(undo(folders, &dir, left, error, progress));
    }
    drop(lock);
    let brought = match request.detach {
        true => adopt::ensure(&dir),
        false => adopt::ask_unless(&dir, &ask, Some(&signals), progress).map(|_| ()),
    };
    let Err(error) = brought else { return Ok(()) };
    let _lock = adopt::lock(folders, &dir.name)?;
    // another command may have removed it, and made another one of the same name: that is not ours to undo
    if !is_ours(&dir, &pod) {
        return Err(Error::Other(format!(
            "pod {} was removed by another command while it came up",
            dir.name
        )));
    }
    if let Error::Interrupted { .. } = error {
        progress("", "interrupted: what was made is removed");
        let stop = Request::Stop {
            services: Vec::new(),
            timeout: Some(0),
        };
        // what does not stop is killed by the removal
        let _ = control::ask(&dir.socket(), &stop, &mut *progress);
    }
    Err(undo(folders, &dir, left, error, progress))
}

/// Before an old pod is touched: what the new one needs is there and stays. What is held beside the old one's images when this
/// fails is so until the pod is made again or removed.
fn secure(folders: &Folders, dir: &PodDir, pod: &Pod, progress: &dyn Progress) -> Result<()> {
    volumes::check_external(folders, pod.project.volumes.values())?;
    let store = Store::open(&folders.root)?;
    store.hold_too(&dir.name, &image_ids(pod))?;
    unpack(&store, pod, progress)
}

/// Before they were held, a collection could take layers away that were there already.
fn unpack(store: &Store, pod: &Pod, progress: &dyn Progress) -> Result<()> {
    for id in image_ids(pod) {
        let image = store.resolve(&id)?;
        let image = image.ok_or(image::Error::Unknown(id))?;
        store.layers(&image, progress)?;
    }
    Ok(())
}

fn image_ids(pod: &Pod) -> Vec<String> {
    let ids = pod.images.values().map(|image| image.id.clone());
    // a folder of the host is no image
    ids.filter(|id| !id.is_empty()).collect()
}

/// What becomes of volumes without a name when the pod that is to be made has to be removed again.
fn of_before(dir: &PodDir) -> Result<Purpose> {
    Ok(match volumes::nameless(dir)?.is_empty() {
        true => Purpose::Finish,
        false => Purpose::Keep,
    })
}

/// What attachments left that are gone, on the networks that this pod is going to be on, where nobody looked for a minute. A failure
/// is told and keeps nothing from being tried.
fn collect_garbage(request: &UpSpec, progress: &mut dyn FnMut(&str, &str)) {
    let networks = request.project.networks.iter().filter(|n| n.external);
    for network in networks {
        // one that is not there is reported where it is needed
        let Ok(list) = request.cni.load(&network.name) else {
            continue;
        };
        if !gc::is_due(&request.cni, &list.name) {
            continue;
        }
        let collected = network_caches(&request.folders)
            .and_then(|caches| Ok(gc::collect(&request.cni, &list, &caches, gc::Busy::Skip)?));
        match collected {
            Ok(0) => {}
            Ok(count) => progress(
                "",
                &format!(
                    "network {}: {count} leaked addresses are free again",
                    list.name
                ),
            ),
            Err(error) => progress(
                "",
                &format!("network {}: what leaked stays: {error}", list.name),
            ),
        }
    }
}

/// Lets hooks change the project. Gives what is to be told of them.
pub fn before_launch(
    request: &mut UpSpec,
    progress: &mut dyn FnMut(&str, &str),
) -> Result<Vec<String>> {
    let mut told = Vec::new();
    let failed = |errno| Error::Other(format!("wait for signals: {errno}"));
    let mask = SigSet::thread_get_mask().map_err(failed)?;
    let signals = interrupts()?;
    let changed = hooks::before_launch(
        request.project.clone(),
        request.hooks_dir.as_deref(),
        request.owner.as_ref(),
        &signals,
        &mut |text| {
            progress("", &text);
            told.push(text);
        },
    );
    // nothing is made yet: from here on they end us, unless the caller waits for them
    mask.thread_set_mask().map_err(failed)?;
    request.project = changed?;
    Ok(told)
}

/// SIGINT and SIGTERM.
fn both_signals() -> SigSet {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGINT);
    mask.add(Signal::SIGTERM);
    mask
}

/// SIGINT and SIGTERM by descriptor.
fn interrupts() -> Result<SignalFd> {
    let failed = |errno: nix::Error| Error::Other(format!("wait for signals: {errno}"));
    let mask = both_signals();
    mask.thread_block().map_err(failed)?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}

/// The pod on disk is the one that this call made.
fn is_ours(dir: &PodDir, pod: &Pod) -> bool {
    matches!(adopt::load(dir), Ok(Some(found)) if found.created == pod.created)
}

/// Stops a pod's services in order, then removes it. The caller holds its lock. `timeout`: seconds until SIGKILL instead
/// of each service's own.
pub fn stop_and_remove(
    folders: &Folders,
    dir: &PodDir,
    timeout: Option<u64>,
    purpose: Purpose,
    progress: &mut dyn FnMut(&str, &str),
) -> Result<()> {
    stop(dir, timeout, progress)?;
    teardown::remove_patiently(folders, dir, purpose, progress)
}

/// Stops a pod's services in order, as [`stop_and_remove`] does first.
pub fn stop(
    dir: &PodDir,
    timeout: Option<u64>,
    progress: &mut dyn FnMut(&str, &str),
) -> Result<()> {
    let stop = Request::Stop {
        services: Vec::new(),
        timeout,
    };
    // a supervisor that cannot be had is no reason to leave the pod standing
    if let Some(pod) = adopt::load(dir)?
        && !dir.removing().exists()
        && was_started(dir, &pod)
        && let Err(error) = adopt::ask(dir, &stop, &mut *progress)
    {
        progress("", &format!("{error}; its containers are killed"));
    }
    Ok(())
}

/// A pod whose `up` was killed before anything of it began need not come up in order to be stopped.
fn was_started(dir: &PodDir, pod: &Pod) -> bool {
    adopt::alive(&dir.supervisor())
        || pod
            .project
            .services
            .keys()
            .any(|name| dir.service(name).status().exists())
}

fn undo(
    folders: &Folders,
    dir: &PodDir,
    purpose: Purpose,
    error: Error,
    progress: &mut dyn FnMut(&str, &str),
) -> Error {
    match teardown::remove(folders, dir, purpose, progress) {
        Ok(()) => error,
        Err(left) => Error::Several(vec![error, left]),
    }
}

/// Everything that can be known before anything is made.
fn plan(request: &UpSpec, progress: &dyn Progress) -> Result<Pod> {
    let project = &request.project;
    for name in &request.services {
        if !project.services.contains_key(name) {
            return Err(Error::Other(format!("no such service: {name}")));
        }
    }
    if let Some(owner) = &request.owner
        && !owner.process.alive()
    {
        return Err(Error::Other(format!(
            "pod {}: its owner, process {}, has ended",
            project.name, owner.process.pid
        )));
    }
    let store = Store::open(&request.folders.root)?;
    let mut images = BTreeMap::new();
    for (name, service) in &project.services {
        if let Some(folder) = &service.rootfs {
            let facts = ImageFacts {
                layers: vec![folder.clone()],
                ..ImageFacts::default()
            };
            images.insert(name.clone(), facts);
            continue;
        }
        let policy = request.pull.unwrap_or(service.pull_policy);
        let image = obtain(
            &store,
            &service.image,
            policy,
            &request.pull_options,
            progress,
        )
        .map_err(|error| Error::Start {
            code: 125,
            message: format!("{}: services.{name}.image: {error}", service.origin),
            service: Some(name.clone()),
        })?;
        images.insert(name.clone(), facts(&store, &image, progress)?);
    }
    let parent = match &request.cgroup_parent {
        Some(path) => Cgroup::at(path)?,
        None => Cgroup::own()?,
    };
    let start = if request.services.is_empty() {
        project.services.keys().cloned().collect()
    } else {
        request.services.clone()
    };
    Ok(Pod {
        version: record::VERSION,
        created: record::now(),
        project: project.clone(),
        images,
        root: request.folders.root.clone(),
        state: request.folders.state.clone(),
        cgroup: parent.child(&format!("sampan-{}", project.name)),
        cni: request.cni.clone(),
        policy: request.policy,
        start,
        pid_namespace: record::pid_namespace()?,
        owner: request.owner.clone(),
    })
}

/// The image from the store, or from its registry.
pub fn obtain(
    store: &Store,
    reference: &str,
    policy: PullPolicy,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Image> {
    if policy != PullPolicy::Always
        && let Some(image) = store.resolve(reference)?
    {
        return Ok(image);
    }
    if policy == PullPolicy::Never {
        return Err(Error::Other(format!(
            "image {reference} is not in the store and must not be pulled; import it with `sampan image import`"
        )));
    }
    image::pull(store, reference, options, progress).map_err(|error| {
        // `sampan image build` names images so
        let local = format!("localhost/{reference}");
        match store.resolve(&local) {
            Ok(Some(_)) => Error::Other(format!("{error}; the store has {local}")),
            _ if reference.starts_with("localhost/") => Error::Other(format!(
                "image {reference} is not in the store (`sampan image ls`), and there is no registry to pull it from: {error}"
            )),
            _ => error.into(),
        }
    })
}

/// What a service needs to know of its image; unpacks the layers.
pub fn facts(store: &Store, image: &Image, progress: &dyn Progress) -> Result<ImageFacts> {
    let config = image
        .raw_config
        .get("config")
        .filter(|c| !c.is_null())
        .map(ImageConfig::deserialize)
        .transpose()
        .map_err(|error| Error::Other(format!("image {}: config: {error}", image.id)))?;
    Ok(ImageFacts {
        id: image.id.clone(),
        layers: store.layers(image, progress)?,
        config: config.unwrap_or_default(),
    })
}

/// It has an owner that lives and is not the one of the wanted pod.
fn belongs_to_another(running: &Pod, wanted: &Pod) -> bool {
    let ours = wanted.owner.as_ref().map(|owner| owner.process);
    running.owner.as_ref().is_some_and(|owner| {
        running.pid_namespace == wanted.pid_namespace
            && Some(owner.process) != ours
            && owner.process.alive()
    })
}

/// The same pod, apart from when and what of it was started.
fn same(running: &Pod, wanted: &Pod) -> bool {
    let mut wanted = wanted.clone();
    wanted.created = running.created.clone();
    wanted.start = running.start.clone();
    wanted.policy = running.policy;
    wanted.pid_namespace = running.pid_namespace;
    *running == wanted
}

/// The pod's folder; its record last, for a pod exists when its record does. Volumes after that: whoever removes the pod has to know of them.
fn make(folders: &Folders, dir: &PodDir, pod: &Pod, progress: &dyn Progress) -> Result<()> {
    volumes::check_external(folders, pod.project.volumes.values())?;
    for path in [&folders.state, &folders.root] {
        private_dir(path, 0o711)?;
    }
    for path in [
        folders.pods(),
        folders.root.join("pods"),
        dir.dir.clone(),
        dir.exits(),
        dir.network(),
    ] {
        private_dir(&path, 0o700)?;
    }
    // containers with other ids reach their own files below it
    private_dir(&dir.data, 0o711)?;
    let of = dir.data.join(layout::OF);
    match std::os::unix::fs::symlink(&dir.dir, &of) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(Error::io("make", &of)(error));
        }
        _ => {}
    }
    let owned = dir.data.join(layout::OWNED);
    let marked = match pod.owner {
        Some(_) => fs::write(&owned, ""),
        None => fs::remove_file(&owned),
    };
    match marked {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Error::io("write", &owned)(error));
        }
        _ => {}
    }
    for name in pod.project.services.keys() {
        let service = dir.service(name);
        private_dir(&service.dir, 0o700)?;
        private_dir(&service.data, 0o711)?;
        for stream in ["stdout", "stderr"] {
            let pipe = service.pipe(stream);
            mkfifo(&pipe, Mode::from_bits_truncate(0o600))
                .map_err(|errno| Error::io("make", &pipe)(errno.into()))?;
        }
    }
    let store = Store::open(&folders.root)?;
    store.hold(&dir.name, &image_ids(pod))?;
    unpack(&store, pod, progress)?;
    record::put(&dir.record(), pod)?;
    volumes::create(folders, &dir.name, pod.project.volumes.values())?;
    volumes::sweep(dir, Some(pod))
}

fn private_dir(path: &Path, mode: u32) -> Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path);
    match made {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(Error::io("make", path)(error))
        }
        _ => Ok(()),
    }
}
