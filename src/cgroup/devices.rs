//! Device rules → lines for v1, or an eBPF program for v2.
//!
//! *Invariants:* pure, but for [`unprivileged`]. For every kind of access (read, write, mknod) the last
//! rule that names the device and the access decides; where none does, the answer is the parent's. The
//! program asks nothing but its context, and always ends: it has forward jumps only.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::Error;
use crate::sys::bpf::Instruction;
use crate::sys::process;

/// BPF_DEVCG_DEV_*, linux/bpf.h.
const BLOCK: u8 = 1;
const CHAR: u8 = 2;
/// BPF_DEVCG_ACC_*, linux/bpf.h.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// One rule; `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    allow: bool,
    kind: Option<u8>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl Rule {
    fn is_for_everything(&self) -> bool {
        self.kind.or(self.major.map(|_| 0)).is_none() && self.minor.is_none() && self.access == ALL
    }
}

/// Checks and resolves `linux.resources.devices` (config-linux.md, "Allowed Device list").
pub(super) fn rules(list: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, Error> {
    list.iter().enumerate().map(rule).collect()
}

fn rule((index, entry): (usize, &LinuxDeviceCgroup)) -> Result<Rule, Error> {
    let invalid = |why: String| Error::Invalid {
        field: format!("devices[{index}]"),
        why,
    };
    let kind = match entry.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHAR),
        Some(LinuxDeviceType::P) => {
            return Err(invalid("a fifo is not subject to device rules".to_owned()));
        }
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| invalid(format!("{value} is not a device number"))),
    };
    let access = bits(entry.access().as_deref().unwrap_or("rwm"))
        .map_err(|letter| invalid(format!("access {letter:?} is none of r, w, m")))?;
    Ok(Rule {
        allow: entry.allow(),
        kind,
        major: number(entry.major())?,
        minor: number(entry.minor())?,
        access,
    })
}

/// What came before a rule for everything does not count.
fn effective(rules: &[Rule]) -> &[Rule] {
    let start = rules.iter().rposition(Rule::is_for_everything).unwrap_or(0);
    rules.get(start..).unwrap_or_default()
}

/// For a unit of systemd: `DevicePolicy=`, and `DeviceAllow=` as (device, access). It has no word for a device that is denied and
/// none for a minor number alone: then it allows less than the rules, which are written to the cgroup behind it.
pub(super) fn policy(rules: &[Rule]) -> (&'static str, Vec<(String, String)>) {
    let rules = effective(rules);
    let Some((first, _)) = rules
        .split_first()
        .filter(|(first, _)| first.is_for_everything())
    else {
        return ("auto", Vec::new());
    };
    let last_denial = rules.iter().rposition(|rule| !rule.allow);
    let Some(last_denial) = last_denial else {
        return ("auto", Vec::new());
    };
    // devices that a later rule denies again are not among them
    let start = if first.allow {
        rules.len()
    } else {
        last_denial + 1
    };
    let mut allowed = Vec::new();
    for rule in rules.get(start..).unwrap_or_default() {
        for (kind, name) in [(BLOCK, "block"), (CHAR, "char")] {
            if rule.access == 0 || rule.kind.is_some_and(|wanted| wanted != kind) {
                continue;
            }
            let device = match (rule.major, rule.minor) {
                (Some(major), Some(minor)) => format!("/dev/{name}/{major}:{minor}"),
                (Some(major), None) => format!("{name}-{major}"),
                (None, None) => format!("{name}-*"),
                (None, Some(_)) => continue,
            };
            allowed.push((device, letters(rule.access)));
        }
    }
    ("strict", allowed)
}

/// (file, line) in order. To the kernel `a` means all devices and all access, whatever follows
/// (devices.rst), so a narrower rule for both kinds is two lines.
fn lines(rules: &[Rule]) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    for rule in effective(rules) {
        let name = if rule.allow {
            "devices.allow"
        } else {
            "devices.deny"
        };
        if rule.is_for_everything() {
            lines.push((name, "a".to_owned()));
            continue;
        }
        if rule.access == 0 {
            continue;
        }
        let number = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
        let access = letters(rule.access);
        for (kind, letter) in [(BLOCK, 'b'), (CHAR, 'c')] {
            if rule.kind.is_none_or(|wanted| wanted == kind) {
                let (major, minor) = (number(rule.major), number(rule.minor));
                lines.push((name, format!("{letter} {major}:{minor} {access}")));
            }
        }
    }
    lines
}

/// What to write on top of `current`, the content of devices.list. A cgroup that denies already is only
/// corrected: to deny everything first would hit running processes, and is EINVAL with cgroups below.
pub(super) fn changes(rules: &[Rule], current: &str) -> Vec<(&'static str, String)> {
    let rules = effective(rules);
    let allows = match rules.split_first() {
        Some((first, rest)) if first.is_for_everything() && !first.allow => rest,
        _ => return lines(rules),
    };
    let Some(have) = listed(current.lines()) else {
        return lines(rules);
    };
    let allow_lines = lines(allows);
    if allow_lines.iter().any(|(name, _)| *name == "devices.deny") {
        return lines(rules);
    }
    let Some(want) = listed(allow_lines.iter().map(|(_, line)| line.as_str())) else {
        return lines(rules);
    };
    let mut found = Vec::new();
    let mut difference = |name, one: &Listed, other: &Listed| {
        for (device, access) in one {
            let rest = access & !other.get(device).copied().unwrap_or(0);
            if rest != 0 {
                found.push((name, format!("{device} {}", letters(rest))));
            }
        }
    };
    difference("devices.allow", &want, &have);
    difference("devices.deny", &have, &want);
    found
}

/// Device → access.
type Listed = BTreeMap<String, u8>;

/// Reads lines such as `c 1:3 rwm`; `None` if one of them is for everything (or is no such line).
fn listed<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Listed> {
    let mut found = Listed::new();
    for line in lines {
        let (device, access) = line.rsplit_once(' ')?;
        if device.starts_with('a') {
            return None;
        }
        *found.entry(device.to_owned()).or_default() |= bits(access).ok()?;
    }
    Some(found)
}

/// `rwm` → bits; the error is the letter that is none.
fn bits(access: &str) -> Result<u8, char> {
    access.chars().try_fold(0, |bits, letter| match letter {
        'r' => Ok(bits | READ),
        'w' => Ok(bits | WRITE),
        'm' => Ok(bits | MKNOD),
        other => Err(other),
    })
}

fn letters(access: u8) -> String {
    [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
        .iter()
        .filter(|(bit, _)| access & bit != 0)
        .map(|(_, letter)| letter)
        .collect()
}

// eBPF opcodes, linux/bpf_common.h and linux/bpf.h
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K, 32 bit as all below
const MOVE_REGISTER: u8 = 0xbc; // … | BPF_X
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_NOT_EQUAL: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const JUMP_IF_SET: u8 = 0x46; // BPF_JMP32 | BPF_JSET | BPF_K
const JUMP: u8 = 0x05; // BPF_JMP | BPF_JA
const EXIT: u8 = 0x95;

// registers: r0 answer, r1 context
const KIND: u8 = 2;
const WANTED: u8 = 3; // access asked for and not yet granted
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn instruction(code: u8, register: u8, offset: i16, value: u32) -> Instruction {
    Instruction::new(code, register, 0, offset, value.cast_signed())
}

fn answer(allow: bool) -> [Instruction; 2] {
    [
        instruction(MOVE, 0, 0, u32::from(allow)),
        instruction(EXIT, 0, 0, 0),
    ]
}

/// The program: 1 allows, 0 denies (BPF_PROG_TYPE_CGROUP_DEVICE). Rules are asked from the last to the
/// first; a matching one that allows takes its kinds of access off the list, and an empty list is a yes.
pub(super) fn program(rules: &[Rule]) -> Vec<Instruction> {
    let load = |register, offset| Instruction::new(LOAD_WORD, register, 1, offset, 0);
    // struct bpf_cgroup_dev_ctx { u32 access_type /* access << 16 | kind */, major, minor }
    let mut code = vec![
        load(KIND, 0),
        Instruction::new(MOVE_REGISTER, WANTED, KIND, 0, 0),
        instruction(SHIFT_RIGHT, WANTED, 0, 16),
        instruction(AND, KIND, 0, 0xffff),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    let rules = effective(rules);
    let (last_word, rules) = match rules.split_first() {
        Some((first, rest)) if first.is_for_everything() => (first.allow, rest),
        // nothing of ours: the programs of the cgroups above decide
        _ => (true, rules),
    };
    for rule in rules.iter().rev() {
        code.extend(test(rule));
    }
    code.extend(answer(last_word));
    code
}

/// The instructions of one rule; falls through when it does not decide.
fn test(rule: &Rule) -> Vec<Instruction> {
    let verdict = if rule.allow {
        let [yes, exit] = answer(true);
        vec![
            instruction(AND, WANTED, 0, !u32::from(rule.access)),
            instruction(JUMP_NOT_EQUAL, WANTED, 2, 0),
            yes,
            exit,
        ]
    } else {
        let [no, exit] = answer(false);
        vec![
            instruction(JUMP_IF_SET, WANTED, 1, u32::from(rule.access)),
            instruction(JUMP, 0, 2, 0),
            no,
            exit,
        ]
    };
    let conditions: Vec<(u8, u32)> = [
        (KIND, rule.kind.map(u32::from)),
        (MAJOR, rule.major),
        (MINOR, rule.minor),
    ]
    .into_iter()
    .filter_map(|(register, value)| Some((register, value?)))
    .collect();
    let mut code = Vec::new();
    // each condition jumps over the conditions after it and the four instructions of the verdict
    for (left, (register, value)) in (0i16..conditions.len() as i16).rev().zip(&conditions) {
        code.push(instruction(JUMP_NOT_EQUAL, *register, left + 4, *value));
    }
    code.extend(verdict);
    code
}

/// In a user namespace, or without root: no program can be loaded.
pub(super) fn unprivileged() -> Result<bool, Error> {
    let inside = process::in_user_namespace().map_err(|source| Error::Read {
        path: "/proc/self/uid_map".into(),
        source,
    })?;
    Ok(inside || !nix::unistd::geteuid().is_root())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Vec<Rule> {
        rules(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap()).unwrap()
    }

    /// Runs a program as the kernel would; panics on what the verifier would refuse.
    fn run(code: &[Instruction], kind: u8, access: u8, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | u32::from(kind), major, minor];
        let mut registers: [Option<u32>; 11] = [None; 11];
        let mut at = 0;
        loop {
            let Instruction {
                code: op,
                registers: pair,
                offset,
                value,
            } = code[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let value = value.cast_unsigned();
            at += 1;
            let mut jump = |taken: bool| {
                assert!(offset >= 0);
                at += if taken {
                    usize::try_from(offset).unwrap()
                } else {
                    0
                };
            };
            match op {
                LOAD_WORD => {
                    assert_eq!((from, offset % 4), (1, 0));
                    registers[to] = Some(context[usize::try_from(offset / 4).unwrap()]);
                }
                MOVE => registers[to] = Some(value),
                MOVE_REGISTER => registers[to] = Some(registers[from].unwrap()),
                AND => registers[to] = Some(registers[to].unwrap() & value),
                SHIFT_RIGHT => registers[to] = Some(registers[to].unwrap() >> value),
                JUMP_NOT_EQUAL => jump(registers[to].unwrap() != value),
                JUMP_IF_SET => jump(registers[to].unwrap() & value != 0),
                JUMP => jump(true),
                EXIT => return registers[0].unwrap() == 1,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    const USUAL: &str = r#"[
        {"allow":false,"access":"rwm"},
        {"allow":true,"type":"c","access":"m"},
        {"allow":true,"type":"b","access":"m"},
        {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},
        {"allow":true,"type":"c","major":136,"access":"rwm"},
        {"allow":true,"type":"c","major":5,"minor":2,"access":"r"},
        {"allow":true,"type":"c","major":5,"minor":2,"access":"w"},
        {"allow":false,"type":"c","major":136,"minor":7,"access":"w"}
    ]"#;

    #[test]
    fn answers() {
        let code = program(&parse(USUAL));
        for (kind, access, major, minor, allowed) in [
            (CHAR, READ | WRITE, 1, 3, true),
            (CHAR, READ, 1, 5, false),
            (CHAR, MKNOD, 1, 5, true),
            (BLOCK, MKNOD, 8, 0, true),
            (BLOCK, READ, 1, 3, false),
            (CHAR, READ | WRITE, 136, 4, true),
            (CHAR, READ | WRITE, 136, 7, false),
            (CHAR, READ, 136, 7, true),
            // two rules together
            (CHAR, READ | WRITE, 5, 2, true),
            (CHAR, READ | WRITE | MKNOD, 5, 2, true),
            (CHAR, READ | MKNOD, 7, 7, false),
        ] {
            assert_eq!(
                run(&code, kind, access, major, minor),
                allowed,
                "{kind} {access} {major}:{minor}"
            );
        }
    }

    /// Rules read naively, one kind of access after the other.
    fn oracle(rules: &[Rule], kind: u8, access: u8, major: u32, minor: u32) -> bool {
        [READ, WRITE, MKNOD]
            .iter()
            .filter(|bit| access & **bit != 0)
            .all(|bit| {
                rules
                    .iter()
                    .rev()
                    .find(|rule| {
                        rule.kind.is_none_or(|k| k == kind)
                            && rule.major.is_none_or(|m| m == major)
                            && rule.minor.is_none_or(|m| m == minor)
                            && rule.access & bit != 0
                    })
                    .is_none_or(|rule| rule.allow)
            })
    }

    proptest::proptest! {
        #[test]
        fn program_is_the_rules(raw in proptest::collection::vec(
            (proptest::bool::ANY, 0u8..3, 0u32..4, 0u32..4, 0u8..8), 0..12)) {
            let some = |value: u32| (value < 3).then_some(u32::MAX - value);
            let rules: Vec<Rule> = raw
                .iter()
                .map(|&(allow, kind, major, minor, access)| Rule {
                    allow,
                    kind: (kind != 0).then_some(kind),
                    major: some(major),
                    minor: some(minor),
                    access,
                })
                .collect();
            let code = program(&rules);
            for kind in [BLOCK, CHAR] {
                for access in 1..=ALL {
                    for (major, minor) in (0..3).flat_map(|a| (0..3).map(move |b| (u32::MAX - a, u32::MAX - b))) {
                        proptest::prop_assert_eq!(
                            run(&code, kind, access, major, minor),
                            oracle(&rules, kind, access, major, minor)
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn version_1_lines() {
        let text = |json: &str| -> Vec<String> {
            lines(&parse(json))
                .iter()
                .map(|(file, line)| format!("{file} {line}"))
                .collect()
        };
        assert_eq!(
            text(USUAL)[..3],
            [
                "devices.deny a",
                "devices.allow c *:* m",
                "devices.allow b *:* m"
            ]
        );
        assert_eq!(text(USUAL)[3], "devices.allow c 1:3 rwm");
        assert_eq!(
            text(r#"[{"allow":true,"type":"a","major":7,"minor":-1,"access":"rm"}]"#),
            ["devices.allow b 7:* rm", "devices.allow c 7:* rm"]
        );
        assert_eq!(
            text(r#"[{"allow":true,"type":"c","major":1},{"allow":false}]"#),
            ["devices.deny a"]
        );
        assert_eq!(text("[]"), Vec::<String>::new());
    }

    #[test]
    fn changes_to_what_is_there() {
        let wanted = parse(
            r#"[{"allow":false},{"allow":true,"type":"c","major":1,"minor":3},{"allow":true,"type":"c","access":"m"}]"#,
        );
        let text = |current: &str| -> Vec<String> {
            let found = changes(&wanted, current);
            found
                .iter()
                .map(|(file, line)| format!("{file} {line}"))
                .collect()
        };
        let fresh = [
            "devices.deny a",
            "devices.allow c 1:3 rwm",
            "devices.allow c *:* m",
        ];
        assert_eq!(text("a *:* rwm"), fresh);
        assert_eq!(text("c 1:3 rwm\nc *:* m"), Vec::<String>::new());
        assert_eq!(
            text("c 1:3 r\nb 8:0 rw"),
            [
                "devices.allow c *:* m",
                "devices.allow c 1:3 wm",
                "devices.deny b 8:0 rw"
            ]
        );
        // a rule that takes away again: from the start
        let again = parse(
            r#"[{"allow":false},{"allow":true,"type":"c","major":1},{"allow":false,"type":"c","major":1,"minor":5}]"#,
        );
        assert_eq!(changes(&again, "c 1:3 rwm").len(), 3);
    }

    #[test]
    fn systemd_allows_no_more() {
        let run = |json: &str| {
            let (policy, list) = policy(&parse(json));
            let list: Vec<String> = list
                .iter()
                .map(|(device, access)| format!("{device} {access}"))
                .collect();
            (policy, list.join(", "))
        };
        for (json, expected_policy, expected) in [
            ("[]", "auto", ""),
            (r#"[{"allow":true}]"#, "auto", ""),
            (r#"[{"allow":false}]"#, "strict", ""),
            (
                r#"[{"allow":false},{"allow":true,"type":"c","major":5,"minor":1,"access":"r"},{"allow":true,"major":7}]"#,
                "strict",
                "/dev/char/5:1 r, block-7 rwm, char-7 rwm",
            ),
            (
                r#"[{"allow":false},{"allow":true,"type":"c","minor":1}]"#,
                "strict",
                "",
            ),
            (
                r#"[{"allow":false},{"allow":true,"type":"c","major":5},{"allow":false,"type":"c","major":5,"minor":1},{"allow":true,"type":"c","major":1}]"#,
                "strict",
                "char-1 rwm",
            ),
            (
                r#"[{"allow":true},{"allow":false,"type":"c","major":5}]"#,
                "strict",
                "",
            ),
        ] {
            assert_eq!(run(json), (expected_policy, expected.to_owned()), "{json}");
        }
    }

    #[test]
    fn refusals() {
        for json in [
            r#"[{"allow":true,"type":"p"}]"#,
            r#"[{"allow":true,"type":"c","major":-2}]"#,
            r#"[{"allow":true,"type":"c","minor":4294967296}]"#,
            r#"[{"allow":true,"access":"rx"}]"#,
        ] {
            let list = serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap();
            assert!(matches!(rules(&list), Err(Error::Invalid { .. })), "{json}");
        }
    }
}
