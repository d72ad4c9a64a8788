//! Limits → properties of a unit (systemd.resource-control(5), org.freedesktop.systemd1(5)).
//!
//! *Invariants:* pure. What is said here is what [`super::super::limits`] writes to the files, in systemd's words, so that systemd does
//! not undo it when it writes them again; a file without a property is left to the files alone.

use oci_spec::runtime::LinuxResources;

use super::super::limits::{self, Present, Setting};
use super::super::{Error, Unit, devices};
use super::bus::{Property, Value};

/// `infinity`
const INFINITY: u64 = u64::MAX;
/// The kernel's own period, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;
/// A `CPUWeight` of zero is `cpu.idle` since this version.
const IDLE_SINCE: u32 = 252;
/// `OOMPolicy` of a scope since this version.
const OOM_POLICY_SINCE: u32 = 253;
/// More processors or nodes than a kernel has (NR_CPUS_RANGE_END).
const BITS_MAX: usize = 8192;

fn text(name: &str, value: &str) -> Property {
    (name.to_owned(), Value::Text(value.to_owned()))
}

fn number(name: &str, value: u64) -> Property {
    (name.to_owned(), Value::U64(value))
}

/// What every unit of a container has.
pub(super) fn fixed(unit: &Unit, unified: bool, pid: u32) -> Vec<Property> {
    let yes = |name: &str| (name.to_owned(), Value::Bool(true));
    let mut found = vec![text(
        "Description",
        &format!("sampan container {}", unit.name),
    )];
    if unit.name.ends_with(".slice") {
        // a slice is where its name says
        found.push(("Wants".to_owned(), Value::Texts(vec![unit.slice.clone()])));
    } else {
        found.push(text("Slice", &unit.slice));
        found.push(yes("Delegate"));
    }
    found.push(("PIDs".to_owned(), Value::U32s(vec![pid])));
    let io = if unified {
        "IOAccounting"
    } else {
        "BlockIOAccounting"
    };
    found.extend(["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"].map(yes));
    // else it would be stopped with what systemd stops early at shutdown
    found.push(("DefaultDependencies".to_owned(), Value::Bool(false)));
    found
}

/// Limits and device rules. `present` for an update; `new` for a unit that is being made.
pub(super) fn limits(
    resources: &LinuxResources,
    unified: bool,
    present: &Present,
    version: u32,
    new: bool,
) -> Result<Vec<Property>, Error> {
    let settings = if unified {
        limits::v2(resources, present)?
    } else {
        limits::v1(resources)?
    };
    let mut found = Vec::new();
    let (mut quota, mut period) = (None, None);
    for setting in &settings {
        match setting.file.as_str() {
            "cpu.max" => {
                let mut parts = setting.value.split_whitespace();
                quota = parts.next();
                period = parts.next();
            }
            "cpu.cfs_quota_us" => quota = Some(&setting.value),
            "cpu.cfs_period_us" => period = Some(&setting.value),
            "memory.oom.group" if new && version >= OOM_POLICY_SINCE => {
                let policy = if setting.value == "1" {
                    "kill"
                } else {
                    "continue"
                };
                found.push(text("OOMPolicy", policy));
            }
            _ => found.extend(property(setting, version)?),
        }
    }
    found.extend(cpu_quota(quota, period)?);
    let idle = settings
        .iter()
        .any(|s| s.file == "cpu.idle" && s.value == "1");
    if idle && version >= IDLE_SINCE {
        found.retain(|(name, _)| name != "CPUWeight");
        found.push(number("CPUWeight", 0));
    }
    if let Some(list) = resources
        .devices()
        .as_deref()
        .filter(|list| !list.is_empty())
    {
        let (policy, allowed) = devices::policy(&devices::rules(list)?);
        // an empty list first: what follows is added to what is there
        found.push(("DeviceAllow".to_owned(), Value::Pairs(Vec::new())));
        found.push(text("DevicePolicy", policy));
        if !allowed.is_empty() {
            found.push(("DeviceAllow".to_owned(), Value::Pairs(allowed)));
        }
    }
    Ok(found)
}

/// The property of one file.
fn property(setting: &Setting, version: u32) -> Result<Option<Property>, Error> {
    let value = setting.value.as_str();
    let name = match setting.file.as_str() {
        "memory.max" => "MemoryMax",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.min" => "MemoryMin",
        "memory.swap.max" => "MemorySwapMax",
        "memory.limit_in_bytes" => "MemoryLimit",
        "cpu.weight" => "CPUWeight",
        "cpu.shares" => "CPUShares",
        "blkio.weight" => "BlockIOWeight",
        "pids.max" => "TasksMax",
        "cpuset.cpus" | "cpuset.mems" if version < 244 => return Ok(None),
        "cpuset.cpus" => return Ok(Some(("AllowedCPUs".to_owned(), bits(setting)?))),
        "cpuset.mems" => return Ok(Some(("AllowedMemoryNodes".to_owned(), bits(setting)?))),
        _ => return Ok(None),
    };
    let amount = match value.trim() {
        "max" | "-1" => INFINITY,
        value => value
            .parse()
            .map_err(|_| wrong(setting, "is not a number"))?,
    };
    // systemd takes no zero for tasks
    let least = u64::from(name == "TasksMax");
    Ok(Some(number(name, amount.max(least))))
}

fn wrong(setting: &Setting, why: &str) -> Error {
    Error::Invalid {
        field: setting.file.clone(),
        why: format!("{:?} {why}", setting.value),
    }
}

/// systemd keeps whole percents of a processor: rounded up, or a child could not have what it was given.
fn cpu_quota(quota: Option<&str>, period: Option<&str>) -> Result<Vec<Property>, Error> {
    let parse = |text: &str| {
        text.parse::<u64>().map_err(|_| Error::Invalid {
            field: "cpu.max".to_owned(),
            why: format!("{text:?} is not a number of microseconds"),
        })
    };
    let mut found = Vec::new();
    let period = period.map(parse).transpose()?;
    if let Some(period) = period {
        found.push(number("CPUQuotaPeriodUSec", period));
    }
    let each_second = match quota {
        None => return Ok(found),
        Some("max" | "-1") => INFINITY,
        Some(quota) => {
            let period = u128::from(period.unwrap_or(DEFAULT_PERIOD).max(1));
            let usec = u128::from(parse(quota)?) * 1_000_000 / period;
            u64::try_from(usec.next_multiple_of(10_000)).unwrap_or(INFINITY)
        }
    };
    found.push(number("CPUQuotaPerSecUSec", each_second));
    Ok(found)
}

/// `0-3,7` → a bit for each, the lowest first.
fn bits(setting: &Setting) -> Result<Value, Error> {
    let mut found: Vec<u8> = Vec::new();
    let parse = |text: &str| match text.trim().parse::<usize>() {
        Ok(number) if number < BITS_MAX => Ok(number),
        _ => Err(wrong(setting, "is not a list such as 0-3,7")),
    };
    for part in setting
        .value
        .split(',')
        .filter(|part| !part.trim().is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        for number in parse(first)?..=parse(last)? {
            if found.len() <= number / 8 {
                found.resize(number / 8 + 1, 0);
            }
            if let Some(byte) = found.get_mut(number / 8) {
                *byte |= 1 << (number % 8);
            }
        }
    }
    if found.is_empty() {
        return Err(wrong(setting, "names nothing"));
    }
    Ok(Value::Bytes(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Name=value` of each, numbers in decimal, infinity as such.
    fn run(json: &str, unified: bool, version: u32) -> Result<Vec<String>, Error> {
        let resources = serde_json::from_str(json).unwrap();
        let present = Present {
            cpu: Some("max 100000".to_owned()),
            ..Present::default()
        };
        let found = limits(&resources, unified, &present, version, true)?;
        let show = |(name, value): &Property| match value {
            Value::U64(INFINITY) => format!("{name}=infinity"),
            Value::U64(value) => format!("{name}={value}"),
            Value::Text(value) => format!("{name}={value}"),
            other => format!("{name}={other:?}"),
        };
        Ok(found.iter().map(show).collect())
    }

    #[test]
    fn of_version_2() {
        let table: &[(&str, &[&str])] = &[
            ("{}", &[]),
            (
                r#"{"memory":{"limit":100,"swap":150,"reservation":50}}"#,
                &["MemorySwapMax=50", "MemoryMax=100", "MemoryLow=50"],
            ),
            (r#"{"pids":{"limit":-1}}"#, &["TasksMax=infinity"]),
            (
                r#"{"cpu":{"quota":33333,"period":100000,"shares":1024}}"#,
                &[
                    "CPUWeight=100",
                    "CPUQuotaPeriodUSec=100000",
                    "CPUQuotaPerSecUSec=340000",
                ],
            ),
            (
                r#"{"cpu":{"quota":-1}}"#,
                &["CPUQuotaPeriodUSec=100000", "CPUQuotaPerSecUSec=infinity"],
            ),
            (r#"{"cpu":{"idle":1,"shares":5}}"#, &["CPUWeight=0"]),
            (
                r#"{"cpu":{"cpus":"0-1,9","mems":"0"}}"#,
                &["AllowedCPUs=Bytes([3, 2])", "AllowedMemoryNodes=Bytes([1])"],
            ),
            (
                r#"{"unified":{"memory.high":"max","pids.max":"0","memory.oom.group":"1","io.max":"8:0 rbps=1"}}"#,
                &["MemoryHigh=infinity", "OOMPolicy=kill", "TasksMax=1"],
            ),
            (
                r#"{"devices":[{"allow":false},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},{"allow":true,"type":"b","access":"m"}]}"#,
                &[
                    "DeviceAllow=Pairs([])",
                    "DevicePolicy=strict",
                    r#"DeviceAllow=Pairs([("/dev/char/1:3", "rw"), ("block-*", "m")])"#,
                ],
            ),
        ];
        for (json, expected) in table {
            assert_eq!(run(json, true, 253).unwrap(), *expected, "{json}");
        }
        assert_eq!(run(r#"{"cpu":{"idle":1}}"#, true, 251).unwrap(), [""; 0]);
        for json in [
            r#"{"unified":{"memory.high":"much"}}"#,
            r#"{"cpu":{"cpus":"4-x"}}"#,
            r#"{"cpu":{"cpus":"99999"}}"#,
        ] {
            assert!(
                matches!(run(json, true, 252), Err(Error::Invalid { .. })),
                "{json}"
            );
        }
    }

    #[test]
    fn of_version_1() {
        let table: &[(&str, &[&str])] = &[
            (
                r#"{"memory":{"limit":100,"swap":150}}"#,
                &["MemoryLimit=100"],
            ),
            (
                r#"{"cpu":{"quota":50000,"period":200000,"shares":512}}"#,
                &[
                    "CPUShares=512",
                    "CPUQuotaPeriodUSec=200000",
                    "CPUQuotaPerSecUSec=250000",
                ],
            ),
            (r#"{"cpu":{"quota":50000}}"#, &["CPUQuotaPerSecUSec=500000"]),
            (r#"{"cpu":{"period":50000}}"#, &["CPUQuotaPeriodUSec=50000"]),
            (r#"{"blockIO":{"weight":500}}"#, &["BlockIOWeight=500"]),
        ];
        for (json, expected) in table {
            assert_eq!(run(json, false, 252).unwrap(), *expected, "{json}");
        }
    }

    #[test]
    fn fixed_ones() {
        let unit = |name: &str| Unit {
            name: name.to_owned(),
            slice: "a.slice".to_owned(),
            user: false,
        };
        let scope = fixed(&unit("x.scope"), true, 7);
        assert!(scope.contains(&text("Slice", "a.slice")));
        assert!(scope.contains(&("PIDs".to_owned(), Value::U32s(vec![7]))));
        let slice = fixed(&unit("a-b.slice"), false, 7);
        assert!(slice.contains(&("Wants".to_owned(), Value::Texts(vec!["a.slice".to_owned()]))));
        assert!(!slice.iter().any(|(name, _)| name == "Delegate"));
    }
}
