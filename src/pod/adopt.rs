//! Finding pods, and giving one whose keeper and supervisor are gone new ones.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;

use super::control::{self, Request};
use super::layout::{Folders, PodDir};
use super::record::{self, Pod, ProcessId};
use super::{Error, Result};
use crate::sys::file::bound;

/// How long a supervisor may take until its socket answers.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);

/// A keeper that has not written its record by then is taken for killed.
const SPAWN_AGAIN: Duration = Duration::from_millis(500);
/// So often in a row may a supervisor end within [`LOST_SOON`] of a request.
const LOST_MOST: u32 = 30;
/// See [`LOST_MOST`].
const LOST_SOON: Duration = Duration::from_secs(1);

/// What a service manager tells the process that it started, and that one alone (sd_notify(3)).
pub const SERVICE_MANAGER: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Names of all pods, sorted.
pub fn names(folders: &Folders) -> Result<Vec<String>> {
    let dir = folders.pods();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", &dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", &dir))?;
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// All folders that record attachments: each pod's, and those made by hand (`sampan cni`).
pub fn network_caches(folders: &Folders) -> Result<Vec<PathBuf>> {
    let names = names(folders)?;
    let mut caches: Vec<_> = names.iter().map(|n| folders.pod(n).network()).collect();
    caches.push(folders.by_hand());
    Ok(caches)
}

/// A pod's record; `None` when there is no such pod, or only what a failed start left.
pub fn load(dir: &PodDir) -> Result<Option<Pod>> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let path = dir.record();
    match record::read::<Version>(&path)? {
        Some(Version { version }) if version != record::VERSION => Err(Error::Other(format!(
            "pod {}: {} has version {version}, this program knows version {}; use the program that made the pod",
            dir.name,
            path.display(),
            record::VERSION
        ))),
        Some(_) => record::read(&path),
        None => Ok(None),
    }
}

/// Why the removal of a pod is not finished; empty while it is at work or when nobody lived to tell. `None`: it is not
/// being removed.
pub fn removing(dir: &PodDir) -> Result<Option<String>> {
    let path = dir.removing();
    match fs::read_to_string(&path) {
        Ok(why) => Ok(Some(why)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path)(error)),
    }
}

/// A pod's lock. Its file goes with the pod.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
    pod: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // while it is held nobody makes the pod; one that cannot be removed is only a file too many
        if !self.pod.exists() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Lock {
    /// `None`: the file was removed before it was locked, so that the next one to come would lock another.
    fn of(file: File, path: PathBuf, folders: &Folders, name: &str) -> Option<Lock> {
        use std::os::unix::fs::MetadataExt;
        let same = match (file.metadata(), fs::metadata(&path)) {
            (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
            _ => false,
        };
        same.then(|| Lock {
            _file: file,
            path,
            pod: folders.pod(name).dir,
        })
    }
}

/// Holds everybody else off a pod until dropped.
pub fn lock(folders: &Folders, name: &str) -> Result<Lock> {
    loop {
        let (file, path) = open_lock(folders, name)?;
        file.lock().map_err(Error::io("lock", &path))?;
        if let Some(lock) = Lock::of(file, path, folders, name) {
            return Ok(lock);
        }
    }
}

/// As [`lock`]; `None` where somebody holds it.
pub fn try_lock(folders: &Folders, name: &str) -> Result<Option<Lock>> {
    loop {
        let (file, path) = open_lock(folders, name)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        if let Some(lock) = Lock::of(file, path, folders, name) {
            return Ok(Some(lock));
        }
    }
}

/// Removes the lock files of pods that are gone; those that somebody holds stay.
pub fn sweep_locks(folders: &Folders) -> Result<()> {
    let dir = folders.pods();
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::io("read", &dir))?,
    };
    for entry in entries {
        let name = entry.map_err(Error::io("read", &dir))?.file_name();
        if let Some(pod) = name.to_string_lossy().strip_suffix(".lock")
            && !folders.pod(pod).dir.exists()
        {
            drop(try_lock(folders, pod)?);
        }
    }
    Ok(())
}

fn open_lock(folders: &Folders, name: &str) -> Result<(File, PathBuf)> {
    let dir = folders.pods();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(Error::io("make", &dir))?;
    let path = dir.join(format!("{name}.lock"));
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    Ok((file, path))
}

/// The process of a record file still runs.
pub fn alive(path: &Path) -> bool {
    matches!(record::read::<ProcessId>(path), Ok(Some(process)) if process.alive())
}

/// Makes sure that a supervisor answers, starting a keeper when neither is left.
pub fn ensure(dir: &PodDir) -> Result<()> {
    let end = Instant::now() + SOCKET_TIMEOUT;
    let mut pause = Duration::from_millis(1);
    let mut spawned: Option<Instant> = None;
    loop {
        // a second keeper ends by itself, so one too many is no harm
        if !alive(&dir.keeper())
            && !alive(&dir.supervisor())
            && spawned.is_none_or(|at| at.elapsed() > SPAWN_AGAIN)
        {
            spawn_keeper(dir)?;
            spawned = Some(Instant::now());
        }
        match std::os::unix::net::UnixStream::connect(dir.socket()) {
            Ok(_) => return Ok(()),
            Err(_) if Instant::now() < end => std::thread::sleep(pause),
            Err(error) => {
                return Err(Error::Other(format!(
                    "the supervisor of pod {} does not answer ({error}); see {}",
                    dir.name,
                    dir.keeper_log().display()
                )));
            }
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Asks the supervisor of a pod until there is an answer: when it is killed meanwhile, its successor is asked.
pub fn ask(
    dir: &PodDir,
    request: &Request,
    progress: &mut dyn FnMut(&str, &str),
) -> Result<Vec<(String, Option<i32>)>> {
    ask_unless(dir, request, None, progress)
}

/// As [`ask`], until one of the signals comes: [`Error::Interrupted`].
pub fn ask_unless(
    dir: &PodDir,
    request: &Request,
    signals: Option<&SignalFd>,
    progress: &mut dyn FnMut(&str, &str),
) -> Result<Vec<(String, Option<i32>)>> {
    let mut lost = 0;
    while lost < LOST_MOST {
        if !dir.record().exists() {
            return Err(Error::Other(format!("pod {} was removed", dir.name)));
        }
        if dir.removing().exists() {
            return Err(Error::Other(format!(
                "pod {} is partly removed; `sampan down` finishes it",
                dir.name
            )));
        }
        match ensure(dir) {
            // removed while we looked
            Err(_) if !dir.record().exists() => continue,
            other => other?,
        }
        let asked = Instant::now();
        match control::ask_unless(&dir.socket(), request, signals, &mut *progress) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(Error::Io { source, .. }) if is_gone(source.kind()) => {}
            Err(error) => return Err(error),
        }
        if asked.elapsed() < LOST_SOON {
            lost += 1;
        } else {
            lost = 0;
        }
    }
    Err(Error::Other(format!(
        "the supervisor of pod {} ends each time it is asked; see {}",
        dir.name,
        dir.keeper_log().display()
    )))
}

/// A descriptor of what the standard input of a service comes from.
pub fn input(dir: &PodDir, service: &str) -> Result<OwnedFd> {
    for _ in 0..LOST_MOST {
        if !dir.record().exists() {
            break;
        }
        ensure(dir)?;
        match control::input(&dir.socket(), service) {
            Ok(Some(fd)) => return Ok(fd),
            Ok(None) => {}
            Err(Error::Io { source, .. }) if is_gone(source.kind()) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Other(format!(
        "the supervisor of pod {} gives no input of service {service}; see {}",
        dir.name,
        dir.keeper_log().display()
    )))
}

/// The other side of a connection was killed, or its successor does not listen yet.
fn is_gone(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::BrokenPipe
            | ErrorKind::NotFound
    )
}

/// Starts a keeper that outlives the calling process.
pub fn spawn_keeper(dir: &PodDir) -> Result<()> {
    spawn(dir, "keeper")
}

/// Starts a process of ours, a step of `sampan internal`, that outlives the calling one.
pub fn spawn(dir: &PodDir, step: &str) -> Result<()> {
    let mut command = command(dir, step)?;
    command
        .spawn()
        .map_err(Error::io("run", Path::new(command.get_program())))?;
    Ok(())
}

/// `keeper.log`, to be written to. Who has it open already goes on when it is bounded.
pub fn log(dir: &PodDir) -> Result<File> {
    let path = dir.keeper_log();
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    bound(&log, &path, record::LOG_MOST).map_err(Error::io("bound", &path))?;
    Ok(log)
}

/// A step of `sampan internal` on a pod, with `keeper.log` for what it prints.
pub fn command(dir: &PodDir, step: &str) -> Result<Command> {
    let log = log(dir)?;
    let err = log
        .try_clone()
        .map_err(Error::io("open", &dir.keeper_log()))?;
    let mut command = Command::new("/proc/self/exe");
    for name in SERVICE_MANAGER {
        command.env_remove(name);
    }
    command
        .args(["internal", step])
        .arg(&dir.dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(err);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pod = PodDir {
            name: "web".into(),
            dir: dir.path().to_path_buf(),
            data: dir.path().to_path_buf(),
        };
        assert_eq!(load(&pod).unwrap(), None);
        fs::write(pod.record(), r#"{"version": 99, "of": "the future"}"#).unwrap();
        let expected = format!(
            "pod web: {} has version 99, this program knows version 1; use the program that made the pod",
            pod.record().display()
        );
        assert_eq!(load(&pod).unwrap_err().to_string(), expected);
    }
}
