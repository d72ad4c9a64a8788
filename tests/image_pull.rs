//! Pulling from Debian's docker-registry and from a small one that misbehaves, on loopback in a
//! network namespace of each test. Needs root, docker-registry, skopeo, htpasswd and openssl.

mod image_support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use image_support::*;
use sampan::image::{Error, Progress, PullOptions, Store, pull};

/// A private network with loopback and one address that is not, and private mounts with an empty
/// /run: no login of the machine is seen.
fn private_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    run("ip", &["link", "set", "lo", "up"]);
    run("ip", &["addr", "add", "10.9.9.1/32", "dev", "lo"]);
    private_mounts();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, None::<&str>).unwrap();
}

/// Where a login is looked for in these tests.
fn auth_file() -> PathBuf {
    assert!(std::env::var_os("REGISTRY_AUTH_FILE").is_none());
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(
        || PathBuf::from("/run/containers/0"),
        |run| PathBuf::from(run).join("containers"),
    );
    fs::create_dir_all(&folder).unwrap();
    folder.join("auth.json")
}

struct Registry {
    child: Child,
    storage: PathBuf,
}

impl Registry {
    /// `more` is added to the `http` part and behind it.
    fn start(folder: &Path, address: &str, http: &str, more: &str) -> Registry {
        let storage = folder.join("registry");
        let config = folder.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{http}{more}",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", config.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("registry.log")).unwrap())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "docker-registry does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Registry { child, storage }
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let folder = self.storage.join("docker/registry/v2/blobs/sha256");
        folder.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn push(layout: &Path, tag: &str, target: &str, more: &[&str]) {
    let from = format!("oci:{}:{tag}", layout.display());
    let to = format!("docker://{target}");
    let mut arguments = vec![
        "--insecure-policy",
        "copy",
        "-q",
        "--all",
        "--dest-tls-verify=false",
    ];
    arguments.extend(more);
    arguments.extend([from.as_str(), to.as_str()]);
    run("skopeo", &arguments);
}

fn layers(count: u8) -> Vec<Vec<u8>> {
    let layer = |number: u8| {
        let mut tar = Tar::new();
        tar.file(&format!("file{number}"), &[number; 30_000]);
        tar.finish()
    };
    (0..count).map(layer).collect()
}

/// Remembers which blobs were fetched.
#[derive(Default)]
struct Fetched(Mutex<BTreeSet<String>>);

impl Progress for Fetched {
    fn advance(&self, what: &str, _done: u64, _total: u64) {
        self.0.lock().unwrap().insert(what.to_owned());
    }
}

#[test]
fn plain_http_on_loopback() {
    private_network();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let registry = Registry::start(folder.path(), "127.0.0.1:5000", "", "");
    write_layout(&at("one"), &layers(5), "1");
    push(&at("one"), "1", "127.0.0.1:5000/team/app:1", &[]);
    write_layout(&at("two"), &layers(6), "2");
    push(&at("two"), "2", "127.0.0.1:5000/team/app:2", &[]);
    write_multi(
        &at("multi"),
        &["linux/s390x", "linux/amd64", "linux/arm64"],
        "m",
    );
    push(&at("multi"), "m", "127.0.0.1:5000/team/app:m", &[]);

    let store = Store::open(&at("store")).unwrap();
    let options = PullOptions::default();
    let fetched = Fetched::default();
    let image = pull(&store, "127.0.0.1:5000/team/app:1", &options, &fetched).unwrap();
    assert_eq!(image.references, ["127.0.0.1:5000/team/app:1"]);
    assert_eq!(fetched.0.lock().unwrap().len(), 6);
    assert_eq!(store.layers(&image, &Quiet).unwrap().len(), 5);
    // Docker's media types
    push(
        &at("one"),
        "1",
        "127.0.0.1:5000/team/app:docker",
        &["--format=v2s2"],
    );
    let docker = pull(&store, "127.0.0.1:5000/team/app:docker", &options, &Quiet).unwrap();
    assert_eq!(docker.config.rootfs(), image.config.rootfs());
    // what is here is not fetched again
    let fetched = Fetched::default();
    let again = pull(&store, "localhost:5000/team/app:1", &options, &fetched).unwrap();
    assert_eq!(again.id, image.id);
    assert_eq!(
        again.references,
        ["127.0.0.1:5000/team/app:1", "localhost:5000/team/app:1"]
    );
    assert!(fetched.0.lock().unwrap().is_empty());
    let fetched = Fetched::default();
    pull(&store, "127.0.0.1:5000/team/app:2", &options, &fetched).unwrap();
    assert_eq!(fetched.0.lock().unwrap().len(), 2);
    // by digest
    let name = format!("127.0.0.1:5000/team/app@{}", image.manifest);
    assert_eq!(pull(&store, &name, &options, &Quiet).unwrap().id, image.id);
    assert_eq!(store.resolve(&name).unwrap().unwrap().id, image.id);

    // an index: the platform is ours, another one, none
    for (platform, expected) in [
        (Some("linux/arm64"), "arm64"),
        (Some("linux/s390x"), "s390x"),
    ] {
        let options = PullOptions {
            platform: platform.map(str::to_owned),
            ..options.clone()
        };
        let image = pull(&store, "127.0.0.1:5000/team/app:m", &options, &Quiet).unwrap();
        assert_eq!(image.config.architecture().to_string(), expected);
    }
    let riscv = PullOptions {
        platform: Some("linux/riscv64".into()),
        ..options.clone()
    };
    let error = pull(&store, "127.0.0.1:5000/team/app:m", &riscv, &Quiet).unwrap_err();
    assert_eq!(
        error.to_string(),
        "127.0.0.1:5000/team/app:m has no image for linux/riscv64, only for linux/s390x, \
         linux/amd64, linux/arm64; name one of these with --platform"
    );

    for (name, expected) in [
        (
            "127.0.0.1:5000/team/app:missing",
            "registry 127.0.0.1:5000 has no image 127.0.0.1:5000/team/app:missing (manifest \
             unknown); check name and tag, and whether it needs a login",
        ),
        (
            "127.0.0.1:5000/no/such:1",
            "registry 127.0.0.1:5000 has no image 127.0.0.1:5000/no/such:1 (manifest unknown); \
             check name and tag, and whether it needs a login",
        ),
        (
            "127.0.0.1:5001/a",
            "registry 127.0.0.1:5001 can't be reached: Connection refused (os error 111); check \
             the name, the network and the proxy",
        ),
    ] {
        let error = pull(&store, name, &options, &Quiet).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }

    // content changed in the registry: same length, shorter
    let fresh = Store::open(&at("fresh")).unwrap();
    let inspected = store.inspect(&image.id).unwrap().unwrap();
    let stored = inspected["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = registry.blob(&stored);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    for (content, expected) in [
        (bad.as_slice(), format!("blob {stored} has digest sha256:")),
        (
            &good[..good.len() - 1],
            format!(
                "blob {stored} has {} bytes instead of {}",
                good.len() - 1,
                good.len()
            ),
        ),
        (
            &[good.as_slice(), b"more"].concat(),
            format!("blob {stored} has"),
        ),
    ] {
        fs::write(&path, content).unwrap();
        let error = pull(&fresh, "127.0.0.1:5000/team/app:1", &options, &Quiet).unwrap_err();
        assert!(
            error.to_string().starts_with(&expected),
            "{expected}: {}",
            chain(&error)
        );
        assert!(fresh.list().unwrap().is_empty());
        let hex = stored.strip_prefix("sha256:").unwrap().to_owned();
        assert!(!names(&at("fresh/blobs/sha256")).contains(&hex));
        assert_eq!(names(&at("fresh/tmp")), [""; 0]);
    }
    fs::write(&path, good).unwrap();
    pull(&fresh, "127.0.0.1:5000/team/app:1", &options, &Quiet).unwrap();
}

#[test]
fn basic_auth() {
    private_network();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let users = run("htpasswd", &["-Bbn", "user", "secret"]);
    fs::write(at("htpasswd"), users).unwrap();
    let auth = format!(
        "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
        at("htpasswd").display()
    );
    let _registry = Registry::start(folder.path(), "127.0.0.1:5000", "", &auth);
    write_layout(&at("one"), &layers(2), "1");
    push(
        &at("one"),
        "1",
        "127.0.0.1:5000/app:1",
        &["--dest-creds=user:secret"],
    );
    let store = Store::open(&at("store")).unwrap();
    let options = PullOptions::default();
    let error = pull(&store, "127.0.0.1:5000/app:1", &options, &Quiet).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, Error::Unauthorized { .. }) && text.contains("no login for it was found"),
        "{text}"
    );
    let login = |text: &str| fs::write(auth_file(), text).unwrap();
    login(r#"{"auths": {"127.0.0.1:5000": {"auth": "dXNlcjp3cm9uZw=="}}}"#);
    let text = pull(&store, "127.0.0.1:5000/app:1", &options, &Quiet)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("check the login in") && text.contains("auth.json"),
        "{text}"
    );
    login(r#"{"auths": {"127.0.0.1:5000": {"auth": "dXNlcjpzZWNyZXQ="}}}"#);
    pull(&store, "127.0.0.1:5000/app:1", &options, &Quiet).unwrap();
    login("no json");
    let text = pull(&store, "127.0.0.1:5000/app:1", &options, &Quiet)
        .unwrap_err()
        .to_string();
    assert!(text.contains("auth.json: no file of logins"), "{text}");
}

#[test]
fn tls_with_an_authority_of_its_own() {
    private_network();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-keyout",
            &text("ca.key"),
            "-out",
            &text("ca.pem"),
        ],
    );
    run(
        "openssl",
        &[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=registry",
            "-keyout",
            &text("tls.key"),
            "-out",
            &text("tls.csr"),
        ],
    );
    fs::write(at("ext"), "subjectAltName=IP:10.9.9.1,IP:127.0.0.1\n").unwrap();
    run(
        "openssl",
        &[
            "x509",
            "-req",
            "-in",
            &text("tls.csr"),
            "-CA",
            &text("ca.pem"),
            "-CAkey",
            &text("ca.key"),
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &text("ext"),
            "-out",
            &text("tls.pem"),
        ],
    );
    let http = format!(
        "  tls:\n    certificate: {}\n    key: {}\n",
        text("tls.pem"),
        text("tls.key")
    );
    let _registry = Registry::start(folder.path(), "0.0.0.0:5000", &http, "");
    write_layout(&at("one"), &layers(2), "1");
    push(&at("one"), "1", "10.9.9.1:5000/app:1", &[]);
    let store = Store::open(&at("store")).unwrap();
    let mut options = PullOptions::default();
    let error = pull(&store, "10.9.9.1:5000/app:1", &options, &Quiet)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("can't be reached") && error.ends_with("with --ca-file"),
        "{error}"
    );
    options.ca_files = vec![at("tls.key")];
    let error = pull(&store, "10.9.9.1:5000/app:1", &options, &Quiet)
        .unwrap_err()
        .to_string();
    assert!(error.contains("has no certificate"), "{error}");
    // one file may hold several
    let other = fs::read(at("tls.pem")).unwrap();
    fs::write(
        at("bundle.pem"),
        [other, fs::read(at("ca.pem")).unwrap()].concat(),
    )
    .unwrap();
    options.ca_files = vec![at("bundle.pem")];
    let image = pull(&store, "10.9.9.1:5000/app:1", &options, &Quiet).unwrap();
    assert_eq!(store.layers(&image, &Quiet).unwrap().len(), 2);
    // with an authority given, loopback is no reason for plain http
    pull(&store, "127.0.0.1:5000/app:1", &options, &Quiet).unwrap();
}

#[test]
fn plain_http_elsewhere_must_be_asked_for() {
    private_network();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let _registry = Registry::start(folder.path(), "10.9.9.1:5000", "", "");
    write_layout(&at("one"), &layers(2), "1");
    push(&at("one"), "1", "10.9.9.1:5000/app:1", &[]);
    let store = Store::open(&at("store")).unwrap();
    let mut options = PullOptions::default();
    let error = pull(&store, "10.9.9.1:5000/app:1", &options, &Quiet)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("has to be allowed with --plain-http"),
        "{error}"
    );
    options.plain_http = true;
    pull(&store, "10.9.9.1:5000/app:1", &options, &Quiet).unwrap();
}

/// A registry of a few lines that serves a layout and asks for a token.
struct Small {
    layout: PathBuf,
    token: &'static str,
    /// Answers 503 to the first so many blob requests.
    failures: Mutex<u32>,
    /// Requests that the current token is good for.
    uses: Mutex<u32>,
    granted: Mutex<u32>,
}

impl Small {
    fn serve(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let own = address.clone();
        // ends with the test's process
        thread::spawn(move || {
            for stream in listener.incoming() {
                self.answer(stream.unwrap(), &own);
            }
        });
        address
    }

    fn answer(&self, mut stream: TcpStream, own: &str) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let Some(Ok(request)) = lines.next() else {
            return;
        };
        let path = request.split(' ').nth(1).unwrap().to_owned();
        let mut authorized = false;
        while let Some(Ok(line)) = lines.next() {
            if line.is_empty() {
                break;
            }
            authorized |=
                line.eq_ignore_ascii_case(&format!("authorization: Bearer {}", self.token));
        }
        let (status, header, body) = self.reply(&path, authorized, own);
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{header}\r\n",
            body.len()
        );
        let _ = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&body));
    }

    fn reply(&self, path: &str, authorized: bool, own: &str) -> (&'static str, String, Vec<u8>) {
        let challenge =
            || format!("WWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"s\"\r\n");
        if path.starts_with("/token") {
            assert!(path.contains("scope=repository%3Aapp%3Apull"), "{path}");
            // the first token runs out soon
            let mut granted = self.granted.lock().unwrap();
            *self.uses.lock().unwrap() = if *granted == 0 { 3 } else { 1000 };
            *granted += 1;
            return (
                "200 OK",
                String::new(),
                serde_json::json!({"token": self.token})
                    .to_string()
                    .into_bytes(),
            );
        }
        if path == "/v2/" {
            return ("401 Unauthorized", challenge(), Vec::new());
        }
        let mut uses = self.uses.lock().unwrap();
        if !authorized || *uses == 0 {
            return ("401 Unauthorized", challenge(), Vec::new());
        }
        *uses -= 1;
        let read = |digest: &str| {
            fs::read(
                self.layout
                    .join("blobs/sha256")
                    .join(digest.trim_start_matches("sha256:")),
            )
            .unwrap()
        };
        if let Some(digest) = path.strip_prefix("/v2/app/blobs/") {
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return ("503 Service Unavailable", String::new(), b"busy".to_vec());
            }
            return ("200 OK", String::new(), read(digest));
        }
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(self.layout.join("index.json")).unwrap()).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n";
        ("200 OK", kind.to_owned(), read(&digest))
    }
}

#[test]
fn tokens_that_run_out_and_a_busy_registry() {
    private_network();
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    write_layout(&layout, &layers(6), "1");
    let small = |token: &'static str, failures: u32| {
        let address = Small {
            layout: layout.clone(),
            token,
            failures: Mutex::new(failures),
            uses: Mutex::new(0),
            granted: Mutex::new(0),
        }
        .serve();
        let store = Store::open(
            &folder
                .path()
                .join(format!("store{failures}{}", token.len())),
        )
        .unwrap();
        pull(
            &store,
            &format!("{address}/app:1"),
            &PullOptions::default(),
            &Quiet,
        )
    };
    // a token serves three requests of seven
    let image = small("abc.DEF-123", 1).unwrap();
    assert_eq!(image.config.rootfs().diff_ids().len(), 6);
    // it becomes a header: no line may be smuggled in, nobody panics
    for token in ["a\r\nX-Evil: 1", "", "a b"] {
        let text = small(token, 0).unwrap_err().to_string();
        assert!(text.contains("a token that is none"), "{text}");
    }
    let text = small("abcd", 100).unwrap_err().to_string();
    assert!(
        text.contains("failed on blob sha256:") && text.contains("503 busy"),
        "{text}"
    );
}

/// Nothing installed: no certificate authorities anywhere.
#[test]
#[ignore = "a part of a_machine_without_authorities"]
fn pull_without_authorities() {
    if std::env::var_os("SAMPAN_TEST_CHILD").is_none() {
        return;
    }
    private_network();
    for folder in [
        "/etc/ssl",
        "/etc/pki",
        "/usr/share/ca-certificates",
        "/usr/lib/ssl",
        "/usr/local/share",
    ] {
        if Path::new(folder).is_dir() {
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), folder, Some("tmpfs"), flags, None::<&str>).unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    write_layout(&layout, &layers(2), "1");
    let address = Small {
        layout,
        token: "token",
        failures: Mutex::new(0),
        uses: Mutex::new(0),
        granted: Mutex::new(1),
    }
    .serve();
    let store = Store::open(&folder.path().join("store")).unwrap();
    pull(
        &store,
        &format!("{address}/app:1"),
        &PullOptions::default(),
        &Quiet,
    )
    .unwrap();
}

#[test]
fn a_machine_without_authorities() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["pull_without_authorities", "--exact", "--ignored"])
        .env("SAMPAN_TEST_CHILD", "1")
        .env_remove("SSL_CERT_FILE")
        .env_remove("SSL_CERT_DIR")
        .status()
        .unwrap();
    assert!(status.success());
}

/// Answers every request alike, and keeps what was asked, headers and all.
fn answering(answer: impl Fn(&str) -> String + Send + 'static) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Asked::default();
    let kept = asked.clone();
    // ends with the test's process
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> = lines
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .collect();
            let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else {
                continue;
            };
            let text = answer(path);
            kept.lock().unwrap().extend(head);
            let _ = stream.write_all(text.as_bytes());
        }
    });
    (address, asked)
}

/// Lines of requests.
type Asked = std::sync::Arc<Mutex<Vec<String>>>;

/// Whoever a registry redirects to gets no login, and names nobody who does (as in containerd's CVE-2020-15157).
#[test]
fn a_redirect_does_not_lead_to_the_login() {
    private_network();
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    write_layout(&layout, &layers(1), "1");
    let read = |path: &str| fs::read_to_string(layout.join(path)).unwrap();
    let index: serde_json::Value = serde_json::from_str(&read("index.json")).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let manifest = read(&format!("blobs/{}", digest.replace(':', "/")));
    let closed = "Connection: close\r\n";
    let empty = format!("{closed}Content-Length: 0\r\n\r\n");
    let (thief, stolen) = answering({
        let empty = empty.clone();
        move |_| format!("HTTP/1.1 200 OK\r\n{empty}")
    });
    let (store_of_blobs, led) = answering({
        let empty = empty.clone();
        let realm = format!("WWW-Authenticate: Bearer realm=\"http://{thief}/token\"\r\n");
        move |_| format!("HTTP/1.1 401 Unauthorized\r\n{realm}{empty}")
    });
    let (registry, _) = answering({
        let to = store_of_blobs.clone();
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n";
        let length = format!("Content-Length: {}\r\n", manifest.len());
        move |path| match path.contains("/blobs/") {
            true => {
                format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{to}/b\r\n{empty}")
            }
            false => format!("HTTP/1.1 200 OK\r\n{closed}{kind}{length}\r\n{manifest}"),
        }
    });
    let login = format!(r#"{{"auths": {{"{registry}": {{"auth": "dXNlcjpzZWNyZXQ="}}}}}}"#);
    fs::write(auth_file(), login).unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    let reference = format!("{registry}/app:1");
    let error = pull(&store, &reference, &PullOptions::default(), &Quiet).unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let led = led.lock().unwrap();
    assert!(
        led.iter().any(|line| line.starts_with("GET /b ")),
        "{led:?}"
    );
    let login = |line: &&String| line.to_lowercase().starts_with("authorization:");
    assert_eq!(led.iter().find(login), None);
    assert_eq!(*stolen.lock().unwrap(), Vec::<String>::new());
}
