//! nf_tables through netlink: what our tables need, encoded by hand.
//!
//! *Invariants*: every table is of family `inet` and ours alone. A [`Batch`] is applied whole or not at all. Rules are
//! found again by their comment, which the kernel keeps as user data in the form that nft(8) prints. What the kernel
//! answers is read with bounds. Numbers: `linux/netfilter/nf_tables.h`, `nfnetlink.h`.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::libc;
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE};

use crate::error::{CniError, Result};
use crate::netfilter::{Attrs, Encoder, Netfilter, text};

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
/// nft(8)'s user data: type 0 is the comment, with its NUL.
const UDATA_COMMENT: u8 = 0;
/// NFT_USERDATA_MAXLEN less type, length and NUL.
pub const MAX_COMMENT: usize = 253;

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

/// The expressions; attribute numbers are those of each one's `enum nft_*_attributes`.
impl Encoder {
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
    messages: Vec<(String, Encoder)>,
}

impl Batch {
    fn push(&mut self, what: String, kind: u16, flags: u16, fill: impl FnOnce(&mut Encoder)) {
        let sequence = self.messages.len() as u32 + 1;
        let mut message = Encoder::new(kind, flags, sequence, NFPROTO_INET, 0);
        fill(&mut message);
        self.messages.push((what, message));
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

    /// The datagram, and what its messages are. Only the last message asks for an acknowledgement: errors come unasked,
    /// and thousands of acknowledgements would overrun the socket.
    fn finish(self) -> (Vec<u8>, Vec<String>) {
        let count = self.messages.len();
        let mut bytes = Encoder::new(BATCH_BEGIN, 0, 0, 0, SUBSYSTEM).finish(false);
        let mut names = Vec::new();
        for (index, (what, message)) in self.messages.into_iter().enumerate() {
            bytes.extend(message.finish(index + 1 == count));
            names.push(what);
        }
        bytes.extend(Encoder::new(BATCH_END, 0, count as u32 + 1, 0, SUBSYSTEM).finish(false));
        (bytes, names)
    }
}

/// A socket of one namespace.
pub struct Nft(Netfilter);

impl Nft {
    /// Opens the socket in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        Netfilter::open().map(Self)
    }

    /// Every rule of a table; a missing table has none, nor has a kernel without nf_tables.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<FoundRule>> {
        let request = |flags| {
            let mut request = Encoder::new(GET_RULE, flags, 1, NFPROTO_INET, 0);
            request.text(1, table.name);
            request
        };
        // some kernels' filter lets other tables through
        match self.0.dump(request, |body| found_rule(body, table.name)) {
            Err(cause) => match cause.raw_os_error() {
                Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP) => Ok(Vec::new()),
                _ => Err(CniError::operation(
                    format!("cannot list the nftables table inet {}", table.name),
                    cause,
                )),
            },
            Ok(rules) => Ok(rules),
        }
    }

    /// Applies a batch.
    pub fn apply(&mut self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, names) = batch.finish();
        self.0
            .send(&bytes, names.len() as u32)
            .map_err(|(sequence, cause)| {
                let index = (sequence as usize).checked_sub(1);
                let name = index.and_then(|index| names.get(index));
                let what = name.map_or("change the nftables ruleset", String::as_str);
                let hint = match cause.raw_os_error() {
                    Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL) => {
                        " (does the kernel have nf_tables with inet, nat, fib and conntrack?)"
                    }
                    _ => "",
                };
                CniError::operation(format!("cannot {what}"), format!("{cause}{hint}"))
            })
    }
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
    for (kind, data) in Attrs::of_body(body) {
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
        let (bytes, names) = batch.finish();
        assert_eq!(names, ["delete the nftables table inet t"]);
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
    fn rules_are_read_with_bounds() {
        let mut message = Encoder::new(NEW_RULE, 0, 1, NFPROTO_INET, 0);
        message.text(1, "t");
        message.text(2, "c");
        message.attr(3, &7u64.to_be_bytes());
        message.attr(7, &[1, 1, 9, 0, 3, b'a', b'b', 0]);
        let bytes = message.finish(false);
        let body = &bytes[16..];
        let expected = FoundRule {
            chain: "c".into(),
            handle: 7,
            comment: "ab".into(),
        };
        assert_eq!(found_rule(body, "t"), Some(expected));
        assert_eq!(found_rule(body, "other"), None);
        for end in 0..body.len() {
            // whatever comes of it: no panic
            found_rule(&body[..end], "t");
            let _ = comment(&body[..end]);
        }
    }
}
