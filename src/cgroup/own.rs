//! Which hierarchies there are, and where in them the calling process is.
//!
//! *Invariants:* the decision is pure (text in, [`Cgroup`] out). A path of /proc/PID/cgroup is relative
//! to the root of the reader's cgroup namespace, a mount shows the part below its own root (mountinfo
//! field 4, proc_pid_mountinfo(5)): the folder is mount point + (path − root). A hierarchy whose mount
//! does not show the process is left out. Only writable v1 hierarchies are recorded, so that a user
//! without delegation still gets a cgroup, and a limit for one of the others becomes an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::{Cgroup, Error, devices, file, join};

/// The leaf into which a process moves itself to free its cgroup for children with controllers.
pub(super) const SELF: &str = "sampan-self";

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    /// Folder of the hierarchy's cgroup that is visible at `point`.
    root: String,
    point: PathBuf,
    /// Mounted read-only.
    read_only: bool,
    /// `None` for v2; otherwise the super block options, controllers among them.
    v1: Option<Vec<String>>,
}

/// Which cgroup is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted<'a> {
    /// The caller's; its parent for a process in the leaf [`SELF`].
    Own,
    /// By path from the mount point.
    At(&'a str),
    /// That of a container with this path relative to where the runtime stands, see [`super::place`].
    Near(&'a str),
}

pub(super) fn own() -> Result<Cgroup, Error> {
    locate(Wanted::Own)
}

pub(super) fn at(path: &str) -> Result<Cgroup, Error> {
    let bad = |why| Error::Path {
        path: path.to_owned(),
        why,
    };
    if path.is_empty() || path.contains('\0') {
        return Err(bad("empty, or with a NUL byte"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(bad("`..` would leave the parent cgroup"));
    }
    if Path::new(path).is_absolute() {
        locate(Wanted::At(path))
    } else {
        Ok(own()?.child(path))
    }
}

/// Reads the two files of /proc and decides.
pub(super) fn locate(wanted: Wanted<'_>) -> Result<Cgroup, Error> {
    let mounts = mounts(&file::read(Path::new("/proc/self/mountinfo"))?);
    let paths = file::read(Path::new("/proc/self/cgroup"))?;
    let v2_controllers = match mounts.iter().find(|mount| mount.v1.is_none()) {
        Some(mount) => file::words(&mount.point.join("cgroup.controllers"))?,
        None => Vec::new(),
    };
    // root of the machine may write wherever the mount may be written to
    let privileged = !devices::unprivileged()?;
    let may_write = |mount: &Mount, path: &Path| {
        if privileged {
            !mount.read_only
        } else {
            writable(path)
        }
    };
    decide(&mounts, &v2_controllers, &paths, wanted, may_write)
}

/// May children be made in `path`, or in the nearest folder above that exists?
pub(super) fn writable(path: &Path) -> bool {
    for folder in path.ancestors() {
        let access = Access::WRITE_OK | Access::EXEC_OK;
        match accessat(CWD, folder, access, AtFlags::EACCESS) {
            Err(rustix::io::Errno::NOENT) => {}
            answer => return answer.is_ok(),
        }
    }
    false
}

/// mountinfo → hierarchies; the first mount of one that shows its root counts, else the first.
fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mut found: Vec<Mount> = mountinfo.lines().filter_map(mount).collect();
    // stable: keeps the order of mounting among equals
    found.sort_by_key(|mount| mount.root != "/");
    found
}

/// One line: `36 35 98:0 /root /point options optional… - type source super-options`.
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let root = unescape(before.next()?);
    let point = PathBuf::from(unescape(before.next()?));
    let read_only = before.next()?.split(',').any(|option| option == "ro");
    let mut after = after.split(' ');
    let v1 = match after.next()? {
        "cgroup2" => None,
        "cgroup" => {
            let options = after.nth(1).unwrap_or_default();
            Some(options.split(',').map(str::to_owned).collect())
        }
        _ => return None,
    };
    Some(Mount {
        root,
        point,
        read_only,
        v1,
    })
}

/// Octal escapes of mountinfo: space, tab, line feed, backslash.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, plain)| {
            text.replace(code, plain)
        })
}

/// Mounts and the text of /proc/self/cgroup → the caller's cgroup, or the one `wanted`.
fn decide(
    mounts: &[Mount],
    v2_controllers: &[String],
    paths: &str,
    wanted: Wanted<'_>,
    writable: impl Fn(&Mount, &Path) -> bool,
) -> Result<Cgroup, Error> {
    let mut unified = None;
    let mut controllers = BTreeMap::new();
    let mut real = false;
    for line in paths.lines() {
        // hierarchy-ID:controller-list:path; the list is empty for v2, the path may contain colons
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(list), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        if list.is_empty() {
            unified = mounts
                .iter()
                .filter(|mount| mount.v1.is_none())
                .find_map(|mount| Some((mount, own_folder(mount, path, wanted)?)));
            continue;
        }
        let names: Vec<&str> = list.split(',').collect();
        let found = mounts
            .iter()
            .filter(|mount| holds(mount, &names))
            .find_map(|mount| Some((mount, own_folder(mount, path, wanted)?)));
        let Some((mount, own)) = found else { continue };
        real |= !list.starts_with("name=");
        let folder = resolve(mount, own, wanted);
        if writable(mount, &folder) {
            for name in names {
                controllers.insert(name.to_owned(), folder.clone());
            }
        }
    }
    // On a host with both, v2 counts when it has what containers live on; a stray v1 mount (net_cls,
    // name=systemd) does not make a v1 host.
    let v2_serves = v2_controllers
        .iter()
        .any(|name| name == "memory" || name == "pids");
    match unified {
        Some((mount, own)) if !real || v2_serves => {
            let Wanted::Near(name) = wanted else {
                return Ok(Cgroup::V2(resolve(mount, own, wanted)));
            };
            // the caller is a process in its own cgroup, so nothing below could have controllers
            let above = own
                .parent()
                .filter(|above| own != mount.point && writable(mount, above));
            let place = above.map(Path::to_path_buf).unwrap_or(own);
            Ok(Cgroup::V2(join(&place, name)))
        }
        unified if real => Ok(Cgroup::V1 {
            controllers,
            unified: unified
                .map(|(mount, own)| (mount, resolve(mount, own, wanted)))
                .filter(|(mount, path)| writable(mount, path))
                .map(|(_, path)| path),
        }),
        _ => Err(Error::Hierarchy(
            "mount cgroup2 on /sys/fs/cgroup; no mount of type cgroup or cgroup2 shows this process"
                .to_owned(),
        )),
    }
}

/// Is this the v1 mount of these controllers (or of this named hierarchy)?
fn holds(mount: &Mount, names: &[&str]) -> bool {
    mount.v1.as_ref().is_some_and(|options| {
        names
            .iter()
            .all(|name| options.iter().any(|option| option == name))
    })
}

/// The folder `wanted` in one hierarchy in which the caller is in `own`.
fn resolve(mount: &Mount, mut own: PathBuf, wanted: Wanted<'_>) -> PathBuf {
    match wanted {
        Wanted::At(path) => join(&mount.point, path),
        Wanted::Own => {
            leave_self(&mut own);
            own
        }
        Wanted::Near(name) => {
            leave_self(&mut own);
            join(&own, name)
        }
    }
}

/// A process that stepped aside is reported where it was before.
fn leave_self(own: &mut PathBuf) {
    if own.file_name().is_some_and(|name| name == SELF) {
        own.pop();
    }
}

/// The folder of the caller's own `path` as /proc/self/cgroup has it; `None` where `mount` does not show it, though it is `wanted`.
fn own_folder(mount: &Mount, path: &str, wanted: Wanted<'_>) -> Option<PathBuf> {
    if let Wanted::At(_) = wanted {
        return Some(mount.point.clone());
    }
    // `/..` in either: outside the cgroup namespace (cgroup_namespaces(7)), no folder of ours
    let below = Path::new(path).strip_prefix(&mount.root).ok()?;
    if below.components().any(|part| part.as_os_str() == "..") {
        return None;
    }
    // `join` with an empty path leaves a trailing slash
    if below.as_os_str().is_empty() {
        return Some(mount.point.clone());
    }
    Some(mount.point.join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    fn v1(pairs: &[(&str, &str)], unified: Option<&str>) -> Cgroup {
        Cgroup::V1 {
            controllers: pairs
                .iter()
                .map(|(name, path)| ((*name).to_owned(), PathBuf::from(path)))
                .collect(),
            unified: unified.map(PathBuf::from),
        }
    }

    fn run(mountinfo: &str, v2_has: &str, paths: &str, wanted: Wanted<'_>) -> Cgroup {
        let has: Vec<String> = v2_has.split_whitespace().map(str::to_owned).collect();
        decide(&mounts(mountinfo), &has, paths, wanted, |_, _| true).unwrap()
    }

    #[test]
    fn hybrid_has_a_path_per_controller() {
        let paths =
            "4:memory:/a/b:c\n2:cpu,cpuacct:/\n1:name=systemd:/user.slice\n0::/user.slice\n";
        assert_eq!(
            run(V1, "hugetlb", paths, Wanted::Own),
            v1(
                &[
                    ("cpu", "/sys/fs/cgroup/cpu,cpuacct"),
                    ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
                    ("memory", "/sys/fs/cgroup/memory/a/b:c"),
                    ("name=systemd", "/sys/fs/cgroup/systemd/user.slice"),
                ],
                Some("/sys/fs/cgroup/unified/user.slice"),
            )
        );
        assert_eq!(
            run(V1, "hugetlb", paths, Wanted::At("/pods/one")),
            v1(
                &[
                    ("cpu", "/sys/fs/cgroup/cpu,cpuacct/pods/one"),
                    ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/pods/one"),
                    ("memory", "/sys/fs/cgroup/memory/pods/one"),
                    ("name=systemd", "/sys/fs/cgroup/systemd/pods/one"),
                ],
                Some("/sys/fs/cgroup/unified/pods/one"),
            )
        );
    }

    #[test]
    fn unified_hosts() {
        let plain = "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let stray = format!("{plain}31 23 0:28 / /net_cls rw - cgroup none rw,net_cls\n");
        // a container that shares the host's cgroup namespace sees its own part only
        let part = "30 23 0:27 /docker/1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let space = "30 23 0:27 / /mnt/with\\040space rw - cgroup2 cgroup2 rw\n";
        for (mountinfo, has, paths, expected) in [
            (
                plain,
                "cpu memory",
                "0::/user.slice/a.scope",
                "/sys/fs/cgroup/user.slice/a.scope",
            ),
            (plain, "", "0::/", "/sys/fs/cgroup"),
            (plain, "", "1:name=systemd:/x\n0::/y", "/sys/fs/cgroup/y"),
            (plain, "pids", "0::/pod/sampan-self", "/sys/fs/cgroup/pod"),
            (&stray, "memory", "3:net_cls:/\n0::/x", "/sys/fs/cgroup/x"),
            (part, "", "0::/docker/1/init", "/sys/fs/cgroup/init"),
            (space, "", "0::/x", "/mnt/with space/x"),
        ] {
            assert_eq!(
                run(mountinfo, has, paths, Wanted::Own),
                Cgroup::V2(expected.into()),
                "{mountinfo}{paths}"
            );
        }
    }

    #[test]
    fn what_is_not_visible_or_writable_is_left_out() {
        let paths = "4:memory:/deep\n2:cpu,cpuacct:/x\n0::/x\n";
        let found = decide(&mounts(V1), &[], paths, Wanted::Own, |_, path| {
            path.starts_with("/sys/fs/cgroup/memory")
        })
        .unwrap();
        assert_eq!(found, v1(&[("memory", "/sys/fs/cgroup/memory/deep")], None));

        let outside = "30 23 0:27 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        for (mountinfo, paths) in [
            ("", "0::/x"),
            (outside, "0::/"),
            (
                "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
                "0::/../sibling",
            ),
            ("nonsense - \n\n -", "x\n::\n0:\n"),
        ] {
            let result = decide(&mounts(mountinfo), &[], paths, Wanted::Own, |_, _| true);
            assert!(
                matches!(result, Err(Error::Hierarchy(_))),
                "{mountinfo}{paths}"
            );
        }
    }

    #[test]
    fn paths_that_are_refused() {
        for path in ["", "..", "/a/../b", "a\0b"] {
            assert!(matches!(at(path), Err(Error::Path { .. })), "{path:?}");
        }
    }

    #[test]
    fn an_absolute_path_needs_no_own() {
        let plain = "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = run(plain, "memory", "0::/../../x", Wanted::At("/y"));
        assert_eq!(found, Cgroup::V2("/sys/fs/cgroup/y".into()));
    }

    #[test]
    fn near_is_beside_on_v2_and_below_on_v1() {
        let plain = "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        for (paths, name, expected) in [
            (
                "0::/user.slice/a.scope",
                "box",
                "/sys/fs/cgroup/user.slice/box",
            ),
            ("0::/a.scope", "x/box", "/sys/fs/cgroup/x/box"),
            ("0::/", "box", "/sys/fs/cgroup/box"),
            ("0::/pod/sampan-self", "box", "/sys/fs/cgroup/pod/box"),
        ] {
            let found = run(plain, "memory", paths, Wanted::Near(name));
            assert_eq!(found, Cgroup::V2(expected.into()), "{paths}");
        }
        // below, where what is above is not ours
        let delegated = decide(
            &mounts(plain),
            &[],
            "0::/delegated/shell",
            Wanted::Near("box"),
            |_, path| path.starts_with("/sys/fs/cgroup/delegated/shell"),
        );
        let expected = Cgroup::V2("/sys/fs/cgroup/delegated/shell/box".into());
        assert_eq!(delegated.unwrap(), expected);
        let paths = "4:memory:/a\n2:cpu,cpuacct:/\n0::/user.slice\n";
        assert_eq!(
            run(V1, "", paths, Wanted::Near("box")),
            v1(
                &[
                    ("cpu", "/sys/fs/cgroup/cpu,cpuacct/box"),
                    ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/box"),
                    ("memory", "/sys/fs/cgroup/memory/a/box"),
                ],
                Some("/sys/fs/cgroup/unified/user.slice/box"),
            )
        );
    }
}
