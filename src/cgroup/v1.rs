//! Operations on version 1 hierarchies, and on the unified one beside them on hybrid hosts.
//!
//! Values go through cgroups-rs where its `fs::*Controller` does one write and reports the error:
//! memory limit, memsw, soft limit and swappiness; shares, quota and period; cpuset lists; pids.max; the
//! freezer. They are written directly where it does not: `apply` of every controller drops errors,
//! `set_kmem_limit` takes EOPNOTSUPP for success, `HugeTlbController` has no −1, `BlkIoController`
//! chooses between weight files by itself, `CpuController` has no burst or idle, and `cgroup.procs`
//! would need one controller type for each hierarchy. It opens with O_CREAT, which cgroupfs answers with
//! EACCES for a file that isn't there, so existence is asked first.
//!
//! *Invariants:* controllers mounted together are one folder and are touched once. A new cpuset has
//! processors and nodes before a process can come (cpusets.rst: without them attach is ENOSPC).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use cgroups_rs::FreezerState;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::freezer::FreezerController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{MaxValue, error::Error as CgroupsError};
use oci_spec::runtime::LinuxResources;

use super::v2::{self, PATIENCE};
use super::{Cgroup, Error, devices, file, limits};

type Controllers = BTreeMap<String, PathBuf>;

pub(super) fn create(controllers: &Controllers, unified: Option<&Path>) -> Result<(), Error> {
    for (name, path) in controllers {
        create_folder(path, name == "cpuset")?;
    }
    match unified {
        Some(path) => v2::create(path),
        None => Ok(()),
    }
}

/// Makes `path` and what is missing above it, within a mounted hierarchy.
fn create_folder(path: &Path, cpuset: bool) -> Result<(), Error> {
    let mut chain: Vec<&Path> = path
        .ancestors()
        .take_while(|folder| !folder.exists() || folder.join("cgroup.procs").exists())
        .collect();
    chain.reverse();
    let Some((root, below)) = chain.split_first().filter(|(root, _)| root.exists()) else {
        return Err(Error::Hierarchy(format!(
            "{} is not below a mount of type cgroup",
            path.display()
        )));
    };
    let mut parent = *root;
    for folder in below {
        v2::make(folder)?;
        if cpuset {
            inherit(parent, folder)?;
        }
        parent = folder;
    }
    Ok(())
}

/// Fills an empty cpuset from its parent.
fn inherit(parent: &Path, folder: &Path) -> Result<(), Error> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if file::read(&folder.join(name))?.is_empty() {
            file::write(&folder.join(name), &file::read(&parent.join(name))?)?;
        }
    }
    Ok(())
}

pub(super) fn apply(
    controllers: &Controllers,
    unified: Option<&Path>,
    resources: &LinuxResources,
) -> Result<(), Error> {
    let mut here = resources.clone();
    apply_unified(controllers, unified, &mut here)?;
    let settings = limits::v1(&here)?;
    for setting in &settings {
        if !controllers.contains_key(&setting.controller) {
            return Err(unavailable(
                &setting.controller,
                format!("{} to {:?}", setting.file, setting.value),
            ));
        }
    }
    if let Some(memory) = controllers.get("memory") {
        v2::check_before_update(&here, &memory.join("memory.usage_in_bytes"))?;
    }
    let folder = |setting: &limits::Setting| {
        controllers
            .get(&setting.controller)
            .map_or(Path::new(""), PathBuf::as_path)
    };
    v2::write_all(&settings, folder, write)?;
    apply_devices(controllers, here.devices().as_deref().unwrap_or_default())
}

fn unavailable(controller: &str, what: String) -> Error {
    Error::Controller {
        controller: controller.to_owned(),
        what,
        why: "its hierarchy is not mounted, not visible or not writable here; mount it, or name a cgroup that may be written to with --cgroup-parent".to_owned(),
    }
}

/// On a hybrid host the unified hierarchy has what v1 does not; takes that part out of `resources`.
fn apply_unified(
    controllers: &Controllers,
    unified: Option<&Path>,
    resources: &mut LinuxResources,
) -> Result<(), Error> {
    let Some(path) = unified else { return Ok(()) };
    let mut there = LinuxResources::default();
    there.set_devices(None);
    if !controllers.contains_key("hugetlb") {
        there.set_hugepage_limits(resources.hugepage_limits().clone());
        resources.set_hugepage_limits(None);
    }
    if !controllers.contains_key("rdma") {
        there.set_rdma(resources.rdma().clone());
        resources.set_rdma(None);
    }
    if !controllers.contains_key("devices") {
        there.set_devices(resources.devices().clone());
        resources.set_devices(None);
    }
    let nothing =
        there.hugepage_limits().is_none() && there.rdma().is_none() && there.devices().is_none();
    if nothing {
        return Ok(());
    }
    v2::apply(path, &there)
}

fn apply_devices(
    controllers: &Controllers,
    list: &[oci_spec::runtime::LinuxDeviceCgroup],
) -> Result<(), Error> {
    let rules = devices::rules(list)?;
    if rules.is_empty() {
        return Ok(());
    }
    let Some(folder) = controllers.get("devices") else {
        if devices::unprivileged()? {
            return Ok(());
        }
        return Err(unavailable("devices", "device rules".to_owned()));
    };
    let current = file::read(&folder.join("devices.list"))?;
    for (name, line) in devices::changes(&rules, &current) {
        file::write(&folder.join(name), &line)?;
    }
    Ok(())
}

/// One value, through cgroups-rs where the header says so.
fn write(path: &Path, value: &str) -> io::Result<()> {
    if !path.exists() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let folder = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    let file_name = path.file_name().and_then(|name| name.to_str());
    let memory = || MemController::new(folder.clone(), folder.clone(), false);
    let cpu = || CpuController::new(folder.clone(), folder.clone(), false);
    let cpuset = || CpuSetController::new(folder.clone(), folder.clone(), false);
    let result = match (file_name.unwrap_or_default(), value.parse::<i64>()) {
        ("memory.limit_in_bytes", Ok(limit)) => memory().set_limit(limit),
        ("memory.memsw.limit_in_bytes", Ok(limit)) => memory().set_memswap_limit(limit),
        ("memory.soft_limit_in_bytes", Ok(limit)) => memory().set_soft_limit(limit),
        ("memory.swappiness", Ok(value)) => memory().set_swappiness(value.unsigned_abs()),
        ("cpu.shares", Ok(shares)) => cpu().set_shares(shares.unsigned_abs()),
        ("cpu.cfs_quota_us", Ok(quota)) => cpu().set_cfs_quota(quota),
        ("cpu.cfs_period_us", Ok(period)) => cpu().set_cfs_period(period.unsigned_abs()),
        ("cpuset.cpus", _) => cpuset().set_cpus(value),
        ("cpuset.mems", _) => cpuset().set_mems(value),
        ("pids.max", Ok(limit)) => PidController::new(folder.clone(), folder.clone(), false)
            .set_pid_max(MaxValue::Value(limit)),
        _ => return file::write_io(path, value),
    };
    result.map_err(|error| io_error(&error))
}

/// The system's answer that cgroups-rs wrapped.
fn io_error(error: &CgroupsError) -> io::Error {
    let source = std::error::Error::source(error);
    match source.and_then(|cause| cause.downcast_ref::<io::Error>()) {
        Some(cause) => cause
            .raw_os_error()
            .map_or_else(|| cause.kind().into(), io::Error::from_raw_os_error),
        None => io::Error::other(error.to_string()),
    }
}

fn freezer(folder: &Path) -> FreezerController {
    FreezerController::new(folder.to_path_buf(), folder.to_path_buf(), false)
}

/// One change of `freezer.state`; a missing cgroup is success.
fn set_state(folder: &Path, frozen: bool) -> Result<(), Error> {
    let path = folder.join("freezer.state");
    if !path.exists() {
        return Ok(());
    }
    let (result, value) = if frozen {
        (freezer(folder).freeze(), "FROZEN")
    } else {
        (freezer(folder).thaw(), "THAWED")
    };
    match result.map_err(|error| io_error(&error)) {
        Err(source) if !file::gone(&source) => Err(Error::Write {
            path,
            value: value.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Has the freezer got there? A missing cgroup has.
fn is(folder: &Path, wanted: &FreezerState) -> Result<bool, Error> {
    let path = folder.join("freezer.state");
    if !path.exists() {
        return Ok(true);
    }
    match freezer(folder).state() {
        Ok(state) => Ok(std::mem::discriminant(&state) == std::mem::discriminant(wanted)),
        Err(error) => Err(Error::Read {
            path,
            source: io_error(&error),
        }),
    }
}

pub(super) fn freeze(
    controllers: &Controllers,
    unified: Option<&Path>,
    frozen: bool,
) -> Result<(), Error> {
    let Some(folder) = controllers.get("freezer") else {
        return match unified {
            Some(path) => v2::freeze(path, frozen),
            None => Err(unavailable("freezer", "frozen or thawed".to_owned())),
        };
    };
    let wanted = if frozen {
        FreezerState::Frozen
    } else {
        FreezerState::Thawed
    };
    let done = file::wait(PATIENCE, || {
        // again and again: a task that was forked or woken meanwhile leaves it FREEZING
        // (freezer-subsystem.rst)
        set_state(folder, frozen)?;
        is(folder, &wanted)
    })?;
    if done {
        return Ok(());
    }
    if frozen {
        set_state(folder, false)?;
    }
    Err(Error::Freeze {
        path: folder.clone(),
        wanted: if frozen { "frozen" } else { "thawed" },
        seconds: PATIENCE.as_secs(),
    })
}

pub(super) fn kill(
    cgroup: &Cgroup,
    controllers: &Controllers,
    unified: Option<&Path>,
) -> Result<(), Error> {
    if let Some(path) = unified {
        // all at once where it works; the rounds below see to whoever is left
        let _ = file::write_io(&path.join("cgroup.kill"), "1");
    }
    let folder = controllers.get("freezer");
    let stop = || match folder {
        Some(folder) => v2::settle(|| {
            set_state(folder, true)?;
            is(folder, &FreezerState::Frozen)
        }),
        None => Ok(()),
    };
    let go_on = || {
        if let Some(folder) = folder {
            for folder in file::walk(folder)? {
                set_state(&folder, false)?;
            }
        }
        Ok(())
    };
    v2::kill_loop(cgroup, stop, go_on)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_without_controller_names_it() {
        let resources = serde_json::from_str(r#"{"memory":{"limit":4096}}"#).unwrap();
        match apply(&Controllers::new(), None, &resources) {
            Err(Error::Controller {
                controller, what, ..
            }) => {
                assert_eq!(
                    (controller.as_str(), what.as_str()),
                    ("memory", "memory.limit_in_bytes to \"4096\"")
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn errors_of_the_system_come_through() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pids.max");
        assert_eq!(
            write(&path, "5").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert!(!path.exists());
        std::fs::create_dir(&path).unwrap();
        assert_eq!(
            write(&path, "5").unwrap_err().raw_os_error(),
            Some(libc::EISDIR)
        );
    }
}
