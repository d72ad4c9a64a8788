//! nf_tables through netlink: what our tables need, encoded by hand.
//!
//! *Invariants*: every table is of family `inet` and ours alone. A [`Batch`] is applied whole or not at all. Rules are
//! found again by their comment, which the kernel keeps as user data in the form that nft(8) prints. What the kernel
//! answers is read with bounds. Numbers: `linux/netfilter/nf_tables.h`, `nfnetlink.h`.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::libc;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::error::{CniError, Result};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// NFNL_SUBSYS_NFTABLES, and its messages.
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DEL_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const DEL_RULE: u16 = SUBSYSTEM << 8 | 8;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// nft(8)'s user data: type 0 is the comment, with its NUL.
const UDATA_COMMENT: u8 = 0;
/// NFT_USERDATA_MAXLEN less type, length and NUL.
pub const MAX_COMMENT: usize = 253;
const RECEIVE: usize = 64 << 10;
const DUMP_TRIES: usize = 8;
/// A batch is one datagram; this much holds some thousand rules.
const SEND_BUFFER: usize = 4 << 20;

/// Where in the kernel a base chain sits.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// NF_INET_PRE_ROUTING and so on.
    pub number: u32,
    /// Order among the chains of the hook.
    pub priority: i32,
}

/// Before routing.
pub const PREROUTING: u32 = 0;
/// Packets of the host itself.
pub const OUTPUT: u32 = 3;
/// After routing.
pub const POSTROUTING: u32 = 4;

/// A chain; without a hook others jump to it.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where it sits.
    pub hook: Option<Hook>,
}

/// A table with its chains.
#[derive(Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// In the order of their making.
    pub chains: &'static [Chain],
}

/// One step of a rule; the names are nft(8)'s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// `meta nfproto ipv4` (true) or `ipv6`.
    Family(bool),
    /// `meta l4proto N`.
    Protocol(u8),
    /// `meta iiftype != loopback`.
    NotFromLoopback,
    /// `ip saddr [!=] NET`.
    Source(bool, IpNet),
    /// `ip daddr [!=] NET`.
    Destination(bool, IpNet),
    /// `th dport N`.
    DestinationPort(u16),
    /// `fib daddr type local`.
    LocalDestination,
    /// `ct status dnat`.
    Dnatted,
    /// `jump CHAIN`.
    Jump(&'static str),
    /// `drop`.
    Drop,
    /// `masquerade`.
    Masquerade,
    /// `dnat to ADDRESS:PORT`.
    Dnat(IpAddr, u16),
}

/// A rule to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: &'static str,
    /// Its steps.
    pub exprs: Vec<Expr>,
    /// Whose it is; empty: the table's own.
    pub comment: String,
}

/// A rule in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRule {
    /// Its chain.
    pub chain: String,
    /// What deletes it.
    pub handle: u64,
    /// Its comment; may be empty.
    pub comment: String,
}

/// A growing netlink message.
struct Encoder(Vec<u8>);

impl Encoder {
    fn new(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        // struct nfgenmsg
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        Self(bytes)
    }

    fn attr(&mut self, kind: u16, data: &[u8]) {
        self.0.extend((data.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    fn number(&mut self, kind: u16, number: u32) {
        self.attr(kind, &number.to_be_bytes());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.attr(kind | NLA_F_NESTED, &[]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn expr(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        // NFTA_LIST_ELEM { NFTA_EXPR_NAME, NFTA_EXPR_DATA }
        self.nest(1, |list| {
            list.text(1, name);
            list.nest(2, fill);
        });
    }

    /// `meta`, `ct`: load `key` into register 1.
    fn load(&mut self, name: &str, key: u32) {
        self.expr(name, |e| {
            e.number(1, 1);
            e.number(2, key);
        });
    }

    /// `payload`: base 1 is the network, 2 the transport header.
    fn payload(&mut self, base: u32, offset: u32, length: usize) {
        self.expr("payload", |e| {
            e.number(1, 1);
            e.number(2, base);
            e.number(3, offset);
            e.number(4, length as u32);
        });
    }

    fn cmp(&mut self, equal: bool, data: &[u8]) {
        self.expr("cmp", |e| {
            e.number(1, 1);
            e.number(2, u32::from(!equal));
            e.nest(3, |value| value.attr(1, data));
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.expr("bitwise", |e| {
            e.number(1, 1);
            e.number(2, 1);
            e.number(3, mask.len() as u32);
            e.nest(4, |value| value.attr(1, mask));
            e.nest(5, |value| value.attr(1, &vec![0; mask.len()]));
        });
    }

    fn immediate(&mut self, register: u32, data: &[u8]) {
        self.expr("immediate", |e| {
            e.number(1, register);
            e.nest(2, |value| value.attr(1, data));
        });
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.expr("immediate", |e| {
            e.number(1, 0);
            e.nest(2, |data| {
                data.nest(2, |verdict| {
                    verdict.number(1, code as u32);
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        });
    }

    fn address(&mut self, equal: bool, net: &IpNet, offset_v4: u32, offset_v6: u32) {
        self.load("meta", 15);
        self.cmp(true, &[nfproto(net.addr())]);
        let bytes = octets(net.network());
        self.payload(
            1,
            if net.addr().is_ipv4() {
                offset_v4
            } else {
                offset_v6
            },
            bytes.len(),
        );
        if net.prefix_len() < net.max_prefix_len() {
            self.mask(&octets(net.netmask()));
        }
        self.cmp(equal, &bytes);
    }

    fn step(&mut self, step: &Expr) {
        match step {
            Expr::Family(v4) => {
                self.load("meta", 15);
                self.cmp(true, &[if *v4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 }]);
            }
            Expr::Protocol(number) => {
                self.load("meta", 16);
                self.cmp(true, &[*number]);
            }
            Expr::NotFromLoopback => {
                self.load("meta", 8);
                // ARPHRD_LOOPBACK
                self.cmp(false, &772u16.to_ne_bytes());
            }
            Expr::Source(equal, net) => self.address(*equal, net, 12, 8),
            Expr::Destination(equal, net) => self.address(*equal, net, 16, 24),
            Expr::DestinationPort(port) => {
                self.payload(2, 2, 2);
                self.cmp(true, &port.to_be_bytes());
            }
            Expr::LocalDestination => {
                // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR
                self.expr("fib", |e| {
                    e.number(1, 1);
                    e.number(2, 3);
                    e.number(3, 2);
                });
                // RTN_LOCAL
                self.cmp(true, &2u32.to_ne_bytes());
            }
            Expr::Dnatted => {
                // IPS_DST_NAT
                self.load("ct", 2);
                self.mask(&0x20u32.to_ne_bytes());
                self.cmp(false, &0u32.to_ne_bytes());
            }
            Expr::Jump(chain) => self.verdict(-3, Some(chain)),
            Expr::Drop => self.verdict(0, None),
            Expr::Masquerade => self.expr("masq", |_| {}),
            Expr::Dnat(address, port) => {
                self.immediate(1, &octets(*address));
                self.immediate(2, &port.to_be_bytes());
                self.expr("nat", |e| {
                    e.number(1, 1);
                    e.number(2, u32::from(nfproto(*address)));
                    e.number(3, 1);
                    e.number(5, 2);
                });
            }
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

fn nfproto(address: IpAddr) -> u8 {
    if address.is_ipv4() {
        NFPROTO_IPV4
    } else {
        NFPROTO_IPV6
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Changes that happen together.
#[derive(Default)]
pub struct Batch {
    /// What each message is, for errors, and the message; its sequence number is its place, from 1.
    messages: Vec<(String, Vec<u8>)>,
}

impl Batch {
    fn push(&mut self, what: String, kind: u16, flags: u16, fill: impl FnOnce(&mut Encoder)) {
        let sequence = self.messages.len() as u32 + 1;
        let mut message = Encoder::new(kind, flags, sequence, NFPROTO_INET, 0);
        fill(&mut message);
        self.messages.push((what, message.finish()));
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Makes a table and its chains where they are missing.
    pub fn table(&mut self, table: &Table) {
        self.push(
            format!("add the nftables table inet {}", table.name),
            NEW_TABLE,
            NLM_F_CREATE,
            |m| {
                m.text(1, table.name);
            },
        );
        for chain in table.chains {
            let what = format!("add the nftables chain inet {} {}", table.name, chain.name);
            self.push(what, NEW_CHAIN, NLM_F_CREATE, |m| {
                m.text(1, table.name);
                m.text(3, chain.name);
                if let Some(hook) = chain.hook {
                    m.nest(4, |h| {
                        h.number(1, hook.number);
                        h.number(2, hook.priority as u32);
                    });
                    m.text(7, hook.kind);
                }
            });
        }
    }

    /// Appends a rule.
    pub fn rule(&mut self, table: &Table, rule: &Rule) {
        let what = format!(
            "add a rule to the nftables chain inet {} {} ({})",
            table.name, rule.chain, rule.comment
        );
        self.push(what, NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |m| {
            m.text(1, table.name);
            m.text(2, rule.chain);
            m.nest(4, |list| rule.exprs.iter().for_each(|step| list.step(step)));
            if !rule.comment.is_empty() {
                let mut data = vec![UDATA_COMMENT, rule.comment.len() as u8 + 1];
                data.extend(rule.comment.as_bytes());
                data.push(0);
                m.attr(7, &data);
            }
        });
    }

    /// Deletes a rule that was found.
    pub fn delete(&mut self, table: &Table, rule: &FoundRule) {
        let what = format!(
            "delete rule {} of the nftables chain inet {} {}",
            rule.handle, table.name, rule.chain
        );
        self.push(what, DEL_RULE, 0, |m| {
            m.text(1, table.name);
            m.text(2, &rule.chain);
            m.attr(3, &rule.handle.to_be_bytes());
        });
    }

    /// Deletes a table with everything in it.
    pub fn delete_table(&mut self, table: &Table) {
        self.push(
            format!("delete the nftables table inet {}", table.name),
            DEL_TABLE,
            0,
            |m| {
                m.text(1, table.name);
            },
        );
    }

    /// The datagram. Only the last message asks for an acknowledgement: errors come unasked, and thousands of
    /// acknowledgements would overrun the socket.
    fn bytes(mut self) -> Vec<u8> {
        if let Some((_, last)) = self.messages.last_mut() {
            let flags = NLM_F_REQUEST | NLM_F_ACK | u16::from_ne_bytes([last[6], last[7]]);
            last[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
        let mut bytes = Encoder::new(BATCH_BEGIN, 0, 0, 0, SUBSYSTEM).finish();
        self.messages
            .iter()
            .for_each(|(_, message)| bytes.extend(message));
        bytes.extend(
            Encoder::new(BATCH_END, 0, self.messages.len() as u32 + 1, 0, SUBSYSTEM).finish(),
        );
        bytes
    }
}

/// A socket of one namespace.
pub struct Nft(Socket);

impl Nft {
    /// Opens the socket in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        open()
            .map(Self)
            .map_err(|cause| CniError::operation("cannot open a nfnetlink socket", cause))
    }

    /// Every rule of a table; a missing table has none.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<FoundRule>> {
        for _ in 0..DUMP_TRIES {
            match self.dump(table) {
                Ok(Some(rules)) => return Ok(rules),
                Ok(None) => {}
                Err(cause) if cause.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
                Err(cause) => {
                    return Err(CniError::operation(
                        format!("cannot list the nftables table inet {}", table.name),
                        cause,
                    ));
                }
            }
        }
        Err(CniError::operation(
            format!("the nftables table inet {} keeps changing", table.name),
            "",
        ))
    }

    fn dump(&mut self, table: &Table) -> io::Result<Option<Vec<FoundRule>>> {
        let mut request = Encoder::new(GET_RULE, NLM_F_DUMP, 1, NFPROTO_INET, 0);
        request.text(1, table.name);
        self.0.send(&request.finish(), 0)?;
        let (mut rules, mut whole) = (Vec::new(), true);
        loop {
            let bytes = self.receive(0)?;
            for message in Messages(&bytes) {
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return Ok(whole.then_some(rules)),
                    NLMSG_ERROR => {
                        return Err(message
                            .error()
                            .unwrap_or_else(|| io::Error::other("empty error")));
                    }
                    NEW_RULE => {
                        // some kernels' filter lets other tables through
                        rules.extend(found_rule(message.body, table.name));
                    }
                    _ => {}
                }
            }
        }
    }

    fn receive(&self, flags: i32) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(RECEIVE);
        loop {
            match self.0.recv_from(&mut bytes, flags) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(|_| bytes),
            }
        }
    }

    /// Applies a batch.
    pub fn apply(&mut self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = batch
            .messages
            .iter()
            .map(|(what, _)| what.clone())
            .collect();
        let bytes = batch.bytes();
        let name = |sequence: u32| {
            let index = (sequence as usize).checked_sub(1);
            index
                .and_then(|index| names.get(index))
                .map_or("change the nftables ruleset", String::as_str)
        };
        let failed = |sequence: u32, cause: &io::Error| {
            let hint = match cause.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT) => {
                    " (does the kernel have nf_tables with inet, nat, fib and conntrack?)"
                }
                _ => "",
            };
            CniError::operation(
                format!("cannot {}", name(sequence)),
                format!("{cause}{hint}"),
            )
        };
        if bytes.len() > SEND_BUFFER / 64 {
            self.widen();
        }
        self.0.send(&bytes, 0).map_err(|cause| failed(0, &cause))?;
        // nfnetlink works inside send: everything it has to say is there, the acknowledgement last
        loop {
            let bytes = self
                .receive(libc::MSG_DONTWAIT)
                .map_err(|cause| failed(0, &cause))?;
            for message in Messages(&bytes).filter(|message| message.kind == NLMSG_ERROR) {
                match message.error() {
                    Some(cause) => return Err(failed(message.sequence, &cause)),
                    None if message.sequence as usize == names.len() => return Ok(()),
                    None => {}
                }
            }
        }
    }

    /// Best effort: where it doesn't help, `send` says EMSGSIZE.
    fn widen(&self) {
        use nix::sys::socket::{setsockopt, sockopt};
        if setsockopt(&self.0, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            let _ = setsockopt(&self.0, sockopt::SndBuf, &SEND_BUFFER);
        }
    }
}

struct Message<'a> {
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
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header: &[u8; 16] = self.0.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = self.0.get(16..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    }
}

/// The attributes of a message.
struct Attrs<'a>(&'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [l0, l1, k0, k1] = *self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let data = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, data))
    }
}

fn text(data: &[u8]) -> String {
    let end = data
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(data.len());
    String::from_utf8_lossy(data.get(..end).unwrap_or_default()).into_owned()
}

fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == UDATA_COMMENT {
            return Some(text(value));
        }
        data = rest.get(usize::from(*length)..)?;
    }
    None
}

fn found_rule(body: &[u8], table: &str) -> Option<FoundRule> {
    let mut rule = FoundRule {
        chain: String::new(),
        handle: 0,
        comment: String::new(),
    };
    for (kind, data) in Attrs(body.get(4..)?) {
        match kind {
            1 if text(data) != table => return None,
            2 => rule.chain = text(data),
            3 => rule.handle = u64::from_be_bytes(*data.first_chunk()?),
            7 => rule.comment = comment(data).unwrap_or_default(),
            _ => {}
        }
    }
    Some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_bytes() {
        let mut batch = Batch::default();
        batch.delete_table(&Table {
            name: "t",
            chains: &[],
        });
        let bytes = batch.bytes();
        // begin, DELTABLE with request and acknowledgement, end
        assert_eq!(bytes.len(), 20 + 28 + 20);
        assert_eq!(
            bytes[..20],
            [
                20, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10
            ]
        );
        let expected = [
            28, 0, 0, 0, 2, 10, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 6, 0, 1, 0, b't', 0, 0, 0,
        ];
        assert_eq!(bytes[20..48], expected);
        assert_eq!(bytes[48..56], [20, 0, 0, 0, 0x11, 0, 1, 0]);
    }

    #[test]
    fn answers_are_read_with_bounds() {
        let mut message = Encoder::new(NEW_RULE, 0, 1, NFPROTO_INET, 0);
        message.text(1, "t");
        message.text(2, "c");
        message.attr(3, &7u64.to_be_bytes());
        message.attr(7, &[1, 1, 9, 0, 3, b'a', b'b', 0]);
        let bytes = message.finish();
        let body = Messages(&bytes).next().unwrap().body;
        let expected = FoundRule {
            chain: "c".into(),
            handle: 7,
            comment: "ab".into(),
        };
        assert_eq!(found_rule(body, "t"), Some(expected));
        assert_eq!(found_rule(body, "other"), None);
        for end in 0..bytes.len() {
            assert_eq!(Messages(&bytes[..end]).count(), 0);
            // whatever comes of it: no panic
            found_rule(&bytes[..end], "t");
            let _ = comment(&bytes[..end]);
        }
        let zero_length = [0u8; 32];
        assert_eq!(Messages(&zero_length).count(), 0);
        assert_eq!(Attrs(&zero_length).count(), 0);
    }
}
