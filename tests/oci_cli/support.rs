//! A bundle with busybox, in folders of its own; its containers are deleted at the end.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Folders of a test.
pub struct Case {
    /// All its files.
    pub temp: tempfile::TempDir,
    /// `config.json`.
    pub spec: Value,
    /// The container's id.
    pub id: String,
}

/// Exit code, standard output and standard error.
pub struct Told {
    /// 128 + signal when it was killed.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Told {
    fn new(output: &Output) -> Told {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        Told {
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output of what went well.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!((self.code, &*self.err), (0, ""), "{}", self.out);
        self.out
    }

    /// The error of what failed with `code`, without the program's name before it.
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert_eq!((self.code, &*self.out), (code, ""), "{}", self.err);
        let err = self.err.trim_end().strip_prefix("sampan-oci: ");
        err.unwrap_or_else(|| panic!("{}", self.err)).to_owned()
    }
}

impl Case {
    /// A bundle whose container runs `script` in a shell.
    pub fn new(script: &str) -> Case {
        let temp = tempfile::tempdir().unwrap();
        let bin = temp.path().join("bundle/rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for name in [
            "sh", "cat", "ls", "sleep", "id", "env", "stty", "kill", "tty", "readlink",
        ] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        let name = temp
            .path()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let mut case = Case {
            id: format!("sampan-test{}", name.replace('.', "-")),
            spec: Value::Null,
            temp,
        };
        case.oci(&["spec", "--bundle", case.bundle().to_str().unwrap()])
            .good();
        let text = fs::read(case.bundle().join("config.json")).unwrap();
        let mut spec: Value = serde_json::from_slice(&text).unwrap();
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
        case.spec = spec;
        case.write();
        case
    }

    /// Writes `config.json`.
    pub fn write(&self) {
        fs::write(self.bundle().join("config.json"), self.spec.to_string()).unwrap();
    }

    /// The bundle.
    pub fn bundle(&self) -> PathBuf {
        self.temp.path().join("bundle")
    }

    /// Folder of all containers.
    pub fn root(&self) -> PathBuf {
        self.temp.path().join("root")
    }

    /// Folder of the container.
    pub fn dir(&self) -> PathBuf {
        self.root().join(&self.id)
    }

    /// The program by its name, in the bundle, with the test's `--root`.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sampan"));
        command.arg0("sampan-oci").arg("--root").arg(self.root());
        command
            .args(words)
            .current_dir(self.bundle())
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn oci(&self, words: &[&str]) -> Told {
        Told::new(&self.command(words).output().unwrap())
    }

    /// Creates the container, whose output goes to the file `out`; what went wrong, if anything.
    pub fn create(&self, words: &[&str]) -> Told {
        let out = fs::File::create(self.temp.path().join("out")).unwrap();
        let err = self.temp.path().join("err");
        let mut command = self.command(&["create"]);
        command.args(words).arg(&self.id).stdout(out);
        // the container holds standard error: its end does not come
        command.stderr(fs::File::create(&err).unwrap());
        let mut told = Told::new(&command.output().unwrap());
        told.err = fs::read_to_string(err).unwrap();
        told
    }

    /// Creates and starts it.
    pub fn up(&self) {
        self.create(&[]).good();
        self.oci(&["start", &self.id]).good();
    }

    /// What the container wrote.
    pub fn output(&self) -> String {
        fs::read_to_string(self.temp.path().join("out")).unwrap()
    }

    /// `state`.
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.oci(&["state", &self.id]).good()).unwrap()
    }

    /// Its status.
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// Waits until it has this status.
    #[track_caller]
    pub fn wait_for(&self, status: &str) {
        until(&format!("status {status}"), || self.status() == status);
    }

    /// Nothing of the container is left: folder, cgroup.
    #[track_caller]
    pub fn assert_gone(&self) {
        assert!(!self.dir().exists(), "{}", self.dir().display());
        assert_eq!(cgroups(&self.id), Vec::<PathBuf>::new());
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = self.oci(&["delete", "--force", &self.id]);
    }
}

/// Waits until it is so.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Folders of cgroups that have this name.
pub fn cgroups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    look(Path::new("/sys/fs/cgroup"), name, &mut found);
    found
}

fn look(dir: &Path, name: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name() == name {
                found.push(entry.path());
            }
            look(&entry.path(), name, found);
        }
    }
}
