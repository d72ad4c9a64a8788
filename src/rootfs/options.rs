//! Mount options of `config.json` as flags and data. Pure. The table of what is known is here and nowhere else.

use serde::{Serialize, Serializer};

use super::{Mount, Source};
use crate::sys::mount::Attributes;

/// What a list of options means.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// `bind` or `rbind` was given; `true` for `rbind`.
    pub bind: Option<bool>,
    /// `remount` was given.
    pub remount: bool,
    /// `tmpcopyup` was given.
    pub copy_up: bool,
    /// `idmap` or `ridmap` was given; `true` for `ridmap`.
    pub id_map: Option<bool>,
    /// For the mount itself.
    pub attributes: Attributes,
    /// Something was said about the flags of the mount itself, be it what holds anyway.
    pub explicit: bool,
    /// For the mount and all below.
    pub recursive: Attributes,
    /// Flags of the whole file system, in the words of fsconfig(2).
    pub superblock: Vec<&'static str>,
    /// For the file system.
    pub data: Vec<String>,
    /// [`SUBPATH`] was given.
    pub subpath: Option<String>,
}

/// Option of a bind mount, ours: what is bound is this path beneath the source, wherever links lead. Its content may be another
/// container's, so that a path joined before would be a door to the host (CVE-2017-1002101).
pub const SUBPATH: &str = "x-sampan.subpath=";

/// Flags that a bind mount takes over from its source unless an option says something about flags. The kinds of atime are not among
/// them: they stay unless one is asked for, as with mount(8).
pub const INHERITED: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR_NOSYMFOLLOW;

/// What one option does.
#[derive(Debug, Clone, Copy)]
enum Meaning {
    /// `MOUNT_ATTR_*` bits; with `r` before the option, for all below too.
    Set(u64),
    /// The opposite.
    Clear(u64),
    /// The kind of atime, one field of the mount (mount_setattr(2)); with `r` as above.
    Atime(u64),
    /// Takes that kind back: the default is relatime.
    NotAtime(u64),
    /// `MS_*`, for all below when `true`.
    Propagation(u64, bool),
    /// A flag of the whole file system, on or off.
    Superblock(&'static str, bool),
    /// See [`Parsed::bind`].
    Bind(bool),
    /// See [`Parsed::remount`].
    Remount,
    /// See [`Parsed::copy_up`].
    CopyUp,
    /// See [`Parsed::id_map`].
    IdMap(bool),
    /// Nothing to do: `defaults`, what the mount calls of Linux 5.2 never log (`silent`, `loud`), and what file systems do by
    /// themselves for want of a flag in those calls (`iversion`).
    Nothing,
}

use Meaning::*;

/// runtime-spec config.md "Linux mount options".
const OPTIONS: [(&str, Meaning); 44] = [
    ("async", Superblock("sync", false)),
    ("atime", NotAtime(libc::MOUNT_ATTR_NOATIME)),
    ("bind", Bind(false)),
    ("defaults", Nothing),
    ("dev", Clear(libc::MOUNT_ATTR_NODEV)),
    ("diratime", Clear(libc::MOUNT_ATTR_NODIRATIME)),
    ("dirsync", Superblock("dirsync", true)),
    ("exec", Clear(libc::MOUNT_ATTR_NOEXEC)),
    ("idmap", IdMap(false)),
    ("iversion", Nothing),
    ("lazytime", Superblock("lazytime", true)),
    ("loud", Nothing),
    ("mand", Superblock("mand", true)),
    ("noatime", Atime(libc::MOUNT_ATTR_NOATIME)),
    ("nodev", Set(libc::MOUNT_ATTR_NODEV)),
    ("nodiratime", Set(libc::MOUNT_ATTR_NODIRATIME)),
    ("noexec", Set(libc::MOUNT_ATTR_NOEXEC)),
    ("noiversion", Nothing),
    ("nolazytime", Superblock("lazytime", false)),
    ("nomand", Superblock("mand", false)),
    ("norelatime", NotAtime(libc::MOUNT_ATTR_RELATIME)),
    ("nostrictatime", NotAtime(libc::MOUNT_ATTR_STRICTATIME)),
    ("nosuid", Set(libc::MOUNT_ATTR_NOSUID)),
    ("nosymfollow", Set(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    ("private", Propagation(libc::MS_PRIVATE, false)),
    ("rbind", Bind(true)),
    ("relatime", Atime(libc::MOUNT_ATTR_RELATIME)),
    ("remount", Remount),
    ("ridmap", IdMap(true)),
    ("ro", Set(libc::MOUNT_ATTR_RDONLY)),
    ("rprivate", Propagation(libc::MS_PRIVATE, true)),
    ("rshared", Propagation(libc::MS_SHARED, true)),
    ("rslave", Propagation(libc::MS_SLAVE, true)),
    ("runbindable", Propagation(libc::MS_UNBINDABLE, true)),
    ("rw", Clear(libc::MOUNT_ATTR_RDONLY)),
    ("shared", Propagation(libc::MS_SHARED, false)),
    ("silent", Nothing),
    ("slave", Propagation(libc::MS_SLAVE, false)),
    ("strictatime", Atime(libc::MOUNT_ATTR_STRICTATIME)),
    ("suid", Clear(libc::MOUNT_ATTR_NOSUID)),
    ("symfollow", Clear(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    ("sync", Superblock("sync", true)),
    ("tmpcopyup", CopyUp),
    ("unbindable", Propagation(libc::MS_UNBINDABLE, false)),
];

/// Every option that is known, sorted; what `features` prints as `mountOptions`.
pub fn known() -> Vec<String> {
    let recursive = OPTIONS
        .iter()
        .filter(|(_, meaning)| meaning.has_recursive_form())
        .map(|(name, _)| format!("r{name}"));
    let mut all: Vec<String> = OPTIONS.iter().map(|(name, _)| (*name).to_owned()).collect();
    all.extend(recursive);
    all.sort();
    all
}

impl Meaning {
    fn has_recursive_form(self) -> bool {
        matches!(self, Set(_) | Clear(_) | Atime(_) | NotAtime(_))
    }
}

fn meaning(option: &str) -> Option<Meaning> {
    let found = OPTIONS.iter().find(|(name, _)| *name == option);
    found.map(|(_, meaning)| *meaning)
}

/// Parses the options of one mount. What is not known is the file system's.
pub fn parse(options: &[String]) -> Parsed {
    let mut parsed = Parsed::default();
    let (mut atime, mut recursive_atime) = (None, None);
    for option in options {
        if let Some(meaning) = meaning(option) {
            parsed.take(meaning, &mut atime);
        } else if let Some(meaning) = option
            .strip_prefix('r')
            .and_then(meaning)
            .filter(|meaning| meaning.has_recursive_form())
        {
            match meaning {
                Atime(kind) => recursive_atime = Some(kind),
                NotAtime(_) => recursive_atime = Some(libc::MOUNT_ATTR_RELATIME),
                other => change(&mut parsed.recursive, other),
            }
        } else if let Some(subpath) = option.strip_prefix(SUBPATH) {
            parsed.subpath = Some(subpath.to_owned());
        } else if !option.is_empty() {
            parsed.data.push(option.clone());
        }
    }
    // mount(2): a mount that gets a word on access times gets all of them anew, relatime when it is not said
    let attributes = &mut parsed.attributes;
    // as the other opposites of access times: it only takes back what was said before
    attributes.clear &= !libc::MOUNT_ATTR_NODIRATIME;
    let no_dir = attributes.set & libc::MOUNT_ATTR_NODIRATIME;
    if atime.is_some() || no_dir != 0 {
        attributes.set |= atime.unwrap_or(libc::MOUNT_ATTR_RELATIME);
        attributes.clear |= libc::MOUNT_ATTR__ATIME | (libc::MOUNT_ATTR_NODIRATIME & !no_dir);
    }
    if let Some(kind) = recursive_atime {
        parsed.recursive.set |= kind;
        parsed.recursive.clear |= libc::MOUNT_ATTR__ATIME;
    }
    parsed
}

impl Parsed {
    fn take(&mut self, meaning: Meaning, atime: &mut Option<u64>) {
        self.explicit |= meaning.has_recursive_form();
        match meaning {
            Set(_) | Clear(_) => change(&mut self.attributes, meaning),
            Atime(kind) => *atime = Some(kind),
            NotAtime(kind) => *atime = atime.filter(|set| *set != kind),
            Propagation(kind, true) => self.recursive.propagation = kind,
            Propagation(kind, false) => self.attributes.propagation = kind,
            Superblock(word, on) => {
                self.superblock.retain(|other| *other != word);
                if on {
                    self.superblock.push(word);
                }
            }
            Bind(recursive) => self.bind = Some(recursive),
            Remount => self.remount = true,
            CopyUp => self.copy_up = true,
            IdMap(recursive) => self.id_map = Some(recursive),
            Nothing => {}
        }
    }
}

/// The last word wins, as with mount(8).
fn change(attributes: &mut Attributes, meaning: Meaning) {
    match meaning {
        Set(bits) => {
            attributes.set |= bits;
            attributes.clear &= !bits;
        }
        Clear(bits) => {
            attributes.set &= !bits;
            attributes.clear |= bits;
        }
        _ => {}
    }
}

/// `MS_*` and whether for all below.
pub fn propagation(word: &str) -> Option<(u64, bool)> {
    match meaning(word) {
        Some(Propagation(kind, recursive)) => Some((kind, recursive)),
        _ => None,
    }
}

/// A propagation type in words.
pub fn propagation_word<S: Serializer>(kind: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    propagation_name(*kind).serialize(serializer)
}

fn propagation_name(kind: u64) -> Option<&'static str> {
    OPTIONS.iter().find_map(|(name, meaning)| match meaning {
        Propagation(bits, false) if *bits == kind => Some(*name),
        _ => None,
    })
}

/// Attributes as the options that ask for them.
pub fn attribute_words<S: Serializer>(
    attributes: &Attributes,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let atime = libc::MOUNT_ATTR__ATIME;
    let asked = OPTIONS.iter().filter(|(_, meaning)| match *meaning {
        Set(bits) => attributes.set & bits != 0,
        Clear(bits) => attributes.clear & bits != 0,
        Atime(kind) => attributes.clear & atime != 0 && attributes.set & atime == kind,
        _ => false,
    });
    let words = asked.map(|(name, _)| *name);
    serializer.collect_seq(words.chain(propagation_name(attributes.propagation)))
}

/// Whether a mount is to be tied to the host's: it is taken from there before the two are separated.
pub fn follows_host(mount: &Mount) -> bool {
    let follows = |kind| kind == libc::MS_SLAVE || kind == libc::MS_SHARED;
    matches!(mount.source, Source::Bind { .. })
        && (follows(mount.attributes.propagation) || follows(mount.recursive.propagation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use libc::*;

    fn of(text: &str) -> Parsed {
        parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn parses_flags() {
        let atime = MOUNT_ATTR__ATIME;
        let both = atime | MOUNT_ATTR_NODIRATIME;
        for (text, set, clear) in [
            ("defaults", 0, 0),
            ("rw", 0, MOUNT_ATTR_RDONLY),
            ("rw,ro", MOUNT_ATTR_RDONLY, 0),
            (
                "nosuid,noexec,nodev,ro",
                MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY,
                0,
            ),
            ("nosuid,suid", 0, MOUNT_ATTR_NOSUID),
            ("suid,nosuid", MOUNT_ATTR_NOSUID, 0),
            ("strictatime", MOUNT_ATTR_STRICTATIME, both),
            ("strictatime,noatime", MOUNT_ATTR_NOATIME, both),
            ("noatime,relatime", 0, both),
            ("noatime,atime", 0, 0),
            ("atime,norelatime,nostrictatime", 0, 0),
            ("nodiratime", MOUNT_ATTR_NODIRATIME, atime),
            (
                "nodiratime,noatime",
                MOUNT_ATTR_NODIRATIME | MOUNT_ATTR_NOATIME,
                atime,
            ),
            ("diratime", 0, 0),
            ("nodiratime,diratime", 0, 0),
            ("nosymfollow", MOUNT_ATTR_NOSYMFOLLOW, 0),
        ] {
            let parsed = of(text);
            let got = (parsed.attributes.set, parsed.attributes.clear);
            assert_eq!(got, (set, clear), "{text}");
            assert_eq!(parsed.explicit, text != "defaults", "{text}");
            assert_eq!(parsed.recursive, Attributes::default(), "{text}");
        }
        for (text, set, clear) in [
            ("rro", MOUNT_ATTR_RDONLY, 0),
            ("rrw", 0, MOUNT_ATTR_RDONLY),
            ("rnosuid,rsuid", 0, MOUNT_ATTR_NOSUID),
            ("rnoatime", MOUNT_ATTR_NOATIME, atime),
            ("ratime", 0, atime),
            ("rnostrictatime", 0, atime),
            ("rstrictatime", MOUNT_ATTR_STRICTATIME, atime),
            ("rnosymfollow", MOUNT_ATTR_NOSYMFOLLOW, 0),
        ] {
            let parsed = of(text);
            let got = (parsed.recursive.set, parsed.recursive.clear);
            assert_eq!(got, (set, clear), "{text}");
            assert_eq!((parsed.explicit, parsed.attributes.set), (false, 0));
        }
    }

    #[test]
    fn parses_the_rest() {
        let parsed = of("rbind,rro,rprivate,size=64k,mode=1777,rsync");
        assert_eq!(parsed.bind, Some(true));
        assert_eq!(parsed.recursive.propagation, MS_PRIVATE);
        assert_eq!(parsed.data, ["size=64k", "mode=1777", "rsync"]);
        let parsed = of("sync,dirsync,async,lazytime,silent,iversion");
        assert_eq!(parsed.superblock, ["dirsync", "lazytime"]);
        assert!(parsed.data.is_empty());
        let parsed = of("bind,remount,idmap,ridmap,tmpcopyup,shared");
        assert!(parsed.remount && parsed.copy_up && parsed.bind == Some(false));
        assert_eq!(parsed.id_map, Some(true));
        assert_eq!(parsed.attributes.propagation, MS_SHARED);
    }

    #[test]
    fn says_what_is_known() {
        let known = known();
        for name in [
            "rro",
            "rrw",
            "rnodiratime",
            "rbind",
            "ridmap",
            "tmpcopyup",
            "rrelatime",
        ] {
            assert!(known.iter().any(|option| option == name), "{name}");
        }
        assert!(!known.iter().any(|option| option == "rsync"));
        assert!(known.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn writes_what_it_reads() {
        for (text, want) in [
            ("ro,nosuid", r#"["nosuid","ro"]"#),
            ("strictatime,slave", r#"["diratime","strictatime","slave"]"#),
            ("dev,rw", r#"["dev","rw"]"#),
        ] {
            let mut out = Vec::new();
            let mut serializer = serde_json::Serializer::new(&mut out);
            attribute_words(&of(text).attributes, &mut serializer).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }
}
