//! Pods whose processes are killed: at random moments, in every combination, from the first step of `up` to the last
//! of `down`. Needs root and the Debian packages iproute2 and nftables.
//!
//! Moments are random; each test prints its seed, and `POD_CRASH_SEED` repeats it.

mod pod_support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pod_support::{BUSYBOX, Host, until};
use serde_json::Value;

/// What the tests know of a pod's own processes.
trait Crash {
    fn recorded(&self, name: &str) -> Option<i32>;
    fn supervisor(&self) -> i32;
    fn keeper(&self) -> i32;
    fn after(&self, supervisor: i32);
    fn lines(&self, service: &str) -> String;
}

impl Crash for Host {
    /// Pid in `keeper.json` or `supervisor.json`.
    fn recorded(&self, name: &str) -> Option<i32> {
        let text = fs::read(self.pod().join(format!("{name}.json"))).ok()?;
        let record: Value = serde_json::from_slice(&text).ok()?;
        Some(record["pid"].as_i64()? as i32)
    }

    fn supervisor(&self) -> i32 {
        self.recorded("supervisor").unwrap()
    }

    fn keeper(&self) -> i32 {
        self.recorded("keeper").unwrap()
    }

    /// Waits for the successor of a supervisor.
    fn after(&self, supervisor: i32) {
        until("another supervisor", || {
            let other = self.recorded("supervisor")? != supervisor;
            (other && UnixStream::connect(self.pod().join("control.sock")).is_ok()).then_some(())
        });
    }

    /// `logs` of one service.
    fn lines(&self, service: &str) -> String {
        self.sampan(&["logs", "--no-log-prefix", service]).ok()
    }
}

fn end(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Kills a process that may have ended already.
fn strike(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

fn is_there(pid: i32) -> bool {
    // a zombie has ended
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|text| !text.rsplit(')').next().unwrap().starts_with(" Z"))
}

fn random() -> fastrand::Rng {
    let seed = std::env::var("POD_CRASH_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    eprintln!("POD_CRASH_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

fn pause(random: &mut fastrand::Rng, most: u64) {
    std::thread::sleep(Duration::from_micros(random.u64(0..most * 1000)));
}

/// So many numbered lines on both streams, then nothing more.
fn numbered(count: u32) -> String {
    format!(
        "i=0; while [ $$i -lt {count} ]; do echo line $$i; echo error $$i >&2; i=$$((i+1)); usleep 1000; done; echo end; sleep 1000"
    )
}

#[test]
fn a_killed_supervisor_loses_nothing() {
    let mut random = random();
    let host = Host::new();
    let before = host.snapshot();
    let count = 4000;
    host.compose(&format!(
        "services:
  lines:
    image: {BUSYBOX}
    command: [sh, -c, '{}']
    stop_grace_period: 0s
  again:
    image: {BUSYBOX}
    command: [sh, -c, 'echo run; sleep 0.2; exit 3']
    restart: always
  once:
    image: {BUSYBOX}
    command: [sh, -c, 'echo once; sleep 2; exit 40']
  three:
    image: {BUSYBOX}
    command: [sh, -c, 'echo run; sleep 0.3; exit 5']
    restart: 'on-failure:3'
  toggle:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_grace_period: 0s
  healthy:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_grace_period: 0s
    healthcheck: {{test: echo x >> /tmp/probes, interval: 200ms}}
",
        numbered(count)
    ));
    host.sampan(&["up", "-d"]).ok();
    let pids = ["lines", "healthy"].map(|name| host.row(name)["pid"].clone());
    let mut toggled = 0;
    for round in 0..20 {
        pause(&mut random, 250);
        let asked = match round % 4 {
            1 => Some(host.start(&["stop", "toggle"])),
            3 => Some(host.start(&["start", "toggle"])),
            _ => None,
        };
        pause(&mut random, 40);
        let supervisor = host.supervisor();
        strike(supervisor);
        let rows = host.sampan(&["ps", "-a", "--format", "json"]).json();
        assert_eq!(rows.as_array().unwrap().len(), 6);
        if let Some(asked) = asked {
            assert_eq!(asked.wait().code, 0);
            toggled += 1;
            let status = if round % 4 == 1 { "exited" } else { "running" };
            assert_eq!(host.row("toggle")["status"], status, "round {round}");
        }
        host.after(supervisor);
    }
    assert_eq!(toggled, 10);
    assert_eq!(
        pids,
        ["lines", "healthy"].map(|name| host.row(name)["pid"].clone())
    );
    host.await_log("lines", "end\n");
    // the last line may be on its way to the index
    strike(host.supervisor());
    let numbers = |word: &str| -> String { (0..count).map(|i| format!("{word} {i}\n")).collect() };
    let wanted = numbers("line") + "end\n";
    until("all lines", || {
        (host.lines("lines").len() >= wanted.len()).then_some(())
    });
    let ended = host.sampan(&["logs", "--no-log-prefix", "lines"]);
    assert!(
        ended.out() == wanted,
        "{}",
        difference(&ended.out(), &wanted)
    );
    let wanted = numbers("error");
    assert!(
        ended.stderr == wanted,
        "{}",
        difference(&ended.stderr, &wanted)
    );

    assert_eq!(host.lines("once"), "once\n");
    let waited = host.sampan(&["wait", "once", "three"]);
    assert_eq!(waited.out(), "once 40\nthree 5\n");
    let once = host.row("once");
    assert_eq!(once["exit_code"], 40);
    let three = host.row("three");
    assert_eq!(
        (&three["exit_code"], &three["restarts"]),
        (&5.into(), &3.into())
    );
    assert_eq!(host.lines("three"), "run\n".repeat(4));
    let restarts = host.row("again")["restarts"].as_u64().unwrap();
    until("one more restart", || {
        (host.row("again")["restarts"].as_u64()? > restarts).then_some(())
    });
    host.await_row("healthy", "health", "healthy");
    let probes = || host.shell("healthy", "cat /tmp/probes").len();
    let seen = probes();
    until("one more probe", || (probes() > seen).then_some(()));
    // every run is recorded once, and no record stays
    until("no exit record is left", || {
        let left = fs::read_dir(host.pod().join("exits")).unwrap().flatten();
        let of_containers = left.filter(|e| host.is_of_service(&e.path()));
        (of_containers.count() == 0).then_some(())
    });
    host.down(&before);
}

impl HostExits for Host {
    /// A record whose process is the recorded end of a service's run.
    fn is_of_service(&self, path: &std::path::Path) -> bool {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let services = fs::read_dir(self.pod().join("services")).unwrap().flatten();
        services.into_iter().any(|service| {
            let Ok(text) = fs::read(service.path().join("ended.json")) else {
                return false;
            };
            let ended: Value = serde_json::from_slice(&text).unwrap();
            let process = &ended["process"];
            name == format!("{}-{}", process["pid"], process["start_time"])
        })
    }
}

trait HostExits {
    fn is_of_service(&self, path: &std::path::Path) -> bool;
}

/// The first line that differs.
fn difference(got: &str, wanted: &str) -> String {
    let (mut got, mut wanted) = (got.lines(), wanted.lines());
    for number in 0.. {
        let (one, other) = (got.next(), wanted.next());
        if one != other {
            return format!("line {number}: {one:?} instead of {other:?}");
        }
        if one.is_none() {
            break;
        }
    }
    "line ends differ".to_string()
}

/// A service that ends with a code once there is a file `go` in the project's folder.
fn on_go(code: i32) -> String {
    format!(
        "    image: {BUSYBOX}
    command: [sh, -c, 'until [ -e /project/go ]; do usleep 10000; done; echo going; exit {code}']
    volumes: ['./:/project:ro']
    stop_grace_period: 0s
"
    )
}

#[test]
fn exits_without_a_supervisor_are_known_afterwards() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n  seven:\n{}  stays:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    stop_grace_period: 0s\n",
        on_go(7)
    ));
    host.sampan(&["up", "-d"]).ok();
    let pid = host.row("seven")["pid"].as_i64().unwrap() as i32;
    let (keeper, supervisor) = (host.keeper(), host.supervisor());
    // a stopped keeper starts no other supervisor
    end(keeper, Signal::SIGSTOP);
    end(supervisor, Signal::SIGKILL);
    until("it is dead", || (!is_there(supervisor)).then_some(()));
    assert_eq!(host.row("seven")["status"], "running");
    host.write("go", "");
    until("it ended", || (!is_there(pid)).then_some(()));
    assert_eq!(host.row("seven")["status"], "exited");
    assert_eq!(host.row("stays")["status"], "running");
    end(keeper, Signal::SIGCONT);
    let seven = host.await_row("seven", "exit_code", 7);
    assert_eq!(seven["status"], "exited");
    assert_eq!(host.lines("seven"), "going\n");
    assert_eq!(host.row("stays")["status"], "running");
    assert_eq!(host.sampan(&["wait", "seven"]).out(), "seven 7\n");
    host.down(&before);
}

#[test]
fn a_supervisor_that_cannot_be_started_is_tried_again() {
    let host = Host::new();
    let before = host.snapshot();
    let go = host.path().join(&host.name).join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // the limit, so that there is a file for one above it; what it runs needs no process
    host.compose(&format!(
        "services:
  seven:
    image: {BUSYBOX}
    command: [sh, -c, 'read x < /project/go; echo going; exit 7']
    volumes: ['./:/project:ro']
    pids_limit: 100
    stop_grace_period: 0s
"
    ));
    host.sampan(&["up", "-d"]).ok();
    let supervisor = host.supervisor();
    let pid = host.row("seven")["pid"].as_i64().unwrap();
    let limits = host.cgroup_folders().into_iter();
    let limit = limits
        .map(|folder| folder.join("pids.max"))
        .find(|file| file.exists())
        .expect("no cgroup of this host has a limit of processes");
    fs::write(&limit, "0").unwrap();
    end(supervisor, Signal::SIGKILL);
    until("no other can be started", || {
        let log = fs::read_to_string(host.pod().join("keeper.log")).ok()?;
        let text = "keeper: start the supervisor: Resource temporarily unavailable (os error 11); trying again\n";
        log.contains(text).then_some(())
    });
    fs::write(&go, "\n").unwrap();
    until("the end of the service to be recorded", || {
        let mut exits = fs::read_dir(host.pod().join("exits")).unwrap();
        let own = format!("{pid}-");
        let found = exits.any(|entry| {
            let name = entry.unwrap().file_name();
            name.to_string_lossy().starts_with(&own)
        });
        found.then_some(())
    });
    fs::write(&limit, "max").unwrap();
    host.after(supervisor);
    host.await_row("seven", "exit_code", 7);
    host.down(&before);
}

#[test]
fn a_pod_goes_on_without_its_keeper() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n  nine:\n{}  again:\n    image: {BUSYBOX}\n    command: [sh, -c, 'sleep 0.2; exit 3']\n    restart: always\n",
        on_go(9)
    ));
    host.sampan(&["up", "-d"]).ok();
    let supervisor = host.supervisor();
    end(host.keeper(), Signal::SIGKILL);
    until("it is dead", || (!is_there(host.keeper())).then_some(()));
    host.write("go", "");
    // without the keeper's record the kernel's own answer counts (Linux 6.15), else nobody saw it
    let code = if kernel() >= (6, 15) { "9" } else { "unknown" };
    let waited = host.sampan(&["wait", "nine"]);
    assert_eq!(waited.out(), format!("nine {code}\n"));
    let restarts = host.row("again")["restarts"].as_u64().unwrap();
    until("one more restart", || {
        (host.row("again")["restarts"].as_u64()? > restarts).then_some(())
    });
    assert_eq!(host.supervisor(), supervisor);
    host.sampan(&["stop", "-t", "0"]).ok();
    fs::remove_file(host.project.join("go")).unwrap();
    host.sampan(&["start"]).ok();
    assert_eq!(host.row("nine")["status"], "running");
    host.down(&before);
}

fn kernel() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn a_pod_without_keeper_and_supervisor_is_adopted_by_the_next_command() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:
  stays:
    image: {BUSYBOX}
    command: [sh, -c, 'echo one; until [ -e /project/go ]; do usleep 10000; done; echo two; sleep 1000']
    volumes: ['./:/project:ro']
    stop_grace_period: 0s
  ends:
{}",
        on_go(4)
    ));
    for command in ["stop", "start", "restart", "kill", "wait", "up", "down"] {
        let _ = fs::remove_file(host.project.join("go"));
        host.sampan(&["up", "-d"]).ok();
        host.await_log("stays", "one\n");
        let (stays, ends) = (host.row("stays"), host.row("ends"));
        let (keeper, supervisor) = (host.keeper(), host.supervisor());
        end(keeper, Signal::SIGKILL);
        strike(supervisor);
        until("both are dead", || {
            (!is_there(keeper) && !is_there(supervisor)).then_some(())
        });
        let dies = command != "up";
        if dies {
            host.write("go", "");
            let pid = ends["pid"].as_i64().unwrap() as i32;
            until("it ended", || (!is_there(pid)).then_some(()));
            assert_eq!(host.row("ends")["status"], "exited");
        }
        assert_eq!(host.row("stays")["pid"], stays["pid"]);
        assert_eq!(host.lines("stays"), "one\n");
        match command {
            "stop" => {
                host.sampan(&["stop"]).ok();
                assert_eq!(host.row("stays")["status"], "exited");
                host.sampan(&["start", "stays"]).ok();
                assert_eq!(host.row("stays")["status"], "running");
                assert_eq!(host.row("ends")["status"], "exited");
            }
            "start" => {
                host.sampan(&["start", "stays"]).ok();
                assert_eq!(host.row("stays")["pid"], stays["pid"]);
                host.await_log("stays", "two\n");
                assert_eq!(host.lines("stays"), "one\ntwo\n");
            }
            "restart" => {
                host.sampan(&["restart", "stays"]).ok();
                assert_ne!(host.row("stays")["pid"], stays["pid"]);
            }
            "kill" => {
                host.sampan(&["kill", "stays"]).ok();
                host.await_row("stays", "exit_code", 137);
            }
            "wait" => {
                // known as long as nobody else reaped it
                let said = host.sampan(&["wait", "ends"]).out();
                assert!(
                    ["ends 4\n", "ends unknown\n"].contains(&said.as_str()),
                    "{said}"
                );
            }
            "up" => {
                host.sampan(&["up", "-d"]).ok();
                assert_eq!(host.row("stays")["pid"], stays["pid"]);
                assert_eq!(host.row("ends")["pid"], ends["pid"]);
            }
            _ => {}
        }
        let own = host.processes();
        let keepers = own.iter().filter(|(pid, _)| comm(*pid) == "keeper");
        assert_eq!(keepers.count(), usize::from(command != "down"), "{own:#?}");
        host.down(&before);
    }
}

/// A pod with something of everything: network, port, volume that is filled, dependency.
fn of_everything(host: &Host) {
    host.compose(&format!(
        "services:
  first:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_grace_period: 0s
    volumes: ['data:/bin2', 'filled:/bin']
    ports: ['18081:80']
    healthcheck: {{test: [CMD, 'true'], interval: 50ms}}
  second:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_grace_period: 0s
    depends_on: {{first: {{condition: service_healthy}}}}
    mem_limit: 64m
networks:
  default:
  inside: {{internal: true}}
volumes:
  data:
  filled:
"
    ));
}

fn assert_up(host: &Host) {
    for name in ["first", "second"] {
        let row = host.row(name);
        assert_eq!(row["status"], "running", "{row:#}");
    }
    assert_eq!(
        host.shell("first", "ls /bin | grep -c ."),
        host.shell("second", "ls /bin | grep -c .")
    );
}

/// How long `up` takes here.
fn measure(host: &Host, before: &[String]) -> Duration {
    let start = Instant::now();
    host.sampan(&["up", "-d"]).ok();
    let took = start.elapsed();
    assert_up(host);
    host.down(before);
    took
}

#[test]
fn up_killed_at_any_moment_leaves_what_down_removes() {
    let host = Host::new();
    of_everything(&host);
    let before = host.snapshot();
    let took = measure(&host, &before);
    let rounds = 36;
    for round in 0..rounds {
        let up = host.start(&["up", "-d"]);
        std::thread::sleep(took * round / rounds);
        strike(up.child.id() as i32);
        up.wait();
        if round % 2 == 0 {
            host.sampan(&["up", "-d"]).ok();
            assert_up(&host);
        }
        host.down(&before);
    }
}

#[test]
fn a_supervisor_killed_during_up_is_no_obstacle() {
    let host = Host::new();
    of_everything(&host);
    let before = host.snapshot();
    let took = measure(&host, &before);
    let rounds = 24;
    for round in 0..rounds {
        let up = host.start(&["up", "-d"]);
        std::thread::sleep(took * round / rounds);
        // both of them each third time
        let victims: &[&str] = match round % 3 {
            0 => &["keeper", "supervisor"],
            _ => &["supervisor"],
        };
        let struck: Vec<i32> = victims
            .iter()
            .filter_map(|name| host.recorded(name))
            .collect();
        struck.iter().for_each(|pid| strike(*pid));
        let ended = up.wait();
        assert_eq!(
            ended.code, 0,
            "round {round}, killed {struck:?}: {ended:#?}"
        );
        assert_up(&host);
        host.down(&before);
    }
}

/// A step that comes late: its supervisor was killed before it had the service's lock, and there is a successor.
#[test]
fn a_step_of_a_supervisor_that_is_gone_does_nothing() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services: {{web: {{image: {BUSYBOX}, command: [sleep, '1000'], stop_signal: KILL}}}}\n"
    ));
    host.sampan(&["up", "-d"]).ok();
    let pid = host.row("web")["pid"].clone();
    let service = host.pod().join("services/web");
    let service = service.to_str().unwrap();
    for step in ["delete", "launch", "start"] {
        // the number of another process than the one that runs it
        let ended = host.sampan(&["internal", step, service, "1"]);
        assert_eq!((ended.fails(125), ended.stdout.len()), ("", 0), "{step}");
        assert_eq!(host.row("web")["pid"], pid, "{step}");
        assert!(
            !host.pod().join("services/web/error.json").exists(),
            "{step}"
        );
    }
    host.down(&before);
}

/// Name of a process; keeper and supervisor have the same command line.
fn comm(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    text.trim_end().to_string()
}

/// Keepers or supervisors of a host.
fn called(host: &Host, name: &str) -> usize {
    let own = host.processes();
    own.iter().filter(|(pid, _)| comm(*pid) == name).count()
}

/// Short processes of a pod: pid and step.
fn steps(host: &Host, wanted: &str) -> Vec<i32> {
    let mark = host.path().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut words = line.split('\0').skip(1);
        if (words.next(), words.next()) == (Some("internal"), Some(wanted)) && line.contains(&mark)
        {
            found.push(pid);
        }
    }
    found
}

#[test]
fn a_killed_step_is_told_or_done_again() {
    let mut random = random();
    let host = Host::new();
    of_everything(&host);
    let before = host.snapshot();
    let mut killed = BTreeSet::new();
    for round in 0..4 {
        for step in ["volumes-up", "sandbox-up", "launch", "delete"] {
            // what is deleted has run before
            let mut up = if step == "delete" {
                host.sampan(&["up", "-d"]).ok();
                host.start(&["restart"])
            } else {
                host.start(&["up", "-d"])
            };
            let mut hits = 0;
            let ended = loop {
                for pid in steps(&host, step) {
                    if hits <= round {
                        pause(&mut random, 8);
                        strike(pid);
                        killed.insert(step);
                        hits += 1;
                    }
                }
                if up.child.try_wait().unwrap().is_some() {
                    break up.wait();
                }
            };
            match ended.code {
                0 => assert_up(&host),
                // a failed `up` has removed what it made, but for volumes
                _ => {
                    assert!(ended.stderr.contains("signal: 9"), "{step}: {ended:#?}");
                    assert!(!host.pod().exists(), "{step}: {ended:#?}");
                }
            }
            host.down(&before);
        }
    }
    assert_eq!(killed.len(), 4, "{killed:?}");
}

#[test]
fn down_killed_at_any_moment_can_be_repeated() {
    let host = Host::new();
    of_everything(&host);
    let before = host.snapshot();
    host.sampan(&["up", "-d"]).ok();
    let start = Instant::now();
    host.sampan(&["down"]).ok();
    let took = start.elapsed();
    let rounds = 16;
    for round in 0..rounds {
        host.sampan(&["up", "-d"]).ok();
        let down = host.start(&["down"]);
        std::thread::sleep(took * round / rounds);
        strike(down.child.id() as i32);
        down.wait();
        // what is half removed can be removed, or brought up again
        if round % 2 == 0 {
            host.sampan(&["up", "-d"]).ok();
            assert_up(&host);
        }
        host.down(&before);
    }
}

#[test]
fn a_stop_goes_on_after_the_supervisor_was_killed() {
    let host = Host::new();
    let before = host.snapshot();
    let trap = |code: u32| {
        format!(
            "    image: {BUSYBOX}\n    command: [sh, -c, 'trap \"sleep 0.5; exit {code}\" TERM; echo ready; while :; do usleep 10000; done']\n"
        )
    };
    host.compose(&format!(
        "services:\n  db:\n{}  web:\n{}    restart: always\n    depends_on: [db]\n",
        trap(11),
        trap(12)
    ));
    host.sampan(&["up", "-d"]).ok();
    for name in ["db", "web"] {
        host.await_log(name, "ready");
    }
    let stop = host.start(&["stop"]);
    for _ in 0..3 {
        let supervisor = host.supervisor();
        std::thread::sleep(Duration::from_millis(150));
        strike(supervisor);
        host.after(supervisor);
    }
    assert_eq!(stop.wait().code, 0);
    for (name, code) in [("db", 11), ("web", 12)] {
        let row = host.row(name);
        assert_eq!(
            (&row["status"], &row["exit_code"]),
            (&"exited".into(), &code.into())
        );
    }
    let (db, web) = (host.row("db"), host.row("web"));
    assert!(
        web["finished"].as_str() < db["finished"].as_str(),
        "{web:#} {db:#}"
    );
    host.down(&before);
}

#[test]
fn commands_at_once_start_one_keeper() {
    let host = Host::new();
    of_everything(&host);
    let before = host.snapshot();
    host.sampan(&["up", "-d"]).ok();
    let (keeper, supervisor) = (host.keeper(), host.supervisor());
    end(keeper, Signal::SIGKILL);
    strike(supervisor);
    until("both are dead", || {
        (!is_there(keeper) && !is_there(supervisor)).then_some(())
    });
    let all: Vec<_> = (0..6).map(|_| host.start(&["start"])).collect();
    for one in all {
        assert_eq!(one.wait().code, 0);
    }
    until("the others have ended", || {
        (called(&host, "keeper") == 1).then_some(())
    });
    assert_eq!(called(&host, "supervisor"), 1);
    host.down(&before);
}

#[test]
fn an_idle_pod_uses_no_processor() {
    let host = Host::new();
    host.compose(&format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    stop_grace_period: 0s\n    ports: ['18082:80']\n"
    ));
    let before = host.snapshot();
    host.sampan(&["up", "-d"]).ok();
    let own = [("keeper", host.keeper()), ("supervisor", host.supervisor())];
    let ticks = || {
        own.map(|(_, pid)| {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields: Vec<u64> = text
                .rsplit(')')
                .next()
                .unwrap()
                .split_whitespace()
                .map(|field| field.parse().unwrap_or(0))
                .collect();
            // utime and stime are fields 14 and 15 of proc_pid_stat(5), the third is the first here
            fields[11] + fields[12]
        })
    };
    // what `up` asked for may not be quite over
    std::thread::sleep(Duration::from_millis(500));
    let start = ticks();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(ticks(), start);
    for (name, pid) in own {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status
            .lines()
            .filter(|line| line.starts_with("VmRSS") || line.starts_with("RssAnon"));
        eprintln!("{name}: {:?}", resident.collect::<Vec<_>>());
    }
    host.down(&before);
}

// ---- limits

/// Value of a controller's file in the cgroup of a pod or a service.
fn limit(host: &Host, below: &str, files: [&str; 2]) -> String {
    let candidates: Vec<PathBuf> = host
        .cgroup_folders()
        .iter()
        .map(|folder| folder.join(format!("sampan-{}", host.name)).join(below))
        .flat_map(|folder| files.map(|file| folder.join(file)))
        .collect();
    let found = candidates
        .iter()
        .find_map(|path| fs::read_to_string(path).ok());
    found
        .unwrap_or_else(|| panic!("none of {candidates:#?}"))
        .trim()
        .to_string()
}

#[test]
fn a_memory_hog_is_killed_within_its_limit() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:
  other:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_grace_period: 0s
  hog:
    image: {BUSYBOX}
    command: [tail, /dev/zero]
    mem_limit: 32m
  again:
    image: {BUSYBOX}
    command: [tail, /dev/zero]
    mem_limit: 32m
    restart: 'on-failure:1'
"
    ));
    host.sampan(&["up", "-d"]).ok();
    let other = host.row("other")["pid"].clone();
    for name in ["hog", "again"] {
        host.sampan(&["wait", name]).fails(137);
        let row = host.row(name);
        assert_eq!(
            (&row["exit_code"], &row["oom_killed"]),
            (&137.into(), &true.into()),
            "{row:#}"
        );
    }
    assert_eq!(host.row("again")["restarts"], 1);
    assert_eq!(host.row("other")["pid"], other);
    assert_eq!(host.row("other")["oom_killed"], false);
    host.down(&before);
}

#[test]
fn the_pods_limit_holds_for_the_sum_of_its_services() {
    let host = Host::new();
    host.import("testinit");
    let before = host.snapshot();
    let hog = |name: &str, more: &str| {
        format!(
            "  {name}:\n    image: localhost/testinit\n    command: [memhold, '40000000']\n    mem_limit: 48m\n    stop_grace_period: 0s\n{more}"
        )
    };
    let services = hog("one", "") + &hog("two", "");
    // alone they fit
    host.compose(&format!("services:\n{services}"));
    host.sampan(&["up", "-d"]).ok();
    for name in ["one", "two"] {
        host.await_log(name, "40000000\n");
        assert_eq!(host.row(name)["status"], "running");
    }
    host.down(&before);
    host.compose(&format!(
        "services:\n{services}x-sampan: {{limits: {{memory: 64m}}}}\n"
    ));
    // one after the other: while both grow, the kernel may take the second one too before the first one's memory is back
    host.sampan(&["up", "-d", "one"]).ok();
    host.await_log("one", "40000000\n");
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(
        limit(&host, "", ["memory.max", "memory.limit_in_bytes"]),
        "67108864"
    );
    assert_eq!(
        limit(&host, "one", ["memory.max", "memory.limit_in_bytes"]),
        "50331648"
    );
    let killed = until("one of them is killed", || {
        ["one", "two"]
            .into_iter()
            .find(|name| host.row(name)["exit_code"] == 137)
    });
    assert_eq!(host.row(killed)["oom_killed"], true);
    let other = if killed == "one" { "two" } else { "one" };
    host.await_log(other, "40000000\n");
    let row = host.row(other);
    assert_eq!(
        (&row["status"], &row["oom_killed"]),
        (&"running".into(), &false.into())
    );
    host.down(&before);
}

#[test]
fn limits_are_in_the_cgroup_files() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:
  web:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_grace_period: 0s
    cpus: 0.5
    pids_limit: 20
    mem_limit: 32m
  deployed:
    image: {BUSYBOX}
    command: [sleep, '1000']
    stop_grace_period: 0s
    deploy: {{resources: {{limits: {{cpus: '0.25', memory: 16M, pids: 15}}}}}}
x-sampan: {{limits: {{memory: 100m, cpus: 1.5, pids: 200}}}}
"
    ));
    host.sampan(&["up", "-d"]).ok();
    let v2 = matches!(host.cgroup, sampan::cgroup::Cgroup::V2(_));
    for (below, quota, pids, memory) in [
        ("web", 50_000, 20, 32 << 20),
        ("deployed", 25_000, 15, 16 << 20),
        ("", 150_000, 200, 100 << 20),
    ] {
        let quota = if v2 {
            format!("{quota} 100000")
        } else {
            quota.to_string()
        };
        assert_eq!(
            limit(&host, below, ["cpu.max", "cpu.cfs_quota_us"]),
            quota,
            "{below}"
        );
        assert_eq!(
            limit(&host, below, ["pids.max"; 2]),
            pids.to_string(),
            "{below}"
        );
        assert_eq!(
            limit(&host, below, ["memory.max", "memory.limit_in_bytes"]),
            memory.to_string(),
            "{below}"
        );
    }
    if !v2 {
        assert_eq!(limit(&host, "web", ["cpu.cfs_period_us"; 2]), "100000");
    }
    let forks = host.sampan(&[
        "exec",
        "web",
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 5 & done",
    ]);
    assert!(forks.stderr.contains("can't fork"), "{forks:#?}");
    host.down(&before);
}

#[test]
fn down_ends_a_fork_bomb() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:
  bomb:
    image: {BUSYBOX}
    command: [sh, -c, 'f() {{ while :; do f & done; }}; (f 2>/dev/null) & exec sleep 1000']
    pids_limit: 40
    stop_grace_period: 1s
"
    ));
    host.sampan(&["up", "-d"]).ok();
    // a shell that cannot fork ends, so the number goes up and down below the limit
    until("it is near its limit", || {
        let count: u32 = limit(&host, "bomb", ["pids.current"; 2]).parse().unwrap();
        assert!(count <= 40);
        (count >= 30).then_some(())
    });
    host.down(&before);
}
