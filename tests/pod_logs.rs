//! What a pod keeps of its services' output, byte by byte: bounds, kills while files change, followers. Needs root and the Debian
//! packages iproute2 and nftables.

mod pod_support;

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pod_support::{BUSYBOX, Host, until};

/// The folder of a service's logs.
fn data(host: &Host, service: &str) -> PathBuf {
    host.root.join("pods").join(&host.name).join(service)
}

/// The parts of a stream's log: where each begins, and its file.
fn files(host: &Host, service: &str, stream: &str) -> Vec<(u64, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data(host, service)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(middle) = name
            .strip_prefix(stream)
            .and_then(|rest| rest.strip_suffix("log"))
        else {
            continue;
        };
        let base = match middle.trim_matches('.') {
            "" => 0,
            digits => digits.parse().unwrap(),
        };
        found.push((base, path));
    }
    found.sort();
    found
}

/// The same with their bytes, once nothing changes any more.
fn parts(host: &Host, service: &str, stream: &str) -> Vec<(u64, Vec<u8>)> {
    let read = |(base, path)| (base, fs::read(path).unwrap());
    files(host, service, stream).into_iter().map(read).collect()
}

/// What is left of `all` in parts of `size` bytes, of which `count` are kept.
fn kept(all: &[u8], size: usize, count: usize) -> Vec<(u64, Vec<u8>)> {
    let mut parts: Vec<_> = all
        .chunks(size)
        .enumerate()
        .map(|(i, part)| ((i * size) as u64, part.to_vec()))
        .collect();
    parts.split_off(parts.len().saturating_sub(count))
}

/// Parts are equal; if not, the first that is not is shown.
#[track_caller]
fn assert_same(found: Vec<(u64, Vec<u8>)>, expected: Vec<(u64, Vec<u8>)>) {
    let text = |part: Option<&(u64, Vec<u8>)>| {
        part.map(|(base, bytes)| format!("from {base}: {}", String::from_utf8_lossy(bytes)))
    };
    for i in 0..found.len().max(expected.len()) {
        assert_eq!(text(found.get(i)), text(expected.get(i)), "part {i}");
    }
}

fn supervisor(host: &Host) -> i32 {
    let text = fs::read(host.pod().join("supervisor.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
    record["pid"].as_i64().unwrap() as i32
}

/// Kills the supervisor and waits for the next one.
fn strike(host: &Host) {
    let pid = supervisor(host);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until("another supervisor", || {
        (supervisor(host) != pid).then_some(())
    });
}

/// Lines of `seq`.
fn numbers(last: u32) -> Vec<u8> {
    (1..=last)
        .map(|i| format!("{i}\n"))
        .collect::<String>()
        .into_bytes()
}

fn ended(host: &Host, service: &str) {
    host.await_row(service, "exit_code", 0);
}

#[test]
fn a_log_has_its_bound_to_the_byte() {
    let host = Host::new();
    host.compose(&format!(
        "services:
  all: {{image: {BUSYBOX}, command: seq 1 20000}}
  some: {{image: {BUSYBOX}, command: seq 1 20000, logging: {{options: {{max-size: 10k, max-file: '3'}}}}}}
  one: {{image: {BUSYBOX}, command: seq 1 20000, logging: {{options: {{max-size: 10k}}}}}}
  full: {{image: {BUSYBOX}, command: seq -w 1 2000, logging: {{options: {{max-size: 5k, max-file: 2}}}}}}
  none: {{image: {BUSYBOX}, command: seq 1 20000, logging: {{driver: none}}}}
"
    ));
    host.sampan(&["up", "-d"]).ok();
    for service in ["all", "some", "one", "full", "none"] {
        ended(&host, service);
    }
    let all = numbers(20000);
    assert_eq!(all.len(), 108_894);
    assert_same(parts(&host, "all", "stdout"), vec![(0, all.clone())]);
    assert_same(parts(&host, "some", "stdout"), kept(&all, 10_000, 3));
    assert_same(parts(&host, "one", "stdout"), kept(&all, 10_000, 1));
    // one that is full is kept until there is more
    let full: String = (1..=2000).map(|i| format!("{i:04}\n")).collect();
    assert_same(
        parts(&host, "full", "stdout"),
        kept(full.as_bytes(), 5000, 2),
    );
    assert!(parts(&host, "none", "stdout").is_empty());
    let logs = |service: &str| host.sampan(&["logs", "--no-log-prefix", service]);
    assert!(logs("all").stdout == all);
    assert!(logs("some").stdout == all[80_000..]);
    assert!(logs("one").stdout == all[100_000..]);
    let none = logs("none");
    assert_eq!(none.ok(), "");
    assert_eq!(
        none.stderr,
        "sampan: warning: service none keeps no logs: its file says logging: {driver: none}\n"
    );
    host.sampan(&["down"]).ok();
}

#[test]
fn a_supervisor_that_is_killed_while_a_log_changes_its_file_loses_nothing() {
    let host = Host::new();
    let script = "i=0; while [ ! -e /tmp/stop ]; do echo line $$i; echo error $$i >&2; i=$$((i+1)); usleep 1000; done";
    host.compose(&format!(
        "services:
  kept: {{image: {BUSYBOX}, command: [sh, -c, '{script}'], logging: {{options: {{max-size: '1000', max-file: 1000}}}}}}
  tiny: {{image: {BUSYBOX}, command: [sh, -c, '{script}'], logging: {{options: {{max-size: '50', max-file: 7}}}}}}
"
    ));
    host.sampan(&["up", "-d"]).ok();
    let follower = host.start(&["logs", "-f", "--no-log-prefix", "kept"]);
    let mut random = fastrand::Rng::new();
    for round in 0..40 {
        match round % 4 {
            // at any moment
            0 => std::thread::sleep(std::time::Duration::from_micros(random.u64(0..100_000))),
            // as close to a new file as can be
            _ => {
                let newest = || files(&host, "tiny", "stdout").last().map(|part| part.0);
                let before = newest();
                until("a new part", || (newest() != before).then_some(()));
            }
        }
        strike(&host);
    }
    for service in ["kept", "tiny"] {
        // it may be killed with the service, which ends at once
        host.sampan(&["exec", service, "touch", "/tmp/stop"]);
        ended(&host, service);
        for (stream, word) in [("stdout", "line"), ("stderr", "error")] {
            let (size, count) = match service {
                "kept" => (1000, 1000),
                _ => (50, 7),
            };
            let found = parts(&host, service, stream);
            let tail = found.iter().flat_map(|part| part.1.clone()).collect();
            let tail = String::from_utf8(tail).unwrap();
            let last = tail.trim_end().rsplit(' ').next().unwrap();
            let last: u32 = last.parse().unwrap();
            let all: String = (0..=last).map(|i| format!("{word} {i}\n")).collect();
            assert_same(found, kept(all.as_bytes(), size, count));
        }
    }
    let all = host.sampan(&["logs", "--no-log-prefix", "kept"]).ok();
    until("the follower to have all", || {
        (follower.out().len() >= all.len()).then_some(())
    });
    assert!(follower.out() == all);
    host.sampan(&["down"]).ok();
    drop(follower);
}

#[test]
fn a_follower_passes_over_the_ends_of_files() {
    let host = Host::new();
    // a fifo of its own, so that nothing comes before the follower is there
    host.compose(&format!(
        "services:
  web:
    image: {BUSYBOX}
    command: [sh, -c, 'mkfifo /tmp/go; echo begin; read x < /tmp/go; seq 1 200000; read x < /tmp/go']
    logging: {{options: {{max-size: '9999', max-file: 200}}}}
    stop_grace_period: 0s
"
    ));
    host.sampan(&["up", "-d"]).ok();
    let follower = host.start(&["logs", "-f", "--no-log-prefix", "web"]);
    until("the first line", || {
        (follower.out() == "begin\n").then_some(())
    });
    host.shell("web", "echo > /tmp/go");
    let all = format!("begin\n{}", String::from_utf8(numbers(200_000)).unwrap());
    until("all lines", || {
        (follower.out().len() >= all.len()).then_some(())
    });
    assert!(follower.out() == all);
    assert_eq!(follower.err(), "");
    assert_same(
        parts(&host, "web", "stdout"),
        kept(all.as_bytes(), 9999, 200),
    );
    host.sampan(&["down"]).ok();
}

#[test]
fn a_log_may_be_larger_than_memory() {
    let host = Host::new();
    host.compose(&format!(
        "services:
  web:
    image: {BUSYBOX}
    command: [sh, -c, 'seq 1 900000; echo -n end']
"
    ));
    host.sampan(&["up", "-d"]).ok();
    ended(&host, "web");
    let mut all = numbers(900_000);
    all.extend_from_slice(b"end");
    // as lines in memory these logs are more than twice as large
    let logs = |arguments: &[&str]| {
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", "ulimit -v 65536; exec \"$@\" 2>&1", "sh"])
            .arg(env!("CARGO_BIN_EXE_sampan"))
            .args(["logs", "--no-log-prefix"])
            .args(arguments);
        host.surround(&mut command);
        pod_support::run(&mut command, b"").stdout
    };
    let is = |found: Vec<u8>, expected: &[u8], what: &str| {
        let text = |bytes: &[u8]| {
            let end = &bytes[bytes.len().saturating_sub(200)..];
            (bytes.len(), String::from_utf8_lossy(end).into_owned())
        };
        assert!(found == expected, "{what}: {:?}", text(&found));
    };
    is(logs(&[]), &all, "all");
    is(logs(&["--since", "1h"]), &all, "since");
    is(
        logs(&["--tail", "800000"]),
        &all[all.len() - numbers_from(100_002, 900_000) - 3..],
        "many",
    );
    is(logs(&["--tail", "3"]), b"899999\n900000\nend", "three");
    is(logs(&["--tail", "0"]), b"", "none");
    host.sampan(&["down"]).ok();
}

/// Bytes of `seq FIRST LAST`.
fn numbers_from(first: u32, last: u32) -> usize {
    numbers(last).len() - numbers(first - 1).len()
}
