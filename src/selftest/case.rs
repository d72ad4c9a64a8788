//! A container to be attacked: its bundle, what the host keeps beside it, and the runtime's commands.
//!
//! *Invariants:* everything is below one private folder (mode 0700) that goes away at the end, with the containers that are left;
//! the runtime is started as its callers start it, as a program; no command takes longer than [`LIMIT`].

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::pod::plan::CAPABILITIES;
use serde_json::{Value, json};

use super::{Stop, probe};

/// Longest time of a command of the runtime.
const LIMIT: Duration = Duration::from_secs(60);
/// What is read of a command's output at most, in bytes.
const OUTPUT_MAX: u64 = 4 << 20;
/// Where the program is in every container.
pub const PROBE: &str = "/bin/sampan-probe";

/// A container in the making.
#[derive(Debug)]
pub struct Case {
    /// Its private folder on the host.
    pub dir: PathBuf,
    /// `config.json`.
    pub spec: Value,
    /// Container id.
    pub id: String,
    /// What the runtime is started through: words in front of its own command line.
    pub through: Vec<String>,
    runtime: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Said {
    /// Exit code, 128 + signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// What the probe reported in its last line.
    pub fn report(&self) -> Result<Value, Stop> {
        let line = self.out.lines().last().unwrap_or_default();
        match (self.code, serde_json::from_str(line)) {
            (0, Ok(report)) => Ok(report),
            _ => Err(self.unexpected()),
        }
    }

    /// The command ended in another way than it had to.
    pub fn unexpected(&self) -> Stop {
        let text = format!("{}{}", self.err.trim(), self.out.trim());
        Stop::Failed(format!("ended with code {}: {text}", self.code))
    }

    /// It ended well.
    pub fn good(self) -> Result<Said, Stop> {
        if self.code == 0 {
            Ok(self)
        } else {
            Err(self.unexpected())
        }
    }

    /// It was refused, with one of these words in the message: another reason would prove nothing.
    pub fn refused(&self, words: &[&str]) -> Result<(), Stop> {
        if self.code == 0 {
            return Err(Stop::Failed("it was not refused".to_owned()));
        }
        match words.iter().any(|word| self.err.contains(word)) {
            true => Ok(()),
            false => Err(self.unexpected()),
        }
    }
}

impl Case {
    /// A container that runs the probe with `attack`, in a root that holds nothing else.
    pub fn new(attack: &[&str]) -> Result<Case, Stop> {
        if !rustix::process::geteuid().is_root() {
            return Err(Stop::NotApplicable("needs root".to_owned()));
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!(
            "sampan-selftest-{}-{number}-{:08x}",
            std::process::id(),
            fastrand::u32(..)
        );
        let dir = std::env::temp_dir().join(&id);
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let runtime = std::env::current_exe()?;
        let mut argv = vec![PROBE];
        argv.extend(attack);
        let case = Case {
            spec: spec(&argv, &runtime),
            dir,
            id,
            through: Vec::new(),
            runtime,
        };
        fs::create_dir_all(case.root().join("bin"))?;
        Ok(case)
    }

    /// A user namespace whose root is this user of the host.
    pub fn add_user_namespace(&mut self, host: u32) {
        if let Some(all) = self.spec["linux"]["namespaces"].as_array_mut() {
            all.push(json!({"type": "user"}));
        }
        for key in ["uidMappings", "gidMappings"] {
            self.spec["linux"][key] = json!([{"containerID": 0, "hostID": host, "size": 65536}]);
        }
    }

    /// The root file system.
    pub fn root(&self) -> PathBuf {
        self.dir.join("bundle/rootfs")
    }

    /// The runtime's folder (`--root`).
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The runtime's own file.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// Lets the runtime be a private copy, which may come to harm.
    pub fn copy_runtime(&mut self) -> Result<(), Stop> {
        let copy = self.dir.join("sampan");
        fs::copy(&self.runtime, &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        self.runtime = copy;
        Ok(())
    }

    /// Lets the runtime be that of another case.
    pub fn use_runtime_of(&mut self, other: &Case) {
        self.runtime.clone_from(&other.runtime);
    }

    /// A folder on the host, beside the bundle.
    pub fn host_folder(&self, name: &str) -> Result<PathBuf, Stop> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Adds an entry to `mounts`.
    pub fn mount(&mut self, destination: &str, fstype: &str, source: &Path, options: &[&str]) {
        if let Some(mounts) = self.spec["mounts"].as_array_mut() {
            mounts.push(json!({"destination": destination, "type": fstype, "source": source, "options": options}));
        }
    }

    /// Takes the entry of `destination` out of `mounts`.
    pub fn unmount(&mut self, destination: &str) {
        if let Some(mounts) = self.spec["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] != destination);
        }
    }

    /// Replaces the program.
    pub fn program(&mut self, words: &[&str]) {
        self.spec["process"]["args"] = json!(words);
    }

    /// Writes `config.json`.
    pub fn write(&self) -> Result<(), Stop> {
        let path = self.dir.join("bundle/config.json");
        Ok(fs::write(path, self.spec.to_string())?)
    }

    /// One command of the runtime, from its name on.
    pub fn command(&self, words: &[&str]) -> Result<Said, Stop> {
        let mut command = match self.through.split_first() {
            None => Command::new(&self.runtime),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.runtime);
                command
            }
        };
        command
            .args(["oci", "--root"])
            .arg(self.state())
            .args(words);
        self.collect(&mut command)
    }

    /// A command that is not the runtime's.
    pub fn host_command(&self, words: &[&str]) -> Result<Said, Stop> {
        let (program, arguments) = words
            .split_first()
            .ok_or_else(|| Stop::Failed("no command".to_owned()))?;
        self.collect(Command::new(program).args(arguments))
    }

    fn collect(&self, command: &mut Command) -> Result<Said, Stop> {
        // a container keeps these open: pipes would not end
        let (out, err) = (self.dir.join("out"), self.dir.join("err"));
        let status = run(command
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?))?;
        Ok(Said {
            code: code(status),
            out: read(&out)?,
            err: read(&err)?,
        })
    }

    /// `run` in the foreground.
    pub fn run(&self) -> Result<Said, Stop> {
        self.write()?;
        let bundle = self.dir.join("bundle");
        let said = self.command(&["run", "--bundle", &bundle.to_string_lossy(), &self.id])?;
        if said.code != 0 {
            self.delete()?;
        }
        Ok(said)
    }

    /// `create`, up to the gate.
    pub fn create(&self) -> Result<Said, Stop> {
        self.create_with(&[])
    }

    /// `create` with flags of its own.
    pub fn create_with(&self, flags: &[&str]) -> Result<Said, Stop> {
        self.write()?;
        let bundle = self.dir.join("bundle");
        let bundle = bundle.to_string_lossy();
        let mut words = vec!["create", "--bundle", &bundle];
        words.extend(flags);
        words.push(&self.id);
        self.command(&words)
    }

    /// `create` and `start`; the file of the container's output comes back.
    pub fn start(&self) -> Result<PathBuf, Stop> {
        self.create()?.good()?;
        let kept = self.keep_output()?;
        self.command(&["start", &self.id])?.good()?;
        Ok(kept)
    }

    /// After `create`: the file of the container's output, out of the way of the next command's.
    pub fn keep_output(&self) -> Result<PathBuf, Stop> {
        let kept = self.dir.join("container-out");
        // the container goes on writing to the same file under its other name
        fs::rename(self.dir.join("out"), &kept)?;
        fs::rename(self.dir.join("err"), self.dir.join("container-err"))?;
        Ok(kept)
    }

    /// `exec` in the foreground, with flags of its own.
    pub fn exec(&self, flags: &[&str], program: &[&str]) -> Result<Said, Stop> {
        let mut words = vec!["exec"];
        words.extend(flags);
        words.push(&self.id);
        words.extend(program);
        self.command(&words)
    }

    /// `delete --force`; missing is success.
    pub fn delete(&self) -> Result<(), Stop> {
        self.command(&["delete", "--force", &self.id])?.good()?;
        Ok(())
    }

    /// The process id of the container's first process.
    pub fn pid(&self) -> Result<i32, Stop> {
        let said = self.command(&["state", &self.id])?.good()?;
        let state: Value = serde_json::from_str(&said.out)?;
        state["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .ok_or_else(|| Stop::Failed(format!("state tells no pid: {}", said.out)))
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if self.state().join(&self.id).exists() {
            let _ = self.delete();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Waits until the file has `lines` lines, and gives the last one, parsed.
pub fn wait_for_line(path: &Path, lines: usize) -> Result<Value, Stop> {
    let begin = Instant::now();
    while begin.elapsed() < LIMIT {
        let text = read(path)?;
        if let Some(line) = text.lines().nth(lines - 1).filter(|_| text.ends_with('\n')) {
            return Ok(serde_json::from_str(line)?);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(Stop::Failed(format!(
        "the container did not answer: {}",
        read(path)?
    )))
}

/// Text of a file, as far as it makes sense to look.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(OUTPUT_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Runs a command to its end, or to that of our patience.
pub fn run(command: &mut Command) -> Result<ExitStatus, Stop> {
    let mut child = command.spawn()?;
    let begin = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begin.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            return Err(Stop::Failed(format!(
                "{command:?} did not end within {} seconds",
                LIMIT.as_secs()
            )));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// This program, to do something on the host as the probe does it inside.
pub fn helper(case: &Case, words: &[&str]) -> Result<Vec<String>, Stop> {
    let link = case.dir.join(probe::NAME);
    if !link.exists() {
        std::os::unix::fs::symlink(std::env::current_exe()?, &link)?;
    }
    let mut all = vec![link.to_string_lossy().into_owned()];
    all.extend(words.iter().map(|word| word.to_string()));
    Ok(all)
}

/// The usual specification; the program is bound into the container.
fn spec(argv: &[&str], program: &Path) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": argv,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": PROBE, "type": "bind", "source": program, "options": ["bind", "ro"]},
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
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
