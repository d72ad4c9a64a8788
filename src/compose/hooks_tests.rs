//! Hooks of a project, of a folder and of services.

use serde_json::{Value, json};

use super::super::{LoadRequest, Project, load_text, to_yaml};
use super::*;

fn load(text: &str) -> std::result::Result<Project, String> {
    let request = LoadRequest {
        files: Vec::new(),
        working_dir: "/srv/shop".into(),
        project_name: None,
        environment: [("TOKEN".to_owned(), "t$1".to_owned())].into(),
        env_files: Vec::new(),
        profiles: Vec::new(),
    };
    load_text(text, "compose.yaml", &request)
        .map(|loaded| loaded.project)
        .map_err(|error| error.message)
}

fn pod(hooks: &str) -> std::result::Result<Value, String> {
    let text = format!("services: {{web: {{image: i}}}}\nx-sampan:\n  hooks:\n{hooks}");
    let project = load(&text)?;
    let again = load(&to_yaml(&project)).unwrap();
    let plain = |project: &Project| {
        let mut value = serde_json::to_value(&project.pod.hooks).unwrap();
        for hook in value.as_array_mut().unwrap() {
            hook.as_object_mut().unwrap().remove("origin");
        }
        value
    };
    assert_eq!(plain(&again), plain(&project), "{}", to_yaml(&project));
    Ok(plain(&project))
}

#[test]
fn hooks_of_a_project() {
    let hooks = pod(
        "  - {name: first, at: before-launch, command: ./fetch --all 'a b'}
  - name: consul
    at: [after-ready, before-kill]
    command: [consul-hook, x]
    timeout: 1m30s
    on_failure: fail
    env: [A=1, TOKEN, NONE]
  - {name: told, at: after-start, command: [/bin/t], on_failure: note, env: {B: 2}}
",
    )
    .unwrap();
    let hook = |name, at, command: &[&str], secs, on_failure, env| json!({"name": name, "at": at, "command": command, "timeout": {"secs": secs, "nanos": 0}, "on_failure": on_failure, "env": env});
    let env = json!({"A": "1", "TOKEN": "t$1"});
    let expected = json!([
        hook(
            "first",
            "before-launch",
            &["/srv/shop/fetch", "--all", "a b"],
            30,
            "fail",
            json!({})
        ),
        hook(
            "consul",
            "after-ready",
            &["consul-hook", "x"],
            90,
            "fail",
            env.clone()
        ),
        hook(
            "consul",
            "before-kill",
            &["consul-hook", "x"],
            90,
            "note",
            env
        ),
        hook(
            "told",
            "after-start",
            &["/bin/t"],
            30,
            "note",
            json!({"B": "2"})
        ),
    ]);
    assert_eq!(hooks, expected);
}

#[test]
fn what_is_wrong_with_a_hook() {
    for (hook, message) in [
        (
            "{at: after-stop, command: x}",
            "compose.yaml:4:5: x-sampan.hooks[0]: has no name; messages and the pod's events name a hook by it",
        ),
        (
            "{name: a b, at: after-stop, command: x}",
            "compose.yaml:4:12: x-sampan.hooks[0].name: \"a b\" is not a name; use letters, digits, '.', '_' and '-'",
        ),
        (
            "{name: a, command: x}",
            "compose.yaml:4:5: x-sampan.hooks[0]: has no at: when it runs; one of before-launch, after-start, after-ready, before-kill, after-stop and on-failure",
        ),
        (
            "{name: a, at: later, command: x}",
            "compose.yaml:4:19: x-sampan.hooks[0].at[0]: \"later\" is none of before-launch, after-start, after-ready, before-kill, after-stop and on-failure",
        ),
        (
            "{name: a, at: after-stop}",
            "compose.yaml:4:5: x-sampan.hooks[0]: has no command: the program that it runs",
        ),
        (
            "{name: a, at: after-stop, command: ['']}",
            "compose.yaml:4:5: x-sampan.hooks[0]: has no command: the program that it runs",
        ),
        (
            "{name: a, at: after-stop, command: x, timeout: 0s}",
            "compose.yaml:4:5: x-sampan.hooks[0]: timeout: must be more than 0",
        ),
        (
            "{name: a, at: after-stop, command: x, on_failure: fail}",
            "compose.yaml:4:55: x-sampan.hooks[0].on_failure: fail: the pod is ending by then; only note is possible",
        ),
        (
            "{name: a, at: after-stop, command: x, on_failure: ignore}",
            "compose.yaml:4:55: x-sampan.hooks[0].on_failure: \"ignore\" is neither fail nor note",
        ),
        (
            "{name: a, at: after-stop, command: x, when: y}",
            "compose.yaml:4:43: x-sampan.hooks[0].when: unknown key; there are name, at, command, timeout, on_failure, env",
        ),
        (
            "{name: a, at: [after-stop, after-stop], command: x}",
            "compose.yaml:4: there is another hook a at after-stop; choose another name",
        ),
    ] {
        assert_eq!(
            pod(&format!("  - {hook}\n")),
            Err(message.to_owned()),
            "{hook}"
        );
    }
}

#[test]
fn hooks_of_a_service() {
    let text = "services:
  web:
    image: i
    post_start:
    - command: sh -c 'touch /x'
    - {command: [id], user: '5:6', privileged: true, working_dir: /tmp, environment: [A=b]}
    pre_stop:
    - {command: [drain], environment: {C: d}}
";
    let project = load(text).unwrap();
    let web = &project.services["web"];
    let plain = LifecycleHook {
        command: ["sh", "-c", "touch /x"].map(String::from).to_vec(),
        user: None,
        privileged: false,
        working_dir: None,
        environment: Default::default(),
    };
    let full = LifecycleHook {
        command: vec!["id".into()],
        user: Some("5:6".into()),
        privileged: true,
        working_dir: Some("/tmp".into()),
        environment: [("A".to_owned(), "b".to_owned())].into(),
    };
    let stop = LifecycleHook {
        command: vec!["drain".into()],
        environment: [("C".to_owned(), "d".to_owned())].into(),
        ..plain.clone()
    };
    assert_eq!(web.post_start, [plain, full]);
    assert_eq!(web.pre_stop, [stop]);
    let again = load(&to_yaml(&project)).unwrap();
    assert_eq!(again.services["web"].post_start, web.post_start);
    assert_eq!(again.services["web"].pre_stop, web.pre_stop);
    let bad = load("services: {web: {image: i, pre_stop: [{user: a}]}}");
    let message = "compose.yaml:1:39: services.web.pre_stop[0]: has no command";
    assert_eq!(bad.unwrap_err(), message);
}

#[test]
fn hooks_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "20-b.yaml",
        "at: [after-stop, after-start]\ncommand: [./run, $HOME]\n",
    );
    write(
        "10-a.json",
        "{\"name\": \"a\", \"at\": \"before-launch\", \"command\": \"curl x\", \"timeout\": \"5s\"}",
    );
    write("README", "not a hook");
    let hooks = load_hooks(folder.path()).unwrap();
    let run = folder.path().join("run").display().to_string();
    let seen: Vec<_> = hooks
        .iter()
        .map(|h| {
            (
                h.name.as_str(),
                h.at.name(),
                h.command.join(" "),
                h.timeout.as_secs(),
            )
        })
        .collect();
    let expected = [
        ("a", "before-launch", "curl x".to_owned(), 5),
        ("20-b", "after-stop", format!("{run} $HOME"), 30),
        ("20-b", "after-start", format!("{run} $HOME"), 30),
    ];
    assert_eq!(seen, expected);
    let at = |name: &str| folder.path().join(name).display().to_string();
    for (name, text, message) in [
        ("30.yml", "", "30.yml:1:1: must hold one hook"),
        (
            "30.yml",
            "[]",
            "30.yml:1:1: a hook must be a mapping, not a list",
        ),
        (
            "30.yml",
            "{at: after-stop, comand: x}",
            "30.yml:1:18: comand: unknown key; did you mean command?",
        ),
        (
            "30.yml",
            "{name: a, at: before-launch, command: x}",
            "30.yml:1: there is another hook a at before-launch; choose another name",
        ),
    ] {
        write(name, text);
        let message = at(message);
        assert_eq!(load_hooks(folder.path()).unwrap_err().message, message);
    }
    let none = load_hooks(&folder.path().join("none")).unwrap_err().message;
    assert_eq!(
        none,
        format!(
            "cannot read {}: No such file or directory (os error 2)",
            at("none")
        )
    );
}
