//! `sampan selftest`: the security history of container runtimes, tried on this machine.
//!
//! Each [`Check`] is one published weakness, or one promise of ours. It makes containers whose program is this program itself under
//! another name ([`probe`]), which attacks from inside, and compares what came of it with what has to. The front door is
//! [`crate::cli`].
//!
//! *Invariants:*
//! * A check that could not be tried is never green: it says why it does not apply, or fails.
//! * Nothing outside the check's own folder comes to harm when the attack succeeds: what would be overwritten is a copy, what would
//!   be written to the kernel is what is there already.
//! * What is refused has to be refused for the right reason: the message is looked at.

mod case;
mod identity;
mod inherited;
mod kernel_files;
mod modes;
mod paths;
pub mod probe;
mod program;
mod races;

use serde::Serialize;

/// Why a check did not end well.
#[derive(Debug)]
pub enum Stop {
    /// The attack succeeded, or could not be tried although it should be possible: what was seen.
    Failed(String),
    /// It cannot be tried on this machine: why.
    NotApplicable(String),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Failed(error.to_string())
    }
}

/// What a check ends with.
type Tried = Result<(), Stop>;

/// Fails with what was seen unless it is what has to be.
fn expect(holds: bool, seen: impl FnOnce() -> String) -> Tried {
    if holds {
        Ok(())
    } else {
        Err(Stop::Failed(seen()))
    }
}

/// One check.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Check {
    /// Name: the CVE, or a word of ours.
    pub name: &'static str,
    /// What it was, in one line.
    pub what: &'static str,
    /// How it is tried.
    pub how: &'static str,
    #[serde(skip)]
    run: fn() -> Tried,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "why")]
pub enum Outcome {
    /// The attack was tried and got nowhere.
    Ok,
    /// The attack succeeded or could not be carried out: what was seen.
    Failed(String),
    /// It cannot be tried here: why.
    NotApplicable(String),
}

impl Check {
    /// Tries it.
    pub fn run(&self) -> Outcome {
        match (self.run)() {
            Ok(()) => Outcome::Ok,
            Err(Stop::Failed(seen)) => Outcome::Failed(seen),
            Err(Stop::NotApplicable(why)) => Outcome::NotApplicable(why),
        }
    }
}

/// Every check, by age.
pub fn checks() -> Vec<Check> {
    let mut all: Vec<Check> = [
        inherited::CHECKS,
        modes::CHECKS,
        program::CHECKS,
        kernel_files::CHECKS,
        paths::CHECKS,
        races::CHECKS,
        identity::CHECKS,
    ]
    .concat();
    all.sort_by_key(|check| age(check.name));
    all
}

/// Ours first, then by year and number.
fn age(name: &str) -> (u32, u32) {
    let mut parts = name.split('-').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_order() {
        let names: Vec<_> = checks().iter().map(|check| check.name).collect();
        let mut sorted = names.clone();
        sorted.sort_by_key(|name| age(name));
        sorted.dedup();
        assert_eq!(names, sorted);
        assert_eq!(age("2019-5736"), (2019, 5736));
        assert_eq!(age("inherited-nothing"), (0, 0));
    }
}
