//! Removing a pod, whatever state it is in, from what its folder says.
//!
//! Goes on after errors and reports them all; each step takes missing for done, so it can be repeated. A pod whose
//! networks can't be given back yet, because a plugin's DEL fails, stays with the reason in its mark `removing`, and
//! somebody tries again: [`remove_patiently`] for some seconds, then a process of its own, and every command.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::control::{self, QUIT, Request};
use super::layout::{self, Folders, PodDir};
use super::lock::{self, Held};
use super::record::{self, Pod, ProcessId};
use super::{Error, Result, adopt, bundle, hooks, sandbox, volumes};
use crate::container::{self, CreateRequest};
use crate::image::Store;
use crate::network::recorded;
use crate::sys::file::write_atomic;
use crate::sys::pidfd;

/// What a removal is for: what becomes of volumes without a name. Of named ones see [`volumes::remove`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Nothing of them stays, whatever was begun before.
    End,
    /// They stay for the next pod of this name.
    Keep,
    /// As [`Purpose::Keep`]; that pod is made at once by the caller, who holds images for it.
    Renew,
    /// As the removal was begun that somebody did not finish, or of which nothing but data is left.
    Finish,
}

/// Pauses of [`remove_patiently`], in seconds.
const PAUSES: [u64; 4] = [1, 2, 4, 8];
/// First and longest pause of [`keep_trying`].
const LATER: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(300));

/// As [`remove`]; while a plugin's DEL fails, again after growing pauses, which `progress` is told. When that does not
/// help a process is left behind that goes on. The caller holds the pod's lock.
pub fn remove_patiently(
    folders: &Folders,
    dir: &PodDir,
    purpose: Purpose,
    progress: &mut dyn FnMut(&str, &str),
) -> Result<()> {
    if !dir.dir.exists() {
        return remove(folders, dir, purpose, progress);
    }
    // this one tells the user, that one nobody
    let only = lock::evict(&dir.remover_lock())?;
    for pause in PAUSES {
        match remove(folders, dir, purpose, progress) {
            Err(error) if is_held_up(dir) => {
                progress("", &format!("{error}; trying again in {pause} s"));
                std::thread::sleep(Duration::from_secs(pause));
            }
            done => return done,
        }
    }
    let Err(error) = remove(folders, dir, purpose, progress) else {
        return Ok(());
    };
    if !is_held_up(dir) {
        return Err(error);
    }
    drop(only);
    adopt::spawn(dir, "remover")?;
    Err(Error::Other(format!(
        "{error}; pod {} is shown as being removed until this succeeds, which is tried again in the background, by `sampan down` and by `sampan network gc`; `sampan down --force` gives it up",
        dir.name
    )))
}

/// Goes on with a removal that was not finished, once. The caller holds the pod's lock.
pub fn finish(folders: &Folders, dir: &PodDir, progress: &mut dyn FnMut(&str, &str)) -> Result<()> {
    if !dir.dir.exists() {
        return remove(folders, dir, Purpose::Finish, progress);
    }
    let only = lock::evict(&dir.remover_lock())?;
    let done = remove(folders, dir, Purpose::Finish, progress);
    if done.is_err() && is_held_up(dir) {
        drop(only);
        adopt::spawn(dir, "remover")?;
    }
    done
}

/// Gives up the pod's networks: what plugins failed to delete is theirs from now on. The caller holds the pod's lock.
pub fn abandon_networks(dir: &PodDir) -> Result<()> {
    let _only = lock::evict(&dir.remover_lock())?;
    remove_tree(&dir.network())
}

/// Has a process of its own remove a pod, that of the caller included. What runs is killed.
pub fn hand_over(dir: &PodDir) -> Result<()> {
    write_atomic(&dir.removing(), b"", 0o600).map_err(Error::io("write", &dir.removing()))?;
    adopt::spawn(dir, "remover")
}

/// Body of the process that [`remove_patiently`] leaves behind: ends when the pod is removed, by whomever.
pub fn keep_trying(dir: &Path) -> Result<()> {
    nix::unistd::setsid().map_err(|errno| Error::Other(format!("remover: setsid: {errno}")))?;
    let Some(pod) = record::read::<Pod>(&dir.join("pod.json"))? else {
        return Ok(());
    };
    let folders = Folders {
        root: pod.root,
        state: pod.state,
    };
    let dir = PodDir::open(dir, &folders.root);
    let Some(_only) = lock::attempt(&dir.remover_lock())? else {
        return Ok(());
    };
    let (mut pause, most) = (Duration::ZERO, LATER.1);
    while dir.removing().exists() {
        std::thread::sleep(pause);
        pause = (pause * 2).clamp(LATER.0, most);
        let _lock = adopt::lock(&folders, &dir.name)?;
        // why not is in the mark
        let done = || remove(&folders, &dir, Purpose::Finish, &mut |_, _| {}).is_ok();
        if !dir.removing().exists() || done() {
            break;
        }
    }
    Ok(())
}

/// Attachments are recorded that plugins have not deleted.
fn is_held_up(dir: &PodDir) -> bool {
    recorded(&dir.network()).is_ok_and(|found| !found.is_empty())
}

/// Removes a pod whose services have been stopped, or are to be killed. Hooks that it still owes run; `progress` is told how they
/// went. The caller holds its lock.
pub fn remove(
    folders: &Folders,
    dir: &PodDir,
    purpose: Purpose,
    progress: &mut dyn FnMut(&str, &str),
) -> Result<()> {
    // first: without it nothing could be removed, and its keeper is the last one that knows the pod
    let pod = adopt::load(dir)?;
    let keep = keeps_volumes(dir, pod.is_some(), purpose)?;
    let mut failed = Vec::new();
    if let Err(error) = end_processes(dir) {
        failed.push(error);
    }
    let services = services(dir)?;
    // a process that nobody waits for any more must not make again what is removed here
    let _held = match alone(dir, &services) {
        Ok(held) => held,
        Err(error) => {
            failed.push(error);
            Vec::new()
        }
    };
    if let Some(pod) = &pod {
        // whoever finds only a part of the pod must know why
        if !dir.removing().exists()
            && let Err(error) = write_atomic(&dir.removing(), b"", 0o600)
        {
            failed.push(Error::io("write", &dir.removing())(error));
        }
        let mut pay = |over: bool| {
            // a hook, or its record, is no reason to keep anything
            if let Err(error) = hooks::pay(dir, pod, over, progress) {
                progress("", &format!("hooks: {error}"));
            }
        };
        pay(false);
        for service in &services {
            failed.extend(remove_container(service).err());
        }
        pay(true);
        if let Err(error) = sandbox::down(dir, pod) {
            failed.push(error);
        }
    }
    if failed.is_empty()
        && !matches!(purpose, Purpose::Keep | Purpose::Renew)
        && let Some(pod) = pod.as_ref().filter(|pod| pod.owner.is_some())
    {
        // the pod's name does not come again, so nobody would find them; those with a name of their own stay
        let named = |key: &str| format!("{}_{key}", dir.name);
        let all = pod.project.volumes.iter();
        let own = all.filter(|(key, volume)| volume.name == named(key));
        let own: Vec<_> = own.map(|(_, volume)| volume).collect();
        for error in volumes::remove(folders, &dir.name, &own) {
            match error {
                // no reason to keep the pod: from now on it is that other pod's
                Error::VolumeInUse { .. } => progress("", &error.to_string()),
                _ => failed.push(error),
            }
        }
    }
    if failed.is_empty() && purpose != Purpose::Renew {
        // taken before there is a record; what is left may still run from its image
        let released = Store::open(&folders.root).and_then(|store| store.release(&dir.name));
        failed.extend(released.err().map(Error::from));
    }
    // the record stays as long as anything does that needs it
    if failed.is_empty() {
        let data = match keep {
            true => strip(&dir.data, purpose == Purpose::Renew),
            false => remove_tree(&dir.data),
        };
        let removed = data
            .and_then(|()| remove_file(&dir.record()))
            .and_then(|()| remove_tree(&dir.dir));
        failed.extend(removed.err());
    }
    let error = match failed.len() {
        0 => return Ok(()),
        1 => failed.remove(0),
        _ => Error::Several(failed),
    };
    if pod.is_some() && dir.dir.exists() {
        // `ps` shows it; the error itself is the answer
        let _ = write_atomic(&dir.removing(), error.to_string().as_bytes(), 0o600);
    }
    Err(error)
}

/// Whether volumes without a name stay; whoever goes on with the removal decides the same.
fn keeps_volumes(dir: &PodDir, made: bool, purpose: Purpose) -> Result<bool> {
    match purpose {
        Purpose::End => {
            remove_file(&dir.renewing())?;
            Ok(false)
        }
        Purpose::Keep | Purpose::Renew if !made => Ok(true),
        Purpose::Keep | Purpose::Renew if !dir.removing().exists() => {
            write_atomic(&dir.renewing(), b"", 0o600)
                .map_err(Error::io("write", &dir.renewing()))?;
            Ok(true)
        }
        // without a record: what the machine's end left, or an `up` that was killed
        Purpose::Finish if !made => Ok(!dir.data.join(layout::OWNED).exists()),
        _ => Ok(dir.renewing().exists()),
    }
}

/// Removes what the services of a pod wrote, but for volumes without a name. Without any the folder goes, unless it
/// `stays`: it tells `gc` that there was a pod.
fn strip(data: &Path, stays: bool) -> Result<()> {
    let mut kept = false;
    for service in services_in(data)? {
        for path in entries(&service)? {
            if path.file_name() != Some(OsStr::new(bundle::VOLUMES)) {
                match path.is_dir() && !path.is_symlink() {
                    true => remove_tree(&path)?,
                    false => remove_file(&path)?,
                }
            } else if entries(&path)?.is_empty() {
                remove_tree(&path)?;
            } else {
                kept = true;
            }
        }
        if entries(&service)?.is_empty() {
            remove_tree(&service)?;
        }
    }
    match kept || stays {
        true => Ok(()),
        false => remove_tree(data),
    }
}

/// Nothing is left of a pod but what the next one of its name finds: volumes without a name.
pub fn is_stripped(folders: &Folders, dir: &PodDir) -> Result<bool> {
    if dir.data.join(layout::OWNED).exists() || Store::open(&folders.root)?.is_holder(&dir.name)? {
        return Ok(false);
    }
    let services = services_in(&dir.data)?;
    for service in &services {
        let only = |path: &PathBuf| path.file_name() == Some(OsStr::new(bundle::VOLUMES));
        if !entries(service)?.iter().all(only) {
            return Ok(false);
        }
    }
    Ok(!services.is_empty())
}

/// Folders of services in a pod's data.
pub fn services_in(data: &Path) -> Result<Vec<PathBuf>> {
    let own = [layout::OF, layout::OWNED].map(OsStr::new);
    let mut found = entries(data)?;
    found.retain(|path| path.is_dir() && !path.file_name().is_some_and(|n| own.contains(&n)));
    Ok(found)
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Folders of the services that there are.
fn services(dir: &PodDir) -> Result<Vec<PathBuf>> {
    entries(&dir.dir.join("services"))
}

/// What is in a folder; missing is empty.
pub fn entries(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("read", path))?,
    };
    entries
        .map(|entry| Ok(entry.map_err(Error::io("read", path))?.path()))
        .collect()
}

/// Ends every process of ours that is at work on the pod, and keeps others from beginning.
fn alone(dir: &PodDir, services: &[PathBuf]) -> Result<Vec<Held>> {
    if !dir.dir.exists() {
        return Ok(Vec::new());
    }
    let mut paths = vec![dir.keeper_lock(), dir.supervisor_lock(), dir.sandbox_lock()];
    paths.extend(services.iter().map(|service| service.join("lock")));
    paths.iter().map(|path| lock::evict(path)).collect()
}

/// Removes a service's container, and what a `create` left that was killed before it wrote what it makes. The caller
/// holds the service's lock.
pub fn remove_container(dir: &Path) -> Result<()> {
    let failed =
        |error: container::Error| Error::Other(format!("remove {}: {error}", dir.display()));
    let known = container::load(dir).map_err(failed)?.is_some();
    container::delete(dir).map_err(failed)?;
    match record::read::<CreateRequest>(&dir.join("create.json"))? {
        Some(request) if !known => {
            request.cgroup.kill()?;
            Ok(request.cgroup.remove()?)
        }
        _ => Ok(()),
    }
}

/// Keeper first, so that it does not start the supervisor again; asked politely, then killed.
fn end_processes(dir: &PodDir) -> Result<()> {
    let asked = adopt::alive(&dir.supervisor())
        && control::ask(&dir.socket(), &Request::Quit, |_, _| {}).is_ok();
    for path in [dir.keeper(), dir.supervisor()] {
        let Some(process) = record::read::<ProcessId>(&path)? else {
            continue;
        };
        let Ok(descriptor) = pidfd::open(process.pid) else {
            continue;
        };
        // after the open: what has this start time now is what the descriptor means
        if !process.alive() {
            continue;
        }
        let milliseconds = Some(QUIT.as_millis() as u64);
        if asked && pidfd::wait(&descriptor, milliseconds).unwrap_or(false) {
            continue;
        }
        let killed = pidfd::send_signal(&descriptor, libc::SIGKILL)
            .and_then(|()| pidfd::wait(&descriptor, milliseconds));
        match killed {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(Error::io("end process of", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
