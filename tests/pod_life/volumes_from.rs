//! `volumes_from`: volumes of one service in another.

use super::pod_support::{BUSYBOX, Host};

#[test]
fn volumes_of_another_service() {
    let host = Host::new();
    host.import("redis");
    let before = host.snapshot();
    host.write("app/index.html", "page\n");
    host.write("own/index.html", "own\n");
    host.compose(&format!(
        "services:
  # by its name it would be made first
  a:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_signal: KILL
    volumes: ['./own:/own']
    volumes_from: [web, 'redis:ro']
  redis: {{image: localhost/redis}}
  web:
    image: {BUSYBOX}
    command: [sh, -c, 'echo nameless > /nameless/file; echo named > /named/file; echo memory > /memory/file; sleep 1000']
    stop_signal: KILL
    volumes: ['./app:/app', './app:/fixed:ro', /nameless, 'data:/named', './app:/own']
    tmpfs: [/memory]
  last:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_signal: KILL
    volumes_from: [a]
volumes: {{data: }}
"
    ));
    host.sampan(&["up", "-d"]).ok();
    let sees = |service: &str, path: &str| {
        let look = format!("cat {path} 2>/dev/null || echo nothing");
        host.shell(service, &look)
    };
    let writes = |service: &str, folder: &str| {
        let try_it = format!("touch {folder}/by-{service} 2>/dev/null && echo yes || echo no");
        host.shell(service, &try_it)
    };
    host.shell("web", "until test -e /memory/file; do usleep 1000; done");
    // what is lent is lent on
    for service in ["a", "last"] {
        assert_eq!(sees(service, "/app/index.html"), "page", "{service}");
        assert_eq!(sees(service, "/nameless/file"), "nameless", "{service}");
        assert_eq!(sees(service, "/named/file"), "named", "{service}");
        assert_eq!(sees(service, "/own/index.html"), "own", "{service}");
        assert_eq!(sees(service, "/memory/file"), "nothing", "{service}");
        for (folder, may) in [
            ("/app", "yes"),
            ("/nameless", "yes"),
            ("/named", "yes"),
            ("/fixed", "no"),
            // of redis' image, and lent to be read
            ("/data", "no"),
        ] {
            assert_eq!(writes(service, folder), may, "{service} {folder}");
        }
    }
    assert_eq!(host.shell("web", "ls /nameless"), "by-a\nby-last\nfile");
    assert_eq!(
        host.shell("a", "stat -c %u /data"),
        "999",
        "filled by its owner"
    );
    let started = |service: &str| host.row(service)["started"].as_str().unwrap().to_owned();
    assert!(started("web") < started("a") && started("redis") < started("a"));
    assert!(started("a") < started("last"));
    // nothing of it is the borrower's own
    let own = host.root.join("pods").join(&host.name).join("a/volumes");
    assert!(!own.exists(), "{}", own.display());
    let config = host.sampan(&["config"]).ok();
    assert!(
        config.contains("volumes_from:\n      - web\n      - \"redis:ro\"\n"),
        "{config}"
    );
    host.down(&before);
}
