//! Service managers with a pod as their service: systemd as the first process of a machine of its own, OpenRC, cron.
//!
//! Needs Debian's `systemd`, `openrc`, `cron`.

use std::fs;

use crate::machine::Machine;
use crate::pod_support::until;
use crate::typed::{self, Step};

#[test]
fn systemd_as_typed() {
    let machine = Machine::with_systemd();
    machine.types(
        "## systemd",
        "mkdir -p /srv/web",
        "systemctl status --no-pager sampan-web.service",
    );
}

/// `/srv/web` under systemd.
struct Systemd(Machine);

const WEB: &str = r#"
services:
  web:
    image: localhost/busybox
    command: sh -c 'trap "exit 0" TERM; echo started; while :; do sleep 0.1; done'
    stop_grace_period: 5s
"#;

impl Systemd {
    /// With more patience for a watchdog than for the rest.
    fn new(settings: &str) -> Systemd {
        let machine = Machine::with_systemd();
        let folder = machine.path().join("web");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("compose.yaml"), WEB).unwrap();
        fs::write(machine.path().join("settings"), settings).unwrap();
        machine.shell(
            "cd web && sampan generate systemd -o /etc/systemd/system >../unit
             mkdir /etc/systemd/system/sampan-web.service.d
             cp ../settings /etc/systemd/system/sampan-web.service.d/test.conf
             systemctl daemon-reload && systemctl start sampan-web.service",
        );
        Systemd(machine)
    }

    fn show(&self, property: &str) -> String {
        let words = format!("systemctl show --value -p {property} sampan-web.service");
        self.0.shell(&words)
    }

    fn await_start(&self, restarts: &str) {
        until(&format!("start after {restarts} restarts"), || {
            let up = self.show("NRestarts") == restarts && self.show("ActiveState") == "active";
            up.then_some(())
        });
    }

    fn pid(&self, role: &str) -> String {
        let record = format!(
            "grep -o '\"pid\": *[0-9]*' /run/sampan/pods/web/{role}.json | grep -o '[0-9]*'"
        );
        self.0.shell(&record)
    }

    /// The unit is stopped, and nothing is left of its pod.
    fn stop(&self, result: &str) {
        self.0.shell("systemctl stop sampan-web.service");
        assert_eq!(self.show("Result"), result);
        assert_eq!(
            self.0.shell("ls /run/sampan/pods | grep -v lock || true"),
            ""
        );
        assert_eq!(self.0.shell("pgrep -x sampan || true"), "");
        let cgroups = self.0.cgroups();
        assert!(
            !cgroups.iter().any(|path| path.contains("sampan-web")),
            "{cgroups:?}"
        );
    }
}

#[test]
fn systemd_restarts_what_fails() {
    let systemd = Systemd::new("[Service]\nRestartSec=0\n");
    systemd.await_start("0");
    assert_eq!(systemd.show("StatusText"), "web running");
    assert_eq!(
        systemd.show("MainPID"),
        systemd.0.shell("pgrep -o -x sampan")
    );
    // a service that somebody kills; one that is killed by `sampan kill` was stopped on request
    let killed = systemd.pid("services/web/status");
    systemd.0.shell(&format!("kill -9 {killed}"));
    systemd.await_start("1");
    assert_eq!(systemd.show("ExecMainStatus"), "0");
    // the command that was started
    systemd
        .0
        .shell(&format!("kill -9 {}", systemd.show("MainPID")));
    systemd.await_start("2");
    systemd.stop("success");
}

#[test]
fn systemd_notices_a_supervisor_that_hangs() {
    let systemd = Systemd::new("[Service]\nRestartSec=0\nWatchdogSec=10\n");
    systemd.await_start("0");
    // one that was killed is started again by its keeper, and nobody minds
    let first = systemd.pid("supervisor");
    systemd.0.shell(&format!("kill -9 {first}"));
    let second = until("a successor", || {
        Some(systemd.pid("supervisor")).filter(|pid| *pid != first)
    });
    systemd.0.shell(&format!("kill -STOP {second}"));
    until("the watchdog bites", || {
        (systemd.show("NRestarts") == "1").then_some(())
    });
    systemd.await_start("1");
    systemd.stop("success");
}

#[test]
fn systemd_reloads() {
    let systemd = Systemd::new("");
    let file = systemd.0.path().join("web/compose.yaml");
    let main = systemd.show("MainPID");
    for (text, running) in [
        (WEB.replace("echo started", "echo again"), "echo again"),
        // what is wrong with it leaves the pod as it is
        ("services: {web: {}}".to_owned(), "echo again"),
    ] {
        fs::write(&file, text).unwrap();
        systemd.0.shell("systemctl reload sampan-web.service");
        until("it was reloaded", || {
            (systemd.show("ActiveState") == "active").then_some(())
        });
        until(running, || {
            let found = systemd
                .0
                .shell("sampan -p web exec web cat /proc/1/cmdline | tr '\\0' ' ' || true");
            found.contains(running).then_some(())
        });
        assert_eq!(systemd.show("MainPID"), main);
    }
    systemd.stop("success");
}

/// The request reaches the services, whatever the command is at.
#[test]
fn systemd_stops_while_it_reloads() {
    let systemd = Systemd::new("");
    let folder = systemd.0.path().join("web");
    let asked = WEB.replace("exit 0", "touch /web/asked; exit 0");
    let mounted = format!("{asked}    volumes: ['.:/web']\n");
    let hooked = "x-sampan: {hooks: [{name: slow, at: before-launch, command: [sh, -c, 'touch reading; exec sleep 1000']}]}\n"
        .replace("reading", folder.join("reading").to_str().unwrap());
    let unhealthy = format!(
        "{mounted}    healthcheck: {{test: ['CMD', 'sh', '-c', 'touch /web/reading; false'], interval: 1s, retries: 1000}}\n"
    );
    // while a hook runs, the pod being as it was; and while another pod comes up in its place
    for (text, in_order) in [(mounted.clone() + &hooked, true), (unhealthy, false)] {
        fs::write(folder.join("compose.yaml"), &mounted).unwrap();
        systemd.0.shell("systemctl restart sampan-web.service");
        fs::write(folder.join("compose.yaml"), &text).unwrap();
        for name in ["reading", "asked"] {
            let _ = fs::remove_file(folder.join(name));
        }
        systemd
            .0
            .shell("systemctl reload --no-block sampan-web.service");
        until("it is read again", || {
            folder.join("reading").exists().then_some(())
        });
        systemd.stop("success");
        assert!(!in_order || folder.join("asked").exists());
    }
}

#[test]
fn generated_units_are_valid() {
    let machine = Machine::with_systemd();
    let folder = machine.path().join("a $strange 100% \"place\"");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("compose.yaml"), WEB).unwrap();
    for options in ["", "--gc", "--user"] {
        let script = format!(
            "mkdir -p units; cd 'a $strange 100% \"place\"'; sampan -p web generate systemd {options} -o ../units >/dev/null
             cd ../units && systemd-analyze verify ./* 2>&1; rm ./*"
        );
        assert_eq!(machine.shell(&script), "", "{options}");
    }
}

/// `/srv/web` as the section of systemd has it.
const SRV_WEB: &str = r#"
    mkdir -p /srv/web
    cat >/srv/web/compose.yaml <<'FILE'
services:
  web:
    image: localhost/busybox
    command: sh -c 'echo hello >/tmp/index.html; exec httpd -f -p 80 -h /tmp'
    init: true
    healthcheck:
      test: ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/"]
      interval: 1s
FILE
"#;

/// What OpenRC makes when the machine boots.
const OPENRC: &str = r#"
    for name in daemons exclusive failed hotplugged inactive options scheduled started starting stopping wasinactive tmp; do
        mkdir -p /run/openrc/$name
    done
    touch /run/openrc/softlevel
"#;

#[test]
fn openrc_as_typed() {
    let machine = Machine::installed();
    let prepare = format!("{SRV_WEB}{OPENRC}");
    machine.types("## OpenRC", &prepare, "cat /var/log/sampan-web.log");
}

/// As written but for the time: cron's next minute is far away.
#[test]
fn cron() {
    let machine = Machine::installed();
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/engines.md");
    let steps = typed::steps(&fs::read_to_string(document).unwrap(), "## cron");
    let [Step::Save(name, text)] = &steps[..] else {
        panic!("{steps:?}");
    };
    let text = text
        .replace("17 3 * * *", "@reboot")
        .replace("*/10 * * * *", "@reboot");
    fs::write(machine.path().join("crontab"), text + "\n").unwrap();
    machine.shell(&format!(
        r#"
        mkdir -p /srv/report
        cat >/srv/report/compose.yaml <<'FILE'
services:
  report:
    image: localhost/busybox
    command: sh -c 'echo made >/out/report'
    volumes: [".:/out"]
FILE
        rm -f /etc/cron.d/*
        cp crontab {name}
        cron
        until [ -e /srv/report/report ]; do sleep 0.1; done
        while [ -e /run/sampan/pods/report ]; do sleep 0.1; done
        "#
    ));
}

#[test]
fn jobs_of_one_name_do_not_meet() {
    let machine = Machine::installed();
    fs::write(
        machine.path().join("compose.yaml"),
        format!("name: web\n{WEB}"),
    )
    .unwrap();
    let up = "sampan up --rm --abort-on-container-failure";
    machine.shell(&format!(
        "({up} >first 2>&1; echo $? >code) >/dev/null 2>&1 & until grep -q 'web | started' first; do sleep 0.1; done"
    ));
    let second = machine.run(&["sh", "-c", up]);
    assert!(second.fails(1).contains("belongs to process"), "{second:?}");
    machine
        .shell("sampan ps | grep -q 'up ' && sampan stop && until [ -s code ]; do sleep 0.1; done");
    assert_eq!(machine.shell("cat code"), "0");
}
