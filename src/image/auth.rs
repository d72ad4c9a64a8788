//! Registry logins from the files that other tools write.
//!
//! Looked into in this order (containers-auth.json(5), docker-login(1)):
//! `$REGISTRY_AUTH_FILE`; `$XDG_RUNTIME_DIR/containers/auth.json` or
//! `/run/containers/<uid>/auth.json`; `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
//! Credential helpers are not asked.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use super::error::{Context, Error};

/// A login and where it was found.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
    pub(super) file: PathBuf,
}

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
}

#[derive(Deserialize)]
struct AuthEntry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
}

/// The login for `repository` at `registry`, if any file has one.
pub(super) fn login(registry: &str, repository: &str) -> Result<Option<Login>, Error> {
    for path in files() {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).at("read logins from", &path),
        };
        let name = path.display().to_string();
        let file: AuthFile = serde_json::from_slice(&bytes)
            .map_err(|why| Error::invalid(&name, format!("no file of logins: {why}")))?;
        let Some((key, entry)) = pick(&file.auths, registry, repository) else {
            continue;
        };
        match credentials(entry) {
            Some((user, password)) => {
                return Ok(Some(Login {
                    user,
                    password,
                    file: path,
                }));
            }
            // Docker leaves an empty entry where a credential helper has the password
            None if entry.auth.as_deref().unwrap_or_default().is_empty() => {}
            None => {
                let why = format!("login for {key:?} is not base64 of user:password; log in again");
                return Err(Error::invalid(name, why));
            }
        }
    }
    Ok(None)
}

fn files() -> Vec<PathBuf> {
    let folder = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let mut files = Vec::new();
    files.extend(folder("REGISTRY_AUTH_FILE"));
    let uid = rustix::process::getuid().as_raw();
    let runtime = folder("XDG_RUNTIME_DIR").map_or_else(
        || PathBuf::from(format!("/run/containers/{uid}/auth.json")),
        |folder| folder.join("containers/auth.json"),
    );
    files.push(runtime);
    let docker =
        folder("DOCKER_CONFIG").or_else(|| folder("HOME").map(|home| home.join(".docker")));
    files.extend(docker.map(|folder| folder.join("config.json")));
    files
}

/// The most specific entry: `registry/name/space` before `registry`.
fn pick<'a>(
    auths: &'a BTreeMap<String, AuthEntry>,
    registry: &str,
    repository: &str,
) -> Option<(&'a str, &'a AuthEntry)> {
    auths
        .iter()
        .filter_map(|(key, entry)| {
            let length = matches(key, registry, repository)?;
            Some((length, key.as_str(), entry))
        })
        .max_by_key(|(length, ..)| *length)
        .map(|(_, key, entry)| (key, entry))
}

/// Length of the matching name space, `None` when `key` is for another registry.
fn matches(key: &str, registry: &str, repository: &str) -> Option<usize> {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key)
        .trim_end_matches('/');
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    // Docker writes its hub as https://index.docker.io/v1/
    let path = if path == "v1" || path == "v2" {
        ""
    } else {
        path
    };
    let hub = |host: &str| {
        matches!(
            host,
            "index.docker.io" | "registry-1.docker.io" | "docker.io"
        )
    };
    if host != registry && !(hub(host) && hub(registry)) {
        return None;
    }
    let rest = repository.strip_prefix(path)?;
    (path.is_empty() || rest.is_empty() || rest.starts_with('/')).then_some(path.len())
}

fn credentials(entry: &AuthEntry) -> Option<(String, String)> {
    if let (Some(user), Some(password)) = (&entry.username, &entry.password)
        && !user.is_empty()
    {
        return Some((user.clone(), password.clone()));
    }
    let decoded = base64_decode(entry.auth.as_deref()?.as_bytes())?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// Standard base64 (RFC 4648 §4), padding optional; `None` when it is something else.
pub(super) fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let end = text
        .iter()
        .rposition(|&byte| byte != b'=')
        .map_or(0, |at| at + 1);
    let digits = text.get(..end)?;
    if digits.len() % 4 == 1 || text.len() - end > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0u32);
    for &digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

/// Standard base64 with padding.
pub(super) fn base64_encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place)) & 63;
            let shown = DIGITS.get(digit as usize).copied().unwrap_or(b'=');
            text.push(if place <= group.len() {
                char::from(shown)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64() {
        for (text, expected) in [
            ("", Some("")),
            ("Zg==", Some("f")),
            ("Zg", Some("f")),
            ("Zm8=", Some("fo")),
            ("Zm9v", Some("foo")),
            ("Zm9vYmFy", Some("foobar")),
            ("dTpwOnE=", Some("u:p:q")),
            ("Z", None),
            ("Zm9v====", None),
            ("Zm 9", None),
            ("Z=m9", None),
        ] {
            let decoded = base64_decode(text.as_bytes());
            assert_eq!(decoded.as_deref(), expected.map(str::as_bytes), "{text}");
        }
    }

    #[test]
    fn base64_there_and_back() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("u:p:q", "dTpwOnE="),
        ] {
            assert_eq!(base64_encode(bytes.as_bytes()), text);
            assert_eq!(base64_decode(text.as_bytes()).unwrap(), bytes.as_bytes());
        }
    }

    #[test]
    fn the_most_specific_login_wins() {
        let file: AuthFile = serde_json::from_str(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
                "example.com:5000": {"auth": "YWxsOnB3"},
                "example.com:5000/team": {"username": "team", "password": "p:w"},
                "helper.example.com": {}
            }}"#,
        )
        .unwrap();
        let user = |registry: &str, repository: &str| {
            pick(&file.auths, registry, repository).and_then(|(_, entry)| credentials(entry))
        };
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        for (registry, repository, expected) in [
            ("docker.io", "library/redis", pair("hub", "pw")),
            ("example.com:5000", "other/app", pair("all", "pw")),
            ("example.com:5000", "team/app", pair("team", "p:w")),
            ("example.com:5000", "teamwork/app", pair("all", "pw")),
            ("example.com", "team/app", None),
            ("helper.example.com", "app", None),
        ] {
            assert_eq!(
                user(registry, repository),
                expected,
                "{registry}/{repository}"
            );
        }
    }
}
