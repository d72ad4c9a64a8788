//! Plugins that fail, namespaces that are gone, requests that can't be.

use std::fs;

use sampan::network::{self, add, add_all, check, del, del_all, netns};
use serde_json::json;

use crate::{Host, addresses, attachment, host_links, ip_in, list};

#[test]
fn failing_plugins_are_undone_and_reported() {
    let host = Host::new();
    let pod = host.netns("pod");
    let fail = |text: &str| {
        format!(
            "cat >/dev/null; echo $CNI_COMMAND >>$log; [ $CNI_COMMAND = DEL ] && exit 0\n{text}"
        )
    };
    let table = [
        (
            fail("exit 4"),
            "failed with exit status 4 and printed nothing",
        ),
        (fail("true"), "answered with success but printed no result"),
        (
            fail("echo '[1]'"),
            "answered with success but printed no result",
        ),
        (
            fail("echo oh no"),
            "answered with success but printed no JSON (expected value at line 1 column 1): `oh no`",
        ),
        (
            fail("echo '{\"ips\": [{}]}'"),
            "answered with success but its result can't be used: ips[0].address: missing",
        ),
        (
            fail("echo broken pipe >&2; exit 1"),
            "failed with exit status 1: broken pipe",
        ),
        (
            fail("head -c 10000000 /dev/zero"),
            "killed: printed more than 1048576 bytes",
        ),
        (
            fail(
                r#"echo '{"cniVersion":"1.0.0","code":101,"msg":"no","details":"not today"}'; exit 1"#,
            ),
            "no (code 101): not today",
        ),
    ];
    for (text, expected) in table {
        host.script("bad", &text);
        let _ = fs::remove_file(host.path("log"));
        let attachments = [
            attachment(host.bridge(1, &[]), "eth0"),
            attachment(host.bridge(2, &[json!({"type": "bad"})]), "eth1"),
        ];
        let error = add_all(&host.cni, &pod, &attachments, &host.path("cache")).unwrap_err();
        let prefix = "CNI plugin `bad` of network `net2` (test), ADD: ";
        assert_eq!(error.to_string(), format!("{prefix}{expected}"));
        assert_eq!(host.log(), "ADD\nDEL\n");
        assert_eq!(addresses(&pod), [""; 0]);
        assert_eq!(host.leases("net1"), [""; 0]);
        assert_eq!(host.leases("net2"), [""; 0]);
        assert!(!host.path("cache").exists());
    }
}

#[test]
fn del_goes_on_over_errors_and_keeps_what_is_not_done() {
    let host = Host::new();
    let pod = host.netns("pod");
    let text = |del: &str| {
        format!("echo $CNI_COMMAND $0 >>$log; [ $CNI_COMMAND = DEL ] && {del}\necho '{{}}'")
    };
    host.script("one", &text("exit 1"));
    host.script("two", &text("exit 2"));
    let chain = list("n", &[json!({"type": "one"}), json!({"type": "two"})]);
    let cache = host.path("cache");
    let bridge = attachment(host.bridge(1, &[]), "eth0");
    add_all(
        &host.cni,
        &pod,
        &[bridge, attachment(chain, "eth1")],
        &cache,
    )
    .unwrap();
    let errors = del_all(&host.cni, None, &cache).unwrap_err();
    assert_eq!(
        errors.iter().map(|e| e.to_string()).collect::<Vec<_>>(),
        [
            "CNI plugin `two` of network `n` (test), DEL: failed with exit status 2 and printed nothing; \
             CNI plugin `one` of network `n` (test), DEL: failed with exit status 1 and printed nothing"
        ]
    );
    assert_eq!(host.leases("net1"), [""; 0], "the other network is done");
    assert!(!cache.join("00-eth0.json").exists());
    assert!(cache.join("01-eth1.json").exists());
    host.script("one", "true");
    host.script("two", "true");
    del_all(&host.cni, None, &cache).unwrap();
    assert!(!cache.exists());
}

#[test]
fn del_after_the_namespace_is_gone() {
    let host = Host::new();
    let pod = host.netns("pod");
    let cache = host.path("cache");
    let attachments = [
        attachment(host.bridge(1, &[json!({"type": "tuning"})]), "eth0"),
        attachment(host.bridge(2, &[]), "eth1"),
    ];
    add_all(&host.cni, &pod, &attachments, &cache).unwrap();
    assert_eq!(host_links().len(), 2);
    netns::remove(&pod).unwrap();
    // as after a restart of the machine
    fs::write(&pod, "").unwrap();
    del_all(&host.cni, Some(&pod), &cache).unwrap();
    assert!(!cache.exists());
    assert_eq!(host.leases("net1"), [""; 0]);
    assert_eq!(host.leases("net2"), [""; 0]);
}

#[test]
fn refusals() {
    let host = Host::new();
    let cache = host.path("c.json");
    let bridge = attachment(host.bridge(1, &[]), "eth0");
    let plain = host.path("plain");
    fs::write(&plain, "").unwrap();
    let error = add(&host.cni, &plain, &bridge, &cache).unwrap_err();
    let expected = format!("{}: not a pinned network namespace", plain.display());
    assert_eq!(error.to_string(), expected);
    let pod = host.netns("pod");
    let twice = [bridge.clone(), attachment(host.bridge(2, &[]), "eth0")];
    let error = add_all(&host.cni, &pod, &twice, &host.path("cache")).unwrap_err();
    assert_eq!(error.to_string(), "interface `eth0`: two networks want it");
    add(&host.cni, &pod, &bridge, &cache).unwrap();
    let error = add(&host.cni, &pod, &bridge, &cache).unwrap_err();
    assert!(error.to_string().ends_with("delete it first"), "{error}");
    check(&host.cni, &pod, &cache).unwrap();
    ip_in(&pod, &["link", "del", "eth0"]);
    assert!(matches!(
        check(&host.cni, &pod, &cache),
        Err(network::Error::Plugin { .. })
    ));
    del(&host.cni, Some(&pod), &cache).unwrap();
}
