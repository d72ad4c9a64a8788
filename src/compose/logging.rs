//! Phase 6, `logging` of a service: what is kept of its output.
//!
//! *Invariant.* Drivers and options are Docker's; what would have no effect is refused, never skipped.

use super::node::{At, Result};
use super::project::Logging;
use super::units;

/// Docker's defaults of the driver `local`.
const LOCAL: Logging = Logging::Kept {
    max_size: Some(20 << 20),
    max_file: 5,
};
const DRIVERS: &str = "json-file, local and none are supported";

/// What the service says of it, if anything.
pub(super) fn of_service(at: &At<'_>) -> Result<Option<Logging>> {
    let Some(at) = at.get("logging") else {
        return Ok(None);
    };
    let driver = match at.filled("driver") {
        Some(driver) => driver.string()?,
        None => "json-file".to_owned(),
    };
    let mut logging = match driver.as_str() {
        "json-file" => Logging::Kept {
            max_size: None,
            max_file: 1,
        },
        "local" => LOCAL,
        "none" => Logging::None,
        other => {
            let place = at.get("driver").unwrap_or(at);
            return Err(place.error(format_args!("{other:?} is not supported; {DRIVERS}")));
        }
    };
    for (key, value) in at.entries_of("options")? {
        let Logging::Kept { max_size, max_file } = &mut logging else {
            return Err(value.error("driver none has no options"));
        };
        match key {
            "max-size" => *max_size = size(&value)?,
            "max-file" => *max_file = value.int_in(1, 1000)? as u32,
            "compress" if !value.bool()? => {}
            "compress" => return Err(value.error("logs are not compressed here; remove it")),
            _ => {
                return Err(value.error(
                    "not an option that is supported; max-size, max-file and compress: false are",
                ));
            }
        }
    }
    match logging {
        Logging::Kept {
            max_size: None,
            max_file: 2..,
        } => Err(at.error("max-file has a meaning only together with max-size; add that")),
        logging => Ok(Some(logging)),
    }
}

/// Docker reads these sizes with decimal units (go-units `FromHumanSize`), and -1 as no bound.
fn size(at: &At<'_>) -> Result<Option<u64>> {
    let raw = at.raw()?;
    match (raw, units::decimal_bytes(raw)) {
        ("-1", _) => Ok(None),
        (_, Some(size @ 1..)) => Ok(Some(size)),
        _ => Err(at.error(format_args!(
            "{raw:?} is not a size above 0; write something like 10m"
        ))),
    }
}
