//! Transient units of systemd, which owns the cgroup tree where it runs (systemd.io/CGROUP_DELEGATION).
//!
//! *Invariants:* a unit exists from [`begin`] to [`end`]; missing is success at the end. What a unit has no property for is written to
//! its folders by the caller, which `Delegate=` allows. Root of the machine asks the system's manager, everybody else its own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::limits::Present;
use super::{Cgroup, Error, Unit};

mod annotation;
mod bus;
mod properties;

use bus::{Body, Connection, Failure};

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

/// Path of the user manager's own cgroup, from the mount point.
pub(super) fn control_group() -> Result<String, Error> {
    require()?;
    let what = "find the cgroup of the user's manager";
    connect(true)?
        .property("ControlGroup")
        .map_err(|failure| told(what, failure))
}

fn told(what: impl Into<String>, why: impl ToString) -> Error {
    Error::Systemd {
        what: what.into(),
        why: why.to_string(),
    }
}

/// Sockets to try: the manager's own, which needs no bus; then the bus. The second is whether it is one.
fn sockets(user: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<(PathBuf, bool)> {
    if !user {
        return vec![
            ("/run/systemd/private".into(), false),
            ("/run/dbus/system_bus_socket".into(), true),
        ];
    }
    let mut found = Vec::new();
    let runtime = variable("XDG_RUNTIME_DIR").unwrap_or_else(|| {
        let uid = rustix::process::getuid().as_raw();
        PathBuf::from(format!("/run/user/{uid}"))
    });
    found.push((runtime.join("systemd/private"), false));
    // only the form that is a plain path: no other one is used for sessions
    let address = variable("DBUS_SESSION_BUS_ADDRESS");
    let path = address.as_deref().and_then(|address| {
        let path = address.to_str()?.strip_prefix("unix:path=")?;
        let path = path.split([',', ';']).next()?;
        (!path.contains('%')).then(|| PathBuf::from(path))
    });
    found.extend(path.map(|path| (path, true)));
    found.push((runtime.join("bus"), true));
    found
}

fn connect(user: bool) -> Result<Connection, Error> {
    let mut reasons = Vec::new();
    for (path, bus) in sockets(user, |name| std::env::var_os(name).map(PathBuf::from)) {
        match Connection::open(&path, bus) {
            Ok(connection) => return Ok(connection),
            Err(failure) => reasons.push(format!("{}: {failure}", path.display())),
        }
    }
    let whose = if user { "the user's" } else { "the system's" };
    Err(told(
        format!("connect to {whose} manager"),
        reasons.join("; "),
    ))
}

/// The manager's version, 252 of `252.38-1~deb12u1`; a property that is newer is left out.
fn version(connection: &mut Connection) -> Result<u32, Failure> {
    let text = connection.property("Version")?;
    let digits: String = text
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    Ok(digits.parse().unwrap_or(0))
}

/// Starts the unit with process `pid` in it, and waits until it has been moved.
pub(super) fn begin(
    unit: &Unit,
    cgroup: &Cgroup,
    pid: i32,
    resources: &LinuxResources,
    annotations: &HashMap<String, String>,
) -> Result<(), Error> {
    let what = || format!("start unit {}", unit.name);
    let pid = u32::try_from(pid).map_err(|_| told(what(), format!("{pid} is no process id")))?;
    let mut connection = connect(unit.user)?;
    let version = version(&mut connection).map_err(|failure| told(what(), failure))?;
    let unified = matches!(cgroup, Cgroup::V2(_));
    let mut properties = properties::fixed(unit, unified, pid);
    // after ours, of which they may replace one, as in runc
    properties.extend(annotation::properties(annotations)?);
    properties.extend(properties::limits(
        resources,
        unified,
        &Present::default(),
        version,
        true,
    )?);
    let body = || {
        Body::default()
            .text(&unit.name)
            .text("replace")
            .properties(&properties)
            .no_units()
    };
    // signals are sent to those who asked for them
    let started = connection
        .manager("Subscribe", &Body::default())
        .and_then(
            |_| match connection.manager("StartTransientUnit", &body()) {
                Err(Failure::Refused(name, _)) if name.ends_with(".UnitExists") => {
                    // one that failed stays until somebody has looked
                    let _ =
                        connection.manager("ResetFailedUnit", &Body::default().text(&unit.name));
                    connection.manager("StartTransientUnit", &body())
                }
                answer => answer,
            },
        )
        .and_then(|answer| connection.job_result(&answer.text()?));
    match started.as_deref() {
        Ok("done") => Ok(()),
        Ok(result) => {
            let why = format!("its job ended with {result:?}");
            let _ = connection.manager("ResetFailedUnit", &Body::default().text(&unit.name));
            Err(told(what(), why))
        }
        Err(failure) => Err(told(what(), failure)),
    }
}

/// Changes the limits of a unit.
pub(super) fn update(
    unit: &Unit,
    cgroup: &Cgroup,
    resources: &LinuxResources,
) -> Result<(), Error> {
    let what = || format!("change unit {}", unit.name);
    let mut connection = connect(unit.user)?;
    let version = version(&mut connection).map_err(|failure| told(what(), failure))?;
    let (unified, present) = match cgroup {
        Cgroup::V2(path) => (true, Present::of(path, resources)?),
        _ => (false, Present::default()),
    };
    let properties = properties::limits(resources, unified, &present, version, false)?;
    if properties.is_empty() {
        return Ok(());
    }
    let body = Body::default()
        .text(&unit.name)
        .bool(true)
        .properties(&properties);
    let mut set = || {
        let set = connection.manager("SetUnitProperties", &body);
        set.map(|_| ()).map_err(|failure| told(what(), failure))
    };
    let denies = !unified && properties.iter().any(|(name, _)| name == "DevicePolicy");
    if !denies || cgroup.is_frozen()? {
        return set();
    }
    // on v1 it denies all devices before it allows some: nobody shall see that
    cgroup.freeze(true)?;
    super::collect([set(), cgroup.freeze(false)])
}

/// Stops the unit and waits until it is gone; systemd removes its folders.
pub(super) fn end(unit: &Unit) -> Result<(), Error> {
    let what = || format!("stop unit {}", unit.name);
    let mut connection = connect(unit.user)?;
    let name = || Body::default().text(&unit.name);
    let stopped = connection
        .manager("Subscribe", &Body::default())
        .and_then(|_| connection.manager("StopUnit", &name().text("replace")))
        .and_then(|answer| connection.job_result(&answer.text()?));
    match stopped {
        Err(Failure::Refused(error, _)) if error.ends_with(".NoSuchUnit") => Ok(()),
        Err(failure) => Err(told(what(), failure)),
        Ok(result) => {
            // "not loaded" is the usual answer
            let _ = connection.manager("ResetFailedUnit", &name());
            match result.as_str() {
                "done" => Ok(()),
                result => Err(told(what(), format!("its job ended with {result:?}"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_a_user() {
        let found = sockets(true, |name| {
            Some(match name {
                "XDG_RUNTIME_DIR" => "/run/u".into(),
                _ => "unix:path=/tmp/bus,guid=1".into(),
            })
        });
        let expected = [
            ("/run/u/systemd/private", false),
            ("/tmp/bus", true),
            ("/run/u/bus", true),
        ];
        assert_eq!(found, expected.map(|(path, bus)| (path.into(), bus)));
    }
}
