//! `sampan network …` and `sampan cni …` from outside, and pods whose networks can't be given back. Needs root and the
//! Debian packages containernetworking-plugins, iproute2, nftables and util-linux.

mod pod_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use pod_support::{BUSYBOX, Host, tool};
use serde_json::{Value, json};

/// Where Debian's package puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// A pod on networks that are there.
fn compose(host: &Host, networks: &[&str]) {
    let declared: Vec<_> = networks
        .iter()
        .map(|n| format!("{n}: {{external: true}}"))
        .collect();
    host.compose(&format!(
        "services:\n  a:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    stop_signal: KILL\n    networks: [{}]\nnetworks: {{{}}}\n",
        networks.join(", "),
        declared.join(", ")
    ));
}

/// `/var/lib/cni` and `/run` of the test's own.
fn own_folders() {
    for path in ["/var/lib", "/run"] {
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
    }
}

/// A network `outer` whose plugin does not delete while the file exists that this gives.
fn stubborn(host: &Host) -> PathBuf {
    let (conf, plugins) = (host.path().join("cni-conf"), host.path().join("cni-path"));
    for folder in [&conf, &plugins] {
        fs::create_dir_all(folder).unwrap();
    }
    let list = json!({"cniVersion": "1.0.0", "name": "outer", "plugins": [{"type": "stubborn"}]});
    fs::write(conf.join("outer.conflist"), list.to_string()).unwrap();
    let stuck = host.path().join("stuck");
    let plugin = plugins.join("stubborn");
    let text = format!(
        "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && [ -e {} ] && {{ echo '{{\"code\": 11, \"msg\": \"the cable is stuck\"}}'; exit 1; }}\necho '{{}}'\n",
        stuck.display()
    );
    fs::write(&plugin, text).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    stuck
}

#[test]
fn delete_is_tried_again_until_it_works() {
    let host = Host::new();
    let stuck = stubborn(&host);
    compose(&host, &["outer"]);
    let before = host.snapshot();
    let failed = format!(
        "CNI plugin `stubborn` of network `outer` ({}/cni-conf/outer.conflist), DEL: the cable is stuck (code 11)",
        host.path().display()
    );

    // soon
    host.sampan(&["up", "-d"]).ok();
    fs::write(&stuck, "").unwrap();
    let down = host.start(&["down"]);
    pod_support::until("told", || {
        let told = format!("{failed}; trying again in 1 s");
        down.err().contains(&told).then_some(())
    });
    fs::remove_file(&stuck).unwrap();
    down.wait().ok();
    host.assert_clean(&before);

    // much later
    host.sampan(&["up", "-d"]).ok();
    fs::write(&stuck, "").unwrap();
    let ended = host.sampan(&["down"]);
    let text = ended.fails(1);
    for pause in [1, 2, 4, 8] {
        assert!(
            text.contains(&format!("trying again in {pause} s")),
            "{text}"
        );
    }
    assert!(text.contains("`sampan down --force` gives it up"), "{text}");
    let rows = host.sampan(&["ps", "-A", "--format", "json"]).json();
    assert_eq!(rows[0]["removing"], failed);
    assert!(
        host.sampan(&["ps"])
            .ok()
            .contains("removing: CNI plugin `stubborn`")
    );
    let is_remover = |(_, line): &(i32, String)| line.contains("internal remover");
    assert!(host.processes().iter().any(is_remover), "somebody goes on");
    let ended = host.sampan(&["network", "gc"]);
    let text = ended.fails(1);
    assert!(
        text.contains(&format!("pod {}: {failed}", host.name)),
        "{text}"
    );
    assert!(host.processes().iter().any(is_remover), "somebody goes on");
    fs::remove_file(&stuck).unwrap();
    let freed = host.sampan(&["network", "gc", "--format", "json"]).json();
    // unless who went on in the background was first
    let pods = freed.as_array().unwrap().iter();
    for pod in pods.filter(|row| row["kind"] == "pod") {
        assert_eq!(
            *pod,
            json!({"version": 1, "kind": "pod", "name": host.name, "freed": 1})
        );
    }
    host.assert_clean(&before);

    // never
    host.sampan(&["up", "-d"]).ok();
    fs::write(&stuck, "").unwrap();
    let ended = host.sampan(&["down", "--force"]);
    ended.ok();
    let given_up = format!("sampan: warning: given up: {failed}");
    assert!(ended.stderr.contains(&given_up), "{}", ended.stderr);
    host.assert_clean(&before);
}

#[test]
fn what_a_compose_file_tells_plugins() {
    let host = Host::new();
    stubborn(&host);
    let log = host.path().join("log");
    let text = format!(
        "#!/bin/sh\n[ $CNI_COMMAND = ADD ] && {{ echo \"$CNI_ARGS\"; cat; }} >{}\necho '{{}}'\n",
        log.display()
    );
    fs::write(host.path().join("cni-path/stubborn"), text).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "outer", "plugins": [
        {"type": "stubborn", "capabilities": {"labels": true, "bandwidth": true, "mac": true}}]});
    let conf = host.path().join("cni-conf/outer.conflist");
    fs::write(&conf, list.to_string()).unwrap();
    let file = |capabilities: &str| {
        host.compose(&format!(
            "services: {{a: {{image: {BUSYBOX}, command: [sleep, '1000'], stop_signal: KILL, networks: {{outer: {{mac_address: '02:00:00:00:00:09'}}}}}}}}\n\
             networks:\n  outer:\n    external: true\n    x-sampan:\n      labels: {{app: web}}\n      \
             cni_args: {{TEAM: red}}\n      capabilities: {{{capabilities}}}\n"
        ));
    };
    file("bandwidth: {ingressRate: 1000, ingressBurst: 2000}");
    host.sampan(&["up", "-d"]).ok();
    let logged = fs::read_to_string(&log).unwrap();
    let (args, stdin) = logged.split_once('\n').unwrap();
    assert_eq!(
        args,
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=sampan;K8S_POD_NAME={};TEAM=red",
            host.name
        )
    );
    let got: Value = serde_json::from_str(stdin).unwrap();
    let labels = json!([{"key": "app", "value": "web"}]);
    assert_eq!(
        got["runtimeConfig"],
        json!({"labels": {"app": "web"}, "mac": "02:00:00:00:00:09",
            "bandwidth": {"ingressRate": 1000, "ingressBurst": 2000}})
    );
    assert_eq!(got["args"]["cni"]["labels"], labels);
    assert_eq!(
        got["args"]["org.apache.mesos"]["network_info"],
        json!({"name": "outer", "labels": {"labels": labels}})
    );
    host.sampan(&["down"]).ok();
    file("deviceID: '0000:04:00.5'");
    let ended = host.sampan(&["up", "-d"]);
    let text = format!(
        "network `outer` ({}): no plugin declares the capability `deviceID`",
        conf.display()
    );
    assert!(ended.fails(125).contains(&text), "{}", ended.stderr);
    file("mac: '02:00:00:00:00:01'");
    let ended = host.sampan(&["config", "-q"]);
    assert!(
        ended
            .fails(1)
            .contains("compose has words of its own for it"),
        "{}",
        ended.stderr
    );
}

#[test]
fn networks_are_made_checked_and_removed() {
    let mut host = Host::new();
    own_folders();
    host.env.push(("SAMPAN_CNI_PATH".into(), REFERENCE.into()));
    let file = host.path().join("cni-conf/back.conflist");
    let create = [
        "network",
        "create",
        "back",
        "--subnet",
        "10.61.0.0/24",
        "--ip-range",
        "10.61.0.64/26",
        "--ipv6",
    ];
    assert_eq!(host.sampan(&create).ok(), format!("{}\n", file.display()));
    let text = host.sampan(&create);
    assert!(text.fails(1).contains("network back is there already"));
    for (arguments, message) in [
        (
            &["--gateway", "10.0.0.1"][..],
            "--gateway 10.0.0.1: in no --subnet",
        ),
        (&["--subnet", "10.61.0.0/31"], "is too small"),
        (
            &["--driver", "nothing"],
            "plugin nothing is neither built in nor in /usr/lib/cni; install it",
        ),
    ] {
        let ended = host.sampan(&[&["network", "create", "other"], arguments].concat());
        assert!(ended.fails(1).contains(message), "{}", ended.stderr);
    }
    // the file is for everybody: the reference plugins make of it what ours do
    for (plugins, address) in [
        (REFERENCE, "10.61.0.64/24"),
        ("/nonexistent", "10.61.0.65/24"),
    ] {
        host.env.push(("SAMPAN_CNI_PATH".into(), plugins.into()));
        compose(&host, &["back"]);
        host.sampan(&["up", "-d"]).ok();
        let row = host.row("a");
        assert_eq!(row["addresses"][0], address, "{plugins}");
        assert!(host.sampan(&["network", "check"]).ok().contains("ok"));
        let used = host.sampan(&["network", "rm", "back"]);
        let text = format!("network back is in use: eth0 of pod {}", host.name);
        assert!(used.fails(1).contains(&text), "{}", used.stderr);
        assert!(file.exists());
        let pid = row["pid"].to_string();
        tool("nsenter", &["-t", &pid, "-n", "ip", "link", "del", "eth0"]);
        let checked = host.sampan(&["network", "check", &host.name, "--format", "json"]);
        assert_eq!(checked.code, 1);
        let rows: Value = serde_json::from_str(&checked.out()).unwrap();
        assert_eq!(
            (&rows[0]["ok"], &rows[0]["interface"]),
            (&json!(false), &json!("eth0"))
        );
        host.sampan(&["down"]).ok();
    }
    // another runtime's
    let leases = Path::new("/var/lib/cni/networks/back");
    fs::write(leases.join("10.61.0.99"), "podman1\r\neth0").unwrap();
    let used = host.sampan(&["network", "rm", "back"]);
    let text = "network back is in use: eth0 of container podman1 of another runtime";
    assert!(used.fails(1).contains(text), "{}", used.stderr);
    fs::remove_file(leases.join("10.61.0.99")).unwrap();
    host.sampan(&["network", "rm", "back"]).ok();
    assert!(!file.exists() && !leases.exists());
    assert!(
        host.sampan(&["network", "rm", "back"])
            .fails(1)
            .contains("no CNI network list `back`")
    );
}

#[test]
fn a_configuration_by_hand() {
    let mut host = Host::empty();
    own_folders();
    for folder in ["/run/netns", "/var/lib/net.d"] {
        fs::create_dir(folder).unwrap();
    }
    tool("ip", &["netns", "add", "try"]);
    let list = json!({"cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "name": "lab", "plugins": [{
        "type": "bridge", "bridge": "br7", "capabilities": {"ips": true},
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.62.0.0/24"}]]}}]});
    fs::write("/var/lib/net.d/lab.conflist", list.to_string()).unwrap();
    host.env.extend([
        ("SAMPAN_CNI_CONF".into(), "/etc/cni/net.d".into()),
        ("SAMPAN_CNI_PATH".into(), "/opt/cni/bin:/usr/lib/cni".into()),
        // cnitool's own
        ("NETCONFPATH".into(), "/var/lib/net.d".into()),
        ("CNI_PATH".into(), REFERENCE.into()),
    ]);
    let addresses = |result: &Value| result["ips"][0]["address"].clone();
    let result = host.sampan(&["cni", "ADD", "lab", "try"]).json();
    assert_eq!(
        (&result["cniVersion"], addresses(&result)),
        (&json!("1.0.0"), json!("10.62.0.2/24"))
    );
    for arguments in [&["CHECK", "lab", "try"][..], &["STATUS", "lab"]] {
        host.sampan(&[&["cni"], arguments].concat()).ok();
    }
    let capabilities = r#"{"ips": ["10.62.0.77/24"]}"#;
    let arguments = [
        "cni",
        "add",
        "lab",
        "/run/netns/try",
        "--ifname",
        "x0",
        "--capability-args",
        capabilities,
    ];
    assert_eq!(addresses(&host.sampan(&arguments).json()), "10.62.0.77/24");
    let links = tool("ip", &["-n", "try", "-br", "addr"]);
    assert!(
        links.contains("10.62.0.2/24") && links.contains("10.62.0.77/24"),
        "{links}"
    );
    let known = host.sampan(&["cni", "VERSION", "lab"]).json();
    assert!(
        known["bridge"]
            .as_array()
            .unwrap()
            .contains(&json!("1.0.0")),
        "{known}"
    );
    let again = host.sampan(&["cni", "ADD", "lab", "try"]);
    assert!(
        again
            .fails(1)
            .contains("an attachment is recorded there already")
    );
    let ended = host.sampan(&[
        "cni",
        "ADD",
        "lab",
        "try",
        "-i",
        "y0",
        "--capability-args",
        r#"{"mac": "02:00:00:00:00:01"}"#,
    ]);
    assert!(
        ended
            .fails(1)
            .contains("but no plugin declares the capability `mac`"),
        "{}",
        ended.stderr
    );
    // from the record, whatever became of the file
    fs::remove_file("/var/lib/net.d/lab.conflist").unwrap();
    host.sampan(&["cni", "DEL", "lab", "try"]).ok();
    assert!(!tool("ip", &["-n", "try", "link"]).contains("eth0"));
    // the namespace went without DEL
    tool("ip", &["netns", "del", "try"]);
    host.sampan(&["network", "gc"]).ok();
    let leases = fs::read_dir("/var/lib/cni/networks/lab").unwrap();
    let left = leases.filter(|l| {
        l.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("10.")
    });
    assert_eq!(left.count(), 0);
}
