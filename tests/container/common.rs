//! A container made for a test, in folders and a cgroup of its own.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use sampan::cgroup::Cgroup;
use sampan::container::{self, CreateRequest, Error, Rootfs, State};
use serde_json::{Value, json};

/// Runs one of the core's calls in this single-threaded process: `create DIR`, `start DIR`, `exec DIR`.
pub fn internal(arguments: &[String]) -> ExitCode {
    let dir = Path::new(&arguments[1]);
    let done = match arguments[0].as_str() {
        "create" => {
            let request = fs::read(dir.join("create.json")).unwrap();
            container::create(&serde_json::from_slice(&request).unwrap()).map(|_| 0)
        }
        "start" => container::start(dir).map(|()| 0),
        "overlay" => {
            let layers = |name: &str| dir.join(name);
            let mut lower: Vec<PathBuf> = fs::read_dir(layers("lower"))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            lower.sort();
            let layers = sampan::rootfs::overlay::Layers {
                lower,
                upper: layers("upper"),
                work: layers("work"),
                userxattr: false,
            };
            layers.legacy(&dir.join("merged"), &[]).unwrap();
            let seen = |name: &str| fs::read_to_string(dir.join("merged").join(name)).unwrap();
            print!("{} {}", seen("bottom"), seen("top"));
            Ok(0)
        }
        "sealed" => {
            sampan::sys::seal::ensure().unwrap();
            print!("{}", fs::read_link("/proc/self/exe").unwrap().display());
            // the marks of a protected copy
            let writable = fs::OpenOptions::new().write(true).open("/proc/self/exe");
            println!(
                " {} {:?}",
                arguments[1..].join(" "),
                writable.err().and_then(|error| error.raw_os_error())
            );
            Ok(0)
        }
        _ => {
            let process = fs::read(dir.join("process.json")).unwrap();
            container::exec(dir, &serde_json::from_slice(&process).unwrap()).map(|exec| {
                if let Some(console) = exec.console {
                    fs::write(dir.join("console"), drain(console)).unwrap();
                }
                let status =
                    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(exec.pid), None).unwrap();
                match status {
                    nix::sys::wait::WaitStatus::Exited(_, code) => code,
                    nix::sys::wait::WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
                    other => panic!("{other:?}"),
                }
            })
        }
    };
    match done {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(match error {
                Error::CommandNotFound(_) => 127,
                Error::CommandNotRunnable(_) => 126,
                Error::Died | Error::InUse(_) | Error::CgroupBusy(_) | Error::Other(_) => 125,
            })
        }
    }
}

/// All that comes out of a terminal's master until its other side is closed.
pub fn drain(master: OwnedFd) -> Vec<u8> {
    let mut all = Vec::new();
    let mut master = File::from(master);
    let mut buffer = [0; 4096];
    // EIO: the last one closed its side
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        all.extend_from_slice(&buffer[..length]);
    }
    all
}

/// A container in the making, removed at the end.
pub struct Case {
    /// Its files.
    pub temp: tempfile::TempDir,
    /// `config.json`.
    pub spec: Value,
    /// The request.
    pub request: CreateRequest,
}

impl Case {
    /// A container that runs testinit with `args` on a root that holds nothing else.
    pub fn new(args: &[&str]) -> Case {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // so that containers become children of ours when `create` ends
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let temp = tempfile::tempdir().unwrap();
        let bundle = temp.path().join("bundle");
        let root = bundle.join("rootfs");
        let dir = temp.path().join("run");
        fs::create_dir_all(&root).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::copy(testinit(), root.join("testinit")).unwrap();
        let id = format!(
            "sampan-test-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let mut argv = vec!["/testinit"];
        argv.extend(args);
        Case {
            spec: spec(&argv),
            request: CreateRequest {
                cgroup: Cgroup::own().unwrap().child(&id),
                id,
                bundle,
                dir,
                rootfs: Rootfs::Bundle,
                console_socket: None,
                preserve_fds: 0,
                keep_keyring: false,
                no_pivot: false,
                at_once: false,
                dies_with_parent: false,
            },
            temp,
        }
    }

    /// The root file system.
    pub fn root(&self) -> PathBuf {
        self.request.bundle.join("rootfs")
    }

    /// What the container wrote, stdout and stderr.
    pub fn output(&self) -> String {
        fs::read_to_string(self.temp.path().join("out")).unwrap()
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.args(["internal", what]).arg(&self.request.dir);
        command
    }

    /// `create`; the container's output goes to a file, errors of create come back: its exit code and what it said.
    pub fn create(&self) -> Result<State, (i32, String)> {
        fs::write(
            self.request.bundle.join("config.json"),
            self.spec.to_string(),
        )
        .unwrap();
        fs::write(
            self.request.dir.join("create.json"),
            serde_json::to_vec(&self.request).unwrap(),
        )
        .unwrap();
        let out = File::create(self.temp.path().join("out")).unwrap();
        let status = self
            .command("create")
            .stdin(std::process::Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .status()
            .unwrap();
        if status.success() {
            return Ok(container::load(&self.request.dir).unwrap().unwrap());
        }
        Err((
            status.code().unwrap_or(-1),
            self.output().trim_end().to_owned(),
        ))
    }

    /// Waits until the container wrote `text`, and nothing else.
    pub fn wait_for(&self, text: &str) {
        while self.output() != text {
            assert!(text.starts_with(&self.output()), "{}", self.output());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// `start`.
    pub fn start(&self) -> Result<(), (i32, String)> {
        ended(self.command("start").output().unwrap()).map(|_| ())
    }

    /// `exec`: (exit code, stdout and stderr).
    pub fn exec(&self, process: &Value) -> (i32, String) {
        fs::write(self.request.dir.join("process.json"), process.to_string()).unwrap();
        let output = self.command("exec").output().unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), text)
    }

    /// Waits for the container's end: exit code, or 128 + signal.
    pub fn wait(&self, state: &State) -> i32 {
        use nix::sys::wait::{WaitStatus, waitpid};
        match waitpid(nix::unistd::Pid::from_raw(state.pid), None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
            other => panic!("{other:?}"),
        }
    }

    /// From create to the end: exit code and output.
    pub fn run(&self) -> (i32, String) {
        let state = match self.create() {
            Ok(state) => state,
            Err((code, text)) => panic!("create: {code}: {text}"),
        };
        if let Err((code, text)) = self.start() {
            self.wait(&state);
            panic!("start: {code}: {text}");
        }
        let code = self.wait(&state);
        container::delete(&self.request.dir).unwrap();
        (code, self.output())
    }

    /// The output of a container that ends well.
    pub fn good(&self) -> String {
        let (code, text) = self.run();
        assert_eq!(code, 0, "{text}");
        text
    }

    /// Nothing of it is left.
    pub fn assert_gone(&self) {
        let left: Vec<String> = fs::read_dir(&self.request.dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| !name.ends_with(".json") || name == "state.json")
            .collect();
        assert_eq!(left, Vec::<String>::new(), "files");
        assert!(
            self.request
                .cgroup
                .processes()
                .map_or(true, |all| all.is_empty()),
            "processes"
        );
        for folder in folders(&self.request.cgroup) {
            assert!(!folder.exists(), "{}", folder.display());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(&*self.temp.path().to_string_lossy()),
            "mounts"
        );
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        // for a test that failed half-way
        let _ = container::delete(&self.request.dir);
        let _ = self.request.cgroup.kill();
        let _ = self.request.cgroup.remove();
    }
}

fn folders(cgroup: &Cgroup) -> Vec<PathBuf> {
    cgroup
        .folders()
        .iter()
        .map(|path| path.to_path_buf())
        .collect()
}

fn ended(output: Output) -> Result<String, (i32, String)> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err((
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned(),
    ))
}

/// The static test program, built beside this one.
pub fn testinit() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let path = exe.parent().unwrap().parent().unwrap().join("testinit");
    if !path.exists() {
        let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
        assert!(
            Command::new(cargo)
                .args(["build", "-p", "testinit"])
                .status()
                .unwrap()
                .success()
        );
    }
    path
}

/// The usual specification.
pub fn spec(argv: &[&str]) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": argv,
            "env": ["PATH=/bin:/", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "boat",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        }
    })
}
