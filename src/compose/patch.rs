//! A partial compose file merged over a project that was loaded before: what a `before-launch` hook prints.
//!
//! *Invariants.* What the file does not touch stays as it was, its places and what compose has no word for included;
//! the result has passed the same phases as a file. Variables are not filled in: a value from elsewhere may hold any `$`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::Value as Json;

use super::node::{At, Node, Result};
use super::project::Project;
use super::service::Context;
use super::{
    Error, Loaded, canonical, emit, extends, files, interpolate, merge, parse, resolve, schema,
};

/// What messages call the project itself.
const BASE: &str = "(sampan config)";

/// The project with the documents of `text` (YAML or JSON) merged over it, as a further `-f` would be; messages call it
/// `name`. `None`: the text holds nothing.
///
/// # Errors
/// As [`super::load`], and for another name of the project.
pub fn patched(project: &Project, text: &[u8], name: &str) -> Result<Option<Loaded>> {
    // JSON's surrogate pairs are no YAML
    let normal = serde_json::from_slice::<Json>(text).map(|json| json.to_string());
    let text = normal.as_ref().map_or(text, |json| json.as_bytes());
    let mut documents = parse::parse(name, text)?;
    documents.retain(|d| !d.is_null());
    if documents.is_empty() {
        return Ok(None);
    }
    let base = base(project)?;
    let (before, known) = read(project, &base)?;
    let mut tree = base;
    let mut warnings = Vec::new();
    for document in documents {
        let mut prepare = |document: Node| {
            schema::validate(&document, &mut warnings)?;
            canonical::canonical(document)
        };
        let mut extends = extends::Extends::new(&files::from_disk);
        let document = extends.apply(prepare(document)?, &project.working_dir, &mut prepare)?;
        if let Some(name) = At::root(&document).get("name")
            && name.string()? != project.name
        {
            return Err(name.error("a pod is not renamed"));
        }
        tree = merge::merge(tree, document)?;
    }
    let (after, found) = read(project, &tree)?;
    let known: HashSet<String> = known.into_iter().collect();
    warnings.extend(found.into_iter().filter(|w| !known.contains(w)));
    let json = |project: &Project| serde_json::to_value(project).map_err(unexpected);
    let merged = three_way(json(project)?, &json(&before)?, json(&after)?);
    Ok(Some(Loaded {
        project: serde_json::from_value(merged).map_err(unexpected)?,
        warnings,
    }))
}

fn unexpected(error: serde_json::Error) -> Error {
    Error {
        message: format!("a project is no JSON: {error}"),
    }
}

/// The project as a canonical tree.
fn base(project: &Project) -> Result<Node> {
    let text = emit::to_yaml(project);
    let mut documents = parse::parse(BASE, text.as_bytes())?;
    let mut node = documents.pop().ok_or_else(|| Error {
        message: format!("{BASE}: empty"),
    })?;
    interpolate::Interpolation::new(&BTreeMap::new()).apply(&mut node, "")?;
    canonical::canonical(node)
}

fn read(project: &Project, tree: &Node) -> Result<(Project, Vec<String>)> {
    let mut context = Context::of_folder(Path::new(&project.working_dir));
    let request = resolve::Request {
        name: &project.name,
        profiles: &["*".to_owned()],
    };
    let project = resolve::project(&At::root(tree), &request, &mut context)?;
    Ok((project, context.warnings))
}

/// What changed from `before` to `after`, done to `original`.
fn three_way(original: Json, before: &Json, after: Json) -> Json {
    match (original, before, after) {
        (original, before, after) if *before == after => original,
        (Json::Object(mut original), Json::Object(before), Json::Object(after)) => {
            original.retain(|key, _| after.contains_key(key) || !before.contains_key(key));
            for (key, after) in after {
                let value = match (original.remove(&key), before.get(&key)) {
                    (Some(original), Some(before)) => three_way(original, before, after),
                    // before and after say the same of what the original leaves out
                    (None, Some(before)) if *before == after => continue,
                    _ => after,
                };
                original.insert(key, value);
            }
            Json::Object(original)
        }
        (_, _, after) => after,
    }
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
