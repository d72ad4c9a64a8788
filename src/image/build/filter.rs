//! Which paths of packages an image keeps.
//!
//! *Invariants:* a pattern names a path and all that is below it; `*` matches any run of characters, slashes too, `?`
//! matches one, as in dpkg's `path-exclude` (dpkg.cfg(5)). What `include` matches is kept whatever else matches.

/// Left out unless the definition asks for documentation.
const DOCUMENTATION: &[&str] = &[
    "/usr/share/doc",
    "/usr/share/doc-base",
    "/usr/share/man",
    "/usr/share/info",
    "/usr/share/locale",
    "/usr/share/lintian",
    "/usr/share/bug",
    "/usr/share/bash-completion",
];

/// Kept in any case: the licences, which must go where the program goes.
const COPYRIGHT: &str = "/usr/share/doc/*/copyright";

/// The paths to leave out and to keep.
#[derive(Debug, Default)]
pub struct Filter {
    exclude: Vec<String>,
    include: Vec<String>,
}

impl Filter {
    /// Adds a definition's patterns to those of its base.
    pub fn extend(&mut self, exclude: &[String], include: &[String]) {
        self.exclude.extend_from_slice(exclude);
        self.include.extend_from_slice(include);
    }

    /// Is a package's path (canonical, no leading slash) kept?
    pub fn keeps(&self, path: &[u8], documentation: bool) -> bool {
        let excluded = self.exclude.iter().any(|p| covers(p, path))
            || (!documentation
                && DOCUMENTATION.iter().any(|p| covers(p, path))
                && !covers(COPYRIGHT, path));
        !excluded || self.include.iter().any(|p| covers(p, path))
    }
}

/// Does the pattern match the path or a folder above it?
fn covers(pattern: &str, path: &[u8]) -> bool {
    let pattern = pattern.strip_prefix('/').unwrap_or(pattern).as_bytes();
    let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/');
    ends.map(|(i, _)| i)
        .chain([path.len()])
        .any(|end| matches(pattern, &path[..end]))
}

/// Glob match without recursion: on a mismatch, the last `*` takes one byte more.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((at, from)) => {
                    *from += 1;
                    p = *at + 1;
                    t = *from;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("/usr/share/man", "usr/share/man", true),
            ("/usr/share/man", "usr/share/man/man1/x.1.gz", true),
            ("/usr/share/man", "usr/share/mandb", false),
            (
                "/usr/share/doc/*/copyright",
                "usr/share/doc/a/copyright",
                true,
            ),
            (
                "/usr/share/doc/*/copyright",
                "usr/share/doc/a/b/copyright",
                true,
            ),
            (
                "/usr/share/doc/*/copyright",
                "usr/share/doc/a/copyrights",
                false,
            ),
            ("*.pyc", "usr/lib/python3/__pycache__/x.pyc", true),
            (
                "/usr/lib/python3.?/test",
                "usr/lib/python3.1/test/x.py",
                true,
            ),
            ("/", "usr", false),
        ] {
            assert_eq!(
                covers(pattern, path.as_bytes()),
                expected,
                "{pattern} {path}"
            );
        }
    }

    #[test]
    fn what_is_kept() {
        let mut filter = Filter::default();
        filter.extend(&["/usr/bin/*".into()], &["/usr/bin/redis-*".into()]);
        for (path, documentation, expected) in [
            ("usr/bin/perl", false, false),
            ("usr/bin/redis-cli", false, true),
            ("usr/share/doc/x/changelog.gz", false, false),
            ("usr/share/doc/x/changelog.gz", true, true),
            ("usr/share/doc/x/copyright", false, true),
            ("etc/passwd", false, true),
        ] {
            assert_eq!(
                filter.keeps(path.as_bytes(), documentation),
                expected,
                "{path}"
            );
        }
    }
}
