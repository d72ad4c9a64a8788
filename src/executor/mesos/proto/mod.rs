//! The messages of the Mesos v1 executor API, as protobuf and as JSON.
//!
//! Owns every message and enumeration that an executor receives or sends, named as in `mesos.proto` (nested ones in a module of the
//! outer one's name), and the two encodings of them.
//!
//! *Invariants:* the wire format is proto2's, not packed, required fields written always. Unknown fields and values do no harm: an
//! optional enumeration of an unknown number is as good as unset through its accessor (`status.reason()`), but the accessor of a required one gives the
//! first value then, so use `Type::try_from(resource.r#type)` where that would matter. In protobuf a required field that is missing reads as
//! zero or empty (an agent always writes them), in JSON it is an error. Arbitrary bytes are an error, never a panic;
//! nesting is bounded (100 levels in protobuf, 128 in JSON), size by whoever reads the bytes.
//!
//! Leaves to others: borders of records ([`super::recordio`]), bytes from and to the agent, all meaning. `Debug` shows secrets: never
//! log a message as a whole.

#[macro_use]
mod json;
mod container;
mod executor;
pub mod operator;
mod status;
mod task;

use std::collections::BTreeMap;

pub use container::*;
pub use executor::*;
pub use json::Named;
pub use status::*;
pub use task::*;

/// How messages are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// `application/x-protobuf`: small and fast.
    #[default]
    Protobuf,
    /// `application/json`, for people who look on.
    Json,
}

/// Bytes that are no message: what they should have been, and why they are not.
#[derive(Debug, thiserror::Error)]
#[error("{encoding} message {message} cannot be read: {why}")]
pub struct Unreadable {
    encoding: &'static str,
    message: &'static str,
    why: String,
}

impl Encoding {
    /// The media type, for `Content-Type` and `Accept`.
    pub fn media_type(self) -> &'static str {
        match self {
            Encoding::Protobuf => "application/x-protobuf",
            Encoding::Json => "application/json",
        }
    }

    /// A call as bytes.
    pub fn encode(self, call: &Call) -> Vec<u8> {
        match self {
            Encoding::Protobuf => prost::Message::encode_to_vec(call),
            Encoding::Json => json::Json::to_json(call).to_string().into_bytes(),
        }
    }

    /// Any message as bytes.
    pub fn write<M: prost::Message + serde::Serialize>(self, message: &M) -> Vec<u8> {
        match self {
            Encoding::Protobuf => message.encode_to_vec(),
            // what is declared here has no maps with keys other than text, nor anything else that cannot be JSON
            Encoding::Json => serde_json::to_vec(message).unwrap_or_default(),
        }
    }

    /// Any message from bytes; `name` is for the error.
    pub fn read<M: prost::Message + Default + serde::de::DeserializeOwned>(
        self,
        name: &'static str,
        bytes: &[u8],
    ) -> Result<M, Unreadable> {
        let unreadable = |why: String| Unreadable {
            encoding: self.media_type(),
            message: name,
            why,
        };
        match self {
            Encoding::Protobuf => M::decode(bytes).map_err(|error| unreadable(error.to_string())),
            Encoding::Json => {
                serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))
            }
        }
    }

    /// An event from bytes. One whose type says that it has a body has it.
    pub fn decode(self, bytes: &[u8]) -> Result<Event, Unreadable> {
        let unreadable = |why: String| Unreadable {
            encoding: self.media_type(),
            message: "Event",
            why,
        };
        let event: Event = match self {
            Encoding::Protobuf => {
                prost::Message::decode(bytes).map_err(|error| unreadable(error.to_string()))?
            }
            Encoding::Json => {
                serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))?
            }
        };
        match event.without_body() {
            Some(body) => Err(unreadable(format!("{} has no `{body}`", event.r#type()))),
            None => Ok(event),
        }
    }
}

impl Event {
    /// The field that should be set and is not.
    fn without_body(&self) -> Option<&'static str> {
        let (body, there) = match self.r#type() {
            event::Type::Subscribed => ("subscribed", self.subscribed.is_some()),
            event::Type::Launch => ("launch", self.launch.is_some()),
            event::Type::LaunchGroup => ("launch_group", self.launch_group.is_some()),
            event::Type::Kill => ("kill", self.kill.is_some()),
            event::Type::Acknowledged => ("acknowledged", self.acknowledged.is_some()),
            event::Type::Message => ("message", self.message.is_some()),
            event::Type::Error => ("error", self.error.is_some()),
            event::Type::Unknown | event::Type::Shutdown | event::Type::Heartbeat => return None,
        };
        (!there).then_some(body)
    }
}

#[cfg(test)]
mod tests;
