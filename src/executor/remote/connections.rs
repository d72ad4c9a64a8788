//! Connections: how many there may be, and what is agreed with those from elsewhere.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::StatusCode;
use rustix::event::epoll;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;

use super::Listen;
use super::order::Refusal;
use super::stream::HEARTBEAT;
use crate::sys::watch::watch;

/// Most connections at once, of those on the socket and of those from elsewhere: a crowd there keeps nobody out here.
const CONNECTIONS: usize = 64;
/// Most of them whose answer takes as long as a program: who has such a one may need another connection for its input.
const STREAMS: usize = CONNECTIONS / 2;

/// How many there are.
#[derive(Default)]
pub struct Connections {
    local: Side,
    remote: Side,
}

#[derive(Default)]
struct Side {
    connections: Rc<Cell<usize>>,
    streams: Rc<Cell<usize>>,
}

/// One of those that are counted, until it is dropped.
pub struct Place(Rc<Cell<usize>>);

impl Place {
    fn of(count: &Rc<Cell<usize>>) -> Place {
        count.set(count.get() + 1);
        Place(count.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Connections {
    /// No more are let in.
    pub fn are_full(&self, local: bool) -> bool {
        self.of(local).connections.get() >= CONNECTIONS
    }

    /// There is none.
    pub fn are_none(&self) -> bool {
        let count = |side: &Side| side.connections.get();
        count(&self.local) + count(&self.remote) == 0
    }

    /// One more, on the socket or from elsewhere.
    pub fn enter(&self, local: bool) -> Place {
        Place::of(&self.of(local).connections)
    }

    /// One more whose answer is a stream.
    pub fn stream(&self, local: bool) -> Result<Place, Refusal> {
        let streams = &self.of(local).streams;
        if streams.get() >= STREAMS {
            let why = format!("there are {STREAMS} streams already");
            return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        Ok(Place::of(streams))
    }

    fn of(&self, local: bool) -> &Side {
        match local {
            true => &self.local,
            false => &self.remote,
        }
    }
}

/// A connection on which a write fails when the other side has taken nothing for so long.
pub struct Patient<S> {
    stream: S,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// Around a connection.
    pub fn new(stream: S, patience: Duration) -> Patient<S> {
        Patient {
            stream,
            patience,
            stalled: None,
        }
    }

    fn judge<T>(
        &mut self,
        written: Poll<std::io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let sleep = || Box::pin(tokio::time::sleep(patience));
        let over = self.stalled.get_or_insert_with(sleep).as_mut();
        over.poll(context)
            .map(|()| Err(std::io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(flushed, context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(shut, context)
    }
}

/// Tells when the other side of a connection has gone, or will send no more: also while nothing is read of what it sent before.
pub struct Departure(AsyncFd<OwnedFd>);

impl Departure {
    /// Of this connection, for as long as that is there.
    pub fn of(stream: impl AsFd) -> std::io::Result<Departure> {
        // a set of its own: in the one of the event loop it is ready as long as there is something to read
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&set, stream, data, epoll::EventFlags::RDHUP)?;
        watch(set).map(Departure)
    }

    /// Waits for it.
    pub async fn awaited(&self) {
        if let Ok(mut ready) = self.0.readable().await {
            ready.retain_ready();
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_reader_who_takes_nothing_is_given_up() {
        let (near, far) = tokio::io::duplex(4);
        let mut near = Patient::new(near, Duration::from_millis(10));
        near.write_all(b"room").await.unwrap();
        let failed = near.write_all(b"none").await.unwrap_err();
        assert_eq!(failed.kind(), std::io::ErrorKind::TimedOut);
        drop(far);
    }
}
