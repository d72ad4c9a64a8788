//! Phase 5: several files in canonical form → one tree (compose-spec 13-merge.md).
//!
//! Mappings merge by key, lists append, anything else is replaced; [`RULES`] holds the exceptions. `!reset` removes
//! what was there, `!override` replaces it whole. An empty value changes nothing, except below a mapping of
//! [`Rule::Keyed`], where it means "from the surroundings".
//!
//! *Invariants.* Pure; every file is canonical already, so an attribute has one shape only; the later file wins; the
//! order of the earlier file is kept.

use super::node::{Entry, Node, Result, Tag, Value, join};

/// An exception to the general rule.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    /// The later value replaces the earlier one.
    Replace,
    /// A list whose items are the same when these keys are (for plain texts: `""`, the whole).
    Unique(&'static [&'static str]),
    /// A mapping whose later value counts even when it is empty.
    Keyed,
}

/// Paths (`*` is any key) and their rules.
const RULES: &[(&str, Rule)] = &[
    ("services.*.command", Rule::Replace),
    ("services.*.entrypoint", Rule::Replace),
    ("services.*.healthcheck.test", Rule::Replace),
    ("services.*.environment", Rule::Keyed),
    (
        "services.*.ports",
        Rule::Unique(&["host_ip", "published", "target", "protocol"]),
    ),
    ("services.*.volumes", Rule::Unique(&["target"])),
    ("services.*.devices", Rule::Unique(&["target"])),
    ("services.*.ulimits.*", Rule::Replace),
    ("services.*.env_file", Rule::Unique(&["path"])),
    ("services.*.tmpfs", Rule::Unique(&["target"])),
    ("services.*.expose", Rule::Unique(&[""])),
    ("services.*.cap_add", Rule::Unique(&[""])),
    ("services.*.cap_drop", Rule::Unique(&[""])),
    ("services.*.dns", Rule::Unique(&[""])),
    ("services.*.dns_search", Rule::Unique(&[""])),
    ("services.*.dns_opt", Rule::Unique(&[""])),
    ("services.*.extra_hosts", Rule::Unique(&[""])),
    ("services.*.group_add", Rule::Unique(&[""])),
    ("services.*.links", Rule::Unique(&[""])),
    ("services.*.profiles", Rule::Unique(&[""])),
    ("services.*.security_opt", Rule::Unique(&[""])),
    ("services.*.networks.*.aliases", Rule::Unique(&[""])),
    ("services.*.blkio_config.*", Rule::Unique(&["path"])),
    ("networks.*.ipam.config", Rule::Unique(&["subnet"])),
];

fn rule(path: &str) -> Option<Rule> {
    RULES
        .iter()
        .find(|(pattern, _)| matches(pattern, path))
        .map(|(_, rule)| *rule)
}

fn matches(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('.'), path.split(SEPARATOR));
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return true,
            (Some(p), Some(k)) if p == "*" || p == k => {}
            _ => return false,
        }
    }
}

/// Between keys while matching: names of services may hold dots.
const SEPARATOR: char = '\0';

/// Merges `over` into `base`.
pub(super) fn merge(base: Node, over: Node) -> Result<Node> {
    merge_at(base, over, "", "")
}

/// Merges one service over the service that it extends.
pub(super) fn merge_service(name: &str, base: Node, over: Node) -> Result<Node> {
    merge_at(
        base,
        over,
        &format!("services{SEPARATOR}{name}"),
        &join("services", name),
    )
}

/// Removes what `!reset` marks in a file that has nothing below it.
pub(super) fn settle(node: Node) -> Node {
    let value = match node.value {
        Value::Map(entries) => Value::Map(
            entries
                .into_iter()
                .filter(|e| e.value.tag != Tag::Reset)
                .map(|e| Entry {
                    value: settle(e.value),
                    ..e
                })
                .collect(),
        ),
        Value::Seq(items) => Value::Seq(
            items
                .into_iter()
                .filter(|n| n.tag != Tag::Reset)
                .map(settle)
                .collect(),
        ),
        other => other,
    };
    Node {
        value,
        tag: Tag::None,
        pos: node.pos,
    }
}

fn merge_at(base: Node, over: Node, path: &str, shown: &str) -> Result<Node> {
    let rule = rule(path);
    if over.tag == Tag::Override || rule == Some(Rule::Replace) {
        return Ok(settle(over));
    }
    if over.is_null() {
        return Ok(base);
    }
    if base.is_null() {
        return Ok(settle(over));
    }
    match (base.value, over.value) {
        (Value::Map(entries), Value::Map(later)) => {
            let entries = merge_entries(entries, later, path, shown, rule == Some(Rule::Keyed))?;
            Ok(Node {
                value: Value::Map(entries),
                ..Node::map(&base.pos, Vec::new())
            })
        }
        (Value::Seq(mut items), Value::Seq(later)) => {
            for item in later {
                append(&mut items, settle(item), rule);
            }
            Ok(Node::seq(&base.pos, items))
        }
        (Value::Scalar { .. }, value @ Value::Scalar { .. }) => Ok(Node::new(&over.pos, value)),
        (_, value) => {
            let over = Node::new(&over.pos, value);
            Err(over.pos.error(
                shown,
                format_args!(
                    "{} cannot be merged into the value at {}",
                    over.shape(),
                    base.pos
                ),
            ))
        }
    }
}

fn merge_entries(
    mut entries: Vec<Entry>,
    later: Vec<Entry>,
    path: &str,
    shown: &str,
    keyed: bool,
) -> Result<Vec<Entry>> {
    for over in later {
        let found = entries.iter().position(|e| e.key == over.key);
        if over.value.tag == Tag::Reset {
            entries.retain(|e| e.key != over.key);
            continue;
        }
        let Some(slot) = found.and_then(|i| entries.get_mut(i)) else {
            entries.push(Entry {
                value: settle(over.value),
                ..over
            });
            continue;
        };
        let below = match path {
            "" => over.key.clone(),
            _ => format!("{path}{SEPARATOR}{}", over.key),
        };
        let base = std::mem::replace(&mut slot.value, Node::new(&over.pos, Value::Null));
        slot.value = match keyed {
            true => over.value,
            false => merge_at(base, over.value, &below, &join(shown, &over.key))?,
        };
    }
    Ok(entries)
}

fn append(items: &mut Vec<Node>, item: Node, rule: Option<Rule>) {
    let same = |a: &Node, b: &Node, keys: &[&str]| {
        keys.iter().all(|key| match *key {
            "" => same_value(a, b),
            key => match (a.get(key), b.get(key)) {
                (Some(a), Some(b)) => same_value(a, b),
                (a, b) => a.is_none() && b.is_none(),
            },
        })
    };
    let found = match rule {
        Some(Rule::Unique(keys)) => items.iter().position(|old| same(old, &item, keys)),
        _ => None,
    };
    match found.and_then(|i| items.get_mut(i)) {
        Some(slot) => *slot = item,
        None => items.push(item),
    }
}

fn same_value(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::Scalar { text: a, .. }, Value::Scalar { text: b, .. }) => a == b,
        _ => false,
    }
}
