//! Where things of a pod are on disk.
//!
//! ```text
//! <state>/pods/NAME/            mode 0700; gone after `down` and after a reboot
//!   pod.json                    what the pod is (written once by `up`)
//!   keeper.json supervisor.json process and start time
//!   keeper.lock supervisor.lock sandbox.lock remover.lock
//!                             held by the one process that is at it (see [`super::lock`])
//!   control.sock
//!   removing                  there once `down` began to take it apart; holds why it could not be finished
//!   renewing                  beside it: `up` makes the pod again, so its volumes without a name stay
//!   orphan                      there since somebody saw that the pod's owner has ended
//!   ports.json                  published ports, host side chosen
//!   netns                       the pinned network namespace
//!   network/NN-IFNAME.json      attachments and CNI results
//!   changes.json                networks attached and detached since `up`
//!   sandbox.json                what set-up found out: addresses, default route
//!   verdict.json                how the pod ended, while it is at rest
//!   hooks.json hooks.lock       which hooks ran and which are owed; held by the process that runs one
//!   sinks/NUMBER.json           how far a file of x-sampan.logs is, written by the supervisor alone
//!   exits/PID-STARTTIME.json    exit records, written by the keeper alone
//!   events.log                  what the supervisor did and why, one line each
//!   services/SERVICE/
//!     config.json create.json state.json gate   the container (see `container`)
//!     lock                      held by the `create`, `start` or `delete` that is at it
//!     status.json               written by the supervisor alone
//!     input.lock                held by whoever writes to the standard input
//!     ended.json                how the last run ended, before its container is removed
//!     hosts resolv.conf hostname rootfs/ stdout stderr (named pipes)
//! <state>/cni/                  attachments that `sampan cni` made, as in network/
//! <root>/pods/NAME/.pod         link to <state>/pods/NAME: whose data these are
//! <root>/pods/NAME/.owned       there where the pod has an owner: its name does not come again
//! <root>/pods/NAME/SERVICE/     upper work volumes/ stdout.log stdout.idx stdout.OFFSET.log … stderr.log stderr.idx …
//! <root>/volumes/NAME/          named volumes: _data, volume.json; while one is filled .copy_data, then .ready_data
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The two folders everything is below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folders {
    /// Images, volumes, what pods write (`/var/lib/sampan`).
    pub root: PathBuf,
    /// Running pods (`/run/sampan`).
    pub state: PathBuf,
}

impl Folders {
    /// Folder of all pods.
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// Folder of address leases of generated networks.
    pub fn leases(&self) -> PathBuf {
        self.state.join("leases")
    }

    /// Folder of all named volumes.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Folder of a named volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name)
    }

    /// Folder of attachments that were made by hand.
    pub fn by_hand(&self) -> PathBuf {
        self.state.join("cni")
    }

    /// One pod.
    pub fn pod(&self, name: &str) -> PodDir {
        PodDir {
            name: name.to_string(),
            dir: self.pods().join(name),
            data: self.root.join("pods").join(name),
        }
    }
}

/// Link in a pod's data to its folder.
pub const OF: &str = ".pod";
/// In a pod's data, where the pod has an owner.
pub const OWNED: &str = ".owned";

/// The folders of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDir {
    /// Pod name.
    pub name: String,
    /// Below `<state>`.
    pub dir: PathBuf,
    /// Below `<root>`.
    pub data: PathBuf,
}

impl PodDir {
    /// From the path of the folder below `<state>` and the `<root>` of its record.
    pub fn open(dir: &Path, root: &Path) -> PodDir {
        let name = dir
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        PodDir {
            data: root.join("pods").join(&name),
            dir: dir.to_path_buf(),
            name,
        }
    }

    /// `pod.json`.
    pub fn record(&self) -> PathBuf {
        self.dir.join("pod.json")
    }

    /// `removing`: part of the pod is gone, the rest is to follow. Text: what stood in the way at the last attempt.
    pub fn removing(&self) -> PathBuf {
        self.dir.join("removing")
    }

    /// `renewing`: it is removed to be made again, with the volumes without a name that it has.
    pub fn renewing(&self) -> PathBuf {
        self.dir.join("renewing")
    }

    /// Lock of the process that goes on with a removal which could not be finished.
    pub fn remover_lock(&self) -> PathBuf {
        self.dir.join("remover.lock")
    }

    /// `orphan`: its time is when it was first seen that the owner has ended.
    pub fn orphan(&self) -> PathBuf {
        self.dir.join("orphan")
    }

    /// `keeper.json`.
    pub fn keeper(&self) -> PathBuf {
        self.dir.join("keeper.json")
    }

    /// `supervisor.json`.
    pub fn supervisor(&self) -> PathBuf {
        self.dir.join("supervisor.json")
    }

    /// Lock of the keeper: a pod has one.
    pub fn keeper_lock(&self) -> PathBuf {
        self.dir.join("keeper.lock")
    }

    /// Lock of the supervisor: a second one waits for the end of the first.
    pub fn supervisor_lock(&self) -> PathBuf {
        self.dir.join("supervisor.lock")
    }

    /// Lock of the processes that make network, cgroup and volumes.
    pub fn sandbox_lock(&self) -> PathBuf {
        self.dir.join("sandbox.lock")
    }

    /// `control.sock`.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// `ports.json`.
    pub fn ports(&self) -> PathBuf {
        self.dir.join("ports.json")
    }

    /// `netns`.
    pub fn netns(&self) -> PathBuf {
        self.dir.join("netns")
    }

    /// `network/`.
    pub fn network(&self) -> PathBuf {
        self.dir.join("network")
    }

    /// `sandbox.json`.
    pub fn sandbox(&self) -> PathBuf {
        self.dir.join("sandbox.json")
    }

    /// `verdict.json`.
    pub fn verdict(&self) -> PathBuf {
        self.dir.join("verdict.json")
    }

    /// `hooks.json`.
    pub fn hooks(&self) -> PathBuf {
        self.dir.join("hooks.json")
    }

    /// Lock of the process that runs a hook.
    pub fn hooks_lock(&self) -> PathBuf {
        self.dir.join("hooks.lock")
    }

    /// `sinks/`.
    pub fn sinks(&self) -> PathBuf {
        self.dir.join("sinks")
    }

    /// `sinks/NUMBER.json`.
    pub fn sink(&self, number: usize) -> PathBuf {
        self.sinks().join(format!("{number}.json"))
    }

    /// `changes.json`.
    pub fn changes(&self) -> PathBuf {
        self.dir.join("changes.json")
    }

    /// `exits/`.
    pub fn exits(&self) -> PathBuf {
        self.dir.join("exits")
    }

    /// `keeper.log`.
    pub fn keeper_log(&self) -> PathBuf {
        self.dir.join("keeper.log")
    }

    /// `events.log`.
    pub fn events(&self) -> PathBuf {
        self.dir.join("events.log")
    }

    /// One service.
    pub fn service(&self, name: &str) -> ServiceDir {
        ServiceDir {
            dir: self.dir.join("services").join(name),
            data: self.data.join(name),
        }
    }
}

/// The folders of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceDir {
    /// Below the pod's `services/`.
    pub dir: PathBuf,
    /// Below `<root>/pods/NAME/`.
    pub data: PathBuf,
}

impl ServiceDir {
    /// `status.json`.
    pub fn status(&self) -> PathBuf {
        self.dir.join("status.json")
    }

    /// Lock of the process that makes, starts or removes the container.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Lock of whoever writes to the standard input.
    pub fn input_lock(&self) -> PathBuf {
        self.dir.join("input.lock")
    }

    /// `gate` of the container.
    pub fn gate(&self) -> PathBuf {
        self.dir.join("gate")
    }

    /// `ended.json`.
    pub fn ended(&self) -> PathBuf {
        self.dir.join("ended.json")
    }

    /// `create.json`.
    pub fn request(&self) -> PathBuf {
        self.dir.join("create.json")
    }

    /// `error.json`: why the last `create` or `start` failed.
    pub fn error(&self) -> PathBuf {
        self.dir.join("error.json")
    }

    /// Named pipe of `stdout` or `stderr`.
    pub fn pipe(&self, stream: &str) -> PathBuf {
        self.dir.join(stream)
    }

    /// Log of `stdout` or `stderr`, the part that begins at an offset (see [`super::logs::parts`]).
    pub fn log_at(&self, stream: &str, base: u64) -> PathBuf {
        self.data.join(match base {
            0 => format!("{stream}.log"),
            base => format!("{stream}.{base}.log"),
        })
    }

    /// Index of [`ServiceDir::log_at`].
    pub fn index_at(&self, stream: &str, base: u64) -> PathBuf {
        self.log_at(stream, base).with_extension("idx")
    }
}
