//! Named sets of addresses and interfaces.
//!
//! *Invariants*: a set of addresses is of one family; others are left out. There are no sets of intervals: kernels fill a
//! new one a moment after the rules that use it are in force, so packets would pass meanwhile.

use std::net::IpAddr;

use nix::libc;
use rtnetlink::packet_core::NLM_F_CREATE;

use super::expr::{name_bytes, octets};
use super::{Batch, Name, Nft, SUBSYSTEM, Table, absent_is_empty};
use crate::error::Result;
use crate::netfilter::{Attrs, Encoder, text};

const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const GET_SET: u16 = SUBSYSTEM << 8 | 10;
pub(super) const DEL_SET: u16 = SUBSYSTEM << 8 | 11;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM << 8 | 13;
/// Elements of one message: the attribute that holds them is 64 KiB at most.
const CHUNK: usize = 500;

/// NFTA_SET_USERDATA of a set of names for nft(8), which else doesn't know how to read them: the key's byte order
/// (NFTNL_UDATA_SET_KEYBYTEORDER) is the host's.
fn host_order() -> Vec<u8> {
    let mut data = vec![0, 4];
    data.extend(1u32.to_ne_bytes());
    data
}

/// What a set holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// Addresses; IPv4 is true.
    Addresses(bool, Vec<IpAddr>),
    /// Names of interfaces.
    Interfaces(Vec<String>),
    /// Interfaces with an address behind each; IPv4 is true.
    Senders(bool, Vec<(String, IpAddr)>),
}

/// A set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: Name,
    /// What it holds.
    pub keys: Keys,
}

impl Set {
    /// nft(8)'s number of the type, and the length of a key.
    fn kind(&self) -> (u32, u32) {
        // ipv4_addr, ipv6_addr, ifname; a concatenation shifts the first by TYPE_BITS
        let address = |v4| if v4 { (7, 4) } else { (8, 16) };
        let (name, name_length) = (41, 16);
        match &self.keys {
            Keys::Addresses(v4, _) => address(*v4),
            Keys::Interfaces(_) => (name, name_length),
            Keys::Senders(v4, _) => {
                let (kind, length) = address(*v4);
                (name << 6 | kind, name_length + length)
            }
        }
    }

    /// The keys as the kernel compares them, in order.
    fn elements(&self) -> Vec<Vec<u8>> {
        let of_family = |v4: bool| move |address: &IpAddr| address.is_ipv4() == v4;
        let mut elements: Vec<Vec<u8>> = match &self.keys {
            Keys::Addresses(v4, addresses) => addresses
                .iter()
                .copied()
                .filter(of_family(*v4))
                .map(octets)
                .collect(),
            Keys::Interfaces(names) => names.iter().map(|name| name_bytes(name)).collect(),
            Keys::Senders(v4, list) => list
                .iter()
                .filter(|(_, address)| address.is_ipv4() == *v4)
                .map(|(name, address)| [name_bytes(name), octets(*address)].concat())
                .collect(),
        };
        elements.sort();
        elements.dedup();
        elements
    }
}

impl Batch {
    /// Makes a set with its elements; a table's set must not be there.
    pub fn set(&mut self, table: &Table, set: &Set) {
        let what = format!("add the nftables set {table} {}", set.name);
        let (kind, length) = set.kind();
        self.push(table, what, NEW_SET, NLM_F_CREATE, |m| {
            m.text(2, &set.name);
            m.number(3, 0);
            m.number(4, kind);
            m.number(5, length);
            // NFTA_SET_ID tells the sets of a batch apart; rules of ours go by the name
            m.number(10, 1);
            if matches!(set.keys, Keys::Interfaces(_)) {
                m.attr(13, &host_order());
            }
        });
        for chunk in set.elements().chunks(CHUNK) {
            let what = format!("add to the nftables set {table} {}", set.name);
            self.push(table, what, NEW_ELEMENTS, NLM_F_CREATE, |m| {
                m.text(2, &set.name);
                m.nest(3, |list| {
                    for key in chunk {
                        list.nest(1, |element| element.nest(1, |data| data.attr(1, key)));
                    }
                });
            });
        }
    }
}

impl Nft {
    /// The names of a table's sets.
    pub(super) fn sets(&mut self, table: &Table) -> Result<Vec<String>> {
        let request = |flags| {
            let mut request = Encoder::new(GET_SET, flags, 1, table.family.number(), 0);
            request.text(1, &table.name);
            request
        };
        let name = |body: &[u8]| {
            let named = |wanted| {
                Attrs::of_body(body)
                    .find(|(kind, _)| *kind == wanted)
                    .map(|(_, data)| text(data))
            };
            named(2).filter(|_| named(1).is_some_and(|found| found == table.name))
        };
        let found = self.0.dump(request, name);
        absent_is_empty(found, table)
    }

    /// Whether a set is in the kernel with exactly these elements.
    pub fn has(&mut self, table: &Table, set: &Set) -> Result<bool> {
        let request = |flags| {
            let mut request = Encoder::new(GET_ELEMENTS, flags, 1, table.family.number(), 0);
            request.text(1, &table.name);
            request.text(2, &set.name);
            request
        };
        let dump = self.0.dump(request, |body| Some(elements_of(body)));
        // no elements is not the same as no set
        if matches!(&dump, Err(cause) if cause.raw_os_error() == Some(libc::ENOENT)) {
            return Ok(false);
        }
        let mut found: Vec<Vec<u8>> = absent_is_empty(dump, table)?.concat();
        found.sort();
        Ok(found == set.elements())
    }
}

/// The keys in a message of a dump.
fn elements_of(body: &[u8]) -> Vec<Vec<u8>> {
    let first = |data, wanted| {
        Attrs(data)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, data)| data)
    };
    Attrs::of_body(body)
        .filter(|(kind, _)| *kind == 3)
        .flat_map(|(_, list)| Attrs(list))
        .filter_map(|(_, element)| first(element, 1).and_then(|key| first(key, 1)))
        .map(<[u8]>::to_vec)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_with_bounds() {
        let mut message = Encoder::new(NEW_ELEMENTS, 0, 1, 1, 0);
        message.nest(3, |list| {
            for last in [1, 2] {
                list.nest(1, |element| {
                    element.number(3, 0);
                    element.nest(1, |key| key.attr(1, &[10, 0, 0, last]));
                });
            }
        });
        let body = message.finish(false).split_off(16);
        assert_eq!(elements_of(&body), [vec![10, 0, 0, 1], vec![10, 0, 0, 2]]);
        for end in 0..body.len() {
            // whatever comes of it: no panic
            elements_of(&body[..end]);
        }
    }
}
