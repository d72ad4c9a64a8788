//! Whole tasks → pods.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::compose::project::{MountSource, Service};

/// A task `t` with these fields, as JSON has them.
pub fn task(given: Value) -> TaskInfo {
    let mut whole = json!({"name": "web", "task_id": {"value": "t"}, "agent_id": {"value": "a"}});
    for (key, value) in given.as_object().unwrap() {
        whole[key] = value.clone();
    }
    serde_json::from_value(whole).unwrap()
}

/// A scalar resource.
pub fn scalar(name: &str, value: f64) -> Value {
    json!({"name": name, "type": "SCALAR", "scalar": {"value": value}})
}

/// A resource of ports.
pub fn ports(ranges: &[(u64, u64)]) -> Value {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|(begin, end)| json!({"begin": begin, "end": end}))
        .collect();
    json!({"name": "ports", "type": "RANGES", "ranges": {"range": ranges}})
}

pub fn around(sandbox: &Path) -> Surroundings {
    Surroundings {
        framework: serde_json::from_value(json!({"user": "root", "name": "f", "id": {"value": "F"}})).unwrap(),
        executor: serde_json::from_value(json!({"executor_id": {"value": "E"}, "command": {"value": "sampan", "environment": {"variables": [
            {"name": "TAG", "value": "7"}, {"name": "MESOS_SANDBOX", "value": "x"}, {"name": "LIBPROCESS_IP", "value": "x"}]}}})).unwrap(),
        agent: serde_json::from_value(json!({"hostname": "node1"})).unwrap(),
        sandbox: sandbox.to_owned(),
        variables: BTreeMap::from([("WIDE".to_owned(), "agent".to_owned()), ("A".to_owned(), "agent".to_owned())]),
        address: Some("10.1.2.3".parse().unwrap()),
        seccomp_profiles: None,
        output: output::Bound::default(),
    }
}

fn plan_one(given: Value) -> Result<PodPlan, Invalid> {
    plan(&[task(given)], false, &around(Path::new("/s")))
}

fn only(plan: &PodPlan) -> &Service {
    assert_eq!(plan.project.services.len(), 1);
    plan.project.services.values().next().unwrap()
}

pub fn image() -> Value {
    json!({"type": "MESOS", "mesos": {"image": {"type": "DOCKER", "docker": {"name": "busybox:1"}}}})
}

#[test]
fn an_image_is_one_service() {
    let mut container = image();
    container["network_infos"] = json!([{"name": "net", "port_mappings": [{"host_port": 31001, "container_port": 80}, {"host_port": 0, "container_port": 81}], "ip_addresses": [{"ip_address": "10.9.0.5"}]}]);
    container["volumes"] = json!([
        {"container_path": "/key", "mode": "RO", "source": {"type": "SECRET", "secret": {"type": "VALUE", "value": {"data": "AAE="}}}},
        {"container_path": "data", "host_path": "d", "mode": "RW"}]);
    container["hostname"] = json!("h");
    let found = plan_one(json!({
        "task_id": {"value": "Web.1/".trim_end_matches('/')}, "container": container,
        "command": {"value": "echo $HOME ${X}", "user": "nobody", "environment": {"variables": [{"name": "A", "value": "own$"}, {"name": "PORT1", "value": "mine"}]}},
        "resources": [scalar("cpus", 0.5), scalar("mem", 64.0), ports(&[(31000, 31002)])],
        "kill_policy": {"grace_period": {"nanoseconds": 7_000_000_000u64}}, "max_completion_time": {"nanoseconds": 5},
        "health_check": {"type": "TCP", "tcp": {"port": 80}},
        "labels": {"labels": [{"key": "sampan.ready", "value": "true"}]},
    }))
    .unwrap();
    let name = found.project.name.clone();
    assert!(name.starts_with("web-1-") && name.len() == 16, "{name}");
    assert_eq!(found.policy, Policy::FailPod);
    assert_eq!(
        found.tasks,
        [TaskPlan {
            id: "Web.1".to_owned(),
            services: vec!["web".to_owned()],
            grace: Some(Duration::from_secs(7)),
            ready: true,
            max_completion: Some(Duration::from_nanos(5)),
            folder: "/s/tasks/Web.1".into(),
            sandbox: "/s".into(),
        }]
    );
    let service = only(&found);
    assert_eq!(
        service.entrypoint,
        Some(
            ["/bin/sh", "-c", "echo $HOME ${X}"]
                .map(str::to_owned)
                .to_vec()
        )
    );
    assert_eq!(
        (service.image.as_str(), &service.rootfs),
        ("busybox:1", &None)
    );
    assert_eq!(service.user.as_deref(), Some("nobody"));
    assert_eq!(service.hostname.as_deref(), Some("h"));
    assert_eq!(service.default_working_dir.as_deref(), Some(SANDBOX));
    assert_eq!(service.stop_grace_period, Duration::from_secs(7));
    assert_eq!(
        service.address_variable.as_deref(),
        Some("MESOS_CONTAINER_IP")
    );
    assert_eq!(service.checks.len(), 1);
    let limits = &service.limits;
    assert_eq!(
        (limits.cpu_shares, limits.memory, limits.cpus),
        (Some(512), Some(64 << 20), None)
    );
    let published: Vec<_> = service
        .ports
        .iter()
        .map(|p| (p.published, p.target))
        .collect();
    assert_eq!(published, [(Some(31001), 80), (Some(31000), 81)]);
    let environment: Vec<_> = service
        .environment
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(
        environment,
        [
            "A=own$",
            "HOST=node1",
            "MESOS_SANDBOX=/mnt/mesos/sandbox",
            "MESOS_TASK_ID=Web.1",
            "PORT=31000",
            "PORT0=31000",
            "PORT1=mine",
            "PORT2=31002",
            "PORTS=31000,31001,31002",
            "PORT_web_80=31001",
            "PORT_web_81=31000",
            "WIDE=agent",
        ]
    );
    let targets: Vec<_> = service.volumes.iter().map(|m| m.target.as_str()).collect();
    assert_eq!(
        targets,
        ["/mnt/mesos/sandbox", "/mnt/mesos/sandbox/data", "/key"]
    );
    let secret = &service.volumes.last().unwrap().source;
    assert_eq!(
        *secret,
        MountSource::File {
            content: vec![0, 1],
            uid: None,
            gid: None,
            mode: 0o400
        }
    );
    let network = &found.project.networks[0];
    assert_eq!((network.name.as_str(), network.external), ("net", true));
    assert_eq!(
        network.attachment.ipv4_address,
        Some("10.9.0.5".parse().unwrap())
    );
}

#[test]
fn a_command_alone_runs_on_the_host() {
    let found = plan_one(json!({"command": {"value": "id"}})).unwrap();
    let service = only(&found);
    assert_eq!(service.rootfs.as_deref(), Some(Path::new("/")));
    assert_eq!(service.working_dir.as_deref(), Some("/s"));
    assert_eq!(service.user.as_deref(), Some("root"));
    assert_eq!(service.stop_grace_period, GRACE);
    assert!(found.project.on_host());
    let mounts: Vec<_> = service.volumes.iter().map(|m| m.target.as_str()).collect();
    assert_eq!(mounts, ["/s", "/tmp", "/var/tmp"]);
    assert_eq!(service.environment["MESOS_SANDBOX"], "/s");
    assert_eq!(service.environment["MESOS_CONTAINER_IP"], "10.1.2.3");
}

#[test]
fn whose_user_it_is() {
    let with = |framework: &str, given: Value| {
        let mut around = around(Path::new("/s"));
        around.framework.user = framework.to_owned();
        let found = plan(&[task(given)], false, &around).unwrap();
        only(&found).user.clone()
    };
    let own = json!({"value": "x", "user": "u"});
    let none = json!({"value": "x"});
    for (framework, given, expected) in [
        ("root", json!({"container": image(), "command": none}), None),
        (
            "app",
            json!({"container": image(), "command": none}),
            Some("app"),
        ),
        (
            "app",
            json!({"container": image(), "command": own}),
            Some("u"),
        ),
        ("app", json!({"command": none}), Some("app")),
        ("root", json!({"command": own}), Some("u")),
    ] {
        assert_eq!(with(framework, given).as_deref(), expected);
    }
}

#[test]
fn a_compose_file_from_the_sandbox() {
    let sandbox = tempfile::tempdir().unwrap();
    let app = sandbox.path().join("app");
    std::fs::create_dir(&app).unwrap();
    let base = "version: '2.1'\nservices:\n  web:\n    image: web:${TAG}\n    ports: ['80:80']\n    volumes: ['./src:/src']\n    environment: {A: file, URL: 'http://h:${PORT_web_80}/', DB: '${PORT0}'}\n  db:\n    image: db\n    ports: ['5432']\n    user: postgres\n";
    std::fs::write(app.join("a.yml"), base).unwrap();
    std::fs::write(app.join("b.yml"), "services: {web: {restart: always}}\n").unwrap();
    let labels = json!({"labels": [{"key": "x.fileName", "value": "app/a.yml, app/b.yml"}, {"key": "sampan.override", "value": "services: {db: {init: true}}"}]});
    let given = json!({"labels": labels, "resources": [scalar("mem", 100.0), ports(&[(31000, 31002)])],
        "container": {"type": "MESOS", "network_infos": [{"name": "net"}]}});
    let found = plan(&[task(given.clone())], false, &around(sandbox.path())).unwrap();
    let (web, db) = (
        &found.project.services["web"],
        &found.project.services["db"],
    );
    assert_eq!(web.image, "web:7");
    assert!(db.init);
    let of = |s: &Service| {
        s.ports
            .iter()
            .map(|p| (p.published, p.target))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (of(web), of(db)),
        (vec![(Some(31001), 80)], vec![(Some(31000), 5432)])
    );
    let variable = |name: &str| web.environment.get(name).map(String::as_str);
    assert_eq!(variable("URL"), Some("http://h:31001/"));
    assert_eq!(
        (variable("A"), variable("DB"), variable("TAG")),
        (Some("file"), Some("31000"), Some("7"))
    );
    assert_eq!(variable("MESOS_SANDBOX"), Some(SANDBOX));
    assert_eq!(
        web.volumes[0].source,
        MountSource::Bind {
            path: app.join("src"),
            create: true,
            propagation: None,
            recursive: true
        }
    );
    assert_eq!(web.volumes[1].target, SANDBOX);
    assert_eq!(db.user.as_deref(), Some("postgres"));
    assert_eq!(found.project.pod.limits.memory, Some(100 << 20));
    let networks: Vec<_> = found
        .project
        .networks
        .iter()
        .map(|n| (n.key.as_str(), n.name.as_str()))
        .collect();
    assert_eq!(networks, [("mesos0", "net")]);
    assert_eq!(web.networks.keys().collect::<Vec<_>>(), ["mesos0"]);
    assert_eq!(found.tasks[0].services, ["db", "web"]);
    assert!(
        found
            .notes
            .iter()
            .any(|n| n.contains("host port 80 was not offered")),
        "{:?}",
        found.notes
    );
    // once more the same
    assert_eq!(
        plan(&[task(given)], false, &around(sandbox.path())).unwrap(),
        found
    );
}

#[test]
fn a_group_is_one_pod() {
    let member = |id: &str, name: &str, more: Value| {
        let mut given = json!({"task_id": {"value": id}, "name": name, "container": image(), "command": {"value": "x"},
            "resources": [scalar("cpus", 1.0), scalar("mem", 64.0)]});
        for (key, value) in more.as_object().unwrap() {
            given[key] = value.clone();
        }
        task(given)
    };
    let mut alone = image();
    alone["linux_info"] = json!({"share_cgroups": false});
    alone["volumes"] = json!([{"container_path": "/shared", "mode": "RW", "source": {"type": "SANDBOX_PATH", "sandbox_path": {"type": "PARENT", "path": "x"}}}]);
    let tasks = [
        member("a", "app", json!({})),
        member(
            "b",
            "app",
            json!({"container": alone, "kill_policy": {"grace_period": {"nanoseconds": 1_000_000_000}}}),
        ),
    ];
    let found = plan(&tasks, true, &around(Path::new("/s"))).unwrap();
    assert_eq!(
        found.project.services.keys().collect::<Vec<_>>(),
        ["app", "app-2"]
    );
    let (first, second) = (
        &found.project.services["app"],
        &found.project.services["app-2"],
    );
    assert_eq!(
        (first.limits.memory, first.limits.memory_reservation),
        (None, Some(64 << 20))
    );
    assert_eq!(second.limits.memory, Some(64 << 20));
    assert_eq!(found.project.pod.limits.memory, Some(128 << 20));
    assert_eq!(found.project.pod.limits.cpu_shares, Some(2048));
    let source = |service: &Service, at: usize| match &service.volumes[at].source {
        MountSource::Bind { path, .. } => path.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(source(first, 0), Path::new("/s/tasks/a"));
    assert_eq!(source(second, 1), Path::new("/s/x"));
    assert_eq!(found.tasks[1].services, ["app-2"]);
    assert_eq!(found.tasks[1].sandbox, Path::new("/s/tasks/b"));
    // a variable of the executor's is not one of the group's tasks
    assert!(!first.environment.contains_key("TAG"));
    let compose = member("c", "c", json!({"data": "c2VydmljZXM6IHt9"}));
    let error = plan(&[compose], true, &around(Path::new("/s"))).unwrap_err();
    assert_eq!(error.reason, Some(Reason::TaskGroupInvalid));
    assert_eq!(
        error.message,
        "task c: a task of a group is one service; launch the compose file as a task of its own"
    );
}

#[test]
fn what_is_no_task() {
    let docker = |docker: Value| json!({"type": "DOCKER", "docker": docker});
    let table = [
        (
            json!({"task_id": {"value": ".."}, "command": {"value": "x"}}),
            "task ..: task_id: is not a name",
        ),
        (
            json!({"container": image(), "command": {"value": "x"}, "kill_policy": {"grace_period": {"nanoseconds": -1}}}),
            "task t: kill_policy.grace_period: is negative",
        ),
        (
            json!({"container": docker(json!({"image": "i", "port_mappings": [{"host_port": 1, "container_port": 2}]})), "command": {"value": "x"}}),
            "task t: services.web.ports: on the host's network a service listens on the host's ports itself; remove them",
        ),
        (
            json!({"container": docker(json!({"image": "i", "network": "BRIDGE", "port_mappings": [{"host_port": 1, "container_port": 2}]})), "command": {"value": "x"}}),
            "task t: services.web.ports: host port 1 was not offered (offered: none); leave it out to get one that was",
        ),
        (
            json!({"container": {"type": "MESOS", "hostname": "h"}, "command": {"value": "x"}}),
            "task t: container.hostname: needs a network of the task's own; on the host's it has the host's name",
        ),
        (
            json!({"data": "c2VydmljZXM6IHt9", "container": {"type": "MESOS", "tty_info": {}}}),
            "task t: container.tty_info: the task is a compose file, which says this itself; remove it here",
        ),
        (
            json!({"data": "c2VydmljZXM6IHt9"}),
            "task t: data:1:1: no services; write at least one below services:",
        ),
    ];
    for (given, expected) in table {
        let error = plan_one(given.clone()).unwrap_err();
        assert_eq!(error.message, expected, "{given}");
        assert_eq!(
            (error.state, error.reason),
            (TaskState::Error, Some(Reason::TaskInvalid))
        );
    }
}

#[test]
fn names_of_pods() {
    let name = |ids: &[&str]| {
        let tasks: Vec<_> = ids
            .iter()
            .map(|id| task(json!({"task_id": {"value": id}})))
            .collect();
        pod_name(&tasks, "0000", "exec-1")
    };
    assert_eq!(name(&["a"]), name(&["a"]));
    assert_ne!(name(&["a"]), name(&["A"]));
    assert_ne!(name(&["a", "b"]), name(&["ab"]));
    let table = [
        ("ct:1600_x", "ct-1600-x-"),
        ("…", "task-"),
        (&"x".repeat(200), &"x".repeat(24)),
    ];
    for (id, start) in table {
        let name = name(&[id]);
        assert!(name.starts_with(start) && name.len() <= 35, "{name}");
    }
}

/// A value of any field, half of them plausible.
fn anything() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "[ -~]{0,12}",
        Just("/a/b".to_owned()),
        Just("../x".to_owned()),
        Just("services: {a: {image: b}}".to_owned()),
        Just("${PORT_a_80}".to_owned()),
        "\\PC{0,6}",
    ];
    prop_oneof![
        text.prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        (-1.0e9..1.0e9f64).prop_map(Value::from),
        (0i32..40).prop_map(Value::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Fields of all messages, filled at random.
    #[test]
    fn no_task_makes_it_panic(
        fields in proptest::collection::vec((0usize..FIELDS.len(), anything()), 0..12),
        group in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut whole = json!({"name": "web", "task_id": {"value": "t"}, "agent_id": {"value": "a"}});
        for (field, value) in fields {
            put(&mut whole, FIELDS[field], value);
        }
        let around = around(Path::new("/nowhere"));
        if let Ok(task) = serde_json::from_value::<TaskInfo>(whole) {
            let _ = plan(&[task.clone(), task], group, &around);
        }
        if let Ok(task) = <TaskInfo as prost::Message>::decode(bytes.as_slice()) {
            let _ = plan(&[task], group, &around);
        }
    }
}

/// Where a value may stand; a number is an item of a list.
const FIELDS: &[&str] = &[
    "name",
    "task_id.value",
    "data",
    "command.value",
    "command.shell",
    "command.user",
    "command.arguments.0",
    "command.environment.variables.0.name",
    "command.environment.variables.0.value",
    "command.environment.variables.0.type",
    "container.type",
    "container.docker.image",
    "container.docker.network",
    "container.docker.port_mappings.0.host_port",
    "container.docker.port_mappings.0.container_port",
    "container.docker.parameters.0.key",
    "container.docker.parameters.0.value",
    "container.mesos.image.type",
    "container.mesos.image.docker.name",
    "container.volumes.0.container_path",
    "container.volumes.0.host_path",
    "container.volumes.0.mode",
    "container.volumes.0.source.type",
    "container.volumes.0.source.sandbox_path.path",
    "container.network_infos.0.name",
    "container.network_infos.0.ip_addresses.0.ip_address",
    "container.hostname",
    "container.linux_info.shm_size",
    "container.linux_info.effective_capabilities.capabilities.0",
    "container.linux_info.seccomp.profile_name",
    "container.rlimit_info.rlimits.0.type",
    "container.rlimit_info.rlimits.0.soft",
    "container.rlimit_info.rlimits.0.hard",
    "resources.0.name",
    "resources.0.type",
    "resources.0.scalar.value",
    "resources.0.ranges.range.0.begin",
    "resources.0.ranges.range.0.end",
    "limits.cpus.value",
    "limits.mem.value",
    "labels.labels.0.key",
    "labels.labels.0.value",
    "discovery.visibility",
    "discovery.ports.ports.0.number",
    "discovery.ports.ports.0.name",
    "health_check.type",
    "health_check.http.port",
    "health_check.http.path",
    "health_check.delay_seconds",
    "check.type",
    "check.tcp.port",
    "kill_policy.grace_period.nanoseconds",
    "max_completion_time.nanoseconds",
];

fn put(into: &mut Value, path: &str, value: Value) {
    let mut at = into;
    for step in path.split('.') {
        at = match step.parse::<usize>() {
            Ok(_) => {
                if !at.is_array() {
                    *at = json!([{}]);
                }
                &mut at[0]
            }
            Err(_) => {
                if !at.is_object() {
                    *at = json!({});
                }
                &mut at[step]
            }
        };
    }
    *at = value;
}
