//! Killed at the worst moment.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use sampan::network::{Attachment, Cni, add_all, del_all, netns};
use serde_json::json;

use crate::{Host, addresses, attachment, host_links, list};

/// Run by [`a_crash_is_undone_from_the_cache`] in a process of its own, which a plugin kills.
#[test]
#[ignore = "part of another test"]
fn crash_child() {
    let Ok(dir) = std::env::var("CRASH_DIR") else {
        return;
    };
    let dir = Path::new(&dir);
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    let cni: Cni = serde_json::from_slice(&read("cni")).unwrap();
    let attachments: Vec<Attachment> = serde_json::from_slice(&read("attachments")).unwrap();
    let _ = add_all(&cni, &dir.join("pod"), &attachments, &dir.join("cache"));
    unreachable!("killed by a plugin");
}

#[test]
fn a_crash_is_undone_from_the_cache() {
    let mut host = Host::new();
    crash(&host, "tuning");
    host.cni.plugin_dirs = vec![host.path("plugins")];
    crash(&host, "portmap");
}

/// Attaches two networks and is killed in the middle of the second one; `meta` is a plugin that only changes things.
fn crash(host: &Host, meta: &str) {
    let kill = json!({"type": "kill"});
    let meta = json!({"type": meta});
    // first in its chain, between two plugins, and after the only real one
    let chains = [
        list("net2", std::slice::from_ref(&kill)),
        host.bridge(2, &[kill.clone(), meta.clone()]),
        host.bridge(2, &[meta, kill]),
    ];
    host.script("kill", "[ $CNI_COMMAND = ADD ] && kill -9 $PPID; exit 0");
    for chain in chains {
        let pod = host.netns("pod");
        let attachments = [
            attachment(host.bridge(1, &[]), "eth0"),
            attachment(chain, "eth1"),
        ];
        let write = |name: &str, text: String| fs::write(host.path(name), text).unwrap();
        write("cni", serde_json::to_string(&host.cni).unwrap());
        write("attachments", serde_json::to_string(&attachments).unwrap());
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "crash::crash_child",
                "--ignored",
                "--test-threads=1",
            ])
            .env("CRASH_DIR", host.dir.path())
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(9));
        assert_eq!(host.leases("net1").len(), 2, "the first network was there");
        // a half-written cache file is nobody's
        fs::write(host.path("cache/.01-eth1.json.1.00000000"), "{").unwrap();
        del_all(&host.cni, Some(&pod), &host.path("cache")).unwrap();
        assert!(!host.path("cache").exists());
        assert_eq!(addresses(&pod), [""; 0]);
        assert_eq!(host_links(), [""; 0]);
        assert_eq!(host.leases("net1"), [""; 0]);
        assert_eq!(host.leases("net2"), [""; 0]);
        netns::remove(&pod).unwrap();
    }
}
