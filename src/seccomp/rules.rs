//! Rules → what each system call number of an architecture gets.
//!
//! *Invariants:* precedence is libseccomp's: a rule without conditions beats all with conditions for the
//! same call, whatever their order, and the first such rule counts; among those with conditions the first
//! that matches decides. A rule with the default's action says nothing and is dropped, as in runc.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator as Operator,
};

use super::arch::{Arch, multiplexed};
use super::{ENOSYS, Error, RET_ERRNO, RET_TRACE, action, invalid};

/// A comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0…5.
    pub index: u8,
    pub operator: Operator,
    pub value: u64,
    /// Bits that count; all but for masked comparisons.
    pub mask: u64,
}

/// One entry of `syscalls`, checked. Several alternatives are one or the other.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    names: Vec<String>,
    pub action: u32,
    alternatives: Vec<Vec<Condition>>,
}

impl Rule {
    pub(super) fn is_known(&self, architectures: &[Arch]) -> bool {
        self.names.iter().any(|name| known(name, architectures))
    }
}

fn known(name: &str, architectures: &[Arch]) -> bool {
    architectures
        .iter()
        .any(|arch| arch.number(name).is_some() || multiplexed(*arch, name).is_some())
}

/// What a number gets: the first alternative of which all conditions hold, else `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub branches: Vec<(Vec<Condition>, u32)>,
    pub otherwise: u32,
}

impl Outcome {
    fn always(action: u32) -> Outcome {
        Outcome {
            branches: Vec::new(),
            otherwise: action,
        }
    }
}

/// Reads the profile's rules; those with the default's action are dropped.
pub(super) fn read(profile: &LinuxSeccomp, default: u32) -> Result<Vec<Rule>, Error> {
    let mut rules = Vec::new();
    for (index, entry) in profile.syscalls().iter().flatten().enumerate() {
        let field = format!("syscalls[{index}]");
        let value = action(
            &format!("{field}.errnoRet"),
            entry.action(),
            entry.errno_ret(),
        )?;
        if entry.action() == LinuxSeccompAction::ScmpActNotify
            && entry.names().iter().any(|name| name == "write")
        {
            // the descriptor of the listener is told with it
            let why = "SCMP_ACT_NOTIFY cannot be used for the write syscall: the container would stop before it starts";
            return Err(invalid(field, why));
        }
        let args = entry.args().as_deref().unwrap_or_default();
        if value != default {
            rules.push(Rule {
                names: entry.names().clone(),
                action: value,
                alternatives: alternatives(&field, args)?,
            });
        }
    }
    Ok(rules)
}

/// Conditions on different arguments hold together. When two are on the same argument, each is a rule
/// of its own: so it was before filters could have both, and profiles rely on it (runc does the same).
fn alternatives(field: &str, args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>, Error> {
    let conditions = args
        .iter()
        .enumerate()
        .map(|(at, arg)| condition(&format!("{field}.args[{at}]"), arg))
        .collect::<Result<Vec<_>, _>>()?;
    let twice = conditions.iter().enumerate().any(|(at, one)| {
        conditions
            .iter()
            .take(at)
            .any(|other| other.index == one.index)
    });
    if twice {
        Ok(conditions.into_iter().map(|one| vec![one]).collect())
    } else {
        Ok(vec![conditions])
    }
}

fn condition(field: &str, arg: &LinuxSeccompArg) -> Result<Condition, Error> {
    let index = u8::try_from(arg.index()).unwrap_or(u8::MAX);
    if index > 5 {
        let why = format!("{} is not an argument: there are 0 to 5", arg.index());
        return Err(invalid(format!("{field}.index"), why));
    }
    let (value, mask) = match arg.op() {
        // `value` is the mask and `valueTwo` what is left (config-linux.md, "Seccomp")
        Operator::ScmpCmpMaskedEq => (arg.value_two().unwrap_or(0) & arg.value(), arg.value()),
        _ => (arg.value(), u64::MAX),
    };
    Ok(Condition {
        index,
        operator: arg.op(),
        value,
        mask,
    })
}

/// Numbers → outcomes as ascending ranges: (first number, outcome up to the next range). The first range
/// begins at 0, or for x32 at its bit.
pub(super) fn table(rules: &[Rule], arch: Arch, default: u32) -> Vec<(u32, Outcome)> {
    let numbers = numbers(rules, arch, default);
    // the bits of RET_TRACE are in RET_LOG and RET_ALLOW too
    let permissive = default & RET_TRACE == RET_TRACE;
    let above = if permissive || numbers.is_empty() {
        default
    } else {
        RET_ERRNO | ENOSYS
    };
    let start = if arch == Arch::X32 {
        super::arch::X32_BIT
    } else {
        0
    };
    let mut ranges: Vec<(u32, Outcome)> = Vec::new();
    let mut put = |first: u32, outcome: Outcome| {
        if ranges.last().is_none_or(|(_, last)| *last != outcome) {
            ranges.push((first, outcome));
        }
    };
    let mut next = start;
    for (number, outcome) in numbers {
        if number > next {
            put(next, Outcome::always(default));
        }
        put(number, outcome);
        next = number + 1;
    }
    put(next, Outcome::always(above));
    ranges
}

/// Each number that a rule names.
fn numbers(rules: &[Rule], arch: Arch, default: u32) -> BTreeMap<u32, Outcome> {
    let mut fixed: BTreeMap<u32, u32> = BTreeMap::new();
    let mut branches: BTreeMap<u32, Vec<(Vec<Condition>, u32)>> = BTreeMap::new();
    for rule in rules {
        for name in &rule.names {
            if let Some(number) = arch.number(name) {
                for conditions in &rule.alternatives {
                    if conditions.is_empty() {
                        fixed.entry(number).or_insert(rule.action);
                    } else {
                        let branch = (conditions.clone(), rule.action);
                        branches.entry(number).or_default().push(branch);
                    }
                }
            }
            // Through the multiplexer the arguments are behind a pointer, so only a rule without
            // conditions can hold there.
            if let Some((call, which)) = multiplexed(arch, name)
                && rule.alternatives.iter().all(Vec::is_empty)
                && let Some(number) = arch.number(call)
            {
                let condition = Condition {
                    index: 0,
                    operator: Operator::ScmpCmpEq,
                    value: which,
                    mask: u64::MAX,
                };
                let branch = (vec![condition], rule.action);
                branches.entry(number).or_default().push(branch);
            }
        }
    }
    let mut outcomes: BTreeMap<u32, Outcome> = branches
        .into_iter()
        .map(|(number, branches)| {
            (
                number,
                Outcome {
                    branches,
                    otherwise: default,
                },
            )
        })
        .collect();
    for (number, action) in fixed {
        outcomes.insert(number, Outcome::always(action));
    }
    outcomes
}

/// Names that none of `architectures` has, each once, in the profile's order.
pub(super) fn unknown(rules: &[Rule], architectures: &[Arch]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in rules.iter().flat_map(|rule| &rule.names) {
        if !known(name, architectures) && !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}
