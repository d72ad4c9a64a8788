//! Files that get output: bounds, successors, and what others put in the way.

use std::fs;

use super::*;

fn target(folder: &Path, max_size: Option<u64>, max_file: u32) -> Target {
    Target {
        file: LogFile {
            folder: folder.to_owned(),
            name: "out".into(),
        },
        max_size,
        max_file,
    }
}

/// Appends all, with what was intended each time.
fn append(target: &Target, records: &[&str]) -> Vec<Intent> {
    let mut records: Vec<&[u8]> = records.iter().map(|r| r.as_bytes()).collect();
    let mut intents = Vec::new();
    while !records.is_empty() {
        let mut keep = |_, intent| {
            intents.push(intent);
            Ok(())
        };
        let count = target.append(&records, &mut keep).unwrap();
        records.drain(..count);
    }
    intents
}

fn content(folder: &Path) -> Vec<(String, String)> {
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_file_that_is_full_is_followed_by_another() {
    for (max_size, max_file, expected) in [
        (None, 1, &[("out", "aabbccddeeffgggggggghh")][..]),
        (Some(4), 1, &[("out", "hh")]),
        (Some(4), 2, &[("out", "hh"), ("out.1", "gggggggg")]),
        (
            Some(4),
            9,
            &[
                ("out", "hh"),
                ("out.1", "gggggggg"),
                ("out.2", "eeff"),
                ("out.3", "ccdd"),
                ("out.4", "aabb"),
            ],
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let target = target(dir.path(), max_size, max_file);
        append(&target, &["aa", "bb", "cc", "dd", "ee"]);
        append(&target, &["ff", "gggggggg", "hh"]);
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, text)| (name.to_string(), text.to_string()))
            .collect();
        assert_eq!(content(dir.path()), expected);
    }
}

#[test]
fn an_interrupted_change_of_names_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    // out.2 has become out.3 already, out.1 not yet out.2
    for name in ["out", "out.1", "out.3"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    append(&target(dir.path(), Some(4), 4), &["new"]);
    let expected = [
        ("out", "new"),
        ("out.1", "out"),
        ("out.2", "out.1"),
        ("out.3", "out.3"),
    ];
    assert_eq!(
        content(dir.path()),
        expected.map(|(name, text)| (name.to_owned(), text.to_owned()))
    );
}

#[test]
fn a_successor_knows_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let target = target(dir.path(), Some(8), 3);
    let intents = append(&target, &["aaaa", "bbbb", "cccc"]);
    assert_eq!(intents.len(), 2);
    let texts: [&[u8]; 2] = [b"aaaabbbb", b"cccc"];
    let was_done = |number: usize| target.was_done(&intents[number], texts[number]).unwrap();
    assert!(was_done(0) && was_done(1));
    // others may have gone on since
    append(&target, &["dd"]);
    assert!(was_done(1));
    // killed before the write, and in the midst of it; then others wrote, less or more; they alone wrote; something else is there
    for (found, left) in [
        ("", ""),
        ("ccc", ""),
        ("ccdd", "ccdd"),
        ("cccddd", "cccddd"),
        ("dd", "dd"),
        ("xxxx", "xxxx"),
    ] {
        fs::write(&path, found).unwrap();
        assert!(!was_done(1), "{found}");
        assert_eq!(fs::read_to_string(&path).unwrap(), left);
    }
    fs::remove_file(dir.path().join("out.1")).unwrap();
    assert!(!was_done(0));
}

#[test]
fn what_is_no_file_of_its_own_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other");
    let path = dir.path().join("out");
    fs::write(&other, "secret").unwrap();
    let target = target(dir.path(), None, 1);
    let refused = |expected: &str| {
        let error = target.lock().map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(fs::read_to_string(&other).unwrap(), "secret");
        fs::remove_file(&path).unwrap();
    };
    std::os::unix::fs::symlink("other", &path).unwrap();
    refused("symbolic links");
    fs::hard_link(&other, &path).unwrap();
    refused("not a regular file with one name");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused("not a regular file with one name");
    // a link on the way to it
    let below = Target {
        file: LogFile {
            folder: dir.path().to_owned(),
            name: "tasks/1/out".into(),
        },
        ..target.clone()
    };
    fs::create_dir_all(dir.path().join("elsewhere/1")).unwrap();
    std::os::unix::fs::symlink("elsewhere", dir.path().join("tasks")).unwrap();
    assert!(below.lock().is_err());
    fs::remove_file(dir.path().join("tasks")).unwrap();
    fs::create_dir_all(dir.path().join("tasks/1")).unwrap();
    assert!(below.lock().is_ok());
}

#[test]
fn a_file_has_the_owner_of_its_folder_and_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(dir.path(), Some(1234), Some(2345)).unwrap();
    }
    let target = target(dir.path(), None, 1);
    let held = target.lock().unwrap();
    let meta = fs::metadata(dir.path().join("out")).unwrap();
    let folder = fs::metadata(dir.path()).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (folder.uid(), folder.gid()));
    let error = target.lock().map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop(held);
    target.lock().unwrap();
}
