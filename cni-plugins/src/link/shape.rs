//! Traffic control (tc(8)): token buckets, and packets handed over to an interface that has one.
//!
//! *Invariants*: a bucket is the root queue of its interface. What is read back of the kernel's is read with bounds. Numbers:
//! `linux/pkt_sched.h`, `linux/pkt_cls.h`.

use std::io;

use ipnet::IpNet;
use nix::libc;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Nla,
};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterU32Option, TcHandle, TcMessage, TcOption};

use super::{Link, Links};
use crate::error::{CniError, Result};
use crate::netfilter::Attrs;

/// TC_H_ROOT and TC_H_CLSACT.
const ROOT: u32 = 0xffff_ffff;
const CLSACT: u32 = 0xffff_fff1;
/// Of our queues.
const BUCKET: u32 = 1 << 16;
const CLSACT_HANDLE: u32 = 0xffff << 16;
/// Attributes of a bucket.
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
/// TC_LINKLAYER_ETHERNET: the kernel reckons without tables.
const ETHERNET: u8 = 1;
/// What waits is sent within this time, in milliseconds, or dropped.
const LATENCY: u64 = 25;
const ETH_P_ALL: u16 = 3;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes per second.
    pub bytes: u64,
    /// Bytes that may go at once.
    pub burst: u32,
}

/// Which packets of an interface, as the host sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Those that come in by it.
    Incoming,
    /// Those that leave by it.
    Outgoing,
}

/// Which packets are handed over, by the address of the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<'a> {
    /// Only those of these networks.
    Only(&'a [IpNet]),
    /// All but those of these networks.
    AllBut(&'a [IpNet]),
}

fn attribute(kind: u16, data: Vec<u8>) -> TcOption {
    TcOption::Other(DefaultNla::new(kind, data))
}

fn message(link: &Link, parent: u32, handle: u32, kind: &str, options: Vec<TcOption>) -> TcMessage {
    let mut message = TcMessage::with_index(link.index as i32);
    message.header.parent = TcHandle::from(parent);
    message.header.handle = TcHandle::from(handle);
    message.attributes = vec![TcAttribute::Kind(kind.to_owned())];
    if !options.is_empty() {
        message.attributes.push(TcAttribute::Options(options));
    }
    message
}

/// How many bytes may wait.
fn limit(rate: &Rate) -> u32 {
    let waiting = rate.bytes.saturating_mul(LATENCY) / 1000;
    u32::try_from(waiting)
        .unwrap_or(u32::MAX)
        .saturating_add(rate.burst)
}

/// `struct tc_tbf_qopt` and what doesn't fit into it.
fn bucket(rate: &Rate) -> Vec<TcOption> {
    let small = u32::try_from(rate.bytes).unwrap_or(u32::MAX);
    // struct tc_ratespec, twice: the second, of the peak, is empty
    let mut parms = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parms.extend(small.to_ne_bytes());
    parms.extend([0; 12]);
    parms.extend(limit(rate).to_ne_bytes());
    // buffer and mtu: TBF_BURST says it in bytes
    parms.extend([0; 8]);
    vec![
        attribute(TBF_PARMS, parms),
        attribute(TBF_RATE64, rate.bytes.to_ne_bytes().to_vec()),
        attribute(TBF_BURST, rate.burst.to_ne_bytes().to_vec()),
    ]
}

/// The rate in the options of a bucket, and the length of its queue in bytes, which tells the burst.
fn bucket_of(options: &[u8]) -> Option<(u64, u32)> {
    let find = |wanted| {
        Attrs(options)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, data)| data)
    };
    let parms = find(TBF_PARMS)?;
    let word = |at: usize| {
        parms
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_ne_bytes)
    };
    let large = find(TBF_RATE64)
        .and_then(|data| data.first_chunk())
        .map(|bytes| u64::from_ne_bytes(*bytes));
    Some((large.or(word(8).map(u64::from))?, word(24)?))
}

/// `struct tc_u32_sel` with the keys that match an address of `net`.
fn selector(net: Option<&IpNet>, direction: Direction) -> Vec<u8> {
    let mut keys: Vec<([u8; 4], [u8; 4], u32)> = Vec::new();
    match net {
        // nothing to look at, which one key says
        None => keys.push(([0; 4], [0; 4], 0)),
        Some(net) => {
            // what leaves towards the container comes from the other side
            let offset = match (direction, net) {
                (Direction::Outgoing, IpNet::V4(_)) => 12,
                (Direction::Incoming, IpNet::V4(_)) => 16,
                (Direction::Outgoing, IpNet::V6(_)) => 8,
                (Direction::Incoming, IpNet::V6(_)) => 24,
            };
            let octets = |ip: std::net::IpAddr| match ip {
                std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
                std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let (mask, value) = (octets(net.netmask()), octets(net.network()));
            let words = mask.as_chunks::<4>().0.iter().zip(value.as_chunks::<4>().0);
            for (at, (mask, value)) in (offset..).step_by(4).zip(words) {
                keys.push((*mask, *value, at));
            }
        }
    }
    // TC_U32_TERMINAL, and the number of keys
    let mut bytes = vec![1, 0, keys.len() as u8];
    bytes.resize(16, 0);
    for (mask, value, at) in keys {
        bytes.extend(mask);
        bytes.extend(value);
        bytes.extend(at.to_ne_bytes());
        bytes.extend([0; 4]);
    }
    bytes
}

/// TCA_U32_ACT with one action, `mirred egress redirect`.
fn redirect(to: &Link) -> Vec<u8> {
    fn put(kind: u16, data: &[u8]) -> Vec<u8> {
        let mut bytes = (data.len() as u16 + 4).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
    // struct tc_mirred: index, capab, action TC_ACT_STOLEN, refcnt, bindcnt, eaction TCA_EGRESS_REDIR, ifindex
    let words: [u32; 7] = [0, 0, 4, 0, 0, 1, to.index];
    let parms: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    let options = put(2, &put(2, &parms));
    put(1, &[put(1, b"mirred\0"), options].concat())
}

/// TC_H_MIN_INGRESS, TC_H_MIN_EGRESS of clsact.
fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Incoming => 0xffff_fff2,
        Direction::Outgoing => 0xffff_fff3,
    }
}

impl Links {
    fn traffic(&mut self, what: &str, link: &Link, message: Message, flags: u16) -> Result<()> {
        self.call(message, flags).map(|_| ()).map_err(|cause| {
            let hint = match cause.raw_os_error() {
                Some(libc::ENOENT | libc::EOPNOTSUPP) => {
                    " (does the kernel have sch_tbf, sch_ingress, cls_u32 and act_mirred?)"
                }
                _ => "",
            };
            CniError::operation(
                format!("cannot {what} of {}", link.name),
                format!("{cause}{hint}"),
            )
        })
    }

    /// Gives an interface a bucket as its queue, in place of any it has.
    pub fn shape(&mut self, link: &Link, rate: &Rate) -> Result<()> {
        let queue = message(link, ROOT, BUCKET, "tbf", bucket(rate));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.traffic(
            "set the rate",
            link,
            Message::NewQueueDiscipline(queue),
            flags,
        )
    }

    /// Whether an interface has this bucket as its queue.
    pub fn is_shaped(&mut self, link: &Link, rate: &Rate) -> Result<bool> {
        let request = TcMessage::with_index(link.index as i32);
        let answer = self
            .call(Message::GetQueueDiscipline(request), NLM_F_DUMP)
            .map_err(|cause| {
                CniError::operation(format!("cannot list the queues of {}", link.name), cause)
            })?;
        let found = answer.into_iter().find_map(|message| match message {
            Message::NewQueueDiscipline(queue)
                if queue.header.index == link.index as i32
                    && queue.header.parent == TcHandle::from(ROOT) =>
            {
                queue
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        TcAttribute::Options(options) => options.iter().find_map(read_bucket),
                        _ => None,
                    })
            }
            _ => None,
        });
        Ok(found == Some((rate.bytes, limit(rate))))
    }

    /// Hands packets of an interface over to another one, which sends them on when it is their turn.
    pub fn hand_packets(
        &mut self,
        link: &Link,
        direction: Direction,
        choice: Choice<'_>,
        to: &Link,
    ) -> Result<()> {
        let hooks = message(link, CLSACT, CLSACT_HANDLE, "clsact", Vec::new());
        let made = self.call(
            Message::NewQueueDiscipline(hooks.clone()),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        if !matches!(&made, Err(cause) if cause.raw_os_error() == Some(libc::EEXIST)) {
            made.map_err(|cause: io::Error| {
                CniError::operation(
                    format!("cannot look at the packets of {}", link.name),
                    format!("{cause} (does the kernel have sch_ingress?)"),
                )
            })?;
        }
        let (networks, others) = match choice {
            Choice::Only(networks) => (networks, false),
            Choice::AllBut(networks) => (networks, true),
        };
        for net in networks {
            self.filter(link, direction, Some(net), (!others).then_some(to))?;
        }
        if others {
            self.filter(link, direction, None, Some(to))?;
        }
        Ok(())
    }

    /// Whether an interface hands over as many choices of packets as [`Links::hand_packets`] makes.
    pub fn hands_packets(
        &mut self,
        link: &Link,
        direction: Direction,
        choice: Choice<'_>,
    ) -> Result<bool> {
        let wanted = match choice {
            Choice::Only(networks) => networks.len(),
            Choice::AllBut(networks) => networks.len() + 1,
        };
        let mut request = TcMessage::with_index(link.index as i32);
        request.header.parent = TcHandle::from(parent(direction));
        let answer = match self.call(Message::GetTrafficFilter(request), NLM_F_DUMP) {
            // without the hooks there are no filters
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
                return Ok(false);
            }
            answer => answer.map_err(|cause| {
                let what = format!("cannot list the chosen packets of {}", link.name);
                CniError::operation(what, cause)
            })?,
        };
        let is_choice = |message: &Message| {
            let Message::NewTrafficFilter(filter) = message else {
                return false;
            };
            filter.attributes.iter().any(|attribute| match attribute {
                TcAttribute::Options(options) => options
                    .iter()
                    .any(|option| matches!(option, TcOption::U32(TcFilterU32Option::Selector(_)))),
                _ => false,
            })
        };
        Ok(answer.iter().filter(|message| is_choice(message)).count() == wanted)
    }

    /// What matches is handed over, or goes its way.
    fn filter(
        &mut self,
        link: &Link,
        direction: Direction,
        net: Option<&IpNet>,
        to: Option<&Link>,
    ) -> Result<()> {
        // a priority belongs to one protocol, and to one direction: cls_u32 lists those of both otherwise
        let first = match direction {
            Direction::Incoming => 0,
            Direction::Outgoing => 3,
        };
        let (priority, protocol) = match net {
            Some(IpNet::V4(_)) => (1, ETH_P_IP),
            Some(IpNet::V6(_)) => (2, ETH_P_IPV6),
            None => (3, ETH_P_ALL),
        };
        // TCA_U32_SEL, TCA_U32_ACT
        let mut options = vec![attribute(5, selector(net, direction))];
        options.extend(to.map(|to| attribute(7, redirect(to))));
        let mut message = message(link, parent(direction), 0, "u32", options);
        message.header.info = (first + priority) << 16 | u32::from(protocol.to_be());
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.traffic(
            "choose packets",
            link,
            Message::NewTrafficFilter(message),
            flags,
        )
    }

    /// Takes buckets and choices off an interface; missing is success.
    pub fn unshape(&mut self, link: &Link) -> Result<()> {
        for (parent, handle, kind) in [(ROOT, BUCKET, "tbf"), (CLSACT, CLSACT_HANDLE, "clsact")] {
            let queue = message(link, parent, handle, kind, Vec::new());
            match self.call(Message::DelQueueDiscipline(queue), 0) {
                Err(cause)
                    if !matches!(
                        cause.raw_os_error(),
                        Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
                    ) =>
                {
                    let what = format!("cannot take the queue {kind} off {}", link.name);
                    return Err(CniError::operation(what, cause));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn read_bucket(option: &TcOption) -> Option<(u64, u32)> {
    let mut value = vec![0; option.value_len()];
    option.emit_value(&mut value);
    bucket_of(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let all = selector(None, Direction::Incoming);
        assert_eq!((all.len(), &all[..3]), (32, &[1, 0, 1][..]));
        let four = selector(Some(&net("10.1.0.0/16")), Direction::Outgoing);
        assert_eq!(four[16..24], [255, 255, 0, 0, 10, 1, 0, 0]);
        assert_eq!(four[24..28], 12u32.to_ne_bytes());
        let six = selector(Some(&net("fd00::/8")), Direction::Incoming);
        assert_eq!((six.len(), six[2]), (16 + 4 * 16, 4));
        assert_eq!(six[16 + 3 * 16 + 8..][..4], 36u32.to_ne_bytes());
    }

    #[test]
    fn buckets_are_read_with_bounds() {
        assert_eq!(bucket_of(&[]), None);
        for length in 0..48 {
            // whatever comes of it: no panic
            bucket_of(&vec![length; usize::from(length)]);
        }
    }
}
