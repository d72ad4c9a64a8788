//! nfnetlink: messages, attributes and the socket that nf_tables and conntrack share.
//!
//! *Invariants*: what the kernel answers is read with bounds, whatever its lengths say. A [`Netfilter`] is a socket of
//! the namespace in which it was opened. The kernel works inside `send`: there is nothing to wait for. Numbers:
//! `linux/netlink.h`, `linux/netfilter/nfnetlink.h`.

use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io, process};

use nix::libc;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::error::{CniError, Result};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Of messages and attributes.
const ALIGN: usize = 4;
const RECEIVE: usize = 64 << 10;
const DUMP_TRIES: usize = 8;
/// A batch is one datagram; this much holds some thousand rules.
const SEND_BUFFER: usize = 4 << 20;
/// What every socket holds without asking.
const SMALL: usize = 64 << 10;

/// A growing message.
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// Header and `struct nfgenmsg`.
    pub fn new(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        Self(bytes)
    }

    /// An attribute of bytes.
    pub fn attr(&mut self, kind: u16, data: &[u8]) {
        self.0.extend((data.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
    }

    /// An attribute of text with its NUL.
    pub fn text(&mut self, kind: u16, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    /// A number, big-endian as everywhere in nfnetlink.
    pub fn number(&mut self, kind: u16, number: u32) {
        self.attr(kind, &number.to_be_bytes());
    }

    /// An attribute of attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.attr(kind | NLA_F_NESTED, &[]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// The message with its length, acknowledged or not.
    pub fn finish(mut self, acknowledge: bool) -> Vec<u8> {
        if acknowledge {
            let flags = NLM_F_ACK | u16::from_ne_bytes([self.0[6], self.0[7]]);
            self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// A message of the kernel.
pub struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// The error of an NLMSG_ERROR; `None`: an acknowledgement.
    fn error(&self) -> Option<io::Error> {
        let code = self.body.first_chunk().map_or(libc::EPROTO, |code| {
            i32::from_ne_bytes(*code).wrapping_neg()
        });
        (code != 0).then(|| io::Error::from_raw_os_error(code))
    }
}

/// The messages of a datagram.
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header: &[u8; 16] = self.0.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = self.0.get(16..length)?;
        self.0 = self
            .0
            .get(length.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    }
}

/// Attributes: kind and data.
pub struct Attrs<'a>(pub &'a [u8]);

impl<'a> Attrs<'a> {
    /// Those after the `struct nfgenmsg` of a message's body.
    pub fn of_body(body: &'a [u8]) -> Self {
        Self(body.get(4..).unwrap_or_default())
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [l0, l1, k0, k1] = *self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let data = self.0.get(4..length)?;
        self.0 = self
            .0
            .get(length.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, data))
    }
}

/// The text of an attribute, up to its NUL.
pub fn text(data: &[u8]) -> String {
    let end = data
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(data.len());
    String::from_utf8_lossy(data.get(..end).unwrap_or_default()).into_owned()
}

/// An error with the sequence number of the message that it is about.
pub type Refused = (u32, io::Error);

/// The socket.
pub struct Netfilter(Arc<Socket>);

/// Whose a socket is: the process, and device and inode of the namespace, which no other one gets as long as it is open.
type Home = (u32, u64, u64);

/// The last socket, kept for the next one who is at home there. To close one takes until the kernel has freed what the
/// last transactions took away (net/netfilter/nf_tables_api.c, nft_rcv_nl_event): longer than the rest of a DEL.
static LAST: Mutex<Option<(Home, Arc<Socket>)>> = Mutex::new(None);

impl Netfilter {
    /// Opens it in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let open = || -> io::Result<Arc<Socket>> {
            let namespace = fs::metadata("/proc/thread-self/ns/net")?;
            let home = (process::id(), namespace.dev(), namespace.ino());
            let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((at, socket)) = last.as_ref()
                && *at == home
                // nobody uses it
                && Arc::strong_count(socket) == 1
            {
                return Ok(socket.clone());
            }
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            let socket = Arc::new(socket);
            *last = Some((home, socket.clone()));
            Ok(socket)
        };
        open()
            .map(Self)
            .map_err(|cause| CniError::operation("cannot open a nfnetlink socket", cause))
    }

    /// What `read` makes of the body of each message of a dump; `request` makes the request with the flags it is given.
    pub fn dump<T>(
        &mut self,
        request: impl Fn(u16) -> Encoder,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            self.0.send(&request(NLM_F_DUMP).finish(false), 0)?;
            if let Some(found) = self.dumped(&read)? {
                return Ok(found);
            }
        }
        Err(io::Error::other("it keeps changing"))
    }

    /// `None`: overtaken by a change.
    fn dumped<T>(&self, read: impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<Vec<T>>> {
        let (mut found, mut whole) = (Vec::new(), true);
        loop {
            let bytes = self.receive(0)?;
            for message in Messages(&bytes) {
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return Ok(whole.then_some(found)),
                    NLMSG_ERROR => {
                        return Err(message
                            .error()
                            .unwrap_or_else(|| io::Error::other("an empty error")));
                    }
                    _ => found.extend(read(message.body)),
                }
            }
        }
    }

    /// Sends messages of which the one numbered `last` asks for an acknowledgement. The kernel has answered all of them
    /// then; nothing of it is left for the next call to read.
    pub fn send(&mut self, bytes: &[u8], last: u32) -> std::result::Result<(), Refused> {
        if bytes.len() > SMALL {
            self.widen();
        }
        self.0.send(bytes, 0).map_err(|cause| (0, cause))?;
        let mut result = None;
        loop {
            let bytes = match self.receive(libc::MSG_DONTWAIT) {
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock && result.is_some() => {
                    break;
                }
                received => received.map_err(|cause| (0, cause))?,
            };
            for message in Messages(&bytes).filter(|message| message.kind == NLMSG_ERROR) {
                match message.error() {
                    // the first is the cause of the others
                    Some(cause) if !matches!(result, Some(Err(_))) => {
                        result = Some(Err((message.sequence, cause)));
                    }
                    None if message.sequence == last && result.is_none() => result = Some(Ok(())),
                    _ => {}
                }
            }
        }
        result.unwrap_or(Ok(()))
    }

    fn receive(&self, flags: i32) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(RECEIVE);
        loop {
            match self.0.recv_from(&mut bytes, flags) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    if result
                        .as_ref()
                        .is_err_and(|cause| cause.kind() != io::ErrorKind::WouldBlock)
                    {
                        self.forget();
                    }
                    return result.map(|_| bytes);
                }
            }
        }
    }

    /// Answers may be missing or left in the socket: it serves nobody else.
    fn forget(&self) {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        last.take_if(|(_, socket)| Arc::ptr_eq(socket, &self.0));
    }

    /// Best effort: where it doesn't help, `send` says EMSGSIZE.
    fn widen(&self) {
        use nix::sys::socket::{setsockopt, sockopt};
        if setsockopt(self.0.as_ref(), sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            let _ = setsockopt(self.0.as_ref(), sockopt::SndBuf, &SEND_BUFFER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_bounds() {
        let mut message = Encoder::new(7, 0, 1, 0, 0);
        message.text(1, "abc");
        message.nest(2, |inner| inner.number(3, 9));
        let bytes = message.finish(true);
        let found = Messages(&bytes).next().unwrap();
        assert_eq!(
            (found.kind, found.flags, found.sequence),
            (7, NLM_F_REQUEST | NLM_F_ACK, 1)
        );
        let attrs: Vec<_> = Attrs::of_body(found.body).collect();
        assert_eq!(
            attrs,
            [(1, &b"abc\0"[..]), (2, &[8, 0, 3, 0, 0, 0, 0, 9][..])]
        );
        for end in 0..bytes.len() {
            assert_eq!(Messages(&bytes[..end]).count(), 0);
            // whatever comes of it: no panic
            Attrs(&bytes[..end]).count();
        }
        let zero_length = [0u8; 32];
        assert_eq!(Messages(&zero_length).count(), 0);
        assert_eq!(Attrs(&zero_length).count(), 0);
        assert_eq!(text(b"ab"), "ab");
    }
}
