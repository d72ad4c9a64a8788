//! What has to be in a task's folder before its pod is made: its `uris`, and compose files in archives that the label `fileName` names.
//!
//! The agent fetches what the executor's own command names; what a task's names is the executor's to fetch. [`spec`] tells what that is, and
//! [`run`] does it, in a process that does nothing else meanwhile: it may take long, and is cancelled by killing it.
//!
//! *Invariants:* a file is there as a whole or not at all. Nothing is written outside the task's folder, links in it included. Files
//! belong to whom the sandbox belongs, and are nobody's programs unless the task says so.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::source::{ARCHIVES, unpacked};
use super::volumes::below;
use super::{Invalid, Surroundings, folder, labels};
use crate::executor::mesos::proto::task_status::Reason;
use crate::executor::mesos::proto::{TaskInfo, TaskState, command_info};
use crate::image::{self, Owner, PullOptions};
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Longest file that is fetched (bytes).
const LIMIT: u64 = 64 << 30;

/// What is to be fetched for one launch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchSpec {
    /// One after the other.
    pub items: Vec<Item>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Task id, for messages.
    pub task: String,
    /// As the task names it, for messages.
    pub what: String,
    /// Where it is.
    pub from: From,
    /// The task's sandbox, which exists; all paths are below it.
    pub sandbox: PathBuf,
    /// Where the file goes, relative; `None`: it stays where it is.
    pub to: Option<PathBuf>,
    /// It is an archive, and unpacked in this folder, relative.
    pub extract: Option<PathBuf>,
    /// It may be executed.
    pub executable: bool,
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// By http or https.
    Url(String),
    /// On this machine, absolute.
    Path(PathBuf),
}

/// What the tasks of a launch need; without any item there is nothing to do.
///
/// # Errors
/// For an address that is none of ours.
pub fn spec(tasks: &[TaskInfo], group: bool, around: &Surroundings) -> Result<FetchSpec, Invalid> {
    let mut items = Vec::new();
    for task in tasks {
        let own = folder(&around.sandbox, task);
        let sandbox = if group {
            own.clone()
        } else {
            around.sandbox.clone()
        };
        for (index, uri) in task.command.iter().flat_map(|c| &c.uris).enumerate() {
            let item = item(task, uri, &sandbox).map_err(|why| {
                Invalid::of(
                    task,
                    format_args!("command.uris[{index}]: {}: {why}", shown(&uri.value)),
                )
            })?;
            items.push(item);
        }
        for name in labels::read(task)?.files {
            let archive = ARCHIVES.iter().any(|end| name.ends_with(end));
            let Some(path) = below(&around.sandbox, &name).filter(|_| archive) else {
                // what is wrong with it is said where it is loaded
                continue;
            };
            let folder = unpacked(&own, &name);
            items.push(Item {
                task: task.task_id.value.clone(),
                what: format!("labels: fileName: {name}"),
                from: From::Path(path),
                sandbox: around.sandbox.clone(),
                to: None,
                extract: folder
                    .strip_prefix(&around.sandbox)
                    .ok()
                    .map(Path::to_owned),
                executable: false,
            });
        }
    }
    Ok(FetchSpec { items })
}

/// As the task names it, without what may be a secret: messages are for everybody.
fn shown(value: &str) -> String {
    match value.starts_with('/') || value.starts_with("file://") {
        true => value.to_owned(),
        false => image::shown(value),
    }
}

fn item(task: &TaskInfo, uri: &command_info::Uri, sandbox: &Path) -> Result<Item, String> {
    let value = uri.value.trim();
    let from = match value.split_once("://") {
        Some(("http" | "https", _)) => From::Url(value.to_owned()),
        Some(("file", path)) if path.starts_with('/') => From::Path(path.into()),
        Some(("file", _)) => return Err("a file has three slashes: file:///path".to_owned()),
        Some((scheme, _)) => {
            return Err(format!(
                "{scheme} is not supported; use http, https, file or an absolute path"
            ));
        }
        None if value.starts_with('/') => From::Path(value.into()),
        None => return Err("is neither an address nor an absolute path".to_owned()),
    };
    // neither query nor fragment is a part of the name
    let plain = match &from {
        From::Url(url) => url.split(['?', '#']).next().unwrap_or_default(),
        From::Path(_) => value,
    };
    let plain = plain.split_once("://").map_or(plain, |(_, rest)| rest);
    let name = plain.rsplit_once('/').map_or("", |(_, name)| name);
    let name = match &uri.output_file {
        Some(name) => name.as_str(),
        None => name,
    };
    let to = below(Path::new(""), name).filter(|to| to.file_name().is_some());
    let to = to
        .ok_or_else(|| format!("{name:?} is not a file in the sandbox; name one in output_file"))?;
    let extract = uri.extract() && !uri.executable();
    let extract = match extract.then(|| image::is_archive(name)) {
        None | Some(Ok(false)) => None,
        Some(Ok(true)) => Some(PathBuf::new()),
        Some(Err(end)) => {
            return Err(format!(
                "{end} cannot be unpacked; set extract to false, or pack it as .tar.gz or .zip"
            ));
        }
    };
    Ok(Item {
        task: task.task_id.value.clone(),
        what: format!("command.uris: {}", shown(value)),
        from,
        sandbox: sandbox.to_owned(),
        to: Some(to),
        extract,
        executable: uri.executable(),
    })
}

/// Fetches everything, one after the other. Blocks.
///
/// # Errors
/// With task and address of the first that could not be had; what was fetched by then stays.
pub fn run(spec: &FetchSpec, options: &PullOptions) -> Result<(), Invalid> {
    for item in &spec.items {
        fetch(item, options).map_err(|why| Invalid {
            task: item.task.clone(),
            reason: Some(Reason::ContainerLaunchFailed),
            state: TaskState::Failed,
            message: format!("task {}: {}: {why}", item.task, item.what),
        })?;
    }
    Ok(())
}

/// Makes a folder below `sandbox`, whose owner it has; one that is there is success. Links lead nowhere.
///
/// # Errors
/// With the path.
pub fn make_folder(sandbox: &Path, folder: &Path) -> Result<(), String> {
    let owner = owner(sandbox)?;
    make(&open(sandbox)?, folder, owner).map(drop)
}

fn owner(sandbox: &Path) -> Result<Owner, String> {
    let meta = std::fs::metadata(sandbox)
        .map_err(|error| format!("read {}: {error}", sandbox.display()))?;
    Ok(Owner {
        uid: meta.uid(),
        gid: meta.gid(),
    })
}

fn fetch(item: &Item, options: &PullOptions) -> Result<(), String> {
    let owner = owner(&item.sandbox)?;
    let sandbox = open(&item.sandbox)?;
    let archive = match (&item.to, &item.from) {
        (None, From::Path(path)) => {
            beneath(&sandbox, path.strip_prefix(&item.sandbox).unwrap_or(path))?
        }
        (None, From::Url(_)) => return Err("has no place to go to".to_owned()),
        (Some(to), from) => {
            let parent = make(&sandbox, to.parent().unwrap_or(Path::new("")), owner)?;
            let name = to.file_name().unwrap_or_default();
            let path = proc_path(&parent).join(name);
            match from {
                From::Url(url) => image::download(url, &path, LIMIT, options).map_err(text)?,
                From::Path(source) => copy(source, &path)?,
            }
            let file = beneath(&parent, Path::new(name))?;
            give(&file, owner, item.executable)
                .map_err(|error| format!("set owner and mode: {error}"))?;
            file
        }
    };
    let Some(folder) = &item.extract else {
        return Ok(());
    };
    let folder = make(&sandbox, folder, owner)?;
    image::extract(archive, "the archive", folder, owner).map_err(text)
}

/// A file below a folder; a link leads nowhere.
fn beneath(folder: &OwnedFd, path: &Path) -> Result<File, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(folder, path, flags, Mode::empty(), how)
        .map(File::from)
        .map_err(|error| format!("open {}: {error}", path.display()))
}

/// An error with its causes.
fn text(error: image::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn open(path: &Path) -> Result<OwnedFd, String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| format!("open {}: {error}", path.display()))
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// A folder below the sandbox, made with those above it where they are missing. A program in the sandbox may put links there meanwhile:
/// they lead nowhere else.
fn make(sandbox: &OwnedFd, path: &Path, owner: Owner) -> Result<OwnedFd, String> {
    let mut at = sandbox.try_clone().map_err(|error| error.to_string())?;
    let failed = |error: &dyn std::fmt::Display| format!("make folder {}: {error}", path.display());
    for part in path.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(failed(&error)),
        }
        let next = rustix::fs::openat2(&at, name, flags, Mode::empty(), beneath);
        let next = next.map_err(|error| failed(&error))?;
        own(&next, owner).map_err(|error| failed(&error))?;
        at = next;
    }
    Ok(at)
}

fn own(fd: impl AsFd, owner: Owner) -> rustix::io::Result<()> {
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(owner.uid),
        rustix::fs::Gid::from_raw(owner.gid),
    );
    rustix::fs::fchown(fd, Some(uid), Some(gid))
}

/// Copies a file of the machine, by way of a temporary one.
fn copy(source: &Path, to: &Path) -> Result<(), String> {
    let failed =
        |what: &str, error: std::io::Error| format!("{what} {}: {error}", source.display());
    // a pipe or a device is no file to be copied
    let meta = std::fs::metadata(source).map_err(|error| failed("read", error))?;
    if !meta.is_file() {
        return Err(format!("{} is not a file", source.display()));
    }
    let file = File::open(source).map_err(|error| failed("open", error))?;
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let part = to.with_file_name(format!(".{name}.part"));
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("copy", error));
        }
        _ => {}
    }
    let copied = File::create_new(&part)
        .and_then(|mut out| std::io::copy(&mut file.take(LIMIT), &mut out))
        .and_then(|_| std::fs::rename(&part, to));
    if copied.is_err() {
        // it is there only when something was written
        let _ = std::fs::remove_file(&part);
    }
    copied.map_err(|error| failed("copy", error))
}

/// Owner and mode of a file that was fetched.
fn give(file: &File, owner: Owner, executable: bool) -> rustix::io::Result<()> {
    own(file, owner)?;
    let mode = if executable { 0o755 } else { 0o644 };
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mesos::task::tests::{around, task};
    use serde_json::{Value, json};
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn spec_of(uri: Value) -> Result<Item, String> {
        let task = task(json!({"command": {"value": "x", "uris": [uri]}}));
        let spec = spec(&[task], false, &around(Path::new("/s"))).map_err(|e| e.message)?;
        assert_eq!(spec.items.len(), 1);
        Ok(spec.items[0].clone())
    }

    #[test]
    fn what_is_fetched() {
        let table = [
            (
                json!({"value": "https://h/a/b.tar.gz?x=/y"}),
                From::Url("https://h/a/b.tar.gz?x=/y".into()),
                "b.tar.gz",
                true,
            ),
            (
                json!({"value": "http://h/a/b.tgz", "extract": false, "output_file": "d/c"}),
                From::Url("http://h/a/b.tgz".into()),
                "d/c",
                false,
            ),
            (
                json!({"value": "file:///opt/x", "executable": true}),
                From::Path("/opt/x".into()),
                "x",
                false,
            ),
            (
                json!({"value": "/opt/x.zip", "executable": true}),
                From::Path("/opt/x.zip".into()),
                "x.zip",
                false,
            ),
        ];
        for (given, from, to, extract) in table {
            let item = spec_of(given.clone()).unwrap();
            assert_eq!(
                (&item.from, item.extract.is_some()),
                (&from, extract),
                "{given}"
            );
            assert_eq!(item.to.as_deref(), Some(Path::new(to)), "{given}");
        }
        for (given, expected) in [
            (
                json!({"value": "hdfs://h/x"}),
                "hdfs://h/x: hdfs is not supported; use http, https, file or an absolute path",
            ),
            (
                json!({"value": "x"}),
                "x: is neither an address nor an absolute path",
            ),
            (
                json!({"value": "http://h/"}),
                "http://h/: \"\" is not a file in the sandbox; name one in output_file",
            ),
            (
                json!({"value": "/x", "output_file": "../y"}),
                "/x: \"../y\" is not a file in the sandbox; name one in output_file",
            ),
            (
                json!({"value": "/x.tar.xz"}),
                "/x.tar.xz: .tar.xz cannot be unpacked; set extract to false, or pack it as .tar.gz or .zip",
            ),
        ] {
            assert_eq!(
                spec_of(given).unwrap_err(),
                format!("task t: command.uris[0]: {expected}")
            );
        }
    }

    #[test]
    fn files_and_archives() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = dir.path().join("s");
        std::fs::create_dir(&sandbox).unwrap();
        let app = dir.path().join("run");
        std::fs::write(&app, "x").unwrap();
        let archive = dir.path().join("a.tar.gz");
        let status = std::process::Command::new("tar")
            .arg("-czf")
            .arg(&archive)
            .arg("-C")
            .arg(dir.path())
            .arg("run")
            .status();
        assert!(status.unwrap().success());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).unwrap();
            stream
                .write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
                )
                .unwrap();
        });
        let uris = json!([
            {"value": app, "executable": true, "output_file": "bin/app"}, {"value": archive},
            {"value": format!("http://127.0.0.1:{port}/text?q")}]);
        let task = task(json!({"command": {"value": "x", "uris": uris}}));
        let spec = spec(&[task], false, &around(&sandbox)).unwrap();
        run(&spec, &PullOptions::default()).unwrap();
        server.join().unwrap();
        let read = |name: &str| std::fs::read_to_string(sandbox.join(name)).unwrap();
        assert_eq!(
            (read("bin/app"), read("run"), read("text")),
            ("x".into(), "x".into(), "hello".into())
        );
        let mode = |name: &str| {
            std::fs::metadata(sandbox.join(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!((mode("bin/app"), mode("text")), (0o755, 0o644));
        assert!(sandbox.join("a.tar.gz").exists());
    }

    #[test]
    fn links_in_the_sandbox_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (sandbox, outside) = (dir.path().join("s"), dir.path().join("o"));
        std::fs::create_dir(&sandbox).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, sandbox.join("d")).unwrap();
        let uri = json!([{"value": dir.path().join("f"), "output_file": "d/f"}]);
        let task = task(json!({"command": {"value": "x", "uris": uri}}));
        let spec = spec(&[task], false, &around(&sandbox)).unwrap();
        let error = run(&spec, &PullOptions::default()).unwrap_err().message;
        assert!(error.contains("make folder d"), "{error}");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        // a port that nobody listens on
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap();
        drop(listener);
        for (uri, expected) in [
            (
                "/nowhere/f".to_owned(),
                "/nowhere/f: read /nowhere/f: No such file".to_owned(),
            ),
            (
                format!("http://me:pass@{host}/f?signature=c0ffee"),
                format!("http://{host}/f: http://{host}/f: "),
            ),
        ] {
            let task = task(json!({"command": {"value": "x", "uris": [{"value": uri}]}}));
            let spec = spec(&[task], false, &around(dir.path())).unwrap();
            let error = run(&spec, &PullOptions::default()).unwrap_err();
            let expected = format!("task t: command.uris: {expected}");
            assert!(error.message.starts_with(&expected), "{error}");
            for secret in ["pass", "c0ffee"] {
                assert!(!error.message.contains(secret), "{error}");
            }
            assert_eq!(
                (error.task.as_str(), error.state, error.reason),
                ("t", TaskState::Failed, Some(Reason::ContainerLaunchFailed))
            );
        }
        let wrong = spec_of(json!({"value": "ftp://me:pass@h/x?y"})).unwrap_err();
        assert!(
            wrong.starts_with("task t: command.uris[0]: ftp://h/x: ftp is not supported"),
            "{wrong}"
        );
    }
}
