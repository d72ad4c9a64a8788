//! Phase 6, `logging` of a service: what is kept of its output; and `x-sampan.logs`: files that get it as well.
//!
//! *Invariant.* Drivers and options are Docker's; what would have no effect is refused, never skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use super::node::{At, Result};
use super::project::{LogFile, LogFormat, LogSink, Logging, PodOptions, Service};
use super::service::Context;
use super::{Error, units};

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

/// Least bound of a file of `x-sampan.logs`: a line of the longest kind that is not cut.
const LEAST: u64 = 1 << 16;
/// Files where there is a bound and no number of them.
const FILES: u32 = 2;

/// `x-sampan.logs` of a service or of the project.
pub(super) fn sinks(at: &At<'_>, context: &Context<'_>) -> Result<Vec<LogSink>> {
    match at.get("x-sampan") {
        Some(extra) => extra
            .items_of("logs")?
            .iter()
            .map(|item| sink(item, context))
            .collect(),
        None => Ok(Vec::new()),
    }
}

fn sink(at: &At<'_>, context: &Context<'_>) -> Result<LogSink> {
    let beneath = at.filled("beneath");
    let beneath = beneath.map(|at| context.host_path(&at, &at.string()?));
    let beneath = beneath.transpose()?;
    let file = |key: &str| match (at.filled(key), &beneath) {
        (Some(at), Some(folder)) => file_beneath(&at, folder).map(Some),
        (Some(at), None) => file(&at, context).map(Some),
        (None, _) => Ok(None),
    };
    let (both, stdout, stderr) = (file("file")?, file("stdout")?, file("stderr")?);
    let (stdout, stderr) = match (both, stdout, stderr) {
        (Some(both), None, None) => (Some(both.clone()), Some(both)),
        (None, None, None) | (Some(_), ..) => {
            return Err(at.error("needs file, or else stdout, stderr or both"));
        }
        (None, stdout, stderr) => (stdout, stderr),
    };
    let format = match at.filled("format") {
        None => LogFormat::Text,
        Some(format) => match format.string()?.as_str() {
            "raw" => LogFormat::Raw,
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                let why = format_args!("{other:?} is none of raw, text and json");
                return Err(format.error(why));
            }
        },
    };
    let labels = at.strings_of("labels")?;
    if let (Some(labels), false) = (at.get("labels"), format == LogFormat::Json) {
        return Err(labels.error("only format: json has a place for them"));
    }
    let max_size = at.get("max_size").map(|at| at.bytes()).transpose()?;
    if let (Some(at), Some(..LEAST)) = (at.get("max_size"), max_size) {
        return Err(at.error(format_args!("must be at least {LEAST} bytes")));
    }
    let max_file = match at.get("max_file") {
        Some(at) if max_size.is_none() => {
            return Err(at.error("has a meaning only together with max_size; add that"));
        }
        Some(at) => at.int_in(1, 1000)? as u32,
        None => FILES,
    };
    Ok(LogSink {
        origin: at.key_pos.origin(),
        stdout,
        stderr,
        format,
        labels,
        max_size,
        max_file,
    })
}

fn file(at: &At<'_>, context: &Context<'_>) -> Result<LogFile> {
    let text = at.string()?;
    let path = context.host_path(at, &text)?;
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) if !text.ends_with('/') => Ok(LogFile {
            folder: folder.to_owned(),
            name: Path::new(name).to_owned(),
        }),
        _ => Err(at.error(format_args!("{text:?} is not the name of a file"))),
    }
}

/// A file that is reached from `folder` without a link.
fn file_beneath(at: &At<'_>, folder: &Path) -> Result<LogFile> {
    let text = at.string()?;
    let name = Path::new(&text);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    match !text.is_empty() && !text.ends_with('/') && name.components().all(plain) {
        true => Ok(LogFile {
            folder: folder.to_owned(),
            name: name.to_owned(),
        }),
        false => Err(at.error(format_args!(
            "{text:?} is not a file below {}",
            folder.display()
        ))),
    }
}

/// Each file is written by one entry, or nobody could tell where it was.
pub(super) fn own_files(pod: &PodOptions, services: &BTreeMap<String, Service>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for sink in pod
        .logs
        .iter()
        .chain(services.values().flat_map(|s| &s.logs))
    {
        let own: BTreeSet<&LogFile> = sink.stdout.iter().chain(&sink.stderr).collect();
        if let Some(file) = own.into_iter().find(|file| !seen.insert((*file).clone())) {
            return Err(Error {
                message: format!(
                    "{}: x-sampan.logs: {} is written by another entry already; name another file, or write the entry at the top for all services",
                    sink.origin,
                    file.path().display()
                ),
            });
        }
    }
    Ok(())
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
