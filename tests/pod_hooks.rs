//! Hooks of real pods: their order among everything else, what they may change, what becomes of their failures, and of kills
//! around them. Needs root and the Debian packages iproute2 and nftables.

mod pod_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pod_support::{BUSYBOX, Host, until};
use serde_json::{Value, json};

/// Lines of the pod's events without the time; those of the kernel's order alone, such as addresses, are not among them.
fn events(host: &Host) -> Vec<String> {
    lines(&fs::read_to_string(host.pod().join("events.log")).unwrap_or_default())
}

fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .map(|(_, rest)| rest.trim_start().to_string())
        .collect()
}

fn script(host: &Host, name: &str, text: &str) -> String {
    let path = host.write(name, format!("#!/bin/sh\n{text}\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_string()
}

/// A hook that writes to the file `trace` when it runs, and keeps what it read in `at-POINT.json`.
fn tracer(host: &Host) -> String {
    let dir = host.project.display();
    let text = format!(
        "cat > {dir}/at-$SAMPAN_HOOK.json\necho hook $SAMPAN_HOOK ${{NAME-}} >> {dir}/trace\n\
         cat {dir}/at-$SAMPAN_HOOK.json | grep -q '\"running\"' && echo something runs >> {dir}/trace\nexit 0"
    );
    script(host, "tracer", &text)
}

fn trace(host: &Host) -> Vec<String> {
    let text = fs::read_to_string(host.project.join("trace")).unwrap_or_default();
    text.lines()
        .map(|line| line.trim_end().to_string())
        .collect()
}

fn document(host: &Host, point: &str) -> Value {
    let text = fs::read(host.project.join(format!("at-{point}.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

const ALL: &str = "[before-launch, after-start, after-ready, before-kill, on-failure, after-stop]";

/// A service that writes to `trace` when it is asked to end.
fn polite(host: &Host) -> String {
    format!(
        "image: {BUSYBOX}
    command: [sh, -c, 'trap \"echo web was asked to stop >> /p/trace; exit 0\" TERM; touch /p/up; while :; do usleep 10000; done']
    volumes: ['{}:/p']",
        host.project.display()
    )
}

fn supervisor(host: &Host) -> i32 {
    recorded(host, "supervisor").unwrap()
}

fn recorded(host: &Host, name: &str) -> Option<i32> {
    let text = fs::read(host.pod().join(format!("{name}.json"))).ok()?;
    let record: Value = serde_json::from_slice(&text).ok()?;
    Some(record["pid"].as_i64()? as i32)
}

fn strike(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

#[test]
fn every_point_of_a_life_in_order() {
    let host = Host::new();
    let before = host.snapshot();
    let (tracer, web) = (tracer(&host), polite(&host));
    host.compose(&format!(
        "services:
  web:
    {web}
    ports: ['18080:80']
    healthcheck: {{test: [CMD, test, -e, /p/healthy], interval: 10ms, retries: 1000}}
x-sampan:
  hooks:
  - {{name: all, at: {ALL}, command: [{tracer}]}}
  - {{name: more, at: [after-start, before-kill], command: {tracer}, env: {{NAME: second}}}}
"
    ));
    host.sampan(&["up", "-d"]).ok();
    until("started", || (trace(&host).len() == 5).then_some(()));
    assert_eq!(
        trace(&host),
        [
            "hook before-launch",
            "hook after-start",
            "something runs",
            "hook after-start second",
            "something runs"
        ]
    );
    host.write("healthy", "");
    until("ready", || (trace(&host).len() == 7).then_some(()));
    host.sampan(&["stop"]).ok();
    assert_eq!(
        trace(&host)[5..],
        [
            "hook after-ready",
            "something runs",
            "hook before-kill",
            "something runs",
            "hook before-kill second",
            "something runs",
            "web was asked to stop",
            "hook after-stop",
        ]
    );
    assert_eq!(
        events(&host),
        [
            "hook all at before-launch: done",
            "web started",
            "hook all at after-start: done",
            "hook more at after-start: done",
            "web is healthy",
            "hook all at after-ready: done",
            "hook all at before-kill: done",
            "hook more at before-kill: done",
            "web exited with code 0",
            "service web was stopped on request",
            "hook all at after-stop: done",
        ]
    );
    // what they read
    let early = document(&host, "before-launch");
    let keys = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(&early), ["hook", "owner", "pod", "project", "version"]);
    assert_eq!(early["project"]["services"]["web"]["image"], BUSYBOX);
    let ready = document(&host, "after-ready");
    assert_eq!(ready["version"], 1);
    assert_eq!(ready["hook"], json!({"name": "all", "at": "after-ready"}));
    assert_eq!(ready["pod"]["name"], host.name);
    assert_eq!(ready["services"]["web"]["health"], "healthy");
    assert_eq!(ready["services"]["web"]["ready"], true);
    assert_eq!(ready["ports"][0]["service"], "web");
    assert_eq!(ready["ports"][0]["hostPort"], 18080);
    assert_eq!(ready["ports"][0]["containerPort"], 80);
    assert_eq!(ready["interfaces"][0]["name"], "eth0");
    let address = ready["interfaces"][0]["addresses"][0].as_str().unwrap();
    assert!(address.contains('/'), "{address}");
    assert_eq!(ready["verdict"], Value::Null);
    let stopped = document(&host, "after-stop");
    assert_eq!(stopped["services"]["web"]["exit_code"], 0);
    assert_eq!(stopped["verdict"]["service"], "web");
    assert!(!host.project.join("at-on-failure.json").exists());

    // another life
    fs::remove_file(host.project.join("trace")).unwrap();
    host.sampan(&["start"]).ok();
    until("ready again", || (trace(&host).len() == 6).then_some(()));
    host.down(&before);
    let hooks: Vec<String> = trace(&host)
        .into_iter()
        .filter(|l| l.starts_with("hook"))
        .collect();
    assert_eq!(
        hooks,
        [
            "hook after-start",
            "hook after-start second",
            "hook after-ready",
            "hook before-kill",
            "hook before-kill second",
            "hook after-stop",
        ]
    );
}

#[test]
fn a_chain_changes_the_project() {
    let mut host = Host::new();
    let before = host.snapshot();
    let folder = host.path().join("hooks.d");
    fs::create_dir(&folder).unwrap();
    let first = script(
        &host,
        "first",
        "echo 'services: {web: {environment: {A: \"pa$$$$wd\", B: first}}}'",
    );
    let json = json!({"at": "before-launch", "command": [first]});
    fs::write(folder.join("10-site.json"), json.to_string()).unwrap();
    host.env
        .push(("SAMPAN_HOOKS_DIR".into(), folder.to_str().unwrap().into()));
    // the second sees what the first did; both see a clean environment
    script(
        &host,
        "second",
        r#"grep -o '"B":"[a-z]*"' > seen; env | cut -d= -f1 | sort | tr '\n' ' ' > "$OUT"
cat <<END
{"services": {"web": {"environment": {"B": "second"}, "volumes": ["./from-hook:/from-hook:ro"]}}}
END"#
            .replace("> seen", "> \"$OUT.seen\"")
            .as_str(),
    );
    host.write("from-hook/file", "content");
    let out = host.path().join("environment");
    host.compose(&format!(
        "services:
  web:
    image: {BUSYBOX}
    command: [sh, -c, 'echo $$A $$B $$C; cat /from-hook/file; exec sleep 1000']
    environment: {{C: own}}
    stop_signal: KILL
x-sampan:
  hooks:
  - {{name: second, at: before-launch, command: ./second, env: {{OUT: {}}}}}
",
        out.display()
    ));
    host.sampan(&["up", "-d"]).ok();
    host.await_log("web", "content");
    assert_eq!(
        String::from_utf8(host.log("web", "stdout")).unwrap(),
        format!("pa{0}{0}wd second own\ncontent", "$$")
    );
    assert_eq!(
        fs::read_to_string(&out).unwrap(),
        "OUT PATH PWD SAMPAN_HOOK SAMPAN_POD "
    );
    let seen = fs::read_to_string(host.path().join("environment.seen")).unwrap();
    assert_eq!(seen, "\"B\":\"first\"\n");
    assert_eq!(
        events(&host)[..2],
        [
            "hook 10-site at before-launch: done",
            "hook second at before-launch: done"
        ]
    );
    // nothing changed, so nothing is made again
    let process = host.row("web")["pid"].clone();
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(host.row("web")["pid"], process);
    host.down(&before);
}

#[test]
fn a_hook_that_fails_before_anything_is_made() {
    let host = Host::new();
    let before = host.snapshot();
    let up = |hook: &str| {
        host.compose(&format!(
            "services: {{web: {{image: {BUSYBOX}, command: [sleep, '1000'], stop_signal: KILL}}}}\nx-sampan:\n  hooks:\n  - {{name: h, at: before-launch, {hook}}}\n"
        ));
        host.sampan(&["up", "-d"])
    };
    for (hook, message) in [
        (
            "command: [sh, -c, 'echo no luck >&2; exit 3']",
            "compose.yaml:4: hook h at before-launch failed: exit status 3: no luck",
        ),
        (
            "command: [/nonexistent/x]",
            "compose.yaml:4: hook h at before-launch failed: /nonexistent/x: No such file or directory (os error 2)",
        ),
        (
            "command: [sh, -c, 'echo half >&2; sleep 1000 & sleep 1000'], timeout: 200ms",
            "compose.yaml:4: hook h at before-launch failed: killed: it took longer than 200ms: half",
        ),
        (
            "command: [sh, -c, 'cat /dev/zero']",
            "compose.yaml:4: hook h at before-launch failed: killed: it printed more than 1048576 bytes",
        ),
        (
            "command: [echo, 'services: {web: {imagee: x}}']",
            "compose.yaml:4: hook h at before-launch failed: hook h:1:18: services.web.imagee: unknown key; did you mean image?",
        ),
        (
            "command: [echo, 'x-sampan: {hooks: [{name: n, at: before-launch, command: x}]}']",
            "compose.yaml:4: hook h at before-launch failed: hook h: x-sampan.hooks: hooks at before-launch are running already and cannot be changed",
        ),
    ] {
        let ended = up(hook);
        assert_eq!(
            ended.fails(1).lines().last(),
            Some(&*format!("sampan: {message}")),
            "{ended:?}"
        );
        host.assert_clean(&before);
    }
    // noted
    up("command: [sh, -c, 'echo no luck >&2; exit 3'], on_failure: note").ok();
    assert_eq!(
        events(&host)[..2],
        [
            "hook h at before-launch failed: exit status 3: no luck",
            "web started"
        ]
    );
    host.down(&before);
}

#[test]
fn a_hook_that_fails_the_pod() {
    let host = Host::new();
    let before = host.snapshot();
    let (tracer, web) = (tracer(&host), polite(&host));
    for point in ["after-start", "after-ready"] {
        let _ = fs::remove_file(host.project.join("trace"));
        host.compose(&format!(
            "services:
  web:
    {web}
x-sampan:
  hooks:
  - {{name: bad, at: {point}, command: [sh, -c, 'echo why >&2; exit 7']}}
  - {{name: skipped, at: {point}, command: [{tracer}]}}
  - {{name: told, at: [on-failure, before-kill, after-stop], command: [{tracer}]}}
"
        ));
        let ended = host.sampan(&["up", "-d", "--wait"]);
        let message = format!("hook bad at {point} failed: exit status 7: why");
        assert_eq!(
            ended.fails(1).lines().last(),
            Some(&*format!("sampan: {message}")),
            "{ended:?}"
        );
        host.assert_clean(&before);
        let seen = trace(&host);
        for (one, other) in [
            ("hook on-failure", "hook after-stop"),
            ("hook before-kill", "web was asked to stop"),
            ("web was asked to stop", "hook after-stop"),
        ] {
            let at = |line: &str| {
                seen.iter()
                    .position(|l| l == line)
                    .unwrap_or_else(|| panic!("no {line} in {seen:#?}"))
            };
            assert!(at(one) < at(other), "{seen:#?}");
        }
        assert!(!seen.contains(&format!("hook {point}")), "{seen:#?}");
        assert_eq!(document(&host, "on-failure")["failure"], message);
        assert_eq!(document(&host, "after-stop")["verdict"]["message"], message);
        assert_eq!(document(&host, "after-stop")["verdict"]["cause"], "hook");
    }
    // noted, and the others run
    let _ = fs::remove_file(host.project.join("trace"));
    host.compose(&format!(
        "services:
  web:
    {web}
x-sampan:
  hooks:
  - {{name: bad, at: after-start, command: [sh, -c, 'exit 7'], on_failure: note}}
  - {{name: runs, at: after-start, command: [{tracer}]}}
  - {{name: slow, at: before-kill, command: [sh, -c, 'sleep 1000 & echo $$! > {}/slow; wait'], timeout: 300ms}}
",
        host.project.display()
    ));
    host.sampan(&["up", "-d"]).ok();
    assert_eq!(trace(&host)[0], "hook after-start");
    let ended = host.sampan(&["stop"]);
    ended.ok();
    assert!(
        events(&host).contains(
            &"hook slow at before-kill failed: killed: it took longer than 300ms".to_string()
        ),
        "{:#?}",
        events(&host)
    );
    let left = fs::read_to_string(host.project.join("slow")).unwrap();
    until("the hook's own child is gone", || {
        (!PathBuf::from(format!("/proc/{}", left.trim())).exists()).then_some(())
    });
    host.down(&before);
}

#[test]
fn a_service_that_fails_is_told_of_before_anything_is_undone() {
    let host = Host::new();
    let before = host.snapshot();
    let tracer = tracer(&host);
    host.compose(&format!(
        "services:
  web: {{image: {BUSYBOX}, command: [/nonexistent]}}
x-sampan: {{hooks: [{{name: t, at: {ALL}, command: [{tracer}]}}]}}
"
    ));
    host.sampan(&["up", "-d"]).fails(127);
    host.assert_clean(&before);
    assert_eq!(
        trace(&host),
        [
            "hook before-launch",
            "hook before-kill",
            "hook on-failure",
            "hook after-stop"
        ]
    );
    assert_eq!(
        document(&host, "on-failure")["services"]["web"]["cause"],
        "not_started"
    );

    // one that fails while others go on
    fs::remove_file(host.project.join("trace")).unwrap();
    host.compose(&format!(
        "services:
  stays: {{image: {BUSYBOX}, command: [sleep, '1000'], stop_signal: KILL}}
  fails: {{image: {BUSYBOX}, command: [sh, -c, 'until test -e /p/fail; do usleep 10000; done; exit 9'], volumes: ['{}:/p']}}
x-sampan: {{hooks: [{{name: t, at: on-failure, command: [{tracer}]}}]}}
",
        host.project.display()
    ));
    host.sampan(&["up", "-d"]).ok();
    host.write("fail", "");
    until("told", || (!trace(&host).is_empty()).then_some(()));
    assert_eq!(
        document(&host, "on-failure")["services"]["fails"]["exit_code"],
        9
    );
    assert_eq!(host.row("stays")["status"], "running");
    host.down(&before);
    assert_eq!(
        trace(&host)
            .iter()
            .filter(|l| *l == "hook on-failure")
            .count(),
        1
    );
}

/// A hook that waits for the file `go` and says that it begins and ends.
fn waiter(host: &Host) -> String {
    let dir = host.project.display();
    let text = format!(
        "echo begins $SAMPAN_HOOK >> {dir}/trace\nuntil test -e {dir}/go-$SAMPAN_HOOK; do sleep 0.02; done\necho ends $SAMPAN_HOOK >> {dir}/trace"
    );
    script(host, "waiter", &text)
}

const POINTS: [&str; 4] = ["after-start", "after-ready", "before-kill", "after-stop"];

#[test]
fn a_supervisor_killed_around_each_hook() {
    let host = Host::new();
    let before = host.snapshot();
    let (waiter, web) = (waiter(&host), polite(&host));
    host.compose(&format!(
        "services:\n  web:\n    {web}\nx-sampan: {{hooks: [{{name: w, at: [{}], command: [{waiter}]}}]}}\n",
        POINTS.join(", ")
    ));
    let mut command = host.start(&["up", "-d"]);
    for point in POINTS {
        // one that is stopped before it heard of its end fails
        if point == "before-kill" {
            command.wait().ok();
            command = host.start(&["stop"]);
        }
        let begins = format!("begins {point}");
        until(&begins, || trace(&host).contains(&begins).then_some(()));
        strike(supervisor(&host));
        // the successor waits for the hook that is running, and does not run it again
        host.write(&format!("go-{point}"), "");
        let ends = format!("ends {point}");
        until(&ends, || trace(&host).contains(&ends).then_some(()));
        strike(supervisor(&host));
    }
    command.wait().ok();
    let expected: Vec<String> = POINTS
        .iter()
        .flat_map(|p| {
            let asked = (*p == "after-stop").then(|| "web was asked to stop".to_string());
            asked
                .into_iter()
                .chain([format!("begins {p}"), format!("ends {p}")])
        })
        .collect();
    assert_eq!(trace(&host), expected);
    host.down(&before);
    assert_eq!(trace(&host), expected, "nothing is owed any more");
}

#[test]
fn a_hook_whose_own_process_is_killed_runs_again() {
    let host = Host::new();
    let before = host.snapshot();
    let waiter = waiter(&host);
    host.compose(&format!(
        "services: {{web: {{image: {BUSYBOX}, command: [sleep, '1000'], stop_signal: KILL}}}}\nx-sampan: {{hooks: [{{name: w, at: after-start, command: [{waiter}]}}]}}\n"
    ));
    let up = host.start(&["up", "-d"]);
    let running = || {
        let all = host.processes().into_iter();
        all.filter(|(_, line)| line.contains("/waiter"))
            .map(|(pid, _)| pid)
            .collect::<Vec<_>>()
    };
    until("begins", || (trace(&host).len() == 1).then_some(()));
    let first = running();
    let helper = host
        .processes()
        .into_iter()
        .find(|(_, line)| line.contains("internal hook"));
    strike(helper.unwrap().0);
    until("begins again", || (trace(&host).len() == 2).then_some(()));
    let now = running();
    assert!(
        first.iter().all(|pid| !now.contains(pid)),
        "{first:?} {now:?}"
    );
    host.write("go-after-start", "");
    up.wait().ok();
    assert_eq!(
        trace(&host),
        [
            "begins after-start",
            "begins after-start",
            "ends after-start"
        ]
    );
    host.down(&before);
}

#[test]
fn down_without_a_supervisor_pays_what_is_owed() {
    let host = Host::new();
    let before = host.snapshot();
    let (tracer, web) = (tracer(&host), polite(&host));
    host.compose(&format!(
        "services:\n  web:\n    {web}\nx-sampan: {{hooks: [{{name: t, at: {ALL}, command: [{tracer}]}}]}}\n"
    ));
    host.sampan(&["up", "-d"]).ok();
    until("ready", || {
        trace(&host)
            .contains(&"hook after-ready".to_string())
            .then_some(())
    });
    for name in ["keeper", "supervisor"] {
        strike(recorded(&host, name).unwrap());
    }
    // no supervisor can be had any more
    fs::write(host.pod().join("removing"), "").unwrap();
    let down = host.sampan(&["down"]);
    down.ok();
    assert!(
        down.stderr.contains("hook t at before-kill: done"),
        "{down:?}"
    );
    host.assert_clean(&before);
    let seen = trace(&host);
    let last: Vec<&String> = seen
        .iter()
        .skip_while(|l| *l != "hook before-kill")
        .collect();
    assert_eq!(
        last,
        ["hook before-kill", "something runs", "hook after-stop"]
    );
}

#[test]
fn gc_pays_what_is_owed_and_tells_how_it_went() {
    let host = Host::new();
    let before = host.snapshot();
    let (tracer, web) = (tracer(&host), polite(&host));
    let last = script(&host, "last", "echo no registry >&2; exit 3");
    host.compose(&format!(
        "services:\n  web:\n    {web}\nx-sampan:\n  hooks:\n  - {{name: t, at: {ALL}, command: [{tracer}]}}\n  \
         - {{name: last, at: after-stop, command: [{last}]}}\n"
    ));
    for json in [false, true] {
        let _ = fs::remove_file(host.project.join("trace"));
        host.sampan(&["up", "-d"]).ok();
        until("ready", || {
            trace(&host)
                .contains(&"hook after-ready".to_string())
                .then_some(())
        });
        // with everything else at once, as a framework does that destroys a cgroup
        for _ in 0..3 {
            for (pid, _) in host.processes() {
                strike(pid);
            }
        }
        // one that is on its way out still counts as running
        until("it is found", || {
            let dry = host.sampan(&["gc", "--json", "--dry-run"]).json();
            (dry[0]["outcome"] == "found").then_some(())
        });
        let told = [
            "hook t at before-kill: done",
            "hook t at after-stop: done",
            "hook last at after-stop failed: exit status 3: no registry",
        ];
        let gc = host.sampan(match json {
            true => &["gc", "--json"],
            false => &["gc"],
        });
        gc.ok();
        for line in told {
            assert!(gc.stderr.contains(line), "{gc:?}");
        }
        if json {
            assert_eq!(gc.json()[0]["hooks"], json!(told));
        }
        let seen = trace(&host);
        // as recorded: nobody was there to see them end
        assert_eq!(
            seen[seen.len() - 3..],
            ["hook before-kill", "something runs", "hook after-stop"]
        );
        host.assert_clean(&before);
    }
}

#[test]
fn an_interrupted_up_ends_its_hook() {
    let host = Host::new();
    let before = host.snapshot();
    let waiter = waiter(&host);
    host.compose(&format!(
        "services: {{web: {{image: {BUSYBOX}}}}}\nx-sampan: {{hooks: [{{name: w, at: before-launch, command: [{waiter}]}}]}}\n"
    ));
    for (signal, code) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGINT, 130),
        (Signal::SIGKILL, 137),
    ] {
        let _ = fs::remove_file(host.project.join("trace"));
        let up = host.start(&["up", "-d"]);
        until("begins", || (!trace(&host).is_empty()).then_some(()));
        kill(Pid::from_raw(up.child.id() as i32), signal).unwrap();
        let ended = up.wait();
        assert_eq!(ended.code, code, "{ended:?}");
        host.assert_clean(&before);
    }
}

// ---- programs inside a container: post_start and pre_stop

/// A service that says when it is asked to end, with hooks of its own.
fn lively(host: &Host, rest: &str) -> String {
    format!(
        "  web:\n    {}\n    cap_drop: [ALL]\n    user: '10:11'\n{rest}",
        polite(host)
    )
}

/// Everybody may write to the trace.
fn open_trace(host: &Host) {
    let path = host.write("trace", "");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(&host.project, fs::Permissions::from_mode(0o777)).unwrap();
}

/// In turn, each with user, folder, variables and capabilities of its own, before anybody who waits for the service; and before it
/// is asked to stop.
#[test]
fn programs_in_the_container_around_its_life() {
    let host = Host::new();
    let before = host.snapshot();
    open_trace(&host);
    let who = "echo $0 $(id -u):$(id -g) $(pwd) $MINE $OURS $(sed -n s/CapEff:.//p /proc/self/status) >> /p/trace";
    let web = lively(
        &host,
        &format!(
            "    environment: {{OURS: ours, MINE: service}}
    post_start:
    - {{command: [sh, -c, '{who}', first]}}
    - {{command: [sh, -c, '{who}', second], user: '33:34', working_dir: /p, environment: {{MINE: own}}}}
    - {{command: [sh, -c, '{who}', third], user: root, privileged: true}}
    pre_stop:
    - {{command: [sh, -c, '{who}', fourth]}}
    - {{command: [sh, -c, 'echo fifth $$MINE >> /p/trace'], environment: [MINE=last]}}
"
        ).replace("$(", "$$(").replace("$0", "$$0").replace(" $MINE $OURS", " $$MINE $$OURS"),
    );
    let project = host.project.display();
    host.compose(&format!(
        "services:
{web}  after:
    image: {BUSYBOX}
    command: [sh, -c, 'echo after >> /p/trace']
    volumes: ['{project}:/p']
    depends_on: [web]
"
    ));
    host.sampan(&["up", "-d"]).ok();
    until("after", || (trace(&host).len() == 4).then_some(()));
    // all that this machine lets anybody have
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let all = own
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:\t"))
        .unwrap();
    let none = format!("{:016x}", 0);
    assert_eq!(
        trace(&host),
        [
            format!("first 10:11 / service ours {none}"),
            format!("second 33:34 /p own ours {none}"),
            format!("third 0:0 / service ours {all}"),
            "after".to_owned(),
        ]
    );
    host.sampan(&["stop"]).ok();
    assert_eq!(
        trace(&host)[4..],
        [
            format!("fourth 10:11 / service ours {none}"),
            "fifth last".to_owned(),
            "web was asked to stop".to_owned(),
        ]
    );
    // each life has them again
    host.sampan(&["start"]).ok();
    assert_eq!(
        trace(&host)[7],
        format!("first 10:11 / service ours {none}")
    );
    host.down(&before);
}

/// The service has not started then: nobody who waits for it starts, and it is stopped.
#[test]
fn a_post_start_that_fails() {
    let host = Host::new();
    let before = host.snapshot();
    open_trace(&host);
    let web = lively(
        &host,
        "    post_start:
    - {command: [sh, -c, 'echo one >> /p/trace; echo the table is missing >&2; exit 3']}
    - {command: [sh, -c, 'echo two >> /p/trace']}
    restart: always
",
    );
    let project = host.project.display();
    host.compose(&format!(
        "services:
{web}  after:
    image: {BUSYBOX}
    command: [sh, -c, 'echo after >> /p/trace']
    volumes: ['{project}:/p']
    depends_on: [web]
"
    ));
    let up = host.sampan(&["up", "-d"]);
    let why = "post_start[0] failed: exit code 3: the table is missing";
    assert!(up.fails(125).contains(why), "{}", up.stderr);
    assert_eq!(trace(&host), ["one", "web was asked to stop"]);
    // a pod that never was up goes
    host.assert_clean(&before);
}

/// A hook before the stop is in the time of the stop: what takes longer is killed with the rest.
#[test]
fn a_pre_stop_that_does_not_end() {
    let host = Host::new();
    let before = host.snapshot();
    open_trace(&host);
    let web = lively(
        &host,
        "    stop_grace_period: 1s
    pre_stop: [{command: [sh, -c, 'echo waits >> /p/trace; sleep 100000']}]
",
    );
    host.compose(&format!("services:\n{web}"));
    host.sampan(&["up", "-d"]).ok();
    until("up", || host.project.join("up").exists().then_some(()));
    host.sampan(&["stop"]).ok();
    assert_eq!(trace(&host), ["waits"]);
    let web = host.row("web");
    assert_eq!(web["exit_code"], 137, "{web}");
    host.down(&before);
}

/// What fails before the stop is noted, and the others run and the service is asked all the same; one that ends by itself has none.
#[test]
fn a_pre_stop_that_fails() {
    let host = Host::new();
    let before = host.snapshot();
    open_trace(&host);
    let web = lively(
        &host,
        "    pre_stop:
    - {command: [sh, -c, 'echo no >&2; exit 4']}
    - {command: [/nothing]}
    - {command: [sh, -c, 'echo three >> /p/trace']}
",
    );
    let project = host.project.display();
    host.compose(&format!(
        "services:
{web}  job:
    image: {BUSYBOX}
    command: ['true']
    volumes: ['{project}:/p']
    pre_stop: [{{command: [sh, -c, 'echo job >> /p/trace']}}]
"
    ));
    host.sampan(&["up", "-d"]).ok();
    until("up", || host.project.join("up").exists().then_some(()));
    host.await_row("job", "status", "exited");
    host.sampan(&["stop"]).ok();
    assert_eq!(trace(&host), ["three", "web was asked to stop"]);
    let web = host.row("web");
    assert_eq!(web["exit_code"], 0, "{web}");
    let noted = events(&host);
    let note = noted
        .iter()
        .find(|line| line.contains("pre_stop[0] failed: exit code 4: no; pre_stop[1] failed: "));
    assert!(note.is_some(), "{noted:#?}");
    host.down(&before);
}
