//! Who the program in the container is: ids as text and number, capabilities.

use serde_json::{Value, json};

use super::case::{Case, PROBE, Said, wait_for_line};
use super::{Check, Tried, expect};
use crate::pod::users::Accounts;

pub const CHECKS: &[Check] = &[
    Check {
        name: "2022-24769",
        what: "containers had inheritable capabilities, which programs with file capabilities turn into permitted ones",
        how: "the five sets of a container's first process, and of the specification that `spec` prints",
        run: cve_2022_24769,
    },
    Check {
        name: "2022-29162",
        what: "exec with an additional capability made it inheritable",
        how: "exec --cap in a container without that capability, as root and as an ordinary user",
        run: cve_2022_29162,
    },
    Check {
        name: "2024-40635",
        what: "a user number beyond the range of ids became root",
        how: "such numbers in the specification, in exec --user and in an image, also where the image has an account of that name",
        run: cve_2024_40635,
    },
    Check {
        name: "2026-30892",
        what: "exec --user 1 ran the program as root",
        how: "exec with a table of user strings: exactly these ids, or an error",
        run: cve_2026_30892,
    },
];

const NONE: &str = "0000000000000000";

fn set(report: &Value, name: &str) -> String {
    report["status"][name].as_str().unwrap_or("?").to_owned()
}

fn no_inheritable(who: &str, report: &Value) -> Tried {
    for name in ["CapInh", "CapAmb"] {
        expect(set(report, name) == NONE, || {
            format!("{who} has {name} {}", set(report, name))
        })?;
    }
    Ok(())
}

fn cve_2022_24769() -> Tried {
    let case = Case::new(&["inventory"])?;
    no_inheritable("the first process", &case.run()?.report()?)?;
    let bundle = case.host_folder("spec")?;
    case.command(&["spec", "--bundle", &bundle.to_string_lossy()])?
        .good()?;
    let text = super::case::read(&bundle.join("config.json"))?;
    let printed: Value = serde_json::from_str(&text)?;
    let inheritable = &printed["process"]["capabilities"]["inheritable"];
    let none = inheritable.is_null() || inheritable == &json!([]);
    expect(none, || {
        format!("`spec` prints inheritable capabilities {inheritable}")
    })
}

fn cve_2022_29162() -> Tried {
    let mut case = Case::new(&["hold"])?;
    case.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_KILL", "CAP_SYS_NICE"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
    });
    let out = case.start()?;
    wait_for_line(&out, 1)?;
    for (user, gained) in [("0", true), ("1000:1000", false)] {
        let said = case.exec(
            &["--user", user, "--cap", "CAP_SYS_NICE"],
            &[PROBE, "inventory"],
        )?;
        let report = said.report()?;
        let inheritable = set(&report, "CapInh");
        expect(inheritable == NONE, || {
            format!("exec --cap as {user} has CapInh {inheritable}")
        })?;
        // otherwise the flag did nothing, and the check proves nothing
        expect(
            !gained || set(&report, "CapPrm") == "0000000000800020",
            || format!("exec --cap as {user} has CapPrm {}", set(&report, "CapPrm")),
        )?;
    }
    case.delete()
}

/// Numbers that are no ids: -1 means "leave it" to setresuid(2), the others wrap.
const NO_IDS: [&str; 5] = [
    "4294967295",
    "4294967296",
    "-1",
    "18446744073709551616",
    "2147483648000",
];

/// Our words, or those of the parser of the specification.
const NO_ID: &[&str] = &["is no id", "invalid value", "expected u32"];

fn cve_2024_40635() -> Tried {
    for number in NO_IDS {
        for key in ["uid", "gid"] {
            let mut case = Case::new(&["true"])?;
            let number: Value = serde_json::from_str(number)?;
            case.spec["process"]["user"][key] = number.clone();
            let said = case.run()?;
            expect(said.code != 0, || {
                format!("process.user.{key} {number} was accepted")
            })?;
            said.refused(NO_ID)?;
        }
        let mut case = Case::new(&["true"])?;
        case.spec["process"]["user"]["additionalGids"] =
            json!([serde_json::from_str::<Value>(number)?]);
        let said = case.run()?;
        expect(said.code != 0, || {
            format!("process.user.additionalGids {number} was accepted")
        })?;
        said.refused(NO_ID)?;
        let root = Accounts {
            passwd: format!("{number}:x:0:0::/:\n"),
            group: format!("{number}:x:0:\n"),
        };
        for (accounts, user) in [
            (&Accounts::default(), number.to_owned()),
            (&Accounts::default(), format!("{number}:0")),
            (&Accounts::default(), format!("1000:{number}")),
            (&root, number.to_owned()),
            (&root, format!("{number}:{number}")),
            (&root, format!("1000:{number}")),
        ] {
            let found = accounts.resolve(&user, &[]);
            expect(found.is_err(), || {
                format!("user {user:?} of an image became {found:?}")
            })?;
        }
    }
    let mut case = Case::new(&["hold"])?;
    case.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let out = case.start()?;
    wait_for_line(&out, 1)?;
    for number in NO_IDS {
        for user in [
            number.to_owned(),
            format!("{number}:0"),
            format!("1000:{number}"),
        ] {
            let said = case.exec(&[&format!("--user={user}")], &[PROBE, "inventory"])?;
            expect(said.code != 0, || {
                format!("exec --user {user} was accepted: {}", ids(&said))
            })?;
            said.refused(&["--user", "is no id"])?;
        }
    }
    case.delete()
}

/// Real, effective, saved and file system ids.
fn ids(said: &Said) -> String {
    let report: Value = serde_json::from_str(said.out.trim()).unwrap_or_default();
    format!(
        "{} {} {}",
        set(&report, "Uid"),
        set(&report, "Gid"),
        set(&report, "Groups")
    )
    .replace('\t', " ")
}

fn cve_2026_30892() -> Tried {
    let mut case = Case::new(&["hold"])?;
    case.spec["process"]["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9]});
    let out = case.start()?;
    wait_for_line(&out, 1)?;
    for (user, want) in [
        // a group that is not named stays the container's
        ("0", Some((0, 8))),
        ("1", Some((1, 8))),
        ("1:2", Some((1, 2))),
        ("0:2", Some((0, 2))),
        ("1:0", Some((1, 0))),
        ("65534:65534", Some((65534, 65534))),
        (
            "4294967294:4294967294",
            Some((4_294_967_294, 4_294_967_294)),
        ),
        // as if it was not given
        ("", Some((7, 8))),
        (":", None),
        (":1", None),
        ("1:", None),
        ("1:2:3", None),
        ("1 ", None),
        (" 1", None),
        ("+1", None),
        ("1x", None),
        ("0x1", None),
        ("root", None),
    ] {
        let said = case.exec(&[&format!("--user={user}")], &[PROBE, "inventory"])?;
        let Some((uid, gid)): Option<(u32, u32)> = want else {
            expect(said.code != 0, || {
                format!("exec --user {user:?} ran as {}", ids(&said))
            })?;
            said.refused(&["--user"])?;
            continue;
        };
        let got = ids(&said);
        let want = format!("{uid} {uid} {uid} {uid} {gid} {gid} {gid} {gid}");
        expect(got.starts_with(&want), || {
            format!(
                "exec --user {user:?} ran as {got}, not {want}; {}",
                said.err
            )
        })?;
    }
    case.delete()
}
