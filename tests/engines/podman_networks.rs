//! podman's networks, whose back end is CNI: our plugins beside the reference ones.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::podman::{IMAGE, Podman};

/// Everything that is ours to choose or to leave, and what the containers see, one a line.
fn life(plugins: &str) -> Vec<String> {
    let podman = Podman::with_plugins(plugins);
    let machine = &podman.machine;
    // what the back end, host-local and iptables keep there
    machine.shell("mount -t tmpfs tmpfs /var/lib; mkdir /var/lib/cni");
    let left = || {
        machine.shell(
            "ip -o link | cut -d : -f 2; find /var/lib/cni -type f ! -name '*lock' ! -name 'last_reserved_ip*'",
        )
    };
    let before = left();
    let mut seen = Vec::new();

    podman.ok(&[
        "network",
        "create",
        "--subnet=10.77.0.0/24",
        "--ipv6",
        "--subnet=fd77::/64",
        "--opt=mtu=1400",
        "lan",
    ]);
    podman.ok(&[
        "network",
        "create",
        "--internal",
        "--subnet=10.78.0.0/24",
        "store",
    ]);
    let serve = "hostname >/tmp/index.html; exec httpd -f -p 80 -h /tmp";
    podman.ok(&[
        "run",
        "--detach",
        "--name=web",
        "--hostname=web",
        "--network=lan",
        "--ip=10.77.0.5",
        "--mac-address=02:00:00:00:77:05",
        "--publish=8080:80",
        "--publish=127.0.0.1:8081:80",
        IMAGE,
        "sh",
        "-c",
        serve,
    ]);
    let interfaces = "for link in /sys/class/net/eth*; do echo ${link##*/} $(cat $link/mtu); done; \
                      ip -o addr | awk '$2 != \"lo\" && $4 !~ /^fe80/ { print $2, $4 }'; ip route; ip -6 route | grep default";
    seen.push(podman.ok(&["exec", "web", "sh", "-c", interfaces]));
    seen.push(podman.ok(&["exec", "web", "cat", "/sys/class/net/eth0/address"]));
    for format in [
        "IPAddress",
        "IPPrefixLen",
        "Gateway",
        "GlobalIPv6Address",
        "MacAddress",
    ] {
        let field = format!("{{{{.NetworkSettings.Networks.lan.{format}}}}}");
        seen.push(podman.field("web", &field));
    }
    // from another container, from the host, from a neighbour's point of view: the host's address
    let ask = |url: &str| {
        podman.ok(&[
            "run",
            "--rm",
            "--network=lan",
            IMAGE,
            "wget",
            "-q",
            "-O",
            "-",
            url,
        ])
    };
    seen.push(ask("http://10.77.0.5/"));
    seen.push(ask("http://10.77.0.1:8080/"));
    for address in [
        "127.0.0.1:8080",
        "127.0.0.1:8081",
        "10.77.0.1:8080",
        "10.77.0.5:80",
    ] {
        seen.push(machine.shell(&format!("curl -sS --max-time 5 http://{address}/")));
    }
    // a second network while it runs
    podman.ok(&["network", "connect", "store", "web"]);
    seen.push(podman.ok(&["exec", "web", "sh", "-c", interfaces]));
    let inside = [
        "run",
        "--rm",
        "--network=store",
        IMAGE,
        "wget",
        "-q",
        "-O",
        "-",
        "http://10.78.0.2/",
    ];
    seen.push(podman.ok(&inside));
    podman.ok(&["network", "disconnect", "store", "web"]);
    seen.push(podman.ok(&["exec", "web", "sh", "-c", interfaces]));
    // the port is free again, and taken again
    podman.ok(&["restart", "--time=0", "web"]);
    seen.push(ask("http://10.77.0.5/"));
    seen.push(machine.shell("curl -sS --max-time 5 http://127.0.0.1:8080/"));

    podman.ok(&["rm", "--force", "--time=0", "web"]);
    podman.ok(&["network", "rm", "lan", "store"]);
    assert_eq!(left(), before, "{plugins}");
    podman.assert_clean();
    seen
}

#[test]
fn networks_of_podman_are_the_same_with_our_plugins() {
    // not below /tmp, which is the machine's own there
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_sampan")).with_file_name("cni-plugins");
    for name in [
        "bridge",
        "firewall",
        "host-local",
        "loopback",
        "portmap",
        "tuning",
    ] {
        symlink(&program, folder.path().join(name)).unwrap();
    }
    fs::metadata(&program).expect("cargo build --workspace");
    let ours = life(folder.path().to_str().unwrap());
    let theirs = life("/usr/lib/cni");
    assert_eq!(ours, theirs);
}
