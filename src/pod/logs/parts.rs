//! The files that a log consists of.
//!
//! A log is cut into parts, each named after the offset in the stream that it begins at; the first is `stdout.log`, one that
//! begins at byte 4096 is `stdout.4096.log`. *Invariants:* a part is written only while it is the last one, so the next one's name is
//! where it ends; nothing is ever renamed. So a rotation is one open(2) that either happened or not, and whoever has read up to an offset
//! knows the name of what follows. Parts go oldest first, each log before its index.

use std::fs;
use std::io::{self, ErrorKind};

use super::super::layout::ServiceDir;

/// Offsets at which the parts of a stream begin, ascending; none before the first output.
pub fn list(service: &ServiceDir, stream: &str) -> io::Result<Vec<u64>> {
    Ok(files(service, stream)?.0)
}

/// Where a stream ends now; `None` where it has no files.
pub fn end(service: &ServiceDir, stream: &str) -> io::Result<Option<u64>> {
    loop {
        let Some(last) = list(service, stream)?.pop() else {
            return Ok(None);
        };
        match fs::metadata(service.log_at(stream, last)) {
            Ok(log) => return Ok(Some(last + log.len())),
            // others came, and it went meanwhile
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes all parts before `first`, and what an interrupted removal left.
pub fn remove_before(service: &ServiceDir, stream: &str, first: u64) -> io::Result<()> {
    let (logs, indexes) = files(service, stream)?;
    let old = |bases: Vec<u64>| bases.into_iter().filter(move |base| *base < first);
    for base in old(logs) {
        gone(fs::remove_file(service.log_at(stream, base)))?;
    }
    for base in old(indexes) {
        gone(fs::remove_file(service.index_at(stream, base)))?;
    }
    Ok(())
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Where logs, and where indexes begin.
fn files(service: &ServiceDir, stream: &str) -> io::Result<(Vec<u64>, Vec<u64>)> {
    let (mut logs, mut indexes) = (Vec::new(), Vec::new());
    let entries = match fs::read_dir(&service.data) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((logs, indexes)),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(stream)) else {
            continue;
        };
        let (base, to) = match rest.rsplit_once('.') {
            Some((base, "log")) => (base, &mut logs),
            Some((base, "idx")) => (base, &mut indexes),
            _ => continue,
        };
        let base = match base.strip_prefix('.') {
            None if base.is_empty() => Some(0),
            Some(digits) => digits.parse().ok(),
            None => None,
        };
        to.extend(base);
    }
    logs.sort_unstable();
    Ok((logs, indexes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let service = ServiceDir {
            dir: dir.path().to_path_buf(),
            data: dir.path().to_path_buf(),
        };
        assert!(list(&service, "stdout").unwrap().is_empty());
        let names = [
            "stdout.log",
            "stdout.idx",
            "stdout.100.log",
            "stdout.100.idx",
            "stdout.20.log",
            "stdout.3.idx",
            "stdout.x.log",
            "stdout.log.1",
            "stdoutlog",
            "stderr.7.log",
        ];
        for name in names {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(list(&service, "stdout").unwrap(), [0, 20, 100]);
        assert_eq!(list(&service, "stderr").unwrap(), [7]);
        remove_before(&service, "stdout", 100).unwrap();
        remove_before(&service, "stdout", 100).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "stderr.7.log",
                "stdout.100.idx",
                "stdout.100.log",
                "stdout.log.1",
                "stdout.x.log",
                "stdoutlog"
            ]
        );
    }
}
