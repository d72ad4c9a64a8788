//! Phase 5, before files are merged: `extends` of the services of one document.
//!
//! The service is merged over the one it names, in the same document or in another file; what that file says
//! relative to itself is made absolute.
//!
//! *Invariants.* A chain ends: a cycle is reported as `a -> b -> a`, its length, the number of files and the sum of
//! copies are bounded. Other files go through the same phases as the named ones.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::files::{Read, absolute};
use super::merge::merge_service;
use super::node::{At, Entry, Node, Result, Value, join};
use super::parse;

/// Longest chain of services.
const MAX_CHAIN: usize = 32;
/// Most files that are read for it.
const MAX_FILES: usize = 100;
/// Most values that are copied.
const MAX_COPIES: usize = 500_000;

/// Turns a parsed document into a canonical one.
pub(super) type Prepare<'a> = &'a mut dyn FnMut(Node) -> Result<Node>;

/// Resolves `extends` for all documents of a load.
pub(super) struct Extends<'a> {
    read: Read<'a>,
    files: HashMap<PathBuf, Rc<Node>>,
    copied: usize,
}

/// The document a service stands in.
struct Place<'a> {
    document: &'a Node,
    /// `None`: one of the named files.
    file: Option<&'a Path>,
    folder: &'a Path,
}

/// Services on the way, innermost last.
type Chain = Vec<(Option<PathBuf>, String)>;

impl<'a> Extends<'a> {
    pub fn new(read: Read<'a>) -> Self {
        Self {
            read,
            files: HashMap::new(),
            copied: 0,
        }
    }

    /// The document with each `extends` resolved; `folder` is what its paths are relative to.
    pub fn apply(&mut self, document: Node, folder: &Path, prepare: Prepare<'_>) -> Result<Node> {
        let place = Place {
            document: &document,
            file: None,
            folder,
        };
        let mut resolved = Vec::new();
        if let Some(Value::Map(services)) = document.get("services").map(|s| &s.value) {
            for entry in services.iter().filter(|e| e.value.get("extends").is_some()) {
                let node = self.service(&place, &entry.key, &mut Vec::new(), prepare)?;
                resolved.push((entry.key.clone(), node));
            }
        }
        if resolved.is_empty() {
            return Ok(document);
        }
        let mut resolved: HashMap<String, Node> = resolved.into_iter().collect();
        let replace = |e: Entry| match resolved.remove(&e.key) {
            Some(value) => Entry { value, ..e },
            None => e,
        };
        let Node {
            pos,
            tag,
            value: Value::Map(mut entries),
        } = document
        else {
            return Ok(document);
        };
        for top in entries.iter_mut().filter(|e| e.key == "services") {
            let services = std::mem::replace(&mut top.value.value, Value::Null);
            let Value::Map(services) = services else {
                continue;
            };
            top.value.value = Value::Map(services.into_iter().map(replace).collect());
            break;
        }
        Ok(Node {
            pos,
            tag,
            value: Value::Map(entries),
        })
    }

    fn service(
        &mut self,
        place: &Place<'_>,
        name: &str,
        chain: &mut Chain,
        prepare: Prepare<'_>,
    ) -> Result<Node> {
        let Some(node) = place.document.get("services").and_then(|s| s.get(name)) else {
            return Ok(Node::new(&place.document.pos, Value::Null));
        };
        let path = join("services", name);
        let Some(extends) = At {
            node,
            path,
            key_pos: &node.pos,
        }
        .get("extends") else {
            return Ok(node.clone());
        };
        let key = (place.file.map(Path::to_owned), name.to_owned());
        if let Some(start) = chain.iter().position(|link| *link == key) {
            let names = chain.iter().skip(start).map(|(_, name)| name.as_str());
            let cycle: Vec<&str> = names.chain([name]).collect();
            let cycle = cycle.join(" -> ");
            return Err(extends.error(format_args!(
                "services extend each other: {cycle}; remove one"
            )));
        }
        if chain.len() >= MAX_CHAIN {
            return Err(extends.error(format_args!("a chain of more than {MAX_CHAIN} services")));
        }
        chain.push(key);
        let base = self.base(place, &extends, chain, prepare)?;
        chain.pop();
        self.copied = self.copied.saturating_add(base.count());
        if self.copied > MAX_COPIES {
            return Err(extends.error(format_args!(
                "more than {MAX_COPIES} values are copied by extends"
            )));
        }
        let mut over = node.clone();
        if let Value::Map(entries) = &mut over.value {
            entries.retain(|e| e.key != "extends");
        }
        merge_service(name, base, over)
    }

    fn base(
        &mut self,
        place: &Place<'_>,
        extends: &At<'_>,
        chain: &mut Chain,
        prepare: Prepare<'_>,
    ) -> Result<Node> {
        let Some(target) = extends.get("service") else {
            return Err(extends.error("names no service"));
        };
        let name = target.string()?;
        let missing = || Err(target.error(format_args!("there is no service {name} in that file")));
        let Some(file_at) = extends.get("file") else {
            let known = place
                .document
                .get("services")
                .and_then(|s| s.get(&name))
                .is_some();
            return if known {
                self.service(place, &name, chain, prepare)
            } else {
                missing()
            };
        };
        let path = absolute(place.folder, Path::new(&file_at.string()?));
        let document = self.document(&path, &file_at, prepare)?;
        if document
            .get("services")
            .and_then(|s| s.get(&name))
            .is_none()
        {
            return missing();
        }
        let folder = path.parent().unwrap_or(place.folder);
        let other = Place {
            document: &document,
            file: Some(&path),
            folder,
        };
        let mut base = self.service(&other, &name, chain, prepare)?;
        rebase(&mut base, folder);
        Ok(base)
    }

    fn document(&mut self, path: &Path, at: &At<'_>, prepare: Prepare<'_>) -> Result<Rc<Node>> {
        if let Some(known) = self.files.get(path) {
            return Ok(known.clone());
        }
        if self.files.len() >= MAX_FILES {
            return Err(at.error(format_args!(
                "more than {MAX_FILES} files are named by extends"
            )));
        }
        let shown = path.display();
        let bytes =
            (self.read)(path).map_err(|e| at.error(format_args!("cannot read {shown}: {e}")))?;
        let mut documents = parse::parse(at.raw()?, &bytes)?.into_iter();
        let (Some(document), None) = (documents.next(), documents.next()) else {
            return Err(at.error(format_args!("{shown} must hold one document")));
        };
        let document = Rc::new(prepare(document)?);
        self.files.insert(path.to_owned(), document.clone());
        Ok(document)
    }
}

/// Makes the paths of a canonical service absolute that are relative to its own file.
fn rebase(service: &mut Node, folder: &Path) {
    let Value::Map(entries) = &mut service.value else {
        return;
    };
    for entry in entries {
        let key = match entry.key.as_str() {
            "volumes" => "source",
            "env_file" => "path",
            _ => continue,
        };
        let Value::Seq(items) = &mut entry.value.value else {
            continue;
        };
        for item in items {
            let is_path = key == "path" || kind(item) == Some("bind");
            let Value::Map(fields) = &mut item.value else {
                continue;
            };
            for field in fields.iter_mut().filter(|f| is_path && f.key == key) {
                if let Value::Scalar { text, .. } = &mut field.value.value
                    && !text.is_empty()
                    && !text.starts_with(['/', '~'])
                {
                    *text = absolute(folder, Path::new(text.as_str()))
                        .to_string_lossy()
                        .into_owned();
                }
            }
        }
    }
}

fn kind(mount: &Node) -> Option<&str> {
    match &mount.get("type")?.value {
        Value::Scalar { text, .. } => Some(text),
        _ => None,
    }
}
