//! Layers, honest and hostile, in overlay form and through overlayfs. Needs root.

mod image_support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use image_support::*;
use sampan::image::{Error, Image, Store, import};

/// Imports a layout with these layers and unpacks it.
fn layers_of(folder: &Path, layers: &[Vec<u8>]) -> Result<(Store, Image, Vec<PathBuf>), Error> {
    let layout = folder.join("layout");
    write_layout(&layout, layers, "example.com/test:1");
    let store = Store::open(&folder.join("store")).unwrap();
    let image = import(&store, &layout, None, &Quiet)?.remove(0);
    let folders = store.layers(&image, &Quiet)?;
    Ok((store, image, folders))
}

fn unpack(layer: Vec<u8>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (_, _, mut folders) = layers_of(folder.path(), &[layer]).unwrap();
    assert_eq!(folders.len(), 1);
    (folder, folders.remove(0))
}

#[test]
fn everything_a_layer_can_hold() {
    let capability: Vec<u8> = vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut tar = Tar::new();
    tar.dir("./").dir("bin/").dir("tmp/");
    tar.last().mode(0o1777);
    tar.file("bin/su", b"program").mode(0o4755).owner(0, 42);
    tar.last()
        .pax("SCHILY.xattr.security.capability", &capability);
    tar.last().pax("mtime", b"1700000000.123456789");
    tar.file("bin/user", b"x").owner(1000, 100_000);
    tar.last().pax("SCHILY.xattr.user.note", b"a\nb=c");
    tar.last()
        .pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc");
    tar.link("bin/hard", "bin/su")
        .symlink("bin/sh", "/usr/bin/dash");
    tar.node("null", b'3', 1, 3)
        .node("disk", b'4', 8, 1)
        .node("pipe", b'6', 0, 0);
    let (_guard, root) = unpack(tar.finish());

    let su = fs::symlink_metadata(root.join("bin/su")).unwrap();
    assert_eq!((su.mode(), su.uid(), su.gid()), (0o104_755, 0, 42));
    assert_eq!((su.mtime(), su.mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!(su.nlink(), 2);
    assert_eq!(su.ino(), fs::metadata(root.join("bin/hard")).unwrap().ino());
    assert_eq!(
        xattrs(&root.join("bin/su")),
        [("security.capability".into(), capability)]
    );
    let user = fs::metadata(root.join("bin/user")).unwrap();
    assert_eq!((user.uid(), user.gid()), (1000, 100_000));
    assert_eq!(
        xattrs(&root.join("bin/user")),
        [("user.note".into(), b"a\nb=c".to_vec())]
    );
    assert_eq!(
        fs::read_link(root.join("bin/sh")).unwrap(),
        Path::new("/usr/bin/dash")
    );
    assert_eq!(fs::metadata(root.join("tmp")).unwrap().mode(), 0o41_777);
    // the time of a folder is its own, not that of the last entry made in it
    assert_eq!(fs::metadata(root.join("bin")).unwrap().mtime(), MTIME);
    for (name, mode, device) in [
        ("null", 0o20_644, rustix::fs::makedev(1, 3)),
        ("disk", 0o60_644, rustix::fs::makedev(8, 1)),
        ("pipe", 0o10_644, 0),
    ] {
        let stat = fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!((stat.mode(), stat.rdev()), (mode, device), "{name}");
    }
}

#[test]
fn compressed_layers() {
    let mut tar = Tar::new();
    tar.file("a", &[7; 100_000]);
    let tar = tar.finish();
    for layer in [
        tar.clone(),
        gzip(&tar),
        zstd::encode_all(&tar[..], 1).unwrap(),
    ] {
        let (_guard, root) = unpack(layer);
        assert_eq!(fs::read(root.join("a")).unwrap(), [7; 100_000]);
    }
}

#[test]
fn hostile_entries_are_refused_by_name() {
    type Make = fn(&mut Tar);
    let table: &[(&str, Make)] = &[
        ("entry \"../victim\"", |t| _ = t.file("../victim", b"x")),
        ("entry \"a/../../victim\"", |t| {
            _ = t.file("a/../../victim", b"x")
        }),
        ("entry \"localetc/sub/..\"", |t| {
            _ = t.dir("localetc/sub/..")
        }),
        ("entry \"s/victim\"", |t| {
            _ = t.symlink("s", "/").file("s/victim", b"x")
        }),
        ("entry \"s/victim\"", |t| {
            _ = t.symlink("s", "../..").file("s/victim", b"x")
        }),
        ("entry \"s/victim\"", |t| {
            _ = t.symlink("s", "../root-evil").file("s/victim", b"x");
        }),
        ("entry \"b/victim\"", |t| {
            _ = t
                .dir("d/")
                .symlink("d/up", "../..")
                .symlink("b", "d/up")
                .file("b/victim", b"x");
        }),
        ("entry \"l/x\"", |t| {
            _ = t.symlink("l", "l").file("l/x", b"x")
        }),
        ("entry \"n/x\"", |t| {
            _ = t.symlink("n", "missing").file("n/x", b"x")
        }),
        ("entry \"f/x\"", |t| _ = t.file("f", b"").file("f/x", b"x")),
        ("entry \"h\"", |t| _ = t.link("h", "../victim")),
        ("entry \"h\"", |t| _ = t.link("h", "/../victim")),
        ("entry \"h\"", |t| _ = t.link("h", "missing")),
        ("entry \"h\"", |t| _ = t.dir("d/").link("h", "d")),
        ("entry \"h\"", |t| {
            _ = t.symlink("s", "/etc").link("h", "s/passwd")
        }),
        ("entry \"h\"", |t| {
            _ = t.file(".wh.gone", b"").link("h", "gone")
        }),
        ("entry \".wh.\"", |t| _ = t.file(".wh.", b"")),
        ("entry \".wh..\"", |t| _ = t.file(".wh..", b"")),
        ("entry \".wh...\"", |t| _ = t.file(".wh...", b"")),
        ("entry \".wh.a/b\"", |t| _ = t.file(".wh.a/b", b"")),
        ("entry \"./\"", |t| _ = t.symlink("./", "/etc")),
        ("entry \"dev\"", |t| _ = t.node("dev", b'3', 0x1000, 0)),
        ("entry \"dev\"", |t| _ = t.node("dev", b'4', 0, 0x0010_0000)),
        ("entry \"u\"", |t| {
            t.file("u", b"");
            t.last().pax("uid", b"4294967295");
        }),
        ("entry \"u\"", |t| {
            t.file("u", b"");
            t.last().pax("gid", b"99999999999");
        }),
        ("malformed tar", |t| {
            t.file("u", b"");
            t.last().pax("uid", b"-1");
        }),
        ("malformed tar", |t| {
            t.file("x", b"");
            t.last().pax("path", b"a\0b");
        }),
        ("in the middle of an entry", |t| {
            t.file("x", b"little");
            t.last().size(0o77_777_777_777);
        }),
        ("in the middle of an entry", |t| {
            t.file("x", b"little");
            t.last().pax("size", b"18446744073709551615");
        }),
        ("malformed tar", |t| {
            t.file("x", b"little");
            t.last().pax("GNU.sparse.map", b"0,6,9223372036854775807,9");
            t.last().pax("GNU.sparse.size", b"99");
        }),
        ("a header without an end", |t| {
            t.file("x", &[b'1'; 3000]);
            t.last()
                .pax("GNU.sparse.major", b"1")
                .pax("GNU.sparse.minor", b"0");
            t.last().pax("GNU.sparse.realsize", b"10");
        }),
        ("too large", |t| {
            t.file("x", b"little");
            t.last().pax("GNU.sparse.map", b"0,6");
            t.last().pax("GNU.sparse.size", b"4611686018427387904");
        }),
        ("entry \"odd\"", |t| _ = t.node("odd", b'Z', 0, 0)),
        ("deep", |t| {
            let deep = "a/".repeat(600);
            t.file("x", b"");
            t.last().pax("path", format!("{deep}x").as_bytes());
        }),
        ("path exceeds", |t| {
            let deep = "a/".repeat(10_000);
            t.file("x", b"");
            t.last().pax("path", format!("{deep}x").as_bytes());
        }),
        ("more than 255 bytes", |t| {
            t.file("x", b"");
            t.last().pax("path", "n".repeat(300).as_bytes());
        }),
    ];
    for (number, (expected, make)) in table.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("store/victim");
        fs::create_dir_all(folder.path().join("store")).unwrap();
        fs::write(&victim, "untouched").unwrap();
        let before = outside(folder.path());
        let mut tar = Tar::new();
        make(&mut tar);
        let error = layers_of(folder.path(), &[tar.finish()]).expect_err(expected);
        let text = chain(&error);
        assert!(text.contains(expected), "{number}: {expected}: {text}");
        assert_eq!(outside(folder.path()), before, "{number}: {expected}");
        // nothing visible, nothing left behind
        assert_eq!(
            names(&folder.path().join("store/layers/sha256")),
            [""; 0],
            "{expected}"
        );
        assert_eq!(
            names(&folder.path().join("store/tmp")),
            [""; 0],
            "{expected}"
        );
    }
}

/// Files beside the store's own folders.
fn outside(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for folder in [folder, &folder.join("store")] {
        for name in names(folder) {
            let path = folder.join(&name);
            if path.is_file() && name != "images.json" && name != "lock" {
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found
}

#[test]
fn odd_but_harmless_entries() {
    let mut tar = Tar::new();
    // absolute and dotted names are of the layer's root
    tar.file("/abs", b"1").file("./dot//file", b"2");
    // within the layer links are followed
    tar.dir("usr/").symlink("lib", "usr").file("lib/x", b"3");
    // a folder that replaces a link doesn't merge with what the link hid
    tar.symlink("s", "/").dir("s/").file("s/in", b"4");
    // writing through a hard link's name replaces the name, not the file
    tar.file("one", b"5").link("two", "one").file("two", b"6");
    // a link to itself, a link over a file
    tar.link("one", "one")
        .file("three", b"7")
        .link("three", "one");
    // a folder becomes a file
    tar.file("tree/deep/file", b"").file("tree", b"8");
    let (_guard, root) = unpack(tar.finish());
    for (name, content) in [
        ("abs", "1"),
        ("dot/file", "2"),
        ("usr/x", "3"),
        ("s/in", "4"),
        ("one", "5"),
        ("two", "6"),
        ("three", "5"),
        ("tree", "8"),
    ] {
        assert_eq!(
            fs::read_to_string(root.join(name)).unwrap(),
            content,
            "{name}"
        );
    }
    assert!(is_opaque(&root.join("s")));
    assert!(!is_opaque(&root.join("usr")));
}

#[test]
fn whiteouts_in_overlay_form() {
    let mut tar = Tar::new();
    tar.file(".wh.gone", b"").file("dir/.wh.hidden", b"");
    // opaque spares entries of its own layer, before and after it
    tar.dir("o/")
        .file("o/before", b"")
        .file("o/.wh..wh..opq", b"")
        .file("o/after", b"");
    // three deep, ancestors implied
    tar.file("x/y/z/.wh..wh..opq", b"").file("x/y/z/own", b"");
    // entry and whiteout of one name: the entry stays and hides what is below
    tar.dir("both/").file("both/own", b"").file(".wh.both", b"");
    tar.file(".wh.again", b"").file("again/own", b"");
    tar.file(".wh.file", b"").file("file", b"new");
    tar.file(".wh..wh.plnk/1.2", b"").file(".wh..wh.aufs", b"");
    let (_guard, root) = unpack(tar.finish());
    assert_eq!(
        tree(&root),
        [
            "again/ opaque",
            "again/own",
            "both/ opaque",
            "both/own",
            "dir/",
            "dir/hidden whiteout",
            "file",
            "gone whiteout",
            "o/ opaque",
            "o/after",
            "o/before",
            "x/",
            "x/y/",
            "x/y/z/ opaque",
            "x/y/z/own",
        ]
    );
    assert_eq!(fs::metadata(root.join("o")).unwrap().mtime(), MTIME);
}

/// The chain of moby's whiteout test, seen through overlayfs.
#[test]
fn a_chain_through_overlayfs() {
    private_mounts();
    let mut base = Tar::new();
    base.dir("foo/")
        .file("foo/a", b"1")
        .file("foo/b", b"2")
        .dir("foo/sub/")
        .file("foo/sub/c", b"3");
    base.file(".hidden", b"4")
        .dir("dir/")
        .file("dir/x", b"5")
        .dir("sticky/")
        .file("sticky/a", b"");
    base.entry("sticky/", b'5', b"").mode(0o1777).owner(7, 8);
    let mut second = Tar::new();
    second
        .dir("foo/")
        .file("foo/.wh..wh..opq", b"")
        .file("foo/b", b"new")
        .file("sticky/b", b"");
    let mut third = Tar::new();
    third.file(".wh..hidden", b"").file(".wh.dir", b"");
    let mut fourth = Tar::new();
    fourth
        .dir("dir/")
        .file("dir/again", b"6")
        .dir("foo/")
        .file("foo/a", b"back");
    let chain = [
        base.finish(),
        second.finish(),
        third.finish(),
        fourth.finish(),
    ];

    let folder = tempfile::tempdir().unwrap();
    for (count, expected) in [
        (
            1,
            &[
                ".hidden",
                "dir/",
                "dir/x",
                "foo/",
                "foo/a",
                "foo/b",
                "foo/sub/",
                "foo/sub/c",
                "sticky/",
                "sticky/a",
            ][..],
        ),
        (
            2,
            &[
                ".hidden", "dir/", "dir/x", "foo/", "foo/b", "sticky/", "sticky/a", "sticky/b",
            ],
        ),
        (3, &["foo/", "foo/b", "sticky/", "sticky/a", "sticky/b"]),
        (
            4,
            &[
                "dir/",
                "dir/again",
                "foo/",
                "foo/a",
                "foo/b",
                "sticky/",
                "sticky/a",
                "sticky/b",
            ],
        ),
    ] {
        let work = folder.path().join(count.to_string());
        let (_, _, folders) = layers_of(&work, &chain[..count]).unwrap();
        assert_eq!(folders.len(), count);
        let merged = mount_overlay(&work, &folders);
        let plain: Vec<String> = tree(&merged)
            .iter()
            .map(|line| line.replace(" opaque", ""))
            .collect();
        assert_eq!(plain, expected, "{count} layers");
        // the second layer implies sticky/: it looks as below
        let sticky = fs::metadata(merged.join("sticky")).unwrap();
        assert_eq!(
            (sticky.mode(), sticky.uid(), sticky.gid()),
            (0o41_777, 7, 8)
        );
        assert_eq!(sticky.mtime(), MTIME);
    }
}

#[test]
fn the_same_layer_twice() {
    private_mounts();
    let mut first = Tar::new();
    first.file("a", b"one");
    let mut second = Tar::new();
    second.file("a", b"two");
    let (first, second) = (first.finish(), second.finish());
    let folder = tempfile::tempdir().unwrap();
    let (_, _, folders) = layers_of(folder.path(), &[first.clone(), second, first]).unwrap();
    assert_eq!(folders.len(), 2);
    let merged = mount_overlay(folder.path(), &folders);
    assert_eq!(fs::read_to_string(merged.join("a")).unwrap(), "one");
}

#[test]
fn sparse_files() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    let file = fs::File::create(source.join("holes")).unwrap();
    file.set_len(1 << 30).unwrap();
    use std::os::unix::fs::FileExt;
    file.write_all_at(b"middle", 1 << 29).unwrap();
    file.write_all_at(b"end", (1 << 30) - 3).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tar = folder.path().join("layer.tar");
        let mut arguments = vec!["--sparse", "-cf", tar.to_str().unwrap()];
        arguments.extend(format);
        arguments.extend(["-C", source.to_str().unwrap(), "."]);
        run("tar", &arguments);
        let (_guard, root) = unpack(fs::read(&tar).unwrap());
        let holes = fs::File::open(root.join("holes")).unwrap();
        let stat = holes.metadata().unwrap();
        assert_eq!(stat.len(), 1 << 30, "{format:?}");
        assert!(stat.blocks() < 1000, "{format:?}");
        let mut six = [0; 6];
        holes.read_exact_at(&mut six, 1 << 29).unwrap();
        assert_eq!(&six, b"middle");
        holes.read_exact_at(&mut six, (1 << 30) - 6).unwrap();
        assert_eq!(&six, b"\0\0\0end");
    }
}
