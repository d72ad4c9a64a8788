//! `dhcp` against a real server: busybox's udhcpd, in the test's own network namespaces.

mod common;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::{Call, Host, ip, ip_json, run};
use serde_json::{Value, json};

/// A server on the host's end of a pod's interface.
struct Server {
    process: Child,
    leases: PathBuf,
}

fn wire(pod: &Path, host: &str) {
    let netns = pod.to_str().unwrap();
    let pair = ["type", "veth", "peer", "name", "eth0", "netns", netns];
    run("ip", &[&["link", "add", host], &pair[..]].concat());
    run("ip", &["addr", "add", "10.77.0.1/24", "dev", host]);
    run("ip", &["link", "set", host, "up"]);
}

fn unix_time() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "{what} doesn't come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Server {
    fn start(folder: &Path, interface: &str, options: &str) -> Self {
        let leases = folder.join("udhcpd.leases");
        let config = folder.join("udhcpd.conf");
        // one that is there is its predecessor's
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&leases)
            .unwrap();
        let text = format!(
            "interface {interface}\nstart 10.77.0.20\nend 10.77.0.30\nmax_leases 10\nmin_lease 2\nauto_time 1\n\
             lease_file {}\npidfile {}\noption subnet 255.255.255.0\n{options}\n",
            leases.display(),
            folder.join("udhcpd.pid").display(),
        );
        fs::write(&config, text).unwrap();
        let process = Command::new("busybox")
            .args(["udhcpd", "-f", "-a", "100"])
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, leases }
    }

    /// When the lease of an address ends, in seconds of UNIX time; an offer is on file for a minute. The file's form: the
    /// time it was written, then 36 bytes each with the seconds left, address, link address, name.
    fn end_of(&self, address: &str) -> Option<u64> {
        let wanted: std::net::Ipv4Addr = address.parse().unwrap();
        let bytes = fs::read(&self.leases).unwrap();
        let (written, entries) = bytes.split_first_chunk::<8>()?;
        let written = u64::from_be_bytes(*written);
        entries
            .chunks_exact(36)
            .find(|entry| entry[4..8] == wanted.octets())
            .map(|entry| written + u64::from(u32::from_be_bytes(entry[..4].try_into().unwrap())))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn config(host: &Host, ipam: Value) -> Value {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "x", "ipam": ipam});
    config["ipam"]["type"] = json!("dhcp");
    config["ipam"]["dataDir"] = json!(host.temp.path().join("dhcp"));
    config
}

fn lease(host: &Host, id: &str) -> Option<Value> {
    let file = host.temp.path().join(format!("dhcp/net/{id}_eth0.json"));
    let text = fs::read(file).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

fn is_alive(lease: &Value) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", lease["process"]["pid"]));
    stat.is_ok_and(|stat| !stat.contains(") Z"))
}

#[test]
fn everything_that_a_server_says() {
    let mut host = Host::new();
    let pod = host.pod("pod");
    wire(&pod, "srv0");
    let server = Server::start(
        host.temp.path(),
        "srv0",
        "option router 10.77.0.1\noption dns 10.77.0.2 10.77.0.3\noption domain example.org\n\
         option search a.example.org b.example.org\noption mtu 1400\noption lease 3600",
    );
    let mut config = config(
        &host,
        json!({"priority": 7, "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"}]}),
    );
    let call = Call {
        args: "IgnoreUnknown=1;K8S_POD_NAME=web".into(),
        ..Call::new("c1", &pod)
    };
    call.ok("dhcp", "STATUS", &config);
    let result = call.ok("dhcp", "ADD", &config);
    let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "ips": [{"address": address, "gateway": "10.77.0.1"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.77.0.1", "priority": 7}],
            "dns": {
                "nameservers": ["10.77.0.2", "10.77.0.3"], "domain": "example.org",
                "search": ["a.example.org", "b.example.org"]
            }
        })
    );
    let (plain, _) = address.split_once('/').unwrap();
    assert_eq!(ip_json(&pod, &["link", "show", "eth0"])[0]["mtu"], 1400);
    let again = call.err("dhcp", "ADD", &config);
    assert_eq!(
        again["msg"],
        format!("eth0 of c1 has the lease of {address} already")
    );
    config["prevResult"] = result;
    call.ok("dhcp", "CHECK", &config);
    let on_lease = lease(&host, "c1").unwrap();
    assert!(is_alive(&on_lease));
    let begin = unix_time();
    let on_file = |end: Range<u64>| {
        server
            .end_of(plain)
            .is_some_and(|found| end.contains(&found.saturating_sub(begin)))
    };
    wait_for("the server's record", || on_file(3000..4000));
    let name = fs::read(&server.leases).unwrap();
    assert!(name.windows(3).any(|part| part == b"web"));

    // given back: the server has it end now, and the process is gone at once
    call.ok("dhcp", "DEL", &config);
    assert!(!is_alive(&on_lease));
    assert_eq!(lease(&host, "c1"), None);
    wait_for("the release", || {
        on_file(0..60) || server.end_of(plain).is_none()
    });
    call.ok("dhcp", "DEL", &config);
    let missing = call.err("dhcp", "CHECK", &config);
    assert_eq!(missing["msg"], "dhcp: eth0 has no lease");
}

#[test]
fn routes_without_classes_come_before_the_router() {
    let mut host = Host::new();
    let pod = host.pod("pod");
    wire(&pod, "srv0");
    let _server = Server::start(
        host.temp.path(),
        "srv0",
        "option router 10.77.0.1\noption staticroutes 10.0.0.0/8 10.77.0.9, 0.0.0.0/0 10.77.0.8, 10.78.0.0/16 0.0.0.0\noption lease 3600",
    );
    let config = config(&host, json!({}));
    let call = Call::new("c1", &pod);
    let result = call.ok("dhcp", "ADD", &config);
    assert_eq!(
        result["routes"],
        json!([
            {"dst": "10.0.0.0/8", "gw": "10.77.0.9"},
            {"dst": "0.0.0.0/0", "gw": "10.77.0.8"},
            {"dst": "10.78.0.0/16", "gw": "0.0.0.0", "scope": 253}
        ])
    );
    assert_eq!(result["ips"][0]["gateway"], "10.77.0.1");
    call.ok("dhcp", "DEL", &config);
}

#[test]
fn a_lease_is_renewed_until_nobody_wants_it() {
    let mut host = Host::new();
    let pod = host.pod("pod");
    wire(&pod, "srv0");
    let mut server = Server::start(
        host.temp.path(),
        "srv0",
        "option router 10.77.0.1\noption lease 6",
    );
    let mut config = config(&host, json!({}));
    let call = Call::new("c1", &pod);
    let result = call.ok("dhcp", "ADD", &config);
    let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
    let (plain, _) = address.split_once('/').unwrap();
    // what the interface plugin does with it
    ip(&pod, &["addr", "add", &address, "dev", "eth0"]);
    let begin = unix_time();
    let times = lease(&host, "c1").unwrap()["times"].clone();
    // longer than the lease itself, and the server knows
    wait_for("two renewals", || {
        server
            .end_of(plain)
            .is_some_and(|end| (begin + 12..begin + 40).contains(&end))
    });
    assert!(lease(&host, "c1").unwrap()["times"]["end"].as_u64() > times["end"].as_u64());
    config["prevResult"] = result;
    call.ok("dhcp", "CHECK", &config);

    // the server is gone: the address goes at the end of the lease, and CHECK says why
    server.process.kill().unwrap();
    wait_for("the end of the lease", || {
        !is_alive(&lease(&host, "c1").unwrap())
    });
    assert_eq!(
        call.err("dhcp", "CHECK", &config)["msg"],
        format!("dhcp: eth0 lost {address}: no server renewed it until its end")
    );
    let left = ip_json(&pod, &["-4", "addr", "show", "dev", "eth0"]);
    assert!(!left.to_string().contains(plain), "{left}");
    call.ok("dhcp", "DEL", &config);
    assert_eq!(lease(&host, "c1"), None);
}

#[test]
fn the_server_forgets_and_another_one_answers() {
    let mut host = Host::new();
    let pod = host.pod("pod");
    wire(&pod, "srv0");
    let options = "option router 10.77.0.1\noption lease 10";
    let mut server = Server::start(host.temp.path(), "srv0", options);
    let config = config(&host, json!({}));
    let call = Call::new("c1", &pod);
    let result = call.ok("dhcp", "ADD", &config);
    let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
    ip(&pod, &["addr", "add", &address, "dev", "eth0"]);
    let (plain, _) = address.split_once('/').unwrap();
    let begin = unix_time();
    wait_for("the server's record", || {
        server.end_of(plain).is_some_and(|end| end < begin + 40)
    });
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    // its successor has another address: only a broadcast finds it
    run("ip", &["addr", "flush", "dev", "srv0"]);
    run("ip", &["addr", "add", "10.77.0.2/24", "dev", "srv0"]);
    let end = |host: &Host| lease(host, "c1").unwrap()["times"]["end"].as_u64();
    let before = end(&host);
    let _server = Server::start(host.temp.path(), "srv0", options);
    wait_for("the renewal", || end(&host) > before);
    assert_eq!(lease(&host, "c1").unwrap()["server"], "10.77.0.2");
    call.ok("dhcp", "DEL", &config);
}

#[test]
fn what_is_left_of_the_killed() {
    let mut host = Host::new();
    let pod = host.pod("pod");
    wire(&pod, "srv0");
    let _server = Server::start(host.temp.path(), "srv0", "option lease 3600");
    let mut config = config(&host, json!({}));
    let call = Call::new("c1", &pod);
    config["prevResult"] = call.ok("dhcp", "ADD", &config);
    // nobody is its parent but the machine's first process, and nobody's file is open in it
    let record = lease(&host, "c1").unwrap();
    let process = format!("/proc/{}", record["process"]["pid"]);
    for fd in fs::read_dir(format!("{process}/fd")).unwrap() {
        let target = fs::read_link(fd.unwrap().path()).unwrap();
        assert_eq!(target, Path::new("/dev/null"));
    }
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_eq!(fs::read_link(format!("{process}/ns/net")).unwrap(), own);
    run("kill", &["-9", &record["process"]["pid"].to_string()]);
    wait_for("its end", || !is_alive(&record));
    assert_eq!(
        call.err("dhcp", "CHECK", &config)["msg"],
        format!(
            "dhcp: nobody renews {} of eth0: process {} has ended",
            record["address"].as_str().unwrap(),
            record["process"]["pid"]
        )
    );
    // of another runtime: stays; ours: goes
    let gc = |runtime: &str, valid: Value| {
        let mut gc = config.clone();
        gc["args"] = json!({"sampan": {"runtime": runtime}});
        gc["cni.dev/valid-attachments"] = valid;
        gc
    };
    call.ok("dhcp", "GC", &gc("other", json!([])));
    assert!(lease(&host, "c1").is_some());
    call.ok(
        "dhcp",
        "GC",
        &gc("", json!([{"containerID": "c1", "ifname": "eth0"}])),
    );
    assert!(lease(&host, "c1").is_some());
    call.ok("dhcp", "GC", &gc("", json!([])));
    assert_eq!(lease(&host, "c1"), None);

    // a namespace that goes takes its process with it, without DEL
    let mut second = config.clone();
    second["prevResult"].take();
    call.ok("dhcp", "ADD", &second);
    let record = lease(&host, "c1").unwrap();
    assert!(is_alive(&record));
    common::remove_pod(&pod);
    fs::write(&pod, "").unwrap();
    // the process looks twice a minute; it has nothing open that keeps the namespace alive meanwhile
    let names = run("ip", &["-o", "link"]);
    assert!(names.contains("srv0"), "{names}");
    wait_for("the end of the namespace", || {
        !run("ip", &["-o", "link"]).contains("srv0")
    });
    call.ok("dhcp", "DEL", &second);
    assert!(!is_alive(&record));
    assert_eq!(lease(&host, "c1"), None);
}

#[test]
fn without_an_answer() {
    let mut host = Host::new();
    let pod = host.pod("pod");
    wire(&pod, "srv0");
    let config = config(&host, json!({"timeout": 2}));
    let call = Call::new("c1", &pod);
    let begin = Instant::now();
    let error = call.err("dhcp", "ADD", &config);
    assert_eq!(
        (&error["msg"], &error["details"]),
        (
            &json!("no address for eth0 within 2 s"),
            &json!("no DHCP server answers")
        )
    );
    assert!(begin.elapsed() >= Duration::from_secs(2));
    assert_eq!(lease(&host, "c1"), None);
    let other = Call {
        ifname: "eth7".into(),
        ..call
    };
    assert_eq!(
        other.err("dhcp", "ADD", &config)["msg"],
        "interface eth7 not found"
    );
}

/// A server that wants to be asked all the time isn't.
#[test]
fn times_that_make_no_sense() {
    let mut host = Host::new();
    let pod = host.pod("pod");
    wire(&pod, "srv0");
    let mut server = Server::start(
        host.temp.path(),
        "srv0",
        "option lease 3600\noption 0x3a 00000000\noption 0x3b 00000000",
    );
    let config = config(&host, json!({"timeout": 3}));
    let call = Call::new("c1", &pod);
    call.ok("dhcp", "ADD", &config);
    let times = lease(&host, "c1").unwrap()["times"].clone();
    let after = |key: &str| times[key].as_u64().unwrap() - times["asked"].as_u64().unwrap();
    assert_eq!(
        (after("renew"), after("rebind"), after("end")),
        (1_800_000, 3_150_000, 3_600_000)
    );
    call.ok("dhcp", "DEL", &config);
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    fs::remove_file(&server.leases).unwrap();
    let _server = Server::start(host.temp.path(), "srv0", "option lease 3");
    let error = call.err("dhcp", "ADD", &config);
    assert_eq!(
        error["details"],
        "the DHCP server's offer can't be used: its lease is too short to be renewed"
    );
    assert_eq!(lease(&host, "c1"), None);
}

/// The interface is there, and up, when the address is asked for and when it is given back.
#[test]
fn under_the_plugins_of_interfaces() {
    let mut host = Host::new();
    // a network behind a port of the host, where the server is
    run(
        "ip",
        &["link", "add", "uplink", "type", "veth", "peer", "lan0"],
    );
    run("ip", &["link", "add", "br7", "type", "bridge"]);
    run("ip", &["link", "set", "br7", "up"]);
    run("ip", &["link", "set", "lan0", "up"]);
    run("ip", &["link", "set", "uplink", "up"]);
    run("ip", &["addr", "add", "10.77.0.1/24", "dev", "lan0"]);
    let mut server = None;
    for (name, attached, kind) in [
        ("m", "", json!({"type": "macvlan", "master": "uplink"})),
        ("b", "br7", json!({"type": "bridge", "bridge": "br7"})),
    ] {
        if !attached.is_empty() {
            run("ip", &["link", "set", "uplink", "master", attached]);
        }
        server.get_or_insert_with(|| {
            Server::start(
                host.temp.path(),
                "lan0",
                "option router 10.77.0.1\noption lease 3600",
            )
        });
        let pod = host.pod(name);
        let mut config = config(&host, json!({}));
        for (key, value) in kind.as_object().unwrap() {
            config[key] = value.clone();
        }
        let plugin = kind["type"].as_str().unwrap();
        let call = Call::new(name, &pod);
        let result = call.ok(plugin, "ADD", &config);
        let address = result["ips"][0]["address"].as_str().unwrap();
        let link = ip_json(&pod, &["addr", "show", "dev", "eth0"]);
        assert_eq!(common::addresses(&link), [address], "{plugin}");
        // the lease is for the link address that the interface keeps
        let mac: Vec<u8> =
            serde_json::from_value(lease(&host, name).unwrap()["mac"].clone()).unwrap();
        let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(link[0]["address"], mac.join(":"), "{plugin}");
        let routes = ip_json(&pod, &["route", "show", "default"]);
        assert_eq!(routes[0]["gateway"], "10.77.0.1", "{plugin}");
        let target = format!("--net={}", pod.display());
        run(
            "nsenter",
            &[&target, "busybox", "ping", "-c1", "-W2", "10.77.0.1"],
        );
        config["prevResult"] = result.clone();
        call.ok(plugin, "CHECK", &config);
        let (plain, _) = address.split_once('/').unwrap();
        let server = server.as_ref().unwrap();
        let begin = unix_time();
        wait_for("the server's record", || {
            server.end_of(plain).is_some_and(|end| end > begin + 3000)
        });
        call.ok(plugin, "DEL", &config);
        wait_for("the release", || {
            server.end_of(plain).is_none_or(|end| end < begin + 60)
        });
        assert_eq!(lease(&host, name), None);
        let none = ip_json(&pod, &["link"]);
        assert_eq!(none.as_array().unwrap().len(), 1, "{none}");
    }
    // nobody answers: nothing is left
    drop(server);
    let before = host.snapshot();
    let pod = host.pod("silent");
    let mut silent = config(&host, json!({"timeout": 1}));
    silent["type"] = json!("bridge");
    silent["bridge"] = json!("br7");
    let error = Call::new("silent", &pod).err("bridge", "ADD", &silent);
    assert_eq!(error["msg"], "no address for eth0 within 1 s");
    assert_eq!(host.snapshot(), before);
}
