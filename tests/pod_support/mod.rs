//! What the tests of pods share: a host of one's own for the real program, and a snapshot of everything a pod
//! could leave on it.
//!
//! A [`Host`] is the test's own thread in fresh network and mount namespaces, its process in a fresh cgroup, and
//! a temporary folder with root, state and project. Children inherit all of it. Needs root. One host at a time per
//! process (a process has one cgroup): under `cargo nextest` each test has a process of its own.

#![allow(dead_code)] // each test file uses a part

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sampan::cgroup::Cgroup;
use serde_json::Value;

/// Name of the image that every host has.
pub const BUSYBOX: &str = "localhost/busybox";

/// Longer than anything here may take (seconds); what exceeds it is killed.
const LIMIT: &str = "100";

/// How a command ended.
#[derive(Clone)]
pub struct Ended {
    /// Exit code; 128 + signal.
    pub code: i32,
    /// Standard output as it came.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let out = String::from_utf8_lossy(&self.stdout);
        write!(
            f,
            "code {}\n--- stdout\n{out}\n--- stderr\n{}",
            self.code, self.stderr
        )
    }
}

impl Ended {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("output is text")
    }

    /// Standard output of a command that must succeed.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert_eq!(self.code, 0, "{self:#?}");
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error of a command that must fail with `code`.
    #[track_caller]
    pub fn fails(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:#?}");
        &self.stderr
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.ok()).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// A machine for one test.
pub struct Host {
    /// Name of the project's folder, and so of its pod; differs from test to test.
    pub name: String,
    /// The project's folder, which is every command's working folder.
    pub project: PathBuf,
    /// `SAMPAN_ROOT`.
    pub root: PathBuf,
    /// `SAMPAN_STATE`.
    pub state: PathBuf,
    /// Set for every command, after the defaults.
    pub env: Vec<(String, String)>,
    /// The cgroup all of it runs in.
    pub cgroup: Cgroup,
    parent: Cgroup,
    folder: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

static ONE: Mutex<()> = Mutex::new(());

impl Host {
    /// A host with busybox in its store.
    pub fn new() -> Host {
        let host = Host::empty();
        host.import("busybox");
        host
    }

    /// A host with nothing in its store.
    pub fn empty() -> Host {
        let one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("needs root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        tool("ip", &["link", "set", "lo", "up"]);
        let folder = tempfile::Builder::new()
            .prefix("sampan-pod-")
            .tempdir()
            .unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let name = format!("t{}", std::process::id());
        let project = folder.path().join(&name);
        fs::create_dir(&project).unwrap();
        let parent = Cgroup::own().unwrap();
        let cgroup = parent.child(&format!("sampan-pod-{}", std::process::id()));
        cgroup.create().unwrap();
        cgroup.attach(std::process::id() as i32).unwrap();
        Host {
            name,
            project,
            root: folder.path().join("root"),
            state: folder.path().join("state"),
            env: Vec::new(),
            cgroup,
            parent,
            folder,
            _one: one,
        }
    }

    /// The temporary folder that everything is in.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of the project's pod below state.
    pub fn pod(&self) -> PathBuf {
        self.state.join("pods").join(&self.name)
    }

    /// Puts an image of `images/` into the store; it is called `localhost/NAME`.
    pub fn import(&self, name: &str) {
        let layout = layout(name);
        self.sampan(&["image", "import", layout.to_str().unwrap()])
            .ok();
    }

    /// Writes a file of the project.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.project.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Writes `compose.yaml`.
    pub fn compose(&self, text: &str) {
        self.write("compose.yaml", text);
    }

    /// The program with arguments, ready to be run in this host.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sampan"));
        command.args(arguments);
        self.surround(&mut command);
        command
    }

    /// Gives a command this host's folders and environment.
    pub fn surround(&self, command: &mut Command) {
        command
            .current_dir(&self.project)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("SAMPAN_ROOT", &self.root)
            .env("SAMPAN_STATE", &self.state)
            .env("SAMPAN_CNI_CONF", self.path().join("cni-conf"))
            .env("SAMPAN_CNI_PATH", self.path().join("cni-path"))
            .envs(self.env.iter().map(|(name, value)| (name, value)));
    }

    /// Runs the program.
    pub fn sampan(&self, arguments: &[&str]) -> Ended {
        self.sampan_with(arguments, b"")
    }

    /// Runs the program with something on its standard input.
    pub fn sampan_with(&self, arguments: &[&str], input: &[u8]) -> Ended {
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--signal=KILL", LIMIT])
            .arg(env!("CARGO_BIN_EXE_sampan"))
            .args(arguments);
        self.surround(&mut command);
        run(&mut command, input)
    }

    /// Starts the program and goes on; its output goes to files that [`Background`] reads.
    pub fn start(&self, arguments: &[&str]) -> Background {
        Background::start(&mut self.command(arguments), self.path())
    }

    /// `exec SERVICE sh -c SCRIPT`, which must succeed: its output without the last line feed.
    #[track_caller]
    pub fn shell(&self, service: &str, script: &str) -> String {
        let ended = self.sampan(&["exec", service, "sh", "-c", script]);
        ended.ok().trim_end_matches('\n').to_string()
    }

    /// `ps -a --format json`: the row of a service.
    #[track_caller]
    pub fn row(&self, service: &str) -> Value {
        let rows = self.sampan(&["ps", "-a", "--format", "json"]).json();
        let row = rows.as_array().unwrap().iter();
        row.clone()
            .find(|row| row["service"] == service)
            .unwrap_or_else(|| panic!("no {service} in {rows:#}"))
            .clone()
    }

    /// Waits until a field of a service's row has a value.
    #[track_caller]
    pub fn await_row(&self, service: &str, field: &str, value: impl Into<Value>) -> Value {
        let value = value.into();
        until(&format!("{service}: {field} = {value}"), || {
            let row = self.row(service);
            (row[field] == value).then_some(row)
        })
    }

    /// Text of one stream's log of a service, as the pod keeps it.
    pub fn log(&self, service: &str, stream: &str) -> Vec<u8> {
        let data = self.root.join("pods").join(&self.name).join(service);
        fs::read(data.join(format!("{stream}.log"))).unwrap_or_default()
    }

    /// Waits until the log of a service contains a text.
    #[track_caller]
    pub fn await_log(&self, service: &str, text: &str) {
        until(&format!("{service}: {text:?} in the log"), || {
            let log = self.log(service, "stdout");
            String::from_utf8_lossy(&log).contains(text).then_some(())
        });
    }

    /// Folders of the cgroup of this host, in every hierarchy.
    pub fn cgroup_folders(&self) -> Vec<PathBuf> {
        self.cgroup
            .folders()
            .iter()
            .map(|path| path.to_path_buf())
            .collect()
    }

    /// Processes of this host besides the test itself: pid and command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let own = std::process::id() as i32;
        let mark = self.path().as_os_str().as_bytes();
        let mut pids: Vec<i32> = Vec::new();
        for folder in self.cgroup_folders() {
            walk(&folder, &mut |path| {
                if path.file_name().is_some_and(|name| name == "cgroup.procs") {
                    let text = fs::read_to_string(path).unwrap_or_default();
                    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
                }
            });
        }
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if line.windows(mark.len()).any(|part| part == mark) {
                pids.push(pid);
            }
        }
        pids.sort_unstable();
        pids.dedup();
        let line = |pid: i32| {
            let text = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            // one that has ended and waits for its parent has no command line
            (!text.is_empty()).then(|| String::from_utf8_lossy(&text).replace('\0', " "))
        };
        pids.into_iter()
            .filter(|pid| *pid != own)
            .filter_map(|pid| Some((pid, line(pid)?)))
            .collect()
    }

    /// Everything a pod could leave here. Named volumes and pulled images are meant to stay and are no part of it.
    pub fn snapshot(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        all.extend(mounts.lines().map(|line| {
            // without the two numbers that differ from time to time
            let fields: Vec<&str> = line.split(' ').skip(3).collect();
            format!("mount {}", fields.join(" "))
        }));
        for (what, arguments) in [
            ("link", &["-o", "link"][..]),
            ("address", &["-o", "addr"]),
            ("route", &["route", "show", "table", "all"]),
            ("route", &["-6", "route", "show", "table", "all"]),
            ("rule", &["rule"]),
            ("neighbour", &["neigh"]),
        ] {
            let text = tool("ip", arguments);
            // link-local addresses come when the kernel has made sure that they are free
            let lines = text.lines().filter(|line| !line.contains("fe80:"));
            all.extend(lines.map(|line| format!("{what} {line}")));
        }
        let rules = tool("nft", &["list", "ruleset"]);
        all.extend(rules.lines().map(|line| format!("nft {line}")));
        for folder in self.cgroup_folders() {
            walk(&folder, &mut |path| {
                if path.is_dir() {
                    all.push(format!("cgroup {}", path.display()));
                }
            });
        }
        for (pid, line) in self.processes() {
            all.push(format!("process {pid} {line}"));
        }
        for folder in [
            &self.state,
            &self.root.join("pods"),
            &self.root.join("holds"),
        ] {
            all.extend(tree(folder).into_iter().filter(|line| !is_fixed(line)));
        }
        all.sort();
        all
    }

    /// The host is as it was.
    #[track_caller]
    pub fn assert_clean(&self, before: &[String]) {
        // the last process of a pod may still be on its way out when `down` has returned
        let end = Instant::now() + Duration::from_secs(5);
        let mut after = self.snapshot();
        while after != before && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            after = self.snapshot();
        }
        let more: Vec<_> = after.iter().filter(|l| !before.contains(l)).collect();
        let less: Vec<_> = before.iter().filter(|l| !after.contains(l)).collect();
        assert!(
            more.is_empty() && less.is_empty(),
            "left: {more:#?}\ngone: {less:#?}"
        );
    }

    /// `down` succeeds and the host is as it was.
    #[track_caller]
    pub fn down(&self, before: &[String]) {
        self.sampan(&["down", "-v"]).ok();
        self.assert_clean(before);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // after a failed test: nothing of it may go on
        for (pid, _) in self.processes() {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        // a pinned namespace would keep the folder from being removed
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| Path::new(point).starts_with(self.path())) {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = self.parent.attach(std::process::id() as i32);
        let _ = self.cgroup.kill();
        for folder in self.cgroup_folders() {
            remove_cgroups(&folder);
        }
    }
}

/// A program that goes on while the test does.
pub struct Background {
    /// The process; it is the program itself, so its id can be sent signals.
    pub child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Background {
    fn start(command: &mut Command, folder: &Path) -> Background {
        let file = |name: &str| {
            let (file, path) = tempfile::Builder::new()
                .prefix(name)
                .tempfile_in(folder)
                .unwrap()
                .keep()
                .unwrap();
            (Stdio::from(file), path)
        };
        let ((out, stdout), (err, stderr)) = (file("stdout"), file("stderr"));
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap();
        Background {
            child,
            stdout,
            stderr,
        }
    }

    /// What it printed so far.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap()).into_owned()
    }

    /// What it complained of so far.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap()).into_owned()
    }

    /// Waits until it printed a text.
    #[track_caller]
    pub fn await_out(&self, text: &str) {
        until(&format!("{text:?} is printed"), || {
            self.out().contains(text).then_some(())
        });
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let status = until("the program ends", || self.child.try_wait().unwrap());
        Ended {
            code: exit_code(status),
            stdout: fs::read(&self.stdout).unwrap(),
            stderr: self.err(),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.stdout);
        let _ = fs::remove_file(&self.stderr);
    }
}

fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Runs a command to its end.
pub fn run(command: &mut Command, input: &[u8]) -> Ended {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // one that does not read is no mistake
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().unwrap()
    });
    Ended {
        code: exit_code(output.status),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Output of a program of the host that must succeed.
#[track_caller]
pub fn tool(program: &str, arguments: &[&str]) -> String {
    run(Command::new(program).args(arguments), b"").ok()
}

/// Waits until there is a value.
#[track_caller]
pub fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An OCI layout of an image of `images/`, built once for all tests and again when its definition changed.
pub fn layout(name: &str) -> PathBuf {
    let definition = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("images")
        .join(name);
    let store = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pod-images");
    fs::create_dir_all(&store).unwrap();
    let lock = fs::File::create(store.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let done = store.join(format!("{name}.done"));
    let layout = store.join(name);
    let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    if time(&done).is_some() && time(&done) >= time(&definition.join("image.toml")) {
        return layout;
    }
    let _ = fs::remove_dir_all(&layout);
    let scratch = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sampan"));
    command
        .env("SAMPAN_ROOT", scratch.path())
        .args(["image", "build", "-o"])
        .args([&layout, &definition]);
    run(&mut command, b"").ok();
    fs::write(&done, "").unwrap();
    layout
}

/// Removes a cgroup of one hierarchy and all below it.
pub fn remove_cgroups(folder: &Path) {
    let mut folders = Vec::new();
    walk(folder, &mut |path| {
        if path.is_dir() {
            folders.push(path.to_path_buf());
        }
    });
    folders.push(folder.to_path_buf());
    // the deepest first; what was killed may take a moment to leave
    folders.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    let end = Instant::now() + Duration::from_secs(5);
    for folder in folders {
        while fs::remove_dir(&folder).is_err() && folder.exists() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Every path below a folder, with kind, mode, owner, size and, for small files, content.
pub fn tree(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(folder, &mut |path| {
        let Ok(meta) = fs::symlink_metadata(path) else {
            return;
        };
        let content = if meta.is_file() && meta.len() < 4096 {
            String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
        } else if meta.is_file() {
            format!("{} bytes", meta.len())
        } else {
            String::new()
        };
        lines.push(format!(
            "file {} {:o} {}:{} {content}",
            path.display(),
            meta.mode(),
            meta.uid(),
            meta.gid()
        ));
    });
    lines.sort();
    lines
}

/// Folders that are made once and stay, and locks, whose file must outlive what it protects.
fn is_fixed(line: &str) -> bool {
    let path = line.split(' ').nth(1).unwrap_or_default();
    path.ends_with("/pods")
        || path.ends_with("/holds")
        || path.ends_with("/executors")
        || path.ends_with("/leases")
        || path.ends_with("/networks")
        || path.ends_with(".lock")
        || path.ends_with("/lock")
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        visit(&path);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, visit);
        }
    }
}
