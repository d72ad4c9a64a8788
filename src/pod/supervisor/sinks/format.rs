//! What lines look like in a sink. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::super::logs::Line;
use crate::compose::project::LogFormat;

/// How the lines of one file are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Style {
    /// The format.
    pub format: LogFormat,
    /// Several services share the file.
    pub shared: bool,
    /// Pod name.
    pub pod: String,
    /// By service: the labels that are wanted.
    pub labels: BTreeMap<String, BTreeMap<String, String>>,
}

/// A line as an object.
#[derive(Serialize)]
struct Object<'a> {
    time: String,
    pod: &'a str,
    service: &'a str,
    stream: &'static str,
    message: std::borrow::Cow<'a, str>,
    /// The line goes on in the next object, or ended without a line feed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<&'a BTreeMap<String, String>>,
}

impl Style {
    /// Adds a line.
    pub fn write(&self, line: &Line, out: &mut Vec<u8>) {
        match self.format {
            LogFormat::Raw => out.extend_from_slice(&line.text),
            LogFormat::Text => {
                if self.shared {
                    out.extend_from_slice(line.service.as_bytes());
                    out.extend_from_slice(b" | ");
                }
                out.extend_from_slice(&line.text);
                if !line.text.ends_with(b"\n") {
                    out.push(b'\n');
                }
            }
            LogFormat::Json => {
                let text = line.text.strip_suffix(b"\n").unwrap_or(&line.text);
                let time = jiff::Timestamp::from_nanosecond(line.time.into()).unwrap_or_default();
                let object = Object {
                    time: format!("{time:.9}"),
                    pod: &self.pod,
                    service: &line.service,
                    stream: line.stream,
                    message: String::from_utf8_lossy(text),
                    partial: text.len() == line.text.len(),
                    labels: self.labels.get(&line.service).filter(|l| !l.is_empty()),
                };
                // texts and a map of texts: there is nothing that cannot be written
                let _ = serde_json::to_writer(&mut *out, &object);
                out.push(b'\n');
            }
        }
    }

    /// A line is written before it has ended.
    pub fn at_once(&self, sources: usize) -> bool {
        self.format == LogFormat::Raw && sources == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let style = |format, shared| Style {
            format,
            shared,
            pod: "shop".into(),
            labels: [("web", vec![("a", "b")]), ("db", vec![])]
                .map(|(service, labels)| {
                    let labels = labels
                        .into_iter()
                        .map(|(k, v)| (k.to_owned(), v.to_owned()));
                    (service.to_owned(), labels.collect())
                })
                .into(),
        };
        let line = |service: &str, text: &[u8]| Line {
            service: service.into(),
            stream: "stderr",
            time: 1_700_000_000_000_000_001,
            text: text.to_vec(),
            end: 0,
        };
        for (style, line, expected) in [
            (style(LogFormat::Raw, true), line("web", b"a\xff"), &b"a\xff"[..]),
            (style(LogFormat::Text, false), line("web", b"a\n"), b"a\n"),
            (style(LogFormat::Text, true), line("web", b"a\n"), b"web | a\n"),
            (style(LogFormat::Text, true), line("db", b""), b"db | \n"),
            (
                style(LogFormat::Json, true),
                line("web", b"a \"\xff\n"),
                "{\"time\":\"2023-11-14T22:13:20.000000001Z\",\"pod\":\"shop\",\"service\":\"web\",\"stream\":\"stderr\",\"message\":\"a \\\"\u{fffd}\",\"labels\":{\"a\":\"b\"}}\n"
                    .as_bytes(),
            ),
            (
                style(LogFormat::Json, false),
                line("db", b"a"),
                b"{\"time\":\"2023-11-14T22:13:20.000000001Z\",\"pod\":\"shop\",\"service\":\"db\",\"stream\":\"stderr\",\"message\":\"a\",\"partial\":true}\n",
            ),
        ] {
            let mut out = Vec::new();
            style.write(&line, &mut out);
            assert_eq!(
                String::from_utf8_lossy(&out),
                String::from_utf8_lossy(expected)
            );
        }
    }
}
