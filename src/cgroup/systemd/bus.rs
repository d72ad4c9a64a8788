//! A client for the few D-Bus calls that systemd's manager needs (D-Bus Specification, "Message Protocol").
//!
//! Crates for it bring threads, an async runtime or a C library; this is one socket, blocking, in a process with one thread.
//!
//! *Invariants:* what comes in is bounded in size and time and never trusted: a value that does not fit is an error of the system's
//! kind `InvalidData`. A failed call names the error as the manager did.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest message that is taken, in bytes; the protocol's own limit is 128 MiB.
const MESSAGE_MAX: usize = 1 << 20;
/// How long the manager may take for a call or a job.
const PATIENCE: Duration = Duration::from_secs(30);

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// A value of one of the types that unit properties have.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `as`
    Texts(Vec<String>),
    /// `au`
    U32s(Vec<u32>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
}

/// A property of a unit: `(sv)`.
pub type Property = (String, Value);

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::I32(_) => "i",
            Value::U32(_) => "u",
            Value::I64(_) => "x",
            Value::U64(_) => "t",
            Value::Text(_) => "s",
            Value::Bytes(_) => "ay",
            Value::Texts(_) => "as",
            Value::U32s(_) => "au",
            Value::Pairs(_) => "a(ss)",
        }
    }
}

/// Why a call failed.
#[derive(Debug)]
pub enum Failure {
    /// The manager refused: name of the error, its words.
    Refused(String, String),
    /// It could not be asked.
    Io(io::Error),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Refused(name, text) if text.is_empty() => f.write_str(name),
            Failure::Refused(name, text) => write!(f, "{text} ({name})"),
            Failure::Io(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s", PATIENCE.as_secs()),
            ),
            _ => error,
        })
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("malformed D-Bus message: {what}"),
    )
}

/// Arguments of a call in wire form, little-endian; each value stands at a multiple of its size.
#[derive(Debug, Default)]
pub struct Body {
    signature: String,
    bytes: Vec<u8>,
}

impl Body {
    /// `s`
    pub fn text(mut self, text: &str) -> Body {
        self.signature.push('s');
        put_text(&mut self.bytes, text);
        self
    }

    /// `b`
    pub fn bool(mut self, value: bool) -> Body {
        self.signature.push('b');
        put_u32(&mut self.bytes, u32::from(value));
        self
    }

    /// `a(sv)`
    pub fn properties(mut self, properties: &[Property]) -> Body {
        self.signature.push_str("a(sv)");
        put_array(&mut self.bytes, 8, properties, |bytes, (name, value)| {
            align(bytes, 8);
            put_text(bytes, name);
            put_signature(bytes, value.signature());
            put_value(bytes, value);
        });
        self
    }

    /// An empty `a(sa(sv))`, units that start with this one.
    pub fn no_units(mut self) -> Body {
        self.signature.push_str("a(sa(sv))");
        put_array(&mut self.bytes, 8, &[(); 0], |_, ()| {});
        self
    }
}

fn align(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_u32(bytes: &mut Vec<u8>, value: u32) {
    align(bytes, 4);
    bytes.extend(value.to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_u32(bytes, text.len() as u32);
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn put_signature(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(text.len() as u8);
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

/// Length in bytes, padding to the first element (not counted), elements.
fn put_array<T>(bytes: &mut Vec<u8>, to: usize, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    put_u32(bytes, 0);
    let at = bytes.len();
    align(bytes, to);
    let start = bytes.len();
    for item in items {
        put(bytes, item);
    }
    let length = (bytes.len() - start) as u32;
    if let Some(place) = bytes.get_mut(at - 4..at) {
        place.copy_from_slice(&length.to_le_bytes());
    }
}

fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Bool(value) => put_u32(bytes, u32::from(*value)),
        Value::I32(value) => put_u32(bytes, value.cast_unsigned()),
        Value::U32(value) => put_u32(bytes, *value),
        Value::I64(value) => {
            align(bytes, 8);
            bytes.extend(value.to_le_bytes());
        }
        Value::U64(value) => {
            align(bytes, 8);
            bytes.extend(value.to_le_bytes());
        }
        Value::Text(text) => put_text(bytes, text),
        Value::Bytes(list) => put_array(bytes, 1, list, |bytes, byte| bytes.push(*byte)),
        Value::Texts(list) => put_array(bytes, 4, list, |bytes, text| put_text(bytes, text)),
        Value::U32s(list) => put_array(bytes, 4, list, |bytes, value| put_u32(bytes, *value)),
        Value::Pairs(list) => put_array(bytes, 8, list, |bytes, (one, two)| {
            align(bytes, 8);
            put_text(bytes, one);
            put_text(bytes, two);
        }),
    }
}

/// What is called: path, interface, member.
#[derive(Debug, Clone, Copy)]
pub struct Method<'a>(pub &'a str, pub &'a str, pub &'a str);

/// A method call as bytes.
fn message(serial: u32, destination: &str, method: Method<'_>, body: &Body) -> Vec<u8> {
    let mut bytes = vec![b'l', METHOD_CALL, 0, 1];
    put_u32(&mut bytes, body.bytes.len() as u32);
    put_u32(&mut bytes, serial);
    let Method(path, interface, member) = method;
    let fields = [
        (1, "o", path),
        (2, "s", interface),
        (3, "s", member),
        (6, "s", destination),
        (8, "g", &body.signature),
    ];
    let fields: Vec<_> = fields
        .iter()
        .filter(|(.., text)| !text.is_empty())
        .collect();
    put_array(&mut bytes, 8, &fields, |bytes, (code, kind, text)| {
        align(bytes, 8);
        bytes.push(*code);
        put_signature(bytes, kind);
        match *kind {
            "g" => put_signature(bytes, text),
            _ => put_text(bytes, text),
        }
    });
    align(&mut bytes, 8);
    bytes.extend(&body.bytes);
    bytes
}

/// Reads values out of a message.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let end = self
            .at
            .checked_add(count)
            .ok_or_else(|| invalid("length"))?;
        let found = self
            .bytes
            .get(self.at..end)
            .ok_or_else(|| invalid("too short"))?;
        self.at = end;
        Ok(found)
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn u8(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.align(4);
        let bytes = self.take(4)?.try_into().map_err(|_| invalid("number"))?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn string(&mut self, length: usize) -> io::Result<String> {
        let text = self.take(length)?;
        self.take(1)?;
        String::from_utf8(text.to_vec()).map_err(|_| invalid("text"))
    }

    /// `s` or `o`
    fn text(&mut self) -> io::Result<String> {
        let length = self.u32()? as usize;
        self.string(length)
    }

    /// `g`
    fn signature(&mut self) -> io::Result<String> {
        let length = usize::from(self.u8()?);
        self.string(length)
    }
}

/// A message that came in, as far as we ask.
#[derive(Debug, Default, PartialEq)]
struct Incoming {
    kind: u8,
    reply_to: u32,
    member: String,
    error: String,
    signature: String,
    body: Vec<u8>,
}

/// The fixed part: (length of the header fields, of the body).
fn lengths(fixed: &[u8; 16]) -> io::Result<(usize, usize)> {
    if fixed.first() != Some(&b'l') {
        return Err(invalid("not little-endian"));
    }
    let mut reader = Reader {
        bytes: fixed,
        at: 4,
    };
    let body = reader.u32()? as usize;
    reader.u32()?;
    let fields = reader.u32()? as usize;
    if fields > MESSAGE_MAX || body > MESSAGE_MAX {
        return Err(invalid("too long"));
    }
    Ok((fields, body))
}

/// `bytes` is a whole message.
fn parse(bytes: &[u8], fields: usize) -> io::Result<Incoming> {
    let mut found = Incoming {
        kind: bytes.get(1).copied().unwrap_or_default(),
        ..Incoming::default()
    };
    let mut reader = Reader { bytes, at: 16 };
    while reader.at < 16 + fields {
        reader.align(8);
        let code = reader.u8()?;
        let kind = reader.signature()?;
        match (code, kind.as_str()) {
            (3, "s") => found.member = reader.text()?,
            (4, "s") => found.error = reader.text()?,
            (5, "u") => found.reply_to = reader.u32()?,
            (8, "g") => found.signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            _ => return Err(invalid("header field")),
        }
    }
    reader.align(8);
    found.body = bytes.get(reader.at..).unwrap_or_default().to_vec();
    Ok(found)
}

/// A connection to a manager.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    serial: u32,
    /// Jobs that ended: path and result, as they were told before somebody asked.
    ended: Vec<(String, String)>,
}

const MANAGER: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";

impl Connection {
    /// Connects to a socket of the manager itself, or to a message `bus`.
    pub fn open(path: &Path, bus: bool) -> Result<Connection, Failure> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Connection {
            socket,
            serial: 0,
            ended: Vec::new(),
        };
        connection.authenticate()?;
        if bus {
            let hello = Method("/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello");
            connection.call_at("org.freedesktop.DBus", hello, &Body::default())?;
        }
        Ok(connection)
    }

    /// As whom the kernel says that we are: no name is sent, it would be another one in a user namespace.
    fn authenticate(&mut self) -> io::Result<()> {
        self.socket
            .write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        for expected in ["DATA", "OK "] {
            let line = self.line()?;
            if !line.starts_with(expected) {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!("the bus refused to authenticate us: {line:?}"),
                ));
            }
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            if line.len() > 512 {
                return Err(invalid("line too long"));
            }
            self.socket.read_exact(&mut byte)?;
            line.extend(byte);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Calls a method of the manager; the body of its answer.
    pub fn manager(&mut self, member: &str, body: &Body) -> Result<Answer, Failure> {
        let method = Method(MANAGER, INTERFACE, member);
        self.call_at("org.freedesktop.systemd1", method, body)
    }

    /// A property of the manager, a text.
    pub fn property(&mut self, name: &str) -> Result<String, Failure> {
        let get = Method(MANAGER, "org.freedesktop.DBus.Properties", "Get");
        let body = Body::default().text(INTERFACE).text(name);
        let answer = self.call_at("org.freedesktop.systemd1", get, &body)?;
        let mut reader = Reader {
            bytes: &answer.0,
            at: 0,
        };
        match reader.signature()?.as_str() {
            "s" => Ok(reader.text()?),
            other => Err(invalid(&format!("property {name} of type {other}")).into()),
        }
    }

    fn call_at(&mut self, to: &str, method: Method<'_>, body: &Body) -> Result<Answer, Failure> {
        self.serial += 1;
        let serial = self.serial;
        self.socket.write_all(&message(serial, to, method, body))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let incoming = self.receive(deadline)?;
            match incoming.kind {
                METHOD_RETURN if incoming.reply_to == serial => return Ok(Answer(incoming.body)),
                ERROR if incoming.reply_to == serial => {
                    let mut reader = Reader {
                        bytes: &incoming.body,
                        at: 0,
                    };
                    let text = if incoming.signature.starts_with('s') {
                        reader.text()?
                    } else {
                        String::new()
                    };
                    return Err(Failure::Refused(incoming.error, text));
                }
                _ => {}
            }
        }
    }

    /// Waits for the end of a job; its result, `done` if all went well.
    pub fn job_result(&mut self, job: &str) -> Result<String, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(path, _)| path == job) {
                return Ok(result.clone());
            }
            self.receive(deadline)?;
        }
    }

    /// The next message; notes what it says of jobs.
    fn receive(&mut self, deadline: Instant) -> io::Result<Incoming> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        let mut fixed = [0; 16];
        self.socket.read_exact(&mut fixed)?;
        let (fields, body) = lengths(&fixed)?;
        let mut bytes = fixed.to_vec();
        bytes.resize((16 + fields).next_multiple_of(8) + body, 0);
        self.socket
            .read_exact(bytes.get_mut(16..).unwrap_or_default())?;
        let incoming = parse(&bytes, fields)?;
        if incoming.kind == SIGNAL
            && incoming.member == "JobRemoved"
            && incoming.signature == "uoss"
        {
            let mut reader = Reader {
                bytes: &incoming.body,
                at: 0,
            };
            reader.u32()?;
            let job = reader.text()?;
            reader.text()?;
            let result = reader.text()?;
            self.ended.push((job, result));
        }
        Ok(incoming)
    }
}

/// The body of an answer.
#[derive(Debug)]
pub struct Answer(Vec<u8>);

impl Answer {
    /// Its first value, a text or an object path.
    pub fn text(&self) -> Result<String, Failure> {
        Ok(Reader {
            bytes: &self.0,
            at: 0,
        }
        .text()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_where_they_belong() {
        let body = Body::default()
            .text("a")
            .bool(true)
            .properties(&[("N".to_owned(), Value::U64(7))]);
        assert_eq!(body.signature, "sba(sv)");
        #[rustfmt::skip]
        let expected = [
            1, 0, 0, 0, b'a', 0, 0, 0,
            1, 0, 0, 0,
            24, 0, 0, 0,
            1, 0, 0, 0, b'N', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0,
            7, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(body.bytes, expected);
        // an empty array has its padding all the same
        let empty = Body::default().text("a").no_units();
        assert_eq!(
            empty.bytes,
            [1, 0, 0, 0, b'a', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let body = Body::default().text("hello");
        let bytes = message(9, "to.me", Method("/p", "i.f", "M"), &body);
        let fixed: &[u8; 16] = bytes.first_chunk().unwrap();
        let (fields, length) = lengths(fixed).unwrap();
        assert_eq!((16 + fields).next_multiple_of(8) + length, bytes.len());
        let found = parse(&bytes, fields).unwrap();
        let expected = Incoming {
            kind: METHOD_CALL,
            member: "M".to_owned(),
            signature: "s".to_owned(),
            body: body.bytes,
            ..Incoming::default()
        };
        assert_eq!(found, expected);
    }

    proptest::proptest! {
        #[test]
        fn nonsense_is_refused(mut bytes in proptest::collection::vec(0u8.., 16..200)) {
            bytes[0] = b'l';
            let fixed: &[u8; 16] = bytes.first_chunk().unwrap();
            if let Ok((fields, _)) = lengths(fixed) {
                let _ = parse(&bytes, fields);
            }
            let _ = parse(&bytes, bytes.len() - 16);
        }
    }
}
