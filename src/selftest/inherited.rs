//! What the first process of a container, and one executed later, have: exactly what the specification says, nothing of the caller's.

use serde_json::{Value, json};

use super::case::{Case, PROBE, Said, helper, wait_for_line};
use super::{Check, Stop, Tried, expect};

pub const CHECKS: &[Check] = &[
    Check {
        name: "control",
        what: "an ordinary container runs: without that no other check says anything",
        how: "run, then create, start, exec and delete",
        run: control,
    },
    Check {
        name: "inherited-run",
        what: "nothing of the caller is passed on to the first process of a container",
        how: "a caller with open folders, a secret in its environment, ignored and blocked signals, capabilities, groups, a key and a umask runs a container that lists what it has",
        run: || inherited(false),
    },
    Check {
        name: "inherited-exec",
        what: "nothing of the caller is passed on to a later process of a container",
        how: "as for the first process, by exec",
        run: || inherited(true),
    },
];

fn control() -> Tried {
    let mut case = Case::new(&["look", PROBE, "/proc/self", "/nothing"])?;
    let report = case.run()?.report()?;
    let seen = [
        report[0]["kind"] == "file",
        report[1]["kind"] == "folder",
        report[2]["error"].is_string(),
    ];
    expect(seen == [true; 3], || format!("the probe saw {report}"))?;
    case.program(&[PROBE, "hold"]);
    let out = case.start()?;
    wait_for_line(&out, 1)?;
    case.exec(&[], &[PROBE, "true"])?.good()?;
    case.delete()?;
    let said = case.command(&["state", &case.id])?;
    said.refused(&["does not exist"])
}

/// The inventory of the first process, or of one executed beside it, and whether a terminal's numbers are expected.
fn taken(case: &mut Case, exec: bool) -> Result<Value, Stop> {
    if !exec {
        case.program(&[PROBE, "inventory"]);
        return case.run()?.report();
    }
    case.program(&[PROBE, "hold"]);
    let out = case.start()?;
    wait_for_line(&out, 1)?;
    let said: Said = case.exec(&[], &[PROBE, "inventory"])?;
    case.delete()?;
    said.report()
}

fn inherited(exec: bool) -> Tried {
    let mut case = Case::new(&[])?;
    case.through = helper(&case, &["dirty"])?;
    let report = taken(&mut case, exec)?;
    let got = |key: &str| report["status"][key].as_str().unwrap_or("?").to_owned();
    // 14 capabilities of `pod::plan::CAPABILITIES` as bits of linux/capability.h
    const USUAL: &str = "00000000a80425fb";
    const NONE: &str = "0000000000000000";
    for (key, want) in [
        ("Uid", "0\t0\t0\t0"),
        ("Gid", "0\t0\t0\t0"),
        ("Groups", ""),
        ("Umask", "0022"),
        ("CapInh", NONE),
        ("CapPrm", USUAL),
        ("CapEff", USUAL),
        ("CapBnd", USUAL),
        ("CapAmb", NONE),
        ("SigBlk", NONE),
        // the program's own language ignores SIGPIPE when it begins
        ("SigIgn", "0000000000001000"),
        ("SigPnd", NONE),
        ("ShdPnd", NONE),
        ("NoNewPrivs", "1"),
    ] {
        expect(got(key) == want, || {
            format!("{key} is {:?}, not {want:?}", got(key))
        })?;
    }
    // HOME is that of the user in the container, `/` where its account files have none
    expect(
        report["environment"] == json!(["PATH=/bin", "HOME=/"]),
        || format!("the environment is {}", report["environment"]),
    )?;
    expect(report["cwd"] == "/", || {
        format!("the working directory is {}", report["cwd"])
    })?;
    expect(report["key"] == json!(false), || {
        "a key of the caller's session can be found".to_owned()
    })?;
    expect(
        report["root"].as_array().is_some_and(|all| {
            let mut names: Vec<_> = all.iter().filter_map(Value::as_str).collect();
            names.sort_unstable();
            names == ["bin", "dev", "proc", "sys"]
        }),
        || format!("in / are {}", report["root"]),
    )?;
    descriptors(&report["descriptors"])?;
    mounts(report["mounts"].as_str().unwrap_or_default())?;
    let sockets = report["sockets"].as_str().unwrap_or_default();
    expect(sockets.lines().count() == 1, || {
        format!("unix sockets are in its network namespace: {sockets}")
    })
}

/// The three streams of the runtime's caller, and no other.
fn descriptors(list: &Value) -> Tried {
    let numbers: Vec<_> = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one[0].as_i64())
        .collect();
    expect(numbers == [0, 1, 2], || {
        format!("open descriptors are {list}")
    })
}

/// Places and types of the specification and the masks, in the order of mountinfo.
fn mounts(text: &str) -> Tried {
    let mut seen: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let place = left.split(' ').nth(4)?;
            let fstype = right.split(' ').next()?;
            Some((place.to_owned(), fstype.to_owned()))
        })
        .collect();
    // the root's and the program's own file systems are the host's
    for (place, fstype) in &mut seen {
        if place == "/" || place == PROBE {
            fstype.clear();
        }
    }
    // masks and read-only places are there as far as the kernel has the files
    let optional = |place: &str| {
        ["/proc/", "/sys/"]
            .iter()
            .any(|prefix| place.starts_with(prefix))
    };
    let fixed: Vec<_> = seen
        .iter()
        .filter(|(place, _)| !optional(place))
        .map(|(place, fstype)| (place.as_str(), fstype.as_str()))
        .collect();
    let want = [
        ("/", ""),
        (PROBE, ""),
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/sys", "sysfs"),
    ];
    expect(fixed == want, || format!("mounts are {fixed:?}"))?;
    let known = [
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/scsi",
        "/sys/firmware",
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ];
    let unknown = seen
        .iter()
        .find(|(place, _)| optional(place) && !known.contains(&place.as_str()));
    expect(unknown.is_none(), || format!("a mount is on {unknown:?}"))
}
