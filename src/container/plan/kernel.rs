//! How the kernel is to treat the process: personality, memory policy, scheduling, processors, labels. Pure.

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxMemoryPolicy, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};

use crate::init::plan::Step;
use crate::sys::sched::Attributes;

/// Highest processor or node that a list may name: more than any kernel can be built for.
const HIGHEST: usize = 65535;

/// The steps, while the process still has its privileges. What `process` leaves out is that of `first`, the container's first process.
pub fn settings(
    process: &Process,
    first: Option<&Process>,
    linux: &Linux,
) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    steps.extend(personality(linux)?.map(Step::Personality));
    if let Some(policy) = linux.memory_policy() {
        steps.push(memory_policy(policy)?);
    }
    let wanted = process.scheduler().as_ref();
    if let Some(wanted) = wanted.or(first.and_then(|first| first.scheduler().as_ref())) {
        let resources = linux.resources().as_ref();
        let cpus = resources.and_then(|resources| resources.cpu().as_ref()?.cpus().clone());
        steps.push(Step::Scheduler {
            attributes: scheduler(wanted)?,
            pinned: cpus.is_some_and(|cpus| !cpus.is_empty()),
        });
    }
    let wanted = process.io_priority().as_ref();
    if let Some(wanted) = wanted.or(first.and_then(|first| first.io_priority().as_ref())) {
        let priority = u32::try_from(wanted.priority()).ok().filter(|one| *one < 8);
        steps.push(Step::IoPriority {
            class: match wanted.class() {
                IOPriorityClass::IoprioClassRt => 1,
                IOPriorityClass::IoprioClassBe => 2,
                IOPriorityClass::IoprioClassIdle => 3,
            },
            priority: priority.ok_or_else(|| {
                format!(
                    "process.ioPriority.priority: {} is not one of 0 to 7",
                    wanted.priority()
                )
            })?,
        });
    }
    Ok(steps)
}

/// The labels that the program gets by being executed.
pub fn labels(process: &Process, first: Option<&Process>) -> Vec<Step> {
    let label = |get: fn(&Process) -> &Option<String>| {
        let own = get(process).as_ref();
        let label = own.or(first.and_then(|first| get(first).as_ref()));
        label.filter(|label| !label.is_empty()).cloned()
    };
    let apparmor = label(Process::apparmor_profile).map(Step::AppArmor);
    let selinux = label(Process::selinux_label).map(Step::SelinuxLabel);
    apparmor.into_iter().chain(selinux).collect()
}

/// The processors of a process that is started in a container: before it is in the container's cgroup, and after.
pub fn affinity(
    process: &Process,
    first: Option<&Process>,
) -> Result<[Option<Vec<u64>>; 2], String> {
    let wanted = process.exec_cpu_affinity().as_ref();
    let Some(wanted) = wanted.or(first.and_then(|first| first.exec_cpu_affinity().as_ref())) else {
        return Ok([None, None]);
    };
    let one = |key: &str, list: &Option<String>| match list.as_deref() {
        None | Some("") => Ok(None),
        Some(list) => mask(list)
            .map(Some)
            .map_err(|why| format!("process.execCPUAffinity.{key}: {why}")),
    };
    Ok([
        one("initial", wanted.initial())?,
        one("final", wanted.cpu_affinity_final())?,
    ])
}

/// All processors that the cgroup allows: not those that the caller happens to be bound to.
pub fn all_processors() -> Step {
    Step::Processors {
        mask: vec![u64::MAX; (HIGHEST + 1) / 64 / 8],
        must: false,
    }
}

fn personality(linux: &Linux) -> Result<Option<u64>, String> {
    let Some(personality) = linux.personality() else {
        return Ok(None);
    };
    if let Some(flag) = personality.flags().iter().flatten().next() {
        // config-linux.md "Personality": no flag values are supported
        return Err(format!(
            "linux.personality.flags: {flag} is unknown, the specification has none"
        ));
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
}

fn scheduler(wanted: &Scheduler) -> Result<Attributes, String> {
    use LinuxSchedulerPolicy as P;
    let policy = *wanted.policy();
    let nice = wanted.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(format!(
            "process.scheduler.nice: {nice} is not one of -20 to 19"
        ));
    }
    let priority = wanted.priority().unwrap_or(0);
    let real_time = matches!(policy, P::SchedFifo | P::SchedRr);
    if priority != 0 && !real_time {
        return Err("process.scheduler.priority: is for SCHED_FIFO and SCHED_RR only".to_owned());
    }
    let priority = u32::try_from(priority)
        .map_err(|_| format!("process.scheduler.priority: {priority} is not one of 1 to 99"))?;
    let times =
        [wanted.runtime(), wanted.deadline(), wanted.period()].map(|time| time.unwrap_or(0));
    if times != [0; 3] && policy != P::SchedDeadline {
        return Err(
            "process.scheduler: runtime, deadline and period are for SCHED_DEADLINE only"
                .to_owned(),
        );
    }
    let flags = wanted.flags().iter().flatten().map(|flag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    });
    let [runtime, deadline, period] = times;
    Ok(Attributes {
        policy: match policy {
            P::SchedOther => 0,
            P::SchedFifo => 1,
            P::SchedRr => 2,
            P::SchedBatch => 3,
            P::SchedIso => 4,
            P::SchedIdle => 5,
            P::SchedDeadline => 6,
        },
        flags: flags.fold(0, |all, flag| all | flag),
        nice,
        priority,
        runtime,
        deadline,
        period,
    })
}

fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<Step, String> {
    use MemoryPolicyModeType as M;
    let mode = match policy.mode() {
        M::MpolDefault => 0,
        M::MpolPreferred => 1,
        M::MpolBind => 2,
        M::MpolInterleave => 3,
        M::MpolLocal => 4,
        M::MpolPreferredMany => 5,
        M::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().map(|flag| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    });
    let nodes = match policy.nodes().as_deref() {
        None | Some("") => Vec::new(),
        Some(list) => mask(list).map_err(|why| {
            format!("linux.memoryPolicy.nodes: invalid memory policy node: {why}")
        })?,
    };
    let count: u32 = nodes.iter().map(|word| word.count_ones()).sum();
    let name = policy.mode();
    if count > 0 && matches!(name, M::MpolDefault | M::MpolLocal) {
        return Err(format!(
            "linux.memoryPolicy.nodes: {name} mode requires 0 nodes but got {count}"
        ));
    }
    Ok(Step::MemoryPolicy {
        mode: flags.fold(mode, |all, flag| all | flag),
        nodes,
    })
}

/// `0-3,7` as a bit mask.
fn mask(list: &str) -> Result<Vec<u64>, String> {
    let wrong = || format!("{list:?} is not a list such as 0-3,7");
    let number = |text: &str| -> Result<usize, String> {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
        if number > HIGHEST {
            return Err(format!("{number} is above {HIGHEST}"));
        }
        Ok(number)
    };
    let mut mask = Vec::new();
    for part in list.split(',') {
        let part = part.trim();
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        if mask.len() <= last / 64 {
            mask.resize(last / 64 + 1, 0);
        }
        (first..=last).for_each(|bit| mask[bit / 64] |= 1 << (bit % 64));
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn process(extra: Value) -> Process {
        let mut all = json!({"user": {}, "args": ["x"], "cwd": "/"});
        all.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn shown(process: Value, linux: Value) -> Value {
        let linux = serde_json::from_value(linux).unwrap();
        match settings(&self::process(process), None, &linux) {
            Ok(steps) => serde_json::to_value(steps).unwrap(),
            Err(why) => json!(why),
        }
    }

    #[test]
    fn lists() {
        for (list, want) in [
            ("0", Ok(vec![1])),
            ("0-3,7", Ok(vec![0x8f])),
            ("64, 1", Ok(vec![2, 1])),
            ("63-64", Ok(vec![1 << 63, 1])),
            ("3-1", Err("\"3-1\" is not a list such as 0-3,7")),
            ("", Err("\"\" is not a list such as 0-3,7")),
            ("1,", Err("\"1,\" is not a list such as 0-3,7")),
            ("+1", Err("\"+1\" is not a list such as 0-3,7")),
            (
                "99999999999999999999",
                Err("\"99999999999999999999\" is not a list such as 0-3,7"),
            ),
            ("0-9876543210", Err("9876543210 is above 65535")),
        ] {
            assert_eq!(mask(list), want.map_err(str::to_owned), "{list}");
        }
    }

    #[test]
    fn schedules() {
        for (scheduler, want) in [
            (
                json!({"policy": "SCHED_BATCH", "nice": 19, "priority": 0}),
                json!([{"scheduler": {"attributes": {"policy": 3, "flags": 0, "nice": 19, "priority": 0, "runtime": 0, "deadline": 0, "period": 0},
                    "pinned": false}}]),
            ),
            (
                json!({"policy": "SCHED_DEADLINE", "flags": ["SCHED_RESET_ON_FORK", "SCHED_FLAG_RECLAIM"], "runtime": 1, "deadline": 2, "period": 3}),
                json!([{"scheduler": {"attributes": {"policy": 6, "flags": 3, "nice": 0, "priority": 0, "runtime": 1, "deadline": 2, "period": 3},
                    "pinned": false}}]),
            ),
            (
                json!({"policy": "SCHED_OTHER", "nice": 20}),
                json!("process.scheduler.nice: 20 is not one of -20 to 19"),
            ),
            (
                json!({"policy": "SCHED_OTHER", "priority": 1}),
                json!("process.scheduler.priority: is for SCHED_FIFO and SCHED_RR only"),
            ),
            (
                json!({"policy": "SCHED_RR", "priority": -1}),
                json!("process.scheduler.priority: -1 is not one of 1 to 99"),
            ),
            (
                json!({"policy": "SCHED_RR", "priority": 1, "period": 5}),
                json!(
                    "process.scheduler: runtime, deadline and period are for SCHED_DEADLINE only"
                ),
            ),
        ] {
            assert_eq!(shown(json!({"scheduler": scheduler}), json!({})), want);
        }
        for (priority, want) in [
            (
                json!({"class": "IOPRIO_CLASS_RT", "priority": 7}),
                json!([{"ioPriority": {"class": 1, "priority": 7}}]),
            ),
            (
                json!({"class": "IOPRIO_CLASS_IDLE"}),
                json!([{"ioPriority": {"class": 3, "priority": 0}}]),
            ),
            (
                json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
                json!("process.ioPriority.priority: 8 is not one of 0 to 7"),
            ),
        ] {
            assert_eq!(shown(json!({"ioPriority": priority}), json!({})), want);
        }
    }

    #[test]
    fn memory_and_personality() {
        for (linux, want) in [
            (
                json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0,2", "flags": ["MPOL_F_STATIC_NODES"]}}),
                json!([{"memoryPolicy": {"mode": 0x8002, "nodes": [5]}}]),
            ),
            (
                json!({"memoryPolicy": {"mode": "MPOL_DEFAULT"}}),
                json!([{"memoryPolicy": {"mode": 0, "nodes": []}}]),
            ),
            (
                json!({"memoryPolicy": {"mode": "MPOL_LOCAL", "nodes": "0-7"}}),
                json!("linux.memoryPolicy.nodes: MPOL_LOCAL mode requires 0 nodes but got 8"),
            ),
            (
                json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "x"}}),
                json!(
                    "linux.memoryPolicy.nodes: invalid memory policy node: \"x\" is not a list such as 0-3,7"
                ),
            ),
            (
                json!({"personality": {"domain": "LINUX32"}}),
                json!([{"personality": 8}]),
            ),
            (
                json!({"personality": {"domain": "LINUX", "flags": ["X"]}}),
                json!("linux.personality.flags: X is unknown, the specification has none"),
            ),
        ] {
            assert_eq!(shown(json!({}), linux), want);
        }
    }
}
