//! Forgetting connections: a UDP flow that began before a port was published goes on missing the container, as long as
//! its packets keep the entry alive; one whose permission is withdrawn goes on too.
//!
//! *Invariants*: only entries that the caller wants are touched. Numbers: `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use nix::libc;

use crate::error::{CniError, Result};
use crate::netfilter::{Attrs, Encoder, Netfilter};

/// NFNL_SUBSYS_CTNETLINK, and its messages.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;

/// Where a flow was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Address; unspecified: any of its family.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// IP's number of the protocol.
    pub protocol: u8,
    /// Who opened it.
    pub source: IpAddr,
    /// Where to, as the opener asked for it; port 0 for protocols without ports.
    pub asked: Target,
    /// Who answers, whatever address translation made of it.
    pub answers: IpAddr,
    /// Where.
    pub port: u16,
}

/// Forgets the UDP flows sent to one of `targets`.
pub fn forget_udp(targets: &[Target]) -> Result<()> {
    if targets.is_empty() {
        return Ok(());
    }
    forget(|flow| flow.protocol == UDP && targets.iter().any(|target| target.means(&flow.asked)))
}

impl Target {
    fn means(&self, other: &Self) -> bool {
        self.port == other.port
            && self.address.is_ipv4() == other.address.is_ipv4()
            && (self.address == other.address || self.address.is_unspecified())
    }
}

/// Forgets connections. A kernel without the interface is fine: they then end by time.
pub fn forget(wanted: impl Fn(&Flow) -> bool) -> Result<()> {
    let mut netfilter = Netfilter::open()?;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let dump = netfilter.dump(
            |flags| Encoder::new(GET, flags, 1, family, 0),
            |body| entry(body).filter(|(flow, _)| wanted(flow)),
        );
        let entries = match dump {
            Err(cause) if is_unsupported(&cause) => return Ok(()),
            dump => {
                dump.map_err(|cause| CniError::operation("cannot list the connections", cause))?
            }
        };
        for (_, tuple) in entries {
            let mut message = Encoder::new(DELETE, 0, 1, family, 0);
            message.nest(CTA_TUPLE_ORIG, |nest| {
                Attrs(&tuple).for_each(|(kind, data)| nest.attr(kind | NESTED, data));
            });
            match netfilter.send(&message.finish(true), 1) {
                // it ended by itself
                Err((_, cause)) if cause.raw_os_error() == Some(libc::ENOENT) => {}
                result => result.map_err(|(_, cause)| {
                    CniError::operation("cannot forget a connection", cause)
                })?,
            }
        }
    }
    Ok(())
}

/// Every attribute of a tuple is one of attributes.
const NESTED: u16 = 0x8000;

fn is_unsupported(cause: &std::io::Error) -> bool {
    matches!(
        cause.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT)
    )
}

fn find(attrs: Attrs<'_>, kind: u16) -> Option<&[u8]> {
    attrs
        .into_iter()
        .find(|(found, _)| *found == kind)
        .map(|(_, data)| data)
}

/// Source and destination of a tuple, with the ports of protocols that have some.
fn ends(tuple: &[u8]) -> Option<[Target; 2]> {
    let (addresses, protocol) = (
        find(Attrs(tuple), CTA_TUPLE_IP)?,
        find(Attrs(tuple), CTA_TUPLE_PROTO)?,
    );
    let end = |v4: u16, v6: u16, port: u16| {
        let address: IpAddr = match (find(Attrs(addresses), v4), find(Attrs(addresses), v6)) {
            (Some(v4), _) => (*v4.first_chunk::<4>()?).into(),
            (None, v6) => (*v6?.first_chunk::<16>()?).into(),
        };
        let port = find(Attrs(protocol), port).and_then(|data| data.first_chunk());
        Some(Target {
            address,
            port: port.map_or(0, |bytes| u16::from_be_bytes(*bytes)),
        })
    };
    // CTA_IP_V4_SRC, CTA_IP_V6_SRC; CTA_IP_V4_DST, CTA_IP_V6_DST
    Some([
        end(1, 3, CTA_PROTO_SRC_PORT)?,
        end(2, 4, CTA_PROTO_DST_PORT)?,
    ])
}

/// An entry and its original tuple, which deletes it.
fn entry(body: &[u8]) -> Option<(Flow, Vec<u8>)> {
    let original = find(Attrs::of_body(body), CTA_TUPLE_ORIG)?;
    let [source, asked] = ends(original)?;
    let [answers, _] = ends(find(Attrs::of_body(body), CTA_TUPLE_REPLY)?)?;
    let protocol = find(
        find(Attrs(original), CTA_TUPLE_PROTO).map(Attrs)?,
        CTA_PROTO_NUM,
    )?;
    let flow = Flow {
        protocol: *protocol.first()?,
        source: source.address,
        asked,
        answers: answers.address,
        port: answers.port,
    };
    Some((flow, original.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Vec<u8> {
        let mut message = Encoder::new(GET, 0, 1, 2, 0);
        // 10.0.0.9:9999 asks 192.0.2.1:53, and 10.0.0.2:5353 answers
        for (kind, from, from_port, to, to_port) in [
            (
                CTA_TUPLE_ORIG,
                [10, 0, 0, 9],
                9999u16,
                [192, 0, 2, 1],
                53u16,
            ),
            (CTA_TUPLE_REPLY, [10, 0, 0, 2], 5353, [10, 0, 0, 9], 9999),
        ] {
            message.nest(kind, |tuple| {
                tuple.nest(CTA_TUPLE_IP, |ip| {
                    ip.attr(1, &from);
                    ip.attr(2, &to);
                });
                tuple.nest(CTA_TUPLE_PROTO, |proto| {
                    proto.attr(CTA_PROTO_NUM, &[UDP]);
                    proto.attr(CTA_PROTO_SRC_PORT, &from_port.to_be_bytes());
                    proto.attr(CTA_PROTO_DST_PORT, &to_port.to_be_bytes());
                });
            });
        }
        message.finish(false).split_off(16)
    }

    #[test]
    fn entries_are_read_with_bounds() {
        let body = message();
        let expected = Flow {
            protocol: UDP,
            source: [10, 0, 0, 9].into(),
            asked: Target {
                address: [192, 0, 2, 1].into(),
                port: 53,
            },
            answers: [10, 0, 0, 2].into(),
            port: 5353,
        };
        assert_eq!(entry(&body).map(|(flow, _)| flow), Some(expected));
        for end in 0..body.len() {
            // whatever comes of it: no panic
            entry(&body[..end]);
        }
    }

    #[test]
    fn only_what_is_wanted() {
        let target = |address: [u8; 4], port| Target {
            address: address.into(),
            port,
        };
        let v6 = Target {
            address: [0u16; 8].into(),
            port: 53,
        };
        let asked = target([192, 0, 2, 1], 53);
        for (wanted, expected) in [
            (target([0; 4], 53), true),
            (target([192, 0, 2, 1], 53), true),
            (target([192, 0, 2, 2], 53), false),
            (target([0; 4], 54), false),
            (v6, false),
        ] {
            assert_eq!(wanted.means(&asked), expected, "{wanted:?}");
        }
    }
}
