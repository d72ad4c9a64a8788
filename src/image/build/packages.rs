//! Debian packages: which ones are needed, getting them, reading them.
//!
//! apt and dpkg do what only they can, as programs with an argument list: apt-get resolves dependencies and downloads,
//! dpkg-deb opens a package. apt sees a private state in which only the packages of the image are installed, and the
//! host's package lists, sources and keys, all read-only: nothing on the host changes, and no root is needed.
//!
//! *Invariants:* a package file is used only when its SHA-256 is the one in the signed package lists. The cache holds
//! whole files under that digest, so several builds may share it. No maintainer script runs.

use std::fs;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::super::Progress;
use super::archive::digest_file;
use super::{Error, Scratch};

/// One package that apt chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, with epoch.
    pub version: String,
    /// SHA-256 of its file, hexadecimal.
    pub sha256: String,
    /// Bytes of its file.
    pub size: u64,
}

/// apt with a private state, and the cache of package files.
pub struct Apt {
    cache: PathBuf,
    state: PathBuf,
    architecture: &'static str,
}

impl Apt {
    /// `scratch` holds the state, `cache` the package files; `architecture` is Debian's name.
    pub fn new(scratch: &Path, cache: &Path, architecture: &'static str) -> Result<Apt, Error> {
        let state = scratch.join("apt");
        for folder in ["state", "archives/partial", "download"] {
            let folder = state.join(folder);
            fs::create_dir_all(&folder)
                .map_err(|e| Error::io(format!("create {}", folder.display()), e))?;
        }
        Ok(Apt {
            cache: cache.to_path_buf(),
            state,
            architecture,
        })
    }

    /// What `wanted` needs beyond the packages of `installed` (a dpkg status file), sorted by name. `omit` counts as
    /// installed. `definition` is named in errors.
    pub fn resolve(
        &self,
        wanted: &[String],
        installed: &str,
        omit: &[String],
        definition: &Path,
    ) -> Result<Vec<Package>, Error> {
        let mut status = installed.to_string();
        for name in omit {
            status.push_str(&self.pretended(name));
        }
        let file = self.state.join("status");
        fs::write(&file, status).map_err(|e| Error::io(format!("write {}", file.display()), e))?;
        let mut command = self.apt_get();
        command
            .args(["--print-uris", "-qq", "--yes", "--no-install-recommends"])
            .args(["-o", "Acquire::ForceHash=SHA256", "install", "--"])
            .args(wanted);
        let output = command.output().map_err(|e| Error::start("apt-get", e))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(resolve_error(&text, definition));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let mut packages = text
            .lines()
            .filter(|line| line.starts_with('\''))
            .map(|line| {
                parse_uri_line(line).ok_or_else(|| Error::Tool {
                    what: "apt-get install --print-uris".into(),
                    message: format!("unexpected line {line:?}"),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(packages)
    }

    /// The packages' files, in the same order; downloads those that are not in the cache.
    pub fn fetch(
        &self,
        packages: &[Package],
        progress: &dyn Progress,
    ) -> Result<Vec<PathBuf>, Error> {
        let missing: Vec<&Package> = packages.iter().filter(|p| !self.is_cached(p)).collect();
        if !missing.is_empty() {
            self.download(&missing, progress)?;
        }
        Ok(packages.iter().map(|p| self.cached(p)).collect())
    }

    fn cached(&self, package: &Package) -> PathBuf {
        self.cache.join(format!("{}.deb", package.sha256))
    }

    /// A file that is damaged counts as missing: it is downloaded again and replaced.
    fn is_cached(&self, package: &Package) -> bool {
        digest_file(&self.cached(package)).is_ok_and(|d| d == format!("sha256:{}", package.sha256))
    }

    fn download(&self, packages: &[&Package], progress: &dyn Progress) -> Result<(), Error> {
        let folder = self.state.join("download");
        let mut command = self.apt_get();
        command
            .args(["-qq", "download", "--"])
            .args(packages.iter().map(|p| format!("{}={}", p.name, p.version)))
            .current_dir(&folder)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let total = packages.iter().map(|p| p.size).sum();
        let mut child = command.spawn().map_err(|e| Error::start("apt-get", e))?;
        let waited = watch(&mut child, || {
            progress.advance("packages", bytes_in(&folder).min(total), total);
        });
        let (success, message) = waited.map_err(|e| Error::io("wait for apt-get".into(), e))?;
        if !success {
            return Err(Error::Tool {
                what: "apt-get download".into(),
                message: format!(
                    "{} (when the host's package lists are old, run: apt-get update)",
                    error_lines(&message)
                ),
            });
        }
        progress.advance("packages", total, total);
        for package in packages {
            self.accept(package, &folder)?;
        }
        Ok(())
    }

    /// Moves a downloaded file into the cache, if it is what the package lists say.
    fn accept(&self, package: &Package, folder: &Path) -> Result<(), Error> {
        // apt's file name: the version's colon is escaped, the architecture may be `all`
        let start = format!("{}_{}_", package.name, package.version.replace(':', "%3a"));
        let entries =
            fs::read_dir(folder).map_err(|e| Error::io(format!("list {}", folder.display()), e))?;
        let path = entries
            .filter_map(Result::ok)
            .find(|e| e.file_name().to_string_lossy().starts_with(&start))
            .map(|e| e.path())
            .ok_or_else(|| Error::Tool {
                what: "apt-get download".into(),
                message: format!("{} {} did not arrive", package.name, package.version),
            })?;
        let digest =
            digest_file(&path).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
        if digest != format!("sha256:{}", package.sha256) {
            return Err(Error::Tool {
                what: "apt-get download".into(),
                message: format!(
                    "{} {} is {digest}, the package lists say sha256:{}",
                    package.name, package.version, package.sha256
                ),
            });
        }
        let cached = self.cached(package);
        fs::rename(&path, &cached)
            .map_err(|e| Error::io(format!("move to {}", cached.display()), e))
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
        let state = self.state.display();
        for setting in [
            format!("Dir::State={state}/state"),
            format!("Dir::State::status={state}/status"),
            "Dir::State::lists=/var/lib/apt/lists".into(),
            format!("Dir::Cache={state}"),
            "Dir::Cache::pkgcache=".into(),
            "Dir::Cache::srcpkgcache=".into(),
            format!("APT::Architecture={}", self.architecture),
            format!("APT::Architectures={}", self.architecture),
            // only what is needed: Depends and Pre-Depends
            "APT::Install-Recommends=false".into(),
        ] {
            command.arg("-o").arg(setting);
        }
        command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command
    }

    /// An entry of dpkg's status file for a package that is not there; its version satisfies every lower bound.
    fn pretended(&self, name: &str) -> String {
        format!(
            "Package: {name}\nStatus: install ok installed\nArchitecture: {}\nMulti-Arch: foreign\n\
             Version: 9999:0\nMaintainer: none\nDescription: omitted\n\n",
            self.architecture
        )
    }
}

/// Waits for a child, calling `tick` now and then; whether it succeeded, and what it wrote to stderr.
fn watch(child: &mut Child, tick: impl Fn()) -> io::Result<(bool, String)> {
    let stderr = child.stderr.take();
    // a thread, so that a full pipe never stops the child
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        match stderr {
            Some(pipe) => pipe.take(1 << 20).read_to_end(&mut text).map(|_| text),
            None => Ok(text),
        }
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        tick();
        std::thread::sleep(Duration::from_millis(100));
    };
    let text = reader
        .join()
        .map_err(|_| io::Error::other("reader of stderr ended early"))??;
    Ok((
        status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

fn bytes_in(folder: &Path) -> u64 {
    // only for the progress bar: what can't be read now counts as nothing
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.metadata().ok())
        .map(|m| m.len())
        .sum()
}

/// `'URI' NAME_VERSION_ARCHITECTURE.deb SIZE SHA256:HEX`
fn parse_uri_line(line: &str) -> Option<Package> {
    let mut fields = line.rsplit(' ');
    let sha256 = fields.next()?.strip_prefix("SHA256:")?;
    let size = fields.next()?.parse().ok()?;
    let mut file = fields.next()?.strip_suffix(".deb")?.split('_');
    let (name, version) = (file.next()?, file.next()?);
    let hex = sha256.len() == 64 && sha256.chars().all(|c| c.is_ascii_hexdigit());
    hex.then(|| Package {
        name: name.into(),
        version: version.replace("%3a", ":"),
        sha256: sha256.to_ascii_lowercase(),
        size,
    })
}

fn resolve_error(stderr: &str, definition: &Path) -> Error {
    let missing = stderr.lines().find_map(|line| {
        let rest = line.strip_prefix("E: Unable to locate package ");
        let rest = rest.or_else(|| line.strip_prefix("E: Package '")?.split('\'').next());
        rest.or_else(|| line.strip_prefix("E: Version ")?.split('\'').nth(3))
    });
    match missing {
        Some(package) => Error::NoPackage {
            package: package.trim().into(),
            file: definition.to_path_buf(),
        },
        None => Error::Tool {
            what: format!("apt-get for the packages of {}", definition.display()),
            message: error_lines(stderr),
        },
    }
}

/// What a tool said, on one line.
fn error_lines(stderr: &str) -> String {
    let lines: Vec<&str> = stderr
        .lines()
        .map(|l| l.strip_prefix("E: ").unwrap_or(l).trim())
        .filter(|l| !l.is_empty() && !l.starts_with("W: "))
        .collect();
    lines.join("; ")
}

/// The control record of a package file, as an entry of dpkg's status file.
pub fn status_entry(deb: &Path) -> Result<String, Error> {
    let output = Command::new("dpkg-deb")
        .env("LC_ALL", "C")
        .arg("--field")
        .arg(deb)
        .output()
        .map_err(|e| Error::start("dpkg-deb", e))?;
    if !output.status.success() {
        return Err(Error::Tool {
            what: format!("dpkg-deb --field {}", deb.display()),
            message: error_lines(&String::from_utf8_lossy(&output.stderr)),
        });
    }
    let control = String::from_utf8_lossy(&output.stdout);
    let mut entry = String::new();
    for line in control.lines() {
        entry.push_str(line);
        entry.push('\n');
        if line.starts_with("Package:") {
            entry.push_str("Status: install ok installed\n");
        }
    }
    entry.push('\n');
    Ok(entry)
}

/// Gives `read` the package's file archive.
pub fn open_files<T>(
    deb: &Path,
    scratch: &Scratch,
    read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> Result<T, Error> {
    let messages = scratch.path().join("dpkg-deb.stderr");
    let stderr = fs::File::create(&messages)
        .map_err(|e| Error::io(format!("create {}", messages.display()), e))?;
    let mut child = Command::new("dpkg-deb")
        .env("LC_ALL", "C")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(|e| Error::start("dpkg-deb", e))?;
    let result = match child.stdout.take() {
        // closed at the end of this arm, so that a dpkg-deb we stop listening to ends too
        Some(pipe) => read(&mut BufReader::with_capacity(64 * 1024, pipe)),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    };
    let status = child
        .wait()
        .map_err(|e| Error::io("wait for dpkg-deb".into(), e))?;
    match result {
        // a stream that ends early is dpkg-deb's failure, any other error is ours (and dpkg-deb fails because of it)
        Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => {
            Err(Error::io(format!("read {}", deb.display()), e))
        }
        _ if !status.success() => {
            let said = fs::read_to_string(&messages).unwrap_or_default();
            Err(Error::Tool {
                what: format!("dpkg-deb --fsys-tarfile {}", deb.display()),
                message: format!("{status}: {}", error_lines(&said)),
            })
        }
        result => result.map_err(|e| Error::io(format!("read {}", deb.display()), e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_lines() {
        let hex = "8d684c673e7483802a5c447834b0df6fce006eb3a7109e1be412f5ad425bb24f";
        let line = format!(
            "'http://host/pool/libcap2_2.66-4%2bb1_amd64.deb' libcap2_1%3a2.66-4+b1_amd64.deb 27708 SHA256:{hex}"
        );
        assert_eq!(
            parse_uri_line(&line),
            Some(Package {
                name: "libcap2".into(),
                version: "1:2.66-4+b1".into(),
                sha256: hex.into(),
                size: 27708,
            })
        );
        for bad in [
            "'http://host/x.deb' x_1_all.deb 5 MD5Sum:00",
            "'http://host/x.deb' x_1_all.deb five SHA256:00",
            "'http://host/x.deb' x_1_all.deb 5 SHA256:../../x",
            "",
        ] {
            assert_eq!(parse_uri_line(bad), None, "{bad}");
        }
    }

    #[test]
    fn apt_errors() {
        let file = Path::new("images/x/image.toml");
        for (stderr, expected) in [
            (
                "E: Unable to locate package nosuch\n",
                "images/x/image.toml: there is no Debian package nosuch in the host's package lists (misspelt, or run: apt-get update)",
            ),
            (
                "E: Package 'virtual' has no installation candidate\n",
                "images/x/image.toml: there is no Debian package virtual in the host's package lists (misspelt, or run: apt-get update)",
            ),
            (
                "W: old\nE: Unable to correct problems, you have held broken packages.\n",
                "apt-get for the packages of images/x/image.toml: Unable to correct problems, you have held broken packages.",
            ),
            (
                "E: Version '9' for 'redis' was not found\n",
                "images/x/image.toml: there is no Debian package redis in the host's package lists (misspelt, or run: apt-get update)",
            ),
        ] {
            assert_eq!(resolve_error(stderr, file).to_string(), expected);
        }
    }
}
