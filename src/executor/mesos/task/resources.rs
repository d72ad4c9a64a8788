//! Resources and limits of tasks → limits of cgroups, and the ports that are theirs.
//!
//! *Invariants:* what is listed several times is added up, ranges are united. `cpus` is a weight, and a quota only where a limit is
//! given: without one the agent alone decides whether there is a quota, and its own cgroup around ours holds it. What the executor
//! cannot give (GPUs) is refused; what is only counted by the cluster (disk, bandwidth, names of its own) is let pass.

use std::collections::BTreeSet;

use super::Invalid;
use crate::compose::project::Limits;
use crate::executor::mesos::proto::{Resource, TaskInfo, value};

/// Bytes of Mesos' megabyte.
const MEGABYTE: f64 = (1 << 20) as f64;
/// What Mesos gives at least (bytes).
const LEAST_MEMORY: u64 = 32 << 20;
/// Weight of one cpu (agent: `CPU_SHARES_PER_CPU`), of a revocable one, and the least.
const SHARES: f64 = 1024.0;
const REVOCABLE_SHARES: f64 = 10.0;
const LEAST_SHARES: u64 = 2;
/// The most that the kernel takes (`MAX_SHARES` of kernel/sched/core.c).
const MOST_SHARES: u64 = 1 << 18;
/// The least quota: 1 ms of 100 ms.
const LEAST_CPUS: f64 = 0.01;
/// More cpus or megabytes than any machine has.
const REASON: f64 = 1e12;

/// What a task has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Share {
    /// Requested cpus, the revocable ones among them apart.
    pub cpus: f64,
    /// Revocable cpus.
    pub revocable: f64,
    /// Requested memory (bytes).
    pub memory: Option<u64>,
    /// `limits.cpus`; `None` where none is given, or no bound.
    pub cpus_limit: Option<f64>,
    /// `limits.mem` (bytes); `Some(None)`: no bound.
    pub memory_limit: Option<Option<u64>>,
    /// Ports, ascending.
    pub ports: BTreeSet<u16>,
    /// `allocation_info.role` of the first resource that has one.
    pub role: Option<String>,
}

/// Adds up the resources of a task.
///
/// # Errors
/// For what cannot be given, and numbers that are none.
pub fn share(task: &TaskInfo) -> Result<Share, Invalid> {
    let mut share = Share::default();
    for (index, resource) in task.resources.iter().enumerate() {
        let at = |why: String| {
            let name = &resource.name;
            Invalid::of(task, format_args!("resources[{index}]: {name}: {why}"))
        };
        add(&mut share, resource).map_err(at)?;
    }
    for (name, limit) in &task.limits {
        let at = |why: String| Invalid::of(task, format_args!("limits.{name}: {why}"));
        limit_by(&mut share, name, limit.value).map_err(at)?;
    }
    Ok(share)
}

fn add(share: &mut Share, resource: &Resource) -> Result<(), String> {
    let role = resource
        .allocation_info
        .as_ref()
        .and_then(|a| a.role.clone());
    share.role = share.role.take().or(role);
    match resource.name.as_str() {
        "cpus" => {
            let cpus = scalar(resource)?;
            match resource.revocable {
                Some(_) => share.revocable += cpus,
                None => share.cpus += cpus,
            }
        }
        "mem" => {
            let bytes = (scalar(resource)? * MEGABYTE) as u64;
            share.memory = Some(share.memory.unwrap_or_default().saturating_add(bytes));
        }
        "gpus" if scalar(resource)? > 0.0 => {
            return Err("no GPU can be given to a container; ask for none".to_owned());
        }
        "ports" => ports(share, resource)?,
        _ => {}
    }
    Ok(())
}

fn scalar(resource: &Resource) -> Result<f64, String> {
    match (value::Type::try_from(resource.r#type), &resource.scalar) {
        (Ok(value::Type::Scalar), Some(scalar)) if (0.0..=REASON).contains(&scalar.value) => {
            Ok(scalar.value)
        }
        (Ok(value::Type::Scalar), Some(scalar)) => {
            Err(format!("{} is not an amount", scalar.value))
        }
        _ => Err("is not a scalar".to_owned()),
    }
}

fn ports(share: &mut Share, resource: &Resource) -> Result<(), String> {
    let (Ok(value::Type::Ranges), Some(ranges)) =
        (value::Type::try_from(resource.r#type), &resource.ranges)
    else {
        return Err("is not a list of ranges".to_owned());
    };
    for range in &ranges.range {
        let (first, last) = (u16::try_from(range.begin), u16::try_from(range.end));
        match (first, last) {
            (Ok(first @ 1..), Ok(last)) if first <= last => share.ports.extend(first..=last),
            _ => {
                return Err(format!(
                    "{}-{} is not a range of ports",
                    range.begin, range.end
                ));
            }
        }
    }
    Ok(())
}

fn limit_by(share: &mut Share, name: &str, limit: f64) -> Result<(), String> {
    let unlimited = limit == f64::INFINITY;
    if !unlimited && !(0.0..=REASON).contains(&limit) {
        return Err(format!("{limit} is not an amount"));
    }
    match name {
        "cpus" if unlimited => {}
        "cpus" if limit < share.cpus => return Err(below(limit, share.cpus)),
        "cpus" => share.cpus_limit = Some(limit.max(LEAST_CPUS)),
        "mem" if unlimited => share.memory_limit = Some(None),
        "mem" => {
            let bytes = (limit * MEGABYTE) as u64;
            if bytes < share.memory.unwrap_or_default() {
                let wanted = share.memory.unwrap_or_default() as f64 / MEGABYTE;
                return Err(below(limit, wanted));
            }
            share.memory_limit = Some(Some(bytes));
        }
        _ => return Err("there is no limit of that name; only cpus and mem have one".to_owned()),
    }
    Ok(())
}

fn below(limit: f64, request: f64) -> String {
    format!("{limit} is below the {request} that the task requests")
}

impl Share {
    /// As limits of a cgroup.
    pub fn limits(&self) -> Limits {
        let request = self.memory.map(|bytes| bytes.max(LEAST_MEMORY));
        let hard = match self.memory_limit {
            Some(limit) => limit.map(|bytes| bytes.max(LEAST_MEMORY)),
            None => request,
        };
        Limits {
            cpus: self.cpus_limit,
            cpu_shares: self.shares(),
            memory: hard,
            memory_reservation: request,
            ..Limits::default()
        }
    }

    /// What a task of a group has that shares its executor's cgroup: a weight and a soft limit.
    pub fn soft_limits(&self) -> Limits {
        Limits {
            cpus: None,
            memory: None,
            ..self.limits()
        }
    }

    fn shares(&self) -> Option<u64> {
        let shares = self.cpus * SHARES + self.revocable * REVOCABLE_SHARES;
        (shares > 0.0).then(|| (shares as u64).clamp(LEAST_SHARES, MOST_SHARES))
    }

    /// Several tasks together. One without a bound leaves all of them without.
    pub fn sum<'a>(shares: impl Iterator<Item = &'a Share>) -> Share {
        let mut sum = Share::default();
        let mut memory_bound = Some(0u64);
        let mut limited = false;
        for share in shares {
            sum.cpus += share.cpus;
            sum.revocable += share.revocable;
            if let Some(bytes) = share.memory {
                sum.memory = Some(sum.memory.unwrap_or_default().saturating_add(bytes));
            }
            limited |= share.memory_limit.is_some();
            let hard = share.limits().memory;
            memory_bound = memory_bound.zip(hard).map(|(a, b)| a.saturating_add(b));
        }
        if limited || memory_bound.is_none() {
            sum.memory_limit = Some(memory_bound);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mesos::task::tests::{ports as ranges, scalar, task};
    use serde_json::json;

    #[test]
    fn amounts_are_added_up() {
        let mut revocable = scalar("cpus", 2.0);
        revocable["revocable"] = json!({});
        let table = [
            (json!({}), (None, None, None, None)),
            (
                json!({"resources": [scalar("cpus", 0.5), scalar("cpus", 1.0), scalar("mem", 64.0), scalar("mem", 64.0), scalar("disk", 5.0), scalar("gpus", 0.0)]}),
                (None, Some(1536), Some(128 << 20), Some(128 << 20)),
            ),
            (
                json!({"resources": [scalar("cpus", 0.001), scalar("mem", 1.0)]}),
                (None, Some(2), Some(32 << 20), Some(32 << 20)),
            ),
            (
                json!({"resources": [revocable], "limits": {"cpus": {"value": 2.5}}}),
                (Some(2.5), Some(20), None, None),
            ),
            (
                json!({"resources": [scalar("cpus", 1.0), scalar("mem", 64.0)], "limits": {"cpus": {"value": "Infinity"}, "mem": {"value": "Infinity"}}}),
                (None, Some(1024), None, Some(64 << 20)),
            ),
            (
                json!({"resources": [scalar("cpus", 0.001), scalar("mem", 64.0)], "limits": {"cpus": {"value": 0.002}, "mem": {"value": 96}}}),
                (Some(0.01), Some(2), Some(96 << 20), Some(64 << 20)),
            ),
        ];
        for (given, expected) in table {
            let limits = share(&task(given.clone())).unwrap().limits();
            let found = (
                limits.cpus,
                limits.cpu_shares,
                limits.memory,
                limits.memory_reservation,
            );
            assert_eq!(found, expected, "{given}");
        }
        let given =
            json!({"resources": [ranges(&[(31000, 31001)]), ranges(&[(80, 80), (31001, 31002)])]});
        let found: Vec<u16> = share(&task(given)).unwrap().ports.into_iter().collect();
        assert_eq!(found, [80, 31000, 31001, 31002]);
    }

    #[test]
    fn a_sum_has_a_bound_when_all_have_one() {
        let of = |mem: f64, limit: Option<f64>| Share {
            memory: Some((mem * MEGABYTE) as u64),
            memory_limit: limit.map(|l| (l.is_finite()).then_some((l * MEGABYTE) as u64)),
            ..Share::default()
        };
        let table = [
            (vec![of(64.0, None), of(64.0, None)], Some(128)),
            (vec![of(64.0, None), of(64.0, Some(100.0))], Some(164)),
            (vec![of(64.0, None), of(64.0, Some(f64::INFINITY))], None),
            (vec![of(64.0, None), Share::default()], None),
        ];
        for (shares, expected) in table {
            let memory = Share::sum(shares.iter()).limits().memory;
            assert_eq!(memory, expected.map(|m: u64| m << 20), "{shares:?}");
        }
    }

    #[test]
    fn what_cannot_be_given() {
        let table = [
            (
                json!({"resources": [scalar("gpus", 1.0)]}),
                "resources[0]: gpus: no GPU can be given to a container; ask for none",
            ),
            (
                json!({"resources": [scalar("mem", -1.0)]}),
                "resources[0]: mem: -1 is not an amount",
            ),
            (
                json!({"resources": [{"name": "cpus", "type": "SET"}]}),
                "resources[0]: cpus: is not a scalar",
            ),
            (
                json!({"resources": [ranges(&[(5, 4)])]}),
                "resources[0]: ports: 5-4 is not a range of ports",
            ),
            (
                json!({"resources": [ranges(&[(1, 70000)])]}),
                "resources[0]: ports: 1-70000 is not a range of ports",
            ),
            (
                json!({"resources": [scalar("cpus", 2.0)], "limits": {"cpus": {"value": 1}}}),
                "limits.cpus: 1 is below the 2 that the task requests",
            ),
            (
                json!({"limits": {"disk": {"value": 1}}}),
                "limits.disk: there is no limit of that name; only cpus and mem have one",
            ),
        ];
        for (given, expected) in table {
            let error = share(&task(given)).unwrap_err();
            assert_eq!(error.message, format!("task t: {expected}"));
        }
    }
}
