//! Attachments: chains of plugins, and what must be remembered to undo them.
//!
//! ```text
//! <cache_dir>/00-eth0.json    one attachment: its network list, how far ADD came, the last result
//!             01-store.json   files are named in the order of ADD; DEL goes the other way
//! ```
//!
//! *Invariants:* a plugin's ADD begins only after the cache says so, durably; DEL needs nothing but the cache and goes
//! on over errors; the cache is removed only when every plugin that had begun answered DEL with success.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::conf::declares;
use super::error::doing;
use super::invoke::{self, Call, Command};
use super::{
    Attached, Attachment, Cni, Error, NetworkList, PluginFailure, PortMapping, gc, netns, probe,
    request,
};
use crate::sys::file::write_atomic;

/// Version of the cache file.
const VERSION: u32 = 1;
/// Most interfaces of a pod: two digits in the file names.
const MAX_ATTACHMENTS: usize = 100;

/// The cache file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    attachment: Attachment,
    /// Namespace at the time of ADD.
    netns: PathBuf,
    /// How many plugins of the chain were told to ADD.
    begun: usize,
    /// The last of them was successful.
    added: bool,
    /// What the last successful one answered.
    result: Option<Value>,
}

/// An attachment that a cache file records: begun, and not deleted yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// What was asked for.
    pub attachment: Attachment,
    /// Its namespace at the time of ADD.
    pub netns: PathBuf,
    /// ADD came to its end; this is the result.
    pub result: Option<Value>,
    /// The cache file.
    pub cache: PathBuf,
}

/// The attachments of a cache folder, in the order of ADD. A file that can't be understood is an error: who wants to
/// know what is still in use must not miss one. A missing folder has none.
pub fn recorded(cache_dir: &Path) -> Result<Vec<Recorded>, Error> {
    let mut found = Vec::new();
    for cache in entries(cache_dir)? {
        if is_half_written(&cache) {
            continue;
        }
        // deleted meanwhile
        let Some(record) = Record::load(&cache)? else {
            continue;
        };
        found.push(Recorded {
            attachment: record.attachment,
            netns: record.netns,
            result: record.result.filter(|_| record.added),
            cache,
        });
    }
    Ok(found)
}

/// ADD along the chain. Before the first plugin runs, `cache` holds the attachment, after each one its result too,
/// so that [`del`] works from `cache` alone, whatever happened in between. On failure what was added is deleted again.
pub fn add(
    cni: &Cni,
    netns: &Path,
    attachment: &Attachment,
    cache: &Path,
) -> Result<Attached, Error> {
    let attachment = &prepare(cni, attachment)?;
    if !netns::exists(netns) {
        return Err(Error::invalid(
            netns.display().to_string(),
            "not a pinned network namespace",
        ));
    }
    if cache.exists() {
        return Err(Error::invalid(
            cache.display().to_string(),
            "an attachment is recorded there already; delete it first",
        ));
    }
    let _held = gc::hold(cni, &attachment.network.name)?;
    let mut record = Record {
        version: VERSION,
        attachment: attachment.clone(),
        netns: netns.into(),
        begun: 0,
        added: false,
        result: None,
    };
    add_chain(cni, &mut record, cache)
        .map_err(|e| e.with_undo(del(cni, Some(netns), cache).err().into_iter().collect()))
}

fn add_chain(cni: &Cni, record: &mut Record, cache: &Path) -> Result<Attached, Error> {
    let list = record.attachment.network.clone();
    for plugin in list.plugins() {
        record.begun += 1;
        record.store(cache)?;
        let mut result = record.run(cni, Command::Add, Some(&record.netns), plugin)?;
        complete_version(&mut result, list.version());
        record.result = Some(result);
    }
    let result = record.result.clone().unwrap_or_default();
    let attached = Attached::parse(result, &record.attachment.ifname, &record.netns);
    let attached = attached.map_err(|why| {
        let last = list.plugins().last().unwrap_or(&Value::Null);
        let why = PluginFailure::BadResult(format!("its result can't be used: {why}"));
        failure(&list, last, Command::Add, why)
    })?;
    record.added = true;
    record.store(cache)?;
    Ok(attached)
}

/// CHECK along the chain with the cached result. Networks that forbid it (`disableCheck`) or are older than it
/// (0.4.0) pass.
pub fn check(cni: &Cni, netns: &Path, cache: &Path) -> Result<(), Error> {
    let record = match Record::load(cache)? {
        Some(record) if record.added => record,
        _ => {
            return Err(Error::invalid(
                cache.display().to_string(),
                "no completed attachment is recorded there",
            ));
        }
    };
    let list = &record.attachment.network;
    if list.flag("disableCheck") || !list.at_least("0.4.0") {
        return Ok(());
    }
    for plugin in list.plugins() {
        record.run(cni, Command::Check, Some(netns), plugin)?;
    }
    Ok(())
}

/// DEL along the chain in reverse, from `cache`, which is removed when every plugin answered; `netns` may be gone.
/// Missing cache is success.
pub fn del(cni: &Cni, netns: Option<&Path>, cache: &Path) -> Result<(), Error> {
    let Some(record) = Record::load(cache)? else {
        return Ok(());
    };
    let _held = gc::hold(cni, &record.attachment.network.name)?;
    let errors = record.delete(cni, netns);
    if errors.is_empty() {
        return remove(cache);
    }
    Error::all(errors)
}

/// DEL along the chain in reverse for an attachment that nothing is known about but what it was asked to be.
pub fn del_unrecorded(
    cni: &Cni,
    netns: Option<&Path>,
    attachment: &Attachment,
) -> Result<(), Error> {
    let attachment = prepare(cni, attachment)?;
    let _held = gc::hold(cni, &attachment.network.name)?;
    let record = Record {
        version: VERSION,
        begun: attachment.network.plugins().len(),
        attachment,
        netns: PathBuf::new(),
        added: false,
        result: None,
    };
    Error::all(record.delete(cni, netns))
}

/// Gives the attachment of `cache` other published ports: the plugins that publish are told DEL, then ADD with all of
/// `ports`. When that fails the ports before are published again.
pub fn republish(
    cni: &Cni,
    netns: &Path,
    ports: &[PortMapping],
    cache: &Path,
) -> Result<(), Error> {
    let mut record = match Record::load(cache)? {
        Some(record) if record.added => record,
        _ => {
            return Err(Error::invalid(
                cache.display().to_string(),
                "no completed attachment is recorded there",
            ));
        }
    };
    let _held = gc::hold(cni, &record.attachment.network.name)?;
    let before = record.attachment.ports.clone();
    record.publish(cni, netns, ports, cache).map_err(|error| {
        let undo = record.publish(cni, netns, &before, cache).err();
        error.with_undo(undo.into_iter().collect())
    })
}

/// Attaches one after the other, `cache_dir/NN-ifname.json` each; all are checked before the first is begun. When one
/// fails, those before it are deleted again.
pub fn add_all(
    cni: &Cni,
    netns: &Path,
    attachments: &[Attachment],
    cache_dir: &Path,
) -> Result<Vec<Attached>, Error> {
    if attachments.len() > MAX_ATTACHMENTS {
        return Err(Error::invalid(
            "networks",
            format!("a pod has at most {MAX_ATTACHMENTS}"),
        ));
    }
    for (i, attachment) in attachments.iter().enumerate() {
        let name = &attachment.ifname;
        if attachments.iter().skip(i + 1).any(|a| a.ifname == *name) {
            return Err(Error::invalid(
                format!("interface `{name}`"),
                "two networks want it",
            ));
        }
        prepare(cni, attachment)?;
    }
    let cache = |i: usize, a: &Attachment| cache_dir.join(format!("{i:02}-{}.json", a.ifname));
    let mut attached = Vec::new();
    for (i, attachment) in attachments.iter().enumerate() {
        match add(cni, netns, attachment, &cache(i, attachment)) {
            Ok(one) => attached.push(one),
            Err(e) => {
                let before = attachments.iter().enumerate().take(i).rev();
                let undo = before.filter_map(|(i, a)| del(cni, Some(netns), &cache(i, a)).err());
                let mut undo: Vec<_> = undo.collect();
                undo.extend(remove_folder(cache_dir).err());
                return Err(e.with_undo(undo));
            }
        }
    }
    Ok(attached)
}

/// Deletes every attachment that `cache_dir` knows, the last one first, and the folder. All errors are given.
/// A missing folder is success.
pub fn del_all(cni: &Cni, netns: Option<&Path>, cache_dir: &Path) -> Result<(), Vec<Error>> {
    let files = entries(cache_dir).map_err(|e| vec![e])?;
    let errors: Vec<_> = files
        .iter()
        .rev()
        .filter_map(|file| {
            let done = match is_half_written(file) {
                true => remove(file),
                false => del(cni, netns, file),
            };
            done.err()
        })
        .collect();
    if !errors.is_empty() {
        return Err(errors);
    }
    remove_folder(cache_dir).map_err(|e| vec![e])
}

impl Record {
    fn load(path: &Path) -> Result<Option<Record>, Error> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(doing("read", path))(e)),
        };
        let refuse = |line, why| Error::Config {
            file: path.display().to_string(),
            line,
            why,
        };
        let record: Record = serde_json::from_slice(&text).map_err(|e| {
            refuse(
                Some(e.line()),
                format!("not a record of an attachment: {e}"),
            )
        })?;
        if record.version != VERSION {
            let why = format!(
                "version {}: this program knows {VERSION}; use the one that wrote it",
                record.version
            );
            return Err(refuse(None, why));
        }
        Ok(Some(record))
    }

    fn publish(
        &mut self,
        cni: &Cni,
        netns: &Path,
        ports: &[PortMapping],
        cache: &Path,
    ) -> Result<(), Error> {
        let list = self.attachment.network.clone();
        let all = list.plugins().iter();
        let able: Vec<_> = all.filter(|p| declares(p, "portMappings")).collect();
        for plugin in able.iter().rev() {
            self.run(cni, Command::Del, Some(netns), plugin)?;
        }
        self.attachment.ports = ports.to_vec();
        self.store(cache)?;
        for plugin in &able {
            self.run(cni, Command::Add, Some(netns), plugin)?;
        }
        Ok(())
    }

    fn store(&self, path: &Path) -> Result<(), Error> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(Error::io(doing("create folder", dir)))?;
        }
        serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|text| write_atomic(path, &text, 0o600))
            .map_err(Error::io(doing("write", path)))
    }

    /// DEL of every plugin that was told to ADD, whatever the others say.
    fn delete(&self, cni: &Cni, netns: Option<&Path>) -> Vec<Error> {
        // what is left of a pin after a restart of the machine is a plain file, which no plugin takes for "gone"
        let netns = netns.filter(|path| netns::exists(path));
        let plugins = self.attachment.network.plugins();
        let begun = plugins.get(..self.begun).unwrap_or(plugins);
        let failed = |plugin| self.run(cni, Command::Del, netns, plugin).err();
        begun.iter().rev().filter_map(failed).collect()
    }

    /// Runs one plugin of the chain. What it is handed as `prevResult` is the last result known, as CNI §4 wants it:
    /// of the plugin before for ADD, of the whole ADD for CHECK and DEL; before 0.4.0 DEL had none.
    fn run(
        &self,
        cni: &Cni,
        command: Command,
        netns: Option<&Path>,
        plugin: &Value,
    ) -> Result<Value, Error> {
        let attachment = &self.attachment;
        let list = &attachment.network;
        let old_del = command == Command::Del && !list.at_least("0.4.0");
        let previous = self.result.as_ref().filter(|_| !old_del);
        let config = request::of_attachment(cni, attachment, plugin, previous);
        let call = Call {
            command,
            container_id: &attachment.container_id,
            netns,
            ifname: &attachment.ifname,
            args: &attachment.args,
            plugin_dirs: list.plugin_dirs(cni, plugin),
        };
        invoke::run(kind(plugin), &call, Value::Object(config))
            .map_err(|why| failure(list, plugin, command, why))
    }
}

/// What would only show in the middle of the work: wishes that nobody fulfils, missing plugins, no common version.
/// Gives the attachment with the version settled.
fn prepare(cni: &Cni, attachment: &Attachment) -> Result<Attachment, Error> {
    request::validate(attachment)?;
    Ok(Attachment {
        network: probe::settle(cni, &attachment.network)?,
        ..attachment.clone()
    })
}

/// A result without version has that of its configuration; the next plugin wants to read one.
fn complete_version(result: &mut Value, version: &str) {
    if let Some(result) = result.as_object_mut() {
        result.entry("cniVersion").or_insert_with(|| version.into());
    }
}

pub(super) fn kind(plugin: &Value) -> &str {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

pub(super) fn failure(
    list: &NetworkList,
    plugin: &Value,
    command: Command,
    why: PluginFailure,
) -> Error {
    Error::Plugin {
        plugin: kind(plugin).into(),
        network: list.name.clone(),
        from: list.source.clone(),
        command,
        why: Box::new(why),
    }
}

/// Files of a folder by name; none when there is no folder.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(doing("read folder", dir))(e)),
    };
    let mut files: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
    files.sort();
    Ok(files)
}

/// Of a write that a crash interrupted.
fn is_half_written(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// A folder that still holds a cache stays: why is in that one's error.
fn remove_folder(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(e)
            if !matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(Error::io(doing("remove folder", path))(e))
        }
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(doing("remove", path))(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "attach_tests.rs"]
mod tests;
