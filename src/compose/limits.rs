//! Phase 6, resource limits: the keys of a service, `deploy.resources`, `ulimits`, `x-sampan.limits`.
//!
//! *Invariants.* A limit that is written twice (`mem_limit` and `deploy.resources.limits.memory`) must say the same,
//! as in docker compose; 0 is no limit where Docker reads it so.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::node::{At, Result};
use super::project::{Blkio, Limits};

/// Limits of a service.
pub(super) fn of_service(at: &At<'_>) -> Result<Limits> {
    let deploy = |kind: &str, key: &str| at.find(&["deploy", "resources", kind, key]);
    let cpus = one_of(at.get("cpus"), deploy("limits", "cpus"), |at| at.cpus())?;
    let limits = Limits {
        cpus: quota(at, cpus)?.filter(|cpus| *cpus > 0.0),
        cpu_shares: cpu_shares(at)?,
        cpuset: cpuset(at)?,
        memory: one_of(at.get("mem_limit"), deploy("limits", "memory"), |at| {
            at.bytes()
        })?
        .filter(|bytes| *bytes > 0),
        memory_reservation: one_of(
            at.get("mem_reservation"),
            deploy("reservations", "memory"),
            |at| at.bytes(),
        )?
        .filter(|bytes| *bytes > 0),
        memory_swap: at
            .get("memswap_limit")
            .map(|at| swap(&at))
            .transpose()?
            .filter(|bytes| *bytes != 0),
        pids: one_of(at.get("pids_limit"), deploy("limits", "pids"), pids)?
            .filter(|pids| *pids != 0),
        blkio: at.get("blkio_config").map(|at| blkio(&at)).transpose()?,
    };
    consistent(at, limits)
}

/// `x-sampan.limits`.
pub(super) fn of_pod(at: &At<'_>) -> Result<Limits> {
    let limits = Limits {
        cpus: at
            .get("cpus")
            .map(|at| at.cpus())
            .transpose()?
            .filter(|cpus| *cpus > 0.0),
        cpu_shares: cpu_shares(at)?,
        cpuset: cpuset(at)?,
        memory: at
            .get("memory")
            .map(|at| at.bytes())
            .transpose()?
            .filter(|bytes| *bytes > 0),
        memory_reservation: at
            .get("memory_reservation")
            .map(|at| at.bytes())
            .transpose()?
            .filter(|bytes| *bytes > 0),
        memory_swap: at
            .get("memory_swap")
            .map(|at| swap(&at))
            .transpose()?
            .filter(|bytes| *bytes != 0),
        pids: at
            .get("pids")
            .map(|at| pids(&at))
            .transpose()?
            .filter(|pids| *pids != 0),
        blkio: None,
    };
    consistent(at, limits)
}

/// What the kernel would refuse later with less to say.
fn consistent(at: &At<'_>, limits: Limits) -> Result<Limits> {
    let error = |what: &str| Err(at.key_pos.error(&at.path, what));
    match (limits.memory, limits.memory_reservation, limits.memory_swap) {
        (Some(limit), Some(reservation), _) if reservation > limit => {
            error("the memory reservation is larger than the memory limit; lower it")
        }
        (None, _, Some(swap)) if swap > 0 => {
            error("a limit of memory plus swap needs a memory limit")
        }
        (Some(limit), _, Some(swap)) if u64::try_from(swap).is_ok_and(|swap| swap < limit) => {
            error("the limit of memory plus swap is smaller than the memory limit; raise it")
        }
        _ => Ok(limits),
    }
}

/// A value that may stand in either place.
fn one_of<T: PartialEq>(
    own: Option<At<'_>>,
    deploy: Option<At<'_>>,
    read: impl Fn(&At<'_>) -> Result<T>,
) -> Result<Option<T>> {
    match (own, deploy) {
        (None, None) => Ok(None),
        (Some(at), None) | (None, Some(at)) => read(&at).map(Some),
        (Some(own), Some(deploy)) => {
            let value = read(&deploy)?;
            match read(&own)? == value {
                true => Ok(Some(value)),
                false => {
                    let key = own.path.rsplit('.').next().unwrap_or_default();
                    Err(deploy.error(format_args!(
                        "contradicts {key} at {}; remove one",
                        own.node.pos
                    )))
                }
            }
        }
    }
}

/// `cpu_quota` per `cpu_period` (microseconds, 100 ms when not given) is another way to write `cpus`.
fn quota(at: &At<'_>, cpus: Option<f64>) -> Result<Option<f64>> {
    let (quota, period) = (at.get("cpu_quota"), at.get("cpu_period"));
    match (quota, period) {
        (None, None) => Ok(cpus),
        (None, Some(period)) => Err(period.error("needs a cpu_quota; use cpus")),
        (Some(quota), _) if cpus.is_some() => {
            Err(quota.error("does not go together with cpus; remove one"))
        }
        (Some(quota), period) => {
            // the kernel's bounds: 1 ms to 1 s, cgroup-v2.rst "cpu.max"
            let period = period.map_or(Ok(100_000), |at| at.int_in(1_000, 1_000_000))?;
            let quota = quota.int_in(-1, 1_000_000_000)?;
            Ok((quota > 0).then(|| quota as f64 / period as f64))
        }
    }
}

fn cpu_shares(at: &At<'_>) -> Result<Option<u64>> {
    let Some(at) = at.get("cpu_shares") else {
        return Ok(None);
    };
    match at.int()? {
        0 => Ok(None),
        _ => at.int_in(2, 262_144).map(|shares| Some(shares as u64)),
    }
}

fn cpuset(at: &At<'_>) -> Result<Option<String>> {
    let Some(at) = at.get("cpuset") else {
        return Ok(None);
    };
    let text = at.raw()?;
    let number = |s: &str| {
        s.parse::<u32>()
            .ok()
            .filter(|_| s.bytes().all(|b| b.is_ascii_digit()))
    };
    let good = text.split(',').all(|part| match part.split_once('-') {
        Some((first, last)) => {
            matches!((number(first), number(last)), (Some(a), Some(b)) if a <= b)
        }
        None => number(part).is_some(),
    });
    match good {
        true => Ok(Some(text.to_owned())),
        false => Err(at.error(format_args!(
            "{text:?} is not a list of cpus; write something like 0-1,3"
        ))),
    }
}

fn swap(at: &At<'_>) -> Result<i64> {
    match at.raw()? {
        "-1" => Ok(-1),
        _ => i64::try_from(at.bytes()?).map_err(|_| at.error("too large")),
    }
}

fn pids(at: &At<'_>) -> Result<i64> {
    at.int_in(-1, i64::from(i32::MAX))
}

fn blkio(at: &At<'_>) -> Result<Blkio> {
    let rates = |key: &str, read: fn(&At<'_>) -> Result<u64>| -> Result<Vec<(PathBuf, u64)>> {
        at.items_of(key)?
            .iter()
            .map(|item| rate(item, read))
            .collect()
    };
    let operations = |at: &At<'_>| at.int_in(0, i64::MAX).map(i64::unsigned_abs);
    Ok(Blkio {
        weight: at
            .get("weight")
            .map(|at| at.int_in(10, 1000))
            .transpose()?
            .map(|weight| weight as u16),
        read_bps: rates("device_read_bps", |at| at.bytes())?,
        write_bps: rates("device_write_bps", |at| at.bytes())?,
        read_iops: rates("device_read_iops", operations)?,
        write_iops: rates("device_write_iops", operations)?,
    })
}

fn rate(item: &At<'_>, read: fn(&At<'_>) -> Result<u64>) -> Result<(PathBuf, u64)> {
    let (Some(path), Some(rate)) = (item.get("path"), item.get("rate")) else {
        return Err(item.error("needs path and rate"));
    };
    Ok((super::mount::container_path(&path)?.into(), read(&rate)?))
}

/// Resource names of getrlimit(2).
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `ulimits`: soft and hard, -1 unlimited.
pub(super) fn ulimits(at: &At<'_>) -> Result<BTreeMap<String, (i64, i64)>> {
    let entries = at.entries_of("ulimits")?.into_iter();
    entries
        .map(|(name, value)| {
            if !ULIMITS.contains(&name) {
                return Err(value.key_pos.error(
                    &value.path,
                    format_args!("not a limit; use one of {}", ULIMITS.join(", ")),
                ));
            }
            let side = |key: &str| match value.get(key) {
                Some(at) => at.int_in(-1, i64::MAX),
                None => Err(value.error(format_args!("has no {key} limit"))),
            };
            let (soft, hard) = (side("soft")?, side("hard")?);
            match hard != -1 && (soft == -1 || soft > hard) {
                true => Err(value.error(format_args!(
                    "the soft limit {soft} is above the hard limit {hard}; lower it"
                ))),
                false => Ok((name.to_owned(), (soft, hard))),
            }
        })
        .collect()
}
