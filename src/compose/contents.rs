//! Phase 6, `configs` and `secrets`: files whose content the project brings along.
//!
//! One that is a file of the host, and asks for no owner or mode of its own, is a read-only bind mount of it; all others are
//! written into the pod's folder when it comes up.
//!
//! *Invariants.* Files are read through the context's reader; a file is at most [`MAX_BYTES`] long; nothing here is
//! interpolated again.

use std::collections::HashMap;

use super::mount::container_path;
use super::node::{At, Entry, Node, Result};
use super::project::{Mount, MountSource};
use super::service::Context;

/// Longest content, that of a secret in Docker and in Mesos' tests being far below (bytes).
const MAX_BYTES: usize = 1 << 20;

/// An entry of `configs` or `secrets`.
#[derive(Clone)]
struct Content {
    source: MountSource,
    /// Of the entry itself, for messages.
    at: String,
}

/// All entries at the top, by kind and name.
#[derive(Default)]
pub(super) struct Contents(HashMap<(&'static str, String), Content>);

/// Both keys, with where a file goes that names no place.
const KINDS: [(&str, &str); 2] = [("configs", "/"), ("secrets", "/run/secrets/")];

impl Contents {
    /// Reads what the project has.
    pub fn read(root: &At<'_>, context: &Context<'_>) -> Result<Self> {
        let mut out = Self::default();
        for (kind, _) in KINDS {
            for (name, at) in root.entries_of(kind)? {
                let content = Content {
                    source: content(&at, context)?,
                    at: at.key_pos.to_string(),
                };
                out.0.insert((kind, name.to_owned()), content);
            }
        }
        Ok(out)
    }
}

fn content(at: &At<'_>, context: &Context<'_>) -> Result<MountSource> {
    let ways = ["content", "environment", "file"];
    let mut given = ways.iter().filter_map(|key| Some((*key, at.get(key)?)));
    let (Some((way, value)), None) = (given.next(), given.next()) else {
        return Err(at.key_pos.error(
            &at.path,
            "needs one of content, environment and file, and only one",
        ));
    };
    let text = value.text()?;
    let content = match way {
        "content" => text,
        "environment" => match context.environment.get(&text) {
            Some(content) => content.clone(),
            None => return Err(value.error(format_args!("variable {text} is not set"))),
        },
        _ => {
            return Ok(MountSource::Bind {
                path: context.host_path(&value, &text)?,
                create: false,
                propagation: None,
                recursive: false,
            });
        }
    };
    file(&value, content.into_bytes())
}

fn file(at: &At<'_>, content: Vec<u8>) -> Result<MountSource> {
    match content.len() > MAX_BYTES {
        true => Err(at.error(format_args!("longer than {} MiB", MAX_BYTES >> 20))),
        false => Ok(MountSource::File {
            content,
            uid: None,
            gid: None,
            mode: 0o444,
        }),
    }
}

/// The files that a service asks for, each with its place in the project.
pub(super) fn of_service<'a>(at: &At<'a>, context: &Context<'_>) -> Result<Vec<(At<'a>, Mount)>> {
    let mut out = Vec::new();
    for (kind, folder) in KINDS {
        for item in at.items_of(kind)? {
            let mount = wanted(&item, kind, folder, context)?;
            out.push((item, mount));
        }
    }
    Ok(out)
}

fn wanted(item: &At<'_>, kind: &'static str, folder: &str, context: &Context<'_>) -> Result<Mount> {
    let Some(name_at) = item.get("source") else {
        return Err(item.error("has no source, the name of an entry at the top"));
    };
    let name = name_at.string()?;
    let Some(found) = context.contents.0.get(&(kind, name.clone())) else {
        return Err(name_at.error(format_args!(
            "{name} is not declared below {kind}: at the top"
        )));
    };
    let target = match item.filled("target") {
        None => format!("{folder}{name}"),
        // compose-spec 05-services.md "secrets": a plain name is one below /run/secrets
        Some(at) if kind == "secrets" && !at.raw()?.starts_with('/') => container_path(&At {
            node: &Node::str(&at.node.pos, format!("{folder}{}", at.string()?)),
            ..at
        })?,
        Some(at) => container_path(&at)?,
    };
    if target == "/" {
        return Err(item.error("the root of the container cannot be mounted over"));
    }
    Ok(Mount {
        origin: item.node.pos.origin(),
        target,
        source: with_owner(item, found, context)?,
        read_only: true,
    })
}

/// Owner and mode of a file; one of the host that is to have others is copied.
fn with_owner(item: &At<'_>, found: &Content, context: &Context<'_>) -> Result<MountSource> {
    let number = |key: &str, high: i64| -> Result<Option<u32>> {
        let at = item.filled(key);
        let value = at.map(|at| at.int_in(0, high)).transpose()?;
        Ok(value.map(|value| value as u32))
    };
    // setresuid(2) takes the last one for "as it is"
    let ids = i64::from(u32::MAX) - 1;
    let (own_uid, own_gid, own_mode) = (
        number("uid", ids)?,
        number("gid", ids)?,
        number("mode", 0o7777)?,
    );
    let plain = own_uid.is_none() && own_gid.is_none() && own_mode.is_none();
    let content = match &found.source {
        MountSource::Bind { path, .. } if !plain => (context.read)(path).map_err(|error| {
            let (at, path) = (&found.at, path.display());
            item.error(format_args!("cannot read {path}, named at {at}: {error}"))
        })?,
        MountSource::File { content, .. } => content.clone(),
        other => return Ok(other.clone()),
    };
    match file(item, content)? {
        MountSource::File { content, .. } => Ok(MountSource::File {
            content,
            uid: own_uid,
            gid: own_gid,
            mode: own_mode.unwrap_or(0o444),
        }),
        other => Ok(other),
    }
}

/// `- name` → `source: name`.
pub(super) fn canonical(at: &At<'_>) -> Result<Node> {
    let pos = &at.node.pos;
    Ok(match &at.node.value {
        super::node::Value::Map(_) => at.node.clone(),
        _ => {
            let name = Node::str(pos, at.string()?);
            Node::map(pos, vec![Entry::new(pos, "source", name)])
        }
    })
}

/// How the records hold it.
pub mod base64 {
    use ::base64::Engine;
    use ::base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// As text.
    pub fn serialize<S: Serializer>(content: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(content))
    }

    /// From text.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD
            .decode(String::deserialize(from)?)
            .map_err(D::Error::custom)
    }
}
