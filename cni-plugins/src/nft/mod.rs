//! nf_tables through netlink: what our tables need, encoded by hand.
//!
//! *Invariants*: a [`Batch`] is applied whole or not at all; packets see the state before it or after it. Rules and
//! elements are found again by their comment, which the kernel keeps as user data in the form that nft(8) prints. What
//! the kernel answers is read with bounds. Numbers: `linux/netfilter/nf_tables.h`, `nfnetlink.h`.

mod expr;
mod set;

use std::borrow::Cow;
use std::fmt;

use nix::libc;
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE};

use crate::error::{CniError, Result};
use crate::netfilter::{Attrs, Encoder, Netfilter, text};

pub use expr::{ESTABLISHED, Expr, Field, Header, RELATED};
pub use set::{Keys, Set};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// NFNL_SUBSYS_NFTABLES, and its messages.
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DEL_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const DEL_RULE: u16 = SUBSYSTEM << 8 | 8;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// nft(8)'s user data: type 0 is the comment, with its NUL.
const UDATA_COMMENT: u8 = 0;
/// NFT_USERDATA_MAXLEN less type, length and NUL.
pub const MAX_COMMENT: usize = 253;

/// A name of ours or one that was made.
pub type Name = Cow<'static, str>;

/// What a table's chains see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4 alone.
    Ip,
    /// IPv6 alone.
    Ip6,
    /// Frames that pass a bridge.
    Bridge,
}

impl Family {
    /// NFPROTO_*.
    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => NFPROTO_IPV4,
            Self::Ip6 => NFPROTO_IPV6,
            Self::Bridge => 7,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
        })
    }
}

/// Where in the kernel a base chain sits.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// NF_INET_PRE_ROUTING and so on; those of a bridge have the same numbers.
    pub number: u32,
    /// Order among the chains of the hook.
    pub priority: i32,
}

/// Before routing.
pub const PREROUTING: u32 = 0;
/// Packets for the host itself.
pub const INPUT: u32 = 1;
/// Packets that pass.
pub const FORWARD: u32 = 2;
/// Packets of the host itself.
pub const OUTPUT: u32 = 3;
/// After routing.
pub const POSTROUTING: u32 = 4;

/// A chain; without a hook others jump to it.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Its name.
    pub name: Name,
    /// Where it sits.
    pub hook: Option<Hook>,
}

impl Chain {
    /// One that others jump to.
    pub const fn plain(name: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            hook: None,
        }
    }

    /// One with a hook.
    pub const fn base(name: &'static str, kind: &'static str, number: u32, priority: i32) -> Self {
        Self {
            name: Cow::Borrowed(name),
            hook: Some(Hook {
                kind,
                number,
                priority,
            }),
        }
    }
}

/// A table with its chains.
#[derive(Debug, Clone)]
pub struct Table {
    /// What it sees.
    pub family: Family,
    /// Its name.
    pub name: Name,
    /// In the order of their making.
    pub chains: &'static [Chain],
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.family, self.name)
    }
}

/// A rule to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: Name,
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

/// Changes that happen together.
#[derive(Default)]
pub struct Batch {
    /// What each message is, for errors, and the message; its sequence number is its place, from 1.
    messages: Vec<(String, Encoder)>,
}

impl Batch {
    fn push(
        &mut self,
        table: &Table,
        what: String,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Encoder),
    ) {
        let sequence = self.messages.len() as u32 + 1;
        let mut message = Encoder::new(kind, flags, sequence, table.family.number(), 0);
        message.text(1, &table.name);
        fill(&mut message);
        self.messages.push((what, message));
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Makes a table and its chains where they are missing.
    pub fn table(&mut self, table: &Table) {
        let what = format!("add the nftables table {table}");
        self.push(table, what, NEW_TABLE, NLM_F_CREATE, |_| {});
        for chain in table.chains {
            let what = format!("add the nftables chain {table} {}", chain.name);
            self.push(table, what, NEW_CHAIN, NLM_F_CREATE, |m| {
                m.text(3, &chain.name);
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

    /// Makes a table and its chains where they are missing, and takes out every rule and set. The chains stay: a packet
    /// that is under way between an old and a new chain of one hook would be seen by neither.
    fn empty(&mut self, table: &Table, sets: &[String]) {
        self.table(table);
        for chain in table.chains {
            let what = format!("flush the nftables chain {table} {}", chain.name);
            self.push(table, what, DEL_RULE, 0, |m| m.text(2, &chain.name));
        }
        for set in sets {
            let what = format!("delete the nftables set {table} {set}");
            self.push(table, what, set::DEL_SET, 0, |m| m.text(2, set));
        }
    }

    /// Appends a rule.
    pub fn rule(&mut self, table: &Table, rule: &Rule) {
        self.new_rule(table, rule, NLM_F_CREATE | NLM_F_APPEND);
    }

    /// Puts a rule before the others of its chain.
    pub fn first(&mut self, table: &Table, rule: &Rule) {
        self.new_rule(table, rule, NLM_F_CREATE);
    }

    fn new_rule(&mut self, table: &Table, rule: &Rule, flags: u16) {
        let what = format!(
            "add a rule to the nftables chain {table} {} ({})",
            rule.chain, rule.comment
        );
        self.push(table, what, NEW_RULE, flags, |m| {
            m.text(2, &rule.chain);
            m.nest(4, |list| {
                for step in &rule.exprs {
                    list.step(table.family, step);
                }
            });
            if !rule.comment.is_empty() {
                m.comment(7, &rule.comment);
            }
        });
    }

    /// Deletes a rule that was found.
    pub fn delete(&mut self, table: &Table, rule: &FoundRule) {
        let what = format!(
            "delete rule {} of the nftables chain {table} {}",
            rule.handle, rule.chain
        );
        self.push(table, what, DEL_RULE, 0, |m| {
            m.text(2, &rule.chain);
            m.attr(3, &rule.handle.to_be_bytes());
        });
    }

    /// Deletes a table with everything in it.
    pub fn delete_table(&mut self, table: &Table) {
        let what = format!("delete the nftables table {table}");
        self.push(table, what, DEL_TABLE, 0, |_| {});
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

impl Encoder {
    /// User data with a comment, as nft(8) writes it.
    fn comment(&mut self, kind: u16, comment: &str) {
        let mut data = vec![UDATA_COMMENT, comment.len() as u8 + 1];
        data.extend(comment.as_bytes());
        data.push(0);
        self.attr(kind, &data);
    }
}

impl Nft {
    /// Opens the socket in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        Netfilter::open().map(Self)
    }

    /// Every rule of a table; a missing table has none, nor has a kernel without nf_tables.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<FoundRule>> {
        let request = |flags| {
            let mut request = Encoder::new(GET_RULE, flags, 1, table.family.number(), 0);
            request.text(1, &table.name);
            request
        };
        // some kernels' filter lets other tables through
        let found = self.0.dump(request, |body| found_rule(body, &table.name));
        absent_is_empty(found, table)
    }

    /// Whether a table has a chain.
    pub fn has_chain(&mut self, table: &Table, chain: &str) -> Result<bool> {
        let request = |flags| {
            let mut request = Encoder::new(GET_CHAIN, flags, 1, table.family.number(), 0);
            request.text(1, &table.name);
            request
        };
        let is_it = |body: &[u8]| {
            let named = |number, name: &str| {
                Attrs::of_body(body).any(|(kind, data)| kind == number && text(data) == name)
            };
            (named(1, &table.name) && named(3, chain)).then_some(())
        };
        let found = self.0.dump(request, is_it);
        Ok(!absent_is_empty(found, table)?.is_empty())
    }

    /// Makes a table where it is missing, and takes out what it holds: what the batch then puts in is its new content,
    /// as one change.
    pub fn empty(&mut self, batch: &mut Batch, table: &Table) -> Result<()> {
        let sets = self.sets(table)?;
        batch.empty(table, &sets);
        Ok(())
    }

    /// CHECK: whether a table has rules for all of these, by chain and comment.
    pub fn check(&mut self, table: &Table, wanted: &[Rule]) -> Result<()> {
        let mut found = self.rules(table)?;
        for rule in wanted {
            let same =
                |known: &FoundRule| known.chain == rule.chain && known.comment == rule.comment;
            let Some(index) = found.iter().position(same) else {
                let what = format!("missing rule in the nftables chain {table} {}", rule.chain);
                return Err(CniError::check(what).because(&rule.comment));
            };
            found.swap_remove(index);
        }
        Ok(())
    }

    /// Removes the rules of owners that aren't wanted, and the table after the last rule that has an owner.
    pub fn retain(&mut self, table: &Table, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let found = self.rules(table)?;
        let (keep, drop): (Vec<&FoundRule>, Vec<&FoundRule>) = found
            .iter()
            .filter(|rule| !rule.comment.is_empty())
            .partition(|rule| wanted(&rule.comment));
        let mut batch = Batch::default();
        if keep.is_empty() && !found.is_empty() {
            batch.delete_table(table);
        } else {
            drop.iter().for_each(|rule| batch.delete(table, rule));
        }
        self.apply(batch)
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

/// What a table that isn't there holds: nothing. Nor does a kernel without nf_tables.
fn absent_is_empty<T>(found: std::io::Result<Vec<T>>, table: &Table) -> Result<Vec<T>> {
    match found {
        Err(cause) => match cause.raw_os_error() {
            Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP) => Ok(Vec::new()),
            _ => Err(CniError::operation(
                format!("cannot list the nftables table {table}"),
                cause,
            )),
        },
        Ok(found) => Ok(found),
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
#[path = "nft_tests.rs"]
mod tests;
