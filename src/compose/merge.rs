//! Phase 5: several files in canonical form → one tree (compose-spec 13-merge.md).
//!
//! Mappings merge by key, lists append, anything else is replaced; [`RULES`] holds the exceptions. `!reset` removes
//! what was there, `!override` replaces it whole. An empty value changes nothing, except below a mapping of
//! [`Rule::Keyed`], where it means "from the surroundings".
//!
//! *Invariants.* Pure; every file is canonical already, so an attribute has one shape only; the later file wins; the
//! order of the earlier file is kept.

use std::collections::HashMap;

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
    /// A mapping that is replaced where both name a driver, and not the same.
    Driver,
}

/// Paths (`*` is any key) and their rules.
const RULES: &[(&str, Rule)] = &[
    ("services.*.command", Rule::Replace),
    ("services.*.entrypoint", Rule::Replace),
    ("services.*.healthcheck.test", Rule::Replace),
    ("services.*.environment", Rule::Keyed),
    ("services.*.logging", Rule::Driver),
    (
        "services.*.ports",
        Rule::Unique(&["host_ip", "published", "target", "protocol", "x-sampan"]),
    ),
    ("services.*.volumes", Rule::Unique(&["target"])),
    ("services.*.configs", Rule::Unique(&["source", "target"])),
    ("services.*.secrets", Rule::Unique(&["source", "target"])),
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
    ("services.*.volumes_from", Rule::Unique(&[""])),
    ("services.*.security_opt", Rule::Unique(&[""])),
    ("services.*.networks.*.aliases", Rule::Unique(&[""])),
    ("services.*.blkio_config.*", Rule::Unique(&["path"])),
    ("services.*.x-sampan.checks", Rule::Unique(&["name"])),
    ("networks.*.ipam.config", Rule::Unique(&["subnet"])),
    ("x-sampan.hooks", Rule::Unique(&["name"])),
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
    if base.is_null() || rule == Some(Rule::Driver) && other_driver(&base, &over) {
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
        (Value::Seq(items), Value::Seq(later)) => {
            Ok(Node::seq(&base.pos, append(items, later, rule)))
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

/// Options of one driver mean nothing to another (compose-spec 13-merge.md, "logging").
fn other_driver(base: &Node, over: &Node) -> bool {
    let driver = |node: &Node| match node.get("driver").map(|node| &node.value) {
        Some(Value::Scalar { text, .. }) => Some(text.clone()),
        _ => None,
    };
    match (driver(base), driver(over)) {
        (Some(before), Some(after)) => before != after,
        _ => false,
    }
}

fn merge_entries(
    entries: Vec<Entry>,
    later: Vec<Entry>,
    path: &str,
    shown: &str,
    keyed: bool,
) -> Result<Vec<Entry>> {
    let mut index: HashMap<String, usize> = entries
        .iter()
        .enumerate()
        .map(|(i, e)| (e.key.clone(), i))
        .collect();
    let mut slots: Vec<Option<Entry>> = entries.into_iter().map(Some).collect();
    for over in later {
        let Some(slot) = index.get(&over.key).and_then(|i| slots.get_mut(*i)) else {
            if over.value.tag != Tag::Reset {
                index.insert(over.key.clone(), slots.len());
                slots.push(Some(Entry {
                    value: settle(over.value),
                    ..over
                }));
            }
            continue;
        };
        if over.value.tag == Tag::Reset {
            *slot = None;
            continue;
        }
        let below = match path {
            "" => over.key.clone(),
            _ => format!("{path}{SEPARATOR}{}", over.key),
        };
        *slot = Some(match slot.take() {
            Some(base) if keyed => Entry {
                value: over.value,
                ..base
            },
            Some(Entry { key, pos, value }) => {
                let value = merge_at(value, over.value, &below, &join(shown, &key))?;
                Entry { key, pos, value }
            }
            None => Entry {
                value: settle(over.value),
                ..over
            },
        });
    }
    Ok(slots.into_iter().flatten().collect())
}

fn append(mut items: Vec<Node>, later: Vec<Node>, rule: Option<Rule>) -> Vec<Node> {
    let mut index: HashMap<String, usize> = HashMap::new();
    for (i, item) in items.iter().enumerate() {
        if let Some(id) = identity(item, rule) {
            index.entry(id).or_insert(i);
        }
    }
    for item in later.into_iter().filter(|item| item.tag != Tag::Reset) {
        let item = settle(item);
        let id = identity(&item, rule);
        match id
            .as_ref()
            .and_then(|id| index.get(id))
            .and_then(|i| items.get_mut(*i))
        {
            Some(slot) => *slot = item,
            None => {
                index.extend(id.map(|id| (id, items.len())));
                items.push(item);
            }
        }
    }
    items
}

/// What makes two items of a list the same one; `None`: nothing does.
fn identity(item: &Node, rule: Option<Rule>) -> Option<String> {
    let Some(Rule::Unique(keys)) = rule else {
        return None;
    };
    let mut id = String::new();
    for key in keys {
        match (*key, item.get(key).map(|n| &n.value), &item.value) {
            ("", _, Value::Scalar { text, .. }) | (_, Some(Value::Scalar { text, .. }), _) => {
                id.extend(["=", text]);
            }
            ("", ..) | (_, Some(_), _) => return None,
            (_, None, _) => {}
        }
        id.push(SEPARATOR);
    }
    Some(id)
}
