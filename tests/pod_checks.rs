//! Checks of services in real pods: what each kind sees, when it counts, what is told of it. Needs root, images of
//! `images/`, and the Debian packages iproute2, nftables, openssl and util-linux.

#[path = "pod_support/mod.rs"]
mod pod_support;

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pod_support::{BUSYBOX, Host, tool, until};
use serde_json::{Value, json};

/// Scripts of a web server, by path: what each answers.
const PAGES: &[(&str, &str)] = &[
    (
        "moved",
        "HTTP/1.0 302 Found\\r\\nLocation: /index.html\\r\\n\\r\\n",
    ),
    (
        "away",
        "HTTP/1.0 302 Found\\r\\nLocation: http://elsewhere.example/\\r\\n\\r\\n",
    ),
    (
        "round",
        "HTTP/1.0 302 Found\\r\\nLocation: round\\r\\n\\r\\n",
    ),
    ("busy", "HTTP/1.0 503 Busy\\r\\n\\r\\nno database\\r\\n"),
    (
        "odd",
        "HTTP/1.0 418 Teapot\\r\\nContent-Length: 0\\r\\n\\r\\n",
    ),
];

/// A service with such a server at `address`, and checks as lines of YAML.
fn web(address: &str, network: &str, checks: &str) -> String {
    let mut script = String::from("mkdir -p /www/cgi-bin; cd /www; echo hello > index.html; ");
    for (name, answer) in PAGES {
        script.push_str(&format!(
            "printf '#!/bin/sh\\nprintf \"{answer}\"\\n' > cgi-bin/{name}; "
        ));
    }
    // one that never answers, one that never ends, one that says what it was asked with
    script.push_str("printf '#!/bin/sh\\nexec sleep 1000\\n' > cgi-bin/slow; ");
    script.push_str("printf '#!/bin/sh\\nprintf \"HTTP/1.0 200 OK\\\\r\\\\n\\\\r\\\\n\"; while :; do echo x; usleep 10000; done\\n' > cgi-bin/endless; ");
    script.push_str("printf '#!/bin/sh\\n[ \"$HTTP_HOST\" = a.example ] && s=200 || s=404; printf \"HTTP/1.0 $s X\\\\r\\\\n\\\\r\\\\n$HTTP_HOST\"\\n' > cgi-bin/host; ");
    script.push_str(&format!(
        "chmod +x cgi-bin/*; exec httpd -f -p '{address}' -h /www"
    ));
    let script = json!(script.replace('$', "$$"));
    format!(
        "  web:\n    image: {BUSYBOX}\n    command: [sh, -c, {script}]\n    stop_grace_period: 0s\n{network}    x-sampan:\n      checks:\n{}",
        indented(checks)
    )
}

fn indented(checks: &str) -> String {
    let lines = checks
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    lines.map(|line| format!("        {line}\n")).collect()
}

/// A service that only waits, on no network, with checks.
fn idle(more: &str, checks: &str) -> String {
    format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    network_mode: none\n    stop_grace_period: 0s\n{more}    \
         x-sampan:\n      checks:\n{}",
        indented(checks)
    )
}

const NONE: &str = "    network_mode: none\n";

/// Results by name: state and what was measured.
fn results(host: &Host) -> BTreeMap<String, (String, Value)> {
    let rows = host.sampan(&["checks", "--format", "json"]).json();
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| {
        let mut measured = row["measured"].as_object().unwrap().clone();
        measured.remove("type");
        let value = measured.into_values().next().unwrap();
        let text = |key: &str| row[key].as_str().unwrap().to_string();
        (text("check"), (text("state"), value))
    })
    .collect()
}

#[track_caller]
fn await_results(host: &Host, wanted: &[(&str, &str, Value)]) {
    let wanted: BTreeMap<_, _> = wanted
        .iter()
        .map(|(name, state, value)| (name.to_string(), (state.to_string(), value.clone())))
        .collect();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(40);
    let mut found = results(host);
    while found != wanted {
        assert!(
            std::time::Instant::now() < end,
            "{found:#?}\nwanted {wanted:#?}"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
        found = results(host);
    }
}

/// Lines of the pod's events without the time.
fn events(host: &Host) -> Vec<String> {
    let text = fs::read_to_string(host.pod().join("events.log")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(_, rest)| rest.to_string()).collect()
}

fn message(host: &Host, check: &str) -> String {
    let row = host.row("web");
    row["checks"][check]["message"]
        .as_str()
        .unwrap()
        .to_string()
}

#[test]
fn every_kind_sees_what_is_there() {
    let host = Host::new();
    let before = host.snapshot();
    let checks = "
        page: {http: {port: 8080, path: /index.html}, interval: 200ms}
        directory: {http: {port: 8080}, interval: 200ms}
        moved: {http: {port: 8080, path: /cgi-bin/moved}, interval: 200ms}
        open: {tcp: {port: 8080}, interval: 200ms}
        exact: {command: [test, -e, /www/index.html], interval: 200ms}
        shell: {command: 'cd /www && ls | grep -q index', interval: 200ms}
        host: {http: {port: 8080, path: /cgi-bin/host, headers: {Host: a.example}}, interval: 200ms}
        endless: {http: {port: 8080, path: /cgi-bin/endless}, interval: 200ms}
        odd: {http: {port: 8080, path: /cgi-bin/odd, statuses: [418]}, interval: 200ms}
        unfollowed: {http: {port: 8080, path: /cgi-bin/moved, statuses: [302]}, interval: 200ms}
        away: {http: {port: 8080, path: /cgi-bin/away}, interval: 200ms}
        other-host: {kind: check, http: {port: 8080, path: /cgi-bin/host}, delay: 1s}
        missing: {kind: check, http: {port: 8080, path: /missing}, delay: 1s}
        not-listed: {kind: check, http: {port: 8080, statuses: [204]}, delay: 1s}
        round: {kind: check, http: {port: 8080, path: /cgi-bin/round}, delay: 1s}
        busy: {kind: check, http: {port: 8080, path: /cgi-bin/busy}, delay: 1s}
        slow: {kind: check, http: {port: 8080, path: /cgi-bin/slow}, timeout: 300ms, delay: 1s}
        silent: {kind: check, http: {port: 8081}, delay: 1s}
        no-tls: {kind: check, http: {port: 8080, scheme: https}, delay: 1s}
        closed: {kind: check, tcp: {port: 8081}, delay: 1s}
        closed6: {kind: check, tcp: {port: 8080, protocol: IPv6}, delay: 1s}
        code: {kind: check, command: 'echo so; echo much >&2; exit 3', delay: 1s}
        signal: {kind: check, command: 'kill -9 $$$$', delay: 1s}
        limit: {kind: check, command: 'echo begun; sleep 1000 & sleep 1000', timeout: 300ms, delay: 1s}
        no-program: {kind: check, command: [/nothing], delay: 1s}
        own-124: {kind: check, command: exit 124, delay: 1s}
        own-125: {kind: check, command: exit 125, delay: 1s}
        holder: {kind: check, command: 'sleep 1000 & echo left', delay: 1s}
        loud: {kind: check, command: 'seq 100000; exit 1', delay: 1s}
    ";
    host.compose(&format!(
        "services:\n{}",
        web("127.0.0.1:8080", NONE, checks)
    ));
    host.sampan(&["up", "--wait"]).ok();
    let ok = |name, value| (name, "passing", value);
    let no = |name, value| (name, "failing", value);
    await_results(
        &host,
        &[
            ok("page", json!(200)),
            ok("directory", json!(200)),
            ok("moved", json!(200)),
            ok("open", json!(true)),
            ok("exact", json!(0)),
            ok("shell", json!(0)),
            ok("host", json!(200)),
            ok("endless", json!(200)),
            ok("odd", json!(418)),
            ok("unfollowed", json!(302)),
            ok("away", json!(302)),
            no("other-host", json!(404)),
            no("missing", json!(404)),
            no("not-listed", json!(200)),
            no("round", json!(null)),
            no("busy", json!(503)),
            no("slow", json!(null)),
            no("silent", json!(null)),
            no("no-tls", json!(null)),
            no("closed", json!(false)),
            no("closed6", json!(false)),
            no("code", json!(3)),
            no("signal", json!(137)),
            no("limit", json!(null)),
            no("no-program", json!(127)),
            no("own-124", json!(124)),
            no("own-125", json!(125)),
            ok("holder", json!(0)),
            no("loud", json!(1)),
        ],
    );
    for (check, text) in [
        ("other-host", "not found: 127.0.0.1:8080"),
        ("round", "more than 10 redirects"),
        ("busy", "service unavailable: no database"),
        ("slow", "no answer within 300ms"),
        (
            "silent",
            "connect to 127.0.0.1:8081: Connection refused (os error 111)",
        ),
        (
            "closed6",
            "connect to [::1]:8080: Connection refused (os error 111)",
        ),
        ("code", "so\nmuch"),
        ("limit", "no answer within 300ms\nbegun"),
        ("holder", "left"),
    ] {
        assert_eq!(message(&host, check), text, "{check}");
    }
    assert!(message(&host, "no-tls").starts_with("127.0.0.1:8080: tls: "));
    let loud = message(&host, "loud");
    assert!(
        loud.len() <= 1024 && loud.ends_with("99999\n100000"),
        "{loud}"
    );
    // what a program that took too long had started is gone; the two are what `holder` left, and the server's own
    let left = host.shell("web", "ps -o args | grep -c '^sleep 1000' || true");
    assert_eq!(left, "2", "{}", host.shell("web", "ps -o args"));
    let row = host.row("web");
    assert_eq!(
        (&row["health"], &row["ready"]),
        (&json!("healthy"), &json!(true))
    );
    // each said once, however often it ran
    let told = events(&host);
    let of = |check: &str| {
        let begin = format!("web check {check}: ");
        let mut of = told.iter().filter_map(|line| line.strip_prefix(&begin));
        (of.next().map(str::to_string), of.count())
    };
    for (check, text) in [
        ("code", "exit code 3: so\\nmuch"),
        (
            "closed",
            "not connected: connect to 127.0.0.1:8081: Connection refused (os error 111)",
        ),
        ("missing", "status 404: not found"),
        ("limit", "no result: no answer within 300ms\\nbegun"),
    ] {
        let (first, more) = of(check);
        let first = first.unwrap();
        assert!(
            first.starts_with(text) && more == 0,
            "{check}: {first} and {more} more"
        );
    }
    let table = host.sampan(&["checks", "web"]).ok();
    let line = table.lines().find(|line| line.contains(" code ")).unwrap();
    assert!(line.ends_with("exit code 3: so much"), "{table}");
    host.down(&before);
}

#[test]
fn readiness_comes_and_goes() {
    let host = Host::new();
    let before = host.snapshot();
    let checks = "ready: {kind: readiness, command: 'test -e /ready && echo yes || { echo no; false; }', interval: 50ms, \
                  consecutive_failures: 2, success_threshold: 2, delay: 0s, grace_period: 1h}";
    let after = format!(
        "  after:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    network_mode: none\n    stop_grace_period: 0s\n    \
         depends_on: {{web: {{condition: service_ready}}}}\n"
    );
    host.compose(&(idle("", checks) + &after));
    let up = host.start(&["up", "--wait"]);
    until("web runs", || {
        let pod = host.pod().join("pod.json").exists();
        (pod && host.row("web")["status"] == "running").then_some(())
    });
    until("it was tried", || {
        (message(&host, "ready") == "no").then_some(())
    });
    let row = host.row("web");
    assert_eq!(
        (&row["ready"], &row["health"]),
        (&json!(false), &json!("none"))
    );
    assert_eq!(row["checks"]["ready"]["failures"], 0);
    assert_eq!(host.row("after")["status"], "waiting");
    assert!(host.sampan(&["ps"]).ok().contains("(not ready)"));
    host.shell("web", "touch /ready");
    assert_eq!(up.wait().code, 0);
    assert_eq!(host.row("after")["status"], "running");
    assert!(!host.sampan(&["ps"]).ok().contains("(not ready)"));
    host.shell("web", "rm /ready");
    host.await_row("web", "ready", false);
    host.shell("web", "touch /ready");
    host.await_row("web", "ready", true);
    let told = events(&host);
    assert_eq!(
        told,
        [
            "web started",
            "web is ready",
            "after started",
            "web is not ready: ready failed 2 times: exit code 1: no",
            "web is ready",
        ]
    );
    host.sampan(&["stop", "web"]).ok();
    assert_eq!(host.row("web")["ready"], false);
    host.down(&before);
}

#[test]
fn what_never_gets_ready_fails_who_waits() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&idle(
        "",
        "door: {kind: readiness, tcp: {port: 5}, delay: 0s, interval: 20ms, consecutive_failures: 2}",
    ));
    let ended = host.sampan(&["up", "--wait"]);
    assert_eq!(
        ended.fails(1).lines().last(),
        Some(
            "sampan: service web is not ready: door failed 2 times: not connected: connect to 127.0.0.1:5: Connection refused (os error 111)"
        )
    );
    host.assert_clean(&before);
}

#[test]
fn failures_count_after_grace_and_recovery_is_told() {
    let host = Host::new();
    let before = host.snapshot();
    // compose's own and two more: one is enough to make it unhealthy, all are needed to make it healthy
    let checks = "
        slow: {command: [test, -e, /slow], delay: 0s, interval: 50ms, grace_period: 2s, consecutive_failures: 3}
        open: {command: [test, -e, /open], delay: 0s, interval: 50ms, grace_period: 1h}
    ";
    host.compose(&idle("    healthcheck: {test: [CMD, test, -e, /own], interval: 50ms, start_period: 1h, start_interval: 50ms}\n", checks));
    host.sampan(&["up", "-d"]).ok();
    host.await_row("web", "health", "unhealthy");
    let row = host.row("web");
    let started: jiff::Timestamp = row["started"].as_str().unwrap().parse().unwrap();
    let since: jiff::Timestamp = row["checks"]["slow"]["since"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(since.duration_since(started).as_millis() >= 2000, "{row:#}");
    assert_eq!(row["checks"]["open"]["failures"], 0);
    assert_eq!(row["ready"], false);
    host.shell("web", "touch /slow");
    host.await_row("web", "health", "starting");
    host.shell("web", "touch /open");
    until("open", || {
        (results(&host)["open"].0 == "passing").then_some(())
    });
    assert_eq!(host.row("web")["health"], "starting");
    host.shell("web", "touch /own");
    host.await_row("web", "health", "healthy");
    assert_eq!(host.row("web")["ready"], true);
    host.shell("web", "rm /open");
    host.await_row("web", "health", "unhealthy");
    host.shell("web", "touch /open");
    host.await_row("web", "health", "healthy");
    assert_eq!(
        events(&host),
        [
            "web started",
            "web is unhealthy: slow failed 3 times: exit code 1",
            "web is healthy",
            "web is unhealthy: open failed 3 times: exit code 1",
            "web is healthy",
        ]
    );
    host.down(&before);
}

#[test]
fn a_pause_is_kept_and_ends() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&idle(
        "",
        "own: {command: 'echo x >> /count; test -e /good', delay: 0s, interval: 20ms, grace_period: 1h, consecutive_failures: 1}",
    ));
    host.sampan(&["up", "-d"]).ok();
    host.shell("web", "touch /good");
    host.await_row("web", "health", "healthy");
    host.sampan(&["checks", "--snooze", "3600"]).ok();
    host.shell("web", "rm /good");
    assert!(host.sampan(&["ps"]).ok().contains("(not checked)"));
    kill_supervisor(&host);
    // asks the next one, which must know
    host.sampan(&["kill", "-s", "CONT", "web"]).ok();
    let count = || host.shell("web", "wc -l < /count");
    let first = count();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(count(), first);
    assert_eq!(host.row("web")["health"], "healthy");
    host.sampan(&["checks", "--snooze", "0", "web"]).ok();
    host.await_row("web", "health", "unhealthy");
    host.sampan(&["checks", "--snooze", "1"]).ok();
    host.await_row("web", "snoozed", Value::Null);
    let mut told = events(&host);
    told.retain(|line| !line.starts_with("web is not checked until "));
    assert_eq!(
        told,
        [
            "web started",
            "web is healthy",
            "web is checked again",
            "web is unhealthy: own failed: exit code 1",
            "web is checked again",
        ]
    );
    let ended = host.sampan(&["checks", "nothing"]);
    ended.fails(1);
    host.down(&before);
}

fn kill_supervisor(host: &Host) {
    let path = host.pod().join("supervisor.json");
    let text = fs::read_to_string(&path).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    let pid = Pid::from_raw(record["pid"].as_i64().unwrap() as i32);
    kill(pid, Signal::SIGKILL).unwrap();
    until("another supervisor", || {
        let text = fs::read_to_string(&path).unwrap();
        let record: Value = serde_json::from_str(&text).ok()?;
        (record["pid"] != json!(pid.as_raw())).then_some(())
    });
}

#[test]
fn a_supervisor_that_is_killed_leaves_its_counts() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&idle(
        "",
        "own: {command: 'echo x >> /count; test -e /good', delay: 0s, interval: 300ms, consecutive_failures: 8}\n\
         slow: {kind: check, command: sleep 1000, timeout: 0s}",
    ));
    host.sampan(&["up", "-d"]).ok();
    let failures = || {
        host.row("web")["checks"]["own"]["failures"]
            .as_u64()
            .unwrap()
    };
    let mut last = 0;
    for _ in 0..3 {
        last = until("one more failure", || {
            Some(failures()).filter(|now| *now > last)
        });
        kill_supervisor(&host);
        assert!(failures() >= last);
    }
    host.await_row("web", "health", "unhealthy");
    let row = host.row("web");
    let count: u64 = host.shell("web", "wc -l < /count").parse().unwrap();
    let known = row["checks"]["own"]["failures"].as_u64().unwrap();
    // one may have been under way each time
    assert!(
        known >= 8 && count >= known && count <= failures() + 4,
        "{known} of {count}"
    );
    host.shell("web", "touch /good");
    host.await_row("web", "health", "healthy");
    // one whose question nobody waits for any more is told to end
    until("one check without limit", || {
        let count = host.shell("web", "ps -o args | grep -c '^sleep 1000' || true");
        (count == "2").then_some(())
    });
    let told = events(&host);
    let told: Vec<&str> = told
        .iter()
        .filter(|line| line.contains("health"))
        .map(String::as_str)
        .collect();
    assert_eq!(
        told,
        [
            "web is unhealthy: own failed 8 times: exit code 1",
            "web is healthy"
        ]
    );
    host.down(&before);
}

#[test]
fn addresses_of_the_pod_and_of_the_host() {
    let host = Host::new();
    let before = host.snapshot();
    // only there, not on the loopback
    let network =
        "    networks: {front: {ipv4_address: 10.91.7.10, ipv6_address: 'fd00:91:7::10'}}\n";
    let networks = "networks:\n  front: {enable_ipv6: true, ipam: {config: [{subnet: 10.91.7.0/24}, {subnet: 'fd00:91:7::/64'}]}}\n";
    for (address, checks) in [
        (
            "10.91.7.10:80",
            "there: {http: {port: 80, host: 10.91.7.10}, interval: 100ms}\n\
             loopback: {kind: check, tcp: {port: 80}}\n\
             inward: {kind: check, http: {port: 80, host: 10.91.7.10, path: /cgi-bin/moved}, interval: 100ms}",
        ),
        (
            "[fd00:91:7::10]:80",
            "there: {http: {port: 80, host: 'fd00:91:7::10'}, interval: 100ms}\n\
             loopback: {kind: check, tcp: {port: 80, protocol: IPv6}}\n\
             inward: {kind: check, http: {port: 80, host: 'fd00:91:7::10', path: /cgi-bin/moved}, interval: 100ms}",
        ),
    ] {
        host.compose(&format!(
            "services:\n{}{networks}",
            web(address, network, checks)
        ));
        host.sampan(&["up", "--wait"]).ok();
        await_results(
            &host,
            &[
                ("there", "passing", json!(200)),
                ("loopback", "failing", json!(false)),
                ("inward", "passing", json!(200)),
            ],
        );
        host.sampan(&["down"]).ok();
    }
    // the loopback of the sixth version, and of the host
    for (address, network, checks) in [
        (
            "[::1]:80",
            NONE,
            "there: {http: {port: 80, protocol: IPv6, path: /cgi-bin/moved}, interval: 100ms}",
        ),
        (
            "127.0.0.1:18091",
            "    network_mode: host\n",
            "there: {http: {port: 18091}, interval: 100ms}",
        ),
    ] {
        host.compose(&format!("services:\n{}", web(address, network, checks)));
        host.sampan(&["up", "--wait"]).ok();
        await_results(&host, &[("there", "passing", json!(200))]);
        host.sampan(&["down"]).ok();
    }
    host.down(&before);
}

#[test]
fn a_certificate_need_not_be_trusted() {
    let host = Host::empty();
    host.import("nginx");
    let before = host.snapshot();
    let file = |name: &str| host.project.join(name).to_str().unwrap().to_string();
    // signed by itself, and somebody else's
    let files = [file("key.pem"), file("cert.pem")];
    let mut arguments = vec![
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=other.example",
    ];
    arguments.extend(["-keyout", &files[0], "-out", &files[1]]);
    tool("openssl", &arguments);
    host.write(
        "tls.conf",
        "server { listen 80; listen [::]:80; return 301 https://$host:8443$request_uri; }
server { listen 8443 ssl; listen [::]:8443 ssl; server_name shop.example; ssl_certificate /tls/cert.pem; ssl_certificate_key /tls/key.pem;
         location / { return 204; } location /down { return 503 'no backend'; } }\n",
    );
    host.compose(
        "services:
  web:
    image: localhost/nginx
    network_mode: none
    stop_grace_period: 0s
    volumes: ['./tls.conf:/etc/nginx/conf.d/default.conf:ro', '.:/tls:ro']
    x-sampan:
      checks:
        direct: {http: {port: 8443, scheme: https}, interval: 100ms}
        six: {http: {port: 8443, scheme: https, protocol: IPv6}, interval: 100ms}
        moved: {http: {port: 80, path: '/a?b=c'}, interval: 100ms}
        moved6: {http: {port: 80, protocol: IPv6}, interval: 100ms}
        named: {http: {port: 80, headers: {Host: shop.example}}, interval: 100ms}
        down: {kind: check, http: {port: 8443, scheme: https, path: /down}, delay: 1s}
        plain: {kind: check, http: {port: 8443}, delay: 1s}
",
    );
    host.sampan(&["up", "--wait"]).ok();
    await_results(
        &host,
        &[
            ("direct", "passing", json!(204)),
            ("six", "passing", json!(204)),
            ("moved", "passing", json!(204)),
            ("moved6", "passing", json!(204)),
            ("named", "passing", json!(204)),
            ("down", "failing", json!(503)),
            ("plain", "failing", json!(400)),
        ],
    );
    assert_eq!(message(&host, "down"), "service unavailable: no backend");
    host.down(&before);
}

#[test]
fn hundreds_of_checks_cost_little() {
    let host = Host::new();
    let before = host.snapshot();
    let check = |index: usize| format!("c{index}: {{tcp: {{port: 8080}}, interval: 1s}}\n");
    let checks: String = (0..120).map(check).collect();
    let one = web("127.0.0.1:8080", NONE, &checks);
    let two = one
        .replace("  web:", "  more:")
        .replace("8080' -h", "8081' -h");
    host.compose(&format!("services:\n{one}{two}"));
    host.sampan(&["up", "--wait"]).ok();
    let pid = |name: &str| {
        let text = fs::read_to_string(host.pod().join(name)).unwrap();
        let record: Value = serde_json::from_str(&text).unwrap();
        record["pid"].as_i64().unwrap()
    };
    let supervisor = pid("supervisor.json");
    let status = fs::read_to_string(format!("/proc/{supervisor}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    // one thread, and what passes leaves no trace
    assert_eq!(field("Threads:"), 1, "{status}");
    let written = || {
        fs::metadata(host.pod().join("services/web/status.json"))
            .unwrap()
            .modified()
            .unwrap()
    };
    let (first, bytes) = (
        written(),
        fs::read(host.pod().join("services/web/status.json"))
            .unwrap()
            .len(),
    );
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(written(), first, "{bytes}");
    eprintln!(
        "supervisor with 240 checks: {} kB, anonymous {} kB",
        field("VmRSS:"),
        field("RssAnon:")
    );
    host.down(&before);
}
