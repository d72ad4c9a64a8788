//! Asking other servers: the query as the client wrote it, with an id of our own.
//!
//! *Invariants:* a reply counts only when id and question are those that were sent and it comes from the server that was
//! asked; time, size and number of what is under way are bounded.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::{self, Query, REFUSED, SERVER_FAILURE};
use crate::network::netns;

/// How long a server has; three of them together less than the five seconds that a client waits.
const PATIENCE: Duration = Duration::from_millis(1500);
/// So many servers are asked, as by the C library.
const MAX_SERVERS: usize = 3;
/// Largest datagram that is taken from a server.
const MAX_DATAGRAM: usize = 4096;
const PORT: u16 = 53;

/// Who is asked, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream<'a> {
    /// Addresses of servers, the first one first.
    pub servers: Vec<IpAddr>,
    /// Namespace that the addresses are of; the calling thread's own when not given.
    pub netns: Option<&'a Path>,
}

/// Asks one server after the other; gives the reply with the client's id. `None`: nobody answered.
pub async fn ask(
    upstream: &Upstream<'_>,
    query: &Query<'_>,
    bytes: &[u8],
    udp: bool,
) -> Option<Vec<u8>> {
    let mut last = None;
    for server in upstream.servers.iter().take(MAX_SERVERS) {
        let server = SocketAddr::new(*server, PORT);
        let asked = async {
            match udp {
                true => by_udp(upstream.netns, server, query, bytes).await,
                false => by_tcp(upstream.netns, server, query, bytes).await,
            }
        };
        let Ok(Ok(mut reply)) = timeout(PATIENCE, asked).await else {
            continue;
        };
        message::set_id(&mut reply, query.id);
        let unwilling = matches!(message::code(&reply), SERVER_FAILURE | REFUSED);
        last = Some(reply);
        if !unwilling {
            break;
        }
    }
    last
}

async fn by_udp(
    netns: Option<&Path>,
    server: SocketAddr,
    query: &Query<'_>,
    bytes: &[u8],
) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = within(netns, || std::net::UdpSocket::bind((any, 0)))?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    // what others send does not get here
    socket.connect(server).await?;
    let (id, bytes) = with_new_id(bytes);
    socket.send(&bytes).await?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let reply = buffer.get(..length).unwrap_or_default();
        if message::answers(reply, id, query) {
            return Ok(reply.to_vec());
        }
    }
}

async fn by_tcp(
    netns: Option<&Path>,
    server: SocketAddr,
    query: &Query<'_>,
    bytes: &[u8],
) -> io::Result<Vec<u8>> {
    let socket = within(netns, || match server {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    })?;
    let mut stream = socket.connect(server).await?;
    let (id, bytes) = with_new_id(bytes);
    send(&mut stream, &bytes).await?;
    let reply = receive(&mut stream).await?;
    match message::answers(&reply, id, query) {
        true => Ok(reply),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Writes a message with its length before it (RFC 1035, 4.2.2).
pub async fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes].concat())
        .await
}

/// Reads a message with its length before it.
pub async fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn with_new_id(bytes: &[u8]) -> (u16, Vec<u8>) {
    let id = fastrand::u16(..);
    let mut bytes = bytes.to_vec();
    message::set_id(&mut bytes, id);
    (id, bytes)
}

/// Makes a socket in a namespace: where it was made is where it is.
pub fn within<T>(netns: Option<&Path>, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match netns {
        None => make(),
        Some(path) => netns::with(path, make).map_err(io::Error::other)?,
    }
}
