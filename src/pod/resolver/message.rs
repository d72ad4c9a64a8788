//! Messages of the domain name system (RFC 1035, RFC 6891), as far as a resolver reads and writes them that passes the
//! rest on: one question, and answers of its own.
//!
//! *Invariants:* pure; nothing is read beyond what is there, whatever the bytes; a reply bears the question as it was
//! asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses.
pub const A: u16 = 1;
/// Names of addresses.
pub const PTR: u16 = 12;
/// IPv6 addresses.
pub const AAAA: u16 = 28;
/// Everything.
pub const ANY: u16 = 255;
const OPT: u16 = 41;
const INTERNET: u16 = 1;

/// Response codes (RFC 1035, 4.1.1).
pub const NO_ERROR: u8 = 0;
/// The query makes no sense.
pub const FORM_ERROR: u8 = 1;
/// Nobody could be asked.
pub const SERVER_FAILURE: u8 = 2;
/// There is no such name.
pub const NO_NAME: u8 = 3;
/// An operation other than a question.
pub const NOT_DONE: u8 = 4;
/// The server does not want to answer.
pub const REFUSED: u8 = 5;

const HEADER: usize = 12;
const MAX_NAME: usize = 255;
/// Largest reply by UDP without EDNS.
const PLAIN_UDP: usize = 512;
/// Largest of our own replies by UDP: what passes everywhere without fragments.
const MOST_UDP: usize = 1232;
/// Seconds that an answer of ours may be kept: pods come and go.
const TTL: u32 = 5;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    /// The first two octets, which the reply repeats.
    pub id: u16,
    /// In lower case without the last dot; `None` for one that is no host's name.
    pub name: Option<String>,
    /// Type.
    pub kind: u16,
    /// Asks about the internet.
    pub internet: bool,
    /// The question's octets.
    pub question: &'a [u8],
    recursion: bool,
    /// Of EDNS, where the client speaks it: the largest reply by UDP that it takes.
    size: Option<u16>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// An address.
    Ip(IpAddr),
    /// A name.
    Name(String),
}

/// Reads a query. The error is the reply to what is none; nothing for what must not be answered.
pub fn parse(bytes: &[u8]) -> Result<Query<'_>, Option<Vec<u8>>> {
    let (Some(id), Some(flags)) = (u16_at(bytes, 0), u16_at(bytes, 2)) else {
        return Err(None);
    };
    // an answer to an answer would never end
    if flags & 0x8000 != 0 || bytes.len() < HEADER {
        return Err(None);
    }
    let recursion = flags & 0x0100 != 0;
    let refuse = |code| Err(Some(head(id, recursion, code, false, 0, 0, 0)));
    if flags & 0x7800 != 0 {
        return refuse(NOT_DONE);
    }
    let counts: Vec<_> = [4, 6, 8, 10]
        .iter()
        .filter_map(|at| u16_at(bytes, *at))
        .collect();
    if counts.first() != Some(&1) {
        return refuse(FORM_ERROR);
    }
    let Some((name, end)) = name(bytes, HEADER) else {
        return refuse(FORM_ERROR);
    };
    let (Some(kind), Some(class)) = (u16_at(bytes, end), u16_at(bytes, end + 2)) else {
        return refuse(FORM_ERROR);
    };
    let rest = bytes.get(end + 4..).unwrap_or_default();
    let size = match (counts.as_slice(), rest) {
        // the root's name, then type and class, which is the size
        ([1, 0, 0, more], [0, rest @ ..]) if *more > 0 && u16_at(rest, 0) == Some(OPT) => {
            u16_at(rest, 2)
        }
        _ => None,
    };
    Ok(Query {
        id,
        name,
        kind,
        internet: class == INTERNET || class == ANY,
        question: bytes.get(HEADER..end + 4).unwrap_or_default(),
        recursion,
        size,
    })
}

/// A reply of our own. `udp`: it must fit; one that does not is cut, and the client asks again by TCP.
pub fn reply(query: &Query<'_>, code: u8, answers: &[Answer], udp: bool) -> Vec<u8> {
    let options = u16::from(query.size.is_some());
    let whole = |cut: bool, answers: &[Answer]| {
        let count = u16::try_from(answers.len()).unwrap_or(u16::MAX);
        let mut out = head(query.id, query.recursion, code, cut, 1, count, options);
        out.extend_from_slice(query.question);
        for answer in answers.iter().take(usize::from(count)) {
            push(&mut out, answer);
        }
        if options > 0 {
            // RFC 6891, 6.1.1: who is asked with it answers with it
            out.push(0);
            out.extend_from_slice(&OPT.to_be_bytes());
            out.extend_from_slice(&(MOST_UDP as u16).to_be_bytes());
            out.extend_from_slice(&[0; 6]);
        }
        out
    };
    let size = query.size.map_or(PLAIN_UDP, usize::from);
    let most = match udp {
        true => size.clamp(PLAIN_UDP, MOST_UDP),
        false => usize::from(u16::MAX),
    };
    let out = whole(false, answers);
    match out.len() <= most {
        true => out,
        false => whole(true, &[]),
    }
}

/// The bytes are a reply to the query that was sent with this id, question and all.
pub fn answers(bytes: &[u8], id: u16, query: &Query<'_>) -> bool {
    let is_reply = u16_at(bytes, 2).is_some_and(|flags| flags & 0x8000 != 0);
    let question = bytes.get(HEADER..HEADER + query.question.len());
    u16_at(bytes, 0) == Some(id)
        && is_reply
        && u16_at(bytes, 4) == Some(1)
        && question.is_some_and(|q| q.eq_ignore_ascii_case(query.question))
}

/// The response code.
pub fn code(bytes: &[u8]) -> u8 {
    bytes.get(3).map_or(SERVER_FAILURE, |octet| octet & 15)
}

/// Gives the message another id.
pub fn set_id(bytes: &mut [u8], id: u16) {
    if let Some(place) = bytes.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
pub fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = labels
            .split('.')
            .rev()
            .map_while(|l| l.parse().ok())
            .collect();
        return Some(<[u8; 4]>::try_from(octets).ok()?.into());
    }
    let labels: Vec<&str> = name.strip_suffix(".ip6.arpa")?.split('.').collect();
    let mut address = 0u128;
    for label in labels.iter().rev() {
        let digit = (label.len() == 1).then(|| u128::from_str_radix(label, 16).ok())?;
        address = address << 4 | digit?;
    }
    (labels.len() == 32).then(|| Ipv6Addr::from(address).into())
}

fn head(
    id: u16,
    recursion: bool,
    code: u8,
    cut: bool,
    questions: u16,
    answers: u16,
    additional: u16,
) -> Vec<u8> {
    // a reply, recursion available
    let mut flags = 0x8080 | u16::from(code & 15);
    flags |= if recursion { 0x0100 } else { 0 };
    flags |= if cut { 0x0200 } else { 0 };
    let fields = [id, flags, questions, answers, 0, additional];
    fields
        .iter()
        .flat_map(|field| field.to_be_bytes())
        .collect()
}

fn push(out: &mut Vec<u8>, answer: &Answer) {
    let (kind, data) = match answer {
        Answer::Ip(IpAddr::V4(ip)) => (A, ip.octets().to_vec()),
        Answer::Ip(IpAddr::V6(ip)) => (AAAA, ip.octets().to_vec()),
        Answer::Name(name) => (PTR, encoded(name)),
    };
    // the name is the question's, which begins behind the header
    out.extend_from_slice(&(0xc000 | HEADER as u16).to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&INTERNET.to_be_bytes());
    out.extend_from_slice(&TTL.to_be_bytes());
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(&data);
}

/// Labels with their lengths; what is too long is cut.
fn encoded(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = label.as_bytes();
        let label = label.get(..label.len().min(63)).unwrap_or_default();
        if out.len() + label.len() + 2 > MAX_NAME {
            break;
        }
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.push(0);
    out
}

/// The name at `at`, and where it ends. A question has no pointers (nothing is before it to point to).
fn name(bytes: &[u8], mut at: usize) -> Option<(Option<String>, usize)> {
    let start = at;
    let mut text = String::new();
    let mut plain = true;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        if length > 63 || at + length + 1 - start > MAX_NAME {
            return None;
        }
        let label = bytes.get(at..at + length)?;
        at += length;
        plain &= label.iter().all(|b| b.is_ascii_graphic() && *b != b'.');
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    Some((plain.then_some(text), at))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let part = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(part.try_into().ok()?))
}

/// Of a family that the question asks for.
pub fn fits(kind: u16, ip: &IpAddr) -> bool {
    match kind {
        A => ip.is_ipv4(),
        AAAA => ip.is_ipv6(),
        ANY => true,
        _ => false,
    }
}

/// Where the names of a pod's own services lead.
pub const OWN: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
