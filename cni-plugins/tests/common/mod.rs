//! A host of its own for each test: mount and network namespaces, pods, and the plugins' binaries run in them.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Every plugin of ours.
pub const OURS: &str = env!("CARGO_BIN_EXE_cni-plugins");
pub const REFERENCE: &str = "/usr/lib/cni";

/// The test's host. The test's thread lives in it; commands it starts do too.
pub struct Host {
    pub temp: TempDir,
    pods: Vec<PathBuf>,
}

fn in_new_netns(file: &Path) {
    let home = File::open("/proc/thread-self/ns/net").unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    File::create(file).unwrap();
    mount(
        Some("/proc/thread-self/ns/net"),
        file,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
    setns(home, CloneFlags::CLONE_NEWNET).unwrap();
}

impl Host {
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        Self {
            temp: tempfile::tempdir().unwrap(),
            pods: Vec::new(),
        }
    }

    /// A network namespace with its loopback up.
    pub fn pod(&mut self, name: &str) -> PathBuf {
        let file = self.temp.path().join(name);
        in_new_netns(&file);
        ip(&file, &["link", "set", "lo", "up"]);
        self.pods.push(file.clone());
        file
    }

    /// A folder with our plugins, for others that execute them.
    pub fn plugins(&self) -> PathBuf {
        let folder = self.temp.path().join("plugins");
        fs::create_dir(&folder).unwrap();
        for name in run(OURS, &["--list"]).lines() {
            std::os::unix::fs::symlink(OURS, folder.join(name)).unwrap();
        }
        folder
    }

    pub fn leases(&self) -> PathBuf {
        self.temp.path().join("leases")
    }

    /// Everything that plugins could leave behind.
    pub fn snapshot(&self) -> Value {
        let mut leases: Vec<String> = Vec::new();
        for network in fs::read_dir(self.leases()).into_iter().flatten() {
            for lease in fs::read_dir(network.unwrap().path()).unwrap() {
                let name = lease.unwrap().file_name().into_string().unwrap();
                leases.extend(name.parse::<std::net::IpAddr>().map(|ip| ip.to_string()));
            }
        }
        leases.sort();
        let addresses = json_of(run("ip", &["-j", "addr"]));
        json!({"addresses": addresses, "rules": rules(), "leases": leases})
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for pod in &self.pods {
            let _ = umount2(pod, MntFlags::MNT_DETACH);
        }
    }
}

pub fn remove_pod(pod: &Path) {
    umount2(pod, MntFlags::MNT_DETACH).unwrap();
    fs::remove_file(pod).unwrap();
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// `ip` inside a pod.
pub fn ip(pod: &Path, args: &[&str]) -> String {
    let target = format!("--net={}", pod.display());
    run("nsenter", &[&[target.as_str(), "ip"], args].concat())
}

fn json_of(text: String) -> Value {
    if text.trim().is_empty() {
        json!([])
    } else {
        serde_json::from_str(&text).unwrap()
    }
}

pub fn ip_json(pod: &Path, args: &[&str]) -> Value {
    json_of(ip(pod, &[&["-j"], args].concat()))
}

pub fn host_json(args: &[&str]) -> Value {
    json_of(run("ip", &[&["-j"], args].concat()))
}

/// The ruleset as text without handles and counters.
pub fn rules() -> String {
    run("nft", &["-n", "list", "ruleset"])
}

/// Global addresses of an interface, as `ip` prints them.
pub fn addresses(list: &Value) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for entry in list[0]["addr_info"].as_array().unwrap() {
        if entry["scope"] == "global" {
            assert!(entry.get("tentative").is_none(), "{entry}");
            found.push(format!(
                "{}/{}",
                entry["local"].as_str().unwrap(),
                entry["prefixlen"]
            ));
        }
    }
    found
}

/// One attachment.
#[derive(Clone)]
pub struct Call {
    pub id: String,
    pub netns: Option<PathBuf>,
    pub ifname: String,
    pub args: String,
    pub path: String,
}

impl Call {
    pub fn new(id: &str, netns: &Path) -> Self {
        Self {
            id: id.into(),
            netns: Some(netns.to_owned()),
            ifname: "eth0".into(),
            args: String::new(),
            // the reference plugins insist on one
            path: "/nonexistent".into(),
        }
    }

    /// Starts `program`, a name of ours or a path, and gives it the configuration.
    pub fn spawn(&self, program: &str, command: &str, config: &Value) -> Child {
        let mut child = Command::new(if program.contains('/') { program } else { OURS })
            .arg0(program)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", self.netns.clone().unwrap_or_default())
            .env("CNI_IFNAME", &self.ifname)
            .env("CNI_ARGS", &self.args)
            .env("CNI_PATH", &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(config.to_string().as_bytes())
            .unwrap();
        child
    }

    /// Runs `program`; returns the exit code and what it printed.
    pub fn raw(&self, program: &str, command: &str, config: &Value) -> (i32, Value) {
        let output = self
            .spawn(program, command, config)
            .wait_with_output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let value = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).expect(&text)
        };
        (output.status.code().unwrap(), value)
    }

    pub fn ok(&self, program: &str, command: &str, config: &Value) -> Value {
        let (code, value) = self.raw(program, command, config);
        assert_eq!(code, 0, "{program} {command}: {value}");
        value
    }

    pub fn err(&self, program: &str, command: &str, config: &Value) -> Value {
        let (code, value) = self.raw(program, command, config);
        assert_eq!(code, 1, "{program} {command}: {value}");
        value
    }
}

/// Runs `visit` in a thread inside the pod.
pub fn inside<T: Send>(pod: &Path, visit: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let task = scope.spawn(|| {
            setns(File::open(pod).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            visit()
        });
        task.join().unwrap()
    })
}

/// A server inside the pod that answers every TCP connection with the client's address as it sees it.
pub fn serve(pod: &Path, address: &str) {
    let listener = inside(pod, || std::net::TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip();
            let _ = stream.write_all(peer.to_string().as_bytes());
        }
    });
}

/// Connects and returns what the server said; an error as text.
pub fn ask(address: &str) -> String {
    let target = address.parse().unwrap();
    let answer = std::net::TcpStream::connect_timeout(&target, std::time::Duration::from_secs(2))
        .and_then(|mut stream| {
            let mut text = String::new();
            stream.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
            stream.read_to_string(&mut text)?;
            Ok(text)
        });
    answer.unwrap_or_else(|cause| format!("error: {:?}", cause.kind()))
}

/// Answers every datagram with the sender's address as it sees it.
pub fn serve_udp(pod: &Path, address: &str) {
    let socket = inside(pod, || std::net::UdpSocket::bind(address).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(peer.ip().to_string().as_bytes(), peer);
        }
    });
}

/// Sends a datagram, again when nothing comes, and returns the answer; an error as text.
pub fn ask_udp(address: &str) -> String {
    let any = if address.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = std::net::UdpSocket::bind(any).unwrap();
    socket
        .set_read_timeout(Some(std::time::Duration::from_millis(500)))
        .unwrap();
    let mut buffer = [0; 64];
    for _ in 0..4 {
        if let Err(cause) = socket.send_to(b"hello", address) {
            return format!("error: {:?}", cause.kind());
        }
        if let Ok(length) = socket.recv(&mut buffer) {
            return String::from_utf8_lossy(&buffer[..length]).into_owned();
        }
    }
    "error: TimedOut".to_owned()
}

/// Whether the kernel can make links of a kind; says so aloud where it can't.
pub fn has_kind(kind: &str) -> bool {
    let (base, more): (&[&str], &[&str]) = match kind {
        "vlan" => (&["link", "probe1"], &["id", "1"]),
        "ipvlan" | "macvlan" => (&["link", "probe1"], &[]),
        "vxlan" => (&[], &["id", "1", "dstport", "1"]),
        "vrf" => (&[], &["table", "10"]),
        _ => (&[], &[]),
    };
    run("ip", &["link", "add", "probe1", "type", "bridge"]);
    let args = [
        &["link", "add"],
        base,
        &["name", "probe0", "type", kind],
        more,
    ]
    .concat();
    let output = Command::new("ip").args(args).output().unwrap();
    if output.status.success() {
        run("ip", &["link", "del", "probe0"]);
    } else {
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            error.contains("Unknown device type") || error.contains("not supported"),
            "{error}"
        );
        println!("skipped: needs a kernel with {kind}");
    }
    run("ip", &["link", "del", "probe1"]);
    output.status.success()
}

/// A machine beside the host: its interface `up1` and the host's `up0` are the ends of one cable.
pub fn plug_cable(outside: &Path) {
    let netns = outside.to_str().unwrap();
    let pair = ["type", "veth", "peer", "name", "up1", "netns", netns];
    run("ip", &[&["link", "add", "up0"], &pair[..]].concat());
    run("ip", &["link", "set", "up0", "up"]);
    ip(outside, &["link", "set", "up1", "up"]);
}
