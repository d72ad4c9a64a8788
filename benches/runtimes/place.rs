//! Where the comparison happens: a mount namespace with a tmpfs, and on it bundles, state folders and the runtimes' words.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::Result;

/// The static program in every root file system.
const BUSYBOX: &str = "/bin/busybox";
/// The v2 mount of a hybrid host, as systemd makes it.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// The folders. They go with the mount namespace.
#[derive(Debug)]
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// Makes it, with `sampan` under the name that makes it a runtime. The calling process lives there from now on.
    pub fn make(sampan: &Path, unified: bool) -> Result<Place> {
        let step = |what: &'static str| move |error: nix::Error| format!("{what}: {error}");
        nix::sys::prctl::set_child_subreaper(true).map_err(step("become a subreaper"))?;
        unshare(CloneFlags::CLONE_NEWNS).map_err(step("make a mount namespace (as root?)"))?;
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).map_err(step("make the mounts private"))?;
        if !unified && Path::new(UNIFIED).exists() {
            umount2(UNIFIED, MntFlags::MNT_DETACH).map_err(step("take the v2 mount away"))?;
            // crun makes its folders there all the same
            let size = Some("size=64m");
            mount(Some("none"), UNIFIED, Some("tmpfs"), MsFlags::empty(), size)
                .map_err(step("hide where the v2 mount was"))?;
        }
        let root = PathBuf::from("/run/sampan-bench");
        fs::create_dir_all(&root).map_err(|error| format!("make {}: {error}", root.display()))?;
        let options = Some("mode=755");
        mount(
            Some("bench"),
            &root,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .map_err(step("mount a tmpfs"))?;
        let place = Place { root };
        place
            .fill(sampan)
            .map_err(|error| format!("fill {}: {error}", place.root.display()))?;
        Ok(place)
    }

    fn fill(&self, sampan: &Path) -> std::io::Result<()> {
        symlink(fs::canonicalize(sampan)?, self.root.join("sampan-oci"))?;
        fs::create_dir(self.root.join("state"))?;
        for (name, args, seccomp) in [
            ("plain", json!(["/bin/true"]), false),
            ("seccomp", json!(["/bin/true"]), true),
            ("sleep", json!(["/bin/sleep", "1000"]), false),
        ] {
            let bundle = self.root.join(name);
            let bin = bundle.join("rootfs/bin");
            fs::create_dir_all(&bin)?;
            for folder in ["dev", "proc", "sys"] {
                fs::create_dir(bundle.join("rootfs").join(folder))?;
            }
            fs::copy(BUSYBOX, bin.join("busybox"))?;
            for applet in ["true", "sleep"] {
                symlink("busybox", bin.join(applet))?;
            }
            fs::write(bundle.join("config.json"), spec(args, seccomp).to_string())?;
        }
        Ok(())
    }

    /// A path in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A new file for what a command writes.
    pub fn log(&self) -> Result<File> {
        File::create(self.at("log")).map_err(|error| format!("open the log: {error}"))
    }

    /// What the last command wrote.
    pub fn said(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }
}

/// `config.json` as `runc spec` writes it, with two limits.
fn spec(args: Value, seccomp: bool) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": 268_435_456},
                "pids": {"limit": 64},
            },
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                            "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        }
    });
    if seccomp {
        let profile = sampan::seccomp::default_profile(&[]);
        spec["linux"]["seccomp"] = serde_json::to_value(profile).unwrap_or_default();
    }
    spec
}
