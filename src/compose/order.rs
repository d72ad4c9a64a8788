//! Dependency order of services.
//!
//! *Invariants.* No recursion: a chain may be as long as a file allows. Results are sorted, so they are stable.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::project::{Project, Service};

impl Project {
    /// Services in levels: each depends on services of earlier levels only, so those of one level may start together.
    /// Within a level they are sorted. Stopping goes the other way round.
    pub fn start_order(&self) -> Vec<Vec<String>> {
        let (mut levels, rest) = levels(&self.services);
        // loading refuses cycles; a project from elsewhere still gets each service once
        if !rest.is_empty() {
            levels.push(rest.into_iter().map(str::to_owned).collect());
        }
        levels
    }
}

/// Levels, and what is left over because of a cycle.
fn levels(services: &BTreeMap<String, Service>) -> (Vec<Vec<String>>, BTreeSet<&str>) {
    let mut waiting: HashMap<&str, usize> = HashMap::new();
    let mut dependents: HashMap<&str, Vec<&str>> = HashMap::new();
    for (name, service) in services {
        let known = || {
            service
                .depends_on
                .keys()
                .filter(|d| services.contains_key(*d))
        };
        waiting.insert(name, known().count());
        for dependency in known() {
            dependents.entry(dependency).or_default().push(name);
        }
    }
    let mut rest: BTreeSet<&str> = services.keys().map(String::as_str).collect();
    let mut level: BTreeSet<&str> = rest
        .iter()
        .copied()
        .filter(|name| waiting.get(name) == Some(&0))
        .collect();
    let mut levels = Vec::new();
    while !level.is_empty() {
        let mut next = BTreeSet::new();
        for name in &level {
            rest.remove(name);
            for dependent in dependents.get(name).into_iter().flatten() {
                let Some(count) = waiting.get_mut(dependent) else {
                    continue;
                };
                *count = count.saturating_sub(1);
                if *count == 0 {
                    next.insert(*dependent);
                }
            }
        }
        levels.push(level.into_iter().map(str::to_owned).collect());
        level = next;
    }
    (levels, rest)
}

/// A cycle as `[a, b, a]`, beginning with its smallest name.
pub(super) fn cycle(services: &BTreeMap<String, Service>) -> Option<Vec<String>> {
    let (_, rest) = levels(services);
    // everything left over depends on something left over: following it must come back
    let mut path: Vec<&str> = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut at = *rest.iter().next()?;
    while !seen.contains_key(at) {
        seen.insert(at, path.len());
        path.push(at);
        at = services
            .get(at)?
            .depends_on
            .keys()
            .map(String::as_str)
            .find(|d| rest.contains(d))?;
    }
    let mut cycle = path.split_off(*seen.get(at)?);
    let smallest = cycle
        .iter()
        .enumerate()
        .min_by_key(|(_, name)| **name)
        .map_or(0, |(i, _)| i);
    cycle.rotate_left(smallest);
    cycle.push(cycle.first().copied()?);
    Some(cycle.into_iter().map(str::to_owned).collect())
}
