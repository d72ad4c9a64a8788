//! What cluster frameworks ask of a service: a root file system of the host, files with secrets, capabilities, namespaces.

use super::pod_support::Host;

/// The output of service `a`, which runs to its end. Nothing of the pod is left.
fn output(host: &Host, compose: &str) -> String {
    let before = host.snapshot();
    host.compose(compose);
    let ended = host.sampan(&["up", "--abort-on-container-exit"]);
    let out = String::from_utf8(host.log("a", "stdout")).unwrap();
    host.down(&before);
    assert_eq!(ended.code, 0, "{ended:?}");
    out
}

#[test]
fn a_folder_of_the_host_is_the_root() {
    let host = Host::new();
    host.write("work/in", "from outside");
    let work = host.project.join("work");
    let work = work.display();
    let found = output(
        &host,
        &format!(
            r#"
services:
  a:
    entrypoint: [/bin/sh, -c, 'cat in; echo; id -u; echo out > out; echo x > /tmp/x && echo tmp; (echo x > /etc/sampan-test) 2>/dev/null || echo read-only; (mkdir /proc/1/x) 2>/dev/null || echo proc; head -n1 /etc/passwd']
    user: '0'
    working_dir: {work}
    network_mode: host
    tmpfs: [/tmp]
    volumes: ['{work}:{work}']
    x-sampan: {{rootfs: /}}
"#
        ),
    );
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let first = passwd.lines().next().unwrap();
    assert_eq!(
        found,
        format!("from outside\n0\ntmp\nread-only\nproc\n{first}\n")
    );
    assert_eq!(
        std::fs::read_to_string(host.project.join("work/out")).unwrap(),
        "out\n"
    );
    assert!(!std::path::Path::new("/etc/sampan-test").exists());
}

#[test]
fn files_with_secrets_belong_to_the_user() {
    let host = Host::new();
    let found = output(
        &host,
        r#"
services:
  a:
    image: localhost/busybox
    network_mode: none
    user: '1234:77'
    command: [sh, -c, 'stat -c "%a %u %g" /run/secrets/key /etc/app.conf; cat /run/secrets/key /etc/app.conf; (echo x > /etc/app.conf) 2>/dev/null || echo kept']
    secrets: [{source: key, mode: 0400}]
    configs: [{source: conf, target: /etc/app.conf, uid: '0', gid: '0'}]
configs:
  conf: {content: "a=$$b\n"}
secrets:
  key: {content: "k\n"}
"#,
    );
    assert_eq!(found, "400 1234 77\n444 0 0\nk\na=$b\nkept\n");
}

#[test]
fn capabilities_of_a_user_that_is_not_root() {
    let host = Host::new();
    let found = output(
        &host,
        r#"
services:
  a:
    image: localhost/busybox
    network_mode: none
    user: '1234'
    command: [sh, -c, 'grep -E "^Cap(Eff|Bnd|Amb)" /proc/self/status; pwd']
    cap_drop: [ALL]
    cap_add: [NET_RAW, CHOWN]
    x-sampan: {ambient: [NET_RAW], default_working_dir: /mnt/mesos/sandbox}
"#,
    );
    assert_eq!(
        found,
        "CapEff:\t0000000000002000\nCapBnd:\t0000000000002001\nCapAmb:\t0000000000002000\n/mnt/mesos/sandbox\n"
    );
}

#[test]
fn namespaces_of_the_host() {
    let host = Host::new();
    let own = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        link.to_string_lossy().into_owned()
    };
    let expected = format!("{}\n{}\n", own("pid"), own("ipc"));
    let service = "    image: localhost/busybox\n    network_mode: none\n    command: [sh, -c, 'for n in pid ipc; do readlink /proc/self/ns/$$n; done']\n";
    let shared = output(
        &host,
        &format!("services:\n  a:\n{service}    pid: host\n    ipc: host\n"),
    );
    assert_eq!(shared, expected);
    let apart = output(&host, &format!("services:\n  a:\n{service}"));
    assert!(
        apart.lines().zip(expected.lines()).all(|(a, b)| a != b),
        "{apart}"
    );
}

#[test]
fn the_address_is_told() {
    let host = Host::new();
    let found = output(
        &host,
        r#"
services:
  a:
    image: localhost/busybox
    command: [sh, -c, 'echo $$MY_IP; ip -4 -o addr show eth0']
    networks: {default: {ipv4_address: 10.77.3.9}}
    x-sampan: {address_variable: MY_IP}
networks:
  default: {ipam: {config: [{subnet: 10.77.3.0/24}]}}
"#,
    );
    assert!(
        found.starts_with("10.77.3.9\n") && found.contains("10.77.3.9/24"),
        "{found}"
    );
}
