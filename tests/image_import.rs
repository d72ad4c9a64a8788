//! Every form of image file, made by real tools where there are any. Needs root, skopeo and umoci.

mod image_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use image_support::*;
use sampan::image::{Digest, Error, Store, import};

#[test]
fn every_form_of_archive() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    // an image made by umoci, from a root file system with every plain kind of file
    let layout = text("layout");
    run("umoci", &["init", "--layout", &layout]);
    run("umoci", &["new", "--image", &format!("{layout}:one")]);
    run(
        "umoci",
        &[
            "unpack",
            "--image",
            &format!("{layout}:one"),
            &text("bundle"),
        ],
    );
    let rootfs = at("bundle/rootfs");
    fs::create_dir_all(rootfs.join("etc")).unwrap();
    fs::write(rootfs.join("etc/motd"), "hello").unwrap();
    symlink("motd", rootfs.join("etc/link")).unwrap();
    run(
        "umoci",
        &[
            "repack",
            "--refresh-bundle",
            "--image",
            &format!("{layout}:one"),
            &text("bundle"),
        ],
    );
    fs::remove_file(rootfs.join("etc/link")).unwrap();
    fs::write(rootfs.join("etc/more"), "more").unwrap();
    run(
        "umoci",
        &[
            "repack",
            "--image",
            &format!("{layout}:one"),
            &text("bundle"),
        ],
    );
    run(
        "umoci",
        &[
            "config",
            "--image",
            &format!("{layout}:one"),
            "--config.cmd",
            "/bin/sh",
        ],
    );

    let from = format!("oci:{layout}:one");
    let copy = |to: &str| run("skopeo", &["--insecure-policy", "copy", "-q", &from, to]);
    copy(&format!(
        "oci-archive:{}:example.com/app:2",
        text("oci.tar")
    ));
    copy(&format!(
        "docker-archive:{}:example.com/app:3",
        text("docker.tar")
    ));
    run(
        "tar",
        &[
            "-cf",
            &text("rootfs.tar"),
            "-C",
            rootfs.to_str().unwrap(),
            ".",
        ],
    );
    for name in ["oci", "docker", "rootfs"] {
        run("gzip", &["-k", &text(&format!("{name}.tar"))]);
        let plain = fs::read(at(&format!("{name}.tar"))).unwrap();
        fs::write(
            at(&format!("{name}.tar.zst")),
            zstd::encode_all(&plain[..], 1).unwrap(),
        )
        .unwrap();
    }
    // what newer Dockers save: both descriptions in one archive
    fs::create_dir(at("both")).unwrap();
    run("tar", &["-xf", &text("oci.tar"), "-C", &text("both")]);
    fs::write(at("both/manifest.json"), "[]").unwrap();
    run("tar", &["-cf", &text("both.tar"), "-C", &text("both"), "."]);

    private_mounts();
    let mut ids: BTreeMap<&str, String> = BTreeMap::new();
    for (form, path, name, reference, layers) in [
        (
            "oci",
            "layout",
            Some("app:1"),
            Some("docker.io/library/app:1"),
            2,
        ),
        ("oci", "layout", None, None, 2),
        ("oci", "oci.tar", None, Some("example.com/app:2"), 2),
        ("oci", "oci.tar.gz", None, Some("example.com/app:2"), 2),
        (
            "oci",
            "oci.tar.zst",
            Some("x/y"),
            Some("docker.io/x/y:latest"),
            2,
        ),
        ("oci", "both.tar", None, Some("example.com/app:2"), 2),
        ("oci", "docker.tar", None, Some("example.com/app:3"), 2),
        ("oci", "docker.tar.gz", None, Some("example.com/app:3"), 2),
        (
            "oci",
            "docker.tar.zst",
            Some("z"),
            Some("docker.io/library/z:latest"),
            2,
        ),
        (
            "rootfs",
            "rootfs.tar",
            Some("root:1"),
            Some("docker.io/library/root:1"),
            1,
        ),
        ("rootfs", "rootfs.tar.gz", None, None, 1),
        ("rootfs", "rootfs.tar.zst", None, None, 1),
    ] {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let images = import(&store, &at(path), name, &Quiet)
            .unwrap_or_else(|e| panic!("{path}: {}", chain(&e)));
        assert_eq!(images.len(), 1, "{path}");
        let image = &images[0];
        assert_eq!(
            image.references,
            Vec::from_iter(reference.map(str::to_owned)),
            "{path}"
        );
        if let Some(reference) = reference {
            assert_eq!(
                store.resolve(reference).unwrap().unwrap().id,
                image.id,
                "{path}"
            );
        }
        assert_eq!(
            store.resolve(&image.id[7..19]).unwrap().unwrap().id,
            image.id,
            "{path}"
        );
        // the same content is the same image, however it came
        let known = ids.entry(form).or_insert_with(|| image.id.clone());
        assert_eq!(*known, image.id, "{path}");
        let folders = store.layers(image, &Quiet).unwrap();
        assert_eq!(folders.len(), layers, "{path}");
        assert_eq!(store.layers(image, &Quiet).unwrap(), folders, "{path}");
        let merged = mount_overlay(root.path(), &folders);
        assert_eq!(tree(&merged), ["etc/", "etc/more", "etc/motd"], "{path}");
        unmount(&merged);
        assert_eq!(names(&root.path().join("tmp")), [""; 0]);
    }
}

/// What Dockers before 25 save: layers by path, equal ones as links, names beside.
#[test]
fn docker_archives_of_old() {
    let layer = |name: &str| {
        let mut tar = Tar::new();
        tar.file(name, b"x");
        tar.finish()
    };
    let (one, two) = (layer("one"), layer("two"));
    let ids: Vec<String> = [&one, &two, &one]
        .map(|layer| Digest::of(layer).as_str().to_owned())
        .to_vec();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "container_config": {"Hostname": "x"},
        "config": {"Env": ["A=b"]}, "rootfs": {"type": "layers", "diff_ids": ids},
    })
    .to_string();
    let hex = Digest::of(config.as_bytes()).hex().to_owned();
    let archive = |config_name: &str, target: &str| {
        let manifest = serde_json::json!([{
            "Config": config_name,
            "RepoTags": ["app:1", "example.com/app:2"],
            "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"],
        }]);
        let mut tar = Tar::new();
        tar.file(config_name, config.as_bytes())
            .dir("1/")
            .file("1/layer.tar", &one);
        tar.file("2/layer.tar", &two).symlink("3/layer.tar", target);
        tar.file("manifest.json", manifest.to_string().as_bytes());
        tar.file("repositories", b"{}");
        tar.finish()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.tar");
    let store = Store::open(&folder.path().join("store")).unwrap();
    fs::write(&path, archive(&format!("{hex}.json"), "../1/layer.tar")).unwrap();
    let image = import(&store, &path, None, &Quiet).unwrap().remove(0);
    assert_eq!(
        image.references,
        ["docker.io/library/app:1", "example.com/app:2"]
    );
    assert_eq!(image.id, format!("sha256:{hex}"));
    assert_eq!(store.layers(&image, &Quiet).unwrap().len(), 2);
    for (config_name, target, expected) in [
        (
            format!("{}.json", "a".repeat(64)),
            "../1/layer.tar",
            "has digest sha256:",
        ),
        (
            format!("{hex}.json"),
            "../../etc/passwd",
            "not a regular file",
        ),
        (
            format!("{hex}.json"),
            "/etc/passwd",
            "has no \"3/layer.tar\"",
        ),
        (format!("{hex}.json"), "layer.tar", "loop of links"),
    ] {
        fs::write(&path, archive(&config_name, target)).unwrap();
        let text = chain(&import(&store, &path, None, &Quiet).unwrap_err());
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn indexes_within_a_layout() {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    let store = Store::open(&folder.path().join("store")).unwrap();
    write_multi(
        &layout,
        &["linux/s390x", "linux/amd64", "linux/arm64"],
        "m:1",
    );
    let image = import(&store, &layout, None, &Quiet).unwrap().remove(0);
    let host = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    assert_eq!(image.config.architecture().to_string(), host);
    let missing = folder.path().join("missing");
    write_multi(&missing, &["windows/amd64"], "m:1");
    let error = import(&store, &missing, None, &Quiet).unwrap_err();
    assert!(matches!(error, Error::Platform { .. }), "{error}");
    let deep = folder.path().join("deep");
    write_nested(&deep, 10);
    let text = import(&store, &deep, None, &Quiet).unwrap_err().to_string();
    assert!(text.contains("more than 4 deep"), "{text}");
}

#[test]
fn no_images() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(
        at("text"),
        "this is just text, and more of it than one block holds. ".repeat(20),
    )
    .unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("zeros"), [0; 10_240]).unwrap();
    fs::write(at("xz"), b"\xfd7zXZ\0\0\0").unwrap();
    fs::write(at("cut.gz"), &gzip(&[1; 5000])[..20]).unwrap();
    fs::create_dir(at("folder")).unwrap();
    let mut old = Tar::new();
    old.file("repositories", b"{}").file("abc/layer.tar", b"");
    fs::write(at("old.tar"), old.finish()).unwrap();
    run("mkfifo", &[at("fifo").to_str().unwrap()]);
    let store = Store::open(&at("store")).unwrap();
    for (name, expected) in [
        ("text", "is no image (malformed tar"),
        ("empty", "is no image (a tar without entries)"),
        ("zeros", "is no image (a tar without entries)"),
        ("xz", "xz compression is not supported"),
        ("cut.gz", "is no image"),
        ("folder", "a folder must be an OCI layout"),
        ("old.tar", "Docker before 1.10"),
        ("fifo", "neither a file nor a folder"),
        ("missing", "No such file"),
    ] {
        let error = import(&store, &at(name), None, &Quiet).unwrap_err();
        let text = chain(&error);
        assert!(
            text.contains(expected) && text.contains(at(name).to_str().unwrap()),
            "{name}: {text}"
        );
    }
    assert_eq!(names(&at("store/blobs/sha256")), [""; 0]);
    assert!(store.list().unwrap().is_empty());
}
