//! Networks of a pod with real plugins in network and mount namespaces of the test's own. Runs as root; needs Debian's
//! `containernetworking-plugins` in `/usr/lib/cni`, `ip` (iproute2) and `nsenter` (util-linux).

mod attach;
mod crash;
mod failing;
mod gc;
mod generated;
mod reference;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sampan::network::{Attachment, Cni, NetworkList, netns, owner};
use serde_json::{Value, json};

/// A host of the test's own: namespaces of the calling thread, a folder, an empty plugin folder before Debian's.
struct Host {
    dir: tempfile::TempDir,
    cni: Cni,
}

impl Host {
    fn new() -> Host {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let plugins = dir.path().join("plugins");
        fs::create_dir(&plugins).unwrap();
        let cni = Cni {
            conf_dirs: vec![dir.path().join("net.d")],
            plugin_dirs: vec![plugins, "/usr/lib/cni".into()],
            state: dir.path().join("state"),
        };
        ip(&["link", "set", "lo", "up"]);
        // ip(8) looks at /sys/class/net for some of what it prints
        mount(
            Some("sysfs"),
            "/sys",
            Some("sysfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        Host { dir, cni }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A pod's namespace.
    fn netns(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        netns::create(&path).unwrap();
        path
    }

    /// A plugin that is a shell script; `$log` is a file for its notes.
    fn script(&self, name: &str, text: &str) {
        let path = self.path("plugins").join(name);
        let log = self.path("log");
        fs::write(&path, format!("#!/bin/sh\nlog={}\n{text}\n", log.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// An empty `/var/lib` for what plugins and runtimes keep there.
    fn own_var_lib(&self) {
        let flags = MsFlags::empty();
        mount(
            Some("tmpfs"),
            "/var/lib",
            Some("tmpfs"),
            flags,
            None::<&str>,
        )
        .unwrap();
    }

    /// What every plugin is told about its caller.
    fn args(&self) -> Value {
        json!({"sampan": {"runtime": owner::runtime(&self.cni.state)}})
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A bridge network with addresses of 10.<n>.0.0/24 and fd00:<n>::/64, and further plugins.
    fn bridge(&self, n: u8, further: &[Value]) -> NetworkList {
        let mut plugins = vec![json!({
            "type": "bridge", "bridge": format!("br{n}"), "isGateway": true,
            "capabilities": {"ips": true, "mac": true},
            "ipam": {
                "type": "host-local", "dataDir": self.path("leases"),
                "ranges": [[{"subnet": format!("10.{n}.0.0/24")}], [{"subnet": format!("fd00:{n}::/64")}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        })];
        plugins.extend_from_slice(further);
        list(&format!("net{n}"), &plugins)
    }

    fn leases(&self, network: &str) -> Vec<String> {
        let dir = self.path("leases").join(network);
        let mut names: Vec<_> = fs::read_dir(dir)
            .map(|entries| {
                entries
                    .map(|e| e.unwrap().file_name().into_string().unwrap())
                    .filter(|n| n.parse::<IpAddr>().is_ok())
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        names
    }
}

/// The folder can only go when nothing is mounted in it.
impl Drop for Host {
    fn drop(&mut self) {
        let _ = netns::remove(&self.path("pod"));
    }
}

fn list(name: &str, plugins: &[Value]) -> NetworkList {
    let config = json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins});
    NetworkList::parse(config.to_string().as_bytes(), "test").unwrap()
}

fn attachment(network: NetworkList, ifname: &str) -> Attachment {
    Attachment {
        network,
        container_id: "pod".into(),
        ifname: ifname.into(),
        ..Attachment::default()
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip(args: &[&str]) -> String {
    run("ip", args)
}

/// ip(8) in a pod's namespace.
fn ip_in(netns: &Path, args: &[&str]) -> String {
    let net = format!("--net={}", netns.display());
    let mut all = vec![net.as_str(), "ip"];
    all.extend_from_slice(args);
    run("nsenter", &all)
}

/// Interfaces with their global addresses.
fn addresses(netns: &Path) -> Vec<String> {
    let answer = ip_in(netns, &["-j", "addr", "show", "scope", "global"]);
    let links: Vec<Value> = serde_json::from_str(&answer).unwrap();
    let mut found = Vec::new();
    for link in &links {
        // what the filter leaves out are empty objects
        for info in link["addr_info"].as_array().into_iter().flatten() {
            if let (Some(name), Some(local)) = (link["ifname"].as_str(), info["local"].as_str()) {
                found.push(format!("{name} {local}/{}", info["prefixlen"]));
            }
        }
    }
    found
}

fn default_routes(netns: &Path, family: &str) -> Vec<String> {
    let answer = ip_in(netns, &[family, "-j", "route", "show", "default"]);
    let routes: Vec<Value> = serde_json::from_str(answer.trim()).unwrap_or_default();
    routes
        .iter()
        .map(|r| r["dev"].as_str().unwrap().to_string())
        .collect()
}

/// Names of the host's interfaces without loopback and bridges.
fn host_links() -> Vec<String> {
    let links: Vec<Value> = serde_json::from_str(&ip(&["-j", "link"])).unwrap();
    let names = links.iter().map(|l| l["ifname"].as_str().unwrap());
    names
        .filter(|n| *n != "lo" && !n.starts_with("br"))
        .map(str::to_string)
        .collect()
}
