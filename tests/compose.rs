//! Loading from a disk, and the same answer as docker-compose 1.29 (Debian package `docker-compose`) on ordinary files:
//! what it writes with `config` must load to the project that the file itself loads to. It sorts by key, so the
//! networks of the cases are sorted too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use sampan::compose::{LoadRequest, Loaded, load, to_yaml};
use serde_json::Value;

fn request(folder: &Path, files: &[&str]) -> LoadRequest {
    LoadRequest {
        files: files.iter().map(Into::into).collect(),
        working_dir: folder.to_owned(),
        project_name: Some("p".to_owned()),
        environment: BTreeMap::from([
            ("HOME".to_owned(), "/root".to_owned()),
            ("TAG".to_owned(), "7".to_owned()),
        ]),
        env_files: Vec::new(),
        profiles: Vec::new(),
    }
}

fn must_load(folder: &Path, files: &[&str]) -> Loaded {
    load(&request(folder, files)).unwrap_or_else(|e| panic!("{e}"))
}

/// A project without the places in the files.
fn bare(loaded: &Loaded) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|key, _| key != "origin" && key != "files");
                map.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(&loaded.project).unwrap();
    strip(&mut value);
    value
}

/// The output of `docker-compose -f … config`.
fn reference(folder: &Path, files: &[&str]) -> String {
    let mut command = Command::new("docker-compose");
    command.current_dir(folder).env_clear();
    command
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", "/root")
        .env("TAG", "7");
    command.args(["-p", "p"]);
    for file in files {
        command.args(["-f", file]);
    }
    let output = command
        .arg("config")
        .output()
        .expect("needs the Debian package docker-compose");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker-compose: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn agree(files: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    files.iter().for_each(|(name, text)| write(name, text));
    let named: Vec<&str> = files
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    let ours = must_load(folder.path(), &named);
    let theirs = reference(folder.path(), &named);
    write("reference.yaml", &theirs);
    let again = must_load(folder.path(), &["reference.yaml"]);
    assert_eq!(bare(&ours), bare(&again), "\n{theirs}");

    write("written.yaml", &to_yaml(&ours.project));
    assert_eq!(
        bare(&must_load(folder.path(), &["written.yaml"])),
        bare(&ours)
    );
}

#[test]
fn a_web_application_reads_as_docker_compose_reads_it() {
    agree(&[
        (
            "a.yaml",
            r#"version: "3.7"
services:
  web:
    image: nginx:${TAG:-latest}
    command: nginx -g 'daemon off;'
    ports: ["8080:80", "127.0.0.1:8443:443", "9000-9002:9000-9002", "5353:53/udp"]
    environment:
      A: 1
      B: "x y"
      C: ${NONE-default}
      D: $$literal
    env_file: web.env
    volumes: ["./html:/usr/share/nginx/html:ro", "cache:/var/cache/nginx", "/var/tmp:/t:rw"]
    depends_on: [db]
    networks: {front: {aliases: [www]}, back: }
    restart: on-failure:3
    healthcheck: {test: curl -f http://localhost, interval: 1m30s, timeout: 10s, retries: 3, start_period: 40s}
    labels: [a.b=c, d]
    extra_hosts: ["x:1.2.3.4"]
    stop_grace_period: 1m
    cap_add: [NET_ADMIN]
    sysctls: [net.core.somaxconn=1024]
    ulimits: {nproc: 65535, nofile: {soft: 20000, hard: 40000}}
    deploy: {resources: {limits: {cpus: "0.50", memory: 50M}, reservations: {memory: 20M}}}
    tty: true
    user: "1000:1000"
    working_dir: /srv
  db:
    image: postgres
    entrypoint: [docker-entrypoint.sh, "a b"]
    expose: ["5432"]
    networks: [back]
    tmpfs: /run
    dns: [8.8.8.8]
    read_only: true
    shm_size: 64m
networks:
  back: {internal: true}
  front: {driver: bridge, ipam: {config: [{subnet: 172.28.0.0/16}]}}
volumes:
  cache: {labels: {x: y}}
"#,
        ),
        ("web.env", "# comment\nFROM_FILE=1\nA=from file\nEMPTY=\n"),
    ]);
}

#[test]
fn overrides_merge_as_docker_compose_merges_them() {
    agree(&[
        (
            "base.yaml",
            r#"version: "2.4"
services:
  web:
    image: a
    command: one two
    environment: [A=1, B=2]
    ports: ["80:80"]
    volumes: ["./a:/a", "./b:/b"]
    labels: {k: v}
    mem_limit: 1g
    cpus: 0.5
    pids_limit: 10
    depends_on: {db: {condition: service_started}}
    expose: ["70"]
    cap_add: [A]
  db: {image: db}
"#,
        ),
        (
            "over.yaml",
            r#"version: "2.4"
services:
  web:
    image: b
    command: [three]
    environment: {B: "3", C: "4"}
    ports: ["81:81"]
    volumes: ["./c:/b:ro"]
    labels: [k=w, l=m]
    mem_limit: 2g
    depends_on: {cache: {condition: service_healthy}}
    expose: ["71"]
    hostname: h
  cache: {image: cache, healthcheck: {disable: true}}
"#,
        ),
    ]);
}

#[test]
fn anchors_and_extension_fields_read_alike() {
    agree(&[(
        "a.yaml",
        r#"version: "3.7"
x-common: &common
  restart: unless-stopped
  environment: &env {TZ: UTC, MODE: "0777"}
services:
  a: {<<: *common, image: i}
  b:
    <<: *common
    image: i
    environment: {<<: *env, MODE: other}
"#,
    )]);
}

#[test]
fn files_are_found_above_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("a/b");
    fs::create_dir_all(&below).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(
        "compose.yml",
        "services: {web: {image: \"i:$V\", volumes: [./x:/x]}}",
    );
    write("compose.override.yml", "services: {web: {tty: true}}");
    write(".env", "V=5");
    let project = must_load(&below, &[]).project;
    let web = &project.services["web"];
    let got = (web.image.as_str(), web.tty, project.working_dir.as_path());
    assert_eq!(got, ("i:5", true, folder.path()));
    let error = load(&request(folder.path(), &["gone.yaml"]))
        .unwrap_err()
        .message;
    let path = folder.path().join("gone.yaml");
    let expected = format!(
        "cannot read {}: No such file or directory (os error 2)",
        path.display()
    );
    assert_eq!(error, expected);
}

#[test]
fn the_demo_is_an_ordinary_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    // refuses what it does not know
    reference(&folder, &["compose.yaml"]);
    let loaded = must_load(&folder, &["compose.yaml"]);
    assert_eq!(loaded.warnings, [""; 0]);
    let services: Vec<&String> = loaded.project.services.keys().collect();
    assert_eq!(services, ["app", "init", "redis", "web"]);
}
