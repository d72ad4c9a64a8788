//! The lists of docs/compose.md are what the tables say.

use std::fs;
use std::path::Path;

use super::*;

const BEGIN: &str = "<!-- made from src/compose/schema.rs: begin -->\n";
const END: &str = "<!-- made from src/compose/schema.rs: end -->";

/// Keys of all tables below `path`, each with the path that it has in a file.
fn walk(kind: &Kind, path: &str, found: &mut Found) {
    match kind {
        Map(table) => {
            for (key, rule) in *table {
                let path = join(path, key);
                match rule {
                    Is(kind) => {
                        found.supported.push(path.clone());
                        walk(kind, &path, found);
                    }
                    Refused(remedy) => found.refused.push((path, remedy)),
                    Ignored(why) => found.ignored.push((path, why)),
                }
            }
        }
        List(kind) => walk(kind, &format!("{path}[]"), found),
        Dict(kind) | Named(kind, _) => walk(kind, &join(path, "*"), found),
        Either(kinds) => kinds.iter().for_each(|kind| walk(kind, path, found)),
        Scalar | Anything => {}
    }
}

#[derive(Default)]
struct Found {
    supported: Vec<String>,
    refused: Vec<(String, &'static str)>,
    ignored: Vec<(String, &'static str)>,
}

impl Found {
    /// A line for each mapping with the keys it may have.
    fn lines(&self) -> Vec<(String, Vec<&str>)> {
        let mut lines: Vec<(String, Vec<&str>)> = Vec::new();
        for path in &self.supported {
            let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
            match lines.iter_mut().find(|(known, _)| known == parent) {
                Some((_, keys)) => keys.push(key),
                None => lines.push((parent.to_owned(), vec![key])),
            }
        }
        lines
    }
}

fn reference() -> String {
    let mut found = Found::default();
    walk(&Map(TOP), "", &mut found);
    let mut text = String::from("### Supported\n\n| in | keys |\n|---|---|\n");
    for (parent, keys) in found.lines() {
        let parent = match parent.as_str() {
            "" => "the file".to_owned(),
            parent => format!("`{parent}`"),
        };
        let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
        text.push_str(&format!("| {parent} | {} |\n", keys.join(", ")));
    }
    for (title, rows) in [
        ("Refused | what to do", found.refused),
        ("Ignored, with a warning | why", found.ignored),
    ] {
        let (heading, column) = title.split_once(" | ").unwrap_or((title, ""));
        text.push_str(&format!(
            "\n### {heading}\n\n| key | {column} |\n|---|---|\n"
        ));
        for (path, why) in rows {
            text.push_str(&format!("| `{path}` | {why} |\n"));
        }
    }
    text
}

#[test]
fn the_documentation_has_the_tables() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/compose.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let wanted = format!("{before}{BEGIN}\n{}\n{END}{after}", reference());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text == wanted,
        "docs/compose.md is not what src/compose/schema.rs says; run with UPDATE_DOCS=1 and commit the result"
    );
}
