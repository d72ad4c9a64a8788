//! The round trip of everything there is, and input that means harm.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const EVERYTHING: &str = r#"
name: all
x-sampan: {limits: {cpus: 2, memory: 1g, pids: 500, memory_swap: -1, cpuset: "0"}, logs: [{file: ./all.log, max_size: 1m}, {stderr: /e, format: raw}, {beneath: box, stdout: a/b/o, stderr: e}]}
services:
  db: {image: "db:1", volumes: ["data:/var/lib/db:nocopy", "ext:/e"], networks: [back, default]}
  side: {image: i, network_mode: "service:db"}
  web:
    image: web
    pull_policy: always
    entrypoint: []
    command: ["a b", "$$HOME", "yes", "1", "", "é\n\"\\", "- x: #"]
    environment: {A: "1", B: "${SET}$$", "C.D": "null", E: ""}
    working_dir: /w
    user: "0:0"
    group_add: [video]
    hostname: h
    domainname: d.example
    container_name: web-1
    depends_on: {db: {condition: service_healthy, restart: true}}
    healthcheck: {test: [CMD, x, "$$y"], interval: 1500ms, retries: 0, start_interval: 1ns}
    ports: ["127.0.0.1:80-82:80-82", "53:53/udp", "90"]
    expose: [1000-1002, 5/udp]
    networks: {back: {aliases: [www], ipv4_address: 10.9.0.9, ipv6_address: "fd00::9", mac_address: "02:00:00:00:00:01", interface_name: back0, gw_priority: -1}}
    extra_hosts: [a=1.2.3.4, "b=::1"]
    dns: 1.1.1.1
    dns_search: [x.example]
    dns_opt: ["ndots:1"]
    volumes:
      - {type: tmpfs, target: /t1, tmpfs: {size: 5k, mode: 0o700}, read_only: true}
      - {type: bind, source: ./b, target: /b, read_only: true, bind: {propagation: rslave, create_host_path: false, recursive: disabled}}
      - {type: volume, source: data, target: /d, volume: {subpath: a/b, nocopy: true}}
      - /anon
    tmpfs: [/t2, "/t3:uid=5,size=1m,ro", /t4]
    restart: on-failure:5
    stop_signal: SIGQUIT
    stop_grace_period: 90s
    logging: {driver: local, options: {max-file: 2}}
    cap_add: [NET_ADMIN]
    cap_drop: [ALL]
    privileged: true
    security_opt: [no-new-privileges, seccomp=unconfined]
    read_only: true
    init: true
    tty: true
    stdin_open: true
    ulimits: {nofile: 5, core: -1}
    sysctls: {net.core.somaxconn: 5}
    labels: {"a b": "c"}
    devices: ["/dev/null:/dev/x:r"]
    shm_size: 1m
    oom_score_adj: -5
    cpus: 0.3
    cpu_shares: 5
    mem_limit: 5m
    mem_reservation: 4m
    memswap_limit: 6m
    pids_limit: -1
    x-sampan:
      logs: [{stdout: a/o, stderr: a/e, format: json, labels: ["a b"], max_size: 64k, max_file: 9}]
      checks:
        web: {http: {port: 80, path: "/a?b=$$c", scheme: https, protocol: IPv6, statuses: [204, 500], headers: {Host: a.example, X-Y: "1"}}, kind: readiness, delay: 0s, snooze: 1m}
        tcp: {tcp: {port: 5, host: 10.9.0.9}, grace_period: 5s, success_threshold: 2}
        sh: {command: "a $$b", kind: check, timeout: 0s, start_interval: 5ms}
        run: {command: [a, "$$b"], consecutive_failures: 1, interval: 1m}
    blkio_config: {weight: 10, device_read_bps: [{path: /dev/a, rate: 1k}], device_write_iops: [{path: /dev/b, rate: 5}]}
networks:
  zeta: {}
  back: {driver: bridge, enable_ipv6: true, driver_opts: {mtu: 1400}, labels: [x=y], ipam: {config: [{subnet: 10.9.0.0/24, ip_range: 10.9.0.0/28, aux_addresses: {a: 10.9.0.9}}, {subnet: "fd00::/64"}], options: {k: v}}, x-sampan: {config: {a: [1, true, {b: "3"}]}, plugins: [{type: sbr}], routes: [{dst: 10.0.0.0/8, gw: 10.9.0.1}]}}
volumes:
  data: {labels: {k: v}}
  ext: {external: true}
"#;

/// A project without places.
fn bare(project: &Project) -> Value {
    let mut value = without_origins(serde_json::to_value(project).unwrap());
    value["files"] = json!(null);
    value
}

#[test]
fn what_is_written_loads_again() {
    let mut project = load_one(EVERYTHING).unwrap().project;
    let labels = &mut project.services.get_mut("web").unwrap().labels;
    labels.extend(
        [("<<", "a"), ("$x", "$y"), (&"k".repeat(2000), "v")]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
    );
    let yaml = to_yaml(&project);
    let again = load_one(&yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    assert_eq!(bare(&again.project), bare(&project), "\n{yaml}");
    assert_eq!(again.warnings, Vec::<String>::new());
    assert_eq!(to_yaml(&again.project), yaml);
    let json = serde_json::to_string(&project).unwrap();
    assert_eq!(serde_json::from_str::<Project>(&json).unwrap(), project);
}

#[test]
fn hostile_input_ends_in_an_error() {
    let bomb = {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            text.push_str(&format!(
                "a{i}: &a{i} [{}]\n",
                vec![format!("*a{}", i - 1); 10].join(", ")
            ));
        }
        text
    };
    let chain = |n: usize| {
        (0..n)
            .map(|i| {
                format!(
                    "a{i}: &a{i} {{b: {}}}\n",
                    if i == 0 {
                        "x".into()
                    } else {
                        format!("*a{}", i - 1)
                    }
                )
            })
            .collect::<String>()
    };
    let cases = [
        (bomb, "copies made by aliases included"),
        (chain(70), "nested deeper than 64 levels"),
        ("[".repeat(1 << 20), ""),
        ("{a: ".repeat(1 << 18), ""),
        ("- ".repeat(1 << 19), "nested deeper than 64 levels"),
        ("? ".repeat(1 << 19), "nested deeper than 64 levels"),
        ("a: &a [*a]".to_owned(), ""),
        (
            format!(
                "services: {{web: {{image: '{}'}}}}",
                "${A:-".repeat(100_000)
            ),
            "invalid variable",
        ),
        (
            format!(
                "services: {{web: {{image: i, ports: [{}]}}}}",
                "'1-65535', ".repeat(1000)
            ),
            "more than 65536 ports",
        ),
        (
            format!(
                "services: {{web: {{image: i, ports: ['{}']}}}}",
                "1".repeat(1 << 20)
            ),
            "is not a port",
        ),
        (" ".repeat(parse::MAX_BYTES + 1), "larger than 4 MiB"),
        (
            "services: {web: {image: \"\\0\"}}".to_owned(),
            "must not be empty",
        ),
    ];
    for (text, expected) in cases {
        let error = load_one(&text).unwrap_err();
        let head: String = text.chars().take(40).collect();
        assert!(
            error.contains(expected),
            "{head}: {}",
            error.chars().take(300).collect::<String>()
        );
    }
}

#[test]
fn a_long_chain_of_services_is_ordered() {
    let mut text = "services:\n  s0: {image: i}\n".to_owned();
    for i in 1..5000 {
        text.push_str(&format!("  s{i}: {{image: i, depends_on: [s{}]}}\n", i - 1));
    }
    assert_eq!(load_one(&text).unwrap().project.start_order().len(), 5000);
}

/// Nothing in a load grows with the square of a file.
#[test]
fn large_files_are_read() {
    let names = |n: usize| (0..n).map(|i| format!("n{i}")).collect::<Vec<_>>();
    let list = names(10_000).join(", ");
    let declared: String = names(10_000)
        .iter()
        .map(|n| format!("  {n}: {{}}\n"))
        .collect();
    let base = format!(
        "services:\n  web: {{image: i, environment: [{list}], networks: [{list}], cap_add: [{list}]}}\nnetworks:\n{declared}"
    );
    let over = format!("services:\n  web: {{environment: [{list}], cap_add: [{list}]}}\n");
    let project = load_two(&base, &over).unwrap().project;
    assert_eq!(
        (
            project.networks.len(),
            project.services["web"].cap_add.len()
        ),
        (10_000, 10_000)
    );
    let services: String = names(10_000)
        .iter()
        .map(|n| format!("  {n}: {{image: i}}\n"))
        .collect();
    let all = format!("services:\n{services}  last: {{image: i, links: [{list}]}}\n");
    assert_eq!(load_one(&all).unwrap().project.start_order().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(documents) = parse::parse("f", &bytes) {
            let _ = documents.iter().map(node::Node::count).sum::<usize>();
        }
        let _ = dotenv::parse("f", &bytes, &|_| None);
        let _ = dotenv::parse_raw("f", &bytes, &|_| None);
    }

    /// One line of a good file is replaced by something else.
    #[test]
    fn no_text_makes_a_load_panic(line in 0usize..80, text in "[ \\-:a-z0-9{}\\[\\]&*!'\"$%#|>,./~@]{0,40}") {
        let mut lines: Vec<&str> = EVERYTHING.lines().collect();
        if let Some(slot) = lines.get_mut(line) {
            *slot = &text;
        }
        let _ = load_one(&lines.join("\n"));
        let _ = load_one(&web(&text));
    }

    #[test]
    fn texts_survive_a_round_trip(key in "[A-Za-z_][A-Za-z0-9_.]{0,8}", value in "\\PC{0,20}|[ -~\n\t]{0,20}", word in any::<String>()) {
        let mut project = load_one(&web("")).unwrap().project;
        let service = project.services.get_mut("web").unwrap();
        let clean = |s: &str| s.replace('\0', "");
        service.environment.insert(key.clone(), clean(&value));
        service.labels.insert(key, clean(&word));
        service.command = Some(vec![clean(&word), clean(&value)]);
        let yaml = to_yaml(&project);
        let again = load_one(&yaml).map_err(|e| TestCaseError::fail(format!("{e}\n{yaml}")))?;
        prop_assert_eq!(bare(&again.project), bare(&project));
    }

    #[test]
    fn scalars_and_units_never_panic(text in any::<String>()) {
        let _ = (units::plain(&text), units::bytes(&text), units::duration(&text), units::words(&text), units::port_range(&text, 1));
    }
}
