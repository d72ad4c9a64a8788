//! `image`, `network` and `config`.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use super::pod_support::{BUSYBOX, Host, layout, tool, until};

#[test]
fn images_in_use_stay() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services: {{web: {{image: {BUSYBOX}, command: [sleep, '1000'], stop_signal: KILL}}}}"
    ));
    host.sampan(&["up", "-d"]).ok();
    let list = host.sampan(&["image", "ls", "--format", "json"]).json();
    assert_eq!(
        list[0]["references"],
        serde_json::json!(["localhost/busybox:latest"])
    );
    let id = list[0]["id"].as_str().unwrap();
    assert_eq!(host.sampan(&["image", "ls", "-q"]).ok(), format!("{id}\n"));
    let table = host.sampan(&["image", "ls"]).ok();
    assert!(
        table.contains(&format!("localhost/busybox:latest   {}", &id[7..19])),
        "{table}"
    );
    let inspected = host.sampan(&["image", "inspect", BUSYBOX, id]).json();
    assert_eq!(inspected[0], inspected[1]);
    assert_eq!(inspected[0]["id"], id);

    let removed = host.sampan(&["image", "rm", BUSYBOX]);
    assert_eq!(
        removed.fails(1),
        format!(
            "sampan: image {BUSYBOX} is held by {}; end that first\n",
            host.name
        )
    );
    host.sampan(&["image", "prune", "--all"]).ok();
    assert_eq!(host.sampan(&["image", "ls", "-q"]).ok(), format!("{id}\n"));
    host.sampan(&["restart"]).ok();
    host.down(&before);

    host.sampan(&["image", "rm", BUSYBOX]).ok();
    assert_eq!(host.sampan(&["image", "ls", "-q"]).ok(), "");
    let missing = host.sampan(&["image", "inspect", BUSYBOX]);
    assert_eq!(
        missing.fails(1),
        format!("sampan: no image {BUSYBOX} in the store; `sampan image ls` lists what is there\n")
    );
    let pruned = host.sampan(&["image", "prune", "--format", "json"]).json();
    assert_eq!(pruned["version"], 1);
    let blobs = host.root.join("blobs/sha256");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0);
}

#[test]
fn networks_are_listed_while_pods_are_on_them() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services: {{web: {{image: {BUSYBOX}, command: [sleep, '1000'], stop_signal: KILL, networks: [back]}}}}\n\
         networks: {{back: {{ipam: {{config: [{{subnet: 10.77.0.0/24}}]}}}}}}"
    ));
    host.sampan(&["up", "-d"]).ok();
    let name = format!("{}_back", host.name);
    let list = host.sampan(&["network", "ls", "--format", "json"]).json();
    assert_eq!(
        list,
        serde_json::json!([{"version": 1, "name": name, "source": "generated", "plugins": ["bridge", "portmap"], "subnets": ["10.77.0.0/24"]}])
    );
    let shown = host.sampan(&["network", "inspect", &name]).json();
    assert_eq!(shown[0]["pods"][0]["pod"], host.name.as_str());
    assert_eq!(
        shown[0]["pods"][0]["interface"]["addresses"][0],
        "10.77.0.2/24"
    );
    let missing = host.sampan(&["network", "inspect", "nothing"]);
    let conf = host.path().join("cni-conf");
    assert_eq!(
        missing.fails(1),
        format!(
            "sampan: no CNI network list `nothing` in {}\n",
            conf.display()
        )
    );
    host.down(&before);
    assert_eq!(
        host.sampan(&["network", "ls", "--format", "json"]).json(),
        serde_json::json!([])
    );
}

#[test]
fn config_means_the_same_when_read_again() {
    let host = Host::empty();
    host.write(
        "more.yaml",
        "services: {web: {environment: {ADDED: 'yes'}}}",
    );
    host.write(".env", "TAG=7\n");
    host.compose(
        "
name: shop
services:
  web:
    image: example.org/web:${TAG}
    command: [serve, '--price', '5$$']
    ports: ['127.0.0.1:80:8080', '53:53/udp']
    environment: [A=1, 'B=x y']
    depends_on: {db: {condition: service_healthy}}
    healthcheck: {test: curl -f http://localhost, interval: 1m30s}
    volumes: ['data:/data:ro', '/srv:/srv', {type: tmpfs, target: /t, tmpfs: {size: 1m}}]
    deploy: {resources: {limits: {cpus: '0.5', memory: 64m}}}
  db: {image: db, healthcheck: {test: [CMD, ok]}, restart: on-failure:3}
volumes: {data: }
x-sampan: {limits: {memory: 1g}}
",
    );
    let first = host
        .sampan(&["-f", "compose.yaml", "-f", "more.yaml", "config"])
        .ok();
    assert!(first.contains("image: \"example.org/web:7\"\n"), "{first}");
    host.write("again/compose.yaml", &first);
    let again = host.sampan(&["-f", "again/compose.yaml", "config"]).ok();
    assert_eq!(again, first);
    let json = host
        .sampan(&[
            "-f",
            "compose.yaml",
            "-f",
            "more.yaml",
            "config",
            "--format",
            "json",
        ])
        .json();
    assert_eq!(json["name"], "shop");
    assert_eq!(json["services"]["web"]["environment"]["ADDED"], "yes");
    assert_eq!(host.sampan(&["config", "--services"]).ok(), "db\nweb\n");
    assert_eq!(host.sampan(&["config", "-q"]).ok(), "");
    // looking changes nothing
    assert!(!host.root.exists() && !host.state.exists());
}

/// Debian's docker-registry on the host's loopback, until dropped.
struct Registry(Child);

impl Registry {
    const ADDRESS: &str = "127.0.0.1:5000";

    fn start(host: &Host) -> Registry {
        let storage = host.path().join("registry");
        let config = host.write(
            "registry.yml",
            format!(
                "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{}'}}\n",
                storage.display(),
                Registry::ADDRESS
            ),
        );
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("needs the Debian package docker-registry");
        let registry = Registry(child);
        until("the registry listens", || {
            TcpStream::connect(Registry::ADDRESS).ok()
        });
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_missing_is_pulled() {
    let host = Host::empty();
    let before = host.snapshot();
    let registry = Registry::start(&host);
    let image = format!("{}/team/busybox:1", Registry::ADDRESS);
    let source = format!("oci:{}", layout("busybox").display());
    let target = format!("docker://{image}");
    tool(
        "skopeo",
        &["copy", "-q", "--dest-tls-verify=false", &source, &target],
    );

    let ran = host.sampan(&["run", "--rm", &image, "echo", "pulled"]);
    assert_eq!(ran.ok(), "pulled\n");
    host.sampan(&["image", "rm", &image]).ok();
    host.compose(&format!(
        "services: {{web: {{image: '{image}', command: [sleep, '1000'], stop_signal: KILL}}}}"
    ));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.row("web")["image"], image);
    // there by now: the registry is not asked
    drop(registry);
    host.sampan(&["up", "-d", "--force-recreate"]).ok();
    host.sampan(&["up", "-d", "--pull", "always"]).fails(125);
    host.down(&before);
}
