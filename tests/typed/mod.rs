//! Texts whose commands work as typed: what a section says to type, a shell script of it, and whether it showed what it should.
//!
//! In `console` blocks, lines after `$ ` or `# ` are commands that must end with 0, the others must appear in their output in this
//! order; `…` stands for anything, and the number of spaces does not matter. A block after "save this as `NAME`:" is written to
//! that file.

#![allow(dead_code)] // each test file uses a part

/// What the tour does, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A line after `$`, and the lines that its output must have, in this order.
    Run(String, Vec<String>),
    /// "save this as `NAME`:" and the block that follows.
    Save(String, String),
}

/// Steps of the section that begins with `heading`.
pub fn steps(text: &str, heading: &str) -> Vec<Step> {
    let mut lines = text.lines().skip_while(|line| *line != heading).skip(1);
    let mut steps = Vec::new();
    let mut name = None;
    while let Some(line) = lines.next() {
        if line.starts_with("## ") {
            break;
        }
        if let Some((_, rest)) = line.split_once("save this as `") {
            name = rest.split('`').next().map(str::to_owned);
        }
        let Some(kind) = line.strip_prefix("```") else {
            continue;
        };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        match (kind, name.take()) {
            ("console", _) => typed(&block, &mut steps),
            (_, Some(name)) => steps.push(Step::Save(name, block.join("\n"))),
            _ => {}
        }
    }
    steps
}

fn typed(block: &[&str], steps: &mut Vec<Step>) {
    for line in block {
        let command = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
        match (command, steps.last_mut()) {
            (Some(command), _) => steps.push(Step::Run(command.to_owned(), Vec::new())),
            (None, Some(Step::Run(_, shown))) => shown.push((*line).to_owned()),
            (None, _) => panic!("output without a command: {line}"),
        }
    }
}

/// Begins what a step printed.
pub const MARK: char = '\x1e';

/// One shell for all steps, as a reader has one; it ends with the first that fails, and then does `last`.
pub fn script(steps: &[Step], last: &str) -> String {
    let mut script = format!("trap '{last}' EXIT\nexec 2>&1\n");
    for step in steps {
        script.push_str(&format!("printf '{MARK}'\n"));
        match step {
            Step::Run(command, _) => script.push_str(&format!("{command} || exit\n")),
            Step::Save(name, text) => {
                script.push_str(&format!("cat >{name} <<'SAVED' || exit\n{text}\nSAVED\n"));
            }
        }
    }
    script.push_str(&format!("trap - EXIT\nprintf '{MARK}'\n"));
    script
}

/// `…` stands for anything, a run of spaces for another one.
fn matches(line: &str, pattern: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, pattern) = (squeeze(line), squeeze(pattern));
    let mut parts = pattern.split('…');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    for (i, part) in parts.iter().enumerate() {
        let last = i + 1 == parts.len();
        rest = match rest.find(part) {
            _ if last => return rest.ends_with(part),
            Some(at) => &rest[at + part.len()..],
            None => return false,
        };
    }
    rest.is_empty()
}

/// The first line of `shown` that `output` lacks where it should be.
pub fn missing<'a>(output: &str, shown: &'a [String]) -> Option<&'a String> {
    let mut lines = output.lines();
    shown
        .iter()
        .find(|pattern| !lines.by_ref().any(|line| matches(line, pattern)))
}

/// The first step that did not show what it should: what was typed, and what came.
pub fn difference(steps: &[Step], output: &str) -> Option<String> {
    let printed: Vec<&str> = output.split(MARK).skip(1).collect();
    for (step, output) in steps.iter().zip(&printed) {
        if let Step::Run(command, shown) = step
            && let Some(line) = missing(output, shown)
        {
            return Some(format!("$ {command}\nlacks {line:?} in\n{output}"));
        }
    }
    // one mark more: behind the last step
    (printed.len() != steps.len() + 1).then(|| format!("it ended early:\n{output}"))
}

#[test]
fn patterns() {
    for (line, pattern, expected) in [
        ("up 3s (healthy)", "up … (healthy)", true),
        ("a  b   c", "a b c", true),
        ("up 3s", "up … (healthy)", false),
        (
            "default via 10.0.0.1 dev eth0 ",
            "default via … dev eth0",
            true,
        ),
        (
            "default via 10.0.0.1 dev eth1",
            "default via … dev eth0",
            false,
        ),
        ("x 1 y 2", "x … y …", true),
        ("x 1 z 2", "x … y …", false),
        ("exact", "exact", true),
        ("exactly", "exact", false),
    ] {
        assert_eq!(matches(line, pattern), expected, "{line:?} {pattern:?}");
    }
}

#[test]
fn sections() {
    let text = "## A\n```console\n$ no\n```\n## B\n```console\n$ one\nout\n$ two\n```\nsave this as `f`:\n\n```yaml\na: 1\n```\n## C\n";
    let run = |command: &str, shown: &[&str]| {
        Step::Run(
            command.into(),
            shown.iter().map(|s| s.to_string()).collect(),
        )
    };
    let expected = [
        run("one", &["out"]),
        run("two", &[]),
        Step::Save("f".into(), "a: 1".into()),
    ];
    assert_eq!(steps(text, "## B"), expected);
}
