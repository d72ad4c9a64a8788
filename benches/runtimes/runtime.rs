//! The peers, and how each is told what to do.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place::Place;
use crate::{Result, measure};

/// A step of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// All at once.
    Run,
    /// Up to the gate.
    Create,
    /// Through it.
    Start,
    /// `/bin/true` in a running one.
    Exec,
    /// SIGKILL.
    Kill,
    /// Of a stopped one.
    Delete,
}

impl Step {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Step::Run => "run",
            Step::Create => "create",
            Step::Start => "start",
            Step::Exec => "exec",
            Step::Kill => "kill",
            Step::Delete => "delete",
        }
    }
}

/// One of those compared.
#[derive(Debug)]
pub struct Runtime {
    /// In the tables.
    pub name: &'static str,
    program: PathBuf,
}

impl Runtime {
    /// Whether it takes the commands and bundles of an OCI runtime.
    pub fn is_oci(&self) -> bool {
        !matches!(self.name, "bwrap" | "unshare")
    }

    /// The command for a step of the container `id` of a bundle. The environment holds a PATH only.
    pub fn command(&self, place: &Place, step: Step, bundle: &str, id: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let bundle = place.at(bundle);
        let rootfs = bundle.join("rootfs");
        match self.name {
            // no cgroup, and fewer mounts than the bundle has
            "bwrap" => {
                command.args([
                    "--unshare-pid",
                    "--unshare-uts",
                    "--unshare-ipc",
                    "--unshare-net",
                ]);
                command
                    .args(["--hostname", "bench", "--ro-bind"])
                    .arg(rootfs);
                command.args(["/", "--proc", "/proc", "--dev", "/dev", "/bin/true"]);
                return command;
            }
            // what the kernel asks for the namespaces alone
            "unshare" => {
                command.args(["--fork", "--pid", "--mount", "--uts", "--ipc", "--net"]);
                command.arg(rootfs.join("bin/busybox")).arg("true");
                return command;
            }
            _ => {}
        }
        command.arg("--root").arg(place.at("state").join(self.name));
        command.arg(step.name());
        match step {
            Step::Run | Step::Create => {
                command.arg("--bundle").arg(bundle).arg(id);
            }
            Step::Exec => {
                command.args([id, "/bin/true"]);
            }
            Step::Kill => {
                command.args([id, "KILL"]);
            }
            Step::Start | Step::Delete => {
                command.arg(id);
            }
        }
        command
    }
}

/// Sampan and whatever of the others is on this machine, in the order of the tables.
pub fn installed(place: &Place, unified: bool) -> Result<Vec<Runtime>> {
    let mut all = vec![Runtime {
        name: "sampan",
        program: place.at("sampan-oci"),
    }];
    for name in ["crun", "runc", "bwrap", "unshare"] {
        if name == "crun" && unified && Path::new("/sys/fs/cgroup/unified").exists() {
            continue;
        }
        let found = ["/usr/sbin", "/usr/bin"]
            .iter()
            .map(|folder| Path::new(folder).join(name))
            .find(|path| path.exists());
        match found {
            Some(program) => all.push(Runtime { name, program }),
            None => eprintln!("{name} is not installed and left out"),
        }
    }
    Ok(all)
}

/// Tables of the system calls of one `run` of each, `strace -f -c` to `DIR/strace-NAME.txt`, and each call to `DIR/strace-NAME.log`.
pub fn strace(place: &Place, runtimes: &[Runtime], dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|error| format!("make {}: {error}", dir.display()))?;
    for runtime in runtimes {
        for (ending, options) in [("txt", &["-f", "-c"][..]), ("log", &["-f", "-r", "-T"][..])] {
            let file = dir.join(format!("strace-{}.{ending}", runtime.name));
            let traced = runtime.command(place, Step::Run, "plain", "bench");
            let mut command = Command::new("/usr/bin/strace");
            command
                .args(options)
                .arg("-o")
                .arg(&file)
                .arg(traced.get_program())
                .args(traced.get_args())
                .env_clear()
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
            measure::time(command, place)?;
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if ending == "txt" {
                let total = text.lines().last().unwrap_or_default();
                println!("{:8} {total}", runtime.name);
            }
        }
    }
    Ok(())
}
