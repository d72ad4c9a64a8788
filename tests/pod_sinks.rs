//! Files of `x-sampan.logs`, byte by byte: formats, bounds, kills, full disks and folders that vanish. Needs root and the Debian packages
//! iproute2 and nftables.

mod pod_support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pod_support::{BUSYBOX, Host, until};
use serde_json::{Value, json};

fn read(path: &Path) -> String {
    String::from_utf8(fs::read(path).unwrap_or_default()).unwrap()
}

/// What a file and those before it hold, the oldest first.
fn whole(path: &Path) -> String {
    let mut all = read(path);
    for number in 1.. {
        let before = PathBuf::from(format!("{}.{number}", path.display()));
        if !before.exists() {
            return all;
        }
        all.insert_str(0, &read(&before));
    }
    unreachable!()
}

/// Waits until a file has a content, byte by byte.
#[track_caller]
fn await_content(path: &Path, content: &str) {
    until(&format!("all in {}", path.display()), || {
        (whole(path).len() >= content.len()).then_some(())
    });
    assert_lines(&whole(path), content);
}

/// Texts are equal; if not, the first line that is not is shown.
#[track_caller]
fn assert_lines(found: &str, expected: &str) {
    let mut numbered = found.lines().zip(expected.lines()).enumerate();
    if let Some((i, (a, b))) = numbered.find(|(_, (a, b))| a != b) {
        panic!("line {i}: {a:?}, expected {b:?}");
    }
    assert_eq!(found.len(), expected.len());
}

fn supervisor(host: &Host) -> i32 {
    let record: Value =
        serde_json::from_slice(&fs::read(host.pod().join("supervisor.json")).unwrap()).unwrap();
    record["pid"].as_i64().unwrap() as i32
}

fn numbers(last: u32) -> String {
    (1..=last).map(|i| format!("{i}\n")).collect()
}

#[test]
fn lines_go_to_files_in_three_formats() {
    let host = Host::new();
    std::os::unix::fs::chown(&host.project, Some(1234), Some(2345)).unwrap();
    host.compose(&format!(
        "x-sampan:
  logs:
    - {{file: all.log}}
    - {{stdout: out.json, format: json, labels: [team, none]}}
services:
  a:
    image: {BUSYBOX}
    command: [sh, -c, 'echo one; printf \"two\\n\\nthr\"; sleep 0.1; printf ee']
    labels: {{team: blue, other: x}}
  b:
    image: {BUSYBOX}
    command: [sh, -c, 'echo out; echo err >&2; printf end >&2']
    depends_on: {{a: {{condition: service_completed_successfully}}}}
    logging: {{driver: none}}
    x-sampan:
      logs: [{{stdout: new/b.out, stderr: new/b.err, format: raw}}, {{stderr: b.text}}]
"
    ));
    host.sampan(&["up", "-d"]).ok();
    host.await_row("b", "exit_code", 0);
    // what a run printed is in the files before its end is told
    let path = |name: &str| host.project.join(name);
    let all = read(&path("all.log"));
    let of = |service: &str| -> Vec<&str> {
        let lines = all.lines().filter(|line| line.starts_with(service));
        lines.collect()
    };
    assert_eq!(of("a"), ["a | one", "a | two", "a | ", "a | three"]);
    let mut b = of("b");
    b.sort();
    assert_eq!(b, ["b | end", "b | err", "b | out"]);
    assert_eq!(all.lines().count(), 7);
    let objects: Vec<Value> = read(&path("out.json"))
        .lines()
        .map(|line| {
            let mut object: Value = serde_json::from_str(line).unwrap();
            let time = object["time"].take();
            let time = time.as_str().unwrap();
            time.parse::<jiff::Timestamp>().unwrap();
            assert_eq!(time.len(), "2026-01-02T03:04:05.000000000Z".len());
            object
        })
        .collect();
    let object = |service: &str, message: &str, more: Value| {
        let mut object = json!({"time": null, "pod": host.name, "service": service, "stream": "stdout", "message": message});
        for (key, value) in more.as_object().unwrap() {
            object[key] = value.clone();
        }
        object
    };
    let blue = json!({"labels": {"team": "blue"}});
    assert_eq!(
        objects,
        [
            object("a", "one", blue.clone()),
            object("a", "two", blue.clone()),
            object("a", "", blue.clone()),
            object(
                "a",
                "three",
                json!({"labels": {"team": "blue"}, "partial": true})
            ),
            object("b", "out", json!({})),
        ]
    );
    assert_eq!(read(&path("new/b.out")), "out\n");
    assert_eq!(read(&path("new/b.err")), "err\nend");
    assert_eq!(read(&path("b.text")), "err\nend\n");
    let meta = fs::metadata(path("all.log")).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o777),
        (1234, 2345, 0o644)
    );
    assert_eq!(host.sampan(&["logs", "--no-log-prefix", "b"]).ok(), "");
    host.sampan(&["down"]).ok();
}

#[test]
fn a_bound_holds_and_no_line_is_cut() {
    let host = Host::new();
    host.compose(&format!(
        "services:
  web:
    image: {BUSYBOX}
    command: seq 1 60000
    logging: {{options: {{max-size: 5k}}}}
    x-sampan:
      logs: [{{file: few, max_size: 64k, max_file: 3}}, {{file: all, max_size: 100000, max_file: 50, format: raw}}]
"
    ));
    host.sampan(&["up", "-d"]).ok();
    host.await_row("web", "exit_code", 0);
    let all = numbers(60_000);
    // the log had to let go parts of 5000 bytes meanwhile
    assert_lines(&whole(&host.project.join("all")), &all);
    let mut rest = all.as_str();
    let mut files = Vec::new();
    while !rest.is_empty() {
        let most = rest.len().min(65536);
        let end = rest[..most].rfind('\n').unwrap() + 1;
        files.push(&rest[..end]);
        rest = &rest[end..];
    }
    let names = ["few.2", "few.1", "few"];
    for (name, expected) in names.iter().zip(&files[files.len() - 3..]) {
        assert_lines(&read(&host.project.join(name)), expected);
    }
    assert!(!host.project.join("few.3").exists());
    host.sampan(&["down"]).ok();
}

#[test]
fn a_supervisor_that_is_killed_writes_each_line_once() {
    let host = Host::new();
    let script = "i=0; while [ ! -e /tmp/stop ]; do echo $$0 $$i; echo $$0 error $$i >&2; i=$$((i+1)); usleep 500; done; echo end";
    host.compose(&format!(
        "x-sampan: {{logs: [{{file: all, max_size: 64k, max_file: 1000}}]}}
services:
  a:
    image: {BUSYBOX}
    command: [sh, -c, '{script}', a]
    x-sampan: {{logs: [{{stdout: out, stderr: err, format: raw, max_size: 64k, max_file: 1000}}]}}
  b: {{image: {BUSYBOX}, command: [sh, -c, '{script}', b], logging: {{driver: none}}}}
"
    ));
    host.sampan(&["up", "-d"]).ok();
    let path = |name: &str| host.project.join(name);
    let mut random = fastrand::Rng::new();
    for _ in 0..40 {
        let before = whole(&path("all")).len();
        until("more lines", || {
            (whole(&path("all")).len() > before).then_some(())
        });
        std::thread::sleep(std::time::Duration::from_micros(random.u64(0..20_000)));
        let pid = supervisor(&host);
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        until("another supervisor", || {
            (supervisor(&host) != pid).then_some(())
        });
    }
    for service in ["a", "b"] {
        // it may be killed with the service, which ends at once
        host.sampan(&["exec", service, "touch", "/tmp/stop"]);
        host.await_row(service, "exit_code", 0);
    }
    let kept = |stream: &str| String::from_utf8(host.log("a", stream)).unwrap();
    assert!(kept("stdout").lines().count() > 1000);
    assert_lines(&whole(&path("out")), &kept("stdout"));
    assert_lines(&whole(&path("err")), &kept("stderr"));
    let all = whole(&path("all"));
    for service in ["a", "b"] {
        for (word, end) in [("", vec!["end".to_owned()]), (" error", vec![])] {
            let mark = format!("{service} | {service}{word} ");
            let found: Vec<&str> = all
                .lines()
                .filter(|line| match word {
                    "" => line.starts_with(&format!("{service} | ")) && !line.contains(" error "),
                    _ => line.starts_with(&mark),
                })
                .collect();
            let count = found.len() - end.len();
            let mut expected: Vec<String> = (0..count).map(|i| format!("{mark}{i}")).collect();
            expected.extend(end.iter().map(|line| format!("{service} | {line}")));
            assert_eq!(found, expected);
        }
    }
    assert!(path("all.1").exists(), "no file was ever full");
    host.sampan(&["down"]).ok();
}

fn memory(folder: &Path, options: &str, flags: MsFlags) {
    mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some(options)).unwrap();
}

#[test]
fn a_full_disk_is_told_once_and_keeps_nobody_waiting() {
    let host = Host::new();
    let disk = host.project.join("disk");
    fs::create_dir(&disk).unwrap();
    memory(&disk, "size=64k", MsFlags::empty());
    host.compose(&format!(
        "services:
  web:
    image: {BUSYBOX}
    command: [sh, -c, 'seq 1 30000; mkfifo /tmp/go; echo ready; read x < /tmp/go; echo last']
    x-sampan: {{logs: [{{file: disk/log}}]}}
"
    ));
    host.sampan(&["up", "-d"]).ok();
    let log = disk.join("log");
    let error = format!("{}: No space left on device (os error 28)", log.display());
    let row = host.await_row("web", "unwritten", json!([error]));
    assert_eq!(row["status"], "running");
    // the service goes on
    host.await_log("web", "ready\n");
    let table = host.sampan(&["ps"]).ok();
    assert!(
        table.contains(&format!("(not written: {error})")),
        "{table}"
    );
    // nothing is there by halves
    let all = format!("{}ready\n", numbers(30_000));
    let found = read(&log);
    assert_lines(&found, &all[..found.len()]);
    memory(&disk, "size=1m", MsFlags::MS_REMOUNT);
    await_content(&log, &all);
    host.await_row("web", "unwritten", json!([]));
    host.sampan(&["exec", "web", "sh", "-c", "echo > /tmp/go"]);
    host.await_row("web", "exit_code", 0);
    assert_lines(&read(&log), &format!("{all}last\n"));
    let events = read(&host.pod().join("events.log"));
    let told: Vec<&str> = events
        .lines()
        .filter(|line| line.contains("disk/log"))
        .map(|line| line.split_once("  ").unwrap().1)
        .collect();
    assert_eq!(
        told,
        [
            format!("write {error}; trying again"),
            format!("{} is written again", log.display())
        ]
    );
    host.sampan(&["down"]).ok();
}

#[test]
fn a_file_that_vanishes_is_made_again() {
    let host = Host::new();
    host.compose(&format!(
        "services:
  web:
    image: {BUSYBOX}
    command: [sh, -c, 'mkfifo /tmp/go; echo 0; while true; do read x < /tmp/go && echo $$x; done']
    stop_grace_period: 0s
    x-sampan: {{logs: [{{file: a/b/log}}]}}
"
    ));
    let folder = host.project.join("a/b");
    fs::create_dir(host.project.join("a")).unwrap();
    host.sampan(&["up", "-d"]).ok();
    let log = folder.join("log");
    await_content(&log, "0\n");
    let say = |text: &str| host.shell("web", &format!("echo {text} > /tmp/go"));
    fs::remove_file(&log).unwrap();
    say("1");
    await_content(&log, "1\n");
    // its folder, which is made again
    fs::remove_dir_all(&folder).unwrap();
    say("2");
    await_content(&log, "2\n");
    // the folder above as well
    fs::remove_dir_all(host.project.join("a")).unwrap();
    say("3");
    let error = format!("{}: No such file or directory (os error 2)", log.display());
    host.await_row("web", "unwritten", json!([error]));
    say("4");
    fs::create_dir(host.project.join("a")).unwrap();
    await_content(&log, "3\n4\n");
    // another program moves it away
    fs::rename(&log, folder.join("log.old")).unwrap();
    say("5");
    await_content(&log, "5\n");
    assert_eq!(read(&folder.join("log.old")), "3\n4\n");
    host.sampan(&["down"]).ok();
}

#[test]
fn output_without_lines_is_bounded() {
    let host = Host::new();
    host.compose(&format!(
        "services:
  web:
    image: {BUSYBOX}
    command: [sh, -c, 'head -c 50000000 /dev/zero; mkfifo /tmp/go; read x < /tmp/go']
    stop_grace_period: 0s
    logging: {{driver: none}}
    x-sampan: {{logs: [{{file: raw, format: raw, max_size: 64k}}, {{file: json, format: json, max_size: 1m}}, {{file: text}}]}}
"
    ));
    host.sampan(&["up", "-d"]).ok();
    let path = |name: &str| host.project.join(name);
    // lines of 65536 bytes and what is left, which has no end yet
    let lines = 50_000_000 / 65536;
    until("all lines", || {
        let size = fs::metadata(path("text")).map_or(0, |meta| meta.len());
        (size == lines * 65537).then_some(())
    });
    let status = read(Path::new(&format!("/proc/{}/status", supervisor(&host))));
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak: u64 = peak
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(peak < 100_000, "{peak} kB");
    for name in ["raw", "raw.1"] {
        assert!(fs::metadata(path(name)).unwrap().len() <= 65536, "{name}");
    }
    host.sampan(&["down"]).ok();
}
