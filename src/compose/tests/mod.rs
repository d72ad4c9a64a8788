//! Whole loads from text, without a disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::project::{MountSource, Origin};
use super::*;

mod attributes;
mod checks;
mod contents;
mod errors;
mod hostile;

const FOLDER: &str = "/srv/shop";

/// A request over files that are given as text; paths are relative to [`FOLDER`].
struct Case<'a> {
    files: &'a [(&'a str, &'a str)],
    named: &'a [&'a str],
    environment: &'a [(&'a str, &'a str)],
    profiles: &'a [&'a str],
}

impl Case<'_> {
    fn load(&self) -> std::result::Result<Loaded, String> {
        let request = LoadRequest {
            files: self.named.iter().map(PathBuf::from).collect(),
            working_dir: FOLDER.into(),
            project_name: None,
            environment: self
                .environment
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            env_files: Vec::new(),
            profiles: self.profiles.iter().map(|p| (*p).to_owned()).collect(),
        };
        let read = |path: &Path| {
            let found = self
                .files
                .iter()
                .find(|(name, _)| Path::new(FOLDER).join(name) == path);
            found
                .map(|(_, text)| text.as_bytes().to_vec())
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        load_with(&request, &read).map_err(|e| e.message)
    }
}

const ENVIRONMENT: &[(&str, &str)] = &[("HOME", "/home/u"), ("SET", "set"), ("EMPTY", "")];

fn load_one(text: &str) -> std::result::Result<Loaded, String> {
    let files = &[("compose.yaml", text)];
    Case {
        files,
        named: &[],
        environment: ENVIRONMENT,
        profiles: &[],
    }
    .load()
}

fn load_two(base: &str, over: &str) -> std::result::Result<Loaded, String> {
    let files = &[("a.yaml", base), ("b.yaml", over)];
    Case {
        files,
        named: &["a.yaml", "b.yaml"],
        environment: ENVIRONMENT,
        profiles: &[],
    }
    .load()
}

/// The fields of a loaded service that `expected` names, compared.
fn assert_service(loaded: std::result::Result<Loaded, String>, expected: &Value, context: &str) {
    let project =
        serde_json::to_value(loaded.unwrap_or_else(|e| panic!("{context}\n{e}")).project).unwrap();
    let service = without_origins(project["services"]["web"].clone());
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&service[key], value, "{key} of\n{context}");
    }
}

fn without_origins(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            map.remove("origin");
            map.values_mut()
                .for_each(|v| *v = without_origins(v.take()));
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|v| *v = without_origins(v.take())),
        _ => {}
    }
    value
}

/// A compose file with one service `web` that has these lines.
fn web(lines: &str) -> String {
    let mut text = "services:\n  web:\n    image: i\n".to_owned();
    for line in lines.lines() {
        text.push_str(&format!("    {line}\n"));
    }
    text
}

fn second(s: u64) -> Value {
    json!({"secs": s, "nanos": 0})
}

#[test]
fn a_later_file_may_bring_the_image_and_more_services() {
    let loaded = load_two(
        "services: {web: {image: a, depends_on: [db]}}",
        "services: {db: {image: b}, web: {image: c}}",
    )
    .unwrap();
    assert_eq!(loaded.project.services["web"].image, "c");
    assert_eq!(
        loaded.project.services["db"].origin,
        Origin {
            file: "b.yaml".into(),
            line: 1
        }
    );
    assert_eq!(
        loaded.project.files,
        [
            PathBuf::from("/srv/shop/a.yaml"),
            PathBuf::from("/srv/shop/b.yaml")
        ]
    );
    let reset = load_two(
        "services: {web: {image: a}, db: {image: b}}",
        "services: {db: !reset null}",
    )
    .unwrap();
    assert_eq!(reset.project.services.keys().collect::<Vec<_>>(), ["web"]);
}

#[test]
fn anchors_and_merge_keys() {
    let text = "x-base: &base\n  image: i\n  environment: &env {A: 1, B: 2}\nservices:\n  web:\n    <<: *base\n    environment:\n      <<: [{C: 4}, *env]\n      B: 3\n";
    assert_service(
        load_one(text),
        &json!({"image": "i", "environment": {"A": "1", "B": "3", "C": "4"}}),
        text,
    );
}

#[test]
fn merge_errors_name_the_later_file() {
    let error = load_two(&web(""), "services:\n  web:\n    prots: []\n").unwrap_err();
    assert_eq!(
        error,
        "b.yaml:3:5: services.web.prots: unknown key; did you mean ports?"
    );
    let error = load_two(
        &web("deploy: {resources: {limits: {cpus: 1}}}"),
        &web("cpus: 2"),
    )
    .unwrap_err();
    assert_eq!(
        error,
        "a.yaml:4:41: services.web.deploy.resources.limits.cpus: contradicts cpus at b.yaml:4:11; remove one"
    );
}

#[test]
fn warnings() {
    let loaded = load_one("version: '3'\nservices:\n  web:\n    image: i$NONE${NONE}\n    depends_on: {x: {condition: service_started, required: false}}\n").unwrap();
    assert_eq!(
        loaded.warnings,
        [
            "compose.yaml:4:12: services.web.image: variable NONE is not set; an empty text is used",
            "compose.yaml:1:1: version: ignored: it is obsolete",
            "compose.yaml:5:18: services.web.depends_on.x: ignored: there is no service x",
        ]
    );
    assert!(loaded.project.services["web"].depends_on.is_empty());
}

#[test]
fn networks_keep_their_order_and_share_settings() {
    let text = "
services:
  a:
    image: i
    networks:
      store: {interface_name: st0, aliases: [x]}
      front: {gw_priority: 5}
  b:
    image: i
    networks: {store: {ipv4_address: 10.9.0.5, aliases: [y, x], interface_name: st0}}
  c: {image: i}
networks:
  front: {external: true, name: corp}
  unused:
  store: {driver: macvlan, driver_opts: {parent: eth1}, internal: true, ipam: {config: [{subnet: 10.9.0.0/24, gateway: 10.9.0.1}]}}
";
    let project = load_one(text).unwrap().project;
    let networks = without_origins(serde_json::to_value(&project.networks).unwrap());
    let settings = |extra: Value| {
        let mut all = json!({"aliases": [], "ipv4_address": null, "ipv6_address": null, "mac_address": null, "interface_name": null, "gw_priority": null});
        extra
            .as_object()
            .unwrap()
            .iter()
            .for_each(|(k, v)| all[k] = v.clone());
        all
    };
    let plain = json!({"driver": "bridge", "driver_opts": {}, "internal": false, "enable_ipv4": true, "enable_ipv6": false, "ipam": [],
        "ipam_driver": null, "ipam_options": {}, "extra": {"default": false, "routes": [], "config": {}, "plugins": []}, "labels": {}, "external": false});
    let network = |extra: Value| {
        let mut all = plain.clone();
        extra
            .as_object()
            .unwrap()
            .iter()
            .for_each(|(k, v)| all[k] = v.clone());
        all
    };
    assert_eq!(
        networks,
        json!([
            network(
                json!({"key": "default", "name": "shop_default", "attachment": settings(json!({}))})
            ),
            network(
                json!({"key": "front", "name": "corp", "external": true, "attachment": settings(json!({"gw_priority": 5}))})
            ),
            network(
                json!({"key": "store", "name": "shop_store", "driver": "macvlan", "driver_opts": {"parent": "eth1"}, "internal": true,
                "ipam": [{"subnet": "10.9.0.0/24", "ip_range": null, "gateway": "10.9.0.1", "aux_addresses": {}}],
                "attachment": settings(json!({"aliases": ["x", "y"], "ipv4_address": "10.9.0.5", "interface_name": "st0"}))})
            ),
        ])
    );
}

#[test]
fn env_files_dotenv_and_names() {
    let files: &[(&str, &str)] = &[
        (
            "compose.yaml",
            "name: ${P:-fallback}\nservices:\n  web:\n    image: ${IMG}\n    env_file:\n      - one.env\n      - {path: gone.env, required: false}\n      - {path: raw.env, format: raw}\n    environment: {B: own, N: $COMPOSE_PROJECT_NAME}\n",
        ),
        ("compose.override.yaml", "services: {web: {tty: true}}"),
        (".env", "IMG=img:${TAG-1}\nP=proj\nSET=lost"),
        ("one.env", "A=1\nB=2\nC=${A}$SET"),
        ("raw.env", "D=\"$A\""),
    ];
    let case = Case {
        files,
        named: &[],
        environment: ENVIRONMENT,
        profiles: &[],
    };
    let project = case.load().unwrap().project;
    let web = &project.services["web"];
    assert_eq!(
        (project.name.as_str(), web.image.as_str(), web.tty),
        ("proj", "img:1", true)
    );
    let expected = [
        ("A", "1"),
        ("B", "own"),
        ("C", "1set"),
        ("D", "\"$A\""),
        ("N", "proj"),
    ];
    assert_eq!(
        web.environment,
        expected
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<BTreeMap<_, _>>()
    );

    let text = &[("compose.yaml", "services: {web: {image: i}}")];
    let name = |environment: &[(&str, &str)]| {
        Case {
            files: text,
            named: &[],
            environment,
            profiles: &[],
        }
        .load()
        .map(|l| l.project.name)
    };
    assert_eq!(name(&[]), Ok("shop".to_owned()));
    assert_eq!(
        name(&[("COMPOSE_PROJECT_NAME", "other")]),
        Ok("other".to_owned())
    );
    assert_eq!(
        name(&[("COMPOSE_PROJECT_NAME", "Other")]).unwrap_err(),
        "project name \"Other\": use lower-case letters, digits, '-' and '_', a letter or digit first"
    );
    let none = Case {
        files: &[],
        named: &[],
        environment: &[],
        profiles: &[],
    }
    .load()
    .unwrap_err();
    assert_eq!(
        none,
        "no compose file in /srv/shop or above (compose.yaml, compose.yml, docker-compose.yaml, docker-compose.yml); name one with -f"
    );
}

#[test]
fn profiles_and_start_order() {
    let text = "
services:
  web: {image: i, depends_on: {db: {condition: service_healthy, restart: true}, init: {condition: service_completed_successfully}}, links: ['cache:redis']}
  init: {image: i, depends_on: [db]}
  db: {image: i}
  cache: {image: i, network_mode: 'service:db'}
  debug: {image: i, profiles: [debug]}
";
    let files = &[("compose.yaml", text)];
    let case = |profiles| {
        Case {
            files,
            named: &[],
            environment: &[],
            profiles,
        }
        .load()
        .unwrap()
        .project
    };
    let project = case(&[]);
    assert_eq!(
        project.start_order(),
        [vec!["db"], vec!["cache", "init"], vec!["web"]]
    );
    assert_eq!(
        project.services["web"].extra_hosts,
        [("redis".to_owned(), "127.0.0.1".to_owned())]
    );
    assert!(project.services["cache"].networks.is_empty());
    for profiles in [&["debug"][..], &["x", "*"]] {
        assert_eq!(
            case(profiles).start_order(),
            [vec!["db", "debug"], vec!["cache", "init"], vec!["web"]]
        );
    }
}

#[test]
fn extends_copies_a_service() {
    let files: &[(&str, &str)] = &[
        (
            "compose.yaml",
            "services:\n  web:\n    extends: {file: sub/base.yaml, service: one}\n    environment: {B: own}\n    ports: ['81:81']\n    command: c\n    labels: !reset null\n  two:\n    extends: web\n    ports: !override []\n",
        ),
        (
            "sub/base.yaml",
            "services:\n  zero: {image: 'i:$SET', env_file: e.env, labels: [a=b]}\n  one:\n    extends: {service: zero}\n    environment: [A=1, B=2]\n    ports: ['80:80']\n    volumes: ['./d:/d', '/abs:/abs']\n",
        ),
        ("sub/e.env", "E=1"),
    ];
    let case = Case {
        files,
        named: &[],
        environment: ENVIRONMENT,
        profiles: &[],
    };
    let project = case.load().unwrap().project;
    let (web, two) = (&project.services["web"], &project.services["two"]);
    assert_eq!(web.image, "i:set");
    let environment: Vec<_> = web
        .environment
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(environment, ["A=1", "B=own", "E=1"]);
    assert_eq!(
        web.ports.iter().map(|p| p.target).collect::<Vec<_>>(),
        [80, 81]
    );
    assert!(web.labels.is_empty() && two.ports.is_empty());
    assert_eq!(two.volumes, web.volumes);
    let MountSource::Bind { path, .. } = &web.volumes[0].source else {
        panic!()
    };
    assert_eq!(path, Path::new("/srv/shop/sub/d"));
}
