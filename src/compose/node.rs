//! The plain tree that the phases work on: every value and every key knows where it stands.
//!
//! *Invariants.* A tree is at most [`super::parse::MAX_DEPTH`] deep, so recursion over it is safe. A scalar keeps the
//! user's text; what type it has is decided by the place that reads it. Keys of a mapping are unique.
//!
//! [`At`] is a node with its path (`services.web.ports[0]`): the later phases read through it, so that each error
//! names file, line, column and path. What a value means is left to the caller.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use super::Error;
use super::project::Origin;
use super::units;

/// What the functions of the loader return.
pub(super) type Result<T> = std::result::Result<T, Error>;

/// A place in a file; line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pos {
    pub file: Rc<str>,
    pub line: usize,
    pub column: usize,
}

impl Pos {
    /// The place in front, the path in the document, what is wrong.
    pub fn error(&self, path: &str, what: impl fmt::Display) -> Error {
        let message = match path {
            "" => format!("{self}: {what}"),
            _ => format!("{self}: {path}: {what}"),
        };
        Error { message }
    }

    /// As the project keeps it.
    pub fn origin(&self) -> Origin {
        Origin {
            file: self.file.to_string(),
            line: self.line,
        }
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// What merging does with a value (compose-spec 13-merge.md, "Reset value", "Replace value").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    None,
    Reset,
    Override,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub pos: Pos,
    pub tag: Tag,
    pub value: Value,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    /// `plain`: written without quotes and not interpolated, so that it may be a number, a boolean or null.
    Scalar {
        text: String,
        plain: bool,
    },
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: String,
    pub pos: Pos,
    pub value: Node,
}

impl Node {
    pub fn new(pos: &Pos, value: Value) -> Self {
        Self {
            pos: pos.clone(),
            tag: Tag::None,
            value,
        }
    }

    /// A text that is no number whatever it looks like.
    pub fn str(pos: &Pos, text: impl Into<String>) -> Self {
        Self::new(
            pos,
            Value::Scalar {
                text: text.into(),
                plain: false,
            },
        )
    }

    /// A scalar whose type its text tells.
    pub fn plain(pos: &Pos, text: impl Into<String>) -> Self {
        Self::new(
            pos,
            Value::Scalar {
                text: text.into(),
                plain: true,
            },
        )
    }

    pub fn seq(pos: &Pos, items: Vec<Node>) -> Self {
        Self::new(pos, Value::Seq(items))
    }

    pub fn map(pos: &Pos, entries: Vec<Entry>) -> Self {
        Self::new(pos, Value::Map(entries))
    }

    pub fn is_null(&self) -> bool {
        match &self.value {
            Value::Null => true,
            Value::Scalar { text, plain } => *plain && units::plain(text) == units::Plain::Null,
            _ => false,
        }
    }

    /// The shape, for messages.
    pub fn shape(&self) -> &'static str {
        match &self.value {
            Value::Null => "empty",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Scalar { plain: false, .. } => "a string",
            Value::Scalar { text, .. } => match units::plain(text) {
                units::Plain::Null => "empty",
                units::Plain::Bool(_) => "a boolean",
                units::Plain::Int(_) | units::Plain::Float(_) => "a number",
                units::Plain::Str => "a string",
            },
        }
    }

    /// The value of a key of a mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.value),
            _ => None,
        }
    }

    /// Nodes in this tree, itself included.
    pub fn count(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Scalar { .. } => 0,
            Value::Seq(items) => items.iter().map(Node::count).sum(),
            Value::Map(entries) => entries.iter().map(|e| e.value.count()).sum(),
        }
    }
}

impl Entry {
    pub fn new(pos: &Pos, key: impl Into<String>, value: Node) -> Self {
        Self {
            key: key.into(),
            pos: pos.clone(),
            value,
        }
    }
}

/// A node and its path.
#[derive(Debug, Clone)]
pub(super) struct At<'a> {
    pub node: &'a Node,
    pub path: String,
    /// Where the key stands (the value, when it is an item of a list).
    pub key_pos: &'a Pos,
}

impl<'a> At<'a> {
    pub fn root(node: &'a Node) -> Self {
        Self {
            node,
            path: String::new(),
            key_pos: &node.pos,
        }
    }

    pub fn error(&self, what: impl fmt::Display) -> Error {
        self.node.pos.error(&self.path, what)
    }

    fn entry(&self, entry: &'a Entry) -> Self {
        let path = join(&self.path, &entry.key);
        Self {
            node: &entry.value,
            path,
            key_pos: &entry.pos,
        }
    }

    /// The value of a key; a null counts as absent.
    pub fn get(&self, key: &str) -> Option<At<'a>> {
        let Value::Map(entries) = &self.node.value else {
            return None;
        };
        let entry = entries.iter().find(|e| e.key == key)?;
        (!entry.value.is_null()).then(|| self.entry(entry))
    }

    /// As [`At::get`]; an empty text counts as absent too, as where a variable had nothing to say.
    pub fn filled(&self, key: &str) -> Option<At<'a>> {
        self.get(key).filter(|at| at.raw() != Ok(""))
    }

    /// Walks down several keys.
    pub fn find(&self, keys: &[&str]) -> Option<At<'a>> {
        keys.iter().try_fold(self.clone(), |at, key| at.get(key))
    }

    /// Items of a list; null has none.
    pub fn items(&self) -> Result<Vec<At<'a>>> {
        match &self.node.value {
            Value::Seq(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(i, node)| At {
                    node,
                    path: format!("{}[{i}]", self.path),
                    key_pos: &node.pos,
                })
                .collect()),
            _ if self.node.is_null() => Ok(Vec::new()),
            _ => Err(self.error(format_args!("must be a list, not {}", self.node.shape()))),
        }
    }

    /// Keys and values of a mapping; null has none.
    pub fn entries(&self) -> Result<Vec<(&'a str, At<'a>)>> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries
                .iter()
                .map(|e| (e.key.as_str(), self.entry(e)))
                .collect()),
            _ if self.node.is_null() => Ok(Vec::new()),
            _ => Err(self.error(format_args!("must be a mapping, not {}", self.node.shape()))),
        }
    }

    /// Items below a key; none when the key is absent.
    pub fn items_of(&self, key: &str) -> Result<Vec<At<'a>>> {
        self.get(key)
            .map_or_else(|| Ok(Vec::new()), |at| at.items())
    }

    /// Entries below a key; none when the key is absent.
    pub fn entries_of(&self, key: &str) -> Result<Vec<(&'a str, At<'a>)>> {
        self.get(key)
            .map_or_else(|| Ok(Vec::new()), |at| at.entries())
    }

    /// The text of any scalar as it is written.
    pub fn raw(&self) -> Result<&'a str> {
        match &self.node.value {
            Value::Scalar { text, .. } => Ok(text),
            _ => Err(self.error(format_args!(
                "must be a single value, not {}",
                self.node.shape()
            ))),
        }
    }

    /// The text of any scalar; a number as Go prints it (`0777` is 511), which is what ends in the environment.
    pub fn text(&self) -> Result<String> {
        let raw = self.raw()?;
        match &self.node.value {
            Value::Scalar { plain: true, .. } => Ok(match units::plain(raw) {
                units::Plain::Int(i) => i.to_string(),
                units::Plain::Float(f) => f.to_string(),
                units::Plain::Bool(b) => b.to_string(),
                units::Plain::Null | units::Plain::Str => raw.to_owned(),
            }),
            _ => Ok(raw.to_owned()),
        }
    }

    /// A string. A number is taken too when no YAML reader would change its text.
    pub fn string(&self) -> Result<String> {
        let raw = self.raw()?;
        let Value::Scalar { plain: true, .. } = &self.node.value else {
            return Ok(raw.to_owned());
        };
        let same = match units::plain(raw) {
            units::Plain::Str => true,
            units::Plain::Int(i) => i.to_string() == raw,
            units::Plain::Float(f) => f.to_string() == raw,
            units::Plain::Bool(_) | units::Plain::Null => false,
        };
        match same {
            true => Ok(raw.to_owned()),
            false => Err(self.error(format_args!(
                "must be a string, not {}; put it in quotes",
                self.node.shape()
            ))),
        }
    }

    pub fn bool(&self) -> Result<bool> {
        let raw = self.raw()?;
        units::boolean(raw).ok_or_else(|| {
            self.error(format_args!(
                "{raw:?} is not a boolean; write true or false"
            ))
        })
    }

    pub fn int(&self) -> Result<i64> {
        let raw = self.raw()?;
        match units::plain(raw) {
            units::Plain::Int(i) => i64::try_from(i).ok(),
            _ => None,
        }
        .ok_or_else(|| self.error(format_args!("{raw:?} is not a whole number")))
    }

    /// A whole number within bounds, both included.
    pub fn int_in(&self, low: i64, high: i64) -> Result<i64> {
        let value = self.int()?;
        match (low..=high).contains(&value) {
            true => Ok(value),
            false => Err(self.error(format_args!(
                "{value} is out of range; it must lie between {low} and {high}"
            ))),
        }
    }

    /// CPUs' worth of time; 0 is no limit.
    pub fn cpus(&self) -> Result<f64> {
        let raw = self.raw()?;
        match raw.parse::<f64>() {
            Ok(cpus) if cpus == 0.0 || (0.001..=1e6).contains(&cpus) => Ok(cpus),
            _ => Err(self.error(format_args!(
                "{raw:?} is not a number of cpus; write something like 0.5"
            ))),
        }
    }

    /// A size in bytes.
    pub fn bytes(&self) -> Result<u64> {
        let raw = self.raw()?;
        units::bytes(raw).ok_or_else(|| {
            self.error(format_args!(
                "{raw:?} is not a size; write something like 64m"
            ))
        })
    }

    pub fn duration(&self) -> Result<Duration> {
        let raw = self.raw()?;
        units::duration(raw).ok_or_else(|| {
            self.error(format_args!(
                "{raw:?} is not a duration; write something like 1m30s"
            ))
        })
    }

    /// Strings of a list below a key.
    pub fn strings_of(&self, key: &str) -> Result<Vec<String>> {
        self.items_of(key)?.iter().map(At::string).collect()
    }
}

/// `path.key`.
pub(super) fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        _ => format!("{path}.{key}"),
    }
}
