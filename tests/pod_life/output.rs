//! What commands print: `ps` and `logs`.

use serde_json::json;
use sha2::{Digest, Sha256};

use super::pod_support::{BUSYBOX, Host, until};

fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn ps_tells_every_field() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "
x-image: &image {{image: {BUSYBOX}, stop_signal: KILL}}
services:
  web:
    <<: *image
    command: [sleep, '1000']
    ports: ['127.0.0.1:18081:80', '18082:53/udp']
    healthcheck: {{test: [CMD, 'true']}}
  hog:
    <<: *image
    # as large as it gets: memory that is written to
    command: [sh, -c, 'tail -c 200m /dev/zero']
    mem_limit: 16m
  once:
    <<: *image
    command: ['false']
"
    ));
    host.sampan(&["up", "-d", "--wait"]).ok();
    host.await_row("hog", "status", "exited");
    host.await_row("once", "status", "exited");
    let name = host.name.as_str();

    let rows = host.sampan(&["ps", "--format", "json"]).json();
    assert_eq!(rows.as_array().unwrap().len(), 1);
    let web = &rows[0];
    let mut keys: Vec<_> = web.as_object().unwrap().keys().cloned().collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "addresses",
            "cause",
            "checks",
            "error",
            "exit_code",
            "finished",
            "health",
            "id",
            "image",
            "oom_killed",
            "pid",
            "pod",
            "ports",
            "ready",
            "removing",
            "restarts",
            "service",
            "signal",
            "snoozed",
            "started",
            "status",
            "task",
            "unwritten",
            "version"
        ]
    );
    let port = |ip: serde_json::Value, host: u16, inside: u16, protocol: &str| {
        json!({"service": "web", "mapping": {
            "hostPort": host, "containerPort": inside, "protocol": protocol, "hostIP": ip}})
    };
    let mut ports = web["ports"].as_array().unwrap().clone();
    for port in &mut ports {
        // left out when there is none
        let mapping = port["mapping"].as_object_mut().unwrap();
        mapping.entry("hostIP").or_insert(json!(null));
    }
    assert_eq!(
        ports,
        [
            port(json!("127.0.0.1"), 18081, 80, "tcp"),
            port(json!(null), 18082, 53, "udp")
        ]
    );
    for (key, value) in [
        ("version", json!(1)),
        ("pod", json!(name)),
        ("service", json!("web")),
        ("id", json!(format!("{name}-web"))),
        ("status", json!("running")),
        ("health", json!("healthy")),
        ("exit_code", json!(null)),
        ("oom_killed", json!(false)),
        ("addresses", json!(["10.190.0.2/24"])),
    ] {
        assert_eq!(web[key], value, "{key}");
    }
    let pid = web["pid"].as_i64().unwrap();
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(line, "sleep\x001000\0");

    let hog = host.row("hog");
    assert_eq!(
        (&hog["exit_code"], &hog["oom_killed"]),
        (&json!(137), &json!(true))
    );
    let once = host.row("once");
    assert_eq!(
        (&once["exit_code"], &once["oom_killed"]),
        (&json!(1), &json!(false))
    );

    let table = host.sampan(&["ps", "-a"]).ok();
    let row = |service: &str| {
        table
            .lines()
            .find(|line| line.starts_with(service))
            .unwrap()
            .to_string()
    };
    assert!(
        row("hog").contains("exited (137)") && row("hog").ends_with("ago, out of memory"),
        "{table}"
    );
    assert!(row("web").contains("(healthy)"), "{table}");
    assert!(
        row("web").ends_with("127.0.0.1:18081->80/tcp, *:18082->53/udp"),
        "{table}"
    );
    assert_eq!(host.sampan(&["ps", "-a", "-q"]).ok(), "hog\nonce\nweb\n");
    assert_eq!(host.sampan(&["ps", "-a", "-q", "once"]).ok(), "once\n");

    host.sampan(&["run", "-d", "--name", "beside", BUSYBOX, "sleep", "1000"])
        .ok();
    let all = host.sampan(&["ps", "-A", "--format", "json"]).json();
    let pods: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["pod"].as_str().unwrap())
        .collect();
    assert_eq!(pods, ["beside", name]);
    host.sampan(&["-p", "beside", "down", "-t", "0"]).ok();
    host.down(&before);
}

#[test]
fn logs_in_every_form() {
    let host = Host::new();
    let before = host.snapshot();
    // the pauses make the order of the two streams certain
    let script =
        "echo one; usleep 30000; echo two >&2; usleep 30000; echo three; usleep 30000; printf four";
    host.compose(&format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    command: [sh, -c, \"{script}\"]\n  quiet:\n    image: {BUSYBOX}\n    command: ['true']\n"
    ));
    host.sampan(&["up", "-d"]).ok();
    host.sampan(&["wait"]).ok();
    let logs = |arguments: &[&str]| host.sampan(&[&["logs"], arguments].concat());
    assert_eq!(
        logs(&[]).ok(),
        "web   | one\nweb   | two\nweb   | three\nweb   | four\n"
    );
    assert_eq!(
        logs(&["web"]).ok(),
        "web | one\nweb | two\nweb | three\nweb | four\n"
    );
    assert_eq!(
        logs(&["--tail", "2", "web"]).ok(),
        "web | three\nweb | four\n"
    );
    assert_eq!(logs(&["-n", "0", "web"]).ok(), "");
    let raw = logs(&["--no-log-prefix", "web"]);
    assert_eq!(
        (raw.ok().as_str(), raw.stderr.as_str()),
        ("one\nthree\nfour", "two\n")
    );
    let timed = logs(&["-t", "web"]).ok();
    let times: Vec<&str> = timed
        .lines()
        .map(|line| line.split(' ').nth(2).unwrap())
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(
        times
            .iter()
            .all(|t| t.len() == "2026-01-02T15:04:05.123456789Z".len()),
        "{times:?}"
    );
    assert_eq!(
        logs(&["--since", times[2], "web"]).ok(),
        "web | three\nweb | four\n"
    );
    assert_eq!(logs(&["--since", "1h", "web"]).ok().lines().count(), 4);
    assert_eq!(logs(&["--since", "2100-01-01T00:00:00Z"]).ok(), "");
    assert_eq!(
        logs(&["nobody"]).fails(1),
        format!("sampan: pod {} has no service nobody\n", host.name)
    );
    let since = logs(&["--since", "yesterday"]);
    let text = since.fails(1);
    assert!(
        text.starts_with("sampan: --since yesterday: a time such as 2026-01-02T15:04:05Z or how long ago such as 10m"),
        "{text}"
    );
    assert!(
        logs(&["--tail", "x"])
            .fails(1)
            .starts_with("sampan: --tail x: a number or `all`")
    );
    host.down(&before);
}

#[test]
fn logs_follow_until_the_pod_is_gone() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    stop_signal: KILL\n    \
         command: [sh, -c, 'echo first; until test -e /go; do usleep 10000; done; echo second; exec sleep 1000']\n"
    ));
    host.sampan(&["up", "-d"]).ok();
    let follow = host.start(&["logs", "-f"]);
    follow.await_out("web | first\n");
    host.sampan(&["exec", "web", "touch", "/go"]).ok();
    follow.await_out("web | first\nweb | second\n");
    host.sampan(&["restart"]).ok();
    follow.await_out("web | first\nweb | second\nweb | first\nweb | second\n");
    host.sampan(&["down"]).ok();
    let ended = follow.wait();
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    host.assert_clean(&before);
}

#[test]
fn output_is_kept_byte_by_byte() {
    let host = Host::new();
    let before = host.snapshot();
    // ten million bytes of every kind, with few line feeds, and one line of two million
    let mut seed = 1u32;
    let mut bytes: Vec<u8> = (0..8_000_000)
        .map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        })
        .collect();
    bytes.extend(std::iter::repeat_n(b'x', 2_000_000));
    host.write("data", &bytes);
    host.compose(&format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    command: [sh, -c, 'cat /data; cat /data >&2']\n    volumes: ['./data:/data:ro']\n"
    ));
    host.sampan(&["up", "-d"]).ok();
    host.sampan(&["wait"]).ok();
    let both = until("all of it is there", || {
        let ended = host.sampan(&["logs", "--no-log-prefix"]);
        (ended.stdout.len() >= bytes.len()).then_some(ended)
    });
    assert_eq!(hex(&both.stdout), hex(&bytes));
    assert_eq!(hex(&host.log("web", "stderr")), hex(&bytes));
    host.down(&before);
}
