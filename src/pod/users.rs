//! Names of the image's own `/etc/passwd` and `/etc/group` → numbers. The host's are never asked.

use std::io::Read;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// Text of the two files, empty when the image has none.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: String,
    /// `/etc/group`.
    pub group: String,
}

/// Numbers for `process.user` and the home folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, sorted, without duplicates.
    pub groups: Vec<u32>,
    /// Home folder; `/` when the user has none.
    pub home: String,
}

/// Larger account files are not read (bytes).
const LIMIT: u64 = 4 << 20;

impl Accounts {
    /// Reads the files as the overlay would show them. `layers`: lowest first, the container's own changes last.
    pub fn read(layers: &[PathBuf]) -> Accounts {
        Accounts {
            passwd: topmost(layers, "etc/passwd").unwrap_or_default(),
            group: topmost(layers, "etc/group").unwrap_or_default(),
        }
    }

    /// Resolves `user[:group]` as image-spec config.md "User" has it; empty is root. `add` are further groups.
    pub fn resolve(&self, spec: &str, add: &[String]) -> Result<User, String> {
        let (user, group) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let number = number("user", user)?;
        let entry = self.passwd_entry(user, number);
        let mut found = match (entry, number) {
            (Some((name, uid, gid, home)), _) => User {
                uid,
                gid,
                groups: if group.is_none() {
                    self.member_of(&name)
                } else {
                    Vec::new()
                },
                home,
            },
            (None, Some(uid)) => User {
                uid,
                ..User::default()
            },
            (None, None) => {
                return Err(format!("user {user:?} is not in the image's /etc/passwd"));
            }
        };
        if let Some(group) = group.filter(|g| !g.is_empty()) {
            found.gid = self.gid(group)?;
        }
        for group in add {
            found.groups.push(self.gid(group)?);
        }
        found.groups.sort_unstable();
        found.groups.dedup();
        if found.home.is_empty() {
            found.home = "/".to_string();
        }
        Ok(found)
    }

    /// By name first, as login programs do: a name may consist of digits.
    fn passwd_entry(&self, user: &str, number: Option<u32>) -> Option<(String, u32, u32, String)> {
        let entries = || {
            self.passwd.lines().filter_map(|line| {
                let fields: Vec<&str> = line.trim().split(':').collect();
                let name = *fields.first()?;
                let uid = fields.get(2)?.parse::<u32>().ok()?;
                let gid = fields.get(3)?.parse::<u32>().ok()?;
                let home = fields.get(5).copied().unwrap_or_default();
                Some((name.to_string(), uid, gid, home.to_string()))
            })
        };
        entries()
            .find(|entry| entry.0 == user)
            .or_else(|| entries().find(|entry| number == Some(entry.1)))
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse::<u32>().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }

    fn gid(&self, group: &str) -> Result<u32, String> {
        let number = number("group", group)?;
        self.groups()
            .find(|(name, _, _)| *name == group)
            .map(|(_, gid, _)| gid)
            .or(number)
            .ok_or_else(|| format!("group {group:?} is not in the image's /etc/group"))
    }

    fn member_of(&self, user: &str) -> Vec<u32> {
        self.groups()
            .filter(|(_, _, members)| members.split(',').any(|m| m == user))
            .map(|(_, gid, _)| gid)
            .collect()
    }
}

/// The id that a text of digits is; `None` for a name. What has the form of a number but is no id is never looked up as a name: the
/// image would choose who that is (CVE-2024-40635). The last number means "leave it" to setresuid(2).
fn number(what: &str, text: &str) -> Result<Option<u32>, String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id != u32::MAX && digits == text => Ok(Some(id)),
        _ => Err(format!(
            "{what} {text:?} is no id: those are 0 to 4294967294"
        )),
    }
}

/// The uppermost version of a file; a whiteout hides what is below it.
fn topmost(layers: &[PathBuf], path: &str) -> Option<String> {
    for layer in layers.iter().rev() {
        let Ok(root) = rustix::fs::open(
            layer,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        ) else {
            continue;
        };
        let in_root = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let Ok(place) = rustix::fs::openat2(
            &root,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            in_root,
        ) else {
            continue;
        };
        let stat = rustix::fs::fstat(&place).ok()?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice => return None,
            FileType::RegularFile if stat.st_size as u64 <= LIMIT => {}
            _ => return None,
        }
        let file = rustix::fs::openat2(
            &root,
            path,
            // a running container may put a pipe in its place meanwhile
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
            Mode::empty(),
            in_root,
        )
        .ok()?;
        let mut text = Vec::new();
        std::fs::File::from(file)
            .take(LIMIT)
            .read_to_end(&mut text)
            .ok()?;
        return Some(String::from_utf8_lossy(&text).into_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_resolve_from_the_images_own_files() {
        let accounts = Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n\nbroken\nweb:x:33:34::/var/www:\n1000:x:7:7::/seven:\n4294967296:x:0:0::/:\n"
                .into(),
            group: "root:x:0:\nwww:x:34:\nlog:x:4:web,other\nssl:x:5:other,web\n".into(),
        };
        let user = |uid, gid, groups: &[u32], home: &str| {
            Ok(User {
                uid,
                gid,
                groups: groups.to_vec(),
                home: home.into(),
            })
        };
        for (spec, add, expected) in [
            ("", &[][..], user(0, 0, &[], "/root")),
            ("web", &[], user(33, 34, &[4, 5], "/var/www")),
            ("33", &[], user(33, 34, &[4, 5], "/var/www")),
            ("web:log", &[], user(33, 4, &[], "/var/www")),
            ("web:99", &[], user(33, 99, &[], "/var/www")),
            ("1000", &[], user(7, 7, &[], "/seven")),
            ("4711", &[], user(4711, 0, &[], "/")),
            ("4711:12", &["log"], user(4711, 12, &[4], "/")),
            (
                "4294967295",
                &[],
                Err("user \"4294967295\" is no id: those are 0 to 4294967294".into()),
            ),
            (
                "4294967296",
                &[],
                Err("user \"4294967296\" is no id: those are 0 to 4294967294".into()),
            ),
            (
                "web:+4",
                &[],
                Err("group \"+4\" is no id: those are 0 to 4294967294".into()),
            ),
            (
                "nobody",
                &[],
                Err("user \"nobody\" is not in the image's /etc/passwd".into()),
            ),
            (
                "web:wheel",
                &[],
                Err("group \"wheel\" is not in the image's /etc/group".into()),
            ),
        ] {
            let add: Vec<String> = add.iter().map(|s: &&str| s.to_string()).collect();
            assert_eq!(accounts.resolve(spec, &add), expected, "{spec}");
        }
    }

    #[test]
    fn upper_layers_and_whiteouts_win() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.join("etc")).unwrap();
            path
        };
        let (lower, upper) = (layer("lower"), layer("upper"));
        std::fs::write(lower.join("etc/passwd"), "a:x:1:1::/:\n").unwrap();
        let layers = [lower, upper.clone()];
        assert_eq!(Accounts::read(&layers).passwd, "a:x:1:1::/:\n");
        std::os::unix::fs::symlink("/etc/real", upper.join("etc/passwd")).unwrap();
        std::fs::write(upper.join("etc/real"), "b:x:2:2::/:\n").unwrap();
        assert_eq!(Accounts::read(&layers).passwd, "b:x:2:2::/:\n");
    }
}
