//! Files of the kernel: sysctls, masks, the terminal, cgroups, sockets.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::case::{Case, PROBE, helper, read, wait_for_line};
use super::races::Swapper;
use super::{Check, Stop, Tried, expect};

pub const CHECKS: &[Check] = &[
    Check {
        name: "2020-15257",
        what: "the socket of a runtime's helper was an abstract one, open to containers that share the host's network",
        how: "create, start, exec and a terminal in a network namespace that the container shares: no socket there has a name, none listens",
        run: cve_2020_15257,
    },
    Check {
        name: "2022-0811",
        what: "a sysctl's value smuggled in a second sysctl, kernel.core_pattern, which belongs to the host",
        how: "sysctls of the host, direct and hidden in names and values; what would be written is what is there",
        run: cve_2022_0811,
    },
    Check {
        name: "2023-25809",
        what: "without a cgroup namespace /sys/fs/cgroup was writable in a user namespace, although mounted read-only",
        how: "a container with a user namespace and without a cgroup namespace tries to make cgroups, of a cgroup mount and of a bound /sys",
        run: cve_2023_25809,
    },
    Check {
        name: "2025-31133",
        what: "masked paths were covered with the container's /dev/null, which was a link to something else, or missing",
        how: "a /dev of the bundle whose null is missing, a file, a link, and changes places with a link: masks are the null device",
        run: cve_2025_31133,
    },
    Check {
        name: "2025-52565",
        what: "the terminal was bound to /dev/console by its name, which had become a link by then",
        how: "a /dev of the bundle whose console is a link, whose pts is no devpts, and changes places with a folder of links",
        run: cve_2025_52565,
    },
    Check {
        name: "2025-52881",
        what: "writes to /proc were led astray, to a file of no effect or to another one of the kernel's",
        how: "the place of a sysctl is covered by a plain file, and by another file of proc: create refuses",
        run: cve_2025_52881,
    },
];

fn cve_2020_15257() -> Tried {
    let mut case = Case::new(&["hold"])?;
    case.through = helper(&case, &["alone"])?;
    without_namespace(&mut case, "network");
    // it shares the network namespace of `create`, which nobody else is in
    let out = case.start()?;
    wait_for_line(&out, 1)?;
    let of_container = format!("/proc/{}/net", case.pid()?);
    nameless(&of_container, "while it runs")?;
    let said = case.exec(&[], &[PROBE, "inventory"])?;
    let report = said.report()?;
    nameless_text(
        report["sockets"].as_str().unwrap_or_default(),
        "during exec",
    )?;
    case.delete()?;
    // while the runtime waits in the foreground
    case.program(&[PROBE, "inventory"]);
    let report = case.run()?.report()?;
    nameless_text(report["sockets"].as_str().unwrap_or_default(), "during run")?;
    let mut case = Case::new(&["hold"])?;
    case.through = helper(&case, &["alone"])?;
    without_namespace(&mut case, "network");
    case.spec["process"]["terminal"] = json!(true);
    let console = Console::new(&case)?;
    case.create_with(&["--console-socket", &console.path.to_string_lossy()])?
        .good()?;
    nameless(
        &format!("/proc/{}/net", case.pid()?),
        "with a terminal, at the gate",
    )?;
    case.delete()
}

/// Takes a kind out of `linux.namespaces`.
fn without_namespace(case: &mut Case, kind: &str) {
    if let Some(all) = case.spec["linux"]["namespaces"].as_array_mut() {
        all.retain(|one| one["type"] != kind);
    }
}

/// No socket with a name but the one that was asked for, and none that listens for connections of the network.
fn nameless(folder: &str, when: &str) -> Tried {
    nameless_text(&read(&Path::new(folder).join("unix"))?, when)?;
    for kind in ["tcp", "tcp6", "udp", "udp6"] {
        // a kernel without IPv6
        let Ok(text) = read(&Path::new(folder).join(kind)) else {
            continue;
        };
        expect(text.lines().count() <= 1, || {
            format!("{when}, a {kind} socket is there: {text}")
        })?;
    }
    Ok(())
}

/// The eighth word of a line is the name (proc_pid_net(5)).
fn nameless_text(text: &str, when: &str) -> Tried {
    expect(text.starts_with("Num"), || {
        format!("{when}, the sockets cannot be listed: {text:?}")
    })?;
    let named = text.lines().skip(1).find(|line| {
        let name = line.split_whitespace().nth(7);
        // ours, which takes the terminal
        name.is_some_and(|name| name.starts_with('@') || !name.ends_with("/console"))
    });
    expect(named.is_none(), || {
        format!("{when}, a socket has a name: {named:?}")
    })
}

fn cve_2022_0811() -> Tried {
    let pattern = read(Path::new("/proc/sys/kernel/core_pattern"))?;
    let pattern = pattern.trim_end();
    let smuggled = format!("1+kernel.core_pattern={pattern}");
    for (key, value) in [
        ("kernel.core_pattern", pattern),
        ("kernel/core_pattern", pattern),
        ("net/../kernel/core_pattern", pattern),
        ("net.ipv4.../kernel/core_pattern", pattern),
        ("fs.mqueue./../../kernel/core_pattern", pattern),
        ("/kernel/core_pattern", pattern),
        ("kernel.shm_rmid_forced+kernel.core_pattern", pattern),
        ("kernel.shm_rmid_forced=1+kernel.core_pattern", pattern),
        ("kernel.shm_rmid_forced", smuggled.as_str()),
        ("net.ipv4.ip_forward", smuggled.as_str()),
    ] {
        let mut case = Case::new(&["true"])?;
        case.spec["linux"]["sysctl"] = json!({key: value});
        let said = case.run()?;
        expect(said.code != 0, || {
            format!("sysctl {key} = {value:?} was accepted")
        })?;
        said.refused(&["sysctl"])?;
    }
    // those of a namespace that is shared are the host's too
    for (namespace, key) in [
        ("ipc", "kernel.shm_rmid_forced"),
        ("network", "net.ipv4.ip_forward"),
        ("uts", "kernel.domainname"),
    ] {
        let mut case = Case::new(&["true"])?;
        without_namespace(&mut case, namespace);
        let file = Path::new("/proc/sys").join(key.replace('.', "/"));
        let value = read(&file)?;
        case.spec["linux"]["sysctl"] = json!({key: value.trim_end()});
        let said = case.run()?;
        expect(said.code != 0, || {
            format!("sysctl {key} of the host was accepted")
        })?;
        said.refused(&["sysctl"])?;
    }
    let mut case = Case::new(&["look", "/proc/sys/kernel/shm_rmid_forced"])?;
    case.spec["linux"]["sysctl"] = json!({"kernel.shm_rmid_forced": "1"});
    let report = case.run()?.report()?;
    expect(report[0]["text"] == "1\n", || {
        format!("a sysctl of the container was not set: {report}")
    })
}

fn cve_2023_25809() -> Tried {
    for bound in [false, true] {
        let mut case = Case::new(&["cgroups"])?;
        without_namespace(&mut case, "cgroup");
        // the container's root is the owner of the host's cgroups: only the mount's flags are in the way
        case.add_user_namespace(0);
        if bound {
            case.unmount("/sys");
            case.mount("/sys", "bind", Path::new("/sys"), &["rbind", "rro"]);
        } else {
            case.mount(
                "/sys/fs/cgroup",
                "cgroup",
                Path::new("cgroup"),
                &["nosuid", "noexec", "nodev", "ro"],
            );
        }
        let report = case.run()?.report()?;
        let all = report.as_array().map(Vec::as_slice).unwrap_or_default();
        if all.is_empty() {
            return Err(Stop::NotApplicable(
                "no cgroup file system is mounted below /sys".to_owned(),
            ));
        }
        for one in all {
            let done = &one["make"];
            expect(done == "EROFS: Read-only file system", || {
                format!("in a cgroup mount a container could do more than read: {one}")
            })?;
        }
    }
    Ok(())
}

/// A `/dev` of the bundle, with a devpts on it.
fn own_dev(case: &mut Case) -> Result<PathBuf, Stop> {
    let dev = case.host_folder("dev")?;
    for name in ["pts", "shm"] {
        fs::create_dir(dev.join(name))?;
    }
    case.unmount("/dev");
    case.unmount("/dev/pts");
    case.mount("/dev", "bind", &dev, &["bind"]);
    let options = ["newinstance", "ptmxmode=0666", "mode=0620"];
    case.mount("/dev/pts", "devpts", Path::new("devpts"), &options);
    Ok(dev)
}

fn cve_2025_31133() -> Tried {
    const MASKED: [&str; 3] = ["/proc/kcore", "/proc/keys", "/secret"];
    let attack = ["look", MASKED[0], MASKED[1], MASKED[2]];
    let check = |case: &Case, what: &str| {
        let report = case.run()?.report()?;
        for (place, seen) in MASKED.iter().zip(report.as_array().into_iter().flatten()) {
            let masked = seen["device"] == "1:3" && seen["text"] == "";
            // not every kernel has every file
            let missing = seen["error"].is_string() && *place != "/secret";
            expect(masked || missing, || {
                format!("{what}, {place} shows {seen}")
            })?;
        }
        Ok::<(), Stop>(())
    };
    let prepared = || -> Result<(Case, PathBuf), Stop> {
        let mut case = Case::new(&attack)?;
        let dev = own_dev(&mut case)?;
        fs::write(case.root().join("secret"), "text")?;
        fs::write(case.root().join("canary"), "text")?;
        case.spec["linux"]["maskedPaths"] = json!(MASKED);
        Ok((case, dev))
    };
    let (missing, _) = prepared()?;
    check(&missing, "without a /dev/null")?;
    let (file, dev) = prepared()?;
    fs::write(dev.join("null"), "text")?;
    check(&file, "with a file at /dev/null")?;
    for target in ["/canary", "/proc/sys/kernel/core_pattern", "zero"] {
        let (link, dev) = prepared()?;
        symlink(target, dev.join("null"))?;
        check(&link, &format!("with /dev/null a link to {target}"))?;
    }
    let (race, dev) = prepared()?;
    fs::write(dev.join("null"), "text")?;
    symlink("/canary", dev.join("other"))?;
    let swapper = Swapper::new(dev.join("null"), dev.join("other"));
    for _ in 0..5 {
        check(&race, "while /dev/null changed places with a link")?;
    }
    swapper.end()
}

/// A socket that takes terminals.
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    fn new(case: &Case) -> Result<Console, Stop> {
        let path = case.dir.join("console");
        Ok(Console {
            listener: UnixListener::bind(&path)?,
            path,
        })
    }

    /// The terminal that was sent.
    fn terminal(&self) -> Result<OwnedFd, Stop> {
        let (socket, _) = self.listener.accept()?;
        let (_, fd) = crate::sys::socket::receive(&socket)?;
        fd.ok_or_else(|| Stop::Failed("the console socket got no terminal".to_owned()))
    }
}

/// Runs with a terminal: what the probe wrote to a file, `None` when the runtime refused with one of `words`.
fn with_terminal(case: &mut Case, words: &[&str]) -> Result<Option<Value>, Stop> {
    case.spec["process"]["terminal"] = json!(true);
    let report = case.root().join("report");
    fs::write(&report, "")?;
    let console = Console::new(case)?;
    let made = case.create_with(&["--console-socket", &console.path.to_string_lossy()])?;
    fs::remove_file(&console.path)?;
    if made.code != 0 {
        made.refused(words)?;
        case.delete()?;
        return Ok(None);
    }
    let _terminal = console.terminal()?;
    case.command(&["start", &case.id])?.good()?;
    let seen = wait_for_line(&report, 1)?;
    case.delete()?;
    Ok(Some(seen))
}

fn cve_2025_52565() -> Tried {
    let attack = [
        "into",
        "/report",
        "look",
        "/dev/console",
        "/proc/sys/kernel/core_pattern",
        "/canary",
        "/dev/pts",
    ];
    let words = ["/dev/console", "/dev/pts", "inside proc"];
    let check = |case: &mut Case, what: &str| -> Result<bool, Stop> {
        let Some(report) = with_terminal(case, &words)? else {
            return Ok(false);
        };
        let terminal = report[0]["device"]
            .as_str()
            .is_some_and(|device| device.starts_with("136:"));
        let pattern = report[1]["kind"] == "file" && report[1]["filesystem"] == 0x9fa0;
        expect(terminal && pattern, || {
            format!("{what}, the container sees {report}")
        })?;
        Ok(true)
    };
    let prepared = || -> Result<(Case, PathBuf), Stop> {
        let mut case = Case::new(&attack)?;
        let dev = own_dev(&mut case)?;
        fs::write(case.root().join("canary"), "text")?;
        Ok((case, dev))
    };
    let (mut plain, _) = prepared()?;
    expect(check(&mut plain, "with an ordinary /dev")?, || {
        "a terminal was refused".to_owned()
    })?;
    for target in [
        "/canary",
        "/proc/sys/kernel/core_pattern",
        "/proc/self/fd/0",
        "pts/0",
    ] {
        let (mut link, dev) = prepared()?;
        symlink(target, dev.join("console"))?;
        check(&mut link, &format!("with /dev/console a link to {target}"))?;
    }
    let (mut fake, dev) = prepared()?;
    fake.unmount("/dev/pts");
    fs::write(dev.join("pts/ptmx"), "")?;
    symlink("/canary", dev.join("pts/0"))?;
    expect(
        with_terminal(&mut fake, &["not a devpts"])?.is_none(),
        || "a terminal of a folder that is no devpts was accepted".to_owned(),
    )?;
    let (mut race, dev) = prepared()?;
    fs::create_dir(dev.join("other"))?;
    for number in 0..3 {
        symlink("/canary", dev.join(format!("other/{number}")))?;
    }
    let swapper = Swapper::new(dev.join("pts"), dev.join("other"));
    for _ in 0..100 {
        check(
            &mut race,
            "while /dev/pts changed places with a folder of links",
        )?;
    }
    swapper.end()
}

fn cve_2025_52881() -> Tried {
    // covered by name where one file serves all namespaces, with its folder where each has its own
    for (key, folder) in [
        ("kernel.domainname", false),
        ("kernel.shm_rmid_forced", true),
    ] {
        let make = || -> Result<Case, Stop> {
            let mut case = Case::new(&["true"])?;
            case.spec["linux"]["sysctl"] = json!({key: "1"});
            Ok(case)
        };
        make()?.run()?.good()?;
        let mut case = make()?;
        let mut place = Path::new("/proc/sys").join(key.replace('.', "/"));
        let mut cover = case.host_folder("cover")?;
        let name = place.file_name().unwrap_or_default();
        let file = cover.join(name);
        fs::write(&file, "")?;
        if folder {
            place.pop();
        } else {
            cover.push(name);
        }
        astray(&mut case, &place, &cover)?;
        let written = read(&file)?;
        expect(written.is_empty(), || {
            format!("{written:?} was written to a file in the place of sysctl {key}")
        })?;
        if !folder {
            // of proc, but another: its own name, which takes any text
            astray(&mut make()?, &place, Path::new("/proc/self/comm"))?;
        }
    }
    Ok(())
}

/// Runs the container with `cover` mounted over `place`.
fn astray(case: &mut Case, place: &Path, cover: &Path) -> Tried {
    let words = [
        "disguised",
        &place.to_string_lossy(),
        &cover.to_string_lossy(),
    ];
    case.through = helper(case, &words)?;
    let said = case.run()?;
    expect(said.code != 0, || {
        format!("{} passed for {}", cover.display(), place.display())
    })?;
    said.refused(&["sysctl"])
}
