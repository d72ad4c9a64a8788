//! `exec` and `run`.

use std::process::Command;

use serde_json::json;

use super::pod_support::{BUSYBOX, Host, run};

#[test]
fn exec_runs_programs_beside_the_service() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    stop_signal: KILL\n    working_dir: /tmp\n    \
         environment: {{GIVEN: file}}\n    volumes: ['./passwd:/etc/passwd:ro']\n  done:\n    image: {BUSYBOX}\n    command: ['true']\n"
    ));
    host.write(
        "passwd",
        "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n",
    );
    host.write("script", "not a program\n");
    host.sampan(&["up", "-d"]).ok();
    let exec = |arguments: &[&str]| host.sampan(&[&["exec"], arguments].concat());

    let both = exec(&["web", "sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!(
        (both.code, both.out().as_str(), both.stderr.as_str()),
        (42, "out\n", "err\n")
    );
    assert_eq!(exec(&["web", "sh", "-c", "kill -9 $$"]).code, 137);
    let all: Vec<u8> = (0..=255u8).cycle().take(300_000).collect();
    assert_eq!(
        host.sampan_with(&["exec", "-T", "web", "cat"], &all).stdout,
        all
    );
    assert_eq!(
        exec(&["web", "sh", "-c", "pwd; echo $GIVEN"]).ok(),
        "/tmp\nfile\n"
    );
    let changed = exec(&[
        "-w",
        "/etc",
        "-e",
        "GIVEN=here",
        "-e",
        "A=b c",
        "web",
        "sh",
        "-c",
        "pwd; echo $GIVEN $A",
    ]);
    assert_eq!(changed.ok(), "/etc\nhere b c\n");
    assert_eq!(exec(&["-u", "33:44", "web", "id", "-u"]).ok(), "33\n");
    assert_eq!(exec(&["-u", "33:44", "web", "id", "-g"]).ok(), "44\n");
    assert_eq!(
        exec(&["web", "sh", "-c", "test -t 0 || echo no terminal"]).ok(),
        "no terminal\n"
    );

    for (arguments, code, message) in [
        (
            &["web", "nothing"][..],
            127,
            "sampan: exec in web: exec \"nothing\": executable file not found in $PATH\n",
        ),
        (
            &["done", "true"],
            125,
            "sampan: service done exited with code 0; `sampan start done` starts it\n",
        ),
        (
            &["other", "true"],
            1,
            &format!("sampan: pod {} has no service other\n", host.name),
        ),
        (
            &["-u", "stranger", "web", "true"],
            1,
            "sampan: --user: user \"stranger\" is not in the image's /etc/passwd\n",
        ),
        (
            &["-w", "/nowhere", "web", "true"],
            125,
            &format!(
                "sampan: exec in container {}-web: enter the working directory /nowhere: No such file or directory (os error 2)\n",
                host.name
            ),
        ),
    ] {
        let ended = exec(arguments);
        assert_eq!(ended.fails(code), message, "{arguments:?}");
    }
    assert_eq!(exec(&["web", "/etc"]).code, 126);
    exec(&["web", "sh", "-c", "echo x > /tmp/plain"]).ok();
    assert_eq!(exec(&["web", "/tmp/plain"]).code, 126);
    host.down(&before);
}

#[test]
fn exec_gives_a_terminal() {
    let host = Host::new();
    let before = host.snapshot();
    host.compose(&format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    command: [sleep, '1000']\n    stop_signal: KILL\n"
    ));
    host.sampan(&["up", "-d"]).ok();
    let inside = "tty; stty size; echo $TERM; exit 9";
    let mut script = Command::new("script");
    script.args([
        "-qec",
        &format!(
            "stty rows 33 cols 99; TERM=vt100 exec {} exec -it web sh -c '{inside}'",
            env!("CARGO_BIN_EXE_sampan")
        ),
        "/dev/null",
    ]);
    host.surround(&mut script);
    let ended = run(&mut script, b"");
    assert_eq!(
        (ended.code, ended.out().as_str()),
        (9, "/dev/pts/0\r\n33 99\r\nvt100\r\n")
    );
    host.down(&before);
}

#[test]
fn run_is_a_pod_of_one_image() {
    let host = Host::new();
    let before = host.snapshot();
    let run = |arguments: &[&str]| host.sampan(&[&["run", "--rm"], arguments].concat());
    let ended = run(&[BUSYBOX, "sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!(
        (ended.code, ended.out().as_str(), ended.stderr.as_str()),
        (5, "out\n", "err\n")
    );
    host.assert_clean(&before);

    std::fs::write(host.write("data/file", ""), "content").unwrap();
    let ended = run(&[
        "-e",
        "A=$x ${y}",
        "-v",
        "./data:/data:ro",
        "-w",
        "/data",
        "-u",
        "7:8",
        "--read-only",
        "--memory",
        "32m",
        "--pids-limit",
        "9",
        "--cap-drop",
        "ALL",
        BUSYBOX,
        "sh",
        "-c",
        "echo \"$A\"; cat file; echo; id -u; id -g; touch /x; grep CapBnd /proc/self/status",
    ]);
    assert_eq!(
        ended.out(),
        "$x ${y}\ncontent\n7\n8\nCapBnd:\t0000000000000000\n"
    );
    assert_eq!(ended.stderr, "touch: /x: Read-only file system\n");
    assert_eq!(
        run(&["--entrypoint", "/bin/echo", BUSYBOX, "-n", "a"]).ok(),
        "a"
    );
    host.assert_clean(&before);

    for (arguments, code, message) in [
        (
            &[BUSYBOX, "nothing"][..],
            127,
            "sampan: exec \"nothing\": executable file not found in $PATH\n",
        ),
        (
            &[BUSYBOX, "/etc"],
            126,
            "sampan: exec \"/etc\": permission denied: is a directory\n",
        ),
        (
            &["-v", "/does/not/exist:/x:bad", BUSYBOX],
            1,
            "sampan: volumes[0]: unknown mount option \"bad\"\n",
        ),
    ] {
        let ended = run(arguments);
        assert_eq!(ended.fails(code), message);
        host.assert_clean(&before);
    }

    // without --rm it stays until `down`
    let kept = host.sampan(&["run", "--name", "kept", BUSYBOX, "sh", "-c", "echo kept"]);
    assert_eq!(kept.ok(), "kept\n");
    assert_eq!(
        host.sampan(&["-p", "kept", "logs", "--no-log-prefix"]).ok(),
        "kept\n"
    );
    let again = host.sampan(&["run", "--name", "kept", BUSYBOX]);
    assert_eq!(
        again.fails(1),
        "sampan: there is a pod kept already; `sampan -p kept down` removes it\n"
    );
    host.sampan(&["-p", "kept", "down"]).ok();
    host.assert_clean(&before);
}

#[test]
fn run_publishes_ports() {
    let host = Host::new();
    let before = host.snapshot();
    let name = host.sampan(&[
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "127.0.0.1:18090:80",
        "-p",
        "8080",
        BUSYBOX,
        "sh",
        "-c",
        "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www",
    ]);
    assert_eq!(name.ok(), "web\n");
    let rows = host.sampan(&["-p", "web", "ps", "--format", "json"]).json();
    let ports = rows[0]["ports"].as_array().unwrap();
    assert_eq!(ports[0]["mapping"]["hostPort"], json!(18090));
    // the host's side of the second one was left to us
    assert!(
        ports[1]["mapping"]["hostPort"].as_u64() > Some(1023),
        "{rows:#}"
    );
    let mut curl = Command::new("curl");
    curl.args([
        "-fsS",
        "--retry",
        "20",
        "--retry-connrefused",
        "--retry-delay",
        "1",
        "http://127.0.0.1:18090/",
    ]);
    assert_eq!(run(&mut curl, b"").ok(), "hello\n");
    host.sampan(&["-p", "web", "down", "-t", "0"]).ok();
    host.assert_clean(&before);
}
