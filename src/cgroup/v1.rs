//! Operations on version 1 hierarchies, and on the unified one beside them on hybrid hosts.
//!
//! Values go through cgroups-rs where its `fs::*Controller` does one write and reports the error:
//! memory limit, memsw, soft limit and swappiness; shares, quota and period; cpuset lists; pids.max.
//! They are written directly where it does not: `apply` of every controller drops errors,
//! `set_kmem_limit` takes EOPNOTSUPP for success, `HugeTlbController` has no −1, `BlkIoController`
//! chooses between weight files by itself, `CpuController` has no burst or idle, `FreezerController`
//! asks for the state by a discriminant, and `cgroup.procs` would need one controller type for each
//! hierarchy. It opens with O_CREAT, which cgroupfs answers with EACCES for a file that isn't there,
//! so existence is asked first. Its units of systemd need threads, which a process that clones may not
//! have: those are in systemd.
//!
//! *Invariants:* controllers mounted together are one folder and are touched once. A new cpuset has
//! processors and nodes before a process can come (cpusets.rst: without them attach is ENOSPC).

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{MaxValue, error::Error as CgroupsError};
use nix::libc;
use oci_spec::runtime::LinuxResources;

use super::v2::{self, PATIENCE};
use super::{Cgroup, Error, Write, devices, file, limits};

type Controllers = BTreeMap<String, PathBuf>;

/// Makes the folders; whether all of them are new.
pub(super) fn create(controllers: &Controllers, unified: Option<&Path>) -> Result<bool, Error> {
    let mut new = true;
    let mut done: Vec<&Path> = Vec::new();
    for (name, path) in controllers {
        let cpuset = name == "cpuset";
        if cpuset || !done.contains(&path.as_path()) {
            let made = create_folder(path, cpuset)?;
            new &= made || done.contains(&path.as_path());
            done.push(path);
        }
    }
    if let Some(path) = unified {
        new &= v2::create(path)?;
    }
    Ok(new)
}

/// Makes `path`, and what is missing above it within a mounted hierarchy; whether it is new.
fn create_folder(path: &Path, cpuset: bool) -> Result<bool, Error> {
    let parent = path.parent().unwrap_or(path);
    let new = match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let existing = path.ancestors().find(|folder| folder.exists());
            if !existing.is_some_and(|folder| folder.join("cgroup.procs").exists()) {
                return Err(Error::Hierarchy(format!(
                    "{} is not below a mount of type cgroup",
                    path.display()
                )));
            }
            create_folder(parent, cpuset)?;
            v2::make(path)?
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(source) => {
            return Err(Error::Create {
                path: path.to_path_buf(),
                source,
            });
        }
        Ok(()) => true,
    };
    // a root has what there is, and nothing above
    if cpuset && (new || parent.join("cpuset.cpus").exists()) {
        inherit(parent, path, new)?;
    }
    Ok(new)
}

/// Fills an empty cpuset from its parent, and that first, when somebody made it and left it empty: the root never is.
fn inherit(parent: &Path, folder: &Path, new: bool) -> Result<(), Error> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if !new && !file::read(&folder.join(name))?.is_empty() {
            continue;
        }
        let mut value = file::read(&parent.join(name))?;
        if value.is_empty() {
            let above = parent.parent().unwrap_or(parent);
            inherit(above, parent, false)?;
            value = file::read(&parent.join(name))?;
        }
        file::write(&folder.join(name), &value)?;
    }
    Ok(())
}

pub(super) fn writes(
    controllers: &Controllers,
    unified: Option<&Path>,
    resources: &LinuxResources,
) -> Result<Vec<Write>, Error> {
    let mut here = resources.clone();
    let there = unified.and_then(|path| Some((path, take_unified(controllers, &mut here)?)));
    let mut writes = match there {
        Some((path, there)) => v2::writes(path, &there)?,
        None => Vec::new(),
    };
    let folder = |controller: &str| controllers.get(controller).cloned().unwrap_or_default();
    let settings = limits::v1(&here)?.into_iter().map(|setting| Write {
        file: folder(&setting.controller).join(setting.file),
        value: setting.value,
    });
    writes.extend(settings);
    let rules = devices::rules(here.devices().as_deref().unwrap_or_default())?;
    // what a fresh cgroup below one without rules has
    let changes = devices::changes(&rules, "a *:* rwm\n");
    writes.extend(changes.into_iter().map(|(name, value)| Write {
        file: folder("devices").join(name),
        value,
    }));
    Ok(writes)
}

/// Sets the limits.
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
    let folder = |setting: &limits::Setting| {
        controllers
            .get(&setting.controller)
            .map_or(Path::new(""), PathBuf::as_path)
    };
    v2::write_all(&settings, folder, write).map_err(|error| explain_memory(error, controllers))?;
    apply_devices(controllers, here.devices().as_deref().unwrap_or_default())
}

/// memory.rst, "limit_in_bytes": below what is in use and cannot be reclaimed is EBUSY.
fn explain_memory(error: Error, controllers: &Controllers) -> Error {
    let error = match error {
        Error::Several(errors) => {
            let explained = errors.into_iter().map(|e| explain_memory(e, controllers));
            return Error::Several(explained.collect());
        }
        error => error,
    };
    match (&error, controllers.get("memory")) {
        (
            Error::Write {
                path,
                value,
                source,
            },
            Some(folder),
        ) if path.ends_with("memory.limit_in_bytes")
            && source.raw_os_error() == Some(libc::EBUSY) =>
        {
            let read = |name: &str| file::read(&folder.join(name)).unwrap_or_default();
            Error::Invalid {
                field: "memory.limit".to_owned(),
                why: format!(
                    "unable to set memory limit to {value} (current usage: {}, peak usage: {})",
                    read("memory.usage_in_bytes"),
                    read("memory.max_usage_in_bytes")
                ),
            }
        }
        _ => error,
    }
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
    match unified.and_then(|path| Some((path, take_unified(controllers, resources)?))) {
        Some((path, there)) => v2::apply(path, &there),
        None => Ok(()),
    }
}

/// That part, if there is any.
fn take_unified(
    controllers: &Controllers,
    resources: &mut LinuxResources,
) -> Option<LinuxResources> {
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
    let something =
        there.hugepage_limits().is_some() || there.rdma().is_some() || there.devices().is_some();
    something.then_some(there)
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
    let mut open = None;
    for (name, line) in devices::changes(&rules, &current) {
        let path = folder.join(name);
        let failed = |source| Error::Write {
            path: path.clone(),
            value: line.clone(),
            source,
        };
        // a dozen lines go to the same file, one write each
        let mut file = match open.take() {
            Some((same, file)) if same == name => file,
            _ => file::to_write(&path).map_err(failed)?,
        };
        file.write_all(line.as_bytes()).map_err(failed)?;
        open = Some((name, file));
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

/// One change of `freezer.state`; a missing cgroup is success.
fn set_state(folder: &Path, frozen: bool) -> Result<(), Error> {
    let path = folder.join("freezer.state");
    let value = if frozen { "FROZEN" } else { "THAWED" };
    match file::write_io(&path, value) {
        Err(source) if !file::gone(&source) => Err(Error::Write {
            path,
            value: value.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Has the freezer got there? A missing cgroup has.
fn is(folder: &Path, wanted: &str) -> Result<bool, Error> {
    let state = file::read_optional(&folder.join("freezer.state"))?;
    Ok(state.is_none_or(|state| state == wanted))
}

/// freezer-subsystem.rst: FREEZING is not there yet, but whoever enters is stopped.
pub(super) fn is_frozen(controllers: &Controllers, unified: Option<&Path>) -> Result<bool, Error> {
    match (controllers.get("freezer"), unified) {
        (Some(folder), _) => {
            let state = file::read_optional(&folder.join("freezer.state"))?;
            Ok(state.is_some_and(|state| state != "THAWED"))
        }
        (None, Some(path)) => v2::is_frozen(path),
        (None, None) => Ok(false),
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
    let wanted = if frozen { "FROZEN" } else { "THAWED" };
    let done = file::wait(PATIENCE, || {
        // again and again: a task that was forked or woken meanwhile leaves it FREEZING
        // (freezer-subsystem.rst)
        set_state(folder, frozen)?;
        is(folder, wanted)
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
            is(folder, "FROZEN")
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
