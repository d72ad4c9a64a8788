//! Finding pods, and giving one whose keeper and supervisor are gone new ones.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::layout::{Folders, PodDir};
use super::record::{self, Pod, ProcessId};
use super::{Error, Result};

/// How long a supervisor may take until its socket answers.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Holds everybody else off a pod until dropped.
pub fn lock(folders: &Folders, name: &str) -> Result<File> {
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
    file.lock().map_err(Error::io("lock", &path))?;
    Ok(file)
}

/// The process of a record file still runs.
pub fn alive(path: &Path) -> bool {
    matches!(record::read::<ProcessId>(path), Ok(Some(process)) if process.alive())
}

/// Makes sure that a supervisor answers, starting a keeper when neither is left.
pub fn ensure(dir: &PodDir) -> Result<()> {
    if !alive(&dir.keeper()) && !alive(&dir.supervisor()) {
        spawn_keeper(dir)?;
    }
    let end = Instant::now() + SOCKET_TIMEOUT;
    let mut pause = Duration::from_millis(1);
    loop {
        match std::os::unix::net::UnixStream::connect(dir.socket()) {
            Ok(_) => return Ok(()),
            Err(_) if Instant::now() < end => std::thread::sleep(pause),
            Err(error) => {
                return Err(Error::Other(format!(
                    "the supervisor of pod {} does not answer ({error}); see {}",
                    dir.name,
                    dir.dir.join("keeper.log").display()
                )));
            }
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Starts a keeper that outlives the calling process.
pub fn spawn_keeper(dir: &PodDir) -> Result<()> {
    let path = dir.dir.join("keeper.log");
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    let err = log.try_clone().map_err(Error::io("open", &path))?;
    let program = Path::new("/proc/self/exe");
    Command::new(program)
        .args(["internal", "keeper"])
        .arg(&dir.dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(err)
        .spawn()
        .map_err(Error::io("run", program))?;
    Ok(())
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
