//! Operations on the unified hierarchy (Documentation/admin-guide/cgroup-v2.rst).
//!
//! *Invariants:* controllers are switched on from the top down and only for the way to the new cgroup.
//! An ancestor that refuses is no error at creation, because what it has given already may be enough; a
//! limit that then finds its controller missing is one, and says which ancestor refused and why.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;

use super::limits::{self, Absent, Setting};
use super::own::SELF;
use super::{Cgroup, Error, Write, collect, devices, file};
use crate::sys::bpf;

/// How long members may take to go, or to freeze.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Ancestors of `path` within the mount, the mount's root first.
fn ancestors(path: &Path) -> Vec<PathBuf> {
    let mut chain: Vec<PathBuf> = path
        .ancestors()
        .skip(1)
        .skip_while(|folder| !folder.exists())
        .take_while(|folder| folder.join("cgroup.controllers").exists())
        .map(Path::to_path_buf)
        .collect();
    chain.reverse();
    chain
}

/// Makes `path` and what is missing above it, with every controller that can be had; whether it is new.
pub(super) fn create(path: &Path) -> Result<bool, Error> {
    let made = std::fs::create_dir(path).is_ok();
    if made && has_all(path)? {
        return Ok(true);
    }
    let existing = ancestors(path);
    let Some(nearest) = existing.last().cloned() else {
        if path.join("cgroup.controllers").exists() {
            // the root of the mount: there already, and its parent is not ours
            return Ok(false);
        }
        if made {
            // undo: an ordinary folder
            let _ = std::fs::remove_dir(path);
        }
        return Err(Error::Hierarchy(format!(
            "{} is not below a mount of type cgroup2",
            path.display()
        )));
    };
    for folder in &existing {
        enable_available(folder)?;
    }
    let mut folder = nearest;
    let below = path
        .strip_prefix(&folder)
        .map(Path::to_path_buf)
        .unwrap_or_default();
    let mut parts = below.components().peekable();
    let mut new = made;
    while let Some(part) = parts.next() {
        folder.push(part);
        new |= make(&folder)?;
        if parts.peek().is_some() {
            enable_available(&folder)?;
        }
    }
    Ok(new)
}

/// Does the new cgroup `path` have what every cgroup above it has? The usual case costs one file for each level.
fn has_all(path: &Path) -> Result<bool, Error> {
    let name = "cgroup.controllers";
    let Some(have) = file::read_optional(&path.join(name))? else {
        return Ok(false);
    };
    for folder in path.ancestors().skip(1) {
        match file::read_optional(&folder.join(name))? {
            // names come in one order
            Some(above) if above != have => return Ok(false),
            Some(_) => {}
            None => break,
        }
    }
    Ok(true)
}

/// Makes one folder; false for an existing one.
pub(super) fn make(folder: &Path) -> Result<bool, Error> {
    match std::fs::create_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(Error::Create {
            path: folder.to_path_buf(),
            source,
        }),
    }
}

/// Switches on for the children of `folder` what it has; refusals are left to [`missing`].
fn enable_available(folder: &Path) -> Result<(), Error> {
    let enabled = file::words(&folder.join("cgroup.subtree_control"))?;
    for controller in file::words(&folder.join("cgroup.controllers"))? {
        if !enabled.contains(&controller) {
            // one by one: a write with several is all or nothing
            let _ = enable(folder, &controller)?;
        }
    }
    Ok(())
}

/// Switches one controller on; the inner result is the kernel's answer.
///
/// A cgroup with members is left as it is even where the kernel would do it: a threaded controller (cpu, cpuset, pids) makes it a
/// threaded domain, whose children take no process and which never gets a domain controller (cgroup-v2.rst, "Threads").
fn enable(folder: &Path, controller: &str) -> Result<io::Result<()>, Error> {
    if !make_room(folder)? {
        return Ok(Err(io::Error::from_raw_os_error(libc::EBUSY)));
    }
    let control = folder.join("cgroup.subtree_control");
    Ok(file::write_io(&control, &format!("+{controller}")))
}

/// Can `folder` hand controllers on (cgroup-v2.rst, "No Internal Process Constraint")? If this process alone stands in the way, it
/// steps aside into a leaf.
pub(super) fn make_room(folder: &Path) -> Result<bool, Error> {
    // the root is exempt, and the only one without a type
    if !folder.join("cgroup.type").exists() {
        return Ok(true);
    }
    let own = std::process::id().to_string();
    let members = file::words(&folder.join("cgroup.procs"))?;
    if members.iter().any(|member| *member != own) {
        return Ok(false);
    }
    if !members.is_empty() {
        let leaf = folder.join(SELF);
        make(&leaf)?;
        file::write(&leaf.join("cgroup.procs"), &own)?;
    }
    Ok(true)
}

/// Undoes [`make_room`] where nothing is left below `folder` but this process in the leaf: whoever made the cgroup wants to remove it, and
/// has never heard of a leaf. Otherwise all stays as it is.
pub(super) fn step_back(folder: &Path) -> Result<(), Error> {
    let leaf = folder.join(SELF);
    let own = std::process::id().to_string();
    let members = file::read_optional(&leaf.join("cgroup.procs"))?;
    if members.is_none_or(|members| members.trim_end() != own) {
        return Ok(());
    }
    let control = folder.join("cgroup.subtree_control");
    for controller in file::words(&control)? {
        // in use below: somebody else's pod
        if file::write_io(&control, &format!("-{controller}")).is_err() {
            return Ok(());
        }
    }
    file::write(&folder.join("cgroup.procs"), &own)?;
    file::remove_leaf(&leaf);
    Ok(())
}

pub(super) fn writes(path: &Path, resources: &LinuxResources) -> Result<Vec<Write>, Error> {
    let settings = limits::v2(resources, &limits::Present::default())?;
    let mut writes: Vec<Write> = settings
        .into_iter()
        .map(|setting| Write {
            file: path.join(setting.file),
            value: setting.value,
        })
        .collect();
    let devices = resources.devices().as_deref().unwrap_or_default();
    devices::rules(devices)?;
    writes.extend(devices.iter().map(|rule| Write {
        file: path.to_owned(),
        value: format!("{} {rule}", if rule.allow() { "allow" } else { "deny" }),
    }));
    Ok(writes)
}

/// Sets the limits.
pub(super) fn apply(path: &Path, resources: &LinuxResources) -> Result<(), Error> {
    // one half of a limit alone keeps the other
    let settings = limits::v2(resources, &limits::Present::of(path, resources)?)?;
    let controllers = if settings.is_empty() {
        String::new()
    } else {
        file::read(&path.join("cgroup.controllers"))?
    };
    for setting in &settings {
        let here = setting.controller == "cgroup"
            || controllers
                .split(' ')
                .any(|name| name == setting.controller);
        if !here {
            return Err(missing(path, setting)?);
        }
    }
    check_before_update(resources, &path.join("memory.current"))?;
    write_all(&settings, |_| path, file::write_io)?;
    let rules = devices::rules(resources.devices().as_deref().unwrap_or_default())?;
    if !rules.is_empty() {
        apply_devices(path, &rules)?;
    }
    Ok(())
}

/// Why `setting` finds no controller in `path`.
fn missing(path: &Path, setting: &Setting) -> Result<Error, Error> {
    let controller = setting.controller.as_str();
    let has = |folder: &Path, name: &str| -> Result<bool, Error> {
        Ok(file::words(&folder.join(name))?
            .iter()
            .any(|word| word == controller))
    };
    let mut why = "the kernel does not have it, or has it on a version 1 mount".to_owned();
    for folder in ancestors(path) {
        if !has(&folder, "cgroup.controllers")? {
            break;
        }
        why = format!("it went missing below {}", folder.display());
        if has(&folder, "cgroup.subtree_control")? {
            continue;
        }
        if let Err(error) = enable(&folder, controller)? {
            let busy = error.raw_os_error() == Some(libc::EBUSY);
            why = refusal(&folder, &error, busy)?;
        }
        break;
    }
    Ok(Error::Controller {
        controller: controller.to_owned(),
        what: format!("{} to {:?}", setting.file, setting.value),
        why,
    })
}

fn refusal(folder: &Path, error: &io::Error, busy: bool) -> Result<String, Error> {
    let place = folder.join("cgroup.subtree_control");
    if !busy {
        return Ok(format!(
            "{}: {error}; have it delegated, or name a cgroup that has it with --cgroup-parent",
            place.display()
        ));
    }
    let members = file::words(&folder.join("cgroup.procs"))?;
    Ok(format!(
        "{}: {error}, because processes {} are in that cgroup; move them into a cgroup below it, or name another parent with --cgroup-parent",
        place.display(),
        members.join(" ")
    ))
}

/// config-linux.md, "Memory": `checkBeforeUpdate` refuses a limit below the present use.
pub(super) fn check_before_update(resources: &LinuxResources, current: &Path) -> Result<(), Error> {
    let Some(memory) = resources.memory() else {
        return Ok(());
    };
    if memory.check_before_update() != Some(true) {
        return Ok(());
    }
    let positive = |value: Option<i64>| {
        value
            .and_then(|value| u64::try_from(value).ok())
            .filter(|value| *value > 0)
    };
    let limits = [
        ("memory+swap", "memory.swap", positive(memory.swap())),
        ("memory", "memory.limit", positive(memory.limit())),
    ];
    if limits.iter().all(|(.., limit)| limit.is_none()) {
        return Ok(());
    }
    let Some(used) = file::read_optional(current)?.and_then(|text| text.parse::<u64>().ok()) else {
        return Ok(());
    };
    for (name, field, limit) in limits {
        if let Some(limit) = limit.filter(|limit| *limit <= used) {
            return Err(Error::Invalid {
                field: field.to_owned(),
                why: format!("rejecting {name} limit {limit} <= usage {used}"),
            });
        }
    }
    Ok(())
}

/// Writes every setting. Some values bound each other (limit and memsw, quota and burst), so the right
/// order depends on what is there: what is refused at first is tried once more after the rest.
pub(super) fn write_all<'a>(
    settings: &[Setting],
    folder: impl Fn(&Setting) -> &'a Path,
    write: impl Fn(&Path, &str) -> io::Result<()>,
) -> Result<(), Error> {
    let one = |setting: &&Setting| write_one(setting, folder(setting), &write);
    let refused: Vec<&Setting> = settings.iter().filter(|s| one(s).is_err()).collect();
    collect(refused.iter().map(one))
}

fn write_one(
    setting: &Setting,
    folder: &Path,
    write: &impl Fn(&Path, &str) -> io::Result<()>,
) -> Result<(), Error> {
    let path = folder.join(&setting.file);
    let failed = |path: PathBuf, value: &str, source| Error::Write {
        path,
        value: value.to_owned(),
        source,
    };
    match (write(&path, &setting.value), &setting.absent) {
        (Ok(()), _) => Ok(()),
        (Err(error), Absent::Ignore) if file::gone(&error) => Ok(()),
        (Err(error), Absent::Instead(other, value))
            if file::gone(&error) || error.raw_os_error() == Some(libc::EOPNOTSUPP) =>
        {
            let path = folder.join(other);
            write(&path, value).map_err(|source| failed(path, value, source))
        }
        (Err(source), _) => Err(failed(path, &setting.value, source)),
    }
}

/// Replaces the cgroup's own device program. Without privilege there is nothing to filter: mknod of a
/// device is refused in a user namespace, and what was bind-mounted is guarded by its permission bits.
pub(super) fn apply_devices(path: &Path, rules: &[devices::Rule]) -> Result<(), Error> {
    let failed = |(call, source)| Error::Devices {
        path: path.to_path_buf(),
        call,
        source,
    };
    let folder = std::fs::File::open(path).map_err(|source| failed(("open", source)))?;
    match bpf::replace_device_program(&folder, &devices::program(rules)) {
        Err((_, error))
            if error.raw_os_error() == Some(libc::EPERM) && devices::unprivileged()? =>
        {
            Ok(())
        }
        result => result.map_err(failed),
    }
}

/// cgroups(7), "/sys/kernel/cgroup/delegate"; the list before that file was there.
const DELEGATE: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads";

pub(super) fn give_to(path: &Path, uid: u32) -> Result<(), Error> {
    if rustix::process::geteuid().as_raw() == uid {
        return Ok(());
    }
    let names = file::read_optional(Path::new("/sys/kernel/cgroup/delegate"))?;
    let names = names.unwrap_or_else(|| DELEGATE.to_owned());
    let files = names.lines().map(|name| path.join(name));
    for path in std::iter::once(path.to_path_buf()).chain(files) {
        match std::os::unix::fs::lchown(&path, Some(uid), None) {
            // not every cgroup has every file
            Err(error) if !file::gone(&error) => {
                return Err(Error::Write {
                    path,
                    value: format!("owner {uid}"),
                    source: error,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// cgroup-v2.rst, "cgroup.events": it has stopped, by itself or with a cgroup above.
pub(super) fn is_frozen(path: &Path) -> Result<bool, Error> {
    let events = file::read_optional(&path.join("cgroup.events"))?;
    Ok(events.is_some_and(|text| text.lines().any(|line| line == "frozen 1")))
}

pub(super) fn freeze(path: &Path, frozen: bool) -> Result<(), Error> {
    let value = if frozen { "1" } else { "0" };
    file::write(&path.join("cgroup.freeze"), value)?;
    let wanted = format!("frozen {value}");
    let events = path.join("cgroup.events");
    let done = file::wait(PATIENCE, || {
        Ok(file::read(&events)?.lines().any(|line| line == wanted))
    })?;
    if done {
        return Ok(());
    }
    if frozen {
        // half frozen is worse than running
        file::write(&path.join("cgroup.freeze"), "0")?;
    }
    Err(Error::Freeze {
        path: path.to_path_buf(),
        wanted: if frozen { "frozen" } else { "thawed" },
        seconds: PATIENCE.as_secs(),
    })
}

pub(super) fn kill(cgroup: &Cgroup, path: &Path) -> Result<(), Error> {
    match file::write_io(&path.join("cgroup.kill"), "1") {
        Ok(()) => {
            thaw(path)?;
            await_empty(cgroup, PATIENCE)
        }
        // missing cgroup, or a kernel before 5.14
        Err(error) if file::gone(&error) => kill_frozen(cgroup, path),
        Err(source) => Err(Error::Write {
            path: path.join("cgroup.kill"),
            value: "1".to_owned(),
            source,
        }),
    }
}

/// Without cgroup.kill: stop, signal everyone, let go; again while someone got away.
fn kill_frozen(cgroup: &Cgroup, path: &Path) -> Result<(), Error> {
    kill_loop(
        cgroup,
        || {
            let frozen = file::write_io(&path.join("cgroup.freeze"), "1");
            match frozen {
                Ok(()) => settle(|| {
                    let events = file::read_optional(&path.join("cgroup.events"))?;
                    Ok(events.is_none_or(|text| text.lines().any(|line| line == "frozen 1")))
                }),
                Err(_) => Ok(()),
            }
        },
        || thaw(path),
    )
}

/// Thaws here and below.
fn thaw(path: &Path) -> Result<(), Error> {
    for folder in file::walk(path)? {
        match file::write_io(&folder.join("cgroup.freeze"), "0") {
            Ok(()) => {}
            Err(error) if file::gone(&error) => {}
            Err(source) => {
                return Err(Error::Write {
                    path: folder.join("cgroup.freeze"),
                    value: "0".to_owned(),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// Gives a freezer a moment; whoever is not frozen by then is signalled all the same.
pub(super) fn settle(done: impl FnMut() -> Result<bool, Error>) -> Result<(), Error> {
    file::wait(Duration::from_millis(100), done).map(|_| ())
}

/// Rounds of stop, signal, go on, until no member is left.
pub(super) fn kill_loop(
    cgroup: &Cgroup,
    stop: impl Fn() -> Result<(), Error>,
    go_on: impl Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    // frozen from before, children too
    go_on()?;
    loop {
        if cgroup.processes()?.is_empty() {
            return Ok(());
        }
        let signalled = stop().and_then(|()| signal_all(cgroup));
        // in any case: nobody stays frozen
        go_on()?;
        signalled?;
        match await_empty(cgroup, Duration::from_millis(100)) {
            Err(error @ Error::Survivors { .. }) if Instant::now() >= deadline => {
                return Err(error);
            }
            Err(Error::Survivors { .. }) => {}
            result => return result,
        }
    }
}

fn signal_all(cgroup: &Cgroup) -> Result<(), Error> {
    // 0 is a process outside our pid namespace, and to kill(2) our own process group
    for pid in cgroup.processes()?.into_iter().filter(|pid| *pid > 0) {
        // ESRCH: gone already; EPERM: reported as survivor
        let _ = send(Pid::from_raw(pid), Signal::SIGKILL);
    }
    Ok(())
}

pub(super) fn await_empty(cgroup: &Cgroup, limit: Duration) -> Result<(), Error> {
    let mut pids = Vec::new();
    let empty = file::wait(limit, || {
        pids = cgroup.processes()?;
        Ok(pids.is_empty())
    })?;
    if empty {
        return Ok(());
    }
    Err(Error::Survivors {
        path: cgroup.name(),
        pids,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;

    fn setting(file: &str, value: &str, absent: Absent) -> Setting {
        Setting {
            controller: "memory".to_owned(),
            file: file.to_owned(),
            value: value.to_owned(),
            absent,
        }
    }

    /// A kernel with two values of which `limit` may not exceed `memsw`.
    fn bounded(start: (u64, u64), settings: &[Setting]) -> (u64, u64, bool) {
        let state = RefCell::new(BTreeMap::from([("limit", start.0), ("memsw", start.1)]));
        let result = write_all(
            settings,
            |_| Path::new("/cg"),
            |path, value| {
                let name = path.file_name().unwrap().to_str().unwrap();
                let value: u64 = value.parse().unwrap();
                let mut state = state.borrow_mut();
                let fits = match name {
                    "limit" => value <= state["memsw"],
                    "memsw" => value >= state["limit"],
                    _ => return Err(io::Error::from_raw_os_error(libc::ENOENT)),
                };
                if !fits {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                state.insert(if name == "limit" { "limit" } else { "memsw" }, value);
                Ok(())
            },
        );
        let state = state.into_inner();
        (state["limit"], state["memsw"], result.is_ok())
    }

    #[test]
    fn dependent_values_in_either_direction() {
        let both = |limit, memsw| {
            [
                setting("limit", limit, Absent::Error),
                setting("memsw", memsw, Absent::Error),
            ]
        };
        assert_eq!(bounded((10, 20), &both("100", "200")), (100, 200, true));
        assert_eq!(bounded((100, 200), &both("10", "20")), (10, 20, true));
        assert_eq!(bounded((10, 20), &both("30", "25")), (10, 25, false));
    }

    #[test]
    fn missing_files() {
        let ignored = setting("swap", "1", Absent::Ignore);
        let instead = setting("x", "1", Absent::Instead("limit".into(), "7".into()));
        assert_eq!(bounded((10, 20), &[ignored, instead]), (7, 20, true));
        assert!(!bounded((10, 20), &[setting("x", "1", Absent::Error)]).2);
    }

    /// The way of kernels before 5.14, which this one would not take by itself.
    #[test]
    fn kill_without_the_file_for_it() {
        let parent = match Cgroup::own() {
            Ok(Cgroup::V2(path)) => Some(path),
            Ok(Cgroup::V1 { unified, .. }) => unified,
            _ => None,
        };
        let name = format!("sampan-unit-{}", std::process::id());
        let Some(path) = parent.map(|parent| parent.join(name)) else {
            println!("skipped: needs a cgroup2 mount");
            return;
        };
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let cgroup = Cgroup::V2(path.clone());
        cgroup.create().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        cgroup.attach(child.id().cast_signed()).unwrap();
        cgroup.freeze(true).unwrap();
        kill_frozen(&cgroup, &path).unwrap();
        assert!(!child.wait().unwrap().success());
        cgroup.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn create_needs_a_cgroup_mount() {
        assert!(matches!(
            create(Path::new("/nonexistent/pod")),
            Err(Error::Hierarchy(_))
        ));
    }
}
