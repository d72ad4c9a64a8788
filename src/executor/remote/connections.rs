//! Connections: how many there may be, and what is agreed with those from elsewhere.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::Listen;
use super::stream::HEARTBEAT;

/// Most connections at once, of those on the socket and of those from elsewhere: a crowd there keeps nobody out here.
const CONNECTIONS: usize = 64;

/// How many there are.
#[derive(Default)]
pub struct Connections {
    local: Cell<usize>,
    remote: Cell<usize>,
}

impl Connections {
    /// No more are let in.
    pub fn are_full(&self, local: bool) -> bool {
        self.of(local).get() >= CONNECTIONS
    }

    /// There is none.
    pub fn are_none(&self) -> bool {
        self.local.get() == 0 && self.remote.get() == 0
    }

    /// Those on the socket, or those from elsewhere.
    pub fn of(&self, local: bool) -> &Cell<usize> {
        match local {
            true => &self.local,
            false => &self.remote,
        }
    }
}

/// One whose machine went away without a word is noticed.
pub fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, HEARTBEAT)?;
    sockopt::set_tcp_keepintvl(stream, HEARTBEAT / 3)?;
    sockopt::set_tcp_keepcnt(stream, 6)?;
    Ok(())
}

/// Reads certificates and key.
pub fn acceptor(listen: &Listen) -> Result<TlsAcceptor, String> {
    let at = |path: &PathBuf, why: String| format!("{}: {why}", path.display());
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&listen.tls_cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates =
        certificates.map_err(|error| at(&listen.tls_cert, format!("certificates: {error}")))?;
    let key = PrivateKeyDer::from_pem_file(&listen.tls_key)
        .map_err(|error| at(&listen.tls_key, format!("key: {error}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| at(&listen.tls_cert, error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
