//! Values for version 1 hierarchies (Documentation/admin-guide/cgroup-v1).

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxResources,
};

use super::super::Error;
use super::{Setting, cpu_list, device, invalid, page_size, rdma, set};

/// Settings for the controllers of a v1 cgroup.
pub(in super::super) fn v1(resources: &LinuxResources) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        settings.extend(memory_settings(memory)?);
    }
    if let Some(cpu) = resources.cpu() {
        settings.extend(cpu_settings(cpu)?);
    }
    if let Some(pids) = resources.pids() {
        let limit = match pids.limit() {
            limit if limit > 0 => limit.to_string(),
            _ => "max".to_owned(),
        };
        settings.push(Setting::new("pids.max", limit));
    }
    if let Some(block_io) = resources.block_io() {
        settings.extend(blkio_settings(block_io)?);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        settings.extend(hugetlb_settings(limit)?);
    }
    if let Some(network) = resources.network() {
        settings.extend(network_settings(network)?);
    }
    if let Some(devices) = resources.rdma() {
        settings.extend(rdma(devices)?);
    }
    if resources
        .unified()
        .as_ref()
        .is_some_and(|entries| !entries.is_empty())
    {
        return Err(invalid(
            "unified",
            "invalid configuration, this host has cgroup v1: use the fields for it",
        ));
    }
    Ok(settings)
}

fn memory_settings(memory: &LinuxMemory) -> Result<Vec<Setting>, Error> {
    let (limit, mut swap) = (set(memory.limit()), set(memory.swap()));
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap > 0
        && swap < limit
    {
        let why = format!("{swap} is below memory.limit {limit}, and includes it");
        return Err(invalid("memory.swap", why));
    }
    // memory without limit but swap with one can't be: memsw >= limit always holds
    let unlimited = limit.is_some_and(|limit| limit < 0);
    if unlimited && swap.is_none() {
        swap = Some(-1);
    }
    let mut settings = Vec::new();
    if let Some(limit) = limit {
        settings.push(Setting::new("memory.limit_in_bytes", limit.max(-1)));
    }
    if let Some(swap) = swap {
        let setting = Setting::new("memory.memsw.limit_in_bytes", swap.max(-1));
        // a kernel without swap accounting has no limit on it
        settings.push(if swap < 0 {
            setting.or_ignored()
        } else {
            setting
        });
    }
    if let Some(value) = set(memory.reservation()) {
        settings.push(Setting::new("memory.soft_limit_in_bytes", value.max(-1)));
    }
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            let why = format!("{swappiness} is outside 0..=100");
            return Err(invalid("memory.swappiness", why));
        }
        settings.push(Setting::new("memory.swappiness", swappiness));
    }
    if memory.disable_oom_killer() == Some(true) {
        settings.push(Setting::new("memory.oom_control", 1));
    }
    // the only behaviour since Linux 5.11; before, it is written while there are no children
    if memory.use_hierarchy() == Some(true) {
        settings.push(Setting::new("memory.use_hierarchy", 1).or_ignored());
    }
    Ok(settings)
}

fn cpu_settings(cpu: &LinuxCpu) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    if let Some(idle) = cpu.idle() {
        settings.push(Setting::new("cpu.idle", idle));
    }
    // the kernel clamps silently to these; an idle group has no shares
    if let Some(shares) = set(cpu.shares())
        && cpu.idle() != Some(1)
    {
        settings.push(Setting::new("cpu.shares", shares.clamp(2, 262_144)));
    }
    if let Some(period) = set(cpu.period()) {
        settings.push(Setting::new("cpu.cfs_period_us", period));
    }
    if let Some(quota) = set(cpu.quota()) {
        settings.push(Setting::new("cpu.cfs_quota_us", quota.max(-1)));
    }
    if let Some(burst) = cpu.burst() {
        let setting = Setting::new("cpu.cfs_burst_us", burst);
        settings.push(if burst == 0 {
            setting.or_ignored()
        } else {
            setting
        });
    }
    if let Some(period) = set(cpu.realtime_period()) {
        settings.push(Setting::new("cpu.rt_period_us", period));
    }
    if let Some(runtime) = set(cpu.realtime_runtime()) {
        settings.push(Setting::new("cpu.rt_runtime_us", runtime));
    }
    for (name, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            let list = cpu_list(&format!("cpu.{name}"), list)?;
            settings.push(Setting::new(format!("cpuset.{name}"), list));
        }
    }
    Ok(settings)
}

fn blkio_settings(block_io: &LinuxBlockIo) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    // Since Linux 5.0 only the BFQ scheduler has weights on v1.
    let weight = |name: &str, value: String| {
        Setting::new(format!("blkio.{name}"), &value).or(&format!("blkio.bfq.{name}"), &value)
    };
    if let Some(value) = set(block_io.weight()) {
        settings.push(weight("weight", value.to_string()));
    }
    if let Some(value) = set(block_io.leaf_weight()) {
        settings.push(Setting::new("blkio.leaf_weight", value));
    }
    for entry in block_io.weight_device().iter().flatten() {
        let numbers = device("blockIO.weightDevice", entry.major(), entry.minor())?;
        if let Some(value) = set(entry.weight()) {
            settings.push(weight("weight_device", format!("{numbers} {value}")));
        }
        if let Some(value) = set(entry.leaf_weight()) {
            settings.push(Setting::new(
                "blkio.leaf_weight_device",
                format!("{numbers} {value}"),
            ));
        }
    }
    for (name, list) in [
        ("read_bps", block_io.throttle_read_bps_device()),
        ("write_bps", block_io.throttle_write_bps_device()),
        ("read_iops", block_io.throttle_read_iops_device()),
        ("write_iops", block_io.throttle_write_iops_device()),
    ] {
        for entry in list.iter().flatten() {
            let numbers = device("blockIO.throttle", entry.major(), entry.minor())?;
            settings.push(Setting::new(
                format!("blkio.throttle.{name}_device"),
                format!("{numbers} {}", entry.rate()),
            ));
        }
    }
    Ok(settings)
}

fn hugetlb_settings(limit: &LinuxHugepageLimit) -> Result<[Setting; 2], Error> {
    let size = page_size(limit)?;
    let value = limit.limit().max(-1);
    Ok([
        Setting::new(format!("hugetlb.{size}.limit_in_bytes"), value),
        Setting::new(format!("hugetlb.{size}.rsvd.limit_in_bytes"), value).or_ignored(),
    ])
}

fn network_settings(network: &LinuxNetwork) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    if let Some(class) = set(network.class_id()) {
        settings.push(Setting::new("net_cls.classid", class));
    }
    for entry in network.priorities().iter().flatten() {
        let name = entry.name();
        if name.is_empty() || name.contains(char::is_whitespace) {
            let why = format!("{name:?} is not an interface name");
            return Err(invalid("network.priorities", why));
        }
        settings.push(Setting::new(
            "net_prio.ifpriomap",
            format!("{name} {}", entry.priority()),
        ));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::super::Absent;
    use super::*;

    fn run(json: &str) -> Result<Vec<Setting>, Error> {
        v1(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn values() {
        let table: &[(&str, &[&str])] = &[
            ("{}", &[]),
            (
                r#"{"memory":{"limit":100,"swap":200,"reservation":50,"swappiness":0}}"#,
                &[
                    "memory.limit_in_bytes=100",
                    "memory.memsw.limit_in_bytes=200",
                    "memory.soft_limit_in_bytes=50",
                    "memory.swappiness=0",
                ],
            ),
            (
                r#"{"memory":{"limit":-1}}"#,
                &[
                    "memory.limit_in_bytes=-1",
                    "memory.memsw.limit_in_bytes=-1?",
                ],
            ),
            (r#"{"memory":{"limit":0}}"#, &[]),
            (
                r#"{"memory":{"disableOOMKiller":true}}"#,
                &["memory.oom_control=1"],
            ),
            (r#"{"memory":{"disableOOMKiller":false}}"#, &[]),
            (r#"{"memory":{"kernelTCP":100,"kernel":5}}"#, &[]),
            (
                r#"{"cpu":{"shares":1,"quota":5000,"period":10000}}"#,
                &[
                    "cpu.shares=2",
                    "cpu.cfs_period_us=10000",
                    "cpu.cfs_quota_us=5000",
                ],
            ),
            (r#"{"cpu":{"quota":-7}}"#, &["cpu.cfs_quota_us=-1"]),
            (
                r#"{"cpu":{"realtimeRuntime":950,"realtimePeriod":1000}}"#,
                &["cpu.rt_period_us=1000", "cpu.rt_runtime_us=950"],
            ),
            (
                r#"{"cpu":{"cpus":"0,2-3","mems":"0"}}"#,
                &["cpuset.cpus=0,2-3", "cpuset.mems=0"],
            ),
            (r#"{"pids":{"limit":9}}"#, &["pids.max=9"]),
            (r#"{"pids":{"limit":-1}}"#, &["pids.max=max"]),
            (
                r#"{"blockIO":{"weight":20,"leafWeight":30}}"#,
                &[
                    "blkio.weight=20|blkio.bfq.weight=20",
                    "blkio.leaf_weight=30",
                ],
            ),
            (
                r#"{"blockIO":{"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":7}]}}"#,
                &["blkio.throttle.read_iops_device=8:0 7"],
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":-1}]}"#,
                &[
                    "hugetlb.2MB.limit_in_bytes=-1",
                    "hugetlb.2MB.rsvd.limit_in_bytes=-1?",
                ],
            ),
            (
                r#"{"network":{"classID":5,"priorities":[{"name":"eth0","priority":3}]}}"#,
                &["net_cls.classid=5", "net_prio.ifpriomap=eth0 3"],
            ),
            (r#"{"unified":{}}"#, &[]),
        ];
        for (json, expected) in table {
            let lines: Vec<_> = run(json)
                .unwrap()
                .iter()
                .map(|s| match &s.absent {
                    Absent::Error => format!("{}={}", s.file, s.value),
                    Absent::Ignore => format!("{}={}?", s.file, s.value),
                    Absent::Instead(f, v) => format!("{}={}|{f}={v}", s.file, s.value),
                })
                .collect();
            assert_eq!(lines, *expected, "{json}");
        }
    }

    #[test]
    fn refusals_name_the_field() {
        for (json, field) in [
            (r#"{"memory":{"limit":100,"swap":50}}"#, "memory.swap"),
            (r#"{"memory":{"swappiness":101}}"#, "memory.swappiness"),
            (r#"{"unified":{"memory.max":"1"}}"#, "unified"),
            (
                r#"{"network":{"priorities":[{"name":"a b","priority":3}]}}"#,
                "network.priorities",
            ),
        ] {
            match run(json) {
                Err(Error::Invalid { field: named, .. }) => assert_eq!(named, field, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }
}
