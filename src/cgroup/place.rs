//! Where the cgroup of an OCI container is: `linux.cgroupsPath` (config-linux.md, "Cgroups Path") → [`Cgroup`].
//!
//! | `cgroupsPath` | v1, each hierarchy for itself | v2 |
//! |---|---|---|
//! | `/a/b` | mount point + path | mount point + path |
//! | `a/b` | caller's cgroup + path | beside the caller's cgroup: parent + path |
//! | none | as a relative path that is the id | as a relative path that is the id |
//! | `slice:prefix:name`, with systemd | slice, then `prefix-name.scope` | the same; below the user's manager for a user |
//!
//! Relative places are runc's. On v2 that is *beside*, because the caller is itself a process in its cgroup, so nothing below could
//! have controllers (cgroup-v2.rst, "No Internal Process Constraint"); where the cgroup above may not be written to (a delegated
//! subtree), it is below after all.
//!
//! *Invariants:* the text of a configuration never names a cgroup outside of the place above: `..` is refused, and what becomes part
//! of a unit's name has only the characters that systemd allows there (systemd.unit(5)).

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::own::{self, Wanted};
use super::{Cgroup, Error, systemd};

/// A transient systemd unit that holds a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// `docker-1234.scope`, or a slice.
    pub name: String,
    /// The slice it is in, `system.slice`.
    pub slice: String,
    /// Of the caller's own manager, not the system's.
    pub user: bool,
}

/// Longest unit name, with suffix (UNIT_NAME_MAX of systemd).
const UNIT_NAME_MAX: usize = 255;

pub(super) fn for_container(
    path: Option<&Path>,
    by_systemd: bool,
    id: &str,
) -> Result<Cgroup, Error> {
    let text = match path.map(Path::to_str) {
        Some(None) => return Err(bad(&format!("{path:?}"), "not UTF-8")),
        Some(Some(text)) => text,
        None => "",
    };
    let cgroup = if by_systemd {
        let user = systemd::is_user()?;
        let unit = unit(text, id, user)?;
        let slice = expand_slice(&unit.slice)?;
        let manager = if user {
            systemd::control_group()?
        } else {
            systemd::require()?;
            String::new()
        };
        let path = format!("{manager}{slice}/{}", unit.name);
        let cgroup = Box::new(own::locate(Wanted::At(&path))?);
        if user && matches!(*cgroup, Cgroup::V1 { .. }) {
            return Err(Error::Systemd {
                what: format!("make {} for a user", unit.name),
                why: "it delegates cgroups to users on version 2 only".to_owned(),
            });
        }
        return Ok(Cgroup::Systemd { unit, cgroup });
    } else {
        let name = if text.is_empty() { id } else { text };
        own::locate(wanted(name)?)?
    };
    Ok(match cgroup {
        Cgroup::V2(path) if !own::writable(&path) => Cgroup::Unlimited {
            why: format!("{} may not be written to", path.display()),
        },
        Cgroup::V1 {
            controllers,
            unified: None,
        } if controllers.is_empty() => Cgroup::Unlimited {
            why: "no version 1 hierarchy may be written to".to_owned(),
        },
        cgroup => cgroup,
    })
}

fn bad(path: &str, why: &'static str) -> Error {
    Error::Path {
        path: path.to_owned(),
        why,
    }
}

/// A path that is not systemd's.
fn wanted(name: &str) -> Result<Wanted<'_>, Error> {
    if name.contains('\0') {
        return Err(bad(name, "with a NUL byte"));
    }
    if name.split('/').any(|part| part == "..") {
        return Err(bad(name, "`..` could leave the place it is relative to"));
    }
    if name.split('/').all(|part| matches!(part, "" | ".")) {
        return Err(bad(
            name,
            "is the root of the hierarchy; name a cgroup below it",
        ));
    }
    Ok(if name.starts_with('/') {
        Wanted::At(name)
    } else {
        Wanted::Near(name)
    })
}

/// `slice:prefix:name` → unit. An empty slice is the manager's default; a name that is a slice is taken as it is.
fn unit(text: &str, id: &str, user: bool) -> Result<Unit, Error> {
    let parts: Vec<&str> = text.split(':').collect();
    let (slice, prefix, name) = match parts.as_slice() {
        [""] => ("", "sampan", id),
        [slice, prefix, name] => (*slice, *prefix, *name),
        _ => {
            return Err(bad(
                text,
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups",
            ));
        }
    };
    let name = match (prefix, name.ends_with(".slice")) {
        (_, true) => name.to_owned(),
        ("", _) => format!("{name}.scope"),
        _ => format!("{prefix}-{name}.scope"),
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if name.len() > UNIT_NAME_MAX || !name.chars().all(valid) || name.starts_with('.') {
        return Err(bad(
            text,
            "does not make a unit name: letters, digits and :-_.\\@, at most 255",
        ));
    }
    let slice = match (slice, user) {
        ("", true) => "user.slice",
        ("", false) => "system.slice",
        (slice, _) => slice,
    };
    expand_slice(slice)?;
    Ok(Unit {
        name,
        slice: slice.to_owned(),
        user,
    })
}

/// `a-b.slice` → `/a.slice/a-b.slice`, the dash is systemd's slash (systemd.slice(5)); `-.slice` is the root.
fn expand_slice(slice: &str) -> Result<String, Error> {
    let refuse = || bad(slice, "not the name of a slice, such as a-b.slice");
    let name = slice.strip_suffix(".slice").ok_or_else(refuse)?;
    if name == "-" {
        return Ok(String::new());
    }
    let valid = |c: char| c.is_ascii_alphanumeric() || ":_.\\@".contains(c);
    let (mut path, mut prefix) = (String::new(), String::new());
    for part in name.split('-') {
        if part.is_empty() || part.starts_with('.') || !part.chars().all(valid) {
            return Err(refuse());
        }
        prefix.push_str(part);
        path.push_str(&format!("/{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices() {
        for (slice, path) in [
            ("system.slice", "/system.slice"),
            ("-.slice", ""),
            (
                "kubepods-burstable-pod1_2.slice",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
            ),
        ] {
            assert_eq!(expand_slice(slice).unwrap(), path);
        }
        for slice in [
            "",
            ".slice",
            "a",
            "a/b.slice",
            "-a.slice",
            "a-.slice",
            "a--b.slice",
            "...slice",
        ] {
            assert!(expand_slice(slice).is_err(), "{slice}");
        }
    }

    #[test]
    fn units() {
        for (text, user, name, slice) in [
            ("", false, "sampan-box.scope", "system.slice"),
            ("", true, "sampan-box.scope", "user.slice"),
            (
                "system.slice:docker:1234",
                false,
                "docker-1234.scope",
                "system.slice",
            ),
            (":libpod:1", true, "libpod-1.scope", "user.slice"),
            ("a-b.slice::1", false, "1.scope", "a-b.slice"),
            ("a.slice:x:a-c.slice", false, "a-c.slice", "a.slice"),
        ] {
            let found = unit(text, "box", user).unwrap();
            assert_eq!((&*found.name, &*found.slice), (name, slice), "{text}");
        }
        for text in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "a:b:c",
            "a.slice:b:c/d",
            "a.slice::..",
            "x.slice:.b:c",
        ] {
            assert!(
                matches!(unit(text, "box", false), Err(Error::Path { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn paths() {
        assert_eq!(wanted("/a/b").unwrap(), Wanted::At("/a/b"));
        assert_eq!(wanted("a/b").unwrap(), Wanted::Near("a/b"));
        for name in ["/", "", "./", "..", "/a/../b", "a\0b"] {
            assert!(matches!(wanted(name), Err(Error::Path { .. })), "{name:?}");
        }
    }
}
