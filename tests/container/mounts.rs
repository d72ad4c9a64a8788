//! Mounts as the container's own mountinfo shows them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use sampan::container::{self, Rootfs};
use serde_json::{Value, json};

use crate::Test;
use crate::common::Case;

pub const TESTS: &[Test] = &[
    ("mounts::flags_of_new_mounts", flags_of_new_mounts),
    ("mounts::flags_of_bind_mounts", flags_of_bind_mounts),
    ("mounts::recursive_flags", recursive_flags),
    ("mounts::locked_flags", locked_flags),
    ("mounts::remount", remount),
    ("mounts::tmpfs_over_a_folder", tmpfs_over_a_folder),
    ("mounts::readonly_dev_and_tmpfs", readonly_dev_and_tmpfs),
    ("mounts::propagation", propagation),
    ("mounts::propagation_of_the_root", propagation_of_the_root),
    ("mounts::in_the_callers_namespace", in_the_callers_namespace),
    ("mounts::id_maps", id_maps),
    (
        "mounts::id_maps_in_a_user_namespace",
        id_maps_in_a_user_namespace,
    ),
    ("mounts::every_kind_of_source", every_kind_of_source),
    ("mounts::sources_in_the_root", sources_in_the_root),
    ("mounts::shared_masks", shared_masks),
    ("mounts::cgroups_of_version_1", cgroups_of_version_1),
    (
        "mounts::host_trees_in_a_user_namespace",
        host_trees_in_a_user_namespace,
    ),
    (
        "mounts::overlay_in_a_user_namespace",
        overlay_in_a_user_namespace,
    ),
    ("mounts::long_options", long_options),
    ("mounts::wrong_ones", wrong_ones),
    ("mounts::wrong_roots", wrong_roots),
    ("mounts::devices", devices),
];

fn add(case: &mut Case, mount: Value) {
    case.spec["mounts"].as_array_mut().unwrap().push(mount);
}

fn bind(at: &str, source: &Path, options: &str) -> Value {
    let options: Vec<&str> = options.split(',').collect();
    json!({"destination": at, "type": "bind", "source": source, "options": options})
}

/// Flags of the mount, its propagation, and the flags of the file system: `rw,nodev|shared:1|tmpfs|rw,sync`.
fn seen(mountinfo: &str, at: &str) -> Vec<String> {
    let lines = mountinfo
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(at));
    lines
        .map(|line| {
            let (left, right) = line.split_once(" - ").unwrap();
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            format!(
                "{}|{}|{}|{}",
                left[5],
                left[6..].join(" "),
                right[0],
                right[2]
            )
        })
        .collect()
}

/// The flags of the last mount on `at`.
fn flags(mountinfo: &str, at: &str) -> String {
    let all = seen(mountinfo, at);
    let last = all.last().unwrap_or_else(|| panic!("{at}: {mountinfo}"));
    last.split('|').next().unwrap().to_owned()
}

/// The host's mounts of this process are its own from here on.
fn own_mounts() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
}

fn tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
}

fn change(at: &Path, flags: MsFlags) {
    mount(None::<&str>, at, None::<&str>, flags, None::<&str>).unwrap();
}

fn in_user_namespace(case: &mut Case) {
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let namespaces = case.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    case.spec["linux"]["uidMappings"] = maps.clone();
    case.spec["linux"]["gidMappings"] = maps;
    chown(case.root(), Some(100_000), Some(100_000)).unwrap();
}

fn flags_of_new_mounts() {
    let table = [
        ("", "rw,relatime|rw"),
        (
            "ro,nosuid,nodev,noexec",
            "ro,nosuid,nodev,noexec,relatime|rw",
        ),
        ("noatime", "rw,noatime|rw"),
        ("strictatime,nodiratime", "rw,nodiratime|rw"),
        ("nosuid,suid,nosymfollow", "rw,relatime,nosymfollow|rw"),
        ("norelatime,nostrictatime,atime,defaults", "rw,relatime|rw"),
        (
            "sync,dirsync,iversion,silent",
            "rw,relatime|rw,sync,dirsync",
        ),
        (
            "sync,async,loud,noiversion,lazytime",
            "rw,relatime|rw,lazytime",
        ),
        ("rro,rnosuid", "ro,nosuid,relatime|rw"),
    ];
    let mut case = Case::new(&["mounts"]);
    for (index, (options, _)) in table.iter().enumerate() {
        let options: Vec<&str> = options.split(',').collect();
        let at = format!("/m{index}");
        add(
            &mut case,
            json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options}),
        );
    }
    let text = case.good();
    for (index, (options, want)) in table.iter().enumerate() {
        let all = seen(&text, &format!("/m{index}"));
        let got: Vec<&str> = all[0].split('|').collect();
        let super_flags: Vec<&str> = got[3].split(',').collect();
        let (want_own, want_super) = want.split_once('|').unwrap();
        let count = want_super.split(',').count();
        assert_eq!(
            (got[0], super_flags[..count].join(",")),
            (want_own, want_super.to_owned()),
            "{options}"
        );
    }
}

/// As with mount(8): no flag named, all stay; one named, those that are not go. Access times stay unless they are named.
fn flags_of_bind_mounts() {
    own_mounts();
    let all = "ro,noexec,nosymfollow,nodiratime";
    let table = [
        (all, "bind", "ro,noexec,nodiratime,relatime,nosymfollow"),
        (all, "bind,dev", "rw,nodiratime,relatime"),
        (
            all,
            "bind,remount,rw",
            "rw,noexec,nodiratime,relatime,nosymfollow",
        ),
        (
            "ro",
            "bind,nosuid,nodev,rprivate",
            "rw,nosuid,nodev,relatime",
        ),
        ("ro", "bind,rw", "rw,relatime"),
        (
            "nosuid,nodev,noexec,noatime",
            "bind,dev,suid,exec,atime",
            "rw,noatime",
        ),
        ("nosuid,noatime", "bind,ro", "ro,noatime"),
        ("nosuid", "rbind,rro", "ro,nosuid,relatime"),
        ("noatime", "bind,norelatime", "rw,noatime"),
        ("noatime", "bind,relatime", "rw,relatime"),
        ("noatime", "bind,nodiratime", "rw,nodiratime,relatime"),
        ("nodiratime", "bind,strictatime", "rw"),
        ("noatime", "bind,nodiratime,strictatime", "rw,nodiratime"),
    ];
    for (source, options, want) in table {
        let mut case = Case::new(&["mounts"]);
        let host = case.temp.path().join("host");
        tmpfs(&host);
        remount_host(&host, source);
        add(&mut case, bind("/m", &host, options));
        assert_eq!(flags(&case.good(), "/m"), want, "{source}: {options}");
        nix::mount::umount(&host).unwrap();
    }
}

fn remount_host(at: &Path, words: &str) {
    let known = [
        ("ro", MsFlags::MS_RDONLY),
        ("nosuid", MsFlags::MS_NOSUID),
        ("nodev", MsFlags::MS_NODEV),
        ("noexec", MsFlags::MS_NOEXEC),
        ("noatime", MsFlags::MS_NOATIME),
        ("nodiratime", MsFlags::MS_NODIRATIME),
        ("nosymfollow", MsFlags::from_bits_retain(256)),
    ];
    let asked = known
        .iter()
        .filter(|(name, _)| words.split(',').any(|word| word == *name));
    let flags = asked.fold(MsFlags::MS_BIND | MsFlags::MS_REMOUNT, |all, (_, flag)| {
        all | *flag
    });
    change(at, flags);
}

fn recursive_flags() {
    own_mounts();
    let table = [
        ("rbind,ro", "ro,relatime", "rw,relatime"),
        ("rbind,rro", "ro,relatime", "ro,relatime"),
        (
            "rbind,ro,rnosuid,rnoexec",
            "ro,nosuid,noexec,relatime",
            "rw,nosuid,noexec,relatime",
        ),
        ("rbind,rnoatime", "rw,noatime", "rw,noatime"),
        ("rbind,rstrictatime", "rw", "rw"),
        ("rbind,rnostrictatime", "rw,relatime", "rw,relatime"),
        ("rbind,rro,rrw", "rw,relatime", "rw,relatime"),
    ];
    let mut case = Case::new(&["mounts"]);
    let host = case.temp.path().join("host");
    tmpfs(&host);
    tmpfs(&host.join("sub"));
    for (index, (options, ..)) in table.iter().enumerate() {
        add(&mut case, bind(&format!("/m{index}"), &host, options));
    }
    let text = case.good();
    for (index, (options, top, below)) in table.iter().enumerate() {
        let at = format!("/m{index}");
        assert_eq!(flags(&text, &at), *top, "{options}");
        assert_eq!(flags(&text, &format!("{at}/sub")), *below, "{options}");
    }
}

/// What the host has on a mount, a user namespace cannot take away.
fn locked_flags() {
    own_mounts();
    for (source, options, want) in [
        (
            "ro,noexec,nosymfollow",
            "bind,dev",
            Some("ro,noexec,relatime"),
        ),
        ("ro", "bind,nosuid,nodev", Some("ro,nosuid,nodev,relatime")),
        (
            "nodev,nosuid,noatime",
            "bind,ro,exec",
            Some("ro,nosuid,nodev,noatime"),
        ),
        ("ro", "bind,rw", None),
        ("nodev", "bind,dev", None),
        ("noatime", "bind,strictatime", None),
        ("noatime", "bind,norelatime", Some("rw,noatime")),
        (
            "nodiratime",
            "bind,diratime",
            Some("rw,nodiratime,relatime"),
        ),
    ] {
        let mut case = Case::new(&["mounts"]);
        in_user_namespace(&mut case);
        let host = case.temp.path().join("host");
        tmpfs(&host);
        remount_host(&host, source);
        add(&mut case, bind("/m", &host, options));
        match want {
            Some(want) => assert_eq!(flags(&case.good(), "/m"), want, "{source}: {options}"),
            None => {
                let (_, text) = case.create().unwrap_err();
                assert!(
                    text.starts_with("set the flags of the mount on /m: Operation not permitted"),
                    "{text}"
                );
            }
        }
        nix::mount::umount(&host).unwrap();
    }
}

fn remount() {
    let mut case = Case::new(&["mounts"]);
    add(
        &mut case,
        json!({"destination": "/dev/shm", "type": "tmpfs", "options": ["remount", "ro"]}),
    );
    add(
        &mut case,
        json!({"destination": "/proc", "type": "none", "options": ["bind", "remount", "noatime"]}),
    );
    let text = case.good();
    assert_eq!(flags(&text, "/dev/shm"), "ro,nosuid,nodev,noexec,relatime");
    assert_eq!(flags(&text, "/proc"), "rw,nosuid,nodev,noexec,noatime");
    for (at, options, want) in [
        (
            "/dev/shm",
            json!(["remount", "size=1m"]),
            "option size=1m: a remount changes flags of the mount only",
        ),
        (
            "/dev/shm",
            json!(["remount", "sync"]),
            "option sync: a remount changes flags of the mount only",
        ),
        (
            "/nothing",
            json!(["remount", "ro"]),
            "remount /nothing: nothing is there",
        ),
        (
            "/testinit",
            json!(["remount", "ro"]),
            "remount /testinit: Invalid argument",
        ),
    ] {
        let mut case = Case::new(&["true"]);
        add(
            &mut case,
            json!({"destination": at, "type": "tmpfs", "options": options}),
        );
        let (_, text) = case.create().unwrap_err();
        assert!(text.contains(want), "{text}");
        case.assert_gone();
    }
}

fn tmpfs_over_a_folder() {
    let mut case = Case::new(&[
        "stat",
        "/was",
        "--",
        "ls",
        "/was",
        "--",
        "stat",
        "/set",
        "--",
        "stat",
        "/new/deep",
        "--",
        "stat",
        "/full",
        "--",
        "cat",
        "/full/a/file",
        "--",
        "readlink",
        "/full/link",
        "--",
        "stat",
        "/full/a",
        "--",
        "write",
        "/full/a/file",
        "x",
    ]);
    let root = case.root();
    for name in ["was", "set", "full/a"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let mode = |name: &str, mode| {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap()
    };
    mode("was", 0o710);
    mode("set", 0o710);
    mode("full", 0o1770);
    chown(root.join("full"), Some(7), Some(8)).unwrap();
    fs::write(root.join("was/hidden"), "").unwrap();
    fs::write(root.join("full/a/file"), "text\n").unwrap();
    chown(root.join("full/a"), Some(5), Some(6)).unwrap();
    symlink("/etc/shadow", root.join("full/link")).unwrap();
    for (at, options) in [
        ("/was", json!([])),
        ("/set", json!(["mode=1500"])),
        ("/new/deep", json!([])),
        ("/full", json!(["tmpcopyup"])),
    ] {
        add(
            &mut case,
            json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options}),
        );
    }
    let text = case.good();
    let words = |line: &str| line.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = text.lines().map(words).collect();
    let want = [
        "directory 0710 0:0",
        "directory 1500 0:0",
        "directory 1777 0:0",
        "directory 1770 7:8",
        "text",
        "/etc/shadow",
        "directory 0755 5:6",
    ];
    assert_eq!(lines, want);
    // the image is as it was
    assert_eq!(
        fs::read_to_string(root.join("full/a/file")).unwrap(),
        "text\n"
    );
    assert_eq!(
        fs::metadata(root.join("new/deep")).unwrap().mode() & 0o7777,
        0o755
    );
}

fn readonly_dev_and_tmpfs() {
    let mut case = Case::new(&[
        "mounts",
        "--",
        "write",
        "/dev/null",
        "x",
        "--",
        "stat",
        "/late/deep",
    ]);
    case.spec["mounts"][1]["options"] = json!(["nosuid", "ro", "mode=755"]);
    add(
        &mut case,
        json!({"destination": "/late", "type": "tmpfs", "source": "x", "options": ["ro"]}),
    );
    add(
        &mut case,
        json!({"destination": "/late/deep", "type": "tmpfs", "source": "x", "options": ["ro", "mode=700"]}),
    );
    case.spec["root"]["readonly"] = json!(true);
    let text = case.good();
    assert_eq!(flags(&text, "/dev"), "ro,nosuid,relatime");
    assert_eq!(flags(&text, "/late"), "ro,relatime");
    assert!(flags(&text, "/").starts_with("ro,"), "{text}");
    assert!(text.ends_with("directory 0700 0:0 40 0:0\n"), "{text}");
}

/// The field of mountinfo that tells propagation, of a mount of process `pid`.
fn tie(pid: &str, at: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let all = seen(&text, at);
    let last = all.last().unwrap_or_else(|| panic!("{at}: {text}"));
    last.split('|').nth(1).unwrap().to_owned()
}

fn propagation() {
    own_mounts();
    let mut case = Case::new(&["sleep"]);
    let host = case.temp.path().join("host");
    tmpfs(&host);
    change(&host, MsFlags::MS_SHARED);
    tmpfs(&host.join("sub"));
    let words = [
        "rprivate",
        "rslave",
        "rshared",
        "slave",
        "shared",
        "unbindable",
        "nosuid",
    ];
    for word in words {
        add(
            &mut case,
            bind(&format!("/{word}"), &host, &format!("rbind,{word}")),
        );
    }
    let state = case.create().unwrap();
    let group = tie("self", &host.to_string_lossy());
    let below = tie("self", &host.join("sub").to_string_lossy());
    assert!(group.starts_with("shared:") && below.starts_with("shared:"));
    let pid = state.pid.to_string();
    let master = |text: &str| text.replace("shared", "master");
    for (word, want, want_below) in [
        ("rprivate", String::new(), String::new()),
        ("rslave", master(&group), master(&below)),
        ("rshared", group.clone(), below.clone()),
        ("slave", master(&group), master(&below)),
        ("shared", group.clone(), below.clone()),
        ("unbindable", "unbindable".to_owned(), String::new()),
        ("nosuid", String::new(), String::new()),
    ] {
        assert_eq!(tie(&pid, &format!("/{word}")), want, "{word}");
        assert_eq!(tie(&pid, &format!("/{word}/sub")), want_below, "{word}");
    }
    // what the host mounts later comes in where that was asked for
    tmpfs(&host.join("later"));
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let came: Vec<&str> = words
        .into_iter()
        .filter(|word| !seen(&text, &format!("/{word}/later")).is_empty())
        .collect();
    assert_eq!(came, ["rslave", "rshared", "slave", "shared"]);
    container::delete(&case.request.dir).unwrap();
    case.wait(&state);
    // and nothing of the container's reached the host
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let on_host = text
        .lines()
        .filter(|line| line.contains(&*host.to_string_lossy()))
        .count();
    assert_eq!(on_host, 3, "{text}");
}

/// config-linux.md "Namespaces": a type that is not listed is the runtime's own. The mounts are there for all then, and go with the
/// container; nothing of the host's goes with them.
fn in_the_callers_namespace() {
    own_mounts();
    let mut case = Case::new(&["sleep"]);
    let other = tempfile::tempdir().unwrap();
    let host = other.path().join("host");
    tmpfs(&host);
    change(&host, MsFlags::MS_SHARED);
    tmpfs(&host.join("sub"));
    fs::write(host.join("sub/file"), "").unwrap();
    change(Path::new("/"), MsFlags::MS_SHARED);
    let namespaces = case.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "mount");
    add(&mut case, bind("/bound", &host, "rbind,ro"));
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let state = case.create().unwrap();
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for (at, want) in [("proc", "|proc|"), ("bound/sub", "||tmpfs|"), ("", "||")] {
        let at = case.root().join(at);
        let at = at.to_string_lossy();
        let found = seen(&text, at.trim_end_matches('/'));
        assert!(
            found.len() == 1 && found[0].contains(want),
            "{at}: {found:?}"
        );
    }
    case.start().unwrap();
    let process = json!({"args": ["/testinit", "ls", "/bound/sub"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
    let (code, listed) = case.exec(&process);
    assert!(code == 0 && listed.contains("file"), "{listed}");
    container::delete(&case.request.dir).unwrap();
    case.wait(&state);
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    case.assert_gone();
    // when it fails half-way, and when it is killed there
    add(&mut case, bind("/none", Path::new("/none"), "bind"));
    let (_, error) = case.create().unwrap_err();
    assert!(error.contains("/none"), "{error}");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    case.assert_gone();
    add(&mut case, bind("/later", &host, "rbind,rshared"));
    let (_, error) = case.create().unwrap_err();
    assert!(
        error.contains("a mount tied to the host's needs a mount namespace"),
        "{error}"
    );
}

fn propagation_of_the_root() {
    own_mounts();
    for (word, host, want) in [
        (None, MsFlags::MS_SHARED, ""),
        (Some("private"), MsFlags::MS_SHARED, ""),
        (Some("rslave"), MsFlags::MS_SHARED, "master:"),
        (Some("slave"), MsFlags::MS_PRIVATE, ""),
        (Some("shared"), MsFlags::MS_PRIVATE, "shared:"),
        (Some("rshared"), MsFlags::MS_SHARED, "shared:"),
        (Some("unbindable"), MsFlags::MS_PRIVATE, "unbindable"),
    ] {
        change(Path::new("/"), MsFlags::MS_REC | host);
        let mut case = Case::new(&["sleep"]);
        if let Some(word) = word {
            case.spec["linux"]["rootfsPropagation"] = json!(word);
        }
        let state = case.create().unwrap();
        let got = tie(&state.pid.to_string(), "/");
        let kind = got.trim_end_matches(|letter: char| letter.is_ascii_digit());
        assert_eq!(kind, want, "{word:?}");
        // never a peer of the host's: the container's mounts would show there
        assert!(want != "shared:" || got != tie("self", "/"), "{word:?}");
        container::delete(&case.request.dir).unwrap();
        case.wait(&state);
        case.assert_gone();
    }
}

/// Folders with files of some owners.
fn owned(case: &Case) -> std::path::PathBuf {
    let host = case.temp.path().join("owned");
    fs::create_dir(&host).unwrap();
    for (name, uid, gid) in [("a", 0, 0), ("b", 1000, 2000)] {
        fs::write(host.join(name), "").unwrap();
        chown(host.join(name), Some(uid), Some(gid)).unwrap();
    }
    host
}

fn owners(text: &str) -> Vec<&str> {
    text.lines()
        .map(|line| line.split(' ').nth(2).unwrap())
        .collect()
}

fn mapped(mut mount: Value, uids: Value, gids: Value) -> Value {
    mount["uidMappings"] = uids;
    mount["gidMappings"] = gids;
    mount
}

fn line(inside: u32, outside: u32, size: u32) -> Value {
    json!([{"containerID": inside, "hostID": outside, "size": size}])
}

fn id_maps() {
    own_mounts();
    let mut case = Case::new(&[
        "stat", "/m/a", "--", "stat", "/m/b", "--", "stat", "/plain/b", "--", "stat", "/r/sub/f",
        "--", "stat", "/n/sub/f",
    ]);
    let host = owned(&case);
    tmpfs(&host.join("sub"));
    fs::write(host.join("sub/f"), "").unwrap();
    let maps = || (line(0, 100_000, 65536), line(0, 200_000, 65536));
    for (at, options) in [
        ("/m", "bind"),
        ("/r", "rbind,ridmap"),
        ("/n", "rbind,idmap"),
    ] {
        let (uids, gids) = maps();
        add(&mut case, mapped(bind(at, &host, options), uids, gids));
    }
    add(&mut case, bind("/plain", &host, "rbind"));
    let text = case.good();
    let want = [
        "100000:200000",
        "101000:202000",
        "1000:2000",
        "100000:200000",
        "0:0",
    ];
    assert_eq!(owners(&text), want);
    let mut case = Case::new(&["write", "/m/new", "x"]);
    let host = owned(&case);
    let (uids, gids) = maps();
    add(&mut case, mapped(bind("/m", &host, "bind"), uids, gids));
    let (code, text) = case.run();
    assert!(code == 1 && text.contains("Value too large"), "{text}");
}

fn id_maps_in_a_user_namespace() {
    own_mounts();
    let mut case = Case::new(&[
        "stat", "/own/a", "--", "stat", "/own/b", "--", "stat", "/some/b", "--", "stat",
        "/plain/a", "--", "write", "/own/new", "x", "--", "stat", "/again/b",
    ]);
    in_user_namespace(&mut case);
    let host = owned(&case);
    fs::set_permissions(&host, fs::Permissions::from_mode(0o777)).unwrap();
    add(&mut case, bind("/own", &host, "bind,idmap"));
    let map = || line(1000, 100_005, 5000);
    add(
        &mut case,
        mapped(bind("/some", &host, "bind,nosuid"), map(), map()),
    );
    add(&mut case, bind("/plain", &host, "bind"));
    // a source that is only there once others are mounted
    let inside = case.root().join("plain");
    let map = || line(1000, 100_007, 5000);
    add(
        &mut case,
        mapped(bind("/again", &inside, "rbind,idmap"), map(), map()),
    );
    let want = ["0:0", "1000:2000", "5:1005", "65534:65534", "7:1007"];
    assert_eq!(owners(&case.good()), want);
    assert_eq!(fs::metadata(host.join("new")).unwrap().uid(), 0);
    case.assert_gone();
}

fn every_kind_of_source() {
    let mut case = Case::new(&[
        "stat",
        "/in/pipe",
        "--",
        "stat",
        "/in/socket",
        "--",
        "stat",
        "/in/device",
        "--",
        "stat",
        "/in/file",
        "--",
        "stat",
        "/in/folder",
        "--",
        "cat",
        "/in/link",
        "--",
        "cat",
        "/etc/resolv.conf",
    ]);
    let host = case.temp.path().join("host");
    fs::create_dir_all(host.join("folder")).unwrap();
    nix::unistd::mkfifo(&host.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(host.join("socket")).unwrap();
    fs::write(host.join("file"), "text").unwrap();
    symlink("file", host.join("link")).unwrap();
    for name in ["pipe", "socket", "file", "folder", "link"] {
        add(
            &mut case,
            bind(&format!("in/./{name}"), &host.join(name), "bind"),
        );
    }
    add(
        &mut case,
        bind("/in/device", Path::new("/dev/zero"), "bind"),
    );
    // a name that leads on inside, to something that is not there yet
    fs::create_dir(case.root().join("etc")).unwrap();
    symlink(
        "../run/deep/resolv.conf",
        case.root().join("etc/resolv.conf"),
    )
    .unwrap();
    add(
        &mut case,
        bind("/etc/resolv.conf", &host.join("file"), "bind,ro"),
    );
    let text = case.good();
    let kinds: Vec<&str> = text
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "fifo",
            "socket",
            "character",
            "file",
            "directory",
            "texttext"
        ]
    );
    assert!(case.root().join("run/deep/resolv.conf").is_file());
}

/// Later mounts show earlier ones, by paths outside and inside.
fn sources_in_the_root() {
    let mut case = Case::new(&["cat", "/final/x/file", "/again/x/file"]);
    let host = case.temp.path().join("host");
    fs::create_dir_all(host.join("a/x")).unwrap();
    fs::create_dir_all(host.join("b")).unwrap();
    fs::write(host.join("b/file"), "b").unwrap();
    let root = case.root();
    add(&mut case, bind("/mnt", &host.join("a"), "rbind"));
    add(&mut case, bind("/mnt/x", &host.join("b"), "rbind"));
    add(
        &mut case,
        bind(
            &root.join("final").to_string_lossy(),
            &root.join("mnt"),
            "rbind,rprivate",
        ),
    );
    // a link there leads no further than to the root
    symlink("/mnt", root.join("link")).unwrap();
    add(&mut case, bind("/again", &root.join("link"), "rbind"));
    assert_eq!(case.good(), "bb");
}

fn shared_masks() {
    let mut case = Case::new(&["mounts"]);
    for name in ["a", "b", "c/below"] {
        fs::create_dir_all(case.root().join(name)).unwrap();
    }
    fs::write(case.root().join("file"), "secret").unwrap();
    add(
        &mut case,
        json!({"destination": "/c", "type": "tmpfs", "source": "t"}),
    );
    case.spec["linux"]["maskedPaths"] = json!([
        "/a", "/b", "/a", "/b/../a/", "/c/", "/file", "/file", "/missing"
    ]);
    case.spec["linux"]["readonlyPaths"] = json!(["/b", "/b/", "/testinit"]);
    let text = case.good();
    let device = |at: &str| {
        let line = text
            .lines()
            .rfind(|line| line.split(' ').nth(4) == Some(at))
            .unwrap();
        line.split(' ').nth(2).unwrap().to_owned()
    };
    assert!(
        device("/a") == device("/b") && device("/b") == device("/c"),
        "{text}"
    );
    for (at, count) in [
        ("/a", 1),
        ("/b", 2),
        ("/c", 2),
        ("/file", 1),
        ("/testinit", 1),
    ] {
        assert_eq!(seen(&text, at).len(), count, "{at}: {text}");
    }
    assert_eq!(flags(&text, "/c"), "ro,relatime");
}

fn cgroups_of_version_1() {
    let case = Case::new(&["ls", "/sys/fs/cgroup", "--", "mounts"]);
    let sampan::cgroup::Cgroup::V1 { controllers, .. } = &case.request.cgroup else {
        return;
    };
    let controllers = controllers.clone();
    for namespace in [true, false] {
        let mut case = Case::new(&["ls", "/sys/fs/cgroup", "--", "mounts"]);
        if !namespace {
            let namespaces = case.spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|entry| entry["type"] != "cgroup");
        }
        let text = case.good();
        for name in controllers.keys() {
            let name = name.strip_prefix("name=").unwrap_or(name);
            assert!(text.lines().any(|line| line == name), "{name}: {text}");
        }
        for line in text.lines().filter(|line| line.contains(" /sys/fs/cgroup")) {
            assert!(line.split(' ').nth(5).unwrap().starts_with("ro,"), "{line}");
        }
    }
}

fn host_trees_in_a_user_namespace() {
    let mut case = Case::new(&["mounts", "--", "ls", "/sys/class/net"]);
    in_user_namespace(&mut case);
    let namespaces = case.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|entry| entry["type"] != "network");
    // a group that the map does not have
    case.spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 5}]);
    case.spec["mounts"][2]["options"]
        .as_array_mut()
        .unwrap()
        .push(json!("gid=5"));
    let text = case.good();
    assert!(flags(&text, "/sys").starts_with("ro,"), "{text}");
    assert!(seen(&text, "/sys")[0].contains("|sysfs|"), "{text}");
    assert!(text.lines().any(|line| line == "lo"), "{text}");
    assert!(!seen(&text, "/dev/pts")[0].contains("gid="), "{text}");
}

fn overlay_in_a_user_namespace() {
    let mut case = Case::new(&[
        "cat", "/from", "--", "write", "/from", "new", "--", "rm", "/gone", "--", "stat", "/from",
    ]);
    in_user_namespace(&mut case);
    let store = case.temp.path().join("store");
    for name in ["lower", "upper", "work"] {
        fs::create_dir_all(store.join(name)).unwrap();
        chown(store.join(name), Some(100_000), Some(100_000)).unwrap();
    }
    for name in ["from", "gone"] {
        fs::write(store.join("lower").join(name), "old\n").unwrap();
        chown(store.join("lower").join(name), Some(100_000), Some(100_000)).unwrap();
    }
    fs::create_dir(case.request.bundle.join("merged")).unwrap();
    case.spec["root"]["path"] = json!("merged");
    case.request.rootfs = Rootfs::Overlay {
        lower: vec![case.root(), store.join("lower")],
        upper: store.join("upper"),
        work: store.join("work"),
    };
    assert_eq!(case.good(), "old\nfile 0644 0:0 3 0:0\n");
    assert_eq!(fs::read_to_string(store.join("upper/from")).unwrap(), "new");
    case.assert_gone();
}

/// fsconfig(2) takes 255 bytes for one value, an overlay's layers are longer.
fn long_options() {
    let mut case = Case::new(&["ls", "/over", "--", "mounts"]);
    let store = case.temp.path().join("store");
    let lower: Vec<String> = (0..6)
        .map(|index| {
            let layer = store.join(format!("{index:0>60}"));
            fs::create_dir_all(&layer).unwrap();
            fs::write(layer.join(format!("from-{index}")), "").unwrap();
            layer.display().to_string()
        })
        .collect();
    add(
        &mut case,
        json!({"destination": "/over", "type": "overlay", "source": "overlay",
        "options": ["ro", "nosuid", format!("lowerdir={}", lower.join(":"))]}),
    );
    let text = case.good();
    assert!(
        text.starts_with("from-0\nfrom-1\nfrom-2\nfrom-3\nfrom-4\nfrom-5\n"),
        "{text}"
    );
    assert_eq!(flags(&text, "/over"), "ro,nosuid,relatime");
}

fn wrong_ones() {
    let maps = || line(0, 1, 1);
    let nothing = json!([]);
    let table = [
        (
            bind("/m", Path::new("/no/such"), "bind"),
            "open /no/such to mount it on /m: No such file or directory",
        ),
        (
            bind("/m", Path::new("/tmp"), "bind,r0"),
            "mounts[7]: /m: option r0 is unknown for a bind mount",
        ),
        (
            json!({"destination": "/m", "options": ["bind"]}),
            "mounts[7]: /m: a bind mount needs a source",
        ),
        (
            json!({"destination": "/m", "source": "x"}),
            "mounts[7]: /m: type is missing",
        ),
        (
            json!({"destination": "/m", "type": "no-such-fs", "source": "x"}),
            "mount no-such-fs on /m: No such device",
        ),
        (
            json!({"destination": "/m", "type": "tmpfs", "source": "x", "options": ["size=lots"]}),
            "mount tmpfs on /m: ",
        ),
        (
            json!({"destination": "/m", "type": "proc", "source": "x", "options": ["tmpcopyup"]}),
            "only a tmpfs can have it",
        ),
        (
            bind("/m", Path::new("/tmp"), "bind,idmap"),
            "mounts[7]: /m: an id map needs uidMappings and gidMappings, or a user namespace",
        ),
        (
            mapped(
                bind("/m", Path::new("/tmp"), "bind"),
                maps(),
                nothing.clone(),
            ),
            "uidMappings: need gidMappings beside them",
        ),
        (
            mapped(bind("/m", Path::new("/tmp"), "bind"), nothing, maps()),
            "gidMappings: need uidMappings beside them",
        ),
        (
            mapped(
                json!({"destination": "/m", "type": "tmpfs", "source": "x"}),
                maps(),
                maps(),
            ),
            "only a bind mount can have an id map",
        ),
        (
            mapped(bind("/m", Path::new("/proc"), "bind"), maps(), maps()),
            "map the ids of a mount: Invalid argument",
        ),
        (
            bind("/testinit", Path::new("/tmp"), "bind"),
            "a file is in the place of a folder",
        ),
        (
            bind("/", Path::new("/tmp"), "bind"),
            "the root itself cannot be mounted over",
        ),
        (
            bind("/../", Path::new("/tmp"), "bind"),
            "the root itself cannot be mounted over",
        ),
    ];
    for (entry, want) in table {
        let mut case = Case::new(&["true"]);
        add(&mut case, entry);
        let (_, text) = case.create().unwrap_err();
        assert!(text.contains(want), "{want}: {text}");
        case.assert_gone();
    }
    let mut case = Case::new(&["true"]);
    case.spec["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0:c1,c2");
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        let (_, text) = case.create().unwrap_err();
        assert!(
            text.contains("linux.mountLabel: SELinux is not active"),
            "{text}"
        );
    }
}

fn wrong_roots() {
    for (path, want) in [
        ("missing", "No such file or directory"),
        ("config.json", "Not a directory"),
    ] {
        let mut case = Case::new(&["true"]);
        case.spec["root"]["path"] = json!(path);
        let (_, text) = case.create().unwrap_err();
        let bundle = case.request.bundle.display();
        let start = format!("open the root file system {bundle}/{path}: {want}");
        assert!(text.starts_with(&start), "{text}");
        case.assert_gone();
    }
    let mut case = Case::new(&["stat", "/testinit"]);
    symlink("rootfs", case.request.bundle.join("way")).unwrap();
    case.spec["root"]["path"] = json!("way");
    assert!(case.good().starts_with("file "));
}

fn devices() {
    let mut args = Vec::new();
    for path in ["/dev/ptmx", "/dev/pipe", "/made/block", "/dev/unbuffered"] {
        args.extend(["stat", path, "--"]);
    }
    // a link to what the kernel may not have
    let core = Path::new("/proc/kcore").exists();
    if core {
        args.extend(["readlink", "/dev/core"]);
    } else {
        args.pop();
    }
    let devices = json!([
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o620, "uid": 3, "gid": 4},
        {"path": "/made/block", "type": "b", "major": 7, "minor": 0, "fileMode": 0o600},
        {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 9},
    ]);
    let mut case = Case::new(&args);
    case.spec["linux"]["devices"] = devices.clone();
    let want = "link 0777 0:0 8 0:0\nfifo 0620 3:4 0 0:0\nblock 0600 0:0 0 7:0\ncharacter 0666 0:0 0 1:9\n";
    assert_eq!(
        case.good(),
        want.to_owned() + if core { "/proc/kcore\n" } else { "" }
    );
    // in a user namespace the host's own, and no other
    let mut case = Case::new(&["stat", "/dev/pipe", "--", "write", "/dev/zero", "x"]);
    in_user_namespace(&mut case);
    case.spec["linux"]["devices"] = json!([devices[1]]);
    assert_eq!(case.good(), "fifo 0620 3:4 0 0:0\n");
    for (path, minor, want) in [
        (
            "/dev/zero",
            3,
            "bind device /dev/zero: the host has something else there",
        ),
        (
            "/dev/no-such",
            3,
            "open /dev/no-such to mount it on /dev/no-such: No such file",
        ),
    ] {
        let mut case = Case::new(&["true"]);
        in_user_namespace(&mut case);
        case.spec["linux"]["devices"] =
            json!([{"path": path, "type": "c", "major": 1, "minor": minor}]);
        let (_, text) = case.create().unwrap_err();
        assert!(text.starts_with(want), "{text}");
        case.assert_gone();
    }
}
