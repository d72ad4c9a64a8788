//! Network lists: finding and reading them.
//!
//! *Invariants:* files are read in the order of the folders, within a folder by file name, and the first with a name
//! wins; a file that can't be read hides no other one; at most [`MAX_FILE`] bytes of a file are taken.
//! What a plugin's own keys mean is the plugin's business.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

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
            for file in files(dir)? {
                match read(&file) {
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
        let value: Value = serde_json::from_slice(text).map_err(|e| Error::Config {
            file: source.into(),
            line: Some(e.line()),
            why: format!("not JSON: {e}"),
        })?;
        let refuse = |why: String| Error::Config {
            file: source.into(),
            line: None,
            why,
        };
        let Value::Object(map) = value else {
            return Err(refuse("a network list is a JSON object".into()));
        };
        let mut config = into_list(map).map_err(refuse)?;
        settle_version(&mut config).map_err(refuse)?;
        let name = validate(&config).map_err(refuse)?;
        Ok(NetworkList {
            name,
            source: source.into(),
            config: Value::Object(config),
        })
    }

    /// The version of the specification that its plugins are called with.
    pub fn version(&self) -> &str {
        // a list read from a cache or built by hand may lack it
        self.config
            .get("cniVersion")
            .and_then(Value::as_str)
            .unwrap_or("0.1.0")
    }

    /// Its version is `least` or newer.
    pub fn at_least(&self, least: &str) -> bool {
        number(self.version()) >= number(least)
    }

    /// Folders to look for this list's plugins in: none for a generated one, which is written for those built in and
    /// needs more of them than others of the same name know (`removeBridge`).
    pub(super) fn plugin_dirs<'a>(&self, cni: &'a Cni) -> &'a [PathBuf] {
        match self.source == super::generate::GENERATED {
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

/// The configuration files of a folder by name; none when there is no folder.
fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match dir.read_dir() {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(doing("read folder", dir))(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(doing("read folder", dir)))?.path();
        let extension = path.extension().and_then(|e| e.to_str());
        if matches!(extension, Some("conflist" | "conf" | "json")) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<NetworkList, Error> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text))
        .map_err(Error::io(doing("read", path)))?;
    let source = path.display().to_string();
    if text.len() as u64 > MAX_FILE {
        return Err(Error::Config {
            file: source,
            line: None,
            why: format!("longer than {MAX_FILE} bytes"),
        });
    }
    NetworkList::parse(&text, &source)
}

/// A single plugin's configuration becomes a list of one; a list stays.
fn into_list(map: Map<String, Value>) -> Result<Map<String, Value>, String> {
    if map.contains_key("plugins") {
        return Ok(map);
    }
    if !map.contains_key("type") {
        return Err(
            "neither `plugins` (a network list) nor `type` (a single plugin) is there".into(),
        );
    }
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        if let Some(value) = map.get(key) {
            list.insert(key.into(), value.clone());
        }
    }
    list.insert("plugins".into(), Value::Array(vec![Value::Object(map)]));
    Ok(list)
}

/// Leaves one `cniVersion`: the newest that is known of those the list offers (CNI §1 `cniVersions`). None at all is
/// the oldest, which had no such key.
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
    let known = |v: &&&str| offered.iter().any(|o| o == **v);
    match VERSIONS.iter().rev().find(known) {
        Some(version) => config.insert("cniVersion".into(), (*version).into()),
        None => {
            let (offered, known) = (offered.join(", "), VERSIONS.join(", "));
            return Err(format!("cniVersion `{offered}`: not one of {known}"));
        }
    };
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
    for key in ["disableCheck", "disableGC"] {
        if let Some(value) = config.get(key) {
            // CNI §1 has a boolean, but the strings are in use
            if !value.is_boolean() && value != "true" && value != "false" {
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

fn validate_plugin(plugin: &Value) -> Result<(), String> {
    let Value::Object(plugin) = plugin else {
        return Err(": must be an object".into());
    };
    match plugin.get("type") {
        // the name of a program: nothing that leads out of the plugin folders
        Some(Value::String(t)) if t.contains('/') || t.contains('\0') || t == "." || t == ".." => {
            return Err(format!(
                ".type `{t}`: the name of a program, without a path"
            ));
        }
        Some(Value::String(t)) if !t.is_empty() => {}
        Some(_) => return Err(".type: must be the name of a plugin".into()),
        None => return Err(".type: missing".into()),
    }
    match plugin.get("capabilities") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(c)) if c.values().all(Value::is_boolean) => Ok(()),
        Some(_) => Err(".capabilities: must be an object of true and false".into()),
    }
}

fn truth(value: &Value) -> bool {
    value == &Value::Bool(true) || value == "true"
}

/// A version as numbers; what can't be read is the oldest.
fn number(version: &str) -> (u32, u32, u32) {
    let mut parts = version.split('.').map(|p| p.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_or_says_what_is_wrong() {
        // text; name and number of plugins, or the error
        type Row = (&'static str, Result<(&'static str, usize), &'static str>);
        let table: &[Row] = &[
            (
                r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#,
                Ok(("a", 2)),
            ),
            (
                r#"{"cniVersion":"0.3.1","name":"a.b","type":"bridge","mtu":9}"#,
                Ok(("a.b", 1)),
            ),
            (r#"{"name":"old","type":"bridge"}"#, Ok(("old", 1))),
            (
                r#"{"name":"a","disableCheck":"true","plugins":[{"type":"x"}]}"#,
                Ok(("a", 1)),
            ),
            (
                "{\n\"name\": }",
                Err("f:2: not JSON: expected value at line 2 column 9"),
            ),
            ("[]", Err("f: a network list is a JSON object")),
            (
                r#"{"name":"a"}"#,
                Err("f: neither `plugins` (a network list) nor `type` (a single plugin) is there"),
            ),
            (
                r#"{"name":"-a","type":"x"}"#,
                Err(
                    "f: name `-a`: must begin with a letter or digit and hold only these, `_`, `.` and `-`",
                ),
            ),
            (r#"{"name":1,"type":"x"}"#, Err("f: name: must be a string")),
            (r#"{"type":"x"}"#, Err("f: name: missing")),
            (
                r#"{"cniVersion":"9.0.0","name":"a","type":"x"}"#,
                Err(
                    "f: cniVersion `9.0.0`: not one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
                ),
            ),
            (
                r#"{"cniVersion":1,"name":"a","type":"x"}"#,
                Err("f: cniVersion: must be a string"),
            ),
            (
                r#"{"name":"a","plugins":[]}"#,
                Err("f: plugins: at least one is needed"),
            ),
            (
                r#"{"name":"a","plugins":{}}"#,
                Err("f: plugins: must be a list"),
            ),
            (
                r#"{"name":"a","plugins":[1]}"#,
                Err("f: plugins[0]: must be an object"),
            ),
            (
                r#"{"name":"a","plugins":[{"type":"x"},{}]}"#,
                Err("f: plugins[1].type: missing"),
            ),
            (
                r#"{"name":"a","type":"../sh"}"#,
                Err("f: plugins[0].type `../sh`: the name of a program, without a path"),
            ),
            (
                r#"{"name":"a","type":"x","capabilities":{"ips":1}}"#,
                Err("f: plugins[0].capabilities: must be an object of true and false"),
            ),
            (
                r#"{"name":"a","disableCheck":1,"plugins":[{"type":"x"}]}"#,
                Err("f: disableCheck: must be true or false"),
            ),
        ];
        for (text, expected) in table {
            let got = NetworkList::parse(text.as_bytes(), "f")
                .map(|l| (l.name.clone(), l.plugins().len()))
                .map_err(|e| e.to_string());
            let expected = expected
                .map(|(n, c)| (n.to_string(), c))
                .map_err(str::to_string);
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn newest_known_version_is_taken() {
        for (keys, expected) in [
            (
                r#""cniVersion":"0.4.0","cniVersions":["1.0.0","7.0.0"]"#,
                "1.0.0",
            ),
            (
                r#""cniVersion":"9.0.0","cniVersions":["0.3.1","0.4.0"]"#,
                "0.4.0",
            ),
            (r#""cniVersions":["1.1.0"]"#, "1.1.0"),
            (r#""x":1"#, "0.1.0"),
        ] {
            let text = format!(r#"{{"name":"a",{keys},"plugins":[{{"type":"x"}}]}}"#);
            let list = NetworkList::parse(text.as_bytes(), "f").unwrap();
            assert_eq!(list.version(), expected, "{keys}");
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        let list = |v: &str| {
            let text = format!(r#"{{"cniVersion":"{v}","name":"a","type":"x"}}"#);
            NetworkList::parse(text.as_bytes(), "f").unwrap()
        };
        for (v, least, expected) in [
            ("0.3.1", "0.4.0", false),
            ("0.4.0", "0.4.0", true),
            ("1.1.0", "0.4.0", true),
            ("1.0.0", "1.1.0", false),
        ] {
            assert_eq!(list(v).at_least(least), expected, "{v} {least}");
        }
    }

    #[test]
    fn first_file_with_the_name_wins_and_broken_ones_hide_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for d in [&one, &two] {
            std::fs::create_dir(d).unwrap();
        }
        let write = |path: PathBuf, text: &str| std::fs::write(path, text).unwrap();
        write(one.join("00-broken.conf"), "{");
        write(one.join("20-a.conf"), r#"{"name":"a","type":"late"}"#);
        write(one.join("10-a.json"), r#"{"name":"a","type":"early"}"#);
        write(one.join("05-a.txt"), r#"{"name":"a","type":"ignored"}"#);
        write(two.join("00-b.conflist"), r#"{"name":"b","type":"x"}"#);
        write(two.join("00-a.conflist"), r#"{"name":"a","type":"x"}"#);
        write(two.join("99-big.conf"), &" ".repeat(MAX_FILE as usize + 1));
        let cni = Cni {
            conf_dirs: vec![one.clone(), dir.path().join("missing"), two],
            plugin_dirs: vec![],
        };
        let (lists, broken) = cni.list().unwrap();
        let names: Vec<_> = lists.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(broken.len(), 2);
        assert!(broken[1].to_string().ends_with("longer than 1048576 bytes"));
        let a = cni.load("a").unwrap();
        assert_eq!(a.source, one.join("10-a.json").display().to_string());
        assert_eq!(a.plugins()[0]["type"], "early");
        let missing = cni.load("c").unwrap_err().to_string();
        assert!(
            missing.contains("no CNI network list `c`") && missing.contains("00-broken.conf:1"),
            "{missing}"
        );
    }

    #[test]
    fn interface_names() {
        for (name, expected) in [
            ("eth0", true),
            ("", false),
            ("..", false),
            ("fifteen-chars-x", true),
            ("sixteen-chars-xx", false),
            ("a/b", false),
            ("a:b", false),
            ("a b", false),
        ] {
            assert_eq!(is_ifname(name), expected, "{name}");
        }
    }
}
