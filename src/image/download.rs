//! One file by http or https.
//!
//! *Invariants:* the file is there as a whole or not at all; it is at most as long as the caller says; no name is resolved by the C
//! library. Nothing is sent that identifies anybody.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::error::{Context, Error};
use super::http::{Failure, advice, client, innermost, words};
use super::registry::PullOptions;

/// Tries while the server or the network fails.
const TRIES: u32 = 3;

/// Downloads `url` to `file`, whose folder exists; one of that name is replaced. Runs its own single-threaded tokio runtime.
///
/// # Errors
/// With the url as [`shown`] and the server's words. A temporary file may be left when the process is killed: `.NAME.part`.
pub fn download(url: &str, file: &Path, limit: u64, options: &PullOptions) -> Result<(), Error> {
    // an error says that there is a provider already
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "start the runtime for a download".to_owned())?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let part = file.with_file_name(format!(".{name}.part"));
    let done = runtime.block_on(tried(url, &part, limit, options));
    let done = done.and_then(|()| std::fs::rename(&part, file).at("write", file));
    if done.is_err() {
        // it is there only when something was written
        let _ = std::fs::remove_file(&part);
    }
    done
}

/// An address for a message: without user and password, and without the query, which may be a signature.
pub fn shown(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = match plain.find("://") {
        Some(at) => plain.split_at(at + 3),
        None => ("", plain),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}{host}{path}")
}

async fn tried(url: &str, part: &Path, limit: u64, options: &PullOptions) -> Result<(), Error> {
    let client = client(options)?;
    for number in 1.. {
        let wait = match once(&client, url, part, limit).await {
            Ok(()) => return Ok(()),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Status(status @ (429 | 500..), answer)) => {
                Error::invalid(shown(url), format!("{status} {answer}"))
            }
            Err(Failure::Status(status, answer)) => {
                return Err(Error::invalid(
                    shown(url),
                    format!("{status} {answer}; check the address"),
                ));
            }
            Err(Failure::Transport(error)) => {
                let error = error.without_url();
                let why = innermost(&error);
                let told = Error::invalid(shown(url), format!("{why}; {}", advice(&why)));
                if error.is_connect() || error.is_builder() || error.is_redirect() {
                    return Err(told);
                }
                told
            }
        };
        if number == TRIES {
            return Err(wait);
        }
        tokio::time::sleep(Duration::from_secs(number.into())).await;
    }
    Ok(())
}

async fn once(client: &reqwest::Client, url: &str, part: &Path, limit: u64) -> Result<(), Failure> {
    let mut response = client.get(url).send().await?;
    if !response.status().is_success() {
        return Err(Failure::Status(
            response.status().as_u16(),
            words(response).await,
        ));
    }
    // a link that somebody put there is replaced, not followed
    match std::fs::remove_file(part) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        removed => removed.at("remove", part)?,
    }
    let mut file = File::create_new(part).at("make", part)?;
    let mut size = 0;
    while let Some(bytes) = response.chunk().await? {
        size += bytes.len() as u64;
        if size > limit {
            let why = format!("longer than {} MiB", limit >> 20);
            return Err(Error::invalid(shown(url), why).into());
        }
        file.write_all(&bytes).at("write", part)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn addresses_are_shown_without_secrets() {
        for (url, expected) in [
            (
                "https://h.example:8443/a/b.tgz",
                "https://h.example:8443/a/b.tgz",
            ),
            ("https://me:pass@h/a@b", "https://h/a@b"),
            ("https://me:p@ss@h", "https://h"),
            ("https://h/a?X-Amz-Signature=c0ffee#part", "https://h/a"),
            ("https://me:pass@h?sig=/x", "https://h"),
            ("me:pass@h/a", "h/a"),
            ("", ""),
        ] {
            assert_eq!(shown(url), expected, "{url}");
        }
    }
}
