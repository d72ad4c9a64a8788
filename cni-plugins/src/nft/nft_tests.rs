use super::*;

#[test]
fn message_bytes() {
    let mut batch = Batch::default();
    batch.delete_table(&Table {
        family: Family::Inet,
        name: "t".into(),
        chains: &[],
    });
    let (bytes, names) = batch.finish();
    assert_eq!(names, ["delete the nftables table inet t"]);
    // begin, DELTABLE with request and acknowledgement, end
    assert_eq!(bytes.len(), 20 + 28 + 20);
    assert_eq!(
        bytes[..20],
        [
            20, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10
        ]
    );
    let expected = [
        28, 0, 0, 0, 2, 10, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 6, 0, 1, 0, b't', 0, 0, 0,
    ];
    assert_eq!(bytes[20..48], expected);
    assert_eq!(bytes[48..56], [20, 0, 0, 0, 0x11, 0, 1, 0]);
}

#[test]
fn rules_are_read_with_bounds() {
    let mut message = Encoder::new(NEW_RULE, 0, 1, Family::Inet.number(), 0);
    message.text(1, "t");
    message.text(2, "c");
    message.attr(3, &7u64.to_be_bytes());
    message.attr(7, &[1, 1, 9, 0, 3, b'a', b'b', 0]);
    let bytes = message.finish(false);
    let body = &bytes[16..];
    let expected = FoundRule {
        chain: "c".into(),
        handle: 7,
        comment: "ab".into(),
    };
    assert_eq!(found_rule(body, "t"), Some(expected));
    assert_eq!(found_rule(body, "other"), None);
    for end in 0..body.len() {
        // whatever comes of it: no panic
        found_rule(&body[..end], "t");
        let _ = comment(&body[..end]);
    }
}

/// What the kernel made of every step, as nft(8) reads it.
#[test]
fn steps_as_nft_prints_them() {
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let shared = |set: &'static str| {
        vec![
            (
                vec![Expr::InputInterface(true, "eth0".into())],
                "iifname \"eth0\"",
            ),
            (
                vec![Expr::OutputInterface(false, "a-b".into())],
                "oifname != \"a-b\"",
            ),
            (
                vec![Expr::Source(true, net("10.1.0.0/16"))],
                "ip saddr 10.1.0.0/16",
            ),
            (
                vec![Expr::Source(false, net("fd00::1/128"))],
                "ip6 saddr != fd00::1",
            ),
            (
                vec![Expr::Destination(true, net("fd00::/8"))],
                "ip6 daddr fd00::/8",
            ),
            (
                vec![Expr::Destination(false, net("10.0.0.1/32"))],
                "ip daddr != 10.0.0.1",
            ),
            (
                vec![Expr::Lookup(true, Field::Source, true, set.into())],
                "ip saddr @four",
            ),
            (
                vec![Expr::Lookup(false, Field::Destination, true, set.into())],
                "ip daddr != @four",
            ),
            (
                vec![Expr::Lookup(false, Field::Source, false, "six".into())],
                "ip6 saddr != @six",
            ),
            (
                vec![Expr::LookupInterface(true, "ports".into())],
                "iifname @ports",
            ),
            (
                vec![Expr::LookupSender(false, true, "senders4".into())],
                "iifname . ip saddr != @senders4",
            ),
            (
                vec![Expr::LookupSender(true, false, "senders6".into())],
                "iifname . ip6 saddr @senders6",
            ),
            (
                vec![Expr::Protocol(6), Expr::DestinationPort(80)],
                "tcp dport 80",
            ),
            (
                vec![Expr::Protocol(17), Expr::DestinationPorts(1, 9)],
                "udp dport 1-9",
            ),
            (vec![Expr::Icmpv6Types(133, 137)], "icmpv6 type 133-137"),
            (vec![Expr::Jump("other".into())], "jump other"),
            (vec![Expr::Return], "return"),
            (vec![Expr::Accept], "accept"),
            (vec![Expr::Drop], "drop"),
        ]
    };
    let inet = [
        (vec![Expr::Family(true), Expr::Drop], "meta nfproto 2 drop"),
        (vec![Expr::NotFromLoopback], "meta iiftype != 772"),
        (vec![Expr::LocalDestination], "fib daddr type 2"),
        (vec![Expr::State(ESTABLISHED | RELATED)], "ct state 0x2,0x4"),
        (vec![Expr::Reply], "ct direction 1"),
        (vec![Expr::Dnatted], "ct status 0x20"),
    ];
    let mac = vec![2, 0, 0, 0, 0, 1];
    let bridge = [
        (vec![Expr::EtherType(0x0806)], "meta protocol 0x0806"),
        (
            vec![Expr::Bytes(false, Header::Link, 6, mac)],
            "ether saddr != 02:00:00:00:00:01",
        ),
        (
            vec![
                Expr::EtherType(0x0806),
                Expr::Bytes(true, Header::Network, 14, vec![10, 0, 0, 1]),
            ],
            "arp saddr ip 10.0.0.1",
        ),
    ];
    const CHAINS: &[Chain] = &[
        Chain::plain("other"),
        Chain::base("forward", "filter", FORWARD, 0),
    ];
    let mut nft = Nft::open().unwrap();
    for family in [Family::Inet, Family::Bridge] {
        let mut cases = shared("four");
        cases.extend(if family == Family::Inet {
            inet.to_vec()
        } else {
            bridge.to_vec()
        });
        let table = Table {
            family,
            name: "net/a.b".into(),
            chains: CHAINS,
        };
        let addresses = ["10.0.0.1/32", "fd00::1/128"]
            .map(|text| net(text).addr())
            .to_vec();
        let senders = vec![
            ("eth0".to_owned(), net("10.0.0.1/32").addr()),
            ("a-b".to_owned(), net("fd00::1/128").addr()),
        ];
        let set = |name: &'static str, keys: Keys| Set {
            name: name.into(),
            keys,
        };
        let sets = [
            set("four", Keys::Addresses(true, addresses.clone())),
            set("six", Keys::Addresses(false, addresses)),
            set("ports", Keys::Interfaces(vec!["eth0".into()])),
            set("senders4", Keys::Senders(true, senders.clone())),
            set("senders6", Keys::Senders(false, senders)),
        ];
        // the second time in place of the first
        for _ in 0..2 {
            let mut batch = Batch::default();
            nft.empty(&mut batch, &table).unwrap();
            sets.iter().for_each(|set| batch.set(&table, set));
            for (exprs, _) in &cases {
                let rule = Rule {
                    chain: "forward".into(),
                    exprs: exprs.clone(),
                    comment: "a b".into(),
                };
                batch.rule(&table, &rule);
            }
            nft.apply(batch).unwrap();
        }
        for set in sets {
            assert!(nft.has(&table, &set).unwrap());
            let other = Keys::Addresses(true, vec![net("10.9.0.1/32").addr()]);
            assert!(
                !nft.has(
                    &table,
                    &Set {
                        keys: other,
                        ..set.clone()
                    }
                )
                .unwrap()
            );
            assert!(
                !nft.has(
                    &table,
                    &Set {
                        name: "none".into(),
                        ..set
                    }
                )
                .unwrap()
            );
        }
        let list = std::process::Command::new("nft")
            .args(["-n", "list", "ruleset", &family.to_string()])
            .output()
            .unwrap();
        let text = String::from_utf8(list.stdout).unwrap();
        let steps: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_suffix(" comment \"a b\""))
            .collect();
        let expected: Vec<&str> = cases.iter().map(|(_, text)| *text).collect();
        assert_eq!(steps, expected, "{text}");
        for elements in [
            "type ipv4_addr\n\t\telements = { 10.0.0.1 }",
            "type ipv6_addr\n\t\telements = { fd00::1 }",
            "type ifname\n\t\telements = { \"eth0\" }",
            "elements = { \"eth0\" . 10.0.0.1 }",
            "elements = { \"a-b\" . fd00::1 }",
        ] {
            assert!(text.contains(elements), "{text}");
        }
        assert_eq!(nft.rules(&table).unwrap().len(), cases.len());
    }
}
