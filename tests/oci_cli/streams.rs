//! Descriptors, terminals and signals.

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use serde_json::json;

use super::support::Case;

const SLEEP: &str = "trap 'exit 5' TERM; while :; do sleep 0.1; done";

/// `create` ends, and what it printed to is closed once the container's program lets go of it.
#[test]
fn nothing_but_the_container_holds_the_output_of_create() {
    let case = Case::new("exec sleep 100 <&- >&- 2>&-");
    let mut create = case
        .command(&["create", &case.id])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(create.wait().unwrap().success());
    case.oci(&["start", &case.id]).good();
    // to the end, which would not come
    let mut text = String::new();
    create
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    create
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!((text.as_str(), &*case.status()), ("", "running"));
}

#[test]
fn pid_file_is_where_the_caller_is() {
    let case = Case::new(SLEEP);
    case.create(&["--pid-file", "here"]).good();
    let pid = fs::read_to_string(case.bundle().join("here")).unwrap();
    assert_eq!(pid, case.state()["pid"].to_string());
    case.oci(&["delete", "--force", &case.id]).good();
    // a file that cannot be written undoes it all
    let said = case.create(&["--pid-file", "none/here"]).failed(1);
    assert_eq!(
        said,
        "write --pid-file none/here: no such file or directory"
    );
    case.assert_gone();
}

/// Takes the descriptor that comes to a listening socket, with the message.
pub fn take(listener: &UnixListener) -> (Vec<u8>, OwnedFd) {
    let (stream, _) = listener.accept().unwrap();
    let (message, fd) = sampan::sys::socket::receive(&stream).unwrap();
    (message, fd.unwrap())
}

#[test]
fn pidfd_socket() {
    let case = Case::new(SLEEP);
    let path = case.temp.path().join("pidfd");
    let listener = UnixListener::bind(&path).unwrap();
    case.create(&["--pidfd-socket", path.to_str().unwrap()])
        .good();
    let (_, pidfd) = take(&listener);
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    assert!(
        info.contains(&format!("Pid:\t{}\n", case.state()["pid"])),
        "{info}"
    );
    let said = case
        .oci(&["exec", "--pidfd-socket", "/none", &case.id, "ls"])
        .failed(255);
    assert!(
        said.starts_with("connect to pidfd socket /none: no such file"),
        "{said}"
    );
}

#[test]
fn console_socket_gets_the_terminal() {
    let mut case = Case::new("tty; stty size; cat");
    case.spec["process"]["terminal"] = json!(true);
    case.spec["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    case.write();
    let wanted = "process.terminal without waiting for the process needs --console-socket";
    assert_eq!(case.create(&[]).failed(1), wanted);
    let path = case.temp.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    case.create(&["--console-socket", path.to_str().unwrap()])
        .good();
    let (name, master) = take(&listener);
    assert_eq!(name, b"/dev/ptmx");
    case.oci(&["start", &case.id]).good();
    let mut master = fs::File::from(master);
    let mut text = Vec::new();
    let mut buffer = [0; 100];
    while !String::from_utf8_lossy(&text).contains("33 77\r\n") {
        let count = master.read(&mut buffer).unwrap();
        text.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(String::from_utf8_lossy(&text), "/dev/pts/0\r\n33 77\r\n");
    let exec = [
        "exec",
        "-t",
        "-d",
        "--console-socket",
        path.to_str().unwrap(),
        &case.id,
        "tty",
    ];
    case.oci(&exec).good();
    let (_, master) = take(&listener);
    let mut text = String::new();
    // EIO at the end
    let _ = fs::File::from(master).read_to_string(&mut text);
    assert_eq!(text, "/dev/pts/1\r\n");
    // one for a process without a terminal
    case.spec["process"]["terminal"] = json!(false);
    case.write();
    let said = case
        .oci(&[
            "create",
            "--console-socket",
            path.to_str().unwrap(),
            "other",
        ])
        .failed(1);
    assert_eq!(
        said,
        "--console-socket is for process.terminal without waiting for the process (--detach)"
    );
}

/// A listener that takes nobody in: its queue is full.
#[test]
fn a_console_socket_that_nobody_reads_is_an_error() {
    let mut case = Case::new("exit 0");
    case.spec["process"]["terminal"] = json!(true);
    case.write();
    let path = case.temp.path().join("console");
    let listener = listen(&path);
    // a queue of 0 takes one
    let waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let said = case
        .oci(&[
            "create",
            "--console-socket",
            path.to_str().unwrap(),
            &case.id,
        ])
        .failed(1);
    assert_eq!(
        said,
        format!(
            "connect to console socket {}: nobody took the connection within 10 seconds",
            path.display()
        )
    );
    case.assert_gone();
    drop((listener, waiting));
}

/// Listens with the smallest queue.
fn listen(path: &std::path::Path) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    socket
}

/// A terminal of ours around the program, made by script(1): its size and its signals.
#[test]
fn terminal_in_the_foreground() {
    let mut case = Case::new("tty; stty size; exit 6");
    case.spec["process"]["terminal"] = json!(true);
    case.write();
    let program = case.temp.path().join("sampan-oci");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sampan"), &program).unwrap();
    let line = format!(
        "stty rows 33 cols 77; {} --root {} run {}",
        program.display(),
        case.root().display(),
        case.id
    );
    let output = Command::new("script")
        .args(["-qefc", &line, "/dev/null"])
        .current_dir(case.bundle())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        (&*text, output.status.code()),
        ("/dev/pts/0\r\n33 77\r\n", Some(6))
    );
    case.assert_gone();
}

#[test]
fn signals_go_to_the_program() {
    let case =
        Case::new("trap 'exit 5' TERM; trap 'exit 6' USR1; echo up; while :; do sleep 0.1; done");
    for (signal, code) in [(libc::SIGTERM, 5), (libc::SIGUSR1, 6)] {
        let mut run = case
            .command(&["run", &case.id])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        run.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        let pidfd = sampan::sys::pidfd::open(run.id() as i32).unwrap();
        sampan::sys::pidfd::send_signal(&pidfd, signal).unwrap();
        assert_eq!(run.wait().unwrap().code(), Some(code));
        case.assert_gone();
    }
}

/// The program with files as descriptors 3, 4 and 5, started by a shell that also says for whom they are.
fn with_descriptors(case: &Case, env: &str, words: &[&str]) -> (i32, String, String) {
    for name in ["three", "four", "five"] {
        fs::write(case.bundle().join(name), format!("{name}\n")).unwrap();
    }
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "exec 3<three 4<four 5<five; {env} exec \"$0\" oci --root \"$@\""
        ))
        .arg(env!("CARGO_BIN_EXE_sampan"))
        .arg(case.root())
        .args(words)
        .current_dir(case.bundle())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn only_preserved_descriptors_are_passed_on() {
    let show = "for n in 3 4 5 6 7 8 9 10 11 12; do [ -e /proc/$$/fd/$n ] && cat <&$n; done; echo $LISTEN_FDS $LISTEN_PID";
    let case = Case::new(show);
    let id = case.id.as_str();
    let listen = "LISTEN_FDS=1; LISTEN_PID=$$; export LISTEN_FDS LISTEN_PID;";
    let other = "LISTEN_FDS=1; LISTEN_PID=1; export LISTEN_FDS LISTEN_PID;";
    for (env, words, want) in [
        ("", &["run", id][..], "\n"),
        ("", &["run", "--preserve-fds", "0", id], "\n"),
        ("", &["run", "--preserve-fds", "2", id], "three\nfour\n\n"),
        (
            "",
            &["run", "--preserve-fds=3", id],
            "three\nfour\nfive\n\n",
        ),
        (listen, &["run", id], "three\n1 1\n"),
        (
            listen,
            &["run", "--preserve-fds", "1", id],
            "three\nfour\n1 1\n",
        ),
        // for another process
        (other, &["run", id], "\n"),
    ] {
        let told = with_descriptors(&case, env, words);
        assert_eq!(told, (0, want.to_owned(), String::new()), "{env} {words:?}");
    }
    let (code, _, err) = with_descriptors(&case, "", &["run", "--preserve-fds", "4", id]);
    let want = "sampan-oci: --preserve-fds, $LISTEN_FDS: 4 from 3 on are to be passed, but 6 is not open\n";
    assert_eq!((code, &*err), (1, want));
    let (code, _, err) = with_descriptors(&case, "", &["run", "--preserve-fds", "4294967295", id]);
    let want = "sampan-oci: --preserve-fds: 4294967295 are too many\n";
    assert_eq!((code, &*err), (1, want));
    let running = Case::new(SLEEP);
    running.up();
    let exec = ["exec", "--preserve-fds", "1", &running.id, "sh", "-c", show];
    let told = with_descriptors(&running, "", &exec);
    assert_eq!(told, (0, "three\n\n".to_owned(), String::new()));
}
