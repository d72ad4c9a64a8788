//! The seccomp compiler against libseccomp: the same answers for every system call, several arguments,
//! and all architectures that we have tables for. Needs Debian's python3-seccomp.

mod cbpf;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use cbpf::{Data, run};
use oci_spec::runtime::{Arch, LinuxSeccomp};
use serde::Deserialize;

/// Builds a filter from an OCI profile as runc does; says which names libseccomp does not know, and the
/// highest number that a rule has on each architecture.
const ORACLE: &str = r#"
import errno, json, os, struct, sys, tempfile
import seccomp as S
profile = json.load(sys.stdin)
def action(name, value):
    value = 1 if value is None else value
    return {"KILL": S.KILL, "KILL_THREAD": S.KILL, "KILL_PROCESS": S.KILL_PROCESS, "TRAP": S.TRAP,
            "ERRNO": S.ERRNO(value), "NOTIFY": S.NOTIFY, "TRACE": S.TRACE(value), "LOG": S.LOG,
            "ALLOW": S.ALLOW}[name.removeprefix("SCMP_ACT_")]
default = action(profile["defaultAction"], profile.get("defaultErrnoRet"))
f = S.SyscallFilter(default)
arches = {"NATIVE": S.Arch.NATIVE}
for name in profile.get("architectures") or []:
    name = name.removeprefix("SCMP_ARCH_")
    arches[name] = getattr(S.Arch, name)
    if not f.exist_arch(arches[name]):
        f.add_arch(arches[name])
ops = {"NE": S.NE, "LT": S.LT, "LE": S.LE, "EQ": S.EQ, "GE": S.GE, "GT": S.GT, "MASKED_EQ": S.MASKED_EQ}
unknown, last = [], {}
for rule in profile.get("syscalls") or []:
    act = action(rule["action"], rule.get("errnoRet"))
    if act == default:
        continue
    args = [S.Arg(a["index"], ops[a["op"].removeprefix("SCMP_CMP_")], a["value"], a.get("valueTwo") or 0)
            for a in rule.get("args") or []]
    indices = [a["index"] for a in rule.get("args") or []]
    groups = [args] if len(set(indices)) == len(indices) else [[a] for a in args]
    for name in rule["names"]:
        if S.resolve_syscall(S.Arch.NATIVE, name) == -1:
            unknown.append(name)
            continue
        for arch, token in arches.items():
            last[arch] = max(last.get(arch, -1), S.resolve_syscall(token, name))
        for group in groups:
            f.add_rule(act, name, *group)
with tempfile.TemporaryFile() as out:
    f.export_bpf(out)
    out.flush()
    out.seek(0)
    program = list(struct.iter_unpack("=HBBI", out.read()))
json.dump({"unknown": sorted(set(unknown)), "last": last, "program": program}, sys.stdout)
"#;

#[derive(Deserialize)]
struct Answer {
    unknown: Vec<String>,
    last: BTreeMap<String, i64>,
    program: Vec<(u16, u8, u8, u32)>,
}

fn oracle(profile: &LinuxSeccomp) -> Answer {
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", ORACLE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = serde_json::to_vec(profile).unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "python3-seccomp is needed");
    serde_json::from_slice(&output.stdout).unwrap()
}

const X32_BIT: u32 = 0x4000_0000;

/// (name for libseccomp, AUDIT_ARCH, numbers to ask)
fn machines() -> Vec<(&'static str, u32, Vec<u32>)> {
    let low = || 0..600u32;
    vec![
        (
            "X86_64",
            0xc000_003e,
            low().chain([X32_BIT - 1, u32::MAX]).collect(),
        ),
        (
            "X32",
            0xc000_003e,
            low().map(|number| number + X32_BIT).collect(),
        ),
        ("X86", 0x4000_0003, low().collect()),
        ("AARCH64", 0xc000_00b7, low().collect()),
        (
            "ARM",
            0x4000_0028,
            low().chain(0xf_0000..0xf_0010).collect(),
        ),
        ("PPC64LE", 0xc000_0015, (0..5).collect()),
    ]
}

const VALUES: [u64; 20] = [
    0,
    1,
    2,
    8,
    9,
    37,
    38,
    39,
    40,
    41,
    0x11,
    0x2_0000,
    0x2_0008,
    0x1000_0000,
    0x0200_0011,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0026,
    0xffff_ffff_0000_0000,
    u64::MAX,
];

/// Does every filter of both sides give the same answers?
fn compare(mut profile: LinuxSeccomp, enosys_above: bool) {
    let theirs = oracle(&profile);
    // an older libseccomp does not know the newest calls
    let mut rules = profile.syscalls().clone().unwrap_or_default();
    for rule in &mut rules {
        let names = rule
            .names()
            .iter()
            .filter(|name| !theirs.unknown.contains(name));
        let names = names.cloned().collect::<Vec<_>>();
        rule.set_names(names);
    }
    profile.set_syscalls(Some(rules));
    let ours = sampan::seccomp::compile(&profile).unwrap();
    let mut wrong = Vec::new();
    for (machine, arch, numbers) in machines() {
        let native = (machine == "X86_64")
            .then(|| theirs.last.get("NATIVE"))
            .flatten();
        let last = theirs.last.get(machine).or(native).copied();
        for number in numbers {
            let data = Data {
                number,
                arch,
                pointer: 0,
                args: [0; 6],
            };
            let newer = enosys_above
                && last.is_some_and(|last| i64::from(number) > last)
                && (number & X32_BIT == 0 || machine != "X86_64" || number == u32::MAX);
            for args in arguments() {
                let data = Data { args, ..data };
                let expected = if newer {
                    0x0005_0026
                } else {
                    run(&theirs.program, &data)
                };
                let found = run(&ours.instructions, &data);
                if found != expected {
                    wrong.push(format!(
                        "{machine} {number} {args:x?}: {found:#x}, libseccomp {expected:#x}"
                    ));
                    break;
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn arguments() -> Vec<[u64; 6]> {
    let mut all: Vec<[u64; 6]> = VALUES.map(|value| [value; 6]).into();
    for (index, value) in VALUES.into_iter().enumerate() {
        let mut mixed = [0; 6];
        mixed[index % 3] = value;
        mixed[(index + 1) % 3] = VALUES[(index * 7 + 3) % VALUES.len()];
        all.push(mixed);
    }
    all
}

fn every_architecture() -> Vec<Arch> {
    vec![
        Arch::ScmpArchX86_64,
        Arch::ScmpArchX86,
        Arch::ScmpArchX32,
        Arch::ScmpArchAarch64,
        Arch::ScmpArchArm,
    ]
}

fn capabilities(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn default_profile_on_its_own_architectures() {
    compare(sampan::seccomp::default_profile(&[]), true);
}

#[test]
fn default_profile_everywhere() {
    for held in [
        &[][..],
        &["CAP_SYS_ADMIN"],
        &[
            "CAP_SYS_PTRACE",
            "CAP_SYS_MODULE",
            "CAP_SYS_TIME",
            "CAP_BPF",
            "CAP_SYSLOG",
            "CAP_SYS_NICE",
        ],
    ] {
        let mut profile = sampan::seccomp::default_profile(&capabilities(held));
        profile.set_architectures(Some(every_architecture()));
        compare(profile.clone(), true);
        profile.set_default_errno_ret(Some(38));
        compare(profile, false);
    }
}

#[test]
fn small_profiles() {
    let arches = r#""architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32","SCMP_ARCH_AARCH64","SCMP_ARCH_ARM"]"#;
    let mut rules = vec![
        // nothing at all
        String::new(),
        // every action
        ["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP", "TRACE", "LOG", "ERRNO"]
            .iter()
            .zip(["read", "write", "close", "dup", "fcntl", "ioctl", "lseek"])
            .map(|(action, name)| format!(r#"{{"names":["{name}"],"action":"SCMP_ACT_{action}"}}"#))
            .collect::<Vec<_>>()
            .join(","),
        // without conditions beats with, in either order; the first without counts
        r#"{"names":["lseek"],"action":"SCMP_ACT_TRAP","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
           {"names":["lseek"],"action":"SCMP_ACT_LOG"},{"names":["lseek"],"action":"SCMP_ACT_KILL"},
           {"names":["lseek"],"action":"SCMP_ACT_TRACE","args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"}]}"#
            .to_owned(),
        // disjoint conditions with several actions
        r#"{"names":["fcntl"],"action":"SCMP_ACT_ERRNO","errnoRet":22,"args":[{"index":0,"value":9,"op":"SCMP_CMP_EQ"},{"index":2,"value":9,"op":"SCMP_CMP_EQ"}]},
           {"names":["fcntl"],"action":"SCMP_ACT_LOG","args":[{"index":2,"value":9,"op":"SCMP_CMP_NE"}]}"#
            .to_owned(),
        // the same argument twice
        r#"{"names":["fcntl","lseek"],"action":"SCMP_ACT_LOG","args":[{"index":1,"value":9,"op":"SCMP_CMP_EQ"},{"index":1,"value":38,"op":"SCMP_CMP_EQ"}]}"#.to_owned(),
        // the default's own action says nothing
        r#"{"names":["lseek"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}"#.to_owned(),
    ];
    for operator in ["NE", "LT", "LE", "EQ", "GE", "GT"] {
        for value in [0u64, 38, 0xffff_ffff, 0x1_0000_0026] {
            rules.push(format!(
                r#"{{"names":["lseek","getpid"],"action":"SCMP_ACT_TRAP","args":[{{"index":1,"value":{value},"op":"SCMP_CMP_{operator}"}}]}}"#
            ));
        }
    }
    for (mask, value) in [
        (0x7e02_0000u64, 0u64),
        (0xff, 0x26),
        (0x1_0000_00ff, 0x1_0000_0026),
        (0xff_0000_0000, 0x1_0000_0000),
    ] {
        rules.push(format!(
            r#"{{"names":["lseek"],"action":"SCMP_ACT_TRAP","args":[{{"index":0,"value":{mask},"valueTwo":{value},"op":"SCMP_CMP_MASKED_EQ"}},{{"index":2,"value":40,"op":"SCMP_CMP_LT"}}]}}"#
        ));
    }
    // calls that 32-bit x86 also reaches through socketcall(2) and ipc(2)
    let muxed = format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,{arches},"syscalls":[
        {{"names":["socket","bind","accept","accept4","recv","recvmmsg","semop","semtimedop","msgget","shmctl"],"action":"SCMP_ACT_LOG"}}]}}"#
    );
    compare(serde_json::from_str(&muxed).unwrap(), false);
    for rule in rules {
        let text = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{arches},"syscalls":[{rule}]}}"#);
        compare(serde_json::from_str(&text).unwrap(), false);
    }
}

/// Random conditions, one rule for a call: libseccomp 2.5 loses a rule of several that overlap.
#[test]
fn random_profiles() {
    let mut seed = 0x5eed_u64;
    let mut random = |below: usize| {
        // the multiplier of Knuth's MMIX; the upper bits are the good ones
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    for _ in 0..30 {
        let rules: Vec<String> = ["lseek", "fcntl", "getpid"]
            .iter()
            .map(|name| {
                let args: Vec<String> = (0..3)
                    .filter_map(|index| {
                        let operator = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"][random(7)];
                        let value = VALUES[random(VALUES.len())];
                        let two = VALUES[random(VALUES.len())];
                        (random(3) > 0).then(|| {
                            format!(r#"{{"index":{index},"value":{value},"valueTwo":{two},"op":"SCMP_CMP_{operator}"}}"#)
                        })
                    })
                    .collect();
                format!(r#"{{"names":["{name}"],"action":"SCMP_ACT_TRAP","args":[{}]}}"#, args.join(","))
            })
            .collect();
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"syscalls":[{}]}}"#,
            rules.join(",")
        );
        compare(serde_json::from_str(&text).unwrap(), false);
    }
}

/// Loads the program and tries: EPERM for a known call, ENOSYS for clone3 and for one that nobody has.
const LOADER: &str = r#"
import ctypes, json, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
filter, flags = json.load(sys.stdin)
code = b"".join(struct.pack("=HBBI", *one) for one in filter)
buffer = ctypes.create_string_buffer(code, len(code))
program = struct.pack("@HxxxxxxP", len(filter), ctypes.addressof(buffer))
def call(*args):
    libc.syscall.restype = ctypes.c_long
    ctypes.set_errno(0)
    return libc.syscall(*args), ctypes.get_errno()
assert libc.prctl(38, 1, 0, 0, 0) == 0
print(call(int(sys.argv[1]), 1, flags, program))
print([call(int(number), 0x10000000, 0, 0, 0, 0) for number in sys.argv[2:]])
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn the_kernel_takes_it() {
    let program = sampan::seccomp::compile(&sampan::seccomp::default_profile(&[])).unwrap();
    let mut child = Command::new("/usr/bin/python3")
        // seccomp; clone, clone3, unshare, 600
        .args(["-c", LOADER, "317", "56", "435", "272", "600"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = serde_json::to_vec(&(program.instructions, program.flags)).unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "(0, 0)\n[(-1, 1), (-1, 38), (-1, 1), (-1, 38)]\n");
}
