//! Building images from Debian packages, without a container engine: a definition in, an OCI image layout out.
//!
//! One layer per definition of the chain (`base` first). Packages are resolved and downloaded with apt, read with
//! dpkg-deb, merged in memory and written as a layer; nothing is unpacked and no maintainer script runs, so a build
//! needs no root and is the same anywhere.
//!
//! *Invariants:* the same definitions and the same package versions give the same digests, whatever the output folder,
//! the time and the order of files on disk. The output appears as a whole or not at all.
//!
//! Left to others: bringing the layout into the store, pushing it.
//!
//! ```text
//! definition.rs   image.toml → Definition (pure)        packages.rs   apt-get, dpkg-deb, the cache of .deb files
//! tree.rs         the merged file tree (pure)           archive.rs    tar streams in and out
//! filter.rs       which paths are kept (pure)           layout.rs     configuration, manifest, layout
//! ```

mod archive;
mod definition;
mod filter;
mod layout;
mod packages;
mod tree;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Progress;
use archive::{Layer, Spool};
use definition::{Definition, FileEntry, User};
use filter::Filter;
use packages::Apt;
use tree::{Node, Source, Tree};

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A definition is no valid TOML, or has a key or value that is not allowed.
    #[error("{file}:{line}: {message}", file = file.display())]
    Syntax {
        /// The definition.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A definition says something impossible.
    #[error("{file}: {message}", file = file.display())]
    Definition {
        /// The definition.
        file: PathBuf,
        /// The key and what is wrong with it.
        message: String,
    },
    /// A package does not exist.
    #[error("{file}: there is no Debian package {package} in the host's package lists (misspelt, or run: apt-get update)", file = file.display())]
    NoPackage {
        /// Its name.
        package: String,
        /// The definition that wants it.
        file: PathBuf,
    },
    /// A program that building needs is not there.
    #[error(
        "{0} is not installed: images are built with apt and dpkg, on a Debian host or a host that has both (packages apt, dpkg)"
    )]
    NoTool(&'static str),
    /// A program failed.
    #[error("{what}: {message}")]
    Tool {
        /// The call.
        what: String,
        /// What it said.
        message: String,
    },
    /// The host's architecture has no Debian name here.
    #[error("images are built for x86_64 and aarch64, this host is {0}")]
    Architecture(&'static str),
    /// The output path holds something else.
    #[error("{0} is not empty and not an OCI image layout: choose another output folder")]
    Output(PathBuf),
    /// A file could not be read or written.
    #[error("{what}")]
    Io {
        /// The operation and its path.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    fn io(what: String, source: io::Error) -> Error {
        Error::Io { what, source }
    }

    /// A program could not be started.
    fn start(program: &'static str, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::NotFound => Error::NoTool(program),
            _ => Error::io(format!("start {program}"), source),
        }
    }
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltImage {
    /// The reference in the layout's index.
    pub name: String,
    /// Digest of the manifest.
    pub manifest: String,
    /// Digest of the configuration: the image's id.
    pub config: String,
    /// Bytes of manifest, configuration and layers.
    pub size: u64,
}

/// A folder of this build alone, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(beside: &Path, name: &str) -> Result<Scratch, Error> {
        let unique = format!(".{name}.{}.{:08x}", std::process::id(), fastrand::u32(..));
        let path = beside.join(unique);
        fs::create_dir_all(&path)
            .map_err(|e| Error::io(format!("create {}", path.display()), e))?;
        Ok(Scratch(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // left-overs harm nobody: the name is unique, the error of the build counts more
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Builds the image defined in `definition_dir` and writes it as an OCI image layout to `output`, which is replaced when
/// it is a layout already. Packages come from the host's apt sources; their files are kept in
/// `$XDG_CACHE_HOME/sampan/packages` (`~/.cache`, or `/var/cache` without a home).
pub fn build(
    definition_dir: &Path,
    output: &Path,
    progress: &dyn Progress,
) -> Result<BuiltImage, Error> {
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => return Err(Error::Architecture(other)),
    };
    let chain = definition::load(definition_dir)?;
    check_output(output)?;
    let cache = cache_folder();
    let scratch = Scratch::new(&cache, "build")?;
    let parent = match output.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    // beside the output, so that the last step is a rename
    let partial = Scratch::new(parent, "layout")?;
    let blobs = partial.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(|e| Error::io(format!("create {}", blobs.display()), e))?;

    let mut build = Build {
        apt: Apt::new(scratch.path(), &cache, architecture)?,
        spool: Spool::new(scratch.path())
            .map_err(|e| Error::io(format!("create a file in {}", scratch.path().display()), e))?,
        scratch,
        tree: Tree::default(),
        filter: Filter::default(),
        omit: Vec::new(),
        status: BTreeMap::new(),
        users: Vec::new(),
        time: 0,
        progress,
    };
    let mut layers = Vec::new();
    let mut times = Vec::new();
    for definition in &chain {
        layers.push(build.layer(definition, partial.path())?);
        times.push(build.time);
    }
    let image = layout::write(partial.path(), &chain, &layers, &times, architecture)?;
    publish(partial.path(), output)?;
    Ok(image)
}

fn cache_folder() -> PathBuf {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"))
        .join("sampan/packages")
}

/// Only a layout is ever replaced.
fn check_output(output: &Path) -> Result<(), Error> {
    let is_empty = match fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => true,
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => false,
        Err(e) => return Err(Error::io(format!("read {}", output.display()), e)),
    };
    if is_empty || output.join("oci-layout").is_file() {
        Ok(())
    } else {
        Err(Error::Output(output.to_path_buf()))
    }
}

fn publish(partial: &Path, output: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(output) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(format!("remove {}", output.display()), e));
        }
        _ => {}
    }
    fs::rename(partial, output)
        .map_err(|e| Error::io(format!("move the layout to {}", output.display()), e))
}

/// The merged `/usr` that Debian 12 requires and no package ships; dropped again where nothing lies below.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// A build between two definitions.
struct Build<'a> {
    apt: Apt,
    spool: Spool,
    scratch: Scratch,
    tree: Tree,
    filter: Filter,
    omit: Vec<String>,
    /// Entries of dpkg's status file by package name.
    status: BTreeMap<String, String>,
    users: Vec<User>,
    /// The newest time in any package so far: nothing in the image is younger.
    time: u64,
    progress: &'a dyn Progress,
}

impl Build<'_> {
    fn layer(&mut self, definition: &Definition, layout: &Path) -> Result<Layer, Error> {
        self.omit.extend_from_slice(&definition.omit);
        self.filter.extend(&definition.exclude, &definition.include);
        if !definition.packages.is_empty() {
            self.add_packages(definition)?;
        }
        self.add_own(definition)?;
        let what = format!("layer {}", definition.title);
        self.progress.advance(&what, 0, 0);
        let unnamed = layout.join("blobs/sha256/layer");
        let layer = archive::write_layer(&self.tree, &self.spool, self.time, &unnamed)
            .map_err(|e| Error::io(format!("write {}", unnamed.display()), e))?;
        let named = layout::blob_path(layout, &layer.digest);
        fs::rename(&unnamed, &named)
            .map_err(|e| Error::io(format!("rename to {}", named.display()), e))?;
        self.tree.next_layer();
        self.progress.advance(&what, layer.size, layer.size);
        Ok(layer)
    }

    fn add_packages(&mut self, definition: &Definition) -> Result<(), Error> {
        let file = definition.file();
        let invalid = |message: String| Error::Definition {
            file: file.clone(),
            message,
        };
        if let Some(both) = definition.packages.iter().find(|p| self.omit.contains(p)) {
            return Err(invalid(format!("packages: {both} is in omit too")));
        }
        let installed: String = self.status.values().map(String::as_str).collect();
        let chosen = self
            .apt
            .resolve(&definition.packages, &installed, &self.omit, &file)?;
        let files = self.apt.fetch(&chosen, self.progress)?;
        for directory in MERGED {
            if self.tree.get(directory.as_bytes()).is_none() {
                let node = self
                    .tree
                    .add(Node::symlink(format!("usr/{directory}").as_bytes()));
                self.tree
                    .put(directory.as_bytes(), node, Source::Definition)
                    .map_err(invalid)?;
            }
        }
        let sizes: Vec<u64> = files
            .iter()
            // for the progress alone: one that cannot be read fails below
            .map(|deb| fs::metadata(deb).map_or(0, |m| m.len()))
            .collect();
        let (mut done, total) = (0, sizes.iter().sum());
        for ((package, deb), size) in chosen.iter().zip(&files).zip(sizes) {
            self.progress.advance("unpack", done, total);
            let (tree, spool, filter) = (&mut self.tree, &mut self.spool, &self.filter);
            let kept = |path: &[u8]| filter.keeps(path, definition.documentation);
            let read = packages::open_files(deb, &self.scratch, |input| {
                archive::read_package(input, &package.name, tree, spool, &kept)
            });
            let newest = read.map_err(|e| match e {
                // the cached file's name says nothing
                Error::Io { source, .. } => Error::io(
                    format!(
                        "{}: package {} {}",
                        file.display(),
                        package.name,
                        package.version
                    ),
                    source,
                ),
                other => other,
            })?;
            self.time = self.time.max(newest);
            self.status
                .insert(package.name.clone(), packages::status_entry(deb)?);
            done += size;
        }
        self.progress.advance("unpack", total, total);
        for directory in MERGED {
            if !self.tree.has_below(format!("usr/{directory}").as_bytes()) {
                self.tree.forget(directory.as_bytes());
            }
        }
        let status: String = self.status.values().map(String::as_str).collect();
        self.write("var/lib/dpkg/status", &status, definition)
    }

    /// What the definition itself says, in the order that lets files lie in its folders.
    fn add_own(&mut self, definition: &Definition) -> Result<(), Error> {
        let file = definition.file();
        let invalid = |message: String| Error::Definition {
            file: file.clone(),
            message,
        };
        for entry in &definition.directories {
            let node = self.tree.add(Node {
                uid: entry.uid.into(),
                gid: entry.gid.into(),
                ..Node::directory(entry.mode)
            });
            self.tree
                .put(entry.path.as_bytes(), node, Source::Definition)
                .map_err(|e| invalid(format!("directories: {e}")))?;
        }
        for links in &definition.symlinks {
            for path in &links.paths {
                let node = self.tree.add(Node::symlink(links.target.as_bytes()));
                self.tree
                    .put(path.as_bytes(), node, Source::Definition)
                    .map_err(|e| invalid(format!("symlinks: {e}")))?;
            }
        }
        for user in &definition.users {
            let taken = |u: &User| u.name == user.name;
            if matches!(user.name.as_str(), "root" | "nobody") || self.users.iter().any(taken) {
                return Err(invalid(format!(
                    "users: there is a user {} already",
                    user.name
                )));
            }
            self.users.push(user.clone());
        }
        if !definition.users.is_empty() || !definition.packages.is_empty() {
            let (passwd, group) = accounts(&self.users);
            self.write("etc/passwd", &passwd, definition)?;
            self.write("etc/group", &group, definition)?;
        }
        for (i, entry) in definition.files.iter().enumerate() {
            self.add_file(entry, definition)
                .map_err(|message| invalid(format!("files[{i}]: {message}")))?;
        }
        Ok(())
    }

    fn add_file(&mut self, entry: &FileEntry, definition: &Definition) -> Result<(), String> {
        let (path, mode) = match (&entry.source, &entry.binary) {
            (Some(source), _) => (definition.folder.join(source), 0o644),
            (None, Some(binary)) => (find_binary(binary)?, 0o755),
            (None, None) => return Err("one of source and binary is needed".into()),
        };
        let show = |e: io::Error| format!("read {}: {e}", path.display());
        let mut input = fs::File::open(&path).map_err(show)?;
        let kind = self.spool.append(&mut input).map_err(show)?;
        let node = self.tree.add(Node {
            kind,
            uid: entry.uid.into(),
            gid: entry.gid.into(),
            ..Node::directory(entry.mode.unwrap_or(mode))
        });
        self.tree
            .put(entry.path.as_bytes(), node, Source::Definition)
    }

    /// A generated file of root.
    fn write(&mut self, path: &str, text: &str, definition: &Definition) -> Result<(), Error> {
        let kind = self
            .spool
            .append(&mut text.as_bytes())
            .map_err(|e| Error::io(format!("generate /{path}"), e))?;
        let node = self.tree.add(Node {
            kind,
            ..Node::directory(0o644)
        });
        self.tree
            .put(path.as_bytes(), node, Source::Definition)
            .map_err(|message| Error::Definition {
                file: definition.file(),
                message,
            })
    }
}

/// A program built together with the running one: in its folder, or (for Cargo's test programs) the one above.
fn find_binary(name: &str) -> Result<PathBuf, String> {
    let own = env::current_exe().map_err(|e| format!("where the running program is: {e}"))?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            format!(
                "binary {name} is not beside {}: build it first (cargo build --workspace)",
                own.display()
            )
        })
}

/// `/etc/passwd` and `/etc/group`: root, the definitions' users, nobody.
fn accounts(users: &[User]) -> (String, String) {
    let mut passwd = String::from("root:x:0:0:root:/root:/bin/sh\n");
    let mut group = String::from("root:x:0:\n");
    for u in users {
        passwd.push_str(&format!(
            "{0}:x:{1}:{2}:{0}:{3}:{4}\n",
            u.name, u.uid, u.gid, u.home, u.shell
        ));
        group.push_str(&format!("{}:x:{}:\n", u.name, u.gid));
    }
    passwd.push_str("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n");
    group.push_str("nogroup:x:65534:\n");
    (passwd, group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_of_a_service() {
        let user = User {
            name: "redis".into(),
            uid: 999,
            gid: 998,
            home: "/data".into(),
            shell: "/usr/sbin/nologin".into(),
        };
        assert_eq!(
            accounts(&[user]),
            (
                "root:x:0:0:root:/root:/bin/sh\n\
                 redis:x:999:998:redis:/data:/usr/sbin/nologin\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
                    .into(),
                "root:x:0:\nredis:x:998:\nnogroup:x:65534:\n".into()
            )
        );
    }
}
