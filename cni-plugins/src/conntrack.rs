//! Forgetting UDP flows: one that began before a port was published goes on missing the container, as long as its
//! packets keep the entry alive.
//!
//! *Invariants*: only UDP entries of the given host ports are touched. Numbers: `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use nix::libc;

use crate::error::{CniError, Result};
use crate::netfilter::{Attrs, Encoder, Netfilter};

/// NFNL_SUBSYS_CTNETLINK, and its messages.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
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

/// Forgets the UDP flows sent to one of `targets`. A kernel without the interface is fine: such flows then end by time.
pub fn forget_udp(targets: &[Target]) -> Result<()> {
    if targets.is_empty() {
        return Ok(());
    }
    let mut netfilter = Netfilter::open()?;
    for (family, v4) in [(libc::AF_INET as u8, true), (libc::AF_INET6 as u8, false)] {
        let wanted: Vec<Target> = targets
            .iter()
            .copied()
            .filter(|target| target.address.is_ipv4() == v4)
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let dump = netfilter.dump(
            |flags| Encoder::new(GET, flags, 1, family, 0),
            |body| stale(body, &wanted),
        );
        let tuples = match dump {
            Err(cause) if is_unsupported(&cause) => return Ok(()),
            dump => {
                dump.map_err(|cause| CniError::operation("cannot list the UDP flows", cause))?
            }
        };
        for tuple in tuples {
            let mut message = Encoder::new(DELETE, 0, 1, family, 0);
            message.nest(CTA_TUPLE_ORIG, |nest| {
                Attrs(&tuple).for_each(|(kind, data)| nest.attr(kind | NESTED, data));
            });
            match netfilter.send(&message.finish(true), 1) {
                // it ended by itself
                Err((_, cause)) if cause.raw_os_error() == Some(libc::ENOENT) => {}
                result => result
                    .map_err(|(_, cause)| CniError::operation("cannot forget a UDP flow", cause))?,
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

/// The original tuple of an entry that went to one of `wanted`.
fn stale(body: &[u8], wanted: &[Target]) -> Option<Vec<u8>> {
    let tuple = find(Attrs::of_body(body), CTA_TUPLE_ORIG)?;
    let protocol = find(Attrs(tuple), CTA_TUPLE_PROTO)?;
    let port = u16::from_be_bytes(*find(Attrs(protocol), CTA_PROTO_DST_PORT)?.first_chunk()?);
    let addresses = find(Attrs(tuple), CTA_TUPLE_IP)?;
    // CTA_IP_V4_DST, CTA_IP_V6_DST
    let address: IpAddr = match (find(Attrs(addresses), 2), find(Attrs(addresses), 4)) {
        (Some(v4), _) => (*v4.first_chunk::<4>()?).into(),
        (None, v6) => (*v6?.first_chunk::<16>()?).into(),
    };
    let is_udp = find(Attrs(protocol), CTA_PROTO_NUM)? == [UDP];
    let hit = |target: &Target| {
        target.port == port && (target.address == address || target.address.is_unspecified())
    };
    (is_udp && wanted.iter().any(hit)).then(|| tuple.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(protocol: u8, address: [u8; 4], port: u16) -> Vec<u8> {
        let mut message = Encoder::new(GET, 0, 1, 2, 0);
        message.nest(CTA_TUPLE_ORIG, |tuple| {
            tuple.nest(CTA_TUPLE_IP, |ip| {
                ip.attr(1, &[10, 0, 0, 9]);
                ip.attr(2, &address);
            });
            tuple.nest(CTA_TUPLE_PROTO, |proto| {
                proto.attr(CTA_PROTO_NUM, &[protocol]);
                proto.attr(2, &9999u16.to_be_bytes());
                proto.attr(CTA_PROTO_DST_PORT, &port.to_be_bytes());
            });
        });
        message.finish(false).split_off(16)
    }

    #[test]
    fn only_what_is_wanted() {
        let any = Target {
            address: [0; 4].into(),
            port: 53,
        };
        let one = Target {
            address: [192, 0, 2, 1].into(),
            port: 53,
        };
        for (body, wanted, expected) in [
            (entry(17, [192, 0, 2, 1], 53), any, true),
            (entry(17, [192, 0, 2, 1], 53), one, true),
            (entry(17, [192, 0, 2, 2], 53), one, false),
            (entry(17, [192, 0, 2, 1], 54), any, false),
            (entry(6, [192, 0, 2, 1], 53), any, false),
        ] {
            assert_eq!(stale(&body, &[wanted]).is_some(), expected);
            for end in 0..body.len() {
                stale(&body[..end], &[wanted]);
            }
        }
    }
}
