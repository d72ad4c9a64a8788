//! Everything the kernel counts for a container, under the names of runc's `events --stats`.
//!
//! *Invariants:* an absent file is zero or left out, as there; an unreadable or malformed one is an error. Times of processors are in
//! nanoseconds, sizes in bytes, and no limit is the largest number.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Cgroup, Error, file};

type Map = BTreeMap<String, u64>;

fn zero(value: &u64) -> bool {
    *value == 0
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// Processors.
    pub cpu: Cpu,
    /// Which processors and nodes.
    pub cpuset: Cpuset,
    /// Memory.
    pub memory: Memory,
    /// Tasks.
    pub pids: Pids,
    /// Block devices.
    pub blkio: Blkio,
    /// Huge pages by size.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    /// Remote memory by device: now and allowed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rdma: BTreeMap<String, [Map; 2]>,
}

/// Of `cpu`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Time.
    pub usage: CpuUsage,
    /// Time not given because of the quota.
    pub throttling: Throttling,
    /// Pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CpuUsage {
    /// Together.
    #[serde(skip_serializing_if = "zero")]
    pub total: u64,
    /// By processor; v1 only, as the next two.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// In the kernel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// In programs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In programs.
    pub user: u64,
}

/// Of the quota.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods that passed.
    #[serde(skip_serializing_if = "zero")]
    pub periods: u64,
    /// Periods in which the quota was used up.
    #[serde(skip_serializing_if = "zero")]
    pub throttled_periods: u64,
    /// Nanoseconds of waiting.
    #[serde(skip_serializing_if = "zero")]
    pub throttled_time: u64,
}

/// Of `cpuset`, v1 only.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cpuset {
    /// Processors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u64>,
    /// Nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u64>,
    /// The flags, by the name of their file.
    #[serde(flatten)]
    pub flags: BTreeMap<&'static str, i64>,
}

/// Of `memory`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Of files.
    #[serde(skip_serializing_if = "zero")]
    pub cache: u64,
    /// All.
    pub usage: Amount,
    /// Memory and swap together.
    pub swap: Amount,
    /// Of the kernel for the container; v1 only.
    pub kernel: Amount,
    /// Of TCP buffers; v1 only.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Amount,
    /// `memory.stat`
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub raw: Map,
    /// Pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Use of something with a limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Amount {
    /// Allowed.
    pub limit: u64,
    /// Now.
    #[serde(skip_serializing_if = "zero")]
    pub usage: u64,
    /// At most so far.
    #[serde(skip_serializing_if = "zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Of `pids`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pids {
    /// Now.
    #[serde(skip_serializing_if = "zero")]
    pub current: u64,
    /// Allowed; zero is no limit.
    #[serde(skip_serializing_if = "zero")]
    pub limit: u64,
}

/// Of `io`, with what is below.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Blkio {
    /// Tables by name, `ioServiceBytesRecursive` and so on.
    #[serde(flatten)]
    pub tables: BTreeMap<&'static str, Vec<BlkioEntry>>,
    /// Pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// One device and kind of operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BlkioEntry {
    /// Device number.
    #[serde(skip_serializing_if = "zero")]
    pub major: u64,
    /// Device number.
    #[serde(skip_serializing_if = "zero")]
    pub minor: u64,
    /// `Read`, `Write` …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// Bytes, operations or time.
    #[serde(skip_serializing_if = "zero")]
    pub value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Hugetlb {
    /// Now.
    #[serde(skip_serializing_if = "zero")]
    pub usage: u64,
    /// At most so far; v1 only.
    #[serde(skip_serializing_if = "zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Pressure stall information (psi.rst); v2 only.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Psi {
    /// Somebody waits.
    pub some: Pressure,
    /// All wait.
    pub full: Pressure,
}

/// Shares of time in percent, and microseconds in all.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Over ten seconds.
    pub avg10: f64,
    /// Over a minute.
    pub avg60: f64,
    /// Over five minutes.
    pub avg300: f64,
    /// So far.
    pub total: u64,
}

pub(super) fn metrics(cgroup: &Cgroup) -> Result<Metrics, Error> {
    match cgroup.plain() {
        Cgroup::V2(path) => v2(&Folder(Some(path))),
        Cgroup::V1 {
            controllers,
            unified,
        } => {
            let folder = |name: &str| Folder(controllers.get(name).map(PathBuf::as_path));
            let mut found = v1(folder)?;
            if !controllers.contains_key("hugetlb") {
                found.hugetlb = hugetlb_v2(&Folder(unified.as_deref()))?;
            }
            Ok(found)
        }
        Cgroup::Systemd { .. } | Cgroup::Unlimited { .. } => Ok(Metrics::default()),
    }
}

/// A cgroup folder, or none.
struct Folder<'a>(Option<&'a Path>);

impl Folder<'_> {
    fn text(&self, name: &str) -> Result<Option<String>, Error> {
        self.0
            .map_or(Ok(None), |path| file::read_optional(&path.join(name)))
    }

    fn malformed(&self, name: &str) -> Error {
        Error::Read {
            path: self.0.unwrap_or(Path::new("")).join(name),
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, "not as expected"),
        }
    }

    /// A number; `max` is the largest, absent zero.
    fn number(&self, name: &str) -> Result<u64, Error> {
        match self.text(name)?.as_deref() {
            None => Ok(0),
            Some("max") => Ok(u64::MAX),
            Some(text) => text.parse().map_err(|_| self.malformed(name)),
        }
    }

    fn numbers(&self, name: &str) -> Result<Vec<u64>, Error> {
        let text = self.text(name)?.unwrap_or_default();
        let words = text.split_whitespace().map(str::parse);
        words
            .collect::<Result<_, _>>()
            .map_err(|_| self.malformed(name))
    }

    /// Lines of a key and a number.
    fn keyed(&self, name: &str) -> Result<Map, Error> {
        let text = self.text(name)?.unwrap_or_default();
        let pair = |line: &str| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        };
        text.lines()
            .map(|line| pair(line).ok_or_else(|| self.malformed(name)))
            .collect()
    }

    /// A list such as `0-3,7`.
    fn list(&self, name: &str) -> Result<Vec<u64>, Error> {
        let text = self.text(name)?.unwrap_or_default();
        let mut found = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.parse::<u16>(), last.parse::<u16>()) {
                (Ok(first), Ok(last)) => found.extend(u64::from(first)..=u64::from(last)),
                _ => return Err(self.malformed(name)),
            }
        }
        Ok(found)
    }

    fn psi(&self, name: &str) -> Result<Option<Psi>, Error> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let mut psi = Psi::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let pressure = match words.next() {
                Some("some") => &mut psi.some,
                Some("full") => &mut psi.full,
                _ => return Err(self.malformed(name)),
            };
            for word in words {
                let (key, value) = word.split_once('=').unwrap_or_default();
                let average = value.parse::<f64>().map_err(|_| self.malformed(name))?;
                match key {
                    "avg10" => pressure.avg10 = average,
                    "avg60" => pressure.avg60 = average,
                    "avg300" => pressure.avg300 = average,
                    "total" => pressure.total = value.parse().unwrap_or(0),
                    _ => {}
                }
            }
        }
        Ok(Some(psi))
    }

    /// Names of the files for huge pages of each size that has `suffix`.
    fn page_sizes(&self, suffix: &str) -> Result<Vec<String>, Error> {
        let Some(path) = self.0 else {
            return Ok(Vec::new());
        };
        let entries = match std::fs::read_dir(path) {
            Err(error) if file::gone(&error) => return Ok(Vec::new()),
            other => other.map_err(|source| Error::Read {
                path: path.to_path_buf(),
                source,
            })?,
        };
        let size = |name: String| {
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
            (!size.contains('.')).then(|| size.to_owned())
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| size(entry.file_name().into_string().ok()?))
            .collect())
    }
}

fn take(map: &Map, key: &str) -> u64 {
    map.get(key).copied().unwrap_or(0)
}

fn v2(folder: &Folder<'_>) -> Result<Metrics, Error> {
    let cpu = folder.keyed("cpu.stat")?;
    let raw = folder.keyed("memory.stat")?;
    let events = folder.keyed("memory.events")?;
    let amount = |name: &str| -> Result<Amount, Error> {
        Ok(Amount {
            limit: folder.number(&format!("{name}.max"))?,
            usage: folder.number(&format!("{name}.current"))?,
            max: folder.number(&format!("{name}.peak"))?,
            failcnt: 0,
        })
    };
    let mut usage = amount("memory")?;
    usage.failcnt = take(&events, "max");
    let swap = amount("memory.swap")?;
    Ok(Metrics {
        cpu: Cpu {
            usage: CpuUsage {
                total: take(&cpu, "usage_usec") * 1000,
                kernel: take(&cpu, "system_usec") * 1000,
                user: take(&cpu, "user_usec") * 1000,
                ..CpuUsage::default()
            },
            throttling: Throttling {
                periods: take(&cpu, "nr_periods"),
                throttled_periods: take(&cpu, "nr_throttled"),
                throttled_time: take(&cpu, "throttled_usec") * 1000,
            },
            psi: folder.psi("cpu.pressure")?,
        },
        cpuset: Cpuset::default(),
        memory: Memory {
            cache: take(&raw, "file"),
            // together, as v1 has it; the peaks were at different times
            swap: Amount {
                limit: usage.limit.saturating_add(swap.limit),
                usage: usage.usage + swap.usage,
                max: 0,
                failcnt: 0,
            },
            usage,
            raw,
            psi: folder.psi("memory.pressure")?,
            ..Memory::default()
        },
        pids: pids(folder)?,
        blkio: Blkio {
            tables: io_stat(folder)?,
            psi: folder.psi("io.pressure")?,
        },
        hugetlb: hugetlb_v2(folder)?,
        rdma: rdma(folder)?,
    })
}

fn pids(folder: &Folder<'_>) -> Result<Pids, Error> {
    let limit = folder.number("pids.max")?;
    Ok(Pids {
        current: folder.number("pids.current")?,
        limit: if limit == u64::MAX { 0 } else { limit },
    })
}

type Tables = BTreeMap<&'static str, Vec<BlkioEntry>>;

/// `8:0 rbytes=1 wbytes=2 rios=3 …`
fn io_stat(folder: &Folder<'_>) -> Result<Tables, Error> {
    let mut tables = Tables::new();
    for line in folder.text("io.stat")?.unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(numbers) else {
            continue;
        };
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or_default();
            let (table, op) = match key {
                "rbytes" => ("ioServiceBytesRecursive", "Read"),
                "wbytes" => ("ioServiceBytesRecursive", "Write"),
                "rios" => ("ioServicedRecursive", "Read"),
                "wios" => ("ioServicedRecursive", "Write"),
                _ => continue,
            };
            let value = value.parse().map_err(|_| folder.malformed("io.stat"))?;
            tables.entry(table).or_default().push(BlkioEntry {
                major,
                minor,
                op: op.to_owned(),
                value,
            });
        }
    }
    Ok(tables)
}

fn numbers(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn hugetlb_v2(folder: &Folder<'_>) -> Result<BTreeMap<String, Hugetlb>, Error> {
    let mut found = BTreeMap::new();
    for size in folder.page_sizes(".current")? {
        let events = folder.keyed(&format!("hugetlb.{size}.events"))?;
        let usage = Hugetlb {
            usage: folder.number(&format!("hugetlb.{size}.current"))?,
            max: 0,
            failcnt: take(&events, "max"),
        };
        found.insert(size, usage);
    }
    Ok(found)
}

/// `mlx5_0 hca_handle=2 hca_object=max`, in rdma.current and rdma.max.
fn rdma(folder: &Folder<'_>) -> Result<BTreeMap<String, [Map; 2]>, Error> {
    let mut found: BTreeMap<String, [Map; 2]> = BTreeMap::new();
    for (index, name) in ["rdma.current", "rdma.max"].iter().enumerate() {
        for line in folder.text(name)?.unwrap_or_default().lines() {
            let mut words = line.split_whitespace();
            let device = words.next().unwrap_or_default().to_owned();
            for word in words {
                let (key, value) = word.split_once('=').unwrap_or_default();
                let value = match value {
                    "max" => u64::MAX,
                    value => value.parse().map_err(|_| folder.malformed(name))?,
                };
                if let Some(map) = found.entry(device.clone()).or_default().get_mut(index) {
                    map.insert(key.to_owned(), value);
                }
            }
        }
    }
    Ok(found)
}

/// `cpuacct.stat` counts in USER_HZ, which is 100 on all our architectures: nanoseconds of one tick.
const TICK: u64 = 10_000_000;

fn v1<'a>(folder: impl Fn(&str) -> Folder<'a>) -> Result<Metrics, Error> {
    let (memory, cpu) = (folder("memory"), folder("cpu"));
    let raw = memory.keyed("memory.stat")?;
    let amount = |name: &str| -> Result<Amount, Error> {
        let number = |what: &str| memory.number(&format!("memory.{name}{what}"));
        Ok(Amount {
            limit: number("limit_in_bytes")?,
            usage: number("usage_in_bytes")?,
            max: number("max_usage_in_bytes")?,
            failcnt: number("failcnt")?,
        })
    };
    let throttling = cpu.keyed("cpu.stat")?;
    Ok(Metrics {
        cpu: Cpu {
            usage: cpuacct(&folder("cpuacct"))?,
            throttling: Throttling {
                periods: take(&throttling, "nr_periods"),
                throttled_periods: take(&throttling, "nr_throttled"),
                throttled_time: take(&throttling, "throttled_time"),
            },
            psi: None,
        },
        cpuset: cpuset(&folder("cpuset"))?,
        memory: Memory {
            cache: take(&raw, "cache"),
            usage: amount("")?,
            swap: amount("memsw.")?,
            kernel: amount("kmem.")?,
            kernel_tcp: amount("kmem.tcp.")?,
            raw,
            psi: None,
        },
        pids: pids(&folder("pids"))?,
        blkio: Blkio {
            tables: blkio(&folder("blkio"))?,
            psi: None,
        },
        hugetlb: hugetlb_v1(&folder("hugetlb"))?,
        rdma: rdma(&folder("rdma"))?,
    })
}

fn cpuacct(folder: &Folder<'_>) -> Result<CpuUsage, Error> {
    let ticks = folder.keyed("cpuacct.stat")?;
    let (mut percpu_user, mut percpu_kernel) = (Vec::new(), Vec::new());
    // after a line of headings: cpu user system
    for line in folder
        .text("cpuacct.usage_all")?
        .unwrap_or_default()
        .lines()
        .skip(1)
    {
        let mut words = line.split_whitespace().skip(1).map(str::parse);
        let (Some(Ok(user)), Some(Ok(system))) = (words.next(), words.next()) else {
            return Err(folder.malformed("cpuacct.usage_all"));
        };
        percpu_user.push(user);
        percpu_kernel.push(system);
    }
    Ok(CpuUsage {
        total: folder.number("cpuacct.usage")?,
        percpu: folder.numbers("cpuacct.usage_percpu")?,
        percpu_kernel,
        percpu_user,
        kernel: take(&ticks, "system") * TICK,
        user: take(&ticks, "user") * TICK,
    })
}

fn cpuset(folder: &Folder<'_>) -> Result<Cpuset, Error> {
    let mut flags = BTreeMap::new();
    for name in [
        "cpu_exclusive",
        "mem_hardwall",
        "mem_exclusive",
        "memory_migrate",
        "memory_spread_page",
        "memory_spread_slab",
        "memory_pressure",
        "sched_load_balance",
        "sched_relax_domain_level",
    ] {
        let file = format!("cpuset.{name}");
        let text = folder.text(&file)?.unwrap_or_else(|| "0".to_owned());
        flags.insert(name, text.parse().map_err(|_| folder.malformed(&file))?);
    }
    Ok(Cpuset {
        cpus: folder.list("cpuset.cpus")?,
        mems: folder.list("cpuset.mems")?,
        flags,
    })
}

/// The BFQ scheduler's counters where there are some, else those of the throttling.
fn blkio(folder: &Folder<'_>) -> Result<Tables, Error> {
    let mut tables = Tables::new();
    for (table, name, throttle) in [
        (
            "ioServiceBytesRecursive",
            "io_service_bytes_recursive",
            true,
        ),
        ("ioServicedRecursive", "io_serviced_recursive", true),
        ("ioQueueRecursive", "io_queued_recursive", false),
        ("ioServiceTimeRecursive", "io_service_time_recursive", false),
        ("ioWaitTimeRecursive", "io_wait_time_recursive", false),
        ("ioMergedRecursive", "io_merged_recursive", false),
        ("ioTimeRecursive", "time_recursive", false),
        ("sectorsRecursive", "sectors_recursive", false),
    ] {
        let mut names = vec![format!("blkio.bfq.{name}"), format!("blkio.{name}")];
        if throttle {
            names.push(format!("blkio.throttle.{name}"));
        }
        for file in names {
            let entries = blkio_entries(folder, &file)?;
            if !entries.is_empty() {
                tables.insert(table, entries);
                break;
            }
        }
    }
    Ok(tables)
}

/// `8:0 Read 123`, `8:0 123`; a line of the sum is left out.
fn blkio_entries(folder: &Folder<'_>, name: &str) -> Result<Vec<BlkioEntry>, Error> {
    let mut found = Vec::new();
    for line in folder.text(name)?.unwrap_or_default().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (device, op, value) = match words.as_slice() {
            ["Total", _] => continue,
            [device, value] => (device, "", value),
            [device, op, value] => (device, *op, value),
            _ => return Err(folder.malformed(name)),
        };
        let (Some((major, minor)), Ok(value)) = (numbers(device), value.parse()) else {
            return Err(folder.malformed(name));
        };
        found.push(BlkioEntry {
            major,
            minor,
            op: op.to_owned(),
            value,
        });
    }
    Ok(found)
}

fn hugetlb_v1(folder: &Folder<'_>) -> Result<BTreeMap<String, Hugetlb>, Error> {
    let mut found = BTreeMap::new();
    for size in folder.page_sizes(".usage_in_bytes")? {
        let number = |what: &str| folder.number(&format!("hugetlb.{size}.{what}"));
        let usage = Hugetlb {
            usage: number("usage_in_bytes")?,
            max: number("max_usage_in_bytes")?,
            failcnt: number("failcnt")?,
        };
        found.insert(size, usage);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    #[test]
    fn version_2() {
        let folder = folder(&[
            (
                "cpu.stat",
                "usage_usec 12\nuser_usec 5\nsystem_usec 7\nnr_periods 3\nnr_throttled 2\nthrottled_usec 9\n",
            ),
            (
                "cpu.pressure",
                "some avg10=0.50 avg60=0.00 avg300=0.00 total=17\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            ),
            ("memory.stat", "anon 1\nfile 2\n"),
            ("memory.current", "100\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "200\n"),
            ("memory.events", "max 4\noom 1\n"),
            ("memory.swap.current", "10\n"),
            ("memory.swap.max", "50\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
            ),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.events", "max 5\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            ("rdma.current", "mlx5_0 hca_handle=2 hca_object=3\n"),
        ]);
        let found = metrics(&Cgroup::V2(folder.path().into())).unwrap();
        let found = serde_json::to_value(found).unwrap();
        assert_eq!(
            found["cpu"]["usage"],
            json!({"total": 12000, "kernel": 7000, "user": 5000})
        );
        assert_eq!(
            found["cpu"]["throttling"],
            json!({"periods": 3, "throttledPeriods": 2, "throttledTime": 9000})
        );
        assert_eq!(
            found["cpu"]["psi"]["some"],
            json!({"avg10": 0.5, "avg60": 0.0, "avg300": 0.0, "total": 17})
        );
        assert_eq!(
            found["memory"]["usage"],
            json!({"limit": u64::MAX, "usage": 100, "max": 200, "failcnt": 4})
        );
        assert_eq!(
            found["memory"]["swap"],
            json!({"limit": u64::MAX, "usage": 110, "failcnt": 0})
        );
        assert_eq!(found["memory"]["raw"], json!({"anon": 1, "file": 2}));
        assert_eq!(found["pids"], json!({"current": 2}));
        assert_eq!(
            found["blkio"]["ioServicedRecursive"][1],
            json!({"major": 8, "op": "Write", "value": 4})
        );
        assert_eq!(
            found["hugetlb"],
            json!({"2MB": {"usage": 2_097_152, "failcnt": 5}})
        );
        assert_eq!(found["rdma"]["mlx5_0"][0]["hca_object"], 3);
        let empty = tempfile::tempdir().unwrap();
        let found = metrics(&Cgroup::V2(empty.path().into())).unwrap();
        assert_eq!(found, Metrics::default());
    }

    #[test]
    fn version_1() {
        let folder = folder(&[
            ("cpuacct.usage", "30\n"),
            ("cpuacct.usage_percpu", "10 20 \n"),
            ("cpuacct.usage_all", "cpu user system\n0 4 6\n1 20 0\n"),
            ("cpuacct.stat", "user 1\nsystem 2\n"),
            ("cpuset.cpus", "0-1,7\n"),
            ("cpuset.sched_relax_domain_level", "-1\n"),
            ("memory.stat", "cache 5\n"),
            ("memory.kmem.tcp.failcnt", "3\n"),
            (
                "blkio.throttle.io_serviced_recursive",
                "8:0 Read 4\nTotal 4\n",
            ),
            ("blkio.time_recursive", "8:16 9\n"),
            ("hugetlb.1GB.usage_in_bytes", "0\n"),
        ]);
        let found: Value =
            serde_json::to_value(v1(|_| Folder(Some(folder.path()))).unwrap()).unwrap();
        let usage = json!({"total": 30, "percpu": [10, 20], "percpu_kernel": [6, 0], "percpu_user": [4, 20], "kernel": 20_000_000, "user": 10_000_000});
        assert_eq!(found["cpu"]["usage"], usage);
        assert_eq!(found["cpuset"]["cpus"], json!([0, 1, 7]));
        assert_eq!(found["cpuset"]["sched_relax_domain_level"], -1);
        assert_eq!(
            found["memory"]["kernelTCP"],
            json!({"limit": 0, "failcnt": 3})
        );
        assert_eq!(
            found["blkio"]["ioServicedRecursive"],
            json!([{"major": 8, "op": "Read", "value": 4}])
        );
        assert_eq!(
            found["blkio"]["ioTimeRecursive"],
            json!([{"major": 8, "minor": 16, "value": 9}])
        );
        assert_eq!(found["hugetlb"], json!({"1GB": {"failcnt": 0}}));
    }

    #[test]
    fn nonsense_is_an_error() {
        for (name, text) in [
            ("memory.stat", "anon\n"),
            ("cpu.pressure", "none avg10=1\n"),
            ("memory.current", "many"),
            ("io.stat", "8:0 rbytes=x\n"),
        ] {
            let folder = folder(&[(name, text)]);
            let found = metrics(&Cgroup::V2(folder.path().into()));
            assert!(matches!(found, Err(Error::Read { .. })), "{name}");
        }
    }
}
