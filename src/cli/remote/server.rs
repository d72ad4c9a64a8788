//! How an executor's API is reached: over which socket, with which trust and token, and what its answers mean.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::{ENCODING, Remote, SILENCE};
use crate::executor::remote::stream::Body;

/// Longest file with a token, in bytes.
const TOKEN_MAX: u64 = 64 << 10;
/// Longest answer that is one message, in bytes.
const ANSWER_MAX: usize = 16 << 20;

/// Time for a connection, and for a handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where an API is, and how it is spoken to.
pub struct Server {
    /// As it was given.
    pub url: String,
    address: Address,
    authorization: Option<HeaderValue>,
}

enum Address {
    Unix(PathBuf),
    Tls {
        host: String,
        port: u16,
        config: Arc<ClientConfig>,
    },
}

impl Server {
    /// From the options.
    pub fn new(remote: &Remote) -> anyhow::Result<Server> {
        let url = remote.remote.as_deref().unwrap_or_default();
        let address = if let Some(path) = url.strip_prefix("unix:") {
            Address::Unix(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
        } else {
            let uri: hyper::Uri = url.parse().with_context(|| format!("--remote {url}"))?;
            let plain = uri.path() == "/" && uri.query().is_none();
            match (uri.scheme_str(), uri.host()) {
                (Some("https"), Some(host)) if plain => Address::Tls {
                    host: host.trim_matches(['[', ']']).to_string(),
                    port: uri.port_u16().unwrap_or(443),
                    config: trust(remote.remote_ca.as_deref())?,
                },
                _ => bail!(
                    "--remote {url}: unix:PATH or https://HOST:PORT; a token goes over TLS alone"
                ),
            }
        };
        let token = remote.token_file.as_deref().map(token).transpose()?;
        let authorization = token
            .map(|token| HeaderValue::try_from(format!("Bearer {token}")))
            .transpose();
        let mut authorization = authorization
            .map_err(|_| anyhow::anyhow!("the token has characters that a header cannot have"))?;
        if let Some(header) = &mut authorization {
            header.set_sensitive(true);
        }
        Ok(Server {
            url: url.to_string(),
            address,
            authorization,
        })
    }

    /// A connection of its own for each request.
    pub async fn connect(&self) -> anyhow::Result<SendRequest<Body>> {
        match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                handshake(stream.with_context(|| format!("connect to {}", path.display()))?).await
            }
            Address::Tls { host, port, config } => {
                let mut why = anyhow::anyhow!("it has no address");
                for address in addresses(host).await? {
                    let stream = TcpStream::connect((address, *port));
                    match tokio::time::timeout(PATIENCE, stream).await {
                        Err(late) => why = late.into(),
                        Ok(Err(error)) => why = error.into(),
                        Ok(Ok(stream)) => {
                            stream.set_nodelay(true)?;
                            let name = ServerName::try_from(host.clone())
                                .with_context(|| format!("{host:?} is no name of a server"))?;
                            let connector = tokio_rustls::TlsConnector::from(config.clone());
                            let stream = connector.connect(name, stream);
                            let stream = tokio::time::timeout(PATIENCE, stream).await;
                            let stream = stream.map_err(std::io::Error::from).flatten();
                            let stream = stream.with_context(|| {
                                format!("TLS with {host}:{port}; --remote-ca names the authority of its certificate")
                            })?;
                            return handshake(stream).await;
                        }
                    }
                }
                Err(why.context(format!("connect to {host}:{port}")))
            }
        }
    }

    /// A request as who we are.
    pub fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        let host = match &self.address {
            Address::Unix(_) => "localhost".to_string(),
            Address::Tls { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tls { host, port, .. } => format!("{host}:{port}"),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request
    }

    /// Asks; the answer is a stream of records.
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = self
            .request(method, path)
            .header(CONTENT_TYPE, ENCODING.media_type())
            .header(ACCEPT, "application/recordio")
            .header("Message-Accept", ENCODING.media_type())
            .header("TE", "trailers")
            .body(Body::whole(body))?;
        self.ask(request).await
    }

    async fn ask(&self, request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        let mut connection = self.connect().await?;
        let at = || format!("ask {}", self.url);
        let answer = tokio::time::timeout(SILENCE, connection.send_request(request)).await;
        accepted(answer.with_context(at)?.with_context(at)?).await
    }

    /// What `ps` shows.
    pub async fn rows(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        let request = self
            .request(Method::GET, "/api/v1/tasks")
            .body(Body::whole(Vec::new()))?;
        let answer = self.ask(request).await?;
        let body = http_body_util::Limited::new(answer.into_body(), ANSWER_MAX);
        let at = || format!("the answer of {}", self.url);
        let body = tokio::time::timeout(SILENCE, body.collect()).await;
        let body = body.with_context(at)?;
        let body = body.map_err(|error| anyhow::anyhow!("{}: {error}", at()))?;
        serde_json::from_slice(&body.to_bytes()).with_context(at)
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
) -> anyhow::Result<SendRequest<Body>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(async move {
        // what it breaks off is told where the answer is read
        let _ = connection.await;
    });
    Ok(sender)
}

/// An answer that says yes.
pub async fn accepted(answer: Response<Incoming>) -> anyhow::Result<Response<Incoming>> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = http_body_util::Limited::new(answer.into_body(), 4096)
        .collect()
        .await;
    let text = body.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text)
        .trim()
        .replace(char::is_control, " ");
    // the text is ours where the API answered; the code tells it from a proxy's
    let code = match status {
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => 125,
        _ => 1,
    };
    let remedy = match status {
        StatusCode::UNAUTHORIZED => "; --token-file names the file with it",
        _ => "",
    };
    Err(crate::pod::Error::Start {
        code,
        message: format!("{text} ({status}){remedy}"),
        service: None,
    }
    .into())
}

fn trust(ca: Option<&Path>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let all = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .with_context(|| format!("certificates in {}", path.display()))?;
            for certificate in all {
                roots.add(certificate)?;
            }
        }
        None => {
            for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
                roots.add(certificate.clone())?;
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn token(path: &Path) -> anyhow::Result<String> {
    use std::io::Read;
    let at = || format!("token in {}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(at)?;
    file.take(TOKEN_MAX)
        .read_to_string(&mut text)
        .with_context(at)?;
    match text.trim() {
        "" => bail!("{}: the file is empty", at()),
        token => Ok(token.to_string()),
    }
}

async fn addresses(host: &str) -> anyhow::Result<Vec<std::net::IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let resolver = hickory_resolver::TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .context("name servers")?;
    let found = resolver.lookup_ip(host).await;
    let found = found.with_context(|| format!("the name {host}"))?;
    Ok(found.iter().collect())
}
