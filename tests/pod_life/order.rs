//! Who starts and stops before whom, and what a second `up` does.

use serde_json::json;

use super::pod_support::{BUSYBOX, Host};

/// Lines of the pod's events without the time.
fn events(host: &Host) -> Vec<String> {
    let text = std::fs::read_to_string(host.pod().join("events.log")).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(' ').map(|(_, rest)| rest.to_string()))
        .collect()
}

fn position(events: &[String], event: &str) -> usize {
    events
        .iter()
        .position(|e| e == event)
        .unwrap_or_else(|| panic!("no {event:?} in {events:#?}"))
}

#[test]
fn three_conditions_up_and_the_reverse_down() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "
x-image: &image
  image: {BUSYBOX}
  stop_signal: SIGKILL
services:
  app:
    <<: *image
    command: [sleep, '1000']
    depends_on:
      setup: {{condition: service_completed_successfully}}
      cache: {{condition: service_started}}
      db: {{condition: service_healthy}}
  setup:
    <<: *image
    command: [sh, -c, 'echo prepared > /data/file']
    volumes: ['shared:/data']
  cache:
    <<: *image
    command: [sleep, '1000']
  db:
    <<: *image
    command: [sh, -c, 'until test -f /data/file; do usleep 10000; done; cp /data/file /tmp/ready; exec sleep 1000']
    volumes: ['shared:/data']
    healthcheck: {{test: [CMD, grep, prepared, /tmp/ready], interval: 1s}}
volumes:
  shared:
"
    ));
    host.sampan(&["up", "-d"]).ok();
    let seen = events(&host);
    let app = position(&seen, "app started");
    for earlier in ["setup exited with code 0", "cache started", "db is healthy"] {
        assert!(position(&seen, earlier) < app, "{earlier}: {seen:#?}");
    }
    let setup = host.row("setup");
    assert_eq!(
        (&setup["status"], &setup["exit_code"]),
        (&json!("exited"), &json!(0))
    );
    assert_eq!(host.row("db")["health"], "healthy");

    host.sampan(&["stop"]).ok();
    let seen = events(&host);
    let app = position(&seen, "app exited with code 137");
    for later in ["cache exited with code 137", "db exited with code 137"] {
        assert!(position(&seen, later) > app, "{later}: {seen:#?}");
    }
    host.down(&before);
}

#[test]
fn a_dependency_that_fails_takes_everything_back() {
    let host = Host::new();
    let before = host.snapshot();
    for (depends, service, message) in [
        (
            "{dep: {condition: service_completed_successfully}}",
            "command: [sh, -c, 'exit 3']",
            "service web: dependency dep did not complete successfully",
        ),
        (
            "{dep: {condition: service_healthy}}",
            "command: [sleep, '1000']\n    healthcheck: {test: [CMD, 'false'], interval: 10ms, retries: 1}",
            "service web: dependency dep is unhealthy",
        ),
        (
            "{dep: {condition: service_healthy}}",
            "command: ['true']\n    healthcheck: {test: [CMD, 'true'], interval: 1h, start_period: 1h}",
            "service web: dependency dep ended before it was healthy",
        ),
    ] {
        host.compose(&format!(
            "services:\n  web:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    depends_on: {depends}\n  \
             dep:\n    image: {BUSYBOX}\n    stop_signal: SIGKILL\n    {service}\n"
        ));
        let ended = host.sampan(&["up", "-d"]);
        let text = ended.fails(1);
        assert_eq!(text.lines().last(), Some(&*format!("sampan: {message}")));
        host.assert_clean(&before);
    }
    // one that need not be there
    host.compose(&format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    stop_signal: KILL\n    \
         depends_on: {{dep: {{condition: service_completed_successfully, required: false}}}}\n  \
         dep:\n    image: {BUSYBOX}\n    command: ['false']\n"
    ));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.row("web")["status"], "running");
    host.down(&before);
}

#[test]
fn a_second_up_changes_only_what_changed() {
    let host = Host::new();
    let before = host.snapshot();
    let file = |word: &str| {
        format!(
            "services:\n  web:\n    image: {BUSYBOX}\n    stop_signal: SIGKILL\n    command: [sleep, '1000']\n    \
             environment: {{WORD: {word}}}\n  db:\n    image: {BUSYBOX}\n    stop_signal: SIGKILL\n    command: [sleep, '1000']\n"
        )
    };
    host.compose(&file("one"));
    host.sampan(&["up", "-d"]).ok();
    let pids = || {
        (
            host.row("web")["pid"].clone(),
            host.row("db")["pid"].clone(),
        )
    };
    let first = pids();
    let again = host.sampan(&["up", "-d"]);
    again.ok();
    assert_eq!(again.stderr, "");
    assert_eq!(pids(), first);

    host.compose(&file("two"));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.shell("web", "echo $WORD"), "two");
    let second = pids();
    assert_ne!(second.0, first.0);

    host.sampan(&["up", "-d", "--force-recreate"]).ok();
    assert_ne!(pids().0, second.0);
    host.down(&before);
}

#[test]
fn up_of_one_service_starts_what_it_needs() {
    let host = Host::new();
    let before = host.snapshot();
    let service = |name: &str, more: &str| {
        format!(
            "  {name}:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    stop_signal: KILL\n    {more}\n"
        )
    };
    host.compose(&format!(
        "services:\n{}{}{}",
        service("web", "depends_on: [db]"),
        service("db", ""),
        service("other", "")
    ));
    host.sampan(&["up", "-d", "web"]).ok();
    assert_eq!(host.sampan(&["ps", "-q"]).ok(), "db\nweb\n");
    assert_eq!(host.row("other")["status"], "waiting");
    host.sampan(&["up", "-d", "other"]).ok();
    assert_eq!(host.sampan(&["ps", "-q"]).ok(), "db\nother\nweb\n");
    let ended = host.sampan(&["up", "-d", "nothing"]);
    assert_eq!(ended.fails(1), "sampan: no such service: nothing\n");
    host.down(&before);
}

#[test]
fn up_with_wait_waits_on_a_pod_that_runs_too() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    stop_signal: KILL\n    \
         healthcheck: {{test: [CMD, test, -e, /ready], interval: 100ms, start_period: 1h, start_interval: 100ms}}\n"
    ));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.row("web")["health"], "starting");
    let waiting = host.start(&["up", "--wait"]);
    host.sampan(&["exec", "web", "touch", "/ready"]).ok();
    assert_eq!(waiting.wait().code, 0);
    assert_eq!(host.row("web")["health"], "healthy");
    host.down(&before);
}
