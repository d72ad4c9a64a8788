//! Containers of an ordinary user, with ranges of ids and with the own one alone, and of root in a user namespace.
//!
//! The user exists in a mount namespace of the test only, where its lines are in `/etc/passwd`, `/etc/subuid` and `/etc/subgid`.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use super::streams::take;
use super::support::{Case, Told, until};

/// The user's id and its group's.
const USER: u32 = 4321;
/// First id of its range.
const RANGE: u32 = 300_000;
/// What it is told, apart from the reason.
const WARNING: &str = "the container is without a cgroup of its own: ";

/// A bundle of an ordinary user.
struct Rootless {
    case: Case,
    /// Caller is root in a user namespace of its own.
    namespaced: bool,
}

impl Rootless {
    /// `config.json` is what `spec --rootless` prints; its container runs `script`.
    fn new(script: &str) -> Rootless {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&Path>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let case = Case::new("");
        let temp = case.temp.path().to_owned();
        let file = |path: PathBuf, text: &str| {
            let copy = temp.join(path.file_name().unwrap());
            fs::write(&copy, text).unwrap();
            fs::set_permissions(&copy, PermissionsExt::from_mode(0o644)).unwrap();
            mount(Some(&copy), &path, none, MsFlags::MS_BIND, none).unwrap();
        };
        let passwd = format!("root:x:0:0::/:/bin/sh\nsampan-test:x:{USER}:{USER}::/:/bin/sh\n");
        file("/etc/passwd".into(), &passwd);
        let range = format!("sampan-test:{RANGE}:65536\n");
        for name in ["/etc/subuid", "/etc/subgid"] {
            file(name.into(), &range);
        }
        // wherever the program was built, the user reaches it
        let program = temp.join("sampan");
        fs::write(&program, "").unwrap();
        let built = Path::new(env!("CARGO_BIN_EXE_sampan"));
        mount(Some(built), &program, none, MsFlags::MS_BIND, none).unwrap();
        fs::create_dir(temp.join("runtime")).unwrap();
        fs::set_permissions(&temp, PermissionsExt::from_mode(0o755)).unwrap();
        give(&[case.bundle(), temp.join("runtime")]);
        let mut made = Rootless {
            case,
            namespaced: false,
        };
        made.fresh(script);
        made
    }

    /// Begins anew from `spec --rootless`.
    fn fresh(&mut self, script: &str) {
        let path = self.case.bundle().join("config.json");
        fs::remove_file(&path).unwrap();
        self.oci(&["spec", "--rootless"]).good();
        self.case.spec = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        self.case.spec["process"]["terminal"] = json!(false);
        self.case.spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
        self.case.write();
    }

    /// With all ids that the user has.
    fn with_ranges(&mut self) {
        for key in ["uidMappings", "gidMappings"] {
            self.case.spec["linux"][key] = json!([
                {"containerID": 0, "hostID": USER, "size": 1},
                {"containerID": 1, "hostID": RANGE, "size": 65536}
            ]);
        }
        self.case.write();
    }

    /// A change of `config.json`.
    fn set(&mut self, pointer: &str, value: Value) {
        let (above, key) = pointer.rsplit_once('/').unwrap();
        self.case.spec.pointer_mut(above).unwrap()[key] = value;
        self.case.write();
    }

    fn without(&mut self, namespace: &str) {
        let all = self.case.spec["linux"]["namespaces"].as_array_mut();
        all.unwrap().retain(|entry| entry["type"] != namespace);
        self.case.write();
    }

    fn mount(&mut self, entry: Value) {
        let all = self.case.spec["mounts"].as_array_mut().unwrap();
        all.retain(|other| other["destination"] != entry["destination"]);
        all.push(entry);
        self.case.write();
    }

    /// Something the user runs.
    fn command(&self, program: &Path, words: &[&str]) -> Command {
        let mut command = if self.namespaced {
            let mut command = Command::new("unshare");
            command.arg("-r").arg("--").arg(program);
            command
        } else {
            let mut command = Command::new(program);
            command.arg0("sampan-oci");
            command
        };
        command
            .args(words)
            .current_dir(self.case.bundle())
            .env("XDG_RUNTIME_DIR", self.case.temp.path().join("runtime"))
            .stdin(Stdio::null())
            // and no other group (setgroups(2) of the standard library)
            .uid(USER)
            .gid(USER);
        command
    }

    fn oci(&self, words: &[&str]) -> Told {
        let program = self.case.temp.path().join("sampan");
        let all = [&["oci"], words].concat();
        let words = if self.namespaced { &all } else { words };
        let output = self.command(&program, words).output().unwrap();
        let mut told = Told {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        told.err = unwarned(&told.err);
        told
    }

    fn run(&self) -> Told {
        self.oci(&["run", &self.case.id])
    }

    /// `create`, with output to the file `out`.
    fn create(&self, words: &[&str]) {
        let program = self.case.temp.path().join("sampan");
        let out = fs::File::create(self.case.temp.path().join("out")).unwrap();
        let err = self.case.temp.path().join("err");
        let status = self
            .command(&program, &["create"])
            .args(words)
            .arg(&self.case.id)
            .stdout(out)
            .stderr(fs::File::create(&err).unwrap())
            .status();
        let said = unwarned(&fs::read_to_string(err).unwrap());
        assert_eq!((status.unwrap().success(), &*said), (true, ""));
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.oci(&["state", &self.case.id]).good()).unwrap()
    }

    /// Folder of all containers.
    fn states(&self) -> PathBuf {
        self.case.temp.path().join("runtime/sampan/oci")
    }

    #[track_caller]
    fn assert_gone(&self) {
        assert_eq!(fs::read_dir(self.states()).unwrap().count(), 0);
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        let _ = self.oci(&["delete", "--force", &self.case.id]);
    }
}

/// To the user, with all below.
fn give(paths: &[PathBuf]) {
    let owner = format!("{USER}:{USER}");
    let mut command = Command::new("chown");
    let status = command.args(["-R", &owner]).args(paths).status();
    assert!(status.unwrap().success());
}

/// Without the warning that there is no cgroup, which is there once at most: a machine may have given one to everybody.
fn unwarned(text: &str) -> String {
    let is_warning = |line: &&str| line.contains(WARNING) && line.contains("level=warning");
    assert!(text.lines().filter(is_warning).count() <= 1, "{text}");
    text.lines()
        .filter(|line| !is_warning(line))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The lines of mountinfo with a file system of this kind below `/sys` that may be written to.
const WRITABLE: &str = "cat /proc/self/mountinfo | while read _ _ _ _ p o r; do case $p:$o in /sys*:rw*) echo $p; esac; done";

#[test]
fn the_own_id_alone() {
    let mut rootless = Rootless::new(&format!(
        "id; while read a b c; do echo $a $b $c; done < /proc/self/uid_map; cat /proc/self/setgroups; {WRITABLE}; exit 3"
    ));
    let told = rootless.run();
    let want = format!("uid=0 gid=0\n0 {USER} 1\ndeny\n");
    assert_eq!((told.code, &*told.err, told.out), (3, "", want));
    rootless.assert_gone();
    let mode = fs::metadata(rootless.states()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o7777, 0o700);
    // nothing below /sys may be written to, however it came there (CVE-2023-25809)
    for mounts in [
        vec![
            json!({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro"]}),
        ],
        vec![
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}),
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}),
        ],
    ] {
        rootless.fresh(WRITABLE);
        rootless.without("cgroup");
        let all = rootless.case.spec["mounts"].as_array_mut().unwrap();
        let is_below = |entry: &Value| entry["destination"].as_str().unwrap().starts_with("/sys");
        all.retain(|entry| !is_below(entry));
        mounts.into_iter().for_each(|entry| rootless.mount(entry));
        assert_eq!(rootless.run().good(), "");
    }
}

#[test]
fn ranges_of_ids() {
    let mut rootless = Rootless::new(
        "id; while read a b c; do echo $a $b $c; done < /proc/self/gid_map; cat /proc/self/setgroups",
    );
    rootless.with_ranges();
    rootless.set(
        "/process/user",
        json!({"uid": 7, "gid": 8, "additionalGids": [9, 65536]}),
    );
    assert_eq!(
        rootless.run().good(),
        format!("uid=7 gid=8 groups=9,65536\n0 {USER} 1\n1 {RANGE} 65536\nallow\n")
    );
    rootless.assert_gone();
}

#[test]
fn a_life() {
    let mut rootless = Rootless::new("trap 'exit 4' TERM; sleep 100 & wait; wait");
    rootless.with_ranges();
    let id = rootless.case.id.clone();
    rootless.create(&[]);
    let state = rootless.state();
    assert_eq!(state["status"], "created");
    let pid = state["pid"].as_i64().unwrap();
    // no privilege for an overlay of the program: it is in memory
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(exe, Path::new("/memfd:sampan (deleted)"));
    rootless.oci(&["start", &id]).good();
    let exec = |words: &[&str]| rootless.oci(&[&["exec"], words].concat());
    assert_eq!(exec(&[&id, "id"]).good(), "uid=0 gid=0\n");
    let user = ["--user", "5:6", "--additional-gids", "7", &id, "id"];
    assert_eq!(exec(&user).good(), "uid=5 gid=6 groups=7\n");
    assert_eq!(exec(&[&id, "sh", "-c", "exit 9"]).code, 9);
    let pids = || -> Vec<i64> {
        let text = rootless.oci(&["ps", "--format", "json", &id]).good();
        serde_json::from_str(&text).unwrap()
    };
    until("two processes", || pids().len() == 2);
    assert_eq!(pids()[0], pid);
    assert!(rootless.oci(&["list", "-q"]).good() == format!("{id}\n"));
    if rootless.oci(&["pause", &id]).code == 0 {
        // a machine that gave the user a cgroup
        rootless.oci(&["resume", &id]).good();
    } else {
        let said = rootless.oci(&["pause", &id]).failed(1);
        let want = format!("pause container {id}: ");
        assert!(
            said.starts_with(&want) && said.contains("freezer"),
            "{said}"
        );
    }
    rootless.oci(&["kill", "--all", &id, "TERM"]).good();
    until("the end", || rootless.state()["status"] == "stopped");
    rootless.oci(&["delete", &id]).good();
    rootless.assert_gone();
}

#[test]
fn what_cannot_be() {
    let mut rootless = Rootless::new("exit 0");
    let one = |uid: u32, size: u32| json!([{"containerID": uid, "hostID": USER, "size": size}]);
    let root = json!({"uid": 0, "gid": 0});
    let denied = "set the additional groups [0]: not allowed in a user namespace whose map has the caller's own group only: \
                  linux.gidMappings needs a range of /etc/subgid";
    for (pointer, value, want) in [
        (
            "/process/user",
            json!({"uid": 7, "gid": 0}),
            "CONFIG: process.user.uid: 7 is not in linux.uidMappings",
        ),
        (
            "/process/user",
            json!({"uid": 0, "gid": 7}),
            "CONFIG: process.user.gid: 7 is not in linux.gidMappings",
        ),
        (
            "/process/user",
            json!({"uid": 0, "gid": 0, "additionalGids": [5]}),
            "CONFIG: process.user.additionalGids: 5 is not in linux.gidMappings",
        ),
        (
            "/process/user",
            json!({"uid": 0, "gid": 0, "additionalGids": [0]}),
            denied,
        ),
        (
            "/linux/uidMappings",
            one(1, 1),
            "CONFIG: linux.uidMappings: id 0 is not mapped, with which the container is set up",
        ),
        (
            "/linux/uidMappings",
            one(0, 2),
            "newuidmap: uid range [0-2) -> [4321-4323) not allowed (exit status: 1); \
             the caller may map its own id and its ranges in /etc/subuid",
        ),
        (
            "/linux/gidMappings",
            one(0, 2),
            "newgidmap: gid range [0-2) -> [4321-4323) not allowed (exit status: 1); \
             the caller may map its own id and its ranges in /etc/subgid",
        ),
    ] {
        rootless.fresh("exit 0");
        rootless.set("/process/user", root.clone());
        rootless.set(pointer, value);
        let config = rootless.case.bundle().join("config.json");
        let want = want.replace("CONFIG", config.to_str().unwrap());
        assert_eq!(rootless.run().failed(1), want, "{pointer}");
        rootless.assert_gone();
    }
    rootless.fresh("exit 0");
    rootless.set("/linux/resources", json!({"pids": {"limit": 5}}));
    let told = rootless.run();
    // a machine that gave the user a cgroup
    if told.code != 0 {
        let said = told.failed(1);
        let want = "set the limits: set pids.max to \"5\": controller pids is not available: ";
        assert!(said.starts_with(want), "{said}");
    }
    rootless.assert_gone();
}

/// What shows a namespace that is not the container's own is the host's, bound.
#[test]
fn namespaces_of_the_host() {
    let mut rootless = Rootless::new(
        "ls -d /sys/class/net /proc/$$; cat /host/hostname; id > /dev/null && echo $?",
    );
    for namespace in ["pid", "uts"] {
        rootless.without(namespace);
    }
    rootless.set("/hostname", Value::Null);
    rootless.mount(
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
    );
    fs::write(rootless.case.bundle().join("hostname"), "ship\n").unwrap();
    rootless.mount(
        json!({"destination": "/host/hostname", "type": "bind", "source": "hostname", "options": ["bind", "ro"]}),
    );
    rootless.mount(
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "gid=5"]}),
    );
    // the root is the bundle's, where mount points can be made
    rootless.set("/root/readonly", json!(false));
    let out = rootless.run().good();
    let (own, rest) = out.split_once('\n').unwrap();
    assert!(own.starts_with("/proc/"), "{out}");
    assert_eq!(rest, "/sys/class/net\nship\n0\n");
    rootless.assert_gone();
}

/// Flags of a mount from outside stay; what goes against them is an error, what says nothing of them is not.
#[test]
fn locked_flags() {
    let mut rootless = Rootless::new("exit 0");
    let path = rootless.case.temp.path().join("locked");
    fs::create_dir_all(path.join("below")).unwrap();
    let none = None::<&Path>;
    mount(Some(&path), &path, none, MsFlags::MS_BIND, none).unwrap();
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC;
    mount(none, &path, none, flags, none).unwrap();
    mount(
        Some("tmpfs"),
        &path.join("below"),
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .unwrap();
    let kept = "set the flags of the mount on /at: operation not permitted: \
                in a user namespace a mount of the host keeps its flags (ro, nosuid, nodev, noexec, atime)";
    let alone = format!(
        "open {} to mount it on /at: invalid argument: \
         it is unbindable, or has mounts below that a user namespace may not leave out (rbind)",
        path.display()
    );
    for (options, want) in [
        (json!(["rbind"]), Ok("ro,noexec,relatime")),
        (
            json!(["rbind", "nosuid", "rprivate"]),
            Ok("ro,nosuid,noexec,relatime"),
        ),
        (json!(["rbind", "rw"]), Err(kept)),
        (json!(["rbind", "exec"]), Err(kept)),
        (json!(["bind"]), Err(&*alone)),
    ] {
        rootless.fresh("while read _ _ _ _ at flags _; do test $at = /at && echo $flags; done < /proc/self/mountinfo; true");
        rootless.set("/root/readonly", json!(false));
        rootless.mount(
            json!({"destination": "/at", "type": "bind", "source": path, "options": options}),
        );
        let told = rootless.run();
        match want {
            Ok(flags) => assert_eq!(told.good(), format!("{flags}\n"), "{options}"),
            Err(want) => assert_eq!(told.failed(1), want, "{options}"),
        }
        rootless.assert_gone();
    }
}

#[test]
fn a_terminal() {
    let mut rootless = Rootless::new("tty; id; read line; echo $line");
    rootless.with_ranges();
    rootless.set("/process/terminal", json!(true));
    rootless.set("/process/user", json!({"uid": 7, "gid": 8}));
    let path = rootless.case.temp.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    chown(&path, Some(USER), Some(USER)).unwrap();
    rootless.create(&["--console-socket", path.to_str().unwrap()]);
    let (_, master) = take(&listener);
    rootless.oci(&["start", &rootless.case.id]).good();
    let mut master = fs::File::from(master);
    std::io::Write::write_all(&mut master, b"ahoy\n").unwrap();
    let mut text = String::new();
    // EIO at the end
    let _ = master.read_to_string(&mut text);
    // what was typed is seen once as the echo, wherever that falls
    assert_eq!(text.matches("ahoy\r\n").count(), 2, "{text}");
    assert_eq!(
        text.replace("ahoy\r\n", ""),
        "/dev/pts/0\r\nuid=7 gid=8\r\n"
    );
}

#[test]
fn root_in_a_user_namespace() {
    let mut rootless = Rootless::new("exit 0");
    rootless.namespaced = true;
    rootless
        .fresh("id; while read a b c; do echo $a $b $c; done < /proc/self/uid_map; cat /dev/null");
    // in a namespace below the caller's, and in the caller's own
    assert_eq!(rootless.run().good(), "uid=0 gid=0\n0 0 1\n");
    rootless.without("user");
    for key in ["uidMappings", "gidMappings"] {
        rootless.set(&format!("/linux/{key}"), json!([]));
    }
    assert_eq!(rootless.run().good(), format!("uid=0 gid=0\n0 {USER} 1\n"));
    rootless.assert_gone();
}

/// Where parts of the caller's /proc are masked, a whole one would reveal them; the caller's is bound.
#[test]
fn a_masked_proc() {
    let mut rootless = Rootless::new("exit 0");
    let program = rootless.case.temp.path().join("sampan");
    let run = |rootless: &Rootless| {
        let mut command = rootless.command(Path::new("unshare"), &["-r", "-m", "sh", "-c"]);
        let script = "mount -t tmpfs none /proc/irq && exec \"$0\" oci run \"$1\"";
        let output = command.arg(script).arg(&program).arg(&rootless.case.id);
        let output = output.arg0("unshare").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        // what newer kernels say in front of it
        let text = unwarned(&text).replace("VFS: Mount too revealing: ", "");
        (output.status.code(), text)
    };
    rootless.fresh("ls /proc/irq; echo fine");
    for key in ["uidMappings", "gidMappings"] {
        rootless.case.spec["linux"][key][0]["hostID"] = json!(0);
    }
    rootless.case.write();
    let want = "sampan-oci: mount proc on /proc: operation not permitted: in a user namespace it must not show what is masked \
                for the caller, whose own can be bound instead\n";
    assert_eq!(run(&rootless), (Some(1), want.to_owned()));
    rootless.without("pid");
    assert_eq!(run(&rootless), (Some(0), "fine\n".to_owned()));
}

/// A container in the namespaces of another one.
#[test]
fn joined_namespaces() {
    let mut rootless = Rootless::new("exec sleep 100");
    rootless.with_ranges();
    rootless.create(&[]);
    rootless.oci(&["start", &rootless.case.id]).good();
    let pid = rootless.state()["pid"].to_string();
    rootless.fresh("id; cat /proc/sys/kernel/hostname");
    let namespaces = rootless.case.spec["linux"]["namespaces"].as_array_mut();
    for entry in namespaces.unwrap() {
        let kind = entry["type"].as_str().unwrap().to_owned();
        if ["user", "uts", "ipc"].contains(&&*kind) {
            entry["path"] = json!(format!("/proc/{pid}/ns/{kind}"));
        }
    }
    for key in ["uidMappings", "gidMappings"] {
        rootless.set(&format!("/linux/{key}"), json!([]));
    }
    rootless.set("/hostname", Value::Null);
    rootless.set(
        "/process/user",
        json!({"uid": 3, "gid": 4, "additionalGids": [5]}),
    );
    assert_eq!(
        rootless.oci(&["run", "second"]).good(),
        "uid=3 gid=4 groups=5\nsampan\n"
    );
}

/// An overlay of the user's own layers, with what overlay notes in attributes that a user may write.
#[test]
fn an_overlay() {
    let mut rootless = Rootless::new(
        "cat /down/file /old; busybox rm /old; echo new > /down/file; busybox rm -r /gone; busybox mkdir /gone; echo > /gone/here; ls /gone; ls /",
    );
    rootless.set("/root/readonly", json!(false));
    let temp = rootless.case.temp.path().to_owned();
    let lower = temp.join("bundle/rootfs");
    for (name, text) in [("down/file", "a"), ("gone/away", ""), ("old", "b")] {
        let path = lower.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("{text}\n")).unwrap();
    }
    let id = rootless.case.id.clone();
    let root = temp.join("runtime/root");
    for name in [
        "runtime/upper",
        "runtime/work",
        "runtime/merged",
        &format!("runtime/root/{id}"),
    ] {
        fs::create_dir_all(temp.join(name)).unwrap();
    }
    rootless.set("/root/path", json!(temp.join("runtime/merged")));
    let dir = root.join(&id);
    let request = json!({
        "id": id, "bundle": rootless.case.bundle(), "dir": dir,
        "rootfs": {"overlay": {"lower": [lower], "upper": temp.join("runtime/upper"), "work": temp.join("runtime/work")}},
        "cgroup": {"unlimited": {"why": "none"}}, "console_socket": null,
    });
    fs::write(dir.join("create.json"), request.to_string()).unwrap();
    give(&[temp.join("bundle"), temp.join("runtime")]);
    let out = temp.join("out");
    let internal = |what: &str| {
        let mut command = Command::new(temp.join("sampan"));
        command.args(["internal", what]).arg(&dir);
        command.arg(std::process::id().to_string());
        command.uid(USER).gid(USER).stdin(Stdio::null());
        command.stdout(
            fs::File::options()
                .create(true)
                .append(true)
                .open(&out)
                .unwrap(),
        );
        command.stderr(fs::File::options().append(true).open(&out).unwrap());
        assert!(
            command.status().unwrap().success(),
            "{}{}",
            fs::read_to_string(dir.join("error.json")).unwrap_or_default(),
            fs::read_to_string(&out).unwrap()
        );
    };
    internal("launch");
    let root = root.to_str().unwrap().to_owned();
    until("the end", || {
        let text = rootless.oci(&["--root", &root, "state", &id]).good();
        serde_json::from_str::<Value>(&text).unwrap()["status"] == "stopped"
    });
    assert_eq!(
        fs::read_to_string(&out).unwrap(),
        "a\nb\nhere\nbin\ndev\ndown\ngone\nproc\nsys\n"
    );
    rootless.oci(&["--root", &root, "delete", &id]).good();
    let seen = |name: &str| fs::symlink_metadata(temp.join("runtime/upper").join(name)).is_ok();
    assert!(seen("down/file") && seen("gone/here") && seen("old"));
    assert_eq!(fs::read_to_string(lower.join("down/file")).unwrap(), "a\n");
}

#[test]
fn no_pods() {
    let rootless = Rootless::new("exit 0");
    let program = rootless.case.temp.path().join("sampan");
    for words in [&["up"][..], &["run", "busybox", "true"]] {
        let mut command = rootless.command(&program, words);
        let output = command.arg0("sampan").output().unwrap();
        assert_eq!(
            (
                output.status.code(),
                &*String::from_utf8_lossy(&output.stderr)
            ),
            (
                Some(1),
                "sampan: pods need root, whose networks and images they use; \
                       `sampan oci` runs single containers for an ordinary user\n"
            )
        );
    }
}

#[test]
fn no_folder_for_the_state() {
    let rootless = Rootless::new("exit 0");
    // whatever containers of root this machine has
    let none = None::<&str>;
    mount(
        none,
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .unwrap();
    let program = rootless.case.temp.path().join("sampan");
    let id = &rootless.case.id;
    let none = None::<&Path>;
    let empty = Some("tmpfs");
    mount(empty, "/run", empty, MsFlags::empty(), none).unwrap();
    let said = || {
        let mut command = rootless.command(&program, &["run", id]);
        let output = command.env_remove("XDG_RUNTIME_DIR").output().unwrap();
        unwarned(&String::from_utf8_lossy(&output.stderr))
    };
    let want = |path: &str| {
        format!("sampan-oci: make {path}: permission denied; set XDG_RUNTIME_DIR or give --root\n")
    };
    // /run of a tmpfs is open to everybody
    fs::set_permissions("/run", PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(said(), want("/run/sampan/oci"));
    // root was here
    fs::create_dir_all("/run/sampan/oci").unwrap();
    fs::set_permissions("/run/sampan/oci", PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(said(), want(&format!("/run/sampan/oci/{id}")));
}
