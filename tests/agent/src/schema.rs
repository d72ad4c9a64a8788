//! The messages of the executor API as data, read from a table of their own.
//!
//! Owns: names, numbers, types and defaults of every field (`schema.txt`). *Invariant*: nothing here comes from the
//! program under test, so that a mistake there is not made here as well. Leaves encoding to [`crate::codec`].

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// What a field holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Double,
    String,
    Bytes,
    /// Full name of an enumeration.
    Enum(String),
    /// Full name of a message.
    Message(String),
    /// `map<string, …>`.
    Map(Box<Kind>),
}

/// One field of a message.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) required: bool,
    pub(crate) repeated: bool,
    /// Text of the default value, if it has one and is not deprecated: the agent writes it to JSON.
    pub(crate) default: Option<String>,
}

/// All messages and enumerations by full name.
#[derive(Debug)]
pub(crate) struct Schema {
    messages: BTreeMap<String, Vec<Field>>,
    enums: BTreeMap<String, Vec<(i32, String)>>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::parse(include_str!("schema.txt")));

/// The table.
pub(crate) fn schema() -> &'static Schema {
    &SCHEMA
}

impl Schema {
    fn parse(text: &str) -> Schema {
        let lines = || text.lines().filter(|line| !line.starts_with('#'));
        let split = |line: &'static str, kind: &str| {
            let (name, body) = line.strip_prefix(kind)?.split_once(" =")?;
            Some((name.trim().to_owned(), body.trim()))
        };
        // the text is a constant
        let text: &'static str = Box::leak(lines().collect::<Vec<_>>().join("\n").into_boxed_str());
        let names: Vec<(String, bool)> = text
            .lines()
            .filter_map(|line| {
                let message = split(line, "message ").map(|(name, _)| (name, false));
                message.or_else(|| split(line, "enum ").map(|(name, _)| (name, true)))
            })
            .collect();
        let mut messages = BTreeMap::new();
        let mut enums = BTreeMap::new();
        for line in text.lines() {
            if let Some((name, body)) = split(line, "message ") {
                let fields = items(body).map(|item| field(&names, &name, item));
                messages.insert(name.clone(), fields.collect());
            } else if let Some((name, body)) = split(line, "enum ") {
                let values = items(body).map(|item| {
                    let (number, value) = item.split_once(' ').expect("number and name");
                    (number.parse().expect("number"), value.to_owned())
                });
                enums.insert(name, values.collect());
            }
        }
        Schema { messages, enums }
    }

    /// Fields of a message.
    pub(crate) fn message(&self, name: &str) -> &[Field] {
        &self.messages[name]
    }

    /// Name of an enumeration's value.
    pub(crate) fn value_name(&self, name: &str, number: i32) -> Option<&str> {
        let value = self.enums[name].iter().find(|(n, _)| *n == number)?;
        Some(&value.1)
    }

    /// Number of an enumeration's value.
    pub(crate) fn value_number(&self, name: &str, value: &str) -> Option<i32> {
        let found = self.enums[name].iter().find(|(_, name)| name == value)?;
        Some(found.0)
    }
}

fn items(body: &'static str) -> impl Iterator<Item = &'static str> {
    body.split(';')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// `2 state TaskState! =X ?`.
fn field(names: &[(String, bool)], scope: &str, text: &str) -> Field {
    let mut words = text.split(' ');
    let number = words.next().expect("number").parse().expect("number");
    let name = words.next().expect("name").to_owned();
    let kind = words.next().expect("type");
    let rest: Vec<&str> = words.collect();
    let deprecated = rest.contains(&"?");
    let default = rest.iter().find_map(|word| word.strip_prefix('='));
    let bare = kind.trim_end_matches('!').trim_end_matches("[]");
    Field {
        number,
        name,
        required: kind.ends_with('!'),
        repeated: kind.ends_with("[]"),
        default: default.filter(|_| !deprecated).map(str::to_owned),
        kind: resolve(names, scope, bare),
    }
}

/// A type's name is looked for in the message it stands in, then in those around it.
fn resolve(names: &[(String, bool)], scope: &str, kind: &str) -> Kind {
    match kind {
        "bool" => return Kind::Bool,
        "int32" => return Kind::Int32,
        "int64" => return Kind::Int64,
        "uint32" => return Kind::Uint32,
        "uint64" => return Kind::Uint64,
        "double" => return Kind::Double,
        "string" => return Kind::String,
        "bytes" => return Kind::Bytes,
        _ => {}
    }
    if let Some(value) = kind.strip_prefix("map<string,") {
        let value = value.strip_suffix('>').expect("map");
        return Kind::Map(Box::new(resolve(names, scope, value)));
    }
    let mut scope = Some(scope);
    loop {
        let full = match scope {
            Some(scope) => format!("{scope}.{kind}"),
            None => kind.to_owned(),
        };
        if let Some((name, is_enum)) = names.iter().find(|(name, _)| *name == full) {
            return match is_enum {
                true => Kind::Enum(name.clone()),
                false => Kind::Message(name.clone()),
            };
        }
        scope = match scope {
            Some(inner) => inner.rsplit_once('.').map(|(outer, _)| outer),
            None => panic!("schema: no type {kind}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_from_inside_out() {
        let kind = |message: &str, field: &str| {
            let fields = schema().message(message);
            fields
                .iter()
                .find(|f| f.name == field)
                .unwrap()
                .kind
                .clone()
        };
        for (message, field, expected) in [
            ("Call", "message", Kind::Message("Call.Message".into())),
            ("Secret", "value", Kind::Message("Secret.Value".into())),
            ("Attribute", "type", Kind::Enum("Value.Type".into())),
            (
                "Resource.DiskInfo",
                "volume",
                Kind::Message("Volume".into()),
            ),
            (
                "TaskInfo",
                "limits",
                Kind::Map(Box::new(Kind::Message("Value.Scalar".into()))),
            ),
        ] {
            assert_eq!(kind(message, field), expected, "{message}.{field}");
        }
        assert_eq!(schema().value_name("TaskState", 8), Some("TASK_KILLING"));
        assert_eq!(schema().value_number("TaskState", "TASK_GONE"), Some(11));
    }
}
