//! The program is one file: no interpreter, no shared library, and no name service of the C library, which would load one of its
//! own version at run time.
//!
//! Needs root (a mount and a network namespace) and the packages binutils, libc-bin, util-linux.

use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sampan");

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

fn printed(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).unwrap()
}

#[test]
fn no_interpreter_and_no_library() {
    let options = ["--wide", "--program-headers", "--dynamic"];
    let headers = printed(Command::new("readelf").args(options).arg(PROGRAM));
    assert!(headers.contains("LOAD"), "{headers}");
    for line in headers.lines() {
        assert!(!line.contains("INTERP"), "{line}");
        assert!(!line.contains("(NEEDED)"), "{line}");
    }
}

/// What runs before the C library may not need it: no call, no table of addresses, no thread-local storage.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_first_instructions_call_nothing() {
    let headers = printed(Command::new("readelf").arg("--file-header").arg(PROGRAM));
    let entry = headers
        .lines()
        .find_map(|line| line.trim().strip_prefix("Entry point address:"));
    let entry = entry.unwrap().trim().trim_start_matches("0x");
    let symbols = printed(Command::new("nm").arg(PROGRAM));
    let at = symbols
        .lines()
        .find_map(|line| line.strip_suffix(" T sampan_entry"));
    assert_eq!(at.unwrap().trim_start_matches('0'), entry);
    let options = ["--no-show-raw-insn", "--disassemble=sampan_early"];
    let code = printed(Command::new("objdump").args(options).arg(PROGRAM));
    let code: Vec<&str> = code.lines().filter(|line| line.contains(":\t")).collect();
    assert!(code.iter().any(|line| line.contains("syscall")), "{code:?}");
    for line in code {
        let outside =
            (line.contains("jmp") || line.contains("call")) && !line.contains("sampan_early+");
        assert!(!outside || line.contains("syscall"), "{line}");
        assert!(!line.contains("%fs:"), "{line}");
    }
}

/// Users and groups are read from the image's own files, by our own code.
#[test]
fn no_user_or_group_functions() {
    let symbols = printed(Command::new("nm").arg("--format=just-symbols").arg(PROGRAM));
    let names: Vec<&str> = symbols.lines().collect();
    assert!(names.contains(&"main"), "no symbols: {} lines", names.len());
    for name in [
        "getpwnam",
        "getpwnam_r",
        "getpwuid",
        "getpwuid_r",
        "getgrnam",
        "getgrnam_r",
        "getgrgid",
        "getgrgid_r",
        "getgrouplist",
        "initgroups",
    ] {
        assert!(!names.contains(&name), "{name} is linked in");
    }
}

/// The HTTP client brings getaddrinfo along for a resolver that is switched off, so its being there says nothing. glibc
/// reads nsswitch.conf before the first name; whoever opened the file moved its access time.
#[test]
fn hosts_are_not_asked_of_the_name_service() {
    let script = r#"
        mkdir "$1/etc" && mount -t tmpfs -o strictatime tmpfs "$1/etc" && cd "$1/etc" || exit 9
        printf 'hosts: files\n' >nsswitch.conf
        mount --bind nsswitch.conf /etc/nsswitch.conf || exit 9
        for command in "$2 --root $1/root image pull registry.invalid/x" "getent hosts registry.invalid"; do
            touch -a -d @1 nsswitch.conf
            $command >/dev/null 2>&1
            echo $? $(($(stat -c %X nsswitch.conf) > 1))
        done
    "#;
    let folder = tempfile::tempdir().unwrap();
    let shown = printed(
        Command::new("unshare")
            .args(["--mount", "--net", "sh", "-c", script, "sh"])
            .arg(folder.path())
            .arg(PROGRAM),
    );
    // exit code, and whether the file was read: not by us, but by those who ask
    assert_eq!(shown, "1 0\n2 1\n");
}
