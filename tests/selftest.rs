//! Each check of `sampan selftest` as a test of its own, and the command around them. Needs root.

use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sampan");

fn selftest(arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.arg("selftest").args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A check that does not apply here is fine, and tells why in the test's output.
fn holds(name: &str) {
    let output = selftest(&["--json", name]);
    println!("{}", text(&output));
    assert!(output.status.success(), "{}", text(&output));
}

macro_rules! checks {
    ($($function:ident $name:literal)*) => {
        /// Names of all that are tests here.
        const NAMES: &[&str] = &[$($name),*];
        $(#[test]
        fn $function() {
            holds($name);
        })*
    };
}

checks! {
    control "control"
    inherited_run "inherited-run"
    inherited_exec "inherited-exec"
    pod_modes "pod-modes"
    state_modes "state-modes"
    link_dev "link-dev"
    cve_2016_9962 "2016-9962"
    cve_2019_5736 "2019-5736"
    cve_2019_16884 "2019-16884"
    cve_2019_19921 "2019-19921"
    cve_2020_15257 "2020-15257"
    cve_2021_30465 "2021-30465"
    cve_2022_0811 "2022-0811"
    cve_2022_24769 "2022-24769"
    cve_2022_29162 "2022-29162"
    cve_2023_25809 "2023-25809"
    cve_2023_27561 "2023-27561"
    cve_2023_28642 "2023-28642"
    cve_2024_21626 "2024-21626"
    cve_2024_40635 "2024-40635"
    cve_2024_45310 "2024-45310"
    cve_2025_31133 "2025-31133"
    cve_2025_52565 "2025-52565"
    cve_2025_52881 "2025-52881"
    cve_2026_30892 "2026-30892"
    cve_2026_55686 "2026-55686"
}

#[test]
fn every_check_is_a_test() {
    let listed: Vec<Value> =
        serde_json::from_slice(&selftest(&["--list", "--json"]).stdout).unwrap();
    let names: Vec<&str> = listed
        .iter()
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, NAMES);
    for check in &listed {
        for key in ["what", "how"] {
            let line = check[key].as_str().unwrap();
            assert!(!line.is_empty() && !line.contains('\n'), "{check}");
        }
    }
}

#[test]
fn the_command() {
    let one = selftest(&["CVE-2022-24769"]);
    assert_eq!(
        text(&one),
        "2022-24769       ok\n1 ok, 0 failed, 0 not applicable\n"
    );
    let json: Value = serde_json::from_slice(&selftest(&["--json", "control"]).stdout).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["failed"], 0);
    assert_eq!(json["checks"][0]["name"], "control");
    assert_eq!(json["checks"][0]["outcome"], "ok");
    let unknown = selftest(&["2000-1"]);
    assert_eq!(unknown.status.code(), Some(1));
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("no check is called 2000-1"), "{said}");
}
