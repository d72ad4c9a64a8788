//! The mark on everything that belongs to one attachment: veth aliases and comments of nftables rules.
//!
//! *Invariants*: a tag names network, container and interface, so an object can be found without any file. None of the
//! three can hold a space.

use crate::conf::ValidAttachment;
use crate::error::{CniError, Result};

/// Room in an interface's alias (IFALIASZ) and in a rule's user data beside what a plugin adds.
const MAX_TAG: usize = 200;

/// The parts of a tag.
#[derive(Debug, PartialEq, Eq)]
pub struct Tag<'a> {
    /// The network.
    pub network: &'a str,
    /// `CNI_CONTAINERID`.
    pub container_id: &'a str,
    /// `CNI_IFNAME`.
    pub ifname: &'a str,
}

/// `<network> <container id> <ifname>`.
pub fn tag(network: &str, container_id: &str, ifname: &str) -> Result<String> {
    let tag = format!("{network} {container_id} {ifname}");
    if tag.len() > MAX_TAG {
        return Err(CniError::config(format!(
            "network name and container id are {} bytes too long together",
            tag.len() - MAX_TAG
        )));
    }
    Ok(tag)
}

/// Reads a tag; what a plugin added after it is ignored.
pub fn parse(text: &str) -> Option<Tag<'_>> {
    let mut words = text.split(' ');
    let tag = Tag {
        network: words.next()?,
        container_id: words.next()?,
        ifname: words.next()?,
    };
    (!tag.ifname.is_empty()).then_some(tag)
}

/// Whether `text` is `tag`, or begins with it.
pub fn is_of(tag: &str, text: &str) -> bool {
    text.strip_prefix(tag)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// Whether a container is of the runtime that calls (`Conf::runtime`), whose ids begin with its name. One that has no name
/// knows all containers of the network.
pub fn is_of_runtime(runtime: &str, container_id: &str) -> bool {
    runtime.is_empty()
        || container_id
            .strip_prefix(runtime)
            .is_some_and(|rest| rest.starts_with('-'))
}

/// Whether `text` is the tag of an attachment of `network` that isn't valid any more, by the one who can know.
pub fn is_stale(network: &str, runtime: &str, valid: &[ValidAttachment], text: &str) -> bool {
    parse(text).is_some_and(|found| {
        found.network == network
            && is_of_runtime(runtime, found.container_id)
            && !valid.iter().any(|known| {
                known.container_id == found.container_id && known.ifname == found.ifname
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let text = tag("net", "c1", "eth0").unwrap();
        assert_eq!(text, "net c1 eth0");
        let expected = Tag {
            network: "net",
            container_id: "c1",
            ifname: "eth0",
        };
        assert_eq!(parse(&text), Some(expected));
        assert_eq!(
            parse("net c1 eth0 tcp 80").map(|tag| tag.ifname),
            Some("eth0")
        );
        for other in ["", "net", "net c1", "net c1 "] {
            assert_eq!(parse(other), None, "{other:?}");
        }
        assert_eq!(tag("n", &"c".repeat(200), "eth0").unwrap_err().code, 7);
    }
    #[test]
    fn whose_attachments_are_stale() {
        let valid = [ValidAttachment {
            container_id: "sampan-1-a".into(),
            ifname: "eth0".into(),
        }];
        for (runtime, text, expected) in [
            ("", "net c1 eth0", true),
            ("", "net sampan-1-a eth0", false),
            ("", "other c1 eth0", false),
            ("sampan-1", "net sampan-1-a eth0", false),
            ("sampan-1", "net sampan-1-a eth1", true),
            ("sampan-1", "net sampan-1-b eth0 tcp 80", true),
            ("sampan-1", "net sampan-12-b eth0", false),
            ("sampan-1", "net sampan-1 eth0", false),
            ("sampan-1", "net c1 eth0", false),
        ] {
            let found = is_stale("net", runtime, &valid, text);
            assert_eq!(found, expected, "{runtime:?} {text:?}");
        }
    }
}
