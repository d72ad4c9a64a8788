//! `x-sampan.checks`: what it is read as, how it merges, what is refused.

use super::*;

/// A check with every default.
fn plain(name: &str, kind: &str, test: Value) -> Value {
    json!({"name": name, "kind": kind, "test": test, "delay": null, "interval": second(10), "start_interval": null, "timeout": second(20),
        "grace_period": second(0), "consecutive_failures": 3, "success_threshold": 1, "snooze": null})
}

fn with(mut check: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    check.as_object_mut().unwrap().extend(more);
    check
}

fn http(more: Value) -> Value {
    let all = json!({"tls": false, "host": "127.0.0.1", "port": 80, "path": "/", "statuses": [], "headers": {}});
    json!({"http": with(all, more)})
}

fn tcp(host: &str) -> Value {
    json!({"tcp": {"host": host, "port": 5}})
}

#[test]
fn reading() {
    let table = [
        (
            "{a: {command: x y}, b: {command: [x, '1'], kind: readiness}}",
            json!([
                plain("a", "health", json!({"command": {"shell": "x y"}})),
                plain("b", "readiness", json!({"command": {"exec": ["x", "1"]}})),
            ]),
        ),
        (
            "[{name: a, kind: check, tcp: {port: 5}, delay: 15s, interval: 1m, start_interval: 1s, timeout: 0s, grace_period: 2s, \
             consecutive_failures: 1, success_threshold: 2, snooze: 1h}]",
            json!([with(
                plain("a", "check", tcp("127.0.0.1")),
                json!({"delay": second(15), "interval": second(60), "start_interval": second(1), "timeout": second(0), "grace_period": second(2),
                    "consecutive_failures": 1, "success_threshold": 2, "snooze": second(3600)})
            )]),
        ),
        (
            "{a: {tcp: {port: 5, protocol: IPv6}}, b: {tcp: {port: 5, host: 10.0.0.1, protocol: ipv4}}, c: {tcp: {port: '5', host: 'fd00::1'}}}",
            json!([
                plain("a", "health", tcp("::1")),
                plain("b", "health", tcp("10.0.0.1")),
                plain("c", "health", tcp("fd00::1")),
            ]),
        ),
        (
            "{a: {http: {port: 80}}, b: {http: {port: 80, path: '/x?y=1', scheme: https, protocol: IPv6, statuses: [200, 404], \
             headers: [Host=a.example, 'X-A=b c']}}}",
            json!([
                plain("a", "health", http(json!({}))),
                plain(
                    "b",
                    "health",
                    http(
                        json!({"tls": true, "host": "::1", "path": "/x?y=1", "statuses": [200, 404], "headers": {"Host": "a.example", "X-A": "b c"}})
                    )
                ),
            ]),
        ),
    ];
    for (checks, expected) in table {
        let text = web(&format!("x-sampan: {{checks: {checks}}}"));
        assert_service(load_one(&text), &json!({"checks": expected}), &text);
    }
}

#[test]
fn a_later_file_replaces_a_check_by_its_name() {
    let checks =
        |checks: &str| format!("services: {{web: {{image: i, x-sampan: {{checks: {checks}}}}}}}");
    for (over, names) in [
        (
            "[{name: a, tcp: {port: 5}}, {name: c, tcp: {port: 5}}]",
            &["a", "b", "c"][..],
        ),
        (
            "{a: {tcp: {port: 5}}, c: {tcp: {port: 5}}}",
            &["a", "b", "c"],
        ),
        ("!override {a: {tcp: {port: 5}}}", &["a"]),
        ("!reset []", &[]),
    ] {
        let base = checks("{a: {command: x, delay: 5s}, b: {command: [x, y]}}");
        let loaded = load_two(&base, &checks(over)).unwrap();
        let found = &loaded.project.services["web"].checks;
        let list: Vec<&str> = found.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(list, names, "{over}");
        if let Some(first) = found.first() {
            let tcp = matches!(&first.test, project::CheckTest::Tcp(_));
            assert!(tcp && first.delay.is_none(), "{over}");
        }
    }
}

#[test]
fn what_is_refused() {
    let table = [
        ("[{tcp: {port: 5}}]", "checks[0]: has no name"),
        (
            "[{name: ' ', tcp: {port: 5}}]",
            "checks[0].name: \" \" is not a name; use letters, digits, '.', '_' and '-'",
        ),
        (
            "{a: {name: b, tcp: {port: 5}}}",
            "checks.a: has its name before it; remove the key name",
        ),
        (
            "[{name: a, tcp: {port: 5}}, {name: a, command: x}]",
            "checks[1]: another check is called a",
        ),
        (
            "{healthcheck: {command: x}}",
            "checks[0]: healthcheck of the service has that name already",
        ),
        (
            "{a: {kind: live, command: x}}",
            "checks[0].kind: \"live\" is not a kind; use health, readiness or check",
        ),
        (
            "{a: {}}",
            "checks[0]: must have exactly one of command, http and tcp",
        ),
        (
            "{a: {command: x, tcp: {port: 5}}}",
            "checks[0]: must have exactly one of command, http and tcp",
        ),
        (
            "{a: {command: []}}",
            "checks[0].command: names no program, or holds a NUL byte",
        ),
        ("{a: {tcp: {protocol: IPv4}}}", "checks[0].tcp: has no port"),
        (
            "{a: {tcp: {port: 0}}}",
            "checks[0].tcp.port: 0 is out of range; it must lie between 1 and 65535",
        ),
        (
            "{a: {tcp: {port: 5, protocol: IPv5}}}",
            "checks[0].tcp.protocol: \"IPv5\" is not a protocol; use IPv4 or IPv6",
        ),
        (
            "{a: {tcp: {port: 5, host: web}}}",
            "checks[0].tcp.host: \"web\" is not an IP address",
        ),
        (
            "{a: {tcp: {port: 5, host: '::1', protocol: IPv4}}}",
            "checks[0].tcp.host: contradicts protocol; remove one",
        ),
        (
            "{a: {http: {port: 5, scheme: ftp}}}",
            "checks[0].http.scheme: \"ftp\" is not a scheme; use http or https",
        ),
        (
            "{a: {http: {port: 5, statuses: [99]}}}",
            "checks[0].http.statuses[0]: 99 is out of range; it must lie between 200 and 599",
        ),
        (
            "{a: {http: {port: 5, path: x}}}",
            "checks[0].http: path is not one of a request: it begins with / and has no spaces, no # and no other than ascii characters",
        ),
        (
            "{a: {http: {port: 5, headers: {A: \"b\\r\\nC: d\"}}}}",
            "checks[0].http: headers are not those of a request: names of letters, digits, - and _, values of printable ascii characters, at most 32",
        ),
        (
            "{a: {command: x, success_threshold: 0}}",
            "checks[0].success_threshold: 0 is out of range; it must lie between 1 and 1000000",
        ),
        (
            "{a: {command: x, delay: 99999h}}",
            "checks[0].delay: is longer than ten years",
        ),
        (
            "{a: {comand: x}}",
            "checks.a.comand: unknown key; did you mean command?",
        ),
    ];
    for (checks, message) in table {
        let text = web(&format!(
            "healthcheck: {{test: x}}\nx-sampan: {{checks: {checks}}}"
        ));
        let error = load_one(&text).unwrap_err();
        let (_, error) = error
            .split_once("services.web.x-sampan.")
            .unwrap_or(("", &error));
        assert_eq!(error, message, "{checks}");
    }
}
