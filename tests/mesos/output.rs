//! What tasks print, in their sandboxes.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use serde_json::json;

use crate::pod_support::BUSYBOX;
use crate::support::*;

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_task_alone_has_the_files_of_the_executor() {
    let mesos = Mesos::new();
    let sandbox = mesos.agent.sandbox();
    fs::create_dir_all(&sandbox).unwrap();
    chown(&sandbox, Some(1234), Some(2345)).unwrap();
    mesos.agent.launch(script(
        "a",
        "echo one; printf 'two\\nthree' | tee /dev/stderr; exit 3",
    ));
    mesos.start();
    // all of it is there when the end is told
    let last = mesos.wait("a", "FAILED");
    assert_eq!(read(&sandbox.join("stdout")), "one\ntwo\nthree");
    let errors = read(&sandbox.join("stderr"));
    assert!(errors.contains("two\nthree"), "{errors}");
    let message = last["message"].as_str().unwrap();
    assert!(message.ends_with("; its last line: three"), "{message}");
    let meta = fs::metadata(sandbox.join("stdout")).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o644);
    mesos.ends(0);
}

#[test]
fn each_task_of_a_group_has_its_own_files() {
    let mesos = Mesos::new();
    let sandbox = mesos.agent.sandbox();
    fs::create_dir_all(&sandbox).unwrap();
    chown(&sandbox, Some(1234), Some(2345)).unwrap();
    mesos.agent.launch_group(vec![
        member("first", "echo first; echo problem >&2"),
        member("second", "seq 1 3"),
    ]);
    mesos.start();
    mesos.wait("first", "FINISHED");
    mesos.wait("second", "FINISHED");
    for (file, content) in [
        ("first/stdout", "first\n"),
        ("first/stderr", "problem\n"),
        ("second/stdout", "1\n2\n3\n"),
    ] {
        let path = sandbox.join("tasks").join(file);
        assert_eq!(read(&path), content, "{file}");
        let meta = fs::metadata(path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 2345), "{file}");
    }
    mesos.ends(0);
}

#[test]
fn services_of_one_task_are_told_apart() {
    let mesos = Mesos::new();
    let text = format!(
        "services:
  one: {{image: {BUSYBOX}, command: [sh, -c, 'echo a; printf b']}}
  two: {{image: {BUSYBOX}, command: echo c, depends_on: {{one: {{condition: service_completed_successfully}}}}}}
"
    );
    mesos.agent.launch(compose("pod", &text));
    mesos.start();
    mesos.wait("pod", "FINISHED");
    assert_eq!(
        read(&mesos.agent.sandbox().join("stdout")),
        "one | a\none | b\ntwo | c\n"
    );
    mesos.ends(0);
}

#[test]
fn output_in_the_sandbox_is_bounded() {
    for (options, labels, expected) in [
        (
            vec![],
            vec![("sampan.log-size", "64KB"), ("sampan.log-files", "3")],
            3,
        ),
        (vec!["--log-size=64KB", "--log-files=2"], vec![], 2),
        (
            vec!["--log-size=64KB", "--log-files=2"],
            vec![("sampan.log-files", "1")],
            1,
        ),
    ] {
        let mut mesos = Mesos::new();
        for option in options {
            mesos = mesos.option(option);
        }
        let all = [
            vec![("sampan.image", BUSYBOX), ("sampan.command", "seq 1 60000")],
            labels,
        ];
        mesos.agent.launch(labelled("a", &all.concat()));
        mesos.start();
        mesos.wait("a", "FINISHED");
        let text: String = (1..=60_000).map(|i| format!("{i}\n")).collect();
        let sandbox = mesos.agent.sandbox();
        let names = ["stdout.2", "stdout.1", "stdout"];
        let mut found = String::new();
        for name in &names[3 - expected..] {
            let part = read(&sandbox.join(name));
            assert!(part.len() <= 65536, "{name} of {expected}");
            found.push_str(&part);
        }
        assert!(!found.is_empty() && text.ends_with(&found), "{expected}");
        assert!(!sandbox.join(format!("stdout.{expected}")).exists());
        mesos.ends(0);
    }
}

#[test]
fn a_link_in_the_sandbox_leads_nowhere() {
    let mesos = Mesos::new();
    let victim = mesos.host.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    let line = format!(
        "echo one; ln -sf {} stdout; mkfifo f; mv f stderr; echo two; echo two >&2",
        victim.display()
    );
    mesos.agent.launch(script("a", &line));
    mesos.start();
    mesos.wait("a", "FINISHED");
    assert_eq!(read(&victim), "mine");
    mesos.ends(0);
}

#[test]
fn tasks_alone_share_the_files_of_their_executor() {
    let mesos = Mesos::new();
    let ids: Vec<String> = (0..8).map(|i| format!("t{i}")).collect();
    for id in &ids {
        let line = format!("i=0; while [ $i -lt 500 ]; do echo {id} $i; i=$((i+1)); done");
        let more = json!([{"name": "mem", "type": "SCALAR", "scalar": {"value": 32.0}}]);
        mesos
            .agent
            .launch(with(script(id, &line), json!({"resources": more})));
    }
    mesos.start();
    for id in &ids {
        mesos.wait(id, "FINISHED");
    }
    let all = read(&mesos.agent.sandbox().join("stdout"));
    for id in &ids {
        let found: Vec<&str> = all
            .lines()
            .filter(|line| line.starts_with(id.as_str()))
            .collect();
        let expected: Vec<String> = (0..500).map(|i| format!("{id} {i}")).collect();
        assert_eq!(found, expected);
    }
    assert_eq!(all.lines().count(), 8 * 500);
    mesos.ends(0);
}
