use super::*;
use crate::compose::{self, LoadRequest};

/// A service as a compose file has it (JSON is YAML), with the volume `data`.
pub(crate) fn service(text: &str) -> Service {
    let file = format!(r#"{{"services": {{"web": {text}}}, "volumes": {{"data": {{}}}}}}"#);
    let request = LoadRequest {
        files: Vec::new(),
        working_dir: "/work".into(),
        project_name: Some("pod".into()),
        environment: BTreeMap::new(),
        env_files: Vec::new(),
        profiles: Vec::new(),
    };
    let loaded = compose::load_text(&file, "compose.yaml", &request).unwrap();
    loaded.project.services["web"].clone()
}

fn destinations(service: &Service) -> Vec<String> {
    let places = Places {
        sources: vec!["/host".to_string(); service.volumes.len()],
        image_volumes: vec![("/srv/image".into(), "/host".into())],
        ..Places::default()
    };
    let list = mounts(service, &places).unwrap();
    let text = |m: &Value| m["destination"].as_str().unwrap().to_string();
    list.iter()
        .map(text)
        .skip_while(|d| d != "/etc/hosts" && d != "/srv")
        .collect()
}

#[test]
fn mounts_come_parent_first_and_in_order() {
    let service = service(
        r#"{"image": "x", "volumes": ["/x:/srv/image/deep", "data:/srv", "/y:/etc/hosts", "/z:/opt/b", "/z:/opt/a"]}"#,
    );
    assert_eq!(
        destinations(&service),
        [
            "/srv",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/srv/image",
            "/etc/hosts",
            "/opt/b",
            "/opt/a",
            "/srv/image/deep",
        ]
    );
}

#[test]
fn a_mount_of_the_service_takes_the_place_of_ours() {
    for (target, left) in [
        ("/dev", vec!["/proc", "/sys", "/sys/fs/cgroup"]),
        (
            "/dev/shm/",
            vec![
                "/proc",
                "/dev",
                "/dev/pts",
                "/sys",
                "/sys/fs/cgroup",
                "/dev/mqueue",
            ],
        ),
        (
            "/sys/fs/cgroup",
            vec![
                "/proc",
                "/dev",
                "/dev/pts",
                "/sys",
                "/dev/mqueue",
                "/dev/shm",
            ],
        ),
    ] {
        let service = service(&format!(
            r#"{{"image": "x", "volumes": ["/host:{target}"]}}"#
        ));
        let places = Places {
            sources: vec!["/host".to_string()],
            ..Places::default()
        };
        let list = mounts(&service, &places).unwrap();
        let ours: Vec<&str> = list
            .iter()
            .filter(|m| m["type"] != "bind")
            .map(|m| m["destination"].as_str().unwrap())
            .collect();
        assert_eq!(ours, left, "{target}");
    }
}

#[test]
fn read_only_binds_are_so_with_all_below() {
    let service = service(
        r#"{"image": "x", "volumes": ["/x:/x:ro", {"type": "tmpfs", "target": "/t", "read_only": true},
            {"type": "volume", "source": "data", "target": "/d", "volume": {"subpath": "a/b"}}]}"#,
    );
    let options = |index: usize| {
        service_mount(&service.volumes[index], "/host")["options"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| o.as_str().unwrap().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(options(0), ["rbind", "rprivate", "rro"]);
    assert_eq!(options(1).last().unwrap(), "ro");
    assert_eq!(options(2), ["rbind", "rprivate", "x-sampan.subpath=a/b"]);
}

#[test]
fn swap_is_limited_by_default_only_where_it_is_accounted() {
    let limits = |swap| Limits {
        memory: Some(100),
        memory_swap: swap,
        ..Limits::default()
    };
    for (demanded, accounted, expected) in [
        (None, true, json!({"limit": 100, "swap": 200})),
        (None, false, json!({"limit": 100})),
        (Some(150), false, json!({"limit": 100, "swap": 150})),
        (Some(-1), true, json!({"limit": 100, "swap": -1})),
    ] {
        let made = resources(&limits(demanded), accounted).unwrap();
        assert_eq!(made["memory"], expected);
    }
}

#[test]
fn security_options_choose_the_filter() {
    for (text, filtered) in [
        (r#"{"image": "x"}"#, true),
        (r#"{"image": "x", "privileged": true}"#, false),
        (
            r#"{"image": "x", "security_opt": ["seccomp=unconfined"]}"#,
            false,
        ),
    ] {
        assert_eq!(
            seccomp(&service(text)).unwrap().is_some(),
            filtered,
            "{text}"
        );
    }
    let missing = service(r#"{"image": "x", "security_opt": ["seccomp=./no.json"]}"#);
    assert!(
        seccomp(&missing)
            .unwrap_err()
            .starts_with("seccomp profile /work/no.json: ")
    );
}

#[test]
fn what_frameworks_ask_for() {
    let image = |entrypoint: &[&str], cmd: &[&str]| ImageConfig {
        entrypoint: Some(entrypoint.iter().map(ToString::to_string).collect()),
        cmd: Some(cmd.iter().map(ToString::to_string).collect()),
        ..ImageConfig::default()
    };
    let asking = service(r#"{"image": "x", "x-sampan": {"arguments": ["a", "b"]}}"#);
    for (image, expected) in [
        (image(&["e", "f"], &["c"]), Ok(vec!["e", "f", "a", "b"])),
        (image(&[], &["c", "d"]), Ok(vec!["c", "a", "b"])),
        (
            image(&[], &[]),
            Err("x-sampan.arguments: image x names no program that they could be given to"),
        ),
    ] {
        let found = arguments(&asking, &image);
        let expected = expected.map(|words| words.into_iter().map(str::to_string).collect());
        assert_eq!(found, expected.map_err(str::to_string));
    }
    let asking = service(
        r#"{"image": "x", "pid": "host", "ipc": "host", "cap_drop": ["ALL"], "cap_add": ["NET_RAW"],
            "x-sampan": {"ambient": ["net_raw"], "default_working_dir": "/w"}}"#,
    );
    let user = User {
        uid: 7,
        ..User::default()
    };
    let facts = ImageFacts {
        config: image(&["e"], &[]),
        ..ImageFacts::default()
    };
    let found = process(&asking, &facts, &user, "h").unwrap();
    assert_eq!(found["cwd"], "/w");
    for set in [
        "bounding",
        "effective",
        "permitted",
        "inheritable",
        "ambient",
    ] {
        assert_eq!(found["capabilities"][set], json!(["CAP_NET_RAW"]), "{set}");
    }
    let kinds: Vec<Value> = namespaces(&asking, &Places::default());
    assert_eq!(
        kinds,
        [
            json!({"type": "uts"}),
            json!({"type": "mount"}),
            json!({"type": "cgroup"})
        ]
    );
    let list = mounts(&asking, &Places::default()).unwrap();
    let shm = list
        .iter()
        .find(|m| m["destination"] == "/dev/shm")
        .unwrap();
    assert_eq!(shm["source"], "/dev/shm");
    let more = service(r#"{"image": "x", "x-sampan": {"ambient": ["SYS_ADMIN"]}}"#);
    assert_eq!(
        process(&more, &facts, &user, "h").unwrap_err(),
        "x-sampan.ambient: CAP_SYS_ADMIN is not among the service's capabilities; add it to cap_add"
    );
}
