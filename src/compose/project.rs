//! The typed result of loading: what a pod is made of, every default applied, every path absolute.
//!
//! It serialises to the form that `sampan config --format json` prints and that a pod keeps in its folder.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use super::check::{Check, CheckKind, CheckTest, HEALTHCHECK, HttpTest, TcpTest, loopback};

/// Where a value stands in the user's files, for messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// File as the user named it.
    pub file: String,
    /// Line, counted from 1; 0 when there is none.
    pub line: usize,
}

impl std::fmt::Display for Origin {
    /// `FILE:LINE`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// A compose project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Project {
    /// Project name: `[a-z0-9][a-z0-9_-]*`.
    pub name: String,
    /// Folder that relative paths were resolved against.
    pub working_dir: PathBuf,
    /// Files it was loaded from, in merge order, absolute.
    pub files: Vec<PathBuf>,
    /// Services by name; only those enabled by the profiles.
    pub services: BTreeMap<String, Service>,
    /// Networks that at least one service uses, in the order of attachment to the pod (file order of `networks:`;
    /// `default` where a service names none and has no `network_mode`).
    pub networks: Vec<Network>,
    /// Named volumes that are used, by key.
    pub volumes: BTreeMap<String, Volume>,
    /// `x-sampan` at the top.
    pub pod: PodOptions,
}

/// `x-sampan:` on the project: what compose has no word for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodOptions {
    /// `limits:` — holds for the sum of all services.
    pub limits: Limits,
    /// `hooks:` — programs of the host that take part in the pod's life, in order; those of a folder of hooks first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// `logs:` — files for the output of all services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogSink>,
}

/// An entry of `x-sampan.logs`: files that get output line by line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSink {
    /// Where it is written.
    pub origin: Origin,
    /// File for standard output.
    pub stdout: Option<LogFile>,
    /// File for standard error; it may be the same.
    pub stderr: Option<LogFile>,
    /// What a line looks like.
    pub format: LogFormat,
    /// Labels of the service that [`LogFormat::Json`] gives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Bytes of one file; `None`: without bound.
    pub max_size: Option<u64>,
    /// Files, the one that is written included.
    pub max_file: u32,
}

/// A file that gets output.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogFile {
    /// An absolute path that is trusted.
    pub folder: PathBuf,
    /// What is below, where no link is followed.
    pub name: PathBuf,
}

impl LogFile {
    /// The whole path.
    pub fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }
}

/// What a line of a [`LogSink`] looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// As it was printed.
    Raw,
    /// With the service in front where several share the file.
    Text,
    /// An object.
    Json,
}

/// A hook of a pod: a program of the host at one point of the pod's life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    /// Where it is written.
    pub origin: Origin,
    /// What messages call it; unique among the hooks at one point.
    pub name: String,
    /// When it runs.
    pub at: HookPoint,
    /// Program and arguments; a program with a slash in its name is an absolute path, else it is looked for in `PATH`.
    pub command: Vec<String>,
    /// Longest time it may take; then it is killed with what it started, and has failed.
    pub timeout: Duration,
    /// What follows when it fails; [`OnFailure::Note`] where [`HookPoint::can_fail`] is false.
    pub on_failure: OnFailure,
    /// Its environment, beside the few variables that every hook has.
    pub env: BTreeMap<String, String>,
}

/// A point in the life of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookPoint {
    /// Before anything is made; may change the project.
    BeforeLaunch,
    /// All wanted services have started.
    AfterStart,
    /// All are ready for the first time.
    AfterReady,
    /// The pod is to stop; no service has been asked to yet.
    BeforeKill,
    /// Nothing of the pod runs any more.
    AfterStop,
    /// The pod failed.
    OnFailure,
}

impl HookPoint {
    /// All of them, in the order of a life.
    pub const ALL: [HookPoint; 6] = [
        HookPoint::BeforeLaunch,
        HookPoint::AfterStart,
        HookPoint::AfterReady,
        HookPoint::BeforeKill,
        HookPoint::OnFailure,
        HookPoint::AfterStop,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            HookPoint::BeforeLaunch => "before-launch",
            HookPoint::AfterStart => "after-start",
            HookPoint::AfterReady => "after-ready",
            HookPoint::BeforeKill => "before-kill",
            HookPoint::AfterStop => "after-stop",
            HookPoint::OnFailure => "on-failure",
        }
    }

    /// A hook at this point may fail the pod; at the others it has ended, or is about to.
    pub fn can_fail(self) -> bool {
        matches!(
            self,
            HookPoint::BeforeLaunch | HookPoint::AfterStart | HookPoint::AfterReady
        )
    }
}

/// What follows when a hook fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The pod fails, and is stopped when it runs already.
    Fail,
    /// It is told, and the pod goes on.
    Note,
}

/// An entry of a service's `post_start` or `pre_stop`: a program that runs inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifecycleHook {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `user[:group]` instead of the service's.
    pub user: Option<String>,
    /// With all capabilities.
    pub privileged: bool,
    /// Absolute path in the container instead of the service's.
    pub working_dir: Option<String>,
    /// Over the service's own.
    pub environment: BTreeMap<String, String>,
}

/// Resource limits; `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// CPUs' worth of time (`cpus`, `deploy.resources.limits.cpus`).
    pub cpus: Option<f64>,
    /// Relative weight as Docker's `cpu_shares` (2..=262144).
    pub cpu_shares: Option<u64>,
    /// CPU list such as `0-1,3`.
    pub cpuset: Option<String>,
    /// Bytes (`mem_limit`, `deploy.resources.limits.memory`).
    pub memory: Option<u64>,
    /// Bytes kept for the cgroup when memory is short (`mem_reservation`, `deploy.resources.reservations.memory`).
    pub memory_reservation: Option<u64>,
    /// Bytes of memory plus swap (`memswap_limit`); -1 unlimited.
    pub memory_swap: Option<i64>,
    /// Number of tasks (`pids_limit`, `deploy.resources.limits.pids`).
    pub pids: Option<i64>,
    /// `blkio_config`.
    pub blkio: Option<Blkio>,
}

/// `blkio_config`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Blkio {
    /// 10..=1000.
    pub weight: Option<u16>,
    /// Bytes per second by device path.
    pub read_bps: Vec<(PathBuf, u64)>,
    /// Bytes per second by device path.
    pub write_bps: Vec<(PathBuf, u64)>,
    /// Operations per second by device path.
    pub read_iops: Vec<(PathBuf, u64)>,
    /// Operations per second by device path.
    pub write_iops: Vec<(PathBuf, u64)>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Key below `services:`.
    pub name: String,
    /// Where the service begins.
    pub origin: Origin,
    /// Image reference as written; empty where `rootfs` stands instead of an image.
    pub image: String,
    /// `x-sampan.rootfs`: a folder of the host that is the root file system as it is, read-only with all mounts below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<PathBuf>,
    /// `pull_policy`.
    pub pull_policy: PullPolicy,
    /// Replaces the image's entrypoint; `Some([])` clears it. The short form was split as a shell would.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub command: Option<Vec<String>>,
    /// `x-sampan.arguments`: given to the image's program, its entrypoint or else the first word of its command, as with Mesos.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Vec<String>>,
    /// `env_file` then `environment`, interpolated; a key without value that the surroundings lack is absent.
    pub environment: BTreeMap<String, String>,
    /// Absolute path in the container.
    pub working_dir: Option<String>,
    /// `x-sampan.default_working_dir`: where neither the service nor its image names one; absolute path in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_working_dir: Option<String>,
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// `group_add`, names or numbers.
    pub group_add: Vec<String>,
    /// `hostname`.
    pub hostname: Option<String>,
    /// `domainname`.
    pub domainname: Option<String>,
    /// `container_name`.
    pub container_name: Option<String>,
    /// What must be so before this one starts, by service name.
    pub depends_on: BTreeMap<String, Dependency>,
    /// `None`: the image's own counts; `Some(Healthcheck::disabled)`: none.
    pub healthcheck: Option<Healthcheck>,
    /// `x-sampan.checks`: further ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// Published ports, ranges expanded.
    pub ports: Vec<Port>,
    /// Exposed ports (`80`, `80/udp`).
    pub expose: Vec<String>,
    /// Networks by key with this service's settings.
    pub networks: BTreeMap<String, ServiceNetwork>,
    /// Names that other services may use for this one (`links`, aliases are in `networks`).
    pub extra_hosts: Vec<(String, String)>,
    /// `dns`.
    pub dns: Vec<String>,
    /// `dns_search`.
    pub dns_search: Vec<String>,
    /// `dns_opt`.
    pub dns_opt: Vec<String>,
    /// Mounts in order.
    pub volumes: Vec<Mount>,
    /// `volumes_from`: services whose volumes it has, too, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes_from: Vec<VolumesFrom>,
    /// `restart`.
    pub restart: Restart,
    /// Signal name or number as written (`SIGTERM`).
    pub stop_signal: Option<String>,
    /// `stop_grace_period`; 10 s when not given.
    pub stop_grace_period: Duration,
    /// Names as written, `CAP_` optional, `ALL` possible.
    pub cap_add: Vec<String>,
    /// As `cap_add`.
    pub cap_drop: Vec<String>,
    /// `x-sampan.ambient`: capabilities that the program has whoever its user is; names as in `cap_add`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ambient: Vec<String>,
    /// `pid: host`: the processes of the caller are seen, and no pid namespace is made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_pid: bool,
    /// `ipc: host`: the caller's System V objects, message queues and `/dev/shm`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_ipc: bool,
    /// `x-sampan.address_variable`: the variable that tells the program the pod's first address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_variable: Option<String>,
    /// `privileged`.
    pub privileged: bool,
    /// `security_opt`, as written; only those understood pass validation.
    pub security_opt: Vec<String>,
    /// `read_only`.
    pub read_only: bool,
    /// `init`: run a small PID 1 that reaps.
    pub init: bool,
    /// `tty`.
    pub tty: bool,
    /// `stdin_open`.
    pub stdin_open: bool,
    /// Resource limits by name (`nofile`): soft, hard; -1 unlimited.
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// `sysctls`.
    pub sysctls: BTreeMap<String, String>,
    /// `labels`.
    pub labels: BTreeMap<String, String>,
    /// `devices`: host path, container path, cgroup permissions.
    pub devices: Vec<(PathBuf, PathBuf, String)>,
    /// `shm_size` in bytes.
    pub shm_size: Option<u64>,
    /// `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// Limits of the service's own cgroup.
    pub limits: Limits,
    /// `logging`; `None`: as who starts the pod has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    /// `x-sampan.logs`: files for its output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogSink>,
    /// `profiles`.
    pub profiles: Vec<String>,
    /// `post_start`, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post_start: Vec<LifecycleHook>,
    /// `pre_stop`, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pre_stop: Vec<LifecycleHook>,
}

/// `logging`: what is kept of a service's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Logging {
    /// Driver `none`: nothing.
    None,
    /// Drivers `json-file` and `local`.
    Kept {
        /// Bytes of one file of one stream; `None`: without bound, in one file.
        max_size: Option<u64>,
        /// Files of one stream, the one that is written included.
        max_file: u32,
    },
}

/// `pull_policy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Pull when the store does not have it.
    #[default]
    Missing,
    /// Pull every time.
    Always,
    /// Never pull.
    Never,
}

/// One entry of `depends_on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// What must hold.
    pub condition: Condition,
    /// `required`: false lets a missing or failing dependency pass.
    pub required: bool,
    /// `restart`: restart this service after the dependency was restarted.
    pub restart: bool,
}

/// `depends_on.*.condition`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Its process runs.
    ServiceStarted,
    /// Its health check passed.
    ServiceHealthy,
    /// It is ready: its readiness checks pass. Ours, compose has no such word.
    ServiceReady,
    /// It ended with 0.
    ServiceCompletedSuccessfully,
}

/// `healthcheck`; times default as in Docker (30 s, 30 s, 0 s, 5 s, 3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// `disable: true` or `test: ["NONE"]`.
    pub disabled: bool,
    /// What to run; `None` takes the image's.
    pub test: Option<HealthTest>,
    /// Time between the end of one probe and the start of the next.
    pub interval: Option<Duration>,
    /// Longest time a probe may take.
    pub timeout: Option<Duration>,
    /// Failures in this first time do not count.
    pub start_period: Option<Duration>,
    /// Interval while the start period lasts.
    pub start_interval: Option<Duration>,
    /// Failures in a row that make it unhealthy.
    pub retries: Option<u32>,
}

/// `healthcheck.test`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthTest {
    /// `["CMD", …]`.
    Exec(Vec<String>),
    /// `["CMD-SHELL", text]` or a plain string, run by the container's `/bin/sh -c`.
    Shell(String),
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Where it is written.
    pub origin: Origin,
    /// Address on the host; `None` is every address.
    pub host_ip: Option<std::net::IpAddr>,
    /// Port on the host; `None` lets Sampan choose one.
    pub published: Option<u16>,
    /// Last port of a range on the host, of which the first free one is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_end: Option<u16>,
    /// Port in the pod.
    pub target: u16,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// `x-sampan.network`: key of the network that publishes it; `None`: the best one that can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// `networks.*` of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceNetwork {
    /// Further names of this service.
    pub aliases: Vec<String>,
    /// Fixed address.
    pub ipv4_address: Option<std::net::Ipv4Addr>,
    /// Fixed address.
    pub ipv6_address: Option<std::net::Ipv6Addr>,
    /// Fixed link address.
    pub mac_address: Option<String>,
    /// Name inside the pod.
    pub interface_name: Option<String>,
    /// Highest one has the default route.
    pub gw_priority: Option<i64>,
    /// Further addresses of link-local scope.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub link_local_ips: Vec<std::net::IpAddr>,
    /// Settings below `/proc/sys/net` with `IFNAME` for the interface
    /// (`driver_opts: com.docker.network.endpoint.sysctls`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
}

/// A network of the project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Key below `networks:`.
    pub key: String,
    /// Where it is written.
    pub origin: Origin,
    /// `name:`, or `<project>_<key>`; for an external one the name of the CNI network list.
    pub name: String,
    /// `external: true`.
    pub external: bool,
    /// `driver`, default `bridge`.
    pub driver: String,
    /// `driver_opts`.
    pub driver_opts: BTreeMap<String, String>,
    /// `internal`: no default route, nothing masqueraded.
    pub internal: bool,
    /// `enable_ipv4`.
    pub enable_ipv4: bool,
    /// `enable_ipv6`.
    pub enable_ipv6: bool,
    /// `ipam.driver`; `None`: host-local where there are subnets.
    pub ipam_driver: Option<String>,
    /// `ipam.options`: keys of the address plugin's configuration.
    pub ipam_options: BTreeMap<String, String>,
    /// `ipam.config`.
    pub ipam: Vec<IpamPool>,
    /// `x-sampan`.
    pub extra: NetworkExtra,
    /// `labels`.
    pub labels: BTreeMap<String, String>,
    /// The pod's settings on it: merged over the services that name it (a contradiction is an error).
    pub attachment: ServiceNetwork,
}

/// Driver of a pod without interfaces.
pub const NO_NETWORK: &str = "none";
/// Driver of a pod in the host's own network namespace.
pub const HOST_NETWORK: &str = "host";

impl Project {
    /// The pod's services use the host's interfaces.
    pub fn on_host(&self) -> bool {
        self.networks.iter().any(|n| n.driver == HOST_NETWORK)
    }
}

/// `networks.*.x-sampan`: what compose has no word for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkExtra {
    /// `default: true`: the default route leads here, whatever `gw_priority` says.
    pub default: bool,
    /// `routes`.
    pub routes: Vec<Route>,
    /// `config`: keys of the plugin's configuration, over those that are generated.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// `plugins`: configurations of further plugins, run after the network's own.
    pub plugins: Vec<serde_json::Value>,
    /// `groups`: names that plugins which know Mesos' message `NetworkInfo` are told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// `labels`: the pod's on this network, which plugins are told.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `cni_args`: pairs of `CNI_ARGS`, over those that name the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cni_args: BTreeMap<String, String>,
    /// `capabilities`: what plugins that declare it are handed (`bandwidth`, `deviceID`, …).
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub capabilities: serde_json::Map<String, serde_json::Value>,
}

/// A route of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: ipnet::IpNet,
    /// By which gateway; the network's own when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gw: Option<std::net::IpAddr>,
}

/// One entry of `ipam.config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamPool {
    /// Subnet.
    pub subnet: ipnet::IpNet,
    /// Part of the subnet that addresses are taken from.
    pub ip_range: Option<ipnet::IpNet>,
    /// Gateway; the first address of the subnet when not given.
    pub gateway: Option<std::net::IpAddr>,
    /// `aux_addresses`: other hosts', never given to a pod.
    #[serde(default)]
    pub aux_addresses: BTreeMap<String, std::net::IpAddr>,
}

/// A named volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// Key below `volumes:`.
    pub key: String,
    /// `name:`, or `<project>_<key>`.
    pub name: String,
    /// Must exist already, is never removed.
    pub external: bool,
    /// `labels`.
    pub labels: BTreeMap<String, String>,
}

/// One mount of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is written.
    pub origin: Origin,
    /// Absolute path in the container.
    pub target: String,
    /// What is mounted.
    pub source: MountSource,
    /// `ro`.
    pub read_only: bool,
}

/// An entry of `volumes_from`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumesFrom {
    /// The service; it is in `depends_on`, too.
    pub service: String,
    /// Whatever they are there, here they may only be read.
    pub read_only: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A folder or file of the host.
    Bind {
        /// Absolute path.
        path: PathBuf,
        /// Make a folder when it is missing (short syntax, `create_host_path`).
        create: bool,
        /// `rprivate`, `rshared`, `rslave`, … as written.
        propagation: Option<String>,
        /// Recursive bind (`recursive: disabled` turns it off).
        recursive: bool,
    },
    /// A volume by its key in [`Project::volumes`].
    Volume {
        /// Key.
        key: String,
        /// `nocopy`: do not fill a new volume from the image.
        nocopy: bool,
        /// `subpath`.
        subpath: Option<String>,
    },
    /// A volume without a name, made for this container and removed with it.
    Anonymous,
    /// A file with this content, written into the pod's own folder (`configs`, `secrets`).
    File {
        /// What is in it; in the records as base64.
        #[serde(with = "super::contents::base64")]
        content: Vec<u8>,
        /// Owner; `None`: the service's user.
        uid: Option<u32>,
        /// Group; `None`: that of the service's user.
        gid: Option<u32>,
        /// Permission bits.
        mode: u32,
    },
    /// Memory.
    Tmpfs {
        /// Bytes.
        size: Option<u64>,
        /// Permission bits.
        mode: Option<u32>,
        /// Further options as written (`uid=…`).
        options: Vec<String>,
    },
}

/// `restart`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// Whatever the exit code.
    Always,
    /// As `Always`, unless a person stopped it.
    UnlessStopped,
    /// When the exit code is not 0, at most so often.
    OnFailure {
        /// `None`: without end.
        max: Option<u32>,
    },
}
