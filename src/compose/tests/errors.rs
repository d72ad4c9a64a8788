//! Errors, word for word.

use super::*;

/// Errors are texts that people read: exact.
#[test]
fn errors() {
    let table: &[(&str, &str)] = &[
        (
            "a: [",
            "compose.yaml:2:1: not valid YAML: while parsing a node, did not find expected node content",
        ),
        ("", "compose.yaml:1:1: the file is empty"),
        (
            "x-sampan: {logs: [{format: raw}]}\nservices: {web: {image: i}}",
            "compose.yaml:1:19: x-sampan.logs[0]: needs file, or else stdout, stderr or both",
        ),
        (
            "x-sampan: {logs: [{file: a/}]}\nservices: {web: {image: i}}",
            "compose.yaml:1:26: x-sampan.logs[0].file: \"a/\" is not the name of a file",
        ),
        (
            "x-sampan: {logs: [{file: a/../b, beneath: /c}]}\nservices: {web: {image: i}}",
            "compose.yaml:1:26: x-sampan.logs[0].file: \"a/../b\" is not a file below /c",
        ),
        (
            "x-sampan: {logs: [{file: a, labels: [b]}]}\nservices: {web: {image: i}}",
            "compose.yaml:1:37: x-sampan.logs[0].labels: only format: json has a place for them",
        ),
        (
            "x-sampan: {logs: [{file: a, max_size: 1k}]}\nservices: {web: {image: i}}",
            "compose.yaml:1:39: x-sampan.logs[0].max_size: must be at least 65536 bytes",
        ),
        (
            "x-sampan: {logs: [{file: a}]}\nservices:\n  web: {image: i, x-sampan: {logs: [{stderr: a}]}}",
            "compose.yaml:3: x-sampan.logs: /srv/shop/a is written by another entry already; name another file, or write the entry at the top for all services",
        ),
        (
            "services: {web: {image: i, logging: {driver: fluentd}}}",
            "compose.yaml:1:46: services.web.logging.driver: \"fluentd\" is not supported; json-file, local and none are supported",
        ),
        (
            "services: {web: {image: i, logging: {options: {tag: x}}}}",
            "compose.yaml:1:53: services.web.logging.options.tag: not an option that is supported; max-size, max-file and compress: false are",
        ),
        (
            "services: {web: {image: i, logging: {options: {max-size: 0}}}}",
            "compose.yaml:1:58: services.web.logging.options.max-size: \"0\" is not a size above 0; write something like 10m",
        ),
        (
            "services: {web: {image: i, logging: {options: {max-file: 2}}}}",
            "compose.yaml:1:37: services.web.logging: max-file has a meaning only together with max-size; add that",
        ),
        (
            "services: {web: {image: i, logging: {driver: none, options: {max-file: 2}}}}",
            "compose.yaml:1:72: services.web.logging.options.max-file: driver none has no options",
        ),
        (
            "[]",
            "compose.yaml:1:1: a compose file must be a mapping, not a list",
        ),
        (
            "services:\n  web:\n    image: a\n    image: b\n",
            "compose.yaml:4:5: key \"image\" stands twice in one mapping; remove one",
        ),
        (
            "services:\n  web:\n    build: .\n",
            "compose.yaml:3:5: services.web.build: not supported yet; build the image first and name it with image",
        ),
        (
            "services:\n  web:\n    imgae: x\n    foo: y\n",
            "compose.yaml:3:5: services.web.imgae: unknown key; did you mean image?\ncompose.yaml:4:5: services.web.foo: unknown key; remove it, or begin it with x- when another program reads it",
        ),
        (
            "services:\n  web:\n    ports: 80\n",
            "compose.yaml:3:12: services.web.ports: must be a list, not a number",
        ),
        (
            "services:\n  web:\n    ports:\n      - \n",
            "compose.yaml:4:9: services.web.ports[0]: an item is empty; remove it or put it in quotes",
        ),
        (
            "services:\n  web:\n",
            "compose.yaml:2:3: services.web: must be a mapping, not empty",
        ),
        (
            "name: x\n",
            "compose.yaml:1:1: no services; write at least one below services:",
        ),
        (
            "name: X\nservices: {web: {image: i}}\n",
            "compose.yaml:1:7: name: \"X\": use lower-case letters, digits, '-' and '_', a letter or digit first",
        ),
        (
            "services:\n  web: {}\n",
            "compose.yaml:2:3: services.web: has no image; name one with image:",
        ),
        (
            "services: {web: {image: '${V:?set V}'}}",
            "compose.yaml:1:25: services.web.image: required variable V is missing a value: set V",
        ),
        (
            "services: {web: {image: a$}}",
            "compose.yaml:1:25: services.web.image: invalid variable at \"$\"; write $$ for a plain dollar sign",
        ),
        (
            "services: {web: {image: !foo a}}",
            "compose.yaml:1:25: unknown tag !foo; only !reset and !override are known",
        ),
        (
            "services: {web: {image: i, hostname: true}}",
            "compose.yaml:1:38: services.web.hostname: must be a string, not a boolean; put it in quotes",
        ),
        (
            "services: {web: {image: i, tty: maybe}}",
            "compose.yaml:1:33: services.web.tty: \"maybe\" is not a boolean; write true or false",
        ),
        (
            "services: {web: {image: i, mem_limit: 5x}}",
            "compose.yaml:1:39: services.web.mem_limit: \"5x\" is not a size; write something like 64m",
        ),
        (
            "services: {web: {image: i, stop_grace_period: 5}}",
            "compose.yaml:1:47: services.web.stop_grace_period: \"5\" is not a duration; write something like 1m30s",
        ),
        (
            "services: {web: {image: i, networks: [a]}}",
            "compose.yaml:1:39: services.web.networks.a: network a is not declared below networks:",
        ),
        (
            "services: {web: {image: i, volumes: ['a:/b']}}",
            "compose.yaml:1:38: services.web.volumes[0]: volume a is not declared below volumes: at the top; for a folder write ./a",
        ),
        (
            "services: {web: {image: i, volumes: ['C:\\a:/b']}}",
            "compose.yaml:1:38: services.web.volumes[0]: \"C:\\\\a:/b\" looks like a windows path; name a path of this machine",
        ),
        (
            "services: {web: {image: i, volumes: ['/a:/b', '/c:/b/']}}",
            "compose.yaml:1:47: services.web.volumes[1]: /b is mounted already, at compose.yaml:1:38; remove one",
        ),
        (
            "services: {web: {image: i, depends_on: [db]}}",
            "compose.yaml:1:41: services.web.depends_on.db: there is no service db",
        ),
        (
            "services: {web: {image: i, depends_on: [db]}, db: {image: i, profiles: [p, q]}}",
            "compose.yaml:1:41: services.web.depends_on.db: service db is not enabled; choose its profile (p, q)",
        ),
        (
            "services:\n  b: {image: i, depends_on: [c]}\n  c: {image: i, depends_on: [a]}\n  a: {image: i, depends_on: [b]}\n  z: {image: i, depends_on: [a]}\n",
            "compose.yaml:4:30: services.a.depends_on.b: services depend on each other: a -> b -> c -> a; remove one of the dependencies",
        ),
        (
            "services: {web: {image: i, volumes_from: [container:db]}}",
            "compose.yaml:1:43: services.web.volumes_from[0]: names a container, and there are none but the pod's own; name a service",
        ),
        (
            "services: {web: {image: i, volumes_from: ['db:z']}}",
            "compose.yaml:1:43: services.web.volumes_from[0]: \"db:z\" is not SERVICE, SERVICE:ro or SERVICE:rw",
        ),
        (
            "services: {web: {image: i, volumes_from: [db]}}",
            "compose.yaml:1:43: services.web.volumes_from[0]: there is no service db",
        ),
        (
            "services: {a: {image: i, volumes_from: [b]}, b: {image: i, depends_on: [a]}}",
            "compose.yaml:1:41: services.a.volumes_from[0]: services depend on each other: a -> b -> a; remove one of the dependencies",
        ),
        (
            "services: {web: {image: i, links: [web]}}",
            "compose.yaml:1:36: services.web.links[0]: services depend on each other: web -> web; remove one of the dependencies",
        ),
        (
            "services:\n  a: {image: i, ports: ['80:80']}\n  b: {image: i, ports: ['80:81']}\n",
            "compose.yaml:3:25: services.b.ports[0]: host port 80/tcp is published already, by service a at compose.yaml:2:25; choose another one",
        ),
        (
            "services:\n  a: {image: i, ports: [{target: 80, x-sampan: {network: b}}]}\n",
            "compose.yaml:2: services.a.ports: x-sampan.network: no service is on a network b; name one of the pod's",
        ),
        (
            "services:\n  a: {image: i, ports: ['80:80']}\n  b: {image: i, ports: ['81:80']}\n",
            "compose.yaml:3:25: services.b.ports[0]: port 80/tcp belongs to service a already, at compose.yaml:2:25; the services of a pod share one network namespace: let one of them listen elsewhere",
        ),
        (
            "services:\n  a: {image: i, expose: [80]}\n  b: {image: i, expose: [80]}\n",
            "compose.yaml:3:26: services.b.expose[0]: port 80/tcp belongs to service a already, at compose.yaml:2:26; the services of a pod share one network namespace: let one of them listen elsewhere",
        ),
        (
            "services: {a: {image: i, ports: ['80:80', '127.0.0.1:80:81']}}",
            "compose.yaml:1:43: services.a.ports[1]: host port 80/tcp is published already, by service a at compose.yaml:1:34; choose another one",
        ),
        (
            "services: {a: {image: i, ports: ['1-3:1-2']}}",
            "compose.yaml:1:34: services.a.ports[0]: the ranges differ in length",
        ),
        (
            "services: {a: {image: i, ports: ['80:']}}",
            "compose.yaml:1:34: services.a.ports[0]: has no target, the port in the container",
        ),
        (
            "services: {a: {image: i, ports: ['x:80']}}",
            "compose.yaml:1:34: services.a.ports[0].published: \"x\" is not a port or a range of ports",
        ),
        (
            "services: {a: {image: i, ports: ['70000:80']}}",
            "compose.yaml:1:34: services.a.ports[0].published: \"70000\" is not a port or a range of ports",
        ),
        (
            "services: {a: {image: i, mem_limit: 1g, deploy: {resources: {limits: {memory: 2g}}}}}",
            "compose.yaml:1:79: services.a.deploy.resources.limits.memory: contradicts mem_limit at compose.yaml:1:37; remove one",
        ),
        (
            "services: {a: {image: i, deploy: {replicas: 2}}}",
            "compose.yaml:1:45: services.a.deploy.replicas: only 1 is supported: a pod has one instance of each service",
        ),
        (
            "services: {a: {image: i, platform: linux/s390x}}",
            &format_platform(),
        ),
        (
            "services: {a: {image: i, security_opt: ['apparmor:x']}}",
            "compose.yaml:1:41: services.a.security_opt[0]: \"apparmor:x\" is not supported yet; remove it for now",
        ),
        (
            "services: {a: {image: i, network_mode: container:x}}",
            "compose.yaml:1:26: services.a.network_mode: \"container:x\" is not supported; use none, host, bridge or service:NAME",
        ),
        (
            "services:\n  a: {image: i, network_mode: host}\n  b: {image: i}\n",
            "compose.yaml:2:6: services.a: wants network host, but other services are on default; the services of a pod share one network namespace",
        ),
        (
            "services: {a: {image: i, network_mode: none, ports: ['80:80']}}",
            "compose.yaml:1: services.a.ports: there is no network to publish them on; remove them",
        ),
        (
            "services: {a: {image: i, env_file: x.env}}",
            "compose.yaml:1:36: services.a.env_file[0].path: cannot read /srv/shop/x.env: entity not found",
        ),
        (
            "services:\n  a: {image: i, networks: {n: {ipv4_address: 10.0.0.2}}}\n  b: {image: i, networks: {n: {ipv4_address: 10.0.0.3}}}\nnetworks: {n: }\n",
            "compose.yaml:3:46: services.b.networks.n.ipv4_address: contradicts services.a.networks.n.ipv4_address at compose.yaml:2:46; a pod has one interface on a network: give one value",
        ),
        (
            "services:\n  a: {image: i, networks: {n: {interface_name: x0}, m: {interface_name: x0}}}\nnetworks: {n: , m: }\n",
            "compose.yaml:2:73: services.a.networks.m.interface_name: x0 is the interface of network n already, at compose.yaml:2:48; choose another name",
        ),
        (
            "services: {a: {image: i, networks: {default: {interface_name: abcdefghijklmnop}}}}",
            "compose.yaml:1:63: services.a.networks.default.interface_name: \"abcdefghijklmnop\" is not an interface name; use at most 15 letters, digits, '-', '_', '.'",
        ),
        (
            "services: {a: {image: i}}\nnetworks: {default: {external: true, driver: x}}",
            "compose.yaml:2:38: networks.default.driver: driver does not go together with external; remove one",
        ),
        (
            "services: {a: {image: i}}\nx-sampan: {limit: {}}",
            "compose.yaml:2:12: x-sampan.limit: unknown key; did you mean limits?",
        ),
        (
            "services: {a: {image: i, profiles: [p]}}",
            "compose.yaml:1:1: no service is enabled; choose a profile",
        ),
        (
            "services: {a: {image: i, restart: sometimes}}",
            "compose.yaml:1:35: services.a.restart: \"sometimes\" is not a policy; use no, always, unless-stopped or on-failure[:count]",
        ),
        (
            "services: {a: {image: i, command: \"a 'b\"}}",
            "compose.yaml:1:35: services.a.command: a single quote is not closed",
        ),
        (
            "services: {a: {image: i, container_name: b}, b: {image: i}}",
            "compose.yaml:1:42: services.a.container_name: b is the name of another service; choose another one",
        ),
        (
            "services: {a: {extends: b}, b: {extends: c}, c: {extends: {service: b}}}",
            "compose.yaml:1:42: services.b.extends: services extend each other: b -> c -> b; remove one",
        ),
        (
            "services: {a: {extends: b}}",
            "compose.yaml:1:25: services.a.extends.service: there is no service b in that file",
        ),
        (
            "services: {a: {extends: {file: x.yaml, service: b}}}",
            "compose.yaml:1:32: services.a.extends.file: cannot read /srv/shop/x.yaml: entity not found",
        ),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in table {
        let got = load_one(text).map(|_| ());
        if got != Err((*expected).to_owned()) {
            wrong.push(format!("{text}\n  expected {expected}\n  got      {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn format_platform() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "compose.yaml:1:36: services.a.platform: linux/s390x is not this machine's platform, linux/{arch}; remove it"
    )
}
