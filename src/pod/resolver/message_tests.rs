//! Tables of octets, and random ones.

use super::*;

/// A query with the flags, counts and octets after the header.
fn query(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let mut out = vec![0xab, 0xcd];
    out.extend(flags.to_be_bytes());
    out.extend(counts.iter().flat_map(|c| c.to_be_bytes()));
    out.extend_from_slice(rest);
    out
}

const WEB_A: &[u8] = b"\x03Web\x00\x00\x01\x00\x01";

#[test]
fn queries() {
    let edns = [WEB_A, b"\x00\x00\x29\x04\xd0\0\0\0\0\0\0"].concat();
    let long = [
        &[63u8][..],
        &[b'a'; 63],
        &[63],
        &[b'a'; 63],
        &[63],
        &[b'a'; 63],
        &[63],
        &[b'a'; 63],
        b"\0\0\x01\0\x01",
    ]
    .concat();
    // octets; name, type and size of EDNS, or the code of the refusal
    type Row = (
        Vec<u8>,
        Result<(Option<&'static str>, u16, Option<u16>), Option<u8>>,
    );
    let table: Vec<Row> = vec![
        (
            query(0x100, [1, 0, 0, 0], WEB_A),
            Ok((Some("web"), A, None)),
        ),
        (
            query(0x100, [1, 0, 0, 1], &edns),
            Ok((Some("web"), A, Some(1232))),
        ),
        (
            query(0, [1, 0, 0, 0], b"\x01a\x01b\x00\x00\x1c\x00\x01"),
            Ok((Some("a.b"), AAAA, None)),
        ),
        (
            query(0, [1, 0, 0, 0], b"\x00\x00\x02\x00\x01"),
            Ok((Some(""), 2, None)),
        ),
        // no host is called so
        (
            query(0, [1, 0, 0, 0], b"\x03a.b\x00\x00\x01\x00\x01"),
            Ok((None, A, None)),
        ),
        (
            query(0, [1, 0, 0, 0], b"\x01\xff\x00\x00\x01\x00\x01"),
            Ok((None, A, None)),
        ),
        (query(0x8100, [1, 0, 0, 0], WEB_A), Err(None)),
        (query(0x100, [1, 0, 0, 0], b"\x03we"), Err(Some(FORM_ERROR))),
        (
            query(0x100, [1, 0, 0, 0], b"\xc0\x0c\x00\x01\x00\x01"),
            Err(Some(FORM_ERROR)),
        ),
        (query(0x100, [1, 0, 0, 0], &long), Err(Some(FORM_ERROR))),
        (
            query(0x100, [1, 0, 0, 0], &WEB_A[..7]),
            Err(Some(FORM_ERROR)),
        ),
        (query(0x100, [0, 0, 0, 0], b""), Err(Some(FORM_ERROR))),
        (query(0x100, [2, 0, 0, 0], WEB_A), Err(Some(FORM_ERROR))),
        (query(0x2800, [1, 0, 0, 0], WEB_A), Err(Some(NOT_DONE))),
        (vec![1, 2, 3], Err(None)),
        (vec![], Err(None)),
        (vec![0; 11], Err(None)),
    ];
    for (bytes, expected) in table {
        let got = parse(&bytes)
            .map(|q| (q.name.clone(), q.kind, q.size))
            .map_err(|refusal| refusal.map(|r| code(&r)));
        let expected = expected.map(|(n, k, s)| (n.map(String::from), k, s));
        assert_eq!(got, expected, "{bytes:?}");
    }
}

#[test]
fn replies() {
    let bytes = query(0x100, [1, 0, 0, 0], WEB_A);
    let asked = parse(&bytes).unwrap();
    let ip = Answer::Ip("10.1.2.3".parse().unwrap());
    let expected = [
        b"\xab\xcd\x81\x80\0\x01\0\x01\0\0\0\0".as_slice(),
        WEB_A,
        b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04\x0a\x01\x02\x03",
    ]
    .concat();
    assert_eq!(
        reply(&asked, NO_ERROR, std::slice::from_ref(&ip), true),
        expected
    );
    assert!(answers(&expected, 0xabcd, &asked));
    assert!(!answers(&expected, 0xabce, &asked));
    assert!(!answers(&bytes, 0xabcd, &asked));
    let other = query(0x8100, [1, 0, 0, 0], b"\x03wex\x00\x00\x01\x00\x01");
    assert!(!answers(&other, 0xabcd, &asked));
    // too much for a datagram: cut, and whole by TCP
    let many = vec![ip; 40];
    let cut = reply(&asked, NO_ERROR, &many, true);
    assert_eq!((cut.len(), cut[2] & 2), (HEADER + WEB_A.len(), 2));
    assert_eq!(
        reply(&asked, NO_ERROR, &many, false).len(),
        HEADER + WEB_A.len() + 40 * 16
    );
    // as large as the client says, and with EDNS where it has
    let edns = [WEB_A, b"\x00\x00\x29\x10\x00\0\0\0\0\0\0"].concat();
    let bytes = query(0x100, [1, 0, 0, 1], &edns);
    let asked = parse(&bytes).unwrap();
    assert_eq!(
        reply(&asked, NO_ERROR, &many, true).len(),
        HEADER + WEB_A.len() + 40 * 16 + 11
    );
    let name = reply(&asked, NO_NAME, &[Answer::Name("a.b".into())], true);
    assert_eq!(code(&name), NO_NAME);
    assert!(name.windows(7).any(|w| w == b"\0\x05\x01a\x01b\0"));
}

#[test]
fn names_of_addresses() {
    for (name, expected) in [
        ("3.2.1.10.in-addr.arpa", Some("10.1.2.3")),
        ("2.1.10.in-addr.arpa", None),
        ("x.2.1.10.in-addr.arpa", None),
        ("300.2.1.10.in-addr.arpa", None),
        (
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
            Some("fd00::1"),
        ),
        ("0.d.f.ip6.arpa", None),
        ("web", None),
    ] {
        assert_eq!(
            reversed(name),
            expected.map(|ip| ip.parse().unwrap()),
            "{name}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>, rest: Vec<u8>, name: String) {
        for bytes in [bytes, query(0x100, [1, 0, 0, 1], &rest)] {
            if let Ok(query) = parse(&bytes) {
                let reply = reply(&query, NO_ERROR, &[Answer::Name(name.clone())], true);
                proptest::prop_assert!(reply.len() <= 1232);
                answers(&rest, 1, &query);
            }
        }
        reversed(&name);
    }
}
