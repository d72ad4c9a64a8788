//! Values for the unified hierarchy (cgroup-v2.rst, "Controllers").

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxPids,
    LinuxResources, LinuxThrottleDevice,
};

use std::path::Path;

use super::super::{Error, file};
use super::{Setting, cpu_list, device, invalid, page_size, rdma, set};

/// The kernel's own default, used when a quota comes without a period.
const DEFAULT_PERIOD: u64 = 100_000;

/// What files with two halves of a limit hold, where one half is to be set.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in super::super) struct Present {
    /// `cpu.max`.
    pub cpu: Option<String>,
    /// `memory.max` in bytes, where there is a limit.
    pub memory: Option<i64>,
    /// `memory.swap.max` likewise.
    pub swap: Option<i64>,
}

impl Present {
    /// Looks at a cgroup, as far as `resources` need it.
    pub fn of(path: &Path, resources: &LinuxResources) -> Result<Present, Error> {
        let mut present = Present::default();
        if let Some(cpu) = resources.cpu()
            && cpu.quota().is_some() != cpu.period().is_some()
        {
            present.cpu = file::read_optional(&path.join("cpu.max"))?;
        }
        if let Some(memory) = resources.memory()
            && set(memory.limit()).is_some() != set(memory.swap()).is_some()
        {
            let number = |name| -> Result<Option<i64>, Error> {
                let text = file::read_optional(&path.join(name))?;
                Ok(text.and_then(|text| text.trim().parse().ok()))
            };
            present.memory = number("memory.max")?;
            present.swap = number("memory.swap.max")?;
        }
        Ok(present)
    }
}

/// Settings for a v2 cgroup.
pub(in super::super) fn v2(
    resources: &LinuxResources,
    present: &Present,
) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        settings.extend(memory_settings(memory, present)?);
    }
    if let Some(cpu) = resources.cpu() {
        settings.extend(cpu_settings(cpu, present.cpu.as_deref())?);
    }
    if let Some(pids) = resources.pids() {
        settings.push(pids_setting(pids));
    }
    if let Some(block_io) = resources.block_io() {
        settings.extend(io_settings(block_io)?);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        settings.extend(hugetlb_settings(limit)?);
    }
    if let Some(network) = resources.network() {
        refuse_network(network)?;
    }
    if let Some(devices) = resources.rdma() {
        settings.extend(rdma(devices)?);
    }
    // last: it may override what was derived (config-linux.md, "Unified")
    settings.extend(unified(resources)?);
    Ok(settings)
}

fn max_or(limit: i64) -> String {
    if limit < 0 {
        "max".to_owned()
    } else {
        limit.to_string()
    }
}

fn unsupported(field: &str) -> Error {
    invalid(field, "cgroup v2 has no such limit; leave it out")
}

fn memory_settings(memory: &LinuxMemory, present: &Present) -> Result<Vec<Setting>, Error> {
    if memory.swappiness().is_some() {
        return Err(unsupported("memory.swappiness"));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(unsupported("memory.disableOOMKiller"));
    }
    let mut settings = Vec::new();
    if let Some(swap) = swap(memory, present)? {
        let setting = Setting::new("memory.swap.max", max_or(swap));
        // a kernel without swap accounting has no swap to limit for this cgroup
        settings.push(if swap <= 0 {
            setting.or_ignored()
        } else {
            setting
        });
    }
    if let Some(limit) = set(memory.limit()) {
        settings.push(Setting::new("memory.max", max_or(limit)));
    }
    if let Some(reservation) = set(memory.reservation()) {
        settings.push(Setting::new("memory.low", max_or(reservation)));
    }
    Ok(settings)
}

/// memory.swap.max counts swap alone, OCI's `swap` is memory and swap together: the half that is not set stays what it is `present`.
/// `None`: leave it.
fn swap(memory: &LinuxMemory, present: &Present) -> Result<Option<i64>, Error> {
    let limit = set(memory.limit()).or(present.memory).unwrap_or(0);
    let sum = match (limit, present.memory, present.swap) {
        (1.., Some(memory), Some(swap)) => Some(memory.saturating_add(swap)),
        _ => None,
    };
    match set(memory.swap()).or(sum).unwrap_or(0) {
        0 if limit == -1 => Ok(Some(-1)),
        0 => Ok(None),
        swap if swap < 0 => Ok(Some(-1)),
        _ if limit <= 0 => Err(invalid(
            "memory.swap",
            "is memory and swap together: it needs memory.limit",
        )),
        swap if swap < limit => Err(invalid(
            "memory.swap",
            format!("{swap} is below memory.limit {limit}, and includes it"),
        )),
        swap => Ok(Some(swap - limit)),
    }
}

fn cpu_settings(cpu: &LinuxCpu, cpu_max: Option<&str>) -> Result<Vec<Setting>, Error> {
    if set(cpu.realtime_runtime()).is_some() {
        return Err(unsupported("cpu.realtimeRuntime"));
    }
    if set(cpu.realtime_period()).is_some() {
        return Err(unsupported("cpu.realtimePeriod"));
    }
    let mut settings = Vec::new();
    if let Some(idle) = cpu.idle() {
        settings.push(Setting::new("cpu.idle", idle));
    }
    // an idle group has no weight: writing one is EINVAL
    if let Some(shares) = set(cpu.shares())
        && cpu.idle() != Some(1)
    {
        settings.push(Setting::new("cpu.weight", weight_of_shares(shares)));
    }
    let (quota, period) = (set(cpu.quota()), set(cpu.period()));
    if quota.is_some() || period.is_some() {
        let mut present = cpu_max.unwrap_or_default().split_whitespace();
        let present_quota = present.next().unwrap_or("max");
        let present_period = present.next().and_then(|text| text.parse().ok());
        let quota = quota.map_or(present_quota.to_owned(), max_or);
        let period = period.or(present_period).unwrap_or(DEFAULT_PERIOD);
        settings.push(Setting::new("cpu.max", format!("{quota} {period}")));
    }
    if let Some(burst) = cpu.burst() {
        let setting = Setting::new("cpu.max.burst", burst);
        settings.push(if burst == 0 {
            setting.or_ignored()
        } else {
            setting
        });
    }
    for (name, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            let list = cpu_list(&format!("cpu.{name}"), list)?;
            settings.push(Setting::new(format!("cpuset.{name}"), list));
        }
    }
    Ok(settings)
}

/// Shares 2…262144 (default 1024) → weight 1…10000 (default 100): ⌈10^((l² + 125·l)/612 − 7/34)⌉ with
/// l = log2(shares), the parabola through the three fixed points that runc 1.3.2 and crun 1.23 use. The
/// linear map before it gave a container with the default shares a weight of 39.
fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        // exact: floating point gives 100.00000000000004 on some machines, and that would be 101
        1024 => 100,
        shares => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

fn pids_setting(pids: &LinuxPids) -> Setting {
    let limit = pids.limit();
    Setting::new("pids.max", max_or(if limit == 0 { -1 } else { limit }))
}

fn io_settings(block_io: &LinuxBlockIo) -> Result<Vec<Setting>, Error> {
    if set(block_io.leaf_weight()).is_some() {
        return Err(unsupported("blockIO.leafWeight"));
    }
    let mut settings = Vec::new();
    if let Some(weight) = set(block_io.weight()) {
        let converted = format!("default {}", io_weight(weight)?);
        settings.push(Setting::new("io.bfq.weight", weight).or("io.weight", converted));
    }
    for entry in block_io.weight_device().iter().flatten() {
        if set(entry.leaf_weight()).is_some() {
            return Err(unsupported("blockIO.weightDevice.leafWeight"));
        }
        if let Some(weight) = set(entry.weight()) {
            let numbers = device("blockIO.weightDevice", entry.major(), entry.minor())?;
            let converted = format!("{numbers} {}", io_weight(weight)?);
            settings.push(
                Setting::new("io.bfq.weight", format!("{numbers} {weight}"))
                    .or("io.weight", converted),
            );
        }
    }
    for (key, list) in [
        ("rbps", block_io.throttle_read_bps_device()),
        ("wbps", block_io.throttle_write_bps_device()),
        ("riops", block_io.throttle_read_iops_device()),
        ("wiops", block_io.throttle_write_iops_device()),
    ] {
        for entry in list.iter().flatten() {
            settings.push(Setting::new("io.max", throttle(key, entry)?));
        }
    }
    Ok(settings)
}

/// blkio's 10…1000 → io.weight's 1…10000.
fn io_weight(weight: u16) -> Result<u64, Error> {
    if !(10..=1000).contains(&weight) {
        return Err(invalid(
            "blockIO.weight",
            format!("{weight} is outside 10..=1000"),
        ));
    }
    Ok(1 + (u64::from(weight) - 10) * 9999 / 990)
}

fn throttle(key: &str, entry: &LinuxThrottleDevice) -> Result<String, Error> {
    let numbers = device("blockIO.throttle", entry.major(), entry.minor())?;
    // zero lifts the limit, as it does on v1
    let rate = match entry.rate() {
        0 => "max".to_owned(),
        rate => rate.to_string(),
    };
    Ok(format!("{numbers} {key}={rate}"))
}

fn hugetlb_settings(limit: &LinuxHugepageLimit) -> Result<[Setting; 2], Error> {
    let size = page_size(limit)?;
    let value = max_or(limit.limit());
    Ok([
        Setting::new(format!("hugetlb.{size}.max"), &value),
        // reservations too, or mmap succeeds and the first touch is SIGBUS; since Linux 5.7
        Setting::new(format!("hugetlb.{size}.rsvd.max"), &value).or_ignored(),
    ])
}

fn refuse_network(network: &LinuxNetwork) -> Result<(), Error> {
    if set(network.class_id()).is_some() {
        return Err(unsupported("network.classID"));
    }
    if network
        .priorities()
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        return Err(unsupported("network.priorities"));
    }
    Ok(())
}

fn unified(resources: &LinuxResources) -> Result<Vec<Setting>, Error> {
    let mut entries: Vec<_> = resources.unified().iter().flatten().collect();
    entries.sort();
    let mut settings = Vec::new();
    for (file, value) in entries {
        let plain = file
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain || !file.contains('.') || file.starts_with('.') {
            return Err(invalid(
                "unified",
                format!("{file:?} is not a cgroup file name"),
            ));
        }
        // nested-keyed files such as io.max take one line per write
        for line in value.lines() {
            settings.push(Setting::new(file.as_str(), line));
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::super::Absent;
    use super::*;

    fn run(json: &str) -> Result<Vec<Setting>, Error> {
        v2(&serde_json::from_str(json).unwrap(), &Present::default())
    }

    /// `file=value`, with `?` for one that may be absent and `|file=value` for its substitute.
    fn lines(settings: &[Setting]) -> Vec<String> {
        settings
            .iter()
            .map(|s| match &s.absent {
                Absent::Error => format!("{}={}", s.file, s.value),
                Absent::Ignore => format!("{}={}?", s.file, s.value),
                Absent::Instead(file, value) => format!("{}={}|{file}={value}", s.file, s.value),
            })
            .collect()
    }

    #[test]
    fn values() {
        let table: &[(&str, &[&str])] = &[
            ("{}", &[]),
            (r#"{"memory":{"limit":1048576}}"#, &["memory.max=1048576"]),
            (
                r#"{"memory":{"limit":-1}}"#,
                &["memory.swap.max=max?", "memory.max=max"],
            ),
            (r#"{"memory":{"limit":0,"swap":0,"reservation":0}}"#, &[]),
            (
                r#"{"memory":{"limit":100,"swap":150,"reservation":50}}"#,
                &["memory.swap.max=50", "memory.max=100", "memory.low=50"],
            ),
            (
                r#"{"memory":{"limit":100,"swap":100}}"#,
                &["memory.swap.max=0?", "memory.max=100"],
            ),
            (
                r#"{"memory":{"limit":100,"swap":-1}}"#,
                &["memory.swap.max=max?", "memory.max=100"],
            ),
            (
                r#"{"memory":{"disableOOMKiller":false,"kernel":100,"useHierarchy":true}}"#,
                &[],
            ),
            (r#"{"cpu":{"shares":1024}}"#, &["cpu.weight=100"]),
            (r#"{"cpu":{"shares":0,"quota":0,"period":0}}"#, &[]),
            (r#"{"cpu":{"shares":512,"idle":1}}"#, &["cpu.idle=1"]),
            (
                r#"{"cpu":{"shares":2,"idle":0}}"#,
                &["cpu.idle=0", "cpu.weight=1"],
            ),
            (r#"{"cpu":{"quota":50000}}"#, &["cpu.max=50000 100000"]),
            (
                r#"{"cpu":{"quota":50000,"period":20000,"burst":1000}}"#,
                &["cpu.max=50000 20000", "cpu.max.burst=1000"],
            ),
            (r#"{"cpu":{"quota":-1}}"#, &["cpu.max=max 100000"]),
            (r#"{"cpu":{"period":20000}}"#, &["cpu.max=max 20000"]),
            (
                r#"{"cpu":{"cpus":"0-1","mems":"0"}}"#,
                &["cpuset.cpus=0-1", "cpuset.mems=0"],
            ),
            (r#"{"pids":{"limit":64}}"#, &["pids.max=64"]),
            (r#"{"pids":{"limit":0}}"#, &["pids.max=max"]),
            (r#"{"pids":{"limit":-1}}"#, &["pids.max=max"]),
            (
                r#"{"blockIO":{"weight":500}}"#,
                &["io.bfq.weight=500|io.weight=default 4950"],
            ),
            (
                r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":10}]}}"#,
                &["io.bfq.weight=8:0 10|io.weight=8:0 1"],
            ),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}],"throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#,
                &["io.max=8:0 rbps=1000", "io.max=8:16 wiops=max"],
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
                &["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304?"],
            ),
            (
                r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":9}}}"#,
                &["rdma.max=mlx5_1 hca_handle=3 hca_object=9"],
            ),
            (
                r#"{"unified":{"memory.high":"100","io.max":"8:0 rbps=1\n8:16 rbps=2"}}"#,
                &["io.max=8:0 rbps=1", "io.max=8:16 rbps=2", "memory.high=100"],
            ),
        ];
        for (json, expected) in table {
            assert_eq!(lines(&run(json).unwrap()), *expected, "{json}");
        }
    }

    #[test]
    fn update_of_one_half_of_cpu_max() {
        for (json, present, expected) in [
            (
                r#"{"cpu":{"period":20000}}"#,
                "50000 100000",
                "cpu.max=50000 20000",
            ),
            (
                r#"{"cpu":{"quota":7000}}"#,
                "max 20000",
                "cpu.max=7000 20000",
            ),
            (r#"{"cpu":{"quota":7000}}"#, "", "cpu.max=7000 100000"),
        ] {
            let present = Present {
                cpu: Some(present.to_owned()),
                ..Present::default()
            };
            let resources = serde_json::from_str(json).unwrap();
            assert_eq!(lines(&v2(&resources, &present).unwrap()), [expected]);
        }
    }

    /// The sum of memory and swap stays when one of them changes.
    #[test]
    fn update_of_one_half_of_memory_and_swap() {
        let present = Present {
            memory: Some(100),
            swap: Some(100),
            ..Present::default()
        };
        let run = |json| v2(&serde_json::from_str(json).unwrap(), &present);
        for (json, expected) in [
            (
                r#"{"memory":{"limit":150}}"#,
                &["memory.swap.max=50", "memory.max=150"][..],
            ),
            (
                r#"{"memory":{"limit":200}}"#,
                &["memory.swap.max=0?", "memory.max=200"],
            ),
            (
                r#"{"memory":{"limit":-1}}"#,
                &["memory.swap.max=max?", "memory.max=max"],
            ),
            (r#"{"memory":{"swap":300}}"#, &["memory.swap.max=200"]),
            (
                r#"{"memory":{"limit":0,"swap":-1}}"#,
                &["memory.swap.max=max?"],
            ),
            (
                r#"{"memory":{"limit":50,"swap":60}}"#,
                &["memory.swap.max=10", "memory.max=50"],
            ),
        ] {
            assert_eq!(lines(&run(json).unwrap()), expected, "{json}");
        }
        // without a limit of swap there is no sum
        let open = Present {
            memory: Some(100),
            ..Present::default()
        };
        let resources = serde_json::from_str(r#"{"memory":{"limit":150}}"#).unwrap();
        assert_eq!(lines(&v2(&resources, &open).unwrap()), ["memory.max=150"]);
        let resources = serde_json::from_str(r#"{"memory":{"swap":150}}"#).unwrap();
        assert_eq!(
            lines(&v2(&resources, &open).unwrap()),
            ["memory.swap.max=50"]
        );
        for json in [r#"{"memory":{"limit":201}}"#, r#"{"memory":{"swap":99}}"#] {
            let error = run(json).unwrap_err().to_string();
            assert!(error.contains("memory.swap"), "{error}");
        }
    }

    #[test]
    fn refusals_name_the_field() {
        for (json, field) in [
            (r#"{"memory":{"swap":100}}"#, "memory.swap"),
            (r#"{"memory":{"limit":100,"swap":50}}"#, "memory.swap"),
            (r#"{"memory":{"limit":-1,"swap":50}}"#, "memory.swap"),
            (r#"{"memory":{"swappiness":60}}"#, "memory.swappiness"),
            (
                r#"{"memory":{"disableOOMKiller":true}}"#,
                "memory.disableOOMKiller",
            ),
            (r#"{"cpu":{"realtimeRuntime":100}}"#, "cpu.realtimeRuntime"),
            (r#"{"cpu":{"cpus":"0\n1"}}"#, "cpu.cpus"),
            (r#"{"blockIO":{"weight":5}}"#, "blockIO.weight"),
            (r#"{"blockIO":{"leafWeight":50}}"#, "blockIO.leafWeight"),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":-1,"minor":0,"rate":1}]}}"#,
                "blockIO.throttle",
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#,
                "hugepageLimits.pageSize",
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"MB","limit":1}]}"#,
                "hugepageLimits.pageSize",
            ),
            (r#"{"network":{"classID":1048577}}"#, "network.classID"),
            (r#"{"rdma":{"a b":{}}}"#, "rdma"),
            (r#"{"unified":{"../memory.max":"1"}}"#, "unified"),
            (r#"{"unified":{"memory":"1"}}"#, "unified"),
        ] {
            match run(json) {
                Err(Error::Invalid { field: named, .. }) => assert_eq!(named, field, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }

    #[test]
    fn weights() {
        for (shares, weight) in [
            (0, 1),
            (2, 1),
            (3, 2),
            (256, 35),
            (512, 59),
            (1024, 100),
            (2000, 170),
            (4096, 303),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        let mut last = 0;
        for shares in 2..=262_144 {
            let weight = weight_of_shares(shares);
            assert!(weight >= last && (1..=10_000).contains(&weight), "{shares}");
            last = weight;
        }
    }

    #[test]
    fn controllers_are_named() {
        let settings = run(r#"{"unified":{"cgroup.max.depth":"3"},"hugepageLimits":[{"pageSize":"1GB","limit":1}]}"#).unwrap();
        let names: Vec<_> = settings.iter().map(|s| s.controller.as_str()).collect();
        assert_eq!(names, ["hugetlb", "hugetlb", "cgroup"]);
    }
}
