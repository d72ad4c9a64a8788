//! Questions and answers over an interface: through a packet socket while there is no address, later by UDP.
//!
//! *Invariants*: an [`Interface`] is a socket of the namespace in which it was opened, and of one interface. Every wait
//! has an end; a packet that isn't the answer doesn't prolong it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{SockaddrLike, bind, setsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, eth, socket_with};

use super::message::{
    Answer, BROADCAST, CLIENT_PORT, Kind, Question, SERVER_PORT, frame, option, unframe,
};
use crate::error::{CniError, OPERATION_FAILED, Result};

/// Longer packets are no DHCP messages.
const MAX_PACKET: usize = 4096;
/// The first answer is waited for so long; each next one twice as long (RFC 2131 §4.1 has 4 s, meant for a network of
/// diskless machines that are turned on at once).
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(16);

/// Who asks: the same for every message.
#[derive(Debug)]
pub struct Client<'a> {
    /// The interface.
    pub ifname: &'a str,
    /// Its link address.
    pub mac: [u8; 6],
    /// Options of every message.
    pub options: &'a [(u8, Vec<u8>)],
    /// Answers as broadcasts.
    pub broadcast: bool,
}

/// A packet socket.
#[derive(Debug)]
pub struct Interface(File);

/// An answer and where it came from.
#[derive(Debug)]
pub struct Heard {
    /// What was said.
    pub answer: Answer,
    /// By whom: the server, or a relay.
    pub mac: [u8; 6],
    /// When the question was sent.
    pub asked: Instant,
}

/// A number that nobody guesses.
pub fn random() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    // each RandomState is keyed from the kernel's random numbers
    std::hash::RandomState::new().build_hasher().finish() as u32
}

fn until(fd: &impl AsFd, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(true),
        Err(cause) => Err(cause.into()),
    }
}

/// Reads until `wanted` finds what it wants, or the time is over.
fn hear<T>(
    mut socket: impl Read + AsFd,
    deadline: Instant,
    mut wanted: impl FnMut(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let mut packet = [0; MAX_PACKET];
    while Instant::now() < deadline {
        if !until(&socket, deadline)? {
            continue;
        }
        let length = match socket.read(&mut packet) {
            Err(cause) => match cause.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => continue,
                // a network that was down, or an ICMP message about the question
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NetworkDown => continue,
                _ => return Err(cause),
            },
            Ok(length) => length,
        };
        if let Some(found) = wanted(packet.get(..length).unwrap_or_default()) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

impl Interface {
    /// Opens the interface in the calling thread's namespace.
    pub fn open(ifname: &str) -> Result<Self> {
        let open = || -> io::Result<File> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // RAW and not DGRAM: the addresses of the frames are chosen and seen
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::IP))?;
            let address = getifaddrs()?
                .filter(|found| found.interface_name == ifname)
                .find_map(|found| found.address?.as_link_addr().copied())
                .ok_or(io::ErrorKind::NotFound)?;
            let address: &dyn SockaddrLike = &address;
            bind(socket.as_raw_fd(), address)?;
            Ok(socket.into())
        };
        open().map(Self).map_err(|cause| {
            CniError::operation(format!("cannot open a packet socket on {ifname}"), cause)
        })
    }

    /// Sends a question from `address`, which need not be the interface's.
    pub fn send(
        &self,
        client: &Client<'_>,
        from: Ipv4Addr,
        to: ([u8; 6], Ipv4Addr),
        question: &Question<'_>,
    ) -> Result<()> {
        let frame = frame((client.mac, from), to, &question.to_bytes());
        (&self.0).write_all(&frame).map_err(|cause| {
            let what = format!("cannot send a DHCP message over {}", client.ifname);
            CniError::operation(what, cause)
        })
    }

    /// Asks everybody and waits for an answer that `wanted` takes.
    pub fn ask(
        &self,
        client: &Client<'_>,
        question: &Question<'_>,
        deadline: Instant,
        wanted: impl Fn(&Answer) -> bool,
    ) -> Result<Option<Heard>> {
        let asked = Instant::now();
        let from = question.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        self.send(client, from, (BROADCAST, Ipv4Addr::BROADCAST), question)?;
        let heard = hear(&self.0, deadline, |packet| {
            let (answer, mac) = unframe(packet)?;
            let ours = answer.xid == question.xid && answer.mac == client.mac;
            (ours && wanted(&answer)).then_some(Heard { answer, mac, asked })
        });
        heard.map_err(|cause| {
            CniError::operation(format!("cannot receive from {}", client.ifname), cause)
        })
    }
}

impl Client<'_> {
    /// A question with the options of every message.
    pub fn question(&self, kind: Kind, xid: u32) -> Question<'_> {
        let own = self.options.iter();
        let mut options: Vec<(u8, &[u8])> = own.map(|(code, value)| (*code, &**value)).collect();
        // what fits into a frame of any Ethernet
        options.push((option::MAX_SIZE, &[5, 0xc0]));
        Question {
            kind,
            xid,
            secs: 0,
            mac: self.mac,
            address: None,
            broadcast: self.broadcast,
            options,
        }
    }

    /// DISCOVER until somebody offers, REQUEST until it is acknowledged (RFC 2131 §3.1). The first offer that `acceptable`
    /// likes is taken.
    ///
    /// # Errors
    /// [`OPERATION_FAILED`] with what was heard last when `timeout` is over.
    pub fn acquire(
        &self,
        interface: &Interface,
        timeout: Duration,
        acceptable: impl Fn(&Answer) -> std::result::Result<(), &'static str>,
    ) -> Result<Heard> {
        let begin = Instant::now();
        let end = begin + timeout;
        let mut wait = FIRST_WAIT;
        let mut last = "no DHCP server answers".to_owned();
        while Instant::now() < end {
            let xid = random();
            let refused = std::cell::Cell::new(None);
            let mut question = self.question(Kind::Discover, xid);
            question.secs = begin.elapsed().as_secs().try_into().unwrap_or(u16::MAX);
            let deadline = end.min(Instant::now() + wait);
            wait = (wait * 2).min(LONGEST_WAIT);
            let offer = interface.ask(self, &question, deadline, |answer| {
                answer.kind == Kind::Offer
                    && acceptable(answer)
                        .inspect_err(|why| refused.set(Some(*why)))
                        .is_ok()
            })?;
            let Some(offer) = offer else {
                if let Some(why) = refused.get() {
                    last = format!("the DHCP server's offer can't be used: {why}");
                }
                continue;
            };
            let ip = offer.answer.address;
            let server = offer.answer.ip(option::SERVER).map(|ip| ip.octets());
            let wanted = ip.octets();
            question.kind = Kind::Request;
            question.options.push((option::REQUESTED_ADDRESS, &wanted));
            if let Some(server) = &server {
                question.options.push((option::SERVER, server));
            }
            // the server that offers is there: a second REQUEST is for a lost packet
            for _ in 0..2 {
                let deadline = end.min(Instant::now() + 2 * FIRST_WAIT);
                let answer = interface.ask(self, &question, deadline, |answer| {
                    answer.kind == Kind::Nak
                        || answer.kind == Kind::Ack
                            && answer.address == ip
                            && acceptable(answer).is_ok()
                })?;
                match answer {
                    Some(heard) if heard.answer.kind == Kind::Ack => return Ok(heard),
                    Some(heard) => {
                        let why = heard.answer.text(option::MESSAGE).unwrap_or_default();
                        last = format!("the DHCP server offers {ip} and refuses it then: {why}");
                        // it may go on so: the next DISCOVER waits
                        std::thread::sleep(
                            FIRST_WAIT.min(end.saturating_duration_since(Instant::now())),
                        );
                        break;
                    }
                    None => last = format!("the DHCP server offers {ip} and is silent then"),
                }
            }
        }
        Err(CniError::new(
            OPERATION_FAILED,
            format!(
                "no address for {} within {} s",
                self.ifname,
                timeout.as_secs()
            ),
        )
        .because(last))
    }

    /// Asks the lease's own server by UDP for the same address again (RFC 2131 §4.3.2 "RENEWING"); ACK or NAK.
    pub fn renew(
        &self,
        address: Ipv4Addr,
        server: Ipv4Addr,
        wait: Duration,
    ) -> io::Result<Option<Heard>> {
        let socket = UdpSocket::bind(SocketAddrV4::new(address, CLIENT_PORT))?;
        setsockopt(&socket, sockopt::BindToDevice, &self.ifname.into())?;
        socket.connect(SocketAddrV4::new(server, SERVER_PORT))?;
        let mut question = self.question(Kind::Request, random());
        question.address = Some(address);
        // unicast both ways
        question.broadcast = false;
        let asked = Instant::now();
        socket.send(&question.to_bytes())?;
        let socket = File::from(std::os::fd::OwnedFd::from(socket));
        hear(&socket, asked + wait, |packet| {
            let answer = Answer::read(packet)?;
            is_verdict(&answer, question.xid, address).then_some(Heard {
                answer,
                mac: [0; 6],
                asked,
            })
        })
    }

    /// Asks everybody for the same address again (RFC 2131 §4.3.2 "REBINDING"); ACK or NAK.
    pub fn rebind(&self, address: Ipv4Addr, wait: Duration) -> Result<Option<Heard>> {
        let interface = Interface::open(self.ifname)?;
        let mut question = self.question(Kind::Request, random());
        question.address = Some(address);
        interface.ask(self, &question, Instant::now() + wait, |answer| {
            is_verdict(answer, question.xid, address)
        })
    }

    /// Gives the address back (RFC 2131 §4.4.6). Nobody answers to that. The frame needs neither an address on the
    /// interface nor a neighbour entry, for the interface may go right afterwards.
    pub fn release(
        &self,
        interface: &Interface,
        address: Ipv4Addr,
        server: (Ipv4Addr, [u8; 6]),
    ) -> Result<()> {
        let id = server.0.octets();
        let mut question = self.question(Kind::Release, random());
        // RFC 2131 table 5: neither of these in a DHCPRELEASE
        question
            .options
            .retain(|(code, _)| ![option::WANTED, option::MAX_SIZE].contains(code));
        question.address = Some(address);
        question.broadcast = false;
        question.options.push((option::SERVER, &id));
        interface.send(self, address, (server.1, server.0), &question)
    }
}

fn is_verdict(answer: &Answer, xid: u32, address: Ipv4Addr) -> bool {
    answer.xid == xid
        && (answer.kind == Kind::Nak || answer.kind == Kind::Ack && answer.address == address)
}
