//! `features`: what is implemented (runtime-spec features.md).

use serde_json::json;

use super::args::Invocation;
use super::{Error, help, show};

/// `features`.
pub fn features(_: &Invocation) -> Result<u8, Error> {
    show::json(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": help::SPEC,
    }))
}
