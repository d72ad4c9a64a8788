//! Who may do what with which tasks: a file of tokens.
//!
//! ```toml
//! [[token]]
//! name = "deploy"                            # for messages
//! sha256 = "9f86d081…"                       # of the token, in hexadecimal
//! verbs = ["exec", "attach", "logs", "ps"]
//! tasks = ["web.*", "db"]                    # `*`: any characters, `?`: one
//! ```
//!
//! *Invariants:* the file has no token, only what one can be recognised by; a token is never in a message. Only the file's owner may write
//! to it. It is read anew for each request, so a token that is taken out is refused from then on.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// Longest file of tokens, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// What can be done with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Run a program in it, and what comes of that.
    Exec,
    /// Have its terminal or standard streams.
    Attach,
    /// See what it printed.
    Logs,
    /// See that it is there.
    Ps,
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verb::Exec => "exec",
            Verb::Attach => "attach",
            Verb::Logs => "logs",
            Verb::Ps => "ps",
        })
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Whoever may open the socket, which is the executor's own user: everything.
    Local,
    /// The holder of a token.
    Token(Token),
}

/// A token, as the file has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    name: String,
    sha256: String,
    verbs: Vec<Verb>,
    tasks: Vec<String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokens {
    #[serde(default)]
    token: Vec<Token>,
}

impl Caller {
    /// Whether it may do this with a task.
    pub fn may(&self, verb: Verb, task: &str) -> bool {
        match self {
            Caller::Local => true,
            Caller::Token(token) => {
                token.verbs.contains(&verb)
                    && token
                        .tasks
                        .iter()
                        .any(|it| matches(it.as_bytes(), task.as_bytes()))
            }
        }
    }

    /// For messages, and to tell callers apart.
    pub fn name(&self) -> &str {
        match self {
            Caller::Local => "",
            Caller::Token(token) => &token.name,
        }
    }
}

/// The holder of the token in a header `Authorization`; `None`: there is none, or one that is not in the file.
pub fn identify(file: &Path, header: Option<&[u8]>) -> Result<Option<Caller>, String> {
    let tokens = read(file)?;
    let Some(token) = header.and_then(bearer) else {
        return Ok(None);
    };
    let digest = Sha256::digest(token);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let found = tokens
        .into_iter()
        .find(|token| token.sha256.eq_ignore_ascii_case(&digest));
    Ok(found.map(Caller::Token))
}

/// Reads and checks a file of tokens.
pub fn read(path: &Path) -> Result<Vec<Token>, String> {
    let failed = |why: String| format!("tokens in {}: {why}", path.display());
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let meta = file.metadata().map_err(|error| failed(error.to_string()))?;
    if meta.mode() & 0o022 != 0 {
        return Err(failed(
            "others than the owner may write to it; chmod go-w".into(),
        ));
    }
    let mut text = String::new();
    let length = file.take(FILE_MAX + 1).read_to_string(&mut text);
    if length.map_err(|error| failed(error.to_string()))? as u64 > FILE_MAX {
        return Err(failed("it is longer than 1 MiB".into()));
    }
    parse(&text).map_err(failed)
}

fn parse(text: &str) -> Result<Vec<Token>, String> {
    let tokens: Tokens = toml::from_str(text).map_err(|error| error.to_string())?;
    for (index, token) in tokens.token.iter().enumerate() {
        // callers are told apart by it
        let same = |other: &Token| other.name == token.name;
        if token.name.is_empty() || tokens.token.iter().take(index).any(same) {
            return Err(format!(
                "token {:?}: each needs a name, and one of its own",
                token.name
            ));
        }
        let hexadecimal = token.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        if token.sha256.len() != 64 || !hexadecimal {
            return Err(format!(
                "token {}: sha256 must be 64 hexadecimal digits: `printf %s TOKEN | sha256sum`",
                token.name
            ));
        }
    }
    Ok(tokens.token)
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then_some(token.trim_ascii())
}

/// `*` stands for any characters, `?` for one.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // where to go on after a `*` that took too little
    let (mut p, mut t, mut star) = (0, 0, None);
    loop {
        match (pattern.get(p), text.get(t)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            (Some(b'?'), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => match star {
                Some((after, from)) if from < text.len() => {
                    star = Some((after, from + 1));
                    (p, t) = (after, from + 1);
                    continue;
                }
                _ => return false,
            },
        }
        (p, t) = (p + 1, t + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("web", "web", true),
            ("web", "web.1", false),
            ("web.*", "web.1", true),
            ("web.*", "web", false),
            ("*", "", true),
            ("*", "anything", true),
            ("?", "", false),
            ("a?c", "abc", true),
            ("*a*b", "xxaxxbxb", true),
            ("*a*b", "xxaxxbxc", false),
            ("**b", "ab", true),
            ("", "", true),
            ("", "a", false),
        ] {
            let found = matches(pattern.as_bytes(), text.as_bytes());
            assert_eq!(found, expected, "{pattern} {text}");
        }
    }

    #[test]
    fn permissions() {
        let text = format!(
            "[[token]]\nname = 'a'\nsha256 = '{}'\nverbs = ['exec', 'ps']\ntasks = ['web.*', 'db']\n",
            "0A".repeat(32)
        );
        let caller = Caller::Token(parse(&text).unwrap().remove(0));
        for (verb, task, expected) in [
            (Verb::Exec, "web.1", true),
            (Verb::Ps, "db", true),
            (Verb::Exec, "dbx", false),
            (Verb::Attach, "web.1", false),
            (Verb::Logs, "db", false),
        ] {
            assert_eq!(caller.may(verb, task), expected, "{verb} {task}");
            assert!(Caller::Local.may(verb, task));
        }
        for (text, why) in [
            (
                "[[token]]\nname = 'a'\nsha256 = 'b'\nverbs = []\ntasks = []",
                "token a: sha256 must be",
            ),
            (
                "[[token]]\nname = 'a'\nsha256 = 'b'\nverbs = ['rm']\ntasks = []",
                "unknown variant",
            ),
            (
                &format!("{text}{text}"),
                "token \"a\": each needs a name, and one of its own",
            ),
            (
                &text.replace("name = 'a'", "name = ''"),
                "token \"\": each needs a name",
            ),
            ("token = 'secret'", "invalid type"),
            ("[[tokens]]", "unknown field"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn tokens_are_recognised_and_never_shown() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        // of "secret"
        let text = "[[token]]\nname = 'a'\nsha256 = '2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b'\nverbs = []\ntasks = []";
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        for (header, found) in [
            (Some("Bearer secret"), true),
            (Some("bearer secret "), true),
            (Some("Bearer secre"), false),
            (Some("Basic secret"), false),
            (Some("Bearer"), false),
            (Some(""), false),
            (None, false),
        ] {
            let caller = identify(&file, header.map(str::as_bytes)).unwrap();
            assert_eq!(caller.is_some(), found, "{header:?}");
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o622)).unwrap();
        assert!(identify(&file, None).unwrap_err().contains("chmod go-w"));
    }
}
