//! What pulling needs of HTTP: a client with the right authorities, bounded answers, challenges,
//! and failures in words.

use std::fs;
use std::path::Path;
use std::time::Duration;

use http_auth::ChallengeParser;
use reqwest::redirect::{Action, Attempt, Policy};
use reqwest::{Certificate, Client, RequestBuilder, Response};
use serde::Deserialize;

use super::error::{Context, Error};
use super::registry::PullOptions;

/// Bytes of an error answer that are read.
const MAX_WORDS: u64 = 64 << 10;
/// Characters of a registry's words that are shown.
const MAX_ANSWER: usize = 300;
/// Redirects of one request that are followed.
const MAX_REDIRECTS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Silence after which a connection counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a request failed.
pub(super) enum Failure {
    /// No answer, or only a part of it.
    Transport(reqwest::Error),
    /// An answer that says no: status and words.
    Status(u16, String),
    /// Not the registry's fault, or final anyway.
    Final(Error),
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Failure {
        Failure::Transport(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

/// What a registry asks for (RFC 9110 §11.6.1, distribution's token authentication).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// The first one that can be answered.
    pub(super) fn parse(text: &str) -> Option<Challenge> {
        ChallengeParser::new(text).flatten().find_map(|challenge| {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                return Some(Challenge::Basic);
            }
            if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                return None;
            }
            let parameter = |name: &str| {
                let mut all = challenge.params.iter();
                all.find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.to_unescaped())
            };
            Some(Challenge::Bearer {
                realm: parameter("realm")?,
                service: parameter("service"),
            })
        })
    }
}

pub(super) fn client(options: &PullOptions) -> Result<Client, Error> {
    let mut own = Vec::new();
    for path in &options.ca_files {
        own.extend(certificates(path)?);
    }
    let builder = || {
        Client::builder()
            .user_agent(concat!("sampan/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(Policy::custom(redirect))
    };
    if let Ok(client) = builder().tls_certs_merge(own.clone()).build() {
        return Ok(client);
    }
    // a bare machine has no certificate authorities: Mozilla's, as of this build
    let mozilla = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
    own.extend(mozilla.filter_map(|der| Certificate::from_der(der).ok()));
    builder()
        .tls_certs_only(own)
        .build()
        .map_err(|error| Error::invalid("certificate authorities", innermost(&error)))
}

/// Follows as far as anybody may lead, but never to where others can listen.
fn redirect(attempt: Attempt<'_>) -> Action {
    let previous = attempt.previous();
    if previous.len() > MAX_REDIRECTS {
        return attempt.error(format!("more than {MAX_REDIRECTS} redirects"));
    }
    let protected = previous.iter().any(|url| url.scheme() == "https");
    if protected && attempt.url().scheme() != "https" {
        let to = attempt.url().host_str().unwrap_or_default().to_owned();
        return attempt.error(format!("redirected to {to} without https"));
    }
    attempt.follow()
}

/// The certificates of a PEM file, which may have several.
fn certificates(path: &Path) -> Result<Vec<Certificate>, Error> {
    let bytes = fs::read(path).at("read certificate authorities from", path)?;
    let wrong = |why: &str| Error::invalid(path.display().to_string(), why);
    let found = Certificate::from_pem_bundle(&bytes)
        .map_err(|error| wrong(&format!("certificate authorities: {}", innermost(&error))))?;
    if found.is_empty() {
        return Err(wrong("has no certificate; it must be in PEM form"));
    }
    Ok(found)
}

pub(super) async fn send(request: RequestBuilder) -> Result<Response, Failure> {
    Ok(request.send().await?)
}

/// A body of at most `limit` bytes; `None` when it has more.
pub(super) async fn bounded(
    mut response: Response,
    limit: u64,
) -> Result<Option<Vec<u8>>, Failure> {
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await? {
        if (body.len() + bytes.len()) as u64 > limit {
            return Ok(None);
        }
        body.extend_from_slice(&bytes);
    }
    Ok(Some(body))
}

/// What an answer that says no gives as its reason (distribution-spec, "Error Codes").
pub(super) async fn words(response: Response) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Reason>,
    }
    #[derive(Deserialize)]
    struct Reason {
        #[serde(default)]
        message: String,
    }
    let status = response.status();
    let body = bounded(response, MAX_WORDS)
        .await
        .ok()
        .flatten()
        .unwrap_or_default();
    let text = match serde_json::from_slice::<Envelope>(&body) {
        Ok(envelope) => {
            let reasons: Vec<_> = envelope.errors.into_iter().map(|r| r.message).collect();
            reasons.join(", ")
        }
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    if text.trim().is_empty() {
        return status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_lowercase();
    }
    clean(&text)
}

/// The innermost cause tells what happened.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    clean(&text)
}

/// Outside words for a message: bounded, without control characters.
pub(super) fn clean(text: &str) -> String {
    text.trim()
        .chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .take(MAX_ANSWER)
        .collect()
}

pub(super) fn advice(why: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| why.contains(word));
    if has(&["certificate", "UnknownIssuer"]) {
        "if you trust it, name its certificate authority with --ca-file"
    } else if has(&["corrupt message", "InvalidContentType", "HTTP version"]) {
        "it may speak plain http, which has to be allowed with --plain-http"
    } else {
        "check the name, the network and the proxy"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        };
        for (text, expected) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            (
                "Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:a:pull\"",
                Some(bearer("https://a/t", Some("s"))),
            ),
            (
                "bearer realm=\"https://a/t\"",
                Some(bearer("https://a/t", None)),
            ),
            ("Negotiate, Basic realm=\"x\"", Some(Challenge::Basic)),
            ("Bearer service=\"s\"", None),
            ("Digest realm=\"x\"", None),
            ("", None),
            ("\"", None),
        ] {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_challenge(text in ".{0,100}") {
            let _ = Challenge::parse(&text);
        }
    }
}
