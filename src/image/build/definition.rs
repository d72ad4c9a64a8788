//! The definition of an image: `images/NAME/image.toml`, read and checked.
//!
//! *Invariants:* a [`Definition`] that comes out of [`load`] has only absolute, plain container paths, ids that fit,
//! package names that no program can take for an option, and durations in nanoseconds. Reading touches nothing but the
//! definitions themselves; whether packages and files exist is found out by who uses them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::Error;

/// The longest chain of definitions built on one another.
const MAX_CHAIN: usize = 16;

/// One `image.toml`. See docs/images.md for what each key means.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Definition {
    /// Reference written into the layout; `localhost/<folder>:latest` when missing.
    pub name: Option<String>,
    /// Another definition (the name of a folder beside this one) whose layers come first.
    pub base: Option<String>,
    /// Debian packages, with `=version` where one is wanted; their dependencies come along.
    pub packages: Vec<String>,
    /// Packages taken as present although they are not: what only maintainer scripts need.
    pub omit: Vec<String>,
    /// Keeps documentation, manual pages and translations.
    pub documentation: bool,
    /// Paths of packages that are left out, as patterns.
    pub exclude: Vec<String>,
    /// Paths of packages that are kept although `exclude` or the default names them.
    pub include: Vec<String>,
    /// Files copied from the definition's folder or from the build.
    pub files: Vec<FileEntry>,
    /// Folders with owner and mode.
    pub directories: Vec<DirectoryEntry>,
    /// Symbolic links.
    pub symlinks: Vec<SymlinkEntry>,
    /// Users and groups beyond root and nobody.
    pub users: Vec<User>,
    /// OCI `Entrypoint`; setting it forgets the base's `cmd`.
    pub entrypoint: Option<Vec<String>>,
    /// OCI `Cmd`.
    pub cmd: Option<Vec<String>>,
    /// OCI `Env`, added to the base's.
    pub env: BTreeMap<String, String>,
    /// OCI `User`: `name`, `uid`, `uid:gid`.
    pub user: Option<String>,
    /// OCI `WorkingDir`.
    pub workdir: Option<String>,
    /// OCI `ExposedPorts`: `6379`, `53/udp`.
    pub exposed_ports: Vec<String>,
    /// OCI `Volumes`.
    pub volumes: Vec<String>,
    /// Docker's `Healthcheck`.
    pub healthcheck: Option<Healthcheck>,
    /// OCI `StopSignal`.
    pub stop_signal: Option<String>,
    /// OCI `Labels`, added to the base's.
    pub labels: BTreeMap<String, String>,

    /// The folder the definition is in.
    #[serde(skip)]
    pub folder: PathBuf,
    /// The folder's name.
    #[serde(skip)]
    pub title: String,
}

/// One file of the image.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path in the image.
    pub path: String,
    /// Path below the definition's folder.
    pub source: Option<String>,
    /// Name of a program of this project, taken from beside the running one.
    pub binary: Option<String>,
    /// Permission bits; 0644 for a `source`, 0755 for a `binary`.
    pub mode: Option<u32>,
    /// Owner.
    #[serde(default)]
    pub uid: u32,
    /// Group.
    #[serde(default)]
    pub gid: u32,
}

/// One folder of the image.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryEntry {
    /// Path in the image.
    pub path: String,
    /// Permission bits.
    #[serde(default = "default_directory_mode")]
    pub mode: u32,
    /// Owner.
    #[serde(default)]
    pub uid: u32,
    /// Group.
    #[serde(default)]
    pub gid: u32,
}

fn default_directory_mode() -> u32 {
    0o755
}

/// Symbolic links to one target.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SymlinkEntry {
    /// What they contain.
    pub target: String,
    /// Where they are.
    pub paths: Vec<String>,
}

/// A line of `/etc/passwd` and, with the same gid, one of `/etc/group`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Login name, also the group's name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Home folder (not created).
    #[serde(default = "default_home")]
    pub home: String,
    /// Login shell.
    #[serde(default = "default_shell")]
    pub shell: String,
}

fn default_home() -> String {
    "/nonexistent".into()
}

fn default_shell() -> String {
    "/usr/sbin/nologin".into()
}

/// Docker's health check, with durations as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Healthcheck {
    /// A command line for the shell, or a list that begins with CMD, CMD-SHELL or NONE.
    pub test: HealthTest,
    /// Time between two checks.
    #[serde(default)]
    pub interval: Option<Duration>,
    /// Time a check may take.
    #[serde(default)]
    pub timeout: Option<Duration>,
    /// Time after the start in which failures do not count.
    #[serde(default)]
    pub start_period: Option<Duration>,
    /// Failures in a row that make the container unhealthy.
    #[serde(default)]
    pub retries: Option<u32>,
}

/// The two ways to write a health check's command.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum HealthTest {
    /// For `/bin/sh -c`.
    Shell(String),
    /// Docker's list.
    List(Vec<String>),
}

/// Nanoseconds, written as in compose files: `1m30s`, `500ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Duration(pub i64);

impl TryFrom<String> for Duration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse_duration(&text).map(Duration).ok_or_else(|| {
            format!("{text:?} is no duration: write numbers with units, as 1m30s or 500ms")
        })
    }
}

fn parse_duration(text: &str) -> Option<i64> {
    let mut total = 0i64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let nanoseconds = match unit {
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(nanoseconds)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

/// Reads the definition in `folder` and those below it, lowest first.
pub fn load(folder: &Path) -> Result<Vec<Definition>, Error> {
    let mut chain = vec![load_one(folder)?];
    while let Some(base) = chain.last().and_then(|d| d.base.clone()) {
        let above = &chain[chain.len() - 1];
        let file = above.file();
        let invalid = |message: String| Error::Definition {
            file: file.clone(),
            message,
        };
        if !is_plain_name(&base) {
            return Err(invalid(format!(
                "base: {base:?} is not the name of a folder beside this one"
            )));
        }
        if chain.len() == MAX_CHAIN || chain.iter().any(|d| d.title == base) {
            return Err(invalid(format!("base: {base} is built on itself")));
        }
        let below = above.folder.join("..").join(&base);
        if !below.join("image.toml").exists() {
            return Err(invalid(format!(
                "base: there is no definition {base} (looked for {})",
                below.join("image.toml").display()
            )));
        }
        chain.push(load_one(&below)?);
    }
    chain.reverse();
    Ok(chain)
}

impl Definition {
    /// The definition's own path, for messages.
    pub fn file(&self) -> PathBuf {
        self.folder.join("image.toml")
    }
}

fn load_one(folder: &Path) -> Result<Definition, Error> {
    let file = folder.join("image.toml");
    let text = fs::read_to_string(&file)
        .map_err(|source| Error::io(format!("read {}", file.display()), source))?;
    // the name that follows from `.` or `a/..` is that of the real folder
    let real = fs::canonicalize(folder)
        .map_err(|source| Error::io(format!("resolve {}", folder.display()), source))?;
    let title = real
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    parse(&text, folder, &title)
}

fn parse(text: &str, folder: &Path, title: &str) -> Result<Definition, Error> {
    let file = folder.join("image.toml");
    let mut definition: Definition = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |s| {
            text.get(..s.start).unwrap_or("").matches('\n').count() + 1
        });
        Error::Syntax {
            file: file.clone(),
            line,
            message: e.message().replace('\n', ", "),
        }
    })?;
    definition.folder = folder.to_path_buf();
    definition.title = title.to_string();
    check(&definition).map_err(|message| Error::Definition { file, message })?;
    Ok(definition)
}

fn check(d: &Definition) -> Result<(), String> {
    if !is_plain_name(&d.title) {
        return Err(format!(
            "the folder's name {:?} cannot name an image",
            d.title
        ));
    }
    if let Some(name) = &d.name {
        name.parse::<oci_spec::distribution::Reference>()
            .map_err(|e| format!("name: {name:?} is not an image reference: {e}"))?;
    }
    for (key, names) in [("packages", &d.packages), ("omit", &d.omit)] {
        for (i, name) in names.iter().enumerate() {
            check_package(name).map_err(|e| format!("{key}[{i}]: {e}"))?;
        }
    }
    for (i, f) in d.files.iter().enumerate() {
        check_file(f).map_err(|e| format!("files[{i}]: {e}"))?;
    }
    for (i, entry) in d.directories.iter().enumerate() {
        check_path(&entry.path)
            .and_then(|()| check_mode(entry.mode))
            .map_err(|e| format!("directories[{i}]: {e}"))?;
    }
    for (i, links) in d.symlinks.iter().enumerate() {
        let at = |e: String| format!("symlinks[{i}]: {e}");
        if links.target.is_empty() || links.target.contains('\0') {
            return Err(at("target is empty or holds a zero byte".into()));
        }
        links
            .paths
            .iter()
            .try_for_each(|p| check_path(p))
            .map_err(at)?;
    }
    for (i, user) in d.users.iter().enumerate() {
        check_user(user).map_err(|e| format!("users[{i}]: {e}"))?;
    }
    for (i, path) in d.volumes.iter().enumerate() {
        check_path(path).map_err(|e| format!("volumes[{i}]: {e}"))?;
    }
    if let Some(path) = &d.workdir {
        check_path(path).map_err(|e| format!("workdir: {e}"))?;
    }
    for (i, port) in d.exposed_ports.iter().enumerate() {
        port_key(port).ok_or_else(|| {
            format!("exposed_ports[{i}]: {port:?} is no port: write 80, 80/tcp or 53/udp")
        })?;
    }
    for key in d.env.keys() {
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(format!("env: {key:?} cannot be the name of a variable"));
        }
    }
    d.healthcheck.as_ref().map_or(Ok(()), |h| match &h.test {
        HealthTest::List(list)
            if !matches!(
                list.first().map(String::as_str),
                Some("CMD" | "CMD-SHELL" | "NONE")
            ) =>
        {
            Err("healthcheck.test: a list begins with CMD, CMD-SHELL or NONE".into())
        }
        _ => Ok(()),
    })
}

fn check_file(f: &FileEntry) -> Result<(), String> {
    check_path(&f.path)?;
    check_mode(f.mode.unwrap_or(0))?;
    match (&f.source, &f.binary) {
        (Some(source), None) => {
            let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
            if source.is_empty() || !Path::new(source).components().all(plain) {
                return Err(format!(
                    "source {source:?} is not below the definition's folder"
                ));
            }
        }
        (None, Some(binary)) if is_plain_name(binary) => {}
        (None, Some(binary)) => return Err(format!("binary {binary:?} is not a program's name")),
        _ => return Err("one of source and binary is needed".into()),
    }
    Ok(())
}

/// Debian Policy 5.6.1: lower case letters, digits, plus, minus, dots; so never an option or a path.
fn check_package(text: &str) -> Result<(), String> {
    let (name, version) = text.split_once('=').unwrap_or((text, "0"));
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = name.len() >= 2
        && name.starts_with(lower)
        && name.chars().all(|c| lower(c) || "+-.".contains(c))
        // apt takes `name+` and `name-` for "install" and "remove"
        && !name.ends_with('-')
        && !version.is_empty()
        && version.chars().all(|c| c.is_ascii_alphanumeric() || "+-.:~".contains(c));
    if good {
        Ok(())
    } else {
        Err(format!("{text:?} is not the name of a Debian package"))
    }
}

fn check_user(user: &User) -> Result<(), String> {
    if !is_plain_name(&user.name) {
        return Err(format!("name {:?} is not a login name", user.name));
    }
    for field in [&user.home, &user.shell] {
        if !field.starts_with('/') || field.contains([':', '\n', '\0']) {
            return Err(format!("{field:?} is not an absolute path without colon"));
        }
    }
    Ok(())
}

fn check_mode(mode: u32) -> Result<(), String> {
    if mode > 0o7777 {
        return Err(format!(
            "mode {mode} is above 0o7777 (octal numbers begin with 0o)"
        ));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), String> {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    match path.strip_prefix('/') {
        Some(rest) if rest.split('/').all(plain) => Ok(()),
        _ => Err(format!(
            "path {path:?} is not absolute and plain (no end slash, no dots)"
        )),
    }
}

fn is_plain_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// `80` → `80/tcp`: the key of OCI `ExposedPorts`.
pub fn port_key(text: &str) -> Option<String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number: u16 = port.parse().ok()?;
    (number > 0 && matches!(protocol, "tcp" | "udp" | "sctp"))
        .then(|| format!("{number}/{protocol}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        parse(text, Path::new("images/x"), "x")
            .map(|_| ())
            .expect_err(text)
            .to_string()
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("5s", Some(5_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("500ms", Some(500_000_000)),
            ("", None),
            ("5", None),
            ("s", None),
            ("1x", None),
            ("-1s", None),
            ("9999999999h", None),
        ] {
            assert_eq!(parse_duration(text), expected, "{text}");
        }
    }

    #[test]
    fn ports() {
        for (text, expected) in [
            ("80", Some("80/tcp")),
            ("53/udp", Some("53/udp")),
            ("080", Some("80/tcp")),
            ("0", None),
            ("65536", None),
            ("80/http", None),
            ("80-90", None),
        ] {
            assert_eq!(port_key(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn refusals_say_where() {
        for (text, expected) in [
            (
                "packages = []\n\npackagse = [\"redis\"]\n",
                "images/x/image.toml:3: unknown field `packagse`",
            ),
            ("packages = [", "images/x/image.toml:1: "),
            (
                "packages = [\"ok1\", \"-oDir=/\"]",
                "images/x/image.toml: packages[1]: \"-oDir=/\" is not the name of a Debian package",
            ),
            (
                "omit = [\"perl-\"]",
                "images/x/image.toml: omit[0]: \"perl-\" is not the name of a Debian package",
            ),
            (
                "[[files]]\npath = \"/etc/../x\"\nsource = \"x\"",
                "images/x/image.toml: files[0]: path \"/etc/../x\" is not absolute and plain (no end slash, no dots)",
            ),
            (
                "[[files]]\npath = \"/x\"\nsource = \"../x\"",
                "images/x/image.toml: files[0]: source \"../x\" is not below the definition's folder",
            ),
            (
                "[[files]]\npath = \"/x\"",
                "images/x/image.toml: files[0]: one of source and binary is needed",
            ),
            (
                "[[directories]]\npath = \"/x\"\nmode = 10000",
                "images/x/image.toml: directories[0]: mode 10000 is above 0o7777 (octal numbers begin with 0o)",
            ),
            (
                "name = \"Redis:7\"",
                "images/x/image.toml: name: \"Redis:7\" is not an image reference: ",
            ),
            (
                "exposed_ports = [\"http\"]",
                "images/x/image.toml: exposed_ports[0]: \"http\" is no port: write 80, 80/tcp or 53/udp",
            ),
            (
                "healthcheck = { test = [\"redis-cli\", \"ping\"] }",
                "images/x/image.toml: healthcheck.test: a list begins with CMD, CMD-SHELL or NONE",
            ),
            (
                "[healthcheck]\ntest = \"true\"\ninterval = \"5\"",
                "images/x/image.toml:3: \"5\" is no duration: write numbers with units, as 1m30s or 500ms",
            ),
            (
                "users = [{ name = \"a:b\", uid = 1, gid = 1 }]",
                "images/x/image.toml: users[0]: name \"a:b\" is not a login name",
            ),
            (
                "[env]\n\"A=B\" = \"c\"",
                "images/x/image.toml: env: \"A=B\" cannot be the name of a variable",
            ),
        ] {
            let message = error_of(text);
            assert!(
                message.starts_with(expected),
                "{message}\nexpected {expected}"
            );
        }
    }

    #[test]
    fn a_whole_definition() {
        let d = parse(
            "base = \"debian-base\"\npackages = [\"libstdc++6\", \"redis-server=5:7.0.15-1~deb12u5\"]\n\
             [[files]]\npath = \"/a\"\nbinary = \"testinit\"\n[healthcheck]\ntest = [\"CMD\", \"x\"]\nretries = 2\n",
            Path::new("images/x"),
            "x",
        )
        .expect("valid");
        assert_eq!(d.base.as_deref(), Some("debian-base"));
        assert_eq!(d.packages.len(), 2);
        assert_eq!(d.healthcheck.and_then(|h| h.retries), Some(2));
    }
}
