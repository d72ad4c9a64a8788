//! Network lists: finding and reading them.
//!
//! *Invariants:* files are read in the order of the folders, within a folder `*.conflist` before `*.conf` and `*.json`
//! as libcni has it, each by file name, and the first with a name wins; a file that can't be read hides no other one;
//! at most [`MAX_FILE`] bytes of a file are taken.
//! What a plugin's own keys mean is the plugin's business.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::error::doing;
use super::{Cni, Error, NetworkList};

/// Longest configuration file, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most plugins of one list.
const MAX_PLUGINS: usize = 64;
/// Versions of the specification that lists may ask for, oldest first.
const VERSIONS: &[&str] = &[
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

impl Cni {
    /// Finds and reads the network list `name`; read afresh at each call.
    pub fn load(&self, name: &str) -> Result<NetworkList, Error> {
        let (lists, broken) = self.list()?;
        match lists.into_iter().find(|list| list.name == name) {
            Some(list) => Ok(list),
            None => Err(Error::NotFound {
                name: name.into(),
                dirs: self.conf_dirs.clone(),
                broken,
            }),
        }
    }

    /// Every readable network list, by name; unreadable files come as errors with the file's name.
    pub fn list(&self) -> Result<(Vec<NetworkList>, Vec<Error>), Error> {
        let mut lists: Vec<NetworkList> = Vec::new();
        let mut broken = Vec::new();
        for dir in &self.conf_dirs {
            let mut found = files(dir, &["conflist"])?;
            found.extend(files(dir, &["conf", "json"])?);
            for file in found {
                match NetworkList::read(&file) {
                    Ok(list) if lists.iter().any(|known| known.name == list.name) => {}
                    Ok(list) => lists.push(list),
                    Err(e) => broken.push(e),
                }
            }
        }
        lists.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((lists, broken))
    }
}

impl NetworkList {
    /// Checks `text` as a network list or as the configuration of a single plugin, which becomes a list of one
    /// (CNI §1 "Network configuration format").
    pub fn parse(text: &[u8], source: &str) -> Result<NetworkList, Error> {
        let mut config = object(text, source)?;
        if !config.contains_key("plugins") && config.contains_key("type") {
            config = list_of_one(config);
        }
        NetworkList::check(config, source)
    }

    /// As [`NetworkList::parse`] of a file; unless the list forbids it (`loadOnlyInlinedPlugins`), the plugins in the
    /// folder beside it that has the network's name follow its own (CNI §1 `plugins`).
    fn read(path: &Path) -> Result<NetworkList, Error> {
        let source = path.display().to_string();
        let mut config = object(&content(path)?, &source)?;
        if !config.contains_key("plugins") && config.contains_key("type") {
            return NetworkList::check(list_of_one(config), &source);
        }
        let name = config.get("name").and_then(Value::as_str);
        let folder = name
            .filter(|name| is_name(name))
            .and_then(|name| Some(path.parent()?.join(name)));
        let only_own = config.get("loadOnlyInlinedPlugins").is_some_and(truth);
        if let (Some(folder), false) = (folder, only_own) {
            let mut further = Vec::new();
            for file in files(&folder, &["conf"])? {
                let source = file.display().to_string();
                let plugin = Value::Object(object(&content(&file)?, &source)?);
                validate_plugin(&plugin).map_err(|why| Error::Config {
                    file: source,
                    line: None,
                    why: why.trim_start_matches(['.', ':', ' ']).into(),
                })?;
                further.push(plugin);
            }
            if !further.is_empty() {
                let plugins = config.entry("plugins").or_insert_with(|| json!([]));
                if let Some(plugins) = plugins.as_array_mut() {
                    plugins.extend(further);
                }
            }
        }
        NetworkList::check(config, &source)
    }

    fn check(mut config: Map<String, Value>, source: &str) -> Result<NetworkList, Error> {
        let refuse = |why: String| Error::Config {
            file: source.into(),
            line: None,
            why,
        };
        if !config.contains_key("plugins") {
            let why = match config.get("loadOnlyInlinedPlugins").is_some_and(truth) {
                true => "loadOnlyInlinedPlugins: there is no `plugins` to go with it",
                false => "neither `plugins` (a network list) nor `type` (a single plugin) is there",
            };
            return Err(refuse(why.into()));
        }
        settle_version(&mut config).map_err(refuse)?;
        let name = validate(&config).map_err(refuse)?;
        Ok(NetworkList {
            name,
            source: source.into(),
            config: Value::Object(config),
        })
    }

    /// The versions that the list may be used with, the newest first.
    pub(super) fn versions(&self) -> Vec<&str> {
        let offered = self.config.get("cniVersions").and_then(Value::as_array);
        match offered {
            Some(offered) => offered.iter().filter_map(Value::as_str).collect(),
            None => vec![self.version()],
        }
    }

    /// The list with one version and no choice any more.
    pub(super) fn at_version(&self, version: &str) -> NetworkList {
        let mut list = self.clone();
        if let Some(config) = list.config.as_object_mut() {
            config.remove("cniVersions");
            config.insert("cniVersion".into(), version.into());
        }
        list
    }

    /// The version of the specification that its plugins are called with.
    pub fn version(&self) -> &str {
        // a list read from a cache or built by hand may lack it
        self.config
            .get("cniVersion")
            .and_then(Value::as_str)
            .unwrap_or("0.1.0")
    }

    /// Types of its plugins, in the order of ADD.
    pub fn types(&self) -> Vec<&str> {
        let of = |plugin| Value::as_str(Value::get(plugin, "type")?);
        self.plugins().iter().filter_map(of).collect()
    }

    /// Its version is `least` or newer.
    pub fn at_least(&self, least: &str) -> bool {
        number(self.version()) >= number(least)
    }

    /// Folders to look for a plugin of this list in: none for those of a generated list that are built in, which it is
    /// written for and needs more of than others of the same name know (`removeBridge`).
    pub(super) fn plugin_dirs<'a>(&self, cni: &'a Cni, plugin: &Value) -> &'a [PathBuf] {
        let ours = |at: &str| match plugin.pointer(at).and_then(Value::as_str) {
            Some(kind) => super::invoke::is_built_in(kind, &[]),
            None => at != "/type",
        };
        match self.source == super::generate::GENERATED && ours("/type") && ours("/ipam/type") {
            true => &[],
            false => &cni.plugin_dirs,
        }
    }

    /// A plugin of the chain declares the capability (`ips`, `mac`, `portMappings`, …).
    pub fn declares(&self, capability: &str) -> bool {
        self.plugins().iter().any(|p| declares(p, capability))
    }

    /// The plugins' configurations in the order of ADD.
    pub(super) fn plugins(&self) -> &[Value] {
        self.config
            .get("plugins")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// A flag of the list such as `disableCheck`.
    pub(super) fn flag(&self, key: &str) -> bool {
        self.config.get(key).is_some_and(truth)
    }
}

/// The plugin's `capabilities` hold `capability: true`.
pub(super) fn declares(plugin: &Value, capability: &str) -> bool {
    plugin
        .get("capabilities")
        .and_then(|c| c.get(capability))
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

/// Names of networks and containers (CNI §1 and §2): a letter or digit, then also `_`, `.` and `-`.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Names of network interfaces as the kernel takes them (CNI §2 `CNI_IFNAME`).
pub(super) fn is_ifname(text: &str) -> bool {
    !text.is_empty()
        && text.len() < 16
        && text != "."
        && text != ".."
        && !text
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

/// The files of a folder with one of the extensions by name; none when there is no folder.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = match dir.read_dir() {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(doing("read folder", dir))(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(doing("read folder", dir)))?.path();
        let extension = path.extension().and_then(|e| e.to_str());
        if extension.is_some_and(|e| extensions.contains(&e)) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn content(path: &Path) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text))
        .map_err(Error::io(doing("read", path)))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::Config {
            file: path.display().to_string(),
            line: None,
            why: format!("longer than {MAX_FILE} bytes"),
        });
    }
    Ok(text)
}

fn object(text: &[u8], source: &str) -> Result<Map<String, Value>, Error> {
    let refuse = |line, why: String| Error::Config {
        file: source.into(),
        line,
        why,
    };
    match serde_json::from_slice(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(refuse(None, "a network list is a JSON object".into())),
        Err(e) => Err(refuse(Some(e.line()), format!("not JSON: {e}"))),
    }
}

/// A single plugin's configuration as a list.
fn list_of_one(plugin: Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    for key in ["cniVersion", "cniVersions", "name"] {
        if let Some(value) = plugin.get(key) {
            list.insert(key.into(), value.clone());
        }
    }
    list.insert("plugins".into(), Value::Array(vec![Value::Object(plugin)]));
    list
}

/// Makes `cniVersion` the newest that is known of those the list offers, and `cniVersions`, where there is a choice,
/// all of these, the newest first (CNI §1 "Version considerations"). None at all is the oldest, which had no such key.
fn settle_version(config: &mut Map<String, Value>) -> Result<(), String> {
    let mut offered = Vec::new();
    match config.get("cniVersion") {
        None => {}
        Some(Value::String(version)) => offered.push(version.clone()),
        Some(_) => return Err("cniVersion: must be a string".into()),
    }
    if let Some(more) = config.remove("cniVersions") {
        let more: Vec<String> = serde_json::from_value(more)
            .map_err(|_| "cniVersions: must be a list of strings".to_string())?;
        offered.extend(more);
    }
    if offered.is_empty() {
        return Ok(());
    }
    let known = |v: &&str| offered.iter().any(|o| o == v);
    let known: Vec<_> = VERSIONS.iter().rev().copied().filter(known).collect();
    let Some(newest) = known.first() else {
        let (offered, known) = (offered.join(", "), VERSIONS.join(", "));
        return Err(format!("cniVersion `{offered}`: not one of {known}"));
    };
    config.insert("cniVersion".into(), (*newest).into());
    if known.len() > 1 {
        config.insert("cniVersions".into(), json!(known));
    }
    Ok(())
}

/// Checks the keys that the runtime itself reads; gives the name.
fn validate(config: &Map<String, Value>) -> Result<String, String> {
    let name = match config.get("name") {
        Some(Value::String(name)) if is_name(name) => name.clone(),
        Some(Value::String(name)) => {
            return Err(format!(
                "name `{name}`: must begin with a letter or digit and hold only these, `_`, `.` and `-`"
            ));
        }
        Some(_) => return Err("name: must be a string".into()),
        None => return Err("name: missing".into()),
    };
    for key in ["disableCheck", "disableGC", "loadOnlyInlinedPlugins"] {
        if let Some(value) = config.get(key) {
            // CNI §1 has a boolean, but the strings are in use
            if !truth(value) && !is_word(value, "false") && *value != Value::Bool(false) {
                return Err(format!("{key}: must be true or false"));
            }
        }
    }
    let plugins = match config.get("plugins") {
        Some(Value::Array(plugins)) => plugins,
        _ => return Err("plugins: must be a list".into()),
    };
    if plugins.is_empty() {
        return Err("plugins: at least one is needed".into());
    }
    if plugins.len() > MAX_PLUGINS {
        return Err(format!("plugins: more than {MAX_PLUGINS}"));
    }
    for (i, plugin) in plugins.iter().enumerate() {
        validate_plugin(plugin).map_err(|why| format!("plugins[{i}]{why}"))?;
    }
    Ok(name)
}

/// The error begins with the place: `.key` or `:`.
fn validate_plugin(plugin: &Value) -> Result<(), String> {
    let Value::Object(plugin) = plugin else {
        return Err(": must be an object".into());
    };
    let kinds = [
        (".type", plugin.get("type")),
        (
            ".ipam.type",
            plugin.get("ipam").and_then(|ipam| ipam.get("type")),
        ),
    ];
    for (key, kind) in kinds {
        match kind {
            Some(Value::String(kind)) if is_program(kind) => {}
            Some(Value::String(kind)) => {
                return Err(format!(
                    "{key} `{kind}`: must be the name of a plugin, without a path"
                ));
            }
            Some(_) => return Err(format!("{key}: must be the name of a plugin")),
            None if key == ".type" => return Err(format!("{key}: missing")),
            None => {}
        }
    }
    match plugin.get("capabilities") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(c)) if c.values().all(Value::is_boolean) => Ok(()),
        Some(_) => Err(".capabilities: must be an object of true and false".into()),
    }
}

/// The name of a program in a plugin folder: nothing that leads out of it (CVE-2021-20206).
pub(super) fn is_program(kind: &str) -> bool {
    !matches!(kind, "" | "." | "..") && !kind.contains(['/', '\\', '\0'])
}

fn truth(value: &Value) -> bool {
    *value == Value::Bool(true) || is_word(value, "true")
}

fn is_word(value: &Value, word: &str) -> bool {
    value.as_str().is_some_and(|v| v.eq_ignore_ascii_case(word))
}

/// A version as numbers; what can't be read is the oldest.
fn number(version: &str) -> (u32, u32, u32) {
    let mut parts = version.split('.').map(|p| p.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
#[path = "conf_tests.rs"]
mod tests;
