//! Networks of a pod: our plugins in process and as programs against the reference ones, driven by the same runtime code,
//! interleaved in one run. `make bench-network` runs it as root.
//!
//! *Invariants:*
//! * All get the same network list (`bridge` with a gateway and masquerading, `host-local`, `portmap` with one port), each on a host
//!   of its own: a network namespace that nobody else's rules are in. Leases, records and locks are on one tmpfs.
//! * In each round each contestant runs once, in rotating order, so that what the machine does besides hits all alike.
//! * A plugin that fails ends the comparison: no figure is made of errors.

mod report;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use sampan::network::{Attachment, Cni, NetworkList, PortMapping, add_all, del_all, netns};
use serde_json::json;

use report::Series;

const USAGE: &str = "\
usage: network [OPTION]…

  --rounds N         samples per contestant and case (100)
  --plugins FILE     our plugins as a program
  --reference DIR    the reference plugins (/usr/lib/cni)
  --json FILE        write the figures as JSON too
";

/// Where everything is; it goes with the mount namespace.
const ROOT: &str = "/run/sampan-bench";
/// Interfaces of a pod in the second comparison.
const WIDTHS: [usize; 4] = [1, 2, 4, 8];

type Result<T> = std::result::Result<T, String>;

/// What the command line asks for.
struct Options {
    rounds: usize,
    plugins: PathBuf,
    reference: PathBuf,
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = options().and_then(|options| match options {
        Some(options) => compare(&options),
        None => {
            print!("{USAGE}");
            Ok(())
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("network: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Option<Options>> {
    let mut options = Options {
        rounds: 100,
        plugins: PathBuf::from(env!("CARGO_BIN_EXE_sampan")).with_file_name("cni-plugins"),
        reference: "/usr/lib/cni".into(),
        json: None,
    };
    // what cargo and nextest pass to any bench
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--rounds" => {
                let text = value()?;
                options.rounds = text.parse().map_err(|_| format!("--rounds {text}"))?;
            }
            "--plugins" => options.plugins = value()?.into(),
            "--reference" => options.reference = value()?.into(),
            "--json" => options.json = Some(value()?.into()),
            "--help" => return Ok(None),
            _ => return Err(format!("{word} is unknown\n\n{USAGE}")),
        }
    }
    Ok(Some(options))
}

/// A contestant's host with an empty pod on it.
struct Host {
    name: &'static str,
    namespace: File,
    cni: Cni,
    pod: PathBuf,
}

impl Host {
    /// The calling thread is in the new namespace afterwards.
    fn make(name: &'static str, plugins: PathBuf) -> Result<Host> {
        let folder = Path::new(ROOT).join(name.replace(' ', "-"));
        unshare(CloneFlags::CLONE_NEWNET).map_err(step("make a network namespace"))?;
        let pod = folder.join("pod");
        netns::create(&pod).map_err(|error| error.to_string())?;
        Ok(Host {
            name,
            namespace: File::open("/proc/thread-self/ns/net").map_err(step("open a namespace"))?,
            cni: Cni {
                conf_dirs: Vec::new(),
                plugin_dirs: vec![plugins],
                state: folder.join("state"),
            },
            pod,
        })
    }

    /// Attaches the pod to `width` networks and takes them away again; how long each took.
    fn round(&self, width: usize) -> Result<[Sample; 2]> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).map_err(step("enter a host"))?;
        let attachments = (0..width).map(attachment).collect::<Result<Vec<_>>>()?;
        let cache = self.cni.state.join("cache");
        let failed = |command: &str, why: &dyn std::fmt::Display| {
            format!("{command} of {width} networks, {}: {why}", self.name)
        };
        let begin = Moment::now();
        add_all(&self.cni, &self.pod, &attachments, &cache).map_err(|why| failed("ADD", &why))?;
        let added = begin.elapsed();
        let begin = Moment::now();
        del_all(&self.cni, Some(&self.pod), &cache).map_err(|errors| failed("DEL", &errors[0]))?;
        Ok([added, begin.elapsed()])
    }
}

/// The networks differ in bridge, subnet and host port alone.
fn attachment(number: usize) -> Result<Attachment> {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": format!("net{number}"),
        "plugins": [
            {
                "type": "bridge", "bridge": format!("br{number}"), "isGateway": true, "ipMasq": true,
                "ipam": {
                    "type": "host-local", "dataDir": format!("{ROOT}/leases"),
                    "ranges": [[{"subnet": format!("10.88.{number}.0/24")}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let source = "benches/network";
    Ok(Attachment {
        network: NetworkList::parse(list.to_string().as_bytes(), source)
            .map_err(|error| error.to_string())?,
        container_id: "bench".into(),
        ifname: format!("eth{number}"),
        ports: vec![PortMapping {
            host_port: 8000 + number as u16,
            container_port: 80,
            protocol: "tcp".into(),
            host_ip: None,
        }],
        ..Attachment::default()
    })
}

/// What something took.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// By the clock.
    pub wall: Duration,
    /// Processor time of this process and of those that it waited for.
    pub cpu: Duration,
}

struct Moment {
    wall: Instant,
    cpu: Duration,
}

impl Moment {
    fn now() -> Moment {
        Moment {
            cpu: cpu(),
            wall: Instant::now(),
        }
    }

    fn elapsed(&self) -> Sample {
        Sample {
            wall: self.wall.elapsed(),
            cpu: cpu().saturating_sub(self.cpu),
        }
    }
}

fn cpu() -> Duration {
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
        .into_iter()
        .filter_map(|who| getrusage(who).ok())
        .flat_map(|usage| [usage.user_time(), usage.system_time()])
        .map(|time| Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec() as u32 * 1000))
        .sum()
}

fn step<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

fn compare(options: &Options) -> Result<()> {
    let links = own_mounts(&options.plugins)?;
    let nothing = Path::new(ROOT).join("nothing");
    let hosts = [
        Host::make("in process", nothing)?,
        Host::make("ours executed", links)?,
        Host::make("reference", options.reference.clone())?,
    ];
    let mut all: Vec<Series> = Vec::new();
    for width in WIDTHS {
        let hosts: Vec<&Host> = hosts
            .iter()
            .filter(|host| width == 1 || host.name != "ours executed")
            .collect();
        // the long ones need no more time than the short one
        all.extend(rounds(&hosts, width, options.rounds.div_ceil(width))?);
    }
    print!("{}", report::text(&all));
    match &options.json {
        Some(path) => fs::write(path, report::json(&all).to_string())
            .map_err(|error| format!("write {}: {error}", path.display())),
        None => Ok(()),
    }
}

fn rounds(hosts: &[&Host], width: usize, rounds: usize) -> Result<Vec<Series>> {
    let series = |command| {
        hosts
            .iter()
            .map(move |host| Series::new(command, width, host.name))
    };
    let mut all: Vec<Series> = series("ADD").chain(series("DEL")).collect();
    // the first round fills the caches
    for round in 0..rounds + 1 {
        for turn in 0..hosts.len() {
            let index = (round + turn) % hosts.len();
            let samples = hosts[index].round(width)?;
            for (command, sample) in samples.into_iter().enumerate().filter(|_| round >= 1) {
                all[command * hosts.len() + index].add(sample);
            }
        }
    }
    Ok(all)
}

/// A mount namespace with [`ROOT`], and where plugins and iptables keep their locks; gives the folder with links to our
/// program.
fn own_mounts(program: &Path) -> Result<PathBuf> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(step("make a mount namespace (as root?)"))?;
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).map_err(step("make the mounts private"))?;
    let program = fs::canonicalize(program).map_err(|error| {
        format!(
            "{}: {error} (cargo build -p cni-plugins)",
            program.display()
        )
    })?;
    for place in ["/run", "/var/lib/cni"] {
        fs::create_dir_all(place).map_err(step("make a folder"))?;
        mount(
            Some("bench"),
            place,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=755"),
        )
        .map_err(step("mount a tmpfs"))?;
    }
    let links = Path::new(ROOT).join("plugins");
    fs::create_dir_all(&links).map_err(step("make a folder"))?;
    for name in ["bridge", "host-local", "portmap"] {
        std::os::unix::fs::symlink(&program, links.join(name)).map_err(step("make a link"))?;
    }
    Ok(links)
}
