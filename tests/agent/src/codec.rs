//! Protobuf and JSON of any message of the schema, as `serde_json::Value` in between.
//!
//! Owns both encodings. The value in between is the JSON of the agent without the defaults it writes: names of fields
//! and enumerations, base64 for bytes, `"Infinity"` for infinite doubles. *Invariants*: what comes in is checked to
//! the letter: wire types, ranges, UTF-8, required fields. A field or an enumeration's value that nobody knows, which
//! a real agent would skip, is told as an oddity. Leaves meaning to `rules`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::schema::{Field, Kind, schema};

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/x-protobuf`.
    Protobuf,
}

impl Encoding {
    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Protobuf => "application/x-protobuf",
        }
    }
}

/// A message that came in.
#[derive(Debug)]
pub struct Decoded {
    /// Its content.
    pub value: Value,
    /// What a real agent skips without a word, by path: unknown fields and values, fields twice.
    pub oddities: Vec<String>,
}

/// Decodes a message of type `name`.
pub fn decode(encoding: Encoding, name: &str, bytes: &[u8]) -> Result<Decoded, String> {
    let mut oddities = Vec::new();
    let value = match encoding {
        Encoding::Protobuf => from_protobuf(name, bytes, name, &mut oddities)?,
        Encoding::Json => {
            let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            from_json(name, &value, name, &mut oddities)?
        }
    };
    Ok(Decoded { value, oddities })
}

/// Encodes a message of type `name`. An error says which field is wrong.
pub fn encode(encoding: Encoding, name: &str, value: &Value) -> Result<Vec<u8>, String> {
    // whatever goes out is checked first
    let mut oddities = Vec::new();
    let value = from_json(name, value, name, &mut oddities)?;
    if let Some(first) = oddities.first() {
        return Err(first.clone());
    }
    Ok(match encoding {
        Encoding::Json => with_defaults(name, &value).to_string().into_bytes(),
        Encoding::Protobuf => to_protobuf(name, &value),
    })
}

// ---- JSON

fn from_json(
    name: &str,
    value: &Value,
    path: &str,
    odd: &mut Vec<String>,
) -> Result<Value, String> {
    let Value::Object(object) = value else {
        return Err(format!("{path}: not an object"));
    };
    let fields = schema().message(name);
    let mut out = Map::new();
    for (key, value) in object {
        let path = format!("{path}.{key}");
        let Some(field) = fields.iter().find(|field| field.name == *key) else {
            odd.push(format!("{path}: unknown field"));
            continue;
        };
        if value.is_null() {
            continue;
        }
        let read = match (field.repeated, value) {
            (true, Value::Array(items)) => {
                let items = items.iter().enumerate();
                let items: Result<Vec<Option<Value>>, String> = items
                    .map(|(i, item)| one_json(&field.kind, item, &format!("{path}[{i}]"), odd))
                    .collect();
                let items: Vec<Value> = items?.into_iter().flatten().collect();
                (!items.is_empty()).then_some(Value::Array(items))
            }
            (true, _) => return Err(format!("{path}: not a list")),
            (false, value) => one_json(&field.kind, value, &path, odd)?,
        };
        if let Some(read) = read {
            out.insert(key.clone(), read);
        }
    }
    required(fields, &out, path)?;
    Ok(Value::Object(out))
}

fn required(fields: &[Field], object: &Map<String, Value>, path: &str) -> Result<(), String> {
    let missing = |field: &&Field| field.required && !object.contains_key(&field.name);
    match fields.iter().find(missing) {
        Some(field) => Err(format!("{path}: missing required field {}", field.name)),
        None => Ok(()),
    }
}

/// One value; none for an enumeration's value that nobody knows.
fn one_json(
    kind: &Kind,
    value: &Value,
    path: &str,
    odd: &mut Vec<String>,
) -> Result<Option<Value>, String> {
    let wrong = || format!("{path}: {value} is no {kind:?}");
    // strings that hold a number are taken for numbers
    let number = match value {
        Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
        _ => value.clone(),
    };
    let signed = |low: i64, high: i64| {
        let n = number.as_i64().filter(|n| (low..=high).contains(n));
        n.map(|n| json!(n)).ok_or_else(wrong)
    };
    let unsigned = |high: u64| {
        let n = number.as_u64().filter(|n| *n <= high);
        n.map(|n| json!(n)).ok_or_else(wrong)
    };
    Ok(Some(match kind {
        Kind::Bool => json!(value.as_bool().ok_or_else(wrong)?),
        Kind::Int32 => signed(i32::MIN.into(), i32::MAX.into())?,
        Kind::Int64 => signed(i64::MIN, i64::MAX)?,
        Kind::Uint32 => unsigned(u32::MAX.into())?,
        Kind::Uint64 => unsigned(u64::MAX)?,
        Kind::Double => match value.as_str() {
            Some("Infinity" | "-Infinity") => value.clone(),
            _ => json!(number.as_f64().ok_or_else(wrong)?),
        },
        Kind::String => json!(value.as_str().ok_or_else(wrong)?),
        Kind::Bytes => {
            let text = value.as_str().ok_or_else(wrong)?;
            STANDARD.decode(text).map_err(|e| format!("{path}: {e}"))?;
            value.clone()
        }
        Kind::Enum(name) => {
            let text = value.as_str().ok_or_else(wrong)?;
            if schema().value_number(name, text).is_none() {
                odd.push(format!("{path}: unknown {name} {text}"));
                return Ok(None);
            }
            value.clone()
        }
        Kind::Message(name) => from_json(name, value, path, odd)?,
        Kind::Map(kind) => {
            let Value::Object(object) = value else {
                return Err(wrong());
            };
            let mut out = Map::new();
            for (key, value) in object {
                if let Some(value) = one_json(kind, value, &format!("{path}[{key}]"), odd)? {
                    out.insert(key.clone(), value);
                }
            }
            Value::Object(out)
        }
    }))
}

/// As the agent writes it: defaults of fields that are not set stand there too.
fn with_defaults(name: &str, value: &Value) -> Value {
    let mut out = Map::new();
    for field in schema().message(name) {
        let nested = |value: &Value| match &field.kind {
            Kind::Message(name) => with_defaults(name, value),
            Kind::Map(kind) => match (&**kind, value) {
                (Kind::Message(name), Value::Object(object)) => object
                    .iter()
                    .map(|(key, value)| (key.clone(), with_defaults(name, value)))
                    .collect(),
                _ => value.clone(),
            },
            _ => value.clone(),
        };
        let value = match (value.get(&field.name), &field.default) {
            (Some(Value::Array(items)), _) if field.repeated => {
                Value::Array(items.iter().map(nested).collect())
            }
            (Some(value), _) => nested(value),
            (None, Some(default)) => match field.kind {
                Kind::Enum(_) | Kind::String => json!(default),
                _ => serde_json::from_str(default).expect("default of the schema"),
            },
            (None, None) => continue,
        };
        out.insert(field.name.clone(), value);
    }
    Value::Object(out)
}

// ---- protobuf

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;

/// Reads one value of the wire.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (byte, rest) = self.bytes.split_first().ok_or("varint is cut short")?;
            self.bytes = rest;
            if shift == 63 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("varint is longer than 64 bits".into())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > self.bytes.len() {
            return Err("field is cut short".into());
        }
        let (taken, rest) = self.bytes.split_at(length);
        self.bytes = rest;
        Ok(taken)
    }
}

fn wire_type(kind: &Kind) -> u8 {
    match kind {
        Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 | Kind::Enum(_) => {
            VARINT
        }
        Kind::Double => FIXED64,
        Kind::String | Kind::Bytes | Kind::Message(_) | Kind::Map(_) => LENGTH,
    }
}

fn from_protobuf(
    name: &str,
    bytes: &[u8],
    path: &str,
    odd: &mut Vec<String>,
) -> Result<Value, String> {
    let fields = schema().message(name);
    let mut out = Map::new();
    let mut reader = Reader { bytes };
    while !reader.bytes.is_empty() {
        let at = |error: String| format!("{path}: {error}");
        let key = reader.varint().map_err(at)?;
        let (number, wire) = (key >> 3, (key & 7) as u8);
        let Some(field) = fields.iter().find(|f| u64::from(f.number) == number) else {
            odd.push(format!("{path}: unknown field {number}"));
            match wire {
                VARINT => reader.varint().map(drop),
                FIXED64 => reader.take(8).map(drop),
                LENGTH => reader.varint().and_then(|n| reader.take(n)).map(drop),
                5 => reader.take(4).map(drop),
                _ => Err(format!("field {number} has wire type {wire}")),
            }
            .map_err(at)?;
            continue;
        };
        let path = format!("{path}.{}", field.name);
        if wire != wire_type(&field.kind) {
            return Err(format!("{path}: wire type {wire}"));
        }
        let value = one_protobuf(&field.kind, &mut reader, &path, odd)?;
        let Some(value) = value else { continue };
        match (&field.kind, field.repeated) {
            (Kind::Map(_), _) => {
                let entries = out.entry(&field.name).or_insert_with(|| json!({}));
                let (Value::Object(entries), Value::Object(new)) = (entries, value) else {
                    unreachable!("maps are objects")
                };
                entries.extend(new);
            }
            (_, true) => {
                let list = out.entry(&field.name).or_insert_with(|| json!([]));
                list.as_array_mut().expect("list").push(value);
            }
            (_, false) => {
                if out.insert(field.name.clone(), value).is_some() {
                    odd.push(format!("{path}: set twice"));
                }
            }
        }
    }
    required(fields, &out, path)?;
    Ok(Value::Object(out))
}

fn one_protobuf(
    kind: &Kind,
    reader: &mut Reader<'_>,
    path: &str,
    odd: &mut Vec<String>,
) -> Result<Option<Value>, String> {
    let at = |error: String| format!("{path}: {error}");
    let raw = match wire_type(kind) {
        VARINT => reader.varint().map_err(at)?,
        FIXED64 => {
            let bytes = reader.take(8).map_err(at)?;
            u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
        }
        _ => {
            let bytes = reader.varint().and_then(|n| reader.take(n)).map_err(at)?;
            return length_delimited(kind, bytes, path, odd).map(Some);
        }
    };
    let signed = raw as i64;
    Ok(Some(match kind {
        Kind::Bool if raw <= 1 => json!(raw == 1),
        Kind::Int32 => json!(i32::try_from(signed).map_err(|e| at(e.to_string()))?),
        Kind::Int64 => json!(signed),
        Kind::Uint32 => json!(u32::try_from(raw).map_err(|e| at(e.to_string()))?),
        Kind::Uint64 => json!(raw),
        Kind::Double => match f64::from_bits(raw) {
            f64::INFINITY => json!("Infinity"),
            f64::NEG_INFINITY => json!("-Infinity"),
            value if value.is_nan() => return Err(at("not a number".into())),
            value => json!(value),
        },
        Kind::Enum(name) => {
            let number = i32::try_from(signed).map_err(|e| at(e.to_string()))?;
            let Some(name) = schema().value_name(name, number) else {
                odd.push(format!("{path}: unknown {name} {number}"));
                return Ok(None);
            };
            json!(name)
        }
        _ => return Err(at(format!("{raw} is no {kind:?}"))),
    }))
}

fn length_delimited(
    kind: &Kind,
    bytes: &[u8],
    path: &str,
    odd: &mut Vec<String>,
) -> Result<Value, String> {
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(format!("{path}: {error}")),
    };
    match kind {
        Kind::String => Ok(json!(text(bytes)?)),
        Kind::Bytes => Ok(json!(STANDARD.encode(bytes))),
        Kind::Message(name) => from_protobuf(name, bytes, path, odd),
        Kind::Map(value_kind) => {
            let mut entry = Reader { bytes };
            let mut key = String::new();
            let mut value = None;
            while !entry.bytes.is_empty() {
                match entry.varint()? {
                    0x0a => {
                        let length = entry.varint()?;
                        key = text(entry.take(length)?)?;
                    }
                    tag if tag == u64::from(2 << 3 | wire_type(value_kind)) => {
                        value = one_protobuf(value_kind, &mut entry, path, odd)?;
                    }
                    tag => return Err(format!("{path}: tag {tag} in an entry of a map")),
                }
            }
            let value = value.ok_or_else(|| format!("{path}: entry without a value"))?;
            Ok(json!({ key: value }))
        }
        _ => unreachable!("wire type was compared"),
    }
}

fn to_protobuf(name: &str, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let mut fields: Vec<&Field> = schema().message(name).iter().collect();
    fields.sort_by_key(|field| field.number);
    for field in fields {
        let Some(value) = value.get(&field.name) else {
            continue;
        };
        match (&field.kind, value) {
            (Kind::Map(kind), Value::Object(entries)) => {
                for (key, value) in entries {
                    let mut entry = Vec::new();
                    put(&mut entry, 1, &Kind::String, &json!(key));
                    put(&mut entry, 2, kind, value);
                    put_bytes(&mut out, field.number, &entry);
                }
            }
            (kind, Value::Array(items)) if field.repeated => {
                for item in items {
                    put(&mut out, field.number, kind, item);
                }
            }
            (kind, value) => put(&mut out, field.number, kind, value),
        }
    }
    out
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number << 3) | u64::from(LENGTH));
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A value that `from_json` has checked.
fn put(out: &mut Vec<u8>, number: u32, kind: &Kind, value: &Value) {
    let text = || value.as_str().expect("checked");
    match kind {
        Kind::String => return put_bytes(out, number, text().as_bytes()),
        Kind::Bytes => {
            let bytes = STANDARD.decode(text()).expect("checked");
            return put_bytes(out, number, &bytes);
        }
        Kind::Message(name) => return put_bytes(out, number, &to_protobuf(name, value)),
        Kind::Map(_) => unreachable!("maps hold no maps"),
        _ => put_varint(out, u64::from(number << 3) | u64::from(wire_type(kind))),
    }
    match kind {
        Kind::Double => {
            let value = match value.as_str() {
                Some("Infinity") => f64::INFINITY,
                Some(_) => f64::NEG_INFINITY,
                None => value.as_f64().expect("checked"),
            };
            out.extend_from_slice(&value.to_le_bytes());
        }
        Kind::Bool => put_varint(out, u64::from(value.as_bool().expect("checked"))),
        Kind::Enum(name) => {
            let number = schema().value_number(name, text()).expect("checked");
            put_varint(out, i64::from(number) as u64);
        }
        Kind::Int32 | Kind::Int64 => put_varint(out, value.as_i64().expect("checked") as u64),
        _ => put_varint(out, value.as_u64().expect("checked")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_say_the_same() {
        let event = json!({"type": "LAUNCH", "launch": {"task": {
            "name": "", "task_id": {"value": "a"}, "agent_id": {"value": "S0"}, "data": "Mg==",
            "limits": {"cpus": {"value": "Infinity"}, "mem": {"value": 32.5}},
            "kill_policy": {"grace_period": {"nanoseconds": -1}},
            "resources": [{"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 0, "end": 18446744073709551615u64}]}},
                          {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.0}}],
            "command": {"shell": false, "arguments": ["", "é"]}}}});
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let bytes = encode(encoding, "Event", &event).unwrap();
            let back = decode(encoding, "Event", &bytes).unwrap();
            assert_eq!(back.value, event);
            assert!(back.oddities.is_empty());
        }
    }

    /// Bytes as protoc makes them.
    #[test]
    fn wire_format_is_that_of_protobuf() {
        let bytes: &[u8] = b"\x0a\x03\x0a\x01e\x12\x03\x0a\x01f\x18\x02\x2a\x1a\x0a\x18\
            \x0a\x03\x0a\x01t\x10\x00\x31\x00\x00\x00\x00\x00\x00\xf8\x3f\x48\x02\x5a\x04\x01\x02\x03\xff";
        let mut call = json!({"executor_id": {"value": "e"}, "framework_id": {"value": "f"},
            "type": "UPDATE", "update": {"status": {"task_id": {"value": "t"}, "state": "TASK_STARTING",
            "timestamp": 1.5, "source": "SOURCE_EXECUTOR", "uuid": "AQID/w=="}}});
        let decoded = decode(Encoding::Protobuf, "Call", bytes).unwrap();
        assert_eq!(decoded.value, call);
        assert_eq!(encode(Encoding::Protobuf, "Call", &call).unwrap(), bytes);
        call["update"]["status"] = json!({"task_id": {"value": "t"}});
        let missing = encode(Encoding::Protobuf, "Call", &call).unwrap_err();
        assert_eq!(missing, "Call.update.status: missing required field state");
    }

    #[test]
    fn what_is_wrong_is_told() {
        let odd = |name, json: Value| {
            let bytes = json.to_string();
            decode(Encoding::Json, name, bytes.as_bytes()).map(|read| read.oddities)
        };
        let unknown = odd("KillPolicy", json!({"gracePeriod": 1}));
        assert_eq!(unknown.unwrap(), ["KillPolicy.gracePeriod: unknown field"]);
        let unknown = odd(
            "TaskStatus",
            json!({"task_id": {"value": "a"}, "state": "TASK_RUNNING", "reason": "REASON_X"}),
        );
        assert_eq!(
            unknown.unwrap(),
            ["TaskStatus.reason: unknown TaskStatus.Reason REASON_X"]
        );
        let missing = odd(
            "TaskStatus",
            json!({"task_id": {"value": "a"}, "state": "TASK_X"}),
        );
        assert_eq!(
            missing.unwrap_err(),
            "TaskStatus: missing required field state"
        );
        let wrong = odd("Label", json!({"key": 1}));
        assert_eq!(wrong.unwrap_err(), "Label.key: 1 is no String");
        let wrong = odd("Call.Message", json!({"data": "a"}));
        assert!(wrong.unwrap_err().starts_with("Call.Message.data: "));
        for (bytes, expected) in [
            (b"\x08\x01".as_slice(), "Label.key: wire type 0"),
            (b"\x0a\x02a", "Label.key: field is cut short"),
            (
                b"\x0a\x01\xff",
                "Label.key: invalid utf-8 sequence of 1 bytes from index 0",
            ),
            (b"\x12\x00", "Label: missing required field key"),
        ] {
            let error = decode(Encoding::Protobuf, "Label", bytes).unwrap_err();
            assert_eq!(error, expected);
        }
        let unknown = decode(Encoding::Protobuf, "Label", b"\x0a\x00\x58\x01").unwrap();
        assert_eq!(unknown.oddities, ["Label: unknown field 11"]);
    }

    #[test]
    fn json_of_the_agent_has_defaults() {
        let bytes = encode(
            Encoding::Json,
            "CommandInfo",
            &json!({"uris": [{"value": "x"}]}),
        );
        let value: Value = serde_json::from_slice(&bytes.unwrap()).unwrap();
        assert_eq!(
            value,
            json!({"shell": true, "uris": [{"value": "x", "extract": true}]})
        );
    }
}
