//! Files as a whole: written to a temporary name, synced, renamed.
//!
//! *Invariant:* a reader sees the old content or the new one, never a part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Replaces `path` by `content` with permission bits `mode`, atomically and durably.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    draft(path, content, mode, true)?.publish()?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Writes a file that only its owner may read, for one writer and no reader beside it.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(content)
}

/// As [`write_atomic`], for what need not outlive the machine's end.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    Draft::new(path, content, mode)?.publish()
}

/// Keeps a file that processes append to within `most` bytes, but for what comes between two calls: what is in it becomes that of `PATH.1`. It is
/// copied, not renamed, so that whoever has it open goes on in the same file.
pub fn bound(file: &File, path: &Path, most: u64) -> io::Result<()> {
    let full = || Ok::<_, io::Error>(file.metadata()?.len() >= most);
    if !full()? {
        return Ok(());
    }
    file.lock()?;
    // somebody else may have been first
    if full()? {
        let mut older = path.as_os_str().to_owned();
        older.push(".1");
        fs::copy(path, older)?;
        file.set_len(0)?;
    }
    file.unlock()
}

/// A file under its temporary name. Dropped, it is removed.
#[derive(Debug)]
pub struct Draft {
    temporary: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Draft {
    /// Writes it, for what need not outlive the machine's end.
    pub fn new(path: &Path, content: &[u8], mode: u32) -> io::Result<Draft> {
        draft(path, content, mode, false)
    }

    /// Gives it its name.
    pub fn publish(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // it is ours alone
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn draft(path: &Path, content: &[u8], mode: u32, sync: bool) -> io::Result<Draft> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path has no file name"))?;
    let mut temporary = dir.to_path_buf();
    temporary.push(format!(
        ".{}.{}.{:08x}",
        name.to_string_lossy(),
        std::process::id(),
        fastrand::u32(..)
    ));
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(mode);
    let mut file = options.open(&temporary)?;
    let draft = Draft {
        temporary,
        path: path.to_path_buf(),
        published: false,
    };
    file.write_all(content)?;
    if sync {
        file.sync_all()?;
    }
    Ok(draft)
}

/// Removes the temporary files that killed writers of [`write_atomic`] left in `dir`. The caller keeps living writers out.
pub fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_temporary(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// `.NAME.PID.RANDOM`
fn is_temporary(name: &str) -> bool {
    let mut parts = name.rsplitn(3, '.');
    let random = parts.next().unwrap_or_default();
    let pid = parts.next().unwrap_or_default();
    name.starts_with('.')
        && parts.next().is_some_and(|rest| rest.len() > 1)
        && random.len() == 8
        && random.bytes().all(|b| b.is_ascii_hexdigit())
        && pid.parse::<u32>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_two_parts_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.log");
        let open = || {
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(&path)
                .unwrap()
        };
        let early = open();
        for i in 0..10 {
            let file = open();
            bound(&file, &path, 6).unwrap();
            (&file).write_all(format!("{i}\n").as_bytes()).unwrap();
        }
        let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (read("events.log.1"), read("events.log")),
            ("6\n7\n8\n".to_owned(), "9\n".to_owned())
        );
        (&early).write_all(b"early\n").unwrap();
        assert_eq!(read("events.log"), "9\nearly\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn only_what_a_killed_writer_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let kept = [
            ".lock",
            "a.json",
            "b.12.0123abcd",
            ".c.json",
            ".12.0123abcd",
        ];
        for name in kept.iter().chain(&[".a.json.495.945cda29"]) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        write_atomic(&dir.path().join("d.json"), b"{}", 0o600).unwrap();
        sweep(dir.path()).unwrap();
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut wanted: Vec<String> = kept.iter().map(|name| name.to_string()).collect();
        wanted.push("d.json".to_string());
        wanted.sort();
        assert_eq!(left, wanted);
    }
}
