//! The messages as JSON: the mapping of protobuf's JSON that a Mesos agent speaks.
//!
//! Owns the macros that declare messages and enumerations, each with its JSON beside its protobuf.
//!
//! *Invariants:* field names are those of the proto files. On input `null` is as good as absent, unknown fields are passed over,
//! an unknown name of an enumeration is absent where that is allowed and an error where the field is required, numbers may be text.
//! On output, what is unset and empty lists are left out, bytes are base64, infinity is the text `"Infinity"`. An error has the path of the
//! field. Depth is bounded by serde_json (128).
//!
//! Leaves to others: which messages there are.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// The fields of a message.
pub type Object = Map<String, Value>;

/// Why JSON is not the message that it should be.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Like `launch.task.resources[2].type`.
    path: String,
    why: String,
}

impl Fault {
    fn new(why: impl Into<String>) -> Fault {
        let (path, why) = (String::new(), why.into());
        Fault { path, why }
    }

    fn at(mut self, step: &str) -> Fault {
        if !self.path.is_empty() && !self.path.starts_with('[') {
            self.path.insert(0, '.');
        }
        self.path.insert_str(0, step);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.why);
        }
        write!(f, "{}: {}", self.path, self.why)
    }
}

/// A value that can stand alone: in a list, in a map, or as a field.
pub trait Json: Sized {
    /// As JSON.
    fn to_json(&self) -> Value;
    /// From JSON that is not null.
    fn from_json(value: Value) -> Result<Self, Fault>;
}

/// A field of a message, by its Rust type.
pub trait Field: Sized {
    /// Writes it, unless it is unset.
    fn put(&self, object: &mut Object, key: &str);
    /// Reads it.
    fn take(object: &mut Object, key: &str) -> Result<Self, Fault>;
}

/// An enumeration of the proto files.
pub trait Named: Copy + TryFrom<i32> + Into<i32> + 'static {
    /// Every value with its name in the proto file.
    const NAMES: &'static [(Self, &'static str)];

    /// The name of it.
    fn name(self) -> &'static str {
        let number = self.into();
        let found = Self::NAMES
            .iter()
            .find(|(value, _)| (*value).into() == number);
        found.map_or("", |(_, name)| name)
    }

    /// The value of a name, which is none of ours when the agent is newer.
    fn named(text: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(_, name)| *name == text);
        found.map(|(value, _)| *value)
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn expected(what: &str, value: &Value) -> Fault {
    Fault::new(format!("expected {what}, found {}", kind(value)))
}

/// The fields of a message's JSON.
pub fn object(value: Value) -> Result<Object, Fault> {
    match value {
        Value::Object(object) => Ok(object),
        other => Err(expected("an object", &other)),
    }
}

fn present(object: &mut Object, key: &str) -> Option<Value> {
    object.remove(key).filter(|value| !value.is_null())
}

fn list(object: &mut Object, key: &str) -> Result<Vec<Value>, Fault> {
    match present(object, key) {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => Ok(values),
        Some(other) => Err(expected("a list", &other).at(key)),
    }
}

fn missing(key: &str) -> Fault {
    Fault::new("is missing").at(key)
}

impl Json for String {
    fn to_json(&self) -> Value {
        Value::String(self.clone())
    }

    fn from_json(value: Value) -> Result<String, Fault> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(expected("text", &other)),
        }
    }
}

impl Json for bool {
    fn to_json(&self) -> Value {
        Value::Bool(*self)
    }

    fn from_json(value: Value) -> Result<bool, Fault> {
        match value {
            Value::Bool(is) => Ok(is),
            other => Err(expected("a boolean", &other)),
        }
    }
}

impl Json for Vec<u8> {
    fn to_json(&self) -> Value {
        Value::String(STANDARD.encode(self))
    }

    fn from_json(value: Value) -> Result<Vec<u8>, Fault> {
        let text = String::from_json(value)?;
        let bytes = STANDARD.decode(text);
        bytes.map_err(|error| Fault::new(format!("is not base64: {error}")))
    }
}

impl Json for f64 {
    fn to_json(&self) -> Value {
        if self.is_nan() {
            return Value::from("NaN");
        }
        let infinite = if *self > 0.0 { "Infinity" } else { "-Infinity" };
        serde_json::Number::from_f64(*self).map_or(Value::from(infinite), Value::Number)
    }

    fn from_json(value: Value) -> Result<f64, Fault> {
        let number = match &value {
            Value::Number(number) => number.as_f64(),
            // `parse` takes "Infinity", "-Infinity", "NaN"
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| expected("a number", &value))
    }
}

macro_rules! whole {
    ($($type:ident)*) => {$(
        impl Json for $type {
            fn to_json(&self) -> Value {
                Value::from(*self)
            }

            fn from_json(value: Value) -> Result<$type, Fault> {
                let number = match &value {
                    Value::Number(number) => number.as_i128().and_then(|it| $type::try_from(it).ok()),
                    Value::String(text) => text.parse().ok(),
                    _ => return Err(expected("a whole number", &value)),
                };
                let wrong = || Fault::new(format!("{value} is no whole number of {} bits", $type::BITS));
                number.ok_or_else(wrong)
            }
        }
    )*};
}

whole! { i32 u32 i64 u64 }

macro_rules! required {
    ($($type:ty)*) => {$(
        impl $crate::executor::mesos::proto::json::Field for $type {
            fn put(&self, object: &mut $crate::executor::mesos::proto::json::Object, key: &str) {
                $crate::executor::mesos::proto::json::put_required(self, object, key);
            }

            fn take(
                object: &mut $crate::executor::mesos::proto::json::Object,
                key: &str,
            ) -> Result<Self, $crate::executor::mesos::proto::json::Fault> {
                $crate::executor::mesos::proto::json::take_required(object, key)
            }
        }
    )*};
}

required! { String bool i32 u32 i64 u64 f64 Vec<u8> }

pub(super) fn put_required(value: &impl Json, object: &mut Object, key: &str) {
    object.insert(key.to_owned(), value.to_json());
}

pub(super) fn take_required<T: Json>(object: &mut Object, key: &str) -> Result<T, Fault> {
    <Option<T> as Field>::take(object, key)?.ok_or_else(|| missing(key))
}

impl<T: Json> Json for Box<T> {
    fn to_json(&self) -> Value {
        T::to_json(self)
    }

    fn from_json(value: Value) -> Result<Box<T>, Fault> {
        T::from_json(value).map(Box::new)
    }
}

impl<T: Json> Field for Option<T> {
    fn put(&self, object: &mut Object, key: &str) {
        if let Some(value) = self {
            put_required(value, object, key);
        }
    }

    fn take(object: &mut Object, key: &str) -> Result<Option<T>, Fault> {
        let value = present(object, key).map(T::from_json).transpose();
        value.map_err(|fault| fault.at(key))
    }
}

impl<T: Json> Field for Vec<T> {
    fn put(&self, object: &mut Object, key: &str) {
        if !self.is_empty() {
            let values = self.iter().map(T::to_json).collect();
            object.insert(key.to_owned(), Value::Array(values));
        }
    }

    fn take(object: &mut Object, key: &str) -> Result<Vec<T>, Fault> {
        let each = list(object, key)?.into_iter().enumerate();
        each.map(|(at, value)| {
            T::from_json(value).map_err(|fault| fault.at(&format!("{key}[{at}]")))
        })
        .collect()
    }
}

impl<T: Json> Field for BTreeMap<String, T> {
    fn put(&self, object: &mut Object, key: &str) {
        if !self.is_empty() {
            let entries = self
                .iter()
                .map(|(key, value)| (key.clone(), value.to_json()));
            object.insert(key.to_owned(), Value::Object(entries.collect()));
        }
    }

    fn take(object: &mut Object, key: &str) -> Result<BTreeMap<String, T>, Fault> {
        let Some(entries) = <Option<Entries> as Field>::take(object, key)? else {
            return Ok(BTreeMap::new());
        };
        let known = entries.0.into_iter().filter(|(_, value)| !value.is_null());
        let read = known.map(|(name, value)| match T::from_json(value) {
            Ok(value) => Ok((name, value)),
            Err(fault) => Err(fault.at(&name).at(key)),
        });
        read.collect()
    }
}

/// An object of any names.
struct Entries(Object);

impl Json for Entries {
    fn to_json(&self) -> Value {
        Value::Object(self.0.clone())
    }

    fn from_json(value: Value) -> Result<Entries, Fault> {
        object(value).map(Entries)
    }
}

/// How often a field with the number of an enumeration is there.
pub trait Numbers: Sized {
    /// Writes the names of those that are known.
    fn put<E: Named>(&self, object: &mut Object, key: &str);
    /// Reads names.
    fn take<E: Named>(object: &mut Object, key: &str) -> Result<Self, Fault>;
}

fn name<E: Named>(number: i32) -> Option<Value> {
    E::try_from(number)
        .ok()
        .map(|value| Value::from(value.name()))
}

fn number<E: Named>(text: &str) -> Option<i32> {
    E::named(text).map(Into::into)
}

impl Numbers for i32 {
    fn put<E: Named>(&self, object: &mut Object, key: &str) {
        Numbers::put::<E>(&Some(*self), object, key);
    }

    fn take<E: Named>(object: &mut Object, key: &str) -> Result<i32, Fault> {
        let text: String = take_required(object, key)?;
        number::<E>(&text).ok_or_else(|| Fault::new(format!("unknown value {text:?}")).at(key))
    }
}

impl Numbers for Option<i32> {
    fn put<E: Named>(&self, object: &mut Object, key: &str) {
        if let Some(name) = self.and_then(name::<E>) {
            object.insert(key.to_owned(), name);
        }
    }

    fn take<E: Named>(object: &mut Object, key: &str) -> Result<Option<i32>, Fault> {
        let text: Option<String> = Field::take(object, key)?;
        Ok(text.and_then(|text| number::<E>(&text)))
    }
}

impl Numbers for Vec<i32> {
    fn put<E: Named>(&self, object: &mut Object, key: &str) {
        let names: Vec<_> = self
            .iter()
            .filter_map(|number| name::<E>(*number))
            .collect();
        if !names.is_empty() {
            object.insert(key.to_owned(), Value::Array(names));
        }
    }

    fn take<E: Named>(object: &mut Object, key: &str) -> Result<Vec<i32>, Fault> {
        let names: Vec<String> = Field::take(object, key)?;
        Ok(names.iter().filter_map(|text| number::<E>(text)).collect())
    }
}

/// Writes one field, whose `#[prost(…)]` says whether its number is an enumeration's.
macro_rules! put {
    ($self:ident . $field:ident, $object:ident, $key:expr, enumeration($($kind:ident)::+) $($rest:tt)*) => {
        json::Numbers::put::<$($kind)::+>(&$self.$field, &mut $object, $key)
    };
    ($self:ident . $field:ident, $object:ident, $key:expr, $($rest:tt)*) => {
        json::Field::put(&$self.$field, &mut $object, $key)
    };
}

/// Reads one field.
macro_rules! take {
    ($object:ident, $key:expr, enumeration($($kind:ident)::+) $($rest:tt)*) => {
        json::Numbers::take::<$($kind)::+>(&mut $object, $key)?
    };
    ($object:ident, $key:expr, $($rest:tt)*) => {
        json::Field::take(&mut $object, $key)?
    };
}

/// Declares messages: a struct with public fields, prost's derive, and its JSON.
macro_rules! message {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident { $(#[prost($($attribute:tt)*)] $field:ident: $type:ty,)* }
    )*) => {$(
        $(#[doc = $doc])*
        // the meaning of each field is in the proto file
        #[allow(missing_docs)]
        #[derive(Clone, PartialEq, ::prost::Message)]
        pub struct $name { $(#[prost($($attribute)*)] pub $field: $type,)* }

        impl json::Json for $name {
            fn to_json(&self) -> ::serde_json::Value {
                #[allow(unused_mut)]
                let mut object = json::Object::new();
                $(put!(self.$field, object, stringify!($field).trim_start_matches("r#"), $($attribute)*);)*
                ::serde_json::Value::Object(object)
            }

            fn from_json(value: ::serde_json::Value) -> Result<$name, json::Fault> {
                #[allow(unused_mut, unused_variables)]
                let mut object = json::object(value)?;
                Ok($name {
                    $($field: take!(object, stringify!($field).trim_start_matches("r#"), $($attribute)*),)*
                })
            }
        }

        required! { $name }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                json::Json::to_json(self).serialize(serializer)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let value = ::serde_json::Value::deserialize(deserializer)?;
                json::Json::from_json(value).map_err(::serde::de::Error::custom)
            }
        }
    )*};
}

/// Declares enumerations: numbers and names of the proto files.
macro_rules! enumeration {
    ($(
        $(#[doc = $doc:literal])*
        $enum:ident { $($value:ident = $number:literal, $name:literal;)* }
    )*) => {$(
        $(#[doc = $doc])*
        // the meaning of each value is in the proto file
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum $enum { $($value = $number,)* }

        impl json::Named for $enum {
            const NAMES: &'static [(Self, &'static str)] = &[$(($enum::$value, $name),)*];
        }

        impl ::std::fmt::Display for $enum {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(json::Named::name(*self))
            }
        }
    )*};
}
