//! One table row per attribute: lines of a service → fields; base and override → fields.

use serde_json::json;

use super::*;

#[test]
fn attributes() {
    let port = |ip: Value, published: Value, target: u16, protocol: &str| json!({"host_ip": ip, "published": published, "target": target, "protocol": protocol});
    let bind = |path: &str| json!({"bind": {"path": path, "create": true, "propagation": null, "recursive": true}});
    let table = [
        (
            "",
            json!({"command": null, "entrypoint": null, "restart": "no", "pull_policy": "missing", "stop_grace_period": second(10), "networks": {"default": {"aliases": [], "ipv4_address": null, "ipv6_address": null, "mac_address": null, "interface_name": null, "gw_priority": null}}}),
        ),
        (
            "command: sh -c 'echo \"$$X\"'",
            json!({"command": ["sh", "-c", "echo \"$X\""]}),
        ),
        (
            "command: [sleep, 10]\nentrypoint: ''",
            json!({"command": ["sleep", "10"], "entrypoint": []}),
        ),
        (
            "command:\nentrypoint: []",
            json!({"command": null, "entrypoint": []}),
        ),
        (
            "environment:\n  A: 1\n  B: 0777\n  C: true\n  D: 1.50\n  E: '0777'\n  SET:\n  NONE:\n  F: yes",
            json!({"environment": {"A": "1", "B": "511", "C": "true", "D": "1.5", "E": "0777", "SET": "set", "F": "yes"}}),
        ),
        (
            "environment:\n  - A=1=2\n  - SET\n  - NONE\n  - B=\n  - C=x\n  - C=y",
            json!({"environment": {"A": "1=2", "SET": "set", "B": "", "C": "y"}}),
        ),
        (
            "environment: {A: '${NONE:-d}', B: '$SET', '$SET': c}",
            json!({"environment": {"A": "d", "B": "set", "$SET": "c"}}),
        ),
        (
            "ports:\n  - 80\n  - '8080:81'\n  - '127.0.0.1:53:53/udp'\n  - '127.0.0.1::90'\n  - '[::1]:443:443'\n  - 9000-9001:7000-7001\n  - 22:22\n  - '0:99'",
            json!({"ports": [
            port(json!(null), json!(null), 80, "tcp"), port(json!(null), json!(8080), 81, "tcp"), port(json!("127.0.0.1"), json!(53), 53, "udp"),
            port(json!("127.0.0.1"), json!(null), 90, "tcp"), port(json!("::1"), json!(443), 443, "tcp"),
            port(json!(null), json!(9000), 7000, "tcp"), port(json!(null), json!(9001), 7001, "tcp"),
            port(json!(null), json!(22), 22, "tcp"), port(json!(null), json!(null), 99, "tcp")]}),
        ),
        (
            "ports:\n  - {target: 80, published: '8080', protocol: udp, host_ip: 127.0.0.1, mode: host, name: x}\n  - {target: 81, published: 8081}",
            json!({"ports": [port(json!("127.0.0.1"), json!(8080), 80, "udp"), port(json!(null), json!(8081), 81, "tcp")]}),
        ),
        (
            "ports:\n  - {target: 80, x-sampan: {network: default}}\n  - {target: 80, x-sampan: {network: default}}\n  - 80",
            json!({"ports": [
                {"host_ip": null, "published": null, "target": 80, "protocol": "tcp", "network": "default"},
                port(json!(null), json!(null), 80, "tcp")]}),
        ),
        (
            "ports: ['80:80', '80:80/tcp']",
            json!({"ports": [port(json!(null), json!(80), 80, "tcp")]}),
        ),
        (
            "expose: [80, '81/udp', 82-83, '80/tcp']",
            json!({"expose": ["80", "81/udp", "82", "83"]}),
        ),
        (
            "volumes:\n  - ./a:/a\n  - ../b/../c:/c:ro,z\n  - ~/d:/d:rslave\n  - /e:/e/\n  - /anon",
            json!({"volumes": [
            {"target": "/a", "source": bind("/srv/shop/a"), "read_only": false},
            {"target": "/c", "source": bind("/srv/c"), "read_only": true},
            {"target": "/d", "source": {"bind": {"path": "/home/u/d", "create": true, "propagation": "rslave", "recursive": true}}, "read_only": false},
            {"target": "/e", "source": bind("/e"), "read_only": false},
            {"target": "/anon", "source": "anonymous", "read_only": false}]}),
        ),
        (
            "volumes: ['.:/x:ro']",
            json!({"volumes": [{"target": "/x", "source": bind("/srv/shop"), "read_only": true}]}),
        ),
        (
            "volumes:\n  - {type: bind, source: x, target: /x, read_only: true, bind: {create_host_path: false, recursive: disabled}}\n  - {type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 01777}}\ntmpfs: /run:size=64m,mode=755,uid=5,ro",
            json!({"volumes": [
            {"target": "/x", "source": {"bind": {"path": "/srv/shop/x", "create": false, "propagation": null, "recursive": false}}, "read_only": true},
            {"target": "/t", "source": {"tmpfs": {"size": 1 << 20, "mode": 0o1777, "options": []}}, "read_only": false},
            {"target": "/run", "source": {"tmpfs": {"size": 64 << 20, "mode": 0o755, "options": ["uid=5"]}}, "read_only": true}]}),
        ),
        (
            "healthcheck:\n  test: curl -f x\n  interval: 1m30s\n  retries: 4",
            json!({"healthcheck": {"disabled": false, "test": {"shell": "curl -f x"}, "interval": second(90), "timeout": null, "start_period": null, "start_interval": null, "retries": 4}}),
        ),
        (
            "healthcheck:\n  test: [CMD, a, b]\n  start_interval: 2s",
            json!({"healthcheck": {"disabled": false, "test": {"exec": ["a", "b"]}, "interval": null, "timeout": null, "start_period": null, "start_interval": second(2), "retries": null}}),
        ),
        (
            "healthcheck: {test: [NONE]}",
            json!({"healthcheck": {"disabled": true, "test": null, "interval": null, "timeout": null, "start_period": null, "start_interval": null, "retries": null}}),
        ),
        ("restart: no", json!({"restart": "no"})),
        (
            "restart: 'on-failure:3'",
            json!({"restart": {"on_failure": {"max": 3}}}),
        ),
        (
            "deploy: {restart_policy: {condition: on-failure, max_attempts: 2}}",
            json!({"restart": {"on_failure": {"max": 2}}}),
        ),
        (
            "ulimits: {nofile: 1024, nproc: {soft: 5, hard: -1}}",
            json!({"ulimits": {"nofile": [1024, 1024], "nproc": [5, -1]}}),
        ),
        (
            "sysctls: [net.core.somaxconn=1024]\nlabels: [a=b, c]",
            json!({"sysctls": {"net.core.somaxconn": "1024"}, "labels": {"a": "b", "c": ""}}),
        ),
        (
            "devices: ['/dev/a', '/dev/b:/dev/c', '/dev/d:rw', '/dev/e:/dev/f:m']",
            json!({"devices": [["/dev/a", "/dev/a", "rwm"], ["/dev/b", "/dev/c", "rwm"], ["/dev/d", "/dev/d", "rw"], ["/dev/e", "/dev/f", "m"]]}),
        ),
        (
            "extra_hosts: ['a:1.2.3.4', 'b=::1', 'c:[::2]', 'd:host-gateway']",
            json!({"extra_hosts": [["a", "1.2.3.4"], ["b", "::1"], ["c", "::2"], ["d", "host-gateway"]]}),
        ),
        (
            "extra_hosts: {a: 1.2.3.4, b: ['::1', '::2']}",
            json!({"extra_hosts": [["a", "1.2.3.4"], ["b", "::1"], ["b", "::2"]]}),
        ),
        (
            "tty: yes\ninit: 'true'\nread_only: on\nprivileged: \"false\"",
            json!({"tty": true, "init": true, "read_only": true, "privileged": false}),
        ),
        (
            "security_opt: [no-new-privileges, 'seccomp:unconfined', 'seccomp=p.json', 'label:disable']",
            json!({"security_opt": ["no-new-privileges:true", "seccomp=unconfined", "seccomp=/srv/shop/p.json"]}),
        ),
        (
            "mem_limit: 1.5g\ncpus: '0.5'\npids_limit: 100\nshm_size: 64M\nmemswap_limit: -1\ncpuset: 0-1,3",
            json!({"shm_size": 64 << 20, "limits": {"cpus": 0.5, "cpu_shares": null, "cpuset": "0-1,3", "memory": 3u64 << 29, "memory_reservation": null, "memory_swap": -1, "pids": 100, "blkio": null}}),
        ),
        (
            "mem_limit: 1g\ndeploy:\n  replicas: 1\n  resources:\n    limits: {cpus: '0.25', memory: 1024m, pids: 5}\n    reservations: {memory: 1m}",
            json!({"limits": {"cpus": 0.25, "cpu_shares": null, "cpuset": null, "memory": 1 << 30, "memory_reservation": 1 << 20, "memory_swap": null, "pids": 5, "blkio": null}}),
        ),
        (
            "cpu_quota: 50000",
            json!({"limits": {"cpus": 0.5, "cpu_shares": null, "cpuset": null, "memory": null, "memory_reservation": null, "memory_swap": null, "pids": null, "blkio": null}}),
        ),
        (
            "logging: {}",
            json!({"logging": {"kept": {"max_size": null, "max_file": 1}}}),
        ),
        (
            "logging: {driver: json-file, options: {max-size: 10m, max-file: '3', compress: 'false'}}",
            json!({"logging": {"kept": {"max_size": 10_000_000, "max_file": 3}}}),
        ),
        (
            "logging: {driver: local, options: {max-size: 1.5k}}",
            json!({"logging": {"kept": {"max_size": 1500, "max_file": 5}}}),
        ),
        (
            "logging: {options: {max-size: -1}}",
            json!({"logging": {"kept": {"max_size": null, "max_file": 1}}}),
        ),
        ("logging: {driver: none}", json!({"logging": "none"})),
        (
            "user: 1000\ngroup_add: [5, video]\nworking_dir: /a/./b//\nstop_signal: SIGINT\nstop_grace_period: 1m\npull_policy: if_not_present",
            json!({"user": "1000", "group_add": ["5", "video"], "working_dir": "/a/b", "stop_signal": "SIGINT", "stop_grace_period": second(60), "pull_policy": "missing"}),
        ),
        (
            "dns: 1.1.1.1\ndns_search: [a, b]\ndns_opt: ['ndots:2']",
            json!({"dns": ["1.1.1.1"], "dns_search": ["a", "b"], "dns_opt": ["ndots:2"]}),
        ),
        ("x-anything: {a: [1]}", json!({})),
        (
            "user: ${NONE}\nhostname: ''\nworking_dir: $EMPTY\nrestart: $NONE\nmemswap_limit: -1\ncpus: 0",
            json!({"user": null, "hostname": null, "working_dir": null, "restart": "no"}),
        ),
    ];
    for (lines, expected) in table {
        let text = web(lines);
        assert_service(load_one(&text), &expected, &text);
    }
}

#[test]
fn merging() {
    let port = |published: u16, target: u16| json!({"host_ip": null, "published": published, "target": target, "protocol": "tcp"});
    let table = [
        ("command: a b", "command: [c]", json!({"command": ["c"]})),
        ("entrypoint: a", "entrypoint: []", json!({"entrypoint": []})),
        (
            "healthcheck: {test: a, retries: 5}",
            "healthcheck: {test: [CMD, b]}",
            json!({"healthcheck": {"disabled": false, "test": {"exec": ["b"]}, "interval": null, "timeout": null, "start_period": null, "start_interval": null, "retries": 5}}),
        ),
        (
            "environment: [A=1, B=2]",
            "environment: {B: 3, C: 4, A: }",
            json!({"environment": {"B": "3", "C": "4"}}),
        ),
        (
            "logging: {driver: json-file, options: {max-size: 5, max-file: 2}}",
            "logging: {options: {max-size: 6}}",
            json!({"logging": {"kept": {"max_size": 6, "max_file": 2}}}),
        ),
        (
            "logging: {driver: json-file, options: {max-size: 5}}",
            "logging: {driver: none}",
            json!({"logging": "none"}),
        ),
        (
            "labels: {a: b}",
            "labels: [a=c, d=e]",
            json!({"labels": {"a": "c", "d": "e"}}),
        ),
        (
            "ports: ['80:80', '81:81']",
            "ports: ['80:80/tcp', '82:82']",
            json!({"ports": [port(80, 80), port(81, 81), port(82, 82)]}),
        ),
        (
            "ports: ['80:80']",
            "ports: !override ['82:82']",
            json!({"ports": [port(82, 82)]}),
        ),
        ("ports: ['80:80']", "ports: !reset []", json!({"ports": []})),
        (
            "environment: {A: 1, B: 2}",
            "environment: {A: !reset null}",
            json!({"environment": {"B": "2"}}),
        ),
        (
            "volumes: ['/a:/x', '/b:/y']",
            "volumes: [{type: tmpfs, target: /x}]",
            json!({"volumes": [
            {"target": "/x", "source": {"tmpfs": {"size": null, "mode": null, "options": []}}, "read_only": false},
            {"target": "/y", "source": {"bind": {"path": "/b", "create": true, "propagation": null, "recursive": true}}, "read_only": false}]}),
        ),
        (
            "dns: 1.1.1.1",
            "dns: [2.2.2.2, 1.1.1.1]",
            json!({"dns": ["1.1.1.1", "2.2.2.2"]}),
        ),
        (
            "cap_add: [A]",
            "cap_add: [B, A]",
            json!({"cap_add": ["A", "B"]}),
        ),
        (
            "expose: [80]",
            "expose: ['80', 81]",
            json!({"expose": ["80", "81"]}),
        ),
        (
            "tmpfs: /a",
            "tmpfs: ['/a:size=1m', /b]",
            json!({"volumes": [
            {"target": "/a", "source": {"tmpfs": {"size": 1 << 20, "mode": null, "options": []}}, "read_only": false},
            {"target": "/b", "source": {"tmpfs": {"size": null, "mode": null, "options": []}}, "read_only": false}]}),
        ),
        (
            "ulimits: {nofile: {soft: 1, hard: 2}}",
            "ulimits: {nofile: 5}",
            json!({"ulimits": {"nofile": [5, 5]}}),
        ),
        (
            "mem_limit: 1m\nuser: a",
            "user: b\nmem_limit:",
            json!({"user": "b"}),
        ),
        (
            "sysctls: {a.b: 1}",
            "sysctls: [a.b=2, c.d=3]",
            json!({"sysctls": {"a.b": "2", "c.d": "3"}}),
        ),
        (
            "extra_hosts: [a=1.1.1.1]",
            "extra_hosts: {a: 1.1.1.1, b: 2.2.2.2}",
            json!({"extra_hosts": [["a", "1.1.1.1"], ["b", "2.2.2.2"]]}),
        ),
    ];
    for (base, over, expected) in table {
        let over = format!(
            "services:\n  web:\n{}",
            web(over).split_once("image: i\n").unwrap().1
        );
        assert_service(
            load_two(&web(base), &over),
            &expected,
            &format!("{base}\n---\n{over}"),
        );
    }
}
