//! What can be asked of a network without a container: VERSION and STATUS.
//!
//! *Invariant:* a plugin is never called with a version that it says it does not know, as long as the list leaves a
//! choice.

use serde_json::{Map, Value};

use super::attach::{failure, kind};
use super::invoke::{self, Call, Command};
use super::{Cni, Error, NetworkList, request};

/// Finds every plugin, and settles which version of the specification they are called with: where the list offers
/// several (`cniVersions`), the newest that all plugins know (CNI §1 "Version considerations").
pub(super) fn settle(cni: &Cni, list: &NetworkList) -> Result<NetworkList, Error> {
    for plugin in list.plugins() {
        invoke::find(kind(plugin), list.plugin_dirs(cni, plugin))
            .map_err(|why| failure(list, plugin, Command::Add, why))?;
    }
    let offered = list.versions();
    if offered.len() < 2 {
        return Ok(list.clone());
    }
    let known = versions(cni, list)?;
    let common = offered.iter().find(|version| {
        known
            .iter()
            .all(|(_, all)| all.iter().any(|v| v == *version))
    });
    match common {
        Some(version) => Ok(list.at_version(version)),
        None => {
            let known: Vec<_> = known
                .iter()
                .map(|(plugin, versions)| format!("`{plugin}` knows {}", versions.join(", ")))
                .collect();
            Err(Error::Config {
                file: list.source.clone(),
                line: None,
                why: format!(
                    "cniVersions: none of {} is known to all plugins: {}",
                    offered.join(", "),
                    known.join("; ")
                ),
            })
        }
    }
}

/// VERSION: the versions that each plugin of the list knows, in the order of the list.
pub fn versions(cni: &Cni, list: &NetworkList) -> Result<Vec<(String, Vec<String>)>, Error> {
    let ask = |plugin: &Value| {
        let kind = kind(plugin);
        let known = invoke::versions(kind, list.plugin_dirs(cni, plugin), list.version())
            .map_err(|why| failure(list, plugin, Command::Version, why))?;
        Ok((kind.to_string(), known))
    };
    list.plugins().iter().map(ask).collect()
}

/// STATUS: whether ADD would work now. Lists older than 1.1.0 can't tell, and pass.
pub fn status(cni: &Cni, list: &NetworkList) -> Result<(), Error> {
    let list = settle(cni, list)?;
    if !list.at_least("1.1.0") {
        return Ok(());
    }
    for plugin in list.plugins() {
        let config = request::of_network(cni, &list, plugin);
        without_container(cni, &list, Command::Status, plugin, config)?;
    }
    Ok(())
}

/// Calls a plugin about the network as a whole.
pub(super) fn without_container(
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
        plugin_dirs: list.plugin_dirs(cni, plugin),
    };
    invoke::run(kind(plugin), &call, Value::Object(config))
        .map(drop)
        .map_err(|why| failure(list, plugin, command, why))
}
