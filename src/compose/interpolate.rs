//! Phase 2: `$VAR` in values → text (compose-spec 12-interpolation.md).
//!
//! `$VAR`, `${VAR}`, `${VAR-default}`, `${VAR:-default}`, `${VAR?message}`, `${VAR:?message}`, `${VAR+other}`,
//! `${VAR:+other}`, nested in each other; `$$` is a dollar. As in a shell the part that is not chosen is not looked
//! at. Keys are left alone. A plain variable that is missing gives a warning and an empty text.
//!
//! *Invariants.* What a variable holds is never interpolated again, so the result is bounded; [`MAX_OUTPUT`] bounds
//! the sum over a load.

use std::collections::{BTreeMap, BTreeSet};

use super::node::{At, Node, Result, Value};

/// Most bytes that interpolation may produce in one load.
const MAX_OUTPUT: usize = 16 << 20;
/// Deepest nesting of `${…}`.
const MAX_NESTING: usize = 32;

/// Looks a variable up.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces the variables of one text; names of missing ones are added to `missing`.
///
/// The error says what is wrong, without a place.
pub(super) fn substitute(
    text: &str,
    lookup: Lookup<'_>,
    missing: &mut BTreeSet<String>,
) -> std::result::Result<String, String> {
    expand(text, lookup, missing, 0)
}

fn expand(
    text: &str,
    lookup: Lookup<'_>,
    missing: &mut BTreeSet<String>,
    depth: usize,
) -> std::result::Result<String, String> {
    if depth > MAX_NESTING {
        return Err(format!(
            "variables are nested deeper than {MAX_NESTING} levels"
        ));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let after = from.strip_prefix('$').unwrap_or(from);
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(inner) = after.strip_prefix('{') {
            let end = closing(inner).ok_or_else(|| invalid(from))?;
            let (body, tail) = inner.split_at(end);
            out.push_str(&braced(body, lookup, missing, depth)?);
            rest = tail.strip_prefix('}').unwrap_or(tail);
        } else {
            let end = name_end(after);
            if end == 0 {
                return Err(invalid(from));
            }
            let (name, tail) = after.split_at(end);
            out.push_str(&plain(name, lookup, missing));
            rest = tail;
        }
        if out.len() > MAX_OUTPUT {
            return Err(too_long());
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn too_long() -> String {
    format!("variables make more than {} MiB of text", MAX_OUTPUT >> 20)
}

fn invalid(from: &str) -> String {
    let shown: String = from.chars().take(20).collect();
    format!("invalid variable at {shown:?}; write $$ for a plain dollar sign")
}

/// Where the brace that was opened before `text` closes.
fn closing(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut open, mut i) = (1, 0);
    while let Some(byte) = bytes.get(i) {
        match (byte, bytes.get(i + 1)) {
            (b'$', Some(b'$')) => i += 1,
            (b'$', Some(b'{')) => {
                open += 1;
                i += 1;
            }
            (b'}', _) => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(i);
        }
        i += 1;
    }
    None
}

fn name_end(text: &str) -> usize {
    let start = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    match start {
        true => text
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(text.len()),
        false => 0,
    }
}

fn plain(name: &str, lookup: Lookup<'_>, missing: &mut BTreeSet<String>) -> String {
    lookup(name).unwrap_or_else(|| {
        missing.insert(name.to_owned());
        String::new()
    })
}

fn braced(
    body: &str,
    lookup: Lookup<'_>,
    missing: &mut BTreeSet<String>,
    depth: usize,
) -> std::result::Result<String, String> {
    let (name, rest) = body.split_at(name_end(body));
    let shown = || invalid(&format!("${{{body}}}"));
    if name.is_empty() {
        return Err(shown());
    }
    if rest.is_empty() {
        return Ok(plain(name, lookup, missing));
    }
    let (colon, operator) = match rest.strip_prefix(':') {
        Some(tail) => (true, tail),
        None => (false, rest),
    };
    let mut chars = operator.chars();
    let operator = chars.next();
    let word = chars.as_str();
    let value = lookup(name).filter(|v| !(colon && v.is_empty()));
    match (operator, value) {
        (Some('-' | '?'), Some(value)) => Ok(value),
        (Some('-'), None) | (Some('+'), Some(_)) => expand(word, lookup, missing, depth + 1),
        (Some('+'), None) => Ok(String::new()),
        (Some('?'), None) => {
            let message = expand(word, lookup, missing, depth + 1)?;
            let colon = if message.is_empty() { "" } else { ": " };
            Err(format!(
                "required variable {name} is missing a value{colon}{message}"
            ))
        }
        _ => Err(shown()),
    }
}

/// Interpolates the trees of one load.
pub(super) struct Interpolation<'a> {
    environment: &'a BTreeMap<String, String>,
    warned: BTreeSet<String>,
    produced: usize,
    /// One per missing variable.
    pub warnings: Vec<String>,
}

impl<'a> Interpolation<'a> {
    pub fn new(environment: &'a BTreeMap<String, String>) -> Self {
        Self {
            environment,
            warned: BTreeSet::new(),
            produced: 0,
            warnings: Vec::new(),
        }
    }

    /// Replaces the variables in all values below `node`.
    pub fn apply(&mut self, node: &mut Node, path: &str) -> Result<()> {
        match &mut node.value {
            Value::Null => Ok(()),
            Value::Scalar { text, .. } if !text.contains('$') => Ok(()),
            Value::Scalar { .. } => self.scalar(node, path),
            Value::Seq(items) => items
                .iter_mut()
                .enumerate()
                .try_for_each(|(i, item)| self.apply(item, &format!("{path}[{i}]"))),
            Value::Map(entries) => entries
                .iter_mut()
                .try_for_each(|e| self.apply(&mut e.value, &super::node::join(path, &e.key))),
        }
    }

    fn scalar(&mut self, node: &mut Node, path: &str) -> Result<()> {
        let at = At {
            node,
            path: path.to_owned(),
            key_pos: &node.pos,
        };
        let environment = self.environment;
        let mut missing = BTreeSet::new();
        let text = substitute(
            at.raw()?,
            &|name| environment.get(name).cloned(),
            &mut missing,
        )
        .map_err(|e| at.error(e))?;
        self.produced = self.produced.saturating_add(text.len());
        if self.produced > MAX_OUTPUT {
            return Err(at.error(too_long()));
        }
        for name in missing {
            if self.warned.insert(name.clone()) {
                let what =
                    format_args!("variable {name} is not set; an empty text is used").to_string();
                self.warnings.push(at.error(what).message);
            }
        }
        node.value = Value::Scalar { text, plain: false };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> std::result::Result<String, String> {
        let lookup = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "EMPTY" => Some(String::new()),
            "DOLLAR" => Some("$A".to_owned()),
            _ => None,
        };
        substitute(text, &lookup, &mut BTreeSet::new())
    }

    #[test]
    fn the_grammar() {
        let table = [
            ("plain", "plain"),
            ("$A", "a"),
            ("$A-b", "a-b"),
            ("${A}b$A", "aba"),
            ("$$A $$", "$A $"),
            ("$DOLLAR", "$A"),
            ("[$NONE]", "[]"),
            ("${NONE-x}", "x"),
            ("${EMPTY-x}", ""),
            ("${EMPTY:-x}", "x"),
            ("${A:-x}", "a"),
            ("${A?x}", "a"),
            ("${EMPTY?x}", ""),
            ("${A+x}", "x"),
            ("${EMPTY+x}", "x"),
            ("${EMPTY:+x}", ""),
            ("${NONE+x}", ""),
            ("${NONE:-${A}b}", "ab"),
            ("${NONE:-${NONE2:-${A}}}", "a"),
            ("${NONE:-$$}", "$"),
            ("${NONE:-a:b?c-d}", "a:b?c-d"),
            ("${A:-${NONE:?never looked at}}", "a"),
            ("${NONE:-}", ""),
            ("ünï$A", "ünïa"),
        ];
        for (text, expected) in table {
            assert_eq!(run(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        let table = [
            (
                "$",
                "invalid variable at \"$\"; write $$ for a plain dollar sign",
            ),
            (
                "a$1",
                "invalid variable at \"$1\"; write $$ for a plain dollar sign",
            ),
            (
                "${A",
                "invalid variable at \"${A\"; write $$ for a plain dollar sign",
            ),
            (
                "${}",
                "invalid variable at \"${}\"; write $$ for a plain dollar sign",
            ),
            (
                "${A!x}",
                "invalid variable at \"${A!x}\"; write $$ for a plain dollar sign",
            ),
            (
                "${A:}",
                "invalid variable at \"${A:}\"; write $$ for a plain dollar sign",
            ),
            ("${NONE?}", "required variable NONE is missing a value"),
            (
                "${EMPTY:?set it}",
                "required variable EMPTY is missing a value: set it",
            ),
            (
                "${NONE:-${NONE2:?both $A}}",
                "required variable NONE2 is missing a value: both a",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(run(text).unwrap_err(), expected, "{text}");
        }
        let deep = format!("{}{}", "${N:-".repeat(5000), "}".repeat(5000));
        assert_eq!(
            run(&deep).unwrap_err(),
            "variables are nested deeper than 32 levels"
        );
    }
}
