//! Pulling from registries (distribution-spec), through oci-client.
//!
//! *Invariants:* every manifest and blob is checked against digest and size while it streams into
//! the store, and published when all are there; a blob in the store is not fetched again; a token
//! goes nowhere but to the registry that asked for it; no name is resolved by the C library.
//!
//! Left to oci-client: requests, challenges, redirects. Not done yet: resuming a broken download
//! in the middle, credential helpers, mirrors.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use oci_spec::distribution::Reference;
use tokio::io::AsyncWrite;

use super::auth::{self, Login};
use super::digest::Digest;
use super::error::{Context, Error};
use super::ingest::{BlobWriter, Ingest};
use super::manifest::{self, ACCEPTED, Descriptor, Document, MAX_MANIFEST, Platform};
use super::reference::{self, is_loopback};
use super::store::Store;
use super::{Image, Progress};

/// Tries of one download while the registry or the network fails.
const TRIES: u32 = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Silence after which a connection counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Characters of a registry's words that are shown.
const MAX_ANSWER: usize = 300;

/// How a pull reaches its registry.
#[derive(Debug, Clone, Default)]
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
        let pull = Pull::begin(&ingest, reference.clone(), options, progress).await?;
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
    options: &'a PullOptions,
    /// Replaced when a token ran out.
    session: RefCell<Session>,
}

#[derive(Clone)]
struct Session {
    client: Client,
    auth: RegistryAuth,
}

impl<'a> Pull<'a> {
    async fn begin(
        ingest: &'a Ingest<'a>,
        reference: Reference,
        options: &'a PullOptions,
        progress: &'a dyn Progress,
    ) -> Result<Pull<'a>, Error> {
        let login = auth::login(reference.registry(), reference.repository())?;
        let session = Session {
            client: client(&reference, options)?,
            auth: RegistryAuth::Anonymous,
        };
        let pull = Pull {
            ingest,
            progress,
            reference,
            login,
            options,
            session: RefCell::new(session.clone()),
        };
        pull.log_in_with(session.client).await?;
        Ok(pull)
    }

    async fn log_in(&self) -> Result<(), Error> {
        let fresh = client(&self.reference, self.options)?;
        self.log_in_with(fresh).await
    }

    /// Asks for a token where the registry wants one; `client` knows no login yet.
    async fn log_in_with(&self, client: Client) -> Result<(), Error> {
        let auth = match &self.login {
            Some(login) => RegistryAuth::Basic(login.user.clone(), login.password.clone()),
            None => RegistryAuth::Anonymous,
        };
        let token = client
            .auth(&self.reference, &auth, RegistryOperation::Pull)
            .await
            .map_err(|error| self.explain(error, "the login"))?;
        let session = match token {
            None => Session { client, auth },
            Some(token) => {
                // it becomes a header as it is
                if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(self.failed("the login", "a token that is none"));
                }
                // the client never asks again by itself: what comes back is checked here
                Session {
                    client: self::client(&self.reference, self.options)?,
                    auth: RegistryAuth::Bearer(token),
                }
            }
        };
        let registry = self.reference.resolve_registry();
        session
            .client
            .store_auth_if_needed(registry, &session.auth)
            .await;
        self.session.replace(session);
        Ok(())
    }

    fn session(&self) -> Session {
        self.session.borrow().clone()
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
        let mut tries = 0;
        loop {
            let session = self.session();
            let answer = session
                .client
                .pull_manifest_raw(reference, &session.auth, ACCEPTED)
                .await;
            match answer {
                Ok((bytes, _)) if bytes.len() as u64 > MAX_MANIFEST => {
                    let why = format!("manifest has more than {MAX_MANIFEST} bytes");
                    return Err(Error::invalid(reference.whole(), why));
                }
                Ok((bytes, _)) => return Ok(bytes.to_vec()),
                Err(error) => self.again(&mut tries, error, &reference.whole()).await?,
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
            let session = self.session();
            let mut download = Download {
                writer: self.ingest.blob(&what, Some((digest.clone(), size)))?,
                progress: self.progress,
                what: &what,
                size,
                done: 0,
                failed: None,
            };
            let answer = session
                .client
                .pull_blob(&self.reference, digest.as_str(), &mut download)
                .await;
            if let Some(error) = download.failed {
                return Err(error);
            }
            match answer {
                Ok(()) => return download.writer.commit().map(|_| ()),
                Err(error) => self.again(&mut tries, error, &what).await?,
            }
        }
    }

    /// Waits for another try, logs in again, or gives the final error.
    async fn again(
        &self,
        tries: &mut u32,
        error: OciDistributionError,
        what: &str,
    ) -> Result<(), Error> {
        *tries += 1;
        let token = matches!(self.session.borrow().auth, RegistryAuth::Bearer(_));
        if *tries >= TRIES {
            return Err(self.explain(error, what));
        }
        if is_unauthorized(&error) && token {
            // tokens live for minutes, a queue of downloads may not
            return self.log_in().await;
        }
        if !is_transient(&error) {
            return Err(self.explain(error, what));
        }
        tokio::time::sleep(Duration::from_secs(u64::from(*tries))).await;
        Ok(())
    }

    fn failed(&self, what: &str, answer: &str) -> Error {
        Error::Registry {
            registry: self.reference.registry().to_owned(),
            what: what.to_owned(),
            answer: clean(answer),
        }
    }

    /// A client error in our words.
    fn explain(&self, error: OciDistributionError, what: &str) -> Error {
        let registry = self.reference.registry().to_owned();
        let answer = answer(&error);
        if is_unauthorized(&error) {
            return Error::Unauthorized {
                registry,
                reference: self.reference.whole(),
                answer,
                advice: match &self.login {
                    Some(login) => format!("check the login in {}", login.file.display()),
                    None => "no login for it was found; add one to $REGISTRY_AUTH_FILE or \
                             ~/.docker/config.json, or check the name"
                        .to_owned(),
                },
            };
        }
        match error {
            OciDistributionError::DigestError(DigestError::VerificationError {
                expected,
                actual,
            }) => Error::Digest {
                what: what.to_owned(),
                expected: clean(&expected),
                actual,
            },
            OciDistributionError::RequestError(_) => Error::Unreachable {
                registry,
                advice: advice(&answer).to_owned(),
                why: answer,
            },
            error if is_not_found(&error) => Error::NotFound {
                registry,
                reference: if what.starts_with("blob ") {
                    format!("{what} of {}", self.reference.whole())
                } else {
                    what.to_owned()
                },
                answer,
            },
            _ => self.failed(what, &answer),
        }
    }
}

fn client(reference: &Reference, options: &PullOptions) -> Result<Client, Error> {
    let loopback = is_loopback(reference.registry()) && options.ca_files.is_empty();
    let mut own = Vec::new();
    for path in &options.ca_files {
        own.extend(certificates(path)?);
    }
    let config = |only: Vec<Certificate>, extra: Vec<Certificate>| ClientConfig {
        protocol: if options.plain_http || loopback {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        },
        tls_certs_only: only,
        extra_root_certificates: extra,
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("sampan/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    match Client::try_from(config(Vec::new(), own.clone())) {
        Ok(client) => Ok(client),
        // a bare machine has no certificate authorities: Mozilla's, as of this build
        Err(_) => {
            own.extend(
                webpki_root_certs::TLS_SERVER_ROOT_CERTS
                    .iter()
                    .map(|der| Certificate {
                        encoding: CertificateEncoding::Der,
                        data: der.to_vec(),
                    }),
            );
            Client::try_from(config(own, Vec::new()))
                .map_err(|error| Error::invalid("certificate authorities", answer(&error)))
        }
    }
}

/// The certificates of a PEM file, which may have several.
fn certificates(path: &std::path::Path) -> Result<Vec<Certificate>, Error> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let text = fs::read_to_string(path).at("read certificate authorities from", path)?;
    let blocks: Vec<Certificate> = text
        .split(BEGIN)
        .skip(1)
        .filter_map(|rest| rest.split_once(END))
        .map(|(body, _)| Certificate {
            encoding: CertificateEncoding::Pem,
            data: format!("{BEGIN}{body}{END}\n").into_bytes(),
        })
        .collect();
    if blocks.is_empty() {
        let why = "has no certificate; it must be in PEM form";
        return Err(Error::invalid(path.display().to_string(), why));
    }
    Ok(blocks)
}

fn has_code(error: &OciDistributionError, codes: &[OciErrorCode]) -> bool {
    match error {
        OciDistributionError::RegistryError { envelope, .. } => envelope
            .errors
            .iter()
            .any(|error| codes.contains(&error.code)),
        _ => false,
    }
}

fn is_unauthorized(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => true,
        OciDistributionError::ServerError { code, .. } => matches!(code, 401 | 403),
        error => has_code(error, &[OciErrorCode::Unauthorized, OciErrorCode::Denied]),
    }
}

fn is_not_found(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        error => has_code(
            error,
            &[
                OciErrorCode::ManifestUnknown,
                OciErrorCode::NameUnknown,
                OciErrorCode::NotFound,
                OciErrorCode::BlobUnknown,
                OciErrorCode::ManifestBlobUnknown,
            ],
        ),
    }
}

/// Whether it may go better next time.
fn is_transient(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(error) => !error.is_builder() && !error.is_redirect(),
        OciDistributionError::ServerError { code, .. } => *code == 429 || *code >= 500,
        error => has_code(error, &[OciErrorCode::Toomanyrequests]),
    }
}

/// The innermost cause, which tells what happened; bounded.
fn answer(error: &OciDistributionError) -> String {
    let mut text = match error {
        OciDistributionError::AuthenticationFailure(words) => words.clone(),
        OciDistributionError::UnauthorizedError { .. } => "unauthorized".to_owned(),
        OciDistributionError::ServerError { code, message, .. } => format!("{code} {message}"),
        OciDistributionError::RegistryError { envelope, .. } => {
            let words: Vec<&str> = envelope
                .errors
                .iter()
                .map(|error| error.message.as_str())
                .collect();
            words.join(", ")
        }
        error => error.to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    clean(&text)
}

fn clean(text: &str) -> String {
    let plain: String = text
        .trim()
        .chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .take(MAX_ANSWER)
        .collect();
    if plain.is_empty() {
        return "no reason given".to_owned();
    }
    plain
}

fn advice(why: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| why.contains(word));
    if has(&["certificate", "UnknownIssuer"]) {
        "if you trust it, name its certificate authority with --ca-file"
    } else if has(&["corrupt message", "InvalidContentType", "HTTP version"]) {
        "it may speak plain http, which has to be allowed with --plain-http"
    } else {
        "check the name, the network and the proxy"
    }
}

/// Takes a download into the store as it comes.
struct Download<'a, 'i, 's> {
    writer: BlobWriter<'i, 's>,
    progress: &'a dyn Progress,
    what: &'a str,
    size: u64,
    done: u64,
    /// Our own error, which is more than what an `io::Error` can say.
    failed: Option<Error>,
}

impl AsyncWrite for Download<'_, '_, '_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Task<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Err(error) = self.writer.append(bytes) {
            self.failed = Some(error);
            return Poll::Ready(Err(io::Error::other("the store refused it")));
        }
        self.done += bytes.len() as u64;
        self.progress.advance(self.what, self.done, self.size);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Called at the end: here a short blob shows, before its digest is found to differ.
    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        if self.done < self.size {
            self.failed = Some(Error::Size {
                what: self.what.to_owned(),
                expected: self.size,
                actual: self.done,
            });
            return Poll::Ready(Err(io::Error::other("it is too short")));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
