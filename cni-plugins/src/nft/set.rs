//! Named sets of addresses.
//!
//! *Invariants*: a set is of one family. What is put in may overlap: the kernel is given disjoint intervals.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::libc;
use rtnetlink::packet_core::NLM_F_CREATE;

use super::expr::octets;
use super::{Batch, Name, Nft, SUBSYSTEM, Table, absent_is_empty};
use crate::error::Result;
use crate::netfilter::{Attrs, Encoder};

const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM << 8 | 13;
/// NFT_SET_INTERVAL
const INTERVAL: u32 = 4;
/// NFT_SET_ELEM_INTERVAL_END
const INTERVAL_END: u32 = 1;
/// Elements of one message: the attribute that holds them is 64 KiB at most.
const CHUNK: usize = 500;

/// A set of networks of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: Name,
    /// IPv4 or IPv6; those of the other family are left out.
    pub v4: bool,
    /// What it holds.
    pub networks: Vec<IpNet>,
}

impl Set {
    /// The bounds of the intervals: where each begins, and the first address after it; `true`: after.
    fn bounds(&self) -> Vec<(IpAddr, bool)> {
        let own: Vec<IpNet> = self
            .networks
            .iter()
            .filter(|net| net.addr().is_ipv4() == self.v4)
            .copied()
            .collect();
        let mut bounds: Vec<(IpAddr, bool)> = Vec::new();
        let mut merged = IpNet::aggregate(&own);
        merged.sort();
        for net in merged {
            // neighbours that are no network together are one interval
            if bounds.last() == Some(&(net.network(), true)) {
                bounds.pop();
            } else {
                bounds.push((net.network(), false));
            }
            bounds.extend(after(net.broadcast()).map(|next| (next, true)));
        }
        bounds
    }
}

/// The next address; the last one has none.
fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(ip) => u32::from(ip)
            .checked_add(1)
            .map(|next| std::net::Ipv4Addr::from(next).into()),
        IpAddr::V6(ip) => u128::from(ip)
            .checked_add(1)
            .map(|next| std::net::Ipv6Addr::from(next).into()),
    }
}

impl Batch {
    /// Makes a set with its elements; a table's set must not be there.
    pub fn set(&mut self, table: &Table, set: &Set) {
        let what = format!("add the nftables set {table} {}", set.name);
        // nft(8)'s numbers of the types ipv4_addr and ipv6_addr, and the key's length
        let (kind, length) = if set.v4 { (7, 4) } else { (8, 16) };
        self.push(table, what, NEW_SET, NLM_F_CREATE, |m| {
            m.text(2, &set.name);
            m.number(3, INTERVAL);
            m.number(4, kind);
            m.number(5, length);
            // NFTA_SET_ID tells the sets of a batch apart; rules of ours go by the name
            m.number(10, 1);
        });
        for chunk in set.bounds().chunks(CHUNK) {
            let what = format!("add to the nftables set {table} {}", set.name);
            self.push(table, what, NEW_ELEMENTS, NLM_F_CREATE, |m| {
                m.text(2, &set.name);
                m.nest(3, |list| {
                    for (address, end) in chunk {
                        list.nest(1, |element| {
                            if *end {
                                element.number(3, INTERVAL_END);
                            }
                            element.nest(1, |key| key.attr(1, &octets(*address)));
                        });
                    }
                });
            });
        }
    }
}

impl Nft {
    /// Whether a set is in the kernel with exactly these elements.
    pub fn has(&mut self, table: &Table, set: &Set) -> Result<bool> {
        let request = |flags| {
            let mut request = Encoder::new(GET_ELEMENTS, flags, 1, table.family.number(), 0);
            request.text(1, &table.name);
            request.text(2, &set.name);
            request
        };
        let dump = self.0.dump(request, |body| Some(bounds_of(body)));
        if matches!(&dump, Err(cause) if cause.raw_os_error() == Some(libc::ENOENT)) {
            return Ok(false);
        }
        let mut found: Vec<(IpAddr, bool)> = absent_is_empty(dump, table)?.concat();
        let mut wanted = set.bounds();
        found.sort();
        wanted.sort();
        Ok(found == wanted)
    }
}

/// The bounds in a message of a dump.
fn bounds_of(body: &[u8]) -> Vec<(IpAddr, bool)> {
    let element = |data: &[u8]| {
        let (mut key, mut end) = (None, false);
        for (kind, data) in Attrs(data) {
            match kind {
                1 => {
                    key = Attrs(data)
                        .find(|(kind, _)| *kind == 1)
                        .map(|(_, data)| data)
                }
                3 => end = data == INTERVAL_END.to_be_bytes(),
                _ => {}
            }
        }
        let key = key?;
        let address = <[u8; 4]>::try_from(key)
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(key).map(IpAddr::from));
        Some((address.ok()?, end))
    };
    Attrs::of_body(body)
        .filter(|(kind, _)| *kind == 3)
        .flat_map(|(_, list)| Attrs(list))
        .filter_map(|(_, data)| element(data))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        let cases: [(&[&str], &[&str]); 5] = [
            (
                &["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"],
                &["10.0.0.0", "<11.0.0.0"],
            ),
            (
                &["10.0.0.3/32", "10.0.0.2/32", "10.0.0.1/32", "10.0.0.9/32"],
                &["10.0.0.1", "<10.0.0.4", "10.0.0.9", "<10.0.0.10"],
            ),
            (&["255.0.0.0/8"], &["255.0.0.0"]),
            (&["0.0.0.0/0"], &["0.0.0.0"]),
            (&[], &[]),
        ];
        for (networks, expected) in cases {
            let set = Set {
                name: "s".into(),
                v4: true,
                networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
            };
            let text = |(ip, end): (IpAddr, bool)| format!("{}{ip}", if end { "<" } else { "" });
            let bounds: Vec<String> = set.bounds().into_iter().map(text).collect();
            assert_eq!(bounds, expected, "{networks:?}");
        }
        assert_eq!(after("ffff::".parse().unwrap()), "ffff::1".parse().ok());
    }

    #[test]
    fn elements_are_read_with_bounds() {
        let mut message = Encoder::new(NEW_ELEMENTS, 0, 1, 1, 0);
        message.nest(3, |list| {
            list.nest(1, |element| {
                element.nest(1, |key| key.attr(1, &[10, 0, 0, 1]));
            });
            list.nest(1, |element| {
                element.number(3, INTERVAL_END);
                element.nest(1, |key| key.attr(1, &[10, 0, 0, 2]));
            });
        });
        let body = message.finish(false).split_off(16);
        let expected = [([10, 0, 0, 1].into(), false), ([10, 0, 0, 2].into(), true)];
        assert_eq!(bounds_of(&body), expected);
        for end in 0..body.len() {
            // whatever comes of it: no panic
            bounds_of(&body[..end]);
        }
    }
}
