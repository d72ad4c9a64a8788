//! What volumes keep, whose they are, and how they are filled.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::pod_support::{BUSYBOX, Ended, Host, tool, until};

/// Folder of a named volume of the project.
fn named(host: &Host, name: &str) -> PathBuf {
    host.root.join(format!("volumes/{}_{name}", host.name))
}

/// Runs a command for another pod, in a folder of its own.
fn other(host: &Host, arguments: &[&str]) -> Ended {
    let file = host.project.join("other.yaml");
    let first = ["-f", file.to_str().unwrap(), "-p", "other"];
    host.sampan(&[&first, arguments].concat())
}

/// Puts a folder of the host into the store, as the image `localhost/NAME`.
fn import(host: &Host, folder: &Path, name: &str) {
    let archive = host.path().join(format!("{name}.tar"));
    let (folder, archive) = (folder.to_str().unwrap(), archive.to_str().unwrap());
    tool(
        "tar",
        &[
            "--xattrs",
            "--xattrs-include=*",
            "-S",
            "-C",
            folder,
            "-cf",
            archive,
            ".",
        ],
    );
    let reference = format!("localhost/{name}");
    host.sampan(&["image", "import", archive, &reference]).ok();
}

/// A folder with busybox as `/bin/busybox` and something in `/data`.
fn image(host: &Host) -> PathBuf {
    let folder = host.path().join("image");
    for dir in ["bin", "data/sub"] {
        fs::create_dir_all(folder.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", folder.join("bin/busybox")).unwrap();
    fs::write(folder.join("data/file"), "image").unwrap();
    folder
}

/// An image that declares volumes.
fn declared(host: &Host, name: &str, volumes: &[&str]) {
    let definition = host.path().join(name);
    fs::create_dir_all(&definition).unwrap();
    fs::copy("/bin/busybox", definition.join("busybox")).unwrap();
    let text = format!(
        "volumes = {volumes:?}
env = {{PATH = '/bin'}}
directories = [{{path = '/root'}}]
files = [{{path = '/bin/busybox', source = 'busybox', mode = 0o755}}]
symlinks = [{{target = 'busybox', paths = ['/bin/cat', '/bin/ls', '/bin/sh', '/bin/sleep']}}]
"
    );
    fs::write(definition.join("image.toml"), text).unwrap();
    let layout = host.path().join(format!("{name}-layout"));
    let (layout, definition) = (layout.to_str().unwrap(), definition.to_str().unwrap());
    host.sampan(&["image", "build", "-o", layout, definition])
        .ok();
    host.sampan(&["image", "import", layout]).ok();
}

fn pod(image: &str, volumes: &str, label: &str) -> String {
    format!(
        "services: {{web: {{image: {image}, command: [sleep, '1000'], stop_signal: KILL, network_mode: host, labels: {{l: '{label}'}}, volumes: [{volumes}]}}}}\n"
    )
}

const LOOK: &str = "cat /made/x /declared/x 2>/dev/null || echo none";

#[test]
fn nameless_ones_stay_while_the_pod_is_made_again() {
    let host = Host::empty();
    declared(&host, "declared", &["/declared"]);
    let before = host.snapshot();
    let image = "localhost/declared";
    host.compose(&pod(image, "/made, /gone", "1"));
    host.sampan(&["up", "-d"]).ok();
    let fill = "echo a > /made/x; echo b > /declared/x; echo c > /gone/x; echo d > /root/x";
    host.shell("web", fill);
    // whatever is made anew, but for the targets that there are
    host.compose(&pod(image, "/made", "2"));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(
        host.shell("web", &format!("{LOOK}; ls /root /gone 2>&1; true")),
        "a\nb\nls: /gone: No such file or directory\n/root:"
    );
    let data = host.root.join("pods").join(&host.name).join("web/volumes");
    assert!(!data.join("%2Fgone").exists());
    host.sampan(&["up", "-d", "--force-recreate"]).ok();
    assert_eq!(host.shell("web", LOOK), "a\nb");

    // one that cannot be made leaves them to the next
    host.compose(&pod(image, "/made", "3").replace("sleep, '1000'", "nothing"));
    host.sampan(&["up", "-d"]).fails(127);
    assert!(!host.pod().exists());
    assert_eq!(host.sampan(&["gc", "--json"]).json(), serde_json::json!([]));
    host.compose(&pod(image, "/made", "4"));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.shell("web", LOOK), "a\nb");

    // unless they are not wanted; without a change nothing is made again
    host.sampan(&["up", "-d", "-V"]).ok();
    assert_eq!(host.shell("web", LOOK), "a\nb");
    host.sampan(&["up", "-d", "-V", "--force-recreate"]).ok();
    assert_eq!(host.shell("web", LOOK), "none");
    host.shell("web", fill.replace("; echo c > /gone/x", "").as_str());
    host.sampan(&["down"]).ok();
    host.assert_clean(&before);
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.shell("web", LOOK), "none");
    host.down(&before);
}

#[test]
fn nameless_ones_outlive_the_machine() {
    let host = Host::empty();
    declared(&host, "declared", &["/declared"]);
    let before = host.snapshot();
    host.compose(&pod("localhost/declared", "/made", "1"));
    let end = || {
        for (pid, _) in host.processes() {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        until("everything is dead", || {
            host.processes().is_empty().then_some(())
        });
        let cgroup = host.cgroup.child(&format!("sampan-{}", host.name));
        cgroup.remove().unwrap();
        fs::remove_dir_all(&host.state).unwrap();
    };
    host.sampan(&["up", "-d"]).ok();
    host.shell("web", "echo a > /made/x; echo b > /declared/x");
    end();
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.shell("web", LOOK), "a\nb");
    end();
    // what else there was goes, and is not found again
    let found = host.sampan(&["gc", "--json"]).json();
    assert_eq!(found[0]["why"], "forgotten");
    let data = host.root.join("pods").join(&host.name);
    let left: Vec<_> = fs::read_dir(data.join("web"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["volumes"]);
    assert_eq!(host.sampan(&["gc", "--json"]).json(), serde_json::json!([]));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.shell("web", LOOK), "a\nb");
    end();
    // `down` knows of them, and nothing else does
    host.sampan(&["down"]).ok();
    assert!(!data.exists());
    fs::create_dir_all(&host.state).unwrap();
    drop(before);
}

#[test]
fn a_pod_stays_when_the_new_one_cannot_be_made() {
    let host = Host::new();
    let before = host.snapshot();
    let text = pod(BUSYBOX, "'outer:/x'", "1");
    host.compose(&pod(BUSYBOX, "", "1"));
    host.sampan(&["up", "-d"]).ok();
    let pid = host.row("web")["pid"].clone();
    assert!(pid.is_number(), "{pid}");
    host.compose(&format!("{text}volumes: {{outer: {{external: true}}}}\n"));
    let looked = host.root.join("volumes/outer/_data");
    assert_eq!(
        host.sampan(&["up", "-d"]).fails(1),
        format!(
            "sampan: volume outer is external and does not exist (looked for {})\n",
            looked.display()
        )
    );
    assert_eq!(host.row("web")["pid"], pid);
    host.down(&before);
}

#[test]
fn images_of_the_new_pod_are_held_while_the_old_one_stops() {
    let host = Host::new();
    let before = host.snapshot();
    // it ends when the test says so
    host.compose(&format!(
        "services: {{web: {{image: {BUSYBOX}, command: [sh, -c, 'trap \"touch /p/stops; while ! test -e /p/go; do usleep 10000; done; exit\" TERM; echo ready; while :; do usleep 10000; done'], network_mode: host, volumes: ['./:/p']}}}}\n"
    ));
    host.sampan(&["up", "-d"]).ok();
    host.await_log("web", "ready");
    import(&host, &image(&host), "next");
    host.compose(
        "services: {web: {image: localhost/next, command: [/bin/busybox, sleep, '1000'], network_mode: host, stop_signal: KILL}}\n",
    );
    let up = host.start(&["up", "-d"]);
    until("the old pod stops", || {
        host.project.join("stops").exists().then_some(())
    });
    for image in [BUSYBOX, "localhost/next"] {
        let removed = host.sampan(&["image", "rm", image]);
        assert_eq!(
            removed.fails(1),
            format!(
                "sampan: image {image} is held by {}; end that first\n",
                host.name
            )
        );
    }
    host.write("go", "");
    let up = up.wait();
    assert_eq!(up.code, 0, "{up:#?}");
    // the old pod's is not held any more
    host.sampan(&["image", "rm", BUSYBOX]).ok();
    host.down(&before);
}

#[test]
fn a_volume_is_filled_under_who_has_it_mounted() {
    let host = Host::new();
    import(&host, &image(&host), "filled");
    let before = host.snapshot();
    host.compose(&format!(
        "{}volumes: {{v: {{name: shared}}}}\n",
        pod(BUSYBOX, "'v:/v'", "1")
    ));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.shell("web", "ls /v"), "");
    host.write(
        "other.yaml",
        pod("localhost/filled", "'v:/data'", "1").replace("[sleep", "[/bin/busybox, sleep")
            + "volumes: {v: {name: shared, external: true}}\n",
    );
    other(&host, &["up", "-d"]).ok();
    assert_eq!(host.shell("web", "ls /v; cat /v/file"), "file\nsub\nimage");
    let volume: Vec<_> = fs::read_dir(host.root.join("volumes/shared"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(volume.len(), 2, "{volume:?}");
    other(&host, &["down"]).ok();
    host.down(&before);
}

#[test]
fn whoever_fills_a_volume_has_it_locked() {
    let host = Host::new();
    import(&host, &image(&host), "filled");
    let before = host.snapshot();
    host.compose(&format!(
        "{}volumes: {{v: }}\n",
        pod("localhost/filled", "'v:/data'", "1").replace("[sleep", "[/bin/busybox, sleep")
    ));
    let dir = named(&host, "v");
    fs::create_dir_all(&dir).unwrap();
    let lock = File::open(&dir).unwrap();
    lock.lock().unwrap();
    let inode = format!(":{} ", lock.metadata().unwrap().ino());
    let up = host.start(&["up", "-d"]);
    until("somebody waits for the lock", || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let waits = |line: &str| line.contains("-> FLOCK") && line.contains(&inode);
        locks.lines().any(waits).then_some(())
    });
    // so it is not new when they have it
    fs::create_dir(dir.join("_data")).unwrap();
    fs::write(dir.join("_data/other"), "").unwrap();
    drop(lock);
    let up = up.wait();
    assert_eq!(up.code, 0, "{up:#?}");
    let list = |path: &Path| -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(list(&dir.join("_data")), ["other"]);
    host.sampan(&["down"]).ok();

    // killed while it copied, with nothing in the volume yet
    fs::remove_file(dir.join("_data/other")).unwrap();
    fs::create_dir_all(dir.join(".copy_data/content/half")).unwrap();
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(list(&dir.join("_data")), ["file", "sub"]);
    host.sampan(&["down"]).ok();
    // killed while it moved: what a container wrote meanwhile stays, the rest is moved
    fs::remove_dir_all(dir.join("_data/sub")).unwrap();
    for path in [".ready_data/content/sub", ".ready_data/itself"] {
        fs::create_dir_all(dir.join(path)).unwrap();
    }
    fs::write(dir.join(".ready_data/content/file"), "late").unwrap();
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(list(&dir), ["_data"]);
    assert_eq!(list(&dir.join("_data")), ["file", "sub"]);
    assert_eq!(fs::read(dir.join("_data/file")).unwrap(), b"image");
    host.sampan(&["down"]).ok();
    host.assert_clean(&before);
    // the test made it, not the project: it stays
    host.sampan(&["down", "-v"]).ok();
    assert_eq!(list(&dir.join("_data")), ["file", "sub"]);
}

#[test]
fn a_volume_that_another_pod_uses_stays() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "{}volumes: {{v: {{name: shared}}, own: }}\n",
        pod(BUSYBOX, "'v:/v', 'own:/own'", "1")
    ));
    host.sampan(&["up", "-d"]).ok();
    host.shell("web", "echo kept > /v/x");
    host.write(
        "other.yaml",
        pod(BUSYBOX, "'v:/v'", "1") + "volumes: {v: {name: shared, external: true}}\n",
    );
    other(&host, &["up", "-d"]).ok();
    assert_eq!(
        host.sampan(&["down", "-v"]).fails(1).lines().last(),
        Some(
            "sampan: volume shared is in use by pod other; remove that one first (`sampan -p other down`)"
        )
    );
    // the pod is gone, and what nobody else uses
    assert!(!host.pod().exists() && !named(&host, "own").exists());
    let file = host.root.join("volumes/shared/_data/x");
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept\n");
    other(&host, &["down", "-v"]).ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept\n");
    host.sampan(&["down", "-v"]).ok();
    assert!(!host.root.join("volumes/shared").exists());
    host.assert_clean(&before);
}

#[test]
fn a_volume_is_filled_with_everything_as_it_is() {
    let host = Host::new();
    let folder = image(&host);
    let data = folder.join("data");
    let sparse = File::create(data.join("sparse")).unwrap();
    const LENGTH: u64 = 8 << 40;
    sparse.set_len(LENGTH).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", LENGTH - 3).unwrap();
    fs::hard_link(data.join("file"), data.join("sub/again")).unwrap();
    nix::unistd::mkfifo(&data.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    // cap_net_raw+ep, as setcap(8) writes it
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(data.join("file"), "security.capability", &capability, none).unwrap();
    tool(
        "touch",
        &[
            "-d",
            "2001-02-03T04:05:06.7",
            data.join("file").to_str().unwrap(),
        ],
    );
    tool(
        "touch",
        &["-d", "2002-02-03T04:05:06", data.to_str().unwrap()],
    );
    import(&host, &folder, "filled");
    let before = host.snapshot();
    host.compose(&format!(
        "{}volumes: {{v: }}\n",
        pod("localhost/filled", "'v:/data'", "1").replace("[sleep", "[/bin/busybox, sleep")
    ));
    host.sampan(&["up", "-d"]).ok();
    let copy = named(&host, "v").join("_data");
    let meta = |name: &str| fs::symlink_metadata(copy.join(name)).unwrap();
    let sparse = meta("sparse");
    assert_eq!(sparse.len(), LENGTH);
    assert!(sparse.blocks() <= 16, "{} blocks", sparse.blocks());
    let file = File::open(copy.join("sparse")).unwrap();
    let mut end = [0; 3];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut end, LENGTH - 3).unwrap();
    assert_eq!(&end, b"end");
    assert_eq!(
        (meta("file").nlink(), meta("file").ino()),
        (2, meta("sub/again").ino())
    );
    assert!(meta("pipe").file_type().is_fifo());
    let mut value = [0u8; 64];
    let length =
        rustix::fs::getxattr(copy.join("file"), "security.capability", &mut value).unwrap();
    assert_eq!(value[..length], capability);
    let mtime = |meta: fs::Metadata| (meta.mtime(), meta.mtime_nsec());
    for name in ["file", ""] {
        let source = fs::symlink_metadata(data.join(name)).unwrap();
        assert_eq!(mtime(meta(name)), mtime(source), "{name}");
    }
    host.down(&before);
}

#[test]
fn volumes_are_listed_made_and_removed() {
    let host = Host::new();
    let before = host.snapshot();
    assert_eq!(
        host.sampan(&["volume", "ls"]).ok(),
        "VOLUME   MADE BY   PODS   CREATED\n"
    );
    let made = host.sampan(&["volume", "create", "shared", "--label", "team=a"]);
    assert_eq!(made.ok(), "shared\n");
    let data = host.root.join("volumes/shared/_data");
    fs::write(data.join("kept"), "").unwrap();
    // it is there already
    host.sampan(&["volume", "create", "shared"]).ok();
    host.compose(&format!(
        "services: {{web: {{image: {BUSYBOX}, command: [sleep, '1000'], stop_signal: KILL, volumes: ['shared:/s', 'own:/o']}}}}
volumes: {{shared: {{name: shared, external: true}}, own: {{labels: {{b: c}}}}}}
"
    ));
    host.sampan(&["up", "-d"]).ok();
    let own = format!("{}_own", host.name);
    let shown = host.sampan(&["volume", "inspect", "shared", &own]).json();
    let created = |at: usize| shown[at]["created"].clone();
    let expected = serde_json::json!([
        {"version": 1, "name": "shared", "path": data, "created": created(0), "project": "", "labels": {"team": "a"},
            "pods": [host.name]},
        {"version": 1, "name": own, "path": named(&host, "own").join("_data"), "created": created(1), "project": host.name,
            "labels": {"b": "c"}, "pods": [host.name]},
    ]);
    assert_eq!(shown, expected);
    assert!(created(0).as_str().unwrap() < created(1).as_str().unwrap());
    let listed = host.sampan(&["volume", "ls", "--format", "json"]).json();
    let mut names = [own.as_str(), "shared"];
    names.sort_unstable();
    assert_eq!(listed[0]["name"], names[0]);
    assert_eq!(
        host.sampan(&["volume", "ls", "-q"]).ok(),
        format!("{}\n{}\n", names[0], names[1])
    );

    let refused = host.sampan(&["volume", "rm", "shared", "none"]);
    let expected = format!(
        "sampan: volume shared is in use by pod {0}; remove that one first (`sampan -p {0} down`)\n\
         sampan: no volume none here; `sampan volume ls` lists all\n",
        host.name
    );
    assert_eq!(refused.fails(1), expected);
    assert_eq!(host.sampan(&["volume", "ls", "-q", "--unused"]).ok(), "");
    let bad = host.sampan(&["volume", "create", "../up"]);
    let expected = "sampan: volume \"../up\": letters, digits, '.', '_' and '-' only, at most 128, the first one a letter or digit\n";
    assert_eq!(bad.fails(1), expected);

    host.sampan(&["down", "-v"]).ok();
    assert_eq!(
        host.sampan(&["volume", "ls", "-q", "--unused"]).ok(),
        "shared\n"
    );
    assert!(data.join("kept").exists());
    host.sampan(&["volume", "rm", "shared"]).ok();
    assert_eq!(host.sampan(&["volume", "ls", "-q"]).ok(), "");
    assert!(!host.root.join("volumes/shared").exists());
    host.down(&before);
}
