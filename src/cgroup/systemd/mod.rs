//! Transient units of systemd, which owns the cgroup tree where it runs.

use std::path::Path;

use std::collections::HashMap;

use oci_spec::runtime::LinuxResources;

use super::{Cgroup, Error, Unit};

/// A user's manager is asked by everybody but root of the machine.
pub(super) fn is_user() -> Result<bool, Error> {
    super::devices::unprivileged()
}

/// Is this a machine of systemd's (sd_booted(3))?
pub(super) fn require() -> Result<(), Error> {
    if Path::new("/run/systemd/system").is_dir() {
        return Ok(());
    }
    Err(Error::Systemd {
        what: "use systemd for cgroups".to_owned(),
        why: "it does not run here (no /run/systemd/system); leave --systemd-cgroup out".to_owned(),
    })
}

/// Path of the user manager's own cgroup.
pub(super) fn control_group() -> Result<String, Error> {
    require()?;
    Err(Error::Systemd {
        what: "find the user's manager".to_owned(),
        why: "not supported yet".to_owned(),
    })
}

fn not_yet(unit: &Unit) -> Error {
    Error::Systemd {
        what: unit.name.clone(),
        why: "not supported yet".to_owned(),
    }
}

/// Starts the unit.
pub(super) fn begin(
    unit: &Unit,
    _cgroup: &Cgroup,
    _pid: i32,
    _resources: &LinuxResources,
    _annotations: &HashMap<String, String>,
) -> Result<(), Error> {
    Err(not_yet(unit))
}

/// Sets properties.
pub(super) fn update(
    unit: &Unit,
    _cgroup: &Cgroup,
    _resources: &LinuxResources,
) -> Result<(), Error> {
    Err(not_yet(unit))
}

/// Stops the unit.
pub(super) fn end(_unit: &Unit) -> Result<(), Error> {
    Ok(())
}
