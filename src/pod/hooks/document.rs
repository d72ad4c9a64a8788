//! What a hook reads on standard input (docs/hooks.md).

use serde_json::{Map, Value, json};

use crate::compose::Project;
use crate::compose::project::{Hook, HookPoint};
use crate::pod::layout::PodDir;
use crate::pod::record::{self, Cause, Owner, Phase, Pod, PublishedPort, Sandbox, Status, Verdict};
use crate::pod::{Error, Result};

/// Version of the document's form.
const VERSION: u32 = 1;

/// Before anything is made.
pub fn before(hook: &Hook, project: &Project, owner: Option<&Owner>) -> Result<Vec<u8>> {
    write(json!({
        "version": VERSION,
        "hook": {"name": hook.name, "at": hook.at},
        "pod": {"name": project.name},
        "owner": owner,
        "project": project,
    }))
}

/// Of a pod that there is, from its records.
pub fn of(hook: &Hook, pod: &Pod, dir: &PodDir, failure: Option<&str>) -> Result<Vec<u8>> {
    let over = hook.at == HookPoint::AfterStop;
    let mut services = Map::new();
    for name in pod.project.services.keys() {
        let mut status: Status = record::read(&dir.service(name).status())?.unwrap_or_default();
        if over && status.phase.active() {
            // its container was killed, and no supervisor saw it
            status.phase = Phase::Exited;
            status.process = None;
            status.ready = false;
        }
        let mut status = serde_json::to_value(status).map_err(unexpected)?;
        if let Some(status) = status.as_object_mut() {
            status.remove("version");
        }
        services.insert(name.clone(), status);
    }
    let images = pod.images.iter();
    let images = images.map(|(name, image)| {
        let image = json!({"id": image.id, "config": image.config});
        (name.clone(), image)
    });
    let sandbox: Sandbox = record::read(&dir.sandbox())?.unwrap_or_default();
    let interfaces = sandbox.interfaces.iter().map(|i| {
        json!({
            "network": i.network,
            "name": i.name,
            "addresses": i.addresses,
            "gateways": i.gateways,
            "default": i.has_default(),
        })
    });
    let ports: Vec<PublishedPort> = record::read(&dir.ports())?.unwrap_or_default();
    let ports = ports.iter().map(|port| {
        let mut value = serde_json::to_value(&port.mapping).unwrap_or_default();
        value["service"] = json!(port.service);
        value
    });
    let mut verdict: Option<Verdict> = record::read(&dir.verdict())?;
    if let (None, true, Some(failure)) = (&verdict, over, failure) {
        // the pod was taken apart before its supervisor came to write it
        verdict = Some(Verdict {
            version: record::VERSION,
            service: None,
            cause: Cause::Hook,
            exit_code: None,
            signal: None,
            message: failure.to_owned(),
            finished: record::now(),
        });
    }
    write(json!({
        "version": VERSION,
        "hook": {"name": hook.name, "at": hook.at},
        "pod": {"name": pod.project.name, "created": pod.created, "folder": dir.dir, "netns": dir.netns()},
        "owner": pod.owner,
        "project": pod.project,
        "images": images.collect::<Map<_, _>>(),
        "services": services,
        "interfaces": interfaces.collect::<Vec<_>>(),
        "ports": ports.collect::<Vec<_>>(),
        "failure": failure,
        "verdict": verdict,
    }))
}

fn write(value: Value) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(&value).map_err(unexpected)?;
    text.push(b'\n');
    Ok(text)
}

fn unexpected(error: serde_json::Error) -> Error {
    Error::Other(format!("a hook's document: {error}"))
}
