//! Network settings under `/proc/sys/net`, of the calling thread's network namespace.
//!
//! *Invariants*: a setting that already has the value isn't written, so read-only systems that are set up right do.

use std::path::PathBuf;
use std::{fs, io};

use crate::error::{CniError, Result};

fn path(parts: &[&str]) -> PathBuf {
    // an interface's name can hold dots but no slash: parts are path components, never split
    let mut path = PathBuf::from("/proc/sys/net");
    path.extend(parts);
    path
}

/// The value of `net/<parts…>`, with one space between words.
pub fn get(parts: &[&str]) -> Result<String> {
    let path = path(parts);
    let now = fs::read_to_string(&path).map_err(|cause| CniError::io("read", &path, &cause))?;
    Ok(words(&now))
}

/// A value as [`get`] gives it.
pub fn words(value: &str) -> String {
    let words: Vec<&str> = value.split_ascii_whitespace().collect();
    words.join(" ")
}

/// Sets `net/<parts…>` to `value`.
pub fn set(parts: &[&str], value: &str) -> Result<()> {
    if get(parts)? == value {
        return Ok(());
    }
    let path = path(parts);
    fs::write(&path, value)
        .map_err(|cause| CniError::io(&format!("write {value} to"), &path, &cause))
}

/// As [`set`]; a kernel without the setting (no IPv6) is fine.
pub fn set_if_present(parts: &[&str], value: &str) -> Result<()> {
    match fs::metadata(path(parts)) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => set(parts, value),
    }
}

/// Whether there is a `net/<parts…>`.
pub fn exists(parts: &[&str]) -> bool {
    path(parts).exists()
}

/// What there is in the folder `net/<parts…>`.
pub fn names(parts: &[&str]) -> Result<Vec<String>> {
    let path = path(parts);
    let read = || -> io::Result<Vec<String>> {
        fs::read_dir(&path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    read().map_err(|cause| CniError::io("read", &path, &cause))
}

/// Whether `net/<parts…>` exists and isn't 0.
pub fn is_on(parts: &[&str]) -> bool {
    fs::read_to_string(path(parts)).is_ok_and(|value| value.trim() != "0")
}
