//! Compose files → [`Project`].
//!
//! Loading goes through phases over a plain tree (`node`) in which every key and value knows its place:
//!
//! | phase | file | does |
//! |---|---|---|
//! | 0 find | `files` | compose files, `.env`; all reading |
//! | 1 parse | `parse` | YAML → tree; anchors, merge keys, bounds |
//! | 2 interpolate | `interpolate`, `dotenv` | `${VAR:-x}` in values |
//! | 3 validate | `schema` | known keys and shapes; what is not supported is refused |
//! | 4 canonical | `canonical` | short forms → long forms |
//! | 5 merge | `extends`, `merge` | a service over the one it extends, several files → one tree |
//! | 6 resolve | `resolve`, `service`, `check`, `mount`, `contents`, `port`, `limits`, `logging`, `network`, `hooks`, `order` | defaults, references, types |
//!
//! Phases 1 to 4 run per document, so that every finding has the place in the file it comes from. `emit` goes the other
//! way: a project → a compose file that loads to the same project; `patch` merges a file over a project that is loaded already.
//!
//! *Invariants.* Pure but for reading files through one function; no input makes it panic, recurse without bound or
//! produce more than a bounded amount; the same request and files give the same project. Nothing that a file asks for
//! is dropped without a warning.

mod canonical;
mod check;
mod contents;
mod dotenv;
mod emit;
mod extends;
mod files;
mod hooks;
mod interpolate;
mod limits;
mod logging;
mod merge;
mod mount;
mod network;
mod node;
mod order;
mod parse;
mod patch;
mod port;
pub mod project;
mod resolve;
mod schema;
mod service;
mod units;

#[cfg(test)]
mod tests;

pub use emit::to_yaml;
pub use hooks::{hooks_of_text, load_hooks};
pub use patch::patched;
pub use project::Project;
pub use schema::is_name;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use files::{Found, Read};
use node::{At, Node, Result, Value};

/// Bytes that a text such as `64m` or `10MB` means, with units of 1024.
pub fn size(text: &str) -> Option<u64> {
    units::bytes(text)
}

/// What to load and with which surroundings.
#[derive(Debug, Clone)]
pub struct LoadRequest {
    /// `-f`, in order; empty: `COMPOSE_FILE`, else `compose.yaml`, `compose.yml`, `docker-compose.yaml`,
    /// `docker-compose.yml` (and its `.override` sibling) are looked for in `working_dir` and upwards. `-` is
    /// standard input.
    pub files: Vec<PathBuf>,
    /// Folder the search starts in, and that `.env` is read from when no file is named.
    pub working_dir: PathBuf,
    /// `-p`; otherwise `COMPOSE_PROJECT_NAME`, the file's `name:`, the folder's name.
    pub project_name: Option<String>,
    /// The process environment (it wins over `.env`).
    pub environment: BTreeMap<String, String>,
    /// `--env-file`, in order; empty: `.env` in the project folder when it exists.
    pub env_files: Vec<PathBuf>,
    /// `--profile`, in order; `COMPOSE_PROFILES` is added.
    pub profiles: Vec<String>,
}

/// What loading gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The project.
    pub project: Project,
    /// Things to tell the user that are no errors, each with its place; in the order they were found.
    pub warnings: Vec<String>,
}

/// Why a project could not be loaded: one message that begins with `file:line:column: ` where there is a place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Complete text for the user; several findings stand on lines of their own.
    pub message: String,
}

/// Loads, interpolates, merges and checks the files of a request. Reads files, changes nothing.
///
/// # Errors
/// With the first thing that is wrong; validation lists up to twenty findings of one file.
pub fn load(request: &LoadRequest) -> std::result::Result<Loaded, Error> {
    let working_dir = std::path::absolute(&request.working_dir).map_err(|e| Error {
        message: format!(
            "cannot tell where {} is: {e}",
            request.working_dir.display()
        ),
    })?;
    load_with(
        &LoadRequest {
            working_dir,
            ..request.clone()
        },
        &files::from_disk,
    )
}

/// As [`load`], of one text that is no file; messages call it `name`. Paths are relative to the request's `working_dir`.
///
/// # Errors
/// As [`load`].
pub fn load_text(
    text: &str,
    name: &str,
    request: &LoadRequest,
) -> std::result::Result<Loaded, Error> {
    let request = LoadRequest {
        files: vec![PathBuf::from(name)],
        ..request.clone()
    };
    load_texts(&[(name.to_owned(), text.to_owned())], &request)
}

/// As [`load`], where those of the request's files that `texts` name are texts: name, text. Paths are relative to the folder of the first.
///
/// # Errors
/// As [`load`].
pub fn load_texts(
    texts: &[(String, String)],
    request: &LoadRequest,
) -> std::result::Result<Loaded, Error> {
    let place = |name: &str| files::absolute(&request.working_dir, Path::new(name));
    let read = |path: &Path| match texts.iter().find(|(name, _)| place(name) == path) {
        Some((_, text)) => Ok(text.as_bytes().to_vec()),
        None => files::from_disk(path),
    };
    load_with(request, &read)
}

fn load_with(request: &LoadRequest, read: Read<'_>) -> Result<Loaded> {
    let found = find(request, read)?;
    let folder = match found
        .first()
        .filter(|f| f.path != Path::new("-"))
        .and_then(|f| f.path.parent())
    {
        Some(folder) => folder.to_owned(),
        None => request.working_dir.clone(),
    };
    let mut environment = environment(request, &folder, read)?;
    let documents = documents(&found)?;
    let name = project_name(request, &environment, &documents, &folder)?;
    environment.insert("COMPOSE_PROJECT_NAME".to_owned(), name.clone());

    let (root, mut warnings) = one_tree(documents, &environment, &folder, read)?;
    let mut profiles = request.profiles.clone();
    let more = environment
        .get("COMPOSE_PROFILES")
        .map(String::as_str)
        .unwrap_or_default();
    profiles.extend(
        more.split(',')
            .map(str::trim)
            .filter(|p| !p.is_empty())
            .map(str::to_owned),
    );
    let mut context = service::Context {
        environment: &environment,
        read,
        ..service::Context::of_folder(&folder)
    };
    context.contents = contents::Contents::read(&At::root(&root), &context)?;
    let wanted = resolve::Request {
        name: &name,
        profiles: &profiles,
    };
    let mut project = resolve::project(&At::root(&root), &wanted, &mut context)?;
    project.files = found.into_iter().map(|f| f.path).collect();
    warnings.extend(context.warnings);
    Ok(Loaded { project, warnings })
}

fn find(request: &LoadRequest, read: Read<'_>) -> Result<Vec<Found>> {
    if !request.files.is_empty() {
        return files::named(&request.working_dir, &request.files, read);
    }
    // COMPOSE_FILE may come from the `.env` of the folder the user stands in
    let environment = environment(request, &request.working_dir, read)?;
    let Some(list) = environment
        .get("COMPOSE_FILE")
        .filter(|list| !list.is_empty())
    else {
        return files::search(&request.working_dir, read);
    };
    let separator = environment
        .get("COMPOSE_PATH_SEPARATOR")
        .map_or(":", String::as_str);
    let named: Vec<PathBuf> = match separator {
        "" => vec![list.into()],
        separator => list.split(separator).map(PathBuf::from).collect(),
    };
    files::named(&request.working_dir, &named, read)
}

/// `.env` files below the process environment.
fn environment(
    request: &LoadRequest,
    folder: &Path,
    read: Read<'_>,
) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    let mut add = |name: &str, bytes: &[u8]| -> Result<()> {
        let lookup = |key: &str| {
            request
                .environment
                .get(key)
                .or_else(|| out.get(key))
                .cloned()
        };
        let values = dotenv::parse(name, bytes, &lookup)?;
        out.extend(
            values
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?))),
        );
        Ok(())
    };
    for file in &request.env_files {
        let path = files::absolute(&request.working_dir, file);
        let bytes = read(&path).map_err(|e| Error {
            message: format!("cannot read {}: {e}", path.display()),
        })?;
        add(&file.display().to_string(), &bytes)?;
    }
    if request.env_files.is_empty() {
        let path = folder.join(".env");
        if let Some(bytes) = files::optional(&path, read)? {
            add(&path.display().to_string(), &bytes)?;
        }
    }
    out.extend(request.environment.clone());
    Ok(out)
}

fn documents(found: &[Found]) -> Result<Vec<Node>> {
    let mut out = Vec::new();
    for file in found {
        let documents = parse::parse(&file.name, &file.bytes)?;
        let documents: Vec<Node> = documents.into_iter().filter(|d| !d.is_null()).collect();
        if documents.is_empty() {
            return Err(Error {
                message: format!("{}:1:1: the file is empty", file.name),
            });
        }
        out.extend(documents);
    }
    Ok(out)
}

/// Phases 2 to 5.
fn one_tree(
    documents: Vec<Node>,
    environment: &BTreeMap<String, String>,
    folder: &Path,
    read: Read<'_>,
) -> Result<(Node, Vec<String>)> {
    let mut interpolation = interpolate::Interpolation::new(environment);
    let mut warnings = Vec::new();
    let mut prepare = |mut document: Node| {
        interpolation.apply(&mut document, "")?;
        schema::validate(&document, &mut warnings)?;
        canonical::canonical(document)
    };
    let mut extends = extends::Extends::new(read);
    let mut tree: Option<Node> = None;
    for document in documents {
        let document = extends.apply(prepare(document)?, folder, &mut prepare)?;
        tree = Some(match tree {
            None => merge::settle(document),
            Some(base) => merge::merge(base, document)?,
        });
    }
    let mut all = interpolation.warnings;
    all.extend(warnings);
    let root = tree.ok_or_else(|| Error {
        message: "no compose file".to_owned(),
    })?;
    Ok((root, all))
}

/// `-p`, `COMPOSE_PROJECT_NAME`, the last file's `name:`, the folder.
fn project_name(
    request: &LoadRequest,
    environment: &BTreeMap<String, String>,
    documents: &[Node],
    folder: &Path,
) -> Result<String> {
    let given = request.project_name.as_ref().or_else(|| {
        environment
            .get("COMPOSE_PROJECT_NAME")
            .filter(|n| !n.is_empty())
    });
    if let Some(name) = given {
        return match is_project_name(name) {
            true => Ok(name.clone()),
            false => Err(Error {
                message: format!("project name {name:?}: {NAME_RULE}"),
            }),
        };
    }
    for document in documents.iter().rev() {
        let Some(mut node) = document.get("name").cloned().filter(|n| !n.is_null()) else {
            continue;
        };
        if let Value::Scalar { .. } = node.value {
            interpolate::Interpolation::new(environment).apply(&mut node, "name")?;
        }
        let at = At {
            path: "name".to_owned(),
            ..At::root(&node)
        };
        let name = at.string()?;
        return match is_project_name(&name) {
            true => Ok(name),
            false => Err(at.error(format_args!("{name:?}: {NAME_RULE}"))),
        };
    }
    let name = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    let name: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "_-".contains(*c))
        .collect();
    match name.trim_start_matches(['_', '-']) {
        "" => Err(Error {
            message: format!(
                "no project name can be made of {}; give one with -p",
                folder.display()
            ),
        }),
        name => Ok(name.to_owned()),
    }
}

const NAME_RULE: &str = "use lower-case letters, digits, '-' and '_', a letter or digit first";

fn is_project_name(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
}
