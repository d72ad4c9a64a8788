//! What a hook may print, and what becomes of the project.

use serde_json::json;

use super::super::{LoadRequest, load_text};
use super::*;

const FILE: &str = "services:
  web:
    image: i
    environment: {A: 'x$$y', B: b}
    volumes: [data:/data, ./here:/there]
    ports: ['8080:80']
    networks: {front: {aliases: [www]}}
    profiles: [p]
  db: {image: d}
networks: {front: {}}
volumes: {data: {}}
x-sampan:
  limits: {memory: 1g}
  hooks: [{name: h, at: before-launch, command: [/bin/h]}]
";

fn project() -> Project {
    let request = LoadRequest {
        files: Vec::new(),
        working_dir: "/srv/shop".into(),
        project_name: None,
        environment: BTreeMap::new(),
        env_files: Vec::new(),
        profiles: vec!["p".to_owned()],
    };
    let mut project = load_text(FILE, "compose.yaml", &request).unwrap().project;
    project.files = vec!["/srv/shop/compose.yaml".into()];
    project
}

fn patch(text: &str) -> std::result::Result<Json, String> {
    let original = project();
    let loaded = patched(&original, text.as_bytes(), "hook h").map_err(|e| e.message)?;
    let after = loaded.map_or(original, |loaded| loaded.project);
    Ok(serde_json::to_value(after).unwrap())
}

#[test]
fn nothing_printed_changes_nothing() {
    for text in [
        "",
        "\n",
        "# thinking\n",
        "{}",
        "services: {web: {}}",
        "null",
    ] {
        let same = serde_json::to_value(project()).unwrap();
        assert_eq!(patch(text).unwrap(), same, "{text:?}");
    }
}

#[test]
fn what_is_printed_is_merged_and_the_rest_stays() {
    let set = |value: &mut Json, path: &str, new: Json| {
        *value.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = new;
    };
    let table: Vec<(&str, Vec<(&str, Json)>)> = vec![
        (
            "services: {web: {environment: {A: 'p${HOME}$$', C: 'c'}}}",
            vec![(
                "/services/web/environment",
                json!({"A": "p${HOME}$$", "B": "b", "C": "c"}),
            )],
        ),
        (
            // JSON with a surrogate pair
            r#"{"services": {"web": {"environment": ["B=\ud83d\ude00"], "labels": {"k": "v"}}}}"#,
            vec![
                ("/services/web/environment/B", json!("😀")),
                ("/services/web/labels", json!({"k": "v"})),
            ],
        ),
        (
            "services: {db: {image: e}}\nx-sampan: {limits: {memory: 2g}}",
            vec![
                ("/services/db/image", json!("e")),
                ("/pod/limits/memory", json!(2u64 << 30)),
            ],
        ),
        (
            "services: {web: {image: j}}\n---\nservices: {web: {image: k}}\n",
            vec![("/services/web/image", json!("k"))],
        ),
        (
            "services: {web: {environment: !override {Z: z}}}",
            vec![("/services/web/environment", json!({"Z": "z"}))],
        ),
    ];
    for (text, changes) in table {
        let mut expected = serde_json::to_value(project()).unwrap();
        for (path, new) in changes {
            set(&mut expected, path, new);
        }
        assert_eq!(patch(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn services_networks_and_volumes_can_be_added() {
    let after = patch(
        "services:\n  web:\n    volumes: ['/srv/c:/c:ro']\n    networks: {back: {}}\n  side: {image: s, networks: [back]}\nnetworks: {back: {driver: bridge}}\n",
    )
    .unwrap();
    assert_eq!(after["services"]["side"]["image"], "s");
    assert_eq!(
        after["services"]["side"]["origin"],
        json!({"file": "hook h", "line": 5})
    );
    assert_eq!(after["services"]["web"]["origin"]["file"], "compose.yaml");
    let targets = after["services"]["web"]["volumes"].as_array().unwrap();
    let targets: Vec<_> = targets
        .iter()
        .map(|m| m["target"].as_str().unwrap())
        .collect();
    assert_eq!(targets, ["/data", "/there", "/c"]);
    let networks = after["networks"].as_array().unwrap();
    let networks: Vec<_> = networks
        .iter()
        .map(|n| n["key"].as_str().unwrap())
        .collect();
    assert_eq!(networks, ["default", "front", "back"]);
    assert_eq!(after["files"], json!(["/srv/shop/compose.yaml"]));
}

#[test]
fn what_compose_has_no_word_for_stays() {
    let mut original = project();
    original.services.get_mut("web").unwrap().origin.file = "task t1".to_owned();
    original.pod.hooks[0].origin.line = 4711;
    let text = b"services: {web: {image: j}}";
    let mut expected = original.clone();
    expected.services.get_mut("web").unwrap().image = "j".to_owned();
    assert_eq!(
        patched(&original, text, "hook h").unwrap().unwrap().project,
        expected
    );
}

#[test]
fn what_may_not_be_printed() {
    for (text, message) in [
        (
            "hello",
            "hook h:1:1: a compose file must be a mapping, not a string",
        ),
        (
            "a: [",
            "hook h:2:1: not valid YAML: while parsing a node, did not find expected node content",
        ),
        (
            "services: {web: {imagee: x}}",
            "hook h:1:18: services.web.imagee: unknown key; did you mean image?",
        ),
        (
            "services: {new: {}}",
            "hook h:1:12: services.new: has no image; name one with image:",
        ),
        (
            "services: {web: {volumes: ['nope:/x']}}",
            "hook h:1:28: services.web.volumes[2]: volume nope is not declared below volumes: at the top; for a folder write ./nope",
        ),
        (
            "services: {web: {depends_on: [gone]}}",
            "hook h:1:31: services.web.depends_on.gone: there is no service gone",
        ),
        ("name: other", "hook h:1:7: name: a pod is not renamed"),
    ] {
        assert_eq!(patch(text), Err(message.to_owned()), "{text}");
    }
}
