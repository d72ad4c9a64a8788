//! What the text of a scalar means: YAML types, booleans, sizes, durations, ranges, shell-like words.
//!
//! *Invariants.* Pure, total, no panic on any input. YAML types follow what compose-go's reader does (YAML 1.2 plus
//! `0777` as octal, `1_000`), booleans follow its casts (`yes`, `on` … where a boolean is expected).

use std::time::Duration;

/// The type of a scalar without quotes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Plain {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str,
}

/// The type that YAML gives a scalar without quotes.
pub(super) fn plain(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Null,
        "true" | "True" | "TRUE" => return Plain::Bool(true),
        "false" | "False" | "FALSE" => return Plain::Bool(false),
        _ => {}
    }
    if text.len() > 64 || !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return Plain::Str;
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if let Some(value) = integer(digits) {
        return Plain::Int(sign * value);
    }
    match is_float(digits).then(|| text.parse::<f64>()) {
        Some(Ok(value)) => Plain::Float(value),
        _ => Plain::Str,
    }
}

fn integer(digits: &str) -> Option<i128> {
    let clean = digits.replace('_', "");
    let (radix, body) = match clean.as_bytes() {
        [b'0', b'x', ..] => (16, clean.get(2..)?),
        [b'0', b'o', ..] => (8, clean.get(2..)?),
        [b'0', b'b', ..] => (2, clean.get(2..)?),
        [b'0', _, ..] => (8, clean.get(1..)?),
        _ => (10, clean.as_str()),
    };
    // from_str_radix takes a sign of its own
    if !digits.starts_with(|c: char| c.is_ascii_digit())
        || !body.starts_with(|c: char| c.is_ascii_hexdigit())
    {
        return None;
    }
    let value = i128::from_str_radix(body, radix).ok()?;
    (value <= i128::from(u64::MAX)).then_some(value)
}

fn is_float(digits: &str) -> bool {
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((m, e)) => (m, Some(e.strip_prefix(['+', '-']).unwrap_or(e))),
        None => (digits, None),
    };
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    all_digits(whole)
        && all_digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|e| !e.is_empty() && all_digits(e))
}

/// A boolean, with the words that compose casts.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "t" | "y" | "yes" | "on" => Some(true),
        "false" | "0" | "f" | "n" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// A size as Docker writes it: units are powers of 1024 whether they say `k`, `kb` or `kib`
/// (compose-spec 11-extension.md, "Specifying byte values").
pub(super) fn bytes(text: &str) -> Option<u64> {
    size(text, 1024)
}

/// As [`bytes`], where Docker takes the same units for powers of 1000.
pub(super) fn decimal_bytes(text: &str) -> Option<u64> {
    size(text, 1000)
}

fn size(text: &str, thousand: u64) -> Option<u64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let power = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return None,
    };
    let factor = thousand.pow(power);
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    if !is_float(number) {
        return None;
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    (value < u64::MAX as f64).then_some(value as u64)
}

/// A Go duration (`1m30s`, `1.5h`, `0`); no sign, units down to ns.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(split);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(end);
        total = total.checked_add(nanoseconds(number, unit)?)?;
        rest = next;
    }
    let total = u64::try_from(total).ok()?;
    (!text.is_empty()).then(|| Duration::from_nanos(total))
}

fn nanoseconds(number: &str, unit: &str) -> Option<u128> {
    let scale: u128 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 18 {
        return None;
    }
    let digits = |s: &str| {
        if s.is_empty() {
            Some(0)
        } else {
            s.parse::<u64>().ok().map(u128::from)
        }
    };
    let part = digits(fraction)? * scale / 10u128.pow(fraction.len() as u32);
    digits(whole)?.checked_mul(scale)?.checked_add(part)
}

/// A duration as Go prints it closely enough to be read again.
pub(super) fn duration_text(value: Duration) -> String {
    match (value.as_secs(), value.subsec_nanos()) {
        (0, 0) => "0s".to_owned(),
        (s, 0) => format!("{s}s"),
        (0, n) => format!("{n}ns"),
        (s, n) => format!("{s}s{n}ns"),
    }
}

/// A port or a range of ports (`80`, `3000-3005`), both ends included; `low` is the smallest that is allowed.
pub(super) fn port_range(text: &str, low: u16) -> Option<(u16, u16)> {
    let number = |s: &str| {
        s.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| s.parse::<u16>().ok())?
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first >= low && first <= last).then_some((first, last))
}

/// Words as a shell splits them: quotes and backslashes, no expansion. The error says what is open.
pub(super) fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut out = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => out.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("a single quote is not closed"),
                    }
                }
            }
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err("it ends with a backslash"),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    out.extend(word);
    Ok(out)
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), &'static str> {
    loop {
        match chars.next() {
            Some('"') => return Ok(()),
            Some('\\') => match chars.next() {
                Some('\n') => {}
                // POSIX shell, 2.2.3: a backslash only quotes these inside double quotes
                Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                Some(c) => word.extend(['\\', c]),
                None => break,
            },
            Some(c) => word.push(c),
            None => break,
        }
    }
    Err("a double quote is not closed")
}

/// The known word nearest to a mistyped one.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let limit = 1 + word.len() / 4;
    known
        .map(|k| (distance(word, k), k))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, k)| k)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut last = i + 1;
        let mut next = vec![last];
        for (pair, cb) in row.windows(2).zip(&b) {
            last = (pair[0] + usize::from(ca != *cb))
                .min(pair[1] + 1)
                .min(last + 1);
            next.push(last);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_have_the_types_of_compose() {
        let table = [
            ("", Plain::Null),
            ("~", Plain::Null),
            ("True", Plain::Bool(true)),
            ("yes", Plain::Str),
            ("on", Plain::Str),
            ("0777", Plain::Int(511)),
            ("0o17", Plain::Int(15)),
            ("0x1f", Plain::Int(31)),
            ("1_000", Plain::Int(1000)),
            ("-5", Plain::Int(-5)),
            ("08", Plain::Float(8.0)),
            ("1.50", Plain::Float(1.5)),
            (".5", Plain::Float(0.5)),
            ("1e3", Plain::Float(1000.0)),
            ("22:22", Plain::Str),
            ("1.2.3", Plain::Str),
            ("--5", Plain::Str),
            ("-", Plain::Str),
            (".", Plain::Str),
            ("2024-01-01", Plain::Str),
        ];
        for (text, expected) in table {
            assert_eq!(plain(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        let table = [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("2b", Some(2)),
            ("1k", Some(1024)),
            ("64m", Some(64 << 20)),
            ("64MB", Some(64 << 20)),
            ("1 GiB", Some(1 << 30)),
            ("1.5g", Some(3 << 29)),
            ("1t", Some(1 << 40)),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1x", None),
            ("1.2.3m", None),
            ("99999999999p", None),
            ("18446744073709551616", None),
        ];
        for (text, expected) in table {
            assert_eq!(bytes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        let ms = Duration::from_millis;
        let table = [
            ("0", Some(ms(0))),
            ("90s", Some(ms(90_000))),
            ("1m30s", Some(ms(90_000))),
            ("1.5h", Some(ms(5_400_000))),
            ("250ms", Some(ms(250))),
            (".5s", Some(ms(500))),
            ("1us", Some(Duration::from_nanos(1000))),
            ("", None),
            ("5", None),
            ("s", None),
            ("1d", None),
            ("-1s", None),
            ("1..5s", None),
            ("99999999999999h", None),
        ];
        for (text, expected) in table {
            assert_eq!(duration(text), expected, "{text:?}");
        }
        for d in [ms(0), ms(1), ms(90_000), ms(1500)] {
            assert_eq!(duration(&duration_text(d)), Some(d));
        }
    }

    #[test]
    fn words_are_split_as_a_shell_does() {
        let table: [(&str, Result<&[&str], &str>); 11] = [
            ("", Ok(&[])),
            ("a b\tc\n", Ok(&["a", "b", "c"])),
            (
                "sh -c 'echo \"hi\" $X'",
                Ok(&["sh", "-c", "echo \"hi\" $X"]),
            ),
            ("a\"b c\"d", Ok(&["ab cd"])),
            ("'' \"\"", Ok(&["", ""])),
            ("a\\ b", Ok(&["a b"])),
            ("\"a\\\"b\\n\"", Ok(&["a\"b\\n"])),
            ("a \\\n b", Ok(&["a", "b"])),
            ("'a", Err("a single quote is not closed")),
            ("\"a", Err("a double quote is not closed")),
            ("a\\", Err("it ends with a backslash")),
        ];
        for (text, expected) in table {
            let expected = expected.map(|w| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
            assert_eq!(words(text), expected, "{text:?}");
        }
    }

    #[test]
    fn ranges() {
        let table = [
            ("80", Some((80, 80))),
            ("1-3", Some((1, 3))),
            ("3-1", None),
            ("0", None),
            ("65536", None),
            ("+1", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(port_range(text, 1), expected, "{text:?}");
        }
    }

    #[test]
    fn the_nearest_word_is_near() {
        let known = ["image", "environment", "env_file"];
        assert_eq!(nearest("imgae", known.into_iter()), Some("image"));
        assert_eq!(
            nearest("enviroment", known.into_iter()),
            Some("environment")
        );
        assert_eq!(nearest("frobnicate", known.into_iter()), None);
    }
}
