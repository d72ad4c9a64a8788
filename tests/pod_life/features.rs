//! What a compose file says is so inside the container.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

use serde_json::json;

use super::pod_support::{BUSYBOX, Host, tool};

/// A project with one service that sleeps.
fn up(host: &Host, service: &str, rest: &str) -> Vec<String> {
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    stop_signal: KILL\n{}\n{rest}\n",
        indent(service)
    ));
    host.sampan(&["up", "-d"]).ok();
    before
}

fn indent(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
    lines.join("\n")
}

/// A line of `/proc/1/status`, after the name.
fn status(host: &Host, key: &str) -> String {
    let text = host.shell("web", "cat /proc/1/status");
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{key}:")));
    let line = line.unwrap_or_else(|| panic!("no {key} in {text}"));
    line[key.len() + 1..].trim().to_string()
}

#[test]
fn environment_and_working_folder() {
    let host = Host::new();
    host.write(
        "base.env",
        "FROM_FILE=base\nBOTH=base\n# a comment\nQUOTED=\"a b\"\n",
    );
    host.write(".env", "TAG=dotted\n");
    let before = up(
        &host,
        "env_file: [base.env, {path: missing.env, required: false}]\nenvironment: {BOTH: own, TAG: 'x-${TAG}', PLAIN: 'a$$b'}\nworking_dir: /srv/made/here\nhostname: boat\n",
        "",
    );
    let environ = host.shell("web", "tr '\\0' '\\n' < /proc/1/environ");
    let mut lines: Vec<&str> = environ.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "BOTH=own",
            "FROM_FILE=base",
            "HOME=/root",
            "HOSTNAME=boat",
            "PATH=/bin",
            "PLAIN=a$b",
            "QUOTED=a b",
            "TAG=x-dotted"
        ]
    );
    assert_eq!(
        host.shell("web", "readlink /proc/1/cwd; hostname; cat /etc/hostname"),
        "/srv/made/here\nboat\nboat"
    );
    host.down(&before);
}

#[test]
fn users_and_groups_of_the_image() {
    let host = Host::new();
    // an image of one's own: busybox with accounts
    let folder = host.path().join("accounts");
    fs::create_dir_all(folder.join("etc")).unwrap();
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::write(
        folder.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv/web:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        folder.join("etc/group"),
        "root:x:0:\nwww:x:34:\nlog:x:4:web\nextra:x:77:\n",
    )
    .unwrap();
    fs::copy("/bin/busybox", folder.join("bin/busybox")).unwrap();
    let archive = host.path().join("accounts.tar");
    tool(
        "tar",
        &[
            "-C",
            folder.to_str().unwrap(),
            "-cf",
            archive.to_str().unwrap(),
            ".",
        ],
    );
    host.sampan(&[
        "image",
        "import",
        archive.to_str().unwrap(),
        "localhost/accounts",
    ])
    .ok();
    let before = host.snapshot();
    host.compose(
        "
services:
  web:
    image: localhost/accounts
    command: [/bin/busybox, sleep, '1000']
    stop_signal: KILL
    user: web
    group_add: [extra, '99']
",
    );
    host.sampan(&["up", "-d"]).ok();
    let run = |script: &str| {
        let ended = host.sampan(&["exec", "web", "/bin/busybox", "sh", "-c", script]);
        ended.ok().trim().to_string()
    };
    let text = run("/bin/busybox grep -E '^(Uid|Gid|Groups|CapEff):' /proc/1/status; echo $HOME");
    assert_eq!(
        text,
        "Uid:\t33\t33\t33\t33\nGid:\t34\t34\t34\t34\nGroups:\t4 77 99 \nCapEff:\t0000000000000000\n/srv/web"
    );
    host.down(&before);
}

#[test]
fn safe_by_default() {
    let host = Host::new();
    let before = up(&host, "", "");
    for (key, value) in [
        ("Seccomp", "2"),
        ("NoNewPrivs", "1"),
        // Docker's fourteen
        ("CapBnd", "00000000a80425fb"),
        ("CapEff", "00000000a80425fb"),
        ("CapPrm", "00000000a80425fb"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
    ] {
        assert_eq!(status(&host, key), value, "{key}");
    }
    // a program that is run beside it has no more
    let beside = host.shell(
        "web",
        "grep -E '^(Seccomp|NoNewPrivs|CapBnd):' /proc/self/status",
    );
    assert_eq!(
        beside,
        "CapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2"
    );
    for script in [
        "mount -t tmpfs x /tmp",
        "unshare -U true",
        "echo x > /proc/sys/kernel/domainname",
        "echo x > /proc/sysrq-trigger",
        "cat /proc/kcore | head -c 1 | grep .",
        "echo 1 > /sys/kernel/mm/ksm/run",
        "ip link set eth0 down",
        "mknod /tmp/sda b 8 0 && cat /tmp/sda",
    ] {
        let ended = host.sampan(&["exec", "web", "sh", "-c", script]);
        assert_ne!(ended.code, 0, "{script}: {ended:?}");
    }
    // nothing of ours is open in there
    let open = host.shell("web", "ls /proc/1/fd");
    assert_eq!(open, "0\n1\n2");
    host.down(&before);
}

#[test]
fn capabilities_given_and_taken() {
    let host = Host::new();
    let before = up(
        &host,
        "cap_drop: [ALL]\ncap_add: [NET_ADMIN, cap_chown]",
        "",
    );
    // CAP_CHOWN is bit 0, CAP_NET_ADMIN bit 12
    assert_eq!(status(&host, "CapBnd"), "0000000000001001");
    assert_eq!(status(&host, "CapEff"), "0000000000001001");
    host.down(&before);
}

#[test]
fn privileged_and_devices() {
    let host = Host::new();
    let before = up(&host, "privileged: true", "");
    // all that there is to give here
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapPrm:\t"));
    assert_eq!(Some(&*status(&host, "CapEff")), own);
    assert_eq!(status(&host, "Seccomp"), "0");
    host.shell("web", "mkdir /m && mount -t tmpfs x /m");
    host.down(&before);

    let before = up(
        &host,
        "devices: ['/dev/net/tun:/dev/tun0:r']\nshm_size: 1m\noom_score_adj: 321",
        "",
    );
    assert_eq!(host.shell("web", "stat -c %t:%T /dev/tun0"), "a:c8");
    host.shell("web", ": < /dev/tun0");
    assert_ne!(
        host.sampan(&["exec", "web", "sh", "-c", ": > /dev/tun0"])
            .code,
        0
    );
    assert_eq!(
        host.shell("web", "df -k /dev/shm | tail -1 | awk '{print $2}'"),
        "1024"
    );
    assert_eq!(host.shell("web", "cat /proc/1/oom_score_adj"), "321");
    host.down(&before);
}

#[test]
fn read_only_tmpfs_ulimits_sysctls() {
    let host = Host::new();
    let before = up(
        &host,
        "read_only: true
tmpfs: ['/run/here:size=1m,mode=700,uid=5', /plain]
volumes: [{type: tmpfs, target: /sized, tmpfs: {size: 2m, mode: 0750}}]
ulimits: {nofile: {soft: 100, hard: 200}, core: 0}
sysctls: {net.ipv4.ip_unprivileged_port_start: '33', kernel.msgmax: 9999}",
        "",
    );
    assert_ne!(host.sampan(&["exec", "web", "touch", "/file"]).code, 0);
    host.shell("web", "touch /run/here/a /plain/b /sized/c");
    let modes = host.shell("web", "stat -c '%n %a %u' /run/here /plain /sized");
    assert_eq!(modes, "/run/here 700 5\n/plain 1777 0\n/sized 750 0");
    let sizes = host.shell("web", "df -k /run/here /sized | awk 'NR>1 {print $2}'");
    assert_eq!(sizes, "1024\n2048");
    let limits = host.shell(
        "web",
        "grep -E 'open files|core file' /proc/1/limits | tr -s ' '",
    );
    assert_eq!(
        limits,
        "Max core file size 0 0 bytes \nMax open files 100 200 files "
    );
    assert_eq!(host.shell("web", "ulimit -n"), "100");
    let sysctls = host.shell(
        "web",
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax",
    );
    assert_eq!(sysctls, "33\n9999");
    host.down(&before);
}

#[test]
fn volumes_of_every_kind() {
    let host = Host::new();
    host.write("shared/file", "from the host");
    host.write("config", "one file");
    fs::set_permissions(
        host.project.join("shared"),
        fs::Permissions::from_mode(0o777),
    )
    .unwrap();
    let service = "volumes:
  - data:/data
  - ./shared:/shared
  - ./shared:/fixed:ro
  - ./config:/etc/config
  - /var/nameless
  - ./made/by/us:/made";
    let before = up(&host, service, "volumes: {data: }");
    host.shell("web", "echo kept > /data/file; chown 5:6 /data/file; echo back > /shared/back; echo x > /var/nameless/x");
    assert_eq!(
        host.shell("web", "cat /fixed/file /etc/config; ls -A /made"),
        "from the hostone file"
    );
    let ended = host.sampan(&["exec", "web", "touch", "/fixed/x"]);
    assert_eq!(ended.stderr, "touch: /fixed/x: Read-only file system\n");
    assert_eq!(
        fs::read_to_string(host.project.join("shared/back")).unwrap(),
        "back\n"
    );
    assert!(host.project.join("made/by/us").is_dir());
    host.sampan(&["down"]).ok();
    host.assert_clean(&before);

    // the named one is still there, the nameless one is not
    host.sampan(&["up", "-d"]).ok();
    let text = host.shell(
        "web",
        "cat /data/file; stat -c %u:%g /data/file; ls -A /var/nameless",
    );
    assert_eq!(text, "kept\n5:6");
    host.down(&before);
    let volumes = host.root.join("volumes");
    assert_eq!(fs::read_dir(volumes).unwrap().count(), 0);
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.shell("web", "ls -A /data"), "");
    host.down(&before);
}

#[test]
fn a_new_volume_begins_with_what_the_image_has() {
    let host = Host::new();
    let folder = host.path().join("filled");
    for dir in ["bin", "data/sub"] {
        fs::create_dir_all(folder.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", folder.join("bin/busybox")).unwrap();
    fs::write(folder.join("data/file"), "image").unwrap();
    std::os::unix::fs::symlink("file", folder.join("data/link")).unwrap();
    for (path, owner, mode) in [
        ("data", 7, 0o750),
        ("data/file", 8, 0o4755),
        ("data/sub", 9, 0o2700),
    ] {
        let path = folder.join(path);
        chown(&path, Some(owner), Some(owner + 10)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let archive = host.path().join("filled.tar");
    tool(
        "tar",
        &[
            "-C",
            folder.to_str().unwrap(),
            "-cf",
            archive.to_str().unwrap(),
            ".",
        ],
    );
    host.sampan(&[
        "image",
        "import",
        archive.to_str().unwrap(),
        "localhost/filled",
    ])
    .ok();
    let before = host.snapshot();
    host.compose(
        "
services:
  web:
    image: localhost/filled
    command: [/bin/busybox, sleep, '1000']
    stop_signal: KILL
    volumes: ['named:/data', {type: volume, source: plain, target: /data2, volume: {nocopy: true}}]
volumes: {named: , plain: }
",
    );
    let list = || {
        let script =
            "cd /data; /bin/busybox stat -c '%n %a %u:%g' . file sub link; /bin/busybox cat link";
        host.sampan(&["exec", "web", "/bin/busybox", "sh", "-c", script])
            .ok()
    };
    host.sampan(&["up", "-d"]).ok();
    let expected = ". 750 7:17\nfile 4755 8:18\nsub 2700 9:19\nlink 777 0:0\nimage";
    assert_eq!(list(), expected);
    // what is removed from it stays removed: it is filled once
    host.sampan(&["exec", "web", "/bin/busybox", "rm", "-r", "/data/sub"])
        .ok();
    host.sampan(&["down"]).ok();
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(
        host.sampan(&["exec", "web", "/bin/busybox", "ls", "/data"])
            .ok(),
        "file\nlink\n"
    );
    host.down(&before);
}

#[test]
fn names_labels_and_servers() {
    let host = Host::new();
    let before = up(
        &host,
        "extra_hosts: ['outside:192.0.2.7', 'six=2001:db8::7']
dns: [192.0.2.53]
dns_search: [example.test]
dns_opt: ['ndots:3']
labels: {org.example.a: one}
container_name: aliased",
        "  db:\n    image: localhost/busybox\n    command: [sleep, '1000']\n    stop_signal: KILL",
    );
    let hosts = host.shell("web", "cat /etc/hosts");
    let lookup = |name: &str| -> Vec<String> {
        hosts
            .lines()
            .filter(|line| line.split_whitespace().skip(1).any(|n| n == name))
            .map(|line| line.split_whitespace().next().unwrap().to_string())
            .collect()
    };
    assert_eq!(lookup("outside"), ["192.0.2.7"]);
    assert_eq!(lookup("six"), ["2001:db8::7"]);
    assert_eq!(lookup("db"), ["127.0.0.1"], "{hosts}");
    assert_eq!(lookup("aliased"), ["127.0.0.1"], "{hosts}");
    assert_eq!(
        host.shell("web", "cat /etc/resolv.conf"),
        "nameserver 127.0.0.12\nsearch example.test\noptions ndots:3"
    );
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(host.pod().join("services/web/config.json")).unwrap())
            .unwrap();
    assert_eq!(config["annotations"]["org.example.a"], "one");
    host.down(&before);
}

/// The folder of a cgroup of the pod in the hierarchy of a controller.
fn cgroup(host: &Host, controller: &str, service: &str) -> PathBuf {
    let folder = host
        .cgroup_folders()
        .into_iter()
        .find(|folder| {
            let text = folder.to_string_lossy();
            text.contains(controller)
                || folder.join("cgroup.controllers").exists()
                    && text.contains("/sys/fs/cgroup/sampan")
        })
        .unwrap();
    folder.join(format!("sampan-{}", host.name)).join(service)
}

/// The content of the first of these files that is there: v2's name, v1's name.
fn value(host: &Host, controller: &str, service: &str, names: [&str; 2]) -> String {
    let folder = cgroup(host, controller, service);
    let path = names
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.exists());
    let path = path.unwrap_or_else(|| panic!("none of {names:?} in {}", folder.display()));
    fs::read_to_string(path).unwrap().trim().to_string()
}

#[test]
fn limits_are_in_the_cgroup() {
    let host = Host::new();
    let before = up(
        &host,
        "mem_limit: 64m\ncpus: 0.5\npids_limit: 17",
        "x-sampan: {limits: {memory: 256m, pids: 99}}",
    );
    for (controller, service, names, expected) in [
        (
            "memory",
            "web",
            ["memory.max", "memory.limit_in_bytes"],
            json!("67108864"),
        ),
        (
            "memory",
            "",
            ["memory.max", "memory.limit_in_bytes"],
            json!("268435456"),
        ),
        ("pids", "web", ["pids.max", "pids.max"], json!("17")),
        ("pids", "", ["pids.max", "pids.max"], json!("99")),
    ] {
        assert_eq!(
            json!(value(&host, controller, service, names)),
            expected,
            "{service} {names:?}"
        );
    }
    let cpu = value(&host, "cpu", "web", ["cpu.max", "cpu.cfs_quota_us"]);
    assert!(["50000 100000", "50000"].contains(&cpu.as_str()), "{cpu}");
    // they hold
    let ended = host.sampan(&[
        "exec",
        "web",
        "sh",
        "-c",
        "for i in $(seq 30); do sleep 5 & done; wait",
    ]);
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains("can't fork"), "{ended:?}");
    host.down(&before);
}

#[test]
fn a_reaper_comes_first() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "
x-service: &service {{image: {BUSYBOX}, init: true}}
services:
  web:
    <<: *service
    # no handler: only a first process could ignore it
    command: [sh, -c, 'echo $$$$; while :; do usleep 10000; done']
  told:
    <<: *service
    command: [sh, -c, \"trap 'exit 9' USR1; echo ready; while :; do usleep 10000; done\"]
    stop_signal: USR1
  code:
    <<: *service
    command: [sh, -c, 'exit 33']
"
    ));
    host.sampan(&["up", "-d"]).ok();
    host.await_log("told", "ready");
    host.await_log("web", "\n");
    assert_ne!(host.log("web", "stdout"), b"1\n");
    for (key, value) in [
        ("Seccomp", "2"),
        ("NoNewPrivs", "1"),
        ("CapEff", "00000000a80425fb"),
    ] {
        assert_eq!(status(&host, key), value, "{key}");
    }
    // three streams, the signals, the program
    assert_eq!(host.shell("web", "ls /proc/1/fd | wc -l"), "5");
    // a child that nobody waits for goes to the first process, which does
    host.shell("web", "sh -c 'sleep 0.05 & exec true'; sleep 0.3");
    assert_eq!(
        host.shell(
            "web",
            "grep -h State: /proc/[0-9]*/status | grep -c Z; true"
        ),
        "0"
    );
    assert_eq!(host.sampan(&["wait", "code"]).code, 33);
    host.sampan(&["stop"]).ok();
    assert_eq!(host.row("web")["exit_code"], 143);
    assert_eq!(host.row("told")["exit_code"], 9);
    host.down(&before);

    host.write("binary", [0x7f, b'E', b'L', b'F', 0, 0, 0, 0]);
    let binary = host.project.join("binary");
    fs::set_permissions(binary, fs::Permissions::from_mode(0o755)).unwrap();
    host.compose(&format!(
        "services: {{web: {{image: {BUSYBOX}, init: true, command: [/x], volumes: ['./binary:/x']}}}}"
    ));
    // the reaper runs; that the program cannot is its exit code
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.sampan(&["wait"]).code, 126);
    host.down(&before);
}
