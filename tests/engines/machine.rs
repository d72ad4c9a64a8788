//! A machine for an engine: processes, mounts, network, cgroups of its own, and nothing that outlives it.
//!
//! *Invariants.* Everything an engine starts is in one pid namespace, whose end ends it; every mount is in one mount
//! namespace. The machine's `/run`, `/dev/shm`, `/tmp` and `/sys/fs/cgroup` are private (podman's locks are in `/dev/shm` under
//! a fixed name, and it makes folders below `/sys/fs/cgroup` for controllers that are mounted nowhere). All else of the host's root file
//! system is read-only: a service manager that boots clears `/tmp`, and its units write wherever they like. Of systemd's own units there
//! are none but targets and slices: its services would set the sysctls of the host.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use sampan::cgroup::Cgroup;

use crate::pod_support::{Ended, layout, remove_cgroups, run, tool};
use crate::typed;

/// Longer than any command here may take (seconds).
const LIMIT: &str = "300";

/// Makes the machine and becomes its init, which reaps.
const INIT: &str = r#"
    ip link set lo up
    # where each hierarchy is mounted, what kind it is, its controllers
    awk '$3 ~ /^cgroup2?$/ { print $2, $3, $4 }' /proc/mounts > "$1"
    umount -R /sys/fs/cgroup
    grep -q '^/sys/fs/cgroup ' "$1" || mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    while read -r place kind options; do
        mkdir -p "$place"
        case "$kind $place" in
            'cgroup2 '*) mount -t cgroup2 cgroup2 "$place" ;;
            *systemd) mount -t cgroup -o none,name=systemd cgroup "$place" ;;
            *) mount -t cgroup -o "$(basename "$place")" cgroup "$place" ;;
        esac
    done < "$1"
    grep -q '^/sys/fs/cgroup ' "$1" || mount -o remount,ro /sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs /run
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    # of the host's files the folder alone can be written to; of some others the machine has its own
    mkdir /run/kept
    mount --bind "$2" /run/kept
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    mkdir -p "$2"
    mount --move /run/kept "$2"
    rmdir /run/kept
    for name in etc var root srv opt; do
        over=$2/over/$name
        mkdir -p "$over/upper" "$over/work"
        mount -t overlay -o "lowerdir=/$name,upperdir=$over/upper,workdir=$over/work" overlay "/$name"
    done
    mount -o remount,bind,ro /
    # targets and slices, without what they want
    mkdir /run/units
    cp /lib/systemd/system/*.target /lib/systemd/system/*.slice /run/units
    mount --bind -o ro /run/units /lib/systemd/system
    # where systemd looks for its first target
    mkdir -p /run/systemd/system
    printf '[Unit]\nDefaultDependencies=no\n' >/run/systemd/system/test.target
    echo ready
    shift 2
    exec "$@"
"#;

/// A first process that does nothing but reap.
const REAPER: &[&str] = &["catatonit", "-P"];

/// Debian's service manager, which finds no unit to start by itself.
const SYSTEMD: &[&str] = &[
    "env",
    "container=oci",
    "/lib/systemd/systemd",
    "--system",
    "--unit=test.target",
    "--log-target=console",
    "--log-level=warning",
    "--show-status=no",
];

/// Processes, mounts, network and cgroups for one engine, and a folder.
pub struct Machine {
    /// unshare(1): the parent of the machine's init, which dies with it.
    keeper: Child,
    cgroup: Cgroup,
    parent: Cgroup,
    folder: tempfile::TempDir,
}

impl Machine {
    /// A machine with nothing but an init.
    pub fn new() -> Machine {
        Machine::with(REAPER)
    }

    /// A machine whose init is systemd.
    pub fn with_systemd() -> Machine {
        let machine = Machine::with(SYSTEMD);
        machine.shell("until [ -S /run/systemd/private ]; do sleep 0.05; done");
        machine.install();
        machine
    }

    fn with(init: &[&str]) -> Machine {
        let folder = tempfile::Builder::new()
            .prefix("sampan-engine-")
            .tempdir()
            .unwrap();
        for name in ["home", "tmp"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        symlink(
            env!("CARGO_BIN_EXE_sampan"),
            folder.path().join("sampan-oci"),
        )
        .unwrap();
        let parent = Cgroup::own().unwrap();
        let cgroup = parent.child(&format!("sampan-engine-{}", std::process::id()));
        cgroup.create().unwrap();
        cgroup.attach(std::process::id() as i32).unwrap();
        let mut keeper = Command::new("unshare")
            .args([
                "--mount", "--net", "--pid", "--cgroup", "--ipc", "--uts", "--fork",
            ])
            .args(["--kill-child", "--mount-proc", "sh", "-euc", INIT, "init"])
            .arg(folder.path().join("hierarchies"))
            .arg(folder.path())
            .args(init)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        let said = keeper.stdout.as_mut().unwrap().read_exact(&mut ready);
        let machine = Machine {
            keeper,
            cgroup,
            parent,
            folder,
        };
        said.expect("the machine is set up, see above");
        machine
    }

    /// A machine as a reader of the documentation has it: `sampan` installed, folders of the system that can be written to and are
    /// nobody else's, busybox in the store and as the OCI layout `busybox`.
    pub fn installed() -> Machine {
        let machine = Machine::new();
        machine.install();
        machine
    }

    fn install(&self) {
        let program = env!("CARGO_BIN_EXE_sampan");
        let layout = layout("busybox");
        self.shell(&format!(
            r#"
            # overlays cannot be made upon an overlay
            for name in sampan containers containerd; do
                mkdir -p /var/lib/$name lib/$name
                mount --bind lib/$name /var/lib/$name
            done
            # nobody's services but the test's
            rm -rf /etc/init.d /etc/runlevels /etc/rc?.d /etc/systemd/system/*
            mkdir -p /etc/init.d /etc/runlevels/default
            mount -t tmpfs tmpfs /usr/local/bin
            ln -s {program} /usr/local/bin/sampan
            ln -s sampan /usr/local/bin/sampan-oci
            skopeo copy --quiet --insecure-policy oci:{} oci:busybox:latest
            sampan image import busybox localhost/busybox >import.log 2>&1
            "#,
            layout.display()
        ));
    }

    /// Types a section of `docs/engines.md` after `prepare`, and shows the first thing that did not come as it says. `last` is done
    /// when a step fails.
    #[track_caller]
    pub fn types(&self, heading: &str, prepare: &str, last: &str) {
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/engines.md");
        let steps = typed::steps(&fs::read_to_string(document).unwrap(), heading);
        assert!(steps.len() > 1, "{heading}: {steps:?}");
        let script = format!("{prepare}\n{}", typed::script(&steps, last));
        let ended = self.run(&["bash", "-c", &script]);
        let output = ended.out();
        assert_eq!(typed::difference(&steps, &output), None, "{}", ended.stderr);
        assert_eq!(ended.code, 0, "{ended:#?}");
    }

    /// The machine's folder, the same inside and outside.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Our runtime, by the name that makes it one.
    pub fn runtime(&self) -> String {
        self.path().join("sampan-oci").to_str().unwrap().to_owned()
    }

    /// An OCI archive of busybox, tagged `localhost/busybox:latest`.
    pub fn image(&self) -> String {
        let archive = self.path().join("busybox.tar").to_str().unwrap().to_owned();
        let from = format!("oci:{}", layout("busybox").display());
        let to = format!("oci-archive:{archive}:localhost/busybox:latest");
        tool(
            "skopeo",
            &["copy", "--quiet", "--insecure-policy", &from, &to],
        );
        archive
    }

    /// A command inside the machine.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let namespaces = format!("/proc/{}/ns", self.keeper.id());
        for (option, name) in [
            ("mount", "mnt"),
            ("net", "net"),
            ("pid", "pid_for_children"),
            ("cgroup", "cgroup"),
            ("ipc", "ipc"),
            ("uts", "uts"),
        ] {
            command.arg(format!("--{option}={namespaces}/{name}"));
        }
        command
            // setns(2) into a mount namespace moves to its root
            .args(["--", "env", "--chdir"])
            .arg(self.path())
            .args(["timeout", "--signal=KILL", LIMIT])
            .args(words)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path().join("home"))
            .env("TMPDIR", self.path().join("tmp"));
        command
    }

    /// Runs a command inside.
    pub fn run(&self, words: &[&str]) -> Ended {
        run(&mut self.command(words), b"")
    }

    /// Runs a shell script inside, which must succeed: its output without the last line feed.
    #[track_caller]
    pub fn shell(&self, script: &str) -> String {
        let ended = self.run(&["sh", "-c", script]);
        ended.ok().trim_end_matches('\n').to_owned()
    }

    /// Runs a command on a terminal of 40 rows and 100 columns that stays open; what appears on it, and the code.
    pub fn terminal(&self, words: &[&str], typed: &str) -> Ended {
        let quoted = |word: &&str| format!("'{}'", word.replace('\'', r"'\''"));
        let line = words.iter().map(quoted).collect::<Vec<_>>().join(" ");
        let script = r#"
            rm -f typed; mkfifo typed; exec 3<>typed; printf '%s' "$2" >&3
            exec script -qec "stty rows 40 cols 100; $1" /dev/null <&3
        "#;
        self.run(&["sh", "-c", script, "terminal", &line, typed])
    }

    /// Names of the cgroups below the machine's own, with the processes (as the host counts them) in each, whatever the
    /// hierarchy; sorted.
    pub fn cgroups(&self) -> Vec<String> {
        let mut all = Vec::new();
        for top in self.cgroup.folders() {
            let mut folders = vec![top.to_path_buf()];
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        let below = entry.path().strip_prefix(top).unwrap().to_owned();
                        all.push(below.display().to_string());
                        folders.push(entry.path());
                    }
                }
            }
        }
        all.sort();
        all.dedup();
        all
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let _ = self.parent.attach(std::process::id() as i32);
        let _ = self.cgroup.kill();
        for folder in self.cgroup.folders() {
            remove_cgroups(folder);
        }
    }
}
