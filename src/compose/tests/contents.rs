//! `configs` and `secrets`, and what `x-sampan` says of a service.

use serde_json::json;

use super::*;

fn project(top: &str, service: &str) -> String {
    format!("{}{top}\n", web(service))
}

#[test]
fn files_that_the_project_brings() {
    let top = "configs:\n  a: {content: 'x=$SET'}\n  b: {file: ./b.conf}\nsecrets:\n  s: {environment: SET}\n  f: {file: /f}";
    let table = [
        (
            "configs: [a]",
            json!([{"target": "/a", "read_only": true, "source": {"file": {"content": "eD1zZXQ=", "uid": null, "gid": null, "mode": 0o444}}}]),
        ),
        (
            "configs: [{source: b, target: /etc/b.conf}]",
            json!([{"target": "/etc/b.conf", "read_only": true, "source": {"bind": {"path": "/srv/shop/b.conf", "create": false, "propagation": null, "recursive": false}}}]),
        ),
        (
            "configs: [{source: b, mode: 0400, uid: '7', gid: 8}]",
            json!([{"target": "/b", "read_only": true, "source": {"file": {"content": "Qg==", "uid": 7, "gid": 8, "mode": 0o400}}}]),
        ),
        (
            "secrets: [s, {source: f, target: g/h}]",
            json!([
                {"target": "/run/secrets/g/h", "read_only": true, "source": {"bind": {"path": "/f", "create": false, "propagation": null, "recursive": false}}},
                {"target": "/run/secrets/s", "read_only": true, "source": {"file": {"content": "c2V0", "uid": null, "gid": null, "mode": 0o444}}},
            ]),
        ),
    ];
    for (service, expected) in table {
        let text = project(top, service);
        let files = [("compose.yaml", text.as_str()), ("b.conf", "B")];
        let loaded = Case {
            files: &files,
            named: &[],
            environment: ENVIRONMENT,
            profiles: &[],
        }
        .load();
        assert_service(loaded.clone(), &json!({"volumes": expected}), service);
        // what `sampan config` prints is the same
        let first = loaded.unwrap().project;
        let again = load_one(&to_yaml(&first)).unwrap().project;
        let volumes = |p: &Project| {
            let value = serde_json::to_value(&p.services["web"].volumes).unwrap();
            without_origins(value)
        };
        assert_eq!(volumes(&again), volumes(&first), "{}", to_yaml(&first));
    }
}

#[test]
fn what_is_wrong_with_files() {
    let table = [
        (
            "configs:\n  a: {content: x, file: y}",
            "configs: [a]",
            "compose.yaml:6:3: configs.a: needs one of content, environment and file, and only one",
        ),
        (
            "configs:\n  a: {environment: NONE}",
            "configs: [a]",
            "compose.yaml:6:20: configs.a.environment: variable NONE is not set",
        ),
        (
            "secrets:\n  a: {file: x}",
            "configs: [a]",
            "compose.yaml:4:15: services.web.configs[0].source: a is not declared below configs: at the top",
        ),
        (
            "configs:\n  a: {file: x}",
            "configs: [a]\nvolumes: ['/b:/a']",
            "compose.yaml:4:15: services.web.configs[0]: /a is mounted already, at compose.yaml:5:15; remove one",
        ),
        (
            "secrets:\n  a: {external: true}",
            "secrets: [a]",
            "compose.yaml:6:7: secrets.a.external: not supported yet; there is no store of them; name a file",
        ),
    ];
    for (top, service, expected) in table {
        let error = load_one(&project(top, service)).unwrap_err();
        assert_eq!(error, expected, "{service}");
    }
}

#[test]
fn what_compose_has_no_word_for() {
    let lines = "pid: host\nipc: host\nx-sampan:\n  ambient: [NET_BIND_SERVICE]\n  address_variable: MY_IP\n  arguments: [a, 1]\n  default_working_dir: /w/";
    let loaded = load_one(&web(lines));
    let expected = json!({"host_pid": true, "host_ipc": true, "ambient": ["NET_BIND_SERVICE"], "address_variable": "MY_IP", "arguments": ["a", "1"], "default_working_dir": "/w"});
    assert_service(loaded.clone(), &expected, lines);
    let printed = to_yaml(&loaded.unwrap().project);
    assert_service(load_one(&printed), &expected, &printed);
    let folder = "services: {web: {x-sampan: {rootfs: /srv/root/}}}";
    let expected = json!({"image": "", "rootfs": "/srv/root"});
    assert_service(load_one(folder), &expected, folder);
    let printed = to_yaml(&load_one(folder).unwrap().project);
    assert_service(load_one(&printed), &expected, &printed);
    for (lines, expected) in [
        (
            "x-sampan: {rootfs: /}",
            "compose.yaml:4:24: services.web.x-sampan.rootfs: does not go together with image; remove one",
        ),
        (
            "pid: service:db",
            "compose.yaml:4:10: services.web.pid: \"service:db\" is not supported yet; only host is",
        ),
        (
            "x-sampan: {adress_variable: x}",
            "compose.yaml:4:16: services.web.x-sampan.adress_variable: unknown key; did you mean address_variable?",
        ),
    ] {
        assert_eq!(load_one(&web(lines)).unwrap_err(), expected, "{lines}");
    }
}
