//! What leaked is found again, and what is another runtime's is left alone.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use sampan::network::gc::{self, Busy, LEASES};
use sampan::network::{Attachment, NetworkList, add, add_all, del_all, netns, owner, recorded};
use serde_json::{Value, json};

use crate::{Host, attachment, list};

/// A network whose addresses are in the standard folder.
fn network(name: &str) -> NetworkList {
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.4.0.0/21"}]]});
    list(
        name,
        &[json!({"type": "bridge", "bridge": "br4", "ipam": ipam})],
    )
}

/// ADD of host-local alone: the reference plugin's program, or ours.
fn lease(reference: bool, id: &str, ifname: &str) {
    let mut config = network("lab").config["plugins"][0].clone();
    config["name"] = "lab".into();
    config["cniVersion"] = "1.0.0".into();
    if !reference {
        let invocation = cni_plugins::Invocation {
            command: cni_plugins::Command::Add,
            container_id: id.into(),
            netns: Some("/proc/self/ns/net".into()),
            ifname: ifname.into(),
            args: String::new(),
            path: vec![],
            config,
        };
        cni_plugins::run("host-local", &invocation).unwrap();
        return;
    }
    let text = format!("echo '{config}' | /usr/lib/cni/host-local >/dev/null");
    let status = Command::new("sh")
        .args(["-c", &text])
        .envs([
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_IFNAME", ifname),
            ("CNI_PATH", "/usr/lib/cni"),
        ])
        .status();
    assert!(status.unwrap().success());
}

/// Holders of the leases of a network, sorted.
fn holders(name: &str) -> Vec<String> {
    let mut found: Vec<_> = fs::read_dir(Path::new(LEASES).join(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.parse::<IpAddr>().is_ok()
        })
        .map(|path| fs::read_to_string(path).unwrap().replace("\r\n", " "))
        .collect();
    found.sort();
    found
}

#[test]
fn five_hundred_leaked_leases() {
    let host = Host::new();
    host.own_var_lib();
    let state = &host.cni.state;
    let own = |n: usize| owner::container_id(state, &format!("pod{n}"));
    for n in 0..250 {
        lease(true, &own(n), "eth0");
        lease(false, &own(n), "eth1");
    }
    // of another runtime, through both plugins, and of a second state folder
    let elsewhere = owner::container_id(Path::new("/elsewhere"), "pod1");
    let foreign = ["0a1b2c3d4e5f", "cnitool-77", elsewhere.as_str(), "sampan-x"];
    for id in foreign {
        lease(true, id, "eth0");
        lease(false, id, "eth1");
    }
    // of a plugin that was killed before it wrote whose it is
    fs::write(Path::new(LEASES).join("lab/10.4.7.77"), "").unwrap();
    // and one that is in use
    let pod = host.netns("pod");
    let attachments = [Attachment {
        container_id: own(7),
        ..attachment(network("lab"), "store")
    }];
    let caches = [host.path("cache"), host.path("none")];
    add_all(&host.cni, &pod, &attachments, &caches[0]).unwrap();
    assert_eq!(holders("lab").len(), 500 + 8 + 1 + 1);
    let collect = || gc::collect(&host.cni, &network("lab"), &caches, Busy::Wait).unwrap();
    assert_eq!(collect(), 501);
    let mut left: Vec<_> = foreign
        .iter()
        .flat_map(|id| [format!("{id} eth0"), format!("{id} eth1")])
        .chain([format!("{} store", own(7))])
        .collect();
    left.sort();
    assert_eq!(holders("lab"), left);
    assert_eq!(collect(), 0);
    // the network is on its way out, but its records are not
    assert_eq!(gc::collect_orphans(state, &[], &caches).unwrap(), 0);
    del_all(&host.cni, Some(&pod), &caches[0]).unwrap();
    lease(true, &own(8), "eth0");
    assert_eq!(gc::collect_orphans(state, &[], &caches).unwrap(), 1);
    left.retain(|holder| !holder.ends_with("store"));
    assert_eq!(holders("lab"), left);
}

#[test]
fn killed_in_the_middle_and_the_records_lost() {
    let host = Host::new();
    host.own_var_lib();
    host.script("kill", "[ $CNI_COMMAND = ADD ] && kill -9 $PPID; exit 0");
    let mut chain = network("lab");
    let plugins = chain.config["plugins"].as_array_mut().unwrap();
    plugins.push(json!({"type": "kill"}));
    for round in 0..3 {
        let pod = host.netns("pod");
        let attachments = [Attachment {
            container_id: owner::container_id(&host.cni.state, &format!("pod{round}")),
            ..attachment(chain.clone(), "eth0")
        }];
        let write = |name: &str, text: String| fs::write(host.path(name), text).unwrap();
        write("cni", serde_json::to_string(&host.cni).unwrap());
        write("attachments", serde_json::to_string(&attachments).unwrap());
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::crash_child", "--ignored"])
            .env("CRASH_DIR", host.dir.path())
            .output();
        assert!(!output.unwrap().status.success());
        assert_eq!(recorded(&host.path("cache")).unwrap().len(), 1);
        assert_eq!(holders("lab").len(), round + 1);
        // as a restart of the machine does it
        fs::remove_dir_all(host.path("cache")).unwrap();
        netns::remove(&pod).unwrap();
    }
    let caches = [host.path("cache")];
    let collected = gc::collect(&host.cni, &network("lab"), &caches, Busy::Skip);
    assert_eq!(collected.unwrap(), 3);
    assert_eq!(holders("lab"), [""; 0]);
}

#[test]
fn plugins_are_told_what_others_have() {
    let host = Host::new();
    host.own_var_lib();
    host.script(
        "rec",
        "[ $CNI_COMMAND = GC ] && { env | grep ^CNI_ | sort >>$log; cat >>$log; exit; }
[ $CNI_COMMAND = VERSION ] && { echo '{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"1.1.0\"]}'; exit; }
echo '{}'",
    );
    let config = |extra: Value| {
        let ipam = json!({"type": "host-local"});
        let mut config = json!({"cniVersions": ["0.4.0", "1.1.0"], "name": "lab",
            "plugins": [{"type": "rec", "ipam": ipam, "key": 1}]});
        if let (Some(config), Value::Object(extra)) = (config.as_object_mut(), extra) {
            config.extend(extra);
        }
        NetworkList::parse(config.to_string().as_bytes(), "test").unwrap()
    };
    let id = owner::container_id(&host.cni.state, "web");
    let results = Path::new("/var/lib/cni/results");
    fs::create_dir_all(results).unwrap();
    // as libcni writes it
    let cached = |name: &str, id: &str| {
        let value = json!({"kind": "cniCacheV1", "containerId": id, "config": "", "ifName": "eth7",
            "networkName": name, "result": {}});
        fs::write(results.join(format!("{name}-{id}-eth7")), value.to_string()).unwrap();
    };
    cached("lab", "podman1");
    cached("lab", &format!("{id}-gone"));
    cached("other", "podman2");
    fs::write(results.join("nonsense"), "{").unwrap();
    let leases = Path::new(LEASES).join("lab");
    fs::create_dir_all(&leases).unwrap();
    fs::write(leases.join("10.4.0.9"), "nerd\r\neth0").unwrap();
    let caches = [host.path("cache")];
    let pod = host.netns("pod");
    let attachments = [Attachment {
        container_id: id.clone(),
        ..attachment(config(json!({})), "eth0")
    }];
    add_all(&host.cni, &pod, &attachments, &caches[0]).unwrap();
    let collect = |list: &NetworkList| {
        gc::collect(&host.cni, list, &caches, Busy::Wait).unwrap();
    };
    collect(&config(json!({"disableGC": true})));
    assert_eq!(host.log(), "");
    collect(&config(json!({})));
    let log = host.log();
    let (environment, stdin) = log.split_at(log.find('{').unwrap());
    let path: Vec<_> = host
        .cni
        .plugin_dirs
        .iter()
        .map(|d| d.to_str().unwrap())
        .collect();
    assert_eq!(
        environment,
        format!(
            "CNI_ARGS=\nCNI_COMMAND=GC\nCNI_CONTAINERID=\nCNI_IFNAME=\nCNI_NETNS=\nCNI_PATH={}\n",
            path.join(":")
        )
    );
    let got: Value = serde_json::from_str(stdin).unwrap();
    let valid = |id: &str, ifname: &str| json!({"containerID": id, "ifname": ifname});
    let expected = json!({"cniVersion": "1.1.0", "name": "lab", "type": "rec", "key": 1,
        "ipam": {"type": "host-local"},
        "args": host.args(),
        "cni.dev/valid-attachments": [valid("nerd", "eth0"), valid("podman1", "eth7"), valid(&id, "eth0")]});
    assert_eq!(got, expected);
    // what can't be read may be in use
    fs::write(caches[0].join("01-eth1.json"), "{").unwrap();
    let error = gc::collect(&host.cni, &config(json!({})), &caches, Busy::Wait).unwrap_err();
    assert!(
        error.to_string().contains("01-eth1.json:1: not a record"),
        "{error}"
    );
}

#[test]
fn add_and_gc_keep_out_of_each_others_way() {
    let host = Host::new();
    let at_work = host.path("at-work");
    let text = format!(
        "echo $CNI_COMMAND >>$log; [ $CNI_COMMAND = ADD ] || exit 0
touch {0}; while [ -e {0} ]; do sleep 0.05; done; echo done >>$log; echo '{{}}'",
        at_work.display()
    );
    host.script("slow", &text);
    let config = json!({"cniVersion": "1.1.0", "name": "n", "type": "slow"});
    let list = NetworkList::parse(config.to_string().as_bytes(), "test").unwrap();
    let pod = host.netns("pod");
    let cache = host.path("cache/00-eth0.json");
    let caches: [PathBuf; 1] = [host.path("cache")];
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| {
            add(&host.cni, &pod, &attachment(list.clone(), "eth0"), &cache).unwrap();
        });
        while !at_work.exists() {
            std::thread::yield_now();
        }
        gc::collect(&host.cni, &list, &caches, Busy::Skip).unwrap();
        assert_eq!(host.log(), "ADD\n");
        let waiting = scope.spawn(|| gc::collect(&host.cni, &list, &caches, Busy::Wait).unwrap());
        fs::remove_file(&at_work).unwrap();
        adding.join().unwrap();
        waiting.join().unwrap();
    });
    assert_eq!(host.log(), "ADD\ndone\nGC\n");
}
