//! `up` that fails halfway says why, and leaves nothing.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use sampan::network::owner;
use serde_json::json;

use super::pod_support::{BUSYBOX, Host};

/// Brings up a file that cannot be brought up: the last line that is printed.
#[track_caller]
fn refused(host: &Host, arguments: &[&str], code: i32, message: &str) {
    let before = host.snapshot();
    let ended = host.sampan(&[&["up", "-d"], arguments].concat());
    let text = ended.fails(code);
    let project = host.project.to_str().unwrap();
    let last = text
        .lines()
        .last()
        .unwrap_or_default()
        .replace(project, "PROJECT");
    assert_eq!(last, message);
    host.assert_clean(&before);
    let volumes = fs::read_dir(host.root.join("volumes")).map_or(0, Iterator::count);
    assert_eq!(volumes, 0, "a volume is left");
}

/// A pod with a service that is fine, and one that is not and depends on it.
fn pod(bad: &str, rest: &str) -> String {
    let lines: Vec<String> = bad.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "services:\n  good:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    stop_signal: KILL\n    ports: ['18100:80']\n  \
         bad:\n    depends_on: [good]\n    stop_signal: KILL\n{}{rest}\n",
        lines.concat()
    )
}

#[test]
fn services_that_cannot_run() {
    let host = Host::new();
    let image = format!("image: {BUSYBOX}\n");
    host.write("script", "#!/bin/sh\n");
    for (bad, code, message) in [
        (
            "image: localhost/nothing\npull_policy: never".to_string(),
            125,
            "sampan: compose.yaml:7: services.bad.image: image localhost/nothing is not in the store and must not be pulled; import it with `sampan image import`",
        ),
        (
            format!("{image}command: [nothing]"),
            127,
            "sampan: service bad: exec \"nothing\": executable file not found in $PATH",
        ),
        (
            format!("{image}command: [/script]\nvolumes: ['./script:/script']"),
            126,
            "sampan: service bad: exec \"/script\": Permission denied (os error 13)",
        ),
        (
            format!("{image}command: [/script]\nvolumes: ['./binary:/script']"),
            126,
            "sampan: service bad: exec \"/script\": Exec format error (os error 8)",
        ),
        (
            format!("{image}command: [sleep, '9']\nuser: stranger"),
            125,
            "sampan: service bad: compose.yaml:7: services.bad.user: user \"stranger\" is not in the image's /etc/passwd",
        ),
        (
            format!("{image}command: [sleep, '9']\ngroup_add: [wheel]"),
            125,
            "sampan: service bad: compose.yaml:7: services.bad.user: group \"wheel\" is not in the image's /etc/group",
        ),
        (
            format!(
                "{image}command: [sleep, '9']\nvolumes: [{{type: bind, source: ./nowhere, target: /x, bind: {{create_host_path: false}}}}]"
            ),
            1,
            "sampan: compose.yaml:12: services.bad.volumes: PROJECT/nowhere: No such file or directory (os error 2)",
        ),
        (
            format!("{image}command: [sleep, '9']\ncap_add: [FLY]"),
            125,
            "sampan: service bad: compose.yaml:7: services.bad: capability \"FLY\" is not known",
        ),
        (
            format!("{image}command: [sleep, '9']\nsysctls: {{net.ipv4.nothing: 1}}"),
            125,
            "sampan: service bad: set sysctl net/ipv4/nothing: No such file or directory (os error 2)",
        ),
        (
            format!("{image}command: [sleep, '9']\ndevices: [/dev/nothing]"),
            125,
            "sampan: service bad: compose.yaml:7: services.bad: device /dev/nothing: No such file or directory (os error 2)",
        ),
    ] {
        host.write("binary", [0x7f, b'E', b'L', b'F', 0, 0, 0, 0]);
        fs::set_permissions(
            host.project.join("binary"),
            fs::Permissions::from_mode(0o755),
        )
        .unwrap();
        host.compose(&pod(&bad, ""));
        refused(&host, &[], code, message);
    }
}

#[test]
fn health_that_never_comes() {
    let host = Host::new();
    host.compose(&pod(
        &format!(
            "image: {BUSYBOX}\ncommand: [sleep, '1000']\nhealthcheck: {{test: echo not yet; false, interval: 20ms, retries: 2}}"
        ),
        "",
    ));
    refused(
        &host,
        &["--wait"],
        1,
        "sampan: service bad is unhealthy: healthcheck failed 2 times: exit code 1: not yet",
    );
}

#[test]
fn ports_that_others_have() {
    let host = Host::new();
    let image = format!("image: {BUSYBOX}\ncommand: [sleep, '1000']\n");
    let taken = "cannot publish 18101/tcp: the port is already taken on this host";
    host.compose(&pod(&format!("{image}ports: ['18101:81']"), ""));
    let message = format!("sampan: compose.yaml:12: services.bad.ports: {taken}");
    {
        let _listener = TcpListener::bind("0.0.0.0:18101").unwrap();
        refused(&host, &[], 125, &message);
    }
    let run = [
        "run", "-d", "--name", "other", "-p", "18101:81", BUSYBOX, "sleep", "1000",
    ];
    host.sampan(&run).ok();
    refused(&host, &[], 125, &message);
    host.sampan(&["-p", "other", "down", "-t", "0"]).ok();
    let before = host.snapshot();
    host.sampan(&["up", "-d"]).ok();
    host.down(&before);
}

#[test]
fn networks_that_cannot_be_had() {
    let host = Host::new();
    let image = format!("image: {BUSYBOX}\ncommand: [sleep, '1000']\n");
    let conf = host.path().join("cni-conf");
    let plugins = host.path().join("cni-path");
    fs::create_dir_all(&plugins).unwrap();
    let file = pod(
        &format!("{image}networks: [default, outer]"),
        "networks: {default: , outer: {external: true}}",
    );
    host.compose(&file);
    let missing = format!(
        "sampan: compose.yaml:13: networks.outer: no CNI network list `outer` in {}",
        conf.display()
    );
    refused(&host, &[], 125, &missing);

    // a plugin that does its work and then fails: what it made is its own to undo, and it is told to
    fs::create_dir_all(&conf).unwrap();
    fs::write(
        conf.join("outer.conflist"),
        r#"{"cniVersion": "1.0.0", "name": "outer", "plugins": [{"type": "stubborn"}]}"#,
    )
    .unwrap();
    let plugin = plugins.join("stubborn");
    let calls = host.path().join("calls");
    fs::write(
        &plugin,
        format!(
            r#"#!/bin/sh
echo "$CNI_COMMAND" >> {calls}
case $CNI_COMMAND in
VERSION) echo '{{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}}' ;;
ADD) ip link add stubborn0 type dummy 2>/dev/null; echo no luck >&2; echo '{{"cniVersion": "1.0.0", "code": 107, "msg": "no cable", "details": "look behind the desk"}}'; exit 1 ;;
DEL) ip link del stubborn0 2>/dev/null || true ;;
esac
"#,
            calls = calls.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    refused(
        &host,
        &[],
        125,
        &format!(
            "sampan: CNI plugin `stubborn` of network `outer` ({}/outer.conflist), ADD: no cable (code 107): look behind the desk; stderr: no luck",
            conf.display()
        ),
    );
    let calls = fs::read_to_string(&calls).unwrap();
    assert_eq!(
        calls.lines().find(|call| *call != "VERSION"),
        Some("ADD"),
        "{calls}"
    );
    assert_eq!(calls.lines().last(), Some("DEL"), "{calls}");
}

#[test]
fn addresses_that_leaked() {
    let host = Host::new();
    let conf = host.path().join("cni-conf");
    let leases = host.path().join("leases");
    fs::create_dir_all(&conf).unwrap();
    // one address in all
    let range =
        json!({"subnet": "10.97.0.0/24", "rangeStart": "10.97.0.2", "rangeEnd": "10.97.0.2"});
    let ipam = json!({"type": "host-local", "dataDir": leases, "ranges": [[range]]});
    let bridge = json!({"type": "bridge", "bridge": "leak0", "ipam": ipam});
    let list = json!({"cniVersion": "1.0.0", "name": "leaky", "plugins": [bridge]});
    fs::write(conf.join("leaky.conflist"), list.to_string()).unwrap();
    host.compose(&format!(
        "services: {{web: {{image: {BUSYBOX}, command: [sleep, '1000'], stop_signal: KILL}}}}\n\
         networks: {{default: {{external: true, name: leaky}}}}\n"
    ));
    let leak = |ip: &str| {
        let id = owner::container_id(&host.state, "gone");
        fs::write(leases.join("leaky").join(ip), format!("{id}\r\neth0")).unwrap();
    };
    let is_leased = |ip: &str| leases.join("leaky").join(ip).exists();
    let up = || {
        let up = host.sampan(&["up", "-d"]);
        up.ok();
        let freed = up.stderr.contains("1 leaked addresses are free again");
        host.sampan(&["down"]).ok();
        freed
    };
    assert!(!up());
    // nobody looks for a while
    leak("10.97.0.3");
    assert!(!up());
    assert!(is_leased("10.97.0.3"));
    // but when there is no address for the pod
    leak("10.97.0.2");
    assert!(!up());
    assert!(!is_leased("10.97.0.2") && !is_leased("10.97.0.3"));
    leak("10.97.0.3");
    let looked = fs::File::options()
        .write(true)
        .open(host.state.join("networks/leaky.lock"))
        .unwrap();
    looked
        .set_modified(SystemTime::now() - Duration::from_secs(61))
        .unwrap();
    assert!(up());
    assert!(!is_leased("10.97.0.3"));
}

#[test]
fn volumes_that_are_not_there() {
    let host = Host::new();
    host.compose(&pod(
        &format!("image: {BUSYBOX}\nvolumes: ['outer:/x']"),
        "volumes: {outer: {external: true}}",
    ));
    let looked = host.root.join("volumes/outer/_data");
    refused(
        &host,
        &[],
        1,
        &format!(
            "sampan: volume outer is external and does not exist (looked for {})",
            looked.display()
        ),
    );
}
