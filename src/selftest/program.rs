//! What a container can get at of the program that starts it: its file, its descriptors, its memory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use serde_json::{Value, json};

use super::case::{Case, PROBE, wait_for_line};
use super::{Check, Stop, Tried, expect, probe};

pub const CHECKS: &[Check] = &[
    Check {
        name: "2016-9962",
        what: "a program executed in a running container could be traced by it before it was, and its open descriptors reached",
        how: "the container looks into each new process while `exec` searches a long PATH in it, with and without CAP_SYS_PTRACE",
        run: cve_2016_9962,
    },
    Check {
        name: "2019-5736",
        what: "a container overwrote the runtime's own file through /proc/self/exe",
        how: "run, exec and an interpreter line lead to /proc/self/exe, also with CAP_SYS_ADMIN and its ways to make a mount writable, also caught from outside with CAP_SYS_PTRACE; a copy of the program is what would be overwritten",
        run: cve_2019_5736,
    },
    Check {
        name: "2024-21626",
        what: "a working directory of /proc/self/fd/N led to a folder of the host that the runtime had left open",
        how: "create and exec with such working directories, direct and behind a link, by a caller that leaks folders",
        run: cve_2024_21626,
    },
];

/// How often `exec` is tried against the container that looks on.
const EXECS: usize = 12;

/// Seconds would be needed to look through it without finding; a millisecond is what it gives an attacker.
fn long_path() -> String {
    let folders: Vec<String> = (0..4000).map(|number| format!("/none/{number}")).collect();
    format!("PATH={}:/bin", folders.join(":"))
}

/// `case` runs with an environment in which the runtime has to look for the program in many folders.
fn with_long_path(case: &mut Case) {
    case.spec["process"]["env"] = json!([long_path()]);
}

/// `case` has more capabilities than containers usually have.
fn allow(case: &mut Case, capabilities: &[&str]) {
    let mut all = crate::pod::plan::CAPABILITIES.to_vec();
    all.extend(capabilities);
    case.spec["process"]["capabilities"] =
        json!({"bounding": all, "effective": all, "permitted": all});
}

fn spied(capabilities: &[&str], root: Option<u32>) -> Result<Value, Stop> {
    let mut case = Case::new(&["hold", "and", "spy"])?;
    if let Some(root) = root {
        case.add_user_namespace(root);
        // the way to the root file system, and that
        fs::set_permissions(&case.dir, fs::Permissions::from_mode(0o711))?;
        for folder in [case.root(), case.root().join("bin")] {
            chown(folder, Some(root), Some(root))?;
        }
    }
    case.copy_runtime()?;
    with_long_path(&mut case);
    allow(&mut case, capabilities);
    let out = case.start()?;
    wait_for_line(&out, 1)?;
    for _ in 0..EXECS {
        case.exec(&[], &["sampan-probe", "true"])?.good()?;
    }
    fs::write(case.root().join("stop"), "")?;
    let report = wait_for_line(&out, 2)?;
    case.delete()?;
    // otherwise nothing was looked at
    expect(report["seen"].as_u64() >= Some(EXECS as u64 / 2), || {
        format!(
            "the container saw only {} of {EXECS} processes",
            report["seen"]
        )
    })?;
    Ok(report["loot"].clone())
}

fn cve_2016_9962() -> Tried {
    // nor with all power over its user namespace, be its root the host's or another
    for (capabilities, root) in [
        (&[][..], None),
        (&["CAP_SYS_PTRACE"], Some(0)),
        (&["CAP_SYS_PTRACE"], Some(100_000)),
    ] {
        let loot = spied(capabilities, root)?;
        expect(loot == json!([]), || {
            let whose = root.map_or(String::new(), |root| format!(" (its root is user {root})"));
            format!("the container got at {loot} of a process on its way into it{whose}")
        })?;
    }
    // who may trace everything in the container may look: then nothing of the host may be there
    let loot = spied(&["CAP_SYS_PTRACE"], None)?;
    let harmless = [
        "its program",
        "its memory",
        "descriptor of socket:",
        "descriptor of pipe:",
    ];
    let found = loot.as_array().into_iter().flatten();
    let bad: Vec<_> = found
        .filter(|one| !harmless.contains(&one.as_str().unwrap_or_default()))
        .collect();
    expect(bad.is_empty(), || {
        format!("with CAP_SYS_PTRACE the container got at {bad:?}")
    })
}

/// A root where `/link/sampan-probe` is the runtime itself and `/script` a script that it interprets.
fn trap(case: &Case) -> Tried {
    let link = case.root().join("link");
    fs::create_dir(&link)?;
    symlink("/proc/self/exe", link.join(probe::NAME))?;
    let script = case.root().join("script");
    fs::write(&script, "#!/link/sampan-probe take-program\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn cve_2019_5736() -> Tried {
    const LINK: &[&str] = &["/link/sampan-probe", "take-program"];
    const SCRIPT: &[&str] = &["/script"];
    let mut case = Case::new(&[])?;
    trap(&case)?;
    case.copy_runtime()?;
    let before = fs::read(case.runtime())?;
    let unharmed = |way: &str, report: &Value| {
        let now = fs::read(case.runtime())?;
        expect(now == before && report["overwrite"] != "done", || {
            format!("by {way} a container wrote to the runtime's file: {report}")
        })?;
        let freed = report["mount"].as_object().into_iter().flatten();
        let freed: Vec<_> = freed.filter(|(_, said)| *said == "ok").collect();
        expect(freed.is_empty(), || {
            format!("by {way} a container changed the mount of the runtime's file: {freed:?}")
        })
    };
    let mut attacks = Vec::new();
    for (way, program, privileged) in [
        ("run of a link", LINK, false),
        ("run of a script", SCRIPT, false),
        ("privileged run of a link", LINK, true),
    ] {
        let mut one = Case::new(&[])?;
        trap(&one)?;
        one.program(program);
        if privileged {
            allow(&mut one, &["CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH"]);
        }
        attacks.push((way, one));
    }
    for (way, mut one) in attacks {
        one.use_runtime_of(&case);
        // nobody waits for it: the runtime's file is not executed by anybody any more
        let out = one.start()?;
        unharmed(way, &wait_for_line(&out, 1)?)?;
        one.delete()?;
    }
    let mut holder = Case::new(&["hold", "and", "spy"])?;
    trap(&holder)?;
    holder.use_runtime_of(&case);
    with_long_path(&mut holder);
    allow(&mut holder, &["CAP_SYS_PTRACE"]);
    let out = holder.start()?;
    wait_for_line(&out, 1)?;
    for (way, program) in [("exec of a link", LINK), ("exec of a script", SCRIPT)] {
        // detached: as long as somebody executes the file, nobody could write to it anyway
        holder.exec(&["--detach"], program)?.good()?;
        unharmed(way, &wait_for_line(&holder.dir.join("out"), 1)?)?;
    }
    for _ in 0..EXECS {
        holder.exec(&[], &["sampan-probe", "true"])?.good()?;
    }
    fs::write(holder.root().join("stop"), "")?;
    let report = wait_for_line(&out, 2)?;
    holder.delete()?;
    let caught = report["loot"].to_string();
    expect(caught.contains("its program"), || {
        format!("the container never saw the runtime's program: {report}")
    })?;
    expect(!caught.contains("writable"), || {
        format!("the container caught the runtime's program writable: {report}")
    })?;
    unharmed("catching it", &json!(null))
}

fn cve_2024_21626() -> Tried {
    let mut case = Case::new(&[
        "look",
        ".",
        "canary",
        "../canary",
        "../../canary",
        "../../../canary",
    ])?;
    let host = case.host_folder("host/deep/er")?;
    for folder in ["host", "host/deep", "host/deep/er"] {
        fs::write(case.dir.join(folder).join("canary"), "of the host")?;
    }
    case.through = super::case::helper(&case, &["leak", &host.to_string_lossy()])?;
    for number in 3..=12 {
        for behind_a_link in [false, true] {
            let mut cwd = format!("/proc/self/fd/{number}");
            if behind_a_link {
                let name = format!("way{number}");
                symlink(&cwd, case.root().join(&name))?;
                cwd = format!("/{name}");
            }
            case.spec["process"]["cwd"] = json!(cwd);
            let said = case.run()?;
            stays_inside(&cwd, &said)?;
        }
    }
    case.spec["process"]["cwd"] = json!("/");
    case.program(&[PROBE, "hold"]);
    let out = case.start()?;
    wait_for_line(&out, 1)?;
    for number in 3..=12 {
        for cwd in [
            format!("/proc/self/fd/{number}"),
            format!("/way{number}"),
            format!("/proc/1/fd/{number}"),
        ] {
            let said = case.exec(
                &["--cwd", &cwd],
                &[PROBE, "look", ".", "canary", "../canary", "../../canary"],
            )?;
            stays_inside(&cwd, &said)?;
        }
    }
    case.delete()
}

/// Refused, or nothing of the host was there.
fn stays_inside(cwd: &str, said: &super::case::Said) -> Tried {
    if said.code != 0 {
        let words = ["working directory", cwd, "outside of the container"];
        return said.refused(&words);
    }
    let report = said.report()?;
    expect(!report.to_string().contains("of the host"), || {
        format!("with {cwd} the container reached a folder of the host: {report}")
    })
}
