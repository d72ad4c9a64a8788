//! `Volume`s of a container → mounts of a service.
//!
//! *Invariants:* a relative path on the host lies in the task's sandbox, one in the container below where the sandbox is mounted;
//! neither leads out of it. What a driver of its own would have to attach is refused by its name.

use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use super::{Invalid, Sandbox};
use crate::executor::mesos::proto::volume::source::{self, sandbox_path};
use crate::executor::mesos::proto::{
    ContainerInfo, Secret, TaskInfo, Volume, mount_propagation, secret, volume,
};

/// Mounts of a task.
#[derive(Debug, Default, PartialEq)]
pub struct Volumes {
    /// As in the long form of a compose file.
    pub mounts: Vec<Value>,
    /// Secrets: path in the container, content.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Why a volume cannot be had: a mistake in the description, or a secret that nobody has resolved.
enum Refusal {
    Mistake(String),
    Unresolved(String),
}

impl From<String> for Refusal {
    fn from(why: String) -> Refusal {
        Refusal::Mistake(why)
    }
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Refusal {
        Refusal::Mistake(why.to_owned())
    }
}

/// The sandbox itself, then the volumes in their order.
///
/// # Errors
/// For what is no volume that can be had here.
pub fn volumes(
    task: &TaskInfo,
    container: Option<&ContainerInfo>,
    sandbox: &Sandbox,
) -> Result<Volumes, Invalid> {
    let mut out = Volumes {
        mounts: vec![bind(&sandbox.host, &sandbox.inside, false, None, false)],
        files: Vec::new(),
    };
    for (index, volume) in container.iter().flat_map(|c| &c.volumes).enumerate() {
        add(&mut out, volume, sandbox).map_err(|refusal| {
            let at = |why| {
                format!(
                    "container.volumes[{index}]: {}: {why}",
                    volume.container_path
                )
            };
            match refusal {
                Refusal::Mistake(why) => Invalid::of(task, at(why)),
                Refusal::Unresolved(why) => Invalid::failed(task, at(why)),
            }
        })?;
    }
    Ok(out)
}

fn add(out: &mut Volumes, volume: &Volume, sandbox: &Sandbox) -> Result<(), Refusal> {
    let target = inside(&sandbox.inside, &volume.container_path)
        .ok_or("container_path: is empty, the root, or leads out of the sandbox")?;
    let read_only = match volume::Mode::try_from(volume.mode) {
        Ok(mode) => mode == volume::Mode::Ro,
        Err(_) => return Err("mode: is not RW or RO".into()),
    };
    let kinds = [
        volume.host_path.is_some(),
        volume.image.is_some(),
        volume.source.is_some(),
    ];
    if kinds.iter().filter(|there| **there).count() > 1 {
        return Err("has several of host_path, image and source; use one".into());
    }
    if volume.image.is_some() {
        return Err("image: an image as a volume is not supported; copy its files into the task's image, or mount a host path".into());
    }
    let host = |text: &str| host_path(&sandbox.host, text);
    if let Some(path) = &volume.host_path {
        let (path, create) = host(path)?;
        out.mounts
            .push(bind(&path, &target, read_only, None, create));
        return Ok(());
    }
    let Some(source) = &volume.source else {
        let mount = json!({"type": "volume", "target": target, "read_only": read_only});
        out.mounts.push(mount);
        return Ok(());
    };
    match source.r#type() {
        source::Type::HostPath => {
            let given = source
                .host_path
                .as_ref()
                .ok_or("source.host_path: is missing")?;
            let propagation = propagation(given)?;
            let (path, create) = host(&given.path)?;
            out.mounts
                .push(bind(&path, &target, read_only, propagation, create));
        }
        source::Type::SandboxPath => {
            let given = source
                .sandbox_path
                .as_ref()
                .ok_or("source.sandbox_path: is missing")?;
            let folder = sandbox_folder(given, sandbox)?;
            out.mounts
                .push(bind(&folder, &target, read_only, None, true));
        }
        source::Type::Secret => {
            let secret = source.secret.as_ref().ok_or("source.secret: is missing")?;
            let content = resolved(secret).map_err(Refusal::Unresolved)?;
            out.files.push((target, content.to_vec()));
        }
        source::Type::DockerVolume => {
            let driver = source.docker_volume.as_ref().map(|v| v.driver());
            return Err(format!(
                "source: DOCKER_VOLUME (driver {:?}) is not supported; attach it on the machine and mount its host path",
                driver.unwrap_or_default()
            )
            .into());
        }
        source::Type::CsiVolume => {
            let plugin = source.csi_volume.as_ref().map(|v| v.plugin_name.as_str());
            return Err(format!(
                "source: CSI_VOLUME (plugin {:?}) is not supported; attach it on the machine and mount its host path",
                plugin.unwrap_or_default()
            )
            .into());
        }
        source::Type::Unknown => return Err("source.type: is not known".into()),
    }
    Ok(())
}

fn bind(
    host: &Path,
    target: &str,
    read_only: bool,
    propagation: Option<&str>,
    create: bool,
) -> Value {
    let mut mount = json!({
        "type": "bind", "source": host.to_string_lossy(), "target": target, "read_only": read_only,
        "bind": {"create_host_path": create},
    });
    if let Some(propagation) = propagation {
        mount["bind"]["propagation"] = json!(propagation);
    }
    mount
}

fn propagation(given: &source::HostPath) -> Result<Option<&'static str>, String> {
    let mode = given.mount_propagation.as_ref().and_then(|p| p.mode);
    match mode.map(mount_propagation::Mode::try_from) {
        None | Some(Ok(mount_propagation::Mode::Unknown)) => Ok(None),
        Some(Ok(mount_propagation::Mode::HostToContainer)) => Ok(Some("rslave")),
        Some(Ok(mount_propagation::Mode::Bidirectional)) => Ok(Some("rshared")),
        Some(Err(_)) => Err("source.host_path.mount_propagation.mode: is not known".to_owned()),
    }
}

fn sandbox_folder(given: &source::SandboxPath, sandbox: &Sandbox) -> Result<PathBuf, String> {
    let root = match given.r#type() {
        sandbox_path::Type::Itself => &sandbox.host,
        sandbox_path::Type::Parent => sandbox.parent.as_ref().ok_or(
            "source.sandbox_path: PARENT is the executor's sandbox, which only tasks of a group share; use SELF",
        )?,
        sandbox_path::Type::Unknown => {
            return Err("source.sandbox_path.type: is not known".to_owned());
        }
    };
    below(root, &given.path).ok_or_else(|| {
        format!(
            "source.sandbox_path.path: {:?} is not below the sandbox",
            given.path
        )
    })
}

/// A path of the host, and whether it is made when missing, which is so in the sandbox only.
fn host_path(sandbox: &Path, text: &str) -> Result<(PathBuf, bool), String> {
    match Path::new(text).is_absolute() {
        true => Ok((text.into(), false)),
        false => match below(sandbox, text) {
            Some(path) => Ok((path, true)),
            None => Err(format!("host_path: {text:?} is not below the sandbox")),
        },
    }
}

/// A relative path below a folder, without `..`.
pub fn below(folder: &Path, text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    let good = !text.is_empty() && !text.contains('\0') && path.components().all(plain);
    good.then(|| folder.join(path))
}

/// A path in the container; a relative one is below the sandbox.
fn inside(sandbox: &str, text: &str) -> Option<String> {
    match text.starts_with('/') {
        true => {
            Some(text.to_owned()).filter(|t| !t.trim_matches('/').is_empty() && !t.contains('\0'))
        }
        false => below(Path::new(sandbox), text).map(|path| path.to_string_lossy().into_owned()),
    }
}

/// The content of a secret.
///
/// # Errors
/// For one that only says where it is: resolving it is the agent's business.
pub fn resolved(secret: &Secret) -> Result<&[u8], String> {
    match (secret.r#type(), &secret.value, &secret.reference) {
        (secret::Type::Reference, _, Some(reference)) => Err(format!(
            "secret {:?} has not been resolved; the agent needs a secret resolver for it",
            reference.name
        )),
        (secret::Type::Value, Some(value), _) => Ok(&value.data),
        _ => Err("a secret has neither a value nor a reference".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mesos::proto::TaskState;
    use crate::executor::mesos::task::tests::task;

    fn found(volume: Value) -> Result<Volumes, Invalid> {
        let sandbox = Sandbox {
            host: "/s/tasks/t".into(),
            parent: Some("/s".into()),
            inside: "/mnt/mesos/sandbox".to_owned(),
        };
        let container = json!({"type": "MESOS", "volumes": [volume]});
        let container: ContainerInfo = serde_json::from_value(container).unwrap();
        volumes(&task(json!({})), Some(&container), &sandbox)
    }

    #[test]
    fn mounts() {
        let bind = |source: &str, target: &str, ro: bool, create: bool| json!({"type": "bind", "source": source, "target": target, "read_only": ro, "bind": {"create_host_path": create}});
        let mut slave = bind("/h", "/d", false, false);
        slave["bind"]["propagation"] = json!("rslave");
        let source = |kind: &str, rest: Value| {
            let mut source = rest;
            source["type"] = json!(kind);
            json!({"container_path": "/d", "mode": "RW", "source": source})
        };
        let table = [
            (
                json!({"container_path": "/d", "host_path": "/h", "mode": "RO"}),
                bind("/h", "/d", true, false),
            ),
            (
                json!({"container_path": "d/e", "host_path": "x", "mode": "RW"}),
                bind("/s/tasks/t/x", "/mnt/mesos/sandbox/d/e", false, true),
            ),
            (
                json!({"container_path": "/d", "mode": "RW"}),
                json!({"type": "volume", "target": "/d", "read_only": false}),
            ),
            (
                source(
                    "HOST_PATH",
                    json!({"host_path": {"path": "/h", "mount_propagation": {"mode": "HOST_TO_CONTAINER"}}}),
                ),
                slave,
            ),
            (
                source(
                    "SANDBOX_PATH",
                    json!({"sandbox_path": {"type": "SELF", "path": "a"}}),
                ),
                bind("/s/tasks/t/a", "/d", false, true),
            ),
            (
                source(
                    "SANDBOX_PATH",
                    json!({"sandbox_path": {"type": "PARENT", "path": "a/b"}}),
                ),
                bind("/s/a/b", "/d", false, true),
            ),
        ];
        for (given, expected) in table {
            let found = found(given.clone()).unwrap();
            let sandbox = bind("/s/tasks/t", "/mnt/mesos/sandbox", false, false);
            assert_eq!(found.mounts, [sandbox, expected], "{given}");
        }
        let secret = json!({"secret": {"type": "VALUE", "value": {"data": "AP8="}}});
        let found = found(source("SECRET", secret)).unwrap();
        assert_eq!(found.files, [("/d".to_owned(), vec![0, 255])]);
    }

    #[test]
    fn what_is_refused() {
        let of = |source: Value| json!({"container_path": "/d", "mode": "RW", "source": source});
        let table = [
            (
                json!({"container_path": "../d", "host_path": "/h", "mode": "RO"}),
                TaskState::Error,
                "../d: container_path: is empty, the root, or leads out of the sandbox",
            ),
            (
                json!({"container_path": "/d", "host_path": "a/../../b", "mode": "RO"}),
                TaskState::Error,
                "/d: host_path: \"a/../../b\" is not below the sandbox",
            ),
            (
                json!({"container_path": "/d", "host_path": "/h", "image": {"type": "DOCKER"}, "mode": "RO"}),
                TaskState::Error,
                "/d: has several of host_path, image and source; use one",
            ),
            (
                of(
                    json!({"type": "DOCKER_VOLUME", "docker_volume": {"driver": "rexray", "name": "v"}}),
                ),
                TaskState::Error,
                "/d: source: DOCKER_VOLUME (driver \"rexray\") is not supported; attach it on the machine and mount its host path",
            ),
            (
                of(json!({"type": "CSI_VOLUME", "csi_volume": {"plugin_name": "ebs"}})),
                TaskState::Error,
                "/d: source: CSI_VOLUME (plugin \"ebs\") is not supported; attach it on the machine and mount its host path",
            ),
            (
                of(
                    json!({"type": "SECRET", "secret": {"type": "REFERENCE", "reference": {"name": "/a/b"}}}),
                ),
                TaskState::Failed,
                "/d: secret \"/a/b\" has not been resolved; the agent needs a secret resolver for it",
            ),
            (
                of(json!({})),
                TaskState::Error,
                "/d: source.type: is not known",
            ),
        ];
        for (given, state, expected) in table {
            let error = found(given).unwrap_err();
            let expected = format!("task t: container.volumes[0]: {expected}");
            assert_eq!((error.state, error.message), (state, expected));
        }
    }
}
