//! A client that knows nothing: bytes out, bytes in.

#![allow(dead_code)] // each test file uses a part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    /// Head without the date, as it came.
    pub head: String,
    pub body: String,
}

/// Sends bytes on a connection of their own and reads the head of the answer.
pub fn open(endpoint: &str, bytes: &[u8]) -> (Answer, BufReader<TcpStream>) {
    let mut socket = TcpStream::connect(endpoint).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    socket.write_all(bytes).unwrap();
    let mut reader = BufReader::new(socket);
    let mut head = String::new();
    loop {
        let mut line = String::new();
        assert!(
            reader.read_line(&mut line).unwrap() > 0,
            "ended after {head:?}"
        );
        if line == "\r\n" {
            break;
        }
        if !line.starts_with("Date: ") {
            head += &line;
        }
    }
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = String::new();
    (Answer { code, head, body }, reader)
}

/// Sends a whole request and reads the whole answer.
pub fn exchange(endpoint: &str, bytes: &[u8]) -> Answer {
    let (mut answer, mut reader) = open(endpoint, bytes);
    let length = answer
        .head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.unwrap_or("0").parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    answer.body = String::from_utf8(body).unwrap();
    answer
}

/// A POST of JSON.
pub fn post(path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let mut text = format!(
        "POST {path} HTTP/1.1\r\nHost: agent\r\nContent-Length: {}\r\n",
        body.len()
    );
    for header in headers {
        text += &format!("{header}\r\n");
    }
    (text + "\r\n" + body).into_bytes()
}

/// The body of an answer in chunks.
pub struct Chunks<R>(pub R);

impl<R: BufRead> Chunks<R> {
    /// The next chunk; none at the end of the body or of the connection.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.0.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
        let mut chunk = vec![0; length + 2];
        self.0.read_exact(&mut chunk).ok()?;
        assert_eq!(chunk.split_off(length), b"\r\n");
        (length > 0).then_some(chunk)
    }
}

/// One record, that is one chunk, as JSON.
pub fn record(chunk: &[u8]) -> Value {
    let text = std::str::from_utf8(chunk).unwrap();
    let (length, record) = text.split_once('\n').unwrap();
    assert_eq!(length.parse::<usize>().unwrap(), record.len());
    serde_json::from_str(record).unwrap()
}
