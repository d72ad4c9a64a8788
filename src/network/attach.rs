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
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::conf::{declares, is_ifname, is_name};
use super::error::doing;
use super::invoke::{self, Call, Command};
use super::{Attached, Attachment, Cni, Error, NetworkList, PluginFailure, PortMapping, netns};
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

/// ADD along the chain. Before the first plugin runs, `cache` holds the attachment, after each one its result too,
/// so that [`del`] works from `cache` alone, whatever happened in between. On failure what was added is deleted again.
pub fn add(
    cni: &Cni,
    netns: &Path,
    attachment: &Attachment,
    cache: &Path,
) -> Result<Attached, Error> {
    validate(cni, attachment)?;
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
    // what is left of a pin after a restart of the machine is a plain file, which no plugin takes for "gone"
    let netns = netns.filter(|path| netns::exists(path));
    let plugins = record.attachment.network.plugins();
    let begun = plugins.get(..record.begun).unwrap_or(plugins);
    let errors: Vec<_> = begun
        .iter()
        .rev()
        .filter_map(|plugin| record.run(cni, Command::Del, netns, plugin).err())
        .collect();
    if errors.is_empty() {
        return remove(cache);
    }
    Error::all(errors)
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
        validate(cni, attachment)?;
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
    let mut files = match fs::read_dir(cache_dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries.iter().map(fs::DirEntry::path).collect::<Vec<_>>(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(vec![Error::io(doing("read folder", cache_dir))(e)]),
    };
    files.sort();
    let errors: Vec<_> = files
        .iter()
        .rev()
        .filter_map(|file| {
            // a write that a crash interrupted
            let half = file
                .file_name()
                .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            let done = if half {
                remove(file)
            } else {
                del(cni, netns, file)
            };
            done.err()
        })
        .collect();
    if !errors.is_empty() {
        return Err(errors);
    }
    remove_folder(cache_dir).map_err(|e| vec![e])
}

/// GC: tells the network's plugins which attachments (container id, interface) exist, so that they can remove the rest.
/// Lists older than 1.1.0 or with `disableGC` are left alone. All errors are given.
pub fn gc(cni: &Cni, list: &NetworkList, valid: &[(String, String)]) -> Result<(), Error> {
    if !list.at_least("1.1.0") || list.flag("disableGC") {
        return Ok(());
    }
    let valid: Vec<_> = valid
        .iter()
        .map(|(id, ifname)| json!({"containerID": id, "ifname": ifname}))
        .collect();
    let errors = list.plugins().iter().filter_map(|plugin| {
        let mut config = derive(list, plugin, None, None);
        config.insert("cni.dev/valid-attachments".into(), json!(valid));
        without_container(cni, list, Command::Gc, plugin, config).err()
    });
    Error::all(errors.collect())
}

/// STATUS: whether ADD would work now. Lists older than 1.1.0 can't tell, and pass.
pub fn status(cni: &Cni, list: &NetworkList) -> Result<(), Error> {
    if !list.at_least("1.1.0") {
        return Ok(());
    }
    for plugin in list.plugins() {
        let config = derive(list, plugin, None, None);
        without_container(cni, list, Command::Status, plugin, config)?;
    }
    Ok(())
}

fn without_container(
    cni: &Cni,
    list: &NetworkList,
    command: Command,
    plugin: &Value,
    config: Map<String, Value>,
) -> Result<(), Error> {
    let call = Call {
        command,
        container_id: "",
        netns: None,
        ifname: "",
        args: &[],
        plugin_dirs: list.plugin_dirs(cni),
    };
    invoke::run(kind(plugin), &call, Value::Object(config))
        .map(drop)
        .map_err(|why| failure(list, plugin, command, why))
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
        let config = derive(list, plugin, previous, runtime_config(plugin, attachment));
        let call = Call {
            command,
            container_id: &attachment.container_id,
            netns,
            ifname: &attachment.ifname,
            args: &attachment.args,
            plugin_dirs: list.plugin_dirs(cni),
        };
        invoke::run(kind(plugin), &call, Value::Object(config))
            .map_err(|why| failure(list, plugin, command, why))
    }
}

/// What would only show in the middle of the work: names, arguments, missing plugins, wishes that nobody fulfils.
fn validate(cni: &Cni, attachment: &Attachment) -> Result<(), Error> {
    let list = &attachment.network;
    if !is_name(&attachment.container_id) {
        return Err(Error::invalid(
            format!("container id `{}`", attachment.container_id),
            "must begin with a letter or digit and hold only these, `_`, `.` and `-`",
        ));
    }
    if !is_ifname(&attachment.ifname) {
        return Err(Error::invalid(
            format!(
                "interface `{}` of network `{}`",
                attachment.ifname, list.name
            ),
            "must be 1 to 15 characters without `/`, `:` and blanks",
        ));
    }
    for (key, value) in &attachment.args {
        // CNI §2 `CNI_ARGS`: there is no quoting
        if key.is_empty() || key.contains(['=', ';']) || value.contains(';') {
            return Err(Error::invalid(
                format!("argument `{key}={value}` of network `{}`", list.name),
                "must be KEY=VALUE without `;`",
            ));
        }
    }
    for ip in &attachment.ips {
        if ip.parse::<IpNet>().is_err() && ip.parse::<IpAddr>().is_err() {
            return Err(Error::invalid(
                format!("address `{ip}` of network `{}`", list.name),
                "not an address, with or without prefix",
            ));
        }
    }
    let wishes = [
        ("ips", "a fixed address", !attachment.ips.is_empty()),
        ("mac", "a fixed link address", attachment.mac.is_some()),
        (
            "portMappings",
            "a published port",
            !attachment.ports.is_empty(),
        ),
    ];
    for (capability, what, wanted) in wishes {
        if wanted && !list.declares(capability) {
            return Err(Error::invalid(
                format!("network `{}` ({})", list.name, list.source),
                format!(
                    "{what} is asked for, but no plugin declares the capability `{capability}`"
                ),
            ));
        }
    }
    for plugin in list.plugins() {
        invoke::find(kind(plugin), list.plugin_dirs(cni))
            .map_err(|why| failure(list, plugin, Command::Add, why))?;
    }
    Ok(())
}

/// The configuration that a plugin is handed (CNI §4 "Deriving execution configuration from plugin configuration").
fn derive(
    list: &NetworkList,
    plugin: &Value,
    previous: Option<&Value>,
    runtime_config: Option<Value>,
) -> Map<String, Value> {
    let mut config = plugin.as_object().cloned().unwrap_or_default();
    config.retain(|key, _| {
        key != "capabilities" && key != "prevResult" && !key.starts_with("cni.dev/")
    });
    config.insert("cniVersion".into(), list.version().into());
    config.insert("name".into(), list.name.clone().into());
    if let Some(previous) = previous {
        config.insert("prevResult".into(), previous.clone());
    }
    if let Some(runtime_config) = runtime_config {
        config.insert("runtimeConfig".into(), runtime_config);
    }
    config
}

/// What is asked for, as far as the plugin declares that it can do it (CNI CONVENTIONS.md "Dynamic plugin specific
/// fields").
fn runtime_config(plugin: &Value, attachment: &Attachment) -> Option<Value> {
    let mut wishes = Map::new();
    let mut wish = |capability: &str, wanted: bool, value: Value| {
        if wanted && declares(plugin, capability) {
            wishes.insert(capability.into(), value);
        }
    };
    let a = attachment;
    wish("ips", !a.ips.is_empty(), json!(a.ips));
    wish("mac", a.mac.is_some(), json!(a.mac));
    wish("portMappings", !a.ports.is_empty(), json!(a.ports));
    wish("aliases", !a.aliases.is_empty(), json!(a.aliases));
    (!wishes.is_empty()).then_some(Value::Object(wishes))
}

/// A result without version has that of its configuration; the next plugin wants to read one.
fn complete_version(result: &mut Value, version: &str) {
    if let Some(result) = result.as_object_mut() {
        result.entry("cniVersion").or_insert_with(|| version.into());
    }
}

fn kind(plugin: &Value) -> &str {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn failure(list: &NetworkList, plugin: &Value, command: Command, why: PluginFailure) -> Error {
    Error::Plugin {
        plugin: kind(plugin).into(),
        network: list.name.clone(),
        from: list.source.clone(),
        command,
        why: Box::new(why),
    }
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
