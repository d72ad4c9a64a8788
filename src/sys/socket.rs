//! Messages between two of our processes, with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt::Timeout;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Longest message of a pair, in bytes.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// Room for a message of a stream, in bytes: a word like `/dev/ptmx`.
const MESSAGE_USUAL: usize = 256;
/// Most descriptors of one message: more than the hierarchies of cgroup version 1.
pub const DESCRIPTORS_MAX: usize = 32;

/// A pair of sockets that keep message boundaries.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Connects to a listening stream socket; waits for that, and later for each message, at most so many seconds (`TimedOut`).
pub fn connect(path: &Path, seconds: u64) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let wait = std::time::Duration::from_secs(seconds);
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Send, Some(wait))?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::AGAIN) => {
            let text = format!("nobody took the connection within {seconds} seconds");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        other => other?,
    }
    Ok(socket)
}

/// Sends one message, with one descriptor when given. EPIPE instead of a signal when the other end is gone.
pub fn send(socket: &impl AsFd, message: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
    send_all(socket, message, &fds)
}

/// [`send`] with at most [`DESCRIPTORS_MAX`] descriptors.
pub fn send_all(socket: &impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    rustix::io::retry_on_intr(|| {
        let bytes = [IoSlice::new(message)];
        rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one message and the descriptor that came with it. Empty when the other end is closed.
pub fn receive(socket: &impl AsFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let (message, mut fds) = receive_all(socket)?;
    Ok((message, fds.pop()))
}

/// [`receive`] with all descriptors that came.
pub fn receive_all(socket: &impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    // how long it is, so that no room is made and zeroed for what is mostly a word
    let length = loop {
        let look = RecvFlags::PEEK | RecvFlags::TRUNC;
        match rustix::net::recv(socket, &mut [0], look) {
            // told once, before what the other end said last: it closed with a message of ours unread
            Err(Errno::INTR | Errno::CONNRESET) => {}
            other => break other?.1,
        }
    };
    if length == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    if length > MESSAGE_MAX {
        let text = "message is too long";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    // of a stream one byte was seen, whatever there is
    take(socket, length.max(MESSAGE_USUAL), RecvFlags::empty())
}

/// The next message and further descriptors of what came with it, which stay in the queue (unix(7)): the same every time. `None` when
/// there is none. For a pair only.
pub fn look(socket: &impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    match take(socket, MESSAGE_MAX, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((message, fds)) if message.is_empty() && fds.is_empty() => Ok(None),
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the other end is closed, whatever messages wait.
pub fn is_closed(socket: &impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    rustix::event::poll(&mut fds, Some(&Timespec::default()))?;
    Ok(fds[0].revents().contains(PollFlags::HUP))
}

/// Takes all messages out, and closes what came with them.
pub fn discard(socket: &impl AsFd) -> io::Result<()> {
    loop {
        match take(socket, MESSAGE_MAX, RecvFlags::DONTWAIT) {
            Ok((message, fds)) if message.is_empty() && fds.is_empty() => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn take(
    socket: &impl AsFd,
    length: usize,
    flags: RecvFlags,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; length];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut bytes = [IoSliceMut::new(&mut message)];
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(socket, &mut bytes, &mut control, flags) {
            // it may also have closed since we looked
            Err(Errno::INTR | Errno::CONNRESET) => {}
            other => break other?,
        }
    };
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message was cut short",
        ));
    }
    message.truncate(received.bytes);
    let mut all = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            all.extend(fds);
        }
    }
    Ok((message, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_can_be_looked_at_again_and_again() {
        let (hold, put) = pair().unwrap();
        assert!(look(&hold).unwrap().is_none());
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&put, b"pipe", Some(&writer)).unwrap();
        drop(writer);
        for byte in [b"a", b"b"] {
            let (text, fds) = look(&hold).unwrap().unwrap();
            assert_eq!((text.as_slice(), fds.len()), (&b"pipe"[..], 1));
            rustix::io::write(&fds[0], byte).unwrap();
        }
        let mut bytes = [0; 3];
        assert_eq!(rustix::io::read(&reader, &mut bytes).unwrap(), 2);
        send(&put, b"more", None).unwrap();
        discard(&hold).unwrap();
        assert!(look(&hold).unwrap().is_none());
        // the last write end was in the queue
        assert_eq!(rustix::io::read(&reader, &mut bytes).unwrap(), 0);
    }

    #[test]
    fn carries_messages_and_descriptors() {
        let (a, b) = pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&a, b"one", None).unwrap();
        send(&a, b"two", Some(&writer)).unwrap();
        drop((a, writer));
        assert!(matches!(receive(&b).unwrap(), (text, None) if text == b"one"));
        let (text, fd) = receive(&b).unwrap();
        assert_eq!(text, b"two");
        rustix::io::write(fd.unwrap(), b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&reader, &mut byte).unwrap(), 1);
        assert!(matches!(receive(&b).unwrap(), (text, None) if text.is_empty()));
        // the last word of one that did not listen
        let (a, b) = pair().unwrap();
        send(&a, b"unread", None).unwrap();
        send(&b, b"last", None).unwrap();
        drop(b);
        assert!(matches!(receive(&a).unwrap(), (text, None) if text == b"last"));
        assert!(matches!(receive(&a).unwrap(), (text, None) if text.is_empty()));
        let (_, b) = pair().unwrap();
        assert_eq!(
            send(&b, b"x", None).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}
