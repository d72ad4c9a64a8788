//! Phase 1: YAML text → [`Node`] trees, one per document.
//!
//! Anchors are expanded, merge keys (`<<`) are resolved here, keys must be unique scalars. `!reset` and `!override`
//! are kept for the merge; any other tag outside YAML's own is refused.
//!
//! *Invariants.* Built from the parser's events on an explicit stack, so that size, depth and the number of nodes
//! (copies made by aliases and anchors included) are bounded before memory is spent.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::Error;
use super::node::{Entry, Node, Pos, Result, Tag, Value};

/// Longest file, in bytes.
pub(super) const MAX_BYTES: usize = 4 << 20;
/// Deepest nesting.
pub(super) const MAX_DEPTH: usize = 64;
/// Most nodes, copies included.
const MAX_NODES: usize = 200_000;

/// Reads all documents of a file; `name` is what messages call it.
pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<Vec<Node>> {
    let file: Rc<str> = name.into();
    if bytes.len() > MAX_BYTES {
        return Err(Error {
            message: format!("{name}: larger than {} MiB", MAX_BYTES >> 20),
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = 1 + bytes
            .iter()
            .take(e.valid_up_to())
            .filter(|b| **b == b'\n')
            .count();
        Pos {
            file: file.clone(),
            line,
            column: 1,
        }
        .error("", "not UTF-8 text")
    })?;
    let mut builder = Builder::new(file);
    let mut parser = Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|e| {
            builder
                .pos(e.marker())
                .error("", format_args!("not valid YAML: {}", e.info()))
        })?;
        builder.event(event, &span.start)?;
    }
    Ok(builder.documents)
}

/// A collection that is still open.
struct Frame {
    node: Node,
    anchor: usize,
    keys: HashSet<String>,
    /// The key whose value comes next.
    key: Option<Key>,
    /// Values of `<<`.
    merges: Vec<Node>,
}

struct Key {
    text: String,
    pos: Pos,
    merge: bool,
}

struct Builder {
    file: Rc<str>,
    documents: Vec<Node>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl Builder {
    fn new(file: Rc<str>) -> Self {
        Self {
            file,
            documents: Vec::new(),
            stack: Vec::new(),
            anchors: HashMap::new(),
            nodes: 0,
        }
    }

    fn pos(&self, mark: &Marker) -> Pos {
        Pos {
            file: self.file.clone(),
            line: mark.line(),
            column: mark.col() + 1,
        }
    }

    fn event(&mut self, event: Event<'_>, mark: &Marker) -> Result<()> {
        let pos = self.pos(mark);
        match event {
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
            Event::SequenceStart(anchor, tag) => {
                let tag = collection_tag(tag.as_deref(), &pos)?;
                self.open(
                    Node {
                        pos,
                        tag,
                        value: Value::Seq(Vec::new()),
                    },
                    anchor,
                )
            }
            Event::MappingStart(anchor, tag) => {
                let tag = collection_tag(tag.as_deref(), &pos)?;
                self.open(
                    Node {
                        pos,
                        tag,
                        value: Value::Map(Vec::new()),
                    },
                    anchor,
                )
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(&pos),
            Event::Scalar(text, style, anchor, tag) => {
                let (tag, string) = scalar_tag(tag.as_deref(), &pos)?;
                let plain = style == ScalarStyle::Plain && !string;
                let value = Value::Scalar {
                    text: text.into_owned(),
                    plain,
                };
                self.add(Node { pos, tag, value }, anchor, plain)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(pos.error("", "the alias stands inside the value that it names"));
                };
                // measured before it is copied; the copy stands where the alias does not: its lines are the anchor's
                let count = node.count();
                charge(&mut self.nodes, count, &pos)?;
                let node = node.clone();
                self.place(node, false)
            }
        }
    }

    fn open(&mut self, node: Node, anchor: usize) -> Result<()> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(node
                .pos
                .error("", format_args!("nested deeper than {MAX_DEPTH} levels")));
        }
        charge(&mut self.nodes, 1, &node.pos)?;
        self.stack.push(Frame {
            node,
            anchor,
            keys: HashSet::new(),
            key: None,
            merges: Vec::new(),
        });
        Ok(())
    }

    fn close(&mut self, pos: &Pos) -> Result<()> {
        let Some(mut frame) = self.stack.pop() else {
            return Err(pos.error("", "not valid YAML: a collection ends that never began"));
        };
        if let Value::Map(entries) = &mut frame.node.value {
            for merge in frame.merges {
                merge_into(entries, &mut frame.keys, merge)?;
            }
        }
        self.keep(&frame.node, frame.anchor)?;
        self.place(frame.node, false)
    }

    fn add(&mut self, node: Node, anchor: usize, plain: bool) -> Result<()> {
        charge(&mut self.nodes, 1, &node.pos)?;
        self.keep(&node, anchor)?;
        self.place(node, plain)
    }

    fn keep(&mut self, node: &Node, anchor: usize) -> Result<()> {
        if anchor > 0 {
            charge(&mut self.nodes, node.count(), &node.pos)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(())
    }

    /// Puts a finished node into the collection around it. Copies may be deep: the sum is checked here.
    fn place(&mut self, node: Node, plain: bool) -> Result<()> {
        if self.stack.len() + depth(&node) > MAX_DEPTH {
            return Err(node
                .pos
                .error("", format_args!("nested deeper than {MAX_DEPTH} levels")));
        }
        let Some(frame) = self.stack.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        let entries = match &mut frame.node.value {
            Value::Seq(items) => {
                items.push(node);
                return Ok(());
            }
            Value::Map(entries) => entries,
            Value::Null | Value::Scalar { .. } => return Ok(()),
        };
        match frame.key.take() {
            None => frame.key = Some(key(node, plain, &mut frame.keys)?),
            Some(key) if key.merge => frame.merges.push(node),
            Some(key) => entries.push(Entry {
                key: key.text,
                pos: key.pos,
                value: node,
            }),
        }
        Ok(())
    }
}

fn key(node: Node, plain: bool, keys: &mut HashSet<String>) -> Result<Key> {
    let Value::Scalar { text, .. } = node.value else {
        return Err(node.pos.error("", "a key must be a single value"));
    };
    if text.is_empty() {
        return Err(node.pos.error("", "a key is empty"));
    }
    if !keys.insert(text.clone()) {
        return Err(node.pos.error(
            "",
            format_args!("key {text:?} stands twice in one mapping; remove one"),
        ));
    }
    let merge = plain && text == "<<";
    Ok(Key {
        text,
        pos: node.pos,
        merge,
    })
}

/// YAML's merge key: keys already present win, of several mappings the first.
fn merge_into(entries: &mut Vec<Entry>, keys: &mut HashSet<String>, merge: Node) -> Result<()> {
    match merge.value {
        Value::Map(from) => {
            entries.extend(from.into_iter().filter(|e| keys.insert(e.key.clone())));
            Ok(())
        }
        Value::Seq(items) if items.iter().all(|n| matches!(n.value, Value::Map(_))) => items
            .into_iter()
            .try_for_each(|item| merge_into(entries, keys, item)),
        _ => Err(merge.pos.error(
            "",
            "the value of << must be a mapping or a list of mappings",
        )),
    }
}

fn charge(nodes: &mut usize, count: usize, pos: &Pos) -> Result<()> {
    *nodes = nodes.saturating_add(count);
    match *nodes > MAX_NODES {
        true => Err(pos.error(
            "",
            format_args!("more than {MAX_NODES} values, copies made by aliases included"),
        )),
        false => Ok(()),
    }
}

fn depth(node: &Node) -> usize {
    match &node.value {
        Value::Null | Value::Scalar { .. } => 0,
        Value::Seq(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Map(entries) => 1 + entries.iter().map(|e| depth(&e.value)).max().unwrap_or(0),
    }
}

fn collection_tag(tag: Option<&saphyr_parser::Tag>, pos: &Pos) -> Result<Tag> {
    match tag {
        None => Ok(Tag::None),
        Some(t) if t.is_yaml_core_schema() && matches!(t.suffix.as_str(), "map" | "seq") => {
            Ok(Tag::None)
        }
        Some(t) => merge_tag(t, pos),
    }
}

/// The tag and whether it makes the scalar a string.
fn scalar_tag(tag: Option<&saphyr_parser::Tag>, pos: &Pos) -> Result<(Tag, bool)> {
    match tag {
        None => Ok((Tag::None, false)),
        Some(t) if t.is_yaml_core_schema() => match t.suffix.as_str() {
            "str" => Ok((Tag::None, true)),
            "int" | "float" | "bool" | "null" => Ok((Tag::None, false)),
            _ => merge_tag(t, pos).map(|tag| (tag, false)),
        },
        Some(t) if t.suffix.is_empty() => Ok((Tag::None, true)),
        Some(t) => merge_tag(t, pos).map(|tag| (tag, false)),
    }
}

fn merge_tag(tag: &saphyr_parser::Tag, pos: &Pos) -> Result<Tag> {
    match (tag.handle.as_str(), tag.suffix.as_str()) {
        ("!", "reset") => Ok(Tag::Reset),
        ("!", "override") => Ok(Tag::Override),
        _ => Err(pos.error(
            "",
            format_args!("unknown tag {tag}; only !reset and !override are known"),
        )),
    }
}
