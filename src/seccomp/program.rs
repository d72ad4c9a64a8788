//! Ranges of system call numbers → classic BPF.
//!
//! *Invariants:* every path ends in a return; jumps go forward; a conditional jump that would be longer
//! than 255 goes through an unconditional one. All machines here are little-endian, so the lower half of
//! an argument comes first in `struct seccomp_data`.

use oci_spec::runtime::LinuxSeccompOperator as Operator;

use super::RET_KILL_THREAD;
use super::arch::{Arch, X32_BIT};
use super::rules::{Condition, Outcome};

/// (code, jt, jf, k), `struct sock_filter`.
type Instruction = (u16, u8, u8, u32);
/// First number and what it gets, up to the next.
type Range = (u32, Outcome);

// linux/bpf_common.h
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// struct seccomp_data, linux/seccomp.h
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The whole program: which architecture, which number, which arguments.
pub(super) fn assemble(tables: &[(Arch, Vec<Range>)]) -> Vec<Instruction> {
    let mut program = vec![(LOAD, 0, 0, ARCHITECTURE)];
    for section in sections(tables) {
        let (audit, mut body) = section;
        body.insert(0, (LOAD, 0, 0, NUMBER));
        // not this one: over the section
        program.push((JUMP_EQUAL, 1, 0, audit));
        program.push((JUMP, 0, 0, length(&body)));
        program.extend(body);
    }
    program.push((RETURN, 0, 0, RET_KILL_THREAD));
    program
}

/// One body for each AUDIT_ARCH; x86_64 and x32 share theirs.
fn sections(tables: &[(Arch, Vec<Range>)]) -> Vec<(u32, Vec<Instruction>)> {
    let find = |wanted: Arch| {
        tables
            .iter()
            .find(|(arch, _)| *arch == wanted)
            .map(|(_, ranges)| ranges.as_slice())
    };
    let mut sections = Vec::new();
    if let Some(plain) = find(Arch::X86_64) {
        let body = x86_64(plain, find(Arch::X32));
        sections.push((Arch::X86_64.audit(), body));
    } else if let Some(ranges) = find(Arch::X32) {
        let mut all = vec![(0, killed())];
        all.extend_from_slice(ranges);
        sections.push((Arch::X32.audit(), search(&all, false)));
    }
    for arch in [Arch::X86, Arch::Aarch64, Arch::Arm] {
        if let Some(ranges) = find(arch) {
            sections.push((arch.audit(), search(ranges, arch.is_64_bit())));
        }
    }
    sections
}

fn killed() -> Outcome {
    Outcome {
        branches: Vec::new(),
        otherwise: RET_KILL_THREAD,
    }
}

/// Numbers with the bit are x32's, or nobody's. −1 is no call of x32 but what a tracer puts to skip a
/// call: it gets what an unknown number gets.
fn x86_64(plain: &[Range], x32: Option<&[Range]>) -> Vec<Instruction> {
    let below = search(plain, true);
    let above = match (x32, plain.last()) {
        (Some(ranges), _) => search(ranges, false),
        (None, Some((_, last))) => search(&[(X32_BIT, killed()), (u32::MAX, last.clone())], true),
        (None, None) => search(&[(X32_BIT, killed())], true),
    };
    branch(X32_BIT, below, above)
}

fn length(code: &[Instruction]) -> u32 {
    u32::try_from(code.len()).unwrap_or(u32::MAX)
}

/// `below` for numbers under `first`, `above` from there on.
fn branch(first: u32, below: Vec<Instruction>, above: Vec<Instruction>) -> Vec<Instruction> {
    let mut code = match u8::try_from(below.len()) {
        Ok(distance) => vec![(JUMP_GREATER_OR_EQUAL, distance, 0, first)],
        Err(_) => vec![
            (JUMP_GREATER_OR_EQUAL, 0, 1, first),
            (JUMP, 0, 0, length(&below)),
        ],
    };
    code.extend(below);
    code.extend(above);
    code
}

/// A balanced search over the ranges; the number is in the accumulator.
fn search(ranges: &[Range], wide: bool) -> Vec<Instruction> {
    let (below, above) = ranges.split_at(ranges.len() / 2);
    match (below, above) {
        ([], [(_, outcome)]) => leaf(outcome, wide),
        (_, [(first, _), ..]) => branch(*first, search(below, wide), search(above, wide)),
        _ => vec![(RETURN, 0, 0, RET_KILL_THREAD)],
    }
}

/// The branches one after the other, then what is left.
fn leaf(outcome: &Outcome, wide: bool) -> Vec<Instruction> {
    let mut code = Vec::new();
    for (conditions, action) in &outcome.branches {
        code.extend(all_of(conditions, *action, wide));
    }
    code.push((RETURN, 0, 0, outcome.otherwise));
    code
}

/// Where a jump of a condition goes.
#[derive(Clone, Copy)]
enum To {
    /// The next instruction.
    Next,
    /// The condition holds.
    Pass,
    /// It does not: over the rest of the branch.
    Fail,
}

/// Returns `action` if all conditions hold, else falls through. At most 6 · 5 + 1 instructions.
fn all_of(conditions: &[Condition], action: u32, wide: bool) -> Vec<Instruction> {
    let tests: Vec<_> = conditions.iter().map(|one| test(one, wide)).collect();
    let total: usize = tests.iter().map(Vec::len).sum::<usize>() + 1;
    let mut code: Vec<Instruction> = Vec::new();
    for test in &tests {
        let end = code.len() + test.len();
        for (op, k, on_true, on_false) in test {
            let after = code.len() + 1;
            let distance = |to: &To| {
                let target = match to {
                    To::Next => after,
                    To::Pass => end,
                    To::Fail => total,
                };
                // bounded by the total above
                u8::try_from(target - after).unwrap_or(u8::MAX)
            };
            code.push((*op, distance(on_true), distance(on_false), *k));
        }
    }
    code.push((RETURN, 0, 0, action));
    code
}

type Step = (u16, u32, To, To);

/// One comparison: the upper half decides unless it is equal.
fn test(condition: &Condition, wide: bool) -> Vec<Step> {
    use To::{Fail, Next, Pass};
    let offset = ARGUMENTS + 8 * u32::from(condition.index);
    let low = condition.value as u32;
    let high = (condition.value >> 32) as u32;
    let mut steps: Vec<Step> = Vec::new();
    let mut half = |at: u32, mask: u32, jumps: &[Step]| {
        steps.push((LOAD, at, Next, Next));
        if mask != u32::MAX {
            steps.push((AND, mask, Next, Next));
        }
        steps.extend_from_slice(jumps);
    };
    let upper: &[Step] = match condition.operator {
        Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => &[(JUMP_EQUAL, high, Next, Fail)],
        Operator::ScmpCmpNe => &[(JUMP_EQUAL, high, Next, Pass)],
        Operator::ScmpCmpGt | Operator::ScmpCmpGe => &[
            (JUMP_GREATER, high, Pass, Next),
            (JUMP_EQUAL, high, Next, Fail),
        ],
        Operator::ScmpCmpLt | Operator::ScmpCmpLe => &[
            (JUMP_GREATER, high, Fail, Next),
            (JUMP_EQUAL, high, Next, Pass),
        ],
    };
    let lower = match condition.operator {
        Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => (JUMP_EQUAL, low, Next, Fail),
        Operator::ScmpCmpNe => (JUMP_EQUAL, low, Fail, Next),
        Operator::ScmpCmpGt => (JUMP_GREATER, low, Next, Fail),
        Operator::ScmpCmpGe => (JUMP_GREATER_OR_EQUAL, low, Next, Fail),
        Operator::ScmpCmpLt => (JUMP_GREATER_OR_EQUAL, low, Fail, Next),
        Operator::ScmpCmpLe => (JUMP_GREATER, low, Fail, Next),
    };
    if wide {
        half(offset + 4, (condition.mask >> 32) as u32, upper);
    }
    half(offset, condition.mask as u32, &[lower]);
    steps
}
