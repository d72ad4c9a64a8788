//! Masquerading of what containers send out of their subnet: one rule for each address, in a table of its own.
//!
//! *Invariants*: a rule's comment is its attachment's tag; the table exists as long as it has a rule. Callers hold the
//! host lock.

use std::borrow::Cow;

use ipnet::IpNet;

use crate::error::{CniError, Result};
use crate::netns::HostLock;
use crate::nft::{Batch, Chain, Expr, Family, Nft, POSTROUTING, Rule, Table};

const CHAIN: &str = "postrouting";
const TABLE: Table = Table {
    family: Family::Inet,
    name: Cow::Borrowed("sampan_masquerade"),
    chains: &[Chain::base(CHAIN, "nat", POSTROUTING, 100)],
};

/// What an attachment sends to one of its own subnets keeps its source.
fn rules(tag: &str, addresses: &[IpNet]) -> Vec<Rule> {
    let rule = |address: &IpNet| {
        let multicast = match address {
            IpNet::V4(_) => IpNet::new_assert([224, 0, 0, 0].into(), 4),
            IpNet::V6(_) => IpNet::new_assert([0xff00u16, 0, 0, 0, 0, 0, 0, 0].into(), 8),
        };
        let own = addresses
            .iter()
            .filter(|other| other.addr().is_ipv4() == address.addr().is_ipv4())
            .map(IpNet::trunc);
        let mut exprs = vec![Expr::Source(true, address.addr().into())];
        exprs.extend(
            own.chain([multicast])
                .map(|net| Expr::Destination(false, net)),
        );
        exprs.push(Expr::Masquerade);
        Rule {
            chain: CHAIN.into(),
            exprs,
            comment: tag.to_owned(),
        }
    };
    addresses.iter().map(rule).collect()
}

/// Refuses a value of `ipMasqBackend` that isn't here: silence would be a promise.
pub fn require_backend(name: Option<&str>) -> Result<()> {
    match name {
        None | Some("nftables") => Ok(()),
        Some(other) => Err(CniError::unsupported(
            &format!("ipMasqBackend {other:?}"),
            "only nftables",
        )),
    }
}

/// Adds the rules of an attachment, in place of any it has.
pub fn add(tag: &str, addresses: &[IpNet], _lock: &HostLock) -> Result<()> {
    let mut nft = Nft::open()?;
    let mut batch = Batch::default();
    batch.table(&TABLE);
    for old in nft.rules(&TABLE)?.iter().filter(|rule| rule.comment == tag) {
        batch.delete(&TABLE, old);
    }
    for rule in rules(tag, addresses) {
        batch.rule(&TABLE, &rule);
    }
    nft.apply(batch)
}

/// Removes the rules of an attachment.
pub fn remove(tag: &str, lock: &HostLock) -> Result<()> {
    retain(|comment| comment != tag, lock)
}

/// Removes the rules whose comment isn't wanted, and the table after its last rule.
pub fn retain(wanted: impl Fn(&str) -> bool, _lock: &HostLock) -> Result<()> {
    Nft::open()?.retain(&TABLE, wanted)
}

/// Whether the rules are there.
pub fn check(tag: &str, addresses: &[IpNet]) -> Result<()> {
    Nft::open()?.check(&TABLE, &rules(tag, addresses))
}
