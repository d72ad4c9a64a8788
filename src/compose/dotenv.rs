//! The `.env` format (compose-spec 05-services.md, "Env_file format").
//!
//! `KEY=value`, `export KEY=value`, `KEY: value`; `#` comments; single quotes are literal, double quotes know `\n`
//! `\r` `\t` `\"` `\\` `\$`; both may span lines; unquoted and double-quoted values are interpolated with the
//! surroundings first, then the keys above. A bare `KEY` is taken from the surroundings.
//!
//! *Invariants.* Pure; keys keep their order; any input ends in a list or in a message with file and line.

use std::collections::BTreeSet;

use super::Error;
use super::interpolate::{Lookup, substitute};

/// Reads a file. `None`: the key stands without value and the surroundings do not have it.
pub(super) fn parse(
    name: &str,
    bytes: &[u8],
    lookup: Lookup<'_>,
) -> Result<Vec<(String, Option<String>)>, Error> {
    let mut reader = Reader::new(name, text(name, bytes)?);
    let mut out: Vec<(String, Option<String>)> = Vec::new();
    while let Some((key, has_value)) = reader.key()? {
        let value = match has_value {
            false => lookup(&key),
            true => Some(reader.value(&|k| lookup(k).or_else(|| find(&out, k)))?),
        };
        out.push((key, value));
    }
    Ok(out)
}

/// `format: raw`: a line is `KEY=value`, the value is what stands there.
pub(super) fn parse_raw(
    name: &str,
    bytes: &[u8],
    lookup: Lookup<'_>,
) -> Result<Vec<(String, Option<String>)>, Error> {
    let lines = text(name, bytes)?.lines().enumerate();
    let lines = lines
        .map(|(i, l)| (i, l.trim_start()))
        .filter(|(_, l)| !l.is_empty() && !l.starts_with('#'));
    lines
        .map(|(i, line)| {
            let (key, value) = match line.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (line, lookup(line)),
            };
            match key.is_empty() || key.contains(char::is_whitespace) {
                true => Err(Error {
                    message: format!("{name}:{}:1: {key:?} is not a variable name", i + 1),
                }),
                false => Ok((key.to_owned(), value)),
            }
        })
        .collect()
}

fn text<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.contains('\0') => Err(Error {
            message: format!("{name}: holds a NUL byte"),
        }),
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(_) => Err(Error {
            message: format!("{name}: not UTF-8 text"),
        }),
    }
}

fn find(list: &[(String, Option<String>)], key: &str) -> Option<String> {
    list.iter()
        .rev()
        .find(|(k, _)| k == key)
        .and_then(|(_, v)| v.clone())
}

struct Reader<'a> {
    name: &'a str,
    text: &'a str,
    rest: &'a str,
    /// The line where counting stopped, and how much of the text was counted: keeps errors and long files cheap.
    counted: (usize, usize),
}

impl<'a> Reader<'a> {
    fn new(name: &'a str, text: &'a str) -> Self {
        Self {
            name,
            text,
            rest: text,
            counted: (1, 0),
        }
    }

    fn error(&mut self, what: impl std::fmt::Display) -> Error {
        let offset = self.text.len() - self.rest.len();
        let (line, from) = self.counted;
        let line = line
            + self
                .text
                .get(from..offset)
                .map_or(0, |s| s.matches('\n').count());
        self.counted = (line, offset);
        Error {
            message: format!("{}:{line}:1: {what}", self.name),
        }
    }

    /// The next key, and whether a value follows.
    fn key(&mut self) -> Result<Option<(String, bool)>, Error> {
        loop {
            self.rest = self.rest.trim_start();
            match self.rest.strip_prefix('#') {
                Some(comment) => self.rest = comment.split_once('\n').map_or("", |(_, next)| next),
                None => break,
            }
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        if let Some(tail) = self
            .rest
            .strip_prefix("export")
            .filter(|t| t.starts_with([' ', '\t']))
        {
            self.rest = tail.trim_start_matches([' ', '\t']);
        }
        let end = self
            .rest
            .find(|c: char| !(c.is_alphanumeric() || "_.-[]".contains(c)))
            .unwrap_or(self.rest.len());
        let (key, tail) = self.rest.split_at(end);
        let tail = tail.trim_start_matches([' ', '\t']);
        if key.is_empty() {
            let shown: String = self
                .rest
                .chars()
                .take_while(|c| *c != '\n')
                .take(20)
                .collect();
            return Err(self.error(format_args!("expected KEY=value, found {shown:?}")));
        }
        if let Some(value) = tail.strip_prefix(['=', ':']) {
            self.rest = value.trim_start_matches([' ', '\t']);
            return Ok(Some((key.to_owned(), true)));
        }
        match tail.is_empty() || tail.starts_with(['\n', '\r', '#']) {
            true => self.rest = tail,
            false => return Err(self.error(format_args!("expected = after {key:?}"))),
        }
        Ok(Some((key.to_owned(), false)))
    }

    fn value(&mut self, lookup: Lookup<'_>) -> Result<String, Error> {
        match self.rest.chars().next() {
            Some('\'') => self.single(),
            Some('"') => self.double(lookup),
            _ => {
                let line = self.rest.split('\n').next().unwrap_or_default();
                let value = without_comment(line);
                let value = self.interpolate(value, lookup)?;
                self.rest = self.rest.get(line.len()..).unwrap_or_default();
                Ok(value)
            }
        }
    }

    fn interpolate(&mut self, value: &str, lookup: Lookup<'_>) -> Result<String, Error> {
        substitute(value, lookup, &mut BTreeSet::new()).map_err(|e| self.error(e))
    }

    fn single(&mut self) -> Result<String, Error> {
        let body = self.rest.get(1..).unwrap_or_default();
        let Some((value, tail)) = body.split_once('\'') else {
            return Err(self.error("a single quote is not closed"));
        };
        self.after_quote(tail)?;
        Ok(value.to_owned())
    }

    fn double(&mut self, lookup: Lookup<'_>) -> Result<String, Error> {
        let mut value = String::new();
        let mut chars = self.rest.get(1..).unwrap_or_default().chars();
        loop {
            match chars.next() {
                Some('"') => break,
                Some('\\') => match chars.next() {
                    Some('n') => value.push('\n'),
                    Some('r') => value.push('\r'),
                    Some('t') => value.push('\t'),
                    Some(c @ ('"' | '\\')) => value.push(c),
                    // an escaped dollar must survive the interpolation below
                    Some('$') => value.push_str("$$"),
                    Some(c) => value.extend(['\\', c]),
                    None => return Err(self.error("a double quote is not closed")),
                },
                Some(c) => value.push(c),
                None => return Err(self.error("a double quote is not closed")),
            }
        }
        let value = self.interpolate(&value, lookup)?;
        self.after_quote(chars.as_str())?;
        Ok(value)
    }

    /// Only a comment may follow a closing quote on its line.
    fn after_quote(&mut self, tail: &'a str) -> Result<(), Error> {
        self.rest = tail;
        let line = tail.split('\n').next().unwrap_or_default();
        match line.trim_start() {
            "" => {}
            comment if comment.starts_with('#') => {}
            _ => return Err(self.error("text follows the closing quote")),
        }
        self.rest = tail.get(line.len()..).unwrap_or_default();
        Ok(())
    }
}

/// Cuts ` # comment` off an unquoted value.
fn without_comment(line: &str) -> &str {
    let mut end = line.len();
    for (i, _) in line.match_indices('#') {
        if line
            .get(..i)
            .is_some_and(|before| before.is_empty() || before.ends_with([' ', '\t']))
        {
            end = i;
            break;
        }
    }
    line.get(..end).unwrap_or(line).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<Vec<(String, Option<String>)>, String> {
        let lookup = |name: &str| (name == "HOST").then(|| "h".to_owned());
        parse(".env", text.as_bytes(), &lookup).map_err(|e| e.message)
    }

    /// Text, expected keys and values.
    type Row = (
        &'static str,
        &'static [(&'static str, Option<&'static str>)],
    );

    #[test]
    fn the_format() {
        let table: [Row; 20] = [
            ("", &[]),
            ("# c\n\n  # d\n", &[]),
            ("A=1", &[("A", Some("1"))]),
            ("A=1\r\nB=2\r\n", &[("A", Some("1")), ("B", Some("2"))]),
            ("A =  b c  \n", &[("A", Some("b c"))]),
            ("export A=1", &[("A", Some("1"))]),
            ("exported=1", &[("exported", Some("1"))]),
            ("A: 1", &[("A", Some("1"))]),
            ("A=", &[("A", Some(""))]),
            ("A=\nB=2", &[("A", Some("")), ("B", Some("2"))]),
            ("A=b # c", &[("A", Some("b"))]),
            ("A=b#c", &[("A", Some("b#c"))]),
            ("A='$HOST # x' # c", &[("A", Some("$HOST # x"))]),
            ("A=\"$HOST\\n\\$HOST\\\"\"", &[("A", Some("h\n$HOST\""))]),
            ("A=\"1\n2\"\nB=3", &[("A", Some("1\n2")), ("B", Some("3"))]),
            ("A='1\n2'\nB=3", &[("A", Some("1\n2")), ("B", Some("3"))]),
            (
                "A=x\nB=${A}y${HOST}",
                &[("A", Some("x")), ("B", Some("xyh"))],
            ),
            ("HOST\nNONE\n", &[("HOST", Some("h")), ("NONE", None)]),
            ("A=http://x?a=b&c", &[("A", Some("http://x?a=b&c"))]),
            (
                "HOST=other\nB=$HOST",
                &[("HOST", Some("other")), ("B", Some("h"))],
            ),
        ];
        for (text, expected) in table {
            let expected: Vec<_> = expected
                .iter()
                .map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned)))
                .collect();
            assert_eq!(run(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn errors_name_the_line() {
        let table = [
            ("A=1\n=2", ".env:2:1: expected KEY=value, found \"=2\""),
            ("A=1\nB 2", ".env:2:1: expected = after \"B\""),
            ("A='1", ".env:1:1: a single quote is not closed"),
            ("A=1\nB=\"1", ".env:2:1: a double quote is not closed"),
            ("A='1' x", ".env:1:1: text follows the closing quote"),
            (
                "A=${X:?no}",
                ".env:1:1: required variable X is missing a value: no",
            ),
            (
                "A=pa$1",
                ".env:1:1: invalid variable at \"$1\"; write $$ for a plain dollar sign",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(run(text).unwrap_err(), expected, "{text:?}");
        }
    }

    #[test]
    fn raw_lines_are_kept() {
        let got = parse_raw("f", b"# c\nA=\"$X\" # y\nNONE\n", &|_| None).unwrap();
        assert_eq!(
            got,
            [
                ("A".to_owned(), Some("\"$X\" # y".to_owned())),
                ("NONE".to_owned(), None)
            ]
        );
    }
}
