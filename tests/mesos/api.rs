//! The API of an executor under an agent. With the Debian package openssl.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::pod_support::until;
use crate::support::*;
use crate::tls;

#[test]
fn an_executor_is_asked_from_elsewhere_also_after_it_was_killed() {
    let mesos = Mesos::new();
    tls::certificates(mesos.host.path());
    let folder = mesos.host.path().to_owned();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let listen = [
        "--listen=127.0.0.1:0".to_owned(),
        format!("--tls-cert={}", file("tls.pem")),
        format!("--tls-key={}", file("tls.key")),
        format!("--tokens={}", file("tokens")),
    ];
    fs::write(file("token"), "token-of-all\n").unwrap();
    let mesos = listen
        .iter()
        .fold(mesos, |mesos, option| mesos.option(option));
    mesos.agent.launch(script("a", "sleep 1000"));
    mesos.start();
    mesos.wait("a", "RUNNING");
    let address = |after: usize| {
        until("its address", || {
            let log = fs::read_to_string(mesos.agent.sandbox().join("stderr")).unwrap();
            let said = log.matches("answered on https://").count();
            let address = log.rsplit("answered on ").next().unwrap();
            (said > after).then(|| address.lines().next().unwrap().to_owned())
        })
    };
    let (token, ca) = (file("token"), file("ca.pem"));
    let ask = |url: &str, arguments: &[&str]| {
        let mut all = vec!["--remote", url, "--token-file", &token, "--remote-ca", &ca];
        all.extend(arguments);
        mesos.host.sampan(&all)
    };
    let first = address(0);
    assert_eq!(ask(&first, &["exec", "a", "echo", "hi"]).ok(), "hi\n");
    assert_eq!(ask(&first, &["ps", "-q"]).ok(), "a\n");

    let subscribed = mesos.agent.subscriptions();
    kill(Pid::from_raw(mesos.real_executor()), Signal::SIGKILL).unwrap();
    mesos.agent.wait_subscriptions(subscribed + 1);
    let second = address(1);
    assert_eq!(ask(&second, &["exec", "a", "echo", "hi"]).ok(), "hi\n");
    let folder = fs::read_dir(mesos.host.state.join("executors")).unwrap();
    let folder = folder.map(|entry| entry.unwrap().path()).next().unwrap();
    let socket = format!("unix:{}", folder.join("api.sock").display());
    let ended = mesos
        .host
        .sampan(&["--remote", &socket, "exec", "a", "sh", "-c", "exit 9"]);
    assert_eq!(ended.code, 9, "{ended:?}");
    mesos.agent.kill("a", None);
    mesos.ends(0);
}
