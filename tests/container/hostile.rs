//! Root file systems that try to get out.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::Test;
use crate::common::Case;

pub const TESTS: &[Test] = &[
    ("hostile::proc_and_sys_links", proc_and_sys_links),
    ("hostile::mount_destinations", mount_destinations),
    ("hostile::nothing_over_proc", nothing_over_proc),
    ("hostile::dev_links", dev_links),
    ("hostile::masks_behind_links", masks_behind_links),
    ("hostile::working_directory", working_directory),
    ("hostile::swapped_folders", swapped_folders),
    ("hostile::console_behind_a_link", console_behind_a_link),
];

/// A link at `/proc` would make the runtime write its settings elsewhere (CVE-2019-19921).
fn proc_and_sys_links() {
    for name in ["proc", "sys"] {
        let case = Case::new(&["true"]);
        fs::create_dir(case.root().join("elsewhere")).unwrap();
        symlink("elsewhere", case.root().join(name)).unwrap();
        let (code, text) = case.create().unwrap_err();
        assert_eq!(code, 125);
        assert!(
            text.contains(&format!("mount on /{name}: a symbolic link is on the path")),
            "{text}"
        );
        case.assert_gone();
    }
}

fn mount_destinations() {
    for link in ["/../../../../../../../../victim", "../../victim", "/victim"] {
        let mut case = Case::new(&["write", "/in/x", "text"]);
        let victim = case.temp.path().join("victim");
        fs::create_dir(&victim).unwrap();
        symlink(link, case.root().join("out")).unwrap();
        let entry = |at: &str| json!({"destination": at, "type": "tmpfs", "source": "tmpfs"});
        let mounts = case.spec["mounts"].as_array_mut().unwrap();
        mounts.extend([entry("/out/deep"), entry("/out/../in")]);
        case.good();
        // made inside, whatever the link says; the lexical parent counts for ".."
        assert!(case.root().join("victim/deep").is_dir());
        assert!(case.root().join("in").is_dir());
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    }
}

fn nothing_over_proc() {
    for (at, source, want) in [
        (
            "/proc/self/environ",
            "/dev/null",
            "the place is inside proc",
        ),
        ("/proc/sys/kernel", "/tmp", "the place is inside proc"),
        ("/link/self", "/tmp", "the place is inside proc"),
        ("/proc", "/tmp", "is inside proc"),
        ("/", "/tmp", "the root itself cannot be mounted over"),
    ] {
        let mut case = Case::new(&["true"]);
        symlink("/proc", case.root().join("link")).unwrap();
        let entry =
            json!({"destination": at, "type": "bind", "source": source, "options": ["bind"]});
        case.spec["mounts"].as_array_mut().unwrap().push(entry);
        let (_, text) = case.create().unwrap_err();
        assert!(text.contains(want), "{at}: {text}");
        case.assert_gone();
    }
    let mut case = Case::new(&["cat", "/proc/uptime"]);
    let file = case.temp.path().join("uptime");
    fs::write(&file, "1 2\n").unwrap();
    let entry =
        json!({"destination": "/proc/uptime", "type": "bind", "source": file, "options": ["bind"]});
    case.spec["mounts"].as_array_mut().unwrap().push(entry);
    assert_eq!(case.good(), "1 2\n");
}

/// No `/dev` mount: the nodes land in the image, whose own entries are not trusted.
fn dev_links() {
    let without_dev = |case: &mut Case| {
        let mounts = case.spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|entry| !entry["destination"].as_str().unwrap().starts_with("/dev"));
    };
    let mut case = Case::new(&["true"]);
    without_dev(&mut case);
    let victim = case.temp.path().join("victim");
    fs::create_dir(&victim).unwrap();
    symlink(&victim, case.root().join("dev")).unwrap();
    case.good();
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    let mut case = Case::new(&["true"]);
    without_dev(&mut case);
    fs::create_dir(case.root().join("dev")).unwrap();
    fs::write(case.root().join("dev/null"), "a file").unwrap();
    let (_, text) = case.create().unwrap_err();
    assert!(
        text.contains("make device /dev/null: something else is in its place"),
        "{text}"
    );
    assert_eq!(
        fs::read_to_string(case.root().join("dev/null")).unwrap(),
        "a file"
    );
}

/// A masked path behind a link masks what the link leads to inside; the host's file of that name stays.
fn masks_behind_links() {
    let mut case = Case::new(&["cat", "/etc/secret", "--", "cat", "/way/../etc/secret"]);
    fs::create_dir(case.root().join("etc")).unwrap();
    fs::write(case.root().join("etc/secret"), "text").unwrap();
    symlink("/../../etc", case.root().join("way")).unwrap();
    case.spec["linux"]["maskedPaths"] = json!(["/way/secret", "/testinit/not-a-folder"]);
    assert_eq!(case.good(), "");
}

/// CVE-2024-21626: no descriptor of the host is there to be a working directory.
fn working_directory() {
    for number in 3..12 {
        let mut case = Case::new(&["pwd"]);
        case.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let (code, text) = case.create().unwrap_err();
        assert_eq!(code, 125, "{text}");
        case.assert_gone();
    }
    let mut case = Case::new(&["pwd"]);
    fs::create_dir(case.root().join("home")).unwrap();
    symlink("/home", case.root().join("cwd")).unwrap();
    case.spec["process"]["cwd"] = json!("/cwd");
    assert_eq!(case.good(), "/home\n");
}

/// CVE-2021-30465, CVE-2025-31133, CVE-2025-52565: somebody with the same root exchanges folders for links while it is set up.
fn swapped_folders() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::sync::atomic::{AtomicBool, Ordering};
    let temp = tempfile::tempdir().unwrap();
    let victim = temp.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("file"), "the host's").unwrap();
    let stop = AtomicBool::new(false);
    for round in 0..12 {
        let mut case = Case::new(&["true"]);
        let root = case.root();
        for name in ["a", "b"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        fs::write(root.join("a/file"), "the container's").unwrap();
        // up to the host's root and down again: from inside that is the container's own
        symlink(
            format!("../../../../../../..{}", victim.display()),
            root.join("way"),
        )
        .unwrap();
        let mounts = case.spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/a/new", "type": "tmpfs", "source": "t"}));
        mounts.push(json!({"destination": "/a/deep/file", "type": "bind", "source": "/dev/zero", "options": ["bind"]}));
        mounts.push(json!({"destination": "/a/copy", "type": "tmpfs", "source": "t", "options": ["tmpcopyup"]}));
        case.spec["linux"]["maskedPaths"] = json!(["/a/file", "/a"]);
        case.spec["linux"]["readonlyPaths"] = json!(["/a/file"]);
        case.spec["linux"]["devices"] =
            json!([{"path": "/a/node", "type": "c", "major": 1, "minor": 5}]);
        stop.store(false, Ordering::Relaxed);
        let (code, text) = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // before the root is made anew it is not there
                    let _ = renameat_with(
                        CWD,
                        root.join("a"),
                        CWD,
                        root.join("way"),
                        RenameFlags::EXCHANGE,
                    );
                }
            });
            let made = case.create();
            stop.store(true, Ordering::Relaxed);
            match made {
                Ok(state) => {
                    sampan::container::delete(&case.request.dir).unwrap();
                    case.wait(&state);
                    (0, String::new())
                }
                Err(error) => error,
            }
        });
        // it may fail, but only for want of its own files
        assert!(code == 0 || code == 125, "round {round}: {text}");
        let left: Vec<_> = fs::read_dir(&victim)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["file"], "round {round}: {text}");
        assert_eq!(
            fs::read_to_string(victim.join("file")).unwrap(),
            "the host's"
        );
        case.assert_gone();
    }
}

/// CVE-2025-52565: the terminal would come to stand on whatever `/dev/console` leads to.
fn console_behind_a_link() {
    let mut case = Case::new(&["true"]);
    let mounts = case.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|entry| entry["destination"] != "/dev");
    fs::create_dir_all(case.root().join("dev/pts")).unwrap();
    symlink("/proc/sysrq-trigger", case.root().join("dev/console")).unwrap();
    case.spec["process"]["terminal"] = json!(true);
    let path = case.temp.path().join("console.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    case.request.console_socket = Some(path);
    let (_, text) = case.create().unwrap_err();
    assert!(
        text.contains("mount on /dev/console: a symbolic link is on the path"),
        "{text}"
    );
    case.assert_gone();
}
