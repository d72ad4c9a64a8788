//! What describes an image: configuration, manifest, and the OCI image layout around the blobs.
//!
//! *Invariants:* keys come in one order, times come from the packages: the same definitions and packages give the same
//! bytes. The configuration is the OCI one (image-spec config.md) with Docker's `Healthcheck` in it, which OCI has no
//! field for.
//!
//! ```text
//! OUTPUT/oci-layout
//! OUTPUT/index.json            one manifest, with org.opencontainers.image.ref.name
//! OUTPUT/blobs/sha256/<hex>    layers, configuration, manifest
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::archive::{Layer, digest};
use super::definition::{Definition, HealthTest, Healthcheck, port_key};
use super::{BuiltImage, Error};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The `config` object: Docker's names and order.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<String, Empty>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthcheck: Option<Value>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    volumes: BTreeMap<String, Empty>,
    #[serde(skip_serializing_if = "String::is_empty")]
    working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    stop_signal: String,
}

/// `{}`
#[derive(Debug, PartialEq, Serialize)]
struct Empty {}

/// Docker's Healthcheck: durations in nanoseconds, what is not said is left out.
fn healthcheck(h: &Healthcheck) -> Value {
    let test = match &h.test {
        HealthTest::Shell(line) => vec!["CMD-SHELL".to_string(), line.clone()],
        HealthTest::List(list) => list.clone(),
    };
    let mut object = serde_json::Map::new();
    object.insert("Test".into(), json!(test));
    for (key, duration) in [
        ("Interval", h.interval),
        ("Timeout", h.timeout),
        ("StartPeriod", h.start_period),
    ] {
        if let Some(duration) = duration {
            object.insert(key.into(), json!(duration.0));
        }
    }
    if let Some(retries) = h.retries {
        object.insert("Retries".into(), json!(retries));
    }
    Value::Object(object)
}

/// The configuration that a chain of definitions gives: each one's word goes before its base's.
fn config(chain: &[Definition]) -> Config {
    let mut out = Config::default();
    let mut env = BTreeMap::new();
    for d in chain {
        env.extend(d.env.clone());
        out.labels.extend(d.labels.clone());
        let ports = d.exposed_ports.iter().filter_map(|p| port_key(p));
        out.exposed_ports.extend(ports.map(|p| (p, Empty {})));
        out.volumes
            .extend(d.volumes.iter().map(|v| (v.clone(), Empty {})));
        if let Some(entrypoint) = &d.entrypoint {
            out.entrypoint = entrypoint.clone();
            // the base's arguments were for the base's program
            out.cmd = Vec::new();
        }
        if let Some(cmd) = &d.cmd {
            out.cmd = cmd.clone();
        }
        for (to, from) in [
            (&mut out.user, &d.user),
            (&mut out.working_dir, &d.workdir),
            (&mut out.stop_signal, &d.stop_signal),
        ] {
            if let Some(value) = from {
                *to = value.clone();
            }
        }
        if let Some(h) = &d.healthcheck {
            out.healthcheck = Some(healthcheck(h));
        }
    }
    out.env = env.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    out
}

/// Writes everything but the layers into `folder`. `times` are the layers', seconds since 1970.
pub fn write(
    folder: &Path,
    chain: &[Definition],
    layers: &[Layer],
    times: &[u64],
    architecture: &str,
) -> Result<BuiltImage, Error> {
    let times: Vec<String> = times.iter().map(|t| timestamp(*t)).collect();
    let history: Vec<Value> = chain
        .iter()
        .zip(&times)
        .map(
            |(d, t)| json!({"created": t, "created_by": format!("sampan image build {}", d.title)}),
        )
        .collect();
    let image = json!({
        "created": times.last(),
        "architecture": architecture,
        "os": "linux",
        "config": config(chain),
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>(),
        },
        "history": history,
    });
    let (config, config_size) = blob(folder, &image)?;
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|l| json!({"mediaType": LAYER, "digest": l.digest, "size": l.size}))
        .collect();
    let (manifest, manifest_size) = blob(
        folder,
        &json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config, "size": config_size},
            "layers": descriptors,
        }),
    )?;
    let name = reference(chain);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": manifest,
            "size": manifest_size,
            "platform": {"architecture": architecture, "os": "linux"},
            "annotations": {"org.opencontainers.image.ref.name": name},
        }],
    });
    put(&folder.join("index.json"), index.to_string().as_bytes())?;
    put(
        &folder.join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    let size = manifest_size + config_size + layers.iter().map(|l| l.size).sum::<u64>();
    Ok(BuiltImage {
        name,
        manifest,
        config,
        size,
    })
}

fn reference(chain: &[Definition]) -> String {
    let top = chain.last();
    top.and_then(|d| d.name.clone()).unwrap_or_else(|| {
        let title = top.map_or("image", |d| &d.title);
        format!("localhost/{title}:latest")
    })
}

fn timestamp(seconds: u64) -> String {
    jiff::Timestamp::from_second(seconds as i64)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}

fn blob(folder: &Path, value: &Value) -> Result<(String, u64), Error> {
    let data = value.to_string();
    let digest = digest(data.as_bytes());
    put(&blob_path(folder, &digest), data.as_bytes())?;
    Ok((digest, data.len() as u64))
}

/// Where the blob of a `sha256:` digest lies.
pub fn blob_path(folder: &Path, digest: &str) -> std::path::PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    folder.join("blobs/sha256").join(hex)
}

fn put(path: &Path, data: &[u8]) -> Result<(), Error> {
    fs::write(path, data).map_err(|e| Error::io(format!("write {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::build::definition::Duration;

    #[test]
    fn the_chain_decides() {
        let base = Definition {
            title: "base".into(),
            cmd: Some(vec!["sh".into()]),
            env: [("A".into(), "1".into()), ("PATH".into(), "/bin".into())].into(),
            exposed_ports: vec!["53/udp".into()],
            user: Some("1".into()),
            ..Definition::default()
        };
        let top = Definition {
            title: "top".into(),
            entrypoint: Some(vec!["redis".into()]),
            env: [("A".into(), "2".into())].into(),
            exposed_ports: vec!["80".into()],
            healthcheck: Some(Healthcheck {
                test: HealthTest::Shell("redis-cli ping".into()),
                interval: Some(Duration(5_000_000_000)),
                timeout: None,
                start_period: None,
                retries: Some(3),
            }),
            ..Definition::default()
        };
        let value = serde_json::to_value(config(&[base, top])).unwrap();
        assert_eq!(
            value,
            json!({
                "User": "1",
                "ExposedPorts": {"53/udp": {}, "80/tcp": {}},
                "Env": ["A=2", "PATH=/bin"],
                "Entrypoint": ["redis"],
                "Healthcheck": {"Test": ["CMD-SHELL", "redis-cli ping"], "Interval": 5_000_000_000u64, "Retries": 3},
            })
        );
    }

    #[test]
    fn times() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(1_700_000_000), "2023-11-14T22:13:20Z");
    }
}
