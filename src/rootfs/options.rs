//! Mount options of `config.json` as flags and data. Pure.

use serde::{Serialize, Serializer};

use super::{Mount, Source};
use crate::sys::mount::Attributes;

/// What a list of options means.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// `bind` or `rbind` was given; `true` for `rbind`.
    pub bind: Option<bool>,
    /// For the mount itself.
    pub attributes: Attributes,
    /// For the mount and all below.
    pub recursive: Attributes,
    /// For the file system.
    pub data: Vec<String>,
    /// [`SUBPATH`] was given.
    pub subpath: Option<String>,
}

/// Option of a bind mount, ours: what is bound is this path beneath the source, wherever links lead. Its content may be another
/// container's, so that a path joined before would be a door to the host (CVE-2017-1002101).
pub const SUBPATH: &str = "x-sampan.subpath=";

/// Parses the options of one mount (runtime-spec config.md "Linux mount options"). `rw` leaves a mount as it is: binding a read-only
/// mount of the host does not make it writable. An option that is known but not supported is an error, which is its name.
pub fn parse(options: &[String]) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    for option in options {
        if let Some((set, clear)) = attribute(option) {
            change(&mut parsed.attributes, set, clear);
        } else if let Some((set, clear)) = option.strip_prefix('r').and_then(attribute) {
            change(&mut parsed.recursive, set, clear);
        } else if let Some((propagation, recursive)) = propagation(option) {
            if recursive {
                parsed.recursive.propagation = propagation;
            } else {
                parsed.attributes.propagation = propagation;
            }
        } else if let Some(subpath) = option.strip_prefix(SUBPATH) {
            parsed.subpath = Some(subpath.to_owned());
        } else {
            match option.as_str() {
                "bind" => parsed.bind = Some(false),
                "rbind" => parsed.bind = Some(true),
                "" | "defaults" | "rrw" => {}
                "remount" | "idmap" | "ridmap" | "tmpcopyup" => return Err(option.clone()),
                _ => parsed.data.push(option.clone()),
            }
        }
    }
    Ok(parsed)
}

/// `MOUNT_ATTR_*` bits to set and to clear.
fn attribute(option: &str) -> Option<(u64, u64)> {
    use libc::{
        MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME,
        MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY,
        MOUNT_ATTR_STRICTATIME,
    };
    // the kinds of atime are one field: it is cleared whenever one is set (mount_setattr(2))
    const RELATIME: u64 = 0;
    Some(match option {
        "ro" => (MOUNT_ATTR_RDONLY, 0),
        "rw" => (0, 0),
        "nosuid" => (MOUNT_ATTR_NOSUID, 0),
        "suid" => (0, MOUNT_ATTR_NOSUID),
        "nodev" => (MOUNT_ATTR_NODEV, 0),
        "dev" => (0, MOUNT_ATTR_NODEV),
        "noexec" => (MOUNT_ATTR_NOEXEC, 0),
        "exec" => (0, MOUNT_ATTR_NOEXEC),
        "nodiratime" => (MOUNT_ATTR_NODIRATIME, 0),
        "diratime" => (0, MOUNT_ATTR_NODIRATIME),
        "noatime" => (MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME),
        "strictatime" => (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (RELATIME, MOUNT_ATTR__ATIME),
        "nosymfollow" => (MOUNT_ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, MOUNT_ATTR_NOSYMFOLLOW),
        _ => return None,
    })
}

/// The last word wins, as with mount(8).
fn change(attributes: &mut Attributes, set: u64, clear: u64) {
    attributes.set = attributes.set & !clear | set;
    attributes.clear = attributes.clear & !(set & !libc::MOUNT_ATTR__ATIME) | clear;
}

/// `MS_*` and whether for all below.
pub fn propagation(word: &str) -> Option<(u64, bool)> {
    Some(match word {
        "private" => (libc::MS_PRIVATE, false),
        "rprivate" => (libc::MS_PRIVATE, true),
        "slave" => (libc::MS_SLAVE, false),
        "rslave" => (libc::MS_SLAVE, true),
        "shared" => (libc::MS_SHARED, false),
        "rshared" => (libc::MS_SHARED, true),
        "unbindable" => (libc::MS_UNBINDABLE, false),
        "runbindable" => (libc::MS_UNBINDABLE, true),
        _ => return None,
    })
}

/// A propagation type in words.
pub fn propagation_word<S: Serializer>(kind: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    let known = ["private", "slave", "shared", "unbindable"];
    let word = known
        .into_iter()
        .find(|word| propagation(word).is_some_and(|(bits, _)| bits == *kind));
    word.serialize(serializer)
}

/// Attributes as the options that ask for them.
pub fn attribute_words<S: Serializer>(
    attributes: &Attributes,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let all = [
        "ro",
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "noexec",
        "exec",
        "nodiratime",
        "diratime",
        "noatime",
        "strictatime",
        "relatime",
        "nosymfollow",
        "symfollow",
        "private",
        "slave",
        "shared",
        "unbindable",
    ];
    let asked = all.into_iter().filter(|word| match attribute(word) {
        Some((set, clear)) => {
            (set != 0 || clear != 0)
                && attributes.set & set == set
                && attributes.clear & clear == clear
                && (set & libc::MOUNT_ATTR__ATIME == attributes.set & libc::MOUNT_ATTR__ATIME
                    || clear & libc::MOUNT_ATTR__ATIME == 0)
        }
        None => propagation(word).is_some_and(|(bits, _)| bits == attributes.propagation),
    });
    serializer.collect_seq(asked)
}

/// Whether a mount wants to see later mounts of the host.
pub fn follows_host(mount: &Mount) -> bool {
    let follows = |kind| kind == libc::MS_SLAVE || kind == libc::MS_SHARED;
    matches!(mount.source, Source::Bind)
        && (follows(mount.attributes.propagation) || follows(mount.recursive.propagation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use libc::*;

    fn of(text: &str) -> Result<Parsed, String> {
        parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn parses() {
        let flags = |set, clear| Attributes {
            set,
            clear,
            propagation: 0,
        };
        for (text, set, clear) in [
            ("defaults", 0, 0),
            ("rw", 0, 0),
            (
                "nosuid,noexec,nodev,ro",
                MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY,
                0,
            ),
            ("nosuid,suid", 0, MOUNT_ATTR_NOSUID),
            ("suid,nosuid", MOUNT_ATTR_NOSUID, 0),
            ("strictatime", MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME),
            ("strictatime,noatime", MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME),
            ("noatime,relatime", 0, MOUNT_ATTR__ATIME),
        ] {
            assert_eq!(of(text).unwrap().attributes, flags(set, clear), "{text}");
        }
        let parsed = of("rbind,rro,rprivate,size=64k,mode=1777").unwrap();
        assert_eq!(parsed.bind, Some(true));
        assert_eq!(
            parsed.recursive,
            Attributes {
                set: MOUNT_ATTR_RDONLY,
                clear: 0,
                propagation: MS_PRIVATE
            }
        );
        assert_eq!(parsed.data, ["size=64k", "mode=1777"]);
        assert_eq!(of("bind,idmap").unwrap_err(), "idmap");
    }
}
