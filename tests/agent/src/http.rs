//! One HTTP/1.1 request in, one answer out.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::ids;
use crate::rules::Refusal;

/// Longer than any head.
const HEAD: usize = 64 << 10;

/// Both directions of a connection.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A connection with what was read ahead.
pub(crate) struct Connection {
    pub(crate) io: Box<dyn Duplex>,
    buffer: Vec<u8>,
}

/// A request as it came.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path, percent-decoded.
    pub(crate) path: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        let (_, value) = self.headers.iter().find(found)?;
        Some(value)
    }

    /// Whether the connection ends with this request.
    pub(crate) fn last(&self) -> bool {
        let connection = self.header("Connection").unwrap_or_default();
        connection.eq_ignore_ascii_case("close")
    }
}

impl Connection {
    pub(crate) fn new(io: Box<dyn Duplex>) -> Connection {
        let buffer = Vec::new();
        Connection { io, buffer }
    }

    /// Whether more has come than one request.
    pub(crate) fn ahead(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next request; none at an orderly end.
    pub(crate) async fn request(&mut self) -> Result<Option<Request>, String> {
        let end = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            if self.buffer.len() > HEAD {
                return Err("head of a request is too long".into());
            }
            if !self.more().await? {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err("connection ended within a request's head".into()),
                };
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let head = std::str::from_utf8(&head).map_err(|error| error.to_string())?;
        let mut request = parse(head)?;
        let length = match request.header("Content-Length") {
            Some(length) => Some(length.parse::<usize>().map_err(|e| e.to_string())?),
            None => None,
        };
        let chunked = request.header("Transfer-Encoding").map(str::to_owned);
        request.body = match (length, chunked.as_deref()) {
            (Some(_), Some(_)) => return Err("Content-Length and Transfer-Encoding".into()),
            (None, Some("chunked")) => self.chunks().await?,
            (None, Some(other)) => return Err(format!("Transfer-Encoding {other}")),
            (length, None) => self.exactly(length.unwrap_or(0)).await?,
        };
        Ok(Some(request))
    }

    async fn more(&mut self) -> Result<bool, String> {
        let mut bytes = [0; 16 << 10];
        let read = self.io.read(&mut bytes).await.map_err(|e| e.to_string())?;
        self.buffer.extend_from_slice(&bytes[..read]);
        Ok(read > 0)
    }

    async fn exactly(&mut self, length: usize) -> Result<Vec<u8>, String> {
        while self.buffer.len() < length {
            if !self.more().await? {
                return Err("connection ended within a request's body".into());
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, String> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(end) = find(&self.buffer, b"\r\n") {
                    break end;
                }
                if !self.more().await? {
                    return Err("connection ended within a request's chunk".into());
                }
            };
            let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let line = std::str::from_utf8(&line[..end]).map_err(|e| e.to_string())?;
            let length = usize::from_str_radix(line, 16).map_err(|e| format!("chunk: {e}"))?;
            body.extend(self.exactly(length).await?);
            if self.exactly(2).await? != b"\r\n" {
                return Err("chunk without an end of line".into());
            }
            if length == 0 {
                return Ok(body);
            }
        }
    }

    /// Writes an answer that ends.
    pub(crate) async fn answer(&mut self, answer: &Refusal) -> std::io::Result<()> {
        let (code, reason) = (answer.code, reason(answer.code));
        let mut text = format!("HTTP/1.1 {code} {reason}\r\nDate: {}\r\n", date(ids::now()));
        for (name, value) in &answer.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !answer.body.is_empty() {
            text += "Content-Type: text/plain; charset=utf-8\r\n";
        }
        text += &format!(
            "Content-Length: {}\r\n\r\n{}",
            answer.body.len(),
            answer.body
        );
        self.write(text.as_bytes()).await
    }

    /// Writes the head of an answer that does not end.
    pub(crate) async fn open(&mut self, media: &str) -> std::io::Result<()> {
        let text = format!(
            "HTTP/1.1 200 OK\r\nDate: {}\r\nTransfer-Encoding: chunked\r\nContent-Type: {media}\r\n\r\n",
            date(ids::now())
        );
        self.write(text.as_bytes()).await
    }

    /// Writes bytes at once.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|part| part == needle)
}

fn parse(head: &str) -> Result<Request, String> {
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next().unwrap_or_default();
    let [method, target, "HTTP/1.1"] = line.split(' ').collect::<Vec<_>>()[..] else {
        return Err(format!("request line {line:?}"));
    };
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| format!("header {line:?}"))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let request = Request {
        method: method.to_owned(),
        path: decoded(target.split('?').next().unwrap_or_default()),
        headers,
        body: Vec::new(),
    };
    match request.header("Host") {
        Some(_) => Ok(request),
        None => Err("no Host header".into()),
    }
}

/// A path without percent signs.
fn decoded(path: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = path.as_bytes();
    while let [first, rest @ ..] = bytes {
        let hex = rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        (bytes, _) = match (first, byte) {
            (b'%', Some(byte)) => (&rest[2..], out.push(byte)),
            _ => (rest, out.push(*first)),
        };
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        202 => "Accepted",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        415 => "Unsupported Media Type",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Other",
    }
}

/// `Sat, 21 Nov 2026 01:03:06 GMT`, for a time since the epoch.
fn date(since: Duration) -> String {
    let seconds = since.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    // days since 1 March of year 0, in eras of 400 years
    let z = days + 719_468;
    let (era, day) = (z / 146_097, z % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let day = day - (153 * shifted + 2) / 5 + 1;
    let months = "Mar Apr May Jun Jul Aug Sep Oct Nov Dec Jan Feb";
    let month = months.split(' ').nth(shifted as usize).unwrap_or_default();
    let year = era * 400 + year + u64::from(shifted >= 10);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_795_222_986, "Sat, 21 Nov 2026 01:03:06 GMT"),
        ] {
            assert_eq!(date(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn paths_are_decoded() {
        assert_eq!(decoded("/slave%281%29/api"), "/slave(1)/api");
        assert_eq!(decoded("/100%/%zz"), "/100%/%zz");
    }
}
