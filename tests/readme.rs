//! The tour of README.md works as typed: its commands, in its order, on a clean state, show what it says.
//!
//! All of it runs in network, mount and process namespaces of its own. Needs root; the packages apt, dpkg, util-linux, iproute2,
//! curl; and the network, until the packages of the images are in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What the tour does, in order.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A line after `$`, and the lines that its output must have, in this order.
    Run(String, Vec<String>),
    /// "save this as `NAME`:" and the block that follows.
    Save(String, String),
}

/// Steps of the section that begins with `heading`.
fn steps(text: &str, heading: &str) -> Vec<Step> {
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
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step::Run(command.to_owned(), Vec::new())),
            (None, Some(Step::Run(_, shown))) => shown.push((*line).to_owned()),
            (None, _) => panic!("output without a command: {line}"),
        }
    }
}

/// Begins what a step printed.
const MARK: char = '\x1e';

/// One shell for all steps, as a reader has one; it ends with the first that fails.
fn script(steps: &[Step]) -> String {
    let mut script = String::from("trap 'sampan -p tour down -v' EXIT\nexec 2>&1\n");
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
fn missing<'a>(output: &str, shown: &'a [String]) -> Option<&'a String> {
    let mut lines = output.lines();
    shown
        .iter()
        .find(|pattern| !lines.by_ref().any(|line| matches(line, pattern)))
}

fn sampan() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sampan"))
}

fn text(output: &Output) -> String {
    let bytes = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Fetches the packages of the images: the tour's namespace has no way out.
fn fill_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    for image in ["busybox", "nginx", "redis"] {
        let output = Command::new(sampan())
            .args(["image", "build"])
            .arg(Path::new("images").join(image))
            .arg("-o")
            .arg(folder.path().join(image))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{image}: {}", text(&output));
    }
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

#[test]
fn the_tour() {
    let root = env!("CARGO_MANIFEST_DIR");
    let readme = fs::read_to_string(Path::new(root).join("README.md")).unwrap();
    let steps = steps(&readme, "## Five minutes");
    assert!(steps.len() > 15, "{steps:?}");
    fill_the_cache();
    let path = format!(
        "{}:{}",
        sampan().parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let home = tempfile::tempdir().unwrap();
    // where the packages are that were fetched just now
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .unwrap_or_else(|| "/var/cache".into());
    let prepare = "ip link set lo up && exec bash -c \"$1\"";
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "--", "sh", "-c", prepare, "sh"])
        .arg(script(&steps))
        .current_dir(root)
        .env("PATH", path)
        .env("HOME", home.path())
        .env("XDG_CACHE_HOME", cache)
        .env("SAMPAN_ROOT", home.path().join("root"))
        .env("SAMPAN_STATE", home.path().join("state"))
        .output()
        .unwrap();
    let all = text(&output);
    let printed: Vec<&str> = all.split(MARK).skip(1).collect();
    for (step, output) in steps.iter().zip(&printed) {
        if let Step::Run(command, shown) = step {
            let missing = missing(output, shown);
            assert_eq!(missing, None, "$ {command}\n{output}");
        }
    }
    // one mark more: behind the last step
    assert_eq!(
        (output.status.code(), printed.len()),
        (Some(0), steps.len() + 1),
        "{all}"
    );
}
