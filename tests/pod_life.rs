//! The life of pods, driven from outside through the real program. Needs root.

mod pod_support;

use pod_support::{BUSYBOX, Host};

#[test]
fn up_and_down_leave_nothing() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    ports: ['18080:80']\n"
    ));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.row("web")["status"], "running");
    assert_eq!(host.shell("web", "echo hello"), "hello");
    host.down(&before);
}
