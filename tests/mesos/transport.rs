//! Every way to reach the agent, in both encodings, cut anywhere.

use crate::support::*;

fn one_task(settings: Settings, json: bool) {
    let mut mesos = Mesos::with(settings);
    if json {
        mesos = mesos.option("--json");
    }
    mesos.agent.launch(script("a", "echo hello; sleep 0.2"));
    mesos.start();
    mesos.ends(0);
    assert_eq!(mesos.states("a"), "STARTING RUNNING FINISHED");
    assert!(
        mesos.agent.refusals().is_empty(),
        "{:?}",
        mesos.agent.refusals()
    );
    let status = mesos.agent.wait_for("a", "TASK_RUNNING");
    assert_eq!(status["executor_id"]["value"], "executor.1");
    assert!(status["timestamp"].as_f64().unwrap() > 1.7e9, "{status}");
}

#[test]
fn tcp() {
    one_task(Settings::default(), false);
}

#[test]
fn tcp_json() {
    one_task(Settings::default(), true);
}

#[test]
fn domain_socket() {
    let transport = Transport::DomainSocket;
    one_task(
        Settings {
            transport,
            ..Settings::default()
        },
        false,
    );
}

#[test]
fn domain_socket_json_token() {
    let transport = Transport::DomainSocket;
    one_task(
        Settings {
            transport,
            token: true,
            ..Settings::default()
        },
        true,
    );
}

#[test]
fn tls_token() {
    let transport = Transport::Tls;
    one_task(
        Settings {
            transport,
            token: true,
            ..Settings::default()
        },
        false,
    );
}

#[test]
fn tls_json() {
    let transport = Transport::Tls;
    one_task(
        Settings {
            transport,
            ..Settings::default()
        },
        true,
    );
}

#[test]
fn the_stream_is_cut_anywhere() {
    one_task(
        Settings {
            cut: Some(7),
            ..Settings::default()
        },
        false,
    );
}

#[test]
fn the_stream_is_cut_anywhere_json() {
    one_task(
        Settings {
            cut: Some(8),
            ..Settings::default()
        },
        true,
    );
}

#[test]
fn fields_that_nobody_knows() {
    one_task(
        Settings {
            strange: true,
            ..Settings::default()
        },
        false,
    );
}

#[test]
fn fields_that_nobody_knows_json() {
    one_task(
        Settings {
            strange: true,
            ..Settings::default()
        },
        true,
    );
}

/// A shell is the parent, and the container is cgroups of its own in a mount namespace of its own.
#[test]
fn as_the_linux_launcher_starts_it() {
    let launcher = Launcher {
        shell: true,
        cgroup: true,
        wrapper: ["unshare", "--mount", "--propagation", "slave"]
            .map(str::to_owned)
            .to_vec(),
    };
    one_task(
        Settings {
            launcher,
            ..Settings::default()
        },
        false,
    );
}

/// The token is the agent's business and the executor's, not the task's.
#[test]
fn a_task_sees_no_token_and_no_variables_of_the_library() {
    let mesos = Mesos::with(Settings {
        token: true,
        ..Settings::default()
    });
    mesos.agent.launch(script("a", "env"));
    mesos.start();
    mesos.ends(0);
    let printed = std::fs::read_to_string(mesos.agent.sandbox().join("stdout")).unwrap();
    assert!(!printed.contains("TOKEN"), "{printed}");
    assert!(!printed.contains("LIBPROCESS"), "{printed}");
}

#[test]
fn a_wrong_token_ends_it() {
    let mut settings = Settings {
        token: true,
        ..Settings::default()
    };
    settings
        .environment
        .push(("MESOS_EXECUTOR_AUTHENTICATION_TOKEN".into(), "a.b.c".into()));
    let mesos = Mesos::with(settings);
    mesos.agent.launch(script("a", "true"));
    mesos.start();
    mesos.ends(1);
    assert_eq!(mesos.agent.refusals()[0].0, 401);
}
