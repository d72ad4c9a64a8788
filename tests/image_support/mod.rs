//! What the image tests share: a writer of tars as hostile as wanted, layouts, overlay mounts.

#![allow(dead_code)] // each test file uses a part

use std::error::Error as _;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sampan::image::{Digest, Progress};

/// Modification time of every entry that sets no other.
pub const MTIME: i64 = 1_600_000_000;

/// Progress that nobody watches.
pub struct Quiet;

impl Progress for Quiet {
    fn advance(&self, _what: &str, _done: u64, _total: u64) {}
}

/// Writes tars entry by entry and checks nothing.
#[derive(Default)]
pub struct Tar {
    entries: Vec<Member>,
}

/// An entry that can still be changed.
pub struct Member {
    name: String,
    kind: u8,
    target: String,
    content: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    device: (u32, u32),
    pax: Vec<u8>,
    size: Option<u64>,
}

impl Member {
    pub fn mode(&mut self, mode: u32) -> &mut Member {
        self.mode = mode;
        self
    }

    pub fn owner(&mut self, uid: u32, gid: u32) -> &mut Member {
        self.owner = (uid, gid);
        self
    }

    /// A size that is not that of the content.
    pub fn size(&mut self, size: u64) -> &mut Member {
        self.size = Some(size);
        self
    }

    pub fn pax(&mut self, key: &str, value: &[u8]) -> &mut Member {
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.pax.extend(format!("{length} {key}=").bytes());
        self.pax.extend(value);
        self.pax.push(b'\n');
        self
    }
}

impl Tar {
    pub fn new() -> Tar {
        Tar::default()
    }

    pub fn entry(&mut self, name: &str, kind: u8, content: &[u8]) -> &mut Member {
        self.entries.push(Member {
            name: name.to_owned(),
            kind,
            target: String::new(),
            content: content.to_vec(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            owner: (0, 0),
            device: (0, 0),
            pax: Vec::new(),
            size: None,
        });
        self.last()
    }

    pub fn last(&mut self) -> &mut Member {
        self.entries.last_mut().unwrap()
    }

    pub fn file(&mut self, name: &str, content: &[u8]) -> &mut Tar {
        self.entry(name, b'0', content);
        self
    }

    pub fn mode(&mut self, mode: u32) -> &mut Tar {
        self.last().mode(mode);
        self
    }

    pub fn owner(&mut self, uid: u32, gid: u32) -> &mut Tar {
        self.last().owner(uid, gid);
        self
    }

    pub fn dir(&mut self, name: &str) -> &mut Tar {
        self.entry(name, b'5', b"");
        self
    }

    pub fn symlink(&mut self, name: &str, target: &str) -> &mut Tar {
        self.entry(name, b'2', b"").target = target.to_owned();
        self
    }

    pub fn link(&mut self, name: &str, target: &str) -> &mut Tar {
        self.entry(name, b'1', b"").target = target.to_owned();
        self
    }

    pub fn node(&mut self, name: &str, kind: u8, major: u32, minor: u32) -> &mut Tar {
        self.entry(name, kind, b"").device = (major, minor);
        self
    }

    pub fn finish(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for member in &self.entries {
            if !member.pax.is_empty() {
                block(&mut out, b'x', "pax", "", member, member.pax.len() as u64);
                content(&mut out, &member.pax);
            }
            let size = member.size.unwrap_or(member.content.len() as u64);
            block(
                &mut out,
                member.kind,
                &member.name,
                &member.target,
                member,
                size,
            );
            content(&mut out, &member.content);
        }
        out.extend([0; 1024]);
        out
    }
}

fn content(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn block(out: &mut Vec<u8>, kind: u8, name: &str, target: &str, member: &Member, size: u64) {
    let mut header = [0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, format!("{:07o}\0", member.mode).as_bytes());
    put(108, format!("{:07o}\0", member.owner.0).as_bytes());
    put(116, format!("{:07o}\0", member.owner.1).as_bytes());
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{MTIME:011o}\0").as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, target.as_bytes());
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}\0", member.device.0).as_bytes());
    put(337, format!("{:07o}\0", member.device.1).as_bytes());
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend(header);
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// Writes an OCI layout with one image of these layers.
pub fn write_layout(folder: &Path, layers: &[Vec<u8>], name: &str) {
    let entry = add_image(folder, &config("amd64", layers), layers);
    write_index(folder, entry, name);
}

/// The same with a configuration that may lie.
pub fn write_image(folder: &Path, config: &[u8], layers: &[Vec<u8>]) {
    let entry = add_image(folder, config, layers);
    write_index(folder, entry, "a:1");
}

/// A layout whose one image is an index over platforms (`os/architecture`).
pub fn write_multi(folder: &Path, platforms: &[&str], name: &str) {
    let mut entries = Vec::new();
    for platform in platforms {
        let mut tar = Tar::new();
        tar.file("platform", platform.as_bytes());
        let layers = [tar.finish()];
        let (os, architecture) = platform.split_once('/').unwrap();
        let mut entry = add_image(folder, &config(architecture, &layers), &layers);
        entry["platform"] = serde_json::json!({"os": os, "architecture": architecture});
        entries.push(entry);
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries});
    let entry = put_blob(folder, index.to_string().as_bytes(), "index.v1+json");
    write_index(folder, entry, name);
}

/// Indexes that have nothing but indexes.
pub fn write_nested(folder: &Path, depth: usize) {
    let mut entry = put_blob(
        folder,
        br#"{"schemaVersion":2,"manifests":[]}"#,
        "index.v1+json",
    );
    for _ in 0..depth {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
        entry = put_blob(folder, index.to_string().as_bytes(), "index.v1+json");
    }
    write_index(folder, entry, "a:1");
}

fn config(architecture: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(&plain(layer)).as_str().to_owned())
        .collect();
    serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": ids},
    })
    .to_string()
    .into_bytes()
}

fn put_blob(folder: &Path, bytes: &[u8], kind: &str) -> serde_json::Value {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let digest = Digest::of(bytes);
    fs::write(blobs.join(digest.hex()), bytes).unwrap();
    serde_json::json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": digest.as_str(),
        "size": bytes.len(),
    })
}

fn add_image(folder: &Path, config: &[u8], layers: &[Vec<u8>]) -> serde_json::Value {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| put_blob(folder, layer, "layer.v1.tar"))
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put_blob(folder, config, "config.v1+json"),
        "layers": layers,
    });
    put_blob(folder, manifest.to_string().as_bytes(), "manifest.v1+json")
}

fn write_index(folder: &Path, mut entry: serde_json::Value, name: &str) {
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

fn plain(layer: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if layer.starts_with(&[0x1f, 0x8b]) {
        let mut reader = flate2::read::MultiGzDecoder::new(layer);
        std::io::copy(&mut reader, &mut out).unwrap();
    } else if layer.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        zstd::stream::copy_decode(layer, &mut out).unwrap();
    } else {
        out.extend(layer);
    }
    out
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// An error with its causes, as `main` prints it.
pub fn chain(error: &sampan::image::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Sorted names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn is_opaque(path: &Path) -> bool {
    xattrs(path).contains(&("trusted.overlay.opaque".to_owned(), b"y".to_vec()))
}

/// All extended attributes, not following a link.
pub fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut list = vec![0u8; 4096];
    let size = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let mut found: Vec<(String, Vec<u8>)> = list[..size]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0u8; 4096];
            let size = rustix::fs::lgetxattr(path, &name, &mut value[..]).unwrap();
            value.truncate(size);
            (name, value)
        })
        .collect();
    found.sort();
    found
}

/// Every path below `root`, sorted, with what overlayfs would see.
pub fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, path: &Path, lines: &mut Vec<String>) {
        for name in names(path) {
            let path = path.join(name);
            let stat = fs::symlink_metadata(&path).unwrap();
            let shown = path.strip_prefix(root).unwrap().display().to_string();
            if stat.is_dir() {
                let opaque = if is_opaque(&path) { " opaque" } else { "" };
                lines.push(format!("{shown}/{opaque}"));
                walk(root, &path, lines);
            } else if stat.mode() & 0o170_000 == 0o020_000 && stat.rdev() == 0 {
                lines.push(format!("{shown} whiteout"));
            } else {
                lines.push(shown);
            }
        }
    }
    let mut lines = Vec::new();
    walk(root, root, &mut lines);
    lines.sort();
    lines
}

/// A mount namespace of this process's own; needs a single-threaded caller only for `unshare` of
/// what threads share, which mounts are not.
pub fn private_mounts() {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
}

/// Mounts layers (lowest first), read-only, below `work`.
pub fn mount_overlay(work: &Path, layers: &[PathBuf]) -> PathBuf {
    mount_overlay_with(work, layers, "")
}

/// The same with more options, each followed by a comma.
pub fn mount_overlay_with(work: &Path, layers: &[PathBuf], more: &str) -> PathBuf {
    let merged = work.join("merged");
    fs::create_dir_all(&merged).unwrap();
    let empty = work.join("empty");
    fs::create_dir_all(&empty).unwrap();
    // overlayfs wants two lower folders when there is no upper one
    let lower: Vec<String> = layers
        .iter()
        .rev()
        .chain([&empty])
        .map(|path| path.display().to_string())
        .collect();
    let options = format!("{more}lowerdir={}", lower.join(":"));
    let flags = nix::mount::MsFlags::MS_RDONLY;
    nix::mount::mount(
        Some("overlay"),
        &merged,
        Some("overlay"),
        flags,
        Some(options.as_str()),
    )
    .unwrap();
    merged
}

pub fn unmount(path: &Path) {
    nix::mount::umount(path).unwrap();
}
