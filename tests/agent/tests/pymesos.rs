//! `pymesos`, an executor library that others wrote, against the test agent. `make target/pymesos` installs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_agent::{Agent, Phase, Settings, task};

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn started(mut settings: Settings) -> Agent {
    let library = here().join("../../target/pymesos");
    assert!(library.is_dir(), "pymesos is missing: make target/pymesos");
    let library = library.to_string_lossy().into_owned();
    settings.environment.push(("PYTHONPATH".into(), library));
    settings
        .environment
        .push(("PYTHONDONTWRITEBYTECODE".into(), "1".into()));
    let agent = Agent::new(settings);
    agent.launch(task("short", json!({"data": "ZW5k"})));
    agent.launch(task("long", json!({"data": "cnVu"})));
    let script = here().join("tests/pymesos_executor.py");
    agent.start_executor(&["/usr/bin/python3", &script.to_string_lossy()]);
    agent.wait_for("short", "TASK_FINISHED");
    agent.wait_for("long", "TASK_RUNNING");
    agent
}

fn await_printed(agent: &Agent, text: &str) {
    let file = agent.sandbox().join("stdout");
    let end = Instant::now() + Duration::from_secs(30);
    while !fs::read_to_string(&file).unwrap_or_default().contains(text) {
        assert!(Instant::now() < end, "no {text:?}\n{}", agent.story());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn it_subscribes_launches_messages_kills_and_shuts_down() {
    for cut in [None, Some(1), Some(2)] {
        let agent = started(Settings {
            cut,
            ..Settings::default()
        });
        agent.message("cGluZw==");
        assert_eq!(agent.wait_message(), "cG9uZw==");
        agent.kill("long", None);
        agent.wait_for("long", "TASK_KILLED");
        agent.event(json!({"type": "HEARTBEAT"}));
        agent.shutdown();
        let exit = agent.wait_exit();
        assert!(
            exit.status.success() && !exit.destroyed,
            "{exit:?}\n{}",
            agent.story()
        );
        assert_eq!(agent.states("short"), ["TASK_RUNNING", "TASK_FINISHED"]);
        assert_eq!(agent.states("long"), ["TASK_RUNNING", "TASK_KILLED"]);
        agent.assert_clean();
        assert!(agent.refusals().is_empty(), "{:?}", agent.refusals());
        let printed = fs::read_to_string(agent.sandbox().join("stdout")).unwrap();
        let expected = [
            "registered executor.1 test 127.0.0.1",
            "launch short end",
            "launch long run",
            "message ping",
            "kill long",
            "shutdown",
        ];
        let printed: Vec<&str> = printed
            .lines()
            .filter(|line| *line != "disconnected")
            .collect();
        assert_eq!(printed, expected);
    }
}

#[test]
fn it_comes_back_after_a_restart_of_the_agent() {
    let agent = started(Settings::default());
    agent.stop();
    await_printed(&agent, "disconnected");
    agent.start(Phase::NoRoutes);
    agent.wait_subscriptions(1);
    agent.phase(Phase::Reconnecting);
    agent.wait_subscriptions(2);
    agent.phase(Phase::Running);
    await_printed(&agent, "reregistered");
    agent.kill("long", None);
    agent.wait_for("long", "TASK_KILLED");
    agent.assert_clean();
}

#[test]
fn shutdown_as_the_first_event_ends_it() {
    let library = here().join("../../target/pymesos");
    let library = library.to_string_lossy().into_owned();
    let environment = vec![("PYTHONPATH".into(), library)];
    let agent = Agent::new(Settings {
        environment,
        ..Settings::default()
    });
    agent.launch(task("a", Value::Null));
    agent.kill("a", None);
    let script = here().join("tests/pymesos_executor.py");
    agent.start_executor(&["/usr/bin/python3", &script.to_string_lossy()]);
    assert!(agent.wait_exit().status.success());
    assert_eq!(
        fs::read_to_string(agent.sandbox().join("stdout"))
            .unwrap()
            .lines()
            .next(),
        Some("shutdown")
    );
}
