//! Small profiles, every answer.

use super::cbpf::{Data, run};
use super::*;

#[cfg(target_arch = "x86_64")]
const X86_64: u32 = 0xc000_003e;
#[cfg(target_arch = "x86_64")]
const X86: u32 = 0x4000_0003;

fn compiled(json: &str) -> Program {
    compile(&serde_json::from_str(json).unwrap()).unwrap()
}

fn ask(program: &Program, arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let data = Data {
        number,
        arch,
        pointer: 0,
        args,
    };
    run(&program.instructions, &data)
}

fn refusal(json: &str) -> String {
    compile(&serde_json::from_str(json).unwrap())
        .unwrap_err()
        .to_string()
}

#[test]
fn actions() {
    for (action, errno, value) in [
        ("SCMP_ACT_KILL", "", RET_KILL_THREAD),
        ("SCMP_ACT_KILL_THREAD", "", RET_KILL_THREAD),
        ("SCMP_ACT_KILL_PROCESS", "", RET_KILL_PROCESS),
        ("SCMP_ACT_TRAP", "", RET_TRAP),
        ("SCMP_ACT_ERRNO", "", RET_ERRNO | 1),
        ("SCMP_ACT_ERRNO", r#","errnoRet":38"#, RET_ERRNO | 38),
        ("SCMP_ACT_ERRNO", r#","errnoRet":0"#, RET_ERRNO),
        ("SCMP_ACT_TRACE", r#","errnoRet":65535"#, RET_TRACE | 65535),
        ("SCMP_ACT_LOG", "", RET_LOG),
        ("SCMP_ACT_NOTIFY", "", RET_USER_NOTIF),
    ] {
        let program = compiled(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/s","syscalls":[{{"names":["getpid"],"action":"{action}"{errno}}}]}}"#
        ));
        let number = arch::NATIVE.number("getpid").unwrap();
        let audit = arch::NATIVE.audit();
        assert_eq!(ask(&program, audit, number, [0; 6]), value, "{action}");
        assert_eq!(ask(&program, audit, number + 1, [0; 6]), RET_ALLOW);
        // another architecture
        assert_eq!(ask(&program, 0x1234, number, [0; 6]), RET_KILL_THREAD);
        assert_eq!(program.notifies, action == "SCMP_ACT_NOTIFY");
    }
}

#[test]
fn operators_on_64_bits() {
    let interesting = [
        0u64,
        1,
        2,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_0000_0001,
        0x2_0000_0000,
        0x1_ffff_ffff,
        u64::MAX - 1,
        u64::MAX,
    ];
    type Compare = fn(u64, u64) -> bool;
    let table: [(&str, Compare); 6] = [
        ("NE", |a, b| a != b),
        ("LT", |a, b| a < b),
        ("LE", |a, b| a <= b),
        ("EQ", |a, b| a == b),
        ("GE", |a, b| a >= b),
        ("GT", |a, b| a > b),
    ];
    let number = arch::NATIVE.number("lseek").unwrap();
    for (operator, holds) in table {
        for value in interesting {
            let program = compiled(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["lseek"],"action":"SCMP_ACT_TRAP","args":[{{"index":5,"value":{value},"op":"SCMP_CMP_{operator}"}}]}}]}}"#
            ));
            for argument in interesting {
                let answer = ask(
                    &program,
                    arch::NATIVE.audit(),
                    number,
                    [9, 9, 9, 9, 9, argument],
                );
                assert_eq!(
                    answer == RET_TRAP,
                    holds(argument, value),
                    "{argument:#x} {operator} {value:#x}"
                );
            }
        }
    }
    for (mask, wanted) in [
        (0xff, 0x1f),
        (0x1_0000_0001, 1),
        (0xf_0000_0000, 0x3_0000_0000),
        (0, 0),
        (0xf0, 0xff),
    ] {
        let program = compiled(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["lseek"],"action":"SCMP_ACT_TRAP","args":[{{"index":0,"value":{mask},"valueTwo":{wanted},"op":"SCMP_CMP_MASKED_EQ"}}]}}]}}"#
        ));
        for argument in interesting.into_iter().chain([0x1f, 0xf5, 0x3_0000_0007]) {
            let answer = ask(&program, arch::NATIVE.audit(), number, [argument; 6]);
            assert_eq!(
                answer == RET_TRAP,
                argument & mask == wanted & mask,
                "{argument:#x} & {mask:#x}"
            );
        }
    }
}

#[test]
fn precedence() {
    // conditions in order, then the default; a rule without conditions beats them all
    let rules = |last: &str| {
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[
            {{"names":["lseek"],"action":"SCMP_ACT_TRAP","args":[{{"index":0,"value":1,"op":"SCMP_CMP_EQ"}},{{"index":1,"value":5,"op":"SCMP_CMP_GT"}}]}},
            {{"names":["lseek"],"action":"SCMP_ACT_ALLOW","args":[{{"index":0,"value":1,"op":"SCMP_CMP_EQ"}}]}},
            {{"names":["lseek","getpid"],"action":"SCMP_ACT_LOG","args":[{{"index":2,"value":7,"op":"SCMP_CMP_EQ"}},{{"index":2,"value":9,"op":"SCMP_CMP_EQ"}}]}}{last}]}}"#
        )
    };
    let number = arch::NATIVE.number("lseek").unwrap();
    let audit = arch::NATIVE.audit();
    let program = compiled(&rules(""));
    for (args, value) in [
        ([1, 6, 0], RET_TRAP),
        ([1, 5, 7], RET_ALLOW),
        ([2, 6, 7], RET_LOG),
        // two conditions on one argument are alternatives
        ([2, 6, 9], RET_LOG),
        ([2, 6, 8], RET_ERRNO | 38),
    ] {
        let [a, b, c] = args;
        assert_eq!(
            ask(&program, audit, number, [a, b, c, 0, 0, 0]),
            value,
            "{args:?}"
        );
    }
    let program = compiled(&rules(
        r#",{"names":["lseek"],"action":"SCMP_ACT_KILL_PROCESS"},{"names":["lseek"],"action":"SCMP_ACT_ALLOW"}"#,
    ));
    assert_eq!(
        ask(&program, audit, number, [1, 6, 7, 0, 0, 0]),
        RET_KILL_PROCESS
    );
}

#[test]
#[cfg(target_arch = "x86_64")]
fn sub_architectures() {
    let rules = r#""syscalls":[{"names":["read","socket","no_such_call","also_none"],"action":"SCMP_ACT_ALLOW"}]"#;
    let native = compiled(&format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO",{rules}}}"#));
    let all = compiled(&format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],{rules}}}"#
    ));
    assert_eq!(all.unknown, ["no_such_call", "also_none"]);
    let x32 = arch::X32_BIT;
    for (program, arch, number, args, value) in [
        (&native, X86_64, 0, 0, RET_ALLOW),
        (&native, X86_64, 1, 0, RET_ERRNO | 1),
        // above every rule: newer than the profile
        (&native, X86_64, 42, 0, RET_ERRNO | ENOSYS),
        (&native, X86_64, x32, 0, RET_KILL_THREAD),
        (&native, X86_64, u32::MAX, 0, RET_ERRNO | ENOSYS),
        (&native, X86, 3, 0, RET_KILL_THREAD),
        (&all, X86_64, x32, 0, RET_ALLOW),
        (&all, X86_64, x32 + 1, 0, RET_ERRNO | 1),
        (&all, X86, 3, 0, RET_ALLOW),
        (&all, X86, 0, 0, RET_ERRNO | 1),
        (&all, X86, 359, 0, RET_ALLOW),
        // socketcall(SYS_SOCKET), socketcall(SYS_BIND)
        (&all, X86, 102, 1, RET_ALLOW),
        (&all, X86, 102, 2, RET_ERRNO | 1),
    ] {
        assert_eq!(
            ask(program, arch, number, [args; 6]),
            value,
            "{arch:#x} {number:#x}"
        );
    }
}

#[test]
fn new_calls_are_missing_unless_the_default_permits() {
    let rule = r#""syscalls":[{"names":["getpid"],"action":"SCMP_ACT_TRAP"}]"#;
    let audit = arch::NATIVE.audit();
    for (default, value) in [
        (r#""SCMP_ACT_KILL_PROCESS""#, RET_ERRNO | ENOSYS),
        (
            r#""SCMP_ACT_ERRNO","defaultErrnoRet":5"#,
            RET_ERRNO | ENOSYS,
        ),
        (r#""SCMP_ACT_ALLOW""#, RET_ALLOW),
        (r#""SCMP_ACT_LOG""#, RET_LOG),
        (r#""SCMP_ACT_TRACE""#, RET_TRACE | 1),
    ] {
        let program = compiled(&format!(r#"{{"defaultAction":{default},{rule}}}"#));
        assert_eq!(ask(&program, audit, 5000, [0; 6]), value, "{default}");
    }
}

#[test]
fn flag_bits() {
    for (flags, notify, bits) in [
        ("", false, 4),
        (r#""flags":[],"#, false, 0),
        (
            r#""flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW"],"#,
            false,
            6,
        ),
        (
            r#""flags":["SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],"#,
            false,
            1,
        ),
        (
            r#""flags":["SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],"#,
            true,
            40,
        ),
        ("", true, 12),
    ] {
        let action = if notify {
            "SCMP_ACT_NOTIFY"
        } else {
            "SCMP_ACT_TRAP"
        };
        let program = compiled(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/s",{flags}"syscalls":[{{"names":["mount"],"action":"{action}"}}]}}"#
        ));
        assert_eq!(program.flags, bits, "{flags}");
    }
}

#[test]
fn refusals_name_the_place() {
    let rule = |text: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{text}]}}"#);
    for (json, place) in [
        (
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.to_owned(),
            "linux.seccomp.defaultAction: ",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}"#.to_owned(),
            "linux.seccomp.defaultErrnoRet: ",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":4096}"#.to_owned(),
            "linux.seccomp.defaultErrnoRet: ",
        ),
        (
            rule(r#"{"names":["read"],"action":"SCMP_ACT_KILL","errnoRet":1}"#),
            "linux.seccomp.syscalls[0].errnoRet: ",
        ),
        (
            rule(r#"{"names":["read"],"action":"SCMP_ACT_NOTIFY"}"#),
            "linux.seccomp.listenerPath: ",
        ),
        (
            rule(r#"{"names":["read","write"],"action":"SCMP_ACT_NOTIFY"}"#),
            "linux.seccomp.syscalls[0]: ",
        ),
        (
            rule(
                r#"{"names":["read"],"action":"SCMP_ACT_TRAP","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}"#,
            ),
            "linux.seccomp.syscalls[0].args[0].index: ",
        ),
    ] {
        let text = refusal(&json);
        assert!(text.starts_with(place), "{text}");
    }
}

#[test]
fn a_program_that_is_too_long() {
    let conditions: Vec<String> = (0..1500)
        .map(|value| format!(r#"{{"names":["read"],"action":"SCMP_ACT_TRAP","args":[{{"index":0,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#))
        .collect();
    let json = format!(
        r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#,
        conditions.join(",")
    );
    assert!(refusal(&json).contains("4096"));
}

#[test]
fn long_branches_reach_their_targets() {
    // far more than 255 instructions on either side of the search
    let calls = [
        "read", "write", "close", "ioctl", "mmap", "lseek", "dup", "fcntl", "getpid", "socket",
    ];
    let rules: Vec<String> = calls
        .iter()
        .flat_map(|name| {
            (0..20).map(move |value| format!(r#"{{"names":["{name}"],"action":"SCMP_ACT_TRAP","args":[{{"index":1,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#))
        })
        .collect();
    let program = compiled(&format!(
        r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#,
        rules.join(",")
    ));
    assert!(program.instructions.len() > 600);
    for number in 0..500 {
        let ours = calls
            .iter()
            .any(|name| arch::NATIVE.number(name) == Some(number));
        for argument in [0, 19, 20] {
            let expected = if ours && argument < 20 {
                RET_TRAP
            } else {
                RET_ALLOW
            };
            assert_eq!(
                ask(&program, arch::NATIVE.audit(), number, [argument; 6]),
                expected
            );
        }
    }
}

#[test]
fn default_profile_is_short_and_widens_with_capabilities() {
    let none = compile(&default_profile(&[])).unwrap();
    assert!(none.instructions.len() < 800, "{}", none.instructions.len());
    let admin = compile(&default_profile(&["CAP_SYS_ADMIN".to_owned()])).unwrap();
    let audit = arch::NATIVE.audit();
    for (name, args, plain, with) in [
        ("read", 0, RET_ALLOW, RET_ALLOW),
        ("mount", 0, RET_ERRNO | 1, RET_ALLOW),
        ("clone", 0x11, RET_ALLOW, RET_ALLOW),
        ("clone", 0x1000_0011, RET_ERRNO | 1, RET_ALLOW),
        ("clone3", 0, RET_ERRNO | ENOSYS, RET_ALLOW),
        ("socket", 2, RET_ALLOW, RET_ALLOW),
        ("socket", 38, RET_ERRNO | 1, RET_ERRNO | 1),
        ("socket", 39, RET_ALLOW, RET_ALLOW),
        ("socket", 40, RET_ERRNO | 1, RET_ERRNO | 1),
        ("socket", 41, RET_ALLOW, RET_ALLOW),
        ("personality", 0xffff_ffff, RET_ALLOW, RET_ALLOW),
        ("personality", 0x4_0000, RET_ERRNO | 1, RET_ERRNO | 1),
        ("reboot", 0, RET_ERRNO | 1, RET_ERRNO | 1),
        ("add_key", 0, RET_ERRNO | 1, RET_ERRNO | 1),
    ] {
        let number = arch::NATIVE.number(name).unwrap();
        assert_eq!(
            ask(&none, audit, number, [args; 6]),
            plain,
            "{name} {args:#x}"
        );
        assert_eq!(
            ask(&admin, audit, number, [args; 6]),
            with,
            "{name} {args:#x}"
        );
    }
    // whatever the capability, nothing is taken away
    for number in 0..600 {
        for argument in [0, 1, 38, 0x1000_0000] {
            let before = ask(&none, audit, number, [argument; 6]);
            let after = ask(&admin, audit, number, [argument; 6]);
            assert!(before != RET_ALLOW || after == RET_ALLOW, "{number}");
        }
    }
}

/// A rule of one call for the naive reading: (argument, operator, value, two) and an errno.
type Raw = (Vec<(usize, usize, usize, usize)>, u32);

const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
const VALUES: [u64; 6] = [0, 1, 0x26, 0xffff_ffff, 0x1_0000_0026, u64::MAX];

fn holds(operator: usize, argument: u64, value: u64, two: u64) -> bool {
    match operator {
        0 => argument != value,
        1 => argument < value,
        2 => argument <= value,
        3 => argument == value,
        4 => argument >= value,
        5 => argument > value,
        _ => argument & value == two & value,
    }
}

fn naive(rules: &[Raw], args: [u64; 6]) -> u32 {
    if let Some((_, errno)) = rules.iter().find(|(conditions, _)| conditions.is_empty()) {
        return RET_ERRNO | errno;
    }
    for (conditions, errno) in rules {
        let mut each = conditions
            .iter()
            .map(|&(index, op, value, two)| holds(op, args[index], VALUES[value], VALUES[two]));
        let mut seen = std::collections::BTreeSet::new();
        let twice = conditions.iter().any(|condition| !seen.insert(condition.0));
        if if twice {
            each.any(|one| one)
        } else {
            each.all(|one| one)
        } {
            return RET_ERRNO | errno;
        }
    }
    RET_ALLOW
}

proptest::proptest! {
    #[test]
    fn several_overlapping_rules(rules in proptest::collection::vec(
        (proptest::collection::vec((0usize..3, 0usize..7, 0usize..6, 0usize..6), 0..4), 1u32..5), 0..6)) {
        let text: Vec<String> = rules
            .iter()
            .map(|(conditions, errno): &Raw| {
                let args: Vec<String> = conditions
                    .iter()
                    .map(|&(index, op, value, two)| format!(
                        r#"{{"index":{index},"op":"SCMP_CMP_{}","value":{},"valueTwo":{}}}"#,
                        OPERATORS[op], VALUES[value], VALUES[two]
                    ))
                    .collect();
                format!(r#"{{"names":["lseek"],"action":"SCMP_ACT_ERRNO","errnoRet":{errno},"args":[{}]}}"#, args.join(","))
            })
            .collect();
        let program = compiled(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#, text.join(",")));
        let number = arch::NATIVE.number("lseek").unwrap();
        for a in VALUES {
            for b in VALUES {
                for c in VALUES {
                    let args = [a, b, c, 0, 0, 0];
                    proptest::prop_assert_eq!(
                        ask(&program, arch::NATIVE.audit(), number, args),
                        naive(&rules, args),
                        "{:x?}", args
                    );
                }
            }
        }
    }
}
