//! Ways to an agent: TCP, TLS over TCP, and the socket of an agent on this machine.
//!
//! Owns connecting, redirects' targets, and the agent's certificate. *Invariants:* names are resolved by hickory, never by the C library;
//! a certificate is always verified. Leaves to others: HTTP.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hyper::Uri;
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::SILENCE;
use crate::executor::mesos::environment::{Endpoint, Tls};

/// Longest path of a socket, in bytes (unix(7): `sun_path` less the zero at its end).
const SOCKET_PATH_MAX: usize = 107;
/// TCP's own probes: the first one, further ones, and how many are lost before the connection is (tcp(7)). Together [`SILENCE`].
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(Endpoint),
    Socket(PathBuf),
}

/// A connection.
pub(super) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Socket(UnixStream),
}

/// Whom we believe, and as whom we come.
#[derive(Clone)]
pub(super) struct Trust {
    config: Arc<ClientConfig>,
    name: Option<String>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(endpoint) => endpoint.fmt(f),
            Address::Socket(path) => path.display().fmt(f),
        }
    }
}

impl Address {
    /// For the header `Host`.
    pub(super) fn authority(&self) -> String {
        match self {
            Address::Tcp(endpoint) => endpoint.to_string(),
            Address::Socket(_) => "localhost".to_owned(),
        }
    }

    pub(super) async fn connect(&self, trust: Option<&Trust>) -> Result<Stream, String> {
        let endpoint = match self {
            Address::Socket(path) => {
                let stream = socket(path).await.map_err(|error| error.to_string())?;
                return Ok(Stream::Socket(stream));
            }
            Address::Tcp(endpoint) => endpoint,
        };
        let stream = tcp(endpoint).await?;
        match trust {
            None => Ok(Stream::Tcp(stream)),
            Some(trust) => {
                let stream = trust.connect(endpoint, stream).await?;
                Ok(Stream::Tls(Box::new(stream)))
            }
        }
    }
}

/// Tries each address of the host.
async fn tcp(endpoint: &Endpoint) -> Result<TcpStream, String> {
    let mut why = format!("{} has no address", endpoint.host);
    for address in addresses(&endpoint.host).await? {
        let connected = TcpStream::connect(SocketAddr::new(address, endpoint.port)).await;
        match connected.and_then(watched) {
            Ok(stream) => return Ok(stream),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

async fn addresses(host: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
    let resolver = resolver.map_err(|error| format!("name servers: {error}"))?;
    let found = resolver.lookup_ip(host).await;
    let found = found.map_err(|error| format!("the name {host}: {error}"))?;
    Ok(found.iter().collect())
}

fn watched(stream: TcpStream) -> std::io::Result<TcpStream> {
    sockopt::set_tcp_nodelay(&stream, true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(&stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(&stream, PROBES)?;
    // the same for bytes that were sent, which are not probed
    let milliseconds = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(&stream, milliseconds)?;
    Ok(stream)
}

/// Connects also where the path is longer than an address may be, by way of its folder.
async fn socket(path: &Path) -> std::io::Result<UnixStream> {
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return UnixStream::connect(path).await;
    }
    use std::os::fd::AsRawFd;
    let wrong = || std::io::Error::other("the path of the socket has no file name");
    let (folder, name) = path.parent().zip(path.file_name()).ok_or_else(wrong)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name);
    UnixStream::connect(short).await
}

impl Trust {
    pub(super) fn new(tls: &Tls) -> Result<Trust, String> {
        let at = |path: &Path, why: String| format!("certificates in {}: {why}", path.display());
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&tls.ca_file)? {
            let added = roots.add(certificate);
            added.map_err(|error| at(&tls.ca_file, error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS: {error}"))?
            .with_root_certificates(roots);
        let config = match &tls.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let read = PrivateKeyDer::from_pem_file(key);
                let private = read.map_err(|error| format!("key in {}: {error}", key.display()))?;
                let ours = builder.with_client_auth_cert(certificates(certificate)?, private);
                ours.map_err(|error| at(certificate, error.to_string()))?
            }
        };
        let (config, name) = (Arc::new(config), tls.name.clone());
        Ok(Trust { config, name })
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let name = self.name.as_ref().unwrap_or(&endpoint.host).clone();
        let server = ServerName::try_from(name.clone());
        let server = server.map_err(|_| format!("{name:?} is no name of a server"))?;
        let connected = TlsConnector::from(Arc::clone(&self.config))
            .connect(server, stream)
            .await;
        connected.map_err(|error| {
            let advice = "LIBPROCESS_SSL_CA_FILE names its authority, SAMPAN_MESOS_AGENT_NAME the name in it";
            format!("TLS with {name}: {error}; if it is about the certificate, {advice}")
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |why: String| format!("certificates in {}: {why}", path.display());
    let all = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let all: Result<Vec<_>, _> = all.collect();
    match all {
        Ok(all) if all.is_empty() => Err(wrong("there is none in PEM form".to_owned())),
        Ok(all) => Ok(all),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// The address and the path that a redirect leads to. One to another scheme is not followed: to http it would give up what TLS
/// protects, and for https there is no authority to trust.
pub(super) fn redirected(
    from: &Address,
    tls: bool,
    location: &str,
) -> Result<(Address, String), &'static str> {
    let uri: Uri = location.parse().map_err(|_| "it is no URL")?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    if !path.starts_with('/') {
        return Err("it has no path");
    }
    let path = path.to_owned();
    let (host, port) = match (uri.host(), uri.scheme_str(), from) {
        (None, _, _) => return Ok((from.clone(), path)),
        (Some(_), _, Address::Socket(_)) => return Err("it leaves the agent's socket"),
        (Some(_), Some("http"), _) if tls => return Err("it leaves https"),
        (Some(_), Some("https"), _) if !tls => return Err("it needs LIBPROCESS_SSL_ENABLED"),
        (Some(host), Some("http"), _) => (host, uri.port_u16().unwrap_or(80)),
        (Some(host), Some("https"), _) => (host, uri.port_u16().unwrap_or(443)),
        // `//host/path` is no URI of the http crate, `host:port` has no scheme
        _ => return Err("it is neither http nor https"),
    };
    let endpoint = Endpoint::parse(&format!("{host}:{port}")).ok_or("its host is wrong")?;
    Ok((Address::Tcp(endpoint), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects() {
        let tcp = |text: &str| Address::Tcp(Endpoint::parse(text).unwrap());
        let (here, socket) = (
            tcp("10.0.0.1:5051"),
            Address::Socket("/run/agent.sock".into()),
        );
        for (from, tls, location, expected) in [
            (&here, false, "/x/api", Ok((here.clone(), "/x/api"))),
            (&here, true, "/x/api", Ok((here.clone(), "/x/api"))),
            (&socket, false, "/x/api", Ok((socket.clone(), "/x/api"))),
            (
                &here,
                false,
                "http://10.0.0.2:5051/x",
                Ok((tcp("10.0.0.2:5051"), "/x")),
            ),
            (
                &here,
                false,
                "http://10.0.0.2",
                Ok((tcp("10.0.0.2:80"), "/")),
            ),
            (
                &here,
                false,
                "http://[::1]:7/x?y",
                Ok((tcp("[::1]:7"), "/x?y")),
            ),
            (
                &here,
                true,
                "https://10.0.0.2/x",
                Ok((tcp("10.0.0.2:443"), "/x")),
            ),
            (
                &here,
                true,
                "http://10.0.0.1:5051/x",
                Err("it leaves https"),
            ),
            (
                &here,
                false,
                "https://10.0.0.1:5051/x",
                Err("it needs LIBPROCESS_SSL_ENABLED"),
            ),
            (
                &socket,
                false,
                "http://10.0.0.1/x",
                Err("it leaves the agent's socket"),
            ),
            (
                &here,
                false,
                "ftp://10.0.0.1/x",
                Err("it is neither http nor https"),
            ),
            (
                &here,
                false,
                "10.0.0.1:5051",
                Err("it is neither http nor https"),
            ),
            (&here, false, "http://a_%/x", Err("it is no URL")),
            (&here, false, "", Err("it is no URL")),
            (&here, false, "*", Err("it has no path")),
        ] {
            let found = redirected(from, tls, location);
            let expected = expected.map(|(address, path): (_, &str)| (address, path.to_owned()));
            assert_eq!(found, expected, "{location:?}");
        }
    }
}
