//! By what a link that several attachments share (a bridge and what hangs on it) is known as ours, and therefore as one
//! that may be removed.
//!
//! *Invariants*: such a link is ours from its birth on. Its alias says so to people, but the kernel takes an alias only once
//! the link is there; a process that is killed in between has left the link address, which comes with the birth.

use std::fs;

use crate::link::Link;

/// `sampan:<network>`.
pub fn alias(network: &str) -> String {
    format!("sampan:{network}")
}

/// The link address that a shared link of `network` is born with. It follows from the names and from what no two running
/// machines share, so bridges of several machines can be joined.
pub fn birth_mac(network: &str, name: &str) -> [u8; 6] {
    // without /proc the mark is only less unique
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    mac_of(&format!("{network} {name} {}", boot.trim()))
}

/// FNV-1a: the same in every version of the program.
pub fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn mac_of(text: &str) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = hash(text).to_be_bytes();
    // locally administered, unicast
    [a & 0xfc | 2, b, c, d, e, f]
}

/// Whether the link was made by an ADD of `network`, to go with the last attachment.
pub fn is_ours(link: &Link, network: &str) -> bool {
    if link.alias.is_empty() {
        link.mac == birth_mac(network, &link.name)
    } else {
        link.alias == alias(network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks() {
        let bridge = |alias: &str, mac: &[u8]| Link {
            name: "br0".into(),
            alias: alias.into(),
            mac: mac.to_vec(),
            ..Link::default()
        };
        let born = birth_mac("net", "br0");
        for (alias, mac, expected) in [
            ("sampan:net", [2; 6], true),
            ("", born, true),
            ("", [2; 6], false),
            ("", birth_mac("other", "br0"), false),
            ("sampan:other", born, false),
            ("mine", born, false),
        ] {
            assert_eq!(
                is_ours(&bridge(alias, &mac), "net"),
                expected,
                "{alias} {mac:?}"
            );
        }
        assert_eq!(mac_of(""), [0xca | 2, 0xf2, 0x9c, 0xe4, 0x84, 0x22]);
    }
}
