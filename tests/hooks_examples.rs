//! The hooks of `docs/examples/hooks` in real pods, against real servers: one that demands a client certificate, and Consul.
//! Needs root and the Debian packages curl, iproute2, nftables, openssl and python3. Debian 12 has no Consul: where there is no
//! `consul` in `PATH`, a server of the few requests that are used takes its place, and the test says so.

mod pod_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pod_support::{BUSYBOX, Host, tool, until};
use serde_json::Value;

fn example(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/hooks");
    path.join(name)
}

/// A server that ends with the test.
struct Server(Child);

impl Server {
    fn start(host: &Host, program: &str, arguments: &[&str]) -> Server {
        let log = fs::File::create(host.path().join("server.log")).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .current_dir(host.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Server(child.unwrap_or_else(|error| panic!("{program}: {error}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn curl(arguments: &[&str]) -> Option<String> {
    let out = Command::new("curl")
        .args(["--silent", "--fail", "--max-time", "5"])
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    out.status.success().then_some(text)
}

const TLS_SERVER: &str = r#"
import http.server, json, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        who = dict(pair[0] for pair in self.connection.getpeercert()["subject"])["commonName"]
        body = json.dumps({"PATH_ASKED": self.path, "CLIENT": who, "SECRET": "a$b${HOME}", "OWN": "no"}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem", "server.key")
context.load_verify_locations("ca.pem")
context.verify_mode = ssl.CERT_REQUIRED
server = http.server.HTTPServer(("127.0.0.1", 8443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

/// A certificate authority in the host's folder, with certificates of a server and a client.
fn certificates(host: &Host) {
    let script = r#"set -e
cd "$0"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority
for name in server client; do
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $name.key -out $name.csr -subj /CN=$name
  echo 'subjectAltName=IP:127.0.0.1' > ext
  openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $name.pem
done"#;
    tool("sh", &["-c", script, host.path().to_str().unwrap()]);
}

#[test]
fn configuration_from_a_server_that_demands_a_certificate() {
    let host = Host::new();
    certificates(&host);
    let _server = Server::start(&host, "python3", &["-c", TLS_SERVER]);
    let at = |name: &str| host.path().join(name).display().to_string();
    let (ca, cert, key) = (at("ca.pem"), at("client.pem"), at("client.key"));
    let url = "https://127.0.0.1:8443";
    until("the server answers", || {
        curl(&["--cacert", &ca, "--cert", &cert, "--key", &key, url])
    });
    assert_eq!(
        curl(&["--cacert", &ca, url]),
        None,
        "no certificate is demanded"
    );
    let before = host.snapshot();
    let compose = |cert: &str, more: &str| {
        host.compose(&format!(
            "services:
  web:
    image: {BUSYBOX}
    command: [sh, -c, 'echo $$PATH_ASKED $$CLIENT $$SECRET $$OWN; exec sleep 1000']
    environment: {{OWN: mine}}
    stop_signal: KILL
  other: {{image: {BUSYBOX}, command: [sh, -c, 'echo other $$CLIENT; exec sleep 1000'], stop_signal: KILL}}
x-sampan:
  hooks:
  - name: configuration
    at: before-launch
    command: [{}]
    env: {{URL: '{url}/pods/{{pod}}', CERT: '{cert}', KEY: '{}', CA: '{ca}', {more}}}
",
            example("http-environment").display(),
            cert.replace(".pem", ".key")
        ));
    };
    compose(&cert, "SERVICES: web");
    host.sampan(&["up", "-d"]).ok();
    host.await_log("web", "mine");
    let text = String::from_utf8(host.log("web", "stdout")).unwrap();
    assert_eq!(
        text,
        format!("/pods/{} client a$b${{HOME}} mine\n", host.name)
    );
    host.await_log("other", "other");
    assert_eq!(host.log("other", "stdout"), b"other\n");
    host.down(&before);
    // one that nobody knows
    tool(
        "sh",
        &[
            "-c",
            "cd \"$0\" && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout stranger.key -out stranger.pem -days 2 -subj /CN=stranger",
            host.path().to_str().unwrap(),
        ],
    );
    compose(&at("stranger.pem"), "");
    let ended = host.sampan(&["up", "-d"]);
    let text = ended.fails(1);
    // the server's alert, or that it closes, whichever comes first
    let failed = "hook configuration at before-launch failed: exit status 1: ";
    let why = text.split_once(failed).map(|(_, why)| why);
    assert!(
        why.is_some_and(|why| why.starts_with("SSLError: ") || why.starts_with("URLError: ")),
        "{text}"
    );
    host.assert_clean(&before);
}

/// The agent's requests that the hook uses, with its answers, for machines without Consul.
const STAND_IN: &str = r#"
import http.server, json, urllib.parse
services = {}
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, code, body=b""):
        self.send_response(code); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/v1/agent/service/register":
            service = json.loads(body)
            known = {"ID": str, "Name": str, "Address": str, "Port": int, "Tags": list}
            if set(service) != set(known) or not all(isinstance(service[k], t) for k, t in known.items()):
                return self.answer(400, b"Request decode failed")
            services[service["ID"]] = service
            return self.answer(200)
        start = "/v1/agent/service/deregister/"
        if not self.path.startswith(start):
            return self.answer(405)
        identity = urllib.parse.unquote(self.path[len(start):])
        if services.pop(identity, None) is None:
            return self.answer(404, b"Unknown service ID " + identity.encode())
        self.answer(200)
    def do_GET(self):
        name = self.path.rsplit("/", 1)[1]
        found = [{"ServiceID": s["ID"], "ServicePort": s["Port"], "ServiceAddress": s["Address"], "ServiceTags": s["Tags"]} for s in services.values() if s["Name"] == name]
        self.answer(200, json.dumps(found).encode())
http.server.HTTPServer(("127.0.0.1", 8500), Handler).serve_forever()
"#;

const CATALOG: &str = "http://127.0.0.1:8500/v1/catalog/service/shop";

fn consul(host: &Host) -> Server {
    let there = Command::new("consul").arg("version").output().is_ok();
    if there {
        Server::start(
            host,
            "consul",
            &[
                "agent",
                "-dev",
                "-bind",
                "127.0.0.1",
                "-client",
                "127.0.0.1",
            ],
        )
    } else {
        eprintln!(
            "NOT TRIED with Consul: there is no `consul` in PATH; a server of the same requests takes its place"
        );
        Server::start(host, "python3", &["-c", STAND_IN])
    }
}

/// What Consul knows of the service.
fn registered() -> Option<Vec<Value>> {
    serde_json::from_str(&curl(&[CATALOG])?).ok()
}

#[test]
fn services_are_in_consul_while_they_are_ready() {
    let host = Host::new();
    let _server = consul(&host);
    until("consul answers", registered);
    let before = host.snapshot();
    let compose = || {
        host.compose(&format!(
            "services:
  web:
    image: {BUSYBOX}
    # asks the catalogue of the host when it is told to stop
    command: [sh, -c, 'trap \"touch /p/asked; until test -e /p/seen; do usleep 10000; done; exit 0\" TERM; while :; do usleep 10000; done']
    volumes: ['{}:/p']
    ports: ['18081:80']
    labels: {{consul.name: shop, consul.tags: 'a,b'}}
    healthcheck: {{test: [CMD, test, -e, /p/healthy], interval: 10ms, retries: 1000}}
x-sampan:
  hooks: [{{name: consul, at: [after-ready, before-kill], command: [{}]}}]
",
            host.project.display(),
            example("consul").display()
        ));
    };
    compose();
    let there = || until("registered", || registered().filter(|s| s.len() == 1));
    let nothing = || registered().is_some_and(|s| s.is_empty());
    host.sampan(&["up", "-d"]).ok();
    assert!(nothing(), "it is not ready yet");
    host.write("healthy", "");
    let found = there();
    assert_eq!(found[0]["ServicePort"], 18081);
    assert_eq!(found[0]["ServiceTags"], serde_json::json!(["a", "b"]));
    assert_eq!(found[0]["ServiceID"], format!("{}-web", host.name));
    // gone before the stop signal
    let stop = host.start(&["stop"]);
    until("asked to stop", || {
        host.project.join("asked").exists().then_some(())
    });
    assert!(nothing(), "it was asked to stop while others could find it");
    host.write("seen", "");
    stop.wait().ok();
    // again, and after a crash of everything that could remove it
    for file in ["asked", "seen"] {
        fs::remove_file(host.project.join(file)).unwrap();
    }
    host.write("seen", "");
    host.sampan(&["start"]).ok();
    there();
    for name in ["keeper", "supervisor"] {
        let text = fs::read(host.pod().join(format!("{name}.json"))).unwrap();
        let record: Value = serde_json::from_slice(&text).unwrap();
        let pid = Pid::from_raw(record["pid"].as_i64().unwrap() as i32);
        kill(pid, Signal::SIGKILL).unwrap();
    }
    fs::write(host.pod().join("removing"), "").unwrap();
    host.sampan(&["down"]).ok();
    assert!(nothing());
    // a second time is no failure
    host.assert_clean(&before);
}
