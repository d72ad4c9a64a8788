//! The tour of README.md works as typed: its commands, in its order, on a clean state, show what it says.
//!
//! All of it runs in network, mount and process namespaces of its own. Needs root; the packages apt, dpkg, util-linux, iproute2,
//! curl; and the network, until the packages of the images are in the cache.

mod typed;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn sampan() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sampan"))
}

fn text(output: &Output) -> String {
    let bytes = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Fetches the packages of the images: the tour's namespace has no way out.
fn fill_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    for image in ["busybox", "nginx", "redis"] {
        let output = Command::new(sampan())
            .args(["image", "build"])
            .arg(Path::new("images").join(image))
            .arg("-o")
            .arg(folder.path().join(image))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{image}: {}", text(&output));
    }
}

#[test]
fn the_tour() {
    let root = env!("CARGO_MANIFEST_DIR");
    let readme = fs::read_to_string(Path::new(root).join("README.md")).unwrap();
    let steps = typed::steps(&readme, "## Five minutes");
    assert!(steps.len() > 15, "{steps:?}");
    fill_the_cache();
    let path = format!(
        "{}:{}",
        sampan().parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let home = tempfile::tempdir().unwrap();
    // where the packages are that were fetched just now
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .unwrap_or_else(|| "/var/cache".into());
    let prepare = "ip link set lo up && exec bash -c \"$1\"";
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "--", "sh", "-c", prepare, "sh"])
        .arg(typed::script(&steps, "sampan -p tour down -v"))
        .current_dir(root)
        .env("PATH", path)
        .env("HOME", home.path())
        .env("XDG_CACHE_HOME", cache)
        .env("SAMPAN_ROOT", home.path().join("root"))
        .env("SAMPAN_STATE", home.path().join("state"))
        .output()
        .unwrap();
    let all = text(&output);
    assert_eq!(typed::difference(&steps, &all), None);
    assert_eq!(output.status.code(), Some(0), "{all}");
}
