//! Pulling from registries (distribution-spec).
//!
//! *Invariants:* every manifest and blob is bounded, and checked against digest and size while it
//! streams into the store; an image is published when all of it is there; a blob in the store is
//! not fetched again; a login goes to the registry it is for, and to the token server that this
//! registry names, never from https to http; no name is resolved by the C library.
//!
//! Not done yet: resuming a broken download in its middle, credential helpers, mirrors.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::distribution::Reference;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Response, Url};
use serde::{Deserialize, Serialize};

use super::auth::{self, Login};
use super::digest::Digest;
use super::error::{Context, Error};
use super::http::{Challenge, Failure, advice, bounded, clean, client, innermost, send, words};
use super::ingest::Ingest;
use super::manifest::{self, ACCEPTED, Descriptor, Document, MAX_MANIFEST, Platform};
use super::reference::{self, is_loopback};
use super::store::Store;
use super::{Image, Progress};

/// Tries of one download while the registry or the network fails.
const TRIES: u32 = 3;
/// Bytes of a token server's answer.
const MAX_TOKEN: u64 = 1 << 20;

/// How a pull reaches its registry.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PullOptions {
    /// Plain http is allowed. Always so for loopback addresses, unless `ca_files` has a say.
    pub plain_http: bool,
    /// Certificate authorities (PEM files) besides the host's.
    pub ca_files: Vec<PathBuf>,
    /// `os/architecture[/variant]` instead of the host's.
    pub platform: Option<String>,
}

/// Pulls `reference` into the store and unpacks nothing. Runs its own single-threaded tokio runtime.
pub fn pull(
    store: &Store,
    reference: &str,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Image, Error> {
    let reference = reference::parse(reference)?;
    let platform = match &options.platform {
        Some(text) => Platform::parse(text)?,
        None => Platform::host(),
    };
    // an error says that there is a provider already
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ingest = Ingest::begin(store)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "start the runtime for a pull".to_owned())?;
    let digest = runtime.block_on(async {
        let pull = Pull::begin(&ingest, reference.clone(), options, progress)?;
        let (digest, manifest) = pull.manifest(&platform).await?;
        let mut blobs = vec![manifest.config];
        blobs.extend(manifest.layers);
        pull.blobs(blobs).await?;
        Ok::<_, Error>(digest)
    })?;
    store.publish(&digest, &[reference.whole()])
}

/// One pull from one repository.
struct Pull<'a> {
    ingest: &'a Ingest<'a>,
    progress: &'a dyn Progress,
    reference: Reference,
    login: Option<Login>,
    client: Client,
    /// Up to the repository, with a slash.
    base: String,
    /// What the registry asked for, once it did; replaced when a token ran out.
    authorization: RefCell<Option<HeaderValue>>,
}

impl<'a> Pull<'a> {
    fn begin(
        ingest: &'a Ingest<'a>,
        reference: Reference,
        options: &PullOptions,
        progress: &'a dyn Progress,
    ) -> Result<Pull<'a>, Error> {
        let plain = options.plain_http
            || (is_loopback(reference.registry()) && options.ca_files.is_empty());
        let scheme = if plain { "http" } else { "https" };
        let host = match reference.resolve_registry() {
            "index.docker.io" => "registry-1.docker.io",
            host => host,
        };
        Ok(Pull {
            ingest,
            progress,
            login: auth::login(reference.registry(), reference.repository())?,
            client: client(options)?,
            base: format!("{scheme}://{host}/v2/{}/", reference.repository()),
            reference,
            authorization: RefCell::new(None),
        })
    }

    /// One request below the repository; an answer that is not 200 is a failure.
    async fn get(&self, path: &str, accept: &str) -> Result<Response, Failure> {
        let mut request = self.client.get(format!("{}{path}", self.base));
        request = request.header(ACCEPT, accept);
        let used = self.authorization.borrow().clone();
        if let Some(value) = &used {
            request = request.header(AUTHORIZATION, value);
        }
        let response = send(request).await?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response);
        }
        // who we were redirected to is not who the login is for
        let asked =
            Url::parse(&self.base).is_ok_and(|base| base.origin() == response.url().origin());
        let challenge = response.headers().get(WWW_AUTHENTICATE).cloned();
        let challenge = challenge.filter(|_| asked);
        let words = words(response).await;
        if status == 401
            && let Some(challenge) = challenge
            && self.log_in(&challenge, used.as_ref()).await?
        {
            return Err(Failure::Status(LOGGED_IN, words));
        }
        Err(Failure::Status(status, words))
    }

    /// Answers a challenge; false when there is nothing to say but what was just `used`.
    async fn log_in(
        &self,
        challenge: &HeaderValue,
        used: Option<&HeaderValue>,
    ) -> Result<bool, Failure> {
        let text = challenge.to_str().unwrap_or_default();
        let wanted = Challenge::parse(text);
        let (value, fresh) = match (wanted, &self.login) {
            (Some(Challenge::Bearer { realm, service }), _) => {
                let token = self.token(&realm, service.as_deref()).await?;
                (format!("Bearer {token}"), true)
            }
            (Some(Challenge::Basic), Some(login)) => {
                let pair = format!("{}:{}", login.user, login.password);
                let value = format!("Basic {}", auth::base64_encode(pair.as_bytes()));
                (value, false)
            }
            _ => return Ok(false),
        };
        let mut header = HeaderValue::from_str(&value)
            .map_err(|_| self.failed("the login", "it can't be sent in a header"))?;
        header.set_sensitive(true);
        let new = fresh || used != Some(&header);
        self.authorization.replace(Some(header));
        Ok(new)
    }

    async fn token(&self, realm: &str, service: Option<&str>) -> Result<String, Failure> {
        let what = "the login";
        let mut url = Url::parse(realm)
            .map_err(|_| self.failed(what, "its token server has no valid address"))?;
        if self.base.starts_with("https:") && url.scheme() != "https" {
            return Err(self
                .failed(what, "its token server is not reached by https")
                .into());
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            let scope = format!("repository:{}:pull", self.reference.repository());
            query.append_pair("scope", &scope);
        }
        let mut request = self.client.get(url);
        if let Some(login) = &self.login {
            request = request.basic_auth(&login.user, Some(&login.password));
        }
        let response = send(request).await?;
        let status = response.status().as_u16();
        if status != 200 {
            // whatever it says about the request, it gives no token for this login
            let status = if status < 500 && status != 429 {
                403
            } else {
                status
            };
            return Err(Failure::Status(status, words(response).await));
        }
        let bytes = bounded(response, MAX_TOKEN).await?;
        let token = bytes
            .and_then(|bytes| serde_json::from_slice::<Token>(&bytes).ok())
            .and_then(|token| token.token.or(token.access_token))
            // it becomes a header as it is
            .filter(|token| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()));
        Ok(token.ok_or_else(|| self.failed(what, "a token that is none"))?)
    }

    /// From the reference to the manifest for `platform`, which is then in the store.
    async fn manifest(&self, platform: &Platform) -> Result<(Digest, manifest::Manifest), Error> {
        let mut reference = self.reference.clone();
        let mut expected: Option<Descriptor> = None;
        // an index leads to a manifest; one within an index is rare, more is nonsense
        for _ in 0..4 {
            let what = reference.whole();
            let bytes = self.document(&reference).await?;
            let digest = Digest::of(&bytes);
            self.check(
                &what,
                &digest,
                bytes.len() as u64,
                &reference,
                expected.as_ref(),
            )?;
            match Document::parse(&bytes, &what)? {
                Document::Manifest(manifest) => {
                    self.ingest.put(&what, &bytes)?;
                    return Ok((digest, manifest));
                }
                Document::Index(entries) => {
                    let whole = self.reference.whole();
                    let chosen = manifest::choose(&entries, platform, &whole)?;
                    reference = self.reference.clone_with_digest(chosen.digest.clone());
                    expected = Some(chosen.clone());
                }
            }
        }
        let why = "indexes refer to each other more than 4 deep";
        Err(Error::invalid(self.reference.whole(), why))
    }

    fn check(
        &self,
        what: &str,
        digest: &Digest,
        size: u64,
        reference: &Reference,
        expected: Option<&Descriptor>,
    ) -> Result<(), Error> {
        if let Some(wanted) = reference.digest()
            && wanted != digest.as_str()
        {
            return Err(Error::Digest {
                what: what.to_owned(),
                expected: wanted.to_owned(),
                actual: digest.to_string(),
            });
        }
        match expected {
            Some(expected) if expected.size != size => Err(Error::Size {
                what: what.to_owned(),
                expected: expected.size,
                actual: size,
            }),
            _ => Ok(()),
        }
    }

    async fn document(&self, reference: &Reference) -> Result<Vec<u8>, Error> {
        let what = reference.whole();
        let tag = reference.digest().or(reference.tag()).unwrap_or("latest");
        let path = format!("manifests/{tag}");
        let accept = ACCEPTED.join(", ");
        let mut tries = 0;
        loop {
            let answer = async { bounded(self.get(&path, &accept).await?, MAX_MANIFEST).await };
            match answer.await {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => {
                    let why = format!("manifest has more than {MAX_MANIFEST} bytes");
                    return Err(Error::invalid(what, why));
                }
                Err(failure) => self.again(&mut tries, failure, &what).await?,
            }
        }
    }

    /// Fetches what the store lacks, three at a time.
    async fn blobs(&self, blobs: Vec<Descriptor>) -> Result<(), Error> {
        let mut missing: BTreeMap<Digest, u64> = BTreeMap::new();
        for blob in blobs {
            let digest = blob.digest()?;
            if !self.ingest.want(&digest, blob.size)? {
                missing.insert(digest, blob.size);
            }
        }
        let queue = RefCell::new(missing.into_iter().collect::<VecDeque<_>>());
        let worker = || async {
            loop {
                let next = queue.borrow_mut().pop_front();
                let Some((digest, size)) = next else {
                    return Ok(());
                };
                self.blob(&digest, size).await?;
            }
        };
        tokio::try_join!(worker(), worker(), worker()).map(|_| ())
    }

    async fn blob(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        let what = format!("blob {digest}");
        let mut tries = 0;
        loop {
            match self.download(digest, size, &what).await {
                Ok(()) => return Ok(()),
                Err(failure) => self.again(&mut tries, failure, &what).await?,
            }
        }
    }

    async fn download(&self, digest: &Digest, size: u64, what: &str) -> Result<(), Failure> {
        let mut response = self.get(&format!("blobs/{digest}"), "*/*").await?;
        let mut writer = self.ingest.blob(what, Some((digest.clone(), size)))?;
        let mut done = 0;
        while let Some(bytes) = response.chunk().await? {
            writer.append(&bytes)?;
            done += bytes.len() as u64;
            self.progress.advance(what, done, size);
        }
        writer.commit()?;
        Ok(())
    }

    /// Waits for another try, or gives the final error.
    async fn again(&self, tries: &mut u32, failure: Failure, what: &str) -> Result<(), Error> {
        *tries += 1;
        let wait = match &failure {
            // tokens live for minutes, a queue of downloads may not
            Failure::Status(LOGGED_IN, _) => 0,
            Failure::Status(429 | 500.., _) => *tries,
            // broken in the middle; who can't be reached at all is told so at once
            Failure::Transport(error)
                if !(error.is_connect() || error.is_builder() || error.is_redirect()) =>
            {
                *tries
            }
            _ => return Err(self.explain(failure, what)),
        };
        if *tries >= TRIES {
            return Err(self.explain(failure, what));
        }
        tokio::time::sleep(Duration::from_secs(u64::from(wait))).await;
        Ok(())
    }

    fn failed(&self, what: &str, answer: &str) -> Error {
        Error::Registry {
            registry: self.reference.registry().to_owned(),
            what: what.to_owned(),
            answer: clean(answer),
        }
    }

    /// A failure in our words.
    fn explain(&self, failure: Failure, what: &str) -> Error {
        let registry = self.reference.registry().to_owned();
        match failure {
            Failure::Final(error) => error,
            Failure::Transport(error) => {
                let why = innermost(&error);
                Error::Unreachable {
                    registry,
                    advice: advice(&why).to_owned(),
                    why,
                }
            }
            Failure::Status(401 | 403 | LOGGED_IN, answer) => Error::Unauthorized {
                registry,
                reference: self.reference.whole(),
                answer,
                advice: match &self.login {
                    Some(login) => format!("check the login in {}", login.file.display()),
                    None => "no login for it was found; add one to $REGISTRY_AUTH_FILE or \
                             ~/.docker/config.json, or check the name"
                        .to_owned(),
                },
            },
            Failure::Status(404, answer) => Error::NotFound {
                registry,
                reference: if what.starts_with("blob ") {
                    format!("{what} of {}", self.reference.whole())
                } else {
                    what.to_owned()
                },
                answer,
            },
            Failure::Status(status, answer) => self.failed(what, &format!("{status} {answer}")),
        }
    }
}

/// In place of 401, when there is a new login to try; no registry's own status.
const LOGGED_IN: u16 = 1;

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}
