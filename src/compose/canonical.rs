//! Phase 4: short forms → long forms, so that merging and resolving see one shape per attribute.
//!
//! Words of a command, `KEY=value` lists as mappings, ports, mounts, devices and `tmpfs` as mappings, names of
//! networks and dependencies as mappings. Nothing gets a default here that the user did not imply.
//!
//! *Invariants.* Runs on a validated document; idempotent; new nodes stand where the user's text stands; values marked
//! `!reset` stay as they are. Ranges of ports are kept as text (`3000-3005`): they are expanded when resolved.

use super::node::{At, Entry, Node, Pos, Result, Tag, Value, join};
use super::{contents, units};

/// Rewrites one document.
pub(super) fn canonical(mut root: Node) -> Result<Node> {
    each(&mut root, "services", &mut |node, path| service(node, path))?;
    each(&mut root, "networks", &mut |node, path| {
        external(node);
        edit(node, path, "labels", &mut key_values)
    })?;
    each(&mut root, "volumes", &mut |node, path| {
        external(node);
        edit(node, path, "labels", &mut key_values)
    })?;
    if let Some(pod) = child(&mut root, "x-sampan") {
        items(pod, "x-sampan", "hooks", &mut hook)?;
    }
    Ok(root)
}

/// Rewrites a file of a folder of hooks.
pub(super) fn hook_file(mut node: Node) -> Result<Node> {
    hook(&mut node, "")?;
    Ok(node)
}

/// An entry of `x-sampan.hooks`.
fn hook(node: &mut Node, path: &str) -> Result<()> {
    edit(node, path, "at", &mut |at| {
        one_or_list(at, &mut |item| Ok(item.node.clone()))
    })?;
    edit(node, path, "command", &mut command)?;
    edit(node, path, "env", &mut key_values)
}

/// An entry of `post_start` or `pre_stop`.
fn lifecycle_hook(node: &mut Node, path: &str) -> Result<()> {
    edit(node, path, "command", &mut command)?;
    edit(node, path, "environment", &mut key_values)
}

/// Rewrites each item of a list.
fn items(
    node: &mut Node,
    path: &str,
    key: &str,
    rewrite: &mut dyn FnMut(&mut Node, &str) -> Result<()>,
) -> Result<()> {
    let Some(list) = child(node, key).filter(|list| list.tag != Tag::Reset) else {
        return Ok(());
    };
    let Value::Seq(items) = &mut list.value else {
        return Ok(());
    };
    let mut numbered = items.iter_mut().enumerate();
    numbered.try_for_each(|(i, item)| rewrite(item, &format!("{path}.{key}[{i}]")))
}

/// Rewrites one value; the reader holds its path.
type Rewrite<'a> = &'a mut dyn FnMut(&At<'_>) -> Result<Value>;

fn service(node: &mut Node, path: &str) -> Result<()> {
    for key in ["environment", "labels", "sysctls"] {
        edit(node, path, key, &mut key_values)?;
    }
    for key in ["command", "entrypoint"] {
        edit(node, path, key, &mut command)?;
    }
    for key in ["dns", "dns_search"] {
        edit(node, path, key, &mut |at| {
            one_or_list(at, &mut |item| Ok(item.node.clone()))
        })?;
    }
    edit(node, path, "depends_on", &mut depends_on)?;
    edit(node, path, "extends", &mut extends)?;
    edit(node, path, "networks", &mut |at| {
        names(at, &|pos| Node::new(pos, Value::Null))
    })?;
    edit(node, path, "env_file", &mut |at| {
        one_or_list(at, &mut env_file)
    })?;
    edit(node, path, "tmpfs", &mut |at| one_or_list(at, &mut tmpfs))?;
    edit(node, path, "ports", &mut |at| one_or_list(at, &mut port))?;
    edit(node, path, "volumes", &mut |at| one_or_list(at, &mut mount))?;
    edit(node, path, "devices", &mut |at| {
        one_or_list(at, &mut device)
    })?;
    for key in ["configs", "secrets"] {
        edit(node, path, key, &mut |at| {
            one_or_list(at, &mut contents::canonical)
        })?;
    }
    edit(node, path, "extra_hosts", &mut extra_hosts)?;
    edit(node, path, "ulimits", &mut ulimits)?;
    for key in ["post_start", "pre_stop"] {
        items(node, path, key, &mut lifecycle_hook)?;
    }
    if let Some(slot) = child(node, "healthcheck") {
        edit(
            slot,
            &format!("{path}.healthcheck"),
            "test",
            &mut health_test,
        )?;
    }
    if let Some(slot) = child(node, "x-sampan") {
        edit(slot, &format!("{path}.x-sampan"), "checks", &mut checks)?;
    }
    Ok(())
}

fn child<'a>(node: &'a mut Node, key: &str) -> Option<&'a mut Node> {
    match &mut node.value {
        Value::Map(entries) => entries
            .iter_mut()
            .find(|e| e.key == key)
            .map(|e| &mut e.value),
        _ => None,
    }
}

fn each(
    root: &mut Node,
    key: &str,
    rewrite: &mut dyn FnMut(&mut Node, &str) -> Result<()>,
) -> Result<()> {
    let Some(Value::Map(entries)) = child(root, key).map(|n| &mut n.value) else {
        return Ok(());
    };
    entries
        .iter_mut()
        .filter(|e| e.value.tag != Tag::Reset)
        .try_for_each(|e| rewrite(&mut e.value, &format!("{key}.{}", e.key)))
}

fn edit(node: &mut Node, path: &str, key: &str, rewrite: Rewrite<'_>) -> Result<()> {
    let Some(slot) = child(node, key) else {
        return Ok(());
    };
    if slot.is_null() || slot.tag == Tag::Reset {
        return Ok(());
    }
    let at = At {
        node: slot,
        path: join(path, key),
        key_pos: &slot.pos,
    };
    slot.value = rewrite(&at)?;
    Ok(())
}

fn one_or_list(at: &At<'_>, rewrite: &mut dyn FnMut(&At<'_>) -> Result<Node>) -> Result<Value> {
    let items = match &at.node.value {
        Value::Seq(_) => at.items()?,
        _ => vec![at.clone()],
    };
    let items = items.iter().map(|item| match item.node.tag {
        Tag::None => rewrite(item),
        Tag::Reset | Tag::Override => {
            Err(item.error("!reset and !override belong at the key, not at an item of a list"))
        }
    });
    Ok(Value::Seq(items.collect::<Result<_>>()?))
}

/// `- KEY=value` → `KEY: value`; `- KEY` → `KEY:`.
fn key_values(at: &At<'_>) -> Result<Value> {
    if let Value::Map(entries) = &at.node.value {
        return Ok(Value::Map(entries.clone()));
    }
    let mut entries: Vec<Entry> = Vec::new();
    let mut seen = std::collections::HashMap::new();
    for item in at.items()? {
        let text = item.text()?;
        let pos = &item.node.pos;
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Node::str(pos, value)),
            None => (text.as_str(), Node::new(pos, Value::Null)),
        };
        if key.is_empty() {
            return Err(item.error(format_args!("{text:?} has no key in front of the =")));
        }
        let entry = Entry::new(pos, key, value);
        // of two lines for one key the later counts, as in an environment
        let slot = *seen.entry(key.to_owned()).or_insert(entries.len());
        match entries.get_mut(slot) {
            Some(old) => *old = entry,
            None => entries.push(entry),
        }
    }
    Ok(Value::Map(entries))
}

/// Splits a command as a shell would; an empty one is an empty list: it clears the image's.
fn command(at: &At<'_>) -> Result<Value> {
    if let Value::Seq(items) = &at.node.value {
        return Ok(Value::Seq(items.clone()));
    }
    let words = units::words(&at.string()?).map_err(|e| at.error(e))?;
    Ok(Value::Seq(
        words
            .into_iter()
            .map(|w| Node::str(&at.node.pos, w))
            .collect(),
    ))
}

fn health_test(at: &At<'_>) -> Result<Value> {
    match &at.node.value {
        Value::Seq(items) => Ok(Value::Seq(items.clone())),
        _ => Ok(Value::Seq(vec![
            Node::str(&at.node.pos, "CMD-SHELL"),
            Node::str(&at.node.pos, at.string()?),
        ])),
    }
}

/// Checks by name → a list of checks that say their names.
fn checks(at: &At<'_>) -> Result<Value> {
    let checks: Vec<(Option<&str>, At<'_>)> = match &at.node.value {
        Value::Map(_) => at
            .entries()?
            .into_iter()
            .map(|(name, at)| (Some(name), at))
            .collect(),
        _ => at.items()?.into_iter().map(|at| (None, at)).collect(),
    };
    let mut out = Vec::new();
    for (name, check) in checks {
        let mut node = check.node.clone();
        let path = check.path.clone();
        if let Some(name) = name
            && node.tag != Tag::Reset
            && let Value::Map(entries) = &mut node.value
        {
            if entries.iter().any(|entry| entry.key == "name") {
                return Err(check.error("has its name before it; remove the key name"));
            }
            entries.insert(
                0,
                Entry::new(check.key_pos, "name", Node::str(check.key_pos, name)),
            );
        }
        if let Some(http) = child(&mut node, "http") {
            edit(http, &format!("{path}.http"), "headers", &mut key_values)?;
        }
        out.push(node);
    }
    Ok(Value::Seq(out))
}

/// Names → a mapping with a value made for each.
fn names(at: &At<'_>, value: &dyn Fn(&Pos) -> Node) -> Result<Value> {
    if let Value::Map(entries) = &at.node.value {
        return Ok(Value::Map(entries.clone()));
    }
    let mut entries: Vec<Entry> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for item in at.items()? {
        let name = item.string()?;
        if !seen.insert(name.clone()) {
            return Err(item.error(format_args!("{name} stands twice in the list; remove one")));
        }
        entries.push(Entry::new(&item.node.pos, name, value(&item.node.pos)));
    }
    Ok(Value::Map(entries))
}

fn depends_on(at: &At<'_>) -> Result<Value> {
    names(at, &|pos| {
        let entry = |key: &str, text: &str| Entry::new(pos, key, Node::plain(pos, text));
        Node::map(
            pos,
            vec![
                entry("condition", "service_started"),
                entry("required", "true"),
            ],
        )
    })
}

/// The name of a service → `service: name`.
fn extends(at: &At<'_>) -> Result<Value> {
    let pos = &at.node.pos;
    Ok(match &at.node.value {
        Value::Map(entries) => Value::Map(entries.clone()),
        _ => Value::Map(vec![Entry::new(
            pos,
            "service",
            Node::str(pos, at.string()?),
        )]),
    })
}

fn env_file(at: &At<'_>) -> Result<Node> {
    if let Value::Map(_) = &at.node.value {
        return Ok(at.node.clone());
    }
    let pos = &at.node.pos;
    Ok(Node::map(
        pos,
        vec![Entry::new(pos, "path", Node::str(pos, at.string()?))],
    ))
}

/// `/run:size=64m,mode=1777` → `target`, `options`.
fn tmpfs(at: &At<'_>) -> Result<Node> {
    if let Value::Map(_) = &at.node.value {
        return Ok(at.node.clone());
    }
    let pos = &at.node.pos;
    let text = at.string()?;
    let (target, options) = text.split_once(':').unwrap_or((&text, ""));
    let entry = |key: &str, text: &str| Entry::new(pos, key, Node::str(pos, text));
    Ok(Node::map(
        pos,
        vec![entry("target", target), entry("options", options)],
    ))
}

/// `[[host_ip:][published]:]target[/protocol]`.
fn port(at: &At<'_>) -> Result<Node> {
    let pos = &at.node.pos;
    let mut entries = Vec::new();
    if let Value::Map(given) = &at.node.value {
        // what a port is identified by when merging must be there
        let mut given = given.clone();
        if at.get("protocol").is_none() {
            given.push(Entry::new(pos, "protocol", Node::str(pos, "tcp")));
        }
        return Ok(Node::map(pos, given));
    }
    let text = at.raw()?;
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (host, target) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (host_ip, published) = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        Some((ip, tail)) => (ip, tail.strip_prefix(':').unwrap_or(tail)),
        None => host.rsplit_once(':').unwrap_or(("", host)),
    };
    for (key, value) in [
        ("host_ip", host_ip),
        ("published", published),
        ("target", target),
        ("protocol", protocol),
    ] {
        if !value.is_empty() {
            entries.push(Entry::new(pos, key, Node::str(pos, value)));
        }
    }
    Ok(Node::map(pos, entries))
}

/// `[source:]target[:options]` (compose-spec 05-services.md, "volumes", short syntax).
fn mount(at: &At<'_>) -> Result<Node> {
    let pos = &at.node.pos;
    if let Value::Map(_) = &at.node.value {
        return Ok(at.node.clone());
    }
    let text = at.string()?;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [drive, rest, ..]
            if drive.len() == 1
                && drive.starts_with(|c: char| c.is_ascii_alphabetic())
                && rest.starts_with(['\\', '/'])
                && parts.len() > 2 =>
        {
            return Err(at.error(format_args!(
                "{text:?} looks like a windows path; name a path of this machine"
            )));
        }
        [target] => (None, target, ""),
        [source, target] => (Some(source), target, ""),
        [source, target, options] => (Some(source), target, options),
        _ => return Err(at.error(format_args!("{text:?} is not source:target:options"))),
    };
    let bind = source.is_some_and(|s| s.starts_with(['/', '.', '~']));
    let entry = |key: &str, node: Node| Entry::new(pos, key, node);
    let mut entries = vec![entry(
        "type",
        Node::str(pos, if bind { "bind" } else { "volume" }),
    )];
    entries.extend(source.map(|s| entry("source", Node::str(pos, s))));
    entries.push(entry("target", Node::str(pos, target)));
    let (mut inner, mut read_only) = (Vec::new(), None);
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" | "rw" => read_only = Some(option == "ro"),
            // SELinux labels and the hints for virtual machines change nothing here
            "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "nocopy" if !bind => inner.push(entry("nocopy", Node::plain(pos, "true"))),
            _ if bind && PROPAGATIONS.contains(&option) => {
                inner.push(entry("propagation", Node::str(pos, option)))
            }
            _ => return Err(at.error(format_args!("unknown mount option {option:?}"))),
        }
    }
    if read_only == Some(true) {
        entries.push(entry("read_only", Node::plain(pos, "true")));
    }
    if !inner.is_empty() {
        entries.push(entry(
            if bind { "bind" } else { "volume" },
            Node::map(pos, inner),
        ));
    }
    Ok(Node::map(pos, entries))
}

/// Mount propagation, mount_namespaces(7).
pub(super) const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "shared", "rshared", "slave", "rslave",
];

/// `source[:target][:permissions]`.
fn device(at: &At<'_>) -> Result<Node> {
    if let Value::Map(_) = &at.node.value {
        return Ok(at.node.clone());
    }
    let pos = &at.node.pos;
    let text = at.string()?;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, permissions) = match parts[..] {
        [source] => (source, source, "rwm"),
        [source, target] if target.starts_with('/') => (source, target, "rwm"),
        [source, permissions] => (source, source, permissions),
        [source, target, permissions] => (source, target, permissions),
        _ => return Err(at.error(format_args!("{text:?} is not source:target:permissions"))),
    };
    let entry = |key: &str, text: &str| Entry::new(pos, key, Node::str(pos, text));
    Ok(Node::map(
        pos,
        vec![
            entry("source", source),
            entry("target", target),
            entry("permissions", permissions),
        ],
    ))
}

/// `host:address`, `host=address` or a mapping → a list of `host=address`.
fn extra_hosts(at: &At<'_>) -> Result<Value> {
    let mut out = Vec::new();
    let mut add = |pos: &Pos, host: &str, address: &str| {
        let address = address
            .strip_prefix('[')
            .and_then(|a| a.strip_suffix(']'))
            .unwrap_or(address);
        out.push(Node::str(pos, format!("{host}={address}")));
    };
    match &at.node.value {
        Value::Map(_) => {
            for (host, value) in at.entries()? {
                let addresses = match &value.node.value {
                    Value::Seq(_) => value.items()?,
                    _ => vec![value],
                };
                for address in addresses {
                    add(&address.node.pos, host, &address.string()?);
                }
            }
        }
        _ => {
            for item in at.items()? {
                let text = item.string()?;
                let Some((host, address)) = text.split_once('=').or_else(|| text.split_once(':'))
                else {
                    return Err(item.error(format_args!("{text:?} is not host=address")));
                };
                add(&item.node.pos, host, address);
            }
        }
    }
    Ok(Value::Seq(out))
}

/// `nofile: 1024` → `{soft: 1024, hard: 1024}`.
fn ulimits(at: &At<'_>) -> Result<Value> {
    let entries = at.entries()?.into_iter().map(|(name, value)| {
        let node = match &value.node.value {
            Value::Scalar { .. } if value.node.tag == Tag::None => {
                let pos = &value.node.pos;
                let side = |key: &str| Entry::new(pos, key, value.node.clone());
                Node::map(pos, vec![side("soft"), side("hard")])
            }
            _ => value.node.clone(),
        };
        Entry::new(value.key_pos, name, node)
    });
    Ok(Value::Map(entries.collect()))
}

/// The old `external: {name: x}` → `external: true`, `name: x`.
fn external(node: &mut Node) {
    let Some(slot) = child(node, "external") else {
        return;
    };
    if !matches!(slot.value, Value::Map(_)) {
        return;
    }
    let pos = slot.pos.clone();
    let old = std::mem::replace(slot, Node::plain(&pos, "true"));
    if let (Some(name), Value::Map(entries)) = (old.get("name"), &mut node.value)
        && !entries.iter().any(|e| e.key == "name")
    {
        entries.push(Entry::new(&pos, "name", name.clone()));
    }
}
