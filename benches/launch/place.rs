//! Where the launches happen: mount and network namespaces of their own, an image, a network, folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use crate::Result;

/// What every task runs in.
pub const IMAGE: &str = "localhost/busybox";
/// What some are attached to.
pub const NETWORK: &str = "bench";
/// Records of running pods.
const STATE: &str = "/run/sampan-bench";

/// The folders; they go with the process.
#[derive(Debug)]
pub struct Place {
    sampan: PathBuf,
    folder: tempfile::TempDir,
}

impl Place {
    /// Makes it; the calling process lives there from now on.
    pub fn make(sampan: &Path) -> Result<Place> {
        let step = |what: &'static str| move |error: nix::Error| format!("{what}: {error}");
        let io = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
            .map_err(step("make namespaces (as root?)"))?;
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).map_err(step("make the mounts private"))?;
        fs::create_dir_all(STATE).map_err(io("make the state folder"))?;
        let options = Some("mode=755");
        mount(
            Some("bench"),
            STATE,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .map_err(step("mount a tmpfs"))?;
        run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        let folder = tempfile::Builder::new()
            .prefix("sampan-bench-")
            .tempdir()
            .map_err(io("make a folder"))?;
        let place = Place {
            sampan: fs::canonicalize(sampan).map_err(io("find the program"))?,
            folder,
        };
        place.fill().map_err(io("fill the folder"))?;
        let layout = place.at("layout");
        let definition = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/busybox");
        place.sampan_command(&["image", "build", &text(&definition), "-o", &text(&layout)])?;
        place.sampan_command(&["image", "import", &text(&layout)])?;
        Ok(place)
    }

    fn fill(&self) -> std::io::Result<()> {
        let conf = self.at("cni-conf");
        fs::create_dir(&conf)?;
        fs::create_dir(self.at("cni-path"))?;
        let list = json!({
            "cniVersion": "1.0.0", "name": NETWORK,
            "plugins": [{"type": "bridge", "bridge": "bench0", "isGateway": true,
                "ipam": {"type": "host-local", "dataDir": self.at("leases"), "ranges": [[{"subnet": "10.80.0.0/16"}]]}}],
        });
        fs::write(conf.join("bench.conflist"), list.to_string())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program.
    pub fn sampan(&self) -> String {
        text(&self.sampan)
    }

    /// What it has to know of the place.
    pub fn environment(&self) -> Vec<(String, String)> {
        let folders = [
            ("SAMPAN_ROOT", self.at("root")),
            ("SAMPAN_STATE", STATE.into()),
            ("SAMPAN_CNI_CONF", self.at("cni-conf")),
            ("SAMPAN_CNI_PATH", self.at("cni-path")),
        ];
        folders
            .map(|(name, path): (&str, PathBuf)| (name.to_owned(), text(&path)))
            .into()
    }

    fn sampan_command(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.sampan);
        run(command.args(arguments).envs(self.environment()))
    }

    /// Pods and leases that nobody took away.
    pub fn left(&self) -> Vec<String> {
        let pods = fs::read_dir(Path::new(STATE).join("pods"));
        let leases = fs::read_dir(self.at("leases").join(NETWORK));
        let names = pods
            .into_iter()
            .flatten()
            .chain(leases.into_iter().flatten())
            .flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        // files of the address plugin and of locks
        names
            .filter(|name| {
                !name.ends_with(".lock") && !name.starts_with("last_reserved_ip") && name != "lock"
            })
            .collect()
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}
