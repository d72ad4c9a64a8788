//! Building images: the definitions in `images/`, from Debian packages to programs that run.
//!
//! Needs root (chroot, namespaces), the Debian packages apt, dpkg, skopeo, umoci, util-linux; and the network, until the
//! packages of the images are in the cache.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sampan::image::Progress;
use sampan::image::build::{BuiltImage, build};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Quiet;

impl Progress for Quiet {
    fn advance(&self, _what: &str, _done: u64, _total: u64) {}
}

fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images")
}

fn built(name: &str, output: &Path) -> BuiltImage {
    build(&images().join(name), output, &Quiet).unwrap_or_else(|e| panic!("{name}: {e}: {e:?}"))
}

/// Runs a program and gives its output; panics with all it said when it fails.
fn run(command: &mut Command) -> String {
    let output = command.output().expect("start");
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}{stderr}",
        output.status
    );
    // nginx -v and the like say it on stderr
    if stdout.is_empty() { stderr } else { stdout }
}

/// Runs one test of this program again, in another environment.
fn again(test: &str, through: &[&str], variable: &str, value: &str) {
    let exe = env::current_exe().expect("own path");
    let mut command = match through {
        [] => Command::new(&exe),
        [program, arguments @ ..] => {
            let mut c = Command::new(program);
            c.args(arguments).arg(&exe);
            c
        }
    };
    let said = run(command
        .args(["--exact", test])
        .env(variable, value)
        .env("IMAGE_BUILD_AGAIN", value));
    assert!(said.contains("1 passed"), "{said}");
}

fn json_blob(layout: &Path, digest: &str) -> Value {
    let hex = digest.strip_prefix("sha256:").expect("digest");
    let data = fs::read(layout.join("blobs/sha256").join(hex)).expect("blob");
    serde_json::from_slice(&data).expect("JSON")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn the_same_twice() {
    if let Some(output) = env::var_os("IMAGE_BUILD_AGAIN") {
        built("redis", Path::new(&output));
        return;
    }
    let temp = TempDir::new().unwrap();
    let first = built("redis", &temp.path().join("first"));

    // other folders, other file times, over an old layout
    let copy = temp.path().join("a/copy");
    for name in ["debian-base", "redis"] {
        copy_folder(&images().join(name), &copy.join(name));
    }
    let second = temp.path().join("second");
    built("busybox", &second);
    let rebuilt = build(&copy.join("redis"), &second, &Quiet).expect("build");
    assert_eq!(rebuilt, first);
    assert_eq!(
        fs::read(temp.path().join("first/index.json")).unwrap(),
        fs::read(second.join("index.json")).unwrap()
    );
    // two layers, configuration, manifest: nothing of busybox, nothing unfinished
    assert_eq!(
        fs::read_dir(second.join("blobs/sha256")).unwrap().count(),
        4
    );
    let left: Vec<_> = fs::read_dir(temp.path()).unwrap().collect();
    assert_eq!(left.len(), 3, "{left:?}");

    // without a network
    let third = temp.path().join("third");
    again(
        "the_same_twice",
        &["unshare", "--net"],
        "THIRD",
        third.to_str().expect("UTF-8"),
    );
    assert_eq!(
        fs::read(third.join("index.json")).unwrap(),
        fs::read(second.join("index.json")).unwrap()
    );
}

#[test]
fn configuration_as_defined() {
    let temp = TempDir::new().unwrap();
    let layout = temp.path().join("redis");
    let image = built("redis", &layout);
    let manifest = json_blob(&layout, &image.manifest);
    assert_eq!(manifest["config"]["digest"], json!(image.config));
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(2));
    let config = json_blob(&layout, &image.config);
    assert_eq!(
        config["config"],
        json!({
            "User": "redis",
            "ExposedPorts": {"6379/tcp": {}},
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["redis-server", "--protected-mode", "no"],
            "Healthcheck": {
                "Test": ["CMD", "redis-cli", "ping"],
                "Interval": 5_000_000_000_u64,
                "Timeout": 3_000_000_000_u64,
                "StartPeriod": 10_000_000_000_u64,
                "Retries": 3
            },
            "Volumes": {"/data": {}},
            "WorkingDir": "/data",
            "StopSignal": "SIGTERM"
        })
    );
    assert_eq!(config["os"], "linux");
    assert_eq!(config["rootfs"]["type"], "layers");
    assert_eq!(
        config["rootfs"]["diff_ids"].as_array().map(Vec::len),
        Some(2)
    );
    assert_eq!(
        config["history"][1]["created_by"],
        "sampan image build redis"
    );
    assert_eq!(config["created"], config["history"][1]["created"]);

    let seen = run(Command::new("skopeo")
        .args(["inspect", "--config"])
        .arg(format!("oci:{}:localhost/redis:latest", layout.display())));
    let seen: Value = serde_json::from_str(&seen).expect("JSON");
    assert_eq!(seen["config"]["Cmd"], config["config"]["Cmd"]);
    assert_eq!(seen["rootfs"], config["rootfs"]);
}

/// Builds an image and unpacks it with umoci; the path of its root file system.
fn unpacked(name: &str, folder: &Path) -> PathBuf {
    let layout = folder.join(format!("{name}.oci"));
    let image = built(name, &layout);
    let bundle = folder.join(name);
    run(Command::new("umoci")
        .arg("unpack")
        .arg("--image")
        .arg(format!("{}:{}", layout.display(), image.name))
        .arg(&bundle));
    bundle.join("rootfs")
}

/// Everything but the processes in this script's pid namespace is thrown away: they end with it.
const EXAMPLE: &str = r#"
chroot "$REDIS" /bin/ip link set lo up
chroot "$REDIS" redis-server --save '' --loglevel warning &
chroot "$APP" python3 /app/app.py init
chroot "$APP" python3 /app/app.py serve >/dev/null 2>&1 &
chroot "$NGINX" nginx &
get() { chroot "$APP" wget -q -O - --header 'Accept: application/json' "http://127.0.0.1$1"; }
until get :8000/healthz; do sleep 0.05; done
get :8000/
get :8000/
until get /; do sleep 0.05; done
chroot "$REDIS" redis-cli get counter
"#;

#[test]
fn the_images_run() {
    let temp = TempDir::new().unwrap();
    let [redis, nginx, app, busybox] =
        ["redis", "nginx", "python-app", "busybox"].map(|name| unpacked(name, temp.path()));
    for (rootfs, program, expected) in [
        (
            &redis,
            &["redis-server", "--version"][..],
            "Redis server v=",
        ),
        (&nginx, &["nginx", "-v"], "nginx version: nginx/"),
        (&nginx, &["nginx", "-t", "-q"], ""),
        (
            &app,
            &[
                "python3",
                "-c",
                "import http.server, json, ssl; print('imported')",
            ],
            "imported\n",
        ),
        (&busybox, &["sh", "-c", "echo $((6 * 7))"], "42\n"),
    ] {
        let said = run(Command::new("chroot").arg(rootfs).args(program));
        assert!(said.starts_with(expected), "{program:?}: {said}");
    }
    let data = fs::metadata(redis.join("data")).unwrap();
    assert_eq!(
        {
            use std::os::unix::fs::MetadataExt;
            (data.uid(), data.gid(), data.mode() & 0o7777)
        },
        (999, 999, 0o755)
    );
    assert_eq!(
        fs::read_link(redis.join("bin")).unwrap(),
        Path::new("usr/bin")
    );
    assert!(!redis.join("usr/share/man").exists());
    assert!(redis.join("usr/share/doc/redis-server/copyright").is_file());

    let said = run(Command::new("timeout")
        .args([
            "60",
            "unshare",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-euc",
            EXAMPLE,
        ])
        .env("REDIS", &redis)
        .env("NGINX", &nginx)
        .env("APP", &app)
        .env("REDIS_HOST", "127.0.0.1")
        .env("COUNTER_START", "40"));
    for line in [
        "counter is 40",
        "ok",
        "\"count\": 41",
        "\"count\": 42",
        "<h1>Welcome to nginx!</h1>",
    ] {
        assert!(said.contains(line), "no {line:?} in:\n{said}");
    }
    assert!(said.ends_with("42\n"), "{said}");
}

/// What a build of this definition text fails with.
fn failure(text: &str) -> String {
    let temp = TempDir::new().unwrap();
    let folder = temp.path().join("images/bad");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("image.toml"), text).unwrap();
    let output = temp.path().join("out");
    let error = build(&folder, &output, &Quiet).expect_err(text);
    assert!(!output.exists());
    assert_eq!(
        fs::read_dir(temp.path()).unwrap().count(),
        1,
        "something was left behind"
    );
    error
        .to_string()
        .replace(temp.path().to_str().expect("UTF-8"), "")
}

#[test]
fn errors_say_what_and_where() {
    for (text, expected) in [
        (
            "packages = [\"libc6\"]\ncommand = [\"x\"]\n",
            "/images/bad/image.toml:2: unknown field `command`",
        ),
        (
            "packages = [\"no-such-package-anywhere\"]",
            "/images/bad/image.toml: there is no Debian package no-such-package-anywhere in the host's package lists",
        ),
        (
            "[[files]]\npath = \"/x\"\nsource = \"missing\"",
            "/images/bad/image.toml: files[0]: read /images/bad/missing: No such file or directory",
        ),
        (
            "[[files]]\npath = \"/x\"\nbinary = \"no-such-program\"",
            "/images/bad/image.toml: files[0]: binary no-such-program is not beside ",
        ),
        (
            "base = \"nothing\"",
            "/images/bad/image.toml: base: there is no definition nothing (looked for /images/bad/../nothing/image.toml)",
        ),
        (
            "users = [{ name = \"root\", uid = 1, gid = 1 }]",
            "/images/bad/image.toml: users: there is a user root already",
        ),
        (
            "base = \"bad\"",
            "/images/bad/image.toml: base: bad is built on itself",
        ),
        (
            "packages = [\"libc6\"]\nomit = [\"libc6\"]",
            "/images/bad/image.toml: packages: libc6 is in omit too",
        ),
    ] {
        let message = failure(text);
        assert!(
            message.starts_with(expected),
            "{message}\nexpected {expected}"
        );
    }
}

#[test]
fn other_folders_are_not_replaced() {
    let temp = TempDir::new().unwrap();
    let precious = temp.path().join("precious");
    fs::write(&precious, "x").unwrap();
    for output in [temp.path(), &precious] {
        let error = build(&images().join("testinit"), output, &Quiet).expect_err("refused");
        assert_eq!(
            error.to_string(),
            format!(
                "{} is not empty and not an OCI image layout: choose another output folder",
                output.display()
            )
        );
    }
    assert_eq!(fs::read(&precious).unwrap(), b"x");
}

#[test]
fn a_host_without_apt() {
    if env::var_os("IMAGE_BUILD_AGAIN").is_none() {
        again("a_host_without_apt", &[], "PATH", "/nonexistent");
        return;
    }
    assert_eq!(
        failure("packages = [\"libc6\"]"),
        "apt-get is not installed: images are built with apt and dpkg, on a Debian host or a host that has both \
         (packages apt, dpkg)"
    );
}
