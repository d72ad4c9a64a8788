//! Encryption without trust: a check asks whether a service answers, not who it is. Its certificate may be self-signed, be
//! over, or name somebody else, as it may for Mesos and Kubernetes.

use std::cell::OnceCell;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Made when it is needed first.
#[derive(Default)]
pub struct Tls(OnceCell<TlsConnector>);

impl Tls {
    /// Encrypts a connection; `name` is what a server of several certificates chooses by.
    pub async fn wrap(
        &self,
        stream: TcpStream,
        name: &str,
        address: IpAddr,
    ) -> io::Result<TlsStream<TcpStream>> {
        let connector = match self.0.get() {
            Some(connector) => connector.clone(),
            None => {
                let made = connector().map_err(io::Error::other)?;
                self.0.get_or_init(|| made).clone()
            }
        };
        let name = ServerName::try_from(name.to_string())
            .unwrap_or_else(|_| ServerName::IpAddress(address.into()));
        connector.connect(name, stream).await
    }
}

fn connector() -> Result<TlsConnector, Error> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config).into())
}

/// Takes every certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
