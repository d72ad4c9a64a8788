//! What a pod must never do: leak into containers, lead out of a volume, leave something behind, drop what the file says.
//!
//! Needs root and the Debian package `busybox-static`. Each test has a mount and network namespace, folders and a pod of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Place {
    dir: tempfile::TempDir,
    pod: String,
}

impl Place {
    /// A folder with `files`, of which `compose.yaml` is one, and a store with the image `localhost/busybox`.
    fn new(name: &str, files: &[(&str, &str)]) -> Place {
        let place = Place {
            dir: tempfile::tempdir().unwrap(),
            pod: format!("review-{name}-{}", std::process::id()),
        };
        for (file, text) in files {
            fs::write(
                place.dir.path().join(file),
                text.replace("NAME", &place.pod),
            )
            .unwrap();
        }
        let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/busybox");
        let built = place.shell(&format!("sampan image build {}", image.display()));
        assert!(built.status.success(), "{}", text(&built));
        place
    }

    /// Runs a script in namespaces of its own; the pod is removed at its end.
    fn shell(&self, script: &str) -> Output {
        let bin = PathBuf::from(env!("CARGO_BIN_EXE_sampan"));
        let script = format!(
            "sampan() {{ {} \"$@\"; }}\ntrap 'sampan -p {} down -v >/dev/null 2>&1' EXIT\nip link set lo up\n{script}",
            bin.display(),
            self.pod
        );
        Command::new("timeout")
            .args([
                "100",
                "unshare",
                "--net",
                "--mount",
                "--propagation",
                "private",
            ])
            .args(["sh", "-c", &script])
            .current_dir(self.dir.path())
            .env("SAMPAN_ROOT", self.dir.path().join("root"))
            .env("SAMPAN_STATE", self.dir.path().join("state"))
            .env("POD", self.dir.path().join("state/pods").join(&self.pod))
            .env("SAMPAN_BIN", bin)
            .output()
            .unwrap()
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits for a file of the pod to hold a word.
const AWAIT: &str = "await() { until grep -q \"$2\" \"$1\" 2>/dev/null; do sleep 0.05; done; }\n";

#[test]
fn nothing_of_ours_is_inherited() {
    let look = "echo fds $(cd /proc/self/fd; echo [0-9]*) >&2; grep -E 'Sig(Blk|Ign)' /proc/self/status >&2; env | grep -c SECRET >&2; stat -c %a / /etc/hosts >&2";
    let place = Place::new(
        "inherit",
        &[
            (
                "compose.yaml",
                "name: NAME\nservices:\n  a:\n    image: localhost/busybox\n    command: [sh, -c, 'sh /look; sleep 1000']\n    volumes: [./look:/look:ro]\n",
            ),
            ("look", look),
        ],
    );
    let output = place.shell(&format!(
        "{AWAIT}umask 077; trap '' PIPE QUIT; export SECRET=1; exec 7</ 9</
         sampan up -d || exit; await $SAMPAN_ROOT/pods/{}/a/stderr.log ^644
         sampan logs --no-log-prefix a 2>&1; sampan exec a sh /look 2>&1",
        place.pod
    ));
    let seen = text(&output);
    // 3 is the folder that the shell reads the list from
    let one = "fds 0 1 2 3\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0\n755\n644\n";
    assert_eq!(seen.replace("a started\n", ""), format!("{one}{one}"));
}

#[test]
fn init_reaps_and_passes_signals_on() {
    let place = Place::new(
        "init",
        &[(
            "compose.yaml",
            "name: NAME
services:
  a:
    image: localhost/busybox
    init: true
    command: [sh, -c, \"trap 'exit 7' TERM; (sh -c 'sleep 0.1 & exec true') ; (sh -c 'kill -34 $$$$' &) ; sleep 0.4; ps -o stat,comm | grep -c ^Z; echo ready; while :; do sleep 0.1; done\"]
",
        )],
    );
    let output = place.shell(&format!(
        "{AWAIT}sampan up -d 2>/dev/null || exit; await $SAMPAN_ROOT/pods/{}/a/stdout.log ready
         sampan exec a sh -c 'tr \"\\0\" \" \" </proc/1/cmdline | cut -d\" \" -f1'; sampan exec a sh -c 'kill -34 $$'; echo $?
         sampan logs --no-log-prefix; sampan stop; sampan wait a",
        place.pod
    ));
    assert_eq!(
        text(&output),
        "sampan-init\n162\n0\nready\na 7\na exited with code 7\nservice a was stopped on request\n"
    );
}

#[test]
fn a_subpath_stays_in_its_volume() {
    let place = Place::new(
        "subpath",
        &[(
            "compose.yaml",
            "name: NAME
services:
  a:
    image: localhost/busybox
    command: [sleep, '1000']
    volumes: ['v:/v']
  b:
    image: localhost/busybox
    command: [sleep, '1000']
    volumes: [{type: volume, source: v, target: /w, volume: {subpath: x/y}}]
volumes: {v: {}}
",
        )],
    );
    // the link leads to the root of what it is resolved in: the volume, or else the host
    let output = place.shell(
        "sampan up -d 2>/dev/null || exit
         sampan exec b touch /w/before; sampan exec a ls /v/x/y
         sampan exec a sh -c 'mv /v/x /v/old; ln -s ../../../../../../../../../.. /v/x; mkdir /v/y; touch /v/y/inside'
         sampan restart -t 0 b 2>/dev/null; sampan exec b ls /w",
    );
    assert_eq!(text(&output), "before\ninside\n");
}

#[test]
fn a_seccomp_file_is_loaded_or_refused() {
    let place = Place::new(
        "seccomp",
        &[
            (
                "compose.yaml",
                "name: NAME\nservices:\n  a:\n    image: localhost/busybox\n    security_opt: ['seccomp=./profile.json']\n    command: [sh, -c, 'mkdir /x; exit 0']\n",
            ),
            (
                "profile.json",
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "includes": {}}]}"#,
            ),
        ],
    );
    let output = place.shell(
        "sampan up -d 2>/dev/null || exit; sampan wait >/dev/null; sampan logs --no-log-prefix; sampan down 2>/dev/null
         rm profile.json; sampan up -d; echo $?",
    );
    let seen = text(&output);
    assert!(
        seen.contains("mkdir: can't create directory '/x': Operation not permitted"),
        "{seen}"
    );
    assert!(
        seen.contains("compose.yaml:3: services.a: seccomp profile "),
        "{seen}"
    );
    assert!(seen.starts_with("125\n"), "{seen}");
}

#[test]
fn an_interrupted_up_leaves_nothing() {
    let place = Place::new(
        "interrupt",
        &[(
            "compose.yaml",
            "name: NAME
services:
  a:
    image: localhost/busybox
    command: [sleep, '1000']
    healthcheck: {test: 'false', interval: 1h, start_period: 1h}
",
        )],
    );
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let output = place.shell(&format!(
            "{AWAIT}$SAMPAN_BIN up -d --wait 2>err & pid=$!
             await $POD/services/a/status.json '\"running\"'
             kill -{signal} $pid; wait $pid; echo $?; ls $SAMPAN_STATE/pods; ls $SAMPAN_ROOT/pods"
        ));
        assert_eq!(text(&output), format!("{code}\n"));
    }
}

#[test]
fn a_pod_that_is_removed_while_it_comes_up_is_said_to_be() {
    let place = Place::new(
        "removed",
        &[(
            "compose.yaml",
            "name: NAME
services:
  a:
    image: localhost/busybox
    init: true
    command: [sleep, '1000']
    healthcheck: {test: 'false', interval: 1h, start_period: 1h}
",
        )],
    );
    let output = place.shell(&format!(
        "{AWAIT}sampan up -d --wait 2>err & await $POD/services/a/status.json '\"running\"'
         sampan down 2>/dev/null; wait $!; echo $?; tail -n1 err"
    ));
    let expected = format!(
        "1\nsampan: pod {} was removed by another command while it came up\n",
        place.pod
    );
    assert_eq!(text(&output), expected);
}

#[test]
fn two_ups_at_once_make_one_pod() {
    let place = Place::new(
        "twice",
        &[(
            "compose.yaml",
            "name: NAME\nservices:\n  a:\n    image: localhost/busybox\n    init: true\n    command: [sleep, '1000']\n",
        )],
    );
    let output = place.shell(
        "sampan up -d 2>/dev/null & one=$!; sampan up -d 2>/dev/null; echo $?; wait $one; echo $?
         sampan ps -q; sampan exec a ps -o comm | grep -c sleep",
    );
    assert_eq!(text(&output), "0\n0\na\n1\n");
}

#[test]
fn a_supervisor_that_is_told_to_end_stops_the_services_first() {
    let place = Place::new(
        "terminate",
        &[(
            "compose.yaml",
            "name: NAME\nservices:\n  a:\n    image: localhost/busybox\n    command: [sh, -c, \"trap 'sleep 0.3; exit 5' TERM; echo ready; while :; do sleep 0.1; done\"]\n",
        )],
    );
    let output = place.shell(&format!(
        "{AWAIT}sampan up -d 2>/dev/null || exit; await $SAMPAN_ROOT/pods/{}/a/stdout.log ready
         kill $(sed -n 's/.*\"pid\": \\([0-9]*\\),/\\1/p' $POD/supervisor.json)
         await $POD/services/a/status.json '\"exited\"'; grep exit_code $POD/services/a/status.json",
        place.pod
    ));
    assert_eq!(text(&output), "  \"exit_code\": 5,\n");
}

#[test]
fn messages_say_what_and_where() {
    let place = Place::new(
        "messages",
        &[(
            "compose.yaml",
            "name: NAME\nservices:\n  a:\n    image: localhost/busybox\n    command: [sh, -c, 'exit 3']\n",
        )],
    );
    let output = place.shell(
        "sampan up -d 2>/dev/null; sampan wait >/dev/null 2>&1; sampan exec a true; echo $?; sampan kill a; echo $?
         sampan logs; echo $?; sed -i 's/\"version\": 1/\"version\": 2/' $POD/pod.json; sampan down; echo $?; sed -i 's/\"version\": 2/\"version\": 1/' $POD/pod.json",
    );
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(out, "125\n1\n0\n1\n");
    let pod = &place.pod;
    let state = place.dir.path().join("state");
    let expected = format!(
        "sampan: service a exited with code 3; `sampan start a` starts it
sampan: service a is not running
sampan: pod {pod}: {}/pods/{pod}/pod.json has version 2, this program knows version 1; use the program that made the pod
",
        state.display()
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
}
